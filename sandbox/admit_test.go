package sandbox_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

// minimal is a module that is admitted and does nothing.
func minimal() []byte {
	b, _ := wasmtest.Guest()
	return wasmtest.Run(b, wasmtest.I32Const(0))
}

// with returns the minimal guest after a change.
func with(change func(b *wasmtest.Builder)) []byte {
	b, _ := wasmtest.Guest()
	change(b)
	return wasmtest.Run(b, wasmtest.I32Const(0))
}

// body returns the minimal guest with one more function.
func body(locals uint32, code ...[]byte) []byte {
	return with(func(b *wasmtest.Builder) { b.Func("", "", locals, code...) })
}

func bytesOf(b ...byte) []byte { return b }

// TestAdmitAccepts also pins what the outline says.
func TestAdmitAccepts(t *testing.T) {
	b, im := wasmtest.Guest()
	b.Table(1, 10)
	b.Global(7, true)
	f := b.Func("", "", 3, wasmtest.Block, wasmtest.Loop, wasmtest.I32Const(-5), wasmtest.BrIf(0), wasmtest.End, wasmtest.End,
		wasmtest.I32Const(0), wasmtest.I32Const(0), wasmtest.I32Const(0), wasmtest.I32Const(0), wasmtest.Call(im.Call), wasmtest.Drop)
	b.Element(0, f)
	b.Start(f)
	b.Data(16, []byte("hello"))
	b.Export("_initialize", wasmtest.KindFunc, f)
	o, err := sandbox.Admit(wasmtest.Run(b, wasmtest.I32Const(0)))
	if err != nil {
		t.Fatal(err)
	}
	if o.Manifest.Name != "fixture" || o.Functions != 2 || o.DataSegments != 1 || o.MemoryMin != 1 || !o.HasInitialize || !o.HasStart {
		t.Errorf("outline %+v", o)
	}
	if got := strings.Join(o.Imports, " "); got != "monroe_v1.call monroe_v1.read monroe_v1.write monroe_v1.close" {
		t.Errorf("imports %s", got)
	}
	if _, err := abi.ParseManifest(o.ManifestJSON); err != nil {
		t.Error(err)
	}
}

func TestAdmitRefuses(t *testing.T) {
	wide := func(b *wasmtest.Builder) uint32 { return b.Type("", strings.Repeat("i", sandbox.MaxResults)) }
	for _, c := range []struct {
		name   string
		module []byte
		code   wire.FaultCode
		says   string // part of the message: what the author has to change
	}{
		{"empty", nil, wire.FaultModule, "not a WebAssembly binary"},
		{"text", []byte("(module (func))"), wire.FaultModule, "not a WebAssembly binary"},
		{"component", append(wasmtest.Header(0x0001000d), 0), wire.FaultModule, "core module is needed"},
		{"version 2", wasmtest.Header(2), wire.FaultModule, "version word"},
		{"too many bytes", make([]byte, abi.MaxModule+1), wire.FaultTooLarge, "strip"},
		{"no exports", wasmtest.Header(1), wire.FaultModule, "no memory"},
		{"two memories", with(func(b *wasmtest.Builder) { b.Memory(1) }), wire.FaultModule, "exactly one"},
		{"shared memory", with(func(b *wasmtest.Builder) { b.Raw(5, bytesOf(1, 3, 1, 1)) }), wire.FaultModule, "shared"},
		{"64-bit memory", with(func(b *wasmtest.Builder) { b.Raw(5, bytesOf(1, 4, 1)) }), wire.FaultModule, "memory64"},
		{"huge memory", with(func(b *wasmtest.Builder) { b.Raw(5, wasmtest.Cat(bytesOf(1, 0), wasmtest.U32(65536))) }), wire.FaultTooLarge, "lower the initial memory"},
		{"imported memory", with(func(b *wasmtest.Builder) { b.ImportRaw("env", "memory", bytesOf(2, 0, 1), false) }), wire.FaultModule, "--import-memory"},
		{"imported table", with(func(b *wasmtest.Builder) { b.ImportRaw("env", "t", bytesOf(1, 0x70, 0, 1), false) }), wire.FaultModule, "imports a table"},
		{"imported global", with(func(b *wasmtest.Builder) { b.ImportRaw("env", "g", bytesOf(3, 0x7f, 0), false) }), wire.FaultModule, "imports a global"},
		{"wrong import type", with(func(b *wasmtest.Builder) { b.Import("monroe_v1", "call", "ii", "I") }), wire.FaultModule, "must have"},
		{"wrong WASI type", with(func(b *wasmtest.Builder) { b.Import("wasi_snapshot_preview1", "random_get", "i", "i") }), wire.FaultModule, "must have"},
		{"huge table", with(func(b *wasmtest.Builder) { b.Table(100_000_000) }), wire.FaultTooLarge, "100000"},
		{"growing table", with(func(b *wasmtest.Builder) {
			b.Table(1)
			b.Func("", "", 0, bytesOf(0xd0, 0x70), wasmtest.I32Const(1), bytesOf(0xfc, 15, 0), wasmtest.Drop)
		}), wire.FaultModule, "declare a maximum"},
		{"nested blocks", body(0, wasmtest.Repeat(50_000, wasmtest.Block), wasmtest.Repeat(50_000, wasmtest.End)), wire.FaultTooLarge, "nests"},
		{"loops by locals", body(500, wasmtest.Repeat(20_000, wasmtest.Loop, wasmtest.End)), wire.FaultTooLarge, "loops"},
		{"wide blocks", with(func(b *wasmtest.Builder) {
			typ := wide(b)
			b.Func("", "", 0, wasmtest.Unreachable, wasmtest.Repeat(20_000, bytesOf(0x02), wasmtest.S64(int64(typ)), wasmtest.End))
		}), wire.FaultTooLarge, "parameters and results"},
		{"many functions", manyFunctions(500_000, wasmtest.Vec(bytesOf(0, 0x0b))), wire.FaultTooLarge, "500000 functions"},
		{"many locals", manyFunctions(1000, wasmtest.Vec(wasmtest.Cat(bytesOf(1), wasmtest.U32(50_000), bytesOf(wasmtest.I32, 0x0b)))), wire.FaultTooLarge, "locals"},
		{"locals that wrap", manyFunctions(1, wasmtest.Vec(wasmtest.Cat(bytesOf(2), wasmtest.U32(1<<32-1), bytesOf(wasmtest.I32), wasmtest.U32(2), bytesOf(wasmtest.I32, 0x0b)))), wire.FaultTooLarge, "locals"},
		{"big body", body(0, make([]byte, sandbox.MaxBody)), wire.FaultTooLarge, "body"},
		{"data bomb", with(func(b *wasmtest.Builder) {
			n := sandbox.MaxDataSegments + 1
			b.Raw(11, wasmtest.Cat(wasmtest.U32(uint32(n)), wasmtest.Repeat(n, bytesOf(1, 0))))
		}), wire.FaultTooLarge, "data segments"},
		{"data outside memory", with(func(b *wasmtest.Builder) { b.Data(65530, []byte("0123456789")) }), wire.FaultModule, "initial memory"},
		{"data at a negative offset", with(func(b *wasmtest.Builder) { b.Data(-4, []byte("0123456789")) }), wire.FaultModule, "initial memory"},
		{"element bomb", with(func(b *wasmtest.Builder) {
			b.Table(1)
			b.Raw(9, wasmtest.Cat(bytesOf(1, 0, 0x41, 0, 0x0b), wasmtest.U32(sandbox.MaxElements+1)))
		}), wire.FaultTooLarge, "elements"},
		{"count beyond the bytes", with(func(b *wasmtest.Builder) { b.Raw(3, wasmtest.U32(40_000)) }), wire.FaultModule, "bytes are left"},
		{"threads", body(0, bytesOf(0xfe, 0x03, 0)), wire.FaultModule, "-pthread"},
		{"exceptions", body(0, bytesOf(0x06, 0x40, 0x0b)), wire.FaultModule, "exception"},
		{"exception section", with(func(b *wasmtest.Builder) { b.Raw(13, bytesOf(1, 0, 0)) }), wire.FaultModule, "exception"},
		{"garbage collection", body(0, bytesOf(0xfb, 0, 0)), wire.FaultModule, "garbage collection"},
		{"struct type", with(func(b *wasmtest.Builder) { b.Raw(1, bytesOf(1, 0x5f, 0)) }), wire.FaultModule, "garbage collection"},
		{"relaxed SIMD", body(0, bytesOf(0xfd, 0x80, 0x02)), wire.FaultModule, "relaxed"},
		{"second memory in code", body(0, wasmtest.I32Const(0), bytesOf(0x28, 0x42, 1, 0), wasmtest.Drop), wire.FaultModule, "multi-memory"},
		{"no manifest", noManifest(), wire.FaultModule, `"monroe.manifest"; attach its manifest (monroe skill pack does)`},
		{"two manifests", with(func(b *wasmtest.Builder) { b.Custom("monroe.manifest", []byte(wasmtest.Manifest)) }), wire.FaultModule, "more than one"},
		{"command", command(), wire.FaultModule, "-buildmode=c-shared"},
		{"wrong run type", wrongRun(), wire.FaultModule, "must have"},
		{"wrong initialize type", with(func(b *wasmtest.Builder) {
			b.Export("_initialize", wasmtest.KindFunc, b.Func("i", "", 0))
		}), wire.FaultModule, "_initialize"},
		{"section twice", append(minimal(), wasmtest.Section(1, bytesOf(0))...), wire.FaultModule, "out of order"},
		{"unknown section", append(minimal(), wasmtest.Section(60, nil)...), wire.FaultModule, "section 60"},
		{"trailing bytes in a section", with(func(b *wasmtest.Builder) { b.Raw(4, bytesOf(0, 0)) }), wire.FaultModule, "left over"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := sandbox.Admit(c.module)
			var f *sandbox.Fault
			if o != nil || !errors.As(err, &f) {
				t.Fatalf("got %v, %v", o, err)
			}
			if f.Code != c.code || !strings.Contains(f.Message, c.says) {
				t.Errorf("got %v\nwant %s … %s", f, c.code, c.says)
			}
		})
	}
}

func TestAdmitListsUnknownImports(t *testing.T) {
	_, err := sandbox.Admit(with(func(b *wasmtest.Builder) {
		b.Import("env", "system", "i", "i")
		b.Import("monroe_v2", "call", "iiii", "I")
		b.Import("wasi_snapshot_preview1", "sock_open", "i", "i")
		b.Import("wasi_snapshot_preview1", "path_open", "i", "i")
	}))
	for _, name := range []string{"env.system", "monroe_v2.call", "sock_open", "path_open"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named: %v", name, err)
		}
	}
}

// TestAdmitTruncated cuts a module at every byte. Only cuts between sections can
// leave a well-formed module, and then what is missing is named.
func TestAdmitTruncated(t *testing.T) {
	whole := minimal()
	for n := range whole {
		if _, err := sandbox.Admit(whole[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are admitted", n, len(whole))
		}
	}
}

// TestAdmitAllocatesLittle hands in counts that announce far more than there is.
func TestAdmitAllocatesLittle(t *testing.T) {
	for id := byte(1); id <= 12; id++ {
		for _, n := range []uint32{9_000, 49_999, 1<<32 - 1} {
			m := append(wasmtest.Header(1), wasmtest.Section(id, wasmtest.U32(n))...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := sandbox.Admit(m)
			runtime.ReadMemStats(&after)
			if grew := after.TotalAlloc - before.TotalAlloc; err == nil || grew > 64<<10 {
				t.Errorf("section %d with %d items: %d bytes allocated, error %v", id, n, grew, err)
			}
		}
	}
}

func FuzzAdmit(f *testing.F) {
	f.Add(minimal())
	f.Add(append(wasmtest.Header(0x0001000d), 0))
	f.Add(wasmtest.Asks(`{"op":"host.describe","v":1}`, 64))
	f.Add(body(3, wasmtest.Block, wasmtest.Forever(), wasmtest.End, bytesOf(0x0e, 2, 0, 0, 0)))
	f.Add(with(func(b *wasmtest.Builder) { b.Table(1, 2); b.Element(0, 0); b.Data(0, []byte("x")); b.Global(1, true) }))
	f.Fuzz(func(t *testing.T, module []byte) {
		o, err := sandbox.Admit(module)
		if (o == nil) == (err == nil) {
			t.Fatalf("outline %v, error %v", o, err)
		}
		var fault *sandbox.Fault
		if err != nil && (!errors.As(err, &fault) || fault.Code != wire.FaultModule && fault.Code != wire.FaultTooLarge) {
			t.Fatalf("error %v", err)
		}
	})
}

// manyFunctions returns a module with n functions of the same framed body.
func manyFunctions(n int, framed []byte) []byte {
	return with(func(b *wasmtest.Builder) {
		b.Raw(1, bytesOf(1, 0x60, 0, 0))
		b.Raw(2, bytesOf(0))
		b.Raw(3, wasmtest.Cat(wasmtest.U32(uint32(n)), make([]byte, n)))
		b.Raw(7, bytesOf(0))
		b.Raw(10, wasmtest.Cat(wasmtest.U32(uint32(n)), wasmtest.Repeat(n, framed)))
	})
}

func noManifest() []byte {
	b := &wasmtest.Builder{}
	b.Memory(1)
	b.Export("memory", wasmtest.KindMemory, 0)
	return wasmtest.Run(b, wasmtest.I32Const(0))
}

func command() []byte {
	b, _ := wasmtest.Guest()
	b.Export("_start", wasmtest.KindFunc, b.Func("", "", 0))
	return b.Bytes()
}

func wrongRun() []byte {
	b, _ := wasmtest.Guest()
	b.Export("monroe_run", wasmtest.KindFunc, b.Func("", "", 0))
	return b.Bytes()
}
