//go:build go1.25

package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"weak"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/guard"
)

// TestMergeOrder: parts are merged from the first to the last, so that the bits are
// those of one part after the other. For these parts any other order has others.
func TestMergeOrder(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	sums := []batchnorm.GradSums{
		{Count: 3, G: []float64{1e16, 1}, GD: []float64{1, -1e16}},
		{Count: 1, G: []float64{1, 1e16}, GD: []float64{1e16, 1}},
		{Count: 2, G: []float64{-1e16, -1e16}, GD: []float64{-1e16, 1e16}},
		{Count: 5, G: []float64{1, 1}, GD: []float64{1, 1}},
	}
	moments := []batchnorm.Moments{
		{Count: 0, Mean: []float64{nan, nan}, M2: []float64{nan, nan}}, // of no meaning
		{Count: 3, Mean: []float64{0.1, 7}, M2: []float64{1e16, 1}},
		{Count: 1, Mean: []float64{0.7, 1e9}, M2: []float64{1, 1e16}},
		{Count: 7, Mean: []float64{1e7, 0.3}, M2: []float64{3, 1}},
		{Count: 0, Mean: []float64{nan, nan}, M2: []float64{nan, nan}}, // of no meaning
		{Count: 5, Mean: []float64{-0.9, 1e-3}, M2: []float64{1, 1}},
	}
	// all is the merge of all parts, and steps that of the first two, then of that and
	// the third, and so on.
	differs := func(a, b [2][]float64) bool { return !slices.Equal(a[0], b[0]) || !slices.Equal(a[1], b[1]) }
	grad := func(parts []batchnorm.GradSums) (all, steps [2][]float64) {
		a := batchnorm.GradSums{G: make([]float64, 2), GD: make([]float64, 2)}
		b := batchnorm.GradSums{G: slices.Clone(parts[0].G), GD: slices.Clone(parts[0].GD), Count: parts[0].Count}
		noError(t, batchnorm.MergeGradSums(&a, parts))
		for _, p := range parts[1:] {
			noError(t, batchnorm.MergeGradSums(&b, []batchnorm.GradSums{b, p}))
		}
		if a.Count != 11 || b.Count != 11 {
			t.Errorf("the sums count %d values, step by step %d, want 11", a.Count, b.Count)
		}
		return [2][]float64{a.G, a.GD}, [2][]float64{b.G, b.GD}
	}
	merge := func(parts []batchnorm.Moments) (all, steps [2][]float64) {
		a := batchnorm.Moments{Mean: make([]float64, 2), M2: make([]float64, 2)}
		b := batchnorm.Moments{Mean: slices.Clone(parts[0].Mean), M2: slices.Clone(parts[0].M2), Count: parts[0].Count}
		noError(t, batchnorm.MergeMoments(&a, parts))
		for _, p := range parts[1:] {
			noError(t, batchnorm.MergeMoments(&b, []batchnorm.Moments{b, p}))
		}
		if a.Count != 16 || b.Count != 16 {
			t.Errorf("the moments count %d values, step by step %d, want 16", a.Count, b.Count)
		}
		return [2][]float64{a.Mean, a.M2}, [2][]float64{b.Mean, b.M2}
	}
	all, steps := grad(sums)
	if differs(all, steps) {
		t.Errorf("the sums of all parts are %v, step by step %v", all, steps)
	}
	slices.Reverse(sums)
	if reversed, _ := grad(sums); !differs(reversed, all) {
		t.Error("the parts do not tell their order")
	}
	// Where all means are equal, M2 is a sum: 1 + 1 before 1e16 counts, and behind it does not.
	ordered := []batchnorm.Moments{{Count: 1, Mean: []float64{0}, M2: []float64{1}}, {Count: 1, Mean: []float64{0}, M2: []float64{1}},
		{Count: 1, Mean: []float64{0}, M2: []float64{1e16}}}
	sum := batchnorm.Moments{Mean: make([]float64, 1), M2: make([]float64, 1)}
	noError(t, batchnorm.MergeMoments(&sum, ordered))
	if sum.M2[0] != 1e16+2 {
		t.Errorf("1 + 1 + 1e16 is %v, want 1e16 + 2", sum.M2[0])
	}
	all, steps = merge(moments)
	if all[0][0] != all[0][0] || differs(all, steps) {
		t.Errorf("the moments of all parts are %v, step by step %v", all, steps)
	}
	slices.Reverse(moments)
	if reversed, _ := merge(moments); !differs(reversed, all) {
		t.Error("the parts do not tell their order")
	}
}

// TestMaskOfEmptyBatch: an empty batch has no samples, and so no lengths.
func TestMaskOfEmptyBatch(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 0, Channels: 3, Inner: 4}, {Outer: 0, Channels: 3, Inner: 1}, {Outer: 0, Channels: 1, Inner: 1}} {
		p := newPlan(t, s)
		mean := []float64{1, 1, 1}[:s.Channels]
		dbeta := []float32{1, 1, 1}[:s.Channels]
		for _, m := range []batchnorm.Mask{{Lengths: []int{}}, {Valid: []bool{}}, {}} {
			noError(t, p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: m}))
			noError(t, p.Backward(batchnorm.BackwardArgs{X: []float32{}, DY: []float32{}, Mask: m, Mean: mean, InvStd: mean, DBeta: dbeta}))
			expectBits(t, "dbeta", dbeta, make([]float32, s.Channels))
		}
		for _, lengths := range [][]int{{0}, {0, 0}, {1}} {
			err := p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: batchnorm.Mask{Lengths: lengths}})
			if !errors.Is(err, batchnorm.ErrLength) {
				t.Errorf("shape %v with lengths %v: the error is %v, want ErrLength", s, lengths, err)
			}
		}
		err := p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: batchnorm.Mask{Valid: []bool{false}}})
		if !errors.Is(err, batchnorm.ErrLength) {
			t.Errorf("shape %v with one position: the error is %v, want ErrLength", s, err)
		}
	}
}

// TestPlanForgets: after a call a plan does not keep the caller's memory alive.
func TestPlanForgets(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 40, Channels: 8, Inner: 49}, {Outer: 4, Channels: 8, Inner: 3000}, {Outer: 600, Channels: 24,
		Inner: 1}} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.GELU} {
			for _, masked := range []bool{false, true} {
				for _, workers := range []int{1, 2} {
					p := newPlan(t, s, batchnorm.WithActivation(act), batchnorm.WithWorkers(workers))
					var left []weak.Pointer[float32]
					var doubles []weak.Pointer[float64]
					func() {
						tensor := func(n int) []float32 {
							x := gen.Normal(1, n, 0, 1)
							left = append(left, weak.Make(&x[0]))
							return x
						}
						double := func() []float64 {
							x := slices.Repeat([]float64{1}, s.Channels)
							doubles = append(doubles, weak.Make(&x[0]))
							return x
						}
						n, c := s.Len(), s.Channels
						var mask batchnorm.Mask
						if masked {
							mask.Valid = make([]bool, s.PerChannel())
							for i := range mask.Valid {
								mask.Valid[i] = i%5 != 0
							}
						}
						x, res, gamma, beta, mean, invstd := tensor(n), tensor(n), tensor(c), tensor(c), double(), double()
						noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Y: tensor(n), Mean: mean,
							InvStd:      invstd,
							RunningMean: tensor(c), RunningVar: tensor(c)}))
						noError(t, p.Backward(batchnorm.BackwardArgs{DY: tensor(n), X: x, Residual: res, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
							Mask: mask,
							DX:   tensor(n), DResidual: tensor(n), DGamma: tensor(c), DBeta: tensor(c)}))
						noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Y: tensor(n), Mean: tensor(c),
							Var: slices.Repeat([]float32{1}, c)}))
						noError(t, p.Moments(batchnorm.MomentsArgs{X: x, Mask: mask, Moments: &batchnorm.Moments{Mean: double(), M2: double()}}))
						noError(t, p.GradSums(batchnorm.GradSumsArgs{DY: tensor(n), X: x, Residual: res, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
							Mask: mask,
							Sums: &batchnorm.GradSums{G: double(), GD: double()}}))
						noError(t, p.RenormForward(batchnorm.RenormForwardArgs{
							ForwardArgs: batchnorm.ForwardArgs{X: x, Mask: mask, Y: tensor(n), RunningMean: tensor(c), RunningVar: slices.Repeat([]float32{1}, c)},
							RMax:        3, DMax: 5, R: double(), D: double()}))
					}()
					runtime.GC()
					runtime.GC()
					kept := 0
					for _, w := range left {
						if w.Value() != nil {
							kept++
						}
					}
					for _, w := range doubles {
						if w.Value() != nil {
							kept++
						}
					}
					if kept > 0 {
						t.Errorf("%v, %v, masked %t, %d workers: %d of %d slices are kept alive", s, act, masked, workers, kept, len(left)+len(doubles))
					}
					runtime.KeepAlive(p)
				}
			}
		}
	}
}

// TestEachOperandMisaligned: every operand in turn lies an odd number of floats from
// a line of the cache while all others lie on one, also with non-temporal stores, which
// take aligned ones.
func TestEachOperandMisaligned(t *testing.T) {
	t.Parallel()
	names := []string{"none", "x", "residual", "dy", "y", "dx", "dresidual"}
	for _, s := range []batchnorm.Shape{{Outer: 6, Channels: 4, Inner: 320}, {Outer: 30, Channels: 16, Inner: 49}, {Outer: 90, Channels: 32,
		Inner: 1}, {Outer: 90, Channels: 35, Inner: 1}} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			for _, path := range batchnorm.Paths() {
				for schedule := range 3 {
					var want []float32
					for odd, name := range names {
						opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(act)}
						if schedule > 0 {
							opts = append(opts, batchnorm.WithExtremeSchedule(schedule == 2))
						}
						tensor := func(k int) []float32 {
							offset := 0
							if k == odd {
								offset = 5
							}
							b := guard.Sentinel(t, s.Len(), offset)
							copy(b, gen.Normal(uint64(k), s.Len(), 0, 1))
							return b
						}
						p := newPlan(t, s, opts...)
						mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
						x, residual, dy, y, dx, dresidual := tensor(1), tensor(2), tensor(3), tensor(4), tensor(5), tensor(6)
						noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Residual: residual, Y: y, Mean: mean, InvStd: invstd}))
						noError(t, p.Backward(batchnorm.BackwardArgs{X: x, Residual: residual, DY: dy, Mean: mean, InvStd: invstd, DX: dx, DResidual: dresidual}))
						got := slices.Concat(y, dx, dresidual)
						if want == nil {
							want = got
							continue
						}
						expectBits(t, fmt.Sprintf("%v, %v, %v, schedule %d, misaligned: %s: a result", s, act, path, schedule, name), got, want)
					}
				}
			}
		}
	}
}
