package batchnorm

import (
	"runtime"
	"sync"
)

// A Plan is made once for a shape and a set of options, and then called for
// every batch of that shape. Its methods allocate nothing and may be called
// from several goroutines at a time; each such call uses a workspace of its
// own, which is allocated the first time that so many calls overlap.
type Plan struct {
	options
	shape Shape
	geo   geometry

	mu       sync.Mutex
	free     []*work // workspaces not in use
	gathered []*work // those of calls that gather, see gather.go
}

// NewPlan validates the shape and the options, decides how the work is cut, and
// allocates the scratch memory of one call.
func NewPlan(s Shape, opts ...Option) (*Plan, error) {
	if err := s.Valid(); err != nil {
		return nil, err
	}
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	p := &Plan{options: o, shape: s, geo: newGeometry(s)}
	if p.workers == 0 {
		p.workers = 1
		if p.executor != nil {
			p.workers = runtime.GOMAXPROCS(0)
		}
	}
	p.boundWorkers(s)
	p.free = append(p.free, newWork(p))
	return p, nil
}

// Shape returns the shape that the plan was made for.
func (p *Plan) Shape() Shape { return p.orNone().shape }

// Epsilon returns what is added to the variance.
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

// acquire returns a workspace for one call.
func (p *Plan) acquire() *work {
	w := p.take(&p.free)
	if w == nil {
		w = newWork(p)
	}
	w.values = float64(p.shape.PerChannel())
	return w
}

// acquireGather returns a workspace for a call on n positions per channel, which
// are those that the mask leaves, or all.
func (p *Plan) acquireGather(m *Mask, n int) *work {
	w := p.take(&p.gathered)
	if w == nil {
		w = newGatherWork(p)
	}
	w.begin(m, n)
	return w
}

// acquireFor is the one or the other.
func (p *Plan) acquireFor(m *Mask, n int) *work {
	if n == p.shape.PerChannel() {
		return p.acquire()
	}
	return p.acquireGather(m, n)
}

func (p *Plan) take(free *[]*work) *work {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(*free)
	if n == 0 {
		return nil
	}
	w := (*free)[n-1]
	*free = (*free)[:n-1]
	return w
}

// release takes a workspace back. It forgets the caller's memory. One whose call
// panicked is dropped: nobody knows what a task had in hand.
func (p *Plan) release(w *work) {
	if w.busy {
		return
	}
	coef, acc, act := w.coef, w.acc, w.act
	w.kernelArgs = kernelArgs{coef: coef, acc: acc, act: act}
	w.call = call{}
	if w.behind != nil {
		*w.behind = work{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.gather != nil {
		p.gathered = append(p.gathered, w)
	} else {
		p.free = append(p.free, w)
	}
}
