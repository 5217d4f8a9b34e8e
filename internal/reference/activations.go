package reference

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Activation is y = F(z) in float64, exact to a few units of float64 relative
// to F, and its derivative, exact to a few units of Largest.
type Activation struct {
	F, Derivative func(z float64) float64
	both          func(z float64) (value, derivative float64) // nil: F and Derivative
	// Largest is the largest term of the derivative, where terms of both signs
	// meet; nil: the derivative itself.
	Largest func(z float64) float64
	// Kinks are where the derivative jumps, by Jump at most.
	Kinks []float64
	Jump  float64
	// Slope and Curvature bound the absolute values of the first derivative and,
	// away from kinks, of the second.
	Slope, Curvature float64
}

// Both returns the value and the derivative, in less time than one by one.
func (a Activation) Both(z float64) (value, derivative float64) {
	if a.both != nil {
		return a.both(z)
	}
	return a.F(z), a.Derivative(z)
}

// of returns the activation with value and derivative from one function.
func of(both func(z float64) (value, derivative float64)) Activation {
	return Activation{
		F:          func(z float64) float64 { v, _ := both(z); return v },
		Derivative: func(z float64) float64 { _, d := both(z); return d },
		both:       both,
	}
}

// sigmoids returns the sigmoid of z and of -z; their product is its derivative.
func sigmoids(z float64) (p, q float64) {
	e := math.Exp(-math.Abs(z))
	p, q = 1/(1+e), e/(1+e)
	if z < 0 {
		p, q = q, p
	}
	return p, q
}

// bell is the derivative of the sigmoid.
func bell(z float64) float64 {
	p, q := sigmoids(z)
	return p * q
}

func softplus(z float64) float64 { return max(z, 0) + math.Log1p(math.Exp(-math.Abs(z))) }

// normal is the distribution function of the standard normal distribution, and
// density its derivative.
func normal(z float64) float64  { return math.Erfc(-z/math.Sqrt2) / 2 }
func density(z float64) float64 { return math.Exp(-z*z/2) / math.Sqrt(2*math.Pi) }

// gated returns z*g(z), with its derivative g(z) + z*slope(z) and the larger of
// the two terms. Where g has reached 0 the product is 0 even for -Inf.
func gated(parts func(float64) (g, slope float64), bound, curvature float64) Activation {
	product := func(z, v float64) float64 {
		if v == 0 {
			return math.Copysign(0, z)
		}
		return z * v
	}
	a := of(func(z float64) (float64, float64) {
		g, slope := parts(z)
		return product(z, g), g + product(z, slope)
	})
	a.Largest = func(z float64) float64 {
		g, slope := parts(z)
		return max(math.Abs(g), math.Abs(product(z, slope)))
	}
	a.Slope, a.Curvature = bound, curvature
	return a
}

// above returns a where z > 0, and b elsewhere.
func above(z, a, b float64) float64 {
	if z > 0 {
		return a
	}
	return b
}

// inside returns v where lo < z < hi, and 0 elsewhere.
func inside(z, lo, hi, v float64) float64 {
	if lo < z && z < hi {
		return v
	}
	return 0
}

func clip(z, lo, hi float64) float64 {
	if z != z {
		return z
	}
	return min(max(z, lo), hi)
}

func clipped(lo, hi float64) Activation {
	return Activation{
		F:          func(z float64) float64 { return clip(z, lo, hi) },
		Derivative: func(z float64) float64 { return inside(z, lo, hi, 1) },
		Kinks:      []float64{lo, hi}, Jump: 1, Slope: 1,
	}
}

// tanhArgument is the sigmoid's argument in the approximation of GELU, with its
// derivative.
func tanhArgument(z float64) (w, slope float64) {
	c := 2 * math.Sqrt(2/math.Pi)
	return c * (z + 0.044715*z*z*z), c * (1 + 3*0.044715*z*z)
}

// ActivationOf returns the activation of a name, with its parameters in
// parentheses, which are float64: relu, leaky_relu(0.25), clip(-1,1).
func ActivationOf(name string) Activation {
	kind, list, _ := strings.Cut(strings.TrimSuffix(name, ")"), "(")
	var p []float64
	for _, s := range strings.Split(list, ",") {
		if v, err := strconv.ParseFloat(s, 64); err == nil {
			p = append(p, v)
		}
	}
	switch kind {
	case "identity":
		return Activation{
			F:          func(z float64) float64 { return z },
			Derivative: func(float64) float64 { return 1 },
			Slope:      1,
		}
	case "relu":
		return Activation{
			F: func(z float64) float64 {
				if z <= 0 {
					return 0
				}
				return z // NaN among them
			},
			Derivative: func(z float64) float64 { return above(z, 1, 0) },
			Kinks:      []float64{0}, Jump: 1, Slope: 1,
		}
	case "leaky_relu":
		return Activation{
			F:          func(z float64) float64 { return above(z, z, p[0]*z) },
			Derivative: func(z float64) float64 { return above(z, 1, p[0]) },
			Kinks:      []float64{0}, Jump: math.Abs(1 - p[0]), Slope: max(1, math.Abs(p[0])),
		}
	case "clip":
		return clipped(p[0], p[1])
	case "hard_sigmoid":
		return Activation{
			F:          func(z float64) float64 { return clip(z+3, 0, 6) / 6 },
			Derivative: func(z float64) float64 { return inside(z, -3, 3, 1./6) },
			Kinks:      []float64{-3, 3}, Jump: 1. / 6, Slope: 1. / 6,
		}
	case "hard_swish":
		act := gated(func(z float64) (float64, float64) { return clip(z+3, 0, 6) / 6, 0 }, 1.5, 1./3)
		act.both = nil
		act.Derivative = func(z float64) float64 {
			switch {
			case !(z >= -3):
				return 0
			case z <= 3:
				return z/3 + 0.5
			}
			return 1
		}
		act.Largest = func(z float64) float64 { return max(math.Abs(act.Derivative(z)), inside(z, -3, 3, 0.5)) }
		act.Kinks, act.Jump = []float64{-3, 3}, 0.5
		return act
	case "sigmoid":
		act := of(func(z float64) (float64, float64) {
			p, q := sigmoids(z)
			return p, p * q
		})
		act.Slope, act.Curvature = 0.25, 0.1
		return act
	case "tanh":
		return Activation{F: math.Tanh, Derivative: func(z float64) float64 { return 4 * bell(2*z) }, Slope: 1, Curvature: 0.8}
	case "silu":
		return gated(func(z float64) (float64, float64) {
			p, q := sigmoids(z)
			return p, p * q
		}, 1.1, 0.5)
	case "elu":
		return Activation{
			F: func(z float64) float64 {
				if z >= 0 {
					return z
				}
				return p[0] * math.Expm1(z)
			},
			Derivative: func(z float64) float64 {
				if z > 0 {
					return 1
				}
				return p[0] * math.Exp(z)
			},
			Kinks: []float64{0}, Jump: math.Abs(1 - p[0]), Slope: max(1, math.Abs(p[0])), Curvature: math.Abs(p[0]),
		}
	case "softplus":
		act := of(func(z float64) (float64, float64) {
			p, _ := sigmoids(z)
			return softplus(z), p
		})
		act.Slope, act.Curvature = 1, 0.25
		return act
	case "mish":
		return gated(func(z float64) (float64, float64) {
			s := softplus(z)
			p, _ := sigmoids(z)
			return math.Tanh(s), 4 * bell(2*s) * p
		}, 1.09, 0.7)
	case "gelu":
		return gated(func(z float64) (float64, float64) { return normal(z), density(z) }, 1.13, 0.8)
	case "gelu_tanh":
		return gated(func(z float64) (float64, float64) {
			w, slope := tanhArgument(z)
			p, q := sigmoids(w)
			if p*q == 0 { // though the slope may be infinite
				return p, 0
			}
			return p, p * q * slope
		}, 1.13, 0.9)
	}
	panic(fmt.Sprintf("reference: activation %q is unknown", name))
}
