package onnxgobn

import (
	"math"
	"testing"

	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"gorgonia.org/tensor"
)

// The scores of a trained network are those of float64, with either operator, for
// one image and for several.
func TestModel(t *testing.T) {
	m, err := onnxmodel.Parse(onnxmodel.Fashion)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 3} {
		x, _, err := onnxmodel.Images(n)
		if err != nil {
			t.Fatal(err)
		}
		want, err := onnxmodel.Reference(m, x, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, installed := range []bool{false, true} {
			if installed {
				install(t)
			} else {
				Uninstall()
			}
			out, err := runModel(onnxmodel.Fashion, []tensor.Tensor{dense([]int{n, 1, onnxmodel.Side, onnxmodel.Side}, x)})
			if err != nil {
				t.Fatal(err)
			}
			d := 0.0
			for i, v := range out[0].Data().([]float32) {
				d = max(d, math.Abs(float64(v)-want[i]))
			}
			if !(d < 1e-5) {
				t.Errorf("%d images, installed %v: the scores are off by %.2g", n, installed, d)
			}
		}
	}
}
