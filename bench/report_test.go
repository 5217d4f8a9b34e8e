package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"image/png"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm/internal/kinds"
)

// someReport has a bit of everything.
func someReport() *report {
	r := &report{
		CPU: "CPU <of> tests", OS: "linux", Arch: "amd64", Go: "go1", Path: "avx2", Paths: []string{"avx2", "generic"},
		Data: "data", Command: "bench -report x", Peak: 30, Caches: []cache{{"L1", 32 << 10}, {"L2", 1 << 20}, {"L3", 1 << 30}},
	}
	for i, t := range goalSet().cases {
		for _, o := range ops {
			for _, workers := range []int{1, 2} {
				ns := float64(t.dims.Len()) * (1 + float64(i%3)/5) / math.Sqrt(float64(workers))
				r.Bounds = append(r.Bounds, boundRow{
					Operation: o.name, Layout: t.layout, Shape: t.shape, Workers: workers, Path: "avx2", Elements: t.dims.Len(),
					Nanoseconds: ns, BoundNanoseconds: 0.8 * ns, Fraction: 0.8, Stores: "plain", Rounds: 3, Samples: []float64{ns, ns + 1, ns + 2},
				})
			}
		}
	}
	for _, t := range sweepSet(sweepMax).cases {
		for _, o := range ops[:3] {
			ns := float64(t.dims.Len()) * (0.1 + float64(t.dims.Len())/(1<<27))
			r.Sweep = append(r.Sweep, boundRow{
				Operation: o.name, Layout: t.layout, Shape: t.shape, Workers: 1, Path: "avx2", Elements: t.dims.Len(),
				Nanoseconds: ns, BoundNanoseconds: ns / 1.5, Fraction: 1 / 1.5, Stores: "plain", Rounds: 3,
			})
		}
	}
	r.Peers = &peerResults{
		Names: map[string]string{"onednn": "oneDNN 0.1"}, Refused: map[string]int{"spago": 3},
		Missing: []string{"torch: not on this machine: apt-get install python3-torch"}, LeftOut: []string{"nchw 1x1: 900 MB"},
	}
	for _, k := range kinds.List() {
		r.Kinds = append(r.Kinds, kindRow{Kind: k.Name, Layout: "nc", Shape: "8x1000", Workers: 1, Path: "avx2", Activation: "silu",
			Operation:   "backward",
			Nanoseconds: 5, UsualNanoseconds: 4, Ratio: 1.25, Limit: k.Limit, Rounds: 2})
	}
	for i, k := range contests {
		for j, t := range goalSet().cases {
			r.Peers.Rows = append(r.Peers.Rows, peerRow{
				Contest: k.name, Operation: peerOps[j%6].name, Layout: t.layout, Shape: t.shape, Workers: 1, Path: "avx2",
				Nanoseconds: 10, PeerNanoseconds: 10 * float64(i+j+1) / 2, Ratio: float64(i+j+1) / 2, Rounds: 3,
			})
		}
	}
	return r
}

// render writes a report through the program, and returns its files.
func render(t *testing.T, r *report, wantCode int) (page, bench string, folder string) {
	t.Helper()
	from := filepath.Join(t.TempDir(), "from.json")
	var b bytes.Buffer
	if err := r.json(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(from, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	folder = filepath.Join(t.TempDir(), "new", "report")
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-report", folder, "-from", from}, &stdout, &stderr); code != wantCode || stderr.Len() > 0 {
		t.Fatalf("exit status %d\n%s%s", code, &stdout, &stderr)
	}
	if want := filepath.Join(folder, pageFile); !strings.Contains(stdout.String(), want) {
		t.Errorf("the output does not name %s: %s", want, &stdout)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var back report
	if err := json.Unmarshal([]byte(read(resultsFile)), &back); err != nil || !reflect.DeepEqual(&back, r) {
		t.Errorf("the results are not what was measured (%v)", err)
	}
	return read(pageFile), read(benchFile), folder
}

var svgPattern = regexp.MustCompile(`(?s)<svg.*?</svg>`)

func TestReportPage(t *testing.T) {
	page, bench, _ := render(t, someReport(), exitOK)
	for _, want := range []string{
		"CPU &lt;of&gt; tests", "bench -report x",
		"Fraction of the bound: NCHW, 1 worker", "Fraction of the bound: NHWC and NC, 2 workers",
		"Roofline: 1 worker", "L2, ", "Speed-up over each peer: every cell", "geometric mean by shape",
		"Half of the operations reach 0.80 of the bound or more.", "Scaling by workers: NHWC", "204.8 GB/s", "64, model",
		"Speed by the size of a tensor: NCHW, 1 worker", "Speed by the size of a tensor: NHWC, 1 worker", "L1, 32 KB", "256 MB",
		"oneDNN 0.1", "Left out: torch: not on this machine: apt-get install python3-torch.", "Left out: nchw 1x1: 900 MB.",
		"256x64x112x112", "mean 5.65, goal 2.5; 1 of 28 cells below 1", "10 % dead channels", "1.25!", "Kinds of data",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// Each section says how it is read, in a sentence.
	if n := strings.Count(page, "<p>Read: "); n != 6 {
		t.Errorf("%d sections say how to read them, want 6", n)
	}
	drawings := svgPattern.FindAllString(page, -1)
	large := 0
	for _, s := range drawings {
		d := xml.NewDecoder(strings.NewReader(s))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v in %.200s", err, s)
			}
		}
		if strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
			t.Errorf("a coordinate is no number: %.200s", s)
		}
		if strings.Contains(s, `role="img"`) {
			large++
		}
	}
	if large != 4+1+2+2+2 {
		t.Errorf("%d figures, want 11", large)
	}
	// It needs nothing from elsewhere.
	for _, m := range regexp.MustCompile(`(?:href|src)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if m[1] != resultsFile && m[1] != benchFile {
			t.Errorf("the page refers to %s", m[1])
		}
	}

	lines := strings.Split(strings.TrimSpace(bench), "\n")
	format := regexp.MustCompile(`^BenchmarkBatchNorm/op=\S+/layout=\S+/shape=\S+/path=\S+/workers=\d+\t\d+\t[0-9.]+ ns/op\t[0-9.]+ MB/s$`)
	r := someReport()
	if want := 4 + 3*len(r.Bounds) + len(r.Sweep); len(lines) != want {
		t.Errorf("%d lines for benchstat, want %d", len(lines), want)
	}
	for i, line := range lines {
		if i >= 4 && !format.MatchString(line) {
			t.Errorf("line %d for benchstat is %q", i+1, line)
		}
	}
}

// The page says which parts were not measured, and works without them.
func TestReportOfLess(t *testing.T) {
	full := someReport()
	for name, r := range map[string]*report{
		"peers":  {CPU: "c", Peers: full.Peers},
		"bounds": {CPU: "c", Bounds: full.Bounds[:2]},
		"kinds":  {CPU: "c", Kinds: full.Kinds[:3]},
		"sweep":  {CPU: "c", Sweep: full.Sweep[:3]},
		"none":   {CPU: "c", Peers: &peerResults{Missing: []string{"all"}}},
	} {
		page, _, _ := render(t, r, exitOK)
		if n := strings.Count(page, "Not measured in this run."); n < 3 {
			t.Errorf("%s: %d sections are said to be missing", name, n)
		}
	}
	failed := &report{CPU: "c", Peers: &peerResults{Rows: full.Peers.Rows, Failures: []string{"it is off"}}}
	if page, _, _ := render(t, failed, exitFailed); !strings.Contains(page, "FAILED: it is off.") {
		t.Error("the page does not tell of a failure")
	}
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := readReport(empty); err == nil {
		t.Error("makes a report of nothing")
	}
}

// The whole way, measuring as little as it can.
func TestReportMeasures(t *testing.T) {
	reportMeasures(t, 1, "-shapes nc:60x100")
}

// TestReportMeasuresDefault has the tensors that the report takes by itself. Those of the
// kinds of data are large.
func TestReportMeasuresDefault(t *testing.T) {
	if os.Getenv("BATCHNORM_TESTS") != "all" {
		t.Skip("measures large tensors: BATCHNORM_TESTS=all runs it")
	}
	reportMeasures(t, len(kindsSet().cases), "")
}

// reportMeasures makes a report of one shape, with kinds of data on so many tensors.
func reportMeasures(t *testing.T, tensors int, flags string) {
	t.Helper()
	folder := t.TempDir()
	var stdout, stderr bytes.Buffer
	args := strings.Fields("-only 60x100 -reps 1 -mintime 0 -maxtime 1ms -workers 1,2 -sweepmb 1 -with generic " + flags + " -report " + folder)
	if code := run(args, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit status %d\n%s%s", code, &stdout, &stderr)
	}
	r, err := readReport(filepath.Join(folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	sizes := 7 // 16 KB to 1 MB
	if len(r.Bounds) != len(ops)*2 || len(r.Sweep) != sizes*2*3 || r.Peers == nil || r.Peak <= 0 {
		t.Errorf("%d bounds, %d in the sweep, peers %v, peak %v", len(r.Bounds), len(r.Sweep), r.Peers, r.Peak)
	}
	gradients := 0 // kinds that have no forward pass
	for _, k := range kinds.List() {
		if k.Backward {
			gradients++
		}
	}
	if want := tensors * (len(kinds.List())*(6+8) - gradients*(3+4)); len(r.Kinds) != want {
		t.Errorf("%d rows of kinds of data, want %d", len(r.Kinds), want)
	}
	if !strings.HasPrefix(r.Command, "bench -only 60x100") {
		t.Errorf("the command is %q", r.Command)
	}
	for _, b := range r.Bounds {
		if len(b.Samples) == 0 || b.Samples[0] < b.Nanoseconds {
			t.Errorf("samples %v of %v ns", b.Samples, b.Nanoseconds)
		}
	}
}

func TestSweepSet(t *testing.T) {
	want := sweepMin
	set := sweepSet(sweepMax)
	for i, c := range set.cases {
		if got := 4 * c.dims.Len(); got != want {
			t.Errorf("%s %s has %d bytes, want %d", c.layout, c.shape, got, want)
		}
		if err := c.dims.Valid(); err != nil {
			t.Error(err)
		}
		if i%2 == 1 {
			want *= 2
		}
	}
	if want != 2*sweepMax {
		t.Errorf("it ends at %d", want/2)
	}
}

func TestScalings(t *testing.T) {
	row := func(layout, shape string, workers, elements int, ns float64) boundRow {
		return boundRow{Operation: "forward", Layout: layout, Shape: shape, Workers: workers, Elements: elements, Nanoseconds: ns}
	}
	const n = 4 << 20
	rows := []boundRow{
		row("nchw", "a", 1, n, n), row("nchw", "a", 2, n, n/2),
		row("nchw", "b", 1, n, n), row("nchw", "b", 2, n, n*2),
		row("nchw", "small", 1, 100, 50), row("nchw", "small", 2, 100, 500), // in a cache
		row("nhwc", "a", 1, n, n), // no other
		row("nc", "a", 1, n, 2*n), row("nc", "a", 2, n, n),
	}
	all := scalings(rows)
	if len(all) != 2 {
		t.Fatalf("scalings: %+v", all)
	}
	a, b := all[0], all[1]
	// 8 bytes in a nanosecond, and 12 in two.
	if a.tensors != 2 || math.Abs(a.measured[2]-1) > 1e-9 || math.Abs(a.demand-8) > 1e-9 {
		t.Errorf("nchw: %+v", a)
	}
	if b.tensors != 1 || math.Abs(b.measured[2]-2) > 1e-9 || math.Abs(b.demand-6) > 1e-9 {
		t.Errorf("nc: %+v", b)
	}
	if got := a.model(16, 100); math.Abs(got-12.5) > 1e-9 {
		t.Errorf("the model gives %v, want 12.5", got)
	}
	if got := a.model(4, 100); got != 4 {
		t.Errorf("the model gives %v, want 4", got)
	}
	var out strings.Builder
	scalingTable(&out, rows, 100)
	if text := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(text, "forward nchw 2 8.0 1.00 12.5 12.5") {
		t.Errorf("the table is\n%s", &out)
	}
	out.Reset()
	if scalingTable(&out, rows[:1], 100); out.Len() > 0 {
		t.Errorf("one worker scales:\n%s", &out)
	}
}

func TestFlops(t *testing.T) {
	for name, want := range map[string]int{
		"forward": 7, "inference": 3, "backward": 9, "forward+relu": 8, "forward+relu+residual": 9,
		"backward+relu": 15, "backward+relu+residual": 17,
	} {
		if got := opNamed(name).flops(); got != want {
			t.Errorf("%s has %d operations, want %d", name, got, want)
		}
	}
}

// TestReportPictures: every figure of the page is a file as well, with its title and
// all of its legend.
func TestReportPictures(t *testing.T) {
	page, _, folder := render(t, someReport(), exitOK)
	pictures, err := filepath.Glob(filepath.Join(folder, "*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(page, `<ul class="keys">`); len(pictures) != want || want == 0 {
		t.Errorf("there are %d pictures, the page has %d figures", len(pictures), want)
	}
	text, err := os.ReadFile(filepath.Join(folder, "fraction-of-the-bound-nchw-1-worker.svg"))
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if s, ok := token.(xml.CharData); ok {
			shown = append(shown, strings.TrimSpace(string(s)))
		}
	}
	for _, want := range []string{"Fraction of the bound: NCHW, 1 worker", "bound", "forward", "time of the bound / time"} {
		if !slices.Contains(shown, want) {
			t.Errorf("the picture lacks %q; it has %q", want, shown)
		}
	}
}

// TestReportInBrowser looks at the page as wide screens and phones show it.
func TestReportInBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs a browser: apt-get install chromium")
	}
	page, _, folder := render(t, someReport(), exitOK)
	// The page has no script; this one is for the test.
	const script = `<script>
const shown = [...document.querySelectorAll("figure .scroll svg, .keys svg")].map(s => s.getBoundingClientRect());
document.title = [document.documentElement.scrollWidth, innerWidth, shown.length, shown.filter(b => b.width > 15 && b.height > 5).length,
	Math.min(...[...document.querySelectorAll("figure .scroll svg")].map(s => s.getBoundingClientRect().width))].join(" ");
</script></body>`
	probed := filepath.Join(folder, "probed.html")
	if err := os.WriteFile(probed, []byte(strings.Replace(page, "</body>", script, 1)), 0o666); err != nil {
		t.Fatal(err)
	}
	chromium := func(width int, args ...string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		all := []string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
			fmt.Sprintf("--window-size=%d,3000", width)}
		cmd := exec.CommandContext(ctx, browser, append(all, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
		}
		return out
	}
	for _, width := range []int{1200, 500} {
		dom := chromium(width, "--dump-dom", "file://"+probed)
		m := regexp.MustCompile(`<title>(\d+) (\d+) (\d+) (\d+) ([0-9.]+)</title>`).FindSubmatch(dom)
		if m == nil {
			t.Fatalf("%d pixels: the script did not run: %.300s", width, dom)
		}
		var scroll, inner, drawings, visible int
		var narrowest float64
		fmt.Sscan(string(bytes.Join(m[1:], []byte(" "))), &scroll, &inner, &drawings, &visible, &narrowest)
		if inner != width || scroll > inner {
			t.Errorf("%d pixels: the page is %d wide, in a window of %d", width, scroll, inner)
		}
		if drawings == 0 || visible != drawings {
			t.Errorf("%d pixels: %d drawings of %d can be seen", width, visible, drawings)
		}
		if narrowest < 500 { // their text is too small otherwise
			t.Errorf("%d pixels: a figure is %v wide", width, narrowest)
		}
		shot := filepath.Join(folder, "shot.png")
		chromium(width, "--screenshot="+shot, "file://"+filepath.Join(folder, pageFile))
		f, err := os.Open(shot)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		colours := map[[3]uint32]bool{}
		for y := 0; y < img.Bounds().Dy(); y += 3 {
			for x := 0; x < img.Bounds().Dx(); x += 3 {
				r, g, b, _ := img.At(x, y).RGBA()
				colours[[3]uint32{r, g, b}] = true
			}
		}
		if img.Bounds().Dx() != width || len(colours) < 50 {
			t.Errorf("%d pixels: the picture is %v, with %d colours", width, img.Bounds(), len(colours))
		}
	}
}
