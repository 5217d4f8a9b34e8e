package batchnorm_test

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

func newPrecise(tb testing.TB, channels int) *batchnorm.Precise {
	tb.Helper()
	p, err := batchnorm.NewPrecise(channels)
	noError(tb, err)
	return p
}

func newMoments(channels int) batchnorm.Moments {
	return batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
}

// someBatches returns the moments of batches of several sizes and scales.
func someBatches(t *testing.T, channels, n int) []batchnorm.Moments {
	var list []batchnorm.Moments
	for i := range n {
		s := batchnorm.Shape{Outer: 1 + i*7%13, Channels: channels, Inner: 20}
		x := gen.Normal(uint64(i), s.Len(), 1e4+float64(i), math.Pow(10, float64(i%7-3)))
		m := newMoments(channels)
		noError(t, newPlan(t, s).Moments(batchnorm.MomentsArgs{X: x, Moments: &m}))
		list = append(list, m)
	}
	return list
}

// The statistics of many batches are the same bits in every order and however
// they are divided among several; and they are the exact ones, rounded once.
func TestPrecise(t *testing.T) {
	t.Parallel()
	const channels = 3
	batches := someBatches(t, channels, 60)
	var want batchnorm.Moments
	for round := range uint64(6) {
		r := rand.New(rand.NewPCG(1, round))
		r.Shuffle(len(batches), func(i, j int) { batches[i], batches[j] = batches[j], batches[i] })
		several := make([]*batchnorm.Precise, 1+round)
		for i := range several {
			several[i] = newPrecise(t, channels)
		}
		for _, m := range batches {
			noError(t, several[r.IntN(len(several))].Add(m))
		}
		all := newPrecise(t, channels)
		for _, p := range several {
			noError(t, all.Merge(p))
		}
		got := newMoments(channels)
		noError(t, all.Moments(&got))
		if round == 0 {
			want = got
		}
		if got.Count != want.Count || got.Count != all.Count() {
			t.Errorf("there are %d values, Count says %d, want %d", got.Count, all.Count(), want.Count)
		}
		expectBits(t, "mean", got.Mean, want.Mean)
		expectBits(t, "m2", got.M2, want.M2)
	}
	for c := range channels {
		sum, squares := new(big.Rat), new(big.Rat)
		rat := func(v float64) *big.Rat { return new(big.Rat).SetFloat64(v) }
		for _, m := range batches {
			n, mean := rat(float64(m.Count)), rat(m.Mean[c])
			total := new(big.Rat).Mul(n, mean)
			sum.Add(sum, total)
			squares.Add(squares, rat(m.M2[c]))
			squares.Add(squares, total.Mul(total, mean))
		}
		n := rat(float64(want.Count))
		mean, _ := new(big.Rat).Quo(sum, n).Float64()
		m2, _ := squares.Sub(squares, sum.Mul(sum, sum).Quo(sum, n)).Float64()
		if want.Mean[c] != mean || math.Abs(want.M2[c]-m2) > 1e-15*m2 {
			t.Errorf("channel %d: mean %v and m2 %v, want %v and %v", c, want.Mean[c], want.M2[c], mean, m2)
		}
	}
}

// Numbers of every size and sign, and sums that cancel.
func TestPreciseRange(t *testing.T) {
	for _, c := range []struct {
		means    []float64 // of batches of one value
		mean, m2 float64
	}{
		{[]float64{5e-324, 5e-324}, 5e-324, 0},
		{[]float64{1e-300, -1e-300}, 0, 0},
		{[]float64{3e38, -3e38, 3, 3}, 1.5, 1.8e77},
		{[]float64{math.MaxFloat32, math.MaxFloat32}, math.MaxFloat32, 0},
		{[]float64{1, -1, 1e-10, -1e-10}, 0, 2 + 2e-20},
		{[]float64{float64(float32(0.1)), float64(float32(0.1)), float64(float32(0.1))}, float64(float32(0.1)), 0},
		{[]float64{-2, -4}, -3, 2},
		{[]float64{1e200, 0}, 5e199, math.NaN()},
		{[]float64{1, math.NaN(), 2}, math.NaN(), math.NaN()},
		{[]float64{1, math.Inf(1), 2}, math.Inf(1), math.NaN()},
		{[]float64{1, math.Inf(-1), math.Inf(1)}, math.NaN(), math.NaN()},
	} {
		for range 2 {
			p := newPrecise(t, 2)
			for _, m := range c.means {
				noError(t, p.Add(batchnorm.Moments{Count: 1, Mean: []float64{m, 7}, M2: []float64{0, 0}}))
			}
			m := newMoments(2)
			noError(t, p.Moments(&m))
			if !sameBits(m.Mean[0], c.mean) || !sameBits(m.M2[0], c.m2) && !(math.Abs(m.M2[0]-c.m2) <= 1e-15*c.m2) || m.Mean[1] != 7 || m.M2[1] != 0 {
				t.Errorf("%v have mean %v and m2 %v, want %v and %v; 7 has %v and %v", c.means, m.Mean[0], m.M2[0], c.mean, c.m2, m.Mean[1], m.M2[1])
			}
			slices.Reverse(c.means)
		}
	}
}

func TestPreciseEmpty(t *testing.T) {
	p := newPrecise(t, 2)
	m := batchnorm.Moments{Mean: []float64{8, 8}, M2: []float64{8, 8}}
	noError(t, p.Moments(&m))
	expectBits(t, "mean of nothing", m.Mean, []float64{0, 0})
	noError(t, p.Add(batchnorm.Moments{Mean: []float64{math.NaN(), 1}, M2: []float64{1, 1}}))
	noError(t, p.Add(batchnorm.Moments{Count: 2, Mean: []float64{3, 4}, M2: []float64{1, 2}}))
	noError(t, p.Moments(&m))
	expectBits(t, "mean", m.Mean, []float64{3, 4})
	expectBits(t, "m2", m.M2, []float64{1, 2})
	p.Reset()
	if p.Count() != 0 || (*batchnorm.Precise)(nil).Count() != 0 {
		t.Error("there are values after Reset")
	}
	noError(t, p.Moments(&m))
	expectBits(t, "m2 after Reset", m.M2, []float64{0, 0})
}

func TestPreciseErrors(t *testing.T) {
	if p, err := batchnorm.NewPrecise(0); p != nil || err == nil {
		t.Errorf("0 channels give %v, %v", p, err)
	}
	p := newPrecise(t, 2)
	noError(t, p.Add(batchnorm.Moments{Count: 5, Mean: []float64{1, 2}, M2: []float64{1, 2}}))
	two, three := make([]float64, 2), make([]float64, 3)
	none := (*batchnorm.Precise)(nil)
	for _, c := range []struct {
		name  string
		err   error
		kind  error
		words []string
	}{
		{"mean too long", p.Add(batchnorm.Moments{Count: 1, Mean: three, M2: two}), batchnorm.ErrLength, []string{"mean", "3", "2"}},
		{"no m2", p.Add(batchnorm.Moments{Count: 1, Mean: two}), batchnorm.ErrMissing, []string{"m2", "2"}},
		{"negative", p.Add(batchnorm.Moments{Count: -1, Mean: two, M2: two}), batchnorm.ErrLength, []string{"-1"}},
		{"too many", p.Add(batchnorm.Moments{Count: math.MaxInt - 4, Mean: two, M2: two}), batchnorm.ErrLength, []string{"after 5"}},
		{"merge", p.Merge(newPrecise(t, 3)), batchnorm.ErrShape, []string{"2", "3"}},
		{"merge nothing", p.Merge(nil), batchnorm.ErrMissing, []string{"precise"}},
		{"nil", none.Add(batchnorm.Moments{}), batchnorm.ErrMissing, []string{"precise"}},
		{"nil merge", none.Merge(p), batchnorm.ErrMissing, []string{"precise"}},
		{"nil moments", none.Moments(&batchnorm.Moments{}), batchnorm.ErrMissing, []string{"precise"}},
		{"no dst", p.Moments(nil), batchnorm.ErrMissing, []string{"dst"}},
		{"dst too short", p.Moments(&batchnorm.Moments{Mean: two, M2: three}), batchnorm.ErrLength, []string{"m2 of dst", "3", "2"}},
		{"dst alias", p.Moments(&batchnorm.Moments{Mean: two, M2: two}), batchnorm.ErrAlias, []string{"mean", "m2"}},
	} {
		expectErrorWords(t, c.name, c.err, c.kind, c.words...)
	}
	if p.Count() != 5 {
		t.Errorf("there are %d values after errors, want 5", p.Count())
	}
}

func TestPreciseNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	p, m := newPrecise(t, 4), newMoments(4)
	m.Count = 3
	expectNoAllocations(t, 10, "Add", func() error { return p.Add(m) })
}

// A layer's running statistics become those of all batches of a pass, with the
// layer's variance, whatever the order.
func TestLayerPrecise(t *testing.T) {
	for _, variance := range []batchnorm.Variance{batchnorm.Unbiased, batchnorm.Population} {
		var want []float32
		for round := range 3 {
			l := newLayer(t, 3, batchnorm.WithRunningVariance(variance))
			l.Precise = newPrecise(t, 3)
			n, sum, squares := 0.0, make([]float64, 3), make([]float64, 3)
			for i := range 8 {
				b := (i + 3*round) % 8
				s := batchnorm.Shape{Outer: 2 + b, Channels: 3, Inner: 5}
				x := gen.Normal(uint64(b), s.Len(), float64(b), 2)
				mask := batchnorm.Mask{Lengths: slices.Repeat([]int{5}, s.Outer)}
				mask.Lengths[0] = 2
				noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Mask: mask, Y: make([]float32, s.Len())}))
				noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Mask: mask, Y: make([]float32, s.Len()), Untracked: true}))
				for k, v := range x {
					if k < 15 && k%5 >= 2 {
						continue
					}
					sum[channelOf(s, k)] += float64(v)
					squares[channelOf(s, k)] += float64(v) * float64(v)
				}
				n += float64(5*s.Outer - 3)
			}
			m := newMoments(3)
			noError(t, l.Precise.Moments(&m))
			noError(t, l.SetRunning(m))
			divisor := n
			if variance == batchnorm.Unbiased {
				divisor--
			}
			for c := range 3 {
				mean := sum[c] / n
				v := (squares[c] - n*mean*mean) / divisor
				if math.Abs(float64(l.RunningMean[c])-mean) > 1e-5 || math.Abs(float64(l.RunningVar[c])-v) > 1e-5*v {
					t.Errorf("%v: channel %d has mean %v and variance %v, want %v and %v", variance, c, l.RunningMean[c], l.RunningVar[c], mean, v)
				}
			}
			got := slices.Concat(l.RunningMean, l.RunningVar)
			if round == 0 {
				want = got
			}
			expectBits(t, fmt.Sprintf("%v, round %d", variance, round), got, want)
			noError(t, l.SetRunning(newMoments(3))) // of no values
			expectBits(t, "after moments of no values", slices.Concat(l.RunningMean, l.RunningVar), want)
		}
	}
	l := newLayer(t, 3)
	l.Precise = newPrecise(t, 4)
	args := batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{2, 3, 1}, X: make([]float32, 6), Y: make([]float32, 6)}
	expectErrorWords(t, "other channels", l.Forward(args), batchnorm.ErrShape, "4", "3")
	l.RunningMean, l.RunningVar = nil, nil
	expectErrorWords(t, "nothing tracked", l.SetRunning(newMoments(3)), batchnorm.ErrMissing, "running mean")
}

// The running statistics of a layer become those of a whole pass over the data.
func ExamplePrecise() {
	layer, err := batchnorm.NewLayer(1, batchnorm.WithRunningVariance(batchnorm.Population))
	if err != nil {
		fmt.Println(err)
		return
	}
	if layer.Precise, err = batchnorm.NewPrecise(layer.Channels()); err != nil {
		fmt.Println(err)
		return
	}
	for _, x := range [][]float32{{1, 2}, {3, 4, 5}} {
		shape := batchnorm.Shape{Outer: len(x), Channels: 1, Inner: 1}
		if err := layer.Forward(batchnorm.LayerForwardArgs{Shape: shape, X: x, Y: make([]float32, len(x))}); err != nil {
			fmt.Println(err)
			return
		}
	}
	moments := batchnorm.Moments{Mean: make([]float64, 1), M2: make([]float64, 1)}
	if err := layer.Precise.Moments(&moments); err != nil {
		fmt.Println(err)
		return
	}
	layer.Precise = nil
	if err := layer.SetRunning(moments); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(moments.Count, layer.RunningMean, layer.RunningVar)
	// Output:
	// 5 [3] [2]
}
