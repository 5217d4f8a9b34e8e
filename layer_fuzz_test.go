package batchnorm_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// layerModel is a layer without a cache of plans and without references to the caller's
// tensors: every call makes a plan, the layer keeps copies, and a pass that waits for
// Backward is a function. It has only the state that Layer's documentation names.
type layerModel struct {
	opts                    []batchnorm.Option
	channels                int
	gamma, beta             []float32
	dgamma, dbeta           []float32
	mean, variance          []float32
	batches                 int64
	momentum                batchnorm.Momentum
	cumulative, accumulate  bool
	evaluating, overwritten bool

	backward func(dy, dx, dresidual, dgamma, dbeta []float32) error // nil: no Forward waits
}

func (m *layerModel) forward(t *testing.T, a batchnorm.LayerForwardArgs, identity, inPlace bool) error {
	p := newPlan(t, a.Shape, m.opts...)
	if (m.mean == nil) != (m.variance == nil) {
		return batchnorm.ErrMissing
	}
	gamma, beta := m.gamma, m.beta
	x, residual := slices.Clone(a.X), slices.Clone(a.Residual)
	if m.evaluating && (m.mean != nil || m.variance != nil) {
		err := m.inference(t, a)
		if err != nil {
			return err
		}
		mean, variance, mask := m.mean, m.variance, a.Mask
		m.backward, m.overwritten = func(dy, dx, dresidual, dgamma, dbeta []float32) error {
			b := batchnorm.FrozenBackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, Var: variance, Mask: mask,
				DX: dx, DResidual: dresidual, DGamma: dgamma, DBeta: dbeta}
			if !identity {
				b.Residual = residual
			}
			return p.FrozenBackward(b)
		}, false
		if inPlace {
			m.backward, m.overwritten = nil, true
		}
		return nil
	}
	if inPlace {
		return batchnorm.ErrAlias
	}
	momentum := m.momentum
	if m.cumulative {
		momentum = batchnorm.NewWeight(1 / float64(m.batches+1))
	}
	mean, invstd := make([]float64, m.channels), make([]float64, m.channels)
	err := p.Forward(batchnorm.ForwardArgs{X: a.X, Residual: a.Residual, Gamma: gamma, Beta: beta, Mask: a.Mask, Y: a.Y, Mean: mean, InvStd: invstd,
		RunningMean: m.mean, RunningVar: m.variance, Momentum: momentum})
	if err != nil {
		return err
	}
	masked := a.Mask.Lengths != nil || a.Mask.Valid != nil
	if m.mean != nil && a.Shape.Outer > 0 && (!masked || count(valid(a.Mask, a.Shape)) > 0) {
		m.batches++
	}
	mask := a.Mask
	m.backward, m.overwritten = func(dy, dx, dresidual, dgamma, dbeta []float32) error {
		b := batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, Mask: mask,
			DX: dx, DResidual: dresidual, DGamma: dgamma, DBeta: dbeta}
		if !identity {
			b.Residual = residual
		}
		return p.Backward(b)
	}, false
	return nil
}

func (m *layerModel) inference(t *testing.T, a batchnorm.LayerForwardArgs) error {
	return newPlan(t, a.Shape, m.opts...).Inference(batchnorm.InferenceArgs{X: a.X, Residual: a.Residual, Gamma: m.gamma, Beta: m.beta,
		Mean: m.mean, Var: m.variance, Mask: a.Mask, Y: a.Y})
}

func (m *layerModel) back(dy, dx, dresidual []float32) error {
	if m.backward == nil {
		return batchnorm.ErrNoForward
	}
	var dgamma, dbeta []float32
	if m.gamma != nil && m.dgamma != nil {
		dgamma = make([]float32, m.channels)
	}
	if m.beta != nil && m.dbeta != nil {
		dbeta = make([]float32, m.channels)
	}
	if err := m.backward(dy, dx, dresidual, dgamma, dbeta); err != nil {
		return err
	}
	for c := range m.channels {
		for _, g := range [][2][]float32{{m.dgamma, dgamma}, {m.dbeta, dbeta}} {
			if g[1] == nil {
				continue
			}
			if m.accumulate {
				g[1][c] += g[0][c]
			}
			g[0][c] = g[1][c]
		}
	}
	m.backward = nil
	return nil
}

// compare fails the test where the layer is not as the model.
func (m *layerModel) compare(t *testing.T, step int, l *batchnorm.Layer) {
	t.Helper()
	for _, s := range []struct {
		name      string
		got, want []float32
	}{{"gamma", l.Gamma, m.gamma}, {"beta", l.Beta, m.beta}, {"dgamma", l.DGamma, m.dgamma}, {"dbeta", l.DBeta, m.dbeta},
		{"running mean", l.RunningMean, m.mean}, {"running variance", l.RunningVar, m.variance}} {
		if d := difference(s.got, s.want); d != "" || (s.got == nil) != (s.want == nil) {
			t.Fatalf("step %d: %s%s; nil: %t, want %t", step, s.name, d, s.got == nil, s.want == nil)
		}
	}
	if l.BatchesTracked != m.batches || l.Training() == m.evaluating {
		t.Fatalf("step %d: %d batches tracked, training %t; want %d and %t", step, l.BatchesTracked, l.Training(), m.batches, !m.evaluating)
	}
}

// FuzzLayer makes calls on a layer and on its model. Each call takes a byte for the
// operation and one for its form. States and outputs stay the same in every bit.
func FuzzLayer(f *testing.F) {
	f.Add(uint8(3), uint8(0), []byte{2, 0, 3, 0, 8, 0, 2, 9, 3, 3, 1, 0, 2, 0, 3, 1})
	f.Add(uint8(1), uint8(1), []byte{10, 0, 2, 1, 4, 0, 3, 0, 5, 0, 2, 2, 2, 3, 3, 0, 3, 0, 11, 0, 3, 0})
	f.Add(uint8(7), uint8(2), []byte{9, 0, 2, 16, 3, 0, 2, 32, 3, 0, 1, 0, 2, 8, 3, 0, 0, 0, 2, 8, 12, 1, 2, 0, 3, 7, 6, 0, 14, 0, 2, 0, 13, 0, 3, 0})
	f.Add(uint8(2), uint8(5), []byte{12, 4, 2, 0, 12, 5, 1, 0, 2, 0, 3, 0, 15, 9, 2, 64, 3, 0, 5, 0, 1, 0, 4, 8, 7, 0, 15, 200, 2, 3, 3, 3})
	f.Fuzz(func(t *testing.T, channels, options uint8, steps []byte) {
		n := 1 + int(channels)%9
		acts := []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU}
		act := acts[int(options)%len(acts)]
		opts := []batchnorm.Option{batchnorm.WithActivation(act)}
		if options&8 != 0 {
			opts = append([]batchnorm.Option{batchnorm.Keras()}, opts...)
		}
		if options&16 != 0 {
			opts = append(opts, batchnorm.WithWorkers(2))
		}
		l, err := batchnorm.NewLayer(n, opts...)
		noError(t, err)
		zeros := func() []float32 { return make([]float32, n) }
		ones := func() []float32 { return slices.Repeat([]float32{1}, n) }
		m := &layerModel{opts: opts, channels: n, gamma: ones(), beta: zeros(), dgamma: zeros(), dbeta: zeros(), mean: zeros(), variance: ones()}
		shapes := []batchnorm.Shape{{Outer: 4, Channels: n, Inner: 1}, {Outer: 3, Channels: n, Inner: 7}, {Outer: 1, Channels: n, Inner: 40},
			{Outer: 0, Channels: n, Inner: 2}, {Outer: 1, Channels: n, Inner: 1}}
		var last batchnorm.Shape
		for step := 0; len(steps) >= 2 && step < 60; step, steps = step+1, steps[2:] {
			what, how := steps[0]%16, steps[1]
			same := func(name string, got, want []float32, err, wantErr error) {
				t.Helper()
				if (err == nil) != (wantErr == nil) {
					t.Fatalf("step %d, %s: the error is %v, want %v", step, name, err, wantErr)
				}
				if d := difference(got, want); d != "" {
					t.Fatalf("step %d, %s%s", step, name, d)
				}
			}
			tensor := func(s batchnorm.Shape, k int) []float32 {
				return gen.Normal(uint64(step)<<8|uint64(how)+uint64(k)<<32, s.Len(), float64(how%5)*30, 1)
			}
			switch what {
			case 0:
				l.Train()
				m.evaluating = false
			case 1:
				l.Eval()
				m.evaluating = true
			case 2, 4:
				s := shapes[int(how)%len(shapes)]
				a := batchnorm.LayerForwardArgs{Shape: s, X: tensor(s, 0), Y: tensor(s, 1)}
				if how&32 != 0 {
					a.Residual = tensor(s, 2)
				}
				if how&64 != 0 && s.Outer > 0 {
					a.Mask.Valid = make([]bool, s.PerChannel())
					for i := range a.Mask.Valid {
						a.Mask.Valid[i] = i%3 != 1
					}
				}
				b := a
				b.X, b.Y, b.Residual = slices.Clone(a.X), slices.Clone(a.Y), slices.Clone(a.Residual)
				inPlace := how&128 != 0 && s.Outer > 0
				if inPlace {
					a.Y, b.Y = a.X, b.X
				}
				var got, want error
				if what == 2 {
					want = m.forward(t, b, act == batchnorm.Identity, inPlace)
					if got = l.Forward(a); got == nil {
						last = s
					}
				} else {
					want = m.inference(t, b)
					got = l.Inference(a)
				}
				same("y", a.Y, b.Y, got, want)
			case 3:
				s := last
				dy, dx, dres := tensor(s, 3), tensor(s, 4), tensor(s, 5)
				dx2, dres2 := slices.Clone(dx), slices.Clone(dres)
				if how&1 != 0 {
					dx, dx2 = nil, nil
				}
				if how&2 != 0 {
					dres, dres2 = nil, nil
				}
				want := m.back(dy, dx2, dres2)
				got := l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx, DResidual: dres})
				same("dx", dx, dx2, got, want)
				same("dresidual", dres, dres2, got, want)
				if m.overwritten && !errors.Is(got, batchnorm.ErrNoForward) {
					t.Fatalf("step %d: Backward of what was overwritten: %v", step, got)
				}
			case 5: // a state goes into the layer that it came from
				state, err := l.MarshalBinary()
				noError(t, err)
				noError(t, l.UnmarshalBinary(state))
				m.backward = nil
			case 6:
				l.ResetRunning()
				clear(m.mean)
				if m.variance != nil {
					copy(m.variance, ones())
				}
				m.batches = 0
			case 7:
				l.ZeroGrad()
				clear(m.dgamma)
				clear(m.dbeta)
			case 8: // no Forward waits while parameters change
				for c := range n {
					if l.Gamma != nil && l.DGamma != nil {
						l.Gamma[c] -= float32(0.01 * l.DGamma[c])
						m.gamma[c] -= float32(0.01 * m.dgamma[c])
					}
				}
				if m.gamma != nil {
					m.gamma = slices.Clone(m.gamma)
				}
				if m.backward != nil { // whose gamma the model took
					m.backward = nil
					noError(t, l.UnmarshalBinary(marshal(t, l)))
				}
			case 9:
				l.Accumulate = !l.Accumulate
				m.accumulate = l.Accumulate
			case 10:
				l.Cumulative = !l.Cumulative
				m.cumulative = l.Cumulative
			case 11:
				c, err := l.Clone()
				noError(t, err)
				l, m.backward, m.overwritten = c, nil, false
			case 12: // a slice is taken away, or comes back
				if m.backward != nil {
					m.backward = nil
					noError(t, l.UnmarshalBinary(marshal(t, l)))
				}
				for i, s := range []struct {
					layer, model *[]float32
					fresh        func() []float32
				}{{&l.Gamma, &m.gamma, ones}, {&l.Beta, &m.beta, zeros}, {&l.DGamma, &m.dgamma, zeros}, {&l.DBeta, &m.dbeta, zeros}, {&l.RunningMean,
					&m.mean, zeros}, {&l.RunningVar, &m.variance, ones}} {
					if i != int(how)%6 {
						continue
					}
					if *s.layer == nil {
						*s.layer, *s.model = s.fresh(), s.fresh()
					} else {
						*s.layer, *s.model = nil, nil
					}
				}
			case 13: // a state goes into a new layer
				if l.Gamma == nil || l.Beta == nil || l.RunningMean == nil || l.RunningVar == nil {
					continue
				}
				fresh, err := batchnorm.NewLayer(n, opts...)
				noError(t, err)
				noError(t, fresh.UnmarshalBinary(marshal(t, l)))
				l = fresh
				*m = layerModel{opts: opts, channels: n, gamma: m.gamma, beta: m.beta, mean: m.mean, variance: m.variance, batches: m.batches,
					dgamma: zeros(), dbeta: zeros()}
			case 14:
				l.Reset()
				for _, s := range [][]float32{m.gamma, m.variance} {
					for c := range s {
						s[c] = 1
					}
				}
				for _, s := range [][]float32{m.beta, m.dgamma, m.dbeta, m.mean} {
					clear(s)
				}
				m.batches, m.backward, m.overwritten = 0, nil, false
			case 15:
				l.Momentum = batchnorm.NewWeight(float64(how) / 255)
				m.momentum = l.Momentum
			}
			m.compare(t, step, l)
			if m.mean != nil && math.IsNaN(float64(m.mean[0])) {
				return
			}
		}
	})
}

func marshal(t *testing.T, l *batchnorm.Layer) []byte {
	t.Helper()
	state, err := l.MarshalBinary()
	noError(t, err)
	return state
}
