package batchnorm

import (
	"math"
	"slices"
	"sync/atomic"
)

// Sums that can't be relied on. Their channel is flagged, and its sums are taken again: in a
// forward pass in float64 (large.go). In a backward pass the largest magnitude of the gradients
// tells the power of two to scale by.

// For tests, rescued counts the channels whose sums were taken again, and looked the
// channels whose values were looked at.
var rescued, looked atomic.Int64

// isNumber reports whether a magnitude is finite: neither an infinity nor NaN.
func isNumber(magnitude float32) bool { return magnitude <= math.MaxFloat32 }

// exponentOf returns e with 2^e <= v < 2^(e+1), and 0 for zero, infinities and NaN.
func exponentOf(v float64) int {
	switch e := int(math.Float64bits(v) >> 52 & 0x7ff); {
	case e == 0x7ff || v == 0:
		return 0
	case e == 0:
		_, e := math.Frexp(v)
		return e - 1
	default:
		return e - 1023
	}
}

// powerOf returns 2^p, for p from -1022 to 1023.
func powerOf(p int) float64 { return math.Float64frombits(uint64(1023+p) << 52) }

// ldexp is math.Ldexp. It is a product where float64 holds 2^p.
func ldexp(v float64, p int) float64 {
	if p < -1022 || p > 1023 {
		return math.Ldexp(v, p)
	}
	return v * powerOf(p)
}

// firstRow sets the extents of the channels c0 to c1-1 to the magnitudes of their first values,
// and reports whether it did: it does if these are adjacent in the tensor, as the geometry says. Channels without
// any finite value need no further look.
func (w *workspace) firstRow(c0, c1 int) bool {
	g := w.geo
	if g.layout != cols || g.unit > 1 || g.height == 0 {
		return false
	}
	first, ok := w.rowInTensor(0, g.channels-1)
	if !ok {
		return false
	}
	for c := c0; c < c1; c += callChannels {
		w.largest(w.again.x[first+c:], 1, min(callChannels, c1-c), 0, w.channels.extent[c:])
	}
	return true
}

// largest sets acc to the largest magnitude of each of n columns over some rows. It sets
// up to 7 values behind them as well.
func (w *workspace) largest(x []float32, rows, n, stride int, acc []float32) {
	clear(acc[:roundUp(n, lanes)])
	w.larger(x, rows, n, stride, acc)
}

// larger is largest for more rows of the same columns.
func (w *workspace) larger(x []float32, rows, n, stride int, acc []float32) {
	k := &kernelArgs{x: x, rows: rows, n: n, stride: stride, acc: acc, fetch: 4 * (fetchColumns + (quadSize-1)*stride)}
	w.plan.path.run(kernelLargest, cols, Identity, k)
}

// measure sets the extents of the flagged channels of c0 to c1-1 to their largest
// magnitudes: of x, or of g.
func (w *workspace) measure(c0, c1 int, ofG bool) {
	s, ch := w.measured(ofG), &w.channels
	n := 0
	for c := c0; c < c1; c++ {
		if ch.flag[c] {
			ch.extent[c] = 0
			n++
		}
	}
	if n == 0 {
		return
	}
	looked.Add(int64(n))
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	g, k := w.geo, &buf.constants
	if g.layout == cols {
		if g.unit == 1 && g.height > 0 && w.measureFirst(s, buf, k, c0, c1) {
			return
		}
		for j, n, ok := w.nextSpan(0, c0, c1); ok; j, n, ok = w.nextSpan(j+n, c0, c1) {
			if s.computesG {
				w.setSpan(k, j, n)
			}
			w.measureSpan(s, buf, k, j, n)
		}
		return
	}
	for c := c0; c < c1; c++ {
		if ch.flag[c] {
			if s.computesG {
				k.reset(w.geo.layout)
				w.setZ(k, 0, c)
			}
			ch.extent[c] = w.measureRow(s, buf, k, c)
		}
	}
}

// measuredStage is a stage of which x or g is measured. g may have to be computed.
type measuredStage struct {
	*stage
	ofG, computesG bool
}

// measured returns the stage that takes sums again, for a look at x or at g.
func (w *workspace) measured(ofG bool) measuredStage {
	return measuredStage{&w.again, ofG, ofG && w.computesG(&w.again)}
}

// values returns the tensor that is measured, unless g is computed.
func (s *measuredStage) values() []float32 {
	if s.ofG {
		return s.dy
	}
	return s.x
}

// computesG reports whether gradients are computed before their sums are taken again.
func (w *workspace) computesG(s *stage) bool { return w.backward && s.act.kind != actIdentity }

// measureColumns is the number of columns into which measureRow folds the values of a row.
const measureColumns = 8 * lanes

// measureRow returns the largest magnitude of a channel. It ends at the first values of
// which one is not finite, and then returns an infinity or NaN. It begins with few values:
// it may have to copy them, and an infinity or NaN is often everywhere.
func (w *workspace) measureRow(s measuredStage, buf *buffers, k *constants, c int) (extent float32) {
	g, most, images := w.geo, measureColumns, 1
	if !s.computesG && w.source == nil && g.outer*g.inner > 0 { // the sample is quickest
		if v := math.Float32frombits(largestAt(s.values(), &g.sampled, c*g.inner)); !isNumber(v) {
			return v
		}
	}
	for o := 0; o < g.outer; o += images {
		if w.source == nil { // short rows go together
			images = min(max(1, most/g.inner), g.outer-o)
		}
		for i, n := 0, 0; i < g.inner; i += n {
			n = min(most, g.inner-i)
			most = bufferLen
			b := w.packRows(s.stage, buf, c, o, images, i, n)
			v := w.magnitudesOf(s, buf, k, &b)
			acc := buf.largest[:measureColumns]
			w.largest(v, len(v)/measureColumns, measureColumns, measureColumns, acc)
			if rest := len(v) % measureColumns; rest > 0 {
				w.larger(v[len(v)-rest:], 1, rest, 0, acc)
			}
			for _, v := range acc {
				if v > extent || v != v {
					extent = v
				}
				if !isNumber(v) {
					return extent
				}
			}
		}
	}
	return extent
}

// measureFirst sets the extents of the flagged channels of c0 to c1-1 to the magnitudes of their first values, and
// reports whether none is finite: more values need not be looked at then.
func (w *workspace) measureFirst(s measuredStage, buf *buffers, k *constants, c0, c1 int) bool {
	ch := &w.channels
	for j := c0 &^ (lanes - 1); j < c1; j += mostSpan {
		n := min(mostSpan, w.geo.channels-j)
		if s.computesG {
			w.setSpan(k, j, n)
		}
		clear(buf.largest[:roundUp(n, lanes)])
		w.measureBlock(s, buf, k, j, 1, n)
		for c := max(j, c0); c < min(j+n, c1); c++ {
			if !ch.flag[c] {
				continue
			}
			if ch.extent[c] = buf.largest[c-j]; isNumber(ch.extent[c]) {
				return false
			}
		}
	}
	return true
}

// measureSpan measures n columns from column j on.
func (w *workspace) measureSpan(s measuredStage, buf *buffers, k *constants, j, n int) {
	g, largest := w.geo, buf.largest[:n]
	clear(buf.largest[:roundUp(n, lanes)])
	most := bufferLen / n
	for r := 0; r < g.height && !(r > 0 && w.nothingToSave(largest, j)); r += most {
		w.measureBlock(s, buf, k, r*g.width+j, min(most, g.height-r), n)
	}
	if rest := min(n, g.rest-j); rest > 0 {
		w.measureBlock(s, buf, k, g.height*g.width+j, 1, rest)
	}
	extent := w.channels.extent
	for i, v := range largest {
		c := w.channelOf(j + i)
		if w.channels.flag[c] && (v > extent[c] || v != v) {
			extent[c] = v
		}
	}
}

// nothingToSave reports whether all flagged columns from column j on hold values that
// are not finite. More rows need not be looked at then.
func (w *workspace) nothingToSave(largest []float32, j int) bool {
	for i, v := range largest {
		if isNumber(v) && w.channels.flag[w.channelOf(j+i)] {
			return false
		}
	}
	return true
}

// measureBlock measures rows of n columns, from element i of the geometry's tensor on.
func (w *workspace) measureBlock(s measuredStage, buf *buffers, k *constants, i, rows, n int) {
	if w.source == nil && !s.computesG { // in place
		w.larger(s.values()[i:], rows, n, w.geo.width, buf.largest[:])
		return
	}
	b := w.packCols(s.stage, buf, i, rows, n)
	w.larger(w.magnitudesOf(s, buf, k, &b), rows, n, n, buf.largest[:])
}

// magnitudesOf returns the values of a block whose largest magnitude is taken.
func (w *workspace) magnitudesOf(s measuredStage, buf *buffers, k *constants, b *block) []float32 {
	if s.ofG {
		return w.gradients(s.act, buf, b, k)[:b.rows*b.n]
	}
	return b.x
}

// mostSpan is the largest number of columns that are handled together.
const mostSpan = 256

// flaggedLine reports whether the cache line from column j on has a column of a flagged
// channel of c0 to c1-1.
func (w *workspace) flaggedLine(j, c0, c1 int) bool {
	g := w.geo
	if g.width == g.channels {
		lo, hi := max(j, c0), min(j+lineLen, c1)
		return lo < hi && slices.Contains(w.channels.flag[lo:hi], true)
	}
	for k := j; k < min(j+lineLen, g.width); k++ {
		if c := w.channelOf(k); c >= c0 && c < c1 && w.channels.flag[c] {
			return true
		}
	}
	return false
}

// nextSpan returns the columns of the next cache lines from column j on. Each line has a
// column of a flagged channel of c0 to c1-1.
func (w *workspace) nextSpan(j, c0, c1 int) (first, n int, ok bool) {
	g := w.geo
	end := g.width
	if g.width == g.channels {
		j, end = max(j, c0/lineLen*lineLen), min(end, roundUp(c1, lineLen))
	}
	for j < end && !w.flaggedLine(j, c0, c1) {
		j += lineLen
	}
	for n < mostSpan && j+n < end && w.flaggedLine(j+n, c0, c1) {
		n += lineLen
	}
	return j, min(n, g.width-j), n > 0
}

// setSpan sets the constants of z of n columns from column j on, which is a multiple of 8.
func (w *workspace) setSpan(k *constants, j, n int) {
	k.reset(w.geo.layout)
	if !w.anyTiny && !w.anyFormed(0, w.geo.channels) {
		for i := 0; i < n; i += lanes {
			to, from := (*record)(k.z[i*coefLen:]), (*record)(w.coef[(j+i)*coefLen:])
			copy(to[:fieldK1*lanes], from[:])
			clear(to[fieldK1*lanes:])
		}
		return
	}
	for i := range n {
		w.setZ(k, i, w.channelOf(j+i))
	}
}

// sumAgain takes the sums of the flagged channels of c0 to c1-1 once more: moments in float64,
// and sums of gradients over values scaled by the powers of the channels.
func (w *workspace) sumAgain(c0, c1 int) {
	ch, again := &w.channels, 0
	if w.backward {
		w.gradientSumsAgain(c0, c1)
	} else {
		w.momentsIn64(c0, c1)
	}
	for c := c0; c < c1; c++ {
		if !ch.flag[c] {
			continue
		}
		ch.flag[c] = false
		again++
		if w.geo.single() {
			ch.sumA[c], ch.sumB[c] = ch.segmentA[c], ch.segmentB[c]
		} else {
			w.total(c, c+1)
		}
		if !w.backward {
			continue
		}
		x, gp := ch.powerX[c], ch.powerG[c] // which are taken back
		p, r := ldexp(ch.sumA[c], -gp), ldexp(ch.sumB[c], -gp-x)
		mean := ch.mean[c]
		subtracted := ldexp(float64(float32(ldexp(mean, x))), -x) // from x
		ch.sumA[c], ch.sumB[c] = p, r+float64((subtracted-float64(float32(mean)))*p)
	}
	rescued.Add(int64(again))
}

// gradientSumsAgain is sumAgain for a backward pass. It leaves the sums of scaled values as results
// of segments.
func (w *workspace) gradientSumsAgain(c0, c1 int) {
	ch, g, computesG := &w.channels, w.geo, w.computesG(&w.again)
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	k := &buf.constants
	if g.layout == cols {
		l := &buf.list
		for j := w.listFlagged(l, 0, c0, c1); l.n > 0; j = w.listFlagged(l, j, c0, c1) {
			k.reset(w.geo.layout)
			for i, j := range l.at[:l.n] {
				c := w.channelOf(j)
				if computesG {
					w.setZ(k, i, c)
				}
				w.setSumPowers(k, i, c)
			}
			for seg := range g.segments {
				w.sumListed(seg, buf, l)
			}
		}
		return
	}
	s := w.rowScratch.take()
	defer w.giveRowScratch(s)
	for c := c0; c < c1; c++ {
		if !ch.flag[c] {
			continue
		}
		k.reset(w.geo.layout)
		if computesG {
			w.setZ(k, 0, c)
		}
		w.setSumPowers(k, 0, c)
		s.next.images = 0
		for seg := range g.segments {
			w.sumGroup(&w.again, s, c, c+1, seg, &s.next, k)
		}
	}
}

// xPower returns the power of two that brings a channel to a deviation of about 1. It is
// a smaller one where the mean would become too large.
func xPower(mean, invstd float64) int {
	p := 0
	if invstd != 0 {
		p = exponentOf(invstd) + 1
	}
	if mean != 0 {
		p = min(p, mostPower-largeMeanPower-exponentOf(mean))
	}
	return p
}

// setSumPowers sets the powers of row or column j to those of channel c, and the mean that
// backward sums subtract from x.
func (w *workspace) setSumPowers(k *constants, j, c int) {
	ch := &w.channels
	k.setX(j, ch.powerX[c])
	k.setG(j, ch.powerG[c])
	k.set(k.dx, j, fieldN, -float32(ldexp(ch.mean[c], ch.powerX[c])))
}

// listFlagged lists columns of flagged channels of c0 to c1-1, as many as have room, from
// column j on. It returns the column after them.
func (w *workspace) listFlagged(l *columnList, j, c0, c1 int) int {
	g, flag := w.geo, w.channels.flag
	n, plain, end := 0, g.width == g.channels, g.width
	if plain {
		j, end = max(j, c0), c1
	}
	l.apart = true
	for ; j < end && n < mostSpan; j++ {
		c := j
		if !plain {
			if c = w.channelOf(j); c < c0 || c >= c1 {
				continue
			}
		}
		if !flag[c] {
			continue
		}
		if n > 0 && l.at[n-1] == j-1 {
			l.apart = false
		}
		l.at[n] = j
		n++
	}
	l.n = n
	return j
}

// sumScaledRows is sumLanes for scaled values of a channel, in a backward pass.
func (w *workspace) sumScaledRows(st *stage, s *rowScratch, c int, win window, k *constants) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	for o, end := win.o, win.o+win.images; o < end; {
		images, most := 1, pieceSingle
		if end-o >= quadSize {
			images, most = quadSize, pieceFour
			if win.n <= shortRow { // these join the sums of the images before
				images = min(end-o, bufferLen/win.n) / quadSize * quadSize
			}
		}
		for i := win.i; i < win.i+win.n; i += most {
			n := min(most, win.i+win.n-i)
			b := w.packRows(st, buf, c, o, images, i, n)
			x, g := w.scaledOperands(st, buf, &b, k)
			args := &s.args
			*args = kernelArgs{x: x, dy: g, coef: k.dx, sums: s.sums, acc: s.acc, rows: 1, n: n, stride: n}
			args.begin(0, images)
			w.plan.path.runAll(st.kernel, Identity, args)
		}
		if o += images; win.n > shortRow { // the last piece of a row may be a short row of its own
			w.plan.path.flush(s.sums[:sumLen], s.acc)
		}
	}
}

// ---- which channels

// large returns [largeSum] if strips take such sums again, which are settled then. Otherwise it
// returns NaN, which no number is compared with. A strip sees all values of its channels, and a
// sum of squares is NaN where not all of them, or their sum, are finite.
func (w *workspace) large() float64 {
	if !w.way.settles {
		return math.NaN()
	}
	return largeSum(w.values)
}

// largeSum is the least sum of squares, of n values, that may be too large: it is just above
// that of a variance of sureMax/2.
func largeSum(n float64) float64 { return n * (sureMax / 2 * (1 + 0x1p-52)) }

// momentsAgain takes the moments again of channels whose variance can't be relied on: the
// squares overflowed, or squares vanished that matter beside the variance and epsilon.
// Moments that are sums in float64 can. With looked, the extents hold magnitudes of a part of
// the values.
func (w *workspace) momentsAgain(c0, c1 int, looked bool) {
	ch := &w.channels
	n, epsilon := w.values, w.plan.epsilon
	// Sums that are surely safe need no division.
	least, most, settled := 2*sureMin*n, sureMax/2*n, w.large()
	if epsilon > 1 {
		least = math.Inf(1)
	}
	unsafe := func(c int) bool {
		m2 := ch.sumB[c]
		return !(m2 >= least && m2 <= most || m2 >= settled || sumsAreSafe(m2/n, epsilon) || w.isLarge(c) || w.hasSmall(c))
	}
	looks, again := 0, 0
	for c := c0; c < c1; c++ {
		ch.flag[c] = false
		switch m2 := ch.sumB[c]; {
		case m2 >= least && m2 <= most:
		case ch.sumA[c]-ch.sumA[c] != 0 || m2 != m2: // all values may be finite nevertheless
			if ch.flag[c] = !(looked && !isNumber(ch.extent[c]) || w.isLarge(c)); ch.flag[c] {
				looks++
			}
		case unsafe(c):
			again++
		}
	}
	if looks > 0 {
		w.measure(c0, c1, false)
	}
	for c := c0; c < c1 && looks+again > 0; c++ {
		switch {
		case ch.flag[c] && !isNumber(ch.extent[c]): // the mean stays as it is, infinite or NaN; there is no variance
			ch.flag[c], ch.sumB[c] = false, math.NaN()
			looks--
		case !ch.flag[c] && again > 0:
			m2 := ch.sumB[c]
			ch.flag[c] = m2 == m2 && ch.sumA[c]-ch.sumA[c] == 0 && unsafe(c)
		}
	}
	if looks+again > 0 {
		w.sumAgain(c0, c1)
	}
}

// gradientsAgain takes the sums of gradients again, if check is set, of channels whose sums
// can't be relied on. It sets the extents and powers of channels whose dx may need scaled
// values. With looked, sums of channels are final whose extents are not finite.
func (w *workspace) gradientsAgain(c0, c1 int, check, looked bool) {
	ch := &w.channels
	looks, again := 0, 0
	for c := c0; c < c1; c++ {
		ch.flag[c] = false
		if looked && !isNumber(ch.extent[c]) {
			continue
		}
		ch.extent[c] = 0
		if ch.flag[c] = w.doubted(c, check); ch.flag[c] {
			looks++
		}
	}
	if looks == 0 {
		return
	}
	w.measure(c0, c1, true)
	for c := c0; c < c1; c++ {
		if !ch.flag[c] {
			continue
		}
		e := ch.extent[c]
		ch.powerX[c], ch.powerG[c] = 0, 0
		if isNumber(e) {
			ch.powerX[c], ch.powerG[c] = xPower(ch.mean[c], ch.invstd[c]), mostPower
			if e > 0 {
				ch.powerG[c] = -exponentOf(float64(e))
			}
		}
		switch {
		case !check || !w.suspicious(c):
			ch.flag[c] = false
		case e == 0:
			ch.flag[c], ch.sumA[c], ch.sumB[c] = false, 0, 0
		case comfortable(e) && !ch.isWide(c) && !wild(ch.invstd[c], tameMin, tameMax) && ch.sumA[c]-ch.sumA[c] == 0 && ch.sumB[c]-ch.sumB[c] == 0:
			ch.flag[c] = false // the products cancel, and none has vanished
		default:
			again++
		}
	}
	if again == 0 {
		return
	}
	w.sumAgain(c0, c1)
	if w.tooFar(c0, c1) == 0 {
		return
	}
	w.sumAgain(c0, c1)
	for c := c0; c < c1; c++ { // dx has the power that it has in pieces
		if ch.powerX[c] == -largeMeanPower && isNumber(ch.extent[c]) {
			ch.powerX[c] = xPower(ch.mean[c], ch.invstd[c])
		}
	}
}

// doubted reports whether the gradients of a channel are looked at.
func (w *workspace) doubted(c int, check bool) bool {
	return (w.tinyOf(c) == 0 || w.channels.isWide(c)) && (check && w.suspicious(c) || !w.ordinary(c) && w.strange(c))
}

// findInfinite looks at the channels from c to end-1 whose sums are not finite, and reports whether there are any.
// The sums are final if the gradients have NaN or infinities, or x has and the sum for dbeta is finite: no powers
// make them finite. Then, and only then, the extent is not finite either. Without check all such sums are final.
func (w *workspace) findInfinite(c, end int, check bool, sums totals) bool {
	ch := &w.channels
	a, b, extent := sums.a[c:end], sums.b[c:end], ch.extent[c:end]
	ofG := !allFinite(a)
	if !ofG && allFinite(b) {
		return false
	}
	if !check {
		for i := range extent {
			extent[i] = float32(math.Abs(a[i]-a[i]) + math.Abs(b[i]-b[i])) // 0 or NaN
		}
		return true
	}
	n := len(a)
	plain := func(c int) bool { return !ch.isWide(c) && !w.in64(c) && ch.invstd[c] == ch.invstd[c] }
	if w.inStrips() && c%lanes == 0 && !w.anyTiny && !w.anyFormed(c, end) {
		looked.Add(int64(n))
		if !ofG { // all have finite gradients
			w.largestInStrips(w.again.x, c, b)
			return true
		}
		w.largestGradients(c, a)
	} else {
		clear(extent)
		for i, p := range a {
			ch.flag[c+i] = p-p != 0 && plain(c+i)
		}
		w.measure(c, end, true)
	}
	clear(ch.flag[c:end])
	if anyOverflowed(a, b) {
		for i, p := range a {
			ch.flag[c+i] = overflowed(p, b[i]) && plain(c+i)
		}
		w.measure(c, end, false)
		clear(ch.flag[c:end])
	}
	return true
}

// anyOverflowed reports whether some sums are as overflowed says.
func anyOverflowed(p, r []float64) bool {
	for ; len(p) >= lanes && noneFinite((*[lanes]float64)(p)); p, r = p[lanes:], r[lanes:] { // as they often are
	}
	some := uint64(0)
	for i, r := range r[:len(p)] {
		some |= notFinite(r) &^ notFinite(p[i])
	}
	return some>>63 != 0
}

// notFinite has the sign bit of a number that is not finite.
func notFinite(v float64) uint64 {
	const exponent, one = 0x7ff << 52, 1 << 52
	return math.Float64bits(v)&exponent + one
}

// noneFinite reports whether 8 numbers are NaN or infinities.
func noneFinite(v *[lanes]float64) bool {
	return notFinite(v[0])&notFinite(v[1])&notFinite(v[2])&notFinite(v[3])&notFinite(v[4])&notFinite(v[5])&notFinite(v[6])&notFinite(v[7])>>63 != 0
}

// largestInStrips sets the extents of the channels of some sums, from channel c on, to their largest magnitudes, or to
// those of the first values if these explain all sums that are not finite.
func (w *workspace) largestInStrips(values []float32, c int, sums []float64) {
	g, extent := w.geo, w.channels.extent[c:]
	most := maxCall / g.height &^ (lanes - 1)
	for at := 0; at < len(sums); at += most {
		n, i := min(most, len(sums)-at), c+at
		w.largest(values[w.element(i):], 1, n, 0, extent[at:])
		switch {
		case g.height == 1 || !unexplained(sums[at:at+n], extent[at:]):
		case w.source == nil:
			w.larger(values[i+g.width:], g.height-1, n, g.width, extent[at:])
		default: // rows may be apart
			for r := 1; r < g.height; r++ {
				w.larger(values[w.element(i+r*g.width):], 1, n, 0, extent[at:])
			}
		}
	}
}

// unexplained reports whether a sum is not finite where the extent is.
func unexplained(sums []float64, extent []float32) bool {
	for len(sums) >= lanes && noneBelow((*[lanes]float32)(extent), infinityBits) { // as they often are
		sums, extent = sums[lanes:], extent[lanes:]
	}
	for i, v := range extent[:len(sums)] {
		if isNumber(v) && sums[i]-sums[i] != 0 {
			return true
		}
	}
	return false
}

// noneBelow reports whether the bits of 8 magnitudes are at least those of a limit.
func noneBelow(v *[lanes]float32, limit uint32) bool {
	bits := math.Float32bits
	return min(bits(v[0]), bits(v[1]), bits(v[2]), bits(v[3]), bits(v[4]), bits(v[5]), bits(v[6]), bits(v[7])) >= limit
}

// largestGradients is largestInStrips for the magnitudes of g.
func (w *workspace) largestGradients(c int, sums []float64) {
	g, s, extent := w.geo, w.measured(true), w.channels.extent[c:]
	if !s.computesG {
		w.largestInStrips(s.dy, c, sums)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	clear(extent[:roundUp(len(sums), lanes)])
	for at := 0; at < len(sums); at += bufferLen {
		n := min(bufferLen, len(sums)-at)
		for r := 0; r < g.height && (r != 1 || unexplained(sums[at:at+n], extent[at:])); r++ {
			i := w.element(r*g.width + c + at)
			k := &kernelArgs{x: s.x[i:], dy: s.dy[i:], res: from(s.res, i), y: buf.y[:], dres: buf.g[:], // dx is not used
				act: w.act, coef: w.coef[(c+at)*coefLen:], rows: 1, n: n, stride: n}
			w.plan.path.run(kernelInputGrad, cols, s.act, k)
			w.larger(buf.g[:], 1, n, 0, extent[at:])
		}
	}
}

// allFinite reports whether there are no NaN and no infinities in a list.
func allFinite(list []float64) bool {
	for ; len(list) >= lanes; list = list[lanes:] {
		v := (*[lanes]float64)(list)
		if ((v[0]-v[0])+(v[1]-v[1]))+((v[2]-v[2])+(v[3]-v[3]))+(((v[4]-v[4])+(v[5]-v[5]))+((v[6]-v[6])+(v[7]-v[7]))) != 0 {
			return false
		}
	}
	for _, v := range list {
		if v-v != 0 {
			return false
		}
	}
	return true
}

// inStrips reports whether every column is a channel of few values, whose rows are in the caller's tensors, and there are vectors.
func (w *workspace) inStrips() bool {
	g := w.geo
	return g.layout == cols && g.width == g.channels && g.height <= stripRows && !w.inverted() && w.plan.path.whole(lanes) > 0
}

// tooFar flags channels whose sums overflowed when they were taken again: given statistics are far from
// x, which was scaled by what they say. It sets a small power for them, and returns their number.
func (w *workspace) tooFar(c0, c1 int) (n int) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		if e, r := ch.extent[c], ch.sumB[c]; e != 0 && isNumber(e) && r-r != 0 && ch.powerX[c] > -largeMeanPower && w.suspicious(c) {
			ch.flag[c], ch.powerX[c] = true, -largeMeanPower
			n++
		}
	}
	return n
}

// ordinary reports whether the constants of dx are surely in float32's comfortable range.
func (w *workspace) ordinary(c int) bool {
	ch := &w.channels
	tame := func(v float64) bool { return v >= 0x1p-30 && v <= 0x1p30 }
	return !ch.isWide(c) && tame(ch.invstd[c]) && math.Abs(ch.mean[c]) <= 0x1p30 &&
		tame(math.Abs(ch.sumA[c])) && tame(math.Abs(ch.sumB[c])) && w.values <= 0x1p31
}

// suspicious reports whether the sums of a backward pass may have overflowed, may lack
// products that vanished, or were taken with constants for scaled values.
func (w *workspace) suspicious(c int) bool {
	ch := &w.channels
	if ch.isWide(c) && ch.power[c] != 0 {
		return true
	}
	p, r, invstd := ch.sumA[c], ch.sumB[c], ch.invstd[c]
	if invstd != invstd || p == 0 && r == 0 && invstd <= trustedInvStd {
		return false
	}
	return !gradSumsAreSafe(p, r, w.values, invstd)
}

// trustedInvStd is the largest invstd with which sums of exactly 0 are believed to be sums of zeros. A product of a
// gradient and a deviation of 1/trustedInvStd vanishes only where the gradient is below 2^-140.
const trustedInvStd = 0x1p10

// strange reports whether dx of a channel may need scaled values: its constants are finite, and outside
// of float32's comfortable range. The magnitude of the gradients decides.
func (w *workspace) strange(c int) bool {
	f := w.channels.affine(c)
	var d gradient
	d.set(&f, w.channels.invstd[c], w.channels.sumA[c], w.channels.sumB[c], w.values)
	return d.wide && d.k2-d.k2 == 0
}

// comfortable reports whether gradients of this largest magnitude need no scaling.
func comfortable(magnitude float32) bool { return magnitude >= tameMin && magnitude <= tameMax }
