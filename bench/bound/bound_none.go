//go:build purego || !amd64

package bound

// A build without assembly.

const haveSIMD = false

func readSIMD(x *float32, n int) float32 { panic("bound: no assembly in this build") }

func copySIMD(y, a *float32, n int)                 { readSIMD(y, n) }
func copyNonTemporal(y, a *float32, n int)          { readSIMD(y, n) }
func triadSIMD(y, a, b *float32, n int)             { readSIMD(y, n) }
func triadNonTemporal(y, a, b *float32, n int)      { readSIMD(y, n) }
func pairSIMD(y, z, a, b, c *float32, n int)        { readSIMD(y, n) }
func pairNonTemporal(y, z, a, b, c *float32, n int) { readSIMD(y, n) }
