package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// plainNetwork computes the loss of a network in float64 from the formulas. It
// shares nothing with the network but its parameters.
type plainNetwork struct {
	design
	values map[string][]float64 // by the names of the parameters
	x      []float64
	labels []int
}

func (r *plainNetwork) loss() float64 {
	n := len(r.labels)
	act := map[*activation]func(float64) float64{
		sigmoid: func(z float64) float64 { return 1 / (1 + math.Exp(-z)) },
		tanh:    math.Tanh,
		relu:    func(z float64) float64 { return math.Max(z, 0) },
		gelu:    func(z float64) float64 { return z * (1 + math.Erf(z/math.Sqrt2)) / 2 },
	}[r.act]
	x, in := r.x, r.inputs
	for i := 0; i <= len(r.hidden); i++ {
		out := r.classes
		if i < len(r.hidden) {
			out = r.hidden[i]
		}
		weight := r.values[fmt.Sprintf("weight %d", i+1)]
		bias := r.values[fmt.Sprintf("bias %d", i+1)]
		gamma := r.values[fmt.Sprintf("gamma %d", i+1)]
		beta := r.values[fmt.Sprintf("beta %d", i+1)]
		y := make([]float64, n*out)
		for j := range out {
			column := make([]float64, n)
			for s := range n {
				for k := range in {
					column[s] += x[s*in+k] * weight[k*out+j]
				}
				if bias != nil {
					column[s] += bias[j]
				}
			}
			if gamma != nil {
				size := n
				if r.ghost > 0 {
					size = r.ghost
				}
				for part := range slices.Chunk(column, size) {
					normalizePlain(part)
				}
			}
			for s, v := range column {
				if gamma != nil {
					v *= gamma[j]
				}
				if beta != nil {
					v += beta[j]
				}
				if i < len(r.hidden) {
					v = act(v)
				}
				y[s*out+j] = v
			}
		}
		x, in = y, out
	}
	loss := 0.0
	for s, label := range r.labels {
		sum := 0.0
		for j := range in {
			sum += math.Exp(x[s*in+j])
		}
		loss += (math.Log(sum) - x[s*in+label]) / float64(n)
	}
	return loss
}

// normalizePlain gives values the mean 0 and the deviation 1.
func normalizePlain(values []float64) {
	mean, variance := 0.0, 0.0
	for _, v := range values {
		mean += v / float64(len(values))
	}
	for _, v := range values {
		variance += (v - mean) * (v - mean) / float64(len(values))
	}
	for s, v := range values {
		values[s] = (v - mean) / math.Sqrt(variance+batchnorm.DefaultEpsilon)
	}
}

// smallGhost cuts the batch of a small network in three, the last of which is
// smaller.
const smallGhost = 4

// smallNetwork is too small for images; none of its parameters is 0 or 1.
func smallNetwork(t *testing.T, act *activation, norm, bias bool, ghost int) *pass {
	t.Helper()
	net := newNetwork(design{
		inputs: 9, hidden: []int{7, 5, 6}, classes: 4, act: act, norm: norm, bias: bias, ghost: ghost, std: 0.5, seed: 3,
		path: batchnorm.DefaultPath(),
	})
	for i, p := range net.params {
		for k, v := range gen.Uniform(uint64(100+i), len(p.value), -0.3, 0.3) {
			p.value[k] += v
		}
	}
	p, err := newPass(net, 11)
	if err != nil {
		t.Fatal(err)
	}
	copy(p.x, gen.Normal(4, len(p.x), 0, 1))
	for i := range p.labels {
		p.labels[i] = i * 7 % net.classes
	}
	return p
}

// TestGradients compares every gradient of whole networks with central
// differences of the loss in float64.
func TestGradients(t *testing.T) {
	for _, act := range []*activation{sigmoid, tanh, relu, gelu} {
		for _, c := range []struct {
			norm, bias bool
			ghost      int
		}{{false, false, 0}, {true, false, 0}, {true, true, 0}, {true, false, smallGhost}} {
			t.Run(fmt.Sprintf("%s/norm=%v/bias=%v/ghost=%d", act.name, c.norm, c.bias, c.ghost), func(t *testing.T) {
				p := smallNetwork(t, act, c.norm, c.bias, c.ghost)
				loss, err := p.forward(training)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.backward(); err != nil {
					t.Fatal(err)
				}
				r := &plainNetwork{design: p.net.design, values: map[string][]float64{}, labels: p.labels}
				for _, v := range p.x {
					r.x = append(r.x, float64(v))
				}
				largest := 0.0
				for _, param := range p.net.params {
					for k, v := range param.value {
						r.values[param.name] = append(r.values[param.name], float64(v))
						largest = max(largest, math.Abs(float64(param.grad[k])))
					}
				}
				if want := r.loss(); math.Abs(loss-want) > 1e-6 {
					t.Errorf("loss is %v, want %v", loss, want)
				}
				const h = 1e-5
				for _, param := range p.net.params {
					value := r.values[param.name]
					for k := range value {
						at := value[k]
						value[k] = at + h
						above := r.loss()
						value[k] = at - h
						below := r.loss()
						value[k] = at
						want := (above - below) / (2 * h)
						if got := float64(param.grad[k]); !(math.Abs(got-want) <= 2e-6*largest) {
							t.Errorf("gradient of %s at %d is %v, want %v", param.name, k, got, want)
						}
					}
				}
			})
		}
	}
}

// A design with a bias in front of batch norm differs in nothing else.
func TestParams(t *testing.T) {
	for _, c := range []struct {
		norm, bias bool
		want       string
	}{
		{false, false, "[weight 1 beta 1 weight 2 beta 2 weight 3 beta 3 weight 4 bias 4]"},
		{true, false, "[weight 1 gamma 1 beta 1 weight 2 gamma 2 beta 2 weight 3 gamma 3 beta 3 weight 4 bias 4]"},
		{true, true, "[weight 1 bias 1 gamma 1 beta 1 weight 2 bias 2 gamma 2 beta 2 weight 3 bias 3 gamma 3 beta 3 weight 4 bias 4]"},
	} {
		var names []string
		for _, p := range smallNetwork(t, relu, c.norm, c.bias, 0).net.params {
			names = append(names, p.name)
		}
		if got := fmt.Sprint(names); got != c.want {
			t.Errorf("norm %v, bias %v: parameters are %s, want %s", c.norm, c.bias, got, c.want)
		}
	}
}

// The weights to begin with are those of the network without batch norm.
func TestSameStart(t *testing.T) {
	with, without := newNetwork(paperDesign(sigmoid, true, 5)), newNetwork(paperDesign(sigmoid, false, 5))
	other := newNetwork(paperDesign(sigmoid, false, 6))
	for i := range with.layers {
		if !sameBits(with.layers[i].weight, without.layers[i].weight) {
			t.Errorf("layer %d: the weights differ with and without batch norm", i+1)
		}
		if sameBits(with.layers[i].weight, other.layers[i].weight) {
			t.Errorf("layer %d: the weights don't depend on the seed", i+1)
		}
	}
}

func sameBits(a, b []float32) bool {
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}

// trainedBits are the first digits of the hashes after some training, on every machine.
var trainedBits = map[string]string{
	"sigmoid with batch norm": "5f240e4bd4c13354",
	"sigmoid without":         "e8fdc0cd83aa01f8",
	"tanh with batch norm":    "4c078a0ec5a5703f",
	"tanh without":            "400bb74be9beee56",
	"ReLU with batch norm":    "0dd3287f51a508da",
	"ReLU without":            "f3ced9cdc0fa93e8",
	"GELU with batch norm":    "fba36927c9945cc8",
	"GELU without":            "0d45994c5f0bf36d",

	"ReLU in ghost batches of 8": "e5eabd8b94cd2b42",
}

// TestSameBits trains on every path, with one processor and with several, and
// expects the same bits; those of other machines, too.
func TestSameBits(t *testing.T) {
	l := testLab(t)
	l.train = l.train.First(1000)
	check := func(act *activation, c company) {
		name := act.name + " " + c.name()
		bits := ""
		for _, path := range batchnorm.Paths() {
			for _, procs := range []int{1, 4} {
				// Without the long tests a path has one number of processors.
				if (path == batchnorm.DefaultPath()) != (procs == 4) && (testing.Short() || os.Getenv("BATCHNORM_TESTS") != "all") {
					continue
				}
				l.path = path
				r := l.recipe(act, c.norm, 12)
				r.design.ghost = c.ghost
				r.points, r.probe, r.final = 1, probeBatch, probeBatch
				before := runtime.GOMAXPROCS(procs)
				trace, err := r.run(func(int) {})
				runtime.GOMAXPROCS(before)
				if err != nil {
					t.Fatal(err)
				}
				switch got := trace.net.hash()[:16]; {
				case bits == "":
					bits = got
				case got != bits:
					t.Errorf("%s: path %v with %d processors gives %s, not %s", name, path, procs, got, bits)
				}
			}
		}
		t.Logf("%s: %s", name, bits)
		if bits != trainedBits[name] {
			t.Errorf("%s: the hash is %s, want %s", name, bits, trainedBits[name])
		}
	}
	for _, act := range []*activation{sigmoid, tanh, relu, gelu} {
		check(act, wholeBatch)
		check(act, noCompany)
	}
	check(relu, ghostBatch)
}

// Without batch norm no image is in the way of another; with it, all are.
func TestCompany(t *testing.T) {
	for _, norm := range both {
		p := smallNetwork(t, gelu, norm, false, 0)
		probabilities := func(m mode) []float32 {
			if _, err := p.forward(m); err != nil {
				t.Fatal(err)
			}
			return append([]float32(nil), p.probabilities()[:p.net.classes]...)
		}
		alone, settled := probabilities(batch), probabilities(inference)
		r := rand.New(rand.NewPCG(1, 1))
		for i := p.net.inputs; i < len(p.x); i++ { // all but the first image
			p.x[i] = float32(r.Float64())
		}
		if same := sameBits(alone, probabilities(batch)); same == norm {
			t.Errorf("batch norm %v: in other company the output is the same: %v", norm, same)
		}
		if !sameBits(settled, probabilities(inference)) {
			t.Errorf("batch norm %v: in inference the output depends on the company", norm)
		}
	}
}

// An image meets those of its own ghost batch alone.
func TestGhostCompany(t *testing.T) {
	p := smallNetwork(t, gelu, true, false, smallGhost)
	first := func() []float32 {
		if _, err := p.forward(batch); err != nil {
			t.Fatal(err)
		}
		return append([]float32(nil), p.probabilities()[:p.net.classes]...)
	}
	alone := first()
	for i := smallGhost * p.net.inputs; i < len(p.x); i++ {
		p.x[i]++
	}
	if !sameBits(alone, first()) {
		t.Error("the output depends on other ghost batches")
	}
	p.x[p.net.inputs]++
	if sameBits(alone, first()) {
		t.Error("the output does not depend on its ghost batch")
	}
}

func TestCorrect(t *testing.T) {
	nan := float32(math.NaN())
	p := &pass{net: &network{design: design{classes: 3}}, labels: []int{0, 1, 2, 0, 1}}
	p.layers = []layerPass{{y: []float32{
		.5, .3, .2, // right
		.5, .3, .2, // wrong
		.1, .2, .7, // right
		.4, .4, .2, // a tie is not right
		nan, nan, nan,
	}}}
	if got := p.correct(); got != 2 {
		t.Errorf("%d are correct, want 2", got)
	}
}
