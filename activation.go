package batchnorm

import (
	"fmt"
	"strconv"

	"github.com/fusedbn/batchnorm/internal/scalar"
)

// Activation is the function applied to z = normalize(x)*gamma + beta
// [+ residual]. The zero value is [Identity].
//
// Every activation has one implementation in Go, which the assembly repeats bit
// by bit. [Sigmoid] and [Tanh] are within 1 unit in the last place (ULP), the other
// smooth ones within 2, for all inputs, subnormal results included;
// docs/activations.md has the worst input of each. The backward pass multiplies dy by
// the derivative, rounded to float32; the derivative of [ReLU] selects dy or 0 instead.
// NaN stays NaN, and infinite inputs give the limit.
type Activation struct {
	kind actKind
	// Parameters: slope, lo and hi, or alpha.
	p, q float32
}

type actKind uint8

const (
	actIdentity actKind = iota
	actReLU
	actLeakyReLU
	actClip
	actHardSigmoid
	actHardSwish
	actSigmoid
	actTanh
	actSiLU
	actELU
	actSoftplus
	actMish
	actGELU
	actGELUTanh
	numActs
)

var (
	// Identity leaves z as it is.
	Identity = Activation{kind: actIdentity}
	// ReLU is max(z, 0): ReLU(NaN) is NaN, ReLU(-0) is +0. Its derivative is 1
	// where z > 0 and 0 elsewhere, NaN included.
	ReLU = Activation{kind: actReLU}
	// ReLU6 is Clip(0, 6).
	ReLU6 = Clip(0, 6)
	// HardSigmoid is ReLU6(z+3)/6. Its derivative is 1/6 where -3 < z < 3, and 0
	// elsewhere.
	HardSigmoid = Activation{kind: actHardSigmoid}
	// HardSwish is z*HardSigmoid(z) (Howard et al. 2019). Its derivative is 0
	// where z < -3, z/3 + 1/2 where -3 <= z <= 3, and 1 above.
	HardSwish = Activation{kind: actHardSwish}
	// Sigmoid is 1/(1+exp(-z)).
	Sigmoid = Activation{kind: actSigmoid}
	// Tanh is the hyperbolic tangent.
	Tanh = Activation{kind: actTanh}
	// SiLU is z*Sigmoid(z), also called swish.
	SiLU = Activation{kind: actSiLU}
	// Softplus is log(1+exp(z)). Its derivative is the sigmoid.
	Softplus = Activation{kind: actSoftplus}
	// Mish is z*tanh(log(1+exp(z))) (Misra 2019).
	Mish = Activation{kind: actMish}
	// GELU is z*Phi(z), where Phi is the distribution function of the standard
	// normal distribution: z*(1+erf(z/sqrt(2)))/2 (Hendrycks and Gimpel 2016).
	GELU = Activation{kind: actGELU}
	// GELUTanh is the approximation of GELU by
	// z*(1+tanh(sqrt(2/pi)*(z+0.044715*z^3)))/2.
	GELUTanh = Activation{kind: actGELUTanh}
)

// LeakyReLU is z where z > 0, and slope*z elsewhere. Its derivative is 1 where
// z > 0, and slope elsewhere. The slope is finite. With slope 0 it is [ReLU].
func LeakyReLU(slope float32) Activation {
	if slope == 0 {
		return ReLU // its limit at -Inf is 0, where 0*z would be NaN
	}
	return Activation{kind: actLeakyReLU, p: slope}
}

// Clip is min(max(z, lo), hi), with lo <= hi, both finite. Its derivative is 1
// where lo < z < hi, and 0 elsewhere.
func Clip(lo, hi float32) Activation { return Activation{kind: actClip, p: lo, q: hi} }

// ELU is z where z > 0, and alpha*(exp(z)-1) elsewhere (Clevert et al. 2015).
// Its derivative is 1 where z > 0, and alpha*exp(z) elsewhere. Alpha is finite.
func ELU(alpha float32) Activation { return Activation{kind: actELU, p: alpha} }

// costly reports whether computing the derivative takes longer than storing it and
// reading it again.
func (a Activation) costly() bool { return a.kind >= actSigmoid }

// Activations returns an activation of every kind, for registries and for tests that
// go through all of them: first [Identity], then the others, with the parameters
// LeakyReLU(0.25), Clip(0, 6) and ELU(1).
func Activations() []Activation {
	var all []Activation
	for kind, info := range acts {
		a := Activation{kind: actKind(kind)}
		for i, p := range info.params {
			*[]*float32{&a.p, &a.q}[i] = p.usual
		}
		all = append(all, a)
	}
	return all
}

// actParam is a parameter of a kind of activation, with the value in [Activations].
type actParam struct {
	name  string
	usual float32
}

// actInfo describes a kind of activation.
type actInfo struct {
	name   string
	params []actParam
	// value and derivative compute one value at a time; kinds without them have loops
	// of their own in forward and derivative.
	value, derivative func(z float32) float32
}

var acts = [numActs]actInfo{
	actIdentity:    {name: "identity"},
	actReLU:        {name: "relu"},
	actLeakyReLU:   {name: "leaky_relu", params: []actParam{{"slope", 0.25}}},
	actClip:        {name: "clip", params: []actParam{{"lo", 0}, {"hi", 6}}},
	actHardSigmoid: {name: "hard_sigmoid", value: scalar.HardSigmoid, derivative: scalar.HardSigmoidSlope},
	actHardSwish:   {name: "hard_swish", value: scalar.HardSwish, derivative: scalar.HardSwishSlope},
	actSigmoid:     {name: "sigmoid", value: scalar.Sigmoid, derivative: scalar.SigmoidSlope},
	actTanh:        {name: "tanh", value: scalar.Tanh, derivative: scalar.TanhSlope},
	actSiLU:        {name: "silu", value: scalar.SiLU, derivative: scalar.SiLUSlope},
	actELU:         {name: "elu", params: []actParam{{"alpha", 1}}},
	actSoftplus:    {name: "softplus", value: scalar.Softplus, derivative: scalar.Sigmoid},
	actMish:        {name: "mish", value: scalar.Mish, derivative: scalar.MishSlope},
	actGELU:        {name: "gelu", value: scalar.GELU, derivative: scalar.GELUSlope},
	actGELUTanh:    {name: "gelu_tanh", value: scalar.GELUTanh, derivative: scalar.GELUTanhSlope},
}

// String returns the activation's name, with its parameters.
func (a Activation) String() string {
	if a.kind >= numActs {
		return fmt.Sprintf("Activation(%d)", a.kind)
	}
	s := acts[a.kind].name
	for i, v := range a.params() {
		s += [...]string{"(", ","}[i] + strconv.FormatFloat(float64(v), 'g', -1, 32)
	}
	if len(a.params()) > 0 {
		s += ")"
	}
	return s
}

// params returns the parameters that the kind has.
func (a Activation) params() []float32 {
	return []float32{a.p, a.q}[:len(acts[a.kind].params)]
}

func (a Activation) valid() error {
	if a.kind >= numActs {
		return fail(ErrOption, "activation %v is unknown", a)
	}
	for i, v := range a.params() {
		if v-v != 0 {
			return fail(ErrOption, "activation %s: %s is %v, must be finite", acts[a.kind].name, acts[a.kind].params[i].name, v)
		}
	}
	if a.kind == actClip && a.p > a.q {
		return fail(ErrOption, "activation clip: lo is %v, must be at most hi, which is %v", a.p, a.q)
	}
	return nil
}

// forward replaces every z by act(z).
func (a Activation) forward(z []float32) {
	switch a.kind {
	case actIdentity:
	case actReLU:
		for i, v := range z {
			z[i] = max(v, 0) // keeps NaN, and turns -0 into +0
		}
	case actLeakyReLU:
		for i, v := range z {
			z[i] = scalar.Either(v > 0, v, v*a.p)
		}
	case actClip:
		for i, v := range z {
			z[i] = scalar.Clip(v, a.p, a.q)
		}
	case actELU:
		for i, v := range z {
			z[i] = scalar.ELU(v, a.p)
		}
	default:
		f := acts[a.kind].value
		for i, v := range z {
			z[i] = f(v)
		}
	}
}

// derivative replaces every z by act'(z).
func (a Activation) derivative(z []float32) {
	switch a.kind {
	case actIdentity:
		for i := range z {
			z[i] = 1
		}
	case actReLU:
		for i, v := range z {
			z[i] = scalar.Either(v > 0, 1, 0)
		}
	case actLeakyReLU:
		for i, v := range z {
			z[i] = scalar.Either(v > 0, 1, a.p)
		}
	case actClip:
		for i, v := range z {
			z[i] = scalar.Either(v > a.p, scalar.Either(a.q > v, 1, 0), 0)
		}
	case actELU:
		for i, v := range z {
			z[i] = scalar.ELUSlope(v, a.p)
		}
	default:
		f := acts[a.kind].derivative
		for i, v := range z {
			z[i] = f(v)
		}
	}
}

// backward replaces every z by dy*act'(z).
func (a Activation) backward(z, dy []float32) {
	dy = dy[:len(z)]
	switch a.kind {
	case actIdentity:
		copy(z, dy)
	case actReLU:
		for i, v := range z {
			z[i] = scalar.Either(v > 0, dy[i], 0)
		}
	default:
		a.derivative(z)
		for i, d := range z {
			z[i] = dy[i] * d
		}
	}
}
