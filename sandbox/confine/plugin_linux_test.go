package confine_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

// TestLinuxPluginDies: a plugin has nothing of its daemon's environment, and it goes with
// whoever started it, also if its launcher did not execute it on its first thread.
func TestLinuxPluginDies(t *testing.T) {
	bare := func(pid int) {
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || len(env) > 0 {
			t.Errorf("it was given no environment and has %q, %v", env, err)
		}
	}
	if err := spawntest.DiesWithParent(t.Context(), bare, "MONROE_TEST_DAEMON="+t.TempDir(), "MONROE_TEST_PROGRAM="+attempts); err != nil {
		t.Error(err)
	}
}

// daemon has a plugin, says which, and waits to be killed.
func daemon(path, dir string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s, err := spawn.New(path, false)
	if err != nil {
		return err
	}
	program, err := spawn.OpenProgram(path, abi.Digest(sha256.Sum256(b)))
	if err != nil {
		return err
	}
	p, err := s.SpawnPlugin(context.Background(), program, dir, nil, nil)
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	return p.Wait()
}
