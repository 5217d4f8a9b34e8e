// Command plain is batch normalization in the plain loops that a Go user would
// write first: one for the mean, one for the variance, one to normalize.
package main

import (
	"runtime"

	"github.com/fusedbn/batchnorm/bench/peers/loops"
	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

func main() {
	peer.Serve(peer.Peer{
		Name: "plain loops, " + runtime.Version(),
		New: func(p peer.Problem, threads int) (peer.Runner, error) {
			return loops.New(p, threads, map[peer.Layout]loops.Kernels{
				peer.NCHW: {Moments: momentsNCHW, Apply: applyNCHW, Sums: sumsNCHW, Gradient: gradientNCHW},
				peer.NHWC: {Moments: momentsNHWC, Apply: applyNHWC, Sums: sumsNHWC, Gradient: gradientNHWC},
			})
		},
	})
}

func momentsNCHW(s loops.Shape, x, mean, variance []float32) {
	count := float64(s.Outer * s.Inner)
	for c := range s.Channels {
		var sum float64
		for n := range s.Outer {
			for _, v := range s.Row(x, n, c) {
				sum += float64(v)
			}
		}
		m := sum / count
		var squares float64
		for n := range s.Outer {
			for _, v := range s.Row(x, n, c) {
				d := float64(v) - m
				squares += d * d
			}
		}
		mean[c], variance[c] = float32(m), float32(squares/count)
	}
}

func applyNCHW(s loops.Shape, x, mean, scale, shift, y []float32, relu bool) {
	for c := range s.Channels {
		m, a, b := mean[c], scale[c], shift[c]
		for n := range s.Outer {
			out := s.Row(y, n, c)
			for i, v := range s.Row(x, n, c) {
				z := (v-m)*a + b
				if relu {
					z = max(z, 0)
				}
				out[i] = z
			}
		}
	}
}

func sumsNCHW(s loops.Shape, dy, x, y, mean, sumG, sumGX []float32) {
	for c := range s.Channels {
		m := mean[c]
		var g, gx float64
		for n := range s.Outer {
			in := s.Row(x, n, c)
			out := s.Row(y, n, c)
			for i, d := range s.Row(dy, n, c) {
				if out != nil && out[i] <= 0 {
					continue
				}
				g += float64(d)
				gx += float64(d * (in[i] - m))
			}
		}
		sumG[c], sumGX[c] = float32(g), float32(gx)
	}
}

func gradientNCHW(s loops.Shape, dy, x, y, mean, k1, k2, scale, dx []float32) {
	for c := range s.Channels {
		m, k1, k2, a := mean[c], k1[c], k2[c], scale[c]
		for n := range s.Outer {
			in := s.Row(x, n, c)
			out := s.Row(y, n, c)
			to := s.Row(dx, n, c)
			for i, d := range s.Row(dy, n, c) {
				if out != nil && out[i] <= 0 {
					d = 0
				}
				to[i] = (d - k1 - (in[i]-m)*k2) * a
			}
		}
	}
}

func momentsNHWC(s loops.Shape, x, mean, variance []float32) {
	sums := make([]float64, s.Channels)
	for n := range s.Outer {
		for c, v := range s.Position(x, n) {
			sums[c] += float64(v)
		}
	}
	for c := range sums {
		mean[c] = float32(sums[c] / float64(s.Outer))
	}
	clear(sums)
	for n := range s.Outer {
		for c, v := range s.Position(x, n) {
			d := v - mean[c]
			sums[c] += float64(d * d)
		}
	}
	for c := range sums {
		variance[c] = float32(sums[c] / float64(s.Outer))
	}
}

func applyNHWC(s loops.Shape, x, mean, scale, shift, y []float32, relu bool) {
	for n := range s.Outer {
		out := s.Position(y, n)
		for c, v := range s.Position(x, n) {
			z := (v-mean[c])*scale[c] + shift[c]
			if relu {
				z = max(z, 0)
			}
			out[c] = z
		}
	}
}

func sumsNHWC(s loops.Shape, dy, x, y, mean, sumG, sumGX []float32) {
	g := make([]float64, s.Channels)
	gx := make([]float64, s.Channels)
	for n := range s.Outer {
		in := s.Position(x, n)
		out := s.Position(y, n)
		for c, d := range s.Position(dy, n) {
			if out != nil && out[c] <= 0 {
				continue
			}
			g[c] += float64(d)
			gx[c] += float64(d * (in[c] - mean[c]))
		}
	}
	for c := range g {
		sumG[c], sumGX[c] = float32(g[c]), float32(gx[c])
	}
}

func gradientNHWC(s loops.Shape, dy, x, y, mean, k1, k2, scale, dx []float32) {
	for n := range s.Outer {
		in := s.Position(x, n)
		out := s.Position(y, n)
		to := s.Position(dx, n)
		for c, d := range s.Position(dy, n) {
			if out != nil && out[c] <= 0 {
				d = 0
			}
			to[c] = (d - k1[c] - (in[c]-mean[c])*k2[c]) * scale[c]
		}
	}
}
