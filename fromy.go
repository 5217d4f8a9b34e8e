package batchnorm

import (
	"math"

	"github.com/fusedbn/batchnorm/internal/scalar"
)

// BackwardFromYArgs are the arguments of [Plan.BackwardFromY]. Lengths are as
// in [ForwardArgs].
//
// DX may be DY or Y or Residual, and DResidual may be DY or Y or Residual (the
// same slice), but DX and DResidual are apart; any other overlap of an output
// with another argument is [ErrAlias].
type BackwardFromYArgs struct {
	DY       []float32 // gradient of the loss by y
	Y        []float32 // output of the forward pass
	Residual []float32 // residual of the forward pass; nil: there was none
	Gamma    []float32 // as in the forward pass
	Beta     []float32 // as in the forward pass
	InvStd   []float64 // as Forward saved it
	Mask     Mask      // as in the forward pass

	DX        []float32 // output: gradient by x; nil: not wanted
	DResidual []float32 // output: gradient by the residual; nil: not wanted
	DGamma    []float32 // output: gradient by gamma; nil: not wanted
	DBeta     []float32 // output: gradient by beta; nil: not wanted
}

// The smallest |gamma| that BackwardFromY divides by, and the smallest |gamma/beta|.
const (
	minGamma       = 0x1p-40
	minGammaOfBeta = 0x1p-10
)

// BackwardFromY computes the gradients of [Plan.Forward] from the output y instead of
// the input x, so that the input need not be kept: Forward may write y over x, and
// BackwardFromY dx over dy (Rota Bulò, Porzi and Kontschieder 2018, arXiv 1712.02616).
// It computes
//
//	xhat = (act⁻¹(y) - residual - beta)/gamma
//
// so the activation needs an inverse: it is [Identity], or [LeakyReLU] or [ELU] with a
// parameter from 2^-40 to 2^40. And gamma must not be near 0: |gamma| is at least
// 2^-40 and at least |beta|/2^10 ([ErrInvert] otherwise, with the channel).
//
// The result is less accurate than from x, because y is rounded. The error e of xhat is
// at most 2^-24*(7*|xhat| + 4*|beta/gamma| + |residual/gamma|). The error of dx is at most
// |gamma*invstd| times e*|mean of g*xhat| + |xhat|*(mean of |g|*e). So dx is about as
// accurate as from x where |beta| is no larger than |gamma|, and loses digits as
// beta/gamma grows. Below z = 0, LeakyReLU adds two roundings of z. ELU's y has fewer
// digits of z the lower z is: z comes back with an error of 2^-24*exp(-z), and never
// below -17.3.
func (p *Plan) BackwardFromY(a BackwardFromYArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	dy, y, residual := k.tensor("dy", a.DY).must(), k.tensor("y", a.Y).must(), k.tensor("residual", a.Residual)
	k.tensor("dx", a.DX).written(dy, y, residual)
	k.tensor("dresidual", a.DResidual).written(dy, y, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels64("invstd", a.InvStd).must()
	k.channels("dgamma", a.DGamma).written()
	k.channels("dbeta", a.DBeta).written()
	if err := k.check(); err != nil {
		return err
	}
	n, err := p.trainingCount(&a.Mask)
	if err != nil {
		return err
	}
	if !p.act.invertible() {
		return fail(ErrInvert, "activation %v has no inverse", p.act)
	}
	for c, gamma := range a.Gamma {
		least := minGamma
		if a.Beta != nil {
			least = max(least, minGammaOfBeta*math.Abs(float64(a.Beta[c])))
		}
		if v := math.Abs(float64(gamma)); !(v >= least && v <= math.MaxFloat32) {
			return fail(ErrInvert, "gamma[%d] is %v, its size must be at least %v and finite", c, gamma, least)
		}
	}
	for c, beta := range a.Beta {
		if a.Gamma == nil && !(math.Abs(float64(beta)) <= 1/minGammaOfBeta) {
			return fail(ErrInvert, "beta[%d] is %v, its size must be at most %v times that of gamma, which is 1", c, beta, 1/minGammaOfBeta)
		}
	}
	if n == 0 {
		p.clearAll(&a.Mask, a.DX)
		p.clearAll(&a.Mask, a.DResidual)
		clearCut(a.DGamma)
		clearCut(a.DBeta)
		return nil
	}
	w := p.acquire(&a.Mask, n, p.act.kind != actIdentity || a.Residual != nil)
	o := operands{dy: a.DY, x: a.Y, residual: a.Residual, y: a.DX, dresidual: a.DResidual, gamma: a.Gamma, beta: a.Beta,
		invstd: a.InvStd, dgamma: a.DGamma, dbeta: a.DBeta}
	w.backwardCall(p.act, &o)
	for c, invstd := range a.InvStd {
		w.setInverse(c, invstd)
	}
	w.spread(0, len(a.InvStd), fieldN, fieldB)
	w.runBackward(&o)
	p.release(w)
	return nil
}

// setInverse derives the constants of a backward pass that reads z in place of x: with
// xhat = (z-beta)/gamma, beta takes the place of the mean and 1/gamma the place of
// invstd. The factor of the gradient stays gamma*invstd.
func (w *workspace) setInverse(c int, invstd float64) {
	gamma, beta := 1.0, 0.0
	if w.gamma != nil {
		gamma = float64(w.gamma[c])
	}
	if w.beta != nil {
		beta = float64(w.beta[c])
	}
	w.channels.mean[c], w.channels.invstd[c] = beta, 1/gamma
	var f affine
	f.set(beta, invstd, gamma, 0, math.Inf(1))
	w.channels.setAffine(c, &f)
}

// invert replaces y by z - residual, and dy by dy*act'(z).
func (g *source) invert(k *kernelArgs) {
	g.inverse.inverse(k.x, k.dy)
	for i, r := range k.res {
		k.x[i] -= r
	}
	k.res = nil
}

// invertible reports whether z can be computed from y = act(z): the slope is nowhere 0,
// nor so small that float32 loses it.
func (a Activation) invertible() bool {
	switch a.kind {
	case actIdentity:
		return true
	case actLeakyReLU, actELU:
		return a.p >= minGamma && a.p <= 1/minGamma
	}
	return false
}

// inverse replaces every y = act(z) by z, and every dy by dy*act'(z). The activation is
// invertible.
func (a Activation) inverse(y, dy []float32) {
	dy = dy[:len(y)]
	switch a.kind {
	case actLeakyReLU:
		for i, v := range y {
			if !(v > 0) {
				y[i] = v / a.p
				dy[i] = float32(float64(dy[i]) * float64(a.p)) // a float32 product of subnormal numbers takes long
			}
		}
	case actELU:
		for i, v := range y {
			if !(v > 0) {
				y[i] = scalar.ELUInverse(v, a.p)
				dy[i] = float32(float64(dy[i]) * float64(max(v+a.p, 0))) // alpha*exp(z)
			}
		}
	}
}
