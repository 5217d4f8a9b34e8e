// Package reference is batch normalization in float64, written from the
// formulas one value at a time, as the truth that tests compare with. It
// shares no code with the package that it checks.
package reference

import (
	"iter"
	"math"
)

// Problem is one batch normalization. Element (o, c, i) of a tensor stands at
// index (o*Channels+c)*Inner + i.
type Problem struct {
	Outer, Channels, Inner int
	Epsilon                float64
	Activation             string // as [ActivationOf] takes it

	X        []float32
	Residual []float32 // nil: 0
	Gamma    []float32 // nil: 1
	Beta     []float32 // nil: 0
	DY       []float32 // gradient of the loss by y; only for Backward

	// Valid has an element per position (o, i), at o*Inner + i; nil: all are
	// valid. The others have no part in anything, and results 0.
	Valid []bool
	// R and D renormalize: xhat*R + D takes the place of xhat. nil: 1 and 0.
	R, D []float64
}

func (p Problem) activation() Activation { return ActivationOf(p.Activation) }

// Result has the results of a training forward pass.
type Result struct {
	Y, Mean, Var, InvStd []float64 // Var is the population variance
}

// Forward normalizes with the statistics of the batch.
func Forward(p Problem) Result {
	r := Result{Y: p.apply(p.activation().F, Z(p))}
	for c := range p.Channels {
		s := p.statistics(c)
		r.Mean = append(r.Mean, s.mean)
		r.Var = append(r.Var, s.variance)
		r.InvStd = append(r.InvStd, s.invStd)
	}
	return r
}

// Z returns the arguments of the activation in Forward.
func Z(p Problem) []float64 { return p.z(p.statistics) }

// Inference normalizes with the given statistics.
func Inference(p Problem, mean, variance []float32) []float64 {
	return p.apply(p.activation().F, p.z(p.given(mean, variance)))
}

// given returns statistics that are not the batch's.
func (p Problem) given(mean, variance []float32) func(c int) statistics {
	return func(c int) statistics {
		return newStatistics(float64(mean[c]), 0, float64(variance[c]), p.Epsilon)
	}
}

// Renorm returns R and D of batch renormalization (Ioffe 2017, algorithm 1), with
// the variance in the place of the deviation in the running statistics.
func Renorm(p Problem, mean, variance []float32, rmax, dmax float64) (r, d []float64) {
	for c := range p.Channels {
		batch, running := p.statistics(c), p.given(mean, variance)(c)
		sigmaBatch, sigma := math.Sqrt(batch.variance+p.Epsilon), math.Sqrt(running.variance+p.Epsilon)
		clip := func(v, lo, hi float64) float64 { return math.Max(lo, math.Min(hi, v)) }
		r = append(r, clip(sigmaBatch/sigma, 1/rmax, rmax))
		d = append(d, clip((batch.mean-running.mean)/sigma, -dmax, dmax))
	}
	return r, d
}

// Gradients are the derivatives of the loss.
type Gradients struct {
	DX, DGamma, DBeta, DResidual []float64
}

// Backward returns the gradients of Forward, for the gradient DY of the loss
// by y. R and D count as constants.
func Backward(p Problem) Gradients { return p.backward(p.slope(Z(p)), p.statistics, true) }

// BackwardOf is Backward for the gradient of the loss by z, which is that by the
// residual.
func BackwardOf(p Problem, residual []float64) Gradients {
	return p.backward(residual, p.statistics, true)
}

// FrozenBackward returns the gradients of Inference.
func FrozenBackward(p Problem, mean, variance []float32) Gradients {
	stats := p.given(mean, variance)
	return p.backward(p.slope(p.z(stats)), stats, false)
}

// slope returns the gradient by z.
func (p Problem) slope(z []float64) []float64 {
	g, act := make([]float64, len(p.X)), p.activation()
	for c := range p.Channels {
		for k := range p.channel(c) {
			g[k] = float64(p.DY[k]) * act.Derivative(z[k])
		}
	}
	return g
}

// backward returns the gradients of a normalization by some statistics, which depend on x
// or else are constants.
func (p Problem) backward(residual []float64, stats func(c int) statistics, dependent bool) Gradients {
	g := Gradients{DX: make([]float64, len(p.X)), DResidual: residual}
	for c := range p.Channels {
		s := stats(c)
		r, d := p.renorm(c)
		var sumG, sumGX sum
		n := 0.0
		for k := range p.channel(c) {
			sumG.add(g.DResidual[k])
			sumGX.add(g.DResidual[k] * s.normalize(p.X[k]))
			n++
		}
		g.DBeta = append(g.DBeta, sumG.value())
		g.DGamma = append(g.DGamma, r*sumGX.value()+d*sumG.value())
		meanG, meanGX := sumG.value()/n, sumGX.value()/n
		if !dependent {
			meanG, meanGX = 0, 0
		}
		for k := range p.channel(c) {
			v := g.DResidual[k] - meanG
			if meanGX != 0 {
				v -= s.normalize(p.X[k]) * meanGX
			}
			g.DX[k] = at(p.Gamma, c, 1) * r * s.invStd * v
		}
	}
	return g
}

func (p Problem) renorm(c int) (r, d float64) {
	if p.R == nil {
		return 1, 0
	}
	return p.R[c], p.D[c]
}

func (p Problem) z(stats func(c int) statistics) []float64 {
	z := make([]float64, len(p.X))
	for c := range p.Channels {
		s := stats(c)
		r, d := p.renorm(c)
		for k := range p.channel(c) {
			z[k] = (s.normalize(p.X[k])*r+d)*at(p.Gamma, c, 1) + at(p.Beta, c, 0) + at(p.Residual, k, 0)
		}
	}
	return z
}

// channel yields the indices of the valid values of channel c.
func (p Problem) channel(c int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for o := range p.Outer {
			for i := range p.Inner {
				if p.Valid != nil && !p.Valid[o*p.Inner+i] {
					continue
				}
				if !yield((o*p.Channels+c)*p.Inner + i) {
					return
				}
			}
		}
	}
}

func (p Problem) statistics(c int) statistics {
	var total sum
	n := 0.0
	for k := range p.channel(c) {
		total.add(float64(p.X[k]))
		n++
	}
	mean, rest := total.div(n)
	var squares sum
	for k := range p.channel(c) {
		d := float64(p.X[k]) - mean - rest
		squares.add(d * d)
	}
	return newStatistics(mean, rest, squares.value()/n, p.Epsilon)
}

// statistics has the statistics of one channel. The mean is mean+rest: of values near 1e8
// with deviation 1, half a unit in the last place of a float64 would be 1e-8 deviations,
// close to the resolution of a float32 result.
type statistics struct {
	mean, rest, variance, invStd float64
}

func newStatistics(mean, rest, variance, epsilon float64) statistics {
	s := statistics{mean: mean, rest: rest, variance: variance}
	if v := variance + epsilon; v != 0 {
		s.invStd = 1 / math.Sqrt(v)
	}
	return s
}

func (s statistics) normalize(x float32) float64 {
	return (float64(x) - s.mean - s.rest) * s.invStd
}

// sum adds up with Neumaier's compensation: the total is high+low.
type sum struct {
	high, low float64
}

func (s *sum) add(v float64) {
	t := s.high + v
	if math.Abs(s.high) >= math.Abs(v) {
		s.low += s.high - t + v
	} else {
		s.low += v - t + s.high
	}
	s.high = t
}

func (s *sum) value() float64 {
	if math.IsInf(s.high, 0) || math.IsNaN(s.high) {
		return s.high // the compensation is NaN
	}
	return s.high + s.low
}

// div returns the quotient, and its difference from the exact one.
func (s *sum) div(n float64) (quotient, rest float64) {
	quotient = s.value() / n
	if math.IsInf(quotient, 0) || math.IsNaN(quotient) {
		return quotient, 0
	}
	return quotient, (math.FMA(-quotient, n, s.high) + s.low) / n
}

// at returns s[i], or the value for a missing slice.
func at(s []float32, i int, missing float64) float64 {
	if s == nil {
		return missing
	}
	return float64(s[i])
}

// apply applies f to the valid elements; the others are 0.
func (p Problem) apply(f func(float64) float64, s []float64) []float64 {
	r := make([]float64, len(s))
	for c := range p.Channels {
		for k := range p.channel(c) {
			r[k] = f(s[k])
		}
	}
	return r
}
