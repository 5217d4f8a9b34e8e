package batchnorm

import (
	"math"
	"runtime"
)

// DefaultEpsilon is added to the variance unless [WithEpsilon] says otherwise.
const DefaultEpsilon = 1e-5

// An Option changes how [NewPlan] makes a plan.
type Option func(*options) error

type options struct {
	epsilon     float64
	act         Activation
	workers     int
	executor    Executor
	path        Path
	singleValue bool
	momentum    Momentum // of calls that name none
	variance    Variance
	limits      limits
	capacity    int      // of Plans
	scratch     *scratch // shared with other plans; nil: the plan has its own
}

// newOptions returns the defaults, changed by the options.
func newOptions(opts []Option) (options, error) {
	o := options{epsilon: DefaultEpsilon, path: DefaultPath(), limits: defaultLimits, capacity: DefaultCapacity}
	for _, option := range opts {
		if option == nil {
			return o, fail(ErrOption, "option is nil")
		}
		if err := option(&o); err != nil {
			return o, err
		}
	}
	if o.workers == 0 {
		o.workers = 1
		if o.executor != nil {
			o.workers = runtime.GOMAXPROCS(0)
		}
	}
	return o, nil
}

// WithEpsilon sets the number that is added to the variance before the root
// is taken; it is finite and not negative. With epsilon 0 a channel whose
// variance is 0 gets invstd 0, not infinity: its output is beta, and its dx is 0.
func WithEpsilon(epsilon float64) Option {
	return func(o *options) error {
		if !(epsilon >= 0) || math.IsInf(epsilon, 0) {
			return fail(ErrOption, "epsilon is %v, must be finite and at least 0", epsilon)
		}
		o.epsilon = epsilon
		return nil
	}
}

// WithActivation applies the activation after the normalization, and after the
// residual if there is one: y = act(xhat*gamma + beta + residual), with
// xhat = (x - mean)*invstd. Without this option the activation is [Identity].
func WithActivation(act Activation) Option {
	return func(o *options) error {
		if err := act.valid(); err != nil {
			return err
		}
		o.act = act
		return nil
	}
}

// WithWorkers sets how many goroutines may work on one call, the caller's
// among them. The default is 1, which starts none. Each worker gets at least 8,192
// values, so that small tensors have fewer workers. The number of workers does not
// change a bit of the result.
//
// The other goroutines start when there is work, and end 50 microseconds after the
// last of it. In the meantime they look for work from the next phase of the call or
// from the next call of any plan, and yield to other goroutines.
//
// With [WithExecutor], n is the number of tasks that the executor is likely to run at
// a time. It decides only into how many tasks the work is cut; its default is
// GOMAXPROCS.
//
// More than 65,536 workers are [ErrOption].
func WithWorkers(n int) Option {
	return func(o *options) error {
		if n < 1 || n > maxWorkers {
			return fail(ErrOption, "workers is %d, must be from 1 to %d", n, maxWorkers)
		}
		o.workers = n
		return nil
	}
}

// maxWorkers is more than any machine has processors.
const maxWorkers = 1 << 16

// boundWorkers leaves out the workers for which a tensor has no work, since each takes
// memory.
func (o *options) boundWorkers(s Shape) {
	o.workers = min(o.workers, max(1, s.Len()/o.limits.share))
}

// An Executor runs task(0), task(1), ..., task(n-1), each exactly once, in any
// order and on any goroutines, and returns when all have returned. One operation may
// call it several times, one after the other.
//
// An executor that leaves out a task, or runs one twice, gives wrong outputs and no
// error. When it panics, no task may be running any more; the panic reaches the caller
// of the operation, and the outputs are undefined. In both cases the plan serves later
// calls as before.
type Executor func(n int, task func(i int))

// WithExecutor hands the work to the caller's own parallel for instead of
// goroutines of the package.
//
// A panic of the executor passes through the call. So does a panic of a task, if the
// executor hands it on; tasks are not expected to panic. The plan serves later calls
// as before, with new scratch memory. An executor must not return before all tasks
// have returned: those still running would write into the memory of other calls.
func WithExecutor(e Executor) Option {
	return func(o *options) error {
		if e == nil {
			return fail(ErrOption, "executor is nil")
		}
		o.executor = e
		return nil
	}
}

// WithPath chooses the implementation instead of the fastest one that the
// machine has; it is one of [Paths]. All give the same bits.
func WithPath(p Path) Option {
	return func(o *options) error {
		if !p.available() {
			return fail(ErrOption, "path %v is not available here (available: %v)", p, Paths())
		}
		o.path = p
		return nil
	}
}

// WithSingleValue allows training on one value per channel, which is
// [ErrTooFewValues] without this option. The variance is then 0 and the output beta,
// before residual and activation. The unbiased variance is divided by 1 instead of
// n-1 = 0.
func WithSingleValue() Option {
	return func(o *options) error {
		o.singleValue = true
		return nil
	}
}
