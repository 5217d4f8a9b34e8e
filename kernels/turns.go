package main

import (
	"fmt"
	"strings"
)

// turns is two kernels in rows in one loop: one takes sums, the other writes outputs. The
// loop takes a quad of four vectors of the sums, then four vectors of the outputs, so
// that reads overlap with writes, line by line. It goes through the middle of rows only.
// The two kernels themselves take the ends of rows and of pieces.
type turns struct{ sums, writes variant }

// turnsKernels lists the kernels in turns: the pairs that call no function and have
// non-temporal stores. The Go file and the table of addresses have them in this order.
func turnsKernels() []turns {
	var list []turns
	for _, kernels := range [...][2]kernel{{kernelMoments, kernelNormalize}, {kernelGradSums, kernelInputGrad}} {
		sums, writes := familyOf(kernels[0]), familyOf(kernels[1])
		for _, act := range inline {
			sumsAct := act
			if len(sums.acts) == 1 { // moments, which no activation changes
				sumsAct = sums.acts[0]
			}
			for set := range withStream {
				if set&^writes.optional(act) == 0 {
					list = append(list, turns{
						variant{sums, inRows, sumsAct, set & sums.optional(sumsAct), 0, nil},
						variant{writes, inRows, act, set | withStream, 0, nil},
					})
				}
			}
		}
	}
	return list
}

func familyOf(k kernel) *family {
	for i := range families {
		if families[i].kernel == k {
			return &families[i]
		}
	}
	panic(fmt.Sprintf("no family of kernel %d", k))
}

func (p turns) name() string {
	return kernelNames[p.sums.family.kernel] + "With" + capital(p.writes.name())
}

// emit prints the kernel. Its arguments a are for the sums, b for the outputs.
func (p turns) emit(a *asm) {
	sums, output := p.sums.body(a, "a+8"), body{}
	t, stride, stride3, step := a.newReg(), a.newReg(), a.newReg(), a.newReg()
	sums.resume(a, t)
	a.pointer(stride, "coef", "coefAt", floatShift, t)
	sums.constants(a, stride)
	a.argAddr(t, "partial")
	sums.loadSums(a, t)

	a.vecs = int(sums.temps[0]) // temporaries of the sums are free between two quads
	output = p.writes.body(a, "b+16")
	output.resume(a, t)
	a.pointer(stride, "coef", "coefAt", floatShift, t)
	a.storeArg(stride, "piece", t) // a field that is of no use to outputs

	a.holdArgs("a+8")
	a.arg(stride, "side")
	a.shiftLeft(stride, floatShift)
	a.move(stride3, stride)
	a.addReg(stride3, stride)
	a.addReg(stride3, stride)
	a.arg(step, "step")
	a.shiftLeft(step, floatShift)
	a.holdArgs("b+16")
	side := func(t reg, j int) mem {
		return [quadSize]mem{{base: t}, {base: t, index: stride, scale: 1}, {base: t, index: stride, scale: 2}, {base: t, index: stride3, scale: 1}}[j]
	}
	adjacent := func(t reg, j int) mem { return mem{base: t, off: j * vecBytes} }

	loop := a.newLabel("quad")
	a.label(loop)
	a.flags = p.sums.flags
	sums.four(side, false)
	sums.advance(a, step)
	a.flags = p.writes.flags
	a.arg(t, "piece")
	output.constants(a, t)
	output.four(adjacent, false)
	output.advanceImm(a, quadSize*vecBytes)
	a.arg(t, "budget")
	a.addImm(t, -1)
	a.storeArg(t, "budget", t)
	a.subImm(t, 0)
	a.branch(ifNotZero, loop)

	a.holdArgs("a+8")
	a.argAddr(t, "partial")
	sums.storeSums(a, t)
	a.end()
}

// body returns the body of a variant, whose arguments are held.
func (v variant) body(a *asm, args string) (b body) {
	a.holdArgs(args)
	a.flags, a.layout = v.flags, v.layout
	v.through = func(_ *asm, made body) { b = made }
	v.family.emit(a, v)
	return b
}

// turnsText returns the text of the kernels in turns, and their table.
func turnsText(on target) string {
	var text strings.Builder
	var symbols []string
	for _, p := range turnsKernels() {
		a := newAsm(on, p.name(), "kernelArgs")
		p.emit(a)
		symbols = append(symbols, local(p.name()))
		fmt.Fprintf(&text, "// func %s(id int, a, b *kernelArgs)\nTEXT %s(SB), NOSPLIT, $0-24\n%s", p.name(), local(p.name()), a.buf.String())
	}
	text.WriteString(table(on, "simdTurns(id int, a, b *kernelArgs)", "24", symbols, func(a *asm, table string, n int) { a.jumpByTable(table, n) }))
	return text.String()
}

// turnsDeclaration declares turnsKernels and simdTurns. Only an instruction set with
// non-temporal stores has kernels in turns.
func turnsDeclaration(there bool) string {
	if !there {
		return `
// turnsKernels is empty: no kernels take turns in one loop.
var turnsKernels []kernelPair

func simdTurns(id int, a, b *kernelArgs) { panic("batchnorm: no kernels that take turns in this build") }
`
	}
	var list strings.Builder
	for _, p := range turnsKernels() {
		fmt.Fprintf(&list, "{%s, %s},\n", p.sums.goID(), p.writes.goID())
	}
	return `
// turnsKernels lists the kernels that take turns in one loop, each as the two kernels
// whose work it does.
var turnsKernels = []kernelPair{
` + list.String() + `}

// simdTurns runs the kernel with the given index in turnsKernels: a has the arguments of
// the sums, b those of the outputs.
//
//go:noescape
func simdTurns(id int, a, b *kernelArgs)
`
}
