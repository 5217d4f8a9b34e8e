package main

import "slices"

// The kernels. ../kernels.go and ../kernels_generic.go specify their results.

// Fields of a record of constants (fieldN, ... in ../kernels.go).
const (
	fieldN = iota
	fieldA
	fieldB
	fieldK1
	fieldK2
	coefLen
)

const (
	lanes        = vecBytes / floatBytes
	quadSize     = 4                // vectors of rows, or rows of cols, that are processed together
	quadValues   = quadSize * lanes // in rows
	floatBytes   = 4
	float64Bytes = 8
	floatShift   = 2 // from a number of floats to their bytes
	cacheLine    = 64
	float64Shift = 3
	quadShift    = 2 // from a number of vectors to a number of quads
)

// body is a kernel as a walk uses it.
type body struct {
	tensors  []reg  // pointers, advanced together
	first    string // the field of the arguments with the first tensor
	output   reg    // one of the tensors that are written, if there is one
	coef     []vec  // constants, fields 0, 1, ... of the record; unused: not loaded
	record   int    // number of fields in the record
	sums     []vec  // kept in acc between vectors; nil for a kernel without sums
	fetch    []reg  // tensors to prefetch
	residual *reg   // the one in fetch that a call may lack
	temps    []vec  // sums: vectors that are free between two quads
	inputs   []reg  // outputs: the tensors that are read
	free     [2]vec // outputs: vectors that are free when these are stored
	calls    bool   // it calls the function of an activation

	// one processes a vector of each tensor, and four processes 4 of them that are added
	// to the same sums. at returns the address of vector j in a tensor. A tail is a
	// vector with fewer than 8 values.
	one  func(at address, tail bool)
	four func(at address, tail bool)
}

const unused vec = -1

type address func(t reg, j int) mem

// walk emits the loops over the tensors around a body.
type walk func(a *asm, b body)

// step processes a vector of every tensor; place is its number in the quad.
type step func(m func(reg) mem, place int, tail bool)

// each makes the two functions of a kernel without sums and calls.
func each(f step) (one, four func(at address, tail bool)) {
	get := func(at address, j int, tail bool) {
		f(func(t reg) mem { return at(t, j) }, j, tail)
	}
	one = func(at address, tail bool) {
		get(at, 0, tail)
	}
	four = func(at address, tail bool) {
		for j := range quadSize {
			get(at, j, tail)
		}
	}
	return one, four
}

// loadSums and storeSums move the sums between registers and acc.
func (b *body) loadSums(a *asm, acc reg) {
	for i, s := range b.sums {
		a.load(s, mem{base: acc, off: i * vecBytes})
	}
}

func (b *body) storeSums(a *asm, acc reg) {
	for i, s := range b.sums {
		a.store(s, mem{base: acc, off: i * vecBytes})
	}
}

// advance adds n bytes to the pointers of all tensors.
func (b *body) advance(a *asm, n reg) {
	for _, t := range b.tensors {
		a.addReg(t, n)
	}
}

func (b *body) advanceImm(a *asm, bytes int) {
	for _, t := range b.tensors {
		a.addImm(t, bytes)
	}
}

// prepare emits the code before the steps of n vectors.
type prepare func(at address, n int, tail bool)

func nothing(address, int, bool) {}

// value computes the addend of a vector to each sum; place is as for step. It may use
// the registers v, and returns the registers of the addends.
type value func(m func(reg) mem, place int, tail bool, v []vec) []vec

// treeSum makes the two functions of a kernel with sums: prepare, then value for each
// vector, in one of the sets of registers. Four addends are added as a tree before they
// join the sums.
func treeSum(a *asm, sums []vec, sets [3][]vec, prepare prepare, value value) (one, four func(at address, tail bool)) {
	addTo := func(dst, v []vec) {
		for i := range dst {
			a.add(dst[i], dst[i], v[i])
		}
	}
	get := func(at address, j int, tail bool, v []vec) []vec {
		return value(func(t reg) mem { return at(t, j) }, j, tail, v)
	}
	add := func(total []vec, tail bool) {
		if tail && a.layout == inRows { // the other lanes of a sum must not change
			for _, v := range total {
				a.keepTail(v)
			}
		}
		addTo(sums, total)
	}
	one = func(at address, tail bool) {
		prepare(at, 1, tail)
		add(get(at, 0, tail, sets[0]), tail)
	}
	four = func(at address, tail bool) {
		prepare(at, quadSize, tail)
		total := get(at, 0, tail, sets[0])
		addTo(total, get(at, 1, tail, sets[1]))
		half := get(at, 2, tail, sets[1])
		addTo(half, get(at, 3, tail, sets[2]))
		addTo(total, half)
		add(total, tail)
	}
	return one, four
}

func (a *asm) newVecs(n int) []vec {
	v := make([]vec, n)
	for i := range v {
		v[i] = a.newVec()
	}
	return v
}

func moments(a *asm, v variant) {
	b := body{record: 1}
	x, k := b.tensor(a, "x"), a.newVec()
	b.coef, b.sums, b.fetch = []vec{k}, a.newVecs(2), []reg{x}
	sets := newSets(a)
	b.temps = slices.Concat(sets[:]...)
	b.one, b.four = treeSum(a, b.sums, sets, nothing, momentValue(a, x, k))
	v.walk()(a, b)
}

func newSets(a *asm) [3][]vec { return [3][]vec{a.newVecs(2), a.newVecs(2), a.newVecs(2)} }

// momentValue computes d = x-K and d*d; k is -K.
func momentValue(a *asm, x reg, k vec) value {
	return func(m func(reg) mem, _ int, tail bool, v []vec) []vec {
		a.addMem(v[0], k, m(x), v[0], tail)
		a.mul(v[1], v[0], v[0])
		return v
	}
}

// operands are the tensors and registers of a kernel. Some variants lack some of them.
type operands struct {
	act       activation
	record    int // offset of the current record of constants, in fields
	x, dy, y  reg
	backward  bool // there is a dy
	res, dres *reg
	c         [coefLen]vec // constants
	z, t      vec          // for the activation: z and a temporary, the first of temps
	temps     []vec
	called    []vec // arguments and results of a called function; in a backward kernel then g
}

// reserve hands out the first two vectors for the sums, since a called function leaves
// these unchanged, and the next vectors for the arguments of the function.
func (o *operands) reserve(a *asm, sums bool) (s []vec) {
	if sums || o.act.called {
		s = a.newVecs(2)
	}
	if o.act.called {
		o.called = a.newVecs(quadSize)
	}
	return s
}

// storeGradients stores g if dresidual is wanted.
func (o *operands) storeGradients(a *asm, g []vec, at func(j int) mem, tail bool) {
	a.choose(withDResidual, func() { a.write(g, at, tail) }, nil)
}

// fetch makes a kernel prefetch its inputs.
func (o *operands) fetch(b *body) {
	b.fetch = []reg{o.x}
	if o.backward {
		b.fetch = append(b.fetch, o.dy)
	}
	if o.res != nil {
		b.fetch = append(b.fetch, *o.res)
	}
	b.residual = o.res
}

// tensor returns a pointer from the arguments, which the walk advances.
func (b *body) tensor(a *asm, name string) reg {
	r := a.newArg(name)
	if b.tensors == nil {
		b.first = name
	}
	b.tensors = append(b.tensors, r)
	return r
}

func (b *body) optional(a *asm, name string, there bool) *reg {
	if !there {
		return nil
	}
	r := b.tensor(a, name)
	return &r
}

// newTemps sets the temporaries of the activation. One that is called needs only a
// vector that is free before the call.
func (o *operands) newTemps(a *asm, free vec) {
	if o.act.called {
		o.t = free
		return
	}
	o.z = a.newVec()
	o.temps = a.newVecs(max(1, o.act.temps))
	o.t = o.temps[0]
}

// newConsts hands out vectors for the given constants, and returns them by field, for
// the walk to load. A kernel that calls functions loads them itself.
func (o *operands) newConsts(a *asm, fields ...int) []vec {
	list := slices.Repeat([]vec{unused}, coefLen)
	for _, f := range fields {
		o.c[f] = a.newVec()
		if !o.act.called {
			list[f] = o.c[f]
		}
	}
	return list
}

// load loads constants.
func (o *operands) load(a *asm, fields ...int) {
	for _, f := range fields {
		a.loadConst(o.c[f], o.record+f)
	}
}

// affine computes z from d = x-m, without the residual; z may be d.
func (o *operands) affine(a *asm, z, d vec) {
	a.op(opMul, z, d, o.c[fieldA])
	a.op(opAdd, z, z, o.c[fieldB])
}

// preActivation computes z from d = x-m; z may be d.
func (o *operands) preActivation(a *asm, z, d vec, m func(reg) mem, tail bool) {
	o.affine(a, z, d)
	if o.res != nil {
		a.addMem(z, z, m(*o.res), o.t, tail)
	}
}

// prepare returns the code before the steps of some vectors, which only a called
// activation has. It loads the constants in before, computes z of all vectors, and calls
// the function, which overwrites all registers of operands but the sums. Then it loads the
// constants in after, and in a backward kernel computes g.
func (o *operands) prepare(a *asm, before, after []int) prepare {
	return func(at address, n int, tail bool) {
		if !o.act.called {
			return
		}
		if !a.columns {
			o.load(a, before...)
		}
		there := o.called[:n]
		for j, z := range there {
			o.loadColumn(a, j, before)
			a.addMem(z, o.c[fieldN], at(o.x, j), z, tail)
			o.affine(a, z, z)
		}
		a.choose(withResidual, func() {
			for j, z := range there {
				a.addMem(z, z, at(*o.res, j), o.t, tail)
			}
		}, nil)
		for _, z := range o.called[n:] { // the function computes all four, so the rest must be valid
			a.op(opOr, z, o.called[0], o.called[0])
		}
		a.call(n)
		if !a.columns {
			o.load(a, after...)
		}
		if !o.backward {
			return
		}
		for j, g := range there {
			if tail {
				a.loadTail(o.t, at(o.dy, j))
				a.mul(g, o.t, g)
			} else {
				a.opMem(opMul, g, g, at(o.dy, j), o.t)
			}
		}
	}
}

// loadColumn loads the constants of a vector of columns, if the vectors that are
// prepared together have different columns.
func (o *operands) loadColumn(a *asm, column int, fields []int) {
	if a.columns {
		a.column = column
		o.load(a, fields...)
	}
}

// affineFields are the constants of z.
var affineFields = []int{fieldN, fieldA, fieldB}

// normalizeOne computes a vector of y.
func (o *operands) normalizeOne(a *asm) step {
	return func(m func(reg) mem, _ int, tail bool) {
		a.addMem(o.z, o.c[fieldN], m(o.x), o.z, tail)
		o.preActivation(a, o.z, o.z, m, tail)
		if !o.act.identity() {
			o.act.forward(a, o.z, o.temps)
		}
		a.write([]vec{o.z}, func(int) mem { return m(o.y) }, tail)
	}
}

// together makes the two functions of a kernel without sums that calls a function:
// finish processes vectors that were prepared together.
func together(prepare prepare, finish func(at address, n int, tail bool)) (one, four func(at address, tail bool)) {
	some := func(n int) func(at address, tail bool) {
		return func(at address, tail bool) {
			prepare(at, n, tail)
			finish(at, n, tail)
		}
	}
	return some(1), some(quadSize)
}

// normalizeCalled stores y.
func (o *operands) normalizeCalled(a *asm) func(at address, n int, tail bool) {
	return func(at address, n int, tail bool) {
		a.write(o.called[:n], func(j int) mem { return at(o.y, j) }, tail)
	}
}

// gradient computes d = x-m and g = dy*act'(z), for an activation that is not called.
func (o *operands) gradient(a *asm, d, g vec, m func(reg) mem, tail bool) {
	a.addMem(d, o.c[fieldN], m(o.x), d, tail)
	a.read(g, m(o.dy), tail)
	if !o.act.identity() {
		o.preActivation(a, o.z, d, m, tail)
		o.act.backward(a, g, o.z, o.temps)
	}
}

// gradValue computes g*(x-m), and before it g, unless prepare has done so.
func (o *operands) gradValue(a *asm) value {
	return func(m func(reg) mem, place int, tail bool, v []vec) []vec {
		g, d := v[0], v[1]
		if o.act.called {
			g = o.called[place]
			a.addMem(d, o.c[fieldN], m(o.x), d, tail)
		} else {
			o.gradient(a, d, g, m, tail)
		}
		a.mul(d, g, d)
		return []vec{g, d}
	}
}

// dx computes a vector of dx from g and d = x-m. It overwrites d.
func (o *operands) dx(a *asm, dst, g, d vec) {
	a.op(opSub, dst, g, o.c[fieldK1])
	a.op(opMul, d, d, o.c[fieldK2])
	a.sub(dst, dst, d)
	a.op(opMul, dst, dst, o.c[fieldA])
}

// inputGradOne computes a vector of dx, and of dresidual; d, g and t are
// temporaries.
func (o *operands) inputGradOne(a *asm, d, g, t vec) step {
	return func(m func(reg) mem, _ int, tail bool) {
		o.gradient(a, d, g, m, tail)
		o.dx(a, t, g, d)
		a.write([]vec{t}, func(int) mem { return m(o.y) }, tail)
		o.storeGradients(a, []vec{g}, func(int) mem { return m(*o.dres) }, tail)
	}
}

// inputGradCalled computes dx of some vectors in dst, and stores dx and dresidual after
// all of x has been read, since either may overwrite x; d is a temporary.
func (o *operands) inputGradCalled(a *asm, d vec, dst []vec) func(at address, n int, tail bool) {
	return func(at address, n int, tail bool) {
		for j, g := range o.called[:n] {
			o.loadColumn(a, j, inputGradFields)
			a.addMem(d, o.c[fieldN], at(o.x, j), d, tail)
			o.dx(a, dst[j], g, d)
		}
		a.write(dst[:n], func(j int) mem { return at(o.y, j) }, tail)
		o.storeGradients(a, o.called[:n], func(j int) mem { return at(*o.dres, j) }, tail)
	}
}

func normalize(a *asm, v variant) {
	b := body{record: coefLen}
	o := operands{act: v.act, x: b.tensor(a, "x"), y: b.tensor(a, "y"), res: b.optional(a, "res", v.may(withResidual))}
	b.output = o.y
	b.calls = v.act.called
	o.reserve(a, false)
	b.coef = o.newConsts(a, affineFields...)
	o.newTemps(a, a.newVec())
	b.free, b.inputs = [2]vec{o.c[fieldN], o.c[fieldA]}, b.tensors[:1]
	if o.act.called {
		b.one, b.four = together(o.prepare(a, affineFields, nil), o.normalizeCalled(a))
	} else {
		b.one, b.four = each(o.normalizeOne(a))
	}
	v.walk()(a, b)
}

// backwardOperands are the tensors that the backward kernels read.
func backwardOperands(a *asm, b *body, v variant) operands {
	return operands{act: v.act, backward: true, dy: b.tensor(a, "dy"), x: b.tensor(a, "x"), res: b.optional(a, "res", v.may(withResidual))}
}

// backwardFields are the constants of the sums. Only an activation needs those of z.
func backwardFields(act activation, more ...int) []int {
	if !act.identity() {
		more = append(more, fieldA, fieldB)
	}
	return append(more, fieldN)
}

func gradSums(a *asm, v variant) {
	b := body{record: coefLen}
	o := backwardOperands(a, &b, v)
	o.dres = b.optional(a, "dres", v.may(withDResidual))
	o.fetch(&b)
	b.sums = o.reserve(a, true)
	b.coef = o.newConsts(a, backwardFields(v.act)...)
	sets := newSets(a)
	b.temps = slices.Concat(sets[:]...)
	o.newTemps(a, sets[0][0])
	prepare := o.prepare(a, affineFields, []int{fieldN})
	b.one, b.four = treeSum(a, b.sums, sets, func(at address, n int, tail bool) {
		prepare(at, n, tail)
		if o.act.called { // dresidual may overwrite dy, which has been read
			o.storeGradients(a, o.called[:n], func(j int) mem { return at(*o.dres, j) }, tail)
		}
	}, o.gradValue(a))
	v.walk()(a, b)
}

// inputGradFields are the constants of dx, given g.
var inputGradFields = []int{fieldN, fieldA, fieldK1, fieldK2}

func inputGrad(a *asm, v variant) {
	b := body{record: coefLen}
	o := backwardOperands(a, &b, v)
	o.y, o.dres = b.tensor(a, "y"), b.optional(a, "dres", v.may(withDResidual))
	b.output = o.y
	fields := backwardFields(v.act, fieldK1, fieldK2)
	if v.act.identity() {
		fields = append(fields, fieldA)
	}
	b.calls = v.act.called
	kept := o.reserve(a, false)
	b.coef = o.newConsts(a, fields...)
	d, g, t := a.newVec(), a.newVec(), a.newVec()
	o.newTemps(a, d)
	b.free, b.inputs = [2]vec{o.c[fieldN], o.c[fieldA]}, b.tensors[:2]
	if o.act.called {
		b.one, b.four = together(o.prepare(a, affineFields, inputGradFields), o.inputGradCalled(a, d, append(kept, g, t)))
	} else {
		b.one, b.four = each(o.inputGradOne(a, d, g, t))
	}
	v.walk()(a, b)
}

// largest keeps the largest magnitude of a column, as integers are compared.
func largest(a *asm, v variant) {
	var b body
	x := b.tensor(a, "x")
	b.sums, b.fetch = a.newVecs(1), []reg{x}
	magnitude, t := a.newVec(), a.newVecs(quadSize)
	a.allBits(magnitude)
	a.shiftRight(magnitude, 1) // but for the sign
	some := func(vectors int) func(at address, tail bool) {
		return func(at address, tail bool) {
			for j := range vectors {
				a.read(t[j], at(x, j), tail)
				a.op(opAnd, t[j], t[j], magnitude)
			}
			for n := vectors / 2; n > 0; n /= 2 {
				for j := range n {
					a.op(opMaxInt, t[j], t[j], t[j+n])
				}
			}
			a.op(opMaxInt, b.sums[0], b.sums[0], t[0])
		}
	}
	b.one, b.four = some(1), some(quadSize)
	v.walk()(a, b)
}

// inProducts emits the loops of a kernel that takes products in float64: some rows, whose
// vectors one processes. The tensors come with their strides, the output is the last one.
// rowBegins is called before a row, and advance after a vector. Unless ofRow is nil, it is called
// after rowBegins with how many bytes the constants of the row are behind those of the first. With
// alone, rows of one vector have a loop of their own, if all have the same constants.
// values is a free register, and between two rows t is.
func inProducts(a *asm, values, t reg, tensors [][2]string, rowBegins, advance func(), ofRow func(behind reg), alone bool,
	one func(at []mem, tail bool)) {
	var at []mem
	var gaps []reg // from the last whole vector of a row to the next row
	for _, names := range tensors {
		at = append(at, mem{base: a.newArg(names[0])})
		gaps = append(gaps, a.newArg(names[1]))
	}
	all := func(f func(tensor, gap reg)) {
		for i, m := range at {
			f(m.base, gaps[i])
		}
	}
	row, column, tail, next, end := a.newLabel("row"), a.newLabel("column"), a.newLabel("tail"), a.newLabel("next"), a.newLabel("end")
	a.arg(values, "n")
	a.andImm(values, ^(lanes - 1))
	all(func(_, gap reg) {
		a.subReg(gap, values)
		a.shiftLeft(gap, floatShift)
	})
	a.arg(values, "n")
	a.andImm(values, lanes-1)
	a.tail(values)

	if alone {
		eachAlone(a, values, at, gaps, rowBegins, func() { one(at, false) }, row, end)
	}
	a.label(row)
	rowBegins()
	if ofRow != nil {
		a.arg(values, "recordAt")
		ofRow(values)
	}
	a.arg(values, "n")
	a.subImm(values, lanes)
	a.branch(ifLess, tail)
	a.label(column)
	one(at, false)
	all(func(tensor, _ reg) { a.addImm(tensor, vecBytes) })
	advance()
	a.subImm(values, lanes)
	a.branch(ifNotLess, column)
	a.label(tail)
	a.andImm(values, lanes-1)
	a.branch(ifZero, next)
	one(at, true)
	a.label(next)
	all(a.addReg)
	if ofRow != nil {
		a.arg(values, "recordRow")
		a.raiseArg("recordAt", values, t)
	}
	a.set(values, 1)
	a.reduceArg("rows", values, t)
	a.branch(ifNotZero, row)
	a.label(end)
}

// eachAlone emits the loop over rows of one vector that have the same constants. For other rows it goes to others. After
// the last row it goes to end.
func eachAlone(a *asm, values reg, at []mem, gaps []reg, begins, one func(), others, end string) {
	next := a.newLabel("alone")
	a.arg(values, "n")
	a.subImm(values, lanes)
	a.branch(ifNotZero, others)
	a.arg(values, "recordRow")
	a.subImm(values, 0)
	a.branch(ifNotZero, others)
	begins()
	a.arg(values, "rows")
	a.label(next)
	one()
	for i, m := range at {
		a.addImm(m.base, vecBytes)
		a.addReg(m.base, gaps[i])
	}
	a.subImm(values, 1)
	a.branch(ifNotZero, next)
	a.jump(end)
}

// The tensors of the kernels that take products in float64.
var (
	scaledInput  = [2]string{"x", "stride"}
	scaledDY     = [2]string{"dy", "strideDY"}
	scaledOutput = [2]string{"y", "strideY"}
)

// scaled are the constants of a kernel that takes products in float64: its records, and
// its list of factors.
type scaled struct {
	a                    *asm
	coef, step           reg
	factors, factorsStep reg
	d64                  pair
	t                    vec
}

func newScaled(a *asm) *scaled {
	s := &scaled{a: a, d64: pair{a.newVec(), a.newVec()}, t: a.newVec()}
	s.coef, s.step, s.factors, s.factorsStep = a.newReg(), a.newArg("coefStep"), a.newReg(), a.newArg("factorStep")
	a.shiftLeft(s.step, floatShift)
	a.shiftLeft(s.factorsStep, floatShift+1)
	return s
}

func (s *scaled) rowBegins() {
	s.a.arg(s.coef, "coef")
	s.a.arg(s.factors, "factors")
}

func (s *scaled) ofRow(behind reg) {
	s.a.addReg(s.coef, behind)
	s.a.addReg(s.factors, behind)
}

func (s *scaled) advance() {
	s.a.addReg(s.coef, s.step)
	s.a.addReg(s.factors, s.factorsStep)
}

func (s *scaled) constant(field int) mem { return mem{base: s.coef, off: field * vecBytes} }

// multiply sets v to float32(v*s).
func (s *scaled) multiply(v vec) {
	s.a.widen(s.d64, v)
	for i, d := range s.d64 {
		s.a.opMem(opMul64, d, d, mem{base: s.factors, off: i * vecBytes}, s.t)
	}
	s.a.narrow(v, s.d64, s.d64[1])
}

// deviation sets d to x-m.
func (s *scaled) deviation(d vec, x mem, tail bool) {
	s.a.load(d, s.constant(fieldN))
	s.a.addMem(d, d, x, s.t, tail)
}

// affine sets z to float32((x-m)*s) + b.
func (s *scaled) affine(z vec, x mem, tail bool) {
	s.deviation(z, x, tail)
	s.multiply(z)
	s.a.opMem(opAdd, z, z, s.constant(fieldB), s.t)
}

// scale computes y = act(float32((x-m)*s) + b).
func scale(a *asm, v variant) {
	s, z, t := newScaled(a), a.newVec(), a.newVec()
	ahead := a.newArg("fetch")
	inProducts(a, a.newReg(), s.coef, [][2]string{scaledInput, scaledOutput}, s.rowBegins, s.advance, s.ofRow, true, func(at []mem, tail bool) {
		if !tail {
			a.prefetch(mem{base: at[0].base, index: ahead, scale: 1})
		}
		s.affine(z, at[0], tail)
		if !v.act.identity() {
			v.act.forward(a, z, []vec{t})
		}
		a.write([]vec{z}, func(int) mem { return at[1] }, tail)
	})
}

// The places in a record64, in vectors. The first five fields take two each.
const (
	field64S = 2 * iota
	field64L
	field64K1
	field64K2
	field64A
	field64N
)

// in64 are the operands of a kernel that takes sums or dx in float64.
type in64 struct {
	a       *asm
	records reg
	n, d, t vec
	d64, g  pair
	slope   *pair // with a residual, which has the slopes
	gate    bool  // with ReLU
	// keepTail says that x-m is 0 behind a tail. The kernel adds nothing there then, whatever the
	// mean is.
	keepTail bool
}

func newIn64(a *asm, v variant) *in64 {
	k := &in64{a: a, records: a.newReg(), n: a.newVec(), d: a.newVec(), t: a.newVec(),
		d64: pair{a.newVec(), a.newVec()}, g: pair{a.newVec(), a.newVec()}, gate: !v.act.identity()}
	if v.has(withResidual) {
		k.slope = &pair{a.newVec(), a.newVec()}
	}
	return k
}

// field returns a half of a field.
func (k *in64) field(field, half int) mem {
	return mem{base: k.records, off: (field + half) * vecBytes}
}

// widened sets dst to values in memory.
func (k *in64) widened(dst pair, m mem, tail bool) {
	if !tail {
		k.a.widenFrom(dst, m)
		return
	}
	k.a.loadTail(k.t, m)
	k.a.widen(dst, k.t)
}

// operands sets d64 to x-m, and g. s and l do operations with the constants of z.
func (k *in64) operands(x, dy, slopes mem, s, l func(o op, dst, x vec, half int), tail bool) {
	a := k.a
	a.addMem(k.d, k.n, x, k.t, tail)
	if tail && k.keepTail {
		a.keepTail(k.d)
	}
	a.widen(k.d64, k.d)
	k.widened(k.g, dy, tail)
	if k.slope != nil {
		k.widened(*k.slope, slopes, tail)
	}
	for h, g := range k.g {
		switch {
		case k.slope != nil:
			a.op(opMul64, g, g, k.slope[h])
		case k.gate:
			s(opMul64, k.t, k.d64[h], h)
			l(opGE64, k.t, k.t, h)
			a.op(opAnd, g, g, k.t)
		}
	}
}

// gradSums64 adds g to the first of its sums, and g*(x-m) to the second. It goes from column to
// column, so that constants and sums stay in registers. A column has some rows of whole vectors,
// and then some of a tail.
func gradSums64(a *asm, v variant) {
	k := newIn64(a, v)
	k.keepTail = true
	columns := a.newReg()
	a.arg(columns, "n")
	a.andImm(columns, lanes-1)
	a.tail(columns)
	sums, rows, at, ahead := a.newReg(), a.newReg(), a.newReg(), a.newArg("fetch")
	type tensor struct {
		name        string
		now, stride reg
	}
	tensors := []tensor{{"x", a.newReg(), a.newArg("stride")}, {"dy", a.newReg(), a.newArg("strideDY")}}
	if k.slope != nil {
		tensors = append(tensors, tensor{"res", a.newReg(), a.newArg("strideRes")})
	}
	for _, t := range tensors {
		a.shiftLeft(t.stride, floatShift)
	}
	p, r := pair{a.newVec(), a.newVec()}, pair{a.newVec(), a.newVec()}
	var s, l pair
	if k.gate {
		s, l = pair{a.newVec(), a.newVec()}, pair{a.newVec(), a.newVec()}
	}
	held := func(of *pair) func(o op, dst, x vec, half int) {
		return func(o op, dst, x vec, half int) { a.op(o, dst, x, of[half]) }
	}
	column := a.newLabel("column")
	vectors := func(count string, tail bool) {
		row, end := a.newLabel("row"), a.newLabel("end")
		a.arg(rows, count)
		a.subImm(rows, 1)
		a.branch(ifLess, end)
		a.label(row)
		if !tail {
			a.prefetch(mem{base: tensors[0].now, index: ahead, scale: 1})
			a.prefetch(mem{base: tensors[1].now, index: ahead, scale: 1})
		}
		k.operands(mem{base: tensors[0].now}, mem{base: tensors[1].now}, mem{base: tensors[len(tensors)-1].now}, held(&s), held(&l), tail)
		for h, g := range k.g {
			a.op(opAdd64, p[h], p[h], g)
			if k.slope == nil { // g is a float32
				a.op(opAddProduct64, r[h], k.d64[h], g)
				continue
			}
			a.op(opMul64, k.d64[h], k.d64[h], g)
			a.op(opAdd64, r[h], r[h], k.d64[h])
		}
		for _, t := range tensors {
			a.addReg(t.now, t.stride)
		}
		a.subImm(rows, 1)
		a.branch(ifNotLess, row)
		a.label(end)
	}
	a.arg(k.records, "records")
	a.arg(sums, "sums")
	a.set(at, 0)
	a.arg(columns, "n")
	a.subImm(columns, lanes)
	a.label(column)
	a.load(k.n, k.field(field64N, 0))
	for h := range p {
		a.load(p[h], mem{base: sums, off: h * vecBytes})
		a.load(r[h], mem{base: sums, off: (2 + h) * vecBytes})
		if k.gate {
			a.load(s[h], k.field(field64S, h))
			a.load(l[h], k.field(field64L, h))
		}
	}
	for _, t := range tensors {
		a.arg(t.now, t.name)
		a.addReg(t.now, at)
	}
	vectors("rows", false)
	vectors("tails", true)
	for h := range p {
		a.store(p[h], mem{base: sums, off: h * vecBytes})
		a.store(r[h], mem{base: sums, off: (2 + h) * vecBytes})
	}
	for _, step := range []struct {
		field string
		of    reg
	}{{"columnStep", at}, {"sumStep", sums}, {"recordStep", k.records}} {
		a.arg(rows, step.field)
		a.addReg(step.of, rows)
	}
	a.subImm(columns, lanes)
	a.branch(ifNotLess, column)
}

// inputGrad64 computes y = float32(((g-k1) - (x-m)*k2)*a).
func inputGrad64(a *asm, v variant) {
	k := newIn64(a, v)
	step := a.newArg("recordStep")
	tensors := [][2]string{scaledInput, scaledDY}
	if k.slope != nil {
		tensors = append(tensors, [2]string{"res", "strideRes"})
	}
	inMemory := func(field int) func(o op, dst, x vec, half int) {
		return func(o op, dst, x vec, half int) { a.opMem(o, dst, x, k.field(field, half), k.n) }
	}
	k1, k2, scale := inMemory(field64K1), inMemory(field64K2), inMemory(field64A)
	values, t := a.newReg(), k.records
	begins, advance := func() { a.arg(k.records, "records") }, func() { a.addReg(k.records, step) }
	ofRow := func(behind reg) { a.addReg(k.records, behind) }
	inProducts(a, values, t, append(tensors, scaledOutput), begins, advance, ofRow, false, func(at []mem, tail bool) {
		a.load(k.n, k.field(field64N, 0))
		k.operands(at[0], at[1], at[len(at)-2], inMemory(field64S), inMemory(field64L), tail)
		for h, g := range k.g {
			d := k.d64[h]
			k1(opSub64, g, g, h)
			k2(opMul64, d, d, h)
			a.op(opSub64, g, g, d)
			scale(opMul64, g, g, h)
		}
		a.narrow(k.d, k.g, k.t)
		a.write([]vec{k.d}, func(int) mem { return at[len(at)-1] }, tail)
	})
}

// chosen computes y = x where the mask of a column is all ones, and dy where it is 0.
func chosen(a *asm, _ variant) {
	coef, step := a.newReg(), a.newArg("coefStep")
	a.shiftLeft(step, floatShift)
	x, dy, mask := a.newVec(), a.newVec(), a.newVec()
	begins, advance := func() { a.arg(coef, "coef") }, func() { a.addReg(coef, step) }
	inProducts(a, a.newReg(), coef, [][2]string{scaledInput, scaledDY, scaledOutput}, begins, advance, nil, false, func(at []mem, tail bool) {
		a.load(mask, mem{base: coef})
		a.read(x, at[0], tail)
		a.read(dy, at[1], tail)
		a.op(opAnd, x, x, mask)
		a.op(opAndNot, dy, mask, dy)
		a.op(opOr, x, x, dy)
		a.write([]vec{x}, func(int) mem { return at[2] }, tail)
	})
}

// ofTinyZ computes y = base + float32(x*factor) where |x| is at most most, and dy elsewhere. The base is x
// or a constant, and the factor one of two, depending on the sign of x.
func ofTinyZ(a *asm, _ variant) {
	coef, fields := a.newReg(), a.newVecs(coefLen)
	a.arg(coef, "coef")
	for f, v := range fields {
		a.load(v, mem{base: coef, off: f * vecBytes})
	}
	below, flip, gate, zero, most := fields[0], fields[1], fields[2], fields[3], fields[4]
	magnitude, x, positive := a.newVec(), a.newVec(), a.newVec()
	d, factor := pair{a.newVec(), a.newVec()}, pair{a.newVec(), a.newVec()}
	a.allBits(magnitude)
	a.shiftRight(magnitude, 1) // but for the sign
	inProducts(a, a.newReg(), coef, [][2]string{scaledInput, scaledDY, scaledOutput}, func() {}, func() {}, nil, false, func(at []mem, tail bool) {
		a.read(x, at[0], tail)
		a.positive(positive, x)
		a.op(opAnd, d[0], flip, positive)
		a.op(opXor, d[0], d[0], below)
		a.widen(factor, d[0])
		a.widen(d, x)
		for h := range d {
			a.op(opMul64, d[h], d[h], factor[h])
		}
		product, base, dy := d[0], factor[0], factor[1]
		a.narrow(product, d, d[1])
		a.op(opAnd, base, x, positive)
		a.op(opAnd, base, base, gate)
		a.op(opOr, base, base, zero)
		a.add(product, base, product)
		a.op(opAnd, x, x, magnitude)
		a.op(opGTInt, x, x, most)
		a.read(dy, at[1], tail)
		a.op(opAnd, dy, dy, x)
		a.op(opAndNot, product, x, product)
		a.op(opOr, product, product, dy)
		a.write([]vec{product}, func(int) mem { return at[2] }, tail)
	})
}

// allBits sets all bits.
func (a *asm) allBits(v vec) {
	a.zero(v)
	a.op(opLE, v, v, v)
}

// times computes y = float32(x*factor), with the product in float64.
func times(a *asm, _ variant) {
	factor, d, d64 := a.newVec(), a.newVec(), pair{a.newVec(), a.newVec()}
	t := a.newReg()
	a.argAddr(t, "factor")
	a.broadcast64(factor, mem{base: t})
	inProducts(a, t, a.newReg(), [][2]string{scaledInput, scaledOutput}, func() {}, func() {}, nil, false, func(at []mem, tail bool) {
		if tail {
			a.loadTail(d, at[0])
			a.widen(d64, d)
		} else {
			a.widenFrom(d64, at[0])
		}
		for _, v := range d64 {
			a.op(opMul64, v, v, factor)
		}
		a.narrow(d, d64, d64[1])
		a.write([]vec{d}, func(int) mem { return at[1] }, tail)
	})
}
