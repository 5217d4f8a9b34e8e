package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// A GhostPlan gives the bits of a plan for every sub-batch.
func TestGhost(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		for _, g := range []batchnorm.GhostBatches{{s.Outer, 1}, {s.Outer, 2}, {s.Outer, 5}, {s.Outer, s.Outer}, {s.Outer / 3, 4}, {1, 1}} {
			if g.Samples == 0 || s.Outer%g.Samples != 0 || g.Size > g.Samples || s.Outer/g.Size > 1000 {
				continue
			}
			p := newProblem(s, features(variant))
			ways := waysOfModes()
			ways = append(ways[:1:1], ways[1+variant%(len(ways)-1)])
			masks := masksFor(s, uint64(variant))
			for name, mask := range map[string]batchnorm.Mask{"none": {}, "all but one": masks["all but one"]} {
				v, p := slices.Repeat([]bool{true}, s.PerChannel()), p
				if name != "none" {
					v = mask.Valid
					p = p.spoilt(mask)
				}
				if name != "none" && g.Size*(s.Outer/g.Samples)*s.Inner < 4 {
					continue // a sub-batch without values
				}
				got := ghost(g, mask).same(t, p, ways, slices.Clone)
				var want results
				want.runMean, want.runVar = p.mean, p.vari
				dgamma, dbeta := make([]float64, s.Channels), make([]float64, s.Channels)
				rows := s.Outer / g.Samples * g.Size
				for from := 0; from < s.Outer; from += rows {
					q := p
					q.shape.Outer = min(rows, s.Outer-from)
					cut := func(t []float32) []float32 {
						if t == nil {
							return nil
						}
						return t[from*s.Channels*s.Inner:][:q.shape.Len()]
					}
					q.x, q.dy, q.residual = cut(p.x), cut(p.dy), cut(p.residual)
					q.mean, q.vari = want.runMean, want.runVar
					r := plain(batchnorm.Mask{Valid: v[from*s.Inner:][:q.shape.PerChannel()]}).once(t, q)
					want.y, want.dx, want.dres = append(want.y, r.y...), append(want.dx, r.dx...), append(want.dres, r.dres...)
					want.mean, want.invstd = append(want.mean, r.mean...), append(want.invstd, r.invstd...)
					want.runMean, want.runVar = r.runMean, r.runVar
					for c := range dgamma {
						dgamma[c] += float64(r.dgamma[c])
						dbeta[c] += float64(r.dbeta[c])
					}
				}
				what := fmt.Sprintf("%v in %v, mask %s", s, g, name)
				expectSame(t, what, got, want)
				if features(variant)&hasSpecials == 0 && name == "none" {
					// Every sub-batch's gradient was rounded to float32 here.
					for c := range dgamma {
						for _, v := range []struct{ got, want float64 }{{float64(got.dgamma[c]), dgamma[c]}, {float64(got.dbeta[c]), dbeta[c]}} {
							if !(math.Abs(v.got-v.want) <= 1e-5*math.Sqrt(float64(s.PerChannel()))) {
								t.Fatalf("%s: dgamma or dbeta[%d] is %g, the sub-batches' sum %g", what, c, v.got, v.want)
							}
						}
					}
				}
			}
		}
	})
}

// Cumulative counts sub-batches.
func TestGhostCumulative(t *testing.T) {
	s := batchnorm.Shape{Outer: 6, Channels: 1, Inner: 1}
	p, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: 6, Size: 2})
	noError(t, err)
	mean := []float32{99}
	for step, x := range [][]float32{{1, 3, 2, 4, 0, 2}, {8, 8, 7, 9, 6, 6}} {
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: x, RunningMean: mean, Momentum: batchnorm.Cumulative(1 + 3*step)}))
	}
	if want := float64(2+3+1+8+8+6) / 6; math.Abs(float64(mean[0])-want) > 1e-6 {
		t.Errorf("the running mean is %v, want %v", mean[0], want)
	}
}
