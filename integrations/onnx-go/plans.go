package onnxgobn

import (
	"sync"

	"github.com/fusedbn/batchnorm"
)

// planner keeps the plans of the nodes.
type planner struct {
	opts []batchnorm.Option

	mu    sync.Mutex
	plans map[planKey]*batchnorm.Plan
}

type planKey struct {
	shape             batchnorm.Shape
	epsilon, momentum float64
}

// maxPlans bounds the memory of a server that meets ever new shapes.
const maxPlans = 256

func (p *planner) plan(key planKey) (*batchnorm.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if plan := p.plans[key]; plan != nil {
		return plan, nil
	}
	opts := append([]batchnorm.Option{batchnorm.ONNX()}, p.opts...)
	opts = append(opts, batchnorm.WithEpsilon(key.epsilon), batchnorm.WithMomentum(batchnorm.OldWeight(key.momentum)))
	plan, err := batchnorm.NewPlan(key.shape, opts...)
	if err != nil {
		return nil, err
	}
	if p.plans == nil || len(p.plans) == maxPlans {
		p.plans = make(map[planKey]*batchnorm.Plan)
	}
	p.plans[key] = plan
	return plan, nil
}
