package mpi

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/fusedbn/batchnorm"
)

// ErrMissing is the error of Init in a program that was built without MPI. Its text says
// how to build the program with MPI.
var ErrMissing = errors.New("mpi: this program was built without MPI; install it (apt-get install libopenmpi-dev openmpi-bin), " +
	"and build with the tag mpi and cgo: CGO_ENABLED=1 go build -tags mpi")

// ErrInit is wrapped by the errors of Init, Finalize and Abort that were called too early
// or too late.
var ErrInit = errors.New("mpi: not initialized, or finalized already")

// Built reports whether the program was built with MPI.
func Built() bool { return built }

// Launched reports whether the process was started by mpirun or a workload manager. It
// looks at the environment, and works in a program that was built without MPI, too.
func Launched() bool {
	for _, name := range []string{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "MPI_LOCALNRANKS"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// A Comm is a communicator: a [batchnorm.Collective] over MPI. Several
// communicators may be used at a time, each by one goroutine at a time.
type Comm struct {
	rank, size int
	timeout    time.Duration

	mu     sync.Mutex
	err    error // the first failure; after it the communicator can't be used
	native native
}

var _ batchnorm.Collective = (*Comm)(nil)

// world is the state of MPI in this process.
var world struct {
	sync.Mutex
	begun, over bool
	failed      error // the first failure of any communicator
}

// Init initializes MPI and returns the communicator of all processes: a duplicate of
// MPI_COMM_WORLD, which keeps its messages apart from those of other users of MPI. It is
// called once. A rank gives up when it has waited for another rank for longer than the
// timeout; 0 is [batchnorm.DefaultTimeout].
//
// Without mpirun there is one process, with rank 0 of 1.
func Init(timeout time.Duration) (*Comm, error) {
	if timeout < 0 {
		return nil, fmt.Errorf("mpi: the timeout is %v, must be at least 0: %w", timeout, batchnorm.ErrOption)
	}
	if timeout == 0 {
		timeout = batchnorm.DefaultTimeout
	}
	world.Lock()
	defer world.Unlock()
	if world.begun {
		return nil, fmt.Errorf("mpi: Init was called before: %w", ErrInit)
	}
	n, rank, size, err := initialize()
	if err != nil {
		return nil, err
	}
	world.begun = true
	return &Comm{rank: rank, size: size, timeout: timeout, native: n}, nil
}

// Finalize ends MPI. All ranks call it, and no communicator is used after it. After the
// failure of a communicator MPI might wait for ever for a rank that has ended: Finalize
// then returns an error, and [Abort] ends the processes.
func Finalize() error {
	world.Lock()
	defer world.Unlock()
	if !world.begun || world.over {
		return fmt.Errorf("mpi: Finalize: %w", ErrInit)
	}
	if world.failed != nil {
		return fmt.Errorf("mpi: Finalize can't end a program in which a communicator has failed, Abort can: %w", world.failed)
	}
	world.over = true
	return finalize()
}

// Abort ends the processes of all ranks with the given exit code. It returns only if MPI
// is not initialized, with an error.
func Abort(code int) error {
	world.Lock()
	defer world.Unlock()
	if !world.begun || world.over {
		return fmt.Errorf("mpi: Abort: %w", ErrInit)
	}
	return abort(code)
}

// Library returns the name and version of the MPI library, in its own words, or "none".
func Library() string { return library() }

// Rank returns the number of this process in the communicator.
func (c *Comm) Rank() int { return c.rank }

// Size returns the number of processes in the communicator.
func (c *Comm) Size() int { return c.size }

// Timeout returns how long a call waits for other ranks.
func (c *Comm) Timeout() time.Duration { return c.timeout }

// Exchange implements [batchnorm.Collective].
func (c *Comm) Exchange(recv, send [][]float64) error {
	if err := c.ready(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchange(recv, send)
}

func (c *Comm) exchange(recv, send [][]float64) error {
	if c.err != nil {
		return c.err
	}
	if len(recv) != c.size || len(send) != c.size {
		return fmt.Errorf("mpi: rank %d: recv has %d vectors and send %d, the communicator has %d ranks: %w",
			c.rank, len(recv), len(send), c.size, batchnorm.ErrLength)
	}
	for i := range c.size {
		if n := max(len(recv[i]), len(send[i])); n > math.MaxInt32 {
			return fmt.Errorf("mpi: rank %d: a vector of %d elements is too long, MPI counts to %d: %w", c.rank, n, math.MaxInt32, batchnorm.ErrLength)
		}
	}
	if len(recv[c.rank]) != 0 || len(send[c.rank]) != 0 {
		return fmt.Errorf("mpi: rank %d sends %d elements to itself and receives %d, both must be 0: %w",
			c.rank, len(send[c.rank]), len(recv[c.rank]), batchnorm.ErrLength)
	}
	err := c.native.exchange(c, recv, send)
	if errors.Is(err, batchnorm.ErrExchange) {
		c.fail(err)
	}
	return err
}

// fail keeps the first failure of the communicator, which ends its use.
func (c *Comm) fail(err error) {
	c.err = err
	world.Lock()
	defer world.Unlock()
	if world.failed == nil {
		world.failed = err
	}
}

func (c *Comm) ready() error {
	if c == nil || c.size == 0 {
		return fmt.Errorf("mpi: the communicator is nil or was not made by Init or Split: %w", ErrInit)
	}
	return nil
}

// Split makes a communicator of the ranks with the same color, for statistics over some of
// the ranks, for example those of one node. All ranks call it; the new ranks are in the
// order of the old ones. A rank whose color is below 0 joins none, and gets nil. The new
// communicator has the time limit of c.
func (c *Comm) Split(color int) (*Comm, error) {
	if err := c.ready(); err != nil {
		return nil, err
	}
	if color > math.MaxInt32 {
		return nil, fmt.Errorf("mpi: rank %d: color %d is too large, MPI counts to %d: %w", c.rank, color, math.MaxInt32, batchnorm.ErrOption)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// MPI's call has no time limit. The exchange before it has one, and makes sure that
	// all ranks are about to call it.
	if err := c.meet(); err != nil {
		return nil, err
	}
	n, rank, size, err := c.native.split(c, color)
	if err != nil {
		c.fail(err)
		return nil, err
	}
	if color < 0 {
		return nil, nil
	}
	return &Comm{rank: rank, size: size, timeout: c.timeout, native: n}, nil
}

// meet returns when all ranks have called meet.
func (c *Comm) meet() error {
	recv, send := make([][]float64, c.size), make([][]float64, c.size)
	for i := range c.size {
		if i != c.rank {
			recv[i], send[i] = make([]float64, 1), []float64{0}
		}
	}
	return c.exchange(recv, send)
}

// Free gives the memory of a communicator back. All its ranks call it, and none uses the
// communicator afterwards. A communicator that has failed keeps its memory, since messages
// may still be written to it.
func (c *Comm) Free() error {
	if err := c.ready(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.meet(); err != nil {
		return err
	}
	c.err = fmt.Errorf("mpi: rank %d: the communicator was freed: %w", c.rank, batchnorm.ErrExchange)
	return c.native.free(c)
}
