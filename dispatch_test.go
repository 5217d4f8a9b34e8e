package batchnorm_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
	"golang.org/x/sys/cpu"
)

// noAssembly is true in a build without assembly.
var noAssembly bool

// instructionSet has the requirements of a path.
type instructionSet struct {
	path    batchnorm.Path
	has     bool
	options []string // of GODEBUG: each of them switches it off
}

// instructionSetsHere returns those of this build, the fastest first.
func instructionSetsHere() []instructionSet {
	switch {
	case noAssembly:
	case runtime.GOARCH == "amd64":
		has := cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasFMA
		return []instructionSet{{batchnorm.PathAVX2, has, []string{"cpu.avx2", "cpu.avx", "cpu.fma"}}}
	case runtime.GOARCH == "arm64":
		return []instructionSet{{batchnorm.PathNEON, cpu.ARM64.HasASIMD, []string{"cpu.asimd"}}}
	}
	return nil
}

// wantPaths returns the expected paths with a setting of GODEBUG, on a machine with these
// instruction sets.
func wantPaths(sets []instructionSet, godebug string) []batchnorm.Path {
	var want []batchnorm.Path
	for _, set := range sets {
		on := set.has
		for _, setting := range strings.Split(godebug, ",") {
			option, off := strings.CutSuffix(setting, "=off")
			if off && (option == "cpu.all" || slices.Contains(set.options, option)) {
				on = false
			}
		}
		if on {
			want = append(want, set.path)
		}
	}
	return append(want, batchnorm.PathGeneric)
}

func TestDefaultPath(t *testing.T) {
	want := wantPaths(instructionSetsHere(), os.Getenv("GODEBUG"))
	if got := batchnorm.Paths(); !slices.Equal(got, want) {
		t.Errorf("the paths are %v, want %v", got, want)
	}
	if got := batchnorm.DefaultPath(); got != want[0] {
		t.Errorf("the default path is %v, want %v", got, want[0])
	}
}

// childVariable tells a test that it runs in a process of its own, and names its task.
const childVariable = "BATCHNORM_TEST_CHILD"

// runChild runs a test of the given test binary in a process of its own.
// A binary that cannot be started skips the calling test.
func runChild(t *testing.T, binary, test, task string, env ...string) (output string, exitCode int) {
	t.Helper()
	cmd := exec.Command(binary, "-test.run=^"+test+"$", "-test.count=1")
	cmd.Env = append(append(os.Environ(), childVariable+"="+task, "GORACE=atexit_sleep_ms=0"), env...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Skipf("a test binary can't start itself here (under an emulator the kernel must know the format, by binfmt_misc): %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// ownBinary returns the file that is running.
func ownBinary(t *testing.T) string {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Skipf("a test binary can't start itself here: %v", err)
	}
	return binary
}

// TestGODEBUG starts the test binary with instruction sets switched off.
func TestGODEBUG(t *testing.T) {
	sets := instructionSetsHere()
	if len(sets) == 0 {
		t.Skip("this build has no assembly to switch off")
	}
	settings := []string{"", "cpu.all=off"}
	for _, option := range sets[0].options {
		settings = append(settings, option+"=on", option+"=off")
	}
	for _, godebug := range settings {
		t.Run("GODEBUG="+godebug, func(t *testing.T) {
			out, code := runChild(t, ownBinary(t), "TestPrintPath", "print", "GODEBUG="+godebug)
			m := regexp.MustCompile(`paths=(\[.*\]) features=(.*)\n`).FindStringSubmatch(out)
			if m == nil || code != 0 {
				t.Fatalf("exit status %d:\n%s", code, out)
			}
			there := slices.Clone(sets)
			for i, has := range strings.Fields(m[2]) {
				there[i].has = has == "true"
			}
			if want := fmt.Sprint(wantPaths(there, godebug)); m[1] != want {
				t.Errorf("the paths are %s, want %s (features: %s)", m[1], want, m[2])
			}
		})
	}
}

// TestPrintPath is run by TestGODEBUG. The features are printed too, since the parent may
// run on an emulator and the child may not.
func TestPrintPath(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		t.Skip("is run by TestGODEBUG")
	}
	fmt.Printf("paths=%v features=", batchnorm.Paths())
	for _, set := range instructionSetsHere() {
		fmt.Print(set.has, " ")
	}
	fmt.Println()
}

func TestPaths(t *testing.T) {
	paths := batchnorm.Paths()
	if paths[0] != batchnorm.DefaultPath() {
		t.Errorf("Paths() is %v, the first should be the default, %v", paths, batchnorm.DefaultPath())
	}
	if last := paths[len(paths)-1]; last != batchnorm.PathGeneric {
		t.Errorf("Paths() is %v, the last should be %v", paths, batchnorm.PathGeneric)
	}
	s := batchnorm.Shape{Outer: 2, Channels: 3, Inner: 4}
	if got := newPlan(t, s).Path(); got != batchnorm.DefaultPath() {
		t.Errorf("a plan has the path %v, want the default, %v", got, batchnorm.DefaultPath())
	}
	for _, path := range []batchnorm.Path{batchnorm.PathGeneric, batchnorm.PathAVX2, batchnorm.PathNEON} {
		p, err := batchnorm.NewPlan(s, batchnorm.WithPath(path))
		available := false
		for _, here := range paths {
			available = available || here == path
		}
		switch {
		case !available && !errors.Is(err, batchnorm.ErrOption):
			t.Errorf("path %v, which is not available: the error is %v, want ErrOption", path, err)
		case available && err != nil:
			t.Errorf("path %v: %v", path, err)
		case available && p.Path() != path:
			t.Errorf("the plan has path %v, want %v", p.Path(), path)
		}
	}
}
