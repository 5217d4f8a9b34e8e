// Package compare has the numbers that programs and tests of the nested modules print
// and check when they compare this package with another implementation.
package compare

import (
	"math"
	"slices"
)

// Distance returns the largest difference from want, relative to the largest |want| or
// to 1. It is infinite if the lengths differ, or if a difference is NaN.
func Distance(got []float32, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	largest, scale := 0.0, 1.0
	for i, w := range want {
		d := math.Abs(float64(got[i]) - w)
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		largest, scale = max(largest, d), max(scale, math.Abs(w))
	}
	return largest / scale
}

// Differences returns the first and the largest difference of two series of equal
// lengths, which are not empty.
func Differences(a, b []float64) (first, largest float64) {
	for i := range a {
		largest = max(largest, math.Abs(a[i]-b[i]))
	}
	return math.Abs(a[0] - b[0]), largest
}

// Mean returns the mean of values, of which there is at least one.
func Mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// Median returns the median of values, of which there is at least one; of an even number
// the upper one of the two in the middle.
func Median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
