package onnxgobn

import (
	"fmt"
	"hash"
	"hash/fnv"

	"github.com/chewxy/hm"
	"github.com/fusedbn/batchnorm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// op is one output of a BatchNormalization, as an operation of gorgonia's: its
// inputs are X, scale, B, mean and var.
type op struct {
	settings
	output  int // 0: Y; in training 1: running mean, 2: running variance, 3: batch mean, 4: batch variance
	planner *planner
}

var (
	_ gorgonia.Op              = (*op)(nil)
	_ gorgonia.UsePreallocDoer = (*op)(nil)
)

func (o *op) Arity() int { return 5 }

func (o *op) Type() hm.Type {
	x, p := hm.TypeVariable('a'), hm.TypeVariable('c') // gorgonia's inference names the result 'b'
	if o.output == 0 {
		return hm.NewFnType(x, p, p, p, p, x)
	}
	return hm.NewFnType(x, p, p, p, p, p)
}

func (o *op) InferShape(inputs ...gorgonia.DimSizer) (tensor.Shape, error) {
	if len(inputs) != o.Arity() {
		return nil, fmt.Errorf("%s: %d inputs, must be %d", opType, len(inputs), o.Arity())
	}
	like := inputs[0]
	if o.output > 0 {
		like = inputs[3]
	}
	shape, ok := like.(tensor.Shape)
	if !ok {
		return nil, fmt.Errorf("%s: a shape is a %T", opType, like)
	}
	return shape.Clone(), nil
}

// Do computes into memory of its own.
func (o *op) Do(inputs ...gorgonia.Value) (gorgonia.Value, error) {
	if len(inputs) != o.Arity() {
		return nil, fmt.Errorf("%s: %d inputs, must be %d", opType, len(inputs), o.Arity())
	}
	like := inputs[0]
	if o.output > 0 {
		like = inputs[3]
	}
	return o.UsePreallocDo(tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(like.Shape().Clone()...)), inputs...)
}

// UsePreallocDo computes into the memory of out, and leaves the inputs as they are.
func (o *op) UsePreallocDo(out gorgonia.Value, inputs ...gorgonia.Value) (gorgonia.Value, error) {
	if len(inputs) != o.Arity() {
		return nil, fmt.Errorf("%s: %d inputs, must be %d", opType, len(inputs), o.Arity())
	}
	var in [5][]float32
	for i, v := range inputs {
		var err error
		if in[i], err = values(v); err != nil {
			return nil, fmt.Errorf("%s: input %d: %w", opType, i, err)
		}
	}
	dst, err := values(out)
	if err != nil {
		return nil, fmt.Errorf("%s: output: %w", opType, err)
	}
	shape, err := o.shape(inputs[0].Shape())
	if err != nil {
		return nil, err
	}
	plan, err := o.planner.plan(shape, attributes{o.epsilon, o.momentum})
	if err != nil {
		return nil, err
	}
	x, gamma, beta, mean, variance := in[0], in[1], in[2], in[3], in[4]
	switch {
	case !o.training:
		err = plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: gamma, Beta: beta, Mean: mean, Var: variance, Y: dst})
	case o.output == 0:
		err = plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: dst})
	default:
		err = o.statistics(plan, x, mean, variance, dst)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opType, err)
	}
	return out, nil
}

// statistics writes one of the outputs behind Y.
func (o *op) statistics(plan *batchnorm.Plan, x, mean, variance, dst []float32) error {
	m := batchnorm.Moments{Mean: make([]float64, len(dst)), M2: make([]float64, len(dst))}
	if err := plan.Moments(batchnorm.MomentsArgs{X: x, Moments: &m}); err != nil {
		return err
	}
	if len(mean) != len(dst) || len(variance) != len(dst) {
		return fmt.Errorf("mean and var have %d and %d elements, %d channels need as many", len(mean), len(variance), len(dst))
	}
	for c := range dst {
		batchVar := m.M2[c] / float64(m.Count)
		dst[c] = float32([]float64{
			1: o.momentum*float64(mean[c]) + (1-o.momentum)*m.Mean[c],
			2: o.momentum*float64(variance[c]) + (1-o.momentum)*batchVar,
			3: m.Mean[c],
			4: batchVar,
		}[o.output])
	}
	return nil
}

// shape returns the shape of x: (N, C, ...), or (N) of one channel.
func (o *op) shape(dims tensor.Shape) (batchnorm.Shape, error) {
	switch {
	case len(dims) == 0:
		return batchnorm.Shape{}, fmt.Errorf("%s: X is a scalar", opType)
	case len(dims) == 1:
		return batchnorm.NCHW(dims[0], 1)
	case o.perActivation:
		return batchnorm.PerActivation(dims...)
	}
	return batchnorm.NCHW(dims...)
}

// values returns the elements of a dense, row-major tensor of float32.
func values(v gorgonia.Value) ([]float32, error) {
	t, ok := v.(*tensor.Dense)
	if !ok {
		return nil, fmt.Errorf("a %T is not supported", v)
	}
	if t.IsMaterializable() && t.RequiresIterator() {
		t = t.Materialize().(*tensor.Dense)
	}
	if t.DataOrder().IsColMajor() || t.RequiresIterator() {
		return nil, fmt.Errorf("a tensor of shape %v that is not dense and row-major is not supported", t.Shape())
	}
	data, ok := t.Data().([]float32)
	if !ok {
		return nil, fmt.Errorf("a tensor of %v and shape %v is not supported", t.Dtype(), t.Shape())
	}
	return data, nil
}

func (o *op) ReturnsPtr() bool     { return true }
func (o *op) CallsExtern() bool    { return false }
func (o *op) OverwritesInput() int { return -1 }

// WriteHash writes all settings that the result depends on: gorgonia takes two nodes of the
// same hash and inputs for one.
func (o *op) WriteHash(h hash.Hash) { fmt.Fprintf(h, "%s %d %+v", opType, o.output, o.settings) }

func (o *op) Hashcode() uint32 {
	h := fnv.New32a()
	o.WriteHash(h)
	return h.Sum32()
}

func (o *op) String() string { return fmt.Sprintf("%s(output %d)", opType, o.output) }
