package batchnorm

// Synchronize makes the layer one of a group: in training mode Forward and
// Backward use the statistics and the sums of all ranks' parts of the batch, as
// [SyncPlan] does. All ranks synchronize their layers in the same order, and call
// them in the same order. With equal parameters at the beginning, the layers stay
// the same on every rank, to the bit: DGamma and DBeta are those of the whole
// batch already.
//
// What uses the running statistics, which is evaluation mode and
// [Layer.Inference], is not synchronized. A batch is counted in BatchesTracked
// when any rank's part has values. [Layer.Precise] gathers those of this rank. A [Layer.Clone] belongs to no group. A group
// of nil ends the synchronization.
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

// train is a forward pass in training mode. It returns how many values per channel
// there are, on all ranks together.
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

// refuse tells the other ranks of an error that comes before a synchronized pass,
// so that none waits for this one, and returns it.
func (l *Layer) refuse(err error) error {
	if l.sync == nil || l.evaluating && (l.RunningMean != nil || l.RunningVar != nil) {
		return err
	}
	return l.sync.refuse(err)
}
