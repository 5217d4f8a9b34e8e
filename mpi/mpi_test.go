package mpi_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fusedbn/batchnorm"
	"github.com/fusedbn/batchnorm/mpi"
)

// The tests start the test binary itself under mpirun, on several ranks, with the
// name of a scenario in the environment.
const scenarioVar = "MPI_TEST_SCENARIO"

func TestMain(m *testing.M) {
	if name := os.Getenv(scenarioVar); name != "" {
		os.Exit(play(name))
	}
	os.Exit(m.Run())
}

// TestMissing is for the build without MPI: its error says how to build with MPI.
func TestMissing(t *testing.T) {
	if mpi.Built() {
		t.Skip("MPI is built in")
	}
	_, err := mpi.Init(0)
	if !errors.Is(err, mpi.ErrMissing) {
		t.Fatalf("Init: %v", err)
	}
	for _, word := range []string{"apt-get install", "-tags mpi", "CGO_ENABLED=1"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not mention %q: %v", word, err)
		}
	}
	if mpi.Library() != "none" {
		t.Errorf("the library is %q", mpi.Library())
	}
	for name, err := range map[string]error{"Finalize": mpi.Finalize(), "Abort": mpi.Abort(1), "Exchange": (&mpi.Comm{}).Exchange(nil, nil)} {
		if !errors.Is(err, mpi.ErrInit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var c *mpi.Comm
	if _, err := c.Split(0); !errors.Is(err, mpi.ErrInit) {
		t.Errorf("Split of nil: %v", err)
	}
	if err := c.Free(); !errors.Is(err, mpi.ErrInit) {
		t.Errorf("Free of nil: %v", err)
	}
	if _, err := mpi.Init(-1); !errors.Is(err, batchnorm.ErrOption) {
		t.Errorf("Init(-1): %v", err)
	}
}

func TestLaunched(t *testing.T) {
	for _, name := range []string{"OMPI_COMM_WORLD_SIZE", "PMI_RANK"} {
		t.Setenv(name, "")
	}
	if mpi.Launched() {
		t.Skip("the tests themselves run under an mpirun")
	}
	t.Setenv("PMI_RANK", "0")
	if !mpi.Launched() {
		t.Error("Launched is false under an mpirun")
	}
}

// mpirun is the library's command, with the flags for root and for few cores, and with
// those that keep it from ending the other ranks when one dies.
func mpirun(t *testing.T, ranks int) []string {
	t.Helper()
	command, options := "mpirun.openmpi", []string{"--oversubscribe", "--allow-run-as-root", "--enable-recovery", "--quiet", "--bind-to", "none"}
	if strings.Contains(mpi.Library(), "MPICH") {
		command, options = "mpirun.mpich", nil
	}
	if _, err := exec.LookPath(command); err != nil {
		command = "mpirun"
	}
	if _, err := exec.LookPath(command); err != nil {
		t.Fatalf("%v: apt-get install openmpi-bin", err)
	}
	return append(append([]string{command}, options...), "-np", fmt.Sprint(ranks))
}

// launch plays a scenario and returns the lines of each rank, which begin with "= RANK ".
func launch(t *testing.T, ranks int, scenario string) [][]string {
	t.Helper()
	if !mpi.Built() {
		t.Skip("built without MPI: go test -tags mpi")
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(mpirun(t, ranks), binary)
	command := exec.Command(args[0], args[1:]...)
	command.Env = append(os.Environ(), scenarioVar+"="+scenario)
	command.WaitDelay = 5 * time.Second
	kill := time.AfterFunc(5*time.Minute, func() { command.Process.Kill() })
	defer kill.Stop()
	// Scenarios in which a rank dies make mpirun fail: only their output counts.
	out, err := command.CombinedOutput()
	said := make([][]string, ranks)
	for line := range strings.Lines(string(out)) {
		_, message, found := strings.Cut(line, "= ")
		var rank int
		if n, _ := fmt.Sscanf(message, "%d", &rank); !found || n != 1 || rank < 0 || rank >= ranks {
			continue
		}
		_, text, _ := strings.Cut(strings.TrimSpace(message), " ")
		said[rank] = append(said[rank], text)
	}
	for rank, lines := range said {
		if slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "FAILED") }) {
			t.Errorf("%s on %d ranks: rank %d: %s", scenario, ranks, rank, lines)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s: %v\n%s", args, err, out)
	}
	return said
}

var rankCounts = []int{2, 3, 4, 7}

// expectAll requires of every rank a line with the prefix, and returns the rest of it.
func expectAll(t *testing.T, said [][]string, prefix string) []string {
	t.Helper()
	rest := make([]string, len(said))
	for rank, lines := range said {
		i := slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, prefix) })
		if i < 0 {
			t.Fatalf("rank %d of %d says %q, want %q", rank, len(said), lines, prefix)
		}
		rest[rank] = strings.TrimSpace(strings.TrimPrefix(lines[i], prefix))
	}
	return rest
}

func expectEqual(t *testing.T, what string, values []string) {
	t.Helper()
	for rank, v := range values {
		if v != values[0] {
			t.Errorf("%s: rank %d of %d has %s, rank 0 has %s", what, rank, len(values), v, values[0])
		}
	}
}

// A SyncPlan over MPI has the bits of one on goroutines, on every rank, with parts
// of any size and empty ones. The ranks compare their own part themselves.
func TestSameBits(t *testing.T) {
	for _, ranks := range rankCounts {
		expectEqual(t, "hash", expectAll(t, launch(t, ranks, "bits"), "hash"))
	}
}

// One thousand steps in which a rank is late at random end with one hash,
// that of steps without delay.
func TestLate(t *testing.T) {
	for _, ranks := range rankCounts {
		expectEqual(t, "hash on time", expectAll(t, launch(t, ranks, "late"), "same hash"))
	}
}

// All ranks have an error, and soon: within two time limits, which are of 2
// seconds, and the time that the scheduler takes.
func expectErrors(t *testing.T, ranks, dead int, scenario string, words ...string) {
	t.Helper()
	said := launch(t, ranks, scenario)
	text := ""
	for rank, lines := range said {
		if rank == dead {
			continue
		}
		i := slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, "error after ") })
		if i < 0 {
			t.Errorf("%s: rank %d of %d says %q, want an error", scenario, rank, ranks, lines)
			continue
		}
		var after float64
		fmt.Sscanf(lines[i], "error after %f", &after)
		if after > 2*failLimit.Seconds()+10 {
			t.Errorf("%s: rank %d of %d has its error after %g s", scenario, rank, ranks, after)
		}
		text += lines[i] + "\n"
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s on %d ranks: no error mentions %q:\n%s", scenario, ranks, word, text)
		}
	}
}

// MPICH's mpirun ends the other ranks itself, so that there it is enough that all end.
func TestKilled(t *testing.T) {
	for _, ranks := range rankCounts {
		if strings.Contains(mpi.Library(), "MPICH") {
			begin := time.Now()
			launch(t, ranks, "killed")
			if took := time.Since(begin); took > 2*failLimit+10*time.Second {
				t.Errorf("killed: %d ranks end after %v", ranks, took)
			}
			continue
		}
		expectErrors(t, ranks, 1, "killed", "rank 1")
	}
}

func TestOtherShape(t *testing.T) {
	for _, ranks := range rankCounts {
		expectErrors(t, ranks, -1, "shape", "rank")
	}
}

func TestLargeAndSmall(t *testing.T) {
	for _, ranks := range rankCounts {
		expectErrors(t, ranks, -1, "large", "rank")
	}
}

func TestOtherOperation(t *testing.T) {
	for _, ranks := range rankCounts {
		expectErrors(t, ranks, -1, "operation", "rank 1 calls backward of plan 1", "rank 0 calls forward of plan 1")
	}
}

func TestWrongArguments(t *testing.T) {
	for _, ranks := range rankCounts {
		expectErrors(t, ranks, -1, "arguments", "rank 1 refuses its arguments")
	}
}

func TestSplitComm(t *testing.T) {
	for _, ranks := range rankCounts {
		expectAll(t, launch(t, ranks, "split"), "ok")
	}
}

// Communicators are used by several goroutines at a time.
func TestOverlap(t *testing.T) {
	for _, ranks := range []int{2, 3} {
		expectAll(t, launch(t, ranks, "overlap"), "ok")
	}
}

// A panic of Go, which is a signal, is one with MPI, too.
func TestPanic(t *testing.T) {
	for rank, v := range expectAll(t, launch(t, 2, "panic"), "recovered") {
		if !strings.Contains(v, "nil pointer") {
			t.Errorf("rank %d recovers %q", rank, v)
		}
	}
}

// 100,000 calls leave nothing behind: neither memory of Go nor of C.
func TestLeak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	expectAll(t, launch(t, 2, "leak"), "ok")
}

// The same over TCP, as between machines, in the place of shared memory.
func TestTCP(t *testing.T) {
	if strings.Contains(mpi.Library(), "MPICH") {
		t.Skip("the variable is Open MPI's")
	}
	t.Setenv("OMPI_MCA_btl", "tcp,self")
	const ranks = 4
	expectEqual(t, "hash", expectAll(t, launch(t, ranks, "bits"), "hash"))
	expectEqual(t, "hash on time", expectAll(t, launch(t, ranks, "late"), "same hash"))
	expectErrors(t, ranks, 1, "killed", "rank 1")
	expectErrors(t, ranks, -1, "large", "rank")
	expectAll(t, launch(t, ranks, "split"), "ok")
}
