package sandbox

import (
	"fmt"
	"strconv"

	"github.com/getmonroe/monroe/abi"
)

// Kinds of imports and exports.
const (
	kindFunc byte = iota
	kindTable
	kindMemory
	kindGlobal
	kindTag
)

type export struct {
	kind  byte
	index uint32
}

// A parser holds what later sections need of earlier ones.
type parser struct {
	out       Outline
	last      int // rank of the last section
	customs   int
	types     []signature
	funcs     []uint32 // type of each function, imported ones first
	declared  int
	bodies    int
	dataCount int
	entries   int // of element segments
	exports   map[string]export
	unknown   []string // imports, quoted
	manifest  []byte

	hasMemory, growsTable, openTable bool
}

// rank is a section's place in the order of the format, or 0 if it has none.
func rank(id byte) int {
	switch id {
	case 12: // data count stands before the code
		return 10
	case 10, 11:
		return int(id) + 1
	case 1, 2, 3, 4, 5, 6, 7, 8, 9:
		return int(id)
	}
	return 0
}

func (p *parser) section(id byte, s *reader) error {
	if id == 0 {
		return p.custom(s)
	}
	if id == 13 {
		return refusal("the module has a tag section (exception handling), which is outside the profile; compile without exceptions (Emscripten: -fno-exceptions, Rust: panic=abort)")
	}
	n := rank(id)
	if n == 0 {
		return malformed(s.off, "section %d is unknown", id)
	}
	if n <= p.last {
		return malformed(s.off, "section %d is out of order or occurs twice", id)
	}
	p.last = n
	p.read(id, s)
	s.end(fmt.Sprintf("section %d", id))
	return s.err
}

func (p *parser) read(id byte, s *reader) {
	switch id {
	case 1:
		p.typeSection(s)
	case 2:
		p.importSection(s)
	case 3:
		p.functionSection(s)
	case 4:
		p.tableSection(s)
	case 5:
		p.memorySection(s)
	case 6:
		for range s.count("globals", MaxGlobals) {
			p.valueType(s)
			if s.byte() > 1 {
				s.fail("a global is neither constant nor variable")
			}
			p.constant(s)
			if s.err != nil {
				return
			}
		}
	case 7:
		p.exportSection(s)
	case 8:
		p.out.HasStart = true
		p.checkFunc(s, s.u32())
	case 9:
		p.elementSection(s)
	case 10:
		p.codeSection(s)
	case 11:
		p.dataSection(s)
	case 12:
		p.dataCount = int(min(s.u32(), MaxDataSegments+1))
	}
}

func (p *parser) custom(s *reader) error {
	if p.customs++; p.customs > MaxCustoms {
		return tooLarge("more than %d custom sections; strip the module", MaxCustoms)
	}
	name := s.name()
	if s.err != nil {
		return s.err
	}
	if name != abi.ManifestSection {
		return nil
	}
	if p.manifest != nil {
		return refusal("the module has more than one custom section %q; attach one manifest only", abi.ManifestSection)
	}
	p.manifest = append([]byte{}, s.take(uint64(s.left()))...)
	return nil
}

func (p *parser) typeSection(s *reader) {
	n := s.count("types", MaxTypes)
	for range n {
		if form := s.byte(); form != 0x60 && s.err == nil {
			s.refuse(refusal("the module declares a type of form %#x (garbage collection proposal), which is outside the profile; compile for Wasm 2.0", form))
		}
		var t signature
		t.params = p.valueTypes(s, "parameters of one type", MaxParams)
		t.results = p.valueTypes(s, "results of one type", MaxResults)
		if s.err != nil {
			return
		}
		p.types = append(p.types, t)
	}
}

func (p *parser) valueTypes(s *reader, what string, most int) string {
	n := s.count(what, most)
	b := make([]byte, 0, n)
	for range n {
		b = append(b, p.valueType(s))
	}
	return string(b)
}

// valueType reads a value type and returns its letter.
func (p *parser) valueType(s *reader) byte {
	switch t := s.byte(); t {
	case 0x7f:
		return 'i'
	case 0x7e:
		return 'I'
	case 0x7d:
		return 'f'
	case 0x7c:
		return 'F'
	case 0x7b:
		return 'v'
	case 0x70:
		return 'n'
	case 0x6f:
		return 'x'
	default:
		s.fail("the value type %#x is outside the profile (Wasm 2.0)", t)
		return '?'
	}
}

func (p *parser) importSection(s *reader) {
	known := map[string]signature{}
	for _, f := range hostFuncs() {
		known[f.module+"."+f.name] = f.sig
	}
	for range s.count("imports", MaxImports) {
		mod, field, kind := s.name(), s.name(), s.byte()
		if s.err != nil {
			return
		}
		if kind != kindFunc {
			what := map[byte]string{kindTable: "table", kindMemory: "memory", kindGlobal: "global", kindTag: "exception tag"}[kind]
			s.refuse(refusal("the module imports a %s (%q %q); a guest defines its own memory, tables and globals: compile without --import-memory and --import-table", what, clip(mod), clip(field)))
			return
		}
		i := s.u32()
		if s.err == nil && uint64(i) >= uint64(len(p.types)) {
			s.fail("an import has type %d of %d", i, len(p.types))
		}
		if s.err != nil {
			return
		}
		p.funcs = append(p.funcs, i)
		name := mod + "." + field
		want, ok := known[name]
		switch {
		case !ok:
			p.unknown = append(p.unknown, strconv.Quote(clip(mod)+"."+clip(field)))
		case want != p.types[i]:
			s.refuse(refusal("the import %s has the type %s, it must have %s (i is i32, I is i64)", name, p.types[i], want))
		default:
			p.out.Imports = append(p.out.Imports, name)
		}
	}
}

// clip shortens a name of the guest that goes into a message.
func clip(s string) string { return s[:min(len(s), 64)] }

func (p *parser) functionSection(s *reader) {
	n := s.count("functions", MaxFunctions)
	p.declared = n
	p.out.Functions = n
	for range n {
		i := s.u32()
		if s.err == nil && uint64(i) >= uint64(len(p.types)) {
			s.fail("a function has type %d of %d", i, len(p.types))
		}
		if s.err != nil {
			return
		}
		p.funcs = append(p.funcs, i)
	}
}

func (p *parser) funcType(index uint32) (signature, bool) {
	if uint64(index) >= uint64(len(p.funcs)) {
		return signature{}, false
	}
	return p.types[p.funcs[index]], true
}

func (p *parser) checkFunc(s *reader, index uint32) {
	if s.err == nil && uint64(index) >= uint64(len(p.funcs)) {
		s.fail("function %d of %d is named", index, len(p.funcs))
	}
}

func (p *parser) tableSection(s *reader) {
	for range s.count("tables", MaxTables) {
		if t := s.byte(); t != 0x70 && t != 0x6f {
			s.fail("a table of type %#x is outside the profile", t)
		}
		lo, hi, hasMax := p.limits(s, "table")
		if s.err != nil {
			return
		}
		if lo > MaxTable {
			s.refuse(tooLarge("a table has %d elements at least, at most %d are allowed", lo, MaxTable))
		}
		if !hasMax || hi > MaxTable {
			p.openTable = true // refused only if code grows one
		}
	}
}

func (p *parser) memorySection(s *reader) {
	n := s.count("memories", 100)
	if s.err == nil && n != 1 {
		s.refuse(refusal("the module has %d memories, exactly one is allowed; compile without the multi-memory proposal", n))
		return
	}
	lo, _, _ := p.limits(s, "memory")
	if s.err != nil {
		return
	}
	if most := abi.DefaultLimits().MemoryPages; lo > most {
		s.refuse(tooLarge("the memory starts with %d pages of 64 KiB, at most %d are allowed; lower the initial memory", lo, most))
	}
	p.hasMemory, p.out.MemoryMin = true, lo
}

func (p *parser) limits(s *reader, what string) (lo, hi uint32, hasMax bool) {
	switch f := s.byte(); {
	case s.err != nil:
	case f == 0:
		return s.u32(), 0, false
	case f == 1:
		lo, hi = s.u32(), s.u32()
		if s.err == nil && hi < lo {
			s.fail("the maximum of a %s is below its minimum", what)
		}
		return lo, hi, true
	case f&2 != 0:
		s.refuse(refusal("the %s is shared (threads proposal), which is outside the profile; compile without -pthread and atomics", what))
	case f&4 != 0:
		s.refuse(refusal("the %s has 64-bit addresses (memory64), which is outside the profile; compile for wasm32", what))
	default:
		s.fail("the limits flag %#x is unknown", f)
	}
	return 0, 0, false
}

func (p *parser) exportSection(s *reader) {
	for range s.count("exports", MaxExports) {
		name, kind, index := s.name(), s.byte(), s.u32()
		if s.err == nil && kind == kindFunc {
			p.checkFunc(s, index)
		}
		if s.err != nil {
			return
		}
		if len(name) > MaxExportName {
			s.refuse(tooLarge("an export's name has %d bytes, at most %d are allowed", len(name), MaxExportName))
		}
		if kind > kindGlobal {
			s.fail("an export of kind %d is outside the profile", kind)
		}
		if _, twice := p.exports[name]; twice {
			s.fail("the export %q occurs twice", clip(name))
		}
		p.exports[name] = export{kind, index}
	}
}
