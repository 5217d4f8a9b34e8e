//go:build !unix

package guard

import "testing"

// Protected says whether an access outside of a buffer faults on the side that
// [AtEnd] and [AtStart] guard, reads included. Where it is false, only writes
// are found, and only afterwards.
const Protected = false

// AtEnd returns n floats with sentinels around them.
func AtEnd(tb testing.TB, n int) []float32 {
	return Sentinel(tb, n, 0)
}

// AtStart returns n floats with sentinels around them.
func AtStart(tb testing.TB, n int) []float32 {
	return Sentinel(tb, n, 0)
}
