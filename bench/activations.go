package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/peers/client"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// activationList has the activations that -activations compares with the identity.
var activationList = batchnorm.Activations()

// activationsOnly is the tensor of -activations unless -only says otherwise.
const activationsOnly = "32x64x56x56"

// activationsNote explains the table.
const activationsNote = `The first three numbers are the time with the activation over the time with the identity, in the
same run. The last two are PyTorch's time over ours, for forward with the activation (PyTorch's
native_batch_norm, then the activation) and for backward. All calls of a row and of the identity
alternate, and the least time of each counts. Results agree before anything is timed.`

// activationRow is one activation on one tensor. PyTorch's ratios are 0 if it is not
// there.
type activationRow struct {
	Activation string     `json:"activation"`
	Layout     string     `json:"layout"`
	Shape      string     `json:"shape"`
	Workers    int        `json:"workers"`
	Path       string     `json:"path"`
	OverPlain  [3]float64 `json:"over_identity"` // forward, inference, backward
	Torch      [2]float64 `json:"torch_over_ours"`
	Difference float64    `json:"difference"` // from PyTorch's results: root mean square, relative
}

// activations runs -activations. The rows are printed to w as they come.
func (c config) activations(set caseSet, w io.Writer, bar *progress, start func(string) (rival, string, error)) (rows []activationRow, err error) {
	torch, name, err := start("torch")
	switch {
	case errors.Is(err, client.ErrMissing):
		fmt.Fprintf(w, "PyTorch is left out: %v\n\n", err)
	case err != nil:
		return nil, err
	default:
		defer func() { err = errors.Join(err, torch.Close()) }()
		fmt.Fprintf(w, "with %s\n\n", name)
	}
	fmt.Fprintf(w, "%-6s  %-14s  %-18s  %7s  %9s  %8s  %14s  %15s\n",
		"layout", "shape", "activation", "forward", "inference", "backward", "PyTorch fwd", "PyTorch bwd")
	for _, t := range set.cases {
		for _, workers := range c.workers {
			in, err := t.inputs(peerOps, 0)
			if err != nil {
				return rows, err
			}
			for _, act := range activationList {
				bar.describe(fmt.Sprintf("%s %s: %v", t.layout, t.shape, act))
				row, err := c.activationRow(t, act, workers, in, torch)
				if err != nil {
					return rows, fmt.Errorf("%s %s, %v: %w", t.layout, t.shape, act, err)
				}
				rows = append(rows, row)
				fmt.Fprintf(w, "%-6s  %-14s  %-18s  %7.2f  %9.2f  %8.2f  %14s  %15s\n", row.Layout, row.Shape, row.Activation,
					row.OverPlain[0], row.OverPlain[1], row.OverPlain[2], orDash(row.Torch[0]), orDash(row.Torch[1]))
				bar.add(1)
			}
		}
	}
	fmt.Fprintf(w, "\n%s\n", activationsNote)
	return rows, nil
}

func orDash(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

func (c config) activationRow(t testCase, act batchnorm.Activation, workers int, in *inputs, torch rival) (activationRow, error) {
	row := activationRow{Activation: act.String(), Layout: t.layout, Shape: t.shape, Workers: workers, Path: c.path.String()}
	var plans [2]*batchnorm.Plan
	var err error
	for i, a := range []batchnorm.Activation{batchnorm.Identity, act} {
		if plans[i], err = batchnorm.NewPlan(t.dims, batchnorm.WithPath(c.path),
			batchnorm.WithWorkers(workers), batchnorm.WithActivation(a)); err != nil {
			return row, err
		}
	}
	kinds := []opKind{forward, inference, backward}
	out := newOutputs(in)
	// The first call of each operation is not used: its caches hold the tensors of
	// another operation. The others are in an order that favours neither plan.
	order := [...]*batchnorm.Plan{plans[0], plans[0], plans[1], plans[1], plans[0]}
	var runs []func() error
	for _, kind := range kinds {
		for _, p := range order {
			runs = append(runs, func() error { return op{kind: kind}.run(p, in, out) })
		}
	}
	// PyTorch's calls are timed on its side.
	var theirs [2]time.Duration
	offered := torch != nil
	if offered {
		problem := t.problem(in, false)
		problem.Activation = act.String()
		switch err := torch.Load(problem, workers); {
		case errors.Is(err, peer.ErrUnsupported):
			offered = false
		case err != nil:
			return row, err
		}
	}
	if offered {
		if row.Difference, err = agree(torch, op{kind: forward}, op{kind: backward}, plans[1], in, out); err != nil {
			return row, err
		}
		if !(row.Difference <= peerLimit) {
			return row, fmt.Errorf("PyTorch's results are %.2g off", row.Difference)
		}
		for i, what := range []peer.Op{peer.Forward, peer.Backward} {
			runs = append(runs, func() error {
				took, err := torch.Run(what, 1)
				if err == nil && (theirs[i] == 0 || took[0] < theirs[i]) {
					theirs[i] = took[0]
				}
				return err
			})
		}
	}
	times, err := c.effort.measure(runs)
	if err != nil {
		return row, err
	}
	var ours [3]time.Duration // with the activation
	for i := range kinds {
		t := times[i*len(order):]
		ours[i] = min(t[2], t[3])
		row.OverPlain[i] = float64(ours[i]) / float64(min(t[1], t[4]))
	}
	if offered {
		row.Torch[0] = float64(theirs[0]) / float64(ours[0])
		row.Torch[1] = float64(theirs[1]) / float64(ours[2])
	}
	return row, nil
}

// agree returns the difference between the rival's and the plan's results of two
// operations.
func agree(r rival, forward, backward op, p *batchnorm.Plan, in *inputs, out *outputs) (float64, error) {
	for _, what := range []peer.Op{peer.Forward, peer.Backward} {
		if _, err := r.Run(what, 1); err != nil {
			return 0, err
		}
	}
	got, err := r.Outputs()
	if err != nil {
		return 0, err
	}
	if err := forward.run(p, in, out); err != nil {
		return 0, err
	}
	d := rmsDistance(got.Y, out.tensor)
	if err := backward.run(p, in, out); err != nil {
		return 0, err
	}
	return max(d, rmsDistance(got.DX, out.tensor)), nil
}

// rmsDistance returns the root mean square of the differences relative to that of the
// values wanted. The largest difference would not do, since elements at a kink of an
// activation may fall to either side.
func rmsDistance(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var off, size float64
	for i, v := range want {
		d := float64(got[i]) - float64(v)
		off += d * d
		size += float64(v) * float64(v)
	}
	if off == 0 {
		return 0
	}
	return math.Sqrt(off / size)
}
