package batchnorm

import (
	"math"
	"slices"
)

// channels holds the numbers of a call per channel: an array for each number, so that
// a vector holds eight channels.
type channels struct {
	mean, variance, invstd []float64
	scale, shift           []float64          // gamma*invstd, and beta where the channel is wide
	wide                   []bool             // see affine
	power                  []int              // of x, where wide is set
	dgamma, dbeta          []float64          //
	k1, k2                 []float64          // where gradWide is set
	gradWide               []bool             // dx needs scaled values
	powerX, powerG         []int              // of these
	flag                   []bool             // the channel's sums are looked at
	extent                 []uint32           // of a flagged channel: the bits of the largest magnitude
	fields                 [coefLen][]float32 // the constants of the kernels, of as many columns as there are
	ones, zeros            []float32          // stand for gamma and beta that were not given

	// The results of the statistics phase: forward the mean and m2 of a moment,
	// backward the sums P and R. partA and partB have them for each segment, one
	// after the other; sumA and sumB are the merged totals per channel.
	partA, partB []float64
	sumA, sumB   []float64
}

// newChannels makes room for n channels, in cols of some more columns, and for so
// many parts of each.
func newChannels(n, columns, parts int) channels {
	float64s := func(n int) []float64 { return make([]float64, n) }
	ch := channels{
		mean: float64s(n), variance: float64s(n), invstd: float64s(n), scale: float64s(n), shift: float64s(n),
		wide:   make([]bool, n),
		dgamma: float64s(n), dbeta: float64s(n), k1: float64s(n), k2: float64s(n),
		gradWide: make([]bool, n), power: make([]int, n), powerX: make([]int, n), powerG: make([]int, n),
		flag: make([]bool, n), extent: make([]uint32, n),
		ones: slices.Repeat([]float32{1}, n), zeros: make([]float32, n),
		partA: float64s(parts * columns), partB: float64s(parts * columns),
		sumA: float64s(n), sumB: float64s(n),
	}
	for f := range ch.fields {
		ch.fields[f] = make([]float32, roundUp(columns, lanes))
	}
	return ch
}

// channelArgs are the arguments of the kernels that compute with channels, a
// multiple of 8 of them; each uses the arrays that its description names.
type channelArgs struct {
	n                     int
	count, weight, cross  float64
	epsilon               float64
	acc, shift            []float32
	sums                  []float64
	gamma, beta           []float32
	neg, a, b, k1, k2     []float32
	running, runningVar   []float32
	mean, variance        []float64
	invstd, scale, dgamma []float64
	sumA, sumB            []float64
	otherA, otherB        []float64
	usual                 [lanes]uint64 // by lane: all ones when no channel is unusual
}

// The kernels that compute with channels, in float64. They do the same as the
// functions of stats.go, for channels whose numbers are usual. When a channel is not,
// they report it, and their caller computes all results again by those functions.
const (
	// channelFold merges the sums of a block into the moments of its segment:
	//
	//	mean, m2 := blockMoment(count, -shift, S, Q)
	//	sumA, sumB = mergeMoment(sumA, sumB, mean, m2, weight, cross)
	//	shift = -float32(sumA)
	//
	// acc has a record of 8 S and 8 Q for 8 channels.
	channelFold = iota

	// channelReduce sums the lanes of each of 8 channels, which acc has a record of
	// sumRecord floats for that begins with them: otherA, otherB = reduce(S), reduce(Q).
	channelReduce

	// channelFoldReduced is channelFold with otherA and otherB in the places of S
	// and Q.
	channelFoldReduced

	// channelProbe takes the mean of count values alone from sums of acc, for the
	// first shift: shift = -float32(S/count).
	channelProbe

	// channelAdd adds sums of acc: sumA += P, sumB += R.
	channelAdd

	// channelMerge is sumA, sumB = mergeMoment(sumA, sumB, otherA, otherB, weight, cross).
	channelMerge

	// channelDeviation turns sumB, a sum of squared deviations of count values,
	// into variance and invstd. A variance that can't be relied on is unusual.
	channelDeviation

	// channelRunning sets mean and invstd from running and runningVar.
	channelRunning

	// channelAffine is affine.set, from mean, invstd, gamma and beta to scale and
	// the constants neg (minus m), a and b. What is wide is unusual.
	channelAffine

	// channelGradient is gradient.set, from sumA, sumB, mean, invstd and count to
	// dgamma, k1 and k2. What is wide is unusual, and sums that can't be relied on.
	channelGradient

	// channelTrack is running = (1-weight)*running + weight*(mean*count), for a
	// weight below 1.
	channelTrack
)

// mostChannels is how many channels go through the steps together. An unusual one sends
// all of them through the slower functions.
const mostChannels = 128

// whole returns how many of n channels vectors hold, if there are vectors.
func (p Path) whole(n int) int {
	if p == PathGeneric || raceEnabled { // which sees into Go only
		return 0
	}
	return n &^ (lanes - 1)
}

// run runs a kernel on the channels, and reports whether all are usual.
func (a *channelArgs) run(kernel int) bool {
	for i := range a.usual {
		a.usual[i] = math.MaxUint64
	}
	simdChannels(kernel, a)
	all := a.usual[0]
	for _, u := range a.usual[1:] {
		all &= u
	}
	return all == math.MaxUint64
}

// ---- the statistics phase

// foldColumns merges the sums of columns, of count values each, with the moments
// of before values in sumA and sumB, and sets the shifts to minus the means so far.
func (p Path) foldColumns(sumA, sumB []float64, acc, shift []float32, before, count float64) {
	weight := count / (before + count)
	cross := before * weight
	n := len(sumA)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, sumA: sumA, sumB: sumB, acc: acc, shift: shift, count: count, weight: weight, cross: cross}
		k.run(channelFold)
	}
	for c := v; c < n; c++ {
		a := (*laneSums)(acc[c/lanes*2*lanes:])
		foldChannel(sumA, sumB, shift, c, float64(a[c%lanes]), float64(a[c%lanes+lanes]), count, weight, cross)
	}
}

// reduceLanes sums the lanes of len(a) channels.
func (p Path) reduceLanes(a, b, sums []float64) {
	n := len(a)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, sums: sums, otherA: a, otherB: b}
		k.run(channelReduce)
	}
	for c := v; c < n; c++ {
		a[c], b[c] = reduce(sums[c*sumLen:]), reduce(sums[c*sumLen+lanes:])
	}
}

// foldChannel merges the sums of a window with the moment of a channel.
func foldChannel(sumA, sumB []float64, shift []float32, c int, s, q, count, weight, cross float64) {
	mean, m2 := blockMoment(count, -float64(shift[c]), s, q)
	sumA[c], sumB[c] = mergeMoment(sumA[c], sumB[c], mean, m2, weight, cross)
	shift[c] = shiftFor(sumA[c])
}

// foldReduced is foldColumns for sums of all lanes.
func (p Path) foldReduced(sumA, sumB, s, q []float64, shift []float32, before, count float64) {
	weight := count / (before + count)
	cross := before * weight
	n := len(sumA)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, sumA: sumA, sumB: sumB, otherA: s, otherB: q, shift: shift, count: count, weight: weight, cross: cross}
		k.run(channelFoldReduced)
	}
	for c := v; c < n; c++ {
		foldChannel(sumA, sumB, shift, c, s[c], q[c], count, weight, cross)
	}
}

// probeColumns sets the shifts to minus the means of count values, from their sums.
func (p Path) probeColumns(acc, shift []float32, count float64) {
	n := len(shift)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, acc: acc, shift: shift, count: count}
		k.run(channelProbe)
	}
	for c := v; c < n; c++ {
		shift[c] = shiftFor(float64(acc[c/lanes*2*lanes+c%lanes]) / count)
	}
}

// addColumns adds the sums of columns to theirs so far.
func (p Path) addColumns(sumA, sumB []float64, acc []float32) {
	n := len(sumA)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, sumA: sumA, sumB: sumB, acc: acc}
		k.run(channelAdd)
	}
	for c := v; c < n; c++ {
		a := (*laneSums)(acc[c/lanes*2*lanes:])
		sumA[c] += float64(a[c%lanes])
		sumB[c] += float64(a[c%lanes+lanes])
	}
}

// mergeMoments merges moments, with the weights of [mergeMoment].
func (p Path) mergeMoments(sumA, sumB, otherA, otherB []float64, weight, cross float64) {
	n := len(sumA)
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, sumA: sumA, sumB: sumB, otherA: otherA, otherB: otherB, weight: weight, cross: cross}
		k.run(channelMerge)
	}
	for c := v; c < n; c++ {
		sumA[c], sumB[c] = mergeMoment(sumA[c], sumB[c], otherA[c], otherB[c], weight, cross)
	}
}

// total puts the parts of the channels c0 to c1-1 together, in their fixed order.
func (w *workspace) total(c0, c1 int) {
	g, ch := w.geo, &w.channels
	sumA, sumB := ch.sumA[c0:c1], ch.sumB[c0:c1]
	seen := 0.0
	for j := 0; j < g.columns(); j += g.channels * g.unit {
		for u := range g.unit {
			for seg := range g.segments {
				n := float64(g.segmentLen(seg))
				if g.layout == cols && seg == g.segments-1 && j < g.rest {
					n++
				}
				w.merge(sumA, sumB, seg*g.columns()+j+c0*g.unit+u, seen, n)
				seen += n
			}
		}
	}
}

// merge merges results of a segment, of n values, with those of the values before. The
// first of them is at index at, and the next g.unit on.
func (w *workspace) merge(sumA, sumB []float64, at int, seen, n float64) {
	ch, unit := &w.channels, w.geo.unit
	weight := n / (seen + n)
	cross := seen * weight
	if unit == 1 && !w.backward && seen > 0 {
		w.plan.path.mergeMoments(sumA, sumB, ch.partA[at:at+len(sumA)], ch.partB[at:at+len(sumB)], weight, cross)
		return
	}
	for c := range sumA {
		a, b := ch.partA[at+c*unit], ch.partB[at+c*unit]
		switch {
		case seen == 0:
			sumA[c], sumB[c] = a, b
		case w.backward:
			sumA[c] += a
			sumB[c] += b
		default:
			sumA[c], sumB[c] = mergeMoment(sumA[c], sumB[c], a, b, weight, cross)
		}
	}
}

// ---- channels

// finish turns the results of the segments of the channels c0 to c1-1 into their
// constants.
func (w *workspace) finish(c0, c1 int) {
	w.total(c0, c1)
	for c := c0; c < c1; c += mostChannels {
		last := min(c+mostChannels, c1)
		if w.backward {
			w.setGrads(c, last, true)
		} else {
			w.finishMoments(c, last)
			w.setAffines(c, last)
		}
	}
	if w.backward {
		w.spread(c0, c1, fieldK1, fieldK2)
	} else {
		w.spread(c0, c1, fieldN, fieldB)
	}
}

// finishMoments sets the statistics of channels from their moments.
func (w *workspace) finishMoments(c0, c1 int) {
	ch := &w.channels
	v := w.plan.path.whole(c1 - c0)
	if v > 0 {
		k := channelArgs{n: v, count: w.values, epsilon: w.plan.epsilon, sumB: ch.sumB[c0:], variance: ch.variance[c0:], invstd: ch.invstd[c0:]}
		if !k.run(channelDeviation) {
			v = 0
		}
	}
	if c0+v < c1 {
		w.momentsAgain(c0+v, c1)
	}
	for c := c0 + v; c < c1; c++ {
		ch.variance[c] = populationVariance(ch.sumB[c], w.values)
		ch.invstd[c] = invStd(ch.variance[c], w.plan.epsilon)
	}
	copy(ch.mean[c0:c1], ch.sumA[c0:])
	if w.m2 != nil {
		copy(w.m2[c0:c1], ch.sumB[c0:])
	}
}

// setAll sets the constants of z of all channels from mean and invstd.
func (w *workspace) setAll() {
	n := w.geo.channels
	for c := 0; c < n; c += mostChannels {
		w.setAffines(c, min(c+mostChannels, n))
	}
	w.spread(0, n, fieldN, fieldB)
}

// setAffines derives the constants of z from the statistics of channels.
func (w *workspace) setAffines(c0, c1 int) {
	ch := &w.channels
	v := w.plan.path.whole(c1 - c0)
	if w.renorm.r != nil {
		v = 0
	}
	if v > 0 {
		gamma, beta := w.gamma, w.beta
		if gamma == nil {
			gamma = ch.ones
		}
		if beta == nil {
			beta = ch.zeros
		}
		f := &ch.fields
		k := channelArgs{n: v, mean: ch.mean[c0:], invstd: ch.invstd[c0:], gamma: gamma[c0:], beta: beta[c0:],
			scale: ch.scale[c0:], neg: f[fieldN][c0:], a: f[fieldA][c0:], b: f[fieldB][c0:]}
		if k.run(channelAffine) {
			clear(ch.wide[c0 : c0+v])
		} else {
			v = 0
		}
	}
	for c := c0 + v; c < c1; c++ {
		if w.renorm.rmax != 0 {
			w.renorm.set(c, ch.mean[c], ch.variance[c], w.plan.epsilon)
		}
		w.setAffine(c)
	}
}

// setAffine derives the constants of z of a channel from its statistics.
func (w *workspace) setAffine(c int) {
	s, b := 1.0, 0.0
	if w.gamma != nil {
		s = float64(w.gamma[c])
	}
	if w.beta != nil {
		b = float64(w.beta[c])
	}
	if w.renorm.r != nil {
		r, d := w.renorm.r[c], w.renorm.d[c]
		if d != 0 { // or -0 would become +0
			b += float64(s * d)
		}
		s *= r
	}
	var f affine
	f.set(w.channels.mean[c], w.channels.invstd[c], s, b)
	w.channels.setAffine(c, &f)
}

func (ch *channels) setAffine(c int, f *affine) {
	ch.scale[c], ch.shift[c], ch.wide[c], ch.power[c] = f.scale, f.beta, f.wide, f.power
	ch.fields[fieldN][c], ch.fields[fieldA][c], ch.fields[fieldB][c] = -f.m, f.a, f.b
}

// affine returns what setAffine was given, but for beta where the channel is not
// wide.
func (ch *channels) affine(c int) affine {
	f := affine{mean: ch.mean[c], scale: ch.scale[c],
		m: -ch.fields[fieldN][c], a: ch.fields[fieldA][c], b: ch.fields[fieldB][c], wide: ch.wide[c]}
	if f.wide {
		f.beta, f.power = ch.shift[c], ch.power[c]
	}
	return f
}

// setGrads derives the constants of dx from the sums of g and of g*(x-m) in sumA
// and sumB. Of sums that are to be checked, those that can't be relied on are
// taken again.
func (w *workspace) setGrads(c0, c1 int, check bool) {
	ch := &w.channels
	v := w.plan.path.whole(c1 - c0)
	if v > 0 && slices.Contains(ch.wide[c0:c0+v], true) {
		v = 0
	}
	if v > 0 {
		k := channelArgs{n: v, count: w.values, sumA: ch.sumA[c0:], sumB: ch.sumB[c0:], mean: ch.mean[c0:], invstd: ch.invstd[c0:],
			dgamma: ch.dgamma[c0:], k1: ch.fields[fieldK1][c0:], k2: ch.fields[fieldK2][c0:], weight: w.trusted()}
		if k.run(channelGradient) {
			copy(ch.dbeta[c0:c0+v], ch.sumA[c0:])
			clear(ch.gradWide[c0 : c0+v])
		} else {
			v = 0
		}
	}
	if c0+v < c1 {
		w.gradientsAgain(c0+v, c1, check)
	}
	for c := c0 + v; c < c1; c++ {
		f := ch.affine(c)
		var d gradient
		d.set(&f, ch.invstd[c], ch.sumA[c], ch.sumB[c], w.values)
		ch.dgamma[c], ch.dbeta[c] = d.dgamma, d.dbeta
		ch.k1[c], ch.k2[c] = d.k1, d.k2
		ch.gradWide[c] = f.wide || d.wide && ch.needsCare(c)
		ch.fields[fieldK1][c], ch.fields[fieldK2][c] = float32(d.k1), float32(d.k2)
	}
	if w.sumG != nil {
		copy(w.sumG[c0:c1], ch.sumA[c0:])
		copy(w.sumGD[c0:c1], ch.sumB[c0:])
	}
	if w.frozen {
		ch.constantStatistics(c0, c1)
	}
}

// trusted is up to which magnitude sums of g are taken to be exact: 0, or none at all.
func (w *workspace) trusted() float64 {
	if w.trust {
		return 0
	}
	return -1
}

// needsCare reports whether dx of a channel that is not wide needs scaled values, whose
// constants are outside of float32's comfortable range: not if they are only small, for
// gradients and deviations that are not, nor if some gradients are no numbers or all
// are 0.
func (ch *channels) needsCare(c int) bool {
	e := ch.extent[c]
	if e == 0 || e >= infinite {
		return false
	}
	return !comfortable(e) || wild(ch.invstd[c], tameMin, tameMax) || math.Abs(ch.k1[c]) > sureMax || math.Abs(ch.k2[c]) > sureMax
}

// scaledGradient returns the constants of dx of a channel as its values are to be
// scaled.
func (ch *channels) scaledGradient(c int, frozen bool) scaledGradient {
	if !ch.gradWide[c] {
		return scaledGradient{m: -ch.fields[fieldN][c], a: ch.fields[fieldA][c], k1: ch.fields[fieldK1][c], k2: ch.fields[fieldK2][c]}
	}
	f := ch.affine(c)
	d := gradient{k1: ch.k1[c], k2: ch.k2[c]}
	return d.scaled(&f, ch.powerX[c], ch.powerG[c])
}

// constantStatistics removes the share of the statistics from dx.
func (ch *channels) constantStatistics(c0, c1 int) {
	clear(ch.k1[c0:c1])
	clear(ch.k2[c0:c1])
	clear(ch.fields[fieldK1][c0:c1])
	clear(ch.fields[fieldK2][c0:c1])
	copy(ch.gradWide[c0:c1], ch.wide[c0:c1])
}

// noSums is for a backward pass whose sums nobody wants.
func (w *workspace) noSums() {
	n := w.geo.channels
	w.channels.constantStatistics(0, n)
	w.spread(0, n, fieldK1, fieldK2)
}

// spread copies the fields from first to last of the channels c0 to c1-1 to where
// the kernels find them; in cols of all channels.
func (w *workspace) spread(c0, c1, first, last int) {
	g, fields := w.geo, w.channels.fields[first:last+1]
	if g.layout == rows {
		for f, field := range fields {
			for c := c0; c < c1; c++ {
				w.coef[c*coefLen+first+f] = field[c]
			}
		}
		return
	}
	if g.unit > 1 {
		for f, field := range fields {
			for j := range g.width {
				w.coef[j/lanes*lanes*coefLen+(first+f)*lanes+j%lanes] = field[w.channelOf(j)]
			}
		}
		return
	}
	for _, field := range fields {
		for j := g.channels; j < g.width; j += g.channels {
			copy(field[j:g.width], field[:g.channels])
		}
	}
	for j := 0; j < g.width; j += lanes {
		r := (*record)(w.coef[j*coefLen:])[first*lanes:]
		for f, field := range fields {
			v := *(*[lanes]float32)(field[j:]) // by way of which there is no call, as for what may overlap
			*(*[lanes]float32)(r[f*lanes:]) = v
		}
	}
}

// setRunning sets the statistics of all channels to running ones.
func (w *workspace) setRunning(mean, variance []float32) {
	ch := &w.channels
	v := w.plan.path.whole(len(mean))
	if v > 0 {
		k := channelArgs{n: v, epsilon: w.plan.epsilon, running: mean, runningVar: variance, mean: ch.mean, invstd: ch.invstd}
		k.run(channelRunning)
	}
	for c := v; c < len(mean); c++ {
		ch.mean[c] = float64(mean[c])
		ch.invstd[c] = invStd(float64(variance[c]), w.plan.epsilon)
	}
	w.setAll()
}

// channelOf returns the channel of a column.
func (w *workspace) channelOf(j int) int { return j / w.geo.unit % w.geo.channels }

// wide reports whether the outputs of a channel are computed from scaled values.
func (w *workspace) wide(c int) bool {
	if w.backward {
		return w.channels.gradWide[c]
	}
	return w.channels.wide[c] && w.channels.power[c] != 0
}

// anyWide reports whether one of the channels c0 to c1-1 is wide, anyWideColumn whether
// one of n columns from column j on is of such a channel.
func (w *workspace) anyWide(c0, c1 int) bool {
	for c := c0; c < c1; c++ {
		if w.wide(c) {
			return true
		}
	}
	return false
}

func (w *workspace) anyWideColumn(j, n int) bool {
	if !w.someWide { // looked at once
		return false
	}
	for ; n > 0; j, n = j+1, n-1 {
		if w.wide(w.channelOf(j)) {
			return true
		}
	}
	return false
}

// setSaved sets the statistics of all channels to those of a forward pass.
func (w *workspace) setSaved(mean, invstd []float64) {
	copy(w.channels.mean, mean)
	copy(w.channels.invstd, invstd)
	w.setAll()
}

// track updates running values by those of a batch, times a factor.
func (p Path) track(running []float32, batch []float64, factor float64, m Momentum) {
	w := m.value()
	if w == 0 {
		return // and 0 times NaN is not added
	}
	v := p.whole(len(running))
	if w == 1 {
		v = 0
	}
	if v > 0 {
		k := channelArgs{n: v, running: running, mean: batch, weight: w, cross: 1 - w, count: factor}
		k.run(channelTrack)
	}
	for c := v; c < len(running); c++ {
		running[c] = m.update(running[c], batch[c]*factor)
	}
}
