package batchnorm

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/guard"
	"github.com/fusedbn/batchnorm/internal/scalar"
)

// channelCase is a kernel that computes with channels: its arrays and what it
// computes, for one channel, in pure Go. It reports whether the channel is usual.
type channelCase struct {
	kernel  int
	in      string // names of the arrays, see channelArrays
	out     string
	ends    bool // in front of channels of which one is not usual
	compute func(a *channelArgs, c int) bool
}

// field points to an array of the arguments, which is either.
type field struct {
	f32 *[]float32
	f64 *[]float64
	per int // elements per channel
}

func (a *channelArgs) fields() map[string]field {
	return map[string]field{
		"acc": {f32: &a.acc, per: 2}, "lanes": {f64: &a.sums, per: sumLen}, "lanes32": {f32: &a.acc, per: sumLen}, "shift": {f32: &a.shift, per: 1},
		"flushed": {f32: &a.acc, per: 1}, "flushes": {f64: &a.sums, per: 1},
		"gamma": {f32: &a.gamma, per: 1}, "beta": {f32: &a.beta, per: 1},
		"neg": {f32: &a.neg, per: 1}, "a": {f32: &a.a, per: 1}, "b": {f32: &a.b, per: 1}, "k1": {f32: &a.k1, per: 1}, "k2": {f32: &a.k2, per: 1},
		"running": {f32: &a.running, per: 1}, "runningVar": {f32: &a.runningVar, per: 1},
		"mean": {f64: &a.mean, per: 1}, "variance": {f64: &a.variance, per: 1}, "invstd": {f64: &a.invstd, per: 1},
		"scale": {f64: &a.scale, per: 1}, "dgamma": {f64: &a.dgamma, per: 1}, "dbeta": {f64: &a.dbeta, per: 1},
		"savedMean": {f64: &a.savedMean, per: 1}, "savedInvStd": {f64: &a.savedInvStd, per: 1},
		"gammaGrad": {f32: &a.gammaGrad, per: 1}, "betaGrad": {f32: &a.betaGrad, per: 1},
		"x": {f32: &a.x, per: stripRows}, "first": {f32: &a.x, per: 1}, "extent": {f32: &a.extent, per: 1},
		"sumA": {f64: &a.sumA, per: 1}, "sumB": {f64: &a.sumB, per: 1}, "otherA": {f64: &a.otherA, per: 1}, "otherB": {f64: &a.otherB, per: 1},
	}
}

func channelCases() map[string]channelCase {
	return map[string]channelCase{
		"fold": {channelFold, "acc", "shift sumA sumB", false, func(a *channelArgs, c int) bool {
			s := a.acc[c/lanes*2*lanes+c%lanes:]
			foldChannel(a.sumA, a.sumB, a.shift, c, float64(s[0]), float64(s[lanes]), a.count, a.weight, a.cross)
			return true
		}},
		"reduce": {channelReduce, "lanes", "otherA otherB", false, func(a *channelArgs, c int) bool {
			s := a.sums[sumLen*c:]
			a.otherA[c], a.otherB[c] = reduce(s), reduce(s[lanes:])
			return true
		}},
		"reduce short": {channelReduceShort, "lanes32", "lanes32 otherA otherB", false, func(a *channelArgs, c int) bool {
			s := a.acc[sumLen*c:][:sumLen]
			a.otherA[c], a.otherB[c] = reduce32(s), reduce32(s[lanes:])
			clear(s)
			return true
		}},
		"flush": {channelFlush, "flushed", "flushed flushes", false, func(a *channelArgs, c int) bool {
			a.sums[c] += float64(a.acc[c])
			a.acc[c] = 0
			return true
		}},
		"fold reduced": {channelFoldReduced, "otherA otherB", "shift sumA sumB", false, func(a *channelArgs, c int) bool {
			foldChannel(a.sumA, a.sumB, a.shift, c, a.otherA[c], a.otherB[c], a.count, a.weight, a.cross)
			return true
		}},
		"probe": {channelProbe, "acc", "shift", false, func(a *channelArgs, c int) bool {
			a.shift[c] = shiftFor(float64(a.acc[c/lanes*2*lanes+c%lanes]) / a.count)
			return true
		}},
		"add": {channelAdd, "acc", "sumA sumB", false, func(a *channelArgs, c int) bool {
			s := a.acc[c/lanes*2*lanes+c%lanes:]
			a.sumA[c] += float64(s[0])
			a.sumB[c] += float64(s[lanes])
			return true
		}},
		"merge": {channelMerge, "otherA otherB", "sumA sumB", false, func(a *channelArgs, c int) bool {
			a.sumA[c], a.sumB[c] = mergeMoment(a.sumA[c], a.sumB[c], a.otherA[c], a.otherB[c], a.weight, a.cross)
			return true
		}},
		"add parts": {channelAddSums, "otherA otherB", "sumA sumB", false, func(a *channelArgs, c int) bool {
			a.sumA[c] += a.otherA[c]
			a.sumB[c] += a.otherB[c]
			return true
		}},
		"forward": {channelForward, "sumA sumB gamma beta running runningVar",
			"mean variance invstd savedMean savedInvStd scale neg a b running runningVar", true, forwardCase},
		"forward without saved": {channelForward, "sumA sumB gamma beta", "mean variance invstd scale neg a b", true, forwardCase},
		"forward with extents":  {channelForward, "sumA sumB gamma beta extent", "mean variance invstd scale neg a b", true, forwardCase},
		"affine of running": {channelAffine, "running runningVar gamma beta", "mean invstd scale neg a b", true, func(a *channelArgs, c int) bool {
			a.mean[c], a.invstd[c] = givenStatistics(a.running[c], a.runningVar[c], a.epsilon, a.settled != 0)
			return affineCase(a, c)
		}},
		"affine":                 {channelAffine, "mean invstd gamma beta", "scale neg a b", true, affineCase},
		"backward":               {channelBackward, "sumA sumB mean invstd neg", "dgamma dbeta k1 k2 gammaGrad betaGrad", true, backwardCase},
		"backward without saved": {channelBackward, "sumA sumB mean invstd neg", "dgamma dbeta k1 k2", true, backwardCase},
		"gradients64":            {channelGradients64, "sumA sumB mean invstd", "dgamma dbeta otherA otherB gammaGrad betaGrad", false, gradients64Case},
		"gradients64 not saved":  {channelGradients64, "sumA sumB mean invstd", "dgamma dbeta otherA otherB", false, gradients64Case},
		"strip":                  {channelStrip, "x", "shift sumA sumB", false, stripCase},
		"tiny":                   {channelTiny, "first gamma beta running", "", true, tinyCase},
		"tiny products":          {channelTiny, "first gamma beta running neg a b k1 scale", "", true, tinyCase},
		"tiny scales":            {channelTiny, "first gamma beta running scale", "", true, tinyCase},
		"tiny factors":           {channelTiny, "first gamma beta running runningVar", "", true, tinyCase},
		"track": {channelTrack, "mean", "running", false, func(a *channelArgs, c int) bool {
			a.running[c] = NewWeight(a.weight).update(a.running[c], a.mean[c]*a.count)
			return true
		}},
	}
}

func tinyCase(a *channelArgs, c int) bool {
	if v := scalar.Abs(a.x[c]); v >= a.least && v <= math.MaxFloat32 {
		return false
	}
	largest := func(lists ...[]float32) (most uint32) {
		for _, list := range lists {
			most = max(most, magnitudeBits(list[c]))
		}
		return most
	}
	most := largest(a.x, a.gamma, a.beta, a.running)
	if most == 0 || most > math.Float32bits(a.most) {
		return true
	}
	isTiny := func(other uint32, limit float32) bool { return other != 0 && most+other <= math.Float32bits(limit) }
	switch {
	case most <= math.Float32bits(a.tiny):
		return false
	case a.neg != nil && isTiny(largest(a.neg, a.a, a.b, a.k1), a.product):
		return false
	case a.runningVar != nil:
		return !isTiny(largest(a.runningVar), a.scaled)
	case a.scale != nil:
		return !isTiny(magnitudeBits(float32(a.scale[c])), a.scaled)
	}
	return true
}

// stripCase takes the moment of a column as the kernels of cols and the functions for a
// channel do.
func stripCase(a *channelArgs, c int) bool {
	at := func(r int) float32 { return a.x[distance(a.steps[:r])/4+c] }
	moments := func(rows int, k float32) (s, q float64) {
		var acc laneSums
		r := 0
		for ; r+quadSize <= rows; r += quadSize {
			addMoments4(&acc, 0, at(r)+k, at(r+1)+k, at(r+2)+k, at(r+3)+k)
		}
		for ; r < rows; r++ {
			addMoments1(&acc, 0, at(r)+k)
		}
		return float64(acc[0]), float64(acc[lanes])
	}
	sum64 := func(rows int, k float32) (p, r float64) {
		for row := range rows {
			x := float64(at(row))
			p += x
			r += float64(x * float64(at(row)+k))
		}
		return p, r
	}
	fold := func(s, q float64) {
		a.sumA[c], a.sumB[c] = 0, 0
		foldChannel(a.sumA, a.sumB, a.shift, c, s, q, a.count, 1, 0)
	}
	sampled := [tinySample]int{0, a.second / 4, a.third / 4, a.fourth / 4}
	if hasSmallSpread(a.x, &sampled, c) {
		p, _ := sum64(a.probe, 0)
		a.shift[c] = shiftFor(p / a.probeCount)
		k := a.shift[c]
		p, r := sum64(a.rows, k)
		fold(shifted(p, r, a.count, float64(k)))
		a.sumB[c] += a.sumB[c] - a.sumB[c]
		return true
	}
	s, _ := moments(a.probe, 0)
	k := shiftFor(s / a.probeCount)
	a.shift[c] = k
	fold(moments(a.rows, k))
	if m2 := a.sumB[c]; m2 >= a.large && !sumsAreSafe(m2/a.count, a.epsilon) {
		a.shift[c] = k
		p, r := sum64(a.rows, k)
		fold(shifted(p, r, a.count, float64(k)))
		a.retaken[c%lanes]--
	}
	return true
}

// formed reports whether a kernel sets the constants of z. It sets none that are too large.
func (a *channelArgs) formed(f *affine) bool {
	large := math.Abs(f.scale) > factorMax || math.Abs(f.invstd) > sureMax || math.IsInf(f.mean, 0)
	return f.form() == 0 || f.form() != wideForm && a.precise != 0 && !large
}

func affineCase(a *channelArgs, c int) bool {
	var f affine
	f.set(a.mean[c], a.invstd[c], float64(a.gamma[c]), float64(a.beta[c]), a.close)
	a.scale[c], a.neg[c], a.a[c], a.b[c] = f.scale, -f.m, f.a, f.b
	return a.formed(&f)
}

func forwardCase(a *channelArgs, c int) bool {
	a.mean[c], a.variance[c] = a.sumA[c], populationVariance(a.sumB[c], a.count)
	a.invstd[c] = invStd(a.variance[c], a.epsilon)
	var f affine
	f.set(a.mean[c], a.invstd[c], float64(a.gamma[c]), float64(a.beta[c]), a.close)
	a.scale[c], a.neg[c], a.a[c], a.b[c] = f.scale, -f.m, f.a, f.b
	if a.savedMean != nil {
		a.savedMean[c], a.savedInvStd[c] = a.mean[c], a.invstd[c]
		m := NewWeight(a.weight)
		a.running[c], a.runningVar[c] = m.update(a.running[c], a.mean[c]), m.update(a.runningVar[c], a.variance[c]*a.correction)
	}
	without := a.extent != nil && a.variance[c] != a.variance[c] && !isNumber(a.extent[c])
	formed := a.formed(&f)
	safe := sumsAreSafe(a.sumB[c]/a.count, a.epsilon) || (a.settled != 0 || a.sumB[c] >= a.large) && a.variance[c]+a.epsilon != 0
	return formed && (without || safe)
}

func backwardCase(a *channelArgs, c int) bool {
	f := affine{mean: a.mean[c], m: float32(a.mean[c])}
	var d gradient
	d.set(&f, a.invstd[c], a.sumA[c], a.sumB[c], a.count)
	a.dgamma[c], a.dbeta[c], a.k1[c], a.k2[c] = d.dgamma, d.dbeta, float32(d.k1), float32(d.k2)
	if a.gammaGrad != nil {
		a.gammaGrad[c], a.betaGrad[c] = float32(d.dgamma), float32(d.dbeta)
	}
	p, r := a.sumA[c], a.sumB[c]
	invstd := a.invstd[c]
	exact := p == 0 && r == 0 && invstd <= a.trusted
	return !d.wide && (a.settled != 0 || invstd != invstd || gradSumsAreSafe(p, r, a.count, invstd) || exact)
}

func gradients64Case(a *channelArgs, c int) bool {
	var d gradient
	d.set64(a.mean[c], a.invstd[c], a.sumA[c], a.sumB[c], a.count)
	a.dgamma[c], a.dbeta[c], a.otherA[c], a.otherB[c] = d.dgamma, d.dbeta, d.k1, d.k2
	if a.gammaGrad != nil {
		a.gammaGrad[c], a.betaGrad[c] = float32(d.dgamma), float32(d.dbeta)
	}
	return true
}

// exotic holds what lies at the borders between what is usual and what is not.
var exotic = []float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, math.Copysign(0, -1), -1, 1e300, -1e300, 1e-320,
	sureMin, sureMin * 0.99, sureMax, sureMax * 1.01, tameMin, tameMin * 0.99, tameMax, tameMax * 1.01, -sureMin, gradMin, gradMin * 0.99,
	math.MaxFloat64, math.NaN(), 1e38, 0x1p-149} // NaN in sums and in invstd at a time, too

// nearLimit returns a number near a limit of usual channels, another one for every k.
// Statistics and constants are products of several numbers, so it is up to 64 times as
// large.
func nearLimit(k int) float64 {
	limits := [...]float64{sureMin, sureMax, tameMin, tameMax, factorMin, factorMax, 0x1p-50, 0x1p+50}
	factors := [...]float64{0.99, 1, 1.01, 2, 0.5, 8, 1.0 / 8, 64}
	return limits[k%len(limits)] * factors[k/len(limits)%len(factors)]
}

// TestChannelKernels compares every kernel that computes with channels with the
// functions on one channel: by the bits where channels are usual, and in whether
// they are. Each array lies where the kernel can't leave it unnoticed.
func TestChannelKernels(t *testing.T) {
	t.Parallel()
	simdPaths(t)
	seeds := uint64(600)
	if Thorough() {
		seeds *= 2
	}
	for name, k := range channelCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			unusual := 0
			for n := lanes; n <= 5*lanes; n += lanes {
				before, want, got := newChannelSet(t, k, n, false), newChannelSet(t, k, n, false), newChannelSet(t, k, n, true)
				for seed := range seeds {
					for _, s := range []*channelSet{before, want, got} {
						s.set(seed)
					}
					first := n // unusual channel
					for c := range n {
						if !k.compute(&want.args, c) {
							first = min(first, c)
						}
					}
					got.args.run(k.kernel)
					done := n
					if k.ends {
						done = n - got.args.n
					}
					switch {
					case done < 0 || done > n || done%lanes != 0:
						t.Fatalf("%d channels, seed %d: %d are left", n, seed, got.args.n)
					case done > first:
						t.Fatalf("%d channels, seed %d: channel %d is unusual, and the first %d were said to be done", n, seed, first, done)
					case done < first/lanes*lanes && !want.hasNaN():
						t.Fatalf("%d channels, seed %d: channel %d is the first unusual one, and only %d were done", n, seed, first, done)
					}
					if first < n || want.args.retaken != [lanes]int32{} {
						unusual++
					}
					if got.args.retaken != want.args.retaken {
						t.Fatalf("%d channels, seed %d: the sums of %v columns by lane are taken again, want %v", n, seed, got.args.retaken, want.args.retaken)
					}
					for _, name := range strings.Fields(k.out) {
						f := got.fields[name]
						w, g, b := want.fields[name].bits(), f.bits(), before.fields[name].bits()
						if end := done * f.per; !slices.Equal(w[:end], g[:end]) {
							t.Fatalf("%d channels, seed %d: %s is %v, want %v", n, seed, name, f, want.fields[name])
						} else if strings.HasPrefix(name, "running") && !slices.Equal(b[end:], g[end:]) {
							t.Fatalf("%d channels, seed %d: %s was updated behind the first %d channels, which are done", n, seed, name, done)
						}
					}
				}
			}
			if want := k.ends || name == "strip"; want != (unusual > 0) {
				t.Errorf("in %d cases a channel was unusual", unusual)
			}
		})
	}
}

// channelSet is the arguments of a kernel for n channels, with its arrays.
type channelSet struct {
	channelCase
	channels int
	args     channelArgs
	memory   channelArgs // the arrays, whatever a kernel makes of args
	fields   map[string]field
}

// newChannelSet makes the arrays, guarded ones in memory that notices when something
// reaches outside.
func newChannelSet(t *testing.T, k channelCase, n int, guarded bool) *channelSet {
	s := &channelSet{channelCase: k, channels: n}
	s.fields = s.args.fields()
	for _, name := range strings.Fields(k.in + " " + k.out) {
		s.fields[name].allocate(t, n, guarded)
	}
	s.memory = s.args
	return s
}

// set fills the arrays and sets the other arguments, the same for the same seed.
func (s *channelSet) set(seed uint64) {
	where := -1 // of an exotic number: in which array, and for which channel
	if seed >= 20 {
		where = int(seed)
	}
	s.args = s.memory
	a := &s.args
	a.n, a.count, a.weight, a.epsilon = s.channels, float64(1+seed*7), 0.1+float64(seed%7)/10, 1e-5
	a.correction, a.step = 1.25, 4*lanes
	switch {
	case seed%5 == 0:
		a.epsilon = 0
	case seed%35 == 1:
		a.epsilon = sureMax * []float64{1.01, 0.7, 0.3, 0.2}[seed/35%4]
	}
	a.most, a.least, a.tiny = tinyMost, hugeLeast, tinyMost
	if a.scale != nil || a.runningVar != nil {
		a.most = smallFirst
	}
	a.product = math.Float32frombits(tinyProductBits)
	a.scaled = math.Float32frombits(tinyProductBits + uint32(seed%3)*(3<<23))
	a.cross, a.close = 1-a.weight, math.Inf(1)
	if seed%3 == 0 {
		a.close = ownInvStd
	}
	a.settled, a.precise = allOnes(seed%5 == 2 || seed%20 == 10), allOnes(seed%4 == 2)
	a.trusted = []float64{0, 0.4, trustedInvStd}[seed%3] // sums of 0 can be relied on for no channels, for some, or for most
	if s.kernel == channelStrip {
		a.rows = 1 + int(seed)%stripRows
		a.probe = min(a.rows, probeRows)
		for r, skipped := 0, 0; r < a.rows; r++ { // some have others between them
			step := s.channels
			if skip := int(seed>>(r%16)) % 4 * s.channels / 2; skipped+skip <= (stripRows-a.rows)*s.channels {
				step, skipped = step+skip, skipped+skip
			}
			a.steps = append(a.steps, 4*step)
		}
		a.count, a.probeCount = float64(a.rows), float64(a.probe)
		a.second, a.third, a.fourth = distance(a.steps[:a.rows/4]), distance(a.steps[:a.rows/2]), distance(a.steps[:a.rows*3/4])
	}
	if a.large = math.NaN(); seed%4 > 0 {
		a.large = largeSum(a.count)
	}
	a.setLeast()
	mean := []float64{0, 100, -1e6}[seed%3]
	inputs := strings.Fields(s.in)
	for i, name := range append(inputs, strings.Fields(s.out)...) {
		f := s.fields[name]
		if i >= len(inputs) && slices.Contains(inputs, name) { // both
			continue
		}
		values := channelValues(name, s.channels*f.per, seed+uint64(i), mean)
		if s.kernel == channelBackward && seed%11 == 0 { // x has next to no part in dx
			for c, v := range values {
				switch name {
				case "mean":
					values[c] = float64(float32(v))
				case "sumB":
					values[c] = v * []float64{1e-25, 1e-28, 1e-40}[c%3]
				}
			}
		}
		if s.kernel == channelTiny { // each of the values is tiny, 0, NaN, infinite, huge or just too large in some channels
			for c := range values {
				values[c] = []float64{tinyMost, -1e-39, 0, 1e-45, tinyMost * 1.001, math.NaN(), 1, math.Inf(-1),
					hugeLeast, -hugeLeast * (1 - 0x1p-24), smallFirst, 1e-20, -3e-14, smallFirst * 1.001}[(int(seed)*7+i+c*c)>>(int(seed)%3*2)%14]
				if seed%4 != 0 && c != int(seed/4)%len(values) {
					values[c] = 1
				} else if seed%2 == 0 && a.most > a.tiny { // products decide
					values[c] = math.Ldexp(1+float64(seed%5)/4, -[]int{31, 40, 54, 56, 60, 80, 109, 111}[(int(seed)*5+i/4*3+c)%8])
				}
			}
		}
		if s.kernel == channelBackward && seed%13 == 1 { // no gradients, or x is constant
			for c := range values {
				switch constant := seed%2 == 0 && c%4 == 2; {
				case strings.HasPrefix(name, "sum") && (c%2 == 1 || constant && name == "sumB"):
					values[c] = math.Copysign(0, float64(c%8)-2)
				case name == "mean":
					values[c] = float64(float32(values[c]))
				case constant && c%8 == 6 && (name == "invstd" && seed%4 == 2 || name == "sumA" && seed%4 == 0):
					values[c] = 1e38 * a.count
				}
			}
		}
		if seed%13 == 2 && (s.kernel == channelStrip && name == "x" || s.kernel == channelForward && name == "sumB") { // large in some channels
			for i, v := range values {
				power := []int{0, 98, 99, 100, 101, 120, 190, 199}[(i%s.channels+int(seed/13))%8]
				if name == "x" {
					power /= 2
				} else {
					v *= a.count
				}
				values[i] = math.Ldexp(v, power)
			}
		}
		if seed%13 > 2 && seed%13 < 6 && s.kernel == channelStrip { // small in some channels
			for i, v := range values {
				power := []int{-62, -54, -55, -80, -82, 0, 60, -66}[(i%s.channels+int(seed/13))%8]
				values[i] = math.Ldexp(v+float64(seed%13-3), power)
			}
		}
		if bad := int(seed/20) % len(values); s.kernel == channelForward && seed%20 == 10 { // which a gamma of 0 hides
			switch name {
			case "sumB":
				values[bad] = []float64{0, 1e-90, 1e90}[seed/20%3] * a.count
			case "gamma":
				values[bad] = 0
			}
		}
		if where >= 0 && where%3 == i%3 && i < len(inputs) {
			v := exotic[(where/3+i)%len(exotic)]
			if where%2 == 1 {
				v = nearLimit(where / 6)
			}
			if where%4 == 1 && (name == "sumA" || name == "sumB") { // what is looked at is divided by count
				v *= a.count
			}
			values[where%len(values)] = v
		}
		f.fill(values)
	}
	if s.kernel == channelBackward {
		for c, m := range a.mean {
			a.neg[c] = -float32(m)
		}
	}
}

// channelValues returns numbers as an array may hold them.
func channelValues(name string, n int, seed uint64, mean float64) []float64 {
	raw := make([]float32, n)
	noise(raw, seed+1, false)
	values := make([]float64, n)
	for i, v := range raw {
		values[i] = float64(v)
		switch name {
		case "lanes": // so far apart that another order of sums has other bits
			values[i] = math.Ldexp(values[i], int(math.Float32bits(v)>>9%64)-32)
		case "mean", "otherA":
			values[i] = mean + float64(v)/3
		case "shift":
			values[i] = -mean + float64(v)/3
		case "sumB", "otherB", "runningVar":
			values[i] = math.Abs(values[i]) + 1e-3
		case "invstd":
			values[i] = math.Abs(values[i]) + 0.01
		}
	}
	return values
}

// allocate makes the array for n channels.
func (f field) allocate(t *testing.T, n int, guarded bool) {
	n *= f.per
	size := n
	if f.f64 != nil {
		size *= 2
	}
	memory := make([]float32, size)
	if guarded {
		memory = guard.AtEnd(t, size)
	}
	if f.f64 != nil {
		*f.f64 = unsafe.Slice((*float64)(unsafe.Pointer(unsafe.SliceData(memory))), n)
	} else {
		*f.f32 = memory
	}
}

// fill makes the array hold the values.
func (f field) fill(values []float64) {
	if f.f64 != nil {
		copy(*f.f64, values)
		return
	}
	for i, v := range values {
		(*f.f32)[i] = float32(v)
	}
}

// bits returns the bits of the array; those of every NaN are the same.
func (f field) bits() []uint64 {
	var all []uint64
	add := func(v float64) {
		if v != v {
			v = math.NaN()
		}
		all = append(all, math.Float64bits(v))
	}
	if f.f64 != nil {
		for _, v := range *f.f64 {
			add(v)
		}
		return all
	}
	for _, v := range *f.f32 {
		add(float64(v))
	}
	return all
}

func (f field) String() string {
	if f.f64 != nil {
		return fmt.Sprint(*f.f64)
	}
	return fmt.Sprint(*f.f32)
}

func (s *channelSet) hasNaN() bool {
	for _, name := range strings.Fields("gamma beta running runningVar mean variance invstd scale dgamma sumA sumB neg a b k1 k2") {
		if slices.Contains(s.fields[name].bits(), math.Float64bits(math.NaN())) {
			return true
		}
	}
	return false
}

// TestForgets: with weight 1 the running statistics are the batch's, whatever they
// were, for channels that vectors hold too.
func TestForgets(t *testing.T) {
	for _, path := range Paths() {
		s := Shape{Outer: 5, Channels: 19, Inner: 1}
		p, err := NewPlan(s, WithPath(path))
		if err != nil {
			t.Fatal(err)
		}
		x, nan := make([]float32, s.Len()), float32(math.NaN())
		noise(x, 1, false)
		running, runningVar := slices.Repeat([]float32{nan}, s.Channels), slices.Repeat([]float32{nan}, s.Channels)
		mean := make([]float64, s.Channels)
		if err := p.Forward(ForwardArgs{X: x, Y: x, Mean: mean, RunningMean: running, RunningVar: runningVar, Momentum: NewWeight(1)}); err != nil {
			t.Fatal(err)
		}
		for c, v := range running {
			if v != float32(mean[c]) || runningVar[c] != runningVar[c] {
				t.Errorf("%v: the running statistics of channel %d are %v and %v, the batch's mean is %v", path, c, v, runningVar[c], mean[c])
			}
		}
	}
}

// TestFrozenWide: the gradient by x alone is what it is among all gradients, for
// channels that float32 can't compute and right after other channels were.
func TestFrozenWide(t *testing.T) {
	for _, path := range Paths() {
		for _, s := range []Shape{{Outer: 6, Channels: 17, Inner: 1}, {Outer: 3, Channels: 17, Inner: 10}} {
			p, err := NewPlan(s, WithPath(path), WithEpsilon(0))
			if err != nil {
				t.Fatal(err)
			}
			n := s.Len()
			x, dy, alone, among := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
			noise(x, 1, false)
			noise(dy, 2, false)
			mean, variance := make([]float32, s.Channels), slices.Repeat([]float32{1}, s.Channels)
			grads := make([]float32, s.Channels)
			for range 2 { // usual channels, then wide ones
				for _, err := range []error{
					p.FrozenBackward(FrozenBackwardArgs{DY: dy, X: x, Mean: mean, Var: variance, DX: alone}),
					p.FrozenBackward(FrozenBackwardArgs{DY: dy, X: x, Mean: mean, Var: variance, DX: among, DGamma: grads, DBeta: slices.Clone(grads)}),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
				for i := range alone {
					c := i / s.Inner % s.Channels
					want := float32(float64(dy[i]) * (1 / math.Sqrt(float64(variance[c]))))
					// The factor is rounded, and the product.
					if off := math.Abs(float64(alone[i]) - float64(want)); alone[i] != among[i] || off > 0x1.2p-23*math.Abs(float64(want)) {
						t.Fatalf("%v %v: dx[%d] is %v alone, and %v among others, want %v", path, s, i, alone[i], among[i], want)
					}
				}
				variance[3], variance[12] = 1e-40, 1e-44
			}
		}
	}
}

// TestRunningBehindUnusual: running values are updated once, of channels beside and behind a wide one.
func TestRunningBehindUnusual(t *testing.T) {
	t.Parallel()
	for _, p := range simdPaths(t) {
		for _, n := range []int{3 * lanes, 3*lanes + 5} {
			s := Shape{Outer: 40, Channels: n, Inner: 1}
			x := make([]float32, s.Len())
			noise(x, 1, false)
			for i := range x {
				if c := i % n; c == 2 || c == n-3 {
					x[i] = float32(float64(x[i]+9) * 1e34)
				}
			}
			var got [2][2][]float32
			for i, path := range []Path{PathGeneric, p} {
				mean, variance := make([]float32, n), make([]float32, n)
				plan, err := NewPlan(s, WithPath(path))
				if err == nil {
					err = plan.Forward(ForwardArgs{X: x, Y: make([]float32, s.Len())}) // without them
				}
				if err == nil {
					err = plan.Forward(ForwardArgs{X: x, Y: make([]float32, s.Len()), RunningMean: mean, RunningVar: variance, Momentum: NewWeight(0.25)})
				}
				if err != nil {
					t.Fatal(err)
				}
				got[i] = [2][]float32{mean, variance}
			}
			for k, name := range []string{"mean", "variance"} {
				if c, ok := sameBits(got[1][k], got[0][k]); !ok {
					t.Errorf("%v, %d channels: running %s of channel %d is %v, in pure Go %v", p, n, name, c, got[1][k][c], got[0][k][c])
				}
			}
		}
	}
}

// TestChannelsBehindUnusual compares inferences with those in pure Go, where one channel is
// unusual, or where a kernel call ends: the channels behind it have statistics of their own.
func TestChannelsBehindUnusual(t *testing.T) {
	t.Parallel()
	for _, p := range simdPaths(t) {
		for _, unusual := range []bool{false, true} {
			n := 2*callChannels + 3*lanes
			s := Shape{Outer: 3, Channels: n, Inner: 1}
			x, mean, variance := make([]float32, s.Len()), make([]float32, n), make([]float32, n)
			noise(x, 1, false)
			noise(mean, 2, false)
			noise(variance, 3, false)
			for c, v := range variance {
				variance[c] = 1 + v*v
			}
			if unusual {
				mean[20] = 1e35
			}
			y := [2][]float32{make([]float32, s.Len()), make([]float32, s.Len())}
			for i, path := range []Path{PathGeneric, p} {
				plan, err := NewPlan(s, WithPath(path))
				if err == nil {
					err = plan.Inference(InferenceArgs{X: x, Y: y[i], Mean: mean, Var: variance})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for i, v := range y[1] {
				if math.Float32bits(v) != math.Float32bits(y[0][i]) {
					t.Fatalf("%v, unusual %v: y[%d] is %v, in pure Go %v", p, unusual, i, v, y[0][i])
				}
			}
		}
	}
}
