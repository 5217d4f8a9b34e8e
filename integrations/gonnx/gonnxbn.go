// Package gonnxbn gives gonnx (github.com/advancedclimatesystems/gonnx) the
// operator BatchNormalization, of ONNX's operator sets 7 to 15, on the kernels of
// package batchnorm.
//
//	model, err := gonnxbn.NewModelFromFile("model.onnx") // in the place of gonnx.NewModelFromFile
//
// A model that is there already takes it by its GetOperator:
//
//	model.GetOperator, err = gonnxbn.Operators(model.GetOperator, 13)
package gonnxbn

import (
	"errors"
	"fmt"
	"os"

	"github.com/advancedclimatesystems/gonnx"
	"github.com/advancedclimatesystems/gonnx/onnx"
	"github.com/advancedclimatesystems/gonnx/ops"
	"github.com/fusedbn/batchnorm"
	"google.golang.org/protobuf/proto"
)

// The operator sets whose BatchNormalization is known.
const (
	MinOpset = 7
	MaxOpset = 15
)

// gonnxOpset is the only operator set that gonnx has.
const gonnxOpset = 13

// ErrOpset is wrapped by errors about an operator set that can't be served.
var ErrOpset = errors.New("gonnxbn: operator set")

// Operators returns next with BatchNormalization of an operator set added. Its
// operators share plans, and may be used by several goroutines.
//
// Options such as [batchnorm.WithWorkers] and [batchnorm.WithExecutor] go to
// every plan; epsilon and momentum are the node's.
func Operators(next gonnx.OpGetter, opset int64, opts ...batchnorm.Option) (gonnx.OpGetter, error) {
	if opset < MinOpset || opset > MaxOpset {
		return nil, fmt.Errorf("%w %d: BatchNormalization is known from %d to %d", ErrOpset, opset, MinOpset, MaxOpset)
	}
	shared := &planner{opts: opts}
	return func(name string) (ops.Operator, error) {
		if name == "BatchNormalization" {
			return &operator{opset: opset, planner: shared}, nil
		}
		return next(name)
	}, nil
}

// NewModelFromFile is gonnx.NewModelFromFile with BatchNormalization, for models
// of the operator sets 7 to 15; see [NewModel].
func NewModelFromFile(path string, opts ...batchnorm.Option) (*gonnx.Model, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return NewModelFromBytes(b, opts...)
}

// NewModelFromBytes is gonnx.NewModelFromBytes with BatchNormalization, for models
// of the operator sets 7 to 15; see [NewModel].
func NewModelFromBytes(b []byte, opts ...batchnorm.Option) (*gonnx.Model, error) {
	mp, err := gonnx.ModelProtoFromBytes(b)
	if err != nil {
		return nil, err
	}
	return NewModel(mp, opts...)
}

// NewModel is gonnx.NewModel with BatchNormalization, for models of the operator
// sets 7 to 15. Options are as in [Operators].
//
// gonnx itself takes operator set 13 alone. Its operators serve models of the
// others as well, but for those whose definition differs: a model that has
// one of these is [ErrOpset].
//
// A Relu that is the only reader of a BatchNormalization's output is fused into it.
func NewModel(mp *onnx.ModelProto, opts ...batchnorm.Option) (*gonnx.Model, error) {
	opset := int64(1) // a model that names none has the first
	for _, o := range mp.GetOpsetImport() {
		if o.GetDomain() == "" || o.GetDomain() == "ai.onnx" {
			opset = o.GetVersion()
		}
	}
	if opset != gonnxOpset {
		for _, n := range mp.GetGraph().GetNode() {
			if err := sameDefinition(n, opset); err != nil {
				return nil, err
			}
		}
	}
	model, err := gonnx.NewModel(&onnx.ModelProto{
		IrVersion:   mp.GetIrVersion(),
		Graph:       fuseRelu(mp.GetGraph()),
		OpsetImport: []*onnx.OperatorSetIdProto{{Version: gonnxOpset}},
	})
	if err != nil {
		return nil, err
	}
	model.GetOperator, err = Operators(model.GetOperator, opset, opts...)
	return model, err
}

// since lists the operators of gonnx that have another definition in an operator set from 7
// to 12, with the first set of the definition of 13.
var since = map[string]int64{"Slice": 10, "Softmax": 13, "Squeeze": 13, "Unsqueeze": 13}

// later has the attributes that operator sets after 13 added and that gonnx doesn't read.
var later = map[string][]string{
	"Reshape": {"allowzero"}, "Shape": {"start", "end"},
	"GRU": {"layout"}, "LSTM": {"layout"}, "RNN": {"layout"},
}

// sameDefinition returns an error if a node's operator has another definition in its
// operator set than in that of gonnx.
func sameDefinition(n *onnx.NodeProto, opset int64) error {
	if first := since[n.GetOpType()]; opset < first {
		return fmt.Errorf("%w %d: gonnx has %s as it is since %d", ErrOpset, opset, n.GetOpType(), first)
	}
	for _, name := range later[n.GetOpType()] {
		for _, a := range n.GetAttribute() {
			if a.GetName() == name && a.GetI() != 0 {
				return fmt.Errorf("%w %d: gonnx has no attribute %s of %s, which is %d", ErrOpset, opset, name, n.GetOpType(), a.GetI())
			}
		}
	}
	return nil
}

// activation is the attribute that names the activation fused into a BatchNormalization.
const activation = "gonnxbn.activation"

// fuseRelu returns the graph in which a BatchNormalization takes in the Relu behind it, if
// that alone reads its one output.
func fuseRelu(g *onnx.GraphProto) *onnx.GraphProto {
	readers := make(map[string]int)
	for _, o := range g.GetOutput() {
		readers[o.GetName()]++
	}
	for _, n := range g.GetNode() {
		for _, name := range n.GetInput() {
			readers[name]++
		}
	}
	var nodes []*onnx.NodeProto
	norms := make(map[string]int) // index in nodes, by output
	for _, n := range g.GetNode() {
		if n.GetOpType() == "Relu" && len(n.GetInput()) == 1 && len(n.GetOutput()) == 1 && readers[n.GetInput()[0]] == 1 {
			if i, ok := norms[n.GetInput()[0]]; ok {
				fused := proto.Clone(nodes[i]).(*onnx.NodeProto)
				fused.Output = n.GetOutput()
				fused.Attribute = append(fused.Attribute, &onnx.AttributeProto{Name: activation})
				nodes[i] = fused
				continue
			}
		}
		if n.GetOpType() == "BatchNormalization" && len(n.GetOutput()) == 1 {
			norms[n.GetOutput()[0]] = len(nodes)
		}
		nodes = append(nodes, n)
	}
	return &onnx.GraphProto{Name: g.GetName(), Node: nodes, Initializer: g.GetInitializer(), Input: g.GetInput(), Output: g.GetOutput(),
		ValueInfo: g.GetValueInfo(), SparseInitializer: g.GetSparseInitializer()}
}
