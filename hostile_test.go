//go:build go1.25

package batchnorm_test

import (
	"errors"
	"math"
	"math/big"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestBubble: calls with several workers return in a bubble of testing/synctest,
// where the clock stands still, their helpers end, and plans and layers of the
// outside may be used inside and back.
func TestBubble(t *testing.T) {
	s := batchnorm.Shape{Outer: 64, Channels: 16, Inner: 64}
	x := gen.Normal(1, s.Len(), 0, 1)
	lengths := make([]int, s.Outer)
	for i := range lengths {
		lengths[i] = i % (s.Inner + 1)
	}
	call := func(t *testing.T, p *batchnorm.Plan, m batchnorm.Mask) []float32 {
		y, dx := make([]float32, s.Len()), make([]float32, s.Len())
		mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mask: m, Mean: mean, InvStd: invstd}))
		noError(t, p.Backward(batchnorm.BackwardArgs{X: x, DY: x, Mask: m, Mean: mean, InvStd: invstd, DX: dx}))
		return append(y, dx...)
	}
	for name, mask := range map[string]batchnorm.Mask{"whole": {}, "masked": {Lengths: lengths}} {
		t.Run(name, func(t *testing.T) {
			p := newPlan(t, s, batchnorm.WithWorkers(2))
			want := call(t, p, mask)
			within(t, "the bubble", func() {
				synctest.Test(t, func(t *testing.T) {
					before := helpers()
					for range 3 {
						expectBits(t, "inside", call(t, p, mask), want)
						expectBits(t, "a plan made inside", call(t, newPlan(t, s, batchnorm.WithWorkers(3)), mask), want)
						time.Sleep(time.Hour)
					}
					if n := helpers(); n > before {
						t.Errorf("there are %d helpers, before there were %d", n, before)
					}
				})
			})
			expectBits(t, "outside", call(t, p, mask), want)
		})
	}
}

// helpers returns the number of goroutines that package team has started. The runtime counts
// others as well: finalizers that happen to run.
func helpers() int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "created by github.com/fusedbn/batchnorm/internal/team")
}

// TestManyWorkers: more workers than a tensor can use take no memory, and far too
// many are an error.
func TestManyWorkers(t *testing.T) {
	s := batchnorm.Shape{Outer: 64, Channels: 64, Inner: 64} // 1 MB
	for _, n := range []int{-1, 0, 1<<16 + 1, 1 << 30, math.MaxInt/4 + 1, math.MaxInt} {
		if _, err := batchnorm.NewPlan(s, batchnorm.WithWorkers(n)); !errors.Is(err, batchnorm.ErrOption) {
			t.Errorf("%d workers: the error is %v, want ErrOption", n, err)
		}
	}
	x, y := make([]float32, s.Len()), make([]float32, s.Len())
	lengths := make([]int, s.Outer)
	lengths[3] = 17
	allocated := func(workers int) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p := newPlan(t, s, batchnorm.WithWorkers(workers), batchnorm.WithShare(8192))
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y}))
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mask: batchnorm.Mask{Lengths: lengths}}))
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	useful := s.Len() / 8192
	few, many := allocated(useful), allocated(1<<16)
	if many > few+few/2+1<<16 {
		t.Errorf("a plan for 65,536 workers takes %d bytes, one for %d, which is all that find something to do, takes %d", many, useful, few)
	}
}

// TestHugeDimensions: a shape is either refused or planned; none panics. Those that
// are planned here have few channels, for each of which there is memory.
func TestHugeDimensions(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1, 3}
	for shift := 20; shift < 63; shift += 3 {
		sizes = append(sizes, int(uint64(1)<<shift&math.MaxInt), int((uint64(1)<<shift-1)&math.MaxInt))
	}
	sizes = append(sizes, math.MaxInt, math.MaxInt/2, math.MaxInt/4, math.MaxInt/4+1)
	slices.Sort(sizes)
	planned := 0
	for _, outer := range sizes {
		for _, channels := range sizes {
			for _, inner := range sizes {
				s := batchnorm.Shape{Outer: outer, Channels: channels, Inner: inner}
				bytes := big.NewInt(4)
				for _, d := range []int{max(outer, 1), channels, inner} {
					bytes.Mul(bytes, big.NewInt(int64(d)))
				}
				possible := channels > 0 && inner > 0 && bytes.Cmp(big.NewInt(math.MaxInt)) <= 0 && channels <= maxChannels
				err := s.Valid()
				if (err == nil) != possible || err != nil && !errors.Is(err, batchnorm.ErrShape) {
					t.Fatalf("shape %v of %v bytes: the error is %v", s, bytes, err)
				}
				if err == nil && channels >= 1<<10 {
					continue
				}
				if _, planErr := batchnorm.NewPlan(s); (planErr == nil) != (err == nil) {
					t.Fatalf("shape %v: Valid says %v, NewPlan %v", s, err, planErr)
				}
				if err == nil {
					planned++
				}
			}
		}
	}
	if planned < 100 {
		t.Errorf("only %d shapes were planned", planned)
	}
	for _, channels := range []int{-1, 0, math.MaxInt/4 - 1, math.MaxInt} {
		if _, err := batchnorm.NewLayer(channels); !errors.Is(err, batchnorm.ErrShape) {
			t.Errorf("a layer of %d channels: the error is %v, want ErrShape", channels, err)
		}
	}
	for _, s := range []batchnorm.Shape{{Outer: 1, Channels: math.MaxInt/8 + 1, Inner: 1}, {Outer: 0, Channels: math.MaxInt / 4, Inner: 1}} {
		if _, err := batchnorm.NewPlan(s); !errors.Is(err, batchnorm.ErrShape) {
			t.Errorf("shape %v: the error is %v, want ErrShape", s, err)
		}
	}
}

// TestCumulativeOverflow: the number of the last batch may be as large as can be,
// in sub-batches that come after it as well.
func TestCumulativeOverflow(t *testing.T) {
	s := batchnorm.Shape{Outer: 12, Channels: 2, Inner: 1}
	p, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: 12, Size: 4})
	noError(t, err)
	x, y := gen.Normal(1, s.Len(), 3, 1), make([]float32, s.Len())
	for _, number := range []int{math.MaxInt, math.MaxInt - 1, math.MaxInt - 2} {
		mean, variance := []float32{5, 5}, []float32{7, 7}
		noError(t, p.Forward(batchnorm.ForwardArgs{X: x, Y: y, RunningMean: mean, RunningVar: variance, Momentum: batchnorm.Cumulative(number)}))
		expectBits(t, "running mean", mean, []float32{5, 5})
		expectBits(t, "running variance", variance, []float32{7, 7})
	}
}

// TestBatchesTrackedOverflow: a layer that has counted as far as it can is trained,
// saved and loaded as before.
func TestBatchesTrackedOverflow(t *testing.T) {
	for _, cumulative := range []bool{false, true} {
		l, err := batchnorm.NewLayer(2)
		noError(t, err)
		l.Cumulative = cumulative
		x, y := gen.Normal(1, 8, 3, 1), make([]float32, 8)
		for _, tracked := range []int64{math.MaxInt64 - 1, math.MaxInt64} {
			l.BatchesTracked = tracked
			noError(t, l.Forward(batchnorm.LayerForwardArgs{Shape: batchnorm.Shape{Outer: 4, Channels: 2, Inner: 1}, X: x, Y: y}))
			if l.BatchesTracked != math.MaxInt64 {
				t.Errorf("after %d batches there are %d", tracked, l.BatchesTracked)
			}
			state, err := l.MarshalBinary()
			noError(t, err)
			noError(t, l.UnmarshalBinary(state))
		}
	}
}

// TestNegativeVarianceInState: every state that can be saved can be loaded. A negative
// variance can be neither; NaN, as after a training that diverged, can be both.
func TestNegativeVarianceInState(t *testing.T) {
	l, err := batchnorm.NewLayer(3)
	noError(t, err)
	l.RunningVar[2] = float32(math.NaN())
	state, err := l.MarshalBinary()
	noError(t, err)
	noError(t, l.UnmarshalBinary(state))

	l.RunningVar[2] = 0.25
	state, err = l.MarshalBinary()
	noError(t, err)
	for c := range 3 {
		negative := slices.Clone(state)
		at := len(negative) - 8 - 4*(3-c)
		copy(negative[at:], []byte{0, 0, 0, 0x80}) // -0 is a variance
		noError(t, l.UnmarshalBinary(withChecksum(negative[:len(negative)-8])))
		copy(negative[at:], []byte{1, 0, 0, 0x80})
		l.Reset()
		err := l.UnmarshalBinary(withChecksum(negative[:len(negative)-8]))
		if !errors.Is(err, batchnorm.ErrState) || !strings.Contains(err.Error(), "running variance["+string(rune('0'+c))) {
			t.Errorf("a negative variance of channel %d loads: %v", c, err)
		}
		expectBits(t, "running variance after the error", l.RunningVar, []float32{1, 1, 1})
		l.RunningVar[c] = -1e-3
		if _, err := l.MarshalBinary(); !errors.Is(err, batchnorm.ErrState) {
			t.Errorf("a negative variance of channel %d is saved: %v", c, err)
		}
		l.RunningVar[c] = 1
	}
}

// TestNilReceivers calls every exported method of every exported type on nil.
func TestNilReceivers(t *testing.T) {
	methods := 0
	own := map[string]bool{"Keeps": true, "PlannedShapes": true} // methods that tests add
	for _, receiver := range []any{(*batchnorm.Plan)(nil), (*batchnorm.GhostPlan)(nil), (*batchnorm.AxesPlan)(nil),
		(*batchnorm.Layer)(nil), (*batchnorm.Affine)(nil), &batchnorm.Plan{}, &batchnorm.GhostPlan{}, &batchnorm.AxesPlan{},
		&batchnorm.Layer{}, &batchnorm.Affine{}} {
		v := reflect.ValueOf(receiver)
		for i := range v.NumMethod() {
			if own[v.Type().Method(i).Name] {
				continue
			}
			m := v.Method(i)
			var args []reflect.Value
			for j := range m.Type().NumIn() {
				args = append(args, reflect.Zero(m.Type().In(j)))
			}
			methods++
			func() {
				defer func() {
					if r := recover(); r != nil {
						t.Errorf("%T.%s panics, receiver nil: %t: %v", receiver, v.Type().Method(i).Name, v.IsNil(), r)
					}
				}()
				for _, out := range m.Call(args) {
					// A zero value that was not made by its function is all zero, too, but for
					// Training, which is the mode of the zero value.
					if e, isErr := out.Interface().(error); !isErr && !out.IsZero() && v.IsNil() {
						t.Errorf("%T.%s of nil returns %v, want zero", receiver, v.Type().Method(i).Name, out)
					} else if isErr && e == nil {
						t.Errorf("%T.%s of nil returns no error", receiver, v.Type().Method(i).Name)
					}
				}
			}()
		}
	}
	if methods < 60 {
		t.Errorf("only %d methods were called", methods)
	}
}

// TestUnfitExecutors: an executor that panics, skips or repeats tasks spoils the
// outputs of its call, and nothing else.
func TestUnfitExecutors(t *testing.T) {
	shapes := []batchnorm.Shape{{Outer: 9, Channels: 6, Inner: 700}, {Outer: 900, Channels: 30, Inner: 1}, {Outer: 40, Channels: 16, Inner: 7}}
	unfit := map[string]func(n int, task func(int)){
		"skips":   func(n int, task func(int)) { task(0) },
		"none":    func(n int, task func(int)) {},
		"repeats": func(n int, task func(int)) { sequential(n, task); task(n - 1); task(0) },
		"panics before": func(n int, task func(int)) {
			panic("executor")
		},
		"panics between": func(n int, task func(int)) { task(0); panic("executor") },
		"panics in a task": func(n int, task func(int)) {
			for i := range n {
				defer func() { panic("executor") }()
				task(i)
			}
		},
		"several at a time": func(n int, task func(int)) {
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() { task(i) })
			}
			all.Wait()
		},
	}
	for _, s := range shapes {
		x, dy := gen.Normal(1, s.Len(), 0, 1), gen.Normal(2, s.Len(), 0, 1)
		half := make([]bool, s.PerChannel())
		for i := range half {
			half[i] = i%3 != 0
		}
		for _, mask := range []batchnorm.Mask{{}, {Valid: half}} {
			for name, e := range unfit {
				within(t, name, func() {
					var now func(n int, task func(int)) = sequential
					p, err := batchnorm.NewPlan(s, batchnorm.WithActivation(batchnorm.SiLU), batchnorm.WithWorkers(2),
						batchnorm.WithExecutor(func(n int, task func(int)) { now(n, task) }))
					if err != nil {
						t.Error(err)
						return
					}
					call := func() []float32 {
						y, dx := make([]float32, s.Len()), make([]float32, s.Len())
						mean, invstd := make([]float64, s.Channels), make([]float64, s.Channels)
						fwd := p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mask: mask, Mean: mean, InvStd: invstd})
						bwd := p.Backward(batchnorm.BackwardArgs{X: x, DY: dy, Mask: mask, Mean: mean, InvStd: invstd, DX: dx})
						if err := errors.Join(fwd, bwd); err != nil {
							t.Error(err)
						}
						return append(y, dx...)
					}
					want := call()
					for range 4 {
						now = e
						func() {
							defer func() {
								if r := recover(); r != nil && r != "executor" {
									t.Errorf("%v, %s: %v", s, name, r)
								}
							}()
							call()
						}()
						now = sequential
						expectBits(t, s.String()+" after an executor that "+name, call(), want)
					}
				})
			}
		}
	}
}

// sequential is an executor.
func sequential(n int, task func(int)) {
	for i := range n {
		task(i)
	}
}
