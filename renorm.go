package batchnorm

import "math"

// RenormForwardArgs are the arguments of [Plan.RenormForward]: those of
// [Plan.Forward], with required running statistics, and the four below. R and D are
// apart from all other arguments.
type RenormForwardArgs struct {
	ForwardArgs
	RMax float64 // r is from 1/RMax to RMax; at least 1, may be infinite
	DMax float64 // d is from -DMax to DMax; at least 0, may be infinite

	R, D []float64 // outputs: r and d per channel, for RenormBackward
}

// RenormBackwardArgs are the arguments of [Plan.RenormBackward]: those of
// [Plan.Backward], and R and D as RenormForward saved them.
type RenormBackwardArgs struct {
	BackwardArgs
	R, D []float64 // as RenormForward saved them
}

// RenormForward is batch renormalization (Ioffe 2017, arXiv 1702.03275): a
// training forward pass for small batches, whose result is nearer to the inference's.
// With the running mean μ and variance σ² before the call, and the batch's mean and
// invstd,
//
//	r = sqrt((batch variance + epsilon)/(σ² + epsilon)), clipped to [1/RMax, RMax]
//	d = (mean - μ)/sqrt(σ² + epsilon), clipped to [-DMax, DMax]
//	y = act(((x - mean)*invstd*r + d)*gamma + beta + residual)
//
// Then the running statistics are updated as by [Plan.Forward]. They hold the
// variance, as in all other operations; the paper tracks the standard deviation. With
// RMax 1 and DMax 0 this is Forward; the paper begins there and moves to 3 and 5.
//
// r and d are folded into the constants of the channel, so that the cost is that of
// Forward. With a running variance of 0 and epsilon 0, r is RMax, or 1 if the batch's
// variance is 0 too, and d is ±DMax, or 0 if the means are equal. Where the running mean is
// NaN, or σ² + epsilon is NaN or negative, d and y are NaN.
func (p *Plan) RenormForward(a RenormForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkForward(&a.ForwardArgs, &a)
	if err != nil {
		return err
	}
	if !(a.RMax >= 1) {
		return fail(ErrRenorm, "rmax is %v, must be at least 1", a.RMax)
	}
	if !(a.DMax >= 0) {
		return fail(ErrRenorm, "dmax is %v, must be at least 0", a.DMax)
	}
	if n == 0 {
		fill(a.R, 1)
		fill(a.D, 0)
	}
	o := a.ForwardArgs.operands()
	p.forward(&o, &a.Mask, n, a.Momentum.or(p.momentum), renormalization{a.R, a.D, a.RunningMean, a.RunningVar, a.RMax, a.DMax})
	return nil
}

// RenormBackward computes the gradients of [Plan.RenormForward], where r and d
// are constants. With xhat and g as in [Plan.Backward],
//
//	dresidual = g
//	dbeta     = sum of g
//	dgamma    = sum of g*(xhat*r + d)
//	dx        = gamma*r*invstd*(g - mean of g - xhat*(mean of g*xhat))
func (p *Plan) RenormBackward(a RenormBackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkBackward(&a.BackwardArgs, &a)
	if err != nil {
		return err
	}
	o := a.BackwardArgs.operands()
	p.backward(&o, &a.Mask, n, renormalization{r: a.R, d: a.D}, nil)
	return nil
}

// renormalization holds r and d of every channel. The other fields are for the forward
// pass, which derives r and d from them.
type renormalization struct {
	r, d           []float64
	mean, variance []float32 // running statistics
	rmax, dmax     float64
}

// set derives r and d of a channel from its batch and its running statistics.
func (a *renormalization) set(c int, mean, variance, epsilon float64) {
	deviation := math.Sqrt(float64(a.variance[c]) + epsilon)
	ratio := func(v, ifNone float64) float64 {
		if v == 0 && deviation == 0 {
			return ifNone
		}
		return v / deviation
	}
	r := ratio(math.Sqrt(variance+epsilon), 1)
	d := ratio(mean-float64(a.mean[c]), 0)
	// min and max keep a NaN.
	a.r[c] = min(max(r, 1/a.rmax), a.rmax)
	a.d[c] = min(max(d, -a.dmax), a.dmax)
}
