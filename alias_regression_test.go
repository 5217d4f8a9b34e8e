package batchnorm_test

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// Gradients that cancel make a channel's sums be taken again, from operands that
// an output in their place must not have overwritten.
func TestCancellingSumsInPlace(t *testing.T) {
	s := batchnorm.Shape{Outer: 4, Channels: 2, Inner: 1024}
	n := s.Len()
	x, dy, residual := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range n / 2 {
		x[i], dy[i], residual[i] = float32(math.Sin(float64(i)*1.7)), float32(math.Sin(float64(i)*0.37)), float32(math.Cos(float64(i)))
		x[i+n/2], dy[i+n/2], residual[i+n/2] = x[i], -dy[i], residual[i]
	}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		plan := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.SiLU))
		mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
		noError(t, plan.Forward(batchnorm.ForwardArgs{X: x, Residual: residual, Y: make([]float32, n), Mean: mean, InvStd: invstd}))
		backward := func(at int) (r results) {
			in := [][]float32{slices.Clone(dy), slices.Clone(x), slices.Clone(residual), make([]float32, n)}
			r.dx, r.dgamma, r.dbeta = in[at], make([]float32, s.Channels), make([]float32, s.Channels)
			noError(t, plan.Backward(batchnorm.BackwardArgs{DY: in[0], X: in[1], Residual: in[2], Mean: mean, InvStd: invstd,
				DX: r.dx, DGamma: r.dgamma, DBeta: r.dbeta}))
			return r
		}
		apart := backward(3)
		for at, name := range []string{"dx is dy", "dx is x", "dx is residual"} {
			expectSame(t, name, backward(at), apart)
		}
	})
}
