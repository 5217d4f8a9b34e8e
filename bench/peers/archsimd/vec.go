//go:build goexperiment.simd && amd64

package main

import (
	"simd/archsimd"

	"github.com/fusedbn/batchnorm/bench/peers/loops"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func init() {
	if archsimd.X86.AVX2() && archsimd.X86.FMA() {
		layouts = map[peer.Layout]loops.Kernels{
			peer.NCHW: {Moments: momentsNCHW, Apply: applyNCHW, Sums: sumsNCHW, Gradient: gradientNCHW},
			peer.NHWC: {Moments: momentsNHWC, Apply: applyNHWC, Sums: sumsNHWC, Gradient: gradientNHWC},
		}
	}
}

type vec = archsimd.Float32x8

const lanes = 8

func broadcast(v float32) vec { return archsimd.BroadcastFloat32x8(v) }

// positive returns v where y > 0, and 0 elsewhere.
func positive(v, y vec) vec { return v.Masked(y.Greater(vec{})) }

// leave comes between vectors and scalars: on some machines scalar instructions wait for
// the upper halves of the vectors otherwise.
func leave() { archsimd.ClearAVXUpperBits() }

// across returns the sum of the lanes.
func across(v vec) float32 {
	var s [4]float32
	storeHalf(v.GetLo().Add(v.GetHi()), &s)
	leave()
	return s[0] + s[1] + (s[2] + s[3])
}
