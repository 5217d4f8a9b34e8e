package main

// walkCols is the walk where the channels are adjacent. It takes groups of 4 rows, then
// single rows, of which the caller may want more. Within these it goes vector by vector,
// and ends with a tail.
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
	// Non-temporal stores are in the order of memory: row by row, 4 vectors at a time.
	inOrder := (a.flags|a.asked)&withStream != 0
	if inOrder {
		a.arg(ahead, "fetch")
	}

	a.arg(values, "n")
	a.andImm(values, lanes-1)
	a.tail(values)
	a.shiftLeft(stride, floatShift)
	a.move(stride3, stride)
	a.addReg(stride3, stride)
	a.addReg(stride3, stride)
	at := func(t reg, j int) mem {
		return [groupSize]mem{{base: t}, {base: t, index: stride, scale: 1}, {base: t, index: stride, scale: 2}, {base: t, index: stride3, scale: 1}}[j]
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
	across := func(f func(at address, tail bool), height ...reg) {
		column, tail, next := a.newLabel("column"), a.newLabel("tail"), a.newLabel("next")
		// step processes column vector u from the pointers on. Constants that are used
		// once per row stay in memory.
		step := func(u int, tail bool) {
			clear(a.constants)
			a.loadConst = func(dst vec, field int) {
				a.load(dst, mem{base: coef, off: (u*b.record + field) * vecBytes})
			}
			for f, c := range b.coef {
				m := mem{base: coef, off: (u*b.record + f) * vecBytes}
				switch {
				case c == unused:
				case inOrder && f != fieldN:
					a.constants[f] = m
				default:
					a.load(c, m)
				}
			}
			b.loadSums(a, acc)
			f(func(t reg, j int) mem {
				m := at(t, j)
				m.off += u * vecBytes
				return m
			}, tail)
			b.storeSums(a, acc)
			clear(a.constants)
		}
		// The next group of rows is prefetched in the order of memory.
		fetch := b.sums != nil && len(height) > 1
		if fetch {
			a.arg(ahead, "fetch")
		}
		a.arg(coef, "coef")
		if b.sums != nil {
			a.arg(acc, "acc")
		}
		a.arg(values, "n")
		if inOrder && len(height) == 1 {
			many, few := a.newLabel("many"), a.newLabel("few")
			a.subImm(values, groupValues)
			a.branch(ifLess, few)
			a.label(many)
			fetchAll()
			if b.calls { // one call for all 4 vectors
				a.columns = true
				a.loadConst = func(dst vec, field int) {
					a.load(dst, mem{base: coef, off: (a.column*b.record + field) * vecBytes})
				}
				b.four(func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }, false)
				a.columns = false
			} else {
				for u := range groupSize {
					step(u, false)
				}
			}
			b.advanceImm(a, groupSize*vecBytes)
			a.addImm(coef, groupSize*b.record*vecBytes)
			a.subImm(values, groupValues)
			a.branch(ifNotLess, many)
			a.label(few)
			a.addImm(values, groupValues)
		}
		a.subImm(values, lanes)
		a.branch(ifLess, tail)

		a.label(column)
		if fetch {
			fetchAll()
			a.addImm(ahead, (groupSize-1)*vecBytes) // the pointers advance by one vector more
		}
		step(0, false)
		b.advanceImm(a, vecBytes)
		a.addImm(coef, b.record*vecBytes)
		if b.sums != nil {
			a.addImm(acc, len(b.sums)*vecBytes)
		}
		a.subImm(values, lanes)
		a.branch(ifNotLess, column)

		a.label(tail)
		a.andImm(values, lanes-1)
		a.branch(ifZero, next)
		step(0, true)
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

	groups, rest, single, done := a.newLabel("groups"), a.newLabel("rest"), a.newLabel("single"), a.newLabel("done")
	a.choose(withStream, nil, func() {
		asked := a.asked
		a.asked &^= withStream
		if b.sums == nil {
			a.arg(coef, "single")
			a.subReg(rows, coef)
		}
		a.subImm(rows, groupSize)
		a.branch(ifLess, rest)
		a.label(groups)
		across(b.four, stride, stride3)
		a.subImm(rows, groupSize)
		a.branch(ifNotLess, groups)
		a.label(rest)
		a.addImm(rows, groupSize)
		if b.sums == nil {
			a.arg(coef, "single")
			a.addReg(rows, coef)
		}
		a.asked = asked
	})
	a.subImm(rows, 1)
	a.branch(ifLess, done)
	a.label(single)
	across(b.one, stride)
	a.subImm(rows, 1)
	a.branch(ifNotLess, single)
	a.label(done)
}
