// Command compare checks that this package and its peers compute batch normalization: it
// compares all or some of them with the reference, and exits with 1 when one is off. It
// prints rough times, too. With other means of the data, errors are printed, not judged.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/peers/client"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

func main() {
	threads := flag.Int("threads", 1, "threads per call")
	times := flag.Int("times", 5, "runs of each operation; the shortest is printed")
	mean := flag.Float64("mean", usualMean, "of the data, whose standard deviation is 2")
	all := append([]string{ownName}, client.Names()...)
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: compare [flags] [%s]...\n", strings.Join(all, "|"))
		flag.PrintDefaults()
	}
	flag.Parse()
	names := flag.Args()
	if len(names) == 0 {
		names = all
	}
	ok := true
	for _, name := range names {
		if err := compare(os.Stdout, name, *mean, max(*threads, 1), max(*times, 1)); errors.Is(err, client.ErrMissing) {
			fmt.Printf("%v\n\n", err)
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			ok = false
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// bound is loose: it finds another formula or another epsilon, and allows rounding of data
// with the usual mean.
const (
	bound     = 1e-4
	usualMean = 0.5
)

var (
	shapes  = [][4]int{{8, 64, 16, 16}, {4, 5, 7, 7}, {32, 10, 1, 1}}
	layouts = []peer.Layout{peer.NCHW, peer.NHWC, peer.NCHW8c}
	ops     = []peer.Op{peer.Forward, peer.Inference, peer.Backward}
)

// implementation is a peer, or this package.
type implementation interface {
	Load(p peer.Problem, threads int) error
	Run(op peer.Op, times int) ([]time.Duration, error)
	Outputs() (peer.Outputs, error)
	Close() error
}

// start returns an implementation, and its name with its version.
func start(name string) (implementation, string, error) {
	if name == ownName {
		return &own{}, "this package, path " + batchnorm.DefaultPath().String(), nil
	}
	p, err := client.Start(name)
	if err != nil {
		return nil, "", err
	}
	return p, p.Name, nil
}

// compare runs one implementation on everything and prints a table.
func compare(w io.Writer, name string, mean float64, threads, times int) error {
	p, version, err := start(name)
	if err != nil {
		return err
	}
	defer p.Close()
	fmt.Fprintf(w, "%s: %s\n", name, version)
	var off []string
	for _, s := range shapes {
		for _, layout := range layouts {
			for _, relu := range []bool{false, true} {
				what := fmt.Sprintf("%dx%dx%dx%d %s", s[0], s[1], s[2], s[3], layout)
				if relu {
					what += " relu"
				}
				problem, ref := makeProblem(s, layout, relu, mean)
				took, err := run(p, problem, threads, times)
				if errors.Is(err, peer.ErrUnsupported) {
					fmt.Fprintf(w, "  %-24s %v\n", what, err)
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %s: %w", name, what, err)
				}
				out, err := p.Outputs()
				if err != nil {
					return fmt.Errorf("%s: %s: %w", name, what, err)
				}
				fmt.Fprintf(w, "  %-24s", what)
				for i, worst := range errorsOf(problem, ref, out) {
					if !(worst <= bound) && took[i] != 0 && mean == usualMean { // NaN among them
						off = append(off, fmt.Sprintf("%s %s is off by %.1e", what, ops[i], worst))
					}
					if took[i] == 0 {
						fmt.Fprintf(w, "  %9s not offered      ", ops[i])
					} else {
						fmt.Fprintf(w, "  %9s %.0e %7.1f µs", ops[i], worst, float64(took[i])/1e3)
					}
				}
				fmt.Fprintln(w)
			}
		}
	}
	fmt.Fprintln(w)
	if off != nil {
		return fmt.Errorf("%s: %s", name, strings.Join(off, "; "))
	}
	return nil
}

// run runs every operation and returns the shortest time of each: 0 for an operation that
// is not offered.
func run(p implementation, problem peer.Problem, threads, times int) ([]time.Duration, error) {
	if err := p.Load(problem, threads); err != nil {
		return nil, err
	}
	shortest := make([]time.Duration, len(ops))
	for i, op := range ops {
		took, err := p.Run(op, times)
		if errors.Is(err, peer.ErrUnsupported) {
			continue
		}
		if err != nil {
			return nil, err
		}
		shortest[i] = slices.Min(took)
	}
	return shortest, nil
}

func makeProblem(s [4]int, layout peer.Layout, relu bool, mean float64) (peer.Problem, reference.Problem) {
	p := peer.Problem{N: s[0], C: s[1], H: s[2], W: s[3], Layout: layout, ReLU: relu, Epsilon: 1e-5}
	p.X = gen.Normal(1, p.Len(), mean, 2)
	p.DY = gen.Normal(2, p.Len(), 0.1, 1)
	p.Gamma = gen.Uniform(3, p.C, 0.5, 1.5)
	p.Beta = gen.Normal(4, p.C, 0, 0.5)
	p.Mean = gen.Normal(5, p.C, mean, 0.1)
	p.Var = gen.Uniform(6, p.C, 3, 5)
	ref := reference.Problem{Activation: "identity", Epsilon: p.Epsilon, X: p.X, DY: p.DY, Gamma: p.Gamma, Beta: p.Beta}
	ref.Outer, ref.Channels, ref.Inner = p.Shape()
	if relu {
		ref.Activation = "relu"
		// Rounding may carry a value beside the kink across it. With dy 0 it has no part in
		// the gradients.
		for i, z := range reference.Z(ref) {
			if math.Abs(z) < bound {
				p.DY[i] = 0
			}
		}
	}
	return p, ref
}

// errorsOf returns the largest error of each operation.
func errorsOf(p peer.Problem, ref reference.Problem, out peer.Outputs) []float64 {
	g := reference.Backward(ref)
	return []float64{
		worst(out.Y, reference.Forward(ref).Y),
		worst(out.Inference, reference.Inference(ref, p.Mean, p.Var)),
		max(worst(out.DX, g.DX), worst(out.DGamma, g.DGamma), worst(out.DBeta, g.DBeta)),
	}
}

// worst returns the largest error relative to the largest value, NaN if there
// is one.
func worst(got []float32, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var off, size float64
	for i, v := range got {
		off = max(off, math.Abs(float64(v)-want[i]))
		size = max(size, math.Abs(want[i]))
	}
	return off / size
}
