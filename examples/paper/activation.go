package main

import "github.com/fusedbn/batchnorm"

// activation is a function of the hidden units.
type activation struct {
	name   string
	kernel batchnorm.Activation

	// The derivative of a function with two flat ends.
	slope func(z float64) float64
}

var (
	sigmoid = &activation{"sigmoid", batchnorm.Sigmoid, sigmoidSlope}
	tanh    = &activation{"tanh", batchnorm.Tanh, func(z float64) float64 { return 4 * sigmoidSlope(2*z) }}
	relu    = &activation{"ReLU", batchnorm.ReLU, nil}
	gelu    = &activation{"GELU", batchnorm.GELU, nil}
)

func sigmoidSlope(z float64) float64 {
	e := exp(-max(z, -z))
	return e / float64((1+e)*(1+e))
}
