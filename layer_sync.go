package batchnorm

// Synchronize makes the layer one of a group: in training mode Forward and
// Backward use the statistics and the sums of the whole batch, over all ranks, as
// [SyncPlan] does. All ranks synchronize their layers in the same order, and call
// them in the same order. Layers that begin with equal parameters keep equal bits on
// every rank: DGamma and DBeta are those of the whole batch already.
//
// Evaluation mode and [Layer.Inference] are not synchronized, since they use the
// running statistics. A batch is counted in BatchesTracked when any rank has values.
// [Layer.Precise] gathers the values of this rank alone. A [Layer.Clone] belongs to no
// group. A nil group ends the synchronization.
func (l *Layer) Synchronize(g *SyncGroup) error {
	if err := l.ready(); err != nil {
		return err
	}
	l.kept = keptForward{}
	if g == nil {
		l.sync = nil
		return nil
	}
	if err := g.ready(); err != nil {
		return err
	}
	l.sync = newSynced(g, l.channels)
	return nil
}

// train is a forward pass in training mode. It returns the number of values per
// channel, of all ranks together.
func (l *Layer) train(p *Plan, a *ForwardArgs) (n int, err error) {
	if l.sync != nil {
		return l.sync.forward(p, a)
	}
	n, _ = a.Mask.count(p.shape) // which Forward checks
	return n, p.Forward(*a)
}

func (l *Layer) trainBack(p *Plan, a *BackwardArgs) error {
	if l.sync != nil {
		return l.sync.backward(p, a)
	}
	return p.Backward(*a)
}

// refuse returns an error that comes before a synchronized pass, after telling the
// other ranks, so that none waits for this one.
func (l *Layer) refuse(err error) error {
	if l.sync == nil || l.evaluating && (l.RunningMean != nil || l.RunningVar != nil) {
		return err
	}
	return l.sync.refuse(err)
}
