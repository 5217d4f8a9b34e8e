package batchnorm

import (
	"math/bits"
	"sort"
)

// Few tiny columns beside others (beside.go). Their values are copied side by side, some rows at a time, in memory that stays
// in a cache, and the kernels in float64 go over the copies. To go over their vectors would take as long for each of them as
// for 8.

// fewColumn is one of few tiny columns, with the constants that the kernels in float32 don't see.
type fewColumn struct {
	at        int
	minusM, a float32
	factor    float64 // of x-m in z
}

// findFew finds the columns from j to end-1 where something is tiny, if they are few, and reports whether they are. If there
// are others of a kind, or none at all, it leaves them.
func (w *workspace) findFew(kinds []byte, j, end int) bool {
	t := &w.tinyColumns
	n, vectors, before := 0, 0, len(t.few)
	for i := j; i < end; i += lanes {
		v := w.eightKinds(kinds, i, end-i)
		if v == 0 {
			continue
		}
		tiny := tinyBytes(v)
		n, vectors = n+bits.OnesCount64(tiny), vectors+1
		if v&(wideOutputs*eachByte) != 0 || 2*n > fewMost*(vectors+(end-i)/lanes) { // the count of wide ones is not used
			t.few = t.few[:before]
			return false
		}
		for ; tiny != 0; tiny &= tiny - 1 {
			t.few = append(t.few, fewColumn{at: i + bits.TrailingZeros64(tiny)/8})
		}
	}
	if n == 0 || 2*n > fewMost*vectors || n == 1 && w.geo.height > fewTall {
		t.few = t.few[:before]
		return false
	}
	t.all = false
	return true
}

// fewMost is how many tiny columns two vectors that have some may have for them to be few. To copy more takes longer than
// to go over the vectors.
const fewMost = 3

// mostOfFew is at least the number of tiny columns that are listed at a time, of so many.
func mostOfFew(n int) int { return fewMost*ceilDiv(n, lanes)/2 + lanes }

// fewTall is the number of rows beyond which one tiny column is none of few: the kernels prefetch its vectors.
const fewTall = 1 << 10

// fewWithin returns the few columns from j to end-1.
func (t *tinyColumns) fewWithin(j, end int) []fewColumn {
	from := func(j int) int { return sort.Search(len(t.few), func(i int) bool { return t.few[i].at >= j }) }
	return t.few[from(j):from(end)]
}

// setFew lists the few columns of a panel, of which there are less than mostSpan, and sets their constants, side by side: those
// of dx too if they are known.
func (w *workspace) setFew(buf *buffers, few []fewColumn, outputs bool) {
	k, ch, l := &buf.constants, &w.channels, &buf.list
	k.reset(cols)
	l.n, l.apart = len(few), true
	z, gate := !w.backward || w.needsZ(), w.backward && w.applyTiny.act.variant() == actInline
	if last := len(few) / lanes; len(few)%lanes > 0 {
		k.records64[last] = record64{}
		clear(k.z[last*lanes*coefLen:][:lanes*coefLen])
		clear(k.ofZ[last*lanes:][:lanes])
	}
	for i, f := range few {
		l.at[i] = f.at
		c, lane, r := w.channelOf(f.at), i%lanes, &k.records64[i/lanes]
		b, to := w.coef[recordOf(f.at)+fieldB*lanes], k.z[recordOf(i):]
		r.n[lane], to[fieldN*lanes], to[fieldA*lanes], to[fieldB*lanes] = f.minusM, f.minusM, f.a, b
		if z {
			k.ofZ[i] = f.factor
		}
		if gate {
			r.s[lane], r.l[lane] = f.factor, leastThrough(b)
		}
		if w.backward && outputs {
			r.k1[lane], r.k2[lane], r.a[lane] = ch.k1[c], ch.k2[c], ch.scale[c]
		}
	}
}

// setOwn gives a block of copied columns the constants that are set for them.
func (k *constants) setOwn(b *block) {
	b.factors, b.records = k.ofZ[:roundUp(b.n, lanes)], k.records64[:]
}

// sumFew adds the rows r0 to r1-1 of the listed columns to their sums. With holds y of the buffers gets the slopes, or dy.
func (w *workspace) sumFew(buf *buffers, r0, r1 int, holds bool) {
	n := buf.list.n
	if n == 0 {
		return
	}
	b := w.packListed(&w.sums, buf, &buf.list, r0, r1-r0, n)
	buf.constants.setOwn(&b)
	var k kernelArgs
	act := w.operands64(&k, w.sums.act, buf, buf.constants.z, &b)
	k.n, k.records, k.recordStep, k.sums = n, b.records, bytes64, buf.sumsFew[:]
	w.plan.path.gradSums64(act, &k)
	switch {
	case !holds:
	case w.applyTiny.slopes != nil:
		copy(buf.y[:], k.res[:b.len()])
	default:
		copy(buf.y[:], b.dy[:b.len()])
	}
}

// addFew adds the sums of a window, of the listed columns, to the totals, and removes their float32 sums. Both begin with
// column c.
func (b *buffers) addFew(sums *columnSums, c int) {
	for i, j := range b.list.at[:b.list.n] {
		from, acc := b.sumsFew[i/lanes*sumLen+i%lanes:], sums.acc[(j-c)/lanes*sumLen+(j-c)%lanes:]
		sums.a[j-c] += from[0]
		sums.b[j-c] += from[lanes]
		acc[0], acc[lanes] = 0, 0
	}
}

// writeFew sets y and dres of the buffers to the outputs of rows of the listed columns, side by side. Column c of the
// tensors of a stage is at index i.
func (w *workspace) writeFew(buf *buffers, st *stage, i, c, rows, stride int) {
	l, n := &buf.list, buf.list.padded()
	if n == 0 {
		return
	}
	b := block{rows: rows, n: n, heldStep: n, x: buf.x[:rows*n], y: buf.y[:rows*n]}
	l.pickPadded(b.x, st.x[i:], c, rows, stride)
	if st.dy != nil {
		b.dy = buf.dy[:rows*n]
		l.pickPadded(b.dy, st.dy[i:], c, rows, stride)
	}
	switch {
	case st.slopes != nil: // they are made of z, with res
		b.slopes = buf.res[:rows*n]
		l.pickPadded(b.slopes, st.slopes[i:], c, rows, stride)
	case st.res != nil:
		b.res = buf.res[:rows*n]
		l.pickPadded(b.res, st.res[i:], c, rows, stride)
	}
	if st.dres != nil {
		b.dres = buf.dres[:rows*n]
	}
	buf.constants.setOwn(&b)
	w.writeTiny(buf, buf.constants.z, &b)
}

// fewTogether is how many values of few columns are copied at a time.
const fewTogether = 1 << 10

// fewRows returns how many rows of n columns, of which some are few, are written or summed by one way before the other.
func fewRows(few, n int) int {
	if few == 0 {
		return rowsOf(besideValues, n)
	}
	return max(quadSize, min(besideValues/n, fewTogether/roundUp(few, lanes))/quadSize*quadSize)
}

// padded returns the number of listed columns in whole vectors. The others have values and constants of 0.
func (l *columnList) padded() int { return roundUp(l.n, lanes) }

// pickPadded copies the values of the listed columns of some rows side by side, in whole vectors. The first value is of
// column c.
func (l *columnList) pickPadded(to, from []float32, c, rows, stride int) {
	if l.n < l.padded() {
		clear(to)
	}
	sideBySide(to, from, l.at[:l.n], l.padded(), c, rows, stride)
}

// spread copies values of the listed columns, step to a row, to their places in rows. The first place is of column c.
func (l *columnList) spread(to, from []float32, step, c, rows, stride int) {
	at := l.at[:l.n]
	for row := 0; row < rows && len(at) > 0; row++ {
		base, from := row*stride-c, from[row*step:][:len(at)]
		for i, j := range at {
			to[base+j] = from[i]
		}
	}
}
