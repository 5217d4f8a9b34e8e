//go:build purego || !(amd64 || arm64)

package batchnorm_test

import (
	"slices"
	"testing"

	"github.com/fusedbn/batchnorm"
)

func init() { noAssembly = true }

func TestNoAssembly(t *testing.T) {
	if got := batchnorm.DefaultPath(); got != batchnorm.PathGeneric {
		t.Errorf("the default path is %v, want %v", got, batchnorm.PathGeneric)
	}
	if got, want := batchnorm.Paths(), []batchnorm.Path{batchnorm.PathGeneric}; !slices.Equal(got, want) {
		t.Errorf("Paths() is %v, want %v", got, want)
	}
}
