package sandbox

// codeSection walks every instruction. It counts what makes compilers slow and
// refuses what is outside the profile.
func (p *parser) codeSection(s *reader) {
	n := s.count("function bodies", MaxFunctions)
	if s.err == nil && n != p.declared {
		s.fail("%d bodies for %d functions", n, p.declared)
	}
	first := len(p.funcs) - p.declared // the imported ones come first
	for i := range n {
		size := s.u32()
		if s.err == nil && size > MaxBody {
			s.refuse(tooLarge("function %d has a body of %d bytes, at most %d are allowed; split the function or lower inlining", first+i, size, MaxBody))
		}
		f := &function{p: p, r: s.sub(uint64(size)), index: first + i}
		if f.r.err == nil {
			f.body(len(p.types[p.funcs[first+i]].params))
		}
		if f.r.err != nil {
			s.refuse(f.r.err)
		}
		if s.err != nil {
			return
		}
		p.bodies++
	}
}

// A function is one body while it is walked.
type function struct {
	p      *parser
	r      *reader
	index  int
	locals uint64
	loops  uint64
	labels int // parameters and results of blocks
	depth  int
}

func (f *function) body(params int) {
	f.locals = uint64(params)
	for range f.r.count("groups of locals of one function", MaxLocals) {
		n := f.r.u32()
		f.p.valueType(f.r)
		// Checked per group, as 64-bit numbers: a sum of 32-bit counts can wrap.
		if f.locals += uint64(n); f.locals > MaxLocals {
			f.r.refuse(tooLarge("function %d has %d locals, at most %d are allowed; split the function", f.index, f.locals, MaxLocals))
		}
		if f.r.err != nil {
			return
		}
	}
	for f.depth = 1; f.depth > 0 && f.r.err == nil; {
		f.instruction()
	}
	f.r.end("function body")
}

func (f *function) outside(what, remedy string) {
	f.r.refuse(refusal("function %d uses %s, which is outside the profile (Wasm 2.0, extended constants, tail calls); %s", f.index, what, remedy))
}

func (f *function) instruction() {
	r := f.r
	switch op := r.byte(); {
	case r.err != nil:
	case op >= 0x02 && op <= 0x04: // block, loop, if
		f.block(op == 0x03)
	case op == 0x0b: // end
		f.depth--
	case op == 0x0e: // br_table
		for range r.count("branch targets", MaxBody) {
			r.u32()
		}
		r.u32()
	case op == 0x06 || op >= 0x07 && op <= 0x0a || op == 0x18 || op == 0x19 || op == 0x1f:
		f.outside("exception handling", "compile without exceptions (Emscripten: -fno-exceptions, Rust: panic=abort)")
	case op == 0x14 || op == 0x15 || op >= 0xd3 && op <= 0xd6 || op == 0xfb:
		f.outside("typed references or garbage collection", "compile for Wasm 2.0")
	case op == 0xfe:
		f.outside("atomic instructions", "compile without threads (-pthread, +atomics)")
	case op == 0x0c || op == 0x0d || op >= 0x20 && op <= 0x26 || op == 0x10 || op == 0x12 || op == 0xd2:
		r.u32() // br, br_if, locals, globals, tables, call, return_call, ref.func
	case op == 0x11 || op == 0x13: // call_indirect, return_call_indirect
		r.u32()
		r.u32()
	case op >= 0x28 && op <= 0x3e: // loads and stores
		f.memarg()
	case op == 0x3f || op == 0x40: // memory.size, memory.grow
		f.memoryIndex()
	case op == 0x41:
		r.signed(32)
	case op == 0x42:
		r.signed(64)
	case op == 0x43:
		r.take(4)
	case op == 0x44:
		r.take(8)
	case op == 0x1c: // select with types
		f.p.valueTypes(r, "types of a select", MaxResults)
	case op == 0xd0: // ref.null
		f.p.valueType(r)
	case op == 0xfc:
		f.miscellaneous()
	case op == 0xfd:
		f.vector()
	case op <= 0x01 || op == 0x05 || op == 0x0f || op == 0x1a || op == 0x1b || op >= 0x45 && op <= 0xc4 || op == 0xd1:
		// no operands
	default:
		f.outside("an unknown instruction", "build the module again with a released compiler")
	}
}

func (f *function) block(loop bool) {
	if f.depth++; f.depth > MaxNesting {
		f.r.refuse(tooLarge("function %d nests more than %d blocks; split the function", f.index, MaxNesting))
	}
	if loop {
		if f.loops++; f.loops*max(f.locals, 1) > MaxLoopsByLocals {
			f.r.refuse(tooLarge("function %d has %d loops and %d locals; their product may be %d at most: split the function or lower inlining", f.index, f.loops, f.locals, MaxLoopsByLocals))
		}
	}
	t := f.r.signed(33)
	switch {
	case f.r.err != nil:
	case t == -64: // no values
	case t >= 0 && uint64(t) < uint64(len(f.p.types)):
		// Each value of a label is one more variable for the compiler, and a
		// block that names a wide type costs two bytes.
		sig := f.p.types[t]
		f.labels += len(sig.params) + len(sig.results)
	case t == -1, t == -2, t == -3, t == -4, t == -5, t == -16, t == -17:
		f.labels++
	default:
		f.r.fail("a block has the type %d", t)
	}
	if f.labels > MaxLabelValues {
		f.r.refuse(tooLarge("the blocks of function %d have more than %d parameters and results; split the function", f.index, MaxLabelValues))
	}
}

// memarg reads alignment and offset; bit 6 of the alignment announces an index.
func (f *function) memarg() {
	if align := f.r.u32(); align&0x40 != 0 {
		f.outside("more than one memory", "compile without the multi-memory proposal")
	}
	f.r.u32()
}

func (f *function) memoryIndex() {
	if f.r.byte() != 0 {
		f.outside("more than one memory", "compile without the multi-memory proposal")
	}
}

func (f *function) miscellaneous() {
	r := f.r
	switch op := r.u32(); {
	case r.err != nil || op <= 7: // saturating conversions
	case op == 8: // memory.init
		r.u32()
		f.memoryIndex()
	case op == 9, op == 13: // data.drop, elem.drop
		r.u32()
	case op == 10: // memory.copy
		f.memoryIndex()
		f.memoryIndex()
	case op == 11: // memory.fill
		f.memoryIndex()
	case op == 12, op == 14: // table.init, table.copy
		r.u32()
		r.u32()
	case op >= 15 && op <= 17: // table.grow, table.size, table.fill
		r.u32()
		f.p.growsTable = f.p.growsTable || op == 15
	default:
		f.outside("an instruction of a later proposal", "compile for Wasm 2.0")
	}
}

func (f *function) vector() {
	r := f.r
	switch op := r.u32(); {
	case r.err != nil:
	case op <= 11, op == 92, op == 93:
		f.memarg()
	case op == 12, op == 13: // v128.const, i8x16.shuffle
		r.take(16)
	case op >= 21 && op <= 34: // lanes
		r.byte()
	case op >= 84 && op <= 91: // loads and stores of a lane
		f.memarg()
		r.byte()
	case op < 0x100:
	default:
		f.outside("relaxed vector instructions", "compile without -mrelaxed-simd")
	}
}
