package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestInfiniteGradientBesideTiny: an infinity among tiny gradients makes dgamma and dx NaN, as among
// usual ones.
func TestInfiniteGradientBesideTiny(t *testing.T) {
	t.Parallel()
	for _, s := range []batchnorm.Shape{{Outer: 4, Channels: 9, Inner: 30}, {Outer: 90, Channels: 24, Inner: 1}} {
		for _, scale := range []float64{1, 1e-38} {
			for _, path := range batchnorm.Paths() {
				for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
					p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
					x, dy, beta := gen.Normal(1, s.Len(), 0.3, 1), gen.Normal(2, s.Len(), 0, 1), make([]float32, s.Channels)
					for c := range beta {
						beta[c] = 9
					}
					for i := range dy {
						dy[i] = float32(float64(dy[i]) * scale)
					}
					at := (s.PerChannel()/3/s.Inner*s.Channels)*s.Inner + s.PerChannel()/3%s.Inner // of channel 0
					for c := range s.Channels {
						dy[at+c*s.Inner] = float32(math.Inf(1 - c%2*2))
					}
					dx, dgamma, dbeta := make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
					noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Beta: beta, DX: dx, DGamma: dgamma, DBeta: dbeta}))
					for c, v := range dgamma {
						if v == v || !math.IsInf(float64(dbeta[c]), 0) {
							t.Errorf("%v, %v, %v, dy * %g: dgamma[%d] is %g and dbeta %g, want NaN and an infinity", s, path, act, scale, c, v, dbeta[c])
							break
						}
					}
					for i, v := range dx {
						if v == v {
							t.Errorf("%v, %v, %v, dy * %g: dx[%d] is %g, want NaN", s, path, act, scale, i, v)
							break
						}
					}
				}
			}
		}
	}
}

// TestInfiniteBesideOthers: a channel whose x or dy has NaN or infinities has the same gradients, bit for
// bit, whether all channels have or only some, on every path. Statistics are given. No sums are taken again,
// and no other channel is affected. It counts sums, so that no other test may run beside it.
func TestInfiniteBesideOthers(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	patterns := map[string]func(c int) bool{
		"one":       func(c int) bool { return c == 9 },
		"the first": func(c int) bool { return c == 0 },
		"but one":   func(c int) bool { return c != 9 },
		"in turn":   func(c int) bool { return c%3 == 1 },
		"from":      func(c int) bool { return c >= 13 },
		"up to":     func(c int) bool { return c < 13 },
		"last":      func(c int) bool { return c >= 24 },
	}
	for _, s := range []batchnorm.Shape{{Outer: 6, Channels: 27, Inner: 40}, {Outer: 8, Channels: 300, Inner: 1}, {Outer: 90, Channels: 31, Inner: 1},
		{Outer: 9, Channels: 33, Inner: 3}} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
			for _, of := range []string{"x", "dy", "x or dy"} {
				for _, bad := range []float32{nan, inf, -inf} {
					t.Run(fmt.Sprintf("%v/%v/%s/%g", s, act, of, bad), func(t *testing.T) {
						mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
						p := newProblem(s, hasGammaBeta)
						run := func(path batchnorm.Path, is func(c int) bool) (frozen, given results) {
							x, dy := slices.Clone(p.x), slices.Clone(p.dy)
							for c := range s.Channels {
								to := x
								if of == "dy" || of == "x or dy" && c%2 == 0 {
									to = dy
								}
								if is(c) {
									to[(s.Outer/2*s.Channels+c)*s.Inner+s.Inner/2] = bad
								}
							}
							plan := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
							for _, r := range []*results{&frozen, &given} {
								r.dx, r.dgamma, r.dbeta = make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)
							}
							noError(t, plan.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: dy, X: x, Gamma: p.gamma, Beta: p.beta, Mean: p.mean, Var: p.vari,
								DX: frozen.dx, DGamma: frozen.dgamma, DBeta: frozen.dbeta}))
							noError(t, plan.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: p.gamma, Beta: p.beta, Mean: mean, InvStd: invstd,
								DX: given.dx, DGamma: given.dgamma, DBeta: given.dbeta}))
							return frozen, given
						}
						for c := range mean {
							mean[c], invstd[c] = float64(p.mean[c]), 1/math.Sqrt(float64(p.vari[c]))
						}
						before := batchnorm.Rescued()
						var none, all [2]results
						none[0], none[1] = run(batchnorm.PathGeneric, func(int) bool { return false })
						all[0], all[1] = run(batchnorm.PathGeneric, func(int) bool { return true })
						for c := range s.Channels {
							if v, d := all[1].dgamma[c], all[1].dx[c*s.Inner]; act != batchnorm.ReLU && (v-v == 0 || d-d == 0) {
								t.Fatalf("dgamma[%d] is %g and dx %g", c, v, d)
							}
						}
						if of == "x" && act == batchnorm.Identity {
							expectBits(t, "dbeta", all[1].dbeta, none[1].dbeta)
						}
						for name, is := range patterns {
							for _, path := range batchnorm.Paths() {
								var got [2]results
								got[0], got[1] = run(path, is)
								for i, got := range got {
									want := results{dx: slices.Clone(none[i].dx), dgamma: slices.Clone(none[i].dgamma), dbeta: slices.Clone(none[i].dbeta)}
									for c := range want.dgamma {
										if is(c) {
											want.dgamma[c], want.dbeta[c] = all[i].dgamma[c], all[i].dbeta[c]
										}
									}
									for j := range want.dx {
										if is(channelOf(s, j)) {
											want.dx[j] = all[i].dx[j]
										}
									}
									what := fmt.Sprintf("%s, %v, %s: ", name, path, [...]string{"frozen", "given"}[i])
									expectBits(t, what+"dx", got.dx, want.dx)
									expectBits(t, what+"dgamma", got.dgamma, want.dgamma)
									expectBits(t, what+"dbeta", got.dbeta, want.dbeta)
								}
							}
						}
						if n := batchnorm.Rescued() - before; n != 0 {
							t.Errorf("the sums of %d channels are taken again", n)
						}
					})
				}
			}
		}
	}
}

// TestOverflowBesideInfinite: sums that are not finite although x and dy are, since float32 can't hold them,
// are taken again, also if neighbours have infinities. The first value of a channel, which is sampled, is usual.
func TestOverflowBesideInfinite(t *testing.T) {
	t.Parallel()
	const channels, large = 40, 2e38
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: channels, Inner: 1}, {Outer: 80, Channels: channels, Inner: 1},
		{Outer: 4, Channels: channels, Inner: 20}} {
		for _, of := range []string{"x", "dy", "x of every other channel"} {
			for _, path := range batchnorm.Paths() {
				x, dy := gen.Uniform(1, s.Len(), 1, 2), gen.Uniform(2, s.Len(), 1, 2)
				mean, invstd := make([]float64, channels), make([]float64, channels)
				values := x
				if of == "dy" {
					values = dy
				}
				sums, products := make([]float64, channels), make([]float64, channels)
				at := make([]int, channels) // how many values of a channel were seen
				for i := range values {
					c, n := channelOf(s, i), s.PerChannel()
					k := at[c]
					at[c]++
					switch {
					case of != "x" && of != "dy" && c%2 == 0:
					case k >= n-6 && k < n-3: // three, and three of the other sign in dy
						values[i] = large
					case k >= n-3 && of == "dy":
						values[i] = -large
					case k >= n-3:
						values[i] = large
					}
					if c < 8 && k == n/2*(c%2) { // the first value, or a later one
						values[i] = float32(math.Inf(1))
					}
					sums[c] += float64(dy[i])
					products[c] += float64(dy[i]) * float64(x[i])
				}
				for c := range invstd {
					invstd[c] = 1e-20
				}
				dx, dgamma, dbeta := make([]float32, s.Len()), make([]float32, channels), make([]float32, channels)
				noError(t, newPlan(t, s, batchnorm.WithPath(path)).Backward(batchnorm.BackwardArgs{DY: dy, X: x, Mean: mean, InvStd: invstd,
					DX: dx, DGamma: dgamma, DBeta: dbeta}))
				for c := 8; c < channels; c++ {
					want, allowed := products[c]*invstd[c], 1e-6*large*invstd[c]*float64(s.PerChannel())
					if d := math.Abs(float64(dgamma[c]) - want); !(d <= allowed) {
						t.Fatalf("%v, %s, %v: dgamma[%d] is %g, want %g", s, of, path, c, dgamma[c], want)
					}
					if d := math.Abs(float64(dbeta[c]) - sums[c]); !(d <= 1e-6*large*float64(s.PerChannel())) {
						t.Fatalf("%v, %s, %v: dbeta[%d] is %g, want %g", s, of, path, c, dbeta[c], sums[c])
					}
				}
			}
		}
	}
}

// TestHugeBesideNaN: values whose sums overflow have a finite mean and variance, also beside channels whose first
// value is NaN, or whose later ones are.
func TestHugeBesideNaN(t *testing.T) {
	t.Parallel()
	const channels, huge, first = 40, 3e38, 1
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: channels, Inner: 1}, {Outer: 8, Channels: 4 * channels, Inner: 1},
		{Outer: 80, Channels: channels, Inner: 1}, {Outer: 8, Channels: channels, Inner: 3}, {Outer: 8, Channels: channels, Inner: 20}} {
		for _, later := range []bool{false, true} {
			for _, path := range batchnorm.Paths() {
				isNaN := func(c int) bool { return c%4 == 1 }
				x, seen := make([]float32, s.Len()), make([]int, s.Channels)
				for i := range x {
					c := channelOf(s, i)
					k := seen[c]
					seen[c]++
					switch x[i] = first; {
					case isNaN(c) && (k > 0) == later:
						x[i] = float32(math.NaN())
					case k > 0:
						x[i] = huge * float32(1-k%4/2*2)
					}
				}
				mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
				p := newPlan(t, s, batchnorm.WithPath(path))
				noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len()), Mean: mean, InvStd: invstd}))
				n, sum := float64(s.PerChannel()), 0.0 // of the signs
				for k := 1; k < s.PerChannel(); k++ {
					sum += float64(1 - k%4/2*2)
				}
				want := 1 / (huge * math.Sqrt((n-1)/n-sum*sum/n/n))
				for c, v := range invstd {
					if isNaN(c) != (v != v) || !isNaN(c) && math.Abs(v/want-1) > 1e-6 {
						t.Fatalf("%v, %v, NaN later %v: invstd of channel %d is %g, want %g or NaN", s, path, later, c, v, want)
					}
				}
			}
		}
	}
}

// TestPiecesFar: sums over values far from what the statistics say of them are taken by another power of two, which dx
// doesn't have: Backward and its pieces have the same bits.
func TestPiecesFar(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 8, Channels: 8, Inner: 1}
	x, dy, mean, invstd := make([]float32, s.Len()), make([]float32, s.Len()), make([]float64, s.Channels), make([]float64, s.Channels)
	for i := range x {
		x[i] = 1e30 * float32(i/s.Channels)
	}
	for c := range invstd {
		invstd[c], x[c], dy[c+s.Channels] = 1e30, 0x1p-140, -3e38
	}
	for _, path := range batchnorm.Paths() {
		p := newPlan(t, s, batchnorm.WithPath(path))
		whole, pieces := make([]float32, s.Len()), make([]float32, s.Len())
		sums := batchnorm.GradSums{G: make([]float64, s.Channels), GD: make([]float64, s.Channels)}
		noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, DX: whole}))
		noError(t, p.GradSums(batchnorm.GradSumsArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, Sums: &sums}))
		noError(t, p.InputGrad(batchnorm.InputGradArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, Sums: sums, DX: pieces}))
		if d := difference(whole, pieces); d != "" {
			t.Errorf("%v: dx%s", path, d)
		}
	}
}

// TestSumsAgain: sums of gradients that are taken again have the digits that the first sums of the same
// gradients have, times a power of two: float32 holds these. It counts sums, so that no other test may
// run beside it.
func TestSumsAgain(t *testing.T) {
	const power = 125
	for _, s := range []batchnorm.Shape{{Outer: 7, Channels: 3, Inner: 2000}, {Outer: 9, Channels: 3, Inner: 4099},
		{Outer: 30, Channels: 4, Inner: 50}, {Outer: 3, Channels: 2, Inner: 9001}, {Outer: 300, Channels: 9, Inner: 1},
		{Outer: 900, Channels: 1, Inner: 3}, {Outer: 33, Channels: 130, Inner: 3}} {
		for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU} {
			for _, path := range batchnorm.Paths() {
				x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), 1, 2)
				for c := range s.Channels { // which is sampled
					dy[c*s.Inner] = 0x1p-30
				}
				mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
				for c := range mean {
					mean[c], invstd[c] = 0.25+float64(c)/3, 1.5
				}
				p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithActivation(act))
				sums := func() (m batchnorm.GradSums) {
					m = batchnorm.GradSums{G: make([]float64, s.Channels), GD: make([]float64, s.Channels)}
					noError(t, p.GradSums(batchnorm.GradSumsArgs{DY: dy, X: x, Mean: mean, InvStd: invstd, Sums: &m}))
					return m
				}
				before := batchnorm.Rescued()
				want := sums()
				if n := batchnorm.Rescued() - before; n != 0 {
					t.Fatalf("%v, %v: %d usual sums are taken again", s, path, n)
				}
				for i, v := range dy {
					dy[i] = float32(math.Ldexp(float64(v), power))
				}
				got := sums()
				if n := batchnorm.Rescued() - before; n == 0 {
					t.Fatalf("%v, %v: no sums are taken again", s, path)
				}
				for c := range s.Channels {
					want.G[c], want.GD[c] = math.Ldexp(want.G[c], power), math.Ldexp(want.GD[c], power)
				}
				what := fmt.Sprintf("%v, %v, %v: ", s, act, path)
				expectBits(t, what+"G", got.G, want.G)
				expectBits(t, what+"GD", got.GD, want.GD)
			}
		}
	}
}
