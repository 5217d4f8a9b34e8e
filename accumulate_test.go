package batchnorm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

func newAccumulator(tb testing.TB, channels int, opts ...batchnorm.Option) *batchnorm.Accumulator {
	tb.Helper()
	a, err := batchnorm.NewAccumulator(channels, opts...)
	noError(tb, err)
	return a
}

// tiles cuts a batch of images into tiles of some channels and positions each.
func tiles(s batchnorm.Shape, x []float32, channels, positions int, add func(batchnorm.TileArgs)) {
	for o := range s.Outer {
		for c := 0; c < s.Channels; c += channels {
			for i := 0; i < s.Inner; i += positions {
				tile := batchnorm.Shape{Outer: 1, Channels: min(channels, s.Channels-c), Inner: min(positions, s.Inner-i)}
				var values []float32
				for k := range tile.Channels {
					values = append(values, x[(o*s.Channels+c+k)*s.Inner+i:][:tile.Inner]...)
				}
				add(batchnorm.TileArgs{X: values, Shape: tile, Channel: c})
			}
		}
	}
}

// Tiles of every size give the statistics of the batch.
func TestAccumulator(t *testing.T) {
	t.Parallel()
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		s := batchnorm.Shape{Outer: 5, Channels: 10, Inner: 70}
		for _, mean := range []float64{0, 1e5} {
			x := gen.Normal(1, s.Len(), mean, 1)
			ref := reference.Forward(problem{shape: s, epsilon: batchnorm.DefaultEpsilon, x: x}.reference())
			a := newAccumulator(t, s.Channels, batchnorm.WithPath(path))
			for _, channels := range []int{1, 3, 10} {
				for _, positions := range []int{1, 7, 32, 70} {
					a.Reset()
					tiles(s, x, channels, positions, func(tile batchnorm.TileArgs) { noError(t, a.Add(tile)) })
					m, err := a.Moments()
					noError(t, err)
					if m.Count != s.PerChannel() {
						t.Fatalf("there are %d values per channel, want %d", m.Count, s.PerChannel())
					}
					for c := range s.Channels {
						if d := math.Abs(m.Mean[c] - ref.Mean[c]); !(d <= 1e-6) {
							t.Errorf("tiles of %d channels and %d values: mean %v, want %v", channels, positions, m.Mean[c], ref.Mean[c])
						}
						if v := m.M2[c] / float64(m.Count); !(math.Abs(v/ref.Var[c]-1) <= 1e-6) {
							t.Errorf("tiles of %d channels and %d values: variance %v, want %v", channels, positions, v, ref.Var[c])
						}
					}
				}
			}
		}
	})
}

// Tiles of different channels, in any order, that find channels of different
// counts.
func TestAccumulatorIrregularTiles(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 1, Channels: 12, Inner: 90}
	x := gen.Normal(1, s.Len(), 50, 1)
	ref := reference.Forward(problem{shape: s, epsilon: batchnorm.DefaultEpsilon, x: x}.reference())
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(2, seed))
		type rectangle struct{ c0, c1, i0, i1 int }
		list := []rectangle{{0, s.Channels, 0, s.Inner}}
		for k := 0; k < 40; k++ {
			at := r.IntN(len(list))
			a, b := list[at], list[at]
			if width := a.c1 - a.c0; k%2 == 0 && width > 1 {
				a.c1 -= 1 + r.IntN(width-1)
				b.c0 = a.c1
			} else if height := a.i1 - a.i0; height > 1 {
				a.i1 -= 1 + r.IntN(height-1)
				b.i0 = a.i1
			} else {
				continue
			}
			list[at] = a
			list = append(list, b)
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		a := newAccumulator(t, s.Channels)
		for _, q := range list {
			var values []float32
			for c := q.c0; c < q.c1; c++ {
				values = append(values, x[c*s.Inner+q.i0:c*s.Inner+q.i1]...)
			}
			noError(t, a.Add(batchnorm.TileArgs{X: values, Shape: batchnorm.Shape{Outer: 1, Channels: q.c1 - q.c0, Inner: q.i1 - q.i0}, Channel: q.c0}))
		}
		m, err := a.Moments()
		noError(t, err)
		if m.Count != s.Inner {
			t.Fatalf("there are %d values, want %d", m.Count, s.Inner)
		}
		for c := range s.Channels {
			if v := m.M2[c] / float64(m.Count); !(math.Abs(m.Mean[c]-ref.Mean[c]) <= 1e-6) || !(math.Abs(v/ref.Var[c]-1) <= 1e-6) {
				t.Errorf("channel %d: mean %v and variance %v, want %v and %v", c, m.Mean[c], v, ref.Mean[c], ref.Var[c])
			}
		}
	}
}

// One tile that is the batch has the bits of Moments, and moments of others are
// merged as MergeMoments does; padding has no part.
func TestAccumulatorIsMergeMoments(t *testing.T) {
	s := batchnorm.Shape{Outer: 6, Channels: 5, Inner: 9}
	p := newPlan(t, s)
	mask := batchnorm.Mask{Lengths: []int{9, 3, 0, 9, 1, 9}}
	var parts []batchnorm.Moments
	a := newAccumulator(t, s.Channels)
	for i := range uint64(4) {
		x, m := gen.Normal(i, s.Len(), 3, 1), newMoments(s.Channels)
		use := batchnorm.Mask{}
		if i%2 == 1 {
			use = mask
		}
		noError(t, p.Moments(batchnorm.MomentsArgs{X: x, Mask: use, Moments: &m}))
		parts = append(parts, m)
		if i < 2 {
			noError(t, a.Add(batchnorm.TileArgs{X: x, Shape: s, Mask: use}))
		} else {
			noError(t, a.AddMoments(0, m))
		}
		want := newMoments(s.Channels)
		noError(t, batchnorm.MergeMoments(&want, parts))
		got, err := a.Moments()
		noError(t, err)
		if got.Count != want.Count {
			t.Errorf("there are %d values, want %d", got.Count, want.Count)
		}
		expectBits(t, "mean", got.Mean, want.Mean)
		expectBits(t, "m2", got.M2, want.M2)
	}
}

func TestAccumulatorErrors(t *testing.T) {
	a := newAccumulator(t, 4)
	tile := func(channel, channels int) batchnorm.TileArgs {
		s := batchnorm.Shape{Outer: 1, Channels: channels, Inner: 3}
		return batchnorm.TileArgs{X: make([]float32, s.Len()), Shape: s, Channel: channel}
	}
	noError(t, a.Add(tile(0, 4)))
	noError(t, a.Add(tile(1, 2)))
	_, uneven := a.Moments()
	short, bad := tile(0, 4), tile(0, 4)
	short.X = short.X[1:]
	bad.Shape.Inner = 0
	none := (*batchnorm.Accumulator)(nil)
	_, noMoments := none.Moments()
	_, noChannels := batchnorm.NewAccumulator(0)
	_, badOption := batchnorm.NewAccumulator(2, batchnorm.WithWorkers(0))
	four := make([]float64, 4)
	for _, c := range []struct {
		name  string
		err   error
		kind  error
		words []string
	}{
		{"uneven", uneven, batchnorm.ErrLength, []string{"channel 1", "6", "channel 0", "3"}},
		{"too many channels", a.Add(tile(0, 5)), batchnorm.ErrShape, []string{"5", "4"}},
		{"too far", a.Add(tile(3, 2)), batchnorm.ErrShape, []string{"2 channels", "channel 3", "4"}},
		{"far too far", a.Add(tile(math.MaxInt, 1)), batchnorm.ErrShape, []string{"4"}},
		{"negative", a.Add(tile(-1, 2)), batchnorm.ErrShape, []string{"-1"}},
		{"x too short", a.Add(short), batchnorm.ErrLength, []string{"x has 11", "12"}},
		{"bad shape", a.Add(bad), batchnorm.ErrShape, []string{"1x4x0"}},
		{"m2 too short", a.AddMoments(0, batchnorm.Moments{Count: 1, Mean: four, M2: four[1:]}), batchnorm.ErrLength, []string{"mean", "4", "m2", "3"}},
		{"no moments", a.AddMoments(0, batchnorm.Moments{}), batchnorm.ErrShape, []string{"0 channels"}},
		{"moments too far", a.AddMoments(1, batchnorm.Moments{Count: 1, Mean: four, M2: slices.Clone(four)}), batchnorm.ErrShape, []string{"channel 1"}},
		{"negative count", a.AddMoments(0, batchnorm.Moments{Count: -1, Mean: four, M2: slices.Clone(four)}), batchnorm.ErrLength, []string{"-1"}},
		{"too many values", a.AddMoments(0, batchnorm.Moments{Count: math.MaxInt - 2, Mean: four, M2: slices.Clone(four)}),
			batchnorm.ErrLength, []string{"after 3"}},
		{"nil", none.Add(tile(0, 1)), batchnorm.ErrMissing, []string{"accumulator"}},
		{"nil, moments", none.AddMoments(0, batchnorm.Moments{}), batchnorm.ErrMissing, []string{"accumulator"}},
		{"nil, result", noMoments, batchnorm.ErrMissing, []string{"accumulator"}},
		{"no channels", noChannels, batchnorm.ErrShape, []string{"1x0x1"}},
		{"bad option", badOption, batchnorm.ErrOption, []string{"workers"}},
	} {
		expectErrorWords(t, c.name, c.err, c.kind, c.words...)
	}
	// After all these errors the channels that lacked values get them.
	noError(t, a.Add(tile(0, 1)))
	noError(t, a.Add(tile(3, 1)))
	if m, err := a.Moments(); err != nil || m.Count != 6 {
		t.Errorf("there are %d values, %v, want 6", m.Count, err)
	}
}

func TestAccumulatorNoAllocations(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	a := newAccumulator(t, 8)
	s := batchnorm.Shape{Outer: 1, Channels: 4, Inner: 33}
	x := gen.Normal(1, s.Len(), 0, 1)
	channel := 0
	expectNoAllocations(t, 20, "Add", func() error {
		channel = 4 - channel
		return a.Add(batchnorm.TileArgs{X: x, Shape: s, Channel: channel})
	})
}

// A convolution takes the statistics of its output tile by tile, while a tile is in
// the cache, so that its output is read only once more, to be normalized.
func ExampleAccumulator() {
	// 3 images of 8 positions; a kernel of one position makes 2 channels of 3.
	const images, positions, in, out, tile = 3, 8, 3, 2, 4
	x, weight := gen.Uniform(1, images*in*positions, 0, 1), []float32{1, 2, 3, -1, 0, 1}
	shape, err := batchnorm.NCHW(images, out, positions)
	if err != nil {
		fmt.Println(err)
		return
	}
	plan, err := batchnorm.NewPlan(shape)
	if err != nil {
		fmt.Println(err)
		return
	}
	statistics, err := batchnorm.NewAccumulator(out)
	if err != nil {
		fmt.Println(err)
		return
	}
	y := make([]float32, shape.Len())
	for n := range images {
		for o := range out {
			for p := 0; p < positions; p += tile {
				values := y[(n*out+o)*positions+p:][:tile]
				for i := range in {
					for k := range values {
						values[k] += weight[o*in+i] * x[(n*in+i)*positions+p+k]
					}
				}
				// One channel, from o on.
				if err := statistics.Add(batchnorm.TileArgs{X: values, Shape: batchnorm.Shape{Outer: 1, Channels: 1, Inner: tile}, Channel: o}); err != nil {
					fmt.Println(err)
					return
				}
			}
		}
	}
	moments, err := statistics.Moments()
	if err != nil {
		fmt.Println(err)
		return
	}
	mean, invstd := make([]float64, out), make([]float64, out)
	if err := plan.Statistics(batchnorm.StatisticsArgs{Moments: moments, Mean: mean, InvStd: invstd}); err != nil {
		fmt.Println(err)
		return
	}
	if err := plan.Normalize(batchnorm.NormalizeArgs{X: y, Mean: mean, InvStd: invstd, Y: y}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(moments.Count, "values per channel")
	for o := range out {
		sum, squares := 0.0, 0.0
		for n := range images {
			for _, v := range y[(n*out+o)*positions:][:positions] {
				sum += float64(v)
				squares += float64(v) * float64(v)
			}
		}
		fmt.Printf("channel %d: mean %.3f, variance %.3f\n", o, math.Abs(sum/24), squares/24)
	}
	// Output:
	// 24 values per channel
	// channel 0: mean 0.000, variance 1.000
	// channel 1: mean 0.000, variance 1.000
}
