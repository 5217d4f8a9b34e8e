// Package client builds, starts and asks the peers: programs that run another
// implementation of batch normalization.
package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// ErrMissing is the error of a peer that lacks something on this machine. The text names
// the package to install.
var ErrMissing = errors.New("not on this machine")

// program describes how to start a peer.
type program struct {
	name   string
	folder string // of its module, in this one
	pkg    string // of Go; otherwise script is given
	script string // of Python
	env    []string
	openMP bool // its threads go on spinning after a call
}

var programs = []program{
	{name: "onednn", folder: "onednn", pkg: ".", openMP: true},
	// Without this the allocator gives the memory of large tensors back to the system after
	// every call, and the next call waits for new pages.
	{name: "torch", folder: "torch", script: "peer.py", openMP: true, env: []string{"MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=1000000000000"}},
	{name: "gomlx", folder: "gopeers", pkg: "./gomlx"},
	{name: "spago", folder: "gopeers", pkg: "./spago"},
	{name: "archsimd", folder: ".", pkg: "./archsimd", env: []string{"GOEXPERIMENT=simd"}},
	{name: "plain", folder: ".", pkg: "./plain"},
}

// Names lists the peers.
func Names() []string {
	var names []string
	for _, p := range programs {
		names = append(names, p.name)
	}
	return names
}

// Peer is a running peer. Its methods are not for concurrent use.
type Peer struct {
	Name string // with its version

	cmd     *exec.Cmd
	stdin   io.WriteCloser
	in      *json.Encoder
	out     *json.Decoder
	stderr  bytes.Buffer
	folder  string // for the program and the tensors
	openMP  bool
	problem peer.Problem
	threads int
}

// Start builds and starts a peer. It needs the checkout that this package was
// compiled from.
func Start(name string) (*Peer, error) {
	for _, prog := range programs {
		if prog.name == name {
			p, err := start(prog)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return p, nil
		}
	}
	return nil, fmt.Errorf("peer %q is unknown (there are: %s)", name, strings.Join(Names(), ", "))
}

func start(prog program) (_ *Peer, err error) {
	_, file, _, _ := runtime.Caller(0)
	folder := filepath.Join(filepath.Dir(file), "..", prog.folder)
	if _, err := os.Stat(folder); err != nil {
		return nil, fmt.Errorf("the source of the peers is needed, which a build with -trimpath can't find: %w", err)
	}
	p := &Peer{openMP: prog.openMP}
	if p.folder, err = os.MkdirTemp("", "batchnorm-peer-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(p.folder)
		}
	}()
	if prog.script != "" {
		p.cmd = exec.Command(python(folder), prog.script)
	} else {
		binary := filepath.Join(p.folder, "peer")
		if err := build(prog, folder, binary); err != nil {
			return nil, err
		}
		p.cmd = exec.Command(binary)
	}
	p.cmd.Dir = folder
	p.cmd.Env = append(os.Environ(), prog.env...)
	p.cmd.Stderr = &p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out = json.NewEncoder(p.stdin), json.NewDecoder(stdout)
	if err := p.cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return nil, missing(fmt.Sprintf("%v: apt-get install python3-torch", err))
	} else if err != nil {
		return nil, err
	}
	ready, err := p.reply()
	if err != nil {
		return nil, err
	}
	p.Name = ready.Name
	return p, nil
}

func build(prog program, folder, binary string) error {
	cmd := exec.Command("go", "build", "-o", binary, prog.pkg)
	cmd.Dir = folder
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), prog.env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	// Code in C that lacks a library fails to build with this directive.
	for line := range strings.Lines(string(out)) {
		if _, message, ok := strings.Cut(line, "#error "); ok {
			return missing(strings.Trim(message, "\"\n"))
		}
	}
	return fmt.Errorf("go build: %w\n%s", err, out)
}

// python returns an interpreter that has PyTorch, if there is one: Debian's is not always
// the first in the path. It looks from the given folder.
func python(folder string) string {
	const first, debian = "python3", "/usr/bin/python3"
	for _, name := range []string{first, debian} {
		find := exec.Command(name, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)")
		find.Dir = folder
		if find.Run() == nil {
			return name
		}
	}
	return first
}

func missing(message string) error { return fmt.Errorf("%w: %s", ErrMissing, message) }

// Load gives the peer a problem, in place of the one before. There is at least 1 thread.
// The error wraps [peer.ErrUnsupported] if the peer does not offer the problem.
func (p *Peer) Load(problem peer.Problem, threads int) error {
	for _, t := range problem.Tensors() {
		if err := t.Write(p.folder); err != nil {
			return err
		}
	}
	p.problem, p.threads = problem, threads
	_, err := p.ask(peer.Request{Op: peer.Load, Problem: &problem, Threads: threads, Folder: p.folder})
	return err
}

// settle is how long the threads of OpenMP spin after a call, ready for the next one.
// Anything else that is timed then would share the machine with them.
const settle = 20 * time.Millisecond

// Run runs an operation so many times and returns the time of each, without the
// communication. The error wraps [peer.ErrUnsupported] if the peer does not offer the
// operation.
func (p *Peer) Run(op peer.Op, times int) ([]time.Duration, error) {
	reply, err := p.ask(peer.Request{Op: op, Times: times})
	if p.openMP && p.threads > 1 {
		time.Sleep(settle)
	}
	var took []time.Duration
	for _, ns := range reply.Nanoseconds {
		took = append(took, time.Duration(ns))
	}
	return took, err
}

// Outputs returns the results of the last run of each operation since Load; they are nil
// for operations that did not run.
func (p *Peer) Outputs() (peer.Outputs, error) {
	var o peer.Outputs
	tensors := o.Tensors(&p.problem)
	for _, t := range tensors {
		if err := t.Remove(p.folder); err != nil {
			return o, err
		}
	}
	if _, err := p.ask(peer.Request{Op: peer.Save, Folder: p.folder}); err != nil {
		return o, err
	}
	for _, t := range tensors {
		if err := t.Read(p.folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			return o, err
		}
	}
	return o, nil
}

// Close ends the peer.
func (p *Peer) Close() error {
	if p.cmd.ProcessState != nil { // it has died
		return os.RemoveAll(p.folder)
	}
	return errors.Join(p.stdin.Close(), p.cmd.Wait(), os.RemoveAll(p.folder))
}

func (p *Peer) ask(r peer.Request) (peer.Reply, error) {
	if err := p.in.Encode(r); err != nil {
		return peer.Reply{}, p.died(err)
	}
	return p.reply()
}

func (p *Peer) reply() (peer.Reply, error) {
	var r peer.Reply
	switch err := p.out.Decode(&r); {
	case err != nil:
		return r, p.died(err)
	case r.Unsupported:
		return r, fmt.Errorf("%w: %s", peer.ErrUnsupported, r.Error)
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// died returns the reason for which the peer does not answer any more.
func (p *Peer) died(err error) error {
	p.stdin.Close()
	p.cmd.Wait()
	said := strings.TrimSpace(p.stderr.String())
	if p.cmd.ProcessState.ExitCode() == peer.ExitMissing {
		return missing(said)
	}
	return fmt.Errorf("ended with %v (%w): %s", p.cmd.ProcessState, err, said)
}
