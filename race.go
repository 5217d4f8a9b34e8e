//go:build race

package batchnorm

import (
	"fmt"
	"runtime"
	"unsafe"
)

const raceEnabled = true

// race reports the memory that a kernel is about to read and write to the race
// detector, which can't see into assembly. It also checks that no call is so long that
// it holds up the garbage collector.
func (a *kernelArgs) race(kernel int, l layout) {
	if n := a.values(l); n > maxCall {
		panic(fmt.Sprintf("batchnorm: a kernel was asked for %d values at a time, at most %d are allowed", n, maxCall))
	}
	touch := func(p int) {
		for _, s := range [...][]float32{a.x, a.dy, a.res} {
			if s != nil {
				runtime.RaceReadRange(unsafe.Pointer(&s[p]), 4*a.n)
			}
		}
		for _, s := range [...][]float32{a.y, a.dres} {
			if s != nil {
				runtime.RaceWriteRange(unsafe.Pointer(&s[p]), 4*a.n)
			}
		}
	}
	if kernel == kernelGradSums64 {
		a.raceSums64()
		return
	}
	if kernel >= kernelScale {
		for r := range a.rows {
			if a.dy != nil {
				runtime.RaceReadRange(unsafe.Pointer(&a.dy[r*a.strideDY]), 4*a.n)
			}
			runtime.RaceReadRange(unsafe.Pointer(&a.x[r*a.stride]), 4*a.n)
			if a.res != nil {
				runtime.RaceReadRange(unsafe.Pointer(&a.res[r*a.strideRes]), 4*a.n)
			}
			runtime.RaceWriteRange(unsafe.Pointer(&a.y[r*a.strideY]), 4*a.n)
		}
		return
	}
	if l == cols {
		for r := range a.rows {
			touch(r * a.stride)
		}
		return
	}
	if a.left != a.n || a.rowsLeft != a.rows || a.coefAt != 0 {
		return // the first call of a walk has reported all of it
	}
	p := a.at
	for range a.images {
		for range a.rows {
			touch(p)
			p += a.n + a.rowGap
		}
		p += a.imageGap
	}
}

// raceSums64 is race for kernelGradSums64, which reads column after column.
func (a *kernelArgs) raceSums64() {
	read := func(at, row, n int) {
		runtime.RaceReadRange(unsafe.Pointer(&a.x[at+row*a.stride]), 4*n)
		runtime.RaceReadRange(unsafe.Pointer(&a.dy[at+row*a.strideDY]), 4*n)
		if a.res != nil {
			runtime.RaceReadRange(unsafe.Pointer(&a.res[at+row*a.strideRes]), 4*n)
		}
	}
	for c := range a.n / lanes {
		at := c * a.columnStep / 4
		for r := range a.rows {
			read(at, r, lanes)
		}
		for r := range a.tails {
			read(at, a.rows+r, a.n%lanes)
		}
	}
}
