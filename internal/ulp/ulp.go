// Package ulp measures the error of float32 results against float64 truth.
package ulp

import "math"

// Of returns the distance between neighbouring float32 values at |x|: the unit
// in the last place of x rounded towards zero, and that of the subnormals at 0.
func Of(x float64) float64 {
	const digits, lowest = 24, -149
	if x == 0 {
		return math.SmallestNonzeroFloat32
	}
	_, exp := math.Frexp(x)
	return math.Ldexp(1, max(exp-digits, lowest))
}

// Distance returns how far got is from want, in units of [Of] want: at most
// one half for a result that is rounded right. It is 0 when both are NaN or
// the same infinity, and infinite when only one is.
func Distance(got float32, want float64) float64 {
	g := float64(got)
	switch {
	case g == want, g != g && want != want:
		return 0
	case math.IsNaN(g - want), math.IsInf(g-want, 0):
		return math.Inf(1)
	}
	return math.Abs(g-want) / Of(want)
}
