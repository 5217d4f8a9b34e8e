package main

import (
	"fmt"
	"io"
	"math"

	"github.com/fusedbn/batchnorm/internal/coef"
)

// decayDigits is how many binary digits a Decay.Big has: its product with a number of as
// many digits is exact in float32.
const decayDigits = 12

// decayText prints the constants of exp(-t) in float32, and ends the declaration of
// constants.
func decayText(b io.Writer) {
	eighth := scale(ln2, -3)
	constant := func(comment, name string, v num) {
		f, _ := v.Float32()
		if comment != "" {
			fmt.Fprintf(b, "\n// %s\n", comment)
		}
		fmt.Fprintf(b, "%s = %v\n", name, f)
	}
	constant("DecayScale is -8*log2(e).", "DecayScale", neg(div(of(1), eighth)))
	whole, _ := eighth.Float32()
	hi := math.Float32frombits(math.Float32bits(whole) &^ (1<<11 - 1))
	constant("DecayHi+DecayLo is log(2)/8. DecayHi times an integer below 2^11 is exact.", "DecayHi", of(float64(hi)))
	constant("", "DecayLo", sub(eighth, of(float64(hi))))
	// Of the polynomial of degree 3, the coefficient of s^2 makes up for the term s^4/24:
	// x^2/24 - k*m*x has the same absolute value at its minimum and at x = m, the largest s^2.
	k := div(sub(sqrt(of(2)), of(1)), of(12))
	limit := add(scale(eighth, -1), of(math.Ldexp(1, -decayDigits)))
	constant("exp(-s) = 1 + s*(-1 + s*(DecayC2 + s*DecayC3)) within 2^-25.1 for the largest s.", "DecayC2", add(of(0.5), mul(k, mul(limit, limit))))
	constant("", "DecayC3", ratio(-1, 6))
	constant("exp(-s) = 1 + s*(-1 + s*(1/2 + s*(DecayD3 + s*DecayD4))) within 2^-29.", "DecayD3", ratio(-1, 6))
	constant("", "DecayD4", ratio(1, 24))

	for _, c := range []struct {
		comment, name string
		f             func(e num) num
	}{
		{"With u = LogisticScale*e*2^64, 1/(1+e) = 1 + u*(u+LogisticRatio) for e up to exp(-SigmoidEnd).", "Logistic",
			func(e num) num { return div(of(1), add(of(1), e)) }},
		{"With u = SoftplusScale*e*2^64, log(1+e)/e = 1 + u*(u+SoftplusRatio) for the same e.", "Softplus",
			func(e num) num { return div(sub(of(1), div(log1p(e), e)), e) }},
	} {
		linear, square, err := correction(c.f)
		constant(fmt.Sprintf("%s\n// Largest relative error: 2^%.1f.", c.comment, math.Log2(err)), c.name+"Scale", scale(neg(sqrt(square)), -coef.DecayShift))
		constant("", c.name+"Ratio", div(linear, sqrt(square)))
	}

	fmt.Fprint(b, ")\n")
	fmt.Fprintf(b, `
// Decay has numbers B of %d digits near 2^(j/8), and the logarithms of B/2^(j/8). Big is
// B*2^64 less j in its bits from 20 on, so that adding 8n+j there gives B*2^(64+n).
var Decay = struct{ Big, Log [8]float32 }{
`, decayDigits)
	var big, log [8]float32
	for j := range big {
		root := exp(mul(eighth, newNum().SetInt64(int64(j))))
		v := float32(math.RoundToEven(math.Ldexp(float(root), decayDigits-1)))
		v = float32(math.Ldexp(float64(v), 1-decayDigits))
		// log(v/root) = 2*atanh((v-root)/(v+root))
		log[j], _ = scale(atanh(div(sub(of(float64(v)), root), add(of(float64(v)), root))), 1).Float32()
		v = float32(math.Ldexp(float64(v), coef.DecayShift))
		big[j] = math.Float32frombits(math.Float32bits(v) - uint32(j)<<20)
	}
	for _, row := range [][8]float32{big, log} {
		fmt.Fprint(b, "[8]float32{")
		for j, v := range row {
			if j > 0 {
				fmt.Fprint(b, ", ")
			}
			fmt.Fprint(b, v)
		}
		fmt.Fprint(b, "},\n")
	}
	fmt.Fprint(b, "}\n")
}

// correction returns a and b such that 1 - e*(a - b*e) is 1 - e*f(e) for e from 0 to
// exp(-SigmoidEnd), and the largest error: a - b*e is f at two points. These and 0 are the
// zeros of a Chebyshev polynomial of degree 3, of which e*(a-b*e-f(e)) is about a multiple.
func correction(f func(e num) num) (a, b num, err float64) {
	end := exp(neg(of(float64(float32(coef.SigmoidEnd)))))
	root := sqrt(of(3))
	half := div(end, add(of(1), scale(root, -1)))
	first := sub(end, half)
	second := add(first, scale(mul(half, root), -1))
	v, w := f(first), f(second)
	b = div(sub(v, w), sub(second, first))
	a = add(v, mul(b, first))
	const steps = 300
	for i := 1; i <= steps; i++ {
		e := mul(end, ratio(int64(i), steps))
		err = max(err, math.Abs(float(mul(e, sub(sub(a, mul(b, e)), f(e))))))
	}
	return a, b, err
}
