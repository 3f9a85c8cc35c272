package main_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
)

// TestLinuxGuestInC runs the guest that no Go toolchain has touched in a worker: its
// input comes back as it was, by handles, parked replies and a refusal.
func TestLinuxGuestInC(t *testing.T) {
	d := serve(t, "")
	name := d.push(read(t, filepath.Join("..", "..", "testdata", "guests", "c", "echo.wasm"))).Name
	input := `{"text":"` + strings.Repeat("x", 10_000) + `"}`
	v := d.finished(d.start(name, input))
	if v.State != host.StateSucceeded || string(v.Result) != input {
		t.Errorf("the run %s: %s; %d bytes of result", v.State, v.Failure, len(v.Result))
	}
	if len(v.Log) != 3 || v.Log[2].Outcome != "UNSUPPORTED" {
		t.Errorf("its calls: %+v", v.Log)
	}
	d.verified()
}
