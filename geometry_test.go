package batchnorm

import (
	"math/rand/v2"
	"testing"
)

// geometries calls a test with many walks, each of all values of a shape.
func geometries(t *testing.T, test func(t *testing.T, s Shape, g *geometry)) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	size := func(most int) int { // small ones as often as large ones, and around powers of two
		n := 1 << r.IntN(most)
		switch r.IntN(3) {
		case 0:
			n = max(1, n+r.IntN(3)-1)
		case 1:
			n += r.IntN(n)
		}
		return n
	}
	for range 5000 {
		s := Shape{Outer: size(18), Channels: size(13), Inner: size(20)}
		switch r.IntN(4) {
		case 0:
			s.Inner = 1
		case 1:
			s.Inner = 1 + r.IntN(20)
		case 2:
			s.Outer = r.IntN(10)
		}
		if s.Valid() != nil { // too large for an int of 32 bits
			continue
		}
		list := []geometry{newGeometry(s)}
		if n := s.PerChannel(); n > 0 { // as masks leave them
			list = append(list, rowGeometry(1, s.Channels, n))
			if n <= 1<<20 { // there are no more windows than can be looked at
				list = append(list, colGeometry(n, s.Channels, 1))
			}
		}
		for _, g := range list {
			if test(t, s, &g); t.Failed() {
				t.Fatalf("%v is walked as %+v", s, g)
			}
		}
	}
}

// TestSegments: segments have every value once, in order, and there are not too many.
func TestSegments(t *testing.T) {
	t.Parallel()
	geometries(t, func(t *testing.T, s Shape, g *geometry) {
		if g.segments > maxSegments {
			t.Errorf("%d segments, at most %d are allowed", g.segments, maxSegments)
		}
		if g.layout == cols {
			colSegmentsCover(t, g)
		} else {
			rowSegmentsCover(t, g)
		}
		// As total adds them up.
		seen := 0
		for j := 0; j < g.columns(); j += g.channels * g.unit {
			for range g.unit {
				for seg := range g.segments {
					seen += g.segmentLen(seg)
					if g.layout == cols && seg == g.segments-1 && j < g.rest {
						seen++
					}
				}
			}
		}
		if g.outer*g.inner != s.PerChannel() || seen != s.PerChannel() {
			t.Errorf("%d of %d values of a channel are summed", seen, s.PerChannel())
		}
	})
}

func rowSegmentsCover(t *testing.T, g *geometry) {
	o, i := 0, 0 // where the next begins
	for seg := range g.segments {
		s := g.segment(seg)
		if s.o != o || s.i != i || s.images < 1 || s.n < 1 || s.i%lanes != 0 {
			t.Errorf("segment %d is %+v, want it to begin at image %d, value %d", seg, s, o, i)
			return
		}
		whole := s.o+s.images < g.outer || s.i+s.n < g.inner // it is not the last
		if whole && (g.segsPerImage == 1 || s.i+s.n < g.inner) && s.o+s.images < g.outer && s.len() < segmentSize {
			t.Errorf("segment %d has %d values, want %d at least", seg, s.len(), segmentSize)
		}
		if s.o+s.images < g.outer && s.images%quadSize != 0 {
			t.Errorf("segment %d has %d images, want quads of %d", seg, s.images, quadSize)
		}
		if i += s.n; i == g.inner {
			o, i = o+s.images, 0
		}
	}
	if g.outer > 0 && (o != g.outer || i != 0) {
		t.Errorf("segments end at image %d, value %d; want %d, 0", o, i, g.outer)
	}
}

func colSegmentsCover(t *testing.T, g *geometry) {
	if g.height*g.width+g.rest != g.outer*g.channels*g.unit || g.rest >= g.width || g.rest < 0 {
		t.Errorf("%d rows of %d values and %d do not make %d", g.height, g.width, g.rest, g.outer*g.channels*g.unit)
	}
	if g.fold > 1 && g.height < minHeight {
		t.Errorf("%d rows are left, want %d", g.height, minHeight)
	}
	block, row := 0, 0
	for seg := range g.segments {
		b0, b1 := g.colSegment(seg)
		if b0 != block || b1 <= b0 {
			t.Errorf("segment %d has windows %d to %d, want it to begin at %d", seg, b0, b1, block)
		}
		if rows := min(b1*windowRows, g.height) - b0*windowRows; seg < g.segments-1 && rows*g.width < segmentSize {
			t.Errorf("segment %d has %d values, want %d at least", seg, rows*g.width, segmentSize)
		}
		for ; block < b1; block++ {
			r0, r1 := g.colWindow(block)
			if r0 != row || r1 <= r0 || r1 > r0+windowRows {
				t.Errorf("window %d has rows %d to %d, want it to begin at %d", block, r0, r1, row)
			}
			row = r1
		}
	}
	if block != g.windows || row != g.height {
		t.Errorf("segments end at window %d of %d and row %d of %d", block, g.windows, row, g.height)
	}
}

// TestWindows: the windows of a segment have every value once, in order. They grow, but
// none is much larger than all before it, and none cuts what kernels sum in float32.
func TestWindows(t *testing.T) {
	t.Parallel()
	geometries(t, func(t *testing.T, _ Shape, g *geometry) {
		if g.layout == cols {
			return
		}
		for _, seg := range []int{0, g.segments / 2, g.segments - 1} {
			if seg < 0 || seg >= g.segments {
				continue
			}
			windowsCover(t, g.segment(seg))
			if t.Failed() {
				return
			}
		}
	})
}

func windowsCover(t *testing.T, s window) {
	p := s.probe()
	if p.o != s.o || p.i != s.i || p.images > s.images || p.n > s.n || p.len() > probeLen || p.images != 1 && p.images != quadSize {
		t.Errorf("the probe of %+v is %+v", s, p)
	}
	o, i, seen, side := s.o, s.i, 0, 0
	for w, before, ok := s.next(window{}); ok; w, before, ok = s.next(w) {
		if w.o != o || w.i != i || w.images < 1 || w.n < 1 || w.o+w.images > s.o+s.images || w.i+w.n > s.i+s.n || before != seen {
			t.Errorf("window %+v of %+v, behind %d values, want it to begin at image %d, value %d, behind %d", w, s, before, o, i, seen)
			return
		}
		if most := max(windowLen, windowGrowth*seen); w.len() > most {
			t.Errorf("window %+v of %+v has %d values, at most %d are allowed", w, s, w.len(), most)
		}
		left := s.o + s.images - w.o
		if left >= quadSize && w.images < left && w.images%quadSize != 0 {
			t.Errorf("window %+v of %+v has %d images, want quads of %d", w, s, w.images, quadSize)
		}
		if w.n < s.n { // a part of rows
			piece := pieceSingle
			if w.images == quadSize {
				piece = pieceFour
			} else if w.images != 1 || left >= quadSize {
				t.Errorf("window %+v of %+v is a part of %d rows", w, s, w.images)
			}
			if (w.i-s.i)%piece != 0 || w.n%piece != 0 && w.i+w.n != s.i+s.n {
				t.Errorf("window %+v of %+v cuts a piece of %d values", w, s, piece)
			}
			if i > s.i && w.images != side {
				t.Errorf("window %+v of %+v goes on with %d images, which %d began", w, s, w.images, side)
			}
		}
		seen += w.len()
		side = w.images
		if i += w.n; i == s.i+s.n {
			o, i = o+w.images, s.i
		}
	}
	if seen != s.len() || o != s.o+s.images || i != s.i {
		t.Errorf("the windows of %+v have %d of %d values", s, seen, s.len())
	}
}

// TestSegmentsOfMerge: segments are as the comment of [MergeMoments] says, and a part of
// that size is one.
func TestSegmentsOfMerge(t *testing.T) {
	one := func(s Shape) {
		if g := newGeometry(s); g.segments != 1 {
			t.Errorf("a part of %v has %d segments", s, g.segments)
		}
	}
	for inner := 8; inner <= 16384; inner *= 2 {
		for _, channels := range []int{1, 2, 3, 64} {
			rows := 65536 / inner
			for _, segments := range []int{1, 2, 3, 63, 64} {
				s := Shape{Outer: rows * segments, Channels: channels, Inner: inner}
				g := newGeometry(s)
				if g.segments != segments {
					t.Errorf("%v has %d segments, want %d", s, g.segments, segments)
					continue
				}
				for seg := range segments {
					w := g.segment(seg)
					o, i, n := seg*rows, 0, inner
					if channels == 1 { // one row
						o, i, n = 0, seg*rows*inner, rows*inner
					}
					if w.o != o || w.i != i || w.n != n || w.len() != rows*inner {
						t.Errorf("segment %d of %v is %+v, want %d rows from %d on", seg, s, w, rows, seg*rows)
					}
				}
				one(Shape{Outer: rows, Channels: channels, Inner: inner})
			}
		}
	}
	for _, channels := range []int{128, 129, 200, 256, 511, 512, 513, 1000, 5000} {
		rows := 128 * ((512 + channels - 1) / channels)
		for _, segments := range []int{1, 2, 3, 63, 64} {
			s := Shape{Outer: rows*segments - 1, Channels: channels, Inner: 1} // the last one is smaller
			g := newGeometry(s)
			if g.segments != segments {
				t.Errorf("%v has %d segments, want %d", s, g.segments, segments)
			}
			for seg := range g.segments {
				want := rows
				if seg == segments-1 {
					want--
				}
				if n := g.segmentLen(seg); n != want {
					t.Errorf("segment %d of %v has %d rows, want %d", seg, s, n, want)
				}
			}
			one(Shape{Outer: rows, Channels: channels, Inner: 1})
		}
	}
}

// TestGatheredFits: whatever a mask leaves, its walk needs no more memory than a source
// asks for, nor more constants than kernels read.
func TestGatheredFits(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		s := Shape{Outer: 1 << r.IntN(18), Channels: 1 + r.IntN(1<<r.IntN(10)), Inner: 1 + r.IntN(1<<r.IntN(8))}
		if r.IntN(2) == 0 {
			s.Inner = 1
		}
		var g source
		g.init(&Plan{shape: s})
		segments, width := g.most()
		for range 20 {
			n := 1 + r.IntN(s.PerChannel())
			geo := rowGeometry(1, s.Channels, n)
			if g.geo.layout == cols {
				geo = colGeometry(n, s.Channels, 1)
			}
			if geo.segments > segments || geo.width > width {
				t.Fatalf("%d positions of %v: %d segments and %d columns, there is memory for %d and %d", n, s, geo.segments, geo.width, segments, width)
			}
		}
	}
}

// TestFoldedChannels: the table of a folded tensor has the channel of every column.
func TestFoldedChannels(t *testing.T) {
	folded := 0
	for channels := 1; channels <= minWidth; channels++ {
		for inner := 1; inner < lanes; inner++ {
			for _, outer := range []int{2 * minHeight, 10 * minHeight, 1000} {
				s := Shape{outer, channels, inner}
				p, err := NewPlan(s)
				if err != nil {
					t.Fatal(err)
				}
				w := p.acquire(&Mask{}, s.PerChannel(), false)
				if w.geo.layout == cols && w.geo.fold > 1 {
					folded++
					for j := range w.geo.width {
						if got, want := w.channelOf(j), j/inner%channels; got != want {
							t.Fatalf("%v: column %d is of channel %d, want %d", s, j, got, want)
						}
					}
				}
				p.release(w)
			}
		}
	}
	if folded < 500 {
		t.Errorf("only %d tensors are folded", folded)
	}
}
