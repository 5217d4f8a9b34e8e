package main

// activation is the fragment of an activation that the kernels inject. It
// computes what the methods forward and backward of actKind compute.
type activation struct {
	name string // as it stands in the names of kernels and in Go's actNAME
	// temps is how many vectors it needs besides z and g.
	temps int
	// forward replaces z by act(z).
	forward func(a *asm, z vec, t []vec)
	// backward replaces g, which holds dy, by dy*act'(z). It may change z.
	backward func(a *asm, g, z vec, t []vec)
	// called says that the kernel calls a function (functions.go) for it.
	called bool
}

func (f activation) identity() bool { return f.forward == nil && !f.called }

// inline are the activations that kernels contain, in the order of actKind, and
// activations all that kernels exist for, in the order of actVariant.
var inline = activations[:2]

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

// actVariant is how a kernel comes by its activation, as in ../kernels.go.
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
