package batchnorm_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// everything is a program that keeps the linker from leaving out any part of
// the package, and that multiplies and adds in a way that compilers fuse.
const everything = `package main

import "github.com/fusedbn/batchnorm"

func fused32(x, y, z float32) float32 { return x*y + z }
func fused64(x, y, z float64) float64 { return x*y + z }

func main() {
	p, _ := batchnorm.NewPlan(batchnorm.Shape{})
	p.Forward(batchnorm.ForwardArgs{})
	p.Inference(batchnorm.InferenceArgs{})
	p.Backward(batchnorm.BackwardArgs{})
}
`

// buildEverything builds that program for linux on the given architecture and
// returns the file and the assembly that the compiler made of the package, of its
// internal packages and of the program. It stands in a folder that only the go command sees.
func buildEverything(t *testing.T, env []string) (binary, listing string) {
	t.Helper()
	const pkg, program = "github.com/fusedbn/batchnorm", "everything"
	root, err := os.Getwd()
	noError(t, err)
	dir := t.TempDir()
	source, overlay, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, program)
	noError(t, os.WriteFile(source, []byte(everything), 0o644))
	replace, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(root, program, "main.go"): source},
	})
	noError(t, err)
	noError(t, os.WriteFile(overlay, replace, 0o644))
	return binary, goCommand(t, append(env, "GOOS=linux", "CGO_ENABLED=0"),
		"build", "-overlay", overlay, "-o", binary, "-gcflags="+pkg+"/...=-S", "./"+program)
}

// goCommand runs the go command, which must succeed, and returns its output.
func goCommand(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, err := tryGoCommand(t, env, args...)
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// tryGoCommand is goCommand for a command that may fail. Without a go command
// on this machine it skips the test.
func tryGoCommand(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	command, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("there is no go command here: %v", err)
	}
	cmd := exec.Command(command, args...)
	cmd.Env = append(append(os.Environ(), "GOFLAGS="), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// encodedMacro is a macro whose instructions are words. The comment above it tells them.
type encodedMacro struct {
	operands     []string
	instructions []string
	used         int
}

var operandOfMacro = regexp.MustCompile(`\b([a-z])([01])\b|\bR([a-z])\b|\$([a-z])\b`)

// expand returns the instructions with the operands' values: x0 and x1 are the
// registers of vector x, Rx is register x, and $x the number x.
func (m *encodedMacro) expand(values []string) ([]string, error) {
	if len(values) != len(m.operands) {
		return nil, fmt.Errorf("%d operands, want %d", len(values), len(m.operands))
	}
	number := map[string]int{}
	for i, o := range m.operands {
		v, err := strconv.Atoi(values[i])
		if err != nil {
			return nil, err
		}
		number[o] = v
	}
	var list []string
	for _, text := range m.instructions {
		list = append(list, operandOfMacro.ReplaceAllStringFunc(text, func(o string) string {
			switch p := operandOfMacro.FindStringSubmatch(o); {
			case p[3] != "":
				return fmt.Sprint("R", number[p[3]])
			case p[4] != "":
				return fmt.Sprint("$", number[p[4]])
			default:
				half, _ := strconv.Atoi(p[2])
				return fmt.Sprint("V", 2*number[p[1]]+half)
			}
		}))
	}
	return list, nil
}

// TestEncodings disassembles every use of a macro that consists of words, and compares the
// instructions with the comment above the macro.
func TestEncodings(t *testing.T) {
	t.Parallel()
	const file = "kernels_arm64.s"
	text, err := os.ReadFile(file)
	noError(t, err)
	binary, _ := buildEverything(t, []string{"GOARCH=arm64"})
	// Go is not at one with itself whether a vector instruction begins with a V.
	canonical := func(text string) string {
		return strings.TrimPrefix(strings.Join(strings.Fields(text), " "), "V")
	}
	decoded := map[string][]string{} // by line
	for _, m := range regexp.MustCompile(`(?m)^\s*`+regexp.QuoteMeta(file)+`:(\d+)\s+0x[0-9a-f]+\s+[0-9a-f]{8}\s+(.*)$`).
		FindAllStringSubmatch(goCommand(t, nil, "tool", "objdump", "-s", `^github\.com/fusedbn/batchnorm\.`, binary), -1) {
		decoded[m[1]] = append(decoded[m[1]], canonical(m[2]))
	}

	definition := regexp.MustCompile(`^#define (\w+)\((.*?)\) WORD `)
	use := regexp.MustCompile(`^\t(\w+)\((.*)\)$`)
	macros := map[string]*encodedMacro{}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if m := definition.FindStringSubmatch(line); m != nil {
			comment, ok := strings.CutPrefix(lines[i-1], "// ")
			if !ok {
				t.Errorf("%s:%d: %s has no comment that tells its instructions", file, i+1, m[1])
			}
			macros[m[1]] = &encodedMacro{operands: strings.Split(m[2], ", "), instructions: strings.Split(comment, "; ")}
			continue
		}
		if strings.Contains(line, "WORD ") {
			t.Errorf("%s:%d: want words in macros only: %s", file, i+1, line)
		}
		m := use.FindStringSubmatch(line)
		if m == nil || macros[m[1]] == nil {
			continue
		}
		macro := macros[m[1]]
		macro.used++
		want, err := macro.expand(strings.Split(m[2], ", "))
		if err != nil {
			t.Errorf("%s:%d: %s: %v", file, i+1, line, err)
		}
		for j := range want {
			want[j] = canonical(want[j])
		}
		if got := decoded[strconv.Itoa(i+1)]; !slices.Equal(got, want) {
			t.Errorf("%s:%d:%s is %q, want %q", file, i+1, line, got, want)
		}
	}
	for name, m := range macros {
		if m.used == 0 {
			t.Errorf("%s: nothing uses %s, so that its encoding is not proved", file, name)
		}
	}
	if len(macros) == 0 {
		t.Errorf("%s has no encodings", file)
	}
}

// fusedMnemonic matches the instructions that multiply and add with one
// rounding, on every architecture that has them: FMADDS, VFMADD231SS, WFMADB,
// XSMADDADP, VFMLA, FMULAD and the like.
var fusedMnemonic = regexp.MustCompile(`^(V?FN?M(ADD|SUB|LA|LS)|WFN?M[AS][DS]B|X[SV]N?M(ADD|SUB)|FN?MUL[AS][DF]$)`)

// TestNothingFused looks for fused instructions in the compiled package, on architectures
// where the compiler may fuse: results would have other bits than elsewhere.
func TestNothingFused(t *testing.T) {
	t.Parallel()
	targets := []string{"arm64", "amd64 v3", "ppc64le", "s390x", "riscv64", "loong64"}
	if !thorough() {
		targets = targets[:1] // the others compile the standard library, if it is for the first time
	}
	for _, target := range targets {
		t.Run(target, func(t *testing.T) {
			arch, level, _ := strings.Cut(target, " ")
			_, listing := buildEverything(t, []string{"GOARCH=" + arch, "GOAMD64=" + level})
			function, functions, scalars := "", 0, 0
			fused := map[string]bool{} // the functions of the program
			for _, line := range strings.SplitAfter(listing, "\n") {
				if name, _, ok := strings.Cut(line, " STEXT "); ok {
					function = name
					functions++
					if strings.Contains(name, "/internal/scalar.") {
						scalars++
					}
					continue
				}
				// "\t0x0106 00262 (file.go:246)\tMULSS\tX1, X1\n"
				f := strings.SplitN(strings.TrimSpace(line), "\t", 3)
				if len(f) < 2 || !fusedMnemonic.MatchString(f[1]) {
					continue
				}
				switch {
				case strings.HasPrefix(function, "main."):
					fused[function] = true
				case strings.HasSuffix(function, ".exactProduct"): // which calls math.FMA
				default:
					t.Errorf("%s multiplies and adds with one rounding: %s", function, strings.TrimSpace(line))
				}
			}
			if functions < 100 || scalars < 20 || !fused["main.fused32"] || !fused["main.fused64"] {
				t.Errorf("the listing has %d functions, %d of them of activations, and fused instructions in %v: this test does not see what it should",
					functions, scalars, fused)
			}
		})
	}
}
