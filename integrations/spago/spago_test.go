package spagobn

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm/internal/compare"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/nn"
	spago "github.com/nlpodyssey/spago/nn/normalization/batchnorm"
	"github.com/nlpodyssey/spago/optimizers"
)

// Findings about spaGO v1.1.0, its batchnorm.Model for the most part, from the
// comparison with this package. Each test shows spaGO's result beside the right
// one. It fails when a newer spaGO has mended the matter, so that the notes here
// and in the README can go.

func mended(t *testing.T, what string) {
	t.Helper()
	t.Errorf("spaGO has mended this: %s. Take the test and the note in README.md out.", what)
}

// Epsilon is added to the deviation, not to the variance. It makes a difference
// where the deviation is small: for 1e-3, spaGO divides by 1e-3 + 1e-5, and the
// formula by sqrt(1e-6 + 1e-5), which is 3.3 times as much.
func TestSpagoEpsilon(t *testing.T) {
	p := random(64, 4, 0)
	for i := range p.x {
		p.x[i] /= 1000
	}
	want := p.reference()
	run[float32](t, p).near(t, want, 10*bound)
	d := compare.Distance(theirs[float64](t, p).y, want.y)
	t.Logf("deviation 0.001: y is off by %.3g", d)
	if d < 0.1 {
		mended(t, "epsilon beside the deviation")
	}
}

// A feature that is 0 in all vectors, as behind a ReLU that lets nothing through,
// has deviation 0, where the root has no derivative: the gradient is NaN, and
// soon all weights before the layer are.
func TestSpagoConstantFeature(t *testing.T) {
	p := random(6, 2, 0)
	for i := range p.n {
		p.x[2*i] = 0
	}
	run[float32](t, p).near(t, p.reference(), 200*bound) // dx is dy/sqrt(epsilon)
	if !math.IsNaN(float64(theirs[float64](t, p).dx[0])) {
		mended(t, "the gradient of a constant feature")
	}
}

// The mean is the sum over n + 1e-5, so that it is off by mean*1e-5/n.
func TestSpagoMean(t *testing.T) {
	p := random(4, 1, 1e6)
	want := p.reference()
	if d := compare.Distance(run[float32](t, p).y, want.y); d > bound {
		t.Errorf("y is off by %.3g", d)
	}
	d := compare.Distance(theirs[float64](t, p).y, want.y)
	t.Logf("4 vectors of mean 1e6: y is off by %.3g in float64", d)
	if d < 0.1 {
		mended(t, "the mean over n + 1e-5")
	}
}

// A new layer has W 1e-5, so that its output, and the gradient by x, all but
// vanish.
func TestSpagoNewLayer(t *testing.T) {
	m := spago.New[float32](2)
	if w := mat.Data[float32](m.W.Value())[0]; w != 1e-5 {
		mended(t, "W of a new layer")
	}
	if w := mat.Data[float32](New[float32](2).W.Value())[0]; w != 1 {
		t.Errorf("W of a new layer is %v", w)
	}
}

// In float32 an offset costs digits.
func TestSpagoOffset(t *testing.T) {
	for _, offset := range []float64{0, 100, 1e4} {
		p := random(300, 8, offset)
		want := p.reference()
		own, other := run[float32](t, p), theirs[float32](t, p)
		t.Logf("mean %g: y is off by %.2g (spaGO %.2g), dx by %.2g (spaGO %.2g)", offset,
			compare.Distance(own.y, want.y), compare.Distance(other.y, want.y), compare.Distance(own.dx, want.dx), compare.Distance(other.dx, want.dx))
		own.near(t, want, bound)
		if offset == 1e4 && compare.Distance(other.y, want.y) < 1e-4 {
			mended(t, "the digits lost to an offset")
		}
	}
}

// waiting is a strategy of optimization that takes until it is told to end.
type waiting struct {
	end  chan struct{}
	done atomic.Int32
}

func (w *waiting) OptimizeParams(*nn.Param) error {
	select {
	case <-w.end:
	case <-time.After(time.Second):
	}
	w.done.Add(1)
	return nil
}

// Optimize of optimizers.Optimizer returns while its goroutines still work on the
// parameters. A program that then sets the gradients to zero, or begins the next
// step, races with them, and may end with a nil pointer. This has nothing to do
// with batch norm; it came up in the training here.
func TestSpagoOptimizer(t *testing.T) {
	m := New[float32](2)
	nn.ForEachParam(m, func(p *nn.Param) { p.AccGrad(vector[float32]([]float32{1, 1})) })
	w := &waiting{end: make(chan struct{})}
	check(t, optimizers.New(nn.Parameters(m), w).Optimize())
	if w.done.Load() == 2 {
		mended(t, "optimizers that return too early")
	}
	close(w.end)
}
