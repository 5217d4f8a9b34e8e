// Package fashion holds Fashion-MNIST, 60,000 training images and 10,000 test
// images of clothes by Zalando Research (MIT licence, see the folder data), as
// the paper's network sees them: 28x28 pixels, each either on or off.
//
// All images are built in, at one bit per pixel. Load makes the same from the
// original files.
package fashion

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	Side    = 28          // rows and columns of an image
	Pixels  = Side * Side // pixels of an image
	Classes = 10          // labels are 0 to Classes-1

	// Threshold is the smallest value of an original pixel, of 0 to 255, that is
	// on.
	Threshold = 128

	imageBytes = Pixels / 8
)

// DefaultDir is where Debian's package dataset-fashion-mnist puts the original
// files.
const DefaultDir = "/usr/share/datasets/fashion-mnist"

// Set is labelled images. The first pixel of an image, row by row, is the
// highest bit of its first byte.
type Set struct {
	N      int
	bits   []byte // imageBytes for each image
	labels []byte
}

// Label returns the class of image i.
func (s *Set) Label(i int) int { return int(s.labels[i]) }

// Image writes the pixels of image i to dst, row by row: 1 is on, 0 is off.
func (s *Set) Image(i int, dst []float32) {
	dst = dst[:Pixels]
	packed := s.bits[i*imageBytes:][:imageBytes]
	for k := range dst {
		dst[k] = float32(packed[k/8] >> (7 - k%8) & 1)
	}
}

// First returns the set of the first n images, which share their memory with
// s; all of them if there are no more.
func (s *Set) First(n int) *Set {
	n = min(n, s.N)
	return &Set{n, s.bits[:n*imageBytes], s.labels[:n]}
}

// The files of a set: as they are published, and as they are built in.
type files struct {
	images, labels string // gzip, IDX
}

var (
	trainFiles = files{"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}
	testFiles  = files{"t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"}
)

// ErrData is wrapped by every error about data that is missing or damaged.
var ErrData = errors.New("fashion: the data is missing or damaged")

// Load reads the four original files from a folder, and makes every pixel of
// at least Threshold on.
func Load(dir string) (train, test *Set, err error) {
	if train, err = loadSet(dir, trainFiles); err != nil {
		return nil, nil, err
	}
	if test, err = loadSet(dir, testFiles); err != nil {
		return nil, nil, err
	}
	return train, test, nil
}

func loadSet(dir string, names files) (*Set, error) {
	imagesPath, labelsPath := filepath.Join(dir, names.images), filepath.Join(dir, names.labels)
	shape, grey, err := readFile(imagesPath, 3)
	if err != nil {
		return nil, err
	}
	if shape[1] != Side || shape[2] != Side {
		return nil, dataError(imagesPath, fmt.Errorf("its images are %dx%d pixels, must be %dx%d", shape[1], shape[2], Side, Side))
	}
	_, labels, err := readFile(labelsPath, 1)
	if err != nil {
		return nil, err
	}
	bits := make([]byte, shape[0]*imageBytes)
	for i := range bits {
		for _, p := range grey[8*i:][:8] {
			bits[i] = bits[i]<<1 | p/Threshold // 0 or 1, as Threshold is above 255/2
		}
	}
	return newSet(labelsPath, shape[0], bits, labels)
}

func readFile(path string, dims int) ([]int, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrData, err) // which names the path
	}
	defer f.Close()
	shape, data, err := readIDX(f, dims)
	if err != nil {
		return nil, nil, dataError(path, err)
	}
	return shape, data, nil
}

func newSet(labelsPath string, n int, bits, labels []byte) (*Set, error) {
	if len(labels) != n {
		return nil, dataError(labelsPath, fmt.Errorf("it has %d labels for %d images", len(labels), n))
	}
	for i, l := range labels {
		if l >= Classes {
			return nil, dataError(labelsPath, fmt.Errorf("label %d is %d, must be below %d", i, l, Classes))
		}
	}
	return &Set{n, bits, labels}, nil
}

func dataError(path string, err error) error { return fmt.Errorf("%w: %s: %w", ErrData, path, err) }

// The built-in files: bits are IDX of two dimensions, images and the bytes of
// each; labels are the original's.
var (
	//go:embed data/train-bits.gz
	trainBits []byte
	//go:embed data/train-labels.gz
	trainLabels []byte
	//go:embed data/test-bits.gz
	testBits []byte
	//go:embed data/test-labels.gz
	testLabels []byte
)

// Builtin returns the images that are built into the program. They equal those that Load
// makes of the original files.
func Builtin() (train, test *Set, err error) {
	if train, err = unpack("data/train", trainBits, trainLabels); err != nil {
		return nil, nil, err
	}
	if test, err = unpack("data/test", testBits, testLabels); err != nil {
		return nil, nil, err
	}
	return train, test, nil
}

func unpack(name string, packedBits, packedLabels []byte) (*Set, error) {
	shape, bits, err := readIDX(bytes.NewReader(packedBits), 2)
	if err != nil {
		return nil, dataError(name+"-bits.gz", err)
	}
	if shape[1] != imageBytes {
		return nil, dataError(name+"-bits.gz", fmt.Errorf("its images are %d bytes, must be %d", shape[1], imageBytes))
	}
	_, labels, err := readIDX(bytes.NewReader(packedLabels), 1)
	if err != nil {
		return nil, dataError(name+"-labels.gz", err)
	}
	return newSet(name+"-labels.gz", shape[0], bits, labels)
}

// Pack writes the set in the form that is built in.
func (s *Set) Pack(bits, labels io.Writer) error {
	if err := writeIDX(bits, s.bits, s.N, imageBytes); err != nil {
		return err
	}
	return writeIDX(labels, s.labels, s.N)
}
