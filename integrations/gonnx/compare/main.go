// Compare runs ONNX models with gonnx in turn with Mul and Add in the place of
// BatchNormalization, as gonnx can run them, and with the operator. It prints the medians
// of the times and the largest errors against float64.
package main

import (
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/advancedclimatesystems/gonnx"
	gonnxbn "github.com/fusedbn/batchnorm/integrations/gonnx"
	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"gorgonia.org/tensor"
)

func main() {
	log.SetFlags(0)
	images := flag.Int("images", 2, "images for the trained network")
	limit := flag.Duration("time", 3*time.Second, "time for each row")
	flag.Parse()

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "model\tinput\tgonnx ms\tbatchnorm ms\ttimes\tgonnx error\tbatchnorm error\t")
	x, _, err := onnxmodel.Images(*images)
	check(err)
	m, err := onnxmodel.Parse(onnxmodel.Fashion)
	check(err)
	want, err := onnxmodel.Reference(m, x, *images)
	check(err)
	row(w, "trained network", m, "image", "scores", []int{*images, 1, onnxmodel.Side, onnxmodel.Side}, x, want, *limit)

	for _, c := range []struct {
		dims   []int
		offset float64
	}{{[]int{1, 64, 56, 56}, 0}, {[]int{8, 64, 28, 28}, 0}, {[]int{8, 64, 28, 28}, 1000}, {[]int{1, 512, 7, 7}, 0}} {
		m, x, want := block(c.dims, c.offset)
		row(w, fmt.Sprintf("norm, relu, mean %g", c.offset), m, "x", "y", c.dims, x, want, *limit)
	}
	check(w.Flush())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// block returns a model of BatchNormalization and Relu, an input, and the output.
func block(dims []int, offset float64) (*onnxmodel.Model, []float32, []float64) {
	r := rand.New(rand.NewPCG(1, 1))
	channels := dims[1]
	normal := func(n int, mean, std float64) []float32 {
		s := make([]float32, n)
		for i := range s {
			s[i] = float32(mean + std*r.NormFloat64())
		}
		return s
	}
	scale, bias, mean := normal(channels, 1, 0.1), normal(channels, 0, 0.1), normal(channels, offset, 0.1)
	variance := slices.Repeat([]float32{1}, channels)
	n := 1
	for _, d := range dims {
		n *= d
	}
	x := normal(n, offset, 1)
	want := make([]float64, n)
	inner := n / dims[0] / channels
	for k, v := range x {
		c := k / inner % channels
		want[k] = max(0, (float64(v)-float64(mean[c]))/math.Sqrt(1+float64(float32(1e-5)))*float64(scale[c])+float64(bias[c]))
	}
	m := &onnxmodel.Model{
		Opset: 13,
		Nodes: []onnxmodel.Node{
			{Op: "BatchNormalization", Inputs: []string{"x", "scale", "bias", "mean", "var"}, Outputs: []string{"z"}},
			{Op: "Relu", Inputs: []string{"z"}, Outputs: []string{"y"}},
		},
		Inputs:  []onnxmodel.Value{{Name: "x"}},
		Outputs: []onnxmodel.Value{{Name: "y"}},
	}
	for name, s := range map[string][]float32{"scale": scale, "bias": bias, "mean": mean, "var": variance} {
		m.Initializers = append(m.Initializers, onnxmodel.Tensor{Name: name, Dims: []int64{int64(channels)}, Data: s})
	}
	return m, x, want
}

// row times both in turn until the time is over.
func row(w *tabwriter.Writer, name string, m *onnxmodel.Model, input, output string, dims []int, x []float32, want []float64, limit time.Duration) {
	composed, err := onnxmodel.Composed(m)
	check(err)
	files := [2][]byte{}
	for i, m := range []*onnxmodel.Model{composed, m} {
		files[i], err = m.Marshal()
		check(err)
	}
	var models [2]*gonnx.Model
	models[0], err = gonnx.NewModelFromBytes(files[0])
	check(err)
	models[1], err = gonnxbn.NewModelFromBytes(files[1])
	check(err)
	in := gonnx.Tensors{input: tensor.New(tensor.WithShape(dims...), tensor.WithBacking(x))}
	var times [2][]time.Duration
	var errors [2]float64
	for begin := time.Now(); time.Since(begin) < limit || len(times[1]) < 3; {
		for i, m := range models {
			start := time.Now()
			out, err := m.Run(in)
			took := time.Since(start)
			check(err)
			times[i] = append(times[i], took)
			if len(times[i]) == 1 {
				for k, v := range out[output].Data().([]float32) {
					errors[i] = max(errors[i], math.Abs(float64(v)-want[k]))
				}
			}
		}
	}
	median := func(i int) float64 {
		slices.Sort(times[i])
		return times[i][len(times[i])/2].Seconds() * 1e3
	}
	fmt.Fprintf(w, "%s\t%v\t%.3f\t%.3f\t%.1f\t%.1e\t%.1e\t\n", name, dims, median(0), median(1), median(0)/median(1), errors[0], errors[1])
}
