package sandbox_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox"
	. "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// newEngine returns an engine that is closed after the test.
func newEngine(t testing.TB) sandbox.Engine {
	t.Helper()
	e, err := sandbox.NewEngine(sandbox.EngineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// echo answers every request with itself.
func echo(request []byte) ([]byte, int64, error) { return request, 0, nil }

// run admits, compiles and runs a module in this process.
func run(t testing.TB, e sandbox.Engine, module []byte, cfg sandbox.Config) (int32, []byte, error) {
	t.Helper()
	if _, err := sandbox.Admit(module); err != nil {
		t.Fatal(err)
	}
	m, err := e.Compile(module)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Call == nil {
		cfg.Call = echo
	}
	return sandbox.Run(m, sandbox.NewHost(cfg))
}

func TestRunEchoes(t *testing.T) {
	const request = `{"op":"host.describe","v":1}`
	status, result, err := run(t, newEngine(t), Asks(request, 64), sandbox.Config{})
	if err != nil || status != 0 || string(result) != request {
		t.Errorf("status %d, result %q, error %v", status, result, err)
	}
}

// TestParkedReply asks with a buffer that is too small: the handle answers reads
// until it is empty, and the request was made once.
func TestParkedReply(t *testing.T) {
	b, im := Guest()
	b.Data(0, []byte("0123456789"))
	calls := 0
	module := Run(b,
		I32Const(0), I32Const(10), I32Const(64), I32Const(4), Call(im.Call), Wrap, Drop,
		// The first parked handle is 2. Read 6, then the rest, then nothing.
		I32Const(2), I32Const(128), I32Const(6), Call(im.Read), Drop,
		I32Const(2), I32Const(134), I32Const(6), Call(im.Read), Drop,
		I32Const(2), I32Const(200), I32Const(6), Call(im.Read), Drop,
		I32Const(2), Call(im.Close), Drop,
		I32Const(1), I32Const(128), I32Const(10), Call(im.Write), Drop,
		I32Const(7))
	status, result, err := run(t, newEngine(t), module, sandbox.Config{Call: func(r []byte) ([]byte, int64, error) {
		calls++
		return r, 0, nil
	}})
	if err != nil || status != 7 || string(result) != "0123456789" || calls != 1 {
		t.Errorf("status %d, result %q, calls %d, error %v", status, result, calls, err)
	}
}

// TestOversizedRequest is answered with TOO_LARGE here and never reaches the host.
func TestOversizedRequest(t *testing.T) {
	b, im := Guest()
	b.Raw(5, Cat(U32(1), []byte{0}, U32(40)))
	module := Run(b,
		I32Const(0), I32Const(abi.MaxRequest+1), I32Const(1<<21), I32Const(4096), Call(im.Call), Wrap, Drop,
		I32Const(1), I32Const(1<<21), I32Const(256), Call(im.Write), Drop, I32Const(0))
	_, result, err := run(t, newEngine(t), module, sandbox.Config{Call: func([]byte) ([]byte, int64, error) {
		t.Error("the request left the worker")
		return nil, 0, nil
	}})
	if err != nil || !bytes.Contains(result, []byte(`"TOO_LARGE"`)) {
		t.Errorf("result %q, error %v", result, err)
	}
}

func TestInputAndResult(t *testing.T) {
	b, im := Guest()
	module := Run(b,
		I32Const(0), I32Const(100), I32Const(1000), Call(im.Read), Drop,
		I32Const(1), I32Const(100), I32Const(5), Call(im.Write), Drop,
		I32Const(1), I32Const(100), I32Const(5), Call(im.Write), Drop, I32Const(-1))
	status, result, err := run(t, newEngine(t), module, sandbox.Config{Input: []byte("hello")})
	if err != nil || status != -1 || string(result) != "hellohello" {
		t.Errorf("status %d, result %q, error %v", status, result, err)
	}
}

// TestHostileGuests is the kit of bad guests that end by themselves; those that do
// not are in sandbox/spawn.
func TestHostileGuests(t *testing.T) {
	e := newEngine(t)
	const far, huge = 65536, -1 // one page of memory; 4 GiB-1 as an unsigned length
	asks := func(ptr, n, out, room int32) []byte {
		b, im := Guest()
		return Run(b, I32Const(ptr), I32Const(n), I32Const(out), I32Const(room), Call(im.Call), Wrap)
	}
	three := func(pick func(Imports) uint32, a, b, c int32) []byte {
		g, im := Guest()
		return Run(g, I32Const(a), I32Const(b), I32Const(c), Call(pick(im)), Wrap)
	}
	read := func(im Imports) uint32 { return im.Read }
	write := func(im Imports) uint32 { return im.Write }
	closes := func(handles ...int32) []byte {
		b, im := Guest()
		code := Cat(I32Const(0), I32Const(10), I32Const(0), I32Const(0), Call(im.Call), Wrap, Drop)
		for _, h := range handles {
			code = Cat(code, I32Const(h), Call(im.Close), Drop)
		}
		return Run(b, code, I32Const(0))
	}
	for _, c := range []struct {
		name   string
		module []byte
		want   wire.FaultCode // empty: it ends well
		calls  int
	}{
		{"request beyond memory", asks(far, 1, 0, 0), wire.FaultMemory, 0},
		{"request across the end", asks(far-4, 8, 0, 0), wire.FaultMemory, 0},
		{"request that wraps around", asks(-8, 16, 0, 0), wire.FaultMemory, 0},
		{"giant request", asks(0, huge, 0, 0), wire.FaultMemory, 0},
		{"answer beyond memory", asks(0, 8, far, 1), wire.FaultMemory, 0},
		{"answer that wraps around", asks(0, 8, -8, 16), wire.FaultMemory, 0},
		{"giant answer", asks(0, 8, 0, huge), wire.FaultMemory, 0},
		{"empty spans at the end", asks(far, 0, far, 0), "", 1},
		{"overlapping buffers", asks(0, 64, 32, 64), "", 1},
		{"read beyond memory", three(read, 0, far, 1), wire.FaultMemory, 0},
		{"read an unknown handle", three(read, 99, 0, 1), wire.FaultMemory, 0},
		{"read the result", three(read, 1, 0, 1), wire.FaultMemory, 0},
		{"write beyond memory", three(write, 1, far-1, 2), wire.FaultMemory, 0},
		{"write a giant length", three(write, 1, 0, huge), wire.FaultMemory, 0},
		{"write to the input", three(write, 0, 0, 1), wire.FaultMemory, 0},
		{"close once", closes(2), "", 1},
		{"close twice", closes(2, 2), wire.FaultMemory, 1},
		{"close an unknown handle", closes(77), wire.FaultMemory, 1},
		{"close the input", closes(0), wire.FaultMemory, 1},
		{"close the result", closes(1), wire.FaultMemory, 1},
		{"unreachable", with(func(b *Builder) { b.Start(b.Func("", "", 0, Unreachable)) }), wire.FaultTrap, 0},
		{"unbounded recursion", recursion(), wire.FaultTrap, 0},
		{"memory.grow loop", growth(), "", 0},
		{"more calls than allowed", again(100), wire.FaultLimit, 50},
		{"more parked replies than allowed", parks(abi.MaxHandles + 1), wire.FaultLimit, abi.MaxHandles + 1},
		{"host call in _initialize", early("_initialize"), wire.FaultInit, 0},
		{"host call in the start function", early(""), wire.FaultInit, 0},
		{"proc_exit", exits(), wire.FaultExit, 0},
		{"result beyond its limit", results(), wire.FaultLimit, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			limits := abi.Limits{Calls: 50, MemoryPages: 64}
			if strings.Contains(c.name, "parked") {
				limits.Calls = 1000
			}
			_, _, err := run(t, e, c.module, sandbox.Config{Limits: limits, Call: func(r []byte) ([]byte, int64, error) {
				calls++
				return r, 0, nil
			}})
			var f *sandbox.Fault
			switch {
			case c.want == "" && err != nil:
				t.Errorf("it failed: %v", err)
			case c.want != "" && (!errors.As(err, &f) || f.Code != c.want):
				t.Errorf("got %v, want %s", err, c.want)
			}
			if calls != c.calls {
				t.Errorf("%d calls reached the host, want %d", calls, c.calls)
			}
		})
	}
}

func recursion() []byte {
	b, _ := Guest()
	f := b.Func("", "i", 0, Call(4), I32Const(1), Add)
	return Run(b, Call(f))
}

// growth grows by a page until it is refused, which must be at the run's limit.
func growth() []byte {
	b, _ := Guest()
	return Run(b, Loop, I32Const(1), MemoryGrow, I32Const(-1), []byte{0x47}, BrIf(0), End,
		MemorySize, I32Const(64), []byte{0x47}, []byte{0x04, 0x40}, Unreachable, End, I32Const(0))
}

func again(n int) []byte {
	b, im := Guest()
	return Run(b, Repeat(n, I32Const(0), I32Const(1), I32Const(0), I32Const(1), Call(im.Call), Wrap, Drop), I32Const(0))
}

func parks(n int) []byte {
	b, im := Guest()
	return Run(b, Repeat(n, I32Const(0), I32Const(9), I32Const(0), I32Const(0), Call(im.Call), Wrap, Drop), I32Const(0))
}

func early(export string) []byte {
	b, im := Guest()
	f := b.Func("", "", 0, I32Const(0), I32Const(0), I32Const(0), I32Const(0), Call(im.Call), Drop)
	if export == "" {
		b.Start(f)
	} else {
		b.Export(export, KindFunc, f)
	}
	return Run(b, I32Const(0))
}

func exits() []byte {
	b, _ := Guest()
	f := b.Import("wasi_snapshot_preview1", "proc_exit", "i", "")
	return Run(b, I32Const(3), Call(f), I32Const(0))
}

func results() []byte {
	b, im := Guest()
	return Run(b, Repeat(17, I32Const(1), I32Const(0), I32Const(65536), Call(im.Write), Drop), I32Const(0))
}

// TestHostFailure keeps the host's own error and a panic of its callback apart.
func TestHostFailure(t *testing.T) {
	gone := errors.New("the host is gone")
	_, _, err := run(t, newEngine(t), Asks("x", 8), sandbox.Config{Call: func([]byte) ([]byte, int64, error) { return nil, 0, gone }})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	_, _, err = run(t, newEngine(t), Asks("x", 8), sandbox.Config{Call: func([]byte) ([]byte, int64, error) { panic("boom") }})
	if f := sandbox.AsFault(err); f.Code != wire.FaultInternal || !strings.Contains(f.Message, "boom") {
		t.Errorf("got %v", err)
	}
}

// TestLogFlood prints far more than the allowance; the guest is told that all of it
// was written.
func TestLogFlood(t *testing.T) {
	b, _ := Guest()
	write := b.Import("wasi_snapshot_preview1", "fd_write", "iiii", "i")
	b.Data(0, binary.LittleEndian.AppendUint32([]byte{16, 0, 0, 0}, 32<<10))
	module := Run(b, Repeat(100, I32Const(1), I32Const(0), I32Const(1), I32Const(8), Call(write), Drop), I32Const(8), []byte{0x28, 2, 0})
	var got int
	status, _, err := run(t, newEngine(t), module, sandbox.Config{Log: func(text []byte) { got += len(text) }})
	if err != nil || got != abi.MaxLog || status != 32<<10 {
		t.Errorf("%d bytes, status %d, error %v", got, status, err)
	}
}

// TestWASIIsDeterministic runs a guest that reads clocks and randomness: equal
// seeds and times give equal bytes, others do not.
func TestWASIIsDeterministic(t *testing.T) {
	b, im := Guest()
	clock := b.Import("wasi_snapshot_preview1", "clock_time_get", "iIi", "i")
	random := b.Import("wasi_snapshot_preview1", "random_get", "ii", "i")
	module := Run(b,
		I32Const(0), I64Const(0), I32Const(0), Call(clock), Drop,
		I32Const(32), I32Const(1), I32Const(64), I32Const(8), Call(im.Call), Drop, // moves the clock
		I32Const(0), I64Const(0), I32Const(8), Call(clock), Drop,
		I32Const(1), I64Const(0), I32Const(16), Call(clock), Drop,
		I32Const(24), I32Const(8), Call(random), Drop,
		I32Const(-4), I32Const(8), Call(random), Drop, // EFAULT, not a trap
		I32Const(1), I32Const(0), I32Const(32), Call(im.Write), Drop, I32Const(0))
	e := newEngine(t)
	at := func(seed byte, start, reply int64) []byte {
		_, result, err := run(t, e, module, sandbox.Config{Seed: [32]byte{seed}, TimeNS: start, Call: func(r []byte) ([]byte, int64, error) {
			return r, reply, nil
		}})
		if err != nil || len(result) != 32 {
			t.Fatalf("result %x, error %v", result, err)
		}
		return result
	}
	first := at(1, 5_000_000, 9_000_000)
	if !bytes.Equal(first, at(1, 5_000_000, 9_000_000)) {
		t.Error("two equal runs differ")
	}
	if bytes.Equal(first[24:], at(2, 5_000_000, 9_000_000)[24:]) {
		t.Error("the seed has no influence")
	}
	if v := binary.LittleEndian.Uint64(first); v != 5_001_000 {
		t.Errorf("the first reading is %d", v)
	}
	if v := binary.LittleEndian.Uint64(first[8:]); v != 9_001_000 {
		t.Errorf("after the reply the reading is %d", v)
	}
	if v := binary.LittleEndian.Uint64(at(1, 5_000_000, 1)[8:]); v < 5_001_000 {
		t.Errorf("an old reply moved the clock back to %d", v)
	}
}

func TestMemoryLimitBelowMinimum(t *testing.T) {
	b, _ := Guest()
	b.Raw(5, Cat(U32(1), []byte{0}, U32(40)))
	_, _, err := run(t, newEngine(t), Run(b, I32Const(0)), sandbox.Config{Limits: abi.Limits{MemoryPages: 10}})
	if f := sandbox.AsFault(err); f == nil || f.Code != wire.FaultLimit {
		t.Errorf("got %v", err)
	}
}

// TestCompiledIsLoaded: what was stored of a module is loaded and not compiled again, and
// only of that module.
func TestCompiledIsLoaded(t *testing.T) {
	b, _ := Guest()
	module := Run(b, I32Const(0))
	other, _ := Guest()
	other.Custom("note", nil)
	compile := func(module, compiled []byte) []byte {
		t.Helper()
		var stored bytes.Buffer
		e, err := sandbox.NewEngine(sandbox.EngineConfig{Compiled: compiled, Store: &stored})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		m, err := e.Compile(module)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, err := sandbox.Run(m, sandbox.NewHost(sandbox.Config{Limits: abi.DefaultLimits()})); err != nil || status != 0 {
			t.Errorf("status %d, %v", status, err)
		}
		return stored.Bytes()
	}
	first := compile(module, nil)
	if len(first) < 100 {
		t.Fatalf("%d bytes were stored", len(first))
	}
	if again := compile(module, first); len(again) > 0 {
		t.Error("it was compiled again")
	}
	if again := compile(Run(other, I32Const(0)), first); len(again) == 0 {
		t.Error("another module's code was loaded")
	}
	if again := compile(module, first[:16]); !bytes.Equal(again, first) {
		t.Error("half a name was taken for it")
	}
}

func TestFingerprintNamesTheVersionInUse(t *testing.T) {
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(newEngine(t).Fingerprint(), " ")
	_, version, _ := strings.Cut(name, "/")
	path := map[bool]string{true: "github.com/bytecodealliance/wasmtime-go/v44 ", false: "github.com/tetratelabs/wazero "}[strings.HasPrefix(name, "wasmtime/")]
	if !strings.Contains(string(mod), path+version+"\n") {
		t.Errorf("go.mod does not have %s%s", path, version)
	}
}
