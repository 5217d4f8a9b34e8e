package coef

import (
	"math"
	"testing"
)

// piece returns the piece that the low bits of the sum give.
func piece(sum float32, shift int) int { return int(math.Float32bits(sum) >> shift % 8) }

// TestPieces checks the choice of the piece: from the first argument to the last the pieces
// come one after the other, each once, the center of each lies in it, and at the end is the
// last.
func TestPieces(t *testing.T) {
	sigmoid := func(t float32) int { return piece(t*SigmoidScale+Nearest, 0) }
	gelu := func(t float32) int { return piece((t+GELUShift)*t+NearestQuarter, 0) }
	mish := func(z float32) int { return piece(z+Nearest, 0) }
	for _, c := range []struct {
		name     string
		table    *Pieces
		of       func(t float32) int
		from, to float32
	}{
		{"Sigmoid", &Sigmoid, sigmoid, 0, SigmoidEnd},
		{"Exp", &Exp, sigmoid, 0, SigmoidEnd},
		{"Softplus", &Softplus, sigmoid, 0, SigmoidEnd},
		{"SiLU", &SiLU, sigmoid, 0, SigmoidEnd},
		{"SiLUSlope", &SiLUSlope, sigmoid, 0, SigmoidEnd},
		{"TanhSlope", &TanhSlope, sigmoid, 0, SigmoidEnd},
		{"GELU", &GELU, gelu, 0, GELUEnd},
		{"GELUSlope", &GELUSlope, gelu, 0, GELUEnd},
		{"GELUTanh", &GELUTanh, gelu, 0, GELUEnd},
		{"GELUTanhSlope", &GELUTanhSlope, gelu, 0, GELUEnd},
		{"Mish", &Mish, mish, MishShift - MishEnd, MishShift + MishEnd},
		{"MishSlope", &MishSlope, mish, MishShift - MishEnd, MishShift + MishEnd},
		{"Tanh", &Tanh, func(t float32) int { return piece(t*TanhScale+1, 22) }, 0, TanhEnd},
		{"Expm1", &Expm1, func(t float32) int { return piece(t*Expm1Scale+1, 22) }, 0, Expm1End},
	} {
		const steps = 1 << 16
		first := c.of(c.from)
		last := first
		for k := range steps + 1 {
			at := c.from + (c.to-c.from)*float32(k)/steps
			if i := c.of(at); i != last && i != (last+1)%8 {
				t.Fatalf("%s: at %v piece %d comes after piece %d", c.name, at, i, last)
			} else if i != last && i == first {
				t.Fatalf("%s: at %v the first piece comes again", c.name, at)
			} else {
				last = i
			}
		}
		if want := (first + 7) % 8; last != want {
			t.Errorf("%s: ends in piece %d, want %d", c.name, last, want)
		}
		for i := range c.table {
			if center := c.table[i].Center; c.of(center) != i {
				t.Errorf("%s: the center of piece %d is %v, which lies in piece %d", c.name, i, center, c.of(center))
			}
		}
		if d := c.table.Degree(); d < 6 || d > MaxDegree {
			t.Errorf("%s: the degree is %d", c.name, d)
		}
	}
}

// TestEdges: the base that stands for the argument is 0, as is its center, and those
// of the other pieces are above the edge, below which the argument is.
func TestEdges(t *testing.T) {
	for _, c := range []struct {
		name        string
		table       *Pieces
		scale, edge float32
	}{{"Tanh", &Tanh, TanhScale, TanhEdge}, {"Expm1", &Expm1, Expm1Scale, Expm1Edge}} {
		first := piece(1, 22)
		for i, p := range c.table {
			if i == first {
				if p.Base != 0 || p.Center != 0 {
					t.Errorf("%s: the first piece has center %v and base %v, want 0", c.name, p.Center, p.Base)
				}
			} else if p.Base < c.edge {
				t.Errorf("%s: piece %d has base %v, want at least %v", c.name, i, p.Base, c.edge)
			}
		}
		if i := piece(c.edge*c.scale+1, 22); i == first {
			t.Errorf("%s: the edge %v lies in the first piece", c.name, c.edge)
		}
	}
}
