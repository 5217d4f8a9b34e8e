package batchnorm

// Mask tells data from padding in a tensor of Outer x Inner positions per channel. The
// zero value stands for no padding. At most one of Lengths and Valid may be given.
//
// Padding takes no part in the result, whatever values it has, NaN included. Outputs
// at padding are set to 0, or are not written with KeepPadding.
//
// A mask without padding gives the bits of a call without a mask. Any other mask gives
// the bits of the tensor without its padding, with the n valid positions of a channel
// side by side in their order: the tensor of shape {1, Channels, n}, or
// {n, Channels, 1} where the channels are adjacent (Inner is 1 and Channels is not).
//
// A batch that is all padding counts as an empty one: in training it has no
// statistics, leaves the running statistics, and gives no gradients.
//
// The first call of a plan with padding allocates a workspace, and so does the first
// with Valid; later calls allocate nothing.
type Mask struct {
	// Lengths has the number of valid positions of each sample; they come before its
	// padding. With Inner > 1 a sample is one of the Outer rows: there are Outer
	// lengths, from 0 to Inner. With Inner 1 (channels last) there is a length for each
	// sample, and each sample has Outer/len(Lengths) positions.
	Lengths []int

	// Valid has an element for every position (o, i), at o*Inner + i.
	Valid []bool

	// KeepPadding leaves outputs at padding unwritten.
	KeepPadding bool
}

// sample returns the number of positions of a sample with a length.
func (m *Mask) sample(s Shape) int { return s.PerChannel() / max(1, len(m.Lengths)) }

// count returns the number of valid positions of a channel, or an error for an
// invalid mask.
func (m *Mask) count(s Shape) (n int, err error) {
	positions := s.PerChannel()
	switch {
	case m.Lengths == nil && m.Valid == nil:
		return positions, nil
	case m.Lengths != nil && m.Valid != nil:
		return 0, fail(ErrMask, "mask has both lengths (%d) and valid (%d), must have one of them", len(m.Lengths), len(m.Valid))
	case m.Valid != nil:
		if len(m.Valid) != positions {
			return 0, fail(ErrLength, "valid of the mask has %d elements, shape %v has %d positions", len(m.Valid), s, positions)
		}
		for _, v := range m.Valid {
			if v {
				n++
			}
		}
		return n, nil
	}
	if k := len(m.Lengths); s.Inner > 1 && k != s.Outer || s.Outer > 0 && (k == 0 || s.Outer%k != 0) || k > s.Outer {
		if s.Inner > 1 {
			return 0, fail(ErrLength, "lengths of the mask has %d elements, shape %v has %d samples", k, s, s.Outer)
		}
		return 0, fail(ErrLength, "lengths of the mask has %d elements, which does not divide the %d positions of shape %v", k, s.Outer, s)
	}
	for i, l := range m.Lengths {
		if most := m.sample(s); l < 0 || l > most {
			return 0, fail(ErrMask, "length %d of the mask is %d, must be from 0 to %d", i, l, most)
		}
		n += l
	}
	return n, nil
}

// runs appends the runs of valid positions to list. A run ends with its row, which has
// the given number of positions.
func (m *Mask) runs(list []run, s Shape, row int) []run {
	n := 0
	add := func(first, end int) {
		for first < end {
			next := min(end, first/row*row+row)
			list = append(list, run{first, n, next - first, s.index(first, 0)})
			n += next - first
			first = next
		}
	}
	switch {
	case m.Lengths != nil:
		sample := m.sample(s)
		for i, l := range m.Lengths {
			add(i*sample, i*sample+l)
		}
	case m.Valid != nil:
		for i := 0; i < len(m.Valid); i++ {
			first := i
			for i < len(m.Valid) && m.Valid[i] {
				i++
			}
			add(first, i)
		}
	default:
		add(0, s.PerChannel())
	}
	return list
}

// given reports whether there is a mask.
func (m *Mask) given() bool { return m.Lengths != nil || m.Valid != nil }

// most returns the largest possible number of runs.
func (m *Mask) most(s Shape, row int) int {
	rows := ceilDiv(s.PerChannel(), row)
	switch {
	case m.Lengths != nil:
		return rows + len(m.Lengths)
	case m.Valid != nil:
		return rows * ceilDiv(row+1, 2)
	}
	return rows
}
