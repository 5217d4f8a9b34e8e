package kinds_test

import (
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// Every kind but the usual one changes the channels that it affects and no others, and
// a kind of gradients changes nothing else.
func TestApply(t *testing.T) {
	const outer, channels, inner = 3, 200, 4
	names := map[string]bool{}
	for i, k := range kinds.List() {
		if names[k.Name] || k.Limit < 1 || k.Far < k.Limit {
			t.Errorf("%s: %v and %v times usual, known before: %t", k.Name, k.Limit, k.Far, names[k.Name])
		}
		names[k.Name] = true
		make := func() [4][]float32 {
			return [4][]float32{gen.Normal(1, outer*channels*inner, 0, 1), gen.Normal(2, outer*channels*inner, 0, 1),
				gen.Uniform(3, channels, 0.5, 1.5), gen.Uniform(4, channels, -1, 1)}
		}
		usual, data := make(), make()
		k.Apply(outer, channels, inner, data[0], data[1], data[2], data[3])
		changed := 0
		for c := range channels {
			differs := func(j int) bool {
				if j > 1 {
					return data[j][c] != usual[j][c]
				}
				for o := range outer {
					at := (o*channels + c) * inner
					if !slices.Equal(data[j][at:at+inner], usual[j][at:at+inner]) {
						return true
					}
				}
				return false
			}
			any := differs(0) || differs(1) || differs(2) || differs(3)
			if any {
				changed++
			}
			if any && (i == 0 || !k.Affects(c, channels)) {
				t.Errorf("%s: channel %d has changed", k.Name, c)
			}
			if k.Backward && (differs(0) || differs(2) || differs(3)) {
				t.Errorf("%s: more than the gradients of channel %d has changed", k.Name, c)
			}
		}
		want := k.Changes(channels)
		switch k.Name { // of some, the usual ones do not change
		case "kinds in turn":
			want -= channels / 8
		case "subnormal in turn":
			want -= channels / 2
		}
		if i > 0 && changed != want {
			t.Errorf("%s: %d channels have changed, want %d", k.Name, changed, want)
		}
	}
}

func TestChanges(t *testing.T) {
	counts := map[string]int{"1 % dead channels": 10, "10 % dead channels": 100, "dy = 0": 1000, "NaN in one channel": 1}
	for _, k := range kinds.List() {
		want, ok := counts[k.Name]
		if ok && (k.Changes(1000) != want || k.Changes(7) != min(want, 7) && k.Changes(7) != 1 || k.Changes(1) != 1) {
			t.Errorf("%s: %d of 1000 channels, %d of 7, %d of 1", k.Name, k.Changes(1000), k.Changes(7), k.Changes(1))
		}
		if k.Name == "subnormal in turn" && k.Limit != (1+2.5+1+2.5)/4 {
			t.Errorf("%s: at most %v times usual", k.Name, k.Limit)
		}
		if k.Name == "kinds in turn" && (math.Abs(k.Limit-(1+1.05+1.05+1.1+1.1+3*2.5)/8) > 1e-9 || math.Abs(k.Far-(1+1.5+1.05+1.1+1.1+3*2.5)/8) > 1e-9) {
			t.Errorf("%s: at most %v and %v times usual", k.Name, k.Limit, k.Far)
		}
	}
}
