package batchnorm

import (
	"math"
	"os"
	"testing"
	"unsafe"

	"github.com/fusedbn/batchnorm/internal/scalar"
)

// Thorough reports whether tests take as long as they need. Otherwise they look at a
// part, so that nobody waits for defects that only changes to a few files can bring in.
// .ci/run takes all:
//
//	BATCHNORM_TESTS=all go test work
//
// With -short they never do: emulators, the race detector and the like take part of the
// tests.
func Thorough() bool { return os.Getenv("BATCHNORM_TESTS") == "all" && !testing.Short() }

// In tests small tensors are shared by all workers.
func init() { defaultLimits.share = 1 }

// Workers returns how many workers share n tasks of a plan.
func Workers(p *Plan, n int) int { return p.workersFor(n, p.shape.Len()) }

// WithShare sets how many values of the tensor each worker has at least.
func WithShare(n int) Option {
	return func(o *options) error {
		o.limits.share = n
		return nil
	}
}

// WithExtremeSchedule makes a plan take the ways that otherwise large tensors
// take: every output takes non-temporal stores where it can, and small groups of
// channels take turns or, with phases, all sums are taken before outputs are written.
func WithExtremeSchedule(phases bool) Option {
	return func(o *options) error {
		o.limits = limits{machine: machine{l2: 1 << 20, l3: 1 << 30}, groupLen: 40, groupShare: 1,
			groupOdd: 1, groupOuter: 1, fitShare: 1, tile: 64, share: 1}
		if phases {
			o.limits.l3 = 0
		}
		return nil
	}
}

// Sampled returns the positions of the values of a channel that decide whether it is tiny.
func Sampled(s Shape) (positions [tinySample]int) {
	p, err := NewPlan(s)
	if err != nil {
		panic(err)
	}
	w := p.acquire(&Mask{}, s.PerChannel(), false)
	defer p.release(w)
	at, _ := w.sampledValues()
	for k, i := range at {
		positions[k] = i/(s.Channels*s.Inner)*s.Inner + i%s.Inner
	}
	return positions
}

// Rescued returns how many channels had their sums taken again so far.
func Rescued() int64 { return rescued.Load() }

// Looked returns how many channels had their values looked at so far.
func Looked() int64 { return looked.Load() }

// ELUInverse is what BackwardFromY turns y = ELU(z) back with.
func ELUInverse(y, alpha float32) float32 { return scalar.ELUInverse(y, alpha) }

// SoilScratch fills the scratch memory that is not in use with numbers that show where
// a call reads what it did not write.
func (p *Plans) SoilScratch() {
	for _, w := range p.scratch.workspaces.free {
		if w.plan != nil {
			w.plan = &Plan{} // it is divided anew
		}
		soil(w.float32s.all, float32(math.NaN()))
		soil(w.float64s.all, math.NaN())
		soil(w.ints.all, 7)
		soil(w.bools.all, true)
		soil(w.kinds.all, 0xff)
		soil(w.tinyColumns.masks, float32(math.NaN()))
		soil(w.tinyColumns.factors, math.NaN())
		soil(w.tinyColumns.own, float32(math.NaN()))
		soil(w.tinyColumns.tiny, 0xff)
		soil(w.tinyColumns.found, 0xff)
	}
	for _, s := range p.scratch.rows.free {
		soil(s.sums, math.NaN())
		soil(s.shift, float32(math.NaN()))
		soil(s.a, math.NaN())
		soil(s.b, math.NaN())
	}
	for _, s := range p.scratch.buffers.free {
		for _, list := range [][]float32{s.x[:], s.dy[:], s.res[:], s.y[:], s.dres[:], s.scaled[:], s.g[:], s.heldY[:], s.heldG[:]} {
			soil(list, float32(math.NaN()))
		}
		soil(s.sumsFew[:], math.NaN())
		soil(s.constants.ofZ[:], math.NaN())
		soil(s.constants.records[0][:], float32(math.NaN()))
		soil(s.constants.records64[:], record64{s: sameLanes(math.NaN()), n: sameLanes(float32(math.NaN()))})
		soil(s.list.at[:], math.MaxInt)
		soil(s.sums[:], math.NaN())
		soil(s.sums64[:], math.NaN())
		soil(s.largest[:], math.MaxFloat32)
	}
}

func soil[T any](s []T, v T) {
	for i := range s {
		s[i] = v
	}
}

// ScratchBytes returns how much scratch memory there is that is not in use.
func (p *Plans) ScratchBytes() int {
	n := 0
	for _, w := range p.scratch.workspaces.free {
		n += 4*len(w.float32s.all) + 8*len(w.float64s.all) + 8*len(w.ints.all) + len(w.bools.all) + len(w.kinds.all)
	}
	for _, s := range p.scratch.rows.free {
		n += 8*len(s.sums) + 8*len(s.shift) + 16*len(s.a)
	}
	return n + len(p.scratch.buffers.free)*int(unsafe.Sizeof(buffers{}))
}
