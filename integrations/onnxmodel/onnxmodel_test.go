package onnxmodel

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

// The network recognizes clothes, so its parameters are those of a trained one,
// and the two forms of its batch norm are the same function.
func TestModel(t *testing.T) {
	m, err := Parse(Fashion)
	if err != nil {
		t.Fatal(err)
	}
	norms := 0
	for _, n := range m.Nodes {
		if n.Op == "BatchNormalization" {
			norms++
		}
	}
	if norms != 3 {
		t.Errorf("%d batch norms, want 3", norms)
	}
	const n = 100
	x, labels, err := Images(n)
	if err != nil {
		t.Fatal(err)
	}
	scores, err := Reference(m, x, n)
	if err != nil {
		t.Fatal(err)
	}
	if len(scores) != n*Classes {
		t.Fatalf("%d scores, want %d", len(scores), n*Classes)
	}
	right := 0
	for i, label := range labels {
		best := 0
		for c := range Classes {
			if scores[i*Classes+c] > scores[i*Classes+best] {
				best = c
			}
		}
		if best == label {
			right++
		}
	}
	if right < 70 {
		t.Errorf("%d of %d images are recognized, want 70", right, n)
	}
}

func TestComposed(t *testing.T) {
	m, err := Parse(Fashion)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Composed(m)
	if err != nil {
		t.Fatal(err)
	}
	// The first block: scale and shift against the definition, at x = 3.
	b, err := m.batchNorm(m.Nodes[1])
	if err != nil {
		t.Fatal(err)
	}
	scale, shift := c.initializer("block1.norm.scale"), c.initializer("block1.norm.shift")
	for k := range b.scale {
		got := 3*float64(scale.Data[k]) + float64(shift.Data[k])
		want := (3-float64(b.mean[k]))/math.Sqrt(float64(b.variance[k])+b.epsilon)*float64(b.scale[k]) + float64(b.bias[k])
		if math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
			t.Errorf("channel %d: %v, want %v", k, got, want)
		}
	}
	for _, n := range c.Nodes {
		if n.Op == "BatchNormalization" {
			t.Errorf("%v is left", n)
		}
	}
	if len(m.Nodes) == len(c.Nodes) {
		t.Error("the model itself was changed")
	}
}

// A file that was written can be read.
func TestMarshal(t *testing.T) {
	m := &Model{Opset: 9,
		Nodes: []Node{{Op: "Conv", Inputs: []string{"x", "w"}, Outputs: []string{"y"}, Attributes: []Attribute{
			{"alpha", float32(0.5)}, {"axis", int64(-2)}, {"mode", "same"}, {"pads", []int64{1, 300}}}}},
		Initializers: []Tensor{{"w", []int64{2, 1}, []float32{1.5, -3}}},
		Inputs:       []Value{{Name: "x"}},
		Outputs:      []Value{{Name: "y"}},
	}
	file, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, want %+v", got, m)
	}
	for n := 1; n < len(file); n++ {
		if _, err := Parse(file[:n]); err != nil && !errors.Is(err, ErrFile) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := Parse(file[:len(file)-1]); err == nil {
		t.Error("a truncated file has no error")
	}
	if _, err := (&Model{Nodes: []Node{{Attributes: []Attribute{{"a", 1}}}}}).Marshal(); err == nil {
		t.Error("an attribute of type int has no error")
	}
}
