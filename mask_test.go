package batchnorm_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// masksFor are masks of a shape: lengths, a few holes, few that are valid.
func masksFor(s batchnorm.Shape, seed uint64) map[string]batchnorm.Mask {
	positions := s.PerChannel()
	samples := s.Outer
	if s.Inner == 1 && s.Outer%3 == 0 {
		samples = s.Outer / 3
	}
	var lengths []int
	for i, v := range gen.Uniform(seed, samples, 0, 1) {
		n := int(float64(v) * float64(positions/samples+1))
		if i == 0 {
			n = positions / samples
		}
		lengths = append(lengths, min(n, positions/samples))
	}
	random := func(share float64) []bool {
		valid := make([]bool, positions)
		for i, v := range gen.Uniform(seed+1, positions, 0, 1) {
			valid[i] = float64(v) < share
		}
		valid[positions/2], valid[positions-1] = true, true
		return valid
	}
	burst := make([]bool, positions)
	for i := range burst {
		burst[i] = i%97 < 60 || i < 3
	}
	all := slices.Repeat([]bool{true}, positions)
	one := slices.Clone(all)
	one[positions/3] = false
	return map[string]batchnorm.Mask{
		"lengths": {Lengths: lengths}, "half": {Valid: random(0.5)}, "few": {Valid: random(0.03)},
		"bursts": {Valid: burst}, "all": {Valid: all}, "all but one": {Valid: one},
	}
}

// valid returns the mask as a value per position.
func valid(m batchnorm.Mask, s batchnorm.Shape) []bool {
	if m.Valid != nil {
		return m.Valid
	}
	v := make([]bool, s.PerChannel())
	each := len(v) / len(m.Lengths)
	for i, n := range m.Lengths {
		for j := range n {
			v[i*each+j] = true
		}
	}
	return v
}

// compact returns the problem without its padding, and where in the tensor each
// of its elements stands.
func (p problem) compact(m batchnorm.Mask) (problem, []int) {
	s := p.shape
	var at []int
	v := valid(m, s)
	if n := count(v); s.Inner > 1 || s.Channels == 1 {
		for c := range s.Channels {
			for i := range v {
				if v[i] {
					at = append(at, (i/s.Inner*s.Channels+c)*s.Inner+i%s.Inner)
				}
			}
		}
		p.shape = batchnorm.Shape{Outer: 1, Channels: s.Channels, Inner: n}
		if n == len(v) {
			p.shape = s
			for i := range at {
				at[i] = i
			}
		}
	} else {
		for i := range v {
			for c := range s.Channels {
				if v[i] {
					at = append(at, i*s.Channels+c)
				}
			}
		}
		p.shape.Outer = n
	}
	pick := func(t []float32) []float32 {
		if t == nil {
			return nil
		}
		var out []float32
		for _, i := range at {
			out = append(out, t[i])
		}
		return out
	}
	p.x, p.dy, p.residual = pick(p.x), pick(p.dy), pick(p.residual)
	return p, at
}

func count(v []bool) (n int) {
	for _, b := range v {
		if b {
			n++
		}
	}
	return n
}

// spoilt returns the problem with NaN, infinity and huge values for padding.
func (p problem) spoilt(m batchnorm.Mask) problem {
	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), math.MaxFloat32}
	v := valid(m, p.shape)
	for k, t := range []*[]float32{&p.x, &p.dy, &p.residual} {
		*t = slices.Clone(*t)
		for i := range *t {
			if !v[i/(p.shape.Channels*p.shape.Inner)*p.shape.Inner+i%p.shape.Inner] {
				(*t)[i] = bad[(i+k)%len(bad)]
			}
		}
	}
	return p
}

// expanded returns results of the compact problem as those of the tensor, with
// 0 for padding.
func (r results) expanded(n int, at []int) results {
	for _, t := range []*[]float32{&r.y, &r.inferred, &r.dx, &r.dres} {
		if *t == nil {
			continue
		}
		whole := make([]float32, n)
		for k, i := range at {
			whole[i] = (*t)[k]
		}
		*t = whole
	}
	return r
}

// A masked call gives the bits of the tensor without its padding, in every mode.
func TestMask(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		ways := waysOfModes()
		ways = append(ways[:1:1], ways[1+variant%(len(ways)-1)], ways[1+(variant+3)%(len(ways)-1)])
		masks := masksFor(s, uint64(variant))
		for i, name := range slices.Sorted(maps.Keys(masks)) {
			if i%3 != variant%3 { // the next variant takes others
				continue
			}
			mask := masks[name]
			p := newProblem(s, features(variant)).spoilt(mask)
			short, at := p.compact(mask)
			modes := []func(batchnorm.Mask) mode{plain, frozen,
				func(m batchnorm.Mask) mode { return renorm(1.5, 0.5, m) },
				func(m batchnorm.Mask) mode { return split([]int{s.Outer}, batchnorm.Mask{Valid: valid(mask, s)}) },
			}
			near0 := func(gamma float32) bool { return math.Abs(float64(gamma)) < 0.01 }
			if slices.Contains(invertible, p.act) && !slices.ContainsFunc(p.gamma, near0) {
				modes = append(modes, fromY)
			}
			for _, m := range modes {
				masked := m(mask)
				got := masked.same(t, p, ways, placements(t, variant)[variant%3])
				if masked.name == "split" {
					m = func(batchnorm.Mask) mode { return plain(batchnorm.Mask{}) }
				}
				want := m(batchnorm.Mask{}).once(t, short).expanded(s.Len(), at)
				expectSame(t, fmt.Sprintf("%v with mask %q, %s", s, name, masked.name), got, want)
				if masked.name == "plain" && features(variant)&hasSpecials == 0 && p.piecewise() {
					p.checkMasked(t, mask, got)
				}
			}
		}
	})
}

// checkMasked compares with the reference's own idea of a mask.
func (p problem) checkMasked(t *testing.T, mask batchnorm.Mask, r results) {
	t.Helper()
	ref := p.reference()
	ref.Valid = valid(mask, p.shape)
	fwd := reference.Forward(ref)
	near := func(name string, got []float32, want []float64, tolerance, terms float64) {
		t.Helper()
		largest := make([]float64, p.shape.Channels)
		for i, v := range want {
			largest[channelOf(p.shape, i)] = max(largest[channelOf(p.shape, i)], math.Abs(v))
		}
		expectNear(t, name, got, want, func(i int) float64 { return tolerance * (largest[channelOf(p.shape, i)] + terms) })
	}
	near("y", r.y, fwd.Y, 2e-6, 3)
	ref.DY, ref.Activation, ref.Residual = p.slopes(r.y), "identity", nil
	grad := reference.Backward(ref)
	if count(ref.Valid) > 4 { // with few values dx is the rest of a cancellation
		near("dx", r.dx, grad.DX, 1e-4, 1e-6)
	}
}

// With KeepPadding the outputs stay as they are where there is padding.
func TestKeepPadding(t *testing.T) {
	t.Parallel()
	const before = 12345
	for _, s := range []batchnorm.Shape{{3, 4, 6}, {5, 1, 7}, {33, 3, 1}, {3, 2, 300}} {
		for name, mask := range masksFor(s, 3) {
			v := valid(mask, s)
			p := newProblem(s, hasResidual|hasGammaBeta).spoilt(mask)
			fresh := func(in []float32) []float32 { // outputs are the slices of zeros
				out := slices.Clone(in)
				if !slices.ContainsFunc(in, func(v float32) bool { return v != 0 }) {
					for i := range out {
						out[i] = before
					}
				}
				return out
			}
			keep := mask
			keep.KeepPadding = true
			for _, m := range []func(batchnorm.Mask) mode{plain, frozen} {
				for _, c := range waysOfModes()[2:5] {
					want, got := m(mask).run(t, stage{p, c, fresh}), m(keep).run(t, stage{p, c, fresh})
					for k, o := range got.outputs() {
						if len(o.single) != s.Len() {
							continue
						}
						for i, g := range o.single {
							w := want.outputs()[k].single[i]
							if pad := !v[i/(s.Channels*s.Inner)*s.Inner+i%s.Inner]; pad && w != 0 {
								t.Fatalf("%v with mask %q, %s: %s[%d] is %g in padding, want 0", s, name, m(mask).name, o.name, i, w)
							} else if pad {
								w = before
							}
							if !sameBits(g, w) {
								t.Fatalf("%v with mask %q, %s: %s[%d] is %g with KeepPadding, want %g", s, name, m(mask).name, o.name, i, g, w)
							}
						}
					}
				}
			}
		}
	}
}

// A batch that is all padding has no gradients, and outputs of 0.
func TestAllPadding(t *testing.T) {
	for _, s := range []batchnorm.Shape{{3, 4, 6}, {33, 3, 1}} {
		for _, mask := range []batchnorm.Mask{{Lengths: make([]int, s.Outer)}, {Valid: make([]bool, s.PerChannel())}} {
			p := newProblem(s, hasResidual|hasGammaBeta).spoilt(mask)
			r := frozen(mask).same(t, p, waysOfModes(), slices.Clone)
			zero := make([]float32, s.Len())
			expectBits(t, "y", r.inferred, zero)
			expectBits(t, "dx", r.dx, zero)
			expectBits(t, "dresidual", r.dres, zero)
			expectBits(t, "dgamma", r.dgamma, zero[:s.Channels])
			expectBits(t, "dbeta", r.dbeta, zero[:s.Channels])
		}
	}
}
