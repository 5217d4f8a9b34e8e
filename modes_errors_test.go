package batchnorm_test

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// trainingOperations need two values per channel.
var trainingOperations = []string{
	"Forward", "Backward", "Backward from float32", "Backward from x", "BackwardFromY", "RenormForward", "RenormBackward",
}

// masked are the operations that take a mask, with how to give them one.
func masked() []operation {
	var list []operation
	for _, op := range operations {
		if !reflect.ValueOf(op.newArgs()).Elem().FieldByName("Mask").IsValid() {
			continue
		}
		list = append(list, op)
	}
	return list
}

func TestMaskErrors(t *testing.T) {
	if n := len(masked()); n < 9 {
		t.Fatalf("%d operations take a mask, want at least 9", n)
	}
	rows, cols := someShape, batchnorm.Shape{12, 5, 1}
	for _, c := range []struct {
		shape batchnorm.Shape
		mask  batchnorm.Mask
		kind  error
		words []string
	}{
		{rows, batchnorm.Mask{Lengths: []int{6, 6, 6}, Valid: make([]bool, 18)}, batchnorm.ErrMask, []string{"lengths", "valid", "3", "18"}},
		{rows, batchnorm.Mask{Lengths: []int{6, 7, 6}}, batchnorm.ErrMask, []string{"length 1", "7", "6"}},
		{rows, batchnorm.Mask{Lengths: []int{6, 6, -1}}, batchnorm.ErrMask, []string{"length 2", "-1", "6"}},
		{rows, batchnorm.Mask{Lengths: []int{6, 6}}, batchnorm.ErrLength, []string{"lengths", "2", "3", rows.String()}},
		{rows, batchnorm.Mask{Lengths: []int{6}}, batchnorm.ErrLength, []string{"lengths", "1", "3", rows.String()}},
		{rows, batchnorm.Mask{Lengths: []int{}}, batchnorm.ErrLength, []string{"lengths", "0", "3", rows.String()}},
		{rows, batchnorm.Mask{Valid: make([]bool, 17)}, batchnorm.ErrLength, []string{"valid", "17", "18", rows.String()}},
		{rows, batchnorm.Mask{Valid: []bool{}}, batchnorm.ErrLength, []string{"valid", "0", "18", rows.String()}},
		{cols, batchnorm.Mask{Lengths: []int{2, 3, 1, 2, 2}}, batchnorm.ErrLength, []string{"lengths", "5", "12", cols.String()}},
		{cols, batchnorm.Mask{Lengths: []int{}}, batchnorm.ErrLength, []string{"lengths", "0", "12", cols.String()}},
		{cols, batchnorm.Mask{Lengths: make([]int, 24)}, batchnorm.ErrLength, []string{"lengths", "24", "12", cols.String()}},
		{cols, batchnorm.Mask{Lengths: []int{4, 5, 0}}, batchnorm.ErrMask, []string{"length 1", "5", "4"}},
	} {
		p := newPlan(t, c.shape)
		for _, op := range masked() {
			args := op.args(c.shape)
			field(args, "Mask").Set(reflect.ValueOf(c.mask))
			op.expectRejected(t, p, args, c.kind, c.words...)
		}
	}
}

// A mask that leaves one value is too little for training, and enough for the
// rest. None is an empty batch.
func TestMaskLeavesTooFew(t *testing.T) {
	for _, s := range []batchnorm.Shape{someShape, {12, 5, 1}, {6, 1, 1}} {
		for _, left := range []int{0, 1} {
			lengths := make([]int, s.Outer)
			lengths[1] = left
			plans := []*batchnorm.Plan{newPlan(t, s), newPlan(t, s, batchnorm.WithSingleValue())}
			for k, p := range plans {
				for _, op := range masked() {
					args := op.args(s)
					field(args, "Mask").Set(reflect.ValueOf(batchnorm.Mask{Lengths: lengths}))
					training := slices.Contains(trainingOperations, op.name)
					if training && left == 1 && k == 0 {
						op.expectRejected(t, p, args, batchnorm.ErrTooFewValues, fmt.Sprint(left), fmt.Sprint(s.PerChannel()), "2", s.String())
					} else if err := op.call(p, args); err != nil {
						t.Errorf("%v, %s, with %d valid: %v", s, op.name, left, err)
					}
				}
			}
		}
	}
}

func TestSplitErrors(t *testing.T) {
	p := newPlan(t, someShape)
	c := someShape.Channels
	two := func(n int) [2][]float64 { return [2][]float64{make([]float64, n), make([]float64, n)} }
	expect := func(err, kind error, words ...string) {
		t.Helper()
		if !errors.Is(err, kind) {
			t.Errorf("error is %v, want one that is %q", err, kind)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not mention %q", err, w)
			}
		}
	}
	expect(p.Moments(batchnorm.MomentsArgs{X: make([]float32, someShape.Len())}), batchnorm.ErrMissing, "moments")
	expect(p.GradSums(batchnorm.GradSumsArgs{}), batchnorm.ErrMissing, "sums")
	expect(batchnorm.MergeMoments(nil, nil), batchnorm.ErrMissing, "dst")
	expect(batchnorm.MergeGradSums(nil, nil), batchnorm.ErrMissing, "dst")

	// Both merges, by way of slices and a count.
	type part struct {
		v     [2][]float64
		count int
	}
	for name, merge := range map[string]func(dst *part, parts []part) error{
		"mean m2": func(dst *part, parts []part) error {
			m := batchnorm.Moments{Count: dst.count, Mean: dst.v[0], M2: dst.v[1]}
			var list []batchnorm.Moments
			for _, p := range parts {
				list = append(list, batchnorm.Moments{Count: p.count, Mean: p.v[0], M2: p.v[1]})
			}
			err := batchnorm.MergeMoments(&m, list)
			dst.count = m.Count
			return err
		},
		"g gd": func(dst *part, parts []part) error {
			m := batchnorm.GradSums{Count: dst.count, G: dst.v[0], GD: dst.v[1]}
			var list []batchnorm.GradSums
			for _, p := range parts {
				list = append(list, batchnorm.GradSums{Count: p.count, G: p.v[0], GD: p.v[1]})
			}
			err := batchnorm.MergeGradSums(&m, list)
			dst.count = m.Count
			return err
		},
	} {
		first, second, _ := strings.Cut(name, " ")
		arena := make([]float64, 20)
		for _, c := range []struct {
			dst   [2][]float64
			parts []part
			kind  error
			words []string
		}{
			{[2][]float64{arena[:3], arena[5:9]}, nil, batchnorm.ErrLength, []string{first, second, "3", "4"}},
			{two(4), []part{{two(4), 1}, {two(3), 1}}, batchnorm.ErrLength, []string{first + " of a part, part 1", "3", "4"}},
			{two(4), []part{{[2][]float64{arena[:4], arena[:5]}, 1}}, batchnorm.ErrLength, []string{second + " of a part, part 0", "5", "4"}},
			{two(4), []part{{two(4), 1}, {two(4), -2}}, batchnorm.ErrLength, []string{"part 1", "-2"}},
			{two(4), []part{{two(4), 5}, {two(4), math.MaxInt}}, batchnorm.ErrLength, []string{"part 1", fmt.Sprint(math.MaxInt), "5"}},
			{[2][]float64{arena[:4], arena[3:7]}, nil, batchnorm.ErrAlias, []string{first, second, "8 bytes"}},
			{[2][]float64{arena[:4], arena[:4]}, nil, batchnorm.ErrAlias, []string{first, second, "4"}},
			{[2][]float64{arena[:4], arena[4:8]}, []part{{[2][]float64{arena[4:8], arena[:4]}, 1}}, batchnorm.ErrAlias, []string{first, second, "4"}},
			{[2][]float64{arena[:4], arena[4:8]}, []part{{[2][]float64{arena[10:14], arena[5:9]}, 1}}, batchnorm.ErrAlias, []string{second, "24 bytes"}},
		} {
			for i := range arena {
				arena[i] = float64(i)
			}
			dst := part{c.dst, 77}
			expect(merge(&dst, c.parts), c.kind, c.words...)
			for i, v := range arena {
				if v != float64(i) || dst.count != 77 {
					t.Errorf("%s: written although the call failed", name)
					break
				}
			}
		}
	}

	x, channel, tensor := make([]float64, c), make([]float64, c), make([]float32, someShape.Len())
	for _, n := range []int{-1, 1} {
		expect(p.Statistics(batchnorm.StatisticsArgs{Moments: batchnorm.Moments{Count: n, Mean: x, M2: channel}}),
			batchnorm.ErrTooFewValues, fmt.Sprint(n), "2")
		expect(p.InputGrad(batchnorm.InputGradArgs{DY: tensor, X: tensor, Mean: x, InvStd: x, Sums: batchnorm.GradSums{Count: n, G: x, GD: channel}}),
			batchnorm.ErrTooFewValues, fmt.Sprint(n), "2")
	}
	single := newPlan(t, someShape, batchnorm.WithSingleValue())
	noError(t, single.Statistics(batchnorm.StatisticsArgs{Moments: batchnorm.Moments{Count: 1, Mean: x, M2: channel}}))
	expect(single.Statistics(batchnorm.StatisticsArgs{Moments: batchnorm.Moments{Count: -1, Mean: x, M2: channel}}), batchnorm.ErrTooFewValues,
		"-1", "1")
	expect(p.InputGrad(batchnorm.InputGradArgs{DY: tensor, X: tensor, Mean: x, InvStd: x, Sums: batchnorm.GradSums{Count: 0, G: x, GD: channel}}),
		batchnorm.ErrLength, "0", "18")
	expect(p.Statistics(batchnorm.StatisticsArgs{Moments: batchnorm.Moments{Count: 2, Mean: x, M2: channel},
		Momentum: batchnorm.NewWeight(2)}), batchnorm.ErrMomentum, "2")
	expect(p.InputGrad(batchnorm.InputGradArgs{DY: tensor, X: tensor, Mean: x, InvStd: x, Sums: batchnorm.GradSums{Count: 17, G: x, GD: channel}}),
		batchnorm.ErrLength, "17", "18")
}

func TestGhostErrors(t *testing.T) {
	for _, c := range []struct {
		shape batchnorm.Shape
		ghost batchnorm.GhostBatches
		kind  error
		words []string
	}{
		{batchnorm.Shape{3, 0, 1}, batchnorm.GhostBatches{3, 1}, batchnorm.ErrShape, []string{"3x0x1"}},
		{someShape, batchnorm.GhostBatches{2, 1}, batchnorm.ErrGhost, []string{"2", "3", someShape.String()}},
		{someShape, batchnorm.GhostBatches{0, 1}, batchnorm.ErrGhost, []string{"0", "3", someShape.String()}},
		{someShape, batchnorm.GhostBatches{-3, 1}, batchnorm.ErrGhost, []string{"-3", "3"}},
		{someShape, batchnorm.GhostBatches{3, 0}, batchnorm.ErrGhost, []string{"is 0", "at least 1"}},
		{someShape, batchnorm.GhostBatches{3, -1}, batchnorm.ErrGhost, []string{"is -1", "at least 1"}},
		{batchnorm.Shape{0, 4, 6}, batchnorm.GhostBatches{1, 1}, batchnorm.ErrGhost, []string{"0x4x6"}},
		{batchnorm.Shape{0, 4, 6}, batchnorm.GhostBatches{-1, 1}, batchnorm.ErrGhost, []string{"-1", "0x4x6"}},
		{batchnorm.Shape{0, 4, 6}, batchnorm.GhostBatches{0, 0}, batchnorm.ErrGhost, []string{"0 samples"}},
		{batchnorm.Shape{9, 4, 1}, batchnorm.GhostBatches{9, 1}, batchnorm.ErrTooFewValues, []string{"1 of 9", "9x4x1"}},
		{batchnorm.Shape{9, 4, 1}, batchnorm.GhostBatches{9, 4}, batchnorm.ErrTooFewValues, []string{"1 of 9", "9x4x1"}},
	} {
		p, err := batchnorm.NewGhostPlan(c.shape, c.ghost)
		if p != nil || !errors.Is(err, c.kind) {
			t.Errorf("NewGhostPlan(%v, %v) returns %v, %v, want %v", c.shape, c.ghost, p, err, c.kind)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not mention %q", err, w)
			}
		}
	}
	if _, err := batchnorm.NewGhostPlan(someShape, batchnorm.GhostBatches{3, 2}, nil); !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("error is %v, want ErrOption", err)
	}
	if _, err := batchnorm.NewGhostPlan(batchnorm.Shape{9, 4, 1}, batchnorm.GhostBatches{9, 4}, batchnorm.WithSingleValue()); err != nil {
		t.Error(err)
	}
}

// The calls of a GhostPlan refuse the arguments that those of a Plan refuse.
func TestGhostCallErrors(t *testing.T) {
	s := batchnorm.Shape{5, 4, 6}
	p, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{5, 2})
	noError(t, err)
	if p.Batches() != 3 || p.Shape() != s {
		t.Errorf("the plan has %d sub-batches of shape %v, want 3 of %v", p.Batches(), p.Shape(), s)
	}
	forward, backward := operations[0], operations[2]
	calls := map[string]func(p *batchnorm.GhostPlan, args any) error{
		"Forward":  func(p *batchnorm.GhostPlan, args any) error { return p.Forward(*args.(*batchnorm.ForwardArgs)) },
		"Backward": func(p *batchnorm.GhostPlan, args any) error { return p.Backward(*args.(*batchnorm.BackwardArgs)) },
	}
	for _, op := range []operation{forward, backward} {
		call := calls[op.name]
		op.call = func(_ *batchnorm.Plan, args any) error { return call(p, args) }
		args := func() any {
			a := op.args(s)
			field(a, "Mean").Set(reflect.ValueOf(make([]float64, 3*4)))
			field(a, "InvStd").Set(reflect.ValueOf(slices.Repeat([]float64{1}, 3*4)))
			if op.name == "Forward" {
				field(a, "BatchMean").Set(reflect.ValueOf(make([]float32, 3*4)))
				field(a, "BatchVar").Set(reflect.ValueOf(make([]float32, 3*4)))
			}
			return a
		}
		noError(t, op.call(nil, args()))
		for _, name := range op.names() {
			a := args()
			v := field(a, name)
			n := v.Len()
			v.Set(v.Slice(0, n-1))
			op.expectRejected(t, nil, a, batchnorm.ErrLength, nameInMessages(name), fmt.Sprint(n-1), fmt.Sprint(n))
			if slices.Contains(op.required, name) {
				v.SetZero()
				op.expectRejected(t, nil, a, batchnorm.ErrMissing, nameInMessages(name), fmt.Sprint(n))
			}
		}
		a := args()
		output := "Y"
		if op.name == "Backward" {
			output = "DX"
		}
		buffer := make([]float32, s.Len()+1)
		field(a, "X").Set(reflect.ValueOf(buffer[1:]))
		field(a, output).Set(reflect.ValueOf(buffer[:s.Len()]))
		op.expectRejected(t, nil, a, batchnorm.ErrAlias, "x", nameInMessages(output))

		for _, m := range []struct {
			mask  batchnorm.Mask
			kind  error
			words []string
		}{
			{batchnorm.Mask{Lengths: []int{6, 6, 6, 7, 6}}, batchnorm.ErrMask, []string{"length 3", "7"}},
			{batchnorm.Mask{Lengths: []int{6, 6, 6}}, batchnorm.ErrLength, []string{"3", "5"}},
			{batchnorm.Mask{Lengths: []int{6, 6, 1, 0, 6}}, batchnorm.ErrTooFewValues, []string{"1 of 12", "batch 1 of 3", "2"}},
			{batchnorm.Mask{Lengths: []int{6, 6, 0, 0, 1}}, batchnorm.ErrTooFewValues, []string{"1 of 6", "batch 2 of 3", "2"}},
		} {
			a := args()
			field(a, "Mask").Set(reflect.ValueOf(m.mask))
			op.expectRejected(t, nil, a, m.kind, m.words...)
		}
		for _, none := range []*batchnorm.GhostPlan{nil, {}} {
			op.call = func(_ *batchnorm.Plan, args any) error { return call(none, args) }
			op.expectRejected(t, nil, args(), batchnorm.ErrNilPlan)
		}
	}
	a := *forward.args(s).(*batchnorm.ForwardArgs)
	a.Mean, a.InvStd, a.BatchMean, a.BatchVar, a.Momentum = nil, nil, nil, nil, batchnorm.NewWeight(-1)
	if err := p.Forward(a); !errors.Is(err, batchnorm.ErrMomentum) {
		t.Errorf("error is %v, want ErrMomentum", err)
	}

	// Lengths of samples that have several rows.
	last, err := batchnorm.NewGhostPlan(batchnorm.Shape{12, 2, 1}, batchnorm.GhostBatches{3, 1})
	noError(t, err)
	b := *forward.args(batchnorm.Shape{12, 2, 1}).(*batchnorm.ForwardArgs)
	b.Mean, b.InvStd, b.BatchMean, b.BatchVar = nil, nil, nil, nil
	b.Mask.Lengths = []int{6, 3}
	if err := last.Forward(b); !errors.Is(err, batchnorm.ErrLength) || !strings.Contains(err.Error(), "2 elements") {
		t.Errorf("error is %v, want ErrLength with the 2 lengths", err)
	}
}

func TestInvertErrors(t *testing.T) {
	op := operations[4]
	for _, act := range []batchnorm.Activation{batchnorm.ReLU, batchnorm.LeakyReLU(0), batchnorm.LeakyReLU(-0.5), batchnorm.LeakyReLU(0x1p-41),
		batchnorm.ELU(0x1p-41), batchnorm.GELU, batchnorm.Tanh, batchnorm.Clip(-1, 1)} {
		args := op.args(someShape)
		op.expectRejected(t, newPlan(t, someShape, batchnorm.WithActivation(act)), args, batchnorm.ErrInvert, act.String())
	}
	for _, act := range invertible {
		noError(t, op.call(newPlan(t, someShape, batchnorm.WithActivation(act)), op.args(someShape)))
	}
	p := newPlan(t, someShape)
	for _, c := range []struct {
		gamma, beta []float32
		words       []string // nil: good
	}{
		{[]float32{1, 2, 0, 3}, nil, []string{"gamma[2]", "0"}},
		{[]float32{1, 2, 0x1p-41, 3}, nil, []string{"gamma[2]"}},
		{[]float32{1, -0x1p-40, 0x1p-40, 3}, nil, nil},
		{[]float32{1, float32(math.NaN()), 1, 3}, nil, []string{"gamma[1]", "NaN"}},
		{[]float32{1, 1, 1, float32(math.Inf(-1))}, nil, []string{"gamma[3]", "-Inf"}},
		{[]float32{1, 1, 1, -1}, []float32{1024, -1024, 0, 1025}, []string{"gamma[3]", "-1"}},
		{[]float32{1, 1, 1, 1}, []float32{1024, -1024, 0, 1024}, nil},
		{[]float32{1, 1, 1, 1}, []float32{0, float32(math.NaN()), 0, 0}, []string{"gamma[1]", "NaN"}},
		{nil, []float32{1024, -1024, 0, 1}, nil},
		{nil, []float32{1024, -1024.5, 0, 1}, []string{"beta[1]", "-1024.5", "1024"}},
		{nil, []float32{0, 0, 0, float32(math.NaN())}, []string{"beta[3]", "NaN"}},
	} {
		args := op.args(someShape)
		field(args, "Gamma").Set(reflect.ValueOf(c.gamma))
		field(args, "Beta").Set(reflect.ValueOf(c.beta))
		if c.words == nil {
			noError(t, op.call(p, args))
			continue
		}
		before := op.contents(args)
		err := op.call(p, args)
		if !errors.Is(err, batchnorm.ErrInvert) {
			t.Errorf("gamma %v, beta %v: error is %v, want ErrInvert", c.gamma, c.beta, err)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not mention %q", err, w)
			}
		}
		for _, name := range []string{"DX", "DResidual", "DGamma", "DBeta"} {
			if !reflect.DeepEqual(op.contents(args)[name], before[name]) {
				t.Errorf("%s was written although the call failed with %v", name, err)
			}
		}
	}
}

func TestRenormErrors(t *testing.T) {
	op := operations[5]
	p := newPlan(t, someShape)
	for _, c := range []struct {
		rmax, dmax float64
		words      []string
	}{
		{0.99, 1, []string{"rmax", "0.99"}}, {math.NaN(), 1, []string{"rmax", "NaN"}}, {-3, 1, []string{"rmax", "-3"}},
		{1, -0.5, []string{"dmax", "-0.5"}}, {1, math.NaN(), []string{"dmax", "NaN"}},
	} {
		args := op.args(someShape)
		args.(*batchnorm.RenormForwardArgs).RMax, args.(*batchnorm.RenormForwardArgs).DMax = c.rmax, c.dmax
		op.expectRejected(t, p, args, batchnorm.ErrRenorm, c.words...)
	}
	args := op.args(someShape)
	args.(*batchnorm.RenormForwardArgs).Momentum = batchnorm.NewWeight(2)
	op.expectRejected(t, p, args, batchnorm.ErrMomentum, "2")
}

// One value per channel, and an empty batch, in every mode.
func TestModesOfFewValues(t *testing.T) {
	for _, op := range operations {
		one := batchnorm.Shape{1, 3, 1}
		if slices.Contains(trainingOperations, op.name) {
			op.expectRejected(t, newPlan(t, one), op.args(one), batchnorm.ErrTooFewValues, "1", "2", one.String())
		} else {
			noError(t, op.call(newPlan(t, one), op.args(one)))
		}
		noError(t, op.call(newPlan(t, one, batchnorm.WithSingleValue()), op.args(one)))
		for _, empty := range []batchnorm.Shape{{0, 3, 1}, {0, 3, 5}, {0, 1, 5}} {
			args := op.args(empty)
			noError(t, op.call(newPlan(t, empty), args))
			if op.name == "FrozenBackward" || op.name == "BackwardFromY" || op.name == "RenormBackward" {
				zero := make([]float32, empty.Channels)
				expectBits(t, op.name+" dgamma", field(args, "DGamma").Interface().([]float32), zero)
				expectBits(t, op.name+" dbeta", field(args, "DBeta").Interface().([]float32), zero)
			}
		}
	}
}
