package batchnorm_test

import (
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// onPlan runs operations on a plan that has run others before, with a mask.
func (p problem) onPlan(t *testing.T, plan *batchnorm.Plan, mask batchnorm.Mask) results {
	t.Helper()
	n, c := p.shape.Len(), p.shape.Channels
	tensor := func() []float32 { return make([]float32, n) }
	r := results{y: tensor(), inferred: tensor(), mean: make([]float64, c), invstd: make([]float64, c), runMean: slices.Clone(p.mean),
		runVar: slices.Clone(p.vari),
		dx:     tensor(), dres: tensor(), dgamma: make([]float32, c), dbeta: make([]float32, c)}
	noError(t, plan.Forward(batchnorm.ForwardArgs{X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask, Y: r.y, Mean: r.mean,
		InvStd:      r.invstd,
		RunningMean: r.runMean, RunningVar: r.runVar}))
	noError(t, plan.Backward(batchnorm.BackwardArgs{DY: p.dy, X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask,
		Mean: r.mean, InvStd: r.invstd,
		DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}))
	// Frozen gradients take the places of results that are compared less.
	noError(t, plan.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: p.dy, X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, Mask: mask,
		Mean: p.mean, Var: p.vari,
		DX: r.inferred, DBeta: r.runVar}))
	return r
}

// TestCallsAreForgotten: channels of which a plan took care leave no trace in its next calls.
func TestCallsAreForgotten(t *testing.T) {
	t.Parallel()
	step := uint64(1)
	if !thorough() {
		step = 3 // odd, so that usual ones are among them
	}
	for k, s := range []batchnorm.Shape{{Outer: 5, Channels: 21, Inner: 13}, {Outer: 2, Channels: 3, Inner: 5000}, {Outer: 150, Channels: 37,
		Inner: 1}, {Outer: 9, Channels: 140, Inner: 1}, {Outer: 20, Channels: 11, Inner: 3}} {
		for m, mask := range []batchnorm.Mask{{}, {Valid: valid(masksFor(s, 1)["half"], s)}} {
			for _, path := range batchnorm.Paths() {
				for schedule := range 3 {
					for a, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
						opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(act)}
						if schedule > 0 {
							opts = append(opts, batchnorm.WithExtremeSchedule(schedule == 2))
						}
						used := newPlan(t, s, opts...)
						for i := uint64(0); i < 12; i += step {
							p := newProblem(s, hasResidual|hasGammaBeta)
							p.act = act
							if i%2 == 0 {
								p.unusual(i*64 + uint64(1+k+5*a+m)) // else usual ones follow
							}
							if d := p.onPlan(t, used, mask).compare(p.onPlan(t, newPlan(t, s, opts...), mask)); d != "" {
								t.Fatalf("%v, %v, schedule %d, %v, mask %d: call %d on a plan differs from the first on another: %s", s, path, schedule, act, m, i, d)
							}
						}
					}
				}
			}
		}
	}
}

// TestMasksAreForgotten: a mask leaves no trace in the calls with another one on the same plan,
// also if it has more runs, the last of which the call before has looked at.
func TestMasksAreForgotten(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 90, Channels: 130, Inner: 1}, {Outer: 90, Channels: 21, Inner: 1},
		{Outer: 6, Channels: 5, Inner: 40}} {
		one := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
		for i := range one.Valid {
			one.Valid[i] = i > 3 && i < 30
		}
		for _, path := range batchnorm.Paths() {
			used := newPlan(t, s, batchnorm.WithPath(path))
			p := newProblem(s, hasGammaBeta)
			for i := range p.x {
				if channelOf(s, i)%2 == 0 {
					p.x[i] *= 1e20
				}
			}
			for i, mask := range []batchnorm.Mask{oneInFour(s), one, oneInFour(s)} {
				if d := p.onPlan(t, used, mask).compare(p.onPlan(t, newPlan(t, s, batchnorm.WithPath(path)), mask)); d != "" {
					t.Fatalf("%v, %v, call %d differs from the first on another plan: %s", s, path, i, d)
				}
			}
		}
	}
}
