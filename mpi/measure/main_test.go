package main

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
)

// counting counts the messages and elements that a rank sends.
type counting struct {
	batchnorm.Collective
	messages, elements int
}

func (c *counting) Exchange(recv, send [][]float64) error {
	for _, v := range send {
		if len(v) > 0 {
			c.messages++
			c.elements += len(v)
		}
	}
	return c.Collective.Exchange(recv, send)
}

// The model of the direct exchange counts the elements that the package sends.
func TestModelIsPackage(t *testing.T) {
	m := &model{far: 1e-6, near: 1e-6, beta: 1e-9, node: 4}
	for _, ranks := range []int{2, 4, 8, 16} {
		for _, channels := range []int{1, 3, 64, 100, 2048} {
			all, err := batchnorm.NewLocalCollective(ranks, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			counts := make([]counting, ranks)
			errs := make([]error, ranks)
			var wg sync.WaitGroup
			for rank, l := range all {
				wg.Go(func() {
					counts[rank].Collective = l
					g, err := batchnorm.NewSyncGroup(&counts[rank])
					if err != nil {
						errs[rank] = err
						return
					}
					s := batchnorm.Shape{Outer: 2, Channels: channels, Inner: 1}
					p, err := batchnorm.NewSyncPlan(g, s)
					if err == nil {
						err = p.Forward(batchnorm.ForwardArgs{X: make([]float32, s.Len()), Y: make([]float32, s.Len())})
					}
					errs[rank] = err
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			messages, elements := 0, 0
			for _, c := range counts {
				messages, elements = max(messages, c.messages), max(elements, c.elements)
			}
			k := m.cost(protocols[0], ranks, channels)
			if k.messages != messages {
				t.Errorf("%d ranks, %d channels: %d messages in the model, %d in the package", ranks, channels, k.messages, messages)
			}
			// In the model every share is as large as the largest.
			if got, want := int(k.bytes)/double, elements; got < want || got > want+2*fields*ranks {
				t.Errorf("%d ranks, %d channels: %d elements in the model, %d in the package", ranks, channels, got, want)
			}
		}
	}
}

// Simulated times that are known: two ranks exchange two messages; and the messages
// that several send to one come in one after the other.
func TestSimulation(t *testing.T) {
	m := &model{far: 1, near: 1, beta: 0.5, node: 1}
	two := protocol{"", func(*model, int, int) []phase {
		return []phase{func(rank int) []message { return []message{{1 - rank, 4}, {1 - rank, 2}} }}
	}}
	if k := m.cost(two, 2, 1); k.seconds != 3+2 || k.messages != 2 || k.bytes != 6 {
		t.Errorf("two ranks: %+v", k)
	}
	crowd := protocol{"", func(*model, int, int) []phase {
		return []phase{func(rank int) (list []message) {
			if rank > 0 {
				list = append(list, message{0, 2})
			}
			return list
		}}
	}}
	if k := m.cost(crowd, 5, 1); k.seconds != 4*2 || k.messages != 1 {
		t.Errorf("four to one: %+v", k)
	}
}

func TestChannels(t *testing.T) {
	if list := channels(); len(list) != 53 || sum(list) != 26560 {
		t.Errorf("%d layers, %d channels, want 53 and 26560", len(list), sum(list))
	}
}

func TestScale(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"-scale", "-most", "32"}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2048 channels", "ResNet-50, one step: 53 layers", "two levels"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not have %q:\n%s", want, &out)
		}
	}
	for _, args := range [][]string{{"-node", "3"}, {"-ranks", "0"}, {"more"}, {"-alpha", "0"}} {
		if err := run(args, &out); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	var out bytes.Buffer
	if err := run([]string{"-reps", "1", "-samples", "1"}, &out); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), " channels, "); n != 2*len(resNet50) {
		t.Errorf("%d shapes, want %d:\n%s", n, 2*len(resNet50), &out)
	}
}
