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
}

// New returns a team that has no helpers yet.
func New() *Team {
	t := &Team{last: make(chan struct{}, 1)}
	t.body = t.help
	return t
}

// free are the teams that are not in use, by the number of their helpers.
var free struct {
	sync.Mutex
	teams map[int][]*Team
}

// Acquire returns a team for loops with up to so many helpers, for which its helpers
// were started as well: the one that was released last, whose helpers may still be
// there.
func Acquire(helpers int) *Team {
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

// Release takes back a team that was acquired for so many helpers.
func Release(t *Team, helpers int) {
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
	looks     = 100 // at the state, before it looks at the clock
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
	for idle := time.Now(); ; {
		for range looks {
			if some, last := t.drain(); some {
				if last && t.waiting.CompareAndSwap(true, false) {
					t.last <- struct{}{}
				}
				idle = time.Now()
			}
		}
		if time.Since(idle) > linger {
			return
		}
		runtime.Gosched()
	}
}

// MaxTasks is how many tasks there may be in a loop.
const MaxTasks = indexMask

// Run runs task(0) to task(n-1) with so many helpers. It allocates nothing but what
// a goroutine takes that it starts.
func (t *Team) Run(n, helpers int, task func(int)) {
	t.task = task
	t.finished.Store(0)
	t.state.Store(uint64(n) << indexBits)
	for h := t.helpers.Load(); h < int64(helpers); h++ {
		t.helpers.Add(1)
		go t.body()
	}
	t.drain()
	for begin := time.Now(); t.finished.Load() < int64(n); {
		if time.Since(begin) < linger {
			runtime.Gosched()
			continue
		}
		t.waiting.Store(true)
		if t.finished.Load() == int64(n) && t.waiting.CompareAndSwap(true, false) {
			break
		}
		<-t.last
	}
}
