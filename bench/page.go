package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The files of a report.
const (
	pageFile    = "index.html"
	resultsFile = "results.json"
	benchFile   = "benchmarks.txt"
)

// measureReport measures everything on the page. Rows are not printed, since they would
// interrupt the progress bar.
func (c config) measureReport(r *report, set caseSet, w, stderr io.Writer, start func(string) (rival, string, error)) error {
	sweep, sweepSet := c.sweepConfig(), sweepSet(c.sweepMB<<20)
	data := c.dataConfig()
	dataSet := kindsSet()
	if isShapeList(c.shapes) {
		dataSet = c.listed
	}
	total := c.boundsWork(set) + sweep.boundsWork(sweepSet) + data.kindsWork(dataSet)
	if len(c.contests) > 0 {
		total += c.peersWork(set)
	}
	p := startProgress(stderr, total)
	defer p.stop() // for errors; without one it has stopped before
	p.describe("arithmetic")
	r.Peak, r.Caches = c.effort.arithmeticPeak(), caches()
	var err error
	if r.Bounds, err = c.bounds(set, io.Discard, p); err != nil {
		return err
	}
	if r.Sweep, err = sweep.bounds(sweepSet, io.Discard, p); err != nil {
		return err
	}
	if r.Kinds, err = data.kinds(dataSet, io.Discard, p); err != nil {
		return err
	}
	if len(c.contests) > 0 {
		if r.Peers, err = c.peers(set, io.Discard, p, start); err != nil {
			return err
		}
	}
	p.stop()
	scalingTable(w, r.Bounds, c.memoryBandwidth)
	fmt.Fprintln(w)
	kindsSummary(w, r.Kinds)
	if r.Peers != nil {
		r.Peers.summary(w)
	}
	return nil
}

// readReport reads the results of an earlier run.
func readReport(name string) (*report, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(r.Bounds) == 0 && len(r.Sweep) == 0 && len(r.Kinds) == 0 && r.Peers == nil {
		return nil, fmt.Errorf("%s has no bounds, no sweep, no kinds of data and no peers", name)
	}
	return r, nil
}

// write writes the files of the report to a folder, which it makes: the page, a picture
// of every figure, and the numbers.
func (r *report) write(folder string, bandwidth float64) error {
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	var page, results, bench bytes.Buffer
	files := map[string]*bytes.Buffer{pageFile: &page, resultsFile: &results, benchFile: &bench}
	keep := func(f figure) { files[f.file()] = bytes.NewBufferString(f.alone) }
	if err := r.page(&page, bandwidth, keep); err != nil {
		return err
	}
	if err := r.json(&results); err != nil {
		return err
	}
	r.benchmarks(&bench)
	var err error
	for name, content := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(folder, name), content.Bytes(), 0o666))
	}
	return err
}

// benchmarks writes the times of the operations as go test -bench does, for
// benchstat, under the names that BenchmarkBatchNorm has.
func (r *report) benchmarks(w io.Writer) {
	fmt.Fprintf(w, "goos: %s\ngoarch: %s\npkg: github.com/fusedbn/batchnorm/bench\ncpu: %s\n", r.OS, r.Arch, r.CPU)
	for _, b := range append(r.Bounds[:len(r.Bounds):len(r.Bounds)], r.Sweep...) {
		samples := b.Samples
		if len(samples) == 0 {
			samples = []float64{b.Nanoseconds}
		}
		for _, ns := range samples {
			fmt.Fprintf(w, "BenchmarkBatchNorm/op=%s/layout=%s/shape=%s/path=%s/workers=%d\t%d\t%.1f ns/op\t%.2f MB/s\n",
				b.Operation, b.Layout, b.Shape, b.Path, b.Workers, 1, ns, float64(b.bytes())/ns*1e3)
		}
	}
}

// section is a section of the page.
type section struct {
	Title   string
	Read    string // how to read the figures, in a sentence
	Figures []shownFigure
	Table   []string // lines with fields separated by tabs; the first has the heads
	Notes   []string
	Missing string // instead of figures
}

type shownFigure struct {
	Title, Finding string
	SVG            template.HTML
	Keys           []shownKey
}

type shownKey struct {
	Name string
	SVG  template.HTML
}

// page writes the HTML page, and calls keep with every figure of it.
func (r *report) page(w io.Writer, bandwidth float64, keep func(figure)) error {
	var sections []section
	add := func(s section, figures []figure, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", s.Title, err)
		}
		for _, f := range figures {
			keep(f)
			shown := shownFigure{Title: f.title, Finding: f.finding, SVG: template.HTML(f.svg)}
			for _, k := range f.keys {
				shown.Keys = append(shown.Keys, shownKey{k.name, template.HTML(k.svg)})
			}
			s.Figures = append(s.Figures, shown)
		}
		if len(figures) == 0 && len(s.Table) == 0 && s.Missing == "" {
			s.Missing = "Not measured in this run."
		}
		sections = append(sections, s)
		return nil
	}
	fractions, err := fractionFigures(r.Bounds)
	if err := add(section{
		Title: "Fraction of the memory bound",
		Read: "Read: at 1 an operation is as fast as the memory traffic that it can't avoid; higher is better. The bound is the " +
			"fastest plain or non-temporal copy, triad or read of the same tensors with as many workers, in turn with the operation.",
		Notes: []string{fmt.Sprintf("Marks at the upper edge are at %v or more: the machine was disturbed while the bound ran.", fractionTop)},
	}, fractions, err); err != nil {
		return err
	}
	roofline, err := rooflineFigure(r)
	if err := add(section{
		Title: "Roofline",
		Read: "Read: each mark is an operation on a tensor. The slanted lines are the speeds of memory and caches, the level line is the " +
			"speed of additions: no mark can be above the line of the memory that holds its tensor.",
		Notes: []string{"The lines are measured: copies in the sweep below, and vector additions out of the nearest cache. The floating-point " +
			"operations are those of the formulas."},
	}, roofline, err); err != nil {
		return err
	}
	if err := r.peerSection(add); err != nil {
		return err
	}
	scaled, err := scalingFigures(r.Bounds, bandwidth)
	if err := add(section{
		Title: "Scaling by workers",
		Read: "Read: marks are measured; on the grey line the speed-up is the number of workers. Dashed lines with small marks are " +
			"the traffic model: they bend where the workers use all of the memory's speed.",
		Table: scalingLines(r.Bounds, bandwidth),
		Notes: []string{fmt.Sprintf(strings.ReplaceAll(scalingNote, "\n", " "), bandwidth)},
	}, scaled, err); err != nil {
		return err
	}
	swept, err := sweepFigures(r.Sweep, r.Caches)
	cacheNote := "The sizes of the caches are unknown on this machine."
	if len(r.Caches) > 0 {
		cacheNote = "Dotted lines are the sizes of the caches. Forward and inference have two tensors in them, backward has three."
	}
	if err := add(section{
		Title: "Size of the tensor",
		Read: "Read: a solid line is an operation; the dashed line with small marks of the same form is its bound. Both fall where the " +
			"tensors no longer fit into a cache. GB/s counts the bytes that must move.",
		Notes: []string{cacheNote},
	}, swept, err); err != nil {
		return err
	}
	if err := add(section{
		Title: "Kinds of data",
		Read: "Read: at 1 an operation takes as long on this kind of data as on usual data, in turn with it. A number over its limit " +
			"is followed by !.",
		Table: kindLines(r.Kinds),
		Notes: []string{strings.ReplaceAll(kindsNote, "\n", " ")},
	}, nil, nil); err != nil {
		return err
	}
	if lines := kindModeLines(r.Kinds); lines != nil {
		if err := add(section{Title: "Kinds of data by other ways", Read: modesNote, Table: lines}, nil, nil); err != nil {
			return err
		}
	}
	return pageTemplate.Execute(w, map[string]any{"Report": r, "Sections": sections, "Paths": strings.Join(r.Paths, ", ")})
}

func (r *report) peerSection(add func(section, []figure, error) error) error {
	s := section{
		Title: "Speed-up over peers",
		Read: "Read: each mark is the peer's time over ours in one cell (operation, shape, layout, number of threads), on the same data, " +
			"in turn with ours. Above the dashed line this package is faster.",
	}
	if r.Peers == nil {
		return add(s, nil, nil)
	}
	all := standings(r.Peers.Rows)
	if len(all) == 0 {
		s.Missing = "No peer was measured."
	} else {
		s.Table = []string{"peer\tcells\tgeometric mean\tleast\tin (with threads)\tgoals"}
	}
	for _, k := range all {
		s.Table = append(s.Table, fmt.Sprintf("%s\t%d\t%.2f\t%.2f\t%s\t%s", k.name, k.cells, k.mean, k.least.Ratio, k.least.cell(), k.verdict()))
	}
	s.Notes = append(s.Notes, strings.ReplaceAll(peersNote, "\n", " "))
	for _, c := range contests {
		if name := r.Peers.Names[c.program]; name != "" && c.name == c.program {
			s.Notes = append(s.Notes, c.name+" is "+name+".")
		}
	}
	for _, m := range append(r.Peers.Missing[:len(r.Peers.Missing):len(r.Peers.Missing)], r.Peers.LeftOut...) {
		s.Notes = append(s.Notes, "Left out: "+m+".")
	}
	for _, f := range r.Peers.Failures {
		s.Notes = append(s.Notes, "FAILED: "+f+".")
	}
	figures, err := peerFigures(r.Peers.Rows)
	return add(s, figures, err)
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"fields": func(line string) []string { return strings.Split(line, "\t") },
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Batch normalization on {{.Report.CPU}}</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem;
  font: 1rem/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; color: #222; background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
p { margin: 0.4rem 0; max-width: 48rem; }
p.note { color: #555; font-size: 0.875rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figcaption { font-weight: bold; font-size: 0.9rem; }
figcaption span { font-weight: normal; }
.keys { list-style: none; margin: 0.25rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.25rem; font-size: 0.875rem; }
.keys li { display: flex; align-items: center; gap: 0.4rem; }
.keys svg { width: 1.8rem; height: auto; }
.scroll { overflow-x: auto; }
.scroll svg { display: block; width: 100%; min-width: 36rem; max-width: 54rem; height: auto; }
table { border-collapse: collapse; font-size: 0.875rem; margin: 0.75rem 0; }
th, td { padding: 0.2rem 0.75rem 0.2rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; }
p.narrow { display: none; }
@media (max-width: 40rem) { p.narrow { display: block; } }
</style>
</head>
<body>
<h1>Batch normalization, measured</h1>
<p>{{.Report.CPU}} ({{.Report.OS}}/{{.Report.Arch}}, {{.Report.Go}}), path {{.Report.Path}} of {{.Paths}}; {{.Report.Data}}.
{{- with .Report.Command}} Made by <code>{{.}}</code>.{{end}}</p>
<p class="note">Every number is here as well:
<a href="results.json">results.json</a>, and <a href="benchmarks.txt">benchmarks.txt</a> for benchstat.</p>
<p class="note narrow">Figures and tables that are wider than the screen can be moved sideways.</p>
{{range .Sections}}
<section>
<h2>{{.Title}}</h2>
{{- if .Missing}}
<p class="note">{{.Missing}}</p>
{{- else}}
<p>{{.Read}}</p>
{{- end}}
{{- if .Table}}
<div class="scroll"><table>
{{range $i, $line := .Table}}<tr>{{range fields $line}}{{if $i}}<td>{{.}}</td>{{else}}<th scope="col">{{.}}</th>{{end}}{{end}}</tr>
{{end}}</table></div>
{{- end}}
{{range .Figures}}
<figure>
<figcaption>{{with .Finding}}{{.}}<br>{{end}}<span>{{.Title}}</span></figcaption>
<ul class="keys">{{range .Keys}}<li>{{.SVG}}{{.Name}}</li>{{end}}</ul>
<div class="scroll">{{.SVG}}</div>
</figure>
{{end}}
{{range .Notes}}<p class="note">{{.}}</p>
{{end}}
</section>
{{end}}
</body>
</html>
`))
