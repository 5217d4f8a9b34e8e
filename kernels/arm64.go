package main

import "fmt"

// arm64 lowers to NEON: vec i is the registers V2i and V2i+1. There are no
// masked moves: a part is moved as 4, 2 and 1 floats, by the bits of its
// length. V30 and V31 are the mask of a part.
//
// Go's assembler knows few vector instructions on floats; the others are
// written as words, with the instruction in a comment, which a test compares
// with what a disassembler makes of the word.
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

const (
	arm64Addr = "R24" // an address for the length of an instruction or two
	arm64Part = "R25" // how many floats a part has
)

func (arm64) arch() string   { return "arm64" }
func (arm64) header() string { return header() }

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

func (l arm64) arg(dst reg, field string) {
	l.printf("MOVD a+8(FP), %s", l.r(dst))
	l.printf("MOVD %s_%s(%s), %s", l.args, field, l.r(dst), l.r(dst))
}
func (l arm64) argAddr(dst reg, field string) {
	l.printf("MOVD a+8(FP), %s", l.r(dst))
	l.printf("ADD $%s_%s, %s", l.args, field, l.r(dst))
}
func (l arm64) move(dst, src reg)        { l.printf("MOVD %s, %s", l.r(src), l.r(dst)) }
func (l arm64) addImm(dst reg, n int)    { l.printf("ADD $%d, %s", n, l.r(dst)) }
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

func (l arm64) jump(to string) { l.printf("B %s", to) }

func (l arm64) part(n reg) {
	l.printf("MOVD %s, %s", l.r(n), arm64Part)
	l.printf("MOVD $maskTable<>+32(SB), %s", arm64Addr)
	l.printf("SUB %s<<2, %s", arm64Part, arm64Addr)
	l.printf("FLDPQ (%s), (F30, F31)", arm64Addr)
}

func (l arm64) keepPart(v vec) {
	for h := range 2 {
		l.printf("VAND V%d.B16, V%d.B16, V%d.B16", 30+h, 2*int(v)+h, 2*int(v)+h)
	}
}

func (l arm64) elsewhere(dst, x vec) {
	for h := range 2 {
		l.printf("VBIF V%d.B16, V%d.B16, V%d.B16", 30+h, 2*int(x)+h, 2*int(dst)+h)
	}
}

// pairOffset is the largest offset of a load or store of two Q registers.
const pairOffset = 1008

// at returns an address without an index and with an offset that fits.
func (l arm64) at(m mem) (base string, off int) {
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

// address puts the address into arm64Addr, to be counted up.
func (l arm64) address(m mem) {
	base, off := l.at(m)
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
	base, off := l.at(m)
	l.printf("FLDPQ %s, (F%d, F%d)", offset(off, base), 2*dst, 2*dst+1)
}

func (l arm64) store(src vec, m mem) {
	base, off := l.at(m)
	l.printf("FSTPQ (F%d, F%d), %s", 2*src, 2*src+1, offset(off, base))
}

// storeStream has the pair told to be stored without room made in the caches
// (STNP). Its order is that of any store, so that no fence is needed.
func (l arm64) storeStream(src vec, m mem) {
	base, off := l.at(m)
	number := 0
	fmt.Sscanf(base, "R%d", &number)
	bits := uint32(0xac000000) | uint32(off/16&0x7f)<<15 | uint32(2*src+1)<<10 | uint32(number)<<5 | uint32(2*src)
	l.printf("WORD $%#08x // VSTNP %s, V%d, V%d", bits, offset(off, base), 2*src+1, 2*src)
}

func (l arm64) fence() {}

// prefetch always means the first-level cache, which is twice as large on most
// machines as on those that need the difference.
func (l arm64) prefetch(m mem) {
	base, off := l.at(m)
	l.printf("PRFM %s, PLDL1KEEP", offset(off, base))
}

func (l arm64) loadPart(dst vec, m mem) {
	l.zero(dst)
	l.pieces(m, dst, "FMOVQ.P 16(%[1]s), F%[2]d", "VLD1.P 8(%[1]s), V%[2]d.D[0]", "VLD1 (%[1]s), V%[2]d.S[%[3]d]")
}

func (l arm64) storePart(src vec, m mem) {
	l.pieces(m, src, "FMOVQ.P F%[2]d, 16(%[1]s)", "VST1.P V%[2]d.D[0], 8(%[1]s)", "VST1 V%[2]d.S[%[3]d], (%[1]s)")
}

// pieces moves a part as 4, 2 and 1 floats; the formats take the address, the
// register and the lane.
func (l arm64) pieces(m mem, v vec, four, two, one string) {
	low, done := l.newLabel("low"), l.newLabel("done")
	l.address(m)
	half := func(r int) {
		odd := l.newLabel("odd")
		l.printf("TBZ $1, %s, %s", arm64Part, odd)
		l.printf(two, arm64Addr, r)
		l.printf("TBZ $0, %s, %s", arm64Part, done)
		l.printf(one, arm64Addr, r, 2)
		l.printf("B %s", done)
		l.label(odd)
		l.printf("TBZ $0, %s, %s", arm64Part, done)
		l.printf(one, arm64Addr, r, 0)
	}
	l.printf("TBZ $2, %s, %s", arm64Part, low)
	l.printf(four, arm64Addr, 2*int(v))
	half(2*int(v) + 1)
	l.printf("B %s", done)
	l.label(low)
	half(2 * int(v))
	l.label(done)
}

func (l arm64) broadcast(dst vec, m mem) {
	l.address(m)
	l.printf("VLD1R (%s), [V%d.S4]", arm64Addr, 2*dst)
	l.printf("VMOV V%d.B16, V%d.B16", 2*dst, 2*dst+1)
}

func (l arm64) broadcast64(dst vec, m mem) {
	l.address(m)
	l.printf("VLD1R (%s), [V%d.D2]", arm64Addr, 2*dst)
	l.printf("VMOV V%d.B16, V%d.B16", 2*dst, 2*dst+1)
}

// fsqrt64 is the bits of an instruction without the registers.
const fsqrt64 = 0x6ee1f800

func (l arm64) sqrt64(dst, x vec) {
	for h := range 2 {
		l.convert("FSQRT", fsqrt64, 2*int(x)+h, "D2", 2*int(dst)+h, "D2")
	}
}

func (l arm64) reduce(dst, dst2, src mem, t [3]vec) {
	for i, v := range t[:2] {
		s := src
		s.off += i * vecBytes
		l.load(v, s)
		lo, hi := 2*int(v), 2*int(v)+1 // lanes 0 to 3, and 4 to 7
		left, right := 2*int(t[2]), 2*int(t[2])+1
		l.convert("FCVTL", fcvtl, lo, "S2", left, "D2")
		l.convert("FCVTL2", fcvtl2, lo, "S4", right, "D2")
		l.convert("FCVTL2", fcvtl2, hi, "S4", lo, "D2")
		l.convert("FCVTL", fcvtl, hi, "S2", hi, "D2")
		fadd64.emit(l.printer, left, left, hi)
		fadd64.emit(l.printer, right, right, lo)
		fadd64.emit(l.printer, lo, left, right)
	}
	faddp64.emit(l.printer, 2*int(t[0]), 2*int(t[0]), 2*int(t[1]))
	for i, m := range []mem{dst, dst2} {
		l.address(m)
		l.printf("VST1 V%d.D[%d], (%s)", 2*int(t[0]), i, arm64Addr)
	}
}

func (l arm64) pointTable() { l.printf("MOVD $%s<>(SB), %s", l.tableName(), arm64Addr) }

func (l arm64) zero(dst vec) {
	for r := 2 * dst; r <= 2*dst+1; r++ {
		l.printf("VEOR V%d.B16, V%d.B16, V%d.B16", r, r, r)
	}
}

// arm64Op is an instruction on three vector registers: its name and the bits of
// its encoding without the registers.
type arm64Op struct {
	name, arrangement string
	bits              uint32
}

var (
	fadd  = arm64Op{"FADD", "S4", 0x4e20d400}
	fsub  = arm64Op{"FSUB", "S4", 0x4ea0d400}
	fmul  = arm64Op{"FMUL", "S4", 0x6e20dc00}
	fmax  = arm64Op{"FMAX", "S4", 0x4e20f400}
	fmin  = arm64Op{"FMIN", "S4", 0x4ea0f400}
	fcmgt = arm64Op{"VFCMGT", "S4", 0x6ea0e400}
	fcmge = arm64Op{"VFCMGE", "S4", 0x6e20e400}
	bic   = arm64Op{"VBIC", "B16", 0x4e601c00}

	smin  = arm64Op{"SMIN", "S4", 0x4ea06c00}
	smax  = arm64Op{"SMAX", "S4", 0x4ea06400}
	cmgt  = arm64Op{"VCMGT", "S4", 0x4ea03400}
	mul32 = arm64Op{"MUL", "S4", 0x4ea09c00}

	fadd64  = arm64Op{"FADD", "D2", 0x4e60d400}
	fsub64  = arm64Op{"FSUB", "D2", 0x4ee0d400}
	fmul64  = arm64Op{"FMUL", "D2", 0x6e60dc00}
	faddp64 = arm64Op{"FADDP", "D2", 0x6e60d400}
	fdiv64  = arm64Op{"FDIV", "D2", 0x6e60fc00}
	fcmge64 = arm64Op{"VFCMGE", "D2", 0x6e60e400}
)

// emit prints dst = x OP y.
func (o arm64Op) emit(p *printer, dst, x, y int) {
	p.printf("WORD $%#08x // %s V%d.%s, V%d.%s, V%d.%s",
		o.bits|uint32(y)<<16|uint32(x)<<5|uint32(dst), o.name, y, o.arrangement, x, o.arrangement, dst, o.arrangement)
}

func (l arm64) op(o op, dst, x, y vec) {
	for h := range 2 {
		d, x, y := 2*int(dst)+h, 2*int(x)+h, 2*int(y)+h
		switch o {
		case opAdd:
			fadd.emit(l.printer, d, x, y)
		case opSub:
			fsub.emit(l.printer, d, x, y)
		case opMul:
			fmul.emit(l.printer, d, x, y)
		case opMax:
			fmax.emit(l.printer, d, x, y)
		case opMin:
			fmin.emit(l.printer, d, x, y)
		case opAnd:
			l.printf("VAND V%d.B16, V%d.B16, V%d.B16", y, x, d)
		case opOr:
			l.printf("VORR V%d.B16, V%d.B16, V%d.B16", y, x, d)
		case opXor:
			l.printf("VEOR V%d.B16, V%d.B16, V%d.B16", y, x, d)
		case opAndNot:
			bic.emit(l.printer, d, y, x) // y & ^x
		case opGT:
			fcmgt.emit(l.printer, d, x, y)
		case opLE:
			fcmge.emit(l.printer, d, y, x)
		case opMaxInt:
			smax.emit(l.printer, d, x, y)
		case opMinInt:
			smin.emit(l.printer, d, x, y)
		case opGTInt:
			cmgt.emit(l.printer, d, x, y)
		case opAdd64:
			fadd64.emit(l.printer, d, x, y)
		case opSub64:
			fsub64.emit(l.printer, d, x, y)
		case opMul64:
			fmul64.emit(l.printer, d, x, y)
		case opDiv64:
			fdiv64.emit(l.printer, d, x, y)
		case opGE64:
			fcmge64.emit(l.printer, d, x, y)
		case opAddInt64:
			l.printf("VADD V%d.D2, V%d.D2, V%d.D2", y, x, d)
		}
	}
}

// Comparisons of float32 with 0: the bits without the registers.
const (
	fcmgtZero = 0x4ea0c800
	fcmleZero = 0x6ea0d800
)

func (l arm64) positive(dst, x vec)    { l.withZero("VFCMGT", fcmgtZero, dst, x) }
func (l arm64) notPositive(dst, x vec) { l.withZero("VFCMLE", fcmleZero, dst, x) }

func (l arm64) withZero(name string, bits uint32, dst, x vec) {
	for h := range 2 {
		src, dst := 2*int(x)+h, 2*int(dst)+h
		l.printf("WORD $%#08x // %s $0, V%d.S4, V%d.S4", bits|uint32(src)<<5|uint32(dst), name, src, dst)
	}
}

func (l arm64) opMem(o op, dst, x vec, y mem, t vec) {
	l.load(t, y)
	l.op(o, dst, x, t)
}

func (l arm64) end() { l.printf("RET") }

// byTable checks the number, and puts the entry that it has into R1.
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

// Registers of a kernel that calls and of the called functions: the area, which
// lies in the frame, the function, its actCode, the next vector in the area, and
// how many are left. The assembler saves the link, since there are calls. In a
// function arm64Addr is the table of constants, arm64Next is 0 where there is
// nothing far, and the parameters' address, or what else is needed for a moment,
// stands in arm64Param.
const (
	arm64Area     = "R23"
	arm64Function = "R22"
	arm64ActCode  = "R21"
	arm64Next     = "R20"
	arm64Left     = "R19"
	arm64Param    = "R15"
)

// The area has the 4 vectors, what a function makes of those that are far, and the
// mask of a part, whose registers have the row of lookups.
const (
	arm64FarResults = 4 * vecBytes
	arm64Mask       = 8 * vecBytes
	arm64AreaLen    = 9 * vecBytes
	arm64Row        = 30
)

func (arm64) frame() int { return arm64AreaLen + 16 }

func (l arm64) area(field string) {
	l.printf("MOVD $area-%d(SP), %s", arm64AreaLen, arm64Area)
	l.printf("MOVD a+8(FP), %s", arm64ActCode)
	l.printf("MOVD kernelArgs_act(%s), %s", arm64ActCode, arm64ActCode)
	l.printf("MOVD actCode_%s(%s), %s", field, arm64ActCode, arm64Function)
}

func (l arm64) call(count int) {
	l.printf("MOVD $%d, %s", count, arm64Left)
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
	l.printf("VORR V%d.B16, V%d.B16, V%d.B16", 2*v+1, 2*v, 2*v)
	l.printf("WORD $%#08x // VUMAXV V%d.S4, V%d", umaxv|uint32(2*v)<<5|uint32(2*v), 2*v, 2*v)
	l.printf("VMOV V%d.S[0], %s", 2*v, arm64Param)
}

// umaxv is the largest of 4 integers: the bits without the registers.
const umaxv = 0x6eb0a800

func (l arm64) ifAny(v vec, label string) {
	l.any(v)
	l.printf("CBNZ %s, %s", arm64Param, label)
}

func (l arm64) ifNone(v vec, label string) {
	l.any(v)
	l.printf("CBZ %s, %s", arm64Param, label)
}

func (l arm64) nothingFar() { l.printf("MOVD ZR, %s", arm64Next) }

func (l arm64) eachFar(z vec, body func(next string)) {
	l.printf("MOVD %s, %s", arm64Area, arm64Next)
	loop, next := l.newLabel("vector"), l.newLabel("next")
	l.label(loop)
	l.loadFrom(z, 0, arm64Next)
	body(next)
	l.storeTo(z, arm64FarResults, arm64Next)
	l.label(next)
	l.printf("ADD $%d, %s", vecBytes, arm64Next)
	l.printf("SUBS $1, %s", arm64Left)
	l.printf("BNE %s", loop)
}

func (l arm64) ifFar(label string) { l.printf("CBNZ %s, %s", arm64Next, label) }

func (l arm64) farResult(dst vec, j int) {
	l.loadFrom(dst, arm64FarResults+j*vecBytes, arm64Area)
}

func (l arm64) shiftRight(dst vec, n int) {
	for r := 2 * dst; r <= 2*dst+1; r++ {
		l.printf("VUSHR $%d, V%d.S4, V%d.S4", n, r, r)
	}
}

// pieceIndex makes the indices of the 4 bytes of each value.
func (l arm64) pieceIndex(u []vec) {
	each := func(bits uint64, do func(u, c int)) {
		l.constant(constVec, l.entry64(bits<<32|bits))
		for _, v := range u {
			for h := range 2 {
				do(2*int(v)+h, 2*int(constVec)+h)
			}
		}
	}
	each(7, func(u, c int) { l.printf("VAND V%d.B16, V%d.B16, V%d.B16", c, u, u) })
	each(0x04040404, func(u, c int) { mul32.emit(l.printer, u, u, c) })
	each(0x03020100, func(u, c int) { l.printf("VORR V%d.B16, V%d.B16, V%d.B16", c, u, u) })
}

func (l arm64) openRow(off int) { l.constant(arm64Row/2, off) }

func (l arm64) lookup(dst, index vec, _ int) {
	for h := range 2 {
		l.printf("VTBL V%d.B16, [V%d.B16, V%d.B16], V%d.B16", 2*int(index)+h, arm64Row, arm64Row+1, 2*int(dst)+h)
	}
}

// tableFirst puts the address of the constants in front of what is there so far, if
// there are some: only now it is known.
func (l arm64) tableFirst() {
	if l.table == nil {
		return
	}
	rest := l.buf.String()
	l.buf.Reset()
	l.pointTable()
	l.buf.WriteString(rest)
}

func (l arm64) broadcastParam(dst vec, field, arrangement string) {
	l.printf("ADD $actCode_%s, %s, %s", field, arm64ActCode, arm64Param)
	l.printf("VLD1R (%s), [V%d.%s]", arm64Param, 2*dst, arrangement)
	l.printf("VMOV V%d.B16, V%d.B16", 2*dst, 2*dst+1)
}

func (l arm64) param(dst vec, field string) { l.broadcastParam(dst, field, "S4") }
func (l arm64) wideParam(dst vec)           { l.broadcastParam(dst, "wide", "D2") }

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

// blend has an instruction for each operand that the result may replace.
func (l arm64) blend(dst, mask, x, y vec) {
	name, from, second := "VBSL", y, x
	switch dst {
	case x:
		name, from, second = "VBIF", mask, y
	case y:
		name, from, second = "VBIT", mask, x
	}
	for h := range 2 {
		l.printf("%s V%d.B16, V%d.B16, V%d.B16", name, 2*int(from)+h, 2*int(second)+h, 2*int(dst)+h)
	}
}

// bySign spreads the sign: in dst, or in z where dst is one of the others.
func (l arm64) bySign(dst, z, negative, positive vec) {
	mask := dst
	if dst == negative || dst == positive {
		mask = z
	}
	for h := range 2 {
		from, to := 2*int(z)+h, 2*int(mask)+h
		l.printf("WORD $%#08x // VSSHR $31, V%d.S4, V%d.S4", sshr31|uint32(from)<<5|uint32(to), from, to)
	}
	l.blend(dst, mask, negative, positive)
}

// sshr31 makes a mask of signs: the bits without the registers.
const sshr31 = 0x4f210400

// FMAX and FMIN of zeros look at their signs.
func (l arm64) above(dst, x, y, t vec) {
	l.op(opGT, t, x, y)
	l.blend(dst, t, x, y)
}

func (l arm64) below(dst, x, y, t vec) {
	l.op(opGT, t, y, x)
	l.blend(dst, t, x, y)
}

// Conversions between 2 float64 and half a register of float32: the bits
// without the registers.
const (
	fcvtl  = 0x0e617800
	fcvtl2 = 0x4e617800
	fcvtn  = 0x0e616800
	fcvtn2 = 0x4e616800
)

func (l arm64) convert(name string, bits uint32, src int, from string, dst int, to string) {
	l.printf("WORD $%#08x // %s V%d.%s, V%d.%s", bits|uint32(src)<<5|uint32(dst), name, src, from, dst, to)
}

func (l arm64) widen(dst pair, src vec) {
	for h, dst := range dst {
		l.convert("FCVTL", fcvtl, 2*int(src)+h, "S2", 2*int(dst), "D2")
		l.convert("FCVTL2", fcvtl2, 2*int(src)+h, "S4", 2*int(dst)+1, "D2")
	}
}

func (l arm64) narrow(dst vec, src pair) {
	for h, src := range src {
		l.convert("FCVTN", fcvtn, 2*int(src), "D2", 2*int(dst)+h, "S2")
		l.convert("FCVTN2", fcvtn2, 2*int(src)+1, "D2", 2*int(dst)+h, "S4")
	}
}

func (l arm64) shift52(dst, x vec) {
	for h := range 2 {
		l.printf("VSHL $52, V%d.D2, V%d.D2", 2*int(x)+h, 2*int(dst)+h)
	}
}
