package batchnorm_test

import (
	"math"
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
)

// TestPauses normalizes 1 GB with 2 workers, again and again, while another goroutine
// collects garbage. It shows (go test -v) how long the world was stopped: until every
// worker had left its kernel, and in all.
//
// The time depends on the load of the machine, so that it is shown and not judged. The test
// fails only if no collection ends while a normalization runs. TestCallsAreShort proves the
// bound of a pause: the length of a kernel's call.
func TestPauses(t *testing.T) {
	needThorough(t)
	if raceBuild {
		t.Skip("takes 1 GB, and with the race detector minutes")
	}
	if strconv.IntSize < 64 {
		t.Skip("1 GB is much for 32 bits")
	}
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("with a single processor there is nothing to stop while a kernel runs")
	}
	s := batchnorm.Shape{Outer: 4, Channels: 64, Inner: 1 << 20}
	x := make([]float32, s.Len()) // in place: this is all of the memory
	for i := range x {
		x[i] = float32(i % 251)
	}
	for _, c := range []struct {
		name  string
		shape batchnorm.Shape
	}{
		{"NCHW", s},
		{"NHWC", batchnorm.Shape{Outer: s.Outer * s.Inner, Channels: s.Channels, Inner: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlan(t, c.shape, batchnorm.WithWorkers(2))
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						runtime.GC()
						time.Sleep(time.Millisecond) // not to take the workers' time
					}
				}
			}()
			before := readPauses()
			most, calls := uint64(0), 0
			start := time.Now()
			for ; calls < 5 || most == 0 && calls < 50; calls++ {
				first := collections()
				noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: x}))
				most = max(most, collections()-first)
			}
			took := time.Since(start)
			close(stop)
			<-stopped
			for name, pauses := range readPauses() {
				n, longest := pauses.since(before[name])
				t.Logf("%s: %d, the longest at most %v", name, n, longest)
				if n == 0 {
					t.Errorf("%s: there were none", name)
				}
			}
			t.Logf("%d calls, %v each; up to %d collections during one", calls, took/time.Duration(calls), most)
			if most == 0 {
				t.Error("no collection ended during a call: they wait for its end")
			}
		})
	}
}

// collections returns how many garbage collections have ended.
func collections() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

type pauses metrics.Float64Histogram

// readPauses returns how long the world took to stop for the garbage collector,
// and how long it took until it went on.
func readPauses() map[string]*pauses {
	samples := []metrics.Sample{{Name: "/sched/pauses/stopping/gc:seconds"}, {Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(samples)
	all := map[string]*pauses{}
	for _, s := range samples {
		all[s.Name] = (*pauses)(s.Value.Float64Histogram())
	}
	return all
}

// since returns how many pauses there were since before, and a bound of the
// longest.
func (p *pauses) since(before *pauses) (n uint64, longest time.Duration) {
	for i, count := range p.Counts {
		if count -= before.Counts[i]; count > 0 {
			n += count
			end := p.Buckets[i+1]
			if math.IsInf(end, 1) {
				end = p.Buckets[i]
			}
			longest = time.Duration(end * float64(time.Second))
		}
	}
	return n, longest
}
