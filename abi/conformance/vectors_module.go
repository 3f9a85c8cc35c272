package conformance

import (
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

const (
	ask  = `{"op":"time.now","v":1}` // 23 bytes
	page = 65536
	huge = -1 // 4 GiB-1 as an unsigned length
)

// guest is a module with the four imports, one page of memory and data at 0.
func guest(data string, code func(im w.Imports) []byte) func() []byte {
	return func() []byte {
		b, im := w.Guest()
		if data != "" {
			b.Data(0, []byte(data))
		}
		b.Export("monroe_run", w.KindFunc, b.Func("", "i", 4, code(im)))
		return b.Bytes()
	}
}

// build is a module that needs more than guest offers. Its monroe_run leaves an i32.
func build(fill func(b *w.Builder, im w.Imports) []byte) func() []byte {
	return func() []byte {
		b, im := w.Guest()
		code := fill(b, im)
		b.Export("monroe_run", w.KindFunc, b.Func("", "i", 4, code))
		return b.Bytes()
	}
}

// call makes a call of the ABI and leaves its i64.
func call(im w.Imports, ptr, n, out, room int32) []byte {
	return w.Cat(w.I32Const(ptr), w.I32Const(n), w.I32Const(out), w.I32Const(room), w.Call(im.Call))
}

func read(im w.Imports, handle, ptr, room int32) []byte {
	return w.Cat(w.I32Const(handle), w.I32Const(ptr), w.I32Const(room), w.Call(im.Read))
}

func write(im w.Imports, handle, ptr, n int32) []byte {
	return w.Cat(w.I32Const(handle), w.I32Const(ptr), w.I32Const(n), w.Call(im.Write))
}

func closes(im w.Imports, handle int32) []byte {
	return w.Cat(w.I32Const(handle), w.Call(im.Close))
}

// one is a monroe_run that makes one call of any sort and returns the lower half of its result.
func one(call func(im w.Imports) []byte) func() []byte {
	return guest(ask, func(im w.Imports) []byte { return w.Cat(call(im), w.Wrap) })
}

func asks(ptr, n, out, room int32) func() []byte {
	return one(func(im w.Imports) []byte { return call(im, ptr, n, out, room) })
}

var (
	ok      = w.I32Const(0)
	notEq   = []byte{0x47}
	store64 = []byte{0x37, 3, 0}
	load32  = []byte{0x28, 2, 0}
)

// parkTwice parks two replies: handles 2 and 3.
func parkTwice(then func(im w.Imports) []byte) func() []byte {
	return guest(ask, func(im w.Imports) []byte {
		return w.Cat(call(im, 0, 23, 0, 0), w.Drop, call(im, 0, 23, 0, 0), w.Drop, then(im))
	})
}

const (
	called = `call "{\"op\":\"time.now\",\"v\":1}"`
	okay   = `"{\"ok\":{}}"`
)

func moduleVectors() []Vector {
	return []Vector{
		{
			Name: "a guest asks and answers", Clauses: "1.1 2.1 2.2 2.7 2.11",
			Module: func() []byte { return w.Asks(ask, 64) },
			Want:   []string{called, "done 0 " + okay},
		},
		{
			Name: "tail calls, constants and vectors compute alike", Clauses: "1.1 9.2", Module: portable,
			Want: []string{`done 7 ""`},
		},
		{
			Name: "a status is the guest's own", Clauses: "2.3",
			Module: guest(`{"error":{"reason":"no mail"}}`, func(im w.Imports) []byte {
				return w.Cat(write(im, 1, 0, 30), w.Drop, w.I32Const(-5))
			}),
			Want: []string{`done -5 "{\"error\":{\"reason\":\"no mail\"}}"`},
		},
		{
			Name: "_initialize runs once, before monroe_run", Clauses: "2.2 2.4",
			Module: build(func(b *w.Builder, _ w.Imports) []byte {
				b.Global(0, true)
				b.Export("_initialize", w.KindFunc, b.Func("", "", 0, w.Cat([]byte{0x23, 0}, w.I32Const(1), w.Add, []byte{0x24, 0})))
				return []byte{0x23, 0} // global.get
			}),
			Want: []string{`done 1 ""`},
		},
		{
			Name: "other exports are ignored", Clauses: "2.2",
			Module: build(func(b *w.Builder, _ w.Imports) []byte {
				b.Export("monroe_extra", w.KindFunc, b.Func("ii", "I", 0, w.I64Const(1)))
				return ok
			}),
			Want: []string{`done 0 ""`},
		},
		{Name: "a host call in _initialize", Clauses: "2.4 2.12", Module: early("_initialize"), Want: []string{"fault INIT"}},
		{Name: "a host call in the start function", Clauses: "2.4 2.12", Module: early(""), Want: []string{"fault INIT"}},

		// Pointers. Nothing is asked where a pointer is bad.
		{Name: "a request beyond memory", Clauses: "2.5 2.12", Module: asks(page, 1, 0, 0), Want: []string{"fault MEMORY"}},
		{Name: "a request across the end", Clauses: "2.5", Module: asks(page-4, 8, 0, 0), Want: []string{"fault MEMORY"}},
		{Name: "a request that wraps around", Clauses: "2.5", Module: asks(-8, 16, 0, 0), Want: []string{"fault MEMORY"}},
		{Name: "a request of 4 GiB", Clauses: "2.5", Module: asks(0, huge, 0, 0), Want: []string{"fault MEMORY"}},
		{Name: "an answer beyond memory has no effect", Clauses: "2.5 2.8", Module: asks(0, 23, page, 1), Want: []string{"fault MEMORY"}},
		{Name: "an answer that wraps around", Clauses: "2.5 2.8", Module: asks(0, 23, -8, 16), Want: []string{"fault MEMORY"}},
		{Name: "an answer of 4 GiB", Clauses: "2.5 2.8", Module: asks(0, 23, 0, huge), Want: []string{"fault MEMORY"}},
		{Name: "an answer across the end", Clauses: "2.5 2.8", Module: asks(0, 23, page-1, 2), Want: []string{"fault MEMORY"}},
		{Name: "empty spans at the end of memory", Clauses: "2.5", Module: asks(page, 0, page, 0), Want: []string{`call ""`, `done 2 ""`}},
		{Name: "an empty span beyond the end", Clauses: "2.5", Module: asks(page+1, 0, 0, 0), Want: []string{"fault MEMORY"}},
		{
			Name: "overlapping buffers", Clauses: "2.6",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 4, 64), w.Drop, write(im, 1, 0, 13), w.Drop, ok)
			}),
			Want: []string{called, `done 0 "{\"op{\"ok\":{}}"`},
		},
		{Name: "a read beyond memory", Clauses: "2.5 2.10", Module: one(func(im w.Imports) []byte { return read(im, 0, page, 1) }), Want: []string{"fault MEMORY"}},
		{Name: "a read that wraps around", Clauses: "2.5 2.10", Module: one(func(im w.Imports) []byte { return read(im, 0, -1, 2) }), Want: []string{"fault MEMORY"}},
		{Name: "a write beyond memory", Clauses: "2.5 2.11", Module: one(func(im w.Imports) []byte { return write(im, 1, page-1, 2) }), Want: []string{"fault MEMORY"}},
		{Name: "a write of 4 GiB", Clauses: "2.5 2.11", Module: one(func(im w.Imports) []byte { return write(im, 1, 0, huge) }), Want: []string{"fault MEMORY"}},

		// Results, parked replies, handles.
		{
			Name: "the result of call is code and length", Clauses: "2.7",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(
					w.I32Const(1024), call(im, 0, 23, 64, 64), store64,
					w.I32Const(1032), call(im, 0, 23, 64, 3), store64,
					write(im, 1, 1024, 16), w.Drop, ok)
			}),
			Want: []string{called, called, `done 0 "\t\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00"`},
		},
		{
			Name: "a reply that just fits is not parked", Clauses: "2.8", Module: asks(0, 23, 64, 9),
			Want: []string{called, `done 9 ""`},
		},
		{
			Name: "a parked reply is asked for once and read in pieces", Clauses: "2.8 2.9 2.10", Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(
					call(im, 0, 23, 64, 4), w.Drop,
					read(im, 2, 128, 6), w.Drop, read(im, 2, 134, 6), w.Drop,
					read(im, 2, 200, 6), w.Wrap, w.LocalSet(0), // 0: the end
					closes(im, 2), w.Drop,
					write(im, 1, 128, 9), w.Drop, w.LocalGet(0))
			}),
			Want: []string{called, "done 0 " + okay},
		},
		{
			Name: "a reply that does not fit leaves the buffer alone", Clauses: "2.8", Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 0, 4), w.Drop, write(im, 1, 0, 23), w.Drop, ok)
			}),
			Want: []string{called, `done 0 "{\"op\":\"time.now\",\"v\":1}"`},
		},
		{
			Name: "handles are not used again", Clauses: "2.9",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 0, 0), w.Drop, closes(im, 2), w.Drop, call(im, 0, 23, 0, 0), w.Wrap)
			}),
			Want: []string{called, called, `done 3 ""`},
		},
		{Name: "close once", Clauses: "2.1 2.9", Module: parkTwice(func(im w.Imports) []byte { return closes(im, 3) }), Want: []string{called, called, `done 0 ""`}},
		{
			Name: "close twice", Clauses: "2.9 2.12",
			Module: parkTwice(func(im w.Imports) []byte { return w.Cat(closes(im, 2), w.Drop, closes(im, 2)) }), Want: []string{called, called, "fault MEMORY"},
		},
		{
			Name: "read after close", Clauses: "2.9",
			Module: parkTwice(func(im w.Imports) []byte { return w.Cat(closes(im, 2), w.Drop, read(im, 2, 0, 1), w.Wrap) }),
			Want:   []string{called, called, "fault MEMORY"},
		},
		{Name: "close an unknown handle", Clauses: "2.9", Module: parkTwice(func(im w.Imports) []byte { return closes(im, 77) }), Want: []string{called, called, "fault MEMORY"}},
		{Name: "close the input", Clauses: "2.9", Module: parkTwice(func(im w.Imports) []byte { return closes(im, 0) }), Want: []string{called, called, "fault MEMORY"}},
		{Name: "close the result", Clauses: "2.9", Module: parkTwice(func(im w.Imports) []byte { return closes(im, 1) }), Want: []string{called, called, "fault MEMORY"}},
		{Name: "read an unknown handle", Clauses: "2.9", Module: one(func(im w.Imports) []byte { return read(im, 99, 0, 1) }), Want: []string{"fault MEMORY"}},
		{Name: "read the result", Clauses: "2.9", Module: one(func(im w.Imports) []byte { return read(im, 1, 0, 1) }), Want: []string{"fault MEMORY"}},
		{Name: "write to the input", Clauses: "2.9", Module: one(func(im w.Imports) []byte { return write(im, 0, 0, 1) }), Want: []string{"fault MEMORY"}},
		{
			Name: "write to a parked reply", Clauses: "2.9",
			Module: parkTwice(func(im w.Imports) []byte { return w.Cat(write(im, 2, 0, 1), w.Wrap) }), Want: []string{called, called, "fault MEMORY"},
		},
		{
			Name: "the input is read once, from front to back", Clauses: "2.10 2.11", Input: []byte("hello, guest"),
			Module: guest("", func(im w.Imports) []byte {
				return w.Cat(
					read(im, 0, 100, 0), w.Wrap, w.LocalSet(0), // 0 bytes, not the end
					read(im, 0, 100, 7), w.Drop, read(im, 0, 107, 100), w.Drop, read(im, 0, 100, 7), w.Wrap, w.LocalSet(0),
					write(im, 1, 100, 12), w.Drop, write(im, 1, 100, 0), w.Drop, write(im, 1, 100, 5), w.Drop, w.LocalGet(0))
			}),
			Want: []string{`done 0 "hello, guesthello"`},
		},
		{
			Name: "memory grows between a call and the reading of its reply", Clauses: "2.5 2.6",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(
					call(im, 0, 23, 0, 0), w.Drop, w.I32Const(3), w.MemoryGrow, w.Drop,
					read(im, 2, 4*page-9, 9), w.Drop, call(im, 0, 23, 3*page, 9), w.Drop,
					write(im, 1, 4*page-9, 9), w.Drop, write(im, 1, 3*page, 9), w.Drop, w.MemorySize)
			}),
			Want: []string{called, called, `done 4 "{\"ok\":{}}{\"ok\":{}}"`},
		},

		// Traps of the guest's own.
		{Name: "unreachable", Clauses: "2.12", Module: one(func(w.Imports) []byte { return w.Cat(w.Unreachable, w.I64Const(0)) }), Want: []string{"fault TRAP"}},
		{Name: "a division by zero", Clauses: "2.12", Module: one(func(w.Imports) []byte { return w.Cat(w.I64Const(1), w.I64Const(0), []byte{0x7f}) }), Want: []string{"fault TRAP"}},
		{Name: "a load beyond memory", Clauses: "2.12", Module: one(func(w.Imports) []byte { return w.Cat(w.I32Const(page), load32, w.Drop, w.I64Const(0)) }), Want: []string{"fault TRAP"}},
		{
			Name: "a trap after a call does not undo it", Clauses: "2.12",
			Module: one(func(im w.Imports) []byte { return w.Cat(call(im, 0, 23, 64, 64), w.Unreachable) }), Want: []string{called, "fault TRAP"},
		},
		{
			Name: "unbounded recursion", Clauses: "2.12",
			Module: build(func(b *w.Builder, _ w.Imports) []byte {
				f := b.Func("", "i", 0, w.Call(4), w.I32Const(1), w.Add)
				return w.Call(f)
			}),
			Want: []string{"fault TRAP"},
		},
		{
			Name: "a loop without end", Clauses: "2.12 7.2", Limits: abi.Limits{Wall: 500 * time.Millisecond},
			Module: one(func(w.Imports) []byte { return w.Cat(w.Forever(), w.I64Const(0)) }), Want: []string{"fault KILLED"},
		},
		{
			Name: "a start function without end", Clauses: "2.12 7.2", Limits: abi.Limits{Wall: 500 * time.Millisecond},
			Module: build(func(b *w.Builder, _ w.Imports) []byte { b.Start(b.Func("", "", 0, w.Forever())); return ok }), Want: []string{"fault KILLED"},
		},
		{
			Name: "an endless loop of bulk fills", Clauses: "7.2", Limits: abi.Limits{Wall: 500 * time.Millisecond},
			Module: guest("", func(w.Imports) []byte {
				return w.Cat(w.Loop, w.I32Const(0), w.I32Const(1), w.I32Const(page), []byte{0xfc, 11, 0}, w.Br(0), w.End, ok)
			}), Want: []string{"fault KILLED"},
		},

		// Limits of a run.
		{
			Name: "more processor time than it may have", Clauses: "7.2 2.12", Limits: abi.Limits{CPU: time.Second},
			Module: one(func(w.Imports) []byte { return w.Cat(w.Forever(), w.I64Const(0)) }), Want: []string{"fault KILLED"},
		},
		{
			Name: "memory.grow answers -1 at the limit", Clauses: "7.2", Limits: abi.Limits{MemoryPages: 64},
			Module: guest("", func(w.Imports) []byte {
				return w.Cat(w.Loop, w.I32Const(1), w.MemoryGrow, w.I32Const(-1), notEq, w.BrIf(0), w.End, w.MemorySize)
			}), Want: []string{`done 64 ""`},
		},
		{
			Name: "a memory that begins beyond the limit", Clauses: "7.2", Limits: abi.Limits{MemoryPages: 10}, Module: pages(40, ok),
			Want: []string{"fault LIMIT"},
		},
		{
			Name: "one host call too many", Clauses: "7.2 2.12", Limits: abi.Limits{Calls: 3},
			Module: guest(ask, func(im w.Imports) []byte { return w.Cat(w.Repeat(4, call(im, 0, 23, 64, 64), w.Drop), ok) }),
			Want:   []string{called, called, called, "fault LIMIT"},
		},
		{
			Name: "table.grow answers -1 at the maximum", Clauses: "9.3",
			Module: build(func(b *w.Builder, _ w.Imports) []byte {
				b.Table(0, 1000)
				grow := w.Cat([]byte{0xd0, 0x70}, w.I32Const(100), []byte{0xfc, 15, 0})
				return w.Cat(w.Loop, grow, w.I32Const(-1), notEq, w.BrIf(0), w.End, []byte{0xfc, 16, 0})
			}), Want: []string{`done 1000 ""`},
		},
		{
			Name: "a request of 1 MiB", Clauses: "3.2 7.1", Module: pages(40, nil, func(im w.Imports) []byte { return w.Cat(call(im, 0, abi.MaxRequest, 1<<21, 64), w.Wrap) }),
			Want: []string{"call 1048576 bytes 30e14955", `done 9 ""`},
		},
		{
			Name: "a request of 1 MiB and a byte", Clauses: "3.2 3.13 7.1", Module: pages(40, nil, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, abi.MaxRequest+1, 1<<21, 4096), w.Wrap, w.LocalSet(0), write(im, 1, 1<<21, 28), w.Drop, ok)
			}),
			Want: []string{`done 0 "{\"error\":{\"code\":\"TOO_LARGE\""`},
		},
		{
			Name: "a reply of 8 MiB is parked whole", Clauses: "5.1 7.1", Answer: always(big(abi.MaxReply)),
			Module: pages(200, nil, func(im w.Imports) []byte {
				return w.Cat(call(im, 0, 23, 0, 0), w.Drop, read(im, 2, 0, abi.MaxReply+100), w.Wrap)
			}),
			Want: []string{`call "` + strings.Repeat(`\x00`, 23) + `"`, `done 8388608 ""`},
		},
		{
			Name: "64 parked replies", Clauses: "7.1",
			Module: guest(ask, func(im w.Imports) []byte { return w.Cat(w.Repeat(64, call(im, 0, 23, 0, 0), w.Drop), ok) }),
			Want:   append(repeat(called, 64), `done 0 ""`),
		},
		{
			Name: "65 parked replies", Clauses: "7.1 2.12",
			Module: guest(ask, func(im w.Imports) []byte { return w.Cat(w.Repeat(65, call(im, 0, 23, 0, 0), w.Drop), ok) }),
			Want:   append(repeat(called, 65), "fault LIMIT"),
		},
		{
			Name: "closing makes room for a parked reply", Clauses: "2.9 7.1",
			Module: guest(ask, func(im w.Imports) []byte {
				return w.Cat(w.Repeat(64, call(im, 0, 23, 0, 0), w.Drop), closes(im, 40), w.Drop, call(im, 0, 23, 0, 0), w.Wrap)
			}),
			Want: append(repeat(called, 65), `done 66 ""`),
		},
		{
			Name: "more than 64 MiB parked", Clauses: "7.1", Answer: always(big(abi.MaxReply)),
			Module: guest(ask, func(im w.Imports) []byte { return w.Cat(w.Repeat(9, call(im, 0, 23, 0, 0), w.Drop), ok) }),
			Want:   append(repeat(called, 9), "fault LIMIT"),
		},
		{
			Name: "an input of 4 MiB", Clauses: "7.1", Input: make([]byte, abi.MaxInput),
			Module: pages(80, nil, func(im w.Imports) []byte { return w.Cat(read(im, 0, 0, 80*page), w.Wrap) }),
			Want:   []string{`done 4194304 ""`},
		},
		{
			Name: "a result of 1 MiB", Clauses: "7.1",
			Module: guest("", func(im w.Imports) []byte { return w.Cat(w.Repeat(16, write(im, 1, 0, page), w.Drop), ok) }),
			Want:   []string{"done 0 1048576 bytes 30e14955"},
		},
		{
			Name: "a result of 1 MiB and a byte", Clauses: "7.1 2.12",
			Module: guest("", func(im w.Imports) []byte {
				return w.Cat(w.Repeat(16, write(im, 1, 0, page), w.Drop), write(im, 1, 0, 1), w.Wrap)
			}),
			Want: []string{"fault LIMIT"},
		},
	}
}

// pages is a guest with a larger memory; its code is fixed or made from the imports.
func pages(n uint32, fixed []byte, code ...func(im w.Imports) []byte) func() []byte {
	return build(func(b *w.Builder, im w.Imports) []byte {
		b.Raw(5, w.Cat(w.U32(1), []byte{0}, w.U32(n)))
		if len(code) > 0 {
			return code[0](im)
		}
		return fixed
	})
}

func early(export string) func() []byte {
	return build(func(b *w.Builder, im w.Imports) []byte {
		f := b.Func("", "", 0, call(im, 0, 0, 0, 0), w.Drop)
		if export == "" {
			b.Start(f)
		} else {
			b.Export(export, w.KindFunc, f)
		}
		return ok
	})
}

// portable uses what the profile adds to WebAssembly 1.0 and returns 7.
func portable() []byte {
	b, _ := w.Guest()
	// extended constant: 3 + 4
	b.Raw(6, w.Cat(w.U32(1), []byte{w.I32, 0}, w.I32Const(3), w.I32Const(4), w.Add, w.End))
	seven := b.Func("", "i", 0, []byte{0x23, 0})
	tail := b.Func("", "i", 0, []byte{0x12}, w.U32(seven)) // return_call
	// i32x4.splat, extract_lane 2; memory.fill; i32.extend8_s
	code := w.Cat(
		w.I32Const(64), w.I32Const(1), w.I32Const(8), []byte{0xfc, 11, 0},
		w.Call(tail), []byte{0xfd, 17, 0xfd, 27, 2}, []byte{0xc0},
	)
	return w.Run(b, code)
}

// big is a reply of exactly n bytes.
func big(n int) string {
	const head, tail = `{"ok":{"text":"`, `"}}`
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

func always(reply string) func(int, []byte) Answer {
	return func(int, []byte) Answer { return Answer{Reply: reply} }
}

func repeat(line string, n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = line
	}
	return lines
}
