package batchnorm

import (
	"fmt"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// longestCalls has a function called, and returns how many values the longest call of
// each kind handled that no goroutine can be preempted in.
func longestCalls(f func()) map[string]int {
	longest := map[string]int{}
	var mu sync.Mutex
	watched = func(kind string, values int) {
		mu.Lock()
		defer mu.Unlock()
		longest[kind] = max(longest[kind], values)
	}
	defer func() { watched = nil }()
	f()
	return longest
}

// TestCallsAreShort: no call that nothing can interrupt, of a kernel, copy or clear, is
// longer than is said, on shapes that would fill several calls every way that they can
// be cut. With the race detector [kernelArgs.race] panics in every test when one is.
func TestCallsAreShort(t *testing.T) {
	most := map[string]int{watchKernel: maxCall, watchChannels: callChannels, watchCopy: maxCall, watchClear: maxCall}
	seen := map[string]bool{}
	check := func(t *testing.T, f func()) {
		t.Helper()
		for kind, values := range longestCalls(f) {
			seen[kind] = true
			if values > most[kind] {
				t.Errorf("the longest call of a %s handles %d values, may be %d", kind, values, most[kind])
			}
		}
	}
	const long = 2*maxCall + 1000
	for i, s := range []Shape{
		{Outer: 1, Channels: 1, Inner: long},                     // one row
		{Outer: 2, Channels: 3, Inner: long},                     // pieces of rows
		{Outer: 500, Channels: 3, Inner: 300},                    // many rows, pipelined
		{Outer: 60, Channels: 100, Inner: 49},                    // short rows
		{Outer: 3, Channels: 9000, Inner: 9},                     // too few images for columns
		{Outer: long, Channels: 1, Inner: 1},                     // one channel
		{Outer: long, Channels: 3, Inner: 1},                     // few channels, folded
		{Outer: 300, Channels: 400, Inner: 1},                    // many rows of columns
		{Outer: 5, Channels: long, Inner: 1},                     // longer than a call
		{Outer: 6, Channels: maxCall/quadSize + 100, Inner: 1},   // a quad of rows is longer
		{Outer: 2, Channels: maxCall/4 + 8, Inner: 5},            // short rows in both ways
		{Outer: 40, Channels: 64, Inner: 2*maxCall/64 + lanes/2}, // calls of whole rows
		{Outer: 2, Channels: long, Inner: 2},                     // many channels in rows
	} {
		n, c := s.Len(), s.Channels
		x, dy, res := gen.Uniform(1, n, -1, 1), gen.Uniform(2, n, -1, 1), gen.Uniform(3, n, -1, 1)
		y, dres, grads := make([]float32, n), make([]float32, n), make([]float32, 2*c)
		mean, invstd, variance := make([]float64, c), make([]float64, c), make([]float32, c)
		valid := make([]bool, s.PerChannel()) // the first ones, and the very last
		for i := range valid {
			valid[i] = i <= len(valid)/10 || i == len(valid)-1
		}
		masks := []Mask{{}, {Valid: valid}, {Valid: make([]bool, len(valid))}}
		if raceEnabled { // which takes ten times as long, and looks at kernels in all tests
			masks = masks[:1]
		}
		for k, path := range Paths() { // pure Go is slow, and is cut alike
			for _, workers := range []int{1, 3} {
				if k > 0 && (workers == 1) == (i%2 == 1) {
					continue
				}
				t.Run(fmt.Sprintf("%v/%v/%d", s, path, workers), func(t *testing.T) {
					p, err := NewPlan(s, WithPath(path), WithWorkers(workers), WithActivation(ReLU), WithSingleValue())
					if err != nil {
						t.Fatal(err)
					}
					moments := Moments{Mean: make([]float64, c), M2: make([]float64, c)}
					sums := GradSums{G: make([]float64, c), GD: make([]float64, c)}
					for m, mask := range masks {
						if m > 0 && (k > 0 || (workers == 1) == (i%2 == 1)) {
							continue
						}
						check(t, func() {
							for _, err := range []error{
								p.Forward(ForwardArgs{X: x, Residual: res, Y: y, Mask: mask, Mean: mean, InvStd: invstd, BatchVar: variance,
									RunningMean: grads[:c], RunningVar: grads[c:]}),
								p.Inference(InferenceArgs{X: x, Mean: variance, Var: variance, Y: y, Mask: mask}),
								p.Backward(BackwardArgs{DY: dy, X: x, Residual: res, Mean: mean, InvStd: invstd, Mask: mask, DX: y, DResidual: dres,
									DGamma: grads[:c], DBeta: grads[c:]}),
								p.FrozenBackward(FrozenBackwardArgs{DY: dy, X: x, Mean: variance, Var: variance, Mask: mask, DX: y}),
								p.Moments(MomentsArgs{X: x, Mask: mask, Moments: &moments}),
								p.GradSums(GradSumsArgs{DY: dy, X: x, Mask: mask, Mean: mean, InvStd: invstd, Sums: &sums}),
								p.InputGrad(InputGradArgs{DY: dy, X: x, Mask: mask, Mean: mean, InvStd: invstd, Sums: sums, DX: y}),
							} {
								if err != nil {
									t.Error(err)
								}
							}
						})
					}
				})
			}
		}
	}
	// Copies of long runs, and of short ones.
	for _, c := range []struct{ keep, dims []int }{{[]int{1, 3}, []int{2, 2, 2, long}}, {[]int{0, 3}, []int{2, 2, 2, long}},
		{[]int{1, 3}, []int{2, 2, long, 2}}, {[]int{0, 2, 4}, []int{2, 2, 2, 2, long}}} {
		n := 1
		for _, d := range c.dims {
			n *= d
		}
		x, y := gen.Uniform(1, n, -1, 1), make([]float32, n)
		for _, path := range Paths() {
			t.Run(fmt.Sprintf("%v of %v/%v", c.keep, c.dims, path), func(t *testing.T) {
				p, err := NewAxesPlan(c.keep, c.dims, WithPath(path))
				if err != nil {
					t.Fatal(err)
				}
				k := p.Channels()
				mean, invstd := make([]float64, k), make([]float64, k)
				check(t, func() {
					if err := p.Forward(ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}); err != nil {
						t.Error(err)
					}
					if err := p.Backward(BackwardArgs{DY: x, X: x, Mean: mean, InvStd: invstd, DX: y}); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
	for kind := range most {
		if !seen[kind] && (kind != watchChannels || DefaultPath() != PathGeneric && !raceEnabled) {
			t.Errorf("no call of a %s was seen", kind)
		}
	}
}

// TestCallsOfWideRowsAreShort: a tensor whose rows are written as one, but for a channel
// that is written from scaled values, has no longer calls than others.
func TestCallsOfWideRowsAreShort(t *testing.T) {
	for _, s := range []Shape{{Outer: 700, Channels: 1001, Inner: 1}, {Outer: 400, Channels: 2001, Inner: 1}} {
		n, c := s.Len(), s.Channels
		x, y, mean, invstd := gen.Uniform(1, n, -1, 1), make([]float32, n), make([]float64, c), make([]float64, c)
		for i := 0; i < n; i += c {
			x[i] *= 0x1p110
		}
		p, err := NewPlan(s)
		if err != nil {
			t.Fatal(err)
		}
		for kind, values := range longestCalls(func() {
			for _, err := range []error{p.Forward(ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}),
				p.Backward(BackwardArgs{DY: x, X: x, Mean: mean, InvStd: invstd, DX: y})} {
				if err != nil {
					t.Error(err)
				}
			}
		}) {
			if kind == watchKernel && values > maxCall {
				t.Errorf("%v: the longest call of a %s handles %d values, may be %d", s, kind, values, maxCall)
			}
		}
	}
}
