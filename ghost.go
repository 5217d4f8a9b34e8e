package batchnorm

import "sync"

// GhostBatches says how a batch is cut into sub-batches whose statistics are
// taken apart.
type GhostBatches struct {
	Samples int // in the batch: the first dimension of the tensor; divides Shape.Outer
	Size    int // samples per sub-batch, at least 1; a smaller batch is one sub-batch
}

// A GhostPlan is a [Plan] for ghost batch normalization (Hoffer, Hubara and
// Soudry 2017, arXiv 1705.08741): a batch is cut into sub-batches of some
// samples, and each is normalized by its own statistics, so that the noise of
// small batches is kept in large ones.
//
// When Size does not divide Samples, the last sub-batch has the samples left
// over; a batch of fewer samples than Size, an empty one too, is one sub-batch. It needs two values per channel like any other; a plan for which it
// would have one is [ErrTooFewValues], unless made [WithSingleValue].
//
// Its results are, by the bits, those of a Plan called for one sub-batch after
// the other. For inference there are no sub-batches: use a Plan.
type GhostPlan struct {
	shape      Shape
	ghost      GhostBatches
	rows       int   // of Outer, per sample
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
	if s.Outer == 0 && g.Samples != 0 || s.Outer > 0 && (g.Samples < 1 || s.Outer%g.Samples != 0) {
		return nil, fail(ErrGhost, "%d samples do not divide outer %d of shape %v", g.Samples, s.Outer, s)
	}
	if g.Size < 1 {
		return nil, fail(ErrGhost, "the size of a ghost batch is %d samples, must be at least 1", g.Size)
	}
	g.Size = min(g.Size, max(1, g.Samples))
	p := &GhostPlan{shape: s, ghost: g, rows: s.Outer / max(1, g.Samples), batches: max(1, ceilDiv(g.Samples, g.Size))}
	plan := func(samples int) (*Plan, error) {
		part := s
		part.Outer = p.rows * samples
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
	if p.full, err = plan(min(g.Size, g.Samples)); err != nil {
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
func (p *GhostPlan) Shape() Shape { return p.shape }

// Batches returns the number of sub-batches.
func (p *GhostPlan) Batches() int { return p.batches }

func (p *GhostPlan) ready() error {
	if p == nil || p.full == nil {
		return fail(ErrNilPlan, "plan is nil or was not made by NewGhostPlan")
	}
	return nil
}

// Forward is [Plan.Forward] for every sub-batch. Mean, InvStd, BatchMean and BatchVar
// have Batches()*Shape().Channels elements, those of sub-batch b from b*Channels on.
// The running statistics are updated by every sub-batch in turn, with the
// momentum given (Hoffer et al. 2017, algorithm 1). [Cumulative](n) makes them
// the average of all sub-batches, of which the call's first is number n; one that
// the mask leaves nothing of is not counted.
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
		7:        float32s("batch mean", a.BatchMean).out(0).of(p.batches),
		8:        float32s("batch variance", a.BatchVar).out(0).of(p.batches),
		9:        float32s("running mean", a.RunningMean).out(0),
		10:       float32s("running variance", a.RunningVar).out(0),
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
	tracked := 0
	for b := range p.batches {
		q, part := p.batch(b)
		f := a
		f.Momentum = momentum.after(tracked)
		f.X, f.Residual, f.Y = part.of(a.X), part.of(a.Residual), part.of(a.Y)
		f.Mean, f.InvStd = partOf(a.Mean, b, p.shape.Channels), partOf(a.InvStd, b, p.shape.Channels)
		f.BatchMean, f.BatchVar = partOf(a.BatchMean, b, p.shape.Channels), partOf(a.BatchVar, b, p.shape.Channels)
		f.Mask = part.mask(a.Mask)
		n, _ := f.Mask.count(q.shape) // checked above
		q.forward(&f, n, renormalization{})
		tracked += min(1, n)
	}
	return nil
}

// Backward is [Plan.Backward] for every sub-batch, with the statistics as Forward
// saved them, or none. DGamma and DBeta are the sums over all sub-batches, taken
// in float64.
func (p *GhostPlan) Backward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	const dy, x, residual, dx, dresidual, mean, invstd, batchMean, batchVar = 0, 1, 2, 3, 4, 7, 8, 9, 10
	const inputs = 1<<dy | 1<<x | 1<<residual
	statistics, err := a.given(1<<mean, 1<<invstd, 1<<batchMean, 1<<batchVar)
	if err != nil {
		return err
	}
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
		batchMean: float32s("batch mean", a.BatchMean).of(p.batches),
		batchVar:  float32s("batch variance", a.BatchVar).of(p.batches),
		11:        float32s("dgamma", a.DGamma).out(0),
		12:        float32s("dbeta", a.DBeta).out(0),
	}
	if err := p.shape.check(ops[:], 5, 1<<dy|1<<x|statistics); err != nil {
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
		f.Mean, f.InvStd = partOf(a.Mean, b, p.shape.Channels), partOf(a.InvStd, b, p.shape.Channels)
		f.BatchMean, f.BatchVar = partOf(a.BatchMean, b, p.shape.Channels), partOf(a.BatchVar, b, p.shape.Channels)
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
		if n, _ := sub.count(q.shape); n > 0 && n < q.fewest() {
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
	row := p.rows * sample
	return q, ghostPart{q.shape, row, sample, min(p.ghost.Size, p.ghost.Samples-sample), p.ghost.Samples}
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
		each := len(m.Lengths) / max(1, g.all)
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
