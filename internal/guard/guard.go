// Package guard hands out float32 buffers that notice when code reaches
// outside of them: buffers that end (or begin) exactly at memory which cannot
// be accessed, so that even reading one element too many faults; and buffers
// with sentinels around them, so that writing there is found afterwards.
//
// All of them are filled with the sentinel, a NaN, so that reading an element
// that nobody wrote shows in the result too. They belong to the test: it checks
// the sentinels and frees the memory when it ends.
package guard

import (
	"math"
	"testing"
	"unsafe"
)

// sentinel is a NaN that no arithmetic makes.
const sentinel = 0x7fdeadbe

const (
	floatSize = 4
	lineSize  = 64 // of the cache; the alignment that Sentinel's offset counts from
	margin    = 2 * lineSize / floatSize
)

// Sentinel returns n floats of ordinary memory, offset floats (0 to 15) behind
// a 64-byte boundary, with sentinels before and behind.
func Sentinel(tb testing.TB, n, offset int) []float32 {
	if offset < 0 || offset >= lineSize/floatSize {
		tb.Fatalf("guard: offset is %d, must be 0 to %d", offset, lineSize/floatSize-1)
	}
	mem := make([]float32, n+3*margin)
	misplaced := int(uintptr(unsafe.Pointer(&mem[0]))%lineSize) / floatSize
	return place(tb, mem, margin-misplaced+offset, n, func() {})
}

// place fills mem with the sentinel and returns the n floats from index at on.
// When the test ends, the others must be as they were; release is called then.
func place(tb testing.TB, mem []float32, at, n int, release func()) []float32 {
	for i := range mem {
		mem[i] = math.Float32frombits(sentinel)
	}
	tb.Cleanup(func() {
		for i, v := range mem {
			if (i < at || i >= at+n) && math.Float32bits(v) != sentinel {
				tb.Errorf("guard: element %d of a buffer of %d was overwritten with %v", i-at, n, v)
			}
		}
		release()
	})
	// Not mem[at:at+n], which would not point at the end of mem when n is 0.
	return unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(&mem[0]), at*floatSize)), n)
}
