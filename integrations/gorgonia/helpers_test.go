package gorgoniabn

import (
	"math/rand/v2"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/fusedbn/batchnorm/internal/reference"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// problem is a batch norm with data, whose loss is the sum of y*dy.
type problem struct {
	dims        tensor.Shape
	scaleShape  tensor.Shape // nil: (1, C, 1, ...)
	epsilon     float64
	momentum    float64
	x, dy       []float32
	gamma, beta []float32
	mean, vari  []float32 // running statistics before the pass; nil: 0 and 1
	activation  batchnorm.Activation
	name        string // of the activation, for the reference
	eval, lisp  bool
	opts        []batchnorm.Option
}

// random returns a problem with data of the given mean and deviation 1.
func random(dims tensor.Shape, offset float64) problem {
	r := rand.New(rand.NewPCG(1, uint64(dims.TotalSize())))
	normal := func(n int, mean, scale float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(mean + scale*r.NormFloat64())
		}
		return v
	}
	n, c := dims.TotalSize(), dims[1]
	p := problem{
		dims: dims, epsilon: 1e-5, momentum: 0.1, x: normal(n, offset, 1), dy: normal(n, 0, 1), gamma: normal(c, 1, 0.3), beta: normal(c, 0, 0.5),
		mean: normal(c, offset, 0.5), name: "identity",
	}
	for range c {
		p.vari = append(p.vari, float32(0.5+r.Float64()))
	}
	return p
}

func (p problem) perChannel() tensor.Shape {
	if p.scaleShape != nil {
		return p.scaleShape
	}
	s := make(tensor.Shape, len(p.dims))
	for i := range s {
		s[i] = 1
	}
	s[1] = p.dims[1]
	return s
}

// result is the outcome of a forward and a backward pass.
type result struct {
	y, dx, dgamma, dbeta, mean, vari []float32
}

// batchNorm is gorgonia.BatchNorm or this package's.
type batchNorm func(p problem, x, scale, bias *gorgonia.Node) (*gorgonia.Node, operation, error)

// operation has the methods that both operations have.
type operation interface {
	SetTraining(bool) error
	Stats() (tensor.Tensor, tensor.Tensor)
	SetStats(mean, variance tensor.Tensor) error
}

func fused(p problem, x, scale, bias *gorgonia.Node) (*gorgonia.Node, operation, error) {
	opts := append([]batchnorm.Option{batchnorm.WithActivation(p.activation)}, p.opts...)
	y, _, _, op, err := BatchNorm(x, scale, bias, p.momentum, p.epsilon, opts...)
	return y, op, err
}

// theirs applies gorgonia.BatchNorm.
func theirs(p problem, x, scale, bias *gorgonia.Node) (*gorgonia.Node, operation, error) {
	y, _, _, op, err := gorgonia.BatchNorm(x, scale, bias, p.momentum, p.epsilon)
	return y, op, err
}

func dense(shape tensor.Shape, v []float32) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(append([]float32(nil), v...)))
}

func node(g *gorgonia.ExprGraph, name string, shape tensor.Shape, v []float32) *gorgonia.Node {
	return gorgonia.NewTensor(g, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name),
		gorgonia.WithValue(dense(shape, v)))
}

// run builds the graph, and runs it forward and backward.
func (p problem) run(t *testing.T, apply batchNorm) result {
	t.Helper()
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
	y, op, err := apply(p, x, scale, bias)
	check(t, err)
	var yv gorgonia.Value
	gorgonia.Read(y, &yv)
	loss := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(y, node(g, "dy", p.dims, p.dy)))))

	var m gorgonia.VM
	var opts []gorgonia.VMOpt
	if p.eval {
		opts = append(opts, gorgonia.EvalMode())
	}
	if p.lisp {
		m = gorgonia.NewLispMachine(g, opts...)
	} else {
		_, err = gorgonia.Grad(loss, x, scale, bias)
		check(t, err)
		m = gorgonia.NewTapeMachine(g, append(opts, gorgonia.BindDualValues(x, scale, bias))...)
	}
	defer m.Close()
	if p.mean != nil {
		check(t, op.SetStats(dense(tensor.Shape{len(p.mean)}, p.mean), dense(tensor.Shape{len(p.vari)}, p.vari)))
	}
	check(t, m.RunAll())

	values := func(v gorgonia.Value, err error) []float32 {
		t.Helper()
		check(t, err)
		f, err := floats("result", v)
		check(t, err)
		return f
	}
	mean, vari := op.Stats()
	return result{
		y: values(yv, nil), dx: values(x.Grad()), dgamma: values(scale.Grad()), dbeta: values(bias.Grad()),
		mean: values(mean, nil), vari: values(vari, nil),
	}
}

// truth is the result in float64.
type truth struct {
	y, dx, dgamma, dbeta, mean, vari []float64
}

func (p problem) reference() truth {
	n, c := p.dims[0], p.dims[1]
	r := reference.Problem{
		Outer: n, Channels: c, Inner: p.dims.TotalSize() / n / c, Epsilon: p.epsilon, Activation: p.name,
		X: p.x, Gamma: p.gamma, Beta: p.beta, DY: p.dy,
	}
	mean, vari := p.mean, p.vari
	if mean == nil {
		mean, vari = make([]float32, c), make([]float32, c)
		for i := range vari {
			vari[i] = 1
		}
	}
	var out truth
	if p.eval {
		g := reference.FrozenBackward(r, mean, vari)
		out = truth{y: reference.Inference(r, mean, vari), dx: g.DX, dgamma: g.DGamma, dbeta: g.DBeta}
		for i := range c {
			out.mean, out.vari = append(out.mean, float64(mean[i])), append(out.vari, float64(vari[i]))
		}
		return out
	}
	f, g := reference.Forward(r), reference.Backward(r)
	out = truth{y: f.Y, dx: g.DX, dgamma: g.DGamma, dbeta: g.DBeta}
	values := float64(r.Outer * r.Inner)
	for i := range c {
		out.mean = append(out.mean, (1-p.momentum)*float64(mean[i])+p.momentum*f.Mean[i])
		out.vari = append(out.vari, (1-p.momentum)*float64(vari[i])+p.momentum*f.Var[i]*values/(values-1))
	}
	return out
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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
		{"dscale", r.dgamma, want.dgamma},
		{"dbias", r.dbeta, want.dbeta},
		{"running mean", r.mean, want.mean},
		{"running variance", r.vari, want.vari},
	} {
		if d := compare.Distance(s.got, s.want); !(d <= bound) {
			t.Errorf("%s is off by %.3g, want at most %.3g", s.name, d, bound)
		}
	}
}
