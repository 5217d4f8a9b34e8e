package batchnorm_test

import (
	"math"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// TestSmallScaleLargeSums: the sums of channels with a small scale, whose products leave
// float32's range, are those of float64, whatever the channels beside them are.
func TestSmallScaleLargeSums(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 2, Channels: 8, Inner: 64}, {Outer: 64, Channels: 16, Inner: 1}, {Outer: 64, Channels: 1, Inner: 1}} {
		for _, sizes := range [][2]float64{{1e26, 1e25}, {1e-22, 1e-22}, {1e19, 1e20}} { // of x, and of dy
			for usual := range 2 { // whether channels beside are usual
				for _, path := range batchnorm.Paths() {
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(0))
					x, dy, gamma := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels)
					for i := range x {
						x[i], dy[i] = float32(float64(i%7-3)*sizes[0]), float32(float64(i%5-1)*sizes[1])
					}
					mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
					y := make([]float32, s.Len())
					noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}))
					for c := range gamma {
						gamma[c] = float32(0x1p-125 / invstd[c])
						if c%2 == 1 && usual == 1 {
							gamma[c] = float32(1 / invstd[c])
						}
					}
					dx, dgamma := make([]float32, s.Len()), make([]float32, s.Channels)
					noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Mean: mean, InvStd: invstd, DX: dx, DGamma: dgamma}))
					for c, got := range dgamma {
						want, size := 0.0, 0.0
						for i, v := range x {
							if channelOf(s, i) == c {
								product := (float64(v) - mean[c]) * invstd[c] * float64(dy[i])
								want, size = want+product, size+math.Abs(product)
							}
						}
						if d := math.Abs(float64(got) - want); !(d <= 280*unit*size+unit*math.Abs(want)) {
							t.Errorf("%v, %v, x %g, dy %g, usual beside: %d: dgamma[%d] is %g, want %g", s, path, sizes[0], sizes[1], usual, c, got, want)
						}
					}
				}
			}
		}
	}
}
