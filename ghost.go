package batchnorm

import "sync"

// GhostBatches says how a batch is cut into sub-batches whose statistics are
// taken apart.
type GhostBatches struct {
	Samples int // in the batch: the first dimension of the tensor; divides Shape.Outer
	Size    int // samples per sub-batch, from 1 to Samples
}

// A GhostPlan is a [Plan] for ghost batch normalization (Hoffer, Hubara and
// Soudry 2017, arXiv 1705.08741): a batch is cut into sub-batches of some
// samples, and each is normalized by its own statistics, so that the noise of
// small batches is kept in large ones.
//
// When Size does not divide Samples, the last sub-batch has the samples left
// over. It needs two values per channel like any other; a plan for which it
// would have one is [ErrTooFewValues], unless made [WithSingleValue].
//
// Its results are, by the bits, those of a Plan called for one sub-batch after
// the other. For inference there are no sub-batches: use a Plan.
type GhostPlan struct {
	shape      Shape
	ghost      GhostBatches
	full, last *Plan // of a sub-batch, and of the last when that is smaller
	batches    int

	mu   sync.Mutex
	free [][]gradTotal // not in use
}

// NewGhostPlan makes a plan for a batch of shape s that is cut into sub-batches.
// Samples lie along Outer, Outer/Samples rows each: 1 for NCHW and NC, and H*W
// for NHWC.
func NewGhostPlan(s Shape, g GhostBatches, opts ...Option) (*GhostPlan, error) {
	if err := s.Valid(); err != nil {
		return nil, err
	}
	if g.Samples < 1 || s.Outer%g.Samples != 0 || s.Outer == 0 {
		return nil, fail(ErrGhost, "%d samples do not divide outer %d of shape %v", g.Samples, s.Outer, s)
	}
	if g.Size < 1 || g.Size > g.Samples {
		return nil, fail(ErrGhost, "the size of a ghost batch is %d samples, must be from 1 to %d", g.Size, g.Samples)
	}
	p := &GhostPlan{shape: s, ghost: g, batches: ceilDiv(g.Samples, g.Size)}
	plan := func(samples int) (*Plan, error) {
		part := s
		part.Outer = s.Outer / g.Samples * samples
		// What is stored past the caches is for the whole batch to say.
		sub, err := NewPlan(part, append(opts[:len(opts):len(opts)], func(o *options) error {
			o.schedule.streamLen /= p.batches
			return nil
		})...)
		if err != nil {
			return nil, err
		}
		if part.PerChannel() == 1 && !sub.singleValue {
			return nil, fail(ErrTooFewValues, "a ghost batch of %d of %d samples has 1 value per channel of shape %v, training needs at least 2",
				samples, g.Samples, s)
		}
		return sub, nil
	}
	var err error
	if p.full, err = plan(g.Size); err != nil {
		return nil, err
	}
	p.last = p.full
	if rest := g.Samples % g.Size; rest != 0 {
		if p.last, err = plan(rest); err != nil {
			return nil, err
		}
	}
	p.free = append(p.free, make([]gradTotal, s.Channels))
	return p, nil
}

// Shape returns the shape of the whole batch.
func (p *GhostPlan) Shape() Shape {
	if p.ready() != nil {
		return Shape{}
	}
	return p.shape
}

// Batches returns the number of sub-batches.
func (p *GhostPlan) Batches() int {
	if p.ready() != nil {
		return 0
	}
	return p.batches
}

func (p *GhostPlan) ready() error {
	if p == nil || p.full == nil {
		return fail(ErrNilPlan, "plan is nil or was not made by NewGhostPlan")
	}
	return nil
}

// Forward is [Plan.Forward] for every sub-batch. Mean and InvStd have
// Batches()*Shape().Channels elements, those of sub-batch b from b*Channels on.
// The running statistics are updated by every sub-batch in turn, with the
// momentum given (Hoffer et al. 2017, algorithm 1). [Cumulative](n) makes them
// the average of all sub-batches, of which the call's first is number n.
func (p *GhostPlan) Forward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	const x, residual, y = 0, 1, 2
	ops := [...]operand{
		x:        float32s("x", a.X),
		residual: float32s("residual", a.Residual),
		y:        float32s("y", a.Y).out(1<<x | 1<<residual),
		3:        float32s("gamma", a.Gamma),
		4:        float32s("beta", a.Beta),
		5:        float64s("mean", a.Mean).out(0).of(p.batches),
		6:        float64s("invstd", a.InvStd).out(0).of(p.batches),
		7:        float32s("running mean", a.RunningMean).out(0),
		8:        float32s("running variance", a.RunningVar).out(0),
	}
	if err := p.shape.check(ops[:], 3, 1<<x|1<<y); err != nil {
		return err
	}
	momentum := a.Momentum.or(p.full.momentum)
	if err := momentum.valid(); err != nil {
		return err
	}
	if err := p.checkMask(&a.Mask); err != nil {
		return err
	}
	for b := range p.batches {
		q, part := p.batch(b)
		f := a
		f.Momentum = momentum.after(b)
		f.X, f.Residual, f.Y = part.of(a.X), part.of(a.Residual), part.of(a.Y)
		f.Mean, f.InvStd = p.saved(a.Mean, b), p.saved(a.InvStd, b)
		f.Mask = part.mask(a.Mask)
		n, _ := f.Mask.count(q.shape) // checked above
		q.forward(&f, n, renormalization{})
	}
	return nil
}

// Backward is [Plan.Backward] for every sub-batch, with Mean and InvStd as
// Forward saved them. DGamma and DBeta are the sums over all sub-batches, taken
// in float64.
func (p *GhostPlan) Backward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	const dy, x, residual, dx, dresidual, mean, invstd = 0, 1, 2, 3, 4, 7, 8
	const inputs = 1<<dy | 1<<x | 1<<residual
	ops := [...]operand{
		dy:        float32s("dy", a.DY),
		x:         float32s("x", a.X),
		residual:  float32s("residual", a.Residual),
		dx:        float32s("dx", a.DX).out(inputs),
		dresidual: float32s("dresidual", a.DResidual).out(inputs),
		5:         float32s("gamma", a.Gamma),
		6:         float32s("beta", a.Beta),
		mean:      float64s("mean", a.Mean).of(p.batches),
		invstd:    float64s("invstd", a.InvStd).of(p.batches),
		9:         float32s("dgamma", a.DGamma).out(0),
		10:        float32s("dbeta", a.DBeta).out(0),
	}
	if err := p.shape.check(ops[:], 5, 1<<dy|1<<x|1<<mean|1<<invstd); err != nil {
		return err
	}
	if err := p.checkMask(&a.Mask); err != nil {
		return err
	}
	totals := p.acquire()
	defer p.release(totals)
	for b := range p.batches {
		q, part := p.batch(b)
		f := a
		f.DY, f.X, f.Residual = part.of(a.DY), part.of(a.X), part.of(a.Residual)
		f.DX, f.DResidual = part.of(a.DX), part.of(a.DResidual)
		f.Mean, f.InvStd = p.saved(a.Mean, b), p.saved(a.InvStd, b)
		f.Mask = part.mask(a.Mask)
		n, _ := f.Mask.count(q.shape) // checked above
		q.backward(&f, n, renormalization{}, totals)
	}
	for c, t := range totals {
		if a.DGamma != nil {
			a.DGamma[c] = float32(t.dgamma)
		}
		if a.DBeta != nil {
			a.DBeta[c] = float32(t.dbeta)
		}
	}
	return nil
}

// checkMask validates the mask, and that it leaves values enough in every
// sub-batch.
func (p *GhostPlan) checkMask(m *Mask) error {
	if n, err := m.count(p.shape); err != nil || n == p.shape.PerChannel() {
		return err
	}
	if k := p.ghost.Samples; m.Lengths != nil && len(m.Lengths)%k != 0 {
		return fail(ErrLength, "lengths of the mask has %d elements, which is no multiple of the %d samples", len(m.Lengths), k)
	}
	for b := range p.batches {
		q, part := p.batch(b)
		sub := part.mask(*m)
		if n, _ := sub.count(q.shape); n < q.fewest() {
			return fail(ErrTooFewValues, "the mask leaves %d of %d values per channel in ghost batch %d of %d, training needs at least %d",
				n, q.shape.PerChannel(), b, p.batches, q.fewest())
		}
	}
	return nil
}

// batch returns the plan of sub-batch b and what part of the batch it is.
func (p *GhostPlan) batch(b int) (*Plan, ghostPart) {
	q := p.full
	if b == p.batches-1 {
		q = p.last
	}
	sample := b * p.ghost.Size
	row := p.shape.Outer / p.ghost.Samples * sample
	return q, ghostPart{q.shape, row, sample, min(p.ghost.Size, p.ghost.Samples-sample), p.ghost.Samples}
}

// saved returns the statistics of sub-batch b.
func (p *GhostPlan) saved(s []float64, b int) []float64 {
	if s == nil {
		return nil
	}
	c := p.shape.Channels
	return s[b*c:][:c:c]
}

// ghostPart is a sub-batch.
type ghostPart struct {
	shape           Shape
	row             int // of Outer, where it begins
	sample, samples int
	all             int // samples in the batch
}

func (g *ghostPart) of(t []float32) []float32 {
	return at(t, g.row*g.shape.Channels*g.shape.Inner, g.shape.Len())
}

func (g *ghostPart) mask(m Mask) Mask {
	if m.Lengths != nil {
		each := len(m.Lengths) / g.all
		m.Lengths = m.Lengths[g.sample*each:][:g.samples*each]
	}
	if m.Valid != nil {
		m.Valid = m.Valid[g.row*g.shape.Inner:][:g.shape.PerChannel()]
	}
	return m
}

func (p *GhostPlan) acquire() []gradTotal {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return make([]gradTotal, p.shape.Channels)
	}
	t := p.free[n-1]
	p.free = p.free[:n-1]
	clear(t)
	return t
}

func (p *GhostPlan) release(t []gradTotal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, t)
}

// gradTotal is the gradients by gamma and beta of a channel over sub-batches.
type gradTotal struct{ dgamma, dbeta float64 }
