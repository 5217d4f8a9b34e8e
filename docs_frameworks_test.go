package batchnorm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// In docs/frameworks.md, every name in the cells that speak of this package exists,
// every function that stands for a framework's is in the examples, and none of
// those is left out.
func TestFrameworksNames(t *testing.T) {
	known := exportedNames(t)
	known["Executor"], known["Option"] = true, true
	text, err := os.ReadFile(filepath.Join("docs", "frameworks.md"))
	noError(t, err)
	parsed, err := parser.ParseFile(token.NewFileSet(), "frameworks_example_test.go", nil, 0)
	noError(t, err)
	var functions []string
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
			functions = append(functions, f.Name.Name)
		}
	}
	helpers := []string{"ok", "like", "xlaPlan", "cudnnPlan", "torchPlan", "flaxPlan", "fusedPlan"}
	for _, name := range functions {
		if !slices.Contains(helpers, name) && !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/frameworks.md does not mention %s", name)
		}
	}
	code := regexp.MustCompile("`[^`]+`")
	for _, name := range code.FindAllString(string(text), -1) {
		name = strings.Trim(name, "`")
		if regexp.MustCompile(`^(Example\w*|(xla|onnx|native|flax|fused|paddle)[A-Z]\w*)$`).MatchString(name) && !slices.Contains(functions, name) {
			t.Errorf("docs/frameworks.md mentions %s, which is not in frameworks_example_test.go", name)
		}
	}
	checked, here := 0, -1 // which column speaks of this package
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if !strings.HasPrefix(line, "|") {
			here = -1
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if here < 0 {
			for i, c := range cells {
				if c := strings.TrimSpace(c); c == "here" || c == "what it calls" || c == "may be the same slice as" || c == "kind" {
					here = i
				}
			}
			continue
		}
		for _, c := range code.FindAllString(cells[here], -1) {
			if strings.HasPrefix(c, "`CUDNN_") || slices.Contains(functions, strings.Trim(c, "`")) {
				continue
			}
			for _, name := range regexp.MustCompile(`\b[A-Z]\w*(\.[A-Z]\w*)?`).FindAllString(c, -1) {
				checked++
				if !known[name] {
					t.Errorf("docs/frameworks.md mentions %s, which the package does not have", name)
				}
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d names were found in docs/frameworks.md", checked)
	}
}
