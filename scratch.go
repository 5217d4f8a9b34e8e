package batchnorm

import "sync"

// scratch is the scratch memory of the calls of one plan, or of all plans of a [Plans].
// It grows with the first call of a plan, and when more calls overlap than did before;
// other calls allocate nothing.
type scratch struct {
	calls int // number of calls that overlap from the first on; 0 stands for 1

	workspaces pool[*workspace]
	rows       taskPool[*rowScratch]
	buffers    taskPool[*buffers]
}

// take returns a workspace that fits a plan: for calls with a source if masked is set. It
// prefers one that fits already.
func (s *scratch) take(p *Plan, masked bool) *workspace {
	w := s.workspaces.take(newWorkspace, func(w *workspace) bool { return w.plan == p && w.masked == masked })
	if w.plan != p || w.masked != masked {
		w.fit(p, s, masked)
	}
	return w
}

// reserve makes workspaces for the calls that overlap from the first on, with room for
// the plan, and for smaller plans, with a mask like m.
func (s *scratch) reserve(p *Plan, m *Mask) {
	l := &s.workspaces
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.free) < s.calls {
		l.free = append(l.free, newWorkspace())
	}
	for _, w := range l.free {
		if w.plan == nil {
			w.fit(p, s, false)
		}
		if m.given() {
			if !w.gathers {
				w.fit(p, s, true)
			}
			w.gathered.reserve(m, p.shape)
		}
	}
}

// pool is a free list: calls and tasks take elements from it, and give them back.
type pool[T any] struct {
	mu   sync.Mutex
	free []T
}

// take returns the element that was given back last, of those that fit if there are any,
// or makes one. A nil fits prefers none.
func (l *pool[T]) take(newT func() T, fits func(T) bool) T {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.free) - 1
	if last < 0 {
		return newT()
	}
	if fits != nil {
		for i := last; i >= 0; i-- {
			if fits(l.free[i]) {
				l.free[i], l.free[last] = l.free[last], l.free[i]
				break
			}
		}
	}
	return l.pop()
}

// pop takes the last element out of the list, which is locked and not empty.
func (l *pool[T]) pop() T {
	last := len(l.free) - 1
	v := l.free[last]
	l.free = l.free[:last]
	return v
}

func (l *pool[T]) give(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, v)
}

// taskPool is a pool of memory for the tasks that run at a time. The first task of a call
// allocates for all of its tasks, if the pool is too small, so that later calls allocate
// nothing.
type taskPool[T interface{ room() int }] struct {
	pool[T]
	made int // number of elements, in use or not
	room int // least room of an element
}

// quota is a call's use of a task pool: n elements at a time, with room for a number of
// channels.
type quota[T interface{ room() int }] struct {
	pool    *taskPool[T]
	n, room int
	make    func(room int) T
}

func (s *quota[T]) take() T {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room < s.room {
		p.room = s.room
		for i := range p.free {
			p.free[i] = s.make(p.room)
		}
	}
	if p.made < s.n && cap(p.free) < 2*s.n {
		p.free = append(make([]T, 0, 2*s.n), p.free...)
	}
	for ; p.made < s.n; p.made++ {
		p.free = append(p.free, s.make(p.room))
	}
	if len(p.free) == 0 { // calls overlap, or an executor runs more tasks at a time than WithWorkers says
		p.made++
		return s.make(p.room)
	}
	return p.pop()
}

func (s *quota[T]) give(v T) {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.room() < p.room { // another call has asked for more in the meantime
		v = s.make(p.room)
	}
	p.free = append(p.free, v)
}

// slab is memory that slices are cut from, one after the other.
type slab[T any] struct {
	all  []T
	used int
}

// begin forgets the slices that were cut.
func (s *slab[T]) begin() { s.used = 0 }

// cut returns the next n values, or nil if there are too few left.
func (s *slab[T]) cut(n int) []T {
	first := s.used
	s.used += n
	if s.used > len(s.all) {
		return nil
	}
	return s.all[first:s.used:s.used]
}

// cutRoomy is cut for values with room for whole vectors from any of them on: for 7 values
// more. The slices that follow remain aligned.
func (s *slab[T]) cutRoomy(n int) []T {
	all := s.cut(roundUp(n+lanes-1, lanes))
	return all[:min(n, len(all))]
}

// grow reports whether all slices were cut, and makes room for them if not.
func (s *slab[T]) grow() bool {
	if s.used <= len(s.all) {
		return true
	}
	s.all = make([]T, s.used)
	return false
}
