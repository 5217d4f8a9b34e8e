package main

import (
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// result is one output of an operation, for code that treats all alike.
type result struct {
	name string
	f32  []float32
	f64  []float64 // instead of f32
}

// results returns the outputs of the operation. The tensor comes first.
func (o op) results(out *outputs) []result {
	switch {
	case o.kind == forward:
		return []result{
			{"y", out.tensor, nil},
			{"mean", nil, out.mean}, {"invstd", nil, out.invstd},
			{"running mean", out.runningMean, nil}, {"running variance", out.runningVar, nil},
		}
	case o.kind == inference:
		return []result{{"y", out.tensor, nil}}
	case o.residual:
		return []result{
			{"dx", out.tensor, nil}, {"dresidual", out.dresidual, nil},
			{"dgamma", out.dgamma, nil}, {"dbeta", out.dbeta, nil},
		}
	default:
		return []result{{"dx", out.tensor, nil}, {"dgamma", out.dgamma, nil}, {"dbeta", out.dbeta, nil}}
	}
}

// difference describes the first bits in which two runs of an operation differ; it is
// empty if there are none.
func (o op) difference(a, b *outputs) string {
	other := o.results(b)
	for i, r := range o.results(a) {
		for k, v := range r.f32 {
			if x, y := math.Float32bits(v), math.Float32bits(other[i].f32[k]); x != y {
				return fmt.Sprintf("%s[%d] is %#08x, not %#08x", r.name, k, x, y)
			}
		}
		for k, v := range r.f64 {
			if x, y := math.Float64bits(v), math.Float64bits(other[i].f64[k]); x != y {
				return fmt.Sprintf("%s[%d] is %#016x, not %#016x", r.name, k, x, y)
			}
		}
	}
	return ""
}

// u is the unit roundoff of float32: the error of an operation is at most u times its
// result.
const u = 0x1p-24

// limit returns the largest error allowed for an output, relative to its scale in
// compareBlock.
//
// y = ((x-m)*a + b) + residual is rounded at x-m, a, the product, b and the
// sums. With t the product and v the larger of 1 and |y|, the error is at most
//
//	u*(3|t| + |b| + |y|)          with |t| <= |y|+|b| <= 2v: 8uv
//	u*(3|t| + |b| + |t+b| + |y|)  with a residual, |t| <= 3v, |t+b| <= 2v: 13uv
//
// as b and the residual are at most 1. The error of the statistics adds to it, and
// fits in because these roundings are never all at their largest.
//
// The corresponding bound of a sum of n values grows with n, and is useless, since
// roundings cancel in random data. The largest error is that of invstd for pixels that
// are dark in all but a few images: after a bright one all squares are the same, and
// are rounded in the same direction. That is why the package's float32 sums are short.
func (o op) limit(name string) float64 {
	switch name {
	case "y":
		if o.residual {
			return 13 * u
		}
		return 8 * u
	case "dx":
		return 1e-6
	case "dresidual":
		return 0 // dy or 0, without rounding
	default:
		return 4 * u
	}
}

// errorNote explains the errors under the table.
const errorNote = `Errors are the largest of y, relative to the larger of 1 and |y|, and of dx, relative to the
largest |dx| of its channel (where the variance is 0, to |gamma*invstd| times the largest
gradient). Limits: 8u for y, 13u with residual (u = 2^-24 = 6e-8), and 1e-6 for dx.`

// worst has the largest error of every output of one path.
type worst map[string]float64

func (w worst) note(name string, err float64) { w[name] = max(w[name], err) }

// blockChannels is the number of channels that are compared at a time. In NHWC they are
// half a cache line, so that little memory is read in vain, and the float64 tensors of
// the reference are small.
const blockChannels = 8

// compare returns the largest errors of each of outs against the reference.
// It calls done with the number of elements that it has compared.
func (o op) compare(in *inputs, outs []*outputs, done func(n int)) []worst {
	all := make([]worst, len(outs))
	for i := range all {
		all[i] = worst{}
	}
	next := make(chan block)
	go func() {
		defer close(next)
		for c := 0; c < in.dims.Channels; c += blockChannels {
			next <- block{in.dims, c, min(c+blockChannels, in.dims.Channels)}
		}
	}()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) { // each takes memory
		wg.Go(func() {
			for b := range next {
				errs := o.compareBlock(b, in, outs)
				mu.Lock()
				for i := range errs {
					for name, err := range errs[i] {
						all[i].note(name, err)
					}
				}
				done(b.shape().Len())
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// block is the channels c0 to c1-1 of a shape.
type block struct {
	of     batchnorm.Shape
	c0, c1 int
}

func (b block) shape() batchnorm.Shape {
	return batchnorm.Shape{Outer: b.of.Outer, Channels: b.c1 - b.c0, Inner: b.of.Inner}
}

// gather returns the values of the block in a tensor.
func (b block) gather(tensor []float32) []float32 {
	run := (b.c1 - b.c0) * b.of.Inner
	values := make([]float32, 0, b.of.Outer*run)
	for o := range b.of.Outer {
		values = append(values, tensor[(o*b.of.Channels+b.c0)*b.of.Inner:][:run]...)
	}
	return values
}

// compareBlock is compare for a block. It copies the block's channels out of the
// tensors, since normalization does not mix channels.
func (o op) compareBlock(b block, in *inputs, outs []*outputs) []worst {
	s := b.shape()
	p := reference.Problem{
		Outer: s.Outer, Channels: s.Channels, Inner: s.Inner,
		Epsilon:    batchnorm.DefaultEpsilon,
		Activation: o.activation().String(),
		X:          b.gather(in.x),
		Gamma:      in.gamma[b.c0:b.c1],
		Beta:       in.beta[b.c0:b.c1],
	}
	if o.residual {
		p.Residual = b.gather(in.residual)
	}
	channels := func(s []float32) []float32 { return s[b.c0:b.c1] }
	all := make([]worst, len(outs))
	switch o.kind {
	case forward:
		want := reference.Forward(p)
		mean, variance := runningAfter(s, p.Beta, p.Gamma, want)
		for i, out := range outs {
			all[i] = worst{
				"y":                largest(b.gather(out.tensor), want.Y, orOne(want.Y)),
				"mean":             largest(out.mean[b.c0:b.c1], want.Mean, func(c int) float64 { return 1 / want.InvStd[c] }),
				"invstd":           largest(out.invstd[b.c0:b.c1], want.InvStd, func(c int) float64 { return want.InvStd[c] }),
				"running mean":     largest(channels(out.runningMean), mean, orOne(mean)),
				"running variance": largest(channels(out.runningVar), variance, orOne(variance)),
			}
		}
	case inference:
		want := reference.Inference(p, channels(in.runningMean), channels(in.runningVar))
		for i, out := range outs {
			all[i] = worst{"y": largest(b.gather(out.tensor), want, orOne(want))}
		}
	case backward:
		p.DY = b.gather(in.dy)
		want := reference.Backward(p)
		scales := gradientScales(s, in, b.c0, want)
		for i, out := range outs {
			all[i] = worst{
				"dx":     largest(b.gather(out.tensor), want.DX, func(k int) float64 { return scales[channelOf(s, k)].dx }),
				"dgamma": largest(channels(out.dgamma), want.DGamma, func(c int) float64 { return scales[c].dgamma }),
				"dbeta":  largest(channels(out.dbeta), want.DBeta, func(c int) float64 { return scales[c].dbeta }),
			}
			if o.residual {
				all[i]["dresidual"] = largest(b.gather(out.dresidual), want.DResidual, func(int) float64 { return 1 })
			}
		}
	}
	return all
}

// largest returns the largest error relative to its scale. NaN, and any error where the
// scale is 0, count as the largest finite number: JSON has no infinity.
func largest[T float32 | float64](got []T, want []float64, scale func(i int) float64) float64 {
	most := 0.0
	for i, v := range got {
		d := math.Abs(float64(v) - want[i])
		if d == 0 {
			continue
		}
		if d /= scale(i); !(d <= math.MaxFloat64) {
			return math.MaxFloat64
		}
		most = max(most, d)
	}
	return most
}

// orOne scales by the value wanted, and by 1 where that is less.
func orOne(want []float64) func(i int) float64 {
	return func(i int) float64 { return max(1, math.Abs(want[i])) }
}

// runningAfter returns the running statistics after a batch. They begin as
// outputs.reset sets them.
func runningAfter(s batchnorm.Shape, beta, gamma []float32, r reference.Result) (mean, variance []float64) {
	n := float64(s.PerChannel())
	for c := range s.Channels {
		mean = append(mean, (1-newWeight)*float64(beta[c])+newWeight*r.Mean[c])
		variance = append(variance, (1-newWeight)*float64(gamma[c])+newWeight*r.Var[c]*n/(n-1))
	}
	return mean, variance
}

// gradientScale has the scales of the errors of a channel's gradients.
type gradientScale struct {
	dx     float64 // the largest |dx|
	dgamma float64 // sqrt(n * sum g^2), the most that sum g*xhat can be
	dbeta  float64 // sum |g|
}

// gradientScales returns the scale of every channel of s.
func gradientScales(s batchnorm.Shape, in *inputs, c0 int, r reference.Gradients) []gradientScale {
	scales := make([]gradientScale, s.Channels)
	most := make([]float64, s.Channels) // the largest |g|
	for k, g := range r.DResidual {
		c := channelOf(s, k)
		scales[c].dx = max(scales[c].dx, math.Abs(r.DX[k]))
		scales[c].dgamma += g * g
		scales[c].dbeta += math.Abs(g)
		most[c] = max(most[c], math.Abs(g))
	}
	for c := range scales {
		scales[c].dgamma = math.Sqrt(float64(s.PerChannel()) * scales[c].dgamma)
		if in.runningVar[c0+c] == 0 {
			// dx is proportional to g minus its mean, which may cancel entirely: the
			// scale is that of g.
			scales[c].dx = float64(in.gamma[c0+c]) * in.invstd[c0+c] * most[c]
		}
	}
	return scales
}

// verdict is the result of check for one path.
type verdict struct {
	errors   worst
	failures []string
}

// check checks the outputs of the operation on each path. All must equal those of the
// last path.
func (o op) check(in *inputs, outs []*outputs, done func(n int)) []verdict {
	last := outs[len(outs)-1]
	verdicts := make([]verdict, len(outs))
	for i, errors := range o.compare(in, outs, done) {
		v := verdict{errors: errors}
		if d := o.difference(outs[i], last); d != "" {
			v.failures = append(v.failures, "differs from pure Go: "+d)
		}
		for _, r := range o.results(outs[i]) {
			if err, limit := errors[r.name], o.limit(r.name); err > limit {
				v.failures = append(v.failures, fmt.Sprintf("error of %s is %.2g, must be at most %.2g", r.name, err, limit))
			}
		}
		verdicts[i] = v
	}
	return verdicts
}
