package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// BenchmarkModes compares the time of a mode with the plain pass on the same data: the two
// take turns, and times-plain is the ratio of their medians.
func BenchmarkModes(b *testing.B) {
	for _, dims := range [][]int{{32, 64, 56, 56}, {32, 256, 14, 14}, {8, 64, 16, 16}} {
		n, c, hw := dims[0], dims[1], dims[2]*dims[3]
		for layout, s := range map[string]batchnorm.Shape{
			"nchw": {Outer: n, Channels: c, Inner: hw},
			"nhwc": {Outer: n * hw, Channels: c, Inner: 1},
		} {
			for _, workers := range []int{1, 2} {
				for _, m := range modes(b, s, n, workers) {
					b.Run(fmt.Sprintf("mode=%s/layout=%s/shape=%v/workers=%d", m.name, layout, dims, workers), func(b *testing.B) {
						var plain, mode []time.Duration
						took := func(f func() error) time.Duration {
							start := time.Now()
							if err := f(); err != nil {
								b.Fatal(err)
							}
							return time.Since(start)
						}
						for b.Loop() {
							plain, mode = append(plain, took(m.plain)), append(mode, took(m.call))
						}
						slices.Sort(plain)
						slices.Sort(mode)
						b.ReportMetric(mode[len(mode)/2].Seconds()/plain[len(plain)/2].Seconds(), "times-plain")
					})
				}
			}
		}
	}
}

// modeCase is a mode with the pass that it is compared with.
type modeCase struct {
	name        string
	plain, call func() error
}

func modes(b *testing.B, s batchnorm.Shape, samples, workers int) []modeCase {
	made := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	p, err := batchnorm.NewPlan(s, batchnorm.WithWorkers(workers))
	made(err)
	size := samples / 4
	g, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: samples, Size: size}, batchnorm.WithWorkers(workers))
	made(err)
	channel := func(v float64) []float32 { return gen.Uniform(9, s.Channels, v, v+1e-3) }
	stats := func(n int) []float64 { return make([]float64, n*s.Channels) }
	f := batchnorm.ForwardArgs{X: gen.Normal(1, s.Len(), 0, 1), Gamma: channel(1), Beta: channel(0), Y: make([]float32, s.Len()),
		Mean: stats(1), InvStd: stats(1), RunningMean: channel(0), RunningVar: channel(1)}
	d := batchnorm.BackwardArgs{DY: gen.Normal(2, s.Len(), 0, 1), X: f.X, Gamma: f.Gamma, Beta: f.Beta, Mean: f.Mean, InvStd: f.InvStd,
		DX: make([]float32, s.Len()), DGamma: channel(0), DBeta: channel(0)}
	made(p.Forward(f))
	y := slices.Clone(f.Y)
	forward, backward := func() error { return p.Forward(f) }, func() error { return p.Backward(d) }
	inference := batchnorm.InferenceArgs{X: f.X, Gamma: f.Gamma, Beta: f.Beta, Mean: f.RunningMean, Var: f.RunningVar, Y: f.Y}

	gf, gd := f, d
	gf.Mean, gf.InvStd = stats(g.Batches()), stats(g.Batches())
	gd.Mean, gd.InvStd = gf.Mean, gf.InvStd
	made(g.Forward(gf))

	lengths := make([]int, samples)
	each := s.PerChannel() / samples
	for i := range lengths {
		lengths[i] = each/2 + i*each/2/samples
	}
	random := make([]bool, s.PerChannel())
	for i, v := range gen.Uniform(3, len(random), 0, 1) {
		random[i] = v < 0.75
	}
	masked := func(m batchnorm.Mask) (forward, backward func() error) {
		f, d := f, d
		f.Mask, d.Mask = m, m
		return func() error { return p.Forward(f) }, func() error { return p.Backward(d) }
	}
	lengthsForward, lengthsBackward := masked(batchnorm.Mask{Lengths: lengths})
	randomForward, randomBackward := masked(batchnorm.Mask{Valid: random})

	moments := batchnorm.Moments{Mean: stats(1), M2: stats(1)}
	sums := batchnorm.GradSums{G: stats(1), GD: stats(1)}
	r := batchnorm.RenormForwardArgs{ForwardArgs: f, RMax: 3, DMax: 5, R: stats(1), D: stats(1)}
	return []modeCase{
		{"ghost-forward", forward, func() error { return g.Forward(gf) }},
		{"ghost-backward", backward, func() error { return g.Backward(gd) }},
		{"lengths-forward", forward, lengthsForward},
		{"lengths-backward", backward, lengthsBackward},
		{"random-forward", forward, randomForward},
		{"random-backward", backward, randomBackward},
		{"renorm-forward", forward, func() error { return p.RenormForward(r) }},
		{"from-y", backward, func() error {
			return p.BackwardFromY(batchnorm.BackwardFromYArgs{DY: d.DY, Y: y, Gamma: d.Gamma, Beta: d.Beta, InvStd: d.InvStd,
				DX: d.DX, DGamma: d.DGamma, DBeta: d.DBeta})
		}},
		{"frozen-backward", backward, func() error {
			return p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: d.DY, X: d.X, Gamma: d.Gamma, Beta: d.Beta, Mean: f.RunningMean, Var: f.RunningVar,
				DX: d.DX, DGamma: d.DGamma, DBeta: d.DBeta})
		}},
		{"frozen-dx", func() error { return p.Inference(inference) }, func() error {
			return p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: d.DY, X: d.X, Gamma: d.Gamma, Beta: d.Beta,
				Mean: f.RunningMean, Var: f.RunningVar, DX: d.DX})
		}},
		{"no-dx", backward, func() error {
			d := d
			d.DX = nil
			return p.Backward(d)
		}},
		{"pieces-forward", forward, func() error {
			if err := p.Moments(batchnorm.MomentsArgs{X: f.X, Moments: &moments}); err != nil {
				return err
			}
			if err := p.Statistics(batchnorm.StatisticsArgs{Moments: moments, Mean: f.Mean, InvStd: f.InvStd}); err != nil {
				return err
			}
			return p.Normalize(batchnorm.NormalizeArgs{X: f.X, Gamma: f.Gamma, Beta: f.Beta, Mean: f.Mean, InvStd: f.InvStd, Y: f.Y})
		}},
		{"pieces-backward", backward, func() error {
			if err := p.GradSums(batchnorm.GradSumsArgs{DY: d.DY, X: d.X, Gamma: d.Gamma, Beta: d.Beta,
				Mean: d.Mean, InvStd: d.InvStd, Sums: &sums}); err != nil {
				return err
			}
			return p.InputGrad(batchnorm.InputGradArgs{DY: d.DY, X: d.X, Gamma: d.Gamma, Beta: d.Beta, Mean: d.Mean, InvStd: d.InvStd, Sums: sums,
				DX: d.DX, DGamma: d.DGamma, DBeta: d.DBeta})
		}},
	}
}
