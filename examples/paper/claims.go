package main

import (
	"fmt"
	"image/color"
	"math"
	"math/rand/v2"
	"slices"
)

var flatEnds = section{
	id:    "flatends",
	title: "Fewer units on the flat ends",
	claim: "Batch norm keeps units out of the flat ends of sigmoid and tanh, where hardly a gradient passes.",
	recipes: func(l *lab, add func(string, recipe)) {
		figure1a.recipes(l, add)
		for _, norm := range both {
			add(claimName(tanh, norm), l.recipe(tanh, norm, l.claimSteps))
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		r := &result{}
		for _, c := range []struct {
			act  *activation
			name func(norm bool) string
		}{
			{sigmoid, paperName},
			{tanh, func(norm bool) string { return claimName(tanh, norm) }},
		} {
			f := newFigure("flatends-"+c.act.name, "", fmt.Sprintf("%s: share with derivative < %v", c.act.name, flatEnd), "step", "share, %")
			f.caption = "Dark to light: first to third hidden layer. Blue: with batch norm; orange, dashed: without."
			f.plot.Y.Min = 0
			for _, norm := range both {
				trace := traces[c.name(norm)]
				for layer := range trace.design.hidden {
					values := make([]float64, len(trace.at))
					for i := range values {
						values[i] = 100 * trace.flat[i][layer]
					}
					if err := f.line("", styleOf(norm, layer), floats(trace.at), values); err != nil {
						return nil, err
					}
				}
			}
			r.figures = append(r.figures, f)
			r.findings = append(r.findings, flatFinding(c.act.name, traces[c.name(true)], traces[c.name(false)]))
		}
		return r, nil
	},
}

func flatFinding(act string, with, without *trace) finding {
	a, b := settledFlat(with), settledFlat(without)
	return finding{
		fmt.Sprintf("In the last fifth of the training, on average over the layers, "+
			"%s of the outputs of %s units were on the flat ends with batch norm, and %s without.",
			percent(a), act, percent(b)),
		a < b,
	}
}

// settledFlat is the share on the flat ends over all layers, averaged over the
// last fifth of the measurements.
func settledFlat(t *trace) float64 {
	last := t.flat[len(t.flat)-max(1, len(t.flat)/5):]
	sum := 0.0
	for _, layers := range last {
		sum += mean(layers)
	}
	return sum / float64(len(last))
}

var activations = section{
	id:    "activations",
	title: "Not only sigmoid",
	claim: "Batch norm helps ReLU, tanh and GELU as well.",
	recipes: func(l *lab, add func(string, recipe)) {
		for _, act := range otherActivations {
			for _, norm := range both {
				add(claimName(act, norm), l.recipe(act, norm, l.claimSteps))
			}
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		r := &result{}
		for _, act := range otherActivations {
			f := accuracyFigure("activations-"+act.name, act.name)
			for _, norm := range both {
				if err := f.curve(withName(norm), styleOf(norm, 0), traces[claimName(act, norm)]); err != nil {
					return nil, err
				}
			}
			r.figures = append(r.figures, f)
			r.findings = append(r.findings, helpsFinding(act.name, traces[claimName(act, true)], traces[claimName(act, false)]))
		}
		return r, nil
	},
}

var otherActivations = []*activation{relu, tanh, gelu}

// helpsFinding compares the average accuracy over a training. A network that learns soon
// and ends well has a high one.
func helpsFinding(act string, with, without *trace) finding {
	a, b := mean(with.accuracy), mean(without.accuracy)
	return finding{
		fmt.Sprintf("%s: on average over the training, the accuracy is %s with batch norm and %s without%s.",
			act, percent(a), percent(b), choose(math.Abs(a-b) < material, ", which is hardly a difference", "")),
		a-b >= material,
	}
}

var redundantBias = section{
	id:    "bias",
	title: "A bias in front of batch norm is redundant",
	claim: "Batch norm takes the mean away, and a bias with it: its gradient is exactly 0, and beta takes its place.",
	recipes: func(l *lab, add func(string, recipe)) {
		add(claimName(sigmoid, true), l.recipe(sigmoid, true, l.claimSteps))
		biased := l.recipe(sigmoid, true, l.claimSteps)
		biased.design.bias = true
		add("sigmoid, with a bias", biased)
		shuffled := l.recipe(sigmoid, true, l.claimSteps)
		shuffled.order++
		add("sigmoid, another order", shuffled)
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		f := accuracyFigure("bias", "Sigmoid, with batch norm")
		f.caption = "For scale: the same training with the images in another order."
		lines := []struct {
			name, of string
			s        style
		}{
			{"images in another order", "sigmoid, another order", style{color: grey, dashed: true}},
			{"without bias", claimName(sigmoid, true), style{color: blues[2]}},
			{"with a bias", "sigmoid, with a bias", style{color: oranges[0], dashed: true}},
		}
		for _, line := range lines {
			if err := f.curve(line.name, line.s, traces[line.of]); err != nil {
				return nil, err
			}
		}
		biased, plain := traces["sigmoid, with a bias"], traces[claimName(sigmoid, true)]
		return &result{figures: []*figure{f}, findings: []finding{
			biasExactFinding(biased),
			biasGradientFinding(biased),
			biasAccuracyFinding(biased, plain, traces["sigmoid, another order"]),
		}}, nil
	},
}

func biasExactFinding(biased *trace) finding {
	return finding{
		fmt.Sprintf("The gradient of such a bias, as Plan.BiasGradient gives it, was %s.",
			choose(biased.biasExact == 0, "exactly 0 in every step, as the formula has it", fmt.Sprintf("up to %.1g", biased.biasExact))),
		biased.biasExact == 0,
	}
}

// biasGradientFinding compares the sum over the images, by which the network is trained,
// with 0: it holds if the sum is within the rounding of its addends to float32.
func biasGradientFinding(biased *trace) finding {
	const unitRoundoff = 0x1p-24
	if biased.biasGradient == 0 {
		return finding{"Added up over the images it was exactly 0 in every step, too.", true}
	}
	zero := biased.biasShare <= unitRoundoff*float64(biased.batch)
	return finding{
		fmt.Sprintf("Added up over the images, each of whose share is rounded, it was up to %.1g, "+
			"and up to %.1g of the sum of the absolute values of its addends: %s.",
			biased.biasGradient, biased.biasShare, choose(zero, "0, but for the rounding of float32", "more than the rounding of float32")),
		zero,
	}
}

func biasAccuracyFinding(biased, plain, shuffled *trace) finding {
	a, b := largestDifference(biased, plain), largestDifference(shuffled, plain)
	return finding{
		fmt.Sprintf("The accuracy with it differs from that without by %s at most, where another order of the images makes %s.", points(a), points(b)),
		a < b || a == 0,
	}
}

// largestDifference returns the largest difference of the accuracies, over all
// measurements.
func largestDifference(s, t *trace) float64 {
	largest := 0.0
	for i := range min(len(s.accuracy), len(t.accuracy)) {
		largest = max(largest, math.Abs(s.accuracy[i]-t.accuracy[i]))
	}
	return largest
}

// regularImages is the number of training images for the section on regularization: few, so
// that a network can learn them by heart.
const regularImages = 5000

var regularBatches = []int{8, 60, 256}

// ghostImages are in a ghost batch: as many as in the smallest batch, since it is to have
// the same noise.
const ghostImages = 8

// company names the images whose statistics batch norm takes together.
type company struct {
	norm  bool
	ghost int // as in design
}

var (
	wholeBatch = company{norm: true}
	ghostBatch = company{norm: true, ghost: ghostImages}
	noCompany  = company{}
	companyOf  = []company{wholeBatch, ghostBatch, noCompany}
)

func (c company) name() string {
	if c.ghost > 0 {
		return fmt.Sprintf("in ghost batches of %d", c.ghost)
	}
	return withName(c.norm)
}

func (c company) style() style {
	s := styleOf(c.norm, 0)
	if c.ghost > 0 {
		s = style{color: blues[2], dashed: true}
	}
	s.points = true
	return s
}

// in returns the company in a batch. A batch of the size of a ghost batch is one ghost
// batch.
func (c company) in(batch int) company {
	if batch <= c.ghost {
		c.ghost = 0
	}
	return c
}

func regularName(c company, batch int) string {
	return fmt.Sprintf("regularization, batches of %d, %s", batch, c.in(batch).name())
}

var regularization = section{
	id:    "regularization",
	title: "The company regularizes",
	claim: "In training, an image gets another output in other company, the more so in smaller batches. This noise keeps " +
		"the network from learning by heart: training and test accuracy are nearer to each other. " +
		"Ghost batches keep the noise of small batches in large ones.",
	recipes: func(l *lab, add func(string, recipe)) {
		for _, batch := range regularBatches {
			for _, c := range companyOf {
				r := l.recipe(relu, c.norm, max(1, l.claimSteps*l.batch/batch))
				r.design.ghost = c.in(batch).ghost
				r.train = l.train.First(regularImages)
				r.batch = batch
				add(regularName(c, batch), r)
			}
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		spreadFigure := newFigure("regularization-spread", "", "One image in random company", "images in the batch", "spread of its probability")
		spreadFigure.caption = fmt.Sprintf("Standard deviation of the probability of the right label over %d batches of random training images "+
			"around one test image; average over %d such images. ReLU network trained in batches of %d, "+
			"that for ghost batches being the one with batch norm.",
			l.companies, companyGuests, paperBatch)
		gapFigure := newFigure("regularization-gap", "", "Training less test accuracy", "images in the batch of the training", "gap, points")
		gapFigure.caption = fmt.Sprintf("ReLU networks after %d images, drawn from the first %d of the training set.",
			l.claimSteps*l.batch, regularImages)
		spreads, gaps := map[company][]float64{}, map[company][]float64{}
		for _, c := range companyOf {
			net := *traces[regularName(company{norm: c.norm}, paperBatch)].net
			for _, batch := range regularBatches {
				net.ghost = c.in(batch).ghost
				s, err := l.spread(&net, batch)
				if err != nil {
					return nil, err
				}
				spreads[c] = append(spreads[c], s)
				t := traces[regularName(c, batch)]
				gaps[c] = append(gaps[c], t.finalTrain-t.finalTest)
			}
			if err := spreadFigure.line(c.name(), c.style(), floats(regularBatches), spreads[c]); err != nil {
				return nil, err
			}
			if err := gapFigure.line(c.name(), c.style(), floats(regularBatches), scaled(gaps[c], 100)); err != nil {
				return nil, err
			}
		}
		spreadFigure.plot.Y.Min = 0
		spreadFigure.plot.Y.Max *= 1.4 // for the legend
		spreadFigure.plot.Legend.Top = true
		gapFigure.plot.Y.Min = min(0, gapFigure.plot.Y.Min)
		t := table{
			caption: "Accuracy after training.",
			head:    []string{"batch", "", "training images", "test images", "gap"},
		}
		for i, batch := range regularBatches {
			for _, c := range companyOf {
				if c != c.in(batch) {
					continue
				}
				trace := traces[regularName(c, batch)]
				t.rows = append(t.rows, []string{
					fmt.Sprint(batch), c.name(), percent(trace.finalTrain), percent(trace.finalTest), points(gaps[c][i]),
				})
			}
		}
		return &result{[]*figure{spreadFigure, gapFigure}, []table{t}, []finding{
			spreadFinding(spreads[wholeBatch], spreads[noCompany]),
			gapFinding(gaps[wholeBatch], gaps[noCompany]),
			ghostSpreadFinding(spreads[wholeBatch], spreads[ghostBatch]),
			ghostGapFinding(gaps[wholeBatch], gaps[ghostBatch]),
		}}, nil
	},
}

// The slices of the findings have a value for each of regularBatches.

func spreadFinding(with, without []float64) finding {
	var phrases []string
	shrinks := true
	for i, batch := range regularBatches {
		phrases = append(phrases, fmt.Sprintf("%.3f among %d", with[i], batch))
		shrinks = shrinks && (i == 0 || with[i] < with[i-1])
	}
	none := slices.Max(without)
	return finding{
		fmt.Sprintf("The spread of an image's probability with batch norm is %s: it %s as the batch grows. Without it is %s.",
			list(phrases), choose(shrinks, "shrinks", "does not always shrink"), choose(none == 0, "0", fmt.Sprintf("up to %.3g", none))),
		shrinks && none == 0 && with[0] > 0,
	}
}

func gapFinding(with, without []float64) finding {
	var phrases []string
	narrower := 0
	for i, batch := range regularBatches {
		phrases = append(phrases, fmt.Sprintf("%.1f and %.1f for batches of %d", 100*with[i], 100*without[i], batch))
		if with[i] < without[i] {
			narrower++
		}
	}
	return finding{
		fmt.Sprintf("The points between training and test accuracy, with batch norm and without, are %s: fewer with it in %d of %d.",
			list(phrases), narrower, len(regularBatches)),
		narrower == len(regularBatches),
	}
}

// ghostSpreadFinding compares the largest batch, cut and whole, with the
// smallest.
func ghostSpreadFinding(whole, ghost []float64) finding {
	last := len(regularBatches) - 1
	small, large, cut := whole[0], whole[last], ghost[last]
	kept := math.Abs(cut-small) < math.Abs(cut-large)
	return finding{
		fmt.Sprintf("Among %d in ghost batches of %d it is %.3f, which is nearer to that among %s.",
			regularBatches[last], ghostImages, cut,
			choose(kept, fmt.Sprintf("%d than to that of the whole batch", regularBatches[0]), fmt.Sprintf("all %d", regularBatches[last]))),
		kept && cut > large,
	}
}

func ghostGapFinding(whole, ghost []float64) finding {
	var phrases []string
	narrower, cut := 0, 0
	for i, batch := range regularBatches {
		if batch <= ghostImages {
			continue
		}
		cut++
		phrases = append(phrases, fmt.Sprintf("%.1f and %.1f for batches of %d", 100*ghost[i], 100*whole[i], batch))
		if ghost[i] < whole[i] {
			narrower++
		}
	}
	return finding{
		fmt.Sprintf("The points between training and test accuracy, in ghost batches of %d and in whole ones, "+
			"are %s: fewer in ghost batches in %d of %d.",
			ghostImages, list(phrases), narrower, cut),
		narrower == cut,
	}
}

// companyGuests is the number of images that are put into several batches.
const companyGuests = 10

// spread returns how much the probability of an image's label depends on the other images
// of its batch: the standard deviation, averaged over some images.
func (l *lab) spread(net *network, n int) (float64, error) {
	p, err := newPass(net, n)
	if err != nil {
		return 0, err
	}
	r := rand.New(rand.NewPCG(l.seed, 1))
	images := make([]int, n)
	total := 0.0
	for guest := range companyGuests {
		label := l.test.Label(guest)
		values := make([]float64, l.companies)
		for k := range values {
			for i := range images {
				images[i] = r.IntN(l.train.N)
			}
			p.fill(l.train, images)
			l.test.Image(guest, p.x)
			p.labels[0] = label
			if _, err := p.forward(batch); err != nil {
				return 0, err
			}
			values[k] = float64(p.probabilities()[label])
		}
		_, std, _ := moments(values)
		total += std
	}
	return total / companyGuests, nil
}

var rateFactors = []float64{1, 5, 30, 150}

// rateColors are other colours than those of networks with and without batch norm.
var rateColors = []color.Color{
	color.RGBA{68, 1, 84, 255}, color.RGBA{49, 104, 142, 255}, color.RGBA{53, 160, 100, 255}, color.RGBA{190, 160, 0, 255},
}

var rateActivations = []*activation{sigmoid, relu}

func rateName(act *activation, norm bool, factor float64) string {
	if factor == 1 {
		return claimName(act, norm)
	}
	return fmt.Sprintf("%s, %v times the rate", claimName(act, norm), factor)
}

var learningRate = section{
	id:    "rate",
	title: "Higher learning rates",
	claim: "Batch norm allows much higher learning rates, where the same network diverges or stalls without it.",
	recipes: func(l *lab, add func(string, recipe)) {
		for _, act := range rateActivations {
			for _, norm := range both {
				for _, factor := range rateFactors {
					r := l.recipe(act, norm, l.claimSteps)
					r.rate *= factor
					add(rateName(act, norm, factor), r)
				}
			}
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		r := &result{}
		t := table{
			caption: fmt.Sprintf("Settled test accuracy after %d steps.", l.claimSteps),
			head:    []string{"", ""},
		}
		for _, factor := range rateFactors {
			t.head = append(t.head, fmt.Sprintf("rate %.3g", l.rate*factor))
		}
		for _, act := range rateActivations {
			for _, norm := range both {
				f := accuracyFigure(fmt.Sprintf("rate-%s-%s", act.name, choose(norm, "with", "without")),
					fmt.Sprintf("%s, %s", act.name, withName(norm)))
				row := []string{act.name, withName(norm)}
				for i, factor := range rateFactors {
					trace := traces[rateName(act, norm, factor)]
					s := style{color: rateColors[i]}
					if !norm {
						s.dashed = true
					}
					if err := f.curve(fmt.Sprintf("x%v", factor), s, trace); err != nil {
						return nil, err
					}
					row = append(row, choose(trace.diverged >= 0, fmt.Sprintf("diverged at step %d", trace.diverged), percent(trace.settled())))
				}
				r.figures = append(r.figures, f)
				t.rows = append(t.rows, row)
			}
			var with, without []*trace
			for _, factor := range rateFactors {
				with = append(with, traces[rateName(act, true, factor)])
				without = append(without, traces[rateName(act, false, factor)])
			}
			r.findings = append(r.findings, rateFinding(act.name, with, without))
		}
		r.tables = []table{t}
		return r, nil
	},
}

// usable is the largest distance from the best accuracy at which a rate counts as usable.
const usable = 0.1

// rateFinding names the highest usable rate, with and without batch norm: its accuracy
// comes near the best that either network reaches at any rate.
func rateFinding(act string, with, without []*trace) finding {
	best := 0.0
	for _, t := range slices.Concat(with, without) {
		best = max(best, t.settled())
	}
	highest := func(traces []*trace) (factor float64, name string) {
		name = "no rate"
		for _, t := range traces {
			if f := t.rate / traces[0].rate; t.settled() >= best-usable && f > factor {
				factor, name = f, fmt.Sprintf("x%.3g", f)
			}
		}
		return factor, name
	}
	a, nameA := highest(with)
	b, nameB := highest(without)
	return finding{
		fmt.Sprintf("%s: the highest rate that settles within %.0f points of the best, %s, is %s with batch norm and %s without.",
			act, 100*usable, percent(best), nameA, nameB),
		a > b,
	}
}

var gaussian = section{
	id:    "gaussian",
	title: "More Gaussian in front of GELU",
	claim: "Batch norm makes pre-activations more Gaussian, for which GELU is made.",
	recipes: func(l *lab, add func(string, recipe)) {
		for _, norm := range both {
			add(claimName(gelu, norm), l.recipe(gelu, norm, l.claimSteps))
		}
	},
	measure: func(l *lab, traces map[string]*trace) (*result, error) {
		f := newFigure("gaussian", "", "Last hidden layer, against the normal distribution", "normal quantile", "quantile of pre-activations")
		f.caption = fmt.Sprintf("All units of the layer together, less their mean and divided by their deviation; %d test images after the training. "+
			"On the grey line a distribution is normal.", l.probe)
		f.legendTopLeft()
		if err := f.line("normal", style{color: grey}, []float64{-3, 3}, []float64{-3, 3}); err != nil {
			return nil, err
		}
		t := table{
			caption: "Kurtosis of pre-activations, 3 if normal: of a layer's units together, and of the units by themselves (median).",
			head:    []string{"hidden layer", "together, with", "without", "units, with", "without"},
		}
		layers := map[bool][]shapeOf{}
		for _, norm := range both {
			net := traces[claimName(gelu, norm)].net
			pre, err := l.preactivations(net)
			if err != nil {
				return nil, err
			}
			for i, values := range pre {
				layers[norm] = append(layers[norm], shapeOfLayer(values, net.hidden[i]))
			}
			xs, ys := quantiles(pre[len(pre)-1])
			if err := f.line(withName(norm), styleOf(norm, 0), xs, ys); err != nil {
				return nil, err
			}
		}
		for i := range layers[true] {
			a, b := layers[true][i], layers[false][i]
			t.rows = append(t.rows, []string{
				fmt.Sprint(i + 1), fmt.Sprintf("%.2f", a.together), fmt.Sprintf("%.2f", b.together),
				fmt.Sprintf("%.2f", a.unit), fmt.Sprintf("%.2f", b.unit),
			})
		}
		return &result{[]*figure{f}, []table{t}, gaussianFindings(layers[true], layers[false])}, nil
	},
}

// shapeOf has the kurtosis of a layer's pre-activations.
type shapeOf struct{ together, unit float64 }

func shapeOfLayer(values []float64, units int) shapeOf {
	var s shapeOf
	_, _, s.together = moments(values)
	each := make([]float64, 0, units)
	for unit := range units {
		_, _, kurtosis := moments(unitValues(values, unit, units))
		each = append(each, kurtosis)
	}
	slices.Sort(each)
	s.unit = percentile(each, 0.5)
	return s
}

func gaussianFindings(with, without []shapeOf) []finding {
	distance := func(layers []shapeOf) (together, unit float64) {
		for _, l := range layers {
			together += math.Abs(l.together-normalKurtosis) / float64(len(layers))
			unit += math.Abs(l.unit-normalKurtosis) / float64(len(layers))
		}
		return together, unit
	}
	together, unit := distance(with)
	togetherWithout, unitWithout := distance(without)
	return []finding{
		{
			fmt.Sprintf("The kurtosis of the units of a layer together is %.2f away from the normal distribution's "+
				"with batch norm, and %.2f without, on average over the layers.",
				together, togetherWithout),
			together < togetherWithout,
		},
		{
			fmt.Sprintf("That of the median unit by itself is %.2f away with batch norm, and %.2f without.", unit, unitWithout),
			unit < unitWithout,
		},
	}
}

const normalKurtosis = 3

// preactivations returns the inputs of the activations of every hidden layer for the probe
// images, image by image.
func (l *lab) preactivations(net *network) ([][]float64, error) {
	p, err := newPass(net, probeBatch)
	if err != nil {
		return nil, err
	}
	var all [][]float64
	err = p.each(l.test.First(l.probe), func() (err error) {
		all, err = p.collect(all)
		return err
	})
	return all, err
}

// quantiles returns quantiles of the normal distribution, and those of the standardized
// values.
func quantiles(values []float64) (normal, own []float64) {
	sorted := slices.Sorted(slices.Values(values))
	m, std, _ := moments(sorted)
	const n = 200
	for i := range n {
		share := (float64(i) + 0.5) / n
		normal = append(normal, math.Sqrt2*math.Erfinv(2*share-1))
		own = append(own, (percentile(sorted, share)-m)/std)
	}
	return normal, own
}
