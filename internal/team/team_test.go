//go:build go1.25

package team

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"
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

// within fails the test when f takes longer than so many seconds of real time.
func within(t *testing.T, seconds int, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Duration(seconds) * time.Second):
		t.Fatalf("%s does not return", what)
	}
}

// TestNoLostWakeUp takes the steps of the caller, who goes to sleep, and of the
// helper, which finishes the last task, in each order that there is.
func TestNoLostWakeUp(t *testing.T) {
	const tasks = 3
	started := func() *Team {
		team := New()
		team.task = func(int) {}
		team.state.Store(tasks << indexBits)
		return team
	}
	t.Run("finished before the caller says that it sleeps", func(t *testing.T) {
		team := started()
		if _, last := team.drain(); !last {
			t.Fatal("drain does not say that it finished the last task")
		}
		team.wake() // finds nobody
		within(t, 10, "sleep", func() { team.sleep(tasks) })
	})
	t.Run("finished before, and the helper looks afterwards", func(t *testing.T) {
		team := started()
		team.drain()
		within(t, 10, "sleep", func() { team.sleep(tasks) })
		team.wake()
		if n := len(team.last); n != 0 {
			t.Errorf("%d signals are left for the next loop, which would return too early", n)
		}
	})
	t.Run("finished while the caller sleeps", func(t *testing.T) {
		team := started()
		go func() {
			for !team.waiting.Load() {
				runtime.Gosched()
			}
			team.help()
		}()
		within(t, 10, "sleep", func() { team.sleep(tasks) })
		if team.waiting.Load() || team.finished.Load() != tasks {
			t.Errorf("the caller is awake with %d of %d tasks finished, waiting is %t", team.finished.Load(), tasks, team.waiting.Load())
		}
	})
	t.Run("finished by the caller itself", func(t *testing.T) {
		within(t, 10, "Run", func() { New().Run(tasks, 0, func(int) {}) })
	})
}

// TestBubble: in a bubble of testing/synctest, whose clock stands still while
// anybody runs, helpers end, a caller waits for a task that sleeps, and no team
// crosses the border.
func TestBubble(t *testing.T) {
	const helpers = 4321 // which nobody else asks for
	if bubbled() {
		t.Fatal("a goroutine is taken for one in a bubble")
	}
	outside := New()
	Release(outside, helpers)
	var inside *Team
	within(t, 60, "the bubble", func() {
		synctest.Test(t, func(t *testing.T) {
			if !bubbled() {
				t.Fatal("the bubble is not seen")
			}
			inside = Acquire(helpers)
			if inside == outside {
				t.Error("a team from outside comes into the bubble")
			}
			for range 3 {
				var runs atomic.Int32
				inside.Run(100, 3, func(int) { runs.Add(1) })
				if n := runs.Load(); n != 100 {
					t.Errorf("%d of 100 tasks ran", n)
				}
				time.Sleep(time.Hour) // returns when helpers are gone
				if n := inside.helpers.Load(); n != 0 {
					t.Errorf("%d helpers outlast an hour", n)
				}
			}
			// A caller that looked on without end would keep the helper from waking up.
			caller := goroutine()
			var asleep atomic.Bool
			inside.Run(2, 1, func(int) {
				if goroutine() != caller {
					asleep.Store(true)
					time.Sleep(time.Minute)
				}
				for !asleep.Load() {
					runtime.Gosched()
				}
			})
			Release(inside, helpers)
		})
	})
	if Acquire(helpers) != outside || Acquire(helpers) == inside {
		t.Error("a team from the bubble comes outside")
	}
}

// TestPanic: the panic of a task comes to the caller when no helper runs any more,
// and tasks that nobody has begun are left out.
func TestPanic(t *testing.T) {
	const tasks = 1000
	var begun, ended atomic.Int32
	caller := make(chan struct{})
	helping := make(chan struct{})
	within(t, 30, "Run", func() {
		defer func() {
			if r := recover(); r != "on the caller's goroutine" {
				t.Errorf("recovered %v", r)
			}
			if b, e := begun.Load(), ended.Load(); b != e+1 || b == tasks {
				t.Errorf("%d of %d tasks were begun, and %d had ended when the panic came", b, tasks, e)
			}
		}()
		var helper atomic.Bool
		team := New()
		mine := goroutine()
		team.Run(tasks, 1, func(i int) {
			begun.Add(1)
			if goroutine() != mine {
				if helper.CompareAndSwap(false, true) {
					close(helping)
					<-caller
					time.Sleep(20 * time.Millisecond)
				}
				ended.Add(1)
				return
			}
			<-helping
			close(caller)
			panic("on the caller's goroutine")
		})
	})
}

// goroutine returns the number of the goroutine.
func goroutine() string {
	var b [64]byte
	return strings.Fields(string(b[:runtime.Stack(b[:], false)]))[1]
}

// TestRelease: a team that is not in use keeps nothing of its last loop alive.
func TestRelease(t *testing.T) {
	const helpers = 2345 // which nobody else asks for
	team := Acquire(helpers)
	left := func() weak.Pointer[int] {
		data := make([]int, 1000)
		team.Run(10, 0, func(i int) { data[i]++ })
		return weak.Make(&data[0])
	}()
	Release(team, helpers)
	runtime.GC()
	runtime.GC()
	if left.Value() != nil {
		t.Error("what the tasks used is kept alive")
	}
	runtime.KeepAlive(team)
}
