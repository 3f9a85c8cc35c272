package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	extism "github.com/extism/go-sdk"
)

// extismGuest measures the peer: from the request for an instance to the guest's
// first host call, with the module compiled before; and the round trip of a call
// that echoes 100 bytes, guest work included. The guest is built from ./guest.
func extismGuest(ctx context.Context, dir string, starts, calls int) (first, trips []time.Duration, err error) {
	wasm := filepath.Join(dir, "extism.wasm")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-buildmode=c-shared", "-o", wasm, "./guest")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, out)
	}
	entered := make([]time.Time, 0, calls+1)
	echo := extism.NewHostFunctionWithStack("host_echo", func(_ context.Context, p *extism.CurrentPlugin, stack []uint64) {
		entered = append(entered, time.Now())
		b, err := p.ReadBytes(stack[0])
		if err == nil {
			stack[0], err = p.WriteBytes(b)
		}
		if err != nil {
			stack[0] = 0
		}
	}, []extism.ValueType{extism.ValueTypePTR}, []extism.ValueType{extism.ValueTypePTR})

	manifest := extism.Manifest{Wasm: []extism.Wasm{extism.WasmFile{Path: wasm}}}
	compiled, err := extism.NewCompiledPlugin(ctx, manifest, extism.PluginConfig{EnableWasi: true}, []extism.HostFunction{echo})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, compiled.Close(ctx)) }()

	run := func(n int) (begin time.Time, err error) {
		entered = entered[:0]
		begin = time.Now()
		p, err := compiled.Instance(ctx, extism.PluginInstanceConfig{})
		if err != nil {
			return begin, err
		}
		defer func() { err = errors.Join(err, p.Close(ctx)) }()
		code, _, err := p.Call("run", []byte(strconv.Itoa(n)))
		if err == nil && (code != 0 || len(entered) != n) {
			err = fmt.Errorf("exit code %d after %d of %d calls", code, len(entered), n)
		}
		return begin, err
	}
	for range starts {
		begin, err := run(1)
		if err != nil {
			return nil, nil, err
		}
		first = append(first, entered[0].Sub(begin))
	}
	if _, err := run(calls + 1); err != nil {
		return nil, nil, err
	}
	for i := range calls {
		trips = append(trips, entered[i+1].Sub(entered[i]))
	}
	return first, trips, nil
}
