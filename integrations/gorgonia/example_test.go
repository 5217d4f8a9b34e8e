package gorgoniabn_test

import (
	"fmt"
	"log"

	"github.com/fusedbn/batchnorm"
	gorgoniabn "github.com/fusedbn/batchnorm/integrations/gorgonia"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// A graph with batch norm and a fused ReLU, trained for one step, and then
// evaluated by the running statistics.
func ExampleBatchNorm() {
	g := gorgonia.NewGraph()
	x := gorgonia.NewMatrix(g, tensor.Float32, gorgonia.WithName("x"), gorgonia.WithValue(
		tensor.New(tensor.WithShape(4, 1), tensor.WithBacking([]float32{1, 2, 3, 6}))))
	y, scale, bias, op, err := gorgoniabn.BatchNorm(x, nil, nil, 0.1, 1e-5, batchnorm.WithActivation(batchnorm.ReLU))
	if err != nil {
		log.Fatal(err)
	}
	loss := gorgonia.Must(gorgonia.Mean(gorgonia.Must(gorgonia.Square(y))))
	if _, err := gorgonia.Grad(loss, scale, bias); err != nil {
		log.Fatal(err)
	}

	m := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(scale, bias))
	defer m.Close()
	if err := m.RunAll(); err != nil {
		log.Fatal(err)
	}
	dscale, err := scale.Grad()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("training:   %.4f, gradient by scale %.4f\n", y.Value().Data(), dscale.Data())
	mean, variance := op.Stats()
	fmt.Printf("running:    mean %.4f, variance %.4f\n", mean.Data(), variance.Data())

	eval := gorgonia.NewTapeMachine(g, gorgonia.EvalMode())
	defer eval.Close()
	if err := eval.RunAll(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("evaluation: %.4f\n", y.Value().Data())
	// Output:
	// training:   [0.0000 0.0000 0.0000 1.6036], gradient by scale [1.2857]
	// running:    mean [0.3000], variance [1.3667]
	// evaluation: [0.5988 1.4542 2.3096 4.8758]
}
