package batchnorm

// The order of sums. Everything in this file depends on the shape alone, never
// on the machine, the path or the number of workers, because it decides bits.
//
// A channel's values are cut into segments, whose results are merged in order.
// A segment is cut into windows. A window is summed with one shift K, so that one
// call of a kernel takes all of it, and its totals are folded into the segment's
// float64 results. The first shift of a segment is the mean of a probe: its first
// values. The later shifts are the mean of the windows before.
//
// Within a window, a quad of four vectors is added as a tree before it joins a float32 sum: in
// rows those of four images side by side, or of one image; in columns those of four
// rows. A float32 sum has at most 64 such quads in rows, and 32 in columns.
//
// In rows a float32 sum that is complete is added to a float64 sum of its lane. A row of
// more than 256 values, of four images side by side, has sums of its own: one for each
// piece of 512 values. A shorter row has fewer than 64 quads, so that the same row of the
// next four images joins the same sum, and so on, as long as all their quads are at most
// 64 (imagesPerSum). The count begins anew in every window.
//
// The lengths bound the cancellation. An outlier among the p values of the probe moves
// their mean by 1/p of itself. It is subtracted from at most p^2 values of the first
// window, so that it adds at most its own square to the sum of squares. If the mean of a
// window is far from the mean before it, the variance of both together is large as well,
// as long as the window is not much larger than everything before it.
const (
	segmentSize  = 64 << 10 // smallest number of values per segment
	maxSegments  = 64       // per channel (rows) or in all (cols)
	windowLen    = 2048     // rows: values in the first window of a segment
	windowGrowth = 3        // rows: largest ratio of a window to everything before it
	probeLen     = 64       // rows: values in the probe
	windowRows   = 128      // cols: rows per window
	probeRows    = 16       // cols: rows in the probe
	minHeight    = 8        // cols: smallest number of rows after folding
	minWidth     = 128      // cols: fewer columns than this are folded
)

// geometry is the order in which a shape's values are summed.
type geometry struct {
	layout layout

	outer, channels, inner int // of the shape, with inner columns for each channel in cols

	// rows: a segment has up to segImages images, and up to segLen values of each.
	segImages, segLen int
	segsPerImage      int // segments side by side in an image

	// cols: the tensor is height rows of width columns; a channel has unit adjacent
	// columns. A tensor with few columns is folded: fold of its rows make one row of
	// width fold*channels*unit, and rest values are left after the last whole row. A
	// segment has segWindows windows.
	height, width       int
	unit, fold, rest    int
	windows, segWindows int

	segments int
	sampled  [tinySample]int // elements of channel 0, see sampleValues
}

// newGeometry returns the geometry of a shape. Rows that are shorter than a vector are
// taken as columns, unless there is one image only.
func newGeometry(s Shape) geometry {
	outer, inner := s.Outer, s.Inner
	if s.Channels == 1 {
		outer, inner = min(1, s.Outer), max(1, s.Outer)*s.Inner // one channel: all of it is adjacent
	}
	if inner >= lanes || s.Channels == 1 || outer == 1 && inner > 1 {
		return rowGeometry(outer, s.Channels, inner)
	}
	return colGeometry(outer, s.Channels, inner)
}

// foldedChannels returns the channel of each column of a tensor that is folded.
func foldedChannels(s Shape) (of [2 * minWidth]uint8) {
	if unit := max(1, s.Inner); s.Channels <= (minWidth-1)/unit {
		for j := range of {
			of[j] = uint8(j / unit % s.Channels)
		}
	}
	return of
}

// rowGeometry is for outer rows of inner values per channel.
func rowGeometry(outer, channels, inner int) geometry {
	g := geometry{layout: rows, outer: outer, channels: channels, inner: inner, unit: 1}
	if outer < quadSize {
		g.segImages = max(1, outer)
		g.segLen = roundUp(ceilDiv(segmentSize, g.segImages), quadSize*lanes)
	} else {
		g.segImages = quadSize * ceilDiv(segmentSize, quadSize*inner)
		g.segLen = segmentSize / quadSize
	}
	if g.segLen >= inner {
		g.segLen = inner
	} else if most := ceilDiv(inner, maxSegments); g.segLen < most {
		g.segLen = roundUp(most, pieceFour)
	}
	g.segsPerImage = ceilDiv(inner, g.segLen)
	if most := max(1, maxSegments/g.segsPerImage); ceilDiv(outer, g.segImages) > most {
		g.segImages = roundUp(ceilDiv(outer, most), quadSize)
	}
	g.segments = ceilDiv(outer, g.segImages) * g.segsPerImage
	g.sampleValues()
	return g
}

// colGeometry is for outer rows of unit adjacent values per channel.
func colGeometry(outer, channels, unit int) geometry {
	g := geometry{layout: cols, outer: outer, channels: channels, inner: unit, unit: unit, fold: 1}
	if row := channels * unit; row < minWidth {
		g.fold = max(1, min(ceilDiv(minWidth, row), outer/minHeight))
	}
	g.width = g.fold * channels * unit
	g.height = g.outer / g.fold
	g.rest = g.outer % g.fold * channels * unit
	g.windows = ceilDiv(g.height, windowRows)
	g.segWindows = max(1, ceilDiv(segmentSize, windowRows*g.width), ceilDiv(g.windows, maxSegments))
	g.segments = ceilDiv(g.windows, g.segWindows)
	g.sampleValues()
	return g
}

// sampleValues spreads the values of a channel that decide whether it is tiny over the
// tensor. Of rows shorter than a vector they are the first, so that a vector holds those of
// several channels.
func (g *geometry) sampleValues() {
	n := g.outer * g.inner
	for k := 0; n > 0 && k < tinySample; k++ {
		o, i := k*n/tinySample/g.inner, k*n/tinySample%g.inner
		if g.inner < lanes {
			i = 0
		}
		g.sampled[k] = o*g.channels*g.inner + i
	}
}

// ---- rows

// window is a stretch of a channel: n values from value i on, of each of some images from
// image o on.
type window struct{ o, images, i, n int }

func (w window) len() int { return w.images * w.n }

// segment returns segment seg of a channel in rows.
func (g *geometry) segment(seg int) window {
	o, i := seg/g.segsPerImage*g.segImages, seg%g.segsPerImage*g.segLen
	return window{o, min(g.segImages, g.outer-o), i, min(g.segLen, g.inner-i)}
}

// probe returns the first values of a segment: of four images, or of one.
func (s window) probe() window {
	if s.images >= quadSize {
		return window{s.o, quadSize, s.i, min(s.n, probeLen/quadSize)}
	}
	return window{s.o, 1, s.i, min(s.n, probeLen)}
}

// next returns the window that follows w in a segment, and the number of values before
// it. After the zero value comes the first window. ok is false after the last.
//
// Windows grow. In long rows the first windows have some values of the rows of four
// images side by side, or of one image. All others are whole rows of some images.
func (s window) next(w window) (next window, before int, ok bool) {
	o, i := s.o, s.i // where the next begins
	if w.images > 0 {
		o, i = w.o, w.i+w.n
		if i == s.i+s.n {
			o, i = w.o+w.images, s.i
		}
	}
	left := s.o + s.images - o
	if left == 0 {
		return window{}, 0, false
	}
	side, piece := 1, pieceSingle
	if left >= quadSize {
		side, piece = quadSize, pieceFour
	}
	before = (o-s.o)*s.n + side*(i-s.i)
	want := max(windowLen, windowGrowth*before)
	if i > s.i || want < side*s.n { // some values of the rows of side images
		n := min(s.i+s.n-i, max(1, want/side/piece)*piece)
		return window{o, side, i, n}, before, true
	}
	images := min(left, want/s.n)
	if images < left && images > side {
		images = images / side * side
	}
	return window{o, images, i, s.n}, before, true
}

// ---- cols

// colSegment returns the windows [b0, b1) of a segment in cols.
func (g *geometry) colSegment(seg int) (b0, b1 int) {
	b0 = seg * g.segWindows
	return b0, min(b0+g.segWindows, g.windows)
}

// colWindow returns window b: rows r0 to r1-1.
func (g *geometry) colWindow(b int) (r0, r1 int) {
	return b * windowRows, min((b+1)*windowRows, g.height)
}

// columns returns the number of results of a segment: one per channel, or in cols per
// column.
func (g *geometry) columns() int {
	if g.layout == rows {
		return g.channels
	}
	return g.width
}

// segmentLen returns the number of values of a channel (rows) or column (cols) in a
// segment. The rest after the last whole row is not counted: it gives the last segment
// one more value in the first columns.
func (g *geometry) segmentLen(seg int) int {
	if g.layout == rows {
		return g.segment(seg).len()
	}
	b0, b1 := g.colSegment(seg)
	return min(b1*windowRows, g.height) - b0*windowRows
}

// together returns the images of a window that are summed after those of the window last,
// or the first ones after the zero value: of short rows as many as one float32 sum takes,
// and then perhaps up to three that are summed one by one; of longer rows all.
func (w window) together(last window) (next window, ok bool) {
	o := w.o
	if last.images > 0 {
		o = last.o + last.images
	}
	left := w.o + w.images - o
	if w.n <= shortRow {
		left = min(left, imagesPerSum(w.n))
	}
	return window{o, left, w.i, w.n}, left > 0
}

// inOneSum reports whether one float32 sum takes all of a window.
func (w window) inOneSum() bool {
	return w.n <= shortRow && w.images%quadSize == 0 && w.images <= imagesPerSum(w.n)
}

// imagesPerSum returns how many images, four side by side at a time, one float32 sum takes of
// a channel whose rows have n values in a window. n is at most shortRow.
func imagesPerSum(n int) int { return quadSize * (pieceFour / roundUp(n, lanes)) }

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func roundUp(n, m int) int { return (n + m - 1) / m * m }
