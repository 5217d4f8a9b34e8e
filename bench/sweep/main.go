// Command sweep evaluates the activations and their derivatives at every float32
// there is, on every path of the machine, and prints the largest error of each,
// and where it is.
//
//	go run ./bench/sweep                    # all 2^32 inputs of every function
//	go run ./bench/sweep -stride 251        # every 251st
//	go run ./bench/sweep -only gelu,tanh
//
// The paths are compared with one another bit by bit. The error is the distance
// to the function's value in float64, in units in the last place of that value
// (ULP; below the smallest normal float32 the spacing of the subnormals), for
// derivatives in those of their largest term. It is not the distance to the
// rounded value, so that nothing has to be decided about ties: what the
// reference lacks, some 2^-50 of the value, shows in the eighth digit of a ULP.
package main

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/fusedbn/batchnorm/internal/ulp"
	"github.com/schollz/progressbar/v3"
)

// all are the activations that are swept. Their parameters are the same in float64.
var all = append(batchnorm.Activations()[1:], batchnorm.Clip(-1, 1))

func main() {
	stride := flag.Uint64("stride", 1, "evaluate every stride-th input")
	only := flag.String("only", "", "names of activations, separated by commas")
	flag.Parse()
	if err := run(os.Stdout, os.Stderr, *stride, *only); err != nil {
		fmt.Fprintln(os.Stderr, "sweep:", err)
		os.Exit(1)
	}
}

func run(out, status io.Writer, stride uint64, only string) error {
	if stride < 1 {
		return fmt.Errorf("stride is %d, must be at least 1", stride)
	}
	var chosen []batchnorm.Activation
	for _, act := range all {
		name, _, _ := strings.Cut(act.String(), "(")
		if only == "" || strings.Contains(","+only+",", ","+name+",") {
			chosen = append(chosen, act)
		}
	}
	if chosen == nil {
		return fmt.Errorf("no activation is called %q", only)
	}
	fmt.Fprintf(out, "%d inputs of each function; paths compared bit by bit: %v\n\n", (1<<32+stride-1)/stride, batchnorm.Paths())
	fmt.Fprintln(out, "| activation | value: largest error, ULP | at | derivative: largest error, ULP of its largest term | at |")
	fmt.Fprintln(out, "|---|---|---|---|---|")
	for _, act := range chosen {
		r, err := sweep(status, act, stride)
		if err != nil {
			return fmt.Errorf("%v: %w", act, err)
		}
		fmt.Fprintf(out, "| %v | %.4f | %v | %.4f | %v |\n", act, r[0].err, r[0].at, r[1].err, r[1].at)
	}
	return nil
}

// worst is the largest error seen, and its input.
type worst struct {
	err float64
	at  float32
}

func (w *worst) see(err float64, at float32) {
	if err > w.err || err == w.err && math.Float32bits(at) < math.Float32bits(w.at) {
		*w = worst{err, at}
	}
}

const chunk = 1 << 14 // inputs

// A correctly rounded result is off by half a ULP at most. One of so many is looked at,
// for functions that have no others. The number is odd, so that all low bits of inputs
// occur: a slope of 1/4 is exact for multiples of 4, and rounds other subnormals.
const sampled = 13

// sweep returns the largest errors of the value and of the derivative.
func sweep(status io.Writer, act batchnorm.Activation, stride uint64) ([2]worst, error) {
	var result [2]worst
	total := (1<<32 + stride - 1) / stride
	bar := progressbar.NewOptions64(int64(total), progressbar.OptionSetWriter(status),
		progressbar.OptionSetDescription(act.String()), progressbar.OptionShowCount(), progressbar.OptionThrottle(1e9), progressbar.OptionClearOnFinish())
	defer bar.Finish()
	var next atomic.Uint64
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			e, err := newEvaluator(act)
			var mine [2]worst
			for err == nil {
				begin := (next.Add(1) - 1) * chunk
				if begin >= total {
					break
				}
				n := min(chunk, total-begin)
				for i := range n {
					e.z[i] = math.Float32frombits(uint32((begin + i) * stride))
				}
				err = e.evaluate(int(n), &mine)
				bar.Add64(int64(n))
			}
			mu.Lock()
			defer mu.Unlock()
			for i, w := range mine {
				result[i].see(w.err, w.at)
			}
			if err != nil {
				failed = err
				next.Store(total)
			}
		})
	}
	wg.Wait()
	return result, failed
}

// evaluator evaluates chunks of inputs on every path.
type evaluator struct {
	ref   reference.Activation
	plans []*batchnorm.Plan
	z     []float32
	// value and slope are the results of a path, and of the one before.
	value, slope [2][]float32

	zero, one, dx []float32
}

// One more value lies behind those of a chunk. Its derivative is not 0, so that the
// gradients' sums do not look like those of vanished data.
func newEvaluator(act batchnorm.Activation) (*evaluator, error) {
	e := &evaluator{ref: reference.ActivationOf(act.String())}
	for _, p := range batchnorm.Paths() {
		plan, err := batchnorm.NewPlan(batchnorm.Shape{Outer: 1, Channels: 1, Inner: chunk + 1},
			batchnorm.WithActivation(act), batchnorm.WithEpsilon(0), batchnorm.WithPath(p))
		if err != nil {
			return nil, err
		}
		e.plans = append(e.plans, plan)
	}
	for _, s := range []*[]float32{&e.z, &e.value[0], &e.value[1], &e.slope[0], &e.slope[1], &e.zero, &e.one, &e.dx} {
		*s = make([]float32, chunk+1)
	}
	for i := range e.one {
		e.one[i] = 1
	}
	return e, nil
}

// evaluate takes n inputs from z.
func (e *evaluator) evaluate(n int, w *[2]worst) error {
	for i := n; i < len(e.z); i++ {
		e.z[i] = 0.5
	}
	minusZero := []float32{float32(math.Copysign(0, -1))} // z = x + -0 keeps every x
	for k, plan := range e.plans {
		now := k % 2
		if err := plan.Inference(batchnorm.InferenceArgs{X: e.z, Beta: minusZero, Mean: []float32{0}, Var: []float32{1}, Y: e.value[now]}); err != nil {
			return err
		}
		if err := plan.Backward(batchnorm.BackwardArgs{DY: e.one, X: e.zero, Residual: e.z, Beta: minusZero, Mean: []float64{0}, InvStd: []float64{1},
			DX: e.dx, DResidual: e.slope[now]}); err != nil {
			return err
		}
		if k == 0 {
			continue
		}
		for i := range n {
			for j, r := range []*[2][]float32{&e.value, &e.slope} {
				a, b := r[now][i], r[1-now][i]
				if math.Float32bits(a) != math.Float32bits(b) && (a == a || b == b) {
					return fmt.Errorf("%s at %v is %v on %v and %v on %v", []string{"value", "derivative"}[j], e.z[i], a, plan.Path(), b, e.plans[k-1].Path())
				}
			}
		}
	}
	last := (len(e.plans) - 1) % 2
	for i := range n {
		z := float64(e.z[i])
		want, slope := e.ref.Both(z)
		got := e.value[last][i]
		if float32(want) != got || i%sampled == 0 {
			w[0].see(ulp.Distance(got, want), e.z[i])
		}
		want, got = slope, e.slope[last][i]
		if float32(want) == got && i%sampled != 0 {
			continue
		}
		err := ulp.Distance(got, want)
		if e.ref.Largest != nil && err > 0 && !math.IsInf(err, 0) {
			err = math.Abs(float64(got)-want) / ulp.Of(e.ref.Largest(z))
		}
		w[1].see(err, e.z[i])
	}
	return nil
}
