package main

import (
	"testing"

	"github.com/fusedbn/batchnorm/bench/images"
)

func TestPatches(t *testing.T) {
	set := &images.Set{N: 2, Rows: 8, Cols: 12, Pixels: make([]byte, 2*8*12)}
	for i := range set.Pixels {
		set.Pixels[i] = byte(i)
	}
	x := patches(set)
	if len(x) != len(set.Pixels) {
		t.Fatalf("%d values, want %d", len(x), len(set.Pixels))
	}
	for k, v := range x {
		// NHWC with H = 8/4, W = 12/4, C = 4*4.
		c, w, h, n := k%16, k/16%3, k/16/3%2, k/16/3/2
		row, col := h*4+c/4, w*4+c%4
		if want := float32(set.Pixels[(n*8+row)*12+col]) / 255; v != want {
			t.Fatalf("value %d (n=%d h=%d w=%d c=%d) is %v, want %v", k, n, h, w, c, v, want)
		}
	}
}

func TestCases(t *testing.T) {
	imgs, err := imageSet()
	if err != nil {
		t.Fatal(err)
	}
	generated := resnet50Set(1)
	if len(imgs.cases) != 3 || len(generated.cases) != 2*9 {
		t.Errorf("%d and %d cases", len(imgs.cases), len(generated.cases))
	}
	for _, c := range append(imgs.cases, generated.cases...) {
		if err := c.dims.Valid(); err != nil {
			t.Errorf("%s %s: %v", c.layout, c.shape, err)
		}
		if n := len(c.x()); n != c.dims.Len() {
			t.Errorf("%s %s: %d values for shape %v", c.layout, c.shape, n, c.dims)
		}
	}
}
