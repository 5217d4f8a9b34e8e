package coef

// Pieces approximates a function by polynomials in pieces of its argument t, all
// in float32: in piece i it is
//
//	p[i].Base + d*(p[i].C[0] + d*(p[i].C[1] + ...)) with d = t - p[i].Center.
//
// The three low bits of an integer tell the piece, so that a kernel finds what it
// needs in a vector of 8.
type Pieces [8]Piece

// Piece is one of them. Coefficients behind the degree are 0.
type Piece struct {
	Center, Base float32
	C            [MaxDegree]float32
}

// MaxDegree is the degree of most of the polynomials.
const MaxDegree = 7

// Degree is that of the polynomials.
func (p *Pieces) Degree() int {
	degree := MaxDegree
	for p.Coefficients(degree) == [8]float32{} {
		degree--
	}
	return degree
}

// Coefficients returns those of a power of d, in the order of pieces.
func (p *Pieces) Coefficients(power int) [8]float32 {
	return p.each(func(q *Piece) float32 { return q.C[power-1] })
}

// Centers and Bases are in the order of pieces, too.
func (p *Pieces) Centers() [8]float32 { return p.each(func(q *Piece) float32 { return q.Center }) }
func (p *Pieces) Bases() [8]float32   { return p.each(func(q *Piece) float32 { return q.Base }) }

func (p *Pieces) each(f func(*Piece) float32) (list [8]float32) {
	for i := range p {
		list[i] = f(&p[i])
	}
	return list
}

// The scale and the end of each kind of pieces. An end lies a little before that of the
// last piece, because the number that gives the piece is rounded.
const (
	// Nearest is added to a float32, whose low bits are then those of the nearest
	// integer, NearestQuarter to have those of the integer nearest to a quarter of it.
	Nearest        = 1.5 * (1 << 23)
	NearestQuarter = 1.5 * (1 << 25)

	// Sigmoid, Exp, Softplus, SiLU, SiLUSlope, TanhSlope: SigmoidScale*t, rounded to an integer.
	SigmoidScale = 1.4
	SigmoidEnd   = 5.35

	// Tanh, Expm1: the lowest two bits of the exponent and the first digit of
	// scale*t+1. The base of the first piece is t, which is below the edge, and this
	// below the bases of the others.
	TanhScale  = 1.5
	TanhEdge   = 0.34
	TanhEnd    = 9.99 // tanh(9.99) rounds to 1
	Expm1Scale = 0.85
	Expm1Edge  = 0.6
	Expm1End   = 17.6 // 1-exp(-17.6) rounds to 1

	// GELU, GELUSlope, GELUTanh, GELUTanhSlope: t*(t+GELUShift)/4, rounded to an integer.
	GELUShift = 2.5
	GELUEnd   = 4.36

	// Mish, MishSlope: z, rounded to an integer from -4 to 3: |z-MishShift| is at most
	// MishEnd.
	MishShift = -0.5
	MishEnd   = 3.99
)

// The exp(-t) of Decay is multiplied by 2^DecayShift, so that it is not subnormal. Where it
// is less than DecayLeast, it adds nothing to 1.
const (
	DecayShift = 64
	DecayLeast = 1 << (DecayShift - 30)
	DecayUnit  = 1.0 / (1 << DecayShift)
)

// 1 - MishQuotient*(e-e^2) is 1/(1+2e+2e^2) within 2^-19.8 for e up to exp(-3.49).
const MishQuotient = 2.00008
