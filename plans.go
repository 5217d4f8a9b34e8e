package batchnorm

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// DefaultCapacity is the number of plans that a [Plans] keeps without [WithCapacity].
const DefaultCapacity = 64

// Plans makes and keeps the plans of one set of options, for shapes that are known at
// run time only. It keeps as many plans as its capacity. When it is full, a new plan
// replaces one that was not used for long. The plans of the last shapes, 3/4 of the
// capacity, always stay; with a capacity below 8 the least recently used plan is
// replaced.
//
// It may be used by several goroutines at a time. Finding a plan takes no lock and
// no allocation; while no more than 1/4 of the capacity is in use, it writes nothing
// either, so that goroutines don't hold up one another. A new plan is made under a
// lock, and the time to choose the plan that it replaces grows with the capacity.
//
// The plans share their scratch memory: it is as large as the largest shape so far
// needs, for as many calls as overlapped. When the plan of a call is not that of the call
// before, the memory is divided anew, which takes well under a microsecond for some
// hundred channels.
type Plans struct {
	opts     []Option
	capacity int
	slots    []atomic.Pointer[plansEntry] // an open hash table, at most half full
	shift    uint8
	scratch  scratch // of the calls of all plans
	recent   uint64  // a plan used so few ticks ago counts as the one used last

	mu      sync.Mutex // held while slots and entries are written
	entries []*plansEntry

	_     [64]byte // the clock shares no cache line with the fields that every call reads
	clock atomic.Uint64
	_     [56]byte
}

// plansEntry is a plan and the time of its last use.
type plansEntry struct {
	shape Shape
	plan  *Plan
	used  atomic.Uint64
}

// NewPlans returns an empty Plans. The options are those of [NewPlan], and
// [WithCapacity].
func NewPlans(opts ...Option) (*Plans, error) {
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	p := &Plans{capacity: o.capacity, recent: max(1, uint64(o.capacity)/4)}
	p.opts = append(slices.Clone(opts), func(o *options) error {
		o.scratch = &p.scratch
		return nil
	})
	size := max(2, bits.Len(uint(2*p.capacity-1)))
	p.slots = make([]atomic.Pointer[plansEntry], 1<<size)
	p.shift = uint8(64 - size)
	return p, nil
}

// WithCapacity sets the number of plans that a [Plans] or a [Layer] keeps, from 1 to
// 65,536. [NewPlan] ignores it.
func WithCapacity(n int) Option {
	return func(o *options) error {
		if n < 1 || n > maxCapacity {
			return fail(ErrOption, "capacity is %d, must be from 1 to %d", n, maxCapacity)
		}
		o.capacity = n
		return nil
	}
}

const maxCapacity = 1 << 16

// Plan returns the plan for a shape, a kept one or a new one. A plan that is no longer
// kept stays valid.
func (p *Plans) Plan(s Shape) (*Plan, error) {
	if p == nil || len(p.slots) == 0 {
		return nil, fail(ErrNilPlan, "plans is nil or was not made by NewPlans")
	}
	if e := p.find(s); e != nil {
		p.touch(e)
		return e.plan, nil
	}
	return p.add(s)
}

// Len returns the number of plans that it keeps.
func (p *Plans) Len() int {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.entries)
}

// find returns the entry of a shape, or nil. While another goroutine moves entries
// it may miss one.
func (p *Plans) find(s Shape) *plansEntry {
	mask := len(p.slots) - 1
	i := p.home(s)
	for range p.slots {
		e := p.slots[i&mask].Load()
		if e == nil || e.shape == s {
			return e
		}
		i++
	}
	return nil
}

// home is the slot where the search for a shape begins.
func (p *Plans) home(s Shape) int {
	const k = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio, for multiplicative hashing
	h := uint64(s.Outer)
	h = bits.RotateLeft64(h*k, 27) ^ uint64(s.Channels)
	h = bits.RotateLeft64(h*k, 27) ^ uint64(s.Inner)
	return int(h * k >> p.shift)
}

// touch marks an entry as the one used last, unless it is among the last few already:
// every write to the clock holds up other goroutines.
func (p *Plans) touch(e *plansEntry) {
	if p.clock.Load()-e.used.Load() >= p.recent {
		e.used.Store(p.clock.Add(1))
	}
}

// add makes the plan of a shape, unless another goroutine has just done so.
func (p *Plans) add(s Shape) (*Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.find(s); e != nil {
		p.touch(e)
		return e.plan, nil
	}
	plan, err := NewPlan(s, p.opts...)
	if err != nil {
		return nil, err
	}
	e := &plansEntry{shape: s, plan: plan}
	e.used.Store(p.clock.Add(1))
	if len(p.entries) < p.capacity {
		p.entries = append(p.entries, e)
	} else {
		oldest := 0
		for i, other := range p.entries {
			if other.used.Load() < p.entries[oldest].used.Load() {
				oldest = i
			}
		}
		p.remove(p.entries[oldest])
		p.entries[oldest] = e
	}
	mask := len(p.slots) - 1
	i := p.home(s)
	for p.slots[i&mask].Load() != nil {
		i++
	}
	p.slots[i&mask].Store(e)
	return plan, nil
}

// remove takes an entry out of the table, and closes the gap: an entry after it moves
// there if its search begins at or before the gap (Knuth, The Art of Computer
// Programming, volume 3, algorithm 6.4R).
func (p *Plans) remove(e *plansEntry) {
	mask := len(p.slots) - 1
	gap := p.home(e.shape)
	for p.slots[gap&mask].Load() != e {
		gap++
	}
	for i := gap + 1; ; i++ {
		next := p.slots[i&mask].Load()
		if next == nil {
			break
		}
		if distance := (i - p.home(next.shape)) & mask; distance >= i-gap {
			p.slots[gap&mask].Store(next)
			gap = i
		}
	}
	p.slots[gap&mask].Store(nil)
}

// shapes returns the shapes of the kept plans, the last used first.
func (p *Plans) shapes() []Shape {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries := slices.Clone(p.entries)
	slices.SortFunc(entries, func(a, b *plansEntry) int {
		return int(int64(b.used.Load() - a.used.Load()))
	})
	list := make([]Shape, len(entries))
	for i, e := range entries {
		list[i] = e.shape
	}
	return list
}
