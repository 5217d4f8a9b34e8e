package main

import "strings"

// The kernels. What each computes is told by the comments in ../kernels.go and
// by ../kernels_generic.go.

// Fields of a record of constants (fieldM, ... in ../kernels.go).
const (
	fieldM = iota
	fieldA
	fieldB
	fieldK1
	fieldK2
	coefLen
)

const floatBytes = 4

// variant is a kernel for one layout, activation and set of operands.
type variant struct {
	name string // of the assembly function
	id   string // kernelID, as a Go expression
	emit func(a *asm)
}

// variants lists every kernel.
func variants() []variant {
	var list []variant
	for _, layout := range []string{"rows", "cols"} {
		add := func(kernel string, act activation, res, dres bool, emit func(*asm, walk)) {
			name := kernel + strings.ToUpper(layout[:1]) + layout[1:]
			if kernel != "moments" {
				name += act.name
			}
			flags := "0"
			if res {
				name += "Residual"
				flags += "|withResidual"
			}
			if dres {
				name += "DResidual"
				flags += "|withDResidual"
			}
			id := "((kernel" + strings.ToUpper(kernel[:1]) + kernel[1:] + "*2+int(" + layout + "))*int(numActs)+int(act" + act.name + "))*numFlags + (" + flags + ")"
			list = append(list, variant{name, id, func(a *asm) {
				if layout == "rows" {
					emit(a, walkRows)
				} else {
					emit(a, walkCols)
				}
			}})
		}
		add("moments", activations[0], false, false, moments)
		for _, act := range activations {
			for _, res := range []bool{false, true} {
				add("normalize", act, res, false, func(a *asm, w walk) { normalize(a, w, act, res) })
			}
			for _, res := range []bool{false, true} {
				if res && act.identity() {
					continue // nothing depends on z
				}
				add("gradSums", act, res, false, func(a *asm, w walk) { gradSums(a, w, act, res) })
				for _, dres := range []bool{false, true} {
					add("inputGrad", act, res, dres, func(a *asm, w walk) { inputGrad(a, w, act, res, dres) })
				}
			}
		}
	}
	return list
}

// body is what a walk needs to know of a kernel.
type body struct {
	tensors []reg // pointers, moved along together
	coef    []vec // constants, fields 0, 1, ... of the record; unused: not loaded
	record  int   // fields of the record
	sums    []vec // kept in acc; nil for a kernel without

	// one handles a vector of each tensor; four handles 4 that go to the same
	// sums. at gives the address of vector j in a tensor.
	one  func(at address, part bool)
	four func(at address, part bool)
}

const unused vec = -1

type address func(t reg, j int) mem

// walk is a way through the tensors.
type walk func(a *asm, b body)

// each makes four out of one, for kernels without sums.
func each(one func(at address, part bool)) func(address, bool) {
	return func(at address, part bool) {
		for j := range 4 {
			one(func(t reg, _ int) mem { return at(t, j) }, part)
		}
	}
}

// loadSums and storeSums move the sums from and to acc.
func (b *body) loadSums(a *asm, acc reg) {
	for i, s := range b.sums {
		a.load(s, mem{base: acc, off: i * vecBytes}, false)
	}
}

func (b *body) storeSums(a *asm, acc reg) {
	for i, s := range b.sums {
		a.store(s, mem{base: acc, off: i * vecBytes}, false)
	}
}

// advance moves the tensors along by the bytes in n.
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

// walkRows: the values of a channel are adjacent. In every row there are groups
// of 4 vectors, then single ones, then a part.
func walkRows(a *asm, b body) {
	coef, rows := a.newArg("coef"), a.newArg("rows")
	gap, count := a.newReg(), a.newReg()

	a.arg(gap, "n")
	a.move(count, gap)
	a.andImm(count, 7)
	a.part(a, count) // the same in every row
	a.arg(count, "stride")
	a.subReg(count, gap)
	a.move(gap, count)
	a.shiftLeft(gap, 2) // from the end of a row to the next
	if b.sums != nil {
		a.arg(count, "acc")
		b.loadSums(a, count)
	}

	row, group, rest, single, part, next := a.newLabel("row"), a.newLabel("group"), a.newLabel("rest"), a.newLabel("single"), a.newLabel("part"), a.newLabel("next")
	at := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }

	a.label(row)
	for f, c := range b.coef {
		if c != unused {
			a.broadcast(c, mem{base: coef, off: f * floatBytes})
		}
	}
	a.arg(count, "n")
	a.subImm(count, 32)
	a.branch(ifLess, rest)

	a.label(group)
	b.four(at, false)
	b.advanceImm(a, 4*vecBytes)
	a.subImm(count, 32)
	a.branch(ifNotLess, group)

	a.label(rest)
	a.addImm(count, 32)
	a.subImm(count, 8)
	a.branch(ifLess, part)

	a.label(single)
	b.one(at, false)
	b.advanceImm(a, vecBytes)
	a.subImm(count, 8)
	a.branch(ifNotLess, single)

	a.label(part)
	a.andImm(count, 7)
	a.branch(ifZero, next)
	b.one(at, true)
	a.shiftLeft(count, 2)
	b.advance(a, count)

	a.label(next)
	b.advance(a, gap)
	if b.sums == nil { // else there is one channel
		a.arg(count, "coefStep")
		a.shiftLeft(count, 2)
		a.addReg(coef, count)
	}
	a.subImm(rows, 1)
	a.branch(ifNotZero, row)

	if b.sums != nil {
		a.arg(count, "acc")
		b.storeSums(a, count)
	}
}

// walkCols: the channels are adjacent. There are groups of 4 rows, then single
// ones; in all of them it goes vector by vector, then there is a part.
func walkCols(a *asm, b body) {
	coef := a.newReg()
	var acc reg
	if b.sums != nil {
		acc = a.newReg()
	}
	rows, count := a.newArg("rows"), a.newReg()
	stride, stride3 := a.newArg("stride"), a.newReg()

	a.arg(count, "n")
	a.andImm(count, 7)
	a.part(a, count)
	a.shiftLeft(stride, 2)
	a.move(stride3, stride)
	a.addReg(stride3, stride)
	a.addReg(stride3, stride)
	at := func(t reg, j int) mem {
		return [4]mem{{base: t}, {base: t, index: stride, scale: 1}, {base: t, index: stride, scale: 2}, {base: t, index: stride3, scale: 1}}[j]
	}

	// across handles some rows together, from the first column to the last.
	across := func(f func(at address, part bool), height ...reg) {
		column, part, next := a.newLabel("column"), a.newLabel("part"), a.newLabel("next")
		step := func(part bool) {
			for f, c := range b.coef {
				if c != unused {
					a.load(c, mem{base: coef, off: f * vecBytes}, false)
				}
			}
			b.loadSums(a, acc)
			f(at, part)
			b.storeSums(a, acc)
		}
		a.arg(coef, "coef")
		if b.sums != nil {
			a.arg(acc, "acc")
		}
		a.arg(count, "n")
		a.subImm(count, 8)
		a.branch(ifLess, part)

		a.label(column)
		step(false)
		b.advanceImm(a, vecBytes)
		a.addImm(coef, b.record*vecBytes)
		if b.sums != nil {
			a.addImm(acc, len(b.sums)*vecBytes)
		}
		a.subImm(count, 8)
		a.branch(ifNotLess, column)

		a.label(part)
		a.andImm(count, 7)
		a.branch(ifZero, next)
		step(true)
		a.shiftLeft(count, 2)
		b.advance(a, count)

		a.label(next)
		a.arg(count, "n")
		a.shiftLeft(count, 2)
		for _, t := range b.tensors {
			a.subReg(t, count)
		}
		for _, h := range height {
			b.advance(a, h)
		}
	}

	groups, rest, single, done := a.newLabel("groups"), a.newLabel("rest"), a.newLabel("single"), a.newLabel("done")
	a.subImm(rows, 4)
	a.branch(ifLess, rest)
	a.label(groups)
	across(b.four, stride, stride3)
	a.subImm(rows, 4)
	a.branch(ifNotLess, groups)

	a.label(rest)
	a.addImm(rows, 4)
	a.subImm(rows, 1)
	a.branch(ifLess, done)
	a.label(single)
	across(b.one, stride)
	a.subImm(rows, 1)
	a.branch(ifNotLess, single)
	a.label(done)
}

// treeSum makes the two functions of a kernel with sums out of value, which
// computes what a vector adds to each sum, in registers of its own choice among
// the three sets it is given.
func treeSum(a *asm, sums []vec, sets [3][]vec, value func(m func(reg) mem, part bool, v []vec)) (one, four func(at address, part bool)) {
	addTo := func(dst, v []vec) {
		for i := range dst {
			a.add(dst[i], dst[i], v[i])
		}
	}
	get := func(at address, j int, part bool, v []vec) {
		value(func(t reg) mem { return at(t, j) }, part, v)
	}
	one = func(at address, part bool) {
		get(at, 0, part, sets[0])
		if part { // in rows the other lanes have sums of their own
			for _, v := range sets[0] {
				a.keepPart(a, v)
			}
		}
		addTo(sums, sets[0])
	}
	four = func(at address, part bool) {
		get(at, 0, part, sets[0])
		get(at, 1, part, sets[1])
		addTo(sets[0], sets[1])
		get(at, 2, part, sets[1])
		get(at, 3, part, sets[2])
		addTo(sets[1], sets[2])
		addTo(sets[0], sets[1])
		addTo(sums, sets[0])
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

func moments(a *asm, w walk) {
	x := a.newArg("x")
	k := a.newVec()
	sums := a.newVecs(2)
	sets := [3][]vec{a.newVecs(2), a.newVecs(2), a.newVecs(2)}
	b := body{tensors: []reg{x}, coef: []vec{k}, record: 1, sums: sums}
	b.one, b.four = treeSum(a, sums, sets, func(m func(reg) mem, part bool, v []vec) {
		a.load(v[0], m(x), part)
		a.sub(v[0], v[0], k)
		a.mul(v[1], v[0], v[0])
	})
	w(a, b)
}

// preActivation computes z from d = x-m, with the residual if res is there.
func preActivation(a *asm, z, d, scale, shift vec, res *reg, t vec, m func(reg) mem, part bool) {
	a.mul(z, d, scale)
	a.add(z, z, shift)
	if res != nil {
		a.load(t, m(*res), part)
		a.add(z, z, t)
	}
}

// residual returns the pointer to the residual, or nil without one, and adds it
// to the tensors.
func residual(a *asm, b *body, res bool) *reg {
	if !res {
		return nil
	}
	r := a.newArg("res")
	b.tensors = append(b.tensors, r)
	return &r
}

func normalize(a *asm, w walk, act activation, withRes bool) {
	x, y := a.newArg("x"), a.newArg("y")
	b := body{tensors: []reg{x, y}, record: coefLen}
	res := residual(a, &b, withRes)
	m, scale, shift := a.newVec(), a.newVec(), a.newVec()
	b.coef = []vec{fieldM: m, fieldA: scale, fieldB: shift}
	z, t := a.newVec(), a.newVec()
	temps := a.newVecs(act.temps)
	b.one = func(at address, part bool) {
		a.load(z, at(x, 0), part)
		a.sub(z, z, m)
		preActivation(a, z, z, scale, shift, res, t, func(r reg) mem { return at(r, 0) }, part)
		if !act.identity() {
			act.forward(a, z, temps)
		}
		a.store(z, at(y, 0), part)
	}
	b.four = each(b.one)
	w(a, b)
}

// gradient prepares the common part of the backward kernels: d = x-m and
// g = dy*act'(z). It appends the tensors it reads to b, and sets b.coef.
func gradient(a *asm, b *body, act activation, withRes bool) func(d, g vec, m func(reg) mem, part bool) {
	dy, x := a.newArg("dy"), a.newArg("x")
	b.tensors = append(b.tensors, dy, x)
	b.record = coefLen
	m := a.newVec()
	b.coef = []vec{fieldM: m, fieldA: unused, fieldB: unused, fieldK1: unused, fieldK2: unused}
	var res *reg
	var scale, shift, z, t vec
	var temps []vec
	if !act.identity() {
		res = residual(a, b, withRes)
		scale, shift, z, t = a.newVec(), a.newVec(), a.newVec(), a.newVec()
		b.coef[fieldA], b.coef[fieldB] = scale, shift
		temps = a.newVecs(act.temps)
	}
	return func(d, g vec, at func(reg) mem, part bool) {
		a.load(d, at(x), part)
		a.load(g, at(dy), part)
		a.sub(d, d, m)
		if !act.identity() {
			preActivation(a, z, d, scale, shift, res, t, at, part)
			act.backward(a, g, z, temps)
		}
	}
}

func gradSums(a *asm, w walk, act activation, withRes bool) {
	var b body
	grad := gradient(a, &b, act, withRes)
	b.sums = a.newVecs(2)
	sets := [3][]vec{a.newVecs(2), a.newVecs(2), a.newVecs(2)}
	b.one, b.four = treeSum(a, b.sums, sets, func(m func(reg) mem, part bool, v []vec) {
		grad(v[1], v[0], m, part)
		a.mul(v[1], v[0], v[1])
	})
	w(a, b)
}

func inputGrad(a *asm, w walk, act activation, withRes, withDRes bool) {
	var b body
	grad := gradient(a, &b, act, withRes)
	y := a.newArg("y")
	b.tensors = append(b.tensors, y)
	var dres reg
	if withDRes {
		dres = a.newArg("dres")
		b.tensors = append(b.tensors, dres)
	}
	if b.coef[fieldA] == unused {
		b.coef[fieldA] = a.newVec()
	}
	k1, k2 := a.newVec(), a.newVec()
	b.coef[fieldK1], b.coef[fieldK2] = k1, k2
	d, g, t := a.newVec(), a.newVec(), a.newVec()
	b.one = func(at address, part bool) {
		grad(d, g, func(r reg) mem { return at(r, 0) }, part)
		a.sub(t, g, k1)
		a.mul(d, d, k2)
		a.sub(t, t, d)
		a.mul(t, t, b.coef[fieldA])
		a.store(t, at(y, 0), part)
		if withDRes {
			a.store(g, at(dres, 0), part)
		}
	}
	b.four = each(b.one)
	w(a, b)
}
