//go:build !mpi || !cgo

package mpi

const built = false

type native struct{}

func initialize() (n native, rank, size int, err error) { return n, 0, 0, ErrMissing }

func finalize() error { return ErrMissing }

func abort(int) error { return ErrMissing }

func library() string { return "none" }

func (native) exchange(*Comm, [][]float64, [][]float64) error { return ErrMissing }

func (n native) split(*Comm, int) (part native, rank, size int, err error) {
	return n, 0, 0, ErrMissing
}

func (native) free(*Comm) error { return ErrMissing }
