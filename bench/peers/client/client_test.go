package client

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm/bench/peers/peer"
)

// plain is the peer that needs nothing but Go.
const plain = "plain"

// Two samples of one channel: mean 2, variance 1.
func problem() peer.Problem {
	return peer.Problem{
		N: 2, C: 1, H: 1, W: 1, Layout: peer.NCHW,
		X: []float32{1, 3}, DY: []float32{1, 2}, Gamma: []float32{2}, Beta: []float32{1}, Mean: []float32{1}, Var: []float32{4},
	}
}

func TestPlain(t *testing.T) {
	p, err := Start(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := p.Run(peer.Forward, 1); err == nil {
		t.Error("runs without a problem")
	}
	if err := p.Load(problem(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Run(peer.Backward, 1); err == nil {
		t.Error("runs backward without a forward")
	}
	took, err := p.Run(peer.Forward, 3)
	if err != nil || len(took) != 3 || slices.Min(took) <= 0 {
		t.Errorf("three runs took %v (%v)", took, err)
	}
	outputs := func() peer.Outputs {
		t.Helper()
		o, err := p.Outputs()
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := outputs(); !slices.Equal(o.Y, []float32{-1, 3}) || o.Inference != nil || o.DX != nil {
		t.Errorf("after forward: %v", o)
	}
	for _, op := range []peer.Op{peer.Inference, peer.Backward} {
		if _, err := p.Run(op, 1); err != nil {
			t.Error(err)
		}
	}
	o := outputs()
	if !slices.Equal(o.Inference, []float32{1, 3}) || !slices.Equal(o.DGamma, []float32{1}) || !slices.Equal(o.DBeta, []float32{3}) {
		t.Errorf("after all: %v", o)
	}
	// Two values always normalize to -1 and 1, whatever they are.
	for _, v := range o.DX {
		if math.Abs(float64(v)) > 1e-6 {
			t.Errorf("dx is %v, must be 0", o.DX)
		}
	}
	// A problem that is not offered is an error, and does not end the peer.
	blocked := problem()
	blocked.Layout = peer.NCHW8c
	if err := p.Load(blocked, 1); !errors.Is(err, peer.ErrUnsupported) {
		t.Errorf("layout %s: %v", blocked.Layout, err)
	}
	if err := p.Load(problem(), 1); err != nil {
		t.Error(err)
	}
	if o := outputs(); o.Y != nil {
		t.Errorf("outputs of the problem before: %v", o)
	}
	short := problem()
	short.X = short.X[:1]
	if err := p.Load(short, 1); err == nil {
		t.Error("takes a tensor that is too short")
	}
}

func TestMissing(t *testing.T) {
	p := program{name: "archsimd", folder: ".", pkg: "./archsimd", env: []string{"GOEXPERIMENT=nosimd"}}
	if _, err := start(p); !errors.Is(err, ErrMissing) {
		t.Errorf("without the experiment: %v", err)
	}
}

func TestUnknown(t *testing.T) {
	if _, err := Start("nobody"); err == nil || errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}
