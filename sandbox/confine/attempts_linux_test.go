package confine_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

const nobody = 65534

var attempts string // the helper program

func TestMain(m *testing.M) {
	if dir := os.Getenv("MONROE_TEST_DAEMON"); dir != "" {
		fmt.Fprintln(os.Stderr, daemon(os.Getenv("MONROE_TEST_PROGRAM"), dir))
		os.Exit(1)
	}
	os.Exit(spawntest.Main(m, map[*string]string{&attempts: "./testdata/attempts"}))
}

// start starts the helper as the given user, 0 being this process's own.
func start(t *testing.T, mode spawn.Mode, uid uint32) (*spawn.Process, string) {
	t.Helper()
	s, err := spawn.New(attempts, false)
	if err != nil {
		t.Fatal(err)
	}
	s.UID = uid
	dir := sharedDir(t, uid)
	if mode == spawn.ModeRun {
		if err := os.WriteFile(filepath.Join(dir, "own"), []byte(strings.Repeat("x", 1000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.Spawn(t.Context(), mode, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, dir
}

// sharedDir is a directory that the user may enter and write, below a test
// directory that only this process's user may.
func sharedDir(t *testing.T, uid uint32) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "monroe-confine-dir-") //nolint:usetesting // the parent of t.TempDir is closed to another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if uid != 0 {
		if err := os.Chown(dir, int(uid), int(uid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ask(t *testing.T, p *spawn.Process, what string) string {
	t.Helper()
	if err := p.Conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := wire.WriteFrame(p.Conn, wire.KindInput, []byte(what)); err != nil {
		t.Fatal(err)
	}
	_, answer, err := wire.ReadFrame(p.Conn, wire.KindLog)
	if err != nil {
		t.Fatalf("%s: %v; %v; it printed %s", what, err, p.Wait(), p.Stderr())
	}
	return string(answer)
}

// reported counts the reports of one call.
func reported(p *spawn.Process, name string) (n int) {
	for _, v := range p.Violations() {
		if v.Name == name {
			n++
		}
	}
	return n
}

func users(t *testing.T, f func(t *testing.T, uid uint32)) {
	t.Run("as this user", func(t *testing.T) { f(t, 0) })
	t.Run("as nobody", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can change the user")
		}
		f(t, nobody)
	})
}

func TestLinuxAttempts(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	users(t, func(t *testing.T, uid uint32) {
		p, dir := start(t, spawn.ModeRun, uid)
		if want := "attempts: killed"; p.Ready.Engine != want {
			t.Errorf("%s, want %s", p.Ready.Engine, want)
		}
		for _, c := range []struct{ attempt, want, report string }{
			{"tcp 127.0.0.1:80", "EPERM", "socket"},
			{"inet6", "EPERM", "socket"},
			{"packet", "EPERM", "socket"},
			{"netlink", "EPERM", "socket"},
			{"vsock", "EPERM", "socket"},
			{"abstract x", "EPERM", "socket"},
			{"socketpair", "EPERM", "socketpair"},
			{"connect", "EPERM", "connect"},
			{"exec", "EPERM", "execve"},
			{"process", "EPERM", "clone"},
			{"ptrace 1", "EPERM", "ptrace"},
			{"bpf", "EPERM", "bpf"},
			{"namespaces", "EPERM", "unshare"},
			{"memory-file", "EPERM", "memfd_create"},
			{"write-exec", "EPERM", "mmap"},
			{"mprotect-wx", "EPERM", "mprotect"},
			{"signal 1", "EPERM", "kill"},
			{"setrlimit", "EPERM", "prlimit64"},
			{"io_uring", "EPERM", "io_uring_setup"},
			{"clone3", "ENOSYS", ""},
			{"openat2", "ENOSYS", ""},
			{"sendmsg", "EPERM", ""},
			{"prctl", "EPERM", ""},
			{"seccomp", "EPERM", ""},
		} {
			before := reported(p, c.report)
			if got := ask(t, p, c.attempt); got != c.want {
				t.Errorf("%s: %s, want %s", c.attempt, got, c.want)
			}
			if c.report != "" && reported(p, c.report) == before {
				t.Errorf("%s was not reported as %s", c.attempt, c.report)
			}
		}
		if got := ask(t, p, "kill-parent"); got != "EPERM" {
			t.Errorf("kill-parent: %s", got)
		}
		atFiles(t, p, dir, "own read")
	})
}

// atFiles makes a worker try what lies elsewhere and what lies in its directory, by every
// call that takes a path: it is refused and named, and what the worker has in any case
// goes on.
func atFiles(t *testing.T, p *spawn.Process, dir, twin string) {
	t.Helper()
	outside := filepath.Join(filepath.Dir(dir), "other")
	for _, c := range []struct{ attempt, report, path string }{
		{"open", "openat", "/etc/passwd"},
		{"open", "openat", "/proc/self/environ"},
		{"open", "openat", "/proc/self/exe"},
		{"open", "openat", "/"},
		{"open", "openat", dir},
		{"open", "openat", outside},
		{"open", "openat", "own"},
		{"open", "openat", "../other"},
		{"open", "openat", "own/../../other"},
		{"open", "openat", "/proc/self/cwd/../other"},
		{"open", "openat", strings.Repeat("x", 4<<10)},
		{"create", "openat", filepath.Join(dir, "x")},
		{"create", "openat", "/tmp/monroe-must-not-exist"},
		{"stat", "newfstatat", "/etc/passwd"},
		{"readlink", "readlinkat", "/proc/self/exe"},
		{"access", "faccessat2", "/etc/passwd"},
		{"unlink", "unlinkat", "own"},
		{"rename", "renameat", "own"},
		{"mkdir", "mkdirat", "x"},
	} {
		tried := c.attempt + " " + c.path
		before := p.Violations()
		if got := ask(t, p, tried); got != "EPERM" {
			t.Errorf("%.80s: %s", tried, got)
		}
		told := p.Violations()[len(before):]
		if strayIsSilent && slices.Contains([]string{"openat", "newfstatat", "readlinkat", "faccessat2"}, c.report) {
			if len(told) > 0 {
				t.Errorf("%.80s was told of as %v", tried, told)
			}
			continue
		}
		report := c.report
		if report == "newfstatat" && runtime.GOARCH == "arm64" {
			report = "fstatat"
		}
		want := report + "("
		if os.Getuid() == 0 { // who may look into any process
			want = fmt.Sprintf("%s(%q)", report, c.path[:min(len(c.path), 256)])
		}
		if len(told) != 1 || !strings.HasPrefix(told[0].String(), want) {
			t.Errorf("%.80s was told of as %v", tried, told)
		}
		if got := ask(t, p, twin); got != "ALLOWED" {
			t.Errorf("beside it %s: %s", twin, got)
		}
	}
}

// TestLinuxStaleArgument chooses an argument of one conditional call so that it is the
// number of the next: a filter that compares it with what it loaded last lets it pass.
func TestLinuxStaleArgument(t *testing.T) {
	users(t, func(t *testing.T, uid uint32) {
		p, _ := start(t, spawn.ModeRun, uid)
		for attempt, report := range map[string]string{
			"clone-as-mmap": "clone", "mmap-as-sendmsg": "mmap",
		} {
			before := reported(p, report)
			if got := ask(t, p, attempt); got != "EPERM" {
				t.Errorf("%s: %s", attempt, got)
			}
			if reported(p, report) == before {
				t.Errorf("%s was not reported", attempt)
			}
		}
	})
}

// TestLinuxCompileMode writes its own files, and opens nothing.
func TestLinuxCompileMode(t *testing.T) {
	users(t, func(t *testing.T, uid uint32) {
		p, dir := start(t, spawn.ModeCompile, uid)
		for _, c := range []struct{ attempt, want string }{
			{"exec", "EPERM"},
			{"tcp 127.0.0.1:80", "EPERM"},
			{"sendmsg", "EPERM"},
			{"prctl", "EPERM"},
			{"seccomp", "EPERM"},
		} {
			if got := ask(t, p, c.attempt); got != c.want {
				t.Errorf("%s: %s, want %s", c.attempt, got, c.want)
			}
		}
		atFiles(t, p, dir, "own write")
	})
}

// TestLinuxSoak: a filter that is too strict shows only when the runtime needs one
// more thread.
func TestLinuxSoak(t *testing.T) {
	users(t, func(t *testing.T, uid uint32) {
		p, _ := start(t, spawn.ModeRun, uid)
		if got := ask(t, p, "soak"); got != "ALLOWED" {
			t.Errorf("soak: %s", got)
		}
		if v := p.Violations(); len(v) > 0 {
			t.Errorf("a healthy worker was reported: %v", v)
		}
	})
}

// TestLinuxFlood bounds what one worker can make the host remember.
func TestLinuxFlood(t *testing.T) {
	p, _ := start(t, spawn.ModeRun, 0)
	if got := ask(t, p, "flood"); got != "ALLOWED" {
		t.Errorf("flood: %s", got)
	}
	if n := len(p.Violations()); n != spawn.MaxViolations || p.Refused() != 500 {
		t.Errorf("%d kept, %d refused", n, p.Refused())
	}
}

// TestLinuxInheritedDescriptors starts the helper with one descriptor too many.
func TestLinuxInheritedDescriptors(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := spawn.New(attempts, false) // closes what this process inherited itself
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	inet, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer inet.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), ""), os.NewFile(uintptr(pair[1]), "")
	defer mine.Close()
	defer theirs.Close()
	for _, c := range []struct {
		name  string
		files []*os.File
		want  string
	}{
		{"a TCP socket instead of the host", []*os.File{inet}, "inherited socket of family 2"},
		{"a TCP socket besides the host", []*os.File{theirs, inet}, "inherited socket of family 2"},
		{"a file besides the host", []*os.File{theirs, null}, "descriptor 4 was inherited"},
		{"a file instead of the host", []*os.File{null}, "not a socket"},
		{"nothing", nil, "not a socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), attempts, "run", t.TempDir())
			cmd.Env = []string{}
			cmd.ExtraFiles = c.files
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("error %v, output %q, want %q", err, out, c.want)
			}
		})
	}
}
