// Package gorgoniabn is batch normalization for Gorgonia
// (gorgonia.org/gorgonia), computed by github.com/fusedbn/batchnorm.
//
// [BatchNorm] takes the arguments of gorgonia.BatchNorm and returns the same
// five results, so that a program changes its import and the name:
//
//	y, gamma, beta, op, err := gorgoniabn.BatchNorm(x, gamma, beta, 0.1, 1e-5)
//
// The scale, the shift and an activation are part of the operation. Gradients come from
// gorgonia.Grad with a tape machine, and from a Lisp machine. In training the statistics of
// the batch normalize, in evaluation (gorgonia.EvalMode, or [Op.SetTraining]) the running
// ones, and the gradients are those of the mode.
//
// # Where it differs from gorgonia.BatchNorm
//
//   - Tensors are float32. A float64 graph is an error.
//   - x has any number of dimensions from 2 on, channels along axis 1.
//   - Scale and shift have an element for each channel, in the shape (C),
//     (1, C), (1, C, 1, 1) and so on. Those that are made for nil are of the
//     shape (1, C, 1, ...), and begin as 1 and 0.
//   - SetTraining(true) leaves the running statistics as they are; [Op.Reset]
//     resets them. So a new machine on a trained graph keeps what was learned.
//   - One value per channel in training is an error unless
//     batchnorm.WithSingleValue allows it.
package gorgoniabn
