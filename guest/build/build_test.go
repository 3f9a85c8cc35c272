package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
	"github.com/getmonroe/monroe/guest/guesttest"
)

// allowedWASI is the list of SPEC 8.1: a guest that imports more is refused.
var allowedWASI = strings.Fields(`sched_yield proc_exit args_get args_sizes_get clock_time_get environ_get
	environ_sizes_get fd_write random_get poll_oneoff fd_close fd_fdstat_get fd_fdstat_set_flags fd_prestat_get
	fd_prestat_dir_name clock_res_get fd_read fd_seek`)

// root is the top of the repository.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBuiltGuests compiles the built-in guests and the example and runs them on an engine, so
// that the half of the SDK that natively built tests cannot see is tested, too.
func TestBuiltGuests(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles three modules")
	}
	t.Chdir(root(t))
	out := t.TempDir()
	var stdout, stderr bytes.Buffer
	if code := doMain(t.Context(), []string{"-o", out}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	rt := newRuntime(t)

	if code := doMain(t.Context(), []string{"-o", out, "./testdata/guests/hello"}, &stdout, &stderr); code != 0 {
		t.Fatalf("hello: exit %d: %s", code, stderr.String())
	}
	hello, manifest := compile(t, rt, filepath.Join(out, "hello.wasm"))
	h := guesttest.New(t, manifest)
	h.Folder("docs", fstest.MapFS{"a.md": {Data: []byte("Hello!")}})
	var found struct{ Found []string }
	execute(t, rt, hello, h, []byte(`{"folder":"docs","word":"hello"}`)).Decode(t, &found)
	if !slices.Equal(found.Found, []string{"a.md"}) {
		t.Errorf("hello: %+v", found)
	}

	if raceEnabled {
		return // an interpreter under the race detector takes minutes for the larger two
	}
	digest, manifest := compile(t, rt, filepath.Join(out, "digest.wasm"))
	h = guesttest.New(t, manifest)
	long := strings.Repeat("words and words\n", 6_000) // a reply beyond the SDK's buffer
	h.Folder("docs", fstest.MapFS{"a.md": {Data: []byte("# A\n\nShall we?\n")}, "long.txt": {Data: []byte(long)}})
	var d struct {
		Files         int
		OpenQuestions []struct{ Text string } `json:"open_questions"`
		Mail          struct{ Sent bool }
	}
	execute(t, rt, digest, h, []byte(`{"folder":"docs"}`)).Decode(t, &d)
	if d.Files != 2 || len(d.OpenQuestions) != 1 || !d.Mail.Sent || len(h.Outbox()) != 1 {
		t.Errorf("digest: %+v", d)
	}

	assistant, manifest := compile(t, rt, filepath.Join(out, "assistant.wasm"))
	h = guesttest.New(t, manifest)
	h.Model(guest.ChatReply{Message: guest.Message{Role: "assistant", Content: "forty-two"}})
	var a struct{ Answer string }
	input := `{"task":"` + strings.Repeat("x", 100_000) + `"}` // an input that takes several reads
	execute(t, rt, assistant, h, []byte(input)).Decode(t, &a)
	if a.Answer != "forty-two" {
		t.Errorf("assistant: %+v", a)
	}
	if f := execute(t, rt, assistant, h, []byte(`{}`)).Failure(t); !strings.Contains(f.Error.Reason, "task") {
		t.Errorf("an error of the guest: %+v", f)
	}
}

func newRuntime(t *testing.T) wazero.Runtime {
	t.Helper()
	// The interpreter: with -race, compiling takes longer than all that is tested here.
	rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	wasi_snapshot_preview1.MustInstantiate(t.Context(), rt)
	return rt
}

// compile checks a module as an upload would be and compiles it.
func compile(t *testing.T, rt wazero.Runtime, path string) (wazero.CompiledModule, []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := abi.FindManifest(b)
	if err != nil || manifest == nil {
		t.Fatalf("%s: manifest %q: %v", path, manifest, err)
	}
	m, err := rt.CompileModule(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.ImportedFunctions() {
		module, name, _ := f.Import()
		ours := module == abi.ImportModule && slices.Contains([]string{"call", "read", "write", "close"}, name)
		if !ours && !(module == wasi_snapshot_preview1.ModuleName && slices.Contains(allowedWASI, name)) {
			t.Errorf("%s imports %s.%s", filepath.Base(path), module, name)
		}
	}
	exports := m.ExportedFunctions()
	run := exports["monroe_run"]
	if run == nil || len(run.ParamTypes()) != 0 || !slices.Equal(run.ResultTypes(), []api.ValueType{api.ValueTypeI32}) {
		t.Errorf("%s does not export monroe_run() -> i32", filepath.Base(path))
	}
	if len(m.ImportedMemories()) != 0 || len(m.ExportedMemories()) != 1 {
		t.Errorf("%s does not have exactly one memory of its own", filepath.Base(path))
	}
	return m, manifest
}

// execute runs a compiled guest against the host of a test.
func execute(t *testing.T, rt wazero.Runtime, m wazero.CompiledModule, h *guesttest.Host, input []byte) guesttest.Outcome {
	t.Helper()
	ctx := t.Context()
	e := &engine{t: t, host: h.Begin(input), input: input, parked: map[uint32][]byte{}, next: 2}
	env, err := e.register(ctx, rt)
	if err != nil {
		t.Fatal(err)
	}
	defer env.Close(ctx)
	inst, err := rt.InstantiateModule(ctx, m, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize").WithStderr(os.Stderr))
	if err != nil {
		t.Fatal(err)
	}
	defer inst.Close(ctx)
	ret, err := inst.ExportedFunction("monroe_run").Call(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.parked) > 0 {
		t.Errorf("the guest left %d parked replies open", len(e.parked))
	}
	if !json.Valid(e.result) {
		t.Errorf("the result is not JSON: %q", e.result)
	}
	e.host.SetResult(e.result)
	return h.End(int32(ret[0]))
}

// engine is the four imports in their plainest form.
type engine struct {
	t      *testing.T
	host   guest.Host
	input  []byte
	result []byte
	parked map[uint32][]byte
	next   uint32
}

func (e *engine) register(ctx context.Context, rt wazero.Runtime) (api.Module, error) {
	return rt.NewHostModuleBuilder(abi.ImportModule).
		NewFunctionBuilder().WithFunc(e.call).Export("call").
		NewFunctionBuilder().WithFunc(e.read).Export("read").
		NewFunctionBuilder().WithFunc(e.write).Export("write").
		NewFunctionBuilder().WithFunc(e.close).Export("close").
		Instantiate(ctx)
}

func (e *engine) span(m api.Module, ptr, n uint32) []byte {
	b, ok := m.Memory().Read(ptr, n)
	if !ok {
		e.t.Fatalf("the guest named %d bytes at %d", n, ptr)
	}
	return b
}

func (e *engine) call(_ context.Context, m api.Module, ptr, n, out, room uint32) uint64 {
	reply := e.host.Call(bytes.Clone(e.span(m, ptr, n)))
	if to := e.span(m, out, room); len(reply) <= len(to) {
		return uint64(copy(to, reply))
	}
	id := e.next
	e.next++
	e.parked[id] = bytes.Clone(reply)
	return 1<<32 | uint64(id)
}

func (e *engine) read(_ context.Context, m api.Module, id, ptr, n uint32) uint64 {
	to := e.span(m, ptr, n)
	if id == 0 {
		k := copy(to, e.input)
		e.input = e.input[k:]
		return uint64(k)
	}
	from, ok := e.parked[id]
	if !ok {
		e.t.Fatalf("read of handle %d", id)
	}
	k := copy(to, from)
	e.parked[id] = from[k:]
	return uint64(k)
}

func (e *engine) write(_ context.Context, m api.Module, id, ptr, n uint32) uint64 {
	if id != 1 {
		e.t.Fatalf("write to handle %d", id)
	}
	e.result = append(e.result, e.span(m, ptr, n)...)
	return uint64(n)
}

func (e *engine) close(_ context.Context, id uint32) uint32 {
	if _, ok := e.parked[id]; !ok {
		e.t.Fatalf("close of handle %d", id)
	}
	delete(e.parked, id)
	return 0
}

func TestBuildRefuses(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no manifest":  {"main.go": "package main\nfunc main() {}\n"},
		"bad manifest": {"main.go": "package main\nfunc main() {}\n", "manifest.json": `{"abi":2}`},
	} {
		dir := t.TempDir()
		for f, text := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var stdout, stderr bytes.Buffer
		if code := doMain(t.Context(), []string{"-o", t.TempDir(), dir}, &stdout, &stderr); code != 1 || stderr.Len() == 0 {
			t.Errorf("%s: exit %d, %q", name, code, stderr.String())
		}
	}
}

// TestGuestInC runs the committed guest that no Go toolchain has touched.
func TestGuestInC(t *testing.T) {
	dir := filepath.Join(root(t), "testdata", "guests", "c")
	rt := newRuntime(t)
	echo, manifest := compile(t, rt, filepath.Join(dir, "echo.wasm"))
	h := guesttest.New(t, manifest)
	input := []byte(`{"text":"` + strings.Repeat("x", 10_000) + `"}`)
	out := execute(t, rt, echo, h, input)
	if out.Status != 0 || !bytes.Equal(out.Result, input) {
		t.Errorf("status %d, %d bytes of result", out.Status, len(out.Result))
	}
	if !slices.Equal(out.Progress, []string{"Echoing"}) {
		t.Errorf("progress %q", out.Progress)
	}
	var ops []string
	for _, c := range h.Calls() {
		ops = append(ops, string(c.Op))
	}
	if got := strings.Join(ops, " "); got != "host.describe run.progress echo.unknown" {
		t.Errorf("calls: %s", got)
	}
	module, err := os.ReadFile(filepath.Join(dir, "echo.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(module)); !strings.Contains(string(readme), sum) {
		t.Errorf("README.md does not name the SHA-256 of echo.wasm, %s", sum)
	}
}

func TestAttach(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	manifest := write("manifest.json", `{"abi":1,"name":"x","version":"1","ops":[]}`)
	core := write("core.wasm", "\x00asm\x01\x00\x00\x00")
	out := filepath.Join(dir, "out.wasm")
	for _, c := range []struct {
		code int
		args []string
	}{
		{0, []string{"-attach", manifest, "-o", out, core}},
		{1, []string{"-attach", manifest, "-o", out, out}}, // it has one now
		{1, []string{"-attach", core, "-o", out, core}},
		{1, []string{"-attach", manifest, "-o", out, write("component.wasm", "\x00asm\x0d\x00\x01\x00")}},
		{2, []string{"-attach", manifest, "-o", out}},
		{2, []string{"-nonsense"}},
	} {
		var stdout, stderr bytes.Buffer
		if code := doMain(t.Context(), c.args, &stdout, &stderr); code != c.code {
			t.Errorf("%q: exit %d, want %d: %s", c.args, code, c.code, stderr.String())
		}
	}
	if b, err := os.ReadFile(out); err != nil || !bytes.Contains(b, []byte(abi.ManifestSection)) {
		t.Errorf("the attached module: %q, %v", b, err)
	}
}

// TestGuideShowsTheExample: what docs/guest-authors.md prints is what is tested.
func TestGuideShowsTheExample(t *testing.T) {
	guide, err := os.ReadFile(filepath.Join(root(t), "docs", "guest-authors.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"main.go", "manifest.json"} {
		b, err := os.ReadFile(filepath.Join(root(t), "testdata", "guests", "hello", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if i := strings.Index(text, "package main"); i > 0 {
			text = text[i:] // the comment above is for the repository
		}
		if !strings.Contains(string(guide), text) {
			t.Errorf("docs/guest-authors.md does not show %s as it is", name)
		}
	}
}
