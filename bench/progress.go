package main

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress is a bar with the remaining time, which appears when the work takes longer
// than patience. A nil one shows nothing.
type progress struct {
	mu      sync.Mutex
	w       io.Writer
	total   int
	done    int
	what    string
	bar     *progressbar.ProgressBar // nil: not shown
	timer   *time.Timer
	stopped bool
}

const patience = time.Second

// startProgress begins a bar. total is the sum of the arguments of all calls of add.
func startProgress(w io.Writer, total int) *progress {
	p := &progress{w: w, total: total}
	p.timer = time.AfterFunc(patience, p.show)
	return p
}

func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	p.bar = progressbar.NewOptions(p.total,
		progressbar.OptionSetWriter(p.w),
		progressbar.OptionSetDescription(p.what),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(p.interval()),
		progressbar.OptionClearOnFinish())
	p.bar.Add(p.done)
}

// interval is the time between two drawings of the bar: long for a file, where every
// drawing stays.
func (p *progress) interval() time.Duration {
	if f, ok := p.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return 100 * time.Millisecond
	}
	return 10 * time.Second
}

// describe sets the text of the bar.
func (p *progress) describe(what string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
	if p.bar != nil {
		p.bar.Describe(what)
	}
}

// add adds n to the work done.
func (p *progress) add(n int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.bar != nil {
		p.bar.Add(n)
	}
}

// stop removes the bar.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	p.stopped = true
	if p.bar != nil {
		p.bar.Finish()
	}
}
