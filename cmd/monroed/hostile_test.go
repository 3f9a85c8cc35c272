package main_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// memory is a line of the daemon's status, in KiB: what it holds (VmRSS), or the most that
// it held since settle (VmHWM).
func (d *daemon) memory(what string) int {
	d.t.Helper()
	for line := range strings.Lines(string(read(d.t, fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid)))) {
		if kb, ok := strings.CutPrefix(line, what+":"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")))
			if err != nil {
				d.t.Fatal(err)
			}
			return n
		}
	}
	d.t.Fatalf("no %s", what)
	return 0
}

// settle lets the count of the most begin with what the daemon holds now.
func (d *daemon) settle() int {
	d.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.cmd.Process.Pid), []byte("5"), 0); err != nil {
		d.t.Fatal(err)
	}
	return d.memory("VmRSS")
}

// with returns a good guest after a change.
func with(change func(b *wt.Builder)) []byte {
	b, _ := wt.Guest()
	change(b)
	return wt.Run(b, wt.I32Const(0))
}

// imports returns a builder with the imports of the ABI, to which more can be added.
func imports() (*wt.Builder, wt.Imports) {
	b := &wt.Builder{}
	im := wt.Imports{
		Call: b.Import("monroe_v1", "call", "iiii", "I"), Read: b.Import("monroe_v1", "read", "iii", "I"),
		Write: b.Import("monroe_v1", "write", "iii", "I"), Close: b.Import("monroe_v1", "close", "i", "i"),
	}
	return b, im
}

// finish adds memory and manifest, which come after all imports.
func finish(b *wt.Builder, name, ops, limits string, code ...[]byte) []byte {
	b.Memory(1)
	b.Export("memory", wt.KindMemory, 0)
	b.Custom("monroe.manifest", []byte(manifestOf(name, ops, limits)))
	b.Export("monroe_run", wt.KindFunc, b.Func("", "i", 2, code...))
	return b.Bytes()
}

func manifestOf(name, ops, limits string) string {
	return fmt.Sprintf(`{"abi":1,"name":%q,"version":"1.0.0","description":"hostile","ops":[%s],"limits":{%s}}`, name, ops, limits)
}

func TestLinuxHostileModules(t *testing.T) {
	d := serve(t, "")
	good := with(func(*wt.Builder) {})
	many := 500_000
	module := func(name string, module []byte, status int, code, says string) {
		t.Run(name, func(t *testing.T) {
			_, err := d.PushSkill(d.ctx(), module)
			p := refused(t, err, status, code)
			if !strings.Contains(p.Detail, says) || p.Remedy == "" {
				t.Errorf("%q (%s) does not tell of %q", p.Detail, p.Remedy, says)
			}
		})
	}
	before := d.settle()
	module("text", []byte("(module)"), 422, "MODULE", "not a WebAssembly binary")
	module("truncated", good[:len(good)/2], 422, "MODULE", "")
	module("random tail", append(append([]byte{}, good...), 0xff, 0xff, 0xff, 0xff), 422, "MODULE", "")
	module("component", append(wt.Header(0x0001000d), 0), 422, "MODULE", "core module is needed")
	module("foreign import", with(func(b *wt.Builder) { b.Import("env", "system", "i", "i") }), 422, "MODULE", "env.system")
	module("socket import", with(func(b *wt.Builder) { b.Import("wasi_snapshot_preview1", "sock_open", "iii", "i") }), 422, "MODULE", "sock_open")
	module("two memories", with(func(b *wt.Builder) { b.Memory(1) }), 422, "MODULE", "exactly one")
	module("huge memory", with(func(b *wt.Builder) { b.Raw(5, wt.Cat([]byte{1, 0}, wt.U32(65536))) }), 413, "MODULE_TOO_LARGE", "memory")
	module("growing table", with(func(b *wt.Builder) {
		b.Table(1)
		b.Func("", "", 0, tableGrow(1), wt.Drop)
	}), 422, "MODULE", "declare a maximum")
	module("nested blocks", with(func(b *wt.Builder) { b.Func("", "", 0, wt.Repeat(50_000, wt.Block), wt.Repeat(50_000, wt.End)) }), 413, "MODULE_TOO_LARGE", "nests")
	module("500000 functions", with(func(b *wt.Builder) {
		b.Raw(1, []byte{1, 0x60, 0, 0})
		b.Raw(2, []byte{0})
		b.Raw(3, wt.Cat(wt.U32(uint32(many)), make([]byte, many)))
		b.Raw(7, []byte{0})
		b.Raw(10, wt.Cat(wt.U32(uint32(many)), wt.Repeat(many, wt.Vec([]byte{0, 0x0b}))))
	}), 413, "MODULE_TOO_LARGE", "500000 functions")
	module("bad body", with(func(b *wt.Builder) { b.Func("", "i", 0, wt.I64Const(1)) }), 422, "MODULE", "engine refuses")
	module("no manifest", func() []byte {
		b := &wt.Builder{}
		b.Memory(1)
		b.Export("memory", wt.KindMemory, 0)
		return wt.Run(b, wt.I32Const(0))
	}(), 422, "MODULE", "monroe.manifest")
	module("command", func() []byte {
		b, _ := wt.Guest()
		b.Export("_start", wt.KindFunc, b.Func("", "", 0))
		return b.Bytes()
	}(), 422, "MODULE", "-buildmode=c-shared")
	for name, c := range map[string]struct{ manifest, code, says string }{
		"abi":            {`{"abi":9,"name":"x","version":"1","description":"","ops":[]}`, "MODULE", "this host speaks 1"},
		"name":           {`{"abi":1,"name":"../x","version":"1","description":"","ops":[]}`, "MODULE", "name"},
		"unknown op":     {`{"abi":1,"name":"x","version":"1","description":"","ops":["root.shell"]}`, "MODULE", "root.shell"},
		"unknown field":  {`{"abi":1,"name":"x","version":"1","description":"","ops":[],"admin":true}`, "MODULE", "admin"},
		"no JSON":        {`{`, "MODULE", "not acceptable JSON: a key is missing at byte 1"},
		"false effect":   {`{"abi":1,"name":"x","version":"1","description":"","ops":["send"],"operations":[{"operation":"mail.send","effect":"read","resource":"mail:*"}]}`, "MANIFEST_EFFECT", "mail.send"},
		"unknown effect": {`{"abi":1,"name":"x","version":"1","description":"","ops":["send"],"operations":[{"operation":"mail.send","effect":"whatever","resource":"mail:*"}]}`, "MODULE", "whatever"},
	} {
		b := &wt.Builder{}
		b.Memory(1)
		b.Export("memory", wt.KindMemory, 0)
		b.Custom("monroe.manifest", []byte(c.manifest))
		module("manifest "+name, wt.Run(b, wt.I32Const(0)), 422, c.code, c.says)
	}
	if most := d.memory("VmHWM"); most-before > 64<<10 {
		t.Errorf("the daemon grew from %d to %d KiB", before, most)
	}
	_, err := d.PushSkill(d.ctx(), make([]byte, abi.MaxModule+1))
	refused(t, err, 413, "MODULE_SIZE")
	_, err = d.PushSkill(d.ctx(), make([]byte, abi.MaxModule+2<<20))
	refused(t, err, 413, "REQUEST_SIZE")
	list, err := d.Skills(d.ctx())
	if err != nil || len(list) != 0 {
		t.Errorf("a refused module was stored: %+v, %v", list, err)
	}
	for _, sub := range []string{"uploads", "artefacts", "tmp"} {
		if left, err := os.ReadDir(d.dir + "/modules/" + sub); err != nil || len(left) != 0 {
			t.Errorf("modules/%s holds %v, %v", sub, left, err)
		}
	}
	d.push(good)
	if v := d.finished(d.start("fixture", "")); v.State != host.StateSucceeded {
		t.Errorf("a good module afterwards %s: %s", v.State, v.Failure)
	}
}

// tableGrow grows the table by n null references.
func tableGrow(n int32) []byte {
	return wt.Cat([]byte{0xd0, 0x70}, wt.I32Const(n), []byte{0xfc, 15, 0})
}

// asks returns a guest that sends one request and writes its answer as the result.
func asks(name, request string) []byte {
	b, im := imports()
	b.Data(0, []byte(request))
	return finish(b, name, `"kv.get"`, "", wt.I32Const(0), wt.I32Const(int32(len(request))), wt.I32Const(32768), wt.I32Const(16384), wt.Call(im.Call),
		wt.Wrap, wt.LocalSet(0), wt.I32Const(1), wt.I32Const(32768), wt.LocalGet(0), wt.Call(im.Write), wt.Drop, wt.I32Const(0))
}

func TestLinuxHostileGuests(t *testing.T) {
	d := digest(t)
	unharmed := d.beside()

	faults := func(name string, module []byte, says ...string) {
		t.Run(name, func(t *testing.T) {
			d.push(module)
			v := d.finished(d.start(name, ""))
			if v.State != host.StateFailed {
				t.Fatalf("the run %s: %s", v.State, v.Result)
			}
			for _, s := range says {
				if !strings.Contains(v.Failure, s) {
					t.Errorf("failure %q does not tell of %q", v.Failure, s)
				}
			}
			if v.ReceiptID == "" || !strings.Contains(v.Receipt, "failed: nothing outside the run") {
				t.Errorf("receipt %s %s", v.ReceiptID, v.Receipt)
			}
		})
	}
	guest := func(name, limits string, code func(im wt.Imports) []byte) []byte {
		b, im := imports()
		b.Data(0, []byte(`{"op":"time.now","v":1}`))
		return finish(b, name, "", limits, code(im))
	}
	faults("loops", guest("loops", `"wall_ns":500000000`, func(wt.Imports) []byte { return wt.Cat(wt.Forever(), wt.I32Const(0)) }), "LIMIT: the run took longer than 500ms")
	faults("burns", guest("burns", `"cpu_ns":1000000000`, func(wt.Imports) []byte { return wt.Cat(wt.Forever(), wt.I32Const(0)) }), "LIMIT: the run's process reached a limit: the worker was killed by its CPU limit of 1s")
	faults("traps", guest("traps", "", func(wt.Imports) []byte { return wt.Unreachable }), "TRAP: ")
	faults("points", guest("points", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.I32Const(65530), wt.I32Const(100), wt.I32Const(0), wt.I32Const(0), wt.Call(im.Call), wt.Wrap)
	}), "MEMORY: the guest named 100 bytes at 65530")
	faults("negative", guest("negative", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.I32Const(-1), wt.I32Const(23), wt.I32Const(0), wt.I32Const(0), wt.Call(im.Call), wt.Wrap)
	}), "MEMORY: ")
	faults("giant", guest("giant", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.I32Const(0), wt.I32Const(0x7fffffff), wt.I32Const(0), wt.I32Const(0), wt.Call(im.Call), wt.Wrap)
	}), "MEMORY: the guest named 2147483647 bytes")
	faults("handles", guest("handles", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.I32Const(77), wt.I32Const(0), wt.I32Const(8), wt.Call(im.Read), wt.Wrap)
	}), "MEMORY: the guest read from handle 77")
	faults("closes", guest("closes", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.I32Const(1), wt.Call(im.Close))
	}), "MEMORY: the guest closed handle 1")
	faults("result", guest("result", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.Repeat(17, wt.I32Const(1), wt.I32Const(0), wt.I32Const(65536), wt.Call(im.Write), wt.Drop), wt.I32Const(0))
	}), "LIMIT: the result has more than 1048576 bytes")
	faults("parks", guest("parks", "", func(im wt.Imports) []byte {
		return wt.Cat(wt.Loop, wt.I32Const(0), wt.I32Const(23), wt.I32Const(0), wt.I32Const(0), wt.Call(im.Call), wt.Drop, wt.Br(0), wt.End, wt.I32Const(0))
	}), "LIMIT: 64 replies are parked")
	faults("calls", guest("calls", `"calls":20`, func(im wt.Imports) []byte {
		return wt.Cat(wt.Loop, wt.I32Const(0), wt.I32Const(23), wt.I32Const(1024), wt.I32Const(1024), wt.Call(im.Call), wt.Drop, wt.Br(0), wt.End, wt.I32Const(0))
	}), "LIMIT: the run made its 20 host calls")
	faults("grows", guest("grows", `"memory_pages":4`, func(wt.Imports) []byte {
		return wt.Cat(wt.I32Const(100), wt.MemoryGrow, wt.I32Const(-1), []byte{0x47}, wt.Drop, wt.I32Const(65536*4), []byte{0x28, 2, 0})
	}), "TRAP: ")
	faults("status", guest("status", "", func(wt.Imports) []byte { return wt.I32Const(7) }), "the guest ended with status 7")

	b, _ := imports()
	exit := b.Import("wasi_snapshot_preview1", "proc_exit", "i", "")
	faults("exits", finish(b, "exits", "", "", wt.I32Const(3), wt.Call(exit), wt.I32Const(0)), "EXIT: the guest exited with status 3")

	b, im := imports()
	init := b.Func("", "", 0, wt.I32Const(0), wt.I32Const(23), wt.I32Const(1024), wt.I32Const(1024), wt.Call(im.Call), wt.Drop)
	b.Export("_initialize", wt.KindFunc, init)
	faults("starts", finish(b, "starts", "", "", wt.I32Const(0)), "INIT: ") // admission does not run it: the run does

	b, _ = imports()
	b.Export("_initialize", wt.KindFunc, b.Func("", "", 0, wt.Forever()))
	faults("never-begins", finish(b, "never-begins", "", `"wall_ns":500000000`, wt.I32Const(0)), "LIMIT: the run took longer than 500ms")

	b, _ = imports()
	b.Table(1, 50_000)
	faults("tables", finish(b, "tables", "", "", // the last of 51 times does not fit, or it returns 0
		wt.Repeat(50, tableGrow(1000), wt.Drop), tableGrow(1000), wt.I32Const(-1), []byte{0x47, 0x04, 0x40}, wt.I32Const(0), []byte{0x0f}, wt.End, wt.Unreachable), "TRAP: ")
	b, _ = imports()
	b.Table(1, 50_000)
	faults("tables-on", finish(b, "tables-on", "", `"wall_ns":500000000`, wt.Loop, tableGrow(1000), wt.Drop, wt.Br(0), wt.End, wt.I32Const(0)), "LIMIT: the run took longer than 500ms")

	const itself = 4 // the first function after the four imports
	faults("recurses", guest("recurses", "", func(wt.Imports) []byte { return wt.Call(itself) }), "TRAP: ")
	faults("grows-on", guest("grows-on", `"wall_ns":500000000,"memory_pages":64`, func(wt.Imports) []byte {
		return wt.Cat(wt.Loop, wt.I32Const(1), wt.MemoryGrow, wt.Drop, wt.Br(0), wt.End, wt.I32Const(0))
	}), "LIMIT: the run took longer than 500ms")

	for name, c := range map[string]struct{ request, code string }{
		"unknown-op":    {`{"op":"root.shell","v":1}`, "UNSUPPORTED"},
		"other-version": {`{"op":"time.now","v":9}`, "UNSUPPORTED"},
		"no-json":       {`{"op":`, "INVALID"},
		"no-object":     {`[1,2]`, "INVALID"},
		"no-utf8":       {"{\"op\":\"\xff\",\"v\":1}", "INVALID"},
		"key-twice":     {`{"op":"time.now","op":"time.now","v":1}`, "INVALID"},
		"deep":          {strings.Repeat("[", 3000) + strings.Repeat("]", 3000), "INVALID"},
		"unlisted-op":   {`{"op":"kv.put","v":1,"args":{"key":"a","value":1}}`, "SCOPE"},
		"ungranted":     {`{"op":"send","v":1,"args":{"operation":"mail.send","args":{"to":["ann@localhost"],"subject":"x","text":"x"}}}`, "SCOPE"},
	} {
		t.Run(name, func(t *testing.T) {
			d.push(asks(name, c.request))
			v := d.finished(d.start(name, ""))
			if v.State != host.StateSucceeded || !strings.Contains(string(v.Result), `"code":"`+c.code+`"`) {
				t.Errorf("the run %s: %s %s, want %s", v.State, v.Failure, v.Result, c.code)
			}
			if len(v.Log) != 1 || v.Log[0].Outcome != c.code {
				t.Errorf("log %+v", v.Log)
			}
		})
	}

	t.Run("floods", func(t *testing.T) {
		b, _ := imports()
		fd := b.Import("wasi_snapshot_preview1", "fd_write", "iiii", "i")
		b.Data(0, []byte{16, 0, 0, 0, 0, 16, 0, 0}) // one vector: 4096 bytes at 16
		b.Data(16, []byte("\x1b[31mred\r\n"+strings.Repeat("x", 2000)+"\n"))
		d.push(finish(b, "floods", "", `"cpu_ns":20000000000`, wt.I32Const(20_000), wt.LocalSet(0), wt.Loop,
			wt.I32Const(1), wt.I32Const(0), wt.I32Const(1), wt.I32Const(8192), wt.Call(fd), wt.Drop,
			wt.LocalGet(0), wt.I32Const(-1), wt.Add, wt.LocalSet(0), wt.LocalGet(0), wt.BrIf(0), wt.End, wt.I32Const(0)))
		id := d.start("floods", "")
		v := d.finished(id)
		if v.State != host.StateSucceeded {
			t.Errorf("the run %s: %s", v.State, v.Failure)
		}
		logged := 0
		err := d.Watch(d.ctx(), id, 0, func(e host.Event) error {
			if e.Kind == host.EventLog {
				logged += len(e.Text)
				if !e.Guest || strings.ContainsAny(e.Text, "\x1b\r\n") {
					t.Errorf("an event of the guest carries control characters or no mark: %.40q", e.Text)
				}
			}
			return nil
		})
		if err != nil || logged == 0 || logged > abi.MaxLog+8<<10 {
			t.Errorf("%d bytes of log, %v", logged, err)
		}
	})

	unharmed()
}

// beside starts a well-behaved run that waits for its answer while others rage. What it
// returns checks afterwards that the daemon did not grow and that the run goes on.
func (d *daemon) beside() (unharmed func()) {
	d.t.Helper()
	id := d.start("digest", `{"folder":"docs"}`)
	question := d.asked(id)
	before := d.settle()
	return func() {
		d.t.Helper()
		if most := d.memory("VmHWM"); most-before > 64<<10 {
			d.t.Errorf("the daemon grew from %d to %d KiB", before, most)
		}
		if _, err := d.Decide(d.ctx(), question.ID, api.Decision{Decision: api.Approve, Digest: question.Digest}); err != nil {
			d.t.Fatal(err)
		}
		if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
			d.t.Errorf("the run beside them %s: %s", v.State, v.Failure)
		}
		d.verified()
	}
}
