package main

import (
	"fmt"
	"math"
)

// amd64 lowers to AVX2: a vec is a YMM register. Y15 is the mask of the tail.
type amd64 struct{ *printer }

func newAMD64(p *printer) lowering {
	p.maxRegs = len(amd64Regs)
	return amd64{p}
}

// R15 belongs to position-independent code, BP is the frame pointer. Go's functions have
// the goroutine in R14 and restore it after assembly, which may use it
// (cmd/compile/abi-internal.md): here it points to the area that kernels share with the
// functions they call, and in other kernels to the arguments.
var amd64Regs = [...]string{"AX", "BX", "CX", "DX", "SI", "DI", "R8", "R9", "R10", "R11", "R12", "R13"}

func (amd64) arch() string { return "amd64" }

func (amd64) subroutines(string) string { return "" }

func (amd64) header() string {
	return header() + `
// ARG loads a field of the arguments.
#define ARG(field, r) MOVQ a+8(FP), r; MOVQ field(r), r
`
}

func (amd64) detect() string {
	return `import "golang.org/x/sys/cpu"

func detectSIMD() []Path {
	if cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasFMA {
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
	if m.arg != "" {
		return m.arg + "(R14)"
	}
	s := fmt.Sprintf("(%s)", l.r(m.base))
	if m.scale != 0 {
		s += fmt.Sprintf("(%s*%d)", l.r(m.index), m.scale)
	}
	if m.off != 0 {
		s = fmt.Sprint(m.off) + s
	}
	return s
}

func (l amd64) holdArgs(args string) {
	l.held = true
	l.printf("MOVQ %s(FP), R14", args)
}
func (l amd64) arg(dst reg, field string) {
	if l.held {
		l.printf("MOVQ %s_%s(R14), %s", l.args, field, l.r(dst))
		return
	}
	l.printf("ARG(%s_%s, %s)", l.args, field, l.r(dst))
}
func (l amd64) argAddr(dst reg, field string) {
	if l.held {
		l.printf("LEAQ %s_%s(R14), %s", l.args, field, l.r(dst))
		return
	}
	l.printf("MOVQ a+8(FP), %s", l.r(dst))
	l.printf("ADDQ $%s_%s, %s", l.args, field, l.r(dst))
}
func (l amd64) argMem(field string, _ reg) mem { return mem{arg: l.args + "_" + field} }
func (l amd64) ifNoArg(field string, _ reg, to string) {
	l.printf("CMPQ %s_%s(R14), $0", l.args, field)
	l.branch(ifZero, to)
}
func (l amd64) move(dst, src reg)     { l.printf("MOVQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) addImm(dst reg, n int) { l.printf("ADDQ $%d, %s", n, l.r(dst)) }
func (l amd64) addFrom(dst, src reg, off int, _ reg) {
	l.printf("ADDQ %s, %s", l.m(mem{base: src, off: off}), l.r(dst))
}

func (l amd64) addReg(dst, src reg)      { l.printf("ADDQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) subReg(dst, src reg)      { l.printf("SUBQ %s, %s", l.r(src), l.r(dst)) }
func (l amd64) subImm(dst reg, n int)    { l.printf("SUBQ $%d, %s", n, l.r(dst)) }
func (l amd64) shiftLeft(dst reg, n int) { l.printf("SHLQ $%d, %s", n, l.r(dst)) }
func (l amd64) shiftDown(dst reg, n int) { l.printf("SARQ $%d, %s", n, l.r(dst)) }
func (l amd64) set(dst reg, n int)       { l.printf("MOVQ $%d, %s", n, l.r(dst)) }
func (l amd64) negate(dst reg)           { l.printf("NEGQ %s", l.r(dst)) }
func (l amd64) least(dst, src reg) {
	l.printf("CMPQ %s, %s", l.r(src), l.r(dst))
	l.printf("CMOVQLT %s, %s", l.r(src), l.r(dst))
}
func (l amd64) storeArg(src reg, field string, t reg) {
	if l.held {
		l.printf("MOVQ %s, %s_%s(R14)", l.r(src), l.args, field)
		return
	}
	l.printf("MOVQ a+8(FP), %s", l.r(t))
	l.printf("MOVQ %s, %s_%s(%s)", l.r(src), l.args, field, l.r(t))
}
func (l amd64) reduceArg(field string, by, t reg) { l.changeArg("SUBQ", field, by, t) }
func (l amd64) raiseArg(field string, by, t reg)  { l.changeArg("ADDQ", field, by, t) }
func (l amd64) changeArg(op, field string, by, t reg) {
	if l.held {
		l.printf("%s %s, %s_%s(R14)", op, l.r(by), l.args, field)
		return
	}
	l.printf("MOVQ a+8(FP), %s", l.r(t))
	l.printf("%s %s, %s_%s(%s)", op, l.r(by), l.args, field, l.r(t))
}
func (l amd64) andImm(dst reg, n int) { l.printf("ANDQ $%d, %s", n, l.r(dst)) }
func (l amd64) branch(c cond, to string) {
	l.printf("%s %s", [...]string{ifLess: "JLT", ifNotLess: "JGE", ifZero: "JEQ", ifNotZero: "JNE"}[c], to)
}

func (l amd64) ifUnequal(x, y reg, to string) {
	l.printf("CMPQ %s, %s", l.r(x), l.r(y))
	l.branch(ifNotZero, to)
}

func (l amd64) jump(to string) { l.printf("JMP %s", to) }

func (l amd64) tail(n reg) {
	t := l.newReg()
	l.regs-- // needed for these instructions only
	l.printf("LEAQ maskTable<>+32(SB), %s", l.r(t))
	l.printf("SHLQ $2, %s", l.r(n))
	l.printf("SUBQ %s, %s", l.r(n), l.r(t))
	l.printf("VMOVDQU (%s), Y15", l.r(t))
}

func (l amd64) load(dst vec, m mem)        { l.printf("VMOVUPS %s, Y%d", l.m(m), dst) }
func (l amd64) store(src vec, m mem)       { l.printf("VMOVUPS Y%d, %s", src, l.m(m)) }
func (l amd64) loadTail(dst vec, m mem)    { l.printf("VMASKMOVPS %s, Y15, Y%d", l.m(m), dst) }
func (l amd64) storeTail(src vec, m mem)   { l.printf("VMASKMOVPS Y%d, Y15, %s", src, l.m(m)) }
func (l amd64) storeStream(src vec, m mem) { l.printf("VMOVNTPS Y%d, %s", src, l.m(m)) }
func (amd64) streams() bool                { return true }
func (amd64) sharesConstants() bool        { return true }
func (l amd64) fence()                     { l.printf("SFENCE") }
func (l amd64) keepTail(v vec)             { l.printf("VANDPS Y15, Y%d, Y%d", v, v) }
func (l amd64) elsewhere(dst, x vec)       { l.printf("VBLENDVPS Y15, Y%d, Y%d, Y%d", dst, x, dst) }
func (l amd64) broadcast(dst vec, m mem)   { l.printf("VBROADCASTSS %s, Y%d", l.m(m), dst) }
func (l amd64) broadcast64(dst vec, m mem) { l.printf("VBROADCASTSD %s, Y%d", l.m(m), dst) }
func (l amd64) sqrt64(dst, x vec)          { l.printf("VSQRTPD Y%d, Y%d", x, dst) }
func (l amd64) reduce(dst, dst2 mem, x, y pair) {
	for _, v := range []pair{x, y} {
		l.printf("VADDPD Y%d, Y%d, Y%d", v[1], v[0], v[0])
		l.printf("VEXTRACTF128 $1, Y%d, X%d", v[0], v[1])
		l.printf("VADDPD X%d, X%d, X%d", v[1], v[0], v[0])
	}
	l.printf("VHADDPD X%d, X%d, X%d", y[0], x[0], x[0])
	l.printf("VMOVSD X%d, %s", x[0], l.m(dst))
	l.printf("VMOVHPD X%d, %s", x[0], l.m(dst2))
}

func (l amd64) pointTable()  {}
func (l amd64) zero(dst vec) { l.printf("VXORPS Y%d, Y%d, Y%d", dst, dst, dst) }

func (l amd64) prefetch(m mem) {
	name := "PREFETCHT1"
	if l.toFirst {
		name = "PREFETCHT0"
	}
	l.printf("%s %s", name, l.m(m))
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
	opAddInt: "VPADDD",

	opMinUnsigned: "VPMINUD",

	opAdd64:        "VADDPD",
	opSub64:        "VSUBPD",
	opMul64:        "VMULPD",
	opDiv64:        "VDIVPD",
	opAddProduct64: "VFMADD231PD",
	opGE64:         "VCMPPD $0x1d,", // GE_OQ
	opLE64:         "VCMPPD $0x12,", // LE_OQ
	opAddInt64:     "VPADDQ",
}

func (l amd64) op(o op, dst, x, y vec) {
	if o == opOr && x == y { // a move, which register renaming does without an operation
		l.printf("VMOVAPS Y%d, Y%d", x, dst)
		return
	}
	l.printf("%s Y%d, Y%d, Y%d", amd64Ops[o], y, x, dst)
}

func (l amd64) positive(dst, x vec)    { l.withZero(opGT, dst, x) }
func (l amd64) notPositive(dst, x vec) { l.withZero(opLE, dst, x) }

func (l amd64) withZero(o op, dst, x vec) {
	l.zero(dst)
	l.op(o, dst, x, dst)
}

func (l amd64) opMem(o op, dst, x vec, y mem, _ vec) {
	l.printf("%s %s, Y%d, Y%d", amd64Ops[o], l.m(y), x, dst)
}

func (l amd64) end() {
	l.printf("VZEROUPPER")
	l.printf("RET")
}

// byTable checks the index, and loads it into AX and the table's address into BX for
// use.
func (l amd64) byTable(table string, n int, use func()) {
	l.printf("MOVQ id+0(FP), AX")
	l.printf("CMPQ AX, $%d", n)
	l.printf("JCC none")
	l.printf("LEAQ %s<>(SB), BX", table)
	use()
	l.label("none")
	l.printf("UNDEF")
}

func (l amd64) jumpByTable(table string, n int) {
	l.byTable(table, n, func() { l.printf("JMP (BX)(AX*8)") })
}

func (l amd64) returnFromTable(table string, n int) {
	l.byTable(table, n, func() {
		l.printf("MOVQ (BX)(AX*8), AX")
		l.printf("MOVQ AX, ret+8(FP)")
		l.printf("RET")
	})
}

// ---- functions and calls

// The frame of a kernel with calls. R14 points to the area, at a multiple of the vector
// size. The area has the function's 4 arguments, then its results for far arguments, the
// masks of these, and the fields below. BP remains the frame pointer, by which tools walk the stack.
const (
	amd64Function = 12*vecBytes + 8*iota // the function's address
	amd64Params                          // two float32
	amd64Param64                         // the first parameter as float64
	amd64Bytes                           // bytes of the arguments of this call
	amd64Far                             // a farLanes
	amd64Saved                           // the kernel's AX
	amd64Flags                           // for each flag: not 0 if it is set

	amd64AreaLen    = amd64Flags + 8*len(flagNames)
	amd64FarResults = 4 * vecBytes
	amd64FarMasks   = 8 * vecBytes
)

func (amd64) frame() int { return amd64AreaLen + vecBytes }

func (l amd64) area(field string, flags flags) {
	l.printf("LEAQ %d(SP), R14", vecBytes-1)
	l.printf("ANDQ $~%d, R14", vecBytes-1)
	l.printf("MOVQ a+8(FP), AX")
	for i, field := range flagFields {
		if flags&(1<<i) != 0 {
			l.printf("%s kernelArgs_%s(AX), BX", map[bool]string{false: "MOVQ", true: "MOVBQZX"}[withStream == 1<<i], field)
			l.printf("MOVQ BX, %d(R14)", amd64Flags+8*i)
		}
	}
	l.printf("MOVQ kernelArgs_act(AX), AX")
	for _, copied := range []struct {
		field string
		to    int
	}{{"p", amd64Params}, {"p64", amd64Param64}, {field, amd64Function}} {
		l.printf("MOVQ actCode_%s(AX), BX", copied.field)
		l.printf("MOVQ BX, %d(R14)", copied.to)
	}
}

func (l amd64) ifFlag(f flags, set bool, label string) {
	if l.held {
		l.printf("CMPB %s_%s(R14), $0", l.args, flagFields[f.index()]) // a bool: that of withStream
	} else {
		l.printf("CMPQ %d(R14), $0", amd64Flags+8*f.index())
	}
	l.branch(map[bool]cond{false: ifZero, true: ifNotZero}[set], label)
}

func (l amd64) call(n int) {
	l.printf("MOVQ $%d, %d(R14)", n*vecBytes, amd64Bytes)
	l.printf("CALL %d(R14)", amd64Function)
}

func (l amd64) back()       { l.printf("RET") }
func (l amd64) tableFirst() {}

func (l amd64) saveArgs() {
	for i := range 4 {
		l.printf("VMOVUPS Y%d, %d(R14)", int(firstArg)+i, i*vecBytes)
	}
}

func (l amd64) argument(dst vec, j int) { l.printf("VMOVUPS %d(R14), Y%d", j*vecBytes, dst) }

func (l amd64) ifAny(v vec, label string) {
	l.printf("VTESTPS Y%d, Y%d", v, v)
	l.printf("JNE %s", label)
}

func (l amd64) ifNone(v vec, label string) {
	l.printf("VTESTPS Y%d, Y%d", v, v)
	l.printf("JEQ %s", label)
}

func (l amd64) ifNoneKept(v, _ vec, label string) { l.ifNone(v, label) }

// ifSome compares with all ones, so that the carry flag says whether all lanes are.
func (l amd64) ifSome(v vec, label string) {
	l.printf("VTESTPS %s<>+%d(SB), Y%d", l.table.name, l.entry64(math.MaxUint64), v)
	l.printf("JNE %s", label)
}

func (l amd64) ifAll(_ func() vec, label string) { l.printf("JCS %s", label) }

// eachPair begins with the last vectors.
func (l amd64) eachPair(body func()) {
	l.printf("MOVQ AX, %d(R14)", amd64Saved)
	l.printf("MOVQ %d(R14), AX", amd64Bytes)
	l.printf("SUBQ $%d, AX", vecBytes)
	l.printf("ANDQ $%d, AX", 2*vecBytes)
	loop := l.newLabel("loop")
	l.label(loop)
	body()
	l.printf("SUBQ $%d, AX", 2*vecBytes)
	l.printf("JGE %s", loop)
	l.printf("MOVQ %d(R14), AX", amd64Saved)
}

func (l amd64) argumentOfPair(dst vec, j int) {
	l.printf("VMOVUPS %d(R14)(AX*1), Y%d", j*vecBytes, dst)
}

func (l amd64) saveFarOfPair(src vec, j int) {
	l.printf("VMOVUPS Y%d, %d(R14)(AX*1)", src, amd64FarResults+j*vecBytes)
}

// eachFar begins with the last vector.
func (l amd64) eachFar(z vec, body func(next string)) {
	l.printf("MOVQ AX, %d(R14)", amd64Saved)
	l.printf("MOVQ %d(R14), AX", amd64Bytes)
	l.printf("SUBQ $%d, AX", vecBytes)
	loop, next := l.newLabel("loop"), l.newLabel("next")
	l.label(loop)
	l.printf("VMOVUPS (R14)(AX*1), Y%d", z)
	body(next)
	l.printf("VMOVUPS Y%d, %d(R14)(AX*1)", z, amd64FarResults)
	l.label(next)
	l.printf("SUBQ $%d, AX", vecBytes)
	l.printf("JGE %s", loop)
	l.printf("MOVQ %d(R14), AX", amd64Saved)
}

func (l amd64) alone(enter string) { // as the first vector
	l.printf("MOVQ AX, %d(R14)", amd64Saved)
	l.printf("MOVQ $0, AX")
	l.jump(enter)
}

func (l amd64) setFar(k farLanes) { l.printf("MOVQ $%d, %d(R14)", k, amd64Far) }

func (l amd64) ifFar(c cond, k farLanes, label string) {
	l.printf("CMPQ %d(R14), $%d", amd64Far, k)
	l.branch(c, label)
}

// ifMerged uses both conditions of one test: twice and sum, and only sum.
func (l amd64) ifMerged(twice, sum vec, apart, none string) {
	l.printf("VTESTPS Y%d, Y%d", sum, twice)
	l.printf("JNE %s", apart)
	l.printf("JCS %s", none)
}

func (l amd64) saveFarMask(src vec, j int) {
	l.printf("VMOVUPS Y%d, %d(R14)", src, amd64FarMasks+j*vecBytes)
}

func (l amd64) loadFarMask(dst vec) {
	l.printf("VMOVUPS %d(R14)(AX*1), Y%d", amd64FarMasks, dst)
}

func (l amd64) saveFar(src vec, j int) {
	l.printf("VMOVUPS Y%d, %d(R14)", src, amd64FarResults+j*vecBytes)
}

func (l amd64) rotate(dst, x vec, n int) {
	l.printf("VPERMILPS $%d, Y%d, Y%d", rotation(n), x, dst)
}

func rotation(n int) (imm int) {
	for i := range 4 {
		imm |= (i + n) % 4 << (2 * i)
	}
	return imm
}

func (l amd64) rotateArgument(dst vec, j int) {
	l.printf("VPERMILPS $%d, %d(R14), Y%d", rotation(j), j*vecBytes, dst)
}

func (l amd64) opArgument(o op, dst, x vec, j int) {
	l.printf("%s %d(R14), Y%d, Y%d", amd64Ops[o], j*vecBytes, x, dst)
}

func (l amd64) farResult(dst vec, j int) {
	l.printf("VMOVUPS %d(R14), Y%d", amd64FarResults+j*vecBytes, dst)
}

func (l amd64) replaceFar(dst, t vec, j int) {
	l.printf("VMOVUPS %d(R14), Y%d", amd64FarMasks+j*vecBytes, t)
	l.printf("VBLENDVPS Y%d, %d(R14), Y%d, Y%d", t, amd64FarResults+j*vecBytes, dst, dst)
}

func (l amd64) shiftRight(dst vec, n int) { l.printf("VPSRLD $%d, Y%d, Y%d", n, dst, dst) }

// VPERMPS uses the 3 low bits only, so that no index is computed.
func (l amd64) pieceIndex([]vec) {}
func (l amd64) openRow(int)      {}

func (l amd64) lookup(dst, index vec, off int) {
	l.printf("VPERMPS %s<>+%d(SB), Y%d, Y%d", l.table.name, off, index, dst)
}

func (l amd64) param(dst vec, field string) {
	off := map[string]int{"p": amd64Params, "q": amd64Params + floatBytes}[field]
	l.printf("VBROADCASTSS %d(R14), Y%d", off, dst)
}

func (l amd64) param64(dst vec) {
	l.printf("VBROADCASTSD %d(R14), Y%d", amd64Param64, dst)
}

func (l amd64) constant(dst vec, off int) {
	l.printf("VMOVUPS %s<>+%d(SB), Y%d", l.table.name, off, dst)
}

func (l amd64) opConstant(o op, dst, x vec, off int) {
	l.printf("%s %s<>+%d(SB), Y%d, Y%d", amd64Ops[o], l.table.name, off, x, dst)
}

func (l amd64) blend(dst, mask, x, y vec) {
	l.printf("VBLENDVPS Y%d, Y%d, Y%d, Y%d", mask, x, y, dst)
}

func (l amd64) bySign(dst, z, negative, positive vec) {
	l.blend(dst, z, negative, positive) // VBLENDVPS uses the sign bits only
}

// VMAXPS and VMINPS return their second operand if both are zeros or one is NaN.
func (l amd64) above(dst, x, y, _ vec) { l.op(opMax, dst, x, y) }
func (l amd64) below(dst, x, y, _ vec) { l.op(opMin, dst, x, y) }

func (l amd64) widen(dst pair, src vec) {
	l.printf("VCVTPS2PD X%d, Y%d", src, dst[0])
	l.printf("VEXTRACTF128 $1, Y%d, X%d", src, dst[1])
	l.printf("VCVTPS2PD X%d, Y%d", dst[1], dst[1])
}

// widenFrom needs no shuffle.
func (l amd64) widenFrom(dst pair, m mem) {
	for _, v := range dst {
		l.printf("VCVTPS2PD %s, Y%d", l.m(m), v)
		m.off += vecBytes / 2
	}
}

func (l amd64) narrow(dst vec, src pair, t vec) {
	l.printf("VCVTPD2PSY Y%d, X%d", src[0], dst)
	l.printf("VCVTPD2PSY Y%d, X%d", src[1], t)
	l.printf("VINSERTF128 $1, X%d, Y%d, Y%d", t, dst, dst)
}

func (l amd64) shift52(dst, x vec) { l.printf("VPSLLQ $52, Y%d, Y%d", x, dst) }
func (l amd64) shift20(dst, x vec) { l.printf("VPSLLD $20, Y%d, Y%d", x, dst) }
