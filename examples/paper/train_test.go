package main

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// testLab has all images, and measures little.
func testLab(t *testing.T) *lab {
	t.Helper()
	train, test, err := fashion.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return &lab{
		train: train, test: test, data: "built in", seed: 1, steps: 4, claimSteps: 4, batch: paperBatch, rate: 0.1,
		path: batchnorm.DefaultPath(), workers: 2, probe: 2 * probeBatch, final: probeBatch, companies: 3, timedSteps: 2,
	}
}

// TestLearns trains the paper's network for 150 steps. An untrained one is
// right about one time in ten: no more than a quarter is far outside what 1,000
// images can do by chance.
func TestLearns(t *testing.T) {
	const steps, chance, learned = 150, 0.25, 0.60
	l := testLab(t)
	l.probe, l.final = 1000, 1000
	last := map[bool]float64{}
	for _, norm := range both {
		r := l.recipe(sigmoid, norm, steps)
		r.points = 1
		trace, err := r.run(func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(trace.at, []int{0, steps}) {
			t.Fatalf("measured at %v", trace.at)
		}
		if a := trace.accuracy[0]; a > chance {
			t.Errorf("%s: the accuracy before the first step is %v, want at most %v", withName(norm), a, chance)
		}
		if a := trace.accuracy[1]; norm && a < learned {
			t.Errorf("%s: the accuracy after %d steps is %v, want at least %v", withName(norm), steps, a, learned)
		}
		last[norm] = trace.accuracy[1]
	}
	if last[true] <= last[false] {
		t.Errorf("after %d steps the accuracy is %v with batch norm, %v without", steps, last[true], last[false])
	}
}

func TestMeasurements(t *testing.T) {
	l := testLab(t)
	r := l.recipe(sigmoid, true, 10)
	r.points = 4
	done := 0
	trace, err := r.run(func(n int) { done += n })
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{0, 3, 5, 8, 10}; !slices.Equal(trace.at, want) {
		t.Errorf("measured at %v, want %v", trace.at, want)
	}
	if done != r.cost() {
		t.Errorf("progress is %d, want %d", done, r.cost())
	}
	if len(trace.accuracy) != 5 || len(trace.flat) != 5 || len(trace.percentiles) != 5 {
		t.Errorf("%d accuracies, %d shares, %d percentiles, want 5 each", len(trace.accuracy), len(trace.flat), len(trace.percentiles))
	}
	for i, units := range trace.percentiles {
		for unit, v := range units {
			if !(v[0] <= v[1] && v[1] <= v[2]) {
				t.Errorf("measurement %d: percentiles of unit %d are %v", i, unit, v)
			}
		}
		// As batch norm makes the deviation 1, most are within some of 0.
		if width := units[0][2] - units[0][0]; !(width > 0.5 && width < 6) {
			t.Errorf("measurement %d: the outer percentiles are %v apart", i, width)
		}
	}
}

// A rate without reason ends the training, and is no error.
func TestDiverges(t *testing.T) {
	l := testLab(t)
	r := l.recipe(relu, false, 50)
	r.rate = 1e30
	done := 0
	trace, err := r.run(func(n int) { done += n })
	if err != nil {
		t.Fatal(err)
	}
	if trace.diverged < 1 || trace.diverged > 10 {
		t.Errorf("diverged at step %d", trace.diverged)
	}
	if trace.settled() != 0 {
		t.Errorf("settled at %v", trace.settled())
	}
	if done != r.cost() {
		t.Errorf("progress is %d, want %d", done, r.cost())
	}
}

// The gradient of a bias in front of batch norm is 0, which does not hold of
// one that is not.
func TestBiasGradient(t *testing.T) {
	l := testLab(t)
	r := l.recipe(tanh, true, 5)
	r.design.bias = true
	trace, err := r.run(func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if trace.biasExact != 0 {
		t.Errorf("Plan.BiasGradient gives %v", trace.biasExact)
	}
	if trace.biasShare == 0 || trace.biasShare > 1e-6 {
		t.Errorf("the gradient is %v of its addends", trace.biasShare)
	}
	if last := trace.net.layers[3]; slices.Max(last.dbias) < 1e-4 {
		t.Errorf("the gradient of the last layer's bias is %v", last.dbias)
	}
}

// The running statistics are the average of all batches at first, and then weigh
// a step the same, cut or whole.
func TestMomentum(t *testing.T) {
	for _, batches := range []int{1, 8, 32} {
		for _, c := range []struct {
			step int
			want batchnorm.Momentum
		}{
			{0, batchnorm.Cumulative(1)},
			{1, batchnorm.Cumulative(batches + 1)},
			{9, batchnorm.Cumulative(9*batches + 1)},
			{10, batchnorm.NewWeight(0.1 / float64(batches))},
			{1000, batchnorm.NewWeight(0.1 / float64(batches))},
		} {
			if got := momentum(c.step, batches); got != c.want {
				t.Errorf("%d batches, step %d: %+v, want %+v", batches, c.step, got, c.want)
			}
		}
	}
}

func TestOrder(t *testing.T) {
	const n = 10
	o, same, other := newOrder(n, 1), newOrder(n, 1), newOrder(n, 2)
	differs, lasts := false, map[int]bool{}
	for round := range 6 {
		var drawn []int
		for range 2 { // a round is all images
			images, again, others := make([]int, n/2), make([]int, n/2), make([]int, n/2)
			o.next(images)
			same.next(again)
			other.next(others)
			if !slices.Equal(images, again) {
				t.Errorf("round %d: the same seed draws %v and %v", round, images, again)
			}
			differs = differs || !slices.Equal(images, others)
			drawn = append(drawn, images...)
		}
		lasts[drawn[n-1]] = true
		slices.Sort(drawn)
		if !slices.Equal(drawn, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("round %d draws %v", round, drawn)
		}
	}
	if !differs {
		t.Error("the order does not depend on the seed")
	}
	if len(lasts) == 1 {
		t.Errorf("the last image of every round is among %v", lasts)
	}
}

// The results of trainings do not depend on the number that run at a time.
func TestRunAll(t *testing.T) {
	l := testLab(t)
	recipes := map[string]recipe{}
	for _, norm := range both {
		for _, act := range []*activation{relu, tanh} {
			recipes[claimName(act, norm)] = l.recipe(act, norm, 3)
		}
	}
	alone, err := runAll(recipes, 1, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	together, err := runAll(recipes, 3, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for name := range recipes {
		if a, b := alone[name].net.hash(), together[name].net.hash(); a != b {
			t.Errorf("%s: %s alone, %s together", name, a, b)
		}
	}
	bad := l.recipe(relu, true, 1)
	bad.batch = 1 // too few for batch norm
	if _, err := runAll(map[string]recipe{"bad": bad}, 1, func(int) {}); err == nil {
		t.Error("a training that can't be has no error")
	}
}

func TestSettled(t *testing.T) {
	tr := &trace{accuracy: []float64{0, 0, 0, 0, 0, 0, 0, 0, .4, .6}, diverged: -1}
	if got := tr.settled(); math.Abs(got-0.5) > 1e-15 {
		t.Errorf("settled at %v, want 0.5", got)
	}
	tr.diverged = 3
	if got := tr.settled(); got != 0 {
		t.Errorf("settled at %v after divergence", got)
	}
}
