package main

import (
	"bytes"
	"cmp"
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
	"strconv"
	"strings"
	"testing"
)

// TestUpToDate compares the committed files with what the generator writes.
func TestUpToDate(t *testing.T) {
	files := generate()
	names := slices.Sorted(maps.Keys(files))
	want := []string{"kernels_amd64.go", "kernels_amd64.s", "kernels_arm64.go", "kernels_arm64.s", "kernels_list_test.go"}
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

// routine is a function of an assembly file.
type routine struct {
	name  string
	frame string // text after its name
	body  []instruction
}

// function reports whether it is the function of an activation.
func (k routine) function() bool { return strings.HasPrefix(k.name, "act") }

// calls reports whether it is a kernel that calls such a function.
func (k routine) calls() bool { return strings.Contains(k.name, "Called") }

// plainFrames are the frames of those that are neither kernels nor functions, and
// use no vectors.
var plainFrames = map[string]string{
	"simdKernel":     "NOSPLIT|NOFRAME, $0-16",
	"simdChannels":   "NOSPLIT|NOFRAME, $0-16",
	"simdActivation": "NOSPLIT|NOFRAME, $0-16",
	"simdTurns":      "NOSPLIT|NOFRAME, $0-24",
	"simdFence":      "NOSPLIT, $0-0",
	"absent":         "NOSPLIT|NOFRAME, $0-0",
}

// turns reports whether it is a kernel that takes sums and writes outputs.
func (k routine) turns() bool { return strings.Contains(k.name, "With") }

func (k routine) plain() bool { return plainFrames[k.name] != "" }

// subroutine reports whether it is one that moves a tail.
func (k routine) subroutine() bool { return strings.Contains(k.name, "Tail") }

// instruction is an instruction of a line; a macro of words stands for the instructions in
// its comment.
type instruction struct {
	line               int
	mnemonic, operands string
}

// distinctFunctions is the number of functions of activations: softplus' derivative is the
// sigmoid.
func distinctFunctions() int { return 2*len(called) - 1 }

// parse reads the output of the generator.
func parse(t *testing.T, text []byte) []routine {
	t.Helper()
	var list []routine
	for i, line := range strings.Split(string(text), "\n") {
		code, _, _ := strings.Cut(line, " // ")
		if rest, ok := strings.CutPrefix(code, "TEXT "); ok {
			rest = strings.TrimPrefix(rest, "·")
			name, frame, ok := strings.Cut(strings.TrimSpace(rest), "(SB), ")
			if !ok {
				t.Fatalf("line %d: %s", i+1, line)
			}
			list = append(list, routine{name: strings.TrimSuffix(name, "<>"), frame: frame})
			continue
		}
		if !strings.HasPrefix(code, "\t") {
			continue // a label, data, or nothing
		}
		k := &list[len(list)-1]
		for _, code := range expand(t, code) {
			mnemonic, operands, _ := strings.Cut(code, " ")
			k.body = append(k.body, instruction{i + 1, mnemonic, operands})
		}
	}
	symbols := map[string]bool{} // some kernels have two names
	for _, m := range kernelEntry.FindAllStringSubmatch(string(text), -1) {
		symbols[m[1]] = true
	}
	want := len(symbols) + len(channelKernels) + len(plainFrames) - 1 + distinctFunctions() // absent is among the symbols
	if !strings.Contains(string(text), "·simdTurns(SB)") {
		want-- // where there are no non-temporal stores
	}
	got := len(list) - count(list, routine.subroutine)
	if got != want {
		t.Fatalf("found %d functions, want %d", got, want)
	}
	return list
}

var kernelEntry = regexp.MustCompile(`(?m)^DATA simd(?:Kernel|Turns)Table<>.*\$·(\w+)<>`)

func count(list []routine, f func(routine) bool) (n int) {
	for _, k := range list {
		if f(k) {
			n++
		}
	}
	return n
}

// expand returns the instructions of a line.
func expand(t *testing.T, line string) []string {
	t.Helper()
	line = strings.TrimSpace(line)
	name, rest, _ := strings.Cut(line, "(")
	if strings.Contains(name, " ") || name == "RET" {
		return []string{line}
	}
	operands := strings.Split(strings.TrimSuffix(rest, ")"), ", ")
	switch name {
	case "ARG":
		return []string{"ARG " + strings.Join(operands, ", ")}
	case "TAIL":
		return []string{"ADD $" + operands[1] + ", " + operands[2] + ", R24", "CALL " + operands[0] + "(SB)"}
	}
	i := slices.IndexFunc(macros, func(m macro) bool { return m.name == name })
	if i < 0 {
		return []string{line}
	}
	letter := regexp.MustCompile(`\b([a-z])([01])\b|\bR([a-z])\b|\$([a-z])\b`)
	value := func(o string) int {
		n, err := strconv.Atoi(operands[strings.Index(macros[i].operands, o)])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	var list []string
	for _, s := range macros[i].instructions {
		list = append(list, letter.ReplaceAllStringFunc(s.text, func(o string) string {
			switch {
			case o[0] == 'R':
				return fmt.Sprint("R", value(o[1:]))
			case o[0] == '$':
				return fmt.Sprint("$", value(o[1:]))
			default:
				return fmt.Sprint("V", 2*value(o[:1])+int(o[1]-'0'))
			}
		}))
	}
	return list
}

// rules are the rules for the code of an architecture.
type rules struct {
	// forbidden are the registers that Go reserves, and those that the
	// instruction set of the path has not.
	forbidden *regexp.Regexp
	// features names for every instruction in use the feature that a machine must have.
	// guard is the feature that detectSIMD asks for; it grants the features in granted.
	features map[string]string
	guard    string
	granted  []string
	// end has the instructions of every return.
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
		own:       regexp.MustCompile(`\(R14\)|^31\(SP\), R14$|^\$~31, R14$|^a\+8\(FP\), R14$|^b\+16\(FP\), R14$`),
		kept:      regexp.MustCompile(`\b([XY](0|1|15)|BX|DX|SI|DI|R\d+|SP)\b`),
		area:      regexp.MustCompile(`(\()R14\)`),
		frame:     amd64{}.frame(),
		features: map[string]string{
			"ADDQ":         base,
			"ARG":          base, // two moves
			"ANDQ":         base,
			"CALL":         base,
			"CMPB":         base,
			"CMPQ":         base,
			"JMP":          base,
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
			"VPADDD":       "AVX2",
			"VPADDQ":       "AVX2",
			"VPCMPGTD":     "AVX2",
			"VPERMPS":      "AVX2",
			"VPERMILPS":    "AVX",
			"VPMAXSD":      "AVX2",
			"VPMINSD":      "AVX2",
			"VPMINUD":      "AVX2",
			"VPSRLD":       "AVX2",
			"VTESTPS":      "AVX",
			"VPSLLD":       "AVX2",
			"VPSLLQ":       "AVX2",
			"VSUBPD":       "AVX",
			"VCMPPD":       "AVX",
			"VHADDPD":      "AVX",
			"VMOVHPD":      "AVX",
			"VMOVSD":       "AVX",
			"VSQRTPD":      "AVX",
			"JEQ":          base,
			"JCC":          base,
			"JCS":          base,
			"JGE":          base,
			"JLT":          base,
			"JNE":          base,
			"LEAQ":         base,
			"MOVQ":         base,
			"MOVBQZX":      base,
			"PREFETCHT0":   base, // SSE, as SFENCE
			"PREFETCHT1":   base,
			"RET":          base,
			"SFENCE":       base,
			"SHLQ":         base,
			"SARQ":         base,
			"NEGQ":         base,
			"CMOVQLT":      base,
			"SUBQ":         base,
			"UNDEF":        base,
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
			"VFMADD231PD":  "FMA",
			"VZEROUPPER":   "AVX",
		},
		guard:   "cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasFMA",
		granted: []string{base, "AVX", "AVX2", "FMA"},
		end:     []string{"VZEROUPPER", "RET"},
	},
	"arm64": {
		// The linker's, the platform's, the closure's, the assembler's, the
		// goroutine, the frame, the link and the stack.
		own:       regexp.MustCompile(`^\$area-416\(SP\), R23$`),
		kept:      regexp.MustCompile(`\b([VF]([0-3]|30|31)|R(\d|1[0-4]|23|25))\b`),
		area:      regexp.MustCompile(`\(R23\)(, \(F\d+, F\d+\))?$|^R19<<5, R23, R15$`),
		saved:     regexp.MustCompile(`\b[VF]3[01]\b`),
		save:      "FSTPQ (F30, F31), 384(R23)",
		restore:   "FLDPQ 384(R23), (F30, F31)",
		frame:     arm64{}.frame(),
		forbidden: regexp.MustCompile(`\b(R16|R17|R18|R18_PLATFORM|R26|R27|REGTMP|R28|g|R29|R30|LR|RSP|SP)\b`),
		features: map[string]string{
			"ORR":     base,
			"ADD":     base,
			"ANDS":    base,
			"ARG":     base, // two moves
			"B":       base,
			"BEQ":     base,
			"BGE":     base,
			"BGT":     base,
			"BHS":     base,
			"BLT":     base,
			"BNE":     base,
			"CBNZ":    base,
			"CBZ":     base,
			"VTBL":    "ASIMD",
			"VUSHR":   "ASIMD",
			"CALL":    base,
			"CMP":     base,
			"JMP":     base,
			"UNDEF":   base,
			"FLDPQ":   "ASIMD",
			"FMOVQ.P": "ASIMD",
			"FSTPQ":   "ASIMD",
			"LSL":     base,
			"ASR":     base,
			"CSEL":    base,
			"NEG":     base,
			"MOVD":    base,
			"PRFM":    base,
			"RET":     base,
			"SUB":     base,
			"SUBS":    base,
			"TBZ":     base,
			"VADD":    "ASIMD",
			"VEXT":    "ASIMD",
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
			// Those of macros.
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
			"UMIN":   "ASIMD",
			"VCMGT":  "ASIMD",
			"VUMAXV": "ASIMD",
			"MUL":    "ASIMD",
			"VSSHR":  "ASIMD",
			"FSQRT":  "ASIMD",
			"VBIC":   "ASIMD",
			"VFCMGE": "ASIMD",
			"VFCMGT": "ASIMD",
			"VFCMLE": "ASIMD",
			"VFMLA":  "ASIMD",
		},
		guard:   "cpu.ARM64.HasASIMD",
		granted: []string{base, "ASIMD"},
		end:     []string{"RET"},
	},
}

// forEachArchitecture runs a test on the kernels of each instruction set. Stubs
// is the Go file beside them.
func forEachArchitecture(t *testing.T, test func(t *testing.T, r rules, kernels []routine, stubs string)) {
	files := generate()
	for arch, r := range architectures {
		t.Run(arch, func(t *testing.T) {
			name := "kernels_" + arch
			test(t, r, parse(t, files[name+".s"]), string(files[name+".go"]))
		})
	}
}

func TestFrames(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []routine, _ string) {
		for _, k := range kernels {
			want := "NOSPLIT, $0-16"
			switch {
			case k.plain():
				want = plainFrames[k.name]
			case k.turns():
				want = "NOSPLIT, $0-24"
			case k.calls():
				want = fmt.Sprintf("NOSPLIT, $%d-16", r.frame)
			case k.function(), k.subroutine():
				want = "NOSPLIT|NOFRAME, $0-0"
			}
			if k.frame != want {
				t.Errorf("%s has the frame %q, want %q", k.name, k.frame, want)
			}
		}
	})
}

func TestRegisters(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []routine, _ string) {
		for _, k := range kernels {
			for _, in := range k.body {
				if (k.calls() || k.function() || !k.subroutine()) && r.own.MatchString(in.operands) {
					continue
				}
				if reg := r.forbidden.FindString(in.operands); reg != "" {
					t.Errorf("%s, line %d: %s %s uses %s", k.name, in.line, in.mnemonic, in.operands, reg)
				}
			}
		}
	})
}

// TestFunctionsKeep checks that a function of an activation leaves unchanged all that a
// kernel relies on: the sums, the mask of the tail, and the registers that are neither the
// function's own nor saved by it.
func TestFunctionsKeep(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []routine, _ string) {
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
		if want := distinctFunctions(); functions != want {
			t.Errorf("%d functions were checked, want %d", functions, want)
		}
	})
}

// TestReturns checks that the upper halves of the registers are cleared before
// every return, and that there is a return at the end.
func TestReturns(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []routine, _ string) {
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
				if k.plain() || k.function() || k.subroutine() {
					if mnemonics[i] != "RET" && mnemonics[i] != "UNDEF" {
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

// exactProducts are the kernels that may fuse: they multiply float32 values in float64, which
// holds the product, so that one rounding is the same as two.
var exactProducts = []string{"gradSums64ColsIdentity", "gradSums64ColsReLU", "stripChannels"}

// TestFeatures checks that the kernels use only instructions that were looked
// at, and that a machine which passes the guard can execute them.
func TestFeatures(t *testing.T) {
	forEachArchitecture(t, func(t *testing.T, r rules, kernels []routine, stubs string) {
		if !strings.Contains(stubs, "if "+r.guard+" {") {
			t.Errorf("detectSIMD does not ask for %s", r.guard)
		}
		seen := map[string]bool{}
		for _, k := range kernels {
			for _, in := range k.body {
				name := in.mnemonic
				feature, ok := r.features[name]
				switch {
				case fused.MatchString(name) && !slices.Contains(exactProducts, k.name):
					t.Errorf("%s, line %d: %s fuses a product and a sum, which pure Go can't repeat", k.name, in.line, name)
				case seen[name]:
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

// TestTables checks that the tables of addresses lead to every kernel and function,
// and for other numbers to a fault.
func TestTables(t *testing.T) {
	want := map[string]map[int]string{"simdKernel": {}, "simdTurns": {}, "simdChannels": {}, "simdActivation": {}}
	for _, v := range variants() {
		if other := want["simdKernel"][v.id()]; other != "" {
			t.Errorf("%s and %s have the same id", v.name(), other)
		}
		want["simdKernel"][v.id()] = v.name()
	}
	for i, p := range turnsKernels() {
		want["simdTurns"][i] = p.name()
	}
	for i, k := range channelKernels {
		want["simdChannels"][i] = k.function()
	}
	for i, c := range called {
		want["simdActivation"][functionID(len(inline)+i, 0)] = "act" + c.name + "Value"
		want["simdActivation"][functionID(len(inline)+i, 1)] = "act" + c.name + "Slope"
	}
	for i, symbol := range want["simdActivation"] {
		if symbol == "actSoftplusSlope" {
			want["simdActivation"][i] = "actSigmoidValue" // the same function
		}
	}
	last := variants()[len(variants())-1].id() // the table ends with it
	sizes := map[string]int{"simdKernel": last + 1, "simdChannels": len(channelKernels), "simdActivation": functionID(len(inline)+len(called), 0)}
	entry := regexp.MustCompile(`(?m)^DATA (simd\w+)Table<>\+(\d+)\(SB\)/8, \$·(\w+)<>\(SB\)$`)
	for name, text := range generate() {
		if !strings.HasSuffix(name, ".s") {
			continue
		}
		counts := map[string]int{}
		for _, m := range entry.FindAllStringSubmatch(string(text), -1) {
			off, _ := strconv.Atoi(m[2])
			counts[m[1]]++
			symbol := cmp.Or(want[m[1]][off/8], "absent")
			if arch := strings.TrimSuffix(strings.TrimPrefix(name, "kernels_"), ".s"); arch == "arm64" && symbol == m[3]+"Stream" {
				continue // there is no other store
			}
			if m[3] != symbol {
				t.Errorf("%s: number %d of %s is %s, want %s", name, off/8, m[1], m[3], symbol)
			}
		}
		sizes["simdTurns"] = len(turnsKernels())
		if strings.Contains(name, "arm64") { // which has no non-temporal stores
			delete(sizes, "simdTurns")
		}
		if !maps.Equal(counts, sizes) {
			t.Errorf("%s: tables with %v entries, want %v", name, counts, sizes)
		}
	}
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
		"fieldN":   fieldN,
		"fieldA":   fieldA,
		"fieldB":   fieldB,
		"fieldK1":  fieldK1,
		"fieldK2":  fieldK2,
		"coefLen":  coefLen,
		"lanes":    lanes,
		"quadSize": quadSize,

		"kernelMoments":   int(kernelMoments),
		"kernelNormalize": int(kernelNormalize),
		"kernelGradSums":  int(kernelGradSums),
		"kernelInputGrad": int(kernelInputGrad),
		"rows":            int(inRows),
		"cols":            int(inCols),
		"numLayouts":      int(numLayouts),
		"actNone":         int(actNone),
		"actInline":       int(actInline),
		"actCalled":       int(actCalled),
		"numVariants":     int(numActVariants),
		"withResidual":    int(withResidual),
		"withDResidual":   int(withDResidual),
		"withStream":      int(withStream),
		"numFlags":        int(numFlags),
	} {
		sameConstant(t, scope, "kernels.go", name, want)
	}
	scope, _ = typeCheck(t, "internal/scalar/scalar.go")
	for name, want := range map[string]int{
		"tailEnd":     tailEnd,
		"eluTail":     eluTail,
		"geluEnd":     geluEnd,
		"geluTanhEnd": geluTanhEnd,
	} {
		sameConstant(t, scope, "internal/scalar/scalar.go", name, want)
	}
}

// TestLimits compares the limits of what is usual with those in Go.
func TestLimits(t *testing.T) {
	scope, _ := typeCheck(t, "stats.go")
	for name, want := range map[string]float64{"sureMin": sureMin, "sureMax": sureMax, "factorMin": factorMin, "factorMax": factorMax} {
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

// TestSubroutines checks that those which move parts change nothing but the vector and
// the address.
func TestSubroutines(t *testing.T) {
	found := 0
	forEachArchitecture(t, func(t *testing.T, _ rules, routines []routine, _ string) {
		register := regexp.MustCompile(`\b[VFR]\d+\b`)
		for _, k := range routines {
			if !k.subroutine() {
				continue
			}
			found++
			v, err := strconv.Atoi(k.name[strings.Index(k.name, "Tail")+len("Tail"):])
			if err != nil {
				t.Fatal(err)
			}
			allowed := []string{arm64Addr, arm64Tail}
			for _, r := range []string{"V", "F"} {
				allowed = append(allowed, fmt.Sprint(r, 2*v), fmt.Sprint(r, 2*v+1))
			}
			for _, in := range k.body {
				for _, r := range register.FindAllString(in.operands, -1) {
					if !slices.Contains(allowed, r) {
						t.Errorf("%s, line %d: %s %s uses %s", k.name, in.line, in.mnemonic, in.operands, r)
					}
				}
			}
		}
	})
	if found == 0 {
		t.Error("there are no subroutines")
	}
}
