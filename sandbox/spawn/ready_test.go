package spawn

import (
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi/wire"
)

// TestMinimum: a worker that does not claim every wall of the minimum is not used.
func TestMinimum(t *testing.T) {
	minimum := []string{"descriptors", "rlimits", "undumpable", "landlock:7", "no_new_privs", "seccomp", "sealed"}
	for _, c := range []struct {
		mode Mode
		late bool // sealed before it is ready
	}{{ModeRun, true}, {ModeCanary, true}, {ModeCompile, false}, {ModePlugin, false}} {
		r := wire.Ready{Protocol: wire.Version, Engine: "e/1", Enforced: minimum}
		if err := checkReady(r, c.mode, false); err != nil {
			t.Errorf("%s with every wall: %v", c.mode, err)
		}
		for i, wall := range minimum {
			r.Enforced = slices.Delete(slices.Clone(minimum), i, i+1)
			r.Enforced = append(r.Enforced, "un"+wall) // which is another wall
			name, _, _ := strings.Cut(wall, ":")
			err := checkReady(r, c.mode, false)
			if wall == "sealed" && !c.late {
				if err != nil {
					t.Errorf("%s is asked to be sealed: %v", c.mode, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), "does not enforce "+name) {
				t.Errorf("%s without %s: %v", c.mode, name, err)
			}
			if err := checkReady(r, c.mode, true); err != nil {
				t.Errorf("%s without %s, insecure: %v", c.mode, name, err)
			}
		}
	}
}
