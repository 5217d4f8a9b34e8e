package gonnxbn

import (
	"sync"

	"github.com/fusedbn/batchnorm"
)

// planner keeps the plans of a model: a [batchnorm.Plans] for each set of
// attributes that its nodes have.
type planner struct {
	opts []batchnorm.Option

	mu    sync.Mutex
	plans map[attributes]*batchnorm.Plans
}

// attributes are those that a plan is made with.
type attributes struct {
	epsilon, momentum float64
	relu              bool
}

func (p *planner) plan(s batchnorm.Shape, a attributes) (*batchnorm.Plan, error) {
	plans, err := p.plansOf(a)
	if err != nil {
		return nil, err
	}
	return plans.Plan(s)
}

func (p *planner) plansOf(a attributes) (*batchnorm.Plans, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if plans := p.plans[a]; plans != nil {
		return plans, nil
	}
	opts := append([]batchnorm.Option{batchnorm.ONNX()}, p.opts...)
	opts = append(opts, batchnorm.WithEpsilon(a.epsilon), batchnorm.WithMomentum(batchnorm.OldWeight(a.momentum)))
	if a.relu {
		opts = append(opts, batchnorm.WithActivation(batchnorm.ReLU))
	}
	plans, err := batchnorm.NewPlans(opts...)
	if err != nil {
		return nil, err
	}
	if p.plans == nil {
		p.plans = make(map[attributes]*batchnorm.Plans)
	}
	p.plans[a] = plans
	return plans, nil
}
