package wasmtest

// Instructions that the fixtures need.
var (
	Unreachable = []byte{0x00}
	Drop        = []byte{0x1a}
	End         = []byte{0x0b}
	Return      = []byte{0x0f}
	Add         = []byte{0x6a}
	MemorySize  = []byte{0x3f, 0}
	MemoryGrow  = []byte{0x40, 0}
	Block       = []byte{0x02, 0x40}
	Loop        = []byte{0x03, 0x40}
	// Wrap turns an i64 into an i32.
	Wrap = []byte{0xa7}
)

// I32Const pushes a constant.
func I32Const(v int32) []byte { return append([]byte{0x41}, S64(int64(v))...) }

// I64Const pushes a constant.
func I64Const(v int64) []byte { return append([]byte{0x42}, S64(v)...) }

// Call calls a function.
func Call(f uint32) []byte { return append([]byte{0x10}, U32(f)...) }

// LocalGet pushes a local.
func LocalGet(i uint32) []byte { return append([]byte{0x20}, U32(i)...) }

// LocalSet pops into a local.
func LocalSet(i uint32) []byte { return append([]byte{0x21}, U32(i)...) }

// Br branches to an enclosing label.
func Br(depth uint32) []byte { return append([]byte{0x0c}, U32(depth)...) }

// BrIf branches if the top of the stack is not zero.
func BrIf(depth uint32) []byte { return append([]byte{0x0d}, U32(depth)...) }

// Forever is a loop without an exit.
func Forever() []byte { return Cat(Loop, Br(0), End) }

// Repeat is code n times.
func Repeat(n int, code ...[]byte) []byte {
	one := Cat(code...)
	out := make([]byte, 0, n*len(one))
	for range n {
		out = append(out, one...)
	}
	return out
}

// Imports are the indices of the host functions that Guest imports.
type Imports struct{ Call, Read, Write, Close uint32 }

// Guest returns a builder with the four imports of the ABI, one page of memory
// exported as "memory" and the fixture manifest.
func Guest() (*Builder, Imports) {
	b := &Builder{}
	im := Imports{
		Call:  b.Import("monroe_v1", "call", "iiii", "I"),
		Read:  b.Import("monroe_v1", "read", "iii", "I"),
		Write: b.Import("monroe_v1", "write", "iii", "I"),
		Close: b.Import("monroe_v1", "close", "i", "i"),
	}
	b.Memory(1)
	b.Export("memory", KindMemory, 0)
	b.Custom("monroe.manifest", []byte(Manifest))
	return b, im
}

// Run completes a builder with a monroe_run of the given code, which leaves an
// i32, and returns the module.
func Run(b *Builder, code ...[]byte) []byte {
	b.Export("monroe_run", KindFunc, b.Func("", "i", 0, code...))
	return b.Bytes()
}

// Asks returns a guest whose monroe_run sends the request, at address 0, with an
// answer buffer of room bytes at address 32768, writes the answer as its result
// if it fitted, and returns 0.
func Asks(request string, room int32) []byte {
	b, im := Guest()
	b.Data(0, []byte(request))
	b.Export("monroe_run", KindFunc, b.Func("", "i", 1,
		I32Const(0), I32Const(int32(len(request))), I32Const(32768), I32Const(room), Call(im.Call),
		Wrap, LocalSet(0),
		I32Const(1), I32Const(32768), LocalGet(0), Call(im.Write), Drop,
		I32Const(0)))
	return b.Bytes()
}
