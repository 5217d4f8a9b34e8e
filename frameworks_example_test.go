package batchnorm_test

import (
	"errors"
	"fmt"
	"log"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fusedbn/batchnorm"
)

// The operations of frameworks by the calls of this package; docs/frameworks.md
// maps them argument by argument. Each function has the framework's signature, but
// for the dimensions, which a tensor of the framework brings with it, and for the
// error, which a framework would return. A framework keeps plans, in a Plans for
// each set of options.

// ok ends the example on an error.
func ok(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// like returns a new slice of the same length.
func like[S []E, E any](s S) S { return make(S, len(s)) }

// xlaPlan is for any operation of XLA's: the channels are the feature_index-th axis.
func xlaPlan(dims []int, epsilon float32, featureIndex int) *batchnorm.Plan {
	shape, err := batchnorm.Axis(featureIndex, dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.WithEpsilon(float64(epsilon)), batchnorm.WithSingleValue())
	ok(err)
	return plan
}

// xlaBatchNormTraining is BatchNormTraining of XLA and StableHLO, and
// BatchNormForTraining of a GoMLX backend. batchVar is the population's.
func xlaBatchNormTraining(operand []float32, dims []int, scale, offset []float32, epsilon float32, featureIndex int) (
	output, batchMean, batchVar []float32) {
	plan := xlaPlan(dims, epsilon, featureIndex)
	output, batchMean, batchVar = like(operand), make([]float32, dims[featureIndex]), make([]float32, dims[featureIndex])
	ok(plan.Forward(batchnorm.ForwardArgs{X: operand, Gamma: scale, Beta: offset, Y: output, BatchMean: batchMean, BatchVar: batchVar}))
	return output, batchMean, batchVar
}

// xlaBatchNormInference is BatchNormInference, and BatchNormForInference of GoMLX.
func xlaBatchNormInference(operand []float32, dims []int, scale, offset, mean, variance []float32, epsilon float32, featureIndex int) []float32 {
	output := like(operand)
	ok(xlaPlan(dims, epsilon, featureIndex).Inference(batchnorm.InferenceArgs{
		X: operand, Gamma: scale, Beta: offset, Mean: mean, Var: variance, Y: output}))
	return output
}

// xlaBatchNormGrad is BatchNormGrad, and BatchNormGradient of GoMLX. It has mean and
// variance taken anew from the operand, at the cost of one more read: float32
// statistics of data far from zero lack digits that the gradient rests on. Where
// they will do, they are BatchMean and BatchVar.
func xlaBatchNormGrad(operand []float32, dims []int, scale, _, _ []float32, gradOutput []float32, epsilon float32, featureIndex int) (
	gradOperand, gradScale, gradOffset []float32) {
	plan := xlaPlan(dims, epsilon, featureIndex)
	gradOperand, gradScale, gradOffset = like(operand), make([]float32, dims[featureIndex]), make([]float32, dims[featureIndex])
	ok(plan.Backward(batchnorm.BackwardArgs{DY: gradOutput, X: operand, Gamma: scale,
		DX: gradOperand, DGamma: gradScale, DBeta: gradOffset}))
	return gradOperand, gradScale, gradOffset
}

// XLA, StableHLO and GoMLX, with the features last.
func Example_xla() {
	dims, feature := []int{4, 2}, 1
	operand := []float32{1, 10, 3, 30, 1, 10, 3, 30}
	scale, offset := []float32{2, 1}, []float32{0, 5}

	output, mean, variance := xlaBatchNormTraining(operand, dims, scale, offset, 0, feature)
	fmt.Println("training ", output, mean, variance)
	fmt.Println("inference", xlaBatchNormInference(operand, dims, scale, offset, mean, variance, 0, feature))

	gradOutput := []float32{1, 0, 2, 0, 3, 0, 6, 0}
	gradOperand, gradScale, gradOffset := xlaBatchNormGrad(operand, dims, scale, mean, variance, gradOutput, 0, feature)
	fmt.Println("gradient ", gradOperand, gradScale, gradOffset)
	// Output:
	// training  [-2 4 2 6 -2 4 2 6] [2 20] [1 100]
	// inference [-2 4 2 6 -2 4 2 6]
	// gradient  [-2 0 -4 0 2 0 4 0] [4 0] [12 0]
}

// onnxAttributes are those of BatchNormalization. TrainingMode is there from
// operator set 14 on, Spatial up to 8.
type onnxAttributes struct {
	Epsilon, Momentum float32
	TrainingMode      bool
	Spatial           bool
}

// onnxBatchNormalization is BatchNormalization of ONNX. The last two results are
// those of TrainingMode.
func onnxBatchNormalization(a onnxAttributes, x []float32, dims []int, scale, b, inputMean, inputVar []float32) (
	y, runningMean, runningVar []float32) {
	shape, err := batchnorm.NCHW(dims...)
	if !a.Spatial {
		shape, err = batchnorm.PerActivation(dims...)
	}
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.ONNX(), batchnorm.WithEpsilon(float64(a.Epsilon)),
		batchnorm.WithMomentum(batchnorm.OldWeight(float64(a.Momentum))))
	ok(err)
	y = like(x)
	if !a.TrainingMode {
		ok(plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: scale, Beta: b, Mean: inputMean, Var: inputVar, Y: y}))
		return y, nil, nil
	}
	runningMean, runningVar = slices.Clone(inputMean), slices.Clone(inputVar)
	ok(plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: scale, Beta: b, Y: y, RunningMean: runningMean, RunningVar: runningVar}))
	return y, runningMean, runningVar
}

// ONNX: operator sets 7 and 8 with spatial = 0, 9 to 13, and training in 14 and 15.
func Example_onnx() {
	x, dims := []float32{1, 3, 10, 30}, []int{1, 2, 2} // N, C, L
	scale, b, mean, variance := []float32{1, 1}, []float32{0, 5}, []float32{2, 10}, []float32{4, 100}

	y, _, _ := onnxBatchNormalization(onnxAttributes{Momentum: 0.5, Spatial: true}, x, dims, scale, b, mean, variance)
	fmt.Println("inference", y)

	y, mean, variance = onnxBatchNormalization(onnxAttributes{Momentum: 0.5, Spatial: true, TrainingMode: true}, x, dims, scale, b, mean, variance)
	fmt.Println("training ", y, mean, variance)

	each := func(v float32) []float32 { return slices.Repeat([]float32{v}, 4) }
	y, _, _ = onnxBatchNormalization(onnxAttributes{}, x, dims, each(1), each(0), []float32{0, 1, 2, 3}, each(1))
	fmt.Println("spatial 0", y)
	// Output:
	// inference [-0.5 0.5 5 7]
	// training  [-1 1 4 6] [2 15] [2.5 100]
	// spatial 0 [1 2 8 27]
}

// cudnnPlan is for any of cuDNN's functions. Its descriptors say which layout: NCHW
// here; NHWC is batchnorm.NHWC, and CUDNN_BATCHNORM_PER_ACTIVATION PerActivation.
func cudnnPlan(dims []int, epsilon float64, opts ...batchnorm.Option) *batchnorm.Plan {
	shape, err := batchnorm.NCHW(dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, append([]batchnorm.Option{batchnorm.CuDNN(), batchnorm.WithEpsilon(epsilon)}, opts...)...)
	ok(err)
	return plan
}

// cudnnBatchNormalizationForwardTraining has alpha = 1 and beta = 0. The saved
// statistics are float64.
func cudnnBatchNormalizationForwardTraining(dims []int, x, y, bnScale, bnBias []float32, exponentialAverageFactor float64,
	resultRunningMean, resultRunningVariance []float32, epsilon float64, resultSaveMean, resultSaveInvVariance []float64) {
	ok(cudnnPlan(dims, epsilon).Forward(batchnorm.ForwardArgs{X: x, Gamma: bnScale, Beta: bnBias, Y: y,
		RunningMean: resultRunningMean, RunningVar: resultRunningVariance, Momentum: batchnorm.NewWeight(exponentialAverageFactor),
		Mean: resultSaveMean, InvStd: resultSaveInvVariance}))
}

// cudnnBatchNormalizationForwardTrainingEx is with bnOps
// CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION: z is added, and ReLU is applied. No
// reserve space is needed.
func cudnnBatchNormalizationForwardTrainingEx(dims []int, x, z, y, bnScale, bnBias []float32, epsilon float64,
	resultSaveMean, resultSaveInvVariance []float64) {
	ok(cudnnPlan(dims, epsilon, batchnorm.WithActivation(batchnorm.ReLU)).Forward(batchnorm.ForwardArgs{
		X: x, Residual: z, Gamma: bnScale, Beta: bnBias, Y: y, Mean: resultSaveMean, InvStd: resultSaveInvVariance}))
}

// cudnnBatchNormalizationBackward has alphaDataDiff = alphaParamDiff = 1 and
// betaDataDiff = betaParamDiff = 0.
func cudnnBatchNormalizationBackward(dims []int, x, dy, dx, bnScale, resultBnScaleDiff, resultBnBiasDiff []float32, epsilon float64,
	savedMean, savedInvVariance []float64) {
	ok(cudnnPlan(dims, epsilon).Backward(batchnorm.BackwardArgs{DY: dy, X: x, Gamma: bnScale, Mean: savedMean, InvStd: savedInvVariance,
		DX: dx, DGamma: resultBnScaleDiff, DBeta: resultBnBiasDiff}))
}

// cuDNN: training, the same with an addend and ReLU, and the gradients.
func Example_cudnn() {
	dims := []int{2, 1, 1, 2}
	x, scale, bias := []float32{1, 3, 1, 3}, []float32{2}, []float32{0}
	y, runningMean, runningVar := like(x), []float32{0}, []float32{1}
	savedMean, savedInvVariance := make([]float64, 1), make([]float64, 1)

	cudnnBatchNormalizationForwardTraining(dims, x, y, scale, bias, 0.25, runningMean, runningVar, 0, savedMean, savedInvVariance)
	fmt.Printf("training %v, running %v %.4f, saved %v %v\n", y, runningMean, runningVar, savedMean, savedInvVariance)

	dx, dscale, dbias := like(x), like(scale), like(bias)
	cudnnBatchNormalizationBackward(dims, x, []float32{1, 2, 3, 6}, dx, scale, dscale, dbias, 0, savedMean, savedInvVariance)
	fmt.Println("backward", dx, dscale, dbias)

	cudnnBatchNormalizationForwardTrainingEx(dims, x, []float32{5, 5, -5, -1}, y, scale, bias, 0, savedMean, savedInvVariance)
	fmt.Println("with z  ", y)
	// Output:
	// training [-2 2 -2 2], running [0.5] [1.0833], saved [2] [1]
	// backward [-2 -4 2 4] [4] [12]
	// with z   [3 7 0 1]
}

// torchPlan is for both of PyTorch's functions: the channels are axis 1.
func torchPlan(dims []int, eps float64) *batchnorm.Plan {
	shape, err := batchnorm.NCHW(dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.PyTorch(), batchnorm.WithEpsilon(eps))
	ok(err)
	return plan
}

// nativeBatchNorm is aten::native_batch_norm. The saved statistics are float64; in
// evaluation there are none.
func nativeBatchNorm(input []float32, dims []int, weight, bias, runningMean, runningVar []float32, training bool, momentum, eps float64) (
	output []float32, saveMean, saveInvstd []float64) {
	plan := torchPlan(dims, eps)
	output = like(input)
	if !training {
		ok(plan.Inference(batchnorm.InferenceArgs{X: input, Gamma: weight, Beta: bias, Mean: runningMean, Var: runningVar, Y: output}))
		return output, nil, nil
	}
	saveMean, saveInvstd = make([]float64, dims[1]), make([]float64, dims[1])
	ok(plan.Forward(batchnorm.ForwardArgs{X: input, Gamma: weight, Beta: bias, Y: output, Mean: saveMean, InvStd: saveInvstd,
		RunningMean: runningMean, RunningVar: runningVar, Momentum: batchnorm.NewWeight(momentum)}))
	return output, saveMean, saveInvstd
}

// nativeBatchNormBackward is aten::native_batch_norm_backward. What outputMask
// leaves out is not computed.
func nativeBatchNormBackward(gradOut, input []float32, dims []int, weight, runningMean, runningVar []float32, saveMean, saveInvstd []float64,
	train bool, eps float64, outputMask [3]bool) (gradInput, gradWeight, gradBias []float32) {
	plan := torchPlan(dims, eps)
	if outputMask[0] {
		gradInput = like(input)
	}
	if outputMask[1] {
		gradWeight = make([]float32, dims[1])
	}
	if outputMask[2] {
		gradBias = make([]float32, dims[1])
	}
	if train {
		ok(plan.Backward(batchnorm.BackwardArgs{DY: gradOut, X: input, Gamma: weight, Mean: saveMean, InvStd: saveInvstd,
			DX: gradInput, DGamma: gradWeight, DBeta: gradBias}))
	} else {
		ok(plan.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: gradOut, X: input, Gamma: weight, Mean: runningMean, Var: runningVar,
			DX: gradInput, DGamma: gradWeight, DBeta: gradBias}))
	}
	return gradInput, gradWeight, gradBias
}

// PyTorch's native_batch_norm and native_batch_norm_backward, in training and in
// evaluation.
func Example_pytorch() {
	input, dims := []float32{1, 3, 1, 3}, []int{4, 1}
	weight, runningMean, runningVar := []float32{2}, []float32{0}, []float32{1}
	gradOut := []float32{1, 2, 3, 6}

	output, saveMean, saveInvstd := nativeBatchNorm(input, dims, weight, nil, runningMean, runningVar, true, 0.25, 0)
	fmt.Printf("training   %v, running %v %.4f\n", output, runningMean, runningVar)
	dx, dweight, dbias := nativeBatchNormBackward(gradOut, input, dims, weight, runningMean, runningVar, saveMean, saveInvstd,
		true, 0, [3]bool{true, true, false})
	fmt.Println("gradients ", dx, dweight, dbias)

	runningMean, runningVar = []float32{1}, []float32{4}
	output, saveMean, saveInvstd = nativeBatchNorm(input, dims, weight, nil, runningMean, runningVar, false, 0.25, 0)
	fmt.Println("evaluation", output)
	dx, dweight, dbias = nativeBatchNormBackward(gradOut, input, dims, weight, runningMean, runningVar, saveMean, saveInvstd,
		false, 0, [3]bool{true, true, true})
	fmt.Println("gradients ", dx, dweight, dbias)
	// Output:
	// training   [-2 2 -2 2], running [0.5] [1.0833]
	// gradients  [-2 -4 2 4] [4] []
	// evaluation [0 2 0 2]
	// gradients  [1 2 3 6] [8] [12]
}

// Keras' layer, with axis -1, center off, and a mask of time steps. It is a Layer,
// whose mode is Keras' argument training; trainable = False is Eval, which has
// gradients as well.
func Example_keras() {
	const batch, steps, features = 2, 3, 1
	layer, err := batchnorm.NewLayer(features, batchnorm.Keras(), // momentum=0.99, epsilon=1e-3
		batchnorm.WithMomentum(batchnorm.OldWeight(0.5)), batchnorm.WithEpsilon(0)) // momentum=0.5, epsilon=0
	ok(err)
	layer.Beta, layer.DBeta = nil, nil // center=False
	shape, err := batchnorm.NHWC(batch, steps, features)
	ok(err)
	inputs := []float32{1, 3, 99, 3, 1, -99}
	mask := batchnorm.Mask{Valid: []bool{true, true, false, true, true, false}}
	outputs := like(inputs)
	ok(layer.Forward(batchnorm.LayerForwardArgs{Shape: shape, X: inputs, Mask: mask, Y: outputs})) // training=True
	fmt.Println("training ", outputs, layer.RunningMean, layer.RunningVar)

	ok(layer.Inference(batchnorm.LayerForwardArgs{Shape: shape, X: inputs, Y: outputs})) // training=False
	fmt.Println("inference", outputs)

	dinputs := like(inputs)
	ok(layer.Backward(batchnorm.LayerBackwardArgs{DY: []float32{1, 2, 7, 6, 3, 7}, DX: dinputs}))
	fmt.Println("gradients", dinputs, layer.DGamma)
	// Output:
	// training  [-1 1 0 1 -1 0] [1] [1]
	// inference [0 2 98 2 0 -100]
	// gradients [-1 -2 0 2 1 0] [4]
}

// flaxPlan is for both of Flax' functions: the features are the last axis.
func flaxPlan(dims []int, momentum, epsilon float64) *batchnorm.Plan {
	shape, err := batchnorm.NHWC(dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.Flax(), batchnorm.WithMomentum(batchnorm.OldWeight(momentum)), batchnorm.WithEpsilon(epsilon))
	ok(err)
	return plan
}

// flaxBatchNorm is the call of flax.linen.BatchNorm in training. mask has an element
// per position, true where the value enters the statistics; nil: all do. Flax
// normalizes padding as well. raMean and raVar are updated.
func flaxBatchNorm(x []float32, dims []int, scale, bias, raMean, raVar []float32, mask []bool, momentum, epsilon float64) (
	y []float32, mean, invstd []float64, count int) {
	plan, features := flaxPlan(dims, momentum, epsilon), dims[len(dims)-1]
	y, mean, invstd = like(x), make([]float64, features), make([]float64, features)
	m := batchnorm.Moments{Mean: mean, M2: invstd}
	ok(plan.Moments(batchnorm.MomentsArgs{X: x, Mask: batchnorm.Mask{Valid: mask}, Moments: &m}))
	ok(plan.Statistics(batchnorm.StatisticsArgs{Moments: m, Mean: mean, InvStd: invstd, RunningMean: raMean, RunningVar: raVar}))
	ok(plan.Normalize(batchnorm.NormalizeArgs{X: x, Gamma: scale, Beta: bias, Mean: mean, InvStd: invstd, Y: y}))
	return y, mean, invstd, m.Count
}

// flaxBatchNormGrad is the gradient of flaxBatchNorm. The outputs at padding depend on
// the statistics, so that their dy enters the sums. dx is the frozen gradient at
// padding, and has the terms of the statistics elsewhere, whose means are over the
// count values that entered these.
func flaxBatchNormGrad(dy, x []float32, dims []int, scale []float32, mask []bool, mean, invstd []float64, count int, epsilon float64) (
	dx, dscale, dbias []float32) {
	plan, features := flaxPlan(dims, 0, epsilon), dims[len(dims)-1]
	dx, dscale, dbias = like(x), make([]float32, features), make([]float32, features)
	none := batchnorm.GradSums{Count: len(x) / features, G: make([]float64, features), GD: make([]float64, features)}
	ok(plan.InputGrad(batchnorm.InputGradArgs{DY: dy, X: x, Gamma: scale, Mean: mean, InvStd: invstd, Sums: none, DX: dx}))
	sums := batchnorm.GradSums{G: make([]float64, features), GD: make([]float64, features)}
	ok(plan.GradSums(batchnorm.GradSumsArgs{DY: dy, X: x, Gamma: scale, Mean: mean, InvStd: invstd, Sums: &sums}))
	sums.Count = count
	ok(plan.InputGrad(batchnorm.InputGradArgs{DY: dy, X: x, Gamma: scale, Mean: mean, InvStd: invstd, Sums: sums,
		Mask: batchnorm.Mask{Valid: mask, KeepPadding: true}, DX: dx, DGamma: dscale, DBeta: dbias}))
	return dx, dscale, dbias
}

// Flax' BatchNorm with a mask of time steps.
func Example_flax() {
	x, dims := []float32{1, 3, 99, 3, 1, -99}, []int{2, 3, 1}
	mask := []bool{true, true, false, true, true, false}
	raMean, raVar := []float32{0}, []float32{1}
	y, mean, invstd, count := flaxBatchNorm(x, dims, []float32{2}, nil, raMean, raVar, mask, 0.5, 0)
	fmt.Println("output   ", y, raMean, raVar)
	dx, dscale, dbias := flaxBatchNormGrad([]float32{1, 2, 1, 6, 3, 0}, x, dims, []float32{2}, mask, mean, invstd, count, 0)
	fmt.Println("gradients", dx, dscale, dbias)
	// Output:
	// output    [-2 2 194 2 -2 -202] [1] [1]
	// gradients [46 -53 2 -45 50 0] [101] [13]
}

// fusedPlan is for both of TensorFlow's operations.
func fusedPlan(dims []int, epsilon float64, dataFormat string) *batchnorm.Plan {
	layout := batchnorm.NHWC
	if dataFormat == "NCHW" {
		layout = batchnorm.NCHW
	}
	shape, err := layout(dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.TensorFlow(), batchnorm.WithEpsilon(epsilon))
	ok(err)
	return plan
}

// fusedBatchNormV3 is TensorFlow's FusedBatchNormV3 on a CPU. mean and variance may be
// empty if exponentialAvgFactor is 1.
func fusedBatchNormV3(x []float32, dims []int, scale, offset, mean, variance []float32, epsilon, exponentialAvgFactor float64,
	dataFormat string, isTraining bool) (y, batchMean, batchVariance, reserve1, reserve2 []float32) {
	plan := fusedPlan(dims, epsilon, dataFormat)
	y, batchMean, batchVariance = like(x), like(scale), like(scale)
	copy(batchMean, mean)
	copy(batchVariance, variance)
	if !isTraining {
		ok(plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: scale, Beta: offset, Mean: mean, Var: variance, Y: y}))
		return y, batchMean, batchVariance, mean, variance
	}
	reserve1, reserve2 = like(scale), like(scale)
	ok(plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: scale, Beta: offset, Y: y, BatchMean: reserve1, BatchVar: reserve2,
		RunningMean: batchMean, RunningVar: batchVariance, Momentum: batchnorm.NewWeight(exponentialAvgFactor)}))
	return y, batchMean, batchVariance, reserve1, reserve2
}

// fusedBatchNormGradV3 is TensorFlow's FusedBatchNormGradV3.
func fusedBatchNormGradV3(yBackprop, x []float32, dims []int, scale, reserve1, reserve2 []float32, epsilon float64,
	dataFormat string, isTraining bool) (xBackprop, scaleBackprop, offsetBackprop []float32) {
	plan := fusedPlan(dims, epsilon, dataFormat)
	xBackprop, scaleBackprop, offsetBackprop = like(x), like(scale), like(scale)
	if isTraining {
		ok(plan.Backward(batchnorm.BackwardArgs{DY: yBackprop, X: x, Gamma: scale, BatchMean: reserve1, BatchVar: reserve2,
			DX: xBackprop, DGamma: scaleBackprop, DBeta: offsetBackprop}))
	} else {
		ok(plan.FrozenBackward(batchnorm.FrozenBackwardArgs{DY: yBackprop, X: x, Gamma: scale, Mean: reserve1, Var: reserve2,
			DX: xBackprop, DGamma: scaleBackprop, DBeta: offsetBackprop}))
	}
	return xBackprop, scaleBackprop, offsetBackprop
}

// TensorFlow's fused operation and its gradient, in training and not.
func Example_tensorflow() {
	x, dims := []float32{1, 3, 1, 3}, []int{1, 2, 2, 1}
	scale, offset, dy := []float32{2}, []float32{1}, []float32{1, 2, 3, 6}
	y, mean, variance, r1, r2 := fusedBatchNormV3(x, dims, scale, offset, nil, nil, 0, 1, "NHWC", true)
	fmt.Printf("training  %v, statistics %v %.4f\n", y, mean, variance)
	dx, dscale, doffset := fusedBatchNormGradV3(dy, x, dims, scale, r1, r2, 0, "NHWC", true)
	fmt.Println("gradients", dx, dscale, doffset)

	y, _, _, r1, r2 = fusedBatchNormV3(x, dims, scale, offset, []float32{1}, []float32{4}, 0, 1, "NHWC", false)
	fmt.Println("inference", y)
	dx, dscale, doffset = fusedBatchNormGradV3(dy, x, dims, scale, r1, r2, 0, "NHWC", false)
	fmt.Println("gradients", dx, dscale, doffset)
	// Output:
	// training  [-1 3 -1 3], statistics [2] [1.3333]
	// gradients [-2 -4 2 4] [4] [12]
	// inference [1 3 1 3]
	// gradients [1 2 3 6] [8] [12]
}

// paddleBatchNorm is paddle.nn.functional.batch_norm on a CPU; useGlobalStats is nil for
// None. The gradient is Plan.FrozenBackward if the saved statistics are nil, and
// Plan.Backward with them otherwise.
func paddleBatchNorm(x []float32, dims []int, runningMean, runningVar, weight, bias []float32, training bool, momentum, epsilon float64,
	dataFormat string, useGlobalStats *bool) (y []float32, savedMean, savedInvStd []float64) {
	layout := batchnorm.NCHW // NC and NCL, too
	if dataFormat == "NHWC" || dataFormat == "NLC" || dataFormat == "NDHWC" {
		layout = batchnorm.NHWC
	}
	shape, err := layout(dims...)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.WithEpsilon(epsilon), batchnorm.WithMomentum(batchnorm.OldWeight(momentum)),
		batchnorm.WithRunningVariance(batchnorm.Population), batchnorm.WithSingleValue())
	ok(err)
	global := !training
	if useGlobalStats != nil {
		global = *useGlobalStats
	}
	y = like(x)
	if global {
		ok(plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: weight, Beta: bias, Mean: runningMean, Var: runningVar, Y: y}))
		return y, nil, nil
	}
	savedMean, savedInvStd = make([]float64, shape.Channels), make([]float64, shape.Channels)
	ok(plan.Forward(batchnorm.ForwardArgs{X: x, Gamma: weight, Beta: bias, RunningMean: runningMean, RunningVar: runningVar,
		Y: y, Mean: savedMean, InvStd: savedInvStd}))
	return y, savedMean, savedInvStd
}

// Paddle's batch_norm, in training by the batch and by the running statistics.
func Example_paddle() {
	x, dims := []float32{1, 3, 1, 3}, []int{4, 1}
	runningMean, runningVar, global := []float32{0}, []float32{4}, true
	y, _, _ := paddleBatchNorm(x, dims, runningMean, runningVar, []float32{2}, nil, true, 0.9, 0, "NC", &global)
	fmt.Println("use_global_stats", y, runningMean, runningVar)
	y, mean, invstd := paddleBatchNorm(x, dims, runningMean, runningVar, []float32{2}, nil, true, 0.9, 0, "NC", nil)
	fmt.Println("training        ", y, runningMean, runningVar, mean, invstd)
	// Output:
	// use_global_stats [1 3 1 3] [0] [4]
	// training         [-2 2 -2 2] [0.2] [3.7] [2] [1]
}

// workerPool stands for a framework's own: try hands work to an idle worker, and
// says false if there is none.
type workerPool struct {
	workers int
	work    chan func()
}

func (p *workerPool) try(f func()) bool {
	select {
	case p.work <- f:
		return true
	default:
		return false
	}
}

// poolExecutor is the bridge from a framework's pool to this package. The caller
// works too, and waits for nobody who has not begun, so that a call from
// within the pool can't wait for itself.
func poolExecutor(p *workerPool) batchnorm.Executor {
	return func(n int, task func(i int)) {
		var next atomic.Int64
		run := func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				task(i - 1)
			}
		}
		var helpers sync.WaitGroup
		for range min(n, p.workers) - 1 {
			helpers.Add(1)
			if !p.try(func() { defer helpers.Done(); run() }) {
				helpers.Done()
			}
		}
		run()
		helpers.Wait()
	}
}

// The executor bridge: the work runs on the framework's pool, with the bits of one
// worker.
func ExampleExecutor() {
	pool := &workerPool{workers: 4, work: make(chan func())}
	for range pool.workers {
		go func() {
			for f := range pool.work {
				f()
			}
		}()
	}
	defer close(pool.work)

	shape, err := batchnorm.NCHW(8, 64, 32, 32)
	ok(err)
	x := make([]float32, shape.Len())
	for i := range x {
		x[i] = float32(i % 1013)
	}
	run := func(opts ...batchnorm.Option) []float32 {
		plan, err := batchnorm.NewPlan(shape, opts...)
		ok(err)
		y := like(x)
		ok(plan.Forward(batchnorm.ForwardArgs{X: x, Y: y}))
		return y
	}
	fmt.Println(slices.Equal(run(), run(batchnorm.WithWorkers(pool.workers), batchnorm.WithExecutor(poolExecutor(pool)))))
	// Output:
	// true
}

// A donated buffer, which its owner no longer needs, takes the result: y the memory
// of x, dx that of dy. Memory that overlaps otherwise is refused.
func Example_donatedBuffers() {
	shape, err := batchnorm.NCHW(4, 1)
	ok(err)
	plan, err := batchnorm.NewPlan(shape, batchnorm.WithEpsilon(0))
	ok(err)
	memory := []float32{1, 3, 1, 3, 0}
	x, mean, invstd := slices.Clone(memory[:4]), make([]float64, 1), make([]float64, 1)
	ok(plan.Forward(batchnorm.ForwardArgs{X: memory[:4], Y: memory[:4], Mean: mean, InvStd: invstd}))
	fmt.Println("y for x  ", memory[:4])

	grad := []float32{1, 2, 3, 6}
	ok(plan.Backward(batchnorm.BackwardArgs{DY: grad, X: x, Mean: mean, InvStd: invstd, DX: grad}))
	fmt.Println("dx for dy", grad)

	err = plan.Forward(batchnorm.ForwardArgs{X: memory[:4], Y: memory[1:]})
	fmt.Println(errors.Is(err, batchnorm.ErrAlias), err)
	// Output:
	// y for x   [-1 1 -1 1]
	// dx for dy [-1 -2 1 2]
	// true batchnorm: x (4 elements) and y (4 elements) overlap by 12 bytes
}

// An error names the argument and the numbers, and comes before anything is
// written. Its kind is found by errors.Is.
func Example_errors() {
	shape, err := batchnorm.NCHW(4, 2)
	ok(err)
	plan, err := batchnorm.NewPlan(shape)
	ok(err)
	x, y := make([]float32, 8), []float32{7, 7, 7, 7, 7, 7, 7, 7}
	err = plan.Forward(batchnorm.ForwardArgs{X: x, Y: y, Gamma: make([]float32, 3)})
	fmt.Println(errors.Is(err, batchnorm.ErrLength), err)
	err = plan.Inference(batchnorm.InferenceArgs{X: x, Y: y})
	fmt.Println(errors.Is(err, batchnorm.ErrMissing), err)
	fmt.Println(y)
	// Output:
	// true batchnorm: gamma has 3 elements, shape 4x2x1 has 2 channels
	// true batchnorm: mean is missing, 2 elements are needed for shape 4x2x1
	// [7 7 7 7 7 7 7 7]
}
