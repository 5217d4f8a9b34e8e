package main

import (
	"encoding/binary"
	"hash/fnv"
	"math"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/internal/gen"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// A network is the one of section 4.1 of Ioffe and Szegedy's paper: three fully
// connected hidden layers of sigmoid units, each with batch norm before its
// activation, and a last layer that gives the logits of the classes.
type network struct {
	layers []*dense
	// The gradients of this process's images lie one behind the other, so that one exchange
	// adds them over the processes: first those of weights and biases, which every process
	// has for its own images, then those of gamma and beta.
	gradients []float32
	own       int // the number of gradients of weights and biases
}

// dense is x*W, followed by batch norm and sigmoid, or by a bias in the last layer.
type dense struct {
	in, out         int
	weight, dweight []float32        // in x out
	transposed      []float32        // weight, out x in
	bias, dbias     []float32        // of the last layer
	norm            *batchnorm.Layer // of the others
}

const initialStd = 0.1

// newNetwork draws the weights from the normal distribution.
func newNetwork(units int, seed uint64) (*network, error) {
	net := &network{}
	sizes := []int{fashion.Pixels, units, units, units, fashion.Classes}
	total := 0
	for i, in := range sizes[:len(sizes)-1] {
		out := sizes[i+1]
		l := &dense{in: in, out: out, weight: gen.Normal(seed<<8+uint64(i), in*out, 0, initialStd), transposed: make([]float32, in*out)}
		if i == len(sizes)-2 {
			l.bias = make([]float32, out)
		} else {
			var err error
			if l.norm, err = batchnorm.NewLayer(out, batchnorm.WithActivation(batchnorm.Sigmoid)); err != nil {
				return nil, err
			}
		}
		net.layers = append(net.layers, l)
		total += in*out + 2*out
	}
	net.gradients = make([]float32, 0, total)
	cut := func(n int) []float32 {
		first := len(net.gradients)
		net.gradients = net.gradients[:first+n]
		return net.gradients[first:][:n:n]
	}
	for _, l := range net.layers {
		l.dweight = cut(len(l.weight))
		l.dbias = cut(len(l.bias))
	}
	net.own = len(net.gradients)
	for _, l := range net.layers {
		if l.norm != nil {
			l.norm.DGamma, l.norm.DBeta = cut(l.out), cut(l.out)
		}
	}
	return net, nil
}

// synchronize makes batch norm use the statistics of all processes of a group.
func (net *network) synchronize(g *batchnorm.SyncGroup) error {
	for _, l := range net.layers {
		if l.norm != nil {
			if err := l.norm.Synchronize(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// parameters calls f for all parameters, each with its gradient.
func (net *network) parameters(f func(value, gradient []float32)) {
	for _, l := range net.layers {
		f(l.weight, l.dweight)
		f(l.bias, l.dbias)
		if l.norm != nil {
			f(l.norm.Gamma, l.norm.DGamma)
			f(l.norm.Beta, l.norm.DBeta)
		}
	}
}

// step moves all parameters against their gradients.
func (net *network) step(rate float32) {
	net.parameters(func(value, gradient []float32) {
		for i, g := range gradient {
			value[i] -= float32(rate * g)
		}
	})
}

// running calls f for all running statistics.
func (net *network) running(f func(v []float32)) {
	for _, l := range net.layers {
		if l.norm != nil {
			f(l.norm.RunningMean)
			f(l.norm.RunningVar)
		}
	}
}

// hash returns a hash of all bits of the parameters and running statistics.
func (net *network) hash() uint64 {
	h := fnv.New64a()
	var b [4]byte
	add := func(v []float32) {
		for _, x := range v {
			binary.LittleEndian.PutUint32(b[:], math.Float32bits(x))
			h.Write(b[:])
		}
	}
	net.parameters(func(value, _ []float32) { add(value) })
	net.running(add)
	return h.Sum64()
}

// A pass is the memory for n images in a network.
type pass struct {
	net    *network
	n      int
	x      []float32
	labels []int
	layers []layerPass
	sum    []float64 // of a gradient over the parts
	part   []float32 // of a gradient
}

type layerPass struct {
	z, dz []float32 // x*W + bias, and the gradient by it
	y, dy []float32 // output of batch norm; nil in the last layer
}

func newPass(net *network, n int) *pass {
	p := &pass{net: net, n: n, x: make([]float32, n*fashion.Pixels), labels: make([]int, n)}
	largest := 0
	for _, l := range net.layers {
		lp := layerPass{z: make([]float32, n*l.out), dz: make([]float32, n*l.out)}
		if l.norm != nil {
			lp.y, lp.dy = make([]float32, n*l.out), make([]float32, n*l.out)
		}
		p.layers = append(p.layers, lp)
		largest = max(largest, len(l.weight))
	}
	p.sum, p.part = make([]float64, largest), make([]float32, largest)
	return p
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

func (p *pass) shape(l *dense) batchnorm.Shape {
	return batchnorm.Shape{Outer: p.n, Channels: l.out, Inner: 1}
}

// forward computes the logits; in training batch norm uses the batch's statistics.
func (p *pass) forward(training bool) error {
	for i, l := range p.net.layers {
		lp := &p.layers[i]
		product(lp.z, p.input(i), l.weight, p.n, l.in, l.out)
		if l.norm == nil {
			for k := range lp.z {
				lp.z[k] += l.bias[k%l.out]
			}
			continue
		}
		a := batchnorm.LayerForwardArgs{Shape: p.shape(l), X: lp.z, Y: lp.y}
		normalize := l.norm.Inference
		if training {
			normalize = l.norm.Forward
		}
		if err := normalize(a); err != nil {
			return err
		}
	}
	return nil
}

// loss returns the sum of the images' cross-entropies and the number of images that are
// classified right. It sets the last layer's gradient, of the mean loss over so many
// images.
func (p *pass) loss(images int) (loss float64, right int) {
	last := &p.layers[len(p.layers)-1]
	const classes = fashion.Classes
	var e [classes]float64
	for i, label := range p.labels {
		row, gradient := last.z[i*classes:][:classes], last.dz[i*classes:][:classes]
		best := 0
		for j, v := range row {
			if v > row[best] {
				best = j
			}
		}
		sum := 0.0
		for j, v := range row {
			e[j] = math.Exp(float64(v) - float64(row[best]))
			sum += e[j]
		}
		loss += math.Log(sum) - (float64(row[label]) - float64(row[best]))
		if best == label {
			right++
		}
		for j := range row {
			d := e[j] / sum
			if j == label {
				d--
			}
			gradient[j] = float32(d / float64(images))
		}
	}
	return loss, right
}

// backward computes the gradients by all parameters. Those of the weights are sums over the
// images. Each part of the batch is summed by itself, and the sums are added as
// SyncGroup.AllReduce adds them over the processes.
func (p *pass) backward(parts int) error {
	for i := len(p.layers) - 1; i >= 0; i-- {
		l, lp := p.net.layers[i], &p.layers[i]
		if l.norm != nil {
			if err := l.norm.Backward(batchnorm.LayerBackwardArgs{DY: lp.dy, DX: lp.dz}); err != nil {
				return err
			}
		}
		p.overParts(l.dweight, parts, func(dst []float32, first, n int) {
			x, dz := p.input(i)[first*l.in:][:n*l.in], lp.dz[first*l.out:][:n*l.out]
			blas32.Gemm(blas.Trans, blas.NoTrans, 1, matrix(n, l.in, x), matrix(n, l.out, dz), 0, matrix(l.in, l.out, dst))
		})
		p.overParts(l.dbias, parts, func(dst []float32, first, n int) {
			for j := range dst {
				sum := 0.0
				for k := range n {
					sum += float64(lp.dz[(first+k)*l.out+j])
				}
				dst[j] = float32(sum)
			}
		})
		if i > 0 {
			for r := range l.in {
				for c := range l.out {
					l.transposed[c*l.in+r] = l.weight[r*l.out+c]
				}
			}
			product(p.layers[i-1].dy, lp.dz, l.transposed, p.n, l.out, l.in)
		}
	}
	return nil
}

// overParts sums a gradient over equal parts of the batch.
func (p *pass) overParts(dst []float32, parts int, of func(dst []float32, first, n int)) {
	n := p.n / parts
	if parts == 1 {
		of(dst, 0, n)
		return
	}
	sum, part := p.sum[:len(dst)], p.part[:len(dst)]
	for k := range parts {
		of(part, k*n, n)
		for i, v := range part {
			if k == 0 {
				sum[i] = 0
			}
			sum[i] += float64(v)
		}
	}
	for i, v := range sum {
		dst[i] = float32(v)
	}
}

func matrix(rows, cols int, data []float32) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

// product sets dst = a*b, of n x in and in x out. The bits of a row do not depend on the
// batch.
func product(dst, a, b []float32, n, in, out int) {
	blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, matrix(n, in, a), matrix(in, out, b), 0, matrix(n, out, dst))
}
