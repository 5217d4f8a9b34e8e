package gorgoniabn

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/compare"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// bound is the largest error against float64, relative to the largest value.
const bound = 1e-6

var shapes = []tensor.Shape{{7, 3}, {64, 10}, {2, 1}, {3, 5, 4}, {4, 3, 5, 7}, {2, 16, 8, 8}, {2, 3, 4, 2, 3}}

// Forward and backward pass, in training and in evaluation mode, on both
// machines, with and without an activation, agree with float64.
func TestReference(t *testing.T) {
	for _, dims := range shapes {
		for _, eval := range []bool{false, true} {
			for _, lisp := range []bool{false, true} {
				for _, act := range []struct {
					a    batchnorm.Activation
					name string
				}{{batchnorm.Identity, "identity"}, {batchnorm.SiLU, "silu"}, {batchnorm.LeakyReLU(0.25), "leaky_relu(0.25)"}} {
					t.Run(fmt.Sprintf("%v/eval=%v/lisp=%v/%s", dims, eval, lisp, act.name), func(t *testing.T) {
						p := random(dims, 3)
						p.eval, p.lisp, p.activation, p.name = eval, lisp, act.a, act.name
						p.run(t, fused).near(t, p.reference(), bound)
					})
				}
			}
		}
	}
}

// The running statistics begin at 0 and 1.
func TestFreshStatistics(t *testing.T) {
	for _, eval := range []bool{false, true} {
		p := random(tensor.Shape{6, 4}, 2)
		p.mean, p.vari, p.eval = nil, nil, eval
		p.run(t, fused).near(t, p.reference(), bound)
	}
}

// Scale and bias may be vectors.
func TestVectorParameters(t *testing.T) {
	for _, dims := range []tensor.Shape{{5, 3}, {2, 3, 4, 4}} {
		for _, lisp := range []bool{false, true} {
			p := random(dims, 0)
			p.scaleShape, p.lisp = tensor.Shape{3}, lisp
			p.run(t, fused).near(t, p.reference(), bound)
		}
	}
}

// One channel, where Gorgonia may hold a parameter as a scalar.
func TestOneChannel(t *testing.T) {
	for _, lisp := range []bool{false, true} {
		p := random(tensor.Shape{9, 1}, 1)
		p.scaleShape, p.lisp = tensor.Shape{1}, lisp
		p.run(t, fused).near(t, p.reference(), bound)
	}
}

// Several goroutines give the same bits as one.
func TestWorkers(t *testing.T) {
	p := random(tensor.Shape{8, 16, 16, 16}, 0)
	one := p.run(t, fused)
	p.opts = []batchnorm.Option{batchnorm.WithWorkers(4)}
	four := p.run(t, fused)
	if !slices.Equal(one.y, four.y) || !slices.Equal(one.dx, four.dx) || !slices.Equal(one.dgamma, four.dgamma) {
		t.Error("4 workers give another result than 1")
	}
}

// The gradients agree with differences of the loss, which the operation itself
// computes, in training and in evaluation mode.
func TestDifferences(t *testing.T) {
	for _, dims := range []tensor.Shape{{5, 3}, {2, 3, 2, 3}} {
		for _, eval := range []bool{false, true} {
			p := random(dims, 1)
			p.eval = eval
			p.activation, p.name = batchnorm.Tanh, "tanh"
			r := p.run(t, fused)
			loss := func(p problem) float64 {
				sum := 0.0
				for i, y := range p.run(t, fused).y {
					sum += float64(y) * float64(p.dy[i])
				}
				return sum
			}
			for _, s := range []struct {
				name string
				of   *[]float32
				got  []float32
			}{{"x", &p.x, r.dx}, {"scale", &p.gamma, r.dgamma}, {"bias", &p.beta, r.dbeta}} {
				for i := range *s.of {
					const h = 1.0 / 128
					saved := *s.of
					at := func(d float32) float64 {
						*s.of = slices.Clone(saved)
						(*s.of)[i] += d
						defer func() { *s.of = saved }()
						return loss(p)
					}
					// Four points: the error is of the order h^4.
					want := (8*(at(h)-at(-h)) - (at(2*h) - at(-2*h))) / (12 * h)
					if d := math.Abs(float64(s.got[i]) - want); d > 5e-4 {
						t.Errorf("%v, eval=%v: gradient by %s[%d] is %v, differences give %v", dims, eval, s.name, i, s.got[i], want)
					}
				}
			}
		}
	}
}

// Where gorgonia.BatchNorm is right, both give the same: training of centred
// data, and evaluation of matrices.
func TestAgainstGorgonia(t *testing.T) {
	for _, c := range []struct {
		dims tensor.Shape
		eval bool
	}{
		{tensor.Shape{7, 3}, false},
		{tensor.Shape{64, 10}, false},
		{tensor.Shape{4, 3, 5, 7}, false},
		{tensor.Shape{2, 16, 8, 8}, false},
		{tensor.Shape{64, 10}, true},
	} {
		p := random(c.dims, 0)
		p.eval = c.eval
		own, other := p.run(t, fused), p.run(t, theirs)
		for _, s := range []struct {
			name string
			a, b []float32
		}{
			{"y", own.y, other.y},
			{"dx", own.dx, other.dx},
			{"dscale", own.dgamma, other.dgamma},
			{"dbias", own.dbeta, other.dbeta},
			{"running mean", own.mean, other.mean},
			{"running variance", own.vari, other.vari},
		} {
			if d := compare.Distance(s.a, wide(s.b)); d > 1e-5 {
				t.Errorf("%v, eval=%v: %s differs by %.3g", c.dims, c.eval, s.name, d)
			}
		}
	}
}

func wide(v []float32) []float64 {
	w := make([]float64, len(v))
	for i := range v {
		w[i] = float64(v[i])
	}
	return w
}

// A machine that trains keeps the statistics that an earlier one left, and an
// evaluation in between changes nothing.
func TestModes(t *testing.T) {
	p := random(tensor.Shape{8, 3}, 5)
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	y, _, _, op, err := BatchNorm(x, nil, nil, 0.5, p.epsilon)
	check(t, err)
	run := func(opts ...gorgonia.VMOpt) []float32 {
		t.Helper()
		m := gorgonia.NewTapeMachine(g, opts...)
		defer m.Close()
		check(t, m.RunAll())
		return slices.Clone(op.runningMean.Float32s())
	}
	first := run()
	evaluated := run(gorgonia.EvalMode())
	if !slices.Equal(first, evaluated) {
		t.Errorf("evaluation changed the running mean from %v to %v", first, evaluated)
	}
	second := run()
	for c := range first {
		// From 0 with weight 1/2: m/2, then 3m/4.
		if d := math.Abs(float64(second[c]) - 1.5*float64(first[c])); d > 1e-5 {
			t.Errorf("running mean of channel %d is %v after one batch, and %v after the same again", c, first[c], second[c])
		}
	}
	check(t, op.Reset())
	if m, v := op.runningMean.Float32s()[0], op.runningVar.Float32s()[0]; m != 0 || v != 1 {
		t.Errorf("after Reset the running mean is %v, the variance %v", m, v)
	}
	if y.Value() == nil {
		t.Error("y has no value")
	}
}

// Operations are nodes of their own, whatever they have in common.
func TestEachIsItsOwn(t *testing.T) {
	p := random(tensor.Shape{6, 2}, 0)
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
	y1, _, _, op1, err := BatchNorm(x, scale, bias, 0.1, 1e-5)
	check(t, err)
	y2, _, _, op2, err := BatchNorm(x, scale, bias, 0.1, 1e-5)
	check(t, err)
	if y1 == y2 || op1.Hashcode() == op2.Hashcode() {
		t.Error("two batch norms of the same node are one")
	}
}

// Two losses of the same output have gradients of their own.
func TestTwoLosses(t *testing.T) {
	p := random(tensor.Shape{6, 2}, 0)
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
	y, _, _, _, err := BatchNorm(x, scale, bias, 0.1, p.epsilon)
	check(t, err)
	w := node(g, "dy", p.dims, p.dy)
	once := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(y, w))))
	twice := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(y, gorgonia.Must(gorgonia.Add(w, w))))))
	total := gorgonia.Must(gorgonia.Add(once, twice))
	_, err = gorgonia.Grad(total, x, scale, bias)
	check(t, err)
	m := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(x, scale, bias))
	defer m.Close()
	check(t, m.RunAll())
	want := p.reference()
	for i := range want.dx {
		want.dx[i] *= 3
	}
	dx, err := x.Grad()
	check(t, err)
	if d := compare.Distance(dx.(*tensor.Dense).Float32s(), want.dx); d > bound {
		t.Errorf("dx is off by %.3g", d)
	}
}

// A Lisp machine adds the gradients of all uses of a node.
func TestLispMachineAdds(t *testing.T) {
	p := random(tensor.Shape{6, 2}, 0)
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
	y, _, _, _, err := BatchNorm(x, scale, bias, 0.1, p.epsilon)
	check(t, err)
	both := gorgonia.Must(gorgonia.Add(y, x))
	gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(both, node(g, "dy", p.dims, p.dy)))))
	m := gorgonia.NewLispMachine(g)
	defer m.Close()
	check(t, m.RunAll())
	want := p.reference()
	for i := range want.dx {
		want.dx[i] += float64(p.dy[i])
	}
	dx, err := x.Grad()
	check(t, err)
	if d := compare.Distance(dx.(*tensor.Dense).Float32s(), want.dx); d > bound {
		t.Errorf("dx is off by %.3g", d)
	}
}

// A result goes into the memory that the machine offers, if that serves.
func TestPrealloc(t *testing.T) {
	p := random(tensor.Shape{6, 2}, 0)
	g := gorgonia.NewGraph()
	scale, bias := dense(p.perChannel(), p.gamma), dense(p.perChannel(), p.beta)
	_, _, _, op, err := BatchNorm(node(g, "x", p.dims, p.x), nil, nil, p.momentum, p.epsilon)
	check(t, err)
	want := p.reference().y
	xv := dense(p.dims, p.x)
	for _, c := range []struct {
		name string
		pre  gorgonia.Value
		used bool
	}{
		{"stale", dense(p.dims, p.dy), true},
		{"none", nil, false},
		{"another shape", dense(tensor.Shape{2, 6}, p.dy), false},
		{"another type", tensor.New(tensor.Of(tensor.Float64), tensor.WithShape(6, 2)), false},
		{"the input", xv, false},
		{"a scalar", gorgonia.NewF32(1), false},
	} {
		v, err := op.UsePreallocDo(c.pre, xv, scale, bias)
		check(t, err)
		if used := v == c.pre; used != c.used {
			t.Errorf("%s: used is %v", c.name, used)
		}
		if d := compare.Distance(v.(*tensor.Dense).Float32s(), want); d > bound {
			t.Errorf("%s: y is off by %.3g", c.name, d)
		}
		if !slices.Equal(xv.Float32s(), p.x) {
			t.Fatalf("%s: x was overwritten", c.name)
		}
	}
}

// Inputs that do not lie in row-major order.
func TestViews(t *testing.T) {
	p := random(tensor.Shape{6, 4}, 0)
	want := p.reference().y
	scale, bias := dense(p.perChannel(), p.gamma), dense(p.perChannel(), p.beta)

	transposed := make([]float32, len(p.x))
	wider := make([]float32, 6*7)
	for i := range 6 {
		for j := range 4 {
			transposed[j*6+i] = p.x[i*4+j]
			wider[i*7+j+2] = p.x[i*4+j]
		}
	}
	tr := dense(tensor.Shape{4, 6}, transposed)
	check(t, tr.T())
	sl, err := dense(tensor.Shape{6, 7}, wider).Slice(nil, gorgonia.S(2, 6))
	check(t, err)
	rows, err := dense(tensor.Shape{8, 4}, append(make([]float32, 8), p.x...)).Slice(gorgonia.S(2, 8))
	check(t, err)
	col := tensor.New(tensor.WithShape(6, 4), tensor.AsFortran(slices.Clone(p.x)))

	_, _, _, op, err := BatchNorm(node(gorgonia.NewGraph(), "x", p.dims, p.x), nil, nil, p.momentum, p.epsilon)
	check(t, err)
	for _, c := range []struct {
		name string
		v    gorgonia.Value
	}{{"transposed", tr}, {"columns of a wider one", sl.(*tensor.Dense)}, {"rows of a longer one", rows.(*tensor.Dense)}, {"column-major", col}} {
		v, err := op.Do(c.v, scale, bias)
		check(t, err)
		if d := compare.Distance(v.(*tensor.Dense).Float32s(), want); d > bound {
			t.Errorf("%s: y is off by %.3g", c.name, d)
		}
	}
}

// A wrong argument is an error with the numbers, before a node is made or a value written.
func TestErrors(t *testing.T) {
	g := gorgonia.NewGraph()
	x := node(g, "x", tensor.Shape{4, 3}, make([]float32, 12))
	narrow := gorgonia.NewVector(g, tensor.Float32, gorgonia.WithShape(2), gorgonia.WithName("narrow"))
	full := gorgonia.NewMatrix(g, tensor.Float32, gorgonia.WithShape(4, 3), gorgonia.WithName("full"))
	vector := gorgonia.NewVector(g, tensor.Float32, gorgonia.WithShape(5), gorgonia.WithName("vector"))
	double := gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(4, 3), gorgonia.WithName("double"))
	for _, c := range []struct {
		want              string
		x, scale, bias    *gorgonia.Node
		momentum, epsilon float64
		opts              []batchnorm.Option
	}{
		{"x is nil", nil, nil, nil, 0.1, 1e-5, nil},
		{"x has the shape (5)", vector, nil, nil, 0.1, 1e-5, nil},
		{"x is float64", double, nil, nil, 0.1, 1e-5, nil},
		{"scale has the shape (2), x of the shape (4, 3) needs (3) or (1, 3)", x, narrow, nil, 0.1, 1e-5, nil},
		{"bias has the shape (4, 3)", x, nil, full, 0.1, 1e-5, nil},
		{"weight 1.5", x, nil, nil, 1.5, 1e-5, nil},
		{"epsilon is -1", x, nil, nil, 0.1, -1, nil},
		{"workers is 0", x, nil, nil, 0.1, 1e-5, []batchnorm.Option{batchnorm.WithWorkers(0)}},
	} {
		_, _, _, _, err := BatchNorm(c.x, c.scale, c.bias, c.momentum, c.epsilon, c.opts...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error is %v, want %q in it", err, c.want)
		}
	}

	_, _, _, op, err := BatchNorm(x, nil, nil, 0.1, 1e-5)
	check(t, err)
	ok := dense(tensor.Shape{1, 3}, make([]float32, 3))
	for _, c := range []struct {
		want   string
		inputs []gorgonia.Value
	}{
		{"has 1 inputs, needs 3", []gorgonia.Value{x.Value()}},
		{"x is float64", []gorgonia.Value{tensor.New(tensor.Of(tensor.Float64), tensor.WithShape(4, 3)), ok, ok}},
		{"x has the shape (4, 2)", []gorgonia.Value{dense(tensor.Shape{4, 2}, make([]float32, 8)), ok, ok}},
		{"gamma has 2 elements", []gorgonia.Value{x.Value(), dense(tensor.Shape{2}, make([]float32, 2)), ok}},
		{"bias is a *gorgonia.F64", []gorgonia.Value{x.Value(), ok, gorgonia.NewF64(1)}},
	} {
		if _, err := op.Do(c.inputs...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error is %v, want %q in it", err, c.want)
		}
	}

	// One value per channel.
	one := node(gorgonia.NewGraph(), "x", tensor.Shape{1, 3}, make([]float32, 3))
	_, _, _, op, err = BatchNorm(one, nil, nil, 0.1, 1e-5)
	check(t, err)
	if _, err := op.Do(one.Value(), ok, ok); !errors.Is(err, batchnorm.ErrTooFewValues) {
		t.Errorf("error is %v, want %v", err, batchnorm.ErrTooFewValues)
	}
	_, _, _, op, err = BatchNorm(one, nil, nil, 0.1, 1e-5, batchnorm.WithSingleValue())
	check(t, err)
	if _, err := op.Do(one.Value(), ok, ok); err != nil {
		t.Error(err)
	}
}

// A second derivative is an error, not a wrong number.
func TestSecondDerivative(t *testing.T) {
	p := random(tensor.Shape{6, 2}, 0)
	g := gorgonia.NewGraph()
	x := node(g, "x", p.dims, p.x)
	y, _, _, _, err := BatchNorm(x, nil, nil, 0.1, p.epsilon)
	check(t, err)
	grads, err := gorgonia.Grad(gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.Square(y)))), x)
	check(t, err)
	if _, err := gorgonia.Grad(gorgonia.Must(gorgonia.Sum(grads[0])), x); err == nil {
		t.Error("a second derivative was given")
	}
}
