package batchnorm_test

import (
	"math"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// TestAccuracyOfFewValues holds the bound on dx for every number n of values per
// channel: for data N(mean, 1) it is within 5e-7*|gamma|*invstd*max|g| of the exact
// one. With few values dx all but cancels, so that it can be small beside that, and
// less than its error.
func TestAccuracyOfFewValues(t *testing.T) {
	t.Parallel()
	worst, worstRelative := 0.0, 0.0
	for _, n := range []int{2, 3, 4, 5, 6, 7, 8, 11, 16, 25, 50, 100, 400, 1600} {
		channels := 300 // many where values are few, since the worst channel counts
		if n > 100 {
			channels = 60
		}
		for _, s := range []batchnorm.Shape{{Outer: 1, Channels: channels, Inner: n}, {Outer: n, Channels: channels, Inner: 1},
			{Outer: n, Channels: channels / 3, Inner: 3}} {
			for i, mean := range []float64{0, 1, 1e2, 1e4, 1e6} {
				p := problem{shape: s, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward, gamma: gen.Uniform(3, s.Channels, -2, 2),
					x: gen.Normal(uint64(i), s.Len(), mean, 1), dy: gen.Normal(uint64(i+9), s.Len(), 0, 1)}
				fwd, grad := reference.Forward(p.reference()), reference.Backward(p.reference())
				largest, largestG := make([]float64, s.Channels), make([]float64, s.Channels)
				for k, v := range grad.DX {
					c := channelOf(s, k)
					largest[c] = max(largest[c], math.Abs(v))
					largestG[c] = max(largestG[c], math.Abs(float64(p.dy[k])))
				}
				r := p.run(t, config{path: batchnorm.DefaultPath(), workers: 1}, func(s []float32) []float32 { return append([]float32(nil), s...) })
				for k, v := range r.dx {
					c := channelOf(s, k)
					off := math.Abs(float64(v) - grad.DX[k])
					bound := math.Abs(float64(p.gamma[c])) * fwd.InvStd[c] * largestG[c]
					if !(off <= 5e-7*bound) {
						t.Fatalf("%v, mean %g: dx[%d] is off by %.3g, %.3g times gamma*invstd*max|g|", s, mean, k, off, off/bound)
					}
					if s.PerChannel() >= 100 && !(off <= 1e-6*largest[c]) {
						t.Fatalf("%v, mean %g: dx[%d] is off by %.3g, %.3g of the largest |dx|", s, mean, k, off, off/largest[c])
					}
					worst = max(worst, off/bound)
					worstRelative = max(worstRelative, off/largest[c])
				}
			}
		}
	}
	t.Logf("largest error of dx: %.2g of gamma*invstd*max|g|, %.2g of the largest |dx|", worst, worstRelative)
	if worstRelative < 1e-5 {
		t.Errorf("dx is within %.2g of the largest |dx| for few values too: the comment and doc.go say that it is not", worstRelative)
	}
}
