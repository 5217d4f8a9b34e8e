package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// A kernel as llvm-objdump prints it: two loops in a third, of which the first
// handles 16 elements and the second 8. Between them is a constant, and a load
// that moves its address on.
const dump = `
bn.test:	file format elf64-littleaarch64

0000000000001000 <github.com/fusedbn/batchnorm.someRows>:
    1000:      	ldr	x0, [sp, #0x8]
    1004:      	ldr	x0, [x0]
    1008:      	ldr	x1, [sp, #0x8]
    100c:      	ldr	x1, [x1, #0x48]
    1010:      	ldr	x2, [sp, #0x8]
    1014:      	ldr	x2, [x2, #0x78]
    1018:      	add	x24, x2, #0x4
    101c:      	ld1r	{ v4.4s }, [x24]
    1020:      	ldp	q0, q1, [x0], #0x20
    1024:      	ldr	q6, [x2]
    1028:      	add	x24, x0, x5
    102c:      	ldp	q2, q3, [x24]
    1030:      	fadd	v0.4s, v4.4s, v0.4s
    1034:      	stp	q0, q1, [x1]
    1038:      	stnp	q2, q3, [x1, #0x20]
    103c:      	prfm	pldl1keep, [x24]
    1040:      	subs	x4, x4, #0x10
    1044:      	b.ge	0x1020 <github.com/fusedbn/batchnorm.someRows+0x20>
    1048:      	ldp	q0, q1, [x0]
    104c:      	stp	q0, q1, [x1]
    1050:      	cbnz	x4, 0x1048 <github.com/fusedbn/batchnorm.someRows+0x48>
    1054:      	b	0x1018 <github.com/fusedbn/batchnorm.someRows+0x18>
    1058:      	ret

0000000000002000 <github.com/fusedbn/batchnorm.simdFence.abi0>:
    2000:      	dmb	ish

0000000000003000 <github.com/fusedbn/batchnorm.momentsColsGeneric>:
    3000:      	b	0x3000 <github.com/fusedbn/batchnorm.momentsColsGeneric>
`

var fields = map[int]string{0: "x", 0x18: "dy", 0x30: "res", 0x48: "y", 0x60: "dres"}

func TestMainLoop(t *testing.T) {
	all := functions(dump)
	if len(all) != 1 || all[0].name != "someRows" || len(all[0].code) != 23 {
		t.Fatalf("functions: %+v", all)
	}
	if loops := innermost(all[0]); !reflect.DeepEqual(loops, [][2]int{{8, 17}, {18, 20}}) {
		t.Errorf("innermost loops: %v", loops)
	}
	l, err := mainLoop(all[0], fields)
	if err != nil {
		t.Fatal(err)
	}
	if l.elements != 16 || l.loads != 64 || l.stores != 64 || len(l.body) != 10 {
		t.Errorf("main loop: %+v", l)
	}
	if got, want := l.assembly(), []string{
		"ldp q0, q1, [x0]", "add x0, x0, #0x20", "ldr q6, [x2]", "add x24, x0, x5", "ldp q2, q3, [x24]",
		"fadd v0.4s, v4.4s, v0.4s", "stp q0, q1, [x1]", "stnp q2, q3, [x1, #0x20]", "prfm pldl1keep, [x24]",
		"subs x4, x4, #0x10", "b.ge .",
	}; !slices.Equal(got, want) {
		t.Errorf("for llvm-mca: %q", got)
	}
	if got, want := l.traffic(), []string{
		"ldp q0, q1, [x0, #0]", "ldp q0, q1, [x0, #32]", "stp q2, q3, [x1, #0]", "stp q2, q3, [x1, #32]",
	}; !slices.Equal(got, want) {
		t.Errorf("traffic: %q", got)
	}
	if got, want := l.arithmetic(), []string{"fadd v0.4s, v4.4s, v0.4s"}; !slices.Equal(got, want) {
		t.Errorf("arithmetic: %q", got)
	}
	if _, err := mainLoop(function{name: "f"}, fields); err == nil {
		t.Error("finds a loop in nothing")
	}
}

func TestMoves(t *testing.T) {
	for _, c := range []struct {
		name, operands string
		bytes          int
		store          bool
	}{
		{"ldp", "q6, q7, [x0, #0x20]", 32, false},
		{"stnp", "q6, q7, [x1]", 32, true},
		{"ldr", "q6, [x24], #0x10", 16, false},
		{"ldr", "x6, [x24]", 0, false},
		{"ld1", "{ v0.4s, v1.4s }, [x0]", 32, false},
		{"ld1", "{ v7.s }[2], [x24]", 0, false},
		{"fadd", "v6.4s, v0.4s, v6.4s", 0, false},
	} {
		if bytes, store := (instruction{name: c.name, operands: c.operands}).moves(); bytes != c.bytes || store != c.store {
			t.Errorf("%s %s moves %d bytes, store %t", c.name, c.operands, bytes, store)
		}
	}
}

func TestThroughputs(t *testing.T) {
	got, err := throughputs("Iterations: 100\nBlock RThroughput: 3.5\n\n[1] Code Region - b\nBlock RThroughput: 12.0\n")
	if err != nil || !slices.Equal(got, []float64{3.5, 12}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, out := range []string{"", "Block RThroughput: 0.0\n"} {
		if got, err := throughputs(out); err == nil {
			t.Errorf("%q gives %v", out, got)
		}
	}
}

// The offsets are those of the package as it is.
func TestLayoutOfArgs(t *testing.T) {
	got, err := layoutOfArgs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if got[0] != "x" || len(got) != 5 {
		t.Errorf("tensors at %v", got)
	}
}

func TestMissing(t *testing.T) {
	if err := run(nil, ".", "llvm-mca-of-nobody", "go"); !errors.Is(err, errMissing) || !strings.Contains(err.Error(), "apt-get install llvm-19") {
		t.Error(err)
	}
}

// The table as a whole, of two kernels of each layout.
func TestRun(t *testing.T) {
	const mca, objdump = "llvm-mca-19", "llvm-objdump-19"
	for _, program := range []string{mca, objdump} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is %v", program, errMissing)
		}
	}
	if os.Getenv("BATCHNORM_TESTS") != "all" {
		t.Skip("builds the package's tests for arm64: BATCHNORM_TESTS=all runs it")
	}
	var out strings.Builder
	if err := run(&out, "^(moments|normalize)(Rows|Cols)(Identity)?$", mca, objdump); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nmomentsRows ", "\nnormalizeColsIdentity ", "apple-m1", "\nneoverse-v1: "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
	if err := run(&out, "^noSuchKernel$", mca, objdump); err == nil {
		t.Error("prints a table of nothing")
	}
}
