package runner_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/workspace"
)

// version is a manifest, and so a module, of the skill.
func version(n int) []byte {
	return fmt.Appendf(nil, `{"abi":1,"name":"nap","version":"%d","description":"","ops":["time.sleep"]}`, n)
}

// A run that waits keeps the module that it began with: a newer one may be pushed, the
// compiled form of the old one may be lost, the daemon may start again. The name stays
// with the newer one.
func TestAWaitingRunKeepsItsModule(t *testing.T) {
	var ahead atomic.Int64
	var dirs []string
	s := &cast{started: map[string]int{}, play: map[string]script{}}
	nap := func(c net.Conn) { open(c); call(c, 1, sleep); done(c) }
	s.play["nap"], s.play["fixture"] = nap, nap
	s.spawned = func(dir string) { dirs = append(dirs, filepath.Base(dir)) }
	b := benchWith(t, &fakeSpawner{}, func(c *workspace.Config) {
		c.Spawner, c.Now = s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	push := func(n int) string {
		t.Helper()
		skill, err := b.PushSkill(t.Context(), b.caller, version(n))
		if err != nil {
			t.Fatal(err)
		}
		return skill.Module
	}
	for name, lose := range map[string]func(old string){
		"a newer version":               func(string) {},
		"the artefact is collected":     func(old string) { remove(t, filepath.Join(b.config.Dir, "modules", "artefacts", old)) },
		"and half of another's is lost": func(old string) { remove(t, filepath.Join(b.config.Dir, "modules", "artefacts", old, "module.wasm")) },
	} {
		t.Run(name, func(t *testing.T) {
			dirs = nil
			old := push(1)
			id := b.begin(t, "nap")
			b.await(t, id, func(st host.RunState) bool { return st == host.StateWaiting })
			newer := push(2)
			lose(old)
			b.reopen(t)
			ahead.Add(int64(2 * time.Hour))
			b.sweep(t)
			v := b.finish(t, id)
			if v.State != host.StateSucceeded || v.Module != old || strings.Join(dirs, " ") != old+" "+old {
				t.Errorf("%s: %s; module %s, started from %v", v.State, v.Failure, v.Module, dirs)
			}
			if skill, err := b.Skill(t.Context(), b.caller, "nap"); err != nil || skill.Module != newer {
				t.Errorf("the name stands for %s, %v; want %s", skill.Module, err, newer)
			}
		})
	}
	// Without its upload a lost artefact cannot be made again: the run fails, and is not
	// run by another module.
	old := push(3)
	id := b.begin(t, "nap")
	b.await(t, id, func(st host.RunState) bool { return st == host.StateWaiting })
	push(4)
	remove(t, filepath.Join(b.config.Dir, "modules", "artefacts", old))
	remove(t, filepath.Join(b.config.Dir, "modules", "uploads", old+".wasm"))
	ahead.Add(int64(2 * time.Hour))
	b.sweep(t)
	if v := b.finish(t, id); v.State != host.StateFailed || !strings.Contains(v.Failure, "neither a good artefact nor its upload") {
		t.Errorf("%s: %s", v.State, v.Failure)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	// What a worker may load is read-only.
	_ = os.Chmod(path, 0o700)
	_ = os.Chmod(filepath.Dir(path), 0o700)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
