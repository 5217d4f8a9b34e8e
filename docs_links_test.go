package batchnorm_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Links of Markdown pages to files of the repository, and to headings, lead somewhere.
func TestDocsLinks(t *testing.T) {
	link, fenced := regexp.MustCompile(`\]\(([^)\s]+)\)`), regexp.MustCompile("(?ms)^```.*?^```")
	checked := 0
	noError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		text := fenced.ReplaceAllString(readText(t, path), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), filepath.FromSlash(file))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			} else if anchor != "" && !headings(readText(t, target))[anchor] {
				t.Errorf("%s links to %s, which has no such heading", path, m[1])
			}
		}
		return nil
	}))
	if checked < 50 {
		t.Errorf("only %d links were found", checked)
	}
}

// headings returns the anchors of a page's headings, as GitHub makes them.
func headings(text string) map[string]bool {
	anchors := map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		if title := strings.TrimLeft(line, "#"); title != line {
			title = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors[strings.ReplaceAll(title, " ", "-")] = true
		}
	}
	return anchors
}

// The training step in README.md is the package's example, which runs as a test.
func TestReadmeExample(t *testing.T) {
	_, code, ok := strings.Cut(readText(t, "package_example_test.go"), "func Example() {\n")
	code, _, found := strings.Cut(code, "\t// Output:")
	if !ok || !found {
		t.Fatal("package_example_test.go has no Example with an output")
	}
	code = strings.ReplaceAll(strings.TrimPrefix(code, "\t"), "\n\t", "\n")
	if want := "```go\n" + code + "```\n"; !strings.Contains(readText(t, "README.md"), want) {
		t.Errorf("README.md has not the body of Example:\n%s", want)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	noError(t, err)
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

// In CONTRIBUTING.md, the files to which a paragraph, an item of a list or a row of a table
// links declare every name in it: in the walk through the code, the function at each hop.
func TestContributingNames(t *testing.T) {
	begins := regexp.MustCompile(`(?m)^(?:\||\* |\d+\. |#)`)
	link, code := regexp.MustCompile(`\]\(([\w/.-]+\.go)\)`), regexp.MustCompile("`([A-Za-z]\\w*(?:\\.[A-Za-z]\\w*)?)`")
	text := regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(readText(t, "CONTRIBUTING.md"), "")
	checked := 0
	for _, paragraph := range strings.Split(begins.ReplaceAllString(text, "\n\n$0"), "\n\n") {
		declared := map[string]bool{}
		for _, m := range link.FindAllStringSubmatch(paragraph, -1) {
			file, err := parser.ParseFile(token.NewFileSet(), m[1], nil, 0)
			noError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					declared[n.Name.Name] = true
					if n.Recv != nil {
						receiver := n.Recv.List[0].Type
						if star, ok := receiver.(*ast.StarExpr); ok {
							receiver = star.X
						}
						declared[fmt.Sprint(receiver)+"."+n.Name.Name] = true
					}
				case *ast.TypeSpec:
					declared[n.Name.Name] = true
				case *ast.ValueSpec:
					for _, name := range n.Names {
						declared[name.Name] = true
					}
				case *ast.Field:
					for _, name := range n.Names {
						declared[name.Name] = true
					}
				}
				return true
			})
		}
		if len(declared) == 0 {
			continue
		}
		for _, m := range code.FindAllStringSubmatch(paragraph, -1) {
			checked++
			if !declared[m[1]] {
				t.Errorf("CONTRIBUTING.md: no linked file declares %s: %s", m[1], strings.TrimSpace(paragraph))
			}
		}
	}
	if checked < 35 {
		t.Errorf("only %d names were found", checked)
	}
}
