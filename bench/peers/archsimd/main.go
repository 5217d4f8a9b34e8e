// Command archsimd is batch normalization as a Go user would vectorize it with
// simd/archsimd, which needs GOEXPERIMENT=simd and an x86 with AVX2 and FMA.
package main

import (
	"runtime"

	"github.com/fusedbn/batchnorm/bench/peers/loops"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func main() {
	if layouts == nil {
		peer.Missing("archsimd needs GOEXPERIMENT=simd in the environment of the build, and amd64 with AVX2 and FMA")
	}
	peer.Serve(peer.Peer{
		Name: "simd/archsimd, " + runtime.Version(),
		New: func(p peer.Problem, threads int) (peer.Runner, error) {
			return loops.New(p, threads, layouts)
		},
	})
}

// layouts is nil in a build without simd/archsimd.
var layouts map[peer.Layout]loops.Kernels
