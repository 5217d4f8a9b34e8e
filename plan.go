package batchnorm

// A Plan is made once for a shape and a set of options, and then called for
// every batch of this shape. Its methods may be called from several goroutines at a
// time. Each call has scratch memory of its own, which is allocated when more calls
// overlap than did before.
type Plan struct {
	options
	shape  Shape
	geo    geometry
	folded [2 * minWidth]uint8 // channels, by column, where few columns are folded

	own scratch // unless the options have a shared one
}

// NewPlan validates the shape and the options. Scratch memory is allocated by the
// first call that needs it.
func NewPlan(s Shape, opts ...Option) (*Plan, error) {
	if err := s.Valid(); err != nil {
		return nil, err
	}
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	p := &Plan{options: o, shape: s, geo: newGeometry(s), folded: foldedChannels(s)}
	p.boundWorkers(s)
	return p, nil
}

// Shape returns the shape that the plan was made for.
func (p *Plan) Shape() Shape { return p.orNone().shape }

// Epsilon returns the number that is added to the variance.
func (p *Plan) Epsilon() float64 { return p.orNone().epsilon }

// Activation returns the fused activation.
func (p *Plan) Activation() Activation { return p.orNone().act }

// Path returns the implementation that the plan uses.
func (p *Plan) Path() Path { return p.orNone().path }

// orNone returns the zero plan in place of nil.
func (p *Plan) orNone() *Plan {
	if p == nil {
		return &Plan{}
	}
	return p
}

// ready reports ErrNilPlan for a plan that NewPlan did not make.
func (p *Plan) ready() error {
	if p == nil || p.shape.Channels == 0 {
		return fail(ErrNilPlan, "plan is nil or was not made by NewPlan")
	}
	return nil
}

// acquire returns a workspace for a call on n positions per channel: a gathering one if
// the mask leaves positions out, or if values are computed before kernels read them,
// otherwise a plain one.
func (p *Plan) acquire(m *Mask, n int, computed bool) *workspace {
	masked := n != p.shape.PerChannel() || computed
	w := p.memory().take(p, masked)
	w.call = call{}
	if masked {
		w.call = call{source: &w.gathered}
		w.gathered.begin(m, n, p.workers)
		w.gathered.inverted, w.gathered.inverse = computed, p.act
	}
	w.values = float64(n)
	return w
}

// memory returns the scratch memory of the plan's calls.
func (p *Plan) memory() *scratch {
	if p.scratch != nil {
		return p.scratch
	}
	return &p.own
}

// release takes a workspace back, and drops its references to the caller's memory. A
// call that panics does not release its workspace, whose state is unknown.
func (p *Plan) release(w *workspace) {
	w.call = call{}
	p.memory().workspaces.give(w)
}

// Explain describes in short how a call of the plan is carried out: the layout, the
// number of channels that are summed and applied together, whether outputs are written
// in turns with the sums of the next group, whether stores are non-temporal, whether
// moments of columns are taken in strips, and whether columns are written in order, row by
// row, or several rows as one. It helps to read times; it has no effect on results, and may
// change with every version.
// backward stands for [Plan.Backward] instead of [Plan.Forward], residual for a call
// with a residual and its gradient. The description is of a call that does not work in
// place.
func (p *Plan) Explain(backward, residual bool) string {
	if p.ready() != nil {
		return ""
	}
	s := situation{path: p.path, workers: p.workers, backward: backward, do: bothPhases, reads: 1, writes: 1,
		costly: backward && p.act.costly(), storable: backward, calls: p.act.variant() == actCalled}
	if backward {
		s.reads++
	}
	if residual {
		s.reads++
		if backward {
			s.writes++
		}
	}
	return choose(&p.geo, s, p.limits).String()
}
