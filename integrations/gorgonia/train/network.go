package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	gorgoniabn "github.com/fusedbn/batchnorm/integrations/gorgonia"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

const (
	momentum = 0.1
	epsilon  = 1e-5
)

// normalizer applies a batch norm.
type normalizer func(x, scale, bias *gorgonia.Node) (*gorgonia.Node, error)

func theirs(x, scale, bias *gorgonia.Node) (*gorgonia.Node, error) {
	y, _, _, _, err := gorgonia.BatchNorm(x, scale, bias, momentum, epsilon)
	return y, err
}

func ours(workers int) normalizer {
	return func(x, scale, bias *gorgonia.Node) (*gorgonia.Node, error) {
		y, _, _, _, err := gorgoniabn.BatchNorm(x, scale, bias, momentum, epsilon, batchnorm.WithWorkers(workers))
		return y, err
	}
}

// network is a graph with its results.
type network struct {
	name     string
	graph    *gorgonia.ExprGraph
	x, label *gorgonia.Node
	params   gorgonia.Nodes
	loss     gorgonia.Value
	output   gorgonia.Value // probabilities
	machine  gorgonia.VM
	solver   gorgonia.Solver

	losses   []float64
	seconds  []float64 // of each step
	accuracy float64
}

const (
	filters = 8
	pooled  = fashion.Side / 2 // rows and columns behind the convolution of stride 2
	hidden  = 64
)

// newNetwork builds the graph. The weights are the same for every network.
func newNetwork(name string, batch int, apply normalizer) (*network, error) {
	r := rand.New(rand.NewPCG(3, 0))
	n := &network{name: name, graph: gorgonia.NewGraph()}
	value := func(name string, of func() float64, dims ...int) *gorgonia.Node {
		v := make([]float32, tensor.Shape(dims).TotalSize())
		for i := range v {
			v[i] = float32(of())
		}
		node := gorgonia.NewTensor(n.graph, tensor.Float32, len(dims), gorgonia.WithShape(dims...), gorgonia.WithName(name),
			gorgonia.WithValue(tensor.New(tensor.WithShape(dims...), tensor.WithBacking(v))))
		return node
	}
	param := func(name string, of func() float64, dims ...int) *gorgonia.Node {
		p := value(name, of, dims...)
		n.params = append(n.params, p)
		return p
	}
	normal := func(fanIn int) func() float64 {
		return func() float64 { return r.NormFloat64() * math.Sqrt(2/float64(fanIn)) }
	}
	one, zero := func() float64 { return 1 }, func() float64 { return 0 }

	n.x = value("x", zero, batch, 1, fashion.Side, fashion.Side)
	n.label = value("label", zero, batch, fashion.Classes)
	z, err := gorgonia.Conv2d(n.x, param("filter", normal(9), filters, 1, 3, 3), tensor.Shape{3, 3}, []int{1, 1}, []int{2, 2}, []int{1, 1})
	if err != nil {
		return nil, err
	}
	if z, err = apply(z, param("scale1", one, 1, filters, 1, 1), param("bias1", zero, 1, filters, 1, 1)); err != nil {
		return nil, err
	}
	z = gorgonia.Must(gorgonia.Rectify(z))
	z = gorgonia.Must(gorgonia.Reshape(z, tensor.Shape{batch, filters * pooled * pooled}))
	z = gorgonia.Must(gorgonia.Mul(z, param("w1", normal(filters*pooled*pooled), filters*pooled*pooled, hidden)))
	if z, err = apply(z, param("scale2", one, 1, hidden), param("bias2", zero, 1, hidden)); err != nil {
		return nil, err
	}
	z = gorgonia.Must(gorgonia.Rectify(z))
	z = gorgonia.Must(gorgonia.Mul(z, param("w2", normal(hidden), hidden, fashion.Classes)))
	p := gorgonia.Must(gorgonia.SoftMax(z))
	gorgonia.Read(p, &n.output)
	// The mean over all ten classes, of which only the right one counts: a tenth of the
	// cross-entropy.
	loss := gorgonia.Must(gorgonia.Neg(gorgonia.Must(gorgonia.Mean(gorgonia.Must(gorgonia.HadamardProd(gorgonia.Must(gorgonia.Log(p)), n.label))))))
	gorgonia.Read(loss, &n.loss)
	if _, err := gorgonia.Grad(loss, n.params...); err != nil {
		return nil, err
	}
	n.machine = gorgonia.NewTapeMachine(n.graph, gorgonia.BindDualValues(n.params...))
	n.solver = gorgonia.NewVanillaSolver(gorgonia.WithLearnRate(1))
	return n, nil
}

// load copies images into the graph.
func (n *network) load(set *fashion.Set, at []int) {
	x, label := n.x.Value().Data().([]float32), n.label.Value().Data().([]float32)
	clear(label)
	for i, k := range at {
		set.Image(k, x[i*fashion.Pixels:])
		label[i*fashion.Classes+set.Label(k)] = 1
	}
}

func (n *network) step(set *fashion.Set, at []int) error {
	n.load(set, at)
	begin := time.Now()
	if err := n.machine.RunAll(); err != nil {
		return err
	}
	if err := n.solver.Step(gorgonia.NodesToValueGrads(n.params)); err != nil {
		return err
	}
	n.machine.Reset()
	n.seconds = append(n.seconds, time.Since(begin).Seconds())
	n.losses = append(n.losses, fashion.Classes*float64(n.loss.Data().(float32)))
	return nil
}

// test measures the accuracy in evaluation mode.
func (n *network) test(set *fashion.Set, batch int) error {
	m := gorgonia.NewTapeMachine(n.graph, gorgonia.EvalMode())
	defer m.Close()
	right, all := 0, 0
	for first := 0; first+batch <= set.N; first += batch {
		at := make([]int, batch)
		for i := range at {
			at[i] = first + i
		}
		n.load(set, at)
		if err := m.RunAll(); err != nil {
			return err
		}
		p := n.output.Data().([]float32)
		for i, k := range at {
			row := p[i*fashion.Classes:][:fashion.Classes]
			if slices.Index(row, slices.Max(row)) == set.Label(k) {
				right++
			}
			all++
		}
		m.Reset()
	}
	if all == 0 {
		return fmt.Errorf("%d test images make no batch of %d", set.N, batch)
	}
	n.accuracy = float64(right) / float64(all)
	return nil
}

// trained trains both networks in turns.
func trained(train, test *fashion.Set, s settings) ([]*network, error) {
	var nets []*network
	for _, c := range []struct {
		name  string
		apply normalizer
	}{{"gorgonia.BatchNorm", theirs}, {"this package", ours(s.workers)}} {
		n, err := newNetwork(c.name, s.batch, c.apply)
		if err != nil {
			return nil, err
		}
		defer n.machine.Close()
		nets = append(nets, n)
	}
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
