// Command measure times synchronized batch norm against the unsynchronized one,
// and exchanges alone. It prints the tables of docs/distributed.md.
//
//	go build -tags mpi -o measure ./mpi/measure
//	mpirun -np 2 ./measure          # the calls, for ResNet-50's shapes, and the exchange alone
//	./measure -scale                # the model of the cost for up to 4096 ranks
//
// Without mpirun the ranks are goroutines.
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
	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/mpi"
)

type config struct {
	scale   bool
	ranks   int
	reps    int
	samples int
	model   model
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "measure:", err)
		if mpi.Launched() && mpi.Built() {
			mpi.Abort(1)
		}
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	var c config
	var alpha, near time.Duration
	var bandwidth float64
	flags := flag.NewFlagSet("measure", flag.ContinueOnError)
	flags.BoolVar(&c.scale, "scale", false, "print the model for many ranks, and measure nothing")
	flags.IntVar(&c.ranks, "ranks", 2, "without mpirun: how many goroutines")
	flags.IntVar(&c.reps, "reps", 200, "repetitions, of which the median counts")
	flags.IntVar(&c.samples, "samples", 8, "images of each rank")
	flags.DurationVar(&alpha, "alpha", 10*time.Microsecond, "with -scale: time of a message between nodes")
	flags.DurationVar(&near, "near", 1*time.Microsecond, "with -scale: time of a message within a node")
	flags.Float64Var(&bandwidth, "bandwidth", 5, "with -scale: GB/s of a rank")
	flags.IntVar(&c.model.node, "node", 16, "with -scale: ranks of a node, a power of two")
	flags.IntVar(&c.model.most, "most", 4096, "with -scale: the largest number of ranks")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || c.ranks < 1 || c.reps < 1 || c.samples < 1 || c.model.node < 1 || c.model.node&(c.model.node-1) != 0 ||
		c.model.most < 2 || alpha <= 0 || near <= 0 || !(bandwidth > 0) {
		return fmt.Errorf("a flag is out of range, or there are arguments: %q (-h lists the flags)", args)
	}
	if c.scale {
		c.model.far, c.model.near, c.model.beta = alpha.Seconds(), near.Seconds(), 1e-9/bandwidth
		c.model.print(out)
		return nil
	}
	if mpi.Launched() {
		comm, err := mpi.Init(0)
		if err != nil {
			return err
		}
		if err := c.measure(comm, mpi.Library(), out); err != nil {
			return err
		}
		return mpi.Finalize()
	}
	all, err := batchnorm.NewLocalCollective(c.ranks, 0)
	if err != nil {
		return err
	}
	errs := make([]error, c.ranks)
	var wg sync.WaitGroup
	for rank, l := range all {
		wg.Go(func() { errs[rank] = c.measure(l, "goroutines", out) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// timed adds up the time that a rank spends in exchanges.
type timed struct {
	batchnorm.Collective
	total time.Duration
}

func (t *timed) Exchange(recv, send [][]float64) error {
	begin := time.Now()
	defer func() { t.total += time.Since(begin) }()
	return t.Collective.Exchange(recv, send)
}

// resNet50 has the shapes of batch norm in ResNet-50: channels and pixels.
var resNet50 = [][2]int{
	{64, 112 * 112}, {64, 56 * 56}, {256, 56 * 56}, {128, 28 * 28}, {512, 28 * 28}, {256, 14 * 14}, {1024, 14 * 14}, {512, 7 * 7}, {2048, 7 * 7},
}

func (c *config) measure(l batchnorm.Collective, where string, out io.Writer) error {
	if l.Rank() != 0 {
		out = io.Discard
	}
	fmt.Fprintf(out, "%d ranks, %s\n\n", l.Size(), where)
	fmt.Fprintf(out, "exchange of every two ranks, microseconds by bytes\n")
	for _, n := range []int{1, 8, 64, 130, 514, 1026, 4098, 16386, 65538, 262146} {
		d, err := c.exchange(l, n)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%9d %9.2f\n", 8*n, d*1e6)
	}
	t := &timed{Collective: l}
	g, err := batchnorm.NewSyncGroup(t)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nboth exchanges of a pass and the merge between, microseconds by channels\n")
	for _, n := range []int{64, 128, 256, 512, 1024, 2048} {
		d, err := c.sum(g, 2*n)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%9d %9.2f\n", n, d*1e6)
	}
	fmt.Fprintf(out, "\n%d samples for each rank, microseconds without and with synchronization, share of the exchange in the latter\n", c.samples)
	fmt.Fprintf(out, "%-24s %29s %29s\n", "", "forward", "backward")
	for _, layout := range []string{"nchw", "nhwc"} {
		for _, s := range resNet50 {
			shape := batchnorm.Shape{Outer: c.samples, Channels: s[0], Inner: s[1]}
			if layout == "nhwc" {
				shape = batchnorm.Shape{Outer: c.samples * s[1], Channels: s[0], Inner: 1}
			}
			r, err := c.calls(g, t, shape)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s %4d channels, %5d px", layout, s[0], s[1])
			for _, r := range r {
				fmt.Fprintf(out, " %9.0f %9.0f %7.1f %%", r.plain*1e6, r.synced*1e6, 100*r.exchange/r.synced)
			}
			fmt.Fprintln(out)
		}
	}
	return nil
}

// exchange returns the median time in which all ranks exchange vectors of n.
func (c *config) exchange(l batchnorm.Collective, n int) (float64, error) {
	recv, send := make([][]float64, l.Size()), make([][]float64, l.Size())
	for i := range recv {
		if i != l.Rank() {
			recv[i], send[i] = make([]float64, n), make([]float64, n)
		}
	}
	var times []float64
	for range c.reps {
		const inner = 10
		begin := time.Now()
		for range inner {
			if err := l.Exchange(recv, send); err != nil {
				return 0, err
			}
		}
		times = append(times, time.Since(begin).Seconds()/inner)
	}
	return compare.Median(times), nil
}

// sum returns the median time of AllReduce of n values, which has the bytes of a pass
// over n/2 channels.
func (c *config) sum(g *batchnorm.SyncGroup, n int) (float64, error) {
	x := make([]float32, n)
	var times []float64
	for range 10 * c.reps {
		begin := time.Now()
		if err := g.AllReduce(x); err != nil {
			return 0, err
		}
		times = append(times, time.Since(begin).Seconds())
	}
	return compare.Median(times), nil
}

// timing has the seconds of an operation: unsynchronized, synchronized, and of these in
// exchanges.
type timing struct{ plain, synced, exchange float64 }

// calls times forward and backward of a shape, in turn without and with synchronization.
// All ranks meet before each call, so that the exchange waits only for ranks whose own pass
// takes longer.
func (c *config) calls(g *batchnorm.SyncGroup, t *timed, s batchnorm.Shape) (r [2]timing, err error) {
	n := s.Len()
	x, dy, y, dx := gen.Normal(1, n, 0, 1), gen.Normal(2, n, 0, 1), make([]float32, n), make([]float32, n)
	gamma, beta := gen.Normal(3, s.Channels, 1, 0.1), gen.Normal(4, s.Channels, 0, 0.1)
	mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
	dgamma, dbeta := make([]float32, s.Channels), make([]float32, s.Channels)
	plain, err := batchnorm.NewPlan(s)
	if err != nil {
		return r, err
	}
	synced, err := batchnorm.NewSyncPlan(g, s)
	if err != nil {
		return r, err
	}
	forward := batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, Mean: mean, InvStd: invstd}
	backward := batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd, DX: dx, DGamma: dgamma, DBeta: dbeta}
	meet := make([]float32, 1)
	var times [2][3][]float64
	reps := max(5, min(c.reps, 40_000_000/n))
	for rep := range reps + 2 {
		for op := range 2 {
			for k := range 2 {
				if err := g.AllReduce(meet); err != nil {
					return r, err
				}
				begin, exchanged := time.Now(), t.total
				switch {
				case op == 0 && k == 0:
					err = plain.Forward(forward)
				case op == 0:
					err = synced.Forward(forward)
				case k == 0:
					err = plain.Backward(backward)
				default:
					err = synced.Backward(backward)
				}
				if err != nil {
					return r, err
				}
				if rep < 2 {
					continue
				}
				times[op][k] = append(times[op][k], time.Since(begin).Seconds())
				if k == 1 {
					times[op][2] = append(times[op][2], (t.total - exchanged).Seconds())
				}
			}
		}
	}
	for op := range r {
		r[op] = timing{compare.Median(times[op][0]), compare.Median(times[op][1]), compare.Median(times[op][2])}
	}
	return r, nil
}
