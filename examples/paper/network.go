package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// design is the plan of a network. Two networks of the same design are equal bit by bit.
type design struct {
	inputs  int
	hidden  []int // units of each hidden layer
	classes int
	act     *activation
	norm    bool    // batch norm in front of every activation
	ghost   int     // with norm: images of a ghost batch; 0: whole batches
	bias    bool    // with norm: a bias in front of batch norm, which should be redundant
	std     float64 // of the initial weights
	seed    uint64  // of the initial weights
	path    batchnorm.Path
}

// paperDesign is the network of section 4.1: three hidden layers of 100 units.
func paperDesign(act *activation, norm bool, seed uint64) design {
	return design{
		inputs: fashion.Pixels, hidden: []int{100, 100, 100}, classes: fashion.Classes,
		act: act, norm: norm, std: initialStd, seed: seed, path: batchnorm.DefaultPath(),
	}
}

// initialStd is the standard deviation of the initial weights.
const initialStd = 0.1

// A network has fully connected layers, the last of which gives the logits of the classes.
// It holds the parameters; the memory for a batch is a pass.
type network struct {
	design
	layers []*layer
	params []param
}

// param has parameters that are trained, and the gradient of the loss by them.
type param struct {
	name        string
	value, grad []float32
}

// A layer is x*W + bias, followed in hidden layers by batch norm and the activation. A
// hidden layer without batch norm runs the same kernels, as inference with constants: z =
// (x*W - 0)*1 + beta, where beta is the bias.
type layer struct {
	in, out int
	hidden  bool
	norm    bool // batch norm

	weight, dweight []float32 // in x out
	transposed      []float32 // weight, out x in, for the gradient by x
	bias, dbias     []float32 // nil in hidden layers, unless the design wants it in front of batch norm

	// Of hidden layers. Without batch norm gamma is nil, and the running
	// statistics stay at 0 and 1.
	gamma, dgamma           []float32
	beta, dbeta             []float32
	runningMean, runningVar []float32
}

// newNetwork draws the weights from the normal distribution. Those of a layer
// do not depend on whether there is batch norm.
func newNetwork(d design) *network {
	net := &network{design: d}
	sizes := append([]int{d.inputs}, d.hidden...)
	sizes = append(sizes, d.classes)
	for i, in := range sizes[:len(sizes)-1] {
		out := sizes[i+1]
		l := &layer{in: in, out: out, hidden: i < len(d.hidden)}
		l.norm = l.hidden && d.norm
		l.weight = gen.Normal(d.seed<<8+uint64(i), in*out, 0, d.std)
		l.dweight, l.transposed = make([]float32, in*out), make([]float32, in*out)
		net.add("weight", i, l.weight, l.dweight)
		if !l.hidden || l.norm && d.bias {
			l.bias, l.dbias = make([]float32, out), make([]float32, out)
			net.add("bias", i, l.bias, l.dbias)
		}
		if l.norm {
			l.gamma, l.dgamma = ones(out), make([]float32, out)
			net.add("gamma", i, l.gamma, l.dgamma)
		}
		if l.hidden {
			l.beta, l.dbeta = make([]float32, out), make([]float32, out)
			l.runningMean, l.runningVar = make([]float32, out), ones(out)
			net.add("beta", i, l.beta, l.dbeta)
		}
		net.layers = append(net.layers, l)
	}
	return net
}

func (net *network) add(name string, layer int, value, grad []float32) {
	net.params = append(net.params, param{fmt.Sprintf("%s %d", name, layer+1), value, grad})
}

func ones(n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = 1
	}
	return s
}

// step moves all parameters against their gradients.
func (net *network) step(rate float32) {
	for _, p := range net.params {
		addScaled(p.value, -rate, p.grad)
	}
}

// hash returns the SHA-256 of all parameters and running statistics, each number as 4
// bytes, the lowest first: weight, bias, gamma and beta of every layer in turn, as far as
// the layer has them, and then running mean and variance of every layer.
func (net *network) hash() string {
	h := sha256.New()
	add := func(values []float32) {
		for _, v := range values {
			h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(v)))
		}
	}
	for _, p := range net.params {
		add(p.value)
	}
	for _, l := range net.layers {
		add(l.runningMean)
		add(l.runningVar)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// A pass is the memory for n images in a network. Several passes of a network may run at a
// time, if none of them trains.
type pass struct {
	net    *network
	n      int
	x      []float32 // input
	layers []layerPass
	clock  *clock // may be nil

	labels []int // of the images

	// The weight of a batch in the running statistics, in training mode.
	momentum batchnorm.Momentum
}

type layerPass struct {
	z, dz []float32 // x*W + bias, and the gradient by it
	y, dy []float32 // output, and the gradient by it; in the last layer y is z

	// Of hidden layers.
	fused        plans
	bare         plans     // without the activation
	pre          []float32 // input of the activation, where wanted
	mean, invStd []float64 // of the batch, or of each ghost batch
}

// plans has the plans of a layer: for given statistics, and for those of the batch.
type plans struct {
	given *batchnorm.Plan
	batch trainer
}

// trainer is batch norm in training, of whole batches (batchnorm.Plan) or in
// ghost batches (batchnorm.GhostPlan).
type trainer interface {
	Forward(batchnorm.ForwardArgs) error
	Backward(batchnorm.BackwardArgs) error
}

// newPlans makes the plans of n images.
func (d *design) newPlans(n, units int, options ...batchnorm.Option) (plans, error) {
	shape, err := batchnorm.NHWC(n, units)
	if err != nil {
		return plans{}, err
	}
	options = append(options, batchnorm.WithPath(d.path))
	if !d.norm { // invstd is exactly 1
		options = append(options, batchnorm.WithEpsilon(0))
	}
	given, err := batchnorm.NewPlan(shape, options...)
	if err != nil || d.ghost == 0 {
		return plans{given, given}, err
	}
	ghost, err := batchnorm.NewGhostPlan(shape, batchnorm.GhostBatches{Samples: n, Size: d.ghost}, options...)
	return plans{given, ghost}, err
}

// batches returns the number of parts of n images that have statistics of their own.
func (d *design) batches(n int) int {
	if d.ghost == 0 {
		return 1
	}
	return (n + d.ghost - 1) / d.ghost
}

func newPass(net *network, n int) (*pass, error) {
	p := &pass{net: net, n: n, x: make([]float32, n*net.inputs), labels: make([]int, n)}
	for _, l := range net.layers {
		size := n * l.out
		lp := layerPass{z: make([]float32, size), dz: make([]float32, size)}
		lp.y = lp.z
		if l.hidden {
			lp.y, lp.dy, lp.pre = make([]float32, size), make([]float32, size), make([]float32, size)
			statistics := net.batches(n) * l.out
			lp.mean, lp.invStd = make([]float64, statistics), make([]float64, statistics)
			var err error
			if lp.bare, err = net.newPlans(n, l.out); err != nil {
				return nil, err
			}
			if lp.fused, err = net.newPlans(n, l.out, batchnorm.WithActivation(net.act.kernel)); err != nil {
				return nil, err
			}
		}
		p.layers = append(p.layers, lp)
	}
	return p, nil
}

// fill takes images of a set as the input.
func (p *pass) fill(set *fashion.Set, images []int) {
	for i, image := range images {
		set.Image(image, p.x[i*fashion.Pixels:])
		p.labels[i] = set.Label(image)
	}
}

// input returns the input of layer i.
func (p *pass) input(i int) []float32 {
	if i == 0 {
		return p.x
	}
	return p.layers[i-1].y
}

// probabilities returns the last output of the network: classes for each image.
func (p *pass) probabilities() []float32 { return p.layers[len(p.layers)-1].y }

// mode names the statistics that normalize.
type mode int

const (
	training  mode = iota // from the batch, which also enters the running statistics
	batch                 // from the batch
	inference             // from the running statistics
)

// forward computes the probabilities of the classes, and returns the loss.
func (p *pass) forward(m mode) (loss float64, err error) {
	for i, l := range p.net.layers {
		lp := &p.layers[i]
		multiply(lp.z, p.input(i), l.weight, p.n, l.in, l.out)
		addRows(lp.z, l.bias)
		if l.hidden {
			p.clock.begin()
			err := p.normalize(i, lp.fused, m, lp.y)
			p.clock.end()
			if err != nil {
				return 0, err
			}
		}
	}
	return softmax(p.probabilities(), p.labels), nil
}

// normalize runs batch norm and activation of hidden layer i, by plans with or without the
// activation.
func (p *pass) normalize(i int, by plans, m mode, y []float32) error {
	l, lp := p.net.layers[i], &p.layers[i]
	if !l.norm || m == inference {
		return by.given.Inference(batchnorm.InferenceArgs{
			X: lp.z, Gamma: l.gamma, Beta: l.beta, Mean: l.runningMean, Var: l.runningVar, Y: y,
		})
	}
	a := batchnorm.ForwardArgs{X: lp.z, Gamma: l.gamma, Beta: l.beta, Y: y, Mean: lp.mean, InvStd: lp.invStd}
	if m == training {
		a.RunningMean, a.RunningVar, a.Momentum = l.runningMean, l.runningVar, p.momentum
	}
	return by.batch.Forward(a)
}

// backward computes the gradient of the loss by all parameters, after forward
// in training mode.
func (p *pass) backward() error {
	last := &p.layers[len(p.layers)-1]
	scale := 1 / float32(p.n)
	for k, v := range last.y { // which is last.z
		last.dz[k] = v * scale
	}
	for i, label := range p.labels {
		k := i*p.net.classes + label
		last.dz[k] = (last.y[k] - 1) * scale
	}
	for i := len(p.layers) - 1; i >= 0; i-- {
		l, lp := p.net.layers[i], &p.layers[i]
		if l.hidden {
			p.clock.begin()
			err := p.unnormalize(i, lp.fused, lp.dz)
			p.clock.end()
			if err != nil {
				return err
			}
		}
		if l.bias != nil {
			sumRows(l.dbias, lp.dz)
		}
		multiplyTransposed(l.dweight, p.input(i), lp.dz, p.n, l.in, l.out)
		if i > 0 {
			// A product with a transposed copy: gonum's product with a transposed right
			// matrix sums in an order that depends on the machine.
			transpose(l.transposed, l.weight, l.out)
			multiply(p.layers[i-1].dy, lp.dz, l.transposed, p.n, l.out, l.in)
		}
	}
	return nil
}

// unnormalize computes the gradient of normalize. dx is the gradient by x*W + bias.
func (p *pass) unnormalize(i int, by plans, dx []float32) error {
	l, lp := p.net.layers[i], &p.layers[i]
	if l.norm {
		return by.batch.Backward(batchnorm.BackwardArgs{
			DY: lp.dy, X: lp.z, Gamma: l.gamma, Beta: l.beta, Mean: lp.mean, InvStd: lp.invStd,
			DX: dx, DGamma: l.dgamma, DBeta: l.dbeta,
		})
	}
	return by.given.FrozenBackward(batchnorm.FrozenBackwardArgs{
		DY: lp.dy, X: lp.z, Beta: l.beta, Mean: l.runningMean, Var: l.runningVar,
		DX: dx, DBeta: l.dbeta,
	})
}

// preactivations computes the input of the activation of hidden layer i, after forward in
// inference mode.
func (p *pass) preactivations(i int) ([]float32, error) {
	lp := &p.layers[i]
	return lp.pre, p.normalize(i, lp.bare, inference, lp.pre)
}

// correct returns the number of images whose label has the largest probability. NaN is
// never largest.
func (p *pass) correct() int {
	right := 0
	for i, label := range p.labels {
		row := p.probabilities()[i*p.net.classes:][:p.net.classes]
		best := true
		for j, v := range row {
			best = best && (j == label || row[label] > v)
		}
		if best {
			right++
		}
	}
	return right
}

// addRows adds v, if there is one, to every row of m.
func addRows(m, v []float32) {
	if v == nil {
		return
	}
	for ; len(m) > 0; m = m[len(v):] {
		for j, add := range v {
			m[j] += add
		}
	}
}

// sumRows sets v to the sum of all rows of m. It sums in float64, so that a sum that should
// be 0 shows the rounding of its addends, not its own.
func sumRows(v, m []float32) {
	for j := range v {
		sum := 0.0
		for k := j; k < len(m); k += len(v) {
			sum += float64(m[k])
		}
		v[j] = float32(sum)
	}
}

// transpose writes the rows of m, which have cols elements, as columns.
func transpose(dst, m []float32, cols int) {
	rows := len(m) / cols
	for i := range rows {
		for j, v := range m[i*cols:][:cols] {
			dst[j*rows+i] = v
		}
	}
}
