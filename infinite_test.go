package batchnorm_test

import (
	"math"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestInfiniteGradientBesideTiny: an infinity among tiny gradients makes dgamma and dx NaN, as among
// usual ones.
func TestInfiniteGradientBesideTiny(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 4, Channels: 9, Inner: 30}, {Outer: 90, Channels: 24, Inner: 1}} {
		for _, scale := range []float64{1, 1e-38} {
			for _, path := range batchnorm.Paths() {
				for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
					x, dy, beta := gen.Normal(1, s.Len(), 0.3, 1), gen.Normal(2, s.Len(), 0, 1), make([]float32, s.Channels)
					for c := range beta {
						beta[c] = 9
					}
					for i := range dy {
						dy[i] = float32(float64(dy[i]) * scale)
					}
					at := (s.PerChannel()/3/s.Inner*s.Channels)*s.Inner + s.PerChannel()/3%s.Inner // of channel 0
					for c := range s.Channels {
						dy[at+c*s.Inner] = float32(math.Inf(1 - c%2*2))
					}
					dx, dgamma, dbeta := make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
					noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Beta: beta, DX: dx, DGamma: dgamma, DBeta: dbeta}))
					for c, v := range dgamma {
						if v == v || !math.IsInf(float64(dbeta[c]), 0) {
							t.Errorf("%v, %v, %v, dy * %g: dgamma[%d] is %g and dbeta %g, want NaN and an infinity", s, path, act, scale, c, v, dbeta[c])
							break
						}
					}
					for i, v := range dx {
						if v == v {
							t.Errorf("%v, %v, %v, dy * %g: dx[%d] is %g, want NaN", s, path, act, scale, i, v)
							break
						}
					}
				}
			}
		}
	}
}
