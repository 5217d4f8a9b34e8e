package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/ulp"
)

// channelFormula is a system's published formula for one channel: its outputs and its
// running statistics.
type channelFormula func(x []float64, gamma, beta, runningMean, runningVar float64) (y []float64, newMean, newVar float64)

// Every system's formula, in the terms of its own documentation.
var systems = []struct {
	name        string
	option      func() batchnorm.Option
	singleValue bool
	formula     channelFormula
}{
	{
		// torch.nn.BatchNorm2d: y = (x - E[x]) / sqrt(Var[x] + eps) * gamma + beta
		// with the biased variance; x_new = (1 - momentum) * x + momentum * x_t with
		// momentum 0.1 and the unbiased one.
		name: "PyTorch", option: batchnorm.PyTorch,
		formula: func(x []float64, gamma, beta, runningMean, runningVar float64) (y []float64, newMean, newVar float64) {
			const eps, momentum = 1e-5, 0.1
			n := float64(len(x))
			mean, squares := meanAndSquares(x)
			for _, v := range x {
				y = append(y, (v-mean)/math.Sqrt(squares/n+eps)*gamma+beta)
			}
			return y, (1-momentum)*runningMean + momentum*mean, (1-momentum)*runningVar + momentum*squares/(n-1)
		},
	},
	{
		// keras.layers.BatchNormalization: gamma * (batch - mean) / sqrt(var + epsilon) + beta;
		// moving = moving * momentum + batch * (1 - momentum), with epsilon 0.001 and momentum 0.99.
		name: "Keras", option: batchnorm.Keras, singleValue: true,
		formula: func(x []float64, gamma, beta, movingMean, movingVar float64) (y []float64, newMean, newVar float64) {
			const epsilon, momentum = 0.001, 0.99
			mean, squares := meanAndSquares(x)
			variance := squares / float64(len(x))
			for _, v := range x {
				y = append(y, gamma*(v-mean)/math.Sqrt(variance+epsilon)+beta)
			}
			return y, movingMean*momentum + mean*(1-momentum), movingVar*momentum + variance*(1-momentum)
		},
	},
	{
		// tf.compat.v1.nn.fused_batch_norm, epsilon 0.001, exponential_avg_factor 1: the
		// variance that it returns is multiplied by rest_size / max(rest_size - 1, 1).
		name: "TensorFlow", option: batchnorm.TensorFlow, singleValue: true,
		formula: func(x []float64, scale, offset, oldMean, oldVar float64) (y []float64, newMean, newVar float64) {
			const epsilon, factor = 0.001, 1.0
			restSize := float64(len(x))
			mean, squares := meanAndSquares(x)
			variance := squares / restSize
			for _, v := range x {
				y = append(y, (v-mean)*(scale/math.Sqrt(variance+epsilon))+offset)
			}
			adjusted := variance * (restSize / math.Max(restSize-1, 1))
			return y, (1-factor)*oldMean + factor*mean, (1-factor)*oldVar + factor*adjusted
		},
	},
	{
		// ONNX BatchNormalization-15 with training_mode:
		// running = input * momentum + current * (1 - momentum), current_var = ReduceVar
		// (divided by N), Y = (X - current_mean) / sqrt(current_var + epsilon) * scale + B.
		name: "ONNX", option: batchnorm.ONNX, singleValue: true,
		formula: func(x []float64, scale, b, inputMean, inputVar float64) (y []float64, newMean, newVar float64) {
			const epsilon, momentum = 1e-5, 0.9
			mean, squares := meanAndSquares(x)
			currentVar := squares / float64(len(x))
			for _, v := range x {
				y = append(y, (v-mean)/math.Sqrt(currentVar+epsilon)*scale+b)
			}
			return y, inputMean*momentum + mean*(1-momentum), inputVar*momentum + currentVar*(1-momentum)
		},
	},
	{
		// flax.linen.BatchNorm: mul = rsqrt(var + epsilon) * scale; y = (x - mean) * mul + bias;
		// ra = momentum * ra + (1 - momentum) * batch.
		name: "Flax", option: batchnorm.Flax, singleValue: true,
		formula: func(x []float64, scale, bias, raMean, raVar float64) (y []float64, newMean, newVar float64) {
			const epsilon, momentum = 1e-5, 0.99
			mean, squares := meanAndSquares(x)
			variance := squares / float64(len(x))
			mul := 1 / math.Sqrt(variance+epsilon) * scale
			for _, v := range x {
				y = append(y, (v-mean)*mul+bias)
			}
			return y, momentum*raMean + (1-momentum)*mean, momentum*raVar + (1-momentum)*variance
		},
	},
	{
		// cudnnBatchNormalizationForwardTraining called with epsilon 1e-5 and
		// exponentialAverageFactor 0.1: running = running*(1-factor) + new*factor, the
		// new variance being m/(m-1) times the one that normalizes.
		name: "cuDNN", option: batchnorm.CuDNN,
		formula: func(x []float64, scale, bias, runningMean, runningVar float64) (y []float64, newMean, newVar float64) {
			const epsilon, factor = 1e-5, 0.1
			m := float64(len(x))
			mean, squares := meanAndSquares(x)
			for _, v := range x {
				y = append(y, bias+scale*(v-mean)/math.Sqrt(squares/m+epsilon))
			}
			return y, runningMean*(1-factor) + mean*factor, runningVar*(1-factor) + squares/m*(m/(m-1))*factor
		},
	},
}

// meanAndSquares returns the mean and the sum of squared deviations from it.
func meanAndSquares(x []float64) (mean, squares float64) {
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		squares += (v - mean) * (v - mean)
	}
	return mean, squares
}

// Two batches through every system's options, against the formula. The data are
// narrow (variance about 0.01), so that the epsilons differ in the second digit,
// and few (n is 6), so that n and n-1 do.
func TestSystems(t *testing.T) {
	for _, system := range systems {
		t.Run(system.name, func(t *testing.T) {
			for _, s := range []batchnorm.Shape{{2, 5, 3}, {6, 5, 1}} {
				forEachPath(t, func(t *testing.T, path batchnorm.Path) {
					testSystem(t, s, system.formula, batchnorm.WithPath(path), system.option())
				})
			}
		})
	}
}

func testSystem(t *testing.T, s batchnorm.Shape, formula channelFormula, opts ...batchnorm.Option) {
	t.Helper()
	p := newPlan(t, s, opts...)
	gamma, beta := gen.Uniform(1, s.Channels, 0.5, 2), gen.Uniform(2, s.Channels, -1, 1)
	runningMean, runningVar := gen.Uniform(3, s.Channels, -1, 1), gen.Uniform(4, s.Channels, 0.5, 2)
	for batch := range uint64(2) {
		x := gen.Normal(10+batch, s.Len(), 0.5, 0.1)
		wantY := make([]float64, s.Len())
		wantMean, wantVar := make([]float64, s.Channels), make([]float64, s.Channels)
		for c := range s.Channels {
			var values []float64
			var at []int
			for k, v := range x {
				if channelOf(s, k) == c {
					values, at = append(values, float64(v)), append(at, k)
				}
			}
			var y []float64
			y, wantMean[c], wantVar[c] = formula(values, float64(gamma[c]), float64(beta[c]), float64(runningMean[c]), float64(runningVar[c]))
			for i, k := range at {
				wantY[k] = y[i]
			}
		}
		y := make([]float32, s.Len())
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, RunningMean: runningMean, RunningVar: runningVar}))
		name := fmt.Sprintf(" of %v, batch %d", s, batch+1)
		// The largest |x-mean|*invstd*gamma here is about 4.
		expectNear(t, "y"+name, y, wantY, func(int) float64 { return 4 * yTolerance })
		// float32 sums of six values, and the rounding to float32.
		near := func(want []float64) func(int) float64 {
			return func(c int) float64 { return 1e-7*0.02 + ulp.Of(want[c]) }
		}
		expectNear(t, "running mean"+name, runningMean, wantMean, near(wantMean))
		expectNear(t, "running variance"+name, runningVar, wantVar, near(wantVar))
	}
}

// One value per channel, by each system's rule.
func TestSystemsSingleValue(t *testing.T) {
	s := batchnorm.Shape{1, 3, 1}
	for _, system := range systems {
		x, y := []float32{1, 2, 3}, make([]float32, 3)
		runningMean, runningVar := []float32{5, 6, 7}, []float32{8, 9, 10}
		beta := []float32{-1, 0.5, 2}
		args := batchnorm.ForwardArgs{X: x, Beta: beta, Y: y, RunningMean: runningMean, RunningVar: runningVar}
		err := newPlan(t, s, system.option()).Forward(args)
		if !system.singleValue {
			if !errors.Is(err, batchnorm.ErrTooFewValues) {
				t.Errorf("%s: one value per channel gives %v, want ErrTooFewValues", system.name, err)
			}
			continue
		}
		noError(t, err)
		expectBits(t, system.name+": y", y, beta)
		for c := range x {
			_, mean, variance := system.formula([]float64{float64(x[c])}, 1, 0, float64(5+c), float64(8+c))
			if runningMean[c] != float32(mean) || runningVar[c] != float32(variance) {
				t.Errorf("%s: running statistics become %v, %v; want %v, %v", system.name, runningMean[c], runningVar[c], mean, variance)
			}
		}
	}
}

// An option behind a set changes one thing of it, a set behind an option all
// that it sets; a call's momentum goes before the plan's.
func TestSystemsOrder(t *testing.T) {
	s := batchnorm.Shape{4, 1, 1}
	x := []float32{1, 2, 3, 6} // mean 3, squares 14
	run := func(m batchnorm.Momentum, opts ...batchnorm.Option) (mean, variance float32) {
		t.Helper()
		runningMean, runningVar := []float32{1}, []float32{0}
		noError(t, newPlan(t, s, opts...).Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, 4),
			RunningMean: runningMean, RunningVar: runningVar, Momentum: m}))
		return runningMean[0], runningVar[0]
	}
	none := batchnorm.Momentum{}
	for name, c := range map[string]struct {
		momentum       batchnorm.Momentum
		opts           []batchnorm.Option
		mean, variance float32
	}{
		"option behind set": {none, []batchnorm.Option{batchnorm.Keras(), batchnorm.WithMomentum(batchnorm.NewWeight(0.5))}, 2, 14.0 / 4 / 2},
		"set behind option": {none, []batchnorm.Option{batchnorm.WithMomentum(batchnorm.NewWeight(0.5)), batchnorm.TensorFlow()}, 3, 14.0 / 3},
		"variance behind":   {none, []batchnorm.Option{batchnorm.TensorFlow(), batchnorm.WithRunningVariance(batchnorm.Population)}, 3, 14.0 / 4},
		"unbiased again": {none, []batchnorm.Option{batchnorm.WithRunningVariance(batchnorm.Population),
			batchnorm.WithRunningVariance(batchnorm.Unbiased), batchnorm.WithMomentum(batchnorm.NewWeight(1))}, 3, 14.0 / 3},
		"call before plan":  {batchnorm.NewWeight(0.5), []batchnorm.Option{batchnorm.TensorFlow()}, 2, 14.0 / 3 / 2},
		"default again":     {none, []batchnorm.Option{batchnorm.TensorFlow(), batchnorm.WithMomentum(none)}, 1.2, 1.4 / 3},
		"default":           {none, nil, 1.2, 1.4 / 3},
		"call's zero stays": {batchnorm.NewWeight(0), []batchnorm.Option{batchnorm.TensorFlow()}, 1, 0},
	} {
		mean, variance := run(c.momentum, c.opts...)
		if mean != c.mean || variance != c.variance {
			t.Errorf("%s: running statistics become %v, %v; want %v, %v", name, mean, variance, c.mean, c.variance)
		}
	}
	for _, c := range []struct {
		option  batchnorm.Option
		epsilon float64
	}{{batchnorm.PyTorch(), 1e-5}, {batchnorm.Keras(), 1e-3}, {batchnorm.TensorFlow(), 1e-3},
		{batchnorm.ONNX(), 1e-5}, {batchnorm.Flax(), 1e-5}, {batchnorm.CuDNN(), 1e-5}} {
		if got := newPlan(t, s, c.option).Epsilon(); got != c.epsilon {
			t.Errorf("epsilon is %v, want %v", got, c.epsilon)
		}
		if got := newPlan(t, s, c.option, batchnorm.WithEpsilon(0.25)).Epsilon(); got != 0.25 {
			t.Errorf("epsilon behind the set is %v, want 0.25", got)
		}
	}
}

// Split pieces, ghost batches and renormalization track as Forward does, by the
// plan's momentum and variance.
func TestSystemsEverywhere(t *testing.T) {
	s := batchnorm.Shape{6, 3, 4}
	x, y := gen.Normal(1, s.Len(), 0.5, 0.1), make([]float32, s.Len())
	for _, system := range systems {
		p := newPlan(t, s, system.option())
		track := func(call func(mean, variance []float32) error) (mean, variance []float32) {
			mean, variance = []float32{1, 2, 3}, []float32{0.5, 1, 2}
			noError(t, call(mean, variance))
			return mean, variance
		}
		wantMean, wantVar := track(func(mean, variance []float32) error {
			return p.Forward(batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance})
		})
		for name, call := range map[string]func(mean, variance []float32) error{
			"Statistics": func(mean, variance []float32) error {
				m := batchnorm.Moments{Mean: make([]float64, 3), M2: make([]float64, 3)}
				return errors.Join(p.Moments(batchnorm.MomentsArgs{X: x, Moments: &m}),
					p.Statistics(batchnorm.StatisticsArgs{Moments: m, RunningMean: mean, RunningVar: variance}))
			},
			"one ghost batch": func(mean, variance []float32) error {
				g, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: 6, Size: 6}, system.option())
				noError(t, err)
				return g.Forward(batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance})
			},
			"RenormForward": func(mean, variance []float32) error {
				return p.RenormForward(batchnorm.RenormForwardArgs{RMax: 3, DMax: 5, R: make([]float64, 3), D: make([]float64, 3),
					ForwardArgs: batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance}})
			},
		} {
			mean, variance := track(call)
			expectBits(t, system.name+", "+name+": running mean", mean, wantMean)
			expectBits(t, system.name+", "+name+": running variance", variance, wantVar)
		}
	}
}

// Without running slices nothing is tracked, with one of them only that one is.
func TestNoTracking(t *testing.T) {
	s := batchnorm.Shape{3, 2, 2}
	p := newPlan(t, s, batchnorm.Keras())
	x := gen.Normal(1, s.Len(), 3, 1)
	run := func(mean, variance []float32) []float32 {
		y := make([]float32, s.Len())
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance}))
		return y
	}
	mean, variance := []float32{0, 0}, []float32{1, 1}
	want := run(mean, variance)
	for _, c := range []struct{ mean, variance []float32 }{{nil, nil}, {[]float32{0, 0}, nil}, {nil, []float32{1, 1}}} {
		expectBits(t, "y", run(c.mean, c.variance), want)
		if c.mean != nil && !slices.Equal(c.mean, mean) || c.variance != nil && !slices.Equal(c.variance, variance) {
			t.Errorf("running statistics become %v, %v; want %v, %v", c.mean, c.variance, mean, variance)
		}
	}
}

func TestSystemOptionErrors(t *testing.T) {
	for _, c := range []struct {
		option batchnorm.Option
		words  []string
	}{
		{batchnorm.WithMomentum(batchnorm.NewWeight(1.5)), []string{"momentum", "1.5"}},
		{batchnorm.WithMomentum(batchnorm.OldWeight(1.5)), []string{"momentum", "-0.5"}},
		{batchnorm.WithMomentum(batchnorm.Cumulative(0)), []string{"momentum", "Cumulative(0)", "number 1"}},
		{batchnorm.WithRunningVariance(7), []string{"running variance", "Variance(7)"}},
	} {
		p, err := batchnorm.NewPlan(someShape, c.option)
		if p != nil || !errors.Is(err, batchnorm.ErrOption) {
			t.Errorf("%v: NewPlan returns %v, %v, want ErrOption", c.words, p, err)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not mention %q", err, w)
			}
		}
	}
	if s := batchnorm.Unbiased.String() + " " + batchnorm.Population.String(); s != "unbiased population" {
		t.Errorf("the variances are called %q", s)
	}
}
