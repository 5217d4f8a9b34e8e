package batchnorm

import (
	"fmt"
	"slices"
)

// Path names an implementation of the kernels. All of them return the same bits.
type Path uint8

const (
	PathGeneric Path = iota // pure Go, on every machine
	PathAVX2                // amd64 with AVX2 and FMA
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
// Instruction sets that GODEBUG switches off (cpu.avx2=off, cpu.fma=off, cpu.asimd=off,
// cpu.all=off) are left out, and so is all assembly in a build with -tags purego.
func Paths() []Path { return slices.Clone(paths) }

// DefaultPath returns the path that a plan takes unless [WithPath] says otherwise.
func DefaultPath() Path { return paths[0] }

func (p Path) available() bool { return slices.Contains(paths, p) }

// paths are those of this machine, the fastest first.
var paths = append(detectSIMD(), PathGeneric)
