// Package bound moves memory as fast as the machine can: an operation on tensors takes at
// least the time of its reads and writes.
package bound

import (
	"fmt"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/team"
)

// Stores is how a pass writes.
type Stores uint8

const (
	Plain       Stores = iota // through the cache
	NonTemporal               // past the cache, to memory
)

// Kinds returns the ways to write that this machine has.
func Kinds() []Stores {
	if !haveSIMD {
		return []Stores{Plain}
	}
	return []Stores{Plain, NonTemporal}
}

func (s Stores) String() string {
	switch s {
	case Plain:
		return "plain"
	case NonTemporal:
		return "non-temporal"
	}
	return fmt.Sprintf("Stores(%d)", uint8(s))
}

// A Team makes passes over tensors with a number of goroutines, the caller's
// among them, by the package's own parallel for; with one it starts none. It makes one pass at a time, whose
// slices all have the same length, and keeps the last ones.
type Team struct {
	workers int
	task    func(int) // partTask, bound once, because binding allocates

	pass          pass
	stores        Stores
	y, z, a, b, c []float32
	reads         [][]float32
	parts         int
	sums          []float32 // of the parts
}

type pass uint8

const (
	passRead pass = iota
	passCopy
	passTriad
	passPair
)

const (
	lineLen = 16       // floats per cache line, which no two parts share
	partLen = 16 << 10 // floats from which on there are more parts than workers
	most    = 8        // parts per worker, so that a busy core evens out
	maxCall = 64 << 10 // floats per call of assembly, which the scheduler can't interrupt
	scale   = 3        // of triad
)

// NewTeam returns a team of at least one worker.
func NewTeam(workers int) *Team {
	t := &Team{workers: max(1, workers)}
	t.task = t.partTask
	t.sums = make([]float32, most*t.workers)
	return t
}

// Read returns the sum of all values, in no particular order.
func (t *Team) Read(xs ...[]float32) float32 {
	t.pass = passRead
	t.reads = append(t.reads[:0], xs...)
	t.run(len(xs[0]))
	s := float32(0)
	for _, v := range t.sums[:t.parts] {
		s += v
	}
	return s
}

// Copy sets y = a.
func (t *Team) Copy(s Stores, y, a []float32) {
	t.pass, t.stores, t.y, t.a = passCopy, s, y, a
	t.run(len(y))
}

// Triad sets y = a + 3b.
func (t *Team) Triad(s Stores, y, a, b []float32) {
	t.pass, t.stores, t.y, t.a, t.b = passTriad, s, y, a, b
	t.run(len(y))
}

// Pair sets y = a + 3b and z = c + 3b. If y and z don't lie alike in vectors of
// 32 bytes, its stores are plain.
func (t *Team) Pair(s Stores, y, z, a, b, c []float32) {
	t.pass, t.stores, t.y, t.z, t.a, t.b, t.c = passPair, s, y, z, a, b, c
	t.run(len(y))
}

// run makes the pass over n floats of each slice.
func (t *Team) run(n int) {
	if t.workers == 1 {
		t.parts = 1
		t.part(0, 0, n)
		return
	}
	t.parts = min(max(t.workers, n/partLen), most*t.workers)
	helpers := team.Acquire(t.workers - 1)
	helpers.Run(t.parts, t.workers-1, t.task)
	team.Release(helpers, t.workers-1)
}

func (t *Team) partTask(i int) {
	n := len(t.y)
	if t.pass == passRead {
		n = len(t.reads[0])
	}
	t.part(i, border(n, i, t.parts), border(n, i+1, t.parts))
}

// border returns where part i of n floats begins.
func border(n, i, parts int) int {
	lines := (n + lineLen - 1) / lineLen
	return min(lines*i/parts*lineLen, n)
}

// part makes the pass over the floats lo to hi-1, as part i.
func (t *Team) part(i, lo, hi int) {
	switch t.pass {
	case passRead:
		s := float32(0)
		for _, x := range t.reads {
			s += read(x[lo:hi])
		}
		t.sums[i] = s
	case passCopy:
		move(t.stores, t.y[lo:hi], t.a[lo:hi])
	case passTriad:
		triad(t.stores, t.y[lo:hi], t.a[lo:hi], t.b[lo:hi])
	case passPair:
		pair(t.stores, t.y[lo:hi], t.z[lo:hi], t.a[lo:hi], t.b[lo:hi], t.c[lo:hi])
	}
}

// ---- assembly where there is some, and Go for the rest at the ends

func read(x []float32) float32 {
	if !haveSIMD {
		return readGo(x)
	}
	s := float32(0)
	for len(x) >= vectorLen {
		n := wholeVectors(x)
		s += readSIMD(&x[0], n)
		x = x[n:]
	}
	return s + readGo(x)
}

func move(s Stores, y, a []float32) {
	if !haveSIMD {
		copy(y, a)
		return
	}
	f := copySIMD
	if s == NonTemporal {
		h := head(y)
		copy(y[:h], a[:h])
		y, a, f = y[h:], a[h:], copyNonTemporal
	}
	for len(y) >= vectorLen {
		n := wholeVectors(y)
		f(&y[0], &a[0], n)
		y, a = y[n:], a[n:]
	}
	copy(y, a)
}

func triad(s Stores, y, a, b []float32) {
	if !haveSIMD {
		triadGo(y, a, b)
		return
	}
	f := triadSIMD
	if s == NonTemporal {
		h := head(y)
		triadGo(y[:h], a, b)
		y, a, b, f = y[h:], a[h:], b[h:], triadNonTemporal
	}
	for len(y) >= vectorLen {
		n := wholeVectors(y)
		f(&y[0], &a[0], &b[0], n)
		y, a, b = y[n:], a[n:], b[n:]
	}
	triadGo(y, a, b)
}

func pair(s Stores, y, z, a, b, c []float32) {
	if !haveSIMD {
		pairGo(y, z, a, b, c)
		return
	}
	f := pairSIMD
	if h := head(y); s == NonTemporal && h == head(z) {
		pairGo(y[:h], z, a, b, c)
		y, z, a, b, c, f = y[h:], z[h:], a[h:], b[h:], c[h:], pairNonTemporal
	}
	for len(y) >= vectorLen {
		n := wholeVectors(y)
		f(&y[0], &z[0], &a[0], &b[0], &c[0], n)
		y, z, a, b, c = y[n:], z[n:], a[n:], b[n:], c[n:]
	}
	pairGo(y, z, a, b, c)
}

const vectorLen = 8 // floats

// wholeVectors returns how many floats of s the next call of assembly handles.
func wholeVectors(s []float32) int { return min(len(s), maxCall) / vectorLen * vectorLen }

// head returns how many floats of s lie before the first whole vector.
func head(s []float32) int {
	const size = int(unsafe.Sizeof(s[0]))
	misplaced := int(uintptr(unsafe.Pointer(unsafe.SliceData(s)))/uintptr(size)) % vectorLen
	return min((vectorLen-misplaced)%vectorLen, len(s))
}

func readGo(x []float32) float32 {
	var s0, s1, s2, s3 float32
	for ; len(x) >= 4; x = x[4:] {
		s0 += x[0]
		s1 += x[1]
		s2 += x[2]
		s3 += x[3]
	}
	for _, v := range x {
		s0 += v
	}
	return (s0 + s1) + (s2 + s3)
}

func triadGo(y, a, b []float32) {
	a, b = a[:len(y)], b[:len(y)]
	for i := range y {
		y[i] = a[i] + float32(scale*b[i])
	}
}

func pairGo(y, z, a, b, c []float32) {
	z, a, b, c = z[:len(y)], a[:len(y)], b[:len(y)], c[:len(y)]
	for i := range y {
		v := float32(scale * b[i])
		y[i] = a[i] + v
		z[i] = c[i] + v
	}
}
