package batchnorm

import (
	"fmt"
	"math/bits"
	"strings"
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

// situation holds everything but the shape that a schedule depends on.
type situation struct {
	path     Path
	workers  int
	backward bool
	do       phases
	reads    int  // tensors that the operation reads
	writes   int  // tensors that it writes
	inPlace  bool // an output is an input
	costly   bool // backward: the activation's derivative takes longer to compute than to store and to read again
	storable bool // backward: an output may hold g between the two phases
	masked   bool // values come from a source: gathered by a mask, or computed from y
	marked   bool // forward: there are channels whose moments are sums in float64 from the start
	calls    bool // the activation is a function that kernels call
}

// phases is the set of phases that a call has.
type phases uint8

const (
	takeSums   phases = 1 << iota // take statistics, or the sums of a backward pass
	applyThem                     // write the outputs
	bothPhases = takeSums | applyThem
)

// way is how a call is carried out. It has no effect on the result.
type way struct {
	layout layout
	fused  bool // rows: a group of channels is applied right after its sums; else all sums come first
	group  int  // rows: adjacent channels that are summed and applied together
	turns  bool // rows: a group is applied while the sums of the next are taken
	stores bool // backward: the sums store g in an output, and the second phase reads it there
	stream bool // outputs are written with non-temporal stores

	// inOrder says that cols are written row by row. Otherwise quads of rows are written
	// together, which loads constants once for four: faster where all tensors and constants
	// fit into the first-level cache. Beyond it, stores to one row after the other reach the
	// second level sooner. A function of an activation takes longer than these stores. It is called for
	// a quad: its four vectors have the same 8 columns, so that few calls meet a column far from 0.
	inOrder bool
	// strips says that moments of cols are taken of 16 columns at a time: of few rows, whose
	// values stay in a cache from the probe to the sums.
	strips bool
	// settles says that every column is a channel and belongs to a strip, so that a strip sees
	// whether sums can't be relied on.
	settles bool
	side    int // cols: rows that are written as one, which has whole vectors, so that non-temporal stores are aligned

	tasks int // size of a task that takes sums: in channels (rows), or in columns of a segment (cols)
	tile  int // size of a task that only applies: in values (rows), or in rows (cols)
}

// machine holds the figures of the machine that a schedule depends on.
type machine struct {
	l1, l2, l3 int // bytes of a core's first-level cache of data, of its second-level cache, and of the third-level cache
	// stream is the size of an output, in bytes, from which on non-temporal stores are
	// faster. Measured: AMD's third-level cache takes plain stores fast up to 6 MB; on
	// Intel's processors only the second level does, since the third is far, and it holds an
	// input as well.
	stream int
}

// thisMachine has the cache sizes that cpuid reports. On arm64 and under emulators it
// reports none, and usual sizes take their place.
var thisMachine = newMachine(cpuid.CPU.Cache.L1D, cpuid.CPU.Cache.L2, cpuid.CPU.Cache.L3, cpuid.CPU.VendorID == cpuid.Intel)

func newMachine(l1, l2, l3 int, farL3 bool) machine {
	m := machine{l1: 32 << 10, l2: 512 << 10, l3: 32 << 20, stream: 6 << 20}
	if l1 > 0 {
		m.l1 = l1
	}
	if l2 > 0 {
		m.l2 = l2
	}
	if l3 > 0 {
		m.l3 = l3
	}
	if farL3 {
		m.stream = min(m.stream, m.l2/8*5)
	}
	return m
}

// limits are the thresholds between ways. They come from measurements and have no
// effect on the result; tests set extreme ones, so that small tensors take every way.
type limits struct {
	machine
	groupLen   int // rows: target number of values per image in a group
	groupAll   int // rows: the same of all images, where these are few
	groupShare int // rows: a group takes at most 1/groupShare of the second-level cache,
	groupOdd   int // or 1/groupOdd where it does not end with a cache line,
	groupLeast int // but has at least so many values per image,
	groupOuter int // and takes at most 1/groupOuter of the third-level cache if the second is too small for them
	fitShare   int // rows: sums and outputs are fused for channels up to 1/fitShare of the third-level cache
	tile       int // largest number of values in a task that only applies, with several workers
	share      int // smallest number of values per worker
	few        int // rows: tensors of fewer values have two tasks per worker, since a task has a cost of its own
}

var defaultLimits = limits{machine: thisMachine, groupLen: 4096, groupAll: 64 << 10, groupShare: 5, groupOdd: 3, groupLeast: 400,
	groupOuter: 8, fitShare: 2, tile: maxCall, share: 8 << 10, few: 512 << 10}

// stripRows is the largest number of rows that are summed in strips: of one window, since they
// are fewer.
const stripRows = 64

// lineLen is how many floats there are in a cache line.
const lineLen = 16

// choose decides how a call is carried out.
func choose(g *geometry, s situation, l limits) way {
	w := way{layout: g.layout}
	elements := g.outer * g.channels * g.inner
	w.stream = s.path == PathAVX2 && s.do&applyThem != 0 && !s.inPlace && 4*elements >= l.stream
	w.stores = s.do == bothPhases && s.costly && s.storable && !s.masked
	w.stream = w.stream && !(w.stores && s.writes == 1) // dx takes the place of g
	if g.layout == cols {
		chooseCols(&w, g, s, l)
	} else {
		chooseRows(&w, g, s, l, elements)
	}
	return w
}

func chooseRows(w *way, g *geometry, s situation, l limits, elements int) {
	bytes := 4 * g.outer * g.inner // of a channel
	summed := bytes
	if s.backward { // forward, a residual is read with the outputs only
		summed *= s.reads
	}
	w.group = l.group(g, s.path, max(1, summed))
	tasks := g.channels
	if s.workers > 1 { // some tasks for each, of whole cache lines
		each := 4
		if elements <= l.few {
			each = 2
		}
		tasks = roundUp(ceilDiv(g.channels, each*s.workers), g.lines())
		w.group = min(w.group, tasks, g.channels)
		tasks = min(g.channels, roundUp(tasks, w.group))
	}
	w.tasks = tasks
	enough := s.workers == 1 || g.segments == 1 || g.channels >= 4*s.workers
	w.fused = s.do == bothPhases && enough && !s.masked && (s.path == PathGeneric || bytes*s.reads <= l.l3/l.fitShare)
	w.turns = w.fused && w.stream && 2*w.group <= tasks
	w.tile = elements
	if s.workers > 1 {
		w.tile = max(1, min(l.tile, elements/(4*s.workers)))
	}
	if !enough {
		w.tasks = w.group
	}
}

// lines returns how many adjacent rows make whole cache lines.
func (g *geometry) lines() int { return lineLen / gcd(lineLen, g.inner) }

// group returns the number of channels in a group, of which the sums read the given bytes for
// each. A group has up to groupLen values per image, or groupAll in all images if that is
// more. It fits into its share of the second-level cache, but has groupLeast values per image
// if half of this cache holds so many. Where it does not, groups fit into a share of the
// third-level cache: jumps from image to image would take longer than reads from there.
//
// A group ends with a cache line and has whole vectors of channels, if there are enough.
// Otherwise it is a power of two, which leaves the fewest groups that begin within a vector,
// and its share is a larger one.
func (l limits) group(g *geometry, p Path, bytes int) int {
	if p == PathGeneric {
		return 1
	}
	row := max(1, g.inner)
	most := max(1, l.groupLen/row, min(l.groupAll/(max(1, g.outer)*row), l.groupLen/lanes))
	n, least := max(1, l.l2/l.groupShare/bytes), ceilDiv(l.groupLeast, row)
	switch {
	case n >= least:
	case least*bytes <= l.l2/2:
		n = least
	default:
		n = max(n, l.l3/l.groupOuter/bytes)
	}
	n = min(n, most)
	unit := g.lines()
	if n < unit {
		n = max(n, min(most, l.l2/l.groupOdd/bytes))
		return min(1<<(bits.Len(uint(n))-1), g.channels)
	}
	if whole := lcm(unit, lanes); n >= whole {
		unit = whole
	}
	return min(n-n%unit, g.channels)
}

// mostGroup returns the largest number of channels of a group in rows.
func (l limits) mostGroup(g *geometry, p Path) int { return l.group(g, p, 1) }

func lcm(a, b int) int { return a / gcd(a, b) * b }

func chooseCols(w *way, g *geometry, s situation, l limits) {
	tensors := s.reads + s.writes
	if s.inPlace {
		tensors--
	}
	called := s.calls && !w.stores // by the kernels of the outputs
	w.inOrder = s.path == PathAVX2 && s.do&applyThem != 0 && !called && 4*(g.outer*g.channels*g.inner*tensors+coefLen*g.width) >= l.l1
	w.strips = s.path != PathGeneric && s.do&takeSums != 0 && !s.backward && !s.marked && g.height > 0 && g.height <= stripRows
	// Columns are cut only where the segments are too few for the workers.
	w.tasks = g.width
	if want := ceilDiv(2*s.workers, max(1, g.segments)); s.workers > 1 && want > 1 {
		w.tasks = max(64, roundUp(ceilDiv(g.width, want), lanes))
	}
	last := g.width % w.tasks // columns of the last task, if it is smaller
	w.settles = w.strips && s.path.whole(lanes) > 0 && g.single() && g.width >= lanes && (last == 0 || last >= lanes)
	w.side = 1
	if w.stream && !s.masked {
		w.side = l.side(g, s.path)
	}
	w.tile = maxCall / min(panel, w.side*g.width)
	if s.workers > 1 {
		w.tile = min(w.tile, g.height/w.side/(4*s.workers))
	}
	w.tile = max(1, w.tile) * w.side
}

// side returns how many rows of cols, side by side, make a row of whole vectors. Tensors
// that are large enough for non-temporal stores are written by such rows, unless their
// constants would take too much memory.
func (l limits) side(g *geometry, p Path) int {
	const most = 16 << 10 // columns
	side := lanes / gcd(lanes, g.width)
	if p != PathAVX2 || g.unit > 1 || 4*g.outer*g.channels < l.stream || side*g.width > most {
		return 1
	}
	return side
}

// String returns the way in short, as printed beside times.
func (w way) String() string {
	var b strings.Builder
	add := func(on bool, format string, args ...any) {
		if on {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	fmt.Fprint(&b, [...]string{rows: "rows", cols: "cols"}[w.layout])
	add(w.layout == rows, "group %d", w.group)
	add(w.fused && !w.turns, "fused")
	add(w.turns, "turns")
	add(w.stores, "stores g")
	add(w.stream, "non-temporal")
	add(w.strips, "strips")
	add(w.inOrder && !w.stream, "in order")
	add(w.side > 1, "%d rows as one", w.side)
	return b.String()
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// aligned reports whether every row of the outputs begins at a multiple of the vector
// size, which non-temporal stores in cols need.
func (k *kernelArgs) aligned() bool {
	const mask = 4*lanes - 1
	address := uintptr(unsafe.Pointer(&k.y[0]))
	if k.dres != nil {
		address |= uintptr(unsafe.Pointer(&k.dres[0]))
	}
	return address&mask == 0 && (k.rows == 1 || k.stride%lanes == 0)
}

// alike reports whether the two outputs have the same offset in a vector, which
// non-temporal stores in rows need.
func (k *kernelArgs) alike() bool {
	offset := func(s []float32) uintptr { return uintptr(unsafe.Pointer(&s[0])) / 4 % lanes }
	return k.dres == nil || offset(k.dres) == offset(k.y)
}
