package main

import (
	"fmt"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/bound"
	"github.com/klauspost/cpuid/v2"
)

// The sizes of a tensor in the sweep, in bytes.
const (
	sweepMin = 16 << 10
	sweepMax = 512 << 20
)

// sweepSet has tensors of sizes from sweepMin to most, each twice the one before:
// first the images grow, then the number of channels, then the number of images.
func sweepSet(most int) caseSet {
	set := caseSet{data: "generated data"}
	n, channels, h, w := 4, 16, 8, 8
	for bytes := sweepMin; bytes <= most; bytes *= 2 {
		name := fmt.Sprintf("%dx%s", n, chw(channels, h, w))
		image := [4]int{n, channels, h, w}
		set.cases = append(set.cases,
			testCase{"nchw", name, batchnorm.Shape{Outer: n, Channels: channels, Inner: h * w}, image, nil},
			testCase{"nhwc", name, batchnorm.Shape{Outer: n * h * w, Channels: channels, Inner: 1}, image, nil})
		switch {
		case h < 64 && w == h:
			w *= 2
		case h < 64:
			h = w
		case channels < 256:
			channels *= 2
		default:
			n *= 2
		}
	}
	return set
}

// sweepConfig is the configuration of the sweep: one worker, the plain operations.
func (c config) sweepConfig() config {
	c.workers = []int{1}
	c.ops = ops[:3]
	return c
}

// cache is a data cache of this machine.
type cache struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
}

// caches returns the caches whose sizes are known.
func caches() []cache {
	c := cpuid.CPU.Cache
	var known []cache
	for _, k := range []cache{{"L1", c.L1D}, {"L2", c.L2}, {"L3", c.L3}} {
		if k.Bytes > 0 {
			known = append(known, k)
		}
	}
	return known
}

// arithmeticPeak returns the GFLOP/s of one core's vector additions out of the nearest
// cache. Fused multiply-add would be faster, but the package can't use it.
func (e effort) arithmeticPeak() float64 {
	x := aligned(2048)
	team := bound.NewTeam(1)
	times, _ := e.alternate(func() { team.Read(x) }, []func(){func() {}})
	least := times[0]
	for _, t := range times {
		least = min(least, t)
	}
	return float64(len(x)) / least
}

// flops returns the floating-point operations per element, comparisons included.
// Statistics of x take x-K, its square and two sums, 4; those of gradients x-m, a
// product and two sums, 4. Then come (x-m)*a + b, 3, or ((g-k1) - (x-m)*k2)*a, 5. A
// residual is one more addition, and ReLU one more operation. With ReLU backward
// computes z in both phases, from the x-m that it has already.
func (o op) flops() int {
	extra := 0
	if o.relu {
		extra++
	}
	if o.residual {
		extra++
	}
	switch {
	case o.kind == forward:
		return 4 + 3 + extra
	case o.kind == inference:
		return 3 + extra
	case o.relu:
		return 4 + 5 + 2*(2+extra)
	default:
		return 4 + 5
	}
}
