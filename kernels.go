package batchnorm

import "slices"

//go:generate go run ./kernels

// layout is the layout of a tensor. In rows the values of a channel are adjacent (NCHW);
// in cols the channels are adjacent (NHWC, NC).
type layout uint8

const (
	rows layout = iota
	cols
)

// kernelArgs are the arguments of every kernel. A kernel uses some of the fields. The
// assembly reads them by their offsets in this struct.
type kernelArgs struct {
	x, dy, res []float32 // inputs; res may be nil
	y, dres    []float32 // outputs; dres may be nil

	// coef holds the constants of the channels. In rows it has a record of
	// coefLen floats per channel: -m, a, b, k1, k2, or for moments -K alone. In
	// cols it has a record per 8 channels, with 8 floats for each of these.
	coef []float32
	// acc holds float32 sums, which a call adds to. In cols these are all sums: per 8
	// channels 8 of the first sum and 8 of the second. In rows these are the sums of short
	// rows of images side by side: per row 8 lanes of the first sum and 8 of the second. The
	// caller adds them to sums.
	acc []float32
	// sums holds the sums of all other rows, which a call adds to, in the same order.
	sums []float64

	// In cols a call processes rows of n channels each, stride floats apart. Outputs are
	// written in quads of rows, except for the last single rows, which are written
	// one by one. Only these can have non-temporal stores.
	//
	// In rows it processes images, each of some rows of n values, one channel after
	// the other. After each row there is a gap of rowGap floats, and after the last row's
	// gap there are imageGap floats to the next image. Sums need stride as well, the
	// floats from an image to the next.
	rows, n, stride  int
	single           int
	rowGap, imageGap int

	// Outputs in cols, with non-temporal stores: before columns, then heldColumns of which some outputs are held, then
	// the columns behind them; all three are multiples of 8. Where the mask of a held column is 0, and not all ones,
	// its outputs are those in held, and for dres in heldG, which have rows of heldColumns.
	before, heldColumns, behind int
	masks, held, heldG          []float32

	coefStep  int // kernelScale and so on: floats from a record to the next one, 0 if all columns have the same
	coefImage int // rows, without sums: floats from the end of an image's records to the next image's first

	// A kernel on rows stops after budget values, or a few more, and saves its state
	// here; the next call goes on from it. So two kernels can take turns, and no call
	// takes long. begin sets the state for the first call. The work is done when images
	// is 0.
	budget   int // at least turn
	at       int // index in the tensors
	images   int // left, the current one included
	rowsLeft int // of the image, the current one included
	left     int // values of the row
	coefAt   int // index in coef of the row's record
	accAt    int // index in acc or sums of the row's record
	tail     int // non-temporal outputs: values of the last row, besides left, behind the last whole cache line
	piece    int // sums: values of the row until partial is added to sums
	partial  laneSums

	// In turns with another kernel, sums: floats from a vector of a quad to the next, and
	// from a quad to the next.
	side, step int

	act    *actCode // for the kernels that call an activation's function
	stream bool     // y and dres have non-temporal stores; in cols they and their rows are aligned to vectors, and all rows are single
	fetch  int      // distance of prefetches in bytes: of sums, held columns and kernelScale in cols, and of outputs in rows, where 0 stands for none
	factor float64  // of kernelTimes

	// Of kernelScale and the kernels behind it, which may count rows down.
	strideDY, strideRes, strideY int        // floats from a row of dy, res or y to the next
	factors                      []float64  // s, 8 for 8 columns
	factorStep                   int        // from the factors of 8 columns to the next, 0 if all have the same
	records                      []record64 // one for 8 columns
	recordStep                   int        // bytes from the record of 8 columns to the next, 0 if all have the same
	recordRow                    int        // bytes from the constants of a row to those of the next, 0 if all have the same
	recordAt                     int        // 0; a kernel may count recordRow up
	// Of kernelGradSums64: bytes from 8 columns to the next, and from their sums to the next ones.
	columnStep, sumStep int
	tails               int // rows of n%8 values behind the rows of each 8 columns
}

// laneSums has 8 lanes of the first sum of a kernel and 8 of the second.
type laneSums = [2 * lanes]float32

// actCode holds the functions and parameters of an activation, for kernels that call
// them.
type actCode struct {
	value, derivative uintptr // addresses of the functions
	p, q              float32 // parameters
	p64               float64 // the first one as a float64
}

// newActCode returns nil for an activation whose code is part of the kernels.
func newActCode(a Activation) *actCode {
	if a.variant() != actCalled {
		return nil
	}
	return &actCode{simdActivation(functionID(a.kind, 0)), simdActivation(functionID(a.kind, 1)), a.p, a.q, float64(a.p)}
}

// functionID is the number of a function that kernels call: an activation's value or,
// with derivative 1, its derivative.
func functionID(kind actKind, derivative int) int { return int(kind)*2 + derivative }

const (
	numLayouts = 2

	lanes    = 8
	fieldN   = 0        // -m: the mean rounded to float32, negated, so that a kernel adds it; for moments -K
	fieldA   = 1        // gamma*invstd
	fieldB   = 2        // beta - (mean-m)*a
	fieldK1  = 3        // backward: subtracted from g
	fieldK2  = 4        // backward: x-m is multiplied by it
	coefLen  = 5        // fields of a record for normalize, gradSums and inputGrad
	maxCall  = 32 << 10 // floats of one operand per call: tens of microseconds, so that a goroutine in assembly is soon preempted
	quadSize = 4        // vectors or rows that are summed as a tree before they are added to a sum
	sumLen   = 2 * lanes
)

// Sums in rows are taken of four images side by side, as long as there are four,
// and then of single images. They are added to float64 sums after each piece of a
// row, so that a lane adds at most 64 quads in float32. Short rows of images side by
// side are no more than half a piece: several of them are added in float32 first.
const (
	shortRow    = pieceFour / 2         // values of the longest short row
	pieceFour   = 64 * lanes            // values of a row in a piece, of four images
	pieceSingle = 64 * quadSize * lanes // the same, of a single image
)

// The kernels. Every one of them exists as Go code in kernels_generic.go, which
// is the specification, and as assembly generated by ./kernels.
const (
	// kernelMoments adds to its sums, for every value x of its lane (rows) or
	// channel (cols),
	//
	//	d := x - K
	//	S += d
	//	Q += d*d
	//
	// In cols quads of 4 rows are summed as (d0+d1)+(d2+d3) and then added; the
	// rows behind the last whole quad are added one by one.
	//
	// In rows value i of a row belongs to lane i%8. Of four images side by side the
	// four values at the same place make a quad. In a single image a quad is four
	// vectors of 8, one after the other, and the values behind the last whole quad
	// are added one by one. Sums begin at 0 in every piece, and are then added to
	// the float64 sums of the row. Sums of a short row of images side by side go on from
	// those in acc, and are left there.
	kernelMoments = iota

	// kernelNormalize computes, for every element,
	//
	//	z := (x-m)*a + b    // the product is rounded
	//	z += res            // if there is one
	//	y = act(z)
	//
	// y may be x or res.
	kernelNormalize

	// kernelGradSums adds to its sums, for every element, in the order of moments,
	//
	//	z := as in normalize
	//	g := dy*act'(z)
	//	P += g
	//	R += g*(x-m)
	//
	// Without an activation g is dy, and neither z nor res is looked at. With one
	// that is called it also stores, if that is wanted,
	//
	//	dres = g
	//
	// where dres may be dy or res.
	kernelGradSums

	// kernelInputGrad computes, for every element,
	//
	//	g := as in gradSums
	//	y = ((g-k1) - (x-m)*k2)*a
	//	dres = g            // if it is wanted
	//
	// y and dres may each be dy, x or res, but not the same.
	kernelInputGrad

	// kernelLargest exists in cols only. acc has a value per channel, which becomes the
	// largest of itself and of the magnitudes in the channel. They are compared by their
	// bits, so that an infinity is larger than every number, and NaN larger still.
	kernelLargest

	// kernelScale exists in cols only. It computes, for every element,
	//
	//	y = act(float32((x-m)*s) + b)    // the product is float64; act is the identity or ReLU
	//
	// With s = a it has the bits of normalize. It takes no longer for subnormal numbers, for
	// which a float32 product takes a microcode assist of a hundred cycles on Intel's
	// processors: conversions and sums take none. y may be x, but may have another stride.
	// From a record of constants to the next there are coefStep floats, and from the factors
	// of 8 columns to the next factorStep: 0 if all columns have the same. Rows may have constants
	// of their own, recordRow bytes apart.
	kernelScale

	// kernelTimes exists in cols only. It computes, for every element,
	//
	//	y = float32(x*factor)    // the product is float64
	//
	// y may be x, but may have another stride.
	kernelTimes

	// kernelGradSums64 exists in cols only. It adds to its sums, for every element, row after
	// row and in float64,
	//
	//	g := dy, or dy*res with res
	//	P += g
	//	R += g*(x-m)    // x-m is float32
	//
	// With ReLU g is 0 unless (x-m)*s >= l, which is where float32((x-m)*s) + b is above 0. sums has a
	// record of 16 for 8 columns: 8 P and 8 R. The constants are in records. All tensors may have
	// strides of their own.
	//
	// From 8 columns to the next there are columnStep bytes, and sumStep in sums. Columns beyond the
	// last 8 are not looked at. Behind its rows each 8 columns have tails of n%8 values. So the columns
	// of a call may be rows of a tensor, with the vectors of each as rows and what is left of it as a
	// tail. They may have the same sums.
	kernelGradSums64

	// kernelInputGrad64 exists in cols only. It computes, for every element and in float64,
	//
	//	g := as in kernelGradSums64
	//	y = float32(((g-k1) - (x-m)*k2)*a)
	//
	// y may be x, dy or res of the same stride. Rows may have records of their own, recordRow bytes
	// apart.
	kernelInputGrad64

	// kernelChoose exists in cols only. coef has masks of 8 columns: all ones or 0. It computes
	//
	//	y = x where the column's mask is all ones, otherwise dy
	//
	// All three tensors may have strides of their own. y may be x or dy of the same stride.
	kernelChoose

	// kernelTinyZ exists in cols only. It replaces tiny values: where |x| <= most it computes
	//
	//	factor := above where x > 0, below elsewhere
	//	base := x & gate | zero where x > 0, zero elsewhere    // of bits
	//	y = base + float32(x*factor)    // the product is float64
	//
	// and y = dy elsewhere. coef has a field for each constant, in all lanes: above is that of
	// tinyZFlip ^ tinyZBelow.
	//
	// All three tensors may have strides of their own. y may be x or dy of the same stride.
	kernelTinyZ
)

// Fields of kernelTinyZ.
const (
	tinyZBelow = iota
	tinyZFlip
	tinyZGate
	tinyZBase
	tinyZMost
)

// record64 has the constants of 8 columns for the kernels in float64.
type record64 struct {
	s      [lanes]float64 // the factor of x-m in z
	l      [lanes]float64 // the least (x-m)*s for which z is above 0
	k1, k2 [lanes]float64 // of dx, like those in coef
	a      [lanes]float64 // the factor of dx
	n      [lanes]float32 // -m
}

// inAllLanes copies the constants of the first column to the others.
func (r *record64) inAllLanes() {
	for _, field := range [...]*[lanes]float64{&r.s, &r.l, &r.k1, &r.k2, &r.a} {
		fill(field[:], field[0])
	}
	fill(r.n[:], r.n[0])
}

// Variants of a kernel. A kernel that calls an activation's function has none: it tests
// its operands. Kernels in cols have none for withStream.
const (
	withResidual  = 1 << iota // res is read
	withDResidual             // dres is written
	withStream                // outputs have non-temporal stores
	numFlags      = 1 << iota
)

// actVariant says whether a kernel has an activation, as code of its own or as a call.
type actVariant int

const (
	actNone     actVariant = iota // there is none
	actInline                     // ReLU: two instructions in the kernel
	actCalled                     // a function that the kernel calls for up to 4 vectors
	numVariants                   // of activations
)

func (a Activation) variant() actVariant {
	return min(actVariant(a.kind), actCalled)
}

// kernelID numbers the kernels. Those from kernelLargest on exist in cols only, call nothing and
// have no flag but withResidual.
func kernelID(kernel int, l layout, v actVariant, flags int) int {
	if kernel >= kernelLargest {
		return kernelID(kernelLargest-1, cols, numVariants, 0) + (kernel-kernelLargest)*4 + int(v)*2 + flags
	}
	return ((kernel*numLayouts+int(l))*int(numVariants)+int(v))*numFlags + flags
}

// takesSums reports whether a kernel takes sums, or magnitudes, which it keeps in the same
// place. The other kernels write outputs.
func takesSums(kernel int) bool {
	return kernel == kernelMoments || kernel == kernelGradSums || kernel == kernelLargest || kernel == kernelGradSums64
}

// run calls a kernel on a path.
func (p Path) run(kernel int, l layout, act Activation, a *kernelArgs) {
	a.watch(l)
	if inspected != nil {
		inspected(kernel, l, act, *a)
	}
	if raceEnabled {
		a.race(kernel, l)
	}
	if p == PathGeneric {
		genericKernel(kernel, l, act, a)
		return
	}
	simdKernel(a.id(kernel, l, act), a)
}

// inspected, where a test has set it, gets the arguments of the calls of kernels, but of
// those that take turns.
var inspected func(kernel int, l layout, act Activation, a kernelArgs)

// watch reports the number of values of a kernel's call to a test.
func (a *kernelArgs) watch(l layout) {
	if watched != nil {
		watched(watchKernel, a.values(l))
	}
}

// values returns the largest number of values that a call of a kernel processes.
func (a *kernelArgs) values(l layout) int {
	if l == rows {
		return a.budget
	}
	return (a.rows + a.tails) * a.n
}

// gradSums64 runs kernelGradSums64 for columns that lie side by side.
func (p Path) gradSums64(act Activation, a *kernelArgs) {
	a.columnStep, a.sumStep, a.tails = vectorBytes, sumBytes, 0
	if a.n >= lanes {
		p.run(kernelGradSums64, cols, act, a)
	}
	if rest := a.n % lanes; rest > 0 {
		b, first := *a, a.n-rest
		b.x, b.dy, b.res, b.sums = a.x[first:], a.dy[first:], from(a.res, first), a.sums[2*first:]
		b.records = a.records[first/lanes*a.recordStep/bytes64:]
		b.n, b.rows, b.tails = lanes+rest, 0, a.rows
		p.run(kernelGradSums64, cols, act, &b)
	}
}

// rowsAsColumns says that kernelGradSums64 is to add some rows of n values, step floats apart, each to
// sums of its own with a record of its own, or all to the same.
func (a *kernelArgs) rowsAsColumns(rows, n, step int, same bool) {
	a.rows, a.n, a.stride, a.strideDY, a.strideRes = n/lanes, rows*lanes+n%lanes, lanes, lanes, lanes
	a.tails = min(1, n%lanes)
	a.columnStep, a.sumStep, a.recordStep = 4*step, sumBytes, bytes64
	if same {
		a.sumStep, a.recordStep = 0, 0
	}
}

// sumBytes is the size of the sums of 8 columns, or of a row.
const sumBytes = 8 * sumLen

// id returns the number of the kernel for the operands.
func (a *kernelArgs) id(kernel int, l layout, act Activation) int {
	if act.variant() == actCalled { // one kernel, which tests its operands
		return kernelID(kernel, l, actCalled, 0)
	}
	flags := 0
	if a.res != nil && kernel != kernelMoments && (act.kind != actIdentity || kernel == kernelNormalize || kernel >= kernelGradSums64) {
		flags |= withResidual
	}
	if a.dres != nil && kernel != kernelMoments && kernel != kernelNormalize {
		flags |= withDResidual
	}
	if a.stream && !takesSums(kernel) && l == rows { // kernels in cols test it
		flags |= withStream
	}
	return kernelID(kernel, l, act.variant(), flags)
}

// turn is the number of values of a tensor that a kernel on rows processes in its turn. It
// is small, so that reads of one kernel overlap with writes of the other.
const turn = 512

// jump is the number of values that take about as long as the first access to an image that
// is in no cache.
const jump = 128

// longest returns the budget of a call of a kernel on rows that takes no turns: maxCall, and
// less for short images that lie apart, since jumps from image to image count no values.
func (a *kernelArgs) longest() int {
	if a.imageGap == 0 {
		return maxCall
	}
	n := a.rows * a.n
	return max(turn, maxCall*n/(n+jump))
}

// runAll runs a kernel on rows until its work is done.
func (p Path) runAll(kernel int, act Activation, a *kernelArgs) {
	most := a.longest()
	for a.images > 0 {
		a.budget = most
		p.run(kernel, rows, act, a)
	}
}

// runTurns runs a kernel that takes sums in rows in turns with one that writes outputs,
// until all sums are taken. The outputs may be written earlier, or in part. It returns how
// many of the turns were taken in one loop.
func (p Path) runTurns(sums int, sumsAct Activation, a *kernelArgs, writes int, writesAct Activation, b *kernelArgs) (inLoop int) {
	if p == PathGeneric || raceEnabled {
		p.runAll(sums, sumsAct, a)
		return 0
	}
	id, idB := a.id(sums, rows, sumsAct), b.id(writes, rows, writesAct)
	both := slices.Index(turnsKernels, kernelPair{id, idB})
	for a.images > 0 && b.images > 0 {
		if both < 0 || min(a.n, b.n) < turn {
			b.simd(idB, a.taken(id, turn))
			continue
		}
		// The middle of rows is processed in one loop. Where a row or a piece ends, the
		// kernels themselves take their turns.
		quads, quadsB := a.quads(), b.quadsToWrite()
		if n := min(quads, quadsB, turnsCall); n > 0 {
			a.take(b, n, both)
			inLoop++
			continue
		}
		if quads == 0 {
			a.simd(id, quadSize*lanes)
		}
		if quadsB == 0 {
			b.simd(idB, quadSize*lanes)
		}
	}
	most := a.longest()
	for a.images > 0 {
		a.simd(id, most)
	}
	return inLoop
}

// taken runs a kernel that takes sums, and returns how many values it took. Those are
// more than the budget if rows are short, since they are not interrupted.
func (a *kernelArgs) taken(id, budget int) int {
	side := 1
	if a.images >= quadSize {
		side = quadSize
	}
	a.simd(id, budget)
	return max(1, budget-side*a.budget)
}

// simd runs a kernel on rows that stops after budget values.
func (a *kernelArgs) simd(id, budget int) {
	a.budget = budget
	a.watch(rows)
	simdKernel(id, a)
}

// turnsCall is how many turns of a quad a call takes in one loop at most.
const turnsCall = maxCall / (quadSize * lanes)

// take takes n turns of a quad in one loop, by the kernel with the given index in
// turnsKernels.
func (a *kernelArgs) take(b *kernelArgs, n, id int) {
	if watched != nil {
		watched(watchKernel, n*quadSize*lanes)
	}
	b.budget = n
	simdTurns(id, a, b)
	a.at += n * a.step
	a.left -= n * a.step
	a.piece -= n * a.step
	b.at += n * quadSize * lanes
	b.left -= n * quadSize * lanes
}

// kernelPair names two kernels by their [kernelID]: one takes sums, the other writes
// outputs.
type kernelPair struct{ sums, writes int }

// quads returns the number of quads that the sums can take before a row or a piece ends,
// and sets the distances between them. The quad that ends a row or a piece is left to the
// kernel itself.
func (a *kernelArgs) quads() int {
	a.side, a.step = lanes, quadSize*lanes
	if a.images >= quadSize {
		a.side, a.step = a.stride, lanes
	}
	return max(0, (min(a.left, a.piece)-1)/a.step)
}

// quadsToWrite returns the number of whole quads that are left of the row of a kernel
// that writes outputs. At the start of an image it returns 0: the values before the first
// whole vector are left to the kernel itself.
func (b *kernelArgs) quadsToWrite() int {
	if b.left == b.n && b.rowsLeft == b.rows {
		return 0
	}
	return b.left / (quadSize * lanes)
}

// begin sets the state for the first call of a kernel on rows: it begins at index first
// of the tensors.
func (a *kernelArgs) begin(first, images int) {
	a.at, a.images = first, images
	a.left, a.rowsLeft = a.n, a.rows
	a.coefAt, a.accAt, a.tail, a.piece = 0, 0, 0, pieceSingle
	if images >= quadSize {
		a.piece = pieceFour
	}
	a.partial = laneSums{}
}

// recordLen is the number of floats from a row's record of constants to the next row's.
func recordLen(kernel int) int {
	if kernel == kernelMoments {
		return 1
	}
	return coefLen
}

// from returns s from index i on; nil stays nil.
func from[T float32 | float64](s []T, i int) []T {
	if s == nil {
		return nil
	}
	return s[i:]
}
