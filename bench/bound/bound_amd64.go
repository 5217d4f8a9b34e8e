//go:build amd64 && !purego

package bound

import "golang.org/x/sys/cpu"

var haveSIMD = cpu.X86.HasAVX2

// The functions in assembly take n floats, a multiple of 8. The destinations of
// those with non-temporal stores begin at a multiple of 32 bytes.

//go:noescape
func readSIMD(x *float32, n int) float32

//go:noescape
func copySIMD(y, a *float32, n int)

//go:noescape
func copyNonTemporal(y, a *float32, n int)

//go:noescape
func triadSIMD(y, a, b *float32, n int)

//go:noescape
func triadNonTemporal(y, a, b *float32, n int)

//go:noescape
func pairSIMD(y, z, a, b, c *float32, n int)

//go:noescape
func pairNonTemporal(y, z, a, b, c *float32, n int)
