package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"pgregory.net/rapid"
)

// TestMergeKeepsMemory: on an engine, a module that was merged begins with the
// memory that it began with before.
func TestMergeKeepsMemory(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "testdata", "guests", "c", "echo.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if merged, err := mergeData(b); err != nil || !bytes.Equal(merged, b) {
		t.Errorf("one segment has become another module: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		module, plain := drawModule(t)
		merged, err := mergeData(module)
		if err != nil {
			t.Fatal(err)
		}
		if !plain && !bytes.Equal(merged, module) {
			t.Fatal("a module with overlapping segments was changed")
		}
		before, after := memoryOf(t, module), memoryOf(t, merged)
		if !bytes.Equal(before, after) {
			t.Fatal("memory differs")
		}
	})
}

// drawModule makes a module of one page with some data segments.
func drawModule(t *rapid.T) (module []byte, plain bool) {
	plain = true
	used := map[int]bool{}
	n := rapid.IntRange(0, 12).Draw(t, "segments")
	body := binary.AppendUvarint(nil, uint64(n))
	for range n {
		at := rapid.IntRange(0, 600).Draw(t, "at")
		data := rapid.SliceOfN(rapid.Byte(), 0, 90).Draw(t, "data")
		for i := range data {
			plain = plain && !used[at+i]
			used[at+i] = true
		}
		body = append(body, 0, 0x41)
		body = appendSigned32(body, uint64(at))
		body = append(body, 0x0b)
		body = append(binary.AppendUvarint(body, uint64(len(data))), data...)
	}
	module = []byte("\x00asm\x01\x00\x00\x00\x05\x03\x01\x00\x01\x07\x0a\x01\x06memory\x02\x00")
	module = append(module, sectionData)
	module = append(binary.AppendUvarint(module, uint64(len(body))), body...)
	return module, plain
}

func memoryOf(t *rapid.T, module []byte) []byte {
	ctx := t.Context()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer rt.Close(ctx)
	m, err := rt.Instantiate(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := m.Memory().Read(0, m.Memory().Size())
	return bytes.Clone(b)
}

func TestMergeClosesSmallGapsOnly(t *testing.T) {
	segs := []segment{{1000, []byte("c")}, {0, []byte("a")}, {3, []byte("b")}}
	got, plain := join(segs)
	if !plain || len(got) != 2 || string(got[0].data) != "a\x00\x00b" || got[1].at != 1000 {
		t.Errorf("%v, plain %v", got, plain)
	}
}

func TestMergeRefusesWhatIsMalformed(t *testing.T) {
	const header = "\x00asm\x01\x00\x00\x00"
	for name, tail := range map[string]string{
		"a cut section":    "\x0b\x09\x00",
		"a cut number":     "\x0b\x80",
		"a cut address":    "\x0b\x05\x01\x00\x41\x80\x80",
		"a cut segment":    "\x0b\x06\x01\x00\x41\x00\x0b\x05",
		"too few segments": "\x0b\x01\x02\x00",
		"text at the end":  "\x0b\x07\x01\x00\x41\x00\x0b\x00x",
	} {
		if out, err := mergeData([]byte(header + tail)); !errors.Is(err, errModule) && string(out) != header+tail {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	// Left alone: passive segments, a memory with a number, an address that is computed,
	// segments that code may name.
	for _, tail := range []string{"\x0b\x03\x01\x01\x00", "\x0b\x07\x01\x02\x00\x41\x00\x0b\x00", "\x0b\x06\x01\x00\x23\x00\x0b\x00", "\x0c\x01\x01" + "\x0b\x06\x01\x00\x41\x00\x0b\x00"} {
		if out, err := mergeData([]byte(header + tail)); err != nil || string(out) != header+tail {
			t.Errorf("%q became %q, %v", tail, out, err)
		}
	}
}

func TestSigned32(t *testing.T) {
	for _, at := range []uint64{0, 1, 63, 64, 127, 128, 8191, 8192, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		b := appendSigned32(nil, at)
		got, rest, err := signed32(append(b, "rest"...))
		if got != at || err != nil || string(rest) != "rest" {
			t.Errorf("%d is %x, which reads as %d, %v", at, b, got, err)
		}
	}
	if _, _, err := signed32([]byte(strings.Repeat("\x80", 9))); !errors.Is(err, errModule) {
		t.Errorf("an endless number: %v", err)
	}
}
