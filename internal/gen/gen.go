// Package gen makes test data that has the same bits on every machine: all
// randomness is integer, and no product is left for the compiler to fuse with
// a sum.
package gen

import "math"

// Uniform returns n values of [lo, hi); rounding to float32 may reach hi.
func Uniform(seed uint64, n int, lo, hi float64) []float32 {
	r := source(seed)
	return fill(n, func() float32 {
		return float32(lo + float64(r.unit()*(hi-lo)))
	})
}

// Normal returns n values of nearly the normal distribution; none is further
// than 6 standard deviations from the mean.
func Normal(seed uint64, n int, mean, std float64) []float32 {
	r := source(seed)
	return fill(n, func() float32 {
		return float32(mean + float64(r.normal()*std))
	})
}

// Special returns n values. Half are ordinary (between -2 and 2), and half are special:
// NaN, infinities, zeros of both signs, subnormals, and the ends of the range.
func Special(seed uint64, n int) []float32 {
	r := source(seed)
	return fill(n, func() float32 {
		const kinds = 8
		pick := r.next()
		bits := uint32(pick >> 32)
		sign := bits & (1 << 31)
		switch pick % (2 * kinds) {
		case 0:
			return math.Float32frombits(sign | 0x7fc00000) // NaN
		case 1:
			return math.Float32frombits(sign | 0x7f800000) // infinity
		case 2, 3:
			return math.Float32frombits(sign) // zero
		case 4:
			return math.Float32frombits(sign | 1) // smallest subnormal
		case 5:
			return math.Float32frombits(bits & 0x807fffff) // any subnormal
		case 6:
			return math.Float32frombits(sign | 0x00800000) // smallest normal
		case 7:
			return math.Float32frombits(sign | 0x7f7fffff) // largest
		default:
			return float32(float64(4*r.unit()) - 2)
		}
	})
}

func fill(n int, value func() float32) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = value()
	}
	return s
}

// source is the generator splitmix64.
type source uint64

func (s *source) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unit returns a multiple of 2^-53 in [0, 1).
func (s *source) unit() float64 { return float64(s.next()>>11) * 0x1p-53 }

// normal returns the sum of twelve uniform values, which has variance 1, less
// its mean. The sum is one of integers, so that nothing is rounded.
func (s *source) normal() float64 {
	var sum int64
	for range 6 {
		u := s.next()
		sum += int64(u>>32) + int64(u&math.MaxUint32)
	}
	return float64(sum-6*math.MaxUint32) * 0x1p-32
}
