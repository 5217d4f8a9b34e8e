package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// A figure is a plot of the report.
type figure struct {
	name    string // of its files
	caption string
	plot    *plot.Plot
}

// The size, in points, suits half the width of a desktop and the width of a phone.
const (
	figureWidth  = vg.Length(330)
	figureHeight = vg.Length(220)
)

// Two colours that colour-blind people can distinguish, and shades of them for lines of one
// kind.
var (
	blues   = []color.Color{color.RGBA{0, 84, 166, 255}, color.RGBA{64, 140, 210, 255}, color.RGBA{130, 190, 235, 255}}
	oranges = []color.Color{color.RGBA{200, 66, 0, 255}, color.RGBA{232, 120, 40, 255}, color.RGBA{245, 170, 110, 255}}
	grey    = color.RGBA{150, 150, 150, 255}
)

func init() { plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"} }

func newFigure(name, caption, title, x, y string) *figure {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 11
	p.Title.Padding = 4
	p.X.Label.Text, p.Y.Label.Text = x, y
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 10
		a.Tick.Label.Font.Size = 9
		a.Padding = 2
	}
	p.Legend.TextStyle.Font.Size = 9
	p.Legend.ThumbnailWidth = 20
	p.Legend.Padding = 1
	p.Legend.XOffs, p.Legend.YOffs = -4, 4
	grid := plotter.NewGrid()
	light := color.RGBA{228, 228, 228, 255}
	grid.Vertical.Color, grid.Horizontal.Color = light, light
	p.Add(grid)
	return &figure{name, caption, p}
}

// legendTopLeft moves the legend there from the bottom right.
func (f *figure) legendTopLeft() {
	f.plot.Legend.Top, f.plot.Legend.Left = true, true
	f.plot.Legend.XOffs, f.plot.Legend.YOffs = 4, 0
}

// style is how a line looks: with batch norm blue, without orange and dashed.
type style struct {
	color  color.Color
	dashed bool
	points bool // a mark at every point
}

func styleOf(norm bool, shade int) style {
	if norm {
		return style{color: blues[shade%len(blues)]}
	}
	return style{color: oranges[shade%len(oranges)], dashed: true}
}

// line adds a line to the figure, and to its legend unless it has no name.
// Points that are not finite, as after a training that diverged, are left out.
func (f *figure) line(name string, s style, xs, ys []float64) error {
	var xy plotter.XYs
	for i := range xs {
		if finite(xs[i]) && finite(ys[i]) {
			xy = append(xy, plotter.XY{X: xs[i], Y: ys[i]})
		}
	}
	if len(xy) == 0 {
		return nil
	}
	l, err := plotter.NewLine(xy)
	if err != nil {
		return fmt.Errorf("figure %s: %q: %w", f.name, name, err)
	}
	l.Color, l.Width = s.color, 1.6
	if s.dashed {
		l.Dashes = []vg.Length{4, 2.5}
	}
	f.plot.Add(l)
	marks := []plot.Thumbnailer{l}
	if s.points {
		p, err := plotter.NewScatter(xy)
		if err != nil {
			return fmt.Errorf("figure %s: %q: %w", f.name, name, err)
		}
		p.GlyphStyle = draw.GlyphStyle{Color: s.color, Radius: 2.5, Shape: draw.CircleGlyph{}}
		f.plot.Add(p)
		marks = append(marks, p)
	}
	if name != "" {
		f.plot.Legend.Add(name, marks...)
	}
	return nil
}

// encode returns the figure as a file of a format that gonum/plot knows.
func (f *figure) encode(format string) ([]byte, error) {
	c, err := draw.NewFormattedCanvas(figureWidth, figureHeight, format)
	if err != nil {
		return nil, fmt.Errorf("figure %s: %w", f.name, err)
	}
	const right = 14 // room for half of the last tick's label
	f.plot.Draw(draw.Crop(draw.New(c), 0, -right, 0, 0))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("figure %s: %w", f.name, err)
	}
	return b.Bytes(), nil
}

// save writes the figure to a folder as PNG and SVG.
func (f *figure) save(dir string) error {
	for _, format := range []string{"png", "svg"} {
		b, err := f.encode(format)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f.name+"."+format), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
