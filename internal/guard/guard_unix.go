//go:build unix

package guard

import (
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
	tb.Helper()
	mem := pages(tb, n)
	return place(tb, mem, len(mem)-n, n)
}

// AtStart returns n floats that begin exactly where inaccessible memory ends,
// with sentinels behind them.
func AtStart(tb testing.TB, n int) []float32 {
	tb.Helper()
	return place(tb, pages(tb, n), 0, n)
}

// pages returns whole pages for at least n floats, between two inaccessible
// ones.
func pages(tb testing.TB, n int) []float32 {
	tb.Helper()
	page := unix.Getpagesize()
	size := max(1, (n*floatSize+page-1)/page) * page
	mem, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		tb.Fatalf("guard: mmap: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			tb.Errorf("guard: munmap: %v", err)
		}
	})
	for _, guarded := range [][]byte{mem[:page], mem[page+size:]} {
		if err := unix.Mprotect(guarded, unix.PROT_NONE); err != nil {
			tb.Fatalf("guard: mprotect: %v", err)
		}
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&mem[page])), size/floatSize)
}
