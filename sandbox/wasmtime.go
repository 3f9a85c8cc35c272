//go:build wasmtime

package sandbox

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/bytecodealliance/wasmtime-go/v44"

	"github.com/getmonroe/monroe/abi/wire"
)

// wasmtimeVersion is that of go.mod; a test compares them.
const wasmtimeVersion = "v44.0.0"

// maxWasmStack is how much stack a guest may use, in bytes. It is not what wazero
// gives, so a run stays on the engine that it began on.
const maxWasmStack = 1 << 20

// NewEngine returns the engine of this build.
func NewEngine(cfg EngineConfig) (Engine, error) { return NewWasmtime(cfg) }

// Fingerprint is what a run of this binary's engine is pinned to.
func Fingerprint() string {
	return "wasmtime/" + wasmtimeVersion + " " + runtime.GOARCH + " nan=canonical"
}

// NewWasmtime returns the engine behind cgo. It has the profile, the host functions
// and the limits of NewWazero, and nothing of wasmtime's own WASI.
func NewWasmtime(cfg EngineConfig) (Engine, error) {
	c := wasmtime.NewConfig()
	c.SetMaxWasmStack(maxWasmStack)
	c.SetCraneliftNanCanonicalization(true)
	c.SetParallelCompilation(false) // no threads of its own
	c.SetMemoryInitCOWSet(false)    // it would ask for memfd_create
	c.SetWasmBulkMemory(true)
	c.SetWasmMultiValue(true)
	c.SetWasmReferenceTypes(true)
	c.SetWasmSIMD(true)
	c.SetWasmTailCall(true)
	c.SetWasmRelaxedSIMD(false)
	c.SetWasmThreads(false)
	c.SetWasmMultiMemory(false)
	c.SetWasmMemory64(false)
	c.SetWasmFunctionReferences(false)
	c.SetWasmGC(false)
	c.SetWasmWideArithmetic(false)
	c.SetConsumeFuel(false)       // a guest is stopped by killing its process
	c.SetEpochInterruption(false) // likewise
	e := &wasmtimeEngine{cfg: cfg, engine: wasmtime.NewEngineWithConfig(c)}
	e.linker = wasmtime.NewLinker(e.engine)
	for _, f := range hostFuncs() {
		typ := wasmtime.NewFuncType(wasmtimeTypes(f.sig.params), wasmtimeTypes(f.sig.results))
		if err := e.linker.FuncNew(f.module, f.name, typ, bridge(f)); err != nil {
			return nil, errors.Join(fault(wire.FaultInternal, "the host functions cannot be linked: %v", err), e.Close())
		}
	}
	return e, nil
}

type wasmtimeEngine struct {
	cfg    EngineConfig
	engine *wasmtime.Engine
	linker *wasmtime.Linker
}

func wasmtimeTypes(letters string) []*wasmtime.ValType {
	types := make([]*wasmtime.ValType, len(letters))
	for i, c := range letters {
		kind := wasmtime.KindI32
		if c == 'I' {
			kind = wasmtime.KindI64
		}
		types[i] = wasmtime.NewValType(kind)
	}
	return types
}

// bridge makes a host function of ours one of wasmtime's. serve recovers, so that no
// panic crosses cgo.
func bridge(f hostFunc) func(*wasmtime.Caller, []wasmtime.Val) ([]wasmtime.Val, *wasmtime.Trap) {
	return func(c *wasmtime.Caller, args []wasmtime.Val) ([]wasmtime.Val, *wasmtime.Trap) {
		h, ok := c.Data().(*Host)
		if !ok {
			return nil, wasmtime.NewTrap("a host function has no run")
		}
		if h.mem == nil { // a start function runs before Instantiate returns
			if e := c.GetExport("memory"); e != nil && e.Memory() != nil {
				h.mem = func() []byte { return e.Memory().UnsafeData(c) }
				defer func() { h.mem = nil }() // the caller ends with this call
			}
		}
		var st [4]uint64
		for i, a := range args {
			if f.sig.params[i] == 'i' {
				st[i] = uint64(uint32(a.I32()))
			} else {
				st[i] = uint64(a.I64())
			}
		}
		if err := h.serve(f, st[:]); err != nil {
			return nil, wasmtime.NewTrap(err.Error())
		}
		switch f.sig.results {
		case "i":
			return []wasmtime.Val{wasmtime.ValI32(int32(uint32(st[0])))}, nil
		case "I":
			return []wasmtime.Val{wasmtime.ValI64(int64(st[0]))}, nil
		}
		return nil, nil
	}
}

func (e *wasmtimeEngine) Fingerprint() string { return Fingerprint() }

func (e *wasmtimeEngine) Close() error {
	if e.linker != nil {
		e.linker.Close()
	}
	e.engine.Close()
	return nil
}

// Compile compiles, or loads what an earlier process compiled from the same bytes, which
// is trusted.
func (e *wasmtimeEngine) Compile(module []byte) (Module, error) {
	key := sha256.Sum256(append([]byte(e.Fingerprint()+"\x00"), module...))
	if code, ok := bytes.CutPrefix(e.cfg.Compiled, key[:]); ok {
		m, err := wasmtime.NewModuleDeserialize(e.engine, code)
		if err != nil {
			return nil, fault(wire.FaultInternal, "the compiled module cannot be loaded: %v", err)
		}
		return &wasmtimeModule{e, m}, nil
	}
	m, err := wasmtime.NewModule(e.engine, module)
	if err != nil {
		return nil, fault(wire.FaultModule, "the engine refuses this module: %v", err)
	}
	if e.cfg.Store != nil {
		code, err := m.Serialize()
		if err == nil {
			_, err = e.cfg.Store.Write(append(key[:], code...))
		}
		if err != nil {
			return nil, fault(wire.FaultInternal, "the compiled module cannot be stored: %v", err)
		}
	}
	return &wasmtimeModule{e, m}, nil
}

type wasmtimeModule struct {
	e *wasmtimeEngine
	m *wasmtime.Module
}

func (m *wasmtimeModule) Instantiate(h *Host) (Instance, error) {
	pages := h.cfg.Limits.MemoryPages
	for _, e := range m.m.Exports() {
		if t := e.Type().MemoryType(); t != nil && t.Minimum() > uint64(pages) {
			return nil, fault(wire.FaultLimit, "the memory starts with %d pages, this run may have %d; raise the limit memory_pages", t.Minimum(), pages)
		}
	}
	s := wasmtime.NewStoreWithData(m.e.engine, h)
	s.Limiter(int64(pages)*pageBytes, MaxTable, 1, MaxTables, 1)
	in, err := m.e.linker.Instantiate(s, m.m)
	if err != nil {
		s.Close()
		return nil, wasmtimeTrap(h, err)
	}
	ex := in.GetExport(s, "memory")
	if ex == nil || ex.Memory() == nil {
		s.Close()
		return nil, fault(wire.FaultModule, `the module does not export "memory"`)
	}
	mem := ex.Memory()
	h.mem = func() []byte { return mem.UnsafeData(s) }
	return &wasmtimeInstance{s: s, in: in, h: h}, nil
}

type wasmtimeInstance struct {
	s  *wasmtime.Store
	in *wasmtime.Instance
	h  *Host
}

func (i *wasmtimeInstance) Has(name string) bool { return i.in.GetFunc(i.s, name) != nil }

func (i *wasmtimeInstance) Call(name string) ([]uint64, error) {
	f := i.in.GetFunc(i.s, name)
	if f == nil {
		return nil, fault(wire.FaultModule, "the module does not export %q", name)
	}
	r, err := f.Call(i.s)
	if err != nil {
		return nil, wasmtimeTrap(i.h, err)
	}
	switch v := r.(type) {
	case nil:
		return nil, nil
	case int32:
		return []uint64{uint64(uint32(v))}, nil
	case int64:
		return []uint64{uint64(v)}, nil
	}
	return nil, fault(wire.FaultModule, "%q returned a %s", name, fmt.Sprintf("%T", r))
}

func (i *wasmtimeInstance) Close() error {
	i.h.mem = nil // the memory goes with the store
	i.s.Close()
	return nil
}

// wasmtimeTrap tells why a guest stopped, in one line: the rest is a stack with names
// that the guest chose.
func wasmtimeTrap(h *Host, err error) error {
	if h.fault != nil {
		return AsFault(h.fault)
	}
	text := err.Error()
	if t := new(wasmtime.Trap); errors.As(err, &t) {
		text = t.Message()
	}
	if _, cause, found := strings.Cut(text, "wasm trap: "); found {
		text = cause
	}
	text, _, _ = strings.Cut(text, "\n")
	return fault(wire.FaultTrap, "the guest trapped: %s", text)
}
