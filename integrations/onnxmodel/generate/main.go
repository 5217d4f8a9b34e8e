// Generate trains the network of package onnxmodel and writes it to fashion.onnx.
// Random numbers have a fixed seed and sums a fixed order, so that one machine
// makes the same file each time.
package main

import (
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
)

func main() {
	log.SetFlags(0)
	out := flag.String("o", "fashion.onnx", "file to write")
	images := flag.Int("images", 4000, "training images")
	epochs := flag.Int("epochs", 4, "passes over them")
	flag.Parse()

	train, test, err := fashion.Builtin()
	check(err)
	n := newNetwork(rand.New(rand.NewPCG(1, 2)))
	set := train.First(*images)
	for e := range *epochs {
		rate := float32(0.05)
		if e >= *epochs-1 {
			rate = 0.01
		}
		loss := n.epoch(set, rate)
		fmt.Printf("epoch %d: loss %.3f\n", e+1, loss)
	}
	fmt.Printf("right of 500 test images: %d\n", n.right(test.First(500)))
	b, err := n.model().Marshal()
	check(err)
	check(os.WriteFile(*out, b, 0o644))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

const batch = 20

// parameter is a tensor that is trained, by stochastic gradient descent with momentum.
type parameter struct{ value, gradient, velocity []float32 }

func newParameter(n, fanIn int, r *rand.Rand) parameter {
	p := parameter{make([]float32, n), make([]float32, n), make([]float32, n)}
	if r != nil {
		scale := math.Sqrt(2 / float64(fanIn))
		for i := range p.value {
			p.value[i] = float32(r.NormFloat64() * scale)
		}
	}
	return p
}

func (p *parameter) step(rate float32) {
	for i, g := range p.gradient {
		p.velocity[i] = float32(0.9*p.velocity[i]) + g
		p.value[i] -= float32(rate * p.velocity[i])
		p.gradient[i] = 0
	}
}

// block is a 3x3 convolution with a padding of 1, batch norm, and ReLU.
type block struct {
	in, out, side, stride, size int // side and size: of an image before and behind

	weight      parameter
	norm        *batchnorm.Layer
	gamma, beta parameter // shares value and gradient with norm

	x, columns, conv, y, dconv, dx, dcolumns []float32
}

func newBlock(in, out, side, stride int, r *rand.Rand) *block {
	b := &block{in: in, out: out, side: side, stride: stride, size: (side-1)/stride + 1}
	b.weight = newParameter(out*in*9, in*9, r)
	var err error
	b.norm, err = batchnorm.NewLayer(out, batchnorm.WithActivation(batchnorm.ReLU))
	check(err)
	b.gamma = parameter{b.norm.Gamma, b.norm.DGamma, make([]float32, out)}
	b.beta = parameter{b.norm.Beta, b.norm.DBeta, make([]float32, out)}
	positions := b.size * b.size
	b.columns = make([]float32, batch*in*9*positions)
	b.dcolumns = make([]float32, in*9*positions)
	b.conv, b.y, b.dconv = make([]float32, batch*out*positions), make([]float32, batch*out*positions), make([]float32, batch*out*positions)
	b.dx = make([]float32, batch*in*side*side)
	return b
}

// pixel returns the element of a channel's image that tap t of the kernel reads for a
// position; -1 is padding.
func (b *block) pixel(t, position int) int {
	i, j := position/b.size*b.stride+t/3-1, position%b.size*b.stride+t%3-1
	if i < 0 || i >= b.side || j < 0 || j >= b.side {
		return -1
	}
	return i*b.side + j
}

func (b *block) forward(x, residual []float32) []float32 {
	b.x = x
	positions, taps, plane := b.size*b.size, b.in*9, b.side*b.side
	clear(b.conv)
	for n := range batch {
		columns := b.columns[n*taps*positions:][:taps*positions]
		image, y := x[n*b.in*plane:], b.conv[n*b.out*positions:]
		for t := range taps {
			for p := range positions {
				columns[t*positions+p] = 0
				if k := b.pixel(t%9, p); k >= 0 {
					columns[t*positions+p] = image[t/9*plane+k]
				}
			}
		}
		for o := range b.out {
			for t := range taps {
				axpy(y[o*positions:][:positions], b.weight.value[o*taps+t], columns[t*positions:])
			}
		}
	}
	check(b.norm.Forward(batchnorm.LayerForwardArgs{Shape: b.shape(), X: b.conv, Residual: residual, Y: b.y}))
	return b.y
}

func (b *block) shape() batchnorm.Shape {
	return batchnorm.Shape{Outer: batch, Channels: b.out, Inner: b.size * b.size}
}

// backward returns the gradient by the block's input, and writes the gradient by the
// residual to dresidual.
func (b *block) backward(dy, dresidual []float32) []float32 {
	check(b.norm.Backward(batchnorm.LayerBackwardArgs{DY: dy, DX: b.dconv, DResidual: dresidual}))
	positions, taps, plane := b.size*b.size, b.in*9, b.side*b.side
	clear(b.dx)
	for n := range batch {
		columns, g := b.columns[n*taps*positions:], b.dconv[n*b.out*positions:]
		clear(b.dcolumns)
		for o := range b.out {
			for t := range taps {
				b.weight.gradient[o*taps+t] += dot(g[o*positions:][:positions], columns[t*positions:])
				axpy(b.dcolumns[t*positions:][:positions], b.weight.value[o*taps+t], g[o*positions:])
			}
		}
		for t := range taps {
			for p := range positions {
				if k := b.pixel(t%9, p); k >= 0 {
					b.dx[n*b.in*plane+t/9*plane+k] += b.dcolumns[t*positions+p]
				}
			}
		}
	}
	return b.dx
}

func (b *block) step(rate float32) {
	b.weight.step(rate)
	b.gamma.step(rate)
	b.beta.step(rate)
}

func axpy(y []float32, a float32, x []float32) {
	x = x[:len(y)]
	for i := range y {
		y[i] += float32(a * x[i])
	}
}

func dot(x, y []float32) float32 {
	y = y[:len(x)]
	var s float32
	for i := range x {
		s += float32(x[i] * y[i])
	}
	return s
}

type network struct {
	first, second, third *block
	weight, bias         parameter
	features             int
	random               *rand.Rand
}

func newNetwork(r *rand.Rand) *network {
	n := &network{random: r}
	n.first = newBlock(1, 16, fashion.Side, 2, r)
	n.second = newBlock(16, 32, n.first.size, 2, r)
	n.third = newBlock(32, 32, n.second.size, 1, r)
	n.features = 32 * n.third.size * n.third.size
	n.weight = newParameter(fashion.Classes*n.features, n.features, r)
	n.bias = newParameter(fashion.Classes, 0, nil)
	return n
}

func (n *network) forward(x []float32) (features, scores []float32) {
	second := n.second.forward(n.first.forward(x, nil), nil)
	features = n.third.forward(second, second)
	scores = make([]float32, batch*fashion.Classes)
	for i := range scores {
		b, c := i/fashion.Classes, i%fashion.Classes
		scores[i] = n.bias.value[c] + dot(features[b*n.features:][:n.features], n.weight.value[c*n.features:])
	}
	return features, scores
}

// epoch trains by the images in random order, and returns the mean cross entropy.
func (n *network) epoch(set *fashion.Set, rate float32) float64 {
	order := n.random.Perm(set.N)
	x := make([]float32, batch*fashion.Pixels)
	loss := 0.0
	for at := 0; at+batch <= len(order); at += batch {
		for b := range batch {
			set.Image(order[at+b], x[b*fashion.Pixels:])
		}
		features, scores := n.forward(x)
		dfeatures := make([]float32, len(features))
		for b := range batch {
			p := softmax(scores[b*fashion.Classes:][:fashion.Classes])
			label := set.Label(order[at+b])
			loss -= math.Log(p[label])
			p[label]--
			for c, g := range p {
				g := float32(g / batch)
				n.bias.gradient[c] += g
				axpy(n.weight.gradient[c*n.features:][:n.features], g, features[b*n.features:])
				axpy(dfeatures[b*n.features:][:n.features], g, n.weight.value[c*n.features:])
			}
		}
		dresidual := make([]float32, len(dfeatures))
		dsecond := n.third.backward(dfeatures, dresidual)
		axpy(dsecond, 1, dresidual)
		n.first.backward(n.second.backward(dsecond, nil), nil)
		for _, b := range []*block{n.first, n.second, n.third} {
			b.step(rate)
		}
		n.weight.step(rate)
		n.bias.step(rate)
	}
	return loss / float64(set.N)
}

func softmax(scores []float32) []float64 {
	p := make([]float64, len(scores))
	top, sum := float64(scores[0]), 0.0
	for _, s := range scores {
		top = max(top, float64(s))
	}
	for i, s := range scores {
		p[i] = math.Exp(float64(s) - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// right returns how many images are recognized in evaluation mode.
func (n *network) right(set *fashion.Set) int {
	blocks := []*block{n.first, n.second, n.third}
	for _, b := range blocks {
		b.norm.Eval()
		defer b.norm.Train()
	}
	x := make([]float32, batch*fashion.Pixels)
	right := 0
	for at := 0; at+batch <= set.N; at += batch {
		for b := range batch {
			set.Image(at+b, x[b*fashion.Pixels:])
		}
		_, scores := n.forward(x)
		for b := range batch {
			s, best := scores[b*fashion.Classes:][:fashion.Classes], 0
			for c := range s {
				if s[c] > s[best] {
					best = c
				}
			}
			if best == set.Label(at+b) {
				right++
			}
		}
	}
	return right
}

// model returns the network as ONNX has it.
func (n *network) model() *onnxmodel.Model {
	m := &onnxmodel.Model{Opset: 13}
	add := func(name string, values []float32, dims ...int64) string {
		m.Initializers = append(m.Initializers, onnxmodel.Tensor{Name: name, Dims: dims, Data: values})
		return name
	}
	node := func(op, output string, attributes []onnxmodel.Attribute, inputs ...string) string {
		m.Nodes = append(m.Nodes, onnxmodel.Node{Op: op, Inputs: inputs, Outputs: []string{output}, Attributes: attributes})
		return output
	}
	last := "image"
	for i, b := range []*block{n.first, n.second, n.third} {
		name, channels, stride := fmt.Sprintf("block%d", i+1), int64(b.out), int64(b.stride)
		input := last
		last = node("Conv", name+".conv", []onnxmodel.Attribute{
			{Name: "kernel_shape", Value: []int64{3, 3}},
			{Name: "pads", Value: []int64{1, 1, 1, 1}},
			{Name: "strides", Value: []int64{stride, stride}},
		}, last, add(name+".weight", b.weight.value, channels, int64(b.in), 3, 3))
		last = node("BatchNormalization", name+".norm", []onnxmodel.Attribute{
			{Name: "epsilon", Value: float32(batchnorm.DefaultEpsilon)},
			{Name: "momentum", Value: float32(0.9)},
		}, last, add(name+".gamma", b.norm.Gamma, channels), add(name+".beta", b.norm.Beta, channels),
			add(name+".mean", b.norm.RunningMean, channels), add(name+".var", b.norm.RunningVar, channels))
		if b == n.third {
			last = node("Add", name+".sum", nil, last, input)
		}
		last = node("Relu", name+".relu", nil, last)
	}
	last = node("Flatten", "flat", nil, last)
	node("Gemm", "scores", []onnxmodel.Attribute{{Name: "transB", Value: int64(1)}}, last,
		add("linear.weight", n.weight.value, fashion.Classes, int64(n.features)), add("linear.bias", n.bias.value, fashion.Classes))
	m.Inputs = []onnxmodel.Value{{Name: "image", Dims: []int64{-1, 1, fashion.Side, fashion.Side}}}
	m.Outputs = []onnxmodel.Value{{Name: "scores", Dims: []int64{-1, fashion.Classes}}}
	return m
}
