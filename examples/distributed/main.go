// Command distributed trains the network of section 4.1 of Ioffe and Szegedy's
// paper on batch normalization (arXiv 1502.03167) on the images of Fashion-MNIST
// with several processes. Each has a part of every batch, MPI adds the gradients, and batch
// norm takes its statistics over all parts. The command compares this with statistics of
// each process's own part, and with one process.
//
// Without mpirun the processes are goroutines.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/mpi"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // wrong flags
)

type config struct {
	recipe
	ranks   int // of goroutines
	timeout time.Duration
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("distributed", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&c.units, "units", 100, "units of each of the three hidden layers")
	flags.IntVar(&c.batch, "batch", 4, "images of each rank in a step")
	flags.IntVar(&c.steps, "steps", 2000, "steps of each training")
	flags.Float64Var(&c.rate, "rate", 0.1, "learning rate")
	flags.Uint64Var(&c.seed, "seed", 1, "seed of the weights and of the order of images")
	flags.IntVar(&c.test, "test", 10000, "images of the test set")
	flags.IntVar(&c.ranks, "ranks", 4, "without mpirun: how many goroutines")
	flags.DurationVar(&c.timeout, "timeout", batchnorm.DefaultTimeout, "how long a rank waits for another")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("there are no arguments beside flags, got %q", flags.Args())
	case c.units < 1 || c.steps < 1 || c.ranks < 1 || c.test < 1:
		return c, errors.New("-units, -steps, -ranks and -test must be at least 1")
	case c.batch < 2:
		return c, errors.New("-batch must be at least 2: each rank's statistics need two values")
	case c.timeout <= 0 || !(c.rate > 0):
		return c, errors.New("-timeout and -rate must be positive")
	}
	return c, nil
}

func run(args []string, stdout, stderr io.Writer) int {
	c, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "distributed: %v (-h lists the flags)\n", err)
		return exitUsage
	}
	if err := c.run(stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "distributed: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func (c *config) run(stdout, stderr io.Writer) error {
	train, test, err := fashion.Builtin()
	if err != nil {
		return err
	}
	if !mpi.Launched() {
		return c.goroutines(train, test, stdout, stderr)
	}
	comm, err := mpi.Init(c.timeout)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("%d processes, %s", comm.Size(), mpi.Library())
	if err := c.rank(comm, where, train, test, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "distributed: %v\n", err)
		return mpi.Abort(exitFailed) // the other ranks need not wait
	}
	return mpi.Finalize()
}

func (c *config) goroutines(train, test *fashion.Set, stdout, stderr io.Writer) error {
	all, err := batchnorm.NewLocalCollective(c.ranks, c.timeout)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("%d goroutines (no mpirun)", c.ranks)
	errs := make([]error, c.ranks)
	var wg sync.WaitGroup
	for rank, l := range all {
		wg.Go(func() { errs[rank] = c.rank(l, where, train, test, stdout, stderr) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// errChecks is the error of a check that has failed, after it was printed.
var errChecks = errors.New("not all that should hold does")

// rank is the whole program on one rank. Rank 0 prints.
func (c *config) rank(l batchnorm.Collective, where string, train, test *fashion.Set, stdout, stderr io.Writer) error {
	progress := func(int, float64) {}
	done := func() {}
	if l.Rank() == 0 {
		bar := newProgress(stderr, 4*c.steps+2*compareSteps+2*segmentSteps)
		progress = func(n int, loss float64) {
			bar.Describe(fmt.Sprintf("loss %.3f", loss))
			bar.Add(n)
		}
		done = func() { bar.Finish() }
	}
	w, err := newWorker(l, train, test, progress)
	if err != nil {
		return err
	}
	names, results, checks, err := w.experiment(c.recipe)
	done()
	if err != nil {
		return err
	}
	failed := false
	for _, k := range checks {
		failed = failed || !k.ok
	}
	if l.Rank() == 0 {
		fmt.Fprintf(stdout, "%s; %d images for each in a step, %d steps\n\n", where, c.batch, c.steps)
		fmt.Fprintf(stdout, "%-24s %6s %9s %8s %12s  %s\n", "batch norm", "loss", "accuracy", "time", "in exchange", "network of rank 0")
		for i, r := range results {
			fmt.Fprintf(stdout, "%-24s %6.3f %7.2f %% %6.1f s %10.0f %%  %016x\n",
				names[i], r.loss, 100*r.accuracy, r.time.Seconds(), 100*r.share(), r.hashes[0])
		}
		fmt.Fprintln(stdout)
		for _, k := range checks {
			verdict := "yes"
			if !k.ok {
				verdict = "NO"
			}
			fmt.Fprintf(stdout, "%s: %s\n", k.what, verdict)
		}
	}
	if failed {
		return errChecks
	}
	return nil
}

// newProgress returns a bar that is removed when n steps are done. It is drawn seldom into
// a file, where every drawing stays.
func newProgress(w io.Writer, n int) *progressbar.ProgressBar {
	interval := 10 * time.Second
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		interval = 100 * time.Millisecond
	}
	return progressbar.NewOptions(n,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(interval),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish())
}
