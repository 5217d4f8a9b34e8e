package batchnorm_test

import (
	"fmt"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// A row of a batch has the same bits in inference whatever batch it is in: of any
// size from 1 to 2048, at any place, in any layout, with any number of workers.
func TestAnyRowOfAnyBatch(t *testing.T) {
	t.Parallel()
	const most = 2048
	sizes := []int{}
	for n := 1; n <= most; n++ {
		if !thorough() && n > 70 && n%61 != 0 && n < most-2 {
			continue
		}
		sizes = append(sizes, n)
	}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, sample := range []struct{ outer, channels, inner int }{{1, 5, 1}, {1, 37, 1}, {1, 3, 7}, {1, 9, 4}, {3, 6, 1}, {1, 1, 5}, {1, 2, 40}} {
			for k, act := range []batchnorm.Activation{batchnorm.ReLU, batchnorm.SiLU} {
				c, n := sample.channels, sample.outer*sample.channels*sample.inner
				x, residual := gen.Normal(1, most*n, 3, 2), gen.Normal(2, most*n, 0, 1)
				args := batchnorm.InferenceArgs{Gamma: gen.Uniform(3, c, -2, 2), Beta: gen.Uniform(4, c, -1, 1),
					Mean: gen.Uniform(5, c, 2, 4), Var: gen.Uniform(6, c, 0.1, 4)}
				infer := func(first, rows, workers int) []float32 {
					a := args
					a.X, a.Residual, a.Y = x[first*n:][:rows*n], residual[first*n:][:rows*n], make([]float32, rows*n)
					if k == 0 {
						a.Residual = nil
					}
					s := batchnorm.Shape{Outer: rows * sample.outer, Channels: c, Inner: sample.inner}
					noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act), batchnorm.WithWorkers(workers)).Inference(a))
					return a.Y
				}
				var alone []float32
				for row := range most {
					alone = append(alone, infer(row, 1, 1)...)
				}
				for _, rows := range sizes {
					first := (rows * 7919) % (most - rows + 1)
					expectBits(t, fmt.Sprintf("%+v, %v: %d rows from %d on", sample, act, rows, first), infer(first, rows, 1+rows%3), alone[first*n:][:rows*n])
					if t.Failed() {
						return
					}
				}
			}
		}
	})
}
