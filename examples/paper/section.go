package main

import (
	"fmt"
	"strings"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// A section is a claim with its measurement.
type section struct {
	id, title string
	claim     string // of the paper or the notes

	// recipes adds the trainings that measure needs, under the names that it reads. A name
	// stands for the same recipe in all sections.
	recipes func(l *lab, add func(name string, r recipe))
	measure func(l *lab, traces map[string]*trace) (*result, error)
}

// result has the findings of a section.
type result struct {
	figures  []*figure
	tables   []table
	findings []finding
}

// finding is a sentence made from numbers, and whether these are as claimed.
type finding struct {
	text      string
	asClaimed bool
}

type table struct {
	caption string
	head    []string
	rows    [][]string
}

var sections = []section{
	figure1a,
	figure1bc,
	flatEnds,
	activations,
	redundantBias,
	regularization,
	learningRate,
	gaussian,
	timeShare,
}

// lab has the data and the settings for the sections.
type lab struct {
	train, test *fashion.Set
	data        string // source of the images
	seed        uint64
	steps       int // of Figure 1
	claimSteps  int // of the other trainings
	batch       int
	rate        float64
	path        batchnorm.Path
	workers     int

	// The extent of the measurements; tests take less.
	probe, final int // as in recipe
	companies    int // batches around one image
	timedSteps   int
}

// The defaults of these.
const (
	probeImages = 2000
	finalImages = 10000
	companies   = 30
	timedSteps  = 200
)

// The number of measurements of a training.
const (
	paperPoints = 40
	claimPoints = 20
)

// recipe is the paper's training, with any activation.
func (l *lab) recipe(act *activation, norm bool, steps int) recipe {
	d := paperDesign(act, norm, l.seed)
	d.path = l.path
	return recipe{
		design: d, train: l.train, test: l.test, batch: l.batch, steps: steps,
		rate: l.rate, order: l.seed, points: min(claimPoints, steps), watch: act.slope != nil,
		probe: l.probe, final: l.final,
	}
}

// Names of recipes.

func paperName(norm bool) string { return "paper " + withName(norm) }

func claimName(act *activation, norm bool) string { return act.name + " " + withName(norm) }

func withName(norm bool) string {
	if norm {
		return "with batch norm"
	}
	return "without"
}

// both are the two sides of a comparison.
var both = []bool{true, false}

// settled returns the accuracy that a training has reached: the average of the last fifth
// of its measurements, as single ones scatter; 0 if it diverged.
func (t *trace) settled() float64 {
	if t.diverged >= 0 {
		return 0
	}
	last := t.accuracy[len(t.accuracy)-max(1, len(t.accuracy)/5):]
	return mean(last)
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// curve adds the accuracy of a training to a figure.
func (f *figure) curve(name string, s style, t *trace) error {
	if t.diverged >= 0 {
		name += fmt.Sprintf(" (diverged at step %d)", t.diverged)
	}
	return f.line(name, s, floats(t.at), scaled(t.accuracy, 100))
}

func accuracyFigure(name, title string) *figure {
	f := newFigure(name, "", title, "step", "accuracy, %")
	f.plot.Y.Min, f.plot.Y.Max = 0, 100
	f.legendTopLeft() // curves begin low
	return f
}

func floats(values []int) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out
}

func scaled(values []float64, by float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = v * by
	}
	return out
}

// material is the least difference of accuracies that counts: about the standard error over
// the probe images.
const material = 0.01

func percent(v float64) string { return fmt.Sprintf("%.1f%%", 100*v) }

// points returns a difference of shares in percentage points.
func points(v float64) string { return fmt.Sprintf("%.1f points", 100*v) }

// list joins phrases to a part of a sentence.
func list(phrases []string) string {
	if n := len(phrases); n > 1 {
		return strings.Join(phrases[:n-1], ", ") + " and " + phrases[n-1]
	}
	return strings.Join(phrases, "")
}

// choose returns the first phrase if the condition is true, and else the second.
func choose(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}
