package main

import (
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
)

// caseAlone is a batch norm of data with a mean and deviation 1.
type caseAlone struct {
	n, features int
	mean        float64
}

var alone = []caseAlone{
	{64, 64, 0},
	{64, 64, 100},
	{64, 64, 1e4},
	{60, 100, 0},
	{256, 1024, 0},
}

// outcome has the errors and times of one batch norm.
type outcome struct {
	y, dx   float64 // largest error, relative to the largest value or 1
	seconds []float64
}

// measure runs spaGO's and this package's batch norm in turn. The parameters are
// those of new layers, 1 and 0.
func (c caseAlone) measure(s settings) ([2]outcome, error) {
	r := rand.New(rand.NewPCG(5, 0))
	normal := func(mean float64) []float32 {
		v := make([]float32, c.n*c.features)
		for i := range v {
			v[i] = float32(mean + r.NormFloat64())
		}
		return v
	}
	p := reference.Problem{
		Outer: c.n, Channels: c.features, Inner: 1, Epsilon: 1e-5, Activation: "identity", X: normal(c.mean), DY: normal(0),
	}
	y, dx := reference.Forward(p).Y, reference.Backward(p).DX

	var out [2]outcome
	layers := [2]normalizer{theirs(c.features), ours(s.workers)(c.features)}
	once := func(i int) (ys, dxs []float32, err error) {
		xs, dys := make([]mat.Tensor, c.n), make([]mat.Tensor, c.n)
		for k := range xs {
			xs[k] = mat.NewDense[float32](mat.WithBacking(p.X[k*c.features:][:c.features]), mat.WithGrad(true))
			dys[k] = mat.NewDense[float32](mat.WithBacking(p.DY[k*c.features:][:c.features]))
		}
		runtime.GC() // of what the run before has left
		begin := time.Now()
		nodes := layers[i].ForwardT(xs...)
		for k, node := range nodes {
			node.AccGrad(dys[k])
		}
		if err := ag.Backward(nodes...); err != nil {
			return nil, nil, err
		}
		out[i].seconds = append(out[i].seconds, time.Since(begin).Seconds())
		for k, node := range nodes {
			ys, dxs = append(ys, mat.Data[float32](node.Value())...), append(dxs, mat.Data[float32](xs[k].Grad())...)
		}
		return ys, dxs, nil
	}
	for i := range layers {
		gotY, gotDX, err := once(i)
		if err != nil {
			return out, err
		}
		out[i].y, out[i].dx = compare.Distance(gotY, y), compare.Distance(gotDX, dx)
		out[i].seconds = nil
	}
	limit := time.Now().Add(3 * time.Second) // for one case, after the first round
	for k := range s.reps {
		for j := range layers {
			if _, _, err := once((j + k) % 2); err != nil {
				return out, err
			}
		}
		if time.Now().After(limit) {
			break
		}
	}
	return out, nil
}
