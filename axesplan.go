package batchnorm

import (
	"math/bits"
	"slices"
)

// Axes returns the shape of a row-major tensor with the given dimensions in
// which every index of the kept axes is a channel, in row-major order, and
// statistics are taken over all other axes. A negative axis counts from the
// end. With no axis kept, everything is one channel.
//
// The tensor must have the form OUTER x CHANNELS x INNER, when adjacent axes of one
// kind are counted as one and axes of length 1 are left out. Of (N, C, H, W), the kept
// axes {1}, {1, 2} and {0, 1} have this form; {1, 3} has not, since H, which is
// averaged over, lies between the kept C and W. Other axes are [ErrShape] here, and
// [NewAxesPlan] takes them.
//
// Every dimension is at least 1. The first may be 0 (an empty batch) if it is not kept.
func Axes(keep []int, dims ...int) (Shape, error) {
	groups, err := groupAxes(keep, dims)
	if err != nil {
		return Shape{}, err
	}
	s, ok := shapeOf(groups)
	if !ok {
		return Shape{}, fail(ErrShape, "axes %v of %v are not adjacent: between them lie axes that are averaged over; use NewAxesPlan", keep, dims)
	}
	if err := s.Valid(); err != nil { // more channels than are possible
		return Shape{}, err
	}
	return s, nil
}

// PerActivation returns the shape of a row-major tensor (N, ...) in which every
// element of a sample is a channel of its own, with statistics over the samples alone.
// It is cuDNN's PER_ACTIVATION and ONNX's spatial=0.
func PerActivation(dims ...int) (Shape, error) {
	if len(dims) < 2 {
		return Shape{}, fail(ErrShape, "PerActivation needs at least 2 dimensions (N, ...), has %d", len(dims))
	}
	keep := make([]int, len(dims)-1)
	for i := range keep {
		keep[i] = i + 1
	}
	return Axes(keep, dims...)
}

// axisGroup stands for some adjacent axes, all kept or all averaged over.
type axisGroup struct {
	kept bool
	n    int // product of the dimensions
}

// groupAxes validates the axes and merges adjacent ones of one kind.
func groupAxes(keep, dims []int) ([]axisGroup, error) {
	if len(dims) == 0 && len(keep) == 0 {
		return nil, fail(ErrShape, "a tensor needs at least 1 dimension, has 0")
	}
	kept := make([]bool, len(dims))
	for _, axis := range keep {
		k := axis
		if k < 0 {
			k += len(dims)
		}
		if k < 0 || k >= len(dims) {
			return nil, fail(ErrShape, "axis %d is out of range for %d dimensions", axis, len(dims))
		}
		if kept[k] {
			return nil, fail(ErrShape, "axis %d of %d dimensions is kept twice in %v", axis, len(dims), keep)
		}
		kept[k] = true
	}
	total := uint64(1)
	for i, d := range dims {
		if i == 0 && d == 0 && !kept[0] {
			continue
		}
		if d < 1 {
			least := 1
			if i == 0 && !kept[0] {
				least = 0 // an empty batch
			}
			return nil, fail(ErrShape, "dimension %d of %v is %d, must be at least %d", i, dims, d, least)
		}
		hi, lo := bits.Mul64(total, uint64(d))
		if hi != 0 || lo > maxLen {
			return nil, fail(ErrShape, "dimensions %v overflow: more than %d elements", dims, uint64(maxLen))
		}
		total = lo
	}
	all := make([]axisGroup, len(dims))
	for i, d := range dims {
		all[i] = axisGroup{kept[i], d}
	}
	groups := mergeGroups(all)
	if _, ok := shapeOf(groups); !ok {
		groups = mergeGroups(slices.DeleteFunc(all, func(g axisGroup) bool { return g.n == 1 }))
	}
	return groups, nil
}

func mergeGroups(all []axisGroup) []axisGroup {
	var groups []axisGroup
	for _, g := range all {
		if last := len(groups) - 1; last >= 0 && groups[last].kept == g.kept {
			groups[last].n *= g.n
		} else {
			groups = append(groups, g)
		}
	}
	return groups
}

// shapeOf returns the shape of groups, at most one of which is kept.
func shapeOf(groups []axisGroup) (s Shape, ok bool) {
	s = Shape{Outer: 1, Channels: 1, Inner: 1}
	seen := false
	for _, g := range groups {
		switch {
		case g.kept && seen:
			return s, false
		case g.kept:
			s.Channels, seen = g.n, true
		case seen:
			s.Inner = g.n
		default:
			s.Outer = g.n
		}
	}
	return s, true
}

// An AxesPlan normalizes over any set of axes, also where [Axes] fails. There are
// three cases, and [AxesPlan.Ways] tells which one a plan has:
//
//   - The tensor has the form OUTER x CHANNELS x INNER: one call of a [Plan].
//   - It has this form without its leading kept axes: one call for each index of
//     these, on adjacent sections of the tensor and of the slices by channel, without a
//     copy. Keeping {0, 2} of (N, T, C) is an example.
//   - Otherwise every section is copied to scratch memory in an order that a plan takes,
//     and its results are copied back. Keeping {1, 3} of (N, C, H, W) is an example.
//     The cost is a copy of each tensor that is read or written.
//
// The methods and their arguments are those of [Plan]. A tensor has as many elements as
// the product of the dimensions, a slice by channel as many as the product of the kept
// dimensions, in row-major order. A mask is [ErrMask]. Methods allocate only the
// scratch memory of copies, when it is first needed, and may be called from several
// goroutines at a time.
type AxesPlan struct {
	whole    Plan // checks the arguments: its shape has the numbers of elements and channels
	section  *Plan
	sections int

	// Where sections are copied: the axes over which runs of run elements repeat, in the
	// plan's order, with the strides of the tensor.
	copied bool
	repeat []stridedAxis
	run    int

	calls pool[*axesScratch]
}

type stridedAxis struct{ n, stride int }

// axesScratch is the memory of a call. Its copies are allocated when they are needed.
type axesScratch struct {
	x, dy, residual []float32
	section, copies operands // of the current section
}

// NewAxesPlan makes a plan for a row-major tensor with the given dimensions in
// which every index of the kept axes is a channel. Axes and dimensions are as
// in [Axes], in whatever order the axes lie; options are as in [NewPlan].
func NewAxesPlan(keep, dims []int, opts ...Option) (*AxesPlan, error) {
	groups, err := groupAxes(keep, dims)
	if err != nil {
		return nil, err
	}
	a := &AxesPlan{sections: 1}
	s, ok := shapeOf(groups)
	whole := s
	if !ok {
		whole = Shape{Outer: 1, Channels: 1, Inner: 1}
		for _, g := range groups {
			if g.kept {
				whole.Channels *= g.n
			} else {
				whole.Outer *= g.n
			}
		}
		if groups[0].kept {
			a.sections = groups[0].n
			groups = groups[1:]
		}
		if s, ok = shapeOf(groups); !ok {
			a.copied = true
			s = a.setOrder(groups)
		}
	}
	if a.section, err = NewPlan(s, opts...); err != nil {
		return nil, err
	}
	a.whole.options, a.whole.shape = a.section.options, whole
	return a, nil
}

// setOrder chooses the order of the axes in a copied section, and returns its shape: first
// the axes that are averaged over, then the kept ones, then the last group if it is not
// kept. The last group is last in both orders, so that whole runs of it are copied.
func (a *AxesPlan) setOrder(groups []axisGroup) Shape {
	last := len(groups) - 1
	a.run = groups[last].n
	s := Shape{Outer: 1, Channels: 1, Inner: 1}
	for _, kept := range []bool{false, true} {
		stride := 1
		for _, g := range groups {
			stride *= g.n
		}
		for i, g := range groups {
			stride /= max(1, g.n) // an empty batch is never walked
			if g.kept != kept || i == last {
				continue
			}
			a.repeat = append(a.repeat, stridedAxis{g.n, stride})
			if kept {
				s.Channels *= g.n
			} else {
				s.Outer *= g.n
			}
		}
	}
	if groups[last].kept {
		s.Channels *= a.run
	} else {
		s.Inner = a.run
	}
	return s
}

// Channels returns the number of channels: the product of the kept dimensions.
func (a *AxesPlan) Channels() int {
	if a.ready() != nil {
		return 0
	}
	return a.whole.shape.Channels
}

// Len returns the number of elements of the tensor.
func (a *AxesPlan) Len() int {
	if a.ready() != nil {
		return 0
	}
	return a.whole.shape.Len()
}

// Ways returns the number of calls of a plan that an operation takes, and whether these
// work on copies.
func (a *AxesPlan) Ways() (calls int, copies bool) {
	if a.ready() != nil {
		return 0, false
	}
	return a.sections, a.copied
}

func (a *AxesPlan) ready() error {
	if a == nil || a.section == nil {
		return fail(ErrNilPlan, "plan is nil or was not made by NewAxesPlan")
	}
	return nil
}

// Forward is [Plan.Forward] for every channel.
func (a *AxesPlan) Forward(args ForwardArgs) error {
	if err := a.check(&args.Mask); err != nil {
		return err
	}
	if _, err := a.whole.checkForward(&args, nil); err != nil {
		return err
	}
	momentum := args.Momentum.or(a.section.momentum)
	a.each(args.operands(), func(p *Plan, o *operands) {
		p.forward(o, &Mask{}, p.shape.PerChannel(), momentum, renormalization{})
	})
	return nil
}

// Inference is [Plan.Inference] for every channel.
func (a *AxesPlan) Inference(args InferenceArgs) error {
	if err := a.check(&args.Mask); err != nil {
		return err
	}
	if _, err := a.whole.checkInference(&args); err != nil {
		return err
	}
	a.each(args.operands(), func(p *Plan, o *operands) { p.inference(o, &Mask{}, p.shape.PerChannel()) })
	return nil
}

// Backward is [Plan.Backward] for every channel.
func (a *AxesPlan) Backward(args BackwardArgs) error {
	if err := a.check(&args.Mask); err != nil {
		return err
	}
	if _, err := a.whole.checkBackward(&args, nil); err != nil {
		return err
	}
	a.each(args.operands(), func(p *Plan, o *operands) { p.backward(o, &Mask{}, p.shape.PerChannel(), renormalization{}, nil) })
	return nil
}

// FrozenBackward is [Plan.FrozenBackward] for every channel.
func (a *AxesPlan) FrozenBackward(args FrozenBackwardArgs) error {
	if err := a.check(&args.Mask); err != nil {
		return err
	}
	if _, err := a.whole.checkFrozen(&args); err != nil {
		return err
	}
	a.each(args.operands(), func(p *Plan, o *operands) { p.frozenBackward(o, &Mask{}, p.shape.PerChannel()) })
	return nil
}

// each does an operation on every section of the operands, on copies where the plan needs
// them.
func (a *AxesPlan) each(whole operands, do func(p *Plan, o *operands)) {
	s := a.calls.take(func() *axesScratch { return new(axesScratch) }, nil)
	n, c := a.section.shape.Len(), a.section.shape.Channels
	section, o := &s.section, &s.copies
	for i := range a.sections {
		*section = whole.cut(i*n, n, i*c, c, i*c)
		if !a.copied {
			do(a.section, section)
			continue
		}
		*o = *section
		o.x, o.dy, o.residual = a.pack(&s.x, section.x), a.pack(&s.dy, section.dy), a.pack(&s.residual, section.residual)
		// Outputs are computed in place, in the copies.
		if section.dy != nil {
			o.y, o.dresidual = inPlace(section.y, o.dy), inPlace(section.dresidual, o.x)
		} else {
			o.y = o.x
		}
		do(a.section, o)
		a.unpack(section.y, o.y)
		a.unpack(section.dresidual, o.dresidual)
	}
	s.section, s.copies = operands{}, operands{}
	a.calls.give(s)
}

// inPlace returns the input that an output overwrites, or nil if the output is not
// wanted.
func inPlace(output, input []float32) []float32 {
	if output == nil {
		return nil
	}
	return input
}

// check reports a plan that is not ready, or a mask: a plan over axes defines no order
// of positions.
func (a *AxesPlan) check(m *Mask) error {
	if err := a.ready(); err != nil {
		return err
	}
	if m.Lengths != nil || m.Valid != nil {
		return fail(ErrMask, "a plan over axes takes no mask")
	}
	return nil
}

// pack copies a section of a tensor to scratch memory, in the plan's order.
func (a *AxesPlan) pack(scratch *[]float32, tensor []float32) []float32 {
	if tensor == nil {
		return nil
	}
	if *scratch == nil {
		*scratch = make([]float32, a.section.shape.Len())
	}
	a.copyRuns(*scratch, tensor, a.repeat, false)
	return *scratch
}

// unpack copies a result into the section of a tensor, if it is wanted.
func (a *AxesPlan) unpack(tensor, packed []float32) {
	if tensor != nil {
		a.copyRuns(packed, tensor, a.repeat, true)
	}
}

// copyRuns copies run after run of the packed slice from or to the tensor, and
// returns the rest of the packed slice.
func (a *AxesPlan) copyRuns(packed, tensor []float32, repeat []stridedAxis, toTensor bool) []float32 {
	if len(repeat) > 0 {
		for i := range repeat[0].n {
			packed = a.copyRuns(packed, tensor[i*repeat[0].stride:], repeat[1:], toTensor)
		}
		return packed
	}
	if toTensor {
		copyCut(tensor[:a.run], packed)
	} else {
		copyCut(packed[:a.run], tensor)
	}
	return packed[a.run:]
}
