package batchnorm

// Calls in rows: the values of a channel are adjacent. Adjacent channels make a
// group. The sums of a group are taken, its channels are finished, and then its
// outputs are written, while the values are still in a cache. With non-temporal
// stores, outputs are written in turns with the sums of the next group, so that writes
// of one group overlap with reads of the next.

// rowScratch is the memory of a task that takes sums in rows, by channel of a group.
type rowScratch struct {
	sums        []float64
	acc         []float32 // 0 between two windows
	shift, zero []float32
	a, b        []float64  // totals of a window
	args        kernelArgs // of the kernel that takes sums
	next        kernelArgs // of the kernel that takes turns with it
	none        kernelArgs // without work: no kernel takes turns
}

// newRowScratch has room for a group of n channels; n is a multiple of 8.
func newRowScratch(n int) *rowScratch {
	return &rowScratch{sums: make([]float64, n*sumLen), acc: make([]float32, n*sumLen), shift: make([]float32, n),
		zero: make([]float32, n), a: make([]float64, n), b: make([]float64, n)}
}

func (s *rowScratch) room() int { return len(s.shift) }

// giveRowScratch returns scratch memory to its pool, and drops its references to the
// caller's memory.
func (w *workspace) giveRowScratch(s *rowScratch) {
	s.args, s.next = kernelArgs{}, kernelArgs{}
	w.rowScratch.give(s)
}

// fusedRows does both phases for the channels of a task.
func (w *workspace) fusedRows(t int) {
	defer w.fence()
	s := w.rowScratch.take()
	c0, end := t*w.way.tasks, min((t+1)*w.way.tasks, w.geo.channels)
	pending := &s.next // the outputs of the group before
	pending.images = 0
	for c := c0; c < end; c += w.way.group {
		last := min(c+w.way.group, end)
		for seg := range w.geo.segments {
			w.sumGroup(&w.sums, s, c, last, seg, pending, nil)
		}
		w.writeAll(pending)
		w.finish(c, last)
		if w.do&applyThem == 0 {
			continue
		}
		if w.findInBlocks(c, last) {
			w.eachAlike(c, last, true, func(c, end int, outputs byte) {
				k := w.groupArgs(c, end)
				w.writeAlike(&k, c, outputs)
			})
			continue
		}
		*pending = w.groupArgs(c, last)
		if !w.way.turns {
			w.writeAll(pending)
		}
	}
	w.writeAll(pending)
	w.giveRowScratch(s)
}

// groupArgs returns the arguments of the kernel that writes the outputs of the
// channels c0 to c1-1.
func (w *workspace) groupArgs(c0, c1 int) kernelArgs {
	g := w.geo
	if g.inner < lanes { // one image, whose rows are too short for vectors across two rows
		k := w.rowArgs(c0, 1, g.inner)
		k.coefImage = 0
		k.begin(c0*g.inner, c1-c0)
		return k
	}
	k := w.rowArgs(c0, c1-c0, g.inner)
	k.imageGap = (g.channels - (c1 - c0)) * g.inner
	k.begin(c0*g.inner, g.outer)
	return k
}

// rowArgs returns the arguments of a kernel that writes outputs, for images of some
// rows of n values, from channel c on.
func (w *workspace) rowArgs(c, rows, n int) kernelArgs {
	k := w.apply.args(0)
	k.rows, k.n = rows, n
	k.coef, k.coefImage = w.coef[c*coefLen:], -rows*coefLen
	k.stream = w.apply.stream && k.alike()
	k.act = w.act
	return k
}

// writeAll runs the kernel that writes outputs until its work is done.
func (w *workspace) writeAll(k *kernelArgs) {
	w.plan.path.runAll(w.apply.kernel, w.apply.act, k)
}

// sumRows takes the sums of a segment of some groups.
func (w *workspace) sumRows(t int) {
	s := w.rowScratch.take()
	seg, c0 := t%w.geo.segments, t/w.geo.segments*w.way.tasks
	end := min(c0+w.way.tasks, w.geo.channels)
	s.next.images = 0
	for c := c0; c < end; c += w.way.group {
		w.sumGroup(&w.sums, s, c, min(c+w.way.group, end), seg, &s.next, nil)
	}
	w.giveRowScratch(s)
	w.fence() // the sums may store gradients
}

// sumGroup takes the sums of a segment of the channels c0 to c1-1, in turns with
// the pending outputs. If scale is not nil, the values are scaled first.
func (w *workspace) sumGroup(st *stage, s *rowScratch, c0, c1, seg int, pending *kernelArgs, scale *constants) {
	n := c1 - c0
	first := seg*w.geo.channels + c0
	sumA, sumB := w.channels.segmentA[first:first+n], w.channels.segmentB[first:first+n]
	segment := w.geo.segment(seg)
	if w.backward && scale != nil {
		w.sumWindow(st, s, c0, segment, w.coef[c0*coefLen:], pending, scale, sumA, sumB)
		return
	}
	if w.backward {
		for c, end := c0, c0; c < c1; c = end {
			var tiny bool
			tiny, end = w.tinyRun(c, c1)
			a, b := sumA[c-c0:end-c0], sumB[c-c0:end-c0]
			if !tiny {
				w.sumWindow(st, s, c, segment, w.coef[c*coefLen:], pending, nil, a, b)
				continue
			}
			w.writeAll(pending) // sums in float64 take no turns
			clear(s.sums[:len(a)*sumLen])
			w.sumTinyRows(s, c, len(a), segment)
			w.plan.path.reduceLanes(a, b, s.sums)
		}
		return
	}
	if !w.anyLarge {
		w.sumMoments(s, false, c0, segment, pending, sumA, sumB)
		return
	}
	for c, end := c0, c0; c < c1; c = end {
		var large bool
		if large, end = w.largeRun(c, c1); large {
			w.writeAll(pending)
		}
		w.sumMoments(s, large, c, segment, pending, sumA[c-c0:end-c0], sumB[c-c0:end-c0])
	}
}

// sumMoments takes the moments of a segment of len(sumA) channels from channel c on: from sums in
// float64, or in turns with the pending outputs.
func (w *workspace) sumMoments(s *rowScratch, in64 bool, c int, segment window, pending *kernelArgs, sumA, sumB []float64) {
	n := len(sumA)
	clear(sumA)
	clear(sumB)
	a, b := s.a[:n], s.b[:n]
	probe := segment.probe()
	if w.isSmall(c) { // squares in float32 would take an assist each
		w.sumLargeRows(c, probe, s.zero, a, b)
	} else {
		w.sumWindow(&w.sums, s, c, probe, s.zero, &s.none, nil, a, b)
	}
	for i := 0; in64 && i < n; i++ {
		if a[i]-a[i] != 0 {
			w.sumLargeRows(c+i, probe, s.zero, a[i:i+1], b)
		}
	}
	for c := range n {
		s.shift[c] = shiftFor(a[c] / float64(probe.len()))
	}
	for win, before, ok := segment.next(window{}); ok; win, before, ok = segment.next(win) {
		if in64 {
			w.sumLargeRows(c, win, s.shift[:n], a, b)
		} else {
			w.sumWindow(&w.sums, s, c, win, s.shift[:n], pending, nil, a, b)
		}
		w.plan.path.foldReduced(sumA, sumB, a, b, s.shift[:n], float64(before), float64(win.len()))
	}
}

// sumWindow takes the sums of a window of len(a) channels from channel c on, in turns
// with the pending outputs. It sets a and b to the two sums of each channel.
func (w *workspace) sumWindow(st *stage, s *rowScratch, c int, win window, coef []float32, pending *kernelArgs, scale *constants, a, b []float64) {
	n := len(a)
	if win.inOneSum() {
		w.sumLanes(st, s, c, n, win, coef, pending, scale)
		w.plan.path.reduceShort(a, b, s.acc)
		return
	}
	clear(s.sums[:n*sumLen])
	for images, ok := win.together(window{}); ok; images, ok = win.together(images) {
		w.sumLanes(st, s, c, n, images, coef, pending, scale)
		if win.n <= shortRow {
			w.plan.path.flush(s.sums[:n*sumLen], s.acc)
		}
	}
	w.plan.path.reduceLanes(a, b, s.sums)
}

// sumLanes adds a window of n channels, or some images of it, to their sums by lanes. Short
// rows of images side by side join those in float32.
func (w *workspace) sumLanes(st *stage, s *rowScratch, c, n int, win window, coef []float32, pending *kernelArgs, scale *constants) {
	if scale != nil {
		w.sumScaledRows(st, s, c, win, scale)
		return
	}
	g, path, k := w.geo, w.plan.path, &s.args
	*k = st.args(0)
	k.act = w.act
	k.coef, k.sums, k.acc = coef, s.sums, s.acc
	if w.source != nil {
		w.sumGathered(k, c, n, win)
		return
	}
	image := g.channels * g.inner
	k.rows, k.n, k.stride = n, win.n, image
	k.rowGap, k.imageGap = g.inner-win.n, image-n*g.inner
	k.begin((win.o*g.channels+c)*g.inner+win.i, win.images)
	path.runTurns(st.kernel, st.act, k, w.apply.kernel, w.apply.act, pending)
}

// tiles describes a tensor in rows that is cut into tasks that only write outputs.
type tiles struct {
	channels, images, spans   int // number of tiles along channels, images and rows
	perChannel, perImage, len int // channels, images and values of a row in a tile
}

func (g *geometry) tiles(tile int) tiles {
	t := tiles{perChannel: g.channels, perImage: 1, len: g.inner}
	switch {
	case g.inner > tile:
		t.perChannel, t.len = 1, roundUp(tile, lineLen)
	case g.inner*g.channels > tile:
		t.perChannel = tile / g.inner
	default:
		t.perImage = tile / (g.inner * g.channels)
	}
	t.channels, t.images, t.spans = ceilDiv(g.channels, t.perChannel), ceilDiv(g.outer, t.perImage), ceilDiv(g.inner, t.len)
	return t
}

// applyRows writes the outputs of a tile.
func (w *workspace) applyRows(t int) {
	g := w.geo
	defer w.fence()
	tiles := g.tiles(w.way.tile)
	span, t := t%tiles.spans, t/tiles.spans
	c, o := t%tiles.channels*tiles.perChannel, t/tiles.channels*tiles.perImage
	channels, images := min(tiles.perChannel, g.channels-c), min(tiles.perImage, g.outer-o)
	i := span * tiles.len
	n := min(tiles.len, g.inner-i)
	first := (o*g.channels+c)*g.inner + i
	if g.inner < lanes {
		for r := range images {
			w.writeRows(c, channels, first+r*g.channels*g.inner, n, g.inner)
		}
		return
	}
	w.eachAlike(c, c+channels, w.anyInBlocks(c, c+channels), func(c0, c1 int, outputs byte) {
		k := w.rowArgs(c0, c1-c0, n)
		k.imageGap = (g.channels - (c1 - c0)) * g.inner
		k.begin(first+(c0-c)*g.inner, images)
		w.writeAlike(&k, c0, outputs)
	})
}

// writeRows writes the outputs of n values of each of some channels, from index i
// on. From a channel's values to the next one's there are stride floats.
func (w *workspace) writeRows(c, channels, i, n, stride int) {
	w.eachAlike(c, c+channels, w.anyInBlocks(c, c+channels), func(c0, c1 int, outputs byte) {
		k := w.rowArgs(c0, 1, n) // rows are not adjacent: each is an image of one row
		k.imageGap, k.coefImage = stride-n, 0
		k.begin(i+(c0-c)*stride, c1-c0)
		w.writeAlike(&k, c0, outputs)
	})
}

// eachAlike calls write for channels from c0 to c1-1 whose outputs are written alike: for
// all, unless some are written block by block. Wide ones go alone.
func (w *workspace) eachAlike(c0, c1 int, inBlocks bool, write func(c0, c1 int, outputs byte)) {
	if !inBlocks {
		write(c0, c1, 0)
		return
	}
	outputs := w.channels.outputs
	for c, end := c0, c0; c < c1; c = end {
		for end = c + 1; end < c1 && outputs[end] == outputs[c] && outputs[c]&wideOutputs == 0; end++ {
		}
		write(c, end, outputs[c])
	}
}

// writeAlike writes the outputs of channels from c on that are written alike.
func (w *workspace) writeAlike(k *kernelArgs, c int, outputs byte) {
	switch {
	case outputs&wideOutputs != 0:
		w.writeCarefully(c, k.at, k.images, k.n, k.n+k.imageGap)
	case outputs != 0:
		w.writeTinyRows(k, c)
	default:
		w.writeAll(k)
	}
}
