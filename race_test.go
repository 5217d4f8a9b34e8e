//go:build race

package batchnorm_test

import (
	"os"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
)

func init() { raceBuild = true }

// TestRace is run by TestRaceIsCaught: two goroutines, each with a plan of its own, use the
// same memory. It ends the process before the testing package can take note of the race, so
// that the exit status is the race detector's.
func TestRace(t *testing.T) {
	task := os.Getenv(childVariable)
	if task == "" {
		t.Skip("is run by TestRaceIsCaught")
	}
	r := races[task]
	buffer := func() []float32 { return make([]float32, r.shape.Len()) }
	stats := make([]float64, r.shape.Channels)
	shared := buffer()
	inputs, outputs := [2][]float32{buffer(), buffer()}, [2][]float32{shared, shared}
	if r.reads {
		inputs[1], outputs[1] = shared, buffer()
	}
	var wg sync.WaitGroup
	for i := range inputs {
		p := newPlan(t, r.shape, r.options...)
		start(&wg, func() {
			var err error
			if x, y := inputs[i], outputs[i]; r.backward {
				err = p.Backward(batchnorm.BackwardArgs{DY: x, X: x, Mean: stats, InvStd: stats, DX: y})
			} else {
				err = p.Forward(batchnorm.ForwardArgs{X: x, Y: y})
			}
			if err != nil {
				panic(err)
			}
		})
	}
	wg.Wait()
	os.Exit(0)
}
