package sandbox

// constant passes over a constant expression, up to and with its end. It returns
// the value and true if the expression is a single i32.const.
func (p *parser) constant(s *reader) (value uint32, plain bool) {
	for n := 0; s.err == nil; n++ {
		switch op := s.byte(); op {
		case 0x0b: // end
			return value, plain && n == 1
		case 0x41: // i32.const
			value, plain = uint32(s.signed(32)), true
		case 0x42: // i64.const
			s.signed(64)
		case 0x43: // f32.const
			s.take(4)
		case 0x44: // f64.const
			s.take(8)
		case 0x23: // global.get
			s.u32()
		case 0xd0: // ref.null
			p.valueType(s)
		case 0xd2: // ref.func
			p.checkFunc(s, s.u32())
		case 0xfd: // v128.const
			if s.u32() != 12 {
				s.fail("a vector instruction in a constant expression")
			}
			s.take(16)
		case 0x6a, 0x6b, 0x6c, 0x7c, 0x7d, 0x7e: // extended-const arithmetic
		default:
			s.fail("the instruction %#x in a constant expression is outside the profile", op)
		}
	}
	return 0, false
}

func (p *parser) elementSection(s *reader) {
	for range s.count("element segments", MaxSegments) {
		flag := s.u32()
		if s.err == nil && flag > 7 {
			s.fail("an element segment has the flag %d", flag)
		}
		passive, explicit, expressions := flag&1 != 0, flag&2 != 0, flag&4 != 0
		if !passive {
			if explicit {
				s.u32() // the table
			}
			p.constant(s)
		}
		if passive || explicit {
			if expressions {
				p.valueType(s)
			} else if s.byte() != 0 {
				s.fail("an element segment is not of functions")
			}
		}
		n := s.count("elements of a segment", MaxElements)
		if p.entries += n; p.entries > MaxElements {
			s.refuse(tooLarge("the element segments have more than %d entries", MaxElements))
		}
		for range n {
			if expressions {
				p.constant(s)
			} else {
				p.checkFunc(s, s.u32())
			}
			if s.err != nil {
				return
			}
		}
	}
}

func (p *parser) dataSection(s *reader) {
	n := s.count("data segments", MaxDataSegments)
	p.out.DataSegments = n
	size := uint64(p.out.MemoryMin) << 16
	for range n {
		flag := s.u32()
		at, known := uint32(0), false
		switch {
		case s.err != nil:
		case flag == 0:
			at, known = p.constant(s)
		case flag == 1: // passive
		case flag == 2:
			if s.u32() != 0 {
				s.fail("a data segment is for a memory that does not exist")
			}
			at, known = p.constant(s)
		default:
			s.fail("a data segment has the flag %d", flag)
		}
		body := s.take(uint64(s.u32()))
		if s.err == nil && known && uint64(at)+uint64(len(body)) > size {
			s.refuse(refusal("a data segment of %d bytes at %d does not fit the initial memory of %d bytes; raise the initial memory", len(body), at, size))
		}
		if s.err != nil {
			return
		}
	}
}
