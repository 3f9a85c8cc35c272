package main_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies looks at everything that the worker links. A banned package that
// does not exist any more fails too: the ban would be void.
func TestDependencies(t *testing.T) {
	const module = "github.com/getmonroe/monroe/"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]bool{}
	for _, p := range strings.Fields(string(out)) {
		linked[p] = true
	}
	banned := []string{
		module + "host", module + "connectors", module + "sandbox/spawn", module + "sandbox/wasmtest",
		"net/http", "crypto/tls", "os/exec", "plugin", "database/sql",
	}
	for _, b := range banned {
		if out, err := exec.CommandContext(t.Context(), "go", "list", b+"/...").Output(); err != nil || len(out) == 0 {
			t.Errorf("%s is banned but does not exist: correct the list (%v)", b, err)
		}
		for p := range linked {
			if p == b || strings.HasPrefix(p, b+"/") {
				t.Errorf("the worker links %s", p)
			}
		}
	}
	for p := range linked {
		if p == "runtime/cgo" {
			t.Error("the worker links cgo")
		}
	}
}
