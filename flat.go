package batchnorm

import (
	"math"
	"unsafe"
)

// Short rows, of which several channels are handled together. The sums of such a
// group are taken image by image, in the order of memory; then its rows are
// applied as runs. Forward the sums of the next group are taken meanwhile; backward
// it is prefetched meanwhile, if it comes from memory, so that its sums find it in
// the cache.

// flatScratch is what a task needs for that.
type flatScratch struct {
	// By channel of the group: lanes of sums, shifts, and the sums of all lanes.
	acc, shift, zero []float32
	a, b             []float64

	coef []float32 // the constants of columns, for rows that are shorter than a vector
}

func newFlatScratch(channels, inner int) *flatScratch {
	s := &flatScratch{
		acc:   make([]float32, roundUp(channels, lanes)*sumRecord),
		shift: make([]float32, channels), zero: make([]float32, channels),
		a: make([]float64, roundUp(channels, lanes)), b: make([]float64, roundUp(channels, lanes)),
	}
	if inner < lanes {
		s.coef = make([]float32, roundUp(channels*inner, lanes)*coefLen)
	}
	return s
}

// sumRecord is how many floats of acc each channel has: lanes of both sums, and room
// for constants.
const sumRecord = 3 * lanes

// lineLen is how many floats there are in a cache line.
const lineLen = 16

// cutFlat decides whether rows may be handled so, and how many channels a group has
// at most. It goes for longer rows, too, when they don't begin at whole vectors,
// because the pipelined kernels can't store them past the caches.
func (w *work) cutFlat() {
	g, s := w.geo, w.p.schedule
	w.flat = w.p.path != PathGeneric && g.channels > 1 && (!w.pipelined || g.inner%lanes != 0)
	if !w.flat {
		return
	}
	w.flatMost = min(g.channels, wholeLines(max(1, s.flatLen/g.inner), g.inner))
	w.flatScratch = make(chan *flatScratch, w.p.workers)
	for range w.p.workers {
		w.flatScratch <- newFlatScratch(w.flatMost, g.inner)
	}
}

// wholeLines rounds a number of rows down to one that makes whole cache lines, if
// there are enough of them.
func wholeLines(n, inner int) int {
	unit := lineLen / gcd(lineLen, inner)
	if n < unit {
		return n
	}
	return n / unit * unit
}

// groupFlat sets the groups of a call: two of them are to stay in the cache, with
// room for what else passes.
func (w *work) groupFlat() {
	g := w.geo
	bytes := 4 * g.outer * g.inner * w.operands() // of a channel
	w.groupLen = min(w.flatMost, wholeLines(ceilDiv(w.p.schedule.flatBytes, bytes), g.inner))
	w.taskLen = g.channels
	if workers := w.p.workers; workers > 1 {
		w.taskLen = roundUp(max(1, g.channels/(4*workers)), w.groupLen)
	}
}

// flatBoth does both phases for the groups of a task.
func (w *work) flatBoth(t int) {
	defer w.fence()
	s := <-w.flatScratch
	defer func() { w.flatScratch <- s }()
	far := 4*len(w.x)*(w.operands()+1) > w.p.schedule.fetchBytes
	c0, end := t*w.taskLen, min((t+1)*w.taskLen, w.geo.channels)
	c1 := min(c0+w.groupLen, end)
	w.sumGroup(s, c0, c1, nobody)
	for {
		w.finish(c0, c1)
		if c1 == end {
			w.transformFlat(s, c0, c1, 0)
			return
		}
		c2 := min(c1+w.groupLen, end)
		switch {
		case c2-c1 == c1-c0 && w.pipesRuns(c0, c1):
			w.sumGroup(s, c1, c2, c0)
		case far:
			w.transformFlat(s, c0, c1, (c1-c0)*w.geo.inner)
			w.sumGroup(s, c1, c2, nobody)
		default:
			w.transformFlat(s, c0, c1, 0)
			w.sumGroup(s, c1, c2, nobody)
		}
		c0, c1 = c1, c2
	}
}

// pipesRuns reports whether there is a kernel that applies the channels c0 to c1-1
// and takes sums of others meanwhile, and whether it pays: backward, and for longer
// rows, it does not.
func (w *work) pipesRuns(c0, c1 int) bool {
	g := w.geo
	return w.stream && !w.backward && w.res == nil && g.inner >= lanes && g.inner < w.p.schedule.pipeLen && g.pieces == 1 &&
		w.p.act.variant() != actCalled && !w.anyWideOf(c0, c1)
}

// nobody stands for the first of the channels that are applied meanwhile.
const nobody = -1

// flatSums does the statistics phase for a group.
func (w *work) flatSums(t int) {
	s := <-w.flatScratch
	defer func() { w.flatScratch <- s }()
	c0 := t * w.groupLen
	w.sumGroup(s, c0, min(c0+w.groupLen, w.geo.channels), nobody)
}

// flatApply does the apply phase for a group.
func (w *work) flatApply(t int) {
	defer w.fence()
	s := <-w.flatScratch
	defer func() { w.flatScratch <- s }()
	c0 := t * w.groupLen
	w.transformFlat(s, c0, min(c0+w.groupLen, w.geo.channels), 0)
}

// sumGroup takes the statistics of the channels c0 to c1-1. Meanwhile it applies as
// many from before on, if that is not nobody.
func (w *work) sumGroup(s *flatScratch, c0, c1, before int) {
	for seg := range w.geo.segments {
		if w.geo.pieces == 1 {
			w.sumFlat(s, c0, c1, seg, before)
			continue
		}
		for c := c0; c < c1; c++ {
			w.rowStats(c, seg, false)
		}
	}
}

// sumFlat takes the statistics of a segment of the channels c0 to c1-1, as rowStats
// does for one, and applies the images of the segment as sumGroup does.
func (w *work) sumFlat(s *flatScratch, c0, c1, seg, before int) {
	g, path, n := w.geo, w.p.path, c1-c0
	at := seg*g.channels + c0
	partA, partB := w.channels.partA[at:at+n], w.channels.partB[at:at+n]
	clear(partA)
	clear(partB)
	b0, b1 := g.segment(seg)
	seen := 0
	for b := b0; b < b1; b++ {
		o, images, _, _ := g.rowBlock(b)
		if b == b0 && !w.backward {
			few, values := min(images, ceilDiv(probeLen, g.inner)), min(g.inner, probeLen)
			w.sumImages(s, s.zero, c0, n, o, few, values)
			path.reduceLanes(s, n)
			for c := range n {
				s.shift[c] = -float32(s.a[c] / float64(few*values))
			}
		}
		if before == nobody {
			w.sumImages(s, s.shift, c0, n, o, images, g.inner)
		} else {
			w.pipeImages(s, before, c0, n, o, images)
		}
		path.reduceLanes(s, n)
		if w.backward {
			for c := range n {
				partA[c] += s.a[c]
				partB[c] += s.b[c]
			}
			continue
		}
		path.foldReduced(partA, partB, s.a, s.b, s.shift[:n], float64(seen), float64(images*g.inner))
		seen += images * g.inner
	}
}

// sumImages runs the call's first kernel over the first values of the rows of n
// channels from channel c0, for some images from image o.
func (w *work) sumImages(s *flatScratch, shift []float32, c0, n, o, images, values int) {
	g := w.geo
	clear(s.acc[:n*sumRecord])
	image := g.channels * g.inner
	most := max(1, maxCall/(n*values))
	for end := o + images; o < end; o += most {
		var k kernelArgs
		w.at(&k, o*image+c0*g.inner)
		k.rows, k.n, k.stride = n, values, g.inner
		k.more, k.imageGap = min(most, end-o)-1, image-n*g.inner
		k.acc, k.accStep = s.acc, sumRecord
		k.coef, k.coefStep = shift, 1
		if w.backward {
			k.coef, k.coefStep = w.coef[c0*coefLen:], coefLen
		}
		k.fetch, k.fetchLeft = 4*image, math.MaxInt
		w.sum(&k)
	}
}

// pipeImages does what sumImages does with all values of the rows, and applies as
// many channels from before on.
func (w *work) pipeImages(s *flatScratch, before, c0, n, o, images int) {
	g := w.geo
	for c := range n {
		record := s.acc[c*sumRecord:][:sumRecord]
		clear(record)
		record[2*lanes] = s.shift[c]
	}
	image := g.channels * g.inner
	for end := o + images; o < end; o++ {
		var k kernelArgs
		w.at(&k, o*image+before*g.inner)
		k.rows, k.n, k.stride = n, g.inner, g.inner
		k.coef, k.coefStep = w.coef[before*coefLen:], coefLen
		k.acc, k.accStep = s.acc, sumRecord
		k.next, k.fetch = (c0-before)*g.inner, 4*image
		k.place(true)
		w.kernel(kernelPipeForward, kernelPipeForward, runs, &k)
	}
}

// transformFlat applies the constants of the channels c0 to c1-1. Meanwhile it
// prefetches what lies fetch floats ahead, which the next sums are taken of.
func (w *work) transformFlat(s *flatScratch, c0, c1, fetch int) {
	g := w.geo
	if w.anyWideOf(c0, c1) {
		for o := range g.outer {
			w.transformRows(c0, (o*g.channels+c0)*g.inner, c1-c0, g.inner, g.inner, 1, true)
		}
		return
	}
	width := (c1 - c0) * g.inner
	if g.inner < lanes {
		w.spreadColumns(s, c0, c1)
	}
	images := max(1, maxCall/width)
	if g.channels*g.inner%lanes != 0 {
		images = 1 // they don't lie alike
	}
	for o := 0; o < g.outer; o += images {
		var k kernelArgs
		w.at(&k, (o*g.channels+c0)*g.inner)
		n := min(images, g.outer-o)
		k.fetch, k.fetchApart = 4*fetch, 4*g.channels*g.inner // the residual's next image
		if g.inner < lanes {
			k.coef = s.coef
			k.rows, k.n, k.stride = n, width, g.channels*g.inner
			w.transform(cols, &k)
			continue
		}
		k.coef = w.coef[c0*coefLen:]
		k.rows, k.n, k.stride = c1-c0, g.inner, g.inner
		k.more, k.imageGap = n-1, g.channels*g.inner-width
		w.transformRuns(&k)
	}
}

// transformRuns applies the call's second kernel to runs. The images of a call lie
// alike in vectors.
func (w *work) transformRuns(k *kernelArgs) {
	k.coefStep = coefLen
	k.place(w.stream)
	w.kernel(kernelNormalize, kernelInputGrad, runs, k)
}

// place sets what runs need to know to be stored past the caches, if that is wanted
// and the outputs lie alike in vectors.
func (k *kernelArgs) place(stream bool) {
	offset := func(s []float32) int { return int(uintptr(unsafe.Pointer(&s[0])) / 4 % lanes) }
	if k.stream = stream && (k.dres == nil || offset(k.dres) == offset(k.y)); k.stream {
		k.head = (lanes - offset(k.y)) % lanes
	}
}

// spreadColumns copies the constants of the channels c0 to c1-1 to as many columns
// as their rows have values.
func (w *work) spreadColumns(s *flatScratch, c0, c1 int) {
	inner := w.geo.inner
	for f := range coefLen {
		for c := c0; c < c1; c++ {
			for j := (c - c0) * inner; j < (c-c0+1)*inner; j++ {
				s.coef[j/lanes*lanes*coefLen+f*lanes+j%lanes] = w.coef[c*coefLen+f]
			}
		}
	}
}
