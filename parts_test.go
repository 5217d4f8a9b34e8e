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
