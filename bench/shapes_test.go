package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

func TestListedSet(t *testing.T) {
	set, err := listedSet("nchw:16x48x35x36,nhwc:4x80x73x74,nc:8x1000", mostValues)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		layout, shape string
		dims          batchnorm.Shape
		image         [4]int
	}{
		{"nchw", "16x48x35x36", batchnorm.Shape{Outer: 16, Channels: 48, Inner: 35 * 36}, [4]int{16, 48, 35, 36}},
		{"nhwc", "4x80x73x74", batchnorm.Shape{Outer: 4 * 73 * 74, Channels: 80, Inner: 1}, [4]int{4, 80, 73, 74}},
		{"nc", "8x1000", batchnorm.Shape{Outer: 8, Channels: 1000, Inner: 1}, [4]int{8, 1000, 1, 1}},
	} {
		if c := set.cases[i]; c.layout != want.layout || c.shape != want.shape || c.dims != want.dims || c.image != want.image {
			t.Errorf("case %d is %s %s %v %v, want %+v", i, c.layout, c.shape, c.dims, c.image, want)
		}
	}
	if len(set.cases) != 3 {
		t.Errorf("%d cases", len(set.cases))
	}
}

// Every kind of run measures the tensors of a list, and no others.
func TestRunListed(t *testing.T) {
	const list = "nchw:3x5x7x6,nhwc:3x5x7x6,nc:8x33"
	names := []string{"nc 8x33", "nchw 3x5x7x6", "nhwc 3x5x7x6"}
	for _, flags := range []string{"", "-bound", "-peers -with plain,generic -workers 1", "-activations"} {
		file := filepath.Join(t.TempDir(), "rows.json")
		args := append(strings.Fields(flags), "-shapes", list, "-reps", "1", "-mintime", "0", "-json", file)
		var stdout, stderr bytes.Buffer
		if code := run(args, &stdout, &stderr); code != exitOK {
			t.Fatalf("%s: exit status %d\n%s%s", flags, code, &stdout, &stderr)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var r report
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range r.Rows {
			got = append(got, b.Layout+" "+b.Shape)
		}
		for _, b := range r.Bounds {
			got = append(got, b.Layout+" "+b.Shape)
			if (b.How == "") != (b.Operation == "inference") || !strings.Contains(stdout.String(), b.How) {
				t.Errorf("%s: %s is carried out as %q", flags, b.Operation, b.How)
			}
		}
		for _, b := range r.Activations {
			got = append(got, b.Layout+" "+b.Shape)
		}
		if r.Peers != nil {
			for _, b := range r.Peers.Rows {
				got = append(got, b.Layout+" "+b.Shape)
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, names) {
			t.Errorf("%s: rows of %q, want %q", flags, got, names)
		}
	}
}
