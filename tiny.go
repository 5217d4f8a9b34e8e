package batchnorm

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"unsafe"
)

// Channels of tiny numbers: gradients, or values of x, that are subnormal or nearly so, or
// constants that are. Float32 products of them are subnormal: they lose digits, and each
// takes a microcode assist of about a hundred cycles on Intel's processors. For such channels
// z, the sums of a backward pass and dx are products in float64, which none of these numbers
// leaves, block by block of values that stay in a cache. z is rounded to float32, and so has the
// bits of a float32 product unless its factor is wild. Channels whose constants are too large for
// float32 go the same way: both are precise (stats.go). So do channels whose numbers are small, and have tiny
// products: gradients times x, or one of these times the scale.
//
// Gradients that are huge, and values of x under statistics that are not, go this way in a backward pass,
// too: float32 sums of their products would overflow. They count among the tiny ones here.
//
// Constants are known. Four values of a channel decide on the others, or more if these are 0
// (sparse.go), so that the decision is the same on every path and for any number of workers.

const (
	// tinyMost is the largest magnitude of a tiny number, or product. Products of larger ones with usual
	// numbers are seldom subnormal.
	tinyMost = 0x1p-110
	// hugeLeast is the least magnitude of a huge number. Sums of smaller ones, times usual
	// numbers, hardly overflow.
	hugeLeast = 0x1p100
)

// Which numbers of a channel, or of some channels, are tiny.
const (
	tinyDeviations = 1 << iota // of x from the mean: x is tiny, and so is its mean
	tinyGradients
	tinyFactors // the scale, or the channel is precise for another reason
	mixedKinds  // of channels side by side, of which some have tiny numbers and some have none
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
	w.sampled, w.behind.known = true, false
	w.mostInvStd = invStd(0, w.plan.epsilon)
	k := w.samplesOf(do)
	if w.backward {
		k.values, k.kind = w.apply.dy, tinyGradients
		w.findUnusual(&k)
	}
	k.values, k.kind = w.apply.x, 0
	if !w.inverted() && (w.backward || do&applyThem != 0) {
		k.kind = tinyDeviations
	}
	if k.kind != 0 || k.moments {
		w.findUnusual(&k)
	}
	if n := w.geo.channels; w.backward && w.anyFormed(0, n) && bytes.IndexByte(w.channels.form[:n], preciseForm) >= 0 { // sums take z
		w.beginTiny()
		addFactors(w.channels.tiny, w.channels.form[:n])
	}
}

// inverted reports whether x is y.
func (w *workspace) inverted() bool { return w.source != nil && w.source.inverted }

// addFactors adds tinyFactors to the kinds of precise channels.
func addFactors(kinds, forms []byte) {
	for first := bytes.IndexByte(forms, preciseForm); first >= 0; first = bytes.IndexByte(forms, preciseForm) {
		kinds, forms = kinds[first:], forms[first:]
		precise := uint64(1)
		for ; precise != 0 && len(kinds) >= lanes && len(forms) >= lanes; kinds, forms = kinds[lanes:], forms[lanes:] {
			precise = ofEight(forms) & (preciseForm * eachByte)
			binary.LittleEndian.PutUint64(kinds, ofEight(kinds)|precise/preciseForm*tinyFactors)
		}
		if precise != 0 {
			for c, form := range forms {
				kinds[c] |= form & preciseForm / preciseForm * tinyFactors
			}
			return
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

// samples are the values that decide about channels.
type samples struct {
	values  []float32
	at      *[tinySample]int // of channel 0
	next    int              // from those of a channel to those of the next
	kind    byte             // of tiny values; 0: they have no effect
	moments bool             // channels of large and small values may be marked (large.go)
	// Channels whose first magnitude exceeds most, and is below least, are usual: others are small, or
	// large or huge.
	most, least float32
}

// samplesOf returns the samples of the phases, but for their values.
func (w *workspace) samplesOf(do phases) samples {
	k := samples{most: smallFirst, least: float32(math.Inf(1))}
	k.at, k.next = w.sampledValues()
	switch k.moments = w.samplesMoments(do); {
	case w.backward:
		k.least = hugeLeast
	case k.moments && w.marksLarge():
		k.least = largeLeast
	}
	return k
}

// findUnusual makes the channels that have tiny values channels of a kind, and marks those of small and
// large ones.
func (w *workspace) findUnusual(k *samples) {
	channels, next, values := w.geo.channels, k.next, k.values
	c := 0
	if v := w.plan.path.whole((channels-1)*next + 1); next < lanes && v > 0 {
		c = ceilDiv(v, next)
		w.findUnusualAside(k, v)
		if k.kind != 0 {
			w.findTinyBehind(values, k.kind, k.at, next, c)
		}
	}
	most := math.Float32bits(k.most)
	usual := math.Float32bits(k.least) - most - 1 // the number of magnitudes
	for i := k.at[0] + c*next; c < channels; c, i = c+1, i+next {
		if magnitudeBits(values[i])-most-1 < usual { // NaN is not usual
			continue
		}
		largest := largestAt(values, k.at, c*next)
		if largest == 0 && k.kind != 0 {
			largest = w.largestBehind(values, c*next)
			w.look(c, k.kind, 0, largest)
			continue
		}
		w.lookAt(k, c, values[i], largest)
	}
}

// lookAt looks at a channel, given the first of its sampled values and the bits of the largest magnitude.
func (w *workspace) lookAt(k *samples, c int, first float32, most uint32) {
	if k.moments {
		w.lookMoments(k, c, magnitudeBits(first), most)
	}
	if k.kind != 0 {
		w.look(c, k.kind, first, most)
	}
}

// look makes a channel one of a kind if the bits of its largest magnitude are of a tiny
// number other than 0, if its products are tiny, or if the channel is huge, given its first value.
func (w *workspace) look(c int, kind byte, first float32, most uint32) {
	if most-1 < tinyBits || most-1 < smallFirstBits && w.hasTinyProducts(c, kind, most, w.largestOther(c, kind)) || w.isHuge(c, kind, first, most) {
		w.addTiny(c, kind)
	}
}

// addTiny makes a channel one of a kind.
func (w *workspace) addTiny(c int, kind byte) {
	if !w.anyTiny {
		w.beginTiny()
	}
	w.channels.tiny[c] |= kind
}

// otherFactor returns the factor, in the sums of a backward pass, of the values that a kind is about, if
// there is one.
func (w *workspace) otherFactor(kind byte) []float32 {
	switch {
	case kind == tinyDeviations:
		return w.apply.dy // forward nil
	case w.inverted():
		return nil
	}
	return w.apply.x
}

// largestOther returns the bits of the largest sampled magnitude of otherFactor in a channel.
func (w *workspace) largestOther(c int, kind byte) uint32 {
	other := w.otherFactor(kind)
	if other == nil {
		return 0
	}
	at, next := w.sampledValues()
	return largestAt(other, at, c*next)
}

// hasTinyProducts reports whether a product of values of a kind in a channel is tiny, given the bits of their
// largest magnitude and that of otherFactor.
func (w *workspace) hasTinyProducts(c int, kind byte, most, other uint32) bool {
	return isTinyProduct(most, other, tinyProductBits) && (kind == tinyGradients || w.tinyOf(c) == 0) ||
		w.scales(kind) && isTinyProduct(most, magnitudeBits(w.scaleAt(c)), tinyScaledBits)
}

// scales reports whether the outputs have products of the scale and the values that a kind is about.
func (w *workspace) scales(kind byte) bool {
	return kind == tinyGradients || !w.backward || w.apply.act.kind != actIdentity
}

// scaleAt returns the factor of x-m in z of a channel. Where the statistics are not known yet, it is that of small
// deviations, which epsilon hides.
func (w *workspace) scaleAt(c int) float32 {
	if w.backward || w.affines {
		return float32(w.channels.scale[c])
	}
	if w.gamma == nil {
		return float32(w.mostInvStd)
	}
	return float32(float64(w.gamma[c]) * w.mostInvStd)
}

// isTinyProduct reports whether the product of two numbers is at most a limit and not 0, given the bits of their
// magnitudes, and those of the limit plus those of 1: nearly so, as bits are nearly logarithms.
func isTinyProduct(a, b, limit uint32) bool { return a != 0 && b != 0 && a+b <= limit }

const (
	// tinyProductBits are of tinyMost: the sums of smaller products of gradients and x may be too
	// small to rely on, and would be taken again.
	tinyProductBits = tinyBits + 127<<23
	// tinyScaledBits are of the largest tiny product with a scale, 2^-117. Of products whose largest one is
	// larger, few are subnormal.
	tinyScaledBits = (127-117)<<23 + 127<<23
)

// isHuge reports whether a backward pass handles a channel like one of tiny numbers, given the first of its
// sampled values and the bits of the largest magnitude. This is finite, and the first one is huge. If it
// is of x, it is far from the mean, too, and no x-m overflows.
func (w *workspace) isHuge(c int, kind byte, first float32, most uint32) bool {
	if !w.backward || !isHugeSample(first, most) {
		return false
	}
	if kind == tinyGradients {
		return true
	}
	mean := w.channels.mean[c]
	// 2^103 is half the last digit of the largest float32: a smaller mean changes it to no infinity.
	return math.Abs(mean) < 0x1p103 && math.Abs(float64(first)-mean) >= hugeLeast
}

// isHugeSample reports whether the first of some sampled values is huge, and the largest one, whose bits are given,
// is finite.
func isHugeSample(first float32, most uint32) bool {
	return magnitudeBits(first) >= hugeBits && most < infinityBits
}

// beginTiny says that there are channels of tiny numbers.
func (w *workspace) beginTiny() {
	if !w.anyTiny {
		clear(w.channels.tiny)
	}
	w.anyTiny = true
}

// largestAt returns the bits of the largest magnitude of the sampled values, which lie
// behind those of channel 0.
func largestAt(values []float32, at *[tinySample]int, behind int) (most uint32) {
	for _, i := range at {
		most = max(most, magnitudeBits(values[i+behind]))
	}
	return most
}

// largestSampled sets extent to the largest sampled magnitudes of adjacent channels.
func (w *workspace) largestSampled(values []float32, at *[tinySample]int, extent []float32) {
	n, step := len(extent), at[1]-at[0]
	if at[2]-at[1] == step && at[3]-at[2] == step {
		w.largest(values[at[0]:], tinySample, n, step, extent)
		return
	}
	w.largest(values[at[0]:], 1, n, 0, extent)
	for _, i := range at[1:] {
		w.larger(values[i:], 1, n, 0, extent)
	}
}

// findUnusualAside is findUnusual for channels less than a vector apart, whose first values are in
// n columns, in whole vectors.
func (w *workspace) findUnusualAside(s *samples, n int) {
	values, at, next := s.values, s.at, s.next
	for j, first := 0, true; j < n; {
		m := min(callChannels, n-j)
		k := &w.looks
		k.n, k.x, k.gamma, k.beta, k.running = m, values[at[0]+j:], values[at[1]+j:], values[at[2]+j:], values[at[3]+j:]
		k.most, k.least, k.tiny = s.most, s.least, s.most
		if next == 1 && !s.moments {
			w.setTinyProducts(k, s, j)
		}
		k.run(channelTiny)
		k.x, k.gamma, k.beta, k.running, k.runningVar = nil, nil, nil, nil, nil // the caller's memory
		k.neg, k.a, k.b, k.k1, k.scale = nil, nil, nil, nil, nil
		if j += m - k.n; k.n == 0 {
			continue
		}
		if next > 1 || first { // it may be the only one
			c := ceilDiv(j, next)
			first = false
			for j += lanes; c*next < j; c++ {
				w.lookAt(s, c, values[at[0]+c*next], largestAt(values, at, c*next))
			}
			continue
		}
		// Where some channels are unusual, others often are.
		end := min(j+mostSpan, n)
		extent, firsts := w.channels.extent[j:end], values[at[0]+j:end+at[0]]
		w.largestSampled(values[j:], at, extent)
		kind, small, tiny := s.kind, false, w.channels.tiny[j:end]
		for i, v := range extent {
			most := math.Float32bits(v)
			if most-1 < tinyBits && kind != 0 { // of moments they are neither small nor large
				if !w.anyTiny {
					w.beginTiny()
				}
				tiny[i] |= kind
				continue
			}
			if most-1 >= smallFirstBits && most < largeBits { // it is usual
				continue
			}
			if s.moments && (maySpread(most) || most >= largeBits) {
				w.lookMoments(s, j+i, magnitudeBits(firsts[i]), most)
			}
			switch {
			case kind == 0:
			case most >= hugeBits:
				if isHugeSample(firsts[i], most) && (kind == tinyGradients || w.isHuge(j+i, kind, firsts[i], most)) {
					w.addTiny(j+i, kind)
				}
			case most-1 < smallFirstBits:
				small = true
			}
		}
		if small {
			w.findTinyProducts(s, j, end)
		}
		j = end
	}
}

// setTinyProducts sets the arguments of channelTiny for channels from c on, so that it finds those that are tiny or may
// have tiny products.
func (w *workspace) setTinyProducts(k *channelArgs, s *samples, c int) {
	k.tiny, k.product, k.scaled = tinyMost, math.Float32frombits(tinyProductBits), math.Float32frombits(tinyScaledBits)
	if other := w.otherFactor(s.kind); other != nil {
		at := s.at
		k.neg, k.a, k.b, k.k1 = other[at[0]+c:], other[at[1]+c:], other[at[2]+c:], other[at[3]+c:]
	}
	switch {
	case !w.scales(s.kind):
	case w.backward || w.affines:
		k.scale = w.channels.scale[c:]
	default: // bits of a product with invstd differ from the sum of theirs by less than those of 2, or of 2^23 for a subnormal gamma
		k.runningVar = w.channels.ones
		if w.gamma != nil {
			k.runningVar = w.gamma[c:]
		}
		most := tinyScaledBits + (127+24)<<23 - int64(magnitudeBits(float32(w.mostInvStd)))
		k.scaled = math.Float32frombits(uint32(min(max(most, 0), math.MaxInt32)))
	}
}

// findTinyProducts makes those of the adjacent channels from c to end-1 channels of a kind that have tiny products.
// extent has the largest of their sampled magnitudes.
func (w *workspace) findTinyProducts(s *samples, c, end int) {
	extent := w.channels.extent[c:end]
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	others := buf.largest[:len(extent)]
	clear(others)
	if other := w.otherFactor(s.kind); other != nil {
		w.largestSampled(other[c:], s.at, others)
	}
	for i, v := range extent {
		most, other := math.Float32bits(v), math.Float32bits(others[i])
		if most-1 >= smallFirstBits {
			continue
		}
		if s.kind == tinyGradients && isTinyProduct(most, other, tinyProductBits) || w.hasTinyProducts(c+i, s.kind, most, other) {
			w.addTiny(c+i, s.kind)
		}
	}
}

// magnitudeBits returns the bits of the magnitude of a number, which are in its order.
func magnitudeBits(v float32) uint32 { return math.Float32bits(v) &^ (1 << 31) }

// tinyBits has the bits of tinyMost, and hugeBits those of hugeLeast.
const (
	tinyBits = (127 - 110) << 23
	hugeBits = (127 + 100) << 23
)

// tinyOf returns which numbers of a channel are tiny.
func (w *workspace) tinyOf(c int) byte {
	if !w.anyTiny {
		return 0
	}
	return w.channels.tiny[c]
}

// tinyRun reports whether numbers of channel c are tiny, and returns the end of the channels
// from c on that are like it.
func (w *workspace) tinyRun(c, c1 int) (tiny bool, end int) {
	if !w.anyTiny {
		return false, c1
	}
	tiny = w.channels.tiny[c] != 0
	for end = c + 1; end < c1 && (w.channels.tiny[end] != 0) == tiny; end++ {
	}
	return tiny, end
}

// kindOfColumns returns the kinds that occur among n columns from column j on, given those of
// channels, and mixedKinds if there are columns of none as well.
func (w *workspace) kindOfColumns(kinds []byte, j, n int) (kind byte) {
	none := false
	for ; n > 0; j, n = j+lanes, n-lanes {
		k := kindOf(w.eightKinds(kinds, j, n), n)
		kind, none = kind|k, none || k == 0
	}
	if none && kind != 0 {
		kind |= mixedKinds
	}
	return kind
}

// kindOf is kindOfColumns for the first of n columns, up to 8. v has their kinds.
func kindOf(v uint64, n int) (kind byte) {
	all := v | v>>32
	all |= all >> 16
	if kind = byte(all | all>>8); kind != 0 && !noByteZero(v|math.MaxUint64<<(8*min(n, lanes))) {
		kind |= mixedKinds
	}
	return kind
}

// eightKinds returns the kinds of the 8 columns from column j on, the first in the lowest byte. There are n columns:
// the kinds of missing ones are 0.
func (w *workspace) eightKinds(kinds []byte, j, n int) (v uint64) {
	if n >= lanes && w.geo.width == w.geo.channels {
		return ofEight(kinds[j:])
	}
	for l := range min(n, lanes) {
		v |= uint64(kinds[w.channelOf(j+l)]) << (8 * l)
	}
	return v
}

// firstKind returns the first of the columns from j to end-1 whose channel is of a kind, and end
// if there is none.
func (w *workspace) firstKind(kinds []byte, j, end int) int {
	switch g := w.geo; {
	case g.width == g.channels:
		return j + firstSet(kinds[j:end], kinds[j:end])
	case g.fold > 1:
		for i, c := range w.plan.folded[j:end] {
			if kinds[c] != 0 {
				return j + i
			}
		}
		return end
	}
	for j < end && kinds[w.channelOf(j)] == 0 {
		j++
	}
	return j
}

// eachByte is 1 in each byte.
const eachByte = math.MaxUint64 / math.MaxUint8

func noByteZero(v uint64) bool { return (v-eachByte)&^v&(eachByte<<7) == 0 }

// firstSet returns the first index at which one of two lists of the same length is not 0, or their
// length.
func firstSet(a, b []byte) int {
	n := len(a)
	for len(a) >= lanes && len(b) >= lanes {
		if v := ofEight(a) | ofEight(b); v != 0 {
			return n - len(a) + bits.TrailingZeros64(v)/8
		}
		for a, b = a[lanes:], b[lanes:]; len(a) >= 4*lanes && len(b) >= 4*lanes; a, b = a[4*lanes:], b[4*lanes:] {
			ofA := ofEight(a) | ofEight(a[lanes:]) | ofEight(a[2*lanes:]) | ofEight(a[3*lanes:])
			ofB := ofEight(b) | ofEight(b[lanes:]) | ofEight(b[2*lanes:]) | ofEight(b[3*lanes:])
			if ofA|ofB != 0 {
				break
			}
		}
	}
	for i, v := range a {
		if v|b[i] != 0 {
			return n - len(a) + i
		}
	}
	return n
}

// ofEight returns 8 bytes as a number.
func ofEight(list []byte) uint64 { return binary.LittleEndian.Uint64(list) }

// columnsAlike returns the kind of the columns from column j on, and the end of those that
// are alike, in vectors. Those that are not all 0 are at most mostSpan.
func (w *workspace) columnsAlike(kinds []byte, j, end int) (kind byte, next int) {
	first := w.eightKinds(kinds, j, end-j)
	kind, next = kindOf(first, end-j), min(j+lanes, end)
	if first == 0 { // there may be many
		next += (w.firstKind(kinds, next, end) - next) / lanes * lanes
	}
	for ; next < end && (kind == 0 || next-j < mostSpan); next += lanes {
		v, whole := w.eightKinds(kinds, next, end-next), end-next >= lanes
		if (v != first || !whole) && kindOf(v, end-next) != kind {
			break
		}
	}
	return kind, min(next, end)
}

// ---- blocks

// Values and records that stand for absent operands of a kernel. With asItIs a kernel
// changes nothing, not even the sign of a zero. With asZero it makes a zero of x, which
// must be finite. With asSum kernelInputGrad adds x and res to z, and takes no product with a tiny g.
// With asProduct kernelInputGrad64 multiplies dy by res, if x is 0.
var (
	minusZeros   = repeated(negativeZero)
	plusOnes     = repeated(1)
	zeros        = repeated(0)
	once         = sameFactor(1)
	asItIs       = []float32{fieldN: negativeZero, fieldA: 1, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	asZero       = []float32{fieldN: negativeZero, fieldA: 0, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	asSum        = []float32{fieldN: negativeZero, fieldA: 1, fieldB: negativeZero, fieldK1: 1, fieldK2: 0}
	asProduct    = []record64{{a: sameLanes(1.0), n: sameLanes(negativeZero)}}
	columnAsItIs = inAllLanes(asItIs)
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
const shortCopy = 32

// unpack writes an output of a block, which has no gaps, to its place.
func (w *workspace) unpack(dst, src []float32, b *block) {
	if !b.apartOut() {
		copy(dst[:b.len()], src)
		return
	}
	if b.n < shortCopy {
		k := kernelArgs{x: src, y: dst, rows: b.rows, n: b.n, stride: b.n, strideY: b.stepOut(), factor: 1}
		k.stream = !b.held() && w.streams(&k, b.n)
		w.plan.path.run(kernelTimes, cols, Identity, &k)
		return
	}
	for r := range b.rows {
		copy(dst[r*b.stepOut():][:b.n], src[r*b.n:])
	}
}

// streams reports whether a kernel of columns writes rows of n values of an output with non-temporal stores. They write whole
// cache lines, or rows without gaps: the processor would write each part of a line to memory by itself.
func (w *workspace) streams(k *kernelArgs, n int) bool {
	address := uintptr(unsafe.Pointer(&k.y[0]))
	return w.apply.stream && address%vectorBytes == 0 && (k.rows == 1 || k.strideY%lanes == 0 && k.strideY == n ||
		k.strideY%lineLen == 0 && n%lineLen == 0 && address%(4*lineLen) == 0)
}

const vectorBytes = 4 * lanes

// products runs kernelScale on the rows of n columns, with their constants, or without any, and with
// their factors, or one for all. k changes.
func (w *workspace) products(act Activation, k *kernelArgs, coef []float32, factors []float64, b *block) {
	k.rows, k.n, k.coef = b.rows, b.n, columnAsItIs[:]
	k.factors = factors[:max(lanes, len(factors))]
	if coef != nil {
		k.coef, k.coefStep = coef, coefLen*lanes
	}
	if len(factors) > 1 {
		k.factorStep = lanes
	}
	w.plan.path.run(kernelScale, cols, act, k)
}

// rowProducts is products in rows, with the constants and factors that are set for the channels.
func (w *workspace) rowProducts(c *constants, act Activation, k *kernelArgs, b *block) {
	k.rows, k.n, k.coef, k.factors = b.rows, b.n, c.rowRecords[:], c.rowFactors[:]
	if b.channels > 1 {
		k.recordRow = rowBytes
	}
	w.plan.path.run(kernelScale, cols, act, k)
}

// affineProducts runs kernelScale with the constants of z of a block. Those of rows are set, those of
// columns are given.
func (w *workspace) affineProducts(c *constants, act Activation, k *kernelArgs, coef []float32, factors []float64, b *block) {
	if w.geo.layout == rows {
		w.rowProducts(c, act, k, b)
		return
	}
	w.products(act, k, coef, factors, b)
}

// ---- constants

// factorZ returns the factor of x-m in z of a channel: a, or the scale where that is wild. A wild invstd
// alone leaves it a, as channelRecords64 does.
func (w *workspace) factorZ(c int, a float32) float64 {
	switch w.channels.form[c] {
	case preciseForm:
		if scale := w.channels.scale[c]; isWild(scale) {
			return scale
		}
	case wideForm:
		f := w.channels.affine(c)
		return f.factor()
	}
	return float64(a)
}

// setFactors sets the factors of n columns from column j on. coef has their constants.
func (w *workspace) setFactors(list []float64, coef []float32, j, n int) {
	for i := 0; i < n; i += lanes {
		to, from := (*[lanes]float64)(list[i:]), (*[lanes]float32)(coef[i*coefLen+fieldA*lanes:])
		for l, a := range from {
			to[l] = float64(a)
		}
	}
	if !w.anyFormed(0, w.geo.channels) {
		return
	}
	if ch := &w.channels; w.geo.width == w.geo.channels { // as factorZ does, without a call
		list, forms := list[:n], ch.form[j:j+n]
		for i, scale := range ch.scale[j : j+n] {
			switch {
			case forms[i] == preciseForm && isWild(scale):
				list[i] = scale
			case forms[i] == wideForm:
				list[i] = w.factorZ(j+i, float32(list[i]))
			}
		}
		return
	}
	for i := range n {
		list[i] = w.factorZ(w.channelOf(j+i), float32(list[i]))
	}
}

// leastThrough returns the least float64 product p for which float32(p)+b is above 0, or NaN if
// there is none. The float32 nearest p must be above -b: p is above the middle between -b
// and the next float32, or is the middle, if that is rounded up, to the even number.
func leastThrough(b float32) float64 {
	last := math.Float32bits(-b)
	if last<<1-1 >= endBits {
		return leastThroughEnds(b)
	}
	up := 1 + 2*(int32(last)>>31) // the bits of negative numbers are in the opposite order
	middle := (float64(-b) + float64(math.Float32frombits(last+uint32(up)))) / 2
	return math.Float64frombits(math.Float64bits(middle) + uint64(int64(up)*int64(1&^last)))
}

// endBits are the bits of the exponent of the largest numbers, above the sign. Numbers that
// exceed it are those, infinities and NaN; 0 less 1 does, too.
const endBits = 0xfe<<24 - 1

// leastThroughEnds is leastThrough where -b is 0, or at an end of the range.
func leastThroughEnds(b float32) float64 {
	const end = 0x1p128 // in place of an infinity
	switch last, next := -float64(b), float64(math.Nextafter32(-b, float32(math.Inf(1)))); {
	case b != b || last > math.MaxFloat32:
		return math.NaN()
	case last == 0:
		return 0x1p-150 * (1 + 0x1p-52)
	default:
		middle := (max(last, -end) + min(next, end)) / 2
		if math.Float32bits(b)&1 != 0 {
			return middle
		}
		return math.Nextafter(middle, end)
	}
}

// setRecords sets the records of n columns from column j on. coef has the constants of the
// columns. Those of dx are known with the sums.
func (w *workspace) setRecords(records []record64, coef []float32, j, n int) {
	path, ch, plain := w.plan.path, &w.channels, w.geo.width == w.geo.channels && j%lanes == 0
	for i := 0; i < n; i += lanes {
		if v := path.whole(roundUp(n-i, lanes)); plain && v > 0 {
			f := &ch.fields
			k := channelArgs{n: v, step: 4 * f.group, neg: f.from(fieldN, j+i), a: f.from(fieldA, j+i), b: f.from(fieldB, j+i),
				scale: ch.scale[j+i:], otherA: ch.k1[j+i:], otherB: ch.k2[j+i:], records: records[i/lanes:]}
			k.run(channelRecords64)
			if i += v - k.n; i >= n {
				return
			}
		}
		w.setEight(&records[i/lanes], (*record)(coef[i*coefLen:]), j+i, min(lanes, n-i))
	}
}

// setEight is setRecords for the n columns of a vector from column j on.
func (w *workspace) setEight(r *record64, from *record, j, n int) {
	ch := &w.channels
	r.n = [lanes]float32(from[fieldN*lanes:])
	for l := range n {
		c := w.channelOf(j + l)
		r.s[l], r.l[l] = w.factorZ(c, from[fieldA*lanes+l]), leastThrough(from[fieldB*lanes+l])
		r.k1[l], r.k2[l], r.a[l] = ch.k1[c], ch.k2[c], ch.scale[c]
	}
}

// rowsTogether is how many channels in rows kernels take at a time, each with constants of its own.
const rowsTogether = mostSpan / lanes

// rowBytes is the distance of the constants of z of channels in rows.
const rowBytes = 4 * coefLen * lanes

// setRow sets the constants of z of the i-th channel in rows, in all lanes.
func (k *constants) setRow(i int, coef []float32, factor float64) {
	record := (*record)(k.rowRecords[i*rowBytes/4:])
	*(*[lanes]float32)(record[fieldN*lanes:]) = sameLanes(coef[fieldN])
	*(*[lanes]float32)(record[fieldB*lanes:]) = sameLanes(coef[fieldB])
	*(*[lanes]float64)(k.rowFactors[i*rowBytes/8:]) = sameLanes(factor)
}

// sameLanes returns v in all lanes.
func sameLanes[T float32 | float64](v T) [lanes]T { return [lanes]T{v, v, v, v, v, v, v, v} }

// setRows sets the constants of n channels in rows from channel c on, in all lanes: those of dx too
// if they are known.
func (w *workspace) setRows(k *constants, coef []float32, c, n int, dx bool) {
	ch, z := &w.channels, !w.backward || w.needsZ()
	gate := w.applyTiny.act.variant() == actInline
	for i := range n {
		coef := coef[i*coefLen:]
		if z {
			k.setRow(i, coef, w.factorZ(c+i, coef[fieldA]))
		}
		if !w.backward {
			continue
		}
		r := &k.records64[i]
		r.n = sameLanes(coef[fieldN])
		if gate {
			r.s, r.l = sameLanes(w.factorZ(c+i, coef[fieldA])), sameLanes(leastThrough(coef[fieldB]))
		}
		if !dx {
			continue
		}
		r.k1, r.k2, r.a = sameLanes(ch.k1[c+i]), sameLanes(ch.k2[c+i]), sameLanes(ch.scale[c+i])
	}
}

// ---- gradients and outputs

// preActivations sets z of a block, but for the residual, with the bits that a kernel computes, and
// returns it.
func (w *workspace) preActivations(buf *buffers, coef []float32, b *block) []float32 {
	z := buf.scaled[:]
	w.affineProducts(&buf.constants, Identity, &kernelArgs{x: b.x, y: z, stride: b.step(), strideY: b.n, fetch: b.fetch}, coef, b.factors, b)
	return z
}

// ofGradient returns the operands by which kernelInputGrad computes z of a block, and stores g in dres.
// dx is not used: no product for it takes an assist.
func (w *workspace) ofGradient(buf *buffers, coef []float32, b *block, dres []float32) kernelArgs {
	z := w.preActivations(buf, coef, b)
	if b.res != nil {
		return kernelArgs{x: w.packed(buf.res[:], b.res, b), res: z, y: z, dres: dres, coef: asSum}
	}
	return kernelArgs{x: minusZeros, res: z, y: z, dres: dres, coef: asZero}
}

// gated returns g of ReLU: dy where z is above 0, and 0 elsewhere.
func (w *workspace) gated(buf *buffers, coef []float32, b *block) []float32 {
	k := w.ofGradient(buf, coef, b, buf.g[:])
	k.dy = w.packed(buf.dy[:], b.dy, b)
	w.alike(kernelInputGrad, ReLU, &k, b.len())
	return buf.g[:]
}

// slopes returns act'(z) of a block.
func (w *workspace) slopes(act Activation, buf *buffers, coef []float32, b *block) []float32 {
	to := buf.g[:]
	if w.applyTiny.slopes != nil && b.dres != nil && !b.apart() && !b.held() { // they are to be stored
		to = b.dres
	}
	if w.geo.layout == rows && !b.apart() && b.n >= shortCall && w.onlyGradients(b.column, b.channels) { // no product for z is tiny
		k := kernelArgs{x: b.x, dy: plusOnes, res: b.res, y: buf.scaled[:], dres: to, coef: coef} // dx is not used
		w.elementwise(kernelInputGrad, act, &k, b)
		return to
	}
	k := w.ofGradient(buf, coef, b, to)
	k.dy = plusOnes
	if !w.slopesTiny(buf, to, &k, b.res != nil, b) {
		w.alike(kernelInputGrad, act, &k, b.len())
	}
	return to
}

// shortCall is the length of a row from which on a kernel that calls an activation for up to four vectors
// of a row is faster than another one for z and a call for all rows.
const shortCall = 64

// onlyGradients reports whether gradients alone are tiny in n channels from channel c on.
func (w *workspace) onlyGradients(c, n int) bool {
	for _, kind := range w.channels.tiny[c : c+n] {
		if kind != tinyGradients {
			return false
		}
	}
	return true
}

// gradientsOf returns g = dy*act'(z) of a block, without gaps, with the bits that a kernel
// computes.
func (w *workspace) gradientsOf(act Activation, buf *buffers, coef []float32, b *block) []float32 {
	switch act.variant() {
	case actNone:
		return w.packed(buf.dy[:], b.dy, b)
	case actInline:
		return w.gated(buf, coef, b)
	}
	slopes, g := w.packed(buf.g[:], b.slopes, b), buf.g[:]
	if slopes == nil {
		slopes = w.slopes(act, buf, coef, b)
	}
	n := b.len()
	k := kernelArgs{x: zeros, dy: w.packed(buf.dy[:], b.dy, b), res: slopes, y: g, records: asProduct, rows: 1, n: n}
	w.plan.path.run(kernelInputGrad64, cols, Identity, &k)
	return g
}

// operands64 sets the operands of a kernel in float64 for a block, and returns its activation.
func (w *workspace) operands64(k *kernelArgs, act Activation, buf *buffers, coef []float32, b *block) Activation {
	k.x, k.dy, k.res = b.x, b.dy, nil
	k.rows, k.stride, k.strideDY = b.rows, b.step(), b.step()
	switch v := act.variant(); {
	case v == actInline && b.res == nil:
		return act
	case v == actInline:
		k.dy, k.strideDY = w.gated(buf, coef, b), b.n
	case v == actCalled && b.slopes != nil:
		k.res, k.strideRes = b.slopes, b.step()
	case v == actCalled:
		k.res, k.strideRes = w.slopes(act, buf, coef, b), b.n
	}
	return Identity
}

// needsZ reports whether z is computed for the sums and dx of channels with tiny numbers.
func (w *workspace) needsZ() bool {
	v := w.applyTiny.act.variant()
	return v == actCalled || v == actInline && w.applyTiny.res != nil || w.applyTiny.dres != nil
}

// bytes64 is the size of a record64.
const bytes64 = int(unsafe.Sizeof(record64{}))

// writeTiny writes the outputs of a block. coef has the constants of its channels.
func (w *workspace) writeTiny(buf *buffers, coef []float32, b *block) {
	act := w.applyTiny.act
	if w.backward {
		w.writeTinyDX(act, buf, coef, b)
		return
	}
	if act.variant() != actCalled && b.res == nil {
		k := kernelArgs{x: b.x, y: b.y, rows: b.rows, stride: b.step(), strideY: b.stepOut(), fetch: b.fetch}
		k.stream = !b.held() && w.streams(&k, b.n)
		w.affineProducts(&buf.constants, act, &k, coef, b.factors, b)
		return
	}
	k := kernelArgs{x: minusZeros, y: b.y, coef: asItIs, stream: w.apply.stream}
	res, packs := b.res, b.apartOut()
	b.res = nil
	k.res = w.preActivations(buf, coef, b)
	if res != nil {
		k.x = w.packed(buf.res[:], res, b)
	}
	if packs || b.held() {
		k.stream = false
	}
	if packs {
		k.y = buf.y[:]
	}
	w.activate(act, buf, &k, res != nil, b)
	if packs {
		w.unpack(b.y, k.y, b)
	}
}

// writeTinyDX writes dx of a block, and g if it is wanted.
func (w *workspace) writeTinyDX(act Activation, buf *buffers, coef []float32, b *block) {
	g := buf.dres[:]
	packed := b.held() && !b.apartOut()
	if packed {
		g = b.dres
	}
	if b.dres != nil { // other outputs may overwrite what it is made of
		copy(g[:b.len()], w.gradientsOf(act, buf, coef, b))
	}
	k := kernelArgs{y: b.y, strideY: b.stepOut()}
	var act64 Activation
	if b.dres != nil && act.variant() == actInline { // g has no product
		k.x, k.dy, k.rows, k.stride, k.strideDY = b.x, g, b.rows, b.step(), b.n
	} else {
		act64 = w.operands64(&k, act, buf, coef, b)
	}
	if w.geo.layout == rows {
		k.n, k.records = b.n, buf.constants.records64[:]
		k.stream = w.streams(&k, b.n)
		if b.n%lanes > 0 && !b.apart() {
			k.x, k.dy, k.res = b.besides(k.x, buf.x[:]), b.besides(k.dy, buf.dy[:]), b.besides(k.res, buf.g[:])
		}
		if b.channels > 1 {
			k.recordRow = bytes64
		}
	} else {
		k.n, k.records, k.recordStep = b.n, b.records, bytes64
		k.stream = !b.held() && w.streams(&k, b.n)
	}
	w.plan.path.run(kernelInputGrad64, cols, act64, &k)
	if b.dres != nil && !packed {
		w.unpack(b.dres, g, b)
	}
}

// besides returns an input of a block that y does not overwrite: a copy, if it is y. The store of a tail
// would delay loads of the values behind it, of the next row.
func (b *block) besides(input, copied []float32) []float32 {
	if input == nil || &input[0] != &b.y[0] {
		return input
	}
	copied = copied[:b.len()]
	copy(copied, input)
	return copied
}

// ---- sums

// sumTinyRows is sumLanes of a backward pass for tiny numbers.
func (w *workspace) sumTinyRows(s *rowScratch, c, n int, win window) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	most := 1
	if w.source == nil && win.n == w.geo.inner { // rows of channels are adjacent
		most = rowsOfTiny(win.n)
	}
	for r := 0; r < n; r += most {
		channels, coef := min(most, n-r), w.coef[(c+r)*coefLen:]
		w.setRows(&buf.constants, coef, c+r, channels, false)
		w.sumTinyRow(buf, s.sums[r*sumLen:][:channels*sumLen], c+r, coef, win)
	}
}

// rowsOfTiny returns how many rows of n values kernels take together: of channels, or of images.
func rowsOfTiny(n int) int { return max(1, min(bufferLen/n, rowsTogether)) }

// sumTinyRow adds a window to the sums by lanes of channel c, or of several channels, as many as there
// are sums. Short rows of one channel go together.
func (w *workspace) sumTinyRow(buf *buffers, sums []float64, c int, coef []float32, win window) {
	g, st, channels := w.geo, &w.sums, len(sums)/sumLen
	images, short := 1, bufferLen // shorter rows go together
	if w.backward && w.needsZ() { // they are copied for that
		short = shortTiny
	}
	if channels == 1 && w.source == nil && win.n < short {
		images = bufferLen / win.n
	}
	image := g.channels * g.inner
	k := kernelArgs{fetch: 4 * images * image, records: buf.constants.records64[:], sums: sums} // the same row of the next call
	b := block{rows: channels, n: win.n, channels: channels, column: c, fetch: k.fetch}
	for o := win.o; o < win.o+win.images; o += images {
		if images > 1 {
			b.rows, b.stride = min(images, win.o+win.images-o), image
		}
		for i := 0; i < win.n; i += bufferLen {
			n := min(bufferLen, win.n-i)
			b.n = n
			if w.source == nil {
				b.place(st, (o*g.channels+c)*g.inner+win.i+i)
			} else {
				b = w.packRows(st, buf, c, o, 1, win.i+i, n)
				b.channels, b.column = 1, c
			}
			if !w.backward { // of large.go
				b.dy = b.x
			}
			var act Activation
			if b.apart() && w.backward && w.needsZ() {
				act = w.operandsApart(&k, buf, coef, &b)
			} else {
				act = w.operands64(&k, st.act, buf, coef, &b)
				w.storeTiny(&k, &b)
			}
			k.rowsAsColumns(b.rows, n, max(k.stride, n), channels == 1)
			w.plan.path.run(kernelGradSums64, cols, act, &k)
		}
	}
}

// shortTiny is the length of a row from which on rows of images take less time one by one than to be copied together.
const shortTiny = 256

// operandsApart is operands64 for rows of a channel that are apart, and are packed for it. It stores
// slopes.
func (w *workspace) operandsApart(k *kernelArgs, buf *buffers, coef []float32, b *block) Activation {
	side := block{rows: b.rows, n: b.n, channels: 1, column: b.column, fetch: b.fetch,
		x: w.packed(buf.x[:], b.x, b), dy: w.packed(buf.dy[:], b.dy, b), res: w.packed(buf.res[:], b.res, b)}
	act := w.operands64(k, w.sums.act, buf, coef, &side)
	w.storeTiny(k, b)
	return act
}

// place sets the tensors of a block to those of a stage from index i on.
func (b *block) place(s *stage, i int) {
	b.x, b.dy, b.res, b.dres = from(s.x, i), from(s.dy, i), from(s.res, i), from(s.dres, i)
	b.y, b.slopes = from(s.y, i), from(s.slopes, i)
}

// storeTiny stores the slopes of a block of tiny numbers, if they are wanted where g of usual ones is
// stored, and not there yet.
func (w *workspace) storeTiny(k *kernelArgs, b *block) {
	if b.dres != nil && w.applyTiny.slopes != nil && &k.res[0] != &b.dres[0] {
		w.unpack(b.dres, k.res, b)
	}
}

// tinyBlock returns rows of n values of the tensors of the sums from index i on.
func (w *workspace) tinyBlock(i, rows, n, stride int) block {
	b := block{rows: rows, n: n, stride: stride}
	b.place(&w.sums, i)
	return b
}

// writeTinyRows is writeAll for channels with tiny numbers, from channel c on. It takes some channels
// at a time, since their constants take longer to set than a short row to write.
func (w *workspace) writeTinyRows(k *kernelArgs, c int) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	s, n, channels, images := &w.applyTiny, k.n, k.rows, k.images
	row, image := n, k.rows*n+k.imageGap
	if k.coefImage == 0 { // each image is another channel
		channels, images, row = k.images, 1, image
	}
	most := rowsOfTiny(n)
	for r := 0; r < channels; r += most {
		together := min(most, channels-r)
		stride, step := row, 1
		if together == 1 { // short rows of images go together
			stride, step = image, max(1, bufferLen/n)
		}
		ahead := step * image // the next block
		switch {
		case n > bufferLen:
			ahead = bufferLen
		case images == 1:
			ahead = most * row
		}
		coef := k.coef[r*coefLen:]
		w.setRows(&buf.constants, coef, c+r, together, true)
		for o := 0; o < images; o += step {
			for i := 0; i < n; i += bufferLen {
				b := block{rows: together, n: min(bufferLen, n-i), stride: stride, channels: together, column: c + r, fetch: 4 * ahead}
				if together == 1 {
					b.rows = min(step, images-o)
				}
				b.place(s, k.at+r*row+o*image+i)
				w.writeTiny(buf, coef, &b)
			}
		}
	}
	k.images = 0
}
