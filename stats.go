package batchnorm

import "math"

// What happens to a channel's sums in float64, the same for every path.
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
func mergeMoment(mean, m2, mean2, m22, weight, cross float64) (mergedMean, mergedM2 float64) {
	d := mean2 - mean
	return mean + float64(d*weight), m2 + (m22 + float64(float64(d*d)*cross))
}

// blockMoment returns mean and m2 of n values from the sums s of x-k and q of
// (x-k)^2.
func blockMoment(n, k, s, q float64) (mean, m2 float64) {
	d := s / n
	return k + d, q - float64(s*d)
}

// reduce sums 8 lanes in float64.
func reduce(v *[lanes]float32) float64 {
	return ((float64(v[0]) + float64(v[4])) + (float64(v[2]) + float64(v[6]))) +
		((float64(v[1]) + float64(v[5])) + (float64(v[3]) + float64(v[7])))
}

// The numbers that float32 handles without losing digits to its range, with
// room for their products: outside these a channel takes a way in float64.
const (
	tameMin = 0x1p-60
	tameMax = 0x1p+60
	sureMin = 0x1p-100
	sureMax = 0x1p+100
)

// wild reports whether v can't be trusted to float32 arithmetic. Zero can, and
// so can NaN, which stays what it is.
func wild(v, lo, hi float64) bool {
	v = math.Abs(v)
	return v != 0 && (v < lo || v > hi)
}

// sumsAreSafe reports whether a variance from float32 squares can be relied on:
// neither have the squares overflowed, nor can what vanished of them matter
// beside the variance and epsilon.
func sumsAreSafe(variance, epsilon float64) bool {
	t := variance + epsilon
	return t >= sureMin && t <= sureMax
}

// populationVariance is m2/n, of values whose m2 may be below 0 by rounding.
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

// affine is what normalization does to a channel: z = (x-mean)*scale + beta,
// computed in float32 as (x-m)*a + b, where the part of the mean that m lacks
// is in b.
type affine struct {
	mean, scale, beta float64
	m, a, b           float32
	wide              bool // float32 would lose digits: compute in float64
}

func (f *affine) set(mean, invstd, gamma, beta float64) {
	scale := gamma * invstd
	m := float32(mean)
	f.mean, f.scale, f.beta = mean, scale, beta
	f.m, f.a = m, float32(scale)
	f.b = float32(beta - float64((mean-float64(m))*scale))
	f.wide = !math.IsNaN(scale) &&
		(wild(scale, tameMin, tameMax) || wild(invstd, tameMin, tameMax) || math.Abs(mean) > sureMax)
}

// z is the pre-activation of x before the residual, for a wide channel.
func (f *affine) z(x float32) float64 {
	return float64((float64(x)-f.mean)*f.scale) + f.beta
}

// gradient is what the backward pass does to a channel:
// dx = ((g-k1) - (x-m)*k2) * a.
type gradient struct {
	k1, k2        float64
	dgamma, dbeta float64
	wide          bool // as in affine
}

// set takes the sums p of g and r of g*(x-m) over n values. With
// xhat = (x-mean)*invstd,
//
//	dbeta = sum g, dgamma = sum g*xhat
//	dx = gamma*invstd*(g - dbeta/n - xhat*dgamma/n)
//
// (Ioffe and Szegedy 2015, section 3), where the part of the mean that m lacks
// is in k1.
func (d *gradient) set(f *affine, invstd, p, r, n float64) {
	low := f.mean - float64(f.m)
	r -= float64(low * p)
	d.dbeta, d.dgamma = p, r*invstd
	d.k2 = float64(d.dgamma*invstd) / n
	d.k1 = p/n - float64(low*d.k2)
	d.wide = f.wide || wild(d.k1, sureMin, sureMax) || wild(d.k2, sureMin, sureMax)
}

// gradSumsAreSafe reports whether the sums p of g and r of g*(x-m) over n
// values, taken in float32, can be relied on: they have not overflowed, and
// what vanished of the products is nothing beside them or beside g.
func gradSumsAreSafe(p, r, n, invstd float64) bool {
	p, r = math.Abs(p), math.Abs(r)
	if math.IsInf(p, 0) || math.IsInf(r, 0) || math.IsNaN(p) || math.IsNaN(r) {
		return false
	}
	return r >= n*sureMin || p >= n*invstd*sureMin
}

// dx is the gradient by x for a wide channel.
func (d *gradient) dx(f *affine, g, x float32) float32 {
	low := f.mean - float64(f.m)
	k1 := d.k1 + float64(low*d.k2)
	return float32(((float64(g) - k1) - float64((float64(x)-f.mean)*d.k2)) * f.scale)
}
