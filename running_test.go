package batchnorm_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// Weight 0 leaves the running statistics as they are, whatever the batch holds.
func TestWeightZeroKeeps(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{4, 19, 35}, {140, 19, 1}, {3, 2, 5}} {
			p := newPlan(t, s, batchnorm.WithPath(path))
			c := s.Channels
			for name, bad := range map[string]float32{"NaN": float32(math.NaN()), "+Inf": float32(math.Inf(1)), "-Inf": float32(math.Inf(-1))} {
				x := gen.Normal(1, s.Len(), 0, 1)
				x[s.Len()/2] = bad
				mean, variance := gen.Uniform(2, c, -1, 1), gen.Uniform(3, c, 0, 2)
				mean[0] = float32(math.Copysign(0, -1))
				wantMean, wantVar := append([]float32(nil), mean...), append([]float32(nil), variance...)
				moments := batchnorm.Moments{Mean: make([]float64, c), M2: make([]float64, c)}
				noError(t, p.Moments(batchnorm.MomentsArgs{X: x, Moments: &moments}))
				zero := batchnorm.NewWeight(0)
				for what, err := range map[string]error{
					"Forward": p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), RunningMean: mean, RunningVar: variance, Momentum: zero}),
					"RenormForward": p.RenormForward(batchnorm.RenormForwardArgs{RMax: 3, DMax: 5, R: make([]float64, c), D: make([]float64, c),
						ForwardArgs: batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), RunningMean: mean, RunningVar: variance, Momentum: zero}}),
					"Statistics": p.Statistics(batchnorm.StatisticsArgs{Moments: moments, RunningMean: mean, RunningVar: variance, Momentum: zero}),
				} {
					noError(t, err)
					what = fmt.Sprintf("%v, %s, %s: running ", s, name, what)
					expectBits(t, what+"mean", mean, wantMean)
					expectBits(t, what+"variance", variance, wantVar)
				}
			}
		}
	})
}

// The section of docs/semantics.md on NaN and infinities in a batch.
func TestBadValuesAndRunningStatistics(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{4, 19, 35}, {140, 19, 1}, {3, 2, 5}, {2, 3, 5000}} {
			p := newPlan(t, s, batchnorm.WithPath(path))
			for _, c := range []struct {
				bad  []float32
				mean float32
			}{
				{[]float32{nan}, nan}, {[]float32{inf}, inf}, {[]float32{-inf}, -inf}, {[]float32{inf, inf}, inf}, {[]float32{inf, -inf}, nan},
			} {
				x := gen.Normal(1, s.Len(), 0, 1)
				const channel = 1
				for i, v := range c.bad {
					x[(i*s.Channels+channel)*s.Inner+s.Inner/2] = v
				}
				mean, variance := make([]float32, s.Channels), gen.Uniform(3, s.Channels, 0, 2)
				noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), RunningMean: mean, RunningVar: variance}))
				for k := range mean {
					if k != channel {
						if mean[k]-mean[k] != 0 || variance[k]-variance[k] != 0 {
							t.Fatalf("%v: %v in channel %d makes %v, %v of channel %d", s, c.bad, channel, mean[k], variance[k], k)
						}
						continue
					}
					if !sameBits(mean[k], c.mean) || variance[k] == variance[k] {
						t.Errorf("%v: with %v in it the running mean becomes %v, want %v, and the variance %v, want NaN", s, c.bad, mean[k], c.mean, variance[k])
					}
				}
			}
		}
	})
}

// A running variance beyond float32 is infinite, and inference then gives beta.
func TestRunningVarianceOverflows(t *testing.T) {
	s := batchnorm.Shape{8, 3, 10}
	x := gen.Normal(1, s.Len(), 0, 1e20)
	p := newPlan(t, s)
	y, mean, variance, beta := make([]float32, s.Len()), make([]float32, 3), []float32{1, 1, 1}, []float32{3, 4, 5}
	noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Beta: beta, RunningMean: mean, RunningVar: variance}))
	for i, v := range y {
		if v-v != 0 || v == beta[channelOf(s, i)] {
			t.Fatalf("training gives y[%d] = %v", i, v)
		}
	}
	noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Y: y, Beta: beta, Mean: mean, Var: variance}))
	for i, v := range y {
		if c := channelOf(s, i); !math.IsInf(float64(variance[c]), 1) || v != beta[c] {
			t.Fatalf("the running variance is %v, and inference gives y[%d] = %v, want beta, %v", variance[c], i, v, beta[c])
		}
	}
}

// Running statistics in float32 stop where a step is less than half a unit in the
// last place.
func TestRunningMeanStalls(t *testing.T) {
	s := batchnorm.Shape{16, 1, 1}
	x := make([]float32, s.Len())
	for i := range x {
		x[i] = 1000.25 + float32(i%2)/8
	}
	p := newPlan(t, s)
	after := func(weight float64) float32 {
		mean, variance := []float32{1000}, []float32{1}
		for range 10000 {
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), RunningMean: mean, RunningVar: variance,
				Momentum: batchnorm.NewWeight(weight)}))
		}
		return mean[0]
	}
	if got := after(1e-4 / 2); got != 1000 {
		t.Errorf("with weight 5e-5 the running mean moves from 1000 to %v", got)
	}
	if got := after(1e-2); math.Abs(float64(got)-1000.3125) > 0.01 {
		t.Errorf("with weight 1e-2 the running mean becomes %v, want 1000.3125 or so", got)
	}
}
