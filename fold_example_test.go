package batchnorm_test

import (
	"fmt"
	"log"

	"github.com/fusedbn/batchnorm"
)

// A linear layer of two inputs and one output takes over the batch norm before it, and x
// goes into the folded layer unchanged.
func ExampleAffine_FoldIntoNext() {
	affine, err := batchnorm.NewAffine(batchnorm.AffineArgs{
		Gamma: []float32{2, 1},
		Beta:  []float32{1, 0},
		Mean:  []float32{0, 3},
		Var:   []float32{4, 1},
	}, batchnorm.WithEpsilon(0))
	if err != nil {
		log.Fatal(err)
	}
	weight, bias := []float32{5, 7}, []float32{1} // (out, in)
	err = affine.FoldIntoNext(batchnorm.FoldArgs{
		Dims: []int{1, 2}, Outputs: 0, Inputs: 1, // the inputs are the channels
		Weight: weight, Bias: bias, FoldedWeight: weight, FoldedBias: bias, // in place
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(weight, bias)
	// Output:
	// [5 7] [-15]
}

// A batch is normalized by given statistics in float64.
func ExamplePlan_Normalize() {
	shape, err := batchnorm.NCHW(2, 2)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewPlan(shape)
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		3, 10,
		5, 30,
	}
	err = plan.Normalize(batchnorm.NormalizeArgs{X: x, Mean: []float64{3, 20}, InvStd: []float64{0.5, 0.1}, Y: x})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(x)
	// Output:
	// [0 -1 1 1]
}
