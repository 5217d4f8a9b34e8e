//go:build go1.25

package batchnorm_test

import (
	"runtime"
	"slices"
	"testing"
	"weak"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

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
