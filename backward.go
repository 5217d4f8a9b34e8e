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
// z is computed again from x, with the bits that it had in Forward, so that
// nothing but mean and invstd need be saved, and not even these. What is not wanted
// is not computed: without DX, DGamma and DBeta no sums are taken, and without DX and
// DResidual nothing is done but to take them.
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
	p.backward(&a, n, renormalization{}, nil)
	return nil
}

// checkBackward validates the arguments of a backward pass, and of its
// renormalization if there is one. It returns the number of values per channel.
func (p *Plan) checkBackward(a *BackwardArgs, renorm *RenormBackwardArgs) (n int, err error) {
	const dy, x, residual, dx, dresidual, mean, invstd, batchMean, batchVar, r, d = 0, 1, 2, 3, 4, 7, 8, 9, 10, 13, 14
	const inputs = 1<<dy | 1<<x | 1<<residual
	statistics, err := a.given(1<<mean, 1<<invstd, 1<<batchMean, 1<<batchVar)
	if err != nil {
		return 0, err
	}
	ops := [...]operand{
		dy:        float32s("dy", a.DY),
		x:         float32s("x", a.X),
		residual:  float32s("residual", a.Residual),
		dx:        float32s("dx", a.DX).out(inputs),
		dresidual: float32s("dresidual", a.DResidual).out(inputs),
		5:         float32s("gamma", a.Gamma),
		6:         float32s("beta", a.Beta),
		mean:      float64s("mean", a.Mean),
		invstd:    float64s("invstd", a.InvStd),
		batchMean: float32s("batch mean", a.BatchMean),
		batchVar:  float32s("batch variance", a.BatchVar),
		11:        float32s("dgamma", a.DGamma).out(0),
		12:        float32s("dbeta", a.DBeta).out(0),
		r:         {},
		d:         {},
	}
	required := 1<<dy | 1<<x | statistics
	if renorm != nil {
		ops[r], ops[d] = float64s("r", renorm.R), float64s("d", renorm.D)
		required |= 1<<r | 1<<d
	}
	if err := p.check(ops[:], 5, required); err != nil {
		return 0, err
	}
	return p.trainingCount(&a.Mask)
}

// backward is a backward pass with arguments that are valid. With totals it adds
// the gradients by gamma and beta there, instead of writing them.
func (p *Plan) backward(a *BackwardArgs, n int, renorm renormalization, totals []gradTotal) {
	if n == 0 {
		p.clearAll(&a.Mask, a.DX)
		p.clearAll(&a.Mask, a.DResidual)
		clear(a.DGamma)
		clear(a.DBeta)
		return
	}
	w := p.acquireFor(&a.Mask, n)
	defer p.release(w)
	retaken := a.Mean == nil && a.BatchMean == nil
	if retaken {
		w.retake(a.X)
	}
	w.renorm = renorm
	w.setBackward(a)
	switch {
	case retaken:
		w.setAll()
	case a.Mean != nil:
		w.setSaved(a.Mean, a.InvStd)
	default:
		w.setRunning(a.BatchMean, a.BatchVar)
	}
	w.runBackward(a)
	if totals == nil {
		w.saveGrads(a.DGamma, a.DBeta)
		return
	}
	for c := range totals {
		totals[c].dgamma += w.channels.dgamma[c]
		totals[c].dbeta += w.channels.dbeta[c]
	}
}

// setBackward sets the operands of a backward pass.
func (w *work) setBackward(a *BackwardArgs) {
	w.backward = true
	w.dy, w.x, w.res, w.y, w.dres = a.DY, a.X, a.Residual, a.DX, a.DResidual
	w.gamma, w.beta = a.Gamma, a.Beta
	if w.y == nil {
		w.y = w.dres // kernels write dx, and then g over it
		w.onlyResidual = true
	}
}

// runBackward does what is wanted of a backward pass, once the statistics are
// set.
func (w *work) runBackward(a *BackwardArgs) {
	do := phases(0)
	if w.y != nil {
		do |= applyThem
	}
	if a.DGamma != nil || a.DBeta != nil || a.DX != nil && !w.frozen {
		do |= takeSums
	} else {
		w.noSums()
	}
	w.run(do)
}

// saveGrads writes the gradients by gamma and beta, where they are wanted.
func (w *work) saveGrads(dgamma, dbeta []float32) {
	for c := range dgamma {
		dgamma[c] = float32(w.dgamma(c))
	}
	for c := range dbeta {
		dbeta[c] = float32(w.channels.dbeta[c])
	}
}

// dgamma returns the gradient by gamma: that by what xhat is multiplied with, or
// by what xhat*r + d is.
func (w *work) dgamma(c int) float64 {
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
// z is computed again with the bits that it had in Inference. What is not
// wanted is not computed: without DGamma and DBeta no sums are taken, and
// without DX and DResidual nothing is done but to take them. One value per
// channel is enough.
//
// dx is the product, rounded once; a zero may have either sign, the same on all
// paths. Where x is NaN or infinite, dx is NaN, though a constant slope would
// allow to say more.
func (p *Plan) FrozenBackward(a FrozenBackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	n, err := p.checkFrozen(&a)
	if err != nil {
		return err
	}
	p.frozenBackward(&a, n)
	return nil
}

// checkFrozen validates the arguments of a frozen backward pass. It returns the
// number of values per channel.
func (p *Plan) checkFrozen(a *FrozenBackwardArgs) (n int, err error) {
	const dy, x, residual, dx, dresidual, mean, variance = 0, 1, 2, 3, 4, 7, 8
	const inputs = 1<<dy | 1<<x | 1<<residual
	ops := [...]operand{
		dy:        float32s("dy", a.DY),
		x:         float32s("x", a.X),
		residual:  float32s("residual", a.Residual),
		dx:        float32s("dx", a.DX).out(inputs),
		dresidual: float32s("dresidual", a.DResidual).out(inputs),
		5:         float32s("gamma", a.Gamma),
		6:         float32s("beta", a.Beta),
		mean:      float32s("mean", a.Mean),
		variance:  float32s("var", a.Var),
		9:         float32s("dgamma", a.DGamma).out(0),
		10:        float32s("dbeta", a.DBeta).out(0),
	}
	if err := p.check(ops[:], 5, 1<<dy|1<<x|1<<mean|1<<variance); err != nil {
		return 0, err
	}
	return a.Mask.count(p.shape)
}

// frozenBackward is a frozen backward pass with arguments that are valid.
func (p *Plan) frozenBackward(a *FrozenBackwardArgs, n int) {
	if n == 0 {
		p.clearAll(&a.Mask, a.DX)
		p.clearAll(&a.Mask, a.DResidual)
		clear(a.DGamma)
		clear(a.DBeta)
		return
	}
	w := p.acquireFor(&a.Mask, n)
	defer p.release(w)
	w.frozen = true
	b := BackwardArgs{DY: a.DY, X: a.X, Residual: a.Residual, Gamma: a.Gamma, Beta: a.Beta,
		DX: a.DX, DResidual: a.DResidual, DGamma: a.DGamma, DBeta: a.DBeta}
	w.setBackward(&b)
	w.setRunning(a.Mean, a.Var)
	w.runBackward(&b)
	w.saveGrads(a.DGamma, a.DBeta)
}
