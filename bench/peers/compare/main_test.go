package main

import (
	"math"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	for _, name := range []string{ownName, "plain"} {
		var table strings.Builder
		if err := compare(&table, name, usualMean, 1, 1); err != nil {
			t.Errorf("%v\n%s", err, &table)
		}
	}
}

func TestWorst(t *testing.T) {
	nan := float32(math.NaN())
	for _, c := range []struct {
		got  []float32
		want []float64
		ok   bool
	}{
		{[]float32{1, 2}, []float64{1, 2}, true},
		{[]float32{1, -2e6}, []float64{2, -2e6}, true},
		{[]float32{1, 2}, []float64{1, 2.001}, false},
		{[]float32{-1, 2}, []float64{1, 2}, false},
		{[]float32{nan, 2}, []float64{1, 2}, false},
		{nil, []float64{1, 2}, false},
	} {
		if w := worst(c.got, c.want); (w <= bound) != c.ok {
			t.Errorf("error of %v for %v is %v", c.got, c.want, w)
		}
	}
}
