// Package onnxgobn replaces BatchNormalization of onnx-go's backend gorgonnx
// (github.com/owulveryck/onnx-go/backend/x/gorgonnx) by one on the kernels of
// package batchnorm:
//
//	if err := onnxgobn.Install(); err != nil { ... } // once, at the start of the program
//
// gorgonnx doesn't export its table of operators. Install reaches it by
// go:linkname, after it has checked that gorgonnx is laid out as in v0.5.0.
package onnxgobn

import (
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"
	"unsafe" // for go:linkname and for the one field of gorgonnx.Node

	"github.com/fusedbn/batchnorm"
	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend/x/gorgonnx"
	"gorgonia.org/gorgonia"
)

// ErrVersion is wrapped by the error about a version of onnx-go that is not known.
var ErrVersion = errors.New("onnxgobn: onnx-go is not v0.5.0")

const (
	modulePath = "github.com/owulveryck/onnx-go"
	version    = "v0.5.0"
	opType     = "BatchNormalization"
	nodeField  = "gorgoniaNode"
	nodeFields = 5 // number of fields of gorgonnx.Node
)

// operator has the methods of gorgonnx's type of this name, in the same order, so
// that values of one are values of the other.
type operator interface {
	apply(*gorgonnx.Graph, ...*gorgonnx.Node) error
	init(o onnx.Operation) error
}

//go:linkname operators github.com/owulveryck/onnx-go/backend/x/gorgonnx.operators
var operators map[string]func() operator

var (
	mu         sync.Mutex
	original   func() operator // gorgonnx's own; nil: not known yet
	nodeOffset uintptr         // of gorgoniaNode in gorgonnx.Node
)

// Install replaces gorgonnx's BatchNormalization, for every graph that is
// populated afterwards. Options such as [batchnorm.WithWorkers] and
// [batchnorm.WithExecutor] go to every plan; epsilon and momentum are the node's.
// It is to be called while no graph is being populated; another call takes other
// options. The error is [ErrVersion], and then everything is as it was.
func Install(opts ...batchnorm.Option) error {
	mu.Lock()
	defer mu.Unlock()
	if err := known(); err != nil {
		return err
	}
	if original == nil {
		original = operators[opType]
	}
	shared := &planner{opts: opts}
	operators[opType] = func() operator { return &batchNormalization{planner: shared} }
	return nil
}

// Uninstall gives gorgonnx its own operator back.
func Uninstall() {
	mu.Lock()
	defer mu.Unlock()
	if original != nil {
		operators[opType] = original
	}
}

// known returns an error if gorgonnx is not what this package was written for.
func known() error {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == modulePath && m.Replace == nil && m.Version != version {
				return fmt.Errorf("%w: it is %s", ErrVersion, m.Version)
			}
		}
	}
	node := reflect.TypeFor[gorgonnx.Node]()
	field, ok := node.FieldByName(nodeField)
	if !ok || field.Type != reflect.TypeFor[*gorgonia.Node]() || node.NumField() != nodeFields {
		return fmt.Errorf("%w: its type Node has other fields", ErrVersion)
	}
	if operators[opType] == nil {
		return fmt.Errorf("%w: its table has no %s", ErrVersion, opType)
	}
	nodeOffset = field.Offset
	return nil
}

// gorgoniaNode returns a pointer to the field of n with this name.
func gorgoniaNode(n *gorgonnx.Node) **gorgonia.Node {
	return (**gorgonia.Node)(unsafe.Add(unsafe.Pointer(n), nodeOffset))
}
