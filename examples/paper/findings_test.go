package main

import (
	"strings"
	"testing"
	"time"
)

// curveOf is the trace of a training with these accuracies.
func curveOf(accuracy ...float64) *trace {
	t := &trace{accuracy: accuracy, diverged: -1, recipe: recipe{rate: 1, steps: 10 * (len(accuracy) - 1), batch: 60}}
	for i := range accuracy {
		t.at = append(t.at, 10*i)
	}
	return t
}

// flatOf is one with these shares on flat ends, in every one of two layers.
func flatOf(shares ...float64) *trace {
	t := &trace{diverged: -1}
	for _, s := range shares {
		t.flat = append(t.flat, []float64{s - 0.01, s + 0.01})
	}
	return t
}

// medianOf is one of a unit whose percentiles are around these values.
func medianOf(values ...float64) *trace {
	t := &trace{diverged: -1}
	for _, v := range values {
		t.percentiles = append(t.percentiles, [][3]float64{{v - 1, v, v + 1}})
	}
	return t
}

// divergedAt is one that diverged.
func divergedAt(step int, rate float64) *trace {
	t := curveOf(0.1, 0.1)
	t.diverged, t.rate = step, rate
	return t
}

func rated(rate float64, t *trace) *trace {
	t.rate = rate
	return t
}

// TestFindings holds the sentences to the numbers: each says that things are as
// claimed for some, and the opposite for others.
func TestFindings(t *testing.T) {
	good, bad := curveOf(.1, .6, .8, .8, .8), curveOf(.1, .1, .2, .4, .5)
	rates := func(accuracies ...float64) (traces []*trace) {
		for i, a := range accuracies {
			if a == 0 {
				traces = append(traces, divergedAt(7, rateFactors[i]))
				continue
			}
			traces = append(traces, rated(rateFactors[i], curveOf(.1, a)))
		}
		return traces
	}
	normal, heavy := []shapeOf{{3.1, 3.1}}, []shapeOf{{4.5, 2}}
	inexact := curveOf(.1, .5)
	inexact.biasExact = 1e-30
	bias := func(gradient, share float64) *trace {
		tr := curveOf(.1, .5)
		tr.biasGradient, tr.biasShare = gradient, share
		return tr
	}
	steady, wandering := medianOf(0, .1, 0, .1, 0, .1, 0, .1, 0, .1), medianOf(0, 0, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 2, 2)
	for _, c := range []struct {
		name      string
		finding   finding
		asClaimed bool
		says      string
	}{
		{"sooner", soonerFinding(good, bad), true, "by step 10 with batch norm and by step 40 without"},
		{"not sooner", soonerFinding(bad, good), false, "by step 40 with batch norm and by step 10 without"},
		{"as soon", soonerFinding(good, good), false, "by step 20 with batch norm and by step 20 without"},
		{"higher", higherFinding(good, bad), true, "80.0% with batch norm and 50.0% without."},
		{"not higher", higherFinding(bad, good), false, "50.0% with batch norm and 80.0% without."},
		{"as high", higherFinding(good, curveOf(.1, .795)), false, "hardly a difference"},
		{"drift", steadierFindings(steady, wandering)[0], true, "moved by 0.00 with batch norm and by 2.00 without"},
		{"more drift", steadierFindings(wandering, steady)[0], false, "moved by 2.00 with batch norm and by 0.00 without"},
		{"jumps", steadierFindings(medianOf(0, .1, 0), medianOf(0, 1, 0))[1], true, "jump by 0.10 with batch norm and by 1.00 without"},
		{"more jumps", steadierFindings(medianOf(0, 1, 0), medianOf(0, .1, 0))[1], false, "jump by 1.00 with batch norm and by 0.10 without"},
		{"flat", flatFinding("tanh", flatOf(.5, .02), flatOf(.1, .3)), true, "2.0% of the outputs of tanh units"},
		{"more flat", flatFinding("tanh", flatOf(.1, .3), flatOf(.5, .02)), false, "30.0% of the outputs of tanh units"},
		{"helps", helpsFinding("ReLU", good, bad), true, "62.0% with batch norm and 26.0% without."},
		{"harms", helpsFinding("ReLU", bad, good), false, "26.0% with batch norm and 62.0% without."},
		{"neither", helpsFinding("ReLU", good, good), false, "hardly a difference"},
		{"bias, formula", biasExactFinding(bias(1e-9, 1e-7)), true, "was exactly 0 in every step"},
		{"bias, not the formula", biasExactFinding(inexact), false, "was up to 1e-30."},
		{"bias, exactly 0", biasGradientFinding(bias(0, 0)), true, "exactly 0 in every step, too"},
		{"bias, rounding", biasGradientFinding(bias(1e-9, 1e-7)), true, "0, but for the rounding of float32"},
		{"bias, not 0", biasGradientFinding(bias(1e-3, 1e-3)), false, "more than the rounding of float32"},
		{"bias, equal", biasAccuracyFinding(good, good, bad), true, "by 0.0 points at most"},
		{"bias, unequal", biasAccuracyFinding(bad, good, good), false, "by 60.0 points at most"},
		{"spread", spreadFinding([]float64{.3, .2, .1}, []float64{0, 0, 0}), true, "it shrinks as the batch grows. Without it is 0."},
		{"spread grows", spreadFinding([]float64{.1, .2, .3}, []float64{0, 0, 0}), false, "it does not always shrink"},
		{"spread without", spreadFinding([]float64{.3, .2, .1}, []float64{0, 0, .5}), false, "Without it is up to 0.5."},
		{"no spread", spreadFinding([]float64{0, 0, 0}, []float64{0, 0, 0}), false, "does not always shrink"},
		{"gap", gapFinding([]float64{.1, .1, .1}, []float64{.2, .2, .2}), true, "fewer with it in 3 of 3"},
		{"ghost spread", ghostSpreadFinding([]float64{.3, .2, .1}, []float64{.3, .3, .29}), true, "is 0.290, which is nearer to that among 8 than"},
		{"no ghost spread", ghostSpreadFinding([]float64{.3, .2, .1}, []float64{.3, .1, .11}), false, "is 0.110, which is nearer to that among all 256."},
		{"spread upside down", ghostSpreadFinding([]float64{.1, .2, .3}, []float64{.1, .1, .1}), false, "is 0.100, which is nearer to that among 8 than"},
		{"ghost gap", ghostGapFinding([]float64{.1, .2, .3}, []float64{.1, .1, .1}), true,
			"10.0 and 30.0 for batches of 256: fewer in ghost batches in 2 of 2"},
		{"some ghost gap", ghostGapFinding([]float64{.1, .1, .3}, []float64{.1, .2, .1}), false,
			"20.0 and 10.0 for batches of 60 and 10.0 and 30.0 for batches of 256: fewer in ghost batches in 1 of 2"},
		{"some gap", gapFinding([]float64{.1, .3, .1}, []float64{.2, .2, .2}), false, "fewer with it in 2 of 3"},
		{"rate", rateFinding("ReLU", rates(.75, .8, .75, .1), rates(.75, .6, 0, 0)), true, "80.0%, is x30 with batch norm and x1 without"},
		{"rate, worse", rateFinding("ReLU", rates(.75, .1, .1, .1), rates(.8, .8, .1, .1)), false, "is x1 with batch norm and x5 without"},
		{"rate, equal", rateFinding("ReLU", rates(.7, .7, .1, .1), rates(.7, .7, .1, .1)), false, "is x5 with batch norm and x5 without"},
		{"rate, none", rateFinding("ReLU", rates(.8, .8, .8, .8), rates(0, 0, 0, 0)), true, "is x150 with batch norm and no rate without"},
		{"normal", gaussianFindings(normal, heavy)[0], true, "0.10 away from the normal distribution's with batch norm, and 1.50 without"},
		{"not normal", gaussianFindings(heavy, normal)[0], false, "1.50 away from the normal distribution's with batch norm, and 0.10 without"},
		{"unit normal", gaussianFindings(normal, heavy)[1], true, "0.10 away with batch norm, and 1.00 without"},
		{"unit not normal", gaussianFindings(heavy, normal)[1], false, "1.00 away with batch norm, and 0.10 without"},
		{"cheap", timeFinding("avx2", &stepTimes{1000, 40, 20, 900}), true,
			"takes 4.0% of a step; without sigmoid it would be 2.0%. A step takes 1.11 times"},
		{"dear", timeFinding("avx2", &stepTimes{1000, 60, 20, 900}), false, "takes 6.0% of a step"},
	} {
		if c.finding.asClaimed != c.asClaimed || !strings.Contains(c.finding.text, c.says) {
			t.Errorf("%s: as claimed is %v, want %v; the sentence is %q, want it to say %q",
				c.name, c.finding.asClaimed, c.asClaimed, c.finding.text, c.says)
		}
	}
}

func TestTypicalUnit(t *testing.T) {
	tr := &trace{percentiles: [][][3]float64{
		{{0, 0, 0}, {0, 0, 0}, {0, 0, 0}},
		{{9, 9, 9}, {1, 1, 1}, {3, 3, 3}},
	}}
	if got := typicalUnit(tr); got != 2 {
		t.Errorf("the typical unit is %d, want 2", got)
	}
}

// A clock counts between begin and end; none at all does no harm.
func TestClock(t *testing.T) {
	var none *clock
	none.begin()
	none.end()
	c := &clock{}
	for range 2 {
		c.begin()
		time.Sleep(time.Millisecond)
		c.end()
	}
	if c.total < 2*time.Millisecond {
		t.Errorf("the clock shows %v after 2 ms", c.total)
	}
}

// Timings are of a step and its parts.
func TestTimeSteps(t *testing.T) {
	l := testLab(t)
	l.timedSteps = 3
	s, err := l.timeSteps(l.path)
	if err != nil {
		t.Fatal(err)
	}
	if !(0 < s.alone && s.alone < s.step && 0 < s.fused && s.fused < s.step && 0 < s.plain) {
		t.Errorf("times are %+v", *s)
	}
}
