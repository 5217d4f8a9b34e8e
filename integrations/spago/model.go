// Package spagobn is batch normalization for spaGO
// (github.com/nlpodyssey/spago), computed by github.com/fusedbn/batchnorm.
//
// A [Model] is an nn.Model with the methods of spaGO's own batchnorm.Model, and
// its place in a larger model: a program changes its import.
//
//	m := spagobn.New[float32](100)
//	ys := m.ForwardT(xs...) // training: a vector for each example
//	ys = m.Forward(xs...)   // inference
//
// # Where it differs from spaGO's
//
//   - Epsilon is added to the variance, under the root, as in the paper; spaGO
//     adds it to the deviation, and to the number of examples.
//   - The running statistics are mean and variance; spaGO's are mean and
//     deviation. [From] takes over a layer that spaGO trained.
//   - W begins as 1 and the running variance as 1; spaGO's begin as 1e-5 and 0.
//   - The arithmetic is that of float32 for float64 tensors too.
//   - An activation may be fused.
package spagobn

import (
	"encoding/gob"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/fusedbn/batchnorm"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/mat/float"
	"github.com/nlpodyssey/spago/nn"
	spago "github.com/nlpodyssey/spago/nn/normalization/batchnorm"
)

var _ nn.StandardModel = &Model{}

// Model is a layer. Its exported fields are saved and loaded by gob, and may be changed
// between calls.
//
// Forward may be called by several goroutines at a time while nothing changes
// the layer; ForwardT changes the running statistics.
type Model struct {
	nn.Module
	W        *nn.Param  // scale for each feature
	B        *nn.Param  // shift for each feature
	Mean     *nn.Buffer // running mean
	Variance *nn.Buffer // running variance, divided by n

	// Momentum is the weight of the old value in the running statistics, as in
	// spaGO's layer.
	Momentum float64
	// Epsilon is added to the variance.
	Epsilon float64
	// Activation is the name of an activation without parameters, such as
	// "relu" or "gelu", which is then part of the layer; "" is none.
	Activation string
	// Workers is the number of goroutines that may work on a call; 0 is 1.
	Workers int

	mu     sync.Mutex
	config config // of plans
	plans  *batchnorm.Plans
}

// config has all settings that plans depend on.
type config struct {
	epsilon    float64
	activation string
	workers    int
}

func init() {
	gob.Register(&Model{})
}

const defaultMomentum = 0.9

// New returns a layer for vectors of the given size, with momentum 0.9 and
// epsilon 1e-5: W is 1, B is 0, the running mean 0 and the running variance 1.
func New[T float.DType](size int) *Model { return NewWithMomentum[T](size, defaultMomentum) }

// NewWithMomentum is New with another momentum, the weight of the old value in
// the running statistics.
func NewWithMomentum[T float.DType](size int, momentum T) *Model {
	ones := func() mat.Matrix { return mat.NewDense[T](mat.WithBacking(mat.CreateInitializedSlice[T](size, 1))) }
	zeros := func() mat.Matrix { return mat.NewDense[T](mat.WithShape(size)) }
	return &Model{
		W: nn.NewParam(ones()), B: nn.NewParam(zeros()), Mean: nn.Buf(zeros()), Variance: nn.Buf(ones()),
		Momentum: float64(momentum), Epsilon: batchnorm.DefaultEpsilon,
	}
}

// From returns a layer with copies of the parameters and statistics of spaGO's layer, whose
// Forward has the same results. Its epsilon is 0, and its running variance is (deviation +
// 1e-5)², which stands for spaGO's deviation and epsilon. For further training another
// epsilon may be set.
func From(m *spago.Model) (*Model, error) {
	if m == nil || m.W == nil || m.B == nil || m.Mean == nil || m.StdDev == nil || m.Momentum == nil {
		return nil, fmt.Errorf("spagobn: the layer or a part of it is nil")
	}
	const theirEpsilon = 1e-5
	variance := m.StdDev.Value().(mat.Matrix).AddScalar(theirEpsilon)
	return &Model{
		W: nn.NewParam(m.W.Value().(mat.Matrix)), B: nn.NewParam(m.B.Value().(mat.Matrix)),
		Mean: nn.Buf(m.Mean.Value().(mat.Matrix).Clone()), Variance: nn.Buf(variance.ProdInPlace(variance)),
		Momentum: m.Momentum.Item().F64(),
	}, nil
}

// Forward normalizes each vector by the running statistics. It panics where
// [Model.TryForward] returns an error, as spaGO's layers do.
func (m *Model) Forward(xs ...mat.Tensor) []mat.Tensor { return must(m.TryForward(xs...)) }

// ForwardT normalizes the vectors by the mean and the variance of each feature
// over all of them, and updates the running statistics. It panics where
// [Model.TryForwardT] returns an error.
func (m *Model) ForwardT(xs ...mat.Tensor) []mat.Tensor { return must(m.TryForwardT(xs...)) }

func must(ys []mat.Tensor, err error) []mat.Tensor {
	if err != nil {
		panic(err)
	}
	return ys
}

// TryForward is Forward with an error in the place of a panic: for an x that has
// not a value for each feature, or for settings that are not valid.
func (m *Model) TryForward(xs ...mat.Tensor) ([]mat.Tensor, error) { return m.forward(xs, false) }

// TryForwardT is ForwardT with an error in the place of a panic. After an error
// the running statistics are as they were.
func (m *Model) TryForwardT(xs ...mat.Tensor) ([]mat.Tensor, error) { return m.forward(xs, true) }

func (m *Model) forward(xs []mat.Tensor, training bool) ([]mat.Tensor, error) {
	if err := m.valid(); err != nil {
		return nil, err
	}
	if len(xs) == 0 {
		return nil, nil
	}
	features := m.W.Size()
	x := make([]float32, 0, len(xs)*features)
	for i, t := range xs {
		if t == nil {
			return nil, fmt.Errorf("spagobn: x[%d] is nil", i)
		}
		if t.Size() != features {
			return nil, fmt.Errorf("spagobn: x[%d] has %d elements, the layer has %d features", i, t.Size(), features)
		}
		x = append(x, mat.Data[float32](t.Value())...)
	}
	plan, err := m.plan(batchnorm.Shape{Outer: len(xs), Channels: features, Inner: 1})
	if err != nil {
		return nil, err
	}
	b := &batch{
		plan: plan, xs: xs, w: m.W, b: m.B, x: x, training: training,
		gamma: slices.Clone(mat.Data[float32](m.W.Value())), beta: slices.Clone(mat.Data[float32](m.B.Value())),
	}
	y := make([]float32, len(x))
	mean, variance := mat.Data[float32](m.Mean.Value()), mat.Data[float32](m.Variance.Value())
	if training {
		b.mean, b.invstd = make([]float64, features), make([]float64, features)
		err = plan.Forward(batchnorm.ForwardArgs{
			X: x, Gamma: b.gamma, Beta: b.beta, Y: y, Mean: b.mean, InvStd: b.invstd,
			RunningMean: mean, RunningVar: variance, Momentum: batchnorm.OldWeight(m.Momentum),
		})
	} else {
		b.runningMean, b.runningVar = slices.Clone(mean), slices.Clone(variance)
		err = plan.Inference(batchnorm.InferenceArgs{X: x, Gamma: b.gamma, Beta: b.beta, Mean: mean, Var: variance, Y: y})
	}
	if err != nil {
		return nil, err
	}
	if training {
		// The slices above are copies if the buffers are float64.
		m.Mean.Value().(mat.Matrix).SetData(float.Make(mean...))
		m.Variance.Value().(mat.Matrix).SetData(float.Make(variance...))
	}
	return b.outputs(y), nil
}

// valid checks the exported fields.
func (m *Model) valid() error {
	if m.W == nil || m.B == nil || m.Mean == nil || m.Variance == nil {
		return fmt.Errorf("spagobn: W, B, Mean or Variance is nil; New makes a layer")
	}
	features := m.W.Size()
	for _, p := range []struct {
		name string
		size int
	}{{"B", m.B.Size()}, {"Mean", m.Mean.Size()}, {"Variance", m.Variance.Size()}} {
		if p.size != features {
			return fmt.Errorf("spagobn: %s has %d elements, W has %d", p.name, p.size, features)
		}
	}
	return nil
}

// plan returns the plan for a batch, made with the present values of the fields.
func (m *Model) plan(s batchnorm.Shape) (*batchnorm.Plan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := (config{m.Epsilon, m.Activation, m.Workers}); m.plans == nil || m.config != c {
		act, err := activation(c.activation)
		if err != nil {
			return nil, err
		}
		workers := c.workers
		if workers == 0 {
			workers = 1
		}
		plans, err := batchnorm.NewPlans(
			batchnorm.WithEpsilon(c.epsilon), batchnorm.WithActivation(act), batchnorm.WithWorkers(workers),
			batchnorm.WithRunningVariance(batchnorm.Population), batchnorm.WithSingleValue(),
		)
		if err != nil {
			return nil, err
		}
		m.plans, m.config = plans, c
	}
	return m.plans.Plan(s)
}

// activations are those without parameters; the names of the others end with theirs.
var activations = slices.DeleteFunc(batchnorm.Activations(), func(a batchnorm.Activation) bool {
	return strings.HasSuffix(a.String(), ")")
})

func activation(name string) (batchnorm.Activation, error) {
	if name == "" {
		return batchnorm.Identity, nil
	}
	var names []string
	for _, a := range activations {
		if a.String() == name {
			return a, nil
		}
		names = append(names, a.String())
	}
	return batchnorm.Activation{}, fmt.Errorf("spagobn: activation %q is unknown, there are %q", name, names)
}
