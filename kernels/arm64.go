package main

import "fmt"

// arm64 lowers to NEON: vec i is the registers V2i and V2i+1. There are no
// masked moves: a part is moved as 4, 2 and 1 floats, by the bits of its
// length. V30 and V31 are the mask of a part.
//
// Go's assembler knows few vector instructions on floats; the others are
// written as words, with the instruction in a comment, which a test compares
// with what a disassembler makes of the word.
type arm64 struct{}

// R16 and R17 are the linker's, R18 the platform's, R26 the closure's, R27 the
// assembler's, R28 the goroutine, R29 the frame pointer, R30 the link.
var arm64Regs = [...]string{
	"R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
	"R19", "R20", "R21", "R22",
}

const (
	arm64Addr = "R24" // an address for the length of an instruction or two
	arm64Part = "R25" // how many floats a part has
)

func (arm64) arch() string   { return "arm64" }
func (arm64) numRegs() int   { return len(arm64Regs) }
func (arm64) header() string { return header() }

func (arm64) detect() string {
	return `import "golang.org/x/sys/cpu"

// detectSIMD asks for ASIMD, which every arm64 that Go runs on has, so that
// GODEBUG=cpu.asimd=off can switch it off.
func detectSIMD() Path {
	if cpu.ARM64.HasASIMD {
		return PathNEON
	}
	return PathGeneric
}

`
}

func (arm64) r(r reg) string { return arm64Regs[r] }

func (l arm64) arg(a *asm, dst reg, field string) {
	a.printf("MOVD a+0(FP), %s", l.r(dst))
	a.printf("MOVD kernelArgs_%s(%s), %s", field, l.r(dst), l.r(dst))
}
func (l arm64) move(a *asm, dst, src reg)        { a.printf("MOVD %s, %s", l.r(src), l.r(dst)) }
func (l arm64) addImm(a *asm, dst reg, n int)    { a.printf("ADD $%d, %s", n, l.r(dst)) }
func (l arm64) add(a *asm, dst, src reg)         { a.printf("ADD %s, %s", l.r(src), l.r(dst)) }
func (l arm64) sub(a *asm, dst, src reg)         { a.printf("SUB %s, %s", l.r(src), l.r(dst)) }
func (l arm64) subImm(a *asm, dst reg, n int)    { a.printf("SUBS $%d, %s", n, l.r(dst)) }
func (l arm64) shiftLeft(a *asm, dst reg, n int) { a.printf("LSL $%d, %s", n, l.r(dst)) }
func (l arm64) andImm(a *asm, dst reg, n int) {
	a.printf("ANDS $%d, %s", n, l.r(dst))
}
func (l arm64) branch(a *asm, c cond, to string) {
	a.printf("%s %s", [...]string{ifLess: "BLT", ifNotLess: "BGE", ifZero: "BEQ", ifNotZero: "BNE"}[c], to)
}

func (l arm64) part(a *asm, n reg) {
	a.printf("MOVD %s, %s", l.r(n), arm64Part)
	a.printf("MOVD $maskTable<>+32(SB), %s", arm64Addr)
	a.printf("SUB %s<<2, %s", arm64Part, arm64Addr)
	a.printf("FLDPQ (%s), (F30, F31)", arm64Addr)
}

func (l arm64) keepPart(a *asm, v vec) {
	for h := range 2 {
		a.printf("VAND V%d.B16, V%d.B16, V%d.B16", 30+h, 2*int(v)+h, 2*int(v)+h)
	}
}

// pairOffset is the largest offset of a load or store of two Q registers.
const pairOffset = 1008

// at returns an address without an index and with an offset that fits.
func (l arm64) at(a *asm, m mem) (base string, off int) {
	base, off = l.r(m.base), m.off
	if m.scale != 0 {
		a.printf("ADD %s<<%d, %s, %s", l.r(m.index), m.scale-1, base, arm64Addr)
		base = arm64Addr
	}
	if off > pairOffset {
		panic("offset too large")
	}
	return base, off
}

// address puts the address into arm64Addr, to be counted up.
func (l arm64) address(a *asm, m mem) {
	base, off := l.at(a, m)
	if base != arm64Addr || off != 0 {
		a.printf("ADD $%d, %s, %s", off, base, arm64Addr)
	}
}

func offset(off int, base string) string {
	if off == 0 {
		return fmt.Sprintf("(%s)", base)
	}
	return fmt.Sprintf("%d(%s)", off, base)
}

func (l arm64) load(a *asm, dst vec, m mem) {
	base, off := l.at(a, m)
	a.printf("FLDPQ %s, (F%d, F%d)", offset(off, base), 2*dst, 2*dst+1)
}

func (l arm64) store(a *asm, src vec, m mem) {
	base, off := l.at(a, m)
	a.printf("FSTPQ (F%d, F%d), %s", 2*src, 2*src+1, offset(off, base))
}

// storeStream has the pair told to be stored without room made in the caches
// (STNP). Its order is that of any store, so that no fence is needed.
func (l arm64) storeStream(a *asm, src vec, m mem) {
	base, off := l.at(a, m)
	number := 0
	fmt.Sscanf(base, "R%d", &number)
	bits := uint32(0xac000000) | uint32(off/16&0x7f)<<15 | uint32(2*src+1)<<10 | uint32(number)<<5 | uint32(2*src)
	a.printf("WORD $%#08x // VSTNP %s, V%d, V%d", bits, offset(off, base), 2*src+1, 2*src)
}

func (arm64) fence(a *asm) {}

func (l arm64) prefetch(a *asm, m mem) {
	base, off := l.at(a, m)
	a.printf("PRFM %s, PLDL1KEEP", offset(off, base))
}

func (l arm64) loadPart(a *asm, dst vec, m mem) {
	l.zero(a, dst)
	l.pieces(a, m, dst, "FMOVQ.P 16(%[1]s), F%[2]d", "VLD1.P 8(%[1]s), V%[2]d.D[0]", "VLD1 (%[1]s), V%[2]d.S[%[3]d]")
}

func (l arm64) storePart(a *asm, src vec, m mem) {
	l.pieces(a, m, src, "FMOVQ.P F%[2]d, 16(%[1]s)", "VST1.P V%[2]d.D[0], 8(%[1]s)", "VST1 V%[2]d.S[%[3]d], (%[1]s)")
}

// pieces moves a part as 4, 2 and 1 floats; the formats take the address, the
// register and the lane.
func (l arm64) pieces(a *asm, m mem, v vec, four, two, one string) {
	low, done := a.newLabel("low"), a.newLabel("done")
	l.address(a, m)
	half := func(r int) {
		odd := a.newLabel("odd")
		a.printf("TBZ $1, %s, %s", arm64Part, odd)
		a.printf(two, arm64Addr, r)
		a.printf("TBZ $0, %s, %s", arm64Part, done)
		a.printf(one, arm64Addr, r, 2)
		a.printf("B %s", done)
		a.label(odd)
		a.printf("TBZ $0, %s, %s", arm64Part, done)
		a.printf(one, arm64Addr, r, 0)
	}
	a.printf("TBZ $2, %s, %s", arm64Part, low)
	a.printf(four, arm64Addr, 2*int(v))
	half(2*int(v) + 1)
	a.printf("B %s", done)
	a.label(low)
	half(2 * int(v))
	a.label(done)
}

func (l arm64) broadcast(a *asm, dst vec, m mem) {
	l.address(a, m)
	a.printf("VLD1R (%s), [V%d.S4]", arm64Addr, 2*dst)
	a.printf("VMOV V%d.B16, V%d.B16", 2*dst, 2*dst+1)
}

func (l arm64) zero(a *asm, dst vec) {
	for r := 2 * dst; r <= 2*dst+1; r++ {
		a.printf("VEOR V%d.B16, V%d.B16, V%d.B16", r, r, r)
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
	fcmgt = arm64Op{"VFCMGT", "S4", 0x6ea0e400}
	fcmge = arm64Op{"VFCMGE", "S4", 0x6e20e400}
	bic   = arm64Op{"VBIC", "B16", 0x4e601c00}
)

// emit prints dst = x OP y.
func (o arm64Op) emit(a *asm, dst, x, y int) {
	a.printf("WORD $%#08x // %s V%d.%s, V%d.%s, V%d.%s",
		o.bits|uint32(y)<<16|uint32(x)<<5|uint32(dst), o.name, y, o.arrangement, x, o.arrangement, dst, o.arrangement)
}

func (l arm64) op(a *asm, o op, dst, x, y vec) {
	for h := range 2 {
		d, x, y := 2*int(dst)+h, 2*int(x)+h, 2*int(y)+h
		switch o {
		case opAdd:
			fadd.emit(a, d, x, y)
		case opSub:
			fsub.emit(a, d, x, y)
		case opMul:
			fmul.emit(a, d, x, y)
		case opAnd:
			a.printf("VAND V%d.B16, V%d.B16, V%d.B16", y, x, d)
		case opAndNot:
			bic.emit(a, d, y, x) // y & ^x
		case opGT:
			fcmgt.emit(a, d, x, y)
		case opLE:
			fcmge.emit(a, d, y, x)
		}
	}
}

func (l arm64) opMem(a *asm, o op, dst, x vec, y mem, t vec) {
	l.load(a, t, y)
	l.op(a, o, dst, x, t)
}

func (arm64) end(a *asm) { a.printf("RET") }
