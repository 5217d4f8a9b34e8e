package batchnorm_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/guard"
)

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
