package spagobn

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/mat/float"
	"github.com/nlpodyssey/spago/nn"
	spago "github.com/nlpodyssey/spago/nn/normalization/batchnorm"
	"github.com/nlpodyssey/spago/optimizers/sgd"
)

// bound is the largest error against float64, relative to the largest value.
const bound = 1e-6

// Both passes, in training and inference, agree with float64, whichever type the
// tensors have.
func TestReference(t *testing.T) {
	for _, n := range []int{2, 3, 64, 300} {
		for _, features := range []int{1, 4, 33} {
			for _, inference := range []bool{false, true} {
				for _, act := range []string{"", "relu", "gelu"} {
					p := random(n, features, 3)
					p.inference, p.activation = inference, act
					want := p.reference()
					name := fmt.Sprintf("%dx%d/inference=%v/%s", n, features, inference, act)
					// Of two vectors dx is all but 0, the difference of terms that are not.
					bound := bound
					if n == 2 {
						bound = 2e-4
					}
					t.Run(name+"/float32", func(t *testing.T) { run[float32](t, p).near(t, want, bound) })
					t.Run(name+"/float64", func(t *testing.T) { run[float64](t, p).near(t, want, bound) })
				}
			}
		}
	}
}

// The gradients agree with differences of the loss.
func TestDifferences(t *testing.T) {
	for _, inference := range []bool{false, true} {
		p := random(5, 3, 1)
		p.inference, p.activation = inference, "tanh"
		r := run[float32](t, p)
		loss := func(p problem) float64 {
			sum := 0.0
			for i, y := range run[float32](t, p).y {
				sum += float64(y) * float64(p.dy[i])
			}
			return sum
		}
		for _, s := range []struct {
			name string
			of   *[]float32
			got  []float32
		}{{"x", &p.x, r.dx}, {"W", &p.gamma, r.dgamma}, {"B", &p.beta, r.dbeta}} {
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
					t.Errorf("inference=%v: gradient by %s[%d] is %v, differences give %v", inference, s.name, i, s.got[i], want)
				}
			}
		}
	}
}

// Where epsilon is little beside the deviation, spaGO's layer gives the same up
// to that.
func TestAgainstSpago(t *testing.T) {
	for _, n := range []int{3, 64, 300} {
		p := random(n, 10, 0)
		own, other := run[float32](t, p), theirs[float64](t, p)
		for _, s := range []struct {
			name string
			a, b []float32
		}{{"y", own.y, other.y}, {"dx", own.dx, other.dx}, {"gradient by W", own.dgamma, other.dgamma}, {"gradient by B", own.dbeta, other.dbeta}} {
			if d := compare.Distance(s.a, wide(s.b)); d > 2e-4 {
				t.Errorf("%d vectors: %s differs by %.3g", n, s.name, d)
			}
		}
	}
}

// Situations of spaGO's own tests: the running statistics after some batches
// that are shifted and stretched, at several momenta.
func TestScenarioRunningStatistics(t *testing.T) {
	t.Run("float32", scenarioRunningStatistics[float32])
	t.Run("float64", scenarioRunningStatistics[float64])
}

func scenarioRunningStatistics[T float.DType](t *testing.T) {
	for _, c := range []struct {
		shift, stretch float32
		momentum       T
		steps          int
		mean, variance float64 // from 0 and 0
	}{
		{0, 1, 0, 1, 0, 1},
		{10, 1, 0, 1, 10, 1},
		{0, 1, 0.5, 1, 0, 0.5},
		{0, 1, 1, 1, 0, 0},
		{0, 2, 0, 1, 0, 4},
		{0, 1, 0.5, 2, 0, 0.75},
		{4, 1, 0.5, 2, 3, 0.75},
	} {
		p := random(3000, 20, 0)
		for i := range p.x {
			p.x[i] = c.stretch*p.x[i] + c.shift
		}
		m := NewWithMomentum(p.features, c.momentum)
		m.Variance.Value().(mat.Matrix).Zeros()
		for range c.steps {
			if ys := m.ForwardT(vectors[T](p)...); len(ys) != p.n {
				t.Fatalf("%d vectors become %d", p.n, len(ys))
			}
		}
		for i := range p.features {
			mean, variance := mat.Data[T](m.Mean.Value())[i], mat.Data[T](m.Variance.Value())[i]
			if math.Abs(float64(mean)-c.mean) > 0.1 || math.Abs(float64(variance)-c.variance) > 0.1*max(1, c.variance) {
				t.Errorf("%+v: feature %d has mean %v, variance %v", c, i, mean, variance)
			}
		}
	}
}

// Inference by statistics that are given, by a layer taken over from spaGO, and
// by one made here.
func TestScenarioInference(t *testing.T) {
	t.Run("float32", scenarioInference[float32])
	t.Run("float64", scenarioInference[float64])
}

func scenarioInference[T float.DType](t *testing.T) {
	other := spago.New[T](3)
	other.W = nn.NewParam(vector[T]([]float32{1, 1, 2}))
	other.B = nn.NewParam(vector[T]([]float32{0, 0.5, 0}))
	other.Mean, other.StdDev = nn.Buf(vector[T]([]float32{0, 0, 1})), nn.Buf(vector[T]([]float32{1, 0.5, 0}))
	x := vector[T]([]float32{1, 2, 3})
	want := mat.Data[float32](other.Forward(x)[0].Value())

	m, err := From(other)
	check(t, err)
	if got := mat.Data[float32](m.Forward(x)[0].Value()); compare.Distance(got, wide(want)) > bound {
		t.Errorf("taken over: y is %v, spaGO's %v", got, want)
	}
	own := New[T](3)
	own.Mean, own.Variance = nn.Buf(vector[T]([]float32{0, 0, 1})), nn.Buf(vector[T]([]float32{1, 0.25, 4}))
	if got := mat.Data[float32](own.Forward(x)[0].Value()); compare.Distance(got, []float64{1, 4, 1}) > 1e-4 {
		t.Errorf("y is %v, want about 1, 4, 1", got)
	}
	// They are copies.
	m.W.Value().(mat.Matrix).Zeros()
	m.Mean.Value().(mat.Matrix).Zeros()
	if mat.Data[float32](other.W.Value())[0] != 1 || mat.Data[float32](other.Mean.Value())[2] != 1 {
		t.Error("From shares memory with the layer")
	}
	if _, err := From(nil); err == nil {
		t.Error("From(nil) is no error")
	}
}

// Three vectors, a ReLU behind, and gradients, some of which it stops: by ag.ReLU
// and by the fused one.
func TestScenarioTraining(t *testing.T) {
	t.Run("float32", scenarioTraining[float32])
	t.Run("float64", scenarioTraining[float64])
}

func scenarioTraining[T float.DType](t *testing.T) {
	p := problem{
		n: 3, features: 4, epsilon: 1e-5, momentum: 0.9, activation: "relu",
		x:     []float32{0.4, 0.8, -0.7, -0.5, -0.4, -0.6, -0.2, -0.9, 0.4, 0.4, 0.2, 0.8},
		dy:    []float32{-1, -0.2, 0.4, 0.6, -0.3, 0.1, 0.7, 0.9, 0.3, -0.4, 0.7, -0.8},
		gamma: []float32{0.4, 0, -0.3, 0.8}, beta: []float32{0.9, 0.2, -0.9, 0.2},
		mean: make([]float32, 4), variance: make([]float32, 4),
	}
	want := p.reference()
	run[T](t, p).near(t, want, bound)

	plain := p
	plain.activation = ""
	m, xs := layer[T](plain), vectors[T](plain)
	behind := func(ys []mat.Tensor) []mat.Tensor {
		for i, y := range ys {
			ys[i] = ag.ReLU(y)
		}
		return ys
	}
	r := backward[T](t, plain, xs, behind(m.ForwardT(xs...)), m.W, m.B)
	r.mean, r.variance = mat.Data[float32](m.Mean.Value()), mat.Data[float32](m.Variance.Value())
	r.near(t, want, bound)

	other := spago.New[T](4)
	other.W, other.B = nn.NewParam(vector[T](p.gamma)), nn.NewParam(vector[T](p.beta))
	xs = vectors[T](plain)
	s := backward[T](t, plain, xs, behind(other.ForwardT(xs...)), other.W, other.B)
	for _, s := range []struct {
		name string
		a, b []float32
	}{{"y", r.y, s.y}, {"dx", r.dx, s.dx}, {"gradient by W", r.dgamma, s.dgamma}, {"gradient by B", r.dbeta, s.dbeta}} {
		if d := compare.Distance(s.a, wide(s.b)); d > 2e-4 {
			t.Errorf("%s differs by %.3g", s.name, d)
		}
	}
}

// Outputs that no loss depends on have the gradient 0; a vector that stands in
// the list twice gets the sum; what needs no gradient gets none.
func TestGraphs(t *testing.T) {
	p := random(4, 3, 0)
	whole := p
	for i := range whole.dy[3:] {
		whole.dy[3+i] = 0
	}
	want := whole.reference()

	m, xs := layer[float32](p), vectors[float32](p)
	ys := m.ForwardT(xs...)
	ys[0].AccGrad(vector[float32](p.dy[:3]))
	check(t, ag.Backward(ys[0]))
	var dx []float32
	for _, x := range xs {
		dx = append(dx, mat.Data[float32](x.Grad())...)
	}
	if d := compare.Distance(dx, want.dx); d > bound {
		t.Errorf("one output: dx is off by %.3g", d)
	}

	// x[3] is x[0], and is computed from leaves.
	p = random(4, 3, 0)
	copy(p.x[9:], p.x[:3])
	want = p.reference()
	m, xs = layer[float32](p), vectors[float32](p)
	leaf := xs[0]
	xs[0] = ag.Add(leaf, vector[float32](make([]float32, 3)))
	xs[3] = xs[0]
	m.W.SetRequiresGrad(false)
	xs[1].(*mat.Dense[float32]).SetRequiresGrad(false)
	ys = m.ForwardT(xs...)
	for i, y := range ys {
		y.AccGrad(vector[float32](p.dy[i*3:][:3]))
	}
	check(t, ag.Backward(ys...))
	sum := make([]float64, 3)
	for i := range sum {
		sum[i] = want.dx[i] + want.dx[9+i]
	}
	if d := compare.Distance(mat.Data[float32](leaf.Grad()), sum); d > bound {
		t.Errorf("a vector twice: its gradient is off by %.3g", d)
	}
	if m.W.HasGrad() || xs[1].HasGrad() || !m.B.HasGrad() {
		t.Errorf("gradients: W %v, x[1] %v, B %v; want false, false, true", m.W.HasGrad(), xs[1].HasGrad(), m.B.HasGrad())
	}
}

// Gradients of two backward passes add up.
func TestTwoBackwardPasses(t *testing.T) {
	p := random(6, 3, 0)
	m, want := layer[float32](p), p.reference()
	for range 2 {
		xs := vectors[float32](p)
		backward[float32](t, p, xs, m.ForwardT(xs...), m.W, m.B)
	}
	for i := range want.dgamma {
		want.dgamma[i] *= 2
	}
	if d := compare.Distance(mat.Data[float32](m.W.Grad()), want.dgamma); d > bound {
		t.Errorf("gradient by W is off by %.3g", d)
	}
}

// A second backward pass through the same outputs adds to the gradients within
// the graph, as it does for spaGO's operations.
func TestBackwardAgain(t *testing.T) {
	p := random(6, 3, 0)
	xs := vectors[float64](p)
	ys := layer[float64](p).ForwardT(xs...)
	for i, y := range ys {
		y.AccGrad(vector[float64](p.dy[i*3:][:3]))
	}
	check(t, ag.Backward(ys...))
	check(t, ag.Backward(ys...))
	var dx []float32
	for _, x := range xs {
		dx = append(dx, mat.Data[float32](x.Grad())...)
	}
	want := p.reference().dx
	for i := range want {
		want[i] *= 3 // dy once, and then twice
	}
	if d := compare.Distance(dx, want); d > bound {
		t.Errorf("dx is off by %.3g", d)
	}
}

// The backward pass is that of the parameters of the forward pass, though they
// have changed since.
func TestParametersChange(t *testing.T) {
	p := random(6, 3, 0)
	p.activation = "tanh"
	m, xs := layer[float32](p), vectors[float32](p)
	ys := m.ForwardT(xs...)
	m.W.Value().(mat.Matrix).Zeros()
	m.B.Value().(mat.Matrix).Zeros()
	r := backward[float32](t, p, xs, ys, m.W, m.B)
	if d := compare.Distance(r.dx, p.reference().dx); d > bound {
		t.Errorf("dx is off by %.3g", d)
	}
}

// Matrices may take the place of vectors.
func TestShapes(t *testing.T) {
	p := random(5, 6, 0)
	m := layer[float32](p)
	var xs []mat.Tensor
	for i := range p.n {
		xs = append(xs, mat.NewDense[float32](mat.WithShape(2, 3), mat.WithBacking(p.x[i*6:][:6]), mat.WithGrad(true)))
	}
	ys := m.ForwardT(xs...)
	if s := ys[4].Shape(); !slices.Equal(s, []int{2, 3}) {
		t.Errorf("y has the shape %v, want [2 3]", s)
	}
	if d := compare.Distance(mat.Data[float32](ys[4].Value()), p.reference().y[24:]); d > bound {
		t.Errorf("y is off by %.3g", d)
	}
}

// The layer is a model: its parameters are found, optimized, saved and loaded.
func TestModelOfSpago(t *testing.T) {
	m := New[float32](3)
	params := 0
	nn.ForEachParam(m, func(*nn.Param) { params++ })
	if params != 2 {
		t.Errorf("%d parameters are found, want 2", params)
	}
	p := random(8, 3, 2)
	m.Activation, m.Momentum, m.Epsilon = "silu", 0.75, 1e-3
	m.ForwardT(vectors[float32](p)...)
	x := vectors[float32](p)[0]
	want := mat.Data[float32](nn.ModuleList[*Model]{m}.Forward(x)[0].Value())

	var saved bytes.Buffer
	check(t, nn.Dump(m, &saved))
	loaded, err := nn.Load[*Model](&saved)
	check(t, err)
	if got := mat.Data[float32](loaded.Forward(x)[0].Value()); !slices.Equal(got, want) {
		t.Errorf("loaded, the layer gives %v, before it gave %v", got, want)
	}
	if loaded.Momentum != 0.75 {
		t.Errorf("momentum is %v", loaded.Momentum)
	}

	xs := vectors[float32](p)
	before := slices.Clone(mat.Data[float32](m.W.Value()))
	backward[float32](t, p, xs, m.ForwardT(xs...), m.W, m.B)
	grad := slices.Clone(mat.Data[float32](m.W.Grad()))
	// One by one: optimizers.Optimizer does not wait (TestSpagoOptimizer).
	strategy := sgd.New[float32](sgd.NewConfig(0.5, 0, false))
	nn.ForEachParam(m, func(p *nn.Param) { check(t, strategy.OptimizeParams(p)) })
	for i, w := range mat.Data[float32](m.W.Value()) {
		if d := math.Abs(float64(w) - float64(before[i]-0.5*grad[i])); d > 1e-6 {
			t.Errorf("W[%d] was %v with gradient %v, and became %v", i, before[i], grad[i], w)
		}
	}
}

// Settings may change between calls.
func TestSettings(t *testing.T) {
	p := random(8, 3, 0)
	m := layer[float32](p)
	for _, c := range []struct {
		activation string
		epsilon    float64
	}{{"", 1e-5}, {"relu", 1e-5}, {"relu", 0.5}, {"", 0.5}} {
		m.Activation, m.Epsilon = c.activation, c.epsilon
		p.activation, p.epsilon = c.activation, c.epsilon
		var y []float32
		for _, v := range m.ForwardT(vectors[float32](p)...) {
			y = append(y, mat.Data[float32](v.Value())...)
		}
		if d := compare.Distance(y, p.reference().y); d > bound {
			t.Errorf("%+v: y is off by %.3g", c, d)
		}
	}
}

// More batch sizes than there are plans kept, and many goroutines, give what one
// does.
func TestConcurrentInference(t *testing.T) {
	p := random(48, 5, 0)
	m := layer[float32](p)
	m.Workers = 2
	var wg sync.WaitGroup
	for n := 1; n <= p.n; n++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			q := p
			q.n, q.inference = n, true
			q.x, q.dy = p.x[:n*5], p.dy[:n*5]
			var y []float32
			for _, v := range m.Forward(vectors[float32](q)...) {
				y = append(y, mat.Data[float32](v.Value())...)
			}
			if d := compare.Distance(y, q.reference().y); d > bound {
				t.Errorf("%d vectors: y is off by %.3g", n, d)
			}
		}()
	}
	wg.Wait()
}

// A wrong argument is an error, and leaves the running statistics.
func TestErrors(t *testing.T) {
	good := func() mat.Tensor { return vector[float32]([]float32{1, 2, 3}) }
	for _, c := range []struct {
		want   string
		xs     []mat.Tensor
		change func(m *Model)
	}{
		{"x[1] has 2 elements, the layer has 3 features", []mat.Tensor{good(), vector[float32]([]float32{1, 2})}, func(*Model) {}},
		{"x[0] is nil", []mat.Tensor{nil}, func(*Model) {}},
		{`activation "rely" is unknown`, []mat.Tensor{good()}, func(m *Model) { m.Activation = "rely" }},
		{"epsilon is -1", []mat.Tensor{good()}, func(m *Model) { m.Epsilon = -1 }},
		{"workers is -2", []mat.Tensor{good()}, func(m *Model) { m.Workers = -2 }},
		{"momentum gives the new batch the weight -1", []mat.Tensor{good()}, func(m *Model) { m.Momentum = 2 }},
		{"B has 2 elements, W has 3", []mat.Tensor{good()}, func(m *Model) { m.B = nn.NewParam(vector[float32]([]float32{1, 2})) }},
		{"is nil; New makes a layer", []mat.Tensor{good()}, func(m *Model) { m.Mean = nil }},
	} {
		m := New[float32](3)
		c.change(m)
		_, err := m.TryForwardT(c.xs...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error is %v, want %q in it", err, c.want)
		}
		if m.Mean != nil && !slices.Equal(mat.Data[float32](m.Mean.Value()), []float32{0, 0, 0}) {
			t.Errorf("%s: the running mean has become %v", c.want, m.Mean.Value().Data())
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: ForwardT does not panic", c.want)
				}
			}()
			m.ForwardT(c.xs...)
		}()
	}
	if ys, err := New[float32](3).TryForwardT(); len(ys) != 0 || err != nil {
		t.Errorf("no vectors give %v, error %v", ys, err)
	}
}
