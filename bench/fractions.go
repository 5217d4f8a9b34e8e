package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// fractionsTable prints the fractions of the bounds by tensor and operation. A cell has
// the fractions of all numbers of workers, in their order. A single row has no table.
func fractionsTable(w io.Writer, rows []boundRow) {
	if len(rows) < 2 {
		return
	}
	type tensor struct{ layout, shape string }
	var tensors []tensor
	var operations []string
	var workers []int
	cells := map[tensor]map[string]string{}
	for _, r := range rows {
		t := tensor{r.Layout, r.Shape}
		if cells[t] == nil {
			cells[t] = map[string]string{}
			tensors = append(tensors, t)
		}
		if !slices.Contains(operations, r.Operation) {
			operations = append(operations, r.Operation)
		}
		if !slices.Contains(workers, r.Workers) {
			workers = append(workers, r.Workers)
		}
		if text := cells[t][r.Operation]; text != "" {
			cells[t][r.Operation] = text + " "
		}
		cells[t][r.Operation] += fmt.Sprintf("%.2f", r.Fraction)
	}
	fmt.Fprintf(w, "\nFractions of the bound with %s workers:\n\n", listed(workers))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "layout\tshape")
	for _, o := range operations {
		fmt.Fprintf(tw, "\t%s", o)
	}
	fmt.Fprintln(tw)
	for _, t := range tensors {
		fmt.Fprintf(tw, "%s\t%s", t.layout, t.shape)
		for _, o := range operations {
			fmt.Fprintf(tw, "\t%s", cells[t][o])
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// listed returns numbers as part of a sentence: "1, 2 and 4".
func listed(numbers []int) string {
	text := ""
	for i, n := range numbers {
		switch {
		case i == 0:
		case i == len(numbers)-1:
			text += " and "
		default:
			text += ", "
		}
		text += fmt.Sprint(n)
	}
	return text
}
