package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// sameAsPureGo requires the bits of pure Go of a mode, on the fastest path.
func sameAsPureGo(t *testing.T, what string, m mode, p problem, workers int) {
	t.Helper()
	got := m.run(t, stage{p, config{path: batchnorm.Paths()[0], workers: workers}, slices.Clone[[]float32]})
	if d := got.compare(m.once(t, p)); d != "" {
		t.Errorf("%s, %v, %s, %d workers: %s", what, p.shape, m.name, workers, d)
	}
}

// given is a backward pass under given statistics, whose sums take the place of the statistics.
func given(mean, invstd []float64, mask batchnorm.Mask) mode {
	return mode{"given", func(t testing.TB, s stage) (r results) {
		p, c := newPlan(t, s.shape, s.options()...), s.shape.Channels
		dy, x, gamma, beta := s.in(s.dy), s.in(s.x), s.in(s.gamma), s.in(s.beta)
		r.mean, r.invstd, r.dgamma, r.dbeta = make([]float64, c), make([]float64, c), make([]float32, c), make([]float32, c)
		noError(t, p.GradSums(batchnorm.GradSumsArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mask: mask, Mean: mean, InvStd: invstd,
			Sums: &batchnorm.GradSums{G: r.mean, GD: r.invstd}}))
		r.dx = make([]float32, len(x))
		noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mask: mask, Mean: mean, InvStd: invstd,
			DX: r.dx, DGamma: r.dgamma, DBeta: r.dbeta}))
		return r
	}}
}

// TestMaskedColumns: rows that a mask leaves apart, around the largest number that strips take, of few columns that are
// folded and of more. Padding is NaN, and so is the first row; in some channels values are NaN, or too large to be summed.
func TestMaskedColumns(t *testing.T) {
	t.Parallel()
	for _, channels := range []int{2, 3, 8, 16, 31, 63, 64, 85, 104, 121, 124, 126, 127, 128, 129, 255, 294} {
		for _, height := range []int{24, 63, 64, 65} {
			for _, extra := range []int{0, 1} {
				fold := 1
				if channels < 128 {
					fold = (128 + channels - 1) / channels
				}
				n := height*fold + extra*(fold-1)
				s := batchnorm.Shape{Outer: n + 3, Channels: channels, Inner: 1}
				p := newProblem(s, hasGammaBeta)
				mask, seen := batchnorm.Mask{Valid: make([]bool, s.Outer)}, 0
				for i := range mask.Valid {
					mask.Valid[i] = i != 0 && i != n/2+1 && i != n
					for c := range channels {
						switch x := &p.x[i*channels+c]; {
						case !mask.Valid[i]:
							*x, p.dy[i*channels+c] = float32(math.NaN()), float32(math.NaN())
						case c%5 == 1 && seen == c%2:
							*x = float32(math.NaN())
						case c%5 == 2 && seen > 0:
							*x = 3e38 * float32(1-seen%4/2*2)
						}
					}
					if mask.Valid[i] {
						seen++
					}
				}
				sameAsPureGo(t, "NaN padding", plain(mask), p, 1)
				for c, v := range plain(mask).once(t, p).invstd {
					if isNaN := c%5 == 1; isNaN != (v != v) {
						t.Fatalf("%v, %d rows: invstd of channel %d is %g", s, n, c, v)
					}
				}
			}
		}
	}
}

// TestInfiniteFirstRows: of all channels but one in 8 the first values are infinite. Of the others, the first half has
// usual values, and the second half an infinity or NaN in the last ones.
func TestInfiniteFirstRows(t *testing.T) {
	t.Parallel()
	inf := float32(math.Inf(1))
	for _, s := range []batchnorm.Shape{{Outer: 33, Channels: 1473, Inner: 1}, {Outer: 33, Channels: 2096, Inner: 1},
		{Outer: 16, Channels: 3255, Inner: 1}} {
		mean, invstd := make([]float64, s.Channels), slices.Repeat([]float64{1}, s.Channels)
		masked := batchnorm.Mask{Valid: make([]bool, s.Outer)}
		for i := range masked.Valid {
			masked.Valid[i] = i != 1
		}
		for _, f := range []features{hasGammaBeta, hasReLU} {
			for _, of := range []string{"x", "dy", "both"} {
				p := newProblem(s, f)
				for c := range s.Channels {
					last := (s.Outer-1)*s.Channels + c
					switch {
					case c%8 != 3:
						if of != "dy" {
							p.x[c] = inf
						}
						if of != "x" {
							p.dy[c] = inf
						}
					case c >= s.Channels/2 && of == "x":
						p.x[last] = inf * float32(c%3-1)
					case c >= s.Channels/2:
						p.dy[last] = inf * float32(c%3-1)
					}
				}
				for name, mask := range map[string]batchnorm.Mask{"all rows": {}, "masked": masked} {
					what := fmt.Sprintf("%s, infinite %s, features %d", name, of, f)
					sameAsPureGo(t, what, given(mean, invstd, mask), p, 1)
					sameAsPureGo(t, what, frozen(mask), p, 2)
				}
			}
		}
	}
}

// TestMaskedMarks: several workers take the sums of marked channels in float64, of rows that are copied. The race
// detector sees what they share.
func TestMaskedMarks(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 400, Channels: 512, Inner: 1}, {Outer: 700, Channels: 100, Inner: 1}} {
		p := newProblem(s, hasGammaBeta)
		mask := batchnorm.Mask{Valid: make([]bool, s.Outer)}
		for i := range mask.Valid {
			mask.Valid[i] = i*i%7 < 4
		}
		for i := range p.x {
			switch i % s.Channels % 8 {
			case 3:
				p.x[i] *= 1e20
			case 6:
				p.x[i] *= 1e-20
			}
		}
		sameAsPureGo(t, "marked", plain(mask), p, 4)
	}
}

// TestZeroSumsAlone: gradients that cancel in the sum for dbeta, and whose products vanish in float32, have the same
// dgamma and dx whatever the gradients of other channels.
func TestZeroSumsAlone(t *testing.T) {
	t.Parallel()
	const channel = 5
	for _, s := range []batchnorm.Shape{{Outer: 64, Channels: 16, Inner: 1}, {Outer: 61, Channels: 513, Inner: 1},
		{Outer: 4, Channels: 16, Inner: 64}} {
		for _, g := range []float32{1e-39, 1e-42, 3e-45} {
			for _, scale := range []float32{1e-7, 1e-3, 1} {
				p := newProblem(s, 0)
				p.epsilon = 1e-30
				at := func(k int) int { return (k/s.Inner*s.Channels+channel)*s.Inner + k%s.Inner }
				for k := range s.PerChannel() {
					p.x[at(k)] *= scale
					p.dy[at(k)] = 0
				}
				p.x[at(3)], p.x[at(7)], p.dy[at(3)], p.dy[at(7)] = 4.1*scale, 2.9*scale, g, -g
				before := plain(batchnorm.Mask{}).once(t, p)
				p.dy[2*s.Channels*s.Inner] = 1e-33 // of channel 0
				after := plain(batchnorm.Mask{}).once(t, p)
				sameAsPureGo(t, "tiny gradients", plain(batchnorm.Mask{}), p, 1)
				if got, want := after.dgamma[channel], before.dgamma[channel]; !sameBits(got, want) {
					t.Errorf("%v, gradients of %g, x * %g: dgamma is %g beside a gradient of 1e-33, otherwise %g", s, g, scale, got, want)
				}
				for k := range s.PerChannel() {
					if i := at(k); !sameBits(before.dx[i], after.dx[i]) {
						t.Fatalf("%v, gradients of %g, x * %g: dx[%d] is %g beside a gradient of 1e-33, otherwise %g",
							s, g, scale, i, after.dx[i], before.dx[i])
					}
				}
				want := float64(g) * float64(p.x[at(3)]-p.x[at(7)]) * before.invstd[channel]
				if d := math.Abs(float64(before.dgamma[channel]) - want); d > 1e-6*math.Abs(want)+0x1p-140 {
					t.Errorf("%v, gradients of %g, x * %g: dgamma is %g, want %g", s, g, scale, before.dgamma[channel], want)
				}
			}
		}
	}
}

// TestMaskedLooks: whether sums that are not finite can be others depends on values that are data, not on padding: gradients
// and inputs are the same without it.
func TestMaskedLooks(t *testing.T) {
	const channels, valid = 136, 9
	positions := []int{1, 2, 4, 5, 8, 9, 10, 13, 15} // the valid ones of 16
	nan, huge := float32(math.NaN()), float32(3e38)
	for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
		for _, path := range batchnorm.Paths() {
			x, dy := gen.Normal(1, valid*channels, 0.3, 1), gen.Uniform(2, valid*channels, 0.5, 1)
			for _, r := range []int{3, 4, 5, 6} { // sums of these overflow
				dy[r*channels+1], dy[r*channels+9] = huge, huge
				x[r*channels+2] = huge
			}
			dy[0*channels+3], dy[5*channels+4], dy[8*channels+9], x[7*channels+5], x[2] = nan, nan, nan, nan, nan
			mean, invstd := make([]float32, channels), gen.Uniform(3, channels, 0.5, 2)
			run := func(s batchnorm.Shape, x, dy []float32, m batchnorm.Mask) (dx, dgamma, dbeta []float32) {
				p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
				if err != nil {
					t.Fatal(err)
				}
				dx, dgamma, dbeta = make([]float32, s.Len()), make([]float32, channels), make([]float32, channels)
				err = p.FrozenBackward(batchnorm.FrozenBackwardArgs{X: x, DY: dy, Mean: mean, Var: invstd, Mask: m, DX: dx, DGamma: dgamma, DBeta: dbeta})
				if err != nil {
					t.Fatal(err)
				}
				return dx, dgamma, dbeta
			}
			s := batchnorm.Shape{16, channels, 1}
			m := batchnorm.Mask{Valid: make([]bool, s.Outer)}
			wholeX, wholeDY := gen.Normal(4, s.Len(), 0, 1), make([]float32, s.Len())
			for i := range wholeDY {
				wholeX[i], wholeDY[i] = nan, nan
			}
			for i, at := range positions {
				m.Valid[at] = true
				copy(wholeX[at*channels:][:channels], x[i*channels:])
				copy(wholeDY[at*channels:][:channels], dy[i*channels:])
			}
			wantDX, wantGamma, wantBeta := run(batchnorm.Shape{valid, channels, 1}, x, dy, batchnorm.Mask{})
			dx, dgamma, dbeta := run(s, wholeX, wholeDY, m)
			if !slices.EqualFunc(dgamma, wantGamma, sameBits) || !slices.EqualFunc(dbeta, wantBeta, sameBits) {
				t.Errorf("%v, %v: dgamma and dbeta are %g and %g, without padding %g and %g", act, path, dgamma, dbeta, wantGamma, wantBeta)
			}
			for i, at := range positions {
				if got, want := dx[at*channels:][:channels], wantDX[i*channels:][:channels]; !slices.EqualFunc(got, want, sameBits) {
					t.Errorf("%v, %v: dx at position %d is %g, without padding %g", act, path, at, got, want)
				}
			}
		}
	}
}
