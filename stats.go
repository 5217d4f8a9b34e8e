package batchnorm

import "math"

// Arithmetic on a channel's sums in float64. It is the same for every path.
// Products are converted explicitly, so that no compiler fuses them.

// moment is the count, the mean and the sum of squared deviations from the
// mean of some values.
type moment struct {
	n, mean, m2 float64
}

// merge adds the moment of other values.
func (a *moment) merge(n, mean, m2 float64) {
	if a.n == 0 {
		a.n, a.mean, a.m2 = n, mean, m2
		return
	}
	weight := n / (a.n + n)
	a.mean, a.m2 = mergeMoment(a.mean, a.m2, mean, m2, weight, a.n*weight)
	a.n += n
}

// mergeMoment merges the moment of n values with another, of n2 values, where
// weight = n2/(n+n2) and cross = n*weight (Chan, Golub, LeVeque 1979, eq. 2.1).
// Means that are infinite or NaN merge as in a sum: into an infinity or NaN.
func mergeMoment(mean, m2, mean2, m22, weight, cross float64) (mergedMean, mergedM2 float64) {
	d := mean2 - mean
	m2 += m22 + float64(float64(d*d)*cross)
	if d-d != 0 {
		return mean + mean2, m2
	}
	return mean + float64(d*weight), m2
}

// blockMoment returns mean and m2 of n values from the sums s of x-k and q of
// (x-k)^2.
func blockMoment(n, k, s, q float64) (mean, m2 float64) {
	d := s / n
	return k + d, q - float64(s*d)
}

// reduce sums 8 lanes.
func reduce(v []float64) float64 {
	_ = v[lanes-1]
	return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}

// shiftFor returns minus a mean, rounded, which kernels add to values. For a NaN or an
// infinity it returns 0: the sums of the window then become what a plain sum would be.
func shiftFor(mean float64) float32 {
	if v := -float32(mean); v-v == 0 {
		return v
	}
	return 0
}

// surePower is the exponent of sureMax.
const surePower = 100

// Ranges of numbers that lose no digits to the range of float32. Tame numbers have room
// for their products as well, sure numbers only for themselves.
const (
	tameMin = 0x1p-60
	tameMax = 0x1p+60
	sureMin = 0x1p-100
	sureMax = 0x1p+100
	// The least of gradients, their sums and the constants made of them. A product that
	// vanishes is at most 2^-150, which is 2^-30 of this.
	gradMin = 0x1p-120
	// Numbers that are only factors. Their products may leave float32's range where the
	// exact products do; smaller ones make a tiny z of usual deviations.
	factorMin = 0x1p-96
	factorMax = 0x1p+120
)

// wild reports whether the magnitude of v is outside of lo to hi, so that float32
// arithmetic may lose its digits. Zero and NaN are not wild: they stay zero and NaN.
func wild(v, lo, hi float64) bool {
	v = math.Abs(v)
	return v != 0 && (v < lo || v > hi)
}

// sumsAreSafe reports whether a variance from float32 squares can be relied on: the
// squares have not overflowed, and squares that vanished don't matter beside the variance
// and epsilon.
func sumsAreSafe(variance, epsilon float64) bool {
	t := variance + epsilon
	return t >= sureMin && t <= sureMax
}

// populationVariance is m2/n, and 0 where m2 is below 0 by rounding.
func populationVariance(m2, n float64) float64 {
	if v := m2 / n; !(v < 0) { // NaN stays
		return v
	}
	return 0
}

// invStd is 1/sqrt(variance + epsilon), and 0 where that would be infinite.
func invStd(variance, epsilon float64) float64 {
	t := variance + epsilon
	if t == 0 {
		return 0
	}
	return 1 / math.Sqrt(t)
}

// givenStatistics returns the mean and invstd of a channel whose mean and variance are given. If they are final, and
// invstd is 0, as with an infinite variance, a finite mean has no effect, and is 0: x less a mean of 1e35 could leave float32.
func givenStatistics(mean, variance float32, epsilon float64, settled bool) (m, invstd float64) {
	m, invstd = float64(mean), invStd(float64(variance), epsilon)
	if settled && invstd == 0 {
		m *= 0
	}
	return m, invstd
}

// affine is the normalization of a channel: z = (x-mean)*scale + beta. It is computed in
// float32 as (x-m)*a + b, where b has the part of the mean that m lacks. Where x-m may overflow, x is
// divided by a power of two first. Where the scale is wild, so that a lacks digits, or overflows,
// the product is taken in float64, with the scale.
type affine struct {
	mean, invstd, scale, beta float64
	m, a, b                   float32
	power                     int // x is to be multiplied by 2^power
}

// wide reports whether x-m may overflow.
func (f *affine) wide() bool { return f.power != 0 }

// isWild reports whether the product for z is taken in float64, given the scale.
func isWild(scale float64) bool { return wild(scale, factorMin, factorMax) }

// factor returns the scale by which x-m is multiplied: a, unless the scale is wild.
func (f *affine) factor() float64 {
	if scale := ldexp(f.scale, -f.power); isWild(scale) {
		return scale
	}
	return float64(f.a)
}

// form returns the form of the constants.
func (f *affine) form() byte {
	switch {
	case f.wide():
		return wideForm
	case math.IsInf(f.mean, 0) && f.invstd == f.invstd, isPrecise(f.invstd, f.scale):
		return preciseForm
	}
	return 0
}

// isPrecise reports whether a channel that is not wide is precise.
func isPrecise(invstd, scale float64) bool { return isWild(scale) || wild(invstd, sureMin, sureMax) }

// set sets the constants. Where invstd is at least close, no x-m overflows.
func (f *affine) set(mean, invstd, gamma, beta, close float64) {
	*f = affine{mean: mean, invstd: invstd, scale: float64(gamma * invstd), beta: beta}
	scale := f.scale
	if math.Abs(mean) > sureMax && !(invstd >= close) && mean-mean == 0 && scale-scale == 0 && invstd-invstd == 0 {
		f.power = -largeMeanPower
		mean, scale = ldexp(mean, f.power), ldexp(scale, -f.power)
	}
	f.m = float32(mean)
	b := beta - float64((mean-float64(f.m))*scale)
	if f.form()&(wideForm|preciseForm) != 0 { // x-m is 0, or so large that z is infinite all the same
		b = limited(b)
	}
	f.a, f.b = float32(scale), float32(b)
}

// limited returns the number that float32 can hold next to a finite v.
func limited(v float64) float64 {
	if math.IsInf(v, 0) {
		return v
	}
	return min(max(v, -math.MaxFloat32), math.MaxFloat32)
}

// ownInvStd is the least invstd for which x-m surely doesn't overflow, for an x that the statistics were
// taken of: one of n values is at most sqrt(n) deviations from their mean, which is 2^126 for 2^34 values.
const ownInvStd = 0x1p-109

// largeMeanPower is the power of two that x is divided by where its mean is near the end
// of float32's range.
const largeMeanPower = 20

// gradient is the backward pass of a channel:
// dx = ((g-k1) - (x-m)*k2) * a.
type gradient struct {
	k1, k2        float64
	dgamma, dbeta float64
	wide          bool // float32 may lose digits of dx; the size of g decides
}

// set takes the sums p of g and r of g*(x-m) over n values. With
// xhat = (x-mean)*invstd,
//
//	dbeta = sum g, dgamma = sum g*xhat
//	dx = gamma*invstd*(g - dbeta/n - xhat*dgamma/n)
//
// (Ioffe and Szegedy 2015, section 3), where the part of the mean that m lacks
// is in k1. m is the float32 nearest the mean.
func (d *gradient) set(f *affine, invstd, p, r, n float64) {
	d.set64(f.mean, invstd, p, r, n)
	if math.Abs(d.k2) <= slight && math.Abs(d.dgamma)*n <= math.Abs(p)*negligible {
		d.k2 = 0
	}
	d.wide = f.wide() || wild(d.k1, gradMin, sureMax) || wild(d.k2, gradMin, sureMax)
}

// set64 is set for kernels that compute dx in float64. No constant leaves their range.
func (d *gradient) set64(mean, invstd, p, r, n float64) {
	low := mean - float64(float32(mean))
	r -= float64(low * p)
	r -= p - p // infinite gradients make it NaN, whatever the rounding of m makes of it
	d.dbeta, d.dgamma = p, r*invstd
	d.k2 = float64(d.dgamma*invstd) / n
	d.k1 = p/n - float64(low*d.k2)
}

// slight is the largest k2 that is left out where xhat's part is negligible. Larger ones are those of usual
// channels, which need no second look.
const slight = 0x1p-50

// negligible is the ratio of xhat's part in dx to the mean's part up to which xhat's part
// is left out. |xhat| is at most sqrt(n). Products of a tiny k2 and a tiny x-m would
// vanish, which takes some processors a hundred times as long.
const negligible = 0x1p-40

// gradSumsAreSafe reports whether the sums p of g and r of g*(x-m) over n
// values, taken in float32, can be relied on: they have not overflowed, and products
// that vanished don't matter beside them or beside g.
func gradSumsAreSafe(p, r, n, invstd float64) bool {
	p, r = math.Abs(p), math.Abs(r)
	if math.IsInf(p, 0) || math.IsInf(r, 0) || math.IsNaN(p) || math.IsNaN(r) {
		return false
	}
	return r >= n*gradMin || p >= n*invstd*gradMin
}

// scaledGradient is a gradient for x times 2^powerX and g times 2^powerG.
type scaledGradient struct {
	powerX, powerG int
	m, k1, k2      float32
	scale          float64
}

// scaled returns the constants of dx for scaled values.
func (d *gradient) scaled(f *affine, powerX, powerG int) scaledGradient {
	if d.k2 == 0 { // x has no part in it, and need not be near the mean
		powerX = min(f.power, 0)
	}
	low := f.mean - float64(float32(f.mean))
	mean := ldexp(f.mean, powerX)
	k1 := d.k1 + float64(low*d.k2)
	s := scaledGradient{powerX: powerX, m: float32(mean)}
	k2 := ldexp(d.k2, -powerX)
	k1 -= float64((mean - float64(s.m)) * k2)
	// The sums may be those of other gradients as well, which are larger.
	powerG = min(powerG, surePower-exponentOf(k1), surePower-exponentOf(k2))
	s.powerG, s.scale = powerG, ldexp(f.scale, -powerG)
	s.k1, s.k2 = float32(ldexp(k1, powerG)), float32(ldexp(k2, powerG))
	return s
}
