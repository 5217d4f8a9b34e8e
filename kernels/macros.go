package main

import (
	"fmt"
	"regexp"
	"strings"
)

// macro is a few instructions of NEON under one name in the assembly file. Its
// operands are numbers of vecs, registers or shifts.
type macro struct {
	name, operands string // a letter for each operand
	instructions   []encoding
}

// encoding is an instruction as text and as code: bits, and fields with the places
// of the operands. In both, x0 and x1 are the registers of vec x; Rx is the register x,
// and $x the number x. A test compares the text with the disassembled code.
type encoding struct {
	text   string
	bits   uint32
	fields string
}

// macros has all macros, in the order of the assembly file.
var macros []macro

func define(name, operands string, instructions ...encoding) macro {
	m := macro{name, operands, instructions}
	macros = append(macros, m)
	return m
}

// halves repeats an instruction for the second registers of the vecs.
func halves(text string, bits uint32, fields string) []encoding {
	second := regexp.MustCompile(`\b([a-z])0\b`)
	return []encoding{
		{text, bits, fields},
		{second.ReplaceAllString(text, "${1}1"), bits, second.ReplaceAllString(fields, "${1}1")},
	}
}

// three defines the macro of an instruction with three vecs, and two with two.
func three(name, mnemonic, arrangement string, bits uint32) macro {
	text := fmt.Sprintf("%[1]s y0.%[2]s, x0.%[2]s, d0.%[2]s", mnemonic, arrangement)
	return define(name, "yxd", halves(text, bits, "y0<<16|x0<<5|d0")...)
}

func two(name, format string, bits uint32) macro {
	return define(name, "xd", halves(format, bits, "x0<<5|d0")...)
}

var (
	fadd  = three("FADD8", "FADD", "S4", 0x4e20d400)
	fsub  = three("FSUB8", "FSUB", "S4", 0x4ea0d400)
	fmul  = three("FMUL8", "FMUL", "S4", 0x6e20dc00)
	fmax  = three("FMAX8", "FMAX", "S4", 0x4e20f400)
	fmin  = three("FMIN8", "FMIN", "S4", 0x4ea0f400)
	fcmgt = three("FCMGT8", "VFCMGT", "S4", 0x6ea0e400)
	fcmge = three("FCMGE8", "VFCMGE", "S4", 0x6e20e400)

	fcmgtZero = two("FCMGTZERO8", "VFCMGT $0, x0.S4, d0.S4", 0x4ea0c800)
	fcmleZero = two("FCMLEZERO8", "VFCMLE $0, x0.S4, d0.S4", 0x6ea0d800)

	smax  = three("SMAX8", "SMAX", "S4", 0x4ea06400)
	smin  = three("SMIN8", "SMIN", "S4", 0x4ea06c00)
	umin  = three("UMIN8", "UMIN", "S4", 0x6ea06c00)
	cmgt  = three("CMGT8", "VCMGT", "S4", 0x4ea03400)
	mul32 = three("MUL8", "MUL", "S4", 0x4ea09c00)
	add32 = three("ADD8", "VADD", "S4", 0x4ea08400)

	fadd64  = three("FADD4D", "FADD", "D2", 0x4e60d400)
	fsub64  = three("FSUB4D", "FSUB", "D2", 0x4ee0d400)
	fmul64  = three("FMUL4D", "FMUL", "D2", 0x6e60dc00)
	fmla64  = three("FMLA4D", "VFMLA", "D2", 0x4e60cc00)
	fdiv64  = three("FDIV4D", "FDIV", "D2", 0x6e60fc00)
	fcmge64 = three("FCMGE4D", "VFCMGE", "D2", 0x6e60e400)
	add64   = three("ADD4D", "VADD", "D2", 0x4ee08400)
	fsqrt64 = two("FSQRT4D", "FSQRT x0.D2, d0.D2", 0x6ee1f800)

	and = three("AND8", "VAND", "B16", 0x4e201c00)
	bic = three("BIC8", "VBIC", "B16", 0x4e601c00)
	orr = three("ORR8", "VORR", "B16", 0x4ea01c00)
	eor = three("EOR8", "VEOR", "B16", 0x6e201c00)
	mov = define("MOV8", "xd", halves("VMOV x0.B16, d0.B16", 0x4ea01c00, "x0<<16|x0<<5|d0")...)
	bsl = three("BSL8", "VBSL", "B16", 0x6e601c00)
	bit = three("BIT8", "VBIT", "B16", 0x6ea01c00)
	bif = three("BIF8", "VBIF", "B16", 0x6ee01c00)

	sshr31 = two("SIGN8", "VSSHR $31, x0.S4, d0.S4", 0x4f210400)
	shl20  = two("SHL20", "VSHL $20, x0.S4, d0.S4", 0x4f345400)
	shl52  = two("SHL52", "VSHL $52, x0.D2, d0.D2", 0x4f745400)
	ushr   = define("USHR8", "nd", halves("VUSHR $n, d0.S4, d0.S4", 0x6f000400, "(64-n)<<16|d0<<5|d0")...)

	// lookups of bytes in V30 and V31, which hold a row of a table in place of the tail's mask
	tbl = define("TBL8", "xd", halves("VTBL x0.B16, [V30.B16, V31.B16], d0.B16", 0x4e002000, "x0<<16|30<<5|d0")...)

	// a value from memory in all lanes
	ld1r = define("LD1R8", "nd",
		encoding{"VLD1R (Rn), [d0.S4]", 0x4d40c800, "n<<5|d0"},
		encoding{"VMOV d0.B16, d1.B16", 0x4ea01c00, "d0<<16|d0<<5|d1"})
	ld1rAt = define("LD1R8AT", "ond",
		encoding{"ADD $o, Rn, R24", 0x91000000, "o<<10|n<<5|24"},
		encoding{"VLD1R (R24), [d0.S4]", 0x4d40c800, "24<<5|d0"},
		encoding{"VMOV d0.B16, d1.B16", 0x4ea01c00, "d0<<16|d0<<5|d1"})
	ld1r64 = define("LD1R4D", "nd",
		encoding{"VLD1R (Rn), [d0.D2]", 0x4d40cc00, "n<<5|d0"},
		encoding{"VMOV d0.B16, d1.B16", 0x4ea01c00, "d0<<16|d0<<5|d1"})

	// from 8 float32 to 4 float64 and 4 more, and back
	fcvtl = define("WIDEN", "xlh",
		encoding{"FCVTL x0.S2, l0.D2", 0x0e617800, "x0<<5|l0"},
		encoding{"FCVTL2 x0.S4, l1.D2", 0x4e617800, "x0<<5|l1"},
		encoding{"FCVTL x1.S2, h0.D2", 0x0e617800, "x1<<5|h0"},
		encoding{"FCVTL2 x1.S4, h1.D2", 0x4e617800, "x1<<5|h1"})
	fcvtn = define("NARROW", "lhd",
		encoding{"FCVTN l0.D2, d0.S2", 0x0e616800, "l0<<5|d0"},
		encoding{"FCVTN2 l1.D2, d0.S4", 0x4e616800, "l1<<5|d0"},
		encoding{"FCVTN h0.D2, d1.S2", 0x0e616800, "h0<<5|d1"},
		encoding{"FCVTN2 h1.D2, d1.S4", 0x4e616800, "h1<<5|d1"})

	// the largest of 8 integers
	maxOfAll = define("MAXOFALL", "d",
		encoding{"VORR d1.B16, d0.B16, d0.B16", 0x4ea01c00, "d1<<16|d0<<5|d0"},
		encoding{"VUMAXV d0.S4, d0", 0x6eb0a800, "d0<<5|d0"})

	// the sum of 8 float64 in d and t to two sums in the first register
	sumTo2 = define("SUMTO2", "dt",
		encoding{"FADD t0.D2, d0.D2, d0.D2", 0x4e60d400, "t0<<16|d0<<5|d0"},
		encoding{"FADD t1.D2, d1.D2, d1.D2", 0x4e60d400, "t1<<16|d1<<5|d1"},
		encoding{"FADD d1.D2, d0.D2, d0.D2", 0x4e60d400, "d1<<16|d0<<5|d0"})
	addPair = define("ADDPAIR", "xd",
		encoding{"FADDP x0.D2, d0.D2, d0.D2", 0x6e60d400, "x0<<16|d0<<5|d0"})
)

// operandPattern matches a register of a vec in the fields of an instruction.
var operandPattern = regexp.MustCompile(`\b([a-z])([01])\b`)

// macroText returns the definitions of all macros, each below a comment with its
// instructions.
func macroText() string {
	var text strings.Builder
	text.WriteString("\n// Instructions that the assembler lacks, and related ones, for both registers of a vector.\n" +
		"// In the comment above each, x0 and x1 are V(2*x) and V(2*x+1).\n")
	for _, m := range macros {
		var comment, words []string
		for _, s := range m.instructions {
			comment = append(comment, s.text)
			fields := operandPattern.ReplaceAllStringFunc(s.fields, func(o string) string {
				return map[byte]string{'0': "(2*" + o[:1] + ")", '1': "(2*" + o[:1] + "+1)"}[o[1]]
			})
			words = append(words, fmt.Sprintf("WORD $(%#08x|%s)", s.bits, fields))
		}
		fmt.Fprintf(&text, "\n// %s\n#define %s(%s) %s\n", strings.Join(comment, "; "),
			m.name, strings.Join(strings.Split(m.operands, ""), ", "), strings.Join(words, "; "))
	}
	return text.String()
}
