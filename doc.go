// Package batchnorm computes batch normalization (Ioffe and Szegedy 2015,
// arXiv 1502.03167) over flat float32 slices, forward, inference and backward,
// fused with scale and shift, a residual and an activation.
//
// # Which type for whom
//
//   - [Layer], for models written by hand: parameters, running statistics,
//     gradients and a saved state. The example of the package is a training step.
//   - [Plan], for frameworks with memory and workers of their own: made once for a
//     [Shape] and options, called for every batch.
//   - [Plans], where shapes are known at run time only: it makes and keeps plans.
//   - [Affine], for serving: inference, folded into the layers around it.
//   - [SyncPlan], for a batch that is spread over several goroutines or processes;
//     [Layer.Synchronize] synchronizes a layer.
//   - [AxesPlan], for statistics over any set of axes, and [GhostPlan], for
//     statistics by sub-batch.
//
// docs/frameworks.md of the repository maps operations of ONNX, XLA, cuDNN, PyTorch,
// Keras, Flax, TensorFlow and Paddle to calls.
//
// # Promises
//
// Speed: the statistics of a channel are taken in one pass over memory. Where the
// values of a channel fit into a cache, they are normalized while they are there. Only a
// mean and an invstd per channel are kept from forward to backward.
//
// Same bits: AVX2, NEON and pure Go return identical bits, NaN payloads aside,
// for any number of workers, any executor, any alignment, in place or not.
//
// Accuracy: the error against exact arithmetic does not grow with the offset of
// the data. For data N(mean, 1) with gamma 1 and beta 0, y is within 3e-7 of
// max(1, |y|), and dx within 5e-7*|gamma|*invstd*max|g| of the channel, for means
// from 0 to 1e6 and any number of values. With a hundred values or more, the error of
// dx is within 1e-6 of the largest |dx|. With a few values, the terms of dx all but
// cancel, and dx can be smaller than its error. In the worst case, for adversarial data,
// the error is some hundred units of 2^-24 of the channel's standard deviation.
//
// Memory and errors: a call allocates nothing after the first one, and the first one with
// tiny numbers. It starts no goroutine unless asked to, checks its arguments before it
// writes anything, and writes only its outputs. It spends at most some tens of
// microseconds in assembly at a time, so that the garbage collector is not held up.
//
// Time: the time of a call does not depend on the data, as long as their scale is far
// from the ends of float32's range. Zeros, constant channels and dead channels take no
// longer. The exceptions are in the sections on arithmetic, activations and special
// values.
//
// # Layouts
//
// A tensor is dense, and its channels lie along one axis: see [Shape]. For several
// axes see [Axes], [PerActivation] and [NewAxesPlan]. Two layouts have kernels of
// their own: rows, where the values of a channel are adjacent (NCHW), and columns,
// where the channels are adjacent (NHWC, NC).
//
// # Statistics
//
// Mean and variance of a channel are taken over all its n values. The batch is
// normalized by the population variance (divided by n). The running variance is
// updated by the unbiased variance (divided by n-1), unless [WithRunningVariance]
// says otherwise. Saved statistics are float64, because a float32 mean of data far
// from zero has too few digits for the accuracy above.
//
// With epsilon 0 a channel of variance 0 gets invstd 0: its output is
// act(beta + residual), its dx and dgamma are 0. The variance of a channel whose
// values are all equal is exactly 0. [VarianceToInvStd] and [InvStdToVariance]
// convert one into the other.
//
// Systems that exchange float32 statistics get the mean and the population variance
// from BatchMean and BatchVar. [Plan.Backward] takes the saved float64 statistics, the
// float32 ones, or none. Without statistics it computes them again from x, with the
// bits of Forward.
//
// The table of docs/semantics.md compares other systems in each of these details, and
// names the option for each behaviour. [PyTorch], [Keras], [TensorFlow], [ONNX],
// [Flax] and [CuDNN] set a system's defaults.
//
// # Arithmetic
//
// z is computed as ((x-m)*a + b) [+ residual] in float32, each operation rounded
// on its own, with no fused multiply-add. m is the float32 nearest the mean, a
// the float32 nearest gamma*invstd, and b the float32 nearest
// beta - (mean-m)*gamma*invstd, so that the rounding of m is not lost. Where z
// leaves float32's range it is infinite, and y is the activation of infinity. dx is
// ((g-k1) - (x-m)*k2)*a, rounded likewise, where k1 and k2 hold the means over the
// batch. The constants of a channel are computed in float64.
//
// The order of sums depends on the shape alone. A channel's values are cut into
// segments, and a segment into windows. The sums of x-K and (x-K)^2 over a window are
// taken in float32, with one shift K: the mean of the segment so far. The first
// window's shift is the mean of a probe, the first values of the segment. Windows and
// segments are merged in float64, in their order (Chan, Golub and LeVeque 1979).
// geometry.go has the lengths of segments and windows.
//
// Where squares overflow or vanish in float32, the sums of the channel are taken in
// float64: from the start where a sample of x finds large values, or else once more. So are
// sums of gradients where a sample of these finds huge ones. Other sums of gradients that
// overflow or vanish are taken again: values are multiplied by a power of two, block by
// block, and go through the same kernels. Outputs are computed from scaled values, too, where
// x - mean may overflow. Scaling by a power of two is exact.
// Where gamma*invstd leaves the range from 2^-96 to 2^120, or invstd that from 2^-100 to
// 2^100, the products of outputs and the sums of a backward pass are float64. So data of any
// finite scale normalizes as well as data of scale 1. Such channels take more time.
//
// # Activations
//
// An [Activation] is fused into forward, inference and backward. Sigmoid and tanh
// are within 1 unit in the last place for every float32, in the subnormal tails as
// well. The other smooth activations are within 2. docs/activations.md of the repository
// has the worst input of each, and how they are computed. The backward pass computes z
// again and multiplies dy by the derivative, which is within 4 units of its largest
// term. Smooth activations take longer for arguments far from 0, where normalized
// values seldom are.
//
// Where the derivative is costly, a backward pass may store dy*act'(z) while it takes
// the sums: in DResidual, which has this value anyway, or in DX, where dx replaces it
// later. It is a float32: below 2^-126 it is rounded to a multiple of 2^-149, and the
// gradients, sums of it and differences, have this error of at most 2^-150 for each value.
//
// # Modes
//
// Besides [Plan.Forward], [Plan.Inference] and [Plan.Backward] there are
//
//   - [Plan.FrozenBackward], the gradients of Inference;
//   - [Mask], for padding, in every operation: results have the bits of the tensor
//     without its padding, and the order of sums depends on shape and mask alone;
//   - [Plan.Moments], [MergeMoments], [Plan.Statistics], [Plan.Normalize] and
//     [Plan.GradSums], [MergeGradSums], [Plan.InputGrad], the steps of Forward and
//     Backward, for batches in several places: for a batch in one part they give the
//     bits of Forward and Backward;
//   - [SyncPlan], which runs these steps on the ranks of a [SyncGroup], goroutines or
//     processes, for synchronized batch norm;
//   - [GhostPlan], with statistics by sub-batch;
//   - [Plan.BackwardFromY], which reads the output instead of the input;
//   - [Plan.RenormForward] and [Plan.RenormBackward], batch renormalization;
//   - [Precise], the statistics of many batches, whatever their order;
//   - [Accumulator], the statistics of a batch from its producer, tile by tile.
//
// The promises hold for all of them. A gradient that is not wanted is nil, and is not
// computed.
//
// # Special values
//
// Non-finite values stay in their channel. In a training forward pass a NaN, or
// infinities of both signs, make its mean NaN; infinities of one sign make the mean
// infinite. invstd and all outputs are NaN in each case. The backward pass makes dx
// and dgamma of this channel NaN. Its dresidual and dbeta come from g = dy*act'(NaN),
// which is dy itself for the identity, 0 for [ReLU] and NaN for smooth activations.
//
// A NaN or an infinity in dy makes dgamma and all of dx of its channel NaN, where
// g = dy*act'(z) is not finite. dbeta is the sum of g, infinite or NaN, and dresidual is
// g, element by element. Where ReLU's derivative is 0, g is 0 for any dy.
//
// In inference a non-finite x affects its own element alone, by the rules of IEEE 754.
// ReLU(NaN) is NaN, ReLU(-0) is +0. The derivative of ReLU is 1 where z > 0 and 0
// elsewhere.
// Subnormal numbers are not flushed; docs/data.md of the repository has what they cost. A
// channel with variance + epsilon outside of 2^-100 to 2^100 is read again. A channel with
// values that are not finite is read again, at least up to the first of them.
//
// A batch without values (Outer 0, or a [Mask] that leaves nothing) has no
// statistics: Forward saves NaN and leaves the running statistics, Inference
// does nothing, Backward sets dgamma and dbeta to 0; outputs at padding become 0.
// This holds in all modes. One value per channel in training is [ErrTooFewValues],
// unless [WithSingleValue] allows it.
//
// A NaN or an infinity in a batch gets into the running statistics of its channel
// and stays there: NaN makes mean and variance NaN, infinities of one sign make the mean
// infinite and the variance NaN. A weight of 0 keeps the bits of the running
// statistics. docs/semantics.md tells how to keep a bad batch out, and how the range
// and the precision of float32 limit running statistics.
//
// # Aliasing
//
// An output may be the same slice as an input where the comments of the argument
// structs allow it: the operation then works in place. Any other overlap of an output
// with another argument is [ErrAlias].
//
// # Concurrency
//
// A Plan may be used by several goroutines at a time. One call uses the number
// of workers that [WithWorkers] sets, or the caller's own [Executor]. Goroutines that
// a call starts end soon after it.
//
// A method of a nil Plan or Layer returns zero or an error, and does nothing.
//
// # Faults
//
// A caller's memory may fault: a mapped file that was truncated does. Where
// [runtime/debug.SetPanicOnFault] is set, the panic of a call with 1 worker reaches
// the caller, and leaves the outputs undefined; the plan serves later calls as
// before. Goroutines of [WithWorkers] don't inherit that setting, so that a fault on
// one of them ends the process. For data that may fault use 1 worker, or an
// [Executor] that sets it on its own goroutines and recovers there.
//
// # Implementations
//
// [Paths] lists the implementations that the machine can run, [WithPath] chooses one.
// GODEBUG=cpu.avx2=off, cpu.avx=off, cpu.asimd=off and cpu.all=off switch assembly
// off at run time, and the build tag purego leaves all of it out.
package batchnorm
