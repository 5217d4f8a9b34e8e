package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// operation is one of a plan's, with its arguments handled by name, so that a
// test can go through all of them.
type operation struct {
	name     string
	newArgs  func() any // a pointer to the zero arguments
	call     func(p *batchnorm.Plan, args any) error
	required []string
	outputs  map[string][]string // with the inputs that they may be
	inverse  bool                // needs an activation that has an inverse
	without  []string            // slices that stay nil
}

var operations = []operation{
	{
		name:     "Forward",
		newArgs:  func() any { return new(batchnorm.ForwardArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Forward(*args.(*batchnorm.ForwardArgs)) },
		required: []string{"X", "Y"},
		outputs: map[string][]string{"Y": {"X", "Residual"}, "Mean": nil, "InvStd": nil, "BatchMean": nil, "BatchVar": nil,
			"RunningMean": nil, "RunningVar": nil},
	},
	{
		name:     "Inference",
		newArgs:  func() any { return new(batchnorm.InferenceArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Inference(*args.(*batchnorm.InferenceArgs)) },
		required: []string{"X", "Y", "Mean", "Var"},
		outputs:  map[string][]string{"Y": {"X", "Residual"}},
	},
	{
		name:     "Backward",
		newArgs:  func() any { return new(batchnorm.BackwardArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
		required: []string{"DY", "X", "Mean", "InvStd"},
		outputs:  gradientsOf("X"),
		without:  []string{"BatchMean", "BatchVar"},
	},
	{
		name:    "FrozenBackward",
		newArgs: func() any { return new(batchnorm.FrozenBackwardArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			return p.FrozenBackward(*args.(*batchnorm.FrozenBackwardArgs))
		},
		required: []string{"DY", "X", "Mean", "Var"},
		outputs:  gradientsOf("X"),
	},
	{
		name:     "BackwardFromY",
		newArgs:  func() any { return new(batchnorm.BackwardFromYArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.BackwardFromY(*args.(*batchnorm.BackwardFromYArgs)) },
		required: []string{"DY", "Y", "InvStd"},
		outputs:  gradientsOf("Y"),
		inverse:  true,
	},
	{
		name:     "RenormForward",
		newArgs:  func() any { return &batchnorm.RenormForwardArgs{RMax: 3, DMax: 5} },
		call:     func(p *batchnorm.Plan, args any) error { return p.RenormForward(*args.(*batchnorm.RenormForwardArgs)) },
		required: []string{"X", "Y", "RunningMean", "RunningVar", "R", "D"},
		outputs: map[string][]string{
			"Y": {"X", "Residual"}, "Mean": nil, "InvStd": nil, "BatchMean": nil, "BatchVar": nil,
			"RunningMean": nil, "RunningVar": nil, "R": nil, "D": nil,
		},
	},
	{
		name:    "RenormBackward",
		newArgs: func() any { return new(batchnorm.RenormBackwardArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			return p.RenormBackward(*args.(*batchnorm.RenormBackwardArgs))
		},
		required: []string{"DY", "X", "Mean", "InvStd", "R", "D"},
		outputs:  gradientsOf("X"),
		without:  []string{"BatchMean", "BatchVar"},
	},
	{
		name:    "Moments",
		newArgs: func() any { return new(momentsArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			a := args.(*momentsArgs)
			return p.Moments(batchnorm.MomentsArgs{X: a.X, Moments: &batchnorm.Moments{Mean: a.Mean, M2: a.M2}})
		},
		required: []string{"X", "Mean", "M2"},
		outputs:  map[string][]string{"Mean": nil, "M2": nil},
	},
	{
		name:    "Statistics",
		newArgs: func() any { return new(statisticsArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			a := args.(*statisticsArgs)
			a.Moments = batchnorm.Moments{Count: 2, Mean: a.MomentsMean, M2: a.MomentsM2}
			return p.Statistics(a.StatisticsArgs)
		},
		required: []string{"MomentsMean", "MomentsM2"},
		outputs: map[string][]string{"Mean": {"MomentsMean"}, "InvStd": {"MomentsM2"}, "BatchMean": nil, "BatchVar": nil,
			"RunningMean": nil, "RunningVar": nil},
	},
	{
		name:     "Normalize",
		newArgs:  func() any { return new(batchnorm.NormalizeArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Normalize(*args.(*batchnorm.NormalizeArgs)) },
		required: []string{"X", "Y", "Mean", "InvStd"},
		outputs:  map[string][]string{"Y": {"X", "Residual"}},
	},
	{
		name:    "GradSums",
		newArgs: func() any { return new(gradSumsArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			a := args.(*gradSumsArgs)
			a.Sums = &batchnorm.GradSums{G: a.G, GD: a.GD}
			return p.GradSums(a.GradSumsArgs)
		},
		required: []string{"DY", "X", "Mean", "InvStd", "G", "GD"},
		outputs:  map[string][]string{"G": nil, "GD": nil},
	},
	{
		name:    "InputGrad",
		newArgs: func() any { return new(inputGradArgs) },
		call: func(p *batchnorm.Plan, args any) error {
			a := args.(*inputGradArgs)
			a.Sums = batchnorm.GradSums{Count: 1 << 20, G: a.SumsG, GD: a.SumsGD}
			return p.InputGrad(a.InputGradArgs)
		},
		required: []string{"DY", "X", "Mean", "InvStd", "SumsG", "SumsGD"},
		outputs:  gradientsOf("X"),
	},
	{
		name:     "Backward from float32",
		newArgs:  func() any { return new(batchnorm.BackwardArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
		required: []string{"DY", "X", "BatchMean", "BatchVar"},
		outputs:  gradientsOf("X"),
		without:  []string{"Mean", "InvStd"},
	},
	{
		name:     "Backward from x",
		newArgs:  func() any { return new(batchnorm.BackwardArgs) },
		call:     func(p *batchnorm.Plan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
		required: []string{"DY", "X"},
		outputs:  gradientsOf("X"),
		without:  []string{"Mean", "InvStd", "BatchMean", "BatchVar"},
	},
}

// gradientsOf has the outputs of a backward pass, with the inputs that each may overwrite;
// x is the name of the input, or of the output in its place.
func gradientsOf(x string) map[string][]string {
	inputs := []string{"DY", x, "Residual"}
	return map[string][]string{"DX": inputs, "DResidual": inputs, "DGamma": nil, "DBeta": nil}
}

// The arguments of operations whose slices are in structs of their own.
type (
	momentsArgs struct {
		X        []float32
		Mean, M2 []float64
	}
	statisticsArgs struct {
		batchnorm.StatisticsArgs
		MomentsMean, MomentsM2 []float64
	}
	gradSumsArgs struct {
		batchnorm.GradSumsArgs
		G, GD []float64
	}
	inputGradArgs struct {
		batchnorm.InputGradArgs
		SumsG, SumsGD []float64
	}
)

func forEachOperation(t *testing.T, test func(t *testing.T, op operation)) {
	t.Helper()
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) { test(t, op) })
	}
}

// tensors are the arguments with an element for each of x; the other slices
// have one per channel.
var tensors = []string{"X", "Residual", "Y", "DY", "DX", "DResidual"}

func need(s batchnorm.Shape, name string) int {
	if slices.Contains(tensors, name) {
		return s.Len()
	}
	return s.Channels
}

// nameInMessages returns the name of the argument in errors.
func nameInMessages(name string) string {
	switch name {
	case "RunningMean":
		return "running mean"
	case "RunningVar":
		return "running variance"
	case "BatchMean":
		return "batch mean"
	case "BatchVar":
		return "batch variance"
	case "MomentsMean", "MomentsM2":
		return strings.ToLower(name[len("Moments"):]) + " of the moments"
	case "SumsG", "SumsGD":
		return strings.ToLower(name[len("Sums"):]) + " of the sums"
	}
	return strings.ToLower(name)
}

// field returns the argument of that name, to be read and set.
func field(args any, name string) reflect.Value {
	return reflect.ValueOf(args).Elem().FieldByName(name)
}

// names returns the names of the operation's slices.
func (op operation) names() []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(op.newArgs()).Elem()) {
		if f.Type.Kind() == reflect.Slice && !slices.Contains(op.without, f.Name) {
			names = append(names, f.Name)
		}
	}
	return names
}

// args returns valid arguments with every slice set.
func (op operation) args(s batchnorm.Shape) any {
	args := op.newArgs()
	for i, name := range op.names() {
		v, data := field(args, name), gen.Uniform(uint64(i), need(s, name), 0.5, 1.5)
		if _, double := v.Interface().([]float64); double {
			v.Set(reflect.ValueOf(widen(data)))
		} else {
			v.Set(reflect.ValueOf(data))
		}
	}
	return args
}

// contents returns copies of all slices, up to their capacity.
func (op operation) contents(args any) map[string]any {
	all := map[string]any{}
	for _, name := range op.names() {
		v := field(args, name)
		whole := reflect.MakeSlice(v.Type(), v.Cap(), v.Cap())
		reflect.Copy(whole, v.Slice(0, v.Cap()))
		all[name] = whole.Interface()
	}
	return all
}

// expectRejected requires that the call fails with the kind of error, that the
// message mentions the given words, and that nothing at all was written.
func (op operation) expectRejected(t *testing.T, p *batchnorm.Plan, args any, kind error, words ...string) {
	t.Helper()
	before := op.contents(args)
	err := op.call(p, args)
	if !errors.Is(err, kind) {
		t.Errorf("error is %v, want one that is %q", err, kind)
		return
	}
	for _, w := range words {
		if !regexp.MustCompile(`(^|[^\w.])` + regexp.QuoteMeta(w) + `($|\W)`).MatchString(err.Error()) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
	for name, want := range before {
		if got := op.contents(args)[name]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s was written although the call failed with %v", name, err)
		}
	}
}

var someShape = batchnorm.Shape{3, 4, 6}

func TestWrongLength(t *testing.T) {
	p := newPlan(t, someShape)
	forEachOperation(t, func(t *testing.T, op operation) {
		for _, name := range op.names() {
			n := need(someShape, name)
			for _, wrong := range []int{0, n - 1, n + 1, 2 * n} {
				args := op.args(someShape)
				v := field(args, name)
				v.Set(reflect.AppendSlice(v, v).Slice(0, wrong))
				op.expectRejected(t, p, args, batchnorm.ErrLength, nameInMessages(name), strconv.Itoa(wrong), strconv.Itoa(n))
			}
		}
	})
}

func TestMissing(t *testing.T) {
	p := newPlan(t, someShape)
	forEachOperation(t, func(t *testing.T, op operation) {
		for _, name := range op.names() {
			args := op.args(someShape)
			field(args, name).SetZero()
			if slices.Contains(op.required, name) {
				op.expectRejected(t, p, args, batchnorm.ErrMissing, nameInMessages(name), strconv.Itoa(need(someShape, name)))
			} else if err := op.call(p, args); err != nil {
				t.Errorf("%s is optional, but without it: %v", name, err)
			}
		}
	})
}

func TestNilPlan(t *testing.T) {
	forEachOperation(t, func(t *testing.T, op operation) {
		for _, p := range []*batchnorm.Plan{nil, {}} {
			op.expectRejected(t, p, op.args(someShape), batchnorm.ErrNilPlan)
			op.expectRejected(t, p, op.newArgs(), batchnorm.ErrNilPlan)
		}
	})
}

// Every pair of slices is laid out so that they touch, overlap by one element
// at either end, or begin at the same place. Inputs may overlap at will;
// outputs must be apart from all else, but for the exact aliases allowed.
func TestOverlap(t *testing.T) {
	t.Parallel()
	p := newPlan(t, someShape)
	arena := make([]float64, 4*someShape.Len())
	forEachOperation(t, func(t *testing.T, op operation) {
		for i, a := range op.names() {
			for _, b := range op.names()[:i] {
				pristine := op.args(someShape)
				lenA, lenB := field(pristine, a).Len(), field(pristine, b).Len()
				sizeA, sizeB := lenA*elementSize(pristine, a), lenB*elementSize(pristine, b)
				middle, least := 8*len(arena)/2, elementSize(pristine, b)
				_, aOut := op.outputs[a]
				_, bOut := op.outputs[b]
				allowed := slices.Contains(op.outputs[a], b) || slices.Contains(op.outputs[b], a)
				for _, c := range []struct {
					name   string
					beginB int // where a begins in the middle
					ok     bool
				}{
					{"touch, a first", middle + sizeA, true},
					{"touch, b first", middle - sizeB, true},
					{"overlap, a first", middle + sizeA - least, false},
					{"overlap, b first", middle - sizeB + least, false},
					{"begin together", middle, sizeA == sizeB && allowed},
				} {
					t.Run(fmt.Sprintf("%s and %s %s", a, b, c.name), func(t *testing.T) {
						args := op.args(someShape)
						move(field(args, a), arena, middle)
						move(field(args, b), arena, c.beginB)
						if c.ok || !aOut && !bOut {
							noError(t, op.call(p, args))
							return
						}
						op.expectRejected(t, p, args, batchnorm.ErrAlias,
							nameInMessages(a), nameInMessages(b), strconv.Itoa(lenA), strconv.Itoa(lenB))
					})
				}
			}
		}
	})
}

func elementSize(args any, name string) int { return int(field(args, name).Type().Elem().Size()) }

// move makes the slice one of the same length in the arena, from that byte on,
// with its contents.
func move(slice reflect.Value, arena []float64, begin int) {
	at := unsafe.Add(unsafe.Pointer(&arena[0]), begin)
	switch old := slice.Interface().(type) {
	case []float32:
		s := unsafe.Slice((*float32)(at), len(old))
		copy(s, old)
		slice.Set(reflect.ValueOf(s))
	case []float64:
		s := unsafe.Slice((*float64)(at), len(old))
		copy(s, old)
		slice.Set(reflect.ValueOf(s))
	}
}

// Working in place gives the bits of working out of place.
func TestExactAlias(t *testing.T) {
	t.Parallel()
	shapes := []batchnorm.Shape{{3, 5, 67}, {2, 3, 4099}, {61, 19, 1}, {4099, 3, 1}, {2, 1, 1}}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
			for _, s := range shapes {
				p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
				for _, op := range operations {
					if op.inverse && act != batchnorm.Identity {
						continue
					}
					newArgs := func() any {
						args := op.args(s)
						// Values of both signs for the activation.
						for _, name := range []string{"X", "Residual", "DY"} {
							if v := field(args, name); v.IsValid() {
								v.Set(reflect.ValueOf(gen.Normal(uint64(len(name)), s.Len(), 0, 1)))
							}
						}
						return args
					}
					apart := newArgs()
					noError(t, op.call(p, apart))
					for output, inputs := range op.outputs {
						for _, input := range inputs {
							inPlace := newArgs()
							field(inPlace, output).Set(field(inPlace, input))
							noError(t, op.call(p, inPlace))
							for name := range op.outputs {
								where := fmt.Sprintf("%v %v, %s with %s in %s: %s", s, act, op.name, output, input, name)
								switch want := field(apart, name).Interface().(type) {
								case []float32:
									expectBits(t, where, field(inPlace, name).Interface().([]float32), want)
								case []float64:
									expectBits(t, where, field(inPlace, name).Interface().([]float64), want)
								}
							}
						}
					}
				}
			}
		}
	})
}

func TestMomentumErrors(t *testing.T) {
	p := newPlan(t, someShape)
	op := operations[0]
	for _, c := range []struct {
		momentum batchnorm.Momentum
		weight   string
	}{
		{batchnorm.NewWeight(-0.25), "-0.25"},
		{batchnorm.NewWeight(1.5), "1.5"},
		{batchnorm.NewWeight(math.NaN()), "NaN"},
		{batchnorm.NewWeight(math.Inf(1)), "+Inf"},
		{batchnorm.OldWeight(-0.25), "1.25"},
		{batchnorm.OldWeight(1.5), "-0.5"},
		{batchnorm.OldWeight(math.NaN()), "NaN"},
		{batchnorm.Cumulative(0), "Cumulative(0)"},
		{batchnorm.Cumulative(-3), "Cumulative(-3)"},
	} {
		args := op.args(someShape)
		args.(*batchnorm.ForwardArgs).Momentum = c.momentum
		op.expectRejected(t, p, args, batchnorm.ErrMomentum, c.weight)
	}
	for _, m := range []batchnorm.Momentum{{}, batchnorm.NewWeight(0), batchnorm.NewWeight(1), batchnorm.OldWeight(1), batchnorm.Cumulative(1)} {
		args := op.args(someShape)
		args.(*batchnorm.ForwardArgs).Momentum = m
		noError(t, op.call(p, args))
	}
}

func TestOptionErrors(t *testing.T) {
	paths := batchnorm.Paths()
	unavailable := []batchnorm.Path{200}
	for _, p := range []batchnorm.Path{batchnorm.PathAVX2, batchnorm.PathNEON} {
		if !slices.Contains(paths, p) {
			unavailable = append(unavailable, p)
		}
	}
	type option struct {
		name   string
		option batchnorm.Option
		number string
	}
	cases := []option{
		{"epsilon", batchnorm.WithEpsilon(-1e-5), "-1e-05"},
		{"epsilon", batchnorm.WithEpsilon(math.NaN()), "NaN"},
		{"epsilon", batchnorm.WithEpsilon(math.Inf(1)), "+Inf"},
		{"epsilon", batchnorm.WithEpsilon(math.Inf(-1)), "-Inf"},
		{"workers", batchnorm.WithWorkers(0), "0"},
		{"workers", batchnorm.WithWorkers(-2), "-2"},
		{"executor", batchnorm.WithExecutor(nil), "nil"},
		{"option", nil, "nil"},
	}
	for _, p := range unavailable {
		cases = append(cases, option{"path", batchnorm.WithPath(p), p.String()})
	}
	for _, c := range cases {
		p, err := batchnorm.NewPlan(someShape, c.option)
		if p != nil || !errors.Is(err, batchnorm.ErrOption) {
			t.Errorf("%s %s: NewPlan returns %v, %v, want ErrOption", c.name, c.number, p, err)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, c.name) || !strings.Contains(msg, c.number) {
			t.Errorf("%s %s: error %q does not mention both", c.name, c.number, msg)
		}
	}
	for _, p := range paths {
		if got := newPlan(t, someShape, batchnorm.WithPath(p)).Path(); got != p {
			t.Errorf("a plan made with path %v uses %v", p, got)
		}
	}
	if got := newPlan(t, someShape).Path(); got != batchnorm.DefaultPath() || got != paths[0] {
		t.Errorf("a plan uses path %v, the default is %v, the fastest %v", got, batchnorm.DefaultPath(), paths[0])
	}
}

func TestOneValuePerChannel(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		s := batchnorm.Shape{1, 11, 1}
		forward := operations[0]
		forward.expectRejected(t, newPlan(t, s, batchnorm.WithPath(path)), forward.args(s), batchnorm.ErrTooFewValues, s.String(), "1", "2")

		p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithSingleValue())
		args := *forward.args(s).(*batchnorm.ForwardArgs)
		args.Residual, args.Momentum = nil, batchnorm.NewWeight(1)
		noError(t, p.Forward(args))
		expectBits(t, "y", args.Y, args.Beta)
		expectBits(t, "running mean", args.RunningMean, args.X)
		expectBits(t, "running variance", args.RunningVar, make([]float32, s.Len()))
		for c, x := range args.X {
			if args.Mean[c] != float64(x) {
				t.Errorf("mean[%d] is %v, the value %v", c, args.Mean[c], x)
			}
		}

		back := *operations[2].args(s).(*batchnorm.BackwardArgs)
		back.Residual, back.X, back.Mean, back.InvStd = nil, args.X, args.Mean, args.InvStd
		noError(t, p.Backward(back))
		expectBits(t, "dx", back.DX, make([]float32, s.Len()))
		expectBits(t, "dbeta", back.DBeta, back.DY)
		expectBits(t, "dgamma", back.DGamma, make([]float32, s.Len()))
	})
}

// With epsilon 0, a channel without variance gives beta, and no gradient.
func TestNoVarianceNoEpsilon(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range []batchnorm.Shape{{2, 3, 35}, {70, 3, 1}} {
			p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(0))
			x, beta := make([]float32, s.Len()), []float32{0.5, -1, 2}
			wantY := make([]float32, s.Len())
			for k := range x {
				c := channelOf(s, k)
				x[k], wantY[k] = float32(c)+0.1, beta[c]
			}
			y, mean, invStd := make([]float32, s.Len()), make([]float64, 3), make([]float64, 3)
			noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Beta: beta, Y: y, Mean: mean, InvStd: invStd}))
			expectBits(t, "y", y, wantY)
			expectBits(t, "invstd", invStd, make([]float64, 3))

			dx := make([]float32, s.Len())
			noError(t, p.Backward(batchnorm.BackwardArgs{DY: x, X: x, Mean: mean, InvStd: invStd, DX: dx}))
			for k, v := range dx {
				if v != 0 {
					t.Fatalf("%v: dx[%d] is %v, want 0", s, k, v)
				}
			}

			clear(y)
			noError(t, p.Inference(batchnorm.InferenceArgs{X: x, Beta: beta, Mean: []float32{0, 1, 2}, Var: make([]float32, 3), Y: y}))
			expectBits(t, "y of inference", y, wantY)
		}
	})
}

// A running variance that is none is no error, but spoils its channel, and
// only that.
func TestInferenceBadVariance(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
			for _, s := range []batchnorm.Shape{{2, 5, 37}, {74, 5, 1}} {
				p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
				args := batchnorm.InferenceArgs{
					X:    gen.Normal(1, s.Len(), 0, 1),
					Mean: make([]float32, s.Channels),
					Var:  []float32{1, 2, 3, 4, 5},
					Y:    make([]float32, s.Len()),
				}
				noError(t, p.Inference(args))
				want := slices.Clone(args.Y)
				args.Var[1], args.Var[3] = -1, float32(math.NaN())
				for k := range want {
					if c := channelOf(s, k); c == 1 || c == 3 {
						want[k] = float32(math.NaN())
					}
				}
				noError(t, p.Inference(args))
				expectBits(t, fmt.Sprintf("y of %v with %v", s, act), args.Y, want)
			}
		}
	})
}

// bind returns the call with these arguments, without reflection.
func (op operation) bind(p *batchnorm.Plan, args any) func() error {
	switch a := args.(type) {
	case *momentsArgs:
		m := batchnorm.MomentsArgs{X: a.X, Moments: &batchnorm.Moments{Mean: a.Mean, M2: a.M2}}
		return func() error { return p.Moments(m) }
	case *gradSumsArgs:
		a.Sums = &batchnorm.GradSums{G: a.G, GD: a.GD}
		return func() error { return p.GradSums(a.GradSumsArgs) }
	}
	return func() error { return op.call(p, args) }
}
