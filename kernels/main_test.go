package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestUpToDate compares the committed files with what the generator writes.
func TestUpToDate(t *testing.T) {
	files := generate()
	names := slices.Sorted(maps.Keys(files))
	want := []string{"kernels_amd64.go", "kernels_amd64.s", "kernels_arm64.go", "kernels_arm64.s"}
	if !slices.Equal(names, want) {
		t.Errorf("the generator writes %q, want %q", names, want)
	}
	for _, name := range names {
		committed, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if got := files[name]; !bytes.Equal(committed, got) {
			t.Errorf("%s is not what the generator writes, from line %d on: run go generate ./... in the root of the module",
				name, firstDifferentLine(committed, got))
		}
	}
}

func firstDifferentLine(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return 1 + bytes.Count(a[:n], []byte("\n"))
}

// kernel is a function of an assembly file.
type kernel struct {
	name  string // ends in <> when it is not to be seen from Go
	frame string // what stands behind its name
	body  []instruction
}

// function reports whether it is the function of an activation.
func (k kernel) function() bool { return strings.HasSuffix(k.name, "<>") }

// calls reports whether it is a kernel that calls such a function.
func (k kernel) calls() bool { return strings.Contains(k.name, "Called") }

// plain reports whether it is neither a kernel nor a function, and uses no
// vectors.
func (k kernel) plain() bool { return k.name == "simdFence" || k.name == "simdActivation" }

// instruction is a line; a WORD is taken for what its comment says.
type instruction struct {
	line               int
	mnemonic, operands string
}

// parse reads what the generator printed.
func parse(t *testing.T, text []byte) []kernel {
	t.Helper()
	var list []kernel
	for i, line := range strings.Split(string(text), "\n") {
		code, comment, _ := strings.Cut(line, " // ")
		if rest, ok := strings.CutPrefix(code, "TEXT "); ok {
			rest = strings.TrimPrefix(rest, "·")
			name, frame, ok := strings.Cut(strings.TrimSpace(rest), "(SB), ")
			if !ok {
				t.Fatalf("line %d: %s", i+1, line)
			}
			list = append(list, kernel{name: name, frame: frame})
			continue
		}
		if !strings.HasPrefix(code, "\t") {
			continue // a label, data, or nothing
		}
		if strings.HasPrefix(code, "\tWORD ") {
			code = comment
		}
		mnemonic, operands, _ := strings.Cut(strings.TrimSpace(code), " ")
		k := &list[len(list)-1]
		k.body = append(k.body, instruction{i + 1, mnemonic, operands})
	}
	if want := len(variants()) + len(channelKernels) + 2 + 2*len(called); len(list) != want { // two are plain
		t.Fatalf("found %d functions, want %d", len(list), want)
	}
	return list
}

// rules are what the code of an architecture must obey.
type rules struct {
	// forbidden are the registers that Go reserves, and those that the
	// instruction set of the path has not.
	forbidden *regexp.Regexp
	// features tells for every instruction in use what a machine must have to
	// execute it. The guard is what detectSIMD asks for, and grants it all.
	features map[string]string
	guard    string
	granted  []string
	// end is what every return looks like.
	end []string
	// own are the registers that kernels which call, and functions, may use in
	// spite of all that; kept are those that a function may not touch.
	own, kept *regexp.Regexp
	// area matches the operands by which a function finds the kernel's area, in a
	// register that it has to keep.
	area *regexp.Regexp
	// saved are registers of kept that a function may use between instructions that
	// save and restore them.
	saved         *regexp.Regexp
	save, restore string
	frame         int // of a kernel that calls
}

const base = "base" // part of every machine of the architecture

var architectures = map[string]rules{
	"amd64": {
		// The goroutine, position-independent code, the frame and the stack;
		// AVX-512.
		forbidden: regexp.MustCompile(`\b(R14|R15|BP|SP|[XY](1[6-9]|[23]\d)|Z\d+|K[0-7])\b`),
		own:       regexp.MustCompile(`\bBP\b|^31\(SP\), BP$`),
		kept:      regexp.MustCompile(`\b([XY](0|1|15)|BX|DX|SI|DI|R\d+|SP)\b`),
		area:      regexp.MustCompile(`^$`), // by BP, which is not in kept
		frame:     amd64{}.frame(),
		features: map[string]string{
			"ADDQ":         base,
			"ANDQ":         base,
			"CALL":         base,
			"CMPQ":         base,
			"JMP":          base,
			"POPQ":         base,
			"PUSHQ":        base,
			"VADDPD":       "AVX",
			"VBLENDVPS":    "AVX",
			"VBROADCASTSD": "AVX", // from memory
			"VCVTPD2PSY":   "AVX",
			"VCVTPS2PD":    "AVX",
			"VDIVPD":       "AVX",
			"VEXTRACTF128": "AVX",
			"VINSERTF128":  "AVX",
			"VMAXPS":       "AVX",
			"VMINPS":       "AVX",
			"VMULPD":       "AVX",
			"VORPS":        "AVX",
			"VPADDQ":       "AVX2",
			"VPCMPGTD":     "AVX2",
			"VPERMPS":      "AVX2",
			"VPMAXSD":      "AVX2",
			"VPMINSD":      "AVX2",
			"VPSRLD":       "AVX2",
			"VTESTPS":      "AVX",
			"VPSLLQ":       "AVX2",
			"VSUBPD":       "AVX",
			"VCMPPD":       "AVX",
			"VHADDPD":      "AVX",
			"VMOVHPD":      "AVX",
			"VMOVSD":       "AVX",
			"VSQRTPD":      "AVX",
			"JEQ":          base,
			"JGE":          base,
			"JLT":          base,
			"JNE":          base,
			"LEAQ":         base,
			"MOVQ":         base,
			"PREFETCHT0":   base, // SSE, as SFENCE
			"PREFETCHT1":   base,
			"RET":          base,
			"SFENCE":       base,
			"SHLQ":         base,
			"SUBQ":         base,
			"VADDPS":       "AVX",
			"VANDNPS":      "AVX",
			"VANDPS":       "AVX",
			"VBROADCASTSS": "AVX2", // AVX from memory, AVX2 from a register
			"VCMPPS":       "AVX",
			"VMASKMOVPS":   "AVX",
			"VMOVAPS":      "AVX",
			"VMOVDQU":      "AVX",
			"VMOVNTPS":     "AVX",
			"VMOVUPS":      "AVX",
			"VMULPS":       "AVX",
			"VSUBPS":       "AVX",
			"VXORPS":       "AVX",
			"VZEROUPPER":   "AVX",
		},
		guard:   "cpu.X86.HasAVX && cpu.X86.HasAVX2",
		granted: []string{base, "AVX", "AVX2"},
		end:     []string{"VZEROUPPER", "RET"},
	},
	"arm64": {
		// The linker's, the platform's, the closure's, the assembler's, the
		// goroutine, the frame, the link and the stack.
		own:       regexp.MustCompile(`^\$area-288\(SP\), R23$`),
		kept:      regexp.MustCompile(`\b([VF]([0-3]|30|31)|R(\d|1[0-4]|23|25))\b`),
		area:      regexp.MustCompile(`\(R23\)(, \(F\d+, F\d+\))?$|^R23, R20$`),
		saved:     regexp.MustCompile(`\b[VF]3[01]\b`),
		save:      "FSTPQ (F30, F31), 256(R23)",
		restore:   "FLDPQ 256(R23), (F30, F31)",
		frame:     arm64{}.frame(),
		forbidden: regexp.MustCompile(`\b(R16|R17|R18|R18_PLATFORM|R26|R27|REGTMP|R28|g|R29|R30|LR|RSP|SP)\b`),
		features: map[string]string{
			"ADD":     base,
			"ANDS":    base,
			"B":       base,
			"BEQ":     base,
			"BGE":     base,
			"BLT":     base,
			"BNE":     base,
			"CBNZ":    base,
			"CBZ":     base,
			"VTBL":    "ASIMD",
			"VUSHR":   "ASIMD",
			"CALL":    base,
			"CMP":     base,
			"FLDPQ":   "ASIMD",
			"FMOVQ.P": "ASIMD",
			"FSTPQ":   "ASIMD",
			"LSL":     base,
			"MOVD":    base,
			"PRFM":    base,
			"RET":     base,
			"SUB":     base,
			"SUBS":    base,
			"TBZ":     base,
			"VADD":    "ASIMD",
			"VBIF":    "ASIMD",
			"VBIT":    "ASIMD",
			"VAND":    "ASIMD",
			"VBSL":    "ASIMD",
			"VORR":    "ASIMD",
			"VSHL":    "ASIMD",
			"VEOR":    "ASIMD",
			"VLD1":    "ASIMD",
			"VLD1.P":  "ASIMD",
			"VLD1R":   "ASIMD",
			"VMOV":    "ASIMD",
			"VST1":    "ASIMD",
			"VST1.P":  "ASIMD",
			// Those that Go's assembler does not know, by their comments.
			"FADD":   "ASIMD",
			"FCVTL":  "ASIMD",
			"FCVTL2": "ASIMD",
			"FCVTN":  "ASIMD",
			"FCVTN2": "ASIMD",
			"FDIV":   "ASIMD",
			"FMAX":   "ASIMD",
			"FMIN":   "ASIMD",
			"FMUL":   "ASIMD",
			"FSUB":   "ASIMD",
			"FADDP":  "ASIMD",
			"SMAX":   "ASIMD",
			"SMIN":   "ASIMD",
			"VCMGT":  "ASIMD",
			"VUMAXV": "ASIMD",
			"MUL":    "ASIMD",
			"VSSHR":  "ASIMD",
			"FSQRT":  "ASIMD",
			"VBIC":   "ASIMD",
			"VFCMGE": "ASIMD",
			"VFCMGT": "ASIMD",
			"VFCMLE": "ASIMD",
			"VSTNP":  "ASIMD",
		},
		guard:   "cpu.ARM64.HasASIMD",
		granted: []string{base, "ASIMD"},
		end:     []string{"RET"},
	},
}

// forEachArchitecture runs a test on the kernels of each instruction set. Stubs
// is the Go file beside them.
func forEachArchitecture(t *testing.T, test func(t *testing.T, r rules, kernels []kernel, stubs string)) {
	files := generate()
	for arch, r := range architectures {
		t.Run(arch, func(t *testing.T) {
			name := "kernels_" + arch
			test(t, r, parse(t, files[name+".s"]), string(files[name+".go"]))
		})
	}
}

func TestFrames(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []kernel, _ string) {
		for _, k := range kernels {
			want := "NOSPLIT, $0-8"
			switch {
			case k.name == "simdFence":
				want = "NOSPLIT, $0-0"
			case k.name == "simdActivation":
				want = "NOSPLIT, $0-16"
			case k.calls():
				want = fmt.Sprintf("NOSPLIT, $%d-8", r.frame)
			case k.function():
				want = "NOSPLIT|NOFRAME, $0-0"
			}
			if k.frame != want {
				t.Errorf("%s has the frame %q, want %q", k.name, k.frame, want)
			}
		}
	})
}

func TestRegisters(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []kernel, _ string) {
		for _, k := range kernels {
			for _, in := range k.body {
				if (k.calls() || k.function()) && r.own.MatchString(in.operands) {
					continue
				}
				if reg := r.forbidden.FindString(in.operands); reg != "" {
					t.Errorf("%s, line %d: %s %s uses %s", k.name, in.line, in.mnemonic, in.operands, reg)
				}
			}
		}
	})
}

// TestFunctionsKeep checks that a function of an activation leaves alone what a
// kernel that calls it relies on: the sums, the mask of a part, and the registers
// that are neither the function's own nor saved by it.
func TestFunctionsKeep(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []kernel, _ string) {
		functions := 0
		for _, k := range kernels {
			if !k.function() {
				continue
			}
			functions++
			saved := false
			for i, in := range k.body {
				if text := in.mnemonic + " " + in.operands; r.saved != nil {
					if text == r.save {
						saved = true
						continue
					}
					if in.mnemonic == "RET" && saved && k.body[i-1].mnemonic+" "+k.body[i-1].operands != r.restore {
						t.Errorf("%s, line %d: returns without %s", k.name, in.line, r.restore)
					}
				}
				operands := r.area.ReplaceAllString(in.operands, "$1")
				if saved {
					operands = r.saved.ReplaceAllString(operands, "")
				}
				if reg := r.kept.FindString(operands); reg != "" && reg != "SB" {
					t.Errorf("%s, line %d: %s %s uses %s", k.name, in.line, in.mnemonic, in.operands, reg)
				}
			}
		}
		if want := 2 * len(called); functions != want {
			t.Errorf("%d functions were checked, want %d", functions, want)
		}
	})
}

// TestReturns checks that the upper halves of the registers are cleared before
// every return, and that there is a return at the end.
func TestReturns(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []kernel, _ string) {
		for _, k := range kernels {
			var mnemonics []string
			for _, in := range k.body {
				mnemonics = append(mnemonics, in.mnemonic)
			}
			for i := range k.body {
				last := i == len(k.body)-1
				if mnemonics[i] != "RET" && !last {
					continue
				}
				if k.plain() || k.function() {
					if mnemonics[i] != "RET" {
						t.Errorf("%s, line %d: does not return", k.name, k.body[i].line)
					}
					continue
				}
				if from := i + 1 - len(r.end); from < 0 || !slices.Equal(mnemonics[from:i+1], r.end) {
					t.Errorf("%s, line %d: does not return by %s", k.name, k.body[i].line, strings.Join(r.end, ", "))
				}
			}
		}
	})
}

// fused matches the instructions that multiply and add with one rounding.
var fused = regexp.MustCompile(`^V?FN?M(ADD|SUB|LA|LS)`)

// TestFeatures checks that the kernels use only instructions that were looked
// at, and that a machine which passes the guard can execute them.
func TestFeatures(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []kernel, stubs string) {
		if !strings.Contains(stubs, "if "+r.guard+" {") {
			t.Errorf("detectSIMD does not ask for %s", r.guard)
		}
		for name := range r.features {
			if fused.MatchString(name) {
				t.Errorf("%s is allowed, but no path may fuse a product and a sum", name)
			}
		}
		seen := map[string]bool{}
		for _, k := range kernels {
			for _, in := range k.body {
				name := in.mnemonic
				feature, ok := r.features[name]
				switch {
				case seen[name]:
				case fused.MatchString(name):
					t.Errorf("%s, line %d: %s fuses a product and a sum, which pure Go can't repeat", k.name, in.line, name)
				case !ok:
					t.Errorf("%s, line %d: %s is new: enter it in this test with what it needs of a machine", k.name, in.line, name)
				case !slices.Contains(r.granted, feature):
					t.Errorf("%s, line %d: %s needs %s, which %s does not grant", k.name, in.line, name, feature, r.guard)
				}
				seen[name] = true
			}
		}
	})
}

// typeCheck returns the constants of a file of the package, as far as they
// depend on that file alone, and the syntax.
func typeCheck(t *testing.T, name string) (*types.Scope, *ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, filepath.Join("..", name), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	config := types.Config{Error: func(error) {}} // the other files are missing
	pkg, _ := config.Check("batchnorm", fset, []*ast.File{file}, nil)
	return pkg.Scope(), file
}

func TestConstants(t *testing.T) {
	scope, _ := typeCheck(t, "kernels.go")
	for name, want := range map[string]int{
		"fieldN":  fieldN,
		"fieldA":  fieldA,
		"fieldB":  fieldB,
		"fieldK1": fieldK1,
		"fieldK2": fieldK2,
		"coefLen": coefLen,
		"lanes":   vecBytes / floatBytes,
	} {
		sameConstant(t, scope, "kernels.go", name, want)
	}
	scope, _ = typeCheck(t, "vmath.go")
	for name, want := range map[string]int{
		"tailEnd":     tailEnd,
		"eluTail":     eluTail,
		"tanhTail":    tanhTail,
		"mishEnd":     mishEnd,
		"geluEnd":     geluEnd,
		"geluTanhEnd": geluTanhEnd,
	} {
		sameConstant(t, scope, "vmath.go", name, want)
	}
}

// TestLimits compares the limits of what is usual with those in Go.
func TestLimits(t *testing.T) {
	scope, _ := typeCheck(t, "stats.go")
	for name, want := range map[string]float64{"tameMin": tameMin, "tameMax": tameMax, "sureMin": sureMin, "sureMax": sureMax} {
		c, ok := scope.Lookup(name).(*types.Const)
		if !ok {
			t.Errorf("../stats.go has no constant %s", name)
			continue
		}
		if got, _ := constant.Float64Val(constant.ToFloat(c.Val())); got != want {
			t.Errorf("%s is %v in ../stats.go, and %v in the generator", name, got, want)
		}
	}
}

// TestChannelConstants compares the list of the kernels that compute with channels
// with their constants.
func TestChannelConstants(t *testing.T) {
	scope, _ := typeCheck(t, "channels.go")
	for i, k := range channelKernels {
		sameConstant(t, scope, "channels.go", "channel"+k.name, i)
	}
}

func sameConstant(t *testing.T, scope *types.Scope, file, name string, want int) {
	t.Helper()
	c, ok := scope.Lookup(name).(*types.Const)
	if !ok {
		t.Errorf("../%s has no constant %s", file, name)
		return
	}
	if got, ok := constant.Int64Val(c.Val()); !ok || got != int64(want) {
		t.Errorf("%s is %v in ../%s, and %d in the generator", name, c.Val(), file, want)
	}
}

// TestActivations compares the list of activations with the constants of
// actKind.
func TestActivations(t *testing.T) {
	scope, file := typeCheck(t, "activation.go")
	var got []string
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			for _, name := range s.(*ast.ValueSpec).Names {
				c, ok := scope.Lookup(name.Name).(*types.Const)
				if !ok || !strings.HasSuffix(c.Type().String(), ".actKind") {
					continue
				}
				if v, _ := constant.Int64Val(c.Val()); v != int64(len(got)) {
					t.Errorf("%s is %v, want %d", name.Name, c.Val(), len(got))
				}
				got = append(got, name.Name)
			}
		}
	}
	var want []string
	for _, a := range inline {
		want = append(want, "act"+a.name)
	}
	for _, a := range called {
		want = append(want, "act"+a.name)
	}
	if want = append(want, "numActs"); !slices.Equal(got, want) {
		t.Errorf("../activation.go has the activations %q, the generator has %q", got, want)
	}
}
