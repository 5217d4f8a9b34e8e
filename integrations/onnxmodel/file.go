package onnxmodel

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Model is an ONNX model, as far as the networks here need it. It is encoded and
// decoded without generated code, because a program can't have the generated code
// of two packages for one format, and each ONNX runtime brings its own.
type Model struct {
	Opset        int64
	Nodes        []Node
	Initializers []Tensor
	Inputs       []Value
	Outputs      []Value
}

// Node is an operation.
type Node struct {
	Op              string
	Inputs, Outputs []string
	Attributes      []Attribute
}

// Attribute is named, and an int64, a float32, a string or an []int64.
type Attribute struct {
	Name  string
	Value any
}

// Value is an input or output of float32. A dimension of -1 is any number. Without
// dimensions the value has only a name.
type Value struct {
	Name string
	Dims []int64
}

// Tensor is a parameter of float32.
type Tensor struct {
	Name string
	Dims []int64
	Data []float32
}

// The numbers of ONNX's fields and types.
const (
	modelIRVersion, modelGraph, modelOpsetImport                     = 1, 7, 8
	opsetVersion                                                     = 2
	graphNode, graphName, graphInitializer, graphInput, graphOutput  = 1, 2, 5, 11, 12
	nodeInput, nodeOutput, nodeOpType, nodeAttribute                 = 1, 2, 4, 5
	attributeName, attributeF, attributeI, attributeS, attributeInts = 1, 2, 3, 4, 8
	attributeType                                                    = 20
	tensorDims, tensorDataType, tensorFloatData, tensorName          = 1, 2, 4, 8
	valueName, valueType, typeTensor, tensorElemType, tensorShape    = 1, 2, 1, 1, 2
	shapeDim, dimValue, dimParam                                     = 1, 1, 2

	typeFloat, typeInt, typeString, typeInts = 1, 2, 3, 7 // of attributes
	elemFloat                                = 1

	irVersion = 7
)

// Marshal returns the model as a file.
func (m *Model) Marshal() ([]byte, error) {
	graph := text(nil, graphName, "graph")
	for _, n := range m.Nodes {
		var b []byte
		for _, s := range n.Inputs {
			b = text(b, nodeInput, s)
		}
		for _, s := range n.Outputs {
			b = text(b, nodeOutput, s)
		}
		b = text(b, nodeOpType, n.Op)
		for _, a := range n.Attributes {
			encoded, err := a.marshal()
			if err != nil {
				return nil, err
			}
			b = message(b, nodeAttribute, encoded)
		}
		graph = message(graph, graphNode, b)
	}
	for _, t := range m.Initializers {
		var data []byte
		for _, v := range t.Data {
			data = protowire.AppendFixed32(data, math.Float32bits(v))
		}
		b := integer(packed(nil, tensorDims, t.Dims), tensorDataType, elemFloat)
		graph = message(graph, graphInitializer, text(message(b, tensorFloatData, data), tensorName, t.Name))
	}
	for _, v := range m.Inputs {
		graph = message(graph, graphInput, v.marshal())
	}
	for _, v := range m.Outputs {
		graph = message(graph, graphOutput, v.marshal())
	}
	b := message(integer(nil, modelIRVersion, irVersion), modelGraph, graph)
	return message(b, modelOpsetImport, integer(nil, opsetVersion, m.Opset)), nil
}

func (a Attribute) marshal() ([]byte, error) {
	b := text(nil, attributeName, a.Name)
	switch v := a.Value.(type) {
	case int64:
		return integer(integer(b, attributeI, v), attributeType, typeInt), nil
	case float32:
		b = protowire.AppendFixed32(protowire.AppendTag(b, attributeF, protowire.Fixed32Type), math.Float32bits(v))
		return integer(b, attributeType, typeFloat), nil
	case string:
		return integer(text(b, attributeS, v), attributeType, typeString), nil
	case []int64:
		return integer(packed(b, attributeInts, v), attributeType, typeInts), nil
	}
	return nil, fmt.Errorf("onnxmodel: attribute %s is a %T", a.Name, a.Value)
}

func (v Value) marshal() []byte {
	b := text(nil, valueName, v.Name)
	if v.Dims == nil {
		return b
	}
	var shape []byte
	for _, d := range v.Dims {
		dim := integer(nil, dimValue, d)
		if d < 0 {
			dim = text(nil, dimParam, "N")
		}
		shape = message(shape, shapeDim, dim)
	}
	return message(b, valueType, message(nil, typeTensor, message(integer(nil, tensorElemType, elemFloat), tensorShape, shape)))
}

func message(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

func text(b []byte, field protowire.Number, s string) []byte { return message(b, field, []byte(s)) }

func integer(b []byte, field protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
}

func packed(b []byte, field protowire.Number, values []int64) []byte {
	var p []byte
	for _, v := range values {
		p = protowire.AppendVarint(p, uint64(v))
	}
	return message(b, field, p)
}

// ErrFile is wrapped by the errors about a file that Marshal did not make.
var ErrFile = errors.New("onnxmodel: not a model of this package")

// Parse decodes a file that Marshal made. It ignores the types of inputs and
// outputs.
func Parse(file []byte) (*Model, error) {
	m := new(Model)
	err := fields(file, func(field protowire.Number, b []byte, v uint64) error {
		switch field {
		case modelGraph:
			return fields(b, m.graphField)
		case modelOpsetImport:
			return fields(b, func(field protowire.Number, _ []byte, v uint64) error {
				if field == opsetVersion {
					m.Opset = int64(v)
				}
				return nil
			})
		}
		return nil
	})
	return m, err
}

func (m *Model) graphField(field protowire.Number, b []byte, _ uint64) error {
	switch field {
	case graphNode:
		var n Node
		m.Nodes = append(m.Nodes, n)
		return fields(b, m.Nodes[len(m.Nodes)-1].field)
	case graphInitializer:
		var t Tensor
		m.Initializers = append(m.Initializers, t)
		return fields(b, m.Initializers[len(m.Initializers)-1].field)
	case graphInput, graphOutput:
		dst := &m.Inputs
		if field == graphOutput {
			dst = &m.Outputs
		}
		return fields(b, func(field protowire.Number, b []byte, _ uint64) error {
			if field == valueName {
				*dst = append(*dst, Value{Name: string(b)})
			}
			return nil
		})
	}
	return nil
}

func (n *Node) field(field protowire.Number, b []byte, _ uint64) error {
	switch field {
	case nodeInput:
		n.Inputs = append(n.Inputs, string(b))
	case nodeOutput:
		n.Outputs = append(n.Outputs, string(b))
	case nodeOpType:
		n.Op = string(b)
	case nodeAttribute:
		var a Attribute
		err := fields(b, func(field protowire.Number, b []byte, v uint64) (err error) {
			switch field {
			case attributeName:
				a.Name = string(b)
			case attributeI:
				a.Value = int64(v)
			case attributeF:
				a.Value = math.Float32frombits(uint32(v))
			case attributeS:
				a.Value = string(b)
			case attributeInts:
				a.Value, err = unpack(b)
			}
			return err
		})
		n.Attributes = append(n.Attributes, a)
		return err
	}
	return nil
}

func (t *Tensor) field(field protowire.Number, b []byte, _ uint64) (err error) {
	switch field {
	case tensorDims:
		t.Dims, err = unpack(b)
	case tensorName:
		t.Name = string(b)
	case tensorFloatData:
		for len(b) > 0 {
			v, n := protowire.ConsumeFixed32(b)
			if n < 0 {
				return fmt.Errorf("%w: %w", ErrFile, protowire.ParseError(n))
			}
			t.Data = append(t.Data, math.Float32frombits(v))
			b = b[n:]
		}
	}
	return err
}

func unpack(b []byte) (values []int64, err error) {
	for len(b) > 0 {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, fmt.Errorf("%w: %w", ErrFile, protowire.ParseError(n))
		}
		values = append(values, int64(v))
		b = b[n:]
	}
	return values, nil
}

// fields calls f for each field of a message: with its bytes or its number.
func fields(b []byte, f func(field protowire.Number, b []byte, v uint64) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrFile, protowire.ParseError(n))
		}
		b = b[n:]
		var content []byte
		var v uint64
		switch kind {
		case protowire.BytesType:
			content, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var w uint32
			w, n = protowire.ConsumeFixed32(b)
			v = uint64(w)
		default:
			return fmt.Errorf("%w: field %d is of type %d", ErrFile, field, kind)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrFile, protowire.ParseError(n))
		}
		if err := f(field, content, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
