package batchnorm

// The order of sums. Everything in this file depends on the shape alone, never
// on the machine, the path or the number of workers, because it decides bits.
//
// A channel's values are cut into segments, whose results are merged in order,
// and a segment into blocks. A block is summed in float32, shifted by the mean
// of the blocks before it in its segment, and its totals are folded into the
// segment's float64 results. The first shift of a segment is the mean of a probe:
// its first values. An outlier among p values moves that mean by 1/p of
// itself; since the square of the probe's length is at least the block's
// length, it can't do more to the block's sums than its own square does.
const (
	blockLen = 2048 // rows: values per block at most
	probeLen = 64   // rows: values in the probe at least
	// What a lane adds per block at most, in rows. In rows shorter than a group
	// values are added one by one, and the squares of values on a coarse grid
	// (an offset of 1e4 leaves 10 bits behind the point) are all rounded the same
	// way once the sum is large: hence fewer.
	maxAdds      = 64
	maxAddsShort = 32
	blockRows    = 128      // cols: rows per block
	probeRows    = 16       // cols: rows in the probe
	segmentSize  = 64 << 10 // values per segment at least
	maxSegments  = 64       // per channel (rows) or in all (cols)
	minHeight    = 8        // cols: rows that folding leaves at least
	minWidth     = 128      // cols: fewer channels than this are folded
)

// geometry is how a shape is walked.
type geometry struct {
	layout layout

	// rows: blocks of a channel are groups of whole rows when a row is
	// shorter than blockLen, and pieces of rows otherwise.
	outer, channels, inner int
	pieces                 int // blocks per row
	group                  int // rows per block

	// cols: the tensor as height rows of width columns. With few channels,
	// fold rows of the tensor lie side by side in one row of width
	// fold*channels, and rest values are left behind the last whole row.
	height, width int
	fold, rest    int

	blocks, segBlocks, segments int
}

func newGeometry(s Shape) geometry {
	g := geometry{outer: s.Outer, channels: s.Channels, inner: s.Inner}
	if s.Channels == 1 {
		g.outer, g.inner = min(1, s.Outer), max(1, s.Outer)*s.Inner // one channel: all of it is adjacent
	}
	if g.inner > 1 || s.Channels == 1 {
		return rowGeometry(g.outer, g.channels, g.inner)
	}
	return colGeometry(g.outer, g.channels)
}

// rowGeometry walks outer rows of inner values per channel.
func rowGeometry(outer, channels, inner int) geometry {
	g := geometry{layout: rows, outer: outer, channels: channels, inner: inner}
	g.pieces = ceilDiv(g.inner, blockLen)
	most := maxAdds
	if g.inner < groupSize*lanes {
		most = maxAddsShort
	}
	adds := g.inner/(groupSize*lanes) + ceilDiv(g.inner%(groupSize*lanes), lanes) // per lane and row
	g.group = max(1, min(blockLen/g.inner, most/adds))
	g.blocks = g.pieces * ceilDiv(g.outer, g.group)
	g.split(ceilDiv(segmentSize, min(blockLen, g.inner*g.group)))
	return g
}

// colGeometry walks outer rows of one value per channel.
func colGeometry(outer, channels int) geometry {
	g := geometry{layout: cols, outer: outer, channels: channels, inner: 1, fold: 1}
	if g.channels < minWidth {
		g.fold = max(1, min(ceilDiv(minWidth, g.channels), g.outer/minHeight))
	}
	g.width = g.fold * g.channels
	g.height = g.outer / g.fold
	g.rest = g.outer % g.fold * g.channels
	g.blocks = ceilDiv(g.height, blockRows)
	g.split(ceilDiv(segmentSize, blockRows*g.width))
	return g
}

// split sets the segments, of segBlocks blocks or as many as keep their number
// within maxSegments.
func (g *geometry) split(segBlocks int) {
	g.segBlocks = max(1, segBlocks, ceilDiv(g.blocks, maxSegments))
	g.segments = ceilDiv(g.blocks, g.segBlocks)
}

// segment returns the blocks [b0, b1) of a segment.
func (g *geometry) segment(seg int) (b0, b1 int) {
	b0 = seg * g.segBlocks
	return b0, min(b0+g.segBlocks, g.blocks)
}

// rowBlock returns block b of a channel: n values each of rows o to o+count-1,
// from value i.
func (g *geometry) rowBlock(b int) (o, count, i, n int) {
	o = b / g.pieces * g.group
	i = b % g.pieces * blockLen
	return o, min(g.group, g.outer-o), i, min(blockLen, g.inner-i)
}

// colBlock returns block b: rows r0 to r1-1.
func (g *geometry) colBlock(b int) (r0, r1 int) {
	return b * blockRows, min((b+1)*blockRows, g.height)
}

// columns returns how many results a segment has: one per channel, or in cols per
// column.
func (g *geometry) columns() int {
	if g.layout == rows {
		return g.channels
	}
	return g.width
}

// segmentLen returns how many values of a channel (rows) or column (cols) a
// segment has, but for the rest behind the last whole row, of which the last
// segment has one more in the first columns.
func (g *geometry) segmentLen(seg int) int {
	b0, b1 := g.segment(seg)
	return g.before(b1) - g.before(b0)
}

// before returns how many values lie before block b.
func (g *geometry) before(b int) int {
	if g.layout == cols {
		return min(b*blockRows, g.height)
	}
	if b == g.blocks {
		return g.outer * g.inner
	}
	o, _, i, _ := g.rowBlock(b)
	return o*g.inner + i
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
