package main

import (
	"fmt"
	"strconv"
	"strings"
)

// shapesExample is a value of -shapes that lists tensors.
const shapesExample = "nchw:16x48x35x35,nc:8x1000"

// The largest numbers of values of a listed tensor, which keep the memory of a run below
// 8 GB. A check needs more, since it has results in float64.
const (
	mostValues  = 1 << 28
	mostChecked = 1 << 27
)

// listSizes names the sizes of a tensor by its layout.
var listSizes = map[string]string{"nchw": "NxCxHxW", "nhwc": "NxCxHxW", "nc": "NxC"}

// isShapeList reports whether a value of -shapes is a list of tensors, instead of the
// name of a set.
func isShapeList(text string) bool { return strings.ContainsAny(text, ":,") }

// listedSet returns the tensors of a list, of at most so many values each.
func listedSet(list string, most int) (caseSet, error) {
	set := caseSet{data: "generated data"}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(list, ",") {
		layout, sizes, err := parseShape(part, most)
		if err != nil {
			return set, fmt.Errorf("-shapes has %q: %w", part, err)
		}
		set.add(layout, sizes...)
		last := set.cases[len(set.cases)-1]
		name := last.layout + " " + last.shape
		if seen[name] {
			return set, fmt.Errorf("-shapes has %q twice", part)
		}
		seen[name] = true
	}
	return set, nil
}

// parseShape reads a tensor of a list.
func parseShape(part string, most int) (layout string, sizes []int, err error) {
	layout, text, found := strings.Cut(part, ":")
	want, known := listSizes[layout]
	if !found {
		return "", nil, fmt.Errorf("a layout and sizes are wanted, like nchw:16x48x35x35")
	}
	if !known {
		return "", nil, fmt.Errorf("layout is %q, must be nchw, nhwc or nc", layout)
	}
	fields := strings.Split(text, "x")
	if n := strings.Count(want, "x") + 1; len(fields) != n {
		return "", nil, fmt.Errorf("%s has %d sizes, %s, not %d", layout, n, want, len(fields))
	}
	values := 1
	for i, field := range fields {
		name := want[2*i : 2*i+1]
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return "", nil, fmt.Errorf("%s is %q, must be a number of at least 1", name, field)
		}
		if n > most/values {
			return "", nil, fmt.Errorf("the tensor has more than %d values", most)
		}
		values *= n
		sizes = append(sizes, n)
	}
	if values == sizes[1] {
		return "", nil, fmt.Errorf("a channel has one value, must have at least 2")
	}
	return layout, sizes, nil
}
