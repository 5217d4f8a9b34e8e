package batchnorm

// Forward normalizes a batch by its own statistics:
//
//	y = act((x - mean)*invstd*gamma + beta + residual)
//
// with the mean and the population variance of every channel, and
// invstd = 1/sqrt(variance + epsilon). For [Plan.Backward] it saves mean and invstd,
// or mean and variance in float32. It updates the running statistics if they are given.
//
// Training needs at least two values per channel ([ErrTooFewValues], see
// [WithSingleValue]). A batch without values, because it is empty or all padding, has
// no statistics: the saved ones become NaN, and the running statistics stay.
func (p *Plan) Forward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkForward(&a, nil)
	if err != nil {
		return err
	}
	o := a.operands()
	p.forward(&o, &a.Mask, n, a.Momentum.or(p.momentum), renormalization{})
	return nil
}

func (a *ForwardArgs) operands() operands {
	return operands{x: a.X, residual: a.Residual, y: a.Y, gamma: a.Gamma, beta: a.Beta, mean: a.Mean, invstd: a.InvStd,
		batchMean: a.BatchMean, batchVar: a.BatchVar, runningMean: a.RunningMean, runningVar: a.RunningVar}
}

// check adds the arguments of a training forward pass over a number of batches, each with
// statistics of its own.
func (a *ForwardArgs) check(k *checker, batches int) {
	x, residual := k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("y", a.Y).must().written(x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels64("mean", a.Mean).per(batches).written()
	k.channels64("invstd", a.InvStd).per(batches).written()
	k.channels("batch mean", a.BatchMean).per(batches).written()
	k.channels("batch variance", a.BatchVar).per(batches).written()
	k.channels("running mean", a.RunningMean).written()
	k.channels("running variance", a.RunningVar).written()
}

// checkForward validates the arguments of a training forward pass, and of its
// renormalization if there is one. It returns the number of values per channel.
func (p *Plan) checkForward(a *ForwardArgs, renorm *RenormForwardArgs) (n int, err error) {
	k := p.shape.checker()
	a.check(&k, 1)
	if renorm != nil {
		k.require("running mean", "running variance")
		k.channels64("r", renorm.R).must().written()
		k.channels64("d", renorm.D).must().written()
	}
	if err := k.check(); err != nil {
		return 0, err
	}
	if err := a.Momentum.valid(); err != nil {
		return 0, err
	}
	return p.trainingCount(&a.Mask)
}

// trainingCount returns the number of values per channel, or an error if they are too
// few for statistics. 0 values are no error.
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

// fewest returns the number of values per channel that training needs.
func (p *Plan) fewest() int {
	if p.singleValue {
		return 1
	}
	return 2
}

// forward is a training forward pass with arguments that are valid.
func (p *Plan) forward(o *operands, m *Mask, n int, momentum Momentum, renorm renormalization) {
	if n == 0 {
		p.clearAll(m, o.y)
		o.noStatistics()
		return
	}
	w := p.acquire(m, n, false)
	w.renorm = renorm
	w.forwardCall(p.act, o)
	w.saved = savedStatistics{o.mean, o.invstd, o.runningMean, o.runningVar, momentum, p.variance.correction(n)}
	w.run(bothPhases)
	copyCut(o.variance, w.channels.variance)
	saveBatch(o.batchMean, o.batchVar, w.channels.mean, w.channels.variance)
	p.release(w)
}

// Inference normalizes by given statistics instead of the batch's:
//
//	y = act((x - mean)/sqrt(var + epsilon)*gamma + beta + residual)
//
// A channel is NaN where its variance + epsilon is negative or NaN.
func (p *Plan) Inference(a InferenceArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkInference(&a)
	if err != nil {
		return err
	}
	o := a.operands()
	p.inference(&o, &a.Mask, n)
	return nil
}

func (a *InferenceArgs) operands() operands {
	return operands{x: a.X, residual: a.Residual, y: a.Y, gamma: a.Gamma, beta: a.Beta, runningMean: a.Mean, runningVar: a.Var}
}

// checkInference validates the arguments of an inference. It returns the number
// of values per channel.
func (p *Plan) checkInference(a *InferenceArgs) (n int, err error) {
	k := p.shape.checker()
	x, residual := k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("y", a.Y).must().written(x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels("mean", a.Mean).must()
	k.channels("var", a.Var).must()
	if err := k.check(); err != nil {
		return 0, err
	}
	return a.Mask.count(p.shape)
}

// inference is an inference with arguments that are valid.
func (p *Plan) inference(o *operands, m *Mask, n int) {
	if n == 0 {
		p.clearAll(m, o.y)
		return
	}
	w := p.acquire(m, n, false)
	w.foreign = true
	w.forwardCall(p.act, o)
	w.setAllFrom(o.runningMean, o.runningVar)
	w.run(applyThem)
	p.release(w)
}

// clearAll sets an output of a batch without values to 0, unless the mask keeps padding.
func (p *Plan) clearAll(m *Mask, t []float32) {
	if !m.KeepPadding {
		clearCut(t)
	}
}

func tooFew(s Shape) error {
	return fail(ErrTooFewValues, "shape %v has 1 value per channel, training needs at least 2", s)
}

func fill[T int | float32 | float64](s []T, v T) {
	for i := range s {
		s[i] = v
	}
}
