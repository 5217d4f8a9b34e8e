package batchnorm

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/gen"
)

// memory is the caller's, by name.
type memory map[string][2]uintptr

func lend[T any](m memory, name string, s []T) []T {
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(s)))
	m[name] = [2]uintptr{begin, begin + uintptr(cap(s))*unsafe.Sizeof(*new(T))}
	return s
}

// TestRelease: once a call is over, a plan refers to none of the memory that the caller
// handed in, which can be freed while the plan waits for the next call.
func TestRelease(t *testing.T) {
	t.Parallel()
	calls := 0
	for _, s := range []Shape{{Outer: 6, Channels: 9, Inner: 50}, {Outer: 2, Channels: 3, Inner: 9000}, {Outer: 700, Channels: 20, Inner: 1},
		{Outer: 1, Channels: 200, Inner: 3}} {
		for _, path := range Paths() {
			for name, option := range map[string]Option{"usual": nil, "extreme": WithExtremeSchedule(false), "phases": WithExtremeSchedule(true)} {
				for _, scale := range []float64{1, 1e30} { // the other one has sums taken again
					o := []Option{WithPath(path), WithWorkers(3), WithActivation(ELU(1))}
					if option != nil {
						o = append(o, option)
					}
					calls += releases(t, fmt.Sprintf("%v, %v, %s, %g", s, path, name, scale), s, scale, o)
				}
			}
		}
	}
	if calls == 0 {
		t.Error("no call was looked at")
	}
}

// releases looks at all references of plans after every call, and returns the number of
// calls.
func releases(t *testing.T, name string, s Shape, scale float64, o []Option) (calls int) {
	t.Helper()
	m := memory{}
	n, c := s.Len(), s.Channels
	tensor := func(name string, seed uint64, scale float64) []float32 {
		return lend(m, name, gen.Uniform(seed, n, -scale, scale))
	}
	list := func(name string, seed uint64) []float32 { return lend(m, name, gen.Uniform(seed, c, 1, 2)) }
	x, dy, res := tensor("x", 1, scale), tensor("dy", 2, scale), tensor("residual", 3, 1)
	y, dx, dres := tensor("y", 4, 1), tensor("dx", 5, 1), tensor("dresidual", 6, 1)
	gamma, beta, dgamma, dbeta := list("gamma", 7), list("beta", 8), list("dgamma", 9), list("dbeta", 10)
	runMean, runVar := list("running mean", 11), list("running variance", 12)
	float64s := func(name string, n int) []float64 { return lend(m, name, make([]float64, n)) }
	mean, invstd, r, d := float64s("mean", 2*c), float64s("invstd", 2*c), float64s("r", c), float64s("d", c)
	sums, sumsD := float64s("first sums", c), float64s("second sums", c)
	valid := lend(m, "valid", make([]bool, s.PerChannel()))
	for i := range valid {
		valid[i] = i%5 != 3
	}

	p, err := NewPlan(s, o...)
	if err != nil {
		t.Fatal(err)
	}
	samples := s.Outer
	ghost, err := NewGhostPlan(s, GhostBatches{Samples: samples, Size: (samples + 1) / 2}, o...)
	if err != nil {
		t.Fatal(err)
	}
	axes, err := NewAxesPlan([]int{0, 2}, []int{c, s.Outer, s.Inner}, append(o, WithSingleValue())...)
	if err != nil {
		t.Fatal(err)
	}
	k := axes.Channels()
	axesList := func(name string) []float64 { return float64s("axes "+name, k) }
	axesMean, axesInvStd := axesList("mean"), axesList("invstd")

	for _, mask := range []Mask{{}, {Valid: valid}} {
		f := ForwardArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Y: y, Mean: mean[:c], InvStd: invstd[:c], RunningMean: runMean,
			RunningVar: runVar}
		b := BackwardArgs{DY: dy, X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Mean: mean[:c], InvStd: invstd[:c],
			DX: dx, DResidual: dres, DGamma: dgamma, DBeta: dbeta}
		moments := Moments{Mean: sums, M2: sumsD}
		gradSums := GradSums{G: sums, GD: sumsD}
		for what, call := range map[string]func() error{
			"Forward":  func() error { return p.Forward(f) },
			"Backward": func() error { return p.Backward(b) },
			"Inference": func() error {
				return p.Inference(InferenceArgs{X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Mean: runMean, Var: runVar, Y: y})
			},
			"FrozenBackward": func() error {
				return p.FrozenBackward(FrozenBackwardArgs{DY: dy, X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Mean: runMean, Var: runVar,
					DX: dx, DResidual: dres, DGamma: dgamma, DBeta: dbeta})
			},
			"BackwardFromY": func() error {
				return p.BackwardFromY(BackwardFromYArgs{DY: dy, Y: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, InvStd: invstd[:c],
					DX: dx, DResidual: dres, DGamma: dgamma, DBeta: dbeta})
			},
			"RenormForward":  func() error { return p.RenormForward(RenormForwardArgs{ForwardArgs: f, RMax: 3, DMax: 5, R: r, D: d}) },
			"RenormBackward": func() error { return p.RenormBackward(RenormBackwardArgs{BackwardArgs: b, R: r, D: d}) },
			"Moments":        func() error { return p.Moments(MomentsArgs{X: x, Mask: mask, Moments: &moments}) },
			"GradSums": func() error {
				return p.GradSums(GradSumsArgs{DY: dy, X: x, Residual: res, Gamma: gamma, Beta: beta, Mask: mask, Mean: mean[:c], InvStd: invstd[:c],
					Sums: &gradSums})
			},
			"ghost Forward": func() error {
				f := f
				f.Mean, f.InvStd = mean[:ghost.Batches()*c], invstd[:ghost.Batches()*c]
				return ghost.Forward(f)
			},
			"ghost Backward": func() error {
				b := b
				b.Mean, b.InvStd = mean[:ghost.Batches()*c], invstd[:ghost.Batches()*c]
				return ghost.Backward(b)
			},
			"axes Forward": func() error {
				return axes.Forward(ForwardArgs{X: x, Residual: res, Y: y, Mean: axesMean, InvStd: axesInvStd})
			},
			"axes Backward": func() error {
				return axes.Backward(BackwardArgs{DY: dy, X: x, Residual: res, Mean: axesMean, InvStd: axesInvStd, DX: dx, DResidual: dres})
			},
		} {
			if err := call(); err != nil {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
			calls++
			plan := any(p)
			switch {
			case strings.HasPrefix(what, "ghost"):
				plan = ghost
			case strings.HasPrefix(what, "axes"):
				plan = axes
			}
			v := visitor{memory: m, seen: map[visit]bool{}}
			v.walk(reflect.ValueOf(plan))
			if v.found != "" {
				t.Fatalf("%s: after %s with mask %t, %s", name, what, mask.Valid != nil, v.found)
			}
			if v.visited < 100 {
				t.Fatalf("only %d values were looked at", v.visited)
			}
		}
	}
	return calls
}

// visitor looks through everything that can be reached from a value, for pointers to
// memory.
type visitor struct {
	memory  memory
	seen    map[visit]bool
	path    []step // to where it is
	visited int
	found   string
}

// step leads from a value to one of its elements: to a field, or without a name to
// the element at an index.
type step struct {
	field string
	index int
}

type visit struct {
	at  uintptr
	typ reflect.Type
}

// refer looks at a pointer, and reports whether its target is new.
func (v *visitor) refer(at uintptr, typ reflect.Type) bool {
	for name, m := range v.memory {
		if at >= m[0] && at < m[1] {
			v.found = "the plan"
			for _, s := range v.path {
				if s.field != "" {
					v.found += "." + s.field
				} else {
					v.found += fmt.Sprintf("[%d]", s.index)
				}
			}
			v.found += " refers to " + name
		}
	}
	k := visit{at, typ}
	old := v.seen[k]
	v.seen[k] = true
	return !old && v.found == ""
}

// into walks an element.
func (v *visitor) into(r reflect.Value, s step) {
	v.path = append(v.path, s)
	v.walk(r)
	v.path = v.path[:len(v.path)-1]
}

func (v *visitor) walk(r reflect.Value) {
	v.visited++
	switch r.Kind() {
	case reflect.Pointer:
		if !r.IsNil() && v.refer(r.Pointer(), r.Type()) {
			v.walk(r.Elem())
		}
	case reflect.UnsafePointer:
		v.refer(r.Pointer(), r.Type())
	case reflect.Interface:
		if !r.IsNil() {
			v.walk(r.Elem())
		}
	case reflect.Slice:
		if r.IsNil() || !v.refer(r.Pointer(), r.Type()) {
			return
		}
		switch r.Type().Elem().Kind() {
		case reflect.Float32, reflect.Float64, reflect.Bool, reflect.Int, reflect.Uint32:
			v.visited += r.Len()
			return
		}
		// Elements that an append has not overwritten yet count as well.
		all := r.Slice(0, r.Cap())
		for i := range all.Len() {
			v.into(all.Index(i), step{index: i})
		}
	case reflect.Array:
		switch r.Type().Elem().Kind() {
		case reflect.Float32, reflect.Float64, reflect.Uint64, reflect.Int:
			return
		}
		for i := range r.Len() {
			v.into(r.Index(i), step{index: i})
		}
	case reflect.Struct:
		for i := range r.NumField() {
			v.into(r.Field(i), step{field: r.Type().Field(i).Name})
		}
	}
}
