package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	spagobn "github.com/fusedbn/batchnorm/integrations/spago"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/losses"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/nn"
	"github.com/nlpodyssey/spago/nn/linear"
	spago "github.com/nlpodyssey/spago/nn/normalization/batchnorm"
	"github.com/nlpodyssey/spago/optimizers/sgd"
)

// normalizer is a layer of batch norm: spaGO's or this package's.
type normalizer interface {
	nn.StandardModel
	ForwardT(xs ...mat.Tensor) []mat.Tensor
}

// theirs returns spaGO's layer with W at 1, where spaGO begins at 1e-5.
func theirs(features int) normalizer {
	m := spago.New[float32](features)
	m.W = nn.NewParam(mat.NewDense[float32](mat.WithBacking(mat.CreateInitializedSlice[float32](features, 1))))
	return m
}

func ours(workers int) func(features int) normalizer {
	return func(features int) normalizer {
		m := spagobn.New[float32](features)
		m.Workers = workers
		return m
	}
}

// network is a model of spaGO: fully connected layers with batch norm and ReLU
// between them.
type network struct {
	nn.Module
	Linear []*linear.Model
	Norm   []normalizer

	name     string
	strategy *sgd.SGD[float32]
	losses   []float64
	seconds  []float64 // of each step
	accuracy float64
}

// widths are those of the layers.
var widths = []int{fashion.Pixels, 64, 64, fashion.Classes}

// newNetwork returns a network. The weights are the same for every one.
func newNetwork(name string, norm func(features int) normalizer) *network {
	r := rand.New(rand.NewPCG(3, 0))
	n := &network{name: name, strategy: sgd.New[float32](sgd.NewConfig(0.1, 0, false))}
	for i := 1; i < len(widths); i++ {
		in, out := widths[i-1], widths[i]
		l := linear.New[float32](in, out)
		for k, w := 0, mat.Data[float32](l.W.Value()); k < len(w); k++ {
			w[k] = float32(r.NormFloat64() * math.Sqrt(2/float64(in)))
		}
		n.Linear = append(n.Linear, l)
		if i < len(widths)-1 {
			n.Norm = append(n.Norm, norm(out))
		}
	}
	return n
}

// forward returns the logits.
func (n *network) forward(training bool, xs []mat.Tensor) []mat.Tensor {
	for i, l := range n.Linear {
		xs = l.Forward(xs...)
		if i == len(n.Norm) {
			break
		}
		if training {
			xs = n.Norm[i].ForwardT(xs...)
		} else {
			xs = n.Norm[i].Forward(xs...)
		}
		for k, x := range xs {
			xs[k] = ag.ReLU(x)
		}
	}
	return xs
}

// images returns images as vectors.
func images(set *fashion.Set, at []int) []mat.Tensor {
	xs := make([]mat.Tensor, len(at))
	for i, k := range at {
		v := make([]float32, fashion.Pixels)
		set.Image(k, v)
		xs[i] = mat.NewDense[float32](mat.WithBacking(v))
	}
	return xs
}

func (n *network) step(set *fashion.Set, at []int) error {
	xs := images(set, at)
	labels := make([]int, len(at))
	for i, k := range at {
		labels[i] = set.Label(k)
	}
	begin := time.Now()
	loss := losses.CrossEntropySeq(n.forward(true, xs), labels, true)
	if err := ag.Backward(loss); err != nil {
		return err
	}
	// One by one, because Optimize of spaGO's optimizers.Optimizer returns before
	// the parameters are up to date.
	var failed error
	nn.ForEachParam(n, func(p *nn.Param) {
		if err := n.strategy.OptimizeParams(p); err != nil && failed == nil {
			failed = err
		}
	})
	if failed != nil {
		return failed
	}
	nn.ZeroGrad(n)
	n.seconds = append(n.seconds, time.Since(begin).Seconds())
	n.losses = append(n.losses, loss.Item().F64())
	return nil
}

// test measures the accuracy in inference.
func (n *network) test(set *fashion.Set, batch int) error {
	right, all := 0, 0
	for first := 0; first < set.N; first += batch {
		var at []int
		for k := first; k < min(first+batch, set.N); k++ {
			at = append(at, k)
		}
		for i, y := range n.forward(false, images(set, at)) {
			logits := mat.Data[float32](y.Value())
			if slices.Index(logits, slices.Max(logits)) == set.Label(at[i]) {
				right++
			}
			all++
		}
	}
	if all == 0 {
		return fmt.Errorf("there are no test images")
	}
	n.accuracy = float64(right) / float64(all)
	return nil
}

// trained trains both networks in turns.
func trained(train, test *fashion.Set, s settings) ([]*network, error) {
	nets := []*network{newNetwork("spaGO's", theirs), newNetwork("this package", ours(s.workers))}
	r := rand.New(rand.NewPCG(4, 0))
	for k := range s.steps {
		at := make([]int, s.batch)
		for i := range at {
			at[i] = r.IntN(train.N)
		}
		for i := range nets {
			if err := nets[(i+k)%2].step(train, at); err != nil { // the first one changes from step to step
				return nil, err
			}
		}
	}
	for _, n := range nets {
		if err := n.test(test.First(s.tested), s.batch); err != nil {
			return nil, err
		}
	}
	return nets, nil
}
