package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/sandbox/canary"
	wt "github.com/getmonroe/monroe/sandbox/wasmtest"
)

// brokenWorker builds the worker with an engine that guests and modules have taken
// over: whoever says so makes native system calls in its process. The rest of the
// worker, its walls included, is the product's.
func brokenWorker(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	path, err := filepath.Abs("../../sandbox/wazero.go")
	if err != nil {
		t.Fatal(err)
	}
	text := string(read(t, path))
	for _, c := range []struct{ at, with string }{
		{"import (\n", "\t\"bytes\"\n\t\"os\"\n\t\"time\"\n\t\"github.com/getmonroe/monroe/sandbox/canary\"\n"},
		{"func (i *wazeroInstance) Call(name string) (out []uint64, err error) {\n", `
	if string(i.h.cfg.Input) == "\"stay\"" && name == "monroe_run" {
		time.Sleep(time.Hour)
	}
	if attempt, ok := strings.CutPrefix(string(i.h.cfg.Input), "\"escape "); ok && name == "monroe_run" {
		i.h.result = []byte("\"" + canary.Try(strings.TrimSuffix(attempt, "\"")) + "\"")
		return []uint64{0}, nil
	}
`},
		{"func (e *wazeroEngine) Compile(module []byte) (m Module, err error) {\n", `
	if _, attempt, ok := bytes.Cut(module, []byte("escape while it is loaded: ")); ok && os.Args[len(os.Args)-2] == "run" {
		attempt, _, _ = bytes.Cut(attempt, []byte("|"))
		return nil, fault(wire.FaultModule, "came to %s", canary.Try(string(attempt)))
	}
	if _, attempt, ok := bytes.Cut(module, []byte("escape while it is compiled: ")); ok {
		attempt, _, _ = bytes.Cut(attempt, []byte("|"))
		return nil, fault(wire.FaultModule, "came to %s", canary.Try(string(attempt)))
	}
`},
	} {
		if strings.Count(text, c.at) != 1 {
			t.Fatalf("sandbox/wazero.go has not exactly one %q", c.at)
		}
		text = strings.Replace(text, c.at, c.at+c.with, 1)
	}
	write(t, filepath.Join(dir, "broken.go"), text)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: filepath.Join(dir, "broken.go")}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "overlay.json"), string(overlay))
	worker := filepath.Join(dir, "monroe-worker")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", worker, "../monroe-worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return worker
}

// alarms are the leaves of that kind since a number of leaves.
func (d *daemon) alarms(from int64) (list []audit.Leaf, next int64) {
	d.t.Helper()
	v, err := d.Audit(d.ctx(), from, 1000)
	if err != nil {
		d.t.Fatal(err)
	}
	next = from
	for _, l := range v.Leaves {
		next = l.Index + 1
		var leaf audit.Leaf
		if err := json.Unmarshal(l.Body, &leaf); err != nil {
			d.t.Fatal(err)
		}
		if leaf.Kind == audit.KindAlarm {
			list = append(list, leaf)
		}
	}
	return list, next
}

// TestLinuxBrokenEngine assumes that the engine is broken: what a guest tries then
// reaches nothing, and the daemon names it within a second.
func TestLinuxBrokenEngine(t *testing.T) {
	d := newDaemon(t, "spare_workers: 0\n")
	d.args = append(d.args, "--worker", brokenWorker(t))
	d.up()
	d.push(with(func(*wt.Builder) {}))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stays := d.start("fixture", `"stay"`) // another run, whose process is there
	d.running(stays)
	var other int
	for until := time.Now().Add(limit); other == 0 && time.Now().Before(until); {
		for _, pid := range d.children() {
			other = pid
		}
	}
	socket, token, daemon, run := filepath.Join(d.dir, "api.sock"), filepath.Join(d.dir, "owner.token"), fmt.Sprint(d.cmd.Process.Pid), fmt.Sprint(other)
	var next int64
	_, next = d.alarms(0)
	for _, c := range []struct {
		attempt  canary.Attempt
		argument string
		reported string // the system call that the alarm names; empty: it comes to nothing by itself
		silent   string // what it comes to then
	}{
		{canary.TCP, l.Addr().String(), "socket", ""},
		{canary.UDP, l.Addr().String(), "socket", ""},
		{canary.MPTCP, l.Addr().String(), "socket", ""},
		{canary.RawIP, "", "socket", ""},
		{canary.Packet, "", "socket", ""},
		{canary.Netlink, "", "socket", ""},
		{canary.VSock, "", "socket", ""},
		{canary.Abstract, "monroe", "socket", ""},
		{canary.UnixPath, socket, "socket", ""},
		{canary.SocketPair, "", "socketpair", ""},
		{canary.Exec, "", "execve", ""},
		{canary.Process, "", "clone", ""},
		{canary.Ptrace, daemon, "ptrace", ""},
		{canary.Ptrace, run, "ptrace", ""},
		{canary.ReadMemory, daemon, "process_vm_readv", ""},
		{canary.ReadMemory, run, "process_vm_readv", ""},
		{canary.Signal, daemon, "kill", ""},
		{canary.Signal, run, "kill", ""},
		{canary.BPF, "", "bpf", ""},
		{canary.Namespaces, "", "unshare", ""},
		{canary.Mount, "/tmp", "mount", ""},
		{canary.SetUID, "", "setresuid", ""},
		{canary.WriteExec, "", "mmap", ""},
		{canary.MemoryFile, "", "memfd_create", ""},
		{canary.IOUring, "", "io_uring_setup", ""},
		{canary.ReadSystem, "", "openat", ""},
		{canary.ReadHost, token, "openat", ""},
		{canary.ReadHost, "../" + filepath.Base(token), "openat", ""},
		{canary.ReadHost, "/proc/" + run + "/mem", "openat", ""},
		{canary.ReadHost, "/proc/" + run + "/cwd/module.wasm", "openat", ""},
		{canary.ReadModule, "", "openat", ""},
		{canary.WriteTemp, "/tmp/monroe-must-not-exist", "openat", ""},
		{canary.Descriptors, "", "", "EBADF"},
	} {
		attempt := strings.TrimSpace(string(c.attempt) + " " + c.argument)
		// named holds the alarm, if there is to be one, against when it began.
		named := func(t *testing.T, want string, began time.Time, about func(audit.Leaf) bool) {
			t.Helper()
			var told []audit.Leaf
			told, next = d.alarms(next)
			if want == "" {
				if len(told) > 0 {
					t.Errorf("alarms %+v", told)
				}
				return
			}
			if len(told) != 1 || !about(told[0]) || !strings.Contains(told[0].Detail, want) {
				t.Fatalf("alarms %+v", told)
			}
			// A process's start included.
			if after := time.UnixMilli(told[0].TimeMS).Sub(began); after > time.Second {
				t.Errorf("it was named after %v", after)
			}
		}
		call := ""
		if c.reported != "" {
			call = c.reported + "("
		}
		t.Run(attempt, func(t *testing.T) {
			input, err := json.Marshal("escape " + attempt)
			if err != nil {
				t.Fatal(err)
			}
			id := d.start("fixture", string(input))
			v := d.finished(id)
			named(t, call, d.running(id), func(l audit.Leaf) bool { return l.Run == id })
			if call == "" {
				if v.State != host.StateSucceeded || string(v.Result) != `"`+c.silent+`"` {
					t.Errorf("the run %s: %s; the attempt came to %s", v.State, v.Failure, v.Result)
				}
			} else if v.State != host.StateFailed || !strings.Contains(v.Failure, "tried what it may not: "+call) || v.Result != nil {
				t.Errorf("the run %s: %s", v.State, v.Failure)
			}
		})
		t.Run("compile "+attempt, func(t *testing.T) {
			began := time.Now()
			_, err := d.PushSkill(d.ctx(), with(func(b *wt.Builder) { b.Custom("note", []byte("escape while it is compiled: "+attempt+"|")) }))
			named(t, call, began, func(l audit.Leaf) bool { return l.Module != "" && l.Run == "" })
			if c.reported == "" {
				if err == nil || !strings.Contains(err.Error(), "came to "+c.silent) {
					t.Errorf("%v", err)
				}
			} else if p := refused(t, err, 422, "MODULE_ESCAPE"); !strings.Contains(p.Detail, call) {
				t.Errorf("%s", p.Detail)
			}
		})
	}
	if v := d.run(stays); v.State != host.StateRunning {
		t.Errorf("the run beside them is %s", v.State)
	}
	if err := d.CancelRun(d.ctx(), stays); err != nil {
		t.Error(err)
	}
	if v := d.finished(d.start("fixture", "")); v.State != host.StateSucceeded {
		t.Errorf("an honest run afterwards %s: %s", v.State, v.Failure)
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now())
	if c, err := l.Accept(); err == nil {
		t.Errorf("somebody came: %v", c.RemoteAddr())
	}
}

// TestLinuxBrokenLoader: the engine breaks before the worker has said a word. The run ends
// there, without another try, and the daemon names the call.
func TestLinuxBrokenLoader(t *testing.T) {
	worker := brokenWorker(t)
	for _, c := range []struct {
		spares  int
		attempt string
		named   string
	}{
		{0, "exec", "execve("},
		{1, "exec", "execve("},
		{0, "read-system", "openat("},
		{0, "read-host ../other", "openat("},
		{0, "read-host /proc/self/cwd/module.wasm", "openat("},
		{1, "write-temp /tmp/monroe-must-not-exist", "openat("},
	} {
		t.Run(fmt.Sprintf("%s, %d spares", c.attempt, c.spares), func(t *testing.T) {
			d := newDaemon(t, fmt.Sprintf("spare_workers: %d\n", c.spares))
			d.args = append(d.args, "--worker", worker)
			d.up()
			d.push(with(func(b *wt.Builder) { b.Custom("note", []byte("escape while it is loaded: "+c.attempt+"|")) }))
			_, next := d.alarms(0)
			r := d.start("fixture", "")
			v := d.finished(r)
			if v.State != host.StateFailed || !strings.Contains(v.Failure, "tried what it may not: "+c.named) {
				t.Errorf("the run %s: %s", v.State, v.Failure)
			}
			told, _ := d.alarms(next)
			if len(told) != 1 || told[0].Run != r || !strings.HasPrefix(told[0].Detail, c.named) {
				t.Fatalf("alarms %+v", told)
			}
			if _, path, ok := strings.Cut(c.attempt, " "); ok && os.Getuid() == 0 && told[0].Detail != fmt.Sprintf("openat(%q)", path) {
				t.Errorf("it was named as %s", told[0].Detail)
			}
			if after := time.UnixMilli(told[0].TimeMS).Sub(d.running(r)); after > time.Second {
				t.Errorf("it was named after %v", after)
			}
		})
	}
}
