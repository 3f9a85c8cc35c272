package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/testdata/bench/timing"
)

const (
	guestStarts  = 100
	guestCalls   = 20_000
	workerStarts = 60
)

// worker measures what happens without a host: a guest's start, its calls, and the
// start of the process that holds it.
func (b *bench) worker(ctx context.Context) error {
	engine, err := sandbox.NewWazero(sandbox.EngineConfig{})
	if err != nil {
		return err
	}
	defer engine.Close() //nolint:errcheck // frees memory only
	module, err := engine.Compile(b.guest)
	if err != nil {
		return err
	}
	t, err := timing.Guest(module, guestStarts, guestCalls)
	if err != nil {
		return err
	}
	start, err := b.of("extism_start_to_first_host_call", "extism: instance to first host call")
	call, err2 := b.of("extism_host_call_round_trip_100B", "extism: host call that echoes 100 bytes")
	return errors.Join(
		err, err2,
		b.report("guest_start_go", time.Microsecond, t.Starts, start, 0, false),
		b.report("hostcall_in_worker", time.Microsecond, t.Calls, call, 0, false),
		b.workerStart(ctx),
	)
}

// workerStart is from Spawn to a worker that has confined itself and loaded the
// compiled module.
func (b *bench) workerStart(ctx context.Context) error {
	c := &contender{spawner: b.spawner, dir: filepath.Join(b.dir, "compiled-0")}
	if err := c.compiles(ctx, b.guest, 0); err != nil {
		return err
	}
	for range workerStarts {
		if err := c.starts(ctx); err != nil {
			return err
		}
	}
	return b.report("worker_start", time.Millisecond, c.start, peer{}, 0, false)
}
