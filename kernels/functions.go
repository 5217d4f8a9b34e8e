package main

import (
	"fmt"
	"math"

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
	far   func(f *fn) // nil if there are no far arguments
}

// called has the functions in the order of actKind, after the inline activations.
var called = []function{
	{"LeakyReLU", computation{quick: leakyReLU}, computation{quick: leakyReLUSlope}},
	{"Clip", computation{quick: clip}, computation{quick: clipSlope}},
	{"HardSigmoid", computation{quick: hardSigmoid}, computation{quick: hardSigmoidSlope}},
	{"HardSwish", computation{quick: hardSwish}, computation{quick: hardSwishSlope}},
	{"Sigmoid", sigmoid, computation{near: likeSigmoid(&coef.Sigmoid, product), far: sigmoidSlopeFar}},
	{"Tanh", computation{near: octaves(&coef.Tanh, coef.TanhScale, coef.TanhEdge, coef.TanhEnd, withSign)},
		computation{near: likeSigmoid(&coef.TanhSlope, asItIs), far: tanhSlopeFar}},
	{"SiLU", computation{near: likeSigmoid(&coef.SiLU, gated), far: siluFar},
		computation{near: likeSigmoid(&coef.SiLUSlope, mirrored), far: siluSlopeFar}},
	{"ELU", computation{near: octaves(&coef.Expm1, coef.Expm1Scale, coef.Expm1Edge, coef.Expm1End, elu)},
		computation{near: likeSigmoid(&coef.Exp, eluSlope), far: eluSlopeFar}},
	{"Softplus", computation{near: likeSigmoid(&coef.Softplus, softplus), far: softplusFar}, sigmoid},
	{"Mish", computation{near: likeMish(&coef.Mish, timesZ), far: mishFar},
		computation{near: likeMish(&coef.MishSlope, asItIs), far: mishSlopeFar}},
	{"GELU", computation{near: likeGELU(&coef.GELU, gated), far: geluFar},
		computation{near: likeGELU(&coef.GELUSlope, mirrored), far: geluSlopeFar}},
	{"GELUTanh", computation{near: likeGELU(&coef.GELUTanh, gated), far: geluTanhFar},
		computation{near: likeGELU(&coef.GELUTanhSlope, mirrored), far: geluTanhSlopeFar}},
}

var sigmoid = computation{near: likeSigmoid(&coef.Sigmoid, mirrored), far: sigmoidFar}

// functions returns the text of all functions, and their symbols by [functionID].
func functions(on target) (text string, symbols []string) {
	symbols = make([]string, functionID(len(inline)+len(called), 0))
	for i, c := range called {
		for d, by := range []computation{c.value, c.derivative} {
			name := "act" + c.name + [...]string{"Value", "Slope"}[d]
			text += by.text(on, name)
			symbols[functionID(len(inline)+i, d)] = local(name)
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
		c.near.emit(f, c.far)
	}
	return fmt.Sprintf("%s\nTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n%s\n", f.tableText(), local(name), f.buf.String())
}

// fn is a function that is being printed. Its argument and result are in z.
type fn struct {
	*asm
	z, t vec // 8 float32; t is a temporary

	// Pairs of vectors for far arguments.
	x, p, q, r, s pair

	// A quick function has another temporary, and holds constants and parameters for
	// all of its vectors.
	mask vec
	held map[any]vec
}

const constVec vec = numVecs - 1 // holds a constant until the next one

func newFn(on target, name string) *fn {
	v := func(i vec) pair { return pair{i, i + 1} }
	return &fn{asm: newAsm(on, name, ""), x: v(2), p: v(4), q: v(6), r: v(8), s: v(10), z: 12, t: 13}
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
	tanhTail    = 55
	mishEnd     = 40
	geluEnd     = 15
	geluTanhEnd = 12
)

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

func sigmoidFar(f *fn) {
	f.clip(f.z, f.z, -tailEnd, tailEnd)
	f.widen(f.p, f.z)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	f.add64(f.q, f.p, f.q)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

// bell takes y in p and leaves v*u in p and (v+u)^2 in q.
func bell(f *fn) {
	f.exp2()
	f.add64(f.s, f.p, f.q)
	f.mul64(f.p, f.p, f.q)
	f.mul64(f.q, f.s, f.s)
}

func sigmoidSlopeFar(f *fn) {
	f.clip(f.z, f.z, -tailEnd, tailEnd)
	f.widen(f.p, f.z)
	f.mul64C(f.p, f.p, coef.Log2E)
	bell(f)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func tanhSlopeFar(f *fn) {
	f.clip(f.z, f.z, -tanhTail, tanhTail)
	f.widen(f.p, f.z)
	f.mul64C(f.p, f.p, coef.TwoLog2E)
	bell(f)
	f.mul64C(f.p, f.p, 4)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func siluFar(f *fn) {
	f.atLeast(f.z, f.z, -tailEnd)
	f.atMost(f.t, f.z, tailEnd)
	f.widen(f.x, f.z)
	f.widen(f.p, f.t)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	f.add64(f.q, f.p, f.q)
	f.mul64(f.p, f.p, f.x)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func siluSlopeFar(f *fn) {
	f.clip(f.z, f.z, -tailEnd, tailEnd)
	f.widen(f.x, f.z)
	f.mul64C(f.p, f.x, coef.Log2E)
	f.exp2()
	gate(f)
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
	f.keepPositive(f.t, f.z)
	f.abs(f.z, f.z)
	f.atMost(f.z, f.z, tailEnd)
	f.widen(f.p, f.z)
	f.mul64C(f.p, f.p, -coef.Log2E)
	f.exp2()
	f.add64(f.q, f.q, f.q)
	f.add64(f.q, f.q, f.p)
	f.div64(f.x, f.p, f.q) // w
	f.mul64(f.q, f.x, f.x)
	f.mul64C(f.p, f.q, coef.Log1p4)
	f.add64C(f.p, f.p, coef.Log1p3)
	f.horner(f.p, f.q, coef.Log1p2, coef.Log1p1, coef.Log1p0)
	f.mul64(f.p, f.p, f.x)
	f.widen(f.q, f.t)
	f.add64(f.p, f.p, f.q)
	f.result(f.p)
}

// mishParts takes an argument, in x or p, and leaves v in p, u in q, u*u in r and
// n in s.
func mishParts(f *fn, argument pair) {
	f.mul64C(f.p, argument, coef.Log2E)
	f.exp2()
	f.add64(f.s, f.q, f.q)
	f.add64(f.s, f.s, f.p)
	f.mul64(f.s, f.s, f.p)
	f.mul64(f.r, f.q, f.q)
}

func mishFar(f *fn) {
	f.atLeast(f.z, f.z, -tailEnd)
	f.atMost(f.t, f.z, mishEnd)
	f.widen(f.x, f.z)
	f.widen(f.p, f.t)
	mishParts(f, f.p)
	f.add64(f.r, f.r, f.r)
	f.add64(f.r, f.s, f.r)
	f.mul64(f.s, f.s, f.x)
	f.div64(f.s, f.s, f.r)
	f.result(f.s)
}

func mishSlopeFar(f *fn) {
	f.clip(f.z, f.z, -tailEnd, mishEnd)
	f.widen(f.x, f.z)
	mishParts(f, f.x)
	f.add64(f.q, f.p, f.q)
	f.mul64(f.q, f.q, f.p)
	f.mul64(f.q, f.q, f.r)
	f.mul64C(f.x, f.x, 4)
	f.mul64(f.q, f.q, f.x)
	f.add64(f.r, f.r, f.r)
	f.add64(f.r, f.s, f.r) // n+2
	f.mul64(f.s, f.s, f.r)
	f.add64(f.q, f.q, f.s)
	f.mul64(f.r, f.r, f.r)
	f.div64(f.q, f.q, f.r)
	f.result(f.q)
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
