package spawn

import (
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi/wire"
)

// TestMinimum: a worker that does not claim every wall of the minimum is not used.
func TestMinimum(t *testing.T) {
	minimum := []string{"descriptors", "rlimits", "undumpable", "landlock:7", "no_new_privs", "seccomp"}
	r := wire.Ready{Protocol: wire.Version, Engine: "e/1", Enforced: minimum}
	if err := checkReady(r, false); err != nil {
		t.Errorf("with every wall: %v", err)
	}
	for i, wall := range minimum {
		r.Enforced = slices.Delete(slices.Clone(minimum), i, i+1)
		r.Enforced = append(r.Enforced, "un"+wall) // which is another wall
		name, _, _ := strings.Cut(wall, ":")
		if err := checkReady(r, false); err == nil || !strings.Contains(err.Error(), "does not enforce "+name) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := checkReady(r, true); err != nil {
			t.Errorf("without %s, insecure: %v", name, err)
		}
	}
}
