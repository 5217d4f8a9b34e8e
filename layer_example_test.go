package batchnorm_test

import (
	"fmt"
	"log"

	"github.com/fusedbn/batchnorm"
)

// A training step by hand: forward, the gradient of a loss, backward, and a step
// of gradient descent on gamma and beta.
func ExampleLayer() {
	layer, err := batchnorm.NewLayer(2, batchnorm.WithActivation(batchnorm.ReLU))
	if err != nil {
		log.Fatal(err)
	}
	shape, err := batchnorm.NCHW(4, 2) // four samples; the next batch may have another number
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		1, 10,
		3, 30,
		1, 10,
		3, 30,
	}
	y := make([]float32, len(x))
	if err := layer.Forward(batchnorm.LayerForwardArgs{Shape: shape, X: x, Y: y}); err != nil {
		log.Fatal(err)
	}

	// Loss: the sum of y; its gradient by y is 1 everywhere.
	dy, dx := []float32{1, 1, 1, 1, 1, 1, 1, 1}, make([]float32, len(x))
	if err := layer.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx}); err != nil {
		log.Fatal(err)
	}
	for c := range layer.Gamma {
		layer.Gamma[c] -= 0.1 * layer.DGamma[c]
		layer.Beta[c] -= 0.1 * layer.DBeta[c]
	}
	fmt.Printf("y            %.2f\n", y)
	fmt.Printf("gamma        %.2f\n", layer.Gamma)
	fmt.Printf("beta         %.2f\n", layer.Beta)
	fmt.Printf("running mean %.2f after %d batch\n", layer.RunningMean, layer.BatchesTracked)
	// Output:
	// y            [0.00 0.00 1.00 1.00 0.00 0.00 1.00 1.00]
	// gamma        [0.80 0.80]
	// beta         [-0.20 -0.20]
	// running mean [0.20 2.00] after 1 batch
}

// Serving with a trained layer: the running statistics normalize, and one
// sample is enough. Several goroutines may do so at a time.
func ExampleLayer_Inference() {
	layer, err := batchnorm.NewLayer(2)
	if err != nil {
		log.Fatal(err)
	}
	copy(layer.RunningMean, []float32{1, 10})
	copy(layer.RunningVar, []float32{4, 100})

	x := []float32{5, 0}
	err = layer.Inference(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 1, Channels: 2, Inner: 1}, X: x, Y: x})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.3f\n", x)
	// Output:
	// [2.000 -1.000]
}

// The state of a layer is saved, and loaded into a layer made with the same options. A
// damaged file is refused.
func ExampleLayer_MarshalBinary() {
	trained, err := batchnorm.NewLayer(2, batchnorm.Keras())
	if err != nil {
		log.Fatal(err)
	}
	copy(trained.Gamma, []float32{0.5, 2})
	copy(trained.RunningMean, []float32{3, -1})
	trained.BatchesTracked = 1000
	state, err := trained.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}

	loaded, err := batchnorm.NewLayer(2, batchnorm.Keras())
	if err != nil {
		log.Fatal(err)
	}
	if err := loaded.UnmarshalBinary(state); err != nil {
		log.Fatal(err)
	}
	fmt.Println(loaded.Gamma, loaded.RunningMean, loaded.BatchesTracked)

	fmt.Println("truncated is refused:", loaded.UnmarshalBinary(state[:len(state)-1]) != nil)
	// Output:
	// [0.5 2] [3 -1] 1000
	// truncated is refused: true
}

// A linear layer of two inputs and three outputs takes over the batch norm after it.
func ExampleAffine_FoldIntoPrevious() {
	affine, err := batchnorm.NewAffine(batchnorm.AffineArgs{
		Gamma: []float32{1, 2, 1},
		Beta:  []float32{0, 0, 1},
		Mean:  []float32{0, 1, 2},
		Var:   []float32{4, 4, 1},
	}, batchnorm.WithEpsilon(0))
	if err != nil {
		log.Fatal(err)
	}
	weight := []float32{ // (out, in)
		1, 2,
		3, 4,
		5, 6,
	}
	bias := []float32{1, 1, 1}
	err = affine.FoldIntoPrevious(batchnorm.FoldArgs{
		Dims: []int{3, 2}, Outputs: 0, Inputs: 1, // the outputs are the channels
		Weight: weight, Bias: bias, FoldedWeight: weight, FoldedBias: bias, // in place
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(weight)
	fmt.Println(bias)
	// Output:
	// [0.5 1 3 4 5 6]
	// [0.5 0 0]
}

// Statistics over height and batch, for every channel and column of an image. No Shape has
// this form, so parts of the tensor are copied.
func ExampleNewAxesPlan() {
	keep, dims := []int{1, 3}, []int{1, 2, 2, 3} // (N, C, H, W)
	if _, err := batchnorm.Axes(keep, dims...); err != nil {
		fmt.Println(err)
	}
	plan, err := batchnorm.NewAxesPlan(keep, dims)
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		1, 2, 3,
		3, 6, 9,

		10, 0, 0,
		20, 1, 8,
	}
	mean := make([]float64, plan.Channels())
	if err := plan.Forward(batchnorm.ForwardArgs{X: x, Y: x, Mean: mean}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(mean)
	// Output:
	// batchnorm: axes [1 3] of [1 2 2 3] are not adjacent: between them lie axes that are averaged over; use NewAxesPlan
	// [2 4 6 15 0.5 4]
}
