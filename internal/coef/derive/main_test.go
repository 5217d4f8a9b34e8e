package main

import (
	"bytes"
	"go/format"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// TestUpToDate compares the committed constants with what the program writes.
func TestUpToDate(t *testing.T) {
	if os.Getenv("BATCHNORM_TESTS") != "all" {
		t.Skip("takes minutes: BATCHNORM_TESTS=all runs it")
	}
	committed, err := os.ReadFile(filepath.Join("..", "coef.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, source()) {
		t.Error("coef.go is not what the program writes: run go generate ./internal/coef")
	}
}

// TestConstantsUpToDate does so for all that is not a table of polynomials.
func TestConstantsUpToDate(t *testing.T) {
	committed, err := os.ReadFile(filepath.Join("..", "coef.go"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	constants(&b)
	want, err := format.Source(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(committed, want) {
		t.Error("coef.go is not what the program writes: run go generate ./internal/coef")
	}
}

// TestFunctions compares the series with the functions of math.
func TestFunctions(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(num) num
		want func(float64) float64
		at   []float64
	}{
		{"exp", exp, math.Exp, []float64{-112.5, -1, -0x1p-30, 0, 0.3, 1, 50}},
		{"atanh", atanh, math.Atanh, []float64{-0.5, 0x1p-30, 0.1, 0.34}},
		{"tanh", tanh, math.Tanh, []float64{-3, 0.1, 0.5, 10}},
		{"normalTail", normalTail, func(t float64) float64 { return math.Erfc(t/math.Sqrt2) / 2 }, []float64{0, 0.1, 1, 5, 14}},
	} {
		for _, x := range c.at {
			got, _ := c.f(of(x)).Float64()
			// The argument of Erfc is rounded, which its slope t^2 magnifies.
			if want := c.want(x); math.Abs(got-want) > 1e-15*(1+x*x)*math.Abs(want) {
				t.Errorf("%s(%g) = %g, want %g", c.name, x, got, want)
			}
		}
	}
	if got, _ := pi.Float64(); got != math.Pi {
		t.Errorf("pi = %v", got)
	}
	if got, _ := ln2.Float64(); got != math.Ln2 {
		t.Errorf("ln 2 = %v", got)
	}
}

// TestMinimax finds a rational function again, and the polynomial of degree 1
// nearest 1/x on [1, 2] in the relative sense: (3-x)/c with error 1/17.
func TestMinimax(t *testing.T) {
	r, err := minimax(func(x num) num { return div(of(1), x) }, 1, 2, 1, 0)
	slope, _ := r.p[1].Float64()
	constant, _ := r.p[0].Float64()
	if math.Abs(constant/slope+3) > 1e-4 || math.Abs(err-1./17) > 1e-5 {
		t.Errorf("got %g + %g x with error %g", constant, slope, err)
	}
}
