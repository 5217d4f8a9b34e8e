package batchnorm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// scheduled is a situation and the way that it gets.
type scheduled struct {
	why   string
	shape Shape
	in    string // words of scheduleOf
	way   string // String of it

	tasks, tile int // and what that leaves out
}

// scheduleMachines are machines with other caches, which decide about ways.
var scheduleMachines = map[string]machine{
	"usual": newMachine(32<<10, 512<<10, 32<<20, false),
	"intel": newMachine(48<<10, 2<<20, 32<<20, true),
	"small": newMachine(32<<10, 256<<10, 2<<20, false),
}

// scheduleOf reads a situation: the workers and the tensors that are read, and words
// for the rest.
func scheduleOf(t *testing.T, in string) (situation, limits) {
	t.Helper()
	s := situation{path: PathAVX2, workers: 1, do: bothPhases, reads: 1, writes: 1}
	l := defaultLimits
	l.machine, l.share = scheduleMachines["usual"], 8<<10
	for _, word := range strings.Fields(in) {
		name, n := word, 0
		if k := strings.IndexByte(word, '='); k > 0 {
			name = word[:k]
			if _, err := fmt.Sscan(word[k+1:], &n); err != nil {
				t.Fatalf("%q: %v", word, err)
			}
		}
		switch name {
		case "workers":
			s.workers = n
		case "reads":
			s.reads = n
		case "writes":
			s.writes = n
		case "backward":
			s.backward, s.reads = true, 2
		case "costly": // backward, and an output may hold g
			s.backward, s.reads, s.costly, s.storable = true, 2, true, true
		case "calls":
			s.calls = true
		case "unstorable":
			s.storable = false
		case "marked":
			s.marked = true
		case "inPlace":
			s.inPlace = true
		case "masked":
			s.masked = true
		case "sums":
			s.do = takeSums
		case "apply":
			s.do = applyThem
		case "generic":
			s.path = PathGeneric
		case "neon":
			s.path = PathNEON
		default:
			m, ok := scheduleMachines[name]
			if !ok {
				t.Fatalf("unknown word %q", name)
			}
			l.machine = m
		}
	}
	return s, l
}

var schedules = []scheduled{
	{"a channel fills the cache: it goes alone, in turns with the next one", Shape{32, 64, 3136}, "", "rows group 1 turns non-temporal", 64, 6422528},
	{"the same with twice as much to read", Shape{32, 64, 3136}, "backward", "rows group 1 turns non-temporal", 64, 6422528},
	{"where an output is an input, stores stay plain, without which turns gain nothing", Shape{32, 64, 3136}, "inPlace", "rows group 1 fused",
		64, 6422528},
	{"arm64 has no non-temporal stores", Shape{32, 64, 3136}, "neon", "rows group 1 fused", 64, 6422528},
	{"pure Go has neither these nor groups", Shape{32, 64, 3136}, "generic", "rows group 1 fused", 64, 6422528},
	{"each worker gets four tasks", Shape{32, 64, 3136}, "workers=4", "rows group 1 turns non-temporal", 4, 32768},
	{"sums alone write nothing", Shape{32, 64, 3136}, "sums", "rows group 1", 64, 6422528},
	{"outputs alone take no turns", Shape{32, 64, 3136}, "apply", "rows group 1 non-temporal", 64, 6422528},
	{"outputs alone are cut for the workers", Shape{32, 64, 3136}, "apply workers=4", "rows group 1 non-temporal", 4, 32768},
	{"a mask takes all sums first", Shape{32, 64, 3136}, "masked", "rows group 1 non-temporal", 64, 6422528},
	{"a derivative that takes long is stored in dx, which has plain stores then", Shape{32, 64, 3136}, "costly", "rows group 1 fused stores g",
		64, 6422528},
	{"or in dresidual, apart from dx", Shape{32, 64, 3136}, "costly reads=3 writes=2", "rows group 1 turns stores g non-temporal", 64, 6422528},
	{"but not over x, which dx needs", Shape{32, 64, 3136}, "costly unstorable", "rows group 1 turns non-temporal", 64, 6422528},
	{"nor where values are gathered", Shape{32, 64, 3136}, "costly masked", "rows group 1 non-temporal", 64, 6422528},
	{"nor where there are no sums to store it from", Shape{32, 64, 3136}, "costly apply", "rows group 1 non-temporal", 64, 6422528},
	{"nor where nothing is computed from it", Shape{32, 64, 3136}, "costly sums", "rows group 1", 64, 6422528},
	{"where the third-level cache is far, smaller tensors take non-temporal stores", Shape{16, 64, 784}, "intel",
		"rows group 5 turns non-temporal", 64, 802816},
	{"which a near one takes plain stores for", Shape{16, 64, 784}, "", "rows group 2 fused", 64, 802816},
	{"and so does a far one in place", Shape{16, 64, 784}, "intel inPlace", "rows group 5 fused", 64, 802816},
	{"a tensor one below the threshold", Shape{1, 3, 524287}, "", "rows group 1 fused", 3, 1572861},
	{"and one at it", Shape{1, 3, 524288}, "", "rows group 1 turns non-temporal", 3, 1572864},
	{"a smaller one, that the second-level cache holds beside its input", Shape{16, 64, 319}, "intel", "rows group 8 fused", 64, 326656},
	{"and one that it does not hold", Shape{16, 64, 320}, "intel", "rows group 8 turns non-temporal", 64, 327680},
	{"groups are of some values of each image, in whole lines of rows", Shape{20, 320, 49}, "intel", "rows group 80 fused", 320, 313600},
	{"or of some in all, where images are few", Shape{4, 512, 49}, "", "rows group 128 fused", 512, 100352},
	{"of one, too", Shape{1, 64, 3136}, "", "rows group 8 fused", 64, 200704},
	{"and of a part of the second-level cache", Shape{32, 512, 49}, "", "rows group 16 fused", 512, 802816},
	{"of which a residual takes nothing, since only the outputs read it", Shape{32, 512, 49}, "reads=2", "rows group 16 fused", 512, 802816},
	{"up to half of it for some values of each image", Shape{32, 512, 49}, "backward reads=3", "rows group 8 fused", 512, 802816},
	{"of two odd rows at least", Shape{96, 192, 289}, "intel backward reads=3", "rows group 2 turns non-temporal", 192, 5326848},
	{"unless one has these values", Shape{96, 192, 529}, "intel backward reads=3", "rows group 1 turns non-temporal", 192, 9750528},
	{"odd rows: a power of two, within a third of the cache", Shape{32, 256, 441}, "intel backward reads=3",
		"rows group 4 turns non-temporal", 256, 3612672},
	{"seven would fit", Shape{80, 192, 289}, "intel", "rows group 4 turns non-temporal", 192, 4439040},
	{"whole lines, where whole vectors of channels do not fit", Shape{32, 256, 196}, "intel backward reads=3",
		"rows group 4 turns non-temporal", 256, 1605632},
	{"a larger second-level cache has room for more", Shape{32, 512, 49}, "intel", "rows group 64 turns non-temporal", 512, 802816},
	{"rows of whole lines stay within the part, in whole vectors of channels", Shape{32, 512, 80}, "", "rows group 8 fused", 512, 1310720},
	{"a smaller cache has room for less than a vector of them", Shape{32, 512, 80}, "small", "rows group 5 fused", 512, 1310720},
	{"many images, so that the cache holds few values of each: all channels", Shape{256, 64, 49}, "", "rows group 64 fused", 64, 802816},
	{"or a part of the third-level cache", Shape{1024, 64, 49}, "", "rows group 16 turns non-temporal", 64, 3211264},
	{"whole lines of rows and whole vectors of channels", Shape{32, 100, 100}, "", "rows group 8 fused", 100, 320000},
	{"a group of all channels, where these are few", Shape{32, 3, 49}, "", "rows group 3 fused", 3, 4704},
	{"a channel is beyond half the third-level cache: nothing is left of it when outputs are written", Shape{64, 4, 131072}, "",
		"rows group 1 non-temporal", 4, 33554432},
	{"pure Go is no faster otherwise", Shape{64, 4, 131072}, "generic", "rows group 1 fused", 4, 33554432},
	{"one within half the third-level cache", Shape{16, 4, 131072}, "", "rows group 1 turns non-temporal", 4, 8388608},
	{"which is beyond half a smaller one", Shape{16, 4, 65536}, "small", "rows group 1 non-temporal", 4, 4194304},
	{"few channels of one segment: a task for each", Shape{8, 4, 784}, "workers=4", "rows group 1 fused", 1, 1568},
	{"two tasks for each worker", Shape{32, 64, 64}, "workers=2", "rows group 8 fused", 16, 16384},
	{"four where there is more to do", Shape{32, 64, 784}, "workers=2", "rows group 1 turns non-temporal", 8, 32768},
	{"of whole cache lines", Shape{16, 128, 49}, "workers=2", "rows group 32 fused", 32, 12544},
	{"few channels of several segments are shared out by these", Shape{8, 4, 131072}, "workers=4", "rows group 1 non-temporal", 1, 32768},
	{"but not with one worker", Shape{8, 4, 131072}, "", "rows group 1 turns non-temporal", 4, 4194304},
	{"channels for four tasks each are enough, which have no group to take turns with", Shape{8, 16, 131072}, "workers=4",
		"rows group 1 fused non-temporal", 1, 32768},
	{"one fewer is not", Shape{8, 15, 131072}, "workers=4", "rows group 1 non-temporal", 1, 32768},
	{"one channel is one row", Shape{4096, 1, 16}, "", "rows group 1 fused", 1, 65536},
	{"of one segment, which one task takes", Shape{4096, 1, 16}, "workers=4", "rows group 1 fused", 1, 4096},
	{"one of several segments", Shape{1, 1, 4000000}, "workers=2", "rows group 1 non-temporal", 1, 32768},
	{"one group has none to take turns with", Shape{32, 1, 65536}, "", "rows group 1 fused non-temporal", 1, 2097152},
	{"one image of short rows", Shape{1, 4096, 7}, "", "rows group 576 fused", 4096, 28672},
	{"one that is large", Shape{1, 400000, 7}, "", "rows group 576 turns non-temporal", 400000, 2800000},
	{"tasks are whole groups", Shape{32, 512, 49}, "workers=3", "rows group 16 fused", 48, 32768},
	{"more workers than values", Shape{2, 2, 8}, "workers=16", "rows group 2 fused", 2, 1},
	{"an empty batch", Shape{0, 8, 49}, "", "rows group 8 fused", 8, 0},
	{"rows of one vector, of which two make a line", Shape{4096, 64, 8}, "", "rows group 32 turns non-temporal", 64, 2097152},
	{"columns, two rows side by side, summed in strips, and four of them written together", Shape{32, 64, 1}, "", "cols strips", 128, 256},
	{"those beyond the first-level cache are written in order", Shape{1000, 64, 1}, "", "cols in order", 128, 256},
	{"both tensors, with constants, below the cache's size", Shape{58, 64, 1}, "", "cols strips", 128, 256},
	{"and above it", Shape{59, 64, 1}, "", "cols strips in order", 128, 256},
	{"which a larger cache has room for", Shape{64, 64, 1}, "intel", "cols strips", 128, 256},
	{"and a tensor in place", Shape{64, 64, 1}, "inPlace", "cols strips", 128, 256},
	{"but not three of them", Shape{64, 64, 1}, "inPlace backward", "cols in order", 128, 256},
	{"sums alone write in no order", Shape{64, 64, 1}, "sums", "cols strips", 128, 256},
	{"nor does pure Go", Shape{64, 64, 1}, "generic", "cols", 128, 256},
	{"those of a large tensor take non-temporal stores", Shape{100352, 64, 1}, "", "cols non-temporal", 128, 256},
	{"but not in place", Shape{100352, 64, 1}, "inPlace", "cols in order", 128, 256},
	{"nor on arm64", Shape{100352, 64, 1}, "neon", "cols", 128, 256},
	{"columns are cut where segments are few", Shape{1000, 256, 1}, "workers=4", "cols in order", 128, 62},
	{"many segments are enough for the workers", Shape{100352, 64, 1}, "workers=4", "cols non-temporal", 128, 256},
	{"one segment is cut into pieces for all workers", Shape{100, 4096, 1}, "workers=4", "cols in order", 512, 6},
	{"of 64 columns at least", Shape{32, 100, 1}, "workers=16", "cols strips", 64, 1},
	{"more than 64 rows take sums row by row", Shape{130, 64, 1}, "", "cols in order", 128, 256},
	{"64 do not, of two side by side", Shape{128, 64, 1}, "", "cols strips in order", 128, 256},
	{"whatever the size of the tensor", Shape{64, 129, 1}, "", "cols strips in order", 129, 254},
	{"unless moments of some are sums in float64", Shape{64, 129, 1}, "marked", "cols in order", 129, 254},
	{"gathered rows are read where they are", Shape{16, 40000, 1}, "masked", "cols strips in order", 40000, 32},
	{"64 of them, too", Shape{64, 1000, 1}, "masked", "cols strips in order", 1000, 32},
	{"but not more", Shape{65, 1000, 1}, "masked", "cols in order", 1000, 32},
	{"and folded ones are copied", Shape{50, 64, 1}, "masked", "cols strips", 128, 256},
	{"gradients of gathered rows have no probe", Shape{16, 512, 1}, "masked backward", "cols in order", 512, 64},
	{"sums of gradients have no probe", Shape{16, 512, 1}, "backward", "cols in order", 512, 64},
	{"a function is called for quads of rows", Shape{1000, 64, 1}, "calls", "cols", 128, 256},
	{"and for a backward pass", Shape{1000, 64, 1}, "backward calls", "cols", 128, 256},
	{"but not by the outputs where g is stored", Shape{1000, 64, 1}, "costly calls", "cols stores g in order", 128, 256},
	{"a derivative that takes long is stored in columns", Shape{1000, 64, 1}, "costly", "cols stores g in order", 128, 256},
	{"and by pure Go", Shape{1000, 64, 1}, "costly generic", "cols stores g", 128, 256},
	{"in dx, which has plain stores then", Shape{100352, 64, 1}, "costly", "cols stores g in order", 128, 256},
	{"or in dresidual, apart from dx", Shape{8192, 513, 1}, "costly reads=3 writes=2", "cols stores g non-temporal 8 rows as one", 513, 256},
	{"and in place", Shape{100352, 64, 1}, "costly inPlace", "cols stores g in order", 128, 256},
	{"gathered columns store nothing", Shape{1000, 64, 1}, "costly masked", "cols in order", 128, 256},
	{"more columns than a call takes", Shape{20, 40000, 1}, "", "cols strips in order", 40000, 32},
	{"rows shorter than a vector are columns", Shape{64, 256, 7}, "", "cols strips in order", 1792, 32},
	{"rows of odd width become rows of whole vectors, for non-temporal stores", Shape{100352, 63, 1}, "", "cols non-temporal 8 rows as one", 189, 256},
	{"as few as are needed", Shape{100352, 33, 1}, "", "cols non-temporal 2 rows as one", 132, 248},
	{"but not in place, where stores are plain", Shape{100352, 63, 1}, "inPlace", "cols in order", 189, 173},
	{"nor where values are gathered", Shape{100352, 63, 1}, "masked", "cols non-temporal", 189, 173},
	{"nor where their constants would take too much memory", Shape{2048, 2049, 1}, "", "cols non-temporal", 2049, 32},
	{"workers share whole ones", Shape{100352, 63, 1}, "workers=4", "cols non-temporal 8 rows as one", 189, 256},
	{"at least one each", Shape{300, 2047, 1}, "intel workers=16", "cols non-temporal 8 rows as one", 192, 8},
	{"of which as many as are needed lie side by side", Shape{3000, 3, 2}, "", "cols in order", 132, 248},
	{"outputs alone in columns", Shape{1000, 64, 1}, "apply workers=2", "cols in order", 64, 62},
	{"sums alone in columns", Shape{1000, 64, 1}, "sums workers=2", "cols", 64, 62},
	{"an empty batch of columns", Shape{0, 64, 1}, "workers=2", "cols", 64, 1},
}

// TestChoose holds the schedule to a way for every situation.
func TestChoose(t *testing.T) {
	for _, c := range schedules {
		s, l := scheduleOf(t, c.in)
		g := newGeometry(c.shape)
		if s.masked { // as source.begin makes it
			g = rowGeometry(1, c.shape.Channels, c.shape.PerChannel())
			if c.shape.Inner == 1 && c.shape.Channels > 1 {
				g = colGeometry(c.shape.PerChannel(), c.shape.Channels, 1)
			}
		}
		w := choose(&g, s, l)
		if w.String() != c.way || w.tasks != c.tasks || w.tile != c.tile {
			t.Errorf("%v, %s (%s):\n got {%q, %d, %d}\nwant {%q, %d, %d}", c.shape, c.in, c.why, w, w.tasks, w.tile, c.way, c.tasks, c.tile)
		}
		if fused := strings.Contains(c.way, "fused") || strings.Contains(c.way, "turns"); w.fused != fused {
			t.Errorf("%v, %s: fused is %t, want %t", c.shape, c.in, w.fused, fused)
		}
	}
}

// TestExplain: a plan explains its calls as they are carried out.
func TestExplain(t *testing.T) {
	t.Parallel()
	explained := map[string]bool{}
	for _, s := range []Shape{{Outer: 8, Channels: 24, Inner: 49}, {Outer: 3, Channels: 2, Inner: 5000}, {Outer: 900, Channels: 24, Inner: 1},
		{Outer: 300, Channels: 600, Inner: 1}} {
		for _, act := range []Activation{Identity, ReLU, SiLU, GELU} {
			for name, option := range map[string]Option{"usual": WithEpsilon(1), "extreme": WithExtremeSchedule(false),
				"phases": WithExtremeSchedule(true)} {
				for _, path := range Paths() {
					for _, workers := range []int{1, 3} {
						p, err := NewPlan(s, WithActivation(act), WithPath(path), WithWorkers(workers), option)
						if err != nil {
							t.Fatal(err)
						}
						for _, residual := range []bool{false, true} {
							for _, backward := range []bool{false, true} {
								got, want := p.carriedOut(backward, residual), p.Explain(backward, residual)
								if got != want {
									t.Errorf("%v, %v, %s, %v, %d workers, backward %t, residual %t: it is %q, explained as %q",
										s, act, name, path, workers, backward, residual, got, want)
								}
								explained[got] = true
							}
						}
					}
				}
			}
		}
	}
	least := 8
	if len(Paths()) == 1 { // pure Go has one channel in a group, and takes no turns
		least = 4
	}
	if len(explained) < least {
		t.Errorf("only %d ways were explained", len(explained))
	}
}

// carriedOut returns the way that a call takes, with tensors of its own.
func (p *Plan) carriedOut(backward, residual bool) string {
	tensor := func(wanted bool) []float32 {
		if !wanted {
			return nil
		}
		return make([]float32, p.shape.Len())
	}
	o := operands{x: tensor(true), dy: tensor(backward), residual: tensor(residual), y: tensor(true), dresidual: tensor(backward && residual),
		mean: make([]float64, p.shape.Channels), invstd: slices.Repeat([]float64{1}, p.shape.Channels)}
	w := p.acquire(&Mask{}, p.shape.PerChannel(), false)
	if backward {
		w.backwardCall(p.act, &o)
		w.setSaved(o.mean, o.invstd)
	} else {
		w.forwardCall(p.act, &o)
	}
	w.run(bothPhases)
	way := w.way.String()
	p.release(w)
	return way
}

// TestSituation: what a schedule depends on is seen in a call, aliases and wide channels
// among it.
func TestSituation(t *testing.T) {
	s := Shape{Outer: 4, Channels: 8, Inner: 9}
	p, err := NewPlan(s, WithActivation(SiLU))
	if err != nil {
		t.Fatal(err)
	}
	tensor := func() []float32 { return make([]float32, s.Len()) }
	x, dy, res, y, dres := tensor(), tensor(), tensor(), tensor(), tensor()
	backward := situation{path: p.path, workers: 1, backward: true, do: bothPhases, reads: 3, costly: true, calls: true}
	for _, c := range []struct {
		why               string
		dx, dres          []float32
		form              byte
		writes            int
		inPlace, storable bool
	}{
		{"both apart", y, dres, 0, 2, false, true},
		{"no dresidual: dx holds g", y, nil, 0, 1, false, true},
		{"no dx: dresidual holds g", nil, dres, 0, 2, false, true},
		{"dx in the place of x can't", x, nil, 0, 1, true, false},
		{"but dresidual can", x, dres, 0, 2, true, true},
		{"dresidual in the place of x can't, where dx is apart", y, x, 0, 2, true, false},
		{"in the place of dy both can", dy, nil, 0, 1, true, true},
		{"dresidual too", y, dy, 0, 2, true, true},
		{"and in that of the residual", y, res, 0, 2, true, true},
		{"a precise channel does", y, dres, preciseForm, 2, false, true},
		{"a wide channel stores nothing", y, dres, wideForm, 2, false, false},
	} {
		w := p.acquire(&Mask{}, s.PerChannel(), false)
		w.backwardCall(p.act, &operands{x: x, dy: dy, residual: res, y: c.dx, dresidual: c.dres})
		w.setSaved(make([]float64, s.Channels), slices.Repeat([]float64{1}, s.Channels))
		w.channels.form[5] = c.form
		want := backward
		want.writes, want.inPlace, want.storable = c.writes, c.inPlace, c.storable
		if got := w.situation(bothPhases); got != want {
			t.Errorf("%s: %+v, want %+v", c.why, got, want)
		}
		w.channels.form[5] = 0
		p.release(w)
	}
	w := p.acquire(&Mask{}, s.PerChannel(), false)
	w.forwardCall(p.act, &operands{x: x, residual: res, y: res})
	want := situation{path: p.path, workers: 1, do: bothPhases, reads: 2, writes: 1, inPlace: true, calls: true}
	if got := w.situation(bothPhases); got != want {
		t.Errorf("forward: %+v, want %+v", got, want)
	}
}
