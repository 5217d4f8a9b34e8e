package gorgoniabn

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm/internal/compare"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The situations that Gorgonia's own tests of batch norm try, with this
// operation in the place of theirs, compared with theirs and with float64.

// ranged returns n values from start on.
func ranged(n int, start, step float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = start + float32(i)*step
	}
	return v
}

func problems() map[string]problem {
	of := func(x []float32, scaleStart, scaleStep, biasStart, biasStep float32, dims ...int) problem {
		c := dims[1]
		return problem{
			dims: dims, x: x, gamma: ranged(c, scaleStart, scaleStep), beta: ranged(c, biasStart, biasStep), epsilon: 1e-5, momentum: 0.9, name: "identity",
		}
	}
	return map[string]problem{
		"evenly spaced, 3x2":     of(ranged(6, 0.5, 0.01), 0.3, 0.3, 0.2, 0.2, 3, 2),
		"of both signs, 3x2":     of([]float32{-0.16, -0.32, 0.2, 0.4, 0.56, 1.12}, 0.3, 0.3, 0.2, 0.2, 3, 2),
		"evenly spaced, 3x4":     of(ranged(12, 0.5, 0.01), 0.3, 0.3, 0.2, 0.2, 3, 4),
		"finely spaced, 3x2":     of(ranged(6, 0.1, 0.001), 1, 0, 0, 0, 3, 2),
		"evenly spaced, 2x2x2x2": of(ranged(16, 0.5, 0.01), 0.3, 0.3, 0.2, 0.2, 2, 2, 2, 2),
		"evenly spaced, 2x3x2x2": of(ranged(24, 0.5, 0.01), 0.3, 0.3, 0.2, 0.2, 2, 3, 2, 2),
	}
}

// A fully connected layer behind the batch norm, one step of the solver, and
// then an evaluation.
func TestScenarioFullyConnected(t *testing.T) {
	for name, p := range problems() {
		t.Run(name, func(t *testing.T) {
			n, d := p.dims[0], p.dims.TotalSize()/p.dims[0]
			w := ranged(n*d, 0.3, 0.3)
			// The loss is the mean of y*transposed(w), an n x n matrix.
			p.dy = make([]float32, n*d)
			for i := range n {
				for k := range n {
					for j := range d {
						p.dy[i*d+j] += w[k*d+j] / float32(n*n)
					}
				}
			}
			step := func(apply batchNorm) (trained result, evaluated []float32) {
				g := gorgonia.NewGraph()
				x, fc := node(g, "x", p.dims, p.x), node(g, "w", tensor.Shape{n, d}, w)
				scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
				y, op, err := apply(p, x, scale, bias)
				check(t, err)
				var yv gorgonia.Value
				gorgonia.Read(y, &yv)
				flat := y
				if y.Dims() > 2 {
					flat = gorgonia.Must(gorgonia.Reshape(y, tensor.Shape{n, d}))
				}
				loss := gorgonia.Must(gorgonia.Mean(gorgonia.Must(gorgonia.Mul(flat, gorgonia.Must(gorgonia.Transpose(fc, 1, 0))))))
				_, err = gorgonia.Grad(loss, x, fc, scale, bias)
				check(t, err)
				watch := []gorgonia.VMOpt{gorgonia.TraceExec(), gorgonia.WithNaNWatch(), gorgonia.WithInfWatch()}
				m := gorgonia.NewTapeMachine(g, append(watch, gorgonia.BindDualValues(x, fc, scale, bias))...)
				check(t, m.RunAll())
				check(t, m.Close())
				values := func(v gorgonia.Value, err error) []float32 {
					check(t, err)
					return append([]float32(nil), v.(*tensor.Dense).Float32s()...)
				}
				mean, vari := op.Stats()
				trained = result{values(yv, nil), values(x.Grad()), values(scale.Grad()), values(bias.Grad()), values(mean, nil), values(vari, nil)}
				// Not Adam: it makes full steps of gradients that are 0 but for rounding.
				check(t, gorgonia.NewVanillaSolver(gorgonia.WithLearnRate(0.02)).Step(gorgonia.NodesToValueGrads(gorgonia.Nodes{fc, scale, bias})))
				m = gorgonia.NewTapeMachine(g, append(watch, gorgonia.EvalMode())...)
				check(t, m.RunAll())
				check(t, m.Close())
				return trained, values(yv, nil)
			}
			own, evaluated := step(fused)
			other, otherEvaluated := step(theirs)
			// dx is 0 here but for rounding, the difference of terms that are some
			// hundred times as large.
			own.near(t, p.reference(), 10*bound)
			other.near(t, p.reference(), 1e-4)
			if d := compare.Distance(evaluated, wide(otherEvaluated)); d > 1e-4 {
				t.Errorf("after one step, evaluations differ by %.3g", d)
			}
		})
	}
}

// Two batch norms, one behind the other.
func TestScenarioStacked(t *testing.T) {
	p := problems()["evenly spaced, 3x2"]
	p.dy = []float32{1, -2, 0.5, 0, -1, 3}
	run := func(apply batchNorm) (y, dx []float32) {
		g := gorgonia.NewGraph()
		x := node(g, "x", p.dims, p.x)
		params := gorgonia.Nodes{x}
		out := x
		for i := range 2 {
			scale := node(g, fmt.Sprint("scale", i), p.perChannel(), p.gamma)
			bias := node(g, fmt.Sprint("bias", i), p.perChannel(), p.beta)
			var err error
			out, _, err = apply(p, out, scale, bias)
			check(t, err)
			params = append(params, scale, bias)
		}
		var yv gorgonia.Value
		gorgonia.Read(out, &yv)
		loss := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(out, node(g, "dy", p.dims, p.dy)))))
		_, err := gorgonia.Grad(loss, params...)
		check(t, err)
		m := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(params...))
		defer m.Close()
		check(t, m.RunAll())
		grad, err := x.Grad()
		check(t, err)
		return yv.(*tensor.Dense).Float32s(), grad.(*tensor.Dense).Float32s()
	}
	// In float64, from the outside in.
	first := p.reference()
	second := p
	second.x = make([]float32, len(p.x))
	for i, v := range first.y {
		second.x[i] = float32(v)
	}
	want := second.reference()
	p.dy = make([]float32, len(p.x))
	for i, v := range want.dx {
		p.dy[i] = float32(v)
	}
	wantDX := p.reference().dx
	p.dy = []float32{1, -2, 0.5, 0, -1, 3}

	y, dx := run(fused)
	otherY, otherDX := run(theirs)
	if d := compare.Distance(y, want.y); d > bound {
		t.Errorf("y is off by %.3g", d)
	}
	if d := compare.Distance(dx, wantDX); d > bound {
		t.Errorf("dx is off by %.3g", d)
	}
	if d := compare.Distance(y, wide(otherY)); d > 1e-4 {
		t.Errorf("y differs by %.3g", d)
	}
	if d := compare.Distance(dx, wide(otherDX)); d > 1e-3 {
		t.Errorf("dx differs by %.3g", d)
	}
}

// Two halves of a batch with one scale and one bias, put together again.
func TestScenarioHalves(t *testing.T) {
	p := random(tensor.Shape{4, 2, 2, 2}, 0)
	run := func(apply batchNorm) (y, dx, dscale []float32) {
		g := gorgonia.NewGraph()
		x := node(g, "x", p.dims, p.x)
		scale, bias := node(g, "scale", p.perChannel(), p.gamma), node(g, "bias", p.perChannel(), p.beta)
		var halves []*gorgonia.Node
		for i := range 2 {
			y, _, err := apply(p, gorgonia.Must(gorgonia.Slice(x, gorgonia.S(2*i, 2*i+2))), scale, bias)
			check(t, err)
			halves = append(halves, gorgonia.Must(gorgonia.Reshape(y, tensor.Shape{2, 8})))
		}
		out := gorgonia.Must(gorgonia.Concat(0, halves...))
		var yv gorgonia.Value
		gorgonia.Read(out, &yv)
		loss := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(out, node(g, "dy", tensor.Shape{4, 8}, p.dy)))))
		_, err := gorgonia.Grad(loss, x, scale)
		check(t, err)
		m := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(x, scale))
		defer m.Close()
		check(t, m.RunAll())
		dxv, err := x.Grad()
		check(t, err)
		dsv, err := scale.Grad()
		check(t, err)
		return yv.(*tensor.Dense).Float32s(), dxv.(*tensor.Dense).Float32s(), dsv.(*tensor.Dense).Float32s()
	}
	var want truth
	want.dgamma = make([]float64, 2)
	for i := range 2 {
		half := p
		half.dims = tensor.Shape{2, 2, 2, 2}
		half.x, half.dy = p.x[16*i:][:16], p.dy[16*i:][:16]
		h := half.reference()
		want.y, want.dx = append(want.y, h.y...), append(want.dx, h.dx...)
		for c, v := range h.dgamma {
			want.dgamma[c] += v
		}
	}
	y, dx, dscale := run(fused)
	otherY, otherDX, otherDscale := run(theirs)
	for _, s := range []struct {
		name       string
		got, other []float32
		want       []float64
	}{{"y", y, otherY, want.y}, {"dx", dx, otherDX, want.dx}, {"dscale", dscale, otherDscale, want.dgamma}} {
		if d := compare.Distance(s.got, s.want); d > bound {
			t.Errorf("%s is off by %.3g", s.name, d)
		}
		if d := compare.Distance(s.other, s.want); d > 1e-5 {
			t.Errorf("theirs: %s is off by %.3g", s.name, d)
		}
	}
}

// SetStats takes values that fit, and refuses others.
func TestScenarioSetStats(t *testing.T) {
	_, _, _, op, err := BatchNorm(node(gorgonia.NewGraph(), "x", tensor.Shape{2, 2}, make([]float32, 4)), nil, nil, 0.9, 1e-5)
	check(t, err)
	good := dense(tensor.Shape{2}, []float32{3, 4})
	for _, c := range []struct {
		want           string
		mean, variance tensor.Tensor
	}{
		{"running mean has the shape (2, 2), must be (2)", dense(tensor.Shape{2, 2}, make([]float32, 4)), good},
		{"running mean is float64", tensor.New(tensor.Of(tensor.Float64), tensor.WithShape(2)), good},
		{"running variance has the shape (3)", good, dense(tensor.Shape{3}, make([]float32, 3))},
		{"running variance is float64", good, tensor.New(tensor.Of(tensor.Float64), tensor.WithShape(2))},
	} {
		if err := op.SetStats(c.mean, c.variance); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error is %v, want %q in it", err, c.want)
		}
		if m := op.runningMean.Float32s()[0]; m != 0 {
			t.Fatalf("an error has changed the running mean to %v", m)
		}
	}
	check(t, op.SetStats(good, dense(tensor.Shape{2}, []float32{5, 6})))
	mean, variance := op.Stats()
	if m, v := mean.Data().([]float32), variance.Data().([]float32); m[0] != 3 || m[1] != 4 || v[0] != 5 || v[1] != 6 {
		t.Errorf("statistics are %v and %v", m, v)
	}
}
