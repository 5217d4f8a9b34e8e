package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/kinds"
)

// BenchmarkBatchNorm runs what the program times. The tensors of a case are
// made when the first benchmark that -bench selects needs them: with
// -bench './op=forward/layout=nchw/shape=64x56x56' only those are.
func BenchmarkBatchNorm(b *testing.B) {
	imgs, err := imageSet()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range append(imgs.cases, resnet50Set(32).cases...) {
		inputs := sync.OnceValues(func() (*inputs, error) { return c.inputs(ops, kink) })
		for _, o := range ops {
			for _, path := range batchnorm.Paths() {
				for _, workers := range slices.Compact([]int{1, runtime.GOMAXPROCS(0)}) {
					name := fmt.Sprintf("op=%s/layout=%s/shape=%s/path=%v/workers=%d", o.name, c.layout, c.shape, path, workers)
					b.Run(name, func(b *testing.B) {
						in, err := inputs()
						if err != nil {
							b.Fatal(err)
						}
						plan, err := o.plan(c.dims, path, workers)
						if err != nil {
							b.Fatal(err)
						}
						out := newOutputs(in)
						b.SetBytes(int64(o.bytes * c.dims.Len()))
						b.ReportAllocs()
						for b.Loop() {
							if err := o.run(plan, in, out); err != nil {
								b.Fatal(err)
							}
						}
					})
				}
			}
		}
	}
}

// BenchmarkActivation runs forward and backward with every activation on the
// tensor of -activations.
func BenchmarkActivation(b *testing.B) {
	for _, c := range goalSet().cases {
		if c.shape != activationsOnly {
			continue
		}
		inputs := sync.OnceValues(func() (*inputs, error) { return c.inputs(peerOps, 0) })
		for _, act := range activationList {
			for _, o := range []op{{name: "forward", kind: forward, bytes: 8}, {name: "backward", kind: backward, bytes: 12}} {
				b.Run(fmt.Sprintf("op=%s/layout=%s/act=%v", o.name, c.layout, act), func(b *testing.B) {
					in, err := inputs()
					if err != nil {
						b.Fatal(err)
					}
					plan, err := batchnorm.NewPlan(c.dims, batchnorm.WithActivation(act))
					if err != nil {
						b.Fatal(err)
					}
					out := newOutputs(in)
					b.SetBytes(int64(o.bytes * c.dims.Len()))
					b.ReportAllocs()
					for b.Loop() {
						if err := o.run(plan, in, out); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// BenchmarkData runs forward and backward on every kind of data, in turn with usual
// data: times-usual is the ratio of their least times.
func BenchmarkData(b *testing.B) {
	for _, c := range kindsSet().cases {
		usual := sync.OnceValue(func() *kindData { return newKindData(c.dims) })
		for _, k := range kinds.List() {
			data := sync.OnceValue(func() *kindData {
				d := newKindData(c.dims)
				d.apply(k)
				return d
			})
			for _, act := range kindActivations {
				for _, o := range kindOps {
					if k.Backward && o.kind == forward {
						continue
					}
					kind := strings.ReplaceAll(strings.ReplaceAll(k.Name, ", ", "_"), " ", "")
					b.Run(fmt.Sprintf("op=%s/layout=%s/act=%v/kind=%s", o.name, c.layout, act, kind), func(b *testing.B) {
						plan, err := batchnorm.NewPlan(c.dims, batchnorm.WithActivation(act), batchnorm.WithWorkers(1))
						if err != nil {
							b.Fatal(err)
						}
						runs := kindRuns(plan, o, usual(), data())
						least := [2]time.Duration{math.MaxInt64, math.MaxInt64}
						for b.Loop() {
							for i, run := range runs {
								start := time.Now()
								if err := run(); err != nil {
									b.Fatal(err)
								}
								least[i] = min(least[i], max(time.Since(start), 1))
							}
						}
						b.ReportMetric(float64(least[1])/float64(least[0]), "times-usual")
					})
				}
			}
		}
	}
}
