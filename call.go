package batchnorm

import (
	"math"
	"slices"

	"github.com/fusedbn/batchnorm/internal/team"
)

// stage holds the kernel of a phase, and the whole tensors that it reads and writes.
type stage struct {
	kernel     int
	act        Activation
	x, dy, res []float32
	y, dres    []float32
	slopes     []float32 // of the activation, where the sums have stored them
	stream     bool
}

// args returns the arguments of a kernel on the tensors from index i on.
func (s *stage) args(i int) kernelArgs {
	return kernelArgs{x: from(s.x, i), dy: from(s.dy, i), res: from(s.res, i), y: from(s.y, i), dres: from(s.dres, i)}
}

// call is one operation. It is complete before its first task runs, and no task
// changes it.
type call struct {
	backward    bool
	frozen      bool // backward: the statistics are constants, without gradients
	foreign     bool // the statistics may be those of other values than x
	do          phases
	values      float64 // number of values of a channel
	gamma, beta []float32
	renorm      renormalization // without r: none
	affines     bool            // the constants of z come from statistics that were given
	formed      bool            // if affines is set: some of the channels may be wide or small

	way   way
	sums  stage // takes moments, or the sums of a backward pass
	apply stage // writes the outputs
	// applyTiny writes the outputs of tiny numbers: as apply would if the sums stored nothing. It
	// has the slopes that the sums stored where numbers are tiny, if they did.
	applyTiny stage
	again     stage // takes the sums of a channel once more; sums may have overwritten its inputs

	source  *source // where the values come from, if they don't lie as the geometry says
	anyTiny bool    // numbers of channels are tiny (tiny.go)
	// mostInvStd is the invstd of a channel without deviations.
	mostInvStd float64
	// Some channels are marked in large (large.go).
	anyLarge bool
	anySmall bool // some of them as channels of small values
	sampled  bool // this is known

	// Outputs of the first phase; nil if not wanted.
	saved               savedStatistics
	m2                  []float64
	sumG, sumGD         []float64
	gammaGrad, betaGrad []float32
}

// workspace is the memory of a call. Its slices are cut for the plan of the call.
type workspace struct {
	plan    *Plan
	masked  bool // it fits calls with a source
	gathers bool // it has fitted a call with a source before
	geo     *geometry
	call

	float32s slab[float32]
	float64s slab[float64]
	ints     slab[int]
	bools    slab[bool]
	kinds    slab[byte]

	channels channels
	coef     []float32 // records of the constants of all channels, for the kernels
	acc      []float32 // cols: sums, [segment][column]
	shift    []float32 // cols: minus the shift K, [segment][column]
	side     int       // cols: coef has the constants of so many rows, side by side
	act      *actCode
	tinyAct  tinyActivation
	gathered source
	looks    channelArgs // of channelTiny: clearing so many fields takes longer than the kernel
	behind   behind

	rowScratch   quota[*rowScratch]
	buffers      quota[*buffers]
	someInBlocks bool // there are channels whose outputs are written block by block
	tinyColumns  tinyColumns

	fusedTask, sumsTask, applyTask func(int) // from tasks, for the layout
	tasks                          struct{ fusedRows, sumRows, applyRows, sumCols, applyCols, applyGathered func(int) }
}

// newWorkspace returns a workspace that fits no plan yet.
func newWorkspace() *workspace {
	w := &workspace{}
	t := &w.tasks // bound once, because binding allocates
	t.fusedRows, t.sumRows, t.applyRows = w.fusedRows, w.sumRows, w.applyRows
	t.sumCols, t.applyCols, t.applyGathered = w.sumCols, w.applyCols, w.applyGathered
	return w
}

// fit cuts the slices of the workspace for a plan. Its memory grows if it is too small.
func (w *workspace) fit(p *Plan, s *scratch, masked bool) {
	if w.plan == nil || w.plan.act != p.act || w.plan.path != p.path {
		w.act, w.tinyAct = nil, p.act.ofTinyZ()
		if p.path != PathGeneric {
			w.act = newActCode(p.act)
		}
	}
	w.plan, w.masked, w.gathers, w.geo = p, masked, w.gathers || masked, &p.geo
	segments, width := p.geo.segments, p.geo.width
	if masked {
		w.gathered.init(p)
		w.geo = &w.gathered.geo
		segments, width = w.gathered.most()
	}
	for w.cut(segments, width); !w.grow(); {
		w.cut(segments, width)
	}
	t, group := &w.tasks, 0
	if w.geo.layout == rows {
		w.fusedTask, w.sumsTask, w.applyTask = t.fusedRows, t.sumRows, t.applyRows
		group = roundUp(p.limits.mostGroup(w.geo, p.path), lanes)
	} else {
		w.fusedTask, w.sumsTask, w.applyTask = nil, t.sumCols, t.applyCols
	}
	if masked {
		w.applyTask = t.applyGathered
	}
	n := 2 * p.workers * max(1, s.calls) // a task that takes sums again uses two of each
	w.rowScratch = quota[*rowScratch]{pool: &s.rows, n: n, room: group, make: newRowScratch}
	w.buffers = quota[*buffers]{pool: &s.buffers, n: n, make: newBuffers}
}

// cut cuts the slices of the workspace from its slabs.
func (w *workspace) cut(segments, width int) {
	w.float32s.begin()
	w.float64s.begin()
	w.ints.begin()
	w.bools.begin()
	w.kinds.begin()
	g := w.geo
	w.channels.cut(w, g.channels, max(width, g.channels), segments)
	w.shift, w.acc = nil, nil
	if g.layout == rows {
		w.coef = w.float32s.cut(g.channels * coefLen)
		return
	}
	padded := roundUp(width, lanes)
	w.side = 1
	if !w.masked {
		w.side = w.plan.limits.side(g, w.plan.path)
	}
	w.coef = w.float32s.cut(roundUp(w.side*width, lanes) * coefLen)
	wide := width == g.channels || w.masked && g.channels >= minWidth  // not folded, whatever the number of positions
	if w.side == 1 && (wide || g.unit == 1 && g.channels%lanes == 0) { // the first columns are the channels
		w.channels.fields = fields{w.coef, lanes, lanes * coefLen}
	}
	w.shift = w.float32s.cut(segments * padded)
	w.acc = w.float32s.cut(segments * padded * 2)
}

// grow reports whether the slabs had room for all slices, and makes room if not.
func (w *workspace) grow() bool {
	all := w.float32s.grow()
	all = w.float64s.grow() && all
	all = w.ints.grow() && all
	all = w.bools.grow() && all
	return w.kinds.grow() && all
}

// closeInvStd returns the least invstd for which no x-m overflows, whatever the mean.
func (c *call) closeInvStd() float64 {
	if c.foreign {
		return math.Inf(1)
	}
	return ownInvStd
}

// forwardCall sets the stages of a forward pass.
func (c *call) forwardCall(act Activation, o *operands) {
	c.gamma, c.beta = o.gamma, o.beta
	c.sums = stage{kernel: kernelMoments, x: o.x}
	c.again = c.sums
	c.apply = stage{kernel: kernelNormalize, act: act, x: o.x, res: o.residual, y: o.y}
}

// backwardCall sets the stages of a backward pass.
func (c *call) backwardCall(act Activation, o *operands) {
	c.backward = true
	c.gamma, c.beta = o.gamma, o.beta
	c.gammaGrad, c.betaGrad = o.dgamma, o.dbeta
	y, dres := o.y, o.dresidual
	if y == nil { // the kernel writes dx to dresidual, and then g over it
		y = dres
	}
	if c.source != nil && c.source.inverted {
		act = Identity // the source computes dy*act'(z)
	}
	c.sums = stage{kernel: kernelGradSums, act: act, x: o.x, dy: o.dy, res: o.residual}
	c.again = c.sums
	c.apply = stage{kernel: kernelInputGrad, act: act, x: o.x, dy: o.dy, res: o.residual, y: y, dres: dres}
}

// storeGradients lets the sums store g in an output, and all later stages read it there.
func (c *call) storeGradients() {
	out := c.apply.storage()
	c.sums.dres = out
	if &out[0] != &c.apply.dy[0] {
		c.applyTiny.slopes = out
	}
	c.again = stage{kernel: kernelGradSums, x: c.sums.x, dy: out}
	c.apply.dy, c.apply.res, c.apply.act = out, nil, Identity
	if dres := c.apply.dres; dres != nil && &dres[0] == &c.apply.y[0] {
		c.do &^= applyThem // only g is wanted
	}
	c.apply.dres = nil
}

// storage returns the output that may hold g: dresidual, or dx.
func (s *stage) storage() []float32 {
	if s.dres != nil {
		return s.dres
	}
	return s.y
}

// situation returns the situation of the call for a set of phases.
func (w *workspace) situation(do phases) situation {
	a := &w.apply
	s := situation{path: w.plan.path, workers: w.plan.workers, backward: w.backward, do: do,
		costly: w.backward && a.act.costly(), masked: w.source != nil, marked: !w.backward && w.anyLarge,
		calls: a.act.variant() == actCalled}
	inputs := [...][]float32{a.x, a.dy, a.res}
	for _, in := range inputs {
		if in != nil {
			s.reads++
		}
	}
	for _, out := range [...][]float32{a.y, a.dres} {
		if out == nil {
			continue
		}
		s.writes++
		for _, in := range inputs {
			s.inPlace = s.inPlace || in != nil && &in[0] == &out[0]
		}
	}
	// The output must not be x, which dx needs, and kernels can't compute g of a wide
	// channel.
	if out := a.storage(); s.costly && out != nil {
		s.storable = &out[0] != &a.x[0] && !slices.Contains(w.channels.form, wideForm) &&
			!(w.anyTiny && a.dres != nil && &a.dres[0] == &a.y[0]) // only g is wanted, and dx is written before it
	}
	return s
}

// run carries the call out. The stages are set before, and in a backward pass the
// statistics.
func (w *workspace) run(do phases) {
	w.do = do
	w.sample(do)
	w.way = choose(w.geo, w.situation(do), w.plan.limits)
	w.apply.stream = w.way.stream
	if w.applyTiny = w.apply; w.way.stores {
		w.storeGradients()
	}
	w.tinyColumns.found = w.tinyColumns.found[:0]
	g, way := w.geo, &w.way
	if way.fused {
		w.parallel(ceilDiv(g.channels, way.tasks), w.fusedTask)
		return
	}
	if do&takeSums != 0 {
		some := w.backward && w.anyTiny && g.layout == cols
		if some {
			w.setTinyColumns(w.channels.tiny, false)
		}
		if g.layout == rows {
			w.parallel(ceilDiv(g.channels, way.tasks)*g.segments, w.sumsTask)
		} else {
			w.parallel(ceilDiv(g.width, way.tasks)*g.segments, w.sumsTask)
		}
		if some {
			w.unsetTinyColumns()
		}
		w.finish(0, g.channels)
	}
	if w.do&applyThem != 0 {
		w.someInBlocks = w.findInBlocks(0, g.channels)
		some := w.someInBlocks && g.layout == cols
		if some {
			w.setTinyColumns(w.channels.outputs, true)
		}
		w.parallel(w.applyTasks(), w.applyTask)
		if some {
			w.unsetTinyColumns()
		}
	}
}

// applyTasks returns the number of tasks that write the outputs.
func (w *workspace) applyTasks() int {
	g, tile := w.geo, w.way.tile
	switch {
	case w.source != nil:
		return ceilDiv(g.outer*g.inner, w.source.tile)
	case g.layout == rows:
		t := g.tiles(tile)
		return t.images * t.channels * t.spans
	}
	return ceilDiv(g.height, tile)
}

// kernel runs a stage's kernel.
func (w *workspace) kernel(s *stage, k *kernelArgs) {
	k.act = w.act
	w.plan.path.run(s.kernel, w.geo.layout, s.act, k)
}

// parallel runs tasks of a call.
func (w *workspace) parallel(n int, task func(int)) {
	w.plan.options.parallel(n, w.plan.shape.Len(), task)
}

// parallel runs task(0) to task(n-1), which work on a tensor with this number of values,
// on the workers or the executor. Small tensors have fewer workers.
func (o *options) parallel(n, values int, task func(int)) {
	if n > 1 && o.executor != nil {
		o.executor(n, task)
		return
	}
	helpers := o.workersFor(n, values) - 1
	if helpers < 1 || n > team.MaxTasks {
		for i := range n {
			task(i)
		}
		return
	}
	most := o.workers - 1
	t := team.Acquire(most)
	t.Run(n, helpers, task)
	team.Release(t, most)
}

// workersFor returns the number of workers for n tasks on a tensor with this number of
// values.
func (o *options) workersFor(n, values int) int {
	return min(o.workers, n, max(1, values/o.limits.share))
}

// fence ends a task: it orders its non-temporal stores before those of later tasks.
func (w *workspace) fence() {
	if w.way.stream {
		simdFence()
	}
}
