package batchnorm

// GhostBatches says how a batch is cut into sub-batches with statistics of their own.
type GhostBatches struct {
	Samples int // in the batch: the first dimension of the tensor; divides Shape.Outer
	Size    int // samples per sub-batch, at least 1; a smaller batch is one sub-batch
}

// A GhostPlan is a [Plan] for ghost batch normalization (Hoffer, Hubara and
// Soudry 2017, arXiv 1705.08741): a batch is cut into sub-batches of some
// samples, and each is normalized by its own statistics, so that large batches keep
// the noise of small ones.
//
// If Size does not divide Samples, the last sub-batch has the remaining samples. A
// batch of fewer samples than Size, an empty one too, is one sub-batch. Every sub-batch
// needs two values per channel: a plan with a sub-batch of one is [ErrTooFewValues],
// unless it was made [WithSingleValue].
//
// Results have the bits of a Plan called for one sub-batch after the other. Inference
// has no sub-batches: use a Plan.
type GhostPlan struct {
	shape      Shape
	ghost      GhostBatches
	rows       int   // of Outer, per sample
	full, last *Plan // of a sub-batch; of the last one, which may be smaller
	beside     bool  // each sub-batch is a task for one worker
	options    options
	batches    int
	scratch    scratch // of the sub-batches' calls
	calls      pool[*ghostCall]
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
	var err error
	if p.options, err = newOptions(opts); err != nil {
		return nil, err
	}
	p.options.boundWorkers(s)
	p.beside = p.options.workers > 1 && p.batches >= p.options.workers
	if p.beside {
		p.scratch.calls = p.options.workers
	}
	plan := func(samples int) (*Plan, error) {
		shape := s
		shape.Outer = p.rows * samples
		sub, err := NewPlan(shape, append(opts[:len(opts):len(opts)], func(o *options) error {
			o.limits.stream /= p.batches // the whole batch decides about non-temporal stores
			o.scratch = &p.scratch
			if p.beside {
				o.workers, o.executor = 1, nil
			}
			return nil
		})...)
		if err != nil {
			return nil, err
		}
		if shape.PerChannel() == 1 && !sub.singleValue {
			return nil, fail(ErrTooFewValues, "a ghost batch of %d of %d samples has 1 value per channel of shape %v, training needs at least 2",
				samples, g.Samples, s)
		}
		return sub, nil
	}
	if p.full, err = plan(min(g.Size, g.Samples)); err != nil {
		return nil, err
	}
	p.last = p.full
	if rest := g.Samples % g.Size; rest != 0 {
		if p.last, err = plan(rest); err != nil {
			return nil, err
		}
	}
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

// Forward is [Plan.Forward] for every sub-batch. Mean, InvStd, BatchMean and BatchVar
// have Batches()*Shape().Channels elements, those of sub-batch b from b*Channels on.
// The running statistics are updated by every sub-batch in turn, with the
// momentum given (Hoffer et al. 2017, algorithm 1). [Cumulative](n) makes them the
// average of all sub-batches, if the first sub-batch of this call is number n of all
// calls. A sub-batch that is all padding is not counted.
func (p *GhostPlan) Forward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	a.check(&k, p.batches)
	if err := k.check(); err != nil {
		return err
	}
	momentum := a.Momentum.or(p.full.momentum)
	if err := momentum.valid(); err != nil {
		return err
	}
	if err := p.checkMask(&a.Mask); err != nil {
		return err
	}
	c := p.acquire()
	c.operands, c.mask = a.operands(), a.Mask
	c.operands.variance = c.variance
	if c.operands.mean == nil {
		c.operands.mean = c.mean
	}
	c.run()
	c.track(a.RunningMean, a.RunningVar, momentum)
	p.release(c)
	return nil
}

// Backward is [Plan.Backward] for every sub-batch, with the statistics as Forward
// saved them, or none. DGamma and DBeta are the sums over all sub-batches, taken
// in float64.
func (p *GhostPlan) Backward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	a.check(&k, p.batches)
	if err := k.check(); err != nil {
		return err
	}
	if err := p.checkMask(&a.Mask); err != nil {
		return err
	}
	c := p.acquire()
	c.operands, c.mask, c.backward = a.operands(), a.Mask, true
	c.run()
	c.saveGrads()
	p.release(c)
	return nil
}

// checkMask validates the mask, and that it leaves enough values in every sub-batch.
func (p *GhostPlan) checkMask(m *Mask) error {
	if n, err := m.count(p.shape); err != nil || n == p.shape.PerChannel() {
		return err
	}
	if k := p.ghost.Samples; m.Lengths != nil && len(m.Lengths)%k != 0 {
		return fail(ErrLength, "lengths of the mask has %d elements, which is no multiple of the %d samples", len(m.Lengths), k)
	}
	for b := range p.batches {
		q, sub := p.batch(b)
		mask := sub.mask(*m)
		if n, _ := mask.count(q.shape); n > 0 && n < q.fewest() {
			return fail(ErrTooFewValues, "the mask leaves %d of %d values per channel in ghost batch %d of %d, training needs at least %d",
				n, q.shape.PerChannel(), b, p.batches, q.fewest())
		}
	}
	return nil
}

// batch returns the plan of sub-batch b, and its place in the batch.
func (p *GhostPlan) batch(b int) (*Plan, subBatch) {
	q := p.full
	if b == p.batches-1 {
		q = p.last
	}
	sample := b * p.ghost.Size
	row := p.rows * sample
	return q, subBatch{q.shape, row, sample, min(p.ghost.Size, p.ghost.Samples-sample), p.ghost.Samples}
}

// subBatch is the place of a sub-batch in the batch.
type subBatch struct {
	shape           Shape
	row             int // its first row of Outer
	sample, samples int // its first sample, and their number
	all             int // samples in the batch
}

// mask returns the mask of the sub-batch.
func (g *subBatch) mask(m Mask) Mask {
	if m.Lengths != nil {
		each := len(m.Lengths) / max(1, g.all)
		m.Lengths = m.Lengths[g.sample*each:][:g.samples*each]
	}
	if m.Valid != nil {
		m.Valid = m.Valid[g.row*g.shape.Inner:][:g.shape.PerChannel()]
	}
	return m
}

// ghostCall is a call of a GhostPlan.
type ghostCall struct {
	plan     *GhostPlan
	operands operands
	mask     Mask
	backward bool
	totals   []gradTotal // backward: by sub-batch and channel
	// Forward: by sub-batch and channel, for the running statistics.
	mean, variance []float64

	task func(b int) // bound once, because binding allocates
}

// gradTotal holds the gradients by gamma and beta of a channel over a sub-batch.
type gradTotal struct{ dgamma, dbeta float64 }

// run works on all sub-batches.
func (c *ghostCall) run() {
	p := c.plan
	if p.beside {
		_, sub := p.batch(0)
		mask := sub.mask(c.mask)
		p.scratch.reserve(p.full, &mask)
		p.options.parallel(p.batches, p.shape.Len(), c.task)
		return
	}
	for b := range p.batches {
		c.batch(b)
	}
}

// batch works on sub-batch b.
func (c *ghostCall) batch(b int) {
	p, channels := c.plan, c.plan.shape.Channels
	q, sub := p.batch(b)
	o := c.operands.cut(sub.row*channels*p.shape.Inner, q.shape.Len(), 0, channels, b*channels)
	mask := sub.mask(c.mask)
	n, _ := mask.count(q.shape) // checked by the caller
	if c.backward {
		q.backward(&o, &mask, n, renormalization{}, c.totals[b*channels:][:channels])
		return
	}
	o.runningMean, o.runningVar = nil, nil // track updates them, in the order of the sub-batches
	q.forward(&o, &mask, n, q.momentum, renormalization{})
}

// track updates the running statistics by every sub-batch in turn.
func (c *ghostCall) track(runningMean, runningVar []float32, momentum Momentum) {
	p, channels := c.plan, c.plan.shape.Channels
	tracked := 0
	for b := range p.batches {
		q, sub := p.batch(b)
		mask := sub.mask(c.mask)
		n, _ := mask.count(q.shape)
		if n == 0 {
			continue
		}
		m := momentum.after(tracked)
		tracked++
		p.options.path.track(runningMean, c.operands.mean[b*channels:][:channels], 1, m)
		p.options.path.track(runningVar, c.operands.variance[b*channels:][:channels], p.options.variance.correction(n), m)
	}
}

// saveGrads writes the gradients by gamma and beta: the sums over all sub-batches, in
// their order.
func (c *ghostCall) saveGrads() {
	channels := c.plan.shape.Channels
	for i := range channels {
		var sum gradTotal
		for b := range c.plan.batches {
			t := &c.totals[b*channels+i]
			sum.dgamma += t.dgamma
			sum.dbeta += t.dbeta
		}
		if c.operands.dgamma != nil {
			c.operands.dgamma[i] = float32(sum.dgamma)
		}
		if c.operands.dbeta != nil {
			c.operands.dbeta[i] = float32(sum.dbeta)
		}
	}
}

func (p *GhostPlan) acquire() *ghostCall {
	return p.calls.take(func() *ghostCall {
		n := p.batches * p.shape.Channels
		c := &ghostCall{plan: p, totals: make([]gradTotal, n), mean: make([]float64, n), variance: make([]float64, n)}
		c.task = c.batch
		return c
	}, nil)
}

func (p *GhostPlan) release(c *ghostCall) {
	c.operands, c.mask, c.backward = operands{}, Mask{}, false
	p.calls.give(c)
}
