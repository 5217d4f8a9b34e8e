package mpi_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
	"github.com/fusedbn/batchnorm/mpi"
)

// failLimit is the time limit of scenarios that fail.
const failLimit = 2 * time.Second

// play plays a rank's part in a scenario. It returns the exit code.
func play(scenario string) int {
	limit := time.Minute
	fails := map[string]func(c *mpi.Comm) error{"killed": killed, "shape": shape, "large": large, "operation": operation, "arguments": arguments}
	works := map[string]func(c *mpi.Comm) error{
		"bits": bits, "late": late, "split": split, "overlap": overlap, "panic": panics, "leak": leak,
	}
	if fails[scenario] != nil {
		limit = failLimit
	}
	c, err := mpi.Init(limit)
	if err != nil {
		fmt.Println("FAILED:", err)
		return 1
	}
	if f := fails[scenario]; f != nil {
		begin := time.Now()
		if err := f(c); err == nil {
			say(c, "no error")
		} else {
			say(c, fmt.Sprintf("error after %.3f s: %v", time.Since(begin).Seconds(), err))
		}
		if strings.Contains(mpi.Library(), "MPICH") {
			time.Sleep(failLimit) // its mpirun ends the others when one has failed
		}
		return 1 // without Finalize, which would wait for the dead
	}
	if err := works[scenario](c); err != nil {
		say(c, "FAILED", err)
		mpi.Abort(1)
	}
	if err := mpi.Finalize(); err != nil {
		say(c, "FAILED", err)
		return 1
	}
	return 0
}

// say prints a line in one piece.
func say(c *mpi.Comm, words ...any) {
	line := strings.ReplaceAll(fmt.Sprintln(words...), "\n", " ")
	os.Stdout.WriteString(fmt.Sprintf("= %d %s\n", c.Rank(), line))
}

// train is some steps of a layer on this rank's parts, which are of unequal sizes
// and sometimes empty, and returns a hash of the layer, and of all that is this
// rank's own.
func train(g *batchnorm.SyncGroup, steps, channels int, pause func()) (layer, own uint64, err error) {
	l, err := batchnorm.NewLayer(channels, batchnorm.WithActivation(batchnorm.SiLU))
	if err != nil {
		return 0, 0, err
	}
	if err := l.Synchronize(g); err != nil {
		return 0, 0, err
	}
	all, mine := fnv.New64a(), fnv.New64a()
	for step := range steps {
		pause()
		s := batchnorm.Shape{Outer: (g.Rank()*g.Rank() + step) % 4, Channels: channels, Inner: 3}
		x := gen.Normal(uint64(step*g.Size()+g.Rank()), s.Len(), 2, 3)
		y, dx := make([]float32, s.Len()), make([]float32, s.Len())
		if err := l.Forward(batchnorm.LayerForwardArgs{Shape: s, X: x, Y: y}); err != nil {
			return 0, 0, err
		}
		if err := l.Backward(batchnorm.LayerBackwardArgs{DY: y, DX: dx}); err != nil {
			return 0, 0, err
		}
		sum := gen.Normal(uint64(step*g.Size()+g.Rank()), channels+step%7, 0, 1)
		if err := g.AllReduce(sum); err != nil {
			return 0, 0, err
		}
		for c := range channels {
			l.Gamma[c] -= 0.01*l.DGamma[c] + 1e-3*sum[c]
			l.Beta[c] -= 0.01 * l.DBeta[c]
		}
		state, err := l.MarshalBinary()
		if err != nil {
			return 0, 0, err
		}
		all.Write(state)
		binary.Write(mine, binary.LittleEndian, y)
		binary.Write(mine, binary.LittleEndian, dx)
	}
	return all.Sum64(), mine.Sum64(), nil
}

// onGoroutines is the same training on goroutines, and returns the hashes of a rank.
func onGoroutines(rank, ranks, steps, channels int) (layer, own uint64, err error) {
	all, err := batchnorm.NewLocalCollective(ranks, time.Minute)
	if err != nil {
		return 0, 0, err
	}
	var wg sync.WaitGroup
	errs := make([]error, ranks)
	for i, c := range all {
		wg.Go(func() {
			g, err := batchnorm.NewSyncGroup(c)
			if err != nil {
				errs[i] = err
				return
			}
			l, o, err := train(g, steps, channels, func() {})
			if errs[i] = err; i == rank {
				layer, own = l, o
			}
		})
	}
	wg.Wait()
	return layer, own, errors.Join(errs...)
}

func bits(c *mpi.Comm) error {
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	var hashes []uint64
	for _, channels := range []int{1, 3, 5, 64, 2048} { // fewer than ranks, and more
		layer, own, err := train(g, 25, channels, func() {})
		if err != nil {
			return err
		}
		wantLayer, wantOwn, err := onGoroutines(c.Rank(), c.Size(), 25, channels)
		if err != nil {
			return err
		}
		if layer != wantLayer || own != wantOwn {
			return fmt.Errorf("%d channels: hashes %x and %x, on goroutines %x and %x", channels, layer, own, wantLayer, wantOwn)
		}
		hashes = append(hashes, layer)
	}
	say(c, fmt.Sprintf("hash %x", hashes))
	return nil
}

func late(c *mpi.Comm) error {
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	const steps, channels = 1000, 6
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(c.Rank())))
	got, _, err := train(g, steps, channels, func() {
		if r.IntN(8) == 0 {
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		}
	})
	if err != nil {
		return err
	}
	want, _, err := onGoroutines(c.Rank(), c.Size(), steps, channels)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("hash %x, on time %x", got, want)
	}
	say(c, fmt.Sprintf("same hash %x", got))
	return nil
}

// forward calls Forward n times.
func forward(c *mpi.Comm, channels, n int) error {
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	s := batchnorm.Shape{Outer: 2, Channels: channels, Inner: 3}
	p, err := batchnorm.NewSyncPlan(g, s)
	if err != nil {
		return err
	}
	x := gen.Normal(1, s.Len(), 0, 1)
	for range n {
		if err := p.Forward(batchnorm.ForwardArgs{X: x, Y: make([]float32, s.Len())}); err != nil {
			return err
		}
	}
	return nil
}

func killed(c *mpi.Comm) error {
	if c.Rank() != 1 {
		return forward(c, 64, 1<<30)
	}
	if err := forward(c, 64, 10); err != nil {
		return err
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func shape(c *mpi.Comm) error {
	if c.Rank() == 1 {
		return forward(c, 48, 1)
	}
	return forward(c, 64, 1)
}

// large vectors take other ways through MPI than small ones.
func large(c *mpi.Comm) error {
	if c.Rank() != 1 {
		return forward(c, 64, 1)
	}
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	return g.AllReduce(make([]float32, 3<<20))
}

func operation(c *mpi.Comm) error {
	if c.Rank() != 1 {
		return forward(c, 64, 1)
	}
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	s := batchnorm.Shape{Outer: 2, Channels: 64, Inner: 3}
	p, err := batchnorm.NewSyncPlan(g, s)
	if err != nil {
		return err
	}
	x, mean := make([]float32, s.Len()), make([]float64, 64)
	return p.Backward(batchnorm.BackwardArgs{DY: x, X: x, Mean: mean, InvStd: mean})
}

func arguments(c *mpi.Comm) error {
	if c.Rank() != 1 {
		return forward(c, 64, 1)
	}
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	p, err := batchnorm.NewSyncPlan(g, batchnorm.Shape{Outer: 2, Channels: 64, Inner: 3})
	if err != nil {
		return err
	}
	err = p.Forward(batchnorm.ForwardArgs{X: make([]float32, 7)})
	if again := p.Forward(batchnorm.ForwardArgs{X: make([]float32, 7)}); !errors.Is(again, batchnorm.ErrRanks) {
		say(c, "FAILED: the next call gives", again)
	}
	return err
}

// split makes groups of even and odd ranks, rank 0 alone, and nobody; three times.
func split(c *mpi.Comm) error {
	for round := range 3 {
		color := c.Rank() % 2
		if c.Rank() == 0 {
			color = -1
		}
		part, err := c.Split(color)
		if err != nil {
			return err
		}
		if color < 0 {
			if part != nil {
				return fmt.Errorf("color %d gives a communicator of %d ranks", color, part.Size())
			}
			continue
		}
		want := (c.Size() - 1) / 2 // even ones, without 0
		if color == 1 {
			want = c.Size() / 2
		}
		if part.Size() != want || part.Rank() != (c.Rank()-1)/2 {
			return fmt.Errorf("rank %d of %d in the part, want %d", part.Rank(), part.Size(), want)
		}
		g, err := batchnorm.NewSyncGroup(part)
		if err != nil {
			return err
		}
		got, _, err := train(g, 10, 5+round, func() {})
		if err != nil {
			return err
		}
		expect, _, err := onGoroutines(part.Rank(), part.Size(), 10, 5+round)
		if err != nil {
			return err
		}
		if got != expect {
			return fmt.Errorf("hash %x, on goroutines %x", got, expect)
		}
		if err := part.Free(); err != nil {
			return err
		}
		if err := part.Exchange(make([][]float64, want), make([][]float64, want)); !errors.Is(err, batchnorm.ErrExchange) {
			return fmt.Errorf("a freed communicator gives %v", err)
		}
	}
	if _, err := mpi.Init(0); !errors.Is(err, mpi.ErrInit) {
		return fmt.Errorf("a second Init gives %v", err)
	}
	say(c, "ok")
	return nil
}

// overlap trains on three communicators at a time.
func overlap(c *mpi.Comm) error {
	const n = 3
	var errs [n]error
	var wg sync.WaitGroup
	var groups [n]*batchnorm.SyncGroup
	for i := range n {
		part, err := c.Split(0)
		if err != nil {
			return err
		}
		if groups[i], err = batchnorm.NewSyncGroup(part); err != nil {
			return err
		}
	}
	for i, g := range groups {
		wg.Go(func() {
			got, _, err := train(g, 50, 10+i, func() {})
			want, _, err2 := onGoroutines(c.Rank(), c.Size(), 50, 10+i)
			if errs[i] = errors.Join(err, err2); errs[i] == nil && got != want {
				errs[i] = fmt.Errorf("hash %x, want %x", got, want)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	say(c, "ok")
	return nil
}

func panics(c *mpi.Comm) (err error) {
	defer func() { say(c, "recovered", recover()) }()
	var p *batchnorm.Shape
	p.Outer = 1
	return nil
}

// resident returns the memory of the process in bytes.
func resident() (n int, err error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size int
	_, err = fmt.Sscan(string(text), &size, &n)
	return n * os.Getpagesize(), err
}

func leak(c *mpi.Comm) error {
	g, err := batchnorm.NewSyncGroup(c)
	if err != nil {
		return err
	}
	s := batchnorm.Shape{Outer: 2, Channels: 64, Inner: 3}
	p, err := batchnorm.NewSyncPlan(g, s)
	if err != nil {
		return err
	}
	n := s.Len()
	x, y, dx, mean, invstd := gen.Normal(1, n, 0, 1), make([]float32, n), make([]float32, n), make([]float64, 64), make([]float64, 64)
	step := func() error {
		if err := p.Forward(batchnorm.ForwardArgs{X: x, Y: y, Mean: mean, InvStd: invstd}); err != nil {
			return err
		}
		if err := p.BeginBackward(batchnorm.BackwardArgs{DY: y, X: x, Mean: mean, InvStd: invstd, DX: dx}); err != nil {
			return err
		}
		return p.Wait()
	}
	const calls = 100000
	var before, after runtime.MemStats
	pages := 0
	for i := range calls / 2 {
		if i == 1000 { // what the libraries keep has grown by then
			runtime.ReadMemStats(&before)
			if pages, err = resident(); err != nil {
				return err
			}
		}
		if err := step(); err != nil {
			return err
		}
	}
	runtime.ReadMemStats(&after)
	now, err := resident()
	if err != nil {
		return err
	}
	if grown := now - pages; grown > 4<<20 {
		return fmt.Errorf("%d calls leave %d bytes", calls, grown)
	}
	if n := after.Mallocs - before.Mallocs; n > calls/20 {
		return fmt.Errorf("%d calls allocate %d times", calls, n)
	}
	say(c, "ok")
	return nil
}
