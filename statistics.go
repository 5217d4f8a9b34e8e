package batchnorm

import "math"

// VarianceToInvStd returns 1/sqrt(variance + epsilon), what [ForwardArgs].InvStd
// has, and 0 where that would be infinite: a variance of 0 with epsilon 0 is invstd
// 0. A sum below 0 gives NaN.
func VarianceToInvStd(variance, epsilon float64) float64 { return invStd(variance, epsilon) }

// InvStdToVariance returns the variance that invstd was made of with epsilon:
// 1/invstd^2 - epsilon, and 0 where rounding would make that negative. An invstd of
// 0 is variance 0 with epsilon 0, and otherwise +Inf, as is a variance whose root
// no float64 has the inverse of. A negative invstd gives NaN.
//
// What comes back is within 2^-50*(variance + epsilon) of the variance from an invstd
// in float64, and within 2^-22*(variance + epsilon) from one in float32: digits are
// lost where epsilon is larger than the variance.
func InvStdToVariance(invstd, epsilon float64) float64 {
	switch {
	case invstd < 0:
		return math.NaN()
	case invstd == 0 && epsilon == 0:
		return 0
	case invstd == 0:
		return math.Inf(1)
	}
	s := 1 / invstd // whose square may have a range that invstd's has not
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

// noStatistics is what an empty batch has.
func noStatistics(a *ForwardArgs) {
	fill(a.Mean, math.NaN())
	fill(a.InvStd, math.NaN())
	fill(a.BatchMean, float32(math.NaN()))
	fill(a.BatchVar, float32(math.NaN()))
}

// given returns which of the four operands are needed that statistics are given in,
// of a backward pass: two, or none where they are to be taken anew.
func (a *BackwardArgs) given(mean, invstd, batchMean, batchVar aliases) (aliases, error) {
	wide := a.Mean != nil || a.InvStd != nil
	narrow := a.BatchMean != nil || a.BatchVar != nil
	switch {
	case wide && narrow:
		return 0, fail(ErrStatistics, "mean has %d elements, invstd %d, batch mean %d and batch variance %d: must be either the first two, the last two, or none",
			len(a.Mean), len(a.InvStd), len(a.BatchMean), len(a.BatchVar))
	case wide:
		return mean | invstd, nil
	case narrow:
		return batchMean | batchVar, nil
	}
	return 0, nil
}

// retake takes the statistics of a backward pass anew from x, with the bits that
// they have in the forward pass. It comes before anything else of the pass.
func (w *work) retake(x []float32) {
	w.backward, w.x = false, x
	w.run(takeSums)
}
