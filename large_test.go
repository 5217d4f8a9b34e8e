package batchnorm_test

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// exactMoments returns the mean and the population variance of some numbers.
func exactMoments(v []float32) (mean, variance float64) {
	const bits = 800 // of squares of all float32, and of their sums
	number := func(v float64) *big.Float { return new(big.Float).SetPrec(bits).SetFloat64(v) }
	sum, squares, n := number(0), number(0), number(float64(len(v)))
	for _, x := range v {
		f := number(float64(x))
		sum.Add(sum, f)
		squares.Add(squares, f.Mul(f, f))
	}
	sum.Quo(sum, n)
	mean, _ = sum.Float64()
	squares.Quo(squares, n)
	squares.Sub(squares, sum.Mul(sum, sum))
	variance, _ = squares.Float64()
	return mean, variance
}

// wideData has values whose squares leave float32, or vanish, as functions of the place.
var wideData = []struct {
	name string
	of   func(i, n int, normal float64) float64
}{
	{"x * 1e20", func(_, _ int, v float64) float64 { return v * 1e20 }},
	{"x * 3e37", func(_, _ int, v float64) float64 { return min(max(v, -11), 11) * 3e37 }},
	{"mean 1e30, deviation 1e25", func(_, _ int, v float64) float64 { return 1e30 + v*1e25 }},
	{"mean 3e38, deviation 1e31", func(_, _ int, v float64) float64 { return 3e38 + v*1e31 }},
	{"mean -3e38, deviation of a digit", func(i, _ int, _ float64) float64 { return -3e38 + float64(i%2)*0x1p104 }},
	{"mean 2^60, deviation 2^40", func(_, _ int, v float64) float64 { return 0x1p60 + v*0x1p40 }},
	{"a constant", func(int, int, float64) float64 { return 1e33 }},
	{"the largest number", func(int, int, float64) float64 { return math.MaxFloat32 }},
	{"the first is an outlier", func(i, _ int, v float64) float64 {
		if i == 0 {
			return 3e38
		}
		return 1.4e38 + v*1e32
	}},
	{"the first is an outlier of the other sign", func(i, _ int, v float64) float64 {
		if i == 0 {
			return -3e38
		}
		return 3e38 + v*1e33
	}},
	{"the first is small", func(i, _ int, v float64) float64 { // which no sample finds
		if i == 0 {
			return 1e-40
		}
		return 1e36 + v*1e30
	}},
	{"the last is an outlier", func(i, n int, v float64) float64 {
		if i == n-1 {
			return -3e38
		}
		return 3e20 + v*1e12
	}},
	{"spans that leave float32", func(i, _ int, _ float64) float64 { return math.MaxFloat32 * float64(1-i%2*2) }},
	{"a span that leaves float32", func(i, n int, v float64) float64 { return math.Copysign(3.3e38, float64(i-n/3)) + v*1e36 }},
	{"from end to end", func(i, n int, _ float64) float64 { return math.MaxFloat32 * (2*float64(i)/max(1, float64(n-1)) - 1) }},
	{"few are large", func(i, _ int, v float64) float64 {
		if i%100 == 0 {
			return 1e35 * v
		}
		return v
	}},
	{"sums that leave float32 cancel", func(i, n int, _ float64) float64 { return math.Copysign(3.4e38, float64(n/2-i)-0.5) }},
	{"x * 1e-25", func(_, _ int, v float64) float64 { return v * 1e-25 }},
	{"subnormal", func(_, _ int, v float64) float64 { return v * 1e-40 }},
	{"the least numbers", func(i, _ int, _ float64) float64 { return float64(i%3) * 0x1p-149 }},
	{"mean 1e-20, deviation 1e-25", func(_, _ int, v float64) float64 { return 1e-20 + v*1e-25 }},
	{"zeros", func(int, int, float64) float64 { return 0 }},
	{"the first is 1e-15 beside 1e-30", func(i, _ int, v float64) float64 {
		if i == 0 {
			return 1e-15
		}
		return v * 1e-30
	}},
}

// TestWideMoments: mean and invstd of channels that float32 can't sum are within two digits of
// float32 of the exact ones, whatever the values are, and by every way.
func TestWideMoments(t *testing.T) {
	t.Parallel()
	const digit = 0x1p-23
	lengths := []int{1, 2, 3, 9, 40, 300, 2500, 20000}
	if thorough() {
		lengths = append(lengths, 140000)
	}
	for _, n := range lengths {
		shapes := layouts(n)
		if n == 300 {
			shapes = append(shapes, batchnorm.Shape{Outer: 6, Channels: 3, Inner: 50}, batchnorm.Shape{Outer: 100, Channels: 43, Inner: 3})
		}
		normal := gen.Normal(uint64(n), n, 0.3, 1)
		for _, s := range shapes {
			for k, d := range wideData {
				if n > 3 && !thorough() && (k+s.Inner)%4 != n%4 {
					continue
				}
				p := newProblem(s, bare)
				p.ops = forward
				var v []float32
				for i := range p.x {
					if channelOf(s, i) == 1 {
						v = append(v, float32(d.of(len(v), n, float64(normal[len(v)]))))
						p.x[i] = v[len(v)-1]
					}
				}
				mean, variance := exactMoments(v)
				for _, p.epsilon = range []float64{0, 1e-5} {
					ways := configs()
					if n > 5000 {
						ways = []config{{path: batchnorm.PathGeneric, workers: 1}, {path: batchnorm.DefaultPath(), workers: 3}}
					}
					r := p.checkSame(t, ways, slices.Clone)
					if off := math.Abs(r.mean[1] - mean); !(off <= 2*digit*math.Sqrt(variance)+0x1p-50*math.Abs(mean)) {
						t.Errorf("%v, %s, epsilon %g: the mean is %g, want %g: off by %.3g deviations",
							s, d.name, p.epsilon, r.mean[1], mean, off/math.Sqrt(variance))
					}
					want := 0.0
					if variance+p.epsilon > 0 {
						want = 1 / math.Sqrt(variance+p.epsilon)
					}
					if off := math.Abs(r.invstd[1] - want); !(off <= digit*want) {
						t.Errorf("%v, %s, epsilon %g: invstd is %g, want %g: off by %.3g", s, d.name, p.epsilon, r.invstd[1], want, off/want)
					}
				}
			}
		}
	}
}

// TestLargeBeside: channels of large values and those beside them have the bits that they have
// alone, however many there are, in every mode and by every way.
func TestLargeBeside(t *testing.T) {
	t.Parallel()
	for i, s := range []batchnorm.Shape{{Outer: 5, Channels: 19, Inner: 70}, {Outer: 9, Channels: 16, Inner: 300},
		{Outer: 90, Channels: 130, Inner: 1}, {Outer: 300, Channels: 264, Inner: 1}, {Outer: 8700, Channels: 3, Inner: 1},
		{Outer: 140, Channels: 50, Inner: 3}} {
		for j, every := range []int{1, 2, 3, 8, 20, 1000} { // one channel of so many is large
			for k, scale := range []float64{1e20, 1e36} {
				if !thorough() && (i+j+3*k)%5 != 0 {
					continue
				}
				t.Run(fmt.Sprintf("%v/1 of %d/%g", s, every, scale), func(t *testing.T) {
					t.Parallel()
					usual := problem{shape: s, epsilon: batchnorm.DefaultEpsilon, ops: forward, x: gen.Normal(1, s.Len(), 0.3, 1),
						mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
					all, some := usual, usual
					all.x, some.x = slices.Clone(usual.x), slices.Clone(usual.x)
					large := func(c int) bool { return c%every == min(every, s.Channels)/2 }
					for i, v := range usual.x {
						all.x[i] = float32(float64(v) * scale)
						if large(channelOf(s, i)) {
							some.x[i] = all.x[i]
						}
					}
					ways := waysOfModes()
					for _, m := range []func(batchnorm.Mask) mode{plain, func(m batchnorm.Mask) mode { return split([]int{s.Outer}, m) },
						func(m batchnorm.Mask) mode {
							return ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, m)
						}} {
						for _, mask := range []batchnorm.Mask{{}, oneInFour(s)} {
							got := m(mask).same(t, some.withGradients(), ways, slices.Clone)
							ofUsual, ofLarge := m(mask).once(t, usual.withGradients()), m(mask).once(t, all.withGradients())
							for i, v := range got.y {
								want := ofUsual.y[i]
								if large(channelOf(s, i)) {
									want = ofLarge.y[i]
								}
								if !sameBits(v, want) {
									t.Fatalf("%s: y[%d] is %g, want %g", m(mask).name, i, v, want)
								}
							}
							for c, v := range got.mean {
								want, wantInvStd := ofUsual.mean[c], ofUsual.invstd[c]
								if large(c % s.Channels) {
									want, wantInvStd = ofLarge.mean[c], ofLarge.invstd[c]
								}
								if v != want || got.invstd[c] != wantInvStd {
									t.Fatalf("%s: mean[%d] and invstd[%[2]d] are %g and %g, want %g and %g", m(mask).name, c, v, got.invstd[c], want, wantInvStd)
								}
							}
						}
					}
				})
			}
		}
	}
}

// withGradients is the problem with gradients for its backward pass.
func (p problem) withGradients() problem {
	p.ops, p.dy = forward|backward, gen.Uniform(2, p.shape.Len(), -1, 1)
	return p
}

// TestLargeAfterOther: channels that were large in the call before are not taken for large ones, and
// a backward pass that computes the statistics again has those of the forward pass.
func TestLargeAfterOther(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 90, Channels: 130, Inner: 1},
		{Outer: 8, Channels: 130, Inner: 1}} {
		usual := gen.Normal(1, s.Len(), 0.3, 1)
		with := func(first int) []float32 { // large channels from one on, each third
			x := slices.Clone(usual)
			for i := range x {
				if channelOf(s, i)%3 == first {
					x[i] = float32(float64(x[i]) * 1e20)
				}
			}
			return x
		}
		for _, path := range batchnorm.Paths() {
			used := newPlan(t, s, batchnorm.WithPath(path))
			for _, first := range []int{0, 1, 3, 2} {
				forward := func(p *batchnorm.Plan) (y []float32, mean, invstd []float64) {
					y, mean, invstd = make([]float32, s.Len()), make([]float64, s.Channels), make([]float64, s.Channels)
					noError(t, p.Forward(batchnorm.ForwardArgs{X: with(first), Y: y, Mean: mean, InvStd: invstd}))
					return y, mean, invstd
				}
				got, _, _ := forward(used)
				want, mean, invstd := forward(newPlan(t, s, batchnorm.WithPath(path)))
				if d := difference(got, want); d != "" {
					t.Fatalf("%v, %v, from %d on: y%s", s, path, first, d)
				}
				backward := func(mean, invstd []float64) []float32 {
					dx := make([]float32, s.Len())
					noError(t, used.Backward(batchnorm.BackwardArgs{X: with(first), DY: usual, DX: dx, Mean: mean, InvStd: invstd}))
					return dx
				}
				if d := difference(backward(nil, nil), backward(mean, invstd)); d != "" {
					t.Fatalf("%v, %v, from %d on: dx%s", s, path, first, d)
				}
			}
		}
	}
}

// TestLargeNotFinite: an infinity or NaN among large values makes y NaN and the mean what their sum is,
// wherever it is, and only in its channel.
func TestLargeNotFinite(t *testing.T) {
	t.Parallel()
	const n = 500
	for _, s := range append(layouts(n), batchnorm.Shape{Outer: 100, Channels: 43, Inner: 5}) {
		for _, at := range []int{0, 1, n / 3, n / 2, n - 1} {
			for _, bad := range [][2]float64{{math.NaN(), math.NaN()}, {math.Inf(1), math.Inf(1)}, {math.Inf(-1), math.Inf(-1)}} {
				for i, scale := range []float64{1e20, 1e37, 1e-30} {
					if !thorough() && (at+i)%3 != 0 {
						continue
					}
					p := newProblem(s, bare)
					p.ops, p.epsilon = forward, 0
					for i, v := range gen.Normal(1, s.Len(), 0, 1) {
						p.x[i] = float32(float64(v) * scale)
					}
					clean := p
					p.x = slices.Clone(p.x)
					p.x[(at/s.Inner*s.Channels+1)*s.Inner+at%s.Inner] = float32(bad[0])
					got, want := p.checkSame(t, configs(), slices.Clone), clean.run(t, configs()[0], slices.Clone)
					if !sameBits(got.mean[1], bad[1]) || got.invstd[1] == got.invstd[1] {
						t.Fatalf("%v, x * %g with %g at %d: the mean is %g, invstd %g", s, scale, bad[0], at, got.mean[1], got.invstd[1])
					}
					for i, v := range got.y {
						if c := channelOf(s, i); c == 1 && v == v || c != 1 && !sameBits(v, want.y[i]) {
							t.Fatalf("%v, x * %g with %g at %d: y[%d] is %g", s, scale, bad[0], at, i, v)
						}
					}
				}
			}
		}
	}
}

// TestLargeAnywhere: a sample finds a channel of large values wherever it lies among others, so that no
// sums are taken again. It counts these, so that no other test may run beside it.
func TestLargeAnywhere(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 70, Channels: 300, Inner: 1}, {Outer: 80, Channels: 61, Inner: 3},
		{Outer: 3, Channels: 40, Inner: 30}} {
		p := newPlan(t, s)
		y := make([]float32, s.Len())
		for c := range s.Channels {
			if !batchnorm.Thorough() && c > 10 && c < s.Channels-50 && c%7 != 0 {
				continue
			}
			x := gen.Normal(1, s.Len(), 0, 1)
			for i := range x {
				if channelOf(s, i) == c {
					x[i] *= 1e20
				}
			}
			before := batchnorm.Rescued()
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y}))
			if n := batchnorm.Rescued() - before; n != 0 {
				t.Errorf("%v: the sums of %d channels are taken again where channel %d is large", s, n, c)
			}
		}
	}
}
