package onnxmodel

import (
	"math"
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
	for _, n := range m.Graph.Node {
		if n.OpType == "BatchNormalization" {
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
	b, err := batchNormOf(m.Graph, m.Graph.Node[1])
	if err != nil {
		t.Fatal(err)
	}
	scale, shift := initializer(c.Graph, "block1.norm.scale"), initializer(c.Graph, "block1.norm.shift")
	for k := range b.scale {
		got := 3*float64(scale.FloatData[k]) + float64(shift.FloatData[k])
		want := (3-float64(b.mean[k]))/math.Sqrt(float64(b.variance[k])+b.epsilon)*float64(b.scale[k]) + float64(b.bias[k])
		if math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
			t.Errorf("channel %d: %v, want %v", k, got, want)
		}
	}
	for _, n := range c.Graph.Node {
		if n.OpType == "BatchNormalization" {
			t.Errorf("%s is left", n.Name)
		}
	}
	if len(m.Graph.Node) == len(c.Graph.Node) {
		t.Error("the model itself was changed")
	}
}
