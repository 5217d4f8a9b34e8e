package main

import (
	"runtime"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// assembled is true where products are gonum's assembly, which rounds a product before it
// adds it. Elsewhere gonum's loops are Go, which most compilers fuse, and the loops below
// take their place. They sum in the same order, along the inner index, and so have the same
// bits.
const assembled = runtime.GOARCH == "amd64"

// multiply sets c = a*b, which are n x inner and inner x out.
func multiply(c, a, b []float32, n, inner, out int) {
	if assembled {
		blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, matrix(n, inner, a), matrix(inner, out, b), 0, matrix(n, out, c))
		return
	}
	multiplyLoops(c, a, b, n, inner, out)
}

func multiplyLoops(c, a, b []float32, n, inner, out int) {
	clear(c[:n*out])
	for i := range n {
		for k, v := range a[i*inner:][:inner] {
			if v != 0 {
				addScaledLoop(c[i*out:][:out], v, b[k*out:])
			}
		}
	}
}

// multiplyTransposed sets c to the transpose of a times b, which are n x rows and n x
// cols.
func multiplyTransposed(c, a, b []float32, n, rows, cols int) {
	if assembled {
		blas32.Gemm(blas.Trans, blas.NoTrans, 1, matrix(n, rows, a), matrix(n, cols, b), 0, matrix(rows, cols, c))
		return
	}
	multiplyTransposedLoops(c, a, b, n, rows, cols)
}

func multiplyTransposedLoops(c, a, b []float32, n, rows, cols int) {
	clear(c[:rows*cols])
	for k := range n {
		for i, v := range a[k*rows:][:rows] {
			if v != 0 {
				addScaledLoop(c[i*cols:][:cols], v, b[k*cols:])
			}
		}
	}
}

// addScaled adds v*x to y.
func addScaled(y []float32, v float32, x []float32) {
	if assembled {
		blas32.Axpy(v, vector(x), vector(y))
		return
	}
	addScaledLoop(y, v, x)
}

func addScaledLoop(y []float32, v float32, x []float32) {
	x = x[:len(y)]
	for j := range y {
		y[j] += float32(v * x[j])
	}
}

func matrix(rows, cols int, data []float32) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

func vector(data []float32) blas32.Vector {
	return blas32.Vector{N: len(data), Inc: 1, Data: data}
}
