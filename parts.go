package batchnorm

import "math"

// The steps of a pass one by one, for batches whose parts lie in several places
// (synchronized batch norm) and for callers with a schedule of their own.

// Moments are the count, the mean and the sum of squared deviations from the
// mean of every channel over a part of a batch. Moments of parts can be merged.
type Moments struct {
	Count    int       // values per channel
	Mean, M2 []float64 // by channel; meaningless if Count is 0
}

// MomentsArgs are the arguments of [Plan.Moments].
type MomentsArgs struct {
	X    []float32 // a part of the batch, in the shape of the plan
	Mask Mask      // which positions are data; zero value: all

	Moments *Moments // output; its slices have Shape.Channels elements
}

// Moments takes the moments of a part of a batch. The part may have any size; one
// without values gets Count 0.
//
// For a whole batch Moments, [Plan.Statistics] and [Plan.Normalize] give the bits of
// Forward.
func (p *Plan) Moments(a MomentsArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	if a.Moments == nil {
		return fail(ErrMissing, "moments is missing, the output for shape %v", p.shape)
	}
	out := a.Moments
	k := p.shape.checker()
	k.tensor("x", a.X).must()
	k.channels64("mean", out.Mean).must().written()
	k.channels64("m2", out.M2).must().written()
	if err := k.check(); err != nil {
		return err
	}
	n, err := a.Mask.count(p.shape)
	if err != nil {
		return err
	}
	out.Count = n
	if n == 0 {
		clearCut(out.Mean)
		clearCut(out.M2)
		return nil
	}
	w := p.acquire(&a.Mask, n, false)
	w.forwardCall(p.act, &operands{x: a.X})
	w.m2 = out.M2
	w.run(takeSums)
	copyCut(out.Mean, w.channels.mean)
	p.release(w)
	return nil
}

// MergeMoments sets dst to the moments of all parts together (Chan, Golub and
// LeVeque 1979). Parts are merged in the order of the slice: the result has the same
// bits whichever part was ready first.
//
// Sums over parts are rounded differently from sums over the whole batch: for data
// N(mean, 1) the mean comes out within 1e-6 standard deviations of the whole batch's,
// and invstd within a relative error of 1e-6. With parts of one segment each (see
// below), the bits are those of the whole batch.
//
// The slices of dst may be those of one of the parts, Mean for Mean and M2 for
// M2, and share no memory with any other. All have the same length.
//
// The package cuts a batch into segments and merges their moments in order. In batches
// of up to 64 segments, a segment has 65536/Inner rows of Outer if Inner is a power of
// two from 8 to 16384, and 128*ceil(512/Channels) rows if Inner is 1 and Channels is
// 128 or more.
func MergeMoments(dst *Moments, parts []Moments) error {
	if dst == nil {
		return fail(ErrMissing, "dst is missing")
	}
	names := [2]mergedName{{"mean of dst", "mean of a part"}, {"m2 of dst", "m2 of a part"}}
	if err := mergeable(&names, pair{dst.Mean, dst.M2}, len(parts), func(i int) (pair, int) {
		return pair{parts[i].Mean, parts[i].M2}, parts[i].Count
	}); err != nil {
		return err
	}
	count := 0
	for i := range parts {
		count += parts[i].Count
	}
	for c := range dst.Mean {
		var m moment
		for i := range parts {
			if p := &parts[i]; p.Count > 0 {
				m.merge(float64(p.Count), p.Mean[c], p.M2[c])
			}
		}
		dst.Mean[c], dst.M2[c] = m.mean, m.m2
	}
	dst.Count = count
	return nil
}

// StatisticsArgs are the arguments of [Plan.Statistics].
type StatisticsArgs struct {
	Moments Moments // of the whole batch

	Mean   []float64 // output: as Forward saves it; nil: not wanted
	InvStd []float64 // output: as Forward saves it; nil: not wanted

	BatchMean []float32 // output: as Forward saves it; nil: not wanted
	BatchVar  []float32 // output: as Forward saves it; nil: not wanted

	// As in [ForwardArgs].
	RunningMean, RunningVar []float32
	Momentum                Momentum // zero value: the plan's
}

// Statistics computes mean and invstd, for [Plan.Normalize] and the backward pass,
// from the moments of a whole batch, and updates the running statistics. It does so
// with the bits of [Plan.Forward], also for an empty batch. It uses the plan's options
// and number of channels; otherwise its shape may differ from the batch's.
//
// Mean may be Moments.Mean, and InvStd may be Moments.M2.
func (p *Plan) Statistics(a StatisticsArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	mean, m2 := k.channels64("mean of the moments", a.Moments.Mean).must(), k.channels64("m2 of the moments", a.Moments.M2).must()
	k.channels64("mean", a.Mean).written(mean)
	k.channels64("invstd", a.InvStd).written(m2)
	k.channels("batch mean", a.BatchMean).written()
	k.channels("batch variance", a.BatchVar).written()
	k.channels("running mean", a.RunningMean).written()
	k.channels("running variance", a.RunningVar).written()
	if err := k.check(); err != nil {
		return err
	}
	if err := a.Momentum.valid(); err != nil {
		return err
	}
	n := a.Moments.Count
	if n == 0 { // as Forward of an empty batch
		o := operands{mean: a.Mean, invstd: a.InvStd, batchMean: a.BatchMean, batchVar: a.BatchVar}
		o.noStatistics()
		return nil
	}
	if n < p.fewest() {
		return fail(ErrTooFewValues, "the moments are of %d values per channel, training needs at least %d", n, p.fewest())
	}
	track := a.Momentum.or(p.momentum)
	correction := p.variance.correction(n)
	for c := range p.shape.Channels {
		mean, variance := a.Moments.Mean[c], populationVariance(a.Moments.M2[c], float64(n))
		if a.Mean != nil {
			a.Mean[c] = mean
		}
		if a.InvStd != nil {
			a.InvStd[c] = invStd(variance, p.epsilon)
		}
		if a.BatchMean != nil {
			a.BatchMean[c] = float32(mean)
		}
		if a.BatchVar != nil {
			a.BatchVar[c] = float32(variance)
		}
		if a.RunningMean != nil {
			a.RunningMean[c] = track.update(a.RunningMean[c], mean)
		}
		if a.RunningVar != nil {
			a.RunningVar[c] = track.update(a.RunningVar[c], variance*correction)
		}
	}
	return nil
}

// NormalizeArgs are the arguments of [Plan.Normalize]. Lengths and aliasing are
// as in [ForwardArgs].
type NormalizeArgs struct {
	X        []float32 // input
	Residual []float32 // added before the activation; nil: none
	Gamma    []float32 // scale per channel; nil: 1
	Beta     []float32 // shift per channel; nil: 0
	Mask     Mask      // which positions are data; zero value: all
	Mean     []float64 // mean per channel
	InvStd   []float64 // 1/sqrt(variance + epsilon) per channel

	Y []float32 // output
}

// Normalize normalizes by given statistics:
//
//	y = act((x - mean)*invstd*gamma + beta + residual)
func (p *Plan) Normalize(a NormalizeArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	x, residual := k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("y", a.Y).must().written(x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels64("mean", a.Mean).must()
	k.channels64("invstd", a.InvStd).must()
	if err := k.check(); err != nil {
		return err
	}
	n, err := a.Mask.count(p.shape)
	if err != nil {
		return err
	}
	if n == 0 {
		p.clearAll(&a.Mask, a.Y)
		return nil
	}
	w := p.acquire(&a.Mask, n, false)
	w.forwardCall(p.act, &operands{x: a.X, residual: a.Residual, y: a.Y, gamma: a.Gamma, beta: a.Beta})
	w.setSaved(a.Mean, a.InvStd)
	w.run(applyThem)
	p.release(w)
	return nil
}

// GradSums are the sums of the backward pass over a part of a batch: of
// g = dy*act'(z), and of g times the deviation of x from the mean of the whole batch,
// rounded to float32. The sums of parts add up to those of the whole batch.
type GradSums struct {
	Count int       // values per channel
	G     []float64 // sum of g, by channel
	GD    []float64 // sum of g*(x - float32(mean)), by channel
}

// GradSumsArgs are the arguments of [Plan.GradSums].
type GradSumsArgs struct {
	DY       []float32 // gradient of the loss by y
	X        []float32 // input of the forward pass
	Residual []float32 // residual of the forward pass; read only when there is an activation
	Gamma    []float32 // as in the forward pass
	Beta     []float32 // as in the forward pass; read only when there is an activation
	Mean     []float64 // mean of the whole batch
	InvStd   []float64 // of the whole batch
	Mask     Mask      // as in the forward pass

	Sums *GradSums // output; its slices have Shape.Channels elements
}

// GradSums takes the sums of the backward pass over a part of a batch. The part
// may have any size; one without values gets Count 0 and sums 0.
//
// For a whole batch GradSums and [Plan.InputGrad] give the bits of Backward.
func (p *Plan) GradSums(a GradSumsArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	if a.Sums == nil {
		return fail(ErrMissing, "sums is missing, the output for shape %v", p.shape)
	}
	out := a.Sums
	k := p.shape.checker()
	k.tensor("dy", a.DY).must()
	k.tensor("x", a.X).must()
	k.tensor("residual", a.Residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels64("mean", a.Mean).must()
	k.channels64("invstd", a.InvStd).must()
	k.channels64("g", out.G).must().written()
	k.channels64("gd", out.GD).must().written()
	if err := k.check(); err != nil {
		return err
	}
	n, err := a.Mask.count(p.shape)
	if err != nil {
		return err
	}
	out.Count = n
	if n == 0 {
		clearCut(out.G)
		clearCut(out.GD)
		return nil
	}
	w := p.acquire(&a.Mask, n, false)
	w.backwardCall(p.act, &operands{dy: a.DY, x: a.X, residual: a.Residual, gamma: a.Gamma, beta: a.Beta})
	w.sumG, w.sumGD = out.G, out.GD
	w.setSaved(a.Mean, a.InvStd)
	w.run(takeSums)
	p.release(w)
	return nil
}

// MergeGradSums sets dst to the sums over all parts, added in the order of the slice:
// the result has the same bits whichever part was ready first. The rules of
// [MergeMoments] for segments and for memory hold, with G and GD in the places of Mean
// and M2.
func MergeGradSums(dst *GradSums, parts []GradSums) error {
	if dst == nil {
		return fail(ErrMissing, "dst is missing")
	}
	names := [2]mergedName{{"g of dst", "g of a part"}, {"gd of dst", "gd of a part"}}
	if err := mergeable(&names, pair{dst.G, dst.GD}, len(parts), func(i int) (pair, int) {
		return pair{parts[i].G, parts[i].GD}, parts[i].Count
	}); err != nil {
		return err
	}
	count := 0
	for i := range parts {
		count += parts[i].Count
	}
	for c := range dst.G {
		g, gd := 0.0, 0.0
		for i := range parts {
			g += parts[i].G[c]
			gd += parts[i].GD[c]
		}
		dst.G[c], dst.GD[c] = g, gd
	}
	dst.Count = count
	return nil
}

// InputGradArgs are the arguments of [Plan.InputGrad]. Lengths and aliasing are
// as in [BackwardArgs].
type InputGradArgs struct {
	DY       []float32 // gradient of the loss by y
	X        []float32 // input of the forward pass
	Residual []float32 // residual of the forward pass; read only when there is an activation
	Gamma    []float32 // as in the forward pass
	Beta     []float32 // as in the forward pass; read only when there is an activation
	Mean     []float64 // mean of the whole batch
	InvStd   []float64 // of the whole batch
	Mask     Mask      // as in the forward pass
	Sums     GradSums  // of the whole batch

	DX        []float32 // output: gradient by x; nil: not wanted
	DResidual []float32 // output: gradient by the residual; nil: not wanted
	DGamma    []float32 // output: gradient by gamma, of the whole batch; nil: not wanted
	DBeta     []float32 // output: gradient by beta, of the whole batch; nil: not wanted
}

// InputGrad computes the gradients of [Plan.Backward] for a part of a batch,
// given the sums over the whole.
func (p *Plan) InputGrad(a InputGradArgs) error {
	if err := p.ready(); err != nil {
		return err
	}
	k := p.shape.checker()
	dy, x, residual := k.tensor("dy", a.DY).must(), k.tensor("x", a.X).must(), k.tensor("residual", a.Residual)
	k.tensor("dx", a.DX).written(dy, x, residual)
	k.tensor("dresidual", a.DResidual).written(dy, x, residual)
	k.channels("gamma", a.Gamma)
	k.channels("beta", a.Beta)
	k.channels64("mean", a.Mean).must()
	k.channels64("invstd", a.InvStd).must()
	k.channels("dgamma", a.DGamma).written()
	k.channels("dbeta", a.DBeta).written()
	k.channels64("g of the sums", a.Sums.G).must()
	k.channels64("gd of the sums", a.Sums.GD).must()
	if err := k.check(); err != nil {
		return err
	}
	n, err := a.Mask.count(p.shape)
	if err != nil {
		return err
	}
	total := a.Sums.Count
	if total != 0 && total < p.fewest() {
		return fail(ErrTooFewValues, "the sums are over %d values per channel, training needs at least %d", total, p.fewest())
	}
	if total < n {
		return fail(ErrLength, "the sums are over %d values per channel, this part alone has %d", total, n)
	}
	if total == 0 { // as Backward of an empty batch
		p.clearAll(&a.Mask, a.DX)
		p.clearAll(&a.Mask, a.DResidual)
		clearCut(a.DGamma)
		clearCut(a.DBeta)
		return nil
	}
	o := operands{dy: a.DY, x: a.X, residual: a.Residual, y: a.DX, dresidual: a.DResidual, gamma: a.Gamma, beta: a.Beta,
		dgamma: a.DGamma, dbeta: a.DBeta}
	if n == 0 { // only the gradients by gamma and beta are left
		p.clearAll(&a.Mask, a.DX)
		p.clearAll(&a.Mask, a.DResidual)
		o.y, o.dresidual = nil, nil
		a.Mask, n = Mask{}, p.shape.PerChannel()
	}
	w := p.acquire(&a.Mask, n, false)
	w.backwardCall(p.act, &o)
	w.setSaved(a.Mean, a.InvStd)
	w.setSums(&a.Sums)
	if o.y != nil || o.dresidual != nil {
		w.run(applyThem)
	}
	p.release(w)
	return nil
}

// setSums sets the constants of dx from the sums over a whole batch.
func (w *workspace) setSums(sums *GradSums) {
	w.values = float64(sums.Count)
	copyCut(w.channels.sumA, sums.G)
	copyCut(w.channels.sumB, sums.GD)
	n := w.geo.channels
	w.sample(applyThem)
	w.setGrads(0, n, false, totals{a: w.channels.sumA, b: w.channels.sumB})
	w.spread(0, n, fieldK1, fieldK2)
}

// pair holds the two slices of Moments or GradSums.
type pair [2][]float64

// mergedName holds the names of one of the two slices in messages.
type mergedName struct{ dst, part string }

// mergeable validates the arguments of a merge.
func mergeable(names *[2]mergedName, dst pair, parts int, part func(i int) (pair, int)) error {
	if len(dst[0]) != len(dst[1]) {
		return fail(ErrLength, "%s has %d elements, %s has %d", names[0].dst, len(dst[0]), names[1].dst, len(dst[1]))
	}
	var out [2]operand
	for i := range out {
		out[i] = float64s(names[i].dst, dst[i])
	}
	if err := out[1].apart(&out[0], false); err != nil {
		return err
	}
	total := 0
	for i := range parts {
		p, count := part(i)
		for j, s := range p {
			if len(s) != len(dst[0]) {
				return fail(ErrLength, "%s, part %d, has %d elements, dst has %d channels", names[j].part, i, len(s), len(dst[0]))
			}
			o := float64s(names[j].part, s)
			for k := range out {
				if err := out[k].apart(&o, j == k); err != nil {
					return err
				}
			}
		}
		if count < 0 || count > math.MaxInt-total {
			return fail(ErrLength, "part %d counts %d values, after %d before it", i, count, total)
		}
		total += count
	}
	return nil
}
