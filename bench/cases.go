package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/images"
)

// op is an operation that is checked and timed.
type op struct {
	name           string
	kind           opKind
	relu, residual bool
	bytes          int // that must move per element: 4 for each tensor that is read or written
}

type opKind uint8

const (
	forward opKind = iota
	inference
	backward
)

var ops = []op{
	{"forward", forward, false, false, 8},
	{"inference", inference, false, false, 8},
	{"backward", backward, false, false, 12},
	{"forward+relu+residual", forward, true, true, 12},
	{"backward+relu+residual", backward, true, true, 20},
}

func (o op) String() string { return o.name }

// opNamed returns the operation of that name, or one without a name.
func opNamed(name string) op {
	for _, o := range slices.Concat(ops, peerOps) {
		if o.name == name {
			return o
		}
	}
	return op{}
}

// bytesNote explains the bytes of ops under the table.
const bytesNote = `GB/s counts the bytes that must move, one read or write of each tensor: per element
8 for forward and inference (x, y) and 12 for backward (dy, x, dx); with residual
12 (x, residual, y) and 20 (dy, x, residual, dx, dresidual).`

func (o op) activation() batchnorm.Activation {
	if o.relu {
		return batchnorm.ReLU
	}
	return batchnorm.Identity
}

func (o op) plan(s batchnorm.Shape, p batchnorm.Path, workers int) (*batchnorm.Plan, error) {
	return batchnorm.NewPlan(s,
		batchnorm.WithPath(p),
		batchnorm.WithWorkers(workers),
		batchnorm.WithActivation(o.activation()))
}

func (o op) run(p *batchnorm.Plan, in *inputs, out *outputs) error {
	var residual, dresidual []float32
	if o.residual {
		residual, dresidual = in.residual, out.dresidual
	}
	switch o.kind {
	case forward:
		return p.Forward(batchnorm.ForwardArgs{
			X: in.x, Residual: residual, Gamma: in.gamma, Beta: in.beta,
			Y: out.tensor, Mean: out.mean, InvStd: out.invstd,
			RunningMean: out.runningMean, RunningVar: out.runningVar,
			Momentum: batchnorm.NewWeight(newWeight),
		})
	case inference:
		return p.Inference(batchnorm.InferenceArgs{
			X: in.x, Residual: residual, Gamma: in.gamma, Beta: in.beta,
			Mean: in.runningMean, Var: in.runningVar,
			Y: out.tensor,
		})
	default:
		return p.Backward(batchnorm.BackwardArgs{
			DY: in.dy, X: in.x, Residual: residual, Gamma: in.gamma, Beta: in.beta,
			Mean: in.mean, InvStd: in.invstd,
			DX: out.tensor, DResidual: dresidual, DGamma: out.dgamma, DBeta: out.dbeta,
		})
	}
}

// testCase is a tensor for all operations.
type testCase struct {
	layout string
	shape  string // without the batch, if all cases of the set share it
	dims   batchnorm.Shape
	image  [4]int // N, C, H, W; H and W are 1 in a matrix
	x      func() []float32
}

// caseSet has the tensors of one run of the program.
type caseSet struct {
	data  string // description of the data
	batch int
	cases []testCase
}

// imageSet has the built-in images in three layouts.
func imageSet() (caseSet, error) {
	set, err := images.Load()
	if err != nil {
		return caseSet{}, err
	}
	const p = patchSize
	n, h, w := set.N, set.Rows, set.Cols
	return caseSet{
		data:  fmt.Sprintf("%d images of Fashion-MNIST", n),
		batch: n,
		cases: []testCase{
			{"nc", fmt.Sprint(h * w), batchnorm.Shape{Outer: n, Channels: h * w, Inner: 1}, [4]int{n, h * w, 1, 1},
				func() []float32 { return pixels(set) }},
			{"nchw", chw(1, h, w), batchnorm.Shape{Outer: n, Channels: 1, Inner: h * w}, [4]int{n, 1, h, w},
				func() []float32 { return pixels(set) }},
			{"nhwc", chw(p*p, h/p, w/p), batchnorm.Shape{Outer: n * (h / p) * (w / p), Channels: p * p, Inner: 1}, [4]int{n, p * p, h / p, w / p},
				func() []float32 { return patches(set) }},
		},
	}, nil
}

// resnet50Shapes are the shapes that ResNet-50 normalizes.
var resnet50Shapes = []struct{ channels, size int }{
	{64, 112},
	{64, 56}, {256, 56},
	{128, 28}, {512, 28},
	{256, 14}, {1024, 14},
	{512, 7}, {2048, 7},
}

// resnet50Set has generated data in the shapes of ResNet-50.
func resnet50Set(batch int) caseSet {
	set := caseSet{data: fmt.Sprintf("generated data, batch %d", batch), batch: batch}
	for i, s := range resnet50Shapes {
		area := s.size * s.size
		name := chw(s.channels, s.size, s.size)
		nchw := batchnorm.Shape{Outer: batch, Channels: s.channels, Inner: area}
		nhwc := batchnorm.Shape{Outer: batch * area, Channels: s.channels, Inner: 1}
		image := [4]int{batch, s.channels, s.size, s.size}
		seed := uint64(i+1) << 32 // differs from the seeds of other inputs
		set.cases = append(set.cases,
			testCase{"nchw", name, nchw, image, func() []float32 { return generated(seed, nchw) }},
			testCase{"nhwc", name, nhwc, image, func() []float32 { return generated(seed, nhwc) }})
	}
	return set
}

// goalSet has the shapes for the goals of speed: those of ResNet-50, odd ones, small
// ones and a large one. They differ in the batch, which is part of the names.
func goalSet() caseSet {
	set := caseSet{data: "generated data"}
	image := func(n, c, h, w int) {
		set.add("nchw", n, c, h, w)
		set.add("nhwc", n, c, h, w)
	}
	for _, s := range resnet50Shapes {
		image(32, s.channels, s.size, s.size)
	}
	image(96, 192, 17, 17)
	image(1, 64, 112, 112)
	image(8, 64, 16, 16)
	set.add("nc", 256, 1024)
	set.add("nc", 60, 100)
	image(256, 64, 112, 112)
	return set
}

// add adds a tensor of generated data. Sizes are N, C, H and W in nchw and nhwc, and N
// and C in nc; all are part of its name.
func (set *caseSet) add(layout string, sizes ...int) {
	image := [4]int{1, 1, 1, 1}
	copy(image[:], sizes)
	var name []string
	for _, n := range sizes {
		name = append(name, strconv.Itoa(n))
	}
	s := batchnorm.Shape{Outer: image[0], Channels: image[1], Inner: image[2] * image[3]}
	if layout != "nchw" {
		s.Outer, s.Inner = s.Outer*s.Inner, 1
	}
	seed := uint64(len(set.cases)+1) << 32 // differs from the seeds of other inputs
	set.cases = append(set.cases, testCase{layout, strings.Join(name, "x"), s, image, func() []float32 { return generated(seed, s) }})
}

func chw(c, h, w int) string { return fmt.Sprintf("%dx%dx%d", c, h, w) }
