package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/fusedbn/batchnorm"
)

// shareGoal is the goal for batch norm's share of a step, on the fastest path.
const shareGoal = 0.05

var timeShare = section{
	id:      "time",
	title:   "What it costs",
	claim:   fmt.Sprintf("Batch norm takes less than %v%% of the time of a training step.", 100*shareGoal),
	recipes: func(*lab, func(string, recipe)) {}, // measures on its own
	measure: func(l *lab, _ map[string]*trace) (*result, error) {
		t := table{
			caption: fmt.Sprintf("Median of %d steps of %d images, one training at a time. "+
				"Batch norm is fused with sigmoid, and counts with it, forward and backward; "+
				"beside that, without sigmoid. The network without batch norm runs its bias and sigmoid on the same kernels, which is a cost of its own.",
				l.timedSteps, l.batch),
			head: []string{"path", "step", "batch norm + sigmoid", "batch norm alone", "images/s with", "images/s without"},
		}
		var first *stepTimes
		for _, path := range batchnorm.Paths() {
			s, err := l.timeSteps(path)
			if err != nil {
				return nil, err
			}
			if first == nil {
				first = s
			}
			t.rows = append(t.rows, []string{
				path.String(), s.step.Round(time.Microsecond).String(), percent(s.share(s.fused)), percent(s.share(s.alone)),
				fmt.Sprintf("%.0f", s.perSecond(s.step, l.batch)), fmt.Sprintf("%.0f", s.perSecond(s.plain, l.batch)),
			})
		}
		return &result{tables: []table{t}, findings: []finding{timeFinding(batchnorm.Paths()[0].String(), first)}}, nil
	},
}

// stepTimes has the times of the parts of a step.
type stepTimes struct {
	step  time.Duration // with batch norm
	fused time.Duration // batch norm and activation in it
	alone time.Duration // batch norm without the activation
	plain time.Duration // a step of the network without batch norm
}

func (s *stepTimes) share(part time.Duration) float64 { return float64(part) / float64(s.step) }

func (s *stepTimes) perSecond(step time.Duration, images int) float64 {
	return float64(images) / step.Seconds()
}

func timeFinding(path string, s *stepTimes) finding {
	return finding{
		fmt.Sprintf("On path %s batch norm with its sigmoid takes %s of a step; without sigmoid it would be %s. "+
			"A step takes %.2f times as long as one without batch norm.",
			path, percent(s.share(s.fused)), percent(s.share(s.alone)), float64(s.step)/float64(s.plain)),
		s.share(s.fused) < shareGoal,
	}
}

// timeSteps times the networks in turns, so that a disturbance of the machine disturbs all.
func (l *lab) timeSteps(path batchnorm.Path) (*stepTimes, error) {
	var passes []*pass
	for _, norm := range both {
		r := l.recipe(sigmoid, norm, l.timedSteps)
		r.design.path = path
		p, err := newPass(newNetwork(r.design), r.batch)
		if err != nil {
			return nil, err
		}
		p.clock = &clock{}
		passes = append(passes, p)
	}
	order := newOrder(l.train.N, l.seed)
	images := make([]int, l.batch)
	steps := map[*pass][]time.Duration{}
	var fused, alone []time.Duration
	for range l.timedSteps {
		order.next(images)
		for _, p := range passes {
			p.clock.total = 0
			begin := time.Now()
			p.fill(l.train, images)
			if _, err := p.forward(training); err != nil {
				return nil, err
			}
			if err := p.backward(); err != nil {
				return nil, err
			}
			p.net.step(float32(l.rate))
			steps[p] = append(steps[p], time.Since(begin))
		}
		p := passes[0]
		fused = append(fused, p.clock.total)
		took, err := p.bareTime()
		if err != nil {
			return nil, err
		}
		alone = append(alone, took)
	}
	return &stepTimes{median(steps[passes[0]]), median(fused), median(alone), median(steps[passes[1]])}, nil
}

// bareTime times batch norm without activation, forward and backward, on the memory that a
// step has left.
func (p *pass) bareTime() (time.Duration, error) {
	c := &clock{}
	for i, l := range p.net.layers {
		if !l.norm {
			continue
		}
		lp := &p.layers[i]
		c.begin()
		err := p.normalize(i, lp.bare, batch, lp.pre)
		if err == nil {
			err = p.unnormalize(i, lp.bare, lp.pre)
		}
		c.end()
		if err != nil {
			return 0, err
		}
	}
	return c.total, nil
}

func median(times []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)/2]
}
