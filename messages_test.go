package batchnorm_test

import (
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// Messages count one thing in the singular, and only one.
func TestMessagesCountOne(t *testing.T) {
	one := func(s batchnorm.Shape) *batchnorm.Plan { return newPlan(t, s, batchnorm.WithSingleValue()) }
	for _, c := range []struct {
		err  error
		want string
	}{
		{one(batchnorm.Shape{1, 1, 1}).Forward(batchnorm.ForwardArgs{X: make([]float32, 1)}), "y is missing, 1 element is needed for"},
		{one(batchnorm.Shape{1, 2, 1}).Forward(batchnorm.ForwardArgs{X: make([]float32, 1)}), "x has 1 element, shape 1x2x1 needs 2"},
		{one(batchnorm.Shape{1, 2, 1}).Forward(batchnorm.ForwardArgs{X: make([]float32, 11)}), "x has 11 elements, shape 1x2x1 needs 2"},
		{
			one(batchnorm.Shape{2, 1, 1}).Forward(batchnorm.ForwardArgs{X: make([]float32, 2), Y: make([]float32, 2), Gamma: make([]float32, 2)}),
			"gamma has 2 elements, shape 2x1x1 has 1 channel",
		},
		{batchnorm.AbsorbBias(make([]float32, 3), make([]float32, 1)), "bias has 1 element, mean has 3"},
		{batchnorm.AbsorbBias(make([]float32, 1), make([]float32, 21)), "bias has 21 elements, mean has 1"},
	} {
		if c.err == nil || !strings.HasSuffix(c.err.Error(), c.want) && !strings.Contains(c.err.Error(), c.want+" ") {
			t.Errorf("error is %q, want %q", c.err, c.want)
		}
	}
}
