package main

import (
	"fmt"
	"math"
	"strings"
)

// The kernels that compute with channels, in float64. The comments in ../channels.go say
// what each computes. ../stats.go has the same operations in the same order.

// channelKernel is a kernel that computes with channels.
type channelKernel struct {
	name string // NAME in Go's channelNAME; the assembly function is nameChannels
	emit func(c *chans)
}

// channelKernels are in the order of their constants.
var channelKernels = []channelKernel{
	{"Fold", foldChannels},
	{"Reduce", reduceChannels},
	{"ReduceShort", reduceShortChannels},
	{"Flush", flushChannels},
	{"FoldReduced", foldReducedChannels},
	{"Probe", probeChannels},
	{"Add", addChannels},
	{"Merge", mergeChannels},
	{"AddSums", addSumsChannels},
	{"Forward", forwardChannels},
	{"Affine", affineChannels},
	{"Backward", backwardChannels},
	{"Track", trackChannels},
	{"Strip", stripChannels},
	{"Gradients64", gradients64Channels},
	{"Records64", records64Channels},
	{"Tiny", tinyChannels},
}

func (k channelKernel) function() string {
	return strings.ToLower(k.name[:1]) + k.name[1:] + "Channels"
}

// chans is a kernel on channels that is being printed. Its loop handles 8 channels.
type chans struct {
	*fn
	arrays []array
	usual  vec // all ones where a channel is usual, as far as it has been looked at
	kept   vec // a temporary, for a kernel whose closer look needs the quick one; otherwise unused
	offs   *offsets
	left   reg // in a loop: the number of channels from the current ones on
}

// offsets is for kernels with more arrays than there are registers. Addresses of arrays
// are loaded when they are needed. Registers hold the offsets of the current 8 channels.
type offsets struct {
	in32, in64 reg // in arrays of float32 and of float64
	in, step   reg // in constants; the bytes from the constants of 8 channels to the next
	t          reg // a temporary
}

// array is an argument: a pointer that moves along with the loop.
type array struct {
	at    reg
	bytes int // per iteration
}

const (
	float32s = vecBytes     // bytes of 8 channels in float32
	float64s = 2 * vecBytes // and in float64
)

func newChans(on target, name string) *chans {
	c := &chans{fn: &fn{asm: newAsm(on, name, "channelArgs")}, kept: unused}
	c.holdArgs("a+8")
	return c
}

// array returns the pointer to an argument with this number of bytes for 8 channels.
func (c *chans) array(field string, bytes int) array {
	a := array{c.newArg(field), bytes}
	c.arrays = append(c.arrays, a)
	return a
}

func (c *chans) float32s(field string) array { return c.array(field, float32s) }
func (c *chans) float64s(field string) array { return c.array(field, float64s) }

// useOffsets sets the registers that find32, find64 and findConst use.
func (c *chans) useOffsets() {
	f := &offsets{c.newReg(), c.newReg(), c.newReg(), c.newReg(), c.newReg()}
	for _, r := range []reg{f.in32, f.in64, f.in} {
		c.set(r, 0)
	}
	c.arg(f.step, "step")
	c.offs = f
}

func (c *chans) find(field string, offset reg) array {
	c.arg(c.offs.t, field)
	c.addReg(c.offs.t, offset)
	return array{at: c.offs.t}
}

// find32, find64 and findConst return the place of 8 channels in an array of float32, of
// float64 and of constants. It holds until the next call of one of them.
func (c *chans) find32(field string) array    { return c.find(field, c.offs.in32) }
func (c *chans) find64(field string) array    { return c.find(field, c.offs.in64) }
func (c *chans) findConst(field string) array { return c.find(field, c.offs.in) }

// wanted prints code that is skipped unless the caller has given an array.
func (c *chans) wanted(field string, do func()) {
	skip := c.newLabel("unwanted")
	c.ifNoArg(field, c.offs.t, skip)
	do()
	c.label(skip)
}

// untilUnusual is loop for a kernel with offsets that stops in front of 8 channels of
// which one is unusual. begin comes before the loop. body takes a quick look, which may take
// a usual channel for an unusual one. It calls closely before it overwrites anything that it
// reads, with usual set to all ones where the channel seems unusual, or else to zeros. Where
// there is such a channel, tests look closely at all of them: they presume that all are usual,
// and clear usual where one is not. The number of channels that are left is stored in the
// arguments.
func (c *chans) untilUnusual(begin func(), body func(closely func(tests func()))) {
	n := c.newArg("n")
	before := c.buf.String()
	c.buf.Reset()
	again, end := c.newLabel("channels"), c.newLabel("unusual")
	if begin != nil {
		begin()
	}
	c.label(again)
	f := c.offs
	const ones = math.MaxUint64
	body(func(tests func()) {
		usual := c.newLabel("usual")
		if c.kept == unused {
			c.ifNone(c.usual, usual)
		} else {
			c.ifNoneKept(c.usual, c.kept, usual)
		}
		tests()
		c.opConstant(opXor, c.usual, c.usual, c.entry64(ones))
		c.ifAny(c.usual, end)
		c.label(usual)
	})
	c.addImm(f.in32, float32s)
	c.addImm(f.in64, float64s)
	c.addReg(f.in, f.step)
	c.subImm(n, lanes)
	c.branch(ifNotZero, again)
	c.label(end)
	c.storeArg(n, "n", f.t)
	loop := c.buf.String()
	c.buf.Reset()
	c.buf.WriteString(before)
	if len(c.table.rows) > 0 {
		c.pointTable()
	}
	c.buf.WriteString(loop)
	c.end()
}

// presume says that all channels are usual.
func (c *chans) presume() { c.constant(c.usual, c.entry64(math.MaxUint64)) }

// scalar returns a vector of copies of an argument.
func (c *chans) scalar(field string) vec {
	v, at := c.newVec(), c.newReg()
	c.broadcast64(v, c.argMem(field, at))
	c.regs--
	return v
}

// scalarPair is a scalar as an operand for both halves.
func scalarPair(v vec) pair { return pair{v, v} }

// newVec keeps the register of constants free.
func (c *chans) newVec() vec {
	v := c.fn.newVec()
	if v == constVec {
		panic(c.name + ": out of vectors beside constants")
	}
	return v
}

func (c *chans) pair() pair { return pair{c.newVec(), c.newVec()} }

// loop repeats body for all channels, 8 at a time, and ends the kernel.
func (c *chans) loop(body func()) { c.loopBy(lanes, body) }

// loopBy is loop for some channels at a time.
func (c *chans) loopBy(channels int, body func()) {
	n := c.newArg("n")
	c.left = n
	before := c.buf.String()
	c.buf.Reset()
	again := c.newLabel("channels")
	c.label(again)
	body()
	for _, a := range c.arrays {
		c.addImm(a.at, a.bytes)
	}
	c.subImm(n, channels)
	c.branch(ifNotZero, again)
	loop := c.buf.String()
	c.buf.Reset()
	c.buf.WriteString(before)
	if len(c.table.rows) > 0 { // only now it is known
		c.pointTable()
	}
	c.buf.WriteString(loop)
	c.end()
}

// load64 and store64 move 8 float64.
func (c *chans) load64(dst pair, a array) { c.load64From(dst, a, 0) }

func (c *chans) load64From(dst pair, a array, off int) {
	for h, v := range dst {
		c.load(v, mem{base: a.at, off: off + h*vecBytes})
	}
}

func (c *chans) store64(src pair, a array) {
	for h, v := range src {
		c.store(v, mem{base: a.at, off: h * vecBytes})
	}
}

// loadWidened sets dst to 8 float32 from memory.
func (c *chans) loadWidened(dst pair, a array, off int) {
	c.widenFrom(dst, mem{base: a.at, off: off})
}

// store32 rounds src to float32 and stores that; src is lost.
func (c *chans) store32(src pair, a array) {
	c.round(src)
	c.store(src[0], mem{base: a.at})
}

// shiftFor leaves shiftFor (../stats.go) of a mean in the first half of src.
func (c *chans) shiftFor(src pair) {
	c.round(src)
	c.opC(opXor, src[0], src[0], float32(math.Copysign(0, -1)))
	c.sub(src[1], src[0], src[0])
	c.op(opLE, src[1], src[1], src[1])
	c.op(opAnd, src[0], src[0], src[1])
}

// storeShift stores shiftFor of a mean; src is lost.
func (c *chans) storeShift(src pair, a array) {
	c.shiftFor(src)
	c.store(src[0], mem{base: a.at})
}

// round leaves src as float32 in its first half.
func (c *chans) round(src pair) { c.narrow(src[0], src, src[1]) }

// const64 returns a register that holds a constant until the next one.
func (c *chans) const64(v float64) vec {
	c.constant(constVec, c.entry64(math.Float64bits(v)))
	return constVec
}

// op64C is op with a constant operand.
func (c *chans) op64C(o op, dst, x vec, v float64) {
	c.opConstant(o, dst, x, c.entry64(math.Float64bits(v)))
}

// abs64 sets dst to |x|.
func (c *chans) abs64(dst, x vec) { c.opConstant(opAnd, dst, x, c.entry64(math.MaxInt64)) }

// look says that a channel is unusual unless a float32 x is within a range; t is a
// temporary. The range is to lie within that of usual channels, so that rounding does not
// matter. x is lost.
func (c *chans) look(x vec, above, to float32, t vec) {
	c.within(x, above, to, t)
	c.op(opAnd, c.usual, c.usual, x)
}

// within sets x to all ones where |x| is within a range; t is a temporary.
func (c *chans) within(x vec, above, to float32, t vec) {
	c.abs(x, x)
	if above <= 0 {
		c.opC(opLE, x, x, to)
		return
	}
	c.opC(opLE, t, x, to)
	c.opC(opGT, x, x, above)
	c.op(opAnd, x, x, t)
}

// refuse says that a channel is unusual if its mask is set.
func (c *chans) refuse(mask vec) { c.op(opAndNot, c.usual, mask, c.usual) }

// refuseWild says that a channel is unusual with an x that is wild; t are temporaries. Where
// the argument precise is all ones, x may be below the range.
func (c *chans) refuseWild(x pair, lo, hi float64, t [2]vec) {
	for _, v := range x {
		c.abs64(t[0], v)
		c.op64C(opGE64, t[1], t[0], above(hi))
		c.refuse(t[1])
		c.op64C(opLE64, t[1], t[0], below(lo))
		c.op64C(opLE64, t[0], t[0], 0)
		c.op(opAndNot, t[1], t[0], t[1])
		c.op(opAndNot, t[1], c.mask("precise"), t[1])
		c.refuse(t[1])
	}
}

// above and below are the next numbers, so that a comparison is false for NaN.
func above(v float64) float64 { return math.Nextafter(v, math.Inf(1)) }
func below(v float64) float64 { return math.Nextafter(v, math.Inf(-1)) }

// mask returns a register with an argument that is 0 or all ones. It holds until the next
// constant.
func (c *chans) mask(field string) vec { return c.broadcastArg(field, c.offs.t) }

// broadcast32 is mask for an argument that is a float32.
func (c *chans) broadcast32(field string) vec {
	c.broadcast(constVec, c.argMem(field, c.offs.t))
	return constVec
}

// broadcastArg returns a register with copies of an argument, which holds until the next
// constant; t is a temporary.
func (c *chans) broadcastArg(field string, t reg) vec {
	c.broadcast64(constVec, c.argMem(field, t))
	return constVec
}

// Limits, as in ../stats.go and ../large.go.
const (
	smallLeast = 0x1p-81
	smallMost  = 0x1p-54
	smallFirst = 0x1p-30

	sureMin   = 0x1p-100
	sureMax   = 0x1p+100
	tameMin   = 0x1p-60
	gradMin   = 0x1p-120
	factorMin = 0x1p-96
	factorMax = 0x1p+120

	slight     = 0x1p-50
	negligible = 0x1p-40
)

// ---- the kernels

// merge sets sumA and sumB to themselves merged with mean and m2, which are lost;
// a, b and t are temporaries. It leaves the mean in a.
func (c *chans) merge(sumA, sumB array, mean, m2, a, b, t pair, weight, cross vec) {
	c.load64(a, sumA)
	c.sub64(t, mean, a)
	c.add64(mean, mean, a) // the result for means that are infinite or NaN
	c.mul64(b, t, t)
	c.mul64(b, b, scalarPair(cross))
	c.add64(m2, m2, b)
	c.load64(b, sumB)
	c.add64(b, b, m2)
	c.store64(b, sumB)
	c.sub64(b, t, t)
	c.mul64(t, t, scalarPair(weight))
	c.add64(a, a, t)
	for h := range a {
		c.op64C(opGE64, b[h], b[h], 0) // the difference is finite
		c.op(opAnd, a[h], a[h], b[h])
		c.op(opAndNot, mean[h], b[h], mean[h])
		c.op(opOr, a[h], a[h], mean[h])
	}
	c.store64(a, sumA)
}

func foldChannels(c *chans) {
	acc := c.array("acc", 2*vecBytes)
	c.fold(func(s, q pair) {
		c.loadWidened(s, acc, 0)
		c.loadWidened(q, acc, vecBytes)
	})
}

func foldReducedChannels(c *chans) {
	otherA, otherB := c.float64s("otherA"), c.float64s("otherB")
	c.fold(func(s, q pair) {
		c.load64(s, otherA)
		c.load64(q, otherB)
	})
}

// reduceChannels needs no vectors of channels: it goes channel by channel.
func reduceChannels(c *chans) {
	sums := c.array("sums", sumLen*float64Bytes)
	c.reduceEach(func(s, q pair) {
		c.load64(s, sums)
		c.load64From(q, sums, lanes*float64Bytes)
	})
}

func reduceShortChannels(c *chans) {
	acc, zero := c.array("acc", sumLen*floatBytes), c.newVec()
	c.zero(zero)
	c.reduceEach(func(s, q pair) {
		for i, sum := range []pair{s, q} {
			c.loadWidened(sum, acc, i*vecBytes)
			c.store(zero, mem{base: acc.at, off: i * vecBytes})
		}
	})
}

// reduceEach is a kernel that reduces the lanes of each channel. get loads them.
func (c *chans) reduceEach(get func(s, q pair)) {
	otherA, otherB := c.array("otherA", float64Bytes), c.array("otherB", float64Bytes)
	s, q := c.pair(), c.pair()
	c.loopBy(1, func() {
		get(s, q)
		c.reduce(mem{base: otherA.at}, mem{base: otherB.at}, s, q)
	})
}

func flushChannels(c *chans) {
	acc, sums := c.float32s("acc"), c.float64s("sums")
	v, t, zero := c.pair(), c.pair(), c.newVec()
	c.zero(zero)
	c.loop(func() {
		c.loadWidened(v, acc, 0)
		c.store(zero, mem{base: acc.at})
		c.load64(t, sums)
		c.add64(t, t, v)
		c.store64(t, sums)
	})
}

// fold is a kernel that folds sums. get loads them into s and q.
func (c *chans) fold(get func(s, q pair)) {
	shift, sumA, sumB := c.float32s("shift"), c.float64s("sumA"), c.float64s("sumB")
	weight, cross, at := c.scalar("weight"), c.scalar("cross"), c.newReg()
	d, s, q, r, t := c.pair(), c.pair(), c.pair(), c.pair(), c.pair()
	c.loop(func() {
		get(s, q)
		c.divide(d, s, at)
		c.mul64(s, s, d)
		c.sub64(q, q, s)
		c.loadWidened(s, shift, 0)
		c.sub64(d, d, s)
		c.merge(sumA, sumB, d, q, s, r, t, weight, cross)
		c.storeShift(s, shift)
	})
}

func probeChannels(c *chans) {
	acc, shift := c.array("acc", 2*vecBytes), c.float32s("shift")
	s, at := c.pair(), c.newReg()
	c.loop(func() {
		c.loadWidened(s, acc, 0)
		c.divide(s, s, at)
		c.storeShift(s, shift)
	})
}

func addChannels(c *chans) {
	acc, sumA, sumB := c.array("acc", 2*vecBytes), c.float64s("sumA"), c.float64s("sumB")
	a, v := c.pair(), c.pair()
	c.loop(func() {
		for i, sum := range []array{sumA, sumB} {
			c.loadWidened(v, acc, i*vecBytes)
			c.load64(a, sum)
			c.add64(a, a, v)
			c.store64(a, sum)
		}
	})
}

func addSumsChannels(c *chans) {
	sums := [2]array{c.float64s("sumA"), c.float64s("sumB")}
	others := [2]array{c.float64s("otherA"), c.float64s("otherB")}
	a, v := c.pair(), c.pair()
	c.loop(func() {
		for i, sum := range sums {
			c.load64(v, others[i])
			c.load64(a, sum)
			c.add64(a, a, v)
			c.store64(a, sum)
		}
	})
}

func mergeChannels(c *chans) {
	sumA, sumB, otherA, otherB := c.float64s("sumA"), c.float64s("sumB"), c.float64s("otherA"), c.float64s("otherB")
	weight, cross := c.scalar("weight"), c.scalar("cross")
	mean, m2, a, b, t := c.pair(), c.pair(), c.pair(), c.pair(), c.pair()
	c.loop(func() {
		c.load64(mean, otherA)
		c.load64(m2, otherB)
		c.merge(sumA, sumB, mean, m2, a, b, t, weight, cross)
	})
}

// divide sets dst to x/count. If count is a power of two, it multiplies by the inverse,
// which takes less time and gives the same bits; t is a temporary.
func (c *chans) divide(dst, x pair, t reg) { c.divideBy("count", "inverse", dst, x, t) }

func (c *chans) divideBy(count, inverse string, dst, x pair, t reg) {
	other, done := c.newLabel("divide"), c.newLabel("divided")
	c.ifNoArg(inverse, t, other)
	c.broadcast64(constVec, c.argMem(inverse, t))
	c.mul64(dst, x, scalarPair(constVec))
	c.jump(done)
	c.label(other)
	c.broadcast64(constVec, c.argMem(count, t))
	c.div64(dst, x, scalarPair(constVec))
	c.label(done)
}

// reciprocalRoot sets x to 1/sqrt(x).
func (c *chans) reciprocalRoot(x pair) {
	for _, v := range x {
		c.sqrt64(v, v)
	}
	one := c.const64(1)
	for _, v := range x {
		c.op(opDiv64, v, one, v)
	}
}

// forwardChannels goes from moments to the constants of z.
func forwardChannels(c *chans) {
	c.useOffsets()
	epsilon := c.scalar("epsilon")
	weight, rest, correction := c.scalar("weight"), c.scalar("cross"), c.scalar("correction")
	m, s, i, t := c.pair(), c.pair(), c.pair(), c.pair()
	c.usual = c.newVec()
	matters := c.newVec() // zeros where x has values that are not finite, and there is no variance
	c.untilUnusual(func() { c.constant(matters, c.entry64(math.MaxUint64)) }, func(closely func(tests func())) {
		c.load64(s, c.find64("sumB"))
		c.divide(s, s, c.offs.t)
		c.add64(t, s, scalarPair(epsilon))
		c.narrow(t[0], t, t[1])
		c.wanted("extent", func() {
			c.load(matters, mem{base: c.find32("extent").at})
			c.opC(opLE, matters, matters, math.MaxFloat32)
			c.op(opLE, t[1], t[0], t[0])
			c.op(opOr, matters, matters, t[1])
		})
		c.op(opGT, c.usual, t[0], c.broadcast32("leastSum"))
		for h := range t {
			c.op64C(opLE64, m[0], s[h], below(0))
			c.op(opAndNot, s[h], m[0], s[h])
		}
		c.store64(s, c.find64("variance"))
		c.add64(i, s, scalarPair(epsilon))
		c.reciprocalRoot(i)
		c.narrow(m[0], i, m[1])
		c.op(opGT, m[0], m[0], c.broadcast32("leastInvStd"))
		c.op(opAnd, c.usual, c.usual, m[0])
		c.store64(i, c.find64("invstd"))
		c.wanted("savedInvStd", func() { c.store64(i, c.find64("savedInvStd")) })

		c.load64(m, c.find64("sumA"))
		c.store64(m, c.find64("mean"))
		c.wanted("savedMean", func() { c.store64(m, c.find64("savedMean")) })
		c.affine(m, s, i, t)
		c.op(opAndNot, c.usual, c.usual, matters)
		closely(func() {
			c.presume()
			c.load64(s, c.find64("sumB"))
			c.divide(s, s, c.offs.t)
			c.add64(t, s, scalarPair(epsilon))
			for h := range t {
				c.op64C(opGE64, m[h], t[h], sureMin)
				c.op64C(opLE64, t[h], t[h], sureMax)
				c.op(opAnd, m[h], m[h], t[h])
			}
			c.load64(i, c.find64("sumB"))
			for h := range i { // strips have settled what is too large
				c.op(opGE64, i[h], i[h], c.mask("large"))
				c.op(opOr, m[h], m[h], i[h])
				c.zero(i[h]) // a finite extent
			}
			c.wanted("extent", func() { c.loadWidened(i, c.find32("extent"), 0) })
			for h := range t { // neither safe nor settled, and the extent is finite or the variance is not NaN
				c.op(opOr, m[h], m[h], c.mask("settled"))
				c.op64C(opLE64, i[h], i[h], math.MaxFloat64)
				c.op(opGE64, t[h], s[h], s[h])
				c.op(opOr, i[h], i[h], t[h])
				c.op(opAndNot, m[h], m[h], i[h])
				c.refuse(m[h])
			}
			c.refuseWide(m, s, i, t)
		})

		c.track("running", "mean", nil, weight, rest, s, t)
		c.track("runningVar", "variance", &correction, weight, rest, s, t)
	})
}

// track updates running values, if the caller wants them; r and b are temporaries.
func (c *chans) track(running, batch string, factor *vec, weight, rest vec, r, b pair) {
	c.wanted(running, func() {
		c.load64(b, c.find64(batch))
		if factor != nil {
			c.mul64(b, b, scalarPair(*factor))
		}
		at := c.find32(running)
		c.loadWidened(r, at, 0)
		c.update(r, b, weight, rest)
		c.store32(r, at)
	})
}

// update sets running to rest*running + weight*batch.
func (c *chans) update(running, batch pair, weight, rest vec) {
	c.mul64(batch, batch, scalarPair(weight))
	c.mul64(running, running, scalarPair(rest))
	c.add64(running, running, batch)
}

// affineChannels goes from statistics to the constants of z. The divisions and roots of
// given statistics take place beside the arithmetic of the channels before.
func affineChannels(c *chans) {
	c.useOffsets()
	epsilon, settled := c.scalar("epsilon"), c.scalar("settled")
	m, s, i, t := c.pair(), c.pair(), c.pair(), c.pair()
	c.usual = c.newVec()
	matters := c.newVec() // zeros where there is no invstd
	c.untilUnusual(nil, func(closely func(tests func())) {
		c.wanted("running", func() {
			c.loadWidened(m, c.find32("running"), 0)
			c.loadWidened(i, c.find32("runningVar"), 0)
			c.add64(i, i, scalarPair(epsilon))
			for h, v := range i {
				c.abs64(t[h], v)
				c.op64C(opLE64, t[h], t[h], 0)
			}
			c.reciprocalRoot(i)
			for h := range i {
				c.op(opAndNot, i[h], t[h], i[h])
				c.op64C(opLE64, t[h], i[h], 0)
				c.op(opAnd, t[h], t[h], settled)
				c.opConstant(opAndNot, t[h], t[h], c.entry64(math.Float64bits(1)))
				c.op(opMul64, m[h], m[h], t[h]) // a mean without effect
			}
			c.store64(m, c.find64("mean"))
			c.store64(i, c.find64("invstd"))
		})
		c.load64(m, c.find64("mean"))
		c.load64(i, c.find64("invstd"))
		c.narrow(c.usual, i, t[1])
		c.op(opLE, matters, c.usual, c.usual)
		c.within(c.usual, 2*sureMin, sureMax/2, t[1])
		c.affine(m, s, i, t)
		c.op(opAndNot, c.usual, c.usual, matters)
		closely(func() {
			c.presume()
			c.refuseWide(m, s, i, t)
		})
	})
}

// affine writes the constants of z from the mean in m and invstd in i, and takes a quick
// look at them. All but i are lost.
func (c *chans) affine(m, s, i, t pair) {
	c.loadWidened(s, c.find32("gamma"), 0)
	c.mul64(s, s, i)
	c.store64(s, c.find64("scale"))
	c.narrow(t[0], s, t[1])
	c.store(t[0], mem{base: c.findConst("a").at})
	c.within(t[0], 2*factorMin, factorMax/2, t[1])
	c.load(t[1], mem{base: c.find32("gamma").at})
	c.abs(t[1], t[1])
	c.opC(opLE, t[1], t[1], 0) // a scale of 0 is usual, too
	c.op(opOr, t[0], t[0], t[1])
	c.op(opAnd, c.usual, c.usual, t[0])
	c.narrow(t[1], m, t[0])
	c.opC(opXor, t[0], t[1], float32(math.Copysign(0, -1)))
	c.store(t[0], mem{base: c.findConst("neg").at})
	c.look(t[0], 0, sureMax/2, constVec)
	c.widen(t, t[1])
	c.sub64(m, m, t)
	c.mul64(m, m, s)
	c.loadWidened(t, c.find32("beta"), 0)
	c.sub64(t, t, m)
	c.store32(t, c.findConst("b"))
}

// refuseWide says that wide channels are unusual, and precise ones unless they are as good as
// usual ones, by the mean, invstd and scale in memory; m, s, i and t are temporaries.
func (c *chans) refuseWide(m, s, i, t pair) {
	c.load64(m, c.find64("mean"))
	c.load64(i, c.find64("invstd"))
	c.load64(s, c.find64("scale"))
	for h, v := range m { // unless invstd is NaN
		c.abs64(v, v)
		c.op64C(opGE64, t[0], v, above(sureMax))
		c.op(opGE64, t[1], i[h], i[h])
		c.op(opAnd, t[0], t[0], t[1])
		c.op64C(opLE64, v, v, math.MaxFloat64)
		c.op(opGE64, t[1], i[h], c.mask("close"))
		c.op(opAnd, t[1], t[1], v) // a finite mean
		c.op(opAndNot, t[0], t[1], t[0])
		c.refuse(t[0])
	}
	c.refuseWild(i, sureMin, sureMax, t)
	c.refuseWild(s, factorMin, factorMax, t)
}

// backwardChannels goes from sums to the constants of dx.
func backwardChannels(c *chans) {
	c.useOffsets()
	count, least := c.scalar("count"), c.newVec() // least is that of sums, in float32, with room for rounding
	p, r, i, low, t := c.pair(), c.pair(), c.pair(), c.pair(), c.pair()
	c.usual = c.newVec()
	spare := c.newVec()
	c.kept = spare
	begin := func() {
		c.op64C(opMul64, spare, count, 2*gradMin)
		c.narrow(least, scalarPair(spare), spare)
	}
	c.untilUnusual(begin, func(closely func(tests func())) {
		c.load64(p, c.find64("sumA"))
		c.load64(r, c.find64("sumB"))
		c.load64(i, c.find64("invstd"))
		// The sum of g*(x-m) is not small; if it is not finite, k1 and k2 are not either.
		c.narrow(t[0], r, t[1])
		c.abs(t[0], t[0])
		c.op(opGT, c.usual, t[0], least)
		c.store64(p, c.find64("dbeta"))
		c.load64(low, c.find64("mean"))
		c.loadWidened(t, c.findConst("neg"), 0)
		c.add64(low, low, t) // the part that the float32 lacks
		c.mul64(t, low, p)
		c.sub64(r, r, t)
		c.sub64(t, p, p) // NaN where g has infinities
		c.sub64(r, r, t)
		c.gradientConstants(p, r, i, low, t)
		c.narrow(low[0], p, t[1])
		c.store(low[0], mem{base: c.findConst("k1").at})
		c.narrow(low[1], r, t[1])
		c.store(low[1], mem{base: c.findConst("k2").at})
		c.tame(low, t)
		c.op(opAnd, c.usual, c.usual, t[0])
		c.opConstant(opXor, c.usual, c.usual, c.entry64(math.MaxUint64))
		c.wanted("extent", func() {
			c.load(t[0], mem{base: c.find32("extent").at})
			c.opC(opLE, t[0], t[0], math.MaxFloat32)
			c.op(opAnd, c.usual, c.usual, t[0])
		})
		closely(func() {
			everyday := c.newLabel("everyday")
			c.allowZeros(p, r, i, low, t, spare, everyday)
			c.presume()
			for h := range p { // gradSumsAreSafe or exact, or settled, or invstd is NaN
				c.load(i[0], mem{base: c.find64("invstd").at, off: h * vecBytes})
				c.op(opMul64, t[0], count, i[0])
				c.op64C(opMul64, t[0], t[0], gradMin)
				c.op(opGE64, i[1], c.mask("trusted"), i[0])
				c.load(low[0], mem{base: c.find64("sumA").at, off: h * vecBytes})
				c.load(low[1], mem{base: c.find64("sumB").at, off: h * vecBytes})
				c.abs64(low[0], low[0])
				c.abs64(low[1], low[1])
				c.op(opGE64, t[0], low[0], t[0])
				c.op(opAdd64, t[1], low[0], low[1])
				c.op64C(opLE64, low[0], t[1], 0)
				c.op(opAnd, i[1], i[1], low[0])
				c.op(opOr, t[0], t[0], i[1])
				c.op64C(opMul64, constVec, count, gradMin)
				c.op(opGE64, low[1], low[1], constVec)
				c.op(opOr, t[0], t[0], low[1])
				c.op64C(opLE64, t[1], t[1], math.MaxFloat64)
				c.op(opAnd, t[0], t[0], t[1])
				c.op(opGE64, t[1], i[0], i[0])
				c.op(opAndNot, t[1], c.mask("settled"), t[1])
				c.op(opAndNot, t[0], t[0], t[1])
				c.refuse(t[0])
			}
			c.refuseWildGradient(p, r, count, [3]pair{t, i, low})
			c.store32(r, c.findConst("k2"))
			done := c.newLabel("looked")
			c.jump(done)
			c.label(everyday)
			k2 := c.findConst("k2")
			c.load(t[0], mem{base: k2.at})
			c.opC(opAdd, t[0], t[0], 0) // -0 becomes 0
			c.store(t[0], mem{base: k2.at})
			c.presume()
			c.label(done)
		})
	})
}

// gradients64Channels goes from sums to the constants of dx in float64. It refuses none.
func gradients64Channels(c *chans) {
	c.useOffsets()
	p, r, i, low, t := c.pair(), c.pair(), c.pair(), c.pair(), c.pair()
	c.untilUnusual(nil, func(func(func())) {
		c.load64(p, c.find64("sumA"))
		c.load64(r, c.find64("sumB"))
		c.load64(i, c.find64("invstd"))
		c.load64(low, c.find64("mean"))
		c.narrow(t[1], low, t[0])
		c.widen(t, t[1])
		c.sub64(low, low, t) // the part that the float32 lacks
		c.mul64(t, low, p)
		c.sub64(r, r, t)
		c.sub64(t, p, p) // NaN where g has infinities
		c.sub64(r, r, t)
		c.store64(p, c.find64("dbeta"))
		c.gradientConstants(p, r, i, low, t)
		c.store64(p, c.find64("otherA"))
		c.store64(r, c.find64("otherB"))
	})
}

// records64Channels makes the records of the kernels in float64.
func records64Channels(c *chans) {
	c.useOffsets()
	record := c.newArg("records")
	s, a, t := c.pair(), c.pair(), c.pair()
	middle, last, next := c.pair(), c.newVec(), c.newVec()
	c.usual = c.newVec()
	c.untilUnusual(nil, func(closely func(tests func())) {
		put := func(src pair, field int) {
			for h, v := range src {
				c.store(v, mem{base: record, off: (field + h) * vecBytes})
			}
		}
		c.load(t[0], mem{base: c.findConst("b").at})
		c.abs(t[0], t[0])
		c.opC(opGT, c.usual, t[0], math.MaxFloat32/2) // where the next number may be infinite
		closely(func() { c.zero(c.usual) })
		c.load(last, mem{base: c.findConst("neg").at})
		c.store(last, mem{base: record, off: field64N * vecBytes})
		// The factor of z is the rounded scale, or the scale if that is wild or 0.
		c.load64(a, c.find64("scale"))
		c.loadWidened(s, c.findConst("a"), 0)
		for h := range s {
			c.abs64(t[0], a[h])
			c.op64C(opLE64, t[1], t[0], below(factorMin))
			c.op64C(opGE64, t[0], t[0], above(factorMax))
			c.op(opOr, t[1], t[1], t[0])
			c.op(opAnd, t[0], t[1], a[h])
			c.op(opAndNot, s[h], t[1], s[h])
			c.op(opOr, s[h], s[h], t[0])
		}
		put(a, field64A)
		put(s, field64S)
		c.load64(t, c.find64("otherA"))
		put(t, field64K1)
		c.load64(t, c.find64("otherB"))
		put(t, field64K2)
		// leastThrough
		c.zero(next)
		c.load(t[0], mem{base: c.findConst("b").at})
		c.sub(last, next, t[0])
		c.op(opGTInt, t[0], next, last) // -1 where negative
		c.op(opAddInt, next, t[0], t[0])
		c.op(opAddInt, next, next, last)
		c.opConstant(opAddInt, next, next, c.entry64(1<<32|1))
		c.widen(a, last)
		c.widen(middle, next)
		c.add64(middle, middle, a)
		for _, v := range middle {
			c.op64C(opMul64, v, v, 0.5)
		}
		c.narrow(next, middle, t[1])
		c.widen(t, next)
		for h, v := range middle {
			c.op(opLE64, t[h], t[h], a[h]) // -1 where the middle is rounded down
			c.op64C(opLE64, s[0], v, 0)
			c.op(opAddInt64, s[0], s[0], s[0])
			c.opConstant(opAddInt64, s[0], s[0], c.entry64(1))
			c.op(opAnd, s[0], s[0], t[h])
			c.op(opAddInt64, v, v, s[0])
		}
		put(middle, field64L)
		c.addImm(record, record64Bytes)
	})
}

// record64Bytes is the size of a record64.
const record64Bytes = (field64N + 1) * vecBytes

// gradientConstants goes from the sums of g in p, and of g*(x-mean) in r, to k1 in p and k2 in
// r, and writes dgamma, and the rounded gradients where they are wanted. i has invstd, low the
// part of the mean that the float32 lacks, which is lost; t is a temporary.
func (c *chans) gradientConstants(p, r, i, low, t pair) {
	c.mul64(r, r, i)
	c.store64(r, c.find64("dgamma"))
	c.roundGradients(r, p, t)
	c.mul64(r, r, i)
	c.divide(r, r, c.offs.t)
	c.divide(p, p, c.offs.t)
	c.mul64(low, low, r)
	c.sub64(p, p, low)
}

// roundGradients writes the gradients by gamma and beta, where they are wanted; t is a temporary.
func (c *chans) roundGradients(dgamma, dbeta, t pair) {
	for _, out := range []struct {
		field string
		of    pair
	}{{"gammaGrad", dgamma}, {"betaGrad", dbeta}} {
		c.wanted(out.field, func() {
			c.narrow(t[0], out.of, t[1])
			c.store(t[0], mem{base: c.find32(out.field).at})
		})
	}
}

// allowZeros is a second look at channels of which some seem unusual, by sums in memory, k1, k2,
// and invstd in i; low, t and spare are temporaries. It jumps if all channels pass. Some may have
// sums of 0, as dead channels have, or an invstd that is NaN, and constants that are 0 or NaN.
// Others may have a k2 of 0 beside gradients that are not small, as channels have whose x is
// constant: with a tame k1, the sum of gradients is safe.
func (c *chans) allowZeros(k1, k2, i, low, t pair, spare vec, everyday string) {
	c.load64(low, c.find64("sumA"))
	c.load64(t, c.find64("sumB"))
	for h := range i {
		c.op(opOr, low[h], low[h], t[h])
		c.abs64(low[h], low[h])
		c.op64C(opLE64, low[h], low[h], 0)
		c.op(opGE64, t[h], c.mask("trusted"), i[h])
		c.op(opAnd, low[h], low[h], t[h])
		c.op(opGE64, t[h], i[h], i[h])
		c.op(opAndNot, low[h], low[h], t[h]) // all ones where sums and constants are looked at
	}
	c.op(opOr, spare, low[0], low[1])
	c.ifNone(spare, everyday)
	for h := range i {
		c.abs64(spare, k1[h])
		c.op64C(opGE64, t[h], spare, 2*tameMin)
		c.op64C(opLE64, spare, spare, sureMax/2)
		c.op(opAnd, t[h], t[h], spare)
		c.op64C(opLE64, spare, i[h], tameMin/gradMin)
		c.op(opAnd, t[h], t[h], spare)
		c.abs64(spare, k2[h])
		c.op64C(opLE64, spare, spare, 0)
		c.op(opAnd, t[h], t[h], spare)
		c.op(opAndNot, low[h], t[h], low[h])
	}
	c.narrow(low[0], low, low[1]) // NaN remains all ones
	c.op(opAnd, c.usual, c.usual, low[0])
	c.ifNone(c.usual, everyday)
}

// tame sets t[0] to all ones where both k1 and k2, in k, are surely in the range of usual
// channels.
func (c *chans) tame(k, t pair) {
	for _, v := range k {
		c.abs(v, v)
	}
	c.op(opMinInt, t[0], k[0], k[1])
	c.opC(opGTInt, t[0], t[0], 2*slight)
	c.op(opMaxInt, k[0], k[0], k[1]) // of NaN, too
	c.opC(opGTInt, k[0], k[0], sureMax/2)
	c.op(opAndNot, t[0], k[0], t[0])
}

// refuseWildGradient says that channels with a wild k1 or k2 are unusual, and sets a
// negligible k2 to 0, as gradient.set does. Only small k1 and k2 are looked at closely.
func (c *chans) refuseWildGradient(k1, k2 pair, count vec, t [3]pair) {
	a, b, low := t[0], t[1], t[2][0]
	for h := range k1 {
		c.abs64(a[h], k1[h])
		c.abs64(b[h], k2[h])
		for _, v := range []vec{a[h], b[h]} {
			c.op64C(opGE64, t[2][1], v, above(sureMax))
			c.refuse(t[2][1])
			dst := t[2][1]
			if h == 0 && v == a[h] {
				dst = low
			}
			c.op64C(opLE64, dst, v, slight)
			if dst != low {
				c.op(opOr, low, low, dst)
			}
		}
	}
	usual := c.newLabel("large")
	c.ifNone(low, usual)
	// Zeros are common, as in dead channels, and need no closer look.
	c.zero(low)
	for h := range k1 {
		for _, v := range []vec{a[h], b[h]} {
			c.op64C(opLE64, t[2][1], v, 0)
			if v == b[h] { // -0 may become 0
				c.op(opAnd, constVec, t[2][1], k2[h])
				c.op(opOr, low, low, constVec)
			}
			c.op64C(opLE64, constVec, v, slight)
			c.op(opAndNot, t[2][1], t[2][1], constVec)
			c.op(opOr, low, low, t[2][1])
		}
	}
	c.ifNone(low, usual)
	c.load64(t[2], c.find64("dgamma"))
	for h := range k2 {
		c.abs64(t[2][h], t[2][h])
	}
	c.mul64(t[2], t[2], scalarPair(count))
	c.load64(b, c.find64("dbeta"))
	for h := range k2 {
		c.abs64(b[h], b[h])
		c.op64C(opMul64, b[h], b[h], negligible)
		c.op(opGE64, t[2][h], b[h], t[2][h])
		c.abs64(b[h], k2[h])
		c.op64C(opLE64, b[h], b[h], slight)
		c.op(opAnd, t[2][h], t[2][h], b[h])
		c.op(opAndNot, k2[h], t[2][h], k2[h])
		c.abs64(b[h], k2[h])
		for _, v := range []vec{a[h], b[h]} {
			c.op64C(opLE64, t[2][h], v, 0)
			c.op64C(opLE64, v, v, below(gradMin))
			c.op(opAndNot, v, t[2][h], v)
			c.refuse(v)
		}
	}
	c.label(usual)
}

func trackChannels(c *chans) {
	running, mean := c.float32s("running"), c.float64s("mean")
	weight, rest, factor := c.scalar("weight"), c.scalar("cross"), c.scalar("count")
	r, b := c.pair(), c.pair()
	c.loop(func() {
		c.loadWidened(r, running, 0)
		c.load64(b, mean)
		c.mul64(b, b, scalarPair(factor))
		c.update(r, b, weight, rest)
		c.store32(r, running)
	})
}

// stepBytes is the size of a step, which is an int.
const stepBytes = 8

// stripChannels takes the moments of 8 columns at a time, whose values stay in the first-level cache between the probe
// and the sums. Probe and sums go over a second vector of columns as well, if there is one: rows that are a power of two
// apart share few places of that cache, and two vectors share a line of it. The results of the second vector wait in
// memory, while those of the first become moments.
func stripChannels(c *chans) {
	x, shift, sumA, sumB := c.float32s("x"), c.float32s("shift"), c.float64s("sumA"), c.float64s("sumB")
	step, at, beside, left, again, bytes := c.newReg(), c.newReg(), c.newReg(), c.newReg(), c.newReg(), c.newReg()
	// second has the bytes from the first vector of columns to the second, or 0 where there is only one, which then is
	// both. At the top of the loop, 0 also says that no sums wait.
	second := c.newReg()
	sums, k := c.pair(), c.newVec()
	a, b, d, e := c.pair(), c.pair(), c.pair(), c.pair()
	limit, t, secondK := c.newVec(), c.newVec(), c.newVec()
	large := c.broadcastArg("large", at)
	c.narrow(limit, scalarPair(large), large) // of sums of squares, which are no less than those of deviations from their mean
	c.set(again, 0)
	c.set(second, 0)
	c.toFirst = true
	// firstRow goes to the first of some rows, and nextRow on to the next ones, if there are any.
	firstRow := func(rows string) {
		c.asm.move(at, x.at)
		c.arg(step, "steps")
		c.arg(left, rows)
	}
	nextRow := func(label string) {
		c.addImm(step, stepBytes)
		c.subImm(left, 1)
		c.branch(ifNotZero, label)
	}
	vectors := [...]struct {
		at   reg
		sums pair
		k    vec
	}{{at, sums, k}, {beside, e, secondK}}
	// sum takes the sums of rows of both vectors, in the order of ../kernels_generic.go. value computes the
	// addends of a row; there are n of them.
	sum := func(rows string, n int, value func(dst pair, at reg, k vec)) {
		quads, rest, row, done := c.newLabel("quads"), c.newLabel("rest"), c.newLabel("row"), c.newLabel("done")
		add := func(dst, src pair) {
			for i := range n {
				c.add(dst[i], dst[i], src[i])
			}
		}
		for _, v := range vectors {
			for i := range n {
				c.zero(v.sums[i])
			}
		}
		firstRow(rows)
		c.asm.move(beside, at)
		c.addReg(beside, second)
		c.subImm(left, quadSize)
		c.branch(ifLess, rest)
		c.label(quads)
		for _, v := range vectors {
			next := func(dst pair, i int) {
				value(dst, v.at, v.k)
				c.addFrom(v.at, step, i*stepBytes, bytes)
			}
			next(a, 0)
			next(d, 1)
			add(a, d)
			next(b, 2)
			next(d, 3)
			add(b, d)
			add(a, b)
			add(v.sums, a)
		}
		c.addImm(step, quadSize*stepBytes)
		c.subImm(left, quadSize)
		c.branch(ifNotLess, quads)
		c.label(rest)
		c.subImm(left, -quadSize)
		c.branch(ifZero, done)
		c.label(row)
		for _, v := range vectors {
			value(a, v.at, v.k)
			c.addFrom(v.at, step, 0, bytes)
			add(v.sums, a)
		}
		nextRow(row)
		c.label(done)
	}
	c.loop(func() {
		single, shifts := c.newLabel("single"), c.newLabel("shifts")
		summed, settled, row64 := c.newLabel("summed"), c.newLabel("settled"), c.newLabel("row64")
		ordinary, probe64, waiting := c.newLabel("ordinary"), c.newLabel("probe64"), c.newLabel("waiting")
		c.subImm(second, vecBytes) // to 0, if the sums of these columns wait
		c.branch(ifZero, waiting)
		c.set(second, 0)
		c.asm.move(left, c.left)
		c.subImm(left, lanes+1)
		c.branch(ifLess, single)
		c.set(second, vecBytes)
		c.label(single)
		sum("probe", 1, func(dst pair, row reg, _ vec) {
			c.load(dst[0], mem{base: row})
			if row == at {
				c.prefetch(mem{base: at, off: cacheLine})
			}
		})
		c.store(sums[0], mem{base: shift.at})
		c.store(e[0], mem{base: shift.at, index: second, scale: 1})
		// The shifts of both, one after the other.
		o := beside
		c.set(o, 0)
		c.label(shifts)
		ofShift := mem{base: shift.at, index: o, scale: 1}
		c.load(a[1], ofShift)
		c.pointTable() // the index has overwritten its address
		c.widen(a, a[1])
		c.divideBy("probeCount", "probeInverse", a, a, at)
		c.shiftFor(a)
		c.move(k, a[0])
		// Where values are small, the shift is that of sums in float64, which waits in memory, and float32
		// sums have a shift of NaN, so that no product takes an assist.
		c.store(k, ofShift)
		c.load(e[0], mem{base: x.at, index: o, scale: 1})
		c.pointTable()
		c.abs(t, e[0])
		c.opC(opLE, t, t, smallFirst)
		c.ifNoneKept(t, a[1], ordinary)
		for i, row := range []string{"second", "third", "fourth"} {
			v := b[0]
			if i == 0 {
				v = t
			}
			c.arg(at, row)
			c.addReg(at, x.at)
			c.addReg(at, o)
			c.load(v, mem{base: at})
			c.sub(v, v, e[0])
			c.abs(v, v)
			if i > 0 {
				c.op(opMaxInt, t, t, v)
			}
		}
		c.within(t, math.Nextafter32(smallLeast, 0), smallMost, d[0])
		c.ifNoneKept(t, a[1], ordinary)
		for h := range a {
			c.zero(a[h])
		}
		firstRow("probe")
		c.addReg(at, o)
		c.label(probe64)
		c.widenFrom(d, mem{base: at})
		c.add64(a, a, d)
		c.addFrom(at, step, 0, bytes)
		nextRow(probe64)
		c.divideBy("probeCount", "probeInverse", a, a, at)
		c.shiftFor(a)
		c.blend(k, t, a[0], k)
		c.store(k, ofShift)
		c.op(opOr, k, k, t)
		c.label(ordinary)
		c.store(k, mem{base: sumA.at, index: o, scale: 2})
		c.asm.move(at, o)
		c.asm.move(o, second)
		c.ifUnequal(at, o, shifts)
		c.load(k, mem{base: sumA.at})
		c.load(secondK, mem{base: sumA.at, index: second, scale: 2})
		sum("rows", len(sums), func(dst pair, row reg, k vec) {
			c.addMem(dst[0], k, mem{base: row}, dst[0], false)
			c.mul(dst[1], dst[0], dst[0])
		})
		c.store(sums[0], mem{base: sumA.at, off: vecBytes})
		c.store(sums[1], mem{base: sumB.at})
		c.store(e[0], mem{base: sumA.at, index: second, scale: 2, off: vecBytes})
		c.store(e[1], mem{base: sumB.at, index: second, scale: 2})
		c.pointTable()
		c.label(waiting)
		c.load(k, mem{base: sumA.at})
		c.load(sums[0], mem{base: sumA.at, off: vecBytes})
		c.load(sums[1], mem{base: sumB.at})
		c.op(opGT, t, sums[1], limit)
		c.abs(a[1], sums[0]) // values that are not finite gain nothing by sums in float64
		c.opC(opLE, a[1], a[1], math.MaxFloat32)
		c.op(opAnd, t, t, a[1])
		c.op(opLE, a[1], k, k)
		c.op(opAndNot, t, t, a[1])
		c.opConstant(opXor, t, t, c.entry64(math.MaxUint64)) // or are small
		c.ifNoneKept(t, a[0], summed)
		// Some are too large, as it seems, or small. Their moments in float64 wait in memory. Where some are too
		// large, the sum of the probe and all deviations are finite: otherwise the sum of deviations would not be.
		c.load(t, mem{base: shift.at})
		for h := range a {
			c.zero(a[h])
			c.zero(b[h])
		}
		firstRow("rows")
		c.label(row64)
		c.widenFrom(d, mem{base: at})
		c.addMem(e[1], t, mem{base: at}, e[1], false)
		c.widen(e, e[1])
		c.add64(a, a, d)
		for h := range b {
			c.op(opAddProduct64, b[h], e[h], d[h])
		}
		c.addFrom(at, step, 0, bytes)
		nextRow(row64)
		c.widen(e, t)
		c.mul64(d, e, scalarPair(c.broadcastArg("count", at)))
		c.add64(a, a, d)
		c.mul64(d, e, a)
		c.add64(b, b, d)
		c.divide(d, a, at)
		c.mul64(a, a, d)
		c.sub64(b, b, a)
		c.sub64(d, d, e)
		c.sub64(e, b, b)
		c.add64(b, b, e) // NaN, if x less a small mean has left float32
		c.store64(d, sumA)
		c.store64(b, sumB)
		c.set(again, 1)
		c.label(summed)
		// The moment of the window is that of the segment. Merged with that of no values, it
		// stays: neither sum is ever -0, and m2 is NaN where the mean is not finite.
		c.widen(a, sums[0])
		c.widen(b, sums[1])
		c.divide(d, a, at)
		c.mul64(a, a, d)
		c.sub64(b, b, a)
		c.widen(a, k)
		c.sub64(d, d, a)
		c.subImm(again, 0)
		c.branch(ifZero, settled)
		c.set(again, 0)
		c.tooLarge(a, b, sums, at)
		c.narrow(e[0], a, t)
		retaken := c.argMem("retaken", at)
		c.load(t, retaken)
		c.op(opAddInt, t, t, e[0])
		c.store(t, retaken)
		c.widen(e, k)
		for h := range a {
			c.op(opGE64, e[h], e[h], e[h])
			c.op(opAndNot, a[h], a[h], e[h]) // neither large nor small
		}
		for h := range a {
			for _, v := range []struct {
				of  pair
				sum array
			}{{d, sumA}, {b, sumB}} {
				c.load(k, mem{base: v.sum.at, off: h * vecBytes})
				c.blend(v.of[h], a[h], v.of[h], k)
			}
		}
		c.label(settled)
		c.store64(d, sumA)
		c.store64(b, sumB)
		c.storeShift(d, shift)
	})
}

// tooLarge sets mask to all ones where the sum of squares m2 is too large; t is a temporary.
func (c *chans) tooLarge(mask, m2, t pair, at reg) {
	large := c.broadcastArg("large", at)
	for h := range mask {
		c.op(opGE64, mask[h], m2[h], large)
	}
	c.divide(t, m2, at)
	epsilon := c.broadcastArg("epsilon", at)
	for h := range t {
		c.op(opAdd64, t[h], t[h], epsilon)
	}
	for h := range t {
		c.op64C(opGE64, t[h], t[h], above(sureMax))
		c.op(opAnd, mask[h], mask[h], t[h])
	}
}

// channelText returns the text of all kernels on channels, and their symbols.
func channelText(on target) (text string, symbols []string) {
	for _, k := range channelKernels {
		name := k.function()
		c := newChans(on, name)
		k.emit(c)
		text += c.tableText() + fmt.Sprintf("// func %s(id int, a *channelArgs)\nTEXT %s(SB), NOSPLIT, $0-16\n%s", name, local(name), c.buf.String())
		symbols = append(symbols, local(name))
	}
	return text, symbols
}

// tinyChannels looks at the first value of all channels. If one is at most most, or at least least, it looks at
// four values of each, until it finds 8 channels of which one is unusual.
func tinyChannels(c *chans) {
	n, t := c.newArg("n"), c.newReg()
	var at [4]reg
	for i, field := range []string{"x", "gamma", "beta", "running"} {
		at[i] = c.newArg(field)
	}
	first, left := c.newReg(), c.newReg()
	magnitude, most, least, v, found, huge := c.newVec(), c.newVec(), c.newVec(), c.newVec(), c.newVec(), c.newVec()
	tiny, other := c.newVec(), c.pair()
	before := c.buf.String()
	c.buf.Reset()
	get := func(dst vec, field string) {
		c.broadcast(dst, c.argMem(field, t))
	}
	get(most, "most")
	get(least, "least")
	c.zero(found)
	c.op(opLE, magnitude, found, found)
	c.shiftRight(magnitude, 1) // all bits but the sign
	quick, closely, channels, next, end := c.newLabel("quick"), c.newLabel("closely"), c.newLabel("channels"), c.newLabel("next"), c.newLabel("end")
	factors, scale, factor := c.newLabel("factors"), c.newLabel("scale"), c.newLabel("factor")
	looked, decided := c.newLabel("looked"), c.newLabel("decided")
	c.asm.move(first, at[0])
	c.asm.move(left, n)
	c.label(quick)
	c.opMem(opAnd, v, magnitude, mem{base: first}, v)
	c.op(opLE, huge, least, v)
	c.op(opLE, v, v, most)
	c.op(opOr, found, found, huge)
	c.op(opOr, found, found, v)
	c.addImm(first, vecBytes)
	c.subImm(left, lanes)
	c.branch(ifNotZero, quick)
	c.ifAny(found, closely)
	c.set(n, 0)
	c.jump(end)

	offset, from := first, left
	c.label(closely)
	c.set(offset, 0)
	c.label(channels)
	c.zero(found)
	for i, a := range at {
		c.opMem(opAnd, v, magnitude, mem{base: a, index: offset, scale: 1}, v)
		if i == 0 {
			c.op(opLE, huge, least, v)
			c.pointTable() // the index has overwritten its address
			c.constant(constVec, c.entry32(float32(math.Inf(1))))
			c.op(opGT, constVec, constVec, v)
			c.op(opAnd, huge, huge, constVec)
		}
		c.op(opMaxInt, found, found, v)
	}
	c.op(opLE, v, found, most)
	c.zero(constVec)
	c.op(opGT, constVec, found, constVec)
	c.op(opAnd, v, v, constVec)
	c.ifNoneKept(v, tiny, decided)
	get(tiny, "tiny")
	c.op(opLE, tiny, found, tiny)
	// product adds to tiny the channels where the bits of found and of other[0], which is not 0, are at most a limit
	// together. Bits of numbers above 2 count as those of 2, so that the sum has no more than 31 digits:
	// products with 2 are not tiny if found is not.
	product := func(limit string) {
		c.zero(constVec)
		c.op(opGT, other[1], other[0], constVec)
		c.pointTable()
		c.opC(opMinInt, other[0], other[0], 2)
		c.op(opAddInt, other[0], other[0], found)
		get(constVec, limit)
		c.op(opGTInt, other[0], other[0], constVec)
		c.op(opAndNot, other[0], other[0], other[1])
		c.op(opOr, tiny, tiny, other[0])
	}
	ifNil := func(field, label string) {
		c.arg(from, field)
		c.subImm(from, 0)
		c.branch(ifZero, label)
	}
	ifNil("neg", factors)
	c.zero(other[0])
	for _, field := range []string{"neg", "a", "b", "k1"} {
		c.arg(from, field)
		c.opMem(opAnd, other[1], magnitude, mem{base: from, index: offset, scale: 1}, other[1])
		c.op(opMaxInt, other[0], other[0], other[1])
	}
	product("product")
	c.label(factors)
	ifNil("runningVar", scale)
	c.opMem(opAnd, other[0], magnitude, mem{base: from, index: offset, scale: 1}, other[0])
	c.jump(factor)
	c.label(scale)
	ifNil("scale", looked)
	c.load(other[0], mem{base: from, index: offset, scale: 2})
	c.load(other[1], mem{base: from, index: offset, scale: 2, off: vecBytes})
	c.narrow(other[0], other, constVec)
	c.op(opAnd, other[0], magnitude, other[0])
	c.label(factor)
	product("scaled")
	c.label(looked)
	c.op(opAnd, v, v, tiny)
	c.label(decided)
	c.op(opOr, v, v, huge)
	c.ifAny(v, end)
	c.addImm(offset, vecBytes)
	c.label(next)
	c.subImm(n, lanes)
	c.branch(ifNotZero, channels)
	c.label(end)
	c.storeArg(n, "n", t)
	loop := c.buf.String()
	c.buf.Reset()
	c.buf.WriteString(before)
	c.pointTable()
	c.buf.WriteString(loop)
	c.end()
}
