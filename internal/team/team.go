// Package team is a parallel for whose goroutines come and go with the work.
package team

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Team runs tasks on the caller's goroutine and on helpers. Each of them takes one
// task after the other, so that uneven tasks and a busy core even out. A Team runs one
// loop at a time.
//
// Starting a goroutine on an idle processor takes longer than the work on a small
// tensor. So a helper without tasks looks for more for a moment before it ends: the
// next phase of a call, or the next call, may bring some. Meanwhile it yields to other
// goroutines. Acquire gives the team of the last call to the next one, whoever makes
// it, so that it finds the helpers.
type Team struct {
	task     func(int)
	state    atomic.Uint64 // the number of tasks, and in the lower bits the next
	finished atomic.Int64  // tasks
	helpers  atomic.Int64  // goroutines that run
	waiting  atomic.Bool   // the caller sleeps until the last task is finished
	last     chan struct{} // wakes it up
	body     func()        // help, bound once, because binding allocates
	bubbled  bool          // made in a bubble of testing/synctest
}

// New returns a team that has no helpers yet.
func New() *Team {
	t := &Team{last: make(chan struct{}, 1), bubbled: bubbled()}
	t.body = t.help
	return t
}

// bubbled reports whether the caller is in a bubble of testing/synctest, whose
// times have no monotonic reading. The clock of a bubble stands still while one of its
// goroutines runs, and callers outside can't use its channels and goroutines.
func bubbled() bool {
	now := time.Now()
	return now == now.Round(0)
}

// free has the teams that are not in use, by the number of their helpers.
var free struct {
	sync.Mutex
	teams map[int][]*Team
}

// Acquire returns a team for loops with up to the given number of helpers: the one of
// this number that was released last, since its helpers may still run, or a new one. In
// a bubble it is always new, since goroutines may not cross the border of a bubble.
func Acquire(helpers int) *Team {
	if bubbled() {
		return New()
	}
	free.Lock()
	defer free.Unlock()
	teams := free.teams[helpers]
	if len(teams) == 0 {
		return New()
	}
	t := teams[len(teams)-1]
	free.teams[helpers] = teams[:len(teams)-1]
	return t
}

// Release takes back a team that was acquired for the given number of helpers. A team
// whose Run panicked is not released.
func Release(t *Team, helpers int) {
	if t.bubbled {
		return
	}
	t.task = nil // nobody looks at it before the next loop, and it may hold on to much
	free.Lock()
	defer free.Unlock()
	if free.teams == nil {
		free.teams = map[int][]*Team{}
	}
	free.teams[helpers] = append(free.teams[helpers], t)
}

const (
	indexBits = 31
	indexMask = 1<<indexBits - 1
	linger    = 50 * time.Microsecond
	looks     = 100  // looks at the state between two looks at the clock
	rounds    = 5000 // largest number of looks at the clock, which may stand still
)

// claim returns a task that nobody else has, and the number of tasks.
func (t *Team) claim() (i, n int, ok bool) {
	for {
		s := t.state.Load()
		i, n = int(s&indexMask), int(s>>indexBits)
		if i >= n {
			return 0, 0, false
		}
		// An equal state may be that of another loop that has come as far. It names
		// the next task in this case as well.
		if t.state.CompareAndSwap(s, s+1) {
			return i, n, true
		}
	}
}

// drain runs tasks until none is left. It reports whether it ran any, and whether it
// finished the last task of the loop.
func (t *Team) drain() (some, last bool) {
	for {
		i, n, ok := t.claim()
		if !ok {
			return some, last
		}
		t.task(i)
		some, last = true, t.finished.Add(1) == int64(n)
	}
}

// help is a helper.
func (t *Team) help() {
	defer t.helpers.Add(-1)
	idle, round := time.Now(), 0
	for {
		for range looks {
			if some, last := t.drain(); some {
				if last {
					t.wake()
				}
				idle, round = time.Now(), 0
			}
		}
		if round++; round >= rounds || time.Since(idle) > linger {
			return
		}
		runtime.Gosched()
	}
}

// wake wakes the caller, if it sleeps. All tasks are finished.
func (t *Team) wake() {
	if t.waiting.CompareAndSwap(true, false) {
		t.last <- struct{}{}
	}
}

// wait returns when n tasks are finished.
func (t *Team) wait(n int64) {
	begin, round := time.Now(), 0
	for t.finished.Load() < n {
		if round++; round < rounds && time.Since(begin) < linger {
			runtime.Gosched()
			continue
		}
		t.sleep(n)
		return
	}
}

// sleep is wait without a look at the clock. The goroutine that finishes the last task
// looks at waiting afterwards, and the caller looks at finished after it has set
// waiting, so that one of the two sees the other.
func (t *Team) sleep(n int64) {
	t.waiting.Store(true)
	if t.finished.Load() == n && t.waiting.CompareAndSwap(true, false) {
		return
	}
	<-t.last
}

// MaxTasks is the largest number of tasks in a loop.
const MaxTasks = indexMask

// Run runs task(0) to task(n-1) with the given number of helpers. It allocates nothing
// but the memory of the goroutines that it starts.
//
// If a task panics on the caller's goroutine, tasks that were not begun are left out,
// and the panic goes on when the helpers have finished their tasks. A panic on a helper
// ends the process, as on any goroutine that does not recover.
func (t *Team) Run(n, helpers int, task func(int)) {
	t.task = task
	t.finished.Store(0)
	t.state.Store(uint64(n) << indexBits)
	for h := t.helpers.Load(); h < int64(helpers); h++ {
		t.helpers.Add(1)
		go t.body()
	}
	done := false
	defer func() {
		if !done {
			t.abandon()
		}
	}()
	t.drain()
	t.wait(int64(n))
	done = true
}

// abandon ends a loop after a panic of a task on the caller's goroutine.
func (t *Team) abandon() {
	begun := int64(t.state.Swap(0) & indexMask)
	for t.finished.Load() < begun-1 { // all but the one that panicked
		runtime.Gosched()
	}
}
