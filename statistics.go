package batchnorm

import "math"

// VarianceToInvStd returns invstd = 1/sqrt(variance + epsilon), with the bits of
// [ForwardArgs].InvStd. A variance of 0 with epsilon 0 gives 0 instead of infinity. A
// sum below 0 gives NaN.
func VarianceToInvStd(variance, epsilon float64) float64 { return invStd(variance, epsilon) }

// InvStdToVariance returns the variance of an invstd made with epsilon:
// 1/invstd^2 - epsilon, and 0 where rounding would make that negative. An invstd of
// 0 gives variance 0 if epsilon is 0, and +Inf otherwise. A variance beyond float64's
// range is +Inf. A negative invstd gives NaN.
//
// The error is within 2^-50*(variance + epsilon) for an invstd in float64, and within
// 2^-22*(variance + epsilon) for one in float32: digits are lost where epsilon is larger
// than the variance.
func InvStdToVariance(invstd, epsilon float64) float64 {
	switch {
	case invstd < 0:
		return math.NaN()
	case invstd == 0 && epsilon == 0:
		return 0
	case invstd == 0:
		return math.Inf(1)
	}
	s := 1 / invstd // invstd*invstd could overflow or vanish where s*s does not
	return max(float64(s*s)-epsilon, 0)
}

// saveBatch writes the batch's statistics in float32, where they are wanted.
func saveBatch(mean32, variance32 []float32, mean, variance []float64) {
	for c := range mean32 {
		mean32[c] = float32(mean[c])
	}
	for c := range variance32 {
		variance32[c] = float32(variance[c])
	}
}

// noStatistics sets the statistics to those of an empty batch.
func (o *operands) noStatistics() {
	fill(o.mean, math.NaN())
	fill(o.invstd, math.NaN())
	fill(o.variance, math.NaN())
	fill(o.batchMean, nan)
	fill(o.batchVar, nan)
}

// oneForm requires the statistics in one form, float64 or float32, or none.
func (k *checker) oneForm(double, single []*operand) {
	has := func(pair []*operand) bool { return !pair[0].absent() || !pair[1].absent() }
	if has(double) && has(single) {
		k.err = fail(ErrStatistics, "mean has %d elements, invstd %d, batch mean %d, batch variance %d: the first two are needed, the last two, or none",
			double[0].n, double[1].n, single[0].n, single[1].n)
	}
	for _, pair := range [...][]*operand{double, single} {
		if has(pair) {
			pair[0].must()
			pair[1].must()
		}
	}
}

// retake computes the statistics of a backward pass again from x, with the bits that
// they have in the forward pass. It comes before all other steps of the pass.
func (w *workspace) retake(x []float32) {
	begun := w.call
	w.forwardCall(w.plan.act, &operands{x: x})
	w.run(takeSums)
	w.call = begun
}
