package batchnorm

// Forward normalizes a batch by its own statistics:
//
//	y = act((x - mean)*invstd*gamma + beta + residual)
//
// with the mean and the population variance of every channel, and
// invstd = 1/sqrt(variance + epsilon). It saves mean and invstd for
// [Plan.Backward], or mean and variance in float32, and updates the running
// statistics, if these are given.
//
// Training needs two values per channel at least ([ErrTooFewValues], see
// [WithSingleValue]). A batch without values, because it is empty or because the
// mask leaves nothing, has no statistics: those that are saved become NaN, and the
// running statistics stay.
func (p *Plan) Forward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkForward(&a, nil)
	if err != nil {
		return err
	}
	p.forward(&a, n, renormalization{})
	return nil
}

// checkForward validates the arguments of a training forward pass, and of its
// renormalization if there is one. It returns the number of values per channel.
func (p *Plan) checkForward(a *ForwardArgs, renorm *RenormForwardArgs) (n int, err error) {
	const x, residual, y, runningMean, runningVar, r, d = 0, 1, 2, 9, 10, 11, 12
	ops := [...]operand{
		x:           float32s("x", a.X),
		residual:    float32s("residual", a.Residual),
		y:           float32s("y", a.Y).out(1<<x | 1<<residual),
		3:           float32s("gamma", a.Gamma),
		4:           float32s("beta", a.Beta),
		5:           float64s("mean", a.Mean).out(0),
		6:           float64s("invstd", a.InvStd).out(0),
		7:           float32s("batch mean", a.BatchMean).out(0),
		8:           float32s("batch variance", a.BatchVar).out(0),
		runningMean: float32s("running mean", a.RunningMean).out(0),
		runningVar:  float32s("running variance", a.RunningVar).out(0),
		r:           {},
		d:           {},
	}
	required := aliases(1<<x | 1<<y)
	if renorm != nil {
		ops[r], ops[d] = float64s("r", renorm.R).out(0), float64s("d", renorm.D).out(0)
		required |= 1<<runningMean | 1<<runningVar | 1<<r | 1<<d
	}
	if err := p.check(ops[:], 3, required); err != nil {
		return 0, err
	}
	if err := a.Momentum.valid(); err != nil {
		return 0, err
	}
	return p.trainingCount(&a.Mask)
}

// trainingCount returns the number of values per channel, or that there are too
// few of them for statistics. None at all is no error.
func (p *Plan) trainingCount(m *Mask) (n int, err error) {
	if n, err = m.count(p.shape); err != nil {
		return 0, err
	}
	if all := p.shape.PerChannel(); n == all {
		if n == 1 && !p.singleValue {
			return 0, tooFew(p.shape)
		}
	} else if n == 1 && !p.singleValue {
		return 0, fail(ErrTooFewValues, "the mask leaves %d of %d values per channel of shape %v, training needs at least %d",
			n, all, p.shape, p.fewest())
	}
	return n, nil
}

// fewest returns how many values per channel training needs.
func (p *Plan) fewest() int {
	if p.singleValue {
		return 1
	}
	return 2
}

// forward is a training forward pass with arguments that are valid.
func (p *Plan) forward(a *ForwardArgs, n int, renorm renormalization) {
	if n == 0 {
		p.clearAll(&a.Mask, a.Y)
		noStatistics(a)
		return
	}
	w := p.acquireFor(&a.Mask, n)
	defer p.release(w)
	w.backward = false
	w.x, w.res, w.y = a.X, a.Residual, a.Y
	w.gamma, w.beta = a.Gamma, a.Beta
	w.renorm = renorm
	w.run(bothPhases)
	copy(a.Mean, w.channels.mean)
	copy(a.InvStd, w.channels.invstd)
	saveBatch(a.BatchMean, a.BatchVar, w.channels.mean, w.channels.variance)
	momentum := a.Momentum.or(p.momentum)
	p.path.track(a.RunningMean, w.channels.mean, 1, momentum)
	p.path.track(a.RunningVar, w.channels.variance, p.variance.correction(n), momentum)
}

// Inference normalizes by given statistics instead of the batch's:
//
//	y = act((x - mean)/sqrt(var + epsilon)*gamma + beta + residual)
//
// A variance that is negative beyond epsilon, or NaN, makes its channel NaN.
func (p *Plan) Inference(a InferenceArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkInference(&a)
	if err != nil {
		return err
	}
	p.inference(&a, n)
	return nil
}

// checkInference validates the arguments of an inference. It returns the number
// of values per channel.
func (p *Plan) checkInference(a *InferenceArgs) (n int, err error) {
	const x, residual, y, mean, variance = 0, 1, 2, 5, 6
	ops := [...]operand{
		x:        float32s("x", a.X),
		residual: float32s("residual", a.Residual),
		y:        float32s("y", a.Y).out(1<<x | 1<<residual),
		3:        float32s("gamma", a.Gamma),
		4:        float32s("beta", a.Beta),
		mean:     float32s("mean", a.Mean),
		variance: float32s("var", a.Var),
	}
	if err := p.check(ops[:], 3, 1<<x|1<<y|1<<mean|1<<variance); err != nil {
		return 0, err
	}
	return a.Mask.count(p.shape)
}

// inference is an inference with arguments that are valid.
func (p *Plan) inference(a *InferenceArgs, n int) {
	if n == 0 {
		p.clearAll(&a.Mask, a.Y)
		return
	}
	w := p.acquireFor(&a.Mask, n)
	defer p.release(w)
	w.backward = false
	w.x, w.res, w.y = a.X, a.Residual, a.Y
	w.gamma, w.beta = a.Gamma, a.Beta
	w.setRunning(a.Mean, a.Var)
	w.run(applyThem)
}

// clearAll is what is left to do with an output of which all is padding.
func (p *Plan) clearAll(m *Mask, t []float32) {
	if !m.KeepPadding {
		clear(t)
	}
}

func tooFew(s Shape) error {
	return fail(ErrTooFewValues, "shape %v has 1 value per channel, training needs at least 2", s)
}

func fill[T float32 | float64](s []T, v T) {
	for i := range s {
		s[i] = v
	}
}
