package main

import "fmt"

// amd64 lowers to AVX2: a vec is a YMM register. Y15 is the mask of a part.
type amd64 struct{}

// R14 is the goroutine, R15 belongs to position-independent code, BP is the
// frame pointer.
var amd64Regs = [...]string{"AX", "BX", "CX", "DX", "SI", "DI", "R8", "R9", "R10", "R11", "R12", "R13"}

func (amd64) arch() string { return "amd64" }
func (amd64) numRegs() int { return len(amd64Regs) }

func (amd64) header() string { return header() }

func (amd64) detect() string {
	return `import "golang.org/x/sys/cpu"

func detectSIMD() []Path {
	if cpu.X86.HasAVX && cpu.X86.HasAVX2 {
		return []Path{PathAVX2}
	}
	return nil
}

`
}

func (amd64) r(r reg) string {
	return amd64Regs[r]
}

func (l amd64) m(m mem) string {
	s := fmt.Sprintf("(%s)", l.r(m.base))
	if m.scale != 0 {
		s += fmt.Sprintf("(%s*%d)", l.r(m.index), m.scale)
	}
	if m.off != 0 {
		s = fmt.Sprint(m.off) + s
	}
	return s
}

func (l amd64) arg(a *asm, dst reg, field string) {
	a.printf("MOVQ a+0(FP), %s", l.r(dst))
	a.printf("MOVQ %s_%s(%s), %s", a.args, field, l.r(dst), l.r(dst))
}
func (l amd64) argAddr(a *asm, dst reg, field string) {
	a.printf("MOVQ a+0(FP), %s", l.r(dst))
	a.printf("ADDQ $%s_%s, %s", a.args, field, l.r(dst))
}
func (l amd64) move(a *asm, dst, src reg)        { a.printf("MOVQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) addImm(a *asm, dst reg, n int)    { a.printf("ADDQ $%d, %s", n, l.r(dst)) }
func (l amd64) add(a *asm, dst, src reg)         { a.printf("ADDQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) sub(a *asm, dst, src reg)         { a.printf("SUBQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) subImm(a *asm, dst reg, n int)    { a.printf("SUBQ $%d, %s", n, l.r(dst)) }
func (l amd64) shiftLeft(a *asm, dst reg, n int) { a.printf("SHLQ $%d, %s", n, l.r(dst)) }
func (l amd64) andImm(a *asm, dst reg, n int)    { a.printf("ANDQ $%d, %s", n, l.r(dst)) }
func (l amd64) branch(a *asm, c cond, to string) {
	a.printf("%s %s", [...]string{ifLess: "JLT", ifNotLess: "JGE", ifZero: "JEQ", ifNotZero: "JNE"}[c], to)
}

func (amd64) jump(a *asm, to string) { a.printf("JMP %s", to) }

func (l amd64) part(a *asm, n reg) {
	t := a.newReg()
	a.regs-- // needed for these instructions only
	a.printf("LEAQ maskTable<>+32(SB), %s", l.r(t))
	a.printf("SHLQ $2, %s", l.r(n))
	a.printf("SUBQ %s, %s", l.r(n), l.r(t))
	a.printf("VMOVDQU (%s), Y15", l.r(t))
}

func (l amd64) load(a *asm, dst vec, m mem)        { a.printf("VMOVUPS %s, Y%d", l.m(m), dst) }
func (l amd64) store(a *asm, src vec, m mem)       { a.printf("VMOVUPS Y%d, %s", src, l.m(m)) }
func (l amd64) loadPart(a *asm, dst vec, m mem)    { a.printf("VMASKMOVPS %s, Y15, Y%d", l.m(m), dst) }
func (l amd64) storePart(a *asm, src vec, m mem)   { a.printf("VMASKMOVPS Y%d, Y15, %s", src, l.m(m)) }
func (l amd64) storeStream(a *asm, src vec, m mem) { a.printf("VMOVNTPS Y%d, %s", src, l.m(m)) }
func (l amd64) fence(a *asm)                       { a.printf("SFENCE") }
func (l amd64) keepPart(a *asm, v vec)             { a.printf("VANDPS Y15, Y%d, Y%d", v, v) }
func (l amd64) elsewhere(a *asm, dst, x vec)       { a.printf("VBLENDVPS Y15, Y%d, Y%d, Y%d", dst, x, dst) }
func (l amd64) broadcast(a *asm, dst vec, m mem)   { a.printf("VBROADCASTSS %s, Y%d", l.m(m), dst) }
func (l amd64) broadcast64(a *asm, dst vec, m mem) { a.printf("VBROADCASTSD %s, Y%d", l.m(m), dst) }
func (l amd64) sqrt64(a *asm, dst, x vec)          { a.printf("VSQRTPD Y%d, Y%d", x, dst) }
func (l amd64) reduce(a *asm, dst, dst2, src mem, t [3]vec) {
	for i, v := range t[:2] {
		s := src
		s.off += i * vecBytes
		a.printf("VCVTPS2PD %s, Y%d", l.m(s), v)
		s.off += vecBytes / 2
		a.printf("VCVTPS2PD %s, Y%d", l.m(s), t[2])
		a.printf("VADDPD Y%d, Y%d, Y%d", t[2], v, v)
		a.printf("VEXTRACTF128 $1, Y%d, X%d", v, t[2])
		a.printf("VADDPD X%d, X%d, X%d", t[2], v, v)
	}
	a.printf("VHADDPD X%d, X%d, X%d", t[1], t[0], t[0])
	a.printf("VMOVSD X%d, %s", t[0], l.m(dst))
	a.printf("VMOVHPD X%d, %s", t[0], l.m(dst2))
}

func (amd64) pointTable(*asm)        {}
func (l amd64) zero(a *asm, dst vec) { a.printf("VXORPS Y%d, Y%d, Y%d", dst, dst, dst) }

func (l amd64) prefetch(a *asm, m mem) {
	name := "PREFETCHT1"
	if a.near {
		name = "PREFETCHT0"
	}
	a.printf("%s %s", name, l.m(m))
}

var amd64Ops = [...]string{
	opAdd:    "VADDPS",
	opSub:    "VSUBPS",
	opMul:    "VMULPS",
	opMax:    "VMAXPS",
	opMin:    "VMINPS",
	opAnd:    "VANDPS",
	opAndNot: "VANDNPS",
	opOr:     "VORPS",
	opXor:    "VXORPS",
	opGT:     "VCMPPS $0x1e,", // GT_OQ
	opLE:     "VCMPPS $0x12,", // LE_OQ

	opMaxInt: "VPMAXSD",
	opMinInt: "VPMINSD",
	opGTInt:  "VPCMPGTD",

	opAdd64:    "VADDPD",
	opSub64:    "VSUBPD",
	opMul64:    "VMULPD",
	opDiv64:    "VDIVPD",
	opGE64:     "VCMPPD $0x1d,", // GE_OQ
	opAddInt64: "VPADDQ",
}

func (l amd64) op(a *asm, o op, dst, x, y vec) {
	if o == opOr && x == y { // done where registers are renamed
		a.printf("VMOVAPS Y%d, Y%d", x, dst)
		return
	}
	a.printf("%s Y%d, Y%d, Y%d", amd64Ops[o], y, x, dst)
}

func (l amd64) positive(a *asm, dst, x vec)    { l.withZero(a, opGT, dst, x) }
func (l amd64) notPositive(a *asm, dst, x vec) { l.withZero(a, opLE, dst, x) }

func (l amd64) withZero(a *asm, o op, dst, x vec) {
	l.zero(a, dst)
	l.op(a, o, dst, x, dst)
}

func (l amd64) opMem(a *asm, o op, dst, x vec, y mem, _ vec) {
	a.printf("%s %s, Y%d, Y%d", amd64Ops[o], l.m(y), x, dst)
}

func (amd64) end(a *asm) {
	a.printf("VZEROUPPER")
	a.printf("RET")
}

// ---- functions and calls

// The frame of a kernel that calls. BP points to the area, at a multiple of a
// vector, where a function keeps the 4 vectors, and then what it makes of those
// that are far; behind them there are the function's address, the two parameters,
// the first of them as a float64, how many bytes of the area the call is for, and
// whether there is something far. The assembler saves BP, since there is a frame.
const (
	amd64Function = 8*vecBytes + 8*iota
	amd64Params
	amd64WideParam
	amd64Count
	amd64Far
	amd64AreaLen

	amd64FarResults = 4 * vecBytes
)

func (amd64) frame() int { return amd64AreaLen + vecBytes }

func (l amd64) area(a *asm, field string) {
	a.printf("LEAQ %d(SP), BP", vecBytes-1)
	a.printf("ANDQ $~%d, BP", vecBytes-1)
	a.printf("MOVQ a+0(FP), AX")
	a.printf("MOVQ kernelArgs_act(AX), AX")
	for _, copied := range []struct {
		field string
		to    int
	}{{"p", amd64Params}, {"wide", amd64WideParam}, {field, amd64Function}} {
		a.printf("MOVQ actCode_%s(AX), BX", copied.field)
		a.printf("MOVQ BX, %d(BP)", copied.to)
	}
}

func (l amd64) call(a *asm, count int) {
	a.printf("MOVQ $%d, %d(BP)", count*vecBytes, amd64Count)
	a.printf("CALL %d(BP)", amd64Function)
}

func (amd64) back(a *asm)     { a.printf("RET") }
func (amd64) tableFirst(*asm) {}

func (l amd64) saveArgs(a *asm) {
	for i := range 4 {
		a.printf("VMOVUPS Y%d, %d(BP)", int(firstArg)+i, i*vecBytes)
	}
}

func (l amd64) argument(a *asm, dst vec, j int) { a.printf("VMOVUPS %d(BP), Y%d", j*vecBytes, dst) }

func (l amd64) ifAny(a *asm, v vec, label string) {
	a.printf("VTESTPS Y%d, Y%d", v, v)
	a.printf("JNE %s", label)
}

func (l amd64) ifNone(a *asm, v vec, label string) {
	a.printf("VTESTPS Y%d, Y%d", v, v)
	a.printf("JEQ %s", label)
}

func (l amd64) nothingFar(a *asm) { a.printf("MOVQ $0, %d(BP)", amd64Far) }

func (l amd64) eachFar(a *asm, z vec, body func(next string)) {
	a.printf("MOVQ $1, %d(BP)", amd64Far)
	a.printf("PUSHQ AX")
	a.printf("MOVQ $0, AX")
	loop, next := a.newLabel("vector"), a.newLabel("next")
	a.label(loop)
	a.printf("VMOVUPS (BP)(AX*1), Y%d", z)
	body(next)
	a.printf("VMOVUPS Y%d, %d(BP)(AX*1)", z, amd64FarResults)
	a.label(next)
	a.printf("ADDQ $%d, AX", vecBytes)
	a.printf("CMPQ AX, %d(BP)", amd64Count)
	a.printf("JLT %s", loop)
	a.printf("POPQ AX")
}

func (l amd64) ifFar(a *asm, label string) {
	a.printf("CMPQ %d(BP), $0", amd64Far)
	a.printf("JNE %s", label)
}

func (l amd64) farResult(a *asm, dst vec, j int) {
	a.printf("VMOVUPS %d(BP), Y%d", amd64FarResults+j*vecBytes, dst)
}

func (l amd64) shiftRight(a *asm, dst vec, n int) { a.printf("VPSRLD $%d, Y%d, Y%d", n, dst, dst) }

// VPERMPS looks at the 3 low bits only.
func (amd64) pieceIndex(*asm, []vec) {}
func (amd64) openRow(*asm, int)      {}

func (l amd64) lookup(a *asm, dst, index vec, off int) {
	a.printf("VPERMPS %s<>+%d(SB), Y%d, Y%d", a.tableName(), off, index, dst)
}

func (l amd64) param(a *asm, dst vec, field string) {
	off := map[string]int{"p": amd64Params, "q": amd64Params + floatBytes}[field]
	a.printf("VBROADCASTSS %d(BP), Y%d", off, dst)
}

func (l amd64) wideParam(a *asm, dst vec) {
	a.printf("VBROADCASTSD %d(BP), Y%d", amd64WideParam, dst)
}

func (l amd64) constant(a *asm, dst vec, off int) {
	a.printf("VMOVUPS %s<>+%d(SB), Y%d", a.tableName(), off, dst)
}

func (l amd64) opConstant(a *asm, o op, dst, x vec, off int) {
	a.printf("%s %s<>+%d(SB), Y%d, Y%d", amd64Ops[o], a.tableName(), off, x, dst)
}

func (l amd64) blend(a *asm, dst, mask, x, y vec) {
	a.printf("VBLENDVPS Y%d, Y%d, Y%d, Y%d", mask, x, y, dst)
}

func (l amd64) bySign(a *asm, dst, z, negative, positive vec) {
	l.blend(a, dst, z, negative, positive) // which looks at signs only
}

// What VMAXPS and VMINPS return of zeros, and for NaN, is their second operand.
func (l amd64) above(a *asm, dst, x, y, _ vec) { l.op(a, opMax, dst, x, y) }
func (l amd64) below(a *asm, dst, x, y, _ vec) { l.op(a, opMin, dst, x, y) }

func (l amd64) widen(a *asm, lo, hi, src vec) {
	a.printf("VCVTPS2PD X%d, Y%d", src, lo)
	a.printf("VEXTRACTF128 $1, Y%d, X%d", src, hi)
	a.printf("VCVTPS2PD X%d, Y%d", hi, hi)
}

func (l amd64) narrow(a *asm, dst, lo, hi vec) {
	a.printf("VCVTPD2PSY Y%d, X%d", lo, dst)
	a.printf("VCVTPD2PSY Y%d, X%d", hi, hi)
	a.printf("VINSERTF128 $1, X%d, Y%d, Y%d", hi, dst, dst)
}

func (l amd64) shift52(a *asm, dst, x vec) { a.printf("VPSLLQ $52, Y%d, Y%d", x, dst) }

func (l amd64) found(a *asm, dst reg, name string, id int, next, done string) {
	a.printf("CMPQ id+0(FP), $%d", id)
	a.printf("JNE %s", next)
	a.printf("LEAQ %s<>(SB), %s", name, l.r(dst))
	a.printf("JMP %s", done)
}

func (l amd64) result(a *asm, src reg) {
	a.printf("MOVQ %s, ret+8(FP)", l.r(src))
	a.printf("RET")
}
