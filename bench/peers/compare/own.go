package main

import (
	"fmt"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// ownName names this package among the implementations.
const ownName = "batchnorm"

// own is this package, in the place of a peer.
type own struct {
	problem     peer.Problem
	plan        *batchnorm.Plan
	out         peer.Outputs
	mean        []float64
	invstd      []float64
	operationOf map[peer.Op]func() error
}

// Load prepares a problem.
func (o *own) Load(p peer.Problem, threads int) (err error) {
	if p.Layout == peer.NCHW8c {
		return peer.Unsupported("layout %s", p.Layout)
	}
	act := batchnorm.Identity
	if p.ReLU {
		act = batchnorm.ReLU
	}
	var s batchnorm.Shape
	s.Outer, s.Channels, s.Inner = p.Shape()
	o.plan, err = batchnorm.NewPlan(s, batchnorm.WithWorkers(threads), batchnorm.WithEpsilon(p.Epsilon), batchnorm.WithActivation(act))
	if err != nil {
		return err
	}
	tensor, perChannel := func() []float32 { return make([]float32, p.Len()) }, func() []float32 { return make([]float32, p.C) }
	o.problem = p
	o.out = peer.Outputs{Y: tensor(), Inference: tensor(), DX: tensor(), DGamma: perChannel(), DBeta: perChannel()}
	o.mean, o.invstd = make([]float64, p.C), make([]float64, p.C)
	o.operationOf = map[peer.Op]func() error{
		peer.Forward: func() error {
			return o.plan.Forward(batchnorm.ForwardArgs{X: p.X, Gamma: p.Gamma, Beta: p.Beta, Y: o.out.Y, Mean: o.mean, InvStd: o.invstd})
		},
		peer.Inference: func() error {
			return o.plan.Inference(batchnorm.InferenceArgs{X: p.X, Gamma: p.Gamma, Beta: p.Beta, Y: o.out.Inference, Mean: p.Mean, Var: p.Var})
		},
		peer.Backward: func() error {
			return o.plan.Backward(batchnorm.BackwardArgs{DY: p.DY, X: p.X, Gamma: p.Gamma, Beta: p.Beta, Mean: o.mean, InvStd: o.invstd,
				DX: o.out.DX, DGamma: o.out.DGamma, DBeta: o.out.DBeta})
		},
	}
	return nil
}

// Run runs an operation some times, and returns how long each took.
func (o *own) Run(op peer.Op, times int) ([]time.Duration, error) {
	took := make([]time.Duration, times)
	for i := range took {
		var err error
		if took[i] = peer.Time(func() { err = o.operationOf[op]() }); err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
	}
	return took, nil
}

// Outputs returns the results.
func (o *own) Outputs() (peer.Outputs, error) { return o.out, nil }

// Close does nothing.
func (o *own) Close() error { return nil }
