package main

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// figure is a plot with its legend, for the page, and a picture of both.
type figure struct {
	title   string
	finding string // a sentence: the result that the plot shows
	svg     string
	keys    []figureKey
	alone   string
}

// file returns the name of the file of the picture.
func (f figure) file() string {
	words := strings.FieldsFunc(strings.ToLower(f.title), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	return strings.Join(words, "-") + ".svg"
}

type figureKey struct{ name, svg string }

// chart is a plot with a legend of its own: beside it on the page, where it has
// room on a narrow screen.
type chart struct {
	*plot.Plot
	keys []chartKey
}

type chartKey struct {
	name string
	mark plot.Thumbnailer
}

// palette has colours that most colour-blind people can distinguish (Okabe and Ito).
// Series differ in their marks as well, for print in grey.
var palette = []color.RGBA{
	{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff},
	{0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0x6b, 0x4c, 0x9a, 0xff}, {0x80, 0x80, 0x80, 0xff},
	{0x00, 0x00, 0x00, 0xff},
}

var marks = []draw.GlyphDrawer{
	draw.CircleGlyph{}, outline{4, math.Pi / 4}, outline{3, math.Pi / 2}, draw.PyramidGlyph{}, outline{}, draw.BoxGlyph{},
	draw.CrossGlyph{}, draw.PlusGlyph{}, diamond{},
}

// outline is a regular polygon with its first corner in the given direction, or a circle
// without corners. Its line is wide enough for light colours and for grey: those of
// package draw are half a point wide.
type outline struct {
	corners int
	angle   float64
}

func (o outline) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	c.SetLineStyle(draw.LineStyle{Color: style.Color, Width: vg.Points(1.1)})
	var p vg.Path
	if o.corners == 0 {
		p.Move(vg.Point{X: at.X + style.Radius, Y: at.Y})
		p.Arc(at, style.Radius, 0, 2*math.Pi)
	}
	for k := range o.corners {
		sin, cos := math.Sincos(o.angle + 2*math.Pi*float64(k)/float64(o.corners))
		r := 1.25 * style.Radius // of corners, which look smaller than a circle
		corner := vg.Point{X: at.X + vg.Length(cos)*r, Y: at.Y + vg.Length(sin)*r}
		if k == 0 {
			p.Move(corner)
		} else {
			p.Line(corner)
		}
	}
	p.Close()
	c.Stroke(p)
}

// diamond is a filled square on its corner.
type diamond struct{}

func (diamond) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	c.SetColor(style.Color)
	r := 1.3 * style.Radius
	var p vg.Path
	p.Move(vg.Point{X: at.X - r, Y: at.Y})
	p.Line(vg.Point{X: at.X, Y: at.Y + r})
	p.Line(vg.Point{X: at.X + r, Y: at.Y})
	p.Line(vg.Point{X: at.X, Y: at.Y - r})
	p.Close()
	c.Fill(p)
}

var (
	faint  = color.Gray{0xdd}
	dashed = []vg.Length{vg.Points(5), vg.Points(4)}
	dotted = []vg.Length{vg.Points(1.5), vg.Points(3)}
)

// The size of a figure, in points. A narrow screen scrolls it, rather than
// making its text unreadable.
const (
	figureWidth  = 640
	figureHeight = 300
)

func newChart(x, y string) *chart {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = x, y
	p.BackgroundColor = color.Transparent
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	for _, s := range []*text.Style{&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		sans.Size = vg.Points(11)
		s.Font = sans
	}
	return &chart{Plot: p}
}

// figure draws the plot.
func (p *chart) figure(title, finding string, height int) (figure, error) {
	c := vgsvg.New(vg.Points(figureWidth), vg.Points(float64(height)))
	p.Draw(draw.Crop(draw.New(c), 0, -vg.Points(8), vg.Points(6), -vg.Points(4)))
	f := figure{title: title, finding: finding}
	var err error
	if f.svg, err = inline(c, title+". "+finding); err != nil {
		return f, err
	}
	for _, k := range p.keys {
		c := vgsvg.New(vg.Points(22), vg.Points(10))
		area := draw.New(c)
		k.mark.Thumbnail(&area)
		svg, err := inline(c, "")
		if err != nil {
			return f, err
		}
		f.keys = append(f.keys, figureKey{k.name, svg})
	}
	f.alone, err = p.picture(title, finding, height)
	return f, err
}

// picture draws the plot below its finding and title, and the legend in rows below it.
func (p *chart) picture(title, finding string, height int) (string, error) {
	const margin, line, perRow = 10, 16, 3
	rows := (len(p.keys) + perRow - 1) / perRow
	c := vgsvg.New(vg.Points(figureWidth), vg.Points(float64(height+(rows+3)*line)))
	all := draw.New(c)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	style := p.X.Label.TextStyle
	style.XAlign, style.YAlign = text.XLeft, text.YCenter
	under := vg.Points(float64(rows*line + line/2))
	p.Draw(draw.Crop(all, 0, -vg.Points(8), under, -vg.Points(2.5*line)))
	for i, text := range []string{finding, title} {
		all.FillText(style, vg.Point{X: vg.Points(margin), Y: all.Max.Y - vg.Points((float64(i)+0.75)*line)}, text)
	}
	for i, k := range p.keys {
		corner := vg.Point{
			X: vg.Points(margin + float64(i%perRow)*(figureWidth-2*margin)/perRow),
			Y: vg.Points(float64((rows-1-i/perRow)*line + line/4)),
		}
		area := draw.Canvas{Canvas: c, Rectangle: vg.Rectangle{Min: corner, Max: corner.Add(vg.Point{X: vg.Points(22), Y: vg.Points(10)})}}
		k.mark.Thumbnail(&area)
		all.FillText(style, corner.Add(vg.Point{X: vg.Points(28), Y: vg.Points(5)}), k.name)
	}
	return inline(c, title+". "+finding)
}

var viewBoxPattern = regexp.MustCompile(`viewBox="[^"]*"`)

// inline returns a drawing as an SVG element without a size of its own. Screen readers
// read the label; they skip a drawing without one.
func inline(c *vgsvg.Canvas, label string) (string, error) {
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	_, s, _ := strings.Cut(b.String(), "<svg")
	open, rest, ok := strings.Cut(s, ">")
	view := viewBoxPattern.FindString(open)
	if !ok || view == "" {
		return "", fmt.Errorf("drawing %q is no SVG element with a viewBox", label)
	}
	role := `aria-hidden="true"`
	if label != "" {
		role = fmt.Sprintf(`role="img" aria-label="%s"`, html.EscapeString(label))
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" %s %s>%s`, view, role, rest), nil
}

// series adds points as marks, and to the legend under name unless that is empty.
func series(p *chart, name string, i int, points plotter.XYs) error {
	return scatter(p, name, i, vg.Points(3), points)
}

// smallSeries adds points as smaller marks, without an entry in the legend: for a line
// that belongs to a series and must be recognized without colour.
func smallSeries(p *chart, i int, points plotter.XYs) error {
	return scatter(p, "", i, vg.Points(1.7), points)
}

func scatter(p *chart, name string, i int, radius vg.Length, points plotter.XYs) error {
	if len(points) == 0 {
		return nil
	}
	s, err := plotter.NewScatter(points)
	if err != nil {
		return err
	}
	s.Color, s.Shape, s.Radius = palette[i%len(palette)], marks[i%len(marks)], radius
	p.Add(s)
	if name != "" {
		p.keys = append(p.keys, chartKey{name, s})
	}
	return nil
}

// curve adds points as a line.
func curve(p *chart, name string, c color.Color, dashes []vg.Length, points plotter.XYs) error {
	if len(points) == 0 {
		return nil
	}
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width, l.Dashes = c, vg.Points(1.4), dashes
	p.Add(l)
	if name != "" {
		p.keys = append(p.keys, chartKey{name, l})
	}
	return nil
}

// horizontals adds faint lines across the plot.
func horizontals(p *chart, from, to float64, at ...float64) error {
	for _, y := range at {
		if err := curve(p, "", faint, nil, plotter.XYs{{X: from, Y: y}, {X: to, Y: y}}); err != nil {
			return err
		}
	}
	return nil
}

// note writes text above a point of the plot, to its right or left.
func note(p *chart, x, y float64, s string, align text.XAlignment) error {
	l, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: x, Y: y}}, Labels: []string{s}})
	if err != nil {
		return err
	}
	style := &l.TextStyle[0]
	style.Font = p.X.Tick.Label.Font
	style.Font.Size = vg.Points(10)
	style.XAlign, style.YAlign = align, text.YBottom
	style.Color = color.Gray{0x55}
	p.Add(l)
	return nil
}

// nameX labels 0, 1, 2 ... of the axis with names, slanted if there are many.
func nameX(p *chart, names []string) {
	p.NominalX(names...)
	p.X.Tick.Width, p.X.Width = vg.Points(0.5), vg.Points(0.5)
	if len(names) > 6 {
		p.X.Tick.Label.Rotation = math.Pi / 5
		p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = text.XRight, text.YTop
	}
	p.X.Min, p.X.Max = -0.6, float64(len(names))-0.4
	p.X.Padding, p.Y.Padding = 0, 0
}

// spread returns the place of the k-th of n marks beside x.
func spread(x float64, k, n int) float64 {
	const width = 0.7
	return x + width*(float64(k)+0.5)/float64(n) - width/2
}

// unique returns the keys of the rows, in order, each once.
func unique[T any, K comparable](rows []T, key func(T) K) []K {
	var all []K
	for _, r := range rows {
		if k := key(r); !slices.Contains(all, k) {
			all = append(all, k)
		}
	}
	return all
}

// number is an axis's tick: 0.1, 1, 10, 16.
func number(v float64) string { return fmt.Sprintf("%.3g", v) }

// powers are the ticks of an axis in powers of base, labelled by label, every
// step-th of them.
func powers(base float64, step int, label func(float64) string) plot.TickerFunc {
	return func(lo, hi float64) []plot.Tick {
		var ticks []plot.Tick
		first := int(math.Ceil(math.Log(lo)/math.Log(base) - 1e-9))
		for k := first; ; k++ {
			v := math.Pow(base, float64(k))
			if v > hi*(1+1e-9) {
				return ticks
			}
			t := plot.Tick{Value: v}
			if k%step == 0 {
				t.Label = label(v)
			}
			ticks = append(ticks, t)
		}
	}
}

// decades are ticks at 1, 2 and 5 times the powers of ten.
func decades(lo, hi float64) []plot.Tick {
	var ticks []plot.Tick
	for k := math.Floor(math.Log10(lo)); k <= math.Ceil(math.Log10(hi)); k++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, k); v >= lo*(1-1e-9) && v <= hi*(1+1e-9) {
				ticks = append(ticks, plot.Tick{Value: v, Label: number(v)})
			}
		}
	}
	return ticks
}

func logX(p *chart, ticks plot.TickerFunc) { p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, ticks }
func logY(p *chart, ticks plot.TickerFunc) { p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, ticks }

// sizeText is a number of bytes in the unit that suits it.
func sizeText(bytes float64) string {
	switch {
	case bytes >= 1<<30:
		return number(bytes/(1<<30)) + " GB"
	case bytes >= 1<<20:
		return number(bytes/(1<<20)) + " MB"
	default:
		return number(bytes/(1<<10)) + " KB"
	}
}
