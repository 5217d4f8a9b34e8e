package main

import (
	"bytes"
	"slices"
	"strings"
)

// avx512 lowers the functions of activations to AVX-512, where a vec is a ZMM
// register: two vectors of a call. The kernels are those of AVX2.
type avx512 struct {
	amd64
	first int // the register of vec 0
	mask  int // a mask register
}

// avx512Functions has vectors that the kernel knows nothing of.
func avx512Functions() avx512 { return avx512{first: 16, mask: 1} }

func (l avx512) z(v vec) int { return l.first + int(v) }

// slow has the first two vectors of a call in one register and, if the call is for
// more, the others in another, with the instructions for the two in turns, which on
// a Zen 4 takes 6 to 11 % less than one after the other.
func (l avx512) slow(a *asm, z vec, body func()) {
	second := avx512{first: 0, mask: 2} // the registers that a function may use
	gather := func(l avx512, first vec) { a.printf("VINSERTF64X4 $1, Y%d, Z%d, Z%d", first+1, first, l.z(z)) }
	scatter := func(l avx512, first vec) {
		a.printf("VEXTRACTF64X4 $1, Z%d, Y%d", l.z(z), first+1)
		a.printf("VEXTRACTF64X4 $0, Z%d, Y%d", l.z(z), first)
	}
	record := func(l avx512) []string {
		outer, buf := a.lowering, a.buf
		a.lowering, a.buf = l, bytes.Buffer{}
		body()
		text := a.buf.String()
		a.lowering, a.buf = outer, buf
		return strings.SplitAfter(text, "\n")
	}
	more, done := a.newLabel("more"), a.newLabel("done")
	gather(l, firstArg)
	a.printf("CMPQ %d(BP), $%d", amd64Count, 2*vecBytes)
	a.printf("JGT %s", more)
	own := record(l)
	a.buf.WriteString(strings.Join(own, ""))
	a.printf("JMP %s", done)
	a.label(more)
	gather(second, firstArg+2)
	for i, line := range record(second) {
		a.buf.WriteString(own[i] + line)
	}
	scatter(second, firstArg+2)
	a.label(done)
	scatter(l, firstArg)
	a.printf("RET")
}

func (l avx512) op(a *asm, o op, dst, x, y vec) {
	switch {
	case o == opGT, o == opLE, o == opGE64:
		a.printf("%s Z%d, Z%d, K%d", amd64Ops[o], l.z(y), l.z(x), l.mask)
		a.printf("VPMOVM2D K%d, Z%d", l.mask, l.z(dst))
	case o == opOr && x == y:
		a.printf("VMOVAPS Z%d, Z%d", l.z(x), l.z(dst))
	default:
		a.printf("%s Z%d, Z%d, Z%d", amd64Ops[o], l.z(y), l.z(x), l.z(dst))
	}
}

func (l avx512) zero(a *asm, dst vec) { a.printf("VPXORD Z%d, Z%d, Z%[1]d", l.z(dst), l.z(dst)) }

func (l avx512) positive(a *asm, dst, x vec) {
	l.zero(a, dst)
	l.op(a, opGT, dst, x, dst)
}

// Constants and parameters are broadcast from memory.

func (l avx512) opConstant(a *asm, o op, dst, x vec, off int) {
	a.printf("%s.BCST %s<>+%d(SB), Z%d, Z%d", amd64Ops[o], a.tableName(), off, l.z(x), l.z(dst))
}

func (l avx512) constant(a *asm, dst vec, off int) {
	a.printf("VBROADCASTSD %s<>+%d(SB), Z%d", a.tableName(), off, l.z(dst))
}

func (l avx512) wideParam(a *asm, dst vec) {
	a.printf("VBROADCASTSD %d(BP), Z%d", amd64WideParam, l.z(dst))
}

// blend chooses bit by bit, by a table of what becomes of the bits of dst, of the
// second and of the third operand.
func (l avx512) blend(a *asm, dst, mask, x, y vec) {
	operands := []vec{dst}
	for _, v := range []vec{mask, x, y} {
		if v != dst {
			operands = append(operands, v)
		}
	}
	table := 0
	for i := range 8 {
		bit := func(v vec) int { return i >> (2 - slices.Index(operands, v)) & 1 }
		chosen := y
		if bit(mask) == 1 {
			chosen = x
		}
		table |= bit(chosen) << i
	}
	a.printf("VPTERNLOGD $%#x, Z%d, Z%d, Z%d", table, l.z(operands[2]), l.z(operands[1]), l.z(dst))
}

func (l avx512) widen(a *asm, lo, hi, src vec) {
	a.printf("VCVTPS2PD Y%d, Z%d", l.z(src), l.z(lo))
	a.printf("VEXTRACTF64X4 $1, Z%d, Y%d", l.z(src), l.z(hi))
	a.printf("VCVTPS2PD Y%d, Z%d", l.z(hi), l.z(hi))
}

func (l avx512) narrow(a *asm, dst, lo, hi vec) {
	a.printf("VCVTPD2PS Z%d, Y%d", l.z(lo), l.z(dst))
	a.printf("VCVTPD2PS Z%d, Y%d", l.z(hi), l.z(hi))
	a.printf("VINSERTF64X4 $1, Y%d, Z%d, Z%[2]d", l.z(hi), l.z(dst))
}

func (l avx512) shift52(a *asm, dst, x vec) {
	a.printf("VPSLLQ $52, Z%d, Z%d", l.z(x), l.z(dst))
}
