package main

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/examples/paper/fashion"
)

// The whole program on goroutines: all that should hold does, for several numbers of
// ranks.
func TestRun(t *testing.T) {
	sizes := []string{"1", "2", "3", "4"}
	if testing.Short() || os.Getenv("BATCHNORM_TESTS") != "all" {
		sizes = []string{"1", "3"}
	}
	for _, ranks := range sizes {
		var stdout, stderr bytes.Buffer
		if code := run([]string{"-ranks", ranks, "-steps", "30", "-test", "500"}, &stdout, &stderr); code != exitOK {
			t.Fatalf("%s ranks: exit status %d\n%s%s", ranks, code, &stdout, &stderr)
		}
		out := stdout.String()
		if n := strings.Count(out, ": yes\n"); n != 4 || strings.Contains(out, ": NO") {
			t.Errorf("%s ranks: %d of 4 checks hold:\n%s", ranks, n, out)
		}
		t.Log(out)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"-batch", "1"}, {"-ranks", "0"}, {"-steps", "x"}, {"more"}, {"-rate", "0"}, {"-timeout", "-1s"}} {
		var stdout, stderr bytes.Buffer
		if code := run(args, &stdout, &stderr); code != exitUsage || stderr.Len() == 0 {
			t.Errorf("%q: exit status %d, %q", args, code, &stderr)
		}
	}
	if code := run([]string{"-h"}, &bytes.Buffer{}, &bytes.Buffer{}); code != exitOK {
		t.Errorf("-h: exit status %d", code)
	}
}

// The gradients are those of the loss, by central differences.
func TestGradients(t *testing.T) {
	train, _, err := fashion.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	net, err := newNetwork(12, 3)
	if err != nil {
		t.Fatal(err)
	}
	const n = 16
	p := newPass(net, n)
	images := make([]int, n)
	newOrder(train.N, 1).next(images)
	p.fill(train, images)
	loss := func() float64 {
		if err := p.forward(true); err != nil {
			t.Fatal(err)
		}
		sum, _ := p.loss(n)
		return sum / n
	}
	loss()
	if err := p.backward(1); err != nil {
		t.Fatal(err)
	}
	checked := 0
	net.parameters(func(value, gradient []float32) {
		for i := 0; i < len(value); i += 1 + len(value)/5 {
			const step = 1.0 / 256
			old := value[i]
			value[i] = old + step
			above, high := loss(), value[i]
			value[i] = old - step
			below, low := loss(), value[i]
			value[i] = old
			want := (above - below) / (float64(high) - float64(low))
			if d := math.Abs(float64(gradient[i]) - want); !(d <= 1e-3*max(1, math.Abs(want))) {
				t.Errorf("gradient %d of %d is %g, central differences give %g", i, len(value), gradient[i], want)
			}
			checked++
		}
	})
	if checked < 30 {
		t.Errorf("only %d gradients were checked", checked)
	}
}

// A rank that fails makes the program fail on all, in bounded time.
func TestFailure(t *testing.T) {
	train, test, err := fashion.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	all, err := batchnorm.NewLocalCollective(2, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWorker(all[0], train, test, func(int, float64) {})
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = w.experiment(recipe{units: 10, batch: 4, steps: 2, rate: 0.1, seed: 1, test: 10})
	if !errors.Is(err, batchnorm.ErrExchange) {
		t.Errorf("without rank 1: %v", err)
	}
}
