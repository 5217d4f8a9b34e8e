// Command gomlx is batch normalization by GoMLX on its backend in Go.
package main

import (
	"fmt"
	"time"

	"github.com/gomlx/gomlx/backends"
	"github.com/gomlx/gomlx/backends/simplego"
	"github.com/gomlx/gomlx/pkg/core/graph"
	"github.com/gomlx/gomlx/pkg/core/tensors"
	"github.com/gomlx/gomlx/pkg/ml/context"
	"github.com/gomlx/gomlx/pkg/ml/layers/activations"
	"github.com/gomlx/gomlx/pkg/ml/layers/batchnorm"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func main() {
	peer.Serve(peer.Peer{Name: "GoMLX " + peer.Version("github.com/gomlx/gomlx") + ", backend go", New: newRunner})
}

type runner struct {
	problem           peer.Problem
	backend           backends.Backend
	x                 *tensors.Tensor
	training, running *context.Exec
	y, inferred       *tensors.Tensor
}

func newRunner(p peer.Problem, threads int) (peer.Runner, error) {
	var dims []int
	axis := 1
	switch p.Layout {
	case peer.NCHW:
		dims = []int{p.N, p.C, p.H, p.W}
	case peer.NHWC:
		dims, axis = []int{p.N, p.H, p.W, p.C}, 3
	default:
		return nil, peer.Unsupported("layout %s", p.Layout)
	}
	backend, err := simplego.New(fmt.Sprintf("parallelism=%d", threads))
	if err != nil {
		return nil, err
	}
	r := &runner{problem: p, backend: backend, x: tensors.FromFlatDataAndDimensions(p.X, dims...)}
	if r.training, err = r.layer(axis, true); err != nil {
		return nil, err
	}
	r.running, err = r.layer(axis, false)
	return r, err
}

// layer returns the layer, for training or inference. Each has variables of its own, as
// training changes them.
func (r *runner) layer(axis int, training bool) (*context.Exec, error) {
	ctx := context.New().Checked(false)
	vars := ctx.In(batchnorm.BatchNormalizationScopeName)
	for name, values := range map[string][]float32{
		"scale": r.problem.Gamma, "offset": r.problem.Beta, "mean": r.problem.Mean, "variance": r.problem.Var,
	} {
		vars.VariableWithValue(name, tensors.FromFlatDataAndDimensions(values, len(values)))
	}
	return context.NewExec(r.backend, ctx, func(ctx *context.Context, x *graph.Node) *graph.Node {
		ctx.SetTraining(x.Graph(), training)
		// The backend has no batch norm operation: the layer is composed of simpler ones.
		y := batchnorm.New(ctx, x, axis).Epsilon(r.problem.Epsilon).UseBackendInference(false).Done()
		if r.problem.ReLU {
			y = activations.Relu(y)
		}
		return y
	})
}

func (r *runner) Forward() (time.Duration, error)   { return r.run(r.training, &r.y) }
func (r *runner) Inference() (time.Duration, error) { return r.run(r.running, &r.inferred) }

func (r *runner) run(layer *context.Exec, to **tensors.Tensor) (time.Duration, error) {
	if *to != nil { // its memory is for the next run
		if err := (*to).FinalizeAll(); err != nil {
			return 0, err
		}
	}
	var err error
	took := peer.Time(func() { *to, err = layer.Exec1(r.x) })
	return took, err
}

// Backward is not offered. On this backend the layer takes the statistics of the batch for
// constants, so that its dx is another one.
func (r *runner) Backward() (time.Duration, error) {
	return 0, peer.Unsupported("the gradient through the statistics of the batch")
}

func (r *runner) Outputs() peer.Outputs {
	return peer.Outputs{Y: values(r.y), Inference: values(r.inferred)}
}

func values(t *tensors.Tensor) []float32 {
	if t == nil {
		return nil
	}
	return tensors.MustCopyFlatData[float32](t)
}

func (r *runner) Close() error {
	r.backend.Finalize()
	return nil
}
