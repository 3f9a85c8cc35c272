package spawn_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

// channel stands up a server for this process as the daemon, and returns the daemon's
// end of its channel.
func channel(t *testing.T, c spawn.ServerConfig) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can fork workers of another user")
	}
	before := runtime.NumGoroutine()
	c.WorkerUID = nobody
	tree, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	c.Groups = tree
	s, err := spawn.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), tree.Close()); err != nil {
			t.Error(err)
		}
		until := time.Now().Add(time.Minute)
		for runtime.NumGoroutine() > before && time.Now().Before(until) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			buf := make([]byte, 64<<10)
			t.Errorf("%d goroutines, %d before:\n%s", n, before, buf[:runtime.Stack(buf, true)])
		}
	})
	cmd := &exec.Cmd{}
	if err := s.Hand(cmd); err != nil {
		t.Fatal(err)
	}
	if len(cmd.ExtraFiles) != 1 || len(cmd.Env) != 1 || cmd.Env[0] != "MONROE_SPAWNER=3" {
		t.Fatalf("%v, %q", cmd.ExtraFiles, cmd.Env)
	}
	return cmd.ExtraFiles[0]
}

// served is a Spawner whose processes a server forks, and its channel's end.
func served(t *testing.T, c spawn.ServerConfig) (*spawn.Spawner, *spawn.Remote) {
	t.Helper()
	r, err := spawn.Attach(channel(t, c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	s, err := r.New(c.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, r
}

// TestRootServedWorker looks at a worker of monroe up from outside, and at what its
// daemon is told.
func TestRootServedWorker(t *testing.T) {
	s, r := served(t, spawn.ServerConfig{Program: workerPath})
	s.UID = 12345 // of no effect
	if w := s.Walls(); w.UID != nobody || r.UID() != nobody || !w.Namespaces || len(w.Groups) != 3 {
		t.Errorf("%+v", w)
	}
	p := start(t, s, compiled(t, s, wasmtest.Asks("x", 8)), 0)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in %s", want, status)
		}
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if want := fmt.Sprintf("/monroe-%d-", os.Getpid()); err != nil || !strings.Contains(string(groups), want) {
		t.Errorf("no %s in %s, %v", want, groups, err)
	}
}

// TestRootGroups: groups are made ahead, and yet each serves one worker, has the limits
// of its mode, and is gone at the end.
func TestRootGroups(t *testing.T) {
	forkers(t, func(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
		if os.Getuid() != 0 {
			t.Skip("only root can make control groups here")
		}
		s := newSpawner(t, workerPath, false)
		run := compiled(t, s, wasmtest.Asks("x", 8))
		homes := map[string]bool{}
		for i, mode := range []spawn.Mode{spawn.ModeRun, spawn.ModeCompile, spawn.ModeRun, spawn.ModeRun, spawn.ModeCompile, spawn.ModeRun} {
			dir, want := run, spawn.RunMemory
			if mode == spawn.ModeCompile {
				dir, want = t.TempDir(), spawn.CompileMemory
			}
			p, err := s.Spawn(t.Context(), mode, dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			home, limits := grouped(t, p.PID())
			if homes[home] {
				t.Errorf("the group of worker %d served before", i)
			}
			homes[home] = true
			if want := map[string]string{"memory": strconv.Itoa(want), "pids": strconv.Itoa(spawn.MaxThreads), "cpu": strconv.Itoa(spawn.MaxCPU * 100_000)}; !maps.Equal(limits, want) {
				t.Errorf("worker %d, %s, is limited to %v, not %v", i, mode, limits, want)
			}
			if i%2 == 1 {
				_ = p.Close() // it is killed; the others end with the spawner
			}
		}
		if err := s.Close(); err != nil { // also a place that is not empty; of monroe up, the end of its tree tells
			t.Error(err)
		}
	})
}

// grouped is where the memory of a process is limited, and what its control groups limit,
// in bytes, processes and microseconds of processor in 100 ms.
func grouped(t *testing.T, pid int) (dir string, limits map[string]string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	limits = map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, at := range append(strings.Split(parts[1], ","), "unified") { // no name and unified are version 2
			group := filepath.Join("/sys/fs/cgroup", at, parts[2])
			for file, limit := range map[string]string{"memory.limit_in_bytes": "memory", "memory.max": "memory", "pids.max": "pids", "cpu.cfs_quota_us": "cpu", "cpu.max": "cpu"} {
				b, err := os.ReadFile(filepath.Join(group, file))
				if err != nil || !strings.Contains(group, "/monroe-") {
					continue
				}
				limits[limit], _, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
				if limit == "memory" {
					dir = group
				}
			}
		}
	}
	return dir, limits
}

// TestRootMemoryLimit: whoever forks, the reason of the end is known.
func TestRootMemoryLimit(t *testing.T) {
	forkers(t, func(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
		if os.Getuid() != 0 {
			t.Skip("only root can make control groups here")
		}
		s := newSpawner(t, workerPath, true)
		s.Without, s.Memory = []string{"rlimits"}, 128<<20
		dir := t.TempDir()
		opened(t, dir)
		p, err := s.Spawn(t.Context(), spawn.ModeCanary, dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if answer, err := spawntest.Attempt(p, "memory 256"); err == nil {
			t.Errorf("it answered %s", answer)
		}
		if err := p.Wait(); !errors.Is(err, spawn.ErrMemoryLimit) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// TestRootLentDirectory: what a worker left is the daemon's afterwards, however it was
// left, and a second name of somebody else's file changes no hands.
func TestRootLentDirectory(t *testing.T) {
	s, _ := served(t, spawn.ServerConfig{Program: workerPath})
	dir := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := s.Spawn(t.Context(), spawn.ModeCompile, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	st := owned(t, dir)
	if st.Uid != nobody || st.Gid != 0 || st.Mode&0o7777 != 0o2770 {
		t.Errorf("lent as %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	// As the worker would, were it hostile; and as a hostile daemon would meanwhile.
	closed, file, link, foreign := filepath.Join(dir, "closed"), filepath.Join(dir, "closed", "x"), filepath.Join(dir, "linked"), filepath.Join(t.TempDir(), "foreign")
	if err := errors.Join(os.Mkdir(closed, 0o700), os.WriteFile(file, nil, 0), os.Chown(file, nobody, nobody), os.Chmod(closed, 0), os.Chown(closed, nobody, nobody),
		os.WriteFile(foreign, nil, 0o600), os.Chown(foreign, nobody, nobody), os.Link(foreign, link), os.Symlink(foreign, filepath.Join(dir, "symbolic")),
		os.WriteFile(filepath.Join(dir, "third"), nil, 0o600), os.Chown(filepath.Join(dir, "third"), 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
	for path, uid := range map[string]uint32{dir: 0, closed: 0, file: 0, link: nobody, foreign: nobody, filepath.Join(dir, "third"): 12345} {
		if st := owned(t, path); st.Uid != uid {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
	}
	if st := owned(t, dir); st.Mode&0o7777 != 0o700 {
		t.Errorf("mode %o", st.Mode)
	}
}

// TestRootLentTooMuch: a worker that leaves more than is looked at is an error.
func TestRootLentTooMuch(t *testing.T) {
	for name, fill := range map[string]func(string) error{
		"too many": func(dir string) (err error) {
			for i := range 1025 {
				err = errors.Join(err, os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700))
			}
			return err
		},
		"too deep": func(dir string) error {
			deep := filepath.Join(dir, strings.Repeat("d/", 9))
			err := os.MkdirAll(deep, 0o700)
			return errors.Join(err, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Chown(path, nobody, nobody))
			}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := served(t, spawn.ServerConfig{Program: workerPath})
			dir := t.TempDir()
			p, err := s.Spawn(t.Context(), spawn.ModeCompile, dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := fill(dir); err != nil {
				t.Fatal(err)
			}
			_ = p.Close()
			if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "taken back") {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func owned(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// hostile is a daemon in an attacker's hands: it says what it likes to a server.
type hostile struct {
	t       *testing.T
	channel *net.UnixConn
	dir     string // a good directory, and one to lend
	empty   string
	files   map[string]*os.File
}

func newHostile(t *testing.T, c spawn.ServerConfig) *hostile {
	t.Helper()
	f := channel(t, c)
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	t.Cleanup(func() { _ = conn.Close() })
	h := &hostile{t: t, channel: conn.(*net.UnixConn), dir: t.TempDir(), empty: t.TempDir(), files: map[string]*os.File{}}
	opened(t, h.dir)
	greeting := make([]byte, 16<<10)
	if _, err := h.channel.Read(greeting); err != nil {
		t.Fatal(err)
	}
	reader, pipe, err := os.Pipe()
	h.put("pipe", pipe, err)
	h.put("the daemon's end of pipe", reader, nil) // kept: a broken pipe would end whoever writes
	read, _, err := os.Pipe()
	h.put("reading end", read, err)
	dir, err := os.Open(h.dir)
	h.put("dir", dir, err)
	empty, err := os.Open(h.empty)
	h.put("empty", empty, err)
	foreign := t.TempDir()
	if err := os.Chown(foreign, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(foreign)
	h.put("foreign dir", other, err)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fullDir, err := os.Open(full)
	h.put("full dir", fullDir, err)
	path, err := unix.Open(h.dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	h.put("path of dir", os.NewFile(uintptr(path), ""), err)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	h.put("null", null, err)
	program, err := os.Open(workerPath)
	h.put("program", program, err)
	written, err := os.OpenFile(filepath.Join(t.TempDir(), "x"), os.O_CREATE|os.O_WRONLY, 0o755)
	h.put("written", written, err)
	named, err := unix.Open(workerPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	h.put("path of program", os.NewFile(uintptr(named), ""), err)
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inet, err := tcp.(*net.TCPListener).File()
	_ = tcp.Close()
	h.put("inet", inet, err)
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(listener, &unix.SockaddrUnix{Name: "@monroe-hostile-" + filepath.Base(h.empty) + filepath.Base(filepath.Dir(h.empty))}), unix.Listen(listener, 1))
	}
	h.put("listener", os.NewFile(uintptr(listener), ""), err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	h.put("stream", os.NewFile(uintptr(pair[0]), ""), err)
	h.put("the daemon's end of stream", os.NewFile(uintptr(pair[1]), ""), nil) // kept: without it workers end
	return h
}

func (h *hostile) put(name string, f *os.File, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(name, err)
	}
	h.files[name] = f
	h.t.Cleanup(func() { _ = f.Close() })
}

// send says something and returns what comes back on the control socket, "" for its end.
func (h *hostile) send(text string, names ...string) (answer string, control *net.UnixConn) {
	h.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	theirs, mine := os.NewFile(uintptr(pair[1]), ""), os.NewFile(uintptr(pair[0]), "")
	conn, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	control = conn.(*net.UnixConn)
	h.t.Cleanup(func() { _ = control.Close() })
	var fds []int
	for _, n := range names {
		if n == "control" {
			fds = append(fds, int(theirs.Fd()))
			continue
		}
		fds = append(fds, int(h.files[n].Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = h.channel.WriteMsgUnix([]byte(text), rights, nil)
	_ = theirs.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := control.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	buf := make([]byte, 16<<10)
	n, err := control.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		h.t.Fatalf("no answer to %.80q", text)
	}
	return string(buf[:max(n, 0)]), control
}

const (
	goodCanary  = `{"mode":"canary","cpu_ns":0,"memory":1048576000,"without":["seccomp"],"no_namespaces":true,"insecure":true}`
	goodCompile = `{"mode":"compile","cpu_ns":1000000000,"memory":1048576000}`
	goodPlugin  = `{"mode":"plugin","cpu_ns":0,"memory":1048576,"env":["PLUGIN_X=1"]}`
)

var (
	four  = []string{"control", "stream", "pipe", "dir"}
	lends = []string{"control", "stream", "pipe", "empty"}
	six   = []string{"control", "stream", "pipe", "empty", "pipe", "program"}
)

// attacks are what a hostile daemon asks for; want is part of the refusal, empty where
// nobody is there to be told.
var attacks = []struct {
	name, text string
	files      []string
	want       string
}{
	{"nothing", "", four, "cannot be read"},
	{"nonsense", "\x00\xff{", four, "cannot be read"},
	{"two requests", goodCanary + goodCanary, four, "after it"},
	{"a list", "[]", four, "cannot be read"},
	{"too long", `{"mode":"` + strings.Repeat("x", 17<<10) + `"}`, four, "too long"},
	{"no mode", `{"memory":1}`, four, "unknown"},
	{"unknown mode", `{"mode":"root","memory":1}`, four, "unknown"},
	{"an argument as mode", `{"mode":"--engine","memory":1}`, four, "unknown"},
	{"a user", `{"mode":"run","memory":1,"uid":0}`, four, "cannot be read"},
	{"a program", `{"mode":"run","memory":1,"program":"/bin/sh"}`, four, "cannot be read"},
	{"no memory limit", `{"mode":"run","memory":0}`, four, "memory is"},
	{"less than no memory", `{"mode":"run","memory":-1}`, four, "memory is"},
	{"too much memory", fmt.Sprintf(`{"mode":"run","memory":%d}`, spawn.RunMemory+1), four, "memory is"},
	{"a compilation's memory for a run", fmt.Sprintf(`{"mode":"run","memory":%d}`, int64(spawn.CompileMemory)), four, "memory is"},
	{"negative time", `{"mode":"run","memory":1,"cpu_ns":-1}`, four, "processor time"},
	{"endless compilation", `{"mode":"compile","memory":1}`, lends, "processor time"},
	{"long compilation", fmt.Sprintf(`{"mode":"compile","memory":1,"cpu_ns":%d}`, spawn.CompileCPU+1), lends, "processor time"},
	{"a run without seccomp", `{"mode":"run","memory":1,"without":["seccomp"]}`, four, "only a canary"},
	{"a run without namespaces", `{"mode":"run","memory":1,"no_namespaces":true}`, four, "only a canary"},
	{"a compilation without groups", `{"mode":"compile","memory":1,"cpu_ns":1,"no_groups":true}`, lends, "only a canary"},
	{"an insecure run", `{"mode":"run","memory":1,"insecure":true}`, four, "--insecure-dev"},
	{"an unknown wall", `{"mode":"canary","memory":1,"without":["x --insecure-dev"]}`, four, "unknown"},
	{"an environment", `{"mode":"run","memory":1,"env":["PLUGIN_X=1"]}`, four, "environment"},
	{"GODEBUG for a launcher", `{"mode":"plugin","memory":1,"env":["GODEBUG=x"]}`, six, "environment"},
	{"LD_PRELOAD for a launcher", `{"mode":"plugin","memory":1,"env":["LD_PRELOAD=/x"]}`, six, "environment"},
	{"a variable without a name", `{"mode":"plugin","memory":1,"env":["=x"]}`, six, "environment"},
	{"no descriptor", goodCanary, nil, ""},
	{"only control", goodCanary, []string{"control"}, "1 descriptors"},
	{"one too few", goodCanary, four[:3], "3 descriptors"},
	{"one too many", goodCanary, append(four[:4:4], "inet"), "5 descriptors"},
	{"a program for a canary", goodCanary, six, "6 descriptors"},
	{"a plugin without a program", goodPlugin, four, "4 descriptors"},
	{"more than there is room for", goodCanary, append(four[:4:4], "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir", "dir"), "too long"},
	{"a stream for control", goodCanary, []string{"stream", "stream", "pipe", "dir"}, ""},
	{"a file for control", goodCanary, []string{"null", "stream", "pipe", "dir"}, ""},
	{"an IP socket for the host", goodCanary, []string{"control", "inet", "pipe", "dir"}, "not a Unix socket"},
	{"a listener for the host", goodCanary, []string{"control", "listener", "pipe", "dir"}, "another kind"},
	{"a file for the host", goodCanary, []string{"control", "null", "pipe", "dir"}, "not a Unix socket"},
	{"a control for the host", goodCanary, []string{"control", "control", "pipe", "dir"}, "another kind"},
	{"a file to print to", goodCanary, []string{"control", "stream", "null", "dir"}, "not the end of a pipe"},
	{"a pipe's reading end to print to", goodCanary, []string{"control", "stream", "reading end", "dir"}, "not the end of a pipe"},
	{"a socket to print to", goodCanary, []string{"control", "stream", "stream", "dir"}, "not the end of a pipe"},
	{"a file for a directory", goodCanary, []string{"control", "stream", "pipe", "program"}, "a descriptor is not a directory"},
	{"a path for a directory", goodCanary, []string{"control", "stream", "pipe", "path of dir"}, "a descriptor is not a directory"},
	{"another user's directory", goodCanary, []string{"control", "stream", "pipe", "foreign dir"}, "not the daemon's"},
	{"another user's directory to fill", goodCompile, []string{"control", "stream", "pipe", "foreign dir"}, "not the daemon's"},
	{"a full directory to fill", goodCompile, []string{"control", "stream", "pipe", "full dir"}, "not empty"},
	{"a directory for a program", goodPlugin, []string{"control", "stream", "pipe", "empty", "pipe", "dir"}, "opened for reading"},
	{"a program that was opened for writing", goodPlugin, []string{"control", "stream", "pipe", "empty", "pipe", "written"}, "opened for reading"},
	{"a path of a program", goodPlugin, []string{"control", "stream", "pipe", "empty", "pipe", "path of program"}, "opened for reading"},
	{"a plugin that prints to a file", goodPlugin, []string{"control", "stream", "pipe", "empty", "null", "program"}, "not the end of a pipe"},
}

// TestRootHostileDaemon asks for what it must not have: no process and no descriptor
// comes of it, and the next good request is served.
func TestRootHostileDaemon(t *testing.T) {
	h := newHostile(t, spawn.ServerConfig{Program: workerPath})
	good := func() {
		t.Helper()
		answer, control := h.send(goodCanary, four...)
		if !strings.Contains(answer, `"pid":`) {
			t.Fatalf("a good request came to %s", answer)
		}
		_ = control.Close()
	}
	good()
	succeeded := 0
	for _, a := range attacks {
		answer, _ := h.send(a.text, a.files...)
		var o struct{ PID int }
		if strings.Contains(answer, "pid") || json.Unmarshal([]byte(answer), &o) == nil && o.PID != 0 {
			succeeded++
			t.Errorf("%s: it came to %s", a.name, answer)
		}
		if a.want == "" && answer != "" || !strings.Contains(answer, a.want) {
			t.Errorf("%s: %s, want %q", a.name, answer, a.want)
		}
	}
	if st := owned(t, h.empty); st.Uid != 0 {
		t.Error("a refused request gave a directory away")
	}
	good()
	if succeeded != 0 || len(attacks) < 40 {
		t.Errorf("%d of %d succeeded", succeeded, len(attacks))
	}
}

// TestRootHostileLeak: a thousand bad requests leave no descriptor open.
func TestRootHostileLeak(t *testing.T) {
	h := newHostile(t, spawn.ServerConfig{Program: workerPath})
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	round := func(n int) {
		for i := range n {
			a := attacks[i%len(attacks)]
			_, control := h.send(a.text, a.files...)
			_ = control.Close()
		}
	}
	round(len(attacks))
	before := count()
	round(1000)
	if after := count(); after > before+2 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestRootHostileControl: a control socket that is made to block, filled or shared holds
// nobody up.
func TestRootHostileControl(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }) // after the server's end
	h := newHostile(t, spawn.ServerConfig{Program: workerPath})
	for { // what the server would write
		if err := unix.Sendmsg(pair[1], make([]byte, 1<<10), nil, nil, unix.MSG_DONTWAIT); err != nil {
			break
		}
	}
	if _, _, err := h.channel.WriteMsgUnix([]byte(goodCanary), unix.UnixRights(pair[1], int(h.files["stream"].Fd()), int(h.files["pipe"].Fd()), int(h.files["dir"].Fd())), nil); err != nil {
		t.Fatal(err)
	}
	if answer, _ := h.send(goodCanary, four...); !strings.Contains(answer, `"pid":`) {
		t.Errorf("the next one: %s", answer)
	}
	if err := unix.SetNonblock(pair[1], false); err != nil {
		t.Fatal(err)
	}
	// The end of the test closes the server, which must not hang.
}

// TestRootServerUsers: workers are neither root nor the daemon.
func TestRootServerUsers(t *testing.T) {
	for _, c := range []spawn.ServerConfig{{Program: workerPath, DaemonUID: 1000}, {Program: workerPath, WorkerUID: 1000, DaemonUID: 1000}} {
		if _, err := spawn.NewServer(c); err == nil {
			t.Errorf("%+v", c)
		}
	}
}

// TestRootDaemonLetsGo: the end of the channel is the end of every worker.
func TestRootDaemonLetsGo(t *testing.T) {
	s, r := served(t, spawn.ServerConfig{Program: workerPath})
	p := start(t, s, compiled(t, s, wasmtest.Asks("x", 8)), 0)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := syscall.Kill(p.PID(), 0); err == nil {
		t.Errorf("worker %d lives", p.PID())
	}
	if err := p.Wait(); !strings.Contains(fmt.Sprint(err), "killed") {
		t.Errorf("it ended with %v", err)
	}
}

// BenchmarkRootStart is from the request to a worker that is ready, and its end.
func BenchmarkRootStart(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("only root can fork workers of another user")
	}
	for _, by := range []string{"direct", "monroe up"} {
		b.Run(by, func(b *testing.B) {
			s, err := spawn.New(workerPath, false)
			if by == "direct" {
				if err != nil {
					b.Fatal(err)
				}
				s.UID = nobody
			} else {
				tree, err1 := cgroup.Open()
				server, err2 := spawn.NewServer(spawn.ServerConfig{Program: workerPath, WorkerUID: nobody, Groups: tree})
				if err := errors.Join(err1, err2); err != nil {
					b.Fatal(err)
				}
				defer tree.Close()
				defer server.Close()
				cmd := &exec.Cmd{}
				if err := server.Hand(cmd); err != nil {
					b.Fatal(err)
				}
				r, err := spawn.Attach(cmd.ExtraFiles[0])
				if err != nil {
					b.Fatal(err)
				}
				defer r.Close()
				if s, err = r.New(false); err != nil {
					b.Fatal(err)
				}
			}
			defer s.Close()
			dir := b.TempDir()
			if _, err := s.Compile(b.Context(), wasmtest.Asks("x", 8), dir); err != nil {
				b.Fatal(err)
			}
			opened(b, dir)
			var ready time.Duration
			for b.Loop() {
				began := time.Now()
				p, err := s.Spawn(b.Context(), spawn.ModeRun, dir, 0)
				if err != nil {
					b.Fatal(err)
				}
				ready += time.Since(began)
				_ = p.Close()
			}
			b.ReportMetric(float64(ready.Microseconds())/float64(b.N), "ready-µs")
		})
	}
}
