package images

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	s, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if s.N != 2000 || s.Rows != 28 || s.Cols != 28 || len(s.Pixels) != 2000*28*28 {
		t.Errorf("%d images of %dx%d in %d bytes", s.N, s.Rows, s.Cols, len(s.Pixels))
	}
	// The sum that data/README.md gives.
	const want = "862035b0a96959b614c9574f4c2b0ae9584ca234813e8d6d7adb7838b12ca46b"
	if got := fmt.Sprintf("%x", sha256.Sum256(plain(t))); got != want {
		t.Errorf("SHA-256 is %s, want %s", got, want)
	}
}

func TestDamagedData(t *testing.T) {
	file := plain(t)
	flipped := bytes.Clone(blob)
	flipped[len(flipped)/2] ^= 1
	badSum := bytes.Clone(blob)
	badSum[len(badSum)-8] ^= 1 // the first byte of gzip's checksum

	for _, c := range []struct {
		name string
		blob []byte
		want string
	}{
		{"empty", nil, "EOF"},
		{"not gzip", []byte("no gzip at all"), "invalid header"},
		{"cut off", blob[:len(blob)/2], "unexpected EOF"},
		{"flipped bit", flipped, ""},
		{"wrong checksum", badSum, "checksum"},
		{"header cut off", compress(file[:10]), "header"},
		{"wrong magic", compress(header(0x00000801, 2000, 28, 28)), "begins with 0x00000801"},
		{"no images", compress(header(idxBytes3, 0, 28, 28)), "not plausible"},
		{"huge", compress(header(idxBytes3, 1<<31, 1<<31, 4)), "not plausible"},
		{"pixels missing", compress(file[:len(file)-1]), "unexpected EOF"},
		{"too many pixels", compress(append(bytes.Clone(file), 0)), "1 bytes follow"},
	} {
		s, err := decode(c.blob)
		if s != nil || err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		if msg := err.Error(); !strings.HasPrefix(msg, "images: the data is damaged: ") || !strings.Contains(msg, c.want) {
			t.Errorf("%s: error is %q, want it to contain %q", c.name, msg, c.want)
		}
	}
}

// plain returns the embedded file, uncompressed.
func plain(t *testing.T) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compress(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b) // to memory: cannot fail
	w.Close()
	return buf.Bytes()
}

func header(fields ...uint32) []byte {
	var b []byte
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, f)
	}
	return b
}
