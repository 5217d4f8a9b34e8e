package batchnorm

import (
	"fmt"
	"slices"

	"github.com/klauspost/cpuid/v2"
)

// Path names an implementation of the kernels. All of them return the same bits.
type Path uint8

const (
	PathGeneric Path = iota // pure Go, on every machine
	PathAVX2                // amd64 with AVX2
	PathNEON                // arm64 with ASIMD
)

// String returns "generic", "avx2" or "neon".
func (p Path) String() string {
	switch p {
	case PathGeneric:
		return "generic"
	case PathAVX2:
		return "avx2"
	case PathNEON:
		return "neon"
	}
	return fmt.Sprintf("Path(%d)", uint8(p))
}

// Paths returns the paths that this machine can run, the fastest first.
// The last is always [PathGeneric].
//
// An instruction set that GODEBUG switches off (cpu.avx2=off, cpu.asimd=off,
// cpu.all=off) is left out, and so is all assembly in a build with -tags purego.
func Paths() []Path { return slices.Clone(paths) }

// DefaultPath returns the path that a plan takes unless [WithPath] says otherwise.
func DefaultPath() Path { return paths[0] }

func (p Path) available() bool { return slices.Contains(paths, p) }

// paths are those of this machine, the fastest first.
var paths = append(detectSIMD(), PathGeneric)

// cacheL2 is the size in bytes of a core's second-level cache: what a schedule
// may count on keeping between taking statistics and applying them. It shapes
// the schedule only, never the order of a sum.
var cacheL2 = cacheOr(cpuid.CPU.Cache.L2, 512<<10)

// cacheL3 is the size in bytes of the third-level cache: behind a channel that does
// not fit there, nothing is to be had again.
var cacheL3 = cacheOr(cpuid.CPU.Cache.L3, 32<<20)

// cacheOr returns a size that cpuid tells, or a usual one where it is unknown, as
// on arm64 and under emulators.
func cacheOr(size, usual int) int {
	if size > 0 {
		return size
	}
	return usual
}
