package exact

import (
	"math"
	"math/big"
	"math/rand"
	"testing"
)

// TestSum: a sum is that of exact arithmetic, whatever the sizes, signs and order of the
// values, in one sum or in several that are merged.
func TestSum(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	values := []float64{math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, -math.SmallestNonzeroFloat64, 0x1p-1022, 1, -1e300}
	for range 1000 {
		if v := math.Float64frombits(r.Uint64()); v-v == 0 {
			values = append(values, v)
		}
	}
	want := new(big.Float).SetPrec(4000)
	for _, v := range values {
		want.Add(want, big.NewFloat(v))
	}
	for order := range 3 {
		var parts [4]Sum
		for i, v := range values {
			parts[i%(1+order)].Add(v)
		}
		for i := range parts[1:] {
			parts[0].Merge(&parts[1+i])
		}
		got := new(big.Float).SetPrec(4000).SetInt(parts[0].Int())
		if got.SetMantExp(got, -Scale).Cmp(want) != 0 {
			t.Errorf("order %d: the sum is %v, want %v", order, got, want)
		}
		r.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
	}
}

// TestSpecial: values that are not finite are added apart, as IEEE 754 says.
func TestSpecial(t *testing.T) {
	inf := math.Inf(1)
	var s, other Sum
	s.Add(1)
	if s.Special() != 0 {
		t.Errorf("the sum of 1 has the special value %v", s.Special())
	}
	s.Add(inf)
	if s.Special() != inf || s.Int().Cmp(new(big.Int).Lsh(big.NewInt(1), Scale)) != 0 {
		t.Errorf("the sum of 1 and +Inf has the special value %v and the finite values %v", s.Special(), s.Int())
	}
	other.Add(-inf)
	s.Merge(&other)
	if !math.IsNaN(s.Special()) {
		t.Errorf("the sum of infinities of both signs is %v", s.Special())
	}
}
