package batchnorm

import (
	"math"
	"testing"
)

// TestMomentum: the same update in the words of each convention.
func TestMomentum(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		m    Momentum
		want float32
	}{
		"new weight":  {NewWeight(0.25), 12.5},
		"old weight":  {OldWeight(0.75), 12.5},
		"4th batch":   {Cumulative(4), 12.5},
		"first batch": {Cumulative(1), 20},
		"default":     {Momentum{}, 11},
		"keep":        {NewWeight(0), 10},
	} {
		if got := c.m.update(10, 20); got != c.want {
			t.Errorf("%s: 10 becomes %v after a batch of 20, want %v", name, got, c.want)
		}
	}
	if got := NewWeight(1).update(float32(math.NaN()), 20); got != 20 {
		t.Errorf("weight 1 keeps something of NaN: %v", got)
	}
	for _, batch := range []float64{math.NaN(), math.Inf(1), 1e300} {
		if got := NewWeight(0).update(10, batch); got != 10 {
			t.Errorf("weight 0 makes %v of 10 after a batch of %v", got, batch)
		}
	}
}

func TestMomentumString(t *testing.T) {
	for want, m := range map[string]Momentum{
		"Momentum{}": {}, "NewWeight(0.1)": NewWeight(0.1), "NewWeight(0.25)": OldWeight(0.75), "NewWeight(0)": NewWeight(0),
		"Cumulative(3)": Cumulative(3), "Cumulative(0)": Cumulative(0), "Cumulative(5)": Cumulative(3).after(2),
	} {
		if got := m.String(); got != want {
			t.Errorf("the string is %q, want %q", got, want)
		}
	}
}
