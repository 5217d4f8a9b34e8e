package batchnorm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every name of this package in docs/semantics.md exists. The statements about other
// systems can't be checked here.
func TestSemanticsNames(t *testing.T) {
	known := exportedNames(t)
	text, err := os.ReadFile(filepath.Join("docs", "semantics.md"))
	noError(t, err)
	checked := 0
	for _, line := range strings.SplitAfter(string(text), "\n") {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 3 {
			continue
		}
		cell := cells[len(cells)-1]
		if len(cells) == 5 { // the table of option sets
			cell = cells[0]
		}
		for _, code := range regexp.MustCompile("`[^`]+`").FindAllString(cell, -1) {
			for _, name := range regexp.MustCompile(`\b[A-Z]\w*(\.[A-Z]\w*)?`).FindAllString(code, -1) {
				checked++
				if !known[name] {
					t.Errorf("docs/semantics.md mentions %s, which the package does not have", name)
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d names were found in docs/semantics.md", checked)
	}
}

// exportedNames returns the package's: X of declarations and fields, and T.X of
// fields and methods.
func exportedNames(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	noError(t, err)
	names := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		noError(t, err)
		for _, d := range parsed.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					names[d.Name.Name] = true
					continue
				}
				receiver := d.Recv.List[0].Type
				if star, ok := receiver.(*ast.StarExpr); ok {
					receiver = star.X
				}
				if generic, ok := receiver.(*ast.IndexExpr); ok {
					receiver = generic.X
				}
				names[receiver.(*ast.Ident).Name+"."+d.Name.Name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						if structure, ok := s.Type.(*ast.StructType); ok {
							for _, f := range structure.Fields.List {
								for _, n := range f.Names {
									names[n.Name], names[s.Name.Name+"."+n.Name] = true, true
								}
							}
						}
					}
				}
			}
		}
	}
	return names
}
