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
//   - [SyncPlan], for a batch in parts on several goroutines or processes;
//     [Layer.Synchronize] does the same for a layer.
//   - [AxesPlan], for statistics over any set of axes, and [GhostPlan], for
//     statistics by sub-batch.
//
// docs/frameworks.md of the repository maps operations of ONNX, XLA, cuDNN and
// PyTorch to calls.
//
// # What it promises
//
// Speed: the statistics of a channel are taken in one pass over memory, and are
// applied while its values are in a cache, where they fit. Nothing but a mean and an
// invstd per channel is kept from forward to backward.
//
// Same bits: AVX2, NEON and pure Go return identical bits, NaN payloads aside,
// for any number of workers, any executor, any alignment, in place or not.
//
// Accuracy: the error against exact arithmetic does not grow with the offset of
// the data. For data N(mean, 1) with gamma 1 and beta 0, y is within 3e-7 of
// max(1, |y|), and dx within 5e-7*|gamma|*invstd*max|g| of the channel, for means
// from 0 to 1e6 and any number of values. From a hundred values on the error of dx
// is within 1e-6 of the largest |dx|; of a few values, dx all but cancels, and can be
// smaller than this error. The worst case, for data made to hurt, is some hundred
// units of 2^-24 of the channel's standard deviation.
//
// Manners: a call allocates nothing after the first one, starts no goroutine unless
// asked to, checks its arguments before it writes anything, and writes nothing but
// its outputs. It spends at most some tens of microseconds in assembly at a time,
// so that the garbage collector is not held up.
//
// No surprises: the time does not depend on the data, as far as float32 holds them
// with room to spare: zeros, constant channels and dead channels take no longer. The
// sections on arithmetic, activations and special values name the exceptions.
//
// # Layouts
//
// A tensor is dense, and its channels lie along one axis: see [Shape]; for others
// see [Axes], [PerActivation] and [NewAxesPlan]. Where the values of a channel
// are adjacent (NCHW), the package walks rows; where the channels are adjacent
// (NHWC, NC), columns.
//
// # Statistics
//
// Mean and variance of a channel are taken over all its n values, and the
// variance that normalizes is the population's (divided by n). The running
// variance is updated by the unbiased variance (divided by n-1), unless
// [WithRunningVariance] says otherwise. Saved statistics are float64, because a
// float32 mean of data far from zero has too few digits for the accuracy above.
//
// With epsilon 0 a channel of variance 0 gets invstd 0: its output is
// act(beta + residual), its dx and dgamma are 0. The variance of a channel whose
// values are all equal is exactly 0. [VarianceToInvStd] and [InvStdToVariance]
// convert.
//
// Systems that exchange float32 statistics get the mean and the population's
// variance from BatchMean and BatchVar. [Plan.Backward] takes the saved statistics,
// these, or none: then it takes them anew from x, with the bits of Forward.
//
// The table of docs/semantics.md says what other systems do in each of these
// details, and which option gives it here; [PyTorch], [Keras], [TensorFlow], [ONNX],
// [Flax] and [CuDNN] set a system's defaults.
//
// # Arithmetic
//
// z is computed as ((x-m)*a + b) [+ residual] in float32, each operation rounded
// on its own, with no fused multiply-add. m is the float32 nearest the mean, a
// the float32 nearest gamma*invstd, and b the float32 nearest
// beta - (mean-m)*gamma*invstd, so that what m lacks of the mean is not lost. Where z
// leaves float32's range it is infinite, and y what the activation makes of that. dx
// is ((g-k1) - (x-m)*k2)*a in the same way, where k1 and k2 hold the means over
// the batch. Everything per channel is computed in float64.
//
// Sums are taken in an order that depends on the shape alone. A channel's values
// are cut into segments, and a segment into windows. A window is summed in float32,
// of x-K and (x-K)^2, with one shift K: the mean of the segment so far, or for the
// first window the mean of a probe of its first values. In rows windows grow, each
// up to three times as long as all before it, and the values of four images side by
// side, or four vectors of one image, are added as a tree before they join a sum. In
// columns a window has 128 rows, and four rows are added as a tree. Windows are
// merged in float64, and so are segments, in their order (Chan, Golub and LeVeque
// 1979). A float32 sum has at most 64 such groups in rows, and 32 in columns.
//
// A channel of which squares or products overflow or vanish in float32 is summed
// again: its values are multiplied by a power of two, block by block, and go through
// the same kernels. Outputs are computed from scaled values, too, where gamma*invstd
// leaves the range from 2^-120 to 2^120, or invstd that from 2^-100 to 2^100, or where
// the mean exceeds 2^100. A power of two changes no digit, so that data of any finite
// scale normalizes as well as data of scale 1. The values of such a channel are read
// more often.
//
// # Activations
//
// An [Activation] is fused into forward, inference and backward. Sigmoid and tanh
// are within 1 unit in the last place for every float32, in the subnormal tails as
// well, and the other smooth ones within 2; docs/activations.md of the repository has
// the worst input of each, and how they are computed. The backward pass computes z
// again and multiplies dy by the derivative, which is within 4 units of its largest
// term. Smooth activations take longer for arguments far from 0, where normalized
// values seldom are.
//
// Where the derivative is costly, the sums of a backward pass may leave dy*act'(z) in
// DResidual, where it stays, or in DX, which dx then replaces.
//
// # Modes
//
// Besides [Plan.Forward], [Plan.Inference] and [Plan.Backward] there are
//
//   - [Plan.FrozenBackward], the gradients of Inference;
//   - [Mask], for padding, in every operation: its bits are those of the tensor
//     without its padding, so the order of sums depends on shape and mask alone;
//   - [Plan.Moments], [MergeMoments], [Plan.Statistics], [Plan.Normalize] and
//     [Plan.GradSums], [MergeGradSums], [Plan.InputGrad], the pieces of Forward and
//     Backward, for batches in several places: of one part they have the bits of
//     the whole;
//   - [SyncPlan], which is these pieces on the ranks of a [SyncGroup], goroutines or
//     processes, for synchronized batch norm;
//   - [GhostPlan], with statistics by sub-batch;
//   - [Plan.BackwardFromY], which does without the input;
//   - [Plan.RenormForward] and [Plan.RenormBackward], batch renormalization;
//   - [Precise], the statistics of many batches, whatever their order;
//   - [Accumulator], the statistics of a batch from its producer, tile by tile.
//
// What this page promises holds for all of them. A gradient that is not wanted is
// nil, and is not computed.
//
// # Special values
//
// Non-finite values stay in their channel. In a training forward pass a NaN, or
// infinities of both signs, make its mean NaN; infinities of one sign make the mean
// infinite. invstd and all outputs are NaN in each case. The backward pass of such a
// channel makes dx and dgamma NaN; dbeta and dresidual are made of g = dy*act'(z)
// with z NaN: dy itself for the identity, 0 for [ReLU], NaN for smooth activations.
//
// A NaN or an infinity in dy whose g is not finite makes all of dx of its channel
// NaN, as well as dgamma; dbeta is the sum of g, infinite or NaN, and dresidual is g,
// element by element. Where ReLU's derivative is 0, g is 0 whatever dy is.
//
// In inference a non-finite x does to its element what IEEE 754 says. ReLU(NaN) is
// NaN, ReLU(-0) is +0. The derivative of ReLU is 1 where z > 0 and 0 elsewhere.
// Subnormal numbers are neither flushed nor slowed down by the package. A channel
// with values that are not finite, or with variance + epsilon outside of 2^-100 to
// 2^100, is read again, or up to the first values that are not.
//
// A batch without values (Outer 0, or a [Mask] that leaves nothing) has no
// statistics: Forward saves NaN and leaves the running statistics, Inference
// does nothing, Backward sets dgamma and dbeta to 0; outputs at padding become 0.
// All ways to train do the same. One value per channel in training is
// [ErrTooFewValues], unless [WithSingleValue] allows it.
//
// A NaN or an infinity in a batch gets into the running statistics of its channel
// and stays there: NaN makes both NaN, infinities of one sign make the mean
// infinite and the variance NaN. Weight 0 leaves them as they are by their bits.
// docs/semantics.md tells how to keep a bad batch out, and what the range and the
// digits of float32 do to running statistics.
//
// # Aliasing
//
// An output may be the same slice as an input where the arguments' comments say
// so: then the operation works in place. Any other overlap of an output with
// another argument is [ErrAlias].
//
// # Concurrency
//
// A Plan may be used by several goroutines at a time. One call uses the number
// of workers that [WithWorkers] sets, or the caller's own [Executor]. No goroutine
// stays: those that a call starts end soon after it.
//
// A method of a nil Plan or Layer returns zero or an error, and does nothing.
//
// # Faults
//
// A caller's memory may fault, as a mapped file does that was truncated. Where
// [runtime/debug.SetPanicOnFault] is set, the panic of a call with 1 worker reaches
// the caller, and leaves the outputs undefined; the plan serves later calls as
// before. Goroutines of [WithWorkers] don't inherit that setting, so that a fault on
// one of them ends the process. Data that may fault are for 1 worker, or for an
// [Executor] that sets it on its own goroutines and recovers there.
//
// # Implementations
//
// [Paths] tells which implementations the machine has, [WithPath] chooses one.
// GODEBUG=cpu.avx2=off, cpu.avx=off, cpu.asimd=off and cpu.all=off switch assembly
// off at run time, and the build tag purego leaves all of it out.
package batchnorm
