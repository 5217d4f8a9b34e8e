package batchnorm

import (
	"math"
	"slices"
)

// Activations of tiny z. Near 0 an activation is a constant or a multiple of z, but its kernels compute
// polynomials, whose products are subnormal there: each takes a microcode assist. Channels whose gamma
// and beta have decayed have such z, and channels of tiny x without beta. In the blocks of tiny.go
// kernelTinyZ computes for such z what the polynomials come to, with the same bits.

const (
	// tinyZ is the largest magnitude of a tiny z.
	tinyZ = 0x1p-96
	// lift makes a tiny z so large that no product with it is subnormal, and leaves it so small that it
	// changes no sum with anything else.
	lift = 0x1p60
)

// tinyZBits has the bits of tinyZ.
const tinyZBits = (127 - 96) << 23

// tinyForm is how an activation, or its slope, depends on a tiny z.
type tinyForm byte

const (
	tinyUsual   tinyForm = iota // it takes no product with z
	tinyLevel                   // only the sign of z matters
	tinyProduct                 // it is z times a factor, or the sum of such a product and max(z, 0)
)

// tinyActivation describes an activation of tiny z.
type tinyActivation struct {
	value, slope tinyForm
	product      record    // of kernelTinyZ
	slopes       []float32 // of a block of tiny z, unless they depend on the sign
}

// productRecord returns the constants of kernelTinyZ for z times a factor, or with gated for the sum of the
// product and max(z, 0).
func productRecord(above, below float32, gated bool) (r record) {
	bits := math.Float32bits
	fields := [coefLen]uint32{tinyZBelow: bits(below), tinyZFlip: bits(above) ^ bits(below), tinyZBase: bits(negativeZero), tinyZMost: bits(tinyZ)}
	if gated {
		fields[tinyZGate], fields[tinyZBase] = math.MaxUint32, 0
	}
	for f, v := range fields {
		fill(r[f*lanes:][:lanes], math.Float32frombits(v))
	}
	return r
}

// lifts are the constants that multiply a tiny z by lift.
var lifts = productRecord(lift, lift, false)

// ofTinyZ returns the description of an activation.
func (a Activation) ofTinyZ() tinyActivation {
	n := a.formsOfTinyZ()
	slopes := []float32{1 / lift, -1 / lift, 0}
	if a.derivative(slopes); n.slope == tinyLevel && slopes[0] == slopes[1] && slopes[1] == slopes[2] {
		n.slopes = repeated(slopes[0])
	}
	return n
}

// formsOfTinyZ is ofTinyZ without slopes.
func (a Activation) formsOfTinyZ() tinyActivation {
	n := tinyActivation{value: tinyProduct, slope: tinyLevel}
	above, below, gated := float32(1), float32(1), false
	switch a.kind {
	case actIdentity, actReLU, actClip:
		return tinyActivation{}
	case actHardSigmoid:
		return tinyActivation{value: tinyLevel}
	case actSigmoid, actSoftplus:
		return tinyActivation{value: tinyLevel, slope: tinyLevel}
	case actLeakyReLU:
		n.slope, below = tinyUsual, a.p
	case actELU:
		if below = a.p; math.Signbit(float64(below)) { // elu(0) is 0, and a product with 0 is -0
			n.value = tinyUsual
		}
	case actSiLU, actGELU, actGELUTanh: // max(z, 0) - |z|/2
		above, below, gated = -0.5, 0.5, true
	case actHardSwish, actMish:
		z := []float32{1 / lift}
		a.forward(z)
		above = z[0] * lift
		below = above
	}
	n.product = productRecord(above, below, gated)
	return n
}

// tinyZBuffers are the values of a block with tiny z.
type tinyZBuffers struct{ lifted, others [bufferLen]float32 }

// whereTiny runs kernelTinyZ on a block without gaps: y is made of z by the constants where z is tiny, and is
// other elsewhere.
func (w *workspace) whereTiny(r *record, y, z, other []float32) {
	n := len(z)
	k := kernelArgs{x: z, dy: other, y: y, rows: 1, n: n, stride: n, strideDY: n, strideY: n, coef: r[:]}
	w.plan.path.run(kernelTinyZ, cols, Identity, &k)
}

// activate writes act(z) of a block without gaps. z is res of the operands, or with summed the sum of
// x and res.
func (w *workspace) activate(act Activation, buf *buffers, k *kernelArgs, summed bool, b *block) {
	if w.tinyAct.value == tinyUsual || act.variant() != actCalled || !w.sampledTiny(k, summed, b) {
		w.alike(kernelNormalize, act, k, b.len())
		return
	}
	z, y := w.zOf(buf, k, summed, b), k.y
	if w.tinyAct.value == tinyLevel {
		w.whereTiny(&lifts, buf.tinyZ.lifted[:], z, z)
		w.alike(kernelNormalize, act, &kernelArgs{x: minusZeros, res: buf.tinyZ.lifted[:], y: y, coef: asItIs, stream: k.stream}, len(z))
		return
	}
	others := z
	if !w.allTinyZ(buf, z) {
		others = buf.tinyZ.others[:]
		w.whereTiny(&lifts, buf.tinyZ.lifted[:], z, z)
		w.alike(kernelNormalize, act, &kernelArgs{x: minusZeros, res: buf.tinyZ.lifted[:], y: others, coef: asItIs}, len(z))
	}
	w.whereTiny(&w.tinyAct.product, y, z, others)
}

// slopesTiny sets slopes if all z of a block are tiny and have the same, and reports whether it did.
// Otherwise it replaces tiny z, which operands of a gradient have as activate's have, by z whose slopes
// are the same.
func (w *workspace) slopesTiny(buf *buffers, slopes []float32, k *kernelArgs, summed bool, b *block) bool {
	if w.tinyAct.slope == tinyUsual || !w.sampledTiny(k, summed, b) {
		return false
	}
	z, lifted := w.zOf(buf, k, summed, b), buf.tinyZ.lifted[:]
	if w.tinyAct.slopes != nil && w.allTinyZ(buf, z) {
		copy(slopes[:len(z)], w.tinyAct.slopes)
		return true
	}
	w.whereTiny(&lifts, lifted, z, z)
	k.x, k.res, k.coef = minusZeros, lifted, asZero
	return false
}

// zOf returns z of a block, of operands as activate's.
func (w *workspace) zOf(buf *buffers, k *kernelArgs, summed bool, b *block) []float32 {
	z := k.res[:b.len()]
	if !summed {
		return z
	}
	sum := kernelArgs{x: k.x, res: z, y: buf.scaled[:], coef: asItIs}
	w.alike(kernelNormalize, Identity, &sum, b.len())
	return buf.scaled[:b.len()]
}

// sampledTiny reports whether a tiny z, other than 0, is among a sample of a block: the first row of
// columns, or the first and the middle value of each row.
func (w *workspace) sampledTiny(k *kernelArgs, summed bool, b *block) bool {
	tiny := func(i int) bool {
		z := k.res[i]
		if summed {
			z += k.x[i]
		}
		return magnitudeBits(z)-1 < tinyZBits
	}
	if w.geo.layout == cols {
		for i := range b.n {
			if tiny(i) {
				return true
			}
		}
		return false
	}
	for r := range b.rows {
		if tiny(r*b.n) || tiny(r*b.n+b.n/2) {
			return true
		}
	}
	return false
}

// allTinyZ reports whether all z are tiny.
func (w *workspace) allTinyZ(buf *buffers, z []float32) bool {
	const columns = 8 * lanes // into which a kernel folds the values
	acc := buf.largest[:columns]
	w.largest(z, len(z)/columns, columns, columns, acc)
	if rest := len(z) % columns; rest > 0 {
		w.larger(z[len(z)-rest:], 1, rest, 0, acc)
	}
	return slices.Max(acc) <= tinyZ
}
