package batchnorm_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
)

var update = flag.Bool("update", false, "write testdata/bits.json anew, from what pure Go computes")

// bitsFile holds, for every case, the hashes of all outputs. It is the same
// on every machine: whoever passes TestBits computes the same bits as everybody
// else who passes it. After an intended change of the bits:
//
//	go test . -run TestBits -update
const (
	bitsFile      = "testdata/bits.json"
	modesBitsFile = "testdata/bits_modes.json"
)

func TestBits(t *testing.T) {
	t.Parallel()
	runs := map[string]func(c config) results{}
	for name, p := range bitsCases() {
		runs[name] = func(c config) results {
			r := p.run(t, c, slices.Clone)
			if *update {
				checkReference(t, name, p, r)
			}
			return r
		}
	}
	testBits(t, bitsFile, runs)
}

// TestBitsOfModes is the same for all other ways to normalize.
func TestBitsOfModes(t *testing.T) {
	t.Parallel()
	runs := map[string]func(c config) results{}
	for i, s := range []batchnorm.Shape{
		{Outer: 7, Channels: 3, Inner: 35}, {Outer: 4, Channels: 2, Inner: 2500}, {Outer: 40, Channels: 1, Inner: 9},
		{Outer: 36, Channels: 3, Inner: 1}, {Outer: 330, Channels: 5, Inner: 1}, {Outer: 45, Channels: 133, Inner: 1},
	} {
		masks := masksFor(s, uint64(i))
		modes := map[string]mode{
			"masked by lengths": plain(masks["lengths"]), "masked": plain(masks["half"]), "frozen": frozen(batchnorm.Mask{}),
			"frozen and masked":    frozen(masks["bursts"]),
			"three parts":          split([]int{1, s.Outer / 2, s.Outer}, batchnorm.Mask{}),
			"ghost batches":        ghost(batchnorm.GhostBatches{Samples: s.Outer, Size: 2}, batchnorm.Mask{}),
			"renormalized":         renorm(3, 5, batchnorm.Mask{}),
			"renormalized, narrow": renorm(1.25, 0.25, batchnorm.Mask{}),
		}
		relu, identity := newProblem(s, hasResidual|hasGammaBeta), newProblem(s, hasResidual|hasGammaBeta)
		relu.act = batchnorm.ReLU
		for name, m := range modes {
			runs[fmt.Sprintf("%v %s: relu with residual", s, name)] = func(c config) results { return m.run(t, stage{relu, c, slices.Clone[[]float32]}) }
			runs[fmt.Sprintf("%v %s: identity with residual", s, name)] = func(c config) results {
				return m.run(t, stage{identity, c, slices.Clone[[]float32]})
			}
		}
		simple, leaky, elu := newProblem(s, hasGammaBeta), newProblem(s, hasGammaBeta), newProblem(s, hasResidual|hasGammaBeta)
		leaky.act, elu.act = batchnorm.LeakyReLU(0.01), batchnorm.ELU(1)
		for name, p := range map[string]problem{"identity": simple, "identity with residual": newProblem(s, hasResidual|hasGammaBeta),
			"leaky ReLU": leaky, "ELU with residual": elu} {
			for c, g := range p.gamma {
				p.gamma[c] = g + float32(math.Copysign(0.25, float64(g)))
			}
			runs[fmt.Sprintf("%v from y: %s", s, name)] = func(c config) results {
				return fromY(batchnorm.Mask{}).run(t, stage{p, c, slices.Clone[[]float32]})
			}
		}
	}
	testBits(t, modesBitsFile, runs)
}

func testBits(t *testing.T, file string, runs map[string]func(c config) results) {
	want := map[string]map[string]string{}
	if *update {
		for name, run := range runs {
			want[name] = hashes(run(config{path: batchnorm.PathGeneric, workers: 1}))
		}
		if t.Failed() {
			t.Fatalf("%s stays as it was", file)
		}
		text, err := json.MarshalIndent(want, "", "\t")
		noError(t, err)
		noError(t, os.WriteFile(file, append(text, '\n'), 0o644))
	}
	text, err := os.ReadFile(file)
	noError(t, err)
	clear(want)
	noError(t, json.Unmarshal(text, &want))
	for name := range want {
		if _, ok := runs[name]; !ok {
			t.Errorf("%s has the case %q, which is not tested", file, name)
		}
	}
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		total, differing := 0, []string{}
		for _, name := range slices.Sorted(maps.Keys(runs)) {
			got := hashes(runs[name](config{path: path, workers: 1}))
			for _, output := range slices.Sorted(maps.Keys(got)) {
				total++
				if got[output] != want[name][output] {
					differing = append(differing, name+": "+output)
				}
			}
		}
		if n := len(differing); n > 0 {
			t.Errorf("%d of %d outputs have other bits than %s says, these among them:\n%s",
				n, total, file, strings.Join(differing[:min(n, 20)], "\n"))
		}
	})
}

// bitsCases are problems of all the forms that the geometry tells apart.
func bitsCases() map[string]problem {
	shapes := []batchnorm.Shape{
		// rows: short ones, with every kind of rest behind the vectors
		{Outer: 7, Channels: 3, Inner: 2},
		{Outer: 5, Channels: 4, Inner: 3},
		{Outer: 3, Channels: 5, Inner: 7},
		{Outer: 4, Channels: 3, Inner: 8},
		{Outer: 2, Channels: 7, Inner: 9},
		{Outer: 5, Channels: 3, Inner: 16},
		{Outer: 2, Channels: 3, Inner: 29},
		{Outer: 3, Channels: 4, Inner: 31},
		{Outer: 2, Channels: 6, Inner: 32},
		{Outer: 2, Channels: 5, Inner: 33},
		{Outer: 3, Channels: 3, Inner: 50},
		// rows: several to a block, several blocks, several blocks to a row,
		// several segments
		{Outer: 90, Channels: 2, Inner: 100},
		{Outer: 8, Channels: 3, Inner: 784},
		{Outer: 2, Channels: 3, Inner: 4096},
		{Outer: 2, Channels: 2, Inner: 4097},
		{Outer: 1, Channels: 2, Inner: 9999},
		{Outer: 90, Channels: 1, Inner: 784},
		{Outer: 700, Channels: 2, Inner: 100},
		{Outer: 1, Channels: 2, Inner: 70003},
		// cols: few channels, with and without a rest behind the folded rows
		{Outer: 50, Channels: 1, Inner: 1},
		{Outer: 160, Channels: 2, Inner: 1},
		{Outer: 37, Channels: 3, Inner: 1},
		{Outer: 101, Channels: 4, Inner: 1},
		{Outer: 640, Channels: 5, Inner: 1},
		{Outer: 3, Channels: 7, Inner: 1},
		// cols: every kind of rest behind the vectors
		{Outer: 70, Channels: 32, Inner: 1},
		{Outer: 19, Channels: 33, Inner: 1},
		{Outer: 6, Channels: 39, Inner: 1},
		{Outer: 300, Channels: 100, Inner: 1},
		{Outer: 17, Channels: 64, Inner: 1},
		// cols: several segments
		{Outer: 1030, Channels: 50, Inner: 1},
		{Outer: 70001, Channels: 3, Inner: 1},
		{Outer: 5000, Channels: 33, Inner: 1},
	}
	costly := []batchnorm.Shape{
		{Outer: 3, Channels: 4, Inner: 31}, {Outer: 8, Channels: 3, Inner: 784}, {Outer: 1, Channels: 2, Inner: 70003},
		{Outer: 37, Channels: 3, Inner: 1}, {Outer: 300, Channels: 100, Inner: 1}, {Outer: 1030, Channels: 50, Inner: 1},
		{Outer: 6, Channels: 5, Inner: 45}, {Outer: 90, Channels: 35, Inner: 1},
	}
	cases := map[string]problem{}
	add := func(s batchnorm.Shape, kind string, x []float32) {
		identity := problem{
			shape: s, act: batchnorm.Identity, epsilon: batchnorm.DefaultEpsilon,
			x: x, dy: gen.Normal(2, s.Len(), 0.25, 1),
			mean: gen.Uniform(3, s.Channels, -1, 3), vari: gen.Uniform(4, s.Channels, 0.5, 4),
		}
		relu := identity
		relu.act = batchnorm.ReLU
		relu.gamma, relu.beta = gen.Uniform(5, s.Channels, -2, 2), gen.Uniform(6, s.Channels, -1, 1)
		relu.residual = gen.Normal(7, s.Len(), 0, 1)
		for name, p := range map[string]problem{"identity": identity, "relu with residual": relu} {
			cases[fmt.Sprintf("%v %s: %s", s, kind, name)] = p
		}
		if slices.Contains(costly, s) {
			silu := relu // whose gradients by z are stored between the phases
			silu.act = batchnorm.SiLU
			cases[fmt.Sprintf("%v %s: silu with residual", s, kind)] = silu
		}
	}
	for _, s := range shapes {
		add(s, "ordinary", gen.Normal(1, s.Len(), 1, 2))
	}
	for _, s := range []batchnorm.Shape{{Outer: 6, Channels: 5, Inner: 45}, {Outer: 90, Channels: 35, Inner: 1}} {
		add(s, "offset", gen.Normal(1, s.Len(), 1e5, 1))
		add(s, "huge", gen.Normal(1, s.Len(), 0, 1e30))
		add(s, "tiny", gen.Normal(1, s.Len(), 0, 1e-30))
		add(s, "special", gen.Special(1, s.Len()))
	}
	return cases
}

// hashes returns the first half of the SHA-256 of every output's bits.
func hashes(r results) map[string]string {
	m := map[string]string{}
	for _, out := range r.outputs() {
		if out.single == nil && out.double == nil {
			continue
		}
		var buf []byte
		for _, v := range out.single {
			b := uint64(math.Float32bits(v))
			if v != v {
				b = math.MaxUint64 // every NaN is the same
			}
			buf = binary.LittleEndian.AppendUint64(buf, b)
		}
		for _, v := range out.double {
			b := math.Float64bits(v)
			if v != v {
				b = math.MaxUint64
			}
			buf = binary.LittleEndian.AppendUint64(buf, b)
		}
		sum := sha256.Sum256(buf)
		m[out.name] = hex.EncodeToString(sum[:len(sum)/2])
	}
	return m
}

// checkReference expects that no output is further from the reference than a
// millionth of the largest value in its channel.
func checkReference(t *testing.T, name string, p problem, r results) {
	t.Helper()
	if !p.finite() {
		return
	}
	ref := p.reference()
	forward := reference.Forward(ref)
	// On which side of 0 a pre-activation is, float32 and float64 need not
	// agree.
	if p.piecewise() {
		ref.Activation, ref.Residual, ref.DY = "identity", nil, p.slopes(r.y)
	}
	backward := reference.Backward(ref)
	for _, output := range []struct {
		name string
		got  []float32
		want []float64
	}{
		{"y", r.y, forward.Y},
		{"inference", r.inferred, reference.Inference(p.reference(), p.mean, p.vari)},
		{"mean", toFloat32(r.mean), forward.Mean},
		{"invstd", toFloat32(r.invstd), forward.InvStd},
		{"dx", r.dx, backward.DX},
		{"dresidual", r.dres, backward.DResidual},
		{"dgamma", r.dgamma, backward.DGamma},
		{"dbeta", r.dbeta, backward.DBeta},
	} {
		worst, largest := 0.0, 0.0
		for i, v := range output.got {
			worst = max(worst, math.Abs(float64(v)-output.want[i]))
			largest = max(largest, math.Abs(output.want[i]))
		}
		if !(worst <= 1e-6*largest) {
			t.Errorf("%s: %s is off the reference by %.3g, its values go up to %.3g", name, output.name, worst, largest)
		}
	}
}

func toFloat32(s []float64) []float32 {
	f := make([]float32, len(s))
	for i, v := range s {
		f[i] = float32(v)
	}
	return f
}
