package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

func TestFlagErrors(t *testing.T) {
	for _, c := range []struct {
		args string
		want string // in the message
	}{
		{"-nosuch", "-nosuch"},
		{"more", `argument "more"`},
		{"-shapes vgg", `-shapes is "vgg", must be images, resnet50, goal, data or a list like nchw:`},
		{"-shapes nchw:2x3x4x5,ncw:2x3x4", `-shapes has "ncw:2x3x4": layout is "ncw", must be nchw, nhwc or nc`},
		{"-shapes nc:2x3,", `-shapes has "": a layout and sizes are wanted`},
		{"-shapes nc:2x3,goal", `-shapes has "goal": a layout and sizes are wanted`},
		{"-shapes nchw:2x3x4", `-shapes has "nchw:2x3x4": nchw has 4 sizes, NxCxHxW, not 3`},
		{"-bound -shapes nc:2x3x4", `-shapes has "nc:2x3x4": nc has 2 sizes, NxC, not 3`},
		{"-peers -shapes nhwc:2x3x0x5", `-shapes has "nhwc:2x3x0x5": H is "0", must be a number of at least 1`},
		{"-shapes nhwc:2x3x4x5p", `W is "5p", must be a number`},
		{"-shapes nhwc:2x3x4x", `W is "", must be a number`},
		{"-activations -shapes nc:-2x3", `N is "-2", must be a number`},
		{"-shapes nc:1x1000", `-shapes has "nc:1x1000": a channel has one value, must have at least 2`},
		{"-shapes nc:2x3,nc:2x3", `-shapes has "nc:2x3" twice`},
		{"-shapes nchw:99999x99999x99999x99999", "the tensor has more than 134217728 values"},
		{"-bound -shapes nc:2x134217729", "the tensor has more than 268435456 values"},
		{"-shapes nc:2x3 -batch 8", "-batch is for -shapes resnet50 only"},
		{"-shapes nc:2x3 -only 4x5", `-only is "4x5", which no layout and shape of -shapes nc:2x3 has`},
		{"-batch 8", "-batch is for -shapes resnet50 only"},
		{"-shapes resnet50 -batch 0", "-batch is 0, must be from 1 to"},
		{"-shapes resnet50 -batch 1000000000", "must be from 1 to"},
		{"-shapes resnet50 -batch x", `"x" for flag -batch`},
		{"-workers 0", "-workers is 0"},
		{"-workers x", `-workers is "x"`},
		{"-workers 1,2", "-workers is a list, which is for -bound, -peers and -report only"},
		{"-bound -workers 1,", `-workers is "1,"`},
		{"-bound -path vfp", `-path is "vfp", must be of`},
		{"-path generic", "-path and -maxtime are for -bound, -peers, -activations, -data and -report only"},
		{"-maxtime 1s", "-path and -maxtime are for -bound, -peers, -activations, -data and -report only"},
		{"-bound -maxtime -1s", "-maxtime is -1s"},
		{"-shapes goal", "-shapes goal is for -bound, -peers and -report only"},
		{"-bound -peers", "-bound, -peers, -activations, -data and -report are runs of their own"},
		{"-data -bound", "-bound, -peers, -activations, -data and -report are runs of their own"},
		{"-data -ops forward", "-ops is not for -data"},
		{"-data -membw 5", "-membw is for -bound and -report only"},
		{"-with plain", "-with and -maxmb are for -peers and -report only"},
		{"-bound -maxmb 5", "-with and -maxmb are for -peers and -report only"},
		{"-peers -maxmb 0", "-maxmb is 0"},
		{"-peers -report r", "-bound, -peers, -activations, -data and -report are runs of their own"},
		{"-from results.json", "-from and -sweepmb are for -report only"},
		{"-report r -from nosuch.json", "-from: open nosuch.json"},
		{"-report r -from main.go", "-from: main.go: invalid character"},
		{"-report r -ops forward", "-ops is not for -report"},
		{"-report r -sweepmb 0", "-sweepmb is 0"},
		{"-report main.go/r", "-report: mkdir main.go: not a directory"},
		{"-peers -membw 5", "-membw is for -bound and -report only"},
		{"-bound -membw -1", "-membw is -1"},
		{"-peers -with caffe", `-with has "caffe", must be of onednn, `},
		{"-peers -ops forward+relu+residual", `-ops has "forward+relu+residual", must be of forward, inference, backward, forward+relu,`},
		{"-ops forward,sideways", `-ops has "sideways", must be of forward, inference`},
		{"-only 3x3", `-only is "3x3", which no layout and shape of -shapes images has`},
		{"-reps 0", "-reps is 0"},
		{"-mintime -1s", "-mintime is -1s"},
		{"-json " + filepath.Join("no", "such", "folder"), "-json: open"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(c.args), &stdout, &stderr); code != exitUsage {
			t.Errorf("%s: exit status %d, want %d", c.args, code, exitUsage)
		}
		msg := stderr.String()
		if !strings.HasPrefix(msg, "bench: ") || !strings.Contains(msg, c.want) || strings.Count(msg, "\n") != 1 {
			t.Errorf("%s: message is %q, want a line with %q", c.args, msg, c.want)
		}
		if stdout.Len() > 0 {
			t.Errorf("%s: output is %q", c.args, stdout.String())
		}
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"-h"}, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit status %d, message %q", code, stderr.String())
	}
	for _, name := range []string{"-shapes", "-json", "-workers", "-batch", "-reps", "-mintime",
		"-maxtime", "-bound", "-data", "-path", "-ops", "-only", "-peers", "-with", "-maxmb", "-report", "-from", "-sweepmb", "-membw"} {
		if !strings.Contains(stdout.String(), name) {
			t.Errorf("help lacks %s", name)
		}
	}
}

// The program as a whole, timing as little as it can.
func TestRunImages(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector")
	}
	file := filepath.Join(t.TempDir(), "rows.json")
	var stdout, stderr bytes.Buffer
	code := run([]string{"-reps", "1", "-mintime", "0", "-workers", "2", "-json", file}, &stdout, &stderr)
	if code != exitOK {
		t.Errorf("exit status %d\n%s%s", code, stdout.String(), stderr.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if want := 3 * len(ops) * len(batchnorm.Paths()); len(r.Rows) != want {
		t.Errorf("%d rows, want %d", len(r.Rows), want)
	}
	if r.Workers != 2 || r.Batch != 2000 {
		t.Errorf("JSON has %d workers, batch %d", r.Workers, r.Batch)
	}
	for _, row := range r.Rows {
		line := strings.Join([]string{row.Operation, row.Layout, row.Shape, row.Path}, " ")
		if row.GBPerSecond <= 0 || row.TimesGo <= 0 {
			t.Errorf("%s: %v GB/s, %v times pure Go", line, row.GBPerSecond, row.TimesGo)
		}
		if !strings.Contains(strings.Join(strings.Fields(stdout.String()), " "), line) {
			t.Errorf("the table lacks %s", line)
		}
	}
}

func TestReport(t *testing.T) {
	r := report{
		CPU: "some CPU", Path: "avx2", Paths: []string{"avx2", "generic"}, Workers: 1, Data: "data", Batch: 4,
		Rows: []row{{
			Operation: "forward", Layout: "nchw", Shape: "1x2x3", Path: "avx2",
			Elements: 24, Bytes: 192, Nanoseconds: 96, GBPerSecond: 2, TimesGo: 3,
			Error: 1e-7, Errors: worst{"y": 1e-7},
		}},
	}
	table := func() string {
		var b bytes.Buffer
		r.table(&b)
		return b.String()
	}
	if s := table(); r.failed() || strings.Contains(s, "FAIL") || !strings.Contains(s, "All errors are within") {
		t.Errorf("without a failure:\n%s", s)
	}
	r.Rows[0].Failures = []string{"error of y is 1, must be at most 0"}
	if s := table(); !r.failed() || !strings.Contains(s, "FAIL forward nchw 1x2x3 avx2: error of y is 1") || strings.Contains(s, "within their") {
		t.Errorf("with a failure:\n%s", s)
	}

	var b bytes.Buffer
	if err := r.json(&b); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, back) {
		t.Errorf("JSON returns %+v, want %+v", back, r)
	}
}
