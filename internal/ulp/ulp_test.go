package ulp

import (
	"math"
	"testing"
)

func TestOf(t *testing.T) {
	for _, c := range []struct{ x, want float64 }{
		{1, 0x1p-23},
		{-1.999, 0x1p-23},
		{2, 0x1p-22},
		{0.999, 0x1p-24},
		{0, 0x1p-149},
		{1e-45, 0x1p-149},
		{0x1p-126, 0x1p-149},
		{0x1p-125, 0x1p-148},
		{math.MaxFloat32, 0x1p104},
	} {
		if got := Of(c.x); got != c.want {
			t.Errorf("Of(%v) is %v, want %v", c.x, got, c.want)
		}
	}
	// The neighbours of a float32 are at that distance.
	for _, x := range []float32{1.5, 3e38, 1e-40, 7} {
		next := math.Nextafter32(x, float32(math.Inf(1)))
		if got, want := Of(float64(x)), float64(next)-float64(x); got != want {
			t.Errorf("Of(%v) is %v, the next float32 is %v away", x, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		got  float32
		want float64
		ulps float64
	}{
		{1, 1, 0},
		{1, 1 + 0x1p-24, 0.5},
		{1 + 0x1p-22, 1, 2},
		{-1, 1, 0x1p24},
		{0, 0x1p-150, 0.5},
		{float32(nan), nan, 0},
		{float32(nan), 1, inf},
		{1, nan, inf},
		{float32(inf), inf, 0},
		{float32(inf), -inf, inf},
		{float32(inf), 1, inf},
	} {
		if got := Distance(c.got, c.want); got != c.ulps {
			t.Errorf("Distance(%v, %v) is %v, want %v", c.got, c.want, got, c.ulps)
		}
	}
}
