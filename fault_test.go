//go:build unix

package batchnorm_test

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"golang.org/x/sys/unix"
)

// TestFault: x lies in memory that faults from some page on, as a mapped file does
// that was truncated. The panic of the call reaches the caller, and the plan serves
// later calls as before.
func TestFault(t *testing.T) {
	page := unix.Getpagesize() / 4
	for _, s := range []batchnorm.Shape{
		{Outer: 6, Channels: 4, Inner: page}, {Outer: 40, Channels: page / 8, Inner: 7}, {Outer: 8 * page, Channels: 3, Inner: 1}, {Outer: 16,
			Channels: page, Inner: 1},
	} {
		size := (s.Len() + page - 1) / page * page * 4
		mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		noError(t, err)
		defer unix.Munmap(mem)
		faulty := unsafe.Slice((*float32)(unsafe.Pointer(&mem[0])), s.Len())
		good := gen.Normal(1, s.Len(), 2, 1)
		copy(faulty, good)
		half := make([]bool, s.PerChannel())
		for i := range half {
			half[i] = i%3 != 1
		}
		for _, path := range batchnorm.Paths() {
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.GELU} {
				for name, mask := range map[string]batchnorm.Mask{"whole": {}, "masked": {Valid: half}} {
					t.Run(fmt.Sprintf("%v %s %v %v", s, name, act, path), func(t *testing.T) {
						p := newPlan(t, s, batchnorm.WithActivation(act), batchnorm.WithPath(path))
						call := func(x []float32) []float32 {
							y, dx := make([]float32, s.Len()), make([]float32, s.Len())
							mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
							err := errors.Join(
								p.Forward(batchnorm.ForwardArgs{X: good, Y: y, Mask: mask, Mean: mean, InvStd: invstd}),
								p.Backward(batchnorm.BackwardArgs{X: x, DY: good, Mask: mask, Mean: mean, InvStd: invstd, DX: dx}),
								p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mask: mask, Mean: mean, InvStd: invstd}),
								p.Inference(batchnorm.InferenceArgs{X: x, Y: y, Mask: mask, Mean: make([]float32, s.Channels), Var: make([]float32, s.Channels)}))
							if err != nil {
								t.Error(err)
							}
							return append(y, dx...)
						}
						within(t, "a call after a fault", func() {
							want := call(good)
							for _, from := range []int{size - page*4, size / 2 / (page * 4) * page * 4, 0} {
								noError(t, unix.Mprotect(mem[from:], unix.PROT_NONE))
								if !faults(func() { call(faulty) }) {
									t.Errorf("memory that faults from byte %d of %d on is read", from, size)
								}
								noError(t, unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE))
								expectBits(t, "after a fault", call(faulty), want)
							}
						})
					})
				}
			}
		}
	}
}

// faults reports whether f accesses memory that it may not.
func faults(f func()) (faulted bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			_, faulted = r.(runtime.Error)
		}
	}()
	f()
	return false
}
