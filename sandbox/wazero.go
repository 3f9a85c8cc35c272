package sandbox

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"syscall"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// wazeroVersion is that of go.mod; a test compares them.
const wazeroVersion = "v1.12.0"

const pageBytes = 64 << 10

// NewWazero returns the pure-Go engine. Interruption by context stays off, as it
// makes loops 18 to 45 times slower: a guest is stopped by killing its process.
func NewWazero(cfg EngineConfig) (Engine, error) {
	ctx := context.Background()
	rc := wazero.NewRuntimeConfigCompiler().
		WithCoreFeatures(api.CoreFeaturesV2 | experimental.CoreFeaturesExtendedConst | experimental.CoreFeaturesTailCall).
		// The upper bound of every run; a run's own limit is in its allocator.
		WithMemoryLimitPages(abi.DefaultLimits().MemoryPages).
		WithCloseOnContextDone(false).
		WithDebugInfoEnabled(false)
	adviseCode()
	e := &wazeroEngine{}
	if cfg.Compiled != nil || cfg.Store != nil {
		cache, err := newCache(cfg)
		if err != nil {
			return nil, err
		}
		e.cache = cache
		rc = rc.WithCompilationCache(cache)
	}
	e.rt = wazero.NewRuntimeWithConfig(ctx, rc)
	if err := e.link(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

type wazeroEngine struct {
	rt    wazero.Runtime
	cache wazero.CompilationCache
}

type hostKey struct{}

// link offers the host functions. The reflective variant of wazero's builder is 13
// to 18 times slower.
func (e *wazeroEngine) link(ctx context.Context) error {
	builders := map[string]wazero.HostModuleBuilder{}
	for _, f := range hostFuncs() {
		b := builders[f.module]
		if b == nil {
			b = e.rt.NewHostModuleBuilder(f.module)
			builders[f.module] = b
		}
		fn := func(ctx context.Context, m api.Module, st []uint64) {
			h, ok := ctx.Value(hostKey{}).(*Host)
			if !ok {
				panic(fault(wire.FaultInternal, "a host function has no run"))
			}
			if h.mem == nil { // a start function runs before Instantiate returns
				h.mem = memoryOf(m)
			}
			if err := h.serve(f, st); err != nil {
				panic(err) // how a host function traps in wazero
			}
		}
		b.NewFunctionBuilder().
			WithGoModuleFunction(api.GoModuleFunc(fn), wazeroTypes(f.sig.params), wazeroTypes(f.sig.results)).
			Export(f.name)
	}
	for _, b := range builders {
		if _, err := b.Instantiate(ctx); err != nil {
			return fault(wire.FaultInternal, "the host functions cannot be linked: %v", err)
		}
	}
	return nil
}

func wazeroTypes(letters string) []api.ValueType {
	types := make([]api.ValueType, len(letters))
	for i, c := range letters {
		types[i] = api.ValueTypeI32
		if c == 'I' {
			types[i] = api.ValueTypeI64
		}
	}
	return types
}

func memoryOf(m api.Module) func() []byte {
	return func() []byte {
		mem := m.Memory()
		if mem == nil {
			return nil
		}
		b, _ := mem.Read(0, mem.Size())
		return b
	}
}

func (e *wazeroEngine) Fingerprint() string { return WazeroFingerprint() }

// WazeroFingerprint is what a run of this binary's engine is pinned to.
func WazeroFingerprint() string {
	return "wazero/" + wazeroVersion + " " + runtime.GOARCH + " nan=native"
}

func (e *wazeroEngine) Close() error {
	err := e.rt.Close(context.Background())
	if e.cache != nil {
		err = errors.Join(err, e.cache.Close(context.Background()))
	}
	return err
}

func (e *wazeroEngine) Compile(module []byte) (m Module, err error) {
	defer func() {
		r := recover()
		if e, ok := r.(error); ok && errors.Is(e, syscall.ENOMEM) { // how wazero says that it got no pages for code
			m, err = nil, fault(wire.FaultTooLarge, "compiling the module takes more memory than there may be; split large functions, or leave data and code out")
		} else if r != nil { // a bug of the compiler, met by a module that the parser admits
			m, err = nil, fault(wire.FaultModule, "the engine cannot compile this module: %v", r)
		}
	}()
	c, err := e.rt.CompileModule(context.Background(), module)
	if err != nil {
		return nil, fault(wire.FaultModule, "the engine refuses this module: %v", err)
	}
	return &wazeroModule{e: e, c: c}, nil
}

type wazeroModule struct {
	e *wazeroEngine
	c wazero.CompiledModule
}

// zeros stands in for wazero's own randomness, which no guest can reach.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

var _ io.Reader = zeros{}

func (m *wazeroModule) Instantiate(h *Host) (Instance, error) {
	for _, mem := range m.c.ExportedMemories() {
		if lo := mem.Min(); lo > h.cfg.Limits.MemoryPages {
			return nil, fault(wire.FaultLimit, "the memory starts with %d pages, this run may have %d; raise the limit memory_pages", lo, h.cfg.Limits.MemoryPages)
		}
	}
	ctx := context.WithValue(context.Background(), hostKey{}, h)
	limit := uint64(h.cfg.Limits.MemoryPages) * pageBytes
	ictx := experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(func(_, most uint64) experimental.LinearMemory {
		return newMemory(min(most, limit))
	}))
	// No name, so that instances do not collide; no start functions, as the driver
	// calls _initialize itself.
	cfg := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(zeros{})
	mod, err := m.e.rt.InstantiateModule(ictx, m.c, cfg)
	if err != nil {
		return nil, trap(h, err)
	}
	h.mem = memoryOf(mod)
	return &wazeroInstance{mod: mod, ctx: ctx, h: h}, nil
}

type wazeroInstance struct {
	mod api.Module
	ctx context.Context //nolint:containedctx // carries the Host to host functions
	h   *Host
}

func (i *wazeroInstance) Has(name string) bool { return i.mod.ExportedFunction(name) != nil }

func (i *wazeroInstance) Call(name string) (out []uint64, err error) {
	f := i.mod.ExportedFunction(name)
	if f == nil {
		return nil, fault(wire.FaultModule, "the module does not export %q", name)
	}
	out, err = f.Call(i.ctx)
	if err != nil {
		return nil, trap(i.h, err)
	}
	return out, nil
}

func (i *wazeroInstance) Close() error { return i.mod.Close(context.Background()) }

// trap tells why a guest stopped: for a reason of the host's, or for its own.
func trap(h *Host, err error) error {
	if h.fault != nil {
		return AsFault(h.fault)
	}
	// The first line; the rest is a stack with names that the guest chose.
	text, _, _ := strings.Cut(err.Error(), "\n")
	return fault(wire.FaultTrap, "the guest trapped: %s", text)
}
