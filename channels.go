package batchnorm

import (
	"math"
	"slices"
)

// channels is what a call knows of the channels: an array for each number, so that
// vectors hold eight channels.
type channels struct {
	mean, variance, invstd []float64
	scale, shift           []float64          // gamma*invstd, and beta where the channel is wide
	wide                   []bool             // float32 would lose digits: see affine
	dgamma, dbeta          []float64          //
	k1, k2                 []float64          // where gradWide is set
	gradWide               []bool             // see gradient
	fields                 [coefLen][]float32 // the constants of the kernels, of as many columns as there are
	ones, zeros            []float32          // stand for gamma and beta that were not given

	// The results of the statistics phase, of one segment after the other: mean
	// and m2 of a moment, or the sums P and R; and their totals, which are the
	// same where there is one for each channel.
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
		gradWide: make([]bool, n),
		ones:     slices.Repeat([]float32{1}, n), zeros: make([]float32, n),
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
	gamma, beta           []float32
	neg, a, b, k1, k2     []float32
	running, runningVar   []float32
	mean, variance        []float64
	invstd, scale, dgamma []float64
	sumA, sumB            []float64
	otherA, otherB        []float64
	usual                 [lanes]uint64 // by lane: all ones when no channel is unusual
}

// The kernels that compute with channels, in float64. What they compute is what
// the functions of stats.go do, for channels whose numbers are usual; when one is
// not, they report so, and all they have written is to be computed again.
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
		a := (*sums)(acc[c/lanes*2*lanes:])
		foldChannel(sumA, sumB, shift, c, float64(a[c%lanes]), float64(a[c%lanes+lanes]), count, weight, cross)
	}
}

// reduceLanes sums the lanes of n channels.
func (p Path) reduceLanes(s *flatScratch, n int) {
	v := p.whole(n)
	if v > 0 {
		k := channelArgs{n: v, acc: s.acc, otherA: s.a, otherB: s.b}
		k.run(channelReduce)
	}
	for c := v; c < n; c++ {
		acc := (*sums)(s.acc[c*sumRecord:])
		s.a[c], s.b[c] = reduce((*[lanes]float32)(acc[:])), reduce((*[lanes]float32)(acc[lanes:]))
	}
}

// foldChannel merges the sums of a block with the moment of a channel.
func foldChannel(sumA, sumB []float64, shift []float32, c int, s, q, count, weight, cross float64) {
	mean, m2 := blockMoment(count, -float64(shift[c]), s, q)
	sumA[c], sumB[c] = mergeMoment(sumA[c], sumB[c], mean, m2, weight, cross)
	shift[c] = -float32(sumA[c])
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
		shift[c] = -float32(float64(acc[c/lanes*2*lanes+c%lanes]) / count)
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
		a := (*sums)(acc[c/lanes*2*lanes:])
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
func (w *work) total(c0, c1 int) {
	g, ch := w.geo, &w.channels
	sumA, sumB := ch.sumA[c0:c1], ch.sumB[c0:c1]
	seen := 0.0
	for j := 0; j < g.columns(); j += g.channels {
		for seg := range g.segments {
			n := w.counts[seg]
			if g.layout == cols && seg == g.segments-1 && j < g.rest {
				n++
			}
			at := seg*g.columns() + j
			a, b := ch.partA[at+c0:at+c1], ch.partB[at+c0:at+c1]
			switch {
			case seen == 0:
				copy(sumA, a)
				copy(sumB, b)
			case w.backward:
				for c := range sumA {
					sumA[c] += a[c]
					sumB[c] += b[c]
				}
			default:
				weight := n / (seen + n)
				w.p.path.mergeMoments(sumA, sumB, a, b, weight, seen*weight)
			}
			seen += n
		}
	}
}

// ---- channels

// finish turns the results of the segments of the channels c0 to c1-1 into their
// constants.
func (w *work) finish(c0, c1 int) {
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
func (w *work) finishMoments(c0, c1 int) {
	ch := &w.channels
	v := w.p.path.whole(c1 - c0)
	if v > 0 {
		k := channelArgs{n: v, count: w.values, epsilon: w.p.epsilon, sumB: ch.sumB[c0:], variance: ch.variance[c0:], invstd: ch.invstd[c0:]}
		if k.run(channelDeviation) {
			copy(ch.mean[c0:c0+v], ch.sumA[c0:])
			if w.m2 != nil {
				copy(w.m2[c0:c0+v], ch.sumB[c0:])
			}
		} else {
			v = 0
		}
	}
	for c := c0 + v; c < c1; c++ {
		m := moment{w.values, ch.sumA[c], ch.sumB[c]}
		if !sumsAreSafe(m.m2/m.n, w.p.epsilon) {
			m = w.exactMoment(c)
		}
		ch.mean[c] = m.mean
		ch.variance[c] = populationVariance(m.m2, m.n)
		ch.invstd[c] = invStd(ch.variance[c], w.p.epsilon)
		if w.m2 != nil {
			w.m2[c] = m.m2
		}
	}
}

// setAll sets the constants of z of all channels from mean and invstd.
func (w *work) setAll() {
	n := w.geo.channels
	for c := 0; c < n; c += mostChannels {
		w.setAffines(c, min(c+mostChannels, n))
	}
	w.spread(0, n, fieldN, fieldB)
}

// setAffines derives the constants of z from the statistics of channels.
func (w *work) setAffines(c0, c1 int) {
	ch := &w.channels
	v := w.p.path.whole(c1 - c0)
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
			w.renorm.set(c, ch.mean[c], ch.variance[c], w.p.epsilon)
		}
		w.setAffine(c)
	}
}

// setAffine derives the constants of z of a channel from its statistics.
func (w *work) setAffine(c int) {
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
	ch.scale[c], ch.shift[c], ch.wide[c] = f.scale, f.beta, f.wide
	ch.fields[fieldN][c], ch.fields[fieldA][c], ch.fields[fieldB][c] = -f.m, f.a, f.b
}

// affine returns what setAffine was given, but for beta where the channel is not
// wide.
func (ch *channels) affine(c int) affine {
	return affine{mean: ch.mean[c], scale: ch.scale[c], beta: ch.shift[c],
		m: -ch.fields[fieldN][c], a: ch.fields[fieldA][c], b: ch.fields[fieldB][c], wide: ch.wide[c]}
}

// setGrads derives the constants of dx from the sums of g and of g*(x-m) in sumA
// and sumB. Of sums that are to be checked, those that can't be relied on are
// taken again.
func (w *work) setGrads(c0, c1 int, check bool) {
	ch := &w.channels
	v := w.p.path.whole(c1 - c0)
	if v > 0 && slices.Contains(ch.wide[c0:c0+v], true) {
		v = 0
	}
	if v > 0 {
		k := channelArgs{n: v, count: w.values, sumA: ch.sumA[c0:], sumB: ch.sumB[c0:], mean: ch.mean[c0:], invstd: ch.invstd[c0:],
			dgamma: ch.dgamma[c0:], k1: ch.fields[fieldK1][c0:], k2: ch.fields[fieldK2][c0:]}
		if k.run(channelGradient) {
			copy(ch.dbeta[c0:c0+v], ch.sumA[c0:])
			clear(ch.gradWide[c0 : c0+v])
		} else {
			v = 0
		}
	}
	for c := c0 + v; c < c1; c++ {
		f := ch.affine(c)
		if check && (f.wide || !gradSumsAreSafe(ch.sumA[c], ch.sumB[c], w.values, ch.invstd[c])) {
			ch.sumA[c], ch.sumB[c] = w.exactGradSums(c)
		}
		var d gradient
		d.set(&f, ch.invstd[c], ch.sumA[c], ch.sumB[c], w.values)
		ch.dgamma[c], ch.dbeta[c] = d.dgamma, d.dbeta
		ch.k1[c], ch.k2[c], ch.gradWide[c] = d.k1, d.k2, d.wide
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

// constantStatistics takes out of dx what it owes to the statistics.
func (ch *channels) constantStatistics(c0, c1 int) {
	clear(ch.k1[c0:c1])
	clear(ch.k2[c0:c1])
	clear(ch.fields[fieldK1][c0:c1])
	clear(ch.fields[fieldK2][c0:c1])
	copy(ch.gradWide[c0:c1], ch.wide[c0:c1])
}

// noSums is for a backward pass whose sums nobody wants.
func (w *work) noSums() {
	n := w.geo.channels
	w.channels.constantStatistics(0, n)
	w.spread(0, n, fieldK1, fieldK2)
}

// gradient returns the constants of dx of a wide channel.
func (ch *channels) gradient(c int) gradient { return gradient{k1: ch.k1[c], k2: ch.k2[c]} }

// spread copies the fields from first to last of the channels c0 to c1-1 to where
// the kernels find them; in cols of all channels.
func (w *work) spread(c0, c1, first, last int) {
	g, fields := w.geo, w.channels.fields[first:last+1]
	if g.layout == rows {
		for f, field := range fields {
			for c := c0; c < c1; c++ {
				w.coef[c*coefLen+first+f] = field[c]
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
func (w *work) setRunning(mean, variance []float32) {
	ch := &w.channels
	v := w.p.path.whole(len(mean))
	if v > 0 {
		k := channelArgs{n: v, epsilon: w.p.epsilon, running: mean, runningVar: variance, mean: ch.mean, invstd: ch.invstd}
		k.run(channelRunning)
	}
	for c := v; c < len(mean); c++ {
		ch.mean[c] = float64(mean[c])
		ch.invstd[c] = invStd(float64(variance[c]), w.p.epsilon)
	}
	w.setAll()
}

// setSaved sets the statistics of all channels to those of a forward pass.
func (w *work) setSaved(mean, invstd []float64) {
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
