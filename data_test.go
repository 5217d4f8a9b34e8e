package batchnorm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// How many channels have their sums taken again, of those that are of a kind.
const (
	takenOnce  = iota
	takenAgain // in tensors of few rows of adjacent channels, where no sample is looked at
	someAgain  // the same for those of one of the kinds in turn
)

// lookedAt has the kinds of which values are looked at, forward and backward, as their
// sums don't tell enough.
var lookedAt = map[string][2]bool{
	"NaN in one channel":         {true, false},
	"NaN in all channels":        {true, false},
	"Inf in one channel":         {true, false},
	"Inf in all channels":        {true, false},
	"NaN under given statistics": {true, true},
	"Inf under given statistics": {true, true},
	"NaN in dy of all channels":  {false, true},
	"kinds in turn":              {true, false},
}

// takenAgainOf says for every kind of data which channels take their sums again, forward
// and backward. Sums of zeros are exact, and no second sum makes a number of a NaN; sums of
// tiny gradients are in float64, and so are those of large values that a sample finds.
var takenAgainOf = map[string][2]int{
	"usual":                        {takenOnce, takenOnce},
	"1 % dead channels":            {takenOnce, takenOnce},
	"10 % dead channels":           {takenOnce, takenOnce},
	"100 % dead channels":          {takenOnce, takenOnce},
	"dy = 0":                       {takenOnce, takenOnce},
	"gamma = 0, beta = 0":          {takenOnce, takenOnce},
	"constant channels":            {takenOnce, takenOnce},
	"NaN in one channel":           {takenOnce, takenOnce},
	"NaN in all channels":          {takenOnce, takenOnce},
	"Inf in one channel":           {takenOnce, takenOnce},
	"Inf in all channels":          {takenOnce, takenOnce},
	"NaN under given statistics":   {takenOnce, takenOnce},
	"Inf under given statistics":   {takenOnce, takenOnce},
	"dy * 1e-30":                   {takenOnce, takenOnce},
	"dy * 1e-38":                   {takenOnce, takenOnce}, // the gradients are scaled
	"dy * 1e-38 in one channel":    {takenOnce, takenOnce},
	"dy * 1e-38 in every 16th":     {takenOnce, takenOnce},
	"NaN in dy of all channels":    {takenOnce, takenOnce},
	"dy * 1e36":                    {takenOnce, takenOnce}, // sums are in float64
	"x * 1e20":                     {takenAgain, takenOnce},
	"x * 1e20 in one channel":      {takenAgain, takenOnce},
	"x * 1e-20":                    {takenOnce, takenOnce}, // sums are in float64
	"x * 1e-25":                    {takenOnce, takenOnce}, // nothing beside epsilon
	"x subnormal":                  {takenOnce, takenOnce},
	"x subnormal, beta = 0":        {takenOnce, takenOnce},
	"gamma = 1e-33, beta = 0":      {takenOnce, takenOnce},
	"gamma = 1e-40, beta = 0":      {takenOnce, takenOnce},
	"x subnormal in one channel":   {takenOnce, takenOnce},
	"subnormal in turn":            {takenOnce, takenOnce},
	"gamma = 1e30":                 {takenOnce, takenOnce},
	"gamma = 1e-40":                {takenOnce, takenOnce}, // products are in float64
	"gamma = 1e-40 in one channel": {takenOnce, takenOnce},
	"mean 1e30, deviation 1e25":    {takenAgain, takenOnce},
	"mean 1e35, deviation 1e30":    {takenAgain, takenOnce},
	"dy * 1e-30, x * 1e-9":         {takenOnce, takenOnce},
	"dy * 1e-25, gamma = 1e-15":    {takenOnce, takenOnce},
	"x * 1e-12, gamma = 1e-28":     {takenOnce, takenOnce},
	"kinds in turn":                {someAgain, takenOnce},
}

// The sums of a channel are taken a second time where float32 can't hold them, and
// nowhere else: it takes time, which no usual data may cost.
func TestRescuedChannels(t *testing.T) {
	const turns = 8 // kinds in turn
	for _, c := range []struct {
		shape       batchnorm.Shape
		masked, few bool // few rows, of which a strip sees all values of a channel
	}{
		{batchnorm.Shape{Outer: 6, Channels: 24, Inner: 70}, false, false},
		{batchnorm.Shape{Outer: 6, Channels: 24, Inner: 70}, true, false},
		{batchnorm.Shape{Outer: 420, Channels: 24, Inner: 1}, false, false}, // 70 rows
		{batchnorm.Shape{Outer: 65, Channels: 136, Inner: 1}, false, false},
		{batchnorm.Shape{Outer: 64, Channels: 136, Inner: 1}, false, true},
		{batchnorm.Shape{Outer: 140, Channels: 40, Inner: 3}, false, false},
		{batchnorm.Shape{Outer: 64, Channels: 104, Inner: 1}, false, false}, // 32 rows of two values per channel
		{batchnorm.Shape{Outer: 8, Channels: 204, Inner: 1}, false, true},   // in strips, some columns twice
		{batchnorm.Shape{Outer: 32, Channels: 164, Inner: 1}, true, true},   // the same, of rows that are apart
		{batchnorm.Shape{Outer: 84, Channels: 164, Inner: 1}, true, true},   // of more rows
		{batchnorm.Shape{Outer: 120, Channels: 164, Inner: 1}, true, false}, // 90 rows
	} {
		s, mask := c.shape, batchnorm.Mask{}
		if c.masked {
			mask = oneInFour(s)
		}
		for _, k := range kinds.List() {
			want, known := takenAgainOf[k.Name]
			if !known {
				t.Fatalf("nothing is known of %s", k.Name)
			}
			count := func(n int) int64 {
				switch {
				case n == takenAgain && c.few:
					return int64(k.Changes(s.Channels))
				case n == someAgain && c.few:
					return int64((s.Channels + turns - 1 - 5) / turns) // the sixth of the kinds
				}
				return 0
			}
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
				for _, path := range batchnorm.Paths() {
					t.Run(fmt.Sprintf("%v/%s/%v/%v", s, k.Name, act, path), func(t *testing.T) {
						forward, backward, looked := rescuedOf(t, s, mask, k, act, path)
						for i, n := range looked {
							most := 0
							if lookedAt[k.Name][i] {
								most = k.Changes(s.Channels)
							}
							if n > int64(most) {
								t.Errorf("%s looks at %d channels, at most %d are wanted", [...]string{"forward", "backward"}[i], n, most)
							}
						}
						if forward != count(want[0]) || backward != count(want[1]) {
							t.Errorf("the sums of %d channels forward and %d backward are taken again, want %d and %d",
								forward, backward, count(want[0]), count(want[1]))
						}
					})
				}
			}
		}
	}
}

// TestLargeInStrips: strips take the sums of columns again where squares are too large, and take them in float64 where
// these are subnormal. They have the bits of pure Go, also where the last task has too few columns for a strip.
func TestLargeInStrips(t *testing.T) {
	t.Parallel()
	const workers = 5 // the last of 131 and 199 columns are fewer than a strip
	usual := gen.Normal(1, 64*199, 0.3, 1)
	for _, s := range []batchnorm.Shape{{Outer: 8, Channels: 131, Inner: 1}, {Outer: 7, Channels: 136, Inner: 1}, {Outer: 64, Channels: 150, Inner: 1},
		{Outer: 33, Channels: 199, Inner: 1}, {Outer: 24, Channels: 163, Inner: 1}} {
		// The same rows among others, which a mask leaves out.
		among := s
		among.Outer += s.Outer / 2
		mask, at := batchnorm.Mask{Valid: make([]bool, among.Outer)}, 0
		for i := range mask.Valid {
			if mask.Valid[i] = i%3 != 1; mask.Valid[i] {
				at++
			}
		}
		if at != s.Outer {
			t.Fatalf("%d rows are valid, want %d", at, s.Outer)
		}
		for _, epsilon := range []float64{0, batchnorm.DefaultEpsilon, 0x1p97, 0x1p99, 0x1p101} {
			for seed := range 8 {
				x := slices.Clone(usual[:s.Len()])
				for i := range x {
					// Squares that may be too large, are too large, or overflow, and those that are subnormal, or nearly so.
					c := channelOf(s, i)
					v := float64(x[i]) * []float64{1, 0x1p49, 0x1p50, 0x1p51, 0x1p66, 0x1p60, 1e36, 1e-30, 1e-20, 0x1p-56, 0x1p-81}[(c+c/8*seed)%11]
					switch {
					case seed == 0:
						v = float64(x[i]) * 1e20
					case seed == 1:
						v = float64(x[i]) * 1e-20
					case seed == 2 && math.Abs(v) < 1e-19: // deviations from a larger mean
						v = 0x1p-45 + float64(1+c%3)*v
					case seed == 3 && math.Abs(v) < 1e-19 && i/s.Channels%9 == 5: // where no value is sampled, often
						v = 1e3
					}
					if x[i] = float32(v); seed >= 5 && c%16 < 2 && i/s.Channels == c%3 {
						x[i] = float32(math.Inf(1 - c%2*2))
					}
				}
				type result struct {
					y            []float32
					mean, invstd []float64
				}
				run := func(s batchnorm.Shape, x []float32, mask batchnorm.Mask, o ...batchnorm.Option) (r result) {
					p, err := batchnorm.NewPlan(s, append(o, batchnorm.WithEpsilon(epsilon), batchnorm.WithShare(1))...)
					noError(t, err)
					r = result{make([]float32, s.Len()), make([]float64, s.Channels), make([]float64, s.Channels)}
					noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: r.y, Mean: r.mean, InvStd: r.invstd, Mask: mask}))
					return r
				}
				want := run(s, x, batchnorm.Mask{}, batchnorm.WithPath(batchnorm.PathGeneric), batchnorm.WithWorkers(1))
				spread := spreadRows(x, mask.Valid, s.Channels)
				for _, path := range batchnorm.Paths() {
					for _, n := range []int{1, workers} {
						got := run(s, x, batchnorm.Mask{}, batchnorm.WithPath(path), batchnorm.WithWorkers(n))
						if d := difference(got.y, want.y) + difference(got.mean, want.mean) + difference(got.invstd, want.invstd); d != "" {
							t.Fatalf("%v, %v with %d workers, epsilon %g, scales %d: %s", s, path, n, epsilon, seed, d)
						}
						got = run(among, spread, mask, batchnorm.WithPath(path), batchnorm.WithWorkers(n))
						y := spreadRows(want.y, mask.Valid, s.Channels)
						if d := difference(got.y, y) + difference(got.mean, want.mean) + difference(got.invstd, want.invstd); d != "" {
							t.Fatalf("%v among others, %v with %d workers, epsilon %g, scales %d: %s", s, path, n, epsilon, seed, d)
						}
					}
				}
			}
		}
	}
}

// TestHugeBehindSmall: values from which the mean of small ones lies out of float32's reach, in rows that are not sampled,
// leave moments that are numbers, with the bits of pure Go.
func TestHugeBehindSmall(t *testing.T) {
	t.Parallel()
	s := batchnorm.Shape{Outer: 32, Channels: 136, Inner: 1} // rows 0, 8, 16 and 24 are sampled, and the first 16 give the shift
	random := rand.New(rand.NewPCG(1, 2))
	signs, reached := make([]float32, s.Len()), make([]float32, s.Len())
	for try := range 20 {
		for c := range s.Channels {
			sum := 0.0
			for r := range s.Outer {
				i := r*s.Channels + c
				if signs[i], reached[i] = float32(r%5)+1, float32(r%5)+1; c%5 != 0 { // usual
					continue
				}
				signs[i], reached[i] = float32(r%7)*0x1p-60, float32(r%7)*0x1p-60
				if r < 16 && r%8 != 0 {
					reached[i] = float32(random.Float64() * 2.2e37)
				}
				if r < 16 {
					sum += float64(reached[i])
				}
			}
			if c%5 != 0 {
				continue
			}
			signs[s.Channels+c], signs[2*s.Channels+c], signs[20*s.Channels+c] = 3.4e38, 3.4e38, -3.4e38
			mean := float64(float32(sum / 16))
			reached[20*s.Channels+c] = -float32(math.MaxFloat32 - math.Floor(mean/0x1p104-0.5)*0x1p104) // which is just too far from the mean
		}
		for name, x := range map[string][]float32{"of both signs": signs, "near the end of the range": reached} {
			var want [2][]float64
			for _, path := range batchnorm.Paths() {
				got := [2][]float64{make([]float64, s.Channels), make([]float64, s.Channels)}
				noError(t, newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithWorkers(1+try%3), batchnorm.WithShare(1)).Forward(batchnorm.ForwardArgs{
					X: x, Y: make([]float32, s.Len()), Mean: got[0], InvStd: got[1]}))
				if want[0] == nil {
					want = got
				}
				if d := difference(got[0], want[0]) + difference(got[1], want[1]); d != "" {
					t.Fatalf("%s, %v: %s", name, path, d)
				}
				for c, v := range got[1] {
					if !(v > 0) {
						t.Fatalf("%s, %v: invstd[%d] is %g", name, path, c, v)
					}
				}
			}
		}
	}
}

// spreadRows returns rows of n values at the valid places, and zeros at the others.
func spreadRows(x []float32, valid []bool, n int) []float32 {
	out, row := make([]float32, len(valid)*n), 0
	for i, ok := range valid {
		if ok {
			row += copy(out[i*n:(i+1)*n], x[row:])
		}
	}
	return out
}

// oneInFour returns the mask that leaves out one position in four.
func oneInFour(s batchnorm.Shape) batchnorm.Mask {
	m := batchnorm.Mask{Valid: make([]bool, s.PerChannel())}
	for i := range m.Valid {
		m.Valid[i] = i%4 != 3
	}
	return m
}

// rescuedOf returns how many channels of a kind of data have their sums taken again, and
// how many are looked at.
func rescuedOf(t *testing.T, s batchnorm.Shape, mask batchnorm.Mask, k kinds.Kind, act batchnorm.Activation, path batchnorm.Path) (
	forward, backward int64, looked [2]int64) {
	x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
	gamma, beta := gen.Uniform(3, s.Channels, 0.5, 1.5), gen.Uniform(4, s.Channels, -1, 1)
	p, err := batchnorm.NewPlan(s, batchnorm.WithActivation(act), batchnorm.WithPath(path))
	noError(t, err)
	mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	a := batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: make([]float32, s.Len()), Mean: mean, InvStd: invstd, Mask: mask}
	if k.Given {
		noError(t, p.Forward(a))
		a.Mean, a.InvStd = nil, nil
	}
	k.Apply(s.Outer, s.Channels, s.Inner, x, dy, gamma, beta)
	before, unseen := batchnorm.Rescued(), batchnorm.Looked()
	noError(t, p.Forward(a))
	between, seen := batchnorm.Rescued(), batchnorm.Looked()
	noError(t, p.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, DX: a.Y,
		DGamma: make([]float32, s.Channels), DBeta: make([]float32, s.Channels), Mask: mask}))
	return between - before, batchnorm.Rescued() - between, [2]int64{seen - unseen, batchnorm.Looked() - seen}
}

// Every kind of data has equal bits by every way, in every mode, and keeps the bounds
// where all of it is numbers.
func TestKindsSameBits(t *testing.T) {
	t.Parallel()
	ways := waysOfModes()
	severalWindows := batchnorm.Shape{Outer: 300, Channels: 130, Inner: 1} // whose blocks are scaled one by one
	incomplete := batchnorm.Shape{Outer: 47, Channels: 3, Inner: 1}        // whose last row of columns is not complete
	for _, s := range []batchnorm.Shape{{Outer: 5, Channels: 9, Inner: 70}, {Outer: 40, Channels: 24, Inner: 1},
		{Outer: 8, Channels: 280, Inner: 1}, severalWindows, incomplete} {
		for _, k := range kinds.List() {
			if s == severalWindows && k.Name != "x * 1e20" {
				continue
			}
			for _, act := range []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU} {
				if !thorough() && act == batchnorm.ReLU {
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%v", s, k.Name, act), func(t *testing.T) {
					p := problem{shape: s, act: act, epsilon: batchnorm.DefaultEpsilon, ops: forward | backward,
						x: gen.Normal(1, s.Len(), 0.3, 1), dy: gen.Uniform(2, s.Len(), -1, 1),
						gamma: gen.Uniform(3, s.Channels, 0.5, 1.5), beta: gen.Uniform(4, s.Channels, -1, 1),
						mean: gen.Uniform(5, s.Channels, -1, 1), vari: gen.Uniform(6, s.Channels, 0.5, 1)}
					k.Apply(s.Outer, s.Channels, s.Inner, p.x, p.dy, p.gamma, p.beta)
					r := p.checkSame(t, ways, slices.Clone)
					if p.finite() {
						p.checkBounds(t, r)
					}
					expectSame(t, "split", split([]int{s.Outer}, batchnorm.Mask{}).same(t, p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, p))
					frozen(batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: 3}, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
					plain(oneInFour(s)).same(t, p, ways, slices.Clone)
				})
			}
		}
	}
}
