package batchnorm_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
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
		if testing.Short() && s.Len() > 20000 {
			continue
		}
		variants := 16
		if testing.Short() {
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

// ---- frozen statistics

// The reference's gradients are what frozen statistics give, and z is what
// Inference made of x.
func TestFrozen(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, uint64(variant))
		r := frozen(batchnorm.Mask{}).same(t, p, waysOfModes(), placements(t, variant)[variant%3])
		if variant&8 == 0 && p.piecewise() {
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
		for _, variant := range []uint64{2 | 4, 1 | 2 | 4, 1 | 2 | 4 | 8} {
			p := newProblem(s, variant)
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

// ---- masks

// masksFor are masks of a shape: lengths, a few holes, few that are valid.
func masksFor(s batchnorm.Shape, seed uint64) map[string]batchnorm.Mask {
	positions := s.PerChannel()
	samples := s.Outer
	if s.Inner == 1 && s.Outer%3 == 0 {
		samples = s.Outer / 3
	}
	var lengths []int
	for i, v := range gen.Uniform(seed, samples, 0, 1) {
		n := int(float64(v) * float64(positions/samples+1))
		if i == 0 {
			n = positions / samples
		}
		lengths = append(lengths, min(n, positions/samples))
	}
	random := func(share float64) []bool {
		valid := make([]bool, positions)
		for i, v := range gen.Uniform(seed+1, positions, 0, 1) {
			valid[i] = float64(v) < share
		}
		valid[positions/2], valid[positions-1] = true, true
		return valid
	}
	burst := make([]bool, positions)
	for i := range burst {
		burst[i] = i%97 < 60 || i < 3
	}
	all := slices.Repeat([]bool{true}, positions)
	one := slices.Clone(all)
	one[positions/3] = false
	return map[string]batchnorm.Mask{
		"lengths": {Lengths: lengths}, "half": {Valid: random(0.5)}, "few": {Valid: random(0.03)},
		"bursts": {Valid: burst}, "all": {Valid: all}, "all but one": {Valid: one},
	}
}

// valid returns the mask as a value per position.
func valid(m batchnorm.Mask, s batchnorm.Shape) []bool {
	if m.Valid != nil {
		return m.Valid
	}
	v := make([]bool, s.PerChannel())
	each := len(v) / len(m.Lengths)
	for i, n := range m.Lengths {
		for j := range n {
			v[i*each+j] = true
		}
	}
	return v
}

// compact returns the problem without its padding, and where in the tensor each
// of its elements stands.
func (p problem) compact(m batchnorm.Mask) (problem, []int) {
	s := p.shape
	var at []int
	v := valid(m, s)
	if n := count(v); s.Inner > 1 || s.Channels == 1 {
		for c := range s.Channels {
			for i := range v {
				if v[i] {
					at = append(at, (i/s.Inner*s.Channels+c)*s.Inner+i%s.Inner)
				}
			}
		}
		p.shape = batchnorm.Shape{Outer: 1, Channels: s.Channels, Inner: n}
		if n == len(v) {
			p.shape = s
			for i := range at {
				at[i] = i
			}
		}
	} else {
		for i := range v {
			for c := range s.Channels {
				if v[i] {
					at = append(at, i*s.Channels+c)
				}
			}
		}
		p.shape.Outer = n
	}
	pick := func(t []float32) []float32 {
		if t == nil {
			return nil
		}
		var out []float32
		for _, i := range at {
			out = append(out, t[i])
		}
		return out
	}
	p.x, p.dy, p.residual = pick(p.x), pick(p.dy), pick(p.residual)
	return p, at
}

func count(v []bool) (n int) {
	for _, b := range v {
		if b {
			n++
		}
	}
	return n
}

// spoilt returns the problem with NaN, infinity and huge values for padding.
func (p problem) spoilt(m batchnorm.Mask) problem {
	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), math.MaxFloat32}
	v := valid(m, p.shape)
	for k, t := range []*[]float32{&p.x, &p.dy, &p.residual} {
		*t = slices.Clone(*t)
		for i := range *t {
			if !v[i/(p.shape.Channels*p.shape.Inner)*p.shape.Inner+i%p.shape.Inner] {
				(*t)[i] = bad[(i+k)%len(bad)]
			}
		}
	}
	return p
}

// expanded returns results of the compact problem as those of the tensor, with
// 0 for padding.
func (r results) expanded(n int, at []int) results {
	for _, t := range []*[]float32{&r.y, &r.inferred, &r.dx, &r.dres} {
		if *t == nil {
			continue
		}
		whole := make([]float32, n)
		for k, i := range at {
			whole[i] = (*t)[k]
		}
		*t = whole
	}
	return r
}

// A masked call gives the bits of the tensor without its padding, in every mode.
func TestMask(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		ways := waysOfModes()
		ways = append(ways[:1:1], ways[1+variant%(len(ways)-1)], ways[1+(variant+3)%(len(ways)-1)])
		masks := masksFor(s, uint64(variant))
		for i, name := range slices.Sorted(maps.Keys(masks)) {
			if i%3 != variant%3 { // the next variant takes others
				continue
			}
			mask := masks[name]
			p := newProblem(s, uint64(variant)).spoilt(mask)
			short, at := p.compact(mask)
			modes := []func(batchnorm.Mask) mode{plain, frozen,
				func(m batchnorm.Mask) mode { return renorm(1.5, 0.5, m) },
				func(m batchnorm.Mask) mode { return split([]int{s.Outer}, batchnorm.Mask{Valid: valid(mask, s)}) },
			}
			near0 := func(gamma float32) bool { return math.Abs(float64(gamma)) < 0.01 }
			if slices.Contains(invertible, p.act) && !slices.ContainsFunc(p.gamma, near0) {
				modes = append(modes, fromY)
			}
			for _, m := range modes {
				masked := m(mask)
				got := masked.same(t, p, ways, placements(t, variant)[variant%3])
				if masked.name == "split" {
					m = func(batchnorm.Mask) mode { return plain(batchnorm.Mask{}) }
				}
				want := m(batchnorm.Mask{}).once(t, short).expanded(s.Len(), at)
				expectSame(t, fmt.Sprintf("%v with mask %q, %s", s, name, masked.name), got, want)
				if masked.name == "plain" && variant&8 == 0 && p.piecewise() {
					p.checkMasked(t, mask, got)
				}
			}
		}
	})
}

// checkMasked compares with the reference's own idea of a mask.
func (p problem) checkMasked(t *testing.T, mask batchnorm.Mask, r results) {
	t.Helper()
	ref := p.reference()
	ref.Valid = valid(mask, p.shape)
	fwd := reference.Forward(ref)
	near := func(name string, got []float32, want []float64, tolerance, terms float64) {
		t.Helper()
		largest := make([]float64, p.shape.Channels)
		for i, v := range want {
			largest[channelOf(p.shape, i)] = max(largest[channelOf(p.shape, i)], math.Abs(v))
		}
		expectNear(t, name, got, want, func(i int) float64 { return tolerance * (largest[channelOf(p.shape, i)] + terms) })
	}
	near("y", r.y, fwd.Y, 2e-6, 3)
	ref.DY, ref.Activation, ref.Residual = p.slopes(r.y), "identity", nil
	grad := reference.Backward(ref)
	if count(ref.Valid) > 4 { // with a few values dx is what cancellation leaves
		near("dx", r.dx, grad.DX, 1e-4, 1e-6)
	}
}

// With KeepPadding the outputs stay as they are where there is padding.
func TestKeepPadding(t *testing.T) {
	t.Parallel()
	const before = 12345
	for _, s := range []batchnorm.Shape{{3, 4, 6}, {5, 1, 7}, {33, 3, 1}, {3, 2, 300}} {
		for name, mask := range masksFor(s, 3) {
			v := valid(mask, s)
			p := newProblem(s, 2|4).spoilt(mask)
			fresh := func(in []float32) []float32 { // outputs are what is all 0
				out := slices.Clone(in)
				if !slices.ContainsFunc(in, func(v float32) bool { return v != 0 }) {
					for i := range out {
						out[i] = before
					}
				}
				return out
			}
			keep := mask
			keep.KeepPadding = true
			for _, m := range []func(batchnorm.Mask) mode{plain, frozen} {
				for _, c := range waysOfModes()[2:5] {
					want, got := m(mask).run(t, stage{p, c, fresh}), m(keep).run(t, stage{p, c, fresh})
					for k, o := range got.outputs() {
						if len(o.single) != s.Len() {
							continue
						}
						for i, g := range o.single {
							w := want.outputs()[k].single[i]
							if pad := !v[i/(s.Channels*s.Inner)*s.Inner+i%s.Inner]; pad && w != 0 {
								t.Fatalf("%v with mask %q, %s: %s[%d] is %g in padding, want 0", s, name, m(mask).name, o.name, i, w)
							} else if pad {
								w = before
							}
							if !sameBits(g, w) {
								t.Fatalf("%v with mask %q, %s: %s[%d] is %g with KeepPadding, want %g", s, name, m(mask).name, o.name, i, g, w)
							}
						}
					}
				}
			}
		}
	}
}

// A batch that is all padding has no gradients, and outputs of 0.
func TestAllPadding(t *testing.T) {
	for _, s := range []batchnorm.Shape{{3, 4, 6}, {33, 3, 1}} {
		for _, mask := range []batchnorm.Mask{{Lengths: make([]int, s.Outer)}, {Valid: make([]bool, s.PerChannel())}} {
			p := newProblem(s, 2|4).spoilt(mask)
			r := frozen(mask).same(t, p, waysOfModes(), slices.Clone)
			zero := make([]float32, s.Len())
			expectBits(t, "y", r.inferred, zero)
			expectBits(t, "dx", r.dx, zero)
			expectBits(t, "dresidual", r.dres, zero)
			expectBits(t, "dgamma", r.dgamma, zero[:s.Channels])
			expectBits(t, "dbeta", r.dbeta, zero[:s.Channels])
		}
	}
}

// ---- pieces

// One part is the whole by the bits; several are close to it.
func TestSplit(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, uint64(variant))
		whole := plain(batchnorm.Mask{}).once(t, p)
		expectSame(t, fmt.Sprint(s, " as one part"), split([]int{s.Outer}, batchnorm.Mask{}).once(t, p), whole)
		for _, parts := range []int{2, 3, 7} {
			if parts > s.Outer {
				continue
			}
			var ends []int // unequal: each about twice the one before
			for i := 1; i <= parts; i++ {
				ends = append(ends, max(i, s.Outer*(1<<i-1)/(1<<parts-1)))
			}
			ends[parts-1] = s.Outer
			r := split(ends, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
			if variant&8 == 0 {
				p.checkBounds(t, r)
				p.checkParts(t, r, whole)
			}
		}
	})
}

// checkParts compares a batch in parts with the whole, within the bound that the
// documentation of MergeMoments states.
func (p problem) checkParts(t *testing.T, r, whole results) {
	t.Helper()
	for c := range r.mean {
		std := 1 / whole.invstd[c]
		if d := math.Abs(r.mean[c]-whole.mean[c]) / std; !(d <= 1e-6) {
			t.Fatalf("%v: mean[%d] is %v, of the whole batch %v: %.3g standard deviations off", p.shape, c, r.mean[c], whole.mean[c], d)
		}
		if d := math.Abs(r.invstd[c]/whole.invstd[c] - 1); !(d <= 1e-6) {
			t.Fatalf("%v: invstd[%d] is %v, of the whole batch %v: %.3g off", p.shape, c, r.invstd[c], whole.invstd[c], d)
		}
	}
}

// Parts that are segments give the bits of the whole batch.
func TestSplitSegments(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		batchnorm.Shape
		segment int
	}{
		{batchnorm.Shape{Outer: 9, Channels: 2, Inner: 16384}, 4},
		{batchnorm.Shape{Outer: 70, Channels: 3, Inner: 2048}, 32},
		{batchnorm.Shape{Outer: 300, Channels: 2, Inner: 512}, 128},
		{batchnorm.Shape{Outer: 4500, Channels: 2, Inner: 32}, 2048},
		{batchnorm.Shape{Outer: 1100, Channels: 128, Inner: 1}, 512},
		{batchnorm.Shape{Outer: 300, Channels: 600, Inner: 1}, 128},
	} {
		p := newProblem(s.Shape, 1|2|4)
		var ends []int
		for end := s.segment; end < s.Outer; end += s.segment {
			ends = append(ends, end)
		}
		expectSame(t, s.String(), split(append(ends, s.Outer), batchnorm.Mask{}).once(t, p), plain(batchnorm.Mask{}).once(t, p))
	}
}

// A part may be empty, or padding only.
func TestSplitEmptyPart(t *testing.T) {
	for _, s := range []batchnorm.Shape{{6, 3, 35}, {66, 3, 1}} {
		p := newProblem(s, 1|2|4)
		want := split([]int{s.Outer / 2, s.Outer}, batchnorm.Mask{}).once(t, p)
		got := split([]int{0, s.Outer / 2, s.Outer / 2, s.Outer, s.Outer}, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
		expectSame(t, s.String(), got, want)

		mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
		for i := range s.PerChannel() / 2 {
			mask.Valid[i] = true
		}
		p = p.spoilt(mask)
		short, at := p.compact(mask)
		got = split([]int{s.Outer / 2, s.Outer}, mask).same(t, p, waysOfModes(), slices.Clone)
		if s.Inner == 1 {
			expectSame(t, s.String(), got, plain(batchnorm.Mask{}).once(t, short).expanded(s.Len(), at))
		}
		for i, y := range got.y[s.Len()/2:] {
			if y != 0 || got.dx[s.Len()/2+i] != 0 {
				t.Fatalf("%v: y[%d] is %g and dx %g in padding, want 0", s, i, y, got.dx[s.Len()/2+i])
			}
		}
	}
}

// The order in which parts arrive is nothing to MergeMoments, as their places
// say which is which; and its result is the exact one but for a few roundings.
func TestMergeMoments(t *testing.T) {
	const parts, channels = 40, 3
	x := gen.Normal(1, 5000*channels, 1e6, 1)
	var moments []batchnorm.Moments
	rest := x
	for i := range parts {
		n := (1 + i*5%23) * channels
		if i == parts-1 {
			n = len(rest)
		}
		m := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
		noError(t, newPlan(t, batchnorm.Shape{Outer: n / channels, Channels: channels, Inner: 1}).Moments(batchnorm.MomentsArgs{X: rest[:n], Moments: &m}))
		moments, rest = append(moments, m), rest[n:]
	}
	whole := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
	noError(t, batchnorm.MergeMoments(&whole, moments))
	if whole.Count != 5000 {
		t.Errorf("count is %d, want 5000", whole.Count)
	}
	ref := reference.Forward(reference.Problem{Outer: 5000, Channels: channels, Inner: 1, Activation: "identity", X: x})
	for c := range channels {
		if d := math.Abs(whole.Mean[c] - ref.Mean[c]); !(d < 1e-7) {
			t.Errorf("mean is %v, want %v", whole.Mean[c], ref.Mean[c])
		}
		if d := math.Abs(whole.M2[c]/5000/ref.Var[c] - 1); !(d < 1e-6) {
			t.Errorf("variance is %v, want %v", whole.M2[c]/5000, ref.Var[c])
		}
	}
}

// ---- ghost batches

// A GhostPlan gives the bits of a plan for every sub-batch.
func TestGhost(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		for _, g := range []batchnorm.GhostBatches{{s.Outer, 1}, {s.Outer, 2}, {s.Outer, 5}, {s.Outer, s.Outer}, {s.Outer / 3, 4}, {1, 1}} {
			if g.Samples == 0 || s.Outer%g.Samples != 0 || g.Size > g.Samples || s.Outer/g.Size > 1000 {
				continue
			}
			p := newProblem(s, uint64(variant))
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
				if variant&8 == 0 && name == "none" {
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

// ---- from y

// invertible are activations that BackwardFromY can do without x.
var invertible = []batchnorm.Activation{batchnorm.Identity, batchnorm.LeakyReLU(0.01), batchnorm.LeakyReLU(0.5), batchnorm.ELU(1), batchnorm.ELU(0.3)}

// The gradients from y are those from x, within the bound stated.
func TestBackwardFromY(t *testing.T) {
	t.Parallel()
	worst := 0.0
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, uint64(variant)&^9)
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
	// The error of xhat, and what sums make of it.
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

// TestAccuracyFromY measures what BackwardFromY costs beside Backward, for data
// N(mean, 1) and several ratios of beta to gamma, and holds it to the figures
// in its documentation.
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

// ---- renormalization

// With limits that leave nothing to correct it is Forward and Backward.
func TestRenorm(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, uint64(variant))
		alloc := placements(t, variant)[variant%3]
		got := renorm(1, 0, batchnorm.Mask{}).same(t, p, waysOfModes(), alloc)
		got.mean = got.mean[:s.Channels]
		expectSame(t, fmt.Sprint(s), got, plain(batchnorm.Mask{}).once(t, p))
		for _, limits := range [][2]float64{{1.5, 0.5}, {3, 5}, {math.Inf(1), math.Inf(1)}} {
			r := renorm(limits[0], limits[1], batchnorm.Mask{}).same(t, p, waysOfModes()[:3], alloc)
			if variant&8 == 0 && p.piecewise() {
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
		ForwardArgs: batchnorm.ForwardArgs{X: x, Y: make([]float32, 10), RunningMean: []float32{0, 2.5, 7, 8, 0}, RunningVar: []float32{100, 0.0625, 0, 0, float32(math.NaN())}},
		RMax:        3, DMax: 1.5, R: r, D: d}))
	expectBits(t, "r", r, []float64{1. / 3, 3, 1, 1, math.NaN()})
	expectBits(t, "d", d, []float64{0.2, -1.5, 0, -1.5, math.NaN()})
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

// Channels whose constants only float64 holds go another way, and come to the
// same: x times a power of two gives the same y, and dx divided by it.
func TestBackwardFromYRange(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{6, 3, 35}, {5, 2, 300}, {40, 5, 1}, {300, 3, 1}} {
		for _, act := range invertible {
			for variant := range uint64(2) {
				p := newProblem(s, 4|2*variant)
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

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }

func widen(s []float32) []float64 {
	w := make([]float64, len(s))
	for i, v := range s {
		w[i] = float64(v)
	}
	return w
}

// One plan with masks, and one of ghost batches, called from several goroutines,
// and again and again, give the bits of the first call.
func TestConcurrentModes(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{7, 3, 35}, {60, 17, 1}} {
		forEachPath(t, func(t *testing.T, path batchnorm.Path) {
			p := newProblem(s, 2|4)
			masks := masksFor(s, 3)
			plan := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithWorkers(2))
			ghosts, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: 3}, batchnorm.WithPath(path), batchnorm.WithWorkers(2), batchnorm.WithSingleValue())
			noError(t, err)
			type planLike interface {
				Forward(batchnorm.ForwardArgs) error
				Backward(batchnorm.BackwardArgs) error
			}
			run := func(p0 planLike, mask batchnorm.Mask, batches int) (r results, err error) {
				r.y, r.mean, r.invstd = make([]float32, s.Len()), make([]float64, batches*s.Channels), make([]float64, batches*s.Channels)
				r.dx, r.dres, r.dgamma, r.dbeta = make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
				if err := p0.Forward(batchnorm.ForwardArgs{X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask, Y: r.y, Mean: r.mean, InvStd: r.invstd}); err != nil {
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
