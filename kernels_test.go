package batchnorm

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/internal/guard"
)

// kernelCase is one kernel in one variant.
type kernelCase struct {
	kernel int
	layout layout
	act    Activation
	flags  int
}

var kernelNames = [...]string{"moments", "normalize", "gradSums", "inputGrad", "pipeForward", "pipeBackward"}

func (k kernelCase) String() string {
	return fmt.Sprintf("%s/%s/%s/res=%t/dres=%t/stream=%t", kernelNames[k.kernel], [...]string{"rows", "cols", "runs"}[k.layout],
		k.act, k.flags&withResidual != 0, k.flags&withDResidual != 0, k.flags&withStream != 0)
}

func (k kernelCase) run(p Path, a *kernelArgs) { p.run(k.kernel, k.layout, k.act, a) }

func (k kernelCase) pipelined() bool { return k.kernel >= kernelPipeForward }
func (k kernelCase) gradient() bool {
	return k.kernel == kernelGradSums || k.kernel == kernelInputGrad || k.kernel == kernelPipeBackward
}
func (k kernelCase) sums() bool {
	return k.kernel == kernelMoments || k.kernel == kernelGradSums || k.pipelined()
}
func (k kernelCase) writes() bool { return k.kernel != kernelMoments && k.kernel != kernelGradSums }

// kernelCases lists every kernel in every variant that a call can ask for.
func kernelCases() []kernelCase {
	var list []kernelCase
	for kernel := range kernelNames {
		for _, l := range []layout{rows, cols, runs} {
			for _, act := range []Activation{Identity, ReLU, Clip(-1, 2), Sigmoid} { // every variant; the functions have a test of their own
				for flags := range numFlags {
					k := kernelCase{kernel, l, act, flags}
					switch {
					case kernel == kernelMoments && (act != Identity || flags != 0),
						flags&withDResidual != 0 && !(k.gradient() && (k.writes() || act.variant() == actCalled)),
						flags&withStream != 0 && !k.writes(),
						k.pipelined() && l == cols, l == runs && k.sums() && !k.pipelined(),
						k.pipelined() && l == runs && (kernel == kernelPipeBackward || flags != withStream || act.variant() == actCalled):
						continue
					}
					list = append(list, k)
				}
			}
		}
	}
	return list
}

// noise fills s with reproducible values, special ones among them if asked for.
func noise(s []float32, seed uint64, special bool) {
	for i := range s {
		seed += 0x9e3779b97f4a7c15
		z := (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		s[i] = float32(int64(z>>40)-1<<23) / (1 << 21)
		if special && z%23 == 0 {
			specials := [...]float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)),
				float32(math.Copysign(0, -1)), 0, 0x1p-149, -0x1p-130, math.MaxFloat32, 0x1p-126}
			s[i] = specials[z>>8%uint64(len(specials))]
		}
	}
}

// args makes the arguments of a call in memory from alloc, and the outputs'
// from allocOut.
func (k kernelCase) args(alloc, allocOut func(n int) []float32, nRows, n, stride, coefStep int, special bool) kernelArgs {
	size := (nRows-1)*stride + n
	seed := uint64(1)
	out := func(s []float32) []float32 {
		noise(s, seed, special)
		seed++
		return s
	}
	in := func(n int) []float32 { return out(alloc(n)) }
	a := kernelArgs{rows: nRows, n: n, stride: stride, coefStep: coefStep, stream: k.flags&withStream != 0}
	sumRows := 1 // that have sums of their own
	if k.sums() && k.layout == rows && coefStep > 0 {
		a.more, a.imageGap, a.accStep = 2, 5, 2*lanes
		size += a.more * (nRows*stride + a.imageGap)
		sumRows = nRows
		a.fetch, a.fetchLeft = 4*stride, math.MaxInt
	}
	fields := coefLen
	if k.kernel == kernelMoments {
		fields = 1
	}
	if k.layout == runs {
		a.coefStep, a.head, a.fetch = coefLen, n%lanes, 4*n
		if nRows != 1 && !k.pipelined() {
			a.more = 1
			a.imageGap = roundUp(nRows*n+1, lanes) - nRows*n // every image lies like the first
			size += roundUp(nRows*n+1, lanes)
		}
	}
	inputs := size
	switch {
	case k.pipelined() && k.layout == runs: // the next rows lie behind these
		a.next, a.accStep = nRows*n, sumRecord
		inputs += nRows * n
	case k.pipelined(): // the next channel lies n floats further on
		a.next, a.fetch, a.fetchLeft = n, 4*n+96, n-24
		inputs += n
		fields *= 2
	}
	a.x = in(inputs)
	if k.layout != cols {
		a.coef = in(fields + max(0, nRows-1)*a.coefStep)
	} else {
		a.coef = in(fields * roundUp(n, lanes))
	}
	if k.sums() && k.layout == rows {
		a.acc = in(2 * lanes * sumRows)
	} else if k.sums() && k.layout == runs {
		a.acc = in(sumRecord * nRows)
	} else if k.sums() {
		a.acc = in(2 * roundUp(n, lanes))
	}
	if k.gradient() {
		a.dy = in(inputs)
	}
	if k.flags&withResidual != 0 {
		a.res = in(inputs)
	}
	if k.writes() {
		a.y = out(allocOut(size))
	}
	if k.flags&withDResidual != 0 {
		a.dres = out(allocOut(size))
	}
	return a
}

// outputs returns what the kernel writes. In cols the lanes behind the last
// channel are scratch.
func (k kernelCase) outputs(a *kernelArgs) [][]float32 {
	acc := slices.Clone(a.acc)
	if k.layout == cols && acc != nil {
		for c := a.n; c < roundUp(a.n, lanes); c++ {
			at := c / lanes * 2 * lanes
			acc[at+c%lanes], acc[at+lanes+c%lanes] = 0, 0
		}
	}
	return [][]float32{a.y, a.dres, acc}
}

func sameBits(a, b []float32) (int, bool) {
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) && (a[i] == a[i] || b[i] == b[i]) {
			return i, false
		}
	}
	return 0, len(a) == len(b)
}

func simdPaths(t *testing.T) []Path {
	if DefaultPath() == PathGeneric {
		t.Skip("this machine or build has no assembly to compare with pure Go")
	}
	return Paths()[:len(Paths())-1]
}

// TestKernelsSameBits compares every kernel with its form in pure Go, on every
// length up to 40 and many up to 200, in buffers that notice when it reaches outside.
func TestKernelsSameBits(t *testing.T) {
	for _, p := range simdPaths(t) {
		for _, k := range kernelCases() {
			t.Run(fmt.Sprint(p, "/", k), func(t *testing.T) {
				heap := func(n int) []float32 { return make([]float32, n) }
				for n := 1; n <= 200; n++ {
					if k.layout == runs && n < lanes {
						continue
					}
					if n > 40 && (testing.Short() && n%7 != 1 || n%3 != k.flags%3) {
						continue
					}
					// Memory that ends, or begins, where none can be touched,
					// and any offset from alignment.
					guarded := []func(int) []float32{
						func(n int) []float32 { return guard.AtEnd(t, n) },
						func(n int) []float32 { return guard.AtStart(t, n) },
						func(m int) []float32 { return guard.Sentinel(t, m, n%16) },
					}
					aligned := func(n int) []float32 { return guard.Sentinel(t, n, 0) }
					for _, nRows := range []int{1, 3, 4, 8} {
						stride, step := n+nRows%3, 0
						where := guarded[n%len(guarded)]
						whereOut := where
						if k.pipelined() && k.layout == rows {
							stride += n
						}
						if k.layout == runs {
							stride = n
							if k.flags&withStream != 0 { // behind the head it is aligned
								whereOut = func(m int) []float32 { return guard.Sentinel(t, m, (lanes-n%lanes)%lanes) }
							}
						} else if k.flags&withStream != 0 { // what is stored past the caches is aligned
							stride, whereOut = roundUp(stride, lanes), aligned
						}
						if k.layout == rows && !k.pipelined() && nRows%2 == 0 {
							step = coefLen
						}
						special := nRows == 3 || nRows == 8
						want := k.args(heap, heap, nRows, n, stride, step, special)
						got := k.args(where, whereOut, nRows, n, stride, step, special)
						got.act = newActCode(k.act)
						k.run(PathGeneric, &want)
						k.run(p, &got)
						g, w := k.outputs(&got), k.outputs(&want)
						for o := range w {
							if i, ok := sameBits(g[o], w[o]); !ok {
								t.Fatalf("%d rows of %d, output %d, index %d: %v, pure Go gives %v", nRows, n, o, i, g[o][i], w[o][i])
							}
						}
					}
				}
			})
		}
	}
}
