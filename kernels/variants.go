package main

import (
	"cmp"
	"math/bits"
	"strings"
)

// kernel is the number of a kernel, as in ../kernels.go.
type kernel int

const (
	kernelMoments kernel = iota
	kernelNormalize
	kernelGradSums
	kernelInputGrad
	kernelLargest
	kernelScale
	kernelTimes
	kernelGradSums64
	kernelInputGrad64
	kernelChoose
	kernelTinyZ
	numKernels
)

var kernelNames = [...]string{"moments", "normalize", "gradSums", "inputGrad", "largest", "scale", "times",
	"gradSums64", "inputGrad64", "choose", "tinyZ"}

// layout is the layout of the tensors, as in ../kernels.go.
type layout int

const (
	inRows layout = iota
	inCols
	numLayouts
)

var (
	layoutNames = [...]string{"rows", "cols"}
)

// flags are the optional operands and stores of a variant, as in ../kernels.go.
type flags int

const (
	withResidual flags = 1 << iota
	withDResidual
	withStream
	numFlags flags = 1 << iota
)

var flagNames = [...]string{"Residual", "DResidual", "Stream"}

// flagFields are the fields of kernelArgs that are not 0 if a flag is set.
var flagFields = [len(flagNames)]string{"res", "dres", "stream"}

// index is the number of a flag.
func (f flags) index() int { return bits.TrailingZeros(uint(f)) }

// family is a kernel for several layouts, activations and sets of operands.
type family struct {
	kernel  kernel
	layouts []layout
	acts    []activation
	// optional are the flags that a variant may have. There is a variant for each set of
	// them, with two exceptions. A kernel with calls is one variant, which tests the flags in
	// every call: the tests take little time beside the function. In cols every kernel tests
	// withStream; one without calls has a loop for either case.
	optional func(act activation) flags
	// calls is the field of actCode with the function for an activation that is called.
	calls string
	emit  func(a *asm, v variant)
}

// families lists the variants of every kernel.
var families = []family{
	{
		kernel: kernelMoments, layouts: []layout{inRows, inCols}, acts: activations[:1],
		optional: func(activation) flags { return 0 }, emit: moments,
	},
	{
		kernel: kernelNormalize, layouts: []layout{inRows, inCols}, acts: activations, calls: "value",
		optional: func(activation) flags { return withResidual | withStream }, emit: normalize,
	},
	{
		kernel: kernelGradSums, layouts: []layout{inRows, inCols}, acts: activations, calls: "derivative",
		optional: func(act activation) flags {
			if act.called {
				return withResidual | withDResidual
			}
			return act.residual()
		}, emit: gradSums,
	},
	{
		kernel: kernelInputGrad, layouts: []layout{inRows, inCols}, acts: activations, calls: "derivative",
		optional: func(act activation) flags { return act.residual() | withDResidual | withStream }, emit: inputGrad,
	},
	{
		kernel: kernelLargest, layouts: []layout{inCols}, acts: activations[:1],
		optional: func(activation) flags { return 0 }, emit: largest,
	},
	{
		kernel: kernelScale, layouts: []layout{inCols}, acts: activations[:2],
		optional: func(activation) flags { return withStream }, emit: scale,
	},
	{
		kernel: kernelTimes, layouts: []layout{inCols}, acts: activations[:1],
		optional: func(activation) flags { return withStream }, emit: times,
	},
	{
		kernel: kernelGradSums64, layouts: []layout{inCols}, acts: activations[:2],
		optional: activation.slopes, emit: gradSums64,
	},
	{
		kernel: kernelInputGrad64, layouts: []layout{inCols}, acts: activations[:2],
		optional: func(act activation) flags { return act.slopes() | withStream }, emit: inputGrad64,
	},
	{
		kernel: kernelChoose, layouts: []layout{inCols}, acts: activations[:1],
		optional: func(activation) flags { return 0 }, emit: chosen,
	},
	{
		kernel: kernelTinyZ, layouts: []layout{inCols}, acts: activations[:1],
		optional: func(activation) flags { return 0 }, emit: ofTinyZ,
	},
}

// residual is the flag of the residual, which a backward kernel needs only for z.
func (f activation) residual() flags {
	if f.identity() {
		return 0
	}
	return withResidual
}

// slopes is the flag of slopes in place of a residual, where the kernel does not compute them.
func (f activation) slopes() flags { return withResidual &^ f.residual() }

// variant is a kernel for one layout, activation and set of operands.
type variant struct {
	family *family
	layout layout
	act    activation
	flags  flags // the flags that every call has set
	asked  flags // the flags that it tests in every call
	// through is the walk, if it isn't that of the layout and the kernel.
	through walk
}

// variants lists every kernel that exists in assembly.
func variants() []variant {
	var list []variant
	for i := range families {
		f := &families[i]
		for _, l := range f.layouts {
			for _, act := range f.acts {
				optional := f.optional(act)
				if act.called {
					list = append(list, variant{f, l, act, 0, optional, nil})
					continue
				}
				tested := flags(0)
				if l == inCols {
					tested = optional & withStream
				}
				for set := range numFlags {
					if set&^(optional&^tested) == 0 {
						list = append(list, variant{f, l, act, set, tested, nil})
					}
				}
			}
		}
	}
	return list
}

func (v variant) has(f flags) bool { return v.flags&f != 0 }

// may reports whether a call may have the flag set.
func (v variant) may(f flags) bool { return (v.flags|v.asked)&f != 0 }

// walk returns the loops of the kernel over the tensors.
func (v variant) walk() walk {
	switch {
	case v.through != nil:
		return v.through
	case v.layout == inCols:
		return walkCols
	case v.family.kernel == kernelMoments || v.family.kernel == kernelGradSums:
		return walkSums
	}
	return walkOutputs
}

// name is the name of the assembly function.
func (v variant) name() string {
	name := kernelNames[v.family.kernel] + capital(layoutNames[v.layout])
	if len(v.family.acts) > 1 {
		name += v.act.name
	}
	for i, flag := range flagNames {
		if v.has(1 << i) {
			name += flag
		}
	}
	return name
}

// id is kernelID in ../kernels.go.
func (v variant) id() int {
	if v.family.kernel >= kernelLargest {
		return onlyCols + int(v.family.kernel-kernelLargest)*4 + int(v.act.variant())*2 + int(v.flags)
	}
	return ((int(v.family.kernel)*int(numLayouts)+int(v.layout))*int(numActVariants)+int(v.act.variant()))*int(numFlags) + int(v.flags)
}

// onlyCols is the id of the first kernel that exists in cols only.
const onlyCols = int(kernelLargest) * int(numLayouts) * int(numActVariants) * int(numFlags)

// numIDs is the number of ids, also of kernels that don't exist.
const numIDs = int(numKernels) * int(numLayouts) * int(numActVariants) * int(numFlags)

// goID is the id as an expression in Go.
func (v variant) goID() string {
	var set []string
	for i, flag := range flagNames {
		if v.has(1 << i) {
			set = append(set, "with"+flag)
		}
	}
	return "kernelID(kernel" + capital(kernelNames[v.family.kernel]) + ", " + layoutNames[v.layout] + ", " +
		actVariantNames[v.act.variant()] + ", " + cmp.Or(strings.Join(set, "|"), "0") + ")"
}

// emit prints the kernel.
func (v variant) emit(a *asm) {
	a.flags, a.asked, a.layout = v.flags, v.asked, v.layout
	if !a.streams() {
		a.flags, a.asked = a.flags&^withStream, a.asked&^withStream
	}
	// A kernel that reads and writes once prefetches into the first-level cache. The sums
	// leave no room for this there.
	a.toFirst = v.family.kernel == kernelNormalize || v.family.kernel == kernelInputGrad && v.layout == inCols
	if v.act.called {
		a.area(v.family.calls, a.asked)
	} else {
		a.holdArgs("a+8")
	}
	v.family.emit(a, v)
	a.end()
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
