//go:build race

package batchnorm_test

import (
	"os"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
)

func init() { raceBuild = true }

// TestRace is what TestRaceIsCaught runs: two goroutines, each with a plan of
// its own, write the same output. It ends the process before the testing
// package can take note of the race, so that the exit status is the race
// detector's.
func TestRace(t *testing.T) {
	task := os.Getenv(childVariable)
	if task == "" {
		t.Skip("is run by TestRaceIsCaught")
	}
	r := races[task]
	n := r.shape.Len()
	x, shared := make([]float32, n), make([]float32, n)
	stats := make([]float64, r.shape.Channels)
	var wg sync.WaitGroup
	for range 2 {
		p := newPlan(t, r.shape, batchnorm.WithPath(r.path))
		wg.Go(func() {
			var err error
			if r.backward {
				err = p.Backward(batchnorm.BackwardArgs{DY: x, X: x, Mean: stats, InvStd: stats, DX: shared})
			} else {
				err = p.Forward(batchnorm.ForwardArgs{X: x, Y: shared})
			}
			if err != nil {
				panic(err)
			}
		})
	}
	wg.Wait()
	os.Exit(0)
}
