package batchnorm

import "fmt"

// Options for the details in which other systems differ; docs/semantics.md has the
// table.

// A Variance selects the variance of a batch that enters the running variance. The
// batch itself is always normalized by the population variance.
type Variance uint8

const (
	// Unbiased divides the sum of squared deviations by n-1, as PyTorch,
	// TensorFlow's fused operation and cuDNN do. With [WithSingleValue] it
	// divides by max(n-1, 1), as TensorFlow does.
	Unbiased Variance = iota
	// Population divides it by n, as Keras, Flax and ONNX do.
	Population
	numVariances
)

var varianceNames = [numVariances]string{"unbiased", "population"}

// String returns "unbiased" or "population".
func (v Variance) String() string {
	if v < numVariances {
		return varianceNames[v]
	}
	return fmt.Sprintf("Variance(%d)", uint8(v))
}

// correction is the factor from the population variance of n values to v.
func (v Variance) correction(n int) float64 {
	if v == Population {
		return 1
	}
	return float64(n) / float64(max(n-1, 1))
}

// WithRunningVariance chooses the variance that enters the running variance.
// The default is [Unbiased].
func WithRunningVariance(v Variance) Option {
	return func(o *options) error {
		if v >= numVariances {
			return fail(ErrOption, "running variance %v is unknown", v)
		}
		o.variance = v
		return nil
	}
}

// WithMomentum sets the momentum of calls that give none. The zero value sets the
// default again, NewWeight(0.1).
//
// A plan does not count batches: give [Cumulative] with each call, or use a [Layer].
func WithMomentum(m Momentum) Option {
	return func(o *options) error {
		if err := m.valid(); err != nil {
			return &argError{ErrOption, err.Error()}
		}
		o.momentum = m
		return nil
	}
}

// like sets everything in which the systems differ.
func like(epsilon float64, m Momentum, v Variance, singleValue bool) Option {
	return func(o *options) error {
		o.epsilon, o.momentum, o.variance, o.singleValue = epsilon, m, v, singleValue
		return nil
	}
}

// PyTorch sets what torch.nn.BatchNorm sets, the defaults of this package:
// epsilon 1e-5, the new batch weighs 0.1, unbiased running variance, one value
// per channel is an error.
//
// Like the other options named after a system it sets these four, and a later option
// changes one of them:
//
//	batchnorm.NewPlan(shape, batchnorm.Keras(), batchnorm.WithEpsilon(1e-5))
func PyTorch() Option { return like(1e-5, NewWeight(0.1), Unbiased, false) }

// Keras sets what Keras 3 sets: epsilon 1e-3, the old value weighs 0.99, the
// running variance is the population's, one value per channel is allowed.
func Keras() Option { return like(1e-3, OldWeight(0.99), Population, true) }

// TensorFlow sets what tf.compat.v1.nn.fused_batch_norm sets: epsilon 1e-3,
// exponential_avg_factor 1 (the running statistics become the batch's),
// unbiased running variance, divided by max(n-1, 1).
//
// Keras 2 runs on that operation where it can: TensorFlow() followed by
// WithMomentum(OldWeight(0.99)) is its layer.
func TensorFlow() Option { return like(1e-3, NewWeight(1), Unbiased, true) }

// ONNX sets what BatchNormalization sets from opset 14 on: epsilon 1e-5, the
// old value weighs 0.9, the running variance is the population's, one value
// per channel is allowed.
func ONNX() Option { return like(1e-5, OldWeight(0.9), Population, true) }

// Flax sets what flax.linen.BatchNorm sets: epsilon 1e-5, the old value weighs
// 0.99, the running variance is the population's, one value per channel is
// allowed.
func Flax() Option { return like(1e-5, OldWeight(0.99), Population, true) }

// CuDNN sets what cudnnBatchNormalizationForwardTraining fixes: unbiased
// running variance. That function leaves epsilon and the factor of the new
// batch to its caller; unless [WithEpsilon] and [WithMomentum] follow, they are
// this package's, 1e-5 and 0.1, and one value per channel is an error.
func CuDNN() Option { return like(DefaultEpsilon, NewWeight(0.1), Unbiased, false) }
