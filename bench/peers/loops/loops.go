// Package loops is batch normalization as a Go user would write it, around given loops: the
// arithmetic per channel is the same for all.
package loops

import (
	"math"
	"time"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// Kernels are the loops over a tensor in one layout.
type Kernels struct {
	// Moments computes mean and variance of each channel, in two passes.
	Moments func(s Shape, x, mean, variance []float32)
	// Apply computes y = (x-mean)*scale + shift, and ReLU.
	Apply func(s Shape, x, mean, scale, shift, y []float32, relu bool)
	// Sums computes the sums of g and g*(x-mean). g is dy, but 0 where y is
	// given and not positive.
	Sums func(s Shape, dy, x, y, mean, sumG, sumGX []float32)
	// Gradient computes dx = (g - k1 - (x-mean)*k2)*scale.
	Gradient func(s Shape, dy, x, y, mean, k1, k2, scale, dx []float32)
}

// Shape is Outer x Channels x Inner.
type Shape struct{ Outer, Channels, Inner int }

// Row returns the values of channel c in sample n of a tensor; nil if t is.
func (s Shape) Row(t []float32, n, c int) []float32 {
	if t == nil {
		return nil
	}
	return t[(n*s.Channels+c)*s.Inner:][:s.Inner]
}

// Position returns the channels of position n of a tensor whose Inner is 1;
// nil if t is.
func (s Shape) Position(t []float32, n int) []float32 {
	if t == nil {
		return nil
	}
	return t[n*s.Channels:][:s.Channels]
}

// New returns a runner for a problem in one thread.
func New(p peer.Problem, threads int, layouts map[peer.Layout]Kernels) (peer.Runner, error) {
	k, ok := layouts[p.Layout]
	if !ok {
		return nil, peer.Unsupported("layout %s", p.Layout)
	}
	if threads != 1 {
		return nil, peer.Unsupported("%d threads: the loops run in one", threads)
	}
	r := &runner{Problem: p, k: k}
	r.s.Outer, r.s.Channels, r.s.Inner = p.Shape()
	for _, t := range []*[]float32{&r.y, &r.inferred, &r.dx} {
		*t = make([]float32, p.Len())
	}
	for _, t := range []*[]float32{&r.dgamma, &r.dbeta, &r.mean, &r.variance, &r.invstd, &r.scale, &r.k1, &r.k2} {
		*t = make([]float32, p.C)
	}
	return r, nil
}

type runner struct {
	peer.Problem
	k                              Kernels
	s                              Shape
	mean, variance, invstd         []float32 // of the batch
	scale, k1, k2                  []float32
	y, inferred, dx, dgamma, dbeta []float32
}

func (r *runner) Forward() (time.Duration, error) {
	return peer.Time(func() {
		r.k.Moments(r.s, r.X, r.mean, r.variance)
		for c, v := range r.variance {
			r.invstd[c] = r.invert(v)
			r.scale[c] = r.Gamma[c] * r.invstd[c]
		}
		r.k.Apply(r.s, r.X, r.mean, r.scale, r.Beta, r.y, r.ReLU)
	}), nil
}

func (r *runner) Inference() (time.Duration, error) {
	return peer.Time(func() {
		for c, v := range r.Var {
			r.scale[c] = r.Gamma[c] * r.invert(v)
		}
		r.k.Apply(r.s, r.X, r.Mean, r.scale, r.Beta, r.inferred, r.ReLU)
	}), nil
}

func (r *runner) invert(variance float32) float32 {
	return float32(1 / math.Sqrt(float64(variance)+r.Epsilon))
}

func (r *runner) Backward() (time.Duration, error) {
	y := r.y
	if !r.ReLU {
		y = nil
	}
	n := float32(r.s.Outer * r.s.Inner)
	return peer.Time(func() {
		r.k.Sums(r.s, r.DY, r.X, y, r.mean, r.dbeta, r.dgamma)
		for c, s := range r.invstd {
			r.dgamma[c] *= s
			r.k1[c] = r.dbeta[c] / n
			r.k2[c] = r.dgamma[c] * s / n
			r.scale[c] = r.Gamma[c] * s
		}
		r.k.Gradient(r.s, r.DY, r.X, y, r.mean, r.k1, r.k2, r.scale, r.dx)
	}), nil
}

func (r *runner) Outputs() peer.Outputs {
	return peer.Outputs{Y: r.y, Inference: r.inferred, DX: r.dx, DGamma: r.dgamma, DBeta: r.dbeta}
}

func (r *runner) Close() error { return nil }
