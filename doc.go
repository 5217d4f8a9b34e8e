// Package batchnorm computes batch normalization.
package batchnorm
