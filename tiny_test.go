package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// exception makes channel c of a problem with tiny gradients one that may not be scaled.
// at are two elements of the channel that are not among the sample.
type exception struct {
	name   string
	again  bool // with identity: its sums are taken again
	change func(p *problem, c int, at [2]int)
}

var exceptions = []exception{
	{"large", true, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = 1e30 }},
	{"middling", false, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = 1e-20 }},
	{"large ones cancel", true, func(p *problem, _ int, at [2]int) { p.dy[at[0]], p.dy[at[1]] = 3e38, -3e38 }},
	{"middling ones cancel", false, func(p *problem, _ int, at [2]int) {
		p.dy[at[0]], p.dy[at[1]], p.x[at[1]] = 1e-10, -1e-10, p.x[at[0]]
	}},
	{"NaN", true, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = float32(math.NaN()) }},
	{"infinite", true, func(p *problem, _ int, at [2]int) { p.dy[at[0]] = float32(math.Inf(-1)) }},
	{"NaN in x", false, func(p *problem, _ int, at [2]int) { p.x[at[0]] = float32(math.NaN()) }},
	{"NaN in x, large dy", true, func(p *problem, _ int, at [2]int) { p.x[at[0]], p.dy[at[1]] = float32(math.NaN()), 1e30 }},
	{"zeros", false, func(p *problem, c int, _ [2]int) { p.scale(p.dy, c, 0) }},
	{"usual", false, func(p *problem, c int, _ [2]int) { p.scale(p.dy, c, 1) }},
	{"large gamma", true, func(p *problem, c int, _ [2]int) { p.gamma[c] = 3e38 }},
	{"large x", true, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 1e30) }},
	{"subnormal x", false, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 1e-39) }},
	{"constant x", false, func(p *problem, c int, _ [2]int) { p.scale(p.x, c, 0) }},
}

// scale scales a channel of a tensor.
func (p *problem) scale(s []float32, c int, by float64) {
	for i := range s {
		if channelOf(p.shape, i) == c {
			s[i] = float32(float64(s[i]) * by)
		}
	}
}

// TestTinyGradientsBeside: gradients of 1e-38 are scaled, and channels of other kinds are
// not harmed, nor do they change the bits of others: by every way and in every mode, and
// within the bounds.
func TestTinyGradientsBeside(t *testing.T) {
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 3, Channels: 40, Inner: 9}, {Outer: 90, Channels: 24, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}, {Outer: 700, Channels: 3, Inner: 1}} {
		for i, e := range exceptions {
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
				if testing.Short() && (i+s.Channels)%3 != int(act.String()[0])%3 {
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%v", s, e.name, act), func(t *testing.T) {
					usual := gen.Uniform(2, s.Len(), -1, 1)
					p := problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
						x: gen.Normal(1, s.Len(), 0.3, 1), dy: make([]float32, s.Len()),
						gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), beta: gen.Uniform(4, s.Channels, 2, 3),
						mean: gen.Uniform(5, s.Channels, -1, 1), vari: gen.Uniform(6, s.Channels, 0.5, 1)}
					if i%2 == 0 {
						p.residual = gen.Uniform(7, s.Len(), 0, 1)
					}
					for k, v := range usual {
						p.dy[k] = float32(float64(v) * 1e-38)
					}
					without := plain(batchnorm.Mask{}).once(t, p)
					c := s.Channels / 2
					step := batchnorm.SampleStep(s.Len(), s.Channels)
					var at []int
					for k := range p.dy {
						if channelOf(s, k) == c && k%step != 0 {
							at = append(at, k)
						}
						if e.name == "usual" && channelOf(s, k) == c && k%step != 0 {
							p.dy[k] = usual[k]
						}
					}
					if len(at) < 2 {
						t.Fatalf("all elements of channel %d are in the sample", c)
					}
					e.change(&p, c, [2]int{at[len(at)/3], at[len(at)/2]})

					ways := waysOfModes()
					r := p.checkSame(t, ways, slices.Clone)
					if p.finite() && e.name != "large gamma" {
						p.checkBounds(t, r)
					}
					// The other channels have the bits that they have without it.
					for k, v := range r.dx {
						if channelOf(s, k) != c && !sameBits(v, without.dx[k]) {
							t.Fatalf("dx[%d] of another channel is %g, want %g", k, v, without.dx[k])
						}
					}
					for k := range s.Channels {
						if k != c && (!sameBits(r.dgamma[k], without.dgamma[k]) || !sameBits(r.dbeta[k], without.dbeta[k])) {
							t.Fatalf("dgamma[%d] and dbeta[%[1]d] of another channel are %g and %g, want %g and %g",
								k, r.dgamma[k], r.dbeta[k], without.dgamma[k], without.dbeta[k])
						}
					}
					expectSame(t, "split", split([]int{s.Outer}, batchnorm.Mask{}).same(t, p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, p))
					frozen(batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: (s.Outer + 1) / 2}, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					mask := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
					for k := range mask.Valid {
						mask.Valid[k] = k%4 != 3
					}
					plain(mask).same(t, p, ways, slices.Clone)

					before := batchnorm.Rescued()
					plain(batchnorm.Mask{}).once(t, p)
					if n := batchnorm.Rescued() - before; act == batchnorm.Identity && e.again != (n > 0) {
						t.Errorf("the sums of %d channels are taken again", n)
					}
				})
			}
		}
	}
}
