package main

// walkOutputs is the walk that writes outputs in rows. The rows of an image are
// adjacent, one channel after the other, and vectors may have values of two rows. Each row
// has quads of 4 vectors, single vectors, and one that it shares with the next row, whose
// lanes use the constants of both. The image ends with a tail.
//
// With non-temporal stores an image begins with the values before the first cache line, and
// its tail is all that lies behind the last whole line. Both have plain stores, since other
// calls write the rest of these lines, and the processor would write each part to memory by
// itself. The walk stops only at the start of a line or of an image.
func walkOutputs(a *asm, b body) {
	r := outputWalk{b: b, coef: a.newReg(), rows: a.newReg(), left: a.newReg(), budget: a.newReg(), t: a.newReg(), u: a.newReg(), other: a.newVec()}
	a.coef = r.coef
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }
	image, row, quad, rest, single := a.newLabel("image"), a.newLabel("row"), a.newLabel("quad"), a.newLabel("rest"), a.newLabel("single")
	border, stop, save := a.newLabel("border"), a.newLabel("stop"), a.newLabel("save")
	r.lines = (a.flags|a.asked)&withStream != 0
	r.start, r.part, r.tail = row, a.newLabel("part"), a.newLabel("tail")
	if r.lines {
		r.start = a.newLabel("start")
	}

	b.resume(a, r.t)
	a.pointer(r.coef, "coef", "coefAt", floatShift, r.t)
	a.arg(r.rows, "rowsLeft")
	a.arg(r.left, "left")
	a.arg(r.budget, "budget")
	a.addImm(r.budget, -1)
	r.begin(a)
	a.arg(r.t, "n")
	a.ifUnequal(r.t, r.left, row)
	a.arg(r.t, "rows")
	a.ifUnequal(r.t, r.rows, row)

	a.label(image)
	a.choose(withStream, func() {
		a.subImm(r.budget, 0) // images may be too short to have the start of a line
		a.branch(ifLess, save)
		r.head(a)
	}, nil)
	if r.lines {
		a.label(r.start)
		a.choose(withStream, func() { r.keepTail(a, row) }, nil)
	}
	a.label(row)
	a.subImm(r.budget, 0)
	a.branch(ifNotLess, quad)
	a.label(stop)
	a.choose(withStream, func() { // only between two cache lines: half a line would be written by itself
		a.move(r.t, b.output)
		a.andImm(r.t, cacheLine-1)
		a.branch(ifZero, save)
		a.subImm(r.left, lanes)
		a.branch(ifLess, border)
		a.jump(single)
	}, func() { a.jump(save) })
	a.label(quad)
	a.subImm(r.left, quadValues)
	a.branch(ifLess, rest)
	b.four(at, false)
	b.advanceImm(a, quadSize*vecBytes)
	a.subImm(r.budget, quadValues)
	a.branch(ifNotLess, quad)
	a.jump(stop)

	a.label(rest)
	a.addImm(r.left, quadValues)
	a.subImm(r.left, lanes)
	a.branch(ifLess, border)
	a.label(single)
	b.one(at, false)
	b.advanceImm(a, vecBytes)
	a.subImm(r.budget, lanes)
	a.branch(ifLess, stop)
	a.subImm(r.left, lanes)
	a.branch(ifNotLess, single)

	a.label(border)
	r.border(a)
	b.advanceArg(a, "imageGap", r.left)
	a.addImm(r.coef, coefLen*floatBytes)
	a.arg(r.left, "coefImage")
	a.shiftLeft(r.left, floatShift)
	a.addReg(r.coef, r.left)
	a.arg(r.rows, "rows")
	a.arg(r.left, "n")
	a.set(r.t, 1)
	a.reduceArg("images", r.t, r.u)
	a.branch(ifZero, save)
	r.begin(a)
	a.jump(image)

	a.label(save)
	a.storeArg(r.left, "left", r.u)
	a.storeArg(r.rows, "rowsLeft", r.u)
	a.savePointer(b.tensors[0], b.first, "at", floatShift, r.t, r.u)
	a.savePointer(r.coef, "coef", "coefAt", floatShift, r.t, r.u)
	a.end()
}

// loadConst loads a constant.
type loadConst func(dst vec, field int)

// outputWalk has the registers of walkOutputs.
type outputWalk struct {
	b            body
	coef, rows   reg // the constants of the row, and the number of rows left of the image
	left, budget reg // number of values left of the row, and of the budget
	t, u         reg // temporaries
	other        vec // a temporary while constants are loaded

	lines             bool   // the kernel may have non-temporal stores
	start, part, tail string // labels: the start of a row, some values that are no vector, and the tail
}

// load loads the constants of a row.
func (r *outputWalk) load(a *asm, with loadConst) {
	a.loadConst = with
	for f, c := range r.b.coef {
		if c != unused {
			with(c, f)
		}
	}
}

// begin begins a row: it loads the constants.
func (r *outputWalk) begin(a *asm) { r.load(a, r.plain(a)) }

// plain loads the constants of the row.
func (r *outputWalk) plain(a *asm) loadConst {
	return func(dst vec, f int) { a.broadcast(dst, mem{base: r.coef, off: f * floatBytes}) }
}

// shared loads the constants of a vector with values of two rows: of the row before in
// the lanes of the tail, and of the row in the others.
func (r *outputWalk) shared(a *asm) loadConst {
	return func(dst vec, f int) {
		a.broadcast(dst, mem{base: r.coef, off: (f - coefLen) * floatBytes})
		a.broadcast(r.other, mem{base: r.coef, off: f * floatBytes})
		a.elsewhere(dst, r.other)
	}
}

// vector processes a vector, or a tail, whose constants have been loaded.
func (r *outputWalk) vector(a *asm, with loadConst, tail bool) {
	a.loadConst = with // for a kernel that loads them itself
	r.b.one(func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }, tail)
}

// head processes the values before the first cache line of the outputs, as long as the row
// has values: those before the next vector, and then perhaps a vector.
func (r *outputWalk) head(a *asm) {
	again := a.newLabel("head")
	a.label(again)
	a.move(r.t, r.b.output)
	a.negate(r.t)
	a.shiftDown(r.t, floatShift)
	a.andImm(r.t, cacheLine/floatBytes-1)
	a.branch(ifZero, r.start)
	a.label(r.part) // t values, or so many of them that a multiple of 8 is left
	a.addImm(r.t, -1)
	a.andImm(r.t, lanes-1)
	a.addImm(r.t, 1)
	a.least(r.t, r.left)
	a.move(r.u, r.t)
	a.tail(r.t)
	r.vector(a, r.plain(a), true)
	a.subReg(r.budget, r.u)
	a.subReg(r.left, r.u)
	a.shiftLeft(r.u, floatShift)
	r.b.advance(a, r.u)
	a.subImm(r.rows, 0)
	a.branch(ifZero, r.tail)
	a.move(r.t, r.left)
	a.subImm(r.t, lanes) // the vector must not reach into the next row
	a.branch(ifNotLess, again)
}

// keepTail takes the values behind the last whole cache line of the outputs from the last row
// of an image, for the tail. It goes to row if the row is not the last.
func (r *outputWalk) keepTail(a *asm, row string) {
	a.set(r.t, 1)
	a.ifUnequal(r.t, r.rows, row)
	a.move(r.t, r.left)
	a.shiftLeft(r.t, floatShift)
	a.addReg(r.t, r.b.output)
	a.shiftDown(r.t, floatShift)
	a.andImm(r.t, cacheLine/floatBytes-1)
	a.least(r.t, r.left)
	a.storeArg(r.t, "tail", r.u)
	a.subReg(r.left, r.t)
}

// border goes on to the next row. If values are left of the row, which are fewer than
// 8, it processes a vector that the two rows share. After the last row it processes a
// tail. left is the number of values minus 8.
func (r *outputWalk) border(a *asm) {
	next, begin, last, end := a.newLabel("next"), a.newLabel("begin"), a.newLabel("last"), a.newLabel("end")
	a.subImm(r.rows, 1)
	a.branch(ifZero, last)
	a.addImm(r.coef, coefLen*floatBytes)
	a.arg(r.t, "n")
	a.addReg(r.t, r.left) // values of the next row without those of the shared vector
	a.andImm(r.left, lanes-1)
	a.branch(ifZero, next)
	a.addImm(r.budget, -lanes)
	a.tail(r.left)
	r.load(a, r.shared(a))
	r.vector(a, r.shared(a), false)
	r.b.advanceImm(a, vecBytes)
	a.move(r.left, r.t)
	a.label(begin)
	r.begin(a)
	a.jump(r.start)
	a.label(next)
	a.arg(r.left, "n")
	a.jump(begin)

	a.label(last)
	a.andImm(r.left, lanes-1)
	if r.lines {
		a.arg(r.t, "tail")
		a.addReg(r.left, r.t)
		a.label(r.tail)
		a.move(r.t, r.left)
		a.subImm(r.t, 0)
		a.branch(ifNotZero, r.part)
		a.label(end)
		return
	}
	a.branch(ifZero, end)
	a.addImm(r.budget, -lanes) // images of one vector may have nothing else to count
	a.move(r.t, r.left)
	a.tail(r.t)
	r.vector(a, r.plain(a), true)
	a.shiftLeft(r.left, floatShift)
	r.b.advance(a, r.left)
	a.label(end)
}
