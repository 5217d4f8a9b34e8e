package batchnorm_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// raceBuild is true in a build with the race detector.
var raceBuild bool

// race is a pair of calls, of which one writes memory that the other writes or reads.
type race struct {
	shape           batchnorm.Shape
	backward, reads bool
	options         []batchnorm.Option
}

// races are the ways to do so on this machine, by name.
var races = func() map[string]race {
	m := map[string]race{}
	for _, path := range batchnorm.Paths() {
		for schedule, options := range map[string][]batchnorm.Option{
			"usual": nil, "pipelined": {batchnorm.WithExtremeSchedule(false)}, "flat": {batchnorm.WithExtremeSchedule(true)},
		} {
			options = append(options, batchnorm.WithPath(path))
			for layout, shape := range map[string]batchnorm.Shape{
				"rows": {Outer: 4, Channels: 8, Inner: 61},
				"cols": {Outer: 61, Channels: 41, Inner: 1},
			} {
				for _, backward := range []bool{false, true} {
					for _, reads := range []bool{false, true} {
						name := fmt.Sprintf("%v/%s/%s/backward=%t/reads=%t", path, schedule, layout, backward, reads)
						m[name] = race{shape, backward, reads, options}
					}
				}
			}
		}
	}
	return m
}()

// TestRaceIsCaught checks that the race detector sees all reads and writes of the kernels,
// in assembly as well.
func TestRaceIsCaught(t *testing.T) {
	needThorough(t)
	binary := raceBinary(t)
	for name := range races {
		t.Run(name, func(t *testing.T) {
			out, code := runChild(t, binary, "TestRace", name)
			if code != 66 || !strings.Contains(out, "WARNING: DATA RACE") {
				t.Errorf("exit status is %d, want 66 and the report of a data race:\n%s", code, out)
			}
		})
	}
}

// raceBinary returns a test binary with the race detector: the running one, or
// else one that it builds.
func raceBinary(t *testing.T) string {
	t.Helper()
	if raceBuild {
		return ownBinary(t)
	}
	needThorough(t) // builds a binary with the race detector; go test -race has one
	binary := filepath.Join(t.TempDir(), "race.test")
	out, err := tryGoCommand(t, nil, "test", "-race", "-c", "-o", binary, ".")
	if unsupported := regexp.MustCompile(`-race (requires cgo|is not supported)|C compiler`); err != nil && unsupported.MatchString(out) {
		t.Skipf("the race detector can't be used here: %s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// TestConcurrentCalls calls one plan from several goroutines, with buffers of
// their own, and expects the bits of calls that are alone. In a race build it
// also checks that the calls have no memory in common.
func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	const callers = 8
	rounds := 3
	if !thorough() {
		rounds = 1
	}
	for _, s := range []batchnorm.Shape{
		{Outer: 4, Channels: 24, Inner: 300},  // whole channels are the tasks
		{Outer: 1, Channels: 2, Inner: 70000}, // parts of channels
		{Outer: 5000, Channels: 32, Inner: 1}, // rows
		{Outer: 300, Channels: 200, Inner: 1}, // columns, for the statistics
	} {
		t.Run(s.String(), func(t *testing.T) {
			c := concurrent{
				x: gen.Normal(1, s.Len(), 2, 3), dy: gen.Normal(2, s.Len(), 0, 1), residual: gen.Normal(3, s.Len(), 0, 1),
				gamma: gen.Uniform(4, s.Channels, -2, 2), beta: gen.Uniform(5, s.Channels, -2, 2),
				mean: gen.Normal(6, s.Channels, 2, 1), variance: gen.Uniform(7, s.Channels, 1, 9),
			}
			forEachPath(t, func(t *testing.T, path batchnorm.Path) {
				options := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithActivation(batchnorm.ReLU)}
				want, err := c.run(newPlan(t, s, options...))
				noError(t, err)
				shared := newPlan(t, s, append(options, batchnorm.WithWorkers(3))...)
				var wg sync.WaitGroup
				for range callers {
					start(&wg, func() {
						for range rounds {
							got, err := c.run(shared)
							if err != nil {
								t.Error(err)
								return
							}
							for name := range want {
								expectBits(t, name, got[name], want[name])
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// concurrent has the memory that several goroutines read.
type concurrent struct {
	x, dy, residual, gamma, beta, mean, variance []float32
}

// run does every operation and returns the outputs, by name.
func (c *concurrent) run(p *batchnorm.Plan) (map[string][]float32, error) {
	n, channels := len(c.x), len(c.gamma)
	out := map[string][]float32{
		"y": make([]float32, n), "inference": make([]float32, n), "dx": make([]float32, n), "dresidual": make([]float32, n),
		"dgamma": make([]float32, channels), "dbeta": make([]float32, channels),
		"running mean": slices.Clone(c.mean), "running variance": slices.Clone(c.variance),
	}
	mean, invstd := make([]float64, channels), make([]float64, channels)
	if err := p.Forward(batchnorm.ForwardArgs{
		X: c.x, Residual: c.residual, Gamma: c.gamma, Beta: c.beta, Y: out["y"], Mean: mean, InvStd: invstd,
		RunningMean: out["running mean"], RunningVar: out["running variance"],
	}); err != nil {
		return nil, err
	}
	if err := p.Inference(batchnorm.InferenceArgs{
		X: c.x, Residual: c.residual, Gamma: c.gamma, Beta: c.beta, Mean: c.mean, Var: c.variance, Y: out["inference"],
	}); err != nil {
		return nil, err
	}
	return out, p.Backward(batchnorm.BackwardArgs{
		DY: c.dy, X: c.x, Residual: c.residual, Gamma: c.gamma, Beta: c.beta, Mean: mean, InvStd: invstd,
		DX: out["dx"], DResidual: out["dresidual"], DGamma: out["dgamma"], DBeta: out["dbeta"],
	})
}
