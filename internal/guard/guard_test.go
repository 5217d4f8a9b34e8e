package guard

import (
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"
)

// sizes are around nothing, vectors, and the pages in use (4, 16 and 64 KiB).
var sizes = []int{0, 1, 7, 8, 1023, 1024, 1025, 4096, 16384, 16385}

func address(s []float32, i int) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), i*floatSize)
}

// faultsAt says whether reading element i of s faults, in its page.
func faultsAt(s []float32, i int) (faults bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault, ok := recover().(interface{ Addr() uintptr }); ok {
			// s390x tells the page alone.
			const page = 4<<10 - 1
			faults = fault.Addr()|page == uintptr(address(s, i))|page
		}
	}()
	read = *(*float32)(address(s, i))
	return false
}

var read float32 // keeps the compiler from leaving a read out

func TestReadOutsideFaults(t *testing.T) {
	if !Protected {
		t.Skip("no inaccessible memory on this system")
	}
	for _, n := range sizes {
		end, start := AtEnd(t, n), AtStart(t, n)
		if len(end) != n || len(start) != n {
			t.Fatalf("lengths %d and %d, want %d", len(end), len(start), n)
		}
		if !faultsAt(end, n) {
			t.Errorf("AtEnd(%d): reading the element behind does not fault", n)
		}
		if !faultsAt(start, -1) {
			t.Errorf("AtStart(%d): reading the element before does not fault", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			if i >= 0 && i < n && (faultsAt(end, i) || faultsAt(start, i)) {
				t.Errorf("element %d of %d faults", i, n)
			}
		}
	}
}

func TestSentinelAlignment(t *testing.T) {
	for _, n := range sizes {
		for offset := range lineSize / floatSize {
			s := Sentinel(t, n, offset)
			if got := int(uintptr(address(s, 0)) % lineSize / floatSize); len(s) != n || got != offset {
				t.Errorf("Sentinel(%d, %d) has %d elements at offset %d", n, offset, len(s), got)
			}
		}
	}
}

// fakeTB records errors and runs the cleanups when told.
type fakeTB struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (f *fakeTB) Helper()                   {}
func (f *fakeTB) Cleanup(cleanup func())    { f.cleanups = append(f.cleanups, cleanup) }
func (f *fakeTB) Errorf(s string, a ...any) { f.errors = append(f.errors, fmt.Sprintf(s, a...)) }

func (f *fakeTB) end() {
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		f.cleanups[i]()
	}
}

func TestOverwrittenSentinelIsReported(t *testing.T) {
	buffers := map[string]struct {
		make          func(tb testing.TB, n int) []float32
		before, after bool // sides with sentinels
	}{
		"AtEnd":    {AtEnd, true, !Protected},
		"AtStart":  {AtStart, !Protected, true},
		"Sentinel": {func(tb testing.TB, n int) []float32 { return Sentinel(tb, n, 3) }, true, true},
	}
	for name, b := range buffers {
		for _, n := range []int{0, 5} {
			writes := map[int]bool{-1: b.before, n: b.after} // index: whether it is a sentinel
			for i := range n {
				writes[i] = false
			}
			for i, reported := range writes {
				if outside := i < 0 || i >= n; outside && !reported {
					continue // inaccessible
				}
				tb := &fakeTB{TB: t}
				*(*float32)(address(b.make(tb, n), i)) = float32(math.Inf(1))
				tb.end()
				want := fmt.Sprintf("element %d of a buffer of %d was overwritten with +Inf", i, n)
				switch {
				case !reported && len(tb.errors) > 0:
					t.Errorf("%s(%d): writing element %d is reported: %q", name, n, i, tb.errors)
				case reported && (len(tb.errors) != 1 || !strings.Contains(tb.errors[0], want)):
					t.Errorf("%s(%d): writing element %d is reported as %q", name, n, i, tb.errors)
				}
			}
		}
	}
}

func TestFilledWithNaN(t *testing.T) {
	for name, s := range map[string][]float32{"AtEnd": AtEnd(t, 9), "AtStart": AtStart(t, 9), "Sentinel": Sentinel(t, 9, 1)} {
		for i, v := range s {
			if v == v {
				t.Errorf("%s: element %d is %v at first, want NaN", name, i, v)
			}
		}
	}
}
