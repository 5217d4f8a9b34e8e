package batchnorm_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// TestNoAllocations counts the allocations of calls, once the plan is made.
func TestNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	shapes := map[string]batchnorm.Shape{
		"short rows":       {Outer: 16, Channels: 32, Inner: 9},
		"long rows":        {Outer: 2, Channels: 4, Inner: 5000},
		"several segments": {Outer: 1, Channels: 2, Inner: 140000},
		"NHWC":             {Outer: 600, Channels: 64, Inner: 1},
		"few channels":     {Outer: 3000, Channels: 3, Inner: 1},
		"one channel":      {Outer: 3000, Channels: 1, Inner: 1},
		"many channels":    {Outer: 9, Channels: 900, Inner: 1},
	}
	inOrder := func(n int, task func(int)) {
		for i := range n {
			task(i)
		}
	}
	ways := map[string][]batchnorm.Option{
		"1 worker":  {batchnorm.WithWorkers(1)},
		"3 workers": {batchnorm.WithWorkers(3)},
		"smooth":    {batchnorm.WithActivation(batchnorm.SiLU), batchnorm.WithWorkers(3)},
		"executor":  {batchnorm.WithExecutor(inOrder), batchnorm.WithWorkers(3)},
		"pipelined": {batchnorm.WithExtremeSchedule(false)},
		"flat":      {batchnorm.WithExtremeSchedule(true)},
	}
	// Values beyond the range that float32 sums can handle go another way.
	scales := map[string]float64{"ordinary": 1, "huge": 1e30}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for shapeName, s := range shapes {
			for scaleName, scale := range scales {
				c := newAllocCase(s, scale)
				for wayName, way := range ways {
					t.Run(shapeName+"/"+scaleName+"/"+wayName, func(t *testing.T) {
						options := append([]batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.ReLU)}, way...)
						c.count(t, newPlan(t, s, options...))
					})
				}
			}
		}
	})
}

// allocCase is the arguments of every operation.
type allocCase struct {
	forward   batchnorm.ForwardArgs
	inference batchnorm.InferenceArgs
	backward  batchnorm.BackwardArgs
}

func newAllocCase(s batchnorm.Shape, scale float64) *allocCase {
	n, channels := s.Len(), s.Channels
	x, dy, residual := gen.Uniform(1, n, -scale, scale), gen.Uniform(2, n, -1, 1), gen.Uniform(3, n, -1, 1)
	gamma, beta := gen.Uniform(4, channels, -2, 2), gen.Uniform(5, channels, -1, 1)
	mean, invstd := make([]float64, channels), make([]float64, channels)
	runningMean, runningVar := make([]float32, channels), make([]float32, channels)
	return &allocCase{
		batchnorm.ForwardArgs{
			X: x, Residual: residual, Gamma: gamma, Beta: beta, Y: make([]float32, n), Mean: mean, InvStd: invstd,
			RunningMean: runningMean, RunningVar: runningVar,
		},
		batchnorm.InferenceArgs{
			X: x, Residual: residual, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar, Y: make([]float32, n),
		},
		batchnorm.BackwardArgs{
			DY: dy, X: x, Residual: residual, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
			DX: make([]float32, n), DResidual: make([]float32, n), DGamma: make([]float32, channels), DBeta: make([]float32, channels),
		},
	}
}

// count expects that no operation allocates.
func (c *allocCase) count(t *testing.T, p *batchnorm.Plan) {
	t.Helper()
	runs := 10 // allocations that are rarer than that are the runtime's
	if !thorough() {
		runs = 2
	}
	expectNoAllocations(t, runs, "forward", func() error { return p.Forward(c.forward) })
	expectNoAllocations(t, runs, "inference", func() error { return p.Inference(c.inference) })
	expectNoAllocations(t, runs, "backward", func() error { return p.Backward(c.backward) })
}

// expectNoAllocations counts the allocations of a call, but for the first.
func expectNoAllocations(t *testing.T, runs int, name string, call func() error) {
	t.Helper()
	var failed error
	measure := func() float64 {
		return testing.AllocsPerRun(runs, func() {
			if err := call(); err != nil {
				failed = err
			}
		})
	}
	allocations := measure()
	if allocations != 0 { // or something else in the process allocates, like the start of a goroutine under load
		allocations = measure()
	}
	noError(t, failed)
	if allocations != 0 {
		t.Errorf("%s allocates %v times", name, allocations)
	}
}

// TestNoAllocationsInModes is the same for all other operations, with and
// without a mask, and for ghost batches.
func TestNoAllocationsInModes(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	inOrder := func(n int, task func(int)) {
		for i := range n {
			task(i)
		}
	}
	ways := [][]batchnorm.Option{
		{batchnorm.WithWorkers(1)}, {batchnorm.WithWorkers(3)}, {batchnorm.WithExecutor(inOrder), batchnorm.WithWorkers(3)},
	}
	for _, s := range []batchnorm.Shape{
		{Outer: 16, Channels: 32, Inner: 9}, {Outer: 2, Channels: 4, Inner: 5000},
		{Outer: 600, Channels: 64, Inner: 1}, {Outer: 3000, Channels: 1, Inner: 1},
	} {
		random := make([]bool, s.PerChannel())
		for i := range random {
			random[i] = i*7919%11 < 6
		}
		lengths := make([]int, s.Outer)
		for i := range lengths {
			lengths[i] = s.Inner - i%2
		}
		masks := []batchnorm.Mask{{}, {Lengths: lengths}, {Valid: random}}
		for k, way := range ways {
			for m, mask := range masks {
				for _, scale := range []float32{1, 1e30} {
					p := newPlan(t, s, way...)
					// 1e30 sends channels the way in float64.
					for _, op := range operations {
						args := op.args(s)
						if x := field(args, "X"); x.IsValid() {
							for i := range s.Len() {
								x.Index(i).SetFloat(x.Index(i).Float() * float64(scale))
							}
						}
						if f := field(args, "Mask"); f.IsValid() {
							f.Set(reflect.ValueOf(mask))
						} else if m > 0 {
							continue
						}
						name := fmt.Sprintf("%v, way %d, mask %d, %s of %g", s, k, m, op.name, scale)
						expectNoAllocations(t, 2, name, op.bind(p, args))
					}
				}
				g, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: max(2, s.Outer*2/5)},
					append(way, batchnorm.WithSingleValue())...)
				noError(t, err)
				c := newAllocCase(s, 1)
				c.forward.Mean, c.forward.InvStd = make([]float64, g.Batches()*s.Channels), make([]float64, g.Batches()*s.Channels)
				c.backward.Mean, c.backward.InvStd = c.forward.Mean, c.forward.InvStd
				c.forward.Mask, c.backward.Mask = mask, mask
				name := fmt.Sprintf("%v, way %d, mask %d, ghost batches", s, k, m)
				expectNoAllocations(t, 2, name, func() error { return g.Forward(c.forward) })
				expectNoAllocations(t, 2, name, func() error { return g.Backward(c.backward) })
			}
		}
		moments := []batchnorm.Moments{{Count: 1, Mean: make([]float64, 3), M2: make([]float64, 3)},
			{Count: 2, Mean: make([]float64, 3), M2: make([]float64, 3)}}
		expectNoAllocations(t, 2, "MergeMoments", func() error { return batchnorm.MergeMoments(&moments[0], moments) })
		sums := []batchnorm.GradSums{{Count: 1, G: make([]float64, 3), GD: make([]float64, 3)}, {Count: 2, G: make([]float64, 3), GD: make([]float64, 3)}}
		expectNoAllocations(t, 2, "MergeGradSums", func() error { return batchnorm.MergeGradSums(&sums[0], sums) })
	}
}

// TestNoAllocationsOfKinds: data of any kind, one after another on the same plan, allocate nothing
// after the first call of each.
func TestNoAllocationsOfKinds(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	ways := map[string][]batchnorm.Option{
		"relu":      {batchnorm.WithActivation(batchnorm.ReLU)},
		"pipelined": {batchnorm.WithExtremeSchedule(false)},
		"flat":      {batchnorm.WithActivation(batchnorm.SiLU), batchnorm.WithExtremeSchedule(true)},
	}
	for _, s := range []batchnorm.Shape{{Outer: 140, Channels: 70, Inner: 1}, {Outer: 20, Channels: 520, Inner: 1},
		{Outer: 300, Channels: 5, Inner: 3}, {Outer: 6, Channels: 20, Inner: 9}, {Outer: 2, Channels: 12, Inner: 2500}} {
		mask := make([]bool, s.PerChannel())
		for i := range mask {
			mask[i] = i*7919%11 < 6
		}
		var cases []*allocCase
		for _, k := range kinds.List() {
			c := newAllocCase(s, 1)
			x, dy := slices.Clone(c.forward.X), slices.Clone(c.backward.DY)
			gamma, beta := slices.Clone(c.forward.Gamma), slices.Clone(c.forward.Beta)
			k.Apply(s.Outer, s.Channels, s.Inner, x, dy, gamma, beta)
			c.forward.X, c.forward.Gamma, c.forward.Beta = x, gamma, beta
			c.backward.X, c.backward.DY, c.backward.Gamma, c.backward.Beta = x, dy, gamma, beta
			masked := *c
			masked.forward.Mask, masked.backward.Mask = batchnorm.Mask{Valid: mask}, batchnorm.Mask{Valid: mask}
			cases = append(cases, c, &masked)
		}
		for name, way := range ways {
			p := newPlan(t, s, way...)
			expectNoAllocations(t, 1, fmt.Sprintf("%v, %s", s, name), func() error {
				for _, c := range cases {
					if err := p.Forward(c.forward); err != nil {
						return err
					}
					if err := p.Backward(c.backward); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
}
