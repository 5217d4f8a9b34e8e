package batchnorm_test

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// invertible are activations that BackwardFromY can do without x.
var invertible = []batchnorm.Activation{batchnorm.Identity, batchnorm.LeakyReLU(0.01), batchnorm.LeakyReLU(0.5), batchnorm.ELU(1),
	batchnorm.ELU(0.3)}

// The gradients from y are those from x, within the bound stated.
func TestBackwardFromY(t *testing.T) {
	t.Parallel()
	worst := 0.0
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant)&^(hasReLU|hasSpecials))
		p.act = invertible[variant%len(invertible)]
		for i := range p.gamma {
			if g := p.gamma[i]; math.Abs(float64(g)) < 0.01 {
				p.gamma[i] = 0.01
			}
		}
		r := fromY(batchnorm.Mask{}).same(t, p, waysOfModes(), placements(t, variant)[variant%3])
		worst = max(worst, p.checkFromY(t, r))
	})
	t.Logf("largest error of dx: %.3g of what is allowed", worst)
}

// checkFromY compares with the reference, and returns the largest share of the
// allowed error of dx.
func (p problem) checkFromY(t testing.TB, r results) (worst float64) {
	t.Helper()
	ref := p.reference()
	s, n := p.shape, float64(p.shape.PerChannel())
	fwd, z, act := reference.Forward(ref), reference.Z(ref), reference.ActivationOf(p.act.String())
	g := make([]float64, s.Len())
	for i := range g {
		slope := act.Derivative(z[i])
		if act.Curvature == 0 { // which side of the kink z is on, y says
			slope = act.Derivative(float64(r.y[i]))
		}
		g[i] = float64(p.dy[i]) * slope
	}
	grad := reference.BackwardOf(ref, g)
	// The error of xhat, and its effect on the sums.
	back := make([]float64, s.Len())
	var meanGE, meanGX, rms = make([]float64, s.Channels), make([]float64, s.Channels), make([]float64, s.Channels)
	off, meanOff := make([]float64, s.Len()), make([]float64, s.Channels) // of g
	for i := range back {
		c := channelOf(s, i)
		xhat := (float64(p.x[i]) - fwd.Mean[c]) * fwd.InvStd[c]
		gamma := math.Abs(orDefault(p.gamma, c, 1))
		back[i] = unit * (7*math.Abs(xhat) + 4*math.Abs(orDefault(p.beta, c, 0))/gamma)
		if p.residual != nil {
			back[i] += unit * math.Abs(float64(p.residual[i])) / gamma
		}
		back[i] += sumUnits * unit * (1 + math.Abs(xhat)) // of the statistics, as in Forward
		if act.Kinks != nil && z[i] < 0 {
			back[i] += unit * (3*math.Abs(z[i]) + 2*math.Abs(fwd.Y[i])/act.Derivative(z[i])) / gamma
		}
		off[i] = math.Abs(float64(p.dy[i])) * (act.Curvature*back[i]*gamma + 4*unit*act.Slope)
		meanOff[c] += off[i] * (1 + math.Abs(xhat)) / n
		meanGE[c] += math.Abs(g[i]) * back[i] / n
		meanGX[c] += g[i] * xhat / n
		rms[c] += g[i] * g[i] / n
	}
	for i := range back {
		c := channelOf(s, i)
		xhat := math.Abs((float64(p.x[i]) - fwd.Mean[c]) * fwd.InvStd[c])
		allowed := math.Abs(orDefault(p.gamma, c, 1)) * fwd.InvStd[c] *
			(unit*(8*math.Abs(g[i])+sumUnits*math.Sqrt(rms[c])*(1+xhat)) + back[i]*math.Abs(meanGX[c]) + xhat*meanGE[c] +
				off[i] + (1+xhat)*meanOff[c])
		d := math.Abs(float64(r.dx[i]) - grad.DX[i])
		if !(d <= allowed) {
			t.Fatalf("%v: dx[%d] is %g, the reference says %g: off by %.3g, allowed is %.3g", s, i, r.dx[i], grad.DX[i], d, allowed)
		}
		worst = max(worst, d/allowed)
	}
	for c := range meanGE {
		allowed := n * (meanGE[c] + sumUnits*unit*math.Sqrt(rms[c]) + meanOff[c])
		if d := math.Abs(float64(r.dgamma[c]) - grad.DGamma[c]); !(d <= allowed) {
			t.Fatalf("%v: dgamma[%d] is %g, the reference says %g: off by %.3g, allowed is %.3g", s, c, r.dgamma[c], grad.DGamma[c], d, allowed)
		}
	}
	return worst
}

// TestAccuracyFromY measures the errors of BackwardFromY beside those of Backward, for data
// N(mean, 1) and several ratios of beta to gamma, and compares them with the figures in its
// documentation.
func TestAccuracyFromY(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{32, 8, 784}, {32 * 49, 40, 1}} {
		for _, beta := range []float32{0, 1, 32, 1000} {
			for _, mean := range []float64{0, 1e6} {
				p := problem{shape: s, epsilon: batchnorm.DefaultEpsilon, x: gen.Normal(1, s.Len(), mean, 1), dy: gen.Normal(2, s.Len(), 0, 1),
					gamma: slices.Repeat([]float32{1}, s.Channels), beta: slices.Repeat([]float32{beta}, s.Channels),
					mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
				// A dy that goes with x, so that the mean of g*xhat is about 1.
				for i := range p.dy {
					p.dy[i] += p.x[i] - float32(mean)
				}
				grad := reference.Backward(p.reference())
				var worst [2]float64
				for k, m := range []mode{plain(batchnorm.Mask{}), fromY(batchnorm.Mask{})} {
					r := m.once(t, p)
					largest := 0.0
					for i := range grad.DX {
						worst[k] = max(worst[k], math.Abs(float64(r.dx[i])-grad.DX[i]))
						largest = max(largest, math.Abs(grad.DX[i]))
					}
					worst[k] /= largest
				}
				t.Logf("%v, mean %g, beta/gamma %g: error of dx, of the largest: %.2g from x, %.2g from y", s, mean, beta, worst[0], worst[1])
				if allowed := 1e-6 + 3e-8*float64(beta); !(worst[1] <= allowed) {
					t.Errorf("%v, mean %g, beta/gamma %g: the error of dx is %.2g of the largest, allowed is %.2g", s, mean, beta, worst[1], allowed)
				}
			}
		}
	}
}

// Channels whose constants only float64 holds go another way, and come to the
// same: x times a power of two gives the same y, and dx divided by it.
func TestBackwardFromYRange(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{6, 3, 35}, {5, 2, 300}, {40, 5, 1}, {300, 3, 1}} {
		for _, act := range invertible {
			for _, f := range []features{hasGammaBeta, hasGammaBeta | hasResidual} {
				p := newProblem(s, f)
				p.act, p.epsilon = act, 0
				for c := range p.gamma {
					p.gamma[c] = 0.5 + abs(p.gamma[c])
				}
				want := fromY(batchnorm.Mask{}).once(t, p)
				for _, exponent := range []int{-80, 80} {
					q := p
					q.x = slices.Clone(p.x)
					for i := range q.x { // all channels but the second
						if channelOf(s, i) != 1 {
							q.x[i] = float32(math.Ldexp(float64(p.x[i]), exponent))
						}
					}
					got := fromY(batchnorm.Mask{}).same(t, q, waysOfModes(), slices.Clone)
					expectNear(t, "dgamma", got.dgamma, widen(want.dgamma), func(int) float64 { return 1e-4 * math.Sqrt(float64(s.PerChannel())) })
					for i := range got.dx {
						dx := float64(got.dx[i])
						if channelOf(s, i) != 1 {
							dx = math.Ldexp(dx, exponent)
						}
						if d := math.Abs(dx - float64(want.dx[i])); !(d <= 2e-5) {
							t.Fatalf("%v, %v, x times 2^%d: dx[%d] is %g times 2^%d, want %g", s, act, exponent, i, dx, -exponent, want.dx[i])
						}
					}
				}
			}
		}
	}
}

// eluInverse gives back z within the roundings of y, for every z that y can
// tell, and never an infinity.
func TestELUInverse(t *testing.T) {
	for _, alpha := range []float32{1, 0.3, 2, 0x1p-40, 0x1p40} {
		worst := 0.0
		for i := range 40000 {
			z := -math.Ldexp(1+float64(i%100)/100, i/100*40/400-35) // -2^-35 to -32
			y := float32(float64(alpha) * math.Expm1(z))
			if y == 0 {
				continue
			}
			got := float64(batchnorm.ELUInverse(y, alpha))
			want := max(math.Log1p(float64(y)/float64(alpha)), -25*math.Ln2)
			worst = max(worst, math.Abs(got/want-1))
		}
		if !(worst < 2*unit) {
			t.Errorf("alpha %g: the relative error is up to %.3g, allowed is %.3g", alpha, worst, 2*unit)
		}
	}
	if v := batchnorm.ELUInverse(float32(math.NaN()), 1); v == v {
		t.Errorf("of NaN it is %v", v)
	}
}
