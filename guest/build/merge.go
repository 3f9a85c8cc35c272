package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
)

// mergeGap is the longest run of zeros that is written out to join two data
// segments.
const mergeGap = 64

// Sections of a core module that matter here.
const (
	sectionData      = 11
	sectionDataCount = 12
)

var errModule = errors.New("the module is malformed")

// mergeData joins neighbouring data segments. The Go linker writes one for each
// stretch without a few zeros, tens of thousands in all, and engines spend more time
// on them at each start than on all else. What memory holds afterwards is the
// same: it is zero before, and only gaps are filled.
//
// A module whose segments are not plain or overlap is returned as it is.
func mergeData(module []byte) ([]byte, error) {
	out := bytes.Clone(module[:8])
	for rest := module[8:]; len(rest) > 0; {
		id := rest[0]
		body, after, err := counted(rest[1:])
		if err != nil {
			return nil, err
		}
		if id == sectionDataCount {
			return module, nil // code may name the segments by number
		}
		if id == sectionData {
			merged, plain, err := mergeSegments(body)
			if err != nil {
				return nil, err
			}
			if !plain {
				return module, nil
			}
			body = merged
		}
		out = append(out, id)
		out = binary.AppendUvarint(out, uint64(len(body)))
		out = append(out, body...)
		rest = after
	}
	return out, nil
}

// segment is a plain active one: bytes at an address.
type segment struct {
	at   uint64
	data []byte
}

// mergeSegments rewrites the body of a data section. plain is false where it had
// better be left alone.
func mergeSegments(body []byte) (merged []byte, plain bool, err error) {
	n, rest, err := number(body)
	if err != nil {
		return nil, false, err
	}
	var segs []segment
	for range n {
		if len(rest) < 2 || rest[0] != 0 || rest[1] != 0x41 { // active, memory 0, i32.const
			return nil, false, nil
		}
		at, r, err := signed32(rest[2:])
		if err != nil {
			return nil, false, err
		}
		if len(r) == 0 || r[0] != 0x0b { // end
			return nil, false, nil
		}
		data, r, err := counted(r[1:])
		if err != nil {
			return nil, false, err
		}
		rest = r
		segs = append(segs, segment{at, data})
	}
	if len(rest) != 0 {
		return nil, false, errModule
	}
	if segs, plain = join(segs); !plain {
		return nil, false, nil
	}
	merged = binary.AppendUvarint(nil, uint64(len(segs)))
	for _, s := range segs {
		merged = append(merged, 0, 0x41)
		merged = appendSigned32(merged, s.at)
		merged = append(merged, 0x0b)
		merged = binary.AppendUvarint(merged, uint64(len(s.data)))
		merged = append(merged, s.data...)
	}
	return merged, true, nil
}

// join sorts the segments by address, which changes nothing where none overlaps
// another, and closes the small gaps.
func join(segs []segment) (joined []segment, plain bool) {
	slices.SortFunc(segs, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	var end uint64
	for i, s := range segs {
		switch {
		case i > 0 && s.at < end:
			return nil, false
		case i > 0 && s.at-end <= mergeGap:
			last := &joined[len(joined)-1]
			last.data = append(append(last.data, make([]byte, s.at-end)...), s.data...)
		default:
			joined = append(joined, segment{s.at, bytes.Clone(s.data)})
		}
		end = s.at + uint64(len(s.data))
	}
	return joined, true
}

// number reads an unsigned LEB128 number of 32 bits.
func number(b []byte) (n uint64, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || size > 5 || n > 1<<32-1 {
		return 0, nil, errModule
	}
	return n, b[size:], nil
}

// counted splits b into what its leading number counts and what follows.
func counted(b []byte) (body, rest []byte, err error) {
	n, rest, err := number(b)
	if err != nil || n > uint64(len(rest)) {
		return nil, nil, errModule
	}
	return rest[:n], rest[n:], nil
}

// signed32 reads a signed LEB128 number of 32 bits as the address that it means.
func signed32(b []byte) (at uint64, rest []byte, err error) {
	var v int64
	for i := range min(len(b), 5) {
		v |= int64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			if shift := 7 * (i + 1); shift < 64 && b[i]&0x40 != 0 {
				v |= -1 << shift
			}
			return uint64(uint32(v)), b[i+1:], nil
		}
	}
	return 0, nil, errModule
}

func appendSigned32(b []byte, at uint64) []byte {
	v := int64(int32(uint32(at)))
	for {
		low := byte(v & 0x7f)
		v >>= 7
		if v == 0 && low&0x40 == 0 || v == -1 && low&0x40 != 0 {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}
