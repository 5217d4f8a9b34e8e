package batchnorm

import (
	"math"
	"testing"
)

// TestMomentum: the same update in the words of each convention.
func TestMomentum(t *testing.T) {
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
}
