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
	two   bool        // far takes two vectors, too
}

// called has the functions in the order of actKind, after the inline activations.
var called = []function{
	{"LeakyReLU", computation{quick: leakyReLU}, computation{quick: leakyReLUSlope}},
	{"Clip", computation{quick: clip}, computation{quick: clipSlope}},
	{"HardSigmoid", computation{quick: hardSigmoid}, computation{quick: hardSigmoidSlope}},
	{"HardSwish", computation{quick: hardSwish}, computation{quick: hardSwishSlope}},
	{"Sigmoid", sigmoid, computation{near: likeSigmoid(&coef.Sigmoid, product), far: sigmoidSlopeFar, two: true}},
	{"Tanh", computation{near: octaves(&coef.Tanh, coef.TanhScale, coef.TanhEdge, coef.TanhEnd, withSign)},
		computation{near: likeSigmoid(&coef.TanhSlope, asItIs), far: tanhSlopeFar, two: true}},
	{"SiLU", computation{near: likeSigmoid(&coef.SiLU, gated), far: siluFar, two: true},
		computation{near: likeSigmoid(&coef.SiLUSlope, mirrored), far: siluSlopeFar, two: true}},
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

var sigmoid = computation{near: likeSigmoid(&coef.Sigmoid, mirrored), far: sigmoidFar, two: true}

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
		c.near.emit(f, c.far, c.two)
	}
	return fmt.Sprintf("%s\nTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n%s\n", f.tableText(), local(name), f.buf.String())
}

// fn is a function that is being printed. Its argument and result are in z.
type fn struct {
	*asm
	z, t vec // 8 float32; t is a temporary

	// Far arguments: the vectors, and vectors of float64 for the halves of each. If there
	// is one vector, or the lower half of one, it is z. If there are two, the vectors of s
	// are the same one, and x is in memory.
	zs            []vec
	x, p, q, r, s []vec

	// A quick function has another temporary, and holds constants and parameters for
	// all of its vectors.
	mask vec
	held map[any]vec
}

const constVec vec = numVecs - 1 // holds a constant until the next one

func newFn(on target, name string) *fn {
	f := &fn{asm: newAsm(on, name, ""), z: 12, t: 13}
	f.one()
	return f
}

// one, half and two set the vectors for one vector of far arguments, for the lower half of
// one, whose results go to both halves, or for two.
func (f *fn) one() {
	v := func(i vec) []vec { return []vec{i, i + 1} }
	f.zs, f.x, f.p, f.q, f.r, f.s = []vec{f.z}, v(2), v(4), v(6), v(8), v(10)
}

func (f *fn) half() {
	f.one()
	f.x, f.p, f.q, f.r, f.s = f.x[:1], f.p[:1], f.q[:1], f.r[:1], f.s[:1]
}

func (f *fn) two() {
	f.zs, f.x, f.p, f.q, f.r, f.s = []vec{2, 3}, nil, []vec{4, 5, 6, 7}, []vec{8, 9, 10, 11}, []vec{2, 12, 3, 13}, []vec{14, 14, 14, 14}
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

// result rounds x to float32 into the vectors of arguments. It overwrites x.
func (f *fn) result(x []vec) {
	if len(x) == 1 {
		f.narrowHalf(f.z, x[0])
		return
	}
	for j, z := range f.zs {
		f.narrow(z, pair(x[2*j:2*j+2]))
	}
}

// widened sets dst to the arguments as float64.
func (f *fn) widened(dst []vec) {
	for j, z := range f.zs {
		f.widenArgument(dst[2*j:min(2*j+2, len(dst))], z)
	}
}

// widenArgument sets dst to the vector src as float64, or to its lower half.
func (f *fn) widenArgument(dst []vec, src vec) {
	if len(dst) == 1 {
		f.widenHalf(dst[0], src)
		return
	}
	f.widen(pair(dst), src)
}

// keep keeps the arguments as float64, for kept: in x, or in memory.
func (f *fn) keep() {
	if f.x != nil {
		f.widened(f.x)
		return
	}
	for j, z := range f.zs {
		f.saveHere(z, j)
	}
}

// kept returns the vector that has half h of the arguments. It may load it into t.
func (f *fn) kept(h int, t vec) vec {
	if f.x != nil {
		return f.x[h]
	}
	f.widenSaved(t, h)
	return t
}

func (f *fn) op64(o op, dst, x, y []vec) {
	for h := range dst {
		f.op(o, dst[h], x[h], y[h])
	}
}
func (f *fn) add64(dst, x, y []vec) { f.op64(opAdd64, dst, x, y) }
func (f *fn) sub64(dst, x, y []vec) { f.op64(opSub64, dst, x, y) }
func (f *fn) mul64(dst, x, y []vec) { f.op64(opMul64, dst, x, y) }
func (f *fn) div64(dst, x, y []vec) { f.op64(opDiv64, dst, x, y) }

func (f *fn) op64C(o op, dst, x []vec, c float64) {
	for h := range dst {
		f.opConstant(o, dst[h], x[h], f.entry64(math.Float64bits(c)))
	}
}
func (f *fn) add64C(dst, x []vec, c float64) { f.op64C(opAdd64, dst, x, c) }
func (f *fn) mul64C(dst, x []vec, c float64) { f.op64C(opMul64, dst, x, c) }

// horner sets dst to a polynomial in x whose leading two steps are done.
func (f *fn) horner(dst, x []vec, c ...float64) {
	for _, v := range c {
		f.mul64(dst, dst, x)
		f.add64C(dst, dst, v)
	}
}

// eachHalf calls do for each half, with vectors of one half. The vectors of s have no
// values from one call of it to the next.
func (f *fn) eachHalf(do func(p, q, r, s []vec)) {
	for h := range f.p {
		do(f.p[h:h+1], f.q[h:h+1], f.r[h:h+1], f.s[h:h+1])
	}
}

// power takes y in p and leaves a in q, f in p and t in r. It overwrites s.
func (f *fn) power() {
	f.add64C(f.r, f.p, coef.Magic)
	f.eachHalf(func(p, q, r, s []vec) {
		f.op64C(opSub64, s, r, coef.Magic)
		f.sub64(p, p, s)
	})
	f.eachHalf(func(p, q, r, s []vec) {
		f.mul64(s, p, p)
		f.mul64C(q, s, coef.ExpA1)
		f.add64C(q, q, coef.ExpA0)
		f.add64C(s, s, coef.ExpB0)
		f.mul64(p, s, p)
	})
}

// exp2 takes y in p and leaves v in p and u in q. It overwrites r and s.
func (f *fn) exp2() {
	f.power()
	for _, v := range f.r {
		f.shift52(v, v)
	}
	f.eachHalf(func(p, q, r, s []vec) {
		f.add64(s, q, p)
		f.sub64(q, q, p)
		f.op64(opAddInt64, p, s, r)
	})
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
	f.clipArguments(tailEnd)
	f.widened(f.p)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	f.add64(f.q, f.p, f.q)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

// clipArguments clips the arguments to -end and end.
func (f *fn) clipArguments(end float32) {
	for _, z := range f.zs {
		f.clip(z, z, -end, end)
	}
}

// bell takes y in p and leaves v*u in p and (v+u)^2 in q.
func bell(f *fn) {
	f.exp2()
	f.eachHalf(func(p, q, _, s []vec) {
		f.add64(s, p, q)
		f.mul64(p, p, q)
		f.mul64(q, s, s)
	})
}

func sigmoidSlopeFar(f *fn) {
	f.clipArguments(tailEnd)
	f.widened(f.p)
	f.mul64C(f.p, f.p, coef.Log2E)
	bell(f)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func tanhSlopeFar(f *fn) {
	f.clipArguments(tanhTail)
	f.widened(f.p)
	f.mul64C(f.p, f.p, coef.TwoLog2E)
	bell(f)
	f.mul64C(f.p, f.p, 4)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func siluFar(f *fn) {
	for _, z := range f.zs {
		f.atLeast(z, z, -tailEnd)
	}
	f.keep()
	for _, z := range f.zs {
		f.atMost(z, z, tailEnd)
	}
	f.widened(f.p)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	f.add64(f.q, f.p, f.q)
	for h, p := range f.p {
		f.op(opMul64, p, p, f.kept(h, f.s[h]))
	}
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func siluSlopeFar(f *fn) {
	f.clipArguments(tailEnd)
	f.keep()
	f.widened(f.p)
	f.mul64C(f.p, f.p, coef.Log2E)
	f.exp2()
	gate(f)
}

// gate takes x as kept, and v, u in p, q, and ends with (x*u + s)*v / s^2 for s = v+u.
func gate(f *fn) {
	for h, r := range f.r {
		f.op(opMul64, r, f.kept(h, r), f.q[h])
	}
	f.add64(f.q, f.p, f.q)
	f.add64(f.r, f.r, f.q)
	f.mul64(f.r, f.r, f.p)
	f.mul64(f.q, f.q, f.q)
	f.div64(f.r, f.r, f.q)
	f.result(f.r)
}

func eluSlopeFar(f *fn) {
	f.positive(f.t, f.z)
	f.atLeast(f.z, f.z, -eluTail)
	f.negative(f.z)
	f.widenArgument(f.p, f.z)
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
	f.widenArgument(f.p, f.z)
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
	f.widenArgument(f.q, f.t)
	f.add64(f.p, f.p, f.q)
	f.result(f.p)
}

// mishParts takes an argument, in x or p, and leaves v in p, u in q, u*u in r and
// n in s.
func mishParts(f *fn, argument []vec) {
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
	f.widenArgument(f.x, f.z)
	f.widenArgument(f.p, f.t)
	mishParts(f, f.p)
	f.add64(f.r, f.r, f.r)
	f.add64(f.r, f.s, f.r)
	f.mul64(f.s, f.s, f.x)
	f.div64(f.s, f.s, f.r)
	f.result(f.s)
}

func mishSlopeFar(f *fn) {
	f.clip(f.z, f.z, -tailEnd, mishEnd)
	f.widenArgument(f.x, f.z)
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
	f.widenArgument(f.x, f.z)
	tail(f)
	f.mul64(f.r, f.r, f.p)
	f.mul64(f.r, f.r, f.x)
	f.mul64(f.q, f.q, f.s)
	f.div64(f.r, f.r, f.q)
	f.widenArgument(f.p, f.t)
	f.sub64(f.p, f.p, f.r)
	f.result(f.p)
}

func geluSlopeFar(f *fn) {
	f.positive(f.t, f.z)
	f.abs(f.z, f.z)
	f.atMost(f.z, f.z, geluEnd)
	f.widenArgument(f.x, f.z)
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
	f.widenArgument(f.x, f.t)
	tanhArgument(f)
	f.exp2()
	f.widenArgument(f.x, f.z)
	f.add64(f.q, f.p, f.q)
	f.mul64(f.p, f.p, f.x)
	f.div64(f.p, f.p, f.q)
	f.result(f.p)
}

func geluTanhSlopeFar(f *fn) {
	f.clip(f.z, f.z, -geluTanhEnd, geluTanhEnd)
	f.widenArgument(f.x, f.z)
	tanhArgument(f)
	f.exp2()
	// 2w'*x in x; x*x is computed again.
	f.mul64(f.s, f.x, f.x)
	f.mul64C(f.s, f.s, coef.TanhD2)
	f.add64C(f.s, f.s, coef.TanhD0)
	f.mul64(f.x, f.s, f.x)
	gate(f)
}
