package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/fusedbn/batchnorm"
	"github.com/klauspost/cpuid/v2"
)

// report has the results of a run; -json writes it.
type report struct {
	CPU     string     `json:"cpu"`
	OS      string     `json:"os"`
	Arch    string     `json:"arch"`
	Go      string     `json:"go"`
	Path    string     `json:"path"`              // of -path, by default the package's choice
	Paths   []string   `json:"paths"`             // that the machine can run
	Workers int        `json:"workers,omitempty"` // bounds have their own
	Data    string     `json:"data"`
	Batch   int        `json:"batch,omitempty"` // if all rows share it
	Rows    []row      `json:"rows,omitempty"`
	Bounds  []boundRow `json:"bounds,omitempty"` // instead of rows

	Peers *peerResults `json:"peers,omitempty"` // instead of rows
	// Activations, with -activations.
	Activations []activationRow `json:"activations,omitempty"`

	// Kinds of data, with -data.
	Kinds []kindRow `json:"kinds,omitempty"`

	// A report also has these.
	Command string     `json:"command,omitempty"`
	Sweep   []boundRow `json:"sweep,omitempty"`
	Caches  []cache    `json:"caches,omitempty"`
	Peak    float64    `json:"peak_gflop_per_s,omitempty"` // of one worker's arithmetic
}

// row is one operation on one tensor on one path.
type row struct {
	Operation   string             `json:"operation"`
	Layout      string             `json:"layout"`
	Shape       string             `json:"shape"` // without the batch
	Path        string             `json:"path"`
	Elements    int                `json:"elements"`
	Bytes       int                `json:"bytes"`
	Nanoseconds int64              `json:"ns"`
	GBPerSecond float64            `json:"gb_per_s"`
	TimesGo     float64            `json:"times_pure_go"`
	Error       float64            `json:"max_error"` // of y or dx
	Errors      map[string]float64 `json:"errors"`    // of every output
	Failures    []string           `json:"failures,omitempty"`
}

func newReport(set caseSet, c config) *report {
	r := &report{
		CPU:   cpuName(),
		OS:    runtime.GOOS,
		Arch:  runtime.GOARCH,
		Go:    runtime.Version(),
		Path:  c.path.String(),
		Data:  set.data,
		Batch: set.batch,
	}
	switch {
	case c.bound, c.withData, c.report != "":
		r.Data = "generated data in the shapes of " + c.shapes
		if set.batch > 0 {
			r.Data += fmt.Sprintf(", batch %d", set.batch)
		}
	case c.withPeers:
	default:
		r.Workers = c.workers[0]
	}
	for _, p := range batchnorm.Paths() {
		r.Paths = append(r.Paths, p.String())
	}
	return r
}

// cpuName returns the processor's name, or the architecture if it has none.
func cpuName() string {
	if name := strings.TrimSpace(cpuid.CPU.BrandName); name != "" {
		return name
	}
	return runtime.GOARCH
}

// header prints the machine and the data of the run.
func (r *report) header(w io.Writer) {
	workers := ""
	switch r.Workers {
	case 0:
	case 1:
		workers = "1 worker; "
	default:
		workers = fmt.Sprintf("%d workers; ", r.Workers)
	}
	fmt.Fprintf(w, "%s (%s/%s, %s)\n", r.CPU, r.OS, r.Arch, r.Go)
	fmt.Fprintf(w, "path %s of %s; %s%s\n\n", r.Path, strings.Join(r.Paths, ", "), workers, r.Data)
}

// table prints all rows and all failures.
func (r *report) table(w io.Writer) {
	fmt.Fprintf(w, "%-22s  %-6s  %14s  %-7s  %6s  %13s  %13s\n",
		"operation", "layout", "shape", "path", "GB/s", "times pure Go", "largest error")
	for _, r := range r.Rows {
		fmt.Fprintf(w, "%-22s  %-6s  %14s  %-7s  %6.2f  %13.2f  %13.1e\n",
			r.Operation, r.Layout, r.Shape, r.Path, r.GBPerSecond, r.TimesGo, r.Error)
	}
	fmt.Fprintf(w, "\n%s\n%s\n\n", bytesNote, errorNote)
	for _, r := range r.Rows {
		for _, f := range r.Failures {
			fmt.Fprintf(w, "FAIL %s %s %s %s: %s\n", r.Operation, r.Layout, r.Shape, r.Path, f)
		}
	}
	switch {
	case r.failed():
	case len(r.Paths) > 1:
		fmt.Fprintln(w, "All errors are within their limits, and all paths return the same bits.")
	default:
		fmt.Fprintln(w, "All errors are within their limits. There is only one path.")
	}
}

func (r *report) failed() bool {
	return slices.ContainsFunc(r.Rows, func(r row) bool { return len(r.Failures) > 0 }) ||
		r.Peers != nil && len(r.Peers.Failures) > 0
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
