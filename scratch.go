package batchnorm

import "sync"

// pool is scratch memory for the tasks of a call that run at a time. It is allocated
// when it is first needed, for all of them, so that later calls allocate nothing.
type pool[T any] struct {
	n    int // how many are needed at a time
	make func() *T

	mu   sync.Mutex
	free []*T
	made bool
}

func (p *pool[T]) take() *T {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.made {
		p.made = true
		p.free = make([]*T, 0, 2*p.n)
		for range p.n {
			p.free = append(p.free, p.make())
		}
	}
	n := len(p.free)
	if n == 0 { // an executor runs more tasks at a time than it said
		return p.make()
	}
	s := p.free[n-1]
	p.free = p.free[:n-1]
	return s
}

func (p *pool[T]) give(s *T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, s)
}
