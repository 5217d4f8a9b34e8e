package batchnorm

import (
	"encoding/binary"
	"math"
	"slices"
	"unsafe"
)

// Channels of tiny numbers: gradients, or values of x, that are subnormal or nearly so, or
// constants that are. Float32 products of them are subnormal: they lose digits, and each
// takes a microcode assist of about a hundred cycles on Intel's processors. Such channels go
// block by block, in memory that stays in a cache. The products for z, g and dx are taken in
// float64 there and rounded once. Where no constant is tiny, that gives the bits of float32
// products. Sums are of gradients and deviations that are multiplied by a power of two, and
// so is dx before it is rounded.
//
// Constants are known to be tiny. Four values of a channel decide on the others, so that the
// decision is the same on every path and for any number of workers. Where a channel has
// gradients that are not tiny, or constants that are too large for float32, the sums of
// scaled gradients can't be relied on. Such a channel is plain: its sums are taken again
// without a scale, and its gradients are not scaled.

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
	tinyFactors // the scale: the channel is small
	mixedKinds  // of channels side by side, which are not all alike
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
	if n := w.geo.channels; w.backward && w.sums.act.kind != actIdentity && w.anyFormed(0, n) { // sums take z
		for c, form := range w.channels.form[:n] {
			if form == smallForm {
				w.beginKind(tinyFactors)
				w.channels.tiny[c] |= tinyFactors
			}
		}
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
	if v := w.plan.path.whole((channels-1)*next + 1); next < lanes && v > 0 {
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
	w.tinyG, w.tinyX, w.tinyZ = w.tinyG || kind == tinyGradients, w.tinyX || kind == tinyDeviations, w.tinyZ || kind == tinyFactors
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
func (w *workspace) anyTiny() bool { return w.tinyG || w.tinyX || w.tinyZ }

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
	once         = sameFactor(1)
	scaledUp     = sameFactor(tinyScale)
	asItIs       = []float32{fieldN: negativeZero, fieldA: 1, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	asZero       = []float32{fieldN: negativeZero, fieldA: 0, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	columnAsItIs = inAllLanes(asItIs)
	columnAsZero = inAllLanes(asZero)
)

// sameFactor returns the factors of columns that are all multiplied by v: one, with room for
// a vector.
func sameFactor(v float64) []float64 { return slices.Repeat([]float64{v}, lanes)[:1] }

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

// unpack writes an output of a block, which has no gaps, to its place.
func (w *workspace) unpack(dst, src []float32, b *block) {
	if !b.apart() {
		copy(dst[:b.len()], src)
		return
	}
	if b.n < shortCopy {
		k := kernelArgs{x: src, y: dst, rows: b.rows, n: b.n, stride: b.n, strideY: b.stride, factor: 1}
		k.stream = w.streams(&k)
		w.plan.path.run(kernelTimes, cols, Identity, &k)
		return
	}
	for r := range b.rows {
		copy(dst[r*b.stride:][:b.n], src[r*b.n:])
	}
}

// streams reports whether a kernel of columns can write an output with non-temporal stores.
func (w *workspace) streams(k *kernelArgs) bool {
	return w.apply.stream && uintptr(unsafe.Pointer(&k.y[0]))%vectorBytes == 0 && (k.rows == 1 || k.strideY%lanes == 0)
}

const vectorBytes = 4 * lanes

// products runs a kernel that takes products in float64 on the rows of a block, with the
// constants of its channels, or without any, and with their factors, or one for all. k
// changes.
func (w *workspace) products(buf *buffers, kernel int, k *kernelArgs, coef []float32, factors []float64, b *block) {
	k.rows, k.n, k.coef = b.rows, b.n, columnAsItIs[:]
	same := len(factors) == 1
	if w.geo.layout == cols {
		k.factors = factors[:max(lanes, len(factors))]
		if coef != nil {
			k.coef, k.coefStep = coef, coefLen*lanes
		}
		if !same {
			k.factorStep = lanes
		}
		w.plan.path.run(kernel, cols, Identity, k)
		return
	}
	of := &buf.constants.factors
	k.factors = of[:]
	if coef == nil && same {
		fill(of[:], factors[0])
		w.plan.path.run(kernel, cols, Identity, k)
		return
	}
	all, channels := *k, max(1, b.channels)
	for c := range channels {
		n := b.n / channels
		i := c * n
		*k = all
		k.n, k.x, k.dy, k.y = n, all.x[i:], from(all.dy, i), all.y[i:]
		k.stream = all.stream && i%lanes == 0
		if coef != nil {
			record := &buf.constants.record
			*record = inAllLanes(coef[c*coefLen:][:coefLen])
			k.coef = record[:]
		}
		fill(of[:], factors[min(c, len(factors)-1)])
		w.plan.path.run(kernel, cols, Identity, k)
	}
}

// The lists of factors that are made for a block.
const (
	factorsZ   = iota // a, or the scale of a small channel
	factorsDX         // the same, divided by the power of two of tiny gradients
	factorsUp         // this power
	factorsDev        // the power of two of tiny deviations
	numLists
)

// factors returns the factors of a block, or one for all. They are made unless they are
// those that were made last.
func (w *workspace) factors(buf *buffers, list int, coef []float32, b *block) []float64 {
	var ofKind [tinyFactors]float64
	for kind := range ofKind {
		ofKind[kind] = w.factorOf(list, byte(kind))
	}
	f, alike, small := ofKind[b.tiny%tinyFactors], b.tiny&mixedKinds == 0, b.tiny&tinyFactors != 0
	n := b.n
	if w.geo.layout == rows {
		n = max(1, b.channels)
	}
	switch {
	case !alike:
	case list >= factorsUp && f == 1:
		return once
	case list >= factorsUp:
		return scaledUp
	case small && f == 1 && (w.geo.layout == rows || w.geo.width == w.geo.channels):
		return w.channels.scale[b.column:][:n]
	}
	k := &buf.constants
	factors := k.lists[list][:n]
	if k.made[list] == &coef[0] {
		return factors
	}
	k.made[list] = &coef[0]
	for j := 0; w.geo.layout == rows && j < n; j++ {
		if factors[j] = f * float64(coef[j*coefLen+fieldA]); small {
			factors[j] = f * w.channels.scale[b.column+j]
		}
	}
	for j := 0; w.geo.layout == cols && j < n; j += lanes {
		to, a := (*[lanes]float64)(k.lists[list][j:]), (*[lanes]float32)(coef[j*coefLen+fieldA*lanes:])
		if alike && !small {
			for l, a := range a {
				to[l] = f * float64(a)
			}
			continue
		}
		w.mixedFactors(to, list, &ofKind, a, b, j)
	}
	return factors
}

// mixedFactors sets the factors of columns of a block from column j on, whose channels are
// not all alike, or small.
func (w *workspace) mixedFactors(to *[lanes]float64, list int, ofKind *[tinyFactors]float64, a *[lanes]float32, b *block, j int) {
	kinds, n := [lanes]byte{}, min(lanes, b.n-j)
	w.kindsOf(&kinds, b.column+j, n)
	for l, kind := range kinds {
		to[l] = ofKind[kind%tinyFactors]
	}
	if list >= factorsUp {
		return
	}
	for l, a := range a {
		to[l] *= float64(a)
	}
	for l := 0; b.tiny&tinyFactors != 0 && l < n; l++ {
		if c := w.channelOf(b.column + j + l); w.channels.form[c] == smallForm {
			to[l] = w.channels.scale[c] * ofKind[kinds[l]%tinyFactors]
		}
	}
}

// kindsOf sets the kinds of n columns from column j on.
func (w *workspace) kindsOf(kinds *[lanes]byte, j, n int) {
	*kinds = [lanes]byte{}
	switch tiny := w.channels.tiny; {
	case !w.anyTiny():
		return
	case w.geo.width == w.geo.channels && j+lanes <= len(tiny):
		*kinds = [lanes]byte(tiny[j:])
		return
	}
	for l := range n {
		kinds[l] = w.channels.tiny[w.channelOf(j+l)]
	}
}

// factorOf returns the factor of channels with tiny gradients or deviations. In lists for z
// and dx it multiplies the scale.
func (w *workspace) factorOf(list int, kind byte) float64 {
	switch {
	case list == factorsDX && kind&tinyGradients != 0 && !w.frozen:
		return 1.0 / tinyScale
	case list == factorsUp && kind&tinyGradients != 0, list == factorsDev && kind&tinyDeviations != 0:
		return tinyScale
	}
	return 1
}

// scaledMeans returns records for the sums of deviations, with the means of the channels of
// a block, times the factors. z is the residual alone. They are made unless they are those
// that were made last.
func (w *workspace) scaledMeans(buf *buffers, coef []float32, b *block, factors []float64) []float32 {
	k := &buf.constants
	if k.made[numLists] == &coef[0] {
		return k.means
	}
	k.made[numLists] = &coef[0]
	if w.geo.layout == rows {
		for c := range max(1, b.channels) {
			record := k.means[c*coefLen:]
			record[fieldN], record[fieldA], record[fieldB] = float32(float64(coef[c*coefLen+fieldN])*factors[0]), 0, negativeZero
		}
		return k.means
	}
	for j := 0; j < b.n; j += lanes {
		from, to := (*[lanes]float32)(coef[j*coefLen+fieldN*lanes:]), (*record)(k.means[j*coefLen:])
		*to = columnAsZero
		for l, v := range from {
			f := factors[0]
			if len(factors) > 1 {
				f = k.lists[factorsDev][j+l]
			}
			to[fieldN*lanes+l] = float32(float64(v) * f)
		}
	}
	return k.means
}

// scaleUp sets dst to gradients of a block, without gaps, multiplied by the power of two
// for tiny ones. src has rows that are stride values apart.
func (w *workspace) scaleUp(buf *buffers, dst, src, coef []float32, b *block, stride int) []float32 {
	factors := w.factors(buf, factorsUp, coef, b)
	if len(factors) == 1 {
		return w.times(dst, src, factors[0], b.rows, b.n, stride)
	}
	w.products(buf, kernelScale, &kernelArgs{x: src, y: dst, stride: stride, strideY: b.n}, nil, factors, b)
	return dst
}

// preActivations sets z of a block, with the bits that a kernel computes, and returns it.
func (w *workspace) preActivations(buf *buffers, coef []float32, b *block) []float32 {
	z := buf.scaled[:]
	w.products(buf, kernelScale, &kernelArgs{x: b.x, y: z, stride: b.step(), strideY: b.n}, coef, w.factors(buf, factorsZ, coef, b), b)
	if b.res != nil {
		res := w.packed(buf.res[:], b.res, b)
		w.alike(kernelNormalize, Identity, &kernelArgs{x: res, res: z, y: z, coef: asItIs}, b.len())
	}
	return z
}

// gated returns g of ReLU: dy where z is above 0, and 0 elsewhere. dy has rows that are
// stride values apart.
func (w *workspace) gated(buf *buffers, coef []float32, b *block, dy []float32, stride int) []float32 {
	k := kernelArgs{x: b.x, dy: dy, y: buf.g[:], stride: b.step(), strideDY: stride, strideY: b.n}
	factors := w.factors(buf, factorsZ, coef, b)
	if b.res != nil {
		k.x, k.stride = w.preActivations(buf, coef, b), b.n
		coef, factors = nil, once
	}
	w.products(buf, kernelGate, &k, coef, factors, b)
	return buf.g[:]
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
	tiny := b.tiny&tinyGradients != 0
	switch {
	case act.variant() == actNone && !(scaled && tiny):
		return w.packed(buf.dy[:], b.dy, b)
	case act.variant() == actInline && !(scaled && tiny):
		return w.gated(buf, coef, b, b.dy, b.step())
	case !tiny:
		return w.slopeTimes(act, buf, coef, b, w.packed(buf.dy[:], b.dy, b))
	case scaled:
		switch dy := w.scaleUp(buf, buf.dy[:], b.dy, coef, b, b.step()); {
		case act.variant() == actNone:
			return dy
		case b.tiny == tinyGradients && !b.apart(): // no product is small
			k := kernelArgs{x: b.x, dy: dy, res: b.res, y: buf.scaled[:], dres: buf.g[:], coef: coef} // dx is not used
			w.elementwise(kernelInputGrad, act, &k, b)
			return buf.g[:]
		case act.variant() == actInline:
			return w.gated(buf, coef, b, dy, b.n)
		default:
			return w.slopeTimes(act, buf, coef, b, dy)
		}
	}
	slopes := w.slopeTimes(act, buf, coef, b, plusOnes)
	dy, factors := w.packed(buf.dy[:], b.dy, b), &buf.constants.slopes
	for i, n := 0, b.len(); i < n; i += mostSpan {
		m := min(mostSpan, n-i)
		for j, v := range slopes[i : i+m] {
			factors[j] = float64(v)
		}
		k := kernelArgs{x: dy[i:], y: slopes[i:], coef: columnAsItIs[:], factors: factors[:], factorStep: lanes, rows: 1, n: m, stride: m, strideY: m}
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
		k := kernelArgs{x: b.x, y: b.y, rows: b.rows, stride: b.step(), strideY: b.step()}
		k.stream = w.streams(&k)
		w.products(buf, kernelScale, &k, coef, w.factors(buf, factorsZ, coef, b), b)
		return
	}
	k := kernelArgs{x: minusZeros, y: b.y, coef: asItIs, stream: w.apply.stream}
	res := b.res
	b.res = nil
	k.res = w.preActivations(buf, coef, b)
	if res != nil {
		k.x = w.packed(buf.res[:], res, b)
	}
	if b.apart() {
		k.y, k.stream = buf.y[:], false
	}
	w.alike(kernelNormalize, act, &k, b.len())
	if b.apart() {
		w.unpack(b.y, k.y, b)
	}
}

// writeTinyDX writes dx of a block, and g if it is wanted.
func (w *workspace) writeTinyDX(act Activation, buf *buffers, coef []float32, b *block) {
	scaled := b.tiny&tinyGradients != 0 && !w.frozen
	var g []float32
	if b.dres != nil { // other outputs may overwrite what it is made of
		g = w.gradientsOf(act, buf, coef, b, false)
		copy(buf.dres[:b.len()], g)
	}
	if g == nil || scaled {
		g = w.gradientsOf(act, buf, coef, b, scaled)
	}
	k := kernelArgs{x: b.x, dy: g, y: b.y, rows: b.rows, stride: b.step(), strideDY: b.n, strideY: b.step()}
	k.stream = w.streams(&k)
	w.products(buf, kernelScaledGrad, &k, coef, w.factors(buf, factorsDX, coef, b), b)
	if b.dres != nil {
		w.unpack(b.dres, buf.dres[:], b)
	}
}

// sumTiny takes the sums of a block, given all arguments of the kernel but the operands.
// coef has the constants of the channels.
func (w *workspace) sumTiny(k *kernelArgs, buf *buffers, coef []float32, b *block) {
	act := w.sums.act
	k.coef, k.act = coef, w.act
	if b.tiny&(tinyDeviations|tinyFactors) == 0 {
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
			w.unpack(b.dres, k.dy, b)
		}
		factors := w.factors(buf, factorsDev, coef, b)
		if k.x = buf.y[:]; len(factors) == 1 {
			w.times(k.x, b.x, factors[0], b.rows, b.n, b.step())
		} else {
			w.products(buf, kernelScale, &kernelArgs{x: b.x, y: k.x, stride: b.step(), strideY: b.n}, nil, factors, b)
		}
		k.coef = w.scaledMeans(buf, coef, b, factors)
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
				b.channels, b.column, b.tiny = channels, c+r, s.tiny
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
	if !w.backward || !w.tinyX {
		return
	}
	factors, kinds := [...]float64{0: 1, tinyDeviations: 1.0 / tinyScale}, w.channels.tiny
	if w.geo.width == w.geo.channels || w.geo.layout == rows {
		kinds = kinds[c:]
		for i := range sums[:min(len(sums), w.geo.channels-c)] {
			sums[i] *= factors[kinds[i]&tinyDeviations]
		}
		return
	}
	for i := range sums {
		sums[i] *= factors[kinds[w.channelOf(c+i)]&tinyDeviations]
	}
}

// writeTinyRows is writeAll for channels with tiny numbers, from channel c on.
func (w *workspace) writeTinyRows(k *kernelArgs, c int, tiny byte) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	for ; k.images > 0; k.images-- {
		for r := 0; r < k.rows; {
			channels := max(1, min(k.rows-r, bufferLen/k.n, mostSpan))
			n := channels * k.n
			for i := 0; i < n; i += bufferLen {
				b := blockAt(&w.apply, k.at+i, min(bufferLen, n-i))
				b.channels, b.column, b.tiny = channels, c+k.coefAt/coefLen, tiny
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
	return ch.sumA[c]-ch.sumA[c] == 0 && !ch.isWide(c) && !(check && w.suspicious(c)) && !w.strange(c)
}

// scaleBack scales the results of channels with scaled gradients back, and writes them. It
// stops at sums that are not finite, unless sums are settled, since NaN in x would hide an
// overflow. It returns the end, or else a multiple of 8 channels before it.
func (w *workspace) scaleBack(c0, c1 int, settled bool) int {
	ch := &w.channels
	factors := [...]float64{0: 1, tinyGradients: 1.0 / tinyScale}
	for c, end := c0, c0; c < c1; c = end {
		end = min(c1, c/lanes*lanes+lanes)
		if binary.LittleEndian.Uint64(ch.tiny[end-1-(end-1)%lanes:]) == 0 {
			continue
		}
		for i, kind := range ch.tiny[c:end] {
			if kind&tinyGradients != 0 && ch.sumA[c+i]-ch.sumA[c+i] != 0 && !settled {
				return c0 + (c-c0)/lanes*lanes
			}
		}
		for _, out := range [...]struct {
			grad []float64
			save []float32
		}{{ch.dgamma, w.gammaGrad}, {ch.dbeta, w.betaGrad}} {
			grad := out.grad[c:end]
			for i, kind := range ch.tiny[c:end] {
				grad[i] *= factors[kind&tinyGradients]
			}
			if out.save != nil {
				save := out.save[c:end]
				for i, v := range grad[:len(save)] {
					save[i] = float32(v)
				}
			}
		}
		if w.renorm.r != nil && w.gammaGrad != nil {
			w.saveGammaGrad(c, end)
		}
		for i, kind := range ch.tiny[c:end] {
			if w.sumG != nil && kind&tinyGradients != 0 {
				w.sumG[c+i], w.sumGD[c+i] = float64(ch.sumA[c+i]*factors[tinyGradients]), float64(ch.sumB[c+i]*factors[tinyGradients])
			}
		}
	}
	return c1
}
