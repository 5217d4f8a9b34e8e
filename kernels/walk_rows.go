package main

// Walks in rows: the values of a channel are adjacent. They stop after a number of
// values, and save their state in the arguments.

// Pieces of a row, in values, as in ../kernels.go.
const (
	pieceFour   = 64 * lanes
	pieceSingle = 64 * quadValues
)

// sumLen is the number of sums of a row, as in ../kernels.go.
const sumLen = 2 * lanes

// walkSums is the walk that takes sums, of four images side by side, as long as there
// are four, or of single images. One call does one or the other.
func walkSums(a *asm, b body) {
	s := sumWalk{b: b, coef: a.newReg(), acc: a.newReg(), values: a.newReg(), t: a.newReg(), u: a.newReg()}
	stride, stride3 := a.newReg(), a.newReg()
	a.coef = s.coef
	a.loadConst = func(dst vec, field int) { a.broadcast(dst, mem{base: s.coef, off: field * floatBytes}) }

	b.resume(a, s.t)
	a.pointer(s.coef, "coef", "coefAt", floatShift, s.t)

	single := a.newLabel("singles")
	a.arg(s.t, "images")
	a.subImm(s.t, quadSize)
	a.branch(ifLess, single)
	a.arg(s.t, "budget") // for all four images
	a.shiftDown(s.t, quadShift)
	a.storeArg(s.t, "budget", s.u)
	a.arg(stride, "stride")
	a.shiftLeft(stride, floatShift)
	a.move(stride3, stride)
	a.addReg(stride3, stride)
	a.addReg(stride3, stride)
	at := func(t reg, j int) mem {
		return [quadSize]mem{{base: t}, {base: t, index: stride, scale: 1}, {base: t, index: stride, scale: 2}, {base: t, index: stride3, scale: 1}}[j]
	}
	long := a.newLabel("long")
	a.arg(s.t, "n")
	a.subImm(s.t, shortRow+1)
	a.branch(ifNotLess, long)
	s.short(a, at)
	a.label(long)
	s.emit(a, quadSize, pieceFour, func() { s.four(a, at, func(done string, take func()) { s.tail(a, done, take) }) })

	a.label(single)
	s.emit(a, 1, pieceSingle, func() { s.linear(a) })
}

// sumWalk has the registers of walkSums: the constants and the sums of the row, the
// number of values left to sum, and two temporaries.
type sumWalk struct {
	b                       body
	coef, acc, values, t, u reg
}

// shortRow is the largest number of values of a row that is not interrupted, which
// saves instructions, and branches that are hard to predict. Longer rows are: outputs
// would wait too long for their turn.
const shortRow = pieceFour / 2

// short prints the walk over four images side by side whose rows are short: a row is one
// piece, and the walk stops between rows only. The sums go on from those in acc.
func (s *sumWalk) short(a *asm, at address) {
	row, again, ended, save, aligned := a.newLabel("row"), a.newLabel("again"), a.newLabel("ended"), a.newLabel("save"), a.newLabel("whole")
	values, t, u := s.values, s.t, s.u
	a.pointer(s.acc, "acc", "accAt", floatShift, t)
	a.arg(t, "n")
	a.andImm(t, lanes-1)
	a.branch(ifZero, aligned)
	a.tail(t)
	a.label(aligned)
	gap := a.newReg() // bytes from the last whole vector of a row to the next row
	a.arg(gap, "n")
	a.andImm(gap, lanes-1)
	a.arg(t, "rowGap")
	a.addReg(gap, t)
	a.shiftLeft(gap, floatShift)

	a.label(row)
	s.b.constants(a, s.coef)
	s.b.loadSums(a, s.acc)
	a.arg(values, "n")
	a.reduceArg("budget", values, u)
	s.four(a, at, func(done string, take func()) {
		a.andImm(values, lanes-1)
		a.branch(ifZero, done)
		take()
	})
	s.b.advance(a, gap)
	s.b.storeSums(a, s.acc)
	a.addImm(s.coef, s.b.record*floatBytes)
	a.addImm(s.acc, sumLen*floatBytes)
	a.set(values, 1)
	a.reduceArg("rowsLeft", values, u)
	a.branch(ifZero, again)
	a.arg(t, "budget")
	a.subImm(t, 1)
	a.branch(ifNotLess, row)
	a.jump(save)

	a.label(again)
	s.again(a, quadSize, "acc")
	a.subImm(t, quadSize)
	a.branch(ifLess, ended)
	a.arg(t, "budget")
	a.subImm(t, 1)
	a.branch(ifNotLess, row)
	a.jump(save)
	a.label(ended) // the images that are left are taken one by one
	a.set(t, pieceSingle)
	a.storeArg(t, "piece", u)
	a.label(save)
	s.save(a, "acc", floatShift)
	a.regs--
}

// again goes on with the images after the ones side by side. It leaves the number of
// images left in t. sums is the field with the sums of the rows.
func (s *sumWalk) again(a *asm, side int, sums string) {
	t, u := s.t, s.u
	a.arg(t, "rows")
	a.storeArg(t, "rowsLeft", u)
	a.arg(s.coef, "coef")
	a.arg(s.acc, sums)
	s.b.advanceArg(a, "imageGap", t)
	for range side - 1 {
		s.b.advanceArg(a, "stride", t)
	}
	a.arg(t, "images")
	a.addImm(t, -side)
	a.storeArg(t, "images", u)
}

// save saves the state of the walk, and ends the kernel. sums is the field with the sums
// of the rows, whose elements have 1<<shift bytes.
func (s *sumWalk) save(a *asm, sums string, shift int) {
	t, u := s.t, s.u
	a.savePointer(s.b.tensors[0], s.b.first, "at", floatShift, t, u)
	a.savePointer(s.coef, "coef", "coefAt", floatShift, t, u)
	a.savePointer(s.acc, sums, "accAt", shift, t, u)
	a.end()
}

// four sums values of four images: of each as many as the register values says. In front
// of the tail the register holds its number of values minus 8. tail calls take for it, or
// goes to done.
func (s *sumWalk) four(a *asm, at address, tail func(done string, take func())) {
	loop, rest, done := a.newLabel("four"), a.newLabel("tail"), a.newLabel("summed")
	a.subImm(s.values, lanes)
	a.branch(ifLess, rest)
	a.label(loop)
	s.b.four(at, false)
	s.b.advanceImm(a, vecBytes)
	a.subImm(s.values, lanes)
	a.branch(ifNotLess, loop)
	a.label(rest)
	tail(done, func() { s.b.four(at, true) })
	a.label(done)
}

// emit prints the walk over a number of images side by side, piece by piece. take sums
// values of each of them: as many as the register values says.
func (s *sumWalk) emit(a *asm, side, piece int, take func()) {
	next, flush, row, again, save := a.newLabel("next"), a.newLabel("flush"), a.newLabel("row"), a.newLabel("again"), a.newLabel("save")
	values, t, u := s.values, s.t, s.u
	constants := func() { s.b.constants(a, s.coef) }
	a.pointer(s.acc, "sums", "accAt", float64Shift, t)
	a.argAddr(t, "partial")
	s.b.loadSums(a, t)
	constants()
	a.label(next)
	a.arg(values, "left")
	a.arg(t, "piece")
	a.least(values, t)
	a.arg(t, "budget")
	a.least(values, t)
	a.subImm(values, 0)
	a.branch(ifZero, save)
	for _, field := range []string{"left", "piece", "budget"} {
		a.arg(t, field)
		a.subReg(t, values)
		if field == "budget" { // whole vectors, or quads, until the end of a row
			a.andImm(t, -quadValues/side)
		}
		a.storeArg(t, field, u)
	}
	take()

	a.arg(t, "left")
	a.subImm(t, 0)
	a.branch(ifZero, flush)
	a.arg(t, "piece")
	a.subImm(t, 0)
	a.branch(ifNotZero, next) // the budget is used up
	a.label(flush)
	s.flush(a)
	a.set(t, piece)
	a.storeArg(t, "piece", u)
	a.arg(t, "left")
	a.subImm(t, 0)
	a.branch(ifNotZero, next)

	a.label(row) // has ended
	a.arg(t, "n")
	a.storeArg(t, "left", u)
	s.b.advanceArg(a, "rowGap", t)
	a.addImm(s.coef, s.b.record*floatBytes)
	a.addImm(s.acc, sumLen*float64Bytes)
	a.arg(t, "rowsLeft")
	a.subImm(t, 1)
	a.branch(ifZero, again)
	a.storeArg(t, "rowsLeft", u)
	constants()
	a.jump(next)

	a.label(again)
	s.again(a, side, "sums")
	constants()
	if side > 1 { // images that are left are taken one by one
		a.subImm(t, side)
		a.branch(ifNotLess, next)
		a.set(t, pieceSingle)
		a.storeArg(t, "piece", u)
	} else {
		a.subImm(t, 0)
		a.branch(ifNotZero, next)
	}

	a.label(save)
	a.argAddr(t, "partial")
	s.b.storeSums(a, t)
	s.save(a, "sums", float64Shift)
}

// linear sums values of one image, as many as the register says: quads of 4 vectors,
// then single vectors, then a tail.
func (s *sumWalk) linear(a *asm) {
	quad, rest, single, tail, done := a.newLabel("quad"), a.newLabel("rest"), a.newLabel("single"), a.newLabel("tail"), a.newLabel("summed")
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }
	a.subImm(s.values, quadValues)
	a.branch(ifLess, rest)
	a.label(quad)
	s.b.four(at, false)
	s.b.advanceImm(a, quadSize*vecBytes)
	a.subImm(s.values, quadValues)
	a.branch(ifNotLess, quad)
	a.label(rest)
	a.addImm(s.values, quadValues)
	a.subImm(s.values, lanes)
	a.branch(ifLess, tail)
	a.label(single)
	s.b.one(at, false)
	s.b.advanceImm(a, vecBytes)
	a.subImm(s.values, lanes)
	a.branch(ifNotLess, single)
	a.label(tail)
	s.tail(a, done, func() { s.b.one(at, true) })
	a.label(done)
}

// tail sums the tail. The register values holds its number of values minus 8.
func (s *sumWalk) tail(a *asm, done string, take func()) {
	a.andImm(s.values, lanes-1)
	a.branch(ifZero, done)
	a.move(s.t, s.values)
	a.tail(s.t)
	take()
	a.shiftLeft(s.values, floatShift)
	s.b.advance(a, s.values)
}

// flush adds the sums of a piece to the float64 sums, and sets them to 0.
func (s *sumWalk) flush(a *asm) {
	halves := pair{s.b.temps[0], s.b.temps[1]}
	for i, sum := range s.b.sums {
		a.widen(halves, sum)
		for h, v := range halves {
			m := mem{base: s.acc, off: (2*i + h) * vecBytes}
			a.opMem(opAdd64, v, v, m, s.b.temps[2])
			a.store(v, m)
		}
		a.zero(sum)
	}
}

// resume advances the tensors to the saved state; t is a temporary.
func (b *body) resume(a *asm, t reg) {
	a.arg(t, "at")
	a.shiftLeft(t, floatShift)
	b.advance(a, t)
}

// constants loads the constants of a row.
func (b *body) constants(a *asm, coef reg) {
	for f, c := range b.coef {
		if c != unused {
			a.broadcast(c, mem{base: coef, off: f * floatBytes})
		}
	}
}

// advanceArg advances the tensors by a number of values in the arguments.
func (b *body) advanceArg(a *asm, field string, t reg) {
	a.arg(t, field)
	a.shiftLeft(t, floatShift)
	b.advance(a, t)
}

// pointer sets dst to the address of the element of a slice at an index, both in the
// arguments, and savePointer saves the index of a pointer. shift is from an index to
// bytes; t and u are temporaries.
func (a *asm) pointer(dst reg, slice, index string, shift int, t reg) {
	a.arg(dst, slice)
	a.arg(t, index)
	a.shiftLeft(t, shift)
	a.addReg(dst, t)
}

func (a *asm) savePointer(pointer reg, slice, index string, shift int, t, u reg) {
	a.arg(t, slice)
	a.subReg(pointer, t)
	a.shiftDown(pointer, shift)
	a.storeArg(pointer, index, u)
}
