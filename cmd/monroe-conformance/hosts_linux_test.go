package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi/conformance"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	w "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// built builds the kit and a worker; flags are those of both builds.
func built(t *testing.T, flags ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for _, pkg := range []string{"github.com/getmonroe/monroe/cmd/monroe-conformance", spawntest.Worker} {
		args := append(append([]string{"build", "-o", dir + "/"}, flags...), pkg)
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	return []string{filepath.Join(dir, "monroe-conformance"), "serve"}
}

// failing are the names of the vectors that a host fails.
func failing(t *testing.T, command []string) (names []string, passed int) {
	t.Helper()
	err := conformance.Run(t.Context(), command, func(f conformance.Finding) {
		if f.Err == nil {
			passed++
			return
		}
		names = append(names, f.Vector.Name)
		t.Logf("%s: %.1000v", f.Vector.Name, f.Err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, passed
}

// TestLinuxOurHost: the confined worker conforms.
func TestLinuxOurHost(t *testing.T) {
	if names, passed := failing(t, built(t)); len(names) > 0 || passed < 300 {
		t.Errorf("%d vectors passed; these failed: %q", passed, names)
	}
}

// TestLinuxBrokenHosts: each host of testdata/brokenhosts is this one with a line or
// two made wrong, and fails at least the vectors that its file names.
func TestLinuxBrokenHosts(t *testing.T) {
	files, err := filepath.Glob("../../testdata/brokenhosts/*.json")
	if err != nil || len(files) < 3 {
		t.Fatalf("only %v were found (%v)", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			overlay, fails := broken(t, file)
			names, passed := failing(t, built(t, "-overlay", overlay))
			for _, want := range fails {
				if !slices.Contains(names, want) {
					t.Errorf("it passes %q", want)
				}
			}
			if passed < 200 {
				t.Errorf("only %d vectors passed: more is broken than is meant", passed)
			}
		})
	}
}

// broken makes the overlay of a broken host.
func broken(t *testing.T, file string) (overlay string, fails []string) {
	t.Helper()
	var spec struct {
		Breaks string
		Edits  []struct{ File, Was, Is string }
		Fails  []string
	}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	replace, dir := map[string]string{}, t.TempDir()
	for _, e := range spec.Edits {
		real, err := filepath.Abs("../../" + e.File)
		if err != nil {
			t.Fatal(err)
		}
		from := real
		if to, again := replace[real]; again {
			from = to
		}
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(text), e.Was) != 1 {
			t.Fatalf("%s does not have exactly once %q: correct the edit", e.File, e.Was)
		}
		replace[real] = filepath.Join(dir, filepath.Base(real))
		put(t, replace[real], []byte(strings.Replace(string(text), e.Was, e.Is, 1)))
	}
	b, err = json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	put(t, overlay, b)
	return overlay, spec.Fails
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestLinuxGuests: a good guest is told so, and bad ones what is wrong with them.
func TestLinuxGuests(t *testing.T) {
	h := built(t)
	floats, im := w.Guest()
	floats.Data(0, []byte(`{"op":"x","v":1.5}`))
	bad := w.Run(floats, w.I32Const(0), w.I32Const(18), w.I32Const(64), w.I32Const(256), w.Call(im.Call), w.Wrap)
	for _, c := range []struct {
		name   string
		module []byte
		says   string
	}{
		{"good", w.Asks(`{"op":"time.now","v":1}`, 256), ""},
		{"no manifest", w.Header(1), "refused"},
		{"a fraction", bad, "request 1 is not well formed"},
	} {
		var said []string
		err := conformance.CheckGuest(t.Context(), h, c.module, nil, func(line string) { said = append(said, line) })
		if c.says == "" && (err != nil || len(said) != 3) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v after %q", c.name, err, said)
		}
	}
}
