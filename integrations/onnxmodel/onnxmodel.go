// Package onnxmodel holds a small ONNX network with batch norm, for the tests
// and comparisons of the ONNX runtimes beside it: three convolutions, each with
// BatchNormalization and Relu, the third with a residual, and a linear layer. It
// was trained on Fashion-MNIST by the program in the folder generate.
package onnxmodel

import (
	_ "embed"
	"fmt"
	"math"

	"github.com/advancedclimatesystems/gonnx/onnx"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"google.golang.org/protobuf/proto"
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

// Parse decodes a model.
func Parse(model []byte) (*onnx.ModelProto, error) {
	m := new(onnx.ModelProto)
	if err := proto.Unmarshal(model, m); err != nil {
		return nil, fmt.Errorf("onnxmodel: %w", err)
	}
	return m, nil
}

// Composed returns the model with each BatchNormalization replaced by Mul and
// Add with scale and shift per channel, which are computed in float64 and rounded
// once. It is what a runtime without the operator can run.
func Composed(m *onnx.ModelProto) (*onnx.ModelProto, error) {
	m = proto.Clone(m).(*onnx.ModelProto)
	g := m.Graph
	var nodes []*onnx.NodeProto
	for _, n := range g.Node {
		if n.OpType != "BatchNormalization" {
			nodes = append(nodes, n)
			continue
		}
		b, err := batchNormOf(g, n)
		if err != nil {
			return nil, err
		}
		scale, shift := make([]float32, len(b.scale)), make([]float32, len(b.scale))
		for c := range scale {
			a := float64(b.scale[c]) / math.Sqrt(float64(b.variance[c])+b.epsilon)
			scale[c], shift[c] = float32(a), float32(float64(b.bias[c])-float64(b.mean[c])*a)
		}
		y, dims := n.Output[0], []int64{int64(len(scale)), 1, 1}
		g.Initializer = append(g.Initializer, Tensor(y+".scale", dims, scale), Tensor(y+".shift", dims, shift))
		nodes = append(nodes,
			&onnx.NodeProto{OpType: "Mul", Input: []string{n.Input[0], y + ".scale"}, Output: []string{y + ".scaled"}},
			&onnx.NodeProto{OpType: "Add", Input: []string{y + ".scaled", y + ".shift"}, Output: []string{y}})
	}
	g.Node = nodes
	return m, nil
}

// Tensor returns float32 values as ONNX stores them.
func Tensor(name string, dims []int64, values []float32) *onnx.TensorProto {
	return &onnx.TensorProto{Name: name, Dims: dims, DataType: int32(onnx.TensorProto_FLOAT), FloatData: values}
}

type batchNorm struct {
	scale, bias, mean, variance []float32
	epsilon                     float64
}

func batchNormOf(g *onnx.GraphProto, n *onnx.NodeProto) (batchNorm, error) {
	b := batchNorm{epsilon: float64(float32(1e-5))}
	for _, a := range n.Attribute {
		if a.Name == "epsilon" {
			b.epsilon = float64(a.F)
		}
	}
	for i, dst := range []*[]float32{&b.scale, &b.bias, &b.mean, &b.variance} {
		t := initializer(g, n.Input[i+1])
		if t == nil {
			return b, fmt.Errorf("onnxmodel: %s has no initializer %q", n.OpType, n.Input[i+1])
		}
		*dst = t.FloatData
	}
	return b, nil
}

func initializer(g *onnx.GraphProto, name string) *onnx.TensorProto {
	for _, t := range g.Initializer {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Reference runs a model of this network's operators in float64, straight from
// their definitions, for n images, and returns its scores.
func Reference(m *onnx.ModelProto, x []float32, n int) ([]float64, error) {
	g := m.Graph
	values := map[string]value{g.Input[0].Name: {data: widen(x), dims: []int{n, 1, Side, Side}}}
	for _, t := range g.Initializer {
		v := value{data: widen(t.FloatData)}
		for _, d := range t.Dims {
			v.dims = append(v.dims, int(d))
		}
		values[t.Name] = v
	}
	for _, node := range g.Node {
		in := make([]value, len(node.Input))
		for i, name := range node.Input {
			in[i] = values[name]
		}
		out := value{dims: in[0].dims, data: append([]float64(nil), in[0].data...)}
		switch node.OpType {
		case "Conv":
			out = convolve(in[0], in[1], node)
		case "BatchNormalization":
			b, err := batchNormOf(g, node)
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
			return nil, fmt.Errorf("onnxmodel: the reference has no %s", node.OpType)
		}
		values[node.Output[0]] = out
	}
	return values[g.Output[0].Name].data, nil
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
func convolve(x, w value, node *onnx.NodeProto) value {
	stride := 1
	for _, a := range node.Attribute {
		if a.Name == "strides" {
			stride = int(a.Ints[0])
		}
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
