// Command bench checks and times batch normalization on the machine it runs
// on: every path against every other, bit by bit, and against a reference in
// float64. It exits with 1 when a check fails.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fusedbn/batchnorm"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1 // a check failed
	exitUsage  = 2 // the flags can't be followed
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
	var file io.WriteCloser
	if cfg.json != "" { // before the work: it would be a pity afterwards
		if file, err = os.Create(cfg.json); err != nil {
			fmt.Fprintf(stderr, "bench: -json: %v\n", err)
			return exitUsage
		}
	}
	set, err := cfg.load()
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	r := newReport(set, cfg.workers)
	r.header(stdout)
	r.Rows, err = cfg.rows(set, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	r.table(stdout)
	if file != nil {
		if err := errors.Join(r.json(file), file.Close()); err != nil {
			fmt.Fprintf(stderr, "bench: -json: %v\n", err)
			return exitUsage
		}
	}
	if r.failed() {
		return exitFailed
	}
	return exitOK
}

// config is the flags.
type config struct {
	shapes  string
	json    string
	workers int
	batch   int
	effort  effort
}

// The values of -shapes.
const (
	shapesImages   = "images"
	shapesResNet50 = "resnet50"
)

// maxBatch keeps everything within 8 GB of memory.
const maxBatch = 128

// parse prints the usage to w when that is asked for.
func parse(args []string, w io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run prints errors
	f.StringVar(&c.shapes, "shapes", shapesImages, "`set` of tensors: images (2,000 real ones, built in) or resnet50 (generated)")
	f.StringVar(&c.json, "json", "", "write every row to this `file`")
	f.IntVar(&c.workers, "workers", 1, "goroutines per call")
	f.IntVar(&c.batch, "batch", 32, fmt.Sprintf("batch size of resnet50, at most %d", maxBatch))
	f.IntVar(&c.effort.reps, "reps", 5, "time every path at least so many times")
	f.DurationVar(&c.effort.minTime, "mintime", 100*time.Millisecond, "and at least so long")
	f.Usage = func() {}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(w, "Usage: bench [flags]\n\nChecks and times batch normalization on this machine.\n\n")
			f.SetOutput(w)
			f.PrintDefaults()
		}
		return c, err
	}
	batchGiven := false
	f.Visit(func(f *flag.Flag) { batchGiven = batchGiven || f.Name == "batch" })
	switch {
	case f.NArg() > 0:
		return c, fmt.Errorf("argument %q is not a flag", f.Arg(0))
	case c.shapes != shapesImages && c.shapes != shapesResNet50:
		return c, fmt.Errorf("-shapes is %q, must be %s or %s", c.shapes, shapesImages, shapesResNet50)
	case batchGiven && c.shapes != shapesResNet50:
		return c, fmt.Errorf("-batch is for -shapes %s only: the images are one batch", shapesResNet50)
	case c.batch < 1 || c.batch > maxBatch:
		return c, fmt.Errorf("-batch is %d, must be from 1 to %d", c.batch, maxBatch)
	case c.workers < 1:
		return c, fmt.Errorf("-workers is %d, must be at least 1", c.workers)
	case c.effort.reps < 1:
		return c, fmt.Errorf("-reps is %d, must be at least 1", c.effort.reps)
	case c.effort.minTime < 0:
		return c, fmt.Errorf("-mintime is %v, must not be negative", c.effort.minTime)
	}
	return c, nil
}

func (c config) load() (caseSet, error) {
	if c.shapes == shapesResNet50 {
		return resnet50Set(c.batch), nil
	}
	return imageSet()
}

// rows runs everything. Progress goes to w.
func (c config) rows(set caseSet, w io.Writer) ([]row, error) {
	total := 0
	for _, t := range set.cases {
		total += t.dims.Len() * (1 + 2*len(ops)) // making the data; checking and timing
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
	in, err := t.inputs()
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
	for _, o := range ops {
		p.describe(fmt.Sprintf("%s %s: %s", t.layout, t.shape, o.name))
		runs := make([]func() error, len(paths))
		for i, path := range paths {
			plan, err := o.plan(t.dims, path, c.workers)
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
