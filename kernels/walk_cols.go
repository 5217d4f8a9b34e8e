package main

// walkCols is the walk where the channels are adjacent. It takes quads of 4 rows, then
// single rows, of which the caller may want more. Within these it goes vector by vector,
// and ends with a tail. Rows with non-temporal stores may have columns with held outputs.
func walkCols(a *asm, b body) {
	coef := a.newReg()
	var acc reg
	if b.sums != nil {
		acc = a.newReg()
	}
	rows, values := a.newArg("rows"), a.newReg()
	stride, stride3 := a.newArg("stride"), a.newReg()
	var ahead reg
	if b.fetch != nil {
		ahead = a.newReg()
	}

	a.arg(values, "n")
	a.andImm(values, lanes-1)
	a.tail(values)
	var held *heldColumns
	if b.sums == nil && a.streams() {
		held = &heldColumns{b: &b, values: values, left: a.newReg(), at: a.newReg(), t: stride3} // quads are done before
		a.set(held.at, 0)
	}
	a.shiftLeft(stride, floatShift)
	a.move(stride3, stride)
	a.addReg(stride3, stride)
	a.addReg(stride3, stride)
	at := func(t reg, j int) mem {
		return [quadSize]mem{{base: t}, {base: t, index: stride, scale: 1}, {base: t, index: stride, scale: 2}, {base: t, index: stride3, scale: 1}}[j]
	}

	fetchAll := func() {
		lines := func(t reg) {
			a.prefetch(mem{base: t, index: ahead, scale: 1})
			a.prefetch(mem{base: t, index: ahead, scale: 1, off: cacheLine})
		}
		for _, t := range b.fetch {
			if b.residual != nil && t == *b.residual {
				a.choose(withResidual, func() { lines(t) }, nil)
			} else {
				lines(t)
			}
		}
	}

	// across processes some rows together, from the first column to the last.
	across := func(f func(at address, tail bool), holds bool, height ...reg) {
		column, tail, next := a.newLabel("column"), a.newLabel("tail"), a.newLabel("next")
		step := func(tail bool) {
			a.loadConst = func(dst vec, field int) {
				a.load(dst, mem{base: coef, off: field * vecBytes})
			}
			for f, c := range b.coef {
				if c != unused {
					a.loadConst(c, f)
				}
			}
			b.loadSums(a, acc)
			f(at, tail)
			b.storeSums(a, acc)
		}
		// vectors processes some vectors of a row, one or four that are given to a called function together.
		vectors := func(n int) {
			if n == 1 {
				step(false)
			} else {
				a.columns = true
				a.loadConst = func(dst vec, field int) {
					a.load(dst, mem{base: coef, off: (a.column*b.record + field) * vecBytes})
				}
				b.four(func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }, false)
				a.columns = false
			}
			b.advanceImm(a, n*vecBytes)
			a.addImm(coef, n*b.record*vecBytes)
		}
		// The next quad of rows is prefetched in the order of memory.
		fetch := b.sums != nil && len(height) > 1
		if fetch {
			a.arg(ahead, "fetch")
		}
		a.arg(coef, "coef")
		if b.sums != nil {
			a.arg(acc, "acc")
		}
		a.arg(values, "n")
		begin := ""
		if holds {
			begin = held.begin(a)
		}
		if b.calls && len(height) == 1 { // one call for 4 vectors of a row
			many, few := a.newLabel("many"), a.newLabel("few")
			a.subImm(values, quadValues)
			a.branch(ifLess, few)
			a.label(many)
			vectors(quadSize)
			a.subImm(values, quadValues)
			a.branch(ifNotLess, many)
			a.label(few)
			a.addImm(values, quadValues)
		}
		a.subImm(values, lanes)
		a.branch(ifLess, tail)

		a.label(column)
		if fetch {
			fetchAll()
			a.addImm(ahead, (quadSize-1)*vecBytes) // the pointers advance by one vector more
		}
		vectors(1)
		if b.sums != nil {
			a.addImm(acc, len(b.sums)*vecBytes)
		}
		a.subImm(values, lanes)
		a.branch(ifNotLess, column)

		a.label(tail)
		if holds {
			held.end(a, begin, vectors)
		}
		a.andImm(values, lanes-1)
		a.branch(ifZero, next)
		step(true)
		a.shiftLeft(values, floatShift)
		b.advance(a, values)

		a.label(next)
		a.arg(values, "n")
		a.shiftLeft(values, floatShift)
		for _, t := range b.tensors {
			a.subReg(t, values)
		}
		for _, h := range height {
			b.advance(a, h)
		}
	}

	quads, rest, done := a.newLabel("quads"), a.newLabel("rest"), a.newLabel("done")
	set, asked := a.flags, a.asked
	a.asked &^= withStream
	single := func(f func(dst, src reg)) {
		if b.sums == nil {
			a.arg(coef, "single")
			f(rows, coef)
		}
	}
	single(a.subReg)
	a.subImm(rows, quadSize)
	a.branch(ifLess, rest)
	a.label(quads)
	across(b.four, false, stride, stride3)
	a.subImm(rows, quadSize)
	a.branch(ifNotLess, quads)
	a.label(rest)
	a.addImm(rows, quadSize)
	single(a.addReg)

	singles := func(flags, tested flags) func() {
		return func() {
			a.flags, a.asked = flags, tested
			row := a.newLabel("row")
			a.label(row)
			across(b.one, held != nil && (flags|tested)&withStream != 0, stride)
			a.subImm(rows, 1)
			a.branch(ifNotLess, row)
			a.flags, a.asked = set, asked
		}
	}
	a.subImm(rows, 1)
	a.branch(ifLess, done)
	a.asked = asked
	if b.calls { // which take longer than a test
		singles(set, asked)()
	} else {
		a.choose(withStream, singles(set|withStream, a.asked&^withStream), singles(set, a.asked&^withStream))
	}
	a.label(done)
}

// heldColumns are columns of which some outputs are held elsewhere, as ../kernels.go says.
type heldColumns struct {
	b      *body
	values reg // of the walk: over held columns it has the address of their masks
	left   reg // held columns left of the row: 0 when they are done, or if there are none
	at     reg // offset of the next held outputs, in bytes
	t      reg // a temporary
}

// begin begins a row: values becomes the number of columns before held ones. It returns the label where the
// columns behind them begin.
func (h *heldColumns) begin(a *asm) (label string) {
	label = a.newLabel("segment")
	a.arg(h.left, "heldColumns")
	a.subImm(h.left, 0)
	a.branch(ifZero, label)
	a.arg(h.values, "before")
	a.label(label)
	return label
}

// end goes over the held columns, if those before them end here, and goes on with those behind. vectors processes one
// vector, or four for a called function.
func (h *heldColumns) end(a *asm, begin string, vectors func(n int)) {
	none, few, done := a.newLabel("none"), a.newLabel("few"), a.newLabel("done")
	a.subImm(h.left, 0)
	a.branch(ifZero, none)
	a.arg(h.values, "masks")
	if h.b.calls {
		a.subImm(h.left, quadValues)
		a.branch(ifLess, few)
		h.loop(a, quadSize, ifNotLess, vectors)
		a.label(few)
		a.addImm(h.left, quadValues)
		a.subImm(h.left, 0)
		a.branch(ifZero, done)
	}
	h.loop(a, 1, ifNotZero, vectors)
	a.label(done)
	a.arg(h.values, "behind")
	a.jump(begin)
	a.label(none)
}

// loop goes over some held vectors at a time, as long as the number of columns left fulfils a condition.
func (h *heldColumns) loop(a *asm, n int, more cond, vectors func(n int)) {
	again := a.newLabel("held")
	a.label(again)
	a.arg(h.t, "fetch")
	for _, t := range h.b.inputs {
		for line := 0; line < n*vecBytes; line += cacheLine {
			a.prefetch(mem{base: t, index: h.t, scale: 1, off: line})
		}
	}
	a.instead = h.instead
	vectors(n)
	a.instead = nil
	a.addImm(h.at, n*vecBytes)
	a.addImm(h.values, n*vecBytes)
	a.subImm(h.left, n*lanes)
	a.branch(more, again)
}

// instead replaces the lanes of an output that are held. j is the number of the vector in the loop.
func (h *heldColumns) instead(a *asm, j int, v vec, output reg) {
	name := "held"
	if output != h.b.output {
		name = "heldG"
	}
	mask, other := h.b.free[0], h.b.free[1]
	a.arg(h.t, name)
	a.load(mask, mem{base: h.values, off: j * vecBytes})
	a.load(other, mem{base: h.t, index: h.at, scale: 1, off: j * vecBytes})
	a.blend(v, mask, v, other)
}
