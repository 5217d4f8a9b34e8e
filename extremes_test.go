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
			for _, of := range [][2]int{{-60, 20}, {-30, 20}, {0, 20}, {3, 20}, {40, 20}, {60, 44}} { // the last mean is near the end of the range
				deviation := of[0]
				p := newProblem(s, 0)
				p.epsilon, p.gamma = 0x1p-140, gen.Uniform(uint64(exponent+200), s.Channels, 1, 2)
				for c := range p.gamma {
					p.gamma[c] = float32(math.Ldexp(float64(p.gamma[c]), exponent))
					p.mean[c] = float32(math.Ldexp(float64(1+c), deviation+of[1]))
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

// TestSubnormalGradients: g = dy*act'(z) is a float32. Below 2^-126 it is a multiple of
// 2^-149, and the sums and dx have the error of that rounding, of at most 2^-150 for each
// value, beside the usual one. Without it they would miss the bound.
func TestSubnormalGradients(t *testing.T) {
	t.Parallel()
	const usual, rounding = 1e-4, 0x1p-150 // the derivative of sigmoid at z is about exp(-|z|): an error of z is a relative one of it
	missed := map[string]bool{}
	for _, s := range layouts(500) {
		for _, exponent := range []int{-60, -75, -85, -88} { // of dy
			p := newProblem(s, bare)
			p.act, p.epsilon = batchnorm.Sigmoid, 0
			p.gamma, p.beta = []float32{1, -0.5, 0.25}, []float32{40, -42, 41}
			for i := range p.x {
				p.x[i] = float32(math.Ldexp(float64(p.x[i]), -20)) // so that dx is a normal number
				p.dy[i] = float32(math.Ldexp(float64(p.dy[i]), exponent))
			}
			got := p.checkSame(t, configs(), slices.Clone)
			fwd, want := reference.Forward(p.reference()), reference.Backward(p.reference())
			g, z := widen(p.dy), reference.Z(p.reference())
			for i := range g {
				g[i] *= reference.ActivationOf(p.act.String()).Derivative(z[i])
			}
			for c := range s.Channels {
				n, sum, square, off := 0.0, 0.0, 0.0, 0.0
				for i := range p.x {
					if channelOf(s, i) != c {
						continue
					}
					n++
					sum += math.Abs(g[i])
					square += g[i] * g[i]
					off += math.Abs(float64(p.x[i])-fwd.Mean[c]) * fwd.InvStd[c] * rounding
				}
				rms, largest := math.Sqrt(square/n), 0.0
				expect := func(name string, got float32, want, usual, rounding float64) {
					rounding += 0x1p-150 // of the result
					if d := math.Abs(float64(got) - want); !(d <= usual+rounding) {
						t.Fatalf("%v, dy * 2^%d: %s of channel %d is %g, want %g: off by %.3g, allowed is %.3g", s, exponent, name, c, got, want, d, usual+rounding)
					} else if d > usual {
						missed[name] = true
					}
				}
				expect("dbeta", got.dbeta[c], want.DBeta[c], usual*sum, n*rounding)
				expect("dgamma", got.dgamma[c], want.DGamma[c], usual*n*rms, off)
				factor := math.Abs(float64(p.gamma[c])) * fwd.InvStd[c]
				for i := range p.x {
					if channelOf(s, i) == c {
						largest = max(largest, math.Abs(g[i]))
					}
				}
				for i := range p.x {
					if channelOf(s, i) == c {
						xhat := math.Abs(float64(p.x[i])-fwd.Mean[c]) * fwd.InvStd[c]
						expect("dx", got.dx[i], want.DX[i], factor*usual*(largest+rms*(1+xhat)), factor*(rounding*2+xhat*off/n))
					}
				}
			}
		}
	}
	for _, name := range []string{"dgamma", "dx"} {
		if !missed[name] {
			t.Errorf("%s is as accurate for subnormal gradients as for others: say so in doc.go", name)
		}
	}
}

// TestHugeScaleFarFromZero: gamma*invstd beyond float32's range, of a channel with a large
// mean, leaves no Inf-Inf: a value at the mean becomes beta, and every other infinite.
func TestHugeScaleFarFromZero(t *testing.T) {
	t.Parallel()
	inf := float32(math.Inf(1))
	for _, s := range layouts(40) {
		for _, mean := range []float64{0x1p60, -0x1p90, 0x1p100, -0x1p126, 0x1p127, 0x1.fffffep127} {
			for _, epsilon := range []float64{0x1p-80, 0x1p-200, 0x1p-250} {
				for _, gamma := range []float32{1, -0x1p40, 0x1p120} {
					p := newProblem(s, bare)
					p.epsilon, p.ops = epsilon, forward|inference
					p.gamma, p.beta = []float32{gamma, gamma, gamma}, []float32{1, -2, 3}
					for i := range p.x {
						p.x[i] = float32(mean)
					}
					for c := range p.mean {
						p.mean[c], p.vari[c] = float32(mean), 0
					}
					r := p.checkSame(t, configs(), slices.Clone)
					for i := range p.x {
						if want := p.beta[channelOf(s, i)]; r.y[i] != want || r.inferred[i] != want {
							t.Fatalf("%v, all %g, epsilon %g, gamma %g: y[%d] is %g, and %g in inference, want %g",
								s, mean, epsilon, gamma, i, r.y[i], r.inferred[i], want)
						}
					}
					p.ops = inference
					for i := range p.x {
						p.x[i] = math.Nextafter32(float32(mean), 0)
						if i%3 == 1 {
							p.x[i] = 0
						}
					}
					r = p.checkSame(t, configs(), slices.Clone)
					invstd := 1 / math.Sqrt(epsilon)
					for i := range p.x {
						if z := (float64(p.x[i]) - mean) * invstd * float64(gamma); math.Abs(z) > 2*math.MaxFloat32 {
							if want := float32(math.Copysign(float64(inf), z)); r.inferred[i] != want {
								t.Fatalf("%v, mean %g, epsilon %g, gamma %g: %g becomes %g, want %g", s, mean, epsilon, gamma, p.x[i], r.inferred[i], want)
							}
						}
					}
				}
			}
		}
	}
}

// TestHugeScaleBetweenFloats: the same for a mean between two numbers of float32, which
// have infinities of both signs, or one of them the largest number in its place.
func TestHugeScaleBetweenFloats(t *testing.T) {
	t.Parallel()
	for _, s := range layouts(40) {
		for _, path := range batchnorm.Paths() {
			for _, mean := range []float32{0x1p90, -0x1p120} {
				p := newPlan(t, s, batchnorm.WithPath(path))
				above := math.Nextafter32(mean, float32(math.Inf(1)))
				x, y := make([]float32, s.Len()), make([]float32, s.Len())
				for i := range x {
					if x[i] = mean; i%2 == 1 {
						x[i] = above
					}
				}
				means := slices.Repeat([]float64{float64(mean) + float64(above-mean)/64}, s.Channels)
				invstd := slices.Repeat([]float64{0x1p100}, s.Channels)
				gamma := slices.Repeat([]float32{0x1p50}, s.Channels)
				noError(t, p.Normalize(batchnorm.NormalizeArgs{X: x, Gamma: gamma, Mean: means, InvStd: invstd, Y: y}))
				for i, v := range y {
					if want := float32(math.Inf(i%2*2 - 1)); v != want && (i%2 == 1 || v != -math.MaxFloat32) {
						t.Fatalf("%v, %v: %g becomes %g, want %g", s, path, x[i], v, want)
					}
				}
			}
		}
	}
}
