// Package peer has the interface of a program that runs another implementation of batch
// normalization, and the protocol that it speaks.
package peer

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// Layout is the order of a tensor in memory. A matrix of samples by features is NHWC with H
// and W 1, in which every peer is fastest.
type Layout string

const (
	NCHW   Layout = "nchw"
	NHWC   Layout = "nhwc"
	NCHW8c Layout = "nchw8c" // the tensors of the problem are NCHW; the peer blocks channels by 8, outside of the timing
)

// Problem is one batch normalization. It is encoded without its tensors, which
// travel in files.
type Problem struct {
	N, C, H, W int
	Layout     Layout
	ReLU       bool
	Activation string // instead of ReLU, by the name that the package gives it; of the peers PyTorch alone has it
	Epsilon    float64

	X, DY       []float32 `json:"-"` // N*C*H*W values
	Gamma, Beta []float32 `json:"-"` // C values
	Mean, Var   []float32 `json:"-"` // C values: the running statistics, for inference
}

// Len returns the number of elements.
func (p Problem) Len() int { return p.N * p.C * p.H * p.W }

// Shape returns the number of elements before, along and behind the channel.
func (p Problem) Shape() (outer, channels, inner int) {
	if p.Layout == NHWC {
		return p.N * p.H * p.W, p.C, 1
	}
	return p.N, p.C, p.H * p.W
}

// Outputs are the results of the last run of each operation. For the client, they are nil
// for operations that did not run.
type Outputs struct {
	Y             []float32 // of Forward
	Inference     []float32 // the y of Inference
	DX            []float32 // of Backward
	DGamma, DBeta []float32
}

// A Runner runs one problem. Each operation runs once, on memory that exists already as far
// as the implementation allows, and returns its own time.
type Runner interface {
	Forward() (time.Duration, error)   // training: with the statistics of the batch
	Inference() (time.Duration, error) // with the running statistics
	Backward() (time.Duration, error)  // of the last Forward
	Outputs() Outputs
	Close() error
}

// Peer is an implementation.
type Peer struct {
	Name string // with its version
	New  func(p Problem, threads int) (Runner, error)
}

// ErrUnsupported is the error of a peer that does not offer an operation or a problem.
var ErrUnsupported = errors.New("not offered")

// Unsupported returns an error that wraps [ErrUnsupported].
func Unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// ExitMissing is the exit status of a peer that lacks something on this
// machine.
const ExitMissing = 3

// Missing ends the program with a message that names the missing package.
func Missing(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(ExitMissing)
}

// Version returns the version of a module that the program is built with.
func Version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return m.Version
			}
		}
	}
	return "of unknown version"
}

// Time returns how long f takes.
func Time(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}
