package batchnorm_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// With limits that leave nothing to correct it is Forward and Backward.
func TestRenorm(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant))
		alloc := placements(t, variant)[variant%3]
		got := renorm(1, 0, batchnorm.Mask{}).same(t, p, waysOfModes(), alloc)
		got.mean = got.mean[:s.Channels]
		expectSame(t, fmt.Sprint(s), got, plain(batchnorm.Mask{}).once(t, p))
		for _, limits := range [][2]float64{{1.5, 0.5}, {3, 5}, {math.Inf(1), math.Inf(1)}} {
			r := renorm(limits[0], limits[1], batchnorm.Mask{}).same(t, p, waysOfModes()[:3], alloc)
			if features(variant)&hasSpecials == 0 && p.piecewise() {
				p.checkRenorm(t, r, limits[0], limits[1])
			}
		}
	})
}

func (p problem) checkRenorm(t testing.TB, r results, rmax, dmax float64) {
	t.Helper()
	s := p.shape
	ref := p.reference()
	ref.R, ref.D = reference.Renorm(ref, p.mean, p.vari, rmax, dmax)
	expectNear(t, "r", r.mean[s.Channels:2*s.Channels], ref.R, func(c int) float64 { return 1e-5 * ref.R[c] })
	expectNear(t, "d", r.mean[2*s.Channels:], ref.D, func(c int) float64 { return 1e-5 * (1 + math.Abs(ref.D[c])) })
	fwd := reference.Forward(ref)
	residual := func(i int) float64 {
		if p.residual == nil {
			return 0
		}
		return math.Abs(float64(p.residual[i]))
	}
	expectNear(t, "y", r.y, fwd.Y, func(i int) float64 {
		c := channelOf(s, i)
		xhat := math.Abs((float64(p.x[i])-fwd.Mean[c])*fwd.InvStd[c])*ref.R[c] + ref.R[c] + math.Abs(ref.D[c])
		return sumUnits * unit * (math.Abs(orDefault(p.gamma, c, 1))*xhat + math.Abs(orDefault(p.beta, c, 0)) + residual(i))
	})
	ref.DY, ref.Activation, ref.Residual = p.slopes(r.y), "identity", nil
	grad := reference.Backward(ref)
	rms, n := make([]float64, s.Channels), float64(s.PerChannel())
	for i, g := range ref.DY {
		rms[channelOf(s, i)] += float64(g) * float64(g) / n
	}
	expectNear(t, "dx", r.dx, grad.DX, func(i int) float64 {
		c := channelOf(s, i)
		xhat := math.Abs((float64(p.x[i]) - fwd.Mean[c]) * fwd.InvStd[c])
		return unit*math.Abs(orDefault(p.gamma, c, 1))*ref.R[c]*fwd.InvStd[c]*(8*math.Abs(float64(ref.DY[i]))+sumUnits*math.Sqrt(rms[c])*(1+xhat)) + 1e-37
	})
	expectNear(t, "dgamma", r.dgamma, grad.DGamma, func(c int) float64 {
		return sumUnits*unit*n*math.Sqrt(rms[c])*(ref.R[c]+math.Abs(ref.D[c])) + 1e-37
	})
}

// The limits, and a running variance that is 0.
func TestRenormLimits(t *testing.T) {
	s := batchnorm.Shape{2, 5, 1}
	p := newPlan(t, s, batchnorm.WithEpsilon(0))
	x := []float32{1, 1, 7, 7, 1, 3, 3, 7, 7, 3} // deviation 1, 1, 0, 0, 1; mean 2, 2, 7, 7, 2
	r, d := make([]float64, 5), make([]float64, 5)
	noError(t, p.RenormForward(batchnorm.RenormForwardArgs{
		ForwardArgs: batchnorm.ForwardArgs{X: x, Y: make([]float32, 10), RunningMean: []float32{0, 2.5, 7, 8, 0},
			RunningVar: []float32{100, 0.0625, 0, 0, float32(math.NaN())}},
		RMax: 3, DMax: 1.5, R: r, D: d}))
	expectBits(t, "r", r, []float64{1. / 3, 3, 1, 1, math.NaN()})
	expectBits(t, "d", d, []float64{0.2, -1.5, 0, -1.5, math.NaN()})
}
