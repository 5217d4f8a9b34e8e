package batchnorm

import (
	"encoding/binary"
	"math"
	"slices"
)

// Channels of tiny numbers: gradients, or values of x, that are subnormal or nearly so.
// Float32 products of them are subnormal: they lose digits, and each takes a microcode
// assist of about a hundred cycles on Intel's processors. Such channels go block by block,
// in memory that stays in a cache. The products for z, g and dx are taken in float64 there
// and rounded once, which gives the bits of float32 products. Sums are of gradients and
// deviations that are multiplied by a power of two, and so is dx before it is rounded.
//
// Four values of a channel decide, so that the decision is the same on every path and for
// any number of workers. Where a channel has gradients that are not tiny, or constants that
// leave float32's range, the sums of scaled gradients can't be relied on. Such a channel is
// plain: its sums are taken again without a scale, and its gradients are not scaled.

const (
	tinyPower = 100
	tinyScale = 1 << tinyPower
	// tinyMost is the largest magnitude of a tiny number. Products of larger ones are
	// seldom subnormal.
	tinyMost = 0x1p-110
)

// Which numbers of a channel, or of some channels, are tiny.
const (
	tinyDeviations = 1 << iota // of x from the mean: x is tiny, and so is its mean
	tinyGradients
	mixedKinds // of channels side by side, which are not all alike
)

// ---- which channels

// tinySample is how many values of a channel decide.
const tinySample = 4

// sample finds the channels whose gradients are tiny, and those whose values of x are. They
// are the same for all steps of a call.
func (w *workspace) sample(do phases) {
	if w.sampled || w.geo.outer*w.geo.inner == 0 {
		return
	}
	w.sampled = true
	at, next := w.sampledValues()
	if w.backward {
		w.findTiny(w.apply.dy, tinyGradients, at, next)
	}
	inverted := w.source != nil && w.source.inverted // x is y
	if !inverted && (w.backward || do&applyThem != 0) {
		w.findTiny(w.apply.x, tinyDeviations, at, next)
	}
}

// sampledValues returns where the sampled values of channel 0 are in the caller's tensors,
// and how far those of the next channel are from them.
func (w *workspace) sampledValues() (at *[tinySample]int, next int) {
	if w.source == nil {
		return &w.geo.sampled, w.geo.inner
	}
	at = &w.source.sampled
	for k, i := range w.geo.sampled {
		at[k] = w.element(i)
	}
	return at, w.source.next
}

// findTiny makes the channels that have tiny values channels of a kind.
func (w *workspace) findTiny(values []float32, kind byte, at *[tinySample]int, next int) {
	channels := w.geo.channels
	c := 0
	if v := w.plan.path.whole(channels * next); next < lanes && v > 0 {
		c = ceilDiv(v, next)
		w.findTinyAside(values, kind, at, next, v)
	}
	for i := at[0] + c*next; c < channels; c, i = c+1, i+next {
		if magnitudeBits(values[i]) <= tinyBits { // or the channel is usual
			w.look(c, kind, largestAt(values, at, c*next))
		}
	}
}

// look makes a channel one of a kind if the bits of its largest magnitude are of a tiny
// number other than 0.
func (w *workspace) look(c int, kind byte, most uint32) {
	if most-1 >= tinyBits {
		return
	}
	w.beginKind(kind)
	w.channels.tiny[c] |= kind
}

// beginKind says that there are channels of a kind.
func (w *workspace) beginKind(kind byte) {
	if !w.anyTiny() {
		clear(w.channels.tiny)
	}
	w.tinyG, w.tinyX = w.tinyG || kind == tinyGradients, w.tinyX || kind == tinyDeviations
}

// largestAt returns the bits of the largest magnitude of the sampled values, which lie
// behind those of channel 0.
func largestAt(values []float32, at *[tinySample]int, behind int) (most uint32) {
	for _, i := range at {
		most = max(most, magnitudeBits(values[i+behind]))
	}
	return most
}

// findTinyAside is findTiny for channels less than a vector apart, whose first values are in
// n columns, in whole vectors.
func (w *workspace) findTinyAside(values []float32, kind byte, at *[tinySample]int, next, n int) {
	for j := 0; j < n; {
		m := min(callChannels, n-j)
		k := &w.looks
		k.n, k.x, k.gamma, k.beta, k.running = m, values[at[0]+j:], values[at[1]+j:], values[at[2]+j:], values[at[3]+j:]
		k.run(channelTiny)
		k.x, k.gamma, k.beta, k.running = nil, nil, nil, nil // the caller's memory
		if j += m - k.n; k.n == 0 {
			continue
		}
		if next > 1 {
			c := ceilDiv(j, next)
			for j += lanes; c*next < j; c++ {
				w.look(c, kind, largestAt(values, at, c*next))
			}
			continue
		}
		// Where one channel is tiny, others often are.
		first, end := j, min(j+mostSpan, n)
		extent := w.channels.extent[first:end]
		w.largest(values[at[0]+first:], 1, len(extent), 0, extent)
		for _, i := range at[1:] {
			w.larger(values[i+first:], 1, len(extent), 0, extent)
		}
		w.beginKind(kind)
		tiny := w.channels.tiny[first:end]
		for i, v := range extent[:len(tiny)] {
			if math.Float32bits(v)-1 < tinyBits {
				tiny[i] |= kind
			}
		}
		j = end
	}
}

// magnitudeBits returns the bits of the magnitude of a number, which are in its order.
func magnitudeBits(v float32) uint32 { return math.Float32bits(v) &^ (1 << 31) }

// tinyBits has the bits of tinyMost.
const tinyBits = (127 - 110) << 23

// anyTiny reports whether numbers of a channel are tiny.
func (w *workspace) anyTiny() bool { return w.tinyG || w.tinyX }

// tinyOf returns which numbers of a channel are tiny.
func (w *workspace) tinyOf(c int) byte {
	if !w.anyTiny() {
		return 0
	}
	return w.channels.tiny[c]
}

// tinyRun returns which numbers are tiny of channel c, and the end of the channels from c on
// that are alike.
func (w *workspace) tinyRun(c, c1 int) (kind byte, end int) {
	if !w.anyTiny() {
		return 0, c1
	}
	kind = w.channels.tiny[c]
	for end = c + 1; end < c1 && w.channels.tiny[end] == kind; end++ {
	}
	return kind, end
}

// kindOfColumns returns the kind of n columns from column j on, given those of channels: all
// that occur, and mixedKinds if they are not alike.
func (w *workspace) kindOfColumns(kinds []byte, j, n int) (kind byte) {
	if w.geo.width == w.geo.channels && n%lanes == 0 {
		first := uint64(kinds[j]) * (math.MaxUint64 / math.MaxUint8) // in all bytes
		all, same := uint64(0), true
		for end := j + n; j < end; j += lanes {
			v := binary.LittleEndian.Uint64(kinds[j:])
			all, same = all|v, same && v == first
		}
		if same {
			return byte(first)
		}
		all |= all >> 32
		all |= all >> 16
		all |= all >> 8
		return byte(all) | mixedKinds
	}
	first := kinds[w.channelOf(j)]
	kind = first
	for ; n > 0; j, n = j+1, n-1 {
		if k := kinds[w.channelOf(j)]; k != first {
			kind |= k | mixedKinds
		}
	}
	return kind
}

// firstKind returns the first of the columns from j to end-1 whose channel is of a kind, or
// one of the 8 columns with it, and end if there is none.
func (w *workspace) firstKind(kinds []byte, j, end int) int {
	if w.geo.width == w.geo.channels {
		for j+lanes <= end && binary.LittleEndian.Uint64(kinds[j:]) == 0 {
			j += lanes
		}
	}
	for j < end && kinds[w.channelOf(j)] == 0 {
		j++
	}
	return j
}

// columnsAlike returns the kind of the columns from column j on, and the end of those that
// are alike, in units of some columns. Those that are not all 0 are at most mostSpan.
func (w *workspace) columnsAlike(kinds []byte, j, end, unit int) (kind byte, next int) {
	if first := w.firstKind(kinds, j, end); first >= j+unit {
		return 0, j + (first-j)/unit*unit
	} else if first == end {
		return 0, end
	}
	kind = w.kindOfColumns(kinds, j, min(unit, end-j))
	for next = min(j+unit, end); next < end && next-j < mostSpan && w.kindOfColumns(kinds, next, min(unit, end-next)) == kind; {
		next = min(next+unit, end)
	}
	return kind, next
}

// ---- blocks

// Values and records that stand for absent operands of a kernel. With asItIs a kernel
// changes nothing, not even the sign of a zero. With asZero it makes a zero of x, which
// must be finite.
var (
	minusZeros   = repeated(negativeZero)
	plusOnes     = repeated(1)
	asItIs       = []float32{fieldN: negativeZero, fieldA: 1, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	asZero       = []float32{fieldN: negativeZero, fieldA: 0, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	columnAsItIs = inAllLanes(asItIs)
	infinity     = float32(math.Inf(1))
	allAsZero    = [numLayouts][]float32{rows: slices.Repeat(asZero, mostSpan), cols: repeatedRecord(asZero)}
)

// repeatedRecord returns the records of mostSpan columns that have the same constants.
func repeatedRecord(coef []float32) []float32 {
	record := inAllLanes(coef)
	return slices.Repeat(record[:], mostSpan/lanes)
}

func repeated(v float32) []float32 {
	s := make([]float32, bufferLen)
	fill(s, v)
	return s
}

// inAllLanes returns the record of 8 columns that have the same constants.
func inAllLanes(coef []float32) (all record) {
	for f, v := range coef {
		fill(all[f*lanes:][:lanes], v)
	}
	return all
}

// apart reports whether the rows of a block are apart from one another.
func (b *block) apart() bool { return b.rows > 1 && b.stride > b.n }

// step returns the distance from a row of the inputs to the next.
func (b *block) step() int { return max(b.n, b.stride) }

// len returns the number of values.
func (b *block) len() int { return b.rows * b.n }

// alike runs a kernel that writes outputs on n values with the same constants.
func (w *workspace) alike(kernel int, act Activation, k *kernelArgs, n int) {
	k.act, k.rows, k.n = w.act, 1, n
	k.begin(0, 1)
	w.plan.path.runAll(kernel, act, k)
}

// times multiplies the values of rows of n by a factor. src has rows that are stride
// values apart. dst may be src.
func (w *workspace) times(dst, src []float32, factor float64, height, n, stride int) []float32 {
	k := kernelArgs{x: src, y: dst, rows: height, n: n, stride: stride, strideY: n, factor: factor}
	w.plan.path.run(kernelTimes, cols, Identity, &k)
	return dst
}

// packed returns an operand of a block without gaps: in place, or as a copy in dst.
func (w *workspace) packed(dst, src []float32, b *block) []float32 {
	if src == nil || !b.apart() {
		return src
	}
	if b.n < shortCopy {
		return w.times(dst, src, 1, b.rows, b.n, b.stride)
	}
	for r := range b.rows {
		copy(dst[r*b.n:][:b.n], src[r*b.stride:])
	}
	return dst
}

// shortCopy is the length of a row from which on copy is faster than a kernel for all rows.
const shortCopy = 64

// unpack writes an output of a block, which has no gaps, to its place. It multiplies it by a
// factor, or by those of the columns if these are given.
func (w *workspace) unpack(dst, src []float32, factor float64, factors []float32, b *block) {
	if factors != nil {
		w.products(kernelScale, &kernelArgs{x: src, y: dst, coef: factors, stride: b.n, strideY: b.step()}, b)
		return
	}
	k := kernelArgs{x: src, y: dst, rows: b.rows, n: b.n, stride: b.n, strideY: b.step(), factor: factor}
	switch {
	case !b.apart():
		k.rows, k.n = 1, b.len()
	case factor == 1 && b.n >= shortCopy:
		for r := range b.rows {
			copy(dst[r*b.stride:][:b.n], src[r*b.n:])
		}
		return
	}
	w.plan.path.run(kernelTimes, cols, Identity, &k)
}

// products runs a kernel that takes products in float64 on rows of a block, with the
// constants of its channels.
func (w *workspace) products(kernel int, k *kernelArgs, b *block) {
	k.rows, k.n, k.coefStep = b.rows, b.n, coefLen*lanes
	if w.geo.layout == cols {
		w.plan.path.run(kernel, cols, Identity, k)
		return
	}
	all, coef := *k, k.coef
	channels := max(1, b.channels)
	k.n, k.coefStep = b.n/channels, 0
	for c := range channels {
		i := c * k.n
		record := inAllLanes(coef[c*coefLen:][:coefLen])
		k.coef, k.x, k.dy, k.y = record[:], all.x[i:], from(all.dy, i), all.y[i:]
		w.plan.path.run(kernel, cols, Identity, k)
	}
}

// product sets dst to (x-m)*a + b of values of a block, without gaps.
func (w *workspace) product(dst, src, coef []float32, b *block) []float32 {
	w.products(kernelScale, &kernelArgs{x: src, y: dst, coef: coef, stride: b.step(), strideY: b.n}, b)
	return dst
}

// A recordCopy is the constants of a row, or of 8 columns, and what they become.
type recordCopy struct {
	from, to []float32
	next     int // from a field to the next
	column   int // of the block, the first one
}

func (r *recordCopy) copy(field int) {
	if r.next == 1 {
		r.to[field] = r.from[field]
		return
	}
	*(*[lanes]float32)(r.to[field*lanes:]) = *(*[lanes]float32)(r.from[field*lanes:])
}

func (r *recordCopy) set(field int, v float32) {
	if r.next == 1 {
		r.to[field] = v
		return
	}
	*(*[lanes]float32)(r.to[field*lanes:]) = [lanes]float32{v, v, v, v, v, v, v, v}
}

// setFactor sets fieldA to a factor where the channel of the block is of a kind, and to 1
// elsewhere.
func (w *workspace) setFactor(r *recordCopy, b *block, kind byte, factor float32) {
	if b.tiny&mixedKinds == 0 {
		r.set(fieldA, factor)
		return
	}
	to, first, tiny := (*[lanes]float32)(r.to[fieldA*lanes:]), b.column+r.column, w.channels.tiny
	for l := range min(lanes, b.n-r.column) {
		c := first + l
		if w.geo.width != w.geo.channels {
			c = w.channelOf(c)
		}
		if to[l] = 1; tiny[c]&kind != 0 {
			to[l] = factor
		}
	}
}

// The lists of records that are made from constants.
const (
	madeDeviations = iota
	madeGradients
	madeOutputs
	madeUp
	madeDown
	numMade
)

func (k *constants) list(made int) []float32 {
	return [numMade][]float32{k.z, k.dx, k.toZ, k.toG, k.toX}[made]
}

// recordsFrom makes records for the channels of a block from their constants, unless it has
// made them for the block before: set is called for each.
func (w *workspace) recordsFrom(k *constants, made int, coef []float32, b *block, set func(r recordCopy)) []float32 {
	list := k.list(made)
	if k.made[made] == &coef[0] {
		return list
	}
	k.made[made] = &coef[0]
	n, next := b.channels, 1
	if w.geo.layout == cols {
		n, next = roundUp(b.n, lanes), lanes
	}
	for j := 0; j < n; j += next {
		set(recordCopy{coef[j*coefLen:], list[j*coefLen:], next, j})
	}
	return list
}

// factors returns records that multiply the channels of a kind in a block by a power of
// two, and change nothing in others. They are nil if all are of the kind.
func (w *workspace) factors(buf *buffers, made int, coef []float32, b *block, factor float32) []float32 {
	if b.tiny&mixedKinds == 0 {
		return nil
	}
	return w.recordsFrom(&buf.constants, made, coef, b, func(r recordCopy) {
		w.setFactor(&r, b, tinyGradients, factor) // the other fields change nothing
	})
}

// scaleUp sets dst to gradients of a block, without gaps, multiplied by the power of two
// for tiny ones. src has rows that are stride values apart.
func (w *workspace) scaleUp(buf *buffers, dst, src, coef []float32, b *block, stride int) []float32 {
	if factors := w.factors(buf, madeUp, coef, b, tinyScale); factors != nil {
		w.products(kernelScale, &kernelArgs{x: src, y: dst, coef: factors, stride: stride, strideY: b.n}, b)
		return dst
	}
	return w.times(dst, src, tinyScale, b.rows, b.n, stride)
}

// preActivations sets z of a block, with the bits that a kernel computes, and returns it.
func (w *workspace) preActivations(buf *buffers, coef []float32, b *block) []float32 {
	z := w.product(buf.scaled[:], b.x, coef, b)
	if b.res != nil {
		res := w.packed(buf.res[:], b.res, b)
		w.alike(kernelNormalize, Identity, &kernelArgs{x: res, res: z, y: z, coef: asItIs}, b.len())
	}
	return z
}

// gated returns dy where z is above 0, and 0 elsewhere: g of ReLU.
func (w *workspace) gated(buf *buffers, coef []float32, b *block) []float32 {
	g := buf.g[:]
	if b.tiny&tinyDeviations == 0 && !b.apart() { // z is not tiny: a kernel takes half the time
		k := kernelArgs{x: b.x, dy: b.dy, res: b.res, y: buf.scaled[:], dres: g}
		k.coef = w.recordsFrom(&buf.constants, madeGradients, coef, b, func(r recordCopy) {
			r.copy(fieldN)
			r.copy(fieldA)
			r.copy(fieldB)
			r.set(fieldK1, infinity) // so that dx, which is not used, is no small product
			r.set(fieldK2, 0)
		})
		w.elementwise(kernelInputGrad, ReLU, &k, b)
		return g
	}
	if b.res == nil {
		w.products(kernelGate, &kernelArgs{x: b.x, dy: b.dy, y: g, coef: coef, stride: b.step(), strideY: b.n}, b)
		return g
	}
	z, n := w.preActivations(buf, coef, b), b.len()
	k := kernelArgs{x: z, dy: w.packed(buf.dy[:], b.dy, b), y: g, coef: columnAsItIs[:], rows: 1, n: n, stride: n, strideY: n}
	w.plan.path.run(kernelGate, cols, Identity, &k)
	return g
}

// slopeTimes returns act'(z)*dy of a block, as a float32 product. dy has no gaps.
func (w *workspace) slopeTimes(act Activation, buf *buffers, coef []float32, b *block, dy []float32) []float32 {
	z, g := w.preActivations(buf, coef, b), buf.g[:]
	k := kernelArgs{x: minusZeros, dy: dy, res: z, y: z, dres: g, coef: asZero} // dx is not used
	w.alike(kernelInputGrad, act, &k, b.len())
	return g
}

// gradientsOf returns g = dy*act'(z) of a block, without gaps. Tiny gradients are
// multiplied by their power of two first if scaled is set; otherwise g has the bits that a
// kernel computes.
func (w *workspace) gradientsOf(act Activation, buf *buffers, coef []float32, b *block, scaled bool) []float32 {
	scaled = scaled && b.tiny&tinyGradients != 0
	switch {
	case act.variant() == actNone && scaled:
		return w.scaleUp(buf, buf.dy[:], b.dy, coef, b, b.step())
	case act.variant() == actNone:
		return w.packed(buf.dy[:], b.dy, b)
	case act.variant() == actInline:
		g := w.gated(buf, coef, b)
		if scaled {
			w.scaleUp(buf, g, g, coef, b, b.n)
		}
		return g
	case scaled:
		return w.slopeTimes(act, buf, coef, b, w.scaleUp(buf, buf.dy[:], b.dy, coef, b, b.step()))
	case b.tiny&tinyGradients == 0:
		return w.slopeTimes(act, buf, coef, b, w.packed(buf.dy[:], b.dy, b))
	}
	slopes := w.slopeTimes(act, buf, coef, b, plusOnes)
	dy := w.packed(buf.dy[:], b.dy, b)
	// They take the place of the factors of columns.
	factors := buf.constants.again
	for i, n := 0, b.len(); i < n; i += mostSpan {
		m := min(mostSpan, n-i)
		for j := 0; j < m; j += lanes {
			record := (*record)(factors[j*coefLen:])
			for l := range lanes {
				record[fieldN*lanes+l], record[fieldB*lanes+l] = negativeZero, negativeZero
			}
			copyShort(record[fieldA*lanes:][:lanes], slopes[i+j:][:lanes])
		}
		k := kernelArgs{x: dy[i:], y: slopes[i:], coef: factors, coefStep: coefLen * lanes, rows: 1, n: m, stride: m, strideY: m}
		w.plan.path.run(kernelScale, cols, Identity, &k)
	}
	return slopes
}

// writeTiny writes the outputs of a block. coef has the constants of its channels.
func (w *workspace) writeTiny(buf *buffers, coef []float32, b *block) {
	act := w.apply.act
	if w.backward {
		w.writeTinyDX(act, buf, coef, b)
		return
	}
	if act.kind == actIdentity && b.res == nil {
		w.products(kernelScale, &kernelArgs{x: b.x, y: b.y, coef: coef, stride: b.step(), strideY: b.step()}, b)
		return
	}
	k := kernelArgs{x: minusZeros, res: w.product(buf.scaled[:], b.x, coef, b), y: b.y, coef: asItIs}
	if b.res != nil {
		k.x = w.packed(buf.res[:], b.res, b)
	}
	if b.apart() {
		k.y = buf.y[:]
	}
	w.alike(kernelNormalize, act, &k, b.len())
	if b.apart() {
		w.unpack(b.y, k.y, 1, nil, b)
	}
}

// writeTinyDX writes dx of a block, and g if it is wanted.
func (w *workspace) writeTinyDX(act Activation, buf *buffers, coef []float32, b *block) {
	scaled := b.tiny&tinyGradients != 0 && !w.frozen
	k, n := kernelArgs{y: b.y, coef: coef}, b.len()
	if b.apart() {
		k.y = buf.y[:]
	}
	var exact []float32
	if b.dres != nil { // other outputs may overwrite what it is made of
		exact = w.gradientsOf(act, buf, coef, b, false)
		copy(buf.dres[:n], exact)
	}
	var factors []float32
	switch {
	case b.tiny&tinyGradients != 0 && w.frozen: // a*(g - (x-m)*0), with the bits that a kernel computes
		if exact == nil {
			exact = w.gradientsOf(act, buf, coef, b, false)
		}
		k.x, k.res = w.packed(buf.x[:], b.x, b), exact
		k.coef = w.recordsFrom(&buf.constants, madeDeviations, coef, b, func(r recordCopy) {
			r.copy(fieldN)
			r.set(fieldA, negativeZero)
			r.set(fieldB, negativeZero)
		})
		w.elementwise(kernelNormalize, Identity, &k, b)
		factors = w.recordsFrom(&buf.constants, madeOutputs, coef, b, func(r recordCopy) {
			r.set(fieldN, negativeZero)
			r.copy(fieldA)
			r.set(fieldB, negativeZero)
		})
	case b.tiny&tinyDeviations != 0:
		if k.dy = exact; exact == nil || scaled {
			k.dy = w.gradientsOf(act, buf, coef, b, scaled)
		}
		k.x = w.packed(buf.x[:], b.x, b)
		w.elementwise(kernelInputGrad, Identity, &k, b)
	default:
		k.dy = w.scaleUp(buf, buf.dy[:], b.dy, coef, b, b.step())
		k.x, k.res = w.packed(buf.x[:], b.x, b), w.packed(buf.res[:], b.res, b)
		w.elementwise(kernelInputGrad, act, &k, b)
	}
	factor := 1.0
	if scaled {
		if factors = w.factors(buf, madeDown, coef, b, 1.0/tinyScale); factors == nil {
			factor = 1.0 / tinyScale
		}
	}
	if b.apart() || factor != 1 || factors != nil {
		w.unpack(b.y, k.y, factor, factors, b)
	}
	if b.dres != nil {
		w.unpack(b.dres, buf.dres[:], 1, nil, b)
	}
}

// sumTiny takes the sums of a block, given all arguments of the kernel but the operands.
// coef has the constants of the channels.
func (w *workspace) sumTiny(k *kernelArgs, buf *buffers, coef []float32, b *block) {
	act := w.sums.act
	k.coef, k.act = coef, w.act
	if b.tiny&tinyDeviations == 0 {
		k.dy = w.scaleUp(buf, buf.dy[:], b.dy, coef, b, b.step())
		k.x, k.res = w.packed(buf.x[:], b.x, b), w.packed(buf.res[:], b.res, b)
	} else {
		if act.variant() == actCalled && !w.way.stores {
			k.dy, k.res = w.gradientsOf(Identity, buf, coef, b, true), w.preActivations(buf, coef, b)
		} else {
			k.dy = w.gradientsOf(act, buf, coef, b, true)
			act = Identity
		}
		if w.way.stores {
			w.unpack(b.dres, k.dy, 1, nil, b)
		}
		scale := w.recordsFrom(&buf.constants, madeDeviations, coef, b, func(r recordCopy) {
			r.copy(fieldN)
			w.setFactor(&r, b, tinyDeviations, tinyScale)
			r.set(fieldB, negativeZero)
		})
		k.x = w.product(buf.y[:], b.x, scale, b)
		k.coef = allAsZero[w.geo.layout][:] // the operands are deviations, and z
	}
	if w.geo.layout == rows {
		w.plan.path.runAll(w.sums.kernel, act, k)
		return
	}
	w.plan.path.run(w.sums.kernel, cols, act, k)
}

// sumTinyRows is sumLanes of a backward pass for tiny numbers.
func (w *workspace) sumTinyRows(s *rowScratch, c, n int, win window) {
	g, buf := w.geo, w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	for o := win.o; o < win.o+win.images; {
		images := 1
		if win.o+win.images-o >= quadSize {
			images = quadSize
		}
		most, together := bufferLen/images, 1
		if win.n == g.inner && w.source == nil { // the rows of some channels are adjacent
			together = max(1, min(most/win.n, mostSpan))
		}
		for r := 0; r < n; r += together {
			channels := min(together, n-r)
			coef := w.coef[(c+r)*coefLen:]
			for i := 0; i < win.n; i += most {
				values := channels * min(most, win.n-i)
				b := w.tinyBlock(((o*g.channels+c+r)*g.inner)+win.i+i, images, values, g.channels*g.inner)
				if w.source != nil {
					b = w.packRows(&w.sums, buf, c+r, o, 1, win.i+i, values)
				}
				b.channels, b.tiny = channels, s.tiny
				k := &s.args
				*k = kernelArgs{sums: s.sums[r*sumLen:], acc: s.acc[r*sumLen:], rows: channels, n: values / channels, stride: values}
				k.begin(0, images)
				w.sumTiny(k, buf, coef, &b)
			}
		}
		if o += images; win.n > shortRow { // the last piece of a row may be a short row of its own
			w.plan.path.flush(s.sums[:n*sumLen], s.acc)
		}
	}
}

// sumTinyCols is sumBlock for columns with tiny numbers. acc has their sums.
func (w *workspace) sumTinyCols(acc []float32, tiny byte, c, r0, r1, n int) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(cols)
	most := rowsOf(bufferLen, n)
	for r := r0; r < r1; r += most {
		i, height := r*w.geo.width+c, min(most, r1-r)
		b := w.tinyBlock(i, height, n, w.geo.width)
		if w.source != nil {
			b = w.packCols(&w.sums, buf, i, height, n)
		}
		b.tiny, b.column = tiny, c
		k := kernelArgs{acc: acc, rows: height, n: n, stride: n}
		w.sumTiny(&k, buf, w.coef[c*coefLen:], &b)
	}
}

// tinyBlock returns rows of n values of the tensors of the sums from index i on.
func (w *workspace) tinyBlock(i, rows, n, stride int) block {
	s := &w.sums
	return block{rows: rows, n: n, stride: stride, x: from(s.x, i), dy: from(s.dy, i), res: from(s.res, i), dres: from(s.dres, i)}
}

// scaleBackSums takes the scale of deviations out of the sums of g*(x-m), of the columns
// from c on.
func (w *workspace) scaleBackSums(sums []float64, c int) {
	for i := 0; w.backward && w.tinyX && i < len(sums); i++ {
		if w.channels.tiny[w.channelOf(c+i)]&tinyDeviations != 0 {
			sums[i] *= 1.0 / tinyScale
		}
	}
}

// writeTinyRows is writeAll for channels with tiny numbers.
func (w *workspace) writeTinyRows(k *kernelArgs, tiny byte) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	for ; k.images > 0; k.images-- {
		for r := 0; r < k.rows; {
			channels := max(1, min(k.rows-r, bufferLen/k.n, mostSpan))
			n := channels * k.n
			for i := 0; i < n; i += bufferLen {
				b := blockAt(&w.apply, k.at+i, min(bufferLen, n-i))
				b.channels, b.tiny = channels, tiny
				w.writeTiny(buf, k.coef[k.coefAt:], &b)
			}
			k.at += n
			k.coefAt += channels * coefLen
			r += channels
		}
		k.at += k.imageGap
		k.coefAt += k.coefImage
	}
}

// writeTinyPanel is writePanel for columns with tiny numbers.
func (w *workspace) writeTinyPanel(i, c, rows, n, stride int, tiny byte) {
	s := &w.apply
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(cols)
	for p := 0; p < n; p += mostSpan {
		m := min(mostSpan, n-p)
		most := bufferLen / m
		for r := 0; r < rows; r += most {
			at := i + p + r*stride
			b := block{rows: min(most, rows-r), n: m, stride: stride, tiny: tiny, column: c + p,
				x: from(s.x, at), dy: from(s.dy, at), res: from(s.res, at), y: from(s.y, at), dres: from(s.dres, at)}
			w.writeTiny(buf, w.coef[(c+p)*coefLen:], &b)
		}
	}
}

// ---- sums of scaled gradients

// plainLeast is the least gradient that makes its channel plain, since scaled ones overflow.
const plainLeast = 0x1p26

// findPlain makes channels plain that have such gradients.
func (w *workspace) findPlain(c0, c1 int) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		ch.flag[c] = ch.tiny[c]&tinyGradients != 0
	}
	w.measureDY(c0, c1)
	for c := c0; c < c1; c++ {
		ch.setPlain(c, ch.flag[c] && !(ch.extent[c] < plainLeast))
		ch.flag[c] = false
	}
}

// setPlain sets whether a channel is plain, of those whose gradients seem tiny.
func (ch *channels) setPlain(c int, plain bool) {
	if ch.plain[c] = plain; plain {
		ch.tiny[c] &^= tinyGradients
	}
}

// measureDY sets the extents of the flagged channels to their largest magnitudes of dy.
func (w *workspace) measureDY(c0, c1 int) {
	s := w.again
	s.act = Identity
	w.measureStage(&s, c0, c1)
}

// settleScales makes channels plain whose scaled sums can't be relied on. With check, it
// takes their sums again.
func (w *workspace) settleScales(c0, c1 int, check bool) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		ch.flag[c] = false
		if ch.tiny[c]&tinyGradients == 0 || w.staysScaled(c, check) {
			continue
		}
		ch.setPlain(c, true)
		if ch.flag[c], ch.powerX[c], ch.powerG[c] = check, 0, 0; !check {
			ch.sumA[c] *= 1.0 / tinyScale
			ch.sumB[c] *= 1.0 / tinyScale
		}
	}
	w.sumAgain(c0, c1)
}

// scaleAgain makes channels that are plain because of their sums alone scaled ones, whose
// sums have been taken again. So it depends on the sums and on dy only whether a channel is
// plain, as in a call that is given the sums.
func (w *workspace) scaleAgain(c0, c1 int) {
	ch := &w.channels
	some := false
	for c := c0; c < c1; c++ {
		if ch.flag[c] = false; !ch.plain[c] {
			continue
		}
		a, b := ch.sumA[c], ch.sumB[c]
		ch.sumA[c], ch.sumB[c] = a*tinyScale, b*tinyScale
		ch.flag[c] = w.staysScaled(c, false)
		ch.sumA[c], ch.sumB[c] = a, b
		some = some || ch.flag[c]
	}
	if !some {
		return
	}
	w.measureDY(c0, c1)
	for c := c0; c < c1; c++ {
		if ch.flag[c] && ch.extent[c] < plainLeast {
			ch.plain[c] = false
			ch.tiny[c] |= tinyGradients
			ch.sumA[c] *= tinyScale
			ch.sumB[c] *= tinyScale
		}
		ch.flag[c] = false
	}
}

// staysScaled reports whether the sums of the scaled gradients of a channel, and the
// constants of its dx, are in float32's range.
func (w *workspace) staysScaled(c int, check bool) bool {
	ch := &w.channels
	return ch.sumA[c]-ch.sumA[c] == 0 && !ch.wide[c] && !(check && w.suspicious(c)) && !w.strange(c)
}

// scaleBack scales the results of channels with scaled gradients back, and writes them. It
// stops at sums that are not finite, unless sums are settled, since NaN in x would hide an
// overflow. It returns the end, or else a multiple of 8 channels before it.
func (w *workspace) scaleBack(c0, c1 int, settled bool) int {
	ch := &w.channels
	const scale = 1.0 / tinyScale
	for c := c0; c < c1; c++ {
		if ch.tiny[c]&tinyGradients == 0 {
			if c%lanes == 0 && binary.LittleEndian.Uint64(ch.tiny[c:]) == 0 {
				c += lanes - 1
			}
			continue
		}
		if ch.sumA[c]-ch.sumA[c] != 0 && !settled {
			return c0 + (c-c0)/lanes*lanes
		}
		ch.dgamma[c] *= scale
		ch.dbeta[c] *= scale
		if w.betaGrad != nil {
			w.betaGrad[c] = float32(ch.dbeta[c])
		}
		if w.gammaGrad != nil {
			w.gammaGrad[c] = float32(w.dgamma(c))
		}
		if w.sumG != nil {
			w.sumG[c], w.sumGD[c] = float64(ch.sumA[c]*scale), float64(ch.sumB[c]*scale)
		}
	}
	return c1
}
