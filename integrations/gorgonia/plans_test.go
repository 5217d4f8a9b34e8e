package gorgoniabn

import (
	"testing"

	"github.com/fusedbn/batchnorm"
)

// The number of plans kept is bounded.
func TestPlansAreBounded(t *testing.T) {
	p, err := newPlans()
	check(t, err)
	for n := range 5 * maxPlans {
		s := batchnorm.Shape{Outer: n, Channels: 2, Inner: 1}
		plan, err := p.Plan(s)
		check(t, err)
		if again, err := p.Plan(s); plan != again || err != nil || plan.Shape() != s {
			t.Fatalf("the plan of %v is %v, and then another one (error %v)", s, plan.Shape(), err)
		}
		if len(p.of) > maxPlans {
			t.Fatalf("%d plans are kept", len(p.of))
		}
	}
}
