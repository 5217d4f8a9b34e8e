package batchnorm_test

import (
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
