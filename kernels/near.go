package main

import (
	"math"

	"github.com/fusedbn/batchnorm/internal/coef"
)

// near describes a function that is computed by polynomials in pieces (package coef).
type near struct {
	pieces *coef.Pieces
	// z is far where |z-shift| > far. A function of octaves has no far arguments.
	shift, far float32
	// argument replaces z by the polynomials' argument t in x. piece sets u to integers
	// whose low bits are the number of the piece.
	argument func(f *fn, x []vec)
	piece    func(f *fn, u, x []vec)
	// If edge is above 0, the base of the first piece is t itself; t is below edge there.
	edge float32
	// result computes dst from v, the polynomial's value, and z. It may change them.
	result func(f *fn, dst, v, z vec)
}

// likeSigmoid, likeGELU and likeMish are for tables with the pieces of coef.Sigmoid,
// coef.GELU and coef.Mish.

func likeSigmoid(p *coef.Pieces, result func(f *fn, dst, v, z vec)) *near {
	return &near{pieces: p, far: coef.SigmoidEnd, argument: absolute, result: result,
		piece: func(f *fn, u, x []vec) {
			f.all(opMul, u, x, coef.SigmoidScale)
			f.all(opAdd, u, u, coef.Nearest)
		}}
}

func likeGELU(p *coef.Pieces, result func(f *fn, dst, v, z vec)) *near {
	return &near{pieces: p, far: coef.GELUEnd, argument: absolute, result: result,
		piece: func(f *fn, u, x []vec) {
			f.all(opAdd, u, x, coef.GELUShift)
			for j := range u {
				f.mul(u[j], u[j], x[j])
			}
			f.all(opAdd, u, u, coef.NearestQuarter)
		}}
}

func likeMish(p *coef.Pieces, result func(f *fn, dst, v, z vec)) *near {
	return &near{pieces: p, shift: coef.MishShift, far: coef.MishEnd, result: result,
		argument: func(*fn, []vec) {},
		piece:    func(f *fn, u, x []vec) { f.all(opAdd, u, x, coef.Nearest) }}
}

// octaves is for tables whose pieces get wider. It has no far arguments.
func octaves(p *coef.Pieces, scale, edge, end float32, result func(f *fn, dst, v, z vec)) *near {
	return &near{pieces: p, edge: edge, result: result,
		argument: func(f *fn, x []vec) {
			absolute(f, x)
			f.allAtMost(x, x, end)
		},
		piece: func(f *fn, u, x []vec) {
			f.all(opMul, u, x, scale)
			f.all(opAdd, u, u, 1)
			for _, v := range u {
				f.shiftRight(v, 22)
			}
		}}
}

var (
	signs      = math.Float32frombits(1 << 31)
	magnitudes = math.Float32frombits(1<<31 - 1)
	leading    = math.Float32frombits(math.MaxUint32 &^ (1<<12 - 1)) // the first 12 digits
)

func absolute(f *fn, x []vec) { f.all(opAnd, x, x, magnitudes) }

// all applies an operation with the same constant to several vectors.
func (f *fn) all(o op, dst, x []vec, c float32) {
	v := f.constC(c)
	for j := range dst {
		f.op(o, dst[j], x[j], v)
	}
}

func (f *fn) allAtMost(dst, x []vec, hi float32) {
	v := f.constC(hi)
	for j := range dst {
		f.op(opMin, dst[j], v, x[j])
	}
}

// distance returns |z-shift|, by which z is far: in x if the shift is 0, otherwise in u.
func (n *near) distance(f *fn, x, u []vec) []vec {
	if n.shift == 0 {
		return x
	}
	f.all(opSub, u, x, n.shift)
	absolute(f, u)
	return u
}

// emit prints the function. If a call has arguments that are far from 0, they are computed
// first. The far lanes of the four vectors are merged into one vector, unless two of them
// are in the same place: then the vectors are taken one after the other. The results replace
// those of the polynomials. If all arguments are far, there are no polynomials, and vectors
// are taken in pairs if no result is subnormal. NaN is not far: the polynomials make NaN of
// it. If all are NaN, so are the results.
func (c computation) emit(f *fn) {
	n := c.near
	var x, u, v [4]vec
	for j := range x {
		x[j] = firstArg + vec(j)
		u[j], v[j] = x[j]+4, x[j]+8
	}
	f.saveArgs()
	n.argument(f, x[:])
	if c.far == nil {
		n.polynomials(f, x[:], u[:], v[:])
		f.back()
		f.tableFirst()
		return
	}
	inside, some, both := f.newLabel("near"), f.newLabel("some"), f.newLabel("both")
	d, largest := n.distance(f, x[:], u[:]), v[1]
	if n.shift == 0 {
		largest = u[3] // which is not in use yet
	}
	f.op(opMaxInt, v[0], d[0], d[1])
	f.op(opMaxInt, largest, d[2], d[3])
	f.op(opMaxInt, largest, v[0], largest)
	f.opC(opGTInt, v[0], largest, n.far) // or NaN
	f.ifSome(v[0], some)
	f.setFar(noneFar)
	f.label(inside)
	n.polynomials(f, x[:], u[:], v[:])
	f.ifFar(ifNotLess, someFar, both)
	f.back()

	all, whole, load, vector := f.newLabel("all"), f.newLabel("whole"), f.newLabel("load"), f.newLabel("vector")
	mixed, apart, merged := f.newLabel("mixed"), f.newLabel("apart"), f.newLabel("merged")
	begin, notANumber, pairs := f.newLabel("begin"), f.newLabel("nan"), f.newLabel("pairs")
	f.label(some)
	next := func(c float32) float32 { return math.Float32frombits(math.Float32bits(c) + 1) }
	f.ifAll(func() vec {
		f.op(opGTInt, v[0], f.constC(next(n.far)), largest)
		return v[0]
	}, all)
	f.label(mixed)
	f.all(opGT, v[:], d, n.far)
	for j := range v {
		f.saveFarMask(v[j], j)
	}
	f.merge(u[:], v[:], apart, notANumber)
	f.setFar(mergedFar)
	f.opC(opAnd, f.t, f.z, magnitudes)
	f.alone(vector)
	f.label(all) // lanes have far arguments, or NaN
	least := v[3]
	f.op(opMinInt, least, d[0], d[1])
	f.op(opMinInt, v[2], d[2], d[3])
	f.op(opMinInt, least, least, v[2])
	f.op(opGTInt, v[2], f.constC(next(n.far)), least)
	f.ifAny(v[2], mixed)
	if c.normal > 0 {
		f.opC(opGTInt, v[2], largest, c.normal)
		f.ifNone(v[2], pairs)
	}
	f.setFar(allFar)
	f.opC(opGTInt, v[2], largest, float32(math.Inf(1)))
	f.ifNone(v[2], begin)
	f.op(opGTInt, v[2], f.constC(next(float32(math.Inf(1)))), least)
	f.ifAny(v[2], mixed)
	f.back() // all are NaN
	f.label(apart)
	f.setFar(someFar)
	f.label(begin)
	f.eachFar(f.z, func(next string) {
		f.ifFar(ifNotLess, allFar, load)
		f.loadFarMask(f.t)
		if c.end > 0 {
			f.op(opAnd, f.z, f.z, f.t)
		}
		f.ifNone(f.t, next)
		f.label(load)
		if c.normal > 0 || c.end > 0 {
			f.abs(f.t, f.z)
		}
		f.label(vector)
		if c.end == 0 {
			c.far(f)
			return
		}
		formula, done := f.newLabel("formula"), f.newLabel("done")
		f.zero(f.x[0])
		f.op(opGTInt, f.x[0], f.t, f.x[0]) // other lanes are 0
		f.op(opGTInt, f.x[1], f.constC(c.end), f.t)
		f.op(opAnd, f.x[0], f.x[0], f.x[1])
		f.ifAny(f.x[0], formula)
		c.limit(f)
		f.jump(done)
		f.label(formula)
		c.far(f)
		f.label(done)
	})
	f.ifFar(ifNotLess, allFar, whole)
	f.ifFar(ifLess, mergedFar, merged)
	f.saveFar(f.z, 0)
	for j := 1; j < 4; j++ {
		f.rotate(f.t, f.z, 4-j)
		f.saveFar(f.t, j)
	}
	f.label(merged)
	if c.normal == 0 {
		n.arguments(f, x[:])
	}
	f.jump(inside)

	f.label(notANumber)
	f.setFar(noneFar)
	f.jump(inside)

	f.label(both)
	for j := range x {
		f.replaceFar(x[j], u[j], j)
	}
	f.back()

	if c.normal > 0 {
		f.label(pairs)
		c.pairs(f)
	}
	f.label(whole)
	for j := range x {
		f.farResult(x[j], j)
	}
	f.back()
	f.tableFirst()
}

// pairs prints the loop for arguments of which no result is subnormal. The instructions of
// two vectors alternate, so that fewer of them wait for the one before them.
func (c computation) pairs(f *fn) {
	t, p, q, r := f.t, f.p, f.q, f.r
	each := func(body func(j int)) {
		f.together(2, func(j int) {
			v := func(i int) vec { return firstArg + vec(6*j+i) }
			f.t, f.p, f.q[0], f.r = v(0), pair{v(1), v(2)}, v(3), pair{v(4), v(5)}
			f.z = f.r[1]
			f.lateZ = func() { f.argumentOfPair(f.z, j) }
			f.lateT = func() {
				f.argumentOfPair(f.t, j)
				f.abs(f.t, f.t)
			}
			f.pairs = true
			body(j)
		})
	}
	f.eachPair(func() {
		if c.sides == nil {
			each(func(j int) {
				f.lateT()
				c.far(f)
				f.saveFarOfPair(f.z, j)
			})
			return
		}
		above, done := f.newLabel("above"), f.newLabel("done")
		each(func(int) {
			f.lateT()
			c.sides.common(f)
		})
		sign := f.r[1] // of both arguments
		bothSigns := func(o op) {
			f.argumentOfPair(sign, 0)
			f.argumentOfPair(constVec, 1)
			f.op(o, sign, sign, constVec)
		}
		bothSigns(opOr)
		f.zero(constVec)
		f.op(opGTInt, sign, constVec, sign)
		f.ifNone(sign, above)
		each(func(int) { c.sides.below(f) })
		bothSigns(opAnd)
		f.op(opGTInt, sign, sign, f.constC(math.Float32frombits(math.MaxUint32)))
		f.ifNone(sign, done)
		f.label(above)
		each(func(int) { c.sides.above(f) })
		f.label(done)
		each(func(j int) { f.saveFarOfPair(f.q[0], j) })
	})
	f.t, f.p, f.q, f.r = t, p, q, r
}

// arguments sets x to the polynomials' arguments of the call.
func (n *near) arguments(f *fn, x []vec) {
	if n.shift != 0 {
		for j := range x {
			f.argument(x[j], j)
		}
		return
	}
	v := f.constC(magnitudes)
	for j := range x {
		f.opArgument(opAnd, x[j], v, j)
	}
}

// merge puts the far lanes of the four arguments of a call together in z, and 0 into its
// other lanes. far has masks of these lanes. It goes to apart if two vectors have far lanes
// in the same place, and to none if there are no far lanes. The vectors are rotated first,
// since columns of the same kind are often 8 or a multiple apart, or the vectors have the
// same columns. It changes t and far.
func (f *fn) merge(t, far []vec, apart, none string) {
	for j := 1; j < len(far); j++ {
		f.rotate(far[j], far[j], j)
	}
	sum, twice := t[0], t[1] // of masks, which are -1 as integers
	f.op(opAddInt, sum, far[0], far[1])
	f.op(opAddInt, twice, far[2], far[3])
	f.op(opAddInt, sum, sum, twice)
	f.op(opGTInt, twice, f.constC(math.Float32frombits(math.MaxUint32)), sum)
	f.ifMerged(twice, sum, apart, none)
	f.opArgument(opAnd, t[0], far[0], 0)
	for j := 1; j < len(far); j++ {
		f.rotateArgument(t[j], j)
		f.op(opAnd, t[j], t[j], far[j])
	}
	f.op(opOr, t[0], t[0], t[1])
	f.op(opOr, t[2], t[2], t[3])
	f.op(opOr, f.z, t[0], t[2])
}

// polynomials replaces x by the results. Each instruction is repeated for the four
// vectors before the next one, so that none waits for the instruction before it.
func (n *near) polynomials(f *fn, x, u, v []vec) {
	n.piece(f, u, x)
	f.pieceIndex(u)
	// lookup selects the values of the pieces from a row of 8, and do uses them.
	lookup := func(list [8]float32, dst func(j int) vec, do func(j int)) {
		off := f.entryOf(list)
		f.openRow(off)
		for j := range u {
			f.lookup(dst(j), u[j], off)
			do(j)
		}
	}
	temporary := func(int) vec { return constVec }
	nothing := func(int) {}
	lookup(n.pieces.Centers(), temporary, func(j int) { f.sub(x[j], x[j], constVec) })
	degree := n.pieces.Degree()
	lookup(n.pieces.Coefficients(degree), func(j int) vec { return v[j] }, nothing)
	for power := degree - 1; power > 0; power-- {
		lookup(n.pieces.Coefficients(power), temporary, func(j int) {
			f.mul(v[j], v[j], x[j])
			f.add(v[j], v[j], constVec)
		})
	}
	for j := range v {
		f.mul(v[j], v[j], x[j])
	}
	lookup(n.pieces.Bases(), func(j int) vec { return u[j] }, nothing)
	if n.edge > 0 { // where the base is 0, d is t: it takes the base's place
		f.all(opMinInt, x, x, n.edge)
		for j := range x {
			f.op(opMaxInt, u[j], u[j], x[j])
		}
	}
	for j := range x {
		f.add(v[j], v[j], u[j])
	}
	for j := range x {
		f.argument(u[j], j)
		n.result(f, x[j], v[j], u[j])
	}
}

// Results from the value of the polynomials. constVec is a temporary; constants are
// loaded into it, too.

func asItIs(f *fn, dst, v, z vec) { f.move(dst, v) }
func timesZ(f *fn, dst, v, z vec) { f.mul(dst, v, z) }

func mirrored(f *fn, dst, v, z vec) {
	f.sub(dst, f.constC(1), v)
	f.bySign(dst, z, v, dst)
}

func product(f *fn, dst, v, z vec) {
	f.mul(constVec, v, v)
	f.sub(dst, v, constVec)
}

// positivePart sets dst to max(z, 0), by a comparison of integers. A NaN whose sign is set
// becomes 0; v is NaN there, and so is the result.
func positivePart(f *fn, dst, z vec) {
	f.zero(dst)
	f.op(opMaxInt, dst, z, dst)
}

func gated(f *fn, dst, v, z vec) {
	positivePart(f, dst, z)
	f.sub(dst, dst, v)
}

func withSign(f *fn, dst, v, z vec) {
	f.opC(opAnd, z, z, signs)
	f.op(opOr, dst, v, z)
}

func elu(f *fn, dst, v, z vec) {
	f.param(constVec, "p")
	f.mul(v, v, constVec)
	f.opC(opXor, v, v, signs)
	f.bySign(dst, z, v, z)
}

func eluSlope(f *fn, dst, v, z vec) {
	f.param(constVec, "p")
	f.mul(v, v, constVec)
	f.greater(z, z, f.constC(0))
	f.blend(v, z, f.constC(1), v)
	f.move(dst, v)
}

func softplus(f *fn, dst, v, z vec) {
	positivePart(f, dst, z)
	f.add(dst, dst, v)
}
