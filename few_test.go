package batchnorm

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// fewCall is a call on a matrix whose columns are of a kind, or usual.
type fewCall struct {
	shape            Shape
	act              Activation
	residual, stream bool
	workers          int
	mask             Mask
	mode             string
	alias            fewAlias // with a residual
}

// fewAlias says which inputs dx and dresidual overwrite.
type fewAlias int

const (
	overNone     fewAlias = iota
	overX                 // and dy
	overDY                // and the residual
	overResidual          // and x
)

// data returns the inputs of a call whose columns are of a kind: 0 is usual.
func (c *fewCall) data(kind func(channel int) int) (x, dy, res, gamma, beta []float32) {
	n, channels := c.shape.Len(), c.shape.Channels
	x, dy, res = gen.Normal(1, n, 0.3, 1), gen.Uniform(2, n, -1, 1), gen.Uniform(3, n, -1, 1)
	gamma, beta = gen.Uniform(4, channels, 0.5, 1.5), gen.Uniform(5, channels, -1, 1)
	for i := range n {
		switch kind(i % channels) {
		case 1:
			dy[i] = float32(float64(dy[i]) * 1e-38)
		case 2:
			x[i] = float32(float64(x[i]) * 1e-39)
		case 4:
			dy[i] = float32(float64(dy[i]) * 1e36)
		}
	}
	for channel := range channels {
		if kind(channel) == 3 {
			gamma[channel] = 1e-40
		}
	}
	return x, dy, res, gamma, beta
}

// run returns the outputs by position, and those by channel.
func (c *fewCall) run(path Path, kind func(int) int) (values, ofChannels [][]float32, err error) {
	p, err := NewPlan(c.shape, WithPath(path), WithActivation(c.act), WithWorkers(c.workers))
	if err != nil {
		return nil, nil, err
	}
	if c.stream {
		p.limits.stream = 1
	}
	n, channels := c.shape.Len(), c.shape.Channels
	x, dy, res, gamma, beta := c.data(kind)
	mean, invstd := make([]float64, channels), make([]float64, channels)
	y, dgamma, dbeta := make([]float32, n), make([]float32, channels), make([]float32, channels)
	dx, dres := dy, []float32(nil) // in place
	switch {
	case !c.residual:
		res = nil
	case c.alias == overX:
		dx, dres = x, dy
	case c.alias == overDY:
		dx, dres = dy, res
	case c.alias == overResidual:
		dx, dres = res, x
	default:
		dx, dres = make([]float32, n), make([]float32, n)
	}
	frozenMean, frozenVar := gen.Uniform(6, channels, -1, 1), gen.Uniform(7, channels, 0.5, 2)
	switch c.mode {
	case "batch":
		err = p.Forward(ForwardArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: c.mask, Y: y, Mean: mean, InvStd: invstd})
		if err == nil {
			err = p.Backward(BackwardArgs{X: x, DY: dy, Residual: res, Gamma: gamma, Beta: beta, Mask: c.mask, Mean: mean, InvStd: invstd,
				DX: dx, DResidual: dres, DGamma: dgamma, DBeta: dbeta})
		}
	case "frozen":
		err = p.Inference(InferenceArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mean: frozenMean, Var: frozenVar, Mask: c.mask, Y: y})
		if err == nil {
			err = p.FrozenBackward(FrozenBackwardArgs{X: x, DY: dy, Residual: res, Gamma: gamma, Beta: beta, Mean: frozenMean, Var: frozenVar,
				Mask: c.mask, DX: dx, DResidual: dres, DGamma: dgamma, DBeta: dbeta})
		}
	case "from y": // gamma is not tiny there
		for i := range gamma {
			gamma[i] = max(gamma[i], 0.5)
		}
		err = p.Forward(ForwardArgs{X: x, Gamma: gamma, Beta: beta, Mask: c.mask, Y: y, InvStd: invstd})
		if err == nil {
			err = p.BackwardFromY(BackwardFromYArgs{Y: y, DY: dy, Gamma: gamma, Beta: beta, Mask: c.mask, InvStd: invstd,
				DX: dx, DGamma: dgamma, DBeta: dbeta})
		}
	}
	return [][]float32{y, dx, dres}, [][]float32{dgamma, dbeta}, err
}

// TestFew: a column has the bits that it has where all columns are like it, if few are tiny: in all modes, in place, streamed,
// of many widths.
func TestFew(t *testing.T) {
	some := func(n int) Mask {
		valid := make([]bool, n)
		for i := range valid {
			valid[i] = i%3 != 1
		}
		return Mask{Valid: valid}
	}
	for _, s := range []Shape{{8, 1500, 1}, {67, 512, 1}, {fewTall + 90, 136, 1}, {700, 24, 1}, {3, 2 * panel, 1}} {
		for i, c := range []fewCall{
			{act: Identity, mode: "batch"}, {act: ReLU, mode: "batch", stream: true}, {act: SiLU, mode: "batch", workers: 3},
			{act: Identity, mode: "batch", residual: true, stream: true}, {act: ReLU, mode: "batch", residual: true, workers: 2},
			{act: GELU, mode: "batch", residual: true, stream: true}, {act: SiLU, mode: "batch", stream: true},
			{act: ReLU, mode: "batch", mask: some(s.PerChannel())}, {act: SiLU, mode: "batch", mask: some(s.PerChannel()), residual: true},
			{act: Identity, mode: "frozen"}, {act: ReLU, mode: "frozen", residual: true, stream: true}, {act: Tanh, mode: "frozen"},
			{act: Identity, mode: "from y"}, {act: LeakyReLU(0.1), mode: "from y", mask: some(s.PerChannel())},
		} {
			c.shape, c.workers = s, max(1, c.workers)
			for alias := range overResidual + 1 {
				if c.alias = alias; alias == overNone || c.residual {
					c.test(t, i)
				}
			}
		}
	}
}

// test compares the outputs on all paths. i is the number of the call, on which the kinds of columns depend.
func (c fewCall) test(t *testing.T, i int) {
	s := c.shape
	every := []int{5, 16, 64, s.Channels}[i%4]
	few := func(channel int) int {
		switch {
		case i%3 == 1 && channel/mostSpan%2 == 1: // these are not few
			return channel % 3
		case channel%every == every/2:
			return 1 + channel/every%4
		case channel%(8*every) == every/2+1: // two side by side
			return 1
		}
		return 0
	}
	t.Run(fmt.Sprintf("%v %v %s %d %d", s, c.act, c.mode, i, c.alias), func(t *testing.T) {
		for _, path := range Paths() {
			values, ofChannels, err := c.run(path, few)
			if err != nil {
				t.Fatal(err)
			}
			for kind := range 5 {
				want, wantChannels, err := c.run(path, func(int) int { return kind })
				if err != nil {
					t.Fatal(err)
				}
				c.compare(t, path, kind, few, slices.Concat(values, ofChannels), slices.Concat(want, wantChannels))
			}
		}
	})
}

// compare compares the outputs of columns of a kind.
func (c *fewCall) compare(t *testing.T, path Path, kind int, few func(int) int, got, want [][]float32) {
	for k, list := range got {
		for i, v := range list {
			channel := i % c.shape.Channels
			if w := want[k][i]; few(channel) == kind && math.Float32bits(v) != math.Float32bits(w) && (v == v || w == w) {
				t.Fatalf("%v, channel %d of kind %d: output %d of list %d is %g, want %g as where all are", path, channel, kind, i, k, v, w)
			}
		}
	}
}

// TestFewAllocateOnce: the first call with tiny columns makes room for any number of them.
func TestFewAllocateOnce(t *testing.T) {
	s := Shape{8, 1000, 1}
	p, err := NewPlan(s)
	if err != nil {
		t.Fatal(err)
	}
	x, gamma := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(4, s.Channels, 0.5, 1.5)
	mean, invstd, dx := make([]float64, s.Channels), make([]float64, s.Channels), make([]float32, s.Len())
	if err := p.Forward(ForwardArgs{X: x, Y: dx, Gamma: gamma, Mean: mean, InvStd: invstd}); err != nil {
		t.Fatal(err)
	}
	backward := func(every int) {
		dy := gen.Uniform(2, s.Len(), -1, 1)
		for i := range dy {
			if i%s.Channels%every == 0 {
				dy[i] = float32(float64(dy[i]) * 1e-38)
			}
		}
		if n := testing.AllocsPerRun(1, func() {
			if err := p.Backward(BackwardArgs{X: x, DY: dy, Gamma: gamma, Mean: mean, InvStd: invstd, DX: dx}); err != nil {
				t.Error(err)
			}
		}); n > 0 {
			t.Errorf("one of %d columns is tiny: %v allocations", every, n)
		}
	}
	backward(s.Channels)
	w := p.memory().workspaces.free[0]
	spans, few, found := cap(w.tinyColumns.spans), cap(w.tinyColumns.few), cap(w.tinyColumns.found)
	for _, every := range []int{3, 5, 6, 7, 8, 12, 16, 100} {
		backward(every)
	}
	if t0 := &w.tinyColumns; cap(t0.spans) != spans || cap(t0.few) != few || cap(t0.found) != found {
		t.Errorf("room for %d spans, %d few columns and %d kinds has grown to %d, %d and %d", spans, few, found, cap(t0.spans), cap(t0.few), cap(t0.found))
	}
}

// TestManyUnusual: channels with a form or tiny numbers are counted, in whole vectors and behind them.
func TestManyUnusual(t *testing.T) {
	const n = 100
	w := &workspace{}
	w.anyTiny = true
	for _, c := range []struct {
		forms, tiny []int // channels
		c, c1       int
		want        bool
	}{
		{nil, nil, 0, n, false},
		{[]int{0, 9, 17, 25, 33, 41, 50}, []int{58, 66, 74, 82, 90}, 0, n, false}, // 12
		{[]int{0, 9, 17, 25, 33, 41, 50}, []int{58, 66, 74, 82, 90, 91}, 0, n, true},
		{[]int{0, 9, 17, 25, 33, 41, 50}, []int{58, 66, 74, 82, 90, 99}, 0, n, true},  // behind the last vector
		{[]int{0, 9, 17, 25, 33, 41, 50}, []int{50, 58, 66, 74, 82, 90}, 0, n, false}, // one channel is both
		{[]int{3}, nil, 0, 8, false},
		{[]int{3}, []int{5}, 0, 8, true},
		{[]int{3, 9}, nil, 4, 11, true},
	} {
		w.channels.form, w.channels.tiny = make([]byte, n), make([]byte, n)
		for _, i := range c.forms {
			w.channels.form[i] = preciseForm
		}
		for _, i := range c.tiny {
			w.channels.tiny[i] = tinyGradients
		}
		if got := w.manyUnusual(c.c, c.c1); got != c.want {
			t.Errorf("forms %v and tiny numbers %v of channels %d to %d are many: %t, want %t", c.forms, c.tiny, c.c, c.c1-1, got, c.want)
		}
	}
}

// BenchmarkTinyFactors: the time that tiny factors of some columns take in a float32 kernel. Intel's processors take an assist
// for each product; on AMD's a product takes longer where those before it had usual factors.
func BenchmarkTinyFactors(b *testing.B) {
	const rows, n = 64, 512
	x, dy, y := gen.Normal(1, rows*n, 0, 1), gen.Uniform(2, rows*n, -1, 1), make([]float32, rows*n)
	for _, c := range []struct {
		name  string
		every int // one column of so many is tiny
		k2    float32
		minus float32 // the mean, negated
	}{
		{"usual", 1, 0.1, 0.5}, {"all", 1, 1e-40, 0.5}, {"of 8", 8, 1e-40, 0.5}, {"of 64", 64, 1e-40, 0.5},
		{"of 64, NaN", 64, 1e-40, nan}, {"of 64, hidden", 64, 0, nan},
	} {
		coef := make([]float32, n*coefLen)
		for j := range n {
			r := coef[recordOf(j):]
			r[fieldN*lanes], r[fieldA*lanes], r[fieldK1*lanes], r[fieldK2*lanes] = 0.5, 1.1, 0.1, 0.1
			if j%c.every == c.every/2 {
				r[fieldN*lanes], r[fieldK2*lanes] = c.minus, c.k2
			}
		}
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(4 * 3 * rows * n)
			for range b.N {
				k := kernelArgs{x: x, dy: dy, y: y, rows: rows, n: n, stride: n, coef: coef, single: rows}
				DefaultPath().run(kernelInputGrad, cols, Identity, &k)
			}
		})
	}
}
