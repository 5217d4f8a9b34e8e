package reference

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Golden is one of the cases in testdata/golden, whose README describes the fields. It lies
// here because both the reference and the package are compared with it.
type Golden struct {
	Name       string   `json:"name"`
	Dims       []int    `json:"dims"`
	Activation string   `json:"activation"`
	Training   bool     `json:"training"`
	Epsilon    float64  `json:"eps"`
	Momentum   *float64 `json:"momentum"`

	X                 []float32 `json:"x"`
	Residual          []float32 `json:"residual"`
	Gamma             []float32 `json:"gamma"`
	Beta              []float32 `json:"beta"`
	DY                []float32 `json:"dy"`
	RunningMeanBefore []float32 `json:"running_mean_before"`
	RunningVarBefore  []float32 `json:"running_var_before"`

	// Only in testdata/modes, and each for one mode.
	Lengths   []int   `json:"lengths"`
	Valid     []bool  `json:"valid"`
	GhostSize int     `json:"ghost_size"`
	RMax      float64 `json:"rmax"`
	DMax      float64 `json:"dmax"`

	Y                []float64 `json:"y"`
	BatchMean        []float64 `json:"batch_mean"`
	BatchVar         []float64 `json:"batch_var_biased"`
	RunningMeanAfter []float64 `json:"running_mean_after"`
	RunningVarAfter  []float64 `json:"running_var_after_unbiased"`
	DX               []float64 `json:"dx"`
	DGamma           []float64 `json:"dgamma"`
	DBeta            []float64 `json:"dbeta"`
	DResidual        []float64 `json:"dresidual"`
}

// Goldens reads the cases of a folder.
func Goldens(folder string) ([]Golden, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return nil, err
	}
	var cases []Golden
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var g Golden
		if err := json.Unmarshal(text, &g); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		cases = append(cases, g)
	}
	return cases, nil
}

// Problem returns the case as a problem.
func (g Golden) Problem() Problem {
	p := Problem{
		Outer: g.Dims[0], Channels: g.Dims[1], Inner: 1,
		Epsilon: g.Epsilon, Activation: g.Activation,
		X: g.X, Residual: g.Residual, Gamma: g.Gamma, Beta: g.Beta, DY: g.DY,
	}
	for _, d := range g.Dims[2:] {
		p.Inner *= d
	}
	return p
}
