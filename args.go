package batchnorm

// ForwardArgs are the arguments of [Plan.Forward]. Tensors (X, Residual, Y) have
// Shape.Len() elements, slices by channel have Shape.Channels.
//
// Y may be X or Residual (the same slice); any other overlap of an output with
// another argument is [ErrAlias].
type ForwardArgs struct {
	X        []float32 // input
	Residual []float32 // added before the activation; nil: none
	Gamma    []float32 // scale per channel; nil: 1
	Beta     []float32 // shift per channel; nil: 0
	Mask     Mask      // which positions are data; zero value: all

	Y      []float32 // output
	Mean   []float64 // output: batch mean per channel; nil: not wanted
	InvStd []float64 // output: 1/sqrt(batch variance + epsilon); nil: not wanted

	// For systems that save statistics in float32: the batch mean and the population
	// variance, each rounded once. A variance beyond float32's range is +Inf.
	BatchMean []float32 // output; nil: not wanted
	BatchVar  []float32 // output; nil: not wanted

	// RunningMean and RunningVar are updated if they are given: by the batch mean, and
	// by the unbiased batch variance (divided by n-1), or by the population variance
	// (divided by n) with [WithRunningVariance].
	RunningMean, RunningVar []float32
	Momentum                Momentum // zero value: the plan's
}

// InferenceArgs are the arguments of [Plan.Inference]. Lengths and aliasing
// are as in [ForwardArgs].
type InferenceArgs struct {
	X        []float32 // input
	Residual []float32 // added before the activation; nil: none
	Gamma    []float32 // scale per channel; nil: 1
	Beta     []float32 // shift per channel; nil: 0
	Mean     []float32 // running mean per channel
	Var      []float32 // running variance per channel, not negative
	Mask     Mask      // which positions are data; zero value: all

	Y []float32 // output
}

// BackwardArgs are the arguments of [Plan.Backward], the gradient of
// [Plan.Forward]. Lengths are as in [ForwardArgs].
//
// DX may be DY or X or Residual, and DResidual may be DY or X or Residual (the
// same slice), but DX and DResidual are apart; any other overlap of an output
// with another argument is [ErrAlias].
type BackwardArgs struct {
	DY       []float32 // gradient of the loss by y
	X        []float32 // input of the forward pass
	Residual []float32 // residual of the forward pass; read only when there is an activation
	Gamma    []float32 // as in the forward pass
	Beta     []float32 // as in the forward pass; read only when there is an activation
	Mask     Mask      // as in the forward pass

	// The statistics of the batch, in float64, in float32 below, or not at all; both
	// forms together are [ErrStatistics]. Without any they are computed again from X,
	// with the bits that they had in Forward, at the cost of one more read of X.
	Mean   []float64 // as Forward saved it
	InvStd []float64 // as Forward saved it

	// Float32 statistics lose digits: for data whose mean is k standard deviations, dx
	// gets an error of some 5e-9*k and dgamma of some 4e-8*k. docs/semantics.md has a
	// table.
	BatchMean []float32 // as Forward saved it
	BatchVar  []float32 // as Forward saved it: the population variance, not negative

	DX        []float32 // output: gradient by x; nil: not wanted
	DResidual []float32 // output: gradient by the residual; nil: not wanted
	DGamma    []float32 // output: gradient by gamma; nil: not wanted
	DBeta     []float32 // output: gradient by beta; nil: not wanted
}
