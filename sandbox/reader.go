package sandbox

// A reader walks the bytes of a module. Its first error sticks: from then on
// every method returns zero values and nothing is consumed, so that callers
// check once per item, not once per byte.
type reader struct {
	b   []byte
	at  int
	off int // of b in the module, for messages
	err error
}

func (r *reader) left() int { return len(r.b) - r.at }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(r.off+r.at, format, args...)
		r.at = len(r.b)
	}
}

// refuse keeps an error that is already complete.
func (r *reader) refuse(err error) {
	if r.err == nil {
		r.err = err
		r.at = len(r.b)
	}
}

func (r *reader) byte() byte {
	if r.at >= len(r.b) {
		r.fail("it is cut off")
		return 0
	}
	c := r.b[r.at]
	r.at++
	return c
}

// u32 reads an unsigned LEB128 of at most 32 bits.
func (r *reader) u32() uint32 {
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			if v > 1<<32-1 {
				r.fail("a number exceeds 32 bits")
				return 0
			}
			return uint32(v)
		}
	}
	r.fail("a number exceeds 5 bytes")
	return 0
}

// signed reads a signed LEB128 of at most bits bits.
func (r *reader) signed(bits int) int64 {
	var v int64
	for shift := 0; shift < bits; shift += 7 {
		c := r.byte()
		v |= int64(c&0x7f) << shift
		if c&0x80 == 0 {
			if shift+7 < 64 && c&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			if bits < 64 && (v < -1<<(bits-1) || v > 1<<(bits-1)-1) {
				r.fail("a number exceeds %d bits", bits)
				return 0
			}
			return v
		}
	}
	r.fail("a number exceeds %d bits", bits)
	return 0
}

// take returns the next n bytes, which share memory with the module.
func (r *reader) take(n uint64) []byte {
	if n > uint64(r.left()) {
		r.fail("%d bytes are announced, %d are left", n, r.left())
		return nil
	}
	x := r.b[r.at : r.at+int(n) : r.at+int(n)]
	r.at += int(n)
	return x
}

// sub returns a reader of the next n bytes.
func (r *reader) sub(n uint64) *reader {
	off := r.off + r.at
	b := r.take(n)
	return &reader{b: b, off: off, err: r.err}
}

func (r *reader) name() string { return string(r.take(uint64(r.u32()))) }

// count reads the length of a vector. Each item takes at least one byte, so a
// count beyond the rest is refused here: what is allocated for a vector is
// bounded by the bytes that are really there.
func (r *reader) count(what string, most int) int {
	n := r.u32()
	if r.err != nil {
		return 0
	}
	if uint64(n) > uint64(most) {
		r.refuse(tooLarge("%d %s, at most %d are allowed", n, what, most))
		return 0
	}
	if uint64(n) > uint64(r.left()) {
		r.fail("%d %s are announced, %d bytes are left", n, what, r.left())
		return 0
	}
	return int(n)
}

// end refuses bytes after the last item.
func (r *reader) end(what string) {
	if r.err == nil && r.left() > 0 {
		r.fail("%d bytes are left over in the %s", r.left(), what)
	}
}
