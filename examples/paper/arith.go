package main

import "math"

// The arithmetic that the program does in Go rounds every product before it is added, so
// that no compiler fuses them: the bits are the same on every machine.

// exp is e^x in float64, to some units in the last place. The bits of math.Exp depend on
// whether the processor of an amd64 machine has fused multiply-add.
func exp(x float64) float64 {
	const (
		ln2Hi = 0x1.62e42feep-1 // 32 bits, so that its products with k are exact
		ln2Lo = 0x1.a39ef35793c76p-33
	)
	switch {
	case math.IsNaN(x):
		return x
	case x > 709:
		return math.Inf(1)
	case x < -745:
		return 0
	}
	k := math.Round(float64(x * math.Log2E))
	r := (x - float64(k*ln2Hi)) - float64(k*ln2Lo)
	// Taylor's polynomial. The terms left out are below 2^-54 for |r| <= ln2/2.
	p := 1.0
	for n := 13.0; n > 0; n-- {
		p = 1 + float64(r*p)/n
	}
	return math.Ldexp(p, int(k))
}

// softmax replaces the logits of each of n images by probabilities, and
// returns the mean of -log of the labels' probabilities.
func softmax(logits []float32, labels []int) (loss float64) {
	classes := len(logits) / len(labels)
	e := make([]float64, classes)
	for i, label := range labels {
		row := logits[i*classes:][:classes]
		largest := row[0]
		for _, v := range row {
			largest = max(largest, v)
		}
		sum := 0.0
		for j, v := range row {
			e[j] = exp(float64(v) - float64(largest))
			sum += e[j]
		}
		loss += math.Log(sum) - (float64(row[label]) - float64(largest))
		for j := range row {
			row[j] = float32(e[j] / sum)
		}
	}
	return loss / float64(len(labels))
}

// percentile returns the value below which the given share of sorted values
// lies, interpolated between neighbours.
func percentile(sorted []float64, share float64) float64 {
	at := share * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + float64((at-float64(i))*(sorted[i+1]-sorted[i]))
}

// moments returns the mean, the standard deviation and the kurtosis of values
// (3 for a normal distribution; NaN if all are equal).
func moments(values []float64) (m, std, kurtosis float64) {
	m = mean(values)
	var m2, m4 float64
	for _, v := range values {
		d := v - m
		m2 += float64(d * d)
		m4 += float64(float64(d*d) * float64(d*d))
	}
	n := float64(len(values))
	m2, m4 = m2/n, m4/n
	return m, math.Sqrt(m2), m4 / float64(m2*m2)
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
