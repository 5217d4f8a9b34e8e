package batchnorm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

func newLayer(t testing.TB, channels int, opts ...batchnorm.Option) *batchnorm.Layer {
	t.Helper()
	l, err := batchnorm.NewLayer(channels, opts...)
	noError(t, err)
	return l
}

// trainedLayer has parameters, gradients and statistics of all kinds.
func trainedLayer(t testing.TB, channels int, opts ...batchnorm.Option) *batchnorm.Layer {
	t.Helper()
	l := newLayer(t, channels, opts...)
	copy(l.Gamma, gen.Uniform(1, channels, -2, 2))
	copy(l.Beta, gen.Uniform(2, channels, -1, 1))
	copy(l.RunningMean, gen.Uniform(3, channels, -3, 3))
	copy(l.RunningVar, gen.Uniform(4, channels, 0.1, 2))
	copy(l.DGamma, gen.Uniform(5, channels, -1, 1))
	copy(l.DBeta, gen.Uniform(6, channels, -1, 1))
	l.BatchesTracked = 77
	return l
}

// slicesOf are the layer's, by name.
func slicesOf(l *batchnorm.Layer) map[string][]float32 {
	return map[string][]float32{"gamma": l.Gamma, "beta": l.Beta, "dgamma": l.DGamma, "dbeta": l.DBeta,
		"running mean": l.RunningMean, "running variance": l.RunningVar}
}

func expectSameLayer(t testing.TB, where string, got, want *batchnorm.Layer) {
	t.Helper()
	for name, s := range slicesOf(want) {
		expectBits(t, where+": "+name, slicesOf(got)[name], s)
	}
	if got.BatchesTracked != want.BatchesTracked || got.Training() != want.Training() || got.Channels() != want.Channels() {
		t.Errorf("%s: batches tracked %d, training %t, channels %d; want %d, %t, %d", where,
			got.BatchesTracked, got.Training(), got.Channels(), want.BatchesTracked, want.Training(), want.Channels())
	}
}

func clone(t testing.TB, l *batchnorm.Layer) *batchnorm.Layer {
	t.Helper()
	c, err := l.Clone()
	noError(t, err)
	return c
}

// A layer gives the bits of a plan for each batch, over batches of changing shapes, on
// every path and with several workers.
func TestLayerIsPlan(t *testing.T) {
	t.Parallel()
	const channels = 5
	shapes := []batchnorm.Shape{{4, channels, 9}, {3, channels, 9}, {40, channels, 1}, {1, channels, 4100}, {4, channels, 9}, {0, channels, 9}}
	for _, accumulate := range []bool{false, true} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
			forEachPath(t, func(t *testing.T, path batchnorm.Path) {
				for _, workers := range []int{1, 3} {
					opts := []batchnorm.Option{batchnorm.Keras(), batchnorm.WithPath(path), batchnorm.WithWorkers(workers), batchnorm.WithActivation(act)}
					l := newLayer(t, channels, opts...)
					copy(l.Gamma, gen.Uniform(1, channels, -2, 2))
					copy(l.Beta, gen.Uniform(2, channels, -1, 1))
					l.Accumulate = accumulate
					runningMean, runningVar := make([]float32, channels), slices.Repeat([]float32{1}, channels)
					wantDGamma, wantDBeta := make([]float32, channels), make([]float32, channels)
					for i, s := range shapes {
						where := fmt.Sprintf("%v with %d workers, batch %d of %v: ", act, workers, i, s)
						x, residual, dy := gen.Normal(uint64(i), s.Len(), 1, 2), gen.Normal(uint64(i)+50, s.Len(), 0, 1), gen.Normal(uint64(i)+90, s.Len(), 0, 1)
						y, dx, dresidual := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Len())
						noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Residual: residual, Y: y}))
						noError(t, l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx, DResidual: dresidual}))

						p := newPlan(t, s, append(opts, batchnorm.WithPath(batchnorm.PathGeneric))...)
						wantY, wantDX, wantDResidual := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Len())
						mean, invstd := make([]float64, channels), make([]float64, channels)
						dgamma, dbeta := make([]float32, channels), make([]float32, channels)
						noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Residual: residual, Gamma: l.Gamma, Beta: l.Beta, Y: wantY,
							Mean: mean, InvStd: invstd, RunningMean: runningMean, RunningVar: runningVar}))
						noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Residual: residual, Gamma: l.Gamma, Beta: l.Beta,
							Mean: mean, InvStd: invstd, DX: wantDX, DResidual: wantDResidual, DGamma: dgamma, DBeta: dbeta}))
						for c := range channels {
							if !accumulate {
								wantDGamma[c], wantDBeta[c] = 0, 0
							}
							wantDGamma[c] += dgamma[c]
							wantDBeta[c] += dbeta[c]
						}
						expectBits(t, where+"y", y, wantY)
						expectBits(t, where+"dx", dx, wantDX)
						expectBits(t, where+"dresidual", dresidual, wantDResidual)
						expectBits(t, where+"dgamma", l.DGamma, wantDGamma)
						expectBits(t, where+"dbeta", l.DBeta, wantDBeta)
						expectBits(t, where+"running mean", l.RunningMean, runningMean)
						expectBits(t, where+"running variance", l.RunningVar, runningVar)

						noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Residual: residual, Gamma: l.Gamma, Beta: l.Beta,
							Mean: runningMean, Var: runningVar, Y: wantY}))
						noError(t, l.Inference(batchnorm.LayerForwardArgs{Shape: s, X: x, Residual: residual, Y: y}))
						expectBits(t, where+"y of inference", y, wantY)
						l.Eval()
						noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Residual: residual, Y: y}))
						expectBits(t, where+"y of evaluation", y, wantY)
						noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x, Residual: residual, Gamma: l.Gamma, Beta: l.Beta,
							Mean: runningMean, Var: runningVar, DX: wantDX, DResidual: wantDResidual, DGamma: dgamma, DBeta: dbeta}))
						noError(t, l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx, DResidual: dresidual}))
						for c := range channels {
							if !accumulate {
								wantDGamma[c], wantDBeta[c] = 0, 0
							}
							wantDGamma[c] += dgamma[c]
							wantDBeta[c] += dbeta[c]
						}
						expectBits(t, where+"frozen dx", dx, wantDX)
						expectBits(t, where+"frozen dresidual", dresidual, wantDResidual)
						expectBits(t, where+"frozen dgamma", l.DGamma, wantDGamma)
						expectBits(t, where+"frozen dbeta", l.DBeta, wantDBeta)
						noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Residual: residual, Y: x})) // in place
						expectBits(t, where+"y of evaluation in place", x, wantY)
						l.Train()
					}
					if l.BatchesTracked != 5 { // not the empty one
						t.Errorf("%d batches are tracked, want 5", l.BatchesTracked)
					}
				}
			})
		}
	}
}

// A layer hands its mask on, forward and backward, in both modes.
func TestLayerMask(t *testing.T) {
	s := batchnorm.Shape{4, 3, 5}
	mask := batchnorm.Mask{Lengths: []int{5, 0, 3, 1}}
	x, dy := gen.Normal(1, s.Len(), 1, 2), gen.Normal(2, s.Len(), 0, 1)
	p := newPlan(t, s)
	for _, eval := range []bool{false, true} {
		l := trainedLayer(t, 3)
		runningMean, runningVar := slices.Clone(l.RunningMean), slices.Clone(l.RunningVar)
		y, dx, wantY, wantDX := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Len())
		dgamma, dbeta := make([]float32, 3), make([]float32, 3)
		if eval {
			l.Eval()
			noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Gamma: l.Gamma, Beta: l.Beta, Mean: runningMean, Var: runningVar, Mask: mask, Y: wantY}))
			noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x, Gamma: l.Gamma, Beta: l.Beta, Mean: runningMean, Var: runningVar,
				Mask: mask, DX: wantDX, DGamma: dgamma, DBeta: dbeta}))
		} else {
			mean, invstd := make([]float64, 3), make([]float64, 3)
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Gamma: l.Gamma, Beta: l.Beta, Mask: mask, Y: wantY, Mean: mean, InvStd: invstd,
				RunningMean: runningMean, RunningVar: runningVar}))
			noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: l.Gamma, Beta: l.Beta, Mean: mean, InvStd: invstd,
				Mask: mask, DX: wantDX, DGamma: dgamma, DBeta: dbeta}))
		}
		noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Mask: mask, Y: y}))
		noError(t, l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx}))
		for _, o := range []struct {
			name      string
			got, want []float32
		}{{"y", y, wantY}, {"dx", dx, wantDX}, {"dgamma", l.DGamma, dgamma}, {"dbeta", l.DBeta, dbeta},
			{"running mean", l.RunningMean, runningMean}, {"running variance", l.RunningVar, runningVar}} {
			expectBits(t, fmt.Sprintf("evaluation %t: %s", eval, o.name), o.got, o.want)
		}
		bad := batchnorm.Mask{Lengths: []int{5, 6, 3, 1}}
		expectErrorWords(t, "mask", l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Mask: bad, Y: y}), batchnorm.ErrMask, "6")
	}
}

// Cumulative statistics are the plain average of the batches'.
func TestLayerCumulative(t *testing.T) {
	s := batchnorm.Shape{2, 1, 1}
	l := newLayer(t, 1)
	l.Cumulative, l.Momentum = true, batchnorm.NewWeight(0.5) // which has no effect
	copy(l.RunningMean, []float32{100})                       // nor has this
	y := make([]float32, 2)
	for i, want := range []struct{ mean, variance float32 }{{2, 2}, {4, 5}, {3, 10.0 / 3}} {
		// Means 2, 6, 1; unbiased variances 2, 8, 0.
		x := [][]float32{{1, 3}, {4, 8}, {1, 1}}[i]
		noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}))
		if math.Abs(float64(l.RunningMean[0]-want.mean)) > 1e-6 || math.Abs(float64(l.RunningVar[0]-want.variance)) > 1e-6 {
			t.Errorf("after %d batches: %v, %v, want %v, %v", i+1, l.RunningMean[0], l.RunningVar[0], want.mean, want.variance)
		}
	}
	l.Cumulative = false
	noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: []float32{5, 5}, Y: y}))
	if l.RunningMean[0] != 4 || l.BatchesTracked != 4 {
		t.Errorf("with momentum 0.5 the running mean is %v after %d batches, want 4 after 4", l.RunningMean[0], l.BatchesTracked)
	}
	l.Momentum = batchnorm.Momentum{}
	noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: []float32{14, 14}, Y: y}))
	if l.RunningMean[0] != 5 {
		t.Errorf("with the default momentum the running mean is %v, want 5", l.RunningMean[0])
	}
}

// A layer works without some of its slices, and leaves out their part.
func TestLayerWithout(t *testing.T) {
	s := batchnorm.Shape{6, 3, 2}
	x, dy := gen.Normal(1, s.Len(), 1, 2), gen.Normal(2, s.Len(), 0, 1)
	y, dx := make([]float32, s.Len()), make([]float32, s.Len())
	forward := batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}
	backward := batchnorm.LayerBackwardArgs{DY: dy, DX: dx}

	l := newLayer(t, 3)
	noError(t, l.Forward(forward))
	noError(t, l.Backward(backward))
	wantY, wantDX, wantDGamma := slices.Clone(y), slices.Clone(dx), slices.Clone(l.DGamma)

	plain := newLayer(t, 3) // affine=False, track_running_stats=False
	plain.Gamma, plain.Beta, plain.RunningMean, plain.RunningVar = nil, nil, nil, nil
	copy(plain.DGamma, []float32{1, 2, 3})
	for _, eval := range []bool{false, true} {
		if eval {
			plain.Eval() // no statistics but the batch's
		}
		clear(y)
		clear(dx)
		noError(t, plain.Forward(forward))
		noError(t, plain.Backward(backward))
		expectBits(t, "y", y, wantY)
		expectBits(t, "dx", dx, wantDX)
		expectBits(t, "dgamma", plain.DGamma, []float32{1, 2, 3})
		if plain.BatchesTracked != 0 {
			t.Errorf("%d batches are tracked in no statistics", plain.BatchesTracked)
		}
	}
	expectErrorWords(t, "inference", plain.Inference(forward), batchnorm.ErrMissing, "mean")
	_, err := plain.Affine()
	expectErrorWords(t, "affine", err, batchnorm.ErrMissing, "mean")

	half := newLayer(t, 3)
	half.DBeta = nil
	noError(t, half.Forward(forward))
	noError(t, half.Backward(backward))
	expectBits(t, "dgamma", half.DGamma, wantDGamma)
}

// Whatever is wrong, nothing is written, and a forward pass that waits for its
// backward pass still does.
func TestLayerErrors(t *testing.T) {
	s := batchnorm.Shape{4, 3, 5}
	for _, waiting := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			change func(l *batchnorm.Layer, f *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs)
			kind   error
			words  []string
		}{
			{"channels", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				f.Shape = batchnorm.Shape{3, 4, 5}
			}, batchnorm.ErrShape, []string{"3x4x5", "4 channels", "3"}},
			{"no shape", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				f.Shape = batchnorm.Shape{}
			}, batchnorm.ErrShape, []string{"0x0x0"}},
			{"x too short", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				f.X = f.X[:59]
			}, batchnorm.ErrLength, []string{"x has 59", "60"}},
			{"no y", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) { f.Y = nil },
				batchnorm.ErrMissing, []string{"y"}},
			{"y in x", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) { f.Y = f.X },
				batchnorm.ErrAlias, []string{"x", "y", "Backward reads x"}},
			{"y in residual", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				f.Y = f.Residual
			},
				batchnorm.ErrAlias, []string{"residual", "y"}},
			{"gamma too short", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				l.Gamma = l.Gamma[:2]
			},
				batchnorm.ErrLength, []string{"gamma has 2", "3"}},
			{"running mean too long", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				l.RunningMean = make([]float32, 4)
			}, batchnorm.ErrLength, []string{"running mean has 4", "3"}},
			{"momentum", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				l.Momentum = batchnorm.NewWeight(2)
			}, batchnorm.ErrMomentum, []string{"2"}},
			{"batches", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				l.Cumulative, l.BatchesTracked = true, -1
			}, batchnorm.ErrState, []string{"-1"}},
			{"one value", func(_ *batchnorm.Layer, f *batchnorm.LayerForwardArgs, _ *batchnorm.LayerBackwardArgs) {
				f.Shape, f.X, f.Residual, f.Y = batchnorm.Shape{1, 3, 1}, f.X[:3], nil, f.Y[:3]
			}, batchnorm.ErrTooFewValues, []string{"1x3x1"}},
			// Arguments of Backward, while a forward pass waits for it.
			{"dy too short", func(_ *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs) {
				b.DY = b.DY[:59]
			},
				batchnorm.ErrLength, []string{"dy has 59", "60"}},
			{"dgamma too short", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs) {
				l.DGamma, l.Accumulate = l.DGamma[:2], true
			}, batchnorm.ErrLength, []string{"dgamma has 2", "3"}},
			{"dbeta too long", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs) {
				l.DBeta = make([]float32, 4)
			}, batchnorm.ErrLength, []string{"dbeta has 4", "3"}},
			{"dgamma in dx", func(l *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs) {
				l.DGamma, l.Accumulate = b.DX[:3], true
			}, batchnorm.ErrAlias, []string{"dgamma", "dx"}},
			{"dx in dresidual", func(_ *batchnorm.Layer, _ *batchnorm.LayerForwardArgs, b *batchnorm.LayerBackwardArgs) {
				b.DX = b.DResidual
			},
				batchnorm.ErrAlias, []string{"dx", "dresidual"}},
		} {
			l := trainedLayer(t, 3, batchnorm.WithActivation(batchnorm.ReLU))
			newTensor := func(seed uint64) []float32 { return gen.Normal(seed, s.Len(), 0, 1) }
			f := batchnorm.LayerForwardArgs{Shape: s, X: newTensor(1), Residual: newTensor(2), Y: newTensor(3)}
			b := batchnorm.LayerBackwardArgs{DY: newTensor(4), DX: newTensor(5), DResidual: newTensor(6)}
			if waiting {
				noError(t, l.Forward(f))
			}
			ofBackward := b
			ofForward := f
			c.change(l, &ofForward, &ofBackward)
			isBackward := c.name[0] == 'd'
			if isBackward && !waiting {
				continue
			}
			before := clone(t, l)
			all := [][]float32{f.X, f.Residual, f.Y, b.DY, b.DX, b.DResidual}
			var copies [][]float32
			for _, s := range all {
				copies = append(copies, slices.Clone(s))
			}
			if isBackward {
				expectErrorWords(t, c.name, l.Backward(ofBackward), c.kind, c.words...)
			} else {
				expectErrorWords(t, c.name, l.Forward(ofForward), c.kind, c.words...)
			}
			expectSameLayer(t, c.name, l, before)
			for i, s := range all {
				expectBits(t, fmt.Sprintf("%s: tensor %d", c.name, i), s, copies[i])
			}
			if x, residual := l.Keeps(); waiting && (len(x) == 0 || &x[0] != &f.X[0] || &residual[0] != &f.Residual[0]) ||
				!waiting && (x != nil || residual != nil) {
				t.Errorf("%s: the layer keeps other tensors after the error", c.name)
			}
		}
	}
	for _, none := range []*batchnorm.Layer{nil, {}} {
		_, cloned := none.Clone()
		_, folded := none.Affine()
		_, marshaled := none.MarshalBinary()
		for i, err := range []error{
			none.Forward(batchnorm.LayerForwardArgs{}), none.Inference(batchnorm.LayerForwardArgs{}),
			none.Backward(batchnorm.LayerBackwardArgs{}), none.UnmarshalBinary(nil), cloned, folded, marshaled,
		} {
			expectErrorWords(t, fmt.Sprintf("method %d of no layer", i), err, batchnorm.ErrNilLayer, "layer")
		}
		if none.Channels() != 0 {
			t.Error("no layer has channels")
		}
	}
	for _, channels := range []int{0, -1, math.MaxInt} {
		if l, err := batchnorm.NewLayer(channels); l != nil || !errors.Is(err, batchnorm.ErrShape) {
			t.Errorf("NewLayer(%d) returns %v, %v, want ErrShape", channels, l, err)
		}
	}
	if l, err := batchnorm.NewLayer(3, batchnorm.WithEpsilon(-1)); l != nil || !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("NewLayer with epsilon -1 returns %v, %v, want ErrOption", l, err)
	}
}

// Backward needs a forward pass by the batch's statistics, one for each.
func TestLayerBackwardOrder(t *testing.T) {
	s := batchnorm.Shape{4, 3, 5}
	x := gen.Normal(1, s.Len(), 0, 1)
	f := batchnorm.LayerForwardArgs{Shape: s, X: x, Residual: slices.Clone(x), Y: make([]float32, s.Len())}
	b := batchnorm.LayerBackwardArgs{DY: slices.Clone(x), DX: make([]float32, s.Len())}
	none := func(where string, l *batchnorm.Layer) {
		t.Helper()
		expectErrorWords(t, where, l.Backward(b), batchnorm.ErrNoForward, "Forward")
		if x, residual := l.Keeps(); x != nil || residual != nil {
			t.Errorf("%s: the layer keeps tensors", where)
		}
	}
	l := newLayer(t, 3, batchnorm.WithActivation(batchnorm.ReLU))
	none("at first", l)
	noError(t, l.Forward(f))
	noError(t, l.Inference(f)) // does not matter
	none("a clone", clone(t, l))
	noError(t, l.Backward(b))
	none("a second time", l)
	noError(t, l.Forward(f))
	l.Eval()
	for _, lost := range [][]float32{f.X, f.Residual} {
		inPlace := f
		inPlace.X, inPlace.Residual = slices.Clone(f.X), slices.Clone(f.Residual)
		if inPlace.Y = inPlace.X; &lost[0] == &f.Residual[0] {
			inPlace.Y = inPlace.Residual
		}
		noError(t, l.Forward(inPlace))
		none("after evaluation in place", l)
	}
	l.Train()
	noError(t, l.Forward(f))
	l.Reset()
	none("after Reset", l)
	noError(t, l.Forward(f))
	state, err := l.MarshalBinary()
	noError(t, err)
	noError(t, l.UnmarshalBinary(state))
	none("after UnmarshalBinary", l)

	identity := newLayer(t, 3)
	f.Y = f.Residual // which Backward does not need
	noError(t, identity.Forward(f))
	if _, residual := identity.Keeps(); residual != nil {
		t.Error("without an activation the residual is kept")
	}
	noError(t, identity.Backward(b))
}

func TestLayerReset(t *testing.T) {
	l := trainedLayer(t, 4)
	want := trainedLayer(t, 4)
	clear(want.DGamma)
	clear(want.DBeta)
	l.ZeroGrad()
	expectSameLayer(t, "ZeroGrad", l, want)
	copy(want.RunningMean, []float32{0, 0, 0, 0})
	copy(want.RunningVar, []float32{1, 1, 1, 1})
	want.BatchesTracked = 0
	l.ResetRunning()
	expectSameLayer(t, "ResetRunning", l, want)
	l.Reset()
	expectSameLayer(t, "Reset", l, newLayer(t, 4))
}

func TestLayerClone(t *testing.T) {
	l := trainedLayer(t, 4, batchnorm.Keras())
	l.Eval()
	l.Momentum, l.Accumulate, l.Cumulative = batchnorm.NewWeight(0.25), true, true
	c := clone(t, l)
	expectSameLayer(t, "clone", c, l)
	if c.Momentum != l.Momentum || !c.Accumulate || !c.Cumulative {
		t.Errorf("the clone has momentum %v, accumulates: %t, cumulative: %t", c.Momentum, c.Accumulate, c.Cumulative)
	}
	untouched := trainedLayer(t, 4)
	untouched.Eval()
	c.Train()
	s := batchnorm.Shape{3, 4, 2}
	x := gen.Normal(1, s.Len(), 0, 1)
	noError(t, c.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: make([]float32, s.Len())}))
	noError(t, c.Backward(batchnorm.LayerBackwardArgs{DY: x, DX: make([]float32, s.Len())}))
	c.Reset()
	expectSameLayer(t, "the original, after its clone was used", l, untouched)
}

// A layer keeps plans for the shapes used last, as many as its options say.
func TestLayerPlans(t *testing.T) {
	l := newLayer(t, 2, batchnorm.WithCapacity(7))
	l.Eval()
	use := func(outer int) {
		s := batchnorm.Shape{outer, 2, 1}
		x := make([]float32, s.Len())
		noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: x}))
		if p := l.PlannedShapes(); p[0] != s {
			t.Errorf("after a batch of %d the first plan is for %v", outer, p[0])
		}
	}
	for i := range 40 {
		use(i)
		use(3) // stays
	}
	shapes := l.PlannedShapes()
	if len(shapes) != 7 || shapes[0] != (batchnorm.Shape{3, 2, 1}) || shapes[1] != (batchnorm.Shape{39, 2, 1}) ||
		shapes[6] != (batchnorm.Shape{34, 2, 1}) {
		t.Errorf("the layer has plans for %v", shapes)
	}
	use(37)
	use(34)
	if again := l.PlannedShapes(); len(again) != 7 || !slices.Equal(slices.Sorted(slices.Values(outers(again))),
		slices.Sorted(slices.Values(outers(shapes)))) {
		t.Errorf("using plans that there are leaves %v", again)
	}
}

func outers(shapes []batchnorm.Shape) (n []int) {
	for _, s := range shapes {
		n = append(n, s.Outer)
	}
	return n
}

func TestLayerNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	for _, workers := range []int{1, 3} {
		l := newLayer(t, 6, batchnorm.WithActivation(batchnorm.ReLU), batchnorm.WithWorkers(workers))
		l.Accumulate, l.Cumulative = true, true
		var f []batchnorm.LayerForwardArgs
		var b []batchnorm.LayerBackwardArgs
		for outer := range batchnorm.DefaultCapacity { // as many shapes as there are plans
			s := batchnorm.Shape{outer + 1, 6, 40}
			tensor := func(seed uint64) []float32 { return gen.Normal(seed, s.Len(), 0, 1) }
			f = append(f, batchnorm.LayerForwardArgs{Shape: s, X: tensor(1), Residual: tensor(2), Y: tensor(3)})
			b = append(b, batchnorm.LayerBackwardArgs{DY: tensor(4), DX: tensor(5), DResidual: tensor(6)})
		}
		all := func() {
			for i := range f {
				l.Train()
				err := errors.Join(l.Forward(f[i]), l.Inference(f[i]), l.Backward(b[i]))
				l.Eval()
				if err = errors.Join(err, l.Forward(f[i]), l.Backward(b[i])); err != nil {
					t.Fatal(err)
				}
			}
		}
		all()
		if n := testing.AllocsPerRun(10, all); n != 0 {
			t.Errorf("with %d workers a round of batches allocates %v times", workers, n)
		}
	}
}

// Several goroutines infer with one layer.
func TestLayerConcurrentInference(t *testing.T) {
	l := trainedLayer(t, 7)
	var wg sync.WaitGroup
	for i := range 4 {
		s := batchnorm.Shape{5 + i, 7, 11}
		x := gen.Normal(uint64(i), s.Len(), 0, 1)
		want := make([]float32, s.Len())
		noError(t, clone(t, l).Inference(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: want}))
		start(&wg, func() {
			y := make([]float32, s.Len())
			for range 50 {
				clear(y)
				if err := l.Inference(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}); err != nil {
					t.Error(err)
				}
				expectBits(t, "y", y, want)
			}
		})
	}
	wg.Wait()
}

// The layer's inference, folded into the linear layer before it.
func TestLayerAffine(t *testing.T) {
	l := trainedLayer(t, 3, batchnorm.Keras())
	a, err := l.Affine()
	noError(t, err)
	f := foldCase{batchnorm.AffineArgs{Gamma: l.Gamma, Beta: l.Beta, Mean: l.RunningMean, Var: l.RunningVar}, 1e-3}
	scale, want := make([]float32, 3), make([]float32, 3)
	noError(t, a.ScaleShift(scale, nil))
	noError(t, f.affine(t).ScaleShift(want, nil))
	expectBits(t, "scale", scale, want)
}

// ---- saved state

func TestLayerState(t *testing.T) {
	const channels = 5
	for present := range 16 {
		trained := func() *batchnorm.Layer {
			l := trainedLayer(t, channels, batchnorm.Keras())
			for i, s := range []*[]float32{&l.Gamma, &l.Beta, &l.RunningMean, &l.RunningVar} {
				if present>>i&1 == 0 {
					*s = nil
				}
			}
			return l
		}
		l := trained()
		if l.Gamma != nil { // every bit counts
			copy(l.Gamma, []float32{float32(math.NaN()), float32(math.Inf(-1)), float32(math.Copysign(0, -1)), 1e-45, math.MaxFloat32})
		}
		state, err := l.MarshalBinary()
		noError(t, err)
		appended, err := l.AppendBinary([]byte("before"))
		noError(t, err)
		if string(appended) != "before"+string(state) {
			t.Error("AppendBinary appends something else than MarshalBinary returns")
		}

		fresh := trained()
		fresh.Reset()
		fresh.Eval()
		gamma := fresh.Gamma
		dgamma := slices.Clone(fresh.DGamma)
		noError(t, fresh.UnmarshalBinary(state))
		copy(l.DGamma, dgamma) // not part of it
		copy(l.DBeta, dgamma)
		l.Eval() // nor is this
		expectSameLayer(t, "loaded", fresh, l)
		if gamma != nil && &gamma[0] != &fresh.Gamma[0] {
			t.Error("gamma is another slice after loading")
		}
		again, err := fresh.MarshalBinary()
		noError(t, err)
		if string(again) != string(state) {
			t.Error("what was loaded saves as something else")
		}
	}
}

// The format is written down here once more, so that a change of it needs a
// change of the version.
func TestLayerStateFormat(t *testing.T) {
	l := newLayer(t, 2)
	l.BatchesTracked = 258
	copy(l.Gamma, []float32{1, -2})
	l.Beta = nil
	got, err := l.MarshalBinary()
	noError(t, err)
	want := []byte("BNLAYER\n" + "\x01\x00\x00\x00" + "\x0d\x00\x00\x00" +
		"\x02\x00\x00\x00\x00\x00\x00\x00" + "\x02\x01\x00\x00\x00\x00\x00\x00" +
		"\xf1\x68\xe3\x88\xb5\xf8\xe4\x3e" + // 1e-5
		"\x00\x00\x80\x3f" + "\x00\x00\x00\xc0" + // gamma
		"\x00\x00\x00\x00" + "\x00\x00\x00\x00" + // running mean
		"\x00\x00\x80\x3f" + "\x00\x00\x80\x3f") // running variance
	if want = withChecksum(want); string(got) != string(want) {
		t.Errorf("the state is\n%x, want\n%x", got, want)
	}
}

// withChecksum appends the checksum of a state without one.
func withChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(slices.Clip(b), crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)))
}

// Every truncation, every single flipped bit and every appended byte is found,
// and leaves the layer as it was.
func TestLayerStateDamaged(t *testing.T) {
	t.Parallel()
	state, err := trainedLayer(t, 3).MarshalBinary()
	noError(t, err)
	l := newLayer(t, 3)
	l.BatchesTracked = 9
	before := clone(t, l)
	rejected := func(where string, data []byte) {
		t.Helper()
		expectErrorWords(t, where, l.UnmarshalBinary(data), batchnorm.ErrState, "saved state")
		expectSameLayer(t, where, l, before)
	}
	for n := range state {
		rejected(fmt.Sprintf("the first %d bytes", n), state[:n])
	}
	for bit := range 8 * len(state) {
		flipped := slices.Clone(state)
		flipped[bit/8] ^= 1 << (bit % 8)
		rejected(fmt.Sprintf("bit %d flipped", bit), flipped)
	}
	for _, more := range []byte{0, 1, 255} {
		rejected("a byte more", append(slices.Clone(state), more))
	}
	rejected("nothing", nil)
	noError(t, l.UnmarshalBinary(state))
}

// States with a good checksum that don't fit.
func TestLayerStateMismatch(t *testing.T) {
	good, err := trainedLayer(t, 3).MarshalBinary()
	noError(t, err)
	body := good[:len(good)-8]
	edit := func(at int, b ...byte) []byte {
		e := slices.Clone(body)
		copy(e[at:], b)
		return withChecksum(e)
	}
	other := func(change func(l *batchnorm.Layer), channels int, opts ...batchnorm.Option) []byte {
		l := trainedLayer(t, channels, opts...)
		change(l)
		b, err := l.MarshalBinary()
		noError(t, err)
		return b
	}
	nothing := func(*batchnorm.Layer) {}
	for _, c := range []struct {
		name  string
		data  []byte
		words []string
	}{
		{"version 2", edit(8, 2), []string{"version 2", "1"}},
		{"unknown slice", edit(12, 0x1f), []string{"0b11111"}},
		{"no gamma", edit(12, 0x0e), []string{"gamma"}},
		{"another magic", edit(0, 'X'), []string{"XNLAYER"}},
		{"many channels", edit(16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), []string{"18446744073709551615 channels", "3"}},
		{"negative batches", edit(31, 0x80), []string{"batches"}},
		{"a byte more", withChecksum(append(slices.Clone(body), 0)), []string{"97 bytes", "96 bytes"}},
		{"a byte less", withChecksum(slices.Clone(body[:len(body)-1])), []string{"95 bytes", "96 bytes"}},
		{"only a header", withChecksum(slices.Clone(body[:40])), []string{"48 bytes"}},
		{"4 channels", other(nothing, 4), []string{"4 channels", "3"}},
		{"Keras' epsilon", other(nothing, 3, batchnorm.Keras()), []string{"epsilon 0.001", "1e-05"}},
		{"no beta", other(func(l *batchnorm.Layer) { l.Beta = nil }, 3), []string{"beta"}},
		{"no running variance", other(func(l *batchnorm.Layer) { l.RunningVar = nil }, 3), []string{"running variance"}},
	} {
		l := newLayer(t, 3)
		before := clone(t, l)
		expectErrorWords(t, c.name, l.UnmarshalBinary(c.data), batchnorm.ErrState, c.words...)
		expectSameLayer(t, c.name, l, before)
	}
	l := newLayer(t, 3)
	l.RunningMean = nil
	expectErrorWords(t, "no running mean here", l.UnmarshalBinary(good), batchnorm.ErrState, "running mean")
	l.RunningMean = make([]float32, 2)
	before := clone(t, l)
	expectErrorWords(t, "running mean too short", l.UnmarshalBinary(good), batchnorm.ErrLength, "running mean has 2", "3")
	expectSameLayer(t, "running mean too short", l, before)
	b, err := l.MarshalBinary()
	expectErrorWords(t, "saving", err, batchnorm.ErrLength, "running mean has 2", "3")
	if b != nil {
		t.Error("MarshalBinary returns something with an error")
	}
	l.RunningMean, l.BatchesTracked = make([]float32, 3), -1
	_, err = l.MarshalBinary()
	expectErrorWords(t, "saving", err, batchnorm.ErrState, "-1")
}

// FuzzUnmarshalBinary: data is loaded and saved again unchanged, except for digits of
// epsilon that float32 does not have, or it is refused and changes nothing. With sum the
// checksum is made to fit, so that the checks after it are reached.
func FuzzUnmarshalBinary(f *testing.F) {
	good, err := trainedLayer(f, 3).MarshalBinary()
	noError(f, err)
	other, err := trainedLayer(f, 4, batchnorm.Keras()).MarshalBinary()
	noError(f, err)
	for _, b := range [][]byte{nil, good, good[:60], other, append(slices.Clone(good), 1)} {
		f.Add(b, false)
		f.Add(b[:max(0, len(b)-8)], true)
	}
	f.Fuzz(func(t *testing.T, data []byte, sum bool) {
		if sum {
			data = withChecksum(data)
		}
		l := newLayer(t, 3)
		before := clone(t, l)
		if err := l.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, batchnorm.ErrState) {
				t.Fatalf("%x gives %v, want ErrState", data, err)
			}
			expectSameLayer(t, "refused", l, before)
			return
		}
		again, err := l.MarshalBinary()
		noError(t, err)
		// A file's epsilon may have gone through a float32; the layer keeps its own.
		if saved := math.Float64frombits(binary.LittleEndian.Uint64(data[32:])); float32(saved) != float32(batchnorm.DefaultEpsilon) {
			t.Fatalf("%x is loaded into a layer with epsilon %v, has %v", data, batchnorm.DefaultEpsilon, saved)
		}
		if want := withChecksum(slices.Concat(data[:32], good[32:40], data[40:len(data)-8])); string(again) != string(want) {
			t.Fatalf("%x is loaded, but saves as %x, want %x", data, again, want)
		}
	})
}

// A second forward pass of a batch, after its activations were thrown away, gives
// the same bits, and the batch is counted once.
func TestLayerUntracked(t *testing.T) {
	for _, cumulative := range []bool{false, true} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.SiLU} {
			once, twice := newLayer(t, 5, batchnorm.WithActivation(act)), newLayer(t, 5, batchnorm.WithActivation(act))
			once.Cumulative, twice.Cumulative = cumulative, cumulative
			s := batchnorm.Shape{6, 5, 20}
			for step := range uint64(4) {
				x, dy := gen.Normal(step, s.Len(), 2, 3), gen.Normal(step+9, s.Len(), 0, 1)
				train := func(l *batchnorm.Layer, passes int) (y, dx []float32) {
					for pass := range passes {
						y, dx = make([]float32, s.Len()), make([]float32, s.Len())
						noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y, Untracked: pass > 0}))
					}
					noError(t, l.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: dx}))
					return y, dx
				}
				wantY, wantDX := train(once, 1)
				y, dx := train(twice, 2)
				expectBits(t, "y of the second pass", y, wantY)
				expectBits(t, "dx", dx, wantDX)
				expectSameLayer(t, "two passes and one", twice, once)
			}
			if twice.BatchesTracked != 4 {
				t.Errorf("%d batches are tracked, want 4", twice.BatchesTracked)
			}
		}
	}
}

// A layer has both running statistics or neither, in either mode.
func TestLayerHalfRunning(t *testing.T) {
	for _, training := range []bool{true, false} {
		for name, l := range map[string]*batchnorm.Layer{"running mean": newLayer(t, 3), "running variance": newLayer(t, 3)} {
			if !training {
				l.Eval()
			}
			if name == "running mean" {
				l.RunningMean = nil
			} else {
				l.RunningVar = nil
			}
			s := batchnorm.Shape{4, 3, 1}
			y := []float32{7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}
			err := l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: make([]float32, 12), Y: y})
			if !errors.Is(err, batchnorm.ErrMissing) || !strings.Contains(err.Error(), name+" is missing") || y[0] != 7 {
				t.Errorf("without %s: %v, want ErrMissing", name, err)
			}
		}
	}
}

// The number of batches ends where an int64 does, and the average goes on.
func TestLayerBatchesTrackedEnd(t *testing.T) {
	s := batchnorm.Shape{4, 3, 1}
	l := newLayer(t, 3)
	l.Cumulative, l.BatchesTracked = true, math.MaxInt64-1
	for range 3 {
		noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: gen.Normal(1, 12, 5, 1), Y: make([]float32, 12)}))
		if l.BatchesTracked != math.MaxInt64 || !(math.Abs(float64(l.RunningMean[0])) < 1e-17) {
			t.Errorf("%d batches are tracked, and the running mean is %v", l.BatchesTracked, l.RunningMean[0])
		}
	}
	if _, err := l.MarshalBinary(); err != nil {
		t.Error(err)
	}
	l.BatchesTracked = -1
	err := l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: make([]float32, 12), Y: make([]float32, 12)})
	if !errors.Is(err, batchnorm.ErrState) || !strings.Contains(err.Error(), "-1") {
		t.Errorf("with -1 batches: %v, want ErrState", err)
	}
}

// Epsilon that went through a float32 is the same epsilon, and others are not.
func TestLayerStateEpsilon(t *testing.T) {
	state, err := newLayer(t, 3, batchnorm.WithEpsilon(1e-3)).MarshalBinary()
	noError(t, err)
	noError(t, newLayer(t, 3, batchnorm.WithEpsilon(float64(float32(1e-3)))).UnmarshalBinary(state))
	for _, epsilon := range []float64{1e-5, 1.000001e-3, 0} {
		if err := newLayer(t, 3, batchnorm.WithEpsilon(epsilon)).UnmarshalBinary(state); !errors.Is(err, batchnorm.ErrState) {
			t.Errorf("epsilon %v instead of 0.001: %v, want ErrState", epsilon, err)
		}
	}
}
