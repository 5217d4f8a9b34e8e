//go:build goexperiment.simd && amd64 && !go1.27

package main

import "simd/archsimd"

// load and store need no check of bounds in a loop over i up to len(s)-lanes, nor for
// another slice of the same length: the loops cut their slices to that length for this
// reason. Go 1.26 and 1.27 have other names for them.
func load(s []float32, i int) vec     { return archsimd.LoadFloat32x8Slice(s[i : i+lanes]) }
func store(v vec, s []float32, i int) { v.StoreSlice(s[i : i+lanes]) }

func storeHalf(v archsimd.Float32x4, s *[4]float32) { v.Store(s) }
