package main

import (
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

// pair is 8 float64, those of the lower and of the upper half of a vector.
type pair [2]vec

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

	arg(dst reg, field string)     // dst = args.field
	argAddr(dst reg, field string) // dst = &args.field
	move(dst, src reg)
	addImm(dst reg, n int)
	addReg(dst, src reg)
	subReg(dst, src reg)
	subImm(dst reg, n int) // sets the condition
	shiftLeft(dst reg, n int)
	andImm(dst reg, n int) // sets the condition, for zero
	branch(c cond, label string)
	jump(label string)

	// part sets how many floats the methods on parts handle: n, 0 to 7. It may
	// change n.
	part(n reg)
	load(dst vec, m mem)
	loadPart(dst vec, m mem) // the other lanes become 0; nothing behind the part is read
	store(src vec, m mem)
	storePart(src vec, m mem)
	// storeStream stores past the caches; the address is a multiple of vecBytes.
	storeStream(src vec, m mem)
	fence()               // what storeStream stored is seen by other cores before what is stored after
	prefetch(m mem)       // into the first-level cache if the kernel is near
	keepPart(v vec)       // the other lanes become 0
	elsewhere(dst, x vec) // the other lanes become those of x
	broadcast(dst vec, m mem)
	broadcast64(dst vec, m mem)
	zero(dst vec)
	op(o op, dst, x, y vec)
	positive(dst, x vec)    // all ones where x > 0, zero elsewhere and for NaN
	notPositive(dst, x vec) // all ones where x <= 0, zero elsewhere and for NaN
	// opMem is op with y in memory; it may load it into t.
	opMem(o op, dst, x vec, y mem, t vec)
	sqrt64(dst, x vec) // of 4 float64
	// reduce sums 8 float32 from memory in float64, as reduce in ../stats.go does, and
	// the 8 behind them; t are temporaries.
	reduce(dst, dst2, src mem, t [3]vec)
	// pointTable makes the constants of a kernel ready to be used, until there is an
	// address with an index.
	pointTable()
	end()

	// The rest is for functions of activations and the kernels that call them.
	// A function keeps the vectors 0 and 1 and the mask of a part.

	frame() int // bytes of the frame of a kernel that calls
	// area prepares calls of the function whose address is in a field of actCode.
	area(field string)
	call(count int) // for count vectors
	back()          // returns from a function
	// tableFirst makes the table of constants ready in front of all that is there; before,
	// nothing is known of it.
	tableFirst()

	// For a function that computes what is far apart. saveArgs comes before the others.
	saveArgs()
	argument(dst vec, j int) // dst = the j-th of the 4 vectors, as it was
	ifAny(v vec, label string)
	ifNone(v vec, label string) // if no lane of v is all ones
	nothingFar()
	// eachFar takes the vectors of a call to z, one after the other, and keeps what body
	// makes of them for farResult, unless it goes to next.
	eachFar(z vec, body func(next string))
	ifFar(label string) // if there was something far
	farResult(dst vec, j int)

	// For polynomials in pieces. pieceIndex makes indices of integers whose low 3 bits
	// tell the piece. lookup takes of a row in the table what is at the indices; openRow
	// comes first.
	shiftRight(dst vec, n int)
	pieceIndex(u []vec)
	openRow(off int)
	lookup(dst, index vec, off int)

	param(dst vec, field string) // dst = a parameter
	wideParam(dst vec)           // dst = the first parameter, float64
	constant(dst vec, off int)   // dst = the constant at an offset in the function's table
	// found leads on to next unless simdActivation is asked for id; else it puts the
	// address of a function into dst and goes to done.
	found(dst reg, name string, id int, next, done string)
	returnReg(src reg) // returns it from simdActivation
	opConstant(o op, dst, x vec, off int)
	// blend sets dst, which is one of the others, to x where mask is all ones, and to y
	// where it is 0.
	blend(dst, mask, x, y vec)
	// bySign sets dst, which is not z, to negative where z has a minus sign, and to
	// positive elsewhere. It may change z if that is neither.
	bySign(dst, z, negative, positive vec)
	// above sets dst, which is x or y, to x > y ? x : y, and below to x < y ? x : y;
	// t is a temporary.
	above(dst, x, y, t vec)
	below(dst, x, y, t vec)
	widen(dst pair, src vec)
	narrow(dst vec, src pair) // dst may be the first of src
	shift52(dst, x vec)       // the bits of float64, 52 to the left
}

// target is an instruction set: it makes the lowering that prints to p.
type target func(p *printer) lowering

var targets = []target{newAMD64, newARM64}

// asm is one function in the making: the instructions of a target, where they are
// printed, and what a kernel and the walk that it takes have to tell each other.
type asm struct {
	lowering
	*printer
	stream    bool // non-temporal stores
	layout    string
	columns   bool // vectors that are prepared together are of different columns: of column, now
	column    int
	constants map[int]mem              // constants that are in memory now, by field
	coef      reg                      // the records of constants, for a kernel that loads them itself
	loadConst func(dst vec, field int) // loads a constant; set by the walk
}

// newAsm begins a function whose arguments have the type args.
func newAsm(on target, name, args string) *asm {
	p := &printer{name: name, args: args}
	return &asm{lowering: on(p), printer: p, constants: map[int]mem{}}
}

// newArg hands out a register that holds a field of the arguments.
func (a *asm) newArg(field string) reg {
	r := a.newReg()
	a.arg(r, field)
	return r
}

func (a *asm) add(dst, x, y vec) { a.op(opAdd, dst, x, y) }
func (a *asm) sub(dst, x, y vec) { a.op(opSub, dst, x, y) }
func (a *asm) mul(dst, x, y vec) { a.op(opMul, dst, x, y) }

// addMem sets dst = x + y with y in memory, perhaps by way of t.
func (a *asm) addMem(dst, x vec, y mem, t vec, part bool) {
	if part {
		a.loadPart(t, y)
		a.add(dst, x, t)
		return
	}
	a.opMem(opAdd, dst, x, y, t)
}

// read loads a vector of an input, or a part of it.
func (a *asm) read(dst vec, m mem, part bool) {
	if part {
		a.loadPart(dst, m)
	} else {
		a.load(dst, m)
	}
}

// write stores a vector of an output, or a part of it.
func (a *asm) write(src vec, m mem, part bool) {
	switch {
	case part:
		a.storePart(src, m)
	case a.stream:
		a.storeStream(src, m)
	default:
		a.store(src, m)
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
	for _, on := range targets {
		l := on(&printer{})
		var text, stubs, cases strings.Builder
		fmt.Fprintf(&text, "// Code generated by ./kernels; DO NOT EDIT.\n\n//go:build %s && !purego\n\n%s", l.arch(), l.header())
		fmt.Fprintf(&stubs, "// Code generated by ./kernels; DO NOT EDIT.\n\n//go:build %s && !purego\n\npackage batchnorm\n\n", l.arch())
		stubs.WriteString(l.detect())
		for _, v := range variants() {
			a := newAsm(on, v.name, "kernelArgs")
			frame := 0
			if v.called != "" {
				frame = a.frame()
				a.area(v.called)
			}
			v.emit(a)
			a.end()
			fmt.Fprintf(&text, "\n// func %s(a *kernelArgs)\nTEXT ·%s(SB), NOSPLIT, $%d-8\n%s", v.name, v.name, frame, a.buf.String())
			fmt.Fprintf(&stubs, "//go:noescape\nfunc %s(a *kernelArgs)\n\n", v.name)
			fmt.Fprintf(&cases, "case %s:\n%s(a)\n", v.id, v.name)
		}
		text.WriteString(functions(on))
		channelCode, channelStubs, channelCases := channelText(on)
		text.WriteString(channelCode)
		stubs.WriteString(channelStubs)
		fmt.Fprintf(&stubs, "// simdActivation returns where the function with the given [functionID] begins.\nfunc simdActivation(id int) uintptr\n\n")
		a := newAsm(on, "simdFence", "")
		a.fence()
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
