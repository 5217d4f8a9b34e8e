//go:build race

package batchnorm

import (
	"runtime"
	"unsafe"
)

const raceEnabled = true

// race tells the race detector what the kernel is about to read and write,
// since it can't see into assembly.
func (a *kernelArgs) race() {
	for r := range a.rows {
		for _, s := range [...][]float32{a.x, a.dy, a.res} {
			if s != nil {
				runtime.RaceReadRange(unsafe.Pointer(&s[r*a.stride]), 4*a.n)
			}
		}
		for _, s := range [...][]float32{a.y, a.dres} {
			if s != nil {
				runtime.RaceWriteRange(unsafe.Pointer(&s[r*a.stride]), 4*a.n)
			}
		}
	}
}
