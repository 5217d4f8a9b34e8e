package batchnorm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// tinyZActivations are all kinds, some with parameters at the ends of what is allowed.
var tinyZActivations = append(slices.Clone(sweptActivations), LeakyReLU(0), LeakyReLU(-0.5), LeakyReLU(1e30), LeakyReLU(1e-44),
	LeakyReLU(negativeZero), ELU(0), ELU(1e30), ELU(1e-44), ELU(negativeZero), Clip(-1e-39, 1e-35))

// tinyValues returns n values of z: tiny ones of every magnitude, those around the largest, zeros, and with
// others, or at the end, usual numbers and what is none.
func tinyValues(n int, seed uint64, others, end bool) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	z := make([]float32, n)
	for i := range z {
		bits := r.Uint32() % (tinyZBits + 1)
		if r.IntN(2) == 0 { // subnormal numbers are few among them
			bits &= 1<<uint(r.IntN(24)) - 1
		}
		switch r.IntN(16) {
		case 0:
			bits = 0
		case 1:
			bits = tinyZBits - uint32(r.IntN(3))
		}
		z[i] = math.Float32frombits(bits | r.Uint32()<<31)
		if others && i%3 == 1 || end && i > 0 && i == n-1 {
			z[i] = []float32{float32(r.NormFloat64()), math.Float32frombits(tinyZBits + 1), float32(r.NormFloat64() * 40), float32(math.NaN()),
				float32(math.Inf(1)), float32(math.Inf(-1)), -math.MaxFloat32}[r.IntN(7)]
		}
	}
	z[0] = 1e-40 // the sample sees it
	return z
}

// TestTinyZ: the values and slopes of activations for tiny z have the bits of the kernels that compute them
// for all z, in blocks of these and beside others, and no product takes an assist.
func TestTinyZ(t *testing.T) {
	for _, path := range Paths() {
		for _, act := range tinyZActivations {
			t.Run(fmt.Sprint(path, "/", act), func(t *testing.T) {
				for i, s := range []Shape{{Outer: 3, Channels: 4, Inner: 50}, {Outer: 100, Channels: 6, Inner: 1}} {
					p, err := NewPlan(s, WithActivation(act), WithPath(path), WithWorkers(1))
					if err != nil {
						t.Fatal(err)
					}
					w := p.acquire(&Mask{}, s.PerChannel(), false)
					buf := new(buffers)
					for n := 1; n <= bufferLen; n += 1 + n*2/3 {
						for kind := range 8 {
							others, end, summed := kind%2 == 1, kind/2%2 == 1, kind/4 == 1
							z := tinyValues(n, uint64(n+i), others, end)
							want, slopes := slices.Clone(z), make([]float32, n)
							evaluate(path, act, want, slopes)
							res := slices.Clone(z)
							terms := repeated(negativeZero)[:n]
							if summed { // of two numbers
								for j := range z {
									if z[j]-z[j] == 0 {
										terms[j] = z[j] / 4
										res[j] = z[j] - terms[j]
									}
									z[j] = terms[j] + res[j]
								}
								want = slices.Clone(z)
								evaluate(path, act, want, slopes)
							}
							calls := 0
							inspected = func(kernel int, l layout, act Activation, a kernelArgs) {
								if kernel == kernelTinyZ {
									calls++
								}
							}
							b := block{rows: 1, n: n}
							y := make([]float32, n)
							k := kernelArgs{x: slices.Clone(terms), res: slices.Clone(res), y: y, coef: asItIs}
							if w.activate(act, buf, &k, summed, &b); calls == 0 && w.tinyAct.value != tinyUsual {
								t.Errorf("%d values: no tiny value is found", n)
							}
							g := make([]float32, n)
							k = kernelArgs{x: slices.Clone(terms), res: slices.Clone(res), y: y[:0:0], coef: asSum, dy: plusOnes, dres: g}
							calls = 0
							set := w.slopesTiny(buf, g, &k, summed, &b)
							if !set && calls == 0 && w.tinyAct.slope == tinyLevel {
								t.Errorf("%d slopes: no tiny value is found", n)
							}
							inspected = nil
							if k.y = make([]float32, n); !set {
								w.alike(kernelInputGrad, act, &k, n)
							}
							if j, ok := sameBits(y, want); !ok {
								t.Fatalf("%d values, others %t, summed %t: act(%g) is %g, want %g", n, others, summed, z[j], y[j], want[j])
							}
							if j, ok := sameBits(g, slopes); !ok {
								t.Fatalf("%d values, others %t, summed %t: act'(%g) is %g, want %g", n, others, summed, z[j], g[j], slopes[j])
							}
						}
					}
					p.release(w)
				}
			})
		}
	}
}
