package batchnorm

import (
	"fmt"
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
	storable bool // backward: an output may hold g from the sums until dx is computed from it
	masked   bool // the values of a channel are gathered, or computed first
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
	fused  bool // rows: a group of channels is applied right behind its sums; else all sums come first
	group  int  // rows: adjacent channels that are summed and applied together
	turns  bool // rows: a group is applied while the sums of the next are taken
	stores bool // backward: the sums leave g in an output, from which dx is computed
	stream bool // outputs take non-temporal stores

	tasks int // channels (rows, fused), or columns (cols) of a segment, in a task that takes sums
	tile  int // rows: values in a task that only applies; cols: rows
}

// machine holds the figures of the machine that a schedule depends on.
type machine struct {
	l2, l3 int // bytes of a core's second-level cache, and of the third-level cache
	// stream is from how many bytes of an output on non-temporal stores are faster.
	// Measured: on AMD's processors a third-level cache of its own takes plain stores
	// fast up to 6 MB; on Intel's it is far, and only the second level does.
	stream int
}

// thisMachine is read by cpuid, with usual sizes where that does not know them, as
// on arm64 and under emulators.
var thisMachine = newMachine(cpuid.CPU.Cache.L2, cpuid.CPU.Cache.L3, cpuid.CPU.VendorID == cpuid.Intel)

func newMachine(l2, l3 int, farL3 bool) machine {
	m := machine{l2: 512 << 10, l3: 32 << 20, stream: 6 << 20}
	if l2 > 0 {
		m.l2 = l2
	}
	if l3 > 0 {
		m.l3 = l3
	}
	if farL3 {
		m.stream = min(m.stream, m.l2)
	}
	return m
}

// limits are the thresholds between ways. They come from measurements and have no
// effect on the result; tests set extreme ones, so that small tensors take every way.
type limits struct {
	machine
	groupLen  int // rows: values of an image in a group, at least as far as caches allow
	groupPart int // rows: a group takes 1/groupPart of the second-level cache
	fitPart   int // rows: sums and outputs are fused for channels up to 1/fitPart of the third-level cache
	tile      int // values in a task that only applies, at most, for several workers
	share     int // values of the tensor that each worker has at least
	few       int // rows: values of a tensor whose tasks are two for each worker, since a task has costs of its own
	recompute int // cols: up to so many columns computing g again is faster than storing it, for tensors with non-temporal stores
}

var defaultLimits = limits{machine: thisMachine, groupLen: 4096, groupPart: 5, fitPart: 2, tile: maxCall, share: 8 << 10, few: 512 << 10, recompute: 512}

// lineLen is how many floats there are in a cache line.
const lineLen = 16

// choose decides how a call is carried out.
func choose(g *geometry, s situation, l limits) way {
	w := way{layout: g.layout}
	elements := g.outer * g.channels * g.inner
	w.stream = s.path == PathAVX2 && s.do&applyThem != 0 && !s.inPlace && 4*elements >= l.stream
	w.stores = s.do == bothPhases && s.costly && s.storable && !s.masked
	if g.layout == cols {
		chooseCols(&w, g, s, l)
	} else {
		chooseRows(&w, g, s, l, elements)
	}
	return w
}

func chooseRows(w *way, g *geometry, s situation, l limits, elements int) {
	bytes := max(1, 4*g.outer*g.inner*s.reads) // of a channel
	w.group = l.group(g, s.path, bytes)
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
	w.fused = s.do == bothPhases && enough && !s.masked && (s.path == PathGeneric || bytes <= l.l3/l.fitPart)
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

// group returns how many channels make a group, of so many bytes each: as many as give
// runs of some length, and stay in a part of the second-level cache; in whole vectors of
// channels if there are enough. Where rows don't end with a cache line, more are better:
// whole lines of rows, or at least runs of some lines.
func (l limits) group(g *geometry, p Path, bytes int) int {
	if p == PathGeneric {
		return 1
	}
	n := min(max(1, l.groupLen/max(1, g.inner)), max(1, l.l2/l.groupPart/bytes))
	unit := g.lines()
	if n < unit {
		n = min(unit, max(n, 2*l.l2/l.groupPart/bytes))
	}
	if unit = lcm(unit, lanes); n >= unit {
		n -= n % unit
	}
	return min(n, g.channels)
}

// mostGroup returns how many channels a group in rows has at most.
func (l limits) mostGroup(g *geometry, p Path) int { return l.group(g, p, 1) }

func lcm(a, b int) int { return a / gcd(a, b) * b }

func chooseCols(w *way, g *geometry, s situation, l limits) {
	if w.stream && g.width <= l.recompute {
		w.stores = false // g would have to come back from memory
	}
	// Columns are cut only where the segments are too few for the workers.
	w.tasks = g.width
	if want := ceilDiv(2*s.workers, max(1, g.segments)); s.workers > 1 && want > 1 {
		w.tasks = max(64, roundUp(ceilDiv(g.width, want), lanes))
	}
	w.tile = max(1, maxCall/g.width)
	if s.workers > 1 {
		w.tile = max(1, min(w.tile, g.height/(4*s.workers)))
	}
}

// String returns the way in short, for those who read a time.
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
	return b.String()
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// aligned reports whether every row of the outputs begins at a multiple of a
// vector, as it must for non-temporal stores in cols.
func (k *kernelArgs) aligned() bool {
	const mask = 4*lanes - 1
	at := uintptr(unsafe.Pointer(&k.y[0]))
	if k.dres != nil {
		at |= uintptr(unsafe.Pointer(&k.dres[0]))
	}
	return at&mask == 0 && (k.rows == 1 || k.stride%lanes == 0)
}

// alike reports whether the outputs lie alike in vectors, as they must for
// non-temporal stores in rows.
func (k *kernelArgs) alike() bool {
	offset := func(s []float32) uintptr { return uintptr(unsafe.Pointer(&s[0])) / 4 % lanes }
	return k.dres == nil || offset(k.dres) == offset(k.y)
}
