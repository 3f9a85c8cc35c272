package spawn_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
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

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
	"github.com/getmonroe/monroe/sandbox/wasmtest"
)

const nobody = 65534

var workerPath, badPath string

func TestMain(m *testing.M) {
	if dir := os.Getenv("MONROE_TEST_DAEMON"); dir != "" {
		os.Exit(daemon(os.Getenv("MONROE_TEST_WORKER"), dir))
	}
	if pid := os.Getenv("MONROE_TEST_OUTSIDER"); pid != "" {
		os.Exit(outsider(pid))
	}
	os.Exit(spawntest.Main(m, map[*string]string{&workerPath: spawntest.Worker, &badPath: "./testdata/badworker"}))
}

// newSpawner returns a spawner whose end is checked: no process, no goroutine.
func newSpawner(t *testing.T, path string, insecure bool) *spawn.Spawner {
	t.Helper()
	before := runtime.NumGoroutine()
	s, err := spawn.New(path, insecure)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
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
	return s
}

// forkers runs an exercise over every way to fork.
func forkers(t *testing.T, exercise func(*testing.T, func(*testing.T, string, bool) *spawn.Spawner)) {
	t.Run("direct", func(t *testing.T) { exercise(t, newSpawner) })
	t.Run("by monroe up", func(t *testing.T) {
		exercise(t, func(t *testing.T, path string, insecure bool) *spawn.Spawner {
			s, _ := served(t, spawn.ServerConfig{Program: path, Insecure: insecure})
			return s
		})
	})
}

// compiled returns a directory with a module that run workers can load.
func compiled(t *testing.T, s *spawn.Spawner, module []byte) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := s.Compile(t.Context(), module, dir); err != nil {
		t.Fatal(err)
	}
	opened(t, dir)
	return dir
}

// opened lets workers of another user read a directory, as host/module does.
func opened(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chmod(path, 0o755)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, s *spawn.Spawner, dir string, cpu time.Duration) *spawn.Process {
	t.Helper()
	p, err := s.Spawn(t.Context(), spawn.ModeRun, dir, cpu)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestWorkerDigest(t *testing.T) {
	b, err := os.ReadFile(workerPath)
	if err != nil {
		t.Fatal(err)
	}
	if s := newSpawner(t, workerPath, false); s.Digest() != abi.Digest(sha256.Sum256(b)) {
		t.Error("the digest is not that of the program")
	}
	if _, err := spawn.New(workerPath+"-absent", false); err == nil {
		t.Error("a program that does not exist was accepted")
	}
}

func TestLinuxHealthyWorker(t *testing.T) { forkers(t, exerciseHealthyWorker) }

func exerciseHealthyWorker(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, workerPath, false)
	const request = `{"op":"host.describe","v":1}`
	p := start(t, s, compiled(t, s, wasmtest.Asks(request, 100)), time.Minute)
	if os.Getuid() == 0 { // an undumpable process is root's to look at
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID()))
		if err != nil || len(env) > 0 {
			t.Errorf("environment %q, error %v", env, err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1") || !strings.Contains(string(status), "Seccomp:\t2") {
			t.Errorf("status %s, error %v", status, err)
		}
	}
	out, err := spawntest.Play(p, spawntest.Script{})
	if err != nil || out.Fault != nil || string(out.Result) != request || len(out.Calls) != 1 {
		t.Errorf("outcome %+v, error %v", out, err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the worker ended with %v; it printed %s", err, p.Stderr())
	}
	if v := p.Violations(); len(v) > 0 {
		t.Errorf("reported: %v", v)
	}
}

// TestLinuxReplay answers the first calls from the past. The worker reports their
// fingerprints and makes the rest live; together they are more than a socket
// buffers.
func TestLinuxReplay(t *testing.T) { forkers(t, exerciseReplay) }

func exerciseReplay(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	b, im := wasmtest.Guest()
	const calls, recorded = 4000, 3000
	b.Data(0, []byte(`{"op":"time.now","v":1}`))
	module := wasmtest.Run(b,
		wasmtest.Repeat(calls, wasmtest.I32Const(0), wasmtest.I32Const(23), wasmtest.I32Const(4096), wasmtest.I32Const(4096), wasmtest.Call(im.Call), wasmtest.Drop),
		wasmtest.I32Const(1), wasmtest.I32Const(4096), wasmtest.I32Const(8), wasmtest.Call(im.Write), wasmtest.Drop, wasmtest.I32Const(0))
	s := newSpawner(t, workerPath, false)
	script := spawntest.Script{Past: make([]spawntest.Reply, recorded), Answer: func(seq uint32, _ []byte) spawntest.Reply {
		return spawntest.Reply{Body: []byte(fmt.Sprintf("%08d", seq)), At: int64(seq)}
	}}
	for i := range script.Past {
		script.Past[i] = spawntest.Reply{Body: make([]byte, 1000), At: int64(i)}
	}
	out, err := spawntest.Play(start(t, s, compiled(t, s, module), 0), script)
	if err != nil || out.Fault != nil {
		t.Fatalf("outcome %+v, error %v", out, err)
	}
	if len(out.Seen) != recorded || len(out.Calls) != calls-recorded || string(out.Result) != "00004000" {
		t.Errorf("%d seen, %d live, result %q", len(out.Seen), len(out.Calls), out.Result)
	}
	if want := abi.Fingerprint([]byte(`{"v":1,"op":"time.now"}`)); out.Seen[0] != want || out.Seen[recorded-1] != want {
		t.Error("a fingerprint is not that of the request")
	}
}

// TestCompileRefuses also shows that admission runs in the worker, and what the
// engine refuses although the parser admits it.
func TestCompileRefuses(t *testing.T) { forkers(t, exerciseCompileRefuses) }

func exerciseCompileRefuses(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, workerPath, false)
	b, _ := wasmtest.Guest()
	untyped := wasmtest.Run(b, wasmtest.Drop, wasmtest.I32Const(0))
	for _, c := range []struct {
		name   string
		module []byte
		want   wire.FaultCode
	}{
		{"empty", nil, wire.FaultModule},
		{"component", append(wasmtest.Header(0x0001000d), 0), wire.FaultModule},
		{"code that does not type-check", untyped, wire.FaultModule},
		{"too many bytes", make([]byte, abi.MaxModule+1), wire.FaultTooLarge},
	} {
		dir := t.TempDir()
		_, err := s.Compile(t.Context(), c.module, dir)
		var f *spawn.FaultError
		if !errors.As(err, &f) || f.Code != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
		if stored, err := os.ReadFile(filepath.Join(dir, "module.wasm")); len(stored) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the module was stored", c.name)
		}
	}
}

// TestLinuxHostileGuests are those that do not end by themselves: the kernel or the
// host ends them, and the daemon goes on.
func TestLinuxHostileGuests(t *testing.T) { forkers(t, exerciseHostileGuests) }

func exerciseHostileGuests(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, workerPath, false)
	looping := func() []byte {
		b, _ := wasmtest.Guest()
		return wasmtest.Run(b, wasmtest.Forever(), wasmtest.I32Const(0))
	}
	starting := func() []byte {
		b, _ := wasmtest.Guest()
		b.Start(b.Func("", "", 0, wasmtest.Forever()))
		return wasmtest.Run(b, wasmtest.I32Const(0))
	}
	t.Run("infinite loop, CPU limit", func(t *testing.T) {
		p := start(t, s, compiled(t, s, looping()), time.Second)
		out, err := spawntest.Play(p, spawntest.Script{})
		// Play kills what fails, so the reason is the kernel's only if it was first.
		if err == nil || out.Fault != nil {
			t.Errorf("outcome %+v", out)
		}
		if err := p.Wait(); !errors.Is(err, spawn.ErrCPULimit) || p.CPUTime() > 3*time.Second {
			t.Errorf("it ended with %v after %v", err, p.CPUTime())
		}
	})
	t.Run("looping start function, CPU limit", func(t *testing.T) {
		p := start(t, s, compiled(t, s, starting()), time.Second)
		if _, err := spawntest.Play(p, spawntest.Script{}); err == nil {
			t.Error("it returned")
		}
		if err := p.Wait(); !errors.Is(err, spawn.ErrCPULimit) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("infinite loop, killed", func(t *testing.T) {
		p := start(t, s, compiled(t, s, looping()), 0)
		done := make(chan error, 1)
		go func() {
			_, err := spawntest.Play(p, spawntest.Script{})
			done <- err
		}()
		p.Kill()
		if err := <-done; err == nil {
			t.Error("it returned")
		}
		if err := p.Wait(); !errors.Is(err, spawn.ErrKilled) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("unbounded recursion", func(t *testing.T) {
		b, _ := wasmtest.Guest()
		f := b.Func("", "i", 0, wasmtest.Call(4), wasmtest.I32Const(1), wasmtest.Add)
		out, err := spawntest.Play(start(t, s, compiled(t, s, wasmtest.Run(b, wasmtest.Call(f))), time.Minute), spawntest.Script{})
		if err != nil || out.Fault == nil || out.Fault.Code != wire.FaultTrap {
			t.Errorf("outcome %+v, error %v", out, err)
		}
	})
	t.Run("host answers another call", func(t *testing.T) {
		p := start(t, s, compiled(t, s, wasmtest.Asks("x", 8)), 0)
		if err := errors.Join(
			wire.WriteFrame(p.Conn, wire.KindStart, wire.EncodeJSON(wire.Start{Seed: make([]byte, 32)})),
			wire.WriteFrame(p.Conn, wire.KindInput),
			wire.WriteFrame(p.Conn, wire.KindReply, wire.AppendReply(nil, 7, 0))); err != nil {
			t.Fatal(err)
		}
		var exit *spawn.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || !strings.Contains(p.Stderr(), "reply to call 7") {
			t.Errorf("it ended with %v and printed %s", err, p.Stderr())
		}
	})
}

// named is a directory that tells the bad worker what to do.
func named(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRootWalls looks at a worker from outside.
func TestRootWalls(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change the user and make control groups here")
	}
	s := newSpawner(t, workerPath, false)
	s.UID = nobody
	dir := compiled(t, s, wasmtest.Asks("x", 8))
	p := start(t, s, dir, 0)
	for _, ns := range []string{"user", "net", "pid", "ipc", "uts", "mnt"} {
		mine, err1 := os.Readlink("/proc/self/ns/" + ns)
		theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
		if mine == theirs || err1 != nil || err2 != nil {
			t.Errorf("%s namespace: %s and %s; %v, %v", ns, mine, theirs, err1, err2)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n", "CapEff:\t0000000000000000\n", "NSpid:\t" + strconv.Itoa(p.PID()) + "\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in %s", want, status)
		}
	}
	// Nobody is mapped in it, so that nobody in there can become anybody.
	for _, file := range []string{"uid_map", "gid_map"} {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID(), file)); err != nil || len(text) > 0 {
			t.Errorf("%s: %q, %v; %s", file, text, err, s.Walls().NamespacesWhy)
		}
	}
	if out, err := spawntest.Play(p, spawntest.Script{}); err != nil || out.Fault != nil {
		t.Errorf("outcome %+v, error %v", out, err)
	}
}

// TestRootOutsider: whoever runs as the workers' user outside of their namespaces, where
// that user owns those of most workers, can neither look into a worker nor join it.
func TestRootOutsider(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change the user")
	}
	forkers(t, func(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
		s := newSpawner(t, workerPath, false)
		s.UID = nobody
		p := start(t, s, compiled(t, s, wasmtest.Asks("x", 8)), 0)
		c, err := s.Spawn(t.Context(), spawn.ModeCompile, t.TempDir(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, x := range []struct {
			name string
			pid  int
			uid  uint32
			want string
		}{
			{"a run worker", p.PID(), nobody, "ptrace EPERM, mem EACCES, ns/user EACCES, ns/net EACCES"},
			{"a compile worker", c.PID(), nobody, "ptrace EPERM, mem EACCES, ns/user EACCES, ns/net EACCES"},
			{"as root", p.PID(), 0, "ptrace ok, mem ok, ns/user ok, ns/net ok"},
		} {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), fmt.Sprintf("MONROE_TEST_OUTSIDER=%d", x.pid))
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: x.uid, Gid: x.uid}}
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != x.want {
				t.Errorf("%s: %q, want %q; %v", x.name, out, x.want, err)
			}
		}
	})
}

// outsider tries to look into a process, and into its namespaces.
func outsider(pid string) int {
	var said []string
	say := func(what string, err error) {
		var e syscall.Errno
		name := "ok"
		if errors.As(err, &e) {
			name = unix.ErrnoName(e)
		}
		said = append(said, what+" "+name)
	}
	n, err := strconv.Atoi(pid)
	if err != nil {
		return 1
	}
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(n), 0, 0, 0, 0)
	if e != 0 {
		err = e
	}
	say("ptrace", err)
	for _, file := range []string{"mem", "ns/user", "ns/net"} {
		f, err := os.Open(filepath.Join("/proc", pid, file))
		say(file, err)
		_ = f.Close()
	}
	fmt.Print(strings.Join(said, ", "))
	return 0
}

func TestBadWorkers(t *testing.T) {
	for _, c := range []struct{ mode, want string }{
		{"silent", "no hand-over"},
		{"exits", `out of order \x1b[31m`},
		{"garbage", "it sent 0x67"},
		{"hands over a file", "the descriptor is \"/dev/null\""},
		{"hands over two files", "no hand-over"},
		{"hands over nothing", "it sent 0x0"},
		{"claims a listener", "it sent 0x1 with 0 descriptors"},
		{"insecure silent", "no Ready frame"},
		{"insecure giant", "too large"},
		{"insecure other kind", "unexpected frame"},
		{"insecure other protocol", "protocol 99"},
		{"insecure nonsense", "cannot be read"},
		{"insecure fault", "INTERNAL: no module"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			s := newSpawner(t, badPath, strings.HasPrefix(c.mode, "insecure"))
			s.ReadyWithin = time.Minute // for one that starts and says something
			if strings.HasSuffix(c.mode, "silent") {
				s.ReadyWithin = 500 * time.Millisecond
			}
			p, err := s.Spawn(t.Context(), spawn.ModeRun, named(t, c.mode), 0)
			if p != nil || !errors.Is(err, spawn.ErrNotReady) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("floods its standard error", func(t *testing.T) {
		s := newSpawner(t, badPath, true)
		p, err := s.Spawn(t.Context(), spawn.ModeRun, named(t, "insecure floods"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(p.Stderr()); n < 1000 || n > 2*spawn.MaxStderr {
			t.Errorf("%d bytes kept", n)
		}
	})
	t.Run("context ends", func(t *testing.T) {
		s := newSpawner(t, badPath, false)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Spawn(ctx, spawn.ModeRun, named(t, "silent"), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("missing module", func(t *testing.T) {
		s := newSpawner(t, workerPath, false)
		_, err := s.Spawn(t.Context(), spawn.ModeRun, t.TempDir(), 0)
		var f *spawn.FaultError
		if !errors.As(err, &f) || f.Code != wire.FaultInternal {
			t.Errorf("got %v", err)
		}
	})
}

func TestCloseEndsWorkers(t *testing.T) { forkers(t, exerciseCloseEndsWorkers) }

func exerciseCloseEndsWorkers(t *testing.T, newSpawner func(*testing.T, string, bool) *spawn.Spawner) {
	s := newSpawner(t, workerPath, false)
	dir := compiled(t, s, wasmtest.Asks("x", 8))
	p, q := start(t, s, dir, 0), start(t, s, dir, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*spawn.Process{p, q} {
		if err := x.Wait(); !errors.Is(err, spawn.ErrKilled) {
			t.Errorf("it ended with %v", err)
		}
	}
	if _, err := s.Spawn(t.Context(), spawn.ModeRun, dir, 0); !errors.Is(err, spawn.ErrClosed) {
		t.Errorf("a closed spawner: %v", err)
	}
}

// TestLinuxDaemonDies kills a process that has a worker, and the worker goes too.
func TestLinuxDaemonDies(t *testing.T) {
	dir := compiled(t, newSpawner(t, workerPath, false), wasmtest.Asks("x", 8))
	if err := spawntest.DiesWithParent(t.Context(), nil, "MONROE_TEST_DAEMON="+dir, "MONROE_TEST_WORKER="+workerPath); err != nil {
		t.Error(err)
	}
}

// daemon has a worker, says which, and waits to be killed.
func daemon(path, dir string) int {
	s, err := spawn.New(path, false)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := s.Spawn(context.Background(), spawn.ModeRun, dir, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.PID())
	<-p.Done()
	return 1
}
