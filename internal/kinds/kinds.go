// Package kinds makes the kinds of data that the time of an operation must not depend
// on: dead channels, zero gradients, NaN, values at the ends of float32's range. Tests
// and measurements share them.
package kinds

import (
	"cmp"
	"math"
)

// Kind is a kind of data, made out of usual data: values of about 1, gamma of about 1.
type Kind struct {
	Name string
	// Limit is how many times as long an operation may take at most as on usual data.
	Limit float64
	// Far is the same with a smooth activation, of channels that are far from 0.
	Far float64
	// Backward says that only the gradients differ from usual data.
	Backward bool
	// Given says that a backward pass and frozen statistics are given the statistics of usual data.
	Given bool

	every   int      // one channel of so many is of the kind, all others are usual
	changes []change // channels take them in turn
}

// change is a change to the usual data of a channel.
type change struct {
	x, dy func(float32) float32 // nil: none
	first func([]float32)       // changes a value of x
	grad  func([]float32)       // the same for dy
	gamma func(float32) float32
	beta  func(float32) float32
	limit float64
	far   float64 // the limit with a smooth activation, where it is another one
}

func to(v float32) func(float32) float32 { return func(float32) float32 { return v } }

// times multiplies in float64, as factors may be outside of float32's range.
func times(factor float64) func(float32) float32 {
	return func(v float32) float32 { return float32(float64(v) * factor) }
}

func one(v float64) func([]float32) { return func(x []float32) { x[0] = float32(v) } }

var (
	usual    = change{limit: 1}
	dead     = change{beta: to(-20), limit: 1.05, far: 1.5}
	zeroDY   = change{dy: to(0), limit: 1.05}
	zeros    = change{gamma: to(0), beta: to(0), limit: 1.05}
	constant = change{x: to(0.7), limit: 1.1}
	nan      = change{first: one(math.NaN()), limit: 1.1}
	infinite = change{first: one(math.Inf(1)), limit: 1.1}
	nanDY    = change{grad: one(math.NaN()), limit: 1.1}
	large    = change{x: times(1e20), limit: 2.5}
	small    = change{x: times(1e-25), limit: 2.5}
	tinyDY   = change{dy: times(1e-30), limit: 2.5}
	largeDY  = change{dy: times(1e36), limit: 2.5}

	subnormalDY = change{dy: times(1e-38), limit: 2.5}
	subnormalX  = change{x: times(1e-39), limit: 2.5}
	tinyGamma   = change{gamma: to(1e-40), beta: to(0.1), limit: 2.5} // as weight decay leaves it
)

func of(name string, every int, c change) Kind {
	k := Kind{Name: name, Limit: c.limit, Far: cmp.Or(c.far, c.limit),
		Backward: c.x == nil && c.first == nil && c.gamma == nil && c.beta == nil && (c.dy != nil || c.grad != nil),
		every:    every, changes: []change{c}}
	return k
}

// inTurn returns the kind whose channels take changes in turn, with the mean of their
// limits.
func inTurn(name string, changes ...change) Kind {
	k := Kind{Name: name, every: 1, changes: changes}
	for _, c := range changes {
		k.Limit += c.limit / float64(len(changes))
		k.Far += cmp.Or(c.far, c.limit) / float64(len(changes))
	}
	return k
}

// given makes the statistics of a kind those of usual data.
func given(k Kind) Kind {
	k.Given = true
	return k
}

// all channels are of a kind.
const all = 1

// List returns all kinds, the usual one first.
func List() []Kind {
	return []Kind{
		of("usual", all, usual),
		of("1 % dead channels", 100, dead),
		of("10 % dead channels", 10, dead),
		of("100 % dead channels", all, dead),
		of("dy = 0", all, zeroDY),
		of("gamma = 0, beta = 0", all, zeros),
		of("constant channels", all, constant),
		of("NaN in one channel", math.MaxInt, nan),
		of("NaN in all channels", all, nan),
		of("Inf in one channel", math.MaxInt, infinite),
		of("Inf in all channels", all, infinite),
		given(of("NaN under given statistics", all, nan)),
		given(of("Inf under given statistics", all, infinite)),
		of("NaN in dy of all channels", all, nanDY),
		of("dy * 1e-30", all, tinyDY),
		of("dy * 1e-38", all, subnormalDY),
		of("dy * 1e-38 in one channel", math.MaxInt, change{dy: subnormalDY.dy, limit: 1.1}), // its own time only
		of("dy * 1e-38 in every 16th", 16, change{dy: subnormalDY.dy, limit: 1.1}),
		of("dy * 1e36", all, largeDY),
		of("x * 1e20", all, large),
		of("x * 1e20 in one channel", math.MaxInt, change{x: large.x, limit: 1.1}), // its own time only
		of("x * 1e-20", all, change{x: times(1e-20), limit: 2.5}),                  // whose squares are subnormal
		of("x * 1e-25", all, small),
		of("x subnormal", all, subnormalX),
		of("x subnormal, beta = 0", all, change{x: subnormalX.x, beta: to(0), limit: 2.5}),
		of("x subnormal in one channel", math.MaxInt, change{x: subnormalX.x, limit: 1.1}),
		of("gamma = 1e30", all, change{gamma: to(1e30), limit: 2.5}),
		of("gamma = 1e-40", all, tinyGamma),
		of("gamma = 1e-33, beta = 0", all, change{gamma: to(1e-33), beta: to(0), limit: 2.5}),       // it decays, and so has beta
		of("gamma = 1e-40, beta = 0", all, change{gamma: tinyGamma.gamma, beta: to(0), limit: 2.5}), // as it stays
		of("gamma = 1e-40 in one channel", math.MaxInt, change{gamma: tinyGamma.gamma, beta: tinyGamma.beta, limit: 1.1}),
		of("mean 1e30, deviation 1e25", all, change{x: func(v float32) float32 { return float32(1e30 + float64(float64(v)*1e25)) }, limit: 2.5}),
		of("mean 1e35, deviation 1e30", all, change{x: func(v float32) float32 { return float32(1e35 + float64(float64(v)*1e30)) }, limit: 2.5}),
		// Neither number is tiny, but their products are.
		of("dy * 1e-30, x * 1e-9", all, change{dy: tinyDY.dy, x: times(1e-9), limit: 2.5}),
		of("dy * 1e-25, gamma = 1e-15", all, change{dy: times(1e-25), gamma: to(1e-15), limit: 2.5}),
		of("x * 1e-12, gamma = 1e-28", all, change{x: times(1e-12), gamma: to(1e-28), limit: 2.5}),
		inTurn("kinds in turn", usual, dead, zeros, constant, nan, large, tinyDY, small),
		inTurn("subnormal in turn", usual, subnormalX, usual, subnormalDY),
	}
}

// Affects reports whether a channel, of so many, is of the kind; of kinds in turn all are.
func (k Kind) Affects(c, channels int) bool {
	every := min(k.every, channels)
	return c%every == every/2
}

// Changes returns how many of the channels are of the kind.
func (k Kind) Changes(channels int) int {
	n := 0
	for c := range channels {
		if k.Affects(c, channels) {
			n++
		}
	}
	return n
}

// Apply makes usual data of shape outer x channels x inner the kind's.
func (k Kind) Apply(outer, channels, inner int, x, dy, gamma, beta []float32) {
	each := func(values []float32, c int, f func(float32) float32) {
		if f == nil {
			return
		}
		for o := range outer {
			row := values[(o*channels+c)*inner:][:inner]
			for i, v := range row {
				row[i] = f(v)
			}
		}
	}
	for c := range channels {
		if !k.Affects(c, channels) {
			continue
		}
		change := k.changes[c%len(k.changes)]
		each(x, c, change.x)
		each(dy, c, change.dy)
		if change.first != nil {
			change.first(x[c*inner:])
		}
		if change.grad != nil {
			change.grad(dy[c*inner:])
		}
		if change.gamma != nil {
			gamma[c] = change.gamma(gamma[c])
		}
		if change.beta != nil {
			beta[c] = change.beta(beta[c])
		}
	}
}

// LimitOf returns the limit with an activation that is smooth, or is not.
func (k Kind) LimitOf(smooth bool) float64 {
	if smooth {
		return k.Far
	}
	return k.Limit
}
