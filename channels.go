package batchnorm

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"unsafe"
)

// channels holds the numbers of a call per channel: an array for each number, so that
// a vector holds eight channels.
type channels struct {
	mean, variance, invstd []float64
	scale, shift           []float64 // gamma*invstd, and beta where the channel is wide
	form                   []byte    // see affine
	power                  []int     // of x, where the channel is wide
	dgamma, dbeta          []float64 // before they are rounded
	k1, k2                 []float64 // where gradWide is set, or numbers are tiny, or the channel is precise
	gradWide               []bool    // dx needs scaled values
	powerX, powerG         []int     // of the scaled values, x and g
	flag                   []bool    // the channel's sums are looked at
	tiny                   []byte    // which numbers are tiny, where some are
	large                  []byte    // the marks of channels whose forward sums are in float64 from the start, if some are (large.go)
	outputs                []byte    // how outputs are written: the tiny numbers that they are made of, or wideOutputs
	extent                 []float32 // the largest magnitude of a flagged channel; has room for 7 values more
	fields                 fields
	ones, zeros            []float32 // stand for gamma and beta that were not given

	// The results of the statistics phase: forward the mean and m2 of a moment,
	// backward the sums P and R. segmentA and segmentB have them for each segment, one
	// after the other; sumA and sumB are the merged totals per channel.
	segmentA, segmentB []float64
	sumA, sumB         []float64

	staged [4][mostStaged]float32 // copies of slices that the caller gave, see vectors
}

// cut cuts the slices from the slabs of a workspace, for n channels. In cols there may be
// more columns than channels. Those that kernels on channels use have room for whole vectors.
func (ch *channels) cut(w *workspace, n, columns, segments int) {
	for _, list := range []*[]float64{&ch.mean, &ch.variance, &ch.invstd, &ch.scale, &ch.shift,
		&ch.dgamma, &ch.dbeta, &ch.k1, &ch.k2, &ch.sumA, &ch.sumB} {
		*list = w.float64s.cutRoomy(n)
	}
	ch.segmentA, ch.segmentB = w.float64s.cutRoomy(segments*columns), w.float64s.cutRoomy(segments*columns)
	for _, list := range []*[]bool{&ch.gradWide, &ch.flag} {
		*list = w.bools.cut(n)
	}
	for _, list := range []*[]byte{&ch.tiny, &ch.large, &ch.outputs, &ch.form} {
		*list = w.kinds.cut(roundUp(n, lanes))
	}
	ch.power, ch.powerX, ch.powerG = w.ints.cut(n), w.ints.cut(n), w.ints.cut(n)
	ch.extent = w.float32s.cutRoomy(n)
	each := roundUp(n+lanes-1, lanes) // the first channels follow the last ones once more, for spread
	ch.fields = fields{w.float32s.cut(coefLen * each), each, lanes}
	ch.ones, ch.zeros = w.float32s.cut(each), w.float32s.cut(each)
	for i := range ch.ones {
		ch.ones[i] = 1
	}
	clear(ch.zeros)
}

// Forms of the constants of a channel, beside the usual one.
const (
	wideForm    = 1 << iota
	preciseForm // z is a product in float64, and so are the sums of a backward pass, and dx
)

func (ch *channels) isWide(c int) bool { return ch.form[c] == wideForm }

// markForms sets the forms of the channels c0 to c1-1, of which none is wide.
func (ch *channels) markForms(c0, c1 int) {
	forms, invstd := ch.form[c0:c1], ch.invstd[c0:c1]
	for c, scale := range ch.scale[c0:c1] {
		form := byte(0)
		if isPrecise(invstd[c], scale) {
			form = preciseForm
		}
		forms[c] = form
	}
}

// fields are the constants of the kernels by channel. Each field is an array with a value
// per column. Where the first columns are the channels, in whole vectors, the fields are
// their records in cols instead.
type fields struct {
	all         []float32
	next, group int // from one field to the next, and from 8 channels to the next
}

// ref returns a reference to a field of a channel.
func (f *fields) ref(field, c int) *float32 { return &f.all[f.index(field, c)] }

func (f *fields) index(field, c int) int { return field*f.next + c/lanes*f.group + c%lanes }

// from returns a field from channel c on, in arrays or in records. c is the first of 8
// channels.
func (f *fields) from(field, c int) []float32 { return f.all[f.index(field, c):] }

// of returns the array of a field. The fields must be arrays.
func (f *fields) of(field int) []float32 { return f.all[field*f.next:][:f.next] }

// channelArgs are the arguments of the kernels that compute with channels. The number of
// channels is a multiple of 8. A kernel uses the arrays that its description names.
type channelArgs struct {
	n                    int // channels; afterwards the number left, if a kernel stopped at an unusual one
	step                 int // bytes from the constants of 8 channels to the next
	count, weight, cross float64
	inverse              float64 // 1/count if count is a power of two, otherwise 0
	probeCount           float64
	probeInverse         float64 // 1/probeCount, like inverse
	epsilon, correction  float64
	x                    []float32
	most, least          float32 // magnitudes that channelTiny looks at closely: up to most, and from least on
	tiny                 float32 // the largest of tiny magnitudes
	product, scaled      float32 // the bits of the largest tiny products plus those of 1: with other values, and with factors
	rows, probe          int     // of x, and those of the probe
	steps                []int   // bytes from each row of x to the next
	second, third        int     // bytes from the first row of x to the other sampled ones
	fourth               int
	settled              float64      // bits: all ones where sums, or given statistics, are final, 0 otherwise
	precise              float64      // bits: all ones where precise channels are as good as usual ones, 0 otherwise
	close                float64      // no x-m overflows where invstd is at least this
	leastSum             float32      // of variance and epsilon, for the quick look of channelForward
	leastInvStd          float32      // the same of invstd
	trusted              float64      // sums of 0 can surely be relied on up to this invstd
	large                float64      // squares whose sum is at least this have too large a sum; NaN stands for none
	retaken              [lanes]int32 // minus the number of columns in a lane whose sums were taken again
	extent               []float32
	acc, shift           []float32
	sums                 []float64
	gamma, beta          []float32
	neg, a, b, k1, k2    []float32
	running, runningVar  []float32 // nil where not wanted, like the next four arrays
	savedMean            []float64
	savedInvStd          []float64
	gammaGrad, betaGrad  []float32
	mean, variance       []float64
	invstd, scale        []float64
	dgamma, dbeta        []float64
	sumA, sumB           []float64
	otherA, otherB       []float64
	records              []record64
}

// The kernels that compute with channels, in float64. They do the same as the functions
// of stats.go, for usual channels: channels whose numbers are in float32's safe range. Some
// of them stop in front of 8 channels of which one is unusual, and leave in n the number
// of channels that are left.
const (
	// channelFold merges the sums of a window into the moments of its segment:
	//
	//	mean, m2 := blockMoment(count, -shift, S, Q)
	//	sumA, sumB = mergeMoment(sumA, sumB, mean, m2, weight, cross)
	//	shift = -float32(sumA)
	//
	// acc has a record of 8 S and 8 Q for 8 channels.
	channelFold = iota

	// channelReduce sums the lanes of each channel: otherA, otherB = reduce(S), reduce(Q).
	// sums has a record of sumLen float64 for each channel, which begins with 8 S and 8 Q.
	channelReduce

	// channelReduceShort does the same for float32 sums, in acc, which it sets to 0.
	channelReduceShort

	// channelFlush adds float32 sums to sums, and sets them to 0: sums += acc, acc = 0. Its
	// channels are lanes, of any sums.
	channelFlush

	// channelFoldReduced is channelFold with otherA and otherB in the places of S
	// and Q.
	channelFoldReduced

	// channelProbe takes only the mean of count values, from the S of acc, for the first
	// shift: shift = -float32(S/count).
	channelProbe

	// channelAdd adds sums of acc: sumA += P, sumB += R.
	channelAdd

	// channelMerge is sumA, sumB = mergeMoment(sumA, sumB, otherA, otherB, weight, cross).
	channelMerge

	// channelAddSums is sumA += otherA, sumB += otherB.
	channelAddSums

	// channelForward goes from moments of count values, in sumA and sumB, to mean,
	// variance, invstd, scale and the constants neg (minus m), a and b, as affine.set
	// does. It writes mean and invstd once more where they are saved, and updates running
	// values as channelTrack does: by the mean, and by the variance times correction. A
	// channel is unusual if it is wide, or if its variance can't be relied on. A variance
	// can be relied on if it is settled, which a large sumB is, and NaN can if extent is given
	// and is not finite.
	channelForward

	// channelAffine is affine.set, from mean, invstd, gamma and beta to scale and
	// the constants neg, a and b. A wide channel is unusual, and a precise one if precise is 0. If
	// running and runningVar are given, it sets mean and invstd from these first, as givenStatistics does,
	// which are final if settled is all ones.
	channelAffine

	// channelBackward is gradient.set, from sumA, sumB, mean, invstd and count to
	// dgamma, dbeta, k1 and k2; gammaGrad and betaGrad are dgamma and dbeta, rounded. A
	// channel is unusual if it is wide, or if its sums can't be relied on. Sums can be relied
	// on if they are settled, if invstd is NaN, or if they are 0 and invstd is at most
	// trusted. If extent is given, a channel whose extent is not finite is usual, unless another one of
	// the vector needs a closer look than at zeros.
	channelBackward

	// channelTrack is running = (1-weight)*running + weight*(mean*count), for a
	// weight below 1.
	channelTrack

	// channelStrip takes the moments of count rows of x: it sums the first probeCount rows with
	// a shift of 0, as kernelMoments does, sets the shift as channelProbe does, sums all with
	// this shift, and folds as channelFold does into a segment of no values. Where sumB is large
	// then, and not safe, it does so again with sums in float64 (large.go). Where the values in the
	// first row and in second, third and fourth are small, it only takes sums in float64. Before they are final, sumA, sumB
	// and shift hold what the second of two vectors waits for.
	channelStrip

	// channelGradients64 is gradient.set64, from sumA, sumB, mean, invstd and count to dgamma,
	// dbeta, k1 in otherA and k2 in otherB; gammaGrad and betaGrad are dgamma and dbeta, rounded,
	// where they are wanted.
	channelGradients64

	// channelRecords64 makes records, from neg, a, b and scale, and from k1 in otherA and k2 in
	// otherB. The factor of z is a, or scale where that is wild. A channel is unusual if its b is
	// near an end of float32's range.
	channelRecords64

	// channelTiny looks at four values of each channel: x, gamma, beta and running. A channel
	// is unusual if the first one is finite and at least least, or if none of them exceeds most, not all are 0, and
	// their largest magnitude is at most tiny, or has tiny products: with the largest of four other values, neg, a,
	// b and k1, if these are given, or with a factor of the channel, in runningVar or in scale, if there is one.
	channelTiny
)

// fewChannels is the number of channels that are looked at together when the first one of
// them is unusual, and has few values, so that a single one costs little. Channels of more
// values, and later ones, are looked at mostSpan at a time: a row of the tensor has the values
// of many, which are read together.
const fewChannels = 32

// firstLook returns how many channels are looked at together first.
func (w *workspace) firstLook() int {
	if w.values > stripRows {
		return mostSpan
	}
	return fewChannels
}

// callChannels is the largest number of channels of a kernel call. It takes microseconds,
// so that a goroutine in assembly is soon preempted.
const callChannels = 4096

// whole returns the number of channels, of n, that fill whole vectors: 0 without vectors.
func (p Path) whole(n int) int {
	if p == PathGeneric || raceEnabled { // the race detector sees into Go only
		return 0
	}
	return n &^ (lanes - 1)
}

// padded returns the number of channels in the vectors that hold n channels, of which the
// last may be incomplete: n without vectors.
func (p Path) padded(n int) int {
	if p.whole(lanes) == 0 {
		return n
	}
	return roundUp(n, lanes)
}

// mostStaged is the largest number of channels whose slices are copied for a call.
const mostStaged = 128

// vectors returns how many of the channels c to c1-1 a call of a kernel takes. The last
// channels of all are filled up to whole vectors with copies of the very last one, behind the
// ends of the slices. Slices that the caller gave have no room there, so that the kernel
// takes copies of them.
func (w *workspace) vectors(c, c1 int) (n int, staged bool) {
	path := w.plan.path
	n = path.whole(min(c1-c, callChannels))
	if v := path.whole(roundUp(c1-c, lanes)); v > n && v <= mostStaged && c1 == w.geo.channels {
		return v, true
	}
	return n, false
}

// fillUp repeats the values of the last one of n channels, up to channel end-1.
func fillUp[T float32 | float64](n, end int, lists ...[]T) {
	for _, list := range lists {
		list = list[:end]
		for i := n; i < end; i++ {
			list[i] = list[n-1]
		}
	}
}

// stage returns a copy of the last values of a list with a value per channel, from channel
// c on, filled up to n values. nil stays nil.
func (ch *channels) stage(i int, list []float32, c, n int) []float32 {
	if list == nil {
		return nil
	}
	v := ch.staged[i][:n]
	for j := copy(v, list[c:]); j < n; j++ {
		v[j] = list[len(list)-1]
	}
	return v
}

// run runs a kernel on the channels.
func (a *channelArgs) run(kernel int) {
	if watched != nil {
		watched(watchChannels, a.n)
	}
	a.inverse, a.probeInverse = inverseOfPower(a.count), inverseOfPower(a.probeCount)
	simdChannels(kernel, a)
}

// inverseOfPower returns 1/v if v is a power of two from 1 on, otherwise 0.
func inverseOfPower(v float64) float64 {
	if v < 1 || math.Float64bits(v)&(1<<52-1) != 0 || v > math.MaxFloat64 {
		return 0
	}
	return 1 / v
}

// ---- the statistics phase

// foldColumns merges the sums of columns, of count values each, into the moments in sumA
// and sumB, of before values. It sets the shifts to minus the means so far.
func (p Path) foldColumns(sumA, sumB []float64, acc, shift []float32, before, count float64) {
	weight := count / (before + count)
	cross := before * weight
	n := len(sumA)
	v := p.whole(n)
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sumA: sumA[c:], sumB: sumB[c:], acc: acc[2*c:], shift: shift[c:],
			count: count, weight: weight, cross: cross}
		k.run(channelFold)
	}
	for c := v; c < n; c++ {
		a := (*laneSums)(acc[c/lanes*2*lanes:])
		foldChannel(sumA, sumB, shift, c, float64(a[c%lanes]), float64(a[c%lanes+lanes]), count, weight, cross)
	}
}

// foldStrips sets sumA, sumB and the shifts to those of a segment of x, with a row for each of the
// steps: the bytes from a row to the next. The sums of columns are taken again in float64 if those
// of squares are large and, with epsilon, not safe. It returns how many columns these are. Those of small
// values in the sampled rows are sums in float64. The path has vectors, and there are enough columns for one.
func (p Path) foldStrips(sumA, sumB []float64, shift, x []float32, steps []int, sampled *[tinySample]int,
	large, epsilon float64) (again int) {
	n, rows := len(sumA), len(steps)
	v := p.whole(n)
	probe := min(rows, probeRows)
	var at [tinySample]int
	for i, row := range sampled {
		at[i] = distance(steps[:row])
	}
	most := max(lanes, min(callChannels, maxCall/rows&^(lanes-1)))
	strips := func(c, n, counted int) { // the last columns are counted
		k := &channelArgs{n: n, sumA: sumA[c:], sumB: sumB[c:], shift: shift[c:], x: x[c:], rows: rows, probe: probe, steps: steps,
			second: at[1], third: at[2], fourth: at[3],
			count: float64(rows), probeCount: float64(probe), large: large, epsilon: epsilon}
		k.run(channelStrip)
		if large == large && k.retaken != [lanes]int32{} {
			for _, n := range k.retaken[max(0, lanes-counted):] {
				again -= int(n)
			}
		}
	}
	for c := 0; c < v; c += most {
		n := min(most, v-c)
		strips(c, n, n)
	}
	if v < n { // some columns once more
		strips(n-lanes, lanes, n-v)
	}
	return again
}

// distance returns the bytes of some steps together.
func distance(steps []int) (bytes int) {
	for _, step := range steps {
		bytes += step
	}
	return bytes
}

// reduceLanes sums the lanes of len(a) channels.
func (p Path) reduceLanes(a, b, sums []float64) {
	n := len(a)
	v := p.whole(n)
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sums: sums[c*sumLen:], otherA: a[c:], otherB: b[c:]}
		k.run(channelReduce)
	}
	for c := v; c < n; c++ {
		a[c], b[c] = reduce(sums[c*sumLen:]), reduce(sums[c*sumLen+lanes:])
	}
}

// reduceShort sums the lanes of len(a) channels whose sums are float32, and sets these
// to 0.
func (p Path) reduceShort(a, b []float64, acc []float32) {
	n := len(a)
	v := p.whole(n)
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), acc: acc[c*sumLen:], otherA: a[c:], otherB: b[c:]}
		k.run(channelReduceShort)
	}
	for c := v; c < n; c++ {
		s := (*laneSums)(acc[c*sumLen:])
		a[c], b[c] = reduce32(s[:lanes]), reduce32(s[lanes:])
		*s = laneSums{}
	}
}

// reduce32 is reduce for float32 sums.
func reduce32(v []float32) float64 {
	var wide [lanes]float64
	for i := range wide {
		wide[i] = float64(v[i])
	}
	return reduce(wide[:])
}

// flush adds the float32 sums of some rows to their sums, and sets them to 0.
func (p Path) flush(sums []float64, acc []float32) {
	n := len(sums)
	v := p.whole(n)
	for i := 0; i < v; i += callChannels {
		k := &channelArgs{n: min(callChannels, v-i), sums: sums[i:], acc: acc[i:]}
		k.run(channelFlush)
	}
	for i := v; i < n; i++ {
		sums[i] += float64(acc[i])
		acc[i] = 0
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
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sumA: sumA[c:], sumB: sumB[c:], otherA: s[c:], otherB: q[c:], shift: shift[c:],
			count: count, weight: weight, cross: cross}
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
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), acc: acc[2*c:], shift: shift[c:], count: count}
		k.run(channelProbe)
	}
	for c := v; c < n; c++ {
		shift[c] = shiftFor(float64(acc[c/lanes*2*lanes+c%lanes]) / count)
	}
}

// addColumns adds the sums of columns in acc to sumA and sumB.
func (p Path) addColumns(sumA, sumB []float64, acc []float32) {
	n := len(sumA)
	v := p.whole(n)
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sumA: sumA[c:], sumB: sumB[c:], acc: acc[2*c:]}
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
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sumA: sumA[c:], sumB: sumB[c:], otherA: otherA[c:], otherB: otherB[c:], weight: weight, cross: cross}
		k.run(channelMerge)
	}
	for c := v; c < n; c++ {
		sumA[c], sumB[c] = mergeMoment(sumA[c], sumB[c], otherA[c], otherB[c], weight, cross)
	}
}

// addSums adds otherA and otherB to sumA and sumB.
func (p Path) addSums(sumA, sumB, otherA, otherB []float64) {
	n := len(sumA)
	v := p.whole(n)
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), sumA: sumA[c:], sumB: sumB[c:], otherA: otherA[c:], otherB: otherB[c:]}
		k.run(channelAddSums)
	}
	for c := v; c < n; c++ {
		sumA[c] += otherA[c]
		sumB[c] += otherB[c]
	}
}

// single reports whether each channel has one segment, whose result is the total.
func (g *geometry) single() bool { return g.segments == 1 && g.columns() == g.channels }

// total merges the results of the segments of the channels c0 to c1-1, in their fixed
// order.
func (w *workspace) total(c0, c1 int) {
	g, ch := w.geo, &w.channels
	end := c1
	if g.layout == cols && c1 == g.channels && g.unit == 1 { // whole vectors
		end = c0 + w.plan.path.padded(c1-c0)
	}
	sumA, sumB := ch.sumA[c0:end], ch.sumB[c0:end]
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

// merge merges the results of a segment of n values into sumA and sumB, the results of the
// seen values before it. The first channel's result has index first, the next one's g.unit on.
func (w *workspace) merge(sumA, sumB []float64, first int, seen, n float64) {
	ch, unit := &w.channels, w.geo.unit
	weight := n / (seen + n)
	cross := seen * weight
	if unit == 1 {
		a, b := ch.segmentA[first:first+len(sumA)], ch.segmentB[first:first+len(sumB)]
		switch {
		case seen == 0:
			copyCut(sumA, a)
			copyCut(sumB, b)
		case w.backward:
			w.plan.path.addSums(sumA, sumB, a, b)
		default:
			w.plan.path.mergeMoments(sumA, sumB, a, b, weight, cross)
		}
		return
	}
	for c := range sumA {
		a, b := ch.segmentA[first+c*unit], ch.segmentB[first+c*unit]
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
// constants and the call's outputs by channel.
func (w *workspace) finish(c0, c1 int) {
	sums := totals{w.channels.sumA, w.channels.sumB, false}
	if w.geo.single() {
		sums = totals{w.channels.segmentA, w.channels.segmentB, true}
	} else {
		w.total(c0, c1)
	}
	if w.backward {
		w.setGrads(c0, c1, true, sums)
		w.spread(c0, c1, fieldK1, fieldK2)
	} else {
		w.setMoments(c0, c1, sums)
		w.spread(c0, c1, fieldN, fieldB)
	}
}

// totals are the results of the statistics phase of all channels: sumA and sumB. With
// ofSegments they are segmentA and segmentB, which are not merged into sumA and sumB yet.
type totals struct {
	a, b       []float64
	ofSegments bool
}

// setMoments sets the statistics of channels from their moments, and the constants of z
// from these.
func (w *workspace) setMoments(c0, c1 int, sums totals) {
	ch := &w.channels
	looked := false // whether the first row has been looked at, in cols
	for c, together := c0, w.firstLook(); c < c1; {
		if end := w.wholeLarge(c, c1); end > c { // sums of marked channels need no second look
			if sums.ofSegments {
				w.total(c, end)
			}
			w.setSettledMoments(c, end)
			c = end
			continue
		}
		next := w.setUsualMoments(c, c1, sums, false, looked)
		if next > c {
			w.saveM2(c, next, sums.b)
			c = next
			continue
		}
		end := min(c+together, c1)
		if sums.ofSegments {
			w.total(c, end)
		}
		if !looked && slices.ContainsFunc(ch.sumB[c:min(c+lanes, c1)], math.IsNaN) && w.firstRow(c, c1) {
			looked = true
			continue
		}
		together = mostSpan
		w.momentsAgain(c, end, looked)
		w.setSettledMoments(c, end)
		c = end
	}
}

// setSettledMoments is setMoments for the channels from c to end-1, whose sums in sumA and sumB are final.
func (w *workspace) setSettledMoments(c, end int) {
	ch := &w.channels
	for c < end {
		next := w.setUsualMoments(c, end, totals{ch.sumA, ch.sumB, false}, true, false)
		if next == c {
			next = w.fewSlowly(c, end)
			w.setMomentsSlowly(c, next)
		}
		w.saveM2(c, next, ch.sumB)
		c = next
	}
}

// saveM2 writes the sums of squares of channels where they are wanted: 0 where one is below 0 by rounding.
func (w *workspace) saveM2(c, next int, m2 []float64) {
	if w.m2 == nil {
		return
	}
	for i, v := range m2[c:next] {
		w.m2[c+i] = max(v, 0) // NaN stays
	}
}

// fewSlowly returns the end of the channels from c on that go through the slower
// functions, when channel c is unusual.
func (w *workspace) fewSlowly(c, c1 int) int {
	if w.plan.path.whole(lanes) == 0 {
		return c1
	}
	return min(c+lanes, c1)
}

// setUsualMoments is setMoments for channels from c to c1-1 as long as they are usual.
// It returns the first channel that is left. Settled sums are final. With looked, the
// extents hold magnitudes of a part of the values.
func (w *workspace) setUsualMoments(c, c1 int, sums totals, settled, looked bool) int {
	v, staged := w.vectors(c, c1)
	if v == 0 || w.renorm.r != nil {
		return c
	}
	ch, o := &w.channels, &w.saved
	weight := o.momentum.value()
	k := &channelArgs{n: v, count: w.values, epsilon: w.plan.epsilon, weight: weight, cross: 1 - weight, correction: o.correction,
		sumA: sums.a[c:], sumB: sums.b[c:], mean: ch.mean[c:], variance: ch.variance[c:], invstd: ch.invstd[c:],
		settled: allOnes(settled), precise: allOnes(settled), large: w.large()}
	k.setLeast()
	if looked {
		k.extent = ch.extent[c:]
	}
	w.setAffineArgs(k, c, staged)
	k.savedMean, k.savedInvStd, k.running, k.runningVar = from(o.mean, c), from(o.invstd, c), from(o.running, c), from(o.runningVar, c)
	if staged {
		fillUp(c1, c+v, sums.a, sums.b)
		fillUp(c1, c+v, ch.extent)
		k.savedMean, k.savedInvStd, k.running, k.runningVar = nil, nil, ch.stage(2, o.running, c, v), ch.stage(3, o.runningVar, c, v)
	}
	if weight == 0 || weight == 1 {
		k.running, k.runningVar = nil, nil
	}
	k.run(channelForward)
	next := min(c+v-k.n, c1)
	clear(ch.form[c:next])
	if settled {
		ch.markForms(c, next)
	}
	if staged {
		copy(slice(o.mean, c, next-c), ch.mean[c:])
		copy(slice(o.invstd, c, next-c), ch.invstd[c:])
		copy(slice(o.running, c, next-c), k.running)
		copy(slice(o.runningVar, c, next-c), k.runningVar)
	}
	if weight == 1 { // the values before are forgotten, NaN as well
		o.track(ch, c, next)
	}
	return next
}

// setLeast sets the limits of the quick look at the variance and invstd. They lie within those
// of usual channels, so that rounding to float32 does not matter.
func (a *channelArgs) setLeast() {
	a.leastSum, a.leastInvStd = 2*sureMin, 0x1p-49
	switch {
	case a.settled != 0: // the variance may be any, invstd must not be wild
		a.leastSum, a.leastInvStd = 0x1p-126, 2*sureMin
	case a.large == a.large && a.epsilon <= sureMax/4: // what exceeds sureMax is large
		a.leastInvStd = 2 * sureMin
	}
}

// allOnes returns a number whose bits are all ones, or 0.
func allOnes(b bool) float64 {
	if b {
		return math.Float64frombits(math.MaxUint64)
	}
	return 0
}

// setMomentsSlowly is setMoments for channels of which some are unusual.
func (w *workspace) setMomentsSlowly(c0, c1 int) {
	ch, o := &w.channels, &w.saved
	for c := c0; c < c1; c++ {
		ch.mean[c] = ch.sumA[c]
		ch.variance[c] = populationVariance(ch.sumB[c], w.values)
		ch.invstd[c] = invStd(ch.variance[c], w.plan.epsilon)
		if w.renorm.rmax != 0 {
			w.renorm.set(c, ch.mean[c], ch.variance[c], w.plan.epsilon)
		}
		w.setAffine(c)
	}
	if o.mean != nil {
		copyCut(o.mean[c0:c1], ch.mean[c0:])
	}
	if o.invstd != nil {
		copyCut(o.invstd[c0:c1], ch.invstd[c0:])
	}
	o.track(ch, c0, c1)
}

// savedStatistics are the outputs by channel of a forward pass, nil where not wanted.
type savedStatistics struct {
	mean, invstd        []float64
	running, runningVar []float32 // updated
	momentum            Momentum
	correction          float64 // of the variance that is tracked
}

// track updates the running values of the channels c0 to c1-1.
func (o *savedStatistics) track(ch *channels, c0, c1 int) {
	if o.momentum.value() == 0 {
		return // and 0 times NaN is not added
	}
	if o.running != nil {
		for c := c0; c < c1; c++ {
			o.running[c] = o.momentum.update(o.running[c], ch.mean[c])
		}
	}
	if o.runningVar != nil {
		for c := c0; c < c1; c++ {
			o.runningVar[c] = o.momentum.update(o.runningVar[c], ch.variance[c]*o.correction)
		}
	}
}

// setAll sets the constants of z of all channels from mean and invstd.
func (w *workspace) setAll() { w.setAllFrom(nil, nil) }

// setAllFrom is setAll, after mean and invstd have been set from a mean and a variance that
// are given, unless these are nil.
func (w *workspace) setAllFrom(mean, variance []float32) {
	w.setAffines(w.geo.channels, mean, variance)
	w.spread(0, w.geo.channels, fieldN, fieldB)
}

// setAffines derives the constants of z of n channels from their statistics, which it sets
// from a given mean and variance first.
func (w *workspace) setAffines(n int, mean, variance []float32) {
	w.affines = true
	for c, together := 0, fewChannels; c < n; {
		next := w.setUsualAffines(c, n, mean, variance, false)
		if next == c { // precise channels are looked for
			w.formed = true
			next = w.setUsualAffines(c, min(c+together, n), mean, variance, true)
			together = mostSpan
		}
		if next == c {
			for next = w.fewSlowly(c, n); c < next; c++ {
				if mean != nil {
					w.channels.mean[c], w.channels.invstd[c] = givenStatistics(mean[c], variance[c], w.plan.epsilon, w.settledStatistics())
				}
				w.setAffine(c)
			}
		}
		c = next
	}
}

// settledStatistics reports whether a given mean and variance are final, not those of a batch.
func (w *workspace) settledStatistics() bool { return !w.backward || w.frozen }

// setUsualAffines is setAffines for channels from c to n-1 as long as they are usual. It
// returns the first channel that is left. With precise, precise channels are as good as
// usual ones.
func (w *workspace) setUsualAffines(c, n int, mean, variance []float32, precise bool) int {
	v, staged := w.vectors(c, n)
	if v == 0 || w.renorm.r != nil {
		return c
	}
	ch := &w.channels
	k := &channelArgs{n: v, mean: ch.mean[c:], invstd: ch.invstd[c:], epsilon: w.plan.epsilon,
		precise: allOnes(precise), settled: allOnes(w.settledStatistics())}
	switch {
	case mean != nil && staged:
		k.running, k.runningVar = ch.stage(2, mean, c, v), ch.stage(3, variance, c, v)
	case mean != nil:
		k.running, k.runningVar = mean[c:], variance[c:]
	case staged:
		fillUp(n, c+v, ch.mean, ch.invstd)
	}
	w.setAffineArgs(k, c, staged)
	k.run(channelAffine)
	next := min(c+v-k.n, n)
	clear(ch.form[c:next])
	if precise {
		ch.markForms(c, next)
	}
	return next
}

// setAffineArgs sets the arguments, beside the statistics, of a kernel that computes the
// constants of z.
func (w *workspace) setAffineArgs(k *channelArgs, c int, staged bool) {
	ch := &w.channels
	k.gamma, k.beta = from(w.gamma, c), from(w.beta, c)
	if staged {
		k.gamma, k.beta = ch.stage(0, w.gamma, c, k.n), ch.stage(1, w.beta, c, k.n)
	}
	if k.gamma == nil {
		k.gamma = ch.ones[c:]
	}
	if k.beta == nil {
		k.beta = ch.zeros[c:]
	}
	f := &ch.fields
	k.scale, k.close = ch.scale[c:], w.closeInvStd()
	k.neg, k.a, k.b, k.step = f.from(fieldN, c), f.from(fieldA, c), f.from(fieldB, c), 4*f.group
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
	f.set(w.channels.mean[c], w.channels.invstd[c], s, b, w.closeInvStd())
	w.channels.setAffine(c, &f)
}

func (ch *channels) setAffine(c int, f *affine) {
	ch.scale[c], ch.shift[c], ch.form[c], ch.power[c] = f.scale, f.beta, f.form(), f.power
	*ch.fields.ref(fieldN, c), *ch.fields.ref(fieldA, c), *ch.fields.ref(fieldB, c) = -f.m, f.a, f.b
}

// affine returns the numbers that setAffine was given, but beta only where the channel is
// wide.
func (ch *channels) affine(c int) affine {
	f := affine{mean: ch.mean[c], scale: ch.scale[c],
		m: -*ch.fields.ref(fieldN, c), a: *ch.fields.ref(fieldA, c), b: *ch.fields.ref(fieldB, c)}
	if ch.isWide(c) {
		f.beta, f.power = ch.shift[c], ch.power[c]
	}
	return f
}

// setGrads derives the constants of dx from the sums of g and of g*(x-m), and writes
// the gradients by gamma and beta, where they are wanted. With check, sums that can't be
// relied on are taken again.
func (w *workspace) setGrads(c0, c1 int, check bool, sums totals) {
	for c, end := c0, c0; c < c1; c = end {
		if end = w.setTinyGrads(c, c1, sums); end > c {
			w.saveSums(c, end, sums)
			continue
		}
		for end < c1 && !w.allIn64(end, c1) {
			first := end
			if w.channels.form[end]|w.tinyOf(end) == 0 { // all of the vector may be usual, and many behind it
				first = w.firstUnusual(end, c1)
			}
			end = min(end+max(lanes, (first-end)&^(lanes-1)), c1)
		}
		w.setMixedGrads(c, end, check, sums)
	}
	if w.frozen {
		w.channels.constantStatistics(c0, c1)
	}
}

// setMixedGrads is setGrads for channels of which some are in64. These are set first, and nothing stops at them
// while the others are set.
func (w *workspace) setMixedGrads(c0, c1 int, check bool, sums totals) {
	in64 := (w.anyTiny || w.anyFormed(c0, c1)) && w.nextIn64(c0, c1) < c1
	for c, end := c0, c0; c < c1 && in64; c = end {
		end = min(c+callChannels, c1)
		clear(w.channels.extent[c:end])
		if w.manyUnusual(c, end) {
			w.markIn64(c, end)
			w.setAllGrads64(c, end, sums)
			continue
		}
		for c = w.nextIn64(c, end); c < end; c = w.nextIn64(c+1, end) {
			w.channels.extent[c] = nan
			w.setGrads64(c, sums)
		}
	}
	w.setOtherGrads(c0, c1, check, in64, sums)
	if !in64 || w.geo.layout == cols { // in cols, x-m of these is NaN for float32 kernels
		return
	}
	for c := w.nextIn64(c0, c1); c < c1; c = w.nextIn64(c+1, c1) {
		f := &w.channels.fields // slopes are computed with a dx, which is not used, and must take no assist
		*f.ref(fieldK1, c), *f.ref(fieldK2, c) = 0, 0
	}
}

// manyUnusual reports whether so many of the channels from c to c1-1 have a form or tiny numbers that all are set as those
// that are in64. The others have the same gradients by gamma and beta then, and are set once more.
func (w *workspace) manyUnusual(c, c1 int) bool {
	const share = 8 // as one of so many
	n, forms, tiny := 0, w.channels.form[c:c1], w.channels.form[c:c1]
	if w.anyTiny {
		tiny = w.channels.tiny[c:c1]
	}
	for ; len(forms) >= lanes && len(tiny) >= lanes; forms, tiny = forms[lanes:], tiny[lanes:] {
		n += bits.OnesCount64(tinyBytes(ofEight(forms) | ofEight(tiny)))
	}
	for i, form := range forms {
		if form|tiny[i] != 0 {
			n++
		}
	}
	return n*share > c1-c
}

// markIn64 makes the extents of channels that are in64 NaN.
func (w *workspace) markIn64(c0, c1 int) {
	for c := w.nextIn64(c0, c1); c < c1; c = w.nextIn64(c+1, c1) {
		w.channels.extent[c] = nan
	}
}

// setGrads64 is setGrads for a channel that is in64.
func (w *workspace) setGrads64(c int, sums totals) {
	ch := &w.channels
	var d gradient
	d.set64(ch.mean[c], ch.invstd[c], sums.a[c], sums.b[c], w.values)
	ch.dgamma[c], ch.dbeta[c], ch.k1[c], ch.k2[c], ch.gradWide[c] = d.dgamma, d.dbeta, d.k1, d.k2, false
	if w.gammaGrad != nil {
		w.gammaGrad[c] = float32(w.dgamma(c))
	}
	if w.betaGrad != nil {
		w.betaGrad[c] = float32(d.dbeta)
	}
}

// setOtherGrads is setGrads for channels that are not in64. With marked, others may lie between, whose extents are NaN.
func (w *workspace) setOtherGrads(c0, c1 int, check, marked bool, sums totals) {
	looked := c0 // the end of the channels of which findInfinite has looked at some
	for c, together := c0, w.firstLook(); c < c1; {
		last := c1
		if c < looked {
			last = looked
		}
		if next := w.setUsualGrads(c, last, sums, !check, marked || c < looked); next > c {
			w.saveSums(c, next, sums)
			c = next
			continue
		}
		end, settled := min(c+together, last), totals{w.channels.sumA, w.channels.sumB, false}
		if c >= looked && w.findInfinite(c, end, check, sums) {
			if looked = end; marked {
				w.markIn64(c, end)
			}
			together = min(8*together, callChannels) // often many are alike
			continue
		}
		end, together = min(end, c+mostSpan), mostSpan
		if sums.ofSegments {
			w.total(c, end)
		}
		w.gradientsAgain(c, end, check, marked || c < looked)
		for c < end {
			next := w.setUsualGrads(c, end, settled, true, marked || c < looked)
			if next == c {
				next = w.fewSlowly(c, end)
				w.setGradsSlowly(c, next)
			}
			w.saveSums(c, next, settled)
			c = next
		}
	}
}

// in64 reports whether the dx of a channel is computed in float64.
func (w *workspace) in64(c int) bool {
	return (w.tinyOf(c) != 0 || w.channels.form[c] == preciseForm) && !w.channels.isWide(c)
}

// nextIn64 returns the first of the channels from c to c1-1 that is in64, or c1.
func (w *workspace) nextIn64(c, c1 int) int {
	for c < c1 && !w.in64(c) {
		if c++; c < c1 && w.in64(c) { // often every other one is
			break
		}
		c = w.firstUnusual(c, c1)
	}
	return c
}

// firstUnusual returns the first of the channels from c to c1-1 that has a form or tiny numbers, or c1.
func (w *workspace) firstUnusual(c, c1 int) int {
	forms := w.channels.form[c:c1]
	if !w.anyTiny {
		return c + firstSet(forms, forms)
	}
	return c + firstSet(forms, w.channels.tiny[c:c1])
}

// allIn64 reports whether all channels of the vector from channel c on, or of the rest, are in64.
func (w *workspace) allIn64(c, c1 int) bool {
	if !w.anyTiny && !w.anyFormed(c, c1) {
		return false
	}
	ch := &w.channels
	if c+lanes <= c1 {
		tiny, form := uint64(0), binary.LittleEndian.Uint64(ch.form[c:])
		if w.anyTiny {
			tiny = binary.LittleEndian.Uint64(ch.tiny[c:])
		}
		return noByteZero(tiny|form) && form&(wideForm*eachByte) == 0
	}
	for end := min(c+lanes, c1); c < end; c++ {
		if !w.in64(c) {
			return false
		}
	}
	return true
}

// saveSums writes the sums where they are wanted.
func (w *workspace) saveSums(c, next int, sums totals) {
	if w.sumG != nil {
		copy(w.sumG[c:next], sums.a[c:])
		copy(w.sumGD[c:next], sums.b[c:])
	}
}

// setTinyGrads is setGrads for channels from c to c1-1 as long as all of a vector are in64. It
// returns the first channel that is left. Their sums are final.
func (w *workspace) setTinyGrads(c, c1 int, sums totals) (end int) {
	for end = c; end < c1 && end-c < callChannels && w.allIn64(end, c1); {
		end = min(end+lanes, c1)
	}
	if end > c {
		w.setAllGrads64(c, end, sums)
	}
	return end
}

// setAllGrads64 is setGrads64 for the channels from c to end-1.
func (w *workspace) setAllGrads64(c, end int, sums totals) {
	ch := &w.channels
	clear(ch.gradWide[c:end])
	gammaGrad := w.gammaGrad
	if w.renorm.r != nil {
		gammaGrad = nil
	}
	v := w.plan.path.whole(end - c)
	if v > 0 {
		k := &channelArgs{n: v, count: w.values, sumA: sums.a[c:], sumB: sums.b[c:], mean: ch.mean[c:], invstd: ch.invstd[c:],
			dgamma: ch.dgamma[c:], dbeta: ch.dbeta[c:], otherA: ch.k1[c:], otherB: ch.k2[c:],
			gammaGrad: from(gammaGrad, c), betaGrad: from(w.betaGrad, c)}
		k.run(channelGradients64)
	}
	for i := c + v; i < end; i++ {
		w.setGrads64(i, sums)
	}
	if w.renorm.r != nil && w.gammaGrad != nil {
		w.saveGammaGrad(c, end)
	}
}

// setUsualGrads is setGrads for channels from c to c1-1 as long as they are usual. It
// returns the first channel that is left. Settled sums are final. With looked, those of channels
// whose extent is not finite are, too.
func (w *workspace) setUsualGrads(c, c1 int, sums totals, settled, looked bool) int {
	ch, f := &w.channels, &w.channels.fields
	end := min(c1, c+callChannels)
	if i := bytes.IndexByte(ch.form[c:end], wideForm); i >= 0 {
		end = c + i
	}
	v, staged := w.vectors(c, end)
	if v == 0 {
		return c
	}
	trusted := trustedInvStd
	if settled {
		trusted = math.Inf(1)
	}
	k := &channelArgs{n: v, count: w.values, trusted: trusted, settled: allOnes(settled),
		sumA: sums.a[c:], sumB: sums.b[c:], mean: ch.mean[c:], invstd: ch.invstd[c:], neg: f.from(fieldN, c),
		dgamma: ch.dgamma[c:], dbeta: ch.dbeta[c:], k1: f.from(fieldK1, c), k2: f.from(fieldK2, c), step: 4 * f.group}
	gammaGrad, betaGrad := w.gammaGrad, w.betaGrad
	if w.renorm.r != nil {
		gammaGrad = nil
	}
	k.gammaGrad, k.betaGrad = from(gammaGrad, c), from(betaGrad, c)
	if looked {
		k.extent = ch.extent[c:]
	}
	if staged {
		fillUp(c1, c+v, sums.a, sums.b, ch.mean, ch.invstd)
		fillUp(c1, c+v, ch.extent)
		k.gammaGrad, k.betaGrad = ch.stage(0, gammaGrad, c, v), ch.stage(1, betaGrad, c, v)
	}
	k.run(channelBackward)
	next := min(c+v-k.n, end)
	clear(ch.gradWide[c:next])
	if staged {
		copy(slice(gammaGrad, c, next-c), k.gammaGrad)
		copy(slice(betaGrad, c, next-c), k.betaGrad)
	}
	if w.renorm.r != nil && w.gammaGrad != nil {
		w.saveGammaGrad(c, next)
	}
	return next
}

// setGradsSlowly is setGrads for channels of which some are unusual.
func (w *workspace) setGradsSlowly(c0, c1 int) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		if w.in64(c) { // set before
			continue
		}
		f := ch.affine(c)
		var d gradient
		d.set(&f, ch.invstd[c], ch.sumA[c], ch.sumB[c], w.values)
		ch.dgamma[c], ch.dbeta[c] = d.dgamma, d.dbeta
		ch.k1[c], ch.k2[c] = d.k1, d.k2
		ch.gradWide[c] = f.wide() || d.wide && ch.needsCare(c)
		*ch.fields.ref(fieldK1, c), *ch.fields.ref(fieldK2, c) = float32(d.k1), float32(d.k2)
		if w.betaGrad != nil {
			w.betaGrad[c] = float32(d.dbeta)
		}
	}
	if w.gammaGrad != nil {
		w.saveGammaGrad(c0, c1)
	}
}

// saveGammaGrad writes the gradients by gamma of some channels.
func (w *workspace) saveGammaGrad(c0, c1 int) {
	for c := c0; c < c1; c++ {
		w.gammaGrad[c] = float32(w.dgamma(c))
	}
}

// needsCare reports whether dx of a channel needs scaled values. The channel is not wide,
// but constants of dx are outside of float32's comfortable range. Constants that are only
// small do no harm if gradients and deviations are in it. Gradients that are all 0, or not
// all finite, need no scaling, unless they are 0 in a part of a batch alone. Neither does dx that
// is not finite.
func (ch *channels) needsCare(c int) bool {
	e, k2 := ch.extent[c], ch.k2[c]
	if e == 0 && ch.k1[c] == 0 && k2 == 0 || !isNumber(e) || k2-k2 != 0 {
		return false
	}
	return !comfortable(e) || wild(ch.invstd[c], tameMin, tameMax) || math.Abs(ch.k1[c]) > sureMax || math.Abs(k2) > sureMax
}

// scaledGradient returns the constants of dx of a channel, and the powers by which its
// values are to be scaled.
func (ch *channels) scaledGradient(c int) scaledGradient {
	f := ch.affine(c)
	if !ch.gradWide[c] {
		return scaledGradient{m: f.m, scale: f.factor(), k1: *ch.fields.ref(fieldK1, c), k2: *ch.fields.ref(fieldK2, c)}
	}
	d := gradient{k1: ch.k1[c], k2: ch.k2[c]}
	return d.scaled(&f, ch.powerX[c], ch.powerG[c])
}

// constantStatistics removes the share of the statistics from dx, as they don't depend
// on x. g is not scaled: dx is a product of it with the scale alone.
func (ch *channels) constantStatistics(c0, c1 int) {
	clear(ch.powerG[c0:c1])
	clearCut(ch.k1[c0:c1])
	clearCut(ch.k2[c0:c1])
	for c := c0; c < c1; c++ {
		*ch.fields.ref(fieldK1, c), *ch.fields.ref(fieldK2, c) = 0, 0
	}
	for c := c0; c < c1; c++ {
		ch.gradWide[c] = ch.isWide(c)
	}
}

// noSums sets the constants of dx in a backward pass without sums, which is like that of
// constant statistics.
func (w *workspace) noSums() {
	w.frozen = true
	n := w.geo.channels
	w.channels.constantStatistics(0, n)
	w.spread(0, n, fieldK1, fieldK2)
}

// spread copies the fields from first to last of the channels c0 to c1-1 into the records
// of the kernels, unless they are there. In cols it copies all channels.
func (w *workspace) spread(c0, c1, first, last int) {
	g, fields := w.geo, &w.channels.fields
	switch {
	case fields.group != lanes: // they are records, which all fields of the other columns repeat
		for n, end := coefLen*g.channels, coefLen*g.width; n < end; {
			n += copy(w.coef[n:end], w.coef[:n])
		}
	case g.layout == rows:
		for f := first; f <= last; f++ {
			field := fields.of(f)
			for c := c0; c < c1; c++ {
				w.coef[c*coefLen+f] = field[c]
			}
		}
	case g.unit > 1:
		for f := first; f <= last; f++ {
			field := fields.of(f)
			for j := range g.width {
				w.coef[j/lanes*lanes*coefLen+f*lanes+j%lanes] = field[w.channelOf(j)]
			}
		}
	default:
		for f := first; f <= last; f++ {
			field := fields.of(f)
			for c := range lanes - 1 {
				field[g.channels+c] = field[c]
			}
		}
		for f := first; f <= last; f++ {
			repeatField(w.coef[f*lanes:], fields.of(f), g.channels, w.side*g.width)
		}
	}
}

// repeatField copies a field of some channels, which is followed by that of the first ones
// once more, into the records of n columns, over and over again.
func repeatField(records, field []float32, channels, n int) {
	const half = lanes / 2 // a copy of more is a call, since it might overlap
	to, from := unsafe.Pointer(&records[0]), unsafe.Pointer(&field[0])
	last := (ceilDiv(n, lanes) - 1) * lanes * coefLen
	_, _ = records[last+lanes-1], field[channels+lanes-2]
	for i, c := 0, 0; i <= last; i += lanes * coefLen {
		*(*[half]float32)(unsafe.Add(to, 4*i)) = *(*[half]float32)(unsafe.Add(from, 4*c))
		*(*[half]float32)(unsafe.Add(to, 4*(i+half))) = *(*[half]float32)(unsafe.Add(from, 4*(c+half)))
		for c += lanes; c >= channels; {
			c -= channels
		}
	}
}

// channelOf returns the channel of a column.
func (w *workspace) channelOf(j int) int {
	g := w.geo
	switch {
	case g.width == g.channels:
		return j
	case g.fold == 1:
		return j / g.unit
	}
	return int(w.plan.folded[j])
}

// wide reports whether the outputs of a channel are computed from scaled values.
func (w *workspace) wide(c int) bool {
	if w.backward {
		return w.channels.gradWide[c]
	}
	return w.channels.isWide(c) && w.channels.power[c] != 0
}

// anyWide reports whether the outputs of one of the channels c0 to c1-1 are computed from
// scaled values.
func (w *workspace) anyWide(c0, c1 int) bool {
	first := -1
	if w.backward {
		first = indexTrue(w.channels.gradWide[c0:c1])
	} else if w.anyFormed(c0, c1) {
		first = bytes.IndexByte(w.channels.form[c0:c1], wideForm)
	}
	if first < 0 {
		return false
	}
	for c := c0 + first; c < c1; c++ {
		if w.wide(c) {
			return true
		}
	}
	return false
}

// anyFormed reports whether one of the channels c0 to c1-1 may have a form.
func (w *workspace) anyFormed(c0, c1 int) bool {
	if w.affines {
		return w.formed
	}
	return anySet(w.channels.form[c0:c1])
}

// indexTrue returns the index of the first true, or -1. It looks at many at a time, since
// every call looks at all channels.
func indexTrue(list []bool) int {
	return bytes.IndexByte(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(list))), len(list)), 1)
}

var nan = float32(math.NaN())

// wideOutputs is for a channel that is wide.
const wideOutputs = 1 << 7

// findInBlocks sets how the outputs of the channels c0 to c1-1 are written: those of wide
// channels, and those that are made of tiny numbers, are written block by block. It reports
// whether there are any; otherwise nothing may be set.
func (w *workspace) findInBlocks(c0, c1 int) bool {
	form := w.channels.form[c0:c1]
	wide, precise := w.anyWide(c0, c1), w.anyFormed(c0, c1) && bytes.IndexByte(form, preciseForm) >= 0
	if !wide && !precise && !w.anyTiny {
		return false
	}
	outputs := w.channels.outputs[c0:c1]
	if w.anyTiny {
		copy(outputs, w.channels.tiny[c0:c1])
	} else {
		clear(outputs)
	}
	for c := c0; wide && c < c1; c++ {
		if w.wide(c) {
			outputs[c-c0] |= wideOutputs
		}
	}
	if precise {
		addFactors(outputs, form)
	}
	return anySet(outputs)
}

// anySet reports whether bytes are not all 0: the first one is not, or they are not all equal.
func anySet(list []byte) bool { return list[0] != 0 || !bytes.Equal(list[1:], list[:len(list)-1]) }

// anyInBlocks reports whether one of the channels c0 to c1-1 has outputs that are written
// block by block.
func (w *workspace) anyInBlocks(c0, c1 int) bool {
	return w.someInBlocks && anySet(w.channels.outputs[c0:c1])
}

// setSaved sets the statistics of all channels to those of a forward pass.
func (w *workspace) setSaved(mean, invstd []float64) {
	copyCut(w.channels.mean, mean)
	copyCut(w.channels.invstd, invstd)
	w.setAll()
}

// track updates running values by the values of a batch, times a factor.
func (p Path) track(running []float32, batch []float64, factor float64, m Momentum) {
	w := m.value()
	if w == 0 {
		return // and 0 times NaN is not added
	}
	v := p.whole(len(running))
	if w == 1 {
		v = 0
	}
	for c := 0; c < v; c += callChannels {
		k := &channelArgs{n: min(callChannels, v-c), running: running[c:], mean: batch[c:], weight: w, cross: 1 - w, count: factor}
		k.run(channelTrack)
	}
	for c := v; c < len(running); c++ {
		running[c] = m.update(running[c], batch[c]*factor)
	}
}
