package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// statistics names the images whose statistics batch norm takes.
type statistics int

const (
	synchronized statistics = iota // those of all ranks
	local                          // those of the rank
	alone                          // rank 0 has all images, the others none
)

// recipe has everything that decides a training. The same recipe gives the same network on
// every rank, and in every run.
type recipe struct {
	units int
	batch int // images of each rank in a step
	steps int
	rate  float64
	seed  uint64
	test  int // images of the test set
}

// result is the outcome of a training.
type result struct {
	net      *network
	loss     float64 // mean over the last steps
	accuracy float64 // on the test set
	hashes   []uint64
	time     time.Duration
	exchange time.Duration // of it; waiting for other ranks is part of it
}

// share returns the share of the time that was spent in exchanges.
func (r *result) share() float64 { return r.exchange.Seconds() / r.time.Seconds() }

// worker trains on one rank.
type worker struct {
	collective  *timed
	group       *batchnorm.SyncGroup
	train, test *fashion.Set
	progress    func(steps int, loss float64)
}

// timed adds up the time that a rank spends in exchanges.
type timed struct {
	batchnorm.Collective
	total time.Duration
}

func (t *timed) Exchange(recv, send [][]float64) error {
	begin := time.Now()
	defer func() { t.total += time.Since(begin) }()
	return t.Collective.Exchange(recv, send)
}

func newWorker(c batchnorm.Collective, train, test *fashion.Set, progress func(int, float64)) (*worker, error) {
	t := &timed{Collective: c}
	g, err := batchnorm.NewSyncGroup(t)
	return &worker{t, g, train, test, progress}, err
}

// run trains. The images of a step are the same however they are distributed.
func (w *worker) run(r recipe, s statistics) (*result, error) {
	rank, ranks := w.group.Rank(), w.group.Size()
	net, err := newNetwork(r.units, r.seed)
	if err != nil {
		return nil, err
	}
	out := &result{net: net}
	begin, exchanged := time.Now(), w.collective.total
	switch {
	case s == synchronized:
		if err := net.synchronize(w.group); err != nil {
			return nil, err
		}
		err = w.steps(out, r, rank*r.batch, r.batch, 1, func() error { return w.group.AllReduce(net.gradients[:net.own]) })
	case s == local:
		err = w.steps(out, r, rank*r.batch, r.batch, 1, func() error { return w.group.AllReduce(net.gradients) })
		net.running(func(v []float32) {
			if err != nil {
				return
			}
			if err = w.group.AllReduce(v); err == nil {
				for c := range v {
					v[c] /= float32(ranks)
				}
			}
		})
	case rank == 0:
		err = w.steps(out, r, 0, r.batch*ranks, ranks, func() error { return nil })
	}
	if err != nil {
		return nil, err
	}
	out.time, out.exchange = time.Since(begin), w.collective.total-exchanged
	if s == alone {
		err = w.share(net)
	}
	if err != nil {
		return nil, err
	}
	if err := w.evaluate(out, r); err != nil {
		return nil, err
	}
	out.hashes, err = w.gather(net.hash())
	return out, err
}

// steps trains on n images of each step, from the first on. Their gradients are taken over
// so many parts and then reduced.
func (w *worker) steps(out *result, r recipe, first, n, parts int, reduce func() error) error {
	all := r.batch * w.group.Size()
	p := newPass(out.net, n)
	images := make([]int, all)
	deck := newOrder(w.train.N, r.seed)
	const smooth = 0.98
	for step := range r.steps {
		deck.next(images)
		p.fill(w.train, images[first:][:n])
		if err := p.forward(true); err != nil {
			return err
		}
		loss, _ := p.loss(all)
		if err := p.backward(parts); err != nil {
			return err
		}
		if err := reduce(); err != nil {
			return err
		}
		out.net.step(float32(r.rate))
		loss /= float64(n)
		if step > 0 {
			loss = smooth*out.loss + (1-smooth)*loss
		}
		out.loss = loss
		w.progress(1, loss)
	}
	return nil
}

// share gives rank 0's network to all ranks, as the sum of it and the zeros of the others.
func (w *worker) share(net *network) (err error) {
	give := func(v []float32) {
		if w.group.Rank() != 0 {
			clear(v)
		}
		if err == nil {
			err = w.group.AllReduce(v)
		}
	}
	net.parameters(func(value, _ []float32) { give(value) })
	net.running(give)
	return err
}

// evaluate finds the accuracy on the test set, of which each rank takes a part, and
// replaces the loss by the mean over all ranks.
func (w *worker) evaluate(out *result, r recipe) error {
	rank, ranks := w.group.Rank(), w.group.Size()
	test := w.test.First(r.test)
	p := newPass(out.net, 1)
	right := 0
	for i := rank; i < test.N; i += ranks {
		p.fill(test, []int{i})
		if err := p.forward(false); err != nil {
			return err
		}
		_, n := p.loss(1)
		right += n
	}
	trained := 0.0
	if out.loss != 0 {
		trained = 1
	}
	sums := []float32{float32(right), float32(out.loss), float32(trained)}
	if err := w.group.AllReduce(sums); err != nil {
		return err
	}
	out.accuracy = float64(sums[0]) / float64(test.N)
	out.loss = float64(sums[1] / sums[2])
	return nil
}

// gather returns the hashes of all ranks.
func (w *worker) gather(hash uint64) ([]uint64, error) {
	rank, ranks := w.group.Rank(), w.group.Size()
	v := make([]float32, 4*ranks) // 16 bits each, which float32 holds
	for i := range 4 {
		v[4*rank+i] = float32(hash >> (16 * i) & 0xffff)
	}
	if err := w.group.AllReduce(v); err != nil {
		return nil, err
	}
	hashes := make([]uint64, ranks)
	for i, x := range v {
		hashes[i/4] |= uint64(x) << (16 * (i % 4))
	}
	return hashes, nil
}

// same reports whether all hashes are equal.
func same(hashes ...uint64) bool {
	return !slices.ContainsFunc(hashes, func(h uint64) bool { return h != hashes[0] })
}

// difference returns the largest difference between two values of a parameter.
func difference(a, b *network) float64 {
	var values [][]float32
	b.parameters(func(value, _ []float32) { values = append(values, value) })
	largest, i := 0.0, 0
	a.parameters(func(value, _ []float32) {
		for k, v := range value {
			d := math.Abs(float64(v) - float64(values[i][k]))
			if !(d <= largest) { // NaN too
				largest = d
			}
		}
		i++
	})
	return largest
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

// check is a condition that must hold, with its numbers.
type check struct {
	what string
	ok   bool
}

// The comparison with one process.
const (
	compareSteps = 20
	compareBound = 1e-3 // of a parameter after so many steps
	segmentUnits = 128  // with so many channels
	segmentRows  = 512  // so many images are a segment: see batchnorm.MergeMoments
	segmentSteps = 3
)

// experiment does everything that the program shows. The result is the same on all ranks
// except for the times.
func (w *worker) experiment(r recipe) (names []string, results []*result, checks []check, err error) {
	run := func(r recipe, s statistics) *result {
		if err != nil {
			return &result{}
		}
		var out *result
		if out, err = w.run(r, s); err != nil {
			return &result{}
		}
		return out
	}
	all := r.batch * w.group.Size()
	first, second := run(r, synchronized), run(r, synchronized)
	ghost, one := run(r, local), run(r, alone)
	names = []string{"synchronized", "synchronized, again", "statistics of each rank", "one process"}
	results = []*result{first, second, ghost, one}

	short := r
	short.steps = compareSteps
	a, b := run(short, synchronized), run(short, alone)
	cut := recipe{segmentUnits, segmentRows, segmentSteps, r.rate, r.seed, r.test}
	c, d := run(cut, synchronized), run(cut, alone)
	if err != nil {
		return nil, nil, nil, err
	}
	apart := difference(a.net, b.net)
	checks = []check{
		{"synchronized: the same network on all ranks", same(first.hashes...)},
		{"synchronized: the same network in both runs", same(append(first.hashes, second.hashes...)...)},
		{fmt.Sprintf("after %d steps synchronized parameters are within %.0e of those of one process with %d images: %.1e",
			compareSteps, compareBound, all, apart), apart <= compareBound},
		{fmt.Sprintf("after %d steps with %d units and %d images for each rank, which are segments, they have the bits of one process",
			segmentSteps, segmentUnits, segmentRows), same(append(c.hashes, d.hashes...)...)},
	}
	return names, results, checks, nil
}
