package batchnorm

import "math"

// Channels whose mean is so large that x-m may overflow, whose constants of dx leave float32's range, or
// whose sums of gradients overflowed or vanished. They go through the same kernels. x and the
// gradients are multiplied by powers of two first, block by block, in memory that stays in a cache.
// The powers are taken back where float64 holds the result. A power of two changes no digit.

// constants are the constants by which kernels scale a block, and compute its z and dx. The
// records are one for a row, or one for every 8 of up to mostSpan columns. Factors are
// float64.
type constants struct {
	records64 [mostSpan / lanes]record64 // of 8 columns, or of a channel in rows; aligned to vectors

	layout  layout
	records [2][mostSpan * coefLen]float32
	z, dx   []float32 // the constants of z, and the mean that is subtracted from x for dx
	// toX, toG and toZ scale x for dx, g, and x for z. The factors of z are those of its last
	// product.
	toX, toG, toZ, ofZ factorList

	scalesX, scalesG, scalesZ bool // a factor is not 1
	smallZ                    bool // a product for z is taken in float64

	// Constants of z of channels in rows, in all lanes, for kernels in cols. Both lists have rowBytes for
	// each.
	rowRecords [rowsTogether * rowBytes / 4]float32
	rowFactors [rowsTogether * rowBytes / 8]float64
}

// factorList are factors of kernels that take products in float64: of columns, or in rows of
// channels.
type factorList [mostSpan]float64

// reset prepares the constants for a block in a layout. Nothing is scaled until a power
// other than 0 is set.
func (k *constants) reset(l layout) {
	if k.z == nil {
		k.z, k.dx = k.records[0][:], k.records[1][:]
	}
	k.layout = l
	k.scalesX, k.scalesG, k.scalesZ, k.smallZ = false, false, false, false
}

// set sets a field of the record of a row, or of column j.
func (k *constants) set(list []float32, j, field int, v float32) {
	if k.layout == cols {
		list[j/lanes*lanes*coefLen+field*lanes+j%lanes] = v
		return
	}
	list[field] = v
}

// setFactor sets s of a row, or of column j.
func (k *constants) setFactor(list *factorList, j int, v float64) {
	list[j] = v
}

var negativeZero = float32(math.Copysign(0, -1))

// mostPower is the largest power of two that float32 holds.
const mostPower = 126

// setX sets the power by which x of a row or column is scaled.
func (k *constants) setX(j, power int) {
	k.setFactor(&k.toX, j, powerOf(power))
	k.scalesX = k.scalesX || power != 0
}

// setG sets the power by which g is scaled.
func (k *constants) setG(j, power int) {
	k.setFactor(&k.toG, j, powerOf(power))
	k.scalesG = k.scalesG || power != 0
}

// setZ sets the constants of z.
func (k *constants) setZ(j int, f *affine) {
	k.setFactor(&k.toZ, j, powerOf(f.power))
	k.scalesZ = k.scalesZ || f.power != 0
	factor := f.factor()
	k.setFactor(&k.ofZ, j, factor)
	k.smallZ = k.smallZ || isWild(factor)
	k.set(k.z, j, fieldN, -f.m)
	k.set(k.z, j, fieldA, f.a)
	k.set(k.z, j, fieldB, f.b)
	k.set(k.z, j, fieldK1, 0)
	k.set(k.z, j, fieldK2, 0)
}

// setDX sets the constants of dx.
func (k *constants) setDX(j int, d *scaledGradient) {
	k.setX(j, d.powerX)
	k.setG(j, d.powerG)
	k.set(k.dx, j, fieldN, -d.m)
	r, lane := &k.records64[j/lanes], j%lanes
	r.n[lane], r.k1[lane], r.k2[lane], r.a[lane] = -d.m, float64(d.k1), float64(d.k2), d.scale
	if k.layout == rows {
		r.inAllLanes()
	}
}

// block holds adjacent values: in cols some rows of n columns, in rows n values of one
// channel from each of some images, or in tiny.go of each of some adjacent channels.
type block struct {
	rows, n    int
	channels   int // in rows: 1, which 0 stands for, or one for each row
	stride     int // from a row to the next; 0 stands for n
	column     int // in rows, in tiny.go: the first channel
	fetch      int // in tiny.go: bytes from a value to one that is prefetched
	heldStep   int // in tiny.go: from a row of outputs that are held in a buffer to the next, 0 if they are not
	x, dy, res []float32
	y, dres    []float32
	slopes     []float32 // in tiny.go: those that the sums have stored

	// Of the columns, in tiny.go.
	factors []float64
	records []record64
}

// stepOut returns the distance from a row of the outputs to the next.
func (b *block) stepOut() int {
	if b.held() {
		return b.heldStep
	}
	return b.step()
}

// held reports whether the outputs are held in a buffer.
func (b *block) held() bool { return b.heldStep > 0 }

// apartOut reports whether the rows of the outputs are apart from one another.
func (b *block) apartOut() bool { return b.rows > 1 && b.stepOut() > b.n }

// elementwise runs a kernel that writes outputs on a block.
func (w *workspace) elementwise(kernel int, act Activation, k *kernelArgs, b *block) {
	k.act = w.act
	if w.geo.layout == cols {
		k.rows, k.n, k.stride = b.rows, b.n, b.n
		w.plan.path.run(kernel, cols, act, k)
		return
	}
	switch channels := max(1, b.channels); {
	case channels == 1:
		k.rows, k.n = 1, b.rows*b.n
		k.begin(0, 1)
	case b.n < lanes: // rows that are too short for vectors across two
		k.rows, k.n = 1, b.n
		k.begin(0, channels)
	default:
		k.rows, k.n, k.coefImage = channels, b.n, -channels*coefLen
		k.begin(0, 1)
	}
	w.plan.path.runAll(kernel, act, k)
}

// scale multiplies the values of a block by factors. Those of a row are all the same.
func (w *workspace) scale(buf *buffers, dst, src []float32, by *factorList, b *block) []float32 {
	n := b.rows * b.n
	if w.geo.layout == rows {
		return w.times(dst, src, by[0], 1, n, n)
	}
	w.products(Identity, &kernelArgs{x: src, y: dst, stride: b.n, strideY: b.n}, nil, by[:], b)
	return dst
}

// scaledZ returns x scaled for the computation of z.
func (w *workspace) scaledZ(buf *buffers, b *block, k *constants) []float32 {
	if k.scalesZ {
		return w.scale(buf, buf.scaled[:], b.x, &k.toZ, b)
	}
	return b.x
}

// gradients returns g = dy*act'(z) of a block.
func (w *workspace) gradients(act Activation, buf *buffers, b *block, k *constants) []float32 {
	if act.kind == actIdentity {
		return b.dy
	}
	args := kernelArgs{dy: b.dy, res: b.res, y: buf.y[:], dres: buf.g[:]} // dx is not used
	if k.smallZ {
		z := w.smallZ(buf, b, k)
		if b.res != nil {
			w.alike(kernelNormalize, Identity, &kernelArgs{x: b.res, res: z, y: z, coef: asItIs}, b.len())
		}
		args.x, args.res, args.coef = minusZeros, z, asZero
		w.alike(kernelInputGrad, act, &args, b.len())
	} else {
		args.x, args.coef = w.scaledZ(buf, b, k), k.z
		w.elementwise(kernelInputGrad, act, &args, b)
	}
	return buf.g[:]
}

// smallZ returns z of a block without the residual, from products in float64.
func (w *workspace) smallZ(buf *buffers, b *block, k *constants) []float32 {
	args := kernelArgs{x: w.scaledZ(buf, b, k), y: buf.scaled[:], stride: b.n, strideY: b.n}
	if w.geo.layout == rows {
		k.setRow(0, k.z, k.ofZ[0])
	}
	w.affineProducts(k, Identity, &args, k.z, k.ofZ[:], b)
	return buf.scaled[:]
}

// columnList is some columns, in order, whose sums are taken together. In a backward pass their
// values are packed side by side.
type columnList struct {
	n          int
	apart      bool // no two of them are adjacent
	at         [mostSpan]int
	acc        [2 * mostSpan]float32
	shift      [mostSpan]float32
	sumA, sumB [mostSpan]float64
}

// adjacent reports whether no column lies between those of the list.
func (l *columnList) adjacent() bool { return l.at[l.n-1]-l.at[0] == l.n-1 }

// sumListed takes the sums of the listed columns of a segment, over scaled values, in a
// backward pass.
func (w *workspace) sumListed(seg int, buf *buffers, l *columnList) {
	g, ch := w.geo, &w.channels
	k := columnSums{n: l.n, acc: l.acc[:], shift: l.shift[:], a: l.sumA[:l.n], b: l.sumB[:l.n]}
	at := seg*g.width + l.at[0]
	if l.adjacent() {
		k.a, k.b = ch.segmentA[at:at+l.n], ch.segmentB[at:at+l.n]
	}
	for k.rest < l.n && l.at[k.rest] < g.rest {
		k.rest++
	}
	w.sumColumns(seg, &k, func(r0, r1, n int) {
		most := rowsOf(bufferLen, n)
		for r := r0; r < r1; r += most {
			w.sumScaled(buf, l, &k, r, min(most, r1-r), n)
		}
	})
	if l.adjacent() {
		return
	}
	for i, j := range l.at[:l.n] {
		ch.segmentA[seg*g.width+j], ch.segmentB[seg*g.width+j] = l.sumA[i], l.sumB[i]
	}
}

// sumScaled adds the sums of some rows of the first n listed columns.
func (w *workspace) sumScaled(buf *buffers, l *columnList, sums *columnSums, r, rows, n int) {
	s, k := &w.again, &buf.constants
	b := w.packListed(s, buf, l, r, rows, n)
	args := kernelArgs{coef: k.dx, acc: sums.acc, rows: rows, n: n, stride: n}
	args.x, args.dy = w.scaledOperands(s, buf, &b, k)
	w.plan.path.run(s.kernel, cols, Identity, &args)
}

// scaledOperands returns x and g of a block, scaled.
func (w *workspace) scaledOperands(s *stage, buf *buffers, b *block, k *constants) (x, g []float32) {
	g = w.gradients(s.act, buf, b, k)
	if k.scalesG {
		g = w.scale(buf, buf.g[:], g, &k.toG, b)
	}
	x = b.x
	if k.scalesX {
		x = w.scale(buf, buf.scaled[:], x, &k.toX, b)
	}
	return x, g
}

// writeScaled writes the outputs of a block.
func (w *workspace) writeScaled(buf *buffers, b *block, k *constants) {
	s := &w.apply
	args := kernelArgs{res: b.res, y: b.y, stream: w.apply.stream && w.geo.layout == rows && &b.y[0] != &buf.y[0]}
	switch {
	case !w.backward && k.smallZ:
		args.x, args.res, args.coef = b.res, w.smallZ(buf, b, k), asItIs
		if b.res == nil {
			args.x = minusZeros
		}
		w.alike(kernelNormalize, s.act, &args, b.len())
		return
	case !w.backward:
		args.x, args.coef = w.scaledZ(buf, b, k), k.z
		w.elementwise(kernelNormalize, s.act, &args, b)
		return
	}
	g := w.gradients(s.act, buf, b, k)
	n := b.rows * b.n
	if b.dres != nil { // dx may overwrite g
		copy(buf.dres[:n], g)
	}
	if k.scalesG {
		g = w.scale(buf, buf.g[:], g, &k.toG, b)
	}
	x := b.x
	if k.scalesX {
		x = w.scale(buf, buf.scaled[:], x, &k.toX, b)
	}
	args = kernelArgs{x: x, dy: g, y: b.y, rows: b.rows, stride: b.n, strideDY: b.n, strideY: b.n}
	args.stream = &b.y[0] != &buf.y[0] && w.streams(&args, b.n)
	args.n, args.records = b.n, k.records64[:]
	if w.geo.layout == cols {
		args.recordStep = bytes64
	}
	w.plan.path.run(kernelInputGrad64, cols, Identity, &args)
	if b.dres != nil {
		copy(b.dres, buf.dres[:n])
	}
}

// writeBlockCarefully writes the outputs of a block of channel c, or of columns from
// c on.
func (w *workspace) writeBlockCarefully(buf *buffers, c int, b *block) {
	k := &buf.constants
	k.reset(w.geo.layout)
	if w.geo.layout == rows {
		w.setCareful(k, 0, c)
	} else {
		for j := range b.n {
			w.setCareful(k, j, w.channelOf(c+j))
		}
	}
	w.writeScaled(buf, b, k)
}

// setCareful sets the constants for the outputs of channel c, in row or column j.
func (w *workspace) setCareful(k *constants, j, c int) {
	if !w.backward || w.apply.act.kind != actIdentity {
		w.setZ(k, j, c)
	}
	if w.backward {
		d := w.channels.scaledGradient(c)
		k.setDX(j, &d)
	}
}

// setZ sets the constants of z of a channel.
func (w *workspace) setZ(k *constants, j, c int) {
	f := w.channels.affine(c)
	k.setZ(j, &f)
	k.smallZ = k.smallZ || w.tinyOf(c)&tinyDeviations != 0
}

// writeCarefully writes the outputs of rows of n values of a channel, stride values apart,
// from index i on. Short rows go together.
func (w *workspace) writeCarefully(c, i, rows, n, stride int) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	s, k := &w.apply, &buf.constants
	k.reset(w.geo.layout)
	w.setCareful(k, 0, c)
	most := max(1, bufferLen/n)
	for r := 0; r < rows; r += most {
		height, at := min(most, rows-r), i+r*stride
		for p := 0; height == 1 && p < n; p += bufferLen {
			b := blockAt(s, at+p, min(bufferLen, n-p))
			w.writeScaled(buf, &b, k)
		}
		if height == 1 {
			continue
		}
		b := packBlock(s, buf, at, height, n, stride)
		out := block{rows: height, n: n, stride: stride, y: s.y[at:], dres: from(s.dres, at)}
		b.y = buf.y[:height*n]
		if s.dres != nil {
			b.dres = buf.dres[:height*n]
		}
		w.writeScaled(buf, &b, k)
		w.unpack(out.y, b.y, &out)
		if s.dres != nil {
			w.unpack(out.dres, b.dres, &out)
		}
	}
}

// blockAt returns the block of n adjacent values from index i on.
func blockAt(s *stage, i, n int) block {
	return block{rows: 1, n: n, x: slice(s.x, i, n), dy: slice(s.dy, i, n), res: slice(s.res, i, n), y: slice(s.y, i, n), dres: slice(s.dres, i, n),
		slopes: slice(s.slopes, i, n)}
}

// writeColsCarefully writes the outputs of rows of n columns from column c on, from index i on. All of
// them are wide.
func (w *workspace) writeColsCarefully(i, c, rows, n int) {
	buf := w.buffers.take()
	defer w.buffers.give(buf)
	s, k, stride := &w.apply, &buf.constants, w.geo.width
	if rows == 1 { // its columns are adjacent
		stride = n
	}
	k.reset(w.geo.layout)
	for j := range n {
		w.setCareful(k, j, w.channelOf(c+j))
	}
	most := bufferLen / n
	for r := 0; r < rows; r += most {
		height, at := min(most, rows-r), i+r*stride
		b := packBlock(s, buf, at, height, n, stride)
		if n == stride { // in place
			b.y, b.dres = slice(s.y, at, height*n), slice(s.dres, at, height*n)
			w.writeScaled(buf, &b, k)
			continue
		}
		b.y = buf.y[:height*n]
		if s.dres != nil {
			b.dres = buf.dres[:height*n]
		}
		w.writeScaled(buf, &b, k)
		for j := range height {
			to := at + j*stride
			copy(s.y[to:to+n], b.y[j*n:])
			if s.dres != nil {
				copy(s.dres[to:to+n], b.dres[j*n:])
			}
		}
	}
}

// writeAside writes the outputs of rows of n columns from column c on, from index i on, of which those
// listed are wide. The wide ones are copied side by side before the others are written, since an output may be
// an input, and are put in their places afterwards.
func (w *workspace) writeAside(buf *buffers, l *columnList, i, c, rows, n, stride int) {
	s, k, m := &w.apply, &buf.constants, l.n
	k.reset(w.geo.layout)
	for at, j := range l.at[:m] {
		w.setCareful(k, at, w.channelOf(c+j))
	}
	most := max(1, min(bufferLen/m, besideValues/n))
	for r := 0; r < rows; r += most {
		height, at := min(most, rows-r), i+r*stride
		l.pick(s, buf, 0, at, height, m, stride)
		copied := buf.copies(s, height*m)
		b := block{rows: height, n: m, x: copied.x, dy: copied.dy, res: copied.res, y: buf.y[:height*m]}
		if s.dres != nil {
			b.dres = buf.dres[:height*m]
		}
		w.writeScaled(buf, &b, k)
		w.writeBeside(at, c, height, n, stride)
		for row := range height {
			l.put(s.y[at+row*stride:], b.y[row*m:])
			if s.dres != nil {
				l.put(s.dres[at+row*stride:], b.dres[row*m:])
			}
		}
	}
}

// put copies values of the listed columns, side by side, to their places in a row.
func (l *columnList) put(row, from []float32) {
	from = from[:l.n]
	for c, j := range l.at[:l.n] {
		row[j] = from[c]
	}
}

// listWide lists those of n columns from column c on that are wide, by their places among these, and
// reports whether there is room for all.
func (w *workspace) listWide(l *columnList, c, n int) bool {
	l.n, l.apart = 0, true
	for j := range n {
		if !w.wide(w.channelOf(c + j)) {
			continue
		}
		if l.n == mostSpan {
			return false
		}
		l.apart = l.apart && (l.n == 0 || l.at[l.n-1] != j-1)
		l.at[l.n] = j
		l.n++
	}
	return true
}

// copyWide copies the values of columns from column c on whose channels are wide.
func (w *workspace) copyWide(to, from []float32, c int) {
	for j := range to {
		if w.wide(w.channelOf(c + j)) {
			to[j] = from[j]
		}
	}
}

// packBlock returns rows of n columns as a block: in place if they are adjacent, else as
// a copy.
func packBlock(s *stage, buf *buffers, i, rows, n, stride int) block {
	if n == stride {
		b := blockAt(s, i, rows*n)
		b.rows, b.n = rows, n
		return b
	}
	b := block{rows: rows, n: n, x: buf.x[:rows*n]}
	for r := range rows {
		buf.copy(s, r*n, i+r*stride, n)
	}
	if s.dy != nil {
		b.dy = buf.dy[:rows*n]
	}
	if s.res != nil {
		b.res = buf.res[:rows*n]
	}
	return b
}

// packCols returns some rows of n columns as a block, from element i of the
// geometry's tensor on.
func (w *workspace) packCols(s *stage, buf *buffers, i, rows, n int) block {
	if w.source == nil {
		return packBlock(s, buf, i, rows, n, w.geo.width)
	}
	k := w.source.columns(s, buf, i, rows, n)
	t := stage{x: k.x, dy: k.dy, res: k.res}
	return packBlock(&t, buf, 0, rows, n, k.stride)
}

// packListed returns rows of the first n listed columns as a block, from row r of the
// geometry's tensor on.
func (w *workspace) packListed(s *stage, buf *buffers, l *columnList, r, rows, n int) block {
	width, at := w.geo.width, l.at[:n]
	if l.adjacent() && (n > 1 || w.source != nil) { // a single column is picked, without a call for each row
		return w.packCols(s, buf, r*width+at[0], rows, n)
	}
	if w.source == nil {
		l.pick(s, buf, 0, r*width, rows, n, width)
	} else {
		g, run := w.source, 0
		for row := range rows {
			i, to := (r+row)*width, row*n
			run = g.findFrom(run, i/g.unit)
			if first := i - g.runs[run].before*g.unit; first+at[n-1] < g.runs[run].n*g.unit { // the row is in one run
				l.pick(s, buf, to, g.runs[run].index+first, 1, n, width)
				continue
			}
			for c, j := range at {
				buf.copy(s, to+c, w.element(i+j), 1)
			}
		}
	}
	k := buf.copies(s, rows*n)
	if w.source != nil {
		k = w.source.copied(s, buf, rows*n)
	}
	return block{rows: rows, n: n, x: k.x, dy: k.dy, res: k.res}
}

// pick copies the first n listed columns of some rows of the tensors that a stage reads,
// from index i on.
func (l *columnList) pick(s *stage, buf *buffers, to, i, rows, n, stride int) {
	for _, t := range [...]struct{ to, from []float32 }{{buf.x[to:], s.x}, {buf.dy[to:], s.dy}, {buf.res[to:], s.res}} {
		if t.from == nil {
			continue
		}
		if l.apart {
			sideBySide(t.to, t.from[i:], l.at[:n], n, 0, rows, stride)
			continue
		}
		for row := range rows {
			from := t.from[i+row*stride:]
			to := t.to[row*n:][:n]
			for c := 0; c < n; {
				j, m := l.at[c], 1
				for c+m < n && l.at[c+m] == j+m {
					m++
				}
				copyShort(to[c:c+m], from[j:j+m])
				c += m
			}
		}
	}
}

// sideBySide copies the values of columns of some rows side by side, step values for a row. The first value is of column c.
func sideBySide(to, from []float32, columns []int, step, c, rows, stride int) {
	for row := range rows {
		base, to := row*stride-c, to[row*step:][:len(columns)]
		for i, j := range columns {
			to[i] = from[base+j]
		}
	}
}

// rowInTensor returns where the row from element i of the geometry's tensor on lies in the
// caller's, and whether its columns up to the last lie side by side.
func (w *workspace) rowInTensor(i, last int) (base int, ok bool) {
	base = w.element(i)
	return base, w.element(i+last) == base+last
}

// packRows returns n values of channel c, from value i on, of each of some images as a
// block.
func (w *workspace) packRows(s *stage, buf *buffers, c, o, images, i, n int) block {
	g := w.geo
	if w.source != nil {
		k := w.source.values(s, buf, c, i, n)
		t := stage{x: k.x, dy: k.dy, res: k.res}
		return blockAt(&t, 0, n)
	}
	first := (o*g.channels+c)*g.inner + i
	if images == 1 {
		return blockAt(s, first, n)
	}
	return packBlock(s, buf, first, images, n, g.channels*g.inner)
}
