package batchnorm

import (
	"math"
	"slices"
)

// Columns of tiny numbers beside others (cols). The kernels in float32 go over all columns,
// in the order of memory: rows in pieces, without some columns, take longer. Where something is tiny, -m
// is NaN for them: then their products are NaN, which takes no assist, and nobody uses them. The
// kernels in float64 go over the vectors that have such columns, with constants of their own.
// Each column takes its results from one of the two, so that its bits don't depend on its
// neighbours.

// tinyColumns says which columns have tiny numbers, and has the constants of columns. It is set
// before the tasks of a phase.
type tinyColumns struct {
	spans   []tinySpan
	wide    bool       // there are wide channels
	all     bool       // all columns are in spans, and the kernels in float64 alone go over them
	factors []float64  // of x-m in z
	records []record64 // one for 8 columns
	masks   []float32  // of columns: all ones where nothing is tiny
	coef    []float32  // the records of columns in spans for the kernels in float64
	own     []float32  // its memory, unless it is the workspace's
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
	t, width, unit := &w.tinyColumns, w.geo.width, lanes
	if !w.backward { // so that non-temporal stores write whole lines
		unit = lineLen
	}
	t.spans, t.all, t.wide = t.spans[:0], true, false
	usual := false // there is a span, and all columns behind it are usual
	for j, end := 0, 0; j < width; j = end {
		var kind byte
		kind, end = w.columnsAlike(kinds, j, width, unit)
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
	if len(t.spans) == 0 {
		return
	}
	padded := roundUp(width, lanes)
	if len(t.masks) < padded {
		t.masks, t.factors, t.records = make([]float32, padded), make([]float64, padded), make([]record64, padded/lanes)
		t.own = make([]float32, padded*coefLen)
	}
	if t.coef = t.own; t.all {
		t.coef = w.coef
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
}

// together reports whether two spans, with the columns between them, are one: the columns take less time than calls
// for another span, or the spans have no others between them.
func (w *workspace) together(a, b tinySpan) bool {
	const rows = 64 // of 8 columns, which take as long as the calls
	return (b.first-a.end)*w.geo.height <= rows*lanes && b.end-a.first <= mostSpan
}

// unsetTinyColumns takes back what the kernels in float32 have for columns in spans.
func (w *workspace) unsetTinyColumns() {
	t := &w.tinyColumns
	for _, s := range t.spans {
		for i := s.first * coefLen; !t.all && i < s.end*coefLen; i += lanes * coefLen {
			*(*[lanes]float32)(w.coef[i+fieldN*lanes:]) = [lanes]float32(t.own[i+fieldN*lanes:])
		}
	}
}

// setMasks sets the masks of columns, and their -m for the kernels in float32. Wide ones keep theirs,
// which their own way needs.
func (w *workspace) setMasks(kinds []byte, s tinySpan) {
	t := &w.tinyColumns
	for j := s.first; j < s.end; j++ {
		switch kind := kinds[w.channelOf(j)]; {
		case kind&^wideOutputs == 0:
			t.masks[j] = math.Float32frombits(math.MaxUint32)
			continue
		case kind&wideOutputs == 0:
			w.coef[j/lanes*lanes*coefLen+fieldN*lanes+j%lanes] = float32(math.NaN())
		}
		t.masks[j] = 0
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

// putBackOne writes an output of the columns of a span where something is tiny, which is in memory
// without gaps. Others keep theirs, which are in a cache.
func (w *workspace) putBackOne(out, from []float32, s tinySpan, b *block) {
	k := kernelArgs{x: out, dy: from, y: out, rows: b.rows, n: b.n, stride: b.step(), strideDY: b.n, strideY: b.step(),
		coef: w.tinyColumns.masks[s.first:], coefStep: lanes}
	w.plan.path.run(kernelChoose, cols, Identity, &k)
}

// besideValues is how many values of an operand are written or summed by one way before the other.
// They stay in the second-level cache.
const besideValues = 32 << 10

// heldColumns is how many columns of spans are held at a time: of more there is room for few rows.
const heldColumns = bufferLen / 32

// ---- sums

// besideColumns is how many columns are summed by one way before the other.
const besideColumns = bufferLen / quadSize

// fetchRows is how many rows ahead the sums of columns prefetch memory.
const fetchRows = 8

// sumBeside is sumBlock for columns of which some have tiny numbers.
func (w *workspace) sumBeside(sums *columnSums, c, r0, r1, n int) {
	t := &w.tinyColumns
	spans, columns := t.within(c, c+n)
	if columns == 0 {
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
		for spans, columns = t.within(j, end); holds && columns > heldColumns && end-j > lanes; spans, columns = t.within(j, end) {
			end = j + roundUp((end-j)/2, lanes)
		}
		if columns == 0 {
			w.sumColumnsOf(sums, j, j-c, r0, r1, end-j)
			continue
		}
		for _, s := range spans {
			clear(s.clip(j, end).sums64(buf, j))
		}
		height := rowsOf(besideValues, end-j)
		var held []float32
		if holds {
			held, height = buf.dres[:], min(height, rowsOf(bufferLen, columns))
		}
		for r := r0; r < r1; r += height {
			next := min(r+height, r1)
			if held == nil {
				w.sumColumnsOf(sums, j, j-c, r, next, end-j)
			}
			at := 0
			for _, s := range spans {
				s = s.clip(j, end)
				w.sumSpan64(buf, s, j, r, next, from(held, at))
				at += s.len() * (next - r)
			}
			if held == nil {
				continue
			}
			w.sumColumnsOf(sums, j, j-c, r, next, end-j)
			at = 0
			for _, s := range spans {
				s = s.clip(j, end)
				b := w.tinyBlock(r*w.geo.width+s.first, next-r, s.len(), w.geo.width)
				w.putBackOne(b.dres, held[at:], s, &b)
				at += b.len()
			}
		}
		for _, s := range spans {
			s = s.clip(j, end)
			w.addSpan64(buf, sums, s, j, c)
			w.dropTiny(sums, s, c)
		}
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
		b.held, b.fetch = held != nil, 4*fetchRows*b.step()
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
	all, t := s.sums64(buf, j), &w.tinyColumns
	i, n, first := 0, s.len(), s.first-c
	for ; !s.mixed && i+lanes <= n; i += lanes {
		from := (*[sumLen]float64)(all[2*i:])
		a, b := (*[lanes]float64)(sums.a[first+i:]), (*[lanes]float64)(sums.b[first+i:])
		for l := range a {
			a[l] += from[l]
			b[l] += from[lanes+l]
		}
	}
	for ; i < n; i++ {
		if s.mixed && t.masks[s.first+i] != 0 { // NaN
			continue
		}
		at := i/lanes*sumLen + i%lanes
		sums.a[first+i] += all[at]
		sums.b[first+i] += all[at+lanes]
	}
}

// dropTiny removes the float32 sums of the columns of a span where something is tiny. The sums begin
// with column c.
func (w *workspace) dropTiny(sums *columnSums, s tinySpan, c int) {
	for j := s.first; j < s.end; j++ {
		if s.mixed && w.tinyColumns.masks[j] != 0 {
			continue
		}
		at := (j-c)/lanes*sumLen + (j-c)%lanes
		sums.acc[at], sums.acc[at+lanes] = 0, 0
	}
}

// ---- outputs

// writeBeside is writePanel for columns of which some may have tiny numbers.
func (w *workspace) writeBeside(i, c, rows, n, stride int) {
	t := &w.tinyColumns
	spans, columns := t.within(c, c+n)
	if columns == 0 {
		w.writePanel(i, c, rows, n, stride, w.apply.stream)
		return
	}
	direct := !w.backward && !w.apply.overwrites() // both ways have the same bits
	if all := columns == n && (!w.backward || noneMixed(spans)); !all && !direct && columns > heldColumns && n > lineLen {
		half := roundUp(n/2, lineLen)
		w.writeBeside(i, c, rows, half, stride)
		w.writeBeside(i+half, c+half, rows, n-half, stride)
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	if columns == n && (!w.backward || noneMixed(spans)) { // forward, both ways have the same bits
		for _, s := range spans {
			s = s.clip(c, c+n)
			most := bufferLen / s.len()
			for r := 0; r < rows; r += most {
				b := w.outputBlock(i+r*stride+s.first-c, min(most, rows-r), stride, s)
				w.writeTiny(buf, t.coef[s.first*coefLen:], &b)
			}
		}
		return
	}
	first := direct || w.apply.stream // no output is an input, which is in a cache afterwards
	most := max(1, min(bufferLen/columns, besideValues/n))
	for r := 0; r < rows; r += most {
		start, height := i+r*stride, min(most, rows-r)
		if first { // what is put into them must find them in a cache
			w.writePanel(start, c, height, n, stride, direct && w.apply.stream)
		}
		at := 0
		for _, s := range spans {
			s = s.clip(c, c+n)
			held := w.outputBlock(start+s.first-c, height, stride, s)
			if !direct {
				held.hold(buf, at)
			}
			w.writeTiny(buf, t.coef[s.first*coefLen:], &held)
			at += held.len()
		}
		if direct {
			continue
		}
		if !first {
			w.writePanel(start, c, height, n, stride, false)
		}
		at = 0
		for _, s := range spans {
			s = s.clip(c, c+n)
			b := w.outputBlock(start+s.first-c, height, stride, s)
			held := b
			held.hold(buf, at)
			w.putBack(&b, &held, s)
			at += b.len()
		}
	}
}

// hold lets the outputs of a block be buffers, from value at on.
func (b *block) hold(buf *buffers, at int) {
	b.held, b.y = true, buf.y[at:]
	if b.dres != nil {
		b.dres = buf.dres[at:]
	}
}

// putBack writes the outputs of the columns of a span where something is tiny, from those held.
func (w *workspace) putBack(b, held *block, s tinySpan) {
	w.putBackOne(b.y, held.y, s, b)
	if b.dres != nil {
		w.putBackOne(b.dres, held.dres, s, b)
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
func (w *workspace) writeCopyBeside(buf *buffers, c int, k *kernelArgs, row *block) {
	t, end := &w.tinyColumns, c+row.n
	spans, columns := t.within(c, end)
	part := func(s tinySpan) block {
		j := s.first - c
		b := block{rows: 1, n: s.len(), x: row.x[j:], dy: from(row.dy, j), res: from(row.res, j), y: row.y[j:], dres: from(row.dres, j)}
		t.set(&b, s.first)
		return b
	}
	direct := columns == row.n && noneMixed(spans)
	for _, s := range spans {
		s = s.clip(c, end)
		b := part(s)
		if !direct {
			b.hold(buf, s.first-c)
		}
		w.writeTiny(buf, t.coef[s.first*coefLen:], &b)
	}
	if direct {
		return
	}
	k.coef = w.coef[c*coefLen:]
	w.elementwise(w.apply.kernel, w.apply.act, k, row)
	for _, s := range spans {
		s = s.clip(c, end)
		b := part(s)
		held := b
		held.hold(buf, s.first-c)
		w.putBack(&b, &held, s)
	}
}
