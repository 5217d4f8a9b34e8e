package batchnorm

// In tests small tensors are shared by all workers.
func init() { defaultLimits.share = 1 }

// Workers returns how many workers share n tasks of a plan.
func Workers(p *Plan, n int) int { return p.workersFor(n, p.shape.Len()) }

// WithShare sets how many values of the tensor each worker has at least.
func WithShare(n int) Option {
	return func(o *options) error {
		o.limits.share = n
		return nil
	}
}

// WithExtremeSchedule makes a plan take the ways that otherwise large tensors
// take: every output takes non-temporal stores where it can, and small groups of
// channels take turns or, with phases, all sums are taken before outputs are written.
func WithExtremeSchedule(phases bool) Option {
	return func(o *options) error {
		o.limits = limits{machine: machine{l2: 1 << 20, l3: 1 << 30}, groupLen: 40, groupPart: 1, fitPart: 1, tile: 64, share: 1, recompute: 16}
		if phases {
			o.limits.l3, o.limits.recompute = 0, 0
		}
		return nil
	}
}

// Rescued returns how many channels had their sums taken again so far.
func Rescued() int64 { return rescued.Load() }

// ELUInverse is what BackwardFromY turns y = ELU(z) back with.
func ELUInverse(y, alpha float32) float32 { return eluInverse(y, alpha) }
