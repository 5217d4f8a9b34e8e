package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/guard"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// TestFrozenAfterOther: dx of a wide channel, in a call without sums, depends neither on
// the gradients of an earlier call nor on whether sums are taken.
func TestFrozenAfterOther(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 4, Channels: 1, Inner: 3}
	for _, path := range batchnorm.Paths() {
		p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path), batchnorm.WithWorkers(1), batchnorm.WithEpsilon(0))
		if err != nil {
			t.Fatal(err)
		}
		x, dy := make([]float32, s.Len()), make([]float32, s.Len())
		backward := func(scale float64, dgamma []float32) []float32 {
			for i := range x {
				x[i], dy[i] = float32(i), float32(float64(i+1)*scale)
			}
			dx := make([]float32, s.Len())
			args := batchnorm.FrozenBackwardArgs{DY: dy, X: x, Gamma: []float32{1e30}, Mean: []float32{0}, Var: []float32{1e-20}, DX: dx, DGamma: dgamma}
			if err := p.FrozenBackward(args); err != nil {
				t.Fatal(err)
			}
			return dx
		}
		dgamma := make([]float32, 1)
		for _, scale := range []float64{1e-44, 1e-40, 1e-30, 1} {
			want := backward(scale, dgamma)
			for _, before := range []float64{1e-44, 1e-30, 1, 1e37} {
				backward(before, dgamma)
				if got := backward(scale, nil); !slices.Equal(got, want) {
					t.Errorf("%v: with gradients of %g after %g dx is %g, want %g", path, scale, before, got, want)
				}
			}
		}
	}
}

// TestSmallPart: dx of a part whose gradients are tiny beside those of another part, which
// are in the sums.
func TestSmallPart(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 8, Channels: 3, Inner: 5}
	for _, large := range []float64{1, 1e20, 1e36} {
		for _, path := range batchnorm.Paths() {
			p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path), batchnorm.WithWorkers(1))
			if err != nil {
				t.Fatal(err)
			}
			mean, invstd, gamma := []float64{1, 2, 3}, []float64{0x1p-110, 1, 0x1p110}, []float32{0x1p80, 0x1p-20, 0x1p-80}
			x, dy := make([]float32, s.Len()), [2][]float32{make([]float32, s.Len()), make([]float32, s.Len())}
			for i := range x {
				c := i / s.Inner % s.Channels
				x[i] = float32(mean[c] + float64(i%7-3)*min(1/invstd[c], 1e20))
				dy[0][i], dy[1][i] = float32(i%5+1)*0x1p-130, float32(float64(i%3+1)*large/8)
			}
			var sums [2]batchnorm.GradSums
			for i := range sums {
				sums[i] = batchnorm.GradSums{G: make([]float64, s.Channels), GD: make([]float64, s.Channels)}
				if err := p.GradSums(batchnorm.GradSumsArgs{DY: dy[i], X: x, Gamma: gamma, Mean: mean, InvStd: invstd, Sums: &sums[i]}); err != nil {
					t.Fatal(err)
				}
			}
			all := batchnorm.GradSums{G: make([]float64, s.Channels), GD: make([]float64, s.Channels)}
			if err := batchnorm.MergeGradSums(&all, sums[:]); err != nil {
				t.Fatal(err)
			}
			dx, n := make([]float32, s.Len()), float64(all.Count)
			if err := p.InputGrad(batchnorm.InputGradArgs{DY: dy[0], X: x, Gamma: gamma, Mean: mean, InvStd: invstd, Sums: all, DX: dx}); err != nil {
				t.Fatal(err)
			}
			for i, got := range dx {
				c := i / s.Inner % s.Channels
				scale, xhat := float64(gamma[c])*invstd[c], (float64(x[i])-mean[c])*invstd[c]
				a, b := all.G[c]/n, xhat*all.GD[c]*invstd[c]/n
				want := scale * (float64(dy[0][i]) - a - b)
				if slack := 1e-6*math.Abs(scale)*(math.Abs(a)+math.Abs(b)) + 0x1p-148; got != float32(want) && !(math.Abs(float64(got)-want) <= slack) {
					t.Fatalf("%v, gradients of %g in the other part: dx[%d] is %g, want %g", path, large, i, got, want)
				}
			}
		}
	}
}

// TestExtentsBeside: a channel whose dx needs scaled values, beside one whose tiny gradients
// are looked at again. ReLU lets the largest gradients of the first one not through.
func TestExtentsBeside(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 64, Channels: 16, Inner: 1}
	const c, beside = 3, 5
	for _, path := range batchnorm.Paths() {
		p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path), batchnorm.WithWorkers(1), batchnorm.WithActivation(batchnorm.ReLU))
		if err != nil {
			t.Fatal(err)
		}
		backward := func(tiny bool) []float32 {
			x, dy := gen.Normal(1, s.Len(), 0, 1), gen.Normal(2, s.Len(), 0, 1)
			mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
			for k := range invstd {
				invstd[k] = 1
			}
			invstd[c] = 0x1p75
			for o := range s.Outer {
				row := o * s.Channels
				x[row+c] *= 0x1p-75
				dy[row+c] *= 0x1p70
				if tiny { // the products vanish, even those of scaled gradients
					x[row+beside] *= 0x1p-75
					dy[row+beside] = 0x1p-149
				}
			}
			x[10*s.Channels+c], dy[10*s.Channels+c] = -0x1p-75, float32(math.NaN())
			if tiny {
				invstd[beside] = 0x1p75
			}
			dx := make([]float32, s.Len())
			if err := p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Mean: mean, InvStd: invstd, DX: dx}); err != nil {
				t.Fatal(err)
			}
			var column []float32
			for o := range s.Outer {
				column = append(column, dx[o*s.Channels+c])
			}
			return column
		}
		want, got := backward(false), backward(true)
		for i, v := range got {
			if !sameBits(v, want[i]) {
				t.Fatalf("%v: dx of value %d is %g beside tiny gradients, and %g beside usual ones", path, i, v, want[i])
			}
		}
	}
}

// TestSampleStaysInTensor: the sample of a masked call reads nothing behind the tensor, where
// the last valid position is not the first one of its row.
func TestSampleStaysInTensor(t *testing.T) {
	t.Parallel()
	for inner := 2; inner < 8; inner++ {
		for _, channels := range []int{1, 3, 8, 9, 16, 40} {
			s := batchnorm.Shape{Outer: 3, Channels: channels, Inner: inner}
			mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
			for i := range 4 {
				mask.Valid[len(mask.Valid)-1-i] = true
			}
			for _, path := range batchnorm.Paths() {
				p := newPlan(t, s, batchnorm.WithPath(path))
				x, dy, out := guard.AtEnd(t, s.Len()), guard.AtEnd(t, s.Len()), guard.AtEnd(t, s.Len())
				copy(x, gen.Normal(1, s.Len(), 0, 1))
				copy(dy, gen.Normal(2, s.Len(), 0, 1))
				noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: out, Mask: mask}))
				noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: dy, DX: out, Mask: mask}))
			}
		}
	}
}

// A smallKind says how the scale gamma*invstd of a channel is made.
type smallKind struct {
	name        string
	gamma       float32
	mean, width float64 // x is about mean, by width
	dy          float64
}

var smallKinds = []smallKind{
	{"usual", 1.25, 0.5, 1, 1},
	{"small", -1e-38, 0.5, 1, 1},
	{"subnormal", 3e-42, 0.5, 1, 1e10},
	{"small by x", 1e-5, 1e33, 1e33, 1e20},
	{"zero", 0, 0.5, 1, 1},
	{"small, tiny gradients", -1e-38, 0.5, 1, 1e-38},
	{"hardly small, tiny gradients", 0x1.8p-121, 0.5, 1, 1e-34},
	{"small, tiny x", 1e-37, 0, 1e-39, 1},
	{"large", 1e30, 0.5, 1e-20, 1e-20},
	{"small and wide", 1e-10, 0x1p110, 0x1p100, 1e30},
	{"small and wide, subnormal", 1e-20, -0x1p120, 0x1p118, 1e30},
}

// smallProblem has channels of many kinds side by side.
func smallProblem(s batchnorm.Shape, act batchnorm.Activation, kind func(c int) int) *problem {
	p := &problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward, x: gen.Normal(1, s.Len(), 0, 1),
		dy: gen.Normal(2, s.Len(), 0, 1), gamma: make([]float32, s.Channels), mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
	kinds := make([]*smallKind, s.Channels)
	for c := range kinds {
		k := &smallKinds[kind(c)]
		kinds[c], p.gamma[c], p.mean[c], p.vari[c] = k, k.gamma, float32(k.mean), float32(min(k.width*k.width, 3e38))
	}
	for i := range p.x {
		k := kinds[channelOf(s, i)]
		p.x[i], p.dy[i] = float32(k.mean+float64(p.x[i])*k.width), float32(float64(p.dy[i])*k.dy)
	}
	return p
}

var smallShapes = []batchnorm.Shape{{Outer: 5, Channels: 20, Inner: 70}, {Outer: 6, Channels: 21, Inner: 3}, {Outer: 40, Channels: 30, Inner: 1},
	{Outer: 5, Channels: 300, Inner: 1}, {Outer: 300, Channels: 11, Inner: 1}}

// TestSmallChannels: channels of all kinds side by side have the same bits by every way and
// in every mode, and y, dx of frozen statistics and dresidual are within a few roundings of
// float64.
func TestSmallChannels(t *testing.T) {
	t.Parallel()
	n := 0
	for _, s := range smallShapes {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			for residual := range 2 {
				if n++; !batchnorm.Thorough() && n%3 != 0 && act != batchnorm.Identity {
					continue
				}
				t.Run(fmt.Sprintf("%v/%v/residual=%d", s, act, residual), func(t *testing.T) {
					p := *smallProblem(s, act, func(c int) int { return c / (1 + n%3) % len(smallKinds) })
					if residual == 1 {
						p.residual = gen.Normal(5, s.Len(), 0, 1)
						for i := 0; i < s.Len(); i += 2 {
							p.residual[i] *= 1e-39
						}
					}
					mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
					for i := range mask.Valid {
						mask.Valid[i] = i%4 != 3
					}
					for _, mask := range []batchnorm.Mask{{}, mask} {
						r := plain(mask).same(t, p, waysOfModes(), slices.Clone)
						expectSame(t, "split", split([]int{s.Outer}, mask).same(t, p, waysOfModes(), slices.Clone), plain(mask).once(t, p))
						f := frozen(mask).same(t, p, waysOfModes(), slices.Clone)
						if mask.Valid == nil {
							p.checkSmall(t, "plain", r.y, r.dx, r.dres, r.mean, r.invstd, false)
							mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
							for c := range mean {
								mean[c], invstd[c] = float64(p.mean[c]), 1/math.Sqrt(float64(p.vari[c])+p.epsilon)
							}
							p.checkSmall(t, "frozen", f.inferred, f.dx, f.dres, mean, invstd, true)
						}
					}
					ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
				})
			}
		}
	}
}

// checkSmall compares outputs with float64, given the statistics.
func (p *problem) checkSmall(t *testing.T, what string, y, dx, dres []float32, mean, invstd []float64, constant bool) {
	t.Helper()
	act, s := reference.ActivationOf(p.act.String()), p.shape
	g, slack := make([]float64, s.Len()), make([]float64, s.Len())
	sums, most := make([][2]float64, s.Channels), make([]float64, s.Channels) // of g and g*xhat, and the largest dy
	unsure := make([]float64, s.Channels)                                     // the sum of the magnitudes that may be in g or not
	for i, x := range p.x {
		c := channelOf(s, i)
		xhat := (float64(x) - mean[c]) * invstd[c]
		z := xhat * float64(p.gamma[c])
		slack[i] = 3*unit*math.Abs(z) + 0x1p-148
		if p.residual != nil {
			z += float64(p.residual[i])
			slack[i] += 3 * unit * math.Abs(float64(p.residual[i]))
		}
		value, slope := act.Both(z)
		if d := math.Abs(float64(y[i]) - value); !(d <= 2*slack[i]+8*unit*math.Abs(value)) {
			t.Fatalf("%s: y[%d] is %g, want %g", what, i, y[i], value)
		}
		dy := float64(p.dy[i])
		g[i] = dy * slope
		if p.act == batchnorm.ReLU && math.Abs(z) <= slack[i] { // either is right
			slack[i] = math.Abs(dy)
			unsure[c] += math.Abs(dy)
		} else {
			slack[i] = 2*slack[i]*math.Abs(dy) + 8*unit*math.Abs(g[i])
		}
		sums[c][0] += g[i]
		sums[c][1] += g[i] * xhat
		most[c] = max(most[c], math.Abs(dy))
	}
	n := float64(s.PerChannel())
	for i, x := range p.x {
		c := channelOf(s, i)
		if p.residual != nil {
			if d := math.Abs(float64(dres[i]) - g[i]); !(d <= slack[i]+0x1p-149) {
				t.Fatalf("%s: dresidual[%d] is %g, want %g", what, i, dres[i], g[i])
			}
		}
		scale, xhat := float64(p.gamma[c])*invstd[c], (float64(x)-mean[c])*invstd[c]
		want, bound := scale*g[i], slack[i]+0x1p-149
		if !constant {
			want = scale * (g[i] - sums[c][0]/n - xhat*sums[c][1]/n)
			bound += (100*unit*most[c] + unsure[c]/n) * (1 + math.Abs(xhat))
		}
		bound = math.Abs(scale)*bound + unit*math.Abs(want) + 0x1p-149
		if d := math.Abs(float64(dx[i]) - want); !(d <= bound) && float64(dx[i]) != float64(float32(want)) {
			t.Fatalf("%s: dx[%d] is %g, want %g", what, i, dx[i], want)
		}
	}
}

// TestSmallBeside: a channel has the same bits whatever kinds lie beside it.
func TestSmallBeside(t *testing.T) {
	t.Parallel()
	for _, s := range smallShapes {
		for i, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			if !batchnorm.Thorough() && (i+s.Channels)%2 != 0 {
				continue
			}
			for kind := range smallKinds {
				c := s.Channels/2 + kind%2
				var first [2]results
				for other := range len(smallKinds) {
					if !batchnorm.Thorough() && other%4 != 0 {
						continue
					}
					p := *smallProblem(s, act, func(j int) int {
						if j == c {
							return kind
						}
						return (other + j/3) % len(smallKinds)
					})
					for m, mode := range []mode{plain(batchnorm.Mask{}), frozen(batchnorm.Mask{})} {
						r := mode.once(t, p)
						if other == 0 {
							first[m] = r
							continue
						}
						for _, out := range [][2][]float32{{r.y, first[m].y}, {r.inferred, first[m].inferred}, {r.dx, first[m].dx}, {r.dres, first[m].dres}} {
							for j, v := range out[0] {
								if channelOf(s, j) == c && !sameBits(v, out[1][j]) {
									t.Fatalf("%v, %v, %s, %s: beside other kinds element %d is %g, want %g", s, act, mode.name, smallKinds[kind].name, j, v, out[1][j])
								}
							}
						}
						if !sameBits(r.dgamma[c], first[m].dgamma[c]) || !sameBits(r.dbeta[c], first[m].dbeta[c]) {
							t.Fatalf("%v, %v, %s, %s: beside other kinds dgamma and dbeta differ", s, act, mode.name, smallKinds[kind].name)
						}
					}
				}
			}
		}
	}
}

// TestSmallForgotten: a call has the bits that a plan of its own gives, after calls on which
// its channels were of other kinds.
func TestSmallForgotten(t *testing.T) {
	t.Parallel()
	for _, s := range smallShapes {
		for _, path := range batchnorm.Paths() {
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
				run := func(plan *batchnorm.Plan, p *problem) (out [5][]float32) {
					for i := range out {
						out[i] = make([]float32, s.Len())
					}
					noError(t, plan.Forward(batchnorm.ForwardArgs{X: p.x, Gamma: p.gamma, Y: out[0]}))
					noError(t, plan.Inference(batchnorm.InferenceArgs{X: p.x, Gamma: p.gamma, Mean: p.mean, Var: p.vari, Y: out[1]}))
					noError(t, plan.Backward(batchnorm.BackwardArgs{X: p.x, DY: p.dy, Gamma: p.gamma, DX: out[2]}))
					noError(t, plan.FrozenBackward(batchnorm.FrozenBackwardArgs{X: p.x, DY: p.dy, Gamma: p.gamma, Mean: p.mean, Var: p.vari, DX: out[3]}))
					noError(t, plan.FrozenBackward(batchnorm.FrozenBackwardArgs{X: p.x, DY: p.dy, Gamma: p.gamma, Mean: p.mean, Var: p.vari, DX: out[4],
						DGamma: make([]float32, s.Channels)}))
					return out
				}
				opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(act)}
				usual := smallProblem(s, act, func(int) int { return 0 })
				shared := newPlan(t, s, opts...)
				for kind := range smallKinds {
					mixed := smallProblem(s, act, func(c int) int { return (kind + c/9) % len(smallKinds) })
					for _, p := range []*problem{mixed, usual} {
						got, want := run(shared, p), run(newPlan(t, s, opts...), p)
						for i := range got {
							expectBits(t, fmt.Sprintf("%v, %v, %v, kind %d: result %d", s, path, act, kind, i), got[i], want[i])
						}
					}
				}
			}
		}
	}
}

// TestSmallFromY: dx of a small channel, from y, has the same bits beside usual and beside
// wide channels.
func TestSmallFromY(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 40, Channels: 30, Inner: 1}, {Outer: 6, Channels: 9, Inner: 40}, {Outer: 9, Channels: 5, Inner: 3}} {
		mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
		for i := range mask.Valid {
			mask.Valid[i] = i%4 != 3
		}
		for _, path := range batchnorm.Paths() {
			p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.LeakyReLU(0.25)))
			for _, mask := range []batchnorm.Mask{{}, mask} {
				run := func(gamma float32, invstd float64, like int) []float32 { // all small channels may be like one of them
					y, dy, dx := gen.Normal(1, s.Len(), 0, 1), gen.Normal(2, s.Len(), 0, 1), make([]float32, s.Len())
					gammas, invstds := slices.Repeat([]float32{0x1.3579bp-38}, s.Channels), slices.Repeat([]float64{0x1.789abcp-98}, s.Channels)
					for c := range gammas {
						if gammas[c] *= 1 + float32(c)/32; like >= 0 {
							gammas[c] = 0x1.3579bp-38 * (1 + float32(like)/32)
						}
						if c%3 == 1 {
							gammas[c], invstds[c] = gamma, invstd
						}
					}
					for i := range y {
						c := channelOf(s, i)
						y[i] *= gammas[c]
						dy[i] *= 0x1p20
					}
					noError(t, p.BackwardFromY(batchnorm.BackwardFromYArgs{DY: dy, Y: y, Gamma: gammas, InvStd: invstds, DX: dx, Mask: mask}))
					return dx
				}
				want, got, alike := run(1, 1, -1), run(1e5, 1e32, -1), run(1, 1, 3)
				for i, v := range got {
					if channelOf(s, i)%3 != 1 && !sameBits(v, want[i]) {
						t.Fatalf("%v, %v: dx[%d] is %g beside wide channels, and %g beside usual ones", s, path, i, v, want[i])
					}
					if channelOf(s, i) == 3 && !sameBits(v, alike[i]) {
						t.Fatalf("%v, %v: dx[%d] is %g, and %g beside channels like it", s, path, i, v, alike[i])
					}
				}
			}
		}
	}
}

// TestUsualAfterOther: channels that were wide or small in the call before are usual ones in
// the next, with the bits of a new plan.
func TestUsualAfterOther(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 4, Channels: 21, Inner: 30}, {Outer: 90, Channels: 21, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}} {
		for _, path := range batchnorm.Paths() {
			for gamma, scale := range map[float32]float32{1e30: 1e-10, 1e-40: 1, 1: 1e31} {
				opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithEpsilon(1e-30)}
				used := newPlan(t, s, opts...)
				usual := newProblem(s, hasResidual|hasGammaBeta)
				other := newProblem(s, hasResidual|hasGammaBeta)
				for i := range other.x {
					other.x[i] *= scale
				}
				for c := range other.gamma {
					other.gamma[c] *= gamma
				}
				for _, p := range []problem{other, usual, other, usual} {
					if d := p.onPlan(t, used, batchnorm.Mask{}).compare(p.onPlan(t, newPlan(t, s, opts...), batchnorm.Mask{})); d != "" {
						t.Fatalf("%v, %v, gamma %g, x * %g: a call on a plan differs from the first on another: %s", s, path, gamma, scale, d)
					}
				}
			}
		}
	}
}

// TestStripsKeepSettled: where the sums of columns are taken again in strips, sums of squares
// beside them that a strip has settled stay settled, also those that no look has come to yet.
func TestStripsKeepSettled(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 9, Channels: 80, Inner: 1}
	for first := range 16 {
		for _, path := range batchnorm.Paths() {
			p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithWorkers(1), batchnorm.WithEpsilon(0))
			x, invstd := gen.Normal(1, s.Len(), 0, 1), make([]float64, s.Channels)
			for i := range x {
				switch c := channelOf(s, i); {
				case c >= first && c%3 == 0:
					x[i] *= 1e-30
				case c%3 == 1:
					x[i] *= 1e19
				}
			}
			y := make([]float32, s.Len())
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mean: make([]float64, s.Channels), InvStd: invstd}))
			for c, v := range invstd {
				if c%3 == 1 && !(v > 1e-20 && v < 1e-18) {
					t.Fatalf("%v, tiny channels from %d on: invstd[%d] is %g", path, first, c, v)
				}
			}
		}
	}
}
