package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// newProgress returns a bar that is removed when n is done. It is drawn seldom into a file,
// where every drawing stays.
func newProgress(w io.Writer, n int, what string) *progressbar.ProgressBar {
	interval := 10 * time.Second
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		interval = 100 * time.Millisecond
	}
	return progressbar.NewOptions(n,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(interval),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish())
}
