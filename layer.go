package batchnorm

import (
	"fmt"
	"math"
	"slices"
)

// A Layer is a batch norm with its memory: gamma and beta, their gradients, the
// running statistics, and the saved state between forward and backward pass. It is for
// models written by hand; a framework that has its own memory calls a [Plan].
//
// The exported fields may be read and written between calls; an optimizer
// updates Gamma and Beta by DGamma and DBeta in place. The slices have an
// element for each channel. Any of them may be set to nil: without Gamma the scale is
// 1, and without Beta the shift is 0. Without DGamma, or without Gamma, that gradient is
// not computed and DGamma stays as it is; the same holds for DBeta and Beta. Without
// RunningMean and RunningVar nothing is tracked. One of these two alone is [ErrMissing].
//
// A Layer is for one goroutine at a time, except that several goroutines may call
// [Layer.Inference] while none of them changes the layer.
type Layer struct {
	Gamma, Beta   []float32 // 1 and 0 in a new layer
	DGamma, DBeta []float32 // gradients, set or added to by Backward

	RunningMean, RunningVar []float32 // 0 and 1 in a new layer
	BatchesTracked          int64     // number of batches in the running statistics; it stops at its largest value

	// Momentum is the weight of a batch in the running statistics. The zero
	// value stands for the momentum of the layer's options.
	Momentum Momentum
	// Cumulative makes the running statistics the plain average of the batches
	// tracked (PyTorch's momentum=None), whatever Momentum is.
	Cumulative bool
	// Precise, if it is not nil, takes in the statistics of every batch that a training
	// forward pass tracks, at the cost of one more read of X: see SetRunning.
	Precise *Precise
	// Accumulate makes Backward add to DGamma and DBeta, for a batch in several
	// pieces. Otherwise it overwrites them.
	Accumulate bool

	channels   int
	epsilon    float64
	opts       []Option
	evaluating bool

	sync                *synced // nil: not synchronized
	plans               *Plans
	kept                keptForward
	mean, invstd        []float64
	sums                []float64 // mean and m2 of a batch, for Precise
	oldDGamma, oldDBeta []float32 // before Backward, when it accumulates
}

// keptForward holds the operands of a forward pass for Backward. The statistics are
// kept in the layer. The zero value stands for no forward pass.
type keptForward struct {
	plan        *Plan
	x, residual []float32
	mask        Mask
	frozen      bool // normalized by the running statistics
}

// NewLayer returns a layer for tensors with this number of channels, in training mode,
// with gamma 1, beta 0, running mean 0 and running variance 1. The options are
// those of [NewPlans]; PyTorch's defaults are the default.
func NewLayer(channels int, opts ...Option) (*Layer, error) {
	plans, err := NewPlans(opts...)
	if err != nil {
		return nil, err
	}
	p, err := NewPlan(Shape{1, channels, 1}, opts...)
	if err != nil {
		return nil, err
	}
	l := &Layer{
		Gamma: make([]float32, channels), Beta: make([]float32, channels),
		DGamma: make([]float32, channels), DBeta: make([]float32, channels),
		RunningMean: make([]float32, channels), RunningVar: make([]float32, channels),
		channels: channels, epsilon: p.epsilon, opts: slices.Clone(opts), plans: plans,
	}
	l.allocate()
	l.Reset()
	return l, nil
}

// allocate makes the memory that no other layer shares.
func (l *Layer) allocate() {
	l.sums = make([]float64, 2*l.channels)
	l.mean, l.invstd = make([]float64, l.channels), make([]float64, l.channels)
	l.oldDGamma, l.oldDBeta = make([]float32, l.channels), make([]float32, l.channels)
}

func (l *Layer) ready() error {
	if l == nil || l.channels == 0 {
		return fail(ErrNilLayer, "layer is nil or was not made by NewLayer")
	}
	return nil
}

// Channels returns the number of channels.
func (l *Layer) Channels() int {
	if l.ready() != nil {
		return 0
	}
	return l.channels
}

// Train sets training mode: Forward normalizes by the statistics of the batch
// and updates the running ones.
func (l *Layer) Train() { l.evaluate(false) }

// Eval sets evaluation mode: Forward normalizes by the running statistics.
func (l *Layer) Eval() { l.evaluate(true) }

func (l *Layer) evaluate(evaluating bool) {
	if l != nil {
		l.evaluating = evaluating
	}
}

// Training reports whether the layer is in training mode.
func (l *Layer) Training() bool { return l != nil && !l.evaluating }

// Reset sets the state of a new layer: gamma 1, beta 0, gradients 0, and no statistics
// tracked. Mode and options stay.
func (l *Layer) Reset() {
	if l == nil {
		return
	}
	for c := range l.Gamma {
		l.Gamma[c] = 1
	}
	clear(l.Beta)
	l.kept = keptForward{}
	l.ZeroGrad()
	l.ResetRunning()
}

// ResetRunning sets the running mean to 0, the running variance to 1 and the
// number of batches tracked to 0.
func (l *Layer) ResetRunning() {
	if l == nil {
		return
	}
	clear(l.RunningMean)
	for c := range l.RunningVar {
		l.RunningVar[c] = 1
	}
	l.BatchesTracked = 0
}

// ZeroGrad sets the gradients to 0.
func (l *Layer) ZeroGrad() {
	if l == nil {
		return
	}
	clear(l.DGamma)
	clear(l.DBeta)
}

// Clone returns a layer with copies of the parameters, gradients and running
// statistics, in the same mode. A forward pass that waits for Backward is not copied.
func (l *Layer) Clone() (*Layer, error) {
	if err := l.ready(); err != nil {
		return nil, err
	}
	plans, err := NewPlans(l.opts...)
	if err != nil {
		return nil, err
	}
	c := &Layer{
		Gamma: slices.Clone(l.Gamma), Beta: slices.Clone(l.Beta), DGamma: slices.Clone(l.DGamma), DBeta: slices.Clone(l.DBeta),
		RunningMean: slices.Clone(l.RunningMean), RunningVar: slices.Clone(l.RunningVar), BatchesTracked: l.BatchesTracked,
		Momentum: l.Momentum, Cumulative: l.Cumulative, Accumulate: l.Accumulate,
		channels: l.channels, epsilon: l.epsilon, opts: l.opts, plans: plans, evaluating: l.evaluating,
	}
	c.allocate()
	return c, nil
}

// Affine returns the layer's inference as an [Affine], to be folded into the layer
// before or after it.
func (l *Layer) Affine() (*Affine, error) {
	if err := l.ready(); err != nil {
		return nil, err
	}
	return NewAffine(AffineArgs{Gamma: l.Gamma, Beta: l.Beta, Mean: l.RunningMean, Var: l.RunningVar}, l.opts...)
}

// LayerForwardArgs are the arguments of [Layer.Forward] and [Layer.Inference].
// The slices have Shape.Len() elements.
type LayerForwardArgs struct {
	Shape    Shape     // of this batch; Shape.Channels is the layer's
	X        []float32 // input
	Residual []float32 // added before the activation; nil: none
	Mask     Mask      // which positions are data; zero value: all

	Y []float32 // output

	// Untracked leaves the running statistics and BatchesTracked unchanged in training
	// mode. It is for the second forward pass of a batch with checkpointing, where the
	// activations of the first were dropped to save memory. Y gets the same bits, and
	// the batch counts once.
	Untracked bool
}

// Forward normalizes a batch of any shape with the layer's channels.
//
// In training mode it is [Plan.Forward], and updates the running statistics; a
// batch without values is not counted in BatchesTracked. In evaluation mode it is
// [Plan.Inference]; a layer without running statistics normalizes by those of the
// batch, as in training.
//
// The layer keeps references to X, to the mask's slices and, if it has an
// activation, to Residual, until Backward or the next Forward. Until then these,
// Gamma, Beta and, in evaluation mode, the running statistics must not change. So in
// training Y must be apart from X, and with an activation from Residual ([ErrAlias]).
// In evaluation mode Y may be one of them; then Backward is not possible.
//
// The layer keeps plans for its last shapes, up to [WithCapacity] of them; a call with
// one of these shapes allocates nothing.
func (l *Layer) Forward(a LayerForwardArgs) error {
	if err := l.ready(); err != nil {
		return err
	}
	p, err := l.plan(a.Shape)
	if err != nil {
		return l.refuse(err)
	}
	if err := l.checkRunning(); err != nil {
		return l.refuse(err)
	}
	kept := keptForward{plan: p, x: a.X, mask: a.Mask}
	if p.act != Identity {
		kept.residual = a.Residual
	}
	// The plan allows these aliases, but Backward does not.
	ops := [...]operand{float32s("x", kept.x), float32s("residual", kept.residual), float32s("y", a.Y).out(0)}
	lost := apart(ops[:])

	if l.evaluating && l.RunningMean != nil {
		if err := l.Inference(a); err != nil {
			return err
		}
		if l.kept = kept; lost != nil {
			l.kept = keptForward{}
		}
		l.kept.frozen = true
		return nil
	}
	if lost != nil {
		return l.refuse(fmt.Errorf("%w: Backward reads x and, if there is an activation, the residual", lost))
	}
	momentum, runningMean, runningVar := l.Momentum, l.RunningMean, l.RunningVar
	if l.Cumulative {
		momentum = NewWeight(1 / (float64(l.BatchesTracked) + 1))
	}
	if a.Untracked {
		runningMean, runningVar = nil, nil
	}
	if l.Precise != nil {
		if err := l.Precise.fits(l.channels); err != nil {
			return l.refuse(err)
		}
	}
	n, err := l.train(p, &ForwardArgs{
		X: a.X, Residual: a.Residual, Gamma: l.Gamma, Beta: l.Beta, Mask: a.Mask, Y: a.Y, Mean: l.mean, InvStd: l.invstd,
		RunningMean: runningMean, RunningVar: runningVar, Momentum: momentum,
	})
	if err != nil {
		return err
	}
	if l.Precise != nil && !a.Untracked {
		m := Moments{Mean: l.sums[:l.channels], M2: l.sums[l.channels:]}
		if err := p.Moments(MomentsArgs{X: a.X, Mask: a.Mask, Moments: &m}); err != nil {
			return err
		}
		if err := l.Precise.Add(m); err != nil {
			return err
		}
	}
	if n > 0 && runningMean != nil && l.BatchesTracked < math.MaxInt64 {
		l.BatchesTracked++
	}
	l.kept = kept
	return nil
}

// checkRunning returns an error if one of the running statistics is missing.
func (l *Layer) checkRunning() error {
	switch {
	case l.RunningMean == nil && l.RunningVar != nil:
		return fail(ErrMissing, "running mean is missing beside the running variance: a layer has both or neither")
	case l.RunningMean != nil && l.RunningVar == nil:
		return fail(ErrMissing, "running variance is missing beside the running mean: a layer has both or neither")
	case l.BatchesTracked < 0:
		return fail(ErrState, "batches tracked is %d, must be at least 0", l.BatchesTracked)
	}
	return nil
}

// SetRunning replaces the running statistics by the moments of many batches, for
// example those of a [Precise]. The layer's options choose the variance. Moments of no
// values (Count 0) leave the running statistics.
//
// Running statistics lag behind weights that still change, and inference can then be
// far worse than training. Taking them again with the final weights mends it:
//
//	n := layer.Channels()
//	m := batchnorm.Moments{Mean: make([]float64, n), M2: make([]float64, n)}
//	layer.Precise, err = batchnorm.NewPrecise(n)
//	// ... Forward of many batches, in training mode ...
//	err = layer.Precise.Moments(&m)
//	layer.Precise = nil
//	err = layer.SetRunning(m)
func (l *Layer) SetRunning(m Moments) error {
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.checkRunning(); err != nil {
		return err
	}
	if l.RunningMean == nil {
		return fail(ErrMissing, "running mean is missing: the layer tracks nothing")
	}
	p, err := l.plan(Shape{1, l.channels, 1})
	if err != nil {
		return err
	}
	return p.Statistics(StatisticsArgs{Moments: m, RunningMean: l.RunningMean, RunningVar: l.RunningVar, Momentum: NewWeight(1)})
}

// Inference normalizes a batch by the running statistics, in either mode. It changes
// nothing in the layer: Backward after it still belongs to the last Forward. Y may be
// X or Residual.
func (l *Layer) Inference(a LayerForwardArgs) error {
	if err := l.ready(); err != nil {
		return err
	}
	p, err := l.plan(a.Shape)
	if err != nil {
		return err
	}
	return p.Inference(InferenceArgs{
		X: a.X, Residual: a.Residual, Gamma: l.Gamma, Beta: l.Beta, Mean: l.RunningMean, Var: l.RunningVar, Mask: a.Mask, Y: a.Y,
	})
}

// LayerBackwardArgs are the arguments of [Layer.Backward]. The slices have as
// many elements as those of the forward pass. Aliasing is as in [BackwardArgs].
type LayerBackwardArgs struct {
	DY []float32 // gradient of the loss by y

	DX        []float32 // output: gradient by x; nil: not wanted
	DResidual []float32 // output: gradient by the residual; nil: not wanted
}

// Backward computes the gradients of the last Forward, with the statistics as
// functions of x in training mode ([Plan.Backward]) and as constants in
// evaluation mode ([Plan.FrozenBackward]). It sets DGamma and DBeta, or adds to
// them if Accumulate is set. Then the layer drops its references: a second Backward
// after one Forward is [ErrNoForward]. After an error Backward may be called again.
func (l *Layer) Backward(a LayerBackwardArgs) error {
	if err := l.ready(); err != nil {
		return err
	}
	k := &l.kept
	if k.plan == nil {
		if k.frozen {
			return fail(ErrNoForward, "Backward needs what the last Forward has overwritten: y was x or the residual")
		}
		return l.refuse(fail(ErrNoForward, "Backward needs a Forward before it, and only one Backward follows it"))
	}
	var dgamma, dbeta []float32
	if l.Gamma != nil {
		dgamma = l.DGamma
	}
	if l.Beta != nil {
		dbeta = l.DBeta
	}
	if l.Accumulate {
		copyCut(l.oldDGamma, dgamma)
		copyCut(l.oldDBeta, dbeta)
	}
	var err error
	if k.frozen {
		err = k.plan.FrozenBackward(FrozenBackwardArgs{
			DY: a.DY, X: k.x, Residual: k.residual, Gamma: l.Gamma, Beta: l.Beta, Mean: l.RunningMean, Var: l.RunningVar,
			Mask: k.mask, DX: a.DX, DResidual: a.DResidual, DGamma: dgamma, DBeta: dbeta,
		})
	} else {
		err = l.trainBack(k.plan, &BackwardArgs{
			DY: a.DY, X: k.x, Residual: k.residual, Gamma: l.Gamma, Beta: l.Beta, Mean: l.mean, InvStd: l.invstd,
			Mask: k.mask, DX: a.DX, DResidual: a.DResidual, DGamma: dgamma, DBeta: dbeta,
		})
	}
	if err != nil {
		return err
	}
	if l.Accumulate {
		add(dgamma, l.oldDGamma)
		add(dbeta, l.oldDBeta)
	}
	l.kept = keptForward{}
	return nil
}

func add(sum, v []float32) {
	for i := range sum {
		sum[i] += v[i]
	}
}

// plan returns the plan for a shape, one of those kept or a new one.
func (l *Layer) plan(s Shape) (*Plan, error) {
	if err := s.Valid(); err != nil {
		return nil, err
	}
	if s.Channels != l.channels {
		return nil, fail(ErrShape, "shape %v has %d channels, the layer has %d", s, s.Channels, l.channels)
	}
	return l.plans.Plan(s)
}
