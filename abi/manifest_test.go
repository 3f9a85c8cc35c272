package abi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
)

const goodManifest = `{"abi":1,"name":"digest","version":"1.0.0-rc.1+x","description":"d","ops":["kv.get","send"],
	"operations":[{"operation":"files.read","effect":"read","resource":"files:docs/**"}],
	"input":{"type":"object"},"limits":{"memory_pages":64}}`

func TestParseManifest(t *testing.T) {
	m, err := abi.ParseManifest([]byte(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	for op, want := range map[abi.Op]bool{
		abi.OpKVGet: true, abi.OpKVPut: false, abi.OpSend: true, abi.OpLLMChat: false, "": false,
		abi.OpDescribe: true, abi.OpProgress: true, abi.OpLog: true, abi.OpTimeNow: true, // need no line
	} {
		if m.HasOp(op) != want {
			t.Errorf("HasOp(%q) is %v", op, !want)
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	edit := func(old, now string) string {
		if !strings.Contains(goodManifest, old) {
			t.Fatalf("no %q to edit", old)
		}
		return strings.Replace(goodManifest, old, now, 1)
	}
	for in, want := range map[string]string{
		``:                            "cut off",
		`[]`:                          "args",
		edit(`"abi":1`, `"abi":2`):    "abi is 2",
		edit(`"abi":1,`, ``):          "abi is 0",
		edit(`"abi":1`, `"Abi":1`):    "must be spelled",
		edit(`"abi":1`, `"abi":1.0`):  "integer",
		edit(`"digest"`, `""`):        "name",
		edit(`"digest"`, `"Digest"`):  "name",
		edit(`"digest"`, `"1digest"`): "name",
		edit(`"digest"`, `"a_b"`):     "name",
		edit(`"digest"`, `"di/gest"`): "name",
		edit(`"digest"`, `"`+strings.Repeat("a", 33)+`"`): "name",
		edit(`1.0.0-rc.1+x`, ``):                          "version",
		edit(`1.0.0-rc.1+x`, `1 0`):                       "version",
		edit(`1.0.0-rc.1+x`, strings.Repeat("1", 65)):     "version",
		edit(`"d"`, `"`+strings.Repeat("d", 1025)+`"`):    "description",
		edit(`"kv.get"`, `"kv.got"`):                      "is not an op",
		edit(`"kv.get"`, `"send"`):                        "occurs twice",
		edit(`"files.read"`, `"files"`):                   "operations",
		edit(`"files.read"`, `"files.Read"`):              "operations",
		edit(`"files.read"`, `"files.read.all"`):          "operations",
		edit(`"effect":"read"`, `"effect":"none"`):        "effect",
		edit(`"effect":"read"`, `"effect":"reads"`):       "effect",
		edit(`"effect":"read"`, `"Effect":"read"`):        "must be spelled", // also in nested objects
		edit(`files:docs/**`, `files:**/docs`):            "** is only allowed at the end",
		edit(`files:docs/**`, `docs`):                     "scheme",
		edit(`{"type":"object"}`, `[]`):                   "input",
		edit(`{"type":"object"}`, `"x"`):                  "input",
		edit(`"memory_pages"`, `"memory"`):                "unknown field",
		edit(`"memory_pages":64`, `"memory_pages":-1`):    "memory_pages",
		edit(`"input"`, `"inputs"`):                       "unknown field",
		`{"abi":1,"name":"x","version":"1","ops":[],"description":"` + strings.Repeat("x", abi.MaxManifest) + `"}`: "bytes",
	} {
		if m, err := abi.ParseManifest([]byte(in)); err == nil {
			t.Errorf("%.100s\nwas read as %+v", in, m)
		} else if !errors.Is(err, abi.ErrManifest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s\n%v, want %q", in, err, want)
		}
	}
}

// section builds a section of a module.
func section(id byte, body string) string {
	return string(binary.AppendUvarint([]byte{id}, uint64(len(body)))) + body
}

func custom(name, content string) string {
	return section(0, string(binary.AppendUvarint(nil, uint64(len(name))))+name+content)
}

const header = "\x00asm\x01\x00\x00\x00"

func TestAttachAndFindManifest(t *testing.T) {
	want, err := abi.Canonical([]byte(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	for name, module := range map[string]string{
		"empty":                        header,
		"other sections":               header + section(1, "\x00") + custom("name", strings.Repeat("n", 300)),
		"the name as mere text":        header + section(11, "x"+abi.ManifestSection) + custom("producers", abi.ManifestSection),
		"a section with a longer name": header + custom(abi.ManifestSection+"2", "{}"),
	} {
		in := []byte(module)
		out, err := abi.AttachManifest(in, []byte(goodManifest))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.HasPrefix(out, in) {
			t.Errorf("%s: the module was changed", name)
		}
		if got, err := abi.FindManifest(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: found %s, %v", name, got, err)
		}
		if _, err := abi.AttachManifest(out, []byte(goodManifest)); err == nil {
			t.Errorf("%s: attached twice", name)
		}
	}
}

func TestFindManifestRefuses(t *testing.T) {
	if got, err := abi.FindManifest([]byte(header)); got != nil || err != nil {
		t.Errorf("a module without one: %q, %v", got, err)
	}
	for name, module := range map[string]string{
		"nothing":           "",
		"text":              "(module)",
		"a component":       "\x00asm\x0d\x00\x01\x00",
		"a cut section":     header + "\x01\x05ab",
		"a cut length":      header + "\x00\x80",
		"an endless length": header + "\x00\x80\x80\x80\x80\x80\x80\x00",
		"a huge length":     header + "\x00\xff\xff\xff\xff\x0f",
		"a cut name":        header + section(0, "\x10x"),
		"two manifests":     header + custom(abi.ManifestSection, "{}") + custom(abi.ManifestSection, "{}"),
	} {
		if got, err := abi.FindManifest([]byte(module)); !errors.Is(err, abi.ErrManifest) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzFindManifest: no module makes it panic or see what is not there.
func FuzzFindManifest(f *testing.F) {
	f.Add([]byte(header + custom(abi.ManifestSection, "{}")))
	f.Add([]byte(header + "\x00\x80\x80\x80\x80\x80"))
	f.Fuzz(func(t *testing.T, module []byte) {
		got, err := abi.FindManifest(module)
		if err == nil && got != nil && !bytes.Contains(module, append([]byte(abi.ManifestSection), got...)) {
			t.Errorf("%q is not in %q", got, module)
		}
	})
}

// TestImportsStandardLibraryOnly: a third party builds a host or a guest on abi
// without taking anything else on.
func TestImportsStandardLibraryOnly(t *testing.T) {
	const own = "github.com/getmonroe/monroe/abi"
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", own, own+"/wire").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if path != own && path != own+"/wire" {
			t.Errorf("abi depends on %s", path)
		}
	}
}
