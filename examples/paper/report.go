package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// report has all findings of a run.
type report struct {
	Settings []string // everything that decides the numbers
	Command  string
	Sections []*reportSection
}

type reportSection struct {
	ID, Title, Claim string
	Findings         []finding
	Figures          []*figure
	Tables           []table
}

func (r *report) add(s section, res *result) {
	r.Sections = append(r.Sections, &reportSection{s.id, s.title, s.claim, res.findings, res.figures, res.tables})
}

// Verdict returns the number of findings that are as claimed, in words.
func (s *reportSection) Verdict() string {
	n := 0
	for _, f := range s.Findings {
		if f.asClaimed {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(s.Findings))
}

// Verdict returns in words whether the finding is as claimed.
func (f finding) Verdict() string { return choose(f.asClaimed, "As claimed", "Not as claimed") }

func (f finding) AsClaimed() bool { return f.asClaimed }
func (f finding) Text() string    { return f.text }

// text writes the findings for a terminal.
func (r *report) text(w io.Writer) {
	for _, s := range r.Settings {
		fmt.Fprintln(w, s)
	}
	for _, s := range r.Sections {
		fmt.Fprintf(w, "\n%s\n%s\n", s.Title, strings.Repeat("-", len(s.Title)))
		wrap(w, "Claim: "+s.Claim)
		for _, f := range s.Findings {
			wrap(w, f.Verdict()+": "+f.text)
		}
		for _, t := range s.Tables {
			fmt.Fprintln(w)
			t.text(w)
		}
	}
}

// wrap writes a paragraph in lines of at most 100 characters.
func wrap(w io.Writer, s string) {
	line := 0
	for i, word := range strings.Fields(s) {
		n := len([]rune(word))
		switch {
		case i == 0:
		case line+1+n > 100:
			fmt.Fprintln(w)
			line = 0
		default:
			fmt.Fprint(w, " ")
			line++
		}
		fmt.Fprint(w, word)
		line += n
	}
	fmt.Fprintln(w)
}

func (t *table) text(w io.Writer) {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range append([][]string{t.head}, t.rows...) {
		line := ""
		for i, cell := range row {
			line += fmt.Sprintf("  %-*s", widths[i], cell)
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	wrap(w, t.caption)
}

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Parse(page))

// html writes the report as a page that needs no other file.
func (r *report) html(w io.Writer) error { return pageTemplate.Execute(w, r) }

// SVG returns the figure as an element of a page.
func (f *figure) SVG() (template.HTML, error) {
	b, err := f.encode("svg")
	if err != nil {
		return "", err
	}
	_, element, found := bytes.Cut(b, []byte("<svg"))
	if !found {
		return "", fmt.Errorf("figure %s: no <svg> in the plot", f.name)
	}
	return template.HTML("<svg" + string(element)), nil
}

// Caption returns the text below the figure.
func (f *figure) Caption() string { return f.caption }

// Title returns a description of the figure, for screen readers.
func (f *figure) Title() string { return f.plot.Title.Text }

func (t table) Head() []string   { return t.head }
func (t table) Rows() [][]string { return t.rows }
func (t table) Caption() string  { return t.caption }

// save writes index.html and all figures, as PNG and SVG, to a folder.
func (r *report) save(dir string) error {
	var b bytes.Buffer
	if err := r.html(&b); err != nil {
		return err
	}
	for _, s := range r.Sections {
		for _, f := range s.Figures {
			if err := f.save(dir); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, "index.html"), b.Bytes(), 0o644)
}
