package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

var figure1a = section{
	id:    "figure1a",
	title: "Training is faster",
	claim: "Figure 1(a) of the paper: with batch norm the test accuracy rises sooner, and ends higher.",
	recipes: func(l *lab, add func(string, recipe)) {
		for _, norm := range both {
			r := l.recipe(sigmoid, norm, l.steps)
			r.points = min(paperPoints, r.steps)
			add(paperName(norm), r)
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		f := accuracyFigure("figure1a", "Test accuracy")
		f.caption = "Three hidden layers of 100 sigmoid units, as in section 4.1 of the paper."
		t := table{head: []string{"", "test images", "training images"}}
		for _, norm := range both {
			trace := traces[paperName(norm)]
			if err := f.curve(withName(norm), styleOf(norm, 0), trace); err != nil {
				return nil, err
			}
			t.rows = append(t.rows, []string{withName(norm), percent(trace.finalTest), percent(trace.finalTrain)})
		}
		t.caption = fmt.Sprintf("Accuracy after %d steps, over the first %d images of each.", l.steps, l.final)
		with, without := traces[paperName(true)], traces[paperName(false)]
		return &result{[]*figure{f}, []table{t}, []finding{soonerFinding(with, without), higherFinding(with, without)}}, nil
	},
}

// soonerFinding compares the steps at which two trainings reach nine tenths of the lower of
// their settled accuracies.
func soonerFinding(with, without *trace) finding {
	target := 0.9 * min(with.settled(), without.settled())
	first := func(t *trace) int {
		return t.at[max(0, slices.IndexFunc(t.accuracy, func(v float64) bool { return v >= target }))]
	}
	a, b := first(with), first(without)
	return finding{
		fmt.Sprintf("Nine tenths of the accuracy that both settle at, %s, are reached by step %d with batch norm and by step %d without.",
			percent(target), a, b),
		a < b,
	}
}

func higherFinding(with, without *trace) finding {
	a, b := with.settled(), without.settled()
	return finding{
		fmt.Sprintf("In the last fifth of %d steps the accuracy is %s with batch norm and %s without%s.",
			with.steps, percent(a), percent(b), choose(math.Abs(a-b) < material, ", which is hardly a difference", "")),
		a-b >= material,
	}
}

var figure1bc = section{
	id:    "figure1bc",
	title: "Inputs of the activations are steadier",
	claim: "Figure 1(b, c): what a typical sigmoid of the last hidden layer gets keeps its distribution with batch norm, " +
		"and wanders without.",
	recipes: figure1a.recipes,
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		r := &result{}
		lowest, highest := math.Inf(1), math.Inf(-1)
		for i, norm := range both {
			trace := traces[paperName(norm)]
			unit := typicalUnit(trace)
			f := newFigure("figure1"+string("bc"[i]), "", "Input of a sigmoid, "+withName(norm), "step", "15th, 50th, 85th percentile")
			f.caption = fmt.Sprintf("Percentiles over %d test images; unit %d of the last hidden layer, whose percentiles move "+
				"as far as the median unit's.", l.probe, unit+1)
			for k, share := range percents {
				values := make([]float64, len(trace.at))
				for j, units := range trace.percentiles {
					values[j] = units[unit][k]
					lowest, highest = min(lowest, values[j]), max(highest, values[j])
				}
				s := styleOf(norm, (k+2)%3)
				s.dashed = share != 0.5
				if err := f.line("", s, floats(trace.at), values); err != nil {
					return nil, err
				}
			}
			r.figures = append(r.figures, f)
		}
		for _, f := range r.figures { // the same scale, or they could not be compared
			f.plot.Y.Min, f.plot.Y.Max = lowest, highest
		}
		r.findings = steadierFindings(traces[paperName(true)], traces[paperName(false)])
		return r, nil
	},
}

// drift returns how far the percentiles of every unit moved, on average over
// the three, from the first fifth of the training to the last.
func drift(t *trace) []float64 {
	n := len(t.percentiles)
	fifth := max(1, n/5)
	moved := make([]float64, len(t.percentiles[0]))
	for unit := range moved {
		for k := range percents {
			d := 0.0
			for i := range fifth {
				d += t.percentiles[n-1-i][unit][k] - t.percentiles[i][unit][k]
			}
			moved[unit] += math.Abs(d) / float64(fifth*len(percents))
		}
	}
	return moved
}

// jumps returns how far the percentiles moved from one measurement to the
// next, on average over the percentiles, the units and the training.
func jumps(t *trace) float64 {
	sum, n := 0.0, 0
	for i := 1; i < len(t.percentiles); i++ {
		for unit, now := range t.percentiles[i] {
			for k := range percents {
				sum += math.Abs(now[k] - t.percentiles[i-1][unit][k])
				n++
			}
		}
	}
	return sum / float64(max(1, n))
}

// typicalUnit returns the unit with the median drift.
func typicalUnit(t *trace) int {
	moved := drift(t)
	units := make([]int, len(moved))
	for i := range units {
		units[i] = i
	}
	slices.SortStableFunc(units, func(a, b int) int { return cmp.Compare(moved[a], moved[b]) })
	return units[len(units)/2]
}

func steadierFindings(with, without *trace) []finding {
	drifted, driftedWithout := mean(drift(with)), mean(drift(without))
	jumped, jumpedWithout := jumps(with), jumps(without)
	return []finding{
		{
			fmt.Sprintf("From the first fifth of the training to the last, the percentiles of the last hidden layer's units "+
				"moved by %.2f with batch norm and by %.2f without, on average.",
				drifted, driftedWithout),
			drifted < driftedWithout,
		},
		{
			fmt.Sprintf("From one measurement to the next they jump by %.2f with batch norm and by %.2f without, on average.", jumped, jumpedWithout),
			jumped < jumpedWithout,
		},
	}
}
