package batchnorm

// PlannedShapes returns the shapes that the layer has plans for, the last used
// first.
func (l *Layer) PlannedShapes() []Shape { return l.plans.shapes() }

// Shapes returns the shapes that there are plans for, the last used first.
func (p *Plans) Shapes() []Shape { return p.shapes() }

// Keeps returns the slices to which the layer keeps references for Backward.
func (l *Layer) Keeps() (x, residual []float32) { return l.kept.x, l.kept.residual }
