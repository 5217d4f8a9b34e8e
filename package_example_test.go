package batchnorm_test

import (
	"errors"
	"fmt"
	"log"

	"github.com/fusedbn/batchnorm"
)

// A training step: four samples of two channels. The loss is the sum of y, so that
// its gradient is 1 everywhere. Errors are joined, since a method of a nil Layer returns
// one as well. README.md shows this example.
func Example() {
	layer, err := batchnorm.NewLayer(2, batchnorm.WithActivation(batchnorm.ReLU))
	shape := batchnorm.Shape{Outer: 4, Channels: 2, Inner: 1} // or NCHW(4, 2), NHWC(...), Axis(...)
	x, y := []float32{1, 10, 3, 30, 1, 10, 3, 30}, make([]float32, 8)
	dy, dx := []float32{1, 1, 1, 1, 1, 1, 1, 1}, make([]float32, 8)
	err = errors.Join(err, layer.Forward(batchnorm.LayerForwardArgs{Shape: shape, X: x, Y: y}))
	err = errors.Join(err, layer.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx}))
	if err != nil {
		log.Fatal(err)
	}
	for c := range layer.Gamma {
		layer.Gamma[c] -= 0.1 * layer.DGamma[c]
		layer.Beta[c] -= 0.1 * layer.DBeta[c]
	}
	fmt.Printf("%.2f %.2f\n", layer.Gamma, layer.Beta)
	// Output:
	// [0.80 0.80] [-0.20 -0.20]
}
