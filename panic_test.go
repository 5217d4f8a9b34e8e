package batchnorm_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// unruly is an executor that does as it should, or not.
type unruly struct {
	behaviour string
	loops     int // since it behaves so
}

func (u *unruly) run(n int, task func(int)) {
	u.loops++
	switch u.behaviour {
	case "panics before the first task":
		panic(u)
	case "panics in the middle":
		for i := range (n + 1) / 2 {
			task(i)
		}
		panic(u)
	case "panics in the second loop":
		if u.loops == 2 {
			panic(u)
		}
	case "panics behind the last task":
		defer panic(u)
	case "leaves out the first task":
		for i := 1; i < n; i++ {
			task(i)
		}
		return
	case "leaves out the last task":
		n--
	case "leaves out all tasks":
		return
	case "runs every task twice":
		for i := range n {
			task(i)
		}
	}
	for i := range n {
		task(i)
	}
}

// try calls an operation, and reports whether it panicked.
func (u *unruly) try(t *testing.T, call func() error) (panicked bool) {
	t.Helper()
	u.loops = 0
	defer func() {
		if r := recover(); r != nil {
			if panicked = true; r != any(u) {
				t.Errorf("it panics with %v", r)
			}
		}
	}()
	noError(t, call())
	return false
}

// TestUnrulyExecutor: whatever an executor does, the calls behind it have the bits that
// they have on a new plan.
func TestUnrulyExecutor(t *testing.T) {
	t.Parallel()
	behaviours := []string{
		"panics before the first task", "panics in the middle", "panics in the second loop", "panics behind the last task",
		"leaves out the first task", "leaves out the last task", "leaves out all tasks", "runs every task twice",
	}
	panics := map[string]bool{}
	turn, each := 0, 3 // behaviours go round
	if !thorough() {
		each = 1
	}
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 40, Inner: 30}, {Outer: 1, Channels: 1, Inner: 70000}, {Outer: 300, Channels: 70,
		Inner: 1}} {
		masks := map[string]batchnorm.Mask{"no mask": {}, "mask": {Valid: valid(masksFor(s, 1)["half"], s)}}
		for _, path := range batchnorm.Paths() {
			for schedule := range 3 {
				u := &unruly{}
				opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithWorkers(3), batchnorm.WithActivation(batchnorm.LeakyReLU(0.5))}
				if schedule > 0 {
					opts = append(opts, batchnorm.WithExtremeSchedule(schedule == 2))
				}
				healthy := newPlan(t, s, opts...)
				p := newPlan(t, s, append(slices.Clone(opts), batchnorm.WithExecutor(u.run))...)
				for _, op := range operations {
					for maskName, mask := range masks {
						newArgs := func() any {
							args := op.args(s)
							if f := field(args, "Mask"); f.IsValid() {
								f.Set(reflect.ValueOf(mask))
							}
							return args
						}
						want := newArgs()
						noError(t, op.call(healthy, want))
						for range each {
							b := behaviours[turn%len(behaviours)]
							turn++
							u.behaviour = b
							args := newArgs()
							if u.try(t, func() error { return op.call(p, args) }) {
								panics[b] = true
							}
							u.behaviour = ""
							got := newArgs()
							noError(t, op.call(p, got))
							expectSameArgs(t, fmt.Sprintf("%v, %v, schedule %d, %s with %s, behind an executor that %s", s, path, schedule, op.name, maskName, b),
								op, got, want)
							if t.Failed() {
								return
							}
						}
					}
				}
			}
		}
	}
	for _, b := range behaviours[:4] {
		if !panics[b] {
			t.Errorf("no executor that %s has made a call panic", b)
		}
	}
}
