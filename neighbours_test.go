package batchnorm_test

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestOverflowBehindInfinite: a channel with NaN in x whose sum of gradients overflows has the same dbeta alone
// and behind channels with NaN in x: whether x or the gradients are looked at is decided for each channel.
func TestOverflowBehindInfinite(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 24, Inner: 1}, {Outer: 90, Channels: 24, Inner: 1}, {Outer: 4, Channels: 24, Inner: 40}} {
		for _, path := range batchnorm.Paths() {
			run := func(beside bool) float32 {
				p := newProblem(s, hasGammaBeta)
				at := make([]int, s.Channels)
				for i := range p.x {
					c, n := channelOf(s, i), s.PerChannel()
					k := at[c]
					at[c]++
					if k == 1 && (c == 12 || beside && c >= 8) {
						p.x[i] = float32(math.NaN())
					}
					if c == 12 && k > 0 {
						p.dy[i] = float32(math.Copysign(3e38, float64(n/2-k)+0.5))
					}
				}
				dbeta := make([]float32, s.Channels)
				noError(t, newPlan(t, s, batchnorm.WithPath(path)).FrozenBackward(batchnorm.FrozenBackwardArgs{DY: p.dy, X: p.x, Mean: p.mean, Var: p.vari,
					DX: make([]float32, s.Len()), DGamma: make([]float32, s.Channels), DBeta: dbeta}))
				return dbeta[12]
			}
			if alone, beside := run(false), run(true); !sameBits(alone, beside) || alone-alone != 0 {
				t.Errorf("%v, %v: dbeta is %g alone, and %g beside others", s, path, alone, beside)
			}
		}
	}
}

// TestInfiniteGradientOfWide: an infinite gradient in a channel whose values are scaled makes dbeta infinite and
// dgamma NaN, as in other channels.
func TestInfiniteGradientOfWide(t *testing.T) {
	t.Parallel()
	inf := float32(math.Inf(1))
	x := []float32{3.1386497, -0.4992246, -1.7225182, -2.842221, -4.744463, -1.784308}
	dy := []float32{-3.87, -0.75, -inf, -5.55, inf, -inf} // the gate of the fifth is closed
	for _, scale := range []float32{1, 1e30, 1e33} {
		for _, channels := range []int{1, 16, 20, -16} { // negative: all x are positive
			offset := float32(0)
			if channels < 0 {
				offset, channels = 100, -channels
			}
			p := newProblem(batchnorm.Shape{Outer: len(x), Channels: channels, Inner: 1}, hasReLU|hasGammaBeta)
			c := channels / 2
			for r := range x {
				p.x[r*channels+c], p.dy[r*channels+c] = (x[r]+offset)*scale, dy[r]
			}
			p.gamma[c], p.beta[c] = 1, 0.3
			r := plain(batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
			if dgamma := r.dgamma[c]; r.dbeta[c] != -inf || dgamma == dgamma {
				t.Errorf("%d channels, x * %g: dbeta is %g and dgamma %g", channels, scale, r.dbeta[c], dgamma)
			}
		}
	}
}

// TestHugeDeviations: a first value that is far from the mean, but not huge itself, doesn't tell of huge values,
// whatever lies beside it, and neither does a 0.
func TestHugeDeviations(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 40, Channels: 24, Inner: 1}, {Outer: 40, Channels: 20, Inner: 1},
		{Outer: 300, Channels: 20, Inner: 1}} {
		for _, first := range []float32{7e29, 0} {
			base := newProblem(s, hasGammaBeta)
			for c := range base.gamma {
				base.gamma[c] = 4096
			}
			sampled := batchnorm.Sampled(s)
			run := func(beside bool) results {
				p := base
				p.x = gen.Normal(3, s.Len(), 2e30, 2e29)
				for i := range p.x {
					c, k := i%s.Channels, i/s.Channels
					switch {
					case beside && (c == 13 || c == 3):
						p.x[i] = 1e35 * base.x[i]
					case slices.Contains(sampled[:], k) && (first == 0 || k == 0):
						p.x[i] = first
					case first == 0 && k > 0 && slices.Contains(sampled[:], k-1):
						p.x[i] = 5
					}
				}
				return plain(batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone)
			}
			alone, beside := run(false), run(true)
			for _, c := range []int{0, 12, 18} {
				for i := c; i < s.Len(); i += s.Channels {
					if !sameBits(alone.dx[i], beside.dx[i]) {
						t.Fatalf("%v, first %g: dx[%d] is %g alone, and %g beside others", s, first, i, alone.dx[i], beside.dx[i])
					}
				}
				if !sameBits(alone.dgamma[c], beside.dgamma[c]) {
					t.Errorf("%v, first %g: dgamma[%d] is %g alone, and %g beside others", s, first, c, alone.dgamma[c], beside.dgamma[c])
				}
			}
		}
	}
}

// TestGatedInfinity: an infinite gradient where ReLU closes, or in padding, has no effect on sums that overflow
// besides: these are taken again. The first channels have other gates, and usual gradients.
func TestGatedInfinity(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 24, Inner: 1}, {Outer: 90, Channels: 24, Inner: 1}, {Outer: 3, Channels: 24, Inner: 40}} {
		for _, masked := range []bool{false, true} {
			act, mask := batchnorm.ReLU, batchnorm.Mask{}
			if masked {
				act = batchnorm.Identity
				mask.Valid = slices.Repeat([]bool{true}, s.PerChannel())
				mask.Valid[0] = false
			}
			for _, path := range batchnorm.Paths() {
				x, dy, at, beta := make([]float32, s.Len()), make([]float32, s.Len()), make([]int, s.Channels), make([]float32, s.Channels)
				for i := range x {
					c := channelOf(s, i)
					k, n := at[c], s.PerChannel()
					at[c]++
					x[i] = 1
					switch {
					case c < 16:
						dy[i], beta[c] = 1, 10
					case k == 0:
						x[i], dy[i] = -1, float32(math.Inf(1))
					case k == 1: // which is sampled, behind padding
						dy[i] = 1
					default: // the halves cancel
						dy[i] = float32(math.Copysign(3e38, float64((n-2)/2-(k-2))-0.5))
					}
				}
				dgamma, dbeta := make([]float32, s.Channels), make([]float32, s.Channels)
				noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act)).FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x,
					Mean: make([]float32, s.Channels), Var: slices.Repeat([]float32{1}, s.Channels), Beta: beta, Mask: mask,
					DX: make([]float32, s.Len()), DGamma: dgamma, DBeta: dbeta}))
				for c, v := range dbeta {
					if v-v != 0 {
						t.Fatalf("%v, %v, %v: dbeta[%d] is %g", s, act, path, c, v)
					}
				}
			}
		}
	}
}

// TestInfiniteSums: the sums of infinite gradients are written, in pieces as in a whole pass.
func TestInfiniteSums(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 24, Inner: 1}, {Outer: 3, Channels: 24, Inner: 40}} {
		p := newProblem(s, hasGammaBeta)
		for i := range p.dy {
			if i/s.Inner/s.Channels == 2 {
				p.dy[i] = float32(math.Inf(1))
			}
		}
		expectSame(t, "pieces", split([]int{s.Outer}, batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone),
			plain(batchnorm.Mask{}).same(t, p, waysOfModes(), slices.Clone))
	}
}
