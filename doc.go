// Package batchnorm computes batch normalization (Ioffe and Szegedy 2015,
// arXiv 1502.03167) over flat float32 slices, forward, inference and backward,
// fused with scale and shift, a residual and an activation.
//
// A [Plan] is made once for a [Shape] and options; its methods are called for
// every batch. [Plans] keeps the plans of shapes that are known at run time only. A
// [Layer] adds the parameters, running statistics and gradients,
// and an [Affine] folds inference into the layers around it.
//
//	shape, err := batchnorm.NCHW(32, 64, 56, 56)
//	plan, err := batchnorm.NewPlan(shape, batchnorm.WithActivation(batchnorm.ReLU))
//	err = plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: gamma, Beta: beta, Y: y, Mean: mean, InvStd: invstd})
//	err = plan.Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: gamma, Beta: beta, Mean: mean, InvStd: invstd,
//		DX: dx, DGamma: dgamma, DBeta: dbeta})
//
// # What it promises
//
// Speed: the statistics of a channel are taken in one pass over memory, and
// applied while its values are in the cache where they fit. Nothing but a mean
// and an invstd per channel is kept from forward to backward.
//
// Same bits: AVX2, NEON and pure Go return identical bits, NaN payloads aside,
// for any number of workers, any executor, any alignment, in place or not.
//
// Accuracy: the error against exact arithmetic does not grow with the offset of
// the data. For data N(mean, 1) with gamma 1 and beta 0, y is within 3e-7 of
// max(1, |y|), and dx within 5e-7*|gamma|*invstd*max|g| of the channel, for means
// from 0 to 1e6 and any number of values. From a hundred values on that is within
// 1e-6 of the largest |dx|; with a few, whose dx all but cancels, dx can be smaller
// than this error. The worst case, for data made to hurt, is some hundred units of
// 2^-24 of the channel's standard deviation.
//
// Manners: a call allocates nothing, starts no goroutine unless asked to, checks
// its arguments before it writes anything, and writes nothing but its outputs.
// It spends at most some tens of microseconds in assembly at a time, so that
// the garbage collector is not held up.
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
// float32 mean of data far from zero would lose what the accuracy rests on.
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
// What other systems do in every such detail, and the options that give it here,
// is in the table of docs/semantics.md; [PyTorch], [Keras], [TensorFlow], [ONNX],
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
// Sums are taken in an order that depends on the shape alone: in float32 over
// blocks of at most 2048 values (128 rows in columns), shifted by the mean of
// the values before, and in float64 over blocks and segments (Chan, Golub and
// LeVeque 1979). A channel whose squares overflow or vanish in float32 is summed
// again in float64, and one whose constants leave the range from 2^-60 to 2^60
// is computed in float64 altogether, so that data of any finite scale
// normalizes as well as data of scale 1. Such channels are slow.
//
// # Activations
//
// An [Activation] is fused into forward, inference and backward. Sigmoid and tanh
// are within 1 unit in the last place for every float32, in the subnormal tails as
// well, and the other smooth ones within 2; the worst input of each is in
// docs/activations.md. The backward pass computes z again and multiplies dy by the
// derivative, which is within 4 units of its largest term. Where z is usual, which
// is from -4.36 to 4.36 at least for all but [Mish], for which it is from -4.48 to
// 3.48, smooth activations are quicker than far from there.
// Where the derivative is costly, the statistics phase of the backward pass
// leaves dy*act'(z) in DResidual, or else in DX, for the apply phase to read; it is
// computed twice where that output is X too, and for up to 512 columns of 6 MB and
// more.
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
// A NaN or an infinity among a channel's values makes all outputs of this
// channel NaN in training, and stays in this channel. In inference it does to
// its element what IEEE 754 says. ReLU(NaN) is NaN, ReLU(-0) is +0. The
// derivative of ReLU is 1 where z > 0 and 0 elsewhere. Subnormal numbers are
// neither flushed nor slowed down by the package.
//
// A batch without values (Outer 0, or a [Mask] that leaves nothing) has no
// statistics: Forward saves NaN and leaves the running statistics, Inference
// does nothing, Backward sets dgamma and dbeta to 0; outputs at padding become 0. So
// it is in every way to train. One value per channel in training is
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
