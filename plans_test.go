package batchnorm_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
		p, err := batchnorm.NewPlans(batchnorm.WithCapacity(n))
		if p != nil {
			t.Errorf("capacity %d gives plans", n)
		}
		expectErrorWords(t, "capacity", err, batchnorm.ErrOption, "capacity", fmt.Sprint(n))
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

// scratchShapes are walked in all ways, and need scratch memory of all kinds and sizes.
var scratchShapes = []batchnorm.Shape{{Outer: 5, Channels: 21, Inner: 13}, {Outer: 2, Channels: 3, Inner: 5000},
	{Outer: 150, Channels: 37, Inner: 1},
	{Outer: 9, Channels: 140, Inner: 1}, {Outer: 20, Channels: 11, Inner: 3}, {Outer: 40, Channels: 60, Inner: 9},
	{Outer: 1, Channels: 2, Inner: 70000},
	{Outer: 3000, Channels: 1, Inner: 1}, {Outer: 3, Channels: 900, Inner: 1}}

// Plans share scratch memory, and a call does not see the calls of other plans before
// it: results have the bits of a plan with memory of its own. In between, the memory
// is filled with numbers that would show.
func TestPlansShareScratch(t *testing.T) {
	calls := 60
	if !thorough() {
		calls = 24
	}
	for k, path := range batchnorm.Paths() {
		for a, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.SiLU} {
			for _, workers := range []int{1, 3} {
				opts := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(act), batchnorm.WithWorkers(workers)}
				plans := newPlans(t, opts...)
				r := rand.New(rand.NewPCG(uint64(k), uint64(a)))
				for i := range calls {
					s := scratchShapes[r.IntN(len(scratchShapes))]
					p := newProblem(s, hasResidual|hasGammaBeta)
					p.act = act
					if i%3 > 0 {
						p.unusual(uint64(i))
					}
					if i%4 == 0 {
						p.gamma, p.beta = nil, nil
					}
					mask := batchnorm.Mask{}
					if r.IntN(2) == 0 {
						mask.Valid = valid(masksFor(s, 1)["half"], s)
					}
					plan, err := plans.Plan(s)
					noError(t, err)
					if d := p.onPlan(t, plan, mask).compare(p.onPlan(t, newPlan(t, s, opts...), mask)); d != "" {
						t.Fatalf("%v, %v, %v, %d workers, call %d: with shared memory %s", s, path, act, workers, i, d)
					}
					plans.SoilScratch()
				}
			}
		}
	}
}

// Once every plan was called, calls of all in turn allocate nothing, and there is no
// more memory than the largest shape needs.
func TestPlansScratchSize(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	plans := newPlans(t, batchnorm.WithWorkers(3))
	var cases []func() error
	alone := 0
	for _, s := range scratchShapes {
		c := newAllocCase(s, 1)
		masked := c.forward
		masked.Mask.Valid = valid(masksFor(s, 1)["half"], s)
		plan, err := plans.Plan(s)
		noError(t, err)
		own := newPlans(t, batchnorm.WithWorkers(3))
		planOfOwn, err := own.Plan(s)
		noError(t, err)
		calls := func(p *batchnorm.Plan) []func() error {
			return []func() error{func() error { return p.Forward(c.forward) }, func() error { return p.Inference(c.inference) },
				func() error { return p.Backward(c.backward) }, func() error { return p.Forward(masked) }}
		}
		for _, call := range calls(planOfOwn) {
			noError(t, call())
		}
		alone += own.ScratchBytes()
		cases = append(cases, calls(plan)...)
	}
	all := func() error {
		for _, call := range cases {
			if err := call(); err != nil {
				return err
			}
		}
		return nil
	}
	expectNoAllocations(t, 3, "all plans in turn", all)
	if shared := plans.ScratchBytes(); shared > alone/3 {
		t.Errorf("%d bytes are shared, %d plans would have %d of their own", shared, len(scratchShapes), alone)
	}
}

// BenchmarkPlansScratch is the time of small forward passes by two plans in turn: with
// memory of their own, and with shared memory, which each divides anew.
func BenchmarkPlansScratch(b *testing.B) {
	for _, channels := range []int{16, 256, 2048} {
		for _, shared := range []bool{false, true} {
			plans := newPlans(b)
			var calls [2]func() error
			for i := range calls {
				s := batchnorm.Shape{Outer: 8 + i, Channels: channels, Inner: 1}
				plan := newPlan(b, s)
				if shared {
					var err error
					plan, err = plans.Plan(s)
					noError(b, err)
				}
				c := newAllocCase(s, 1)
				calls[i] = func() error { return plan.Forward(c.forward) }
			}
			b.Run(fmt.Sprintf("channels=%d/shared=%t", channels, shared), func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					noError(b, calls[i%2]())
				}
			})
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

// An operator of a framework meets its shapes at run time: the last batch of an
// epoch is smaller, images have several sizes.
func ExamplePlans() {
	plans, err := batchnorm.NewPlans(batchnorm.ONNX(), batchnorm.WithActivation(batchnorm.ReLU))
	if err != nil {
		fmt.Println(err)
		return
	}
	infer := func(x []float32, dims ...int) error {
		shape, err := batchnorm.NCHW(dims...)
		if err != nil {
			return err
		}
		plan, err := plans.Plan(shape)
		if err != nil {
			return err
		}
		return plan.Inference(batchnorm.InferenceArgs{X: x, Y: x, Mean: []float32{1, 2}, Var: []float32{1, 4}})
	}
	for _, n := range []int{3, 3, 1} {
		x := make([]float32, n*2*2)
		for i := range x {
			x[i] = 3
		}
		if err := infer(x, n, 2, 2); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%d images, %d plans: %.2f\n", n, plans.Len(), x[:4])
	}
	// Output:
	// 3 images, 1 plans: [2.00 2.00 0.50 0.50]
	// 3 images, 1 plans: [2.00 2.00 0.50 0.50]
	// 1 images, 2 plans: [2.00 2.00 0.50 0.50]
}
