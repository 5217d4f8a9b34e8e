package batchnorm_test

import (
	"fmt"
	"log"
	"sync"

	"github.com/fusedbn/batchnorm"
)

// Fine-tuning with frozen statistics: forward is inference, and the backward pass treats
// the running statistics as constants. gamma and beta still learn. If the layers before it
// are frozen, too, DX is left out.
func ExamplePlan_FrozenBackward() {
	plan, err := batchnorm.NewPlan(batchnorm.Shape{Outer: 3, Channels: 1, Inner: 1}, batchnorm.WithEpsilon(0))
	if err != nil {
		log.Fatal(err)
	}
	x, gamma, beta := []float32{1, 3, 5}, []float32{10}, []float32{0}
	runningMean, runningVar := []float32{1}, []float32{4}
	y := make([]float32, 3)
	if err := plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar, Y: y}); err != nil {
		log.Fatal(err)
	}
	dgamma, dbeta := make([]float32, 1), make([]float32, 1)
	err = plan.FrozenBackward(batchnorm.FrozenBackwardArgs{
		DY: []float32{1, 1, 2}, X: x, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar,
		DGamma: dgamma, DBeta: dbeta,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(y, dgamma, dbeta)
	// Output:
	// [0 10 20] [5] [4]
}

// Synchronized batch norm: two goroutines with parts of different sizes share their
// statistics, and their sums in the backward pass. The shared slices stand for a gather
// over the network. Each goroutine knows its index, so that the result does not depend on
// the order in which they come.
func ExampleMergeMoments() {
	const channels = 1
	xs := [2][]float32{{1, 2, 3, 4, 5, 6}, {7, 8}}
	dys := [2][]float32{{1, 0, 0, 0, 0, 0}, {0, 2}}
	moments, sums := make([]batchnorm.Moments, 2), make([]batchnorm.GradSums, 2)
	var ys, dxs [2][]float32

	barriers := [2]sync.WaitGroup{}
	for i := range barriers {
		barriers[i].Add(2)
	}
	gather := func(i int) { // waits for both
		barriers[i].Done()
		barriers[i].Wait()
	}
	check := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	var done sync.WaitGroup
	for rank := range 2 {
		done.Add(1)
		go func() {
			defer done.Done()
			x, dy := xs[rank], dys[rank]
			plan, err := batchnorm.NewPlan(batchnorm.Shape{Outer: len(x), Channels: channels, Inner: 1}, batchnorm.WithEpsilon(0))
			check(err)

			moments[rank] = batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
			check(plan.Moments(batchnorm.MomentsArgs{X: x, Moments: &moments[rank]}))
			gather(0)
			whole := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
			check(batchnorm.MergeMoments(&whole, moments))
			invstd := make([]float64, channels)
			check(plan.Statistics(batchnorm.StatisticsArgs{Moments: whole, InvStd: invstd})) // each its own running statistics
			ys[rank] = make([]float32, len(x))
			check(plan.Normalize(batchnorm.NormalizeArgs{X: x, Mean: whole.Mean, InvStd: invstd, Y: ys[rank]}))

			sums[rank] = batchnorm.GradSums{G: make([]float64, channels), GD: make([]float64, channels)}
			check(plan.GradSums(batchnorm.GradSumsArgs{DY: dy, X: x, Mean: whole.Mean, InvStd: invstd, Sums: &sums[rank]}))
			gather(1)
			total := batchnorm.GradSums{G: make([]float64, channels), GD: make([]float64, channels)}
			check(batchnorm.MergeGradSums(&total, sums))
			dxs[rank] = make([]float32, len(x))
			check(plan.InputGrad(batchnorm.InputGradArgs{DY: dy, X: x, Mean: whole.Mean, InvStd: invstd, Sums: total, DX: dxs[rank]}))
		}()
	}
	done.Wait()
	for rank := range 2 {
		fmt.Printf("part %d: y %.3f, dx %.3f\n", rank, ys[rank], dxs[rank])
	}
	// Output:
	// part 0: y [-1.528 -1.091 -0.655 -0.218 0.218 0.655], dx [0.400 -0.073 -0.109 -0.145 -0.182 -0.218]
	// part 1: y [1.091 1.528], dx [-0.255 0.582]
}

// Sentences of different lengths: padding has no effect on the statistics, NaN included,
// and becomes 0.
func ExampleMask() {
	shape, err := batchnorm.NCHW(2, 1, 4) // two samples of one channel, of up to four values
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewPlan(shape)
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		1, 3, 1, 3,
		1, 3, 99, -7,
	}
	mask := batchnorm.Mask{Lengths: []int{4, 2}}
	if err := plan.Forward(batchnorm.ForwardArgs{X: x, Y: x, Mask: mask}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.3f\n", x)
	// Output:
	// [-1.000 1.000 -1.000 1.000 -1.000 1.000 0.000 0.000]
}

// A batch of five is normalized in sub-batches of two; the last sub-batch is one sample,
// with two values.
func ExampleGhostPlan() {
	shape, err := batchnorm.NHWC(5, 1, 2, 1)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := batchnorm.NewGhostPlan(shape, batchnorm.GhostBatches{Samples: 5, Size: 2}, batchnorm.WithEpsilon(0))
	if err != nil {
		log.Fatal(err)
	}
	x := []float32{
		1, 2,
		1, 2,

		10, 30,
		10, 30,

		-7, 7,
	}
	runningMean := []float32{0}
	err = plan.Forward(batchnorm.ForwardArgs{X: x, Y: x, RunningMean: runningMean, Momentum: batchnorm.NewWeight(0.5)})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(plan.Batches(), x, runningMean)
	// Output:
	// 3 [-1 1 -1 1 -1 1 -1 1 -1 1] [5.1875]
}

// Memory-saving training: the output overwrites the input, the backward pass reads the
// output, and dx overwrites dy.
func ExamplePlan_BackwardFromY() {
	plan, err := batchnorm.NewPlan(batchnorm.Shape{Outer: 4, Channels: 1, Inner: 1})
	if err != nil {
		log.Fatal(err)
	}
	buffer, gamma, beta, invstd := []float32{1, 3, 1, 3}, []float32{2}, []float32{5}, make([]float64, 1)
	if err := plan.Forward(batchnorm.ForwardArgs{X: buffer, Gamma: gamma, Beta: beta, Y: buffer, InvStd: invstd}); err != nil {
		log.Fatal(err)
	}
	grad, dgamma := []float32{1, 2, 3, 6}, make([]float32, 1)
	err = plan.BackwardFromY(batchnorm.BackwardFromYArgs{
		DY: grad, Y: buffer, Gamma: gamma, Beta: beta, InvStd: invstd, DX: grad, DGamma: dgamma,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("y %.3f, dx %.3f, dgamma %.3f\n", buffer, grad, dgamma)
	// Output:
	// y [3.000 7.000 3.000 7.000], dx [-2.000 -4.000 2.000 4.000], dgamma [4.000]
}

// A small batch whose mean is off the running mean is corrected towards the result of
// inference, within the limits.
func ExamplePlan_RenormForward() {
	plan, err := batchnorm.NewPlan(batchnorm.Shape{Outer: 2, Channels: 1, Inner: 1}, batchnorm.WithEpsilon(0))
	if err != nil {
		log.Fatal(err)
	}
	x, y := []float32{3, 5}, make([]float32, 2)
	r, d := make([]float64, 1), make([]float64, 1)
	for _, limits := range [][2]float64{{1, 0}, {3, 1}, {3, 5}} {
		err := plan.RenormForward(batchnorm.RenormForwardArgs{
			ForwardArgs: batchnorm.ForwardArgs{X: x, Y: y, RunningMean: []float32{0}, RunningVar: []float32{4}},
			RMax:        limits[0], DMax: limits[1], R: r, D: d,
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("r", r, "d", d, "y", y)
	}
	// Output:
	// r [1] d [0] y [-1 1]
	// r [0.5] d [1] y [0.5 1.5]
	// r [0.5] d [2] y [1.5 2.5]
}
