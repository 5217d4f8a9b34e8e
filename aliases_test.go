package batchnorm_test

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/internal/gen"
)

// TestAliases holds every operation that may work in place to the bits that it
// gives with its outputs apart from its inputs, and to leaving alone what is no
// output.
//
// A problem is a mode, an activation, a kind of data, and a residual or none; the
// paths share all of them, and each has all the aliases that are allowed. Shapes,
// workers, schedules and which of dgamma and dbeta are wanted go round. On every path
// each level of every factor meets each of every other, which [aliasCover] proves.
func TestAliases(t *testing.T) {
	t.Parallel()
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		cover := newAliasCover()
		t.Run("modes", func(t *testing.T) {
			for m := range aliasModes {
				t.Run(aliasModes[m].name, func(t *testing.T) {
					t.Parallel()
					newAliasRunner(t, path, m, cover).all()
					cover.end()
				})
			}
		})
		if cover.modes == len(aliasModes) { // and not some of them, as -run asked for
			cover.check(t)
		}
	})
}

// A thorough run takes one problem of aliasThin, others on each path. A usual run takes
// one of aliasThinPart, and one alias of a backward pass of aliasThinAliases.
const (
	aliasThin        = 4
	aliasThinPart    = 10
	aliasThinAliases = 3
)

// TestMergedAliases: parts are merged into any of them, and statistics take the
// place of moments, with the bits that they have apart.
func TestMergedAliases(t *testing.T) {
	t.Parallel()
	const channels, parts = 5, 3
	float64s := func(seed int) []float64 { return widen(gen.Normal(uint64(seed), channels, 1, 2)) }
	moments := func() (list []batchnorm.Moments) {
		for i := range parts {
			m := batchnorm.Moments{Count: []int{4, 0, 7}[i], Mean: float64s(i), M2: float64s(i + 9)}
			for c := range m.M2 {
				m.M2[c] = math.Abs(m.M2[c])
			}
			list = append(list, m)
		}
		list[2].Mean[1], list[0].M2[2] = math.NaN(), math.Inf(1)
		return list
	}
	sums := func() (list []batchnorm.GradSums) {
		for i := range parts {
			list = append(list, batchnorm.GradSums{Count: 3 + i, G: float64s(i), GD: float64s(i + 9)})
		}
		list[1].G[0], list[2].GD[0] = -list[0].G[0], math.NaN()
		return list
	}
	whole := batchnorm.Moments{Mean: make([]float64, channels), M2: make([]float64, channels)}
	noError(t, batchnorm.MergeMoments(&whole, moments()))
	total := batchnorm.GradSums{G: make([]float64, channels), GD: make([]float64, channels)}
	noError(t, batchnorm.MergeGradSums(&total, sums()))
	for i := range parts {
		m, g := moments(), sums()
		noError(t, batchnorm.MergeMoments(&m[i], m))
		noError(t, batchnorm.MergeGradSums(&g[i], g))
		if m[i].Count != whole.Count || g[i].Count != total.Count {
			t.Errorf("merged into part %d: counts %d and %d, apart %d and %d", i, m[i].Count, g[i].Count, whole.Count, total.Count)
		}
		for _, o := range []struct {
			name      string
			got, want []float64
		}{{"mean", m[i].Mean, whole.Mean}, {"m2", m[i].M2, whole.M2}, {"g", g[i].G, total.G}, {"gd", g[i].GD, total.GD}} {
			expectBits(t, fmt.Sprintf("merged into part %d: %s", i, o.name), o.got, o.want)
		}
		for j, other := range moments() {
			if j != i {
				expectBits(t, fmt.Sprintf("merged into part %d: mean of part %d", i, j), m[j].Mean, other.Mean)
				expectBits(t, fmt.Sprintf("merged into part %d: m2 of part %d", i, j), m[j].M2, other.M2)
			}
		}
	}
	p := newPlan(t, batchnorm.Shape{Outer: 11, Channels: channels, Inner: 1})
	statistics := func(mean, invstd []float64, of batchnorm.Moments) (runMean, runVar []float32) {
		runMean, runVar = gen.Uniform(1, channels, -1, 1), gen.Uniform(2, channels, 0.5, 2)
		noError(t, p.Statistics(batchnorm.StatisticsArgs{Moments: of, Mean: mean, InvStd: invstd, RunningMean: runMean, RunningVar: runVar}))
		return runMean, runVar
	}
	mean, invstd, invstdInPlace := make([]float64, channels), make([]float64, channels), make([]float64, channels)
	runMean, runVar := statistics(mean, invstd, whole)
	gotMean, gotVar := statistics(whole.Mean, invstdInPlace, whole)
	expectBits(t, "mean in the moments' place", whole.Mean, mean)
	expectBits(t, "invstd", invstdInPlace, invstd)
	expectBits(t, "running mean", gotMean, runMean)
	expectBits(t, "running variance", gotVar, runVar)
}

// ---- the factors

// aliasActivations are all kinds, those with an inverse first.
var aliasActivations = append(slices.Clone(aliasInvertible), slices.DeleteFunc(slices.Clone(activations), func(act batchnorm.Activation) bool {
	return slices.Contains(aliasInvertible, act)
})...)

var aliasInvertible = []batchnorm.Activation{
	batchnorm.Identity, batchnorm.LeakyReLU(0.125), batchnorm.ELU(1), batchnorm.ELU(0.5),
}

// aliasShapes are small ones of every form.
var aliasShapes = []batchnorm.Shape{
	{Outer: 4, Channels: 2, Inner: 1024}, // rows: halves of a channel are whole blocks
	{Outer: 4, Channels: 2, Inner: 300},  // no multiple of a vector
	{Outer: 4, Channels: 3, Inner: 256},
	{Outer: 1, Channels: 1, Inner: 2100}, // one row of more than a block
	{Outer: 8, Channels: 5, Inner: 49},   // short rows
	{Outer: 5, Channels: 5, Inner: 17},
	{Outer: 16, Channels: 6, Inner: 3}, // shorter than a vector
	{Outer: 40, Channels: 5, Inner: 1}, // columns, several rows side by side
	{Outer: 300, Channels: 3, Inner: 1},
	{Outer: 20, Channels: 133, Inner: 1},
	{Outer: 4, Channels: 520, Inner: 1}, // many columns
}

// aliasWay is how a call is carried out.
type aliasWay struct{ workers, schedule int }

// aliasSchedules are the usual one, and the extreme ones.
var aliasSchedules = [...]string{"usual schedule", "large rows", "large groups of rows"}

func (w aliasWay) String() string {
	return fmt.Sprintf("%d workers, %s", w.workers, aliasSchedules[w.schedule])
}

func (w aliasWay) options(path batchnorm.Path) []batchnorm.Option {
	o := []batchnorm.Option{batchnorm.WithPath(path), batchnorm.WithWorkers(w.workers)}
	if w.schedule > 0 {
		o = append(o, batchnorm.WithExtremeSchedule(w.schedule == 2))
	}
	return o
}

var aliasWays = func() (list []aliasWay) {
	for schedule := range aliasSchedules {
		list = append(list, aliasWay{1, schedule}, aliasWay{3, schedule})
	}
	return list
}()

// aliasSums are which of dgamma and dbeta are wanted.
var aliasSums = []struct{ dgamma, dbeta bool }{{true, true}, {false, false}, {true, false}, {false, true}}

// aliasPlace is where an output lies.
type aliasPlace int

const (
	aliasNone  aliasPlace = iota // not wanted
	aliasApart                   // from all inputs

	aliasDY // in an input's place
	aliasX  // or y's, which BackwardFromY takes
	aliasResidual
)

var aliasPlaceNames = [...]string{"not wanted", "apart", "dy", "x", "the residual"}

func (p aliasPlace) String() string { return aliasPlaceNames[p] }

// alias says where the outputs of a call lie.
type alias struct {
	backward      bool
	y             aliasPlace // forward
	dx, dresidual aliasPlace // backward
}

func (a alias) String() string {
	if !a.backward {
		return fmt.Sprintf("y is %v", a.y)
	}
	return fmt.Sprintf("dx is %v and dresidual %v", a.dx, a.dresidual)
}

// apart returns the alias with those outputs apart that are wanted.
func (a alias) apart() alias {
	for _, place := range []*aliasPlace{&a.y, &a.dx, &a.dresidual} {
		if *place != aliasNone {
			*place = aliasApart
		}
	}
	return a
}

// ofResidual reports whether an output is in the residual's place.
func (a alias) ofResidual() bool {
	return a.y == aliasResidual || a.dx == aliasResidual || a.dresidual == aliasResidual
}

// aliases are all that the documentation allows: dx and dresidual are apart.
var aliases = func() (list []alias) {
	for _, y := range []aliasPlace{aliasApart, aliasX, aliasResidual} {
		list = append(list, alias{y: y})
	}
	for dx := aliasNone; dx <= aliasResidual; dx++ {
		for dresidual := aliasNone; dresidual <= aliasResidual; dresidual++ {
			if dx != dresidual || dx <= aliasApart {
				list = append(list, alias{backward: true, dx: dx, dresidual: dresidual})
			}
		}
	}
	return list
}()

// ---- data

// aliasGroup is the values that statistics are taken of: of a channel, or of its
// part in a sub-batch.
type aliasGroup struct {
	number int
	at     []int // the indices of the values, in order

	x, dy, residual []float32 // tensors; residual may be nil
	mean, variance  *float32  // running statistics of the channel
	gamma           *float32  // nil in modes that must not have a small one
}

// aliasData is a kind of data. It changes usual values of each group.
type aliasData struct {
	name string
	set  func(g *aliasGroup)
	// Two inputs are the same slice, by their places; aliasNone: they are apart.
	same, with aliasPlace
}

var aliasKinds = []aliasData{
	{name: "usual", set: func(*aliasGroup) {}},
	{name: "tiny gradients", set: aliasTinyDY},
	{name: "huge gradients behind a usual one", set: aliasHugeLater},
	{name: "gradients that cancel by halves", set: aliasHalves},
	{name: "two gradients that cancel", set: aliasPair},
	{name: "tiny values", set: aliasTinyX},
	{name: "subnormal values", set: aliasSubnormalX},
	{name: "subnormal values, tiny gradients", set: func(g *aliasGroup) {
		aliasSubnormalX(g)
		aliasTinyDY(g)
	}},
	{name: "huge values", set: aliasHugeX},
	{name: "one NaN", set: func(g *aliasGroup) { g.poison(float32(math.NaN())) }},
	{name: "one infinity", set: func(g *aliasGroup) { g.poison(float32(math.Inf(1 - g.number/3%2*2))) }},
	{name: "sums of several kinds", set: func(g *aliasGroup) {
		aliasOneOf(g, aliasTinyDY, aliasHalves, aliasHugeLater, aliasZeroDY, nil, aliasPair, aliasHugeDY)
	}},
	{name: "several kinds", set: func(g *aliasGroup) {
		aliasOneOf(g, aliasHugeX, nil, aliasTinyX, aliasZeroDY, aliasTinyDY, aliasConstant, aliasHugeDY, aliasWideX, aliasSmallX)
	}},
	{name: "tiny products among others", set: func(g *aliasGroup) {
		aliasOneOf(g, aliasTinyProducts, nil, nil)
	}},
	{name: "small scales", set: aliasSmallScale},
	{name: "small scales among others", set: func(g *aliasGroup) {
		aliasOneOf(g, aliasSmallScale, nil, aliasTinyX, aliasSmallScale, aliasTinyDY, aliasHugeX)
	}},
	{name: "the residual is x", set: func(g *aliasGroup) { copy(g.residual, g.x) }, same: aliasResidual, with: aliasX},
	{name: "dy is x", set: func(g *aliasGroup) { copy(g.dy, g.x) }, same: aliasDY, with: aliasX},
	{name: "dy is the residual, and tiny", set: func(g *aliasGroup) {
		aliasTinyDY(g)
		copy(g.residual, g.dy)
	}, same: aliasDY, with: aliasResidual},
}

// needsResidual reports whether it is a kind of data with a residual.
func (d *aliasData) needsResidual() bool { return d.same == aliasResidual || d.with == aliasResidual }

// meets reports whether dx and dresidual, in the places of different inputs, would
// be the same slice, which is not allowed.
func (d *aliasData) meets(a alias) bool {
	return d.same != aliasNone && (a.dx == d.same && a.dresidual == d.with || a.dx == d.with && a.dresidual == d.same)
}

func (g *aliasGroup) scale(t []float32, factor float32) {
	for _, i := range g.at {
		t[i] *= factor
	}
}

// The products of such gradients vanish in float32.
func aliasTinyDY(g *aliasGroup) { g.scale(g.dy, 1e-35) }

// The sums of such gradients overflow in float32, and the first one, which tells of others, doesn't tell.
func aliasHugeLater(g *aliasGroup) {
	aliasHugeDY(g)
	g.dy[g.at[0]] = 1
}

// The sums of such gradients would overflow in float32.
func aliasHugeDY(g *aliasGroup) {
	for _, i := range g.at {
		g.dy[i] = min(abs(g.dy[i]), 3) * 1e38
	}
}

// The scale of such channels is subnormal.
func aliasSmallScale(g *aliasGroup) {
	if g.gamma != nil {
		*g.gamma = float32(math.Copysign(1e-40, float64(*g.gamma)))
	}
}

func aliasZeroDY(g *aliasGroup) { g.scale(g.dy, 0) }

// The two halves add opposite numbers to the sums.
func aliasHalves(g *aliasGroup) {
	half := len(g.at) / 2
	for k, i := range g.at[:half] {
		g.opposite(i, g.at[k+half])
	}
	for _, i := range g.at[2*half:] {
		g.dy[i] = 0
	}
}

// Whatever the order of the sums, they are 0.
func aliasPair(g *aliasGroup) {
	for _, i := range g.at[:len(g.at)-1] {
		g.dy[i] = 0
	}
	first, last := g.at[len(g.at)/3], g.at[len(g.at)-1]
	if first == last {
		g.dy[last] = 0
		return
	}
	g.dy[first] = -g.dy[last]
	g.opposite(first, last)
}

// opposite makes one element a copy of another, with the opposite gradient.
func (g *aliasGroup) opposite(from, to int) {
	g.x[to], g.dy[to] = g.x[from], -g.dy[from]
	if g.residual != nil {
		g.residual[to] = g.residual[from]
	}
}

// The scale of such channels is out of the range that float32 is used for.
func aliasTinyX(g *aliasGroup) {
	g.scale(g.x, 1e-25)
	*g.mean, *g.variance = 1e-20, 1e-38
}

func aliasSubnormalX(g *aliasGroup) {
	g.scale(g.x, 1e-39)
	*g.mean = 2e-40
}

// A value of such channels less the mean may overflow.
func aliasWideX(g *aliasGroup) {
	g.scale(g.x, 1e35)
	*g.mean, *g.variance = 1e35, 3e38
}

// Neither number is tiny, but their products are.
func aliasTinyProducts(g *aliasGroup) {
	g.scale(g.x, 1e-18)
	g.scale(g.dy, 1e-18)
	*g.mean = 1e-18
}

// The squares of such values are subnormal.
func aliasSmallX(g *aliasGroup) { g.scale(g.x, 1e-20) }

func aliasHugeX(g *aliasGroup) {
	g.scale(g.x, 1e25)
	*g.mean, *g.variance = 1e19, 3e38
}

func aliasConstant(g *aliasGroup) {
	for _, i := range g.at {
		g.x[i] = 3
	}
}

// poison sets one value of one operand, which goes round among the groups.
func (g *aliasGroup) poison(v float32) {
	t := [][]float32{g.dy, g.x, g.residual}[g.number%3]
	if t == nil {
		t = g.dy
	}
	t[g.at[len(g.at)*2/3]] = v
}

// aliasOneOf takes another of some kinds for each group; nil: usual.
func aliasOneOf(g *aliasGroup, kinds ...func(*aliasGroup)) {
	if set := kinds[g.number%len(kinds)]; set != nil {
		set(g)
	}
}

// ---- modes

// aliasOperands are those of a mode's forward and backward pass.
type aliasOperands struct {
	x, dy, residual  []float32 // inputs; BackwardFromY takes x for y
	y, dx, dresidual []float32 // outputs

	gamma, beta     []float32
	mean, variance  []float32 // running statistics that are read
	runMean, runVar []float32 // and those that are updated

	saved, invstd, r, d []float64 // saved by the forward pass
	dgamma, dbeta       []float32
}

// aliasLayout is a tensor of a mode in a shape.
type aliasLayout struct {
	n, channels int
	group       []int // of every element, -1 for padding; channel c of sub-batch b is b*channels+c
	groups      int
	keepPadding bool
}

// aliasPass is a pass of a mode, with a plan that is there already.
type aliasPass func(o *aliasOperands) error

// aliasMode is a way to use the package.
type aliasMode struct {
	name         string
	acts         []batchnorm.Activation // nil: all
	fromY        bool                   // the backward pass reads the output of the forward pass
	keepsForward bool                   // y is apart from x, and with an activation from the residual
	layout       func(s batchnorm.Shape) aliasLayout
	passes       func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass)
}

var aliasModes = []aliasMode{
	aliasPlan("plain", aliasNoMask, aliasTraining),
	aliasPlan("plain, mask of lengths", aliasMask("lengths", false), aliasTraining),
	aliasPlan("plain, mask with padding kept", aliasMask("half", true), aliasTraining),
	aliasPlan("frozen", aliasNoMask, aliasFrozen),
	aliasPlan("frozen, mask", aliasMask("bursts", false), aliasFrozen),
	aliasPlan("frozen, mask with padding kept", aliasMask("lengths", true), aliasFrozen),
	aliasSplit("split, one part", 1, aliasNoMask),
	aliasSplit("split", 3, aliasNoMask),
	aliasSplit("split, mask", 2, aliasMask("half", false)),
	aliasGhost("ghost", aliasNoMask),
	aliasGhost("ghost, mask", aliasThirds),
	aliasPlan("renorm", aliasNoMask, aliasRenorm),
	aliasPlan("renorm, mask", aliasMask("half", false), aliasRenorm),
	aliasFromY("from y", aliasNoMask),
	aliasFromY("from y, mask", aliasMask("bursts", false)),
	aliasAxes("axes, one call", aliasOneCall, 1, false, false),
	aliasAxes("axes, several calls", aliasSeveralCalls, 2, false, false),
	aliasAxes("axes, copy", aliasCopy, 1, true, false),
	aliasAxes("axes, several copies", aliasSeveralCopies, 2, true, false),
	aliasAxes("frozen axes, one call", aliasOneCall, 1, false, true),
	aliasAxes("frozen axes, several calls", aliasSeveralCalls, 2, false, true),
	aliasAxes("frozen axes, copy", aliasCopy, 1, true, true),
	aliasAxes("frozen axes, several copies", aliasSeveralCopies, 2, true, true),
	aliasLayer("layer in training", aliasNoMask, false),
	aliasLayer("layer in training, mask", aliasMask("half", false), false),
	aliasLayer("layer in evaluation", aliasNoMask, true),
}

// keeps reports whether an alias writes y over an input that the mode's backward pass
// reads, which is not allowed.
func (m *aliasMode) keeps(a alias, act batchnorm.Activation, d *aliasData) bool {
	if !m.keepsForward || a.backward {
		return false
	}
	return a.y == aliasX || a.y == aliasResidual && (act != batchnorm.Identity || d.same == aliasResidual && d.with == aliasX)
}

// aliasMaskOf makes the mask for a shape.
type aliasMaskOf func(s batchnorm.Shape) batchnorm.Mask

func aliasNoMask(batchnorm.Shape) batchnorm.Mask { return batchnorm.Mask{} }

// aliasThirds leaves out every third position.
func aliasThirds(s batchnorm.Shape) batchnorm.Mask {
	v := make([]bool, s.PerChannel())
	for i := range v {
		v[i] = i%3 != 1
	}
	return batchnorm.Mask{Valid: v}
}

func aliasMask(name string, keep bool) aliasMaskOf {
	return func(s batchnorm.Shape) batchnorm.Mask {
		m := masksFor(s, 5)[name]
		m.KeepPadding = keep
		return m
	}
}

// layout describes a tensor with the mask, in sub-batches of some rows of Outer.
func (mask aliasMaskOf) layout(s batchnorm.Shape, rows int) aliasLayout {
	m := mask(s)
	l := aliasLayout{n: s.Len(), channels: s.Channels, keepPadding: m.KeepPadding}
	l.groups = (s.Outer + rows - 1) / rows * s.Channels
	var data []bool
	if m.Valid != nil || m.Lengths != nil {
		data = valid(m, s)
	}
	for i := range l.n {
		outer := i / (s.Channels * s.Inner)
		if data != nil && !data[outer*s.Inner+i%s.Inner] {
			l.group = append(l.group, -1)
			continue
		}
		l.group = append(l.group, outer/rows*s.Channels+channelOf(s, i))
	}
	return l
}

// aliasPlan is a mode of a Plan.
func aliasPlan(name string, mask aliasMaskOf, passes func(p *batchnorm.Plan, mask batchnorm.Mask) (forward, backward aliasPass)) aliasMode {
	return aliasMode{
		name:   name,
		layout: func(s batchnorm.Shape) aliasLayout { return mask.layout(s, s.Outer) },
		passes: func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass) {
			return passes(newPlan(t, s, opts...), mask(s))
		},
	}
}

func (o *aliasOperands) forward(mask batchnorm.Mask) batchnorm.ForwardArgs {
	return batchnorm.ForwardArgs{X: o.x, Residual: o.residual, Gamma: o.gamma, Beta: o.beta, Mask: mask, Y: o.y,
		Mean: o.saved, InvStd: o.invstd, RunningMean: o.runMean, RunningVar: o.runVar}
}

func (o *aliasOperands) backward(mask batchnorm.Mask) batchnorm.BackwardArgs {
	return batchnorm.BackwardArgs{DY: o.dy, X: o.x, Residual: o.residual, Gamma: o.gamma, Beta: o.beta, Mask: mask,
		Mean: o.saved, InvStd: o.invstd, DX: o.dx, DResidual: o.dresidual, DGamma: o.dgamma, DBeta: o.dbeta}
}

func (o *aliasOperands) inference(mask batchnorm.Mask) batchnorm.InferenceArgs {
	return batchnorm.InferenceArgs{X: o.x, Residual: o.residual, Gamma: o.gamma, Beta: o.beta, Mask: mask,
		Mean: o.mean, Var: o.variance, Y: o.y}
}

func (o *aliasOperands) frozen(mask batchnorm.Mask) batchnorm.FrozenBackwardArgs {
	return batchnorm.FrozenBackwardArgs{DY: o.dy, X: o.x, Residual: o.residual, Gamma: o.gamma, Beta: o.beta, Mask: mask,
		Mean: o.mean, Var: o.variance, DX: o.dx, DResidual: o.dresidual, DGamma: o.dgamma, DBeta: o.dbeta}
}

func aliasTraining(p *batchnorm.Plan, mask batchnorm.Mask) (forward, backward aliasPass) {
	return func(o *aliasOperands) error { return p.Forward(o.forward(mask)) },
		func(o *aliasOperands) error { return p.Backward(o.backward(mask)) }
}

func aliasFrozen(p *batchnorm.Plan, mask batchnorm.Mask) (forward, backward aliasPass) {
	return func(o *aliasOperands) error { return p.Inference(o.inference(mask)) },
		func(o *aliasOperands) error { return p.FrozenBackward(o.frozen(mask)) }
}

func aliasRenorm(p *batchnorm.Plan, mask batchnorm.Mask) (forward, backward aliasPass) {
	return func(o *aliasOperands) error {
			return p.RenormForward(batchnorm.RenormForwardArgs{ForwardArgs: o.forward(mask), RMax: 1.5, DMax: 0.5, R: o.r, D: o.d})
		}, func(o *aliasOperands) error {
			return p.RenormBackward(batchnorm.RenormBackwardArgs{BackwardArgs: o.backward(mask), R: o.r, D: o.d})
		}
}

func aliasFromY(name string, mask aliasMaskOf) aliasMode {
	m := aliasPlan(name, mask, func(p *batchnorm.Plan, mask batchnorm.Mask) (forward, backward aliasPass) {
		forward, _ = aliasTraining(p, mask)
		return forward, func(o *aliasOperands) error {
			return p.BackwardFromY(batchnorm.BackwardFromYArgs{DY: o.dy, Y: o.x, Residual: o.residual, Gamma: o.gamma, Beta: o.beta, Mask: mask,
				InvStd: o.invstd, DX: o.dx, DResidual: o.dresidual, DGamma: o.dgamma, DBeta: o.dbeta})
		}
	})
	m.acts, m.fromY = aliasInvertible, true
	return m
}

// aliasSplit is the pieces, over so many parts at most, from the last to the first.
func aliasSplit(name string, parts int, mask aliasMaskOf) aliasMode {
	type part struct {
		plan     *batchnorm.Plan
		mask     batchnorm.Mask
		from, to int // elements
	}
	return aliasMode{
		name:   name,
		layout: func(s batchnorm.Shape) aliasLayout { return mask.layout(s, s.Outer) },
		passes: func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass) {
			all := make([]part, min(parts, s.Outer))
			row := s.Channels * s.Inner
			moments, sums := make([]batchnorm.Moments, len(all)), make([]batchnorm.GradSums, len(all))
			float64s := func() []float64 { return make([]float64, s.Channels) }
			for i := range all {
				from, to := i*s.Outer/len(all), (i+1)*s.Outer/len(all)
				q := &all[i]
				q.plan = newPlan(t, batchnorm.Shape{Outer: to - from, Channels: s.Channels, Inner: s.Inner}, opts...)
				q.from, q.to = from*row, to*row
				if m := mask(s); m.Valid != nil {
					q.mask.Valid = m.Valid[from*s.Inner : to*s.Inner]
				}
				moments[i] = batchnorm.Moments{Mean: float64s(), M2: float64s()}
				sums[i] = batchnorm.GradSums{G: float64s(), GD: float64s()}
			}
			of := func(q *part, v []float32) []float32 {
				if v == nil {
					return nil
				}
				return v[q.from:q.to:q.to]
			}
			whole, total := batchnorm.Moments{Mean: float64s(), M2: float64s()}, batchnorm.GradSums{G: float64s(), GD: float64s()}
			forward = func(o *aliasOperands) error {
				for i := range slices.Backward(all) {
					q := &all[i]
					if err := q.plan.Moments(batchnorm.MomentsArgs{X: of(q, o.x), Mask: q.mask, Moments: &moments[i]}); err != nil {
						return err
					}
				}
				if err := batchnorm.MergeMoments(&whole, moments); err != nil {
					return err
				}
				if err := all[0].plan.Statistics(batchnorm.StatisticsArgs{Moments: whole, Mean: o.saved, InvStd: o.invstd,
					RunningMean: o.runMean, RunningVar: o.runVar}); err != nil {
					return err
				}
				for i := range slices.Backward(all) {
					q := &all[i]
					if err := q.plan.Normalize(batchnorm.NormalizeArgs{X: of(q, o.x), Residual: of(q, o.residual), Gamma: o.gamma, Beta: o.beta,
						Mask: q.mask, Mean: o.saved, InvStd: o.invstd, Y: of(q, o.y)}); err != nil {
						return err
					}
				}
				return nil
			}
			backward = func(o *aliasOperands) error {
				for i := range slices.Backward(all) {
					q := &all[i]
					if err := q.plan.GradSums(batchnorm.GradSumsArgs{DY: of(q, o.dy), X: of(q, o.x), Residual: of(q, o.residual), Gamma: o.gamma,
						Beta: o.beta, Mask: q.mask, Mean: o.saved, InvStd: o.invstd, Sums: &sums[i]}); err != nil {
						return err
					}
				}
				if err := batchnorm.MergeGradSums(&total, sums); err != nil {
					return err
				}
				for i := range slices.Backward(all) {
					q := &all[i]
					if err := q.plan.InputGrad(batchnorm.InputGradArgs{DY: of(q, o.dy), X: of(q, o.x), Residual: of(q, o.residual), Gamma: o.gamma,
						Beta: o.beta, Mask: q.mask, Mean: o.saved, InvStd: o.invstd, Sums: total,
						DX: of(q, o.dx), DResidual: of(q, o.dresidual), DGamma: o.dgamma, DBeta: o.dbeta}); err != nil {
						return err
					}
				}
				return nil
			}
			return forward, backward
		},
	}
}

// aliasGhost is a GhostPlan with three sub-batches; the last one is smaller in some
// problems.
func aliasGhost(name string, mask aliasMaskOf) aliasMode {
	size := func(s batchnorm.Shape) int { return (s.Outer + 2) / 3 }
	return aliasMode{
		name:   name,
		layout: func(s batchnorm.Shape) aliasLayout { return mask.layout(s, size(s)) },
		passes: func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass) {
			p, err := batchnorm.NewGhostPlan(s, batchnorm.GhostBatches{Samples: s.Outer, Size: size(s)}, opts...)
			noError(t, err)
			return func(o *aliasOperands) error { return p.Forward(o.forward(mask(s))) },
				func(o *aliasOperands) error { return p.Backward(o.backward(mask(s))) }
		},
	}
}

// The axes kept and the dimensions, near a shape, for which an AxesPlan takes each
// of its ways.
func aliasOneCall(s batchnorm.Shape) (keep, dims []int) {
	return []int{1}, []int{s.Outer, s.Channels, s.Inner}
}

func aliasSeveralCalls(s batchnorm.Shape) (keep, dims []int) {
	return []int{0, 2}, []int{2, max(2, s.Outer/2), max(2, s.Channels), s.Inner}
}

func aliasCopy(s batchnorm.Shape) (keep, dims []int) {
	if s.Inner == 1 {
		return []int{1, 3}, []int{max(2, s.Outer/2), max(2, s.Channels/2), 2, 2}
	}
	return []int{1, 3}, []int{max(2, s.Outer/4), max(2, s.Channels/2), 2, 2, (s.Inner + 1) / 2}
}

func aliasSeveralCopies(s batchnorm.Shape) (keep, dims []int) {
	return []int{0, 2, 4}, []int{2, max(2, s.Outer/4), max(2, s.Channels/2), 2, 2, max(1, s.Inner/4)}
}

// aliasAxes is an AxesPlan, which takes the way that the axes are for.
func aliasAxes(name string, axes func(s batchnorm.Shape) (keep, dims []int), wantCalls int, wantCopies, frozen bool) aliasMode {
	return aliasMode{
		name: name,
		layout: func(s batchnorm.Shape) aliasLayout {
			c := newAxesCase(axes(s))
			l := aliasLayout{n: c.shape.Len(), channels: c.shape.Channels, groups: c.shape.Channels, group: c.index}
			for i := range l.group {
				l.group[i] %= l.channels
			}
			return l
		},
		passes: func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass) {
			keep, dims := axes(s)
			p, err := batchnorm.NewAxesPlan(keep, dims, opts...)
			noError(t, err)
			if calls, copies := p.Ways(); calls != wantCalls || copies != wantCopies {
				t.Fatalf("axes %v of %v: %d calls, copies %t; want %d, %t", keep, dims, calls, copies, wantCalls, wantCopies)
			}
			none := batchnorm.Mask{}
			if frozen {
				return func(o *aliasOperands) error { return p.Inference(o.inference(none)) },
					func(o *aliasOperands) error { return p.FrozenBackward(o.frozen(none)) }
			}
			return func(o *aliasOperands) error { return p.Forward(o.forward(none)) },
				func(o *aliasOperands) error { return p.Backward(o.backward(none)) }
		},
	}
}

// aliasLayer is a Layer, whose Backward has a Forward before it.
func aliasLayer(name string, mask aliasMaskOf, evaluation bool) aliasMode {
	return aliasMode{
		name:         name,
		keepsForward: !evaluation,
		layout:       func(s batchnorm.Shape) aliasLayout { return mask.layout(s, s.Outer) },
		passes: func(t testing.TB, s batchnorm.Shape, opts []batchnorm.Option) (forward, backward aliasPass) {
			l := newLayer(t, s.Channels, opts...)
			args := func(o *aliasOperands) batchnorm.LayerForwardArgs {
				l.Gamma, l.Beta, l.DGamma, l.DBeta = o.gamma, o.beta, o.dgamma, o.dbeta
				l.RunningMean, l.RunningVar = o.runMean, o.runVar
				if evaluation {
					l.Eval()
					l.RunningMean, l.RunningVar = o.mean, o.variance
				}
				return batchnorm.LayerForwardArgs{Shape: s, X: o.x, Residual: o.residual, Mask: mask(s), Y: o.y}
			}
			y := make([]float32, s.Len())
			return func(o *aliasOperands) error { return l.Forward(args(o)) },
				func(o *aliasOperands) error {
					f := args(o)
					f.Y = y
					if err := l.Forward(f); err != nil {
						return err
					}
					return l.Backward(batchnorm.LayerBackwardArgs{DY: o.dy, DX: o.dx, DResidual: o.dresidual})
				}
		},
	}
}

// ---- the test

// aliasRunner runs one mode on one path.
type aliasRunner struct {
	t       *testing.T
	path    batchnorm.Path
	number  int
	mode    *aliasMode
	cover   *aliasCover
	layouts []*aliasLayout // by shape
	random  aliasOperands  // usual values are drawn from these
	buffers [6][]float32   // tensors: dy, x, residual, and outputs
	want    [2][]float32   // expected outputs with padding
	failed  int
}

// aliasRandom is how many usual values there are.
const aliasRandom = 1 << 15

func newAliasRunner(t *testing.T, path batchnorm.Path, number int, cover *aliasCover) *aliasRunner {
	r := &aliasRunner{t: t, path: path, number: number, mode: &aliasModes[number], cover: cover, layouts: make([]*aliasLayout, len(aliasShapes))}
	r.random.x, r.random.dy = gen.Normal(1, aliasRandom, 0.5, 1), gen.Normal(2, aliasRandom, 0.1, 1)
	r.random.residual = gen.Normal(3, aliasRandom, 0, 1)
	for i := range r.buffers {
		r.buffers[i] = make([]float32, aliasRandom)
	}
	r.want = [2][]float32{make([]float32, aliasRandom), make([]float32, aliasRandom)}
	return r
}

// aliasProblem has the input of a mode, and its results with all operands apart.
type aliasProblem struct {
	levels   aliasLevels
	shape    batchnorm.Shape
	act      batchnorm.Activation
	data     *aliasData
	layout   *aliasLayout
	in       aliasOperands // of forward, and the outputs of both passes with all apart
	backX    []float32     // x of backward
	turn     int           // counts the problems, for the factors that go round
	residual bool
}

// all runs all problems of the mode.
func (r *aliasRunner) all() {
	acts := aliasActivations
	if r.mode.acts != nil {
		acts = r.mode.acts
	}
	thin := aliasThin
	if !thorough() {
		thin = min(aliasThinPart, len(acts))
	}
	for a := range acts {
		passes := make(map[[2]int][2]aliasPass) // plans, by shape and way
		for d := range aliasKinds {
			for residual := range 2 {
				data := &aliasKinds[d]
				if data.needsResidual() && residual == 0 || data.same != aliasNone && data.with == aliasX && r.mode.fromY {
					continue
				}
				if (a+d+3*residual+r.number+int(r.path))%thin != 0 {
					continue
				}
				levels := aliasLevels{mode: r.number, act: a, data: d, residual: residual}
				levels.shape = (a + 4*d + 5*residual + 3*r.number) % len(aliasShapes)
				p := r.problem(levels, levels.hash())
				r.run(p, passes)
				if r.failed >= 10 {
					r.t.Fatal("too many differences")
				}
			}
		}
	}
}

// passesFor returns the passes of the mode, with plans that are made once.
func (r *aliasRunner) passesFor(p *aliasProblem, way int, kept map[[2]int][2]aliasPass) [2]aliasPass {
	key := [2]int{p.levels.shape, way}
	both, ok := kept[key]
	if !ok {
		both[0], both[1] = r.mode.passes(r.t, p.shape, append(aliasWays[way].options(r.path),
			batchnorm.WithEpsilon(0), batchnorm.WithActivation(p.act), batchnorm.WithSingleValue()))
		kept[key] = both
	}
	return both
}

// problem makes a problem.
func (r *aliasRunner) problem(levels aliasLevels, turn int) *aliasProblem {
	p := &aliasProblem{levels: levels, turn: turn, shape: aliasShapes[levels.shape], act: aliasActivations[levels.act],
		data: &aliasKinds[levels.data], residual: levels.residual == 1}
	if r.layouts[levels.shape] == nil {
		l := r.mode.layout(p.shape)
		r.layouts[levels.shape] = &l
	}
	l := r.layouts[levels.shape]
	p.layout = l
	in := &p.in
	usual := func(t []float32) []float32 { return slices.Clone(t[turn%(aliasRandom-l.n):][:l.n]) }
	in.x, in.dy = usual(r.random.x), usual(r.random.dy)
	if p.residual {
		in.residual = usual(r.random.residual)
	}
	in.gamma, in.beta = gen.Uniform(uint64(turn), l.channels, 0.5, 2), gen.Uniform(uint64(turn)+1, l.channels, -1, 1)
	for c := 1; c < l.channels; c += 3 {
		in.gamma[c] *= -1
	}
	in.mean, in.variance = gen.Uniform(uint64(turn)+2, l.channels, -1, 1), gen.Uniform(uint64(turn)+3, l.channels, 0.5, 2)

	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), math.MaxFloat32}
	groups := make([]aliasGroup, l.groups)
	for i, number := range l.group {
		if number >= 0 {
			groups[number].at = append(groups[number].at, i)
			continue
		}
		in.x[i], in.dy[i] = bad[i%3], bad[(i+1)%3]
		if p.residual {
			in.residual[i] = bad[(i+2)%3]
		}
	}
	for k := range groups {
		g := &groups[k]
		if len(g.at) == 0 {
			continue
		}
		c := k % l.channels
		g.number, g.x, g.dy, g.residual, g.mean, g.variance = k, in.x, in.dy, in.residual, &in.mean[c], &in.variance[c]
		if !r.mode.fromY {
			g.gamma = &in.gamma[c]
		}
		p.data.set(g)
	}
	return p
}

// run computes a problem with all apart, and then with every alias.
func (r *aliasRunner) run(p *aliasProblem, kept map[[2]int][2]aliasPass) {
	l, in := p.layout, &p.in
	float32s, float64s := func(n int) []float32 { return make([]float32, n) }, func(n int) []float64 { return make([]float64, n) }
	in.y, in.dx, in.dresidual, in.dgamma, in.dbeta = float32s(l.n), float32s(l.n), float32s(l.n), float32s(l.channels), float32s(l.channels)
	in.saved, in.invstd, in.r, in.d = float64s(l.groups), float64s(l.groups), float64s(l.channels), float64s(l.channels)
	in.runMean, in.runVar = slices.Clone(in.mean), slices.Clone(in.variance)
	passes := r.passesFor(p, 0, kept)
	p.expectNoError(r, passes[0](in))
	p.backX = in.x
	back := *in
	if r.mode.fromY {
		p.backX, back.x = in.y, in.y
	}
	back.y, back.runMean, back.runVar = nil, nil, nil
	p.expectNoError(r, passes[1](&back))
	for k, a := range aliases {
		if !thorough() && a.backward && r.mode.acts == nil && (k+p.turn/64)%aliasThinAliases != 0 {
			continue
		}
		if a.ofResidual() && !p.residual || p.data.meets(a) || r.mode.keeps(a, p.act, p.data) {
			continue
		}
		levels := p.levels
		levels.alias, levels.way, levels.sums = k, (k+p.turn)%len(aliasWays), (k+p.turn/len(aliasWays))%len(aliasSums)
		r.cover.note(levels)
		passes := r.passesFor(p, levels.way, kept)
		if problem := r.alias(p, a, levels, passes); problem != "" {
			if b := a.apart(); b != a && r.alias(p, b, levels, passes) != "" {
				problem += " (and with all apart it is wrong in this way, too)"
			}
			r.failed++
			r.t.Errorf("%s, shape %v, %v, %s, residual %t: %v, %v, dgamma wanted %t, dbeta wanted %t: %s", r.mode.name, p.shape, p.act, p.data.name,
				p.residual, a, aliasWays[levels.way], aliasSums[levels.sums].dgamma, aliasSums[levels.sums].dbeta, problem)
		}
	}
}

func (p *aliasProblem) expectNoError(r *aliasRunner, err error) {
	if err != nil {
		r.t.Fatalf("%s, shape %v, %v, %s, residual %t: %v", r.mode.name, p.shape, p.act, p.data.name, p.residual, err)
	}
}

// alias runs a pass with outputs in the places of an alias, and returns the first fault.
func (r *aliasRunner) alias(p *aliasProblem, a alias, levels aliasLevels, passes [2]aliasPass) string {
	n := p.layout.n
	x := p.in.x
	if a.backward {
		x = p.backX
	}
	// The inputs by their places, the slices that have them, and the outputs.
	inputs := [5][]float32{aliasDY: p.in.dy, aliasX: x, aliasResidual: p.in.residual}
	var at [5][]float32
	buffer := func(k int) []float32 { // some at a vector's beginning, some not
		offset := [...]int{0, 3, 8, 0}[(p.turn>>k+levels.alias)%4]
		return r.buffers[k][offset : offset+n : offset+n]
	}
	for place := aliasDY; place <= aliasResidual; place++ {
		if inputs[place] != nil {
			at[place] = buffer(int(place - aliasDY))
			copy(at[place], inputs[place])
		}
	}
	if same := p.data.same; same != aliasNone {
		at[same] = at[p.data.with]
	}
	const before = 12345
	output := func(place aliasPlace, k int) []float32 {
		switch place {
		case aliasNone:
			return nil
		case aliasApart:
			b := buffer(k)
			for i := range b {
				b[i] = before
			}
			return b
		}
		return at[place]
	}

	o := p.in
	o.x, o.dy, o.residual = at[aliasX], at[aliasDY], at[aliasResidual]
	var got, want results
	outputs := map[aliasPlace]bool{}
	if !a.backward {
		o.y = output(a.y, 3)
		o.saved, o.invstd = make([]float64, p.layout.groups), make([]float64, p.layout.groups)
		o.r, o.d = make([]float64, p.layout.channels), make([]float64, p.layout.channels)
		o.runMean, o.runVar = slices.Clone(p.in.mean), slices.Clone(p.in.variance)
		if err := passes[0](&o); err != nil {
			return err.Error()
		}
		got = results{y: o.y, mean: slices.Concat(o.saved, o.r), invstd: slices.Concat(o.invstd, o.d), runMean: o.runMean, runVar: o.runVar}
		want = results{y: p.in.y, mean: slices.Concat(p.in.saved, p.in.r), invstd: slices.Concat(p.in.invstd, p.in.d),
			runMean: p.in.runMean, runVar: p.in.runVar}
		want.y = p.padded(r.want[0], want.y, inputs[:], a.y, before)
		outputs[a.y] = true
	} else {
		o.y, o.runMean, o.runVar = nil, nil, nil
		o.dx, o.dresidual, o.dgamma, o.dbeta = output(a.dx, 4), output(a.dresidual, 5), nil, nil
		sums := aliasSums[levels.sums]
		if sums.dgamma {
			o.dgamma, want.dgamma = make([]float32, p.layout.channels), p.in.dgamma
		}
		if sums.dbeta {
			o.dbeta, want.dbeta = make([]float32, p.layout.channels), p.in.dbeta
		}
		if err := passes[1](&o); err != nil {
			return err.Error()
		}
		got = results{dx: o.dx, dres: o.dresidual, dgamma: o.dgamma, dbeta: o.dbeta}
		if o.dx != nil {
			want.dx = p.padded(r.want[0], p.in.dx, inputs[:], a.dx, before)
		}
		if o.dresidual != nil {
			want.dres = p.padded(r.want[1], p.in.dresidual, inputs[:], a.dresidual, before)
		}
		outputs[a.dx], outputs[a.dresidual] = true, true
	}
	if d := aliasCompare(&got, &want); d != "" {
		return d
	}
	if same := p.data.same; outputs[same] || outputs[p.data.with] {
		outputs[same], outputs[p.data.with] = true, true
	}
	for place := aliasDY; place <= aliasResidual; place++ {
		if at[place] != nil && !outputs[place] {
			if d := aliasDifference(at[place], inputs[place]); d != "" {
				return fmt.Sprintf("the input %v has changed: it%s", place, d)
			}
		}
	}
	return ""
}

// aliasCompare is results.compare, quick where there is no difference.
func aliasCompare(got, want *results) string {
	if aliasSame(got.y, want.y) && aliasSame(got.dx, want.dx) && aliasSame(got.dres, want.dres) {
		g, w := *got, *want
		g.y, g.dx, g.dres, w.y, w.dx, w.dres = nil, nil, nil, nil, nil, nil
		return g.compare(w)
	}
	return got.compare(*want)
}

func aliasDifference(got, want []float32) string {
	if aliasSame(got, want) {
		return ""
	}
	return difference(got, want)
}

// aliasSame reports whether all bits are the same, those of NaN among them.
func aliasSame(a, b []float32) bool {
	if len(a) != len(b) {
		return false
	}
	for i, v := range a {
		if math.Float32bits(v) != math.Float32bits(b[i]) {
			return false
		}
	}
	return true
}

// padded returns the expected output: where padding is kept, it has the earlier contents of
// its place.
func (p *aliasProblem) padded(buffer, apart []float32, inputs [][]float32, place aliasPlace, before float32) []float32 {
	if !p.layout.keepPadding {
		return apart
	}
	want := buffer[:len(apart)]
	copy(want, apart)
	for i, group := range p.layout.group {
		if group >= 0 {
			continue
		}
		if want[i] = before; place != aliasApart {
			want[i] = inputs[place][i]
		}
	}
	return want
}

// ---- which levels have met

// aliasLevels is a run: which level of each factor it has.
type aliasLevels struct{ mode, act, data, residual, shape, alias, way, sums int }

const aliasFactors = 8

// hash returns a number of 16 bits, so that factors that go round do not keep step with the
// others.
func (l aliasLevels) hash() int {
	h := uint32(17)
	for _, v := range l.list() {
		h = (h ^ uint32(v)) * 0x9e3779b1
		h ^= h >> 15
	}
	return int(h >> 16)
}

func (l aliasLevels) list() [aliasFactors]int {
	return [aliasFactors]int{l.mode, l.act, l.data, l.residual, l.shape, l.alias, l.way, l.sums}
}

// aliasCover is which pairs of levels of two factors a test has had.
type aliasCover struct {
	mu    sync.Mutex
	met   map[[4]int]bool
	runs  int
	modes int // that have ended
}

func newAliasCover() *aliasCover { return &aliasCover{met: make(map[[4]int]bool)} }

func (c *aliasCover) note(levels aliasLevels) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs++
	l := levels.list()
	for f := range l {
		for g := range f {
			c.met[[4]int{g, l[g], f, l[f]}] = true
		}
	}
}

func (c *aliasCover) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.modes++
}

// check fails if two levels that go together have not met.
func (c *aliasCover) check(t *testing.T) {
	t.Helper()
	factors := [aliasFactors]string{"mode", "activation", "data", "residual", "shape", "alias", "way", "sums"}
	counts := [aliasFactors]int{len(aliasModes), len(aliasActivations), len(aliasKinds), 2, len(aliasShapes), len(aliases),
		len(aliasWays), len(aliasSums)}
	pairs, holes := 0, 0
	for f := range factors {
		for g := range f {
			for i := range counts[g] {
				for j := range counts[f] {
					if !aliasTogether(g, i, f, j) {
						continue
					}
					if pairs++; !c.met[[4]int{g, i, f, j}] {
						if holes++; holes <= 10 {
							t.Errorf("no run had %s %d with %s %d: the rotation has a hole", factors[g], i, factors[f], j)
						}
					}
				}
			}
		}
	}
	t.Logf("%d runs, with %d of %d pairs of levels", c.runs, pairs-holes, pairs)
}

// aliasTogether reports whether two levels go together; g is before f.
func aliasTogether(g, i, f, j int) bool {
	const mode, act, data, residual, alias = 0, 1, 2, 3, 5
	switch {
	case g == mode && f == act:
		return aliasModes[i].acts == nil || j < len(aliasInvertible)
	case g == mode && f == data:
		return !aliasModes[i].fromY || aliasKinds[j].same == aliasNone || aliasKinds[j].with != aliasX
	case g == mode && f == alias:
		return !aliasModes[i].keeps(aliases[j], batchnorm.Identity, &aliasKinds[0])
	case g == data && f == alias:
		return !aliasKinds[i].meets(aliases[j])
	case g == data && f == residual:
		return j == 1 || !aliasKinds[i].needsResidual()
	case g == residual && f == alias:
		return i == 1 || !aliases[j].ofResidual()
	}
	return true
}
