package main

// walkRuns: rows of one channel after the other are adjacent. In every image there
// are the values in front of a whole vector; then in every row groups of 4 vectors,
// single ones, and a vector that it shares with the next row, whose lanes have the
// constants of either; and a part at the end.
func walkRuns(a *asm, b body) {
	coef, rows := a.newArg("coef"), a.newArg("rows")
	count, t := a.newReg(), a.newReg()
	more, fetch := a.newArg("more"), a.newArg("fetch")
	var fetchApart reg
	if b.apart != nil {
		fetchApart = a.newArg("fetchApart")
	}
	other := a.newVec()
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }
	a.coef = coef
	r := rowEnd{coef: coef, rows: rows, left: count, t: t, other: other}
	load := func(with loadConst) {
		a.loadConst = with
		for f, c := range b.coef {
			if c != unused {
				with(c, f)
			}
		}
	}
	r.one = func(with loadConst, part bool) {
		load(with)
		b.one(at, part)
	}
	r.forward = func() { b.advanceImm(a, vecBytes) }
	r.begin = func() { load(r.plain(a)) }
	prefetch := func(bytes int) {
		for off := 0; off < bytes; off += cacheLine {
			for _, t := range b.fetch {
				a.prefetch(mem{base: t, index: fetch, scale: 1, off: off})
			}
			for _, t := range b.apart {
				a.prefetch(mem{base: t, index: fetchApart, scale: 1, off: off})
			}
		}
	}

	image, row, group, rest, single := a.newLabel("image"), a.newLabel("row"), a.newLabel("group"), a.newLabel("rest"), a.newLabel("single")
	border, done := a.newLabel("border"), a.newLabel("done")

	a.label(image)
	r.begin()
	r.head(a, &b, row)
	a.label(row)
	a.subImm(count, groupValues)
	a.branch(ifLess, rest)
	a.label(group)
	prefetch(groupSize * vecBytes)
	b.four(at, false)
	b.advanceImm(a, groupSize*vecBytes)
	a.subImm(count, groupValues)
	a.branch(ifNotLess, group)

	a.label(rest)
	a.addImm(count, groupValues)
	a.subImm(count, lanes)
	a.branch(ifLess, border)
	a.label(single)
	prefetch(vecBytes)
	b.one(at, false)
	b.advanceImm(a, vecBytes)
	a.subImm(count, lanes)
	a.branch(ifNotLess, single)

	a.label(border)
	r.emit(a, &b, row)
	a.subImm(more, 1)
	a.branch(ifLess, done)
	a.arg(count, "imageGap")
	a.shiftLeft(count, floatShift)
	b.advance(a, count)
	a.arg(coef, "coef")
	a.arg(rows, "rows")
	a.jump(image)
	a.label(done)
}

// loadConst loads a constant.
type loadConst func(dst vec, field int)

// rowEnd is where a row of runs ends and the next begins.
type rowEnd struct {
	coef, rows reg // the constants of the row, and how many rows there are yet
	left, t    reg // values that are left of the row, and a temporary
	other      vec // free when constants are loaded

	one     func(with loadConst, part bool) // handles a vector
	forward func()                          // moves on by a vector
	begin   func()                          // what a row begins with
}

// plain loads the constants of the row.
func (r *rowEnd) plain(a *asm) loadConst {
	return func(dst vec, f int) { a.broadcast(dst, mem{base: r.coef, off: f * floatBytes}) }
}

// shared loads those of the part of a vector that belongs to the row before, and
// of the row elsewhere.
func (r *rowEnd) shared(a *asm) loadConst {
	return func(dst vec, f int) {
		a.broadcast(dst, mem{base: r.coef, off: (f - coefLen) * floatBytes})
		a.broadcast(r.other, mem{base: r.coef, off: f * floatBytes})
		a.elsewhere(dst, r.other)
	}
}

// head handles what lies in front of the first whole vector, leaves it in t, in
// bytes, and sets what is left of the first row. It goes to row if there is nothing.
func (r *rowEnd) head(a *asm, b *body, row string) {
	a.arg(r.left, "n")
	a.arg(r.t, "head")
	a.subReg(r.left, r.t)
	a.andImm(r.t, lanes-1)
	a.branch(ifZero, row)
	a.part(r.t)
	r.one(r.plain(a), true)
	a.arg(r.t, "head")
	a.shiftLeft(r.t, floatShift)
	b.advance(a, r.t)
}

// emit goes on to the next row with what is left of a row, less 8: with a vector
// that the two share, if it is not 0. Behind the last row it handles a part.
func (r *rowEnd) emit(a *asm, b *body, row string) {
	next, last, end := a.newLabel("next"), a.newLabel("last"), a.newLabel("end")
	a.subImm(r.rows, 1)
	a.branch(ifZero, last)
	a.addImm(r.coef, coefLen*floatBytes)
	a.arg(r.t, "n")
	a.addReg(r.t, r.left) // what the next row has, but for its part of the vector
	a.andImm(r.left, lanes-1)
	a.branch(ifZero, next)
	a.part(r.left)
	r.one(r.shared(a), false)
	r.forward()
	a.move(r.left, r.t)
	r.begin()
	a.jump(row)
	a.label(next)
	a.arg(r.left, "n")
	r.begin()
	a.jump(row)
	a.label(last)
	a.andImm(r.left, lanes-1)
	a.branch(ifZero, end)
	a.move(r.t, r.left)
	a.part(r.t)
	r.one(r.plain(a), true)
	a.shiftLeft(r.left, floatShift)
	b.advance(a, r.left)
	a.label(end)
}

// pipeRuns is the pipelined walk of runs: the next channels, whose sums are taken,
// are those of rows next floats further on, as many as there are. Their constants
// stand behind their sums in acc. There is one image; the sums go along the rows
// from where each begins, in the order that walkRows has, and the vectors that are
// applied across them, so that after what the two have in common of a row each has
// a rest of its own. other is a vector that is free when constants are loaded.
func (b *body) pipeRuns(a *asm, o *operands, sumFields, applyFields []int, sum, apply [2]func(at address, part bool), other vec) {
	coef, acc, rows := a.newArg("coef"), a.newArg("acc"), a.newArg("rows")
	sums, left, t := a.newReg(), a.newReg(), a.newReg() // values of the row that are left to each
	ahead := a.newArg("next")                           // from what is applied to what is summed
	a.shiftLeft(ahead, floatShift)

	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }
	summed := func(dst vec, f int) { a.broadcast(dst, mem{base: acc, off: 2*vecBytes + f*floatBytes}) }
	sumNext := func(i int, part bool) {
		a.loadConst = summed
		o.load(a, sumFields...)
		sum[i](func(t reg, j int) mem { return indexed(at(t, j), ahead) }, part)
	}
	applyThis := func(i int, with loadConst, part bool) {
		a.loadConst = with
		o.load(a, applyFields...)
		apply[i](at, part)
	}
	prefetch := func(bytes int) {
		a.arg(t, "fetch")
		a.addReg(t, ahead)
		for off := 0; off < bytes; off += cacheLine {
			for _, r := range b.fetch {
				a.prefetch(mem{base: r, index: t, scale: 1, off: off})
			}
		}
	}
	r := rowEnd{coef: coef, rows: rows, left: left, t: t, other: other}
	r.one = func(with loadConst, part bool) { applyThis(0, with, part) }
	r.forward = func() { // what is summed stays where it is
		b.advanceImm(a, vecBytes)
		a.subImm(ahead, vecBytes)
	}
	r.begin = func() {}
	plain := r.plain(a)

	row, group, rest, few := a.newLabel("row"), a.newLabel("group"), a.newLabel("rest"), a.newLabel("few")
	single, part, summedUp := a.newLabel("single"), a.newLabel("part"), a.newLabel("summed")
	vector, border := a.newLabel("vector"), a.newLabel("border")

	r.head(a, b, row)
	a.subReg(ahead, t)

	a.label(row)
	b.loadSums(a, acc)
	a.arg(sums, "n")
	a.subImm(left, groupValues)
	a.branch(ifLess, rest)
	a.label(group)
	prefetch(groupSize * vecBytes)
	sumNext(1, false)
	applyThis(1, plain, false)
	b.advanceImm(a, groupSize*vecBytes)
	a.subImm(sums, groupValues)
	a.subImm(left, groupValues)
	a.branch(ifNotLess, group)
	a.label(rest)
	a.addImm(left, groupValues)

	// What is summed of the row is at most a group behind.
	a.subImm(sums, groupValues)
	a.branch(ifLess, few)
	sumNext(1, false)
	a.addImm(ahead, groupSize*vecBytes)
	a.subImm(sums, groupValues)
	a.label(few)
	a.addImm(sums, groupValues)
	a.subImm(sums, lanes)
	a.branch(ifLess, part)
	a.label(single)
	prefetch(vecBytes)
	sumNext(0, false)
	a.addImm(ahead, vecBytes)
	a.subImm(sums, lanes)
	a.branch(ifNotLess, single)
	a.label(part)
	a.andImm(sums, lanes-1)
	a.branch(ifZero, summedUp)
	a.move(t, sums)
	a.part(t)
	sumNext(0, true)
	a.shiftLeft(sums, floatShift)
	a.addReg(ahead, sums)
	a.label(summedUp)
	b.storeSums(a, acc)
	a.addImm(acc, 3*vecBytes)

	a.subImm(left, lanes)
	a.branch(ifLess, border)
	a.label(vector)
	applyThis(0, plain, false)
	r.forward()
	a.subImm(left, lanes)
	a.branch(ifNotLess, vector)
	a.label(border)
	r.emit(a, b, row)
}
