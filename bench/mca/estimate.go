package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// cost is the time of an iteration on a processor, in cycles.
type cost struct {
	cycles float64 // of the loop
	bound  float64 // of its loads and stores of tensors alone
	needed float64 // of these and its vector arithmetic
}

func (c cost) fraction() float64 { return c.bound / c.cycles }

// estimate returns the cost of each loop on a processor.
func estimate(mca, cpu string, loops []loop) ([]cost, error) {
	var asm strings.Builder
	for i, l := range loops {
		region(&asm, fmt.Sprintf("loop%d", i), l.assembly())
		region(&asm, fmt.Sprintf("bound%d", i), l.traffic())
		region(&asm, fmt.Sprintf("needed%d", i), append(l.traffic(), l.arithmetic()...))
	}
	cmd := exec.Command(mca, "-mtriple=aarch64", "-mcpu="+cpu, "-resource-pressure=false", "-instruction-info=false")
	cmd.Stdin = strings.NewReader(asm.String())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", mca, err, stderr.String())
	}
	numbers, err := throughputs(string(out))
	if err != nil {
		return nil, err
	}
	if len(numbers) != 3*len(loops) {
		return nil, fmt.Errorf("%s answers for %d blocks of %d", mca, len(numbers), 3*len(loops))
	}
	costs := make([]cost, len(loops))
	for i := range costs {
		costs[i] = cost{numbers[3*i], numbers[3*i+1], numbers[3*i+2]}
	}
	return costs, nil
}

func region(b *strings.Builder, name string, lines []string) {
	fmt.Fprintf(b, "# LLVM-MCA-BEGIN %s\n\t%s\n# LLVM-MCA-END %s\n", name, strings.Join(lines, "\n\t"), name)
}

var throughputPattern = regexp.MustCompile(`(?m)^Block RThroughput:\s+([0-9.]+)$`)

func throughputs(out string) ([]float64, error) {
	var all []float64
	for _, m := range throughputPattern.FindAllStringSubmatch(out, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil || v <= 0 {
			return nil, fmt.Errorf("a block takes %q cycles", m[1])
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, errors.New("no throughput in the output")
	}
	return all, nil
}

var postIndexPattern = regexp.MustCompile(`^(.*\[(x\d+)\]), (#\S+|x\d+)$`)

// assembly returns the loop for llvm-mca. Branches go to themselves, as their targets are
// not there. An instruction that moves its address on after the access is split: the models
// would have the next access wait for the loaded value.
func (l loop) assembly() []string {
	var lines []string
	for _, in := range l.body {
		operands := in.operands
		if in.branches() {
			operands = targetPattern.ReplaceAllString(operands, ".")
		}
		if m := postIndexPattern.FindStringSubmatch(operands); m != nil {
			lines = append(lines, in.name+" "+m[1], fmt.Sprintf("add %s, %s, %s", m[2], m[2], m[3]))
			continue
		}
		lines = append(lines, strings.TrimSpace(in.name+" "+operands))
	}
	return lines
}

// traffic returns the loads and stores of tensors that the loop can't do
// without, 32 bytes each.
func (l loop) traffic() []string {
	const pair = 32
	var lines []string
	for i := range l.loads / pair {
		lines = append(lines, fmt.Sprintf("ldp q0, q1, [x0, #%d]", i%16*pair))
	}
	for i := range l.stores / pair {
		lines = append(lines, fmt.Sprintf("stp q2, q3, [x1, #%d]", i%16*pair))
	}
	return lines
}

var lanesPattern = regexp.MustCompile(`^v\d+\.`)

// arithmetic returns the instructions of the loop that compute with vectors.
func (l loop) arithmetic() []string {
	var lines []string
	for _, in := range l.body {
		if lanesPattern.MatchString(in.operands) {
			lines = append(lines, in.name+" "+in.operands)
		}
	}
	return lines
}
