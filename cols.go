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
	w.sumSpan(&w.sums, t/spans, c, min(n, w.geo.width-c), nil)
	w.fence() // the sums may store gradients
}

// sumSpan takes the sums of the columns c to c+n-1 of a segment. If scale is not nil, the
// values are scaled by its constants first.
func (w *workspace) sumSpan(s *stage, seg, c, n int, scale *buffers) {
	g, path := w.geo, w.plan.path
	padded := roundUp(g.width, lanes)
	acc := w.acc[(seg*padded+c)*2:][:roundUp(n, lanes)*2]
	shift := w.shift[seg*padded+c:][:roundUp(n, lanes)]
	sumA, sumB := w.channels.segmentA[seg*g.width+c:][:n], w.channels.segmentB[seg*g.width+c:][:n]
	clear(sumA)
	clear(sumB)
	b0, b1 := g.colSegment(seg)
	if !w.backward {
		clear(shift)
		clear(acc)
		r0, r1 := g.colWindow(b0)
		r1 = min(r1, r0+probeRows)
		w.sumBlock(s, acc, shift, c, r0, r1, n, scale)
		path.probeColumns(acc, shift, float64(r1-r0))
	}
	seen := 0
	window := func(r0, r1, n int) {
		clear(acc)
		w.sumBlock(s, acc, shift, c, r0, r1, n, scale)
		if w.backward {
			path.addColumns(sumA[:n], sumB[:n], acc)
		} else {
			path.foldColumns(sumA[:n], sumB[:n], acc, shift, float64(seen), float64(r1-r0))
		}
		seen += r1 - r0
	}
	for b := b0; b < b1; b++ {
		r0, r1 := g.colWindow(b)
		window(r0, r1, n)
	}
	if rest := min(g.rest-c, n); b1 == g.windows && rest > 0 {
		window(g.height, g.height+1, rest)
	}
}

// sumBlock runs the kernel of a stage that takes sums over the rows r0 to r1-1 of n
// columns from column c.
func (w *workspace) sumBlock(s *stage, acc, shift []float32, c, r0, r1, n int, scale *buffers) {
	g := w.geo
	values := maxCall // per call at most
	var buf *buffers
	switch {
	case scale != nil:
		buf, values = scale, bufferLen
	case w.source != nil:
		buf, values = w.buffers.take(), bufferLen
		defer w.buffers.give(buf)
	}
	for p := 0; p < n; p += values / groupSize {
		m := min(values/groupSize, n-p)
		most := max(groupSize, values/m/groupSize*groupSize) // whole groups; the last may be smaller
		for r := r0; r < r1; r += most {
			i, rows := r*g.width+c+p, min(most, r1-r)
			if scale != nil {
				w.sumScaled(s, buf, i, rows, m, acc, shift) // a span is no wider
				continue
			}
			k := w.colArgs(s, buf, i, rows, m)
			k.acc = acc[2*p:]
			k.coef = shift[p:]
			if w.backward {
				k.coef = w.coef[(c+p)*coefLen:]
			}
			w.kernel(s, &k)
		}
	}
}

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
	// The first and the last row of a group are needed at the same time.
	k.fetch = 4 * (fetchColumns + (groupSize-1)*k.stride)
	return k
}

// applyCols writes the outputs of some rows.
func (w *workspace) applyCols(t int) {
	g := w.geo
	defer w.fence()
	r0 := t * w.way.tile
	r1 := min(r0+w.way.tile, g.height)
	w.writeBlock(r0*g.width, r1-r0, g.width)
	if r1 == g.height && g.rest > 0 {
		w.writeBlock(g.height*g.width, 1, g.rest)
	}
}

// writeBlock writes the outputs of rows of n columns, from index i on.
func (w *workspace) writeBlock(i, rows, n int) {
	for p := 0; p < n; p += panel {
		m := min(panel, n-p)
		if !w.anyWideColumn(p, m) {
			w.writePanel(i+p, p, rows, m)
			continue
		}
		// Columns are taken by cache lines. Lines with a wide channel are written carefully.
		for q := p; q < p+m; {
			careful := w.anyWideColumn(q, min(lineLen, p+m-q))
			end := q
			for end < p+m && end < q+mostSpan && w.anyWideColumn(end, min(lineLen, p+m-end)) == careful {
				end = min(end+lineLen, p+m)
			}
			if careful {
				w.writeColsCarefully(i+q, q, rows, end-q)
			} else {
				w.writePanel(i+q, q, rows, end-q)
			}
			q = end
		}
	}
}

// writePanel writes the outputs of rows of n columns from column c on, whose constants
// fit into the first-level cache. The first output has index i.
func (w *workspace) writePanel(i, c, rows, n int) {
	together := rows
	if !w.way.stream && w.rowsCollide() {
		together = 1
	}
	for r := 0; r < rows; r += together {
		k := w.apply.args(i + r*w.geo.width)
		k.coef = w.coef[c*coefLen:]
		k.rows, k.n, k.stride = together, n, w.geo.width
		k.stream = w.apply.stream && k.aligned()
		w.kernel(&w.apply, &k)
	}
}

// rowsCollide reports whether the rows of a group lie so far apart that their cache
// lines share a few sets of the first-level cache, and evict each other before their
// second half is read. It assumes that all tensors begin at the same offset in a page.
func (w *workspace) rowsCollide() bool {
	if w.plan.path != PathAVX2 {
		return false
	}
	const waySize, ways = 4096, 8 // of a first-level cache on amd64
	tensors := 0
	for _, t := range [...][]float32{w.apply.x, w.apply.dy, w.apply.res, w.apply.y, w.apply.dres} {
		if t != nil {
			tensors++
		}
	}
	sets := waySize / gcd(4*w.geo.width, waySize)
	return tensors*groupSize/min(sets, groupSize) > ways
}
