package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/fusedbn/batchnorm/internal/ulp"
)

// foldCase is a batch norm of some channels, with its formula in float64.
type foldCase struct {
	batchnorm.AffineArgs
	epsilon float64
}

func newFoldCase(channels int) foldCase {
	return foldCase{batchnorm.AffineArgs{
		Gamma: gen.Uniform(1, channels, -2, 2), Beta: gen.Uniform(2, channels, -1, 1),
		Mean: gen.Uniform(3, channels, -3, 3), Var: gen.Uniform(4, channels, 0.01, 4),
	}, 1e-3}
}

func (f foldCase) affine(t testing.TB) *batchnorm.Affine {
	t.Helper()
	a, err := batchnorm.NewAffine(f.AffineArgs, batchnorm.WithEpsilon(f.epsilon))
	noError(t, err)
	return a
}

func (f foldCase) scale(c int) float64 {
	return orDefault(f.Gamma, c, 1) / math.Sqrt(float64(f.Var[c])+f.epsilon)
}

// z is the inference of one value.
func (f foldCase) z(c int, x float64) float64 {
	return (x-float64(f.Mean[c]))*f.scale(c) + orDefault(f.Beta, c, 0)
}

func float64sOf(s []float32) []float64 {
	d := make([]float64, len(s))
	for i, v := range s {
		d[i] = float64(v)
	}
	return d
}

// linear computes weight (out, in) times x plus bias, or with outputsLast weight
// (in, out), and the sum of the sizes of what was added.
func linear(weight, bias, x []float64, outputs int, outputsLast bool) (y, size []float64) {
	inputs := len(x)
	for o := range outputs {
		sum, abs := bias[o], math.Abs(bias[o])
		for i, v := range x {
			w := weight[o*inputs+i]
			if outputsLast {
				w = weight[i*outputs+o]
			}
			sum += w * v
			abs += math.Abs(w * v)
		}
		y, size = append(y, sum), append(size, abs)
	}
	return y, size
}

// The layer before: every weight of a channel is scaled, in any layout of the weights, and
// the folded layer has the results of layer and batch norm.
func TestFoldIntoPrevious(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		args   batchnorm.FoldArgs
		linear bool // (out, in)
		last   bool // (in, out)
	}{
		{name: "linear (out, in)", args: batchnorm.FoldArgs{Dims: []int{5, 7}, Inputs: 1}, linear: true},
		{name: "linear (in, out)", args: batchnorm.FoldArgs{Dims: []int{7, 5}, Outputs: 1}, linear: true, last: true},
		{name: "one input", args: batchnorm.FoldArgs{Dims: []int{5, 1}, Inputs: 1}, linear: true},
		{name: "convolution (out, in/groups, kh, kw)", args: batchnorm.FoldArgs{Dims: []int{6, 2, 3, 3}, Inputs: 1, Groups: 3}},
		{name: "convolution (kh, kw, in, out)", args: batchnorm.FoldArgs{Dims: []int{3, 3, 4, 6}, Outputs: -1, Inputs: -2}},
		{name: "transposed convolution (in, out, k)", args: batchnorm.FoldArgs{Dims: []int{4, 6, 3}, Outputs: 1, Transposed: true}},
		{name: "depthwise (kh, kw, 1, in*multiplier)", args: batchnorm.FoldArgs{Dims: []int{3, 3, 1, 8}, Outputs: 3, Inputs: 2, Groups: 4}},
	} {
		for _, parts := range []string{"all", "no bias", "no gamma", "no beta", "in place"} {
			t.Run(c.name+"/"+parts, func(t *testing.T) {
				s, err := batchnorm.Axis(c.args.Outputs, c.args.Dims...)
				noError(t, err)
				f := newFoldCase(s.Channels)
				weight, bias := gen.Normal(5, s.Len(), 0, 1), gen.Normal(6, s.Channels, 0, 1)
				args := c.args
				args.Weight, args.Bias = slices.Clone(weight), slices.Clone(bias)
				args.FoldedWeight, args.FoldedBias = make([]float32, s.Len()), make([]float32, s.Channels)
				switch parts {
				case "no bias":
					args.Bias = nil
					clear(bias)
				case "no gamma":
					f.Gamma = nil
				case "no beta":
					f.Beta = nil
				case "in place":
					args.FoldedWeight, args.FoldedBias = args.Weight, args.Bias
				}
				noError(t, f.affine(t).FoldIntoPrevious(args))
				if parts != "in place" {
					expectBits(t, "weight", args.Weight, weight)
				}
				wantWeight, wantBias := make([]float64, s.Len()), make([]float64, s.Channels)
				for k, w := range weight {
					wantWeight[k] = float64(w) * f.scale(channelOf(s, k))
				}
				for o, b := range bias {
					wantBias[o] = f.z(o, float64(b))
				}
				expectRoundedOnce(t, "weight", args.FoldedWeight, wantWeight)
				expectRoundedOnce(t, "bias", args.FoldedBias, wantBias)
				if !c.linear {
					return
				}
				x := float64sOf(gen.Normal(7, s.Len()/s.Channels, 0, 1))
				before, size := linear(float64sOf(weight), float64sOf(bias), x, s.Channels, c.last)
				after, _ := linear(float64sOf(args.FoldedWeight), float64sOf(args.FoldedBias), x, s.Channels, c.last)
				for o := range before {
					want := f.z(o, before[o])
					limit := 0x1p-24 * (math.Abs(f.scale(o))*(size[o]+math.Abs(float64(f.Mean[o]))) + math.Abs(orDefault(f.Beta, o, 0)))
					if math.Abs(after[o]-want) > limit {
						t.Errorf("output %d is %v, want %v within %.2g", o, after[o], want, limit)
					}
				}
			})
		}
	}
}

// expectRoundedOnce allows a float64 result that is rounded to float32 once: half a unit,
// and the error of float64.
func expectRoundedOnce(t *testing.T, name string, got []float32, want []float64) {
	t.Helper()
	expectNear(t, name, got, want, func(i int) float64 { return ulp.Of(want[i])*0.5 + 1e-14*(1+math.Abs(want[i])) })
}

// convolution is a layer over sequences: weights of dimensions in some order, of
// which one axis is the places of the kernel. With one place it is linear.
type convolution struct {
	name string
	args batchnorm.FoldArgs
}

var convolutions = []convolution{
	{"(out, in, k)", batchnorm.FoldArgs{Dims: []int{6, 4, 3}, Inputs: 1}},
	{"(out, in/groups, k)", batchnorm.FoldArgs{Dims: []int{6, 4, 3}, Inputs: 1, Groups: 2}},
	{"(k, in/groups, out)", batchnorm.FoldArgs{Dims: []int{3, 2, 6}, Outputs: -1, Inputs: -2, Groups: 3}},
	{"depthwise (in*multiplier, 1, k)", batchnorm.FoldArgs{Dims: []int{8, 1, 3}, Inputs: 1, Groups: 4}},
	{"depthwise (k, 1, in*multiplier)", batchnorm.FoldArgs{Dims: []int{3, 1, 8}, Outputs: 2, Inputs: 1, Groups: 4}},
	{"transposed (in, out, k)", batchnorm.FoldArgs{Dims: []int{4, 6, 3}, Outputs: 1, Transposed: true}},
	{"transposed (in, out/groups, k)", batchnorm.FoldArgs{Dims: []int{4, 3, 3}, Outputs: 1, Groups: 2, Transposed: true}},
	{"transposed (k, out, in)", batchnorm.FoldArgs{Dims: []int{3, 5, 4}, Outputs: 1, Inputs: 2, Transposed: true}},
	{"transposed of one place (in, out/groups, 1)", batchnorm.FoldArgs{Dims: []int{4, 3, 1}, Outputs: 1, Groups: 2, Transposed: true}},
}

// sizes returns the numbers of outputs, of inputs and of places of the kernel.
func (c convolution) sizes() (outputs, inputs, places int) {
	at := func(axis int) int { return c.args.Dims[(axis+3)%3] }
	outputs, inputs, groups := at(c.args.Outputs), at(c.args.Inputs), max(1, c.args.Groups)
	places = c.args.Dims[0] * c.args.Dims[1] * c.args.Dims[2] / (outputs * inputs)
	if c.args.Transposed {
		return outputs * groups, inputs, places
	}
	return outputs, inputs * groups, places
}

// apply is the layer by its definition. x has a sequence of the given length for
// each input; so has y for each output.
func (c convolution) apply(weight, bias, x []float64, length int) (y []float64) {
	outputs, inputs, places := c.sizes()
	groups := max(1, c.args.Groups)
	// The weight between output o and input i at a place, 0 where they are of two groups.
	between := func(o, i, place int) float64 {
		if o/(outputs/groups) != i/(inputs/groups) {
			return 0
		}
		axes := [3]int{-1, -1, -1}
		if c.args.Transposed {
			axes[(c.args.Outputs+3)%3], axes[(c.args.Inputs+3)%3] = o%(outputs/groups), i
		} else {
			axes[(c.args.Outputs+3)%3], axes[(c.args.Inputs+3)%3] = o, i%(inputs/groups)
		}
		k := 0
		for axis, v := range axes {
			if v < 0 {
				v = place
			}
			k = k*c.args.Dims[axis] + v
		}
		return weight[k]
	}
	const stride = 2
	out := length - places + 1
	if c.args.Transposed {
		if out = (length-1)*stride + places; places == 1 {
			out = length
		}
	}
	y = make([]float64, outputs*out)
	for o := range outputs {
		for p := range out {
			y[o*out+p] = bias[o]
		}
		for i := range inputs {
			for place := range places {
				for p := range length {
					q := p - place
					if c.args.Transposed && places == 1 {
						q = p
					} else if c.args.Transposed {
						q = p*stride + place
					}
					if q >= 0 && q < out {
						y[o*out+q] += between(o, i, place) * x[i*length+p]
					}
				}
			}
		}
	}
	return y
}

// Every kind of convolution, folded into as the previous and as the next layer,
// against the convolution by its definition.
func TestFoldIntoConvolutions(t *testing.T) {
	t.Parallel()
	const length = 7
	for _, c := range convolutions {
		outputs, inputs, places := c.sizes()
		n := c.args.Dims[0] * c.args.Dims[1] * c.args.Dims[2]
		weight, bias, x := gen.Normal(1, n, 0, 1), gen.Normal(2, outputs, 0, 1), float64sOf(gen.Normal(3, inputs*length, 0, 1))
		fold := func(by func(batchnorm.FoldArgs) error) []float64 {
			args := c.args
			args.Weight, args.Bias, args.FoldedWeight, args.FoldedBias = weight, bias, make([]float32, n), make([]float32, outputs)
			noError(t, by(args))
			return c.apply(float64sOf(args.FoldedWeight), float64sOf(args.FoldedBias), x, length)
		}
		normalized := func(f foldCase, v []float64) []float64 {
			y, each := make([]float64, len(v)), len(v)/len(f.Mean)
			for i := range y {
				y[i] = f.z(i/each, v[i])
			}
			return y
		}
		// Up to thirty terms up to 40, each rounded once.
		within := func(int) float64 { return 30 * 40 * 0x1p-24 }
		f := newFoldCase(outputs)
		expectNear(t, c.name+", previous", fold(f.affine(t).FoldIntoPrevious),
			normalized(f, c.apply(float64sOf(weight), float64sOf(bias), x, length)), within)
		if c.args.Transposed && places > 1 {
			continue
		}
		f = newFoldCase(inputs)
		expectNear(t, c.name+", next", fold(f.affine(t).FoldIntoNext), c.apply(float64sOf(weight), float64sOf(bias), normalized(f, x), length), within)
	}
}

// A convolution with padding, stride and groups, folded.
func TestFoldIntoConvolution(t *testing.T) {
	const out, groups, inPerGroup, k, size, stride, pad = 6, 3, 2, 3, 7, 2, 1
	f := newFoldCase(out)
	weight, bias := gen.Normal(1, out*inPerGroup*k*k, 0, 1), gen.Normal(2, out, 0, 1)
	image := float64sOf(gen.Normal(3, groups*inPerGroup*size*size, 0, 1))
	convolve := func(weight, bias []float64) (y []float64) {
		for o := range out {
			for r := 0; r+k <= size+2*pad; r += stride {
				for c := 0; c+k <= size+2*pad; c += stride {
					sum := bias[o]
					for i := range inPerGroup {
						for j := range k * k {
							row, col := r+j/k-pad, c+j%k-pad
							if row >= 0 && row < size && col >= 0 && col < size {
								sum += weight[(o*inPerGroup+i)*k*k+j] * image[((o/(out/groups)*inPerGroup+i)*size+row)*size+col]
							}
						}
					}
					y = append(y, sum)
				}
			}
		}
		return y
	}
	plain := convolve(float64sOf(weight), float64sOf(bias))
	noError(t, f.affine(t).FoldIntoPrevious(batchnorm.FoldArgs{Dims: []int{out, inPerGroup, k, k}, Inputs: 1, Groups: groups,
		Weight: weight, Bias: bias, FoldedWeight: weight, FoldedBias: bias}))
	folded := convolve(float64sOf(weight), float64sOf(bias))
	for i := range plain {
		o := i * out / len(plain)
		// Some twenty terms up to 10, each rounded once.
		if want := f.z(o, plain[i]); math.Abs(folded[i]-want) > 40*0x1p-24*math.Max(1, math.Abs(f.scale(o))) {
			t.Errorf("output %d is %v, want %v", i, folded[i], want)
		}
	}
}

// The layer behind, also behind a flattened tensor, in any layout.
func TestFoldIntoNext(t *testing.T) {
	const out, channels, spatial = 4, 5, 6
	for _, c := range []struct {
		name      string
		inputs    int
		dims      []int
		last      bool
		channelOf func(i int) int // of input i
	}{
		{"(out, in)", 1, []int{out, channels}, false, func(i int) int { return i }},
		{"(in, out)", 0, []int{channels, out}, true, func(i int) int { return i }},
		{"(out, C, H*W)", 1, []int{out, channels, spatial}, false, func(i int) int { return i / spatial }},
		{"(out, H*W, C)", 2, []int{out, spatial, channels}, false, func(i int) int { return i % channels }},
		{"(C, H*W, out)", 0, []int{channels, spatial, out}, true, func(i int) int { return i / spatial }},
		{"(H*W, C, out)", 1, []int{spatial, channels, out}, true, func(i int) int { return i % channels }},
	} {
		for _, parts := range []string{"all", "no bias", "no gamma", "no beta", "in place"} {
			t.Run(c.name+"/"+parts, func(t *testing.T) {
				s, err := batchnorm.Axis(c.inputs, c.dims...)
				noError(t, err)
				outputs := 0
				if c.last {
					outputs = -1
				}
				f := newFoldCase(channels)
				weight, bias := gen.Normal(5, s.Len(), 0, 1), gen.Normal(6, out, 0, 1)
				args := batchnorm.FoldArgs{Dims: c.dims, Inputs: c.inputs, Outputs: outputs, Weight: slices.Clone(weight), Bias: slices.Clone(bias),
					FoldedWeight: make([]float32, s.Len()), FoldedBias: make([]float32, out)}
				switch parts {
				case "no bias":
					args.Bias = nil
					clear(bias)
				case "no gamma":
					f.Gamma = nil
				case "no beta":
					f.Beta = nil
				case "in place":
					args.FoldedWeight, args.FoldedBias = args.Weight, args.Bias
				}
				noError(t, f.affine(t).FoldIntoNext(args))
				inputs := s.Len() / out
				wantWeight := make([]float64, s.Len())
				for k, w := range weight {
					wantWeight[k] = float64(w) * f.scale(channelOf(s, k))
				}
				shifts := make([]float64, inputs)
				for i := range shifts {
					shifts[i] = f.z(c.channelOf(i), 0)
				}
				wantBias, _ := linear(float64sOf(weight), float64sOf(bias), shifts, out, c.last)
				expectRoundedOnce(t, "weight", args.FoldedWeight, wantWeight)
				expectNear(t, "bias", args.FoldedBias, wantBias, func(i int) float64 { return ulp.Of(wantBias[i])*0.5 + 1e-12 })

				x := float64sOf(gen.Normal(7, inputs, 0, 1))
				normalized := make([]float64, inputs)
				for i, v := range x {
					normalized[i] = f.z(c.channelOf(i), v)
				}
				want, _ := linear(float64sOf(weight), float64sOf(bias), normalized, out, c.last)
				got, size := linear(float64sOf(args.FoldedWeight), float64sOf(args.FoldedBias), x, out, c.last)
				for o := range want {
					if limit := 0x1p-24*size[o] + 1e-12; math.Abs(got[o]-want[o]) > limit {
						t.Errorf("output %d is %v, want %v within %.2g", o, got[o], want[o], limit)
					}
				}
			})
		}
	}
}

func TestScaleShift(t *testing.T) {
	f := newFoldCase(9)
	f.Var[3] = float32(math.NaN())
	f.Var[4] = -1
	scale, shift := make([]float32, 9), make([]float32, 9)
	a := f.affine(t)
	noError(t, a.ScaleShift(scale, shift))
	for c := range 9 {
		if c == 3 || c == 4 {
			if scale[c] == scale[c] || shift[c] == shift[c] {
				t.Errorf("a variance of %v gives %v, %v, want NaN", f.Var[c], scale[c], shift[c])
			}
			continue
		}
		if wantScale, wantShift := f.scale(c), f.z(c, 0); scale[c] != float32(wantScale) ||
			math.Abs(float64(shift[c])-wantShift) > ulp.Of(wantShift)/2+1e-15 {
			t.Errorf("channel %d: %v, %v, want %v, %v", c, scale[c], shift[c], wantScale, wantShift)
		}
	}
	only := make([]float32, 9)
	noError(t, a.ScaleShift(nil, only))
	expectBits(t, "shift alone", only, shift)
	noError(t, a.ScaleShift(only, nil))
	expectBits(t, "scale alone", only, scale)

	// Epsilon 0 and variance 0, as in Inference: beta.
	a, err := batchnorm.NewAffine(batchnorm.AffineArgs{Beta: []float32{5}, Mean: []float32{2}, Var: []float32{0}}, batchnorm.WithEpsilon(0))
	noError(t, err)
	noError(t, a.ScaleShift(scale[:1], shift[:1]))
	if scale[0] != 0 || shift[0] != 5 {
		t.Errorf("without variance and epsilon scale and shift are %v, %v, want 0, 5", scale[0], shift[0])
	}
	// It keeps nothing of its arguments.
	g := newFoldCase(9)
	a = g.affine(t)
	noError(t, a.ScaleShift(scale, shift))
	clear(g.Gamma)
	clear(g.Mean)
	clear(g.Var)
	noError(t, a.ScaleShift(only, nil))
	expectBits(t, "scale after its arguments changed", only, scale)
}

// y = x*scale + shift agrees with Inference.
func TestAffineIsInference(t *testing.T) {
	s := batchnorm.Shape{3, 9, 5}
	f := newFoldCase(9)
	x, y := gen.Normal(1, s.Len(), 0, 2), make([]float32, s.Len())
	noError(t, newPlan(t, s, batchnorm.WithEpsilon(f.epsilon)).Inference(batchnorm.InferenceArgs{
		X: x, Gamma: f.Gamma, Beta: f.Beta, Mean: f.Mean, Var: f.Var, Y: y}))
	scale, shift := make([]float32, 9), make([]float32, 9)
	noError(t, f.affine(t).ScaleShift(scale, shift))
	want := make([]float64, len(x))
	size := make([]float64, len(x))
	for k, v := range x {
		c := channelOf(s, k)
		want[k] = float64(v)*float64(scale[c]) + float64(shift[c])
		size[k] = math.Abs(float64(v)*float64(scale[c])) + math.Abs(float64(shift[c])) + math.Abs(float64(f.Mean[c])*float64(scale[c]))
	}
	expectNear(t, "y", y, want, func(k int) float64 { return 4 * 0x1p-24 * size[k] })
}

func TestFoldErrors(t *testing.T) {
	const out, in = 3, 4
	f := newFoldCase(out)
	previous := batchnorm.FoldArgs{Dims: []int{out, in}, Inputs: 1}
	next := batchnorm.FoldArgs{Dims: []int{in, out}, Inputs: 1} // four outputs of three inputs
	arena := gen.Normal(1, 64, 0, 1)
	args := func(a batchnorm.FoldArgs) batchnorm.FoldArgs {
		at := 0
		take := func(n int) []float32 {
			at += n
			return slices.Clone(arena[at-n : at])
		}
		a.Weight, a.Bias, a.FoldedWeight, a.FoldedBias = take(out*in), take(a.Dims[0]), take(out*in), take(a.Dims[0])
		return a
	}
	relu, err := batchnorm.NewAffine(f.AffineArgs, batchnorm.WithActivation(batchnorm.ReLU))
	noError(t, err)
	noError(t, relu.FoldIntoPrevious(args(previous)))
	for _, c := range []struct {
		name   string
		affine *batchnorm.Affine
		next   bool
		change func(a *batchnorm.FoldArgs)
		kind   error
		words  []string
	}{
		{"nil", nil, false, func(*batchnorm.FoldArgs) {}, batchnorm.ErrMissing, []string{"affine"}},
		{"nil, next", nil, true, func(*batchnorm.FoldArgs) {}, batchnorm.ErrMissing, []string{"affine"}},
		{"no dimensions", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims = nil },
			batchnorm.ErrShape, []string{"axis 0", "outputs", "0 dimensions"}},
		{"no axes", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Inputs = 0 }, batchnorm.ErrShape, []string{"axis 0", "both"}},
		{"no such output", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Outputs = 2 }, batchnorm.ErrShape, []string{"axis 2", "outputs", "[4 3]"}},
		{"no such input", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Inputs = -3 }, batchnorm.ErrShape, []string{"axis -3", "inputs", "[4 3]"}},
		{"empty", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims = []int{3, 0} }, batchnorm.ErrShape, []string{"dimension 1", "[3 0]"}},
		{"empty at first", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Dims = []int{0, 3} }, batchnorm.ErrShape, []string{"dimension 0", "[0 3]"}},
		{"too large", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims = []int{3, math.MaxInt / 2} }, batchnorm.ErrShape, []string{"overflow"}},
		{"negative groups", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Groups = -2 }, batchnorm.ErrShape, []string{"-2"}},
		{"groups don't divide", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Groups = 2 },
			batchnorm.ErrShape, []string{"2 groups", "3 outputs", "[3 4]"}},
		{"groups don't divide, transposed", f.affine(t), false, func(a *batchnorm.FoldArgs) {
			a.Outputs, a.Inputs, a.Groups, a.Transposed = 1, 0, 2,
				true
		},
			batchnorm.ErrShape, []string{"2 groups", "3 inputs", "[3 4]"}},
		{"transposed, but not marked", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Dims, a.Outputs, a.Inputs = []int{3, 4, 2}, 1, 0 },
			batchnorm.ErrShape, []string{"outputs are axis 1", "[3 4 2]", "transposed"}},
		{"transposed, but not marked, previous", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims, a.Outputs, a.Inputs = []int{4, 3, 2}, 1, 0 },
			batchnorm.ErrShape, []string{"outputs are axis 1", "[4 3 2]", "transposed"}},
		{"marked, but not transposed", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims, a.Transposed = []int{3, 4, 2}, true },
			batchnorm.ErrShape, []string{"inputs are axis 1", "[3 4 2]", "transposed"}},
		{"transposed next", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Dims, a.Outputs, a.Inputs, a.Transposed = []int{3, 4, 2}, 1, 0, true },
			batchnorm.ErrShape, []string{"2 places", "[3 4 2]", "shift"}},
		{"other channels", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Dims = []int{in, out} },
			batchnorm.ErrShape, []string{"[4 3]", "4 outputs", "3 channels"}},
		{"other channels, next", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Dims = []int{out, in} },
			batchnorm.ErrShape, []string{"[3 4]", "4 inputs", "3 channels"}},
		{"other channels by groups", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Groups = 2 },
			batchnorm.ErrShape, []string{"[4 3]", "6 inputs", "2 groups", "3 channels"}},
		{"weight too short", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Weight = a.Weight[:11] },
			batchnorm.ErrLength, []string{"weight has 11", "12", "[3 4]"}},
		{"no weight", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Weight = nil }, batchnorm.ErrMissing, []string{"weight", "12"}},
		{"folded weight too long", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.FoldedWeight = make([]float32, 13) },
			batchnorm.ErrLength, []string{"folded weight has 13", "12"}},
		{"no folded weight", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.FoldedWeight = nil },
			batchnorm.ErrMissing, []string{"folded weight", "12"}},
		{"bias too short", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Bias = a.Bias[:2] },
			batchnorm.ErrLength, []string{"bias has 2", "3 outputs"}},
		{"bias too short, next", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.Bias = a.Bias[:3] },
			batchnorm.ErrLength, []string{"bias has 3", "4 outputs"}},
		{"folded bias too long", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.FoldedBias = make([]float32, 4) },
			batchnorm.ErrLength, []string{"folded bias has 4", "3 outputs"}},
		{"no folded bias", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.FoldedBias = nil }, batchnorm.ErrMissing, []string{"folded bias", "3"}},
		{"no folded bias, next", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.FoldedBias = nil }, batchnorm.ErrMissing, []string{"folded bias"}},
		{"activation between", relu, true, func(*batchnorm.FoldArgs) {}, batchnorm.ErrOption, []string{"relu"}},
		{"weights overlap", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Weight, a.FoldedWeight = arena[:12], arena[1:13] },
			batchnorm.ErrAlias, []string{"weight", "folded weight"}},
		{"weight as bias", f.affine(t), true, func(a *batchnorm.FoldArgs) { a.FoldedBias = a.Weight[:4] },
			batchnorm.ErrAlias, []string{"weight", "folded bias"}},
		{"biases overlap", f.affine(t), false, func(a *batchnorm.FoldArgs) { a.Bias, a.FoldedBias = arena[:3], arena[1:4] },
			batchnorm.ErrAlias, []string{"bias", "folded bias"}},
	} {
		a := args(previous)
		fold := c.affine.FoldIntoPrevious
		if c.next {
			a, fold = args(next), c.affine.FoldIntoNext
		}
		c.change(&a)
		before := [][]float32{slices.Clone(a.Weight), slices.Clone(a.Bias), slices.Clone(a.FoldedWeight), slices.Clone(a.FoldedBias)}
		expectErrorWords(t, c.name, fold(a), c.kind, c.words...)
		for i, s := range [][]float32{a.Weight, a.Bias, a.FoldedWeight, a.FoldedBias} {
			expectBits(t, fmt.Sprintf("%s: slice %d", c.name, i), s, before[i])
		}
	}

	three := []float32{1, 2, 3}
	for _, c := range []struct {
		name  string
		args  batchnorm.AffineArgs
		opts  []batchnorm.Option
		kind  error
		words []string
	}{
		{"no mean", batchnorm.AffineArgs{Var: three}, nil, batchnorm.ErrMissing, []string{"mean"}},
		{"no variance", batchnorm.AffineArgs{Mean: three}, nil, batchnorm.ErrMissing, []string{"var", "3"}},
		{"variance too short", batchnorm.AffineArgs{Mean: three, Var: three[:2]}, nil, batchnorm.ErrLength, []string{"var has 2", "3"}},
		{"gamma too short", batchnorm.AffineArgs{Mean: three, Var: three, Gamma: three[:1]}, nil, batchnorm.ErrLength, []string{"gamma has 1", "3"}},
		{"beta too long", batchnorm.AffineArgs{Mean: three, Var: three, Beta: make([]float32, 4)}, nil, batchnorm.ErrLength, []string{"beta has 4", "3"}},
		{"option", batchnorm.AffineArgs{Mean: three, Var: three}, []batchnorm.Option{batchnorm.WithEpsilon(-1)},
			batchnorm.ErrOption, []string{"epsilon", "-1"}},
		{"nil option", batchnorm.AffineArgs{Mean: three, Var: three}, []batchnorm.Option{nil}, batchnorm.ErrOption, []string{"option"}},
	} {
		a, err := batchnorm.NewAffine(c.args, c.opts...)
		if a != nil {
			t.Errorf("%s: NewAffine returns something", c.name)
		}
		expectErrorWords(t, c.name, err, c.kind, c.words...)
	}
	expectErrorWords(t, "scale", f.affine(t).ScaleShift(make([]float32, 2), three), batchnorm.ErrLength, "scale has 2", "3")
	expectErrorWords(t, "shift", f.affine(t).ScaleShift(nil, make([]float32, 4)), batchnorm.ErrLength, "shift has 4", "3")
	expectErrorWords(t, "same", f.affine(t).ScaleShift(three, three), batchnorm.ErrAlias, "scale", "shift")
	expectBits(t, "scale and shift", three, []float32{1, 2, 3})
	expectErrorWords(t, "nil", (*batchnorm.Affine)(nil).ScaleShift(three, nil), batchnorm.ErrMissing, "affine")
	if n := f.affine(t).Channels() + (*batchnorm.Affine)(nil).Channels(); n != out {
		t.Errorf("there are %d channels, want %d", n, out)
	}
}

func expectErrorWords(t *testing.T, name string, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error is %v, want one that is %q", name, err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: error %q does not mention %q", name, err, w)
		}
	}
}

// The gradient of a bias before batch norm, against central differences of the
// float64 reference: exactly 0 in training, dbeta*gamma*invstd with frozen
// statistics. The sum of the computed dx is 0 only up to rounding.
func TestBiasGradient(t *testing.T) {
	s := batchnorm.Shape{6, 3, 5}
	// x is on a grid, so that x + h is exact.
	x := gen.Normal(1, s.Len(), 0.5, 1)
	for k, v := range x {
		x[k] = float32(math.Round(float64(v)*256) / 256)
	}
	const h = 1.0 / 64
	gamma, beta := gen.Uniform(2, s.Channels, 0.5, 2), gen.Uniform(3, s.Channels, -1, 1)
	dy := gen.Normal(4, s.Len(), 0.2, 1)
	mean, variance := gen.Uniform(5, s.Channels, 0, 1), gen.Uniform(6, s.Channels, 0.5, 2)
	p := newPlan(t, s)

	loss := func(c int, shift float32, frozen bool) float64 {
		r := reference.Problem{Outer: s.Outer, Channels: s.Channels, Inner: s.Inner, Epsilon: p.Epsilon(), Activation: "identity",
			X: slices.Clone(x), Gamma: gamma, Beta: beta}
		for k := range r.X {
			if channelOf(s, k) == c {
				r.X[k] += shift
			}
		}
		var y []float64
		if frozen {
			y = reference.Inference(r, mean, variance)
		} else {
			y = reference.Forward(r).Y
		}
		sum := 0.0
		for k, v := range y {
			sum += v * float64(dy[k])
		}
		return sum
	}
	saved, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	y, dx, dbeta := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels)
	noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, Mean: saved, InvStd: invstd}))
	noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: saved, InvStd: invstd, DX: dx, DBeta: dbeta}))

	training, frozen := []float32{7, 7, 7}, []float32{7, 7, 7}
	noError(t, p.BiasGradient(batchnorm.BiasGradientArgs{DBias: training}))
	noError(t, p.BiasGradient(batchnorm.BiasGradientArgs{Frozen: true, Gamma: gamma, Var: variance, DBeta: dbeta, DBias: frozen}))
	expectBits(t, "dbias in training", training, make([]float32, s.Channels))
	sumOfDX := perChannel(s, func(old float64, k int) float64 { return old + float64(dx[k]) })
	for c := range s.Channels {
		if slope := (loss(c, h, false) - loss(c, -h, false)) / (2 * h); math.Abs(slope) > 1e-11 {
			t.Errorf("channel %d: in training the loss has the slope %v in the bias, want 0", c, slope)
		}
		slope := (loss(c, h, true) - loss(c, -h, true)) / (2 * h)
		if math.Abs(slope) < 0.1 || math.Abs(float64(frozen[c])-slope) > 1e-6*math.Abs(slope) {
			t.Errorf("channel %d: with frozen statistics dbias is %v, the loss has the slope %v", c, frozen[c], slope)
		}
		if math.Abs(sumOfDX[c]) > 1e-5 {
			t.Errorf("channel %d: dx sums to %v", c, sumOfDX[c])
		}
	}
	inPlace := slices.Clone(dbeta)
	noError(t, p.BiasGradient(batchnorm.BiasGradientArgs{Frozen: true, Gamma: gamma, Var: variance, DBeta: inPlace, DBias: inPlace}))
	expectBits(t, "dbias over dbeta", inPlace, frozen)
	noError(t, p.BiasGradient(batchnorm.BiasGradientArgs{Frozen: true, Var: variance, DBeta: dbeta, DBias: inPlace}))
	for c := range inPlace {
		if want := float64(dbeta[c]) / math.Sqrt(float64(variance[c])+p.Epsilon()); math.Abs(float64(inPlace[c])-want) > ulp.Of(want) {
			t.Errorf("without gamma dbias[%d] is %v, want %v", c, inPlace[c], want)
		}
	}

	three := []float32{1, 2, 3}
	for _, c := range []struct {
		name string
		plan *batchnorm.Plan
		args batchnorm.BiasGradientArgs
		kind error
		word string
	}{
		{"nil plan", nil, batchnorm.BiasGradientArgs{DBias: three}, batchnorm.ErrNilPlan, "plan"},
		{"no dbias", p, batchnorm.BiasGradientArgs{}, batchnorm.ErrMissing, "dbias"},
		{"dbias too short", p, batchnorm.BiasGradientArgs{DBias: three[:2]}, batchnorm.ErrLength, "dbias has 2"},
		{"no variance", p, batchnorm.BiasGradientArgs{Frozen: true, DBeta: dbeta, DBias: three}, batchnorm.ErrMissing, "var"},
		{"no dbeta", p, batchnorm.BiasGradientArgs{Frozen: true, Var: variance, DBias: three}, batchnorm.ErrMissing, "dbeta"},
		{"dbias in gamma", p, batchnorm.BiasGradientArgs{Gamma: three, DBias: three}, batchnorm.ErrAlias, "gamma"},
	} {
		expectErrorWords(t, c.name, c.plan.BiasGradient(c.args), c.kind, c.word)
		expectBits(t, c.name, three, []float32{1, 2, 3})
	}
}

// A bias moved into the running mean changes nothing.
func TestAbsorbBias(t *testing.T) {
	f := newFoldCase(5)
	bias := gen.Normal(9, 5, 0, 1)
	mean, moved := slices.Clone(f.Mean), slices.Clone(bias)
	noError(t, batchnorm.AbsorbBias(mean, moved))
	expectBits(t, "bias", moved, make([]float32, 5))
	without := f
	without.Mean = mean
	for c := range 5 {
		want, got := f.z(c, 2+float64(bias[c])), without.z(c, 2)
		if math.Abs(got-want) > math.Abs(f.scale(c))*ulp.Of(float64(mean[c])) {
			t.Errorf("channel %d: %v becomes %v", c, want, got)
		}
	}
	expectErrorWords(t, "length", batchnorm.AbsorbBias(mean, bias[:3]), batchnorm.ErrLength, "bias has 3", "5")
	expectErrorWords(t, "alias", batchnorm.AbsorbBias(bias, bias), batchnorm.ErrAlias, "mean", "bias")
	expectBits(t, "mean", mean, without.Mean)
}
