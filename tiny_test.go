package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// exception makes channel c of a problem with tiny gradients another one.
// at are two elements of the channel that are not among the sample.
type exception struct {
	name   string
	again  bool // with identity: sums of the channel are taken again, in one pass or the other
	change func(p *problem, c int, at [2]int)
}

var exceptions = []exception{
	{"large", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = 1e30 }},
	{"middling", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = 1e-20 }},
	{"large ones cancel", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]], p.dy[at[1]] = 3e38, -3e38 }},
	{"middling ones cancel", false, func(p *problem, _ int, at [2]int) {
		p.dy[at[0]], p.dy[at[1]], p.x[at[1]] = 1e-10, -1e-10, p.x[at[0]]
	}},
	{"equal ones cancel", false, func(p *problem, _ int, at [2]int) { p.opposite(at, 1e37) }},
	{"equal middling ones cancel", false, func(p *problem, _ int, at [2]int) { p.opposite(at, 1e-10) }},
	{"tiny ones cancel", false, func(p *problem, c int, at [2]int) {
		p.scale(p.dy, c, 0)
		p.opposite(at, 1e-38)
	}},
	{"NaN", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = float32(math.NaN()) }},
	{"infinite", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = float32(math.Inf(-1)) }},
	{"NaN in x", false, func(p *problem, _ int, at [2]int) { p.x[at[0]] = float32(math.NaN()) }},
	{"NaN in x, large dy", false, func(p *problem, _ int, at [2]int) { p.x[at[0]], p.dy[at[1]] = float32(math.NaN()), 1e30 }},
	{"zeros", false, func(p *problem, c int, _ [2]int) { p.scale(p.dy, c, 0) }},
	{"usual", false, func(p *problem, c int, _ [2]int) { p.scale(p.dy, c, 1) }},
	{"large gamma", false, func(p *problem, c int, _ [2]int) { p.gamma[c] = 3e38 }},
	{"large x", true, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 1e30) }},
	{"huge x", true, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 1e34) }},
	{"subnormal x", false, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 1e-39) }},
	{"constant x", false, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 0) }},
}

// opposite gives one of two elements what the other has, and its gradient the other sign.
func (p *problem) opposite(at [2]int, dy float32) {
	p.dy[at[0]], p.dy[at[1]], p.x[at[1]] = dy, -dy, p.x[at[0]]
	if p.residual != nil {
		p.residual[at[1]] = p.residual[at[0]]
	}
}

// scale scales a channel of a tensor.
func (p *problem) scale(s []float32, c int, by float64) {
	for i := range s {
		if channelOf(p.shape, i) == c {
			s[i] = float32(float64(s[i]) * by)
		}
	}
}

// TestTinyGradientsBeside: channels of other kinds beside gradients of 1e-38 are
// not harmed, nor do they change the bits of others: by every way and in every mode, and
// within the bounds.
func TestTinyGradientsBeside(t *testing.T) {
	t.Parallel()
	eachBeside(t, func(t *testing.T, e exception, p, without *problem, c int) {
		s, ways := p.shape, waysOfModes()
		r := p.checkSame(t, ways, slices.Clone)
		if p.finite() && e.name != "large gamma" {
			p.checkBounds(t, r)
		}
		// The other channels have the bits that they have without it.
		others := plain(batchnorm.Mask{}).once(t, *without)
		for k, v := range r.dx {
			if channelOf(s, k) != c && !sameBits(v, others.dx[k]) {
				t.Fatalf("dx[%d] of another channel is %g, want %g", k, v, others.dx[k])
			}
		}
		for k := range s.Channels {
			if k != c && (!sameBits(r.dgamma[k], others.dgamma[k]) || !sameBits(r.dbeta[k], others.dbeta[k])) {
				t.Fatalf("dgamma[%d] and dbeta[%[1]d] of another channel are %g and %g, want %g and %g",
					k, r.dgamma[k], r.dbeta[k], others.dgamma[k], others.dbeta[k])
			}
		}
		expectSame(t, "split", split([]int{s.Outer}, batchnorm.Mask{}).same(t, *p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, *p))
		frozen(batchnorm.Mask{}).same(t, *p, ways, slices.Clone)
		ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, batchnorm.Mask{}).same(t, *p, ways, slices.Clone)
		mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
		for k := range mask.Valid {
			mask.Valid[k] = k%4 != 3
		}
		plain(mask).same(t, *p, ways, slices.Clone)
	})
}

// TestTinyGradientsAgain: the sums of channels whose gradients seem tiny are taken again only
// if their constants are wide. Forward sums of large values are, in tensors of few rows whose columns are the
// channels. It counts them, so that no other test may run beside it.
func TestTinyGradientsAgain(t *testing.T) {
	eachBeside(t, func(t *testing.T, e exception, p, _ *problem, _ int) {
		if p.act != batchnorm.Identity || e.name == "tiny ones cancel" { // zeros are sampled, and then invstd decides
			return
		}
		before := batchnorm.Rescued()
		plain(batchnorm.Mask{}).once(t, *p)
		again := e.again && !(e.name == "large x" && (p.shape.Inner > 1 || p.shape.Channels < 128))
		if n := batchnorm.Rescued() - before; again != (n > 0) {
			t.Errorf("the sums of %d channels are taken again", n)
		}
	})
}

// eachBeside calls do for problems with gradients of 1e-38, and an exception in channel c.
// without is the problem without the exception.
func eachBeside(t *testing.T, do func(t *testing.T, e exception, p, without *problem, c int)) {
	for j, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 3, Channels: 40, Inner: 9}, {Outer: 90, Channels: 24, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}, {Outer: 700, Channels: 3, Inner: 1}, {Outer: 3, Channels: 13, Inner: 300}} {
		for i, e := range exceptions {
			for k, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
				always := e.name == "huge x" && act == batchnorm.SiLU && s.Inner == 1 // wide and tiny at once
				if !batchnorm.Thorough() && (i+j+2*k)%5 != 0 && !always {
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%v", s, e.name, act), func(t *testing.T) {
					usual := gen.Uniform(2, s.Len(), -1, 1)
					without := problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
						x: gen.Normal(1, s.Len(), 0.3, 1), dy: make([]float32, s.Len()),
						gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), beta: gen.Uniform(4, s.Channels, 2, 3),
						mean: gen.Uniform(5, s.Channels, -1, 1), vari: gen.Uniform(6, s.Channels, 0.5, 1)}
					if i%2 == 0 {
						without.residual = gen.Uniform(7, s.Len(), 0, 1)
					}
					for k, v := range usual {
						without.dy[k] = float32(float64(v) * 1e-38)
					}
					p := without
					p.x, p.dy, p.residual, p.gamma = slices.Clone(p.x), slices.Clone(p.dy), slices.Clone(p.residual), slices.Clone(p.gamma)
					c := s.Channels / 2
					sampled := batchnorm.Sampled(s)
					var at []int
					for k := range p.dy {
						if channelOf(s, k) != c || slices.Contains(sampled[:], k/(s.Channels*s.Inner)*s.Inner+k%s.Inner) {
							continue
						}
						at = append(at, k)
						if e.name == "usual" {
							p.dy[k] = usual[k]
						}
					}
					if len(at) < 2 {
						t.Fatalf("all elements of channel %d are in the sample", c)
					}
					e.change(&p, c, [2]int{at[len(at)/3], at[len(at)/2]})
					do(t, e, &p, &without, c)
				})
			}
		}
	}
}

// TestTinyChannelsBeside: channels of tiny numbers among usual ones don't change the bits of
// these, nor those beside channels that are scaled otherwise: by every way and in every
// mode, and within the bounds.
func TestTinyChannelsBeside(t *testing.T) {
	t.Parallel()
	tinyX := func(p *problem, c int) { p.scale(p.x, c, 1e-39) }
	tinyDY := func(p *problem, c int) { p.scale(p.dy, c, 1e-38) }
	kinds := []struct {
		name   string
		beside func(p *problem, c int) // of another channel
		tiny   func(p *problem, c int)
	}{
		{"x", nil, tinyX},
		{"dy", nil, tinyDY},
		{"both", nil, func(p *problem, c int) { tinyX(p, c); tinyDY(p, c) }},
		{"x beside large x", func(p *problem, c int) { p.scale(p.x, c, 1e30) }, tinyX},
		{"dy beside large gamma", func(p *problem, c int) { // gamma*invstd is infinite in float32, and dx is not
			p.gamma[c] = 1e37
			p.scale(p.x, c, 0.01)
			p.scale(p.dy, c, 1e-10)
		}, tinyDY},
		{"both beside tiny x", tinyX, func(p *problem, c int) { tinyX(p, c); tinyDY(p, c) }},
		{"x beside tiny dy", tinyDY, tinyX},
		{"dy beside zeros", func(p *problem, c int) { p.scale(p.dy, c, 0) }, tinyDY},
		{"dy beside NaN", func(p *problem, c int) { p.dy[c*p.shape.Inner] = float32(math.NaN()) }, tinyDY},
	}
	n := 0
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 3, Channels: 40, Inner: 9}, {Outer: 90, Channels: 24, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}, {Outer: 700, Channels: 3, Inner: 1}, {Outer: 9, Channels: 33, Inner: 3},
		{Outer: 70, Channels: 520, Inner: 1}, {Outer: 3, Channels: 13, Inner: 300}} {
		for i, k := range kinds {
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU, batchnorm.LeakyReLU(0.25)} {
				always := act == batchnorm.Identity && k.name == "dy beside large gamma" && s.Inner == 1 // both kinds in a cache line
				if n++; !batchnorm.Thorough() && n%7 != 0 && !always {                                   // no factor of the numbers above
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%v", s, k.name, act), func(t *testing.T) {
					without := problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
						x: gen.Normal(1, s.Len(), 0.3, 1), dy: gen.Uniform(2, s.Len(), -1, 1),
						gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), beta: gen.Uniform(4, s.Channels, -1, 1),
						mean: gen.Uniform(5, s.Channels, -1, 1), vari: gen.Uniform(6, s.Channels, 0.5, 1)}
					if i%2 == 0 {
						without.residual = gen.Uniform(7, s.Len(), -1, 1)
					}
					c := s.Channels / 2
					if k.beside != nil {
						k.beside(&without, c+1)
					}
					p := without
					p.x, p.dy = slices.Clone(p.x), slices.Clone(p.dy)
					k.tiny(&p, c)
					ways := waysOfModes()
					r := p.checkSame(t, ways, slices.Clone)
					if p.finite() && k.name != "dy beside large gamma" {
						p.checkBounds(t, r)
					}
					others := plain(batchnorm.Mask{}).once(t, without)
					for j, v := range r.dx {
						if channelOf(s, j) != c && (!sameBits(v, others.dx[j]) || !sameBits(r.y[j], others.y[j])) {
							t.Fatalf("y[%d] and dx[%[1]d] of another channel are %g and %g, want %g and %g", j, r.y[j], v, others.y[j], others.dx[j])
						}
					}
					expectSame(t, "split", split([]int{s.Outer}, batchnorm.Mask{}).same(t, p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, p))
					frozen(batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
					for j := range mask.Valid {
						mask.Valid[j] = j%4 != 3
					}
					plain(mask).same(t, p, ways, slices.Clone)
					if act == batchnorm.Identity {
						got, want := fromY(batchnorm.Mask{}).same(t, p, ways, slices.Clone), fromY(batchnorm.Mask{}).once(t, without)
						for j, v := range got.dx {
							if channelOf(s, j) != c && !sameBits(v, want.dx[j]) {
								t.Fatalf("from y: dx[%d] of another channel is %g, want %g", j, v, want.dx[j])
							}
						}
					}
				})
			}
		}
	}
}

// TestTinyGradientsScale: gradients of 2^-120 give the results of gradients of 1, times
// 2^-120, but for the rounding of both: by every way and in every mode.
func TestTinyGradientsScale(t *testing.T) {
	t.Parallel()
	const scale = 0x1p-120
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 9, Channels: 3, Inner: 600}, {Outer: 2, Channels: 3, Inner: 2500},
		{Outer: 90, Channels: 24, Inner: 1}, {Outer: 8, Channels: 280, Inner: 1}, {Outer: 300, Channels: 130, Inner: 1},
		{Outer: 700, Channels: 3, Inner: 1}} {
		for i, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			if !batchnorm.Thorough() && (i+s.Channels+s.Outer)%3 != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%v/%v", s, act), func(t *testing.T) {
				p := problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
					x: gen.Normal(1, s.Len(), 0.3, 1), dy: gen.Uniform(2, s.Len(), -1, 1), residual: gen.Uniform(7, s.Len(), -1, 1),
					gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), beta: gen.Uniform(4, s.Channels, -1, 1),
					mean: gen.Uniform(5, s.Channels, -1, 1), vari: gen.Uniform(6, s.Channels, 0.5, 1)}
				for k, v := range p.dy {
					p.dy[k] = float32(math.Round(float64(v)*(1<<20)) / (1 << 20)) // so that it has no digits to lose
				}
				tiny := p
				tiny.dy = slices.Clone(p.dy)
				for k := range tiny.dy {
					tiny.dy[k] *= scale
				}
				valid := make([]bool, s.PerChannel())
				for k := range valid {
					valid[k] = k%4 != 3
				}
				mask := batchnorm.Mask{Valid: valid}
				modes := []mode{plain(batchnorm.Mask{}), plain(mask), frozen(batchnorm.Mask{}), split([]int{s.Outer}, batchnorm.Mask{}),
					ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, batchnorm.Mask{})}
				if act == batchnorm.Identity {
					modes = append(modes, fromY(batchnorm.Mask{}), fromY(mask))
				}
				for _, m := range modes {
					got, want := m.same(t, tiny, waysOfModes(), slices.Clone), m.once(t, p)
					compare := func(what string, got, want []float32, slack float64) {
						largest := 0.0
						for _, v := range want {
							largest = max(largest, math.Abs(float64(v)))
						}
						for k, v := range want {
							scaled := float64(v) * scale
							rounding := math.Abs(scaled) * 0x1p-23 // of the usual gradient
							switch what {
							case "dx":
								rounding = 4 * largest * scale * unit
							case "dgamma", "dbeta": // sums of numbers of at most 1 or so
								rounding = float64(4*s.PerChannel()) * scale * unit
							}
							if float64(got[k]) != float64(float32(scaled)) && !(math.Abs(float64(got[k])-scaled) <= slack+rounding) {
								t.Fatalf("%s: %s[%d] is %g, want %g", m.name, what, k, got[k], scaled)
							}
						}
					}
					slack := 0x1p-150 // dx is rounded once
					if m.name == "frozen" {
						if slack = 0x1p-149; act == batchnorm.SiLU { // g is rounded to a subnormal number
							slack = 0x1p-147
						}
					}
					compare("dx", got.dx, want.dx, slack)
					compare("dresidual", got.dres, want.dres, 0x1p-149)
					compare("dgamma", got.dgamma, want.dgamma, 0x1p-149)
					compare("dbeta", got.dbeta, want.dbeta, 0x1p-149)
				}
			})
		}
	}
}

// TestTinyDeviations: the gradients by gamma of subnormal x have the error of usual x, and
// all outputs keep their bounds.
func TestTinyDeviations(t *testing.T) {
	t.Parallel()
	n := 0
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 2, Channels: 3, Inner: 2500}, {Outer: 90, Channels: 24, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}, {Outer: 700, Channels: 3, Inner: 1}} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			for _, epsilon := range []float64{batchnorm.DefaultEpsilon, 1, 0} {
				for _, scale := range []float64{1e-39, 1e-36} {
					if n++; !batchnorm.Thorough() && n%5 != 0 { // no factor of the numbers of kinds above
						continue
					}
					p := problem{shape: s, act: act, epsilon: epsilon, ops: forward | backward,
						x: gen.Normal(1, s.Len(), 0.3, 1), dy: gen.Uniform(2, s.Len(), -1, 1),
						gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), mean: make([]float32, s.Channels), vari: gen.Uniform(6, s.Channels, 0, 1)}
					if act != batchnorm.Identity {
						p.beta = gen.Uniform(4, s.Channels, -1, 1)
					}
					for k, v := range p.x {
						p.x[k] = float32(float64(v) * scale)
					}
					ways := waysOfModes()
					r := p.checkSame(t, ways, slices.Clone)
					p.checkBounds(t, r)
					if act != batchnorm.SiLU {
						p.checkFrozen(t, frozen(batchnorm.Mask{}).same(t, p, ways, slices.Clone))
					}
					expectSame(t, "split", split([]int{s.Outer}, batchnorm.Mask{}).same(t, p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, p))
					if act != batchnorm.Identity {
						continue
					}
					ref := p.reference()
					fwd, grad := reference.Forward(ref), reference.Backward(ref)
					sums := make([]float64, s.Channels)
					for k, v := range p.dy {
						c := channelOf(s, k)
						sums[c] += math.Abs(float64(v) * (float64(p.x[k]) - fwd.Mean[c]) * fwd.InvStd[c])
					}
					for c, sum := range sums {
						if d := math.Abs(float64(r.dgamma[c]) - grad.DGamma[c]); !(d <= sumUnits*unit*sum+0x1p-149) {
							t.Fatalf("%v, epsilon %g, x * %g: dgamma[%d] is %g, the reference says %g", s, epsilon, scale, c, r.dgamma[c], grad.DGamma[c])
						}
					}
				}
			}
		}
	}
}

// TestTinyFrozenNaN: where x is NaN or infinite, dx of frozen statistics is NaN for tiny
// gradients too.
func TestTinyFrozenNaN(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		inf, nan := float32(math.Inf(1)), float32(math.NaN())
		x := []float32{1, -inf, nan, inf, 3, 1e-39, 2, -2}
		n := len(x)
		for _, s := range []batchnorm.Shape{{Outer: 1, Channels: 1, Inner: n}, {Outer: n, Channels: 1, Inner: 1}, {Outer: 1, Channels: n, Inner: 1}} {
			dx, ones := make([]float32, len(x)), slices.Repeat([]float32{1}, s.Channels)
			noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(0)).FrozenBackward(batchnorm.FrozenBackwardArgs{
				DY: slices.Repeat([]float32{3e-39}, len(x)), X: x, Gamma: slices.Repeat([]float32{2}, s.Channels), Mean: ones, Var: ones, DX: dx}))
			const v = float32(2 * float64(float32(3e-39)))
			expectBits(t, fmt.Sprintf("dx of %v", s), dx, []float32{v, nan, nan, nan, v, v, v, v})
		}
	})
}

// TestDifferentPowers: adjacent columns that are too large for their squares, by different
// powers of two.
func TestDifferentPowers(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 40, Channels: 160, Inner: 1}
	p := problem{shape: s, ops: forward | backward, epsilon: batchnorm.DefaultEpsilon, x: gen.Normal(1, s.Len(), 0.3, 1),
		dy: gen.Uniform(2, s.Len(), -1, 1), mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
	for i := range p.x {
		p.x[i] = float32(float64(p.x[i]) * []float64{1e36, 1e17, 1e20}[channelOf(s, i)/50%3])
	}
	p.checkBounds(t, p.checkSame(t, waysOfModes(), slices.Clone))
}

// TestStripsBesideOthers: where the sums of columns are taken again in strips, the columns
// beside them in a cache line keep theirs, also if a call before has scaled these.
func TestStripsBesideOthers(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 8, Channels: 72, Inner: 1}
	usual := gen.Normal(1, s.Len(), 0.3, 1)
	with := func(large ...int) []float32 {
		x := slices.Clone(usual)
		for i := range x {
			if len(large) == 0 || slices.Contains(large, i%s.Channels) {
				x[i] = float32(float64(x[i]) * 1e20)
			}
		}
		return x
	}
	for _, path := range batchnorm.Paths() {
		for _, large := range [][]int{{8}, {8, 39}, {8, 15, 39, 40}, {23, 24, 55}, {0, 31, 32, 71}} {
			run := func(inputs ...[]float32) []float32 {
				p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path))
				noError(t, err)
				y := make([]float32, s.Len())
				for _, x := range inputs {
					noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y}))
				}
				return y
			}
			want := run(with(large...))
			got := run(with(), with(large...))
			for i, v := range got {
				if !sameBits(v, want[i]) {
					t.Fatalf("%v, %v are large: y[%d] is %g, want %g", path, large, i, v, want[i])
				}
			}
		}
	}
}

// TestBesideBorder: tiny columns on both sides of column 1024, where another kernel call begins, among others.
func TestBesideBorder(t *testing.T) {
	for _, channels := range []int{1200, 2056} {
		for _, of := range [][2]int{{1000, 1050}, {1020, 1028}} {
			for _, every := range []int{1, 2, 9} {
				p := newProblem(batchnorm.Shape{Outer: 9, Channels: channels, Inner: 1}, hasGammaBeta)
				for i := range p.dy {
					if c := i % channels; c >= of[0] && c < of[1] && c%every == 0 {
						p.dy[i] *= 1e-38
					}
				}
				p.checkSame(t, configs(), slices.Clone)
			}
		}
	}
}

// TestBesideStreamed: where outputs are so large that non-temporal stores write them, columns
// beside tiny ones have the bits that they have in place, and on the Go path.
func TestBesideStreamed(t *testing.T) {
	s := batchnorm.Shape{Outer: 11600, Channels: 144, Inner: 1} // 6.7 MB
	x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Normal(2, s.Len(), 0, 1)
	gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Uniform(4, s.Channels, -0.5, 0.5)
	for i := range dy {
		switch c := i % s.Channels; {
		case c >= 40 && c < 56 || c == 100: // whole vectors, and one column
			dy[i] *= 1e-38
		case c == 76 || c == 101:
			x[i] *= 1e-39
		}
	}
	for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
		type result struct{ y, dx, dres, dgamma, dbeta []float32 }
		run := func(path batchnorm.Path, inPlace bool) result {
			p, err := batchnorm.NewPlan(s, batchnorm.WithActivation(act), batchnorm.WithPath(path))
			if err != nil {
				t.Fatal(err)
			}
			r := result{y: make([]float32, s.Len()), dx: make([]float32, s.Len()), dres: make([]float32, s.Len()),
				dgamma: make([]float32, s.Channels), dbeta: make([]float32, s.Channels)}
			in, grad := x, dy
			if inPlace {
				copy(r.y, x)
				copy(r.dx, dy)
				in, grad = r.y, r.dx
			}
			mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
			if err := p.Forward(batchnorm.ForwardArgs{X: in, Y: r.y, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd}); err != nil {
				t.Fatal(err)
			}
			err = p.Backward(batchnorm.BackwardArgs{X: x, DY: grad, DX: r.dx, DResidual: r.dres, Gamma: gamma, Beta: beta,
				Mean: mean, InvStd: invstd, DGamma: r.dgamma, DBeta: r.dbeta})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		want := run(batchnorm.PathGeneric, true)
		for _, path := range batchnorm.Paths() {
			for _, inPlace := range []bool{false, true} {
				got := run(path, inPlace)
				for name, list := range map[string][2][]float32{"y": {got.y, want.y}, "dx": {got.dx, want.dx}, "dresidual": {got.dres, want.dres},
					"dgamma": {got.dgamma, want.dgamma}, "dbeta": {got.dbeta, want.dbeta}} {
					for i, v := range list[0] {
						if !sameBits(v, list[1][i]) {
							t.Fatalf("%v, %v, in place %t: %s[%d] of channel %d is %g, want %g", act, path, inPlace, name, i, i%s.Channels, v, list[1][i])
						}
					}
				}
			}
		}
	}
}

// TestTinySumsOfManyColumns: the sums of columns with tiny gradients have the bits that they have
// alone: beside usual columns, in many rows of many columns, and for any number of workers. The
// gradients are tiny in the sample alone, and cancel, so that dgamma and dx show the last digits of sums.
func TestTinySumsOfManyColumns(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 256, Channels: 520, Inner: 1}, {Outer: 256, Channels: 128, Inner: 1},
		{Outer: 140, Channels: 300, Inner: 2}} {
		x, dy, row := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1), s.Channels*s.Inner
		sampled := batchnorm.Sampled(s)
		for i := range dy {
			o, last := i/row, s.Outer-1-i/row
			if o >= last {
				break
			}
			position := func(o int) int { return o*s.Inner + i%s.Inner }
			if slices.Contains(sampled[:], position(o)) || slices.Contains(sampled[:], position(last)) {
				dy[i] *= 1e-38
			}
			x[i+(last-o)*row], dy[i+(last-o)*row] = x[i], -dy[i]
		}
		some := slices.Clone(dy) // every other channel is usual
		for i, v := range gen.Uniform(3, s.Len(), 1, 2) {
			if channelOf(s, i)%2 == 1 {
				some[i] = v
			}
		}
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.SiLU} {
			type result struct {
				g, gd      []float64
				dx, dgamma []float32
			}
			run := func(dy []float32, c config) result {
				p := newPlan(t, s, append(c.options(), batchnorm.WithActivation(act))...)
				mean, invstd := slices.Repeat([]float64{0.3}, s.Channels), slices.Repeat([]float64{1}, s.Channels)
				r := result{make([]float64, s.Channels), make([]float64, s.Channels), make([]float32, s.Len()), make([]float32, s.Channels)}
				noError(t, p.GradSums(batchnorm.GradSumsArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, Sums: &batchnorm.GradSums{G: r.g, GD: r.gd}}))
				noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, DX: r.dx, DGamma: r.dgamma}))
				return r
			}
			want := run(dy, config{path: batchnorm.PathGeneric, workers: 1})
			for _, way := range configs() {
				for _, grad := range [][]float32{dy, some} {
					got := run(grad, way)
					for c := 0; c < s.Channels; c += 2 {
						if got.g[c] != want.g[c] || got.gd[c] != want.gd[c] || !sameBits(got.dgamma[c], want.dgamma[c]) {
							t.Fatalf("%v, %v, %v: the sums of channel %d are %g and %g, dgamma is %g, want %g, %g and %g",
								s, act, way, c, got.g[c], got.gd[c], got.dgamma[c], want.g[c], want.gd[c], want.dgamma[c])
						}
					}
					for i, v := range got.dx {
						if c := channelOf(s, i); c%2 == 0 && !sameBits(v, want.dx[i]) {
							t.Fatalf("%v, %v, %v: dx[%d] is %g, want %g", s, act, way, i, v, want.dx[i])
						}
					}
				}
			}
		}
	}
}

// TestWildInvStd: where invstd leaves its range, and gamma*invstd does not, every way rounds z of a backward pass
// as that of the forward pass is, at the kink too.
func TestWildInvStd(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 40, Channels: 200, Inner: 1}, {Outer: 3, Channels: 60, Inner: 9},
		{Outer: 2, Channels: 20, Inner: 100}} {
		for _, scale := range []float64{0x1p-110, 0x1p98} {
			p := problem{shape: s, act: batchnorm.ReLU, epsilon: 0, ops: forward | backward, x: gen.Normal(1, s.Len(), 0, 1),
				dy: gen.Normal(2, s.Len(), 0, 1), residual: slices.Repeat([]float32{0}, s.Len()), gamma: gen.Uniform(3, s.Channels, 1, 8),
				beta: make([]float32, s.Channels), mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
			for k, v := range p.x {
				p.x[k] = float32(float64(v) * scale * 8) // exact
			}
			stats := reference.Forward(p.reference())
			for c, invstd := range stats.InvStd {
				p.gamma[c] = float32(float64(p.gamma[c]) / invstd)
				x := p.x[c*s.Inner] // one z is 0 or next to it
				p.beta[c] = -float32((float64(x) - stats.Mean[c]) * float64(p.gamma[c]) * invstd)
			}
			without := p
			without.residual = nil
			for _, p := range []problem{p, without} {
				r := plain(batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
				for k, v := range r.dres {
					if want := p.dy[k]; r.y[k] > 0 && v != want || r.y[k] == 0 && v != 0 {
						t.Fatalf("%v, x * %g: dresidual[%d] is %g where dy is %g and y is %g", s, scale, k, v, want, r.y[k])
					}
				}
			}
		}
	}
}
