package batchnorm

// work is the state of one call: its operands, the scratch memory, and the
// tasks that the workers share. A call has a statistics phase, whose results
// are finished channel by channel, and an apply phase; either may be cut in any
// way and run in any order without an effect on the result.
type work struct {
	p          *Plan
	geo        *geometry
	kernelArgs      // whole tensors, and the coef of all channels
	backward   bool // gradSums and inputGrad instead of moments and normalize

	gamma, beta []float32
	channels    []channel
	anyWide     bool

	parts []part    // results of segments: rows [channel][segment], cols [segment][column]
	shift []float32 // cols: the shift K, [segment][column]

	// Tasks bound once, because binding allocates.
	groupTask, statsTask, applyTask func(int)
	// How the current call is cut into tasks.
	groupLen   int // rows: channels per group task
	spanLen    int // cols: columns per statistics task
	tileRows   int // rows of the tensor per apply task
	tilePieces int // apply tasks per row, when a row is long

	loop loop
}

// channel is what is known of a channel during a call.
type channel struct {
	mean, variance, invstd float64
	affine                 affine
	grad                   gradient
}

// part is the result of a segment: mean and m2 of a moment, or the sums P and R.
type part struct{ a, b float64 }

func newWork(p *Plan) *work {
	g := &p.geo
	w := &work{p: p, geo: g, channels: make([]channel, g.channels)}
	if g.layout == rows {
		w.coef = make([]float32, g.channels*coefLen)
		w.parts = make([]part, g.channels*g.segments)
	} else {
		wide := roundUp(g.width, lanes)
		w.coef = make([]float32, wide*coefLen)
		w.parts = make([]part, g.segments*g.width)
		w.shift = make([]float32, g.segments*wide)
		w.acc = make([]float32, g.segments*wide*2)
	}
	w.loop.body = w.loop.work
	w.groupTask = w.group
	if g.layout == rows {
		w.statsTask = w.rowStatsTask
		w.applyTask = w.rowApplyTask
	} else {
		w.statsTask = w.colStatsTask
		w.applyTask = w.colApplyTask
	}
	w.cut()
	return w
}

// cut decides how the phases are cut into tasks.
func (w *work) cut() {
	g, workers := w.geo, w.p.workers
	if g.layout == rows {
		// As many channels as keep their values in half of the cache between
		// the two phases, but tasks enough for the workers.
		bytes := 4 * g.outer * g.inner // of one operand
		w.groupLen = max(1, min(cacheL2/2/max(1, bytes), g.channels/(4*workers)))
		w.tilePieces = ceilDiv(g.inner, maxCall)
		w.tileRows = max(1, maxCall/g.inner)
		return
	}
	// Columns are cut only when the segments are too few for the workers.
	w.spanLen = g.width
	if want := ceilDiv(2*workers, max(1, g.segments)); workers > 1 && want > 1 {
		w.spanLen = max(64, roundUp(ceilDiv(g.width, want), lanes))
	}
	w.tilePieces = 1
	w.tileRows = max(1, maxCall/g.width)
	if workers > 1 {
		w.tileRows = max(1, min(w.tileRows, g.height/(4*workers)))
	}
}

// run does both phases.
func (w *work) run() {
	g := w.geo
	if g.layout == rows && w.channelsSuffice() {
		w.parallel(ceilDiv(g.channels, w.groupLen), w.groupTask)
		return
	}
	if g.layout == rows {
		w.parallel(g.channels*g.segments, w.statsTask)
	} else {
		w.parallel(g.segments*ceilDiv(g.width, w.spanLen), w.statsTask)
	}
	for c := range w.channels {
		w.finish(c)
	}
	w.apply()
}

// channelsSuffice reports whether there are channels enough to keep all workers
// busy with whole channels.
func (w *work) channelsSuffice() bool {
	return w.p.workers == 1 || w.geo.segments == 1 || w.geo.channels >= 4*w.p.workers
}

// apply does the apply phase, once every channel is finished.
func (w *work) apply() {
	w.anyWide = false
	for c := range w.channels {
		w.anyWide = w.anyWide || w.wide(c)
	}
	if g := w.geo; g.layout == rows {
		w.parallel(ceilDiv(g.outer*g.channels, w.tileRows)*w.tilePieces, w.applyTask)
	} else {
		w.parallel(ceilDiv(g.height, w.tileRows), w.applyTask)
	}
}

func (w *work) wide(c int) bool {
	if w.backward {
		return w.channels[c].grad.wide
	}
	return w.channels[c].affine.wide
}

// from returns the kernel arguments for what begins at index i of the tensors.
func (w *work) from(i int) kernelArgs {
	return kernelArgs{
		x: tail(w.x, i), dy: tail(w.dy, i), res: tail(w.res, i),
		y: tail(w.y, i), dres: tail(w.dres, i),
	}
}

func tail(s []float32, i int) []float32 {
	if s == nil {
		return nil
	}
	return s[i:]
}

// sum and transform are the two kernels of the call.
func (w *work) sum(k *kernelArgs) {
	if w.backward {
		w.p.path.gradSums(w.geo.layout, w.p.act.kind, k)
	} else {
		w.p.path.moments(w.geo.layout, k)
	}
}

func (w *work) transform(l layout, k *kernelArgs) {
	if w.backward {
		w.p.path.inputGrad(l, w.p.act.kind, k)
	} else {
		w.p.path.normalize(l, w.p.act.kind, k)
	}
}

// ---- rows

// group does both phases for a group of channels, so that their values are
// still in the cache for the second.
func (w *work) group(t int) {
	g := w.geo
	c0 := t * w.groupLen
	c1 := min(c0+w.groupLen, g.channels)
	anyWide := false
	for c := c0; c < c1; c++ {
		for seg := range g.segments {
			w.rowStats(c, seg)
		}
		w.finish(c)
		anyWide = anyWide || w.wide(c)
	}
	if c1-c0 == 1 {
		w.transformRows(c0, c0*g.inner, g.outer, g.channels*g.inner, g.inner, 0, anyWide)
		return
	}
	for o := range g.outer {
		w.transformRows(c0, (o*g.channels+c0)*g.inner, c1-c0, g.inner, g.inner, 1, anyWide)
	}
}

func (w *work) rowStatsTask(t int) {
	w.rowStats(t/w.geo.segments, t%w.geo.segments)
}

// rowStats takes the statistics of a segment of a channel.
func (w *work) rowStats(c, seg int) {
	g := w.geo
	var acc sums
	var shift [1]float32
	m := moment{}
	total := part{}
	b0, b1 := g.segment(seg)
	for b := b0; b < b1; b++ {
		o, count, i, n := g.rowBlock(b)
		k := w.from((o*g.channels+c)*g.inner + i)
		k.rows, k.n, k.stride = count, n, g.channels*g.inner
		k.acc = acc[:]
		if w.backward {
			k.coef = w.coef[c*coefLen:]
		} else {
			k.coef = shift[:]
			if b == b0 {
				k.rows, k.n = min(count, ceilDiv(probeLen, n)), min(n, probeLen)
				w.sum(&k)
				shift[0] = float32(reduce((*[lanes]float32)(acc[:])) / float64(k.rows*k.n))
				k.rows, k.n = count, n
			} else {
				shift[0] = float32(m.mean)
			}
		}
		acc = sums{}
		w.sum(&k)
		s, q := reduce((*[lanes]float32)(acc[:])), reduce((*[lanes]float32)(acc[lanes:]))
		if w.backward {
			total.a += s
			total.b += q
		} else {
			m.merge(blockMoment(float64(count*n), float64(shift[0]), s, q))
		}
	}
	if !w.backward {
		total = part{m.mean, m.m2}
	}
	w.parts[c*g.segments+seg] = total
}

// rowCount returns how many values segment seg of a channel has.
func (g *geometry) rowCount(seg int) int {
	b0, b1 := g.segment(seg)
	return g.before(b1) - g.before(b0)
}

// before returns how many values of a channel lie before block b.
func (g *geometry) before(b int) int {
	if b == g.blocks {
		return g.outer * g.inner
	}
	o, _, i, _ := g.rowBlock(b)
	return o*g.inner + i
}

func (w *work) rowApplyTask(t int) {
	g := w.geo
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
		for r := 0; r < count; r += most {
			k := w.from(i + r*stride + p)
			k.coef, k.coefStep = w.coef[(c+r*step)*coefLen:], step*coefLen
			k.rows, k.n, k.stride = min(most, count-r), m, stride
			w.transform(rows, &k)
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
	parts := w.parts[seg*g.width+c:][:n]
	clear(parts)
	b0, b1 := g.segment(seg)
	if !w.backward {
		clear(shift)
		clear(acc)
		r0, r1 := g.colBlock(b0)
		r1 = min(r1, r0+probeRows)
		w.sumCols(acc, shift, c, r0, r1, n)
		count := float64(r1 - r0)
		for j := range shift {
			shift[j] = float32(float64(acc[j/lanes*2*lanes+j%lanes]) / count)
		}
	}
	seen := 0
	block := func(r0, r1, n int) {
		clear(acc)
		w.sumCols(acc, shift, c, r0, r1, n)
		for j := range n {
			s := float64(acc[j/lanes*2*lanes+j%lanes])
			q := float64(acc[j/lanes*2*lanes+j%lanes+lanes])
			if w.backward {
				parts[j].a += s
				parts[j].b += q
				continue
			}
			m := moment{float64(seen), parts[j].a, parts[j].b}
			m.merge(blockMoment(float64(r1-r0), float64(shift[j]), s, q))
			parts[j] = part{m.mean, m.m2}
			shift[j] = float32(m.mean)
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
	for p := 0; p < n; p += maxCall / groupSize {
		m := min(maxCall/groupSize, n-p)
		most := max(groupSize, maxCall/m/groupSize*groupSize) // whole groups, but for the last
		for r := r0; r < r1; r += most {
			k := w.from(r*g.width + c + p)
			k.acc = acc[2*p:]
			k.coef = shift[p:]
			if w.backward {
				k.coef = w.coef[(c+p)*coefLen:]
			}
			k.rows, k.n, k.stride = min(most, r1-r), m, g.width
			w.sum(&k)
		}
	}
}

func (w *work) colApplyTask(t int) {
	g := w.geo
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
	w.transformCols(r0, r1-r0, g.width)
	if rest > 0 {
		w.transformCols(g.height, 1, rest)
	}
}

// transformCols applies the call's second kernel to count rows of n columns.
func (w *work) transformCols(r, count, n int) {
	for p := 0; p < n; p += maxCall {
		k := w.from(r*w.geo.width + p)
		k.coef = w.coef[p*coefLen:]
		k.rows, k.n, k.stride = count, min(maxCall, n-p), w.geo.width
		w.transform(cols, &k)
	}
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
		if w.dres != nil {
			k.dres = buf[4][:n]
		}
		var coef [coefLen]float32
		for f := range coef {
			coef[f] = w.coef[w.coefIndex(c, f)]
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
	ch := &w.channels[c]
	for ; count > 0; i, count = i+stride, count-1 {
		if !w.backward {
			z := [1]float32{w.preActivation(c, i)}
			w.p.act.kind.forward(z[:])
			w.y[i] = z[0]
			continue
		}
		g := w.gradAt(c, i)
		w.y[i] = ch.grad.dx(g, w.x[i])
		if w.dres != nil {
			w.dres[i] = g
		}
	}
}

// preActivation returns z of the element at index i, with the bits that the
// forward pass gives it.
func (w *work) preActivation(c, i int) float32 {
	f := &w.channels[c].affine
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
	if w.p.act.kind == actIdentity {
		return w.dy[i]
	}
	z := [1]float32{w.preActivation(c, i)}
	w.p.act.kind.backward(z[:], w.dy[i:i+1])
	return z[0]
}

// exactMoment takes the moment of a channel in float64, in two passes.
func (w *work) exactMoment(c int) moment {
	n := w.geo.outer * w.geo.inner
	sum := 0.0
	for i := range n {
		sum += float64(w.x[w.geo.index(c, i)])
	}
	m := moment{n: float64(n), mean: sum / float64(n)}
	for i := range n {
		d := float64(w.x[w.geo.index(c, i)]) - m.mean
		m.m2 += float64(d * d)
	}
	return m
}

// exactGradSums takes the sums of g and of g*(x-m) of a channel in float64.
func (w *work) exactGradSums(c int) (p, r float64) {
	m := float64(w.channels[c].affine.m)
	for i := range w.geo.outer * w.geo.inner {
		at := w.geo.index(c, i)
		g := float64(w.gradAt(c, at))
		p += g
		r += float64(g * (float64(w.x[at]) - m))
	}
	return p, r
}

// ---- channels

// finish turns the results of a channel's segments into its constants.
func (w *work) finish(c int) {
	if w.backward {
		w.finishGrad(c)
	} else {
		w.finishMoment(c)
	}
}

func (w *work) finishMoment(c int) {
	ch := &w.channels[c]
	var m moment
	w.eachPart(c, func(n int, p part) {
		m.merge(moment{float64(n), p.a, p.b})
	})
	if !sumsAreSafe(m.m2/m.n, w.p.epsilon) {
		m = w.exactMoment(c)
	}
	ch.mean = m.mean
	ch.variance = m.m2 / m.n
	if ch.variance < 0 { // rounding; NaN stays
		ch.variance = 0
	}
	ch.invstd = invStd(ch.variance, w.p.epsilon)
	w.setAffine(c)
}

func (w *work) finishGrad(c int) {
	ch := &w.channels[c]
	var s part
	w.eachPart(c, func(_ int, p part) {
		s.a += p.a
		s.b += p.b
	})
	n := float64(w.geo.outer * w.geo.inner)
	if ch.affine.wide || !gradSumsAreSafe(s.a, s.b, n, ch.invstd) {
		s.a, s.b = w.exactGradSums(c)
	}
	ch.grad = newGradient(ch.affine, ch.invstd, s.a, s.b, n)
	w.setCoef(c, fieldK1, float32(ch.grad.k1))
	w.setCoef(c, fieldK2, float32(ch.grad.k2))
}

// eachPart calls f for the parts of a channel in their fixed order.
func (w *work) eachPart(c int, f func(n int, p part)) {
	g := w.geo
	if g.layout == rows {
		for seg := range g.segments {
			f(g.rowCount(seg), w.parts[c*g.segments+seg])
		}
		return
	}
	for j := c; j < g.width; j += g.channels {
		for seg := range g.segments {
			f(g.colCount(seg, j), w.parts[seg*g.width+j])
		}
	}
}

// setAffine derives the constants of z from the channel's statistics.
func (w *work) setAffine(c int) {
	ch := &w.channels[c]
	s, b := 1.0, 0.0
	if w.gamma != nil {
		s = float64(w.gamma[c])
	}
	if w.beta != nil {
		b = float64(w.beta[c])
	}
	ch.affine = newAffine(ch.mean, ch.invstd, s, b)
	w.setCoef(c, fieldM, ch.affine.m)
	w.setCoef(c, fieldA, ch.affine.a)
	w.setCoef(c, fieldB, ch.affine.b)
}

// setCoef sets a constant of a channel, in every column that it has.
func (w *work) setCoef(c, field int, v float32) {
	if w.geo.layout == rows {
		w.coef[w.coefIndex(c, field)] = v
		return
	}
	for j := c; j < w.geo.width; j += w.geo.channels {
		w.coef[w.coefIndex(j, field)] = v
	}
}

func (w *work) coefIndex(c, field int) int {
	if w.geo.layout == rows {
		return c*coefLen + field
	}
	return c/lanes*lanes*coefLen + field*lanes + c%lanes
}

func roundUp(n, m int) int { return (n + m - 1) / m * m }
