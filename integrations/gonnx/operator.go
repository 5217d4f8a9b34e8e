package gonnxbn

import (
	"fmt"
	"math"
	"slices"

	"github.com/advancedclimatesystems/gonnx/onnx"
	"github.com/advancedclimatesystems/gonnx/ops"
	"github.com/fusedbn/batchnorm"
	"gorgonia.org/tensor"
)

// operator is ONNX's BatchNormalization:
//
//	set 7    inputs X, scale, B, mean, var; with one output Y it is inference. With
//	         more it is training, and they are Y, mean, var, saved_mean, saved_var:
//	         the running statistics, then those of the batch. spatial = 0 makes
//	         every activation a channel
//	set 9    without spatial
//	set 14   training_mode says which; training has Y, running_mean, running_var
//	set 15   the types of X, of scale and B, and of mean and var may differ
//
// All variances are the population's, as set 14 says; the sets before it say
// nothing of it.
type operator struct {
	opset   int64
	planner *planner

	epsilon, momentum float64
	training          bool
	perActivation     bool
	relu              bool
	outputs           int
}

// Init takes the attributes, and the outputs that the node has.
func (o *operator) Init(n *onnx.NodeProto) error {
	o.epsilon, o.momentum = float64(float32(1e-5)), float64(float32(0.9))
	o.outputs = max(len(n.GetOutput()), 1)
	o.training = o.opset < 14 && o.outputs > 1
	for _, a := range n.GetAttribute() {
		switch name := a.GetName(); {
		case name == "epsilon":
			o.epsilon = float64(a.GetF())
		case name == "momentum":
			o.momentum = float64(a.GetF())
		case name == "spatial" && o.opset < 9:
			o.perActivation = a.GetI() == 0
		case name == activation:
			o.relu = true
		case name == "training_mode" && o.opset >= 14:
			o.training = a.GetI() != 0
		default:
			return ops.ErrUnsupportedAttribute(name, o)
		}
	}
	most := 1
	if o.training {
		most = 5
		if o.opset >= 14 {
			most = 3
		}
	}
	if o.outputs > most {
		return fmt.Errorf("%v: %d outputs, and training %v has at most %d", o, o.outputs, o.training, most)
	}
	return nil
}

// Apply normalizes. It returns new tensors, as many as the node has outputs.
func (o *operator) Apply(inputs []tensor.Tensor) ([]tensor.Tensor, error) {
	out, err := o.apply(inputs)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", o, err)
	}
	return out, nil
}

func (o *operator) apply(inputs []tensor.Tensor) ([]tensor.Tensor, error) {
	x, err := values[float32](inputs[0])
	if err != nil {
		return nil, err
	}
	gamma, err := values[float32](inputs[1])
	if err != nil {
		return nil, err
	}
	beta, err := values[float32](inputs[2])
	if err != nil {
		return nil, err
	}
	shape, err := o.shape(inputs[0].Shape())
	if err != nil {
		return nil, err
	}
	plan, err := o.planner.plan(shape, attributes{o.epsilon, o.momentum, o.relu})
	if err != nil {
		return nil, err
	}
	y := make([]float32, len(x))
	var stats []any // the outputs behind y
	single := inputs[3].Dtype() == tensor.Float32 && inputs[4].Dtype() == tensor.Float32
	switch {
	case single:
		mean, err := values[float32](inputs[3])
		if err != nil {
			return nil, err
		}
		variance, err := values[float32](inputs[4])
		if err != nil {
			return nil, err
		}
		if o.training {
			stats, err = o.train(plan, x, gamma, beta, mean, variance, y)
		} else {
			err = plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: gamma, Beta: beta, Mean: mean, Var: variance, Y: y})
		}
		if err != nil {
			return nil, err
		}
	case !o.training:
		mean, err := values[float64](inputs[3])
		if err != nil {
			return nil, err
		}
		invstd, err := values[float64](inputs[4])
		if err != nil {
			return nil, err
		}
		for c, v := range invstd {
			invstd[c] = o.invstd(v)
		}
		err = plan.Normalize(batchnorm.NormalizeArgs{X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, Y: y})
		if err != nil {
			return nil, err
		}
	default:
		mean, err := values[float64](inputs[3])
		if err != nil {
			return nil, err
		}
		variance, err := values[float64](inputs[4])
		if err != nil {
			return nil, err
		}
		if len(mean) != shape.Channels || len(variance) != shape.Channels {
			return nil, fmt.Errorf("mean and var have %d and %d elements, shape %v needs %d", len(mean), len(variance), shape, shape.Channels)
		}
		stats, err = o.train64(plan, x, gamma, beta, mean, variance, y)
		if err != nil {
			return nil, err
		}
	}
	out := []tensor.Tensor{tensor.New(tensor.WithShape(inputs[0].Shape().Clone()...), tensor.WithBacking(y))}
	for i, s := range stats[:o.outputs-1] {
		if wide, ok := s.([]float64); ok && inputs[3+i%2].Dtype() == tensor.Float32 {
			s = convert[float32](wide)
		}
		out = append(out, tensor.New(tensor.WithShape(inputs[3].Shape().Clone()...), tensor.WithBacking(s)))
	}
	return out, nil
}

// train normalizes by the batch's statistics, and returns the outputs behind Y:
// the running mean and variance, and the batch's.
func (o *operator) train(plan *batchnorm.Plan, x, gamma, beta, mean, variance, y []float32) ([]any, error) {
	runningMean, runningVar := slices.Clone(mean), slices.Clone(variance)
	batchMean, batchVar := make([]float32, plan.Shape().Channels), make([]float32, plan.Shape().Channels)
	err := plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y,
		RunningMean: runningMean, RunningVar: runningVar, BatchMean: batchMean, BatchVar: batchVar})
	return []any{runningMean, runningVar, batchMean, batchVar}, err
}

// train64 is train with statistics in float64, so that outputs of that type have all their
// digits.
func (o *operator) train64(plan *batchnorm.Plan, x, gamma, beta []float32, runningMean, runningVar []float64, y []float32) ([]any, error) {
	channels := plan.Shape().Channels
	m := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
	if err := plan.Moments(batchnorm.MomentsArgs{X: x, Moments: &m}); err != nil {
		return nil, err
	}
	invstd := make([]float64, channels)
	if err := plan.Statistics(batchnorm.StatisticsArgs{Moments: m, InvStd: invstd}); err != nil {
		return nil, err
	}
	err := plan.Normalize(batchnorm.NormalizeArgs{X: x, Gamma: gamma, Beta: beta, Mean: m.Mean, InvStd: invstd, Y: y})
	if err != nil {
		return nil, err
	}
	variance := m.M2
	for c := range variance {
		variance[c] /= float64(m.Count)
		runningMean[c] = o.momentum*runningMean[c] + (1-o.momentum)*m.Mean[c]
		runningVar[c] = o.momentum*runningVar[c] + (1-o.momentum)*variance[c]
	}
	return []any{runningMean, runningVar, m.Mean, variance}, nil
}

// invstd returns 1/sqrt(variance + epsilon); with both 0 it is 0, as everywhere in
// the package.
func (o *operator) invstd(variance float64) float64 {
	if variance+o.epsilon == 0 {
		return 0
	}
	return 1 / math.Sqrt(variance+o.epsilon)
}

// shape returns that of x: (N, C, ...), or (N) of one channel.
func (o *operator) shape(dims tensor.Shape) (batchnorm.Shape, error) {
	switch {
	case len(dims) == 0:
		return batchnorm.Shape{}, fmt.Errorf("X is a scalar")
	case len(dims) == 1:
		return batchnorm.NCHW(dims[0], 1)
	case o.perActivation:
		return batchnorm.PerActivation(dims...)
	}
	return batchnorm.NCHW(dims...)
}

// values returns the elements of a tensor of float32 or float64, row by row: its own memory
// if that has this order and T is float32 like its elements, and a copy otherwise.
func values[T float32 | float64](t tensor.Tensor) ([]T, error) {
	if d, ok := t.(*tensor.Dense); ok && d.IsMaterializable() && d.RequiresIterator() {
		t = d.Materialize()
	}
	if t.DataOrder().IsColMajor() || t.RequiresIterator() {
		return nil, fmt.Errorf("a tensor of shape %v that is not dense and row-major is not supported", t.Shape())
	}
	switch data := ops.IfScalarToSlice(t.Data()).(type) {
	case []float32:
		if own, ok := any(data).([]T); ok {
			return own, nil
		}
		return convert[T](data), nil
	case []float64:
		return convert[T](data), nil
	}
	return nil, fmt.Errorf("a tensor of %v is not supported", t.Dtype())
}

func convert[T, F float32 | float64](s []F) []T {
	r := make([]T, len(s))
	for i, v := range s {
		r[i] = T(v)
	}
	return r
}

// ValidateInputs checks number and types of the inputs.
func (o *operator) ValidateInputs(inputs []tensor.Tensor) ([]tensor.Tensor, error) {
	for i, t := range inputs {
		if t == nil {
			return nil, ops.ErrUnsupportedInput(fmt.Sprintf("input %d is missing", i), o)
		}
	}
	return ops.ValidateInputs(o, inputs)
}

// GetMinInputs returns 5.
func (o *operator) GetMinInputs() int { return 5 }

// GetMaxInputs returns 5.
func (o *operator) GetMaxInputs() int { return 5 }

// GetInputTypeConstraints returns the types that this operator has: X is float32. Of ONNX's
// types, float64 is left out because the kernels don't have it, and half precision because
// gonnx doesn't. The parameters may be float64; scale and B are then rounded to float32,
// and mean and var are not.
func (o *operator) GetInputTypeConstraints() [][]tensor.Dtype {
	parameter := []tensor.Dtype{tensor.Float32, tensor.Float64}
	return [][]tensor.Dtype{{tensor.Float32}, parameter, parameter, parameter, parameter}
}

// String names the operator in gonnx's errors.
func (o *operator) String() string { return "batch normalization operator" }
