package sandbox

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// Limits of a module, checked before an engine sees it. An engine's compiler is
// superlinear in several of them, so that a small file could occupy it for
// minutes; each bound here is far above what Go, C, Rust or QuickJS emit.
const (
	MaxFunctions     = 50_000
	MaxBody          = 1 << 20 // bytes of one function's body
	MaxLocals        = 2_000   // of one function, parameters included
	MaxLoopsByLocals = 50_000  // product, per function
	MaxNesting       = 3_000   // blocks within blocks; Go nests once for each point a function can be resumed at
	MaxLabelValues   = 50_000  // parameters and results of all blocks of one function
	MaxDataSegments  = 100_000
	MaxTable         = 100_000 // elements, also of a table that can grow
	MaxTables        = 16
	MaxTypes         = 10_000
	MaxParams        = 256
	MaxResults       = 64
	MaxImports       = 100
	MaxExports       = 10_000
	MaxGlobals       = 10_000
	MaxElements      = 200_000 // entries of all element segments together
	MaxSegments      = 10_000  // element segments
	MaxExportName    = 1 << 10 // bytes
	MaxCustoms       = 1_000   // custom sections
)

// Outline is what an admitted module is.
type Outline struct {
	// Manifest is the parsed content of the manifest section, and ManifestJSON
	// its canonical bytes.
	Manifest     *abi.Manifest
	ManifestJSON []byte
	// Imports are "module.name", in order.
	Imports       []string
	Functions     int
	DataSegments  int
	MemoryMin     uint32 // pages
	HasInitialize bool
	HasStart      bool
}

// Admit reads a whole core module and decides whether an engine may see it. A
// refusal is a *Fault with MODULE or TOO_LARGE whose message tells the author what
// to change. It allocates in proportion to the module and never panics. The
// outline shares no memory with the module.
//
// It does not type-check code: the engine does. It guarantees that the engine's
// compiler meets no feature outside the profile (Wasm 2.0, extended constant
// expressions, tail calls) and nothing beyond the limits.
func Admit(module []byte) (*Outline, error) {
	if len(module) > abi.MaxModule {
		return nil, tooLarge("the module has %d bytes, at most %d are allowed; strip debug information (-s -w, wasm-opt)", len(module), abi.MaxModule)
	}
	if err := checkHeader(module); err != nil {
		return nil, err
	}
	p := &parser{exports: map[string]export{}, dataCount: -1}
	for r := (&reader{b: module, at: 8}); r.err == nil && r.left() > 0; {
		id := r.byte()
		s := r.sub(uint64(r.u32()))
		if s.err != nil {
			return nil, s.err
		}
		if err := p.section(id, s); err != nil {
			return nil, err
		}
	}
	return p.finish()
}

func checkHeader(module []byte) error {
	if len(module) < 8 || string(module[:4]) != "\x00asm" {
		return refusal("this is not a WebAssembly binary: it does not begin with \\0asm and a version; upload the .wasm file, not text or an archive")
	}
	switch v := binary.LittleEndian.Uint32(module[4:]); v {
	case 1:
		return nil
	case 0x0001000d:
		return refusal("this is a component; a core module is needed: build for wasm32-wasip1 or wasm32-unknown-unknown and do not run wasm-tools component new")
	default:
		return refusal("the version word is %#x; a core module of version 1 is needed", v)
	}
}

func refusal(format string, args ...any) *Fault { return fault(wire.FaultModule, format, args...) }

func tooLarge(format string, args ...any) *Fault { return fault(wire.FaultTooLarge, format, args...) }

func malformed(at int, format string, args ...any) *Fault {
	return refusal("the module is malformed at byte %d: %s; build it again", at, fmt.Sprintf(format, args...))
}

// finish checks what only the whole module shows.
func (p *parser) finish() (*Outline, error) {
	if p.declared != p.bodies {
		return nil, refusal("the module is malformed: %d functions are declared and %d have a body; build it again", p.declared, p.bodies)
	}
	if p.dataCount >= 0 && p.dataCount != p.out.DataSegments {
		return nil, refusal("the module is malformed: %d data segments are announced and %d follow; build it again", p.dataCount, p.out.DataSegments)
	}
	if len(p.unknown) > 0 {
		return nil, refusal("the module imports what this host does not offer: %s; a guest may import only %s.{call,read,write,close} and the WASI preview 1 functions of the specification",
			strings.Join(p.unknown, ", "), abi.ImportModule)
	}
	if !p.hasMemory {
		return nil, refusal(`the module has no memory; define one and export it as "memory"`)
	}
	if e, ok := p.exports["memory"]; !ok || e.kind != kindMemory {
		return nil, refusal(`the memory is not exported; export it as "memory"`)
	}
	if err := p.checkExport("monroe_run", signature{"", "i"}, true); err != nil {
		return nil, err
	}
	if err := p.checkExport("_initialize", signature{}, false); err != nil {
		return nil, err
	}
	if p.growsTable && p.openTable {
		return nil, refusal("the module grows a table that has no maximum; declare a maximum of at most %d elements", MaxTable)
	}
	if p.manifest == nil {
		return nil, refusal("the module has no custom section %q; attach its manifest (monroe skill pack does)", abi.ManifestSection)
	}
	m, err := abi.ParseManifest(p.manifest)
	if err != nil {
		return nil, refusal("%v", err)
	}
	if p.out.ManifestJSON, err = abi.Canonical(p.manifest); err != nil {
		return nil, refusal("manifest: %v", err)
	}
	p.out.Manifest = m
	_, p.out.HasInitialize = p.exports["_initialize"]
	return &p.out, nil
}

func (p *parser) checkExport(name string, want signature, needed bool) error {
	e, ok := p.exports[name]
	if !ok && !needed {
		return nil
	}
	if !ok {
		hint := ""
		if _, command := p.exports["_start"]; command {
			hint = "; this is a command with _start: build a reactor (Go: -buildmode=c-shared, clang: -mexec-model=reactor)"
		}
		return refusal("the module does not export the function %q %s%s", name, want, hint)
	}
	if e.kind != kindFunc {
		return refusal("the export %q is not a function", name)
	}
	have, ok := p.funcType(e.index)
	if !ok {
		return refusal("the module is malformed: the export %q names a function that does not exist", name)
	}
	if have != want {
		return refusal("the export %q has the type %s, it must have %s (i is i32, I is i64)", name, have, want)
	}
	return nil
}
