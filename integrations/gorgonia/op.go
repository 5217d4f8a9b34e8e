package gorgoniabn

import (
	"fmt"
	"hash"
	"hash/fnv"
	"slices"
	"sync/atomic"

	"github.com/chewxy/hm"
	"github.com/fusedbn/batchnorm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Op is batch normalization of one node of a graph, with its running statistics
// and its mode. [BatchNorm] makes it.
//
// It is for one machine at a time, as the graph is.
type Op struct {
	id       uint64
	dims     int // of x
	scale    tensor.Shape
	bias     tensor.Shape
	momentum float64
	epsilon  float64
	plans    *batchnorm.Plans

	training                bool
	runningMean, runningVar *tensor.Dense // (C)
	mean, invstd            []float64     // of the last training forward pass
}

// Each operation belongs to one node. Gorgonia takes nodes with equal hashes for
// the same node, so each operation has a number, and writes it into its hash.
var lastID atomic.Uint64

// BatchNorm applies batch normalization to x, whose dimensions are (N, C) or
// (N, C, ...), with a scale and a shift for each channel:
//
//	y = act((x - mean)/sqrt(variance + epsilon)*scale + bias)
//
// Momentum is the weight of the new batch in the running statistics, as it is in
// gorgonia.BatchNorm, and the running variance is the unbiased one. Scale and
// bias have C elements, in the shape (C) or (1, C, 1, ...). For nil a node is
// made and returned, which begins as 1 or 0. The options are those of
// batchnorm.NewPlan: batchnorm.WithActivation fuses an activation,
// batchnorm.WithWorkers computes on several goroutines. An option that sets
// momentum or epsilon replaces the argument.
//
// The operation is in training mode, with running mean 0 and running variance
// 1. A machine that runs the graph sets the mode: training, or evaluation with
// gorgonia.EvalMode.
func BatchNorm(x, scale, bias *gorgonia.Node, momentum, epsilon float64, opts ...batchnorm.Option) (
	y, gamma, beta *gorgonia.Node, op *Op, err error,
) {
	if x == nil {
		return nil, nil, nil, nil, fmt.Errorf("gorgoniabn: x is nil")
	}
	shape := x.Shape()
	if len(shape) < 2 {
		return nil, nil, nil, nil, fmt.Errorf("gorgoniabn: x has the shape %v, needs at least 2 dimensions (N, C)", shape)
	}
	if _, err := batchnorm.NCHW(shape...); err != nil {
		return nil, nil, nil, nil, fmt.Errorf("gorgoniabn: x: %w", err)
	}
	channels := shape[1]
	perChannel := make([]int, len(shape)) // (1, C, 1, ...)
	for i := range perChannel {
		perChannel[i] = 1
	}
	perChannel[1] = channels
	if scale == nil {
		scale = gorgonia.NewTensor(x.Graph(), tensor.Float32, len(shape), gorgonia.WithShape(perChannel...),
			gorgonia.WithName(x.Name()+"_γ"), gorgonia.WithInit(gorgonia.Ones()))
	}
	if bias == nil {
		bias = gorgonia.NewTensor(x.Graph(), tensor.Float32, len(shape), gorgonia.WithShape(perChannel...),
			gorgonia.WithName(x.Name()+"_β"), gorgonia.WithInit(gorgonia.Zeroes()))
	}
	for _, n := range []struct {
		name string
		node *gorgonia.Node
	}{{"x", x}, {"scale", scale}, {"bias", bias}} {
		if dt := n.node.Dtype(); dt != tensor.Float32 {
			return nil, nil, nil, nil, fmt.Errorf("gorgoniabn: %s is %v, must be float32", n.name, dt)
		}
		if s := n.node.Shape(); n.node != x && !slices.Equal(s, perChannel) && !slices.Equal(s, []int{channels}) {
			return nil, nil, nil, nil, fmt.Errorf("gorgoniabn: %s has the shape %v, x of the shape %v needs (%d) or %v",
				n.name, s, shape, channels, tensor.Shape(perChannel))
		}
	}

	opts = append([]batchnorm.Option{batchnorm.WithMomentum(batchnorm.NewWeight(momentum)), batchnorm.WithEpsilon(epsilon)}, opts...)
	plans, err := batchnorm.NewPlans(opts...)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	op = &Op{
		id: lastID.Add(1), dims: len(shape), scale: scale.Shape(), bias: bias.Shape(), momentum: momentum, epsilon: epsilon,
		plans: plans, training: true,
		runningMean: tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(channels)),
		runningVar:  tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(channels)),
		mean:        make([]float64, channels), invstd: make([]float64, channels),
	}
	if err := op.Reset(); err != nil {
		return nil, nil, nil, nil, err
	}
	y, err = gorgonia.ApplyOp(op, x, scale, bias)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return y, scale, bias, op, nil
}

// SetTraining sets training or evaluation mode. Machines call it for all
// operations of their graph when they are made, with false if they have
// gorgonia.EvalMode. The running statistics stay.
func (op *Op) SetTraining(isTraining bool) error {
	op.training = isTraining
	return nil
}

// Reset sets the running mean to 0 and the running variance to 1.
func (op *Op) Reset() error {
	op.runningMean.Zero()
	return op.runningVar.Memset(float32(1))
}

// Stats returns the running mean and the running variance, of the shape (C).
// They are the operation's own: the next training pass changes them.
func (op *Op) Stats() (runningMean, runningVariance tensor.Tensor) {
	return op.runningMean, op.runningVar
}

// SetStats copies the given values to the running statistics. Both are float32
// of the shape (C).
func (op *Op) SetStats(runningMean, runningVariance tensor.Tensor) error {
	var values [2][]float32
	for i, s := range []struct {
		name string
		t    tensor.Tensor
	}{{"running mean", runningMean}, {"running variance", runningVariance}} {
		v, err := floats(s.name, s.t)
		if err != nil {
			return err
		}
		if shape := s.t.Shape(); !slices.Equal(shape, op.runningMean.Shape()) {
			return fmt.Errorf("gorgoniabn: %s has the shape %v, must be %v", s.name, shape, op.runningMean.Shape())
		}
		values[i] = v
	}
	copy(op.runningMean.Float32s(), values[0])
	copy(op.runningVar.Float32s(), values[1])
	return nil
}

// Arity is 3: x, scale and bias.
func (op *Op) Arity() int { return 3 }

// Type is Tensor-d a → Tensor-s a → Tensor-b a → Tensor-d a, with the dimensions
// of x, of scale and of bias.
func (op *Op) Type() hm.Type {
	t := tensorType(op.dims)
	return hm.NewFnType(t, tensorType(len(op.scale)), tensorType(len(op.bias)), t)
}

func tensorType(dims int) hm.Type { return gorgonia.TensorType{Dims: dims, Of: hm.TypeVariable('a')} }

// InferShape returns the shape of x.
func (op *Op) InferShape(inputs ...gorgonia.DimSizer) (tensor.Shape, error) {
	return firstShape(op, inputs)
}

func firstShape(op gorgonia.Op, inputs []gorgonia.DimSizer) (tensor.Shape, error) {
	shapes, err := gorgonia.DimSizersToShapes(inputs)
	if err != nil {
		return nil, err
	}
	if len(shapes) != op.Arity() {
		return nil, fmt.Errorf("gorgoniabn: %v has %d inputs, needs %d", op, len(shapes), op.Arity())
	}
	return shapes[0].Clone(), nil
}

// ReturnsPtr is true: the result is memory of its own.
func (op *Op) ReturnsPtr() bool { return true }

// CallsExtern is false: nothing outside Go is called.
func (op *Op) CallsExtern() bool { return false }

// OverwritesInput is -1: no input is overwritten.
func (op *Op) OverwritesInput() int { return -1 }

// WriteHash writes the name and the number of the operation, which no other has.
func (op *Op) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%v#%d", op, op.id) }

// Hashcode returns the hash as a number.
func (op *Op) Hashcode() uint32 { return hashcode(op) }

func hashcode(op gorgonia.Op) uint32 {
	h := fnv.New32a()
	op.WriteHash(h)
	return h.Sum32()
}

// String names the operation with its momentum and epsilon.
func (op *Op) String() string { return fmt.Sprintf("FusedBatchNorm{%v, %v}", op.momentum, op.epsilon) }

// Do computes y from x, scale and bias.
func (op *Op) Do(inputs ...gorgonia.Value) (gorgonia.Value, error) {
	return op.UsePreallocDo(nil, inputs...)
}

// UsePreallocDo computes y in prealloc, if that is a dense float32 tensor of the
// shape of x, and otherwise in new memory.
func (op *Op) UsePreallocDo(prealloc gorgonia.Value, inputs ...gorgonia.Value) (gorgonia.Value, error) {
	if len(inputs) != op.Arity() {
		return nil, fmt.Errorf("gorgoniabn: %v has %d inputs, needs %d", op, len(inputs), op.Arity())
	}
	a, err := op.operands(inputs[0], inputs[1], inputs[2])
	if err != nil {
		return nil, err
	}
	out, y := output(prealloc, a.shape, a.x, a.gamma, a.beta)
	if op.training {
		err = a.plan.Forward(batchnorm.ForwardArgs{
			X: a.x, Gamma: a.gamma, Beta: a.beta, Y: y, Mean: op.mean, InvStd: op.invstd,
			RunningMean: op.runningMean.Float32s(), RunningVar: op.runningVar.Float32s(),
		})
	} else {
		err = a.plan.Inference(batchnorm.InferenceArgs{
			X: a.x, Gamma: a.gamma, Beta: a.beta, Y: y, Mean: op.runningMean.Float32s(), Var: op.runningVar.Float32s(),
		})
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// operands are the inputs of all passes.
type operands struct {
	plan           *batchnorm.Plan
	shape          tensor.Shape
	x, gamma, beta []float32
}

func (op *Op) operands(x, scale, bias gorgonia.Value) (a operands, err error) {
	if a.x, err = floats("x", x); err != nil {
		return a, err
	}
	if a.gamma, err = floats("scale", scale); err != nil {
		return a, err
	}
	if a.beta, err = floats("bias", bias); err != nil {
		return a, err
	}
	a.shape = x.Shape()
	if len(a.shape) != op.dims || a.shape[1] != len(op.mean) {
		return a, fmt.Errorf("gorgoniabn: x has the shape %v, the operation was made for %d dimensions and %d channels",
			a.shape, op.dims, len(op.mean))
	}
	s, err := batchnorm.NCHW(a.shape...)
	if err != nil {
		return a, err
	}
	a.plan, err = op.plans.Plan(s)
	return a, err
}

// DiffWRT says that y has derivatives by x, scale and bias.
func (op *Op) DiffWRT(inputs int) []bool { return []bool{true, true, true} }

// SymDiff returns the gradients by x, scale and bias as nodes. The first
// computes all three; the others return what it has computed.
func (op *Op) SymDiff(inputs gorgonia.Nodes, output, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	if len(inputs) != op.Arity() {
		return nil, fmt.Errorf("gorgoniabn: %v has %d inputs, needs %d", op, len(inputs), op.Arity())
	}
	// The output is an input of the gradient so that no machine runs it before
	// the forward pass has saved its statistics.
	dx, err := gorgonia.ApplyOp(newGradient(op), inputs[0], inputs[1], inputs[2], output, grad)
	if err != nil {
		return nil, err
	}
	g := dx.Op().(*gradientOp)
	dscale, err := gorgonia.ApplyOp(&parameterOp{g, "scale", op.scale, g.dgamma}, dx)
	if err != nil {
		return nil, err
	}
	dbias, err := gorgonia.ApplyOp(&parameterOp{g, "bias", op.bias, g.dbeta}, dx)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx, dscale, dbias}, nil
}

// DoDiff adds the gradients to those of the inputs, for a Lisp machine.
func (op *Op) DoDiff(_ gorgonia.ExecutionContext, inputs gorgonia.Nodes, output *gorgonia.Node) error {
	if len(inputs) != op.Arity() {
		return fmt.Errorf("gorgoniabn: %v has %d inputs, needs %d", op, len(inputs), op.Arity())
	}
	dy, err := output.Grad()
	if err != nil {
		return err
	}
	g := newGradient(op)
	dx, err := g.Do(inputs[0].Value(), inputs[1].Value(), inputs[2].Value(), output.Value(), dy)
	if err != nil {
		return err
	}
	for i, v := range [][]float32{dx.(*tensor.Dense).Float32s(), g.dgamma, g.dbeta} {
		sum, err := inputs[i].Grad()
		if err != nil {
			return err
		}
		if err := add(sum, v); err != nil {
			return err
		}
	}
	return nil
}
