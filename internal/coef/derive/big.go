package main

import "math/big"

// precision is how many bits numbers have: enough for the series below to lose the
// 170 bits that they lose at the largest argument and still be exact beside a
// float64. Polynomials in pieces, which have small arguments, need less.
var precision = 400

type num = *big.Float

func newNum() num              { return new(big.Float).SetPrec(uint(precision)) }
func of(v float64) num         { return newNum().SetFloat64(v) }
func ratio(a, b int64) num     { return div(newNum().SetInt64(a), newNum().SetInt64(b)) }
func add(a, b num) num         { return newNum().Add(a, b) }
func sub(a, b num) num         { return newNum().Sub(a, b) }
func mul(a, b num) num         { return newNum().Mul(a, b) }
func div(a, b num) num         { return newNum().Quo(a, b) }
func neg(a num) num            { return newNum().Neg(a) }
func abs(a num) num            { return newNum().Abs(a) }
func sqrt(a num) num           { return newNum().Sqrt(a) }
func scale(a num, exp int) num { return newNum().SetMantExp(a, exp) }

// negligible reports whether a term no longer matters beside a sum.
func negligible(term, sum num) bool {
	return term.Sign() == 0 || term.MantExp(nil) < sum.MantExp(nil)-precision-8
}

// series sums first, first*factor(1), first*factor(1)*factor(2), ...
func series(first num, factor func(k int64) num) num {
	sum, term := first, first
	for k := int64(1); !negligible(term, sum); k++ {
		term = mul(term, factor(k))
		sum = add(sum, term)
	}
	return sum
}

// exp is the Taylor series of exp(x/2^m), squared m times.
func exp(x num) num {
	m := max(0, x.MantExp(nil)+8)
	x = scale(x, -m)
	e := series(of(1), func(k int64) num { return div(x, newNum().SetInt64(k)) })
	for range m {
		e = mul(e, e)
	}
	return e
}

// atanh is x + x^3/3 + x^5/5 + ... for |x| < 1.
func atanh(x num) num {
	x2 := mul(x, x)
	return mul(x, series(of(1), func(k int64) num { return mul(x2, ratio(2*k-1, 2*k+1)) }))
}

// tanh is (exp(2x)-1)/(exp(2x)+1).
func tanh(x num) num {
	e := exp(scale(x, 1))
	return div(sub(e, of(1)), add(e, of(1)))
}

var (
	ln2 = scale(atanh(ratio(1, 3)), 1)
	// Machin 1706: pi/4 = 4 atan(1/5) - atan(1/239).
	pi = scale(sub(scale(atanInverse(5), 2), atanInverse(239)), 2)
)

func atanInverse(n int64) num {
	x := ratio(1, n)
	x2 := neg(mul(x, x))
	return mul(x, series(of(1), func(k int64) num { return mul(x2, ratio(2*k-1, 2*k+1)) }))
}

// normalTail is the probability that a standard normal variable is above t:
// 1/2 - exp(-t^2/2)/sqrt(2 pi) * (t + t^3/3 + t^5/(3*5) + ...)
// (Abramowitz and Stegun 1964, 26.2.11).
func normalTail(t num) num {
	if t.Sign() == 0 {
		return of(0.5)
	}
	t2 := mul(t, t)
	s := mul(t, series(of(1), func(k int64) num { return div(t2, newNum().SetInt64(2*k+1)) }))
	return sub(of(0.5), div(mul(exp(scale(neg(t2), -1)), s), sqrt(scale(pi, 1))))
}
