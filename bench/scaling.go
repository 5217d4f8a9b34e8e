package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// scaling is the speed-up of an operation in a layout by workers, as the geometric mean
// over tensors.
type scaling struct {
	operation, layout string
	tensors           int
	measured          map[int]float64 // by workers
	demand            float64         // GB/s that one worker moves
}

// defaultBandwidth is the bandwidth of eight channels of DDR4-3200, 25.6 GB/s each.
const defaultBandwidth = 204.8

// fromMemory is the size in bytes of a tensor from which the traffic model
// applies: smaller ones may stay in some cache from call to call.
const fromMemory = 6 << 20

// modelWorkers are the numbers of workers in the model's columns.
var modelWorkers = []int{16, 64}

// scalingNote states the assumptions of the model.
const scalingNote = `Each number is the time of one worker over the time of several, as the geometric mean over the
tensors of 6 MB and more. In the model every worker moves as many bytes per second as one does here,
until all together reach the bandwidth of the memory, %.4g GB/s (-membw; eight channels of DDR4-3200
have 204.8). It counts the bytes that must move, and ignores shared caches, the start of goroutines,
and tensors with fewer tasks than workers.`

// scalings returns the speed-ups for tensors that are in memory.
func scalings(rows []boundRow) []scaling {
	type key struct{ operation, layout string }
	one := map[string]boundRow{} // by tensor and operation
	for _, r := range rows {
		if r.Workers == 1 {
			one[r.Operation+r.Layout+r.Shape] = r
		}
	}
	logs := map[key]map[int][]float64{}
	demands := map[key][]float64{}
	var order []key
	for _, r := range rows {
		if 4*r.Elements < fromMemory {
			continue
		}
		k := key{r.Operation, r.Layout}
		base, ok := one[r.Operation+r.Layout+r.Shape]
		if !ok {
			continue
		}
		if logs[k] == nil {
			logs[k] = map[int][]float64{}
			order = append(order, k)
		}
		if r.Workers == 1 {
			demands[k] = append(demands[k], math.Log(float64(r.moved())/r.Nanoseconds))
		} else {
			logs[k][r.Workers] = append(logs[k][r.Workers], math.Log(base.Nanoseconds/r.Nanoseconds))
		}
	}
	var all []scaling
	for _, k := range order {
		s := scaling{operation: k.operation, layout: k.layout, tensors: len(demands[k]), measured: map[int]float64{}}
		if len(logs[k]) == 0 || s.tensors == 0 {
			continue
		}
		for workers, l := range logs[k] {
			s.measured[workers] = math.Exp(mean(l))
		}
		s.demand = math.Exp(mean(demands[k]))
		all = append(all, s)
	}
	return all
}

// moved returns the bytes that the operation and its bound move. In nhwc and nc the
// statistics read everything first.
func (r boundRow) moved() int {
	o := opNamed(r.Operation)
	n := o.bytes
	if r.Layout != "nchw" {
		n += 4 * o.statisticsReads()
	}
	return n * r.Elements
}

// model returns the speed-up that the traffic model predicts.
func (s scaling) model(workers int, bandwidth float64) float64 {
	return min(float64(workers), bandwidth/s.demand)
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// workerCounts returns the numbers of workers above 1, in order.
func workerCounts(rows []boundRow) []int {
	var counts []int
	for _, n := range unique(rows, func(r boundRow) int { return r.Workers }) {
		if n > 1 {
			counts = append(counts, n)
		}
	}
	slices.Sort(counts)
	return counts
}

// scalingLines returns the table of scalings: first the heads, then the lines, with
// fields separated by tabs. It is nil unless there are rows of one worker and of more.
func scalingLines(rows []boundRow, bandwidth float64) []string {
	all := scalings(rows)
	if len(all) == 0 {
		return nil
	}
	counts := workerCounts(rows)
	head := "operation\tlayout\ttensors\tGB/s of 1 worker"
	for _, n := range counts {
		head += fmt.Sprintf("\t%d, measured", n)
	}
	for _, n := range modelWorkers {
		head += fmt.Sprintf("\t%d, model", n)
	}
	lines := []string{head}
	for _, s := range all {
		line := fmt.Sprintf("%s\t%s\t%d\t%.1f", s.operation, s.layout, s.tensors, s.demand)
		for _, n := range counts {
			line += "\t" + ratioText(s.measured[n])
		}
		for _, n := range modelWorkers {
			line += fmt.Sprintf("\t%.1f", s.model(n, bandwidth))
		}
		lines = append(lines, line)
	}
	return lines
}

// scalingTable prints the table of scalings.
func scalingTable(w io.Writer, rows []boundRow, bandwidth float64) {
	lines := scalingLines(rows, bandwidth)
	if lines == nil {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(lines, "\n"))
	t.Flush() // an error of w stays
	fmt.Fprintf(w, "\n"+scalingNote+"\n", bandwidth)
}
