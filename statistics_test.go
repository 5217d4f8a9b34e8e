package batchnorm_test

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

// statisticsForm is how a backward pass gets its statistics.
type statisticsForm int

const (
	saved     statisticsForm = iota // as Forward saved them
	narrowed                        // the same, made of the statistics saved as float32
	inFloat32                       // the statistics saved as float32
	fromX                           // not at all
)

// formOf is plain, with the statistics of the backward pass in a form, in ghost
// batches if the size is not 0, and renormalized if that is asked for.
func formOf(form statisticsForm, mask batchnorm.Mask, size int, renorm bool) mode {
	return mode{fmt.Sprintf("form %d", form), func(t testing.TB, s stage) (r results) {
		p := newPlan(t, s.shape, s.options()...)
		forward, backward, c := p.Forward, p.Backward, s.shape.Channels
		if size != 0 {
			g, err := batchnorm.NewGhostPlan(s.shape, batchnorm.GhostBatches{Samples: s.shape.Outer, Size: size}, s.options()...)
			noError(t, err)
			forward, backward, c = g.Forward, g.Backward, g.Batches()*c
		}
		if renorm {
			rd, dd := make([]float64, c), make([]float64, c)
			forward = func(a batchnorm.ForwardArgs) error {
				return p.RenormForward(batchnorm.RenormForwardArgs{ForwardArgs: a, RMax: 1.1, DMax: 0.5, R: rd, D: dd})
			}
			backward = func(a batchnorm.BackwardArgs) error {
				return p.RenormBackward(batchnorm.RenormBackwardArgs{BackwardArgs: a, R: rd, D: dd})
			}
		}
		x := s.in(s.x)
		r.y, r.mean, r.invstd = s.over(x), make([]float64, c), make([]float64, c)
		mean, variance := make([]float32, c), make([]float32, c)
		r.runMean, r.runVar = s.in(s.mean), s.in(s.vari)
		gamma, beta := s.in(s.gamma), s.in(s.beta)
		noError(t, forward(batchnorm.ForwardArgs{X: x, Residual: s.in(s.residual), Gamma: gamma, Beta: beta, Mask: mask, Y: r.y,
			Mean: r.mean, InvStd: r.invstd, BatchMean: mean, BatchVar: variance, RunningMean: r.runMean, RunningVar: r.runVar}))
		dy, residual := s.in(s.dy), s.in(s.residual)
		s.gradients(&r, dy, residual)
		b := batchnorm.BackwardArgs{DY: dy, X: s.in(s.x), Residual: residual, Gamma: gamma, Beta: beta, Mask: mask,
			DX: r.dx, DResidual: r.dres, DGamma: r.dgamma, DBeta: r.dbeta}
		switch form {
		case saved:
			b.Mean, b.InvStd = r.mean, r.invstd
		case inFloat32:
			b.BatchMean, b.BatchVar = mean, variance
		case narrowed:
			for i := range mean {
				b.Mean = append(b.Mean, float64(mean[i]))
				b.InvStd = append(b.InvStd, batchnorm.VarianceToInvStd(float64(variance[i]), s.epsilon))
			}
		}
		noError(t, backward(b))
		return r
	}}
}

// Without statistics backward gives the bits that it gives with those that
// Forward saved, in every way to run it; and with float32 ones the bits that it
// gives with their values in float64.
func TestStatisticsForms(t *testing.T) {
	t.Parallel()
	testShapes(t, func(t *testing.T, s batchnorm.Shape, variant int) {
		p := newProblem(s, features(variant))
		if variant%3 == 0 {
			for i := range p.x { // beyond the range whose squares float32 holds
				p.x[i] *= 1e30
			}
		}
		if variant%5 == 0 {
			p.epsilon = 0
			for i := range p.x {
				if channelOf(s, i) == 0 {
					p.x[i] = 5 // a channel without variance
				}
			}
		}
		ways := waysOfModes()
		ways = append(ways[:1:1], ways[1+variant%(len(ways)-1)])
		for name, mask := range map[string]batchnorm.Mask{"none": {}, "all but one": masksFor(s, uint64(variant))["all but one"]} {
			for _, way := range []struct {
				size   int
				renorm bool
			}{{0, false}, {0, true}, {max(2, s.Outer/2), false}} {
				if name != "none" && way.size != 0 && s.PerChannel() < 8 {
					continue // a sub-batch of one value
				}
				what := fmt.Sprintf("%v, mask %s, %+v", s, name, way)
				want := formOf(saved, mask, way.size, way.renorm).once(t, p)
				expectSame(t, what+", from x", formOf(fromX, mask, way.size, way.renorm).same(t, p, ways, slices.Clone), want)
				if variant%3 != 0 { // which has no variance in float32
					want = formOf(narrowed, mask, way.size, way.renorm).once(t, p)
					expectSame(t, what+", float32", formOf(inFloat32, mask, way.size, way.renorm).same(t, p, ways, slices.Clone), want)
				}
			}
		}
	})
}

// The float32 statistics of Forward and Statistics are the moments, rounded once.
func TestBatchMeanAndVariance(t *testing.T) {
	t.Parallel()
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		for _, s := range modeShapes() {
			c := s.Channels
			p := newPlan(t, s, batchnorm.WithPath(path), batchnorm.WithEpsilon(0.5))
			for scale, infinite := range map[float32]bool{1: false, 1e15: false, 1e25: true} {
				x := gen.Normal(1, s.Len(), 0.5, 1)
				for i := range x {
					x[i] *= scale
					if channelOf(s, i) == c-1 {
						x[i] = 3
					}
				}
				m := batchnorm.Moments{Mean: make([]float64, c), M2: make([]float64, c)}
				noError(t, p.Moments(batchnorm.MomentsArgs{X: x, Moments: &m}))
				wantMean, wantVar := make([]float32, c), make([]float32, c)
				for i := range c {
					wantMean[i], wantVar[i] = float32(m.Mean[i]), float32(max(m.M2[i]/float64(m.Count), 0))
				}
				if wantVar[c-1] != 0 || c > 1 && math.IsInf(float64(wantVar[0]), 1) != infinite {
					t.Fatalf("%v: the variances are %v and %v", s, wantVar[0], wantVar[c-1])
				}
				mean, variance, y := make([]float32, c), make([]float32, c), make([]float32, len(x))
				noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, BatchMean: mean, BatchVar: variance}))
				expectBits(t, fmt.Sprintf("%v: batch mean", s), mean, wantMean)
				expectBits(t, fmt.Sprintf("%v: batch variance", s), variance, wantVar)
				clear(mean)
				clear(variance)
				noError(t, p.Statistics(batchnorm.StatisticsArgs{Moments: m, BatchMean: mean, BatchVar: variance}))
				expectBits(t, fmt.Sprintf("%v: batch mean of the moments", s), mean, wantMean)
				expectBits(t, fmt.Sprintf("%v: batch variance of the moments", s), variance, wantVar)
			}
		}
	})
}

// Statistics come in one form.
func TestTwoFormsOfStatistics(t *testing.T) {
	op := operations[2]
	for _, narrow := range []string{"BatchMean", "BatchVar"} {
		for _, without := range []string{"", "Mean", "InvStd"} {
			args := op.args(someShape)
			field(args, narrow).Set(field(args, "Gamma"))
			if without != "" {
				field(args, without).SetZero()
			}
			op.expectRejected(t, newPlan(t, someShape), args, batchnorm.ErrStatistics, "mean", "invstd", "batch mean", "batch variance", "4")
			ghosts, err := batchnorm.NewGhostPlan(someShape, batchnorm.GhostBatches{Samples: 3, Size: 3})
			noError(t, err)
			if err := ghosts.Backward(*args.(*batchnorm.BackwardArgs)); !errors.Is(err, batchnorm.ErrStatistics) {
				t.Errorf("a GhostPlan gives %v, want ErrStatistics", err)
			}
			axes, err := batchnorm.NewAxesPlan([]int{1}, []int{3, 4, 6})
			noError(t, err)
			if err := axes.Backward(*args.(*batchnorm.BackwardArgs)); !errors.Is(err, batchnorm.ErrStatistics) {
				t.Errorf("an AxesPlan gives %v, want ErrStatistics", err)
			}
		}
	}
	if s := (batchnorm.BackwardArgs{Mean: []float64{}, BatchVar: []float32{}}); newPlan(t, batchnorm.Shape{0, 1, 1}).Backward(s) == nil {
		t.Error("empty slices are no statistics, and are not refused")
	}
}

func TestInvStdAndVariance(t *testing.T) {
	t.Parallel()
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct{ variance, epsilon, invstd, back float64 }{
		{0, 0, 0, 0}, {4, 0, 0.5, 4}, {3, 1, 0.5, 3}, {0, 0.25, 2, 0}, {inf, 1e-5, 0, inf}, {nan, 1e-5, nan, nan},
		{-1, 0.5, nan, nan}, {1e-320, 0, 1 / math.Sqrt(1e-320), 1e-320},
	} {
		invstd := batchnorm.VarianceToInvStd(c.variance, c.epsilon)
		back := batchnorm.InvStdToVariance(invstd, c.epsilon)
		if c.variance == 1e-320 && math.Abs(back-c.back) <= 1e-323 {
			back = c.back
		}
		if !sameBits(invstd, c.invstd) || !sameBits(back, c.back) {
			t.Errorf("variance %v with epsilon %v: invstd %v, want %v; back %v, want %v", c.variance, c.epsilon, invstd, c.invstd, back, c.back)
		}
	}
	if v := batchnorm.InvStdToVariance(-2, 0); v == v {
		t.Errorf("a negative invstd gives %v, want NaN", v)
	}
	// Every epsilon, with a constant channel and with others.
	var worst, worst32 float64
	for i, v := range gen.Uniform(1, 20000, -60, 60) {
		epsilon, variance := math.Exp(float64(v)), math.Exp(float64(gen.Uniform(uint64(i), 1, -60, 60)[0]))
		invstd := batchnorm.VarianceToInvStd(0, epsilon)
		if back := batchnorm.InvStdToVariance(invstd, epsilon); !(back >= 0 && back <= 0x1p-50*epsilon) {
			t.Fatalf("variance 0 with epsilon %v comes back as %v", epsilon, back)
		}
		invstd = batchnorm.VarianceToInvStd(variance, epsilon)
		worst = max(worst, math.Abs(batchnorm.InvStdToVariance(invstd, epsilon)-variance)/(variance+epsilon))
		worst32 = max(worst32, math.Abs(batchnorm.InvStdToVariance(float64(float32(invstd)), epsilon)-variance)/(variance+epsilon))
	}
	if worst > 0x1p-50 || worst32 > 0x1p-22 {
		t.Errorf("the variance comes back with an error of %.3g times variance + epsilon, from float32 %.3g; want at most 2^-50 and 2^-22", worst,
			worst32)
	}
}

var updateStatistics = flag.Bool("update-statistics", false, "write the table of TestFloat32Statistics to docs/semantics.md")

// TestFloat32Statistics measures what float32 statistics cost in backward, by the
// offset of the data: the table in docs/semantics.md. To write it anew:
//
//	go test -run TestFloat32Statistics -update-statistics .
func TestFloat32Statistics(t *testing.T) {
	t.Parallel()
	const begin = "| mean / standard deviation | dx, saved | dx, float32 | dgamma, saved | dgamma, float32 |\n|---|---|---|---|---|\n"
	table := begin
	for _, offset := range []float64{0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6} {
		var worst [2][2]float64 // of form and output
		for seed := range uint64(4) {
			for _, s := range []batchnorm.Shape{{Outer: 16, Channels: 8, Inner: 64}, {Outer: 1024, Channels: 8, Inner: 1}} {
				// The offset is of no grid, so that float32 does not hit the mean by chance.
				p := problem{shape: s, epsilon: batchnorm.DefaultEpsilon,
					x: gen.Normal(seed, s.Len(), offset*(1+0.01*float64(seed)), 1), dy: gen.Normal(seed+9, s.Len(), 0, 1)}
				ref := reference.Backward(p.reference())
				for i, form := range []statisticsForm{saved, inFloat32} {
					r := formOf(form, batchnorm.Mask{}, 0, false).once(t, p)
					worst[i][0] = max(worst[i][0], largestError(r.dx, ref.DX))
					worst[i][1] = max(worst[i][1], largestError(r.dgamma, ref.DGamma))
				}
			}
		}
		table += fmt.Sprintf("| %g | %.1e | %.1e | %.1e | %.1e |\n", offset, worst[0][0], worst[1][0], worst[0][1], worst[1][1])
		// As the comments of BackwardArgs say.
		if bound := 3e-7 + 6e-8*offset; worst[1][0] > bound || worst[0][0] > 1e-6 {
			t.Errorf("mean %g: dx is off by %.2g from saved statistics, by %.2g from float32 ones", offset, worst[0][0], worst[1][0])
		}
	}
	file := filepath.Join("docs", "semantics.md")
	text, err := os.ReadFile(file)
	noError(t, err)
	i := strings.Index(string(text), begin)
	if i < 0 {
		t.Fatalf("%s has no table that begins with %q", file, begin)
	}
	end := i + strings.Index(string(text[i:])+"\n\n", "\n\n") + 1
	if *updateStatistics {
		noError(t, os.WriteFile(file, []byte(string(text[:i])+table+string(text[end:])), 0o644))
	} else if got := string(text[i:end]); got != table && runtime.GOARCH == "amd64" { // elsewhere the reference may round otherwise
		t.Errorf("%s has the table\n%swant\n%s", file, got, table)
	}
}

// largestError is relative to the largest value.
func largestError(got []float32, want []float64) float64 {
	worst, largest := 0.0, 0.0
	for i, v := range want {
		worst, largest = max(worst, math.Abs(float64(got[i])-v)), max(largest, math.Abs(v))
	}
	return worst / largest
}

// BenchmarkStatisticsForms is the time of a backward pass by the form of its
// statistics.
func BenchmarkStatisticsForms(b *testing.B) {
	for _, s := range []batchnorm.Shape{
		{Outer: 32, Channels: 64, Inner: 56 * 56}, {Outer: 32 * 56 * 56, Channels: 64, Inner: 1}, {Outer: 8, Channels: 64, Inner: 256},
	} {
		p := newPlan(b, s)
		x, dy, c := gen.Normal(1, s.Len(), 0, 1), gen.Normal(2, s.Len(), 0, 1), s.Channels
		mean, invstd, mean32, variance := make([]float64, c), make([]float64, c), make([]float32, c), make([]float32, c)
		args := batchnorm.BackwardArgs{DY: dy, X: x, DX: make([]float32, s.Len()), DGamma: make([]float32, c), DBeta: make([]float32, c)}
		noError(b, p.Forward(batchnorm.ForwardArgs{X: x, Y: args.DX, Mean: mean, InvStd: invstd, BatchMean: mean32, BatchVar: variance}))
		withSaved, withFloat32 := args, args
		withSaved.Mean, withSaved.InvStd = mean, invstd
		withFloat32.BatchMean, withFloat32.BatchVar = mean32, variance
		for _, form := range []struct {
			name string
			args batchnorm.BackwardArgs
		}{{"saved", withSaved}, {"float32", withFloat32}, {"from x", args}} {
			b.Run(fmt.Sprintf("%v/%s", s, form.name), func(b *testing.B) {
				for range b.N {
					noError(b, p.Backward(form.args))
				}
			})
		}
	}
}
