package batchnorm_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// fuzzed makes a problem out of a fuzzer's arguments: the shape, bits that
// choose the options, a seed for the bulk of the data with its mean and
// deviation, and raw values that take the place of the first ones. The upper half of
// the seed makes channels of several kinds.
func fuzzed(outer, channels, inner uint16, options uint32, seed uint64, mean, deviation float32, raw []byte) problem {
	s := batchnorm.Shape{Outer: 1 + int(outer)%300, Channels: 1 + int(channels)%70, Inner: 1 + int(inner)%300}
	if options&1 != 0 {
		s.Inner = 1 // cols
	}
	for s.Len() > 1<<11 { // keep an execution short
		s.Outer = (s.Outer + 1) / 2
		s.Inner = (s.Inner + 1) / 2
		if s.Outer*s.Inner == 1 {
			break
		}
	}
	if options>>8&7 == 0 { // a long row, or many rows: several blocks and segments
		s.Channels = 1 + s.Channels%3
		if s.Inner > 1 {
			s.Inner += 4500
			s.Outer = 1 + s.Outer%4
		} else {
			s.Outer += 4500
		}
	}
	data := func(n int, mean, deviation float32) []float32 {
		d := gen.Uniform(seed, n, -1, 1)
		for i := range d {
			d[i] = float32(d[i]*deviation) + mean
		}
		k := 0
		for i := 0; i < n && len(raw) >= 4; i += 1 + k%7 { // spread over channels
			d[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw))
			raw = raw[4:]
			k++
		}
		seed++
		return d
	}
	p := problem{shape: s, act: batchnorm.Identity, epsilon: batchnorm.DefaultEpsilon}
	p.x = data(s.Len(), mean, deviation)
	switch options >> 2 & 3 {
	case 1:
		p.epsilon = 0
	case 2:
		p.epsilon = 0x1p-140
	case 3:
		p.epsilon = 1
	}
	if options&16 != 0 {
		p.act = activations[int(options>>20)%len(activations)]
	}
	if options&32 != 0 {
		p.residual = data(s.Len(), 0, 1)
	}
	if options&64 != 0 {
		p.gamma = data(s.Channels, 1, float32(math.Ldexp(1, int(options>>16)%60-30)))
	}
	if options&128 != 0 {
		p.beta = data(s.Channels, 0, 1)
	}
	p.dy = data(s.Len(), 0, float32(math.Ldexp(1, int(options>>24)%240-120)))
	p.mean = data(s.Channels, mean, deviation)
	p.vari = data(s.Channels, 0, float32(deviation*deviation))
	for i, v := range p.vari {
		p.vari[i] = max(v, -v)
	}
	if kinds := seed >> 32; kinds != 0 {
		p.unusual(kinds)
	}
	return p
}

// unusual makes channels of several kinds, by the bits of choice: of other scales, dead,
// constant, without gradients or with gradients that cancel.
func (p *problem) unusual(choice uint64) {
	const one = 0x9e3779b97f4a7c15
	s := p.shape
	for c := range s.Channels {
		bits := (choice + uint64(c)*(choice&3)) * one // with 0 all channels are of a kind
		power := int(bits>>40%96) - 48
		scale := func(v []float32, power int) {
			for k := range s.PerChannel() {
				i := s.Inner*(k/s.Inner*s.Channels+c) + k%s.Inner
				v[i] = float32(math.Ldexp(float64(v[i]), power))
			}
		}
		switch bits >> 32 % 12 {
		case 0:
			scale(p.x, 2*power)
		case 1:
			scale(p.dy, 2*power)
		case 2:
			scale(p.x, -130) // subnormal
		case 3:
			scale(p.dy, -130)
		case 4: // no gradient
			scale(p.dy, -300)
		case 5: // constant
			scale(p.x, -300)
		case 6: // no scale
			p.setGamma(c, 0)
		case 7: // dead behind ReLU
			p.setBeta(c, -20)
		case 8:
			p.setGamma(c, float32(math.Ldexp(1, 2*power)))
		case 9: // the second half takes back the first
			for k := range s.PerChannel() / 2 {
				j := s.PerChannel() - 1 - k
				a, b := s.Inner*(k/s.Inner*s.Channels+c)+k%s.Inner, s.Inner*(j/s.Inner*s.Channels+c)+j%s.Inner
				p.x[b], p.dy[b] = p.x[a], -p.dy[a]
				if p.residual != nil {
					p.residual[b] = p.residual[a]
				}
			}
		case 10:
			scale(p.x, power)
			scale(p.dy, -power)
		}
	}
}

func (p *problem) setGamma(c int, v float32) {
	if p.gamma == nil {
		p.gamma = slices.Repeat([]float32{1}, p.shape.Channels)
	}
	p.gamma[c] = v
}

func (p *problem) setBeta(c int, v float32) {
	if p.beta == nil {
		p.beta = make([]float32, p.shape.Channels)
	}
	p.beta[c] = v
}

// addSeeds adds the seeds of the differential targets: NaN, infinities,
// subnormals, huge and tiny scales, constant channels, one outlier.
func addSeeds(f *testing.F) {
	raw := func(v ...float32) []byte {
		var b []byte
		for _, v := range v {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		return b
	}
	inf := float32(math.Inf(1))
	nan := float32(math.NaN())
	values := [][]byte{
		nil,
		raw(nan),
		raw(inf, -inf, 1),
		raw(0x1p-149, -0x1p-149, 0x1p-126, -0x1p-130),
		raw(math.MaxFloat32, -math.MaxFloat32),
		raw(float32(math.Copysign(0, -1)), 0, 1e-20, -1e-20),
		raw(1e30), // one outlier, at the very beginning
	}
	scales := [][2]float32{{0, 1}, {1e6, 1}, {3, 0}, {0, 1e-22}, {0, 1e-41}, {0, 3e19}, {1e30, 1e37}, {-1e4, 1e-3}}
	for i, v := range values {
		for j, s := range scales {
			options := uint32(i*len(scales)+j) * 0x9e3779b1
			f.Add(uint16(2+3*i), uint16(7*j), uint16(1+i*j*5), options, uint64(i+j), s[0], s[1], v)
			if i < 2 || j < 2 {
				f.Add(uint16(2+3*i), uint16(3+7*j), uint16(1+i*j*5), options, uint64(i+j)+uint64(options|1)<<32, s[0], s[1], v)
			}
		}
	}
}

// fuzzDifferential compares all paths, cuts and placements for equal bits, and
// the result with the reference where the input is finite.
func fuzzDifferential(f *testing.F, o ops) {
	addSeeds(f)
	ways := configs()
	f.Fuzz(func(t *testing.T, outer, channels, inner uint16, options uint32, seed uint64, mean, deviation float32, raw []byte) {
		p := fuzzed(outer, channels, inner, options, seed, mean, deviation, raw)
		p.ops = o
		r := p.checkSame(t, ways, slices.Clone)
		if p.finite() {
			p.checkBounds(t, r)
		}
	})
}

func FuzzForward(f *testing.F)   { fuzzDifferential(f, forward) }
func FuzzInference(f *testing.F) { fuzzDifferential(f, inference) }
func FuzzBackward(f *testing.F)  { fuzzDifferential(f, forward|backward) }

// FuzzShape compares the constructors with arithmetic that can't overflow.
func FuzzShape(f *testing.F) {
	for _, dims := range [][]int64{{2, 3, 4, 5}, {0, 3, 4}, {3, 0}, {-1, 2}, {7}, {}, {1 << 31, 1 << 31}, {1 << 62, 2, 2},
		{math.MaxInt64, 1}, {1 << 20, 1 << 20, 1 << 20, 16}, {3, 5, 7, 11, 13, 17}, {0, 1 << 62, 1 << 62}} {
		var b []byte
		for _, d := range dims {
			b = binary.LittleEndian.AppendUint64(b, uint64(d))
		}
		for axis := -2; axis < 4; axis++ {
			f.Add(axis, b)
		}
	}
	f.Fuzz(func(t *testing.T, axis int, raw []byte) {
		var dims []int
		for ; len(raw) >= 8 && len(dims) < 8; raw = raw[8:] {
			dims = append(dims, int(int64(binary.LittleEndian.Uint64(raw))))
		}
		k := axis
		if k < 0 {
			k += len(dims)
		}
		part := [3]*big.Int{big.NewInt(1), big.NewInt(1), big.NewInt(1)}
		positive := big.NewInt(4) // bytes, not counting an empty batch
		valid := k >= 0 && k < len(dims)
		for i, d := range dims {
			valid = valid && (d > 0 || d == 0 && i == 0 && k != 0)
			which := 1
			if i < k {
				which = 0
			} else if i > k {
				which = 2
			}
			part[which].Mul(part[which], big.NewInt(int64(d)))
			if d != 0 {
				positive.Mul(positive, big.NewInt(int64(d)))
			}
		}
		valid = valid && positive.Cmp(big.NewInt(math.MaxInt)) <= 0 && part[1].Cmp(big.NewInt(maxChannels)) <= 0
		s, err := batchnorm.Axis(axis, dims...)
		if !valid {
			if !errors.Is(err, batchnorm.ErrShape) {
				t.Fatalf("Axis(%d, %v) gives %v, %v; want ErrShape", axis, dims, s, err)
			}
			return
		}
		if err != nil || s.Valid() != nil {
			t.Fatalf("Axis(%d, %v) fails: %v, %v", axis, dims, err, s.Valid())
		}
		for i, got := range []int{s.Outer, s.Channels, s.Inner} {
			if part[i].Cmp(big.NewInt(int64(got))) != 0 {
				t.Fatalf("Axis(%d, %v) is %v, want part %d to be %v", axis, dims, s, i, part[i])
			}
		}
		if k == 1 {
			if n, err := batchnorm.NCHW(dims...); err != nil || n != s {
				t.Fatalf("NCHW(%v) is %v, %v; want %v", dims, n, err, s)
			}
		}
		if k == len(dims)-1 && k > 0 {
			if n, err := batchnorm.NHWC(dims...); err != nil || n != s {
				t.Fatalf("NHWC(%v) is %v, %v; want %v", dims, n, err, s)
			}
		}
	})
}

// fuzzModes compares a mode in two ways, chosen by the options, for equal bits.
// The problem is the same as that of the other targets, but smaller.
func fuzzModes(f *testing.F, check func(t *testing.T, p problem, choice uint32, ways []config)) {
	addSeeds(f)
	ways := waysOfModes()
	f.Fuzz(func(t *testing.T, outer, channels, inner uint16, options uint32, seed uint64, mean, deviation float32, raw []byte) {
		p := fuzzed(outer, channels, inner, options, seed, mean, deviation, raw)
		choice := uint32(seed)*0x9e3779b1 ^ options>>7
		n := uint32(len(ways))
		check(t, p, choice, []config{ways[0], ways[choice>>16%n], ways[choice>>20%n]})
	})
}

// fuzzedMask is a mask out of the bits of choice.
func fuzzedMask(s batchnorm.Shape, choice uint32) batchnorm.Mask {
	masks := masksFor(s, uint64(choice))
	names := slices.Sorted(maps.Keys(masks))
	return masks[names[int(choice%uint32(len(names)))]]
}

func FuzzFrozen(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		frozen(batchnorm.Mask{}).same(t, p, ways, slices.Clone)
	})
}

// FuzzMask compares with the tensor without its padding.
func FuzzMask(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		mask := fuzzedMask(p.shape, choice)
		if count(valid(mask, p.shape)) == 0 {
			return
		}
		short, at := p.compact(mask)
		p = p.spoilt(mask)
		m := []func(batchnorm.Mask) mode{plain, frozen, func(m batchnorm.Mask) mode { return renorm(3, 5, m) }}[choice>>8%3]
		got := m(mask).same(t, p, ways, slices.Clone)
		expectSame(t, fmt.Sprintf("%v with mask %v", p.shape, mask), got, m(batchnorm.Mask{}).once(t, short).expanded(p.shape.Len(), at))
	})
}

// FuzzSplit compares one part with the whole, and several with each other.
func FuzzSplit(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		expectSame(t, p.shape.String(), split([]int{p.shape.Outer}, batchnorm.Mask{}).same(t, p, ways, slices.Clone), plain(batchnorm.Mask{}).once(t, p))
		a := int(choice%uint32(p.shape.Outer)) + 1
		b := a + int(choice>>9%uint32(p.shape.Outer-a+1))
		if v := valid(fuzzedMask(p.shape, choice), p.shape); count(v) > 0 {
			split([]int{a, b, p.shape.Outer}, batchnorm.Mask{Valid: v}).same(t, p, ways, slices.Clone)
		}
	})
}

func FuzzGhost(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		g := batchnorm.GhostBatches{Samples: p.shape.Outer, Size: 1 + int(choice%uint32(p.shape.Outer))}
		if p.shape.Outer/g.Size > 20 {
			g.Size = p.shape.Outer/20 + 1 // keep an execution short
		}
		got := ghost(g, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
		p.shape.Outer = g.Size
		n := p.shape.Len()
		p.x, p.dy = p.x[:n], p.dy[:n]
		if p.residual != nil {
			p.residual = p.residual[:n]
		}
		first := plain(batchnorm.Mask{}).once(t, p)
		expectBits(t, "y of the first sub-batch", got.y[:n], first.y)
		expectBits(t, "dx of the first sub-batch", got.dx[:n], first.dx)
	})
}

func FuzzFromY(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		p.act = invertible[choice>>25%uint32(len(invertible))]
		for c, g := range p.gamma { // away from 0
			if v := math.Abs(float64(g)); !(v > 0x1p-10 && v < 0x1p30) {
				p.gamma[c] = 1
			}
		}
		for c, b := range p.beta {
			if v := math.Abs(float64(b)); !(v <= 1024*math.Abs(orDefault(p.gamma, c, 1))) {
				p.beta[c] = 0
			}
		}
		mask := batchnorm.Mask{}
		if choice>>5&1 == 1 {
			if mask = fuzzedMask(p.shape, choice); count(valid(mask, p.shape)) == 0 {
				return
			}
		}
		fromY(mask).same(t, p, ways, slices.Clone)
	})
}

func FuzzRenorm(f *testing.F) {
	fuzzModes(f, func(t *testing.T, p problem, choice uint32, ways []config) {
		rmax, dmax := math.Ldexp(1, int(choice%9)), float64(choice>>8%7)
		renorm(rmax, dmax, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
		for c, v := range p.vari { // r and d are NaN with running statistics that say nothing
			if m := p.mean[c]; m-m != 0 || v-v != 0 || float64(v)+p.epsilon < 0 {
				p.mean[c], p.vari[c] = 0, 1
			}
		}
		got := renorm(1, 0, batchnorm.Mask{}).same(t, p, ways, slices.Clone)
		got.mean = got.mean[:p.shape.Channels]
		expectSame(t, p.shape.String(), got, plain(batchnorm.Mask{}).once(t, p))
	})
}
