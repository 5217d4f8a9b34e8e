package batchnorm

import "github.com/fusedbn/batchnorm/internal/team"

// workersFor returns how many workers share n tasks on a tensor of so many values.
func (p *Plan) workersFor(n, values int) int {
	return min(p.workers, n, max(1, values/p.schedule.share))
}

// parallel runs task(0) to task(n-1) on the plan's workers or executor. A second
// worker has to have enough to do.
func (w *work) parallel(n int, task func(int)) {
	w.busy = true
	w.runTasks(n, task)
	w.busy = false
}

func (w *work) runTasks(n int, task func(int)) {
	helpers := w.p.workersFor(n, len(w.x)) - 1
	if n > 1 && w.p.executor != nil {
		w.p.executor(n, task)
		return
	}
	if helpers < 1 || n > team.MaxTasks {
		for i := range n {
			task(i)
		}
		return
	}
	most := w.p.workers - 1
	t := team.Acquire(most)
	t.Run(n, helpers, task)
	team.Release(t, most)
}
