package onnxgobn

import (
	"fmt"

	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend/x/gorgonnx"
	"gonum.org/v1/gonum/graph"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// batchNormalization is the ONNX operator: it makes a node of gorgonia's graph for
// each output. onnx-go has one operator for all of ONNX's operator sets, so the
// node tells what is meant:
//
//	Y alone                  inference, unless training_mode is 1 (from set 14 on)
//	training_mode 1          Y, running_mean, running_var
//	more than one output     without training_mode: Y, mean, var, saved_mean, saved_var,
//	                         the training of sets 7 to 13
//	spatial 0 (sets 7, 8)    every activation is a channel
//
// All variances are the population's. A tensor of float64 is left to gorgonnx's
// own operator.
type batchNormalization struct {
	planner   *planner
	operation onnx.Operation
	settings  settings
}

// settings decide the result, together with the inputs.
type settings struct {
	epsilon, momentum       float64
	training, perActivation bool
}

func (b *batchNormalization) init(o onnx.Operation) error {
	b.operation = o
	b.settings = settings{epsilon: float64(float32(1e-5)), momentum: float64(float32(0.9))}
	for name, dst := range map[string]*float64{"epsilon": &b.settings.epsilon, "momentum": &b.settings.momentum} {
		if a, ok := o.Attributes[name]; ok {
			v, ok := a.(float32)
			if !ok {
				return fmt.Errorf("%s: %s is a %T, must be a float32", opType, name, a)
			}
			*dst = float64(v)
		}
	}
	flags := map[string]int64{"training_mode": 0, "spatial": 1}
	for name := range flags {
		if a, ok := o.Attributes[name]; ok {
			v, ok := a.(int64)
			if !ok {
				return fmt.Errorf("%s: %s is a %T, must be an int64", opType, name, a)
			}
			flags[name] = v
		}
	}
	b.settings.training, b.settings.perActivation = flags["training_mode"] != 0, flags["spatial"] == 0
	return nil
}

func (b *batchNormalization) apply(g *gorgonnx.Graph, ns ...*gorgonnx.Node) error {
	inputs, err := inputsOf(g, ns[0])
	if err != nil {
		return err
	}
	if inputs[0].Dtype() != tensor.Float32 {
		own := original()
		if err := own.init(b.operation); err != nil {
			return err
		}
		return own.apply(g, ns...)
	}
	most := 5
	if b.settings.training {
		most = 3
	} else {
		b.settings.training = len(ns) > 1
	}
	if len(ns) > most {
		return fmt.Errorf("%s: %d outputs, of which there are at most %d", opType, len(ns), most)
	}
	for i, n := range ns {
		op := &op{settings: b.settings, output: i, planner: b.planner}
		node, err := gorgonia.ApplyOp(op, inputs...)
		if err != nil {
			return fmt.Errorf("%s: %w", opType, err)
		}
		*gorgoniaNode(n) = node
	}
	return nil
}

// inputsOf returns the five inputs of an ONNX node, which the weights of the edges
// number. A graph of onnx-go has one edge between two nodes, so an input that is
// there twice has lost its first number.
func inputsOf(g *gorgonnx.Graph, n *gorgonnx.Node) ([]*gorgonia.Node, error) {
	inputs := make([]*gorgonia.Node, 5)
	for it := g.From(n.ID()); it.Next(); {
		child, ok := it.Node().(*gorgonnx.Node)
		if !ok {
			return nil, fmt.Errorf("%s: an input is a %T", opType, it.Node())
		}
		edge, ok := g.Edge(n.ID(), child.ID()).(graph.WeightedEdge)
		if !ok || edge.Weight() < 0 || edge.Weight() >= float64(len(inputs)) {
			return nil, fmt.Errorf("%s: an input has no number from 0 to %d", opType, len(inputs)-1)
		}
		inputs[int(edge.Weight())] = *gorgoniaNode(child)
	}
	for i, in := range inputs {
		if in == nil {
			return nil, fmt.Errorf("%s: input %d is missing, or is the same tensor as a later one, which onnx-go can't have", opType, i)
		}
	}
	return inputs, nil
}
