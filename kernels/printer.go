package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// printer collects the text of one function. It hands out registers and labels, and
// keeps the table of constants.
type printer struct {
	buf     bytes.Buffer
	name    string
	args    string // the type of the arguments
	maxRegs int    // number of registers; set by the lowering
	toFirst bool   // prefetch into the first-level cache, not the second
	held    bool   // a register holds the address of the arguments
	table   *constants
	saved   bool // arm64: the mask of the tail is saved in the area
	// arm64: the registers that hold flags
	flagRegs [len(flagNames)]reg
	vecs     int
	regs     int
	labels   int
}

func (p *printer) printf(format string, args ...any) {
	fmt.Fprintf(&p.buf, "\t"+format+"\n", args...)
}

// together prints the code of n bodies, which differ in operands only, in turns of an
// instruction. One that is the same in all bodies, as a load of a constant, is printed once.
func (p *printer) together(n int, body func(j int)) {
	before := bytes.Clone(p.buf.Bytes())
	var lines [][]string
	for j := range n {
		p.buf.Reset()
		body(j)
		lines = append(lines, strings.SplitAfter(p.buf.String(), "\n"))
		if len(lines[j]) != len(lines[0]) {
			panic(p.name + ": code of different lengths together")
		}
	}
	p.buf.Reset()
	p.buf.Write(before)
	for i, first := range lines[0] {
		p.buf.WriteString(first)
		for _, l := range lines[1:] {
			if l[i] != first {
				p.buf.WriteString(l[i])
			}
		}
	}
}

// newVec and newReg hand out registers; a kernel keeps what it gets.
func (p *printer) newVec() vec {
	if p.vecs == numVecs {
		panic(p.name + ": out of vectors")
	}
	p.vecs++
	return vec(p.vecs - 1)
}

func (p *printer) newReg() reg {
	if p.regs == p.maxRegs {
		panic(p.name + ": out of registers")
	}
	p.regs++
	return reg(p.regs - 1)
}

func (p *printer) newLabel(name string) string {
	p.labels++
	return fmt.Sprintf("%s%d", name, p.labels)
}

func (p *printer) label(l string) { fmt.Fprintf(&p.buf, "%s:\n", l) }

// constants are those of a function, or those of all functions of a file.
type constants struct {
	name   string
	rows   []row
	shared bool
}

// row is a vector of constants.
type row [vecBytes / 8]uint64

// text returns the declaration of the constants.
func (t *constants) text() string {
	if len(t.rows) == 0 {
		return ""
	}
	var text strings.Builder
	for i, r := range t.rows {
		for j, v := range r {
			fmt.Fprintf(&text, "DATA %s<>+%d(SB)/8, $%#016x\n", t.name, vecBytes*i+8*j, v)
		}
	}
	fmt.Fprintf(&text, "GLOBL %s<>(SB), RODATA|NOPTR, $%d\n", t.name, vecBytes*len(t.rows))
	return text.String()
}

// tableText returns the constants of a function, if they are its own.
func (p *printer) tableText() string {
	if p.table.shared {
		return ""
	}
	return p.table.text()
}

// entry returns the offset of a row in the table, after adding it if needed.
func (p *printer) entry(r row) int {
	t := p.table
	i := slices.Index(t.rows, r)
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, r)
	}
	return vecBytes * i
}

func (p *printer) entry64(bits uint64) int { return p.entry(row{bits, bits, bits, bits}) }
