package main

import (
	"bytes"
	"fmt"
	"go/format"
	"strings"
)

// vec is a virtual vector of 8 float32: a YMM register on AVX2, two adjacent V
// registers on NEON.
type vec int

// numVecs is how many of the 16 virtual vectors a kernel may use. The last is
// the mask of a part.
const numVecs = 15

// vecBytes is the size of a vec in memory.
const vecBytes = 32

// reg is a virtual scalar register for pointers and counters.
type reg int

// firstArg is the first of the 4 vectors that a called function replaces.
const firstArg vec = 2

// mem is the address base + index*scale + off; scale is 1 or 2, and 0 for an
// address without an index.
type mem struct {
	base, index reg
	scale       int
	off         int
}

// op is an operation on two vecs, lane by lane.
type op int

const (
	opAdd op = iota
	opSub
	opMul
	opMax // of a and b, that is not 0: a > b ? a : b
	opMin // of a and b, that is not 0: a < b ? a : b
	opAnd
	opAndNot // ^a & b
	opOr
	opXor
	opGT // all ones where a > b, zero elsewhere and for NaN
	opLE // all ones where a <= b, zero elsewhere and for NaN

	// Operations on the bits, as integers with a sign: quicker than on floats, and the
	// same if one of the two has no minus sign.
	opMaxInt
	opMinInt
	opGTInt // all ones where a > b, zero elsewhere

	// Operations on 4 float64.
	opAdd64
	opSub64
	opMul64
	opDiv64
	opGE64     // all ones where a >= b, zero elsewhere and for NaN
	opAddInt64 // on the bits
)

// cond is a condition on the result of the last subtraction.
type cond int

const (
	ifLess    cond = iota // negative
	ifNotLess             // zero or positive
	ifZero
	ifNotZero
)

// lowering prints the instructions of one architecture. It is all that an
// instruction set has to bring.
type lowering interface {
	arch() string
	header() string // what stands at the top of the assembly file
	detect() string // the Go function detectSIMD
	numRegs() int

	arg(a *asm, dst reg, field string)     // dst = args.field
	argAddr(a *asm, dst reg, field string) // dst = &args.field
	move(a *asm, dst, src reg)
	addImm(a *asm, dst reg, n int)
	add(a *asm, dst, src reg)
	sub(a *asm, dst, src reg)
	subImm(a *asm, dst reg, n int) // sets the condition
	shiftLeft(a *asm, dst reg, n int)
	andImm(a *asm, dst reg, n int) // sets the condition, for zero
	branch(a *asm, c cond, label string)
	jump(a *asm, label string)

	// part sets how many floats the methods on parts handle: n, 0 to 7. It may
	// change n.
	part(a *asm, n reg)
	load(a *asm, dst vec, m mem)
	loadPart(a *asm, dst vec, m mem) // the other lanes become 0; nothing behind the part is read
	store(a *asm, src vec, m mem)
	storePart(a *asm, src vec, m mem)
	// storeStream stores past the caches; the address is a multiple of vecBytes.
	storeStream(a *asm, src vec, m mem)
	fence(a *asm)                 // what storeStream stored is seen by other cores before what is stored after
	prefetch(a *asm, m mem)       // into the first-level cache if a.near is set
	keepPart(a *asm, v vec)       // the other lanes become 0
	elsewhere(a *asm, dst, x vec) // the other lanes become those of x
	broadcast(a *asm, dst vec, m mem)
	broadcast64(a *asm, dst vec, m mem)
	zero(a *asm, dst vec)
	op(a *asm, o op, dst, x, y vec)
	positive(a *asm, dst, x vec)    // all ones where x > 0, zero elsewhere and for NaN
	notPositive(a *asm, dst, x vec) // all ones where x <= 0, zero elsewhere and for NaN
	// opMem is op with y in memory; it may load it into t.
	opMem(a *asm, o op, dst, x vec, y mem, t vec)
	sqrt64(a *asm, dst, x vec) // of 4 float64
	// reduce sums 8 float32 from memory in float64, as reduce in ../stats.go does, and
	// the 8 behind them; t are temporaries.
	reduce(a *asm, dst, dst2, src mem, t [3]vec)
	// pointTable makes the constants of a kernel ready to be used, until there is an
	// address with an index.
	pointTable(a *asm)
	end(a *asm)

	// The rest is for functions of activations and the kernels that call them.
	// A function keeps the vectors 0 and 1 and the mask of a part.

	frame() int // bytes of the frame of a kernel that calls
	// area prepares calls of the function whose address is in a field of actCode.
	area(a *asm, field string)
	call(a *asm, count int) // for count vectors
	back(a *asm)            // returns from a function
	// tableFirst makes the table of constants ready in front of all that is there; before,
	// nothing is known of it.
	tableFirst(a *asm)

	// For a function that computes what is far apart. saveArgs comes before the others.
	saveArgs(a *asm)
	argument(a *asm, dst vec, j int) // dst = the j-th of the 4 vectors, as it was
	ifAny(a *asm, v vec, label string)
	ifNone(a *asm, v vec, label string) // if no lane of v is all ones
	nothingFar(a *asm)
	// eachFar takes the vectors of a call to z, one after the other, and keeps what body
	// makes of them for farResult, unless it goes to next.
	eachFar(a *asm, z vec, body func(next string))
	ifFar(a *asm, label string) // if there was something far
	farResult(a *asm, dst vec, j int)

	// For polynomials in pieces. pieceIndex makes indices of integers whose low 3 bits
	// tell the piece. lookup takes of a row in the table what is at the indices; openRow
	// comes first.
	shiftRight(a *asm, dst vec, n int)
	pieceIndex(a *asm, u []vec)
	openRow(a *asm, off int)
	lookup(a *asm, dst, index vec, off int)

	param(a *asm, dst vec, field string) // dst = a parameter
	wideParam(a *asm, dst vec)           // dst = the first parameter, float64
	constant(a *asm, dst vec, off int)   // dst = the constant at an offset in the function's table
	// found leads on to next unless simdActivation is asked for id; else it puts the
	// address of a function into dst and goes to done.
	found(a *asm, dst reg, name string, id int, next, done string)
	result(a *asm, src reg) // returns it from simdActivation
	opConstant(a *asm, o op, dst, x vec, off int)
	// blend sets dst, which is one of the others, to x where mask is all ones, and to y
	// where it is 0.
	blend(a *asm, dst, mask, x, y vec)
	// bySign sets dst, which is not z, to negative where z has a minus sign, and to
	// positive elsewhere. It may change z if that is neither.
	bySign(a *asm, dst, z, negative, positive vec)
	// above sets dst, which is x or y, to x > y ? x : y, and below to x < y ? x : y;
	// t is a temporary.
	above(a *asm, dst, x, y, t vec)
	below(a *asm, dst, x, y, t vec)
	widen(a *asm, lo, hi, src vec)  // 8 float32 to 2 times 4 float64
	narrow(a *asm, dst, lo, hi vec) // and back; dst may be lo
	shift52(a *asm, dst, x vec)     // the bits of float64, 52 to the left
}

// asm collects the text of one kernel.
type asm struct {
	lowering
	buf       bytes.Buffer
	name      string
	args      string // the type of the arguments
	stream    bool   // store past the caches
	layout    string
	near      bool // prefetch into the first-level cache, not the second
	columns   bool // vectors that are prepared together are of different columns: of column, now
	column    int
	constants map[int]mem              // constants that are in memory now, by field
	coef      reg                      // the records of constants, for a kernel that loads them itself
	loadConst func(dst vec, field int) // loads a constant; set by the walk
	table     []row                    // constants of a function
	saved     bool                     // arm64: the mask of a part is in the area
	vecs      int
	regs      int
	labels    int
}

func (a *asm) printf(format string, args ...any) {
	fmt.Fprintf(&a.buf, "\t"+format+"\n", args...)
}

// newVec and newReg hand out registers; a kernel keeps what it gets.
func (a *asm) newVec() vec {
	if a.vecs == numVecs {
		panic(a.name + ": out of vectors")
	}
	a.vecs++
	return vec(a.vecs - 1)
}

func (a *asm) newReg() reg {
	if a.regs == a.numRegs() {
		panic(a.name + ": out of registers on " + a.arch())
	}
	a.regs++
	return reg(a.regs - 1)
}

// newArg hands out a register that holds a field of the arguments.
func (a *asm) newArg(field string) reg {
	r := a.newReg()
	a.arg(r, field)
	return r
}

func (a *asm) newLabel(name string) string {
	a.labels++
	return fmt.Sprintf("%s%d", name, a.labels)
}

func (a *asm) label(l string) { fmt.Fprintf(&a.buf, "\n%s:\n", l) }

// Short names for the lowering's methods.
func (a *asm) arg(dst reg, field string) { a.lowering.arg(a, dst, field) }
func (a *asm) move(dst, src reg)         { a.lowering.move(a, dst, src) }
func (a *asm) addImm(dst reg, n int)     { a.lowering.addImm(a, dst, n) }
func (a *asm) addReg(dst, src reg)       { a.lowering.add(a, dst, src) }
func (a *asm) subReg(dst, src reg)       { a.lowering.sub(a, dst, src) }
func (a *asm) subImm(dst reg, n int)     { a.lowering.subImm(a, dst, n) }
func (a *asm) shiftLeft(dst reg, n int)  { a.lowering.shiftLeft(a, dst, n) }
func (a *asm) andImm(dst reg, n int)     { a.lowering.andImm(a, dst, n) }
func (a *asm) branch(c cond, l string)   { a.lowering.branch(a, c, l) }
func (a *asm) jump(l string)             { a.lowering.jump(a, l) }
func (a *asm) prefetch(m mem)            { a.lowering.prefetch(a, m) }
func (a *asm) broadcast(dst vec, m mem)  { a.lowering.broadcast(a, dst, m) }
func (a *asm) zero(dst vec)              { a.lowering.zero(a, dst) }
func (a *asm) add(dst, x, y vec)         { a.op(opAdd, dst, x, y) }
func (a *asm) sub(dst, x, y vec)         { a.op(opSub, dst, x, y) }
func (a *asm) mul(dst, x, y vec)         { a.op(opMul, dst, x, y) }
func (a *asm) op(o op, dst, x, y vec)    { a.lowering.op(a, o, dst, x, y) }

// addMem sets dst = x + y with y in memory, perhaps by way of t.
func (a *asm) addMem(dst, x vec, y mem, t vec, part bool) {
	if part {
		a.loadPart(a, t, y)
		a.add(dst, x, t)
		return
	}
	a.opMem(a, opAdd, dst, x, y, t)
}

func (a *asm) load(dst vec, m mem, part bool) {
	if part {
		a.loadPart(a, dst, m)
	} else {
		a.lowering.load(a, dst, m)
	}
}
func (a *asm) store(src vec, m mem, part bool) {
	switch {
	case part:
		a.storePart(a, src, m)
	case a.stream:
		a.storeStream(a, src, m)
	default:
		a.lowering.store(a, src, m)
	}
}

// header is what stands at the top of every assembly file.
func header() string {
	s := "#include \"go_asm.h\"\n#include \"textflag.h\"\n\n" +
		"// maskTable+32-4*n is the mask of the first n lanes.\n"
	for i := range 16 {
		v := uint32(0)
		if i < 8 {
			v = 0xffffffff
		}
		s += fmt.Sprintf("DATA maskTable<>+%d(SB)/4, $%#x\n", 4*i, v)
	}
	return s + "GLOBL maskTable<>(SB), RODATA|NOPTR, $64\n"
}

// generate returns the text of every generated file, by its name.
func generate() map[string][]byte {
	files := map[string][]byte{}
	for _, l := range []lowering{amd64{}, arm64{}} {
		var text, stubs, cases strings.Builder
		fmt.Fprintf(&text, "// Code generated by ./kernels; DO NOT EDIT.\n\n//go:build %s && !purego\n\n%s", l.arch(), l.header())
		fmt.Fprintf(&stubs, "// Code generated by ./kernels; DO NOT EDIT.\n\n//go:build %s && !purego\n\npackage batchnorm\n\n", l.arch())
		stubs.WriteString(l.detect())
		for _, v := range variants() {
			a := &asm{lowering: l, name: v.name, args: "kernelArgs", constants: map[int]mem{}}
			frame := 0
			if v.called != "" {
				frame = l.frame()
				l.area(a, v.called)
			}
			v.emit(a)
			l.end(a)
			fmt.Fprintf(&text, "\n// func %s(a *kernelArgs)\nTEXT ·%s(SB), NOSPLIT, $%d-8\n%s", v.name, v.name, frame, a.buf.String())
			fmt.Fprintf(&stubs, "//go:noescape\nfunc %s(a *kernelArgs)\n\n", v.name)
			fmt.Fprintf(&cases, "case %s:\n%s(a)\n", v.id, v.name)
		}
		text.WriteString(functions(l))
		channelCode, channelStubs, channelCases := channelText(l)
		text.WriteString(channelCode)
		stubs.WriteString(channelStubs)
		fmt.Fprintf(&stubs, "// simdActivation returns where the function with the given [functionID] begins.\nfunc simdActivation(id int) uintptr\n\n")
		a := &asm{lowering: l, name: "simdFence"}
		l.fence(a)
		a.printf("RET")
		fmt.Fprintf(&text, "\n// func simdFence()\nTEXT ·simdFence(SB), NOSPLIT, $0-0\n%s", a.buf.String())
		fmt.Fprintf(&stubs, "// simdFence orders what kernels have stored past the caches before all that follows.\nfunc simdFence()\n\n")
		fmt.Fprintf(&stubs, "// simdKernel calls the kernel with the given [kernelID]. The calls are direct,\n// so that the arguments stay on the stack.\nfunc simdKernel(id int, a *kernelArgs) {\nswitch id {\n%sdefault:\npanic(\"batchnorm: no such kernel\")\n}\n}\n\n", cases.String())
		fmt.Fprintf(&stubs, "// simdChannels calls one of the kernels that compute with channels.\nfunc simdChannels(id int, a *channelArgs) {\nswitch id {\n%sdefault:\npanic(\"batchnorm: no such kernel\")\n}\n}\n", channelCases)
		src, err := format.Source([]byte(stubs.String()))
		if err != nil {
			panic(err)
		}
		files["kernels_"+l.arch()+".go"] = src
		files["kernels_"+l.arch()+".s"] = []byte(text.String())
	}
	return files
}
