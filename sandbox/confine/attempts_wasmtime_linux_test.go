//go:build wasmtime

package confine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/sandbox/spawn"
)

// strayIsSilent says that nobody is told of a call that a C library may make by itself.
const strayIsSilent = true

// TestLinuxDynamicWorker: a worker that would have to read libraries says so, and its
// host need not wait for it.
func TestLinuxDynamicWorker(t *testing.T) {
	program := filepath.Join(t.TempDir(), "dynamic")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-ldflags=-linkmode=external", "-o", program, "./testdata/attempts")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := spawn.New(program, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Spawn(t.Context(), spawn.ModeRun, t.TempDir(), 0)
	if err == nil || !strings.Contains(err.Error(), "has to be static") || strings.Contains(err.Error(), "timeout") {
		t.Error(err)
	}
}

// TestLinuxSecondImage: whoever has the second image's name and not its walls is not let in.
func TestLinuxSecondImage(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(pair[0]); err != nil { // nobody would wait for what got in
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "")
	defer theirs.Close()
	cmd := exec.CommandContext(t.Context(), attempts, "run", t.TempDir())
	cmd.Args[0] = "monroe-worker within Landlock"
	cmd.Env, cmd.ExtraFiles = []string{}, []*os.File{theirs}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "does not stand in the second image") {
		t.Errorf("error %v, output %q", err, out)
	}
}
