package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/bound"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// boundsNote explains the bounds under the table.
const boundsNote = `The bound is the time of the memory traffic that the operation can't avoid, over the same
tensors with as many workers. In nchw a channel is read from memory once: the bound is a copy
(forward, inference), a triad (backward; forward or inference with residual), or three reads and
two writes (backward with residual and its gradient). In nhwc and nc the statistics read
everything before that, except in inference. The bound has the faster kind of stores. Operation
and bound alternate, and the least time of each counts. fraction = bound / op. how is the result
of Plan.Explain, which has none for inference. Results are not checked here: without -bound they
are.`

// boundRow is one operation on one tensor with a number of workers.
type boundRow struct {
	Operation        string  `json:"operation"`
	Layout           string  `json:"layout"`
	Shape            string  `json:"shape"`
	Workers          int     `json:"workers"`
	Path             string  `json:"path"`
	Elements         int     `json:"elements"`
	Nanoseconds      float64 `json:"ns"`
	BoundNanoseconds float64 `json:"bound_ns"`
	Fraction         float64 `json:"fraction"`
	Stores           string  `json:"bound_stores"`
	Rounds           int     `json:"rounds"`        // number of times that the two alternated
	How              string  `json:"how,omitempty"` // from Plan.Explain

	// Samples are the least times of op in successive stretches of the rounds.
	Samples []float64 `json:"samples_ns,omitempty"`
}

// bytes returns the bytes that the operation must move, each tensor once; 0 for an
// unknown operation.
func (r boundRow) bytes() int { return opNamed(r.Operation).bytes * r.Elements }

// bounds measures everything, and prints each row as it is measured.
func (c config) bounds(set caseSet, w io.Writer, p *progress) ([]boundRow, error) {
	fmt.Fprintf(w, "%-22s  %-6s  %14s  %7s  %11s  %11s  %8s  %-12s  %6s  %s\n",
		"operation", "layout", "shape", "workers", "op us", "bound us", "fraction", "bound stores", "rounds", "how")
	var rows []boundRow
	for _, t := range set.cases {
		runtime.GC() // frees the last case's tensors now instead of during the measurement
		in, out := boundTensors(t.dims, c.ops)
		for _, o := range c.ops {
			for _, workers := range c.workers {
				p.describe(fmt.Sprintf("%s %s: %s", t.layout, t.shape, o))
				r, err := c.measureBound(t, o, workers, in, out)
				if err != nil {
					return nil, fmt.Errorf("%s %s: %s: %w", t.layout, t.shape, o.name, err)
				}
				fmt.Fprintf(w, "%-22s  %-6s  %14s  %7d  %11.2f  %11.2f  %8.3f  %-12s  %6d  %s\n",
					r.Operation, r.Layout, r.Shape, r.Workers,
					r.Nanoseconds/1e3, r.BoundNanoseconds/1e3, r.Fraction, r.Stores, r.Rounds, cmp.Or(r.How, "-"))
				rows = append(rows, r)
				p.add(c.effort.work(t.dims.Len()))
			}
		}
	}
	fmt.Fprintf(w, "\n%s\n", boundsNote)
	fractionsTable(w, rows)
	scalingTable(w, rows, c.memoryBandwidth)
	return rows, nil
}

// boundsWork returns the work of bounds for the progress bar, in about microseconds.
func (c config) boundsWork(set caseSet) int {
	total := 0
	for _, t := range set.cases {
		total += len(c.ops) * len(c.workers) * c.effort.work(t.dims.Len())
	}
	return total
}

// work estimates the microseconds of a measurement of so many elements.
func (e effort) work(elements int) int {
	return int(e.minTime/time.Microsecond) + e.reps*elements/150 + 1
}

// measureBound measures one row.
func (c config) measureBound(t testCase, o op, workers int, in *inputs, out *outputs) (boundRow, error) {
	r := boundRow{
		Operation: o.name, Layout: t.layout, Shape: t.shape, Workers: workers,
		Path: c.path.String(), Elements: t.dims.Len(),
	}
	plan, err := o.plan(t.dims, c.path, workers)
	if err != nil {
		return r, err
	}
	if err := o.run(plan, in, out); err != nil {
		return r, err // later runs have the same arguments and can't fail
	}
	if o.kind != inference { // Explain does not describe inference
		r.How = plan.Explain(o.kind == backward, o.residual)
	}
	team := bound.NewTeam(workers)
	var bounds []func()
	for _, s := range bound.Kinds() {
		bounds = append(bounds, func() { o.traffic(team, s, in, out) })
	}
	samples, all := c.effort.alternate(func() { _ = o.run(plan, in, out) }, bounds)
	r.Nanoseconds, r.Rounds, r.Samples = slices.Min(samples), len(samples), thin(samples)
	r.BoundNanoseconds = math.Inf(1)
	for i, s := range bound.Kinds() {
		if all[i] < r.BoundNanoseconds {
			r.BoundNanoseconds, r.Stores = all[i], s.String()
		}
	}
	r.Fraction = r.BoundNanoseconds / r.Nanoseconds
	return r, nil
}

// statisticsReads returns the number of tensors that the statistics read.
func (o op) statisticsReads() int {
	switch {
	case o.kind == forward:
		return 1
	case o.kind == backward && o.residual:
		return 3
	case o.kind == backward:
		return 2
	}
	return 0
}

// traffic makes the reads and writes that the operation can't avoid.
func (o op) traffic(t *bound.Team, s bound.Stores, in *inputs, out *outputs) {
	if together := in.dims.Inner > 1; !together {
		if n := o.statisticsReads(); n > 0 {
			t.Read([][]float32{in.x, in.dy, in.residual}[:n]...)
		}
	}
	switch {
	case o.kind == backward && o.residual:
		t.Pair(s, out.tensor, out.dresidual, in.dy, in.x, in.residual)
	case o.kind == backward:
		t.Triad(s, out.tensor, in.dy, in.x)
	case o.residual:
		t.Triad(s, out.tensor, in.x, in.residual)
	default:
		t.Copy(s, out.tensor, in.x)
	}
}

// batchTime is the least time of a timed batch of calls: reading a clock takes tens of
// nanoseconds, and a call may take a microsecond.
const batchTime = 50 * time.Microsecond

// A bound that is slower than another by the factor hopeless after hopelessRounds is
// left out from then on, since it can't become the faster one.
const (
	hopeless       = 1.15
	hopelessRounds = 5
)

// alternate returns, in nanoseconds, the least time of a call of op in each round, and
// the least time of each of bounds. Before each turn of a bound op has one.
func (e effort) alternate(op func(), bounds []func()) (rounds, all []float64) {
	calls := make([]int, len(bounds))
	for i, f := range bounds {
		calls[i] = callsFor(f)
	}
	opCalls := callsFor(op)
	all = make([]float64, len(bounds))
	fill(all, math.Inf(1))
	fastest := math.Inf(1)
	start := time.Now()
	for {
		spent, n := time.Since(start), len(rounds)
		if n > 0 && (spent >= e.maxTime || n >= e.reps && spent >= e.minTime) {
			return rounds, all
		}
		least := math.Inf(1)
		for i, f := range bounds {
			if n >= hopelessRounds && all[i] > hopeless*fastest {
				continue
			}
			least = min(least, perCall(op, opCalls))
			all[i] = min(all[i], perCall(f, calls[i]))
			fastest = min(fastest, all[i])
		}
		rounds = append(rounds, least)
	}
}

// mostSamples is enough to show how measurements vary.
const mostSamples = 10

// thin returns the least samples of at most mostSamples successive stretches.
func thin(samples []float64) []float64 {
	n := min(len(samples), mostSamples)
	thinned := make([]float64, n)
	for i := range thinned {
		thinned[i] = slices.Min(samples[i*len(samples)/n : (i+1)*len(samples)/n])
	}
	return thinned
}

// perCall returns the mean nanoseconds of n calls of f.
func perCall(f func(), n int) float64 {
	start := time.Now()
	for range n {
		f()
	}
	t := max(time.Since(start), 1) // some clocks are coarse
	return float64(t) / float64(n)
}

// callsFor returns how many calls of f take batchTime.
func callsFor(f func()) int {
	const enough = 1 << 16 // calls that take next to nothing
	for n := 1; ; n *= 2 {
		if perCall(f, n)*float64(n) >= float64(batchTime) || n >= enough {
			return n
		}
	}
}

// boundTensors returns the inputs and outputs of the operations. Every tensor begins
// at a multiple of 64 bytes and has been written to. The values of x have no influence
// on the time, so that they may repeat.
func boundTensors(s batchnorm.Shape, list []op) (*inputs, *outputs) {
	n, channels := s.Len(), s.Channels
	in := &inputs{
		dims: s, x: blocks(1, n),
		gamma: gen.Uniform(3, channels, 0.5, 1.5), beta: gen.Uniform(4, channels, -1, 1),
		mean: make([]float64, channels), invstd: make([]float64, channels),
		runningMean: make([]float32, channels), runningVar: make([]float32, channels),
	}
	fill(in.invstd, 1)
	fill(in.runningVar, 1)
	out := &outputs{
		tensor: aligned(n),
		mean:   make([]float64, channels), invstd: make([]float64, channels),
		runningMean: make([]float32, channels), runningVar: make([]float32, channels),
		dgamma: make([]float32, channels), dbeta: make([]float32, channels),
	}
	for _, o := range list { // large tensors only where they are in use
		if o.kind == backward && in.dy == nil {
			in.dy = blocks(2, n)
		}
		if o.residual && in.residual == nil {
			in.residual = blocks(5, n)
		}
		if o.residual && o.kind == backward {
			out.dresidual = aligned(n)
		}
	}
	return in, out
}

// aligned returns n floats that begin at a multiple of 64 bytes. They have been written
// to, so that the system has mapped their memory.
func aligned(n int) []float32 {
	const line = 64 / 4
	s := make([]float32, n+line)
	first := (line - int(uintptr(unsafe.Pointer(&s[0]))/4)%line) % line
	s = s[first:][:n:n]
	fill(s, 1)
	return s
}

// blocks returns n values, which repeat after 65521.
func blocks(seed uint64, n int) []float32 {
	s := aligned(n)
	for k := copy(s, gen.Normal(seed, min(n, 65521), 0, 1)); k < n; {
		k += copy(s[k:], s[:k])
	}
	return s
}
