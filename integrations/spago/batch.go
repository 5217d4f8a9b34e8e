package spagobn

import (
	"sync"

	"github.com/fusedbn/batchnorm"
	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"
	"github.com/nlpodyssey/spago/nn"
)

// spaGO's layers take a list of vectors, and return a list. Here one operation computes the
// whole batch, as a matrix with a row for each vector, and each output is an operation that
// takes a row of the matrix.

var (
	_ ag.AutoGradFunction = &batch{}
	_ ag.AutoGradFunction = &row{}
)

// batch is the differentiable function from xs, w and b to the matrix.
type batch struct {
	plan     *batchnorm.Plan
	xs       []mat.Tensor
	w, b     *nn.Param
	training bool

	x           []float32 // the vectors, one behind the other
	gamma, beta []float32 // as they were in the forward pass

	mean, invstd            []float64 // in training
	runningMean, runningVar []float32 // in inference

	value *matrix
}

// outputs returns the nodes for the rows of y.
func (b *batch) outputs(y []float32) []mat.Tensor {
	features := len(b.gamma)
	b.value = &matrix{Matrix: mat.NewDense[float32](mat.WithShape(len(b.xs), features), mat.WithBacking(y))}
	all := ag.NewOperator(b).Run()
	ys := make([]mat.Tensor, len(b.xs))
	for i, x := range b.xs {
		ys[i] = ag.NewOperator(&row{of: all, i: i, like: x.Value().(mat.Matrix), y: y[i*features:][:features]}).Run()
	}
	return ys
}

// Operands returns the vectors, the scale and the shift.
func (b *batch) Operands() []mat.Tensor {
	operands := make([]mat.Tensor, 0, len(b.xs)+2)
	operands = append(operands, b.xs...)
	return append(operands, b.w, b.b)
}

// Forward returns what has been computed already, because an error here ends the
// process.
func (b *batch) Forward() (mat.Tensor, error) { return b.value, nil }

// Backward hands the gradients to the operands.
func (b *batch) Backward(gy mat.Tensor) error {
	features := len(b.gamma)
	dy := mat.Data[float32](gy)
	var dx, dgamma, dbeta []float32
	for _, x := range b.xs {
		if x.RequiresGrad() {
			dx = make([]float32, len(b.x))
			break
		}
	}
	if b.w.RequiresGrad() {
		dgamma = make([]float32, features)
	}
	if b.b.RequiresGrad() {
		dbeta = make([]float32, features)
	}
	var err error
	if b.training {
		err = b.plan.Backward(batchnorm.BackwardArgs{
			DY: dy, X: b.x, Gamma: b.gamma, Beta: b.beta, Mean: b.mean, InvStd: b.invstd, DX: dx, DGamma: dgamma, DBeta: dbeta,
		})
	} else {
		err = b.plan.FrozenBackward(batchnorm.FrozenBackwardArgs{
			DY: dy, X: b.x, Gamma: b.gamma, Beta: b.beta, Mean: b.runningMean, Var: b.runningVar, DX: dx, DGamma: dgamma, DBeta: dbeta,
		})
	}
	if err != nil {
		return err
	}
	for i, x := range b.xs {
		if x.RequiresGrad() {
			x.AccGrad(like(x.Value().(mat.Matrix), dx[i*features:][:features]))
		}
	}
	if dgamma != nil {
		b.w.AccGrad(like(b.w.Value().(mat.Matrix), dgamma))
	}
	if dbeta != nil {
		b.b.AccGrad(like(b.b.Value().(mat.Matrix), dbeta))
	}
	return nil
}

// like returns a matrix of the shape and the type of m with the elements v.
func like(m mat.Matrix, v []float32) mat.Matrix {
	return m.NewMatrix(mat.WithShape(m.Shape()...), mat.WithBacking(v))
}

// row is the function that takes row i.
type row struct {
	of   *ag.Operator
	i    int
	like mat.Matrix
	y    []float32
}

func (r *row) Operands() []mat.Tensor { return []mat.Tensor{r.of} }

func (r *row) Forward() (mat.Tensor, error) { return like(r.like, r.y), nil }

func (r *row) Backward(gy mat.Tensor) error {
	r.of.AccGrad(rowGrad{gy, r.i})
	return nil
}

// rowGrad is a gradient that is 0 in all rows but one.
type rowGrad struct {
	mat.Tensor
	i int
}

// matrix is a value whose gradient grows row by row. A Dense would take a whole
// matrix for each row.
type matrix struct {
	mat.Matrix
	mu   sync.Mutex
	grad *mat.Dense[float32] // nil: none
}

// AccGrad adds a gradient by one row or by all.
func (m *matrix) AccGrad(g mat.Tensor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.grad == nil {
		m.grad = mat.NewDense[float32](mat.WithShape(m.Shape()...))
	}
	to := mat.Data[float32](m.grad)
	if r, ok := g.(rowGrad); ok {
		columns := m.Shape()[1]
		to, g = to[r.i*columns:][:columns], r.Tensor
	}
	for i, v := range mat.Data[float32](g.Value()) {
		to[i] += v
	}
}

// Grad returns the gradient so far, or nil.
func (m *matrix) Grad() mat.Tensor {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.grad == nil {
		return nil
	}
	return m.grad
}

// HasGrad reports whether there is a gradient.
func (m *matrix) HasGrad() bool { return m.Grad() != nil }

// ZeroGrad removes the gradient.
func (m *matrix) ZeroGrad() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.grad = nil
}
