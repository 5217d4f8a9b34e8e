// Command mca prints what the main loops of the NEON kernels cost by the
// machine models of LLVM: cycles per element, beside the cycles that their loads
// and stores of tensors take alone. It needs no arm64 machine, but llvm-mca and
// llvm-objdump: apt-get install llvm-19.
//
// The loops are taken out of the assembled package, so that the table is of the
// code as it is. A model is no measurement: it knows nothing of caches.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// processors are LLVM's names of the models.
var processors = []string{"neoverse-n1", "neoverse-v1", "neoverse-v2", "apple-m1"}

// goal is the fraction of the bound that kernels are to reach which match
// goalKernels, on goalProcessors.
const goal = 0.8

var (
	goalKernels    = regexp.MustCompile(`^(normalize|inputGrad)(Rows|Cols)Identity`)
	goalProcessors = processors[:2]
)

func main() {
	kernels := flag.String("kernels", ".", "only kernels whose name matches this `expression`")
	mca := flag.String("mca", "llvm-mca-19", "`program`")
	objdump := flag.String("objdump", "llvm-objdump-19", "`program`")
	flag.Parse()
	if err := run(os.Stdout, *kernels, *mca, *objdump); err != nil {
		fmt.Fprintf(os.Stderr, "mca: %v\n", err)
		os.Exit(1)
	}
}

var errMissing = errors.New("not on this machine: apt-get install llvm-19")

func run(w io.Writer, kernels, mca, objdump string) error {
	want, err := regexp.Compile(kernels)
	if err != nil {
		return fmt.Errorf("-kernels: %w", err)
	}
	for _, program := range []string{mca, objdump} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is %w", program, errMissing)
		}
	}
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	args, err := layoutOfArgs(root)
	if err != nil {
		return err
	}
	text, err := disassemble(root, objdump)
	if err != nil {
		return err
	}
	var loops []loop
	for _, f := range functions(text) {
		if !want.MatchString(f.name) {
			continue
		}
		l, err := mainLoop(f, args)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		loops = append(loops, l)
	}
	if len(loops) == 0 {
		return fmt.Errorf("no kernel matches %q", kernels)
	}
	costs := make([][]cost, len(processors))
	for i, cpu := range processors {
		if costs[i], err = estimate(mca, cpu, loops); err != nil {
			return fmt.Errorf("%s: %w", cpu, err)
		}
	}
	table(w, loops, costs)
	return nil
}

// disassemble returns the kernels in the form of llvm-objdump. They are in the test binary,
// because the linker leaves out of any other the functions that are not called.
func disassemble(root, objdump string) (string, error) {
	folder, err := os.MkdirTemp("", "batchnorm-mca-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(folder)
	binary := filepath.Join(folder, "batchnorm.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Dir = root
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "GOEXPERIMENT=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c: %w\n%s", err, out)
	}
	out, err := exec.Command(objdump, "-d", "--no-show-raw-insn", binary).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", objdump, err)
	}
	return string(out), nil
}

func table(w io.Writer, loops []loop, costs [][]cost) {
	width := 0
	for _, l := range loops {
		width = max(width, len(l.name))
	}
	fmt.Fprintf(w, "%-*s  %8s  %12s", width, "", "elements", "instructions")
	for _, cpu := range processors {
		fmt.Fprintf(w, "  | %-35s", cpu)
	}
	fmt.Fprintf(w, "\n%-*s  %8s  %12s", width, "kernel", "of loop", "of loop")
	for range processors {
		fmt.Fprintf(w, "  | %9s  %6s  %8s  %6s", "cyc/elem.", "bound", "fraction", "needed")
	}
	fmt.Fprintln(w)
	for k, l := range loops {
		fmt.Fprintf(w, "%-*s  %8d  %12d", width, l.name, l.elements, len(l.body))
		for i := range processors {
			c := costs[i][k]
			n := float64(l.elements)
			fmt.Fprintf(w, "  | %9.3f  %6.3f  %8.2f  %6.3f", c.cycles/n, c.bound/n, c.fraction(), c.needed/n)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, `
cyc/elem. is the block's reciprocal throughput by llvm-mca, of the loop that handles most elements
at a time; bound is the same of its loads and stores of tensors alone, 32 bytes at a time in pairs
of registers; fraction = bound / cyc/elem.; needed is the same of these together with the loop's
vector arithmetic: where it is more than the bound, no loop with that arithmetic can reach it. Loads
of constants, prefetches, addresses and branches are in cyc/elem. only.

`)
	for _, cpu := range goalProcessors {
		reached, total := 0, 0
		var short []string
		for k, l := range loops {
			if !goalKernels.MatchString(l.name) {
				continue
			}
			total++
			if f := costs[slices.Index(processors, cpu)][k].fraction(); f >= goal {
				reached++
			} else {
				c := costs[slices.Index(processors, cpu)][k]
				short = append(short, fmt.Sprintf("%s (%.2f; %.2f of what is needed)", l.name, f, c.needed/c.cycles))
			}
		}
		if total == 0 {
			continue
		}
		fmt.Fprintf(w, "%s: %d of %d variants of normalize and inputGrad reach %.2g of the bound.\n", cpu, reached, total, goal)
		if len(short) > 0 {
			fmt.Fprintf(w, "  Not: %s.\n", strings.Join(short, ",\n    "))
		}
	}
}
