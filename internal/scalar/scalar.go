// Package scalar has the activations of package batchnorm and their derivatives, for one
// value at a time. It is their specification: kernels/near.go and kernels/functions.go
// repeat each function over vectors, with the same operations in the same order.
//
// Where normalized values usually are, a function computes in float32, by polynomials in
// pieces (package coef). For arguments far from there, a function with Far in its name
// uses the exponential function: in float32, as the sum of two numbers, or in float64,
// rounded to float32 at the end. Of float64 it uses what every instruction set has: sums,
// products, quotients and the bits. Products are converted before they are added, so that
// no compiler fuses them.
//
// "Worst" in a comment is the largest error over all float32, in units in the last place
// (ULP) of the value, and the input that has it. Errors of a derivative are in ULP of its
// largest term, and those of ELU are for an alpha of 1. docs/activations.md tells how they
// were found.
package scalar

import (
	"math"

	"github.com/fusedbn/batchnorm/internal/coef"
)

// Clamps: from these arguments on the function has reached its limit in float32.
// Comparisons with NaN are false, so that NaN is not clamped.
const (
	tailEnd     = 110 // exp(-110) is below half of the smallest subnormal float32
	eluTail     = 200 // exp(-200) times any float32 is, too
	geluEnd     = 15  // of the tail of GELU
	geluTanhEnd = 12
)

// Either returns a or b without a branch: no processor predicts the signs of normalized
// data.
func Either(condition bool, a, b float32) float32 {
	mask := uint32(0)
	if condition { // a conditional move
		mask = math.MaxUint32
	}
	return math.Float32frombits(math.Float32bits(a)&mask | math.Float32bits(b)&^mask)
}

// atLeast and atMost are max and min that return z where it is NaN.
func atLeast(z, lo float32) float32 { return Either(lo > z, lo, z) }
func atMost(z, hi float32) float32  { return Either(hi < z, hi, z) }

// power splits 2^y = 2^n*(a+f)/(a-f), with an integer n in the low bits of t. |y| is at
// most 1000. The rational function of f is that of package coef.
func power(y float64) (a, f float64, t uint64) {
	s := y + coef.Magic
	d := y - (s - coef.Magic)
	w := float64(d * d)
	a = float64(w*coef.ExpA1) + coef.ExpA0
	f = float64((w + coef.ExpB0) * d)
	return a, f, math.Float64bits(s)
}

// exp2 returns 2^y as the quotient of v and u.
func exp2(y float64) (v, u float64) {
	a, f, t := power(y)
	v = math.Float64frombits(math.Float64bits(a+f) + t<<52)
	return v, a - f
}

// decay returns big and small, whose sum is exp(-t)*2^64. big has 12 digits, and small is at
// most a twentieth of it. The polynomial's relative error is 2^-25.1, or 2^-29 if precise is
// set. Beyond tailEnd, t counts as tailEnd.
func decay(t float32, precise bool) (big, small float32) {
	t = atMost(t, tailEnd)
	n := float32(t*coef.DecayScale) + coef.Nearest
	i := math.Float32bits(n)
	n -= coef.Nearest
	big = math.Float32frombits(math.Float32bits(coef.Decay.Big[i%8]) + i<<20)
	// exp(-t) is big times exp(-s).
	s := (t + float32(n*coef.DecayHi)) + (float32(n*coef.DecayLo) + coef.Decay.Log[i%8])
	v := float32(s*coef.DecayC3) + coef.DecayC2
	if precise {
		v = float32((float32(s*coef.DecayD4)+coef.DecayD3)*s) + 0.5
	}
	v = float32(v*s) - 1
	return big, float32(float32(big*s) * v)
}

// restored takes back the factor 2^shift of v, which is at least 0. It rounds to subnormals as
// a product does. Two numbers have the bits of the result: v with another exponent, and v in
// units of the smallest subnormal, to which the sum rounds it. The other one is less.
func restored(v float32, shift uint32) float32 {
	least := (shift + 1) << 23 // the bits of 2^shift times the smallest normal float32
	normal := int32(math.Float32bits(v) - shift<<23)
	subnormal := int32(math.Float32bits(v+math.Float32frombits(least)) - least)
	return math.Float32frombits(uint32(max(normal, subnormal)))
}

// correction takes e and returns e*v, both times 2^64, and v, such that 1+v is a function
// of e. An e below 2^-30 counts as 2^-30 in v: that changes nothing, and keeps products from
// being subnormal.
func correction(e, scale, ratio float32) (ev, v float32) {
	u := float32(atLeast(e, coef.DecayLeast) * scale)
	return float32(float32(e*u) * (u + ratio)), float32(u * (u + ratio))
}

// logistic returns sigmoid(-t)*2^64 in two parts, as decay does, and d = -sigmoid(-t), for
// t above coef.SigmoidEnd.
func logistic(t float32, precise bool) (big, small, d float32) {
	big, small = decay(t, precise)
	change, d := correction(big+small, coef.LogisticScale, coef.LogisticRatio)
	return big, small + change, d
}

// timesBig returns big*(x+y) + rest. It is as good as rounded once if y and rest are small,
// since big has 12 digits.
func timesBig(big, x, y, rest float32) float32 {
	first := math.Float32frombits(math.Float32bits(x) &^ (1<<12 - 1))
	return float32(big*first) + (float32(big*((x-first)+y)) + rest)
}

// polynomial is p at t, which lies in piece i. Coefficients beyond the degree are 0.
func polynomial(p *coef.Pieces, i uint32, t float32) float32 {
	q := &p[i%8]
	return q.Base + deviation(q, t-q.Center)
}

// deviation is the polynomial of a piece without its constant term.
func deviation(q *coef.Piece, d float32) float32 {
	v := float32(q.C[6]*d) + q.C[5]
	v = float32(v*d) + q.C[4]
	v = float32(v*d) + q.C[3]
	v = float32(v*d) + q.C[2]
	v = float32(v*d) + q.C[1]
	v = float32(v*d) + q.C[0]
	return float32(v * d)
}

// likeSigmoid, likeGELU and likeMish evaluate tables whose pieces begin where those of
// coef.Sigmoid, coef.GELU (both at |z|) and coef.Mish do, and report whether z is near.
// NaN is not near. The value for a z that is not near is meaningless.

func likeSigmoid(p *coef.Pieces, z float32) (v float32, near bool) {
	t := Abs(z)
	return polynomial(p, math.Float32bits(float32(t*coef.SigmoidScale)+coef.Nearest), t), !(t > coef.SigmoidEnd)
}

func likeGELU(p *coef.Pieces, z float32) (v float32, near bool) {
	t := Abs(z)
	return polynomial(p, math.Float32bits(float32((t+coef.GELUShift)*t)+coef.NearestQuarter), t), !(t > coef.GELUEnd)
}

func likeMish(p *coef.Pieces, z float32) (v float32, near bool) {
	return polynomial(p, math.Float32bits(z+coef.Nearest), z), !(Abs(z-coef.MishShift) > coef.MishEnd)
}

// octaves evaluates a table whose pieces get wider, as coef.Tanh.
func octaves(p *coef.Pieces, scale, t float32) float32 {
	q := &p[math.Float32bits(float32(t*scale)+1)>>22%8]
	d := t - q.Center
	return Either(q.Base == 0, d, q.Base) + deviation(q, d) // where the base is 0, so is the center
}

// mirrored returns v where z has a minus sign, and 1-v elsewhere.
func mirrored(z, v float32) float32 { return Either(negative(z), v, 1-v) }

// negative reports whether the sign bit is set, by which blend instructions choose.
func negative(z float32) bool { return math.Float32bits(z)&signBit != 0 }

// signBit is the sign of a float32.
const signBit = 1 << 31

// withSign returns v with its sign bit set if z has it set.
func withSign(v, z float32) float32 {
	return math.Float32frombits(math.Float32bits(v) | math.Float32bits(z)&signBit)
}

// gated is z times a gate: v = |z|*g, the gate is g at -|z| and 1-g at |z|.
func gated(z, v float32) float32 { return positive(z) - v }

func Clip(z, lo, hi float32) float32 { return atMost(atLeast(z, lo), hi) }

const (
	sixth float32 = 1.0 / 6
	third float32 = 1.0 / 3
)

// HardSigmoid is clip(z+3, 0, 6)/6.
// Worst: 1.3333 ULP at 1.0000007.
func HardSigmoid(z float32) float32 { return Clip(z+3, 0, 6) * sixth }

// HardSigmoidSlope is 1/6 between the kinks.
// Worst: 0.3333 ULP at 0.
func HardSigmoidSlope(z float32) float32 {
	return Either(z > -3, Either(3 > z, sixth, 0), 0)
}

// HardSwish is z*HardSigmoid(z).
// Worst: 2.4827 ULP at 0.0019451381.
func HardSwish(z float32) float32 { return HardSigmoid(z) * atLeast(z, -3) }

// HardSwishSlope is z/3 + 1/2 between the kinks.
// Worst: 0.6667 ULP at 0.75000024.
func HardSwishSlope(z float32) float32 {
	within := Either(z <= 3, float32(z*third)+0.5, 1)
	return Either(-3 <= z, within, 0) // and for NaN
}

// Sigmoid is 1/(1+exp(-z)).
// Worst: 0.8787 ULP at -1.7585514.
func Sigmoid(z float32) float32 {
	v, near := likeSigmoid(&coef.Sigmoid, z)
	if !near {
		return sigmoidFar(z)
	}
	return mirrored(z, v)
}

func sigmoidFar(z float32) float32 {
	big, small, _ := logistic(Abs(z), true)
	return mirrored(z, restored(big+small, coef.DecayShift))
}

// SigmoidSlope is s*(1-s), with s = sigmoid(-|z|).
// Worst: 1.7700 ULP at 1.7666515.
func SigmoidSlope(z float32) float32 {
	v, near := likeSigmoid(&coef.Sigmoid, z)
	if !near {
		return sigmoidSlopeFar(z)
	}
	return v - float32(v*v)
}

func sigmoidSlopeFar(z float32) float32 { return restored(bell(Abs(z)), coef.DecayShift) }

// bell is sigmoid'(t)*2^64.
func bell(t float32) float32 {
	big, small, d := logistic(t, false)
	return big + (small + float32((big+small)*d))
}

// Tanh is odd: the table is for |z|.
// Worst: 0.9371 ULP at 0.6905303.
func Tanh(z float32) float32 {
	t := atMost(Abs(z), coef.TanhEnd)
	return withSign(octaves(&coef.Tanh, coef.TanhScale, t), z)
}

// TanhSlope is 1-tanh(z)^2.
// Worst: 2.7827 ULP at 0.35714915.
func TanhSlope(z float32) float32 {
	v, near := likeSigmoid(&coef.TanhSlope, z)
	if !near {
		return tanhSlopeFar(z)
	}
	return v
}

// tanhSlopeFar is 4*sigmoid'(2z).
func tanhSlopeFar(z float32) float32 { return restored(bell(Abs(z)*2), coef.DecayShift-2) }

// SiLU is z/(1+exp(-z)).
// Worst: 1.2957 ULP at -0.2907611.
func SiLU(z float32) float32 {
	v, near := likeSigmoid(&coef.SiLU, z)
	if !near {
		return siluFar(z)
	}
	return gated(z, v)
}

func siluFar(z float32) float32 {
	t := atMost(Abs(z), tailEnd)
	big, small, _ := logistic(t, false)
	v := restored(timesBig(big, t, 0, float32(small*t)), coef.DecayShift)
	return Either(negative(z), float32(math.Copysign(0, -1)), z) - v
}

// SiLUSlope is s*(1 + z*(1-s)) with s = sigmoid(z).
// Worst: 1.2218 ULP at 1.7854574.
func SiLUSlope(z float32) float32 {
	v, near := likeSigmoid(&coef.SiLUSlope, z)
	if !near {
		return siluSlopeFar(z)
	}
	return mirrored(z, v)
}

// siluSlopeFar is -s*(t-1 - t*s) at z = -t, with s = sigmoid(-t).
func siluSlopeFar(z float32) float32 {
	t := atMost(Abs(z), tailEnd)
	big, small, d := logistic(t, false)
	k, h := t-1, float32(t*d)
	return mirrored(z, -restored(timesBig(big, k, h, float32(small*(k+h))), coef.DecayShift))
}

// ELU is alpha*(exp(z)-1) below 0.
// Worst: 1.1323 ULP at -0.5852984.
func ELU(z, alpha float32) float32 {
	if !negative(z) {
		return z
	}
	t := atMost(Abs(z), coef.Expm1End)
	return -float32(octaves(&coef.Expm1, coef.Expm1Scale, t) * alpha)
}

// ELUSlope is alpha*exp(z) below 0.
// Worst: 0.9175 ULP at -0.35793802.
func ELUSlope(z, alpha float32) float32 {
	v, near := likeSigmoid(&coef.Exp, z)
	if !near {
		return eluSlopeFar(z, alpha)
	}
	return Either(z > 0, 1, v*alpha)
}

func eluSlopeFar(z, alpha float32) float32 {
	if z > 0 {
		return 1
	}
	v, u := exp2(float64(Clip(z, -eluTail, 0)) * coef.Log2E)
	return float32((v * float64(alpha)) / u)
}

// positive returns z where it is above 0, and 0 elsewhere.
func positive(z float32) float32 { return Either(z > 0, z, 0) }

// Abs clears the sign.
func Abs(z float32) float32 { return math.Float32frombits(math.Float32bits(z) &^ signBit) }

// Softplus is max(z, 0) + log(1+exp(-|z|)).
// Worst: 1.2301 ULP at 0.3572277.
func Softplus(z float32) float32 {
	v, near := likeSigmoid(&coef.Softplus, z)
	if !near {
		return softplusFar(z)
	}
	return positive(z) + v
}

func softplusFar(z float32) float32 {
	big, small := decay(Abs(z), false)
	change, _ := correction(big+small, coef.SoftplusScale, coef.SoftplusRatio)
	return positive(z) + restored(big+(small+change), coef.DecayShift)
}

// Mish is z*tanh(log(1+exp(z))).
// Worst: 1.8918 ULP at -3.4436681.
func Mish(z float32) float32 {
	v, near := likeMish(&coef.Mish, z)
	if !near {
		return mishFar(z)
	}
	return v * z
}

// mishFar uses tanh(log(1+e)) = e*(1 - e/2 + e^3/4) at -t, with e = exp(-t), and 1 - 2e^2*(1-2e+2e^2) at t.
// The terms left out are less than 2^-27.
func mishFar(z float32) float32 {
	t := atMost(Abs(z), tailEnd)
	big, small, e, u := smallExp(t)
	w := float32(u * u)
	above := float32(float32(w*(float32((u-w)*4)-2)) * t)
	small += float32(float32(e*u) * (float32(w*0.25) - 0.5))
	below := restored(timesBig(big, t, 0, float32(small*t)), coef.DecayShift)
	return Either(negative(z), -below, z+above)
}

// smallExp returns the two parts of exp(-t)*2^64, their sum, and exp(-t), which is at least 2^-30: that
// changes nothing where it is added to 1, and keeps products from being subnormal.
func smallExp(t float32) (big, small, e, u float32) {
	big, small = decay(t, false)
	e = big + small
	return big, small, e, float32(atLeast(e, coef.DecayLeast) * coef.DecayUnit)
}

// MishSlope is mish'(z).
// Worst: 2.8566 ULP at -0.4655378.
func MishSlope(z float32) float32 {
	v, near := likeMish(&coef.MishSlope, z)
	if !near {
		return mishSlopeFar(z)
	}
	return v
}

// mishSlopeFar is -e*(t-1 - (t-1/2)*(e - r*e^3)) at -t, with e = exp(-t) and r from 1 to 17/16, and
// 1 + 2e^2*q*(2t*(1+e)*q - 1) at t, with q = 1/(1+2e+2e^2), which is nearly 1 - 2*(e-e^2).
func mishSlopeFar(z float32) float32 {
	t := atMost(Abs(z), tailEnd)
	big, small, _, u := smallExp(t)
	w := float32(u * u)
	q := 1 - float32((u-w)*coef.MishQuotient)
	above := float32(float32(w*q)*(float32(float32(float32(t*4)*q)*(u+1))-2)) + 1
	k, h := t-1, float32(float32((t-0.5)*u)*(float32(w*1.0625)-1))
	below := restored(timesBig(big, k, h, float32(small*(k+h))), coef.DecayShift)
	return Either(negative(z), -below, above)
}

// normalTail returns, for x = |z| up to geluEnd, v*p and u*q, whose quotient is
// the probability that a standard normal variable is above x: v/u is
// exp(-x^2/2), and p/q the rational function of package coef.
func normalTail(x float64) (v, p, u, q float64) {
	v, u = exp2(float64(x*x) * coef.MinusHalfLog2E)
	p = float64(x*coef.TailP4) + coef.TailP3
	p = float64(p*x) + coef.TailP2
	p = float64(p*x) + coef.TailP1
	p = float64(p*x) + coef.TailP0
	q = x + coef.TailQ4
	q = float64(q*x) + coef.TailQ3
	q = float64(q*x) + coef.TailQ2
	q = float64(q*x) + coef.TailQ1
	q = float64(q*x) + coef.TailQ0
	return v, p, u, q
}

// GELU is max(z, 0) - |z|*Phi(-|z|).
// Worst: 1.9263 ULP at -0.611016.
func GELU(z float32) float32 {
	v, near := likeGELU(&coef.GELU, z)
	if !near {
		return geluFar(z)
	}
	return gated(z, v)
}

func geluFar(z float32) float32 {
	x := float64(atMost(Abs(z), geluEnd))
	v, p, u, q := normalTail(x)
	return float32(float64(positive(z)) - ((p*v)*x)/(u*q))
}

// GELUSlope is Phi(z) + z*phi(z), where phi is the density: t below 0 and 1-t
// above, with t = Phi(-|z|) - |z|*phi(z).
// Worst: 1.3416 ULP at -0.69581604.
func GELUSlope(z float32) float32 {
	v, near := likeGELU(&coef.GELUSlope, z)
	if !near {
		return geluSlopeFar(z)
	}
	return mirrored(z, v)
}

func geluSlopeFar(z float32) float32 {
	x := float64(atMost(Abs(z), geluEnd))
	v, p, u, q := normalTail(x)
	p -= float64(float64(x*coef.InvSqrt2Pi) * q)
	t := float32((p * v) / (u * q))
	return Either(z > 0, 1+-t, 0+t)
}

// GELUTanh is z*sigmoid(2w) with w = sqrt(2/pi)*(z + 0.044715*z^3).
// Worst: 1.9473 ULP at -0.6369249.
func GELUTanh(z float32) float32 {
	v, near := likeGELU(&coef.GELUTanh, z)
	if !near {
		return geluTanhFar(z)
	}
	return gated(z, v)
}

func geluTanhFar(z float32) float32 {
	z = atLeast(z, -geluTanhEnd)
	x := float64(atMost(z, geluTanhEnd))
	v, u := exp2((float64(float64(x*x)*coef.TanhY3) + coef.TanhY1) * x)
	return float32((v * float64(z)) / (v + u))
}

// GELUTanhSlope is s*(1 + z*(1-s)*2w') with s = sigmoid(2w).
// Worst: 1.5945 ULP at -0.67539704.
func GELUTanhSlope(z float32) float32 {
	v, near := likeGELU(&coef.GELUTanhSlope, z)
	if !near {
		return geluTanhSlopeFar(z)
	}
	return mirrored(z, v)
}

func geluTanhSlopeFar(z float32) float32 {
	x := float64(Clip(z, -geluTanhEnd, geluTanhEnd))
	xx := float64(x * x)
	v, u := exp2((float64(xx*coef.TanhY3) + coef.TanhY1) * x)
	s := v + u
	d := float64(xx*coef.TanhD2) + coef.TanhD0
	return float32(((float64((d*x)*u) + s) * v) / (s * s))
}

// ELUInverse is log(1 + y/alpha) for y from -alpha to 0. At -alpha, the rounded y of
// all z below -17.3, it is log(2^-25) = -17.3.
func ELUInverse(y, alpha float32) float32 {
	t := max(float64(y)/float64(alpha), 0x1p-25-1)
	// With w = (f-1)/(f+1), log f is w times a polynomial in w^2; f is 1+t over a power
	// of two.
	w, exponent := t/(2+t), 0
	if t < -0.5 {
		var f float64
		if f, exponent = math.Frexp(1 + t); f < math.Sqrt2/2 {
			f *= 2
			exponent--
		}
		w = (f - 1) / (f + 1)
	}
	q := float64(w * w)
	p := float64(q*coef.Log1p4) + coef.Log1p3
	p = float64(p*q) + coef.Log1p2
	p = float64(p*q) + coef.Log1p1
	p = float64(p*q) + coef.Log1p0
	return float32(float64(p*w) + float64(float64(exponent)*math.Ln2))
}
