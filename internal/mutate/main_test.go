package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestList: every mutation still fits the sources, names a test that there is, and
// has a name of its own.
func TestList(t *testing.T) {
	root := filepath.Join("..", "..")
	names := map[string]bool{}
	tests := map[string][]string{} // by package
	for _, m := range mutations {
		if names[m.name] {
			t.Errorf("two mutations are called %q", m.name)
		}
		names[m.name] = true
		text, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if n := strings.Count(string(text), m.old); n != 1 || m.old == m.new {
			t.Errorf("%s: the text is %d times in %s, want once", m.name, n, m.file)
		}
		if tests[m.pkg] == nil {
			tests[m.pkg] = testsOf(t, filepath.Join(root, m.pkg))
		}
		if found := slices.ContainsFunc(tests[m.pkg], regexp.MustCompile(m.tests).MatchString); !found {
			t.Errorf("%s: %s has no test that matches %s", m.name, m.pkg, m.tests)
		}
	}
}

// testsOf returns the names of the tests of the package in a folder.
func testsOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			name, ok := strings.CutPrefix(line, "func ")
			for _, kind := range []string{"Test", "Example", "Fuzz"} {
				if end := strings.IndexByte(name, '('); ok && end > 0 && strings.HasPrefix(name, kind) {
					names = append(names, name[:end])
				}
			}
		}
	}
	return names
}

// TestRunner tries each kind of mutation on a small module.
func TestRunner(t *testing.T) {
	if os.Getenv("BATCHNORM_TESTS") != "all" {
		t.Skip("builds a module several times: BATCHNORM_TESTS=all runs it")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("there is no go command here: %v", err)
	}
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":    "module sum\n\ngo 1.23\n",
		"sum.go":    "package sum\n\nfunc sum(a, b int) int { return a + b }\n\nfunc product(a, b int) int { return a * b }\n",
		"a_test.go": "package sum\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif sum(2, 3) != 5 {\n\t\tt.Fail()\n\t}\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := newRunner(root, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(r.dir)
	list := []mutation{
		{name: "difference", old: "a + b", new: "a - b"},
		{name: "endless", old: "return a + b", new: "for { a++ }"},
		{name: "unseen", old: "a * b", new: "a / b"},
		{name: "excused", old: "a * b", new: "a / b", reason: "nobody multiplies"},
		{name: "wrongly excused", old: "a + b", new: "a - b", reason: "nobody adds"},
		{name: "not Go", old: "a + b", new: "a +"},
		{name: "gone", old: "a % b", new: "a"},
		{name: "twice", old: "a, b int", new: "b, a int"},
	}
	for i := range list {
		list[i].file, list[i].pkg, list[i].tests = "sum.go", ".", "TestSum"
	}
	r.limit = 2 * time.Second
	var out bytes.Buffer
	bad, err := r.run(list, &out)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"killed", "killed", "SURVIVES", "SURVIVES", "killed", "BROKEN", "STALE", "STALE"}
	for i, line := range strings.SplitN(out.String(), "\n", len(want)+1)[:len(want)] {
		if !strings.HasPrefix(line, want[i]) || !strings.Contains(line, list[i].name) {
			t.Errorf("line %d is %q, want %s of %q", i, line, want[i], list[i].name)
		}
	}
	if bad != 5 {
		t.Errorf("%d mutations are not as the list says, want 5:\n%s", bad, &out)
	}
	if text, err := os.ReadFile(filepath.Join(r.dir, "sum.go")); err != nil || !strings.Contains(string(text), "a + b") {
		t.Errorf("the copy is not as it was: %q, %v", text, err)
	}
	list[0].tests = "TestNone"
	if _, err := r.run(list[:1], &out); err == nil {
		t.Error("a test that is not there is no error")
	}
}
