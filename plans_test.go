package batchnorm_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

func newPlans(tb testing.TB, opts ...batchnorm.Option) *batchnorm.Plans {
	tb.Helper()
	p, err := batchnorm.NewPlans(opts...)
	noError(tb, err)
	return p
}

// A plan is that of its shape and of the options. It is the same as long as it is
// among those used last: compared with a list in the order of use.
func TestPlans(t *testing.T) {
	for _, capacity := range []int{1, 2, 3, 7, 8, 20, batchnorm.DefaultCapacity} {
		plans := newPlans(t, batchnorm.Keras(), batchnorm.WithCapacity(capacity), batchnorm.WithActivation(batchnorm.ReLU))
		r := rand.New(rand.NewPCG(1, uint64(capacity)))
		var used []batchnorm.Shape // the last first
		have := map[batchnorm.Shape]*batchnorm.Plan{}
		hits, misses := 0, 0
		for range 4000 {
			s := batchnorm.Shape{Outer: r.IntN(2 + capacity/3), Channels: 1 + r.IntN(2), Inner: 1 + r.IntN(2)}
			p, err := plans.Plan(s)
			noError(t, err)
			if p.Shape() != s || p.Epsilon() != 1e-3 || p.Activation() != batchnorm.ReLU {
				t.Fatalf("the plan for %v is for %v with epsilon %v and %v", s, p.Shape(), p.Epsilon(), p.Activation())
			}
			at, hit := slices.Index(used, s), have[s] == p
			sure := capacity - capacity/4
			if capacity < 8 {
				sure = capacity
			}
			if hit {
				hits++
			} else {
				misses++
			}
			if hit && (at < 0 || capacity < 8 && at >= sure) || !hit && at >= 0 && at < sure {
				t.Fatalf("capacity %d: %v was used %d shapes ago; the plan is the same: %t", capacity, s, at, hit)
			}
			if at >= 0 {
				used = slices.Delete(used, at, at+1)
			}
			used = slices.Insert(used, 0, s)
			have[s] = p
			got := plans.Shapes()
			if capacity < 8 && !slices.Equal(got, used[:min(len(used), capacity)]) || len(got) > capacity || len(got) != plans.Len() {
				t.Fatalf("capacity %d: there are %d plans, for %v, want %v", capacity, plans.Len(), got, used)
			}
		}
		if hits < 200 || misses < 200 {
			t.Errorf("capacity %d: %d hits and %d misses test little", capacity, hits, misses)
		}
	}
}

func TestPlansErrors(t *testing.T) {
	for _, n := range []int{0, -1, 1<<16 + 1} {
		if p, err := batchnorm.NewPlans(batchnorm.WithCapacity(n)); p != nil || !errors.Is(err, batchnorm.ErrOption) || !strings.Contains(err.Error(), "capacity") {
			t.Errorf("capacity %d gives %v, %v, want ErrOption", n, p, err)
		}
	}
	if p, err := batchnorm.NewPlans(batchnorm.WithEpsilon(-1)); p != nil || !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("a bad epsilon gives %v, %v, want ErrOption", p, err)
	}
	for _, plans := range []*batchnorm.Plans{nil, {}} {
		if p, err := plans.Plan(someShape); p != nil || !errors.Is(err, batchnorm.ErrNilPlan) {
			t.Errorf("no plans give %v, %v, want ErrNilPlan", p, err)
		}
		if plans.Len() != 0 {
			t.Error("no plans have plans")
		}
	}
	plans := newPlans(t, batchnorm.WithCapacity(1))
	first, err := plans.Plan(someShape)
	noError(t, err)
	if p, err := plans.Plan(batchnorm.Shape{1, 0, 1}); p != nil || !errors.Is(err, batchnorm.ErrShape) {
		t.Errorf("a bad shape gives %v, %v, want ErrShape", p, err)
	}
	if again, err := plans.Plan(someShape); err != nil || again != first {
		t.Error("a bad shape takes the place of a plan")
	}
}

// Options belong to Plans: who changes the slice afterwards changes nothing.
func TestPlansKeepOptions(t *testing.T) {
	opts := []batchnorm.Option{batchnorm.WithEpsilon(0.5)}
	plans := newPlans(t, opts...)
	opts[0] = batchnorm.WithEpsilon(0.25)
	p, err := plans.Plan(someShape)
	noError(t, err)
	if p.Epsilon() != 0.5 {
		t.Errorf("epsilon is %v, want 0.5", p.Epsilon())
	}
}

func TestPlansNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	plans := newPlans(t)
	i := 0
	expectNoAllocations(t, 10*batchnorm.DefaultCapacity, "a hit", func() error {
		i++
		if i > batchnorm.DefaultCapacity {
			_, err := plans.Plan(batchnorm.Shape{Outer: i % batchnorm.DefaultCapacity, Channels: 3, Inner: 1})
			return err
		}
		for outer := range batchnorm.DefaultCapacity {
			if _, err := plans.Plan(batchnorm.Shape{Outer: outer, Channels: 3, Inner: 1}); err != nil {
				return err
			}
		}
		i = batchnorm.DefaultCapacity
		return nil
	})
}

// Several goroutines find, make and lose plans, and use them.
func TestPlansConcurrent(t *testing.T) {
	plans := newPlans(t, batchnorm.WithCapacity(4))
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(7, uint64(g)))
			for range 400 {
				s := batchnorm.Shape{Outer: 2 + r.IntN(9), Channels: 3, Inner: 4}
				p, err := plans.Plan(s)
				if err != nil || p.Shape() != s {
					t.Errorf("%v gets the plan of %v, %v", s, p.Shape(), err)
					return
				}
				x, y := gen.Normal(1, s.Len(), 0, 1), make([]float32, s.Len())
				if err := p.Forward(batchnorm.ForwardArgs{X: x, Y: y}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if plans.Len() != 4 {
		t.Errorf("there are %d plans, want 4", plans.Len())
	}
	// Whatever happened, the table is whole: all its shapes are hits.
	for _, s := range plans.Shapes() {
		before := plans.Shapes()
		if _, err := plans.Plan(s); err != nil {
			t.Error(err)
		}
		if after := plans.Shapes(); len(after) != len(before) || after[0] != s {
			t.Errorf("%v is among %v and is not found", s, before)
		}
	}
}

// BenchmarkPlans is the time of a hit: of one shape, of several in turn, and of
// these by all processors at a time.
func BenchmarkPlans(b *testing.B) {
	plans := newPlans(b)
	var shapes []batchnorm.Shape
	for i := range batchnorm.DefaultCapacity {
		shapes = append(shapes, batchnorm.Shape{Outer: 1 + i, Channels: 64, Inner: 49})
	}
	hit := func(b *testing.B, s batchnorm.Shape) {
		if _, err := plans.Plan(s); err != nil {
			b.Fatal(err)
		}
	}
	for _, s := range shapes {
		hit(b, s)
	}
	for _, n := range []int{1, 16, len(shapes)} {
		b.Run(fmt.Sprintf("shapes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				hit(b, shapes[i%n])
			}
		})
		b.Run(fmt.Sprintf("parallel/shapes=%d", n), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					hit(b, shapes[i%n])
				}
			})
		})
	}
}
