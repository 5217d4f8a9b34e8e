package batchnorm

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm/internal/coef"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/internal/reference"
	"github.com/fusedbn/batchnorm/internal/scalar"
	"github.com/fusedbn/batchnorm/internal/ulp"
)

// sweptActivations are all kinds but the identity, some with other parameters, too.
var sweptActivations = append(Activations()[1:], Clip(-1, 1), ELU(-0.75))

// evaluate replaces z by act(z), and slope by act'(z), with the kernels of a path.
func evaluate(p Path, act Activation, z, slope []float32) {
	zero := float32(math.Copysign(0, -1)) // that can be added to -0
	coef := []float32{zero, 1, zero, 0, 0}
	ones, zeros := make([]float32, len(z)), make([]float32, len(z))
	for i := range ones {
		ones[i] = 1
	}
	a := kernelArgs{x: zeros, dy: ones, res: z, y: make([]float32, len(z)), dres: slope, coef: coef, rows: 1, n: len(z)}
	if p != PathGeneric {
		a.act = newActCode(act)
	}
	a.begin(0, 1)
	p.runAll(kernelInputGrad, act, &a)
	a = kernelArgs{x: z, y: z, coef: coef, rows: 1, n: len(z), act: a.act}
	a.begin(0, 1)
	p.runAll(kernelNormalize, act, &a)
}

// sweptHashes is the file with the hashes of the sweeps' results, by stride and
// activation; every machine has the same. After an intended change:
//
//	go test . -run TestActivationSweep -update
//	BATCHNORM_TESTS=all go test . -run TestActivationSweep -update
const sweptHashes = "testdata/activations.json"

// TestActivationSweep evaluates the activations at every 251st float32 on every
// path, compares all bits by their hash, and the errors of a part of them with
// the bounds that the documentation gives.
func TestActivationSweep(t *testing.T) {
	t.Parallel()
	stride := uint64(251)
	if !Thorough() {
		stride *= 61
	}
	want := map[string]map[string]string{}
	text, err := os.ReadFile(sweptHashes)
	if err == nil {
		err = json.Unmarshal(text, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprint(stride)
	if flag.Lookup("update").Value.String() == "true" {
		want[key] = map[string]string{}
		for _, act := range sweptActivations {
			want[key][act.String()] = sweepHash(t, PathGeneric, act, stride)
		}
		text, err := json.MarshalIndent(want, "", "\t")
		if err == nil {
			err = os.WriteFile(sweptHashes, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := len(want[key]); got != len(sweptActivations) {
		t.Errorf("%s has %d hashes for stride %s, want %d: %v", sweptHashes, got, key, len(sweptActivations), slices.Sorted(maps.Keys(want[key])))
	}
	for _, p := range Paths() {
		for _, act := range sweptActivations {
			t.Run(fmt.Sprint(p, "/", act), func(t *testing.T) {
				t.Parallel()
				if got := sweepHash(t, p, act, stride); got != want[key][act.String()] {
					t.Errorf("the results hash to %s, want %s: other bits", got, want[key][act.String()])
				}
			})
		}
	}
}

// sweepHash hashes the results for every stride-th input, NaN as one value. On
// pure Go it checks the errors, too.
func sweepHash(t *testing.T, p Path, act Activation, stride uint64) string {
	t.Helper()
	const chunk = 1 << 12
	ref := reference.ActivationOf(act.String())
	bound := sweepBounds(t, act)
	hash := uint64(14695981039346656037) // FNV-1a, by words
	z, y, slope := make([]float32, chunk), make([]float32, chunk), make([]float32, chunk)
	for begin, k := uint64(0), 0; begin < 1<<32; begin, k = begin+chunk*stride, k+1 {
		n := int(min(chunk, (1<<32-begin+stride-1)/stride))
		z, y, slope = z[:n], y[:n], slope[:n]
		for i := range z {
			z[i] = math.Float32frombits(uint32(begin + uint64(i)*stride))
		}
		copy(y, z)
		evaluate(p, act, y, slope)
		for i := range z {
			for _, v := range [2]float32{y[i], slope[i]} {
				bits := uint64(math.Float32bits(v))
				if v != v {
					bits = 1 << 32
				}
				hash = (hash ^ bits) * 1099511628211
			}
		}
		if p != PathGeneric || k%4 != 0 {
			continue
		}
		for i, v := range z {
			if e := ulp.Distance(y[i], ref.F(float64(v))); e > bound[0] {
				t.Fatalf("%v(%v) is %v, off by %.3f ULP, allowed are %v", act, v, y[i], e, bound[0])
			}
			want := ref.Derivative(float64(v))
			e := ulp.Distance(slope[i], want)
			if ref.Largest != nil && e > 0 && !math.IsInf(e, 0) {
				e = math.Abs(float64(slope[i])-want) / ulp.Of(ref.Largest(float64(v)))
			}
			if e > bound[1] {
				t.Fatalf("%v'(%v) is %v, off by %.3f ULP, allowed are %v", act, v, slope[i], e, bound[1])
			}
		}
	}
	return fmt.Sprintf("%016x", hash)
}

// documentedErrors returns the table of docs/activations.md: by activation, the largest
// error of the value and its input, and the same of the derivative.
func documentedErrors(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("docs/activations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if cells := strings.Split(line, "|"); len(cells) == 7 {
			for i, c := range cells {
				cells[i] = strings.TrimSpace(c)
			}
			rows[cells[1]] = cells[2:6]
		}
	}
	return rows
}

// sweepBounds returns the errors that docs/activations.md allows the value and
// the derivative.
func sweepBounds(t *testing.T, act Activation) [2]float64 {
	t.Helper()
	if act == ELU(-0.75) { // stands for all that are not ELU(1)
		return [2]float64{1.41, 1.45}
	}
	row := documentedErrors(t)[act.String()]
	if row == nil {
		t.Fatalf("docs/activations.md has no errors of %v: go run ./bench/sweep prints the row", act)
	}
	var bounds [2]float64
	for j := range bounds {
		e, err := strconv.ParseFloat(row[2*j], 64)
		if err != nil {
			t.Fatal(err)
		}
		bounds[j] = e + 0.00005 // it has four decimals
	}
	return bounds
}

// TestWorstInputs: the errors that docs/activations.md gives are those at the inputs
// that it names, on every path, and package scalar has the same beside each function.
func TestWorstInputs(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "internal/scalar/scalar.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{} // in the comment of a function
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			said[f.Name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
		}
	}
	rows := documentedErrors(t)
	for _, act := range sweptActivations {
		row := rows[act.String()]
		if act == ELU(-0.75) {
			continue // stands for all that are not ELU(1)
		}
		if row == nil {
			t.Errorf("docs/activations.md does not have %v", act)
			continue
		}
		ref := reference.ActivationOf(act.String())
		names := [2]string{"ELU", "ELUSlope"}
		if f := acts[act.kind]; f.value != nil {
			names = [2]string{functionName(f.value), functionName(f.derivative)}
		}
		for j, name := range names {
			if row[2*j] == "0.0000" {
				continue
			}
			at, err := strconv.ParseFloat(row[2*j+1], 32)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range Paths() {
				z, slope := []float32{float32(at)}, []float32{0}
				evaluate(p, act, z, slope)
				e := ulp.Distance(z[0], ref.F(at))
				if j == 1 {
					e = ulp.Distance(slope[0], ref.Derivative(at))
					if ref.Largest != nil {
						e = math.Abs(float64(slope[0])-ref.Derivative(at)) / ulp.Of(ref.Largest(at))
					}
				}
				if got := fmt.Sprintf("%.4f", e); got != row[2*j] {
					t.Errorf("%v: %s(%v) is off by %s ULP, docs/activations.md has %s", p, name, at, got, row[2*j])
				}
			}
			if e, _ := strconv.ParseFloat(row[2*j], 64); e <= 0.5 {
				continue // rounded correctly
			}
			if want := fmt.Sprintf("Worst: %s ULP at %s.", row[2*j], row[2*j+1]); !strings.Contains(said[name], want) {
				t.Errorf("the comment of %s in package scalar lacks %q", name, want)
			}
		}
	}
}

// functionName returns the name of a function of the package.
func functionName(f func(float32) float32) string {
	name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	return name[strings.LastIndex(name, ".")+1:]
}

// TestELUAnyAlpha: ELU's exp(z)-1 has a relative error of at most 0.676*2^-23, so that
// with the rounding of its product with any alpha ELU is within 2*0.676+0.5 ULP.
func TestELUAnyAlpha(t *testing.T) {
	for k := math.Float32bits(0x1p-10); k < math.Float32bits(18); k += 251 {
		z := -math.Float32frombits(k)
		want := math.Expm1(float64(z))
		if e := math.Abs(float64(scalar.ELU(z, 1))/want-1) * 0x1p23; e > 0.676 {
			t.Fatalf("exp(%v)-1 is %v, off by %.3f times 2^-23, allowed are 0.676", z, scalar.ELU(z, 1), e)
		}
	}
}

// TestActivationMixed has values that are computed in different ways beside one
// another, in every place of a vector and of the vectors of a call: NaN, infinite, far
// from 0, near to it, and where the two meet.
func TestActivationMixed(t *testing.T) {
	t.Parallel()
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	var borders []float32
	for _, v := range []float32{coef.SigmoidEnd, coef.GELUEnd, coef.MishShift + coef.MishEnd, coef.MishShift - coef.MishEnd,
		coef.TanhEnd, coef.Expm1End} {
		borders = append(borders, v, math.Nextafter32(v, inf), math.Nextafter32(v, -inf), -v, math.Nextafter32(-v, inf), math.Nextafter32(-v, -inf))
	}
	few := append(borders, nan, inf, -inf, 30, -30, 7, -7, 1e30, -1e30)
	for _, p := range Paths() {
		for _, act := range sweptActivations {
			for n := 1; n <= 70; n++ {
				for round := range 15 {
					z := gen.Normal(uint64(n*8+round), n, 0, 1)
					for k := range min(round, 5) { // none, then more and more
						z[(n*(k+1)*7+round*13)%n] = few[(n*11+k*5+round)%len(few)]
					}
					for i := range z {
						switch {
						case round == 5:
							z[i] = few[(i*7+n)%len(few)]
						case round == 6: // all far
							z[i] = float32(math.Copysign(20, float64(z[i])))
						case round == 7 && i%lanes == n%lanes: // one column is
							z[i] = float32(-9 - i%90)
						case round == 8: // all far, and no result is subnormal
							z[i] = float32(math.Copysign(6+float64((i*37+n)%75), float64(z[i])))
						case round == 9: // all far, and some are
							z[i] = float32(math.Copysign(6+float64((i*37+n)%120), float64(z[i])))
						case round == 10: // all far, around the ends of the tails
							z[i] = float32(math.Copysign(10+float64((i*37+n)%70)/10, float64(z[i])))
						case round == 11 && i%3 == n%3: // some have reached the limit
							z[i] = float32(math.Copysign(15+float64((i*37+n)%20), float64(z[i])))
						case round >= 12:
							z[i] = float32(math.Copysign(float64(nan), float64(z[i])))
						}
					}
					switch round {
					case 6:
						z[n/2] = nan
					case 13: // all others are NaN
						z[n/2] = -20
					case 14:
						z[n*3/4] = 0.5
					}
					want, wantSlope := slices.Clone(z), slices.Clone(z)
					act.forward(want)
					act.derivative(wantSlope)
					slope := make([]float32, n)
					in := slices.Clone(z)
					evaluate(p, act, z, slope)
					for _, c := range []struct {
						name      string
						got, want []float32
					}{{"value", z, want}, {"derivative", slope, wantSlope}} {
						if i, ok := sameBits(c.got, c.want); !ok {
							t.Fatalf("%v, %v, %d values: the %s at %v is %v, want %v", p, act, n, c.name, in[i], c.got[i], c.want[i])
						}
					}
				}
			}
		}
	}
}

// TestActivationSpecials checks arguments with an exact answer.
func TestActivationSpecials(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	zero := float32(math.Copysign(0, -1))
	for _, c := range []struct {
		act             Activation
		z, value, slope float32
	}{
		{Identity, nan, nan, 1},
		{ReLU, nan, nan, 0}, {ReLU, zero, 0, 0}, {ReLU, inf, inf, 1}, {ReLU, -inf, 0, 0},
		{LeakyReLU(0.5), nan, nan, 0.5}, {LeakyReLU(0.5), -inf, -inf, 0.5}, {LeakyReLU(0.5), zero, zero, 0.5}, {LeakyReLU(0.5), -3, -1.5, 0.5},
		{LeakyReLU(-1), -2, 2, -1}, {LeakyReLU(0), 5, 5, 1},
		{LeakyReLU(0), -inf, 0, 0}, {LeakyReLU(zero), -inf, 0, 0}, {LeakyReLU(0), nan, nan, 0}, {LeakyReLU(0), -3, 0, 0},
		{Clip(-1, 2), nan, nan, 0}, {Clip(-1, 2), -inf, -1, 0}, {Clip(-1, 2), inf, 2, 0}, {Clip(-1, 2), 2, 2, 0}, {Clip(-1, 2), -1, -1, 0},
		{Clip(-1, 2), 0.5, 0.5, 1}, {ReLU6, zero, zero, 0}, {ReLU6, 7, 6, 0}, {Clip(3, 3), 1, 3, 0},
		{HardSigmoid, -inf, 0, 0}, {HardSigmoid, inf, 1, 0}, {HardSigmoid, 3, 1, 0}, {HardSigmoid, 0, 0.5, 1.0 / 6}, {HardSigmoid, nan, nan, 0},
		{HardSwish, -inf, zero, 0}, {HardSwish, inf, inf, 1}, {HardSwish, 0, 0, 0.5}, {HardSwish, nan, nan, 0},
		{HardSwish, math.MaxFloat32, math.MaxFloat32, 1},
		{Sigmoid, -inf, 0, 0}, {Sigmoid, inf, 1, 0}, {Sigmoid, 0, 0.5, 0.25}, {Sigmoid, nan, nan, nan}, {Sigmoid, -math.MaxFloat32, 0, 0},
		{Tanh, -inf, -1, 0}, {Tanh, inf, 1, 0}, {Tanh, zero, zero, 1}, {Tanh, nan, nan, nan},
		{Tanh, 0x1p-149, 0x1p-149, 1}, {Tanh, -20, -1, 1.6993418e-17},
		{SiLU, -inf, zero, zero}, {SiLU, inf, inf, 1}, {SiLU, 0, 0, 0.5}, {SiLU, nan, nan, nan}, {SiLU, math.MaxFloat32, math.MaxFloat32, 1},
		{ELU(2), -inf, -2, 0}, {ELU(2), inf, inf, 1}, {ELU(2), zero, zero, 2}, {ELU(2), 0, 0, 2}, {ELU(2), nan, nan, nan},
		{ELU(math.MaxFloat32), -math.MaxFloat32, -math.MaxFloat32, 0}, {ELU(0), -1, zero, 0},
		{Softplus, -inf, 0, 0}, {Softplus, inf, inf, 1}, {Softplus, 0, math.Ln2, 0.5}, {Softplus, nan, nan, nan},
		{Mish, -inf, zero, zero}, {Mish, inf, inf, 1}, {Mish, 0, 0, 0.6000001}, {Mish, nan, nan, nan},
		{GELU, -inf, zero, zero}, {GELU, inf, inf, 1}, {GELU, 0, 0, 0.5}, {GELU, nan, nan, nan}, {GELU, -math.MaxFloat32, zero, zero},
		{GELUTanh, -inf, zero, zero}, {GELUTanh, inf, inf, 1}, {GELUTanh, 0, 0, 0.5}, {GELUTanh, nan, nan, nan},
	} {
		for _, p := range Paths() {
			for n := 1; n <= 41; n += 8 { // in every place of a group, and in a part
				y, slope := slices.Repeat([]float32{c.z}, n), make([]float32, n)
				evaluate(p, c.act, y, slope)
				for i := range y {
					same := func(a, b float32) bool { _, ok := sameBits([]float32{a}, []float32{b}); return ok }
					if !same(y[i], c.value) && !(c.act == HardSwish && y[i] == c.value) || !(same(slope[i], c.slope) || slope[i] == c.slope) {
						t.Fatalf("%v, %d values: %v(%v) = %v with slope %v, want %v and %v", p, n, c.act, c.z, y[i], slope[i], c.value, c.slope)
					}
				}
			}
		}
	}
}

func TestActivationParameters(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		act  Activation
		want string
	}{
		{LeakyReLU(nan), "activation leaky_relu: slope is NaN, must be finite"},
		{LeakyReLU(inf), "activation leaky_relu: slope is +Inf, must be finite"},
		{Clip(nan, 1), "activation clip: lo is NaN, must be finite"},
		{Clip(0, inf), "activation clip: hi is +Inf, must be finite"},
		{Clip(-inf, 0), "activation clip: lo is -Inf, must be finite"},
		{Clip(2, 1), "activation clip: lo is 2, must be at most hi, which is 1"},
		{ELU(nan), "activation elu: alpha is NaN, must be finite"},
		{ELU(-inf), "activation elu: alpha is -Inf, must be finite"},
		{Activation{kind: numActs}, fmt.Sprintf("activation Activation(%d) is unknown", numActs)},
	} {
		_, err := NewPlan(Shape{2, 1, 1}, WithActivation(c.act))
		if !errors.Is(err, ErrOption) || err.Error() != "batchnorm: "+c.want {
			t.Errorf("the error is %v, want %q", err, c.want)
		}
	}
	names := map[string]bool{}
	for _, act := range append(sweptActivations, Identity) {
		if err := act.valid(); err != nil {
			t.Errorf("%v: %v", act, err)
		}
		if s := act.String(); names[s] || strings.Contains(s, " ") {
			t.Errorf("the name %q stands for two activations, or has a space", s)
		}
		names[act.String()] = true
	}
	if s := LeakyReLU(0.01).String(); s != "leaky_relu(0.01)" {
		t.Errorf("LeakyReLU(0.01) is called %q", s)
	}
	if s := Clip(-1, 2.5).String(); s != "clip(-1,2.5)" {
		t.Errorf("Clip(-1, 2.5) is called %q", s)
	}
}
