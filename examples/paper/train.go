package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// recipe has everything that decides a training. The same recipe gives the same trace, bit
// by bit.
type recipe struct {
	design      design
	train, test *fashion.Set
	batch       int     // images of a step
	steps       int     // how many
	rate        float64 // by which a gradient is multiplied
	order       uint64  // seed of the images' order
	points      int     // number of measurements, besides the one before the first step
	watch       bool    // measure the inputs of the activations, too
	probe       int     // images of the test set for each measurement, a multiple of probeBatch
	final       int     // images of either set for the last one, likewise
}

// trace has the measurements of a training. Slices with a value for every measurement have
// the same order.
type trace struct {
	recipe
	net *network // the network after the last step

	at       []int     // number of steps before each measurement
	accuracy []float64 // share of probe images of the test set whose label was found

	// If watched: share of a hidden layer's activations, by measurement and
	// layer, on a flat end: derivative < flatEnd.
	flat [][]float64

	// If watched: the inputs of the units of the last hidden layer, by measurement and
	// unit, as the 15th, 50th and 85th percentile over the probe images.
	percentiles [][][3]float64

	// With a bias before batch norm: the largest gradient of a bias as Plan.BiasGradient
	// gives it; and as the sum over the images, alone and as a share of the sum of the
	// absolute values of its addends.
	biasExact, biasGradient, biasShare float64

	diverged int // the step whose loss was not finite; -1: none

	// Accuracy after the last step, on the first final images of the training
	// set, and of the test set.
	finalTrain, finalTest float64
}

const (
	probeBatch = 50 // images that are measured at a time
	flatEnd    = 0.01
	newWeight  = 0.1 // of a step in the running statistics
)

// percents are the percentiles of Figure 1(b, c).
var percents = [3]float64{0.15, 0.50, 0.85}

// cost returns the work of a recipe, in images that a network trains on.
func (r *recipe) cost() int {
	const forwardOnly = 3 // a pass there and back takes about three times as long
	return r.steps*r.batch + ((r.points+1)*r.probe+2*r.final)/forwardOnly
}

// run trains. It reports progress, in units of cost.
func (r recipe) run(progress func(int)) (*trace, error) {
	t := &trace{recipe: r, net: newNetwork(r.design), diverged: -1}
	p, err := newPass(t.net, r.batch)
	if err != nil {
		return nil, err
	}
	probe, err := newPass(t.net, probeBatch)
	if err != nil {
		return nil, err
	}
	done := 0
	order := newOrder(r.train.N, r.order)
	images := make([]int, r.batch)
	for step := 0; ; step++ {
		order.next(images)
		p.fill(r.train, images)
		p.momentum = momentum(step, r.design.batches(r.batch))
		loss, err := p.forward(training)
		if err != nil {
			return nil, err
		}
		if !finite(loss) {
			t.diverged = step
			break
		}
		if len(t.at)*r.steps <= step*r.points {
			if err := t.measure(probe, step); err != nil {
				return nil, err
			}
		}
		if step == r.steps {
			break
		}
		if err := p.backward(); err != nil {
			return nil, err
		}
		if err := t.observeBias(p); err != nil {
			return nil, err
		}
		t.net.step(float32(r.rate))
		done += r.batch
		progress(r.batch)
	}
	if t.diverged < 0 {
		if t.finalTrain, err = accuracyOf(probe, r.train.First(r.final)); err != nil {
			return nil, err
		}
		if t.finalTest, err = accuracyOf(probe, r.test.First(r.final)); err != nil {
			return nil, err
		}
	}
	progress(r.cost() - done)
	return t, nil
}

// measure adds a measurement.
func (t *trace) measure(probe *pass, step int) error {
	var pre [][]float64
	right, n := 0, 0
	err := probe.each(t.test.First(t.probe), func() error {
		right += probe.correct()
		n += probe.n
		if !t.watch {
			return nil
		}
		var err error
		pre, err = probe.collect(pre)
		return err
	})
	if err != nil {
		return err
	}
	t.at = append(t.at, step)
	t.accuracy = append(t.accuracy, float64(right)/float64(n))
	if !t.watch {
		return nil
	}
	var flat []float64
	for _, values := range pre {
		count := 0
		for _, z := range values {
			if t.design.act.slope(z) < flatEnd {
				count++
			}
		}
		flat = append(flat, float64(count)/float64(len(values)))
	}
	t.flat = append(t.flat, flat)
	units := make([][3]float64, t.design.hidden[len(pre)-1])
	for i := range units {
		own := unitValues(pre[len(pre)-1], i, len(units))
		slices.Sort(own)
		for k, share := range percents {
			units[i][k] = percentile(own, share)
		}
	}
	t.percentiles = append(t.percentiles, units)
	return nil
}

// collect adds the inputs of the activations of every hidden layer in the last forward
// pass, which was in inference mode, image by image.
func (p *pass) collect(layers [][]float64) ([][]float64, error) {
	if layers == nil {
		layers = make([][]float64, len(p.net.hidden))
	}
	for i := range layers {
		pre, err := p.preactivations(i)
		if err != nil {
			return nil, err
		}
		for _, z := range pre {
			layers[i] = append(layers[i], float64(z))
		}
	}
	return layers, nil
}

// unitValues returns the values of one unit of a layer.
func unitValues(values []float64, unit, units int) []float64 {
	own := make([]float64, 0, len(values)/units)
	for k := unit; k < len(values); k += units {
		own = append(own, values[k])
	}
	return own
}

// momentum returns the momentum of the running statistics in a step of so many batches or
// ghost batches. At first they are the plain average of all. Later a step has about the
// same weight with any number of ghost batches.
func momentum(step, batches int) batchnorm.Momentum {
	if number := step*batches + 1; float64(number)*newWeight <= float64(batches) {
		return batchnorm.Cumulative(number)
	}
	return batchnorm.NewWeight(newWeight / float64(batches))
}

// observeBias notes the gradient of the biases in front of batch norm.
func (t *trace) observeBias(p *pass) error {
	for i, l := range p.net.layers {
		if !l.norm || l.bias == nil {
			continue
		}
		exact := slices.Clone(l.dbias) // a copy, so that an element that is not written shows
		err := p.layers[i].fused.given.BiasGradient(batchnorm.BiasGradientArgs{Gamma: l.gamma, DBeta: l.dbeta, DBias: exact})
		if err != nil {
			return err
		}
		for _, d := range exact {
			t.biasExact = max(t.biasExact, math.Abs(float64(d)))
		}
		for unit, d := range l.dbias {
			sum := 0.0
			for k := unit; k < len(p.layers[i].dz); k += l.out {
				sum += math.Abs(float64(p.layers[i].dz[k]))
			}
			gradient := math.Abs(float64(d))
			t.biasGradient = max(t.biasGradient, gradient)
			if sum > 0 {
				t.biasShare = max(t.biasShare, gradient/sum)
			}
		}
	}
	return nil
}

// each calls f after each forward pass in inference mode. Passes take p.n images of the set
// at a time, and leave out the rest.
func (p *pass) each(set *fashion.Set, f func() error) error {
	images := make([]int, p.n)
	for first := 0; first+p.n <= set.N; first += p.n {
		for k := range images {
			images[k] = first + k
		}
		p.fill(set, images)
		if _, err := p.forward(inference); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func accuracyOf(p *pass, set *fashion.Set) (float64, error) {
	right, n := 0, 0
	err := p.each(set, func() error {
		right += p.correct()
		n += p.n
		return nil
	})
	return float64(right) / float64(n), err
}

// order draws images in random order, each once before any is drawn again.
type order struct {
	r    *rand.Rand
	deck []int
	used int
}

func newOrder(n int, seed uint64) *order {
	o := &order{r: rand.New(rand.NewPCG(seed, 0)), deck: make([]int, n), used: n}
	for i := range o.deck {
		o.deck[i] = i
	}
	return o
}

func (o *order) next(images []int) {
	for i := range images {
		if o.used == len(o.deck) {
			o.r.Shuffle(len(o.deck), func(i, j int) { o.deck[i], o.deck[j] = o.deck[j], o.deck[i] })
			o.used = 0
		}
		images[i] = o.deck[o.used]
		o.used++
	}
}

// runAll runs recipes, several at a time, and returns their traces by name.
func runAll(recipes map[string]recipe, workers int, progress func(int)) (map[string]*trace, error) {
	type outcome struct {
		name  string
		trace *trace
		err   error
	}
	// The longest first, so that no core waits for it at the end.
	names := slices.Sorted(maps.Keys(recipes))
	slices.SortStableFunc(names, func(a, b string) int {
		ra, rb := recipes[a], recipes[b]
		return rb.cost() - ra.cost()
	})
	todo := make(chan string, len(names))
	for _, name := range names {
		todo <- name
	}
	close(todo)
	outcomes := make(chan outcome, len(names))
	var wg sync.WaitGroup
	for range min(workers, len(names)) {
		wg.Go(func() {
			for name := range todo {
				t, err := recipes[name].run(progress)
				outcomes <- outcome{name, t, err}
			}
		})
	}
	wg.Wait()
	close(outcomes)
	traces := map[string]*trace{}
	var errs []error
	for o := range outcomes {
		if o.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", o.name, o.err))
			continue
		}
		traces[o.name] = o.trace
	}
	return traces, errors.Join(errs...)
}
