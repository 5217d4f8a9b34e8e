package main

import (
	"math"
	"slices"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/images"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// inputs are the tensors and parameters that the operations read. |beta| and |residual|
// are at most 1. The limits in checks.go rely on it.
type inputs struct {
	dims            batchnorm.Shape
	x, residual, dy []float32
	gamma, beta     []float32

	// The results of a forward pass over x, for backward and for inference.
	mean, invstd            []float64
	runningMean, runningVar []float32
}

// inputs makes the inputs of the operations on the case. It makes a residual if one of
// them takes it. No pre-activation with a gradient is within kink of 0.
func (c *testCase) inputs(list []op, kink float64) (*inputs, error) {
	n, channels := c.dims.Len(), c.dims.Channels
	in := &inputs{
		dims:        c.dims,
		x:           c.x(),
		dy:          gen.Uniform(2, n, -1, 1),
		gamma:       gen.Uniform(3, channels, 0.5, 1.5),
		beta:        gen.Uniform(4, channels, -1, 1),
		mean:        make([]float64, channels),
		invstd:      make([]float64, channels),
		runningMean: make([]float32, channels),
		runningVar:  make([]float32, channels),
	}
	if slices.ContainsFunc(list, func(o op) bool { return o.residual }) {
		in.residual = gen.Uniform(1, n, -1, 1)
	}
	p, err := batchnorm.NewPlan(c.dims)
	if err != nil {
		return nil, err
	}
	err = p.Forward(batchnorm.ForwardArgs{
		X: in.x, Y: make([]float32, n), Mean: in.mean, InvStd: in.invstd,
		RunningMean: in.runningMean, RunningVar: in.runningVar,
		Momentum: batchnorm.Cumulative(1), // of one batch: just its statistics
	})
	if err != nil {
		return nil, err
	}
	in.avoidKink(kink)
	return in, nil
}

// kink is the distance from 0 within which a pre-activation may have another sign in
// float32 than in float64. It is several times the limit for its error.
const kink = 1e-5

// avoidKink sets the gradients of elements beside the kink of ReLU to 0, where either
// derivative is right.
func (in *inputs) avoidKink(kink float64) {
	s := in.dims
	for k, x := range in.x {
		c := channelOf(s, k)
		z := (float64(x)-in.mean[c])*in.invstd[c]*float64(in.gamma[c]) + float64(in.beta[c])
		if in.residual != nil {
			z += float64(in.residual[k])
		}
		if math.Abs(z) < kink {
			in.dy[k] = 0
		}
	}
}

// channelOf returns the channel of the element at index k.
func channelOf(s batchnorm.Shape, k int) int { return k / s.Inner % s.Channels }

// outputs are the tensors and numbers that the operations write. An operation writes some
// of them.
type outputs struct {
	tensor                  []float32 // y or dx
	dresidual               []float32
	mean, invstd            []float64
	runningMean, runningVar []float32
	dgamma, dbeta           []float32
}

// newWeight is the weight of a batch in the running statistics.
const newWeight = 0.1

func newOutputs(in *inputs) *outputs {
	n, channels := in.dims.Len(), in.dims.Channels
	out := &outputs{
		tensor:      make([]float32, n),
		mean:        make([]float64, channels),
		invstd:      make([]float64, channels),
		runningMean: make([]float32, channels),
		runningVar:  make([]float32, channels),
		dgamma:      make([]float32, channels),
		dbeta:       make([]float32, channels),
	}
	if in.residual != nil {
		out.dresidual = make([]float32, n)
	}
	out.reset(in)
	return out
}

// reset sets the running statistics to their values before the first batch, for which any
// numbers do. It sets all other outputs to NaN, since an operation has to write them.
func (out *outputs) reset(in *inputs) {
	copy(out.runningMean, in.beta)
	copy(out.runningVar, in.gamma)
	for _, s := range [][]float32{out.tensor, out.dresidual, out.dgamma, out.dbeta} {
		fill(s, float32(math.NaN()))
	}
	fill(out.mean, math.NaN())
	fill(out.invstd, math.NaN())
}

func fill[T any](s []T, v T) {
	for i := range s {
		s[i] = v
	}
}

// pixels returns the images as numbers from 0 to 1.
func pixels(set *images.Set) []float32 {
	x := make([]float32, len(set.Pixels))
	for i, p := range set.Pixels {
		x[i] = float32(p) / 255
	}
	return x
}

const patchSize = 4

// patches returns the images as rows of patches, whose pixels, row by row, are
// the channels: NHWC.
func patches(set *images.Set) []float32 {
	const p = patchSize
	flat := pixels(set)
	x := make([]float32, 0, len(flat))
	for n := range set.N {
		for r := 0; r < set.Rows; r += p {
			for c := 0; c < set.Cols; c += p {
				for i := range p {
					row := flat[((n*set.Rows)+r+i)*set.Cols+c:]
					x = append(x, row[:p]...)
				}
			}
		}
	}
	return x
}

// generated returns values that are nearly normally distributed. Every channel has a mean
// and a standard deviation of its own.
func generated(seed uint64, s batchnorm.Shape) []float32 {
	x := gen.Normal(seed, s.Len(), 0, 1)
	mean := gen.Uniform(seed+1, s.Channels, -1, 1)
	std := gen.Uniform(seed+2, s.Channels, 0.5, 2)
	for k, v := range x {
		c := channelOf(s, k)
		x[k] = float32(v*std[c]) + mean[c] // the product is rounded, on every machine
	}
	return x
}
