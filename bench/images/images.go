// Package images holds 2,000 real images: the first of Fashion-MNIST's test
// set, by Zalando Research, under the MIT license (see the folder data).
package images

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
)

//go:embed data/fashion-mnist-t10k-2000.idx3.gz
var blob []byte

// Set is N grey images of Rows x Cols pixels.
type Set struct {
	N, Rows, Cols int
	Pixels        []byte // image by image, row by row
}

// Load returns the images.
func Load() (*Set, error) { return decode(blob) }

// idxBytes3 begins an IDX file of unsigned bytes in three dimensions.
const idxBytes3 = 0x00000803

// maxPixels keeps a damaged header from asking for all memory.
const maxPixels = 1 << 28

func decode(compressed []byte) (*Set, error) {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, damaged("%w", err)
	}
	var header struct{ Magic, N, Rows, Cols uint32 }
	if err := binary.Read(r, binary.BigEndian, &header); err != nil {
		return nil, damaged("header: %w", err)
	}
	if header.Magic != idxBytes3 {
		return nil, damaged("it begins with %#08x, not with %#08x", header.Magic, idxBytes3)
	}
	// Each dimension is bounded first, so that the product cannot overflow.
	const maxDim = 1 << 16
	total := uint64(header.N) * uint64(header.Rows) * uint64(header.Cols)
	if max(header.N, header.Rows, header.Cols) > maxDim || total == 0 || total > maxPixels {
		return nil, damaged("%d images of %dx%d pixels are not plausible", header.N, header.Rows, header.Cols)
	}
	pixels := make([]byte, total)
	if _, err := io.ReadFull(r, pixels); err != nil {
		return nil, damaged("pixels: %w", err)
	}
	// Reading on to the end makes gzip compare its checksum, too.
	rest, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, damaged("%w", err)
	}
	if rest != 0 {
		return nil, damaged("%d bytes follow the last image", rest)
	}
	return &Set{int(header.N), int(header.Rows), int(header.Cols), pixels}, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("images: the data is damaged: "+format, args...)
}
