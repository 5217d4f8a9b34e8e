package gorgoniabn

import (
	"errors"
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	"github.com/fusedbn/batchnorm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// errSecond is the error of second derivatives.
var errSecond = errors.New("gorgoniabn: the gradient of batch normalization has no derivative here")

// gradientOp computes the gradient by x from x, scale, bias, y and the gradient
// by y. The gradients by scale and bias, which come with it, stay in the
// operation for a parameterOp to return.
type gradientOp struct {
	of            *Op
	dgamma, dbeta []float32
}

func newGradient(op *Op) *gradientOp {
	return &gradientOp{op, make([]float32, len(op.mean)), make([]float32, len(op.mean))}
}

func (g *gradientOp) Arity() int { return 5 }

func (g *gradientOp) Type() hm.Type {
	t := tensorType(g.of.dims)
	return hm.NewFnType(t, tensorType(len(g.of.scale)), tensorType(len(g.of.bias)), t, t, t)
}

func (g *gradientOp) InferShape(inputs ...gorgonia.DimSizer) (tensor.Shape, error) {
	return firstShape(g, inputs)
}

func (g *gradientOp) ReturnsPtr() bool     { return true }
func (g *gradientOp) CallsExtern() bool    { return false }
func (g *gradientOp) OverwritesInput() int { return -1 }

func (g *gradientOp) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%v#%d", g, g.of.id) }
func (g *gradientOp) Hashcode() uint32      { return hashcode(g) }
func (g *gradientOp) String() string        { return fmt.Sprintf("Gradient of %v", g.of) }

func (g *gradientOp) Do(inputs ...gorgonia.Value) (gorgonia.Value, error) {
	return g.UsePreallocDo(nil, inputs...)
}

func (g *gradientOp) UsePreallocDo(prealloc gorgonia.Value, inputs ...gorgonia.Value) (gorgonia.Value, error) {
	if len(inputs) != g.Arity() {
		return nil, fmt.Errorf("gorgoniabn: %v has %d inputs, needs %d", g, len(inputs), g.Arity())
	}
	a, err := g.of.operands(inputs[0], inputs[1], inputs[2])
	if err != nil {
		return nil, err
	}
	dy, err := floats("gradient", inputs[4])
	if err != nil {
		return nil, err
	}
	out, dx := output(prealloc, a.shape, a.x, a.gamma, a.beta, dy)
	if g.of.training {
		err = a.plan.Backward(batchnorm.BackwardArgs{
			DY: dy, X: a.x, Gamma: a.gamma, Beta: a.beta, Mean: g.of.mean, InvStd: g.of.invstd,
			DX: dx, DGamma: g.dgamma, DBeta: g.dbeta,
		})
	} else {
		err = a.plan.FrozenBackward(batchnorm.FrozenBackwardArgs{
			DY: dy, X: a.x, Gamma: a.gamma, Beta: a.beta, Mean: g.of.runningMean.Float32s(), Var: g.of.runningVar.Float32s(),
			DX: dx, DGamma: g.dgamma, DBeta: g.dbeta,
		})
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (g *gradientOp) DiffWRT(inputs int) []bool { return make([]bool, inputs) }

func (g *gradientOp) SymDiff(gorgonia.Nodes, *gorgonia.Node, *gorgonia.Node) (gorgonia.Nodes, error) {
	return nil, errSecond
}

func (g *gradientOp) DoDiff(gorgonia.ExecutionContext, gorgonia.Nodes, *gorgonia.Node) error {
	return errSecond
}

// parameterOp returns the gradient by scale or by bias. Its input is the
// gradient by x: the machine has to compute that first.
type parameterOp struct {
	of    *gradientOp
	name  string
	shape tensor.Shape
	from  []float32
}

func (p *parameterOp) Arity() int { return 1 }

func (p *parameterOp) Type() hm.Type {
	return hm.NewFnType(tensorType(p.of.of.dims), tensorType(len(p.shape)))
}

func (p *parameterOp) InferShape(...gorgonia.DimSizer) (tensor.Shape, error) {
	return p.shape.Clone(), nil
}

func (p *parameterOp) ReturnsPtr() bool     { return true }
func (p *parameterOp) CallsExtern() bool    { return false }
func (p *parameterOp) OverwritesInput() int { return -1 }

func (p *parameterOp) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%v#%d", p, p.of.of.id) }
func (p *parameterOp) Hashcode() uint32      { return hashcode(p) }
func (p *parameterOp) String() string        { return fmt.Sprintf("Gradient of %v by %s", p.of.of, p.name) }

func (p *parameterOp) Do(inputs ...gorgonia.Value) (gorgonia.Value, error) {
	return p.UsePreallocDo(nil, inputs...)
}

func (p *parameterOp) UsePreallocDo(prealloc gorgonia.Value, _ ...gorgonia.Value) (gorgonia.Value, error) {
	out, v := output(prealloc, p.shape)
	copy(v, p.from)
	return out, nil
}

func (p *parameterOp) DiffWRT(inputs int) []bool { return make([]bool, inputs) }

func (p *parameterOp) SymDiff(gorgonia.Nodes, *gorgonia.Node, *gorgonia.Node) (gorgonia.Nodes, error) {
	return nil, errSecond
}

func (p *parameterOp) DoDiff(gorgonia.ExecutionContext, gorgonia.Nodes, *gorgonia.Node) error {
	return errSecond
}
