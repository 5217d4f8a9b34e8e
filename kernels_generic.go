package batchnorm

import (
	"math"

	"github.com/fusedbn/batchnorm/internal/scalar"
)

// The kernels in Go: the specification of every bit that the assembly returns.
//
// Products are converted to float32 explicitly before they are added, because
// the compiler would otherwise be free to fuse the two operations, and does so
// on several architectures.

// chunk is the number of values that go through the steps of a kernel together, so that
// intermediate results stay in the first-level cache. It is a multiple of
// quadSize*lanes, so that every chunk begins at lane 0 of a quad.
const chunk = 256

// genericKernel runs a kernel. A kernel on rows does the work of all its calls at once.
func genericKernel(kernel int, l layout, act Activation, a *kernelArgs) {
	switch {
	case a.heldColumns > 0:
		heldColsGeneric(kernel, l, act, a)
	case kernel == kernelMoments && l == rows:
		a.sumRows(kernel, Identity)
	case kernel == kernelMoments:
		momentsColsGeneric(a)
	case kernel == kernelNormalize && l == rows:
		a.eachRow(kernel, act)
	case kernel == kernelNormalize:
		normalizeColsGeneric(act, a)
	case kernel == kernelGradSums && l == rows:
		a.sumRows(kernel, act)
	case kernel == kernelGradSums:
		gradSumsColsGeneric(act, a)
	case kernel == kernelInputGrad && l == rows:
		a.eachRow(kernel, act)
	case kernel == kernelInputGrad:
		inputGradColsGeneric(act, a)
	case kernel == kernelLargest:
		largestColsGeneric(a)
	case kernel == kernelScale:
		scaleColsGeneric(act, a)
	case kernel == kernelTimes:
		timesColsGeneric(a)
	case kernel == kernelGradSums64:
		gradSums64Generic(act, a)
	case kernel == kernelInputGrad64:
		inputGrad64Generic(act, a)
	case kernel == kernelChoose:
		chooseGeneric(a)
	case kernel == kernelTinyZ:
		tinyZGeneric(a)
	}
}

// heldColsGeneric runs a kernel that writes outputs of which some are held.
func heldColsGeneric(kernel int, l layout, act Activation, a *kernelArgs) {
	b := *a
	b.heldColumns = 0
	genericKernel(kernel, l, act, &b)
	for j := range a.heldColumns {
		if math.Float32bits(a.masks[j]) != 0 {
			continue
		}
		for r := range a.rows {
			from, to := r*a.heldColumns+j, r*a.stride+a.before+j
			a.y[to] = a.held[from]
			if a.dres != nil {
				a.dres[to] = a.heldG[from]
			}
		}
	}
}

// ---- rows: the values of a channel are adjacent

// sumRows sums the pieces of all rows, of four images side by side or of one.
func (a *kernelArgs) sumRows(kernel int, act Activation) {
	for a.images > 0 {
		images, most := 1, pieceSingle
		if a.images >= quadSize {
			images, most = quadSize, pieceFour
		}
		short := images == quadSize && a.n <= shortRow
		for r := range a.rows {
			for left := a.n; left > 0; {
				n := min(left, most)
				acc := new(laneSums)
				if short {
					acc = (*laneSums)(a.acc[r*sumLen:])
				}
				if coef := a.coef[r*recordLen(kernel):]; kernel == kernelMoments {
					momentsPiece(a, a.at, n, images, coef[0], acc)
				} else {
					gradSumsPiece(a, act, a.at, n, images, coef, acc)
				}
				if !short {
					for i, v := range acc {
						a.sums[r*sumLen+i] += float64(v)
					}
				}
				a.at += n
				left -= n
			}
			a.at += a.rowGap
		}
		a.at += a.imageGap + (images-1)*a.stride
		a.images -= images
	}
}

func momentsPiece(a *kernelArgs, p, n, images int, k float32, acc *laneSums) {
	x := a.x[p:][:n]
	if images == quadSize {
		x1, x2, x3 := a.x[p+a.stride:][:n], a.x[p+2*a.stride:][:n], a.x[p+3*a.stride:][:n]
		for i, v := range x {
			addMoments4(acc, i%lanes, v+k, x1[i]+k, x2[i]+k, x3[i]+k)
		}
		return
	}
	for ; len(x) >= quadSize*lanes; x = x[quadSize*lanes:] {
		v := (*[quadSize * lanes]float32)(x)
		for l := range lanes {
			addMoments4(acc, l, v[l]+k, v[l+lanes]+k, v[l+2*lanes]+k, v[l+3*lanes]+k)
		}
	}
	for i, v := range x {
		addMoments1(acc, i%lanes, v+k)
	}
}

func gradSumsPiece(a *kernelArgs, act Activation, p, n, images int, coef []float32, acc *laneSums) {
	m := coef[fieldN]
	var buf [quadSize][chunk]float32
	var x, g [quadSize][]float32
	for i := 0; i < n; i += chunk {
		n := min(chunk, n-i)
		for j := range images {
			from := p + i + j*a.stride
			x[j], g[j] = slice(a.x, from, n), gradRow(act, &buf[j], a, from, n, coef)
			if a.dres != nil {
				copy(slice(a.dres, from, n), g[j])
			}
		}
		if images == quadSize {
			for i := range n {
				addGrads4(acc, i%lanes, g[0][i], g[1][i], g[2][i], g[3][i], x[0][i]+m, x[1][i]+m, x[2][i]+m, x[3][i]+m)
			}
			continue
		}
		x, g := x[0], g[0]
		for ; len(x) >= quadSize*lanes; x, g = x[quadSize*lanes:], g[quadSize*lanes:] {
			v, u := (*[quadSize * lanes]float32)(x), (*[quadSize * lanes]float32)(g)
			for l := range lanes {
				addGrads4(acc, l,
					u[l], u[l+lanes], u[l+2*lanes], u[l+3*lanes],
					v[l]+m, v[l+lanes]+m, v[l+2*lanes]+m, v[l+3*lanes]+m)
			}
		}
		for i, v := range x {
			addGrads1(acc, i%lanes, g[i], v+m)
		}
	}
}

// eachRow writes the outputs of all rows of all images.
func (a *kernelArgs) eachRow(kernel int, act Activation) {
	for ; a.images > 0; a.images-- {
		for range a.rows {
			if coef := a.coef[a.coefAt:]; kernel == kernelNormalize {
				normalizeRow(a, act, a.at, coef)
			} else {
				inputGradRow(a, act, a.at, coef)
			}
			a.at += a.n + a.rowGap
			a.coefAt += recordLen(kernel)
		}
		a.at += a.imageGap
		a.coefAt += a.coefImage
	}
}

func normalizeRow(a *kernelArgs, act Activation, p int, coef []float32) {
	y := slice(a.y, p, a.n)
	affineRow(y, slice(a.x, p, a.n), slice(a.res, p, a.n), coef)
	act.forward(y)
}

func inputGradRow(a *kernelArgs, act Activation, first int, coef []float32) {
	var buf [chunk]float32
	m, s, k1, k2 := coef[fieldN], coef[fieldA], coef[fieldK1], coef[fieldK2]
	for i := 0; i < a.n; i += chunk {
		n := min(chunk, a.n-i)
		p := first + i
		g := gradRow(act, &buf, a, p, n, coef)
		x, y, dres := slice(a.x, p, n), slice(a.y, p, n), slice(a.dres, p, n)
		for j, v := range x {
			gj := g[j]
			y[j] = ((gj - k1) - float32((v+m)*k2)) * s
			if dres != nil {
				dres[j] = gj
			}
		}
	}
}

// affineRow sets z = (x-m)*a + b [+ res]; z may be x or res.
func affineRow(z, x, res, coef []float32) {
	m, a, b := coef[fieldN], coef[fieldA], coef[fieldB]
	z = z[:len(x)]
	if res == nil {
		for i, v := range x {
			z[i] = float32((v+m)*a) + b
		}
		return
	}
	res = res[:len(x)]
	for i, v := range x {
		z[i] = (float32((v+m)*a) + b) + res[i]
	}
}

// gradRow returns g = dy*act'(z) of the n elements from index p. With an activation it
// is computed in buf; without one it is dy.
func gradRow(act Activation, buf *[chunk]float32, a *kernelArgs, p, n int, coef []float32) []float32 {
	dy := slice(a.dy, p, n)
	if act.kind == actIdentity {
		return dy
	}
	g := buf[:n]
	affineRow(g, slice(a.x, p, n), slice(a.res, p, n), coef)
	act.backward(g, dy)
	return g
}

// ---- cols: the channels are adjacent

// chunkCols is the number of columns that go through the steps of a kernel together,
// with up to 4 rows at a time.
const chunkCols = chunk / quadSize

func momentsColsGeneric(a *kernelArgs) {
	for r := 0; r < a.rows; r += quadSize {
		for c := 0; c < a.n; c += lanes {
			k := (*[lanes]float32)(a.coef[c:])
			acc := (*laneSums)(a.acc[2*c:])
			n := min(lanes, a.n-c)
			if r+quadSize <= a.rows {
				x0, x1 := slice(a.x, r*a.stride+c, n), slice(a.x, (r+1)*a.stride+c, n)
				x2, x3 := slice(a.x, (r+2)*a.stride+c, n), slice(a.x, (r+3)*a.stride+c, n)
				for l := range n {
					addMoments4(acc, l, x0[l]+k[l], x1[l]+k[l], x2[l]+k[l], x3[l]+k[l])
				}
				continue
			}
			for j := r; j < a.rows; j++ {
				for l, v := range slice(a.x, j*a.stride+c, n) {
					addMoments1(acc, l, v+k[l])
				}
			}
		}
	}
}

func largestColsGeneric(a *kernelArgs) {
	acc := a.acc[:a.n]
	for r := range a.rows {
		for c, v := range slice(a.x, r*a.stride, a.n) {
			if magnitude := int32(math.Float32bits(scalar.Abs(v))); magnitude > int32(math.Float32bits(acc[c])) {
				acc[c] = math.Float32frombits(uint32(magnitude))
			}
		}
	}
}

func scaleColsGeneric(act Activation, a *kernelArgs) {
	for r := range a.rows {
		x, y := slice(a.x, r*a.stride, a.n), slice(a.y, r*a.strideY, a.n)
		for c := 0; c < a.n; c += lanes {
			n, k := min(lanes, a.n-c), (*record)(a.coef[c/lanes*a.coefStep+r*a.recordRow/4:])
			factors := a.factors[c/lanes*a.factorStep+r*a.recordRow/8:]
			for l, v := range x[c : c+n] {
				y[c+l] = float32(float64(v+k[fieldN*lanes+l])*factors[l]) + k[fieldB*lanes+l]
			}
			act.forward(y[c : c+n])
		}
	}
}

// grad64 returns g and x-m of element l of a vector, in float64.
func (a *kernelArgs) grad64(act Activation, x, dy, res []float32, k *record64, l int) (g, d float64) {
	g, d = float64(dy[l]), float64(x[l]+k.n[l])
	switch {
	case act.kind != actIdentity:
		if !(float64(d*k.s[l]) >= k.l[l]) {
			g = 0
		}
	case res != nil:
		g *= float64(res[l])
	}
	return g, d
}

// record returns the record of the 8 columns from column c on, in a row.
func (a *kernelArgs) record(row, c int) *record64 {
	return &a.records[(c/lanes*a.recordStep+row*a.recordRow)/bytes64]
}

func gradSums64Generic(act Activation, a *kernelArgs) {
	for c := range a.n / lanes {
		k, sums, at := a.record(0, c*lanes), a.sums[c*a.sumStep/8:][:sumLen], c*a.columnStep/4
		add := func(r, n int) {
			x, dy, res := slice(a.x, r*a.stride+at, n), slice(a.dy, r*a.strideDY+at, n), slice(a.res, r*a.strideRes+at, n)
			for l := range x {
				g, d := a.grad64(act, x, dy, res, k, l)
				sums[l] += g
				sums[lanes+l] += float64(d * g)
			}
		}
		for r := range a.rows {
			add(r, lanes)
		}
		for r := range a.tails {
			add(a.rows+r, a.n%lanes)
			for l := a.n % lanes; l < lanes; l++ { // as in a vector: -0 becomes 0
				sums[l] += 0
				sums[lanes+l] += 0
			}
		}
	}
}

func inputGrad64Generic(act Activation, a *kernelArgs) {
	for r := range a.rows {
		for c := 0; c < a.n; c += lanes {
			n, k := min(lanes, a.n-c), a.record(r, c)
			x, dy, res := slice(a.x, r*a.stride+c, n), slice(a.dy, r*a.strideDY+c, n), slice(a.res, r*a.strideRes+c, n)
			y := slice(a.y, r*a.strideY+c, n)
			for l := range x {
				g, d := a.grad64(act, x, dy, res, k, l)
				y[l] = float32(float64((g-k.k1[l])-float64(d*k.k2[l])) * k.a[l])
			}
		}
	}
}

func chooseGeneric(a *kernelArgs) {
	for r := range a.rows {
		x, dy, y := slice(a.x, r*a.stride, a.n), slice(a.dy, r*a.strideDY, a.n), slice(a.y, r*a.strideY, a.n)
		for c := range y {
			mask := math.Float32bits(a.coef[c/lanes*a.coefStep+c%lanes])
			y[c] = math.Float32frombits(math.Float32bits(x[c])&mask | math.Float32bits(dy[c])&^mask)
		}
	}
}

func tinyZGeneric(a *kernelArgs) {
	field := func(f int) uint32 { return math.Float32bits(a.coef[f*lanes]) }
	below, flip, gate, zero, most := field(tinyZBelow), field(tinyZFlip), field(tinyZGate), field(tinyZBase), int32(field(tinyZMost))
	for r := range a.rows {
		x, dy, y := slice(a.x, r*a.stride, a.n), slice(a.dy, r*a.strideDY, a.n), slice(a.y, r*a.strideY, a.n)
		for i, v := range x {
			if int32(magnitudeBits(v)) > most {
				y[i] = dy[i]
				continue
			}
			factor, base := below, zero
			if v > 0 {
				factor ^= flip
				base |= math.Float32bits(v) & gate
			}
			y[i] = math.Float32frombits(base) + float32(float64(v)*float64(math.Float32frombits(factor)))
		}
	}
}

func timesColsGeneric(a *kernelArgs) {
	for r := range a.rows {
		y := slice(a.y, r*a.strideY, a.n)
		for i, v := range slice(a.x, r*a.stride, a.n) {
			y[i] = float32(float64(v) * a.factor)
		}
	}
}

func normalizeColsGeneric(act Activation, a *kernelArgs) {
	for r := range a.rows {
		y := slice(a.y, r*a.stride, a.n)
		affineCols(y, slice(a.x, r*a.stride, a.n), slice(a.res, r*a.stride, a.n), a.coef)
		act.forward(y)
	}
}

func gradSumsColsGeneric(act Activation, a *kernelArgs) {
	var buf [quadSize][chunk]float32
	for r := 0; r < a.rows; r += quadSize {
		for cb := 0; cb < a.n; cb += chunkCols {
			n := min(chunkCols, a.n-cb)
			var g, x [quadSize][]float32
			quad := min(quadSize, a.rows-r)
			for j := range quad {
				p := (r+j)*a.stride + cb
				g[j] = gradCols(act, &buf[j], a, p, n, a.coef[cb*coefLen:])
				x[j] = slice(a.x, p, n)
				if a.dres != nil {
					copy(slice(a.dres, p, n), g[j])
				}
			}
			for c := 0; c < n; c += lanes {
				m := (*[lanes]float32)(a.coef[(cb+c)*coefLen+fieldN*lanes:])
				acc := (*laneSums)(a.acc[2*(cb+c):])
				for l := range min(lanes, n-c) {
					i := c + l
					if quad == quadSize {
						addGrads4(acc, l,
							g[0][i], g[1][i], g[2][i], g[3][i],
							x[0][i]+m[l], x[1][i]+m[l], x[2][i]+m[l], x[3][i]+m[l])
						continue
					}
					for j := range quad {
						addGrads1(acc, l, g[j][i], x[j][i]+m[l])
					}
				}
			}
		}
	}
}

func inputGradColsGeneric(act Activation, a *kernelArgs) {
	var buf [chunk]float32
	for r := range a.rows {
		for cb := 0; cb < a.n; cb += chunkCols {
			n := min(chunkCols, a.n-cb)
			p := r*a.stride + cb
			g := gradCols(act, &buf, a, p, n, a.coef[cb*coefLen:])
			x, y, dres := slice(a.x, p, n), slice(a.y, p, n), slice(a.dres, p, n)
			for c := 0; c < n; c += lanes {
				coef := (*record)(a.coef[(cb+c)*coefLen:])
				for l := range min(lanes, n-c) {
					i := c + l
					gi := g[i]
					y[i] = ((gi - coef[fieldK1*lanes+l]) - float32((x[i]+coef[fieldN*lanes+l])*coef[fieldK2*lanes+l])) * coef[fieldA*lanes+l]
					if dres != nil {
						dres[i] = gi
					}
				}
			}
		}
	}
}

// record has the constants of 8 channels in cols.
type record = [coefLen * lanes]float32

// affineCols is affineRow with another channel for every element.
func affineCols(z, x, res, coef []float32) {
	z = z[:len(x)]
	for c := 0; c < len(x); c += lanes {
		k := (*record)(coef[c*coefLen:])
		for l := range min(lanes, len(x)-c) {
			v := float32((x[c+l]+k[fieldN*lanes+l])*k[fieldA*lanes+l]) + k[fieldB*lanes+l]
			if res != nil {
				v += res[c+l]
			}
			z[c+l] = v
		}
	}
}

// gradCols is gradRow with another channel for every element.
func gradCols(act Activation, buf *[chunk]float32, a *kernelArgs, p, n int, coef []float32) []float32 {
	dy := slice(a.dy, p, n)
	if act.kind == actIdentity {
		return dy
	}
	g := buf[:n]
	affineCols(g, slice(a.x, p, n), slice(a.res, p, n), coef)
	act.backward(g, dy)
	return g
}

// ---- sums

// addMoments4 adds a quad of four deviations to lane l.
func addMoments4(acc *laneSums, l int, d0, d1, d2, d3 float32) {
	acc[l] += (d0 + d1) + (d2 + d3)
	acc[l+lanes] += (float32(d0*d0) + float32(d1*d1)) + (float32(d2*d2) + float32(d3*d3))
}

// addMoments1 adds one deviation to lane l.
func addMoments1(acc *laneSums, l int, d float32) {
	acc[l] += d
	acc[l+lanes] += float32(d * d)
}

// addGrads4 adds a quad of four gradients, with x-m, to lane l.
func addGrads4(acc *laneSums, l int, g0, g1, g2, g3, d0, d1, d2, d3 float32) {
	acc[l] += (g0 + g1) + (g2 + g3)
	acc[l+lanes] += (float32(g0*d0) + float32(g1*d1)) + (float32(g2*d2) + float32(g3*d3))
}

// addGrads1 adds one gradient, with x-m, to lane l.
func addGrads1(acc *laneSums, l int, g, d float32) {
	acc[l] += g
	acc[l+lanes] += float32(g * d)
}
