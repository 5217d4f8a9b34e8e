package batchnorm

import (
	"encoding/binary"
	"hash/crc64"
	"math"
)

// A layer's state, all little-endian:
//
//	 0  8 bytes  stateMagic
//	 8  uint32   stateVersion
//	12  uint32   which slices there are: bit i is that of Layer.state's slice i
//	16  uint64   channels
//	24  uint64   batches tracked
//	32  float64  epsilon
//	40  float32  the slices, channels elements each
//	    uint64   CRC-64 (ECMA) of everything before it
//
// The checksum finds every change of up to 64 adjacent bits, and any other change with
// a probability of 1 - 2^-64. It is no protection against forgery.
const (
	stateMagic   = "BNLAYER\n"
	stateVersion = 1
	stateHeader  = 40
	stateSum     = 8
)

var stateTable = crc64.MakeTable(crc64.ECMA)

// stateSlice is a slice of the state, with its name in errors.
type stateSlice struct {
	name string
	s    []float32
}

func (l *Layer) state() [4]stateSlice {
	return [...]stateSlice{
		{"gamma", l.Gamma}, {"beta", l.Beta}, {"running mean", l.RunningMean}, {"running variance", l.RunningVar},
	}
}

// MarshalBinary returns the layer's state: gamma, beta, running statistics,
// BatchesTracked and epsilon. Gradients, mode, momentum and options are not part of
// it. A negative running variance is [ErrState], here and in UnmarshalBinary.
func (l *Layer) MarshalBinary() ([]byte, error) { return l.AppendBinary(nil) }

// AppendBinary appends the layer's state to b, in the form of MarshalBinary.
func (l *Layer) AppendBinary(b []byte) ([]byte, error) {
	if err := l.ready(); err != nil {
		return nil, err
	}
	if l.BatchesTracked < 0 {
		return nil, fail(ErrState, "batches tracked is %d, must be at least 0", l.BatchesTracked)
	}
	present := uint32(0)
	for i, s := range l.state() {
		if s.s == nil {
			continue
		}
		if len(s.s) != l.channels {
			return nil, fail(ErrLength, "%s has %d elements, the layer has %d channels", s.name, len(s.s), l.channels)
		}
		present |= 1 << i
	}
	for c, v := range l.RunningVar {
		if v < 0 {
			return nil, negativeVariance(c, v)
		}
	}
	begin := len(b)
	b = append(b, stateMagic...)
	b = binary.LittleEndian.AppendUint32(b, stateVersion)
	b = binary.LittleEndian.AppendUint32(b, present)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.channels))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.BatchesTracked))
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(l.epsilon))
	for _, s := range l.state() {
		for _, v := range s.s {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return binary.LittleEndian.AppendUint64(b, crc64.Checksum(b[begin:], stateTable)), nil
}

// UnmarshalBinary loads a state into a layer made by [NewLayer] with the number of
// channels, epsilon and slices of the saved one. Epsilon is compared as a float32,
// as many files hold it; the layer keeps its own. The values are copied into the
// layer's slices, so that an optimizer's references stay valid. A forward pass that
// waits for Backward is dropped, since its parameters are gone. Nothing else of the
// layer changes.
//
// Data that is truncated, altered, or of another layer is [ErrState], and the layer
// stays unchanged.
func (l *Layer) UnmarshalBinary(data []byte) error {
	if err := l.ready(); err != nil {
		return err
	}
	if len(data) < stateHeader+stateSum {
		return fail(ErrState, "saved state has %d bytes, at least %d are needed", len(data), stateHeader+stateSum)
	}
	if string(data[:8]) != stateMagic {
		return fail(ErrState, "saved state begins with %q, want %q", data[:8], stateMagic)
	}
	if v := binary.LittleEndian.Uint32(data[8:]); v != stateVersion {
		return fail(ErrState, "saved state has version %d, want %d", v, stateVersion)
	}
	body := len(data) - stateSum
	if got, want := crc64.Checksum(data[:body], stateTable), binary.LittleEndian.Uint64(data[body:]); got != want {
		return fail(ErrState, "saved state is damaged: its checksum is %016x, says %016x", got, want)
	}
	present := binary.LittleEndian.Uint32(data[12:])
	channels := binary.LittleEndian.Uint64(data[16:])
	batches := binary.LittleEndian.Uint64(data[24:])
	epsilon := math.Float64frombits(binary.LittleEndian.Uint64(data[32:]))
	if channels != uint64(l.channels) {
		return fail(ErrState, "saved state has %d channels, the layer has %d", channels, l.channels)
	}
	if float32(epsilon) != float32(l.epsilon) { // a smaller difference comes from a file with float32
		return fail(ErrState, "saved state was made with epsilon %v, the layer has %v", epsilon, l.epsilon)
	}
	if batches > math.MaxInt64 {
		return fail(ErrState, "saved state has %d batches tracked, at most %d are possible", batches, int64(math.MaxInt64))
	}
	need := stateHeader + stateSum
	for i, s := range l.state() {
		has := present&(1<<i) != 0
		if has != (s.s != nil) {
			return fail(ErrState, "%s: in the saved state %t, in the layer %t", s.name, has, s.s != nil)
		}
		if has && len(s.s) != l.channels {
			return fail(ErrLength, "%s has %d elements, the layer has %d channels", s.name, len(s.s), l.channels)
		}
		need += 4 * len(s.s)
	}
	if present>>len(l.state()) != 0 || len(data) != need {
		return fail(ErrState, "saved state has %d bytes and the slices %#b, want %d bytes and at most %d slices",
			len(data), present, need, len(l.state()))
	}
	rest := data[stateHeader:]
	if l.RunningVar != nil { // the last of the slices
		last := rest[len(rest)-stateSum-4*l.channels:]
		for c := range l.channels {
			if v := math.Float32frombits(binary.LittleEndian.Uint32(last[4*c:])); v < 0 {
				return negativeVariance(c, v)
			}
		}
	}
	for _, s := range l.state() {
		for c := range s.s {
			s.s[c] = math.Float32frombits(binary.LittleEndian.Uint32(rest))
			rest = rest[4:]
		}
	}
	l.BatchesTracked = int64(batches)
	l.kept = keptForward{}
	return nil
}

func negativeVariance(c int, v float32) error {
	return fail(ErrState, "running variance[%d] is %v, must not be negative", c, v)
}
