package batchnorm

import (
	"math"
	"sync/atomic"
)

// Sums that can't be relied on. A channel is flagged; its largest value is looked
// for, which tells the power of two to scale by; and its sums are taken again.

// rescued counts channels whose sums were taken again, for tests.
var rescued atomic.Int64

// infinite is the bits of an infinity; those of NaN are larger, and all others smaller.
const infinite = 0x7f800000

// largestOf returns the bits of the largest magnitude of some values, or of m. A NaN is
// larger than an infinity, and that larger than all numbers.
func largestOf(values []float32, m uint32) uint32 {
	for _, v := range values {
		m = max(m, math.Float32bits(v)&^signBit)
	}
	return m
}

// exponentOf returns e with 2^e <= v < 2^(e+1), and 0 of zero.
func exponentOf(v float64) int {
	if v == 0 || v-v != 0 {
		return 0
	}
	_, e := math.Frexp(v)
	return e - 1
}

// measure looks for the largest magnitude of every flagged channel of c0 to c1-1: of x
// forward and of g backward.
func (w *workspace) measure(c0, c1 int) {
	ch := &w.channels
	any := false
	for c := c0; c < c1; c++ {
		if ch.flag[c] {
			ch.extent[c] = 0
			any = true
		}
	}
	if !any {
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	g, k := w.geo, &buf.constants
	if g.layout == cols {
		for j, n, ok := w.nextSpan(0, c0, c1); ok; j, n, ok = w.nextSpan(j+n, c0, c1) {
			w.setSpan(k, j, n)
			w.measureSpan(buf, k, j, n)
		}
		return
	}
	for c := c0; c < c1; c++ {
		if ch.flag[c] {
			k.reset(rows)
			w.setCareful(k, 0, c)
			w.measureRow(buf, k, c)
		}
	}
}

func (w *workspace) measureRow(buf *buffers, k *constants, c int) {
	g, extent := w.geo, &w.channels.extent[c]
	for o := range g.outer {
		for i := 0; i < g.inner; i += bufferLen {
			b := w.packRows(&w.again, buf, c, o, 1, i, min(bufferLen, g.inner-i))
			if *extent = largestOf(w.measured(buf, k, &b), *extent); *extent >= infinite {
				return
			}
		}
	}
}

// measureSpan measures n columns from column j on.
func (w *workspace) measureSpan(buf *buffers, k *constants, j, n int) {
	g, largest := w.geo, buf.largest[:n]
	clear(largest)
	most := bufferLen / n
	for r := 0; r < g.height && !w.nothingToSave(largest, j); r += most {
		w.measureBlock(buf, k, largest, r*g.width+j, min(most, g.height-r))
	}
	if rest := min(n, g.rest-j); rest > 0 {
		w.measureBlock(buf, k, largest[:rest], g.height*g.width+j, 1)
	}
	for i, v := range largest {
		e := &w.channels.extent[w.channelOf(j+i)]
		*e = max(*e, v)
	}
}

// nothingToSave reports whether all flagged columns from column j on hold values that
// are no numbers, so that no others need be looked at.
func (w *workspace) nothingToSave(largest []uint32, j int) bool {
	for i, v := range largest {
		if v < infinite && w.channels.flag[w.channelOf(j+i)] {
			return false
		}
	}
	return true
}

// measureBlock measures rows of columns, from element i of the geometry's tensor on.
func (w *workspace) measureBlock(buf *buffers, k *constants, largest []uint32, i, rows int) {
	n := len(largest)
	b := w.packCols(&w.again, buf, i, rows, n)
	v := w.measured(buf, k, &b)
	for r := range rows {
		for j, v := range v[r*n : (r+1)*n] {
			largest[j] = max(largest[j], math.Float32bits(v)&^signBit)
		}
	}
}

// measured returns the values of a block to take the largest magnitude of: x forward,
// g backward.
func (w *workspace) measured(buf *buffers, k *constants, b *block) []float32 {
	if w.backward {
		return w.gradients(w.again.act, buf, b, k)[:b.rows*b.n]
	}
	return b.x
}

// mostSpan is how many columns are handled together at most.
const mostSpan = 256

// nextSpan returns the next columns from j on, whole cache lines, of which each has one
// of a flagged channel of c0 to c1-1.
func (w *workspace) nextSpan(j, c0, c1 int) (first, n int, ok bool) {
	g := w.geo
	flagged := func(j int) bool {
		for k := j; k < min(j+lineLen, g.width); k++ {
			if c := w.channelOf(k); c >= c0 && c < c1 && w.channels.flag[c] {
				return true
			}
		}
		return false
	}
	for j < g.width && !flagged(j) {
		j += lineLen
	}
	for n < mostSpan && j+n < g.width && flagged(j+n) {
		n += lineLen
	}
	return j, min(n, g.width-j), n > 0
}

// setSpan sets the constants of n columns from column j on, but for the powers that
// sums are scaled by.
func (w *workspace) setSpan(k *constants, j, n int) {
	k.reset(cols)
	for i := range n {
		w.setCareful(k, i, w.channelOf(j+i))
	}
}

// sumAgain takes the sums of the flagged channels of c0 to c1-1 once more, of values
// scaled by their powers, and takes the powers back.
func (w *workspace) sumAgain(c0, c1 int) {
	ch, g := &w.channels, w.geo
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	k := &buf.constants
	if g.layout == cols {
		for j, n, ok := w.nextSpan(0, c0, c1); ok; j, n, ok = w.nextSpan(j+n, c0, c1) {
			w.setSpan(k, j, n)
			for i := range n {
				w.setSumPowers(k, i, w.channelOf(j+i))
			}
			for seg := range g.segments {
				w.sumSpan(&w.again, seg, j, n, k)
			}
		}
	}
	for c := c0; c < c1; c++ {
		if !ch.flag[c] {
			continue
		}
		rescued.Add(1)
		if g.layout == rows {
			k.reset(rows)
			w.setCareful(k, 0, c)
			w.setSumPowers(k, 0, c)
			s := w.rowScratch.take()
			s.next.images = 0
			for seg := range g.segments {
				w.sumGroup(&w.again, s, c, c+1, seg, &s.next, k)
			}
			w.giveRowScratch(s)
		}
		w.total(c, c+1)
		x, gp := ch.powerX[c], ch.powerG[c]
		if !w.backward {
			ch.sumA[c], ch.sumB[c] = math.Ldexp(ch.sumA[c], -x), math.Ldexp(ch.sumB[c], -2*x)
			continue
		}
		p, r := math.Ldexp(ch.sumA[c], -gp), math.Ldexp(ch.sumB[c], -gp-x)
		mean := ch.mean[c]
		subtracted := math.Ldexp(float64(float32(math.Ldexp(mean, x))), -x) // from x
		ch.sumA[c], ch.sumB[c] = p, r+float64((subtracted-float64(float32(mean)))*p)
	}
}

// xPower returns the power of two that brings a channel to a deviation of about 1, or
// a smaller one where that would be too much for the mean.
func xPower(mean, invstd float64) int {
	p := 0
	if invstd != 0 {
		p = exponentOf(invstd) + 1
	}
	if mean != 0 {
		p = min(p, mostPower-largeMeanPower-exponentOf(mean))
	}
	return clampPower(p)
}

// setSumPowers sets the powers of a row or column, and the mean that backward sums
// subtract from x.
func (w *workspace) setSumPowers(k *constants, j, c int) {
	ch := &w.channels
	x, g := 0, 0
	if ch.flag[c] {
		x, g = ch.powerX[c], ch.powerG[c]
	}
	k.setX(j, x)
	if !w.backward {
		return
	}
	k.setG(j, g)
	k.set(k.dx, j, fieldN, -float32(math.Ldexp(ch.mean[c], x)))
}

// sumScaledWindow takes the sums of a window of a channel in rows, of scaled values.
func (w *workspace) sumScaledWindow(st *stage, s *rowScratch, c int, win window, coef []float32, k *constants) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	if w.backward {
		coef = k.dx
	}
	for o := win.o; o < win.o+win.images; {
		images, most := 1, pieceSingle
		if win.o+win.images-o >= groupSize {
			images, most = groupSize, pieceFour
		}
		for i := win.i; i < win.i+win.n; i += most {
			n := min(most, win.i+win.n-i)
			b := w.packRows(st, buf, c, o, images, i, n)
			x, g := w.scaledOperands(st, buf, &b, k)
			args := &s.args
			*args = kernelArgs{x: x, dy: g, coef: coef, sums: s.sums, rows: 1, n: n, stride: n}
			args.begin(0, images)
			w.plan.path.runAll(st.kernel, Identity, args)
		}
		o += images
	}
}

// ---- which channels

// overflowPower is the power of two for values whose squares overflow.
const overflowPower = -100

// momentsAgain takes the moments of channels again whose variance float32 can't tell:
// the squares overflowed, or vanished beside the variance and epsilon.
func (w *workspace) momentsAgain(c0, c1 int) {
	ch := &w.channels
	any := false
	// Where only the squares overflowed, all values are numbers, and a power that brings
	// the largest of all back does for the least whose square overflows.
	overflowed := func(c int) bool { return math.IsInf(ch.sumB[c], 1) && ch.sumA[c]-ch.sumA[c] == 0 }
	for c := c0; c < c1; c++ {
		v := ch.sumB[c] / w.values
		unsafe := !sumsAreSafe(v, w.plan.epsilon)
		any = any || unsafe
		ch.flag[c] = unsafe && !overflowed(c)
	}
	if !any {
		return
	}
	w.measure(c0, c1)
	for c := c0; c < c1; c++ {
		if overflowed(c) {
			ch.flag[c], ch.powerX[c], ch.powerG[c] = true, overflowPower, 0
			continue
		}
		if !ch.flag[c] {
			continue
		}
		switch e := ch.extent[c]; {
		case e >= infinite: // the mean tells what it is; there is no variance
			ch.flag[c], ch.sumB[c] = false, math.NaN()
		case e == 0:
			ch.flag[c], ch.sumA[c], ch.sumB[c] = false, 0, 0
		default:
			ch.powerX[c], ch.powerG[c] = clampPower(-exponentOf(float64(math.Float32frombits(e)))), 0
		}
	}
	w.sumAgain(c0, c1)
}

// gradientsAgain takes the gradients' sums of channels again that float32 can't tell,
// if check says so, and decides which channels need care when dx is computed.
func (w *workspace) gradientsAgain(c0, c1 int, check bool) {
	ch := &w.channels
	for c := c0; c < c1; c++ {
		ch.flag[c] = check && w.suspicious(c) || w.strange(c)
	}
	w.measure(c0, c1)
	for c := c0; c < c1; c++ {
		if !ch.flag[c] {
			ch.extent[c] = 0
			continue
		}
		e := ch.extent[c]
		ch.powerX[c], ch.powerG[c] = 0, 0
		if e < infinite && e > 0 {
			ch.powerX[c] = xPower(ch.mean[c], ch.invstd[c])
			ch.powerG[c] = clampPower(-exponentOf(float64(math.Float32frombits(e))))
		}
		switch {
		case !check || !w.suspicious(c):
			ch.flag[c] = false
		case e >= infinite: // then the sum of g*xhat is no number, whatever the rounding of m makes of it
			ch.flag[c], ch.sumB[c] = false, math.NaN()
		case e == 0:
			ch.flag[c], ch.sumA[c], ch.sumB[c] = false, 0, 0
		case comfortable(e) && !ch.wide[c] && !wild(ch.invstd[c], tameMin, tameMax) && ch.sumA[c]-ch.sumA[c] == 0 && ch.sumB[c]-ch.sumB[c] == 0:
			ch.flag[c] = false // they cancel, and nothing has vanished
		}
	}
	if check {
		w.sumAgain(c0, c1)
	}
}

// suspicious reports whether the sums of a backward pass may have overflowed, or
// lost what vanished, or were taken with constants for scaled values.
func (w *workspace) suspicious(c int) bool {
	ch := &w.channels
	if ch.wide[c] && ch.power[c] != 0 {
		return true
	}
	p, r, invstd := ch.sumA[c], ch.sumB[c], ch.invstd[c]
	if invstd != invstd || p == 0 && r == 0 && w.trust && invstd <= trustMost {
		return false
	}
	return !gradSumsAreSafe(p, r, w.values, invstd)
}

// strange reports whether dx of a channel may need care: its constants are outside of
// float32's comfortable range, and gradients are to tell.
func (w *workspace) strange(c int) bool {
	f := w.channels.affine(c)
	var d gradient
	d.set(&f, w.channels.invstd[c], w.channels.sumA[c], w.channels.sumB[c], w.values)
	return d.wide
}

// comfortable reports whether gradients of this largest magnitude need no scaling.
func comfortable(bits uint32) bool {
	v := float64(math.Float32frombits(bits))
	return v >= tameMin && v <= tameMax
}
