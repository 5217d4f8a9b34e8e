package compare

import (
	"math"
	"testing"
)

func TestDistance(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		got     []float32
		want    []float64
		largest float64
	}{
		{nil, nil, 0},
		{[]float32{1, 2}, []float64{1, 2.5}, 0.2},
		{[]float32{0.5, 0}, []float64{0.25, 0}, 0.25}, // relative to 1
		{[]float32{1}, []float64{1, 2}, math.Inf(1)},
		{[]float32{float32(nan), 1}, []float64{1, 1}, math.Inf(1)},
		{[]float32{1, 1}, []float64{1, nan}, math.Inf(1)},
		{[]float32{float32(math.Inf(1))}, []float64{1}, math.Inf(1)},
	} {
		if d := Distance(c.got, c.want); d != c.largest {
			t.Errorf("%v is %v from %v, want %v", c.got, d, c.want, c.largest)
		}
	}
}

func TestSeries(t *testing.T) {
	v := []float64{5, 1, 3}
	if m := Median(v); m != 3 || v[0] != 5 {
		t.Errorf("median %v of %v", m, v)
	}
	if m := Median([]float64{1, 2}); m != 2 {
		t.Errorf("median of two is %v", m)
	}
	if m := Mean(v); m != 3 {
		t.Errorf("mean %v", m)
	}
	if first, largest := Differences([]float64{1, 2, 3}, []float64{2, -2, 3}); first != 1 || largest != 4 {
		t.Errorf("differences %v and %v", first, largest)
	}
}
