package gonnxbn

import (
	"math"
	"slices"
	"testing"

	"github.com/advancedclimatesystems/gonnx"
	"github.com/advancedclimatesystems/gonnx/onnx"
	"gorgonia.org/tensor"
)

// Faults of gonnx v1.1.0, for its authors, and as a proof of the README. A test fails when
// the fault is gone; the README then has a line too many.

// Relu is x*(x > 0), and infinity times 0 is NaN. BatchNormalization with its Relu
// has 0 here.
func TestGonnxReluOfInfinity(t *testing.T) {
	m, err := gonnx.NewModel(&onnx.ModelProto{OpsetImport: []*onnx.OperatorSetIdProto{{Version: 13}}, Graph: &onnx.GraphProto{
		Node:   []*onnx.NodeProto{{OpType: "Relu", Input: []string{"x"}, Output: []string{"y"}}},
		Output: []*onnx.ValueInfoProto{{Name: "y"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	x := []float32{float32(math.Inf(-1)), 1}
	out, err := m.Run(gonnx.Tensors{"x": tensor.New(tensor.WithShape(2), tensor.WithBacking(slices.Clone(x)))})
	if err != nil {
		t.Fatal(err)
	}
	if y := out["y"].Data().([]float32); y[0] == y[0] {
		t.Errorf("gonnx: Relu(-Inf) is %v and no longer NaN", y[0])
	}
}

// Conv with auto_pad and stride 2 takes the sizes of batch and channels for
// those of the image, and pads at the wrong side. For 4 pixels SAME_UPPER pads one
// behind and none in front.
func TestGonnxAutoPad(t *testing.T) {
	m, err := gonnx.NewModel(&onnx.ModelProto{OpsetImport: []*onnx.OperatorSetIdProto{{Version: 13}}, Graph: &onnx.GraphProto{
		Node: []*onnx.NodeProto{{OpType: "Conv", Input: []string{"x", "w"}, Output: []string{"y"}, Attribute: []*onnx.AttributeProto{
			{Name: "auto_pad", Type: onnx.AttributeProto_STRING, S: []byte("SAME_UPPER")},
			{Name: "kernel_shape", Type: onnx.AttributeProto_INTS, Ints: []int64{3}},
			{Name: "strides", Type: onnx.AttributeProto_INTS, Ints: []int64{2}},
		}}},
		Output: []*onnx.ValueInfoProto{{Name: "y"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Run(gonnx.Tensors{
		"x": tensor.New(tensor.WithShape(1, 1, 4), tensor.WithBacking([]float32{1, 10, 100, 1000})),
		"w": tensor.New(tensor.WithShape(1, 1, 3), tensor.WithBacking([]float32{1, 1, 1})),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, want := out["y"].Data().([]float32), []float32{111, 1100}
	if slices.Equal(got, want) {
		t.Error("gonnx: auto_pad is right now")
	}
	if padded := []float32{11, 1110}; !slices.Equal(got, padded) {
		t.Errorf("gonnx: %v, neither right nor as in v1.1.0", got)
	}
}
