package reference

import (
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
)

func problem(activation string) Problem {
	const outer, channels, inner = 3, 4, 5
	const n = outer * channels * inner
	return Problem{
		Outer: outer, Channels: channels, Inner: inner, Epsilon: 1e-3, Activation: activation,
		X:        gen.Normal(1, n, 0.5, 2),
		Residual: gen.Normal(2, n, 0, 1),
		Gamma:    gen.Uniform(3, channels, -2, 2),
		Beta:     gen.Normal(4, channels, 0, 1),
		DY:       gen.Normal(5, n, 0, 1),
	}
}

var names = []string{"identity", "relu", "leaky_relu(0.01)", "leaky_relu(-0.5)", "clip(0,6)", "clip(-1,0.5)", "hard_sigmoid", "hard_swish",
	"sigmoid", "tanh", "silu", "elu(1)", "elu(0.3)", "softplus", "mish", "gelu", "gelu_tanh"}

// Slope, Curvature and Jump are bounds, and are nearly reached.
func TestActivationBounds(t *testing.T) {
	for _, name := range names {
		act := ActivationOf(name)
		slope, curvature, jump := 0.0, 0.0, 0.0
		const step = 1e-3
		for i := range 20000 {
			z := (float64(i) - 10000.5) * step
			d, next := act.Derivative(z), act.Derivative(z+step)
			kink := slices.ContainsFunc(act.Kinks, func(k float64) bool { return z <= k && k <= z+step })
			slope = max(slope, math.Abs(d))
			if kink {
				jump = max(jump, math.Abs(next-d)-step)
			} else {
				curvature = max(curvature, math.Abs(next-d)/step)
			}
		}
		for _, c := range []struct {
			what       string
			got, bound float64
		}{{"slope", slope, act.Slope}, {"curvature", curvature, act.Curvature}, {"jump", jump, act.Jump}} {
			if c.got > c.bound*(1+1e-9)+1e-9 || c.got < 0.7*c.bound-1e-3 {
				t.Errorf("%s: the largest %s is %v, said to be %v", name, c.what, c.got, c.bound)
			}
		}
	}
}

// At infinite arguments there are the limits, and NaN stays NaN.
func TestActivationLimits(t *testing.T) {
	limits := map[string][4]float64{ // at -Inf: value and derivative; at +Inf: the same
		"sigmoid": {0, 0, 1, 0}, "tanh": {-1, 0, 1, 0}, "elu(0.3)": {-0.3, 0, math.Inf(1), 1}, "softplus": {0, 0, math.Inf(1), 1},
		"hard_sigmoid": {0, 0, 1, 0}, "hard_swish": {0, 0, math.Inf(1), 1},
		"silu": {0, 0, math.Inf(1), 1}, "mish": {0, 0, math.Inf(1), 1}, "gelu": {0, 0, math.Inf(1), 1}, "gelu_tanh": {0, 0, math.Inf(1), 1},
	}
	for name, want := range limits {
		act := ActivationOf(name)
		for i, z := range []float64{math.Inf(-1), math.Inf(1)} {
			v, d := act.Both(z)
			if v != want[2*i] || d != want[2*i+1] || act.F(z) != v || act.Derivative(z) != d {
				t.Errorf("%s(%v) is %v with derivative %v, want %v", name, z, v, d, want[2*i:2*i+2])
			}
		}
		if v := act.F(math.NaN()); v == v {
			t.Errorf("%s(NaN) is %v", name, v)
		}
	}
}

// goldenNames are the golden files' names for activations, where they differ.
var goldenNames = map[string]string{"gelu_erf": "gelu", "leaky_relu_0.01": "leaky_relu(0.01)"}

// The gradients are those of the loss sum(dy*y), by central differences.
func TestBackwardIsTheDerivative(t *testing.T) {
	for _, name := range names {
		base := problem(name)
		mean, variance := gen.Normal(6, base.Channels, 0.5, 1), gen.Uniform(7, base.Channels, 1, 4)
		masked := base
		masked.Valid = []bool{true, true, false, true, false, false, false, false, false, false, true, true, true, true, false}
		renorm := base
		renorm.R, renorm.D = Renorm(base, mean, variance, 1.25, 0.5)
		testDerivative(t, name, base, Z, Forward, Backward)
		testDerivative(t, name+" with a mask", masked, Z, Forward, Backward)
		testDerivative(t, name+" renormalized", renorm, Z, Forward, Backward)
		testDerivative(t, name+" frozen", base,
			func(p Problem) []float64 { return p.z(p.given(mean, variance)) },
			func(p Problem) Result { return Result{Y: Inference(p, mean, variance)} },
			func(p Problem) Gradients { return FrozenBackward(p, mean, variance) })
	}
}

// The gradients are those of the loss sum(dy*y).
func testDerivative(t *testing.T, name string, p Problem, z func(Problem) []float64,
	forward func(Problem) Result, backward func(Problem) Gradients) {
	t.Run(name, func(t *testing.T) {
		p.X, p.Residual, p.Gamma, p.Beta = slices.Clone(p.X), slices.Clone(p.Residual), slices.Clone(p.Gamma), slices.Clone(p.Beta)
		p.DY = slices.Clone(p.DY)
		const step = 0x1p-10
		// Away from the kinks: a value that the step could carry across has no
		// part in the loss.
		for k, z := range z(p) {
			for _, kink := range p.activation().Kinks {
				if math.Abs(z-kink) < 16*step {
					p.DY[k] = 0
				}
			}
		}
		loss := func() float64 {
			var s sum
			for k, y := range forward(p).Y {
				s.add(float64(p.DY[k]) * y)
			}
			return s.value()
		}
		g := backward(p)
		for _, v := range []struct {
			name string
			at   []float32
			got  []float64
		}{
			{"x", p.X, g.DX},
			{"residual", p.Residual, g.DResidual},
			{"gamma", p.Gamma, g.DGamma},
			{"beta", p.Beta, g.DBeta},
		} {
			if len(v.got) != len(v.at) {
				t.Fatalf("d%s has %d elements, want %d", v.name, len(v.got), len(v.at))
			}
			for i, old := range v.at {
				above, below := old+step, old-step
				v.at[i] = above
				diff := loss()
				v.at[i] = below
				diff -= loss()
				v.at[i] = old
				want := diff / (float64(above) - float64(below))
				if math.Abs(v.got[i]-want) > 1e-5*max(1, math.Abs(want)) {
					t.Errorf("d%s[%d] is %v, the difference quotient %v", v.name, i, v.got[i], want)
				}
			}
		}
	})
}

func TestGolden(t *testing.T) {
	cases, err := Goldens("../../testdata/golden")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, g := range cases {
		if name, ok := goldenNames[g.Activation]; ok {
			g.Activation = name
		}
		compared++
		t.Run(g.Name, func(t *testing.T) {
			near := func(name string, got, want []float64) {
				t.Helper()
				if len(got) != len(want) {
					t.Fatalf("%s has %d elements, want %d", name, len(got), len(want))
				}
				scale := 1.0
				for _, v := range want {
					scale = max(scale, math.Abs(v))
				}
				for i := range want {
					if !(math.Abs(got[i]-want[i]) <= 1e-12*scale) {
						t.Fatalf("%s[%d] is %v, want %v", name, i, got[i], want[i])
					}
				}
			}
			p := g.Problem()
			var d Gradients
			if g.Training {
				r := Forward(p)
				near("y", r.Y, g.Y)
				near("mean", r.Mean, g.BatchMean)
				near("var", r.Var, g.BatchVar)
				d = Backward(p)
			} else {
				near("y", Inference(p, g.RunningMeanBefore, g.RunningVarBefore), g.Y)
				d = FrozenBackward(p, g.RunningMeanBefore, g.RunningVarBefore)
			}
			near("dx", d.DX, g.DX)
			if g.Gamma != nil {
				near("dgamma", d.DGamma, g.DGamma)
			}
			if g.Beta != nil {
				near("dbeta", d.DBeta, g.DBeta)
			}
			if g.Residual != nil {
				near("dresidual", d.DResidual, g.DResidual)
			}
		})
	}
	if compared < 18 {
		t.Errorf("%d golden cases were compared, want at least 18", compared)
	}
}

// Statistics of data far from zero agree with exact arithmetic.
func TestOffset(t *testing.T) {
	p := Problem{Outer: 500, Channels: 1, Inner: 2, Activation: "identity", X: gen.Normal(6, 1000, 1e8, 100)}
	n := big.NewRat(int64(len(p.X)), 1)
	mean, variance := new(big.Rat), new(big.Rat)
	for _, x := range p.X {
		mean.Add(mean, new(big.Rat).SetFloat64(float64(x)))
	}
	mean.Quo(mean, n)
	for _, x := range p.X {
		d := new(big.Rat).SetFloat64(float64(x))
		d.Sub(d, mean)
		variance.Add(variance, d.Mul(d, d))
	}
	variance.Quo(variance, n)

	s := p.statistics(0)
	rest := new(big.Rat).Sub(mean, new(big.Rat).SetFloat64(s.mean))
	wantRest, _ := rest.Float64()
	if wantRest == 0 {
		t.Fatal("the mean is a float64: the case does not test the rest of it")
	}
	if math.Abs(s.rest-wantRest) > 1e-12*math.Abs(wantRest) {
		t.Errorf("mean is %v + %v, the exact rest is %v", s.mean, s.rest, wantRest)
	}
	if want, _ := variance.Float64(); math.Abs(s.variance-want) > 1e-14*want {
		t.Errorf("variance is %v, want %v", s.variance, want)
	}
}

func TestMissingArguments(t *testing.T) {
	full := problem("identity")
	clear(full.Residual)
	clear(full.Beta)
	for i := range full.Gamma {
		full.Gamma[i] = 1
	}
	short := full
	short.Residual, short.Gamma, short.Beta = nil, nil, nil
	for k, z := range Z(full) {
		if got := Z(short)[k]; got != z {
			t.Fatalf("z[%d] is %v without the arguments, %v with what they stand for", k, got, z)
		}
	}
	dx := Backward(short).DX
	for k, want := range Backward(full).DX {
		if dx[k] != want {
			t.Fatalf("dx[%d] is %v without the arguments, %v with what they stand for", k, dx[k], want)
		}
	}
}

func TestDegenerate(t *testing.T) {
	constant := Problem{Outer: 1, Channels: 1, Inner: 3, Activation: "identity", X: []float32{7, 7, 7}, Beta: []float32{2}, DY: []float32{1, 2, 3}}
	if r := Forward(constant); r.InvStd[0] != 0 || r.Y[1] != 2 {
		t.Errorf("without variance and epsilon: invstd %v, y %v, want 0 and beta", r.InvStd[0], r.Y)
	}
	if d := Backward(constant); d.DX[0] != 0 || d.DGamma[0] != 0 || d.DBeta[0] != 6 {
		t.Errorf("without variance and epsilon: gradients %v", d)
	}
	empty := Problem{Channels: 1, Inner: 3, Activation: "relu", Epsilon: 1}
	if r := Forward(empty); len(r.Y) != 0 || !math.IsNaN(r.Mean[0]) || !math.IsNaN(r.Var[0]) || !math.IsNaN(r.InvStd[0]) {
		t.Errorf("empty batch: %v, want NaN statistics", r)
	}
	if d := Backward(empty); d.DGamma[0] != 0 || d.DBeta[0] != 0 {
		t.Errorf("empty batch: gradients %v, want 0", d)
	}
	// An infinite value, like a NaN, spoils its own channel only.
	inf := Problem{Outer: 2, Channels: 2, Inner: 1, Activation: "relu", Epsilon: 1, X: []float32{1, float32(math.Inf(1)), 3, 4}}
	if r := Forward(inf); r.Mean[0] != 2 || !math.IsInf(r.Mean[1], 1) || r.Y[0] != 0 || !math.IsNaN(r.Y[1]) || !math.IsNaN(r.Y[3]) {
		t.Errorf("with an infinity: %v", r)
	}
}
