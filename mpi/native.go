//go:build mpi && cgo

package mpi

// #include <stdlib.h>
// #include "native.h"
import "C"

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/fusedbn/batchnorm"
)

const built = true

// lock is held during every call of MPI.
var lock sync.Mutex

// native is a communicator of MPI, with the counts of the exchange under way.
type native struct {
	comm       *C.bn_comm
	recv, send []C.int // numbers of doubles by rank; recv afterwards: of those that came
	status     []C.int // number of messages that are not done, and the other rank of one of them
}

// mainThread runs functions on the thread that has initialized MPI. The same thread must
// finalize it.
var mainThread = make(chan func())

func onMainThread(f func()) {
	done := make(chan struct{})
	mainThread <- func() {
		defer close(done)
		f()
	}
	<-done
}

func initialize() (n native, rank, size int, err error) {
	go func() {
		runtime.LockOSThread()
		for f := range mainThread {
			f()
		}
	}()
	onMainThread(func() {
		lock.Lock()
		defer lock.Unlock()
		var granted, enough C.int
		if code := C.bn_init(&granted, &enough); code != 0 {
			err = fmt.Errorf("mpi: MPI_Init_thread: %s: %w", text(code), batchnorm.ErrExchange)
			return
		}
		if granted < enough {
			err = fmt.Errorf("mpi: this MPI grants thread level %d, at least %d (MPI_THREAD_SERIALIZED) is needed, "+
				"since goroutines move between threads: %w", granted, enough, batchnorm.ErrExchange)
			return
		}
		n, rank, size, err = wrap("MPI_Comm_dup", func(c **C.bn_comm, rank, size *C.int) C.int { return C.bn_world(c, rank, size) })
	})
	return n, rank, size, err
}

// wrap makes a native communicator by a call of MPI.
func wrap(name string, call func(c **C.bn_comm, rank, size *C.int) C.int) (n native, rank, size int, err error) {
	var r, s C.int
	if code := call(&n.comm, &r, &s); code != 0 {
		return native{}, 0, 0, fmt.Errorf("mpi: %s: %s: %w", name, text(code), batchnorm.ErrExchange)
	}
	n.recv, n.send, n.status = make([]C.int, s), make([]C.int, s), make([]C.int, 2)
	return n, int(r), int(s), nil
}

func finalize() (err error) {
	onMainThread(func() {
		lock.Lock()
		defer lock.Unlock()
		if code := C.bn_finalize(); code != 0 {
			err = fmt.Errorf("mpi: MPI_Finalize: error %d: %w", code, batchnorm.ErrExchange)
		}
	})
	return err
}

func abort(code int) error {
	lock.Lock()
	defer lock.Unlock()
	if code := C.bn_abort(C.int(code)); code != 0 {
		return fmt.Errorf("mpi: MPI_Abort: %s: %w", text(code), batchnorm.ErrExchange)
	}
	return nil
}

// text returns MPI's text for an error. The caller holds the lock.
func text(code C.int) string {
	return words(func(s *C.char, n C.int) { C.bn_error(code, s, n) })
}

func library() string {
	lock.Lock()
	defer lock.Unlock()
	return words(func(s *C.char, n C.int) { C.bn_library(s, n) })
}

func words(write func(s *C.char, size C.int)) string {
	const size = 512
	s := (*C.char)(C.malloc(size))
	defer C.free(unsafe.Pointer(s))
	write(s, size)
	line, _, _ := strings.Cut(C.GoString(s), "\n")
	return strings.TrimRight(line, "\x00 ")
}

// A rank that waits tests its messages for pollMicros at a time, and yields in between.
// After eager it sleeps between tests, from a microsecond up to longestNap: a rank that is
// so late won't come within microseconds.
const (
	pollMicros = 20
	eager      = 2 * time.Millisecond
	longestNap = 200 * time.Microsecond
)

func (n *native) exchange(c *Comm, recv, send [][]float64) error {
	total := 0
	for i := range recv {
		n.recv[i], n.send[i] = C.int(len(recv[i])), C.int(len(send[i]))
		total += len(recv[i]) + len(send[i])
	}
	if total == 0 {
		return nil
	}
	lock.Lock()
	memory := C.bn_memory(n.comm, C.int64_t(total))
	if memory == nil {
		lock.Unlock()
		return fmt.Errorf("mpi: rank %d of %d: no memory for an exchange of %d elements: %w", c.rank, c.size, total, batchnorm.ErrExchange)
	}
	staged := unsafe.Slice((*float64)(memory), total)
	at := 0
	for _, v := range recv {
		at += len(v)
	}
	for _, v := range send {
		at += copy(staged[at:], v)
	}
	code := C.bn_start(n.comm, &n.recv[0], &n.send[0])
	lock.Unlock()
	if code != 0 {
		lock.Lock()
		defer lock.Unlock()
		return fmt.Errorf("mpi: rank %d of %d: MPI can't begin an exchange: %s: %w", c.rank, c.size, text(code), batchnorm.ErrExchange)
	}
	if err := n.wait(c); err != nil {
		return err
	}
	var mismatch error
	at = 0
	for i, v := range recv {
		got := int(n.recv[i])
		if got != len(v) && mismatch == nil {
			mismatch = batchnorm.WrongVector(c.rank, i, got, len(v))
		}
		copy(v[:min(got, len(v))], staged[at:])
		at += len(v)
	}
	return mismatch
}

// wait returns when all messages are done.
func (n *native) wait(c *Comm) error {
	var begin time.Time
	nap := time.Microsecond
	for {
		lock.Lock()
		code := C.bn_poll(n.comm, pollMicros, &n.recv[0], &n.status[0], &n.status[1])
		lock.Unlock()
		left, peer := n.status[0], n.status[1]
		if code != 0 {
			lock.Lock()
			defer lock.Unlock()
			return fmt.Errorf("mpi: rank %d of %d: exchange with rank %d: %s: %w", c.rank, c.size, peer, text(code), batchnorm.ErrExchange)
		}
		if left == 0 {
			return nil
		}
		now := time.Now()
		if begin.IsZero() {
			begin = now
		}
		switch waited := now.Sub(begin); {
		case waited > c.timeout:
			return fmt.Errorf("mpi: rank %d of %d has waited for rank %d longer than %v: %w", c.rank, c.size, peer, c.timeout, batchnorm.ErrExchange)
		case waited > eager:
			nap = min(2*nap, longestNap)
			time.Sleep(nap)
		default:
			runtime.Gosched()
		}
	}
}

func (n *native) split(c *Comm, color int) (part native, rank, size int, err error) {
	lock.Lock()
	defer lock.Unlock()
	if color < 0 {
		var out *C.bn_comm
		var r, s C.int
		if code := C.bn_split(n.comm, -1, 0, &out, &r, &s); code != 0 {
			return native{}, 0, 0, fmt.Errorf("mpi: rank %d of %d: MPI_Comm_split: %s: %w", c.rank, c.size, text(code), batchnorm.ErrExchange)
		}
		return native{}, 0, 0, nil
	}
	return wrap("MPI_Comm_split", func(out **C.bn_comm, r, s *C.int) C.int {
		return C.bn_split(n.comm, C.int(color), C.int(c.rank), out, r, s)
	})
}

func (n *native) free(c *Comm) error {
	lock.Lock()
	defer lock.Unlock()
	code := C.bn_free(n.comm)
	n.comm = nil
	if code != 0 {
		return fmt.Errorf("mpi: rank %d of %d: MPI_Comm_free: %s: %w", c.rank, c.size, text(code), batchnorm.ErrExchange)
	}
	return nil
}
