// Train trains a small network of Gorgonia on Fashion-MNIST twice, step by step
// in turn: with gorgonia.BatchNorm, and with this package's in its place. Then it
// runs batch norm alone, forward and backward, both ways in turn. It prints
// losses, accuracies, errors against float64 and times.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"text/tabwriter"

	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/internal/compare"
)

func main() {
	log.SetFlags(0)
	steps := flag.Int("steps", 300, "how many mini-batches to train on")
	batch := flag.Int("batch", 64, "images in a mini-batch")
	workers := flag.Int("workers", 1, "goroutines for a batch norm of this package; Gorgonia's uses all processors")
	reps := flag.Int("reps", 30, "how often to run batch norm alone")
	flag.Parse()
	if flag.NArg() > 0 || *steps < 1 || *batch < 2 || *workers < 1 || *reps < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(os.Stdout, settings{*steps, *batch, *workers, *reps, 2000}); err != nil {
		log.Fatal(err)
	}
}

type settings struct {
	steps, batch, workers, reps, tested int
}

func run(w io.Writer, s settings) error {
	train, test, err := fashion.Builtin()
	if err != nil {
		return err
	}
	nets, err := trained(train, test, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d steps of %d images; convolution, batch norm, ReLU, fully connected, batch norm, ReLU, fully connected\n\n", s.steps, s.batch)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "batch norm\tfirst loss\tlast losses\ttest accuracy\tms per step\t")
	for _, n := range nets {
		last := compare.Mean(n.losses[len(n.losses)*9/10:])
		fmt.Fprintf(t, "%s\t%.6f\t%.4f\t%.4f\t%.2f\t\n", n.name, n.losses[0], last, n.accuracy, compare.Median(n.seconds)*1e3)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	first, largest := compare.Differences(nets[0].losses, nets[1].losses)
	fmt.Fprintf(w, "\nThe losses differ by %.2g in the first step, and by %.2g at most.\n\n", first, largest)

	fmt.Fprintln(w, "Batch norm alone, forward and backward. The graphs multiply y by dy and sum up; the last has no batch norm.")
	fmt.Fprintln(t, "x\tmean\terror of y, Gorgonia\tthis\terror of dx, Gorgonia\tthis\tms, Gorgonia\tthis\tnone\t")
	for _, c := range alone {
		r, err := c.measure(s)
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "%v\t%g\t%.1e\t%.1e\t%.1e\t%.1e\t%.2f\t%.2f\t%.2f\t\n",
			c.dims, c.mean, r[0].y, r[1].y, r[0].dx, r[1].dx,
			compare.Median(r[0].seconds)*1e3, compare.Median(r[1].seconds)*1e3, compare.Median(r[2].seconds)*1e3)
	}
	return t.Flush()
}
