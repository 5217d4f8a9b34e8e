package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/peers/client"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// fakeRival computes with this package, and spoils some results.
type fakeRival struct {
	*own
	out    map[peer.Op]*outputs
	spoil  func(o *peer.Outputs)
	refuse func(p peer.Problem, threads int) bool
	fails  peer.Op // the operation whose second run fails
	loads  []peer.Problem
	closed int
}

func (f *fakeRival) Load(p peer.Problem, threads int) error {
	f.loads = append(f.loads, p)
	if p.Layout == peer.NCHW8c || f.refuse != nil && f.refuse(p, threads) {
		return peer.Unsupported("layout %s", p.Layout)
	}
	outer, channels, inner := p.Shape()
	in := &inputs{
		dims: batchnorm.Shape{Outer: outer, Channels: channels, Inner: inner},
		x:    p.X, dy: p.DY, gamma: p.Gamma, beta: p.Beta, runningMean: p.Mean, runningVar: p.Var,
		mean: make([]float64, channels), invstd: make([]float64, channels),
	}
	t := testCase{dims: in.dims}
	var err error
	f.own, err = newOwn(t, in, p.ReLU, threads, batchnorm.DefaultPath())
	f.out = map[peer.Op]*outputs{}
	return err
}

func (f *fakeRival) Run(op peer.Op, times int) ([]time.Duration, error) {
	if op == f.fails && f.out[op] != nil {
		return nil, errors.New("it has had enough")
	}
	if op == peer.Backward { // of the batch that forward has seen
		if f.out[peer.Forward] == nil {
			return nil, errors.New("backward needs a forward before it")
		}
		copy(f.in.mean, f.out[peer.Forward].mean)
		copy(f.in.invstd, f.out[peer.Forward].invstd)
	}
	took, err := f.own.Run(op, times)
	f.out[op] = f.own.out
	f.own.out = newOutputs(f.in)
	return took, err
}

func (f *fakeRival) Outputs() (peer.Outputs, error) {
	var o peer.Outputs
	for op, out := range f.out {
		switch op {
		case peer.Forward:
			o.Y = out.tensor
		case peer.Inference:
			o.Inference = out.tensor
		case peer.Backward:
			o.DX, o.DGamma, o.DBeta = out.tensor, out.dgamma, out.dbeta
		}
	}
	if f.spoil != nil {
		f.spoil(&o)
	}
	return o, nil
}

func (f *fakeRival) Close() error {
	f.closed++
	return nil
}

// peerConfig parses flags, as the program does.
func peerConfig(t *testing.T, args string) (config, caseSet) {
	t.Helper()
	c, err := parse(strings.Fields("-peers -reps 1 -mintime 0 "+args), nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := c.load()
	if err != nil {
		t.Fatal(err)
	}
	return c, set
}

func TestPeersWithFakes(t *testing.T) {
	c, set := peerConfig(t, "-only 8x64x16x16 -workers 1,2 -with onednn,onednn8c,torch,spago,archsimd,generic")
	fakes := map[string]*fakeRival{
		"onednn":   {},
		"torch":    {spoil: func(o *peer.Outputs) { o.DX[7] = float32(math.NaN()) }},
		"archsimd": {fails: peer.Inference},
	}
	missing := errors.New("") // replaced below
	start := func(program string) (rival, string, error) {
		if f := fakes[program]; f != nil {
			return f, program + " 1.0", nil
		}
		missing = fmt.Errorf("%s: %w: apt-get install %[1]s", program, client.ErrMissing)
		return nil, "", missing
	}
	var stdout bytes.Buffer
	r, err := c.peers(set, &stdout, nil, start)
	if err != nil {
		t.Fatal(err)
	}
	r.summary(&stdout)
	rows := map[string]int{}
	for _, row := range r.Rows {
		rows[row.Contest]++
		if row.Ratio != row.PeerNanoseconds/row.Nanoseconds || row.Ratio <= 0 || row.Rounds < 1 || row.Difference != 0 {
			t.Errorf("%+v", row)
		}
		if row.Contest == "torch" && strings.HasPrefix(row.Operation, "backward") {
			t.Errorf("results with NaN count: %+v", row)
		}
	}
	cells := 2 * 2 * len(peerOps) // layouts, workers
	want := map[string]int{"onednn": cells, "torch": cells * 2 / 3, "archsimd": 1}
	if batchnorm.DefaultPath() != batchnorm.PathGeneric {
		want["generic"] = cells
	}
	for name, n := range want {
		if rows[name] != n {
			t.Errorf("%d rows of %s, want %d", rows[name], name, n)
		}
	}
	if rows["onednn8c"] != 0 || r.Refused["onednn8c"] != cells/2 {
		t.Errorf("%d rows in a layout that is not offered, %d refused, want %d", rows["onednn8c"], r.Refused["onednn8c"], cells/2)
	}
	if !slices.Equal(r.Missing, []string{missing.Error()}) {
		t.Errorf("missing: %q", r.Missing)
	}
	text := stdout.String()
	for _, want := range []string{
		"left out: spago: " + client.ErrMissing.Error() + ": apt-get install spago",
		"onednn     onednn 1.0",
		"FAIL torch: backward nchw 8x64x16x16, 1: results differ by NaN of the largest",
		"FAIL archsimd: nchw 8x64x16x16: it has had enough",
		"onednn8c does not offer 12 cells.",
		", goal 2.5; ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the output lacks %q:\n%s", want, text)
		}
	}
	if want := cells/3 + 1; len(r.Failures) != want {
		t.Errorf("%d failures, want %d: %q", len(r.Failures), want, r.Failures)
	}
	if !(&report{Peers: r}).failed() {
		t.Error("the report is a success")
	}
	for name, f := range fakes {
		if f.closed != 1 {
			t.Errorf("%s is closed %d times", name, f.closed)
		}
	}
	// Tensors of the case, in its layout.
	for i, p := range fakes["onednn"].loads {
		if p.N != 8 || p.C != 64 || p.H != 16 || p.W != 16 || p.Epsilon != batchnorm.DefaultEpsilon {
			t.Errorf("load %d is of %+v", i, p)
		}
	}
}

// The peers that need nothing but Go, as a whole.
func TestPeersPlain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.json")
	var stdout, stderr bytes.Buffer
	args := []string{"-peers", "-reps", "1", "-mintime", "0", "-only", "60x100", "-workers", "1",
		"-with", "plain,generic,plain/gen", "-ops", "forward,backward+relu", "-json", file}
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	if code := run(args, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit status %d\n%s%s", code, &stdout, &stderr)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 || os.Getenv("TMPDIR") != temporary {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	want := 4 // plain, plain/gen
	if len(r.Paths) > 1 {
		want = 6
	}
	if r.Peers == nil || len(r.Peers.Rows) != want || !strings.HasPrefix(r.Peers.Names["plain"], "plain loops") {
		t.Errorf("peers: %+v", r.Peers)
	}
}

func TestPeersLeaveOutLarge(t *testing.T) {
	c, set := peerConfig(t, "-with generic -maxmb 1 -workers 1 -ops inference")
	set.cases = slices.DeleteFunc(set.cases, func(t testCase) bool { return t.shape != "256x1024" && t.shape != "32x512x7x7" })
	var stdout bytes.Buffer
	r, err := c.peers(set, &stdout, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.summary(&stdout)
	if len(r.LeftOut) != 2 || len(r.Rows) > 1 ||
		!strings.Contains(stdout.String(), "left out: nchw 32x512x7x7: 4 MB a tensor (-maxmb 4 takes it in)") {
		t.Errorf("left out: %q\n%s", r.LeftOut, &stdout)
	}
}

// A peer gets no tensor that takes it too long; the others do.
func TestPeersLimited(t *testing.T) {
	c, set := peerConfig(t, "-with onednn,spago -only 32x512x7x7 -workers 1 -ops inference")
	c.contests[1].most = 1
	fakes := map[string]*fakeRival{"onednn": {}, "spago": {}}
	r, err := c.peers(set, io.Discard, nil, func(program string) (rival, string, error) { return fakes[program], program, nil })
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 2 || len(fakes["spago"].loads) > 0 ||
		!slices.Equal(r.LeftOut, []string{"spago: tensors of more than 1 MB, which take it too long"}) {
		t.Errorf("rows %+v, left out %q", r.Rows, r.LeftOut)
	}
}

func TestStandings(t *testing.T) {
	row := func(contest string, ratio float64) peerRow {
		return peerRow{Contest: contest, Operation: "forward", Layout: "nc", Shape: "1x2", Workers: 1, Ratio: ratio}
	}
	for _, c := range []struct {
		rows    []peerRow
		mean    float64
		least   float64
		verdict string
	}{
		{[]peerRow{row("onednn", 2), row("onednn", 8)}, 4, 2, "mean 4.00, goal 2.5; 0 of 2 cells below 1"},
		{[]peerRow{row("onednn", 0.5), row("onednn", 8), row("torch", 100)}, 2, 0.5, "mean 2.00, goal 2.5; 1 of 2 cells below 1"},
		{[]peerRow{row("archsimd", 0.5), row("archsimd", 18)}, 3, 0.5, "mean 3.00, goal 2"},
		{[]peerRow{row("gomlx", 3)}, 3, 3, ""},
	} {
		s := standings(c.rows)[0]
		if math.Abs(s.mean-c.mean) > 1e-9 || s.least.Ratio != c.least || s.verdict() != c.verdict {
			t.Errorf("mean %v, least %v, %q; want %+v", s.mean, s.least.Ratio, s.verdict(), c)
		}
	}
	if s := standings(nil); len(s) != 0 {
		t.Errorf("standings of nothing: %+v", s)
	}
}

func TestDistance(t *testing.T) {
	nan := float32(math.NaN())
	for _, c := range []struct {
		got, want []float32
		off       float64
	}{
		{[]float32{1, 2}, []float32{1, 2}, 0},
		{[]float32{1, -3}, []float32{1, -4}, 0.25},
		{[]float32{0}, []float32{0}, 0},
		{[]float32{1}, []float32{0}, math.Inf(1)},
		{[]float32{nan, 1}, []float32{1, 1}, math.NaN()},
		{nil, []float32{1}, math.Inf(1)},
	} {
		if off := distance(c.got, c.want); off != c.off && !(off != off && c.off != c.off) {
			t.Errorf("distance of %v from %v is %v, want %v", c.got, c.want, off, c.off)
		}
	}
}

func TestDuel(t *testing.T) {
	var order strings.Builder
	side := func(name string, d time.Duration) func(int) ([]time.Duration, error) {
		return func(times int) ([]time.Duration, error) {
			fmt.Fprintf(&order, "%s%d ", name, times)
			return slices.Repeat([]time.Duration{d}, times), nil
		}
	}
	e := effort{reps: 3, maxTime: time.Minute}
	const slow = time.Second
	own, other, rounds, err := e.duel(side("o", 250*time.Microsecond), side("t", slow), slow)
	if err != nil || own != 250e3 || other != 1e9 || rounds != 3 {
		t.Errorf("%v and %v ns, %d rounds, %v", own, other, rounds, err)
	}
	if want := "t1 o1 o1 o1 t1 o4 t1 o4 "; order.String() != want {
		t.Errorf("the order is %q, want %q", order.String(), want)
	}
	// One that takes too long has run enough.
	order.Reset()
	e.maxTime = slow / 2
	own, other, rounds, err = e.duel(side("o", 250*time.Microsecond), side("t", slow), slow)
	if err != nil || own != 250e3 || other != 1e9 || rounds != 1 || order.String() != "o1 o1 o1 " {
		t.Errorf("%v and %v ns, %d rounds, %v, in the order %q", own, other, rounds, err, order.String())
	}
	failure := errors.New("failure")
	broken := func(int) ([]time.Duration, error) { return nil, failure }
	if _, _, _, err := e.duel(side("o", 1), broken, 1); err != failure {
		t.Error(err)
	}
	if _, _, _, err := e.duel(side("o", 1), func(int) ([]time.Duration, error) { return nil, nil }, 1); err == nil {
		t.Error("a call without a time is no error")
	}
}
