package batchnorm

import (
	"fmt"
	"math"
	"math/bits"
)

// Shape describes a dense tensor of float32 as Outer x Channels x Inner:
// element (o, c, i) stands at index (o*Channels+c)*Inner + i. Statistics are
// taken per channel, over all o and i.
//
// Every layout in use has this form: NCHW is {N, C, H*W}, NHWC is {N*H*W, C, 1}, and
// a matrix of N samples by C features is {N, C, 1}. With the channels along any axis
// k, Outer is the product of the dimensions before k, and Inner of those after it.
//
// Outer may be 0, which is an empty batch; Channels and Inner are at least 1. There
// are at most 2,147,483,647 channels, or 2,097,151 where an int has 32 bits, since
// each channel needs memory besides the tensor.
type Shape struct {
	Outer, Channels, Inner int
}

// NCHW returns the shape of a row-major tensor whose dimensions are N, C and any
// number of spatial ones (NC, NCW, NCHW, NCDHW, ...): the values of a channel are
// adjacent.
func NCHW(dims ...int) (Shape, error) {
	if len(dims) < 2 {
		return Shape{}, fail(ErrShape, "NCHW needs at least 2 dimensions (N, C), has %d", len(dims))
	}
	return Axis(1, dims...)
}

// NHWC returns the shape of a row-major tensor whose last dimension is the channel
// (NC, NWC, NHWC, NDHWC, ...): the channels of a position are adjacent.
func NHWC(dims ...int) (Shape, error) {
	if len(dims) < 2 {
		return Shape{}, fail(ErrShape, "NHWC needs at least 2 dimensions (N, ..., C), has %d", len(dims))
	}
	return Axis(len(dims)-1, dims...)
}

// Axis returns the shape of a row-major tensor with the given dimensions whose
// channels lie along the given axis. A negative axis counts from the end, so
// that -1 is the last.
//
// Every dimension is at least 1. The first may be 0 (an empty batch) if it is not the
// channel axis itself.
func Axis(axis int, dims ...int) (Shape, error) { return Axes([]int{axis}, dims...) }

// maxLen is the largest number of elements whose size in bytes is an int.
const maxLen = math.MaxInt / 4

// maxChannels leaves a kilobyte for each channel.
const maxChannels = min(math.MaxInt32, math.MaxInt>>10)

// Len returns the number of elements.
func (s Shape) Len() int { return s.Outer * s.Channels * s.Inner }

// PerChannel returns the number of values that each channel has.
func (s Shape) PerChannel() int { return s.Outer * s.Inner }

// Valid returns nil for a shape that a plan can have, and otherwise an error that
// wraps [ErrShape] and names the numbers.
func (s Shape) Valid() error {
	if s.Outer < 0 || s.Channels < 1 || s.Inner < 1 {
		return fail(ErrShape, "shape %v: outer must be at least 0, channels and inner at least 1", s)
	}
	if s.Channels > maxChannels {
		return fail(ErrShape, "shape %v has %d channels, at most %d are possible", s, s.Channels, maxChannels)
	}
	hi, lo := bits.Mul64(uint64(s.Channels), uint64(s.Inner))
	if hi == 0 && s.Outer > 0 {
		hi, lo = bits.Mul64(lo, uint64(s.Outer))
	}
	if hi != 0 || lo > maxLen {
		return fail(ErrShape, "shape %v overflows: more than %d elements", s, uint64(maxLen))
	}
	return nil
}

// String returns the shape as "OUTERxCHANNELSxINNER".
func (s Shape) String() string {
	return fmt.Sprintf("%dx%dx%d", s.Outer, s.Channels, s.Inner)
}
