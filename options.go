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

// WithActivation fuses the activation behind the normalization (and the
// residual, if there is one): y = act(normalize(x)*gamma + beta + residual).
// Without it the activation is [Identity].
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
// among them. The default is 1, which starts none; small tensors, of which a
// worker would have less than 8,192 values, are worked on by fewer. The result
// does not depend on it by a bit.
//
// The others are started when there is something to do, and end 50 microseconds
// after there is nothing: in the meantime they look for more, from the next phase
// of the call or the next call of any plan, and let other goroutines go first.
//
// With [WithExecutor] it says how many tasks the executor is likely to run at
// a time, which decides only how finely the work is cut; there the default is
// GOMAXPROCS.
//
// More than 65,536 are refused ([ErrOption]).
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

// boundWorkers leaves out the workers who would find nothing to do in a tensor, as
// each takes memory.
func (o *options) boundWorkers(s Shape) {
	o.workers = min(o.workers, max(1, s.Len()/o.limits.share))
}

// An Executor runs task(0), task(1), ..., task(n-1), each exactly once, in any
// order and on any goroutines, and returns when all have returned. It may be
// called several times, one after the other, for one operation.
//
// An executor that leaves out a task, or runs one twice, gives wrong outputs, and no
// error. Its panic reaches the caller of the operation, whose outputs are then
// undefined; no task may be running any more. In either case the plan serves later
// calls as before.
type Executor func(n int, task func(i int))

// WithExecutor hands the work to the caller's own parallel for instead of
// goroutines of the package.
//
// A panic of the executor passes through the call. So does a panic of a task, if the
// executor hands it on: none is expected. The outputs of such a call are undefined, as
// they are when the executor leaves out a task or runs one twice. The plan is as good
// as before, and its next call has memory of its own. An executor that returns before
// all tasks have returned breaks the plan: what they still do goes into other calls.
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

// WithSingleValue allows training on one value per channel, which otherwise
// is [ErrTooFewValues]: the variance is 0, the output is beta (before residual
// and activation), and the running variance is updated as if divided by 1
// rather than by n-1 = 0.
func WithSingleValue() Option {
	return func(o *options) error {
		o.singleValue = true
		return nil
	}
}
