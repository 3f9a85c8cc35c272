package spawn_test

import (
	"errors"
	"testing"

	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

// TestLinuxMemoryWatch: where no control group holds the memory, and no limit of the
// process's own, a look ends whoever holds more than it may and says why. Its twin holds
// less and goes on.
func TestLinuxMemoryWatch(t *testing.T) {
	forkers(t, func(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
		s := newSpawner(t, workerPath, true)
		s.WithoutGroups, s.Without, s.Memory = true, []string{"rlimits"}, 128<<20
		dir := t.TempDir()
		opened(t, dir)
		p, err := s.Spawn(t.Context(), spawn.ModeCanary, dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for range 50 { // it may give the memory back before the next look
			if _, err = spawntest.Attempt(p, "memory 256"); err != nil {
				break
			}
		}
		if err == nil {
			t.Error("it goes on")
		} else if err := p.Wait(); !errors.Is(err, spawn.ErrMemoryLimit) {
			t.Errorf("it ended with %v", err)
		}
		twin, err := s.Spawn(t.Context(), spawn.ModeCanary, dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer twin.Close()
		for range 2 {
			if answer, err := spawntest.Attempt(twin, "memory 16"); err != nil {
				t.Errorf("the twin answered %s, %v", answer, err)
			}
		}
	})
}
