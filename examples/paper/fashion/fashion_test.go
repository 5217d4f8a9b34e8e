package fashion

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuiltin(t *testing.T) {
	train, test, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		set  *Set
		n    int
		sum  string
	}{
		{"train", train, 60000, "20c83267e47b4d575e8db208f8281ef69111d004e38d8d596e594fadeda06235"},
		{"test", test, 10000, "c72981930acd511b0c8957de92b66ad7ae34f68f712e0ac5f6906aa42f90c9a2"},
	} {
		if c.set.N != c.n {
			t.Errorf("%s has %d images, want %d", c.name, c.set.N, c.n)
		}
		h := sha256.New()
		h.Write(c.set.bits)
		h.Write(c.set.labels)
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != c.sum {
			t.Errorf("%s: SHA-256 is %s, want %s", c.name, got, c.sum)
		}
		count := make([]int, Classes)
		for i := range c.set.N {
			count[c.set.Label(i)]++
		}
		for label, n := range count {
			if n != c.n/Classes {
				t.Errorf("%s has %d images of label %d, want %d", c.name, n, label, c.n/Classes)
			}
		}
	}
}

// The images built in are those of the original files.
func TestInstalledIsBuiltin(t *testing.T) {
	if _, err := os.Stat(DefaultDir); err != nil {
		t.Skipf("dataset-fashion-mnist is not installed: %v", err)
	}
	train, test, err := Load(DefaultDir)
	if err != nil {
		t.Fatal(err)
	}
	builtinTrain, builtinTest, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	equalSets(t, "train", train, builtinTrain)
	equalSets(t, "test", test, builtinTest)
}

func equalSets(t *testing.T, name string, a, b *Set) {
	t.Helper()
	if a.N != b.N || !bytes.Equal(a.bits, b.bits) || !bytes.Equal(a.labels, b.labels) {
		t.Errorf("%s: the sets differ", name)
	}
}

func TestImage(t *testing.T) {
	s := &Set{2, make([]byte, 2*imageBytes), []byte{3, 9}}
	s.bits[imageBytes] = 0b1010_0000
	s.bits[2*imageBytes-1] = 1
	x := make([]float32, Pixels+1)
	x[Pixels] = 7
	s.Image(1, x)
	for k, v := range x[:Pixels] {
		want := float32(0)
		if k == 0 || k == 2 || k == Pixels-1 {
			want = 1
		}
		if v != want {
			t.Errorf("pixel %d is %v, want %v", k, v, want)
		}
	}
	if x[Pixels] != 7 {
		t.Error("Image writes beyond the image")
	}
	if s.Label(1) != 9 {
		t.Errorf("label is %d, want 9", s.Label(1))
	}
	if f := s.First(1); f.N != 1 || len(f.bits) != imageBytes || len(f.labels) != 1 {
		t.Errorf("First(1) has %d images in %d bytes, %d labels", f.N, len(f.bits), len(f.labels))
	}
	if f := s.First(5); f.N != 2 {
		t.Errorf("First(5) of 2 has %d images", f.N)
	}
}

// original is the four files, small: 3 training and 2 test images.
func original() map[string][]byte {
	return map[string][]byte{
		trainFiles.images: idx(3, gradient(3), 3, Side, Side),
		trainFiles.labels: idx(1, []byte{0, 5, 9}, 3),
		testFiles.images:  idx(3, gradient(2), 2, Side, Side),
		testFiles.labels:  idx(1, []byte{1, 2}, 2),
	}
}

// gradient returns pixels of which some are on either side of Threshold, and
// at it.
func gradient(n int) []byte {
	pixels := make([]byte, n*Pixels)
	for k := range pixels {
		pixels[k] = byte(k)
	}
	return pixels
}

func idx(dims int, data []byte, shape ...uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(idxMagic+dims))
	for _, d := range shape {
		b = binary.BigEndian.AppendUint32(b, d)
	}
	return compress(append(b, data...))
}

func compress(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b) // to memory: cannot fail
	w.Close()
	return buf.Bytes()
}

func writeFiles(t *testing.T, files map[string][]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	train, test, err := Load(writeFiles(t, original()))
	if err != nil {
		t.Fatal(err)
	}
	if train.N != 3 || test.N != 2 {
		t.Fatalf("%d training and %d test images, want 3 and 2", train.N, test.N)
	}
	x := make([]float32, Pixels)
	train.Image(2, x)
	for k, v := range x {
		want := float32(0)
		if byte(2*Pixels+k) >= Threshold {
			want = 1
		}
		if v != want {
			t.Fatalf("pixel %d of image 2 is %v, want %v", k, v, want)
		}
	}
	if train.Label(1) != 5 {
		t.Errorf("label 1 is %d, want 5", train.Label(1))
	}
}

// Pack writes the files that are built in.
func TestPack(t *testing.T) {
	want, _, err := Load(writeFiles(t, original()))
	if err != nil {
		t.Fatal(err)
	}
	var bits, labels bytes.Buffer
	if err := want.Pack(&bits, &labels); err != nil {
		t.Fatal(err)
	}
	got, err := unpack("packed", bits.Bytes(), labels.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	equalSets(t, "packed", got, want)

	if _, err := unpack("packed", labels.Bytes(), labels.Bytes()); !errors.Is(err, ErrData) || !strings.Contains(err.Error(), "packed-bits.gz") {
		t.Errorf("labels instead of bits: error is %v", err)
	}
	if _, err := unpack("packed", idx(2, make([]byte, 6), 3, 2), labels.Bytes()); !errors.Is(err, ErrData) ||
		!strings.Contains(err.Error(), "2 bytes, must be 98") {
		t.Errorf("images of another size: error is %v", err)
	}
}

func TestMissingAndDamagedFiles(t *testing.T) {
	if _, _, err := Load(filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, ErrData) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: error is %v", err)
	}
	for name, whole := range original() {
		plain := decompress(t, whole)
		flipped := bytes.Clone(whole)
		flipped[len(flipped)-8] ^= 1 // the first byte of gzip's checksum
		magic := bytes.Clone(plain)
		magic[3] = 9
		huge := bytes.Clone(plain)
		binary.BigEndian.PutUint32(huge[4:], 1<<31)
		none := bytes.Clone(plain)
		binary.BigEndian.PutUint32(none[4:], 0)
		for _, c := range []struct {
			what string
			file []byte // nil: missing
			want string
		}{
			{"missing", nil, "no such file"},
			{"empty", []byte{}, "not a gzip file"},
			{"not gzip", []byte("these are no images"), "not a gzip file"},
			{"cut off", whole[:len(whole)/2], "unexpected EOF"},
			{"wrong checksum", flipped, "checksum"},
			{"header cut off", compress(plain[:3]), "header"},
			{"wrong magic", compress(magic), "it begins with 0x00000809"},
			{"huge", compress(huge), "not plausible"},
			{"nothing in it", compress(none), "not plausible"},
			{"one byte short", compress(plain[:len(plain)-1]), "unexpected EOF"},
			{"one byte more", compress(append(bytes.Clone(plain), 0)), "1 bytes follow"},
		} {
			files := original()
			delete(files, name)
			if c.file != nil {
				files[name] = c.file
			}
			train, test, err := Load(writeFiles(t, files))
			if train != nil || test != nil || !errors.Is(err, ErrData) {
				t.Errorf("%s %s: error is %v, want ErrData", name, c.what, err)
				continue
			}
			if msg := err.Error(); !strings.Contains(msg, name) || !strings.Contains(msg, c.want) {
				t.Errorf("%s %s: error is %q, want it to name the file and %q", name, c.what, msg, c.want)
			}
		}
	}
}

func TestFilesThatDisagree(t *testing.T) {
	for _, c := range []struct {
		what, name string
		file       []byte
		want       string
	}{
		{"fewer labels", trainFiles.labels, idx(1, []byte{0, 1}, 2), "2 labels for 3 images"},
		{"label too large", testFiles.labels, idx(1, []byte{0, 10}, 2), "label 1 is 10, must be below 10"},
		{"another size", trainFiles.images, idx(3, make([]byte, 3*32*32), 3, 32, 32), "32x32 pixels, must be 28x28"},
		{"too large in all", trainFiles.images, idx(3, nil, 1<<20, 28, 1<<20), "more than 268435456 bytes"},
	} {
		files := original()
		files[c.name] = c.file
		if _, _, err := Load(writeFiles(t, files)); !errors.Is(err, ErrData) || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), c.name) {
			t.Errorf("%s: error is %v, want it to name %s and %q", c.what, err, c.name, c.want)
		}
	}
}

func decompress(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var plain bytes.Buffer
	if _, err := plain.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return plain.Bytes()
}
