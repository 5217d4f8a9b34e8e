package main

// activation is the code of an activation in the kernels. It computes the same as the
// methods forward and backward of Activation in Go.
type activation struct {
	name string // as in the names of kernels
	// temps is the number of vectors that it needs besides z and g.
	temps int
	// forward replaces z by act(z).
	forward func(a *asm, z vec, t []vec)
	// backward replaces g, which holds dy, by dy*act'(z). It may change z.
	backward func(a *asm, g, z vec, t []vec)
	// called is set if the kernel calls a function (functions.go) for it.
	called bool
}

func (f activation) identity() bool { return f.forward == nil && !f.called }

// inline has the activations whose code is part of the kernels, in the order of actKind.
var inline = activations[:2]

// activations has an entry for each actVariant. All activations that are not inline
// share the kernels of the last one.
var activations = []activation{
	{name: "Identity"},
	{
		name: "ReLU", temps: 1,
		// Clear the lanes with z <= 0: -0 becomes +0, and NaN stays.
		forward: func(a *asm, z vec, t []vec) {
			a.notPositive(t[0], z)
			a.op(opAndNot, z, t[0], z)
		},
		backward: func(a *asm, g, z vec, t []vec) {
			a.positive(t[0], z)
			a.op(opAnd, g, t[0], g)
		},
	},
	{name: "Called", temps: 1, called: true},
}

// actVariant says whether a kernel has an activation, as code of its own or as a call.
// It is the type of the same name in ../kernels.go.
type actVariant int

const (
	actNone actVariant = iota
	actInline
	actCalled
	numActVariants
)

var actVariantNames = [...]string{"actNone", "actInline", "actCalled"}

func (f activation) variant() actVariant {
	switch {
	case f.called:
		return actCalled
	case f.identity():
		return actNone
	}
	return actInline
}
