// Command kernels writes the assembly of the package: kernels_amd64.s and
// kernels_arm64.s, with the Go declarations beside them.
//
// Each kernel is described once (kernels.go), over virtual vectors of 8 float32,
// and lowered to AVX2 (amd64.go) and to NEON (arm64.go). The order of all
// operations, and so every bit of the result, is the same by construction. A new
// instruction set is a new lowering. A new activation is a new entry in functions.go,
// whose functions kernels call, or in activations.go, whose code is part of the kernels.
//
// It is run by go generate in the root of the module.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	dir := flag.String("dir", ".", "folder to write to: the root of the module")
	flag.Parse()
	for name, text := range generate() {
		if err := os.WriteFile(filepath.Join(*dir, name), text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "kernels:", err)
			os.Exit(1)
		}
	}
}
