package batchnorm_test

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/fusedbn/batchnorm/internal/ulp"
)

// goldenActivations are the activations of the golden files, by their names there.
var goldenActivations = map[string]batchnorm.Activation{
	"identity":        batchnorm.Identity,
	"relu":            batchnorm.ReLU,
	"leaky_relu_0.01": batchnorm.LeakyReLU(0.01),
	"sigmoid":         batchnorm.Sigmoid,
	"tanh":            batchnorm.Tanh,
	"silu":            batchnorm.SiLU,
	"gelu_erf":        batchnorm.GELU,
	"gelu_tanh":       batchnorm.GELUTanh,
}

func TestGolden(t *testing.T) {
	t.Parallel()
	cases, err := reference.Goldens("testdata/golden")
	noError(t, err)
	files := 0
	for _, g := range cases {
		act, known := goldenActivations[g.Activation]
		if !known {
			t.Errorf("%s: the activation %q is unknown", g.Name, g.Activation)
			continue
		}
		files++
		t.Run(g.Name, func(t *testing.T) {
			rows, err := batchnorm.NCHW(g.Dims...)
			noError(t, err)
			t.Run("NCHW", func(t *testing.T) { testGolden(t, g, rows, act) })
			last := goldenChannelsLast(g)
			cols, err := batchnorm.NHWC(last.Dims...)
			noError(t, err)
			t.Run("NHWC", func(t *testing.T) { testGolden(t, last, cols, act) })
		})
	}
	if files < 18 {
		t.Errorf("%d golden files were compared, want at least 18", files)
	}
}

// goldenChannelsLast transposes a case from NCHW to NHWC.
func goldenChannelsLast(g reference.Golden) reference.Golden {
	p := g.Problem()
	g.Dims = append(append([]int{p.Outer}, g.Dims[2:]...), p.Channels)
	for _, s := range []*[]float32{&g.X, &g.Residual, &g.DY} {
		*s = channelsLast(*s, p.Channels, p.Inner)
	}
	for _, s := range []*[]float64{&g.Y, &g.DX, &g.DResidual} {
		*s = channelsLast(*s, p.Channels, p.Inner)
	}
	return g
}

// The errors that a result may have, in float32 arithmetic with a unit
// roundoff of 6e-8.
const (
	// The mean of a batch, relative to its standard deviation, and the
	// variance and the sums of the backward pass, relative to the sum of what
	// was added up: sums of some hundred values over several lanes.
	sumTolerance = 1e-7
	// y, relative to the largest term it is made of.
	yTolerance = 3e-7
	// dx, relative to the largest of the channel.
	dxTolerance = 3e-7
)

func testGolden(t *testing.T, g reference.Golden, s batchnorm.Shape, act batchnorm.Activation) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		p := newPlan(t, s, batchnorm.WithEpsilon(g.Epsilon), batchnorm.WithActivation(act), batchnorm.WithPath(path))
		if g.Training {
			testGoldenTraining(t, g, p)
			return
		}
		y := make([]float32, s.Len())
		noError(t, p.Inference(batchnorm.InferenceArgs{
			X: g.X, Residual: g.Residual, Gamma: g.Gamma, Beta: g.Beta,
			Mean: g.RunningMeanBefore, Var: g.RunningVarBefore, Y: y,
		}))
		expectGoldenY(t, g, s, y)

		dx, dgamma, dbeta := make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
		var dresidual []float32
		if g.DResidual != nil {
			dresidual = make([]float32, s.Len())
		}
		noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{
			DY: g.DY, X: g.X, Residual: g.Residual, Gamma: g.Gamma, Beta: g.Beta, Mean: g.RunningMeanBefore, Var: g.RunningVarBefore,
			DX: dx, DResidual: dresidual, DGamma: dgamma, DBeta: dbeta,
		}))
		mean, invStd := make([]float64, s.Channels), make([]float64, s.Channels)
		for c := range mean {
			mean[c], invStd[c] = float64(g.RunningMeanBefore[c]), 1/math.Sqrt(float64(g.RunningVarBefore[c])+g.Epsilon)
		}
		expectGoldenGradients(t, g, s, mean, invStd, dx, dgamma, dbeta, dresidual)
	})
}

func testGoldenTraining(t *testing.T, g reference.Golden, p *batchnorm.Plan) {
	s := p.Shape()
	weight, momentum := 1.0, batchnorm.Cumulative(1)
	if g.Momentum != nil {
		weight, momentum = *g.Momentum, batchnorm.NewWeight(*g.Momentum)
	}
	y := make([]float32, s.Len())
	mean, invStd := make([]float64, s.Channels), make([]float64, s.Channels)
	runningMean, runningVar := append([]float32(nil), g.RunningMeanBefore...), append([]float32(nil), g.RunningVarBefore...)
	noError(t, p.Forward(batchnorm.ForwardArgs{
		X: g.X, Residual: g.Residual, Gamma: g.Gamma, Beta: g.Beta,
		Y: y, Mean: mean, InvStd: invStd,
		RunningMean: runningMean, RunningVar: runningVar, Momentum: momentum,
	}))
	expectGoldenY(t, g, s, y)

	meanTolerance := func(c int) float64 { return sumTolerance * math.Sqrt(g.BatchVar[c]) }
	varTolerance := func(c int) float64 { return sumTolerance * g.BatchVar[c] }
	expectNear(t, "mean", mean, g.BatchMean, meanTolerance)
	variance := make([]float64, s.Channels)
	for c, v := range invStd {
		variance[c] = 1/(v*v) - g.Epsilon
	}
	// Taking epsilon off again brings the rounding of a float64 to the fore.
	expectNear(t, "variance", variance, g.BatchVar, func(c int) float64 { return varTolerance(c) + 1e-15*(g.BatchVar[c]+g.Epsilon) })

	// The batch's error with its weight, and the rounding to float32.
	n := float64(s.PerChannel())
	expectNear(t, "running mean", runningMean, g.RunningMeanAfter, func(c int) float64 {
		return weight*meanTolerance(c) + ulp.Of(g.RunningMeanAfter[c])/2
	})
	expectNear(t, "running variance", runningVar, g.RunningVarAfter, func(c int) float64 {
		return weight*varTolerance(c)*n/(n-1) + ulp.Of(g.RunningVarAfter[c])/2
	})

	dx, dgamma, dbeta := make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
	var dresidual []float32
	if g.DResidual != nil {
		dresidual = make([]float32, s.Len())
	}
	noError(t, p.Backward(batchnorm.BackwardArgs{
		DY: g.DY, X: g.X, Residual: g.Residual, Gamma: g.Gamma, Beta: g.Beta, Mean: mean, InvStd: invStd,
		DX: dx, DResidual: dresidual, DGamma: dgamma, DBeta: dbeta,
	}))
	expectGoldenGradients(t, g, s, mean, invStd, dx, dgamma, dbeta, dresidual)
}

// expectGoldenGradients compares gradients, for data normalized by the golden statistics.
func expectGoldenGradients(t *testing.T, g reference.Golden, s batchnorm.Shape, mean, invStd []float64, dx, dgamma, dbeta, dresidual []float32) {
	t.Helper()
	largestDX := perChannel(s, func(old float64, k int) float64 { return max(old, math.Abs(g.DX[k])) })
	expectNear(t, "dx", dx, g.DX, func(k int) float64 { return dxTolerance * largestDX[channelOf(s, k)] })
	if g.DGamma != nil {
		sum := perChannel(s, func(old float64, k int) float64 {
			c := channelOf(s, k)
			return old + math.Abs(float64(g.DY[k])*(float64(g.X[k])-mean[c]))*invStd[c]
		})
		expectNear(t, "dgamma", dgamma, g.DGamma, func(c int) float64 { return sumTolerance * sum[c] })
	}
	if g.DBeta != nil {
		sum := perChannel(s, func(old float64, k int) float64 { return old + math.Abs(float64(g.DY[k])) })
		expectNear(t, "dbeta", dbeta, g.DBeta, func(c int) float64 { return sumTolerance * sum[c] })
	}
	if g.DResidual != nil {
		// One product, dy*act'(z), rounded once.
		expectNear(t, "dresidual", dresidual, g.DResidual, func(k int) float64 { return ulp.Of(g.DResidual[k]) })
	}
}

func expectGoldenY(t *testing.T, g reference.Golden, s batchnorm.Shape, y []float32) {
	t.Helper()
	expectNear(t, "y", y, g.Y, func(k int) float64 {
		c := channelOf(s, k)
		largest := max(1, math.Abs(g.Y[k]))
		if g.Beta != nil {
			largest = max(largest, math.Abs(float64(g.Beta[c])))
		}
		if g.Residual != nil {
			largest = max(largest, math.Abs(float64(g.Residual[k])))
		}
		return yTolerance * largest
	})
}

// perChannel folds the elements of every channel, from 0 on.
func perChannel(s batchnorm.Shape, fold func(old float64, k int) float64) []float64 {
	r := make([]float64, s.Channels)
	for k := range s.Len() {
		c := channelOf(s, k)
		r[c] = fold(r[c], k)
	}
	return r
}

// TestGoldenModes compares masks, ghost batches and renormalization with
// PyTorch's autograd.
func TestGoldenModes(t *testing.T) {
	t.Parallel()
	cases, err := reference.Goldens("testdata/modes")
	noError(t, err)
	if len(cases) < 10 {
		t.Errorf("there are %d golden files of modes, want at least 10", len(cases))
	}
	for _, g := range cases {
		t.Run(g.Name, func(t *testing.T) {
			rows, err := batchnorm.NCHW(g.Dims...)
			noError(t, err)
			t.Run("NCHW", func(t *testing.T) { testGoldenMode(t, g, rows) })
			last := goldenChannelsLast(g)
			cols, err := batchnorm.NHWC(last.Dims...)
			noError(t, err)
			t.Run("NHWC", func(t *testing.T) { testGoldenMode(t, last, cols) })
		})
	}
}

func testGoldenMode(t *testing.T, g reference.Golden, s batchnorm.Shape) {
	mask := batchnorm.Mask{Lengths: g.Lengths, Valid: g.Valid}
	modes := []mode{plain(mask)}
	switch {
	case g.GhostSize > 0:
		modes = []mode{ghost(batchnorm.GhostBatches{Samples: g.Dims[0], Size: g.GhostSize}, batchnorm.Mask{})}
	case g.RMax > 0:
		modes = []mode{renorm(g.RMax, g.DMax, mask)}
	case s.Inner == 1: // a mask may be cut as the batch is
		modes = append(modes, split([]int{25, 60}, batchnorm.Mask{Valid: valid(mask, s)}))
	default:
		modes = append(modes, split([]int{2, 6}, batchnorm.Mask{Valid: valid(mask, s)}))
	}
	if g.Activation == "identity" && g.GhostSize == 0 && g.RMax == 0 {
		modes = append(modes, fromY(mask))
	}
	p := problem{shape: s, act: goldenActivations[g.Activation], epsilon: g.Epsilon, x: g.X, residual: g.Residual,
		gamma: g.Gamma, beta: g.Beta, dy: g.DY, mean: g.RunningMeanBefore, vari: g.RunningVarBefore}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			r := m.same(t, p, waysOfModes(), slices.Clone)
			near := func(name string, got []float32, want []float64) {
				t.Helper()
				expectNear(t, name, got, want, func(i int) float64 { return 3e-6 * max(1, math.Abs(want[i])) })
			}
			near("y", r.y, g.Y)
			near("running mean", r.runMean, g.RunningMeanAfter)
			near("running variance", r.runVar, g.RunningVarAfter)
			near("dx", r.dx, g.DX)
			near("dgamma", r.dgamma, g.DGamma)
			near("dbeta", r.dbeta, g.DBeta)
			near("dresidual", r.dres, g.DResidual)
		})
	}
}
