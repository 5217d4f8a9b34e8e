package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm/internal/kinds"
)

// Every kind of data has a line for every tensor and number of workers, and a row for
// each activation and operation that it makes different.
func TestRunData(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.json")
	args := strings.Fields("-data -shapes nc:8x33,nchw:3x5x7x6,nhwc:3x5x7x6 -workers 1,2 -reps 1 -mintime 0 -maxtime 1ms -json " + file)
	var stdout, stderr bytes.Buffer
	if code := run(args, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit status %d\n%s%s", code, &stdout, &stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	table := strings.Split(stdout.String(), "\n")
	for i := range table {
		table[i] = strings.Join(strings.Fields(table[i]), " ")
	}
	want := 0
	for _, k := range kinds.List() {
		n, all := len(kindActivations)*len(kindOps), len(kindActivations)*len(kindOps)+len(kindModes)
		if k.Backward {
			n, all = n/2, all/2
		}
		want += 6 * all
		for _, tensor := range []string{"nc 8x33 1", "nchw 3x5x7x6 2", "nhwc 3x5x7x6 1"} {
			i := slices.IndexFunc(table, func(line string) bool { return strings.HasPrefix(line, tensor+" "+k.Name+" ") })
			if i < 0 {
				t.Errorf("the table has no line %s %s", tensor, k.Name)
			} else if got := strings.Count(table[i], " -"); got != len(kindActivations)*len(kindOps)-n {
				t.Errorf("%d numbers are left out of %s", got, table[i])
			}
		}
	}
	if len(r.Kinds) != want {
		t.Errorf("%d rows, want %d", len(r.Kinds), want)
	}
	for _, row := range r.Kinds {
		if row.Ratio != row.Nanoseconds/row.UsualNanoseconds || row.Rounds < 1 || row.Limit < 1 {
			t.Errorf("a row is %+v", row)
		}
	}
}

func TestKindLines(t *testing.T) {
	row := func(kind, act, operation string, ratio, limit float64) kindRow {
		return kindRow{Kind: kind, Layout: "nc", Shape: "8x9", Workers: 1, Activation: act, Operation: operation, Ratio: ratio, Limit: limit}
	}
	rows := []kindRow{
		row("usual", "identity", "forward", 1.2, 1),
		row("dead", "identity", "forward", 1.0549, 1.05), row("dead", "silu", "backward", 1.4951, 1.5),
		row("zero", "relu", "backward", 1.0551, 1.05),
	}
	want := []string{
		"layout\tshape\tworkers\tkind of data\tlimit\tid fwd\tid bwd\trelu fwd\trelu bwd\tsilu fwd\tsilu bwd",
		"nc\t8x9\t1\tusual\t1.00\t1.20\t-\t-\t-\t-\t-",
		"nc\t8x9\t1\tdead\t1.05, 1.50\t1.05\t-\t-\t-\t-\t1.50",
		"nc\t8x9\t1\tzero\t1.05\t-\t-\t-\t1.06!\t-\t-",
	}
	if got := kindLines(rows); !slices.Equal(got, want) {
		t.Errorf("the table is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var b bytes.Buffer
	kindsSummary(&b, rows)
	if got, want := b.String(), "over the limit: nc 8x9 1 worker, zero, relu backward: 1.06, limit 1.05\n"+
		"1 of 4 numbers are over their limits.\n"; got != want {
		t.Errorf("the summary is %q, want %q", got, want)
	}
}
