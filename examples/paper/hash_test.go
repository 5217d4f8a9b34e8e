package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

// trainedHashes are the hashes that -hash prints after so many steps: the same on AVX2, on
// NEON, in pure Go, on processors of either byte order, on 32 bits as on 64.
var trainedHashes = map[int]string{
	40:   "09acc52294392ee02e18fa9a9a0cee3fe90f3bb754e6190195b098757272d21d",
	4000: "db5bec4c3efe4edafa6c8f612cb9c42ddc31e708e05bfd094d130e3debed7029",
}

// TestHash trains the network of Figure 1 for a while, on every path.
func TestHash(t *testing.T) {
	for steps, want := range trainedHashes {
		if steps > 100 && (testing.Short() || os.Getenv("BATCHNORM_TESTS") != "all") {
			continue
		}
		for _, path := range batchnorm.Paths() {
			var stdout, stderr bytes.Buffer
			code := run([]string{"-hash", "-steps", strconv.Itoa(steps), "-path", path.String(), "-data", ""}, &stdout, &stderr)
			if got := strings.TrimSpace(stdout.String()); code != exitOK || got != want {
				t.Errorf("after %d steps on path %v the hash is %s, want %s (exit status %d, %s)", steps, path, got, want, code, &stderr)
			}
		}
	}
}
