package gonnxbn

import (
	"math"
	"testing"

	"github.com/advancedclimatesystems/gonnx"
	"github.com/advancedclimatesystems/gonnx/onnx"
	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"google.golang.org/protobuf/proto"
	"gorgonia.org/tensor"
)

// The scores of a trained network are those of float64, in every operator set, and
// so are those that gonnx computes with Mul and Add.
func TestModel(t *testing.T) {
	const n = 4
	x, _, err := onnxmodel.Images(n)
	if err != nil {
		t.Fatal(err)
	}
	m, err := onnxmodel.Parse(onnxmodel.Fashion)
	if err != nil {
		t.Fatal(err)
	}
	want, err := onnxmodel.Reference(m, x, n)
	if err != nil {
		t.Fatal(err)
	}
	image := tensor.New(tensor.WithShape(n, 1, onnxmodel.Side, onnxmodel.Side), tensor.WithBacking(x))
	scores := func(m *onnxmodel.Model, load func([]byte) (*gonnx.Model, error)) []float32 {
		t.Helper()
		file, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		model, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		out, err := model.Run(gonnx.Tensors{"image": image})
		if err != nil {
			t.Fatal(err)
		}
		return out["scores"].Data().([]float32)
	}
	for _, m.Opset = range every {
		with := func(b []byte) (*gonnx.Model, error) { return NewModelFromBytes(b) }
		if d := difference(scores(m, with), want); !(d < 1e-5) {
			t.Errorf("opset %d: the scores are off by %.2g", m.Opset, d)
		}
	}
	m.Opset = gonnxOpset
	composed, err := onnxmodel.Composed(m)
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(scores(composed, gonnx.NewModelFromBytes), want); !(d < 1e-5) {
		t.Errorf("composed: the scores are off by %.2g", d)
	}
}

func difference(got []float32, want []float64) float64 {
	if len(got) != len(want) {
		return math.NaN()
	}
	d := 0.0
	for i, v := range got {
		d = max(d, math.Abs(float64(v)-want[i]))
	}
	return d
}

// A Relu is part of the batch norm before it where nobody else reads that, and
// results are the same.
func TestFuseRelu(t *testing.T) {
	norm := func(y string) *onnx.NodeProto {
		return &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}, Output: []string{y},
			Attribute: []*onnx.AttributeProto{float("epsilon", 0)}}
	}
	relu := func(x, y string) *onnx.NodeProto {
		return &onnx.NodeProto{OpType: "Relu", Input: []string{x}, Output: []string{y}}
	}
	abs := func(x, y string) *onnx.NodeProto {
		return &onnx.NodeProto{OpType: "Abs", Input: []string{x}, Output: []string{y}}
	}
	for _, c := range []struct {
		name    string
		nodes   []*onnx.NodeProto
		outputs []string
		want    int // nodes
	}{
		{"alone", []*onnx.NodeProto{norm("z"), relu("z", "y")}, []string{"y"}, 1},
		{"read by another", []*onnx.NodeProto{norm("z"), relu("z", "y"), abs("z", "a")}, []string{"y", "a"}, 3},
		{"read twice", []*onnx.NodeProto{norm("z"), relu("z", "y"), relu("z", "y2")}, []string{"y", "y2"}, 3},
		{"an output", []*onnx.NodeProto{norm("z"), relu("z", "y")}, []string{"z", "y"}, 2},
		{"of something else", []*onnx.NodeProto{abs("x", "z"), relu("z", "y")}, []string{"y"}, 2},
		{"two", []*onnx.NodeProto{norm("z"), norm("z2"), relu("z2", "y2"), relu("z", "y")}, []string{"y", "y2"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &onnx.GraphProto{Node: c.nodes}
			for _, name := range c.outputs {
				g.Output = append(g.Output, &onnx.ValueInfoProto{Name: name})
			}
			before := proto.Clone(g)
			if got := len(fuseRelu(g).Node); got != c.want {
				t.Errorf("%d nodes, want %d", got, c.want)
			}
			if !proto.Equal(g, before) {
				t.Error("the model was changed")
			}
			m, err := NewModel(&onnx.ModelProto{Graph: g, OpsetImport: []*onnx.OperatorSetIdProto{{Version: 13}}})
			if err != nil {
				t.Fatal(err)
			}
			in := gonnx.Tensors{"x": tensor.New(tensor.WithShape(2, 2), tensor.WithBacking([]float32{1, 5, -3, -7}))}
			for name, v := range map[string][]float32{"s": {2, 1}, "bias": {1, 0}, "mean": {3, 0}, "var": {4, 1}} {
				in[name] = tensor.New(tensor.WithShape(2), tensor.WithBacking(v))
			}
			out, err := m.Run(in)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string][]float64{"z": {-1, 5, -5, -7}, "z2": {-1, 5, -5, -7}, "a": {1, 5, 5, 7}, "y": {0, 5, 0, 0}, "y2": {0, 5, 0, 0}}
			if c.name == "of something else" {
				want["y"] = []float64{1, 5, 3, 7}
			}
			for _, name := range c.outputs {
				check(t, name, out[name], []int{2, 2}, want[name], 0)
			}
		})
	}
}
