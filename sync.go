package batchnorm

// A SyncPlan is a [Plan] for synchronized batch norm: every rank of a [SyncGroup] has
// a part of the batch, and the statistics are those of the whole batch.
//
// Parts may have any size, even none; only the channels have to agree. Every rank gets
// the same bits of statistics, running statistics and gradients by gamma and beta, in
// every run: parts are merged in the order of the ranks, whichever is late. Compared
// with one process and the whole batch, results differ by the roundings that
// [MergeMoments] states, and not at all where each part is a segment. Gradients of less than
// 2^-100, or with products so small, are the exception: a sample of each part decides on their
// rounding.
//
// A call sends two float64 per channel, and each rank merges its share of the
// channels for all, so that the cost of a rank does not grow with the number of
// ranks. A pass can be begun and waited for, with other work in between:
//
//	err := plan.BeginBackward(args) // takes the sums, and begins to send
//	...                             // gradients of another layer
//	err = plan.Wait()               // waits for all sums, and writes the gradients
//
// A SyncPlan is for one goroutine at a time, and has one pass under way at a
// time. Several plans of a group may each have one, begun in the same order
// on every rank. After the first call a SyncPlan allocates nothing; its collective may.
type SyncPlan struct {
	plan *Plan
	sync *synced
}

// NewSyncPlan makes the plan of this rank's part of the batch. Every rank of the
// group makes its plans in the same order, with the same number of channels and the
// same options but for workers, executor and path.
func NewSyncPlan(g *SyncGroup, s Shape, opts ...Option) (*SyncPlan, error) {
	if err := g.ready(); err != nil {
		return nil, err
	}
	p, err := NewPlan(s, opts...)
	if err != nil {
		return nil, err
	}
	return &SyncPlan{p, newSynced(g, s.Channels)}, nil
}

func (p *SyncPlan) ready() error {
	if p == nil || p.plan == nil {
		return fail(ErrNilPlan, "plan is nil or was not made by NewSyncPlan")
	}
	return nil
}

// Plan returns the plan of this rank's part, for operations without other ranks:
// inference and the gradients with frozen statistics.
func (p *SyncPlan) Plan() *Plan {
	if p == nil {
		return nil
	}
	return p.plan
}

// Group returns the group that the plan was made on.
func (p *SyncPlan) Group() *SyncGroup {
	if p.ready() != nil {
		return nil
	}
	return p.sync.group
}

// Forward is [Plan.Forward] with the statistics of the whole batch. All ranks call it.
// Mean, InvStd, RunningMean and RunningVar become the same on every rank.
//
// The whole batch needs at least two values per channel; otherwise every rank gets
// [ErrTooFewValues]. If it is empty, Mean and InvStd become NaN and the running
// statistics stay.
//
// Wrong arguments of this rank are an error on all ranks, and end the group: see
// [SyncGroup]. No rank has written anything then.
func (p *SyncPlan) Forward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	_, err := p.sync.forward(p.plan, &a)
	return err
}

// Backward is [Plan.Backward] for this rank's part, with the sums of the whole batch.
// All ranks call it. DGamma and DBeta are those of the whole batch, the same on every
// rank: do not add them over the ranks again. They are gradients of the sum of all
// ranks' losses. If the loss of each rank is a mean over its own part, scale DY so
// that the sum is the loss of the whole batch: by 1/ranks for equal parts.
func (p *SyncPlan) Backward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	return p.sync.backward(p.plan, &a)
}

// BeginForward takes the moments of this rank's part and begins to exchange them.
// [SyncPlan.Wait] does the rest of [SyncPlan.Forward]. Until then the slices must
// not change, and the outputs must not be read. After an error from BeginForward no
// pass is under way.
func (p *SyncPlan) BeginForward(a ForwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	return p.sync.beginForward(p.plan, &a, true)
}

// BeginBackward takes the sums of this rank's part and begins to exchange them.
// [SyncPlan.Wait] does the rest of [SyncPlan.Backward]. The rules are those of
// BeginForward.
func (p *SyncPlan) BeginBackward(a BackwardArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	return p.sync.beginBackward(p.plan, &a, true)
}

// Wait ends the pass under way: it waits for the exchange and writes the outputs.
// Without a pass it returns [ErrNoPass].
func (p *SyncPlan) Wait() error {
	if err := p.ready(); err != nil {
		return err
	}
	_, err := p.sync.wait()
	return err
}

// synced holds the state of passes over parts of a batch. The plan of the part is
// separate, since a layer has another one for every shape.
type synced struct {
	group        *SyncGroup
	exchange     *exchange
	mean, invstd []float64 // of the whole batch

	// Of the part. Their slices are those of the exchange, which replaces the values by
	// those of the whole batch.
	moments Moments
	sums    GradSums

	// The pass under way; plan is nil if there is none.
	plan       *Plan
	backwards  bool
	background bool // a goroutine of its own runs the exchange
	f          ForwardArgs
	b          BackwardArgs
}

func newSynced(g *SyncGroup, channels int) *synced {
	g.mu.Lock()
	g.plans++
	number := g.plans
	g.mu.Unlock()
	e := newExchange(g, number, 2, channels)
	return &synced{
		group: g, exchange: e, mean: make([]float64, channels), invstd: make([]float64, channels),
		moments: Moments{Mean: e.values[0], M2: e.values[1]}, sums: GradSums{G: e.values[0], GD: e.values[1]},
	}
}

// forward is a whole pass. It returns the number of values per channel of the whole
// batch.
func (s *synced) forward(p *Plan, a *ForwardArgs) (total int, err error) {
	if err := s.beginForward(p, a, false); err != nil {
		return 0, err
	}
	return s.wait()
}

func (s *synced) backward(p *Plan, a *BackwardArgs) error {
	if err := s.beginBackward(p, a, false); err != nil {
		return err
	}
	_, err := s.wait()
	return err
}

func (s *synced) beginForward(p *Plan, a *ForwardArgs, background bool) error {
	if err := s.idle(); err != nil {
		return err
	}
	if err := checkPart(p, a); err != nil {
		return s.refuse(err)
	}
	if err := p.Moments(MomentsArgs{X: a.X, Mask: a.Mask, Moments: &s.moments}); err != nil {
		return s.refuse(err)
	}
	s.f, s.backwards = *a, false
	s.begin(p, kindForward, s.moments.Count, background)
	return nil
}

func (s *synced) beginBackward(p *Plan, a *BackwardArgs, background bool) error {
	if err := s.idle(); err != nil {
		return err
	}
	if err := checkBackwardPart(p, a); err != nil {
		return s.refuse(err)
	}
	if err := p.GradSums(GradSumsArgs{
		DY: a.DY, X: a.X, Residual: a.Residual, Gamma: a.Gamma, Beta: a.Beta, Mean: a.Mean, InvStd: a.InvStd, Mask: a.Mask, Sums: &s.sums,
	}); err != nil {
		return s.refuse(err)
	}
	s.b, s.backwards = *a, true
	s.begin(p, kindBackward, s.sums.Count, background)
	return nil
}

func (s *synced) idle() error {
	if s.plan != nil {
		return fail(ErrNoPass, "a pass of this plan is under way: call Wait before the next")
	}
	return s.group.Err()
}

// begin begins the exchange, in a goroutine of its own if it is to run in the
// background; otherwise wait runs it.
func (s *synced) begin(p *Plan, kind exchangeKind, count int, background bool) {
	s.plan, s.background = p, background
	s.exchange.begin(kind, count)
	if background {
		go s.exchange.background()
	}
}

// refuse tells the other ranks that this one can't take part, and returns the reason.
func (s *synced) refuse(why error) error {
	s.exchange.begin(kindRefused, 0)
	s.exchange.run() // its error is for the other ranks
	return why
}

// wait ends the pass under way. It returns the number of values per channel of the
// whole batch.
func (s *synced) wait() (total int, err error) {
	p := s.plan
	if p == nil {
		return 0, fail(ErrNoPass, "Wait needs BeginForward or BeginBackward before it")
	}
	if s.background {
		err = <-s.exchange.done
	} else {
		err = s.exchange.run()
	}
	f, b := s.f, s.b
	s.plan, s.f, s.b = nil, ForwardArgs{}, BackwardArgs{}
	if err != nil {
		return 0, err
	}
	total = s.exchange.count
	if total > 0 && total < p.fewest() {
		return 0, fail(ErrTooFewValues, "the parts of all %d ranks have %d values per channel together, training needs at least %d",
			s.group.size, total, p.fewest())
	}
	if s.backwards {
		return total, s.finishBackward(p, &b)
	}
	return total, s.finishForward(p, &f)
}

func (s *synced) finishForward(p *Plan, a *ForwardArgs) error {
	whole := Moments{Count: s.exchange.count, Mean: s.exchange.values[0], M2: s.exchange.values[1]}
	if err := p.Statistics(StatisticsArgs{
		Moments: whole, Mean: s.mean, InvStd: s.invstd, BatchMean: a.BatchMean, BatchVar: a.BatchVar,
		RunningMean: a.RunningMean, RunningVar: a.RunningVar, Momentum: a.Momentum,
	}); err != nil {
		return err
	}
	copyCut(a.Mean, s.mean)
	copyCut(a.InvStd, s.invstd)
	return p.Normalize(NormalizeArgs{
		X: a.X, Residual: a.Residual, Gamma: a.Gamma, Beta: a.Beta, Mask: a.Mask, Mean: s.mean, InvStd: s.invstd, Y: a.Y,
	})
}

func (s *synced) finishBackward(p *Plan, a *BackwardArgs) error {
	whole := GradSums{Count: s.exchange.count, G: s.exchange.values[0], GD: s.exchange.values[1]}
	if whole.Count == 0 {
		clearCut(a.DGamma)
		clearCut(a.DBeta)
		if !a.Mask.KeepPadding {
			clearCut(a.DX)
			clearCut(a.DResidual)
		}
		return nil
	}
	return p.InputGrad(InputGradArgs{
		DY: a.DY, X: a.X, Residual: a.Residual, Gamma: a.Gamma, Beta: a.Beta, Mean: a.Mean, InvStd: a.InvStd, Mask: a.Mask,
		Sums: whole, DX: a.DX, DResidual: a.DResidual, DGamma: a.DGamma, DBeta: a.DBeta,
	})
}

// checkPart validates the arguments of a forward pass over a part, which may
// have few values or none.
func checkPart(p *Plan, a *ForwardArgs) error {
	k := p.shape.checker()
	a.check(&k, 1)
	if err := k.check(); err != nil {
		return err
	}
	if err := a.Momentum.valid(); err != nil {
		return err
	}
	_, err := a.Mask.count(p.shape)
	return err
}

// checkBackwardPart validates the arguments of a backward pass over a part, which
// needs the statistics that the forward pass saved.
func checkBackwardPart(p *Plan, a *BackwardArgs) error {
	k := p.shape.checker()
	a.check(&k, 1)
	k.require("mean", "invstd")
	if err := k.check(); err != nil {
		return err
	}
	_, err := a.Mask.count(p.shape)
	return err
}
