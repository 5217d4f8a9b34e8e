// Command paper repeats the experiment of section 4.1 of Ioffe and Szegedy's
// paper on batch normalization (arXiv 1502.03167), and measures common claims about batch
// norm, on the images of Fashion-MNIST. Its conclusions are made from the numbers of the
// run.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // wrong flags
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "paper: %v (-h lists the flags)\n", err)
		return exitUsage
	}
	if cfg.hash {
		err := cfg.load()
		if err == nil {
			err = cfg.lab.printHash(stdout, stderr)
		}
		if err != nil {
			fmt.Fprintf(stderr, "paper: %v\n", err)
			return exitFailed
		}
		return exitOK
	}
	if cfg.report != "" { // before the work, so that a wrong path costs no training
		if err := os.MkdirAll(cfg.report, 0o755); err != nil {
			fmt.Fprintf(stderr, "paper: -report: %v\n", err)
			return exitUsage
		}
	}
	if err := cfg.load(); err != nil {
		fmt.Fprintf(stderr, "paper: %v\n", err)
		return exitFailed
	}
	r, err := cfg.lab.investigate(cfg.sections, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "paper: %v\n", err)
		return exitFailed
	}
	r.Command = strings.Join(append([]string{"go run ./examples/paper"}, args...), " ")
	r.text(stdout)
	if cfg.report != "" {
		if err := r.save(cfg.report); err != nil {
			fmt.Fprintf(stderr, "paper: -report: %v\n", err)
			return exitFailed
		}
	}
	return exitOK
}

// config holds the flags.
type config struct {
	lab      lab
	hash     bool   // nothing but the hash of a trained network
	dir      string // of the original files; empty: the images built in
	report   string
	sections []section
}

// paperBatch and paperSteps are the paper's.
const (
	paperBatch = 60
	paperSteps = 50000
)

// parse returns the flags. For -h it prints the usage.
func parse(args []string, w io.Writer) (*config, error) {
	c := &config{lab: lab{probe: probeImages, final: finalImages, companies: companies, timedSteps: timedSteps}}
	var path, only string
	f := flag.NewFlagSet("paper", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run prints errors
	f.StringVar(&c.dir, "data", installed(fashion.DefaultDir), "`folder` of the four files of Fashion-MNIST; "+
		"empty: the images built in, which are the same")
	f.Uint64Var(&c.lab.seed, "seed", 1, "`seed` of the initial weights and of the order of the images")
	f.IntVar(&c.lab.steps, "steps", 4000, fmt.Sprintf("`steps` of Figure 1 (in the paper %d)", paperSteps))
	f.IntVar(&c.lab.claimSteps, "claim-steps", 1200, "`steps` of every other training")
	f.IntVar(&c.lab.batch, "batch", paperBatch, "`images` of a step")
	f.Float64Var(&c.lab.rate, "rate", 0.1, "learning `rate`")
	f.StringVar(&only, "only", "", "of the sections only `these`, separated by commas: "+strings.Join(ids(sections), ", "))
	f.StringVar(&path, "path", batchnorm.DefaultPath().String(), "the `implementation` of batch norm, of "+strings.Join(pathNames(), ", "))
	f.IntVar(&c.lab.workers, "workers", runtime.GOMAXPROCS(0), "`trainings` at a time")
	f.StringVar(&c.report, "report", "", "write a page, index.html, and all plots as PNG and SVG to this `folder`")
	f.BoolVar(&c.hash, "hash", false, "train the network of Figure 1 with batch norm, print the SHA-256 of its parameters, and do nothing else")
	f.Usage = func() {}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(w, "Usage: paper [flags]\n\nTrains networks with and without batch norm, and says what the difference is.\n\n")
			f.SetOutput(w)
			f.PrintDefaults()
		}
		return nil, err
	}
	l := &c.lab
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("argument %q is not a flag", f.Arg(0))
	case l.steps < 1:
		return nil, fmt.Errorf("-steps is %d, must be at least 1", l.steps)
	case l.claimSteps < 1:
		return nil, fmt.Errorf("-claim-steps is %d, must be at least 1", l.claimSteps)
	case l.batch < 2 || l.batch > maxBatch:
		return nil, fmt.Errorf("-batch is %d, must be from 2 to %d", l.batch, maxBatch)
	case !(l.rate > 0 && l.rate <= maxRate):
		return nil, fmt.Errorf("-rate is %v, must be above 0 and at most %v", l.rate, maxRate)
	case l.workers < 1:
		return nil, fmt.Errorf("-workers is %d, must be at least 1", l.workers)
	}
	i := slices.Index(pathNames(), path)
	if i < 0 {
		return nil, fmt.Errorf("-path is %q, must be of %s", path, strings.Join(pathNames(), ", "))
	}
	l.path = batchnorm.Paths()[i]
	c.sections = sections
	if only != "" {
		c.sections = nil
		for id := range strings.SplitSeq(only, ",") {
			i := slices.Index(ids(sections), id)
			if i < 0 {
				return nil, fmt.Errorf("-only has %q, must be of %s", id, strings.Join(ids(sections), ", "))
			}
			c.sections = append(c.sections, sections[i])
		}
	}
	return c, nil
}

const (
	maxBatch = 10000
	maxRate  = 1e6
)

// installed returns dir if there is such a folder.
func installed(dir string) string {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return ""
	}
	return dir
}

func ids(sections []section) []string {
	var all []string
	for _, s := range sections {
		all = append(all, s.id)
	}
	return all
}

func pathNames() []string {
	var all []string
	for _, p := range batchnorm.Paths() {
		all = append(all, p.String())
	}
	return all
}

// load reads the images.
func (c *config) load() (err error) {
	l := &c.lab
	if c.dir == "" {
		l.data = "built in"
		l.train, l.test, err = fashion.Builtin()
	} else {
		l.data = "from " + c.dir
		l.train, l.test, err = fashion.Load(c.dir)
	}
	if err != nil {
		return err
	}
	if n := min(l.train.N, l.test.N); n < finalImages {
		return fmt.Errorf("there are %d training and %d test images, %d of each are needed", l.train.N, l.test.N, finalImages)
	}
	return nil
}

// investigate trains all networks that the sections need, and then measures. Progress goes
// to w.
func (l *lab) investigate(sections []section, w io.Writer) (*report, error) {
	recipes := map[string]recipe{}
	for _, s := range sections {
		s.recipes(l, func(name string, r recipe) { recipes[name] = r })
	}
	total := 0
	for _, r := range recipes {
		total += r.cost()
	}
	bar := newProgress(w, total, fmt.Sprintf("%d trainings", len(recipes)))
	traces, err := runAll(recipes, l.workers, func(n int) { bar.Add(n) })
	bar.Finish()
	if err != nil {
		return nil, err
	}
	r := &report{Settings: l.settings()}
	for _, norm := range both {
		if t := traces[paperName(norm)]; t != nil {
			r.Settings = append(r.Settings, fmt.Sprintf("The network of Figure 1 %s has the SHA-256 %s after %d steps, on every machine.",
				withName(norm), t.net.hash(), t.steps))
		}
	}
	for _, s := range sections {
		res, err := s.measure(l, traces)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.id, err)
		}
		r.add(s, res)
	}
	return r, nil
}

// printHash trains the network of Figure 1 with batch norm, and prints its hash, which
// is the same on every machine.
func (l *lab) printHash(stdout, stderr io.Writer) error {
	r := l.recipe(sigmoid, true, l.steps)
	r.points, r.probe, r.final = 1, probeBatch, probeBatch
	bar := newProgress(stderr, r.cost(), "training")
	t, err := r.run(func(n int) { bar.Add(n) })
	bar.Finish()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, t.net.hash())
	return err
}

// settings lists everything that decides the numbers.
func (l *lab) settings() []string {
	return []string{
		fmt.Sprintf("Fashion-MNIST, %s: %d training and %d test images; a pixel of at least %d of 255 is 1, any other 0.",
			l.data, l.train.N, l.test.N, fashion.Threshold),
		fmt.Sprintf("Stochastic gradient descent in batches of %d with the learning rate %v, without momentum or decay; "+
			"initial weights normal with deviation %v; seed %d. With and without batch norm: same weights, same images.",
			l.batch, l.rate, initialStd, l.seed),
		fmt.Sprintf("%d steps for Figure 1 (%d in the paper), %d for the rest.", l.steps, paperSteps, l.claimSteps),
		fmt.Sprintf("Accuracy in curves is over the first %d test images; "+
			"what a training settles at is the average of the last fifth of its curve.", l.probe),
		fmt.Sprintf("Batch norm on path %v of %s; %s/%s, %s.", l.path, strings.Join(pathNames(), ", "), runtime.GOOS, runtime.GOARCH, runtime.Version()),
	}
}
