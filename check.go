package batchnorm

import "unsafe"

// operand is a slice argument of a call.
type operand struct {
	name   string
	n      int     // elements it has
	begin  uintptr // its bytes are [begin, end)
	end    uintptr
	output bool
	mayBe  aliases // inputs that an output may coincide with
	times  int     // it has so many elements where others have one, if not 0
}

// aliases is a set of operands, by their position in the call's list.
type aliases uint16

func float32s(name string, s []float32) operand {
	return operandOf(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), 4)
}

func float64s(name string, s []float64) operand {
	return operandOf(name, len(s), unsafe.Pointer(unsafe.SliceData(s)), 8)
}

func operandOf(name string, n int, p unsafe.Pointer, size uintptr) operand {
	o := operand{name: name, n: n}
	if p != nil {
		o.begin = uintptr(p)
		o.end = o.begin + uintptr(n)*size
	}
	return o
}

// out marks an operand as an output that may be one of the given inputs.
func (o operand) out(mayBe aliases) operand {
	o.output, o.mayBe = true, mayBe
	return o
}

// of marks an operand as one with an element per channel of several parts.
func (o operand) of(parts int) operand {
	o.times = parts
	return o
}

func (o *operand) absent() bool { return o.begin == 0 }

// check validates the operands of a call: which must be there, their lengths
// (tensors come first in the list, then what has an element per channel), and
// that no output overlaps another operand, but for exact aliases that it allows.
func (p *Plan) check(ops []operand, tensors int, required aliases) error {
	return p.shape.check(ops, tensors, required)
}

func (s Shape) check(ops []operand, tensors int, required aliases) error {
	for i := range ops {
		o := &ops[i]
		if o.absent() {
			if required&(1<<i) != 0 && (i >= tensors || s.Outer > 0) {
				return fail(ErrMissing, "%s is missing, %d elements are needed for shape %v", o.name, s.need(o, i < tensors), s)
			}
			continue
		}
		if need := s.need(o, i < tensors); o.n != need {
			switch {
			case i < tensors:
				return fail(ErrLength, "%s has %d elements, shape %v needs %d", o.name, o.n, s, need)
			case o.times != 0:
				return fail(ErrLength, "%s has %d elements, shape %v needs %d: %d times %d channels", o.name, o.n, s, need, o.times, s.Channels)
			}
			return fail(ErrLength, "%s has %d elements, shape %v has %d channels", o.name, o.n, s, need)
		}
	}
	return apart(ops)
}

// apart reports an output that overlaps another operand, unless it is an exact
// alias that the output allows.
func apart(ops []operand) error {
	for i := range ops {
		for j := range ops[:i] {
			a, b := &ops[i], &ops[j]
			if a.begin >= b.end || b.begin >= a.end || !a.output && !b.output {
				continue
			}
			if err := a.apart(b, a.mayBe&(1<<j) != 0 || b.mayBe&(1<<i) != 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// apart reports an overlap of two operands, but for that of the same elements
// where it is allowed.
func (o *operand) apart(b *operand, mayBeSame bool) error {
	if o.begin >= b.end || b.begin >= o.end || o.n == 0 || b.n == 0 {
		return nil
	}
	if same := o.begin == b.begin && o.end == b.end; same && mayBeSame {
		return nil
	} else if same {
		return fail(ErrAlias, "%s and %s are the same %d elements, which is not allowed", b.name, o.name, o.n)
	}
	return fail(ErrAlias, "%s (%d elements) and %s (%d elements) overlap by %d bytes", b.name, b.n, o.name, o.n,
		min(o.end, b.end)-max(o.begin, b.begin))
}

// need returns how many elements an operand has, a tensor or a slice by channel.
func (s Shape) need(o *operand, tensor bool) int {
	if tensor {
		return s.Len()
	}
	return s.Channels * max(1, o.times)
}
