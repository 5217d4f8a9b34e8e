package batchnorm

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/guard"
)

// kernelCase is one kernel in one variant.
type kernelCase struct {
	kernel int
	layout layout
	act    Activation
	flags  int
}

var kernelNames = [...]string{"moments", "normalize", "gradSums", "inputGrad", "largest", "scale", "times",
	"gradSums64", "inputGrad64", "choose", "tinyZ"}

func (k kernelCase) String() string {
	return fmt.Sprintf("%s/%s/%s/res=%t/dres=%t/stream=%t", kernelNames[k.kernel], [...]string{"rows", "cols"}[k.layout],
		k.act, k.flags&withResidual != 0, k.flags&withDResidual != 0, k.flags&withStream != 0)
}

// run runs the kernel until its work is done, on rows in calls of budget values.
func (k kernelCase) run(p Path, a *kernelArgs, budget int) {
	if k.layout == cols {
		p.run(k.kernel, cols, k.act, a)
		return
	}
	for a.images > 0 {
		a.budget = budget
		p.run(k.kernel, rows, k.act, a)
	}
}

func (k kernelCase) gradient() bool { return k.kernel == kernelGradSums || k.kernel == kernelInputGrad }
func (k kernelCase) in64() bool     { return k.kernel == kernelGradSums64 || k.kernel == kernelInputGrad64 }
func (k kernelCase) sums() bool     { return takesSums(k.kernel) }
func (k kernelCase) writes() bool   { return !takesSums(k.kernel) }

// sumsLen is how many sums a kernel keeps for a value of a vector.
func (k kernelCase) sumsLen() int {
	if k.kernel == kernelLargest {
		return 1
	}
	return 2
}

// kernelCases lists every kernel in every variant that a call can ask for.
func kernelCases() []kernelCase {
	var list []kernelCase
	for kernel := range kernelNames {
		for _, l := range []layout{rows, cols} {
			for _, act := range []Activation{Identity, ReLU, Clip(-1, 2), Sigmoid} { // every variant; the functions have a test of their own
				for flags := range numFlags {
					k := kernelCase{kernel, l, act, flags}
					switch {
					case kernel == kernelMoments && (act != Identity || flags != 0),
						kernel >= kernelLargest && (act.variant() == actCalled || act != Identity && flags&withResidual != 0),
						kernel >= kernelLargest && !k.in64() && (act != Identity && kernel != kernelScale || flags&^withStream != 0),
						kernel >= kernelLargest && l == rows,
						flags&withDResidual != 0 && !(k.gradient() && (k.writes() || act.variant() == actCalled)),
						flags&withStream != 0 && (!k.writes() || kernel >= kernelChoose):
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

// problem is the size of a kernel's work: rows of n values, in cols stride floats
// apart, in rows in each of some images, with gaps.
type kernelSize struct {
	rows, n, stride          int
	images, rowGap, imageGap int
}

// args makes the arguments of a call in memory from alloc, and the outputs'
// from allocOut.
func (k kernelCase) args(alloc, allocOut func(n int) []float32, s kernelSize, special bool) kernelArgs {
	size := (s.rows-1)*s.stride + s.n
	seed := uint64(1)
	out := func(s []float32) []float32 {
		noise(s, seed, special)
		seed++
		return s
	}
	in := func(n int) []float32 { return out(alloc(n)) }
	a := kernelArgs{rows: s.rows, n: s.n, stride: s.stride, stream: k.flags&withStream != 0}
	fields := coefLen
	if k.kernel == kernelMoments {
		fields = 1
	}
	if k.layout == rows {
		image := s.rows*(s.n+s.rowGap) + s.imageGap
		size = s.images*image - s.imageGap - s.rowGap
		a.rowGap, a.imageGap, a.stride = s.rowGap, s.imageGap, image
		a.coefImage = -s.rows * fields
		a.coef = in(fields * s.rows)
		if k.sums() {
			a.sums, a.acc = make([]float64, sumLen*s.rows), in(sumLen*s.rows)
			for i, v := range in(len(a.sums)) {
				a.sums[i] = float64(v)
			}
		}
		a.begin(0, s.images)
	} else {
		a.single = s.rows % 3 // some are written one by one
		if a.stream {
			a.single = s.rows
		}
		a.coef = in(fields * roundUp(s.n, lanes))
		a.coefStep = []int{0, coefLen * lanes}[s.n%2]
		if k.sums() && k.kernel != kernelGradSums64 {
			a.acc = in(k.sumsLen() * roundUp(s.n, lanes))
		}
	}
	a.factor = []float64{0x1p100, 0x1p-100, 3}[s.n%3]
	a.strideY, a.strideDY = s.stride, s.stride
	if k.kernel >= kernelScale {
		if !a.stream {
			a.strideY += s.n % 2
		}
		a.strideDY += s.n / 2 % 2
		for i, v := range in(roundUp(s.n, lanes)) {
			a.factors = append(a.factors, float64(v)*[]float64{1, 0x1p-130, 0x1p100}[i%3])
		}
		a.factorStep = []int{0, lanes}[s.n/4%2]
	}
	if k.in64() {
		a.records, a.recordStep = make([]record64, s.rows+ceilDiv(s.n, lanes)), bytes64*(s.n/4%2)
		a.strideRes = s.stride + s.n/8%2
		for i := range a.records {
			r := &a.records[i]
			copy(r.n[:], in(lanes))
			for f, field := range [...]*[lanes]float64{&r.s, &r.l, &r.k1, &r.k2, &r.a} {
				for l, v := range in(lanes) {
					field[l] = float64(v) * []float64{1, 0x1p-130, 0x1p100}[(f+l)%3]
				}
			}
		}
	}
	if (s.n/2+s.rows)%3 == 0 { // rows have constants of their own
		switch k.kernel {
		case kernelScale:
			const row = 8 // bytes that do for both lists
			a.recordRow = row * 4
			a.coef, a.factors = slices.Concat(a.coef, in(s.rows*row)), slices.Concat(a.factors, make([]float64, s.rows*row))
		case kernelInputGrad64:
			a.recordRow = bytes64
		}
	}
	if k.kernel == kernelChoose {
		for i, v := range a.coef {
			a.coef[i] = math.Float32frombits(uint32(int32(math.Float32bits(v)<<8) >> 31))
		}
	}
	if k.kernel == kernelTinyZ {
		fields := append(in(lanes*tinyZMost), repeated(2)[:lanes]...)
		for i := range fields { // in all lanes
			fields[i] = fields[i/lanes*lanes]
		}
		a.coef = fields
	}
	if k.kernel == kernelGradSums64 {
		if special { // nothing is added behind a tail, whatever the mean
			a.records[0].n[lanes-1] = float32(math.Inf(1))
		}
		k.args64(&a, s, in)
		return a
	}
	a.x = in(size)
	if k.gradient() || k.in64() || k.kernel >= kernelChoose {
		a.dy = in(size + (s.rows-1)*(a.strideDY-s.stride))
	}
	if k.flags&withResidual != 0 {
		a.res = in(size + (s.rows-1)*max(0, a.strideRes-s.stride))
	}
	if k.writes() {
		a.y = out(allocOut(size + (s.rows-1)*(a.strideY-s.stride)))
	}
	if k.flags&withDResidual != 0 {
		a.dres = out(allocOut(size))
	}
	return a
}

// args64 sets the operands of kernelGradSums64: of columns side by side, some of whose rows are
// tails, or of rows as columns.
func (k kernelCase) args64(a *kernelArgs, s kernelSize, in func(n int) []float32) {
	columns := max(1, s.n/lanes)
	extent := func(int) int { return (s.rows-1)*s.stride + s.n }
	if s.n/16%2 == 0 {
		columns = s.rows
		a.rowsAsColumns(s.rows, s.n, s.stride, s.n/2%2 == 0)
	} else {
		a.n, a.columnStep, a.sumStep = columns*lanes+s.n%lanes, vectorBytes, sumBytes
		if s.n%lanes > 0 {
			a.tails = s.n / 2 % 3
		}
		extent = func(stride int) int {
			last := (columns - 1) * lanes
			return max((a.rows-1)*stride+last+lanes, (a.rows+a.tails-1)*stride+last+s.n%lanes)
		}
	}
	a.records = slices.Repeat(a.records, ceilDiv(columns, len(a.records)))
	a.sums = make([]float64, columns*sumLen)
	for i, v := range in(len(a.sums)) {
		a.sums[i] = float64(v)
	}
	a.x, a.dy = in(extent(a.stride)), in(extent(a.strideDY))
	if k.flags&withResidual != 0 {
		a.res = in(extent(a.strideRes))
	}
}

// outputs returns what the kernel writes. In cols the lanes behind the last
// channel are scratch.
func (k kernelCase) outputs(a *kernelArgs) [][]float32 {
	acc := slices.Clone(a.acc)
	if k.layout == cols && acc != nil {
		for c := a.n; c < roundUp(a.n, lanes); c++ {
			for i := range k.sumsLen() {
				acc[(c/lanes*k.sumsLen()+i)*lanes+c%lanes] = 0
			}
		}
	}
	for _, v := range a.sums {
		bits := math.Float64bits(v)
		acc = append(acc, math.Float32frombits(uint32(bits>>32)), math.Float32frombits(uint32(bits)))
		if v != v {
			acc[len(acc)-1] = 0 // all NaN are one
		}
	}
	return [][]float32{a.y, a.dres, acc}
}

// holds reports whether outputs of the kernel may be held.
func (k kernelCase) holds() bool {
	return k.layout == cols && k.flags&withStream != 0 && (k.kernel == kernelNormalize || k.kernel == kernelInputGrad)
}

// hold gives a kernel in cols outputs that are held, if it has whole vectors: in none of its vectors, or in some, up to
// all of them.
func hold(a *kernelArgs, alloc func(n int) []float32) {
	vectors := a.n / lanes
	if a.n%lanes > 0 || a.rows == 1 {
		return
	}
	before := a.rows * 5 % (vectors + 1)
	held := (a.rows + a.n/2) % (vectors - before + 1)
	a.before, a.heldColumns, a.behind = before*lanes, held*lanes, (vectors-before-held)*lanes
	in := func(n int, seed uint64) []float32 {
		s := alloc(n)
		noise(s, seed, true)
		return s
	}
	a.masks, a.held, a.heldG = in(a.heldColumns, 1), in(a.rows*a.heldColumns, 2), in(a.rows*a.heldColumns, 3)
	for i, v := range a.masks {
		a.masks[i] = math.Float32frombits(uint32(int32(math.Float32bits(v)<<8) >> 31))
	}
	// A prefetch takes any address.
	a.fetch = -4 * a.rows * a.stride
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
	t.Parallel()
	for _, p := range simdPaths(t) {
		for _, k := range kernelCases() {
			t.Run(fmt.Sprint(p, "/", k), func(t *testing.T) {
				heap := func(n int) []float32 { return make([]float32, n) }
				for n := 1; n <= 200; n++ {
					if n > 40 && (!Thorough() && n%7 != 1 || n%3 != k.flags%3) {
						continue
					}
					// Memory that ends, or begins, where none can be touched,
					// and any offset from alignment.
					guarded := []func(int) []float32{
						func(n int) []float32 { return guard.AtEnd(t, n) },
						func(n int) []float32 { return guard.AtStart(t, n) },
						func(m int) []float32 { return guard.Sentinel(t, m, n%16) },
					}
					where := guarded[n%len(guarded)]
					compare := func(s kernelSize, whereOut func(int) []float32, special bool, budget int) {
						t.Helper()
						want, got := k.args(heap, heap, s, special), k.args(where, whereOut, s, special)
						got.act = newActCode(k.act)
						if p == PathAVX2 && k.holds() { // which has non-temporal stores
							hold(&want, heap)
							hold(&got, where)
						}
						k.run(PathGeneric, &want, budget)
						k.run(p, &got, budget)
						g, w := k.outputs(&got), k.outputs(&want)
						for o := range w {
							if i, ok := sameBits(g[o], w[o]); !ok {
								t.Fatalf("%+v, calls of %d, output %d, index %d: %v, pure Go gives %v", s, budget, o, i, g[o][i], w[o][i])
							}
						}
						if k.layout == rows && (got.at != want.at || got.images != 0) {
							t.Fatalf("%+v: the kernel stops at %d with %d images left, pure Go at %d", s, got.at, got.images, want.at)
						}
					}
					stream := k.flags&withStream != 0
					if k.layout == cols {
						for _, nRows := range []int{1, 3, 4, 8} {
							s, whereOut := kernelSize{rows: nRows, n: n, stride: n + nRows%3}, where
							if stream { // non-temporal stores need alignment
								s.stride = roundUp(s.stride, lanes)
								whereOut = func(n int) []float32 { return guard.Sentinel(t, n, 0) }
							}
							compare(s, whereOut, nRows == 3 || nRows == 8, 0)
						}
						continue
					}
					whereOut := where
					if stream { // both outputs lie alike in vectors
						whereOut = func(m int) []float32 { return guard.Sentinel(t, m, n%lanes) }
					}
					for i, images := range []int{1, 2, 4, 7, 9} {
						s := kernelSize{rows: 1 + (n+i)%4, n: n, images: images, imageGap: (n + i) % 5}
						if k.sums() {
							s.rowGap = (n + 2*i) % 3
						} else if n < lanes {
							s.rows = 1
						}
						budget := []int{turn, maxCall, 2 * turn}[(n+i)%3]
						if stride := s.rows*(s.n+s.rowGap) + s.imageGap; images > 1 && stride == 0 {
							continue
						}
						compare(s, whereOut, i%2 == 1, budget)
					}
				}
				if k.layout == rows && k.sums() { // rows of several pieces
					for _, n := range []int{pieceFour - 3, pieceFour + 40, pieceSingle + 35, 2*pieceSingle + 8} {
						for _, images := range []int{1, 5} {
							s := kernelSize{rows: 2, n: n, images: images}
							want, got := k.args(heap, heap, s, false), k.args(heap, heap, s, false)
							got.act = newActCode(k.act)
							k.run(PathGeneric, &want, turn)
							k.run(p, &got, turn)
							g, w := k.outputs(&got), k.outputs(&want)
							for o := range w {
								if i, ok := sameBits(g[o], w[o]); !ok {
									t.Fatalf("%+v, output %d, index %d: %v, pure Go gives %v", s, o, i, g[o][i], w[o][i])
								}
							}
						}
					}
				}
			})
		}
	}
}

// TestKernelsStop: a call of a kernel on rows handles no more than its budget, but for
// the end of a row. With non-temporal stores it stops where a cache line of the output or
// an image begins, and leaves what lies behind the last whole line of an image to the tail.
// Outputs lie anywhere in memory.
func TestKernelsStop(t *testing.T) {
	t.Parallel()
	for _, p := range simdPaths(t) {
		for _, k := range kernelCases() {
			if k.layout == cols {
				continue
			}
			heap := func(n int) []float32 { return make([]float32, n) }
			for i, s := range []kernelSize{{rows: 1, n: 50 * turn, images: 1}, {rows: 300, n: 49, images: 8}, {rows: 3, n: 5 * turn, images: 5},
				{rows: 1, n: 49 * turn, images: 1}} {
				a := k.args(heap, func(n int) []float32 { return heap(n + i)[i:] }, s, false)
				a.act = newActCode(k.act)
				for calls := 0; a.images > 0; calls++ {
					images, at, left := a.images, a.at, a.rowsLeft
					a.budget = turn
					p.run(k.kernel, rows, k.act, &a)
					// Four images side by side move on by a fourth each.
					if a.images == images && a.at-at > turn+s.n && s.n < turn || s.n > turn && a.images == images && a.at-at > turn+pieceFour {
						t.Fatalf("%v, %s, %+v: call %d goes from %d to %d, its budget is %d", p, k, s, calls, at, a.at, turn)
					}
					if p == PathAVX2 && k.flags&withStream != 0 && a.images > 0 && !(a.left == s.n && a.rowsLeft == s.rows) {
						if address := uintptr(unsafe.Pointer(&a.y[0])) + 4*uintptr(a.at); address%64 != 0 {
							t.Fatalf("%v, %s, %+v: call %d stops %d bytes into a cache line", p, k, s, calls, address%64)
						} else if end := address + 4*uintptr(a.left); a.rowsLeft == 1 && (end%64 != 0 || a.tail >= lineLen) {
							t.Fatalf("%v, %s, %+v: call %d: non-temporal stores end %d bytes into a cache line, %d values before the image's end",
								p, k, s, calls, end%64, a.tail)
						}
					}
					if k.sums() && s.n <= shortRow && images >= quadSize && images%quadSize == 0 {
						done := (images-a.images)*s.rows*s.n + quadSize*(left-a.rowsLeft)*s.n
						if done > turn+quadSize*s.n {
							t.Fatalf("%v, %s, %+v: a call takes %d values, its budget is %d", p, k, s, done, turn)
						}
					}
					if calls > s.images*s.rows*s.n/8 {
						t.Fatalf("%v, %s, %+v: no end", p, k, s)
					}
				}
			}
		}
	}
}

// TestKernelsCountShortImages: a call that writes outputs counts all that it writes. In
// images of a vector or two that may be the values before the first cache line and a tail.
func TestKernelsCountShortImages(t *testing.T) {
	t.Parallel()
	heap := func(n int) []float32 { return make([]float32, n) }
	for _, p := range simdPaths(t) {
		for _, k := range kernelCases() {
			if k.layout == cols || !k.writes() || k.act != Identity {
				continue
			}
			for n := lanes; n <= 2*lanes+1; n++ {
				for off := range lineLen { // of each image in a cache line
					out := func(size int) []float32 {
						v := make([]float32, size+2*lineLen)
						first := -int(uintptr(unsafe.Pointer(&v[0]))/4) & (lineLen - 1)
						return v[first+off:][:size]
					}
					s := kernelSize{rows: 1, n: n, images: 6 * turn / n, imageGap: roundUp(n, lineLen) - n}
					a := k.args(heap, out, s, false)
					a.act = newActCode(k.act)
					for a.images > 0 {
						before := a.images
						a.budget = turn
						p.run(k.kernel, rows, k.act, &a)
						if done := (before - a.images) * n; done > turn+lineLen+2*n {
							t.Fatalf("%v, %s, %d values, %d in a line: a call writes %d values, its budget is %d", p, k, n, off, done, turn)
						}
					}
				}
			}
		}
	}
}

// aAsFactors sets the factors s of all columns to a.
func (a *kernelArgs) aAsFactors() {
	a.factors, a.factorStep = make([]float64, roundUp(a.n, lanes)), lanes
	for c := range a.factors {
		a.factors[c] = float64(a.coef[c/lanes*lanes*coefLen+fieldA*lanes+c%lanes])
	}
}

// TestScaleIsNormalize: products in float64 round to the bits of float32 products, those
// of subnormal numbers too, since float64 holds them exactly.
func TestScaleIsNormalize(t *testing.T) {
	const n = 1000
	for _, path := range Paths() {
		for _, scale := range []float32{1, 0x1p-20, 0x1p-60, 0x1p-115, 0x1p-130} {
			k := kernelCase{kernelNormalize, cols, Identity, 0}
			heap := func(n int) []float32 { return make([]float32, n) }
			a := k.args(heap, heap, kernelSize{rows: 1, n: n, stride: n}, true)
			for i := range a.x {
				a.x[i] *= scale
			}
			for i := range a.coef {
				if i%(coefLen*lanes)/lanes != fieldA {
					a.coef[i] *= scale
				}
			}
			b := a
			b.y, b.coefStep, b.strideY = make([]float32, n), coefLen*lanes, n
			b.aAsFactors()
			k.run(path, &a, 0)
			kernelCase{kernelScale, cols, Identity, 0}.run(path, &b, 0)
			if i, ok := sameBits(b.y, a.y); !ok {
				t.Fatalf("%v, scale %v: y[%d] is %g, want %g", path, scale, i, b.y[i], a.y[i])
			}
		}
	}
}

// TestLongest: jumps between images shorten a call, unless images are long or adjacent.
func TestLongest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rows, n, gap, want int }{
		{1, 8, 0, maxCall},
		{1, 8, 504, 1927},
		{1, 1, 63, turn},
		{4, 8, 480, 6553},
		{1, 49, 3000, 9071},
		{8, 49, 3000, 24702},
		{8, 784, 50000, 32112},
		{64, 784, 50000, 32684},
	} {
		a := kernelArgs{rows: c.rows, n: c.n, imageGap: c.gap}
		if got := a.longest(); got != c.want {
			t.Errorf("%d rows of %d values, gap %d: %d values in a call, want %d", c.rows, c.n, c.gap, got, c.want)
		}
	}
}
