package batchnorm_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// mode is a way to normalize a problem, forward and backward.
type mode struct {
	name string
	run  func(t testing.TB, s stage) results
}

// stage is where a mode runs.
type stage struct {
	problem
	config
	alloc func([]float32) []float32
}

func (s stage) options() []batchnorm.Option {
	return append(s.config.options(), batchnorm.WithEpsilon(s.epsilon), batchnorm.WithActivation(s.act), batchnorm.WithSingleValue())
}

// in returns a copy of an input, nil of none.
func (s stage) in(v []float32) []float32 {
	if v == nil {
		return nil
	}
	return s.alloc(v)
}

func (s stage) out(n int) []float32 { return s.alloc(make([]float32, n)) }

// over returns where an output goes: over the input where that is asked for.
func (s stage) over(v []float32) []float32 {
	if s.inPlace {
		return v
	}
	return s.out(len(v))
}

// gradients makes the outputs of a backward pass.
func (s stage) gradients(r *results, dy, residual []float32) {
	r.dx, r.dgamma, r.dbeta = s.over(dy), s.out(s.shape.Channels), s.out(s.shape.Channels)
	if residual != nil {
		r.dres = s.over(residual)
	}
}

// plain is Forward, Inference and Backward, with a mask.
func plain(mask batchnorm.Mask) mode {
	return mode{"plain", func(t testing.TB, s stage) (r results) {
		p := newPlan(t, s.shape, s.options()...)
		x := s.in(s.x)
		r.y, r.mean, r.invstd = s.over(x), make([]float64, s.shape.Channels), make([]float64, s.shape.Channels)
		r.runMean, r.runVar = s.in(s.mean), s.in(s.vari)
		gamma, beta := s.in(s.gamma), s.in(s.beta)
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask, Y: r.y,
			Mean: r.mean, InvStd: r.invstd, RunningMean: r.runMean, RunningVar: r.runVar}))

		x = s.in(s.x)
		r.inferred = s.over(x)
		noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask,
			Mean: s.in(s.mean), Var: s.in(s.vari), Y: r.inferred}))

		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: s.in(s.x), Residual: residual, Gamma: gamma, Beta: beta, Mask: mask,
			Mean: r.mean, InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
		return r
	}}
}

// frozen is Inference and FrozenBackward.
func frozen(mask batchnorm.Mask) mode {
	return mode{"frozen", func(t testing.TB, s stage) (r results) {
		p := newPlan(t, s.shape, s.options()...)
		x := s.in(s.x)
		r.inferred = s.over(x)
		gamma, beta, mean, variance := s.in(s.gamma), s.in(s.beta), s.in(s.mean), s.in(s.vari)
		noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask,
			Mean: mean, Var: variance, Y: r.inferred}))
		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: s.in(s.x), Residual: residual, Gamma: gamma, Beta: beta,
			Mask: mask, Mean: mean, Var: variance, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
		return r
	}}
}

// split is the pieces, over parts that end at the given rows of Outer. They are
// done in the reverse order, and merged in place.
func split(ends []int, mask batchnorm.Mask) mode {
	return mode{"split", func(t testing.TB, s stage) (r results) {
		c, row := s.shape.Channels, s.shape.Channels*s.shape.Inner
		plans := make([]*batchnorm.Plan, len(ends))
		masks := make([]batchnorm.Mask, len(ends))
		part := func(v []float32, i int) []float32 {
			if v == nil {
				return nil
			}
			from := 0
			if i > 0 {
				from = ends[i-1]
			}
			return v[from*row : ends[i]*row : ends[i]*row]
		}
		for i, end := range ends {
			shape := s.shape
			from := 0
			if i > 0 {
				from = ends[i-1]
			}
			shape.Outer = end - from
			plans[i] = newPlan(t, shape, s.options()...)
			if mask.Valid != nil {
				masks[i].Valid = mask.Valid[from*s.shape.Inner : end*s.shape.Inner]
			}
		}

		x := s.in(s.x)
		moments := make([]batchnorm.Moments, len(ends))
		for i, p := range slices.Backward(plans) {
			moments[i] = batchnorm.Moments{Mean: make([]float64, c), M2: make([]float64, c)}
			noError(t, p.Moments(batchnorm.MomentsArgs{X: part(x, i), Mask: masks[i], Moments: &moments[i]}))
		}
		whole := &moments[len(ends)/2]
		noError(t, batchnorm.MergeMoments(whole, moments))
		r.mean, r.invstd, r.runMean, r.runVar = make([]float64, c), make([]float64, c), s.in(s.mean), s.in(s.vari)
		noError(t, plans[0].Statistics(batchnorm.StatisticsArgs{Moments: *whole, Mean: r.mean, InvStd: r.invstd,
			RunningMean: r.runMean, RunningVar: r.runVar}))

		r.y = s.over(x)
		residual, gamma, beta := s.in(s.residual), s.in(s.gamma), s.in(s.beta)
		for i, p := range slices.Backward(plans) {
			noError(t, p.Normalize(batchnorm.NormalizeArgs{X: part(x, i), Residual: part(residual, i), Gamma: gamma, Beta: beta,
				Mask: masks[i], Mean: r.mean, InvStd: r.invstd, Y: part(r.y, i)}))
		}

		x = s.in(s.x)
		dy := s.in(s.dy)
		s.gradients(&r, dy, residual)
		sums := make([]batchnorm.GradSums, len(ends))
		for i, p := range slices.Backward(plans) {
			sums[i] = batchnorm.GradSums{G: make([]float64, c), GD: make([]float64, c)}
			noError(t, p.GradSums(batchnorm.GradSumsArgs{DY: part(dy, i), X: part(x, i), Residual: part(residual, i), Gamma: gamma,
				Beta: beta, Mask: masks[i], Mean: r.mean, InvStd: r.invstd, Sums: &sums[i]}))
		}
		total := &sums[len(ends)/2]
		noError(t, batchnorm.MergeGradSums(total, sums))
		for i, p := range slices.Backward(plans) {
			noError(t, p.InputGrad(batchnorm.InputGradArgs{DY: part(dy, i), X: part(x, i), Residual: part(residual, i), Gamma: gamma,
				Beta: beta, Mask: masks[i], Mean: r.mean, InvStd: r.invstd, Sums: *total,
				DX: part(r.dx, i), DResidual: part(r.dres, i), DGamma: r.dgamma, DBeta: r.dbeta}))
		}
		return r
	}}
}

// ghost is a GhostPlan.
func ghost(g batchnorm.GhostBatches, mask batchnorm.Mask) mode {
	return mode{"ghost", func(t testing.TB, s stage) (r results) {
		p, err := batchnorm.NewGhostPlan(s.shape, g, s.options()...)
		noError(t, err)
		x := s.in(s.x)
		n := p.Batches() * s.shape.Channels
		r.y, r.mean, r.invstd = s.over(x), make([]float64, n), make([]float64, n)
		r.runMean, r.runVar = s.in(s.mean), s.in(s.vari)
		gamma, beta := s.in(s.gamma), s.in(s.beta)
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask, Y: r.y,
			Mean: r.mean, InvStd: r.invstd, RunningMean: r.runMean, RunningVar: r.runVar}))
		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: s.in(s.x), Residual: residual, Gamma: gamma, Beta: beta, Mask: mask,
			Mean: r.mean, InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
		return r
	}}
}

// renorm is batch renormalization.
func renorm(rmax, dmax float64, mask batchnorm.Mask) mode {
	return mode{"renorm", func(t testing.TB, s stage) (r results) {
		p := newPlan(t, s.shape, s.options()...)
		x, c := s.in(s.x), s.shape.Channels
		r.y, r.mean, r.invstd = s.over(x), make([]float64, c), make([]float64, c)
		r.runMean, r.runVar = s.in(s.mean), s.in(s.vari)
		gamma, beta := s.in(s.gamma), s.in(s.beta)
		rd := make([]float64, 2*c)
		noError(t, p.RenormForward(batchnorm.RenormForwardArgs{
			ForwardArgs: batchnorm.ForwardArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask, Y: r.y,
				Mean: r.mean, InvStd: r.invstd, RunningMean: r.runMean, RunningVar: r.runVar},
			RMax: rmax, DMax: dmax, R: rd[:c], D: rd[c:]}))
		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		noError(t, p.RenormBackward(batchnorm.RenormBackwardArgs{
			BackwardArgs: batchnorm.BackwardArgs{DY: dy, X: s.in(s.x), Residual: residual, Gamma: gamma, Beta: beta, Mask: mask,
				Mean: r.mean, InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta},
			R: rd[:c], D: rd[c:]}))
		r.mean = append(r.mean, rd...)
		return r
	}}
}

// fromY is Forward in place and BackwardFromY.
func fromY(mask batchnorm.Mask) mode {
	return mode{"from y", func(t testing.TB, s stage) (r results) {
		p := newPlan(t, s.shape, s.options()...)
		r.y, r.mean, r.invstd = s.in(s.x), make([]float64, s.shape.Channels), make([]float64, s.shape.Channels)
		r.runMean, r.runVar = s.in(s.mean), s.in(s.vari)
		gamma, beta := s.in(s.gamma), s.in(s.beta)
		noError(t, p.Forward(batchnorm.ForwardArgs{X: r.y, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask, Y: r.y,
			Mean: r.mean, InvStd: r.invstd, RunningMean: r.runMean, RunningVar: r.runVar}))
		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		noError(t, p.BackwardFromY(batchnorm.BackwardFromYArgs{DY: dy, Y: r.y, Residual: residual, Gamma: gamma, Beta: beta, Mask: mask,
			InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
		return r
	}}
}

// waysOfModes are configurations that a mode must give the same bits in.
func waysOfModes() []config {
	var list []config
	for _, p := range slices.Backward(batchnorm.Paths()) {
		list = append(list, config{path: p, workers: 1}, config{path: p, workers: 2, inPlace: true},
			config{path: p, workers: 5, shuffled: true}, config{path: p, workers: 1, extreme: 1},
			config{path: p, workers: 5, extreme: 2})
	}
	return list
}

// same runs a mode in all the ways, which must give the same bits, and returns
// the results.
func (m mode) same(t testing.TB, p problem, ways []config, alloc func([]float32) []float32) results {
	t.Helper()
	first := m.run(t, stage{p, ways[0], slices.Clone[[]float32]})
	for _, c := range ways {
		if d := m.run(t, stage{p, c, alloc}).compare(first); d != "" {
			t.Fatalf("%s: shape %v, epsilon %g, %v: %v gives other bits than %v: %s", m.name, p.shape, p.epsilon, p.act, c, ways[0], d)
		}
	}
	return first
}

// once runs a mode in the simplest way.
func (m mode) once(t testing.TB, p problem) results {
	t.Helper()
	return m.run(t, stage{p, config{path: batchnorm.PathGeneric, workers: 1}, slices.Clone[[]float32]})
}

// expectSame requires the same bits of everything that both have.
func expectSame(t testing.TB, what string, got, want results) {
	t.Helper()
	all := want.outputs()
	for i, o := range got.outputs() {
		w := all[i]
		if o.single == nil && o.double == nil || w.single == nil && w.double == nil {
			continue
		}
		if d := difference(o.single, w.single) + difference(o.double, w.double); d != "" {
			t.Fatalf("%s: %s%s", what, o.name, d)
		}
	}
}

// modeShapes are small shapes of every form, and some of several blocks and
// segments.
func modeShapes() []batchnorm.Shape {
	return []batchnorm.Shape{
		{Outer: 3, Channels: 4, Inner: 6}, {Outer: 7, Channels: 3, Inner: 35}, {Outer: 5, Channels: 2, Inner: 300},
		{Outer: 2, Channels: 3, Inner: 2500}, {Outer: 40, Channels: 9, Inner: 2}, {Outer: 5, Channels: 1, Inner: 7},
		{Outer: 3, Channels: 1, Inner: 1000}, {Outer: 60, Channels: 1, Inner: 1},
		{Outer: 2, Channels: 5, Inner: 1}, {Outer: 33, Channels: 3, Inner: 1}, {Outer: 300, Channels: 3, Inner: 1},
		{Outer: 150, Channels: 40, Inner: 1}, {Outer: 37, Channels: 133, Inner: 1}, {Outer: 5, Channels: 1030, Inner: 1},
		{Outer: 9, Channels: 2, Inner: 16000}, {Outer: 40000, Channels: 3, Inner: 1},
	}
}

// testShapes runs a test on those shapes and variants of the problem.
func testShapes(t *testing.T, test func(t *testing.T, s batchnorm.Shape, variant int)) {
	for i, s := range modeShapes() {
		if !thorough() && s.Len() > 20000 {
			continue
		}
		variants := 16
		if !thorough() {
			variants = 4
		}
		if s.Len() > 4000 {
			variants = 2
		}
		if s.Len() > 20000 {
			variants = 1
		}
		t.Run(s.String(), func(t *testing.T) {
			for v := range variants {
				test(t, s, 8*v+v+i)
			}
		})
	}
}

// One plan with masks, and one of ghost batches, called from several goroutines,
// and again and again, give the bits of the first call.
func TestConcurrentModes(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{7, 3, 35}, {60, 17, 1}} {
		forEachPath(t, func(t *testing.T, path batchnorm.Path) {
			p := newProblem(s, hasResidual|hasGammaBeta)
			masks := masksFor(s, 3)
			plan := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithWorkers(2))
			ghosts, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: 3}, batchnorm.WithPath(path),
				batchnorm.WithWorkers(2), batchnorm.WithSingleValue())
			noError(t, err)
			type planLike interface {
				Forward(batchnorm.ForwardArgs) error
				Backward(batchnorm.BackwardArgs) error
			}
			run := func(p0 planLike, mask batchnorm.Mask, batches int) (r results, err error) {
				r.y, r.mean, r.invstd = make([]float32, s.Len()), make([]float64, batches*s.Channels), make([]float64, batches*s.Channels)
				r.dx, r.dres, r.dgamma, r.dbeta = make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
				if err := p0.Forward(batchnorm.ForwardArgs{X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask,
					Y: r.y, Mean: r.mean, InvStd: r.invstd}); err != nil {
					return r, err
				}
				return r, p0.Backward(batchnorm.BackwardArgs{DY: p.dy, X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask,
					Mean: r.mean, InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta})
			}
			for _, c := range []struct {
				plan    planLike
				mask    batchnorm.Mask
				batches int
			}{{plan, masks["lengths"], 1}, {plan, masks["half"], 1}, {ghosts, batchnorm.Mask{}, ghosts.Batches()}} {
				want, err := run(c.plan, c.mask, c.batches)
				noError(t, err)
				var wg sync.WaitGroup
				for range 6 {
					start(&wg, func() {
						for range 3 {
							got, err := run(c.plan, c.mask, c.batches)
							if err != nil {
								t.Error(err)
							} else if d := got.compare(want); d != "" {
								t.Error(d)
							}
						}
					})
				}
				wg.Wait()
			}
		})
	}
}
