package batchnorm

import (
	"math"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// seenCalls are the calls of a kernel whose x is in a tensor: where x begins, from the tensor's first value on, and the
// distance of prefetches, both in bytes; others counts those on copies.
type seenCalls struct {
	at, fetch []int
	others    int
}

// callsOf returns the calls of a kernel that a pass over x makes.
func callsOf(t *testing.T, kernel int, x []float32, pass func() error) (seen seenCalls) {
	t.Helper()
	inspected = func(k int, _ layout, _ Activation, a kernelArgs) {
		if k != kernel {
			return
		}
		at := int(uintptr(unsafe.Pointer(unsafe.SliceData(a.x))) - uintptr(unsafe.Pointer(unsafe.SliceData(x))))
		if at < 0 || at >= 4*len(x) {
			seen.others++
			return
		}
		seen.at, seen.fetch = append(seen.at, at), append(seen.fetch, a.fetch)
	}
	defer func() { inspected = nil }()
	if err := pass(); err != nil {
		t.Fatal(err)
	}
	return seen
}

// scaled returns values from -1 to 1 times a factor.
func scaled(seed uint64, n int, factor float64) []float32 {
	v := gen.Uniform(seed, n, -1, 1)
	for i := range v {
		v[i] = float32(float64(v[i]) * factor)
	}
	return v
}

// TestFetch: kernels in float64 prefetch what their next call reads. They go from column to column, or from image to
// image, so that the processor does not see what comes.
func TestFetch(t *testing.T) {
	forward := func(p *Plan, x, y []float32) error { return p.Forward(ForwardArgs{X: x, Y: y}) }
	inference := func(p *Plan, x, y []float32) error {
		mean, variance := make([]float32, p.shape.Channels), make([]float32, p.shape.Channels)
		fill(variance, 1)
		return p.Inference(InferenceArgs{X: x, Y: y, Mean: mean, Var: variance})
	}
	tinyIn := func(every int) func(p *Plan, x, y []float32) error { // of the columns
		return func(p *Plan, x, y []float32) error {
			mean, invstd, dy := make([]float64, p.shape.Channels), make([]float64, p.shape.Channels), gen.Uniform(2, len(x), -1, 1)
			fill(invstd, 1)
			for i := range dy {
				if i%every == 0 {
					dy[i] = float32(float64(dy[i]) * 1e-38)
				}
			}
			return p.Backward(BackwardArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, DX: y})
		}
	}
	backward := tinyIn(1)
	for _, c := range []struct {
		name   string
		shape  Shape
		factor float64 // of x
		kernel int
		pass   func(p *Plan, x, y []float32) error
	}{
		{"tiny gradients of columns", Shape{200, 128, 1}, 1, kernelGradSums64, backward},
		{"large values of columns", Shape{200, 128, 1}, 1e20, kernelGradSums64, forward},
		{"columns beside few of tiny gradients, which are read first", Shape{600, 128, 1}, 1, kernelGradSums, tinyIn(16)},
		{"tiny gradients of rows", Shape{9, 4, 700}, 1, kernelGradSums64, backward},
		{"large values of short rows", Shape{500, 2, 100}, 1e20, kernelGradSums64, forward},
		{"rows of several channels", Shape{9, 4, 300}, 1e-40, kernelScale, inference},
		{"rows of one channel", Shape{9, 3, 1500}, 1e-40, kernelScale, inference},
		{"rows of one image", Shape{1, 40, 300}, 1e-40, kernelScale, inference},
		{"pieces of rows", Shape{2, 3, 20000}, 1e-40, kernelScale, inference},
	} {
		act := Identity
		if c.kernel == kernelGradSums { // it stores slopes
			act = SiLU
		}
		p, err := NewPlan(c.shape, WithActivation(act))
		if err != nil {
			t.Fatal(err)
		}
		if p.path == PathGeneric {
			t.Skip("pure Go prefetches nothing")
		}
		x, y := scaled(1, c.shape.Len(), c.factor), make([]float32, c.shape.Len())
		seen := callsOf(t, c.kernel, x, func() error { return c.pass(p, x, y) })
		n := 0
		for i := 1; i < len(seen.at); i++ {
			if seen.at[i-1]+seen.fetch[i-1] == seen.at[i] {
				n++
			}
		}
		if len(seen.at) < 5 || n < len(seen.at)/2 {
			t.Errorf("%s: %d of %d calls prefetch what the next one reads; they begin at %v, and prefetch %v from there", c.name, n, len(seen.at),
				seen.at, seen.fetch)
		}
	}
}

// TestLongRowsStay: sums of tiny numbers copy short rows of images only, to take them together.
func TestLongRowsStay(t *testing.T) {
	for _, c := range []struct {
		inner int
		stays bool
	}{{40, false}, {shortTiny - 1, false}, {shortTiny, true}, {1000, true}} {
		s := Shape{6, 3, c.inner}
		p, err := NewPlan(s, WithActivation(SiLU))
		if err != nil {
			t.Fatal(err)
		}
		p.limits.groupLen, p.limits.groupAll = 1, 1 // a channel at a time, as where a batch is large
		x, mean, invstd := gen.Normal(1, s.Len(), 0, 1), make([]float64, s.Channels), make([]float64, s.Channels)
		fill(invstd, math.Sqrt(0.5))
		seen := callsOf(t, kernelGradSums64, x, func() error {
			return p.Backward(BackwardArgs{X: x, DY: scaled(2, s.Len(), 1e-38), Mean: mean, InvStd: invstd, DX: make([]float32, s.Len())})
		})
		if stays := seen.others == 0 && len(seen.at) > 0; stays != c.stays {
			t.Errorf("rows of %d values: %d calls in place, %d on copies", c.inner, len(seen.at), seen.others)
		}
	}
}
