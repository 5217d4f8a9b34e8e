// Command spago is batch normalization by spaGO, which takes a batch as one
// vector of channels per sample.
package main

import (
	"math"
	"time"

	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/nn"
	"github.com/nlpodyssey/spago/nn/normalization/batchnorm"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func main() {
	peer.Serve(peer.Peer{Name: "spaGO " + peer.Version("github.com/nlpodyssey/spago"), New: newRunner})
}

// epsilon is fixed in spaGO, which adds it to the deviation instead of the
// variance, and to the number of samples.
const epsilon = 1e-5

type runner struct {
	problem     peer.Problem
	model       *batchnorm.Model
	x, dy       []mat.Tensor
	y, inferred []mat.Tensor
}

func newRunner(p peer.Problem, threads int) (peer.Runner, error) {
	if _, _, inner := p.Shape(); inner != 1 || p.Layout == peer.NCHW8c {
		return nil, peer.Unsupported("layout %s of %dx%d: only vectors of channels are", p.Layout, p.H, p.W)
	}
	if p.Epsilon != epsilon {
		return nil, peer.Unsupported("epsilon %v: it is %v", p.Epsilon, epsilon)
	}
	r := &runner{problem: p, model: batchnorm.New[float32](p.C)}
	mat.SetData(r.model.W.Matrix, p.Gamma)
	mat.SetData(r.model.B.Matrix, p.Beta)
	for i := 0; i < len(p.X); i += p.C {
		r.x = append(r.x, vector(p.X[i:i+p.C], true))
		r.dy = append(r.dy, vector(p.DY[i:i+p.C], false))
	}
	return r, nil
}

func vector(values []float32, grad bool) *mat.Dense[float32] {
	return mat.NewDense[float32](mat.WithBacking(values), mat.WithGrad(grad))
}

func (r *runner) Forward() (time.Duration, error) {
	return peer.Time(func() { r.y = r.finish(r.model.ForwardT(r.x...)) }), nil
}

func (r *runner) Inference() (time.Duration, error) {
	deviation := make([]float32, r.problem.C)
	for c, v := range r.problem.Var {
		deviation[c] = float32(math.Sqrt(float64(v)))
	}
	// Forward with the batch's statistics has changed the running ones.
	r.model.Mean = nn.Buf(vector(r.problem.Mean, false))
	r.model.StdDev = nn.Buf(vector(deviation, false))
	return peer.Time(func() { r.inferred = r.finish(r.model.Forward(r.x...)) }), nil
}

// finish adds ReLU and waits for the goroutines that compute the values.
func (r *runner) finish(ys []mat.Tensor) []mat.Tensor {
	for i := range ys {
		if r.problem.ReLU {
			ys[i] = ag.ReLU(ys[i])
		}
	}
	for _, y := range ys {
		y.Value()
	}
	return ys
}

func (r *runner) Backward() (time.Duration, error) {
	// Gradients add up in the graph of a forward pass, so that each backward pass has a
	// forward pass of its own.
	if _, err := r.Forward(); err != nil {
		return 0, err
	}
	for _, t := range append([]mat.Tensor{r.model.W, r.model.B}, r.x...) {
		t.ZeroGrad()
	}
	var err error
	took := peer.Time(func() {
		for i, y := range r.y {
			y.AccGrad(r.dy[i])
		}
		err = ag.Backward(r.y...)
	})
	return took, err
}

func (r *runner) Outputs() peer.Outputs {
	var o peer.Outputs
	for i := range r.x {
		if r.y != nil {
			o.Y = append(o.Y, mat.Data[float32](r.y[i].Value())...)
		}
		if r.inferred != nil {
			o.Inference = append(o.Inference, mat.Data[float32](r.inferred[i].Value())...)
		}
		if g := r.x[i].Grad(); g != nil {
			o.DX = append(o.DX, mat.Data[float32](g)...)
		}
	}
	if g := r.model.W.Grad(); g != nil {
		o.DGamma, o.DBeta = mat.Data[float32](g), mat.Data[float32](r.model.B.Grad())
	}
	return o
}

func (r *runner) Close() error { return nil }
