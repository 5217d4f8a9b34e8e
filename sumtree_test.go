package batchnorm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// The order of sums, seen from outside, by the method of arXiv 2411.00442. Of n
// summands one is huge, one is its negative, and all others are 1, so small beside the
// huge ones that they vanish when they are added to one. What is left of the sum is the
// number of those that were added after the two had met. So the sum tells the size of
// the smallest subtree that has both, and these sizes for enough pairs tell the whole
// tree, but not which of two summands stands on the left.
//
// Of the backward pass, whose sums are plain ones, TestSumTree recovers the tree of
// dbeta and that of dgamma. Forward's sums are shifted by the mean of what came before,
// which a huge value changes, so that the count is no size; there TestSumResponse
// compares what a pair leaves of the mean and of the variance, in all its bits. Wherever
// two values are added in another order, some pair leaves something else.

// sumTree is a tree with the summands as its leaves.
type sumTree struct {
	leaf        int // where there are no parts
	left, right *sumTree
}

// size and depth are those of the tree: one summand is of size 1 and depth 0.
func (t *sumTree) size() int {
	if t.left == nil {
		return 1
	}
	return t.left.size() + t.right.size()
}

func (t *sumTree) depth() int {
	if t.left == nil {
		return 0
	}
	return 1 + max(t.left.depth(), t.right.depth())
}

// pairs of summands, the huge one and its negative.
type pairs [][2]int

// recoverTree returns the tree of a sum of n values, and the pairs that tell it. The
// function sizes tells, for pairs, the sizes of the smallest subtrees with both.
func recoverTree(n int, sizes func(pairs) ([]int, error)) (*sumTree, pairs, []int, error) {
	root := new(sumTree)
	type part struct {
		leaves []int
		place  *sumTree
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	var asked pairs
	var answers []int
	for open := []part{{all, root}}; len(open) > 0; {
		var p pairs
		for _, o := range open {
			for _, j := range o.leaves[1:] {
				p = append(p, [2]int{o.leaves[0], j})
			}
		}
		got, err := sizes(p)
		if err != nil {
			return nil, nil, nil, err
		}
		asked, answers = append(asked, p...), append(answers, got...)
		var next []part
		for _, o := range open {
			// The other leaves, by the size of the smallest tree that has the first leaf
			// and them.
			bySize := map[int][]int{}
			for k, j := range o.leaves[1:] {
				bySize[got[k]] = append(bySize[got[k]], j)
			}
			got = got[len(o.leaves)-1:]
			tree, size := &sumTree{leaf: o.leaves[0]}, 1
			levels := make([]int, 0, len(bySize))
			for s := range bySize {
				levels = append(levels, s)
			}
			slices.Sort(levels)
			for _, s := range levels {
				other := bySize[s]
				if size += len(other); size != s {
					return nil, nil, nil, fmt.Errorf("summand %d is in a tree of %d, of which %d were found: this is no sum of two and two", o.leaves[0], s, size)
				}
				sibling := new(sumTree)
				tree = &sumTree{left: tree, right: sibling}
				next = append(next, part{other, sibling})
			}
			*o.place = *tree
		}
		open = next
	}
	return root, asked, answers, nil
}

// small and huge are 2^70 apart, more than any sum of less than 2^17 small ones in
// float64 tells from 0 beside huge. Both, and their squares, are far from the ends of
// float32's range.
const (
	small = 0x1p-32
	huge  = 0x1p+38
)

// A summation has a sum for each channel of a shape, of the values at the n valid
// positions.
type summation struct {
	shape   batchnorm.Shape
	mask    batchnorm.Mask
	indices []int // of channel 0, at the valid positions
	plan    *batchnorm.Plan
	values  []float32 // the tensor, all small
	ones    []float32
	zeros   []float64
	oneF64  []float64
}

func newSummation(t *testing.T, s batchnorm.Shape, mask batchnorm.Mask, opts ...batchnorm.Option) *summation {
	u := &summation{shape: s, mask: mask, plan: newPlan(t, s, opts...), values: slices.Repeat([]float32{small}, s.Len()),
		ones: slices.Repeat([]float32{1}, s.Len()), zeros: make([]float64, s.Channels), oneF64: slices.Repeat([]float64{1}, s.Channels)}
	for k := range s.PerChannel() {
		if mask.Valid == nil || mask.Valid[k] {
			u.indices = append(u.indices, k/s.Inner*s.Channels*s.Inner+k%s.Inner)
		}
	}
	return u
}

// spread has each pair in another channel than the one before, as many at a time as
// there are channels.
const spread = -1

// each calls f with the pairs in the tensor: one at a time in the given channel, or
// spread over all. It tells f which pair a channel has, or -1. The second of a pair has
// the given values among the summands and among the ones.
func (u *summation) each(p pairs, channel int, second, x float32, f func(pairOf []int) error) error {
	step := 1
	if channel == spread {
		step = u.shape.Channels
	}
	pairOf := make([]int, u.shape.Channels)
	for begin := 0; begin < len(p); begin += step {
		for c := range pairOf {
			pairOf[c] = -1
		}
		if channel == spread {
			for k := begin; k < min(begin+step, len(p)); k++ {
				pairOf[(k+k/step)%step] = k
			}
		} else {
			pairOf[channel] = begin
		}
		set := func(first, second, x float32) {
			for c, k := range pairOf {
				if k >= 0 {
					u.values[u.indices[p[k][0]]+c*u.shape.Inner] = first
					u.values[u.indices[p[k][1]]+c*u.shape.Inner] = second
					u.ones[u.indices[p[k][1]]+c*u.shape.Inner] = x
				}
			}
		}
		set(huge, second, x)
		err := f(pairOf)
		set(small, small, 1)
		if err != nil {
			return err
		}
	}
	return nil
}

// gradientSizes tells the sizes of subtrees of dbeta, or of dgamma. With mean 0 and
// invstd 1 the summands of dgamma are dy*x.
func (u *summation) gradientSizes(p pairs, channel int, dgamma bool) ([]int, error) {
	n, channels := len(u.indices), u.shape.Channels
	sizes := make([]int, len(p))
	a, b := make([]float32, channels), make([]float32, channels)
	// A second x of 2 keeps the other of the two sums from 0, as channels whose sums are
	// both 0 may have been summed in another way.
	second := float32(-huge)
	if dgamma {
		second = -huge / 2
	}
	err := u.each(p, channel, second, 2, func(pairOf []int) error {
		if err := u.plan.Backward(batchnorm.BackwardArgs{DY: u.values, X: u.ones, Mean: u.zeros, InvStd: u.oneF64, Mask: u.mask, DGamma: a,
			DBeta: b}); err != nil {
			return err
		}
		for c, k := range pairOf {
			if k >= 0 {
				v := float64(b[c]) / small
				if dgamma {
					v = float64(a[c]) / small
				}
				if v != math.Trunc(v) || v < 0 || v > float64(n-2) {
					return fmt.Errorf("of %d summands %v are left for the pair %v: this is no sum of them", n, v, p[k])
				}
				sizes[k] = n - int(v)
			}
		}
		return nil
	})
	return sizes, err
}

// responses are the bits of mean and M2 that pairs leave.
func (u *summation) responses(p pairs, channel int) ([][2]uint64, error) {
	bits := make([][2]uint64, len(p))
	m := batchnorm.Moments{Mean: make([]float64, u.shape.Channels), M2: make([]float64, u.shape.Channels)}
	return bits, u.each(p, channel, -huge, 1, func(pairOf []int) error {
		if err := u.plan.Moments(batchnorm.MomentsArgs{X: u.values, Mask: u.mask, Moments: &m}); err != nil {
			return err
		}
		for c, k := range pairOf {
			if k >= 0 {
				bits[k] = [2]uint64{math.Float64bits(m.Mean[c]), math.Float64bits(m.M2[c])}
			}
		}
		return nil
	})
}

// sumShapes have every form of rows and columns that the layout of a tensor can bring:
// short and long rows, rows that fill vectors and such that don't, several pieces to a
// row, few and many columns.
func sumShapes() []batchnorm.Shape {
	list := []batchnorm.Shape{
		{Outer: 1, Channels: 8, Inner: 5}, {Outer: 9, Channels: 6, Inner: 3}, {Outer: 20, Channels: 4, Inner: 49}, {Outer: 3, Channels: 3, Inner: 256},
		{Outer: 3, Channels: 24, Inner: 1}, {Outer: 150, Channels: 3, Inner: 1}, {Outer: 300, Channels: 37, Inner: 1}, {Outer: 150, Channels: 300,
			Inner: 1},
	}
	if thorough() {
		list = append(list, batchnorm.Shape{Outer: 3, Channels: 3, Inner: 700}, batchnorm.Shape{Outer: 2, Channels: 3, Inner: 2500},
			batchnorm.Shape{Outer: 1500, Channels: 24, Inner: 1}, batchnorm.Shape{Outer: 300, Channels: 512, Inner: 1})
	}
	return list
}

// sumWays are ways to compute a sum, by name; the first is pure Go with one worker.
func sumWays() (names []string, ways [][]batchnorm.Option) {
	for _, path := range slices.Backward(batchnorm.Paths()) {
		add := func(name string, opts ...batchnorm.Option) {
			names, ways = append(names, path.String()+", "+name), append(ways, append(opts, batchnorm.WithPath(path)))
		}
		add("1 worker")
		add("3 workers", batchnorm.WithWorkers(3))
		add("executor", batchnorm.WithWorkers(5), batchnorm.WithExecutor(backwards))
		if thorough() {
			add("8 workers", batchnorm.WithWorkers(8))
			add("non-temporal stores", batchnorm.WithExtremeSchedule(false))
			add("groups of channels", batchnorm.WithExtremeSchedule(true), batchnorm.WithWorkers(2))
		}
	}
	return names, ways
}

// backwards is an executor that runs the last task first.
func backwards(n int, task func(int)) {
	for i := n - 1; i >= 0; i-- {
		task(i)
	}
}

// TestSumTree recovers the trees of dbeta, in the first channel and the last. They are
// trees of all values, no deeper than blocks and their merges make them; dgamma's are the
// same, and so are all those on every path and for every number of workers, and those of
// a masked tensor and of its values side by side.
func TestSumTree(t *testing.T) {
	t.Parallel()
	names, ways := sumWays()
	for _, s := range sumShapes() {
		t.Run(s.String(), func(t *testing.T) {
			fastest := newSummation(t, s, batchnorm.Mask{})
			n := s.PerChannel()
			for _, channel := range []int{0, s.Channels - 1} {
				tree, asked, sizes, err := recoverTree(n, func(p pairs) ([]int, error) { return fastest.gradientSizes(p, channel, false) })
				noError(t, err)
				if got := tree.size(); got != n {
					t.Fatalf("the tree has %d leaves, want %d", got, n)
				}
				depth := tree.depth()
				t.Logf("channel %d: a tree of %d values is %d deep; %d pairs tell it", channel, n, depth, len(asked))
				// In a block a lane adds a hundred values or so at most, and above blocks, which have
				// a hundred at least, there is one addition for each.
				if most := min(n-1, 160+n/100); depth > most {
					t.Errorf("the tree of %d values is %d deep, want at most %d", n, depth, most)
				}
				expectSizes(t, "dgamma", fastest, asked, channel, true, sizes)
				for i, opts := range ways {
					expectSizes(t, names[i], newSummation(t, s, batchnorm.Mask{}, opts...), asked, channel, i%2 == 0, sizes)
				}
			}
			// Every third position is padding.
			padded := newSummation(t, s, batchnorm.Mask{Valid: everyThirdOut(s.PerChannel())})
			side := batchnorm.Shape{Outer: 1, Channels: s.Channels, Inner: len(padded.indices)}
			if s.Inner == 1 && s.Channels > 1 {
				side.Outer, side.Inner = side.Inner, 1
			}
			compact := newSummation(t, side, batchnorm.Mask{})
			_, asked, sizes, err := recoverTree(len(padded.indices), func(p pairs) ([]int, error) { return compact.gradientSizes(p, 1, false) })
			noError(t, err)
			expectSizes(t, "masked", padded, asked, 1, false, sizes)
		})
	}
}

func everyThirdOut(n int) []bool {
	valid := make([]bool, n)
	for i := range valid {
		valid[i] = i%3 != 2
	}
	return valid
}

// expectSizes fails the test where pairs meet in trees of other sizes.
func expectSizes(t *testing.T, what string, u *summation, asked pairs, channel int, dgamma bool, want []int) {
	t.Helper()
	got, err := u.gradientSizes(asked, channel, dgamma)
	noError(t, err)
	for k, p := range asked {
		if got[k] != want[k] {
			t.Fatalf("%s: in channel %d the values %d and %d meet in a tree of %d, and elsewhere of %d", what, channel, p[0], p[1], got[k], want[k])
		}
	}
}

// TestSumResponse: the rest that pairs leave of mean and variance has the same bits on
// every path and for every number of workers.
func TestSumResponse(t *testing.T) {
	t.Parallel()
	names, ways := sumWays()
	shapes := append(sumShapes(), batchnorm.Shape{Outer: 40, Channels: 4, Inner: 3136}, batchnorm.Shape{Outer: 20000, Channels: 16, Inner: 1})
	for _, s := range shapes {
		t.Run(s.String(), func(t *testing.T) {
			n := s.PerChannel()
			// Pairs of the first with others, of neighbours, and of any two.
			var asked pairs
			r := rand.New(rand.NewPCG(uint64(n), uint64(s.Channels)))
			for range min(8*n, 2000) {
				i := r.IntN(n)
				j := []int{0, i ^ 1, i ^ 8, i ^ 64, (i + s.Inner) % n, r.IntN(n)}[r.IntN(6)]
				if i != j && j < n {
					asked = append(asked, [2]int{i, j})
				}
			}
			if n > 10000 {
				asked = asked[:200]
			}
			want, err := newSummation(t, s, batchnorm.Mask{}, ways[0]...).responses(asked, spread)
			noError(t, err)
			different := map[[2]uint64]bool{}
			for _, w := range want {
				different[w] = true
			}
			if len(different) < 2 {
				t.Errorf("%d pairs leave only %d different results: they tell nothing", len(asked), len(different))
			}
			for i, opts := range ways {
				got, err := newSummation(t, s, batchnorm.Mask{}, opts...).responses(asked, spread)
				noError(t, err)
				for k := range asked {
					if got[k] != want[k] {
						t.Fatalf("%s: the values %d and %d leave mean %v and M2 %v, and %v and %v in pure Go with one worker", names[i], asked[k][0], asked[k][1],
							math.Float64frombits(got[k][0]), math.Float64frombits(got[k][1]), math.Float64frombits(want[k][0]), math.Float64frombits(want[k][1]))
					}
				}
			}
		})
	}
}

// TestRecoverTree recovers trees that are known, by sums taken here.
func TestRecoverTree(t *testing.T) {
	t.Parallel()
	sums := map[string]func(v []float32) float32{
		"one after the other": func(v []float32) float32 {
			s := float32(0)
			for _, x := range v {
				s += x
			}
			return s
		},
		"from both ends": func(v []float32) float32 {
			a, b := float32(0), float32(0)
			for i := 0; i < len(v)-1-i; i++ {
				a, b = a+v[i], b+v[len(v)-1-i]
			}
			if len(v)%2 == 1 {
				a += v[len(v)/2]
			}
			return a + b
		},
	}
	var halves func(v []float32) float32
	halves = func(v []float32) float32 {
		if len(v) == 1 {
			return v[0]
		}
		return halves(v[:len(v)/2]) + halves(v[len(v)/2:])
	}
	sums["by halves"] = halves
	depths := map[string]func(n int) int{
		"one after the other": func(n int) int { return n - 1 },
		"from both ends":      func(n int) int { return (n + 1) / 2 },
		"by halves":           func(n int) int { return int(math.Ceil(math.Log2(float64(n)))) },
	}
	sizes := func(n int, sum func([]float32) float32) func(p pairs) ([]int, error) {
		return func(p pairs) (sizes []int, err error) {
			for _, pair := range p {
				v := slices.Repeat([]float32{small}, n)
				v[pair[0]], v[pair[1]] = huge, -huge
				sizes = append(sizes, n-int(sum(v)/small))
			}
			return sizes, nil
		}
	}
	for name, sum := range sums {
		for _, n := range []int{2, 3, 8, 33, 100} {
			tree, _, _, err := recoverTree(n, sizes(n, sum))
			noError(t, err)
			if got, want := tree.depth(), depths[name](n); tree.size() != n || got != want {
				t.Errorf("%d values %s: the tree has %d leaves and is %d deep, want %d", n, name, tree.size(), got, want)
			}
		}
	}
	exact := func(v []float32) float32 { // of all at once
		s := 0
		for _, x := range v {
			if x == small {
				s++
			}
		}
		return float32(s) * small
	}
	if _, _, _, err := recoverTree(5, sizes(5, exact)); err != nil {
		t.Logf("a sum without an order: %v", err)
	} else {
		t.Error("a sum without an order is taken for one of two and two")
	}
}
