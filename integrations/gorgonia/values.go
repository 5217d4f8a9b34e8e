package gorgoniabn

import (
	"fmt"
	"slices"
	"unsafe"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// floats returns the elements of a value in row-major order: its own memory
// where they lie in that order, and a copy of a transposed, sliced or
// column-major tensor.
func floats(name string, v gorgonia.Value) ([]float32, error) {
	if s, ok := v.(*gorgonia.F32); ok {
		return []float32{float32(*s)}, nil
	}
	d, ok := v.(*tensor.Dense)
	if !ok || d == nil {
		return nil, fmt.Errorf("gorgoniabn: %s is a %T, must be a *tensor.Dense", name, v)
	}
	if d.Dtype() != tensor.Float32 {
		return nil, fmt.Errorf("gorgoniabn: %s is %v, must be float32", name, d.Dtype())
	}
	if !d.IsNativelyAccessible() {
		return nil, fmt.Errorf("gorgoniabn: %s is not in memory that Go can access", name)
	}
	if rowMajor(d) {
		return d.Float32s(), nil
	}
	return gathered(d), nil
}

func rowMajor(d *tensor.Dense) bool {
	return d.DataOrder().IsRowMajor() && !d.RequiresIterator() && len(d.Float32s()) == d.Shape().TotalSize()
}

// gathered copies the elements by the strides of the tensor.
func gathered(d *tensor.Dense) []float32 {
	from, shape, strides := d.Float32s(), d.Shape(), d.Strides()
	to := make([]float32, 0, shape.TotalSize())
	if len(shape) != len(strides) { // a vector cut out of a matrix has one stride
		strides = []int{strides[len(strides)-1]}
		shape = tensor.Shape{shape.TotalSize()}
	}
	var walk func(axis, at int)
	walk = func(axis, at int) {
		if axis == len(shape) {
			to = append(to, from[at])
			return
		}
		for i := range shape[axis] {
			walk(axis+1, at+i*strides[axis])
		}
	}
	walk(0, 0)
	return to
}

// output returns a value of the shape that takes a result, with its elements: prealloc, if
// it fits and is apart from the inputs, or a new value.
func output(prealloc gorgonia.Value, shape tensor.Shape, read ...[]float32) (gorgonia.Value, []float32) {
	if d, ok := prealloc.(*tensor.Dense); ok && d != nil && d.Dtype() == tensor.Float32 && d.IsNativelyAccessible() &&
		slices.Equal(d.Shape(), shape) && rowMajor(d) && !slices.ContainsFunc(read, func(r []float32) bool { return overlap(d.Float32s(), r) }) {
		return d, d.Float32s()
	}
	d := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(shape.Clone()...))
	return d, d.Float32s()
}

func overlap(a, b []float32) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	first := func(s []float32) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(s))) }
	return first(a) < first(b)+4*uintptr(len(b)) && first(b) < first(a)+4*uintptr(len(a))
}

// add adds the elements v to a value, in place.
func add(sum gorgonia.Value, v []float32) error {
	if s, ok := sum.(*gorgonia.F32); ok && len(v) == 1 {
		*s += gorgonia.F32(v[0])
		return nil
	}
	d, ok := sum.(*tensor.Dense)
	if !ok || d.Dtype() != tensor.Float32 || !rowMajor(d) || len(d.Float32s()) != len(v) {
		return fmt.Errorf("gorgoniabn: a gradient is a %T, must be a dense float32 tensor of %d elements", sum, len(v))
	}
	to := d.Float32s()
	for i := range to {
		to[i] += v[i]
	}
	return nil
}
