package team

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestRun checks that every task of every loop runs once, before Run returns, with
// loops of all lengths right after each other, and now and then a pause in which
// helpers end.
func TestRun(t *testing.T) {
	for _, helpers := range []int{0, 1, 3, 7} {
		team := New()
		var runs [300]atomic.Int32
		loops := 3000
		if testing.Short() {
			loops = 300
		}
		for i := range loops {
			n := i * 7919 % len(runs)
			if i%500 == 0 {
				time.Sleep(2 * linger)
			}
			team.Run(n, helpers, func(i int) { runs[i].Add(1) })
			for j := range runs {
				want := int32(0)
				if j < n {
					want = 1
				}
				if got := runs[j].Swap(0); got != want {
					t.Fatalf("%d helpers, loop %d of %d tasks: task %d ran %d times", helpers, i, n, j, got)
				}
			}
		}
	}
}

// TestAcquire: a team that was released is the next that is acquired for as many
// helpers, and two in use are not the same.
func TestAcquire(t *testing.T) {
	const helpers = 1234 // which nobody else asks for
	a, b := Acquire(helpers), Acquire(helpers)
	if a == b {
		t.Fatal("one team is in use twice")
	}
	Release(a, helpers)
	if c := Acquire(helpers + 1); c == a {
		t.Error("a team for more helpers is one for fewer")
	}
	if c := Acquire(helpers); c != a {
		t.Error("the team that was released is not the next")
	}
	Release(b, helpers)
	if n := testing.AllocsPerRun(100, func() { Release(Acquire(helpers), helpers) }); n != 0 {
		t.Errorf("there are %v allocations", n)
	}
}

// TestShares checks that helpers take part.
func TestShares(t *testing.T) {
	team := New()
	both := make(chan struct{})
	team.Run(2, 1, func(int) { // neither task ends without the other
		select {
		case both <- struct{}{}:
		case <-both:
		case <-time.After(10 * time.Second):
			t.Error("one goroutine runs both tasks")
		}
	})
}

// TestSleeps has the caller wait for a task that takes long, so that it sleeps and
// has to be woken up.
func TestSleeps(t *testing.T) {
	team := New()
	for range 20 {
		var helperRuns, done atomic.Bool
		team.Run(2, 1, func(i int) {
			if i == 0 { // the caller's, mostly: until the helper has the other
				for begin := time.Now(); !helperRuns.Load() && time.Since(begin) < time.Second; {
					runtime.Gosched()
				}
				return
			}
			helperRuns.Store(true)
			time.Sleep(20 * linger)
			done.Store(true)
		})
		if !done.Load() {
			t.Fatal("Run returned before the last task did")
		}
	}
}

// TestEnds checks that no helper stays.
func TestEnds(t *testing.T) {
	time.Sleep(10 * linger) // for those of other tests
	before := runtime.NumGoroutine()
	team := New()
	team.Run(100, 3, func(int) { time.Sleep(time.Microsecond) })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(linger) {
		goroutines, helpers := runtime.NumGoroutine(), team.helpers.Load()
		if goroutines <= before && helpers == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there are %d goroutines, before there were %d; the team counts %d helpers", goroutines, before, helpers)
		}
	}
}
