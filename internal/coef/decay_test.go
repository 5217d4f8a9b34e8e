package coef

import (
	"math"
	"testing"
)

// TestDecay checks what the functions of package scalar rely on: digits that make products
// exact, and logarithms to the last digit of float32.
func TestDecay(t *testing.T) {
	for j := range Decay.Big {
		b := float64(math.Float32frombits(math.Float32bits(Decay.Big[j])+uint32(j)<<20)) / (1 << DecayShift)
		if digits := math.Ldexp(b, 11); digits != math.Trunc(digits) || b < 1 || b >= 2 {
			t.Errorf("B of %d is %v, want 12 digits, from 1 to 2", j, b)
		}
		want := math.Log(b) - float64(j)*math.Ln2/8
		if math.Abs(want) > 0x1p-12 || math.Abs(float64(Decay.Log[j])-want) > 0x1p-36 {
			t.Errorf("the logarithm of %d is %v, want %v", j, Decay.Log[j], want)
		}
	}
	if bits := math.Float32bits(DecayHi); bits%(1<<11) != 0 {
		t.Errorf("DecayHi is %v, which has more than 13 digits", DecayHi)
	}
	if off := float64(float32(DecayHi)) + float64(float32(DecayLo)) - math.Ln2/8; math.Abs(off) > 0x1p-40 {
		t.Errorf("DecayHi+DecayLo is off by %g", off)
	}
}

// TestDecayPolynomials checks the errors that are said of them, in float64.
func TestDecayPolynomials(t *testing.T) {
	const largest = math.Ln2/16 + 0x1p-12
	var three, four, logistic, softplus, mish float64
	for k := -1000; k <= 1000; k++ {
		s := largest * float64(k) / 1000
		three = max(three, math.Abs((1+s*(-1+s*(DecayC2+s*DecayC3)))/math.Exp(-s)-1))
		four = max(four, math.Abs((1+s*(-1+s*(0.5+s*(DecayD3+s*DecayD4))))/math.Exp(-s)-1))
		e := math.Exp(-SigmoidEnd) * float64(k+1001) / 2001
		u := LogisticScale * math.Ldexp(e, DecayShift)
		logistic = max(logistic, math.Abs((1+u*(u+LogisticRatio))*(1+e)-1))
		u = SoftplusScale * math.Ldexp(e, DecayShift)
		softplus = max(softplus, math.Abs((1+u*(u+SoftplusRatio))/(math.Log1p(e)/e)-1))
		e = math.Exp(-MishEnd-MishShift) * float64(k+1001) / 2001 // above 0
		mish = max(mish, math.Abs((1-MishQuotient*(e-e*e))*(1+2*e+2*e*e)-1))
	}
	for _, c := range []struct {
		name          string
		off, exponent float64
	}{{"degree 3", three, -25.1}, {"degree 4", four, -29}, {"1/(1+e)", logistic, -27.7}, {"log(1+e)/e", softplus, -29.8},
		{"1/(1+2e+2e^2)", mish, -19.8}} {
		if c.off > math.Exp2(c.exponent) {
			t.Errorf("%s: the largest relative error is 2^%.2f, want 2^%.1f", c.name, math.Log2(c.off), c.exponent)
		}
	}
}
