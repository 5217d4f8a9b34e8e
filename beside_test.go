package batchnorm

import (
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestFirstSet: the first byte of two lists that is not 0 in both is found wherever it is, in lists of any length.
func TestFirstSet(t *testing.T) {
	for n := range 140 {
		lists := [2][]byte{make([]byte, n), make([]byte, n)}
		if got := firstSet(lists[0], lists[1]); got != n {
			t.Fatalf("of %d bytes that are 0, byte %d is not", n, got)
		}
		for _, list := range lists {
			for i := range n {
				for _, v := range []byte{1, 0x80} {
					list[i], list[n-1] = v, max(list[n-1], v)
					if got := firstSet(lists[0], lists[1]); got != i {
						t.Fatalf("of %d bytes the first that is not 0 is %d, not %d", n, i, got)
					}
					list[i], list[n-1] = 0, 0
				}
			}
		}
	}
}

// TestAddFactors: the kinds of precise channels get tinyFactors, and those of others remain.
func TestAddFactors(t *testing.T) {
	for n := 1; n < 80; n++ {
		for _, every := range []int{1, 2, 7, 20, 100} {
			for first := range min(n, every) {
				kinds, forms, want := make([]byte, n), make([]byte, n), make([]byte, n)
				for c := range kinds {
					forms[c], kinds[c] = byte(c%2)*wideForm, byte(c%4)
					want[c] = kinds[c]
					if c%every == first {
						forms[c] = preciseForm
						want[c] |= tinyFactors
					}
				}
				addFactors(kinds, forms)
				if string(kinds) != string(want) {
					t.Fatalf("of %d channels each %d. is precise, from %d on: kinds are %v, want %v", n, every, first, kinds, want)
				}
			}
		}
	}
}

// TestManyBeside: channels with tiny gradients, among as many usual ones, have the results that they have
// among channels like them, and so have the usual ones.
func TestManyBeside(t *testing.T) {
	for _, s := range []Shape{{8, 1500, 1}, {3, 1003, 3}, {2, 1100, 40}} {
		usual, among := gen.Uniform(2, s.Len(), -1, 1), gen.Uniform(3, s.Channels, 0, 1)
		isTiny := func(c int) bool { return among[c] < 0.5 || c > 300 && c < 340 }
		tiny, mixed := make([]float32, s.Len()), make([]float32, s.Len())
		for i, v := range usual {
			tiny[i], mixed[i] = float32(float64(v)*1e-38), v
			if isTiny(i / s.Inner % s.Channels) {
				mixed[i] = tiny[i]
			}
		}
		type result struct{ dx, dgamma, dbeta []float32 }
		x, gamma := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(4, s.Channels, 0.5, 1.5)
		mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
		for _, path := range Paths() {
			run := func(dy []float32) result {
				p, err := NewPlan(s, WithPath(path))
				if err != nil {
					t.Fatal(err)
				}
				r := result{make([]float32, s.Len()), make([]float32, s.Channels), make([]float32, s.Channels)}
				if err := p.Forward(ForwardArgs{X: x, Y: r.dx, Gamma: gamma, Mean: mean, InvStd: invstd}); err != nil {
					t.Fatal(err)
				}
				if err := p.Backward(BackwardArgs{X: x, DY: dy, Gamma: gamma, Mean: mean, InvStd: invstd,
					DX: r.dx, DGamma: r.dgamma, DBeta: r.dbeta}); err != nil {
					t.Fatal(err)
				}
				return r
			}
			got, of := run(mixed), map[bool]result{true: run(tiny), false: run(usual)}
			same := func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }
			for c := range s.Channels {
				if want := of[isTiny(c)]; !same(got.dgamma[c], want.dgamma[c]) || !same(got.dbeta[c], want.dbeta[c]) {
					t.Fatalf("%v, %v, channel %d, tiny: %t: dgamma and dbeta are %g and %g, want %g and %g", s, path, c, isTiny(c),
						got.dgamma[c], got.dbeta[c], want.dgamma[c], want.dbeta[c])
				}
			}
			for i, v := range got.dx {
				c := i / s.Inner % s.Channels
				if want := of[isTiny(c)].dx[i]; !same(v, want) {
					t.Fatalf("%v, %v, channel %d, tiny: %t: dx[%d] is %g, want %g", s, path, c, isTiny(c), i, v, want)
				}
			}
		}
	}
}

// TestCallsAreShortBeside: the constants of many channels, of which every other one has tiny gradients, take more than one call.
func TestCallsAreShortBeside(t *testing.T) {
	s := Shape{2, 2*callChannels + 100, 1}
	x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
	for i := 0; i < len(dy); i += 2 {
		dy[i] = float32(float64(dy[i]) * 1e-38)
	}
	for _, path := range Paths() {
		p, err := NewPlan(s, WithPath(path), WithWorkers(1))
		if err != nil {
			t.Fatal(err)
		}
		longest := longestCalls(func() {
			err = p.Backward(BackwardArgs{X: x, DY: dy, DX: make([]float32, s.Len()), DGamma: make([]float32, s.Channels)})
		})
		if n := longest[watchChannels]; err != nil || n > callChannels {
			t.Errorf("%v: %d channels, at most %d are wanted, and %v", path, n, callChannels, err)
		}
	}
}

// TestLooksAreShort: a look at many channels, of which all have NaN, takes more than one call.
func TestLooksAreShort(t *testing.T) {
	s := Shape{64, 4 * callChannels, 1}
	mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	for c := range invstd {
		invstd[c] = 1
	}
	most := 0
	inspected = func(_ int, l layout, _ Activation, a kernelArgs) { most = max(most, a.values(l)) }
	defer func() { inspected = nil }()
	for _, act := range []Activation{Identity, ReLU} {
		for of := range 2 {
			x, dy := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
			for c := range s.Channels {
				[][]float32{x, dy}[of][s.Channels+c] = float32(math.NaN()) // behind the first row
			}
			p, err := NewPlan(s, WithActivation(act), WithWorkers(1))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Backward(BackwardArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, DX: make([]float32, s.Len())}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if most > maxCall {
		t.Errorf("%d values in a call, at most %d are wanted", most, maxCall)
	}
}

// TestMarksForgotten: sums that overflow are taken again after a call in which their channels had tiny gradients, while
// their neighbours have these.
func TestMarksForgotten(t *testing.T) {
	for _, s := range []Shape{{8, 40, 1}, {90, 40, 1}, {2, 40, 30}} {
		x, usual := gen.Normal(1, s.Len(), 0.3, 1), gen.Uniform(2, s.Len(), -1, 1)
		at := make([]int, s.Channels)
		before, dy := make([]float32, s.Len()), make([]float32, s.Len())
		for i, v := range usual {
			c := i / s.Inner % s.Channels
			before[i], dy[i] = v, v
			odd := c%2 == 1
			switch at[c]++; {
			case !odd:
				dy[i] = float32(float64(v) * 1e-38)
			case at[c] > 2 && at[c] <= 5: // which are not sampled, or few of which are
				dy[i] = 3e38
			case at[c] > 5 && at[c] <= 8:
				dy[i] = -3e38
			}
			if odd {
				before[i] = float32(float64(v) * 1e-38)
			}
		}
		for _, path := range Paths() {
			p, err := NewPlan(s, WithPath(path), WithWorkers(1))
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := NewPlan(s, WithPath(path), WithWorkers(1))
			if err != nil {
				t.Fatal(err)
			}
			run := func(p *Plan, dy []float32) (dx, dbeta []float32) {
				dx, dbeta = make([]float32, s.Len()), make([]float32, s.Channels)
				if err := p.Backward(BackwardArgs{X: x, DY: dy, DX: dx, DBeta: dbeta}); err != nil {
					t.Fatal(err)
				}
				return dx, dbeta
			}
			wantDX, want := run(fresh, dy)
			run(p, before)
			gotDX, got := run(p, dy)
			for c, v := range got {
				if v-v != 0 || math.Float32bits(v) != math.Float32bits(want[c]) {
					t.Errorf("%v, %v: dbeta[%d] is %g, want %g", s, path, c, v, want[c])
				}
			}
			for i, v := range gotDX {
				if math.Float32bits(v) != math.Float32bits(wantDX[i]) {
					t.Fatalf("%v, %v: dx[%d] is %g, want %g", s, path, i, v, wantDX[i])
				}
			}
		}
	}
}

// TestManyBesideBorders: few or many channels of each vector have tiny gradients, up to any channel, and all of them
// have the results that they have among channels like them.
func TestManyBesideBorders(t *testing.T) {
	s := Shape{3, 700, 1}
	usual, x := gen.Uniform(2, s.Len(), -1, 1), gen.Normal(1, s.Len(), 0.3, 1)
	mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	for _, path := range Paths() {
		p, err := NewPlan(s, WithPath(path))
		if err != nil {
			t.Fatal(err)
		}
		run := func(isTiny func(c int) bool) (dgamma []float32) {
			dy, dx, dgamma := make([]float32, s.Len()), make([]float32, s.Len()), make([]float32, s.Channels)
			for i, v := range usual {
				if dy[i] = v; isTiny(i % s.Channels) {
					dy[i] = float32(float64(v) * 1e-38)
				}
			}
			if err := p.Forward(ForwardArgs{X: x, Y: dx, Mean: mean, InvStd: invstd}); err != nil {
				t.Fatal(err)
			}
			if err := p.Backward(BackwardArgs{X: x, DY: dy, Mean: mean, InvStd: invstd, DX: dx, DGamma: dgamma}); err != nil {
				t.Fatal(err)
			}
			return dgamma
		}
		tiny, others := run(func(int) bool { return true }), run(func(int) bool { return false })
		for each := 1; each < lanes; each++ { // of a vector are tiny
			for skipped := range lanes { // a few in the first one
				isTiny := func(c int) bool { return c%lanes >= lanes-each && c >= skipped }
				for c, got := range run(isTiny) {
					want := others[c]
					if isTiny(c) {
						want = tiny[c]
					}
					if math.Float32bits(got) != math.Float32bits(want) {
						t.Fatalf("%v, %d of each vector but for the first %d channels: dgamma[%d] is %g, want %g", path, each, skipped, c, got, want)
					}
				}
			}
		}
	}
}

// TestSpans: columns of tiny numbers that are close together are one span, with those between them, where they
// have few rows. Those that are few are in no span.
func TestSpans(t *testing.T) {
	const g, wide = tinyGradients, wideOutputs
	eight := func(of ...int) map[int]byte { // first columns of 8, and their kinds
		kinds := map[int]byte{}
		for i := 0; i < len(of); i += 2 {
			for j := range lanes {
				kinds[of[i]+j] = byte(of[i+1])
			}
		}
		return kinds
	}
	two := func(first ...int) map[int]byte { // first columns of two, which are not few in a vector
		kinds := map[int]byte{}
		for _, j := range first {
			kinds[j], kinds[j+1] = g, g
		}
		return kinds
	}
	at := func(step, n int) (list []int) {
		for i := range n {
			list = append(list, step*i)
		}
		return list
	}
	every := func(step, n int) map[int]byte {
		kinds := map[int]byte{}
		for _, j := range at(step, n) {
			kinds[j] = g
		}
		return kinds
	}
	with := func(kinds map[int]byte, j int, kind byte) map[int]byte {
		kinds[j] = kind
		return kinds
	}
	for _, c := range []struct {
		rows     int
		kinds    map[int]byte // of 600 columns
		backward bool
		want     []tinySpan
		few      []int
	}{
		{4, nil, true, nil, nil},
		{4, two(3), true, []tinySpan{{0, 8, true}}, nil},
		{4, two(3), false, []tinySpan{{0, 8, true}}, nil},
		{4, two(3, 140), true, []tinySpan{{0, 144, true}}, nil},
		{4, two(3, 188), false, []tinySpan{{0, 8, true}, {184, 192, true}}, nil},
		{4, two(3, 100, 188), false, []tinySpan{{0, 192, true}}, nil},      // less than a third of the columns
		{4, two(3, 100, 188, 290), false, []tinySpan{{0, 600, true}}, nil}, // more
		{4, with(two(3, 100, 188, 290), 400, wide), false, []tinySpan{{0, 192, true}, {288, 296, true}}, nil},
		{4, two(3, 144), true, []tinySpan{{0, 8, true}, {144, 152, true}}, nil},
		{4, two(3, 100, 200, 300), true, []tinySpan{{0, 208, true}, {296, 304, true}}, nil},
		{4, with(two(3, 40), 20, wide), true, []tinySpan{{0, 8, true}, {40, 48, true}}, nil},
		{32, two(3, 29), true, []tinySpan{{0, 32, true}}, nil},
		{32, two(3, 32), true, []tinySpan{{0, 8, true}, {32, 40, true}}, nil},
		{64, two(3, 16), true, []tinySpan{{0, 24, true}}, nil},
		{65, two(3, 16), true, []tinySpan{{0, 8, true}, {16, 24, true}}, nil},
		{4, eight(0, g), true, []tinySpan{{0, 8, false}}, nil},
		{4, eight(0, g, 8, g|tinyDeviations), true, []tinySpan{{0, 16, false}}, nil}, // of two kinds
		{4, eight(0, g, 8, g|tinyDeviations, 24, g), true, []tinySpan{{0, 32, true}}, nil},

		{4, map[int]byte{3: g}, true, nil, []int{3}},
		{4, map[int]byte{3: g, 599: g}, false, nil, []int{3, 599}},
		{fewTall, map[int]byte{300: g}, true, nil, []int{300}},
		{fewTall + 1, map[int]byte{300: g}, true, []tinySpan{{296, 304, true}}, nil},
		{fewTall + 1, map[int]byte{300: g, 500: g}, true, nil, []int{300, 500}},
		{4, map[int]byte{3: g, 4: g, 12: g}, true, nil, []int{3, 4, 12}},                        // 3 in two vectors
		{4, map[int]byte{3: g, 4: g, 12: g, 13: g}, true, []tinySpan{{0, 16, true}}, nil},       // 4
		{4, map[int]byte{3: g, 20: wide}, true, []tinySpan{{0, 8, true}}, nil},                  // wide columns go with spans
		{4, with(two(3, 300), 290, g), true, []tinySpan{{0, 8, true}}, []int{290, 300, 301}},    // by 256 columns
		{4, map[int]byte{255: g, 256: g, 511: g, 512: g}, true, nil, []int{255, 256, 511, 512}}, // on both sides
		{4, with(with(two(3), 100, g), 200, g), true, nil, []int{3, 4, 100, 200}},
		{4, every(9, 66), false, nil, at(9, 66)},
		{4, every(9, 67), false, []tinySpan{{0, 600, true}}, nil}, // as long as a third of the columns
		{4, every(9, 67), true, nil, at(9, 67)},
		{4, map[int]byte{8: g, 24: g, 40: g, 56: g}, false, nil, []int{8, 24, 40, 56}}, // 12 of 600
	} {
		p, err := NewPlan(Shape{Outer: c.rows, Channels: 600, Inner: 1})
		if err != nil {
			t.Fatal(err)
		}
		w := p.acquire(&Mask{}, c.rows, false)
		w.call = call{backward: c.backward}
		clear(w.channels.form)
		kinds := make([]byte, 600)
		for j, kind := range c.kinds {
			kinds[j] = kind
		}
		w.setTinyColumns(kinds, false)
		if got := w.tinyColumns.spans; !slices.Equal(got, c.want) {
			t.Errorf("%d rows, backward %t, kinds %v: spans are %v, want %v", c.rows, c.backward, c.kinds, got, c.want)
		}
		var few []int
		for _, f := range w.tinyColumns.few {
			few = append(few, f.at)
		}
		if !slices.Equal(few, c.few) {
			t.Errorf("%d rows, backward %t, kinds %v: few columns are %v, want %v", c.rows, c.backward, c.kinds, few, c.few)
		}
		for j, kind := range kinds {
			in := false
			for _, s := range w.tinyColumns.spans {
				in = in || s.first <= j && j < s.end
			}
			all := w.tinyColumns.all // which need no masks
			keeps := in && !all && w.tinyColumns.masks[j] != 0
			in = in || slices.Contains(few, j)
			if kind&g != 0 && (!in || keeps) || kind == 0 && in && !all && !keeps {
				t.Errorf("%d rows, kinds %v: column %d of kind %d is in a span: %t, keeps its output: %t", c.rows, c.kinds, j, kind, in, keeps)
			}
		}
		p.release(w)
	}
}

// TestColumnsAlike: vectors of columns are alike if they have the same kinds, and if some have none in all of them.
func TestColumnsAlike(t *testing.T) {
	const g, x = tinyGradients, tinyDeviations
	same := func(kind byte, n int) (v []byte) {
		for range n {
			v = append(v, kind)
		}
		return v
	}
	of := slices.Concat[[]byte]
	for _, c := range []struct {
		kinds []byte
		j     int
		kind  byte
		next  int
	}{
		{same(0, 40), 0, 0, 40},
		{same(0, 13), 8, 0, 13},
		{of(same(0, 35), same(g, 5)), 0, 0, 32},
		{of(same(0, 35), same(g, 5)), 32, g | mixedKinds, 40},
		{same(g, 40), 8, g, 40},
		{same(g, 13), 0, g, 13}, // a missing column is of any kind
		{same(g, 13), 8, g, 13},
		{of(same(g, 12), same(0, 1)), 0, g, 8},
		{of(same(g, 12), same(0, 1)), 8, g | mixedKinds, 13},
		{of(same(g, 16), same(x, 8)), 0, g, 16},
		{of(same(g, 1), same(x, 8), same(g, 6)), 0, g | x, 15},          // in any order
		{of(same(0, 1), same(x, 9), same(0, 6)), 0, x | mixedKinds, 16}, // wherever they are
		{of(same(0, 1), same(x, 9), same(0, 14)), 0, x | mixedKinds, 16},
		{of(same(g, 3), same(0, 5), same(g, 3)), 0, g | mixedKinds, 8}, // the last one has no others
		{same(g, 2*mostSpan), 0, g, mostSpan},
		{same(0, 2*mostSpan+3), 8, 0, 2*mostSpan + 3},
	} {
		n := len(c.kinds)
		w := workspace{geo: &geometry{width: n, channels: n}}
		if kind, next := w.columnsAlike(c.kinds, c.j, n); kind != c.kind || next != c.next {
			t.Errorf("%v, from %d: kind %d to %d, want %d to %d", c.kinds, c.j, kind, next, c.kind, c.next)
		}
		var twice []byte // channels of two columns are like two channels
		for _, kind := range c.kinds {
			twice = append(twice, kind, kind)
		}
		w.geo = &geometry{width: 2 * n, channels: 2 * n}
		kind, next := w.columnsAlike(twice, 2*c.j, 2*n)
		w.geo = &geometry{width: 2 * n, channels: n, fold: 1, unit: 2}
		if k, end := w.columnsAlike(c.kinds, 2*c.j, 2*n); k != kind || end != next {
			t.Errorf("%v, two columns each, from %d: kind %d to %d, want %d to %d", c.kinds, 2*c.j, k, end, kind, next)
		}
	}
}

// TestStreams: a kernel of columns has non-temporal stores where they write whole cache lines, or rows without gaps.
func TestStreams(t *testing.T) {
	all := make([]float32, 128)
	line := -int(uintptr(unsafe.Pointer(&all[0]))/4) & (lineLen - 1)
	for _, c := range []struct {
		at, rows, n, strideY int // at counts from the start of a cache line
		want                 bool
	}{
		{0, 1, 49, 49, true}, // a row has one end
		{8, 1, 49, 49, true},
		{4, 1, 49, 49, false},
		{0, 8, 32, 512, true},
		{8, 8, 32, 512, false}, // half lines
		{0, 8, 24, 512, false},
		{0, 8, 48, 49 * 512, true},
		{0, 8, 49, 49 * 512, false}, // a row of an image ends within a line
		{0, 8, 32, 520, false},
		{0, 8, 24, 24, true}, // without gaps
		{8, 8, 24, 24, true},
		{0, 8, 20, 20, false},
	} {
		var w workspace
		k := kernelArgs{y: all[line+c.at:], rows: c.rows, strideY: c.strideY}
		if w.streams(&k, c.n) {
			t.Errorf("%+v: non-temporal stores that nobody wants", c)
		}
		w.apply.stream = true
		if got := w.streams(&k, c.n); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// TestUnexplained: sums that are not finite are explained by extents that are not, and a sum of products overflowed where that of
// gradients is finite, in whole vectors and behind them.
func TestUnexplained(t *testing.T) {
	inf := math.Inf(1)
	for n := range 3 * lanes {
		bad, good, extent, number := make([]float64, n), make([]float64, n), make([]float32, n), make([]float32, n)
		for i := range n {
			bad[i], extent[i] = []float64{math.NaN(), inf, -inf}[i%3], []float32{nan, float32(inf)}[i%2]
			good[i], number[i] = float64(i), math.MaxFloat32
		}
		if unexplained(bad, extent) || unexplained(good, number) || unexplained(good, extent) || n > 0 && !unexplained(bad, number) {
			t.Errorf("%d sums are explained as others", n)
		}
		if anyOverflowed(bad, bad) || anyOverflowed(bad, good) || anyOverflowed(good, good) || n > 0 && !anyOverflowed(good, bad) {
			t.Errorf("%d sums have overflowed as others", n)
		}
		for i := range n {
			v, p := extent[i], bad[i]
			if extent[i] = 3; !unexplained(bad, extent) {
				t.Errorf("sum %d of %d is explained", i, n)
			}
			if bad[i] = math.MaxFloat64; !anyOverflowed(bad, slices.Repeat([]float64{inf}, n)) {
				t.Errorf("sum %d of %d has not overflowed", i, n)
			}
			extent[i], bad[i] = v, p
		}
	}
}
