// Package team is a parallel for whose goroutines come and go with the work.
package team

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Team runs tasks on the caller's goroutine and on helpers. Each takes task by
// task, so that uneven tasks and a busy core even out. It runs one loop at a time.
//
// To start a goroutine on an idle processor takes longer than a small tensor does.
// So a helper that has run out of tasks looks for more for a moment, as the next
// phase of a call or the next call may bring them, before it ends. Meanwhile it
// lets other goroutines go first. That the next call finds it, whoever makes it, is
// what Acquire is for.
type Team struct {
	task     func(int)
	state    atomic.Uint64 // the number of tasks, and in the lower bits the next
	finished atomic.Int64  // tasks
	helpers  atomic.Int64  // goroutines there are
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
// times have no monotonic reading. Its clock stands still while a goroutine of it
// runs, and its channels and goroutines are nothing to callers outside.
func bubbled() bool {
	now := time.Now()
	return now == now.Round(0)
}

// free are the teams that are not in use, by the number of their helpers.
var free struct {
	sync.Mutex
	teams map[int][]*Team
}

// Acquire returns a team for loops with up to so many helpers, for which its helpers
// were started as well: the one that was released last, whose helpers may still be
// there. In a bubble it is a new one, since goroutines may not cross its border.
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

// Release takes back a team that was acquired for so many helpers. One whose Run
// panicked is not released.
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
	looks     = 100  // at the state, before it looks at the clock
	rounds    = 5000 // of looks at most, should the clock stand still
)

// claim returns a task that nobody else has, and the number of tasks.
func (t *Team) claim() (i, n int, ok bool) {
	for {
		s := t.state.Load()
		i, n = int(s&indexMask), int(s>>indexBits)
		if i >= n {
			return 0, 0, false
		}
		// If it is the same again it is the same loop, or another one that has
		// come as far: the task is what it says either way.
		if t.state.CompareAndSwap(s, s+1) {
			return i, n, true
		}
	}
}

// drain runs tasks until none is left. It reports whether there were any, and
// whether the last of all to be finished was among them.
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

// sleep is wait without a look at the clock. Whoever finishes the last task looks
// at waiting afterwards, and the caller looks at finished after it has set waiting:
// one of them sees the other.
func (t *Team) sleep(n int64) {
	t.waiting.Store(true)
	if t.finished.Load() == n && t.waiting.CompareAndSwap(true, false) {
		return
	}
	<-t.last
}

// MaxTasks is how many tasks there may be in a loop.
const MaxTasks = indexMask

// Run runs task(0) to task(n-1) with so many helpers. It allocates nothing but what
// a goroutine takes that it starts.
//
// Where a task panics on the caller's goroutine, the tasks that nobody has begun are
// left out, and the panic goes on when helpers have finished theirs. One on a
// helper ends the process, as on any goroutine that nobody recovers.
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

// abandon ends a loop of which a task of the caller's panicked.
func (t *Team) abandon() {
	begun := int64(t.state.Swap(0) & indexMask)
	for t.finished.Load() < begun-1 { // all but that task
		runtime.Gosched()
	}
}
