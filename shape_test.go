package batchnorm_test

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/fusedbn/batchnorm"
)

const maxLen = math.MaxInt / 4 // elements whose bytes an int can count

// maxChannels leaves a kilobyte of memory for each channel.
const maxChannels = min(math.MaxInt32, math.MaxInt/1024)

// axis adapts Axis to the form of NCHW and NHWC.
func axis(k int) func(dims ...int) (batchnorm.Shape, error) {
	return func(dims ...int) (batchnorm.Shape, error) { return batchnorm.Axis(k, dims...) }
}

func TestShape(t *testing.T) {
	nchw, nhwc := batchnorm.NCHW, batchnorm.NHWC
	for _, c := range []struct {
		name string
		make func(dims ...int) (batchnorm.Shape, error)
		dims []int
		want batchnorm.Shape
	}{
		{"NCHW", nchw, []int{2, 3}, batchnorm.Shape{2, 3, 1}},
		{"NCHW", nchw, []int{2, 3, 4}, batchnorm.Shape{2, 3, 4}},
		{"NCHW", nchw, []int{2, 3, 4, 5}, batchnorm.Shape{2, 3, 20}},
		{"NCHW", nchw, []int{2, 3, 4, 5, 6}, batchnorm.Shape{2, 3, 120}},
		{"NCHW", nchw, []int{2, 3, 4, 5, 6, 7}, batchnorm.Shape{2, 3, 840}},
		{"NCHW", nchw, []int{1, 1}, batchnorm.Shape{1, 1, 1}},
		{"NHWC", nhwc, []int{2, 3}, batchnorm.Shape{2, 3, 1}},
		{"NHWC", nhwc, []int{2, 4, 3}, batchnorm.Shape{8, 3, 1}},
		{"NHWC", nhwc, []int{2, 4, 5, 3}, batchnorm.Shape{40, 3, 1}},
		{"NHWC", nhwc, []int{2, 4, 5, 6, 3}, batchnorm.Shape{240, 3, 1}},
		{"NHWC", nhwc, []int{2, 4, 5, 6, 7, 3}, batchnorm.Shape{1680, 3, 1}},
		{"Axis(0)", axis(0), []int{5}, batchnorm.Shape{1, 5, 1}},
		{"Axis(0)", axis(0), []int{5, 3, 4}, batchnorm.Shape{1, 5, 12}},
		{"Axis(2)", axis(2), []int{2, 3, 4, 5, 6, 7}, batchnorm.Shape{6, 4, 210}},
		{"Axis(-1)", axis(-1), []int{2, 3, 4}, batchnorm.Shape{6, 4, 1}},
		{"Axis(-2)", axis(-2), []int{2, 3, 4}, batchnorm.Shape{2, 3, 4}},
		{"Axis(-3)", axis(-3), []int{2, 3, 4}, batchnorm.Shape{1, 2, 12}},
		// An empty batch.
		{"NCHW", nchw, []int{0, 3}, batchnorm.Shape{0, 3, 1}},
		{"NCHW", nchw, []int{0, 3, 4, 5}, batchnorm.Shape{0, 3, 20}},
		{"NHWC", nhwc, []int{0, 3}, batchnorm.Shape{0, 3, 1}},
		{"NHWC", nhwc, []int{0, 4, 5, 3}, batchnorm.Shape{0, 3, 1}},
		// As large as can be.
		{"NCHW", nchw, []int{maxLen, 1}, batchnorm.Shape{maxLen, 1, 1}},
		{"NHWC", nhwc, []int{maxLen / maxChannels, maxChannels}, batchnorm.Shape{maxLen / maxChannels, maxChannels, 1}},
		{"NCHW", nchw, []int{1, 2, maxLen / 2}, batchnorm.Shape{1, 2, maxLen / 2}},
	} {
		s, err := c.make(c.dims...)
		if err != nil || s != c.want {
			t.Errorf("%s%v is %v, %v, want %v", c.name, c.dims, s, err, c.want)
			continue
		}
		if err := s.Valid(); err != nil {
			t.Errorf("%s%v is made, but not valid: %v", c.name, c.dims, err)
		}
		if s.Len() != s.Outer*s.Channels*s.Inner || s.PerChannel()*s.Channels != s.Len() {
			t.Errorf("%v has %d elements, %d per channel", s, s.Len(), s.PerChannel())
		}
	}
}

func TestShapeString(t *testing.T) {
	if got := (batchnorm.Shape{2, 3, 20}).String(); got != "2x3x20" {
		t.Errorf("String is %q", got)
	}
}

func TestShapeErrors(t *testing.T) {
	nchw, nhwc := batchnorm.NCHW, batchnorm.NHWC
	for _, c := range []struct {
		name     string
		make     func(dims ...int) (batchnorm.Shape, error)
		dims     []int
		mentions []string
	}{
		{"NCHW", nchw, nil, []string{"NCHW", "0"}},
		{"NCHW", nchw, []int{7}, []string{"NCHW", "1"}},
		{"NHWC", nhwc, []int{7}, []string{"NHWC", "1"}},
		{"Axis(0)", axis(0), nil, []string{"axis 0", "0 dimensions"}},
		{"Axis(3)", axis(3), []int{4, 5, 6}, []string{"axis 3", "3 dimensions"}},
		{"Axis(-4)", axis(-4), []int{4, 5, 6}, []string{"axis -4", "3 dimensions"}},
		{"Axis(min)", axis(math.MinInt), []int{4, 5, 6}, []string{"axis -", "3 dimensions"}},
		// Zero is for the batch alone.
		{"NCHW", nchw, []int{2, 0}, []string{"dimension 1", "[2 0]"}},
		{"NCHW", nchw, []int{2, 3, 0}, []string{"dimension 2", "[2 3 0]"}},
		{"NCHW", nchw, []int{0, 0}, []string{"dimension 1", "[0 0]"}},
		{"NHWC", nhwc, []int{2, 0, 3}, []string{"dimension 1", "[2 0 3]"}},
		{"NHWC", nhwc, []int{2, 3, 0}, []string{"dimension 2", "[2 3 0]"}},
		{"Axis(0)", axis(0), []int{0, 3}, []string{"dimension 0", "[0 3]", "at least 1"}},
		{"Axis(-2)", axis(-2), []int{0, 3}, []string{"dimension 0", "[0 3]", "at least 1"}},
		{"NCHW", nchw, []int{-1, 3}, []string{"dimension 0", "-1", "at least 0"}},
		{"NHWC", nhwc, []int{2, -5, 3}, []string{"dimension 1", "-5"}},
		// Overflow, of the elements and of their bytes.
		{"NCHW", nchw, []int{maxLen + 1, 1}, []string{strconv.Itoa(maxLen)}},
		{"NCHW", nchw, []int{2, maxLen/2 + 1}, []string{strconv.Itoa(maxLen)}},
		{"NCHW", nchw, []int{math.MaxInt, math.MaxInt, math.MaxInt}, []string{strconv.Itoa(maxLen)}},
		{"NHWC", nhwc, []int{1 << 16, 1 << 16, 1 << 16, 1 << 16}, []string{strconv.Itoa(maxLen)}}, // 0 when wrapped
		{"NHWC", nhwc, []int{0, math.MaxInt, 2}, []string{strconv.Itoa(maxLen)}},
		{"NHWC", nhwc, []int{0, maxChannels + 1}, []string{strconv.Itoa(maxChannels)}},
		{"NCHW", nchw, []int{1, maxChannels + 1, 2}, []string{strconv.Itoa(maxChannels)}},
	} {
		s, err := c.make(c.dims...)
		if !errors.Is(err, batchnorm.ErrShape) || s != (batchnorm.Shape{}) {
			t.Errorf("%s%v is %v with the error %v, want none and ErrShape", c.name, c.dims, s, err)
			continue
		}
		for _, m := range c.mentions {
			if !strings.Contains(err.Error(), m) {
				t.Errorf("%s%v: error %q does not mention %q", c.name, c.dims, err, m)
			}
		}
	}
}

// A shape can be written down without a constructor; NewPlan checks it.
func TestNewPlanChecksShape(t *testing.T) {
	for _, s := range []batchnorm.Shape{
		{},
		{-1, 3, 4},
		{2, 0, 4},
		{2, -3, 4},
		{2, 3, 0},
		{2, 3, -4},
		{-2, -3, 4},
		{maxLen, 2, 1},
		{1, 1, maxLen + 1},
		{math.MaxInt, math.MaxInt, math.MaxInt},
		{0, math.MaxInt, 2},
	} {
		p, err := batchnorm.NewPlan(s)
		if p != nil || !errors.Is(err, batchnorm.ErrShape) || !errors.Is(s.Valid(), batchnorm.ErrShape) {
			t.Errorf("NewPlan(%v) returns %v, %v, and Valid %v, want ErrShape", s, p, err, s.Valid())
			continue
		}
		if !strings.Contains(err.Error(), s.String()) {
			t.Errorf("NewPlan(%v): error %q does not mention the shape", s, err)
		}
	}
}

// More than 2^31 elements are a shape like any other where an int can count
// them, and so does the message of a length that is wrong.
func TestMoreThan2To31Elements(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("int has 32 bits")
	}
	half := 1 << (strconv.IntSize/2 - 1) // 2^31, as an expression that 32 bits compile
	for _, dims := range [][]int{{1 << 12, 3, 1 << 10, 1 << 10}, {half, 3}, {3, 3, half}} {
		s, err := batchnorm.NCHW(dims...)
		noError(t, err)
		if want := dims[0] * s.Channels * s.Inner; s.Len() != want || want <= half {
			t.Fatalf("%v has %d elements, want %d", s, s.Len(), want)
		}
		p := newPlan(t, s)
		err = p.Forward(batchnorm.ForwardArgs{X: make([]float32, 5), Y: make([]float32, 5)})
		if !errors.Is(err, batchnorm.ErrLength) || !strings.Contains(err.Error(), strconv.Itoa(s.Len())) {
			t.Errorf("%v: error is %v, want ErrLength with %d elements", s, err, s.Len())
		}
	}
}

func TestEmptyBatch(t *testing.T) {
	forEachPath(t, func(t *testing.T, path batchnorm.Path) {
		const c = 3
		nan := []float64{math.NaN(), math.NaN(), math.NaN()}
		for _, s := range []batchnorm.Shape{{0, c, 1}, {0, c, 20}} {
			p := newPlan(t, s, batchnorm.WithPath(path))
			// A framework may hold no memory at all for an empty tensor.
			for _, empty := range [][]float32{nil, {}} {
				ones := func() []float32 { return []float32{1, 1, 1} }
				mean, invStd := make([]float64, c), make([]float64, c)
				runningMean, runningVar := ones(), ones()
				noError(t, p.Forward(batchnorm.ForwardArgs{
					X: empty, Y: empty, Mean: mean, InvStd: invStd, RunningMean: runningMean, RunningVar: runningVar,
				}))
				expectBits(t, "mean", mean, nan)
				expectBits(t, "invstd", invStd, nan)
				expectBits(t, "running mean", runningMean, ones())
				expectBits(t, "running variance", runningVar, ones())

				noError(t, p.Inference(batchnorm.InferenceArgs{X: empty, Y: empty, Mean: ones(), Var: ones()}))

				dgamma, dbeta := ones(), ones()
				noError(t, p.Backward(batchnorm.BackwardArgs{
					DY: empty, X: empty, Mean: mean, InvStd: invStd, DX: empty, DGamma: dgamma, DBeta: dbeta,
				}))
				expectBits(t, "dgamma", dgamma, make([]float32, c))
				expectBits(t, "dbeta", dbeta, make([]float32, c))
			}
		}
	})
}
