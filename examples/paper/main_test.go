package main

import (
	"bytes"
	"context"
	"html"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestFlagErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string // in the message
	}{
		{[]string{"-nosuch"}, "-nosuch"},
		{[]string{"more"}, `argument "more"`},
		{[]string{"-steps", "0"}, "-steps is 0, must be at least 1"},
		{[]string{"-claim-steps", "-1"}, "-claim-steps is -1, must be at least 1"},
		{[]string{"-batch", "1"}, "-batch is 1, must be from 2 to 10000"},
		{[]string{"-batch", "1000000"}, "must be from 2 to 10000"},
		{[]string{"-rate", "0"}, "-rate is 0, must be above 0"},
		{[]string{"-rate", "NaN"}, "-rate is NaN, must be above 0"},
		{[]string{"-rate", "Inf"}, "-rate is +Inf, must be above 0"},
		{[]string{"-seed", "-1"}, `"-1" for flag -seed`},
		{[]string{"-workers", "0"}, "-workers is 0, must be at least 1"},
		{[]string{"-path", "vfp"}, `-path is "vfp", must be of`},
		{[]string{"-only", "figure1a,nothing"}, `-only has "nothing", must be of figure1a, figure1bc`},
		{[]string{"-report", filepath.Join(file, "folder")}, "-report: mkdir"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(c.args, &stdout, &stderr); code != exitUsage {
			t.Errorf("%v: exit status %d, want %d", c.args, code, exitUsage)
		}
		msg := stderr.String()
		if !strings.HasPrefix(msg, "paper: ") || !strings.Contains(msg, c.want) || strings.Count(msg, "\n") != 1 {
			t.Errorf("%v: message is %q, want a line with %q", c.args, msg, c.want)
		}
		if stdout.Len() > 0 {
			t.Errorf("%v: output is %q", c.args, stdout.String())
		}
	}
}

func TestDataErrors(t *testing.T) {
	var stdout, stderr bytes.Buffer
	dir := t.TempDir()
	if code := run([]string{"-data", dir}, &stdout, &stderr); code != exitFailed {
		t.Errorf("exit status %d, want %d", code, exitFailed)
	}
	for _, want := range []string{"missing or damaged", filepath.Join(dir, "train-images-idx3-ubyte.gz")} {
		if msg := stderr.String(); !strings.Contains(msg, want) || strings.Count(msg, "\n") != 1 {
			t.Errorf("message is %q, want a line with %q", msg, want)
		}
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-h"}, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit status %d, message %q", code, stderr.String())
	}
	for _, name := range []string{"-data", "-seed", "-steps", "-claim-steps", "-batch", "-rate", "-only", "-path", "-workers", "-report", "-hash"} {
		if !strings.Contains(stdout.String(), name) {
			t.Errorf("help lacks %s", name)
		}
	}
}

// smallReport is a report of all sections, from trainings that are far too
// short.
func smallReport(t *testing.T) *report {
	t.Helper()
	r, err := testLab(t).investigate(sections, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r.Command = "test <&>"
	return r
}

// strange matches a number or a sentence that went wrong.
var strange = regexp.MustCompile(`NaN|Inf|%!|<nil>`)

func TestReport(t *testing.T) {
	r := smallReport(t)
	var text bytes.Buffer
	r.text(&text)
	dir := t.TempDir()
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)

	figures, findings := 0, 0
	for _, s := range r.Sections {
		if len(s.Findings) == 0 || len(s.Figures)+len(s.Tables) == 0 {
			t.Errorf("%s has %d findings, %d figures, %d tables", s.ID, len(s.Findings), len(s.Figures), len(s.Tables))
		}
		for _, f := range s.Findings {
			findings++
			if strange.MatchString(f.text) {
				t.Errorf("%s: the finding is %q", s.ID, f.text)
			}
			if !strings.Contains(page, html.EscapeString(f.text)) {
				t.Errorf("%s: the page lacks %q", s.ID, f.text)
			}
			if !strings.Contains(strings.Join(strings.Fields(text.String()), " "), f.text) {
				t.Errorf("%s: the text lacks %q", s.ID, f.text)
			}
		}
		for _, f := range s.Figures {
			figures++
			for _, kind := range []struct{ suffix, begins string }{{".png", "\x89PNG"}, {".svg", "<?xml"}} {
				file, err := os.ReadFile(filepath.Join(dir, f.name+kind.suffix))
				if err != nil || !bytes.HasPrefix(file, []byte(kind.begins)) {
					t.Errorf("%s%s does not begin with %q: %v", f.name, kind.suffix, kind.begins, err)
				}
			}
		}
		if !strings.Contains(page, `href="#`+s.ID+`"`) || !strings.Contains(page, `id="`+s.ID+`"`) {
			t.Errorf("the page lacks a link to %s, or its target", s.ID)
		}
	}
	if len(r.Sections) != len(sections) || figures < 15 {
		t.Errorf("%d sections of %d, %d figures", len(r.Sections), len(sections), figures)
	}
	if n := strings.Count(page, "<svg"); n != figures {
		t.Errorf("the page has %d drawings for %d figures", n, figures)
	}
	if n := strings.Count(page, `class="finding`); n != findings {
		t.Errorf("the page has %d findings of %d", n, findings)
	}
	if found := strange.FindAllString(text.String()+page, -1); found != nil {
		t.Errorf("the report has %q", found)
	}
	if !strings.Contains(page, "test &lt;&amp;&gt;") {
		t.Error("the command is not escaped")
	}
	// Nothing is loaded from elsewhere.
	if found := regexp.MustCompile(`(?i)<(script|link|img|iframe)|url\(|@import|\bsrc=`).FindAllString(page, -1); found != nil {
		t.Errorf("the page has %q", found)
	}

	t.Run("Chromium", func(t *testing.T) { checkInBrowser(t, page) })
}

// checkInBrowser opens the page in frames as wide as a phone and as a desktop,
// and expects all plots to be drawn within the width.
func checkInBrowser(t *testing.T, page string) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	browser := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
			break
		}
	}
	if browser == "" {
		t.Skip("Chromium is not installed")
	}
	dir := t.TempDir()
	frames := ""
	for _, width := range []string{"320", "390", "1280"} {
		frames += `<iframe width="` + width + `" height="900" style="border:0" srcdoc="` + html.EscapeString(page) + `"></iframe>`
	}
	const script = `<script>
addEventListener("load", () => {
	const said = document.createElement("pre");
	for (const frame of document.querySelectorAll("iframe")) {
		const page = frame.contentDocument, width = page.documentElement.clientWidth;
		const drawings = [...page.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
		const inside = drawings.filter(b => b.width > 200 && b.height > 100 && b.left >= 0 && b.right <= width);
		said.append("width " + frame.width + ": " + (page.documentElement.scrollWidth - width) + " too wide, " +
			inside.length + " of " + drawings.length + " drawings\n");
	}
	document.body.replaceChildren(said);
});
</script>`
	file := filepath.Join(dir, "frames.html")
	if err := os.WriteFile(file, []byte("<!DOCTYPE html><body>"+frames+script), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--window-size=1400,1000", "--dump-dom", "file://"+file).Output()
	if err != nil {
		t.Fatalf("%s: %v", browser, err)
	}
	n := strings.Count(page, "<svg")
	for _, width := range []string{"320", "390", "1280"} {
		want := regexp.MustCompile("width " + width + `: (-?\d+) too wide, (\d+) of (\d+) drawings`)
		m := want.FindStringSubmatch(string(out))
		if m == nil {
			t.Fatalf("the browser said nothing of width %s: %.300s", width, out)
		}
		if m[1] != "0" || m[2] != m[3] || m[2] == "0" {
			t.Errorf("the browser says %q, of %d drawings", m[0], n)
		}
	}
}

// Networks that diverge are found out, and reported.
func TestReportOfDivergence(t *testing.T) {
	l := testLab(t)
	l.rate = 1e20
	var all []section
	for _, s := range sections {
		if s.id != timeShare.id {
			all = append(all, s)
		}
	}
	r, err := l.investigate(all, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.save(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	r.text(&text)
	if !strings.Contains(text.String(), "diverged at step") {
		t.Errorf("no network diverged:\n%s", text.String())
	}
}

// The program as a whole.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-data", "", "-steps", "2", "-only", "figure1a", "-report", dir}, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit status %d: %s", code, stderr.String())
	}
	if !strings.Contains(stdout.String(), "Training is faster") || strings.Contains(stdout.String(), "What it costs") {
		t.Errorf("the text is %s", stdout.String())
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil || !bytes.Contains(b, []byte("go run ./examples/paper -data")) {
		t.Errorf("the page lacks the command: %v", err)
	}
}
