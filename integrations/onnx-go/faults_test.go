package onnxgobn

import (
	"errors"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"github.com/owulveryck/onnx-go"
	"gorgonia.org/tensor"
)

// Faults of onnx-go v0.5.0, for its authors, and as a proof of the README. Each test runs
// onnx-go's own operator and then this package's. It fails when the fault is gone; the
// README then has a line too many.

// both returns the results of the two operators for a model with the inputs x (1, 1, 1, 3),
// s, bias, mean, var, and others.
func both(t *testing.T, inputs, outputs []string, nodes []onnxmodel.Node, others ...float32) (own, replaced [][]float32) {
	t.Helper()
	for _, installed := range []bool{false, true} {
		if installed {
			install(t)
		}
		in := []tensor.Tensor{dense([]int{1, 1, 1, 3}, []float32{1, 2, 4})}
		for _, v := range append([]float32{1, 0, 2, 1}, others...) {
			in = append(in, dense([]int{1}, []float32{v}))
		}
		out, err := runModel(modelOf(append([]string{"x", "s", "bias", "mean", "var"}, inputs...), outputs, nodes...), in)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out {
			if installed {
				replaced = append(replaced, slices.Clone(o.Data().([]float32)))
			} else {
				own = append(own, slices.Clone(o.Data().([]float32)))
			}
		}
	}
	return own, replaced
}

// Two batch norms of one input are taken for one, though their parameters differ:
// the hash of the operation has its input and the first digit of epsilon only.
func TestOnnxGoTwoNorms(t *testing.T) {
	second := norm("x", "z", float("epsilon", 0))
	second.Inputs[2] = "bias2"
	own, replaced := both(t, []string{"bias2"}, []string{"y", "z"}, []onnxmodel.Node{norm("x", "y", float("epsilon", 0)), second}, 100)
	t.Log("onnx-go:", own)
	if !slices.Equal(own[0], own[1]) {
		t.Error("onnx-go: two batch norms of one input are two now")
	}
	if want := []float32{-1, 0, 2}; !slices.Equal(replaced[0], want) {
		t.Errorf("y = %v, want %v", replaced[0], want)
	}
	if want := []float32{99, 100, 102}; !slices.Equal(replaced[1], want) {
		t.Errorf("z = %v, want %v", replaced[1], want)
	}
}

// A batch norm of a batch of one sample writes its result over its input, so that
// who else reads it, a residual here, gets that in its place.
func TestOnnxGoOverwrittenInput(t *testing.T) {
	own, replaced := both(t, nil, []string{"y"}, []onnxmodel.Node{
		norm("x", "z", float("epsilon", 0)),
		{Op: "Add", Inputs: []string{"z", "x"}, Outputs: []string{"y"}},
	})
	t.Log("onnx-go:", own)
	want := []float32{0, 2, 6}
	if slices.Equal(own[0], want) {
		t.Error("onnx-go: the residual beside a batch norm is right now")
	}
	if !slices.Equal(replaced[0], want) {
		t.Errorf("y = %v, want %v", replaced[0], want)
	}
}

// training_mode is ignored: the running statistics normalize.
func TestOnnxGoTrainingMode(t *testing.T) {
	own, replaced := both(t, nil, []string{"y"}, []onnxmodel.Node{norm("x", "y", float("epsilon", 0), integer("training_mode", 1))})
	if want := []float32{-1, 0, 2}; !slices.Equal(own[0], want) { // by mean 2 and variance 1
		t.Errorf("onnx-go: training_mode 1 gives %v now", own[0])
	}
	check(t, "y", dense([]int{3}, replaced[0]), []int{3}, []float64{-1.0690449676496976, -0.26726124191242434, 1.3363062095621219}, 1e-6)
}

// Shapes other than (N, C, H, W) are refused, which onnx-go says; here they work
// (TestNodes).
func TestOnnxGoShapes(t *testing.T) {
	p := func() tensor.Tensor { return dense([]int{3}, []float32{1, 1, 1}) }
	_, err := runNode(nil, 1, []tensor.Tensor{dense([]int{2, 3}, make([]float32, 6)), p(), p(), p(), p()})
	var notImplemented *onnx.ErrNotImplemented
	if !errors.As(err, &notImplemented) {
		t.Errorf("onnx-go: two dimensions give %v now", err)
	}
}
