package batchnorm

// An Accumulator takes the moments of a batch from its producer, for example a
// convolution, tile by tile while a tile is in a cache: so the batch is not read once
// more for its statistics. [Plan.Statistics] takes the gathered moments, and
// [Plan.Normalize] does the rest.
//
// A tile may have any shape and any of the channels. Tiles are merged in the order
// in which they come, and the order changes the last bits. Where several goroutines
// make tiles, give each an Accumulator and a fixed part of the batch, and join them by
// [MergeMoments] in a fixed order: then the bits do not depend on timing. ([Precise]
// does not depend on the order at all, and takes longer.)
//
// It is for one goroutine at a time. After the first tile of a shape nothing is
// allocated.
type Accumulator struct {
	plans     *Plans
	counts    []int // of values, by channel
	all, tile Moments
	parts     [2]Moments // arguments of a merge, kept here so that a call allocates nothing
}

// NewAccumulator returns an Accumulator for batches with this number of channels. Options
// are those of [NewPlans], of which path, workers, executor and capacity matter.
func NewAccumulator(channels int, opts ...Option) (*Accumulator, error) {
	if err := (Shape{1, channels, 1}).Valid(); err != nil {
		return nil, err
	}
	plans, err := NewPlans(opts...)
	if err != nil {
		return nil, err
	}
	moments := func() Moments { return Moments{Mean: make([]float64, channels), M2: make([]float64, channels)} }
	return &Accumulator{plans: plans, counts: make([]int, channels), all: moments(), tile: moments()}, nil
}

func (a *Accumulator) ready() error {
	if a == nil || a.plans == nil {
		return fail(ErrMissing, "accumulator is nil or was not made by NewAccumulator")
	}
	return nil
}

// TileArgs are the arguments of [Accumulator.Add].
type TileArgs struct {
	X       []float32 // the values; Shape.Len() elements
	Shape   Shape     // of the tile, with Channels of its own
	Channel int       // the tile's first channel, as a channel of the batch
	Mask    Mask      // which positions are data; zero value: all
}

// Add takes in a tile.
func (a *Accumulator) Add(t TileArgs) error {
	if err := a.ready(); err != nil {
		return err
	}
	if err := t.Shape.Valid(); err != nil {
		return err
	}
	if err := a.holds(t.Channel, t.Shape.Channels); err != nil {
		return err
	}
	p, err := a.plans.Plan(t.Shape)
	if err != nil {
		return err
	}
	a.tile.Mean, a.tile.M2 = a.tile.Mean[:t.Shape.Channels], a.tile.M2[:t.Shape.Channels]
	if err := p.Moments(MomentsArgs{X: t.X, Mask: t.Mask, Moments: &a.tile}); err != nil {
		return err
	}
	return a.merge(t.Channel, &a.tile)
}

// AddMoments takes in the moments of more values, from the given channel on, for
// example of a tile whose producer has taken them itself.
func (a *Accumulator) AddMoments(channel int, m Moments) error {
	if err := a.ready(); err != nil {
		return err
	}
	n := len(m.Mean)
	if len(m.M2) != n {
		return fail(ErrLength, "mean of the moments has %d elements, m2 has %d", n, len(m.M2))
	}
	if err := a.holds(channel, n); err != nil {
		return err
	}
	return a.merge(channel, &m)
}

// holds returns an error if the batch does not have these channels.
func (a *Accumulator) holds(channel, n int) error {
	if all := len(a.counts); channel < 0 || n < 1 || channel > all-n {
		return fail(ErrShape, "the tile has %d channels from channel %d on, the batch has %d", n, channel, all)
	}
	return nil
}

// merge takes in moments, adjacent channels with equal counts at a time.
func (a *Accumulator) merge(first int, m *Moments) error {
	counts := a.counts[first : first+len(m.Mean)]
	for c := range counts {
		if n := counts[c]; m.Count < 0 || n+m.Count < n {
			return fail(ErrLength, "the tile has %d values per channel, after %d before it", m.Count, n)
		}
	}
	for c := 0; c < len(counts); {
		end := c + 1
		for end < len(counts) && counts[end] == counts[c] {
			end++
		}
		a.parts[0] = Moments{counts[c], a.all.Mean[first+c : first+end], a.all.M2[first+c : first+end]}
		a.parts[1] = Moments{m.Count, m.Mean[c:end], m.M2[c:end]}
		if err := MergeMoments(&a.parts[0], a.parts[:]); err != nil {
			return err
		}
		for ; c < end; c++ {
			counts[c] = a.parts[0].Count
		}
	}
	return nil
}

// Moments returns the moments of all tiles so far. All channels must have had the same
// number of values ([ErrLength] otherwise). The slices are the Accumulator's, and valid
// until its next call.
func (a *Accumulator) Moments() (Moments, error) {
	if err := a.ready(); err != nil {
		return Moments{}, err
	}
	for c, n := range a.counts {
		if n != a.counts[0] {
			return Moments{}, fail(ErrLength, "channel %d has had %d values, channel 0 has had %d", c, n, a.counts[0])
		}
	}
	m := a.all
	m.Count = a.counts[0]
	return m, nil
}

// Reset makes the Accumulator ready for another batch.
func (a *Accumulator) Reset() {
	if a == nil {
		return
	}
	clear(a.counts)
	clear(a.all.Mean)
	clear(a.all.M2)
}
