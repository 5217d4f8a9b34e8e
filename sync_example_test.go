package batchnorm_test

import (
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/fusedbn/batchnorm"
)

// Synchronized batch norm on two goroutines, with parts of the batch of different
// sizes. With processes in the place of goroutines, mpi.Init returns the
// collective, and nothing else changes.
func ExampleSyncPlan() {
	collectives, err := batchnorm.NewLocalCollective(2, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	parts := [2][]float32{{1, 2, 3, 4, 5, 6}, {7, 8}}
	gradients := [2][]float32{{1, 0, 0, 0, 0, 0}, {0, 2}}
	var means, invstds [2][]float64
	var dgammas [2][]float32
	var done sync.WaitGroup
	for rank, collective := range collectives {
		done.Add(1)
		go func() {
			defer done.Done()
			check := func(err error) {
				if err != nil {
					log.Fatal(err)
				}
			}
			group, err := batchnorm.NewSyncGroup(collective)
			check(err)
			x, dy := parts[rank], gradients[rank]
			plan, err := batchnorm.NewSyncPlan(group, batchnorm.Shape{Outer: len(x), Channels: 1, Inner: 1}, batchnorm.WithEpsilon(0))
			check(err)
			y, mean, invstd := make([]float32, len(x)), make([]float64, 1), make([]float64, 1)
			check(plan.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}))
			dx, dgamma := make([]float32, len(x)), make([]float32, 1)
			check(plan.BeginBackward(batchnorm.BackwardArgs{DY: dy, X: x, Mean: mean, InvStd: invstd, DX: dx, DGamma: dgamma}))
			// ... something else, while the sums are exchanged ...
			check(plan.Wait())
			means[rank], invstds[rank], dgammas[rank] = mean, invstd, dgamma
		}()
	}
	done.Wait()
	fmt.Printf("%.3f %.3f %.3f\n", means[0], invstds[0], dgammas[0])
	fmt.Printf("%.3f %.3f %.3f\n", means[1], invstds[1], dgammas[1])
	// Output:
	// [4.500] [0.436] [1.528]
	// [4.500] [0.436] [1.528]
}

// Layers on several ranks stay the same on all of them. AllReduce adds the gradients of
// other layers.
func ExampleLayer_Synchronize() {
	collectives, err := batchnorm.NewLocalCollective(3, time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	var tracked [3]float32
	var done sync.WaitGroup
	for rank, collective := range collectives {
		done.Add(1)
		go func() {
			defer done.Done()
			check := func(err error) {
				if err != nil {
					log.Fatal(err)
				}
			}
			group, err := batchnorm.NewSyncGroup(collective)
			check(err)
			layer, err := batchnorm.NewLayer(1)
			check(err)
			check(layer.Synchronize(group))
			x := []float32{float32(rank), float32(rank) + 1}
			check(layer.Forward(batchnorm.LayerForwardArgs{
				Shape: batchnorm.Shape{Outer: 2, Channels: 1, Inner: 1}, X: x, Y: make([]float32, 2),
			}))
			check(group.AllReduce(x))
			tracked[rank] = layer.RunningMean[0]
			if rank == 2 {
				fmt.Println("sum", x)
			}
		}()
	}
	done.Wait()
	fmt.Println("running means", tracked)
	// Output:
	// sum [3 6]
	// running means [0.15 0.15 0.15]
}
