package batchnorm

// An Affine is a batch norm in inference: y = x*scale + shift per channel, with
//
//	scale = gamma/sqrt(var + epsilon), shift = beta - mean*scale
//
// in float64. It folds batch norm into the layer before or after it, so that
// inference has one operation less. It may be used by several goroutines.
//
// Folded weights and biases are computed in float64 and rounded to float32 once. Data
// far from zero lose digits that [Plan.Inference] keeps: x*scale + shift cancels
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

// NewAffine takes the parameters and statistics of [Plan.Inference], and the options
// of the plan, of which only epsilon and activation matter. The number of channels is
// the length of Mean. It keeps none of the slices.
//
// Where variance + epsilon is negative or NaN, scale and shift of the channel are NaN,
// as the output of Inference is.
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

// check reports a missing or wrongly sized operand; the words explain the number of
// elements.
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

// z returns the batch norm of v in channel c.
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

// FoldArgs are the weights of a linear layer or a convolution before or after a batch
// norm, and the slices for the folded ones. FoldedWeight may be Weight and FoldedBias
// may be Bias (the same slices); any other overlap is [ErrAlias].
//
//	layer                                Dims                       Outputs  Inputs  Groups  Transposed
//	linear (PyTorch, ONNX Gemm)          out, in                          0       1
//	linear (Keras, Flax, ONNX MatMul)    in, out                          1       0
//	linear after a flattened NCHW tensor out, C, H*W                      0       1
//	linear after a flattened NHWC tensor H*W, C, out                      2       1
//	convolution (PyTorch, ONNX)          out, in/groups, kh, kw           0       1  groups
//	convolution (Keras, Flax)            kh, kw, in/groups, out          -1      -2  groups
//	depthwise (PyTorch)                  in*multiplier, 1, kh, kw         0       1      in
//	depthwise (Keras)                    kh, kw, 1, in*multiplier        -1      -2      in
//	transposed (PyTorch, ONNX)           in, out/groups, kh, kw           1       0  groups        true
//	transposed (Keras)                   kh, kw, out, in                 -2      -1                true
type FoldArgs struct {
	// Dims are the dimensions of the weights, row-major. Outputs and Inputs are the
	// axes of the layer's outputs and inputs among them; a negative one counts from
	// the end. The outputs are the first or the last axis; in a transposed convolution
	// the inputs are.
	Dims            []int
	Outputs, Inputs int

	// Groups is the number of groups of a convolution; 0 stands for 1. With several
	// groups the axis Inputs has the inputs of one group; in a transposed convolution
	// the axis Outputs has the outputs of one group.
	Groups int

	// Transposed marks a transposed convolution.
	Transposed bool

	Weight []float32 // as many elements as Dims say
	Bias   []float32 // an element for each output of the layer; nil: 0

	FoldedWeight []float32 // output: as many elements as Weight
	FoldedBias   []float32 // output: an element for each output of the layer
}

// FoldIntoPrevious folds the batch norm into the layer before it, whose outputs
// are the channels:
//
//	weight'[o, ...] = weight[o, ...]*scale[o]
//	bias'[o]        = (bias[o] - mean[o])*scale[o] + beta[o]
//
// It holds for every padding, stride and dilation. The batch norm's activation and
// residual are not folded: apply them after the layer.
func (f *Affine) FoldIntoPrevious(a FoldArgs) error {
	g, err := f.checkFold(&a, false)
	if err != nil {
		return err
	}
	for k, v := range a.Weight {
		o, _ := g.connects(k)
		a.FoldedWeight[k] = float32(float64(v) * f.scale[o])
	}
	for c := range a.FoldedBias {
		b := 0.0
		if a.Bias != nil {
			b = float64(a.Bias[c])
		}
		a.FoldedBias[c] = float32(f.z(c, b))
	}
	return nil
}

// FoldIntoNext folds the batch norm into the layer after it, whose inputs are the
// channels:
//
//	weight'[o, c, ...] = weight[o, c, ...]*scale[c]
//	bias'[o]           = bias[o] + sum over c, ... of weight[o, c, ...]*shift[c]
//
// A convolution must not pad, since the zeros of the padding are not normalized. The
// outputs of a transposed convolution get different parts of the shift, so that no
// bias holds it ([ErrShape]), unless its kernel has one element and its stride is 1.
// With an activation between the two nothing can be folded ([ErrOption]), nor with a
// residual.
func (f *Affine) FoldIntoNext(a FoldArgs) error {
	g, err := f.checkFold(&a, true)
	if err != nil {
		return err
	}
	if f.act != Identity {
		return fail(ErrOption, "activation %v stands between the batch norm and the next layer", f.act)
	}
	sums := make([]float64, g.outputs)
	for o := range a.Bias {
		sums[o] = float64(a.Bias[o])
	}
	for k, v := range a.Weight {
		o, c := g.connects(k)
		sums[o] += float64(float64(v) * f.z(c, 0))
		a.FoldedWeight[k] = float32(float64(v) * f.scale[c])
	}
	for o, s := range sums {
		a.FoldedBias[o] = float32(s)
	}
	return nil
}

// kernelGeometry maps a weight to the output and the input that it connects.
type kernelGeometry struct {
	len                      int
	outDim, outStride        int // of the axis of outputs
	inDim, inStride          int // of the axis of inputs
	outPerGroup, inPerGroup  int
	transposed               bool
	outputs, inputs, spatial int // spatial: elements of a convolution's kernel
}

// connects returns the output and the input of the weight at index k.
func (g *kernelGeometry) connects(k int) (output, input int) {
	o, i := k/g.outStride%g.outDim, k/g.inStride%g.inDim
	if g.transposed {
		return i/g.inPerGroup*g.outDim + o, i
	}
	return o, o/g.outPerGroup*g.inDim + i
}

// geometry validates the description of the weights.
func (a *FoldArgs) geometry() (g kernelGeometry, err error) {
	n := len(a.Dims)
	axis := func(name string, k int) (int, error) {
		i := k
		if i < 0 {
			i += n
		}
		if i < 0 || i >= n {
			return 0, fail(ErrShape, "axis %d of the %s is out of range for the %d dimensions %v of the weights", k, name, n, a.Dims)
		}
		return i, nil
	}
	out, err := axis("outputs", a.Outputs)
	if err != nil {
		return g, err
	}
	in, err := axis("inputs", a.Inputs)
	if err != nil {
		return g, err
	}
	if in == out {
		return g, fail(ErrShape, "axis %d of the weights' dimensions %v can't be both the inputs and the outputs", in, a.Dims)
	}
	for i, d := range a.Dims {
		if d < 1 {
			return g, fail(ErrShape, "dimension %d of the weights' %v is %d, must be at least 1", i, a.Dims, d)
		}
	}
	s, err := Axis(out, a.Dims...)
	if err != nil {
		return g, err
	}
	if a.Groups < 0 {
		return g, fail(ErrShape, "groups is %d, must be at least 0", a.Groups)
	}
	groups := max(1, a.Groups)
	g = kernelGeometry{len: s.Len(), outDim: s.Channels, outStride: s.Inner, inDim: a.Dims[in], inStride: 1, transposed: a.Transposed}
	for _, d := range a.Dims[in+1:] {
		g.inStride *= d
	}
	g.spatial = g.len / (g.outDim * g.inDim)
	outer, name, dim := out, "outputs", g.outDim
	if a.Transposed {
		outer, name, dim = in, "inputs", g.inDim
		g.outputs, g.inputs, g.outPerGroup, g.inPerGroup = g.outDim*groups, g.inDim, g.outDim, g.inDim/groups
	} else {
		g.outputs, g.inputs, g.outPerGroup, g.inPerGroup = g.outDim, g.inDim*groups, g.outDim/groups, g.inDim
	}
	switch {
	case dim%groups != 0:
		return g, fail(ErrShape, "%d groups do not divide the %d %s of the weights' dimensions %v", groups, dim, name, a.Dims)
	case outer != 0 && outer != n-1 && !a.Transposed:
		return g, fail(ErrShape, "the outputs are axis %d of the weights' dimensions %v, between others: only a transposed convolution has them there",
			out, a.Dims)
	case outer != 0 && outer != n-1:
		return g, fail(ErrShape, "the inputs are axis %d of the weights' dimensions %v, between others: no transposed convolution has them there",
			in, a.Dims)
	}
	return g, nil
}

// checkFold validates the arguments of a fold into the previous or the next layer.
func (f *Affine) checkFold(a *FoldArgs, next bool) (g kernelGeometry, err error) {
	if f == nil {
		return g, fail(ErrMissing, "affine is nil")
	}
	if g, err = a.geometry(); err != nil {
		return g, err
	}
	channels, name := g.outputs, "outputs"
	if next {
		channels, name = g.inputs, "inputs"
	}
	if channels != f.Channels() {
		return g, fail(ErrShape, "the layer has %d %s by the weights' dimensions %v and %d groups, the batch norm has %d channels",
			channels, name, a.Dims, max(1, a.Groups), f.Channels())
	}
	if next && a.Transposed && g.spatial > 1 {
		return g, fail(ErrShape, "a transposed convolution whose kernel has %d places, of dimensions %v, takes other parts of the shift to other outputs",
			g.spatial, a.Dims)
	}
	const weight, bias = 0, 1
	ops := [...]operand{
		weight: float32s("weight", a.Weight),
		bias:   float32s("bias", a.Bias),
		2:      float32s("folded weight", a.FoldedWeight).out(1 << weight),
		3:      float32s("folded bias", a.FoldedBias).out(1 << bias),
	}
	for i, o := range ops {
		n, words, number := g.len, "the weights' dimensions are %v", any(a.Dims)
		if i&1 == bias {
			n, words, number = g.outputs, "the layer has %d outputs", g.outputs
		}
		if err := (sized{o, n, i != bias}).check(words, number); err != nil {
			return g, err
		}
	}
	return g, apart(ops[:])
}

// AbsorbBias moves the bias of the layer before a batch norm into the batch norm's
// running mean, without a change of the inference: mean -= bias, and bias becomes 0.
// Both have an element per channel, and are apart.
//
// In training this bias has no effect, since the batch's mean cancels it (Ioffe and
// Szegedy 2015, section 3.2); beta takes its place. So a layer before batch norm needs
// no bias.
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
	// Frozen is set if the batch was normalized by given statistics instead of its own,
	// as in [Plan.FrozenBackward]. Then Var and DBeta are needed, and Gamma is read.
	Frozen bool
	Gamma  []float32 // as in the forward pass
	Var    []float32 // the variance that normalized
	DBeta  []float32 // gradient by beta

	DBias []float32 // output; may be DBeta
}

// BiasGradient computes the gradient of a bias per channel that the layer before the
// batch norm adds, from the results of the backward pass:
//
//	training: dbias = sum of dx = gamma*invstd*(sum g - sum g - dgamma*mean(xhat)) = 0
//	frozen:   dbias = dbeta*gamma/sqrt(var + epsilon)
//
// In training it is exactly 0: the bias shifts all values of a channel and their mean
// alike, and the deviations stay. Summing dx instead gives the rounding errors of dx,
// small but not 0, and an optimizer that divides by the size of the gradients (Adam,
// RMSProp) makes full steps of them.
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
		clearCut(a.DBias)
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
