package batchnorm

// Calls on some of the positions, or on operands that are computed first. The geometry
// is that of the tensor without its padding. Sums read values in place where they are
// adjacent, and from a copy elsewhere; outputs are written run by run. Neither changes a
// bit, so the result depends on the positions alone.

// source provides the values of these calls.
type source struct {
	geo      geometry // without the padding
	shape    Shape    // with it
	runs     []run    // of valid positions, in order
	unit     int      // floats of a position that are adjacent: 1, or in cols Channels
	next     int      // floats from a channel to the next: Inner, or in cols 1
	row      int      // positions that are adjacent, before the next channel begins
	tile     int      // positions per task that writes outputs
	clip     bool     // outputs at padding are set to 0
	inverted bool     // x is y: the source computes z from it, and multiplies dy by the slope
	inverse  Activation
	sampled  [tinySample]int // of a call: see sampledValues
}

// run is a stretch of valid positions that are adjacent in memory.
type run struct {
	first  int // position in the tensor, counted over outer and inner
	before int // valid positions before it
	n      int
	index  int // in the tensor, of channel 0
}

// bufferLen is the number of values of an operand that are copied at a time: values of
// one row, or in cols quads of rows.
const bufferLen = pieceSingle

// buffers hold values that are copied or computed before a kernel reads them.
type buffers struct {
	x            [stripRows * 2 * minWidth]float32 // as many as strips of folded columns take
	dy, res      [bufferLen]float32
	y, dres      [bufferLen]float32
	scaled, g    [bufferLen]float32
	heldY, heldG [heldLen]float32
	tinyZ        tinyZBuffers
	sums         [sumLen]float64
	sums64       [2 * besideColumns]float64
	sumsFew      [2 * mostSpan]float64
	inWindow     windowSums // of columns, in float64
	constants    constants
	list         columnList
	largest      [mostSpan]float32 // magnitudes, by column
}

func newBuffers(int) *buffers { return new(buffers) }

// room is 0 since all buffers have the same size.
func (*buffers) room() int { return 0 }

// init makes a source for any number of valid positions.
func (g *source) init(p *Plan) {
	s := p.shape
	*g = source{shape: s, unit: 1, next: s.Inner, row: adjacent(s), runs: g.runs[:0]}
	g.geo.layout, g.geo.channels, g.geo.unit = rows, s.Channels, 1
	if s.Inner == 1 && s.Channels > 1 {
		g.geo.layout, g.unit = cols, s.Channels
	}
}

// adjacent returns the largest number of adjacent positions of a shape: those of a row,
// or more if the next row is adjacent.
func adjacent(s Shape) int {
	if s.Channels == 1 || s.Inner == 1 {
		return s.PerChannel()
	}
	return s.Inner
}

// reserve makes room for the runs of a mask like m.
func (g *source) reserve(m *Mask, s Shape) {
	if n := m.most(s, adjacent(s)); cap(g.runs) < n {
		g.runs = make([]run, 0, n)
	}
}

// most returns the largest possible numbers of segments and columns.
func (g *source) most() (segments, width int) {
	values := g.shape.PerChannel()
	if g.geo.layout == cols {
		values, width = g.shape.Len(), max(g.shape.Channels, 2*minWidth)
	}
	// All segments but the last have at least segmentSize values.
	return min(maxSegments, values/segmentSize+1), width
}

// begin sets the source to the n valid positions of a mask.
func (g *source) begin(m *Mask, n, workers int) {
	s := g.shape
	g.reserve(m, s)
	g.runs = m.runs(g.runs[:0], s, g.row)
	if g.geo.layout == rows {
		g.geo = rowGeometry(1, s.Channels, n)
	} else {
		g.geo = colGeometry(n, s.Channels, 1)
	}
	g.inverted = false
	g.clip = !m.KeepPadding
	g.tile = max(1, maxCall/s.Channels)
	if workers > 1 {
		g.tile = max(1, min(g.tile, n/(4*workers)))
	}
}

// joins reports whether the padding before run j is overwritten and then cleared, since
// it is so short that skipping it takes longer.
func (g *source) joins(j int) bool {
	a, b := &g.runs[j-1], &g.runs[j]
	adjacent := b.index-a.index == (b.first-a.first)*g.unit // in the same row
	return g.clip && adjacent && b.first-a.first-a.n <= joinGap
}

const joinGap = 32

// find returns the run with valid position i.
func (g *source) find(i int) int { return g.search(0, len(g.runs), i) }

// findFrom is find for a position that is not before run lo, nor far behind it.
func (g *source) findFrom(lo, i int) int {
	step := 1
	for ; lo+step < len(g.runs) && g.runs[lo+step].before <= i; step *= 2 {
		lo += step
	}
	return g.search(lo, min(lo+step, len(g.runs)), i)
}

// search is find among the runs lo to hi-1.
func (g *source) search(lo, hi, i int) int {
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); g.runs[mid].before <= i {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// index returns the index in the tensor of a position of channel c.
func (s Shape) index(position, c int) int {
	return (position/s.Inner*s.Channels+c)*s.Inner + position%s.Inner
}

// element returns where element i of the geometry's tensor is in the caller's.
func (w *workspace) element(i int) int {
	g, s := w.geo, w.source
	switch {
	case s == nil:
		return i
	case g.layout == rows:
		return s.element(i/g.inner, i%g.inner)
	}
	return s.element(i%g.channels, i/g.channels)
}

// element returns where valid position i of a channel is in the tensor.
func (g *source) element(c, i int) int {
	r := &g.runs[g.find(i)]
	return r.index + c*g.next + (i-r.before)*g.unit
}

// values returns the tensors of a stage at n values of a channel, from valid
// position i on.
func (g *source) values(s *stage, buf *buffers, c, i, n int) kernelArgs {
	j := g.find(i)
	r := g.runs[j]
	if skip := i - r.before; skip+n <= r.n && !g.inverted {
		return s.args(r.index + c*g.next + skip)
	}
	for done := 0; done < n; j++ {
		r := &g.runs[j]
		skip := i + done - r.before
		m := min(n-done, r.n-skip)
		buf.copy(s, done, r.index+c*g.next+skip, m)
		done += m
	}
	return g.copied(s, buf, n)
}

// rowSteps sets steps to the bytes from each of some valid positions, from position i on, to the
// next, and returns the index of position i. In cols all channels of a position are adjacent.
func (g *source) rowSteps(i int, steps []int) (first int) {
	j := g.find(i)
	r := &g.runs[j]
	skip := i - r.before
	first = r.index + skip*g.unit
	at := first
	for i := range steps {
		if skip++; skip == r.n {
			if j++; j == len(g.runs) {
				break
			}
			r, skip = &g.runs[j], 0
		}
		next := r.index + skip*g.unit
		steps[i] = 4 * (next - at)
		at = next
	}
	return first
}

// columns returns the tensors of a stage at some rows of n columns. They begin at
// element i of the tensor without its padding, whose rows have geo.width elements.
func (g *source) columns(s *stage, buf *buffers, i, rows, n int) kernelArgs {
	stride := g.geo.width
	j := g.find(i / g.unit)
	r := g.runs[j]
	if skip := i - r.before*g.unit; skip+(rows-1)*stride+n <= r.n*g.unit && !g.inverted {
		k := s.args(r.index + skip)
		k.stride = stride
		return k
	}
	for row := range rows {
		for done := 0; done < n; {
			r := &g.runs[j]
			skip := i + row*stride + done - r.before*g.unit
			if skip >= r.n*g.unit {
				j++
				continue
			}
			m := min(n-done, r.n*g.unit-skip)
			buf.copy(s, row*n+done, r.index+skip, m)
			done += m
		}
	}
	k := g.copied(s, buf, rows*n)
	k.stride = n
	return k
}

// copy copies n values of the tensors that a stage reads, from index i.
func (b *buffers) copy(s *stage, to, i, n int) {
	copyShort(b.x[to:to+n], s.x[i:i+n])
	if s.dy != nil {
		copyShort(b.dy[to:to+n], s.dy[i:i+n])
	}
	if s.res != nil {
		copyShort(b.res[to:to+n], s.res[i:i+n])
	}
}

// copyShort is copy, but makes no call for a few elements.
func copyShort(to, from []float32) {
	if len(from) > 8 {
		copy(to, from)
		return
	}
	to = to[:len(from)]
	for i, v := range from {
		to[i] = v
	}
}

// copied returns the arguments for n values that were copied.
func (g *source) copied(s *stage, buf *buffers, n int) kernelArgs {
	k := buf.copies(s, n)
	if g.inverted {
		g.invert(&k)
	}
	return k
}

// copies returns the arguments for n values in the buffers, of the tensors that a stage
// reads.
func (b *buffers) copies(s *stage, n int) kernelArgs {
	k := kernelArgs{x: b.x[:n]}
	if s.dy != nil {
		k.dy = b.dy[:n]
	}
	if s.res != nil {
		k.res = b.res[:n]
	}
	return k
}

// sumGathered takes the sums of a window of n channels from channel c on. k has the
// constants and the sums.
func (w *workspace) sumGathered(k *kernelArgs, c, n int, win window) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	all := *k
	for r := range n {
		for p := 0; p < win.n; p += bufferLen {
			m := min(bufferLen, win.n-p)
			*k = w.source.values(&w.sums, buf, c+r, win.i+p, m)
			k.coef, k.sums, k.act = all.coef[r*recordLen(w.sums.kernel):], all.sums[r*sumLen:], w.act
			k.rows, k.n = 1, m
			k.begin(0, 1)
			w.plan.path.runAll(w.sums.kernel, w.sums.act, k)
		}
	}
}

// applyGathered writes the outputs of a tile of positions, and clears the padding before
// the runs that begin in it.
func (w *workspace) applyGathered(t int) {
	g := w.source
	defer w.fence()
	valid := g.geo.outer * g.geo.inner
	i := t * g.tile
	end := min(i+g.tile, valid)
	for j := g.find(i); i < end; {
		// From position first in run j0 to last in run j-1.
		j0, first := j, g.runs[j].first+i-g.runs[j].before
		if i == g.runs[j].before {
			w.clearPadding(g.end(j-1), first)
		}
		last := first
		for {
			r := &g.runs[j]
			last = r.first + min(end-r.before, r.n)
			i = r.before + last - r.first
			if j++; i >= end || g.inverted || !g.joins(j) {
				break
			}
		}
		w.applyRun(first, last-first)
		for k := j0 + 1; k < j; k++ {
			w.clearPadding(g.end(k-1), g.runs[k].first)
		}
	}
	if i == valid {
		w.clearPadding(g.end(len(g.runs)-1), g.shape.PerChannel())
	}
}

// end returns the position after run j, and 0 for the run before the first.
func (g *source) end(j int) int {
	if j < 0 {
		return 0
	}
	return g.runs[j].first + g.runs[j].n
}

// applyRun writes the outputs of n adjacent positions.
func (w *workspace) applyRun(position, n int) {
	g, s := w.geo, w.source.shape
	first := s.index(position, 0)
	switch {
	case w.source.inverted:
		w.applyInverted(first, n)
	case g.layout == rows:
		w.writeRows(0, s.Channels, first, n, s.Inner)
	default:
		// A row has fold positions side by side, as the constants have.
		whole := n / g.fold
		for r := 0; r < whole; {
			height := min(whole-r, max(1, maxCall/g.width))
			w.writeBlock(first+r*g.width, height, g.width)
			r += height
		}
		if rest := n % g.fold * s.Channels; rest > 0 {
			w.writeBlock(first+whole*g.width, 1, rest)
		}
	}
}

// applyInverted is applyRun for operands that are computed first.
func (w *workspace) applyInverted(first, n int) {
	g, s := w.geo, w.source.shape
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	if g.layout == rows {
		for c := range s.Channels {
			for p := 0; p < n; p += bufferLen {
				w.applyCopy(buf, c, first+c*s.Inner+p, min(bufferLen, n-p))
			}
		}
		return
	}
	// Rows have width columns, as the constants have. Pieces begin with whole records.
	for i := 0; i < n*s.Channels; i += g.width {
		m := min(g.width, n*s.Channels-i)
		for p := 0; p < m; p += panel {
			w.applyCopy(buf, p, first+i+p, min(panel, m-p))
		}
	}
}

// applyCopy writes the outputs of n adjacent elements from a copy: of channel c in rows,
// and from column c on in cols.
func (w *workspace) applyCopy(buf *buffers, c, i, n int) {
	outputs := byte(0)
	switch {
	case !w.someInBlocks:
	case w.geo.layout == rows:
		outputs = w.channels.outputs[c]
	default:
		outputs = w.kindOfColumns(w.channels.outputs, c, n)
	}
	if n > mostSpan && w.geo.layout == cols && outputs != 0 {
		w.applyCopy(buf, c, i, mostSpan)
		w.applyCopy(buf, c+mostSpan, i+mostSpan, n-mostSpan)
		return
	}
	buf.copy(&w.apply, 0, i, n)
	k := w.source.copied(&w.apply, buf, n)
	k.y, k.dres = from(w.apply.y, i), from(w.apply.dres, i)
	b := block{rows: 1, n: n, x: k.x, dy: k.dy, res: k.res, y: k.y[:n]}
	if k.dres != nil {
		b.dres = k.dres[:n]
	}
	coef := w.coef[c*coefLen:]
	var wide *buffers
	switch {
	case outputs&wideOutputs == 0:
	case w.geo.layout == rows:
		w.writeBlockCarefully(buf, c, &b)
		return
	default: // the others are written as without wide ones beside them
		wide = w.buffers.take()
		defer w.buffers.give(wide)
		careful := b
		careful.y, careful.dres = wide.y[:n], slice(wide.dres[:], 0, len(b.dres))
		w.writeBlockCarefully(wide, c, &careful)
	}
	switch {
	case w.geo.layout == cols && w.someInBlocks:
		w.writeCopyBeside(c, &k, &b)
	case outputs == 0:
		k.coef = coef
		w.elementwise(w.apply.kernel, w.apply.act, &k, &b)
	default:
		buf.constants.reset(rows)
		w.setRows(&buf.constants, coef, c, 1, true)
		b.channels, b.column = 1, c
		w.writeTiny(buf, coef, &b)
	}
	if wide != nil {
		w.copyWide(b.y, wide.y[:], c)
		w.copyWide(b.dres, wide.dres[:], c)
	}
}

// clearPadding sets the outputs to 0 at the positions from to end-1.
func (w *workspace) clearPadding(from, end int) {
	if g := w.source; g.clip && from < end {
		g.shape.clear(w.apply.y, from, end, g.row)
		g.shape.clear(w.apply.dres, from, end, g.row)
	}
}

// clear sets the positions from to end-1 of all channels to 0; row positions are adjacent.
// A nil tensor stays nil.
func (s Shape) clear(t []float32, from, end, row int) {
	for t != nil && from < end {
		i, n := s.index(from, 0), min(end-from, row-from%row)
		from += n
		if s.Inner == 1 {
			clearShort(t[i : i+n*s.Channels])
			continue
		}
		for range s.Channels {
			clearShort(t[i : i+n])
			i += s.Inner
		}
	}
}

// clearShort is clear without a call for a few elements.
func clearShort(t []float32) {
	if len(t) > 8 {
		clearCut(t)
		return
	}
	for k := range t {
		t[k] = 0
	}
}
