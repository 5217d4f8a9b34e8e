package gen

import (
	"hash/fnv"
	"math"
	"testing"
)

// The first outputs of splitmix64 for the seed 1234567, as published.
func TestSource(t *testing.T) {
	r := source(1234567)
	for i, want := range []uint64{6457827717110365317, 3203168211198807973, 9817491932198370423} {
		if got := r.next(); got != want {
			t.Errorf("output %d is %d, want %d", i, got, want)
		}
	}
}

// The bits are fixed here so that a machine that makes others is noticed.
func TestSameBitsEverywhere(t *testing.T) {
	for _, c := range []struct {
		name string
		data []float32
		want uint64
	}{
		{"Uniform", Uniform(1, 1000, -0.3, 1.7), 0xb2260b30db48cc59},
		{"Normal", Normal(2, 1000, 1e3, 0.7), 0xcc93f07681ead32},
		{"Special", Special(3, 1000), 0xfb548062690cbbfb},
	} {
		h := fnv.New64a()
		for _, v := range c.data {
			b := math.Float32bits(v)
			h.Write([]byte{byte(b), byte(b >> 8), byte(b >> 16), byte(b >> 24)})
		}
		if got := h.Sum64(); got != c.want {
			t.Errorf("%s: hash %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestDistributions(t *testing.T) {
	const n = 100000
	for _, c := range []struct {
		name           string
		data           []float32
		mean, variance float64
		lo, hi         float32
	}{
		{"Uniform", Uniform(4, n, -1, 3), 1, 16.0 / 12, -1, 3},
		{"Normal", Normal(5, n, 2, 0.5), 2, 0.25, -1, 5},
	} {
		var sum, squares float64
		for _, v := range c.data {
			if v < c.lo || v > c.hi {
				t.Fatalf("%s: %v is outside of [%v, %v]", c.name, v, c.lo, c.hi)
			}
			d := float64(v) - c.mean
			sum += d
			squares += d * d
		}
		// Five standard errors, with room for the kurtosis.
		tol := 5 * math.Sqrt(3/float64(n))
		if math.Abs(sum/n) > tol*math.Sqrt(c.variance) || math.Abs(squares/n-c.variance) > tol*c.variance {
			t.Errorf("%s: mean is off by %v, variance is %v, want %v", c.name, sum/n, squares/n, c.variance)
		}
	}
}

func TestSpecialHasAllKinds(t *testing.T) {
	kinds := map[string]func(v float32) bool{
		"NaN":       func(v float32) bool { return v != v },
		"+Inf":      func(v float32) bool { return math.IsInf(float64(v), 1) },
		"-Inf":      func(v float32) bool { return math.IsInf(float64(v), -1) },
		"+0":        func(v float32) bool { return math.Float32bits(v) == 0 },
		"-0":        func(v float32) bool { return math.Float32bits(v) == 1<<31 },
		"subnormal": func(v float32) bool { b := math.Float32bits(v) &^ (1 << 31); return b > 1 && b < 1<<23 },
		"smallest":  func(v float32) bool { return v == math.SmallestNonzeroFloat32 },
		"normal":    func(v float32) bool { return v == 0x1p-126 },
		"largest":   func(v float32) bool { return v == math.MaxFloat32 },
		"ordinary":  func(v float32) bool { return v > 0.5 && v < 2 },
	}
	data := Special(6, 1000)
	for name, is := range kinds {
		found := false
		for _, v := range data {
			found = found || is(v)
		}
		if !found {
			t.Errorf("no %s among %d values", name, len(data))
		}
	}
}
