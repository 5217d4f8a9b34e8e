package gonnxbn

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/advancedclimatesystems/gonnx"
	"github.com/advancedclimatesystems/gonnx/onnx"
	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/reference"
	"google.golang.org/protobuf/proto"
	"gorgonia.org/tensor"
)

// A nodeCase is a model of one BatchNormalization. The cases with the names of
// ONNX's node tests have their shapes and attributes; expected results are
// computed here, from the operator's definition in float64.
type nodeCase struct {
	name     string
	opsets   []int64
	dims     []int
	epsilon  float64 // 0: the default
	momentum float64 // 0: the default
	outputs  int     // 1: inference
	offset   float64 // mean of x
	spatial0 bool
	double   bool // mean and var are float64
	doubleB  bool // scale and B are float64
}

var (
	every    = []int64{7, 8, 9, 10, 11, 12, 13, 14, 15}
	training = []int64{14, 15}
	former   = []int64{7, 8, 9, 10, 11, 12, 13}

	nodeCases = []nodeCase{
		{name: "batchnorm_example", opsets: every, dims: []int{2, 3, 4, 5}, outputs: 1},
		{name: "batchnorm_epsilon", opsets: every, dims: []int{2, 3, 4, 5}, outputs: 1, epsilon: 1e-2},
		{name: "batchnorm_example_training_mode", opsets: training, dims: []int{2, 3, 4, 5}, outputs: 3},
		{name: "batchnorm_epsilon_training_mode", opsets: training, dims: []int{2, 3, 4, 5}, outputs: 3, epsilon: 1e-2},
		{name: "momentum", opsets: training, dims: []int{2, 3, 4, 5}, outputs: 3, momentum: 0.25},
		{name: "training, Y alone", opsets: training, dims: []int{6, 5}, outputs: -1},
		{name: "training of former sets", opsets: former, dims: []int{4, 3, 7}, outputs: 3, momentum: 0.5},
		{name: "training of former sets, saved", opsets: former, dims: []int{4, 3, 7}, outputs: 5, momentum: 0.5, offset: 100},
		{name: "(N)", opsets: every, dims: []int{7}, outputs: 1},
		{name: "(N), training", opsets: training, dims: []int{7}, outputs: 3},
		{name: "(N, C)", opsets: every, dims: []int{60, 100}, outputs: 1},
		{name: "(N, C), training", opsets: training, dims: []int{60, 100}, outputs: 3},
		{name: "(N, C, L)", opsets: every, dims: []int{3, 5, 33}, outputs: 1},
		{name: "(N, C, D, H, W)", opsets: every, dims: []int{2, 4, 3, 5, 6}, outputs: 1},
		{name: "(N, C, D, H, W), training", opsets: training, dims: []int{2, 4, 3, 5, 6}, outputs: 3},
		{name: "one sample", opsets: every, dims: []int{1, 3, 17, 5}, outputs: 1},
		{name: "one channel", opsets: every, dims: []int{3, 1, 8, 8}, outputs: 1},
		{name: "one value per channel, training", opsets: training, dims: []int{1, 9}, outputs: 3},
		{name: "offset", opsets: every, dims: []int{8, 16, 14, 14}, outputs: 1, offset: 1e5},
		{name: "offset, training", opsets: training, dims: []int{8, 16, 14, 14}, outputs: 3, offset: 1e5},
		{name: "spatial = 0", opsets: []int64{7, 8}, dims: []int{5, 3, 4, 2}, outputs: 1, spatial0: true},
		{name: "spatial = 0, training", opsets: []int64{7, 8}, dims: []int{5, 3, 4, 2}, outputs: 5, spatial0: true},
		{name: "mean and var in float64", opsets: training, dims: []int{2, 3, 4, 5}, outputs: 1, double: true, offset: 1e5},
		{name: "mean and var in float64, training", opsets: training, dims: []int{2, 3, 4, 5}, outputs: 3, double: true, offset: 1e5},
		{name: "all parameters in float64", opsets: []int64{15}, dims: []int{2, 3, 4, 5}, outputs: 1, double: true, doubleB: true},
	}
)

func TestNodes(t *testing.T) {
	for _, c := range nodeCases {
		for _, opset := range c.opsets {
			t.Run(fmt.Sprintf("%s/%d", c.name, opset), func(t *testing.T) { c.run(t, opset) })
		}
	}
}

func (c nodeCase) run(t *testing.T, opset int64) {
	train := c.outputs != 1
	outputs := max(c.outputs, 1)
	channelDims := []int{1}
	if len(c.dims) > 1 {
		channelDims = c.dims[1:2]
	}
	inner := 1
	if c.spatial0 {
		channelDims = c.dims[1:]
	} else if len(c.dims) > 2 {
		inner = product(c.dims[2:])
	}
	channels := product(channelDims)

	r := rand.New(rand.NewPCG(uint64(opset), 5))
	normal := func(n int, mean, std float64) []float32 {
		s := make([]float32, n)
		for i := range s {
			s[i] = float32(mean + std*r.NormFloat64())
		}
		return s
	}
	x := normal(product(c.dims), c.offset, 1)
	scale, bias, mean := normal(channels, 0, 1), normal(channels, 0, 1), normal(channels, c.offset, 0.5)
	variance := normal(channels, 0, 1)
	for i, v := range variance {
		variance[i] = v*v + 0.1
	}

	node := &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}}
	epsilon, momentum := float64(float32(1e-5)), float64(float32(0.9))
	if c.epsilon != 0 {
		node.Attribute = append(node.Attribute, float("epsilon", c.epsilon))
		epsilon = float64(float32(c.epsilon))
	}
	if c.momentum != 0 {
		node.Attribute = append(node.Attribute, float("momentum", c.momentum))
		momentum = float64(float32(c.momentum))
	}
	if c.spatial0 {
		node.Attribute = append(node.Attribute, integer("spatial", 0))
	}
	if train && opset >= 14 {
		node.Attribute = append(node.Attribute, integer("training_mode", 1))
	}
	for i := range outputs {
		node.Output = append(node.Output, fmt.Sprint("out", i))
	}
	parameter := func(s []float32, double bool) tensor.Tensor {
		var backing any = slices.Clone(s)
		if double {
			backing = convert[float64](s)
		}
		return tensor.New(tensor.WithShape(channelDims...), tensor.WithBacking(backing))
	}
	inputs := gonnx.Tensors{
		"x": tensor.New(tensor.WithShape(c.dims...), tensor.WithBacking(slices.Clone(x))),
		"s": parameter(scale, c.doubleB), "bias": parameter(bias, c.doubleB),
		"mean": parameter(mean, c.double), "var": parameter(variance, c.double),
	}
	out := run(t, opset, inputs, node)

	problem := reference.Problem{Outer: len(x) / channels / inner, Channels: channels, Inner: inner, Epsilon: epsilon,
		Activation: "identity", X: x, Gamma: scale, Beta: bias}
	var y, batchMean, batchVar []float64
	if train {
		f := reference.Forward(problem)
		y, batchMean, batchVar = f.Y, f.Mean, f.Var
	} else {
		y = reference.Inference(problem, mean, variance)
	}
	check(t, "Y", out["out0"], c.dims, y, 2e-6)
	if train {
		running := func(old []float32, batch []float64) []float64 {
			want := make([]float64, channels)
			for i := range want {
				want[i] = momentum*float64(old[i]) + (1-momentum)*batch[i]
			}
			return want
		}
		want := [][]float64{running(mean, batchMean), running(variance, batchVar), batchMean, batchVar}
		for i := 1; i < outputs; i++ {
			got := out[fmt.Sprint("out", i)]
			check(t, node.Output[i], got, channelDims, want[i-1], 3e-7)
			if wantType := inputs["mean"].Dtype(); got.Dtype() != wantType {
				t.Errorf("output %d is %v, want %v", i, got.Dtype(), wantType)
			}
		}
	}
	if !slices.Equal(inputs["x"].Data().([]float32), x) {
		t.Error("the input was changed")
	}
	if c.double {
		if got := convert[float32](inputs["var"].Data().([]float64)); !slices.Equal(got, variance) {
			t.Error("the variance was changed")
		}
	}
}

// run runs a model of one node.
func run(t *testing.T, opset int64, inputs gonnx.Tensors, node *onnx.NodeProto) gonnx.Tensors {
	t.Helper()
	m, err := NewModel(oneNode(opset, node))
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Run(inputs)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func oneNode(opset int64, node *onnx.NodeProto) *onnx.ModelProto {
	g := &onnx.GraphProto{Node: []*onnx.NodeProto{node}}
	for _, name := range node.Output {
		g.Output = append(g.Output, &onnx.ValueInfoProto{Name: name})
	}
	return &onnx.ModelProto{Graph: g, OpsetImport: []*onnx.OperatorSetIdProto{{Version: opset}, {Domain: "ai.onnx.ml", Version: 2}}}
}

func check(t *testing.T, name string, got tensor.Tensor, dims []int, want []float64, bound float64) {
	t.Helper()
	if got == nil {
		t.Fatalf("%s is missing", name)
	}
	if !slices.Equal([]int(got.Shape()), dims) {
		t.Errorf("%s has shape %v, want %v", name, got.Shape(), dims)
	}
	values, err := values[float64](got)
	if err != nil {
		t.Fatal(err)
	}
	if len(values) != len(want) {
		t.Fatalf("%s has %d elements, want %d", name, len(values), len(want))
	}
	for i, v := range values {
		if !(math.Abs(v-want[i]) <= bound*(1+math.Abs(want[i]))) {
			t.Fatalf("%s[%d] = %v, want %v", name, i, v, want[i])
		}
	}
}

func product(dims []int) int {
	p := 1
	for _, d := range dims {
		p *= d
	}
	return p
}

func float(name string, v float64) *onnx.AttributeProto {
	return &onnx.AttributeProto{Name: name, Type: onnx.AttributeProto_FLOAT, F: float32(v)}
}

func integer(name string, v int64) *onnx.AttributeProto {
	return &onnx.AttributeProto{Name: name, Type: onnx.AttributeProto_INT, I: v}
}

// ONNX's own node tests, where Debian's package libonnx-testdata is installed.
func TestInstalledNodeTests(t *testing.T) {
	folders, err := filepath.Glob("/usr/share/libonnx-testdata/data/node/test_batchnorm_*")
	if err != nil || len(folders) == 0 {
		t.Skip("apt-get install libonnx-testdata")
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			m, err := NewModelFromFile(filepath.Join(folder, "model.onnx"))
			if err != nil {
				t.Fatal(err)
			}
			read := func(kind string, i int) tensor.Tensor {
				b, err := os.ReadFile(filepath.Join(folder, "test_data_set_0", fmt.Sprintf("%s_%d.pb", kind, i)))
				if err != nil {
					t.Fatal(err)
				}
				var p onnx.TensorProto
				if err := proto.Unmarshal(b, &p); err != nil {
					t.Fatal(err)
				}
				d, err := onnx.TensorFromProto(&p)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			inputs := gonnx.Tensors{}
			for i, name := range m.InputNames() {
				inputs[name] = read("input", i)
			}
			out, err := m.Run(inputs)
			if err != nil {
				t.Fatal(err)
			}
			for i, name := range m.OutputNames() {
				want := read("output", i)
				// Their results are in float32, so that their rounding is in the difference.
				check(t, name, out[name], want.Shape(), convert[float64](want.Data().([]float32)), 1e-5)
			}
		})
	}
}

// A tensor that does not lie row by row is read as what it is.
func TestTransposedInput(t *testing.T) {
	x := tensor.New(tensor.WithShape(2, 3, 2), tensor.WithBacking([]float32{1, 10, 2, 20, 3, 30, 4, 40, 5, 50, 6, 60}))
	if err := x.T(0, 2, 1); err != nil { // (2, 2, 3), as a view
		t.Fatal(err)
	}
	one := func(values ...float32) tensor.Tensor {
		return tensor.New(tensor.WithShape(2), tensor.WithBacking(values))
	}
	node := &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}, Output: []string{"y"},
		Attribute: []*onnx.AttributeProto{float("epsilon", 0)}}
	out := run(t, 13, gonnx.Tensors{"x": x, "s": one(1, 1), "bias": one(0, 0), "mean": one(0, 0), "var": one(1, 100)}, node)
	check(t, "Y", out["y"], []int{2, 2, 3}, []float64{1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6}, 1e-6)
}

func TestErrors(t *testing.T) {
	values := func(n int) tensor.Tensor {
		return tensor.New(tensor.WithShape(n), tensor.WithBacking(make([]float32, n)))
	}
	good := func() gonnx.Tensors {
		return gonnx.Tensors{"x": tensor.New(tensor.WithShape(2, 3), tensor.WithBacking(make([]float32, 6))),
			"s": values(3), "bias": values(3), "mean": values(3), "var": values(3)}
	}
	for _, c := range []struct {
		name   string
		opset  int64
		change func(n *onnx.NodeProto, in gonnx.Tensors)
		want   string
	}{
		{"unknown attribute", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Attribute = append(n.Attribute, integer("colour", 1)) }, "colour"},
		{"training_mode before 14", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) {
			n.Attribute = append(n.Attribute, integer("training_mode", 1))
		}, "training_mode"},
		{"spatial behind 8", 9, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Attribute = append(n.Attribute, integer("spatial", 1)) }, "spatial"},
		{"outputs of inference", 14, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Output = append(n.Output, "m", "v") }, "3 outputs"},
		{"outputs of training", 14, func(n *onnx.NodeProto, _ gonnx.Tensors) {
			n.Attribute = append(n.Attribute, integer("training_mode", 1))
			n.Output = append(n.Output, "m", "v", "sm", "sv")
		}, "5 outputs"},
		{"inputs", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Input = n.Input[:4] }, "expected 5 input tensors, got 4"},
		{"missing input", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Input[2] = "" }, "input 2 is missing"},
		{"length of scale", 13, func(_ *onnx.NodeProto, in gonnx.Tensors) { in["s"] = values(4) }, "gamma has 4 elements"},
		{"length of mean", 13, func(_ *onnx.NodeProto, in gonnx.Tensors) { in["mean"] = values(2) }, "2 elements"},
		{"length of var, training", 14, func(n *onnx.NodeProto, in gonnx.Tensors) {
			n.Attribute = append(n.Attribute, integer("training_mode", 1))
			in["var"] = values(2)
		}, "running variance has 2 elements"},
		{"length of var, training in float64", 14, func(n *onnx.NodeProto, in gonnx.Tensors) {
			n.Attribute = append(n.Attribute, integer("training_mode", 1))
			in["mean"] = tensor.New(tensor.WithShape(3), tensor.WithBacking(make([]float64, 3)))
			in["var"] = tensor.New(tensor.WithShape(2), tensor.WithBacking(make([]float64, 2)))
		}, "3 and 2 elements"},
		{"X in float64", 13, func(_ *onnx.NodeProto, in gonnx.Tensors) {
			in["x"] = tensor.New(tensor.WithShape(2, 3), tensor.WithBacking(make([]float64, 6)))
		}, "float64"},
		{"momentum", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Attribute = append(n.Attribute, float("momentum", 1.5)) }, "weight -0.5"},
		{"epsilon", 13, func(n *onnx.NodeProto, _ gonnx.Tensors) { n.Attribute = append(n.Attribute, float("epsilon", -1)) }, "-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}, Output: []string{"y"}}
			in := good()
			c.change(node, in)
			m, err := NewModel(oneNode(c.opset, node))
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Run(in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
}

func TestOpsets(t *testing.T) {
	norm := &onnx.NodeProto{OpType: "BatchNormalization", Output: []string{"y"}}
	for opset := int64(1); opset < 20; opset++ {
		_, err := NewModel(oneNode(opset, norm))
		if want := opset >= MinOpset && opset <= MaxOpset; (err == nil) != want || err != nil && !errors.Is(err, ErrOpset) {
			t.Errorf("opset %d: %v", opset, err)
		}
	}
	for _, c := range []struct {
		opset int64
		node  *onnx.NodeProto
		ok    bool
	}{
		{11, &onnx.NodeProto{OpType: "Softmax"}, false},
		{15, &onnx.NodeProto{OpType: "Softmax"}, true},
		{12, &onnx.NodeProto{OpType: "Squeeze"}, false},
		{12, &onnx.NodeProto{OpType: "Unsqueeze"}, false},
		{9, &onnx.NodeProto{OpType: "Slice"}, false},
		{10, &onnx.NodeProto{OpType: "Slice"}, true},
		{14, &onnx.NodeProto{OpType: "Reshape", Attribute: []*onnx.AttributeProto{integer("allowzero", 1)}}, false},
		{14, &onnx.NodeProto{OpType: "Reshape", Attribute: []*onnx.AttributeProto{integer("allowzero", 0)}}, true},
		{15, &onnx.NodeProto{OpType: "Shape", Attribute: []*onnx.AttributeProto{integer("start", 1)}}, false},
		{14, &onnx.NodeProto{OpType: "GRU", Attribute: []*onnx.AttributeProto{integer("layout", 1)}}, false},
	} {
		_, err := NewModel(oneNode(c.opset, c.node))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrOpset) {
			t.Errorf("%s in opset %d: %v", c.node.OpType, c.opset, err)
		}
	}
	if _, err := Operators(nil, 6); !errors.Is(err, ErrOpset) {
		t.Errorf("opset 6: %v", err)
	}
}

// A model that was loaded by gonnx takes the operator by GetOperator.
func TestGetOperator(t *testing.T) {
	node := &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}, Output: []string{"y"}}
	mp := oneNode(13, node)
	mp.OpsetImport = mp.OpsetImport[:1]
	m, err := gonnx.NewModel(mp)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.GetOperator("BatchNormalization"); err == nil {
		t.Error("gonnx has the operator now: say so in the README")
	}
	executor := 0
	m.GetOperator, err = Operators(m.GetOperator, 13, batchnorm.WithWorkers(2), batchnorm.WithExecutor(func(n int, task func(i int)) {
		executor++
		for i := range n {
			task(i)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if op, err := m.GetOperator("Relu"); err != nil || op.String() != "relu operator" {
		t.Errorf("Relu is %v, %v", op, err)
	}
	const channels, inner = 64, 4096
	ones := slices.Repeat([]float32{1}, channels)
	p := func() tensor.Tensor { return tensor.New(tensor.WithShape(channels), tensor.WithBacking(ones)) }
	x := tensor.New(tensor.WithShape(1, channels, inner), tensor.WithBacking(slices.Repeat([]float32{3}, channels*inner)))
	out, err := m.Run(gonnx.Tensors{"x": x, "s": p(), "bias": p(), "mean": p(), "var": p()})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "Y", out["y"], []int{1, channels, inner}, slices.Repeat([]float64{1 + 2/math.Sqrt(1+1e-5)}, channels*inner), 1e-6)
	if executor == 0 {
		t.Error("the executor was not used")
	}
}

// Several goroutines may run a model, with shapes of their own.
func TestConcurrent(t *testing.T) {
	node := &onnx.NodeProto{OpType: "BatchNormalization", Input: []string{"x", "s", "bias", "mean", "var"}, Output: []string{"y"},
		Attribute: []*onnx.AttributeProto{float("epsilon", 0)}}
	m, err := NewModel(oneNode(15, node))
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for g := range 8 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for n := 1; n <= 64; n++ {
				rows := g*64 + n
				in := gonnx.Tensors{"x": tensor.New(tensor.WithShape(rows, 2), tensor.WithBacking(slices.Repeat([]float32{5, 7}, rows)))}
				for name, v := range map[string][]float32{"s": {2, 1}, "bias": {1, 0}, "mean": {3, 7}, "var": {4, 1}} {
					in[name] = tensor.New(tensor.WithShape(2), tensor.WithBacking(v))
				}
				out, err := m.Run(in)
				if err != nil {
					t.Error(err)
					return
				}
				if y := out["y"].Data().([]float32); !slices.Equal(y, slices.Repeat([]float32{3, 0}, rows)) {
					t.Errorf("%d rows: %v", rows, y[:2])
				}
			}
		}()
	}
	wait.Wait()
}
