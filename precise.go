package batchnorm

import (
	"math"
	"math/big"

	"github.com/fusedbn/batchnorm/internal/exact"
)

// Precise gathers the statistics of many batches, to replace the running statistics
// after training: "precise batch norm" (Wu and Johnson 2021, arXiv 2105.07576), and
// update_bn of weight averaging. It takes the [Moments] of batches or parts of batches,
// and gives the moments of all their values together.
//
// It adds without rounding, so the result has the same bits in any order of the
// batches, and with any number of goroutines. A Precise is for one goroutine at a time;
// give each its own, and join them by [Precise.Merge].
//
// It holds about a kilobyte for each channel.
type Precise struct {
	count    int
	channels []preciseChannel
}

// preciseChannel holds the sums of all values of a channel and of their squares.
type preciseChannel struct{ sum, squares exact.Sum }

// NewPrecise returns an empty Precise for this number of channels.
func NewPrecise(channels int) (*Precise, error) {
	if channels < 1 {
		return nil, fail(ErrShape, "there are %d channels, must be at least 1", channels)
	}
	return &Precise{channels: make([]preciseChannel, channels)}, nil
}

func (p *Precise) ready() error {
	if p == nil || len(p.channels) == 0 {
		return fail(ErrMissing, "precise is nil or was not made by NewPrecise")
	}
	return nil
}

// fits returns an error if the number of channels differs.
func (p *Precise) fits(channels int) error {
	if err := p.ready(); err != nil {
		return err
	}
	if n := len(p.channels); n != channels {
		return fail(ErrShape, "precise has %d channels, the layer has %d", n, channels)
	}
	return nil
}

// Count returns the number of values per channel.
func (p *Precise) Count() int {
	if p == nil {
		return 0
	}
	return p.count
}

// Reset forgets all batches.
func (p *Precise) Reset() {
	if p != nil {
		p.count = 0
		clear(p.channels)
	}
}

// Add takes in the moments of a batch, or of a part of one. A Count of 0 changes
// nothing. A NaN or an infinity stays, in its channel.
func (p *Precise) Add(m Moments) error {
	if err := p.ready(); err != nil {
		return err
	}
	n := len(p.channels)
	for _, s := range []sized{{float64s("mean of the moments", m.Mean), n, true}, {float64s("m2 of the moments", m.M2), n, true}} {
		if err := s.check("there are %d channels", n); err != nil {
			return err
		}
	}
	if err := p.grow(m.Count); err != nil || m.Count == 0 {
		return err
	}
	count := float64(m.Count)
	for c := range p.channels {
		ch, mean := &p.channels[c], m.Mean[c]
		total, rest := exactProduct(count, mean)
		ch.sum.Add(total)
		ch.sum.Add(rest)
		// The sum of squares is m2 + count*mean^2, where mean^2 = high + low.
		high, low := exactProduct(mean, mean)
		total, rest = exactProduct(count, high)
		ch.squares.Add(m.M2[c])
		ch.squares.Add(total)
		ch.squares.Add(rest)
		ch.squares.Add(float64(count * low))
	}
	return nil
}

// exactProduct returns x*y rounded, and the rounding error: x*y - product, or 0 where
// the product is not finite.
//
//go:noinline
func exactProduct(x, y float64) (product, rest float64) {
	product = float64(x * y)
	if product-product != 0 {
		return product, 0
	}
	return product, math.FMA(x, y, -product)
}

// grow adds to the count of values.
func (p *Precise) grow(count int) error {
	if count < 0 || count > math.MaxInt-p.count {
		return fail(ErrLength, "the moments are of %d values, after %d before them", count, p.count)
	}
	p.count += count
	return nil
}

// Merge adds the statistics that another Precise has gathered.
func (p *Precise) Merge(other *Precise) error {
	if err := p.ready(); err != nil {
		return err
	}
	if err := other.ready(); err != nil {
		return err
	}
	if len(other.channels) != len(p.channels) {
		return fail(ErrShape, "there are %d channels, the other has %d", len(p.channels), len(other.channels))
	}
	if err := p.grow(other.count); err != nil {
		return err
	}
	for c := range p.channels {
		p.channels[c].sum.Merge(&other.channels[c].sum)
		p.channels[c].squares.Merge(&other.channels[c].squares)
	}
	return nil
}

// Moments writes the moments of all values so far. [Plan.Statistics] with the momentum
// NewWeight(1) turns them into running statistics, and [Layer.SetRunning] sets those of
// a layer. The slices of dst have an element per channel and are apart.
func (p *Precise) Moments(dst *Moments) error {
	if err := p.ready(); err != nil {
		return err
	}
	if dst == nil {
		return fail(ErrMissing, "dst is missing")
	}
	n := len(p.channels)
	ops := [...]operand{float64s("mean of dst", dst.Mean).out(0), float64s("m2 of dst", dst.M2).out(0)}
	for _, o := range ops {
		if err := (sized{o, n, true}).check("there are %d channels", n); err != nil {
			return err
		}
	}
	if err := apart(ops[:]); err != nil {
		return err
	}
	dst.Count = p.count
	if p.count == 0 {
		clear(dst.Mean)
		clear(dst.M2)
		return nil
	}
	for c := range p.channels {
		dst.Mean[c], dst.M2[c] = p.channels[c].moment(p.count)
	}
	return nil
}

// moment returns mean and m2 of n values.
func (c *preciseChannel) moment(n int) (mean, m2 float64) {
	if special := c.sum.Special(); special != 0 { // NaN or infinite
		return special, math.NaN()
	}
	count := new(big.Float).SetInt64(int64(n))
	quotient := func(numerator *big.Int, exponent int) float64 {
		const precision = 128
		q := new(big.Float).SetPrec(precision).SetInt(numerator)
		q.Quo(q, count)
		v, _ := q.SetMantExp(q, exponent).Float64()
		return v
	}
	sum, squares := c.sum.Int(), c.squares.Int()
	mean = quotient(sum, -exact.Scale)
	if c.squares.Special() != 0 {
		return mean, math.NaN()
	}
	// m2 = squares - sum^2/n
	squares.Mul(squares, big.NewInt(int64(n))).Lsh(squares, exact.Scale)
	squares.Sub(squares, sum.Mul(sum, sum))
	return mean, max(quotient(squares, -2*exact.Scale), 0)
}
