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

// The gradients agree with the reference for frozen statistics, where z is that of
// Inference.
func TestFrozen(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant))
		r := frozen(batchnorm.Mask{}).same(t, p, waysOfModes(), placements(t, variant)[variant%3])
		if features(variant)&hasSpecials == 0 && p.piecewise() {
			p.checkFrozen(t, r)
		}
	})
}

// checkFrozen compares with the reference. dx is a product of three factors, of
// which two make a float64.
func (p problem) checkFrozen(t testing.TB, r results) {
	t.Helper()
	ref := p.reference()
	ref.DY, ref.Activation, ref.Residual = p.slopes(r.inferred), "identity", nil
	grad := reference.FrozenBackward(ref, p.mean, p.vari)
	sum, square := make([]float64, p.shape.Channels), make([]float64, p.shape.Channels)
	n := float64(p.shape.PerChannel())
	for i, v := range ref.DY {
		c := channelOf(p.shape, i)
		sum[c] += math.Abs(float64(v))
		square[c] += math.Abs(float64(v) * float64(p.x[i]-p.mean[c]) / math.Sqrt(float64(p.vari[c])+p.epsilon))
		bound := 3 * unit * math.Abs(grad.DX[i])
		if d := math.Abs(float64(r.dx[i]) - grad.DX[i]); bound < 1e37 && !(d <= bound+0x1p-148) {
			t.Fatalf("%v: dx[%d] is %g, the reference says %g: off by %.3g, allowed is %.3g", p.shape, i, r.dx[i], grad.DX[i], d, bound)
		}
		if r.dres != nil && r.dres[i] != v {
			t.Fatalf("%v: dresidual[%d] is %g, want %g", p.shape, i, r.dres[i], v)
		}
	}
	for c := range sum {
		if d := math.Abs(float64(r.dbeta[c]) - grad.DBeta[c]); sum[c] < 1e37 && !(d <= sumUnits*unit*sum[c]) {
			t.Fatalf("%v: dbeta[%d] is %g, the reference says %g", p.shape, c, r.dbeta[c], grad.DBeta[c])
		}
		allowed := sumUnits * unit * (square[c] + math.Sqrt(n)*sum[c])
		if d := math.Abs(float64(r.dgamma[c]) - grad.DGamma[c]); allowed < 1e37 && !(d <= allowed) {
			t.Fatalf("%v: dgamma[%d] is %g, the reference says %g: off by %.3g, allowed is %.3g", p.shape, c, r.dgamma[c], grad.DGamma[c], d, allowed)
		}
	}
}

// piecewise reports whether slopes knows the activation. The others differ only
// in kernels that Backward's tests hold to the reference.
func (p problem) piecewise() bool { return p.act == batchnorm.Identity || p.act == batchnorm.ReLU }

// slopes returns dy*act'(z) with the side of a kink that y is on.
func (p problem) slopes(y []float32) []float32 {
	g := slices.Clone(p.dy)
	if p.act == batchnorm.ReLU {
		for i := range g {
			if !(y[i] > 0) {
				g[i] = 0
			}
		}
	}
	return g
}

// Any subset of the gradients has the bits that it has among all of them.
func TestSomeGradients(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{7, 3, 35}, {5, 2, 300}, {2, 3, 2500}, {33, 3, 1}, {37, 133, 1}} {
		for _, f := range []features{hasResidual | hasGammaBeta, hasReLU | hasResidual | hasGammaBeta,
			hasReLU | hasResidual | hasGammaBeta | hasSpecials} {
			p := newProblem(s, f)
			for _, c := range waysOfModes() {
				st := stage{p, c, slices.Clone[[]float32]}
				plan := newPlan(t, s, st.options()...)
				stats := plain(batchnorm.Mask{}).once(t, p)
				run := func(op, wanted int) results {
					var r results
					dy, residual := slices.Clone(p.dy), slices.Clone(p.residual)
					st.gradients(&r, dy, residual)
					for i, out := range []*[]float32{&r.dx, &r.dres, &r.dgamma, &r.dbeta} {
						if wanted&(1<<i) == 0 {
							*out = nil
						}
					}
					switch op {
					case 0:
						noError(t, plan.Backward(batchnorm.BackwardArgs{DY: dy, X: p.x, Residual: residual, Gamma: p.gamma, Beta: p.beta,
							Mean: stats.mean, InvStd: stats.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
					case 1:
						noError(t, plan.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: p.x, Residual: residual, Gamma: p.gamma, Beta: p.beta,
							Mean: p.mean, Var: p.vari, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
					}
					return r
				}
				for op := range 2 {
					all := run(op, 15)
					for wanted := range 15 {
						expectSame(t, fmt.Sprintf("%v, %v, operation %d, gradients %04b", s, c, op, wanted), run(op, wanted), all)
					}
				}
			}
		}
	}
}

// An infinite or missing value of x reaches dx of frozen statistics as the
// contract says.
func TestFrozenSpecial(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		inf, nan := float32(math.Inf(1)), float32(math.NaN())
		x := []float32{inf, -inf, nan, math.MaxFloat32, -math.MaxFloat32, 1e-45, 2, -2}
		for _, s := range []batchnorm.Shape{{1, 1, len(x)}, {len(x), 1, 1}, {1, len(x), 1}} {
			for _, mean := range []float32{0, 1e30, -1e30} {
				dx := make([]float32, len(x))
				noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(0)).FrozenBackward(batchnorm.FrozenBackwardArgs{
					DY: slices.Repeat([]float32{3}, len(x)), X: x, Gamma: slices.Repeat([]float32{2}, s.Channels),
					Mean: slices.Repeat([]float32{mean}, s.Channels), Var: slices.Repeat([]float32{4}, s.Channels), DX: dx}))
				expectBits(t, fmt.Sprintf("dx of %v with mean %g", s, mean), dx, []float32{nan, nan, nan, 3, 3, 3, 3, 3})
			}
		}
	})
}

// TestFrozenFarFromStatistics: values far outside of what the statistics say overflow no sum of dgamma
// that is finite.
func TestFrozenFarFromStatistics(t *testing.T) {
	t.Parallel()
	cases := []struct{ mean, variance, x, dy float64 }{ // the largest x, and a usual dy
		{0, 1, 3e38, 1}, {0.3, 0.5, 3.4e38, 0.2}, {0, 1e-12, 1e37, 1e-2}, {4e30, 1, 3e38, 1}, {-9e30, 2e-27, 1e37, 1e-2}, {1e38, 1e30, 3e38, 1e14}}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{2, 40, 9}, {3, 8, 3}, {12, 41, 1}} {
			for _, c := range cases {
				p := newProblem(s, bare)
				p.mean = slices.Repeat([]float32{float32(c.mean)}, s.Channels)
				p.vari = slices.Repeat([]float32{float32(c.variance)}, s.Channels)
				sums := make([]float64, s.Channels)
				for i, x := range gen.Uniform(7, s.Len(), -1, 1) {
					p.x[i], p.dy[i] = float32(float64(x)*c.x), float32(float64(p.dy[i])*c.dy)
					sums[channelOf(s, i)] += math.Abs(float64(p.dy[i])*(float64(p.x[i])-float64(p.mean[0]))) / math.Sqrt(float64(p.vari[0])+p.epsilon)
				}
				dx, dgamma := make([]float32, s.Len()), make([]float32, s.Channels)
				noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(p.epsilon)).FrozenBackward(batchnorm.FrozenBackwardArgs{
					DY: p.dy, X: p.x, Mean: p.mean, Var: p.vari, DX: dx, DGamma: dgamma}))
				checked := 0
				for j, want := range reference.FrozenBackward(p.reference(), p.mean, p.vari).DGamma {
					if math.Abs(want) > 3e38 {
						continue
					}
					checked++
					if d := math.Abs(float64(dgamma[j]) - want); !(d <= sums[j]*1e-6) {
						t.Errorf("%v, %v: dgamma[%d] is %g, want %g", s, c, j, dgamma[j], want)
					}
				}
				if checked == 0 {
					t.Errorf("%v, %v: no dgamma is finite", s, c)
				}
			}
		}
	})
}

// TestFrozenFarCancels: sums of values far from the statistics, whose gradients cancel or are 0, are taken
// again, since they are so small. They don't overflow then.
func TestFrozenFarCancels(t *testing.T) {
	t.Parallel()
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{4, 2, 2}, {8, 9, 1}, {2, 3, 20}} {
			for _, c := range []struct {
				what         string
				x, dy, other float32 // other: a gradient of channel 1
				epsilon      float64
			}{
				{"cancel", 1e20, 1e-25, 1e-25, 1e-40},
				{"cancel, default epsilon", 1e37, 1e-25, 1e-37, batchnorm.DefaultEpsilon}, // channel 1 has a sampled 1e-37 beside 1
				{"alone", 1e20, 1e-18, 1, 1e-40},
				{"alone, default epsilon", 1e37, 1e-33, 1, batchnorm.DefaultEpsilon},
			} {
				n := s.Len()
				x, dy, dx := make([]float32, n), make([]float32, n), make([]float32, n)
				for i := range x {
					k, j := i/(s.Inner*s.Channels)*s.Inner+i%s.Inner, channelOf(s, i)
					switch {
					case j == 1:
						x[i], dy[i] = 1, 1
						if k > 0 {
							dy[i] = c.other
						}
					case c.what[0] == 'c':
						x[i], dy[i] = c.x, c.dy
						if k%2 == 1 {
							dy[i] = -c.dy
						}
					case k > 0: // dy is 0 here, and x is the mean where it is not
						x[i] = c.x
					default:
						dy[i] = c.dy
					}
				}
				zeros, dg := make([]float32, s.Channels), make([]float32, s.Channels)
				noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(c.epsilon)).FrozenBackward(batchnorm.FrozenBackwardArgs{
					DY: dy, X: x, Mean: zeros, Var: zeros, DX: dx, DGamma: dg}))
				if dg[0] != 0 {
					t.Errorf("%v, %s: dgamma[0] is %g, want 0", s, c.what, dg[0])
				}
			}
		}
	})
}

// TestFrozenInfinite: x with NaN or an infinity, under statistics that are numbers, takes no sums again.
// dgamma is not finite, and dbeta is what it is without them. It counts sums, so that no other test may
// run beside it.
func TestFrozenInfinite(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{6, 5, 40}, {40, 24, 1}, {9, 7, 3}} {
			for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
				p := newProblem(s, bare)
				run := func() (dgamma, dbeta []float32) {
					dgamma, dbeta = make([]float32, s.Channels), make([]float32, s.Channels)
					noError(t, newPlan(t, s, batchnorm.WithPath(path)).FrozenBackward(batchnorm.FrozenBackwardArgs{
						DY: p.dy, X: p.x, Mean: p.mean, Var: p.vari, DX: make([]float32, s.Len()), DGamma: dgamma, DBeta: dbeta}))
					return dgamma, dbeta
				}
				_, want := run()
				for c := range s.Channels {
					if c != 2 { // which keeps its numbers
						p.x[(s.Outer/2*s.Channels+c)*s.Inner+s.Inner/2] = bad
					}
				}
				before := batchnorm.Rescued()
				dgamma, dbeta := run()
				if n := batchnorm.Rescued() - before; n != 0 {
					t.Errorf("%v, %g in x: the sums of %d channels are taken again", s, bad, n)
				}
				for c, v := range dgamma {
					if (v-v == 0) != (c == 2) {
						t.Errorf("%v, %g in x: dgamma[%d] is %g", s, bad, c, v)
					}
				}
				expectBits(t, "dbeta", dbeta, want)
			}
		}
	})
}

// TestInfiniteVariance: where invstd is 0, y is beta, and dgamma and dx are 0, however far a finite x lies from a finite
// mean. Values and means that are not finite make NaN.
func TestInfiniteVariance(t *testing.T) {
	t.Parallel()
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	means := []float32{0, 1, -3, 1e20, 1e35, -1e35, math.MaxFloat32, -math.MaxFloat32, inf, -inf, nan}
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 300, Inner: 1}, {Outer: 90, Channels: 33, Inner: 1},
		{Outer: 4, Channels: 27, Inner: 40}} {
		for _, zero := range []bool{false, true} { // an epsilon and a variance of 0 have the same invstd
			epsilon, variance := batchnorm.DefaultEpsilon, inf
			if zero {
				epsilon, variance = 0, 0
			}
			for _, path := range batchnorm.Paths() {
				for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act), batchnorm.WithEpsilon(epsilon))
					x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
					beta, mean, vari := gen.Uniform(3, s.Channels, 0.5, 2), make([]float32, s.Channels), make([]float32, s.Channels)
					last := (s.PerChannel() - 1) / s.Inner * s.Channels * s.Inner // of channel 0, in the last image
					bad := make([]bool, s.Channels)
					for c := range mean {
						mean[c], vari[c] = means[c%len(means)], variance
						bad[c] = mean[c]-mean[c] != 0
						switch at := last + (c+1)*s.Inner - 1; c / len(means) % 4 {
						case 1:
							x[at] = -math.MaxFloat32
						case 2:
							x[at] = inf
							bad[c] = true
						}
					}
					y, dx := make([]float32, s.Len()), make([]float32, s.Len())
					dgamma, dbeta := make([]float32, s.Channels), make([]float32, s.Channels)
					noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Beta: beta, Mean: mean, Var: vari, Y: y}))
					noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x, Beta: beta, Mean: mean, Var: vari,
						DX: dx, DGamma: dgamma, DBeta: dbeta}))
					want := beta // of finite channels
					if act == batchnorm.SiLU {
						want = make([]float32, s.Channels)
						for c, v := range beta {
							want[c] = float32(float64(v) / (1 + math.Exp(-float64(v))))
						}
					}
					for i, v := range y {
						c := channelOf(s, i)
						if d := math.Abs(float64(v - want[c])); (x[i]-x[i] == 0 && mean[c]-mean[c] == 0) != (d <= 3e-7) {
							t.Fatalf("%v, %v, %v: y[%d] is %g, of x %g, mean %g and beta %g", s, path, act, i, v, x[i], mean[c], beta[c])
						}
						if !bad[c] && dx[i] != 0 {
							t.Fatalf("%v, %v, %v: dx[%d] is %g, of x %g and mean %g", s, path, act, i, dx[i], x[i], mean[c])
						}
					}
					for c, v := range dgamma {
						if bad[c] && v == v || !bad[c] && (v != 0 || dbeta[c]-dbeta[c] != 0) {
							t.Errorf("%v, %v, %v: dgamma[%d] is %g and dbeta %g, of mean %g", s, path, act, c, v, dbeta[c],
								mean[c])
						}
					}
				}
			}
		}
	}
}
