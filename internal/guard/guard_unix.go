//go:build unix

package guard

import (
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Protected says whether an access outside of a buffer faults on the side that
// [AtEnd] and [AtStart] guard, reads included. Where it is false, only writes
// are found, and only afterwards.
const Protected = true

// AtEnd returns n floats that end exactly where inaccessible memory begins,
// with sentinels before them.
func AtEnd(tb testing.TB, n int) []float32 {
	mem, release := pages(tb, n)
	return place(tb, mem, len(mem)-n, n, release)
}

// AtStart returns n floats that begin exactly where inaccessible memory ends,
// with sentinels behind them.
func AtStart(tb testing.TB, n int) []float32 {
	mem, release := pages(tb, n)
	return place(tb, mem, 0, n, release)
}

// mapped has pages between inaccessible ones that no test uses any more, by their length in
// bytes. A test asks for thousands of the same length, and mapping, protecting and
// unmapping each takes longer than the test.
var mapped struct {
	sync.Mutex
	free  map[int][][]byte
	bytes int // in all of them
}

// maxMapped is how many bytes are kept for later tests. Each area of a page or more takes three
// mappings, of which Linux allows a process 65,530.
const maxMapped = 24 << 20

// pages returns whole pages for at least n floats, between two inaccessible
// ones, and a function that gives them back.
func pages(tb testing.TB, n int) (mem []float32, release func()) {
	page := unix.Getpagesize()
	size := max(1, (n*floatSize+page-1)/page) * page
	all := takeMapped(size)
	if all == nil {
		var err error
		all, err = unix.Mmap(-1, 0, size+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			tb.Fatalf("guard: mmap: %v", err)
		}
		for _, guarded := range [][]byte{all[:page], all[page+size:]} {
			if err := unix.Mprotect(guarded, unix.PROT_NONE); err != nil {
				tb.Fatalf("guard: mprotect: %v", err)
			}
		}
	}
	release = func() {
		if keepMapped(size, all) {
			return
		}
		if err := unix.Munmap(all); err != nil {
			tb.Errorf("guard: munmap: %v", err)
		}
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&all[page])), size/floatSize), release
}

func takeMapped(size int) []byte {
	mapped.Lock()
	defer mapped.Unlock()
	free := mapped.free[size]
	if len(free) == 0 {
		return nil
	}
	all := free[len(free)-1]
	mapped.free[size] = free[:len(free)-1]
	mapped.bytes -= size
	return all
}

// keepMapped keeps pages for later, and reports whether there was room for them.
func keepMapped(size int, all []byte) bool {
	mapped.Lock()
	defer mapped.Unlock()
	if mapped.bytes+size > maxMapped {
		return false
	}
	if mapped.free == nil {
		mapped.free = map[int][][]byte{}
	}
	mapped.free[size] = append(mapped.free[size], all)
	mapped.bytes += size
	return true
}
