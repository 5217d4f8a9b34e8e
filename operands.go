package batchnorm

import (
	"slices"
	"unsafe"
)

// operands are the tensors and the slices by channel of a call. An operation uses some
// of them; an operand that is not given or not wanted is nil.
type operands struct {
	x, dy, residual []float32 // tensors that are read
	y, dresidual    []float32 // tensors that are written; y is dx in a backward pass

	gamma, beta             []float32
	mean, invstd            []float64 // forward: outputs; backward: inputs
	variance                []float64 // forward: output, the population's
	batchMean, batchVar     []float32 // the same in float32; forward: outputs; backward: inputs, if mean and invstd are not
	runningMean, runningVar []float32 // forward: updated; inference and frozen backward: inputs
	dgamma, dbeta           []float32
}

// cut returns the operands of a smaller call: n elements of every tensor from index
// first, and some channels from channel c. Saved statistics begin at saved.
func (o *operands) cut(first, n, c, channels, saved int) operands {
	return operands{
		x: slice(o.x, first, n), dy: slice(o.dy, first, n), residual: slice(o.residual, first, n),
		y: slice(o.y, first, n), dresidual: slice(o.dresidual, first, n),
		gamma: slice(o.gamma, c, channels), beta: slice(o.beta, c, channels),
		mean: slice(o.mean, saved, channels), invstd: slice(o.invstd, saved, channels),
		variance:  slice(o.variance, saved, channels),
		batchMean: slice(o.batchMean, saved, channels), batchVar: slice(o.batchVar, saved, channels),
		runningMean: slice(o.runningMean, c, channels), runningVar: slice(o.runningVar, c, channels),
		dgamma: slice(o.dgamma, c, channels), dbeta: slice(o.dbeta, c, channels),
	}
}

// slice returns n elements of s from index first; nil stays nil.
func slice[T float32 | float64](s []T, first, n int) []T {
	if s == nil {
		return nil
	}
	return s[first : first+n : first+n]
}

// checker collects the arguments of a call, to validate all of them before
// anything is written.
type checker struct {
	shape Shape
	list  [maxOperands]operand
	n     int
	err   error // found while the operands were added
}

const maxOperands = 20

// aliases is a set of operands, by their position in a list.
type aliases uint32

// operand is a slice that a caller hands in.
type operand struct {
	name       string
	n          int     // elements that it has
	begin      uintptr // its bytes are [begin, end)
	end        uintptr
	tensor     bool // it has an element per element of the shape; otherwise per channel
	perChannel int  // by channel: its elements per channel
	required   bool
	output     bool
	bit        aliases // its own place in mayBe
	mayBe      aliases // the inputs that an output may coincide with
}

func (s Shape) checker() checker { return checker{shape: s} }

// add returns the next operand, of which the name and the elements are set.
func (k *checker) add(name string, n int, p unsafe.Pointer, size uintptr) *operand {
	a := &k.list[k.n]
	a.name, a.n, a.begin, a.end = name, n, uintptr(p), uintptr(p)+uintptr(n)*size
	a.perChannel, a.bit = 1, 1<<k.n
	k.n++
	return a
}

func float32s(name string, s []float32) operand {
	return operandOf(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), unsafe.Sizeof(float32(0)))
}

func float64s(name string, s []float64) operand {
	return operandOf(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), unsafe.Sizeof(float64(0)))
}

func operandOf(name string, n int, p unsafe.Pointer, size uintptr) operand {
	o := operand{name: name, n: n}
	if p != nil {
		o.begin = uintptr(p)
		o.end = o.begin + uintptr(n)*size
	}
	return o
}

// out marks an operand as an output that may be one of some inputs.
func (o operand) out(mayBe aliases) operand {
	o.output, o.mayBe = true, mayBe
	return o
}

// tensor adds an argument with as many elements as the shape.
func (k *checker) tensor(name string, s []float32) *operand {
	a := k.channels(name, s)
	a.tensor = true
	return a
}

// channels adds an argument with an element per channel, channels64 one of float64.
func (k *checker) channels(name string, s []float32) *operand {
	return k.add(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), unsafe.Sizeof(float32(0)))
}

func (k *checker) channels64(name string, s []float64) *operand {
	return k.add(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), unsafe.Sizeof(float64(0)))
}

// must marks an argument as required.
func (a *operand) must() *operand {
	a.required = true
	return a
}

// require marks arguments that were added before as required.
func (k *checker) require(names ...string) {
	for i := range k.list[:k.n] {
		a := &k.list[i]
		a.required = a.required || slices.Contains(names, a.name)
	}
}

// written marks an argument as an output that may be one of some inputs.
func (a *operand) written(inputs ...*operand) *operand {
	a.output = true
	for _, in := range inputs {
		a.mayBe |= in.bit
	}
	return a
}

// per sets how many elements per channel an argument has.
func (a *operand) per(n int) *operand {
	a.perChannel = n
	return a
}

func (a *operand) absent() bool { return a.begin == 0 }

// check reports the first argument that is missing or has a wrong length for the
// shape, or else the first output with an overlap that is not allowed.
func (k *checker) check() error {
	if k.err != nil {
		return k.err
	}
	for i := range k.list[:k.n] {
		if err := k.list[i].check(k.shape); err != nil {
			return err
		}
	}
	return apart(k.list[:k.n])
}

// apart reports an output that overlaps another operand, unless it is an exact
// alias that the output allows.
func apart(ops []operand) error {
	for i := range ops {
		a := &ops[i]
		for j := range ops[:i] {
			b := &ops[j]
			if !a.meets(b) || !a.output && !b.output {
				continue
			}
			if err := a.apart(b, a.mayBe&(1<<j) != 0 || b.mayBe&(1<<i) != 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *operand) check(s Shape) error {
	need := s.Channels * a.perChannel
	if a.tensor {
		need = s.Len()
	}
	switch {
	case a.absent() && a.required && (!a.tensor || s.Outer > 0):
		return fail(ErrMissing, "%s is missing, %d elements are needed for shape %v", a.name, need, s)
	case a.absent() || a.n == need:
		return nil
	case a.tensor:
		return fail(ErrLength, "%s has %d elements, shape %v needs %d", a.name, a.n, s, need)
	case a.perChannel != 1:
		return fail(ErrLength, "%s has %d elements, shape %v needs %d: %d times %d channels", a.name, a.n, s, need, a.perChannel, s.Channels)
	}
	return fail(ErrLength, "%s has %d elements, shape %v has %d channels", a.name, a.n, s, need)
}

// meets reports whether two arguments overlap, or an empty one lies within the other.
func (a *operand) meets(b *operand) bool { return a.begin < b.end && b.begin < a.end }

// apart reports an overlap of two arguments. mayBeSame allows an exact one.
func (a *operand) apart(b *operand, mayBeSame bool) error {
	if !a.meets(b) || a.n == 0 || b.n == 0 {
		return nil
	}
	if same := a.begin == b.begin && a.end == b.end; same && mayBeSame {
		return nil
	} else if same {
		return fail(ErrAlias, "%s and %s are the same %d elements, which is not allowed", b.name, a.name, a.n)
	}
	return fail(ErrAlias, "%s (%d elements) and %s (%d elements) overlap by %d bytes", b.name, b.n, a.name, a.n,
		min(a.end, b.end)-max(a.begin, b.begin))
}
