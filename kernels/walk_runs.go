package main

// walkRuns writes outputs in rows. The rows of an image are adjacent, one channel after
// the other, so that vectors go across them. For non-temporal stores there are the
// values in front of a whole vector; then in every row groups of 4 vectors, single ones,
// and a vector that it shares with the next row, whose lanes have the constants of
// either; and a part at the end of the image.
func walkRuns(a *asm, b body) {
	r := runWalk{b: b, coef: a.newReg(), rows: a.newReg(), left: a.newReg(), budget: a.newReg(), t: a.newReg(), u: a.newReg(), other: a.newVec()}
	a.coef = r.coef
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }
	image, row, group, rest, single := a.newLabel("image"), a.newLabel("row"), a.newLabel("group"), a.newLabel("rest"), a.newLabel("single")
	border, save := a.newLabel("border"), a.newLabel("save")

	b.resume(a, r.t)
	a.pointer(r.coef, "coef", "coefAt", floatShift, r.t)
	a.arg(r.rows, "rowsLeft")
	a.arg(r.left, "left")
	a.arg(r.budget, "budget")
	a.addImm(r.budget, -1)
	r.begin(a)
	a.arg(r.t, "n")
	a.subReg(r.t, r.left)
	a.subImm(r.t, 0)
	a.branch(ifNotZero, row)
	a.arg(r.t, "rows")
	a.subReg(r.t, r.rows)
	a.subImm(r.t, 0)
	a.branch(ifNotZero, row)

	a.label(image)
	a.choose(withStream, func() { r.head(a, row) }, nil)
	a.label(row)
	a.subImm(r.budget, 0)
	a.branch(ifLess, save)
	a.subImm(r.left, groupValues)
	a.branch(ifLess, rest)
	a.label(group)
	b.four(at, false)
	b.advanceImm(a, groupSize*vecBytes)
	a.subImm(r.budget, groupValues)
	a.branch(ifLess, save)
	a.subImm(r.left, groupValues)
	a.branch(ifNotLess, group)

	a.label(rest)
	a.addImm(r.budget, -groupValues)
	a.addImm(r.left, groupValues)
	a.subImm(r.left, lanes)
	a.branch(ifLess, border)
	a.label(single)
	b.one(at, false)
	b.advanceImm(a, vecBytes)
	a.subImm(r.left, lanes)
	a.branch(ifNotLess, single)

	a.label(border)
	r.border(a, row)
	a.arg(r.t, "images")
	a.addImm(r.t, -1)
	a.storeArg(r.t, "images", r.u)
	b.advanceArg(a, "imageGap", r.left)
	a.arg(r.left, "coefImage")
	a.shiftLeft(r.left, floatShift)
	a.addReg(r.coef, r.left)
	a.addImm(r.coef, coefLen*floatBytes)
	a.arg(r.rows, "rows")
	a.arg(r.left, "n")
	a.subImm(r.t, 0)
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

// runWalk is walkRuns in the making.
type runWalk struct {
	b            body
	coef, rows   reg // the constants of the row, and how many rows are left of the image
	left, budget reg // values that are left of the row, and of the budget
	t, u         reg // temporaries
	other        vec // free when constants are loaded
}

// load loads the constants of a row.
func (r *runWalk) load(a *asm, with loadConst) {
	a.loadConst = with
	for f, c := range r.b.coef {
		if c != unused {
			with(c, f)
		}
	}
}

// one handles a vector.
func (r *runWalk) one(a *asm, with loadConst, part bool) {
	r.load(a, with)
	r.b.one(func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }, part)
}

// begin is what a row begins with.
func (r *runWalk) begin(a *asm) { r.load(a, r.plain(a)) }

// plain loads the constants of the row.
func (r *runWalk) plain(a *asm) loadConst {
	return func(dst vec, f int) { a.broadcast(dst, mem{base: r.coef, off: f * floatBytes}) }
}

// shared loads those of the part of a vector that belongs to the row before, and
// of the row elsewhere.
func (r *runWalk) shared(a *asm) loadConst {
	return func(dst vec, f int) {
		a.broadcast(dst, mem{base: r.coef, off: (f - coefLen) * floatBytes})
		a.broadcast(r.other, mem{base: r.coef, off: f * floatBytes})
		a.elsewhere(dst, r.other)
	}
}

// head handles what lies in front of the first whole vector of the outputs.
func (r *runWalk) head(a *asm, row string) {
	a.move(r.t, r.b.output)
	a.negate(r.t)
	a.shiftDown(r.t, floatShift)
	a.andImm(r.t, lanes-1)
	a.branch(ifZero, row)
	a.least(r.t, r.left)
	a.subReg(r.left, r.t)
	a.storeArg(r.t, "piece", r.u) // which this walk does not need
	a.part(r.t)
	r.one(a, r.plain(a), true)
	r.b.advanceArg(a, "piece", r.t)
	r.begin(a)
}

// border goes on to the next row with what is left of a row, less 8: with a vector
// that the two share, if it is not 0. Behind the last row it handles a part.
func (r *runWalk) border(a *asm, row string) {
	next, last, end := a.newLabel("next"), a.newLabel("last"), a.newLabel("end")
	a.subImm(r.rows, 1)
	a.branch(ifZero, last)
	a.addImm(r.coef, coefLen*floatBytes)
	a.arg(r.t, "n")
	a.addReg(r.t, r.left) // what the next row has, but for its part of the vector
	a.andImm(r.left, lanes-1)
	a.branch(ifZero, next)
	a.part(r.left)
	r.one(a, r.shared(a), false)
	r.b.advanceImm(a, vecBytes)
	a.move(r.left, r.t)
	r.begin(a)
	a.jump(row)
	a.label(next)
	a.arg(r.left, "n")
	r.begin(a)
	a.jump(row)
	a.label(last)
	a.andImm(r.left, lanes-1)
	a.branch(ifZero, end)
	a.move(r.t, r.left)
	a.part(r.t)
	r.one(a, r.plain(a), true)
	a.shiftLeft(r.left, floatShift)
	r.b.advance(a, r.left)
	a.label(end)
}
