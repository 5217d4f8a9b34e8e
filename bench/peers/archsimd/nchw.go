//go:build goexperiment.simd && amd64

package main

import "github.com/fusedbn/batchnorm/bench/peers/loops"

func momentsNCHW(s loops.Shape, x, mean, variance []float32) {
	count := float64(s.Outer * s.Inner)
	for c := range s.Channels {
		var total float64
		for n := range s.Outer {
			total += float64(sum(s.Row(x, n, c)))
		}
		mean[c] = float32(total / count)
		total = 0
		for n := range s.Outer {
			total += float64(sumSquares(s.Row(x, n, c), mean[c]))
		}
		variance[c] = float32(total / count)
	}
}

func sum(x []float32) float32 {
	var a, b, c, d vec
	i := 0
	for ; i+4*lanes <= len(x); i += 4 * lanes {
		a = a.Add(load(x, i))
		b = b.Add(load(x, i+lanes))
		c = c.Add(load(x, i+2*lanes))
		d = d.Add(load(x, i+3*lanes))
	}
	for ; i+lanes <= len(x); i += lanes {
		a = a.Add(load(x, i))
	}
	total := across(a.Add(b).Add(c.Add(d)))
	for ; i < len(x); i++ {
		total += x[i]
	}
	return total
}

func sumSquares(x []float32, mean float32) float32 {
	m := broadcast(mean)
	var a, b, c, d vec
	i := 0
	for ; i+4*lanes <= len(x); i += 4 * lanes {
		p, q := load(x, i).Sub(m), load(x, i+lanes).Sub(m)
		r, s := load(x, i+2*lanes).Sub(m), load(x, i+3*lanes).Sub(m)
		a, b, c, d = p.MulAdd(p, a), q.MulAdd(q, b), r.MulAdd(r, c), s.MulAdd(s, d)
	}
	for ; i+lanes <= len(x); i += lanes {
		p := load(x, i).Sub(m)
		a = p.MulAdd(p, a)
	}
	total := across(a.Add(b).Add(c.Add(d)))
	for ; i < len(x); i++ {
		total += (x[i] - mean) * (x[i] - mean)
	}
	return total
}

func applyNCHW(s loops.Shape, x, mean, scale, shift, y []float32, relu bool) {
	for c := range s.Channels {
		for n := range s.Outer {
			applyRow(s.Row(x, n, c), s.Row(y, n, c), mean[c], scale[c], shift[c], relu)
		}
	}
}

func applyRow(x, y []float32, mean, scale, shift float32, relu bool) {
	y = y[:len(x)]
	m, a, b := broadcast(mean), broadcast(scale), broadcast(shift)
	i := 0
	for ; i+lanes <= len(x); i += lanes {
		z := load(x, i).Sub(m).MulAdd(a, b)
		if relu {
			z = z.Max(vec{})
		}
		store(z, y, i)
	}
	leave()
	for ; i < len(x); i++ {
		z := (x[i]-mean)*scale + shift
		if relu {
			z = max(z, 0)
		}
		y[i] = z
	}
}

func sumsNCHW(s loops.Shape, dy, x, y, mean, sumG, sumGX []float32) {
	for c := range s.Channels {
		var g, gx float64
		for n := range s.Outer {
			a, b := sumsRow(s.Row(dy, n, c), s.Row(x, n, c), s.Row(y, n, c), mean[c])
			g += float64(a)
			gx += float64(b)
		}
		sumG[c], sumGX[c] = float32(g), float32(gx)
	}
}

func sumsRow(dy, x, y []float32, mean float32) (sumG, sumGX float32) {
	relu := y != nil
	if !relu {
		y = x
	}
	x, y = x[:len(dy)], y[:len(dy)]
	m := broadcast(mean)
	var g0, g1, gx0, gx1 vec
	i := 0
	for ; i+2*lanes <= len(dy); i += 2 * lanes {
		p, q := load(dy, i), load(dy, i+lanes)
		if relu {
			p, q = positive(p, load(y, i)), positive(q, load(y, i+lanes))
		}
		g0, g1 = g0.Add(p), g1.Add(q)
		gx0 = load(x, i).Sub(m).MulAdd(p, gx0)
		gx1 = load(x, i+lanes).Sub(m).MulAdd(q, gx1)
	}
	sumG, sumGX = across(g0.Add(g1)), across(gx0.Add(gx1))
	for ; i < len(dy); i++ {
		if !relu || y[i] > 0 {
			sumG += dy[i]
			sumGX += dy[i] * (x[i] - mean)
		}
	}
	return sumG, sumGX
}

func gradientNCHW(s loops.Shape, dy, x, y, mean, k1, k2, scale, dx []float32) {
	for c := range s.Channels {
		for n := range s.Outer {
			gradientRow(s.Row(dy, n, c), s.Row(x, n, c), s.Row(y, n, c), s.Row(dx, n, c), mean[c], k1[c], k2[c], scale[c])
		}
	}
}

func gradientRow(dy, x, y, dx []float32, mean, k1, k2, scale float32) {
	relu := y != nil
	if !relu {
		y = x
	}
	x, y, dx = x[:len(dy)], y[:len(dy)], dx[:len(dy)]
	m, v1, v2, a := broadcast(mean), broadcast(k1), broadcast(k2), broadcast(scale)
	i := 0
	for ; i+lanes <= len(dy); i += lanes {
		g := load(dy, i)
		if relu {
			g = positive(g, load(y, i))
		}
		store(g.Sub(v1).Sub(load(x, i).Sub(m).Mul(v2)).Mul(a), dx, i)
	}
	leave()
	for ; i < len(dy); i++ {
		g := dy[i]
		if relu && y[i] <= 0 {
			g = 0
		}
		dx[i] = (g - k1 - (x[i]-mean)*k2) * scale
	}
}
