package batchnorm

import "math"

// In tests small tensors are shared by all workers.
func init() { defaultSchedule.share = 1 }

// Workers returns how many workers share n tasks of a plan.
func Workers(p *Plan, n int) int { return p.workersFor(n, p.shape.Len()) }

// WithShare sets how many values of the tensor each worker has at least.
func WithShare(n int) Option {
	return func(o *options) error {
		o.schedule.share = n
		return nil
	}
}

// WithExtremeSchedule makes a plan take the ways that otherwise large tensors
// take: everything is stored past the caches where it can be, and rows go
// through the pipelined kernels or, if flat is set, in groups of channels.
func WithExtremeSchedule(flat bool) Option {
	return func(o *options) error {
		o.schedule = schedule{flatLen: 40, flatBytes: 1 << 30, fitBytes: math.MaxInt, share: 1}
		if flat {
			o.schedule.pipeLen = 1 << 30
		}
		return nil
	}
}

// ELUInverse is what BackwardFromY turns y = ELU(z) back with.
func ELUInverse(y, alpha float32) float32 { return eluInverse(y, alpha) }
