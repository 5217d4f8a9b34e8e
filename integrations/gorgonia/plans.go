package gorgoniabn

import (
	"sync"

	"github.com/fusedbn/batchnorm"
)

// plans keeps a plan for each shape that an operation has met. A graph fixes the
// shape of every node, so there is one as a rule.
type plans struct {
	opts []batchnorm.Option

	mu sync.Mutex
	of map[batchnorm.Shape]*batchnorm.Plan
}

// newPlans returns an error if the options are not valid.
func newPlans(opts ...batchnorm.Option) (*plans, error) {
	if _, err := batchnorm.NewPlan(batchnorm.Shape{Outer: 1, Channels: 1, Inner: 1}, opts...); err != nil {
		return nil, err
	}
	return &plans{opts: opts, of: make(map[batchnorm.Shape]*batchnorm.Plan)}, nil
}

// maxPlans is how many shapes are kept.
const maxPlans = 16

// Plan returns the plan of a shape.
func (p *plans) Plan(s batchnorm.Shape) (*batchnorm.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if plan := p.of[s]; plan != nil {
		return plan, nil
	}
	plan, err := batchnorm.NewPlan(s, p.opts...)
	if err != nil {
		return nil, err
	}
	if len(p.of) == maxPlans {
		clear(p.of)
	}
	p.of[s] = plan
	return plan, nil
}
