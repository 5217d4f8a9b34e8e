package peer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"
)

// Op is a request for an operation.
type Op string

const (
	Forward   Op = "forward"
	Inference Op = "inference"
	Backward  Op = "backward"

	Load Op = "load" // takes up Problem, whose tensors are in Folder
	Save Op = "save" // writes the outputs of the operations that were run to Folder
)

// Request is a line of JSON to a peer.
type Request struct {
	Op      Op
	Times   int      `json:",omitempty"` // how often to run the operation
	Problem *Problem `json:",omitempty"`
	Threads int      `json:",omitempty"`
	Folder  string   `json:",omitempty"`
}

// Reply is a line of JSON from a peer: one when it is ready, and one for every
// request.
type Reply struct {
	Name        string  `json:",omitempty"` // in the first
	Nanoseconds []int64 `json:",omitempty"` // of each time
	Error       string  `json:",omitempty"`
	Unsupported bool    `json:",omitempty"` // what kind of error
}

// Tensor is exchanged in a file of little-endian float32.
type Tensor struct {
	Name   string
	Op     Op // the operation that has this output
	Values *[]float32
	Len    int
}

// Tensors lists the tensors of a problem.
func (p *Problem) Tensors() []Tensor {
	n := p.Len()
	return []Tensor{
		{"x", "", &p.X, n}, {"dy", "", &p.DY, n},
		{"gamma", "", &p.Gamma, p.C}, {"beta", "", &p.Beta, p.C},
		{"mean", "", &p.Mean, p.C}, {"var", "", &p.Var, p.C},
	}
}

// Tensors lists the outputs for a problem.
func (o *Outputs) Tensors(p *Problem) []Tensor {
	n := p.Len()
	return []Tensor{
		{"y", Forward, &o.Y, n}, {"inference", Inference, &o.Inference, n},
		{"dx", Backward, &o.DX, n}, {"dgamma", Backward, &o.DGamma, p.C}, {"dbeta", Backward, &o.DBeta, p.C},
	}
}

func (t Tensor) path(folder string) string { return filepath.Join(folder, t.Name+".f32") }

// Remove removes the tensor's file, if there is one.
func (t Tensor) Remove(folder string) error {
	err := os.Remove(t.path(folder))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Read fills the tensor from its file.
func (t Tensor) Read(folder string) error {
	f, err := os.Open(t.path(folder))
	if err != nil {
		return err
	}
	defer f.Close()
	*t.Values = make([]float32, t.Len)
	if bytes := littleEndian(*t.Values); bytes != nil {
		_, err = io.ReadFull(f, bytes)
		return err
	}
	return binary.Read(bufio.NewReaderSize(f, 1<<20), binary.LittleEndian, *t.Values)
}

// Write writes the tensor to its file.
func (t Tensor) Write(folder string) error {
	if len(*t.Values) != t.Len {
		return fmt.Errorf("%s has %d values, must have %d", t.Name, len(*t.Values), t.Len)
	}
	f, err := os.Create(t.path(folder))
	if err != nil {
		return err
	}
	if bytes := littleEndian(*t.Values); bytes != nil {
		_, err = f.Write(bytes)
	} else {
		err = binary.Write(f, binary.LittleEndian, *t.Values)
	}
	return errors.Join(err, f.Close())
}

// littleEndian returns the memory of s on a little-endian machine, and nil on others.
// Tensors are large, and encoding them takes longer than the operations that are timed.
func littleEndian(s []float32) []byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 || len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), 4*len(s))
}

// Serve answers requests until there are no more. The main function of a peer calls nothing
// else.
func Serve(p Peer) {
	out := json.NewEncoder(os.Stdout)
	os.Stdout = os.Stderr // libraries that print must not write into the replies
	s := server{peer: p}
	err := out.Encode(Reply{Name: p.Name})
	for in := json.NewDecoder(os.Stdin); err == nil; {
		var r Request
		if err = in.Decode(&r); err == nil {
			err = out.Encode(s.answer(r))
		}
	}
	s.close()
	if err != io.EOF {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(1)
	}
}

type server struct {
	peer    Peer
	problem Problem
	runner  Runner // nil: nothing is loaded
	ran     map[Op]bool
}

func (s *server) answer(r Request) (reply Reply) {
	var err error
	defer func() {
		// Some libraries panic where others return an error.
		if v := recover(); v != nil {
			if err, _ = v.(error); err == nil {
				err = fmt.Errorf("panic: %v", v)
			}
		}
		if err != nil {
			reply = Reply{Error: strings.TrimPrefix(err.Error(), ErrUnsupported.Error()+": "), Unsupported: errors.Is(err, ErrUnsupported)}
		}
	}()
	switch r.Op {
	case Load:
		err = s.load(r)
	case Save:
		err = s.save(r.Folder)
	default:
		reply.Nanoseconds, err = s.run(r.Op, r.Times)
	}
	return reply
}

func (s *server) load(r Request) error {
	if err := s.close(); err != nil {
		return err
	}
	s.problem = *r.Problem
	for _, t := range s.problem.Tensors() {
		if err := t.Read(r.Folder); err != nil {
			return err
		}
	}
	runtime.GOMAXPROCS(r.Threads)
	if a := s.problem.Activation; a != "" {
		return Unsupported("activation %s", a)
	}
	runner, err := s.peer.New(s.problem, r.Threads)
	if err != nil {
		return err
	}
	s.runner, s.ran = runner, map[Op]bool{}
	return nil
}

func (s *server) run(op Op, times int) ([]int64, error) {
	if s.runner == nil {
		return nil, errors.New("no problem is loaded")
	}
	run, ok := map[Op]func() (time.Duration, error){
		Forward: s.runner.Forward, Inference: s.runner.Inference, Backward: s.runner.Backward,
	}[op]
	if !ok {
		return nil, fmt.Errorf("operation %q is unknown", op)
	}
	if op == Backward && !s.ran[Forward] {
		return nil, errors.New("backward needs a forward before it")
	}
	var ns []int64
	for range times {
		d, err := run()
		if err != nil {
			return nil, err
		}
		s.ran[op] = true
		ns = append(ns, d.Nanoseconds())
	}
	return ns, nil
}

func (s *server) save(folder string) error {
	if s.runner == nil {
		return errors.New("no problem is loaded")
	}
	o := s.runner.Outputs()
	for _, t := range o.Tensors(&s.problem) {
		if !s.ran[t.Op] {
			continue
		}
		if err := t.Write(folder); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) close() error {
	if s.runner == nil {
		return nil
	}
	r := s.runner
	s.runner = nil
	return r.Close()
}
