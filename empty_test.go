package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// emptyBatch is the arguments of a training step on a batch without values, the
// outputs filled with something else.
type emptyBatch struct {
	forward  batchnorm.ForwardArgs
	backward batchnorm.BackwardArgs
}

func newEmptyBatch(s batchnorm.Shape, mask batchnorm.Mask, statistics int) *emptyBatch {
	n, c := s.Len(), s.Channels
	tensor := func(seed uint64) []float32 { return gen.Normal(seed, n, 0, 1) }
	channel := func(seed uint64) []float32 { return gen.Uniform(seed, c, 1, 2) }
	e := &emptyBatch{forward: batchnorm.ForwardArgs{X: tensor(1), Residual: tensor(2), Gamma: channel(3), Beta: channel(4), Mask: mask, Y: tensor(5),
		Mean: make([]float64, statistics), InvStd: make([]float64, statistics), RunningMean: channel(6), RunningVar: channel(7)}}
	f := &e.forward
	e.backward = batchnorm.BackwardArgs{DY: tensor(8), X: f.X, Residual: f.Residual, Gamma: f.Gamma, Beta: f.Beta, Mask: mask,
		Mean: f.Mean, InvStd: f.InvStd,
		DX: tensor(9), DResidual: tensor(10), DGamma: channel(11), DBeta: channel(12)}
	return e
}

// expect compares with the results of an empty batch: no statistics, unchanged running
// statistics, gradients 0, and at padding 0 or the earlier contents.
func (e *emptyBatch) expect(t *testing.T, what string, keep bool) {
	t.Helper()
	nan := slices.Repeat([]float64{math.NaN()}, len(e.forward.Mean))
	expectBits(t, what+": mean", e.forward.Mean, nan)
	expectBits(t, what+": invstd", e.forward.InvStd, nan)
	c := len(e.forward.RunningMean)
	expectBits(t, what+": running mean", e.forward.RunningMean, gen.Uniform(6, c, 1, 2))
	expectBits(t, what+": running variance", e.forward.RunningVar, gen.Uniform(7, c, 1, 2))
	expectBits(t, what+": dgamma", e.backward.DGamma, make([]float32, c))
	expectBits(t, what+": dbeta", e.backward.DBeta, make([]float32, c))
	for seed, output := range map[uint64][]float32{5: e.forward.Y, 9: e.backward.DX, 10: e.backward.DResidual} {
		want := make([]float32, len(output))
		if keep {
			want = gen.Normal(seed, len(output), 0, 1)
		}
		expectBits(t, fmt.Sprintf("%s: output %d", what, seed), output, want)
	}
}

// A batch without values, empty or all padding, is no error in any way to train,
// and all ways do the same with it.
func TestNoValues(t *testing.T) {
	t.Parallel()
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{0, 3, 1}, {0, 3, 5}, {0, 1, 5}, {4, 3, 5}, {6, 3, 1}, {6, 1, 1}, {2, 9, 4000}} {
			lengths, valid := make([]int, s.Outer), make([]bool, s.PerChannel())
			masks := []batchnorm.Mask{{Lengths: lengths}, {Valid: valid}, {Lengths: lengths, KeepPadding: true}, {Valid: valid, KeepPadding: true}}
			if s.Outer == 0 {
				masks = []batchnorm.Mask{{}}
			}
			opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.LeakyReLU(0.5))}
			p := newPlan(t, s, opts...)
			for k, mask := range masks {
				keep, c := mask.KeepPadding, s.Channels
				name := func(way string) string { return fmt.Sprintf("%v, mask %d, %s", s, k, way) }

				e := newEmptyBatch(s, mask, c)
				noError(t, p.Forward(e.forward))
				noError(t, p.Backward(e.backward))
				e.expect(t, name("whole"), keep)

				e = newEmptyBatch(s, mask, c)
				noError(t, pieces{p}.train(e))
				e.expect(t, name("pieces"), keep)

				e = newEmptyBatch(s, mask, c)
				noError(t, p.Forward(e.forward))
				b := e.backward
				noError(t, p.BackwardFromY(batchnorm.BackwardFromYArgs{DY: b.DY, Y: b.X, Residual: b.Residual, Gamma: b.Gamma, Beta: b.Beta,
					InvStd: b.InvStd, Mask: mask, DX: b.DX, DResidual: b.DResidual, DGamma: b.DGamma, DBeta: b.DBeta}))
				e.expect(t, name("from y"), keep)

				e = newEmptyBatch(s, mask, c)
				r, d := make([]float64, c), make([]float64, c)
				noError(t, p.RenormForward(batchnorm.RenormForwardArgs{ForwardArgs: e.forward, RMax: 3, DMax: 5, R: r, D: d}))
				noError(t, p.RenormBackward(batchnorm.RenormBackwardArgs{BackwardArgs: e.backward, R: r, D: d}))
				e.expect(t, name("renormalized"), keep)

				for _, samples := range []int{1, 2, s.Outer} {
					if s.Outer%max(1, samples) != 0 || s.Outer == 0 && samples != 0 {
						continue
					}
					for _, size := range []int{1, 3, 100} {
						if mask.Lengths != nil && samples < s.Outer && s.Inner > 1 {
							continue // a length for each row
						}
						ghosts, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: samples, Size: size}, append(opts, batchnorm.WithSingleValue())...)
						noError(t, err)
						e = newEmptyBatch(s, mask, ghosts.Batches()*c)
						noError(t, ghosts.Forward(e.forward))
						noError(t, ghosts.Backward(e.backward))
						e.expect(t, name(fmt.Sprintf("ghost batches of %d of %d", size, samples)), keep)
					}
				}

				layer := newLayer(t, c, opts...)
				e = newEmptyBatch(s, mask, c)
				layer.Cumulative = true
				noError(t, layer.Forward(batchnorm.LayerForwardArgs{Shape: s, X: e.forward.X, Residual: e.forward.Residual, Mask: mask, Y: e.forward.Y}))
				noError(t, layer.Backward(batchnorm.LayerBackwardArgs{DY: e.backward.DY, DX: e.backward.DX, DResidual: e.backward.DResidual}))
				if layer.BatchesTracked != 0 {
					t.Errorf("%s: the layer counts the batch", name("layer"))
				}
				expectBits(t, name("layer: running mean"), layer.RunningMean, make([]float32, c))
				expectBits(t, name("layer: dgamma"), layer.DGamma, make([]float32, c))
			}
		}
	})
}

// pieces trains by the pieces of Forward and Backward.
type pieces struct{ *batchnorm.Plan }

func (p pieces) train(e *emptyBatch) error {
	f, b := &e.forward, &e.backward
	c := len(f.Mean)
	m := batchnorm.Moments{Mean: make([]float64, c), M2: make([]float64, c)}
	sums := batchnorm.GradSums{G: make([]float64, c), GD: make([]float64, c)}
	for _, step := range []func() error{
		func() error { return p.Moments(batchnorm.MomentsArgs{X: f.X, Mask: f.Mask, Moments: &m}) },
		func() error { return batchnorm.MergeMoments(&m, []batchnorm.Moments{m}) },
		func() error {
			return p.Statistics(batchnorm.StatisticsArgs{Moments: m, Mean: f.Mean, InvStd: f.InvStd, RunningMean: f.RunningMean, RunningVar: f.RunningVar})
		},
		func() error {
			return p.Normalize(batchnorm.NormalizeArgs{X: f.X, Residual: f.Residual, Gamma: f.Gamma, Beta: f.Beta, Mask: f.Mask,
				Mean: f.Mean, InvStd: f.InvStd, Y: f.Y})
		},
		func() error {
			return p.GradSums(batchnorm.GradSumsArgs{DY: b.DY, X: b.X, Residual: b.Residual, Gamma: b.Gamma, Beta: b.Beta, Mean: b.Mean, InvStd: b.InvStd,
				Mask: b.Mask, Sums: &sums})
		},
		func() error { return batchnorm.MergeGradSums(&sums, []batchnorm.GradSums{sums}) },
		func() error {
			return p.InputGrad(batchnorm.InputGradArgs{DY: b.DY, X: b.X, Residual: b.Residual, Gamma: b.Gamma, Beta: b.Beta, Mean: b.Mean, InvStd: b.InvStd,
				Mask: b.Mask, Sums: sums, DX: b.DX, DResidual: b.DResidual, DGamma: b.DGamma, DBeta: b.DBeta})
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// A batch smaller than a ghost batch is one.
func TestGhostSmallBatch(t *testing.T) {
	for _, s := range []batchnorm.Shape{{3, 4, 6}, {30, 4, 1}} {
		for _, size := range []int{3, 4, math.MaxInt} {
			p := newProblem(s, hasReLU|hasResidual|hasGammaBeta)
			want := plain(batchnorm.Mask{}).once(t, p)
			got := ghost(batchnorm.GhostBatches{Samples: 3, Size: size}, batchnorm.Mask{}).once(t, p)
			got.inferred = want.inferred
			expectSame(t, fmt.Sprintf("%v in ghost batches of %d of 3", s, size), got, want)
		}
	}
}

// Sub-batches that the mask leaves nothing of are passed over, in the running
// statistics and in their average too.
func TestGhostEmptySubBatch(t *testing.T) {
	s := batchnorm.Shape{6, 4, 5}
	x := gen.Normal(1, s.Len(), 0, 1)
	step := func(s batchnorm.Shape, x []float32, mask batchnorm.Mask) (mean, variance []float32, invstd []float64) {
		p, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: 2})
		noError(t, err)
		mean, variance, invstd = make([]float32, 4), make([]float32, 4), make([]float64, 4*p.Batches())
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), InvStd: invstd, RunningMean: mean, RunningVar: variance,
			Mask: mask, Momentum: batchnorm.Cumulative(1)}))
		return mean, variance, invstd
	}
	gotMean, gotVar, invstd := step(s, x, batchnorm.Mask{Lengths: []int{5, 5, 0, 0, 5, 5}})
	without := slices.Concat(x[:40], x[80:])
	wantMean, wantVar, want := step(batchnorm.Shape{4, 4, 5}, without, batchnorm.Mask{})
	expectBits(t, "running mean", gotMean, wantMean)
	expectBits(t, "running variance", gotVar, wantVar)
	nan := math.NaN()
	expectBits(t, "invstd", invstd, slices.Concat(want[:4], []float64{nan, nan, nan, nan}, want[4:]))
}

// TestMaskOfEmptyBatch: an empty batch has no samples, and so no lengths.
func TestMaskOfEmptyBatch(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 0, Channels: 3, Inner: 4}, {Outer: 0, Channels: 3, Inner: 1}, {Outer: 0, Channels: 1, Inner: 1}} {
		p := newPlan(t, s)
		mean := []float64{1, 1, 1}[:s.Channels]
		dbeta := []float32{1, 1, 1}[:s.Channels]
		for _, m := range []batchnorm.Mask{{Lengths: []int{}}, {Valid: []bool{}}, {}} {
			noError(t, p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: m}))
			noError(t, p.Backward(batchnorm.BackwardArgs{X: []float32{}, DY: []float32{}, Mask: m, Mean: mean, InvStd: mean, DBeta: dbeta}))
			expectBits(t, "dbeta", dbeta, make([]float32, s.Channels))
		}
		for _, lengths := range [][]int{{0}, {0, 0}, {1}} {
			err := p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: batchnorm.Mask{Lengths: lengths}})
			if !errors.Is(err, batchnorm.ErrLength) {
				t.Errorf("shape %v with lengths %v: the error is %v, want ErrLength", s, lengths, err)
			}
		}
		err := p.Forward(batchnorm.ForwardArgs{X: []float32{}, Y: []float32{}, Mask: batchnorm.Mask{Valid: []bool{false}}})
		if !errors.Is(err, batchnorm.ErrLength) {
			t.Errorf("shape %v with one position: the error is %v, want ErrLength", s, err)
		}
	}
}
