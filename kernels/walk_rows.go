package main

// walkRows: the values of a channel are adjacent. In every row there are groups
// of 4 vectors, then single ones, then a part.
func walkRows(a *asm, b body) {
	coef, rows := a.newArg("coef"), a.newArg("rows")
	gap, count := a.newReg(), a.newReg()

	a.arg(gap, "n")
	a.move(count, gap)
	a.andImm(count, lanes-1)
	a.part(count) // the same in every row
	a.arg(count, "stride")
	a.subReg(count, gap)
	a.move(gap, count)
	a.shiftLeft(gap, floatShift) // from the end of a row to the next
	// A pipelined kernel takes the sums of one channel, which stay in their
	// registers. Others have those of a channel per row, and begin anew with the
	// first for every image.
	var acc, more reg
	perRow := b.sums != nil && !b.piped
	switch {
	case perRow:
		acc, more = a.newArg("acc"), a.newArg("more")
	case b.sums != nil:
		a.arg(count, "acc")
		b.loadSums(a, count)
	}
	a.coef = coef
	a.loadConst = func(dst vec, field int) { a.broadcast(dst, mem{base: coef, off: field * floatBytes}) }
	var fetch, left reg
	if b.fetch != nil {
		fetch, left = a.newReg(), a.newReg()
	}

	row, group, rest, single, part, next := a.newLabel("row"), a.newLabel("group"), a.newLabel("rest"), a.newLabel("single"), a.newLabel("part"), a.newLabel("next")
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }

	a.label(row)
	for f, c := range b.coef {
		if c != unused {
			a.broadcast(c, mem{base: coef, off: f * floatBytes})
		}
	}
	if perRow {
		b.loadSums(a, acc)
	}
	if b.fetch != nil {
		a.arg(fetch, "fetch")
		a.arg(left, "fetchLeft")
	}
	a.arg(count, "n")
	a.subImm(count, groupValues)
	a.branch(ifLess, rest)

	a.label(group)
	for _, t := range b.fetch {
		a.prefetch(mem{base: t, index: fetch, scale: 1})
		a.prefetch(mem{base: t, index: fetch, scale: 1, off: cacheLine})
	}
	if b.fetch != nil { // at the end of a row go on with the next
		same := a.newLabel("same")
		a.subImm(left, groupValues)
		a.branch(ifNotLess, same)
		a.addReg(fetch, gap)
		a.addImm(left, noMore)
		a.label(same)
	}
	b.four(at, false)
	b.advanceImm(a, groupSize*vecBytes)
	a.subImm(count, groupValues)
	a.branch(ifNotLess, group)

	a.label(rest)
	a.addImm(count, groupValues)
	a.subImm(count, lanes)
	a.branch(ifLess, part)

	a.label(single)
	for _, t := range b.fetch {
		a.prefetch(mem{base: t, index: fetch, scale: 1})
	}
	b.one(at, false)
	b.advanceImm(a, vecBytes)
	a.subImm(count, lanes)
	a.branch(ifNotLess, single)

	a.label(part)
	a.andImm(count, lanes-1)
	a.branch(ifZero, next)
	b.one(at, true)
	a.shiftLeft(count, floatShift)
	b.advance(a, count)

	a.label(next)
	b.advance(a, gap)
	if perRow {
		b.storeSums(a, acc)
		a.arg(count, "accStep")
		a.shiftLeft(count, floatShift)
		a.addReg(acc, count)
	}
	if !b.piped {
		a.arg(count, "coefStep")
		a.shiftLeft(count, floatShift)
		a.addReg(coef, count)
	}
	a.subImm(rows, 1)
	a.branch(ifNotZero, row)

	switch {
	case perRow:
		done := a.newLabel("done")
		a.subImm(more, 1)
		a.branch(ifLess, done)
		a.arg(count, "imageGap")
		a.shiftLeft(count, floatShift)
		b.advance(a, count)
		a.arg(coef, "coef")
		a.arg(acc, "acc")
		a.arg(rows, "rows")
		a.jump(row)
		a.label(done)
	case b.sums != nil:
		a.arg(count, "acc")
		b.storeSums(a, count)
	}
}
