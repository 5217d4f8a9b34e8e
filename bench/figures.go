package main

import (
	"cmp"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
)

// fractionFigures shows the fraction of the bound by shape and operation, in a figure
// for each layout and number of workers.
func fractionFigures(rows []boundRow) ([]figure, error) {
	var all []figure
	for _, workers := range unique(rows, func(r boundRow) int { return r.Workers }) {
		for _, rowsFirst := range []bool{true, false} {
			var some []boundRow
			for _, r := range rows {
				if r.Workers == workers && (r.Layout == "nchw") == rowsFirst {
					some = append(some, r)
				}
			}
			if len(some) == 0 {
				continue
			}
			title := fmt.Sprintf("NCHW, %s", plural(workers, "worker"))
			if !rowsFirst {
				title = fmt.Sprintf("NHWC and NC, %s", plural(workers, "worker"))
			}
			f, err := fractionFigure(title, some)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
	}
	return all, nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fractionTop is the upper end of the figure. A larger fraction is a disturbed
// measurement, since no operation is faster than its bound; it is drawn at the edge.
const fractionTop = 1.3

func fractionFigure(title string, rows []boundRow) (figure, error) {
	p := newChart("tensor, NxCxHxW or NxC", "time of the bound / time")
	shapes := unique(rows, func(r boundRow) string { return r.Shape })
	list := unique(rows, func(r boundRow) string { return r.Operation })
	nameX(p, shapes)
	if err := horizontals(p, p.X.Min, p.X.Max, 0.2, 0.4, 0.6, 0.8); err != nil {
		return figure{}, err
	}
	if err := curve(p, "bound", color.Gray{0x77}, dashed, plotter.XYs{{X: p.X.Min, Y: 1}, {X: p.X.Max, Y: 1}}); err != nil {
		return figure{}, err
	}
	for k, name := range list {
		var points plotter.XYs
		for _, r := range rows {
			if r.Operation == name {
				points = append(points, plotter.XY{X: spread(float64(slices.Index(shapes, r.Shape)), k, len(list)), Y: min(r.Fraction, fractionTop)})
			}
		}
		if err := series(p, name, k, points); err != nil {
			return figure{}, err
		}
	}
	p.Y.Min, p.Y.Max = 0, fractionTop+0.02
	sorted := slices.SortedFunc(slices.Values(rows), func(a, b boundRow) int { return cmp.Compare(a.Fraction, b.Fraction) })
	least := sorted[0]
	finding := fmt.Sprintf("Half of the operations reach %.2f of the bound or more. The lowest is %.2f: %s, %s.",
		sorted[len(sorted)/2].Fraction, least.Fraction, least.Operation, least.Shape)
	return p.figure("Fraction of the bound: "+title, finding, figureHeight)
}

// rooflineFigure shows the speed of one worker over the arithmetic intensity. There is
// none without the machine's limits.
func rooflineFigure(r *report) ([]figure, error) {
	memory := r.copySpeed(math.Inf(1))
	var rows []boundRow
	for _, b := range r.Bounds {
		if b.Workers == 1 {
			rows = append(rows, b)
		}
	}
	if memory == 0 || r.Peak == 0 || len(rows) == 0 {
		return nil, nil
	}
	p := newChart("floating-point operations per byte that must move", "GFLOP/s")
	intensity := func(o op) float64 { return float64(o.flops()) / float64(o.bytes) }
	left, right := math.Inf(1), 0.0
	for _, b := range rows {
		x := intensity(opNamed(b.Operation))
		left, right = min(left, x), max(right, x)
	}
	left, right = left/1.6, max(right*2.5, 1.5*r.Peak/memory) // room for both ends of the roof
	roof := func(name string, speed float64, i int, dashes []vg.Length) error {
		corner := max(left, r.Peak/speed)
		return curve(p, name, palette[i], dashes, plotter.XYs{{X: left, Y: speed * left}, {X: corner, Y: speed * corner}})
	}
	cacheDashes := [][]vg.Length{dotted, {vg.Points(8), vg.Points(2)}, {vg.Points(8), vg.Points(2), vg.Points(2), vg.Points(2)}}
	if err := roof(fmt.Sprintf("memory, %.3g GB/s", memory), memory, 7, nil); err != nil {
		return nil, err
	}
	low, fastest, fastestOp := memory*left, 0.0, ""
	for i, c := range r.Caches {
		// A copy fits when the two tensors do, with some room.
		if speed := r.copySpeed(float64(c.Bytes) / 3); speed > memory && r.Peak/speed > left {
			if err := roof(fmt.Sprintf("%s, %.3g GB/s", c.Name, speed), speed, 4+i, cacheDashes[i%len(cacheDashes)]); err != nil {
				return nil, err
			}
		}
	}
	if err := curve(p, fmt.Sprintf("additions, %.3g GFLOP/s", r.Peak), palette[8], dashed,
		plotter.XYs{{X: left, Y: r.Peak}, {X: right, Y: r.Peak}}); err != nil {
		return nil, err
	}
	for k, name := range unique(rows, func(b boundRow) string { return b.Operation }) {
		o := opNamed(name)
		var points plotter.XYs
		for _, b := range rows {
			if b.Operation == name {
				y := float64(o.flops()*b.Elements) / b.Nanoseconds
				low = min(low, y)
				if y > fastest {
					fastest, fastestOp = y, b.Operation
				}
				points = append(points, plotter.XY{X: intensity(o), Y: y})
			}
		}
		if err := series(p, name, k, points); err != nil {
			return nil, err
		}
	}
	logX(p, decades)
	logY(p, decades)
	p.X.Min, p.X.Max = left, right
	p.Y.Min, p.Y.Max = low/1.3, r.Peak*1.5
	finding := fmt.Sprintf("The fastest operation, %s, computes at %.2f of the speed of additions.", fastestOp, fastest/r.Peak)
	f, err := p.figure("Roofline: 1 worker", finding, figureHeight)
	return []figure{f}, err
}

// copySpeed returns the GB/s of one worker's copy, reads and writes, for the sweep's
// largest tensor of at most so many bytes. It is 0 without a sweep.
func (r *report) copySpeed(most float64) float64 {
	largest, speed := 0, 0.0
	for _, s := range r.Sweep {
		o := opNamed(s.Operation)
		if o.kind == inference && float64(4*s.Elements) <= most && s.Elements >= largest {
			largest, speed = s.Elements, float64(s.bytes())/s.BoundNanoseconds
		}
	}
	return speed
}

// peerFigures shows the ratios of every contest, cell by cell, and by shape.
func peerFigures(rows []peerRow) ([]figure, error) {
	all := standings(rows)
	if len(all) == 0 {
		return nil, nil
	}
	p := newChart("peer", "peer's time / ours")
	var names []string
	for _, s := range all {
		names = append(names, s.name)
	}
	nameX(p, names)
	p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = 0, text.XCenter, text.YTop
	lo, hi := 0.8, 10.0
	for _, r := range rows {
		lo, hi = min(lo, r.Ratio), max(hi, r.Ratio)
	}
	var grid []float64
	for v := math.Pow(10, math.Floor(math.Log10(lo))); v <= hi; v *= 10 {
		if v >= lo {
			grid = append(grid, v)
		}
	}
	if err := horizontals(p, p.X.Min, p.X.Max, grid...); err != nil {
		return nil, err
	}
	if err := curve(p, "equal", color.Gray{0x77}, dashed, plotter.XYs{{X: p.X.Min, Y: 1}, {X: p.X.Max, Y: 1}}); err != nil {
		return nil, err
	}
	list := unique(rows, func(r peerRow) string { return r.Operation })
	for k, name := range list {
		var points plotter.XYs
		for _, r := range rows {
			if i := slices.Index(names, r.Contest); i >= 0 && r.Operation == name {
				points = append(points, plotter.XY{X: spread(float64(i), k, len(list)), Y: r.Ratio})
			}
		}
		if err := series(p, name, k, points); err != nil {
			return nil, err
		}
	}
	for i, s := range all {
		x := float64(i)
		line := func(name string, c color.Color, dashes []vg.Length, y float64) error {
			if i > 0 && !(name == "goal" && s.name == firstGoal(all)) {
				name = ""
			}
			return curve(p, name, c, dashes, plotter.XYs{{X: x - 0.42, Y: y}, {X: x + 0.42, Y: y}})
		}
		if err := line("geometric mean", palette[8], nil, s.mean); err != nil {
			return nil, err
		}
		if s.goal > 0 {
			if err := line("goal", palette[1], dotted, s.goal); err != nil {
				return nil, err
			}
		}
	}
	logY(p, decadesOnly(lo, hi))
	p.Y.Min, p.Y.Max = lo/1.2, hi*1.2
	faster := 0
	for _, r := range rows {
		if r.Ratio > 1 {
			faster++
		}
	}
	finding := fmt.Sprintf("This package is faster in %d of %d cells.", faster, len(rows))
	cells, err := p.figure("Speed-up over each peer: every cell", finding, figureHeight+30)
	if err != nil {
		return nil, err
	}
	byShape, err := peersByShape(rows, all)
	return []figure{cells, byShape}, err
}

// firstGoal names the first contest that has a goal.
func firstGoal(all []standing) string {
	for _, s := range all {
		if s.goal > 0 {
			return s.name
		}
	}
	return ""
}

// decadesOnly returns ticks for a range: fewer if it is wide.
func decadesOnly(lo, hi float64) plot.TickerFunc {
	if hi/lo < 2000 {
		return decades
	}
	return powers(10, 1, number)
}

// peersByShape shows the geometric mean of each contest by shape.
func peersByShape(rows []peerRow, all []standing) (figure, error) {
	p := newChart("tensor, NxCxHxW or NxC", "peer's time / ours")
	shapes := unique(rows, func(r peerRow) string { return r.Shape })
	nameX(p, shapes)
	lo, hi := 0.8, 10.0
	type contestMeans struct {
		name   string
		points plotter.XYs
	}
	var means []contestMeans
	least, finding := math.Inf(1), ""
	for k, s := range all {
		var points plotter.XYs
		for i, shape := range shapes {
			var logs []float64
			for _, r := range rows {
				if r.Contest == s.name && r.Shape == shape {
					logs = append(logs, math.Log(r.Ratio))
				}
			}
			if len(logs) > 0 {
				y := math.Exp(mean(logs))
				lo, hi = min(lo, y), max(hi, y)
				points = append(points, plotter.XY{X: spread(float64(i), k, len(all)), Y: y})
				if y < least {
					least, finding = y, fmt.Sprintf("The lowest speed-up is %.2f: over %s, %s.", y, s.name, shape)
				}
			}
		}
		means = append(means, contestMeans{s.name, points})
	}
	if err := curve(p, "equal", color.Gray{0x77}, dashed, plotter.XYs{{X: p.X.Min, Y: 1}, {X: p.X.Max, Y: 1}}); err != nil {
		return figure{}, err
	}
	for i, m := range means {
		if err := series(p, m.name, i, m.points); err != nil {
			return figure{}, err
		}
	}
	logY(p, decadesOnly(lo, hi))
	p.Y.Min, p.Y.Max = lo/1.2, hi*1.2
	return p.figure("Speed-up over each peer: geometric mean by shape", finding, figureHeight+30)
}

// scalingFigures shows the speed-up by workers, measured and by the traffic model, in
// a figure for each layout.
func scalingFigures(rows []boundRow, bandwidth float64) ([]figure, error) {
	var figures []figure
	all := scalings(rows)
	for _, layout := range unique(all, func(s scaling) string { return s.layout }) {
		f, err := scalingFigure(layout, slices.DeleteFunc(slices.Clone(all), func(s scaling) bool { return s.layout != layout }), bandwidth)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

func scalingFigure(layout string, all []scaling, bandwidth float64) (figure, error) {
	p := newChart("workers", "time of 1 worker / time")
	most := float64(modelWorkers[len(modelWorkers)-1])
	if err := curve(p, "ideal", color.Gray{0xaa}, nil, plotter.XYs{{X: 1, Y: 1}, {X: most, Y: most}}); err != nil {
		return figure{}, err
	}
	modelName := "traffic model, with small marks"
	measuredMost, lo, hi := 0, math.Inf(1), 0.0 // the largest number of workers measured, and its speed-ups
	for i, s := range all {
		var model, measured plotter.XYs
		for w := 1.0; w <= most; w *= 2 {
			model = append(model, plotter.XY{X: w, Y: s.model(int(w), bandwidth)})
		}
		for w, y := range s.measured {
			measured = append(measured, plotter.XY{X: float64(w), Y: y})
			most = max(most, float64(w))
			if w > measuredMost {
				measuredMost, lo, hi = w, y, y
			} else if w == measuredMost {
				lo, hi = min(lo, y), max(hi, y)
			}
		}
		if err := curve(p, modelName, palette[i%len(palette)], dashed, model); err != nil {
			return figure{}, err
		}
		modelName = ""
		if err := smallSeries(p, i, model); err != nil {
			return figure{}, err
		}
		if err := series(p, s.operation, i, measured); err != nil {
			return figure{}, err
		}
	}
	logX(p, powers(2, 1, number))
	logY(p, powers(2, 1, number))
	p.X.Min, p.X.Max = 1, most*1.1
	p.Y.Min, p.Y.Max = 0.7, most*1.1
	finding := fmt.Sprintf("%s are %.2f to %.2f times as fast as 1.", plural(measuredMost, "worker"), lo, hi)
	return p.figure("Scaling by workers: "+strings.ToUpper(layout), finding, figureHeight)
}

// sweepFigures shows the speed over the size of a tensor, in a figure for each layout.
func sweepFigures(rows []boundRow, known []cache) ([]figure, error) {
	var all []figure
	for _, layout := range unique(rows, func(r boundRow) string { return r.Layout }) {
		p := newChart("size of a tensor", "GB/s")
		lo, hi, top := math.Inf(1), 0.0, 0.0
		var forwards plotter.XYs
		for _, r := range rows {
			lo, hi = min(lo, float64(4*r.Elements)), max(hi, float64(4*r.Elements))
			if r.Layout == layout {
				top = max(top, float64(r.bytes())/r.Nanoseconds)
			}
		}
		top *= 1.6 // bounds of tensors in the first-level cache may be beyond this
		for _, c := range known {
			x := float64(c.Bytes)
			if x < lo || x > hi {
				continue
			}
			if err := curve(p, "", color.Gray{0x99}, dotted, plotter.XYs{{X: x, Y: 0}, {X: x, Y: top}}); err != nil {
				return nil, err
			}
			align := text.XAlignment(text.XLeft)
			if x > hi/8 { // no room on the right
				align = text.XRight
			}
			// At the lower end, where no curve runs.
			if err := note(p, x, top*0.01, " "+c.Name+", "+sizeText(x)+" ", align); err != nil {
				return nil, err
			}
		}
		names := unique(rows, func(r boundRow) string { return r.Operation })
		for k, name := range names {
			var ours, bounds plotter.XYs
			for _, r := range rows {
				if r.Layout == layout && r.Operation == name {
					x, bytes := float64(4*r.Elements), float64(r.bytes())
					ours = append(ours, plotter.XY{X: x, Y: bytes / r.Nanoseconds})
					bounds = append(bounds, plotter.XY{X: x, Y: bytes / r.BoundNanoseconds})
				}
			}
			if err := curve(p, "", palette[k], nil, ours); err != nil {
				return nil, err
			}
			if err := series(p, name, k, ours); err != nil {
				return nil, err
			}
			boundName := ""
			if k == len(names)-1 { // the last entry of the legend stands for all
				boundName = "bound, with small marks"
			}
			if err := curve(p, boundName, palette[k], dashed, bounds); err != nil {
				return nil, err
			}
			if err := smallSeries(p, k, bounds); err != nil {
				return nil, err
			}
			if opNamed(name).kind == forward {
				forwards = ours
			}
		}
		logX(p, powers(2, 2, sizeText))
		p.X.Min, p.X.Max = lo/1.1, hi*1.1
		p.Y.Min, p.Y.Max = 0, top*1.1
		name := map[string]string{"nchw": "NCHW", "nhwc": "NHWC"}[layout]
		finding := ""
		if len(forwards) > 0 {
			fastest := slices.MaxFunc(forwards, func(a, b plotter.XY) int { return cmp.Compare(a.Y, b.Y) })
			last := forwards[len(forwards)-1]
			finding = fmt.Sprintf("Forward moves %.3g GB/s at %s, and %.3g GB/s at %s.", fastest.Y, sizeText(fastest.X), last.Y, sizeText(last.X))
		}
		f, err := p.figure("Speed by the size of a tensor: "+name+", 1 worker", finding, figureHeight)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}
