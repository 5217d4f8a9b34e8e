package batchnorm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/guard"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/fusedbn/batchnorm/internal/ulp"
)

// problem is the input of an operation. Its results have the same bits on every path, with
// every cut and placement.
type problem struct {
	shape       batchnorm.Shape
	act         batchnorm.Activation
	epsilon     float64
	x, residual []float32 // residual, gamma and beta may be nil
	gamma, beta []float32
	dy          []float32
	mean, vari  []float32 // for inference
	ops         ops
}

// features are the operands and options of a problem. Bits above theirs make problems with
// other values.
type features uint64

const (
	hasReLU      features = 1 << iota // in place of no activation
	hasResidual                       // and a gradient of it
	hasGammaBeta                      // otherwise they are 1 and 0
	hasSpecials                       // NaN, infinities, subnormals: no bounds, but the same bits

	bare features = 0
)

// newProblem is a problem with these features.
func newProblem(s batchnorm.Shape, f features) problem {
	n, c, seed := s.Len(), s.Channels, uint64(f)
	p := problem{shape: s, epsilon: batchnorm.DefaultEpsilon,
		x: gen.Normal(seed, n, 3, 2), dy: gen.Normal(seed+1, n, 0, 1),
		mean: gen.Uniform(seed+2, c, -1, 1), vari: gen.Uniform(seed+3, c, 0.5, 2)}
	if f&hasReLU != 0 {
		p.act = batchnorm.ReLU
	}
	if f&hasResidual != 0 {
		p.residual = gen.Normal(seed+4, n, 0, 1)
	}
	if f&hasGammaBeta != 0 {
		p.gamma, p.beta = gen.Uniform(seed+5, c, -2, 2), gen.Uniform(seed+6, c, -1, 1)
	}
	if f&hasSpecials != 0 {
		for i, v := range gen.Special(seed, n) {
			if i%11 == 5 {
				p.x[i] = v
			}
		}
	}
	return p
}

// ops is a set of operations to run; none stands for all.
type ops int

const (
	forward ops = 1 << iota
	inference
	backward // needs forward, for its saved statistics
)

func (p problem) has(o ops) bool { return p.ops == 0 || p.ops&o != 0 }

// results is everything that the operations write.
type results struct {
	y, inferred     []float32
	mean, invstd    []float64
	runMean, runVar []float32
	dx, dres        []float32
	dgamma, dbeta   []float32
}

// activations are all kinds but the identity, some with several parameters.
var activations = append(batchnorm.Activations()[1:],
	batchnorm.LeakyReLU(0.125), batchnorm.Clip(-1, 0.5), batchnorm.ELU(0.5), batchnorm.LeakyReLU(-2), batchnorm.LeakyReLU(0))

// config is a way to compute it.
type config struct {
	path     batchnorm.Path
	workers  int
	shuffled bool // an executor that runs the tasks in random order
	inPlace  bool // y over x, dx over dy, dresidual over the residual
	extreme  int  // 0: not; else an extreme schedule, 2: short rows as columns
}

// configs are the ways that are compared with the first.
func configs() []config {
	var list []config
	for _, p := range slices.Backward(batchnorm.Paths()) {
		list = append(list, config{path: p, workers: 1}, config{path: p, workers: 3, inPlace: true},
			config{path: p, workers: 8, shuffled: true}, config{path: p, workers: 1, extreme: 1},
			config{path: p, workers: 2, extreme: 2})
	}
	return list
}

func (c config) options() []batchnorm.Option {
	o := []batchnorm.Option{batchnorm.WithPath(c.path), batchnorm.WithWorkers(c.workers)}
	if c.extreme > 0 {
		o = append(o, batchnorm.WithExtremeSchedule(c.extreme == 2))
	}
	if c.shuffled {
		o = append(o, batchnorm.WithExecutor(shuffle))
	}
	return o
}

// shuffle is an executor that runs the tasks in random order, the first ones
// last, each on a goroutine of its own that ends before the next begins.
func shuffle(n int, task func(int)) {
	for _, i := range rand.Perm(n) {
		done := make(chan bool)
		go func() { task(i); close(done) }()
		<-done
	}
}

// placements are ways to lay a buffer: behind it or before it memory that can't
// be touched, or sentinels all around and some offset from alignment.
func placements(t *testing.T, offset int) []func([]float32) []float32 {
	filled := func(s, contents []float32) []float32 {
		copy(s, contents)
		return s
	}
	return []func([]float32) []float32{
		func(s []float32) []float32 { return filled(guard.AtEnd(t, len(s)), s) },
		func(s []float32) []float32 { return filled(guard.AtStart(t, len(s)), s) },
		func(s []float32) []float32 { return filled(guard.Sentinel(t, len(s), offset%16), s) },
	}
}

// run computes everything with buffers from alloc, which is given the contents.
func (p problem) run(t testing.TB, c config, alloc func([]float32) []float32) results {
	t.Helper()
	n, channels := p.shape.Len(), p.shape.Channels
	plan, err := batchnorm.NewPlan(p.shape, append(c.options(), batchnorm.WithEpsilon(p.epsilon),
		batchnorm.WithActivation(p.act), batchnorm.WithSingleValue())...)
	if err != nil {
		t.Fatal(err)
	}
	in := func(s []float32) []float32 {
		if s == nil {
			return nil
		}
		return alloc(s)
	}
	out := func(n int) []float32 { return alloc(make([]float32, n)) }
	over := func(s []float32) []float32 {
		if c.inPlace && s != nil {
			return s
		}
		return out(n)
	}
	gamma, beta := in(p.gamma), in(p.beta)
	var r results
	r.mean, r.invstd = make([]float64, channels), make([]float64, channels)
	r.runMean, r.runVar = in(p.mean), in(p.vari)

	x := in(p.x)
	if p.has(forward | backward) {
		r.y = over(x)
		if err := plan.Forward(batchnorm.ForwardArgs{X: x, Residual: in(p.residual), Gamma: gamma, Beta: beta, Y: r.y,
			Mean: r.mean, InvStd: r.invstd, RunningMean: r.runMean, RunningVar: r.runVar}); err != nil {
			t.Fatal(err)
		}
	}

	if p.has(inference) {
		x = in(p.x)
		r.inferred = over(x)
		if err := plan.Inference(batchnorm.InferenceArgs{X: x, Residual: in(p.residual), Gamma: gamma, Beta: beta,
			Mean: in(p.mean), Var: in(p.vari), Y: r.inferred}); err != nil {
			t.Fatal(err)
		}
	}

	if !p.has(backward) {
		return r
	}
	dy, residual := in(p.dy), in(p.residual)
	r.dx, r.dgamma, r.dbeta = over(dy), out(channels), out(channels)
	if p.residual != nil {
		r.dres = over(residual)
	}
	if err := plan.Backward(batchnorm.BackwardArgs{DY: dy, X: in(p.x), Residual: residual, Gamma: gamma, Beta: beta,
		Mean: r.mean, InvStd: r.invstd, DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}); err != nil {
		t.Fatal(err)
	}
	return r
}

// output is one of the results: of either kind.
type output struct {
	name   string
	single []float32
	double []float64
}

func (r results) outputs() []output {
	return []output{{"y", r.y, nil}, {"inference", r.inferred, nil}, {"mean", nil, r.mean}, {"invstd", nil, r.invstd},
		{"running mean", r.runMean, nil}, {"running variance", r.runVar, nil}, {"dx", r.dx, nil},
		{"dresidual", r.dres, nil}, {"dgamma", r.dgamma, nil}, {"dbeta", r.dbeta, nil}}
}

// compare returns the first difference between two results, "" without one.
// Every NaN is the same.
func (r results) compare(want results) string {
	all := want.outputs()
	for i, got := range r.outputs() {
		if d := difference(got.single, all[i].single) + difference(got.double, all[i].double); d != "" {
			return got.name + d
		}
	}
	return ""
}

func difference[T float](got, want []T) string {
	if len(got) != len(want) {
		return fmt.Sprintf(" has %d elements, want %d", len(got), len(want))
	}
	for i := range want {
		if !sameBits(got[i], want[i]) {
			return fmt.Sprintf("[%d] is %v, want %v", i, got[i], want[i])
		}
	}
	return ""
}

// checkSame computes the problem in all the given ways, fails if any two differ
// in a bit, and returns the results.
func (p problem) checkSame(t testing.TB, ways []config, alloc func([]float32) []float32) results {
	t.Helper()
	first := p.run(t, ways[0], slices.Clone)
	for _, c := range ways {
		if d := p.run(t, c, alloc).compare(first); d != "" {
			t.Fatalf("shape %v, epsilon %g, %v: %v gives other bits than %v: %s", p.shape, p.epsilon, p.act, c, ways[0], d)
		}
	}
	return first
}

// unit is the rounding error of one float32 operation.
const unit = 0x1p-24

// sumUnits bounds, in units, the relative error of a block's sums: a lane adds 64 times at
// most, groups of values or single ones, and a group is two additions deep. The effect on
// the statistics through mean and deviation is a few times that in the worst case, and
// about a hundredth of it for random data.
const sumUnits = 4 * 70

// The errors of an activation's value and derivative, as bench/sweep finds them,
// rounded up: those of the largest are hard swish's and GELU's.
const (
	valueUlps = 3
	slopeUlps = 2
)

// reference returns the problem for the float64 reference.
func (p problem) reference() reference.Problem {
	return reference.Problem{Outer: p.shape.Outer, Channels: p.shape.Channels, Inner: p.shape.Inner,
		Epsilon: p.epsilon, Activation: p.act.String(), X: p.x, Residual: p.residual, Gamma: p.gamma, Beta: p.beta, DY: p.dy}
}

// finite reports whether the problem holds no NaN and no infinity.
func (p problem) finite() bool {
	for _, s := range [][]float32{p.x, p.residual, p.gamma, p.beta, p.dy, p.mean, p.vari} {
		for _, v := range s {
			if v-v != 0 {
				return false
			}
		}
	}
	return true
}

func orDefault(s []float32, c int, v float64) float64 {
	if s == nil {
		return v
	}
	return float64(s[c])
}

// checkBounds compares results with the float64 reference, within the largest effect of the
// roundings. The problem is finite.
func (p problem) checkBounds(t testing.TB, r results) {
	t.Helper()
	ref := p.reference()
	fwd := reference.Forward(ref)
	inf := reference.Inference(ref, p.mean, p.vari)

	within := func(what string, i int, got float32, want, bound float64) { // of every element: t.Helper would take longer
		if bound > math.MaxFloat32 || math.Abs(want)+bound > math.MaxFloat32 {
			return // may overflow
		}
		if d := math.Abs(float64(got) - want); !(d <= bound+0x1p-147) {
			t.Fatalf("shape %v, epsilon %g, %v: %s[%d] is %g, the reference says %g: off by %.3g, allowed is %.3g",
				p.shape, p.epsilon, p.act, what, i, got, want, d, bound)
		}
	}
	act := reference.ActivationOf(ref.Activation)
	z := reference.Z(ref)
	g := make([]float64, len(p.dy)) // and how far off it may be
	gError := make([]float64, len(p.dy))
	for i := range p.x {
		c := i / p.shape.Inner % p.shape.Channels
		res := 0.0
		if p.residual != nil {
			res = math.Abs(float64(p.residual[i]))
		}
		gamma, beta := orDefault(p.gamma, c, 1), math.Abs(orDefault(p.beta, c, 0))
		// z = (x-m)*a + b: the roundings of x-m, a, the product, b, the sum and
		// the residual's sum, and the error of mean and invstd.
		affine := func(x, mean, invstd, statistics float64) float64 {
			d := math.Abs((x - mean) * invstd * gamma)
			std := math.Abs(gamma) // std*invstd <= 1
			return unit*(5*d+4*beta+2*res+2*std) + statistics*unit*(d+std)
		}
		// value is for act(z). z is a float32, and infinite where it leaves the range.
		value := func(what string, got float32, want, mean, invstd, statistics float64) {
			off := affine(float64(p.x[i]), mean, invstd, statistics)
			largest := math.Abs((float64(p.x[i])-mean)*invstd*gamma) + beta + res + off
			for _, sign := range []int{1, -1} {
				if largest > math.MaxFloat32 && float64(got) == act.F(math.Inf(sign)) {
					return
				}
			}
			within(what, i, got, want, act.Slope*off+valueUlps*ulp.Of(want))
		}
		if r.y != nil {
			value("y", r.y[i], fwd.Y[i], fwd.Mean[c], fwd.InvStd[c], sumUnits)
		}
		if v := float64(p.vari[c]); r.inferred != nil && v+p.epsilon >= 0 {
			s := 0.0
			if v+p.epsilon > 0 {
				s = 1 / math.Sqrt(v+p.epsilon)
			}
			value("inference", r.inferred[i], inf[i], float64(p.mean[c]), s, 0)
		}
		switch p.act {
		case batchnorm.Identity:
			g[i] = float64(p.dy[i])
		case batchnorm.ReLU:
			// Which side of the kink z is on is for the forward pass to say; the
			// backward pass must agree with it.
			g[i] = float64(p.dy[i])
			if r.y != nil && !(r.y[i] > 0) {
				g[i] = 0
			}
		default:
			off := affine(float64(p.x[i]), fwd.Mean[c], fwd.InvStd[c], sumUnits)
			g[i] = float64(p.dy[i]) * act.Derivative(z[i])
			largest := math.Abs(act.Derivative(z[i]))
			if act.Largest != nil {
				largest = act.Largest(z[i])
			}
			e := act.Curvature*off + slopeUlps*ulp.Of(largest)
			for _, k := range act.Kinks {
				if math.Abs(z[i]-k) <= off {
					e += act.Jump
				}
			}
			gError[i] = e*math.Abs(float64(p.dy[i])) + ulp.Of(g[i])
		}
	}

	if r.dx == nil {
		return
	}
	grad := reference.BackwardOf(ref, g)
	n := float64(p.shape.PerChannel())
	for c := range p.shape.Channels {
		sum, square, off, offX := 0.0, 0.0, 0.0, 0.0
		index := func(k int) int { return (k/p.shape.Inner*p.shape.Channels+c)*p.shape.Inner + k%p.shape.Inner }
		for k := range p.shape.PerChannel() {
			i := index(k)
			v := math.Abs(g[i])
			sum += v
			square += v * v
			off += gError[i]
			offX += gError[i] * math.Abs((float64(p.x[i])-fwd.Mean[c])*fwd.InvStd[c])
		}
		rms := math.Sqrt(square / n)
		gamma := math.Abs(orDefault(p.gamma, c, 1))
		within("dbeta", c, r.dbeta[c], grad.DBeta[c], sumUnits*unit*sum+off)
		within("dgamma", c, r.dgamma[c], grad.DGamma[c], sumUnits*unit*(n*rms+offX)+offX) // where z is at a jump, all of dgamma may be off
		for k := range p.shape.PerChannel() {
			i := index(k)
			xhat := math.Abs((float64(p.x[i]) - fwd.Mean[c]) * fwd.InvStd[c])
			within("dx", i, r.dx[i], grad.DX[i],
				unit*gamma*fwd.InvStd[c]*(8*math.Abs(g[i])+sumUnits*rms*(1+xhat))+
					1.01*gamma*fwd.InvStd[c]*(gError[i]+off/n+xhat*offX/n))
			if r.dres != nil {
				within("dresidual", i, r.dres[i], g[i], gError[i])
			}
		}
	}
}

func (c config) String() string {
	return fmt.Sprintf("%v/workers=%d/shuffled=%t/inplace=%t/extreme=%d", c.path, c.workers, c.shuffled, c.inPlace, c.extreme)
}
