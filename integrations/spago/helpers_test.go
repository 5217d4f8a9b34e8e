package spagobn

import (
	"math/rand/v2"
	"testing"

	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/mat/float"
	"github.com/nlpodyssey/spago/nn"
	spago "github.com/nlpodyssey/spago/nn/normalization/batchnorm"
)

// problem is a batch norm with data, whose loss is the sum of y*dy.
type problem struct {
	n, features    int
	x, dy          []float32
	gamma, beta    []float32
	mean, variance []float32 // running statistics
	epsilon        float64
	momentum       float64
	activation     string
	inference      bool
}

// random returns a problem with data of the given mean and deviation 1.
func random(n, features int, offset float64) problem {
	r := rand.New(rand.NewPCG(2, uint64(n*features)))
	normal := func(n int, mean, scale float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(mean + scale*r.NormFloat64())
		}
		return v
	}
	p := problem{
		n: n, features: features, x: normal(n*features, offset, 1), dy: normal(n*features, 0, 1),
		gamma: normal(features, 1, 0.3), beta: normal(features, 0, 0.5), mean: normal(features, offset, 0.5),
		epsilon: 1e-5, momentum: 0.9,
	}
	for range features {
		p.variance = append(p.variance, float32(0.5+r.Float64()))
	}
	return p
}

// result is the outcome of a forward and a backward pass.
type result struct {
	y, dx, dgamma, dbeta, mean, variance []float32
}

func vector[T float.DType](v []float32) *mat.Dense[T] {
	return mat.NewDense[T](mat.WithBacking(append([]float32(nil), v...)))
}

// layer returns the problem's layer.
func layer[T float.DType](p problem) *Model {
	m := New[T](p.features)
	m.W, m.B = nn.NewParam(vector[T](p.gamma)), nn.NewParam(vector[T](p.beta))
	m.Mean, m.Variance = nn.Buf(vector[T](p.mean)), nn.Buf(vector[T](p.variance))
	m.Epsilon, m.Momentum, m.Activation = p.epsilon, p.momentum, p.activation
	return m
}

// vectors returns x as spaGO has it.
func vectors[T float.DType](p problem) []mat.Tensor {
	xs := make([]mat.Tensor, p.n)
	for i := range xs {
		v := vector[T](p.x[i*p.features:][:p.features])
		v.SetRequiresGrad(true)
		xs[i] = v
	}
	return xs
}

// run runs the layer forward and backward.
func run[T float.DType](t *testing.T, p problem) result {
	t.Helper()
	m := layer[T](p)
	pass := m.ForwardT
	if p.inference {
		pass = m.Forward
	}
	xs := vectors[T](p)
	r := backward[T](t, p, xs, pass(xs...), m.W, m.B)
	r.mean, r.variance = mat.Data[float32](m.Mean.Value()), mat.Data[float32](m.Variance.Value())
	return r
}

// theirs is run with spaGO's layer. Its running statistics are not returned.
func theirs[T float.DType](t *testing.T, p problem) result {
	t.Helper()
	m := spago.New[T](p.features)
	m.W, m.B = nn.NewParam(vector[T](p.gamma)), nn.NewParam(vector[T](p.beta))
	xs := vectors[T](p)
	return backward[T](t, p, xs, m.ForwardT(xs...), m.W, m.B)
}

// backward runs the backward pass.
func backward[T float.DType](t *testing.T, p problem, xs, ys []mat.Tensor, w, b *nn.Param) (r result) {
	t.Helper()
	if len(ys) != p.n {
		t.Fatalf("%d vectors become %d", p.n, len(ys))
	}
	for i, y := range ys {
		y.AccGrad(vector[T](p.dy[i*p.features:][:p.features]))
		r.y = append(r.y, mat.Data[float32](y.Value())...)
	}
	check(t, ag.Backward(ys...))
	for _, x := range xs {
		r.dx = append(r.dx, mat.Data[float32](x.Grad())...)
	}
	r.dgamma, r.dbeta = mat.Data[float32](w.Grad()), mat.Data[float32](b.Grad())
	return r
}

// truth is the result in float64.
type truth struct {
	y, dx, dgamma, dbeta, mean, variance []float64
}

func (p problem) reference() truth {
	name := p.activation
	if name == "" {
		name = "identity"
	}
	r := reference.Problem{
		Outer: p.n, Channels: p.features, Inner: 1, Epsilon: p.epsilon, Activation: name, X: p.x, Gamma: p.gamma, Beta: p.beta, DY: p.dy,
	}
	if p.inference {
		g := reference.FrozenBackward(r, p.mean, p.variance)
		return truth{reference.Inference(r, p.mean, p.variance), g.DX, g.DGamma, g.DBeta, wide(p.mean), wide(p.variance)}
	}
	f, g := reference.Forward(r), reference.Backward(r)
	out := truth{y: f.Y, dx: g.DX, dgamma: g.DGamma, dbeta: g.DBeta}
	for i := range p.features {
		out.mean = append(out.mean, p.momentum*float64(p.mean[i])+(1-p.momentum)*f.Mean[i])
		out.variance = append(out.variance, p.momentum*float64(p.variance[i])+(1-p.momentum)*f.Var[i])
	}
	return out
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wide(v []float32) []float64 {
	w := make([]float64, len(v))
	for i := range v {
		w[i] = float64(v[i])
	}
	return w
}

// near compares all of a result with the truth.
func (r result) near(t *testing.T, want truth, bound float64) {
	t.Helper()
	for _, s := range []struct {
		name string
		got  []float32
		want []float64
	}{
		{"y", r.y, want.y},
		{"dx", r.dx, want.dx},
		{"gradient by W", r.dgamma, want.dgamma},
		{"gradient by B", r.dbeta, want.dbeta},
		{"running mean", r.mean, want.mean},
		{"running variance", r.variance, want.variance},
	} {
		if d := compare.Distance(s.got, s.want); !(d <= bound) {
			t.Errorf("%s is off by %.3g, want at most %.3g", s.name, d, bound)
		}
	}
}
