// Command bench checks and times batch normalization on this machine. It compares all
// paths bit by bit, and with a reference in float64. It exits with 1 if a check fails.
//
// With -bound it compares times with the memory traffic that an operation can't avoid;
// with -peers, with other implementations on the same data. With -report it measures
// both and more, and writes a page.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fusedbn/batchnorm"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1 // a check failed
	exitUsage  = 2 // wrong flags

	exitInterrupted = 130
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v (-h lists the flags)\n", err)
		return exitUsage
	}
	if cfg.from != "" {
		r, err := readReport(cfg.from)
		if err != nil {
			fmt.Fprintf(stderr, "bench: -from: %v\n", err)
			return exitUsage
		}
		return cfg.writeReport(r, stdout, stderr)
	}
	set, err := cfg.load()
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	if len(set.cases) == 0 {
		fmt.Fprintf(stderr, "bench: -only is %q, which no layout and shape of -shapes %s has\n", cfg.only, cfg.shapes)
		return exitUsage
	}
	// Files are made before the work, so that a wrong path costs no measurement.
	if cfg.report != "" {
		if err := os.MkdirAll(cfg.report, 0o777); err != nil {
			fmt.Fprintf(stderr, "bench: -report: %v\n", err)
			return exitUsage
		}
	}
	var file io.WriteCloser
	if cfg.json != "" {
		if file, err = os.Create(cfg.json); err != nil {
			fmt.Fprintf(stderr, "bench: -json: %v\n", err)
			return exitUsage
		}
	}
	if cfg.withPeers || cfg.withActivations || cfg.report != "" {
		end, err := scratch()
		if err != nil {
			fmt.Fprintf(stderr, "bench: %v\n", err)
			return exitFailed
		}
		defer end()
	}
	r := newReport(set, cfg)
	r.header(stdout)
	switch {
	case cfg.report != "":
		r.Command = "bench " + strings.Join(args, " ")
		err = cfg.measureReport(r, set, stdout, stderr, startPeer)
	case cfg.bound:
		r.Bounds, err = cfg.bounds(set, stdout, nil)
	case cfg.withActivations:
		p := startProgress(stderr, len(set.cases)*len(cfg.workers)*len(activationList))
		r.Activations, err = cfg.activations(set, stdout, p, startPeer)
		p.stop()
	case cfg.withData:
		p := startProgress(stderr, cfg.kindsWork(set))
		r.Kinds, err = cfg.kinds(set, stdout, p)
		p.stop()
		if err == nil {
			fmt.Fprintln(stdout)
			kindsSummary(stdout, r.Kinds)
		}
	case cfg.withPeers:
		p := startProgress(stderr, cfg.peersWork(set))
		r.Peers, err = cfg.peers(set, stdout, p, startPeer)
		p.stop()
		if err == nil {
			r.Peers.summary(stdout)
		}
	default:
		if r.Rows, err = cfg.rows(set, stderr); err == nil {
			r.table(stdout)
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	if file != nil {
		if err := errors.Join(r.json(file), file.Close()); err != nil {
			fmt.Fprintf(stderr, "bench: -json: %v\n", err)
			return exitUsage
		}
	}
	if cfg.report != "" {
		return cfg.writeReport(r, stdout, stderr)
	}
	if r.failed() {
		return exitFailed
	}
	return exitOK
}

// writeReport ends a run with -report.
func (c config) writeReport(r *report, stdout, stderr io.Writer) int {
	if err := r.write(c.report, c.memoryBandwidth); err != nil {
		fmt.Fprintf(stderr, "bench: -report: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "\nThe report is %s.\n", filepath.Join(c.report, pageFile))
	if r.failed() {
		return exitFailed
	}
	return exitOK
}

// config holds the flags.
type config struct {
	shapes  string
	listed  caseSet // the tensors of shapes, if that is a list
	only    string
	ops     []op
	json    string
	workers []int // several only with bound and peers
	batch   int
	path    batchnorm.Path // of bound and peers
	effort  effort

	bound, withPeers, withActivations, withData bool // at most one of them and report

	report string // a folder
	from   string // a file

	peerOps         []op
	peerEffort      effort
	contests        []contest
	maxMB, sweepMB  int
	memoryBandwidth float64 // GB/s, for the traffic model
}

// The values of -shapes.
const (
	shapesImages   = "images"
	shapesResNet50 = "resnet50"
	shapesGoal     = "goal"
	shapesData     = "data"
)

// maxBatch keeps everything within 8 GB of memory.
const maxBatch = 128

// boundReps is the default of -reps with -bound.
const boundReps = 15

// dataMaxTime is the default of -maxtime with -data.
const dataMaxTime = 200 * time.Millisecond

// reportMaxTime is the default of -maxtime for the bounds of a report: there are
// many, some of large tensors.
const reportMaxTime = 2 * time.Second

// Defaults with -peers, which has many cells and slow peers.
const (
	peerReps    = 3
	peerMinTime = 50 * time.Millisecond
	peerMaxTime = 500 * time.Millisecond
	peerMB      = 128
)

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// parse returns the flags. For -h it prints the usage to w.
func parse(args []string, w io.Writer) (config, error) {
	var c config
	var opNames, path, workers, with string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run prints errors
	f.StringVar(&c.shapes, "shapes", shapesImages, "`set` of tensors: images (2,000 real ones, built in), resnet50 (generated),\n"+
		"goal (resnet50 and others, each with its batch; only with -bound, -peers and -report, and the default of these two),\n"+
		"data (three of about 8 MB and less, the default of -data),\n"+
		"or a list like "+shapesExample+": NxCxHxW in either layout of images, and NxC")
	f.StringVar(&c.only, "only", "", "of these only the tensors whose layout and shape, like nchw 64x56x56, contain this `text`")
	f.StringVar(&opNames, "ops", "", "`names` of operations, separated by commas: "+strings.Join(names(ops), ", ")+";\n"+
		"with -peers "+strings.Join(names(peerOps), ", ")+" (default all)")
	f.StringVar(&c.json, "json", "", "write every row to this `file`")
	f.StringVar(&workers, "workers", "1", "`number` of goroutines per call; with -bound, -peers and -report "+
		"also several numbers, separated by commas\n"+
		"(the last two: by default 1 and the number of cores)")
	f.IntVar(&c.batch, "batch", 32, fmt.Sprintf("batch size of resnet50, at most %d", maxBatch))
	f.IntVar(&c.effort.reps, "reps", 5, fmt.Sprintf(
		"time every path at least so many times (alternate so often with -bound, %d by default, and with -peers, %d)", boundReps, peerReps))
	f.DurationVar(&c.effort.minTime, "mintime", 100*time.Millisecond, fmt.Sprintf("and at least so long (with -peers by default %v)", peerMinTime))
	f.DurationVar(&c.effort.maxTime, "maxtime", 20*time.Second, fmt.Sprintf("with -bound, -peers, -activations, -data and -report: "+
		"stop after so long, even before -reps and -mintime\n"+
		"(by default %v for peers, %v for kinds of data, and %v for the bounds of a report)", peerMaxTime, dataMaxTime, reportMaxTime))
	f.BoolVar(&c.bound, "bound", false, "compare with the time of the memory traffic that can't be avoided; check nothing")
	f.BoolVar(&c.withPeers, "peers", false, "compare with other implementations, in turn with their calls")
	f.BoolVar(&c.withActivations, "activations", false, "compare every activation with the identity, and with PyTorch")
	f.BoolVar(&c.withData, "data", false, "compare every kind of data, like dead channels, zero gradients or NaN, with usual data")
	f.StringVar(&with, "with", "", "with -peers: `names` of peers, separated by commas: "+contestNames()+" (default all)")
	f.IntVar(&c.maxMB, "maxmb", peerMB, "with -peers: leave out tensors of more than so many `MB`")
	f.StringVar(&c.report, "report", "", "measure bounds, tensors of all sizes and peers, and write a page to this `folder`, with results.json\n"+
		"and benchmarks.txt for benchstat; flags for -bound and -peers apply, and -with none leaves out peers")
	f.StringVar(&c.from, "from", "", "with -report: measure nothing, take the results from this `file`, which -report or -json wrote")
	f.IntVar(&c.sweepMB, "sweepmb", sweepMax>>20, "with -report: go up to tensors of so many `MB`")
	f.Float64Var(&c.memoryBandwidth, "membw", defaultBandwidth, "with -bound and -report: "+
		"the `GB/s` of memory that the prediction for many workers assumes")
	f.StringVar(&path, "path", batchnorm.DefaultPath().String(),
		"with -bound, -peers, -activations, -data and -report: the `path` to time, of "+strings.Join(names(batchnorm.Paths()), ", "))
	f.Usage = func() {}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(w, "Usage: bench [flags]\n\nChecks and times batch normalization on this machine.\n\n")
			f.SetOutput(w)
			f.PrintDefaults()
		}
		return c, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	c.setDefaults(given, &workers)
	several := c.bound || c.withPeers || c.withActivations || c.withData || c.report != ""
	if c.withActivations && !given["only"] && !isShapeList(c.shapes) {
		c.only = activationsOnly
	}
	switch {
	case btoi(c.bound)+btoi(c.withPeers)+btoi(c.withActivations)+btoi(c.withData)+btoi(c.report != "") > 1:
		return c, errors.New("-bound, -peers, -activations, -data and -report are runs of their own")
	case c.withData && given["ops"]:
		return c, errors.New("-ops is not for -data")
	case !c.withPeers && c.report == "" && (given["with"] || given["maxmb"]):
		return c, errors.New("-with and -maxmb are for -peers and -report only")
	case c.report == "" && (given["from"] || given["sweepmb"]):
		return c, errors.New("-from and -sweepmb are for -report only")
	case c.report != "" && given["ops"]:
		return c, errors.New("-ops is not for -report")
	case !c.bound && c.report == "" && given["membw"]:
		return c, errors.New("-membw is for -bound and -report only")
	case c.maxMB < 1:
		return c, fmt.Errorf("-maxmb is %d, must be at least 1", c.maxMB)
	case c.sweepMB < 1:
		return c, fmt.Errorf("-sweepmb is %d, must be at least 1", c.sweepMB)
	case !(c.memoryBandwidth > 0):
		return c, fmt.Errorf("-membw is %v, must be more than 0", c.memoryBandwidth)
	case f.NArg() > 0:
		return c, fmt.Errorf("argument %q is not a flag", f.Arg(0))
	case !slices.Contains([]string{shapesImages, shapesResNet50, shapesGoal, shapesData}, c.shapes) && !isShapeList(c.shapes):
		return c, fmt.Errorf("-shapes is %q, must be %s, %s, %s, %s or a list like %s",
			c.shapes, shapesImages, shapesResNet50, shapesGoal, shapesData, shapesExample)
	case given["batch"] && c.shapes != shapesResNet50:
		return c, fmt.Errorf("-batch is for -shapes %s only: the others have their own", shapesResNet50)
	case c.batch < 1 || c.batch > maxBatch:
		return c, fmt.Errorf("-batch is %d, must be from 1 to %d", c.batch, maxBatch)
	case c.effort.reps < 1:
		return c, fmt.Errorf("-reps is %d, must be at least 1", c.effort.reps)
	case c.effort.minTime < 0:
		return c, fmt.Errorf("-mintime is %v, must not be negative", c.effort.minTime)
	case c.effort.maxTime < 0:
		return c, fmt.Errorf("-maxtime is %v, must not be negative", c.effort.maxTime)
	}
	if isShapeList(c.shapes) {
		most := mostValues
		if !several {
			most = mostChecked
		}
		var err error
		if c.listed, err = listedSet(c.shapes, most); err != nil {
			return c, err
		}
	}
	for field := range strings.SplitSeq(workers, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return c, fmt.Errorf("-workers is %q, must be a number or several, separated by commas", workers)
		}
		if n < 1 {
			return c, fmt.Errorf("-workers is %d, must be at least 1", n)
		}
		c.workers = append(c.workers, n)
	}
	if !several {
		switch {
		case c.shapes == shapesGoal:
			return c, fmt.Errorf("-shapes %s is for -bound, -peers and -report only: to check it takes much memory", shapesGoal)
		case len(c.workers) > 1:
			return c, errors.New("-workers is a list, which is for -bound, -peers and -report only")
		case given["path"], given["maxtime"]:
			return c, errors.New("-path and -maxtime are for -bound, -peers, -activations, -data and -report only")
		}
	}
	var err error
	if c.withPeers {
		c.peerOps, err = choose("-ops", opNames, given["ops"], peerOps)
	} else {
		c.peerOps = peerOps
		c.ops, err = choose("-ops", opNames, given["ops"], ops)
	}
	if err != nil {
		return c, err
	}
	if c.report != "" && with == "none" {
		c.contests = nil
	} else if c.contests, err = choose("-with", with, given["with"], contests); err != nil {
		return c, err
	}
	i := slices.Index(names(batchnorm.Paths()), path)
	if i < 0 {
		return c, fmt.Errorf("-path is %q, must be of %s", path, strings.Join(names(batchnorm.Paths()), ", "))
	}
	c.path = batchnorm.Paths()[i]
	return c, nil
}

// setDefaults sets the flags that were not given, by the kind of run.
func (c *config) setDefaults(given map[string]bool, workers *string) {
	c.peerEffort = c.effort
	if !given["reps"] {
		c.peerEffort.reps = peerReps
		if c.bound || c.withData || c.report != "" {
			c.effort.reps = boundReps
		}
	}
	if c.report != "" && !given["maxtime"] {
		c.effort.maxTime = reportMaxTime
	}
	if c.withData && !given["maxtime"] {
		c.effort.maxTime = dataMaxTime
	}
	if c.withData && !given["shapes"] {
		c.shapes = shapesData
	}
	if !given["mintime"] {
		c.peerEffort.minTime = peerMinTime
	}
	if !given["maxtime"] {
		c.peerEffort.maxTime = peerMaxTime
	}
	if !given["shapes"] && (c.withPeers || c.withActivations || c.report != "") {
		c.shapes = shapesGoal
	}
	if !c.withPeers && c.report == "" {
		return
	}
	if n := runtime.GOMAXPROCS(0); !given["workers"] && n > 1 {
		*workers = fmt.Sprintf("1,%d", n)
	}
}

// choose returns the elements of list that a flag names, or all if it was not given.
func choose[T fmt.Stringer](flag, text string, given bool, list []T) ([]T, error) {
	if !given {
		return list, nil
	}
	var chosen []T
	for name := range strings.SplitSeq(text, ",") {
		i := slices.Index(names(list), name)
		if i < 0 {
			return nil, fmt.Errorf("%s has %q, must be of %s", flag, name, strings.Join(names(list), ", "))
		}
		chosen = append(chosen, list[i])
	}
	return chosen, nil
}

// names returns the names of the elements of list.
func names[T fmt.Stringer](list []T) []string {
	var all []string
	for _, v := range list {
		all = append(all, v.String())
	}
	return all
}

// load returns the tensors that the flags select.
func (c config) load() (caseSet, error) {
	var set caseSet
	switch {
	case isShapeList(c.shapes):
		set = c.listed
	case c.shapes == shapesResNet50:
		set = resnet50Set(c.batch)
	case c.shapes == shapesGoal:
		set = goalSet()
	case c.shapes == shapesData:
		set = kindsSet()
	default:
		var err error
		if set, err = imageSet(); err != nil {
			return set, err
		}
	}
	set.cases = slices.DeleteFunc(set.cases, func(t testCase) bool {
		return !strings.Contains(t.layout+" "+t.shape, c.only)
	})
	return set, nil
}

// rows runs everything. Progress goes to w.
func (c config) rows(set caseSet, w io.Writer) ([]row, error) {
	total := 0
	for _, t := range set.cases {
		total += t.dims.Len() * (1 + 2*len(c.ops)) // making the data; checking and timing
	}
	p := startProgress(w, total)
	defer p.stop()
	var rows []row
	for _, t := range set.cases {
		more, err := c.caseRows(t, p)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", t.layout, t.shape, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// caseRows runs all operations on all paths for one tensor.
func (c config) caseRows(t testCase, p *progress) ([]row, error) {
	p.describe(fmt.Sprintf("%s %s: data", t.layout, t.shape))
	in, err := t.inputs(c.ops, kink)
	if err != nil {
		return nil, err
	}
	p.add(t.dims.Len())
	paths := batchnorm.Paths()
	outs := make([]*outputs, len(paths))
	for i := range outs {
		outs[i] = newOutputs(in)
	}
	var rows []row
	for _, o := range c.ops {
		p.describe(fmt.Sprintf("%s %s: %s", t.layout, t.shape, o.name))
		runs := make([]func() error, len(paths))
		for i, path := range paths {
			plan, err := o.plan(t.dims, path, c.workers[0])
			if err != nil {
				return nil, err
			}
			runs[i] = func() error { return o.run(plan, in, outs[i]) }
			outs[i].reset(in)
			if err := runs[i](); err != nil {
				return nil, fmt.Errorf("%s on path %v: %w", o.name, path, err)
			}
		}
		verdicts := o.check(in, outs, p.add)
		times, err := c.effort.measure(runs)
		if err != nil {
			return nil, err
		}
		p.add(t.dims.Len())
		pureGo := times[len(times)-1]
		for i, v := range verdicts {
			rows = append(rows, row{
				Operation:   o.name,
				Layout:      t.layout,
				Shape:       t.shape,
				Path:        paths[i].String(),
				Elements:    t.dims.Len(),
				Bytes:       o.bytes * t.dims.Len(),
				Nanoseconds: times[i].Nanoseconds(),
				GBPerSecond: float64(o.bytes*t.dims.Len()) / float64(times[i].Nanoseconds()),
				TimesGo:     float64(pureGo) / float64(times[i]),
				Error:       v.errors[o.results(outs[i])[0].name],
				Errors:      v.errors,
				Failures:    v.failures,
			})
		}
	}
	return rows, nil
}
