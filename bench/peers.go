package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/bench/peers/client"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// contest is a comparison of this package with another implementation.
type contest struct {
	name    string
	program string  // of bench/peers; none: the package's own path in pure Go
	blocked bool    // its tensors are in blocks of 8 channels, ours in NCHW
	pureGo  bool    // it is compared with our path in pure Go instead of the fastest
	most    int     // largest tensor in MB, for peers that take too long; 0: any
	goal    float64 // for the geometric mean of the ratios; 0: none
	least   float64 // goal for every ratio; 0: none
}

var contests = []contest{
	{name: "onednn", program: "onednn", goal: 2.5, least: 1},
	{name: "onednn8c", program: "onednn", blocked: true, goal: 1.5},
	{name: "torch", program: "torch", goal: 4, least: 1},
	{name: "gomlx", program: "gomlx", most: 64},
	{name: "spago", program: "spago", most: 4},
	{name: "archsimd", program: "archsimd", goal: 2},
	{name: "plain", program: "plain"},
	{name: "generic", goal: 6},
	{name: "plain/gen", program: "plain", pureGo: true, goal: 1},
}

func (k contest) String() string { return k.name }

// peersNote explains the table of peers.
const peersNote = `A number is the peer's time over ours: above 1 we are faster. onednn8c is oneDNN's blocked
layout nChw8c against our NCHW; generic is our own path in pure Go; plain/gen compares plain loops
in Go with our path in pure Go. All others are compared with our fastest path. In a cell both have
the same data, layout and number of threads. Their calls alternate, each process times its own, and
the least time counts. Before that the peer's results agree with ours, and ours with the reference.
- is an operation that a peer does not offer.`

// peerOps are the operations that peers have.
var peerOps = []op{
	{"forward", forward, false, false, 8},
	{"inference", inference, false, false, 8},
	{"backward", backward, false, false, 12},
	{"forward+relu", forward, true, false, 8},
	{"inference+relu", inference, true, false, 8},
	{"backward+relu", backward, true, false, 12},
}

var peerOpOf = map[opKind]peer.Op{forward: peer.Forward, inference: peer.Inference, backward: peer.Backward}

// peerLimit is the largest difference of a peer's results from ours, relative to the
// largest value. A peer beyond it computes something else. It is loose because several
// peers add up in float32.
const peerLimit = 1e-3

// peerRow is one operation on one tensor, by a peer and by us.
type peerRow struct {
	Contest         string  `json:"contest"`
	Operation       string  `json:"operation"`
	Layout          string  `json:"layout"`
	Shape           string  `json:"shape"`
	Workers         int     `json:"workers"`
	Path            string  `json:"path"`
	Nanoseconds     float64 `json:"ns"`
	PeerNanoseconds float64 `json:"peer_ns"`
	Ratio           float64 `json:"ratio"`
	Difference      float64 `json:"difference"` // of the results, relative to the largest
	Rounds          int     `json:"rounds"`
}

func (r peerRow) cell() string {
	return fmt.Sprintf("%s %s %s, %d", r.Operation, r.Layout, r.Shape, r.Workers)
}

// peerResults holds the results of a run against peers.
type peerResults struct {
	Names    map[string]string `json:"names"`             // of the programs that ran, with versions
	Missing  []string          `json:"missing,omitempty"` // peers that are not on the machine, and their packages
	LeftOut  []string          `json:"left_out,omitempty"`
	Refused  map[string]int    `json:"refused,omitempty"` // by contest: cells that the peer does not offer
	Rows     []peerRow         `json:"rows"`
	Failures []string          `json:"failures,omitempty"`
}

// rival is a peer that runs. [client.Peer] is one.
type rival interface {
	Load(p peer.Problem, threads int) error
	Run(op peer.Op, times int) ([]time.Duration, error)
	Outputs() (peer.Outputs, error)
	Close() error
}

// startPeer starts a peer. Tests have rivals of their own.
func startPeer(program string) (rival, string, error) {
	p, err := client.Start(program)
	if err != nil {
		return nil, "", err
	}
	return p, p.Name, nil
}

// scratch makes a folder for temporary files, which are large for peers. It is removed
// at the end, and when the run is interrupted.
func scratch() (end func(), err error) {
	const variable = "TMPDIR"
	folder, err := os.MkdirTemp("", "batchnorm-bench-")
	if err != nil {
		return nil, err
	}
	before, had := os.LookupEnv(variable)
	os.Setenv(variable, folder)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		if _, ok := <-interrupted; ok {
			os.RemoveAll(folder)
			os.Exit(exitInterrupted)
		}
	}()
	return func() {
		signal.Stop(interrupted)
		close(interrupted)
		if had {
			os.Setenv(variable, before)
		} else {
			os.Unsetenv(variable)
		}
		os.RemoveAll(folder)
	}, nil
}

// peerRun is a run against peers.
type peerRun struct {
	config
	start    func(program string) (rival, string, error)
	contests []contest
	w        io.Writer
	progress *progress
	results  peerResults
	running  map[string]rival
	tried    map[string]trial // the last of each program
	gone     map[string]bool  // programs that can't be started, or have died
}

// lasting is the size in bytes up to which peers keep tensors while others run.
const lasting = 256 << 20

// peers compares with every peer, and prints each row when it is known.
func (c config) peers(set caseSet, w io.Writer, bar *progress, start func(string) (rival, string, error)) (_ *peerResults, err error) {
	p := &peerRun{
		config: c, start: start, w: w, progress: bar,
		results: peerResults{Names: map[string]string{}, Refused: map[string]int{}},
		running: map[string]rival{}, tried: map[string]trial{}, gone: map[string]bool{},
	}
	for _, k := range c.contests {
		// Without assembly, the fastest path is the one in pure Go.
		if c.path != batchnorm.PathGeneric || k.program != "" && !k.pureGo {
			p.contests = append(p.contests, k)
		}
	}
	defer func() { err = errors.Join(err, p.closeAll()) }()
	for _, k := range p.contests { // missing peers are printed first
		if k.program != "" {
			p.rival(k.program)
		}
	}
	p.header()
	for _, t := range set.cases {
		if bytes := 4 * t.dims.Len(); bytes > c.maxMB<<20 {
			p.results.LeftOut = append(p.results.LeftOut, fmt.Sprintf("%s %s: %d MB a tensor (-maxmb %d takes it in)",
				t.layout, t.shape, ceilDiv(bytes, 1<<20), ceilDiv(bytes, 1<<20)))
		} else if err := p.meet(t); err != nil {
			return nil, fmt.Errorf("%s %s: %w", t.layout, t.shape, err)
		}
		p.progress.add(c.peerWork(t))
	}
	return &p.results, nil
}

// peersWork is how much peers adds to the progress.
func (c config) peersWork(set caseSet) int {
	total := 0
	for _, t := range set.cases {
		total += c.peerWork(t)
	}
	return total
}

// peerWork is a guess of how many microseconds a case takes.
func (c config) peerWork(t testCase) int {
	if 4*t.dims.Len() > c.maxMB<<20 {
		return 1
	}
	// Loading and checking cost as much as some calls.
	return len(c.contests) * len(c.workers) * (len(peerOps)*int(c.peerEffort.minTime/time.Microsecond) + t.dims.Len()/8 + 1)
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func (p *peerRun) closeAll() error {
	var err error
	for program, r := range p.running {
		err = errors.Join(err, r.Close())
		delete(p.running, program)
		delete(p.tried, program)
	}
	return err
}

// rival returns a running peer, or nil if it can't run.
func (p *peerRun) rival(program string) rival {
	if r := p.running[program]; r != nil || p.gone[program] {
		return r
	}
	p.progress.describe("start of " + program)
	r, name, err := p.start(program)
	if err != nil {
		p.gone[program] = true
		if errors.Is(err, client.ErrMissing) {
			p.results.Missing = append(p.results.Missing, err.Error())
			fmt.Fprintf(p.w, "left out: %v\n", err)
		} else {
			p.fail("%v", err)
		}
		return nil
	}
	if p.results.Names[program] == "" {
		p.results.Names[program] = name
		fmt.Fprintf(p.w, "%-9s  %s\n", program, name)
	}
	p.running[program] = r
	return r
}

func (p *peerRun) fail(format string, args ...any) {
	p.results.Failures = append(p.results.Failures, fmt.Sprintf(format, args...))
}

// meet compares everything on one case.
func (p *peerRun) meet(t testCase) error {
	runtime.GC() // frees the last case's tensors now instead of during the measurement
	in, err := t.inputs(nil, peerLimit)
	if err != nil {
		return err
	}
	for _, relu := range []bool{false, true} {
		list := slices.DeleteFunc(slices.Clone(p.peerOps), func(o op) bool { return o.relu != relu })
		if len(list) == 0 {
			continue
		}
		want, err := p.checked(t, in, list)
		if err != nil {
			return err
		}
		for _, threads := range p.workers {
			ratios := map[string][]float64{} // by operation, in the order of the contests
			mine := map[batchnorm.Path]*own{}
			for _, path := range batchnorm.Paths() {
				if mine[path], err = newOwn(t, in, relu, threads, path); err != nil {
					return err
				}
			}
			for i, k := range p.contests {
				p.progress.describe(fmt.Sprintf("%s %s: %s", t.layout, t.shape, k))
				rows := p.face(k, t, in, relu, threads, list, mine, want)
				for _, r := range rows {
					if ratios[r.Operation] == nil {
						ratios[r.Operation] = make([]float64, len(p.contests))
					}
					ratios[r.Operation][i] = r.Ratio
				}
				p.results.Rows = append(p.results.Rows, rows...)
			}
			for _, o := range list {
				if ratios[o.name] != nil {
					p.line(o, t, threads, ratios[o.name])
				}
			}
		}
		if 4*t.dims.Len() > lasting {
			if err := p.closeAll(); err != nil {
				return err
			}
		}
	}
	return nil
}

// checked returns the results of the operations that are right on every path, by name.
// A wrong result is a failure of the run.
func (p *peerRun) checked(t testCase, in *inputs, list []op) (map[string]*outputs, error) {
	paths := []batchnorm.Path{p.path}
	if p.path != batchnorm.PathGeneric {
		paths = append(paths, batchnorm.PathGeneric)
	}
	want := map[string]*outputs{}
	for _, o := range list {
		p.progress.describe(fmt.Sprintf("%s %s: check of %s", t.layout, t.shape, o))
		outs := make([]*outputs, len(paths))
		for i, path := range paths {
			plan, err := o.plan(t.dims, path, runtime.GOMAXPROCS(0))
			if err != nil {
				return nil, err
			}
			outs[i] = newOutputs(in)
			if err := o.run(plan, in, outs[i]); err != nil {
				return nil, err
			}
		}
		right := true
		for i, v := range o.check(in, outs, func(int) {}) {
			for _, f := range v.failures {
				p.fail("%s %s %s %v: %s", o, t.layout, t.shape, paths[i], f)
				right = false
			}
		}
		if right {
			want[o.name] = outs[0]
		}
	}
	return want, nil
}

// face compares with one peer. It returns a row for every operation that the peer has
// and whose results are right.
func (p *peerRun) face(k contest, t testCase, in *inputs, relu bool, threads int, list []op,
	mine map[batchnorm.Path]*own, want map[string]*outputs) []peerRow {
	if k.most > 0 && 4*t.dims.Len() > k.most<<20 {
		if text := fmt.Sprintf("%s: tensors of more than %d MB, which take it too long", k, k.most); !slices.Contains(p.results.LeftOut, text) {
			p.results.LeftOut = append(p.results.LeftOut, text)
		}
		return nil
	}
	path := p.path
	if k.pureGo {
		path = batchnorm.PathGeneric
	}
	var tried trial
	theirs := mine[batchnorm.PathGeneric].Run
	if k.program == "" {
		tried.differences = map[opKind]float64{}
		for _, o := range list {
			tried.differences[o.kind] = 0 // checked before
		}
	} else {
		r := p.rival(k.program)
		if r == nil || k.blocked && t.layout != "nchw" {
			return nil
		}
		theirs = r.Run
		problem := t.problem(in, relu)
		if k.blocked {
			problem.Layout = peer.NCHW8c
		}
		cell := fmt.Sprintf("%s %s %s %t %d", t.layout, t.shape, problem.Layout, relu, threads)
		if tried = p.tried[k.program]; tried.cell != cell { // several contests may have the same peer
			var err error
			if tried, err = try(r, problem, threads, list, want); err != nil {
				p.lost(k, t, err)
				return nil
			}
			tried.cell = cell
			p.tried[k.program] = tried
		}
		p.results.Refused[k.name] += tried.refused
	}
	var rows []peerRow
	for _, o := range list {
		difference, ok := tried.differences[o.kind]
		if !ok || want[o.name] == nil {
			continue
		}
		row := peerRow{
			Contest: k.name, Operation: o.name, Layout: t.layout, Shape: t.shape,
			Workers: threads, Path: path.String(), Difference: difference,
		}
		if !(difference <= peerLimit) { // NaN among them
			p.fail("%s: %s: results differ by %.1e of the largest, must be at most %.0e", k, row.cell(), difference, float64(peerLimit))
			continue
		}
		what := peerOpOf[o.kind]
		var err error
		row.Nanoseconds, row.PeerNanoseconds, row.Rounds, err = p.peerEffort.duel(
			func(times int) ([]time.Duration, error) { return mine[path].Run(what, times) },
			func(times int) ([]time.Duration, error) { return theirs(what, times) }, tried.first[o.kind])
		if err != nil {
			p.lost(k, t, err)
			return rows
		}
		row.Ratio = row.PeerNanoseconds / row.Nanoseconds
		rows = append(rows, row)
	}
	return rows
}

// lost notes a peer that has failed. The others go on without it.
func (p *peerRun) lost(k contest, t testCase, err error) {
	if r := p.running[k.program]; r != nil {
		r.Close() // an error here comes from the first one
		delete(p.running, k.program)
	}
	p.gone[k.program] = true
	p.fail("%s: %s %s: %v", k, t.layout, t.shape, err)
}

// trial is the result of a peer's first calls on a problem.
type trial struct {
	cell        string // identifies the problem
	first       map[opKind]time.Duration
	differences map[opKind]float64 // from our results, if those are right
	refused     int                // operations that are not offered
}

// try gives the peer a problem and runs each of the operations once, and before a
// backward always a forward.
func try(r rival, problem peer.Problem, threads int, list []op, want map[string]*outputs) (trial, error) {
	result := trial{first: map[opKind]time.Duration{}, differences: map[opKind]float64{}}
	if err := r.Load(problem, threads); errors.Is(err, peer.ErrUnsupported) {
		result.refused = len(list)
		return result, nil
	} else if err != nil {
		return result, err
	}
	wanted := map[opKind]bool{}
	for _, o := range list {
		wanted[o.kind] = true
	}
	wanted[forward] = wanted[forward] || wanted[backward]
	for _, kind := range []opKind{forward, inference, backward} {
		if !wanted[kind] {
			continue
		}
		took, err := r.Run(peerOpOf[kind], 1)
		if errors.Is(err, peer.ErrUnsupported) {
			continue
		}
		if err == nil && len(took) != 1 {
			err = fmt.Errorf("%d times for a call", len(took))
		}
		if err != nil {
			return result, err
		}
		result.first[kind] = max(took[0], 1) // some clocks are coarse
	}
	out, err := r.Outputs()
	if err != nil {
		return result, err
	}
	for _, o := range list {
		if result.first[o.kind] == 0 {
			result.refused++
		} else if want[o.name] != nil {
			result.differences[o.kind] = o.distance(out, want[o.name])
		}
	}
	return result, nil
}

// distance returns the difference of a peer's results from ours.
func (o op) distance(got peer.Outputs, want *outputs) float64 {
	switch o.kind {
	case forward:
		return distance(got.Y, want.tensor)
	case inference:
		return distance(got.Inference, want.tensor)
	default:
		return max(distance(got.DX, want.tensor), distance(got.DGamma, want.dgamma), distance(got.DBeta, want.dbeta))
	}
}

// distance returns the largest difference relative to the largest value wanted. It is
// NaN if a value is NaN.
func distance(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var off, size float64
	for i, v := range want {
		off = max(off, math.Abs(float64(got[i])-float64(v)))
		size = max(size, math.Abs(float64(v)))
	}
	if off == 0 {
		return 0
	}
	return off / size
}

// problem returns the case in the form for peers.
func (t testCase) problem(in *inputs, relu bool) peer.Problem {
	layout := peer.NHWC
	if t.layout == "nchw" {
		layout = peer.NCHW
	}
	return peer.Problem{
		N: t.image[0], C: t.image[1], H: t.image[2], W: t.image[3],
		Layout: layout, ReLU: relu, Epsilon: batchnorm.DefaultEpsilon,
		X: in.x, DY: in.dy, Gamma: in.gamma, Beta: in.beta, Mean: in.runningMean, Var: in.runningVar,
	}
}

// own is this package, run as a peer is.
type own struct {
	plan *batchnorm.Plan
	in   *inputs
	out  *outputs
}

func newOwn(t testCase, in *inputs, relu bool, threads int, path batchnorm.Path) (*own, error) {
	plan, err := op{relu: relu}.plan(t.dims, path, threads)
	if err != nil {
		return nil, err
	}
	return &own{plan, in, newOutputs(in)}, nil
}

// Run runs an operation so many times and returns the time of each.
func (w *own) Run(what peer.Op, times int) ([]time.Duration, error) {
	i := slices.IndexFunc(peerOps, func(o op) bool { return peerOpOf[o.kind] == what })
	took := make([]time.Duration, times)
	for k := range took {
		start := time.Now()
		if err := peerOps[i].run(w.plan, w.in, w.out); err != nil {
			return nil, err
		}
		took[k] = time.Since(start)
	}
	return took, nil
}

// A turn of one of the two takes turnTime, if that is not more than mostCalls.
const (
	turnTime  = time.Millisecond
	mostCalls = 100

	probes    = 3                     // first calls, for the number of calls in a turn
	probeTime = 20 * time.Millisecond // after a call that takes longer there is no further probe
)

// duel returns the least time of a call of ours and of theirs, in nanoseconds.
// The two alternate. first is the time of a call of theirs that was made before: if it
// exceeds the time for the whole duel, theirs is not called again.
func (e effort) duel(ours, theirs func(times int) ([]time.Duration, error), first time.Duration) (own, other float64, rounds int, err error) {
	sides := [2]func(int) ([]time.Duration, error){theirs, ours}
	least := [2]time.Duration{math.MaxInt64, math.MaxInt64}
	calls := [2]int{1, 1}
	turn := func(i int) error {
		took, err := sides[i](calls[i])
		if err == nil && len(took) != calls[i] {
			err = fmt.Errorf("%d times for %d calls", len(took), calls[i])
		}
		if err != nil {
			return err
		}
		least[i] = min(least[i], max(slices.Min(took), 1)) // some clocks are coarse
		return nil
	}
	slow := e.maxTime > 0 && first > e.maxTime
	if slow {
		least[0] = first
	}
	start := time.Now()
	for i := range sides { // to know how many calls make a turn
		for n := 0; n < probes && !(i == 0 && slow); n++ {
			if err := turn(i); err != nil {
				return 0, 0, 0, err
			}
			if least[i] > probeTime {
				break
			}
		}
		calls[i] = min(max(int(turnTime/least[i]), 1), mostCalls)
	}
	for rounds = 1; ; rounds++ { // the probes are one
		spent := time.Since(start)
		if slow || spent >= e.maxTime || rounds >= e.reps && spent >= e.minTime {
			return float64(least[1]), float64(least[0]), rounds, nil
		}
		for i := range sides {
			if err := turn(i); err != nil {
				return 0, 0, 0, err
			}
		}
	}
}

// ---- output

func (p *peerRun) header() {
	fmt.Fprintf(p.w, "\n%-14s  %-6s  %14s  %7s", "operation", "layout", "shape", "workers")
	for _, k := range p.contests {
		fmt.Fprintf(p.w, "  %9s", k)
	}
	fmt.Fprintln(p.w)
}

// line prints the ratios of an operation on a case: 0 stands for none.
func (p *peerRun) line(o op, t testCase, threads int, ratios []float64) {
	fmt.Fprintf(p.w, "%-14s  %-6s  %14s  %7d", o, t.layout, t.shape, threads)
	for _, r := range ratios {
		fmt.Fprintf(p.w, "  %9s", ratioText(r))
	}
	fmt.Fprintln(p.w)
}

func ratioText(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r)
}

// standing sums up the cells of a contest.
type standing struct {
	contest
	cells     int
	mean      float64 // geometric
	least     peerRow
	below     int // number of cells below the goal for every ratio
	different float64
}

// standings sums up the rows by contest. Contests without rows are left out.
func standings(rows []peerRow) []standing {
	var all []standing
	for _, k := range contests {
		s := standing{contest: k}
		logs := 0.0
		for _, r := range rows {
			if r.Contest != k.name {
				continue
			}
			logs += math.Log(r.Ratio)
			if s.cells == 0 || r.Ratio < s.least.Ratio {
				s.least = r
			}
			if r.Ratio < k.least {
				s.below++
			}
			s.different = max(s.different, r.Difference)
			s.cells++
		}
		if s.cells > 0 {
			s.mean = math.Exp(logs / float64(s.cells))
			all = append(all, s)
		}
	}
	return all
}

// verdict compares the standing with the goals, in figures; it is empty without a goal.
func (s standing) verdict() string {
	if s.goal == 0 {
		return ""
	}
	text := fmt.Sprintf("mean %.2f, goal %.3g", s.mean, s.goal)
	if s.contest.least > 0 {
		text += fmt.Sprintf("; %d of %d cells below %.3g", s.below, s.cells, s.contest.least)
	}
	return text
}

// summary prints the contests' standings, and all that is missing or wrong.
func (r *peerResults) summary(w io.Writer) {
	fmt.Fprintf(w, "\n%-9s  %5s  %9s  %6s  %-44s  %10s  %s\n", "peer", "cells", "geo. mean", "least", "in (with workers)", "difference", "goals")
	for _, s := range standings(r.Rows) {
		fmt.Fprintf(w, "%-9s  %5d  %9.2f  %6.2f  %-44s  %10.1e  %s\n",
			s.contest, s.cells, s.mean, s.least.Ratio, s.least.cell(), s.different, s.verdict())
	}
	fmt.Fprintf(w, "\n%s\n", peersNote)
	for _, k := range contests {
		if n := r.Refused[k.name]; n > 0 {
			fmt.Fprintf(w, "%s does not offer %d cells.\n", k, n)
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "left out: %s\n", m)
	}
	for _, m := range r.LeftOut {
		fmt.Fprintf(w, "left out: %s\n", m)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "FAIL %s\n", f)
	}
}

// contestNames returns the names for -with.
func contestNames() string { return strings.Join(names(contests), ", ") }
