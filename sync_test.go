package batchnorm_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// syncPatience is the time limit of collectives that are to work.
const syncPatience = time.Minute

// onRanks runs f on so many goroutines, each with the group of its rank, and
// returns their errors. It may be called from any goroutine.
func onRanks(t testing.TB, ranks int, timeout time.Duration, f func(g *batchnorm.SyncGroup) error) []error {
	t.Helper()
	all, err := batchnorm.NewLocalCollective(ranks, timeout)
	if err != nil {
		return slices.Repeat([]error{err}, ranks)
	}
	errs := make([]error, ranks)
	var wg sync.WaitGroup
	for rank, c := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			g, err := batchnorm.NewSyncGroup(c)
			if err == nil {
				err = f(g)
			}
			errs[rank] = err
		}()
	}
	wg.Wait()
	return errs
}

// outerRows returns the part of a tensor from row a to row b of Outer.
func outerRows(s batchnorm.Shape, v []float32, a, b int) []float32 {
	if v == nil {
		return nil
	}
	row := s.Channels * s.Inner
	return v[a*row : b*row : b*row]
}

// synced is a SyncPlan on as many ranks as there are parts, which end at the given
// rows. Every rank must have the same statistics and gradients by gamma and beta.
// With overlap set the passes are begun and waited for.
func synced(ends []int, overlap bool) mode {
	return mode{"synced", func(t testing.TB, s stage) (r results) {
		c := s.shape.Channels
		x, residual := s.in(s.x), s.in(s.residual)
		r.y = s.over(x)
		backX, backResidual, dy := s.in(s.x), s.in(s.residual), s.in(s.dy)
		s.gradients(&r, dy, backResidual)
		all := make([]results, len(ends))
		for rank := range all {
			all[rank] = results{mean: make([]float64, c), invstd: make([]float64, c), runMean: s.in(s.mean), runVar: s.in(s.vari),
				dgamma: s.out(c), dbeta: s.out(c)}
		}
		for rank, err := range onRanks(t, len(ends), syncPatience, func(g *batchnorm.SyncGroup) error {
			a, b := 0, ends[g.Rank()]
			if g.Rank() > 0 {
				a = ends[g.Rank()-1]
			}
			part := func(v []float32) []float32 { return outerRows(s.shape, v, a, b) }
			shape := s.shape
			shape.Outer = b - a
			p, err := batchnorm.NewSyncPlan(g, shape, s.options()...)
			if err != nil {
				return err
			}
			o := &all[g.Rank()]
			forward := batchnorm.ForwardArgs{X: part(x), Residual: part(residual), Gamma: s.gamma, Beta: s.beta, Y: part(r.y),
				Mean: o.mean, InvStd: o.invstd, RunningMean: o.runMean, RunningVar: o.runVar}
			backward := batchnorm.BackwardArgs{DY: part(dy), X: part(backX), Residual: part(backResidual), Gamma: s.gamma, Beta: s.beta,
				Mean: o.mean, InvStd: o.invstd, DX: part(r.dx), DResidual: part(r.dres), DGamma: o.dgamma, DBeta: o.dbeta}
			if !overlap {
				return errors.Join(p.Forward(forward), p.Backward(backward))
			}
			return errors.Join(p.BeginForward(forward), p.Wait(), p.BeginBackward(backward), p.Wait())
		}) {
			if err != nil {
				t.Fatalf("rank %d of %d: %v", rank, len(ends), err)
			}
		}
		for rank := range all {
			expectSame(t, fmt.Sprintf("rank %d of %d", rank, len(ends)), all[rank], all[0])
		}
		o := all[0]
		r.mean, r.invstd, r.runMean, r.runVar, r.dgamma, r.dbeta = o.mean, o.invstd, o.runMean, o.runVar, o.dgamma, o.dbeta
		return r
	}}
}

// unequal cuts rows into parts of random sizes, empty ones among them.
func unequal(rows, parts int, seed uint64) (ends []int) {
	r := rand.New(rand.NewPCG(seed, 1))
	for range parts - 1 {
		ends = append(ends, r.IntN(rows+1))
	}
	ends = append(ends, rows)
	slices.Sort(ends)
	return ends
}

// A SyncPlan has the bits of the pieces, merged in the order of the ranks, for any
// number of ranks and any sizes of the parts.
func TestSyncPlan(t *testing.T) {
	t.Parallel()
	sizes := []int{1, 2, 3, 4, 7, 16, 64}
	if !thorough() {
		sizes = []int{1, 3, 16}
	}
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant))
		for _, ranks := range sizes {
			ends := unequal(s.Outer, ranks, uint64(variant))
			want := split(ends, batchnorm.Mask{}).once(t, p)
			ways := waysOfModes()
			if ranks > 4 {
				ways = ways[:2]
			}
			got := synced(ends, variant%2 == 1).same(t, p, ways, slices.Clone)
			expectSame(t, fmt.Sprintf("%v on %d ranks that end at %v", s, ranks, ends), got, want)
			if features(variant)&hasSpecials == 0 {
				p.checkBounds(t, got)
			}
		}
	})
}

// Parts that are segments give the bits of one process with the whole batch.
func TestSyncSegments(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		batchnorm.Shape
		segment int
	}{
		{batchnorm.Shape{Outer: 9, Channels: 2, Inner: 16384}, 4},
		{batchnorm.Shape{Outer: 70, Channels: 3, Inner: 2048}, 32},
		{batchnorm.Shape{Outer: 1100, Channels: 128, Inner: 1}, 512},
		{batchnorm.Shape{Outer: 300, Channels: 600, Inner: 1}, 128},
	} {
		p := newProblem(s.Shape, hasReLU|hasResidual|hasGammaBeta)
		var ends []int
		for end := s.segment; end < s.Outer; end += s.segment {
			ends = append(ends, end)
		}
		expectSame(t, s.String(), synced(append(ends, s.Outer), false).once(t, p), plain(batchnorm.Mask{}).once(t, p))
	}
}

// Nobody's lateness changes a bit: the hash of 1,000 training steps is that of
// steps in which all come as they may.
func TestSyncLateness(t *testing.T) {
	t.Parallel()
	const ranks, channels = 4, 5
	steps := 1000
	if !thorough() {
		steps = 100
	}
	train := func(seed uint64) (hashes [ranks]uint64) {
		for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
			r := rand.New(rand.NewPCG(seed, uint64(g.Rank())))
			l, err := batchnorm.NewLayer(channels, batchnorm.WithActivation(batchnorm.SiLU))
			if err != nil {
				return err
			}
			if err := l.Synchronize(g); err != nil {
				return err
			}
			h := fnv.New64a()
			for step := range steps {
				if seed != 0 && r.IntN(4) == 0 {
					time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
				}
				s := batchnorm.Shape{Outer: (g.Rank() + step) % 4, Channels: channels, Inner: 3} // empty at times
				x := gen.Normal(uint64(step*ranks+g.Rank()), s.Len(), 2, 3)
				y, dx := make([]float32, s.Len()), make([]float32, s.Len())
				if err := l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}); err != nil {
					return err
				}
				if err := l.Backward(batchnorm.LayerBackwardArgs{DY: y, DX: dx}); err != nil {
					return err
				}
				for c := range channels {
					l.Gamma[c] -= 0.01 * l.DGamma[c]
					l.Beta[c] -= 0.01 * l.DBeta[c]
				}
				state, err := l.MarshalBinary()
				if err != nil {
					return err
				}
				h.Write(state)
			}
			hashes[g.Rank()] = h.Sum64()
			return nil
		}) {
			if err != nil {
				t.Fatalf("rank %d: %v", rank, err)
			}
		}
		return hashes
	}
	first := train(0)
	for seed := uint64(0); seed < 3; seed++ {
		for rank, h := range train(seed) {
			if h != first[0] {
				t.Errorf("run %d: rank %d ends with hash %x, want %x", seed, rank, h, first[0])
			}
		}
	}
}

// The gradients are those of the whole batch's loss, by central differences of
// the float64 reference.
func TestSyncGradient(t *testing.T) {
	t.Parallel()
	for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.SiLU, batchnorm.Tanh} {
		s := batchnorm.Shape{Outer: 7, Channels: 3, Inner: 4}
		p := newProblem(s, hasResidual|hasGammaBeta)
		p.act = act
		r := synced([]int{1, 1, 4, 7}, false).once(t, p)
		loss := func(r reference.Problem) float64 {
			sum := 0.0
			for i, y := range reference.Forward(r).Y {
				sum += y * float64(p.dy[i])
			}
			return sum
		}
		check := func(name string, value func(*reference.Problem) *[]float32, got []float32) {
			for i := range got {
				const step = 1.0 / 64
				q := p.reference()
				original := *value(&q)
				var at [4]float64
				var points [4]float64
				for k, d := range [...]float64{-2, -1, 1, 2} {
					moved := slices.Clone(original)
					moved[i] += float32(d * step)
					points[k] = float64(moved[i]) - float64(original[i])
					*value(&q) = moved
					at[k] = loss(q)
				}
				// Fourth order: the differences over two steps and over four.
				near, far := (at[2]-at[1])/(points[2]-points[1]), (at[3]-at[0])/(points[3]-points[0])
				want := near + (near-far)/3
				if d := math.Abs(float64(got[i]) - want); !(d <= 2e-4*max(1, math.Abs(want))) {
					t.Errorf("%v: %s[%d] is %g, central differences give %g", act, name, i, got[i], want)
				}
			}
		}
		check("dx", func(q *reference.Problem) *[]float32 { return &q.X }, r.dx)
		check("dresidual", func(q *reference.Problem) *[]float32 { return &q.Residual }, r.dres)
		check("dgamma", func(q *reference.Problem) *[]float32 { return &q.Gamma }, r.dgamma)
		check("dbeta", func(q *reference.Problem) *[]float32 { return &q.Beta }, r.dbeta)
	}
}

// A NaN in one rank's part reaches its channel on every rank, and no other.
func TestSyncNaN(t *testing.T) {
	s := batchnorm.Shape{Outer: 6, Channels: 4, Inner: 5}
	p := newProblem(s, hasResidual|hasGammaBeta)
	p.x[(1*s.Channels+2)*s.Inner+3] = float32(math.NaN()) // rank 0, channel 2
	r := synced([]int{2, 3, 3, 6}, false).once(t, p)
	for k := range r.y {
		want := channelOf(s, k) == 2
		if got := math.IsNaN(float64(r.y[k])); got != want {
			t.Fatalf("y[%d] of channel %d is %v", k, channelOf(s, k), r.y[k])
		}
		if got := math.IsNaN(float64(r.dx[k])); got != want {
			t.Fatalf("dx[%d] of channel %d is %v", k, channelOf(s, k), r.dx[k])
		}
	}
	for c := range s.Channels {
		if got := math.IsNaN(r.mean[c]) && math.IsNaN(r.invstd[c]); got != (c == 2) {
			t.Errorf("mean[%d] is %v, invstd %v", c, r.mean[c], r.invstd[c])
		}
	}
}

// All parts empty is an empty batch; one value in all is too few, on every rank.
func TestSyncFewValues(t *testing.T) {
	const ranks = 3
	run := func(outer func(rank int) int, opts ...batchnorm.Option) (errs []error, layers [ranks]*batchnorm.Layer, y [ranks][]float32) {
		errs = onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
			l, err := batchnorm.NewLayer(2, opts...)
			if err != nil {
				return err
			}
			layers[g.Rank()] = l
			s := batchnorm.Shape{Outer: outer(g.Rank()), Channels: 2, Inner: 1}
			x := gen.Normal(1, s.Len(), 0, 1)
			y[g.Rank()] = gen.Normal(2, s.Len(), 0, 1)
			return errors.Join(l.Synchronize(g), l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y[g.Rank()]}))
		})
		return errs, layers, y
	}
	errs, layers, _ := run(func(int) int { return 0 })
	for rank, l := range layers {
		if errs[rank] != nil || l.BatchesTracked != 0 || l.RunningVar[0] != 1 {
			t.Errorf("empty batch, rank %d: %v, %d batches tracked, running variance %g", rank, errs[rank], l.BatchesTracked, l.RunningVar[0])
		}
	}
	one := func(rank int) int { return rank / 2 }
	errs, layers, y := run(one)
	for rank, l := range layers {
		if !errors.Is(errs[rank], batchnorm.ErrTooFewValues) || l.BatchesTracked != 0 {
			t.Errorf("1 value, rank %d: %v, %d batches tracked", rank, errs[rank], l.BatchesTracked)
		}
		expectBits(t, "y", y[rank], gen.Normal(2, len(y[rank]), 0, 1))
	}
	errs, layers, _ = run(one, batchnorm.WithSingleValue())
	for rank, l := range layers {
		if errs[rank] != nil || l.BatchesTracked != 1 || l.RunningMean[0] != layers[2].RunningMean[0] {
			t.Errorf("1 value allowed, rank %d: %v, %d batches tracked", rank, errs[rank], l.BatchesTracked)
		}
	}

	// Backward over empty parts only.
	for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
		p, err := batchnorm.NewSyncPlan(g, batchnorm.Shape{Outer: 0, Channels: 1, Inner: 1})
		if err != nil {
			return err
		}
		dgamma, mean, invstd := []float32{7}, []float64{7}, []float64{7}
		err = errors.Join(p.Forward(batchnorm.ForwardArgs{Mean: mean, InvStd: invstd}),
			p.Backward(batchnorm.BackwardArgs{Mean: mean, InvStd: invstd, DGamma: dgamma}))
		if !math.IsNaN(mean[0]) || !math.IsNaN(invstd[0]) || dgamma[0] != 0 {
			err = errors.Join(err, fmt.Errorf("mean is %v, invstd %v, dgamma %v", mean, invstd, dgamma))
		}
		return err
	}) {
		if err != nil {
			t.Errorf("empty batch, rank %d: %v", rank, err)
		}
	}
}

// Padding has no part in the statistics of any rank.
func TestSyncMask(t *testing.T) {
	s := batchnorm.Shape{Outer: 2, Channels: 3, Inner: 8}
	const ranks = 3
	var y, want [ranks][]float32
	run := func(out *[ranks][]float32, inner int) {
		for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
			shape := s
			shape.Inner = inner
			p, err := batchnorm.NewSyncPlan(g, shape)
			if err != nil {
				return err
			}
			whole := gen.Normal(uint64(g.Rank()), s.Len(), 5, 1)
			x := make([]float32, shape.Len())
			for k := range x {
				x[k] = whole[k/inner*s.Inner+k%inner]
			}
			a := batchnorm.ForwardArgs{X: x, Y: make([]float32, len(x))}
			if inner == s.Inner {
				for k := range x {
					if k%inner >= 5 {
						x[k] = float32(math.NaN())
					}
				}
				a.Mask.Lengths = []int{5, 5}
			}
			out[g.Rank()] = a.Y
			return p.Forward(a)
		}) {
			if err != nil {
				t.Fatalf("rank %d: %v", rank, err)
			}
		}
	}
	run(&y, 8)
	run(&want, 5)
	for rank := range ranks {
		for k, v := range y[rank] {
			o, i := k/8, k%8
			if i < 5 {
				if w := want[rank][o*5+i]; math.Abs(float64(v-w)) > 1e-6 {
					t.Fatalf("rank %d: y[%d] is %g, without padding %g", rank, k, v, w)
				}
			} else if v != 0 {
				t.Fatalf("rank %d: y[%d] is %g in padding, want 0", rank, k, v)
			}
		}
	}
}

// Groups of some of the ranks have statistics of their own.
func TestSyncSplit(t *testing.T) {
	s := batchnorm.Shape{Outer: 12, Channels: 5, Inner: 3}
	p := newProblem(s, hasGammaBeta)
	all, err := batchnorm.NewLocalCollective(7, syncPatience)
	noError(t, err)
	color := func(rank int) int { return []int{1, 0, 1, 0, 0, -1, 1}[rank] }
	y := make([]float32, s.Len()) // ranks 1, 3, 4 have the first half, 0, 2, 6 the second
	ends := [2][]int{{1, 3, 6}, {7, 8, 12}}
	var wg sync.WaitGroup
	for rank, c := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 2 { // twice, since a split has a number
				part, err := c.Split(color(rank))
				if err != nil {
					t.Errorf("rank %d: %v", rank, err)
					return
				}
				if color(rank) < 0 {
					if part != nil {
						t.Errorf("rank %d got a part", rank)
					}
					continue
				}
				g, err := batchnorm.NewSyncGroup(part)
				if err != nil {
					t.Errorf("rank %d: %v", rank, err)
					return
				}
				e := ends[color(rank)]
				a, b := e[2]-6, e[g.Rank()]
				if g.Rank() > 0 {
					a = e[g.Rank()-1]
				}
				shape := s
				shape.Outer = b - a
				plan, err := batchnorm.NewSyncPlan(g, shape)
				if err == nil {
					err = plan.Forward(batchnorm.ForwardArgs{X: outerRows(s, p.x, a, b), Gamma: p.gamma, Beta: p.beta, Y: outerRows(s, y, a, b)})
				}
				if err != nil {
					t.Errorf("rank %d: %v", rank, err)
				}
			}
		}()
	}
	wg.Wait()
	for half := range 2 {
		q := p
		q.shape.Outer, q.x, q.dy = 6, outerRows(s, p.x, half*6, half*6+6), outerRows(s, p.dy, half*6, half*6+6)
		e := slices.Clone(ends[half])
		for i := range e {
			e[i] -= half * 6
		}
		expectBits(t, fmt.Sprintf("y of color %d", half), outerRows(s, y, half*6, half*6+6), split(e, batchnorm.Mask{}).once(t, q).y)
	}
}

// Several plans of a group may each have a pass under way.
func TestSyncOverlap(t *testing.T) {
	t.Parallel()
	const ranks, plans = 5, 4
	s := batchnorm.Shape{Outer: 3, Channels: 6, Inner: 7}
	var results [ranks][plans][]float64
	for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
		var list [plans]*batchnorm.SyncPlan
		for i := range list {
			var err error
			if list[i], err = batchnorm.NewSyncPlan(g, s); err != nil {
				return err
			}
			results[g.Rank()][i] = make([]float64, s.Channels)
		}
		for round := range 50 {
			for i, p := range list {
				x := gen.Normal(uint64(g.Rank()*100+i*10+round), s.Len(), 0, 1)
				if err := p.BeginForward(batchnorm.ForwardArgs{X: x, Y: x, Mean: results[g.Rank()][i]}); err != nil {
					return err
				}
				if err := p.BeginForward(batchnorm.ForwardArgs{X: x, Y: x}); !errors.Is(err, batchnorm.ErrNoPass) {
					return fmt.Errorf("a second pass gives %v", err)
				}
			}
			sum := []float32{float32(g.Rank())} // among the others
			if err := g.AllReduce(sum); err != nil {
				return err
			}
			if sum[0] != ranks*(ranks-1)/2 {
				return fmt.Errorf("sum is %g", sum[0])
			}
			for i := range list { // each rank waits in an order of its own
				if err := list[(i+g.Rank())%plans].Wait(); err != nil {
					return err
				}
			}
			if err := list[0].Wait(); !errors.Is(err, batchnorm.ErrNoPass) {
				return fmt.Errorf("another Wait gives %v", err)
			}
		}
		return nil
	}) {
		if err != nil {
			t.Fatalf("rank %d: %v", rank, err)
		}
		for i := range plans {
			expectBits(t, "mean", results[rank][i], results[0][i])
		}
	}
}

// AllReduce is the float64 sum in the order of the ranks, rounded once.
func TestAllReduce(t *testing.T) {
	t.Parallel()
	for _, ranks := range []int{1, 2, 3, 7, 64} {
		for _, n := range []int{0, 1, 2, 63, 64, 1000, 5} {
			sums := make([]float64, n)
			for rank := range ranks {
				for i, v := range gen.Normal(uint64(rank), n, 1, 1e3) {
					sums[i] += float64(v)
				}
			}
			want := toFloat32(sums)
			got := make([][]float32, ranks)
			for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
				for _, length := range []int{n, n/2 + 1, n} { // the group's memory grows and is used again
					got[g.Rank()] = gen.Normal(uint64(g.Rank()), length, 1, 1e3)
					if err := g.AllReduce(got[g.Rank()]); err != nil {
						return err
					}
				}
				return nil
			}) {
				noError(t, err)
				expectBits(t, fmt.Sprintf("sum of %d on rank %d of %d", n, rank, ranks), got[rank], want)
			}
		}
	}
}

// ---- failures

// syncFailure is a fault of one rank while all others call forward on 6 channels.
type syncFailure struct {
	name  string
	kind  error
	words []string // in some rank's error
	do    func(g *batchnorm.SyncGroup) error
}

func forwardOn(g *batchnorm.SyncGroup, channels int) error {
	s := batchnorm.Shape{Outer: 2, Channels: channels, Inner: 3}
	p, err := batchnorm.NewSyncPlan(g, s)
	if err != nil {
		return err
	}
	return p.Forward(batchnorm.ForwardArgs{X: make([]float32, s.Len()), Y: make([]float32, s.Len())})
}

var syncFailures = []syncFailure{
	{"other channels", batchnorm.ErrRanks, []string{"6 channels"}, func(g *batchnorm.SyncGroup) error { return forwardOn(g, 7) }},
	{"fewer channels", batchnorm.ErrRanks, nil, func(g *batchnorm.SyncGroup) error { return forwardOn(g, 1) }},
	{"many channels", batchnorm.ErrRanks, nil, func(g *batchnorm.SyncGroup) error { return forwardOn(g, 1000) }},
	{"backward", batchnorm.ErrRanks, []string{"calls backward of plan 1", "calls forward of plan 1"}, func(g *batchnorm.SyncGroup) error {
		s := batchnorm.Shape{Outer: 2, Channels: 6, Inner: 3}
		p, err := batchnorm.NewSyncPlan(g, s)
		if err != nil {
			return err
		}
		return p.Backward(batchnorm.BackwardArgs{DY: make([]float32, s.Len()), X: make([]float32, s.Len()), Mean: make([]float64, 6),
			InvStd: make([]float64, 6)})
	}},
	{"another plan", batchnorm.ErrRanks, []string{"plan 2", "plan 1"}, func(g *batchnorm.SyncGroup) error {
		if _, err := batchnorm.NewSyncPlan(g, batchnorm.Shape{Outer: 2, Channels: 6, Inner: 3}); err != nil {
			return err
		}
		return forwardOn(g, 6)
	}},
	{"sum", batchnorm.ErrRanks, []string{"AllReduce of 12 elements"}, func(g *batchnorm.SyncGroup) error { return g.AllReduce(make([]float32, 12)) }},
	{"wrong arguments", batchnorm.ErrRanks, []string{"refuses its arguments"}, func(g *batchnorm.SyncGroup) error {
		p, err := batchnorm.NewSyncPlan(g, batchnorm.Shape{Outer: 2, Channels: 6, Inner: 3})
		if err != nil {
			return err
		}
		err = p.Forward(batchnorm.ForwardArgs{X: make([]float32, 36), Y: make([]float32, 35)})
		if !errors.Is(err, batchnorm.ErrLength) {
			return fmt.Errorf("wrong arguments give %v", err)
		}
		return g.Err()
	}},
	{"ended", batchnorm.ErrExchange, []string{"waited for rank"}, func(g *batchnorm.SyncGroup) error { return batchnorm.ErrExchange }},
}

// Whatever one rank does wrong, and whichever it is, all get an error in bounded
// time, and the group is over.
func TestSyncFailures(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup // all at a time, since most of the time somebody waits for who does not come
	for _, f := range syncFailures {
		for _, ranks := range []int{2, 3, 4, 9} { // with 9, some own no channel
			limit := syncPatience // all learn of it at once
			switch {
			case f.name == "ended" || f.name == "fewer channels": // somebody waits for who does not come
				limit = 300 * time.Millisecond
			case ranks > 6: // the wrong rank waits for one that owns no channel in the eyes of the others
				limit = time.Second
			}
			for _, wrong := range []int{0, 1, ranks - 1} {
				start(&wg, func() { f.check(t, ranks, wrong, limit) })
			}
		}
	}
	wg.Wait()
}

// check lets one of some ranks do wrong.
func (f syncFailure) check(t *testing.T, ranks, wrong int, limit time.Duration) {
	name := fmt.Sprintf("%s, rank %d of %d", f.name, wrong, ranks)
	begin := time.Now()
	errs := onRanks(t, ranks, limit, func(g *batchnorm.SyncGroup) error {
		call := func() error { return forwardOn(g, 6) }
		if g.Rank() == wrong {
			call = func() error { return f.do(g) }
		}
		err := call()
		if ended := g.Err(); ended != nil {
			if again := forwardOn(g, 6); again == nil || again.Error() != ended.Error() {
				err = fmt.Errorf("the next call gives %v, the group ended with %v", again, ended)
			}
		}
		return err
	})
	// Two time limits, and the scheduler's delays.
	if took := time.Since(begin); took > min(2*limit, syncPatience/4)+5*time.Second {
		t.Errorf("%s: took %v", name, took)
	}
	text := ""
	for rank, err := range errs {
		switch {
		case err == nil:
			t.Errorf("%s: rank %d has no error", name, rank)
		case !errors.Is(err, f.kind) && !errors.Is(err, batchnorm.ErrExchange):
			t.Errorf("%s: rank %d has %v", name, rank, err)
		default:
			text += err.Error() + "\n"
		}
	}
	for _, word := range f.words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: no error mentions %q:\n%s", name, word, text)
		}
	}
}

// A rank that calls one operation less is found out by the number of the call.
func TestSyncCallMissed(t *testing.T) {
	t.Parallel()
	errs := onRanks(t, 3, time.Second, func(g *batchnorm.SyncGroup) error {
		s := batchnorm.Shape{Outer: 2, Channels: 6, Inner: 3}
		p, err := batchnorm.NewSyncPlan(g, s)
		if err != nil {
			return err
		}
		for i := range 3 {
			if err := p.Forward(batchnorm.ForwardArgs{X: make([]float32, s.Len()), Y: make([]float32, s.Len())}); err != nil {
				return err
			}
			if g.Rank() == 1 && i == 1 {
				return nil // one step too early
			}
		}
		return nil
	})
	for _, rank := range []int{0, 2} {
		if !errors.Is(errs[rank], batchnorm.ErrExchange) {
			t.Errorf("rank %d has %v", rank, errs[rank])
		}
	}
}

// A layer's own errors reach the other ranks at once.
func TestSyncLayerErrors(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]func(l *batchnorm.Layer) error{
		"shape": func(l *batchnorm.Layer) error {
			return l.Forward(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 2, Channels: 4, Inner: 1}})
		},
		"backward first": func(l *batchnorm.Layer) error { return l.Backward(batchnorm.LayerBackwardArgs{}) },
		"alias": func(l *batchnorm.Layer) error {
			x := make([]float32, 6)
			return l.Forward(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 2, Channels: 3, Inner: 1}, X: x, Y: x})
		},
		"length": func(l *batchnorm.Layer) error {
			return l.Forward(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 2, Channels: 3, Inner: 1}, X: make([]float32, 5),
				Y: make([]float32, 6)})
		},
	} {
		begin := time.Now()
		errs := onRanks(t, 3, syncPatience, func(g *batchnorm.SyncGroup) error {
			l, err := batchnorm.NewLayer(3)
			if err != nil {
				return err
			}
			if err := l.Synchronize(g); err != nil {
				return err
			}
			if g.Rank() == 1 {
				return wrong(l)
			}
			return l.Forward(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 2, Channels: 3, Inner: 1}, X: make([]float32, 6),
				Y: make([]float32, 6)})
		})
		for rank, err := range errs {
			if err == nil || rank != 1 && !errors.Is(err, batchnorm.ErrRanks) || rank == 1 && errors.Is(err, batchnorm.ErrRanks) {
				t.Errorf("%s: rank %d has %v", name, rank, err)
			}
		}
		if took := time.Since(begin); took > syncPatience/2 {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// Layers are synchronized in training, and in nothing else.
func TestSyncLayer(t *testing.T) {
	s := batchnorm.Shape{Outer: 8, Channels: 3, Inner: 5}
	p := newProblem(s, hasReLU|hasResidual|hasGammaBeta)
	whole, err := batchnorm.NewLayer(3, batchnorm.WithActivation(batchnorm.ReLU))
	noError(t, err)
	y, dx := make([]float32, s.Len()), make([]float32, s.Len())
	noError(t, whole.Forward(batchnorm.LayerForwardArgs{Shape: s, X: p.x, Residual: p.residual, Y: y}))
	noError(t, whole.Backward(batchnorm.LayerBackwardArgs{DY: p.dy, DX: dx}))
	ends := []int{0, 3, 4, 8}
	gotY, gotDX := make([]float32, s.Len()), make([]float32, s.Len())
	var layers [4]*batchnorm.Layer
	for rank, err := range onRanks(t, 4, syncPatience, func(g *batchnorm.SyncGroup) error {
		l, err := batchnorm.NewLayer(3, batchnorm.WithActivation(batchnorm.ReLU))
		if err != nil {
			return err
		}
		layers[g.Rank()] = l
		a, b := 0, ends[g.Rank()]
		if g.Rank() > 0 {
			a = ends[g.Rank()-1]
		}
		part := s
		part.Outer = b - a
		err = errors.Join(l.Synchronize(g),
			l.Forward(batchnorm.LayerForwardArgs{Shape: part, X: outerRows(s, p.x, a, b), Residual: outerRows(s, p.residual, a, b), Y: outerRows(s,
				gotY, a, b)}),
			l.Backward(batchnorm.LayerBackwardArgs{DY: outerRows(s, p.dy, a, b), DX: outerRows(s, gotDX, a, b)}))
		if err != nil || g.Rank() != 1 {
			return err
		}
		// Alone: no other rank takes part.
		out := make([]float32, part.Len())
		clone, err := l.Clone()
		if err != nil {
			return err
		}
		l.Eval()
		return errors.Join(
			l.Inference(batchnorm.LayerForwardArgs{Shape: part, X: outerRows(s, p.x, a, b), Y: out}),
			l.Forward(batchnorm.LayerForwardArgs{Shape: part, X: outerRows(s, p.x, a, b), Y: out}),
			l.Backward(batchnorm.LayerBackwardArgs{DY: outerRows(s, p.dy, a, b), DX: out}),
			clone.Forward(batchnorm.LayerForwardArgs{Shape: part, X: outerRows(s, p.x, a, b), Y: out}),
			l.Synchronize(nil), func() error { l.Train(); return nil }(),
			l.Forward(batchnorm.LayerForwardArgs{Shape: part, X: outerRows(s, p.x, a, b), Y: out}))
	}) {
		if err != nil {
			t.Fatalf("rank %d: %v", rank, err)
		}
	}
	near := func(name string, got, want []float32) {
		t.Helper()
		expectNear(t, name, got, widen(want), func(i int) float64 { return 1e-5 * max(1, math.Abs(float64(want[i]))) })
	}
	near("y", gotY, y)
	near("dx", gotDX, dx)
	for rank, l := range layers {
		if rank == 1 { // has gone on alone
			continue
		}
		expectSameLayer(t, fmt.Sprintf("rank %d", rank), l, layers[0])
		near("dgamma", l.DGamma, whole.DGamma)
		near("dbeta", l.DBeta, whole.DBeta)
		near("running mean", l.RunningMean, whole.RunningMean)
		near("running variance", l.RunningVar, whole.RunningVar)
		if l.BatchesTracked != 1 {
			t.Errorf("rank %d has tracked %d batches, want 1", rank, l.BatchesTracked)
		}
	}
}

func TestCollectiveErrors(t *testing.T) {
	for _, c := range []struct {
		ranks   int
		timeout time.Duration
	}{{0, 0}, {-1, 0}, {2, -1}} {
		if _, err := batchnorm.NewLocalCollective(c.ranks, c.timeout); !errors.Is(err, batchnorm.ErrOption) {
			t.Errorf("%d ranks, timeout %v: %v", c.ranks, c.timeout, err)
		}
	}
	all, err := batchnorm.NewLocalCollective(2, 0)
	noError(t, err)
	if got := all[1].Timeout(); got != batchnorm.DefaultTimeout {
		t.Errorf("timeout is %v", got)
	}
	one := make([][]float64, 1)
	self := [][]float64{{1}, nil}
	for _, v := range [][2][][]float64{{one, make([][]float64, 2)}, {make([][]float64, 2), one}, {self, make([][]float64, 2)}, {make([][]float64,
		2), self}} {
		if err := all[0].Exchange(v[0], v[1]); !errors.Is(err, batchnorm.ErrLength) {
			t.Errorf("Exchange(%v, %v): %v", v[0], v[1], err)
		}
	}
	if _, err := batchnorm.NewSyncGroup(nil); !errors.Is(err, batchnorm.ErrMissing) {
		t.Errorf("group of nil: %v", err)
	}
	if _, err := batchnorm.NewSyncGroup(lyingCollective{}); !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("rank 3 of 3: %v", err)
	}
	var p *batchnorm.SyncPlan
	for name, err := range map[string]error{
		"Forward": p.Forward(batchnorm.ForwardArgs{}), "Backward": p.Backward(batchnorm.BackwardArgs{}), "Wait": p.Wait(),
		"BeginForward": p.BeginForward(batchnorm.ForwardArgs{}), "BeginBackward": (&batchnorm.SyncPlan{}).BeginBackward(batchnorm.BackwardArgs{}),
		"AllReduce": (&batchnorm.SyncGroup{}).AllReduce(nil),
	} {
		if !errors.Is(err, batchnorm.ErrNilPlan) {
			t.Errorf("%s of nil: %v", name, err)
		}
	}
	if _, err := batchnorm.NewSyncPlan(nil, batchnorm.Shape{Outer: 1, Channels: 1, Inner: 1}); !errors.Is(err, batchnorm.ErrNilPlan) {
		t.Errorf("plan on no group: %v", err)
	}
}

// lyingCollective is a collective that is wrong.
type lyingCollective struct{ broken error }

func (lyingCollective) Rank() int                         { return 3 }
func (lyingCollective) Size() int                         { return 3 }
func (l lyingCollective) Exchange(_, _ [][]float64) error { return l.broken }

// lostCollective is a collective that works for some exchanges, and then has an error of
// its own.
type lostCollective struct {
	batchnorm.Collective
	left  int
	cause error
}

func (l *lostCollective) Exchange(recv, send [][]float64) error {
	if l.left--; l.left < 0 {
		return l.cause
	}
	return l.Collective.Exchange(recv, send)
}

// Errors of a collective's own become ErrExchange, and keep their text.
func TestSyncForeignError(t *testing.T) {
	t.Parallel()
	all, err := batchnorm.NewLocalCollective(2, syncPatience)
	noError(t, err)
	var wg sync.WaitGroup
	for rank, c := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cause := errors.New("the cable is cut")
			g, err := batchnorm.NewSyncGroup(&lostCollective{c, 3, cause})
			if err != nil {
				t.Errorf("rank %d: %v", rank, err)
				return
			}
			first, second := forwardOn(g, 6), forwardOn(g, 6)
			if first != nil || !errors.Is(second, batchnorm.ErrExchange) || second.Error() != cause.Error() {
				t.Errorf("rank %d: %v, %v", rank, first, second)
			}
		}()
	}
	wg.Wait()
}

// ---- cost

// countingCollective counts the messages and elements that a rank sends.
type countingCollective struct {
	batchnorm.Collective
	elements, messages int
}

func (c *countingCollective) Exchange(recv, send [][]float64) error {
	for _, v := range send {
		if len(v) > 0 {
			c.elements += len(v)
			c.messages++
		}
	}
	return c.Collective.Exchange(recv, send)
}

// A rank sends about four float64 per channel and pass, whatever the number of
// ranks, and some for each message.
func TestSyncCost(t *testing.T) {
	const channels = 2048
	for _, ranks := range []int{2, 3, 8, 64} {
		all, err := batchnorm.NewLocalCollective(ranks, syncPatience)
		noError(t, err)
		var wg sync.WaitGroup
		for rank, c := range all {
			wg.Add(1)
			go func() {
				defer wg.Done()
				n := &countingCollective{Collective: c}
				g, err := batchnorm.NewSyncGroup(n)
				if err == nil {
					err = forwardOn(g, channels)
				}
				if err != nil {
					t.Errorf("rank %d: %v", rank, err)
				}
				if want := 2 * (ranks - 1); n.messages != want {
					t.Errorf("rank %d of %d sends %d messages, want %d", rank, ranks, n.messages, want)
				}
				// Twice two fields, for the share of the others; a rank's own share
				// may be a channel larger; 7 elements of heads for each rank.
				if most := 4*channels*(ranks-1)/ranks + 2*ranks + 7*ranks; n.elements > most {
					t.Errorf("rank %d of %d sends %d elements, want %d at most", rank, ranks, n.elements, most)
				}
			}()
		}
		wg.Wait()
	}
}

// Calls allocate nothing after the first, and leave nothing behind.
func TestSyncNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	steps := 100000
	if !thorough() {
		steps = 5000
	}
	const ranks = 2
	s := batchnorm.Shape{Outer: 2, Channels: 4, Inner: 3}
	var before, after runtime.MemStats
	goroutines := runtime.NumGoroutine()
	var barrier sync.WaitGroup
	barrier.Add(ranks)
	for rank, err := range onRanks(t, ranks, syncPatience, func(g *batchnorm.SyncGroup) error {
		p, err := batchnorm.NewSyncPlan(g, s)
		if err != nil {
			return err
		}
		l, err := batchnorm.NewLayer(s.Channels)
		if err != nil {
			return err
		}
		if err := l.Synchronize(g); err != nil {
			return err
		}
		n := s.Len()
		x, y, dx, mean, invstd := gen.Normal(1, n, 0, 1), make([]float32, n), make([]float32, n), make([]float64, 4), make([]float64, 4)
		f := batchnorm.ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}
		b := batchnorm.BackwardArgs{DY: y, X: x, Mean: mean, InvStd: invstd, DX: dx}
		step := func() error {
			if err := errors.Join(p.BeginForward(f), p.Wait(), p.BeginBackward(b), p.Wait()); err != nil {
				return err
			}
			if err := errors.Join(p.Forward(f), p.Backward(b), g.AllReduce(dx)); err != nil {
				return err
			}
			return errors.Join(l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}), l.Backward(batchnorm.LayerBackwardArgs{DY: y, DX: dx}))
		}
		for range 100 {
			if err := step(); err != nil {
				return err
			}
		}
		barrier.Done()
		barrier.Wait()
		if g.Rank() == 0 {
			runtime.GC()
			runtime.ReadMemStats(&before)
		}
		for range steps / 7 {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	}) {
		if err != nil {
			t.Fatalf("rank %d: %v", rank, err)
		}
	}
	runtime.ReadMemStats(&after)
	// The runtime allocates a little for itself.
	if n := after.Mallocs - before.Mallocs; n > uint64(steps/20) {
		t.Errorf("%d calls allocate %d times", steps, n)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, at first there were %d", runtime.NumGoroutine(), goroutines)
		}
	}
}

// Begin returns before the other ranks come: they come only then.
func TestSyncBeginReturns(t *testing.T) {
	s := batchnorm.Shape{Outer: 2, Channels: 3, Inner: 4}
	begun := make(chan struct{})
	for rank, err := range onRanks(t, 2, syncPatience, func(g *batchnorm.SyncGroup) error {
		p, err := batchnorm.NewSyncPlan(g, s)
		if err != nil {
			return err
		}
		n := s.Len()
		f := batchnorm.ForwardArgs{X: gen.Normal(1, n, 0, 1), Y: make([]float32, n), Mean: make([]float64, 3), InvStd: make([]float64, 3)}
		b := batchnorm.BackwardArgs{DY: f.X, X: f.X, Mean: f.Mean, InvStd: f.InvStd, DX: make([]float32, n)}
		if g.Rank() == 0 {
			err := p.BeginForward(f)
			begun <- struct{}{}
			if err := errors.Join(err, p.Wait()); err != nil {
				return err
			}
			err = p.BeginBackward(b)
			begun <- struct{}{}
			return errors.Join(err, p.Wait())
		}
		for _, call := range []func() error{func() error { return p.Forward(f) }, func() error { return p.Backward(b) }} {
			select {
			case <-begun:
			case <-time.After(syncPatience / 10):
				return errors.New("rank 0 has not returned from Begin")
			}
			if err := call(); err != nil {
				return err
			}
		}
		return nil
	}) {
		if err != nil {
			t.Errorf("rank %d: %v", rank, err)
		}
	}
}
