package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// One part is the whole by the bits; several are close to it.
func TestSplit(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant))
		if variant%3 == 1 { // whose parts have gradients to store
			p.act = batchnorm.SiLU
		}
		whole := plain(batchnorm.Mask{}).once(t, p)
		expectSame(t, fmt.Sprint(s, " as one part"), split([]int{s.Outer}, batchnorm.Mask{}).once(t, p), whole)
		for _, parts := range []int{2, 3, 7} {
			if parts > s.Outer {
				continue
			}
			var ends []int // unequal: each about twice the one before
			for i := 1; i <= parts; i++ {
				ends = append(ends, max(i, s.Outer*(1<<i-1)/(1<<parts-1)))
			}
			ends[parts-1] = s.Outer
			r := split(ends, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
			if features(variant)&hasSpecials == 0 {
				p.checkBounds(t, r)
				p.checkParts(t, r, whole)
			}
		}
	})
}

// checkParts compares a batch in parts with the whole, within the bound that the
// documentation of MergeMoments states.
func (p problem) checkParts(t *testing.T, r, whole results) {
	t.Helper()
	for c := range r.mean {
		std := 1 / whole.invstd[c]
		if d := math.Abs(r.mean[c]-whole.mean[c]) / std; !(d <= 1e-6) {
			t.Fatalf("%v: mean[%d] is %v, of the whole batch %v: %.3g standard deviations off", p.shape, c, r.mean[c], whole.mean[c], d)
		}
		if d := math.Abs(r.invstd[c]/whole.invstd[c] - 1); !(d <= 1e-6) {
			t.Fatalf("%v: invstd[%d] is %v, of the whole batch %v: %.3g off", p.shape, c, r.invstd[c], whole.invstd[c], d)
		}
	}
}

// Parts that are segments give the bits of the whole batch.
func TestSplitSegments(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		batchnorm.Shape
		segment int
	}{
		{batchnorm.Shape{Outer: 9, Channels: 2, Inner: 16384}, 4},
		{batchnorm.Shape{Outer: 70, Channels: 3, Inner: 2048}, 32},
		{batchnorm.Shape{Outer: 300, Channels: 2, Inner: 512}, 128},
		{batchnorm.Shape{Outer: 4500, Channels: 2, Inner: 32}, 2048},
		{batchnorm.Shape{Outer: 1100, Channels: 128, Inner: 1}, 512},
		{batchnorm.Shape{Outer: 300, Channels: 600, Inner: 1}, 128},
	} {
		p := newProblem(s.Shape, hasReLU|hasResidual|hasGammaBeta)
		var ends []int
		for end := s.segment; end < s.Outer; end += s.segment {
			ends = append(ends, end)
		}
		expectSame(t, s.String(), split(append(ends, s.Outer), batchnorm.Mask{}).once(t, p), plain(batchnorm.Mask{}).once(t, p))
	}
}

// A part may be empty, or padding only.
func TestSplitEmptyPart(t *testing.T) {
	for _, s := range []batchnorm.Shape{{6, 3, 35}, {66, 3, 1}} {
		p := newProblem(s, hasReLU|hasResidual|hasGammaBeta)
		want := split([]int{s.Outer / 2, s.Outer}, batchnorm.Mask{}).once(t, p)
		got := split([]int{0, s.Outer / 2, s.Outer / 2, s.Outer, s.Outer}, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
		expectSame(t, s.String(), got, want)

		mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
		for i := range s.PerChannel() / 2 {
			mask.Valid[i] = true
		}
		p = p.spoilt(mask)
		short, at := p.compact(mask)
		got = split([]int{s.Outer / 2, s.Outer}, mask).same(t, p, waysOfModes(), slices.Clone)
		if s.Inner == 1 {
			expectSame(t, s.String(), got, plain(batchnorm.Mask{}).once(t, short).expanded(s.Len(), at))
		}
		for i, y := range got.y[s.Len()/2:] {
			if y != 0 || got.dx[s.Len()/2+i] != 0 {
				t.Fatalf("%v: y[%d] is %g and dx %g in padding, want 0", s, i, y, got.dx[s.Len()/2+i])
			}
		}
	}
}

// TestSplitZeroGradients: where dy is 0 in a part of a batch, dx there has the digits that it has in the
// whole batch, whatever its constants are.
func TestSplitZeroGradients(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 40, Channels: 24, Inner: 1}, {Outer: 4, Channels: 5, Inner: 60}} {
		for _, k := range []struct{ x, mean, dy float64 }{{1e34, 1e34, 1}, {1e31, 1e31, 1e-25}, {1e10, 0, 1e-32}, {1e25, 0, 1e-20},
			{1, 0, 1e-37}, {1, 0, 1}} {
			p := problem{shape: s, ops: forward | backward, epsilon: batchnorm.DefaultEpsilon,
				x: gen.Normal(1, s.Len(), 0, 1), dy: gen.Normal(2, s.Len(), 0, 1),
				mean: make([]float32, s.Channels), vari: make([]float32, s.Channels)}
			p.gamma = slices.Repeat([]float32{1e30}, s.Channels)
			for i := range p.x {
				p.x[i] = float32(float64(p.x[i])*k.x + k.mean)
				p.dy[i] = float32(float64(p.dy[i]) * k.dy)
				if i >= s.Len()/2 {
					p.dy[i] = 0
				}
			}
			p.checkBounds(t, split([]int{s.Outer / 2, s.Outer}, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone))
		}
	}
}

// The order in which parts arrive is nothing to MergeMoments, as their places
// say which is which; and its result is the exact one but for a few roundings.
func TestMergeMoments(t *testing.T) {
	const parts, channels = 40, 3
	x := gen.Normal(1, 5000*channels, 1e6, 1)
	var moments []batchnorm.Moments
	rest := x
	for i := range parts {
		n := (1 + i*5%23) * channels
		if i == parts-1 {
			n = len(rest)
		}
		m := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
		plan := newPlan(t, batchnorm.Shape{Outer: n / channels, Channels: channels, Inner: 1})
		noError(t, plan.Moments(batchnorm.MomentsArgs{X: rest[:n], Moments: &m}))
		moments, rest = append(moments, m), rest[n:]
	}
	whole := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
	noError(t, batchnorm.MergeMoments(&whole, moments))
	if whole.Count != 5000 {
		t.Errorf("count is %d, want 5000", whole.Count)
	}
	ref := reference.Forward(reference.Problem{Outer: 5000, Channels: channels, Inner: 1, Activation: "identity", X: x})
	for c := range channels {
		if d := math.Abs(whole.Mean[c] - ref.Mean[c]); !(d < 1e-7) {
			t.Errorf("mean is %v, want %v", whole.Mean[c], ref.Mean[c])
		}
		if d := math.Abs(whole.M2[c]/5000/ref.Var[c] - 1); !(d < 1e-6) {
			t.Errorf("variance is %v, want %v", whole.M2[c]/5000, ref.Var[c])
		}
	}
}

// TestMergeOrder: parts are merged from the first to the last, so that the bits are
// those of one part after the other. For these parts any other order has others.
func TestMergeOrder(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	sums := []batchnorm.GradSums{
		{Count: 3, G: []float64{1e16, 1}, GD: []float64{1, -1e16}},
		{Count: 1, G: []float64{1, 1e16}, GD: []float64{1e16, 1}},
		{Count: 2, G: []float64{-1e16, -1e16}, GD: []float64{-1e16, 1e16}},
		{Count: 5, G: []float64{1, 1}, GD: []float64{1, 1}},
	}
	moments := []batchnorm.Moments{
		{Count: 0, Mean: []float64{nan, nan}, M2: []float64{nan, nan}}, // of no meaning
		{Count: 3, Mean: []float64{0.1, 7}, M2: []float64{1e16, 1}},
		{Count: 1, Mean: []float64{0.7, 1e9}, M2: []float64{1, 1e16}},
		{Count: 7, Mean: []float64{1e7, 0.3}, M2: []float64{3, 1}},
		{Count: 0, Mean: []float64{nan, nan}, M2: []float64{nan, nan}}, // of no meaning
		{Count: 5, Mean: []float64{-0.9, 1e-3}, M2: []float64{1, 1}},
	}
	// all is the merge of all parts, and steps that of the first two, then of that and
	// the third, and so on.
	differs := func(a, b [2][]float64) bool { return !slices.Equal(a[0], b[0]) || !slices.Equal(a[1], b[1]) }
	grad := func(parts []batchnorm.GradSums) (all, steps [2][]float64) {
		a := batchnorm.GradSums{G: make([]float64, 2), GD: make([]float64, 2)}
		b := batchnorm.GradSums{G: slices.Clone(parts[0].G), GD: slices.Clone(parts[0].GD), Count: parts[0].Count}
		noError(t, batchnorm.MergeGradSums(&a, parts))
		for _, p := range parts[1:] {
			noError(t, batchnorm.MergeGradSums(&b, []batchnorm.GradSums{b, p}))
		}
		if a.Count != 11 || b.Count != 11 {
			t.Errorf("the sums count %d values, step by step %d, want 11", a.Count, b.Count)
		}
		return [2][]float64{a.G, a.GD}, [2][]float64{b.G, b.GD}
	}
	merge := func(parts []batchnorm.Moments) (all, steps [2][]float64) {
		a := batchnorm.Moments{Mean: make([]float64, 2), M2: make([]float64, 2)}
		b := batchnorm.Moments{Mean: slices.Clone(parts[0].Mean), M2: slices.Clone(parts[0].M2), Count: parts[0].Count}
		noError(t, batchnorm.MergeMoments(&a, parts))
		for _, p := range parts[1:] {
			noError(t, batchnorm.MergeMoments(&b, []batchnorm.Moments{b, p}))
		}
		if a.Count != 16 || b.Count != 16 {
			t.Errorf("the moments count %d values, step by step %d, want 16", a.Count, b.Count)
		}
		return [2][]float64{a.Mean, a.M2}, [2][]float64{b.Mean, b.M2}
	}
	all, steps := grad(sums)
	if differs(all, steps) {
		t.Errorf("the sums of all parts are %v, step by step %v", all, steps)
	}
	slices.Reverse(sums)
	if reversed, _ := grad(sums); !differs(reversed, all) {
		t.Error("the parts do not tell their order")
	}
	// Where all means are equal, M2 is a sum: 1 + 1 before 1e16 counts, and behind it does not.
	ordered := []batchnorm.Moments{{Count: 1, Mean: []float64{0}, M2: []float64{1}}, {Count: 1, Mean: []float64{0}, M2: []float64{1}},
		{Count: 1, Mean: []float64{0}, M2: []float64{1e16}}}
	sum := batchnorm.Moments{Mean: make([]float64, 1), M2: make([]float64, 1)}
	noError(t, batchnorm.MergeMoments(&sum, ordered))
	if sum.M2[0] != 1e16+2 {
		t.Errorf("1 + 1 + 1e16 is %v, want 1e16 + 2", sum.M2[0])
	}
	all, steps = merge(moments)
	if all[0][0] != all[0][0] || differs(all, steps) {
		t.Errorf("the moments of all parts are %v, step by step %v", all, steps)
	}
	slices.Reverse(moments)
	if reversed, _ := merge(moments); !differs(reversed, all) {
		t.Error("the parts do not tell their order")
	}
}

// TestMomentsAreNotNegative: M2 is a sum of squares, also where it is made of sums whose squares vanish, or
// round.
func TestMomentsAreNotNegative(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 3, Channels: 4, Inner: 40}, {Outer: 70, Channels: 16, Inner: 1}, {Outer: 5, Channels: 24, Inner: 1}} {
		p := newPlan(t, s)
		out := batchnorm.Moments{Mean: make([]float64, s.Channels), M2: make([]float64, s.Channels)}
		for seed := range uint64(60) {
			x := gen.Normal(seed, s.Len(), 1, 1e-7)
			for i := range x {
				x[i] *= float32(math.Pow(10, -float64(seed%30)))
			}
			noError(t, p.Moments(batchnorm.MomentsArgs{X: x, Moments: &out}))
			if least := slices.Min(out.M2); least < 0 {
				t.Fatalf("%v, values of 1e-%d: M2 is %g", s, seed%30, least)
			}
		}
	}
}
