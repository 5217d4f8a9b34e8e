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
dead, gamma = 0, constant, NaN, x * 1e20, dy * 1e-30, x * 1e-25; their limits are the means of these. Subnormal in turn are
usual, x subnormal, usual, dy * 1e-38; every 16th stands for every 16th channel. Under given statistics x has one NaN or
infinity per channel, and the statistics of backward passes and of frozen ones are those of usual data.`

// modesNote stands above the table of modes.
const modesNote = "The same, with ReLU, by way of a mask, of frozen statistics, of ghost batches and of the split pieces:"

// kindCell is the width of a column of numbers.
const kindCell = 10

// kindActivations are the activations of -data.
var kindActivations = []batchnorm.Activation{batchnorm.Identity, batchnorm.ReLU, batchnorm.SiLU}

// kindOps are the operations of -data.
var kindOps = []op{peerOps[0], peerOps[2]}

// kindMode is another way to call an operation. -data measures them with ReLU.
type kindMode struct {
	name string
	kind opKind
	// call returns the operation on the data.
	call func(p *kindPlans, d *kindData) func() error
}

// kindPlans are the plans and the mask that modes use.
type kindPlans struct {
	plan  *batchnorm.Plan
	ghost *batchnorm.GhostPlan
	mask  batchnorm.Mask
}

const (
	maskedOf     = 4 // the mask leaves out one position in so many
	ghostBatches = 4 // in a batch
)

func newKindPlans(s batchnorm.Shape, opts ...batchnorm.Option) (*kindPlans, error) {
	plan, err := batchnorm.NewPlan(s, opts...)
	if err != nil {
		return nil, err
	}
	// A sub-batch has 2 values per channel at least.
	size := max(ceilDiv(s.Outer, ghostBatches), ceilDiv(2, s.Inner))
	ghost, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: min(size, s.Outer)},
		append(opts, batchnorm.WithSingleValue())...)
	if err != nil {
		return nil, err
	}
	valid := make([]bool, s.PerChannel())
	for i := range valid {
		valid[i] = i%maskedOf != maskedOf-1
	}
	return &kindPlans{plan, ghost, batchnorm.Mask{Valid: valid}}, nil
}

var kindModes = []kindMode{
	{"mask", forward, func(p *kindPlans, d *kindData) func() error {
		a := d.forward()
		a.Mask = p.mask
		return func() error { return p.plan.Forward(a) }
	}},
	{"mask", backward, func(p *kindPlans, d *kindData) func() error {
		a := d.backward()
		a.Mask = p.mask
		return func() error { return p.plan.Backward(a) }
	}},
	{"frozen", forward, func(p *kindPlans, d *kindData) func() error {
		return func() error { return op{kind: inference}.run(p.plan, d.in, d.out) }
	}},
	{"frozen", backward, func(p *kindPlans, d *kindData) func() error {
		a := batchnorm.FrozenBackwardArgs{DY: d.in.dy, X: d.in.x, Gamma: d.in.gamma, Beta: d.in.beta, Mean: d.in.runningMean, Var: d.in.runningVar,
			DX: d.out.tensor, DGamma: d.out.dgamma, DBeta: d.out.dbeta}
		return func() error { return p.plan.FrozenBackward(a) }
	}},
	{"ghost", forward, func(p *kindPlans, d *kindData) func() error {
		a := d.forward()
		a.Mean, a.InvStd = d.ghostStatistics(p)
		return func() error { return p.ghost.Forward(a) }
	}},
	{"ghost", backward, func(p *kindPlans, d *kindData) func() error {
		a := d.backward()
		a.Mean, a.InvStd = d.ghostStatistics(p)
		return func() error { return p.ghost.Backward(a) }
	}},
	{"pieces", forward, func(p *kindPlans, d *kindData) func() error {
		m := batchnorm.Moments{Mean: make([]float64, d.in.dims.Channels), M2: make([]float64, d.in.dims.Channels)}
		return func() error {
			if err := p.plan.Moments(batchnorm.MomentsArgs{X: d.in.x, Moments: &m}); err != nil {
				return err
			}
			if err := p.plan.Statistics(batchnorm.StatisticsArgs{Moments: m, Mean: d.out.mean, InvStd: d.out.invstd}); err != nil {
				return err
			}
			return p.plan.Normalize(batchnorm.NormalizeArgs{X: d.in.x, Gamma: d.in.gamma, Beta: d.in.beta, Mean: d.out.mean, InvStd: d.out.invstd,
				Y: d.out.tensor})
		}
	}},
	{"pieces", backward, func(p *kindPlans, d *kindData) func() error {
		a := d.backward()
		sums := batchnorm.GradSums{G: make([]float64, d.in.dims.Channels), GD: make([]float64, d.in.dims.Channels)}
		return func() error {
			err := p.plan.GradSums(batchnorm.GradSumsArgs{DY: a.DY, X: a.X, Gamma: a.Gamma, Beta: a.Beta, Mean: a.Mean, InvStd: a.InvStd, Sums: &sums})
			if err != nil {
				return err
			}
			return p.plan.InputGrad(batchnorm.InputGradArgs{DY: a.DY, X: a.X, Gamma: a.Gamma, Beta: a.Beta, Mean: a.Mean, InvStd: a.InvStd, Sums: sums,
				DX: a.DX, DGamma: a.DGamma, DBeta: a.DBeta})
		}
	}},
}

func (d *kindData) forward() batchnorm.ForwardArgs {
	return batchnorm.ForwardArgs{X: d.in.x, Gamma: d.in.gamma, Beta: d.in.beta, Y: d.out.tensor, Mean: d.out.mean, InvStd: d.out.invstd,
		RunningMean: d.out.runningMean, RunningVar: d.out.runningVar}
}

func (d *kindData) backward() batchnorm.BackwardArgs {
	return batchnorm.BackwardArgs{DY: d.in.dy, X: d.in.x, Gamma: d.in.gamma, Beta: d.in.beta, Mean: d.in.mean, InvStd: d.in.invstd,
		DX: d.out.tensor, DGamma: d.out.dgamma, DBeta: d.out.dbeta}
}

// ghostStatistics returns the statistics of the sub-batches.
func (d *kindData) ghostStatistics(p *kindPlans) (mean, invstd []float64) {
	n := p.ghost.Batches() * d.in.dims.Channels
	a := d.forward()
	a.Mean, a.InvStd, a.RunningMean, a.RunningVar = make([]float64, n), make([]float64, n), nil, nil
	if err := p.ghost.Forward(a); err != nil {
		panic(err) // -shapes takes no shape that fails
	}
	return a.Mean, a.InvStd
}

// kindsSet is the set of tensors of -data unless -shapes says otherwise.
func kindsSet() caseSet {
	set := caseSet{data: "generated data"}
	set.add("nchw", 16, 128, 32, 32)
	set.add("nchw", 32, 512, 7, 7) // short rows
	set.add("nhwc", 16, 128, 32, 32)
	set.add("nc", 8, 1000)
	set.add("nc", 64, 512)
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
	Mode             string  `json:"mode,omitempty"` // none: a plan's Forward and Backward
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
		fmt.Fprintf(w, "%-6s  %-14s  %7s  %-26s  %-10s", fields[0], fields[1], fields[2], fields[3], fields[4])
		for _, f := range fields[5:] {
			fmt.Fprintf(w, "  %*s", kindCell, f)
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
	fmt.Fprintln(w)
	for i, line := range kindModeLines(rows) {
		if i == 0 {
			fmt.Fprintln(w, modesNote)
		}
		show(strings.Split(line, "\t"))
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
	return (len(kindOps)*len(kindActivations) + len(kindModes)) * c.effort.work(2*t.dims.Len())
}

// kindRows measures a kind of data on a tensor.
func (c config) kindRows(t testCase, k kinds.Kind, workers int, usual, data *kindData) ([]kindRow, error) {
	var rows []kindRow
	measure := func(act batchnorm.Activation, mode, operation string, runs [2]func() error) error {
		for _, run := range runs {
			if err := run(); err != nil {
				return err // later runs can't fail
			}
		}
		r := kindRow{Kind: k.Name, Layout: t.layout, Shape: t.shape, Workers: workers, Path: c.path.String(), Activation: act.String(),
			Mode: mode, Operation: operation, Limit: k.LimitOf(act == batchnorm.SiLU)}
		samples, all := c.effort.alternate(func() { _ = runs[0]() }, []func(){func() { _ = runs[1]() }})
		r.UsualNanoseconds, r.Nanoseconds, r.Rounds = slices.Min(samples), all[0], len(samples)
		r.Ratio = r.Nanoseconds / r.UsualNanoseconds
		rows = append(rows, r)
		return nil
	}
	for _, act := range kindActivations {
		plan, err := batchnorm.NewPlan(t.dims, batchnorm.WithPath(c.path), batchnorm.WithWorkers(workers), batchnorm.WithActivation(act))
		if err != nil {
			return nil, err
		}
		for _, o := range kindOps {
			if k.Backward && o.kind == forward {
				continue
			}
			if err := measure(act, "", o.name, kindRuns(plan, o, usual, data)); err != nil {
				return nil, err
			}
		}
	}
	plans, err := newKindPlans(t.dims, batchnorm.WithPath(c.path), batchnorm.WithWorkers(workers), batchnorm.WithActivation(batchnorm.ReLU))
	if err != nil {
		return nil, err
	}
	for _, m := range kindModes {
		if k.Backward && m.kind == forward {
			continue
		}
		name := kindOps[0].name
		if m.kind == backward {
			name = kindOps[1].name
		}
		if err := measure(batchnorm.ReLU, m.name, name, [2]func() error{m.call(plans, usual), m.call(plans, data)}); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return rows, nil
}

// kindRuns returns an operation on usual data, and on a kind of data.
func kindRuns(plan *batchnorm.Plan, o op, usual, data *kindData) (runs [2]func() error) {
	for i, d := range []*kindData{usual, data} {
		runs[i] = func() error { return o.run(plan, d.in, d.out) }
	}
	return runs
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
	if !k.Given {
		d.statistics()
	}
}

// statistics computes the statistics of x, for backward and for frozen statistics.
func (d *kindData) statistics() {
	p, err := batchnorm.NewPlan(d.in.dims)
	if err == nil {
		err = p.Forward(batchnorm.ForwardArgs{X: d.in.x, Y: d.out.tensor, Mean: d.in.mean, InvStd: d.in.invstd,
			RunningMean: d.in.runningMean, RunningVar: d.in.runningVar, Momentum: batchnorm.Cumulative(1)})
	}
	if err != nil {
		panic(err) // -shapes takes no shape that fails
	}
}

// kindColumn is a column of numbers of a table of kinds.
type kindColumn struct{ head, activation, mode, operation string }

// kindLines returns the table of rows: a line of heads, and a line for every tensor, number
// of workers and kind of data. Tabs separate fields.
func kindLines(rows []kindRow) []string {
	var columns []kindColumn
	for _, act := range kindActivations {
		for _, o := range kindOps {
			columns = append(columns, kindColumn{strings.Replace(act.String(), "identity", "id", 1), act.String(), "", o.name})
		}
	}
	return kindTable(rows, columns)
}

// kindModeLines is kindLines for the modes.
func kindModeLines(rows []kindRow) []string {
	var columns []kindColumn
	for i, m := range kindModes {
		columns = append(columns, kindColumn{m.name, batchnorm.ReLU.String(), m.name, kindOps[i%len(kindOps)].name})
	}
	return kindTable(rows, columns)
}

func kindTable(rows []kindRow, columns []kindColumn) []string {
	of := func(r kindRow) kindColumn { return kindColumn{"", r.Activation, r.Mode, r.Operation} }
	head := "layout\tshape\tworkers\tkind of data\tlimit"
	for i, c := range columns {
		head += "\t" + c.head + map[string]string{"forward": " fwd", "backward": " bwd"}[c.operation]
		columns[i].head = ""
	}
	rows = slices.DeleteFunc(slices.Clone(rows), func(r kindRow) bool { return !slices.Contains(columns, of(r)) })
	if len(rows) == 0 {
		return nil
	}
	lines := []string{head}
	type key struct {
		layout, shape string
		workers       int
		kind          string
	}
	keyOf := func(r kindRow) key { return key{r.Layout, r.Shape, r.Workers, r.Kind} }
	for _, k := range unique(rows, keyOf) {
		cells := map[kindColumn]string{}
		var limits []string
		for _, r := range rows {
			if keyOf(r) != k {
				continue
			}
			text := fmt.Sprintf("%.2f", r.Ratio)
			if r.over() {
				text += "!"
			}
			cells[of(r)] = text
			limits = append(limits, fmt.Sprintf("%.2f", r.Limit))
		}
		line := fmt.Sprintf("%s\t%s\t%d\t%s\t%s", k.layout, k.shape, k.workers, k.kind, strings.Join(slices.Compact(limits), ", "))
		for _, c := range columns {
			line += "\t" + cmp.Or(cells[c], "-")
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
				r.Kind, cmp.Or(r.Mode, r.Activation), r.Operation, r.Ratio, r.Limit)
		}
	}
	fmt.Fprintf(w, "%d of %d numbers are over their limits.\n", over, len(rows))
}
