package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	"github.com/getmonroe/monroe/testdata/bench/timing"
)

const (
	engineRounds   = 5 // of the starts and calls of guests
	engineCompiles = 10
)

// contender is one engine: its worker within all walls, and the same engine alone.
type contender struct {
	name    string
	spawner *spawn.Spawner
	alone   string // testdata/bench/engine
	dir     string // of the compiled guest

	compile, start, load []time.Duration
	timing.Times
}

// engines holds wasmtime against wazero: the same guest and payload, by turns.
func (b *bench) engines(ctx context.Context) (err error) {
	wazero, wasmtime := &contender{name: "wazero"}, &contender{name: "wasmtime"}
	both := []*contender{wazero, wasmtime}
	for i, build := range []build{spawntest.Build, spawntest.BuildWasmtime} {
		c := both[i]
		if err := c.prepare(ctx, filepath.Join(b.dir, c.name), build); err != nil {
			if c == wasmtime && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "ours: the engines are not compared: wasmtime needs a C compiler and a static C library:", err)
				return nil
			}
			return fmt.Errorf("%s: %w", c.name, err)
		}
		defer func() { err = errors.Join(err, c.spawner.Close()) }()
	}
	for _, step := range []struct {
		times int
		do    func(*contender, int) error
	}{
		{engineCompiles, func(c *contender, i int) error { return c.compiles(ctx, b.guest, i) }},
		{workerStarts, func(c *contender, _ int) error { return c.starts(ctx) }},
		{engineRounds, func(c *contender, _ int) error { return c.runs(ctx) }},
	} {
		for i := range step.times {
			for _, c := range both {
				if err := step.do(c, i); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
		}
	}
	for _, l := range []struct {
		name string
		unit time.Duration
		of   func(*contender) []time.Duration
	}{
		{"engines_compile_go", time.Millisecond, func(c *contender) []time.Duration { return c.compile }},
		{"engines_worker_start", time.Millisecond, func(c *contender) []time.Duration { return c.start }},
		{"engines_load", time.Millisecond, func(c *contender) []time.Duration { return c.load }},
		{"engines_guest_start", time.Microsecond, func(c *contender) []time.Duration { return c.Starts }},
		{"engines_host_call", time.Microsecond, func(c *contender) []time.Duration { return c.Calls }},
	} {
		err = errors.Join(err,
			b.report(l.name+"_wazero", l.unit, l.of(wazero), peer{}, 0, false),
			b.report(l.name+"_wasmtime", l.unit, l.of(wasmtime), peer{"wazero, by turns", at(l.of(wazero), 50, l.unit)}, 0, false))
	}
	return err
}

type build func(ctx context.Context, dir, pkg string, extra ...string) (string, error)

func (c *contender) prepare(ctx context.Context, dir string, build build) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	program, err := build(ctx, dir, spawntest.Worker)
	if err != nil {
		return err
	}
	if c.alone, err = build(ctx, dir, "./testdata/bench/engine"); err != nil {
		return err
	}
	c.dir = filepath.Join(dir, "compiled-0")
	if c.spawner, err = spawn.New(program, false); err == nil {
		c.spawner.Walls() // tried once, not at each start
	}
	return err
}

// compiles the guest, within a worker: admission and the engine.
func (c *contender) compiles(ctx context.Context, guest []byte, i int) error {
	dir := filepath.Join(filepath.Dir(c.dir), fmt.Sprintf("compiled-%d", i))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	out, err := c.spawner.Compile(ctx, guest, dir)
	if err != nil {
		return err
	}
	c.compile = append(c.compile, out.Took)
	return nil
}

// starts a worker that confines itself and loads the compiled guest.
func (c *contender) starts(ctx context.Context) error {
	begin := time.Now()
	p, err := c.spawner.Spawn(ctx, spawn.ModeRun, c.dir, 0)
	if err != nil {
		return err
	}
	c.start = append(c.start, time.Since(begin))
	c.load = append(c.load, time.Duration(p.Ready.LoadUS)*time.Microsecond)
	_ = p.Close() // it is killed
	return nil
}

// runs the engine alone, in a process of its own.
func (c *contender) runs(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.alone, c.dir, strconv.Itoa(guestStarts/engineRounds), strconv.Itoa(guestCalls/engineRounds))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var t timing.Times
	if err := json.Unmarshal(out, &t); err != nil {
		return err
	}
	c.Starts, c.Calls = append(c.Starts, t.Starts...), append(c.Calls, t.Calls...)
	return nil
}
