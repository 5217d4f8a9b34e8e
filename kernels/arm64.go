package main

import (
	"fmt"
	"strings"
)

// arm64 lowers to NEON: vec i is the registers V2i and V2i+1. There are no
// masked moves: a tail is moved as 4, 2 and 1 floats, by the bits of its
// length. V30 and V31 are the mask of the tail.
//
// Go's assembler lacks most vector instructions on floats. Macros (macros.go) encode
// them, for both registers of a vec.
type arm64 struct{ *printer }

func newARM64(p *printer) lowering {
	p.maxRegs = len(arm64Regs)
	return arm64{p}
}

// R16 and R17 are the linker's, R18 the platform's, R26 the closure's, R27 the
// assembler's, R28 the goroutine, R29 the frame pointer, R30 the link.
var arm64Regs = [...]string{
	"R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
}

// maskVec is the mask of the tail.
const maskVec vec = numVecs

const (
	arm64Addr = "R24" // a temporary address
	arm64Tail = "R25" // the length of the tail in floats
)

func (arm64) arch() string { return "arm64" }
func (arm64) header() string {
	return header() + `
// ARG loads a field of the arguments.
#define ARG(field, r) MOVD a+8(FP), r; MOVD field(r), r

// TAIL moves a tail from or to off(base).
#define TAIL(by, off, base) ADD $off, base, R24; CALL by(SB)
` + macroText()
}

func (arm64) detect() string {
	return `import "golang.org/x/sys/cpu"

// detectSIMD asks for ASIMD, which every arm64 that Go runs on has, so that
// GODEBUG=cpu.asimd=off can switch it off.
func detectSIMD() []Path {
	if cpu.ARM64.HasASIMD {
		return []Path{PathNEON}
	}
	return nil
}

`
}

func (arm64) r(r reg) string {
	return arm64Regs[r]
}

func (l arm64) holdArgs(args string) {
	l.held = true
	l.printf("MOVD %s(FP), %s", args, arm64Area)
}
func (l arm64) arg(dst reg, field string) {
	if l.held {
		l.printf("MOVD %s_%s(%s), %s", l.args, field, arm64Area, l.r(dst))
		return
	}
	l.printf("ARG(%s_%s, %s)", l.args, field, l.r(dst))
}
func (l arm64) argAddr(dst reg, field string) {
	if l.held {
		l.printf("ADD $%s_%s, %s, %s", l.args, field, arm64Area, l.r(dst))
		return
	}
	l.printf("MOVD a+8(FP), %s", l.r(dst))
	l.printf("ADD $%s_%s, %s", l.args, field, l.r(dst))
}
func (l arm64) argMem(field string, t reg) mem {
	l.argAddr(t, field)
	return mem{base: t}
}
func (l arm64) ifNoArg(field string, t reg, to string) {
	l.arg(t, field)
	l.printf("CBZ %s, %s", l.r(t), to)
}
func (l arm64) shiftDown(dst reg, n int) { l.printf("ASR $%d, %s", n, l.r(dst)) }
func (l arm64) set(dst reg, n int)       { l.printf("MOVD $%d, %s", n, l.r(dst)) }
func (l arm64) negate(dst reg)           { l.printf("NEG %s, %s", l.r(dst), l.r(dst)) }
func (l arm64) least(dst, src reg) {
	l.printf("CMP %s, %s", l.r(src), l.r(dst))
	l.printf("CSEL LT, %s, %s, %s", l.r(dst), l.r(src), l.r(dst))
}
func (l arm64) storeArg(src reg, field string, _ reg) {
	if l.held {
		l.printf("MOVD %s, %s_%s(%s)", l.r(src), l.args, field, arm64Area)
		return
	}
	l.printf("MOVD a+8(FP), %s", arm64Addr)
	l.printf("MOVD %s, %s_%s(%s)", l.r(src), l.args, field, arm64Addr)
}
func (l arm64) reduceArg(field string, by, t reg) { l.changeArg("SUBS", field, by, t) }
func (l arm64) raiseArg(field string, by, t reg)  { l.changeArg("ADD", field, by, t) }
func (l arm64) changeArg(op, field string, by, t reg) {
	base := arm64Area
	if !l.held {
		base = arm64Addr
		l.printf("MOVD a+8(FP), %s", base)
	}
	l.printf("MOVD %s_%s(%s), %s", l.args, field, base, l.r(t))
	l.printf("%s %s, %s", op, l.r(by), l.r(t))
	l.printf("MOVD %s, %s_%s(%s)", l.r(t), l.args, field, base)
}
func (l arm64) move(dst, src reg)     { l.printf("MOVD %s, %s", l.r(src), l.r(dst)) }
func (l arm64) addImm(dst reg, n int) { l.printf("ADD $%d, %s", n, l.r(dst)) }
func (l arm64) addFrom(dst, src reg, off int, t reg) {
	l.printf("MOVD %d(%s), %s", off, l.r(src), l.r(t))
	l.printf("ADD %s, %s", l.r(t), l.r(dst))
}

func (l arm64) addReg(dst, src reg)      { l.printf("ADD %s, %s", l.r(src), l.r(dst)) }
func (l arm64) subReg(dst, src reg)      { l.printf("SUB %s, %s", l.r(src), l.r(dst)) }
func (l arm64) subImm(dst reg, n int)    { l.printf("SUBS $%d, %s", n, l.r(dst)) }
func (l arm64) shiftLeft(dst reg, n int) { l.printf("LSL $%d, %s", n, l.r(dst)) }
func (l arm64) andImm(dst reg, n int) {
	l.printf("ANDS $%d, %s", n, l.r(dst))
}
func (l arm64) branch(c cond, to string) {
	l.printf("%s %s", [...]string{ifLess: "BLT", ifNotLess: "BGE", ifZero: "BEQ", ifNotZero: "BNE"}[c], to)
}

func (l arm64) ifUnequal(x, y reg, to string) {
	l.printf("CMP %s, %s", l.r(x), l.r(y))
	l.branch(ifNotZero, to)
}

func (l arm64) jump(to string) { l.printf("B %s", to) }

func (l arm64) tail(n reg) {
	l.printf("MOVD %s, %s", l.r(n), arm64Tail)
	l.printf("MOVD $maskTable<>+32(SB), %s", arm64Addr)
	l.printf("SUB %s<<2, %s", arm64Tail, arm64Addr)
	l.printf("FLDPQ (%s), (F30, F31)", arm64Addr)
}

func (l arm64) keepTail(v vec)       { l.use(and, maskVec, v, v) }
func (l arm64) elsewhere(dst, x vec) { l.use(bif, maskVec, x, dst) }

// pairOffset is the largest offset of a load or store of two Q registers.
const pairOffset = 1008

// m returns an address without an index. It computes one with an index into arm64Addr.
func (l arm64) m(m mem) (base string, off int) {
	base, off = l.r(m.base), m.off
	if m.scale != 0 {
		l.printf("ADD %s<<%d, %s, %s", l.r(m.index), m.scale-1, base, arm64Addr)
		base = arm64Addr
	}
	if off > pairOffset {
		panic("offset too large")
	}
	return base, off
}

// address puts an address into arm64Addr.
func (l arm64) address(m mem) {
	base, off := l.m(m)
	if base != arm64Addr || off != 0 {
		l.printf("ADD $%d, %s, %s", off, base, arm64Addr)
	}
}

func offset(off int, base string) string {
	if off == 0 {
		return fmt.Sprintf("(%s)", base)
	}
	return fmt.Sprintf("%d(%s)", off, base)
}

func (l arm64) load(dst vec, m mem) {
	base, off := l.m(m)
	l.printf("FLDPQ %s, (F%d, F%d)", offset(off, base), 2*dst, 2*dst+1)
}

func (l arm64) store(src vec, m mem) {
	base, off := l.m(m)
	l.printf("FSTPQ (F%d, F%d), %s", 2*src, 2*src+1, offset(off, base))
}

// Non-temporal stores are not used: no model of a processor shows a gain from the
// non-temporal pair (STNP).
func (arm64) streams() bool            { return false }
func (arm64) sharesConstants() bool    { return false }
func (arm64) storeStream(_ vec, _ mem) { panic("there are no non-temporal stores on arm64") }

func (l arm64) fence() {}

// prefetch is into the first-level cache for all kernels: on most processors it is twice
// as large as on amd64.
func (l arm64) prefetch(m mem) {
	base, off := l.m(m)
	l.printf("PRFM %s, PLDL1KEEP", offset(off, base))
}

// A tail is moved by a subroutine for the vec (subroutines), which takes the address from
// arm64Addr.
func (l arm64) loadTail(dst vec, m mem) { l.callTail("load", dst, m) }

func (l arm64) storeTail(src vec, m mem) { l.callTail("store", src, m) }

func (l arm64) callTail(name string, v vec, m mem) {
	if base, off := l.m(m); base != arm64Addr || off != 0 {
		l.printf("TAIL(%s, %d, %s)", tailSymbol(name, v), off, base)
	} else {
		l.printf("CALL %s(SB)", tailSymbol(name, v))
	}
}

func tailSymbol(name string, v vec) string { return local(fmt.Sprintf("%sTail%d", name, v)) }

// subroutines returns the text of the subroutines that move tails, if code calls them.
func (l arm64) subroutines(code string) string {
	var text strings.Builder
	for v := range vec(numVecs) {
		for _, name := range []string{"load", "store"} {
			symbol := tailSymbol(name, v)
			if !strings.Contains(code, symbol) {
				continue
			}
			p := arm64{&printer{name: symbol}}
			if name == "load" {
				p.zero(v)
				p.pieces(v, "FMOVQ.P 16(%[1]s), F%[2]d", "VLD1.P 8(%[1]s), V%[2]d.D[0]", "VLD1 (%[1]s), V%[2]d.S[%[3]d]")
			} else {
				p.pieces(v, "FMOVQ.P F%[2]d, 16(%[1]s)", "VST1.P V%[2]d.D[0], 8(%[1]s)", "VST1 V%[2]d.S[%[3]d], (%[1]s)")
			}
			fmt.Fprintf(&text, "\nTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n%s", symbol, p.buf.String())
		}
	}
	return text.String()
}

// pieces moves a tail as 4, 2 and 1 floats, and returns; the formats take the address,
// the register and the lane.
func (l arm64) pieces(v vec, four, two, one string) {
	low := l.newLabel("low")
	half := func(r int) {
		odd, done := l.newLabel("odd"), l.newLabel("done")
		l.printf("TBZ $1, %s, %s", arm64Tail, odd)
		l.printf(two, arm64Addr, r)
		l.printf("TBZ $0, %s, %s", arm64Tail, done)
		l.printf(one, arm64Addr, r, 2)
		l.printf("RET")
		l.label(odd)
		l.printf("TBZ $0, %s, %s", arm64Tail, done)
		l.printf(one, arm64Addr, r, 0)
		l.label(done)
		l.printf("RET")
	}
	l.printf("TBZ $2, %s, %s", arm64Tail, low)
	l.printf(four, arm64Addr, 2*int(v))
	half(2*int(v) + 1)
	l.label(low)
	half(2 * int(v))
}

func (l arm64) broadcast(dst vec, m mem) {
	base, off := l.m(m)
	switch {
	case off > 0: // an operand of ADD, which can't be negative
		l.printf("%s(%d, %s, %d)", ld1rAt.name, off, base[1:], dst)
		return
	case off < 0:
		l.address(m)
		base = arm64Addr
	}
	l.printf("%s(%s, %d)", ld1r.name, base[1:], dst)
}

func (l arm64) broadcast64(dst vec, m mem) {
	base := l.r(m.base)
	if m.off != 0 || m.scale != 0 {
		l.address(m)
		base = arm64Addr
	}
	l.printf("%s(%s, %d)", ld1r64.name, base[1:], dst)
}

func (l arm64) sqrt64(dst, x vec) { l.use(fsqrt64, x, dst) }

func (l arm64) reduce(dst, dst2 mem, x, y pair) {
	l.use(sumTo2, x[0], x[1])
	l.use(sumTo2, y[0], y[1])
	l.use(addPair, y[0], x[0])
	for i, m := range []mem{dst, dst2} {
		l.address(m)
		l.printf("VST1 V%d.D[%d], (%s)", 2*int(x[0]), i, arm64Addr)
	}
}

func (l arm64) pointTable() { l.printf("MOVD $%s<>(SB), %s", l.table.name, arm64Addr) }

func (l arm64) zero(dst vec) { l.use(eor, dst, dst, dst) }

// use prints a macro. The last operand is the destination.
func (l arm64) use(m macro, operands ...vec) {
	list := make([]string, len(operands))
	for i, v := range operands {
		list[i] = fmt.Sprint(int(v))
	}
	l.printf("%s(%s)", m.name, strings.Join(list, ", "))
}

func (l arm64) op(o op, dst, x, y vec) {
	switch {
	case o == opAndNot: // y without the bits of x
		l.use(bic, x, y, dst)
	case o == opLE:
		l.use(fcmge, x, y, dst)
	case o == opLE64:
		l.use(fcmge64, x, y, dst)
	case o == opOr && x == y: // a disassembler shows it as a move
		l.use(mov, x, dst)
	default:
		l.use(arm64Ops[o], y, x, dst)
	}
}

var arm64Ops = map[op]macro{
	opAdd: fadd,
	opSub: fsub,
	opMul: fmul,
	opMax: fmax,
	opMin: fmin,
	opAnd: and,
	opOr:  orr,
	opXor: eor,
	opGT:  fcmgt,

	opMaxInt: smax,
	opMinInt: smin,
	opGTInt:  cmgt,
	opAddInt: add32,

	opMinUnsigned: umin,

	opAdd64:        fadd64,
	opSub64:        fsub64,
	opMul64:        fmul64,
	opDiv64:        fdiv64,
	opAddProduct64: fmla64,
	opGE64:         fcmge64,
	opAddInt64:     add64,
}

func (l arm64) positive(dst, x vec)    { l.use(fcmgtZero, x, dst) }
func (l arm64) notPositive(dst, x vec) { l.use(fcmleZero, x, dst) }

func (l arm64) opMem(o op, dst, x vec, y mem, t vec) {
	l.load(t, y)
	l.op(o, dst, x, t)
}

func (l arm64) end() { l.printf("RET") }

// byTable checks the index, and loads the entry of the table into R1.
func (l arm64) byTable(table string, n int, use func()) {
	l.printf("MOVD id+0(FP), R0")
	l.printf("CMP $%d, R0", n)
	l.printf("BHS none")
	l.printf("MOVD $%s<>(SB), R1", table)
	l.printf("MOVD (R1)(R0<<3), R1")
	use()
	l.label("none")
	l.printf("UNDEF")
}

func (l arm64) jumpByTable(table string, n int) {
	l.byTable(table, n, func() { l.printf("JMP (R1)") })
}

func (l arm64) returnFromTable(table string, n int) {
	l.byTable(table, n, func() {
		l.printf("MOVD R1, ret+8(FP)")
		l.printf("RET")
	})
}

// ---- functions and calls

// Registers of a kernel with calls and of the called functions. The assembler saves the
// link register, since there are calls. In a function arm64Addr is the table of
// constants.
const (
	arm64Area     = "R23" // the area, which lies in the frame
	arm64Function = "R22" // the function's address
	arm64ActCode  = "R21" // the address of its actCode
	arm64Far      = "R20" // a farLanes
	arm64Left     = "R19" // number of arguments left
	arm64Param    = "R15" // the parameters' address, or a temporary
)

// The area has the function's 4 arguments, its results for far arguments, the masks of
// these, and the mask of the tail, whose registers hold the row of a lookup.
const (
	arm64FarResults = 4 * vecBytes
	arm64FarMasks   = 8 * vecBytes
	arm64Mask       = 12 * vecBytes
	arm64AreaLen    = 13 * vecBytes
	arm64Row        = 30
)

func (arm64) frame() int { return arm64AreaLen + 16 }

// A kernel keeps its flags in registers.
func (l arm64) area(field string, flags flags) {
	l.printf("MOVD $area-%d(SP), %s", arm64AreaLen, arm64Area)
	l.printf("MOVD a+8(FP), %s", arm64ActCode)
	for i, name := range flagFields {
		if flags&(1<<i) != 0 {
			l.flagRegs[i] = l.newReg()
			l.printf("MOVD kernelArgs_%s(%s), %s", name, arm64ActCode, l.r(l.flagRegs[i]))
		}
	}
	l.printf("MOVD kernelArgs_act(%s), %s", arm64ActCode, arm64ActCode)
	l.printf("MOVD actCode_%s(%s), %s", field, arm64ActCode, arm64Function)
}

func (l arm64) ifFlag(f flags, set bool, label string) {
	l.printf("%s %s, %s", map[bool]string{false: "CBZ", true: "CBNZ"}[set], l.r(l.flagRegs[f.index()]), label)
}

func (l arm64) call(n int) {
	l.printf("MOVD $%d, %s", n, arm64Left)
	l.printf("CALL (%s)", arm64Function)
}

func (l arm64) move2(format string, v vec, off int, base string) {
	l.printf(format, fmt.Sprintf("(F%d, F%d)", 2*v, 2*v+1), offset(off, base))
}

func (l arm64) loadFrom(dst vec, off int, base string) {
	l.move2("FLDPQ %[2]s, %[1]s", dst, off, base)
}

func (l arm64) storeTo(src vec, off int, base string) {
	l.move2("FSTPQ %s, %s", src, off, base)
}

func (l arm64) saveArgs() {
	for i := range 4 {
		l.storeTo(firstArg+vec(i), i*vecBytes, arm64Area)
	}
	l.storeTo(arm64Row/2, arm64Mask, arm64Area)
	l.saved = true
}

func (l arm64) back() {
	if l.saved {
		l.loadFrom(arm64Row/2, arm64Mask, arm64Area)
	}
	l.printf("RET")
}

func (l arm64) argument(dst vec, j int) { l.loadFrom(dst, j*vecBytes, arm64Area) }

// any sets arm64Param to 0 if no lane of v is all ones. It changes v.
func (l arm64) any(v vec) {
	l.use(maxOfAll, v)
	l.printf("VMOV V%d.S[0], %s", 2*v, arm64Param)
}

func (l arm64) ifAny(v vec, label string) {
	l.any(v)
	l.printf("CBNZ %s, %s", arm64Param, label)
}

func (l arm64) ifNone(v vec, label string) {
	l.any(v)
	l.printf("CBZ %s, %s", arm64Param, label)
}

func (l arm64) ifNoneKept(v, t vec, label string) {
	l.op(opOr, t, v, v)
	l.ifNone(t, label)
}

func (l arm64) ifSome(v vec, label string) { l.ifAny(v, label) }

func (l arm64) ifAll(others func() vec, label string) { l.ifNone(others(), label) }

// eachPair begins with the last vectors.
func (l arm64) eachPair(body func()) {
	l.printf("SUB $1, %s", arm64Left)
	l.printf("ORR $1, %s", arm64Left)
	loop := l.newLabel("loop")
	l.label(loop)
	body()
	l.printf("SUBS $2, %s", arm64Left)
	l.printf("BGT %s", loop)
}

func (l arm64) argumentOfPair(dst vec, j int) { l.loadEach(dst, j*vecBytes) }

func (l arm64) saveFarOfPair(src vec, j int) {
	l.printf("ADD %s<<%d, %s, %s", arm64Left, vecShift, arm64Area, arm64Param)
	l.storeTo(src, arm64FarResults+(j-1)*vecBytes, arm64Param)
}

// eachFar begins with the last vector.
func (l arm64) eachFar(z vec, body func(next string)) {
	loop, next := l.newLabel("loop"), l.newLabel("next")
	l.label(loop)
	l.loadEach(z, 0)
	body(next)
	l.printf("ADD %s<<%d, %s, %s", arm64Left, vecShift, arm64Area, arm64Param)
	l.storeTo(z, arm64FarResults-vecBytes, arm64Param)
	l.label(next)
	l.printf("SUBS $1, %s", arm64Left)
	l.printf("BGT %s", loop)
}

// loadEach loads a vector of the argument that eachFar is at. off is that of the first
// argument's vector in the area.
func (l arm64) loadEach(dst vec, off int) {
	l.printf("ADD %s<<%d, %s, %s", arm64Left, vecShift, arm64Area, arm64Param)
	l.loadFrom(dst, off-vecBytes, arm64Param)
}

func (l arm64) alone(enter string) { // as the first vector
	l.printf("MOVD $1, %s", arm64Left)
	l.jump(enter)
}

func (l arm64) setFar(k farLanes) { l.printf("MOVD $%d, %s", k, arm64Far) }

func (l arm64) ifFar(c cond, k farLanes, label string) {
	l.printf("CMP $%d, %s", k, arm64Far)
	l.branch(c, label)
}

func (l arm64) ifMerged(twice, sum vec, apart, none string) {
	l.ifAny(twice, apart)
	l.ifNone(sum, none)
}

func (l arm64) saveFarMask(src vec, j int) {
	l.storeTo(src, arm64FarMasks+j*vecBytes, arm64Area)
}

func (l arm64) loadFarMask(dst vec) { l.loadEach(dst, arm64FarMasks) }

func (l arm64) saveFar(src vec, j int) { l.storeTo(src, arm64FarResults+j*vecBytes, arm64Area) }

func (l arm64) rotate(dst, x vec, n int) {
	for h := range 2 {
		l.printf("VEXT $%d, V%d.B16, V%d.B16, V%d.B16", floatBytes*n, 2*int(x)+h, 2*int(x)+h, 2*int(dst)+h)
	}
}

func (l arm64) rotateArgument(dst vec, j int) {
	l.argument(dst, j)
	l.rotate(dst, dst, j)
}

func (l arm64) opArgument(o op, dst, x vec, j int) {
	l.argument(dst, j)
	l.op(o, dst, x, dst)
}

func (l arm64) farResult(dst vec, j int) {
	l.loadFrom(dst, arm64FarResults+j*vecBytes, arm64Area)
}

func (l arm64) replaceFar(dst, t vec, j int) {
	l.loadFrom(t, arm64FarMasks+j*vecBytes, arm64Area)
	l.farResult(constVec, j)
	l.use(bit, t, constVec, dst)
}

func (l arm64) shiftRight(dst vec, n int) { l.printf("%s(%d, %d)", ushr.name, n, dst) }

// pieceIndex makes byte indices, 4 for each value.
func (l arm64) pieceIndex(u []vec) {
	for _, step := range []struct {
		o    macro
		bits uint64
	}{{and, 7}, {mul32, 0x04040404}, {orr, 0x03020100}} {
		l.constant(constVec, l.entry64(step.bits<<32|step.bits))
		for _, v := range u {
			l.use(step.o, constVec, v, v)
		}
	}
}

func (l arm64) openRow(off int) { l.constant(arm64Row/2, off) }

func (l arm64) lookup(dst, index vec, _ int) { l.use(tbl, index, dst) }

// tableFirst prints the instruction that loads the table's address before everything
// printed so far, if the function has constants.
func (l arm64) tableFirst() {
	if len(l.table.rows) == 0 {
		return
	}
	rest := l.buf.String()
	l.buf.Reset()
	l.pointTable()
	l.buf.WriteString(rest)
}

func (l arm64) param(dst vec, field string) {
	l.printf("ADD $actCode_%s, %s, %s", field, arm64ActCode, arm64Param)
	l.printf("%s(%s, %d)", ld1r.name, arm64Param[1:], dst)
}

func (l arm64) param64(dst vec) {
	l.printf("ADD $actCode_p64, %s, %s", arm64ActCode, arm64Param)
	l.printf("%s(%s, %d)", ld1r64.name, arm64Param[1:], dst)
}

func (l arm64) constant(dst vec, off int) {
	base := arm64Addr
	if off > pairOffset {
		l.printf("ADD $%d, %s, %s", off, arm64Addr, arm64Param)
		base, off = arm64Param, 0
	}
	l.loadFrom(dst, off, base)
}

func (l arm64) opConstant(o op, dst, x vec, off int) {
	l.constant(constVec, off)
	l.op(o, dst, x, constVec)
}

// blend uses another instruction for each operand that dst may be.
func (l arm64) blend(dst, mask, x, y vec) {
	switch dst {
	case x:
		l.use(bif, mask, y, dst)
	case y:
		l.use(bit, mask, x, dst)
	default:
		l.use(bsl, y, x, dst)
	}
}

// bySign makes a mask of the signs, in dst, or in z if dst is one of the others.
func (l arm64) bySign(dst, z, negative, positive vec) {
	mask := dst
	if dst == negative || dst == positive {
		mask = z
	}
	l.use(sshr31, z, mask)
	l.blend(dst, mask, negative, positive)
}

// FMAX and FMIN are not used, since they distinguish zeros by their signs.
func (l arm64) above(dst, x, y, t vec) {
	l.op(opGT, t, x, y)
	l.blend(dst, t, x, y)
}

func (l arm64) below(dst, x, y, t vec) {
	l.op(opGT, t, y, x)
	l.blend(dst, t, x, y)
}

func (l arm64) widen(dst pair, src vec) { l.use(fcvtl, src, dst[0], dst[1]) }
func (l arm64) widenFrom(dst pair, m mem) {
	l.load(dst[1], m)
	l.widen(dst, dst[1])
}

func (l arm64) narrow(dst vec, src pair, _ vec) { l.use(fcvtn, src[0], src[1], dst) }
func (l arm64) shift52(dst, x vec)              { l.use(shl52, x, dst) }
func (l arm64) shift20(dst, x vec)              { l.use(shl20, x, dst) }
