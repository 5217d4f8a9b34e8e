package fashion

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
)

// An IDX file, compressed by gzip, is a big-endian magic number that names the
// type of the elements and the number of dimensions, the dimensions, and the
// elements.
const (
	idxMagic = 0x00000800 // unsigned bytes; the number of dimensions is added

	// A damaged header must not ask for all memory: no dimension and no file
	// is larger.
	maxDim   = 1 << 20
	maxBytes = 1 << 28
)

// readIDX reads a file of unsigned bytes with the given number of dimensions. It reads to
// the end, so that gzip compares its checksum.
func readIDX(file io.Reader, dims int) (shape []int, data []byte, err error) {
	r, err := gzip.NewReader(file)
	if err != nil {
		return nil, nil, fmt.Errorf("not a gzip file: %w", err)
	}
	header := make([]uint32, 1+dims)
	if err := binary.Read(r, binary.BigEndian, header); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	if want := uint32(idxMagic + dims); header[0] != want {
		return nil, nil, fmt.Errorf("it begins with %#08x, not with %#08x", header[0], want)
	}
	total := uint64(1)
	for _, d := range header[1:] {
		if d == 0 || d > maxDim {
			return nil, nil, fmt.Errorf("dimensions %v are not plausible", header[1:])
		}
		if total *= uint64(d); total > maxBytes {
			return nil, nil, fmt.Errorf("dimensions %v are more than %d bytes", header[1:], maxBytes)
		}
		shape = append(shape, int(d))
	}
	data = make([]byte, total)
	if n, err := io.ReadFull(r, data); err != nil {
		return nil, nil, fmt.Errorf("%d of %d bytes: %w", n, total, err)
	}
	rest, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, nil, err
	}
	if rest != 0 {
		return nil, nil, fmt.Errorf("%d bytes follow the last of %d", rest, total)
	}
	return shape, data, nil
}

// writeIDX writes a file in the form that readIDX reads.
func writeIDX(w io.Writer, data []byte, shape ...int) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	header := []uint32{uint32(idxMagic + len(shape))}
	for _, d := range shape {
		header = append(header, uint32(d))
	}
	if err := binary.Write(z, binary.BigEndian, header); err != nil {
		return err
	}
	if _, err := z.Write(data); err != nil {
		return err
	}
	return z.Close()
}
