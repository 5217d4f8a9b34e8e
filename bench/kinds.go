package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// kindsNote explains the table.
const kindsNote = `Each number is the time of an operation on the kind of data over its time on usual data, in the same
run: their calls alternate, and each counts with its least time. id is identity, fwd forward, bwd backward.
! is a number over the limit; a second limit is that of silu, of channels that are far from 0. - is what does
not differ from usual data. Dead channels have a beta of -20. Kinds in turn are in adjacent channels: usual,
dead, gamma = 0, constant, NaN, x * 1e20, dy * 1e-30, x * 1e-25; their limit is the mean of these.`

// kindActivations are the activations of -data.
var kindActivations = []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU}

// kindOps are the operations of -data.
var kindOps = []op{peerOps[0], peerOps[2]}

// kindsSet has the default tensors of -data.
func kindsSet() caseSet {
	set := caseSet{data: "generated data"}
	set.add("nchw", 16, 128, 32, 32)
	set.add("nhwc", 16, 128, 32, 32)
	set.add("nc", 8, 1000)
	return set
}

// dataConfig is the configuration of kinds of data in a report: one worker, and at most
// the default time of -data.
func (c config) dataConfig() config {
	c.workers = []int{1}
	c.effort.maxTime = min(c.effort.maxTime, dataMaxTime)
	return c
}

// kindRow is an operation on a kind of data.
type kindRow struct {
	Kind             string  `json:"kind"`
	Layout           string  `json:"layout"`
	Shape            string  `json:"shape"`
	Workers          int     `json:"workers"`
	Path             string  `json:"path"`
	Activation       string  `json:"activation"`
	Operation        string  `json:"operation"`
	Nanoseconds      float64 `json:"ns"`
	UsualNanoseconds float64 `json:"usual_ns"`
	Ratio            float64 `json:"ratio"`
	Limit            float64 `json:"limit"` // of the ratio
	Rounds           int     `json:"rounds"`
}

// kinds runs -data. It prints a line to w as soon as all of its numbers are measured.
func (c config) kinds(set caseSet, w io.Writer, p *progress) ([]kindRow, error) {
	var rows []kindRow
	lines := 0
	show := func(fields []string) {
		fmt.Fprintf(w, "%-6s  %-14s  %7s  %-25s  %-11s", fields[0], fields[1], fields[2], fields[3], fields[4])
		for _, f := range fields[5:] {
			fmt.Fprintf(w, "  %8s", f)
		}
		fmt.Fprintln(w)
	}
	for _, t := range set.cases {
		runtime.GC() // frees the last case's tensors now instead of during the measurement
		usual := newKindData(t.dims)
		for _, k := range kinds.List() {
			data := newKindData(t.dims)
			data.apply(k)
			for _, workers := range c.workers {
				p.describe(fmt.Sprintf("%s %s: %s", t.layout, t.shape, k.Name))
				more, err := c.kindRows(t, k, workers, usual, data)
				if err != nil {
					return nil, fmt.Errorf("%s %s: %s: %w", t.layout, t.shape, k.Name, err)
				}
				rows = append(rows, more...)
				table := kindLines(rows)
				if lines == 0 {
					show(strings.Split(table[0], "\t"))
				}
				show(strings.Split(table[len(table)-1], "\t"))
				lines++
				p.add(c.kindWork(t))
			}
		}
	}
	fmt.Fprintf(w, "\n%s\n", kindsNote)
	return rows, nil
}

// kindsWork returns the work of kinds for the progress bar, in about microseconds.
func (c config) kindsWork(set caseSet) int {
	total := 0
	for _, t := range set.cases {
		total += len(kinds.List()) * len(c.workers) * c.kindWork(t)
	}
	return total
}

func (c config) kindWork(t testCase) int {
	return len(kindOps) * len(kindActivations) * c.effort.work(2*t.dims.Len())
}

// kindRows measures a kind of data on a tensor.
func (c config) kindRows(t testCase, k kinds.Kind, workers int, usual, data *kindData) ([]kindRow, error) {
	var rows []kindRow
	for _, act := range kindActivations {
		plan, err := batchnorm.NewPlan(t.dims, batchnorm.WithPath(c.path), batchnorm.WithWorkers(workers), batchnorm.WithActivation(act))
		if err != nil {
			return nil, err
		}
		for _, o := range kindOps {
			if k.Backward && o.kind == forward {
				continue
			}
			runs, err := kindRuns(plan, o, usual, data)
			if err != nil {
				return nil, err // later runs have the same arguments and can't fail
			}
			r := kindRow{Kind: k.Name, Layout: t.layout, Shape: t.shape, Workers: workers, Path: c.path.String(), Activation: act.String(),
				Operation: o.name,
				Limit:     k.LimitOf(act == batchnorm.SiLU)}
			samples, all := c.effort.alternate(func() { _ = runs[0]() }, []func(){func() { _ = runs[1]() }})
			r.UsualNanoseconds, r.Nanoseconds, r.Rounds = slices.Min(samples), all[0], len(samples)
			r.Ratio = r.Nanoseconds / r.UsualNanoseconds
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// kindRuns returns an operation on usual data and on a kind of data, after one run of
// each.
func kindRuns(plan *batchnorm.Plan, o op, usual, data *kindData) ([2]func() error, error) {
	var runs [2]func() error
	for i, d := range []*kindData{usual, data} {
		runs[i] = func() error { return o.run(plan, d.in, d.out) }
		if err := runs[i](); err != nil {
			return runs, err
		}
	}
	return runs, nil
}

// kindData has the inputs and outputs of the operations.
type kindData struct {
	in  *inputs
	out *outputs
}

// newKindData returns usual data.
func newKindData(s batchnorm.Shape) *kindData {
	in, out := boundTensors(s, kindOps)
	copy(in.dy, gen.Uniform(2, s.Len(), -1, 1))
	d := &kindData{in, out}
	d.statistics()
	return d
}

// apply turns usual data into a kind of data.
func (d *kindData) apply(k kinds.Kind) {
	s := d.in.dims
	k.Apply(s.Outer, s.Channels, s.Inner, d.in.x, d.in.dy, d.in.gamma, d.in.beta)
	d.statistics()
}

// statistics sets the statistics of x for backward.
func (d *kindData) statistics() {
	p, err := batchnorm.NewPlan(d.in.dims)
	if err == nil {
		err = p.Forward(batchnorm.ForwardArgs{X: d.in.x, Y: d.out.tensor, Mean: d.in.mean, InvStd: d.in.invstd})
	}
	if err != nil {
		panic(err) // a shape that -shapes takes
	}
}

// kindLines returns the table of rows: first the heads, then a line for every tensor,
// number of workers and kind of data. Fields are separated by tabs.
func kindLines(rows []kindRow) []string {
	if len(rows) == 0 {
		return nil
	}
	head := "layout\tshape\tworkers\tkind of data\tlimit"
	for _, act := range kindActivations {
		for _, o := range kindOps {
			head += "\t" + strings.Replace(act.String(), "identity", "id", 1) + map[opKind]string{forward: " fwd", backward: " bwd"}[o.kind]
		}
	}
	lines := []string{head}
	type key struct {
		layout, shape string
		workers       int
		kind          string
	}
	keyOf := func(r kindRow) key { return key{r.Layout, r.Shape, r.Workers, r.Kind} }
	for _, k := range unique(rows, keyOf) {
		cells := map[string]string{}
		var limits []string
		for _, r := range rows {
			if keyOf(r) != k {
				continue
			}
			text := fmt.Sprintf("%.2f", r.Ratio)
			if r.over() {
				text += "!"
			}
			cells[r.Activation+r.Operation] = text
			limits = append(limits, fmt.Sprintf("%.2f", r.Limit))
		}
		line := fmt.Sprintf("%s\t%s\t%d\t%s\t%s", k.layout, k.shape, k.workers, k.kind, strings.Join(slices.Compact(limits), ", "))
		for _, act := range kindActivations {
			for _, o := range kindOps {
				line += "\t" + cmp.Or(cells[act.String()+o.name], "-")
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// over reports whether the ratio is over its limit, both rounded as printed. Usual data
// have no limit: their ratio shows the noise of the measurement.
func (r kindRow) over() bool { return r.Kind != "usual" && int(r.Ratio*100+0.5) > int(r.Limit*100+0.5) }

// kindsSummary prints the numbers over their limits.
func kindsSummary(w io.Writer, rows []kindRow) {
	over := 0
	for _, r := range rows {
		if r.over() {
			over++
			fmt.Fprintf(w, "over the limit: %s %s %s, %s, %s %s: %.2f, limit %.2f\n", r.Layout, r.Shape, plural(r.Workers, "worker"),
				r.Kind, r.Activation, r.Operation, r.Ratio, r.Limit)
		}
	}
	fmt.Fprintf(w, "%d of %d numbers are over their limits.\n", over, len(rows))
}
