package main

import (
	"bytes"
	"strings"
	"testing"
)

// A line for each tensor, and in it the numbers of workers side by side.
func TestFractionsTable(t *testing.T) {
	var rows []boundRow
	for i, shape := range []string{"8x3x2x2", "8x3x4x4"} {
		for j, o := range []string{"forward", "backward"} {
			for k, workers := range []int{1, 2, 5} {
				rows = append(rows, boundRow{Operation: o, Layout: "nchw", Shape: shape, Workers: workers,
					Fraction: float64(i) + float64(j)/10 + float64(k)/100})
			}
		}
	}
	var out bytes.Buffer
	fractionsTable(&out, rows)
	want := []string{
		"Fractions of the bound with 1, 2 and 5 workers:", "",
		"layout shape forward backward",
		"nchw 8x3x2x2 0.00 0.01 0.02 0.10 0.11 0.12",
		"nchw 8x3x4x4 1.00 1.01 1.02 1.10 1.11 1.12",
	}
	var got []string
	for line := range strings.Lines(strings.TrimLeft(out.String(), "\n")) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	out.Reset()
	if fractionsTable(&out, rows[:1]); out.Len() > 0 {
		t.Errorf("a single row is printed once more: %s", out.String())
	}
}
