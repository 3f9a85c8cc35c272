package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

const (
	layerStarts = 40
	layerTrips  = 5000
	nobody      = 65534
)

// layers is what the walls cost: canaries within all of them and within none, by turns.
// A canary is a worker without a module, so loading one does not hide the walls.
func (b *bench) layers(ctx context.Context) (err error) {
	dir := filepath.Join(b.dir, "layers")
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // workers of another user read it
		return err
	}
	program, err := spawntest.Build(ctx, dir, spawntest.Worker)
	if err != nil {
		return err
	}
	all, err := spawn.New(program, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.Close()) }()
	if os.Geteuid() == 0 {
		all.UID = nobody
	}
	none, err := spawn.New(program, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, none.Close()) }()
	none.WithoutNamespaces, none.WithoutGroups, none.Without = true, true, []string{"landlock", "seccomp", "rlimits"}
	all.Walls() // tried once, not at each start
	none.Walls()

	starts := map[*spawn.Spawner][]time.Duration{}
	trips := map[*spawn.Spawner][]time.Duration{}
	for range layerStarts {
		for _, s := range []*spawn.Spawner{all, none} {
			began := time.Now()
			p, err := s.Spawn(ctx, spawn.ModeCanary, dir, 0)
			if err != nil {
				return err
			}
			starts[s] = append(starts[s], time.Since(began))
			took, err := roundTrips(p, layerTrips/layerStarts)
			if err != nil {
				return err
			}
			trips[s] = append(trips[s], took...)
			_ = p.Close() // it is killed
		}
	}
	return errors.Join(
		b.report("layers_worker_start", time.Millisecond, starts[all], peer{"the same process without any layer, by turns", at(starts[none], 50, time.Millisecond)}, 2, true),
		b.report("layers_worker_start_p50", time.Millisecond, starts[all], peer{}, 40, false),
		b.report("layers_host_call", time.Microsecond, trips[all], peer{"the same frames without any layer, by turns", at(trips[none], 50, time.Microsecond)}, 1.3, true),
	)
}

// roundTrips asks a worker for nothing that it knows, as often.
func roundTrips(p *spawn.Process, n int) (took []time.Duration, err error) {
	for range n {
		began := time.Now()
		if err := wire.WriteFrame(p.Conn, wire.KindInput, []byte("nothing")); err != nil {
			return nil, err
		}
		if _, _, err := wire.ReadFrame(p.Conn, wire.KindLog); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
