package batchnorm

import (
	"math"
	"slices"
	"unsafe"
)

// work is the state of one call: its operands, the scratch memory, and the
// tasks that the workers share. A call has a statistics phase, whose results
// are finished channel by channel, and an apply phase; either may be cut in any
// way and run in any order without an effect on the result.
type work struct {
	p          *Plan
	geo        *geometry
	kernelArgs      // whole tensors, and the coef of all channels
	backward   bool // gradSums and inputGrad instead of moments and normalize

	call
	gather   *gather // nil: all positions are data, and lie as the kernels want them
	channels channels
	anyWide  bool

	counts []float64 // values of a channel or column in each segment
	shift  []float32 // cols: minus the shift K, [segment][column]

	// Tasks bound once, because binding allocates.
	groupTask, statsTask, applyTask       func(int)
	flatTask, flatSumsTask, flatApplyTask func(int)
	// How the current call is cut into tasks.
	groupTaskLen int // rows: channels per task of both phases that is not flat
	groupLen     int // rows: channels that are applied together, after the sums of all
	taskLen      int // rows: channels per task of both phases, in this call
	spanLen      int // cols: columns per statistics task
	tileRows     int // rows of the tensor per apply task
	tilePieces   int // apply tasks per row, when a row is long

	pipelined bool

	flat        bool              // rows are short, see flat.go
	flatMost    int               // channels in a group at most
	flatScratch chan *flatScratch // for as many tasks as run at a time

	stream bool // store past the caches

	busy bool // tasks are running, or one of them panicked

	// behind applies a channel right behind its sums where these store its gradients:
	// it is a copy of the work that goes on with them.
	behind *work
}

// call is what an operation asks for beside its tensors.
type call struct {
	gamma, beta   []float32
	values        float64 // of a channel, that its means are taken over
	frozen        bool    // backward: the statistics are constants, with no part in dx
	onlyResidual  bool    // backward: dres is wanted and dx is not; y is dres
	store, stored bool    // backward: g is being left in dres; it has been, and is dy now
	fromY         bool    // backward: x is y, to be turned back into x as far as that goes, see setInverse

	// Outputs of the statistics phase, nil when not wanted.
	m2     []float64
	sumG   []float64
	sumGD  []float64
	renorm renormalization // without r: none
}

// phases is a set of what a call has to do.
type phases uint8

const (
	takeSums   phases = 1 << iota // the statistics phase
	applyThem                     // the apply phase
	bothPhases = takeSums | applyThem
)

func newWork(p *Plan) *work {
	w := &work{p: p, geo: &p.geo}
	w.init(w.geo.segments, w.geo.width)
	w.count()
	w.cut()
	return w
}

// count says how many values there are in each segment.
func (w *work) count() {
	w.counts = w.counts[:0]
	for seg := range w.geo.segments {
		w.counts = append(w.counts, float64(w.geo.segmentLen(seg)))
	}
}

// init allocates for a geometry of so many segments and, in cols, columns.
func (w *work) init(segments, width int) {
	g := w.geo
	w.channels = newChannels(g.channels, max(width, g.channels), segments)
	w.counts = make([]float64, 0, segments)
	if w.p.path != PathGeneric {
		w.act = newActCode(w.p.act)
	}
	if g.layout == rows {
		w.coef = make([]float32, g.channels*coefLen)
	} else {
		wide := roundUp(width, lanes)
		w.coef = make([]float32, wide*coefLen)
		w.shift = make([]float32, segments*wide)
		w.acc = make([]float32, segments*wide*2)
	}
	if g.layout == rows && w.p.act.costly() {
		w.behind = new(work)
	}
	w.groupTask = w.group
	w.flatTask, w.flatSumsTask, w.flatApplyTask = w.flatBoth, w.flatSums, w.flatApply
	if g.layout == rows {
		w.statsTask = w.rowStatsTask
		w.applyTask = w.rowApplyTask
	} else {
		w.statsTask = w.colStatsTask
		w.applyTask = w.colApplyTask
	}
}

// schedule holds the thresholds between the ways to cut and to store. They come
// from measurements and have no effect on the result; tests set extreme ones.
type schedule struct {
	pipeLen    int // rows: length from which the pipelined kernels are used, as a rule, if a channel has 4 times as much
	flatLen    int // shorter ones are handled in groups of channels: how many values of an image a group has, more or less
	flatBytes  int // and how many bytes it reads, so that two groups stay in the second-level cache
	fetchBytes int // of all tensors, from which groups are prefetched
	fitBytes   int // rows: what is read of a channel at most, if its statistics are to be taken right before it is applied
	streamLen  int // bytes of an output from which it is stored past the caches
	share      int // values of the tensor that each worker has at least
}

var defaultSchedule = schedule{pipeLen: 256, flatLen: 4096, flatBytes: cacheL2 * 2 / 5, fetchBytes: cacheL3 * 5 / 4, fitBytes: cacheL3 * 3 / 8, streamLen: 6 << 20, share: 8 << 10}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// wantStream reports whether the outputs are large and apart from the inputs, so
// that it pays to store them past the caches.
func (w *work) wantStream() bool {
	if w.p.path == PathGeneric || 4*len(w.y) < w.p.schedule.streamLen {
		return false
	}
	for _, out := range [][]float32{w.y, w.dres} {
		for _, in := range [][]float32{w.x, w.dy, w.res} {
			if out != nil && in != nil && &out[0] == &in[0] {
				return false
			}
		}
	}
	return true
}

// aligned reports whether every row of the outputs begins at a multiple of a
// vector, as it must be for a kernel that stores past the caches.
func (k *kernelArgs) aligned() bool {
	const mask = 4*lanes - 1
	at := uintptr(unsafe.Pointer(&k.y[0]))
	if k.dres != nil {
		at |= uintptr(unsafe.Pointer(&k.dres[0]))
	}
	return at&mask == 0 && (k.rows == 1 || k.stride%lanes == 0)
}

// fence ends a task: what it stored past the caches is there for other cores.
func (w *work) fence() {
	if w.stream {
		simdFence()
	}
}

// cut decides how the phases are cut into tasks.
func (w *work) cut() {
	g, workers, s := w.geo, w.p.workers, w.p.schedule
	if w.gather != nil && g.layout == rows {
		return
	}
	if g.layout == rows {
		// As many channels as keep their values in half of the cache between
		// the two phases, but tasks enough for the workers.
		bytes := 4 * g.outer * g.inner // of one operand
		w.groupLen = max(1, min(cacheL2/2/max(1, bytes), g.channels/(4*workers)))
		w.groupTaskLen = w.groupLen
		if w.pipelined = g.inner >= s.pipeLen && g.outer*g.inner >= 4*s.pipeLen; w.pipelined {
			w.groupTaskLen = g.channels
			if workers > 1 {
				w.groupTaskLen = max(1, g.channels/(4*workers))
			}
		}
		w.cutFlat()
		w.tilePieces = ceilDiv(g.inner, maxCall)
		w.tileRows = max(1, maxCall/g.inner)
		return
	}
	// Columns are cut only when the segments are too few for the workers.
	w.spanLen = g.width
	if want := ceilDiv(2*workers, max(1, g.segments)); workers > 1 && want > 1 {
		w.spanLen = max(64, roundUp(ceilDiv(g.width, want), lanes))
	}
	if w.gather != nil {
		return
	}
	w.tilePieces = 1
	w.tileRows = max(1, maxCall/g.width)
	if workers > 1 {
		w.tileRows = max(1, min(w.tileRows, g.height/(4*workers)))
	}
}

// run does the phases asked for.
func (w *work) run(do phases) {
	g := w.geo
	store := do&takeSums != 0 && w.storesGradients()
	// Gradients that lie where dx will be are taken while they are still in a cache.
	// Where they are an output of their own that takes longer, measured on Zen 4, and
	// so it does where rows are short.
	behind := store && w.dres == nil && w.pipelined
	if store {
		w.store = true
		if w.dres == nil {
			w.dres = w.y
		}
	}
	if do == bothPhases && g.layout == rows && w.gather == nil && w.channelsSuffice() && w.channelFits() && (!store || behind) {
		w.stream = !store && w.wantStream()
		task := w.groupTask
		w.taskLen = w.groupTaskLen
		if store {
			w.taskLen = 1
			*w.behind = *w
			w.behind.useStored()
		}
		if w.flat && (!w.pipelined || w.stream) {
			w.groupFlat()
			task = w.flatTask
		}
		w.parallel(ceilDiv(g.channels, w.taskLen), task)
		return
	}
	if do&takeSums != 0 {
		if g.layout == rows && w.flat && !w.pipelined && w.channelsSuffice() {
			w.groupFlat()
			w.parallel(ceilDiv(g.channels, w.groupLen), w.flatSumsTask)
		} else if g.layout == rows {
			w.parallel(g.channels*g.segments, w.statsTask)
		} else {
			w.parallel(g.segments*ceilDiv(g.width, w.spanLen), w.statsTask)
		}
		if store && w.useStored() {
			do &^= applyThem
		}
		w.finish(0, g.channels)
	}
	if do&applyThem != 0 {
		w.apply()
	}
}

// recomputeWidth is up to how many columns smooth activations take no longer to be
// computed again than gradients to be stored and read, of tensors whose outputs are
// stored past the caches. For more columns it takes longer: measured, on Zen 4.
const recomputeWidth = 512

// storesGradients reports whether the statistics phase is to leave
// g = dy*act'(z) in an output, so that the derivative, where it is costly, is
// computed once and not in both phases.
func (w *work) storesGradients() bool {
	if !w.backward || !w.p.act.costly() || w.fromY || w.gather != nil || w.y == nil {
		return false
	}
	out := w.dres
	if out == nil {
		out = w.y
		if w.geo.layout == cols && w.geo.width <= recomputeWidth && w.wantStream() {
			return false // it would have to come back from memory
		}
	}
	for _, in := range [][]float32{w.x, w.dy, w.res} {
		// The apply phase needs x. All of them are needed when the sums of a channel
		// have to be taken again.
		if in != nil && &out[0] == &in[0] {
			return false
		}
	}
	return !slices.Contains(w.channels.wide, true) // whose gradients kernels can't compute
}

// useStored goes on with the stored gradients: they take the place of dy, and
// nothing is left of the activation. It reports whether they are all that is
// wanted.
func (w *work) useStored() (done bool) {
	done = &w.dres[0] == &w.y[0] && w.onlyResidual
	w.dy, w.res, w.dres = w.dres, nil, nil
	w.store, w.stored = false, true
	return done
}

// channelsSuffice reports whether there are channels enough to keep all workers
// busy with whole channels.
func (w *work) channelsSuffice() bool {
	return w.p.workers == 1 || w.geo.segments == 1 || w.geo.channels >= 4*w.p.workers
}

// channelFits reports whether what is read of a channel is still in a cache, more
// or less, once its statistics are known.
func (w *work) channelFits() bool {
	return w.p.path == PathGeneric || 4*w.geo.outer*w.geo.inner*w.operands() <= w.p.schedule.fitBytes
}

// operands returns how many tensors a call reads.
func (w *work) operands() int {
	n := 0
	for _, t := range [][]float32{w.x, w.dy, w.res} {
		if t != nil {
			n++
		}
	}
	return n
}

// apply does the apply phase, once every channel is finished.
func (w *work) apply() {
	w.stream = w.wantStream()
	w.anyWide = w.anyWideOf(0, w.geo.channels)
	if g := w.geo; w.gather != nil {
		w.parallel(ceilDiv(g.outer*g.inner, w.gather.tile), w.applyTask)
	} else if w.flat && g.inner < lanes {
		w.groupFlat()
		w.parallel(ceilDiv(g.channels, w.groupLen), w.flatApplyTask)
	} else if g.layout == rows {
		w.parallel(ceilDiv(g.outer*g.channels, w.tileRows)*w.tilePieces, w.applyTask)
	} else {
		w.parallel(ceilDiv(g.height, w.tileRows), w.applyTask)
	}
}

func (w *work) wide(c int) bool {
	if w.backward {
		return w.channels.gradWide[c]
	}
	return w.channels.wide[c]
}

// anyWideOf reports whether one of the channels c0 to c1-1 is wide.
func (w *work) anyWideOf(c0, c1 int) bool {
	wide := w.channels.wide
	if w.backward {
		wide = w.channels.gradWide
	}
	return slices.Contains(wide[c0:c1], true)
}

// at points the kernel arguments at index i of the tensors.
func (w *work) at(k *kernelArgs, i int) {
	k.x, k.dy, k.res = tail(w.x, i), tail(w.dy, i), tail(w.res, i)
	k.y, k.dres = tail(w.y, i), tail(w.dres, i)
}

func tail(s []float32, i int) []float32 {
	if s == nil {
		return nil
	}
	return s[i:]
}

// sum, transform and both run the kernels of the call: those of the statistics
// phase, of the apply phase, and the pipelined ones that do both.
func (w *work) sum(k *kernelArgs) {
	if !w.store {
		k.dres = nil
	}
	w.kernel(kernelMoments, kernelGradSums, w.geo.layout, k)
}

func (w *work) transform(l layout, k *kernelArgs) {
	k.stream = w.stream && k.aligned()
	w.kernel(kernelNormalize, kernelInputGrad, l, k)
}

func (w *work) both(k *kernelArgs) {
	k.stream = w.stream && k.aligned()
	w.kernel(kernelPipeForward, kernelPipeBackward, rows, k)
}

func (w *work) kernel(forward, backward int, l layout, k *kernelArgs) {
	act := w.p.act
	if w.backward {
		forward = backward
		if w.fromY || w.stored {
			act = Identity // its part is in dy already
		}
	} else if forward == kernelMoments {
		act = Identity // moments don't depend on it
	}
	k.act = w.act
	w.p.path.run(forward, l, act, k)
}

// ---- rows

// group does both phases for a group of channels, so that their values are
// still in the cache for the second.
func (w *work) group(t int) {
	g := w.geo
	defer w.fence()
	c0 := t * w.taskLen
	c1 := min(c0+w.taskLen, g.channels)
	if w.pipelined && !w.store {
		w.pipe(c0, c1)
		return
	}
	for c := c0; c < c1; c++ {
		for seg := range g.segments {
			w.rowStats(c, seg, false)
		}
	}
	w.finish(c0, c1)
	apply := w
	if w.store {
		apply = w.behind
	}
	apply.transformGroup(c0, c1)
}

// transformGroup applies the constants of the channels c0 to c1-1.
func (w *work) transformGroup(c0, c1 int) {
	g := w.geo
	anyWide := w.anyWideOf(c0, c1)
	switch {
	case c1-c0 == 1:
		w.transformRows(c0, c0*g.inner, g.outer, g.channels*g.inner, g.inner, 0, anyWide)
	default:
		for o := range g.outer {
			w.transformRows(c0, (o*g.channels+c0)*g.inner, c1-c0, g.inner, g.inner, 1, anyWide)
		}
	}
}

func (w *work) rowStatsTask(t int) {
	w.rowStats(t/w.geo.segments, t%w.geo.segments, false)
}

// pipe does both phases for the channels c0 to c1-1: while it applies the
// constants of a channel, it takes the statistics of the next.
func (w *work) pipe(c0, c1 int) {
	g := w.geo
	for c := c0; c < c1; c++ {
		together := c > c0 && !w.wide(c-1)
		for seg := range g.segments {
			w.rowStats(c, seg, together)
		}
		if c > c0 && !together {
			w.transformChannel(c - 1)
		}
		w.finish(c, c+1)
	}
	w.transformChannel(c1 - 1)
}

func (w *work) transformChannel(c int) {
	g := w.geo
	w.transformRows(c, c*g.inner, g.outer, g.channels*g.inner, g.inner, 0, w.wide(c))
}

// How many values ahead of the sums memory is prefetched, of each tensor: in rows,
// where of one tensor more may be under way than of two, and in columns.
const (
	fetchForward  = 2048
	fetchBackward = 768
	fetchColumns  = 3072
)

func (w *work) fetchAhead() int {
	if w.backward {
		return fetchBackward
	}
	return fetchForward
}

// fetchFrom points the prefetching of rows at what lies some values ahead of a
// block's first, row o and value i: in the same row, in one further on, or, behind
// the last row, in the first ones of the next channel. next is where the block
// lies from what the kernel is pointed at.
func (w *work) fetchFrom(k *kernelArgs, o, i, next int) {
	g := w.geo
	ahead := i + w.fetchAhead()
	row := ahead / g.inner
	k.fetchLeft = g.inner - ahead%g.inner
	fetch := row*g.channels*g.inner + ahead%g.inner - i + next
	if o+row >= g.outer {
		fetch += g.inner - g.outer*g.channels*g.inner
	}
	k.fetch = 4 * fetch
}

// rowStats takes the statistics of a segment of a channel, and, when the channel
// before is to be applied too, does so.
func (w *work) rowStats(c, seg int, applyBefore bool) {
	g := w.geo
	var acc sums
	m := moment{}
	var total struct{ a, b float64 }
	var k kernelArgs
	k.acc = acc[:]
	// Where the statistics are, relative to what the kernel is pointed at.
	next := 0
	if applyBefore {
		next = g.inner
		k.next = next
		k.coef = w.coef[(c-1)*coefLen:]
	} else {
		k.coef = w.coef[c*coefLen:]
	}
	var shift [1]float32
	var buf *gatherBuf
	if w.gather != nil {
		buf = <-w.gather.bufs
	}
	b0, b1 := g.segment(seg)
	for b := b0; b < b1; b++ {
		o, count, i, n := g.rowBlock(b)
		at := (o*g.channels+c)*g.inner + i
		if buf != nil {
			w.load(&k, buf, c, i, n)
		} else {
			w.at(&k, at-next)
		}
		if !w.backward {
			if b == b0 {
				shift[0] = w.probe(tail(k.x, next), min(count, ceilDiv(probeLen, n)), min(n, probeLen))
			} else {
				shift[0] = -float32(m.mean)
			}
			if applyBefore {
				k.coef[coefLen+fieldN] = shift[0] // where minus the mean will be
			} else {
				k.coef = shift[:]
			}
		}
		k.rows, k.n, k.stride = count, n, g.channels*g.inner
		if n < g.inner { // a piece of a row: what the stride is for is to find the next row's values
			k.stride = n + (g.channels-1)*g.inner
		}
		if w.pipelined {
			w.fetchFrom(&k, o, i, next)
		} else {
			k.fetch, k.fetchLeft = g.inner*4, math.MaxInt // the next channel
		}
		acc = sums{}
		if applyBefore {
			w.both(&k)
		} else {
			w.sum(&k)
		}
		s, q := reduce((*[lanes]float32)(acc[:])), reduce((*[lanes]float32)(acc[lanes:]))
		if w.backward {
			total.a += s
			total.b += q
		} else {
			mean, m2 := blockMoment(float64(count*n), -float64(shift[0]), s, q)
			m.merge(float64(count*n), mean, m2)
		}
	}
	if !w.backward {
		total.a, total.b = m.mean, m.m2
	}
	at := seg*g.channels + c
	w.channels.partA[at], w.channels.partB[at] = total.a, total.b
	if buf != nil {
		w.gather.bufs <- buf
	}
}

// probe returns minus the mean of some rows of n values of a channel.
func (w *work) probe(x []float32, count, n int) float32 {
	var acc sums
	var zero [1]float32
	var k kernelArgs
	k.x, k.coef, k.acc = x, zero[:], acc[:]
	k.rows, k.n, k.stride = count, n, w.geo.channels*w.geo.inner
	w.sum(&k)
	return -float32(reduce((*[lanes]float32)(acc[:])) / float64(count*n))
}

func (w *work) rowApplyTask(t int) {
	g := w.geo
	defer w.fence()
	first, piece := t/w.tilePieces*w.tileRows, t%w.tilePieces
	last := min(first+w.tileRows, g.outer*g.channels)
	i := piece * maxCall
	n := g.inner
	if w.tilePieces > 1 {
		n = min(maxCall, g.inner-i)
	}
	for first < last {
		c := first % g.channels
		count := min(last-first, g.channels-c)
		w.transformRows(c, first*g.inner+i, count, g.inner, n, 1, w.anyWide)
		first += count
	}
}

// transformRows applies the call's second kernel to count rows of n values, the
// first of them at index i and of channel c; the next row's channel is step
// channels on.
func (w *work) transformRows(c, i, count, stride, n, step int, anyWide bool) {
	if anyWide {
		for r := range count {
			c, i := c+r*step, i+r*stride
			if w.wide(c) {
				w.transformWide(c, i, n, 1)
			} else {
				w.transformRows(c, i, 1, stride, n, 0, false)
			}
		}
		return
	}
	for p := 0; p < n; p += maxCall {
		m := min(maxCall, n-p)
		most := max(1, maxCall/m)
		adjacent := step == 1 && stride == m
		images := w.stream && !adjacent && m >= lanes // rows are taken for images of one row
		if images && (step != 0 || stride%lanes != 0) {
			most = 1 // they don't lie alike in vectors, or are of several channels
		}
		for r := 0; r < count; r += most {
			var k kernelArgs
			w.at(&k, i+r*stride+p)
			k.coef, k.coefStep = w.coef[(c+r*step)*coefLen:], step*coefLen
			k.rows, k.n, k.stride = min(most, count-r), m, stride
			switch {
			case images:
				k.more, k.rows, k.stride, k.imageGap = k.rows-1, 1, m, stride-m
				w.transformRuns(&k)
			case adjacent && m >= lanes:
				w.transformRuns(&k)
			default:
				w.transform(rows, &k)
			}
		}
	}
}

// ---- cols

func (w *work) colStatsTask(t int) {
	spans := ceilDiv(w.geo.width, w.spanLen)
	c := t % spans * w.spanLen
	w.colStats(t/spans, c, min(w.spanLen, w.geo.width-c))
}

// colStats takes the statistics of the columns c to c+n-1 of a segment.
func (w *work) colStats(seg, c, n int) {
	g := w.geo
	wide := roundUp(g.width, lanes)
	acc := w.acc[(seg*wide+c)*2:][:roundUp(n, lanes)*2]
	shift := w.shift[seg*wide+c:][:roundUp(n, lanes)]
	partA, partB := w.channels.partA[seg*g.width+c:][:n], w.channels.partB[seg*g.width+c:][:n]
	clear(partA)
	clear(partB)
	b0, b1 := g.segment(seg)
	if !w.backward {
		clear(shift)
		clear(acc)
		r0, r1 := g.colBlock(b0)
		r1 = min(r1, r0+probeRows)
		w.sumCols(acc, shift, c, r0, r1, n)
		w.p.path.probeColumns(acc, shift, float64(r1-r0))
	}
	seen := 0
	block := func(r0, r1, n int) {
		clear(acc)
		w.sumCols(acc, shift, c, r0, r1, n)
		if w.backward {
			w.p.path.addColumns(partA[:n], partB[:n], acc)
		} else {
			w.p.path.foldColumns(partA[:n], partB[:n], acc, shift, float64(seen), float64(r1-r0))
		}
		seen += r1 - r0
	}
	for b := b0; b < b1; b++ {
		r0, r1 := g.colBlock(b)
		block(r0, r1, n)
	}
	if rest := min(g.rest-c, n); b1 == g.blocks && rest > 0 {
		block(g.height, g.height+1, rest)
	}
}

// sumCols runs the call's first kernel over the rows r0 to r1-1 of n columns
// from column c.
func (w *work) sumCols(acc, shift []float32, c, r0, r1, n int) {
	g := w.geo
	values := maxCall // per call at most
	var buf *gatherBuf
	if w.gather != nil {
		buf, values = <-w.gather.bufs, gatherLen
	}
	for p := 0; p < n; p += values / groupSize {
		m := min(values/groupSize, n-p)
		most := max(groupSize, values/m/groupSize*groupSize) // whole groups, but for the last
		for r := r0; r < r1; r += most {
			var k kernelArgs
			k.stride = g.width
			if buf != nil {
				w.loadRows(&k, buf, r*g.width+c+p, min(most, r1-r), m)
			} else {
				w.at(&k, r*g.width+c+p)
			}
			k.acc = acc[2*p:]
			k.coef = shift[p:]
			if w.backward {
				k.coef = w.coef[(c+p)*coefLen:]
			}
			k.rows, k.n = min(most, r1-r), m
			// The last row of the next group is needed when its first is.
			k.fetch = 4 * (fetchColumns + (groupSize-1)*k.stride)
			w.sum(&k)
		}
	}
	if buf != nil {
		w.gather.bufs <- buf
	}
}

func (w *work) colApplyTask(t int) {
	g := w.geo
	defer w.fence()
	r0 := t * w.tileRows
	r1 := min(r0+w.tileRows, g.height)
	rest := 0
	if r1 == g.height {
		rest = g.rest
	}
	if w.anyWide {
		o0 := r0 * g.fold
		o1 := min(r1*g.fold+rest/g.channels, g.outer)
		for c := range g.channels {
			w.transformStrided(c, o0*g.channels+c, o1-o0, g.channels)
		}
		return
	}
	w.transformCols(r0*g.width, r1-r0, g.width)
	if rest > 0 {
		w.transformCols(g.height*g.width, 1, rest)
	}
}

// transformCols applies the call's second kernel to count rows of n columns
// from index i.
func (w *work) transformCols(i, count, n int) {
	const panel = 1024 // columns whose constants stay in the first-level cache
	together := count
	if !w.stream && w.rowsCollide() {
		together = 1
	}
	for p := 0; p < n; p += panel {
		for r := 0; r < count; r += together {
			var k kernelArgs
			w.at(&k, i+p+r*w.geo.width)
			k.coef = w.coef[p*coefLen:]
			k.rows, k.n, k.stride = together, min(panel, n-p), w.geo.width
			w.transform(cols, &k)
		}
	}
}

// rowsCollide reports whether a group of rows is so far apart that its lines have
// the same few places in a first-level cache, and push each other out before their
// second half is looked at. Tensors are taken to begin at the same place of a page.
func (w *work) rowsCollide() bool {
	if w.p.path != PathAVX2 {
		return false
	}
	const way, ways = 4096, 8 // of a first-level cache on amd64
	tensors := w.operands() + 1
	if w.dres != nil {
		tensors++
	}
	places := way / gcd(4*w.geo.width, way)
	return tensors*groupSize/min(places, groupSize) > ways
}

// ---- the slow ways, for channels whose numbers float32 can't hold

// transformStrided does what the second kernel does for count values of a
// channel, stride apart, whether it is wide or not.
func (w *work) transformStrided(c, i, count, stride int) {
	if w.wide(c) {
		w.transformWide(c, i, count, stride)
		return
	}
	var buf [5][chunk]float32
	gather := func(b int, s []float32, i, n int) []float32 {
		if s == nil {
			return nil
		}
		for j := range n {
			buf[b][j] = s[i+j*stride]
		}
		return buf[b][:n]
	}
	for ; count > 0; i, count = i+chunk*stride, count-chunk {
		n := min(chunk, count)
		k := kernelArgs{
			x: gather(0, w.x, i, n), dy: gather(1, w.dy, i, n), res: gather(2, w.res, i, n),
			y: buf[3][:n], rows: 1, n: n,
		}
		if w.fromY {
			w.invert(&k, n)
		}
		if w.dres != nil {
			k.dres = buf[4][:n]
		}
		var coef [coefLen]float32
		for f := range coef {
			coef[f] = w.channels.fields[f][c]
		}
		k.coef = coef[:]
		w.transform(rows, &k)
		for j := range n {
			w.y[i+j*stride] = k.y[j]
			if w.dres != nil {
				w.dres[i+j*stride] = k.dres[j]
			}
		}
	}
}

// transformWide is transformStrided in float64.
func (w *work) transformWide(c, i, count, stride int) {
	f, d := w.channels.affine(c), w.channels.gradient(c)
	for ; count > 0; i, count = i+stride, count-1 {
		if !w.backward {
			z := [1]float32{w.preActivation(c, i)}
			w.p.act.forward(z[:])
			w.y[i] = z[0]
			continue
		}
		g := w.gradAt(c, i)
		w.y[i] = d.dx(&f, g, w.xAt(i))
		if w.dres != nil {
			w.dres[i] = g
		}
	}
}

// preActivation returns z of the element at index i, with the bits that the
// forward pass gives it.
func (w *work) preActivation(c, i int) float32 {
	f := w.channels.affine(c)
	if f.wide {
		z := f.z(w.x[i])
		if w.res != nil {
			z += float64(w.res[i])
		}
		return float32(z)
	}
	z := float32((w.x[i]-f.m)*f.a) + f.b
	if w.res != nil {
		z += w.res[i]
	}
	return z
}

// gradAt returns g = dy*act'(z) of the element at index i.
func (w *work) gradAt(c, i int) float32 {
	if w.fromY {
		_, g := w.invertAt(i)
		return g
	}
	if w.p.act.kind == actIdentity || w.stored {
		return w.dy[i]
	}
	z := [1]float32{w.preActivation(c, i)}
	w.p.act.backward(z[:], w.dy[i:i+1])
	return z[0]
}

// exactMoment takes the moment of a channel in float64, in two passes.
func (w *work) exactMoment(c int) moment {
	sum := 0.0
	for i := range w.indices(c) {
		sum += float64(w.x[i])
	}
	m := moment{n: w.values, mean: sum / w.values}
	for i := range w.indices(c) {
		d := float64(w.x[i]) - m.mean
		m.m2 += float64(d * d)
	}
	return m
}

// exactGradSums takes the sums of g and of g*(x-m) of a channel in float64.
func (w *work) exactGradSums(c int) (p, r float64) {
	m := -float64(w.channels.fields[fieldN][c])
	for i := range w.indices(c) {
		g := float64(w.gradAt(c, i))
		p += g
		r += float64(g * (float64(w.xAt(i)) - m))
	}
	return p, r
}

// xAt returns x of the element at index i.
func (w *work) xAt(i int) float32 {
	if w.fromY {
		x, _ := w.invertAt(i)
		return x
	}
	return w.x[i]
}

// indices yields the indices of a channel's values, in order.
func (w *work) indices(c int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		if w.gather != nil {
			w.gather.indices(c, yield)
			return
		}
		g := w.geo
		for o := range g.outer {
			at := (o*g.channels + c) * g.inner
			for i := at; i < at+g.inner; i++ {
				if !yield(i) {
					return
				}
			}
		}
	}
}

func roundUp(n, m int) int { return (n + m - 1) / m * m }
