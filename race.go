//go:build race

package batchnorm

import (
	"runtime"
	"unsafe"
)

const raceEnabled = true

// race tells the race detector what the kernel is about to read and write,
// since it can't see into assembly. Tests with the detector also see to it that no
// call is so long that it holds up the garbage collector.
func (a *kernelArgs) race() {
	if a.rows*a.n > 64<<10 {
		panic("batchnorm: a kernel was asked for more than 64 Ki values at a time")
	}
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
