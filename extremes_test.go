package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestNaNGradient: a gradient of NaN or infinity makes dgamma and dx of its channel NaN,
// and dbeta the sum of the gradients. It does so wherever the mean lies, for usual and
// unusual statistics, and with renormalization.
func TestNaNGradient(t *testing.T) {
	inf := math.Inf(1)
	for _, bad := range []float64{math.NaN(), inf, -inf} {
		for _, s := range layouts(300) {
			for _, scale := range []int{-130, -70, 0, 70, 120} {
				v := gen.Normal(1, 300, 0.3, 1)
				for i := range v {
					v[i] = float32(math.Ldexp(float64(v[i]), scale))
				}
				p := withChannel(s, v)
				clean := p
				p.dy = slices.Clone(p.dy)
				p.dy[s.Inner*(150/s.Inner*s.Channels+1)+150%s.Inner] = float32(bad)
				for _, m := range []mode{plain(batchnorm.Mask{}), renorm(1, 0, batchnorm.Mask{}), renorm(2, 3, batchnorm.Mask{})} {
					got, want := m.same(t, p, waysOfModes(), slices.Clone), m.once(t, clean)
					what := fmt.Sprintf("%s, %v * 2^%d with %g", m.name, s, scale, bad)
					if v := got.dgamma[1]; v == v {
						t.Fatalf("%s: dgamma is %g, want NaN", what, v)
					}
					if v := got.dbeta[1]; !sameBits(v, float32(bad)) {
						t.Fatalf("%s: dbeta is %g", what, v)
					}
					for i, v := range got.dx {
						if channelOf(s, i) == 1 && v == v {
							t.Fatalf("%s: dx[%d] is %g, want NaN", what, i, v)
						} else if channelOf(s, i) != 1 && !sameBits(v, want.dx[i]) {
							t.Fatalf("%s: dx[%d] of another channel is %g, want %g", what, i, v, want.dx[i])
						}
					}
				}
			}
		}
	}
}

// TestTinyGamma: a gamma near the lower end of float32's range, and a gamma*invstd beyond
// it, cost no digits of values far from the mean.
func TestTinyGamma(t *testing.T) {
	for _, s := range layouts(40) {
		for exponent := -149; exponent <= -100; exponent += 7 {
			for _, deviation := range []int{-60, -30, 0, 3, 40} {
				p := newProblem(s, 0)
				p.epsilon, p.gamma = 0x1p-140, gen.Uniform(uint64(exponent+200), s.Channels, 1, 2)
				for c := range p.gamma {
					p.gamma[c] = float32(math.Ldexp(float64(p.gamma[c]), exponent))
					p.mean[c] = float32(math.Ldexp(float64(1+c), deviation+20))
					p.vari[c] = float32(math.Ldexp(1, 2*deviation))
				}
				p.ops = inference
				p.checkBounds(t, p.checkSame(t, configs(), slices.Clone))
			}
		}
	}
}

// TestMaskOfSmallGradients: valid positions alone decide whether sums of 0 are believed
// to be sums of zeros. Neither the values of padding nor its place have an effect.
func TestMaskOfSmallGradients(t *testing.T) {
	t.Parallel()
	seeds := uint64(16)
	if !thorough() {
		seeds = 6
	}
	for _, s := range []batchnorm.Shape{{6, 5, 20}, {9, 3, 9}, {60, 7, 1}, {200, 1, 1}, {3, 40, 2}} {
		for seed := range seeds {
			for name, mask := range masksFor(s, seed) {
				if count(valid(mask, s)) < 2 {
					continue
				}
				p := newProblem(s, 0)
				p.epsilon = 0
				sign, ok := float32(1), valid(mask, s)
				for k, at := range ok { // gradients that cancel, and whose products vanish
					c := int(seed) % s.Channels
					i := s.Inner*(k/s.Inner*s.Channels+c) + k%s.Inner
					p.x[i], p.dy[i] = p.x[i]*0x1p-60, 0
					if at {
						p.dy[i], sign = sign*0x1p-100, -sign
					}
				}
				short, at := p.compact(mask)
				if p = p.spoilt(mask); seed&1 != 0 { // small gradients in padding, in place of NaN and large ones
					for i := range p.dy {
						if !ok[i/(s.Channels*s.Inner)*s.Inner+i%s.Inner] {
							p.dy[i] = 0x1p-140
						}
					}
				}
				expectSame(t, fmt.Sprintf("%v with mask %q, seed %d", s, name, seed), plain(mask).same(t, p, waysOfModes(), slices.Clone),
					plain(batchnorm.Mask{}).once(t, short).expanded(s.Len(), at))
			}
		}
	}
}
