package main

import (
	"math"
	"time"
)

// effort bounds how long an operation is timed.
type effort struct {
	reps    int           // least number of runs of every path
	minTime time.Duration // least time per path
	maxTime time.Duration // most time of alternate
}

// measure returns the least time of each of runs. The runs alternate, so that a machine
// that slows down or speeds up does so for all of them.
func (e effort) measure(runs []func() error) ([]time.Duration, error) {
	best := make([]time.Duration, len(runs))
	fill(best, math.MaxInt64)
	total := e.minTime * time.Duration(len(runs))
	spent := time.Duration(0)
	for n := 0; n < e.reps || spent < total; n++ {
		for i, run := range runs {
			start := time.Now()
			if err := run(); err != nil {
				return nil, err
			}
			t := max(time.Since(start), 1) // some clocks are coarse
			best[i] = min(best[i], t)
			spent += t
		}
	}
	return best, nil
}
