package batchnorm

// An Affine is a batch norm in inference: y = x*scale + shift per channel, with
//
//	scale = gamma/sqrt(var + epsilon), shift = beta - mean*scale
//
// in float64. It folds batch norm into the layer before it or behind it, so that
// inference has one operation less. It may be used by several goroutines.
//
// What is folded is rounded to float32 once, from a result in float64. Data far
// from zero lose digits that [Plan.Inference] keeps: x*scale + shift cancels
// where (x - mean)*scale + beta does not.
type Affine struct {
	mean, scale, beta []float64
	act               Activation
}

// AffineArgs are the parameters and statistics of a batch norm, with an element
// per channel.
type AffineArgs struct {
	Gamma []float32 // scale per channel; nil: 1
	Beta  []float32 // shift per channel; nil: 0
	Mean  []float32 // running mean per channel
	Var   []float32 // running variance per channel, not negative
}

// NewAffine takes what [Plan.Inference] takes, with the options of the plan, of
// which only epsilon and activation matter. There are as many channels as Mean
// has elements. It keeps none of the slices.
//
// A variance that is negative beyond epsilon, or NaN, makes scale and shift of
// its channel NaN, as it does to the output of Inference.
func NewAffine(a AffineArgs, opts ...Option) (*Affine, error) {
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	n := len(a.Mean)
	if n == 0 {
		return nil, fail(ErrMissing, "mean is missing, it has an element for each channel")
	}
	for _, s := range []sized{
		{float32s("var", a.Var), n, true},
		{float32s("gamma", a.Gamma), n, false},
		{float32s("beta", a.Beta), n, false},
	} {
		if err := s.check("mean has %d", n); err != nil {
			return nil, err
		}
	}
	f := &Affine{make([]float64, n), make([]float64, n), make([]float64, n), o.act}
	for c := range n {
		f.mean[c] = float64(a.Mean[c])
		f.scale[c] = invStd(float64(a.Var[c]), o.epsilon)
		if a.Gamma != nil {
			f.scale[c] *= float64(a.Gamma[c])
		}
		if a.Beta != nil {
			f.beta[c] = float64(a.Beta[c])
		}
	}
	return f, nil
}

// sized is an operand with the number of elements that it must have.
type sized struct {
	operand
	need     int
	required bool
}

// check reports a missing or wrongly sized operand; the words say where the
// number of elements comes from.
func (s sized) check(words string, args ...any) error {
	switch {
	case s.absent() && s.required && s.need > 0:
		return fail(ErrMissing, "%s is missing, %d elements are needed: "+words, append([]any{s.name, s.need}, args...)...)
	case !s.absent() && s.n != s.need:
		return fail(ErrLength, "%s has %d elements, needs %d: "+words, append([]any{s.name, s.n, s.need}, args...)...)
	}
	return nil
}

// Channels returns the number of channels.
func (f *Affine) Channels() int {
	if f == nil {
		return 0
	}
	return len(f.mean)
}

// z returns what the batch norm makes of v in channel c.
func (f *Affine) z(c int, v float64) float64 {
	return float64((v-f.mean[c])*f.scale[c]) + f.beta[c]
}

// ScaleShift writes scale and shift of every channel, rounded to float32. The
// two slices are apart and have an element per channel; nil is not written.
func (f *Affine) ScaleShift(scale, shift []float32) error {
	if f == nil {
		return fail(ErrMissing, "affine is nil")
	}
	ops := [...]operand{float32s("scale", scale).out(0), float32s("shift", shift).out(0)}
	for _, o := range ops {
		if err := (sized{o, f.Channels(), false}).check("there are %d channels", f.Channels()); err != nil {
			return err
		}
	}
	if err := apart(ops[:]); err != nil {
		return err
	}
	for c := range scale {
		scale[c] = float32(f.scale[c])
	}
	for c := range shift {
		shift[c] = float32(f.z(c, 0))
	}
	return nil
}

// FoldArgs are the weights of a linear layer or a convolution beside a batch
// norm, and where the folded ones go. FoldedWeight may be Weight and FoldedBias
// may be Bias (the same slices); any other overlap is [ErrAlias].
type FoldArgs struct {
	// Shape is that of the weights, with the batch norm's channels as Channels.
	// [Axis] makes it from the dimensions of the weights and the axis that
	// meets the batch norm; [Axes] where two do (Keras' depthwise kernels).
	Shape  Shape
	Weight []float32 // Shape.Len() elements
	Bias   []float32 // nil: 0

	// OutputsLast is read by FoldIntoNext alone: the outputs are the last axis
	// of the weights (Keras, Flax, ONNX MatMul) and not the first (PyTorch).
	OutputsLast bool

	FoldedWeight []float32 // output: as many elements as Weight
	FoldedBias   []float32 // output: an element for each output of the layer
}

// FoldIntoPrevious folds the batch norm into the layer before it:
//
//	weight'[o, ...] = weight[o, ...]*scale[o]
//	bias'[o]        = (bias[o] - mean[o])*scale[o] + beta[o]
//
// The layer's outputs are the channels. The shape is Axis(0, out, in) for
// PyTorch's linear layer, Axis(0, out, in/groups, k...) for its convolution,
// Axis(1, in, out, k...) for its transposed convolution of one group, and
// Axis(-1, ...) for the kernels of Keras and Flax. It holds for every padding
// and stride. The batch norm's activation and residual stay behind the layer.
func (f *Affine) FoldIntoPrevious(a FoldArgs) error {
	if err := f.checkFold(&a, f.Channels()); err != nil {
		return err
	}
	f.foldWeights(&a, nil)
	for c := range a.FoldedBias {
		b := 0.0
		if a.Bias != nil {
			b = float64(a.Bias[c])
		}
		a.FoldedBias[c] = float32(f.z(c, b))
	}
	return nil
}

// FoldIntoNext folds the batch norm into the layer behind it:
//
//	weight'[o, c, ...] = weight[o, c, ...]*scale[c]
//	bias'[o]           = bias[o] + sum over c, ... of weight[o, c, ...]*shift[c]
//
// The layer's inputs are the channels, and there are as many outputs as
// FoldedBias has elements. The shape is Axis(1, out, in) for PyTorch's linear
// layer, and Axis(1, out, C, H*W) for one behind a flattened NCHW tensor. For
// kernels (in, out) it is Axis(0, in, out), with OutputsLast.
//
// A convolution can be folded into only if it does not pad: the zeros of the
// padding are not normalized. With an activation between the two, nothing can
// ([ErrOption]), and a residual must not have been added either.
func (f *Affine) FoldIntoNext(a FoldArgs) error {
	outputs := len(a.FoldedBias)
	if outputs == 0 {
		return fail(ErrMissing, "folded bias is missing, it has an element for each output of the layer")
	}
	if err := f.checkFold(&a, outputs); err != nil {
		return err
	}
	if f.act != Identity {
		return fail(ErrOption, "activation %v stands between the batch norm and the next layer", f.act)
	}
	around, name := a.Shape.Outer, "outer"
	if a.OutputsLast {
		around, name = a.Shape.Inner, "inner"
	}
	if around%outputs != 0 {
		return fail(ErrShape, "folded bias has %d elements, of which %s %d of the weights' shape %v is no multiple", outputs, name, around, a.Shape)
	}
	sums := make([]float64, outputs)
	for o := range a.Bias {
		sums[o] = float64(a.Bias[o])
	}
	f.foldWeights(&a, sums)
	for o, s := range sums {
		a.FoldedBias[o] = float32(s)
	}
	return nil
}

// foldWeights scales the weights, and adds what the shifts give to the outputs.
func (f *Affine) foldWeights(a *FoldArgs, sums []float64) {
	perOutput := len(a.Weight) / max(1, len(sums))
	for k, v := range a.Weight {
		w, c := float64(v), k/a.Shape.Inner%a.Shape.Channels
		if sums != nil {
			o := k / perOutput
			if a.OutputsLast {
				o = k % len(sums)
			}
			sums[o] += float64(w * f.z(c, 0))
		}
		a.FoldedWeight[k] = float32(w * f.scale[c])
	}
}

// checkFold validates everything that both directions have in common.
func (f *Affine) checkFold(a *FoldArgs, outputs int) error {
	if f == nil {
		return fail(ErrMissing, "affine is nil")
	}
	if err := a.Shape.Valid(); err != nil {
		return err
	}
	if a.Shape.Channels != f.Channels() {
		return fail(ErrShape, "the weights' shape %v has %d channels, the batch norm has %d", a.Shape, a.Shape.Channels, f.Channels())
	}
	const weight, bias = 0, 1
	ops := [...]operand{
		weight: float32s("weight", a.Weight),
		bias:   float32s("bias", a.Bias),
		2:      float32s("folded weight", a.FoldedWeight).out(1 << weight),
		3:      float32s("folded bias", a.FoldedBias).out(1 << bias),
	}
	for i, o := range ops {
		n, words, number := a.Shape.Len(), "the weights' shape is %v", any(a.Shape)
		if i&1 == bias {
			n, words, number = outputs, "the layer has %d outputs", outputs
		}
		if err := (sized{o, n, i != bias}).check(words, number); err != nil {
			return err
		}
	}
	return apart(ops[:])
}

// AbsorbBias takes the bias of the layer before a batch norm into the batch
// norm's running mean, where one is as good as the other: mean -= bias, and
// bias becomes 0. Both have an element per channel, and are apart.
//
// In training such a bias has no effect at all, since the batch's mean takes it
// away again (Ioffe and Szegedy 2015, section 3.2); beta is the bias that has
// one. So a layer before batch norm needs none.
func AbsorbBias(mean, bias []float32) error {
	ops := [...]operand{float32s("mean", mean).out(0), float32s("bias", bias).out(0)}
	if len(mean) != len(bias) {
		return fail(ErrLength, "bias has %d elements, mean has %d", len(bias), len(mean))
	}
	if err := apart(ops[:]); err != nil {
		return err
	}
	for c := range mean {
		mean[c], bias[c] = float32(float64(mean[c])-float64(bias[c])), 0
	}
	return nil
}

// BiasGradientArgs are the arguments of [Plan.BiasGradient], with an element
// per channel each.
type BiasGradientArgs struct {
	// Frozen says that the batch was normalized by given statistics and not by
	// its own, as in [Plan.FrozenBackward]. Then Var and DBeta are needed, and Gamma is read.
	Frozen bool
	Gamma  []float32 // as in the forward pass
	Var    []float32 // the variance that normalized
	DBeta  []float32 // gradient by beta

	DBias []float32 // output; may be DBeta
}

// BiasGradient computes the gradient of a bias that the layer before the batch
// norm adds, one for each channel, from what the backward pass gives:
//
//	training: dbias = sum of dx = gamma*invstd*(sum g - sum g - dgamma*mean(xhat)) = 0
//	frozen:   dbias = dbeta*gamma/sqrt(var + epsilon)
//
// In training it is exactly 0: the bias shifts all values of a channel, and so
// their mean, and leaves what they are relative to it. Summing dx instead gives
// the rounding errors of dx, small but not 0, and an optimizer that divides by
// the size of the gradients (Adam, RMSProp) makes full steps of them.
func (p *Plan) BiasGradient(a BiasGradientArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	k.channels("gamma", a.Gamma)
	dbeta, variance := k.channels("dbeta", a.DBeta), k.channels("var", a.Var)
	k.channels("dbias", a.DBias).must().written(dbeta)
	if a.Frozen {
		dbeta.must()
		variance.must()
	}
	if err := k.check(); err != nil {
		return err
	}
	if !a.Frozen {
		clear(a.DBias)
		return nil
	}
	for c := range a.DBias {
		s := invStd(float64(a.Var[c]), p.epsilon)
		if a.Gamma != nil {
			s *= float64(a.Gamma[c])
		}
		a.DBias[c] = float32(float64(a.DBeta[c]) * s)
	}
	return nil
}
