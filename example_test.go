package batchnorm_test

import (
	"fmt"
	"log"
	"sync"

	"github.com/fusedbn/batchnorm"
)

// A training step: four samples of two features are normalized by their own
// mean and variance, which also enter the running statistics.
func ExamplePlan_Forward() {
	shape, err := batchnorm.NCHW(4, 2)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewPlan(shape)
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		1, 10,
		3, 30,
		1, 10,
		3, 30,
	}
	runningMean, runningVar := []float32{0, 0}, []float32{1, 1}
	y := make([]float32, len(x))
	err = plan.Forward(batchnorm.ForwardArgs{
		X:           x,
		Gamma:       []float32{1, 2},
		Beta:        []float32{0, 5},
		Y:           y,
		RunningMean: runningMean,
		RunningVar:  runningVar,
		Momentum:    batchnorm.NewWeight(0.5),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("y            %.3f\n", y)
	fmt.Printf("running mean %.3f\n", runningMean)
	fmt.Printf("running var  %.3f\n", runningVar)
	// Output:
	// y            [-1.000 3.000 1.000 7.000 -1.000 3.000 1.000 7.000]
	// running mean [1.000 10.000]
	// running var  [1.167 67.167]
}

// Serving: the running statistics take the place of the batch's, a ReLU is
// fused, and the result replaces the input.
func ExamplePlan_Inference() {
	shape, err := batchnorm.NCHW(1, 2, 3) // one sample, two channels of three values
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewPlan(shape, batchnorm.WithActivation(batchnorm.ReLU))
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		-1, 0, 5,
		10, 20, 30,
	}
	err = plan.Inference(batchnorm.InferenceArgs{
		X:    x,
		Mean: []float32{1, 10},
		Var:  []float32{4, 100},
		Y:    x,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.3f\n", x)
	// Output:
	// [0.000 0.000 2.000 0.000 1.000 2.000]
}

// The backward pass needs the input and the statistics that the forward pass saved.
func ExamplePlan_Backward() {
	shape, err := batchnorm.NCHW(4, 1)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewPlan(shape)
	if err != nil {
		log.Fatal(err)
	}
	x, gamma := []float32{1, 3, 1, 3}, []float32{2}
	y := make([]float32, len(x))
	mean, invStd := make([]float64, 1), make([]float64, 1)
	if err := plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Y: y, Mean: mean, InvStd: invStd}); err != nil {
		log.Fatal(err)
	}

	dy := []float32{1, 2, 3, 6} // gradient of the loss by y
	dx := make([]float32, len(x))
	dgamma, dbeta := make([]float32, 1), make([]float32, 1)
	err = plan.Backward(batchnorm.BackwardArgs{
		DY: dy, X: x, Gamma: gamma, Mean: mean, InvStd: invStd,
		DX: dx, DGamma: dgamma, DBeta: dbeta,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("dx     %.3f\n", dx)
	fmt.Printf("dgamma %.3f\n", dgamma)
	fmt.Printf("dbeta  %.3f\n", dbeta)
	// Output:
	// dx     [-2.000 -4.000 2.000 4.000]
	// dgamma [4.000]
	// dbeta  [12.000]
}

// The same image in both layouts; they differ in the shape alone.
func ExampleNHWC() {
	first, err := batchnorm.NCHW(1, 2, 1, 3)
	if err != nil {
		log.Fatal(err)
	}
	last, err := batchnorm.NHWC(1, 1, 3, 2)
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range []struct {
		shape batchnorm.Shape
		x     []float32
	}{
		{first, []float32{1, 2, 3, 10, 40, 70}},
		{last, []float32{1, 10, 2, 40, 3, 70}},
	} {
		plan, err := batchnorm.NewPlan(c.shape)
		if err != nil {
			log.Fatal(err)
		}
		if err := plan.Forward(batchnorm.ForwardArgs{X: c.x, Y: c.x}); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v %.3f\n", c.shape, c.x)
	}
	// Output:
	// 1x2x3 [-1.225 0.000 1.225 -1.225 0.000 1.225]
	// 3x2x1 [-1.225 -1.225 0.000 0.000 1.225 1.225]
}

// The work runs on the caller's own goroutines. The bits are those of one
// worker.
func ExampleWithExecutor() {
	parallelFor := func(n int, task func(i int)) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Add(1)
			go func() {
				defer wg.Done()
				task(i)
			}()
		}
		wg.Wait()
	}
	shape, err := batchnorm.NHWC(2, 64, 64, 16)
	if err != nil {
		log.Fatal(err)
	}
	x := make([]float32, shape.Len())
	for i := range x {
		x[i] = float32(i % 1013)
	}
	run := func(opts ...batchnorm.Option) []float32 {
		plan, err := batchnorm.NewPlan(shape, opts...)
		if err != nil {
			log.Fatal(err)
		}
		y := make([]float32, len(x))
		if err := plan.Forward(batchnorm.ForwardArgs{X: x, Y: y}); err != nil {
			log.Fatal(err)
		}
		return y
	}
	alone := run()
	shared := run(batchnorm.WithExecutor(parallelFor), batchnorm.WithWorkers(4))
	same := true
	for i := range alone {
		same = same && alone[i] == shared[i]
	}
	fmt.Println("same:", same)
	// Output:
	// same: true
}
