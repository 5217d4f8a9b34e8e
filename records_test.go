package batchnorm

import (
	"math"
	"slices"
	"testing"
)

// betas are constants b of z at the borders where rounding decides.
func betas() []float32 {
	inf := float32(math.Inf(1))
	list := []float32{0, 0x1p-149, 2 * 0x1p-149, 3 * 0x1p-149, 0x1p-127, 0x1p-126, math.Nextafter32(0x1p-126, 0),
		1, 1.5, math.Nextafter32(1, 2), math.Nextafter32(1, 0),
		0.3, 7, 1e30, 0x1p127, math.Nextafter32(0x1p127, 0), math.MaxFloat32, math.Nextafter32(math.MaxFloat32, 0), inf, float32(math.NaN())}
	for _, v := range slices.Clone(list) {
		list = append(list, -v)
	}
	noisy := make([]float32, 500)
	noise(noisy, 3, true)
	return append(list, noisy...)
}

// TestLeastThrough: z is above 0 for the least product and for larger ones, and not for the
// number before it.
func TestLeastThrough(t *testing.T) {
	above := func(p float64, b float32) bool { return float32(p)+b > 0 }
	for _, b := range betas() {
		least := leastThrough(b)
		if least != least {
			for _, p := range []float64{0, 1, -1, math.MaxFloat64, math.Inf(1), math.Inf(-1)} {
				if above(p, b) {
					t.Errorf("b %g: no product is said to be large enough, and %g is", b, p)
				}
			}
			continue
		}
		if before := math.Nextafter(least, math.Inf(-1)); !above(least, b) || above(before, b) {
			t.Errorf("b %g: z is above 0 for the product %g: %t, and for %g before it: %t", b, least, above(least, b), before, above(before, b))
		}
	}
}

// TestRecords compares the records that a kernel on channels makes with those of Go.
func TestRecords(t *testing.T) {
	for _, path := range simdPaths(t) {
		list := betas()
		s := Shape{Outer: 2, Channels: len(list), Inner: 1}
		p, err := NewPlan(s, WithPath(path))
		if err != nil {
			t.Fatal(err)
		}
		w := p.acquire(&Mask{}, 2, false)
		mean, invstd, gamma := make([]float64, s.Channels), make([]float64, s.Channels), make([]float32, s.Channels)
		for c := range mean {
			mean[c], invstd[c] = float64(c)*1.1, 1+float64(c%7)
			gamma[c] = []float32{1, -2, 1e-40, 0, -3e-38, 0.7, 3e38}[c%7]
			switch c % 5 {
			case 1:
				invstd[c] *= 0x1p-103
			case 2:
				invstd[c] *= 0x1p101
			}
		}
		w.backward, w.gamma, w.beta = true, gamma, list
		w.setSaved(mean, invstd)
		ch := &w.channels
		for c := range mean {
			ch.k1[c], ch.k2[c] = float64(c)*1e-40, -float64(c)*3e-39
		}
		for j := 0; j < s.Channels; j += mostSpan {
			n := min(mostSpan, s.Channels-j)
			coef := w.coef[j*coefLen:]
			records := make([]record64, ceilDiv(n, lanes))
			w.setRecords(records, coef, j, n)
			for i := 0; i < n; i += lanes {
				var want record64
				m := min(lanes, n-i)
				w.setEight(&want, (*record)(coef[i*coefLen:]), j+i, m)
				got := &records[i/lanes]
				for l := range m {
					for f, v := range [...][2]float64{{got.s[l], want.s[l]}, {got.l[l], want.l[l]}, {got.k1[l], want.k1[l]},
						{got.k2[l], want.k2[l]}, {got.a[l], want.a[l]},
						{float64(got.n[l]), float64(want.n[l])}} {
						if math.Float64bits(v[0]) != math.Float64bits(v[1]) && (v[0] == v[0] || v[1] == v[1]) {
							t.Fatalf("%v: channel %d, b %g: field %d is %g, want %g", path, j+i+l, list[j+i+l], f, v[0], v[1])
						}
					}
				}
			}
		}
		p.release(w)
	}
}
