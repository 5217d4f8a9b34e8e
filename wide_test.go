package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestWideBeside: channels with large means and deviations, whose outputs are computed from scaled
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
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 1500, Inner: 1}, {Outer: 300, Channels: 70, Inner: 1},
		{Outer: 3, Channels: 403, Inner: 3}} {
		for _, act := range []batchnorm.Activation{batchnorm.ReLU, batchnorm.SiLU} {
			for _, inPlace := range []bool{false, true} {
				for _, path := range batchnorm.Paths() {
					usual, residual, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Normal(2, s.Len(), 0, 1), gen.Uniform(3, s.Len(), -1, 1)
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
					run := func(isWide func(c int) bool) (r results) {
						x := slices.Clone(usual)
						for i, v := range x {
							if isWide(channelOf(s, i)) {
								x[i] = float32(1e35 * (1 + 0.1*float64(v)))
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

// TestForeignMeans: with given statistics, whose mean is at one end of float32's range, values at the other end
// have finite outputs, as far as float32 can hold them.
func TestForeignMeans(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 4, Channels: 21, Inner: 30}, {Outer: 70, Channels: 21, Inner: 1}} {
		for _, path := range batchnorm.Paths() {
			x, dy, y := make([]float32, s.Len()), gen.Uniform(1, s.Len(), 1, 2), make([]float32, s.Len())
			mean, vari, gamma := make([]float32, s.Channels), make([]float32, s.Channels), make([]float32, s.Channels)
			dx, dgamma := make([]float32, s.Len()), make([]float32, s.Channels)
			for c := range mean {
				mean[c], vari[c], gamma[c] = -2e38, 1e30, 1e-3
			}
			for i := range x {
				x[i] = 3e38
			}
			p := newPlan(t, s, batchnorm.WithPath(path))
			noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Gamma: gamma, Mean: mean, Var: vari, Y: y}))
			noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x, Gamma: gamma, Mean: mean, Var: vari, DX: dx, DGamma: dgamma}))
			sums := make([]float64, s.Channels)
			for i, v := range dy {
				sums[channelOf(s, i)] += float64(v)
			}
			xhat := (float64(x[0]) - float64(mean[0])) / math.Sqrt(float64(vari[0])+batchnorm.DefaultEpsilon)
			for i, v := range y {
				if want := xhat * float64(gamma[0]); math.Abs(float64(v)-want) > 1e-6*want {
					t.Fatalf("%v, %v: y[%d] is %g, want %g", s, path, i, v, want)
				}
			}
			for c, v := range dgamma {
				if want := xhat * sums[c]; math.Abs(float64(v)-want) > 1e-6*want {
					t.Fatalf("%v, %v: dgamma[%d] is %g, want %g", s, path, c, v, want)
				}
			}
		}
	}
}
