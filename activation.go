package batchnorm

import "fmt"

// Activation is the function applied to z = normalize(x)*gamma + beta
// [+ residual]. The zero value is [Identity].
type Activation struct {
	kind actKind
}

type actKind uint8

const (
	actIdentity actKind = iota
	actReLU
	numActs
)

var actNames = [numActs]string{"identity", "relu"}

var (
	// Identity leaves z as it is.
	Identity = Activation{actIdentity}
	// ReLU is max(z, 0): ReLU(NaN) is NaN, ReLU(-0) is +0. Its derivative is 1
	// where z > 0 and 0 elsewhere, NaN included.
	ReLU = Activation{actReLU}
)

// String returns the activation's name.
func (a Activation) String() string {
	if a.kind < numActs {
		return actNames[a.kind]
	}
	return fmt.Sprintf("Activation(%d)", a.kind)
}

func (a Activation) valid() error {
	if a.kind >= numActs {
		return fail(ErrOption, "activation %v is unknown", a)
	}
	return nil
}

// forward replaces every z by act(z).
func (a actKind) forward(z []float32) {
	switch a {
	case actReLU:
		for i, v := range z {
			if v <= 0 { // false for NaN, which stays; true for -0, which becomes +0
				z[i] = 0
			}
		}
	}
}

// backward replaces every z by dy*act'(z).
func (a actKind) backward(z, dy []float32) {
	dy = dy[:len(z)]
	switch a {
	case actIdentity:
		copy(z, dy)
	case actReLU:
		for i, v := range z {
			if v > 0 {
				z[i] = dy[i]
			} else {
				z[i] = 0
			}
		}
	}
}
