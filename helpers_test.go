package batchnorm_test

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
)

// thorough reports whether tests take as long as they need.
func thorough() bool { return batchnorm.Thorough() }

// needThorough skips a test that takes long and seldom fails.
func needThorough(t *testing.T) {
	t.Helper()
	if !thorough() {
		t.Skip("takes long: BATCHNORM_TESTS=all runs it, without -short")
	}
}

// forEachPath runs a test on every implementation that this machine has.
func forEachPath(t *testing.T, test func(t *testing.T, path batchnorm.Path)) {
	t.Helper()
	for _, path := range batchnorm.Paths() {
		t.Run(path.String(), func(t *testing.T) { test(t, path) })
	}
}

func newPlan(tb testing.TB, s batchnorm.Shape, opts ...batchnorm.Option) *batchnorm.Plan {
	tb.Helper()
	p, err := batchnorm.NewPlan(s, opts...)
	noError(tb, err)
	return p
}

func noError(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// start runs a function in a goroutine that wg waits for: wg.Go, which the oldest
// Go has not.
func start(wg *sync.WaitGroup, f func()) {
	wg.Add(1)
	go func() {
		defer wg.Done()
		f()
	}()
}

// channelsLast turns a tensor from N x channels x spatial (NCHW) into
// N x spatial x channels (NHWC). nil stays nil.
func channelsLast[T any](x []T, channels, spatial int) []T {
	if x == nil {
		return nil
	}
	y := make([]T, len(x))
	for k, v := range x {
		n, c, s := k/(channels*spatial), k/spatial%channels, k%spatial
		y[(n*spatial+s)*channels+c] = v
	}
	return y
}

// channelsFirst turns a tensor from N x spatial x channels (NHWC) into
// N x channels x spatial (NCHW). nil stays nil.
func channelsFirst[T any](x []T, channels, spatial int) []T {
	return channelsLast(x, spatial, channels)
}

// channelOf returns the channel of element k.
func channelOf(s batchnorm.Shape, k int) int { return k / s.Inner % s.Channels }

type float interface{ float32 | float64 }

// sameBits tells the zeros apart, but not one NaN from another.
func sameBits[T float](a, b T) bool {
	if a != a || b != b {
		return a != a && b != b
	}
	return a == b && math.Signbit(float64(a)) == math.Signbit(float64(b))
}

// expectBits fails the test at the first element of got that is not want's.
func expectBits[T float](tb testing.TB, name string, got, want []T) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Errorf("%s has %d elements, want %d", name, len(got), len(want))
		return
	}
	for i := range want {
		if !sameBits(got[i], want[i]) {
			tb.Errorf("%s[%d] of %d is %v, want %v", name, i, len(want), got[i], want[i])
			return
		}
	}
}

// expectNear fails the test when an element of got is further from want than
// the tolerance at its index, and says which is the worst.
func expectNear[T float](tb testing.TB, name string, got []T, want []float64, tolerance func(i int) float64) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Errorf("%s has %d elements, want %d", name, len(got), len(want))
		return
	}
	worst, at := 0.0, -1
	for i := range want {
		excess := math.Abs(float64(got[i])-want[i]) / tolerance(i)
		if excess != excess { // a NaN is as wrong as can be
			excess = math.Inf(1)
		}
		if excess > worst {
			worst, at = excess, i
		}
	}
	if worst > 1 {
		tb.Errorf("%s[%d] is %v, want %v: %.3g times the tolerance of %.3g", name, at, got[at], want[at], worst, tolerance(at))
	}
}

// within fails the test when f takes longer than a minute, which is how a hang
// shows.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not return", what)
	}
}

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }

func widen(s []float32) []float64 {
	w := make([]float64, len(s))
	for i, v := range s {
		w[i] = float64(v)
	}
	return w
}
