package batchnorm

import "math"

// Large values. Squares of them leave float32's range, so the moments of their channels are
// sums in float64: with K the shift of a window, P is the sum of x, and R that of x*(x-K). From
// these S = P - n*K, the sum of x-K, and Q = R - K*S, that of (x-K)^2, go the way of
// float32 sums. P and R are exact to the last digits of float64, so that the differences lose
// nothing that matters beside a float32: x differs from its mean by at least 2^-25 of it, or not at
// all. x-K is rounded to float32 only where it is at least half as large as x; so the error
// of R is at most 2^-23 of Q.
//
// A sample finds most of these channels before their first sums (tiny.go). Channels whose sums
// turn out to be out of range take theirs once more in this way (rescue.go).

// largeLeast is the least magnitude of a large number: the root of sureMax.
const largeLeast = 0x1p+50

// The sampled values of a channel are small if their distance is from smallLeast to smallMost: squares of such
// distances are subnormal. Those of smaller distances are 0, and take no assist. Only channels are looked at whose
// first value is at most smallFirst: larger ones are farther apart, or equal. Strips look at the same values.
const (
	smallLeast = 0x1p-81
	smallMost  = 0x1p-54
	smallFirst = 0x1p-30
)

// The bits of largeLeast, smallFirst, smallLeast and infinity.
const (
	largeBits      = (127 + 50) << 23
	smallFirstBits = (127 - 30) << 23
	smallLeastBits = (127 - 81) << 23
	infinityBits   = 0xff << 23
)

// The marks of channels whose moments are sums in float64 from the start.
const (
	largeValues = 1 << iota
	smallValues
)

// ---- which channels

// samplesMoments reports whether the phases take moments of channels that may be marked. Strips look for small
// values themselves.
func (w *workspace) samplesMoments(do phases) bool {
	return !w.backward && do&takeSums != 0 && (w.marksLarge() || !choose(w.geo, w.situation(do), w.plan.limits).settles)
}

// marksLarge reports whether channels of large values are marked. They are not where each is one column of few rows:
// its values stay in a cache, so that second sums cost little, and strips take them.
func (w *workspace) marksLarge() bool {
	return w.geo.layout == rows || w.geo.height > stripRows || !w.geo.single()
}

// lookMoments marks a channel by the bits of the first and of the largest of its sampled magnitudes, all of
// which are numbers: of large values if the first is large, and of small ones if their squares may be subnormal.
func (w *workspace) lookMoments(k *samples, c int, first, most uint32) {
	switch {
	case most >= infinityBits:
	case first >= math.Float32bits(k.least):
		w.mark(c, largeValues)
	case maySpread(most):
		if hasSmallSpread(k.values, k.at, c*k.next) {
			w.mark(c, smallValues)
		}
	}
}

// maySpread reports whether the values of a channel may be small, given the bits of the largest magnitude. Their
// distances are at most twice as large.
func maySpread(most uint32) bool { return most <= smallFirstBits && most >= smallLeastBits-1<<23 }

// mark marks a channel.
func (w *workspace) mark(c int, as byte) {
	if !w.anyLarge {
		clear(w.channels.large)
	}
	w.anyLarge, w.anySmall = true, w.anySmall || as == smallValues
	w.channels.large[c] = as
}

// spreadAt returns the largest distance of a sampled value from the first one. They lie behind those of
// channel 0.
func spreadAt(values []float32, at *[tinySample]int, behind int) float32 {
	first, spread := values[at[0]+behind], uint32(0)
	for _, i := range at[1:] {
		spread = max(spread, magnitudeBits(values[i+behind]-first))
	}
	return math.Float32frombits(spread)
}

// hasSmallSpread reports whether the largest distance of a sampled value from the first one is small. They lie behind
// those of channel 0.
func hasSmallSpread(values []float32, at *[tinySample]int, behind int) bool {
	spread := spreadAt(values, at, behind)
	return spread >= smallLeast && spread <= smallMost
}

// hasSmall reports whether a channel has small values: it is marked as such, or a strip has found it so.
func (w *workspace) hasSmall(c int) bool {
	if !w.way.settles {
		return w.isSmall(c)
	}
	at, next := w.sampledValues()
	return hasSmallSpread(w.apply.x, at, c*next)
}

// isLarge reports whether a channel is marked, as one of large values or of small ones.
func (w *workspace) isLarge(c int) bool { return w.anyLarge && w.channels.large[c] != 0 }

// isSmall reports whether a channel is marked as one of small values.
func (w *workspace) isSmall(c int) bool { return w.anySmall && w.channels.large[c] == smallValues }

// largeRun reports whether channel c is marked, and returns the end of the channels from c on
// that are like it.
func (w *workspace) largeRun(c, c1 int) (large bool, end int) {
	if !w.anyLarge {
		return false, c1
	}
	mark := w.channels.large[c]
	for end = c + 1; end < c1 && w.channels.large[end] == mark; end++ {
	}
	return mark != 0, end
}

// wholeLarge returns the end of the channels from c on that are marked and fill whole vectors.
func (w *workspace) wholeLarge(c, c1 int) (end int) {
	if !w.isLarge(c) {
		return c
	}
	for end = c; end < c1 && w.channels.large[end] != 0; end++ {
	}
	if end == c1 {
		return end
	}
	return c + (end-c)&^(lanes-1)
}

// ---- sums

// shifted returns the sums of x-K and of (x-K)^2 of n values, from the sum p of x and r of
// x*(x-K), where minus K is given.
func shifted(p, r, n, minusK float64) (s, q float64) {
	s = p + float64(n*minusK)
	return s, r + float64(minusK*s)
}

// overflowed reports whether a deviation x-K has left float32, given the sums p of x and r of
// x*(x-K). The sums are taken with K = 0 then. That is exact enough: the values are as far apart as
// the largest of them is from 0, so that the squares lose no more than n times the last digit
// of a float64.
func overflowed(p, r float64) bool { return p-p == 0 && r-r != 0 }

// sumLargeRows sets a and b to the sums of x-K and of (x-K)^2 in a window of len(a) channels from
// channel c on, in float64. minusK has the shifts. It sets those to 0 that it does without.
func (w *workspace) sumLargeRows(c int, win window, minusK []float32, a, b []float64) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	record := &buf.constants.records64[0]
	for i := range a {
		take := func() (p, r float64) {
			fill(record.n[:], minusK[i])
			clear(buf.sums[:])
			w.sumTinyRow(buf, buf.sums[:], c+i, nil, win)
			return reduce(buf.sums[:]), reduce(buf.sums[lanes:])
		}
		p, r := take()
		if overflowed(p, r) {
			minusK[i] = 0
			p, r = take()
		}
		a[i], b[i] = shifted(p, r, float64(win.len()), float64(minusK[i]))
	}
}

// sumLargeSpan takes the sums of the columns c to c+n-1 of a segment, of which some may be marked:
// in float32 those of vectors with other ones, and then in float64 those of the marked ones,
// while the segment is in a cache.
func (w *workspace) sumLargeSpan(seg, c, n int) {
	large, first, end := w.channels.large, c, c+n
	upTo := func(j int) {
		if j > first {
			k := w.columnSums(seg, first, j-first)
			k.hides, k.first = w.anySmall, first
			w.sumColumns(seg, &k, func(r0, r1, n int) { w.sumBlock(&k, first, r0, r1, n) })
		}
	}
	for j := c; j < end; {
		kind, next := w.columnsAlike(large, j, end)
		if kind != 0 && kind < mixedKinds { // all are marked
			upTo(j)
			first = next
		}
		j = next
	}
	upTo(end)
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	for j := c; j < end; {
		kind, next := w.columnsAlike(large, j, end)
		if kind != 0 {
			w.sumMarked(seg, buf, j, next-j, kind, func(c int) bool { return large[c] != 0 })
		}
		j = next
	}
}

// sumMarked takes the sums in float64 of those of n columns from column j on in a segment whose
// channels are marked, with the shifts of sumColumns. n is at most mostSpan. kind says which marks there are: all
// are marked unless it has mixedKinds.
func (w *workspace) sumMarked(seg int, buf *buffers, j, n int, kind byte, marked func(c int) bool) {
	g, ch, path, l := w.geo, &w.channels, w.plan.path, &buf.list
	l.n, l.apart = 0, true
	all := kind < mixedKinds
	for i := j; i < j+n && !all; i++ {
		if marked(w.channelOf(i)) {
			l.apart = l.apart && (l.n == 0 || l.at[l.n-1] != i-1)
			l.at[l.n] = i
			l.n++
		}
	}
	if all || !worthCopying(l.n, n) {
		for i := range n {
			l.at[i] = j + i
		}
		l.n, l.apart = n, false
	}
	padded := path.padded(l.n)
	a, b, shift, acc := l.sumA[:padded], l.sumB[:padded], l.shift[:roundUp(l.n, lanes)], l.acc[:2*roundUp(l.n, lanes)]
	clear(a)
	clear(b)
	clear(shift)
	clear(acc)
	b0, b1 := g.colSegment(seg)
	r0, r1 := g.colWindow(b0)
	w.probeColumns64(buf, l, kind, r0, min(r1, r0+probeRows))
	seen := 0
	for win := b0; win < b1; win++ {
		r0, r1 := g.colWindow(win)
		s, q := w.sumWindow64(buf, l, shift, r0, r1, l.n)
		path.foldReduced(a, b, s, q, shift, float64(seen), float64(r1-r0))
		seen += r1 - r0
	}
	rest := 0
	for b1 == g.windows && rest < l.n && l.at[rest] < g.rest {
		rest++
	}
	if rest > 0 {
		s, q := w.sumWindow64(buf, l, shift, g.height, g.height+1, rest)
		path.foldReduced(a[:rest], b[:rest], s, q, shift, float64(seen), 1)
	}
	if all {
		copy(ch.segmentA[seg*g.width+j:], a[:n])
		copy(ch.segmentB[seg*g.width+j:], b[:n])
		return
	}
	for i, j := range l.at[:l.n] { // those beside them keep theirs
		if marked(w.channelOf(j)) {
			ch.segmentA[seg*g.width+j], ch.segmentB[seg*g.width+j] = a[i], b[i]
		}
	}
}

// worthCopying reports whether so few of n columns are marked that to copy their values takes less time
// than the sums of all. A copied row takes as long as the sums of some columns, and a copied value as
// that of some more.
func worthCopying(marked, n int) bool { return n >= 32+5*marked }

// block64 returns rows of the first n listed columns, from row r of the geometry's tensor on, and the
// distance from one to the next. They are few enough for the buffers.
func (w *workspace) block64(buf *buffers, l *columnList, r, rows, n int) (x []float32, stride int) {
	if l.adjacent() && w.source == nil {
		return w.sums.x[r*w.geo.width+l.at[0]:], w.geo.width
	}
	b := w.packListed(&w.sums, buf, l, r, rows, n)
	return b.x, b.step()
}

// probeColumns64 sets the first shifts of the listed columns from their float32 sums over the rows r0
// to r1-1, or from sums in float64 where those are not finite, or would be those of small values. kind says which marks
// there are, if it says any.
func (w *workspace) probeColumns64(buf *buffers, l *columnList, kind byte, r0, r1 int) {
	padded, count := roundUp(l.n, lanes), float64(r1-r0)
	marks := kind &^ mixedKinds // shifts of others are not used
	small := marks == smallValues
	if !small {
		most := rowsOf(bufferLen, l.n)
		for r := r0; r < r1; r += most {
			k := kernelArgs{coef: l.shift[:], acc: l.acc[:], rows: min(most, r1-r), n: l.n}
			k.x, k.stride = w.block64(buf, l, r, k.rows, l.n)
			w.plan.path.run(kernelMoments, cols, Identity, &k)
		}
		w.plan.path.probeColumns(l.acc[:2*padded], l.shift[:padded], count)
		if marks == largeValues && firstSumsFinite(l.acc[:2*padded]) {
			return
		}
	}
	in64 := func(i int) bool {
		v := l.acc[i/lanes*sumLen+i%lanes]
		return small || v-v != 0 || w.hasSmall(w.channelOf(l.at[i]))
	}
	for i := 0; i < l.n; i++ {
		if !in64(i) {
			continue
		}
		s, _ := w.sumWindow64(buf, l, zeros, r0, r1, l.n)
		for ; i < l.n; i++ {
			if in64(i) {
				l.shift[i] = shiftFor(s[i] / count)
			}
		}
	}
}

// firstSumsFinite reports whether the first of each two vectors of sums has no NaN and no infinities.
func firstSumsFinite(acc []float32) bool {
	var sum float32
	for ; len(acc) >= sumLen; acc = acc[sumLen:] {
		v := (*[lanes]float32)(acc)
		sum += ((v[0] - v[0]) + (v[1] - v[1])) + ((v[2] - v[2]) + (v[3] - v[3])) + (((v[4] - v[4]) + (v[5] - v[5])) + ((v[6] - v[6]) + (v[7] - v[7])))
	}
	return sum == 0
}

// windowSums are sums of columns in float64.
type windowSums struct{ s, q [mostSpan]float64 }

// sumWindow64 returns the sums of x-K and of (x-K)^2 in the rows r0 to r1-1 of the first n listed
// columns, in float64. minusK has the shifts. It sets those to 0 that it does without.
func (w *workspace) sumWindow64(buf *buffers, l *columnList, minusK []float32, r0, r1, n int) (s, q []float64) {
	padded := roundUp(n, lanes)
	k := kernelArgs{n: n, records: buf.constants.records64[:], recordStep: bytes64, sums: buf.sums64[:2*padded]}
	clear(k.sums)
	for i := 0; i < n; i += lanes {
		k.records[i/lanes].n = [lanes]float32(minusK[i:])
	}
	most := rowsOf(bufferLen, n)
	for r := r0; r < r1; r += most {
		k.rows = min(most, r1-r)
		k.x, k.stride = w.block64(buf, l, r, k.rows, n)
		k.dy, k.strideDY, k.fetch = k.x, k.stride, 4*most*k.stride
		w.plan.path.gradSums64(Identity, &k)
	}
	s, q = buf.inWindow.s[:padded], buf.inWindow.q[:padded]
	count, infinite := float64(r1-r0), false
	for i := 0; i < n; i += lanes {
		from, k := (*[sumLen]float64)(k.sums[2*i:]), (*[lanes]float32)(minusK[i:])
		toS, toQ := (*[lanes]float64)(s[i:]), (*[lanes]float64)(q[i:])
		for l := range lanes {
			infinite = infinite || from[lanes+l]-from[lanes+l] != 0
			toS[l], toQ[l] = shifted(from[l], from[lanes+l], count, float64(k[l]))
		}
	}
	again := false
	for i := 0; infinite && i < n; i++ {
		at := i/lanes*sumLen + i%lanes
		if minusK[i] != 0 && overflowed(k.sums[at], k.sums[at+lanes]) {
			minusK[i], again = 0, true
		}
	}
	if again {
		return w.sumWindow64(buf, l, minusK, r0, r1, n)
	}
	return s, q
}

// ---- once more

// momentsIn64 takes the moments of the flagged channels of c0 to c1-1 once more, in float64. They
// are left as results of segments.
func (w *workspace) momentsIn64(c0, c1 int) {
	g, ch := w.geo, &w.channels
	if g.layout == rows {
		s := w.rowScratch.take()
		s.next.images = 0
		for c := c0; c < c1; c++ {
			for seg := 0; ch.flag[c] && seg < g.segments; seg++ {
				at := seg*g.channels + c
				w.sumMoments(s, true, c, g.segment(seg), &s.next, ch.segmentA[at:at+1], ch.segmentB[at:at+1])
			}
		}
		w.giveRowScratch(s)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	for j, n, ok := w.nextSpan(0, c0, c1); ok; j, n, ok = w.nextSpan(j+n, c0, c1) {
		for seg := range g.segments {
			w.sumMarked(seg, buf, j, n, mixedKinds, func(c int) bool { return c >= c0 && c < c1 && ch.flag[c] })
		}
	}
}
