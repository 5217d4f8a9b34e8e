package main

import (
	"fmt"
	"go/format"
	"strings"
)

// vec is a virtual vector of 8 float32: a YMM register on AVX2, two adjacent V
// registers on NEON.
type vec int

// numVecs is the number of virtual vectors that a kernel may use, of 16. The last is
// the mask of the tail.
const numVecs = 15

// vecBytes is the size of a vec in memory.
const (
	vecBytes = 32
	vecShift = 5
)

// reg is a virtual scalar register for pointers and counters.
type reg int

// pair is 8 float64: the lower and the upper half of a vector, widened.
type pair [2]vec

// firstArg is the first of the 4 vectors with the arguments and results of a called
// function.
const firstArg vec = 2

// mem is the address base + index*scale + off; scale is 1 or 2, and 0 for an
// address without an index.
type mem struct {
	base, index reg
	scale       int
	off         int
	arg         string // the name of an argument, which the lowering holds; instead of the others
}

// op is an operation on two vecs, lane by lane.
type op int

const (
	opAdd op = iota
	opSub
	opMul
	opMax // a > b ? a : b, where b is not 0
	opMin // a < b ? a : b, where b is not 0
	opAnd
	opAndNot // ^a & b
	opOr
	opXor
	opGT // all ones where a > b, zero elsewhere and for NaN
	opLE // all ones where a <= b, zero elsewhere and for NaN

	// Operations on the bits as signed integers. They are faster than those on floats, and
	// give the same result unless both operands are negative.
	opMaxInt
	opMinInt
	opGTInt // all ones where a > b, zero elsewhere
	opMinUnsigned
	opAddInt

	// Operations on 4 float64.
	opAdd64
	opSub64
	opMul64
	opDiv64
	opAddProduct64 // dst + a*b, rounded once: of float32 values only, whose product float64 holds
	opGE64         // all ones where a >= b, zero elsewhere and for NaN
	opLE64         // all ones where a <= b, zero elsewhere and for NaN
	opAddInt64     // on the bits
)

// farLanes says which lanes of a call's arguments are far.
type farLanes int

const (
	noneFar   farLanes = iota
	someFar            // the vectors are taken one after the other
	mergedFar          // some; the vectors are merged
	allFar
)

// cond is a condition on the result of the last subtraction.
type cond int

const (
	ifLess    cond = iota // negative
	ifNotLess             // zero or positive
	ifZero
	ifNotZero
)

// lowering prints the instructions of one architecture. An instruction set is one
// implementation of it.
type lowering interface {
	arch() string
	header() string       // the top of the assembly file
	holdArgs(args string) // keeps the address of arguments in a register; not in kernels with calls
	detect() string       // the Go function detectSIMD
	// subroutines returns the text of the lowering's own subroutines that code calls.
	subroutines(code string) string

	arg(dst reg, field string)              // dst = args.field
	argAddr(dst reg, field string)          // dst = &args.field
	argMem(field string, t reg) mem         // args.field; t may get its address. The arguments must be held
	ifNoArg(field string, t reg, to string) // branches if an argument is 0: nil, or +0; the arguments must be held
	move(dst, src reg)
	addImm(dst reg, n int)
	addReg(dst, src reg)
	addFrom(dst, src reg, off int, t reg) // dst += an integer in memory, off bytes behind src; t is a temporary
	subReg(dst, src reg)
	subImm(dst reg, n int) // sets the condition
	shiftLeft(dst reg, n int)
	shiftDown(dst reg, n int) // of a signed number
	set(dst reg, n int)
	negate(dst reg)
	least(dst, src reg)                    // dst = min(dst, src)
	storeArg(src reg, field string, t reg) // args.field = src; t is a temporary
	reduceArg(field string, by, t reg)     // args.field -= by, which sets the condition; t is a temporary
	raiseArg(field string, by, t reg)      // args.field += by; t is a temporary
	andImm(dst reg, n int)                 // sets the condition, for zero
	branch(c cond, label string)
	ifUnequal(x, y reg, label string)
	jump(label string)

	// tail sets the length of the tail in floats: n, 0 to 7. It may change n.
	tail(n reg)
	load(dst vec, m mem)
	loadTail(dst vec, m mem) // the other lanes become 0; no memory after the tail is read
	store(src vec, m mem)
	storeTail(src vec, m mem)
	// storeStream is a non-temporal store; the address is a multiple of vecBytes. It is
	// used only if streams returns true.
	storeStream(src vec, m mem)
	streams() bool
	// sharesConstants reports whether all functions of a file have one table of constants. They have if an
	// instruction reaches any address. Offsets from a register are short.
	sharesConstants() bool
	fence()               // orders the stores of storeStream before later stores
	prefetch(m mem)       // into the first-level cache if the printer's toFirst is set
	keepTail(v vec)       // the lanes after the tail become 0
	elsewhere(dst, x vec) // the lanes after the tail become those of x
	broadcast(dst vec, m mem)
	broadcast64(dst vec, m mem)
	zero(dst vec)
	op(o op, dst, x, y vec)
	positive(dst, x vec)    // all ones where x > 0, zero elsewhere and for NaN
	notPositive(dst, x vec) // all ones where x <= 0, zero elsewhere and for NaN
	// opMem is op with y in memory; it may load it into t.
	opMem(o op, dst, x vec, y mem, t vec)
	sqrt64(dst, x vec) // of 4 float64
	// reduce sums 8 float64, as reduce in ../stats.go does, to dst, and 8 others to dst2. The
	// registers are lost.
	reduce(dst, dst2 mem, x, y pair)
	// pointTable makes the table of constants usable, until the next address with an
	// index.
	pointTable()
	end()
	// jumpByTable jumps to an address in a table of n, with the function's first argument
	// as index, and returnFromTable returns this address. The arguments stay in place. An
	// index that is too large faults.
	jumpByTable(table string, n int)
	returnFromTable(table string, n int)

	// The rest is for functions of activations and the kernels that call them.
	// A function leaves the vectors 0 and 1 and the mask of the tail unchanged.

	frame() int // bytes of the frame of a kernel with calls
	// area prepares calls of the function whose address is in a field of actCode, and
	// loads flags for ifFlag.
	area(field string, flags flags)
	// ifFlag goes to label if a flag of the call is set, or if it is not set.
	ifFlag(f flags, set bool, label string)
	call(n int) // for n vectors
	back()      // returns from a function
	// tableFirst makes the table of constants usable from the start of the function. It
	// is called at the end, when the table is known.
	tableFirst()

	// For a function that computes far arguments separately. saveArgs comes before the
	// others.
	saveArgs()
	argument(dst vec, j int)           // dst = the j-th argument of 4, as saved
	ifAny(v vec, label string)         // it may change v
	ifNone(v vec, label string)        // if no lane of v is all ones; it may change v
	ifNoneKept(v, t vec, label string) // ifNone, but it does not change v; t is a temporary
	// ifSome is ifAny. At its label, ifAll goes to another one if all lanes of v are all ones.
	// others returns a mask of the lanes that are not, for a lowering that needs it.
	ifSome(v vec, label string)
	ifAll(others func() vec, label string)
	// saveFarMask saves the mask of the far lanes of the j-th argument, and saveFar the j-th
	// result. eachFar loads the arguments of a call into z, one after the other, and saves the
	// result that body leaves there, if it doesn't go to next. loadFarMask loads the mask of
	// the argument. alone runs body, from the label enter on, for the vector in z alone, which
	// stays there.
	saveFarMask(src vec, j int)
	saveFar(src vec, j int)
	eachFar(z vec, body func(next string))
	loadFarMask(dst vec)
	alone(enter string)
	// eachPair runs body for two vectors of a call, and for the next two. The others have the
	// j-th of two: argumentOfPair loads the argument, saveFarOfPair saves the result.
	eachPair(body func())
	argumentOfPair(dst vec, j int)
	saveFarOfPair(src vec, j int)
	setFar(k farLanes)
	ifFar(c cond, k farLanes, label string) // if it is less than k, or not
	// ifMerged goes to apart if a lane of twice is set, and to none if no sum is below 0.
	// Where twice is set, the sum is below 0. It may change them.
	ifMerged(twice, sum vec, apart, none string)
	// rotate sets lane i of each half of dst to lane i+n, modulo 4, of that half of x, and
	// rotateArgument of the j-th argument, for n = j.
	rotate(dst, x vec, n int)
	rotateArgument(dst vec, j int)
	opArgument(o op, dst, x vec, j int) // op with the j-th argument as y; dst is not x
	farResult(dst vec, j int)
	replaceFar(dst, t vec, j int) // replaces the far lanes by those of the j-th result; t is a temporary

	// For polynomials in pieces. pieceIndex turns integers whose low 3 bits are the number
	// of the piece into indices. lookup selects the values at the indices from a row of
	// the table, after openRow of this row.
	shiftRight(dst vec, n int)
	pieceIndex(u []vec)
	openRow(off int)
	lookup(dst, index vec, off int)

	param(dst vec, field string) // dst = a parameter
	param64(dst vec)             // dst = the first parameter as float64
	constant(dst vec, off int)   // dst = the constant at an offset in the function's table
	opConstant(o op, dst, x vec, off int)
	// blend sets dst to x where mask is all ones, and to y where it is 0. dst is one of
	// the others.
	blend(dst, mask, x, y vec)
	// bySign sets dst to negative where z has a minus sign, and to positive elsewhere. dst
	// is not z. It may change z if z is neither negative nor positive.
	bySign(dst, z, negative, positive vec)
	// above sets dst to x > y ? x : y, and below to x < y ? x : y. dst is x or y; t is a
	// temporary.
	above(dst, x, y, t vec)
	below(dst, x, y, t vec)
	widen(dst pair, src vec)
	widenFrom(dst pair, m mem)
	// narrow rounds to float32; dst may be the first of src, and the temporary t the second.
	narrow(dst vec, src pair, t vec)
	shift52(dst, x vec) // shifts the bits of float64 left by 52
	shift20(dst, x vec) // shifts the bits of float32 left by 20
}

// target is an instruction set: it makes the lowering that prints to p.
type target func(p *printer) lowering

var targets = []target{newAMD64, newARM64}

// asm is a function that is being printed: a lowering, its printer, and the state that
// a kernel shares with its walk.
type asm struct {
	lowering
	*printer
	flags     flags // the flags that every call has set
	asked     flags // the flags that the kernel tests in every call
	layout    layout
	columns   bool                     // vectors that are prepared together have different columns
	column    int                      // the current one of these columns
	coef      reg                      // the records of constants, for a kernel that loads them itself
	loadConst func(dst vec, field int) // loads a constant; set by the walk
	// instead replaces lanes of a vector that is about to be stored to an output, as number j of some that are stored
	// together. It is nil if no lanes are replaced. The walk sets it.
	instead func(a *asm, j int, v vec, output reg)
}

// newAsm begins a function whose arguments have the type args.
func newAsm(on target, name, args string) *asm {
	p := &printer{name: name, args: args, table: &constants{name: name + "Table"}}
	return &asm{lowering: on(p), printer: p}
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

// addMem sets dst = x + y with y in memory; it may load y into t.
func (a *asm) addMem(dst, x vec, y mem, t vec, tail bool) {
	if tail {
		a.loadTail(t, y)
		a.add(dst, x, t)
		return
	}
	a.opMem(opAdd, dst, x, y, t)
}

// read loads a vector or a tail of an input.
func (a *asm) read(dst vec, m mem, tail bool) {
	if tail {
		a.loadTail(dst, m)
	} else {
		a.load(dst, m)
	}
}

// write stores vectors or tails of an output; at returns their addresses.
func (a *asm) write(src []vec, at func(j int) mem, tail bool) {
	each := func(store func(src vec, m mem)) func() {
		return func() {
			for j, v := range src {
				store(v, at(j))
			}
		}
	}
	if a.instead != nil {
		for j, v := range src {
			a.instead(a, j, v, at(j).base)
		}
	}
	if tail {
		each(a.storeTail)()
		return
	}
	a.choose(withStream, each(a.storeStream), each(a.store))
}

// choose prints the code for a flag that is set, or for one that is not. A kernel that
// tests the flag in every call has both. One of the two may be nil.
func (a *asm) choose(f flags, set, otherwise func()) {
	print := func(f func()) {
		if f != nil {
			f()
		}
	}
	switch {
	case a.flags&f != 0:
		print(set)
	case a.asked&f == 0:
		print(otherwise)
	case otherwise == nil:
		done := a.newLabel("without")
		a.ifFlag(f, false, done)
		set()
		a.label(done)
	case set == nil:
		done := a.newLabel("with")
		a.ifFlag(f, true, done)
		otherwise()
		a.label(done)
	default:
		other, done := a.newLabel("without"), a.newLabel("chosen")
		a.ifFlag(f, false, other)
		set()
		a.jump(done)
		a.label(other)
		otherwise()
		a.label(done)
	}
}

// header returns the top of every assembly file.
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

// table returns the text of a table of addresses, and of the declared function, whose
// first argument is an index into the table. entries has the symbols; an entry without
// a symbol leads to a function that faults.
func table(on target, declaration, frame string, entries []string, emit func(a *asm, table string, n int)) string {
	name, _, _ := strings.Cut(declaration, "(")
	symbol := name + "Table"
	var text strings.Builder
	for i, entry := range entries {
		if entry == "" {
			entry = absent
		}
		fmt.Fprintf(&text, "DATA %s<>+%d(SB)/8, $%s(SB)\n", symbol, 8*i, entry)
	}
	fmt.Fprintf(&text, "GLOBL %s<>(SB), RODATA|NOPTR, $%d\n", symbol, 8*len(entries))
	a := newAsm(on, name, "")
	emit(a, symbol, len(entries))
	return fmt.Sprintf("%s// func %s\nTEXT ·%s(SB), NOSPLIT|NOFRAME, $0-%s\n%s", text.String(), declaration, name, frame, a.buf.String())
}

// absent is the symbol of the function in place of kernels and functions that don't
// exist.
const absent = "·absent<>"

// generate returns the text of every generated file, by its name.
func generate() map[string][]byte {
	files := map[string][]byte{"kernels_list_test.go": listing()}
	for _, on := range targets {
		arch := on(&printer{}).arch()
		files["kernels_"+arch+".go"] = formatted(declarations(on))
		files["kernels_"+arch+".s"] = []byte(assembly(on))
	}
	return files
}

const generated = "// Code generated by ./kernels; DO NOT EDIT.\n\n"

// constraint is the build constraint of an instruction set.
func constraint(arch string) string { return fmt.Sprintf("//go:build %s && !purego\n\n", arch) }

// assembly returns the text of an assembly file.
func assembly(on target) string {
	var text strings.Builder
	l := on(&printer{})
	text.WriteString(generated + constraint(l.arch()) + l.header())
	shared := &constants{name: "constants", shared: true}
	if own := on; l.sharesConstants() {
		on = func(p *printer) lowering {
			p.table = shared
			return own(p)
		}
	}
	kernels := make([]string, numIDs)
	same := map[string]string{} // the symbol of a kernel, by its code
	for _, v := range variants() {
		a := newAsm(on, v.name(), "kernelArgs")
		v.emit(a)
		frame := 0
		if v.act.called {
			frame = a.frame()
		}
		symbol, ok := same[a.buf.String()]
		if !ok {
			symbol = local(v.name())
			same[a.buf.String()] = symbol
			fmt.Fprintf(&text, "// func %s(id int, a *kernelArgs)\nTEXT %s(SB), NOSPLIT, $%d-16\n%s", v.name(), symbol, frame, a.buf.String())
		}
		kernels[v.id()] = symbol
	}
	for kernels[len(kernels)-1] == "" {
		kernels = kernels[:len(kernels)-1]
	}
	jump := func(a *asm, table string, n int) { a.jumpByTable(table, n) }
	text.WriteString(table(on, "simdKernel(id int, a *kernelArgs)", "16", kernels, jump))

	if l.streams() {
		text.WriteString(turnsText(on))
	}

	code, channels := channelText(on)
	text.WriteString(code)
	text.WriteString(table(on, "simdChannels(id int, a *channelArgs)", "16", channels, jump))

	code, functions := functions(on)
	text.WriteString(code)
	text.WriteString(table(on, "simdActivation(id int) uintptr", "16", functions, func(a *asm, table string, n int) { a.returnFromTable(table, n) }))

	a := newAsm(on, "simdFence", "")
	a.fence()
	a.printf("RET")
	fmt.Fprintf(&text, "// func simdFence()\nTEXT ·simdFence(SB), NOSPLIT, $0-0\n%s", a.buf.String())
	fmt.Fprintf(&text, "// In place of kernels that don't exist.\nTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n\tUNDEF\n", absent)
	text.WriteString(l.subroutines(text.String()))
	text.WriteString(shared.text())
	return text.String()
}

// local is the symbol of a function that is local to the assembly file, and needs no
// declaration in Go.
func local(name string) string { return "·" + name + "<>" }

// declarations returns the text of the Go file beside an assembly file.
func declarations(on target) string {
	l := on(&printer{})
	return generated + constraint(l.arch()) + "package batchnorm\n\n" + l.detect() + `
// simdKernel runs the kernel with the given [kernelID]: it jumps there, and the
// kernel returns to the caller. It faults for an id without a kernel.
//
//go:noescape
func simdKernel(id int, a *kernelArgs)

` + turnsDeclaration(l.streams()) + `
// simdChannels runs the channel kernel with the given number.
//
//go:noescape
func simdChannels(id int, a *channelArgs)

// simdActivation returns the address of the function with the given [functionID].
func simdActivation(id int) uintptr

// simdFence orders the non-temporal stores of kernels before all later stores.
func simdFence()
`
}

// listing returns the text of a Go file for tests, with a list of the kernels.
func listing() []byte {
	var text strings.Builder
	text.WriteString(generated + "package batchnorm\n\n// assembled has the kernels that exist in assembly, by their [kernelID].\n" +
		"var assembled = map[int]string{\n")
	for _, v := range variants() {
		fmt.Fprintf(&text, "%s: %q,\n", v.goID(), v.name())
	}
	text.WriteString("}\n")
	return formatted(text.String())
}

func formatted(text string) []byte {
	src, err := format.Source([]byte(text))
	if err != nil {
		panic(err)
	}
	return src
}
