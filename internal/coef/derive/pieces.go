package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/fusedbn/batchnorm/internal/coef"
)

// A function is approximated by polynomials in pieces of its argument t: in piece
// i it is base[i] + d*(c[0][i] + d*(c[1][i] + ...)) with d = t - center[i], all in
// float32. What is left to choose is the center. It is first moved until the
// function's value there is almost a float32, so that the base has no error. Among
// some centers the one is taken whose polynomial, evaluated in float32, errs
// least in a sample.

const pieces = 8

// piecewise describes one of the approximations.
type piecewise struct {
	name, comment string
	f             func(t num) num
	// an error is relative to weight; nil: to f itself
	weight func(t num) num
	degree int
	edges  [pieces + 1]float64
	first  int // in the table
	// relative has relative errors be compared, as the result is to be multiplied.
	relative bool
	// zero has the piece around 0, where f is 0, have its center there, so that the
	// error there is relative to f.
	zero bool
	// edge, if not 0, has the base of the first piece be t, which is below it, and its
	// center 0. The other bases are above it.
	edge float64
	// sample, if not 0, takes the place of the constant.
	sample int
}

// uniform are the edges where the piece is a*t rounded to an integer, of which the
// first is n.
func uniform(a float64, n int) (edges [pieces + 1]float64) {
	for i := range edges {
		edges[i] = (float64(i+n) - 0.5) / a
	}
	return edges
}

// fromZero sets the first edge to 0.
func fromZero(edges [pieces + 1]float64) [pieces + 1]float64 {
	edges[0] = 0
	return edges
}

// quadratic are the edges where it is t*(t+GELUShift)/4.
func quadratic() [pieces + 1]float64 {
	const half = coef.GELUShift / 2.
	edges := fromZero(uniform(0.25, 0))
	for i, v := range edges {
		edges[i] = math.Sqrt(half*half+v) - half
	}
	return edges
}

// octaves are the edges where it is told by the exponent and the first digit of
// a*t+1.
func octaves(a float64) (edges [pieces + 1]float64) {
	for i := range edges {
		edges[i] = (math.Ldexp(1+float64(i%2)/2, i/2) - 1) / a
	}
	return edges
}

// one is the approximation in one piece.
type one struct {
	center, base float32
	c            []float32
}

// at evaluates it as the functions do.
func (p *one) at(t, base float32) float32 {
	d := t - p.center
	v := p.c[len(p.c)-1]
	for k := len(p.c) - 2; k >= 0; k-- {
		v = float32(v*d) + p.c[k]
	}
	return float32(v*d) + base
}

func float(x num) float64 { v, _ := x.Float64(); return v }

// accurate returns a float32 close behind t where f is almost a float32, and that.
func accurate(f func(num) num, t float64) (center, base float32) {
	best := math.Inf(1)
	c := float32(t)
	for i := 0; i < 300 && best > 0x1p-32; i++ {
		v := f(of(float64(c)))
		b, _ := v.Float32()
		if e := math.Abs(float(sub(div(v, of(float64(b))), of(1)))); e < best {
			best, center, base = e, c, b
		}
		c += float32(math.Abs(t) * 0x1p-16)
	}
	return center, base
}

// fit chooses the coefficients by least squares over points that crowd at the ends.
// Each is rounded to float32 before those of higher powers are chosen.
func (w *piecewise) fit(p *one, t, y, scale []num) {
	n := len(t)
	d, rest := make([]num, n), make([]num, n)
	for i := range t {
		d[i] = sub(t[i], of(float64(p.center)))
		base := of(float64(p.base))
		if w.edge > 0 && p.center == 0 {
			base = t[i]
		}
		rest[i] = sub(y[i], base)
	}
	for k := 1; k <= w.degree; k++ {
		m := w.degree - k + 1
		a := make([][]num, m)
		for r := range a {
			a[r] = make([]num, m+1)
			for j := range a[r] {
				a[r][j] = of(0)
			}
		}
		for i := range t {
			power := div(of(1), scale[i])
			for range k {
				power = mul(power, d[i])
			}
			row := make([]num, m+1)
			for j := range m {
				row[j] = power
				power = mul(power, d[i])
			}
			row[m] = div(rest[i], scale[i])
			for r := range m {
				for j := range m + 1 {
					a[r][j] = add(a[r][j], mul(row[r], row[j]))
				}
			}
		}
		c, _ := solve(a)[0].Float32()
		p.c = append(p.c, c)
		for i := range t {
			power := of(float64(c))
			for range k {
				power = mul(power, d[i])
			}
			rest[i] = sub(rest[i], power)
		}
	}
}

// sample is how many arguments of a piece centers are compared at, unless a function
// has more. Too few miss the worst ones of a center: exp came out at 1.06 ULP over all
// arguments with 2000 and with 10000, at 0.92 with 20000.
const sample = 10000

// piece returns the approximation in piece i, and its largest error in the sample, in
// ULP.
func (w *piecewise) piece(i int) (best one, least float64) {
	lo, hi := w.edges[i], w.edges[i+1]
	weight := w.weight
	if weight == nil {
		weight = w.f
	}
	var t, y, scale []num
	for k := range 4 * (w.degree + 2) {
		x := of(lo + (hi-lo)*(1-math.Cos(math.Pi*(float64(k)+0.5)/float64(4*(w.degree+2))))/2)
		t, y, scale = append(t, x), append(y, w.f(x)), append(scale, abs(weight(x)))
	}
	n := cmp.Or(w.sample, sample)
	at, want, unit := make([]float32, n), make([]float64, n), make([]float64, n)
	for k := range at {
		at[k] = float32(lo + (hi-lo)*math.Mod((float64(k)+0.5)*math.Phi, 1))
		x := of(float64(at[k]))
		want[k] = float(w.f(x))
		unit[k] = math.Abs(float(weight(x)))
		if !w.relative {
			_, e := math.Frexp(unit[k])
			unit[k] = math.Ldexp(1, e)
		}
		unit[k] *= 0x1p-24
	}
	centers := []float64{0}
	if !(w.edge > 0 && i == 0 || w.zero && lo <= 0 && hi > 0) {
		centers = nil
		for part := 0.20; part < 0.8; part += 0.02 {
			centers = append(centers, lo+(hi-lo)*part)
		}
	}
	least = math.Inf(1)
	for _, c := range centers {
		var p one
		if c != 0 {
			p.center, p.base = accurate(w.f, c)
			if w.edge > 0 && p.base < float32(w.edge) {
				continue
			}
		}
		w.fit(&p, t, y, scale)
		worst := 0.0
		for k, v := range at {
			base := p.base
			if w.edge > 0 && i == 0 {
				base = v
			}
			worst = max(worst, math.Abs(float64(p.at(v, base))-want[k])/unit[k])
		}
		if worst < least {
			best, least = p, worst
		}
	}
	return best, least
}

// write prints the table.
func (w *piecewise) write(b io.Writer) {
	var list [pieces]one
	var errs [pieces]float64
	var wg sync.WaitGroup
	for i := range list {
		wg.Add(1)
		go func() {
			defer wg.Done()
			list[(i+w.first)%pieces], errs[i] = w.piece(i)
		}()
	}
	wg.Wait()
	worst := 0.0
	for _, e := range errs {
		worst = max(worst, e)
	}
	fmt.Fprintf(b, "\n// %s is %s.\n// Largest error in a sample: %.2f ULP.\nvar %[1]s = Pieces{\n", w.name, w.comment, worst)
	for _, p := range list {
		fmt.Fprintf(b, "{%v, %v, [MaxDegree]float32{", p.center, p.base)
		for k, c := range p.c {
			if k > 0 {
				fmt.Fprint(b, ", ")
			}
			fmt.Fprint(b, c)
		}
		fmt.Fprint(b, "}},\n")
	}
	fmt.Fprint(b, "}\n")
}

// The functions that are approximated.

func sigmoid(z num) num { return div(of(1), add(of(1), exp(neg(z)))) }

// log1p is log(1+x) for x from 0 to 1: 2*atanh(x/(2+x)).
func log1p(x num) num { return scale(atanh(div(x, add(x, of(2)))), 1) }

// density is that of a standard normal variable at t.
func density(t num) num {
	return div(exp(scale(neg(mul(t, t)), -1)), sqrt(scale(pi, 1)))
}

// larger returns the larger of two terms that are not negative.
func larger(a, b num) num {
	if a.Cmp(b) > 0 {
		return a
	}
	return b
}

// tanhArgument is 2*sqrt(2/pi)*(t + 0.044715*t^3), and its derivative.
func tanhArgument(t num) (w, slope num) {
	a := scale(sqrt(div(of(2), pi)), 1)
	c, t2 := mul(a, ratio(44715, 1000000)), mul(t, t)
	return mul(t, add(a, mul(c, t2))), add(a, mul(of(3), mul(c, t2)))
}

// mishGate is tanh(log(1+exp(z))) = n/(n+2) with n = e*(e+2), and its derivative.
func mishGate(z num) (g, slope num) {
	e := exp(z)
	n := mul(e, add(e, of(2)))
	n2 := add(n, of(2))
	return div(n, n2), div(scale(mul(e, add(e, of(1))), 2), mul(n2, n2))
}

// below is 1/(1+exp(t)).
func below(t num) num { return sigmoid(neg(t)) }

// gateSlope returns the derivative of z/(1+exp(-w(z))) at z = -t, which is
// s*(1 - t*w'(t)*(1-s)) with s = 1/(1+exp(w(t))), for an odd w, and the larger of its
// two terms.
func gateSlope(argument func(t num) (w, slope num)) (f, weight func(t num) num) {
	terms := func(t num) (s, steep num) {
		w, slope := argument(t)
		s = below(w)
		return s, mul(mul(t, slope), sub(of(1), s))
	}
	f = func(t num) num {
		s, steep := terms(t)
		return mul(s, sub(of(1), steep))
	}
	weight = func(t num) num {
		s, steep := terms(t)
		return mul(s, larger(of(1), steep))
	}
	return f, weight
}

var (
	siluSlope, siluTerm         = gateSlope(func(t num) (w, slope num) { return t, of(1) })
	geluTanhSlope, geluTanhTerm = gateSlope(tanhArgument)
)

var (
	likeSigmoid = fromZero(uniform(coef.SigmoidScale, 0))
	likeGELU    = quadratic()
	likeMish    = uniform(1, -4)
)

var tables = []piecewise{
	{name: "Sigmoid", comment: "1/(1+exp(t)), where the piece is SigmoidScale*t rounded to an integer",
		f: below, degree: 6, edges: likeSigmoid},
	{name: "Exp", comment: "exp(-t), with the pieces of Sigmoid",
		f: func(t num) num { return exp(neg(t)) }, degree: 6, edges: likeSigmoid, sample: 2 * sample},
	{name: "Softplus", comment: "log(1+exp(-t)), with the pieces of Sigmoid",
		f: func(t num) num { return log1p(exp(neg(t))) }, degree: 6, edges: likeSigmoid},
	{name: "SiLU", comment: "t/(1+exp(t)), with the pieces of Sigmoid",
		f: func(t num) num { return mul(t, below(t)) }, zero: true, degree: 6, edges: likeSigmoid},
	{name: "SiLUSlope", comment: "the derivative of z/(1+exp(-z)) at z = -t, with the pieces of Sigmoid",
		f: siluSlope, weight: siluTerm, degree: 6, edges: likeSigmoid},
	{name: "Tanh", comment: "tanh(t), where the piece is told by the exponent and the first digit of\n// TanhScale*t+1; the base of the first is t",
		f: tanh, degree: 7, edges: octaves(coef.TanhScale), first: 6, edge: coef.TanhEdge},
	{name: "TanhSlope", comment: "1-tanh(t)^2, with the pieces of Sigmoid",
		f: func(t num) num {
			s := below(scale(t, 1))
			return scale(mul(s, sub(of(1), s)), 2)
		}, degree: 7, edges: likeSigmoid},
	{name: "Expm1", comment: "1-exp(-t), where the piece is told by the exponent and the first digit of\n" +
		"// Expm1Scale*t+1; the base of the first is t",
		f: func(t num) num { return sub(of(1), exp(neg(t))) }, degree: 7, edges: octaves(coef.Expm1Scale), first: 6, edge: coef.Expm1Edge},
	{name: "GELU", comment: "t times the probability that a standard normal variable is above t, where the\n" +
		"// piece is t*(t+GELUShift)/4 rounded to an integer",
		f: func(t num) num { return mul(t, normalTail(t)) }, zero: true, degree: 7, edges: likeGELU},
	{name: "GELUSlope", comment: "the derivative of GELU(z) at z = -t, with the pieces of GELU",
		f:      func(t num) num { return sub(normalTail(t), mul(t, density(t))) },
		weight: func(t num) num { return larger(normalTail(t), mul(t, density(t))) }, degree: 7, edges: likeGELU},
	{name: "GELUTanh", comment: "t/(1+exp(w)) for w = 2*sqrt(2/pi)*(t + 0.044715*t^3), with the pieces of GELU",
		f: func(t num) num { w, _ := tanhArgument(t); return mul(t, below(w)) }, zero: true, degree: 7, edges: likeGELU},
	{name: "GELUTanhSlope", comment: "the derivative of GELUTanh(z) at z = -t, with the pieces of GELU",
		f: geluTanhSlope, weight: geluTanhTerm, degree: 7, edges: likeGELU},
	{name: "Mish", comment: "tanh(log(1+exp(z))), where the piece is z rounded to an integer, from -4 on",
		f: func(z num) num { g, _ := mishGate(z); return g }, relative: true, degree: 7, edges: likeMish, first: 4},
	{name: "MishSlope", comment: "the derivative of z times Mish, with the pieces of Mish",
		f: func(z num) num { g, slope := mishGate(z); return add(g, mul(z, slope)) },
		weight: func(z num) num {
			g, slope := mishGate(z)
			return larger(g, abs(mul(z, slope)))
		}, degree: 7, edges: likeMish, first: 4},
}
