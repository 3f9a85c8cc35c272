package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/spawn"
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
	var entered []time.Time
	run := func(n int) (time.Time, error) {
		entered = entered[:0]
		begin := time.Now()
		h := sandbox.NewHost(sandbox.Config{
			Limits: abi.Limits{Calls: 1<<32 - 1}, Input: fmt.Appendf(nil, `{"n":%d}`, n),
			Call: func(request []byte) ([]byte, int64, error) {
				entered = append(entered, time.Now())
				r, denial := abi.DecodeRequest(request)
				if denial != nil {
					return nil, 0, denial
				}
				return abi.OK(r.Args).Encode(), 0, nil
			},
		})
		status, _, err := sandbox.Run(module, h)
		if err == nil && (status != 0 || len(entered) < n) {
			err = fmt.Errorf("status %d after %d of %d calls", status, len(entered), n)
		}
		return begin, err
	}
	var starts, calls []time.Duration
	for range guestStarts {
		begin, err := run(1)
		if err != nil {
			return err
		}
		starts = append(starts, entered[0].Sub(begin))
	}
	if _, err := run(guestCalls + 1); err != nil {
		return err
	}
	for i := range guestCalls {
		calls = append(calls, entered[i+1].Sub(entered[i]))
	}
	return errors.Join(
		b.report("guest_start_go", time.Microsecond, starts, b.of("extism_start_to_first_host_call", "extism: instance to first host call"), 0, false),
		b.report("hostcall_in_worker", time.Microsecond, calls, b.of("extism_host_call_round_trip_100B", "extism: host call that echoes 100 bytes"), 0, false),
		b.workerStart(ctx),
	)
}

// workerStart is from Spawn to a worker that has confined itself and loaded the
// compiled module.
func (b *bench) workerStart(ctx context.Context) error {
	dir := filepath.Join(b.dir, "compiled")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if _, err := b.spawner.Compile(ctx, b.guest, dir); err != nil {
		return err
	}
	var took []time.Duration
	for range workerStarts {
		begin := time.Now()
		p, err := b.spawner.Spawn(ctx, spawn.ModeRun, dir, 0)
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin))
		_ = p.Close()
		_ = p.Wait()
	}
	return b.report("worker_start", time.Millisecond, took, peer{}, 0, false)
}
