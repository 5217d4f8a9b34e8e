package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm/examples/paper/fashion"
	"github.com/fusedbn/batchnorm/internal/compare"
)

// Both networks learn, and the same: they begin alike, and rounding tells them
// apart little by little.
func TestTrained(t *testing.T) {
	train, test, err := fashion.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	nets, err := trained(train, test, settings{steps: 30, batch: 32, workers: 1, reps: 1, tested: 320})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nets {
		if begin, end := compare.Mean(n.losses[:3]), compare.Mean(n.losses[27:]); !(end < 0.7*begin) {
			t.Errorf("%s: the loss goes from %v to %v", n.name, begin, end)
		}
		if n.accuracy < 0.5 {
			t.Errorf("%s: the accuracy is %v", n.name, n.accuracy)
		}
	}
	if first, _ := compare.Differences(nets[0].losses, nets[1].losses); first > 1e-4 {
		t.Errorf("the losses differ by %v in the first step", first)
	}
}

// This package's errors are small whatever the mean.
func TestAlone(t *testing.T) {
	r, err := caseAlone{300, 7, 1e4}.measure(settings{workers: 2, reps: 3})
	if err != nil {
		t.Fatal(err)
	}
	if r[1].y > 1e-6 || r[1].dx > 1e-6 || len(r[1].seconds) != 3 {
		t.Errorf("errors are %v and %v, in %d runs", r[1].y, r[1].dx, len(r[1].seconds))
	}
}

// The report has a line for every network and every case.
func TestReport(t *testing.T) {
	defer func(all []caseAlone) { alone = all }(alone)
	alone = alone[len(alone)-1:]
	var out bytes.Buffer
	if err := run(&out, settings{steps: 2, batch: 16, workers: 1, reps: 1, tested: 16}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"spaGO's", "this package", "features"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}
