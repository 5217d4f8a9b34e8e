// Compare runs ONNX models with onnx-go, once with its own BatchNormalization and
// once with that of package batchnorm, in turn; it prints the medians of the times and
// the largest errors against float64.
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

	onnxgobn "github.com/fusedbn/batchnorm/integrations/onnx-go"
	"github.com/fusedbn/batchnorm/integrations/onnxmodel"
	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend/x/gorgonnx"
	"gorgonia.org/tensor"
)

func main() {
	log.SetFlags(0)
	limit := flag.Duration("time", 4*time.Second, "time for each row")
	flag.Parse()

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "model\tinput\tonnx-go ms\tbatchnorm ms\ttimes\tonnx-go error\tbatchnorm error\t")
	m, err := onnxmodel.Parse(onnxmodel.Fashion)
	check(err)
	for _, n := range []int{1, 8} {
		x, _, err := onnxmodel.Images(n)
		check(err)
		want, err := onnxmodel.Reference(m, x, n)
		check(err)
		row(w, "trained network", onnxmodel.Fashion, []int{n, 1, onnxmodel.Side, onnxmodel.Side}, x, want, *limit)
	}
	for _, c := range []struct {
		dims   []int
		offset float64
	}{{[]int{1, 64, 56, 56}, 0}, {[]int{1, 64, 56, 56}, 1000}, {[]int{8, 64, 28, 28}, 0}, {[]int{1, 512, 7, 7}, 0}} {
		file, x, want := norm(c.dims, c.offset)
		row(w, fmt.Sprintf("norm, mean %g", c.offset), file, c.dims, x, want, *limit)
	}
	check(w.Flush())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// norm returns a model of BatchNormalization, an input, and the output.
func norm(dims []int, offset float64) (file []byte, x []float32, want []float64) {
	r := rand.New(rand.NewPCG(1, 1))
	channels := dims[1]
	normal := func(n int, mean, std float64) []float32 {
		s := make([]float32, n)
		for i := range s {
			s[i] = float32(mean + std*r.NormFloat64())
		}
		return s
	}
	n := 1
	for _, d := range dims {
		n *= d
	}
	x = normal(n, offset, 1)
	parameters := [][]float32{normal(channels, 1, 0.1), normal(channels, 0, 0.1), normal(channels, offset, 0.1), make([]float32, channels)}
	for c := range channels {
		parameters[3][c] = 0.5 + r.Float32()
	}
	want = make([]float64, n)
	inner := n / dims[0] / channels
	for k, v := range x {
		c := k / inner % channels
		p := func(i int) float64 { return float64(parameters[i][c]) }
		want[k] = (float64(v)-p(2))/math.Sqrt(p(3)+float64(float32(1e-5)))*p(0) + p(1)
	}
	m := &onnxmodel.Model{
		Opset:  13,
		Nodes:  []onnxmodel.Node{{Op: "BatchNormalization", Inputs: []string{"x", "scale", "bias", "mean", "var"}, Outputs: []string{"y"}}},
		Inputs: []onnxmodel.Value{{Name: "x"}}, Outputs: []onnxmodel.Value{{Name: "y"}},
	}
	for i, s := range parameters {
		m.Initializers = append(m.Initializers, onnxmodel.Tensor{Name: m.Nodes[0].Inputs[i+1], Dims: []int64{int64(channels)}, Data: s})
	}
	file, err := m.Marshal()
	check(err)
	return file, x, want
}

// row times both in turn until the time is over.
func row(w *tabwriter.Writer, name string, file []byte, dims []int, x []float32, want []float64, limit time.Duration) {
	var graphs [2]*gorgonnx.Graph
	var models [2]*onnx.Model
	// onnx-go's operator overwrites its input, so that every run gets a copy.
	feed := func(i int) {
		check(models[i].SetInput(0, tensor.New(tensor.WithShape(dims...), tensor.WithBacking(slices.Clone(x)))))
	}
	for i := range graphs {
		if i == 1 {
			check(onnxgobn.Install())
		}
		graphs[i] = gorgonnx.NewGraph()
		models[i] = onnx.NewModel(graphs[i])
		check(models[i].UnmarshalBinary(file))
		feed(i)
		check(graphs[i].PopulateExprgraph())
	}
	onnxgobn.Uninstall()
	var times [2][]time.Duration
	var errors [2]float64
	for begin := time.Now(); time.Since(begin) < limit || len(times[1]) < 3; {
		for i, g := range graphs {
			feed(i)
			start := time.Now()
			err := g.Run()
			took := time.Since(start)
			check(err)
			times[i] = append(times[i], took)
			if len(times[i]) == 1 {
				out, err := models[i].GetOutputTensors()
				check(err)
				for k, v := range out[0].Data().([]float32) {
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
