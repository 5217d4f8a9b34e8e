package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

func TestAxes(t *testing.T) {
	for _, c := range []struct {
		keep, dims []int
		want       batchnorm.Shape
	}{
		{[]int{1}, []int{2, 3, 4, 5}, batchnorm.Shape{2, 3, 20}},
		{[]int{-1}, []int{2, 3, 4, 5}, batchnorm.Shape{24, 5, 1}},
		{[]int{1, 2}, []int{2, 3, 4, 5}, batchnorm.Shape{2, 12, 5}},
		{[]int{2, 1}, []int{2, 3, 4, 5}, batchnorm.Shape{2, 12, 5}},
		{[]int{0, 1}, []int{2, 3, 4, 5}, batchnorm.Shape{1, 6, 20}},
		{[]int{1, 2, 3}, []int{2, 3, 4, 5}, batchnorm.Shape{2, 60, 1}},
		{[]int{-4, -1, 1, 2}, []int{2, 3, 4, 5}, batchnorm.Shape{1, 120, 1}},
		{nil, []int{2, 3, 4, 5}, batchnorm.Shape{120, 1, 1}},
		// Axes of length 1 may lie in between.
		{[]int{1, 3}, []int{2, 3, 1, 5}, batchnorm.Shape{2, 15, 1}},
		{[]int{0, 2}, []int{1, 3, 4, 5}, batchnorm.Shape{3, 4, 5}},
		{[]int{0, 2}, []int{1, 1, 1}, batchnorm.Shape{1, 1, 1}},
		// An empty batch.
		{[]int{1, 2}, []int{0, 3, 4, 5}, batchnorm.Shape{0, 12, 5}},
		{[]int{1, 3}, []int{0, 3, 1, 5}, batchnorm.Shape{0, 15, 1}},
		{nil, []int{0, 3}, batchnorm.Shape{0, 1, 1}},
	} {
		if s, err := batchnorm.Axes(c.keep, c.dims...); err != nil || s != c.want {
			t.Errorf("Axes(%v, %v) is %v, %v, want %v", c.keep, c.dims, s, err, c.want)
		}
	}
	for _, c := range []struct {
		dims []int
		want batchnorm.Shape
	}{
		{[]int{7, 3}, batchnorm.Shape{7, 3, 1}},
		{[]int{2, 3, 4, 5}, batchnorm.Shape{2, 60, 1}},
		{[]int{0, 3, 4}, batchnorm.Shape{0, 12, 1}},
	} {
		if s, err := batchnorm.PerActivation(c.dims...); err != nil || s != c.want {
			t.Errorf("PerActivation%v is %v, %v, want %v", c.dims, s, err, c.want)
		}
	}
}

func TestAxesErrors(t *testing.T) {
	plan := func(keep []int, dims ...int) (batchnorm.Shape, error) {
		p, err := batchnorm.NewAxesPlan(keep, dims)
		if err != nil && p != nil {
			t.Error("NewAxesPlan returns a plan with an error")
		}
		return batchnorm.Shape{}, err
	}
	perActivation := func(_ []int, dims ...int) (batchnorm.Shape, error) { return batchnorm.PerActivation(dims...) }
	for _, c := range []struct {
		name       string
		make       func(keep []int, dims ...int) (batchnorm.Shape, error)
		keep, dims []int
		words      []string
	}{
		{"Axes", batchnorm.Axes, []int{1, 3}, []int{2, 3, 4, 5}, []string{"[1 3]", "[2 3 4 5]", "NewAxesPlan"}},
		{"Axes", batchnorm.Axes, []int{0, 2}, []int{2, 3, 4}, []string{"[0 2]", "[2 3 4]", "NewAxesPlan"}},
		{"Axes", batchnorm.Axes, []int{1, 2}, []int{2, 3}, []string{"axis 2", "2 dimensions"}},
		{"Axes", batchnorm.Axes, []int{1, -1}, []int{2, 3}, []string{"axis -1", "twice", "[1 -1]"}},
		{"Axes", batchnorm.Axes, nil, nil, []string{"1 dimension", "0"}},
		{"Axes", batchnorm.Axes, []int{0, 1}, []int{0, 3}, []string{"dimension 0", "[0 3]"}},
		{"Axes", batchnorm.Axes, []int{1}, []int{2, 3, 0}, []string{"dimension 2", "[2 3 0]"}},
		{"Axes", batchnorm.Axes, []int{0}, []int{math.MaxInt, 2}, []string{strconv.Itoa(maxLen)}},
		{"NewAxesPlan", plan, []int{1, 3}, []int{2, 3, 0, 5}, []string{"dimension 2", "[2 3 0 5]"}},
		{"NewAxesPlan", plan, []int{1, 4}, []int{2, 3, 4, 5}, []string{"axis 4", "4 dimensions"}},
		{"NewAxesPlan", plan, []int{1, 3}, []int{2, math.MaxInt, 4, 5}, []string{strconv.Itoa(maxLen)}},
		{"PerActivation", perActivation, nil, []int{3}, []string{"PerActivation", "1"}},
		{"PerActivation", perActivation, nil, []int{3, 0}, []string{"dimension 1", "[3 0]"}},
	} {
		s, err := c.make(c.keep, c.dims...)
		if !errors.Is(err, batchnorm.ErrShape) || s != (batchnorm.Shape{}) {
			t.Errorf("%s(%v, %v) is %v with the error %v, want none and ErrShape", c.name, c.keep, c.dims, s, err)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s(%v, %v): error %q does not mention %q", c.name, c.keep, c.dims, err, w)
			}
		}
	}
	if p, err := batchnorm.NewAxesPlan([]int{1, 3}, []int{2, 3, 4, 5}, batchnorm.WithWorkers(0)); p != nil || !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("NewAxesPlan with 0 workers returns %v, %v, want ErrOption", p, err)
	}
}

// axesCase is a tensor, the axes kept of it, and where its values are in the
// order that the reference and an ordinary plan take: values x channels.
type axesCase struct {
	keep, dims []int
	shape      batchnorm.Shape // {values per channel, channels, 1}
	index      []int           // of each element of the tensor in that order
}

func newAxesCase(keep, dims []int) axesCase {
	c := axesCase{keep: keep, dims: dims, shape: batchnorm.Shape{1, 1, 1}}
	n := 1
	for i, d := range dims {
		n *= d
		if slices.Contains(keep, i) {
			c.shape.Channels *= d
		} else {
			c.shape.Outer *= d
		}
	}
	for k := range n {
		position := make([]int, len(dims))
		for i, rest := len(dims)-1, k; i >= 0; i-- {
			position[i], rest = rest%dims[i], rest/dims[i]
		}
		channel, value := 0, 0
		for i, p := range position {
			if slices.Contains(keep, i) {
				channel = channel*dims[i] + p
			} else {
				value = value*dims[i] + p
			}
		}
		c.index = append(c.index, value*c.shape.Channels+channel)
	}
	return c
}

// inOrder returns a tensor in the reference's order.
func (c axesCase) inOrder(x []float32) []float32 {
	y := make([]float32, len(x))
	for k, v := range x {
		y[c.index[k]] = v
	}
	return y
}

// asTensor returns the reference's results in the order of the tensor.
func (c axesCase) asTensor(x []float64) []float64 {
	y := make([]float64, len(x))
	for k := range y {
		y[k] = x[c.index[k]]
	}
	return y
}

// axesOperations are the operations of plans over axes.
var axesOperations = map[string]func(p *batchnorm.AxesPlan, args any) error{
	"Forward": func(p *batchnorm.AxesPlan, args any) error { return p.Forward(*args.(*batchnorm.ForwardArgs)) },
	"Inference": func(p *batchnorm.AxesPlan, args any) error {
		return p.Inference(*args.(*batchnorm.InferenceArgs))
	},
	"Backward":              func(p *batchnorm.AxesPlan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
	"Backward from float32": func(p *batchnorm.AxesPlan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
	"Backward from x":       func(p *batchnorm.AxesPlan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
	"FrozenBackward": func(p *batchnorm.AxesPlan, args any) error {
		return p.FrozenBackward(*args.(*batchnorm.FrozenBackwardArgs))
	},
}

// overAxes are those of a plan's operations that a plan over axes has.
func overAxes() []operation {
	return slices.DeleteFunc(slices.Clone(operations), func(op operation) bool { return axesOperations[op.name] == nil })
}

// newArgs returns arguments with every slice set, with values of both signs.
func (c axesCase) newArgs(op operation) any {
	args := op.args(c.shape)
	for _, name := range []string{"X", "Residual", "DY"} {
		if v := field(args, name); v.IsValid() {
			v.Set(reflect.ValueOf(gen.Normal(uint64(len(name)), c.shape.Len(), 0.5, 1)))
		}
	}
	return args
}

var axesDims = [][]int{{7}, {6, 5}, {4, 3, 5}, {3, 4, 2, 5}, {2, 3, 1, 4}, {1, 3, 2, 3}, {2, 3, 2, 2, 3}, {3, 2, 9, 33}}

// subsets yields all sets of axes of n dimensions.
func subsets(n int) [][]int {
	var all [][]int
	for bits := range 1 << n {
		var set []int
		for i := range n {
			if bits>>i&1 != 0 {
				set = append(set, i)
			}
		}
		all = append(all, set)
	}
	return all
}

// TestAxesPlan goes through all sets of kept axes of tensors with up to five
// dimensions: all operations against the reference, with equal bits for all
// paths and numbers of workers and in place, and the bits of an ordinary plan
// where the axes make a shape.
func TestAxesPlan(t *testing.T) {
	t.Parallel()
	calls, copies := map[bool]int{}, map[bool]int{}
	for _, dims := range axesDims {
		for _, keep := range subsets(len(dims)) {
			c := newAxesCase(keep, dims)
			t.Run(fmt.Sprintf("%v of %v", keep, dims), func(t *testing.T) {
				if c.shape.Outer > 1 {
					c.checkReference(t)
				}
				p := c.plan(t, batchnorm.PathGeneric, 1)
				n, copied := p.Ways()
				calls[n > 1]++
				copies[copied]++
				s, err := batchnorm.Axes(keep, dims...)
				if direct := err == nil; direct != (n == 1 && !copied) {
					t.Errorf("Axes says %v, but there are %d calls (copies: %t)", err, n, copied)
				}
				if p.Channels() != c.shape.Channels || p.Len() != c.shape.Len() {
					t.Errorf("%d channels, %d elements; want those of %v", p.Channels(), p.Len(), c.shape)
				}
				for _, op := range overAxes() {
					want := c.newArgs(op)
					noError(t, axesOperations[op.name](p, want))
					if err == nil {
						args := c.newArgs(op)
						noError(t, op.call(newPlan(t, s, batchnorm.WithActivation(batchnorm.ReLU), batchnorm.WithSingleValue()), args))
						expectSameArgs(t, "an ordinary plan: ", op, args, want)
					}
					for _, path := range batchnorm.Paths() {
						for _, workers := range []int{1, 3} {
							args := c.newArgs(op)
							noError(t, axesOperations[op.name](c.plan(t, path, workers), args))
							expectSameArgs(t, fmt.Sprintf("%v, %d workers: ", path, workers), op, args, want)
						}
					}
					for output, inputs := range op.outputs {
						for _, input := range inputs {
							args := c.newArgs(op)
							field(args, output).Set(field(args, input))
							noError(t, axesOperations[op.name](p, args))
							for name := range op.outputs {
								if name != input {
									expectSameSlice(t, output+" in "+input+": ", name, args, want)
								}
							}
						}
					}
				}
			})
		}
	}
	if calls[false] == 0 || calls[true] == 0 || copies[false] == 0 || copies[true] == 0 {
		t.Errorf("not every way was taken: several calls %v, copies %v", calls, copies)
	}
}

func (c axesCase) plan(t *testing.T, path batchnorm.Path, workers int) *batchnorm.AxesPlan {
	t.Helper()
	p, err := batchnorm.NewAxesPlan(c.keep, c.dims, batchnorm.WithPath(path), batchnorm.WithWorkers(workers),
		batchnorm.WithActivation(batchnorm.ReLU), batchnorm.WithSingleValue())
	noError(t, err)
	return p
}

func expectSameArgs(t *testing.T, where string, op operation, got, want any) {
	t.Helper()
	for name := range op.outputs {
		expectSameSlice(t, where+op.name+": ", name, got, want)
	}
}

func expectSameSlice(t *testing.T, where, name string, got, want any) {
	t.Helper()
	switch want := field(want, name).Interface().(type) {
	case []float32:
		expectBits(t, where+name, field(got, name).Interface().([]float32), want)
	case []float64:
		expectBits(t, where+name, field(got, name).Interface().([]float64), want)
	}
}

func (c axesCase) checkReference(t *testing.T) {
	t.Helper()
	p := c.plan(t, batchnorm.PathGeneric, 1)
	f := c.newArgs(operations[0]).(*batchnorm.ForwardArgs)
	f.Momentum = batchnorm.NewWeight(1)
	noError(t, p.Forward(*f))
	b := c.newArgs(operations[2]).(*batchnorm.BackwardArgs)
	b.X, b.Residual, b.Gamma, b.Beta, b.Mean, b.InvStd = f.X, f.Residual, f.Gamma, f.Beta, f.Mean, f.InvStd
	noError(t, p.Backward(*b))
	i := c.newArgs(operations[1]).(*batchnorm.InferenceArgs)
	noError(t, p.Inference(*i))

	problem := reference.Problem{
		Outer: c.shape.Outer, Channels: c.shape.Channels, Inner: 1, Epsilon: batchnorm.DefaultEpsilon, Activation: "relu",
		X: c.inOrder(f.X), Residual: c.inOrder(f.Residual), Gamma: f.Gamma, Beta: f.Beta, DY: c.inOrder(b.DY),
	}
	forward, backward := reference.Forward(problem), reference.Backward(problem)
	inferred := problem
	inferred.X, inferred.Residual, inferred.Gamma, inferred.Beta = c.inOrder(i.X), c.inOrder(i.Residual), i.Gamma, i.Beta
	runningVar := slices.Clone(forward.Var)
	for k := range runningVar {
		runningVar[k] *= float64(c.shape.Outer) / float64(c.shape.Outer-1)
	}
	for _, o := range []struct {
		name string
		got  []float32
		want []float64
	}{
		{"y", f.Y, c.asTensor(forward.Y)},
		{"mean", toFloat32(f.Mean), forward.Mean},
		{"invstd", toFloat32(f.InvStd), forward.InvStd},
		{"running mean", f.RunningMean, forward.Mean},
		{"running variance", f.RunningVar, runningVar},
		{"dx", b.DX, c.asTensor(backward.DX)},
		{"dresidual", b.DResidual, c.asTensor(backward.DResidual)},
		{"dgamma", b.DGamma, backward.DGamma},
		{"dbeta", b.DBeta, backward.DBeta},
		{"y of inference", i.Y, c.asTensor(reference.Inference(inferred, i.Mean, i.Var))},
	} {
		largest := 0.0
		for _, v := range o.want {
			largest = max(largest, math.Abs(v))
		}
		if o.name == "dx" { // with two values per channel its terms all but cancel
			for k := range b.DY {
				channel := c.index[k] % c.shape.Channels
				largest = max(largest, math.Abs(backward.DResidual[c.index[k]])*forward.InvStd[channel]*float64(f.Gamma[channel]))
			}
		}
		expectNear(t, o.name, o.got, o.want, func(int) float64 { return 2e-6 * largest })
	}
}

// The kinds of plan over axes: one call, several, and copies.
var axesKinds = []axesCase{
	newAxesCase([]int{1, 2}, []int{3, 4, 2, 5}), newAxesCase([]int{0, 2}, []int{3, 4, 5}),
	newAxesCase([]int{1, 3}, []int{3, 4, 2, 5}), newAxesCase([]int{0, 2, 4}, []int{2, 3, 2, 2, 3}),
}

func TestAxesPlanBadArguments(t *testing.T) {
	t.Parallel()
	for _, c := range axesKinds {
		p := c.plan(t, batchnorm.DefaultPath(), 1)
		for _, op := range overAxes() {
			wrapped := op
			wrapped.call = func(_ *batchnorm.Plan, args any) error { return axesOperations[op.name](p, args) }
			for _, name := range op.names() {
				n := need(c.shape, name)
				for _, wrong := range []int{0, n - 1, n + 1} {
					args := c.newArgs(op)
					v := field(args, name)
					v.Set(reflect.AppendSlice(v, v).Slice(0, wrong))
					wrapped.expectRejected(t, nil, args, batchnorm.ErrLength, nameInMessages(name), strconv.Itoa(wrong), strconv.Itoa(n))
				}
				args := c.newArgs(op)
				field(args, name).SetZero()
				if slices.Contains(op.required, name) {
					wrapped.expectRejected(t, nil, args, batchnorm.ErrMissing, nameInMessages(name))
				} else {
					noError(t, wrapped.call(nil, args))
				}
			}
			// An output that begins one element behind an input.
			args := c.newArgs(op)
			v := field(args, "X")
			v.Set(reflect.AppendSlice(v, v.Slice(0, 1)))
			out := "Y"
			if op.name != "Forward" && op.name != "Inference" {
				out = "DX"
			}
			field(args, out).Set(v.Slice(1, c.shape.Len()+1))
			v.Set(v.Slice(0, c.shape.Len()))
			wrapped.expectRejected(t, nil, args, batchnorm.ErrAlias, "x", nameInMessages(out))

			for _, mask := range []batchnorm.Mask{{Valid: make([]bool, c.shape.Outer)}, {Lengths: []int{1}}} {
				args := c.newArgs(op)
				field(args, "Mask").Set(reflect.ValueOf(mask))
				wrapped.expectRejected(t, nil, args, batchnorm.ErrMask, "mask")
			}
			for _, none := range []*batchnorm.AxesPlan{nil, {}} {
				wrapped.call = func(_ *batchnorm.Plan, args any) error { return axesOperations[op.name](none, args) }
				wrapped.expectRejected(t, nil, c.newArgs(op), batchnorm.ErrNilPlan)
			}
		}
		args := c.newArgs(operations[0]).(*batchnorm.ForwardArgs)
		args.Momentum = batchnorm.NewWeight(2)
		if err := p.Forward(*args); !errors.Is(err, batchnorm.ErrMomentum) {
			t.Errorf("a momentum of 2 gives %v, want ErrMomentum", err)
		}
	}
	single, err := batchnorm.NewAxesPlan([]int{0, 2}, []int{3, 1, 5, 1})
	noError(t, err)
	if err := single.Forward(batchnorm.ForwardArgs{X: make([]float32, 15), Y: make([]float32, 15)}); !errors.Is(err, batchnorm.ErrTooFewValues) {
		t.Errorf("one value per channel gives %v, want ErrTooFewValues", err)
	}
	var none *batchnorm.AxesPlan
	if calls, copies := none.Ways(); calls != 0 || copies || none.Channels() != 0 || none.Len() != 0 {
		t.Error("no plan has channels, elements or calls")
	}
}

// A plan over axes hands on every argument that there is, and refuses a mask. A
// new argument needs a place in AxesPlan's methods.
func TestAxesPlanKnowsAllArguments(t *testing.T) {
	for _, c := range []struct {
		args  any
		names string
	}{
		{batchnorm.ForwardArgs{}, "X Residual Gamma Beta Mask Y Mean InvStd BatchMean BatchVar RunningMean RunningVar Momentum"},
		{batchnorm.InferenceArgs{}, "X Residual Gamma Beta Mean Var Mask Y"},
		{batchnorm.BackwardArgs{}, "DY X Residual Gamma Beta Mask Mean InvStd BatchMean BatchVar DX DResidual DGamma DBeta"},
		{batchnorm.FrozenBackwardArgs{}, "DY X Residual Gamma Beta Mean Var Mask DX DResidual DGamma DBeta"},
	} {
		var names []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(c.args)) {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); got != c.names {
			t.Errorf("%T has the fields %s, AxesPlan hands on %s", c.args, got, c.names)
		}
	}
}

// Outputs that are not wanted have no effect on the others.
func TestAxesPlanOneOutput(t *testing.T) {
	for _, c := range axesKinds {
		p := c.plan(t, batchnorm.DefaultPath(), 1)
		for _, op := range overAxes() {
			want := c.newArgs(op)
			noError(t, axesOperations[op.name](p, want))
			for only := range op.outputs {
				args := c.newArgs(op)
				for name := range op.outputs {
					if name != only && !slices.Contains(op.required, name) {
						field(args, name).SetZero()
					}
				}
				noError(t, axesOperations[op.name](p, args))
				expectSameSlice(t, fmt.Sprintf("%v of %v, %s: only ", c.keep, c.dims, op.name), only, args, want)
			}
		}
	}
}

func TestAxesPlanEmptyBatch(t *testing.T) {
	for _, keep := range [][]int{{1, 2}, {1, 3}} {
		p, err := batchnorm.NewAxesPlan(keep, []int{0, 3, 2, 4})
		noError(t, err)
		n := p.Channels()
		mean, invstd, runningMean, runningVar := make([]float64, n), make([]float64, n), make([]float32, n), make([]float32, n)
		noError(t, p.Forward(batchnorm.ForwardArgs{Mean: mean, InvStd: invstd, RunningMean: runningMean, RunningVar: runningVar}))
		dgamma, dbeta := slices.Repeat([]float32{7}, n), slices.Repeat([]float32{7}, n)
		noError(t, p.Backward(batchnorm.BackwardArgs{Mean: mean, InvStd: invstd, DGamma: dgamma, DBeta: dbeta}))
		frozen := slices.Repeat([]float32{7}, n)
		noError(t, p.FrozenBackward(batchnorm.FrozenBackwardArgs{Mean: runningMean, Var: runningVar, DGamma: frozen}))
		expectBits(t, "frozen dgamma", frozen, make([]float32, n))
		noError(t, p.Inference(batchnorm.InferenceArgs{Mean: runningMean, Var: runningVar}))
		for c := range n {
			if mean[c] == mean[c] || invstd[c] == invstd[c] || runningMean[c] != 0 || runningVar[c] != 0 || dgamma[c] != 0 || dbeta[c] != 0 {
				t.Errorf("%v: channel %d gets %v, %v, %v, %v, %v, %v", keep, c, mean[c], invstd[c], runningMean[c], runningVar[c], dgamma[c], dbeta[c])
			}
		}
	}
}

func TestAxesPlanNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	for _, c := range axesKinds {
		for _, workers := range []int{1, 3} {
			p := c.plan(t, batchnorm.DefaultPath(), workers)
			f := *c.newArgs(operations[0]).(*batchnorm.ForwardArgs)
			i := *c.newArgs(operations[1]).(*batchnorm.InferenceArgs)
			b := *c.newArgs(operations[2]).(*batchnorm.BackwardArgs)
			all := func() error { return errors.Join(p.Forward(f), p.Inference(i), p.Backward(b)) }
			noError(t, all())
			if n := testing.AllocsPerRun(10, func() { _ = all() }); n != 0 {
				t.Errorf("%v of %v with %d workers allocates %v times", c.keep, c.dims, workers, n)
			}
		}
	}
}

// Several goroutines on one plan get the results of one alone.
func TestAxesPlanConcurrent(t *testing.T) {
	t.Parallel()
	c := newAxesCase([]int{1, 3}, []int{3, 4, 2, 5})
	p := c.plan(t, batchnorm.DefaultPath(), 1)
	want := c.newArgs(operations[2])
	noError(t, axesOperations["Backward"](p, want))
	var wg sync.WaitGroup
	all := make([]any, 4)
	for i := range all {
		all[i] = c.newArgs(operations[2])
		start(&wg, func() {
			for range 20 {
				if err := axesOperations["Backward"](p, all[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, got := range all {
		expectSameArgs(t, "", operations[2], got, want)
	}
}

// FuzzAxes compares plans over any axes with an ordinary plan on the values in
// its own order. Where nothing is summed, the bits are the same.
func FuzzAxes(f *testing.F) {
	for i, dims := range axesDims {
		raw := make([]byte, len(dims))
		for k, d := range dims {
			raw[k] = byte(d - 1)
		}
		for keep := range 8 {
			f.Add(raw, uint8(5*keep+i), uint64(i), i%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, kept uint8, seed uint64, relu bool) {
		var keep, dims []int
		for i, b := range raw[:min(len(raw), 6)] {
			dims = append(dims, 1+int(b)%5)
			if kept>>i&1 != 0 {
				keep = append(keep, i)
			}
		}
		if dims == nil {
			return
		}
		c := newAxesCase(keep, dims)
		opts := []batchnorm.Option{batchnorm.WithSingleValue()}
		if relu {
			opts = append(opts, batchnorm.WithActivation(batchnorm.ReLU))
		}
		p, err := batchnorm.NewAxesPlan(keep, dims, opts...)
		noError(t, err)
		ordinary := newPlan(t, c.shape, opts...)
		n, channels := c.shape.Len(), c.shape.Channels
		x, dy, residual := gen.Normal(seed, n, 0.5, 1), gen.Normal(seed+1, n, 0, 1), gen.Normal(seed+2, n, 0, 1)
		gamma, beta := gen.Uniform(seed+3, channels, -2, 2), gen.Uniform(seed+4, channels, -1, 1)
		mean, variance := gen.Uniform(seed+5, channels, -1, 1), gen.Uniform(seed+6, channels, 0.1, 2)
		y, want := make([]float32, n), make([]float32, n)
		args := batchnorm.InferenceArgs{X: x, Residual: residual, Gamma: gamma, Beta: beta, Mean: mean, Var: variance, Y: y}
		noError(t, p.Inference(args))
		args.X, args.Residual, args.Y = c.inOrder(x), c.inOrder(residual), want
		noError(t, ordinary.Inference(args))
		expectBits(t, fmt.Sprintf("%v of %v: y of inference", keep, dims), c.inOrder(y), want)

		back := batchnorm.FrozenBackwardArgs{DY: dy, X: x, Residual: residual, Gamma: gamma, Beta: beta, Mean: mean, Var: variance, DX: y}
		noError(t, p.FrozenBackward(back))
		back.DY, back.X, back.Residual, back.DX = c.inOrder(dy), c.inOrder(x), c.inOrder(residual), want
		noError(t, ordinary.FrozenBackward(back))
		expectBits(t, fmt.Sprintf("%v of %v: frozen dx", keep, dims), c.inOrder(y), want)

		got, wantMean := make([]float64, channels), make([]float64, channels)
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mean: got}))
		noError(t, ordinary.Forward(batchnorm.ForwardArgs{X: args.X, Y: want, Mean: wantMean}))
		expectNear(t, fmt.Sprintf("%v of %v: mean", keep, dims), got, wantMean, func(int) float64 { return 1e-6 })
	})
}
