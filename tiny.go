package batchnorm

import "math"

// Calls on tiny numbers: gradients, or deviations of x from the mean, that are subnormal
// or nearly so. Float32 products of them are subnormal: they lose digits, and each takes a
// microcode assist of about a hundred cycles on Intel's processors. Such a call goes block
// by block, in memory that stays in a cache. The products for z, g and dx are taken in
// float64 there and rounded once, which gives the bits of float32 products. Sums are of
// gradients and deviations that are multiplied by a power of two, and so is dx before it
// is rounded.
//
// Some values of the tensors decide, so that the decision is the same on every path and
// for any number of workers. In channels whose gradients are not tiny, or whose constants
// leave float32's range, sums of scaled gradients can't be relied on. These channels are
// plain: their sums are taken again without a scale, and their outputs are written as
// those of channels that need care.

const (
	tinyPower = 100
	tinyScale = 1 << tinyPower
	// tinyMost is the largest magnitude of a tiny number. Products of larger ones are
	// seldom subnormal.
	tinyMost = 0x1p-110
)

// tinySample is how many values of a tensor are looked at, at most.
const tinySample = 32

// sample sets whether the gradients are tiny, and whether the deviations of x are: in a
// forward pass x itself, as its mean is not known yet.
func (w *workspace) sample(do phases) {
	switch {
	case w.source != nil && w.source.inverted: // which computes x and the gradients first
	case w.backward:
		w.tinyG, w.tinyX = w.allTiny(w.apply.dy, nil), w.allTiny(w.apply.x, w.channels.mean)
	case do&applyThem != 0:
		w.tinyX = w.allTiny(w.apply.x, nil)
	}
}

// allTiny reports whether some values of a tensor, less their channel's mean if there are
// means, are tiny but not all 0. Usually the first one tells.
func (w *workspace) allTiny(values []float32, mean []float64) bool {
	g := w.geo
	n, step, most := g.outer*g.channels*g.inner, 0, 0.0
	for i := 0; i < n; i += step {
		at := i
		if w.source != nil {
			at = w.element(i)
		}
		v := float64(values[at])
		if mean != nil {
			v -= mean[i/g.inner%g.channels]
		}
		if v = math.Abs(v); !(v <= tinyMost) {
			return false
		}
		if most = max(most, v); step == 0 {
			step = sampleStep(n, g.channels)
		}
	}
	return most > 0
}

// sampleStep returns the distance of the values in a sample of n values. Where the channels
// are adjacent, no multiple of it returns to a channel before all others.
func sampleStep(n, channels int) int {
	step := max(1, n/tinySample)
	for gcd(step, channels) != 1 {
		step++
	}
	return step
}

// sumsInBlocks and outputsInBlocks report whether the sums are taken, and the outputs
// written, block by block.
func (w *workspace) sumsInBlocks() bool { return w.backward && (w.tinyG || w.tinyX) }

func (w *workspace) outputsInBlocks() bool {
	return w.tinyG || w.tinyX && !(w.backward && w.apply.act.kind == actIdentity) // or no product is small
}

// ---- blocks

// Values and records that stand for absent operands of a kernel. With asItIs a kernel
// changes nothing, not even the sign of a zero. With asZero it makes a zero of x, which
// must be finite.
var (
	minusZeros = repeated(negativeZero)
	plusOnes   = repeated(1)
	asItIs     = []float32{fieldN: negativeZero, fieldA: 1, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	asZero     = []float32{fieldN: negativeZero, fieldA: 0, fieldB: negativeZero, fieldK1: 0, fieldK2: 0}
	infinity   = float32(math.Inf(1))
)

func repeated(v float32) []float32 {
	s := make([]float32, bufferLen)
	fill(s, v)
	return s
}

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

// product runs kernelScale on rows of a block, with the constants of its channels.
func (w *workspace) product(dst, src, coef []float32, b *block) []float32 {
	k := kernelArgs{x: src, y: dst, coef: coef, coefStep: coefLen * lanes, rows: b.rows, n: b.n, stride: max(b.n, b.stride), strideY: b.n}
	if w.geo.layout == cols {
		w.plan.path.run(kernelScale, cols, Identity, &k)
		return dst
	}
	var all record // the constants of a channel in all lanes
	k.coef, k.coefStep, k.n = all[:], 0, b.n/b.channels
	for c := range b.channels {
		for l := range lanes {
			all[fieldN*lanes+l], all[fieldA*lanes+l], all[fieldB*lanes+l] = coef[fieldN], coef[fieldA], coef[fieldB]
		}
		k.x, k.y = src[c*k.n:], dst[c*k.n:]
		w.plan.path.run(kernelScale, cols, Identity, &k)
		coef = coef[coefLen:]
	}
	return dst
}

// A recordCopy is the constants of a row, or of 8 columns, and what they become.
type recordCopy struct {
	from, to []float32
	next     int // from a field to the next
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

// The lists of records that are made from constants.
const (
	madeZ = iota
	madeDX
	madeFactors
)

func (k *constants) list(made int) []float32 { return [...][]float32{k.z, k.dx, k.toZ}[made] }

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
	for j := 0; j < n*coefLen; j += next * coefLen {
		set(recordCopy{coef[j:], list[j:], next})
	}
	return list
}

// preActivations sets z of a block, with the bits that a kernel computes, and returns it.
func (w *workspace) preActivations(z, coef []float32, b *block) []float32 {
	w.product(z, b.x, coef, b)
	for r := 0; b.res != nil && r < b.rows; r++ {
		z := z[r*b.n:]
		w.alike(kernelNormalize, Identity, &kernelArgs{x: b.res[r*max(b.n, b.stride):], res: z, y: z, coef: asItIs}, b.n)
	}
	return z
}

// slopeTimes sets g to act'(z)*dy of a block, as a float32 product, and returns it. dy has
// the stride of the block.
func (w *workspace) slopeTimes(act Activation, buf *buffers, coef []float32, b *block, dy, g []float32) []float32 {
	z := buf.scaled[:]
	k := kernelArgs{dy: dy, y: z, dres: g} // dx is not used
	if w.tinyX {
		w.preActivations(z, coef, b)
		height, n := b.rows, b.n
		if b.stride <= n { // one row
			height, n = 1, b.rows*n
		}
		for r := range height {
			k := kernelArgs{x: minusZeros, dy: dy[r*b.stride:], res: z[r*n:], y: z[r*n:], dres: g[r*n:], coef: asZero}
			w.alike(kernelInputGrad, act, &k, n)
		}
		return g
	}
	k.x, k.res = b.x, b.res
	k.coef = w.recordsFrom(&buf.constants, madeDX, coef, b, func(r recordCopy) {
		r.copy(fieldN)
		r.copy(fieldA)
		r.copy(fieldB)
		r.set(fieldK1, infinity) // so that dx is no small product
		r.set(fieldK2, 0)
	})
	w.elementwise(kernelInputGrad, act, &k, b)
	return g
}

// tinyGradients returns g = dy*act'(z) of a block, with the bits that a kernel computes.
func (w *workspace) tinyGradients(act Activation, buf *buffers, coef []float32, b *block) []float32 {
	switch {
	case act.kind == actIdentity:
		return b.dy
	case !w.tinyG || act.variant() != actCalled:
		return w.slopeTimes(act, buf, coef, b, b.dy, buf.g[:])
	}
	slopes := w.slopeTimes(act, buf, coef, b, plusOnes, buf.g[:])
	// They take the place of the factors of columns.
	factors := buf.constants.again
	for i, n := 0, b.rows*b.n; i < n; i += mostSpan {
		m := min(mostSpan, n-i)
		for j := 0; j < m; j += lanes {
			record := (*record)(factors[j*coefLen:])
			for l := range lanes {
				record[fieldN*lanes+l], record[fieldB*lanes+l] = negativeZero, negativeZero
			}
			copyShort(record[fieldA*lanes:][:lanes], slopes[i+j:][:lanes])
		}
		k := kernelArgs{x: b.dy[i:], y: slopes[i:], coef: factors, coefStep: coefLen * lanes, rows: 1, n: m, stride: m, strideY: m}
		w.plan.path.run(kernelScale, cols, Identity, &k)
	}
	return slopes
}

// writeTiny writes the outputs of a block. coef has the constants of its channels.
func (w *workspace) writeTiny(buf *buffers, coef []float32, b *block) {
	act, n := w.apply.act, b.rows*b.n
	switch {
	case w.backward:
		if b.dres != nil { // other outputs may overwrite what it is made of
			copy(buf.dres[:n], w.tinyGradients(act, buf, coef, b))
		}
		w.writeTinyDX(act, buf, coef, b)
		if b.dres != nil {
			copy(b.dres, buf.dres[:n])
		}
	case act.kind == actIdentity && b.res == nil:
		w.product(b.y, b.x, coef, b)
	default:
		k := kernelArgs{x: b.res, res: w.product(buf.scaled[:], b.x, coef, b), y: b.y, coef: asItIs}
		if b.res == nil {
			k.x = minusZeros
		}
		w.alike(kernelNormalize, act, &k, n)
	}
}

// scaleChannels multiplies values of a block by the factors of its channels, in place.
func (w *workspace) scaleChannels(buf *buffers, coef []float32, b *block, values []float32) {
	if w.geo.layout == cols {
		factors := w.recordsFrom(&buf.constants, madeFactors, coef, b, func(r recordCopy) {
			r.set(fieldN, negativeZero)
			r.copy(fieldA)
			r.set(fieldB, negativeZero)
		})
		w.product(values, values, factors, b)
		return
	}
	for n := b.n / b.channels; len(values) > 0; values = values[n:] {
		w.times(values, values, float64(coef[fieldA]), 1, n, n)
		coef = coef[coefLen:]
	}
}

// writeTinyDX writes dx of a block.
func (w *workspace) writeTinyDX(act Activation, buf *buffers, coef []float32, b *block) {
	k, n := kernelArgs{x: b.x, y: b.y, coef: coef}, b.rows*b.n
	switch {
	case w.tinyG && w.frozen: // a*(g - (x-m)*0), with the bits that a kernel computes
		k.res = w.tinyGradients(act, buf, coef, b)
		k.coef = w.recordsFrom(&buf.constants, madeZ, coef, b, func(r recordCopy) {
			r.copy(fieldN)
			r.set(fieldA, negativeZero)
			r.set(fieldB, negativeZero)
		})
		w.elementwise(kernelNormalize, Identity, &k, b)
		w.scaleChannels(buf, coef, b, b.y)
	case w.tinyX:
		k.dy = b.dy
		if w.tinyG {
			k.dy = w.times(buf.dy[:], b.dy, tinyScale, 1, n, n)
		}
		if act.kind != actIdentity {
			k.dy = w.slopeTimes(act, buf, coef, b, k.dy, buf.g[:])
		}
		w.elementwise(kernelInputGrad, Identity, &k, b)
	default:
		k.dy, k.res = w.times(buf.dy[:], b.dy, tinyScale, 1, n, n), b.res
		w.elementwise(kernelInputGrad, act, &k, b)
	}
	if w.tinyG && !w.frozen {
		w.times(b.y, b.y, 1.0/tinyScale, 1, n, n)
	}
}

// tinyOperands returns the operands of a block whose sums are taken. They are adjacent:
// those of one row, or of a block that is adjacent, may be in place.
func (w *workspace) tinyOperands(buf *buffers, coef []float32, b *block) (x, dy, res []float32) {
	act, stride := w.sums.act, max(b.n, b.stride)
	inPlace := b.rows == 1 || stride == b.n
	held := func(to, from []float32) []float32 {
		if inPlace || from == nil {
			return from
		}
		for r := range b.rows {
			copy(to[r*b.n:][:b.n], from[r*stride:])
		}
		return to
	}
	switch {
	case w.tinyG:
		dy = w.times(buf.dy[:], b.dy, tinyScale, b.rows, b.n, stride)
	case w.way.stores:
		dy = w.slopeTimes(act, buf, coef, b, b.dy, buf.g[:])
		for r := range b.rows {
			copy(b.dres[r*stride:][:b.n], dy[r*b.n:])
		}
	default:
		dy = held(buf.dy[:], b.dy)
	}
	if !w.tinyX {
		return held(buf.x[:], b.x), dy, held(buf.res[:], b.res)
	}
	if act.kind != actIdentity && !w.way.stores {
		res = w.preActivations(buf.scaled[:], coef, b)
	}
	scale := w.recordsFrom(&buf.constants, madeZ, coef, b, func(r recordCopy) {
		r.copy(fieldN)
		r.set(fieldA, tinyScale)
		r.set(fieldB, negativeZero)
	})
	return w.product(buf.y[:], b.x, scale, b), dy, res
}

// sumTiny takes the sums of a block, given all arguments of the kernel but the operands.
// coef has the constants of the channels.
func (w *workspace) sumTiny(k *kernelArgs, buf *buffers, coef []float32, b *block) {
	act := w.sums.act
	k.x, k.dy, k.res = w.tinyOperands(buf, coef, b)
	if w.way.stores { // dy is g
		act, k.res = Identity, nil
	}
	k.coef, k.act = coef, w.act
	if w.tinyX { // the operands are deviations, and z
		k.coef = w.recordsFrom(&buf.constants, madeDX, coef, b, func(r recordCopy) {
			r.set(fieldN, negativeZero)
			r.set(fieldA, 0)
			r.set(fieldB, negativeZero)
		})
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
		if win.o+win.images-o >= groupSize {
			images = groupSize
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
				b.channels = channels
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

// sumTinyBlock adds the sums of a block of columns from column c on, from element i of the
// geometry's tensor on.
func (w *workspace) sumTinyBlock(buf *buffers, acc []float32, i, c, rows, n int) {
	b := w.tinyBlock(i, rows, n, w.geo.width)
	if w.source != nil {
		b = w.packCols(&w.sums, buf, i, rows, n)
	}
	k := kernelArgs{acc: acc, rows: rows, n: n, stride: n}
	w.sumTiny(&k, buf, w.coef[c*coefLen:], &b)
}

// tinyBlock returns rows of n values of the tensors of the sums from index i on.
func (w *workspace) tinyBlock(i, rows, n, stride int) block {
	s := &w.sums
	return block{rows: rows, n: n, stride: stride, x: from(s.x, i), dy: from(s.dy, i), res: from(s.res, i), dres: from(s.dres, i)}
}

// scaleBackSums takes the scale of deviations out of the sums of g*(x-m).
func (w *workspace) scaleBackSums(sums []float64) {
	if w.backward && w.tinyX {
		for i := range sums {
			sums[i] *= 1.0 / tinyScale
		}
	}
}

// writeTinyRows is writeAll for tiny numbers.
func (w *workspace) writeTinyRows(k *kernelArgs) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(rows)
	for ; k.images > 0; k.images-- {
		for r := 0; r < k.rows; {
			channels := max(1, min(k.rows-r, bufferLen/k.n, mostSpan))
			n := channels * k.n
			for i := 0; i < n; i += bufferLen {
				b := blockAt(&w.apply, k.at+i, min(bufferLen, n-i))
				b.channels = channels
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

// writeTinyPanel is writePanel for tiny numbers.
func (w *workspace) writeTinyPanel(i, c, rows, n int) {
	coef, width := w.coef[c*coefLen:], w.geo.width
	if !w.backward && w.apply.act.kind == actIdentity && w.apply.res == nil { // in place
		k := w.apply.args(i)
		k.coef, k.coefStep, k.rows, k.n, k.stride, k.strideY = coef, coefLen*lanes, rows, n, width, width
		w.plan.path.run(kernelScale, cols, Identity, &k)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	buf.constants.reset(cols)
	for p := 0; p < n; p += mostSpan {
		w.colBlocks(buf, i+p, c+p, rows, min(mostSpan, n-p), false, func(_ int, b block) {
			w.writeTiny(buf, coef[p*coefLen:], &b)
		})
	}
}

// ---- channels

// plainLeast is the least gradient that makes its channel plain, since scaled ones overflow.
const plainLeast = 0x1p26

// findPlain sets whether channels are plain, as they have such gradients.
func (w *workspace) findPlain(c0, c1 int) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		ch.flag[c] = true
	}
	w.measureDY(c0, c1)
	for c := c0; c < c1; c++ {
		ch.plain[c], ch.flag[c] = !(ch.extent[c] < plainLeast), false
	}
}

// measureDY sets the extents of the flagged channels to their largest magnitudes of dy.
func (w *workspace) measureDY(c0, c1 int) {
	s := w.again
	s.act = Identity
	w.measureStage(&s, c0, c1)
}

// setTinyGrads is setGrads for sums of scaled gradients. With check, it finds out which
// channels are plain. Otherwise plain has those of large gradients.
func (w *workspace) setTinyGrads(c0, c1 int, check bool, sums totals) {
	ch := &w.channels
	if sums.ofSegments {
		w.total(c0, c1)
	}
	if check {
		clear(ch.plain[c0:c1])
	}
	all := totals{ch.sumA, ch.sumB, false}
	for c, together := c0, fewChannels; c < c1; {
		next, first := w.setUsualGrads(c, c1, all, !check), c
		for c < next && ch.sumA[c]-ch.sumA[c] == 0 { // or NaN in x would hide an overflow
			c++
		}
		if c < next {
			c = first + (c-first)/lanes*lanes
		}
		w.scaleBack(first, c)
		if c == next && c > first {
			continue
		}
		end := min(c+together, c1)
		together = mostSpan
		w.setPlainGrads(c, end, check)
		c = end
	}
}

// setPlainGrads is setTinyGrads for channels some of which may be plain.
func (w *workspace) setPlainGrads(c0, c1 int, check bool) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		ch.plain[c] = ch.plain[c] || !w.staysScaled(c, check)
		ch.flag[c], ch.powerX[c], ch.powerG[c] = ch.plain[c] && check, 0, 0
		if ch.plain[c] && !check {
			ch.sumA[c] *= 1.0 / tinyScale
			ch.sumB[c] *= 1.0 / tinyScale
		}
	}
	w.sumAgain(c0, c1)
	w.gradientsAgain(c0, c1, check)
	if check {
		w.scaleAgain(c0, c1)
	}
	for c := c0; c < c1; {
		next := w.setUsualGrads(c, c1, totals{ch.sumA, ch.sumB, false}, true)
		if next == c {
			next = w.fewSlowly(c, c1)
			w.setGradsSlowly(c, next)
		}
		w.scaleBack(c, next)
		c = next
	}
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
	return ch.sumA[c]-ch.sumA[c] == 0 && !ch.wide[c] && !(check && w.suspicious(c, tinyScale)) && !w.strange(c)
}

// scaleBack scales the results of channels back, but those of plain channels, and writes
// them.
func (w *workspace) scaleBack(c0, c1 int) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		scale := 1.0 / tinyScale
		if ch.plain[c] {
			scale = 1
		}
		ch.dgamma[c] *= scale
		ch.dbeta[c] *= scale
		if w.betaGrad != nil {
			w.betaGrad[c] = float32(ch.dbeta[c])
		}
		if w.sumG != nil {
			w.sumG[c], w.sumGD[c] = float64(ch.sumA[c]*scale), float64(ch.sumB[c]*scale)
		}
	}
	if w.gammaGrad != nil {
		w.saveGammaGrad(c0, c1)
	}
}
