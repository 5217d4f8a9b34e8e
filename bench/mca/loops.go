package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// layoutOfArgs returns the offsets in the kernels' arguments of the fields that
// are tensors, from the declaration of the struct.
func layoutOfArgs(root string) (map[int]string, error) {
	arm := build.Default
	arm.GOOS, arm.GOARCH = "linux", "arm64"
	pkg, err := arm.ImportDir(root, 0)
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range pkg.GoFiles {
		f, err := parser.ParseFile(set, filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	conf := types.Config{
		// The struct needs no other package, so that imports that fail don't matter.
		Importer: importer.Default(), Error: func(error) {}, IgnoreFuncBodies: true, FakeImportC: true,
	}
	checked, _ := conf.Check(pkg.Name, set, files, nil)
	object := checked.Scope().Lookup("kernelArgs")
	if object == nil {
		return nil, errors.New("the package has no type kernelArgs")
	}
	s, ok := object.Type().Underlying().(*types.Struct)
	if !ok {
		return nil, errors.New("kernelArgs is no struct")
	}
	var fields []*types.Var
	for f := range s.Fields() {
		fields = append(fields, f)
	}
	offsets := types.SizesFor("gc", "arm64").Offsetsof(fields)
	tensors := map[int]string{}
	for i, f := range fields {
		switch f.Name() {
		case "x", "dy", "res", "y", "dres":
			tensors[int(offsets[i])] = f.Name()
		}
	}
	if len(tensors) != 5 {
		return nil, fmt.Errorf("kernelArgs has the tensors %v only", tensors)
	}
	return tensors, nil
}

// instruction is a line of disassembly.
type instruction struct {
	at       int
	name     string
	operands string
}

// function is a kernel.
type function struct {
	name string
	code []instruction
}

var (
	headPattern = regexp.MustCompile(`^[0-9a-f]+ <github\.com/fusedbn/batchnorm\.(\w+)>:$`)
	linePattern = regexp.MustCompile(`^\s*([0-9a-f]+):\s+(\S+)(?:\s+(.*))?$`)
	// Kernels are known by their names: those in Go end differently.
	kernelPattern = regexp.MustCompile(`^[a-z]+([A-Z][a-z]+)?(Rows|Cols|Runs)((Identity|ReLU|Called)(Residual)?(DResidual)?(Stream)?)?$`)
)

// functions returns the kernels in the output of llvm-objdump.
func functions(text string) []function {
	var all []function
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasSuffix(line, ">:") {
			m := headPattern.FindStringSubmatch(line)
			if inside = m != nil && kernelPattern.MatchString(m[1]); inside {
				all = append(all, function{name: m[1]})
			}
			continue
		}
		m := linePattern.FindStringSubmatch(line)
		if !inside || m == nil {
			continue
		}
		at, _ := strconv.ParseInt(m[1], 16, 64) // the pattern is of digits
		operands, _, _ := strings.Cut(m[3], " <")
		f := &all[len(all)-1]
		f.code = append(f.code, instruction{int(at), m[2], strings.TrimSpace(operands)})
	}
	return all
}

// loop is the main loop of a kernel.
type loop struct {
	name          string
	body          []instruction
	elements      int // that are handled in an iteration
	loads, stores int // bytes of tensors
}

// mainLoop returns the innermost loop of f that handles the most elements.
// Tensors are the fields of the arguments by their offsets.
func mainLoop(f function, tensors map[int]string) (loop, error) {
	best := loop{name: f.name}
	where := pointers(f, tensors)
	for _, r := range innermost(f) {
		l := loop{name: f.name, body: f.code[r[0] : r[1]+1]}
		bytes := map[string]int{}
		for i, in := range l.body {
			size, store := in.moves()
			tensor := where[r[0]+i]
			if size == 0 || tensor == "" {
				continue
			}
			bytes[tensor] += size
			if store {
				l.stores += size
			} else {
				l.loads += size
			}
		}
		// Sums have no output, and of pipelined kernels the input is read
		// for two channels.
		if l.elements = bytes["y"] / 4; l.elements == 0 {
			l.elements = bytes["x"] / 4
		}
		if l.elements > best.elements {
			best = l
		}
	}
	if best.elements == 0 {
		return best, errors.New("no loop that moves elements of tensors")
	}
	return best, nil
}

var targetPattern = regexp.MustCompile(`0x([0-9a-f]+)$`)

// innermost returns the first and last instruction of each loop that has no
// other inside.
func innermost(f function) [][2]int {
	index := map[int]int{}
	for i, in := range f.code {
		index[in.at] = i
	}
	var all [][2]int
	for i, in := range f.code {
		if !in.branches() {
			continue
		}
		m := targetPattern.FindStringSubmatch(in.operands)
		if m == nil {
			continue
		}
		target, _ := strconv.ParseInt(m[1], 16, 64)
		if first, ok := index[int(target)]; ok && first <= i {
			all = append(all, [2]int{first, i})
		}
	}
	var inner [][2]int
	for i, a := range all {
		contains := false
		for j, b := range all {
			contains = contains || i != j && a[0] <= b[0] && b[1] <= a[1]
		}
		if !contains {
			inner = append(inner, a)
		}
	}
	return inner
}

func (in instruction) branches() bool {
	switch in.name {
	case "b", "cbz", "cbnz", "tbz", "tbnz":
		return true
	}
	return strings.HasPrefix(in.name, "b.")
}

var (
	registerPattern = regexp.MustCompile(`\bx\d+\b`)
	vectorPattern   = regexp.MustCompile(`\bq\d+\b`)
	basePattern     = regexp.MustCompile(`\[(x\d+|sp)(?:, #(0x[0-9a-f]+|-?\d+))?\]`)
)

// moves returns how many bytes the instruction loads into vectors, or stores
// from them; 0 for any other.
func (in instruction) moves() (bytes int, store bool) {
	switch in.name {
	case "ldr", "ldp", "ldnp", "ldur":
	case "str", "stp", "stnp", "stur":
		store = true
	case "ld1", "st1":
		registers, _, _ := strings.Cut(in.operands, "}")
		if strings.Contains(in.operands, "}[") {
			return 0, false // a lane, of a tail
		}
		return 16 * (strings.Count(registers, ",") + 1), in.name == "st1"
	default:
		return 0, false
	}
	registers, _, _ := strings.Cut(in.operands, "[")
	return 16 * len(vectorPattern.FindAllString(registers, -1)), store
}

// pointers returns, for each instruction of f that accesses memory, which tensor
// it is: "" for anything else. It follows the addresses from the arguments on,
// line by line: a register that holds a tensor's address goes on doing so when it
// is moved on.
func pointers(f function, tensors map[int]string) []string {
	const args = "arguments"
	holds := map[string]string{}
	where := make([]string, len(f.code))
	for i, in := range f.code {
		base := basePattern.FindStringSubmatch(in.operands)
		if base == nil { // post-indexed
			base = regexp.MustCompile(`\[(x\d+)\]`).FindStringSubmatch(in.operands)
		}
		if base != nil && holds[base[1]] != args {
			where[i] = holds[base[1]]
		}
		registers := registerPattern.FindAllString(in.operands, -1)
		if len(registers) == 0 {
			continue
		}
		to := registers[0]
		switch in.name {
		case "ldr":
			if !strings.HasPrefix(in.operands, to) {
				continue // into a vector
			}
			switch {
			case base == nil:
				delete(holds, to)
			case base[1] == "sp":
				holds[to] = args // all of them have just this one
			case holds[base[1]] == args:
				offset := int64(0)
				if base[2] != "" {
					offset, _ = strconv.ParseInt(base[2], 0, 64)
				}
				if tensor := tensors[int(offset)]; tensor != "" {
					holds[to] = tensor
				} else {
					delete(holds, to)
				}
			default:
				delete(holds, to)
			}
		case "mov", "add", "sub":
			held := ""
			for _, r := range registers[1:] {
				if h := holds[r]; h != "" && h != args {
					held = h
				}
			}
			if held != "" {
				holds[to] = held
			} else {
				delete(holds, to)
			}
		case "lsl", "lsr", "and", "ands", "subs", "adds", "mul", "madd", "adrp", "orr", "eor", "csel":
			delete(holds, to)
		}
	}
	return where
}
