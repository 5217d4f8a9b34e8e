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

// emit prints the function, with far for arguments that are far from 0. If a call has
// some, they are computed first. The far lanes of the four vectors are merged into one
// vector, unless two of them are in the same place: then the vectors are taken one after
// the other. The results replace those of the polynomials. If all arguments are far, there
// are no polynomials. NaN is not far: the polynomials make NaN of it.
func (n *near) emit(f *fn, far func(f *fn)) {
	var x, u, v [4]vec
	for j := range x {
		x[j] = firstArg + vec(j)
		u[j], v[j] = x[j]+4, x[j]+8
	}
	inside, some, both := f.newLabel("near"), f.newLabel("far"), f.newLabel("both")
	f.saveArgs()
	n.argument(f, x[:])
	if far != nil {
		d := n.distance(f, x[:], u[:])
		f.op(opMaxInt, v[0], d[0], d[1])
		f.op(opMaxInt, v[1], d[2], d[3])
		f.op(opMaxInt, v[0], v[0], v[1])
		f.all(opGTInt, v[:1], v[:1], n.far) // or NaN
		f.ifAny(v[0], some)
		f.nothingFar()
		f.label(inside)
	}
	n.polynomials(f, x[:], u[:], v[:])
	if far != nil {
		f.ifFar(both)
	}
	f.back()

	if far != nil {
		notANumber, whole := f.newLabel("nan"), f.newLabel("whole")
		vector, apart, again := f.newLabel("vector"), f.newLabel("apart"), f.newLabel("again")
		f.label(some)
		f.all(opGT, v[:], n.distance(f, x[:], u[:]), n.far)
		f.op(opOr, u[0], v[0], v[1])
		f.op(opOr, u[1], v[2], v[3])
		f.op(opOr, u[0], u[0], u[1])
		f.ifNone(u[0], notANumber)
		f.beginFar()
		f.op(opAnd, u[0], v[0], v[1])
		f.op(opAnd, u[1], v[2], v[3])
		f.op(opAnd, u[0], u[0], u[1])
		f.all(opXor, u[:1], u[:1], math.Float32frombits(math.MaxUint32))
		f.ifNone(u[0], apart) // all are far
		f.merge(x[:], u[:], v[:], apart)
		f.alone(vector)
		f.label(apart)
		f.eachFar(f.z, vector, func(next string) {
			x, u := []vec{f.t}, []vec{f.t}
			f.move(f.t, f.z)
			n.argument(f, x)
			f.all(opGT, x, n.distance(f, x, u), n.far)
			f.ifNone(f.t, next)
			far(f)
		})
		f.ifEach(again)
		f.saveFarResult(f.z, 0) // of the vectors that were merged
		for j := 1; j < 4; j++ {
			f.rotate(f.t, f.z, 4-j)
			f.saveFarResult(f.t, j)
		}
		f.label(again)
		for j := range x {
			f.argument(x[j], j)
		}
		n.argument(f, x[:])
		// Is something near, or NaN?
		f.all(opGT, v[:], n.distance(f, x[:], u[:]), n.far)
		f.op(opAnd, v[0], v[0], v[1])
		f.op(opAnd, v[2], v[2], v[3])
		f.op(opAnd, v[0], v[0], v[2])
		f.all(opXor, v[:1], v[:1], math.Float32frombits(math.MaxUint32))
		f.ifNone(v[0], whole)
		f.jump(inside)

		f.label(notANumber)
		f.nothingFar()
		f.jump(inside)

		f.label(both)
		for j := range x {
			f.argument(u[j], j)
		}
		n.argument(f, u[:])
		f.all(opGT, v[:], n.distance(f, u[:], v[:]), n.far)
		for j := range x {
			f.farResult(u[j], j)
			f.blend(x[j], v[j], u[j], x[j])
		}
		f.back()

		f.label(whole)
		for j := range x {
			f.farResult(x[j], j)
		}
		f.back()
	}
	f.tableFirst()
}

// merge puts the far lanes of the four arguments of a call together in z, and 0 into its
// other lanes. far has masks of these lanes. It goes to apart if two vectors have far lanes
// in the same place. The vectors are rotated first, since columns of the same kind are
// often 8 or a multiple apart, or the vectors have the same columns. It changes all vectors.
func (f *fn) merge(x, u, far []vec, apart string) {
	for j := range x {
		f.argument(x[j], j)
		if j > 0 {
			f.rotate(x[j], x[j], j)
			f.rotate(far[j], far[j], j)
		}
	}
	seen, twice, t := u[0], u[1], u[2]
	f.op(opAnd, twice, far[0], far[1])
	f.op(opOr, seen, far[0], far[1])
	for j := 2; j < 4; j++ {
		f.op(opAnd, t, seen, far[j])
		f.op(opOr, twice, twice, t)
		f.op(opOr, seen, seen, far[j])
	}
	f.ifAny(twice, apart)
	for j := range x {
		f.op(opAnd, x[j], x[j], far[j])
	}
	f.op(opOr, x[0], x[0], x[1])
	f.op(opOr, x[2], x[2], x[3])
	f.op(opOr, f.z, x[0], x[2])
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
