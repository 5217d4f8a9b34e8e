package batchnorm

// Calls in cols: the channels are adjacent. All sums are taken first, segment by
// segment; then the outputs are written, some rows at a time.

// fetchColumns is how many values ahead of the sums memory is prefetched.
const fetchColumns = 3072

// panel is how many columns are written together, so that their constants stay in
// the first-level cache.
const panel = 1024

// sumCols takes the sums of some columns of a segment.
func (w *workspace) sumCols(t int) {
	n := w.way.tasks
	spans := ceilDiv(w.geo.width, n)
	c := t % spans * n
	w.sumSpan(t/spans, c, min(n, w.geo.width-c))
	w.fence() // the sums may store gradients
}

// sumSpan takes the sums of the columns c to c+n-1 of a segment.
func (w *workspace) sumSpan(seg, c, n int) {
	k := w.columnSums(seg, c, n)
	if w.way.strips && w.sumStrips(seg, &k, c) {
		return
	}
	if !w.backward && w.anyLarge {
		w.sumLargeSpan(seg, c, n)
		return
	}
	w.sumColumns(seg, &k, func(r0, r1, n int) { w.sumBlock(&k, c, r0, r1, n) })
}

// columnSums are the sums of n columns of a segment: the totals a and b, and sums and
// shifts of a window, which have room for whole vectors. The totals are those of whole
// vectors if there is room behind them.
type columnSums struct {
	n          int
	acc, shift []float32
	a, b       []float64
	rest       int  // the number of columns with a value in the incomplete row
	hides      bool // columns with small values have shifts of NaN, so that no product takes an assist
	first      int  // the first column, if hides is set
	ahead      int  // values from a row to that which is prefetched, if others read that one first; 0: it comes soon
}

// columnSums returns the sums of the columns c to c+n-1 of a segment.
func (w *workspace) columnSums(seg, c, n int) columnSums {
	g := w.geo
	padded := roundUp(g.width, lanes)
	k := columnSums{n: n, acc: w.acc[(seg*padded+c)*2:], shift: w.shift[seg*padded+c:], rest: min(g.rest-c, n)}
	if seg == g.segments-1 && c+n == g.width {
		n = w.plan.path.padded(n)
	}
	k.a, k.b = w.channels.segmentA[seg*g.width+c:][:n], w.channels.segmentB[seg*g.width+c:][:n]
	return k
}

// sumStrips takes the sums of columns from column c on, if they are at least as many as a
// vector holds and the segment is one window. It reports whether it did.
func (w *workspace) sumStrips(seg int, k *columnSums, c int) bool {
	g, path := w.geo, w.plan.path
	if path.whole(k.n) == 0 {
		return false
	}
	if again := w.strips(seg, k, c); again > 0 {
		rescued.Add(int64(again))
	}
	if r0, r1 := g.colWindow(seg); k.rest > 0 && r1 == g.height {
		acc := k.acc[:roundUp(k.rest, lanes)*2]
		clear(acc)
		w.sumBlock(k, c, r1, r1+1, k.rest)
		path.foldColumns(k.a[:k.rest], k.b[:k.rest], acc, k.shift, float64(r1-r0), 1)
	}
	return true
}

// strips sets the totals and the shifts of columns of a segment, from column c on, by
// foldStrips. They are at least as many as a vector holds. Rows of a source are read where they
// are, unless they may have values of several of its runs.
func (w *workspace) strips(seg int, sums *columnSums, c int) (again int) {
	g, s, n := w.geo, &w.sums, sums.n
	r0, r1 := g.colWindow(seg)
	var sampled [tinySample]int // rows
	for i, at := range g.sampled {
		if w.way.settles { // or small values are marked
			sampled[i] = at / g.width
		}
	}
	var x []float32
	var room [stripRows]int
	steps := room[:r1-r0]
	switch {
	case w.source == nil:
		x = s.x[r0*g.width+c:]
		fill(steps, 4*g.width)
	case g.fold == 1:
		x = s.x[w.source.rowSteps(r0, steps)+c:]
	default:
		buf := w.buffers.take()
		defer w.buffers.give(buf)
		k := w.source.columns(s, buf, r0*g.width+c, r1-r0, n)
		x = k.x
		fill(steps, 4*k.stride)
	}
	return w.plan.path.foldStrips(sums.a[:n], sums.b[:n], sums.shift, x, steps, &sampled, w.large(), w.plan.epsilon)
}

// sumColumns takes the sums of columns window by window. sum adds the values of the rows
// r0 to r1-1 of the first n columns to the sums of the window.
func (w *workspace) sumColumns(seg int, k *columnSums, sum func(r0, r1, n int)) {
	g, path := w.geo, w.plan.path
	n := k.n
	acc, shift := k.acc[:roundUp(n, lanes)*2], k.shift[:roundUp(n, lanes)]
	clear(k.a)
	clear(k.b)
	b0, b1 := g.colSegment(seg)
	if !w.backward {
		clear(shift)
		clear(acc)
		w.hideSmall(k, shift)
		r0, r1 := g.colWindow(b0)
		r1 = min(r1, r0+probeRows)
		sum(r0, r1, n)
		path.probeColumns(acc, shift, float64(r1-r0))
	}
	seen := 0
	window := func(r0, r1, n int) {
		clear(acc)
		w.hideSmall(k, shift)
		sum(r0, r1, n)
		if n == k.n {
			n = len(k.a)
		}
		if w.backward {
			path.addColumns(k.a[:n], k.b[:n], acc)
		} else {
			path.foldColumns(k.a[:n], k.b[:n], acc, shift, float64(seen), float64(r1-r0))
		}
		seen += r1 - r0
	}
	for b := b0; b < b1; b++ {
		r0, r1 := g.colWindow(b)
		window(r0, r1, n)
	}
	if b1 == g.windows && k.rest > 0 {
		window(g.height, g.height+1, k.rest)
	}
}

// hideSmall makes the shifts of columns with small values NaN, if these take no float32 sums.
func (w *workspace) hideSmall(k *columnSums, shift []float32) {
	for j := 0; j < k.n && k.hides; j++ {
		if w.isSmall(w.channelOf(k.first + j)) {
			shift[j] = nan
		}
	}
}

// sumBlock takes the sums of the rows r0 to r1-1 of n columns from column c on.
func (w *workspace) sumBlock(sums *columnSums, c, r0, r1, n int) {
	if w.backward && w.anyTiny {
		w.sumBeside(sums, c, r0, r1, n)
		return
	}
	w.sumColumnsOf(sums, c, 0, r0, r1, n)
}

// sumColumnsOf runs the kernel that takes sums over the rows r0 to r1-1 of n columns from
// column c on. Their sums begin with column first.
func (w *workspace) sumColumnsOf(sums *columnSums, c, first, r0, r1, n int) {
	g, s := w.geo, &w.sums
	values, columns := maxCall, maxCall/quadSize // per call at most
	var buf *buffers
	if w.source != nil {
		buf, values, columns = w.buffers.take(), bufferLen, bufferLen/quadSize
		defer w.buffers.give(buf)
	}
	for p := 0; p < n; p += columns {
		m := min(columns, n-p)
		most := rowsOf(values, m)
		for r := r0; r < r1; r += most {
			k := w.colArgs(s, buf, r*g.width+c+p, min(most, r1-r), m)
			if sums.ahead > 0 {
				k.fetch = 4 * sums.ahead
			}
			k.acc = sums.acc[2*(first+p):]
			k.coef = sums.shift[first+p:]
			if w.backward {
				k.coef = w.coef[(c+p)*coefLen:]
			}
			w.kernel(s, &k)
		}
	}
}

// rowsOf returns the number of rows of n columns for a call on so many values: whole
// quads, so that only the last call has a smaller one.
func rowsOf(values, n int) int { return max(quadSize, values/n/quadSize*quadSize) }

// colArgs returns the arguments of a kernel for rows of n columns, from element i
// of the geometry's tensor on. A source copies the values to the buffers, unless they
// lie in the tensor as the kernel reads them.
func (w *workspace) colArgs(s *stage, buf *buffers, i, rows, n int) kernelArgs {
	var k kernelArgs
	if w.source != nil {
		k = w.source.columns(s, buf, i, rows, n)
	} else {
		k = s.args(i)
		k.stride = w.geo.width
	}
	k.rows, k.n = rows, n
	// The first and the last row of a quad are needed at the same time.
	k.fetch = 4 * (fetchColumns + (quadSize-1)*k.stride)
	return k
}

// applyCols writes the outputs of some rows.
func (w *workspace) applyCols(t int) {
	g := w.geo
	defer w.fence()
	// The sums have read the last rows last, which are in the caches still.
	r0 := (ceilDiv(g.height, w.way.tile) - 1 - t) * w.way.tile
	r1 := min(r0+w.way.tile, g.height)
	n := (r1 - r0) * g.width
	if r1 == g.height {
		n += g.rest
	}
	width := g.width
	if !w.someInBlocks { // these are written row by row
		width *= w.way.side
	}
	rest := n % width
	if n >= width {
		w.writeBlock(r0*g.width, n/width, width)
	}
	if rest > 0 {
		w.writeBlock(r0*g.width+n-rest, 1, rest)
	}
}

// writeBlock writes the outputs of rows of n columns, from index i on. Columns beyond the
// geometry's width are those of the next rows.
func (w *workspace) writeBlock(i, rows, n int) {
	for p := 0; p < n; p += panel {
		end := min(p+panel, n)
		if !w.someInBlocks {
			w.writePanel(i+p, p, rows, end-p, n)
			continue
		}
		if !w.tinyColumns.wide {
			w.writeBeside(i+p, p, rows, end-p, n)
			continue
		}
		w.writeBesideWide(i+p, p, rows, end-p, n)
	}
}

// writeBesideWide is writePanel for columns of which some may be wide.
func (w *workspace) writeBesideWide(i, c, rows, n, stride int) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	l := &buf.list
	for j, end := 0, n; j < n; j, end = end, n {
		for !w.listWide(l, c+j, end-j) { // in fewer columns they have room
			end = j + max(1, (end-j)/2/lineLen)*lineLen
		}
		switch {
		case l.n == 0:
			w.writeBeside(i+j, c+j, rows, end-j, stride)
		case l.n == end-j:
			w.writeColsCarefully(i+j, c+j, rows, l.n)
		default:
			w.writeAside(buf, l, i+j, c+j, rows, end-j, stride)
		}
	}
}

// writePanel writes the outputs of rows of n columns from column c on, whose constants
// fit into the first-level cache. The rows are stride values apart, and the first output has
// index i.
func (w *workspace) writePanel(i, c, rows, n, stride int) {
	most := maxCall / n // a task has more where a wide channel keeps its rows from being written as one
	for r := 0; r < rows; r += most {
		k := w.panelArgs(i+r*stride, c, min(most, rows-r), n, stride)
		w.kernel(&w.apply, &k)
	}
}

// panelArgs returns the arguments of the kernel that writes a panel.
func (w *workspace) panelArgs(i, c, rows, n, stride int) kernelArgs {
	k := w.apply.args(i)
	k.coef = w.coef[c*coefLen:]
	k.rows, k.n, k.stride = rows, n, stride
	k.stream = w.apply.stream && k.aligned()
	if w.way.inOrder || k.stream {
		k.single = k.rows
	}
	return k
}
