package batchnorm

// Backward computes the gradients of [Plan.Forward]. With
// z = (x-mean)*invstd*gamma + beta + residual, xhat = (x-mean)*invstd,
// g = dy*act'(z) and n values per channel,
//
//	dresidual = g
//	dbeta     = sum of g
//	dgamma    = sum of g*xhat
//	dx        = gamma*invstd*(g - dbeta/n - xhat*dgamma/n)
//
// z is computed again from x, with the bits that it had in Forward, so that only mean
// and invstd are saved, or nothing. An output that is nil costs nothing: without DX,
// DGamma and DBeta the sums are not taken, and without DX and DResidual only the sums
// are.
//
// Like Forward it needs two values per channel, unless the plan was made
// [WithSingleValue]. For a batch without values dgamma and dbeta are 0.
func (p *Plan) Backward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkBackward(&a, nil)
	if err != nil {
		return err
	}
	o := a.operands()
	p.backward(&o, &a.Mask, n, renormalization{}, nil)
	return nil
}

func (a *BackwardArgs) operands() operands {
	return operands{dy: a.DY, x: a.X, residual: a.Residual, y: a.DX, dresidual: a.DResidual, gamma: a.Gamma, beta: a.Beta,
		mean: a.Mean, invstd: a.InvStd, batchMean: a.BatchMean, batchVar: a.BatchVar, dgamma: a.DGamma, dbeta: a.DBeta}
}

// check adds the arguments of a backward pass over a number of batches, each with
// statistics of its own.
func (a *BackwardArgs) check(k *checker, batches int) {
	dy, x, residual := k.tensor("dy", a.DY).must(), k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("dx", a.DX).written(dy, x, residual)
	k.tensor("dresidual", a.DResidual).written(dy, x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	statistics := [...]*operand{k.channels64("mean", a.Mean).per(batches), k.channels64("invstd", a.InvStd).per(batches),
		k.channels("batch mean", a.BatchMean).per(batches), k.channels("batch variance", a.BatchVar).per(batches)}
	k.oneForm(statistics[:2], statistics[2:])
	k.channels("dgamma", a.DGamma).written()
	k.channels("dbeta", a.DBeta).written()
}

// checkBackward validates the arguments of a backward pass, and of its
// renormalization if there is one. It returns the number of values per channel.
func (p *Plan) checkBackward(a *BackwardArgs, renorm *RenormBackwardArgs) (n int, err error) {
	k := p.shape.checker()
	a.check(&k, 1)
	if renorm != nil {
		k.channels64("r", renorm.R).must()
		k.channels64("d", renorm.D).must()
	}
	if err := k.check(); err != nil {
		return 0, err
	}
	return p.trainingCount(&a.Mask)
}

// backward is a backward pass with arguments that are valid. Totals, if given, take the
// gradients by gamma and beta in place of the outputs.
func (p *Plan) backward(o *operands, m *Mask, n int, renorm renormalization, totals []gradTotal) {
	if n == 0 {
		p.clearAll(m, o.y)
		p.clearAll(m, o.dresidual)
		clearCut(o.dgamma)
		clearCut(o.dbeta)
		return
	}
	w := p.acquire(m, n, false)
	retaken := o.mean == nil && o.batchMean == nil
	if retaken {
		w.retake(o.x)
	}
	w.renorm = renorm
	w.backwardCall(p.act, o)
	switch {
	case retaken:
		w.setAll()
	case o.mean != nil:
		w.setSaved(o.mean, o.invstd)
	default:
		w.setAllFrom(o.batchMean, o.batchVar)
	}
	if totals != nil {
		w.gammaGrad, w.betaGrad = nil, nil
	}
	w.runBackward(o)
	for c := range totals {
		totals[c] = gradTotal{w.channels.dgamma[c], w.channels.dbeta[c]}
	}
	p.release(w)
}

// runBackward computes the gradients that are wanted, once the statistics are
// set.
func (w *workspace) runBackward(o *operands) {
	do := phases(0)
	if o.y != nil || o.dresidual != nil {
		do |= applyThem
	}
	if o.dgamma != nil || o.dbeta != nil || o.y != nil && !w.frozen {
		do |= takeSums
	} else {
		w.noSums()
	}
	w.run(do)
}

// dgamma returns the gradient by gamma: the sum of g*xhat, or with renormalization of
// g*(xhat*r + d).
func (w *workspace) dgamma(c int) float64 {
	dgamma := w.channels.dgamma[c]
	if w.renorm.r == nil {
		return dgamma
	}
	return float64(w.renorm.r[c]*dgamma) + float64(w.renorm.d[c]*w.channels.dbeta[c])
}

// FrozenBackwardArgs are the arguments of [Plan.FrozenBackward], the gradient
// of [Plan.Inference]. Lengths and aliasing are as in [BackwardArgs].
type FrozenBackwardArgs struct {
	DY       []float32 // gradient of the loss by y
	X        []float32 // input of the forward pass
	Residual []float32 // residual of the forward pass; read only when there is an activation
	Gamma    []float32 // as in the forward pass
	Beta     []float32 // as in the forward pass; read only when there is an activation
	Mean     []float32 // running mean, as in the forward pass
	Var      []float32 // running variance, as in the forward pass
	Mask     Mask      // as in the forward pass

	DX        []float32 // output: gradient by x; nil: not wanted
	DResidual []float32 // output: gradient by the residual; nil: not wanted
	DGamma    []float32 // output: gradient by gamma; nil: not wanted
	DBeta     []float32 // output: gradient by beta; nil: not wanted
}

// FrozenBackward computes the gradients of [Plan.Inference], whose statistics
// are constants, as for fine-tuning with frozen statistics. With
// invstd = 1/sqrt(var + epsilon) and z, xhat and g as in [Plan.Backward],
//
//	dresidual = g
//	dbeta     = sum of g
//	dgamma    = sum of g*xhat
//	dx        = gamma*invstd*g
//
// z is computed again with the bits that it had in Inference. An output that is nil
// costs nothing: without DGamma and DBeta the sums are not taken, and without DX and
// DResidual only the sums are. One value per channel is enough.
//
// dx is the product, rounded once; a zero may have either sign, the same on all
// paths. Where x is NaN or infinite, dx is NaN, even if the slope is constant.
func (p *Plan) FrozenBackward(a FrozenBackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkFrozen(&a)
	if err != nil {
		return err
	}
	o := a.operands()
	p.frozenBackward(&o, &a.Mask, n)
	return nil
}

func (a *FrozenBackwardArgs) operands() operands {
	return operands{dy: a.DY, x: a.X, residual: a.Residual, y: a.DX, dresidual: a.DResidual, gamma: a.Gamma, beta: a.Beta,
		runningMean: a.Mean, runningVar: a.Var, dgamma: a.DGamma, dbeta: a.DBeta}
}

// checkFrozen validates the arguments of a frozen backward pass. It returns the
// number of values per channel.
func (p *Plan) checkFrozen(a *FrozenBackwardArgs) (n int, err error) {
	k := p.shape.checker()
	dy, x, residual := k.tensor("dy", a.DY).must(), k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("dx", a.DX).written(dy, x, residual)
	k.tensor("dresidual", a.DResidual).written(dy, x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels("mean", a.Mean).must()
	k.channels("var", a.Var).must()
	k.channels("dgamma", a.DGamma).written()
	k.channels("dbeta", a.DBeta).written()
	if err := k.check(); err != nil {
		return 0, err
	}
	return a.Mask.count(p.shape)
}

// frozenBackward is a frozen backward pass with arguments that are valid.
func (p *Plan) frozenBackward(o *operands, m *Mask, n int) {
	if n == 0 {
		p.clearAll(m, o.y)
		p.clearAll(m, o.dresidual)
		clearCut(o.dgamma)
		clearCut(o.dbeta)
		return
	}
	w := p.acquire(m, n, false)
	w.frozen, w.foreign = true, true
	w.backwardCall(p.act, o)
	w.setAllFrom(o.runningMean, o.runningVar)
	w.runBackward(o)
	p.release(w)
}
