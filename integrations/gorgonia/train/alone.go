package main

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/fusedbn/batchnorm/internal/reference"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// caseAlone is a batch norm of data with a mean and deviation 1.
type caseAlone struct {
	dims tensor.Shape
	mean float64
}

var alone = []caseAlone{
	{tensor.Shape{32, 64, 28, 28}, 0},
	{tensor.Shape{64, 8, 14, 14}, 0},
	{tensor.Shape{64, 8, 14, 14}, 100},
	{tensor.Shape{64, 8, 14, 14}, 1e4},
	{tensor.Shape{256, 1024}, 0},
	{tensor.Shape{64, 64}, 0},
}

// none is no batch norm.
func none(x, _, _ *gorgonia.Node) (*gorgonia.Node, error) { return x, nil }

// outcome has the errors and times of one batch norm.
type outcome struct {
	y, dx   float64 // largest error, relative to the largest value or 1
	seconds []float64
}

// measure runs Gorgonia's and this package's batch norm in turn, each in a graph
// with the loss sum(y*dy), and that graph without a batch norm.
func (c caseAlone) measure(s settings) ([3]outcome, error) {
	r := rand.New(rand.NewPCG(5, 0))
	normal := func(n int, mean float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(mean + r.NormFloat64())
		}
		return v
	}
	n, channels := c.dims.TotalSize(), c.dims[1]
	p := reference.Problem{
		Outer: c.dims[0], Channels: channels, Inner: n / c.dims[0] / channels, Epsilon: epsilon, Activation: "identity",
		X: normal(n, c.mean), DY: normal(n, 0), Gamma: normal(channels, 1), Beta: normal(channels, 0),
	}
	y, dx := reference.Forward(p).Y, reference.Backward(p).DX

	var out [3]outcome
	var machines [3]gorgonia.VM
	for i, apply := range []normalizer{theirs, ours(s.workers), none} {
		g := gorgonia.NewGraph()
		node := func(name string, v []float32, dims ...int) *gorgonia.Node {
			return gorgonia.NewTensor(g, tensor.Float32, len(dims), gorgonia.WithShape(dims...), gorgonia.WithName(name),
				gorgonia.WithValue(tensor.New(tensor.WithShape(dims...), tensor.WithBacking(slices.Clone(v)))))
		}
		perChannel := slices.Repeat([]int{1}, len(c.dims))
		perChannel[1] = channels
		x, scale, bias := node("x", p.X, c.dims...), node("scale", p.Gamma, perChannel...), node("bias", p.Beta, perChannel...)
		out1, err := apply(x, scale, bias)
		if err != nil {
			return out, err
		}
		var yv gorgonia.Value
		gorgonia.Read(out1, &yv)
		loss := gorgonia.Must(gorgonia.Sum(gorgonia.Must(gorgonia.HadamardProd(out1, node("dy", p.DY, c.dims...)))))
		by := gorgonia.Nodes{x}
		if out1 != x {
			by = append(by, scale, bias)
		}
		grads, err := gorgonia.Grad(loss, by...)
		if err != nil {
			return out, err
		}
		var dxv gorgonia.Value
		gorgonia.Read(grads[0], &dxv)
		machines[i] = gorgonia.NewTapeMachine(g)
		defer machines[i].Close()
		if err := machines[i].RunAll(); err != nil {
			return out, err
		}
		out[i].y, out[i].dx = compare.Distance(yv.Data().([]float32), y), compare.Distance(dxv.Data().([]float32), dx)
		machines[i].Reset()
	}
	limit := time.Now().Add(3 * time.Second) // for one case, after the first round
	for k := range s.reps {
		for j := range machines {
			i := (j + k) % len(machines)
			runtime.GC() // of what the run before has left
			begin := time.Now()
			if err := machines[i].RunAll(); err != nil {
				return out, err
			}
			machines[i].Reset()
			out[i].seconds = append(out[i].seconds, time.Since(begin).Seconds())
		}
		if time.Now().After(limit) {
			break
		}
	}
	return out, nil
}
