package batchnorm

import "math"

// Channels with many zeros: gradients behind ReLU, or of a masked loss. Where all four values that
// decide whether a channel is tiny are 0, more values decide, those behind each of the four. Their
// number is a share of the values, so that a look at a channel of zeros takes little of its time.

const (
	mostBehind  = 64  // values behind a sampled one
	behindShare = 128 // they are at most 1/behindShare of a channel
)

// behind has the elements of channel 0, in the caller's tensors, that lie behind sampled ones.
type behind struct {
	known     bool // for the call
	n         int  // of the list
	stretches [tinySample * mostBehind]stretch
}

// stretch is n elements, step floats apart.
type stretch struct{ first, n, step int }

// behindEach returns how many values behind each sampled one decide. Rows shorter than a vector count as
// one value, as their first values are the sample.
func (g *geometry) behindEach() int {
	n := g.outer * g.inner
	if g.inner < lanes {
		n = g.outer
	}
	return min(mostBehind, n/behindShare)
}

// valuesBehind returns the values behind the sampled ones of channel 0.
func (w *workspace) valuesBehind() []stretch {
	b, g := &w.behind, w.geo
	if !b.known {
		b.known, b.n = true, 0
		step := 1
		if g.inner < lanes {
			step = g.inner
		}
		for k, each := 0, g.behindEach(); k < tinySample; k++ {
			first := k * g.outer * g.inner / tinySample / step * step
			for p := first + step; p <= first+each*step; p += step {
				b.add(w.element(p/g.inner*g.channels*g.inner + p%g.inner))
			}
		}
	}
	return b.stretches[:b.n]
}

// add adds an element, to the last stretch if that goes on so.
func (b *behind) add(i int) {
	if b.n > 0 {
		switch last := &b.stretches[b.n-1]; {
		case last.n == 1:
			last.n, last.step = 2, i-last.first
			return
		case i == last.first+last.n*last.step:
			last.n++
			return
		}
	}
	b.stretches[b.n] = stretch{i, 1, 1}
	b.n++
}

// largestBehind returns the bits of the largest magnitude of a channel's values behind the sampled ones,
// or those of one that is not small.
func (w *workspace) largestBehind(values []float32, behind int) (most uint32) {
	for _, s := range w.valuesBehind() {
		v := values[s.first+behind:][:(s.n-1)*s.step+1]
		if s.step == 1 && allZero(v) {
			continue
		}
		for i := 0; i < len(v); i += s.step {
			if most = max(most, magnitudeBits(v[i])); most > smallFirstBits {
				return most
			}
		}
	}
	return most
}

// allZero reports whether all values are 0 or -0.
func allZero(values []float32) bool {
	bits := uint32(0)
	for ; len(values) >= 4; values = values[4:] {
		bits |= math.Float32bits(values[0]) | math.Float32bits(values[1]) | math.Float32bits(values[2]) | math.Float32bits(values[3])
	}
	for _, v := range values {
		bits |= math.Float32bits(v)
	}
	return bits<<1 == 0
}

// findTinyBehind is findUnusual for channels from 0 to n-1 whose sampled values, all of them, are 0. They
// are less than a vector apart.
func (w *workspace) findTinyBehind(values []float32, kind byte, at *[tinySample]int, next, n int) {
	if w.geo.behindEach() == 0 {
		return
	}
	for c := 0; c < n; {
		end := min(n, c+mostSpan)
		for c < end && values[at[0]+c*next] != 0 {
			c++
		}
		switch {
		case c == end:
		case next == 1:
			w.findTinyColumns(values, kind, at, c, end)
			c = end
		default:
			if largestAt(values, at, c*next) == 0 {
				w.look(c, kind, 0, w.largestBehind(values, c*next))
			}
			c++
		}
	}
}

// findTinyColumns is findTinyBehind for the adjacent channels from c to end-1.
func (w *workspace) findTinyColumns(values []float32, kind byte, at *[tinySample]int, c, end int) {
	sampled := w.channels.extent[c:end]
	w.largestSampled(values[c:], at, sampled)
	zeros := 0
	for _, v := range sampled {
		if v == 0 {
			zeros++
		}
	}
	if zeros == 0 {
		return
	}
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	most := buf.largest[:len(sampled)]
	clear(buf.largest[:roundUp(len(most), lanes)])
	for _, s := range w.valuesBehind() {
		w.larger(values[s.first+c:], s.n, len(most), s.step, most)
	}
	for i, v := range sampled {
		if v == 0 {
			w.look(c+i, kind, 0, math.Float32bits(most[i]))
		}
	}
}
