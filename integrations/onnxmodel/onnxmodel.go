// Package onnxmodel holds a small ONNX network with batch norm, for the tests
// and comparisons of the ONNX runtimes beside it: three convolutions, each with
// BatchNormalization and Relu, the third with a residual, and a linear layer. It
// was trained on Fashion-MNIST by the program in the folder generate.
package onnxmodel

import (
	_ "embed"
	"fmt"
	"math"
	"slices"

	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

//go:generate go run ./generate

// Fashion is the network, as an ONNX model of operator set 13. Its input
// "image" is (N, 1, 28, 28), its output "scores" is (N, 10).
//
//go:embed fashion.onnx
var Fashion []byte

// Side and Classes are the sizes of the network's input and output.
const (
	Side    = fashion.Side
	Classes = fashion.Classes
)

// Images returns the first n test images, (n, 1, 28, 28), and their labels.
func Images(n int) (x []float32, labels []int, err error) {
	_, test, err := fashion.Builtin()
	if err != nil {
		return nil, nil, err
	}
	set := test.First(n)
	x = make([]float32, set.N*fashion.Pixels)
	for i := range set.N {
		set.Image(i, x[i*fashion.Pixels:])
		labels = append(labels, set.Label(i))
	}
	return x, labels, nil
}

// Composed returns the model with each BatchNormalization replaced by Mul and Add with
// scale and shift per channel, which are computed in float64 and rounded once. A runtime
// without the operator can run it.
func Composed(m *Model) (*Model, error) {
	c := *m
	c.Nodes, c.Initializers = nil, slices.Clone(m.Initializers)
	for _, n := range m.Nodes {
		if n.Op != "BatchNormalization" {
			c.Nodes = append(c.Nodes, n)
			continue
		}
		b, err := m.batchNorm(n)
		if err != nil {
			return nil, err
		}
		scale, shift := make([]float32, len(b.scale)), make([]float32, len(b.scale))
		for i := range scale {
			a := float64(b.scale[i]) / math.Sqrt(float64(b.variance[i])+b.epsilon)
			scale[i], shift[i] = float32(a), float32(float64(b.bias[i])-float64(b.mean[i])*a)
		}
		y, dims := n.Outputs[0], []int64{int64(len(scale)), 1, 1}
		c.Initializers = append(c.Initializers, Tensor{y + ".scale", dims, scale}, Tensor{y + ".shift", dims, shift})
		c.Nodes = append(c.Nodes,
			Node{Op: "Mul", Inputs: []string{n.Inputs[0], y + ".scale"}, Outputs: []string{y + ".scaled"}},
			Node{Op: "Add", Inputs: []string{y + ".scaled", y + ".shift"}, Outputs: []string{y}})
	}
	return &c, nil
}

type batchNorm struct {
	scale, bias, mean, variance []float32
	epsilon                     float64
}

func (m *Model) batchNorm(n Node) (batchNorm, error) {
	b := batchNorm{epsilon: float64(float32(1e-5))}
	if e, ok := n.attribute("epsilon").(float32); ok {
		b.epsilon = float64(e)
	}
	for i, dst := range []*[]float32{&b.scale, &b.bias, &b.mean, &b.variance} {
		t := m.initializer(n.Inputs[i+1])
		if t == nil {
			return b, fmt.Errorf("onnxmodel: %s has no initializer %q", n.Op, n.Inputs[i+1])
		}
		*dst = t.Data
	}
	return b, nil
}

func (n Node) attribute(name string) any {
	for _, a := range n.Attributes {
		if a.Name == name {
			return a.Value
		}
	}
	return nil
}

func (m *Model) initializer(name string) *Tensor {
	for i := range m.Initializers {
		if m.Initializers[i].Name == name {
			return &m.Initializers[i]
		}
	}
	return nil
}

// Reference runs a model of this network's operators in float64, straight from
// their definitions, for n images, and returns its scores.
func Reference(m *Model, x []float32, n int) ([]float64, error) {
	values := map[string]value{m.Inputs[0].Name: {data: widen(x), dims: []int{n, 1, Side, Side}}}
	for _, t := range m.Initializers {
		v := value{data: widen(t.Data)}
		for _, d := range t.Dims {
			v.dims = append(v.dims, int(d))
		}
		values[t.Name] = v
	}
	for _, node := range m.Nodes {
		in := make([]value, len(node.Inputs))
		for i, name := range node.Inputs {
			in[i] = values[name]
		}
		out := value{dims: in[0].dims, data: slices.Clone(in[0].data)}
		switch node.Op {
		case "Conv":
			out = convolve(in[0], in[1], node)
		case "BatchNormalization":
			b, err := m.batchNorm(node)
			if err != nil {
				return nil, err
			}
			inner := out.dims[2] * out.dims[3]
			for k := range out.data {
				c := k / inner % out.dims[1]
				out.data[k] = (out.data[k]-float64(b.mean[c]))/math.Sqrt(float64(b.variance[c])+b.epsilon)*float64(b.scale[c]) +
					float64(b.bias[c])
			}
		case "Relu":
			for k, v := range out.data {
				out.data[k] = max(v, 0)
			}
		case "Add":
			for k, v := range in[1].data {
				out.data[k] += v
			}
		case "Flatten":
			out.dims = []int{out.dims[0], len(out.data) / out.dims[0]}
		case "Gemm": // transB
			rows, width, outputs := in[0].dims[0], in[0].dims[1], in[1].dims[0]
			out = value{dims: []int{rows, outputs}, data: make([]float64, rows*outputs)}
			for r := range rows {
				for o := range outputs {
					sum := in[2].data[o]
					for k := range width {
						sum += in[0].data[r*width+k] * in[1].data[o*width+k]
					}
					out.data[r*outputs+o] = sum
				}
			}
		default:
			return nil, fmt.Errorf("onnxmodel: the reference has no %s", node.Op)
		}
		values[node.Outputs[0]] = out
	}
	return values[m.Outputs[0].Name].data, nil
}

type value struct {
	dims []int
	data []float64
}

func widen(x []float32) []float64 {
	r := make([]float64, len(x))
	for i, v := range x {
		r[i] = float64(v)
	}
	return r
}

// convolve is a convolution with 3x3 kernels and a padding of 1.
func convolve(x, w value, node Node) value {
	stride := 1
	if s, ok := node.attribute("strides").([]int64); ok {
		stride = int(s[0])
	}
	n, in, side, out := x.dims[0], x.dims[1], x.dims[2], w.dims[0]
	size := (side-1)/stride + 1
	y := value{dims: []int{n, out, size, size}, data: make([]float64, n*out*size*size)}
	for k := range y.data {
		j, i, o, b := k%size, k/size%size, k/size/size%out, k/size/size/out
		sum := 0.0
		for c := range in {
			for di := range 3 {
				for dj := range 3 {
					r, s := i*stride+di-1, j*stride+dj-1
					if r >= 0 && r < side && s >= 0 && s < side {
						sum += x.data[((b*in+c)*side+r)*side+s] * w.data[((o*in+c)*3+di)*3+dj]
					}
				}
			}
		}
		y.data[k] = sum
	}
	return y
}
