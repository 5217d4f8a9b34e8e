package batchnorm

import (
	"bytes"
	"math"
	"math/bits"
	"slices"
)

// Columns of tiny numbers beside others (cols). The kernels in float32 go over all columns,
// in the order of memory: rows in pieces, without some columns, take longer. Where something is tiny, -m
// is NaN for them, and their factors are 0: then products are NaN, which takes no assist, and nobody uses them. The
// kernels in float64 go over the vectors that have such columns, with constants of their own.
// Each column takes its results from one of the two, so that its bits don't depend on its
// neighbours. Where few columns of a vector are tiny, their values are copied side by side, and the
// kernels in float64 go over the copies.

// tinyColumns says which columns have tiny numbers, and has the constants of columns. It is set
// before the tasks of a phase.
type tinyColumns struct {
	found   []byte // the kinds of channels for which columns were found in this call
	spans   []tinySpan
	few     []fewColumn // in order; they are in no span
	wide    bool        // there are wide channels
	all     bool        // all columns are in spans, and the kernels in float64 alone go over them
	factors []float64   // of x-m in z
	records []record64  // one for 8 columns
	masks   []float32   // of columns: all ones where nothing is tiny
	tiny    []byte      // a bit for each column, 8 in a byte: set where something is tiny
	coef    []float32   // the records of columns in spans for the kernels in float64
	own     []float32   // its memory, unless it is the workspace's
}

// tinySpan is some adjacent columns, in whole vectors, of which each vector has a tiny one, or in a
// forward pass each cache line.
type tinySpan struct {
	first, end int
	mixed      bool // other columns lie between
}

// setTinyColumns finds the columns whose channels are of a kind, and sets their constants for the sums,
// or for the outputs: those of dx are known with the sums.
func (w *workspace) setTinyColumns(kinds []byte, outputs bool) {
	t, width := &w.tinyColumns, w.geo.width
	padded := roundUp(width, lanes)
	if len(t.masks) < padded { // with room for any kinds, so that later calls allocate nothing
		t.masks, t.factors, t.records = make([]float32, padded), make([]float64, padded), make([]record64, padded/lanes)
		t.own, t.tiny = make([]float32, padded*coefLen), make([]byte, padded/lanes)
		t.spans, t.few, t.found = make([]tinySpan, 0, padded/lanes), make([]fewColumn, 0, mostOfFew(padded)), make([]byte, 0, padded)
	}
	if kinds = kinds[:w.geo.channels]; !bytes.Equal(t.found, kinds) {
		t.found = append(t.found[:0], kinds...)
		w.findBeside(kinds)
	}
	if len(t.spans)+len(t.few) == 0 {
		return
	}
	if t.coef = t.own; t.all {
		t.coef = w.coef
	} else if len(t.spans) > 0 || w.apply.stream {
		fill(t.masks[:padded], math.Float32frombits(math.MaxUint32))
	}
	for _, s := range t.spans {
		if !w.backward || w.needsZ() {
			w.setFactors(t.factors[s.first:], w.coef[s.first*coefLen:], s.first, s.end-s.first)
		}
		records := t.records[s.first/lanes:]
		switch coef := w.coef[s.first*coefLen:]; {
		case !w.backward:
		case outputs || w.applyTiny.act.variant() == actInline:
			w.setRecords(records, coef, s.first, s.end-s.first)
		default:
			for i := range ceilDiv(s.end-s.first, lanes) {
				records[i].n = [lanes]float32(coef[i*lanes*coefLen+fieldN*lanes:])
			}
		}
		if !t.all {
			copyShort(t.own[s.first*coefLen:roundUp(s.end, lanes)*coefLen], w.coef[s.first*coefLen:])
			w.setMasks(kinds, s)
		}
	}
	for i, f := range t.few {
		r, lane := (*record)(w.coef[f.at/lanes*lanes*coefLen:]), f.at%lanes
		f.minusM, f.a = r[fieldN*lanes+lane], r[fieldA*lanes+lane]
		f.factor = w.factorZ(w.channelOf(f.at), f.a)
		t.few[i], t.masks[f.at] = f, 0
		hide(r, lane)
	}
}

// hide lets the kernels in float32 compute NaN for a column, in no more time than usual: its factors are 0, since a product of
// NaN and a subnormal factor takes longer on AMD's processors. Those of dx are set again before they are needed again.
func hide(r *record, lane int) {
	r[fieldN*lanes+lane], r[fieldA*lanes+lane], r[fieldK1*lanes+lane], r[fieldK2*lanes+lane] = nan, 0, 0, 0
}

// recordOf returns where the first constant of a column is in the records of columns.
func recordOf(j int) int { return j/lanes*lanes*coefLen + j%lanes }

// findBeside finds the columns whose channels are of a kind: spans, and few ones.
func (w *workspace) findBeside(kinds []byte) {
	t, width := &w.tinyColumns, w.geo.width
	t.spans, t.few, t.all, t.wide = t.spans[:0], t.few[:0], true, false
	usual := false                                     // there is a span, and all columns behind it are usual
	for group := 0; group < width; group += mostSpan { // no span reaches over a group
		groupEnd := min(group+mostSpan, width)
		if w.firstKind(kinds, group, groupEnd) == groupEnd || w.findFew(kinds, group, groupEnd) {
			t.all = false
			continue
		}
		for j, end := group, 0; j < groupEnd; j = end {
			var kind byte
			kind, end = w.columnsAlike(kinds, j, groupEnd)
			t.wide = t.wide || kind&wideOutputs != 0
			s := tinySpan{j, end, kind&(mixedKinds|wideOutputs) != 0}
			some := kind&^(mixedKinds|wideOutputs) != 0
			switch last := len(t.spans) - 1; {
			case some && usual && w.together(t.spans[last], s):
				before := &t.spans[last]
				before.mixed = before.mixed || s.mixed || before.end < j
				before.end = end
			case some:
				t.spans = append(t.spans, s)
			}
			usual = some || usual && kind == 0
			t.all = t.all && some && !(s.mixed && w.backward) // forward, both ways have the same bits
		}
	}
	if n := t.columns(); !w.backward && n > 0 && !t.all && !t.wide && n*besideShare >= width {
		t.spans, t.few, t.all = append(t.spans[:0], tinySpan{0, width, true}), t.few[:0], true
	}
}

// tinyBytes returns the highest bit of each byte of the kinds of 8 columns for those where something is tiny. None is wide.
func tinyBytes(v uint64) uint64 { return (v + math.MaxInt8*eachByte) & (eachByte << 7) }

// besideShare is the share of the columns, as one of so many, from which on the kernels in float64 go over all columns in a
// forward pass: that takes less time than both ways, and has the same bits.
const besideShare = 3

// columns returns the number of columns over which the kernels in float64 go, where few ones count as many as take as long.
func (t *tinyColumns) columns() (n int) {
	n = fewCost * len(t.few)
	for _, s := range t.spans {
		n += s.len()
	}
	return n
}

// fewCost is the number of columns that take as long as one whose values are copied.
const fewCost = 3

// together reports whether two spans, with the columns between them, are one: the columns take less time than calls
// for another span, or the spans have no others between them.
func (w *workspace) together(a, b tinySpan) bool {
	const rows = 64 // of 8 columns, which take as long as the calls
	return (b.first-a.end)*w.geo.height <= rows*lanes && b.end-a.first <= mostSpan
}

// unsetTinyColumns takes back the mean and the factor of z that are hidden from the kernels in float32.
func (w *workspace) unsetTinyColumns() {
	t := &w.tinyColumns
	for _, f := range t.few {
		r := w.coef[recordOf(f.at):]
		r[fieldN*lanes], r[fieldA*lanes] = f.minusM, f.a
	}
	for _, s := range t.spans {
		for i := s.first * coefLen; !t.all && i < s.end*coefLen; i += lanes * coefLen {
			*(*[lanes]float32)(w.coef[i+fieldN*lanes:]) = [lanes]float32(t.own[i+fieldN*lanes:])
			*(*[lanes]float32)(w.coef[i+fieldA*lanes:]) = [lanes]float32(t.own[i+fieldA*lanes:])
		}
	}
}

// setMasks sets the masks of columns, and their -m for the kernels in float32. Wide ones keep theirs,
// which their own way needs.
func (w *workspace) setMasks(kinds []byte, s tinySpan) {
	t := &w.tinyColumns
	for j := s.first; j < s.end; j += lanes {
		tiny, r := byte(0), (*record)(w.coef[j*coefLen:])
		for v := w.eightKinds(kinds, j, s.end-j); v != 0; {
			l := bits.TrailingZeros64(v) / 8
			kind := byte(v >> (8 * l))
			v &^= math.MaxUint8 << (8 * l)
			if kind&^wideOutputs == 0 {
				continue
			}
			t.masks[j+l], tiny = 0, tiny|1<<l
			if kind&wideOutputs == 0 {
				hide(r, l)
			}
		}
		t.tiny[j/lanes] = tiny
	}
}

// within returns the spans that have columns from j to end-1, and the number of these columns.
func (t *tinyColumns) within(j, end int) (spans []tinySpan, columns int) {
	first := 0
	for first < len(t.spans) && t.spans[first].end <= j {
		first++
	}
	next := first
	for ; next < len(t.spans) && t.spans[next].first < end; next++ {
		s := t.spans[next].clip(j, end)
		columns += s.end - s.first
	}
	return t.spans[first:next], columns
}

// clip returns the columns of a span from j to end-1.
func (s tinySpan) clip(j, end int) tinySpan {
	return tinySpan{max(s.first, j), min(s.end, end), s.mixed}
}

func (s tinySpan) len() int { return s.end - s.first }

// noneMixed reports whether all columns of spans are tiny.
func noneMixed(spans []tinySpan) bool {
	return !slices.ContainsFunc(spans, func(s tinySpan) bool { return s.mixed })
}

// set gives a block the constants of its columns, which begin with column c.
func (t *tinyColumns) set(b *block, c int) {
	b.factors, b.records = t.factors[c:], t.records[c/lanes:]
}

// putBack writes an output of the columns of a span where something is tiny. It is in memory, in rows that are step
// values apart. Others keep theirs, which are in a cache.
func (w *workspace) putBack(out, from []float32, s tinySpan, step int, b *block) {
	k := kernelArgs{x: out, dy: from, y: out, rows: b.rows, n: b.n, stride: b.step(), strideDY: step, strideY: b.step(),
		coef: w.tinyColumns.masks[s.first:], coefStep: lanes}
	w.plan.path.run(kernelChoose, cols, Identity, &k)
}

// besideValues is how many values of an operand are written or summed by one way before the other.
// They stay in the second-level cache.
const besideValues = 32 << 10

// ---- sums

// besideColumns is how many columns are summed by one way before the other.
const besideColumns = bufferLen / quadSize

// heldSlopes is how many columns of spans have slopes held at a time: of more there is room for few rows.
const heldSlopes = bufferLen / 32

// sumBeside is sumBlock for columns of which some have tiny numbers.
func (w *workspace) sumBeside(sums *columnSums, c, r0, r1, n int) {
	t := &w.tinyColumns
	spans, columns := t.within(c, c+n)
	if columns+len(t.fewWithin(c, c+n)) == 0 {
		w.sumColumnsOf(sums, c, 0, r0, r1, n)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	if columns == n && noneMixed(spans) {
		for _, s := range spans {
			s = s.clip(c, c+n)
			clear(s.sums64(buf, s.first))
			w.sumSpan64(buf, s, s.first, r0, r1, nil)
			w.addSpan64(buf, sums, s, s.first, c)
		}
		return
	}
	holds := w.sums.dres != nil // the kernel in float32 stores g in all columns
	for j, end := c, 0; j < c+n; j = end {
		end = min(j+besideColumns, c+n)
		for spans, columns = t.within(j, end); holds && columns > heldSlopes && end-j > lanes; spans, columns = t.within(j, end) {
			end = j + roundUp((end-j)/2, lanes)
		}
		few := t.fewWithin(j, end)
		if columns+len(few) == 0 {
			w.sumColumnsOf(sums, j, j-c, r0, r1, end-j)
			continue
		}
		for _, s := range spans {
			clear(s.clip(j, end).sums64(buf, j))
		}
		height := fewRows(len(few), end-j)
		w.setFew(buf, few, false)
		clear(buf.sumsFew[:2*buf.list.padded()])
		var held []float32
		if holds {
			held = buf.dres[:]
			if columns > 0 {
				height = min(height, rowsOf(bufferLen, columns))
			}
		}
		all := *sums // those of the kernel in float32
		if holds {
			all.ahead = height * w.geo.width
		}
		for r := r0; r < r1; r += height {
			next := min(r+height, r1)
			if held == nil {
				w.sumColumnsOf(&all, j, j-c, r, next, end-j)
			}
			at := 0
			for _, s := range spans {
				s = s.clip(j, end)
				w.sumSpan64(buf, s, j, r, next, from(held, at))
				at += s.len() * (next - r)
			}
			w.sumFew(buf, r, next, holds)
			if held == nil {
				continue
			}
			w.sumColumnsOf(&all, j, j-c, r, next, end-j)
			at = 0
			for _, s := range spans {
				s = s.clip(j, end)
				b := w.tinyBlock(r*w.geo.width+s.first, next-r, s.len(), w.geo.width)
				w.putBack(b.dres, held[at:], s, b.n, &b)
				at += b.len()
			}
			buf.list.spread(w.sums.dres[r*w.geo.width:], buf.y[:], len(few), 0, next-r, w.geo.width)
		}
		for _, s := range spans {
			s = s.clip(j, end)
			w.addSpan64(buf, sums, s, j, c)
			w.dropTiny(sums, s, c)
		}
		buf.addFew(sums, c)
	}
}

// sums64 returns the sums in float64 of the columns of a span, where those of a buffer begin with column j.
func (s tinySpan) sums64(buf *buffers, j int) []float64 {
	return buf.sums64[2*(s.first-j):][:2*roundUp(s.len(), lanes)]
}

// sumSpan64 adds the rows r0 to r1-1 of the columns of a span to the sums of a buffer, which begin with
// column j. If held is not nil, it gets the slopes, or dy: all rows go there at once.
func (w *workspace) sumSpan64(buf *buffers, s tinySpan, j, r0, r1 int, held []float32) {
	n, t := s.len(), &w.tinyColumns
	all := s.sums64(buf, j)
	most := rowsOf(bufferLen, n)
	for r := r0; r < r1; r += most {
		i, height := r*w.geo.width+s.first, min(most, r1-r)
		b := w.tinyBlock(i, height, n, w.geo.width)
		if w.source != nil {
			b = w.packCols(&w.sums, buf, i, height, n)
		}
		t.set(&b, s.first)
		b.fetch = 4 * most * b.step() // the kernel goes from column to column: what is near comes too late
		if held != nil {
			b.heldStep = n
		}
		var k kernelArgs
		act := w.operands64(&k, w.sums.act, buf, t.coef[s.first*coefLen:], &b)
		k.fetch, k.n, k.records, k.recordStep, k.sums = b.fetch, n, b.records, bytes64, all
		w.plan.path.gradSums64(act, &k)
		switch {
		case held == nil:
			w.storeTiny(&k, &b)
		case w.applyTiny.slopes != nil:
			copy(held, k.res[:b.len()])
		default:
			w.times(held, b.dy, 1, b.rows, n, b.step())
		}
	}
}

// addSpan64 adds the sums of a window, of the columns of a span where something is tiny, to the totals,
// which begin with column c. They are added once in a window, whatever rows are summed at a time, so
// that neither other columns nor the columns of a task change a bit. Those of the buffer begin with column j.
func (w *workspace) addSpan64(buf *buffers, sums *columnSums, s tinySpan, j, c int) {
	all, first := s.sums64(buf, j), s.first-c
	for i := 0; i < s.len(); i += lanes {
		from := (*[sumLen]float64)(all[2*i:])
		a, b, tiny := sums.a[first+i:], sums.b[first+i:], w.tinyOfEight(s, i)
		if tiny == math.MaxUint8 {
			a, b := (*[lanes]float64)(a), (*[lanes]float64)(b)
			for l := range a {
				a[l] += from[l]
				b[l] += from[lanes+l]
			}
			continue
		}
		for ; tiny != 0; tiny &= tiny - 1 { // others are NaN
			l := bits.TrailingZeros8(tiny)
			a[l] += from[l]
			b[l] += from[lanes+l]
		}
	}
}

// tinyOfEight returns a bit for each of the columns of a vector of a span where something is tiny, from column i of the
// span on.
func (w *workspace) tinyOfEight(s tinySpan, i int) byte {
	if s.mixed {
		return w.tinyColumns.tiny[(s.first+i)/lanes]
	}
	return byte(1<<min(lanes, s.len()-i) - 1)
}

// dropTiny removes the float32 sums of the columns of a span where something is tiny. The sums begin
// with column c.
func (w *workspace) dropTiny(sums *columnSums, s tinySpan, c int) {
	for i := 0; i < s.len(); i += lanes {
		acc := (*[sumLen]float32)(sums.acc[2*(s.first-c+i):])
		for tiny := w.tinyOfEight(s, i); tiny != 0; tiny &= tiny - 1 {
			l := bits.TrailingZeros8(tiny)
			acc[l], acc[lanes+l] = 0, 0
		}
	}
}

// ---- outputs

// writeBeside is writePanel for columns of which some may have tiny numbers.
func (w *workspace) writeBeside(i, c, rows, n, stride int) {
	t := &w.tinyColumns
	spans, columns := t.within(c, c+n)
	few := t.fewWithin(c, c+n)
	if columns+len(few) == 0 {
		w.writePanel(i, c, rows, n, stride)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	if columns == n && (!w.backward || noneMixed(spans)) { // forward, both ways have the same bits
		for _, s := range spans {
			s = s.clip(c, c+n)
			w.writeSpan(buf, s, nil, i+s.first-c, rows, stride)
		}
		return
	}
	all := w.heldOf(spans, few, c, n)
	most := max(1, min(heldLen/all.len(), besideValues/n))
	w.setFew(buf, few, true)
	if height := fewRows(len(few), n); height < most || columns == 0 && !w.apply.stream { // then nothing is held
		most = height
	}
	// As the tasks do, it begins with the last rows. Kernels prefetch what is held next.
	for end := rows; end > 0; end -= most {
		height := min(most, end)
		w.writeHeld(buf, all, spans, i+(end-height)*stride, c, height, n, stride)
	}
}

// heldOf returns which of n columns from column c on are held: those from the first in a span, or of few, to the last. A
// called function takes all of these in its groups.
func (w *workspace) heldOf(spans []tinySpan, few []fewColumn, c, n int) tinySpan {
	first, end := n, 0
	if last := len(spans) - 1; last >= 0 {
		first, end = spans[0].clip(c, c+n).first-c, spans[last].clip(c, c+n).end-c
	}
	if last := len(few) - 1; last >= 0 {
		first, end = min(first, (few[0].at-c)/lanes*lanes), max(end, min(roundUp(few[last].at-c+1, lanes), n))
	}
	if w.apply.act.variant() == actCalled {
		first, end = first/heldTogether*heldTogether, min(roundUp(end, heldTogether), n)
	}
	return tinySpan{first: c + first, end: c + end}
}

// heldTogether is the number of columns in a group that a called function takes together. Fewer are held beside spans.
const heldTogether = quadSize * lanes

// heldLen is how many outputs are held at a time.
const heldLen = 4 * bufferLen

// writeHeld writes rows of n columns from column c on, of which those of all have outputs that are held first. The kernel
// in float32 writes them among others, in the order of memory, if it has non-temporal stores.
func (w *workspace) writeHeld(buf *buffers, all tinySpan, spans []tinySpan, i, c, rows, n, stride int) {
	for _, s := range spans {
		s = s.clip(c, c+n)
		w.writeSpan(buf, s, &all, i+s.first-c, rows, stride)
	}
	k := w.panelArgs(i, c, rows, n, stride)
	if k.stream = k.stream && n%lanes == 0; k.stream {
		k.before, k.heldColumns, k.behind = all.first-c, all.len(), c+n-all.end
		k.masks, k.held, k.heldG = w.tinyColumns.masks[all.first:], buf.heldY[:], buf.heldG[:]
		k.fetch = -4 * rows * stride
	}
	st, l := &w.applyTiny, &buf.list
	w.writeFew(buf, st, i, c, rows, stride)
	if k.stream {
		l.spread(buf.heldY[:], buf.y[:], l.padded(), all.first, rows, all.len())
	}
	if k.stream && k.dres != nil {
		l.spread(buf.heldG[:], buf.dres[:], l.padded(), all.first, rows, all.len())
	}
	w.kernel(&w.apply, &k)
	y, g := !k.stream, !k.stream || k.dres == nil // if sums have stored g, the kernel in float32 writes dx alone
	for _, s := range spans {
		s = s.clip(c, c+n)
		b := w.outputBlock(i+s.first-c, rows, stride, s)
		w.putBackHeld(buf, all, s, &b, y, g)
	}
	if y {
		l.spread(st.y[i:], buf.y[:], l.padded(), c, rows, stride)
	}
	if g && st.dres != nil {
		l.spread(st.dres[i:], buf.dres[:], l.padded(), c, rows, stride)
	}
}

// hold lets the outputs of a block be those of the columns of a span, from a row on, in a buffer that holds all.
func (b *block) hold(buf *buffers, all, s tinySpan, row int) {
	at := row*all.len() + s.first - all.first
	b.heldStep, b.y = all.len(), buf.heldY[at:]
	if b.dres != nil {
		b.dres = buf.heldG[at:]
	}
}

// putBackHeld writes y of the columns of a span, and g if it is wanted, from a buffer that holds all. b has their places.
func (w *workspace) putBackHeld(buf *buffers, all, s tinySpan, b *block, y, g bool) {
	at := s.first - all.first
	if y {
		w.putBack(b.y, buf.heldY[at:], s, all.len(), b)
	}
	if g && b.dres != nil {
		w.putBack(b.dres, buf.heldG[at:], s, all.len(), b)
	}
}

// writeSpan writes the outputs of rows of a span, from index i on, or to a buffer that holds all.
func (w *workspace) writeSpan(buf *buffers, s tinySpan, all *tinySpan, i, rows, stride int) {
	most := bufferLen / s.len()
	for r := 0; r < rows; r += most {
		b := w.outputBlock(i+r*stride, min(most, rows-r), stride, s)
		if all != nil {
			b.hold(buf, *all, s, r)
		}
		w.writeTiny(buf, w.tinyColumns.coef[s.first*coefLen:], &b)
	}
}

// outputBlock returns rows of the columns of a span, stride values apart, from index i on.
func (w *workspace) outputBlock(i, rows, stride int, s tinySpan) block {
	b := block{rows: rows, n: s.len(), stride: stride}
	b.place(&w.applyTiny, i)
	w.tinyColumns.set(&b, s.first)
	return b
}

// writeCopyBeside is writeBeside for a row of columns from column c on whose inputs are copies. k has
// its operands for the kernel in float32.
func (w *workspace) writeCopyBeside(c int, k *kernelArgs, row *block) {
	t, end := &w.tinyColumns, c+row.n
	spans, columns := t.within(c, end)
	few := t.fewWithin(c, end)
	direct, all := columns == row.n && noneMixed(spans), tinySpan{first: c, end: end}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	for _, s := range spans {
		s = s.clip(c, end)
		b := row.columns(s, c)
		t.set(&b, s.first)
		if !direct {
			b.hold(buf, all, s, 0)
		}
		w.writeTiny(buf, t.coef[s.first*coefLen:], &b)
	}
	if direct {
		return
	}
	w.setFew(buf, few, true)
	w.writeFew(buf, &stage{x: row.x, dy: row.dy, res: row.res, dres: row.dres}, 0, c, 1, row.n)
	k.coef = w.coef[c*coefLen:]
	w.elementwise(w.apply.kernel, w.apply.act, k, row)
	for _, s := range spans {
		s = s.clip(c, end)
		b := row.columns(s, c)
		w.putBackHeld(buf, all, s, &b, true, true)
	}
	buf.list.spread(row.y, buf.y[:], 0, c, 1, row.n)
	if row.dres != nil {
		buf.list.spread(row.dres, buf.dres[:], 0, c, 1, row.n)
	}
}

// columns returns the columns of a span from a row whose first one is column c.
func (b *block) columns(s tinySpan, c int) block {
	j := s.first - c
	return block{rows: 1, n: s.len(), x: b.x[j:], dy: from(b.dy, j), res: from(b.res, j), y: b.y[j:], dres: from(b.dres, j)}
}
