package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestWideBeside: channels with means near the end of float32's range, whose outputs are computed from scaled
// values, have the same outputs beside others as among their like, and so have the others: few and many, in
// place and apart.
func TestWideBeside(t *testing.T) {
	t.Parallel()
	few := gen.Uniform(9, 2000, 0, 1)
	patterns := map[string]func(c int) bool{
		"few":     func(c int) bool { return c%37 == 5 || c%37 == 6 },
		"half":    func(c int) bool { return few[c] < 0.5 },
		"but few": func(c int) bool { return c%41 != 7 },
		"in turn": func(c int) bool { return c%2 == 0 },
		"the end": func(c int) bool { return c > 60 },
	}
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 1500, Inner: 1}, {Outer: 300, Channels: 70, Inner: 1}, {Outer: 3, Channels: 403, Inner: 3}} {
		for _, act := range []batchnorm.Activation{batchnorm.ReLU, batchnorm.SiLU} {
			for _, inPlace := range []bool{false, true} {
				for _, path := range batchnorm.Paths() {
					usual, residual, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Normal(2, s.Len(), 0, 1), gen.Uniform(3, s.Len(), -1, 1)
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
					run := func(isWide func(c int) bool) (r results) {
						x := slices.Clone(usual)
						for i, v := range x {
							if isWide(channelOf(s, i)) {
								x[i] = float32(1e33 * (1 + 0.01*float64(v)))
							}
						}
						input, g := slices.Clone(x), slices.Clone(dy)
						r = results{y: make([]float32, s.Len()), dx: make([]float32, s.Len()), dres: make([]float32, s.Len()),
							dgamma: make([]float32, s.Channels), mean: make([]float64, s.Channels), invstd: make([]float64, s.Channels)}
						if inPlace {
							r.y, r.dx = input, g
						}
						noError(t, p.Forward(batchnorm.ForwardArgs{X: input, Residual: residual, Y: r.y, Mean: r.mean, InvStd: r.invstd}))
						noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: g, Residual: residual, Mean: r.mean, InvStd: r.invstd,
							DX: r.dx, DResidual: r.dres, DGamma: r.dgamma}))
						return r
					}
					wide, others := run(func(int) bool { return true }), run(func(int) bool { return false })
					for i, v := range wide.y {
						if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
							t.Fatalf("y[%d] of wide channels is %g", i, v)
						}
					}
					for name, is := range patterns {
						got := run(is)
						what := fmt.Sprintf("%v, %v, in place: %t, %v, wide: %s: ", s, act, inPlace, path, name)
						for _, o := range []struct {
							name                string
							got, wanted, beside []float32
						}{{"y", got.y, wide.y, others.y}, {"dx", got.dx, wide.dx, others.dx}, {"dresidual", got.dres, wide.dres, others.dres}} {
							want := slices.Clone(o.beside)
							for i, v := range o.wanted {
								if is(channelOf(s, i)) {
									want[i] = v
								}
							}
							expectBits(t, what+o.name, o.got, want)
						}
					}
				}
			}
		}
	}
}
