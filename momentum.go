package batchnorm

import (
	"fmt"
	"math"
)

// Momentum is the weight with which a batch enters the running statistics.
// In some frameworks "momentum" is the weight of the new batch, in others the weight of
// the old value. So a Momentum is made by a function that names the side. The zero
// value stands for the plan's momentum ([WithMomentum]), by default NewWeight(0.1),
// as PyTorch.
type Momentum struct {
	weight     float64
	set        bool
	cumulative bool
	number     int // of the batch, for Cumulative
}

// NewWeight weighs the new batch:
// running = (1-w)*running + w*batch. This is "momentum" in PyTorch,
// exponentialAverageFactor in cuDNN, and exponential_avg_factor in TensorFlow. With
// w = 1 the old values are not read, so that they may be NaN; with w = 0 the running
// statistics keep their bits.
func NewWeight(w float64) Momentum { return Momentum{weight: w, set: true} }

// OldWeight weighs the value so far: running = w*running + (1-w)*batch. This
// is "momentum" in Keras, Flax and ONNX.
func OldWeight(w float64) Momentum { return Momentum{weight: 1 - w, set: true} }

// Cumulative makes the running statistics the plain average of all batches:
// the weight of batch number n, counted from 1, is 1/n. This is momentum=None
// in PyTorch.
func Cumulative(n int) Momentum {
	return Momentum{weight: 1 / float64(max(n, 1)), set: true, cumulative: true, number: n}
}

// String returns the momentum as the call that makes it: "NewWeight(0.1)",
// "Cumulative(3)", or "Momentum{}" for the zero value.
func (m Momentum) String() string {
	switch {
	case !m.set:
		return "Momentum{}"
	case m.cumulative:
		return fmt.Sprintf("Cumulative(%d)", m.number)
	}
	return fmt.Sprintf("NewWeight(%v)", m.weight)
}

// after returns the momentum of the batch that comes the given number of batches later.
func (m Momentum) after(batches int) Momentum {
	if !m.cumulative {
		return m
	}
	return Cumulative(m.number + min(batches, math.MaxInt-m.number))
}

// or returns m, or the default where m is the zero value.
func (m Momentum) or(def Momentum) Momentum {
	if m.set {
		return m
	}
	return def
}

func (m Momentum) value() float64 {
	if !m.set {
		return 0.1
	}
	return m.weight
}

func (m Momentum) valid() error {
	if m.cumulative && m.number < 1 {
		return fail(ErrMomentum, "momentum is %v, the first batch is number 1", m)
	}
	if w := m.value(); !(w >= 0 && w <= 1) {
		return fail(ErrMomentum, "momentum gives the new batch the weight %v, must be in [0, 1]", w)
	}
	return nil
}

// update returns the running value after a batch. A weight of 1 forgets the old
// value altogether, even NaN, and a weight of 0 the batch.
func (m Momentum) update(running float32, batch float64) float32 {
	w := m.value()
	switch w {
	case 0:
		return running
	case 1:
		return float32(batch)
	}
	return float32(float64((1-w)*float64(running)) + float64(w*batch))
}
