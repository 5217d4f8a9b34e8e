package batchnorm

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// takesAssist reports whether the float32 product of two numbers takes a microcode assist
// on Intel's processors: a factor or the result is subnormal, and the result is not 0.
func takesAssist(x, y float32) bool {
	subnormal := func(v float32) bool { return math.Float32bits(v)&^(1<<31)-1 < 1<<23-1 }
	p := math.Abs(float64(x) * float64(y))
	return p > 0x1p-150 && (p < 0x1p-126 || subnormal(x) || subnormal(y)) && p <= math.MaxFloat64
}

func TestTakesAssist(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		x, y float32
		want bool
	}{
		{1, 1, false}, {0, 1e-39, false}, {1e-39, 0, false}, {1e-30, 1e-30, false}, {1e-39, 1e-39, false}, // 0
		{1e-39, 1, true}, {1, -1e-39, true}, {-1e-39, 1e20, true}, // a factor is subnormal
		{1e-20, 1e-20, true}, {1e-20, -3e-25, true}, {0x1p-126, 0x1p-24, false}, // the product is, or rounds to 0
		{0x1p-126, 0.5, true}, {0x1p-126, 1, false}, {0x1p-126, 2, false}, // the least normal number
		{1e-39, inf, false}, {1e-39, nan, false}, {inf, 0, false}, {1e30, 1e30, false},
	} {
		if got := takesAssist(c.x, c.y); got != c.want {
			t.Errorf("%g * %g takes an assist: %t, want %t", c.x, c.y, got, c.want)
		}
	}
}

// assistsOf returns how many of the n values of a call have a product that takes an assist.
func assistsOf(kernel int, l layout, act Activation, a *kernelArgs) (slow, n int) {
	value := func(i int, coef []float32, next int) {
		n++
		if a.takesAssist(kernel, act, i, coef, next) {
			slow++
		}
	}
	if kernel >= kernelLargest { // without float32 products
		return 0, 0
	}
	for r := 0; l == cols && r < a.rows; r++ {
		for c := range a.n {
			if kernel == kernelMoments {
				value(r*a.stride+c, a.coef[c:], 0)
			} else {
				value(r*a.stride+c, a.coef[c/lanes*lanes*coefLen+c%lanes:], lanes)
			}
		}
	}
	if l == cols || a.left != a.n || a.rowsLeft != a.rows {
		return slow, n
	}
	at, coef, step := a.at, a.coefAt, recordLen(kernel)
	for range a.images {
		for r := range a.rows {
			for i := range a.n {
				value(at+i, a.coef[coef+r*step:], 1)
			}
			at += a.n + a.rowGap
		}
		at += a.imageGap
		if takesSums(kernel) {
			continue // the next image has the same constants
		}
		coef += a.rows*step + a.coefImage
	}
	return slow, n
}

// takesAssist reports whether a product of element i takes an assist. From a constant to the
// next there are next floats.
func (a *kernelArgs) takesAssist(kernel int, act Activation, i int, coef []float32, next int) bool {
	d := a.x[i] + coef[fieldN*next]
	if kernel == kernelMoments {
		return takesAssist(d, d)
	}
	z := float32(0)
	if kernel == kernelNormalize || act.kind != actIdentity {
		factor := coef[fieldA*next]
		if takesAssist(d, factor) {
			return true
		}
		z = float32(d*factor) + coef[fieldB*next]
		if a.res != nil {
			z += a.res[i]
		}
	}
	magnitude, tiny := math.Abs(float64(z)), act.formsOfTinyZ()
	if kernel == kernelNormalize { // coefficients are 2^-30 and more
		return tiny.value != tinyUsual && z != 0 && magnitude < 0x1p-126*0x1p30 && magnitude < tinyZ
	}
	if act.kind != actIdentity && tiny.slope != tinyUsual && z != 0 && magnitude < 0x1p-126 {
		return true
	}
	g := a.dy[i]
	if act.kind != actIdentity {
		slope := []float32{z}
		act.backward(slope, []float32{1})
		if act.variant() == actCalled && takesAssist(g, slope[0]) {
			return true
		}
		if g = float32(g * slope[0]); slope[0] == 0 {
			g = 0
		}
	}
	if kernel == kernelGradSums {
		return takesAssist(g, d)
	}
	k2 := coef[fieldK2*next]
	return takesAssist(d, k2) || takesAssist((g-coef[fieldK1*next])-float32(d*k2), coef[fieldA*next])
}

// squares has the kind of data whose squares are subnormal. Moments are sums in float64.
const squares = "x * 1e-20"

// TestNoAssists counts the products of all kernels that would take a microcode assist, in
// all modes: few values of a kind of data have any, or its time would be many times that of
// usual data.
func TestNoAssists(t *testing.T) {
	const few = 0.05
	for j, s := range []Shape{{Outer: 6, Channels: 24, Inner: 300}, {Outer: 420, Channels: 24, Inner: 1}, {Outer: 8, Channels: 1000, Inner: 1}} {
		for i, k := range kinds.List() {
			if k.Name == "kinds in turn" {
				continue
			}
			x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
			gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Uniform(4, s.Channels, -1, 1)
			k.Apply(s.Outer, s.Channels, s.Inner, x, dy, gamma, beta)
			for a, act := range []Activation{Identity, ReLU, SiLU} {
				if !Thorough() && (i+j+a)%3 != 0 { // of each kind every activation, with one of the shapes
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%v", s, k.Name, act), func(t *testing.T) {
					var slow, all [kernelTinyZ + 1]int
					products := 0
					inspected = func(kernel int, l layout, act Activation, a kernelArgs) {
						if kernel >= kernelScale {
							products++
						}
						n, of := assistsOf(kernel, l, act, &a)
						slow[kernel] += n
						all[kernel] += of
					}
					defer func() { inspected = nil }()
					everyMode(t, s, act, x, dy, gamma, beta)
					for kernel, n := range slow {
						if float64(n) > few*float64(all[kernel]) {
							t.Errorf("%s: %d of %d values take an assist", kernelNames[kernel], n, all[kernel])
						}
					}
					others := s.Inner == 1 && s.Outer <= stripRows || k.Name == squares // strips, and sums in float64
					if all[kernelMoments] == 0 && !others || all[kernelInputGrad] == 0 && products == 0 {
						t.Error("kernels are not called")
					}
					if k.Name == "usual" && products > 0 {
						t.Errorf("%d calls take products in float64", products)
					}
				})
			}
		}
	}
}

// TestGenericPathIsGo: with the path in pure Go no kernel in assembly computes with channels.
func TestGenericPathIsGo(t *testing.T) {
	for _, s := range []Shape{{Outer: 6, Channels: 24, Inner: 30}, {Outer: 42, Channels: 13, Inner: 1}, {Outer: 8, Channels: 1000, Inner: 1}} {
		t.Run(s.String(), func(t *testing.T) {
			watched = func(kind string, _ int) {
				if kind == watchChannels {
					t.Error("a kernel is called")
					watched = nil
				}
			}
			defer func() { watched = nil }()
			x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
			gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Uniform(4, s.Channels, -1, 1)
			everyMode(t, s, Identity, x, dy, gamma, beta, WithPath(PathGeneric))
		})
	}
}

// everyMode runs forward and backward passes by way of everything that has one.
func everyMode(t *testing.T, s Shape, act Activation, x, dy, gamma, beta []float32, more ...Option) {
	t.Helper()
	options := append(more, WithActivation(act), WithWorkers(1))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n := s.Channels
	y, dgamma, dbeta := make([]float32, s.Len()), make([]float32, n), make([]float32, n)
	mean, invstd := make([]float64, n), make([]float64, n)
	runningMean, runningVar := make([]float32, n), make([]float32, n)
	p, err := NewPlan(s, options...)
	must(err)
	valid := make([]bool, s.PerChannel())
	for i := range valid {
		valid[i] = i%8 != 3
	}
	for _, mask := range []Mask{{}, {Valid: valid}} {
		must(p.Forward(ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, Mean: mean, InvStd: invstd,
			RunningMean: runningMean, RunningVar: runningVar, Momentum: Cumulative(1), Mask: mask}))
		must(p.Backward(BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
			DX: y, DGamma: dgamma, DBeta: dbeta, Mask: mask}))
	}
	must(p.Inference(InferenceArgs{X: x, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar, Y: y}))
	must(p.FrozenBackward(FrozenBackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: runningMean, Var: runningVar,
		DX: y, DGamma: dgamma, DBeta: dbeta}))
	sums := GradSums{G: make([]float64, n), GD: make([]float64, n)}
	must(p.GradSums(GradSumsArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, Sums: &sums}))
	must(p.InputGrad(InputGradArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, Sums: sums,
		DX: y, DGamma: dgamma, DBeta: dbeta}))
	g, err := NewGhostPlan(s, GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, options...)
	must(err)
	must(g.Forward(ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y}))
	must(g.Backward(BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, DX: y, DGamma: dgamma, DBeta: dbeta}))
}

// TestTinyDecision: which channels go block by block. Four values of a channel decide, but
// not those of padding, nor of other channels.
func TestTinyDecision(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	cases := []struct {
		name        string
		first, rest float32 // the first of the sampled values, and the others
		tiny        bool    // or huge
	}{
		{"usual", 1, 1, false},
		{"zeros", 0, 0, false},
		{"subnormal", 1e-39, -1e-39, true},
		{"the least", 0x1p-149, 0x1p-149, true},
		{"the largest tiny ones", tinyMost, -tinyMost, true},
		{"a little more", tinyMost * 1.0001, tinyMost * 1.0001, false},
		{"zeros and subnormal", 0, 1e-39, true},
		{"zero and usual", 0, 1, false},
		{"one is usual", -1, 1e-39, false},
		{"the others are usual", 1e-39, 1, false},
		{"one is NaN", nan, 1e-39, false},
		{"the others are NaN", 1e-39, nan, false},
		{"one is infinite", -inf, 1e-39, false},
		{"the least huge ones", -hugeLeast, hugeLeast, true},
		{"the first is huge", 3e38, 1e-39, true},
		{"a little less", hugeLeast * 0.9999, 1, false},
		{"the others are huge", 1, 3e38, false},
		{"huge and infinite", 3e38, inf, false},
		{"huge and NaN", -3e38, nan, false},
	}
	isHuge := func(v float32) bool { return math.Abs(float64(v)) >= hugeLeast }
	shapes := []Shape{{Outer: 3, Channels: 4, Inner: 50}, {Outer: 100, Channels: 6, Inner: 1}, {Outer: 5, Channels: 1003, Inner: 1},
		{Outer: 9, Channels: 37, Inner: 3}, {Outer: 1, Channels: 13, Inner: 7}, {Outer: 1, Channels: 11, Inner: 2}, {Outer: 6, Channels: 29, Inner: 1}}
	forEachTinyShape(t, shapes, func(t *testing.T, p *Plan, mask *Mask, n int) {
		s := p.shape
		for shift := range 2 * len(cases) { // from all channels of one kind to all in turn
			values := make([]float32, s.Len())
			for i := range values { // of padding, or not in the sample
				values[i] = []float32{7, 1e-39}[i%2]
			}
			w := p.acquire(mask, n, false)
			at, next := w.sampledValues()
			w.behind.known = false
			for _, b := range w.valuesBehind() { // they decide where the sample has zeros only
				for i := 0; i < b.n*s.Channels; i++ {
					values[b.first+i/s.Channels*b.step+i%s.Channels*next] = 0
				}
			}
			kindOf := func(c int) int {
				if shift < len(cases) {
					return shift
				}
				return (shift + c*c/5) % len(cases)
			}
			for c := range s.Channels {
				for k, i := range at {
					values[i+c*next] = cases[kindOf(c)].rest
					if k == 0 || i == at[0] {
						values[i+c*next] = cases[kindOf(c)].first
					}
				}
			}
			clear(w.channels.mean)
			fill(w.channels.scale, 1)
			ones := make([]float32, s.Len())
			fill(ones, 1)
			want := 0
			for k, kind := range []byte{tinyGradients, tinyDeviations} {
				w.call = call{source: w.source, backward: true, apply: stage{x: values, dy: ones}}
				if kind == tinyGradients {
					w.apply.x, w.apply.dy = ones, values
				}
				w.sample(bothPhases)
				found := 0
				for c := range s.Channels {
					of := cases[kindOf(c)]
					expected := of.tiny
					if v := math.Abs(float64(of.first)); at[1] == at[0] && at[3] == at[0] { // it is the only value
						expected = v > 0 && v <= tinyMost || v >= hugeLeast && v <= math.MaxFloat32
					}
					if expected && !isHuge(of.first) && k == 0 { // forward, huge ones are like others
						want++
					}
					tiny := w.tinyOf(c)
					if tiny != 0 {
						found++
					}
					if (tiny == kind) != expected || tiny != 0 && !expected {
						t.Errorf("%s: channel %d: tiny numbers are %b, want some of %b: %t", of.name, c, tiny, kind, expected)
					}
				}
				if w.anyTiny != (found > 0) {
					t.Errorf("there are %d tiny channels, and the call says %t", found, w.anyTiny)
				}
			}
			w.call = call{source: w.source, backward: false, apply: stage{x: values}}
			if w.sample(bothPhases); w.anyTiny != (want > 0) {
				t.Errorf("forward, values of x are tiny: %t, want %t", w.anyTiny, want > 0)
			}
			p.release(w)
		}
	})
}

// TestTinyProducts: channels whose numbers are not tiny go block by block, too, if products of their sampled ones are.
func TestTinyProducts(t *testing.T) {
	nan := float32(math.NaN())
	const g, x = tinyGradients, tinyDeviations
	cases := []struct {
		name                  string
		dy, x, scale          float32 // scale is gamma where the statistics are not known yet
		identity, relu        byte    // backward
		inference, statistics byte    // forward, with those that are given or not
	}{
		{"usual", 1, 1, 1, 0, 0, 0, 0},
		{"small gradients", 1e-30, 1, 1, 0, 0, 0, 0},
		{"small x", 1, 1e-30, 1, 0, 0, 0, 0},
		{"gradients and x", -1e-25, 1e-10, 1, g, g, 0, 0},
		{"the product is larger", 1e-25, 2e-8, 1, 0, 0, 0, 0},
		{"gradients and scale", 1e-20, 1, 1e-16, g, g, 0, 0},
		{"gradients and a little more", 1e-18, 1, 2e-17, 0, 0, 0, 0},
		{"x and scale", 1, -1e-20, 1e-16, 0, x, x, 0},
		{"x, scale and epsilon", 1, 1e-20, 1e-18, 0, x, x, x},
		{"x, scale and less epsilon", 1, 1e-20, 1e-17, 0, x, x, 0},
		{"small x and usual gradients", 1e-5, 1e-30, 1, x, x, 0, 0},
		{"all are small", 1e-20, 1e-20, 1e-20, g, g | x, x, x},
		{"x is 0", 1e-20, 0, 1, 0, 0, 0, 0},
		{"scale is 0", 1e-20, 1e-5, 0, 0, 0, 0, 0},
		{"gradients are 0", 0, 1e-20, 1, 0, 0, 0, 0},
		{"large x", 1e-30, 1e20, 1, 0, 0, 0, 0},
		{"large scale", 1e-30, 1, 1e20, 0, 0, 0, 0},
		{"x is NaN", 1e-20, nan, 1e-20, g, g, 0, 0},
		{"gradients are NaN", nan, 1e-20, 1e-20, 0, x, x, x},
		{"scale is NaN", 1e-20, 1e-20, nan, g, g, 0, 0},
	}
	shapes := []Shape{{Outer: 3, Channels: 24, Inner: 50}, {Outer: 100, Channels: 26, Inner: 1}, {Outer: 5, Channels: 1003, Inner: 1},
		{Outer: 9, Channels: 37, Inner: 3}, {Outer: 1, Channels: 23, Inner: 7}}
	forEachTinyShape(t, shapes, func(t *testing.T, p *Plan, mask *Mask, n int) {
		s := p.shape
		for shift := range 3 * len(cases) { // all channels of one kind, all in turn, and few of a kind
			w := p.acquire(mask, n, false)
			at, next := w.sampledValues()
			of := func(c int) int {
				switch {
				case shift < len(cases):
					return shift
				case shift < 2*len(cases):
					return (shift + c*c/5) % len(cases)
				case c%697 == 3:
					return shift - 2*len(cases)
				}
				return 0
			}
			values, dy, gamma := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels)
			for c := range s.Channels {
				k := cases[of(c)]
				for _, i := range at {
					values[i+c*next], dy[i+c*next] = k.x, k.dy
				}
				gamma[c], w.channels.scale[c], w.channels.form[c] = k.scale, float64(k.scale), 0
			}
			clear(w.channels.mean)
			check := func(pass string, c call, want func(c int) byte) {
				t.Helper()
				c.source = w.source
				w.call = c
				w.sample(bothPhases)
				for c := range s.Channels {
					if got := w.tinyOf(c); got != want(c) {
						t.Errorf("%s: %s, channel %d: tiny numbers are %b, want %b", cases[of(c)].name, pass, c, got, want(c))
					}
				}
			}
			check("backward, identity", call{backward: true, apply: stage{x: values, dy: dy}}, func(c int) byte { return cases[of(c)].identity })
			check("backward, ReLU", call{backward: true, apply: stage{x: values, dy: dy, act: ReLU}}, func(c int) byte { return cases[of(c)].relu })
			check("inference", call{affines: true, apply: stage{x: values}}, func(c int) byte { return cases[of(c)].inference })
			check("forward", call{gamma: gamma, apply: stage{x: values}}, func(c int) byte { return cases[of(c)].statistics })
			check("forward without gamma", call{apply: stage{x: values}}, func(int) byte { return 0 })
			p.release(w)
		}
	})
}

// TestTinyBehindZeros: where all four sampled values of a channel are 0, those behind them decide, and no
// others do.
func TestTinyBehindZeros(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	type values struct {
		name                string
		sample              float32 // all four
		first, middle, last float32 // of the values behind; all others are 0
		tiny                bool
		scale               float64 // 0: 1
	}
	cases := []values{
		{"zeros", 0, 0, 0, 0, false, 0},
		{"negative zeros", 0, negativeZero, negativeZero, 0, false, 0},
		{"the first is subnormal", negativeZero, 1e-39, 0, 0, true, 0},
		{"one is subnormal", 0, 0, -1e-39, 0, true, 0},
		{"the last is subnormal", 0, 0, 0, 1e-39, true, 0},
		{"the last is the largest tiny number", 0, 0, 0x1p-149, tinyMost, true, 0},
		{"the last is a little more", 0, 1e-39, 0, tinyMost * 1.0001, false, 0},
		{"the first is usual", 0, 1, 0, 1e-39, false, 0},
		{"one is usual", 0, 0, -1, 1e-39, false, 0},
		{"the last is NaN", 0, 1e-39, 0, nan, false, 0},
		{"the first is infinite", 0, -inf, 1e-39, 0, false, 0},
		{"the sample is usual", 1, 1e-39, 0, 1e-39, false, 0},
		{"products are", 0, 0x1p-100, 0, 0, true, 0x1p-20},
		{"products of the last are", 0, 0, 0, 0x1p-100, true, 0x1p-20},
		{"products of the first are, and the last is usual", 0, 0x1p-100, 0, 1, false, 0x1p-20},
		{"products of the first are, and one is not small", 0, 0x1p-100, smallFirst * 1.0001, 0, false, 0x1p-20},
		{"the sample is subnormal", 1e-39, 1, 1, 1, true, 0},
	}
	shapes := []Shape{{Outer: 8, Channels: 5, Inner: 100}, {Outer: 1, Channels: 3, Inner: 30000}, {Outer: 900, Channels: 20, Inner: 1},
		{Outer: 300, Channels: 301, Inner: 1}, {Outer: 400, Channels: 11, Inner: 3}, {Outer: 130, Channels: 9, Inner: 8}}
	forEachTinyShape(t, shapes, func(t *testing.T, p *Plan, mask *Mask, n int) {
		s := p.shape
		step := 1
		if mask.Valid == nil && s.Inner < lanes {
			step = s.Inner
		}
		each := min(64, n/step/128)
		if each == 0 {
			t.Fatal("no values decide")
		}
		for shift := range 2 * len(cases) {
			if mask.Valid != nil { // another one for each call
				last := len(mask.Valid) - 1
				mask.Valid = slices.Concat(mask.Valid[last:], mask.Valid[:last])
			}
			var valid []int // positions
			for i := range s.PerChannel() {
				if mask.Valid == nil || mask.Valid[i] {
					valid = append(valid, i)
				}
			}
			kind := func(c int) *values {
				if shift < len(cases) {
					return &cases[shift]
				}
				return &cases[(shift+c*c/5)%len(cases)]
			}
			x := make([]float32, s.Len())
			for i := range x { // of padding, or not looked at
				x[i] = []float32{7, 1e-39}[i%2]
			}
			for c := range s.Channels {
				for k := range 4 {
					first := k * n / 4 / step * step
					for j := range each + 1 {
						v := float32(0)
						switch {
						case j == 0:
							v = kind(c).sample
						case j == 1 && k == 0:
							v = kind(c).first
						case j == each && k == 3:
							v = kind(c).last
						case j == each && k == 1:
							v = kind(c).middle
						}
						x[s.index(valid[first+j*step], c)] = v
					}
				}
			}
			w := p.acquire(mask, n, false)
			w.backward = true
			w.apply.x, w.apply.dy = x, x
			for c := range s.Channels {
				if w.channels.scale[c] = kind(c).scale; kind(c).scale == 0 {
					w.channels.scale[c] = 1
				}
			}
			w.sample(bothPhases)
			for c := range s.Channels {
				if tiny := w.tinyOf(c); tiny != 0 != kind(c).tiny {
					t.Errorf("%s: channel %d: tiny numbers are %b, want some: %t", kind(c).name, c, tiny, kind(c).tiny)
				}
			}
			p.release(w)
		}
	})
}

// TestNoAssistsAmongZeros counts the products that take a microcode assist where most gradients are 0, and
// the others are subnormal.
func TestNoAssistsAmongZeros(t *testing.T) {
	for _, s := range []Shape{{Outer: 6, Channels: 24, Inner: 400}, {Outer: 2400, Channels: 24, Inner: 1}} {
		for _, act := range []Activation{Identity, ReLU} {
			t.Run(fmt.Sprintf("%v/%v", s, act), func(t *testing.T) {
				x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
				gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Uniform(4, s.Channels, -1, 1)
				for i, v := range dy {
					if dy[i] = 0; v > 0.8 {
						dy[i] = float32(float64(v) * 1e-38)
					}
				}
				slow, all := 0, 0
				inspected = func(kernel int, l layout, act Activation, a kernelArgs) {
					n, of := assistsOf(kernel, l, act, &a)
					slow, all = slow+n, all+of
				}
				defer func() { inspected = nil }()
				everyMode(t, s, act, x, dy, gamma, beta)
				if slow > all/100 {
					t.Errorf("%d of %d values take an assist", slow, all)
				}
			})
		}
	}
}

// forEachTinyShape calls do for plans of shapes whose channels are adjacent, a few values
// apart or more, with every path, and with and without a mask.
func forEachTinyShape(t *testing.T, shapes []Shape, do func(t *testing.T, p *Plan, mask *Mask, n int)) {
	for _, s := range shapes {
		for _, path := range Paths() {
			for _, masked := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/%v/%t", s, path, masked), func(t *testing.T) {
					p, err := NewPlan(s, WithPath(path), WithSingleValue())
					if err != nil {
						t.Fatal(err)
					}
					mask, n := Mask{}, s.PerChannel()
					if masked {
						mask.Valid = make([]bool, n)
						for i := range mask.Valid {
							mask.Valid[i] = i%3 != 0
						}
						n, _ = mask.count(s)
					}
					do(t, p, &mask, n)
				})
			}
		}
	}
}

// TestLargestSampled: the sampled rows need not be equally far apart.
func TestLargestSampled(t *testing.T) {
	const n, width = 19, 40
	values := gen.Normal(1, 20*width, 0, 1)
	for _, path := range Paths() {
		p, err := NewPlan(Shape{Outer: 20, Channels: width, Inner: 1}, WithPath(path))
		if err != nil {
			t.Fatal(err)
		}
		w := p.acquire(&Mask{}, 20, false)
		for _, rows := range [][tinySample]int{{0, 5, 10, 15}, {0, 5, 10, 16}, {0, 4, 10, 16}, {3, 3, 3, 3}, {1, 2, 3, 19}} {
			at := rows
			for i := range at {
				at[i] *= width
			}
			got := make([]float32, roundUp(n, lanes))
			w.largestSampled(values[7:], &at, got[:n])
			for j, v := range got[:n] {
				if want := math.Float32frombits(largestAt(values[7:], &at, j)); v != want {
					t.Errorf("%v, rows %v: column %d: %g, want %g", path, rows, j, v, want)
				}
			}
		}
		p.release(w)
	}
}

// TestIsHuge: which channels go the way of tiny numbers in a backward pass because their numbers are huge.
func TestIsHuge(t *testing.T) {
	inf := math.Inf(1)
	for _, c := range []struct {
		kind           byte
		first, largest float64
		mean           float64
		want           bool
	}{
		{tinyGradients, hugeLeast, hugeLeast, 0, true},
		{tinyGradients, -hugeLeast, 3e38, 0, true},
		{tinyGradients, -hugeLeast, 3e38, inf, true},
		{tinyGradients, hugeLeast * 0.999, 3e38, 0, false},
		{tinyGradients, 3e38, inf, 0, false},
		{tinyGradients, 3e38, math.NaN(), 0, false},
		{tinyDeviations, hugeLeast, hugeLeast, 0, true},
		{tinyDeviations, -3e38, 3e38, 1, true},
		{tinyDeviations, 1, 3e38, 1, false},
		{tinyDeviations, 2 * hugeLeast, 2 * hugeLeast, 1.5 * hugeLeast, false}, // near the mean
		{tinyDeviations, -2 * hugeLeast, 2 * hugeLeast, 1.5 * hugeLeast, true},
		{tinyDeviations, 3e38, 3e38, 0x1p103 * (1 - 0x1p-53), true},
		{tinyDeviations, 3e38, 3e38, -0x1p103, false}, // 3.4e38 less this mean overflows
		{tinyDeviations, 3e38, 3e38, math.NaN(), false},
		{tinyDeviations, 3e38, inf, 0, false},
	} {
		for _, backward := range []bool{false, true} {
			w := workspace{call: call{backward: backward}, channels: channels{mean: []float64{0, c.mean}}}
			if got := w.isHuge(1, c.kind, float32(c.first), magnitudeBits(float32(c.largest))); got != (c.want && backward) {
				t.Errorf("kind %d, first %g, largest %g, mean %g, backward: %t: huge is %t", c.kind, c.first, c.largest, c.mean, backward, got)
			}
		}
	}
}

// TestWideForm: a channel is wide if an x-m may overflow: its mean is large, and its values may be far from it.
func TestWideForm(t *testing.T) {
	for _, c := range []struct {
		mean, invstd, close float64
		wide                bool
	}{
		{sureMax, 0x1p-120, ownInvStd, false},
		{2 * sureMax, 0x1p-120, ownInvStd, true},
		{-2 * sureMax, 0x1p-120, ownInvStd, true},
		{2 * sureMax, 0x1p-110, ownInvStd, true},
		{2 * sureMax, 0x1p-109, ownInvStd, false},
		{3e38, 1, ownInvStd, false},
		{3e38, 1, math.Inf(1), true}, // statistics of other values
		{2 * sureMax, math.NaN(), ownInvStd, false},
		{2 * sureMax, 0, ownInvStd, true},
	} {
		var f affine
		if f.set(c.mean, c.invstd, 1, 0, c.close); f.wide() != c.wide {
			t.Errorf("mean %g, invstd %g, close from %g on: wide is %t", c.mean, c.invstd, c.close, f.wide())
		}
	}
	// A value of 2^34 is at most so far from the mean.
	if farthest := math.Sqrt(0x1p34) / ownInvStd; farthest != 0x1p126 {
		t.Errorf("values are up to %g from their mean", farthest)
	}
}

// TestMarks: which channels have moments in float64 from the start.
func TestMarks(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		values [tinySample]float32
		want   byte
	}{
		{[tinySample]float32{1, 2, 3, 4}, 0},
		{[tinySample]float32{}, 0},
		{[tinySample]float32{largeLeast, 1, -2, 0}, largeValues},
		{[tinySample]float32{-largeLeast * 2, 3e38, 0, 1}, largeValues},
		{[tinySample]float32{largeLeast * 0.999, 3e38, 0, 1}, 0},
		{[tinySample]float32{largeLeast, inf, 0, 1}, 0},
		{[tinySample]float32{largeLeast, nan, 0, 1}, 0},
		{[tinySample]float32{1e-20, -1e-20, 2e-20, 0}, smallValues},
		{[tinySample]float32{0, 0, 0, 1e-20}, smallValues},
		{[tinySample]float32{smallFirst, smallFirst * (1 - 0x1p-24), smallFirst, smallFirst}, smallValues}, // close to one another
		{[tinySample]float32{smallFirst, smallFirst * (1 - 0x1p-23), smallFirst, smallFirst}, 0},
		{[tinySample]float32{2 * smallFirst, 2 * smallFirst * (1 - 0x1p-24), 2 * smallFirst, 2 * smallFirst}, 0},
		{[tinySample]float32{1e-20, 1e-20, 1e-20, 1e-20}, 0},
		{[tinySample]float32{1e-20, 1, 1e-20, 1e-20}, 0},
		{[tinySample]float32{1e-20, 1e-20, nan, 2e-20}, 0},
		{[tinySample]float32{1e-20, 2e-20, 1e-12, 0}, 0},
		{[tinySample]float32{smallMost, -smallMost, 0, 0}, 0},
		{[tinySample]float32{smallMost, 0, 0, 0}, smallValues},
		{[tinySample]float32{smallLeast, 0, 0, 0}, smallValues},
		{[tinySample]float32{smallLeast * 0.999, 0, 0, 0}, 0},
		{[tinySample]float32{1e-40, -1e-40, 0, 0}, 0},
	} {
		for _, s := range []Shape{{Outer: 4, Channels: 3, Inner: 10}, {Outer: 400, Channels: 300, Inner: 1}, {Outer: 400, Channels: 20, Inner: 3}} {
			for _, path := range Paths() {
				p, err := NewPlan(s, WithPath(path))
				if err != nil {
					t.Fatal(err)
				}
				w := p.acquire(&Mask{}, s.PerChannel(), false)
				x := repeatedTo(s.Len(), 1)
				at, next := w.sampledValues()
				marked := func(channel int) bool { return channel%5 == 2 }
				for channel := range s.Channels {
					for k, v := range c.values {
						if marked(channel) {
							x[at[k]+channel*next] = v
						}
					}
				}
				w.apply.x = x
				w.sample(bothPhases)
				for channel := range s.Channels {
					want, got := byte(0), byte(0)
					if w.anyLarge {
						got = w.channels.large[channel]
					}
					if marked(channel) {
						want = c.want
					}
					if got != want {
						t.Fatalf("%v, %v, %g: channel %d has the mark %d, want %d", s, path, c.values, channel, got, want)
					}
				}
				p.release(w)
			}
		}
	}
}

func TestWholeLarge(t *testing.T) {
	p, err := NewPlan(Shape{Outer: 400, Channels: 40, Inner: 1})
	if err != nil {
		t.Fatal(err)
	}
	w := p.acquire(&Mask{}, 400, false)
	defer p.release(w)
	if got := w.wholeLarge(3, 40); got != 3 {
		t.Errorf("no marks: the channels from 3 on end at %d", got)
	}
	for _, c := range []struct{ from, to, c, c1, want int }{ // marks, and the channels that are asked about
		{0, 40, 0, 40, 40},
		{0, 40, 3, 40, 40},
		{0, 40, 3, 20, 20},
		{0, 30, 0, 40, 24},
		{0, 30, 7, 40, 23},
		{0, 30, 25, 40, 25},
		{0, 30, 25, 30, 30},
		{10, 30, 9, 40, 9},
		{10, 30, 10, 40, 26},
		{10, 17, 10, 40, 10},
		{33, 40, 33, 40, 40},
	} {
		w.anyLarge = false
		for channel := c.from; channel < c.to; channel++ {
			w.mark(channel, []byte{largeValues, smallValues}[channel%2])
		}
		if got := w.wholeLarge(c.c, c.c1); got != c.want {
			t.Errorf("%d to %d are marked: the channels from %d to %d end at %d, want %d", c.from, c.to-1, c.c, c.c1-1, got, c.want)
		}
	}
}

func repeatedTo(n int, v float32) []float32 {
	s := make([]float32, n)
	fill(s, v)
	return s
}

// TestSmallHidden: float32 sums leave out a column of small values beside others, and its moments are those
// that it has among columns like it.
func TestSmallHidden(t *testing.T) {
	s := Shape{Outer: 400, Channels: 45, Inner: 1}
	usual := gen.Normal(1, s.Len(), 0.3, 1)
	for _, path := range Paths() {
		p, err := NewPlan(s, WithPath(path), WithEpsilon(0))
		if err != nil {
			t.Fatal(err)
		}
		run := func(offset, scale float64, isSmall func(c int) bool) (mean, invstd []float64, slow int) {
			x := slices.Clone(usual)
			for i := range x {
				if isSmall(i % s.Channels) {
					x[i] = float32(offset + float64(float64(x[i])*scale))
				}
			}
			inspected = func(kernel int, l layout, act Activation, a kernelArgs) {
				if kernel == kernelMoments {
					n, _ := assistsOf(kernel, l, act, &a)
					slow += n
				}
			}
			defer func() { inspected = nil }()
			mean, invstd = make([]float64, s.Channels), make([]float64, s.Channels)
			if err := p.Forward(ForwardArgs{X: x, Y: make([]float32, s.Len()), Mean: mean, InvStd: invstd}); err != nil {
				t.Fatal(err)
			}
			return mean, invstd, slow
		}
		for _, of := range [][2]float64{{0, 1e-20}, {1e-10, 5e-18}} { // which needs a shift
			means, invstds, _ := run(of[0], of[1], func(int) bool { return true })
			for alone := range s.Channels {
				mean, invstd, slow := run(of[0], of[1], func(c int) bool { return c == alone })
				if most := s.Outer / 4; slow > most { // those of the first shifts
					t.Errorf("%v, %g: column %d: %d squares take an assist, may be %d", path, of, alone, slow, most)
				}
				if mean[alone] != means[alone] || invstd[alone] != invstds[alone] {
					t.Errorf("%v, %g: column %d has moments %g and %g beside others, %g and %g among its like", path, of, alone,
						mean[alone], invstd[alone], means[alone], invstds[alone])
				}
			}
		}
	}
}

// TestMarkedBesideMarked: a marked column has the moments that it has among columns like it, whatever other marked ones
// are beside it.
func TestMarkedBesideMarked(t *testing.T) {
	s := Shape{Outer: 200, Channels: 40, Inner: 1}
	usual := gen.Normal(1, s.Len(), 0.3, 1)
	kinds := [][2]float64{{0, 1e20}, {3e38, 1e31}, {1e30, 1e25}, {0, 1e-20}, {1e-10, 5e-18}} // offset and scale
	for _, path := range Paths() {
		p, err := NewPlan(s, WithPath(path), WithEpsilon(0))
		if err != nil {
			t.Fatal(err)
		}
		run := func(kind func(c int) int) (mean, invstd []float64) {
			x := slices.Clone(usual)
			for i := range x {
				k := kinds[kind(i%s.Channels)]
				x[i] = float32(k[0] + float64(float64(x[i])*k[1]))
			}
			mean, invstd = make([]float64, s.Channels), make([]float64, s.Channels)
			if err := p.Forward(ForwardArgs{X: x, Y: make([]float32, s.Len()), Mean: mean, InvStd: invstd}); err != nil {
				t.Fatal(err)
			}
			return mean, invstd
		}
		for k := range kinds {
			means, invstds := run(func(int) int { return k })
			for alone := range s.Channels {
				for other := range kinds {
					mean, invstd := run(func(c int) int {
						if c == alone {
							return k
						}
						return other
					})
					if mean[alone] != means[alone] || invstd[alone] != invstds[alone] {
						t.Fatalf("%v, %g: column %d has moments %g and %g beside those of %g, %g and %g among its like", path, kinds[k], alone,
							mean[alone], invstd[alone], kinds[other], means[alone], invstds[alone])
					}
				}
			}
		}
	}
}
