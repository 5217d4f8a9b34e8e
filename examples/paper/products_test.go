package main

import (
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestProducts compares gonum's assembly with the loops that stand for it elsewhere.
func TestProducts(t *testing.T) {
	if !assembled {
		t.Skip("there is no assembly here")
	}
	for i, size := range [][3]int{{1, 1, 1}, {3, 5, 7}, {60, 784, 100}, {60, 100, 100}, {60, 100, 10}, {130, 65, 129}} {
		n, inner, out := size[0], size[1], size[2]
		a, b, d := gen.Normal(uint64(i), n*inner, 0, 1), gen.Normal(uint64(i+50), inner*out, 0, 1), gen.Normal(uint64(i+90), n*out, 0, 1)
		for k := range a {
			if k%3 == 0 {
				a[k] = 0
			}
		}
		compare := func(name string, n int, by, loops func(c []float32)) {
			t.Helper()
			got, want := gen.Normal(1, n, 0, 1), gen.Normal(1, n, 0, 1)
			by(got)
			loops(want)
			if !sameBits(got, want) {
				t.Errorf("%s of %v: the loops have other bits than gonum's assembly", name, size)
			}
		}
		compare("the product", n*out, func(c []float32) { multiply(c, a, b, n, inner, out) }, func(c []float32) { multiplyLoops(c, a, b, n, inner, out) })
		compare("the product with a transpose", inner*out, func(c []float32) { multiplyTransposed(c, a, d, n, inner, out) },
			func(c []float32) { multiplyTransposedLoops(c, a, d, n, inner, out) })
		compare("the sum", n*out, func(c []float32) { addScaled(c, -0.1, d) }, func(c []float32) { addScaledLoop(c, -0.1, d) })
	}
}
