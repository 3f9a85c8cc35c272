package abi

import (
	"bytes"
	"fmt"
)

// coreHeader opens every core module of version 1. A component has another
// version word, and no host can run one.
var coreHeader = []byte("\x00asm\x01\x00\x00\x00")

// AttachManifest appends the manifest to a core module as its custom section. A
// module that has one already is refused, as is a manifest that does not parse.
func AttachManifest(module, manifest []byte) ([]byte, error) {
	if _, err := ParseManifest(manifest); err != nil {
		return nil, err
	}
	have, err := FindManifest(module)
	if err != nil {
		return nil, err
	}
	if have != nil {
		return nil, fmt.Errorf("%w: the module has one already", ErrManifest)
	}
	canon, err := Canonical(manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	body := append(uleb(nil, len(ManifestSection)), ManifestSection...)
	body = append(body, canon...)
	out := append(bytes.Clone(module), 0)
	return append(uleb(out, len(body)), body...), nil
}

// FindManifest returns the bytes of the manifest section of a core module, not
// yet parsed, or nil where there is none. Two of them are an error: readers
// could disagree on which one counts. It looks at the sections' headers only.
func FindManifest(module []byte) ([]byte, error) {
	if !bytes.HasPrefix(module, coreHeader) {
		return nil, fmt.Errorf("%w: the file is not a core WebAssembly module (a component cannot be run)", ErrManifest)
	}
	var found []byte
	for rest := module[len(coreHeader):]; len(rest) > 0; {
		id := rest[0]
		body, after, ok := counted(rest[1:])
		if !ok {
			return nil, fmt.Errorf("%w: a section of the module is cut off", ErrManifest)
		}
		rest = after
		if id != 0 {
			continue
		}
		name, content, ok := counted(body)
		if !ok {
			return nil, fmt.Errorf("%w: the name of a custom section is cut off", ErrManifest)
		}
		if string(name) != ManifestSection {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: the module has two", ErrManifest)
		}
		found = append([]byte{}, content...)
	}
	return found, nil
}

// counted splits b into what its leading length counts and what follows.
func counted(b []byte) (body, rest []byte, ok bool) {
	var n uint64
	for i := range min(len(b), 5) {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			b = b[i+1:]
			if n > uint64(len(b)) {
				return nil, nil, false
			}
			return b[:n], b[n:], true
		}
	}
	return nil, nil, false
}

func uleb(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}
