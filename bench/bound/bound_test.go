package bound

import (
	"fmt"
	"testing"

	"github.com/fusedbn/batchnorm/internal/guard"
)

// operands are whole numbers, so that every sum is exact.
type operands struct{ y, z, a, b, c []float32 }

func newOperands(alloc func(k int) []float32) operands {
	p := operands{alloc(0), alloc(1), alloc(2), alloc(3), alloc(4)}
	for i := range p.a {
		p.a[i], p.b[i], p.c[i] = float32(1+i%7), float32(2+i%11), float32(3+i%13)
	}
	return p
}

// check makes every pass and looks at every value.
func (p operands) check(t *testing.T, team *Team) {
	t.Helper()
	sums := [4]float32{}
	for i := range p.a {
		sums[1] += p.a[i]
		sums[2] += p.b[i]
		sums[3] += p.c[i]
	}
	for k, got := range []float32{
		1: team.Read(p.a),
		2: team.Read(p.a, p.b),
		3: team.Read(p.a, p.b, p.c),
	} {
		want := float32(0)
		for _, s := range sums[:k+1] {
			want += s
		}
		if got != want {
			t.Errorf("the sum of %d slices is %v, want %v", k, got, want)
		}
	}
	for _, s := range Kinds() {
		p.fresh()
		team.Copy(s, p.y, p.a)
		p.compare(t, s, "copy", p.y, func(i int) float32 { return p.a[i] })
		p.fresh()
		team.Triad(s, p.y, p.a, p.b)
		p.compare(t, s, "triad", p.y, func(i int) float32 { return p.a[i] + 3*p.b[i] })
		p.fresh()
		team.Pair(s, p.y, p.z, p.a, p.b, p.c)
		p.compare(t, s, "pair, first", p.y, func(i int) float32 { return p.a[i] + 3*p.b[i] })
		p.compare(t, s, "pair, second", p.z, func(i int) float32 { return p.c[i] + 3*p.b[i] })
	}
}

func (p operands) fresh() {
	clear(p.y)
	clear(p.z)
}

func (p operands) compare(t *testing.T, s Stores, what string, got []float32, want func(i int) float32) {
	t.Helper()
	for i, v := range got {
		if v != want(i) {
			t.Errorf("%v %s: element %d is %v, want %v", s, what, i, v, want(i))
			return
		}
	}
}

// Every length, with everything as far from a line as can be, and the two
// destinations of a pair alike and not.
func TestOffsets(t *testing.T) {
	teams := []*Team{NewTeam(1), NewTeam(3)}
	for n := range 201 {
		for offset := range 16 {
			for _, apart := range []int{0, 1, 8} {
				if apart > 0 && n%10 > 0 {
					continue // takes long
				}
				t.Run("", func(t *testing.T) {
					p := newOperands(func(k int) []float32 {
						return guard.Sentinel(t, n, (offset+k*apart)%16)
					})
					for _, team := range teams {
						p.check(t, team)
					}
					if t.Failed() {
						t.Logf("%d floats, offset %d, %d apart", n, offset, apart)
					}
				})
			}
		}
	}
}

// No read is outside, either.
func TestGuardPages(t *testing.T) {
	if !guard.Protected {
		t.Skip("no guard pages here")
	}
	team := NewTeam(1)
	for _, n := range []int{0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			newOperands(func(int) []float32 { return guard.AtEnd(t, n) }).check(t, team)
			newOperands(func(int) []float32 { return guard.AtStart(t, n) }).check(t, team)
		})
	}
}

// Lengths at which there is more than one call of assembly, or part per worker.
func TestLarge(t *testing.T) {
	for _, n := range []int{maxCall - 1, maxCall + 1, 3*maxCall + 13, 4*most*partLen + 5} {
		p := newOperands(func(k int) []float32 { return make([]float32, n) })
		for i := range p.a { // so that the sums stay exact
			p.a[i], p.b[i], p.c[i] = float32(i%2), float32(i%3), float32(i%2)
		}
		for _, workers := range []int{1, 2, 5} {
			p.check(t, NewTeam(workers))
		}
	}
}

func TestBorder(t *testing.T) {
	for n := range 300 {
		for parts := 1; parts < 20; parts++ {
			if border(n, 0, parts) != 0 || border(n, parts, parts) != n {
				t.Fatalf("%d parts of %d are from %d to %d", parts, n, border(n, 0, parts), border(n, parts, parts))
			}
			for i := 1; i < parts; i++ {
				lo, hi := border(n, i-1, parts), border(n, i, parts)
				if lo > hi || hi%lineLen != 0 && hi != n {
					t.Fatalf("part %d of %d of %d is from %d to %d", i-1, parts, n, lo, hi)
				}
			}
		}
	}
}

// A pass allocates nothing: that would count.
func TestAllocs(t *testing.T) {
	p := newOperands(func(int) []float32 { return make([]float32, 1000) })
	for _, workers := range []int{1, 2} {
		team := NewTeam(workers)
		team.Read(p.a, p.b, p.c)
		n := testing.AllocsPerRun(100, func() {
			team.Read(p.a, p.b, p.c)
			team.Copy(Plain, p.y, p.a)
			team.Triad(Plain, p.y, p.a, p.b)
			team.Pair(Plain, p.y, p.z, p.a, p.b, p.c)
		})
		if n > 0 {
			t.Errorf("%v allocations with %d workers", n, workers)
		}
	}
}
