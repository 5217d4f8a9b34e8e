package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/fusedbn/batchnorm/internal/coef"
)

// The functions of the activations that kernels call. ../internal/scalar specifies them,
// with the same operations in the same order.

// function is the pair of functions of one activation, which replace z by act(z)
// and by act'(z).
type function struct {
	name              string // NAME in Go's actNAME
	value, derivative computation
}

// computation is the code of a function. It is quick, with float32 operations on the
// vectors of the call, or it has near and far, for arguments near 0 and far from it.
type computation struct {
	quick func(f *fn)
	near  *near
	// far replaces z. It is nil if there are no far arguments. In float32 it takes |z| in t, and
	// again after a call of lateT, reads z after a call of lateZ, and uses p, q[0] and r besides
	// these. Its results are not subnormal for |z| up to normal, which is 0 for a formula in float64.
	far    func(f *fn)
	normal float32
	sides  *sides // the formulas of far, if there is one for each sign: a pair of vectors takes only those that it needs
	// limit replaces z by far's result for |z| of end and more. It is used for a vector whose
	// far arguments are all of these, if end is above 0.
	limit func(f *fn)
	end   float32
}

// called has the functions in the order of actKind, after the inline activations.
var called = []function{
	{"LeakyReLU", computation{quick: leakyReLU}, computation{quick: leakyReLUSlope}},
	{"Clip", computation{quick: clip}, computation{quick: clipSlope}},
	{"HardSigmoid", computation{quick: hardSigmoid}, computation{quick: hardSigmoidSlope}},
	{"HardSwish", computation{quick: hardSwish}, computation{quick: hardSwishSlope}},
	{"Sigmoid", sigmoid, computation{near: likeSigmoid(&coef.Sigmoid, product), far: sigmoidSlopeFar, normal: normal}},
	{"Tanh", computation{near: octaves(&coef.Tanh, coef.TanhScale, coef.TanhEdge, coef.TanhEnd, withSign)},
		computation{near: likeSigmoid(&coef.TanhSlope, asItIs), far: tanhSlopeFar, normal: normal / 2}},
	{"SiLU", computation{near: likeSigmoid(&coef.SiLU, gated), far: siluFar, normal: normal},
		computation{near: likeSigmoid(&coef.SiLUSlope, mirrored), far: siluSlopeFar, normal: normal}},
	{"ELU", computation{near: octaves(&coef.Expm1, coef.Expm1Scale, coef.Expm1Edge, coef.Expm1End, elu)},
		computation{near: likeSigmoid(&coef.Exp, eluSlope), far: eluSlopeFar}},
	{"Softplus", computation{near: likeSigmoid(&coef.Softplus, softplus), far: softplusFar, normal: normal}, sigmoid},
	{"Mish", computation{near: likeMish(&coef.Mish, timesZ), far: mish.far, sides: &mish, normal: normal},
		computation{near: likeMish(&coef.MishSlope, asItIs), far: mishSlope.far, sides: &mishSlope, normal: normal}},
	{"GELU", computation{near: likeGELU(&coef.GELU, gated), far: geluFar, limit: openGate, end: geluEnd},
		computation{near: likeGELU(&coef.GELUSlope, mirrored), far: geluSlopeFar, limit: unitStep, end: geluEnd}},
	{"GELUTanh", computation{near: likeGELU(&coef.GELUTanh, gated), far: geluTanhFar, limit: openGate, end: geluTanhEnd},
		computation{near: likeGELU(&coef.GELUTanhSlope, mirrored), far: geluTanhSlopeFar, limit: signedStep, end: geluTanhEnd}},
}

var sigmoid = computation{near: likeSigmoid(&coef.Sigmoid, mirrored), far: sigmoidFar, normal: normal}

// functions returns the text of all functions, and their symbols by [functionID].
func functions(on target) (text string, symbols []string) {
	symbols = make([]string, functionID(len(inline)+len(called), 0))
	same := map[string]string{} // the symbol of a function, by its code
	for i, c := range called {
		for d, by := range []computation{c.value, c.derivative} {
			name := "act" + c.name + [...]string{"Value", "Slope"}[d]
			function := by.text(on, name)
			code := strings.ReplaceAll(function, name, "")
			if same[code] == "" {
				same[code] = local(name)
				text += function
			}
			symbols[functionID(len(inline)+i, d)] = same[code]
		}
	}
	return "\n" + text, symbols
}

// functionID is the function of the same name in ../kernels.go.
func functionID(kind, derivative int) int { return kind*2 + derivative }

// text returns the text of one of the two functions.
func (c computation) text(on target, name string) string {
	f := newFn(on, name)
	if c.quick != nil {
		f.held, f.t, f.mask = map[any]vec{}, 6, 7 // after the arguments
		for j := range vec(4) {
			f.z = firstArg + j
			c.quick(f)
		}
		f.tableFirst()
		f.back()
	} else {
		c.emit(f)
	}
	return fmt.Sprintf("%sTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n%s", f.tableText(), local(name), f.buf.String())
}

// fn is a function that is being printed. Its argument and result are in z.
type fn struct {
	*asm
	z, t vec // 8 float32; t is a temporary

	// Pairs of vectors for far arguments, as float64 or one by one.
	x, p, q, r, s pair

	// A quick function has another temporary, and holds constants and parameters for
	// all of its vectors.
	mask vec
	held map[any]vec

	// All arguments are up to normal, and z is in the register of r[1], where lateZ loads it.
	pairs bool
	lateZ func()
	lateT func() // sets t to |z|, at most tailEnd
}

const constVec vec = numVecs - 1 // holds a constant until the next one

func newFn(on target, name string) *fn {
	v := func(i vec) pair { return pair{i, i + 1} }
	f := &fn{asm: newAsm(on, name, ""), x: v(2), s: v(4), p: v(6), q: v(8), r: v(10), z: 12, t: 13, lateZ: func() {}}
	f.lateT = func() {
		f.abs(f.t, f.z)
		f.opC(opMinInt, f.t, f.t, tailEnd)
	}
	return f
}

func (f *fn) entry32(c float32) int {
	bits := uint64(math.Float32bits(c))
	return f.entry64(bits<<32 | bits)
}

// entryOf returns the offset of 8 values in the table.
func (f *fn) entryOf(list [8]float32) int {
	var r row
	for i, c := range list {
		r[i/2] |= uint64(math.Float32bits(c)) << (i % 2 * 32)
	}
	return f.entry(r)
}

// Operations on float32. A C at the end of the name stands for a constant operand.

func (f *fn) opC(o op, dst, x vec, c float32) {
	if f.held != nil {
		f.op(o, dst, x, f.constC(c))
		return
	}
	f.opConstant(o, dst, x, f.entry32(c))
}

// constC returns a register that holds a constant. In a function that is not quick, the
// next constant overwrites it.
func (f *fn) constC(c float32) vec {
	load := func(dst vec) { f.constant(dst, f.entry32(c)) }
	if f.held != nil {
		return f.hold(c, load)
	}
	load(constVec)
	return constVec
}

// hold returns the register of a constant or parameter, and loads it the first time.
func (f *fn) hold(what any, load func(dst vec)) vec {
	v, ok := f.held[what]
	if !ok {
		v = constVec - vec(len(f.held))
		if v == f.mask {
			panic(f.name + ": out of vectors")
		}
		load(v)
		f.held[what] = v
	}
	return v
}

// parameter returns the register that holds a parameter of a quick function.
func (f *fn) parameter(field string) vec {
	return f.hold(field, func(dst vec) { f.param(dst, field) })
}

// atLeast and atMost keep NaN: the comparison is false and gives its second
// operand.
func (f *fn) atLeast(dst, z vec, lo float32) { f.op(opMax, dst, f.constC(lo), z) }
func (f *fn) atMost(dst, z vec, hi float32)  { f.op(opMin, dst, f.constC(hi), z) }

func (f *fn) clip(dst, z vec, lo, hi float32) {
	f.atLeast(dst, z, lo)
	f.atMost(dst, dst, hi)
}

// negative is atMost 0, apart from the sign of zeros.
func (f *fn) negative(z vec) {
	f.zero(constVec)
	f.op(opMin, z, constVec, z)
}

// keepPositive sets dst to z where it is above 0, and to 0 elsewhere; dst is not z.
func (f *fn) keepPositive(dst, z vec) {
	f.positive(dst, z)
	f.op(opAnd, dst, dst, z)
}

func (f *fn) move(dst, src vec) { f.op(opOr, dst, src, src) }

// greater sets dst to all ones where x > y.
func (f *fn) greater(dst, x, y vec) { f.op(opGT, dst, x, y) }

func (f *fn) abs(dst, z vec) {
	f.opC(opAnd, dst, z, magnitudes)
}

// Operations on float64, each on both halves.

// result rounds x to float32 into z. It overwrites x.
func (f *fn) result(x pair) { f.narrow(f.z, x, x[1]) }

func (f *fn) op64(o op, dst, x, y pair) {
	for h := range dst {
		f.op(o, dst[h], x[h], y[h])
	}
}
func (f *fn) add64(dst, x, y pair) { f.op64(opAdd64, dst, x, y) }
func (f *fn) sub64(dst, x, y pair) { f.op64(opSub64, dst, x, y) }
func (f *fn) mul64(dst, x, y pair) { f.op64(opMul64, dst, x, y) }
func (f *fn) div64(dst, x, y pair) { f.op64(opDiv64, dst, x, y) }

func (f *fn) op64C(o op, dst, x pair, c float64) {
	for h := range dst {
		f.opConstant(o, dst[h], x[h], f.entry64(math.Float64bits(c)))
	}
}
func (f *fn) add64C(dst, x pair, c float64) { f.op64C(opAdd64, dst, x, c) }
func (f *fn) mul64C(dst, x pair, c float64) { f.op64C(opMul64, dst, x, c) }

// horner sets dst to a polynomial in x whose leading two steps are done.
func (f *fn) horner(dst, x pair, c ...float64) {
	for _, v := range c {
		f.mul64(dst, dst, x)
		f.add64C(dst, dst, v)
	}
}

// power takes y in p and leaves a in q, f in p and t in r. It overwrites s.
func (f *fn) power() {
	f.add64C(f.r, f.p, coef.Magic)
	f.op64C(opSub64, f.s, f.r, coef.Magic)
	f.sub64(f.p, f.p, f.s)
	f.mul64(f.s, f.p, f.p)
	f.mul64C(f.q, f.s, coef.ExpA1)
	f.add64C(f.q, f.q, coef.ExpA0)
	f.add64C(f.s, f.s, coef.ExpB0)
	f.mul64(f.p, f.s, f.p)
}

// exp2 takes y in p and leaves v in p and u in q. It overwrites r and s.
func (f *fn) exp2() {
	f.power()
	for _, v := range f.r {
		f.shift52(v, v)
	}
	f.add64(f.s, f.q, f.p)
	f.sub64(f.q, f.q, f.p)
	f.op64(opAddInt64, f.p, f.s, f.r)
}

// ---- the functions

// Clamps, as in ../internal/scalar.
const (
	tailEnd     = 110
	eluTail     = 200
	geluEnd     = 15
	geluTanhEnd = 12
)

// normal is the largest |z| for which no result is subnormal.
const normal = 87

func leakyReLU(f *fn) {
	f.mul(f.t, f.z, f.parameter("p"))
	f.positive(f.mask, f.z)
	f.blend(f.z, f.mask, f.z, f.t)
}

func leakyReLUSlope(f *fn) {
	f.greater(f.z, f.z, f.constC(0))
	f.blend(f.z, f.z, f.constC(1), f.parameter("p"))
}

func clip(f *fn) {
	f.above(f.z, f.parameter("p"), f.z, f.t)
	f.below(f.z, f.parameter("q"), f.z, f.t)
}

func clipSlope(f *fn) {
	f.greater(f.t, f.z, f.parameter("p"))
	f.greater(f.z, f.parameter("q"), f.z)
	f.op(opAnd, f.t, f.t, f.constC(1))
	f.op(opAnd, f.z, f.t, f.z)
}

// hardSigmoid clips before it adds, so that the sum is never below 0.
func hardSigmoid(f *fn) {
	f.atLeast(f.z, f.z, -3)
	f.opC(opAdd, f.z, f.z, 3)
	f.atMost(f.z, f.z, 6)
	f.opC(opMul, f.z, f.z, 1.0/6)
}

func hardSigmoidSlope(f *fn) {
	f.greater(f.t, f.z, f.constC(-3))
	f.greater(f.z, f.constC(3), f.z)
	f.opC(opAnd, f.t, f.t, 1.0/6)
	f.op(opAnd, f.z, f.z, f.t)
}

func hardSwish(f *fn) {
	f.atLeast(f.z, f.z, -3)
	f.opC(opAdd, f.t, f.z, 3)
	f.atMost(f.t, f.t, 6)
	f.opC(opMul, f.t, f.t, 1.0/6)
	f.mul(f.z, f.t, f.z)
}

func hardSwishSlope(f *fn) {
	f.opC(opMul, f.t, f.z, 1.0/3)
	f.opC(opAdd, f.t, f.t, 0.5)
	f.op(opLE, f.mask, f.z, f.constC(3))
	f.blend(f.mask, f.mask, f.t, f.constC(1))
	f.op(opLE, f.z, f.constC(-3), f.z)
	f.op(opAnd, f.z, f.z, f.mask)
}

// ---- far

// decay takes t in f.t, and leaves t in f.t, at most tailEnd, big in p[0] and small in p[1].
// It overwrites q[0] and r.
func decay(f *fn, precise bool) {
	big, v, s, n, i := f.p[0], f.p[1], f.q[0], f.r[0], f.r[1]
	if !f.pairs {
		f.opC(opMinInt, f.t, f.t, tailEnd)
	}
	f.opC(opMul, i, f.t, coef.DecayScale)
	f.opC(opAdd, i, i, coef.Nearest)
	f.opC(opSub, n, i, coef.Nearest)
	f.shift20(big, i)
	f.pieceIndex([]vec{i})
	f.opC(opMul, s, n, coef.DecayHi)
	f.add(s, f.t, s)
	f.opC(opMul, n, n, coef.DecayLo)
	f.fromRow(v, i, coef.Decay.Log)
	f.add(n, n, v)
	f.add(s, s, n)
	f.fromRow(n, i, coef.Decay.Big)
	f.op(opAddInt, big, n, big)
	if precise {
		f.opC(opMul, v, s, coef.DecayD4)
		f.opC(opAdd, v, v, coef.DecayD3)
		f.mul(v, v, s)
		f.opC(opAdd, v, v, 0.5)
	} else {
		f.opC(opMul, v, s, coef.DecayC3)
		f.opC(opAdd, v, v, coef.DecayC2)
	}
	f.mul(v, v, s)
	f.opC(opSub, v, v, 1)
	f.mul(s, big, s)
	f.mul(v, s, v)
}

// fromRow selects values of a list by indices.
func (f *fn) fromRow(dst, index vec, list [8]float32) {
	off := f.entryOf(list)
	f.openRow(off)
	f.lookup(dst, index, off)
}

// restored replaces v, or makes it negative as well. It overwrites t. Where no result is
// subnormal, a product does the same.
func restored(f *fn, v, t vec, shift uint32, negative bool) {
	if f.pairs {
		factor := float32(math.Ldexp(1, -int(shift)))
		if negative {
			factor = -factor
		}
		f.opC(opMul, v, v, factor)
		return
	}
	least := (shift + 1) << 23
	f.opC(opAdd, t, v, math.Float32frombits(least))
	f.opC(opAddInt, t, t, math.Float32frombits(-least))
	f.opC(opAddInt, v, v, math.Float32frombits(-(shift << 23)))
	f.op(opMaxInt, v, v, t)
	if negative {
		f.opC(opXor, v, v, signs)
	}
}

// correction takes big and small and adds e*v to small. It leaves u and u+ratio, whose
// product is v, in r. It overwrites q[0].
func correction(f *fn, scale, ratio float32) {
	e, u, v := f.q[0], f.r[0], f.r[1]
	f.add(e, f.p[0], f.p[1])
	f.opC(opMaxInt, u, e, coef.DecayLeast)
	f.opC(opMul, u, u, scale)
	f.opC(opAdd, v, u, ratio)
	f.mul(e, e, u)
	f.mul(e, e, v)
	f.add(f.p[1], f.p[1], e)
}

// logistic takes t in f.t and leaves big in p[0] and small in p[1], and in r two numbers
// whose product is d.
func logistic(f *fn, precise bool) {
	decay(f, precise)
	correction(f, coef.LogisticScale, coef.LogisticRatio)
}

// timesBig takes big in p[0], and leaves big*(x+y) + rest in q[0]. y may be unused. It
// overwrites x, y and rest.
func timesBig(f *fn, x, y, rest vec) {
	first := f.q[0]
	f.opC(opAnd, first, x, leading)
	f.sub(x, x, first)
	if y != unused {
		f.add(x, x, y)
	}
	f.mul(x, f.p[0], x)
	f.add(rest, x, rest)
	f.mul(first, f.p[0], first)
	f.add(first, first, rest)
}

func sigmoidFar(f *fn) {
	logistic(f, true)
	f.add(f.t, f.p[0], f.p[1])
	restored(f, f.t, f.q[0], coef.DecayShift, false)
	// Where z is negative, it is the least of the three as an integer.
	f.lateZ()
	f.sub(f.q[0], f.constC(1), f.t)
	f.op(opMinInt, f.z, f.z, f.q[0])
	f.op(opMaxInt, f.z, f.z, f.t)
}

// bell takes t in f.t and leaves sigmoid'(t)*2^64 in z.
func bell(f *fn) {
	logistic(f, false)
	f.mul(f.r[0], f.r[0], f.r[1])
	f.add(f.q[0], f.p[0], f.p[1])
	f.mul(f.q[0], f.q[0], f.r[0])
	f.add(f.p[1], f.p[1], f.q[0])
	f.add(f.z, f.p[0], f.p[1])
}

func sigmoidSlopeFar(f *fn) {
	bell(f)
	restored(f, f.z, f.t, coef.DecayShift, false)
}

func tanhSlopeFar(f *fn) {
	f.add(f.t, f.t, f.t)
	bell(f)
	restored(f, f.z, f.t, coef.DecayShift-2, false)
}

func siluFar(f *fn) {
	logistic(f, false)
	f.mul(f.r[0], f.p[1], f.t)
	timesBig(f, f.t, unused, f.r[0])
	restored(f, f.q[0], f.r[1], coef.DecayShift, false)
	f.lateZ()
	f.opC(opMinUnsigned, f.z, f.z, signs) // -0 in place of negative numbers
	f.sub(f.z, f.z, f.q[0])
}

func siluSlopeFar(f *fn) {
	logistic(f, false)
	k, h, rest, v := f.t, f.r[0], f.r[1], f.q[0]
	f.mul(h, f.r[0], f.r[1])
	f.mul(h, f.t, h)
	f.opC(opSub, k, f.t, 1)
	f.add(rest, k, h)
	f.mul(rest, f.p[1], rest)
	timesBig(f, k, h, rest)
	restored(f, v, f.t, coef.DecayShift, true)
	// Where z is negative, v is less than z, as integers with and without a sign.
	f.lateZ()
	f.sub(f.t, f.constC(1), v)
	f.op(opMinUnsigned, f.z, f.z, v)
	f.op(opMinInt, f.z, f.z, f.t)
}

// gate takes x in x and v, u in p, q, and ends with (x*u + s)*v / s^2 for
// s = v+u.
func gate(f *fn) {
	f.add64(f.s, f.p, f.q)
	f.mul64(f.x, f.x, f.q)
	f.add64(f.x, f.x, f.s)
	f.mul64(f.x, f.x, f.p)
	f.mul64(f.s, f.s, f.s)
	f.div64(f.x, f.x, f.s)
	f.result(f.x)
}

func eluSlopeFar(f *fn) {
	f.positive(f.t, f.z)
	f.atLeast(f.z, f.z, -eluTail)
	f.negative(f.z)
	f.widen(f.p, f.z)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	for h := range f.s {
		f.param64(f.s[h])
	}
	f.mul64(f.p, f.p, f.s)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
	f.blend(f.z, f.t, f.constC(1), f.z)
}

func softplusFar(f *fn) {
	decay(f, false)
	correction(f, coef.SoftplusScale, coef.SoftplusRatio)
	f.add(f.p[0], f.p[0], f.p[1])
	restored(f, f.p[0], f.p[1], coef.DecayShift, false)
	f.lateZ()
	softplus(f, f.t, f.p[0], f.z)
	f.move(f.z, f.t)
}

// sides are the formulas of a function that has one for negative arguments and one for positive ones, far from 0.
type sides struct {
	// common comes first. below leaves the results of negative arguments in q[0], and above
	// replaces those of others there. Of what common leaves, above uses r[0] only, which below keeps.
	common, below, above func(f *fn)
}

var (
	mish      = sides{common: smallExp, below: mishBelow, above: mishAbove}
	mishSlope = sides{common: smallExp, below: mishSlopeBelow, above: mishSlopeAbove}
)

// far replaces z.
func (s sides) far(f *fn) {
	s.common(f)
	s.below(f)
	s.above(f)
	f.move(f.z, f.q[0])
}

// smallExp takes t in f.t. It leaves big in p[0], small in p[1], exp(-t)*2^64 in q[0] and exp(-t) in r[0].
func smallExp(f *fn) {
	decay(f, false)
	e, u := f.q[0], f.r[0]
	f.add(e, f.p[0], f.p[1])
	f.opC(opMaxInt, u, e, coef.DecayLeast)
	f.opC(opMul, u, u, coef.DecayUnit)
}

func mishBelow(f *fn) {
	small, e, u, w := f.p[1], f.q[0], f.r[0], f.r[1]
	f.mul(w, u, u)
	f.mul(e, e, u)
	f.opC(opMul, w, w, 0.25)
	f.opC(opSub, w, w, 0.5)
	f.mul(e, e, w)
	f.add(small, small, e)
	rest, v := f.r[1], f.q[0]
	f.mul(rest, small, f.t)
	timesBig(f, f.t, unused, rest)
	restored(f, v, f.t, coef.DecayShift, true)
}

func mishAbove(f *fn) {
	w, v := f.p[0], f.r[0]
	f.mul(w, v, v)
	f.sub(v, v, w)
	f.opC(opMul, v, v, 4)
	f.opC(opSub, v, v, 2)
	f.mul(v, w, v)
	f.lateT()
	f.mul(v, v, f.t)
	f.lateZ()
	f.add(v, f.z, v)
	f.bySign(f.q[0], f.z, f.q[0], v)
}

func mishSlopeBelow(f *fn) {
	k, u, v, w, rest := f.t, f.r[0], f.q[0], f.r[1], f.p[1]
	f.mul(w, u, u)
	f.opC(opMul, w, w, 1.0625)
	f.opC(opSub, w, w, 1)
	f.opC(opSub, v, f.t, 0.5)
	f.mul(v, v, u)
	h := w
	f.mul(h, v, w)
	f.opC(opSub, k, f.t, 1)
	f.add(v, k, h)
	f.mul(rest, rest, v)
	timesBig(f, k, h, rest)
	restored(f, v, f.t, coef.DecayShift, true)
}

func mishSlopeAbove(f *fn) {
	u, w, q := f.r[0], f.p[0], f.p[1]
	f.mul(w, u, u)
	f.sub(q, u, w)
	f.opC(opMul, q, q, coef.MishQuotient)
	f.sub(q, f.constC(1), q)
	f.mul(w, w, q)
	f.lateT()
	f.opC(opMul, f.t, f.t, 4)
	f.mul(f.t, f.t, q)
	f.opC(opAdd, u, u, 1)
	f.mul(f.t, f.t, u)
	f.opC(opSub, f.t, f.t, 2)
	f.mul(w, w, f.t)
	f.opC(opAdd, w, w, 1)
	f.lateZ()
	f.bySign(f.q[0], f.z, f.q[0], w)
}

// tail takes |z| in x and leaves v in p, u in q, the polynomial of the numerator in r and
// the polynomial of the denominator in s.
func tail(f *fn) {
	f.mul64(f.p, f.x, f.x)
	f.mul64C(f.p, f.p, coef.MinusHalfLog2E)
	f.exp2()
	f.mul64C(f.r, f.x, coef.TailP4)
	f.add64C(f.r, f.r, coef.TailP3)
	f.horner(f.r, f.x, coef.TailP2, coef.TailP1, coef.TailP0)
	f.add64C(f.s, f.x, coef.TailQ4)
	f.horner(f.s, f.x, coef.TailQ3, coef.TailQ2, coef.TailQ1, coef.TailQ0)
}

func geluFar(f *fn) {
	f.keepPositive(f.t, f.z)
	f.abs(f.z, f.z)
	f.atMost(f.z, f.z, geluEnd)
	f.widen(f.x, f.z)
	tail(f)
	f.mul64(f.r, f.r, f.p)
	f.mul64(f.r, f.r, f.x)
	f.mul64(f.q, f.q, f.s)
	f.div64(f.r, f.r, f.q)
	f.widen(f.p, f.t)
	f.sub64(f.p, f.p, f.r)
	f.result(f.p)
}

func geluSlopeFar(f *fn) {
	f.positive(f.t, f.z)
	f.abs(f.z, f.z)
	f.atMost(f.z, f.z, geluEnd)
	f.widen(f.x, f.z)
	tail(f)
	f.mul64C(f.x, f.x, coef.InvSqrt2Pi)
	f.mul64(f.x, f.x, f.s)
	f.sub64(f.r, f.r, f.x)
	f.mul64(f.r, f.r, f.p)
	f.mul64(f.q, f.q, f.s)
	f.div64(f.r, f.r, f.q)
	f.result(f.r)
	// 1-t where z is positive, 0+t elsewhere.
	f.opC(opAnd, f.p[0], f.t, signs)
	f.op(opXor, f.z, f.z, f.p[0])
	f.opC(opAnd, f.t, f.t, 1)
	f.add(f.z, f.t, f.z)
}

// openGate is z where it is positive and -0 elsewhere, unitStep 1 and 0, and signedStep 1 and -0.
func openGate(f *fn) { f.opC(opMinUnsigned, f.z, f.z, signs) }

func unitStep(f *fn) {
	f.positive(f.t, f.z)
	f.opC(opAnd, f.z, f.t, 1)
}

func signedStep(f *fn) {
	f.opC(opMinInt, f.z, f.z, 1)
	openGate(f)
}

// tanhArgument takes x in x and leaves y in p and x*x in q.
func tanhArgument(f *fn) {
	f.mul64(f.q, f.x, f.x)
	f.mul64C(f.p, f.q, coef.TanhY3)
	f.add64C(f.p, f.p, coef.TanhY1)
	f.mul64(f.p, f.p, f.x)
}

func geluTanhFar(f *fn) {
	f.atLeast(f.z, f.z, -geluTanhEnd)
	f.atMost(f.t, f.z, geluTanhEnd)
	f.widen(f.x, f.t)
	tanhArgument(f)
	f.exp2()
	f.widen(f.x, f.z)
	f.add64(f.q, f.p, f.q)
	f.mul64(f.p, f.p, f.x)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func geluTanhSlopeFar(f *fn) {
	f.clip(f.z, f.z, -geluTanhEnd, geluTanhEnd)
	f.widen(f.x, f.z)
	tanhArgument(f)
	f.exp2()
	// 2w'*x in x; x*x is computed again.
	f.mul64(f.s, f.x, f.x)
	f.mul64C(f.s, f.s, coef.TanhD2)
	f.add64C(f.s, f.s, coef.TanhD0)
	f.mul64(f.x, f.s, f.x)
	gate(f)
}
