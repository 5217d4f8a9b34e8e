package batchnorm

import (
	"fmt"
	"testing"

	"github.com/fusedbn/batchnorm/internal/guard"
)

// TestTurnsSameBits: two kernels that take turns, in one loop where there is one, leave
// the bits of the two kernels in pure Go, one after the other. Rows are of any length and
// number of pieces, images are side by side or single, outputs are at any offset from a
// vector, and either of the two ends first.
func TestTurnsSameBits(t *testing.T) {
	for _, p := range simdPaths(t) {
		for _, backward := range []bool{false, true} {
			for _, acts := range [][2]Activation{{Identity, Identity}, {ReLU, ReLU}, {SiLU, SiLU}, {SiLU, Identity}, {ReLU, Identity}} {
				act := acts[1]
				for flags := range numFlags {
					sums, writes := kernelCase{kernelMoments, rows, Identity, 0}, kernelCase{kernelNormalize, rows, act, flags}
					if backward {
						sums, writes = kernelCase{kernelGradSums, rows, acts[0], flags & withResidual}, kernelCase{kernelInputGrad, rows, act, flags}
					} else if flags&withDResidual != 0 || acts[0] != act {
						continue
					}
					t.Run(fmt.Sprint(p, "/", sums, "/", writes), func(t *testing.T) {
						t.Parallel()
						inLoop := 0
						for i, n := range []int{200, 511, 512, 513, 544, 640, 1023, 2048, 2100, 4104} {
							for j, images := range [][2]int{{1, 1}, {4, 4}, {9, 2}, {2, 9}, {8, 8}, {5, 1}} {
								if !Thorough() && (i+j+flags)%3 != 0 {
									continue
								}
								a := kernelSize{rows: 1 + (i+j)%3, n: n, images: images[0], rowGap: j % 2 * 3}
								b := kernelSize{rows: 1 + i%3, n: n, images: images[1], imageGap: j}
								inLoop += sameTurns(t, p, sums, writes, a, b, (i+j)%lanes, j == 2)
							}
						}
						want := len(turnsKernels) > 0 && !raceEnabled && flags&withStream != 0 && act.variant() != actCalled && acts[0] == act
						if want != (inLoop > 0) {
							t.Errorf("there are %d turns in one loop, want some: %t", inLoop, want)
						}
					})
				}
			}
		}
	}
}

// TestTurnsKeepPace: while sums are taken, as many outputs are written as values are
// summed, whatever the length of a row.
func TestTurnsKeepPace(t *testing.T) {
	t.Parallel()
	heap := func(n int) []float32 { return make([]float32, n) }
	for _, p := range simdPaths(t) {
		for _, n := range []int{48, 49, 100, 196, 225, 289, 500, 529, 784} {
			for _, stream := range []int{0, withStream} {
				sums, writes := kernelCase{kernelMoments, rows, Identity, 0}, kernelCase{kernelNormalize, rows, Identity, stream}
				size := kernelSize{rows: 16, n: n, images: 16}
				a, b := sums.args(heap, heap, size, false), writes.args(heap, heap, kernelSize{rows: 16, n: n, images: 32}, false)
				p.runTurns(sums.kernel, Identity, &a, writes.kernel, Identity, &b)
				if raceEnabled {
					continue // kernels take no turns
				}
				want := 16 * size.rows * n
				got := ((32-b.images)*size.rows+size.rows-b.rowsLeft)*n + n - b.left
				if ratio := float64(got) / float64(want); ratio < .95 || ratio > 1.15 {
					t.Errorf("%v, rows of %d, non-temporal %t: %d outputs are written while %d values are summed", p, n, stream != 0, got, want)
				}
			}
		}
	}
}

// sameTurns compares a path with pure Go, where outputs begin offset values behind a
// vector, and returns how many turns were taken in one loop.
func sameTurns(t *testing.T, p Path, sums, writes kernelCase, sizeA, sizeB kernelSize, offset int, special bool) int {
	t.Helper()
	heap := func(n int) []float32 { return make([]float32, n) }
	in := func(n int) []float32 { return guard.AtEnd(t, n) }
	out := func(n int) []float32 { return guard.Sentinel(t, n, offset) }
	wantA, wantB := sums.args(heap, heap, sizeA, special), writes.args(heap, heap, sizeB, special)
	gotA, gotB := sums.args(in, in, sizeA, special), writes.args(in, out, sizeB, special)
	gotA.act, gotB.act = newActCode(sums.act), newActCode(writes.act)
	sums.run(PathGeneric, &wantA, maxCall)
	writes.run(PathGeneric, &wantB, maxCall)
	inLoop := p.runTurns(sums.kernel, sums.act, &gotA, writes.kernel, writes.act, &gotB)
	p.runAll(writes.kernel, writes.act, &gotB)
	for which, k := range []kernelCase{sums, writes} {
		g, w := k.outputs([]*kernelArgs{&gotA, &gotB}[which]), k.outputs([]*kernelArgs{&wantA, &wantB}[which])
		for o := range w {
			if i, ok := sameBits(g[o], w[o]); !ok {
				t.Fatalf("sums of %+v, outputs of %+v, %d behind a vector: output %d of %s, index %d: %v, pure Go gives %v",
					sizeA, sizeB, offset, o, kernelNames[k.kernel], i, g[o][i], w[o][i])
			}
		}
	}
	if gotA.images != 0 || gotA.at != wantA.at || gotB.at != wantB.at {
		t.Fatalf("sums of %+v, outputs of %+v: they stop at %d and %d, pure Go at %d and %d", sizeA, sizeB, gotA.at, gotB.at, wantA.at, wantB.at)
	}
	return inLoop
}
