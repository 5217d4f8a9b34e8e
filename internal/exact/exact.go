// Package exact adds float64 without rounding, by a small superaccumulator (Neal 2015,
// arXiv 1505.05571).
package exact

import (
	"math"
	"math/big"
)

// A Sum is a sum of float64. Digit k weighs 2^(32*k - Scale). Digits may have either sign,
// and exceed 32 bits until the next carry.
type Sum struct {
	digits  [numDigits]int64
	special float64 // sum of the values that are not finite; 0: none
	room    int32   // additions until digits may overflow
}

const (
	// Scale is the number of binary digits after the point. The least float64 is 2^-1074.
	Scale     = 1120
	numDigits = (Scale + 1024 + 64) / 32
)

// Add adds a value.
func (s *Sum) Add(v float64) {
	if v-v != 0 {
		s.special += v
		return
	}
	bits := math.Float64bits(v)
	mantissa, exponent := bits&(1<<52-1), int(bits>>52&0x7ff)
	if exponent != 0 {
		mantissa |= 1 << 52
	} else {
		exponent = 1
	}
	if s.room == 0 {
		s.carry()
	}
	s.room--
	at := exponent - 1075 + Scale // of the lowest bit of the mantissa
	k, shift := at/32, at%32
	low, high := mantissa<<shift, mantissa>>(64-shift)
	d := (*[3]int64)(s.digits[k:])
	if v < 0 {
		d[0] -= int64(low & math.MaxUint32)
		d[1] -= int64(low >> 32)
		d[2] -= int64(high)
	} else {
		d[0] += int64(low & math.MaxUint32)
		d[1] += int64(low >> 32)
		d[2] += int64(high)
	}
}

// carry makes all digits but the last 32 bits long.
func (s *Sum) carry() {
	carry := int64(0)
	for k := range s.digits[:numDigits-1] {
		d := s.digits[k] + carry
		carry = d >> 32
		s.digits[k] = d & math.MaxUint32
	}
	s.digits[numDigits-1] += carry
	s.room = 1 << 30
}

// Merge adds another sum.
func (s *Sum) Merge(other *Sum) {
	s.carry()
	o := *other
	o.carry()
	for k, d := range o.digits {
		s.digits[k] += d
	}
	s.special += o.special
	s.carry()
}

// Special returns the sum of the values that are not finite: an infinity or NaN, or 0
// without such a value.
func (s *Sum) Special() float64 { return s.special }

// Int returns the sum of the finite values times 2^Scale.
func (s *Sum) Int() *big.Int {
	sum, digit := new(big.Int), new(big.Int)
	for k := numDigits - 1; k >= 0; k-- {
		sum.Lsh(sum, 32).Add(sum, digit.SetInt64(s.digits[k]))
	}
	return sum
}
