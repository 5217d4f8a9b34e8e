package batchnorm_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// The tests of this file are faults that users of other systems reported, each with the
// numbers of its report; docs/others.md lists them.

// trained has the results of a training pass over x, with dy = x in the backward pass.
// Gamma is 1 and beta 0.
type trained struct {
	y, dx        []float32
	mean, invstd []float64
}

func train(t *testing.T, s batchnorm.Shape, x []float32, opts ...batchnorm.Option) trained {
	t.Helper()
	r := trained{make([]float32, len(x)), make([]float32, len(x)), make([]float64, s.Channels), make([]float64, s.Channels)}
	p := newPlan(t, s, opts...)
	noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: r.y, Mean: r.mean, InvStd: r.invstd}))
	noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: x, Mean: r.mean, InvStd: r.invstd, DX: r.dx}))
	return r
}

// expectExact compares y with float64 arithmetic, relative to max(1, |y|).
func expectExact(t *testing.T, what string, s batchnorm.Shape, x, y []float32, epsilon, tolerance float64) {
	t.Helper()
	want := reference.Forward(reference.Problem{Outer: s.Outer, Channels: s.Channels, Inner: s.Inner, Epsilon: epsilon, Activation: "identity",
		X: x}).Y
	expectNear(t, what, y, want, func(i int) float64 { return tolerance * max(1, math.Abs(want[i])) })
}

func TestOthersLargeOffset(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 4096, Channels: 1, Inner: 1}, {Outer: 8, Channels: 3, Inner: 256}, {Outer: 512, Channels: 8,
		Inner: 1}} {
		for _, offset := range []float64{1e4, 1e5, 1e6, 1e7, 1e8} {
			x := gen.Normal(1, s.Len(), offset, 1)
			r := train(t, s, x)
			expectExact(t, "y", s, x, r.y, batchnorm.DefaultEpsilon, 1e-6)
			for i, v := range r.dx {
				if v-v != 0 {
					t.Fatalf("offset %v: dx[%d] is %v", offset, i, v)
				}
			}
		}
	}
}

func TestOthersFourLargeValues(t *testing.T) {
	for _, v := range []float32{2000, 40000, 80000} {
		x := []float32{v, v + 1, v + 2, v + 3}
		s := batchnorm.Shape{Outer: 4, Channels: 1, Inner: 1}
		expectExact(t, "y", s, x, train(t, s, x).y, batchnorm.DefaultEpsilon, 1e-6)
	}
}

func TestOthersSmallDeviation(t *testing.T) {
	// Mean 5 and deviation 0.1; mean 1e5 and deviation 0.01; one value of 360 off a floor.
	s := batchnorm.Shape{Outer: 2, Channels: 64, Inner: 1024}
	x := gen.Normal(3, s.Len(), 5, 0.1)
	expectExact(t, "mean 5: y", s, x, train(t, s, x).y, batchnorm.DefaultEpsilon, 3e-7)
	s = batchnorm.Shape{Outer: 1024, Channels: 1, Inner: 1}
	x = gen.Normal(4, s.Len(), 1e5, 1e-2)
	expectExact(t, "mean 1e5: y", s, x, train(t, s, x, batchnorm.WithEpsilon(1e-6)).y, 1e-6, 3e-7)
	s = batchnorm.Shape{Outer: 360, Channels: 1, Inner: 1}
	x = slices.Repeat([]float32{-15.942385}, s.Len())
	x[200] = -15.86
	expectExact(t, "a floor: y", s, x, train(t, s, x).y, batchnorm.DefaultEpsilon, 3e-7)
}

func TestOthersNegativeVariance(t *testing.T) {
	// The variance of nearly constant values does not come out below 0.
	most := 1 / math.Sqrt(batchnorm.DefaultEpsilon)
	for seed := range uint64(20) {
		s := batchnorm.Shape{Outer: 64, Channels: 8, Inner: 33}
		x := gen.Normal(seed, s.Len(), 1e4*float64(seed+1), 1e-4*float64(seed))
		for c, v := range train(t, s, x).invstd {
			if !(v > 0 && v <= most) {
				t.Errorf("seed %d: invstd[%d] is %v, must be above 0 and at most %v", seed, c, v, most)
			}
		}
	}
}

func TestOthersConstant(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 1, Channels: 1, Inner: 9}, {Outer: 256, Channels: 1, Inner: 1}, {Outer: 1, Channels: 5,
		Inner: 100}, {Outer: 300, Channels: 5, Inner: 30}} {
		for _, v := range []float32{0.1, 100, 1234, 1e7, 9.87e9, 3e38} {
			x := make([]float32, s.Len())
			for i := range x {
				x[i] = v * float32(1-2*(channelOf(s, i)%2)) // every second channel is negative
			}
			r := train(t, s, x)
			for i, y := range r.y {
				if y != 0 {
					t.Fatalf("shape %v, all values of a channel %v: y is %v, want 0", s, x[i], y)
				}
			}
		}
	}
}

func TestOthersLayouts(t *testing.T) {
	const n, channels, spatial = 2, 64, 2500
	x := gen.Normal(1, n*channels*spatial, 0.5, 2)
	last := channelsLast(x, channels, spatial)
	nchw, nhwc := batchnorm.Shape{Outer: n, Channels: channels, Inner: spatial}, batchnorm.Shape{Outer: n * spatial, Channels: channels, Inner: 1}
	a, b := train(t, nchw, x), train(t, nhwc, last)
	expectExact(t, "y of NCHW", nchw, x, a.y, batchnorm.DefaultEpsilon, 3e-7)
	expectExact(t, "y of NHWC", nhwc, last, b.y, batchnorm.DefaultEpsilon, 3e-7)

	// Inference has no sums, so that even the bits are the same.
	mean, variance := gen.Normal(2, channels, 0, 1), gen.Uniform(3, channels, 0.1, 2)
	y, z := make([]float32, len(x)), make([]float32, len(x))
	noError(t, newPlan(t, nchw).Inference(batchnorm.InferenceArgs{X: x, Mean: mean, Var: variance, Y: y}))
	noError(t, newPlan(t, nhwc).Inference(batchnorm.InferenceArgs{X: last, Mean: mean, Var: variance, Y: z}))
	expectBits(t, "inference of NHWC", channelsFirst(z, channels, spatial), y)
}

func TestOthersConvertedVariance(t *testing.T) {
	// Variances of a converted model: within epsilon below 0, and beyond.
	s := batchnorm.Shape{Outer: 1, Channels: 4, Inner: 1}
	variance := []float32{4.7596052e-02, -9.9998997e-06, -4.9380765e-06, -1e-4}
	x, y := []float32{1, 1, 1, 1}, make([]float32, 4)
	noError(t, newPlan(t, s).Inference(batchnorm.InferenceArgs{X: x, Mean: make([]float32, 4), Var: variance, Y: y}))
	for c, v := range variance[:3] {
		want := 1 / math.Sqrt(float64(v)+batchnorm.DefaultEpsilon)
		if d := math.Abs(float64(y[c])-want) / want; !(d < 1e-7) {
			t.Errorf("variance %v: y is %v, want %v", v, y[c], want)
		}
	}
	if y[3] == y[3] {
		t.Errorf("variance %v: y is %v, want NaN", variance[3], y[3])
	}
	l, err := batchnorm.NewLayer(4)
	noError(t, err)
	copy(l.RunningVar, variance)
	if _, err := l.MarshalBinary(); !errors.Is(err, batchnorm.ErrState) {
		t.Errorf("a layer with negative variances is saved: %v", err)
	}
}

func TestOthersSingleValue(t *testing.T) {
	s := batchnorm.Shape{Outer: 1, Channels: 3, Inner: 1}
	x, y := []float32{1, 2, 3}, make([]float32, 3)
	mean, variance := make([]float32, 3), []float32{1, 1, 1}
	args := batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance}
	if err := newPlan(t, s).Forward(args); !errors.Is(err, batchnorm.ErrTooFewValues) {
		t.Errorf("one value per channel: the error is %v, want ErrTooFewValues", err)
	}
	noError(t, newPlan(t, s, batchnorm.TensorFlow(), batchnorm.WithMomentum(batchnorm.OldWeight(0.99))).Forward(args))
	expectBits(t, "running variance", variance, []float32{0.99, 0.99, 0.99})
	expectBits(t, "y", y, []float32{0, 0, 0})
}

func TestOthersReLUHidesNaN(t *testing.T) {
	nan := float32(math.NaN())
	s := batchnorm.Shape{Outer: 40, Channels: 2, Inner: 1}
	for _, path := range batchnorm.Paths() {
		for _, act := range []batchnorm.Activation{batchnorm.ReLU, batchnorm.ReLU6, batchnorm.LeakyReLU(0.1), batchnorm.HardSwish} {
			p := newPlan(t, s, batchnorm.WithActivation(act), batchnorm.WithPath(path))
			x, y := gen.Normal(1, s.Len(), 0, 1), make([]float32, s.Len())
			x[6] = nan
			noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Mean: make([]float32, 2), Var: []float32{1, 1}, Y: y}))
			for i, v := range y {
				if (v != v) != (i == 6) {
					t.Errorf("%v, %v: inference makes %v of %v", path, act, v, x[i])
				}
			}
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y}))
			for i, v := range y {
				if (v != v) != (i%2 == 0) {
					t.Errorf("%v, %v: y[%d] is %v where channel 0 has a NaN", path, act, i, v)
				}
			}
		}
	}
}

func TestOthersThreads(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 56, Channels: 444, Inner: 1}, {Outer: 16, Channels: 24, Inner: 784}} {
		x := gen.Normal(1, s.Len(), 1, 3)
		want := train(t, s, x)
		for _, workers := range []int{2, 3, 6, 16} {
			for range 20 {
				got := train(t, s, x, batchnorm.WithWorkers(workers))
				expectBits(t, "y", got.y, want.y)
				expectBits(t, "dx", got.dx, want.dx)
				expectBits(t, "invstd", got.invstd, want.invstd)
			}
		}
	}
}

func TestOthersMomentum(t *testing.T) {
	s := batchnorm.Shape{Outer: 4, Channels: 1, Inner: 1}
	x, y := []float32{1, 2, 3, 6}, make([]float32, 4) // mean 3
	after := func(opts []batchnorm.Option, m batchnorm.Momentum) float32 {
		mean, variance := []float32{10}, []float32{1}
		noError(t, newPlan(t, s, opts...).Forward(batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance, Momentum: m}))
		return mean[0]
	}
	for _, c := range []struct {
		name string
		got  float32
		want float64
	}{
		{"PyTorch's default", after([]batchnorm.Option{batchnorm.PyTorch()}, batchnorm.Momentum{}), 0.9*10 + 0.1*3},
		{"PyTorch's 0", after(nil, batchnorm.NewWeight(0)), 10},
		{"PyTorch's 0.5", after(nil, batchnorm.NewWeight(0.5)), 6.5},
		{"Keras' default", after([]batchnorm.Option{batchnorm.Keras()}, batchnorm.Momentum{}), 0.99*10 + 0.01*3},
		{"ONNX's default", after([]batchnorm.Option{batchnorm.ONNX()}, batchnorm.Momentum{}), 0.9*10 + 0.1*3},
		{"ONNX's 0", after(nil, batchnorm.OldWeight(0)), 3},
		{"PyTorch's None, third batch", after(nil, batchnorm.Cumulative(3)), (2*10 + 3) / 3.},
	} {
		if d := math.Abs(float64(c.got) - c.want); d > 1e-6 {
			t.Errorf("%s: the running mean is %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestOthersFrozenGradient(t *testing.T) {
	l, err := batchnorm.NewLayer(5)
	noError(t, err)
	s := batchnorm.Shape{Outer: 4, Channels: 5, Inner: 3}
	x, dy, y := gen.Uniform(1, s.Len(), 0, 1), gen.Normal(2, s.Len(), 0, 1), make([]float32, s.Len())
	copy(l.RunningVar, gen.Uniform(3, 5, 0.5, 2))
	copy(l.Gamma, gen.Uniform(4, 5, 0.5, 2))
	l.Eval()
	var before []float32
	for range 2 {
		dx := make([]float32, s.Len())
		noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}))
		noError(t, l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx}))
		for i, v := range dx {
			c := channelOf(s, i)
			want := float64(dy[i]) * float64(l.Gamma[c]) / math.Sqrt(float64(l.RunningVar[c])+batchnorm.DefaultEpsilon)
			if d := math.Abs(float64(v) - want); d > 2e-7*math.Abs(want) {
				t.Errorf("dx[%d] is %v, want %v", i, v, want)
			}
		}
		if before != nil {
			expectBits(t, "dx of a second pass", dx, before)
		}
		before = dx
	}
}

func TestOthersPadding(t *testing.T) {
	// Five values and five zeros of padding: the report has a mean of 1.5 and a variance of
	// 3.25 with them, 3 and 2 without.
	x, y := []float32{1, 2, 3, 4, 5, 0, 0, 0, 0, 0}, make([]float32, 10)
	s := batchnorm.Shape{Outer: 2, Channels: 1, Inner: 5}
	mean, invstd := make([]float64, 1), make([]float64, 1)
	p := newPlan(t, s, batchnorm.WithEpsilon(0))
	noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mask: batchnorm.Mask{Lengths: []int{5, 0}}, Mean: mean, InvStd: invstd}))
	if mean[0] != 3 || math.Abs(invstd[0]-1/math.Sqrt2) > 1e-15 {
		t.Errorf("mean is %v and invstd %v, want 3 and %v", mean[0], invstd[0], 1/math.Sqrt2)
	}
	expectBits(t, "y of the padding", y[5:], make([]float32, 5))
	x[7] = float32(math.NaN())
	again := make([]float32, 10)
	noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: again, Mask: batchnorm.Mask{Lengths: []int{5, 0}}}))
	expectBits(t, "y with NaN in the padding", again, y)
}

// TestOthersPage: the page names every test of this file, and no other.
func TestOthersPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("docs", "others.md"))
	noError(t, err)
	source, err := os.ReadFile("others_test.go")
	noError(t, err)
	names := func(pattern string, text []byte) (all []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			if name := string(m[1]); name != "TestOthersPage" {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	if in, there := names("`(TestOthers\\w+)`", page), names(`(?m)^func (TestOthers\w+)\(`, source); !slices.Equal(in, there) {
		t.Errorf("docs/others.md names %v, the file has %v", in, there)
	}
	if n := len(regexp.MustCompile(`https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+`).FindAll(page, -1)); n < 12 {
		t.Errorf("docs/others.md has %d reports, want a dozen", n)
	}
}
