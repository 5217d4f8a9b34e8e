package onnxgobn

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend/testbackend"
	_ "github.com/owulveryck/onnx-go/backend/testbackend/onnx" // ONNX's node tests
	"github.com/owulveryck/onnx-go/backend/x/gorgonnx"
	"gorgonia.org/tensor"
)

func install(t *testing.T, opts ...batchnorm.Option) {
	t.Helper()
	if err := Install(opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(Uninstall)
}

// ONNX's node tests as onnx-go has them.
func TestONNX(t *testing.T) {
	install(t)
	tests := testbackend.GetOpTypeTests(opType)
	if len(tests) < 2 {
		t.Fatalf("onnx-go has %d tests", len(tests))
	}
	for _, c := range tests {
		test := c()
		t.Run(test.GetInfo(), test.RunTest(gorgonnx.NewGraph(), false))
		if test.Skipped {
			t.Errorf("%s was skipped", test.GetInfo())
		}
	}
}

// ONNX's own node tests, and its models exported by PyTorch, where Debian's package libonnx-testdata is installed.
func TestInstalledNodeTests(t *testing.T) {
	install(t)
	var folders []string
	for _, pattern := range []string{"node/test_batchnorm_*", "pytorch-converted/test_BatchNorm*"} {
		found, err := filepath.Glob(filepath.Join("/usr/share/libonnx-testdata/data", pattern))
		if err != nil || len(found) == 0 {
			t.Skip("apt-get install libonnx-testdata")
		}
		folders = append(folders, found...)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			read := func(kind string, i int) tensor.Tensor {
				b, err := os.ReadFile(filepath.Join(folder, "test_data_set_0", fmt.Sprintf("%s_%d.pb", kind, i)))
				if err != nil {
					t.Fatal(err)
				}
				d, err := onnx.NewTensor(b)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			model, err := os.ReadFile(filepath.Join(folder, "model.onnx"))
			if err != nil {
				t.Fatal(err)
			}
			var inputs []tensor.Tensor
			files, err := filepath.Glob(filepath.Join(folder, "test_data_set_0", "input_*.pb"))
			if err != nil {
				t.Fatal(err)
			}
			for i := range files {
				inputs = append(inputs, read("input", i))
			}
			out, err := runModel(model, inputs)
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range out {
				want := read("output", i)
				// Their results are in float32, so that their rounding is in the difference.
				check(t, fmt.Sprint("output ", i), got, want.Shape(), widen(want.Data().([]float32)), 1e-5)
			}
		})
	}
}

// A nodeCase is a model of one BatchNormalization. Expected results are computed
// here, from the operator's definition in float64.
type nodeCase struct {
	name              string
	dims              []int
	epsilon, momentum float64 // 0: the defaults
	outputs           int
	mode              int64 // training_mode
	offset            float64
	spatial0          bool
}

var nodeCases = []nodeCase{
	{name: "batchnorm_example", dims: []int{2, 3, 4, 5}, outputs: 1},
	{name: "batchnorm_epsilon", dims: []int{2, 3, 4, 5}, outputs: 1, epsilon: 1e-2},
	{name: "batchnorm_example_training_mode", dims: []int{2, 3, 4, 5}, outputs: 3, mode: 1},
	{name: "batchnorm_epsilon_training_mode", dims: []int{2, 3, 4, 5}, outputs: 3, mode: 1, epsilon: 1e-2, momentum: 0.25},
	{name: "training, Y alone", dims: []int{6, 5}, outputs: 1, mode: 1},
	{name: "training of former sets", dims: []int{4, 3, 7}, outputs: 5, momentum: 0.5, offset: 100},
	{name: "(N)", dims: []int{7}, outputs: 1},
	{name: "(N), training", dims: []int{7}, outputs: 3, mode: 1},
	{name: "(N, C)", dims: []int{60, 100}, outputs: 1},
	{name: "(N, C), training", dims: []int{60, 100}, outputs: 3, mode: 1},
	{name: "(N, C, L)", dims: []int{3, 5, 33}, outputs: 1},
	{name: "(N, C, D, H, W)", dims: []int{2, 4, 3, 5, 6}, outputs: 1},
	{name: "one sample", dims: []int{1, 3, 17, 5}, outputs: 1},
	{name: "one channel", dims: []int{3, 1, 8, 8}, outputs: 1},
	{name: "one value per channel, training", dims: []int{1, 9}, outputs: 3, mode: 1},
	{name: "offset", dims: []int{1, 16, 14, 14}, outputs: 1, offset: 1e5},
	{name: "offset, training", dims: []int{8, 16, 14, 14}, outputs: 3, mode: 1, offset: 1e5},
	{name: "spatial = 0", dims: []int{5, 3, 4, 2}, outputs: 1, spatial0: true},
}

func TestNodes(t *testing.T) {
	install(t)
	for _, c := range nodeCases {
		t.Run(c.name, c.run)
	}
}

func (c nodeCase) run(t *testing.T) {
	train := c.mode == 1 || c.outputs > 1
	channelDims, inner := []int{1}, 1
	if len(c.dims) > 1 {
		channelDims = c.dims[1:2]
	}
	if c.spatial0 {
		channelDims = c.dims[1:]
	} else if len(c.dims) > 2 {
		inner = product(c.dims[2:])
	}
	channels := product(channelDims)
	r := rand.New(rand.NewPCG(3, 5))
	x := normal(r, product(c.dims), c.offset, 1)
	scale, bias := normal(r, channels, 0, 1), normal(r, channels, 0, 1)
	mean, variance := normal(r, channels, c.offset, 0.5), normal(r, channels, 0, 1)
	for i, v := range variance {
		variance[i] = v*v + 0.1
	}
	var attributes []onnxmodel.Attribute
	epsilon, momentum := float64(float32(1e-5)), float64(float32(0.9))
	if c.epsilon != 0 {
		attributes = append(attributes, float("epsilon", c.epsilon))
		epsilon = float64(float32(c.epsilon))
	}
	if c.momentum != 0 {
		attributes = append(attributes, float("momentum", c.momentum))
		momentum = float64(float32(c.momentum))
	}
	if c.spatial0 {
		attributes = append(attributes, integer("spatial", 0))
	}
	if c.mode != 0 {
		attributes = append(attributes, integer("training_mode", c.mode))
	}
	inputs := []tensor.Tensor{dense(c.dims, x)}
	for _, s := range [][]float32{scale, bias, mean, variance} {
		inputs = append(inputs, dense(channelDims, s))
	}
	out, err := runNode(attributes, c.outputs, inputs)
	if err != nil {
		t.Fatal(err)
	}

	problem := reference.Problem{Outer: len(x) / channels / inner, Channels: channels, Inner: inner, Epsilon: epsilon,
		Activation: "identity", X: x, Gamma: scale, Beta: bias}
	want := [][]float64{nil}
	if train {
		f := reference.Forward(problem)
		running := func(old []float32, batch []float64) []float64 {
			r := make([]float64, channels)
			for i := range r {
				r[i] = momentum*float64(old[i]) + (1-momentum)*batch[i]
			}
			return r
		}
		want = [][]float64{f.Y, running(mean, f.Mean), running(variance, f.Var), f.Mean, f.Var}
	} else {
		want[0] = reference.Inference(problem, mean, variance)
	}
	for i, got := range out {
		dims, bound := channelDims, 3e-7
		if i == 0 {
			dims, bound = c.dims, 2e-6
		}
		check(t, fmt.Sprint("output ", i), got, dims, want[i], bound)
	}
	if !slices.Equal(inputs[0].Data().([]float32), x) || !slices.Equal(inputs[4].Data().([]float32), variance) {
		t.Error("an input was changed")
	}
}

// runNode runs a model of one BatchNormalization.
func runNode(attributes []onnxmodel.Attribute, outputs int, inputs []tensor.Tensor) ([]tensor.Tensor, error) {
	node := norm("x", "out0", attributes...)
	for i := 1; i < outputs; i++ {
		node.Outputs = append(node.Outputs, fmt.Sprint("out", i))
	}
	return runModel(modelOf(node.Inputs, node.Outputs, node), inputs)
}

func norm(x, y string, attributes ...onnxmodel.Attribute) onnxmodel.Node {
	return onnxmodel.Node{Op: opType, Inputs: []string{x, "s", "bias", "mean", "var"}, Outputs: []string{y}, Attributes: attributes}
}

// modelOf returns an ONNX file whose inputs and outputs have no types.
func modelOf(inputs, outputs []string, nodes ...onnxmodel.Node) []byte {
	m := &onnxmodel.Model{Opset: 13, Nodes: nodes}
	for _, name := range inputs {
		m.Inputs = append(m.Inputs, onnxmodel.Value{Name: name})
	}
	for _, name := range outputs {
		m.Outputs = append(m.Outputs, onnxmodel.Value{Name: name})
	}
	b, err := m.Marshal()
	if err != nil {
		panic(err) // an attribute of this file's
	}
	return b
}

func runModel(model []byte, inputs []tensor.Tensor) ([]tensor.Tensor, error) {
	g := gorgonnx.NewGraph()
	m := onnx.NewModel(g)
	if err := m.UnmarshalBinary(model); err != nil {
		return nil, err
	}
	for i, in := range inputs {
		if err := m.SetInput(i, in); err != nil {
			return nil, err
		}
	}
	if err := g.Run(); err != nil {
		return nil, err
	}
	return m.GetOutputTensors()
}

func TestErrors(t *testing.T) {
	install(t)
	zeros := func(dims ...int) tensor.Tensor { return dense(dims, make([]float32, product(dims))) }
	for _, c := range []struct {
		name       string
		attributes []onnxmodel.Attribute
		outputs    int
		change     func(in []tensor.Tensor)
		want       string
	}{
		{"epsilon's type", []onnxmodel.Attribute{integer("epsilon", 1)}, 1, nil, "epsilon is a int64"},
		{"training_mode's type", []onnxmodel.Attribute{float("training_mode", 1)}, 1, nil, "training_mode is a float32"},
		{"epsilon", []onnxmodel.Attribute{float("epsilon", -1)}, 1, nil, "-1"},
		{"momentum", []onnxmodel.Attribute{float("momentum", 1.5)}, 3, nil, "weight -0.5"},
		{"outputs of training", []onnxmodel.Attribute{integer("training_mode", 1)}, 5, nil, "5 outputs"},
		{"length of scale", nil, 1, func(in []tensor.Tensor) { in[1] = zeros(4) }, "gamma has 4 elements"},
		{"length of var, training", nil, 3, func(in []tensor.Tensor) { in[4] = zeros(2) }, "3 and 2 elements"},
		{"types", nil, 1, func(in []tensor.Tensor) {
			for i := 1; i < 5; i++ {
				in[i] = tensor.New(tensor.WithShape(3), tensor.WithBacking(make([]float64, 3)))
			}
		}, "float64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := []tensor.Tensor{zeros(2, 3), zeros(3), zeros(3), zeros(3), zeros(3)}
			if c.change != nil {
				c.change(in)
			}
			_, err := runNode(c.attributes, c.outputs, in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
	node := norm("x", "y")
	node.Inputs[2], node.Inputs[3] = "zero", "zero"
	_, err := runModel(modelOf([]string{"x", "s", "zero", "var"}, node.Outputs, node), []tensor.Tensor{zeros(2, 3), zeros(3), zeros(3), zeros(3)})
	if err == nil || !strings.Contains(err.Error(), "input 2 is missing, or is the same tensor as a later one") {
		t.Errorf("a tensor that is two inputs: %v", err)
	}
}

// A tensor of float64 is left to gorgonnx's own operator.
func TestFloat64(t *testing.T) {
	install(t)
	wide := func(dims []int, v ...float64) tensor.Tensor {
		return tensor.New(tensor.WithShape(dims...), tensor.WithBacking(v))
	}
	out, err := runNode(nil, 1, []tensor.Tensor{
		wide([]int{1, 2, 1, 2}, 1, 2, 3, 4), wide([]int{2}, 1, 1), wide([]int{2}, 0, 0), wide([]int{2}, 1, 3), wide([]int{2}, 1, 4)})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{0, 1, 0, 0.5} {
		if got := out[0].Data().([]float64)[i]; math.Abs(got-want) > 1e-5 {
			t.Errorf("y[%d] = %v, want %v", i, got, want)
		}
	}
}

// Options reach the plans; Uninstall gives the original back.
func TestInstall(t *testing.T) {
	calls := 0
	install(t, batchnorm.WithWorkers(2), batchnorm.WithExecutor(func(n int, task func(i int)) {
		calls++
		for i := range n {
			task(i)
		}
	}))
	in := func() []tensor.Tensor {
		const channels, inner = 64, 4096
		p := func() tensor.Tensor { return dense([]int{channels}, slices.Repeat([]float32{1}, channels)) }
		return []tensor.Tensor{dense([]int{1, channels, inner, 1}, slices.Repeat([]float32{3}, channels*inner)), p(), p(), p(), p()}
	}
	if _, err := runNode(nil, 1, in()); err != nil {
		t.Fatal(err)
	}
	if calls == 0 {
		t.Error("the executor was not used")
	}
	calls = 0
	Uninstall()
	if _, err := runNode(nil, 1, in()); err != nil {
		t.Fatal(err)
	}
	if calls != 0 {
		t.Error("the executor was used after Uninstall")
	}
	install(t)
	own := operators[opType]
	delete(operators, opType)
	defer func() { operators[opType] = own }()
	if err := Install(); !errors.Is(err, ErrVersion) {
		t.Errorf("without the operator: %v", err)
	}
}

// A graph that has run takes another input of the same shape.
func TestRunAgain(t *testing.T) {
	install(t)
	g := gorgonnx.NewGraph()
	m := onnx.NewModel(g)
	node := norm("x", "y", float("epsilon", 0))
	if err := m.UnmarshalBinary(modelOf(node.Inputs, node.Outputs, node)); err != nil {
		t.Fatal(err)
	}
	for i, in := range []tensor.Tensor{nil, dense([]int{2}, []float32{2, 1}), dense([]int{2}, []float32{1, 0}),
		dense([]int{2}, []float32{3, 7}), dense([]int{2}, []float32{4, 1})} {
		if in != nil {
			if err := m.SetInput(i, in); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ x, want []float32 }{{[]float32{5, 7}, []float32{3, 0}}, {[]float32{3, 8}, []float32{1, 1}}} {
		if err := m.SetInput(0, dense([]int{1, 2}, c.x)); err != nil {
			t.Fatal(err)
		}
		if err := g.Run(); err != nil {
			t.Fatal(err)
		}
		out, err := m.GetOutputTensors()
		if err != nil {
			t.Fatal(err)
		}
		if y := out[0].Data().([]float32); !slices.Equal(y, c.want) {
			t.Errorf("y = %v, want %v", y, c.want)
		}
	}
}

// Nodes that differ in an attribute alone are two.
func TestAttributesTellApart(t *testing.T) {
	install(t)
	in := []tensor.Tensor{dense([]int{3, 1}, []float32{1, 2, 4})}
	for _, v := range []float32{1, 0, 2, 1} {
		in = append(in, dense([]int{1}, []float32{v}))
	}
	first, second := norm("x", "y", float("epsilon", 0)), norm("x", "z", float("epsilon", 3))
	out, err := runModel(modelOf(first.Inputs, []string{"y", "z"}, first, second), in)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "y", out[0], []int{3, 1}, []float64{-1, 0, 2}, 0)
	check(t, "z", out[1], []int{3, 1}, []float64{-0.5, 0, 1}, 0)
}

func check(t *testing.T, name string, got tensor.Tensor, dims []int, want []float64, bound float64) {
	t.Helper()
	if got == nil {
		t.Fatalf("%s is missing", name)
	}
	if !slices.Equal([]int(got.Shape()), dims) {
		t.Errorf("%s has shape %v, want %v", name, got.Shape(), dims)
	}
	data, ok := got.Data().([]float32)
	if !ok || len(data) != len(want) {
		t.Fatalf("%s is %T of %d elements, want %d", name, got.Data(), len(data), len(want))
	}
	for i, v := range data {
		if !(math.Abs(float64(v)-want[i]) <= bound*(1+math.Abs(want[i]))) {
			t.Fatalf("%s[%d] = %v, want %v", name, i, v, want[i])
		}
	}
}

func dense(dims []int, values []float32) tensor.Tensor {
	return tensor.New(tensor.WithShape(dims...), tensor.WithBacking(slices.Clone(values)))
}

func normal(r *rand.Rand, n int, mean, std float64) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(mean + std*r.NormFloat64())
	}
	return s
}

func widen(s []float32) []float64 {
	r := make([]float64, len(s))
	for i, v := range s {
		r[i] = float64(v)
	}
	return r
}

func product(dims []int) int {
	p := 1
	for _, d := range dims {
		p *= d
	}
	return p
}

func float(name string, v float64) onnxmodel.Attribute {
	return onnxmodel.Attribute{Name: name, Value: float32(v)}
}

func integer(name string, v int64) onnxmodel.Attribute {
	return onnxmodel.Attribute{Name: name, Value: v}
}
