// Command mutate breaks the package on purpose, one defect at a time, and says which
// of the defects no test finds.
//
//	go run ./internal/mutate                    # all of the list, some minutes
//	go run ./internal/mutate -run team          # those whose names match
//	go run ./internal/mutate -list              # the names alone
//
// Every mutation of the list (list.go) replaces one text of one file in a copy of the
// module, and names the test that is to fail. It is killed where that test fails or
// does not end in time, and survives where it passes. One of the generator's is
// followed by go generate. A survivor needs a test, or a reason why nothing can tell
// it from the original, which stands in the list then.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A mutation is a defect that is made on purpose.
type mutation struct {
	name     string // the defect
	file     string // of the module, with slashes
	old, new string // old is in the file once
	pkg      string // whose tests are run, such as "." or "./internal/team"
	tests    string // the argument of go test -run
	reason   string // why no test can find it; "": one does
}

func main() {
	match := flag.String("run", "", "mutations whose names match this regular expression; all by default")
	list := flag.Bool("list", false, "print the names alone")
	root := flag.String("root", ".", "folder of the module")
	limit := flag.Duration("timeout", 2*time.Minute, "what the tests of a mutation may take")
	verbose := flag.Bool("v", false, "print what the tests of each mutation print")
	flag.Parse()
	pattern, err := regexp.Compile(*match)
	if err != nil {
		fail(err)
	}
	var chosen []mutation
	for _, m := range mutations {
		if pattern.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%s (%s)\n", m.name, m.file)
		}
		return
	}
	r, err := newRunner(*root, *limit)
	if err != nil {
		fail(err)
	}
	if *verbose {
		r.log = os.Stdout
	}
	bad, err := r.run(chosen, os.Stdout)
	os.RemoveAll(r.dir)
	if err != nil {
		fail(err)
	}
	if bad > 0 {
		os.Exit(1)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mutate:", err)
	os.Exit(2)
}

// A runner has a copy of the module.
type runner struct {
	dir   string
	limit time.Duration
	log   io.Writer // takes the output of commands
}

// newRunner copies the module, without the modules nested in it.
func newRunner(root string, limit time.Duration) (*runner, error) {
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return nil, err
	}
	r := &runner{dir: dir, limit: limit, log: io.Discard}
	return r, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || d.Name() == ".git" {
				return fs.SkipDir
			}
			return os.Mkdir(filepath.Join(dir, name), 0o755)
		}
		if !d.Type().IsRegular() || name == "go.work" || name == "go.work.sum" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), text, 0o644)
	})
}

// verdict is the outcome of a mutation.
type verdict string

const (
	killed   verdict = "killed"
	survives verdict = "SURVIVES"
	stale    verdict = "STALE"  // its text is not in the file, or its test is not there
	broken   verdict = "BROKEN" // it does not compile
)

// run tries the mutations, prints the outcome of each, and returns the number of outcomes
// that differ from the list.
func (r *runner) run(list []mutation, out io.Writer) (bad int, err error) {
	// The tests have to pass without a mutation.
	tests := map[string][]string{} // by package
	for _, m := range list {
		if !slices.Contains(tests[m.pkg], m.tests) {
			tests[m.pkg] = append(tests[m.pkg], m.tests)
		}
	}
	for pkg, patterns := range tests {
		all := strings.Join(patterns, "|")
		switch v, output, err := r.test(pkg, all); {
		case err != nil:
			return 0, err
		case v == stale:
			return 0, fmt.Errorf("%s has no test that matches %s", pkg, all)
		case v != survives:
			return 0, fmt.Errorf("%s fails in %s without a mutation:\n%s", all, pkg, output)
		}
	}
	count := map[verdict]int{}
	for _, m := range list {
		begin := time.Now()
		v, err := r.try(m)
		if err != nil {
			return bad, err
		}
		count[v]++
		note, ok := "", v == killed
		if m.reason != "" {
			if ok = v == survives; ok {
				note = ", as it should: " + m.reason
			} else {
				note = ", though the list says why it could not be"
			}
		}
		if !ok {
			bad++
		}
		fmt.Fprintf(out, "%-8s %5.1f s  %s (%s)%s\n", v, time.Since(begin).Seconds(), m.name, m.file, note)
	}
	fmt.Fprintf(out, "%d mutations: %d killed, %d survive, %d stale, %d broken; %d not as the list says\n",
		len(list), count[killed], count[survives], count[stale], count[broken], bad)
	return bad, nil
}

// try makes a mutation, runs its tests, and takes it back.
func (r *runner) try(m mutation) (verdict, error) {
	file := filepath.Join(r.dir, filepath.FromSlash(m.file))
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if strings.Count(string(text), m.old) != 1 || m.old == m.new {
		return stale, nil
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o644); err != nil {
		return "", err
	}
	v, err := r.generateAndTest(m)
	return v, errors.Join(err, os.WriteFile(file, text, 0o644), r.generate(m.file))
}

func (r *runner) generateAndTest(m mutation) (verdict, error) {
	if err := r.generate(m.file); err != nil {
		fmt.Fprintln(r.log, err)
		return broken, nil
	}
	v, _, err := r.test(m.pkg, m.tests)
	return v, err
}

// generate makes the assembly anew after a change of its generator.
func (r *runner) generate(file string) error {
	if filepath.ToSlash(filepath.Dir(filepath.FromSlash(file))) != "kernels" {
		return nil
	}
	output, err := r.command("go", "run", "./kernels").CombinedOutput()
	if err != nil {
		return fmt.Errorf("go run ./kernels: %w\n%s", err, output)
	}
	return nil
}

// test runs tests of a package, and returns the verdict on a mutation that was made.
func (r *runner) test(pkg, tests string) (verdict, []byte, error) {
	// Without vet, which would say of some defects that they are none of a test's.
	output, err := r.command("go", "test", "-vet=off", "-count=1", "-timeout", r.limit.String(), "-run", tests, pkg).CombinedOutput()
	r.log.Write(output)
	var exit *exec.ExitError
	switch text := string(output); {
	case err != nil && !errors.As(err, &exit):
		return "", output, err
	case strings.Contains(text, "[build failed]") || strings.Contains(text, "[setup failed]"):
		return broken, output, nil
	case strings.Contains(text, "[no tests to run]"):
		return stale, output, nil
	case err != nil:
		return killed, output, nil
	}
	return survives, output, nil
}

// command is a command in the copy, which is a module of its own.
func (r *runner) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Dir = r.dir
	c.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	return c
}
