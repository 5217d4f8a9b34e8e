package batchnorm_test

import (
	"flag"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// A benchmark takes 0.3 seconds unless -benchtime says otherwise, so that -bench . takes
// half a minute.
func init() {
	testing.Init()
	flag.Set("test.benchtime", "300ms")
}

// BenchmarkPlan times the passes of a plan on three shapes of each layout, with 1
// worker. MB/s counts each tensor once. It is a small set for comparisons by
// benchstat; go run ./bench measures every operation, and against the memory bound,
// other implementations and other numbers of workers.
func BenchmarkPlan(b *testing.B) {
	for _, layout := range []struct {
		name string
		make func(dims ...int) (batchnorm.Shape, error)
		dims [][]int
	}{
		{"nchw", batchnorm.NCHW, [][]int{{8, 64, 16, 16}, {32, 128, 28, 28}, {32, 512, 7, 7}}},
		{"nhwc", batchnorm.NHWC, [][]int{{8, 16, 16, 64}, {32, 28, 28, 128}, {32, 7, 7, 512}}},
		{"nc", batchnorm.NCHW, [][]int{{60, 100}, {256, 1024}, {4096, 256}}},
	} {
		for _, dims := range layout.dims {
			shape, err := layout.make(dims...)
			noError(b, err)
			b.Run(layout.name+"/"+shape.String(), func(b *testing.B) { benchmarkPlan(b, shape) })
		}
	}
}

func benchmarkPlan(b *testing.B, s batchnorm.Shape) {
	plan, err := batchnorm.NewPlan(s)
	noError(b, err)
	x, dy := gen.Normal(1, s.Len(), 0.5, 2), gen.Normal(2, s.Len(), 0, 1)
	y, dx := make([]float32, s.Len()), make([]float32, s.Len())
	gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Normal(4, s.Channels, 0, 1)
	runningMean, runningVar := make([]float32, s.Channels), gen.Uniform(5, s.Channels, 3, 5)
	dgamma, dbeta := make([]float32, s.Channels), make([]float32, s.Channels)
	mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	forward := func() error {
		return plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, Mean: mean, InvStd: invstd,
			RunningMean: runningMean, RunningVar: runningVar})
	}
	noError(b, forward()) // backward needs its statistics
	for _, pass := range []struct {
		name    string
		tensors int // read or written
		run     func() error
	}{
		{"forward", 2, forward},
		{"inference", 2, func() error {
			return plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar, Y: y})
		}},
		{"backward", 3, func() error {
			return plan.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
				DX: dx, DGamma: dgamma, DBeta: dbeta})
		}},
	} {
		b.Run(pass.name, func(b *testing.B) {
			noError(b, pass.run()) // scratch memory
			b.SetBytes(int64(4 * pass.tensors * s.Len()))
			b.ReportAllocs()
			for range b.N {
				noError(b, pass.run())
			}
		})
	}
}
