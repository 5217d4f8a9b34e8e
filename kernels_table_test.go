package batchnorm

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestEveryKernelExists compares what a call can ask for with what there is in
// assembly: no less, because a call would fault, and no more.
func TestEveryKernelExists(t *testing.T) {
	asked := map[int]kernelCase{}
	for _, k := range kernelCases() {
		flags := k.flags
		if k.act == Identity && k.gradient() { // nothing depends on the residual, and run leaves it out
			flags &^= withResidual
		}
		if k.act.variant() == actCalled { // which looks at its operands
			flags = 0
		}
		if k.layout == cols { // whose kernels look at it
			flags &^= withStream
		}
		id := kernelID(k.kernel, k.layout, k.act.variant(), flags)
		asked[id] = k
		if assembled[id] == "" {
			t.Errorf("there is no kernel for %s", k)
		}
	}
	for id, name := range assembled {
		if _, ok := asked[id]; !ok {
			t.Errorf("no call asks for %s", name)
		}
	}
}

// TestAbsentKernelFaults runs kernels that don't exist, each in a process of its own.
func TestAbsentKernelFaults(t *testing.T) {
	if DefaultPath() == PathGeneric {
		t.Skip("this machine or build has no assembly")
	}
	const variable = "BATCHNORM_ABSENT_KERNEL"
	absent := map[string]int{
		"in the table": kernelID(kernelMoments, rows, actInline, 0),
		"behind it":    kernelID(kernelTinyZ+1, cols, actNone, 0),
		"in front":     -1,
	}
	if which := os.Getenv(variable); which != "" {
		simdKernel(absent[which], new(kernelArgs))
		return
	}
	for which := range absent {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAbsentKernelFaults$")
		cmd.Env = append(os.Environ(), variable+"="+which)
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Skipf("this machine can't start the test again: %v", err)
		}
		if err == nil || !strings.Contains(string(out), "illegal instruction") {
			t.Errorf("an id %s: %v, want an illegal instruction\n%s", which, err, out)
		}
	}
}
