// Package wasmtest assembles small WebAssembly modules for tests, valid or
// deliberately broken, so that no binary is kept in the repository.
//
// It knows the binary format just far enough. It must not know what a host does
// with the result, and nothing but tests and the conformance kit may import it.
package wasmtest

import (
	"encoding/binary"
	"fmt"
)

// Value types as they are written in signatures and as bytes.
const (
	I32 byte = 0x7f
	I64 byte = 0x7e
	F32 byte = 0x7d
	F64 byte = 0x7c
)

// Manifest is a manifest that any parser accepts.
const Manifest = `{"abi":1,"name":"fixture","version":"1.0.0","description":"a test","ops":[]}`

// Export kinds.
const (
	KindFunc   byte = 0
	KindTable  byte = 1
	KindMemory byte = 2
	KindGlobal byte = 3
)

// Builder collects the parts of one module. Its zero value is an empty module.
// Parts are emitted in the order of the format, whatever the order of calls.
type Builder struct {
	types    [][]byte
	imports  [][]byte
	funcs    []uint32 // type of each defined function
	bodies   [][]byte
	tables   [][]byte
	memories [][]byte
	globals  [][]byte
	exports  [][]byte
	elements [][]byte
	data     [][]byte
	customs  [][]byte
	raw      map[byte][]byte
	start    []byte
	imported uint32
}

// Type adds a function type, in the letters i (i32), I (i64), f and F, and
// returns its index. Types are not shared.
func (b *Builder) Type(params, results string) uint32 {
	t := append([]byte{0x60}, Vec(letters(params))...)
	b.types = append(b.types, append(t, Vec(letters(results))...))
	return uint32(len(b.types) - 1)
}

// Import adds an imported function and returns its index. All imports come
// before the first Func.
func (b *Builder) Import(module, name, params, results string) uint32 {
	return b.ImportRaw(module, name, append([]byte{0}, U32(b.Type(params, results))...), true)
}

// ImportRaw adds an import with the given description.
func (b *Builder) ImportRaw(module, name string, desc []byte, isFunc bool) uint32 {
	b.imports = append(b.imports, Cat(Name(module), Name(name), desc))
	if isFunc {
		b.imported++
		return b.imported - 1
	}
	return 0
}

// Func adds a function with locals of type i32 and returns its index. The final
// end is added.
func (b *Builder) Func(params, results string, locals uint32, code ...[]byte) uint32 {
	decl := U32(0)
	if locals > 0 {
		decl = Cat(U32(1), U32(locals), []byte{I32})
	}
	return b.FuncRaw(b.Type(params, results), Cat(decl, Cat(code...), []byte{0x0b}))
}

// FuncRaw adds a function of the given type with a body of declarations and code.
func (b *Builder) FuncRaw(typ uint32, body []byte) uint32 {
	b.funcs = append(b.funcs, typ)
	b.bodies = append(b.bodies, body)
	return b.imported + uint32(len(b.funcs)) - 1
}

// Memory adds a memory with a minimum of pages and, optionally, a maximum.
func (b *Builder) Memory(lo uint32, hi ...uint32) { b.memories = append(b.memories, limits(lo, hi)) }

// MemoryRaw adds a memory with the given limits.
func (b *Builder) MemoryRaw(raw ...byte) { b.memories = append(b.memories, raw) }

// Table adds a table of funcref.
func (b *Builder) Table(lo uint32, hi ...uint32) {
	b.tables = append(b.tables, append([]byte{0x70}, limits(lo, hi)...))
}

// Global adds a global of type i32.
func (b *Builder) Global(value int32, mutable bool) {
	m := byte(0)
	if mutable {
		m = 1
	}
	b.globals = append(b.globals, Cat([]byte{I32, m}, I32Const(value), []byte{0x0b}))
}

// Export exports an index under a name.
func (b *Builder) Export(name string, kind byte, index uint32) {
	b.exports = append(b.exports, Cat(Name(name), []byte{kind}, U32(index)))
}

// Data adds an active segment.
func (b *Builder) Data(offset int32, bytes []byte) {
	b.data = append(b.data, Cat([]byte{0}, I32Const(offset), []byte{0x0b}, Vec(bytes)))
}

// Element adds an active element segment of functions for table 0.
func (b *Builder) Element(offset int32, funcs ...uint32) {
	e := Cat([]byte{0}, I32Const(offset), []byte{0x0b}, U32(uint32(len(funcs))))
	for _, f := range funcs {
		e = append(e, U32(f)...)
	}
	b.elements = append(b.elements, e)
}

// Start makes a function the start function.
func (b *Builder) Start(index uint32) { b.start = U32(index) }

// Custom adds a custom section at the end.
func (b *Builder) Custom(name string, body []byte) {
	b.customs = append(b.customs, Section(0, Cat(Name(name), body)))
}

// Raw sets a whole section, in place of what was collected for it.
func (b *Builder) Raw(id byte, body []byte) {
	if b.raw == nil {
		b.raw = map[byte][]byte{}
	}
	b.raw[id] = body
}

// Bytes returns the module.
func (b *Builder) Bytes() []byte {
	out := Header(1)
	add := func(id byte, items [][]byte) {
		if body, ok := b.raw[id]; ok {
			out = append(out, Section(id, body)...)
			return
		}
		if len(items) > 0 {
			out = append(out, Section(id, Cat(U32(uint32(len(items))), Cat(items...)))...)
		}
	}
	funcs := make([][]byte, len(b.funcs))
	bodies := make([][]byte, len(b.bodies))
	for i := range b.funcs {
		funcs[i], bodies[i] = U32(b.funcs[i]), Vec(b.bodies[i])
	}
	add(1, b.types)
	add(2, b.imports)
	add(3, funcs)
	add(4, b.tables)
	add(5, b.memories)
	add(13, nil)
	add(6, b.globals)
	add(7, b.exports)
	if b.start != nil {
		out = append(out, Section(8, b.start)...)
	}
	add(9, b.elements)
	add(12, nil)
	add(10, bodies)
	add(11, b.data)
	for _, c := range b.customs {
		out = append(out, c...)
	}
	return out
}

// Header is the magic and the version word.
func Header(version uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte("\x00asm"), version)
}

// Section frames a section.
func Section(id byte, body []byte) []byte { return append([]byte{id}, Vec(body)...) }

// U32 is an unsigned LEB128.
func U32(v uint32) []byte { return binary.AppendUvarint(nil, uint64(v)) }

// S64 is a signed LEB128.
func S64(v int64) []byte {
	var b []byte
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// Vec prefixes bytes with their count.
func Vec(b []byte) []byte { return append(U32(uint32(len(b))), b...) }

// Name is a name as the format writes it.
func Name(s string) []byte { return Vec([]byte(s)) }

// Cat concatenates into fresh memory.
func Cat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func limits(lo uint32, hi []uint32) []byte {
	if len(hi) == 0 {
		return append([]byte{0}, U32(lo)...)
	}
	return Cat([]byte{1}, U32(lo), U32(hi[0]))
}

func letters(s string) []byte {
	b := make([]byte, len(s))
	for i := range len(s) {
		switch s[i] {
		case 'i':
			b[i] = I32
		case 'I':
			b[i] = I64
		case 'f':
			b[i] = F32
		case 'F':
			b[i] = F64
		default:
			panic(fmt.Sprintf("wasmtest: type letter %q", s[i]))
		}
	}
	return b
}
