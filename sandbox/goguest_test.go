//go:build linux

package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

// fixtureDir is removed after the tests.
var fixtureDir string

// fixtures are what the tests and benchmarks of this package build once.
type fixtures struct {
	guest  []byte // a Go guest with its manifest
	worker string
}

// built builds them on first use.
var built = sync.OnceValues(func() (fixtures, error) {
	var f fixtures
	guest, err := spawntest.BuildGuest(context.Background(), fixtureDir, "./testdata/guest")
	if err != nil {
		return f, err
	}
	if f.guest, err = abi.AttachManifest(guest, []byte(wasmtest.Manifest)); err != nil {
		return f, err
	}
	f.worker, err = spawntest.Build(context.Background(), fixtureDir, spawntest.Worker)
	return f, err
})

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "monroe-sandbox-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := func() int {
		defer os.RemoveAll(dir)
		fixtureDir = dir
		return m.Run()
	}()
	os.Exit(code)
}

func fixture(t testing.TB) fixtures {
	t.Helper()
	f, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func spawner(t testing.TB) *spawn.Spawner {
	t.Helper()
	s, err := spawn.New(fixture(t).worker, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestLinuxGoGuest compiles a Go guest in one process and runs it in others: live,
// from its past, and the two agree.
func TestLinuxGoGuest(t *testing.T) {
	f, s, dir := fixture(t), spawner(t), t.TempDir()
	c, err := s.Compile(t.Context(), f.guest, dir)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := abi.ParseManifest(c.Manifest); err != nil || m.Name != "fixture" || len(c.Imports) < 14 || c.Engine != sandbox.Fingerprint() {
		t.Errorf("compiled %+v, error %v", c, err)
	}
	files := filesOf(t, dir)
	if len(files) != 2 { // the module and its compiled code
		t.Errorf("compiled: %v", files)
	}
	play := func(script spawntest.Script) *spawntest.Outcome {
		p, err := s.Spawn(t.Context(), spawn.ModeRun, dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		script.Seed, script.TimeNS, script.Input = [32]byte{7}, 1_700_000_000_000_000_000, []byte("hello")
		out, err := spawntest.Play(p, script)
		if err != nil || out.Fault != nil {
			t.Fatalf("outcome %+v, error %v; it printed %s", out, err, p.Stderr())
		}
		if v := p.Violations(); len(v) > 0 {
			t.Errorf("reported: %v", v)
		}
		return out
	}
	live := play(spawntest.Script{})
	if !strings.HasPrefix(string(live.Result), "echo hello|random ") || len(live.Calls) != 2 || !strings.HasPrefix(string(live.Log), "printed at 1700003600") {
		t.Fatalf("result %q, %d calls, log %q", live.Result, len(live.Calls), live.Log)
	}
	for n := 1; n <= 2; n++ {
		var past []spawntest.Reply
		for _, request := range live.Calls[:n] {
			past = append(past, spawntest.Reply{Body: request})
		}
		again := play(spawntest.Script{Past: past})
		if !bytes.Equal(again.Result, live.Result) || !bytes.Equal(again.Log, live.Log) || len(again.Seen) != n || again.Seen[0] != abi.Fingerprint(live.Calls[0]) {
			t.Errorf("with %d recorded replies: result %q, log %q, %d seen", n, again.Result, again.Log, len(again.Seen))
		}
	}
	// Nothing that a run does may change what the next one loads.
	if now := filesOf(t, dir); !slices.Equal(now, files) {
		t.Errorf("the directory changed: %v", now)
	}
}

// filesOf lists the files in a directory and below it.
func filesOf(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// BenchmarkGuestStart is from a compiled Go guest to its first host call.
func BenchmarkGuestStart(b *testing.B) {
	m, err := newEngine(b).Compile(fixture(b).guest)
	if err != nil {
		b.Fatal(err)
	}
	first := fmt.Errorf("the first call was made")
	for b.Loop() {
		_, _, err := sandbox.Run(m, sandbox.NewHost(sandbox.Config{Call: func([]byte) ([]byte, int64, error) { return nil, 0, first }}))
		if err != first { //nolint:errorlint // identity is the point
			b.Fatal(err)
		}
	}
}

// asking is a guest that makes n calls of the given size.
func asking(b *testing.B, n, size int) []byte {
	b.Helper()
	g, im := wasmtest.Guest()
	return asLoop(g, im, n, size)
}

func asLoop(g *wasmtest.Builder, im wasmtest.Imports, n, size int) []byte {
	g.Export("monroe_run", wasmtest.KindFunc, g.Func("", "i", 1,
		wasmtest.I32Const(int32(n)), wasmtest.LocalSet(0), wasmtest.Loop,
		wasmtest.I32Const(0), wasmtest.I32Const(int32(size)), wasmtest.I32Const(32768), wasmtest.I32Const(32768), wasmtest.Call(im.Call), wasmtest.Drop,
		wasmtest.LocalGet(0), wasmtest.I32Const(-1), wasmtest.Add, []byte{0x22, 0}, wasmtest.BrIf(0), wasmtest.End,
		wasmtest.I32Const(0)))
	return g.Bytes()
}

// BenchmarkHostCall is one call within the worker: guest, copy, answer, copy.
func BenchmarkHostCall(b *testing.B) {
	for _, size := range []int{100, 4096, 32768} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m, err := newEngine(b).Compile(asking(b, b.N, size))
			if err != nil {
				b.Fatal(err)
			}
			h := sandbox.NewHost(sandbox.Config{Limits: abi.Limits{Calls: 1<<32 - 1}, Call: echo})
			b.ResetTimer()
			if _, _, err := sandbox.Run(m, h); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkWorkerStart is from Spawn to a Ready worker with a loaded module.
func BenchmarkWorkerStart(b *testing.B) {
	g, im := wasmtest.Guest()
	for name, module := range map[string][]byte{"small": asLoop(g, im, 1, 100), "go": fixture(b).guest} {
		b.Run(name, func(b *testing.B) {
			s, dir := spawner(b), b.TempDir()
			if _, err := s.Compile(b.Context(), module, dir); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				p, err := s.Spawn(b.Context(), spawn.ModeRun, dir, 0)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = p.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkMediatedCall is one call over the process boundary and back.
func BenchmarkMediatedCall(b *testing.B) {
	for _, size := range []int{100, 4096, 32768} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s, dir := spawner(b), b.TempDir()
			if _, err := s.Compile(b.Context(), asking(b, b.N, size), dir); err != nil {
				b.Fatal(err)
			}
			p, err := s.Spawn(b.Context(), spawn.ModeRun, dir, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			b.ResetTimer()
			out, err := spawntest.Play(p, spawntest.Script{Limits: abi.Limits{Calls: 1<<32 - 1}})
			if err != nil || out.Fault != nil {
				b.Fatalf("%v, error %v", out.Fault, err)
			}
		})
	}
}
