package spawn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// Compile admits and compiles a module in a worker of its own, into a private, empty
// directory, which then holds module.wasm and the engine's files. The caller hashes
// what it finds there: it is what a process that read a hostile module left behind.
// A worker that tried what it may not is an *EscapeError. A refused module is a *FaultError whose message tells the author what to change;
// one that takes too long or too much is TOO_LARGE.
func (s *Spawner) Compile(ctx context.Context, module []byte, dir string) (*wire.Compiled, error) {
	if len(module) > abi.MaxModule {
		return nil, &FaultError{wire.Fault{Code: wire.FaultTooLarge, Message: fmt.Sprintf("the module has %d bytes, at most %d are allowed", len(module), abi.MaxModule)}}
	}
	p, err := s.Spawn(ctx, ModeCompile, dir, 0)
	if err != nil {
		return nil, err
	}
	defer p.Close() //nolint:errcheck // the outcome is known by then
	defer context.AfterFunc(ctx, p.Kill)()
	compiled, err := compileOn(p.Conn, module)
	if err == nil {
		err = p.Wait()
	}
	if tried := p.Violations(); len(tried) > 0 {
		return nil, &EscapeError{tried}
	}
	if err == nil {
		return compiled, nil
	}
	var refused *FaultError
	if errors.As(err, &refused) {
		return nil, err
	}
	// The socket broke: why did the worker end?
	_ = p.Conn.Close()
	ended := p.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(ended, ErrCPULimit), errors.Is(ended, ErrWallLimit):
		return nil, &FaultError{wire.Fault{Code: wire.FaultTooLarge, Message: fmt.Sprintf("compiling the module takes longer than %v; split large functions", s.compileWall())}}
	case errors.Is(ended, ErrMemoryLimit), exhausted(ended, p.Stderr()):
		return nil, &FaultError{wire.Fault{Code: wire.FaultTooLarge, Message: fmt.Sprintf("compiling the module takes more than %d MiB; split large functions, or leave data and code out", s.memory(ModeCompile)>>20)}}
	}
	return nil, fmt.Errorf("the compile worker failed: %w; it printed: %s", errors.Join(err, ended), p.Stderr())
}

func (s *Spawner) compileWall() time.Duration {
	if s.CompileWall == 0 {
		return CompileWall
	}
	return s.CompileWall
}

func compileOn(conn io.ReadWriter, module []byte) (*wire.Compiled, error) {
	if err := wire.WriteFrame(conn, wire.KindModule, module); err != nil {
		return nil, err
	}
	kind, payload, err := wire.ReadFrame(conn, wire.KindCompiled, wire.KindFault)
	if err != nil {
		return nil, err
	}
	if kind == wire.KindFault {
		return nil, faultError(payload)
	}
	var c wire.Compiled
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, fmt.Errorf("its Compiled frame cannot be read: %w", err)
	}
	if _, err := abi.ParseManifest(c.Manifest); err != nil {
		return nil, fmt.Errorf("its Compiled frame has no manifest: %w", err)
	}
	return &c, nil
}

func faultError(payload []byte) error {
	var f wire.Fault
	if err := json.Unmarshal(payload, &f); err != nil || f.Code == "" {
		return fmt.Errorf("its Fault frame cannot be read: %w", errors.Join(err))
	}
	return &FaultError{f}
}
