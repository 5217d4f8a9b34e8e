package spagobn_test

import (
	"fmt"
	"log"

	spagobn "github.com/fusedbn/batchnorm/integrations/spago"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
)

// A layer with a fused ReLU: a training pass and its gradients, and inference.
func ExampleModel() {
	m := spagobn.New[float32](2)
	m.Activation = "relu"

	xs := []mat.Tensor{
		mat.NewDense[float32](mat.WithBacking([]float32{1, 10}), mat.WithGrad(true)),
		mat.NewDense[float32](mat.WithBacking([]float32{2, 20}), mat.WithGrad(true)),
		mat.NewDense[float32](mat.WithBacking([]float32{6, 60}), mat.WithGrad(true)),
	}
	ys := m.ForwardT(xs...)
	for _, y := range ys {
		fmt.Printf("%.4f\n", mat.Data[float32](y.Value()))
	}
	if err := ag.Backward(ag.ReduceSum(ys[2])); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("gradient by W: %.4f, by x[2]: %.4f\n", mat.Data[float32](m.W.Grad()), mat.Data[float32](xs[2].Grad()))

	y := m.Forward(xs[2])[0]
	fmt.Printf("inference: %.4f\n", mat.Data[float32](y.Value()))
	// Output:
	// [0.0000 0.0000]
	// [0.0000 0.0000]
	// [1.3887 1.3887]
	// gradient by W: [1.3887 1.3887], by x[2]: [0.0110 0.0011]
	// inference: [4.8758 8.2646]
}
