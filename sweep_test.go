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

func sweep(t *testing.T, s batchnorm.Shape, variant int) {
	t.Helper()
	p := newProblem(s, features(variant))
	if p.act == batchnorm.ReLU {
		p.act = activations[variant/2%len(activations)]
	}
	all := configs()
	ways := all[:1]
	for i := variant % 5; i < len(all); i += 5 { // of each path one way; the next variant takes another
		ways = append(ways, all[i])
	}
	alloc := placements(t, variant)[variant%3]
	r := p.checkSame(t, ways, alloc)
	if p.finite() {
		p.checkBounds(t, r)
	}
}

// TestSweepLengths: every length of a row and every number of rows and channels
// up to 200, by way of guarded and unaligned buffers.
func TestSweepLengths(t *testing.T) {
	t.Parallel()
	step := 1
	if !thorough() {
		step = 13
	}
	for n := 1; n <= 200; n += step {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			for k, s := range []batchnorm.Shape{
				{Outer: 1 + n%4, Channels: 1 + n%5, Inner: n},  // rows of this length
				{Outer: n, Channels: 1 + n%5, Inner: 1 + n%9},  // so many rows
				{Outer: 2, Channels: n, Inner: 2 + n%7},        // so many channels in rows
				{Outer: 1 + n%6, Channels: n, Inner: 1},        // so many channels in cols
				{Outer: n, Channels: 1 + n%5, Inner: 1},        // few channels: folded
				{Outer: n, Channels: 6 + (n+n/5)%30, Inner: 1}, // around lane boundaries
			} {
				sweep(t, s, n+k*5)
				sweep(t, s, n+k*5+7)
			}
		})
	}
}

// TestSweepBoundaries: around the ends of groups, blocks, segments and calls.
func TestSweepBoundaries(t *testing.T) {
	t.Parallel()
	var shapes []batchnorm.Shape
	for _, at := range []int{128, 256, 2048, 4096, 8192, 32 << 10, 64 << 10, 128 << 10} {
		for d := -1; d <= 1; d++ {
			shapes = append(shapes, batchnorm.Shape{Outer: 1, Channels: 1, Inner: at + d})
			if at > 8192 && !thorough() {
				continue
			}
			shapes = append(shapes, batchnorm.Shape{Outer: at + d, Channels: 3, Inner: 1})
			if at < 32<<10 {
				shapes = append(shapes,
					batchnorm.Shape{Outer: at + d, Channels: 2, Inner: 3},
					batchnorm.Shape{Outer: 3, Channels: 2, Inner: at + d},
					batchnorm.Shape{Outer: at + d, Channels: 33, Inner: 1},
					batchnorm.Shape{Outer: 5, Channels: at + d, Inner: 1},
					batchnorm.Shape{Outer: 2, Channels: at + d, Inner: 2})
			}
		}
	}
	// More columns than a call takes, and one segment's rows at the edge.
	shapes = append(shapes, batchnorm.Shape{Outer: 5, Channels: 33000, Inner: 1}, batchnorm.Shape{Outer: 2048 + 3, Channels: 32, Inner: 1},
		batchnorm.Shape{Outer: 4099, Channels: 31, Inner: 1})
	for i, s := range shapes {
		t.Run(s.String(), func(t *testing.T) { sweep(t, s, i) })
	}
}

// TestWorkers: the number of workers and the order of the tasks change nothing.
func TestWorkers(t *testing.T) {
	t.Parallel()
	shapes := []batchnorm.Shape{
		{Outer: 3, Channels: 70, Inner: 50}, {Outer: 4, Channels: 2, Inner: 20000}, {Outer: 30000, Channels: 3, Inner: 2},
		{Outer: 2100, Channels: 64, Inner: 1}, {Outer: 9000, Channels: 3, Inner: 1}, {Outer: 60, Channels: 1000, Inner: 1},
		{Outer: 1, Channels: 1, Inner: 150000},
	}
	for i, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			var ways []config
			for _, path := range batchnorm.Paths() {
				for _, workers := range []int{1, 2, 3, 8, 64} {
					ways = append(ways, config{path: path, workers: workers}, config{path: path, workers: workers, shuffled: true})
				}
			}
			p := newProblem(s, features(i))
			p.checkBounds(t, p.checkSame(t, ways, slices.Clone))
		})
	}
}

// TestAccuracy holds the promise: for data N(mean, 1) the error does not grow
// with the mean. y is within 3e-7 of max(1, |y|), dx within 1e-6 of the largest
// |dx| of its channel. It prints the largest error of each layout.
func TestAccuracy(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{
		{Outer: 32, Channels: 8, Inner: 784}, {Outer: 32 * 784, Channels: 8, Inner: 1}, {Outer: 32, Channels: 8, Inner: 49},
		{Outer: 32 * 49, Channels: 40, Inner: 1}, {Outer: 2048, Channels: 4, Inner: 2}, {Outer: 585, Channels: 4, Inner: 7},
		{Outer: 64, Channels: 100, Inner: 1}, {Outer: 2, Channels: 2, Inner: 70001},
	} {
		var worst [2]float64
		for i, mean := range []float64{0, 1e2, 1e4, 1e6} {
			p := problem{shape: s, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
				x: gen.Normal(uint64(i), s.Len(), mean, 1), dy: gen.Normal(uint64(i+9), s.Len(), 0, 1)}
			fwd, grad := reference.Forward(p.reference()), reference.Backward(p.reference())
			largest := make([]float64, s.Channels)
			for i, v := range grad.DX {
				c := channelOf(s, i)
				largest[c] = max(largest[c], math.Abs(v))
			}
			for _, path := range batchnorm.Paths() {
				r := p.run(t, config{path: path, workers: 1}, slices.Clone)
				for i := range p.x {
					y := math.Abs(float64(r.y[i])-fwd.Y[i]) / max(1, math.Abs(fwd.Y[i]))
					dx := math.Abs(float64(r.dx[i])-grad.DX[i]) / largest[channelOf(s, i)]
					if !(y <= 3e-7) || !(dx <= 1e-6) {
						t.Fatalf("%v, mean %g, %v: element %d: y is off by %.3g (allowed 3e-7), dx by %.3g (allowed 1e-6)", s, mean, path, i, y, dx)
					}
					worst[0], worst[1] = max(worst[0], y), max(worst[1], dx)
				}
			}
		}
		t.Logf("%-12v largest error of y %.2g, of dx %.2g", s, worst[0], worst[1])
	}
}

// layouts returns the shape of a channel of n values next to two others, in
// rows and in cols.
func layouts(n int) []batchnorm.Shape {
	return []batchnorm.Shape{{Outer: 1, Channels: 3, Inner: n}, {Outer: n, Channels: 3, Inner: 1}}
}

// withChannel is a problem of three channels, the middle one with the values v.
func withChannel(s batchnorm.Shape, v []float32) problem {
	p := newProblem(s, bare)
	for i := range v {
		k := i
		if s.Inner == 1 {
			k = i*3 + 1
		} else {
			k = s.Inner + i
		}
		p.x[k] = v[i]
	}
	return p
}

// TestRange: data of any finite scale normalizes as well as data of scale 1,
// and so does its gradient.
func TestRange(t *testing.T) {
	t.Parallel()
	base := gen.Normal(5, 700, 0.5, 1)
	for _, s := range layouts(len(base)) {
		for _, epsilon := range []float64{0, 1e-5} {
			for exponent := -140; exponent <= 124; exponent += 4 {
				v := make([]float32, len(base))
				for i := range v {
					v[i] = float32(math.Ldexp(float64(base[i]), exponent))
				}
				p := withChannel(s, v)
				p.epsilon = epsilon
				p.checkBounds(t, p.checkSame(t, configs(), slices.Clone))
			}
		}
	}
}

// TestGradientRange: the same for the scale of dy.
func TestGradientRange(t *testing.T) {
	t.Parallel()
	for _, s := range layouts(500) {
		for exponent := -120; exponent <= 100; exponent += 5 {
			for _, scale := range []int{-40, 0, 40} { // of x
				p := newProblem(s, hasReLU|hasGammaBeta)
				p.epsilon = 0
				for i := range p.dy {
					p.dy[i] = float32(math.Ldexp(float64(p.dy[i]), exponent))
					p.x[i] = float32(math.Ldexp(float64(p.x[i]), scale))
				}
				p.checkBounds(t, p.checkSame(t, configs(), slices.Clone))
			}
		}
	}
}

// TestCancellingGradients: gradients of both signs whose sum is exactly 0, and whose
// products with x vanish, count as much as others. An activation that is all but
// saturated makes them small where dy is not.
func TestCancellingGradients(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 1, Channels: 11, Inner: 100}, {Outer: 100, Channels: 11, Inner: 1}} {
		gap := 1 // from a value of a channel to the next
		if s.Inner == 1 {
			gap = s.Channels
		}
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.Sigmoid} {
			for exponent := -30; exponent >= -95; exponent -= 13 { // of dy
				for scale := -100; scale <= 60; scale += 20 { // of x
					p := newProblem(s, hasGammaBeta)
					p.act, p.epsilon = act, 0
					for c := range p.gamma {
						p.gamma[c], p.beta[c] = 1e-9, -20 // one slope for all values
					}
					for i, v := range gen.Normal(3, s.Len(), 0, 1) {
						sign := float64(1 - 2*(i/gap%2))
						p.x[i] = float32(math.Copysign(math.Ldexp(float64(v), scale), sign))
						p.dy[i] = float32(math.Copysign(math.Ldexp(1, exponent), sign))
					}
					r, want := p.checkSame(t, configs(), slices.Clone), reference.Backward(p.reference())
					largest := 0.0
					for _, v := range want.DX {
						largest = max(largest, math.Abs(v))
					}
					name := fmt.Sprintf("%v, %v, dy of 2^%d, x of 2^%d: ", s, act, exponent, scale)
					expectNear(t, name+"dgamma", r.dgamma, want.DGamma, func(c int) float64 { return 1e-5*math.Abs(want.DGamma[c]) + 0x1p-148 })
					expectNear(t, name+"dx", r.dx, want.DX, func(int) float64 { return 1e-5*largest + 0x1p-148 })
				}
			}
		}
	}
}

// TestOutlier: one huge value, wherever it stands, does not spoil the variance.
func TestOutlier(t *testing.T) {
	t.Parallel()
	for _, n := range []int{100, 5000, 70000} {
		for _, s := range layouts(n) {
			for _, at := range []int{0, n - 1} {
				for _, size := range []float32{1e3, 1e6, 1e12, 1e30} {
					if n > 5000 && size != 1e6 {
						continue
					}
					v := gen.Normal(1, n, 0, 1)
					v[at] = size
					p := withChannel(s, v)
					p.checkBounds(t, p.checkSame(t, configs()[:1], slices.Clone))
				}
			}
		}
	}
}

// TestConstant: a channel of one value has variance exactly 0; with epsilon 0
// its invstd is 0, its output beta and its dx 0.
func TestConstant(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 49, 100, 5000} {
		for _, s := range layouts(n) {
			for _, value := range []float32{0, 1, -0.1, 1e6 + 0.3, 1e-30, 3e38, 1e-44} {
				for _, epsilon := range []float64{0, 1e-5} {
					p := withChannel(s, slices.Repeat([]float32{value}, n))
					p.epsilon = epsilon
					p.beta = []float32{1, 2, 3}
					r := p.checkSame(t, configs(), slices.Clone)
					want := 0.0
					if epsilon > 0 {
						want = 1 / math.Sqrt(epsilon)
					}
					if r.invstd[1] != want || r.mean[1] != float64(value) {
						t.Fatalf("%v of %g, epsilon %g: mean %g, invstd %g; want %g and %g", s, value, epsilon, r.mean[1], r.invstd[1], value, want)
					}
					for i := range r.y {
						if channelOf(s, i) == 1 && (r.y[i] != 2 || epsilon == 0 && r.dx[i] != 0) {
							t.Fatalf("%v of %g, epsilon %g: y[%d] is %g, want 2; dx is %g", s, value, epsilon, i, r.y[i], r.dx[i])
						}
					}
				}
			}
		}
	}
}

// TestNaN: NaN and infinity stay in their channel and reach all its outputs,
// through ReLU too.
func TestNaN(t *testing.T) {
	t.Parallel()
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		for _, s := range layouts(300) {
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
				clean := withChannel(s, nil)
				clean.act = act
				v := gen.Normal(1, 300, 0, 1)
				v[200] = bad
				p := withChannel(s, v)
				p.act = act
				want, got := clean.run(t, configs()[0], slices.Clone), p.checkSame(t, configs(), slices.Clone)
				if mean, invstd := got.mean[1], got.invstd[1]; invstd == invstd || !sameBits(float32(mean), bad) {
					t.Fatalf("%v with %g, %v: mean is %g and invstd %g, want %g and NaN", s, bad, act, mean, invstd, bad)
				}
				for i := range got.y {
					if channelOf(s, i) == 1 {
						if got.y[i] == got.y[i] || got.dx[i] == got.dx[i] {
							t.Fatalf("%v with %g, %v: y[%d] = %g and dx = %g, want NaN", s, bad, act, i, got.y[i], got.dx[i])
						}
					} else if !sameBits(got.y[i], want.y[i]) || !sameBits(got.dx[i], want.dx[i]) {
						t.Fatalf("%v with %g, %v: element %d of another channel changed", s, bad, act, i)
					}
				}
			}
		}
	}
}

// TestReLUSpecial: ReLU(NaN) is NaN, ReLU(-0) is +0, subnormals are not flushed,
// and the derivative is 1 only where z > 0.
func TestReLUSpecial(t *testing.T) {
	negZero := float32(math.Copysign(0, -1))
	x := []float32{float32(math.NaN()), negZero, 0, 1e-45, -1e-45, float32(math.Inf(1)), float32(math.Inf(-1)), 2, -2}
	want := []float32{float32(math.NaN()), 0, 0, 1e-45, 0, float32(math.Inf(1)), 0, 2, 0}
	for _, s := range []batchnorm.Shape{{Outer: 1, Channels: 1, Inner: len(x)}, {Outer: 1, Channels: len(x), Inner: 1}} {
		forEachPath(t, func(t *testing.T, path batchnorm.Path) {
			plan := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.ReLU), batchnorm.WithEpsilon(0))
			mean, variance := make([]float32, s.Channels), slices.Repeat([]float32{1}, s.Channels)
			beta := slices.Repeat([]float32{negZero}, s.Channels) // so that z is x, -0 included
			y := make([]float32, len(x))
			noError(t, plan.Inference(batchnorm.InferenceArgs{X: x, Y: y, Beta: beta, Mean: mean, Var: variance}))
			expectBits(t, "y", y, want)
		})
	}
}
