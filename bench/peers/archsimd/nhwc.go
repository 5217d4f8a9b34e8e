//go:build goexperiment.simd && amd64

package main

import "github.com/fusedbn/batchnorm/bench/peers/loops"

func momentsNHWC(s loops.Shape, x, mean, variance []float32) {
	for c, t := range totals(s, s.Channels, func(n int, sums []float32) {
		addRow(sums, s.Position(x, n))
	}) {
		mean[c] = float32(t / float64(s.Outer))
	}
	for c, t := range totals(s, s.Channels, func(n int, sums []float32) {
		addSquares(sums, s.Position(x, n), mean)
	}) {
		variance[c] = float32(t / float64(s.Outer))
	}
}

// totals adds up by blocks, so that errors stay small: add adds row n to float32 sums, and
// moves these to float64 sums after each block.
func totals(s loops.Shape, count int, add func(n int, sums []float32)) []float64 {
	const blockRows = 256
	sums := make([]float32, count)
	total := make([]float64, count)
	for n := range s.Outer {
		add(n, sums)
		if n%blockRows == blockRows-1 || n == s.Outer-1 {
			for c, v := range sums {
				total[c] += float64(v)
			}
			clear(sums)
		}
	}
	return total
}

func addRow(sums, x []float32) {
	sums = sums[:len(x)]
	c := 0
	for ; c+lanes <= len(x); c += lanes {
		store(load(sums, c).Add(load(x, c)), sums, c)
	}
	leave()
	for ; c < len(x); c++ {
		sums[c] += x[c]
	}
}

func addSquares(sums, x, mean []float32) {
	sums, mean = sums[:len(x)], mean[:len(x)]
	c := 0
	for ; c+lanes <= len(x); c += lanes {
		d := load(x, c).Sub(load(mean, c))
		store(d.MulAdd(d, load(sums, c)), sums, c)
	}
	leave()
	for ; c < len(x); c++ {
		sums[c] += (x[c] - mean[c]) * (x[c] - mean[c])
	}
}

func applyNHWC(s loops.Shape, x, mean, scale, shift, y []float32, relu bool) {
	for n := range s.Outer {
		applyPosition(s.Position(x, n), s.Position(y, n), mean, scale, shift, relu)
	}
}

func applyPosition(x, y, mean, scale, shift []float32, relu bool) {
	y, mean, scale, shift = y[:len(x)], mean[:len(x)], scale[:len(x)], shift[:len(x)]
	c := 0
	for ; c+lanes <= len(x); c += lanes {
		z := load(x, c).Sub(load(mean, c)).MulAdd(load(scale, c), load(shift, c))
		if relu {
			z = z.Max(vec{})
		}
		store(z, y, c)
	}
	leave()
	for ; c < len(x); c++ {
		z := (x[c]-mean[c])*scale[c] + shift[c]
		if relu {
			z = max(z, 0)
		}
		y[c] = z
	}
}

func sumsNHWC(s loops.Shape, dy, x, y, mean, sumG, sumGX []float32) {
	both := totals(s, 2*s.Channels, func(n int, sums []float32) {
		addProducts(sums[:s.Channels], sums[s.Channels:], s.Position(dy, n), s.Position(x, n), s.Position(y, n), mean)
	})
	for c := range sumG {
		sumG[c], sumGX[c] = float32(both[c]), float32(both[s.Channels+c])
	}
}

func addProducts(g, gx, dy, x, y, mean []float32) {
	relu := y != nil
	if !relu {
		y = x
	}
	g, gx, x, y, mean = g[:len(dy)], gx[:len(dy)], x[:len(dy)], y[:len(dy)], mean[:len(dy)]
	c := 0
	for ; c+lanes <= len(dy); c += lanes {
		d := load(dy, c)
		if relu {
			d = positive(d, load(y, c))
		}
		store(load(g, c).Add(d), g, c)
		store(load(x, c).Sub(load(mean, c)).MulAdd(d, load(gx, c)), gx, c)
	}
	leave()
	for ; c < len(dy); c++ {
		if !relu || y[c] > 0 {
			g[c] += dy[c]
			gx[c] += dy[c] * (x[c] - mean[c])
		}
	}
}

func gradientNHWC(s loops.Shape, dy, x, y, mean, k1, k2, scale, dx []float32) {
	for n := range s.Outer {
		gradientPosition(s.Position(dy, n), s.Position(x, n), s.Position(y, n), s.Position(dx, n), mean, k1, k2, scale)
	}
}

func gradientPosition(dy, x, y, dx, mean, k1, k2, scale []float32) {
	relu := y != nil
	if !relu {
		y = x
	}
	x, y, dx = x[:len(dy)], y[:len(dy)], dx[:len(dy)]
	mean, k1, k2, scale = mean[:len(dy)], k1[:len(dy)], k2[:len(dy)], scale[:len(dy)]
	c := 0
	for ; c+lanes <= len(dy); c += lanes {
		g := load(dy, c)
		if relu {
			g = positive(g, load(y, c))
		}
		store(g.Sub(load(k1, c)).Sub(load(x, c).Sub(load(mean, c)).Mul(load(k2, c))).Mul(load(scale, c)), dx, c)
	}
	leave()
	for ; c < len(dy); c++ {
		g := dy[c]
		if relu && y[c] <= 0 {
			g = 0
		}
		dx[c] = (g - k1[c] - (x[c]-mean[c])*k2[c]) * scale[c]
	}
}
