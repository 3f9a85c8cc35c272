package cgroup_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// TestMain is also the process that is put into groups.
func TestMain(m *testing.M) {
	switch os.Getenv("MONROE_TEST_GROUP") {
	case "cat":
		text, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			os.Exit(1)
		}
		fmt.Print(string(text))
		os.Exit(0)
	case "memory":
		var keep [][]byte
		for range 512 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		fmt.Print(len(keep))
		os.Exit(0)
	case "threads":
		for range 200 {
			go func() { runtime.LockOSThread(); _, _ = os.Stdin.Read(nil); select {} }()
			runtime.Gosched()
		}
		os.Exit(0)
	case "burn":
		for spent := time.Duration(0); spent < 200*time.Millisecond; {
			var u syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
				os.Exit(1)
			}
			spent = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		os.Exit(0)
	case "wait":
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	case "alone", "crowd", "container":
		if err := beside(os.Getenv("MONROE_TEST_GROUP")); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		os.Exit(0)
	case "leave":
		if _, err := cgroup.Open(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beside opens a tree, perhaps while another process is in this one's group or as the
// first of a container, and prints what it enforces and lacks.
func beside(what string) error {
	if what == "container" {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		before, _, found := strings.Cut(string(mounts), " - cgroup2 ")
		if err != nil || !found {
			return fmt.Errorf("no mount: %w", err)
		}
		at := strings.Fields(before[strings.LastIndexByte(before, '\n')+1:])[4]
		if err := errors.Join(unix.Unmount(at, unix.MNT_DETACH), unix.Mount("cgroup2", at, "cgroup2", 0, "")); err != nil { // whose root is this group
			return err
		}
	}
	if what == "crowd" {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{"MONROE_TEST_GROUP=wait"}
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		defer cmd.Wait()
		defer in.Close()
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	fmt.Print(tree.Enforces(), tree.Problems())
	return tree.Close()
}

func open(t *testing.T) *cgroup.Tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make control groups here")
	}
	tree, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// in runs this program in a group, as the spawner does.
func in(t *testing.T, g *cgroup.Group, what string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"MONROE_TEST_GROUP=" + what, "GOMAXPROCS=2"}
	if d := g.Dir(); d != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		if what == "container" {
			cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS
		}
	}
	var out strings.Builder
	cmd.Stdout = &out
	runtime.LockOSThread()
	leave, err := g.Enter()
	if err != nil {
		t.Fatal(err)
	}
	started := cmd.Start()
	err = leave()
	runtime.UnlockOSThread()
	if started != nil || err != nil {
		t.Fatal(started, err)
	}
	err = cmd.Wait()
	return out.String(), err
}

func group(t *testing.T, tree *cgroup.Tree, l cgroup.Limits) *cgroup.Group {
	t.Helper()
	g, err := tree.New("w-"+strconv.Itoa(len(t.Name())), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestRootMembership(t *testing.T) {
	tree := open(t)
	before, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	out, err := in(t, group(t, tree, cgroup.Limits{}), "cat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if parts[1] != "" && !slices.Contains(tree.Enforces(), parts[1]) || parts[1] == "" && tree.Unified() == "" {
			continue
		}
		if !strings.Contains(parts[2], "monroe-"+strconv.Itoa(os.Getpid())+"-") {
			t.Errorf("born in %q", line)
		}
	}
	after, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil || string(after) != string(before) {
		t.Errorf("the thread that forked is in %s, was in %s; %v", after, before, err)
	}
}

// TestRootEnforces meets each limit, beside a twin within it.
func TestRootEnforces(t *testing.T) {
	tree := open(t)
	if got := tree.Enforces(); !slices.Equal(got, []string{"memory", "pids", "cpu"}) {
		t.Fatalf("it enforces %v: %v", got, tree.Problems())
	}
	killed := func(err error) bool {
		var exit *exec.ExitError
		return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	}
	g := group(t, tree, cgroup.Limits{Memory: 64 << 20})
	if out, err := in(t, g, "memory"); !killed(err) || !g.OutOfMemory() {
		t.Errorf("512 MiB in a group of 64: %q, %v", out, err)
	}
	t.Run("memory twin", func(t *testing.T) {
		g := group(t, tree, cgroup.Limits{Memory: 2 << 30})
		if out, err := in(t, g, "memory"); err != nil || out != "512" || g.OutOfMemory() {
			t.Errorf("512 MiB in a group of 2 GiB: %q, %v", out, err)
		}
	})
	t.Run("pids", func(t *testing.T) {
		if _, err := in(t, group(t, tree, cgroup.Limits{PIDs: 32}), "threads"); err == nil {
			t.Error("200 threads in a group of 32")
		}
	})
	t.Run("pids, the twin", func(t *testing.T) {
		if out, err := in(t, group(t, tree, cgroup.Limits{PIDs: 1000}), "threads"); err != nil {
			t.Errorf("200 threads in a group of 1000: %q, %v", out, err)
		}
	})
}

// TestRootProcessor burns 200 ms of processor time: with a quarter of a processor that
// takes at least three times as long, whatever else the machine does. Its twin may use
// more than there is to use, and the kernel does not hold it up.
func TestRootProcessor(t *testing.T) {
	tree := open(t)
	g, began := group(t, tree, cgroup.Limits{CPU: 0.25}), time.Now()
	if _, err := in(t, g, "burn"); err != nil {
		t.Fatal(err)
	}
	if took, n := time.Since(began), throttled(t, g); took < 600*time.Millisecond || n == 0 {
		t.Errorf("it took %v, and was held up %d times", took, n)
	}
	t.Run("twin", func(t *testing.T) {
		g := group(t, tree, cgroup.Limits{CPU: 64})
		if _, err := in(t, g, "burn"); err != nil {
			t.Fatal(err)
		}
		if n := throttled(t, g); n != 0 {
			t.Errorf("it was held up %d times", n)
		}
	})
}

// throttled is how often the kernel held a group up.
func throttled(t *testing.T, g *cgroup.Group) (n int) {
	t.Helper()
	where, err := in(t, g, "cat")
	if err != nil {
		t.Fatal(err)
	}
	dir := g.Dir().Name()
	for line := range strings.Lines(where) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); slices.Contains(strings.Split(parts[1], ","), "cpu") {
			dir = filepath.Join("/sys/fs/cgroup/cpu", parts[2])
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "nr_throttled ")
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return n
}

// TestRootNameTaken: a group that cannot be made is an error, and whose name it is keeps
// what it has.
func TestRootNameTaken(t *testing.T) {
	tree := open(t)
	g := group(t, tree, cgroup.Limits{PIDs: 1000})
	if _, err := tree.New(filepath.Base(g.Dir().Name()), cgroup.Limits{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one of that name: %v", err)
	}
	if out, err := in(t, g, "threads"); err != nil {
		t.Errorf("the first one afterwards: %q, %v", out, err)
	}
}

// TestRootSweep leaves a place behind, as a crash does, and opens another.
func TestRootSweep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make control groups here")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"MONROE_TEST_GROUP=leave"}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	tree := open(t)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(tree.Unified()), fmt.Sprintf("monroe-%d-*", cmd.Process.Pid)))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRootHandsDown: a process that is alone in a group of version 2 hands its controllers
// down, also where it sees that group as the root of all, and one that is not is told what to do. Those of version 1 do not mind.
func TestRootHandsDown(t *testing.T) {
	tree := open(t)
	for _, what := range []string{"alone", "crowd", "container"} {
		g, err := tree.New(what, cgroup.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Join(g.Dir().Name(), "cgroup.controllers"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := in(t, g, what)
		all := strings.HasPrefix(out, "[memory pids cpu]")
		if refused := what == "crowd" && strings.Contains(string(have), "memory"); err != nil || all == refused || refused != strings.Contains(out, "systemd-run --scope") {
			t.Errorf("%s, where version 2 has %s: %s, %v", what, strings.TrimSpace(string(have)), out, err)
		}
		_ = os.Remove(filepath.Join(g.Dir().Name(), "host")) // its leaf, if it made one
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}
}

// TestRootHouse: what is made after House is made among the workers, where programs are
// attached, and as limited as before.
func TestRootHouse(t *testing.T) {
	tree := open(t)
	limits := tree.Enforces()
	daemon, workers, err := tree.House()
	if err != nil {
		t.Fatal(err)
	}
	g := group(t, tree, cgroup.Limits{PIDs: 64})
	if tree.Unified() != workers || filepath.Dir(g.Dir().Name()) != workers || filepath.Dir(daemon) != filepath.Dir(workers) {
		t.Errorf("groups are made in %s, not in %s", g.Dir().Name(), workers)
	}
	text, err := in(t, g, "cat")
	if err != nil || !strings.Contains(text, "/workers/") || !slices.Equal(limits, tree.Enforces()) {
		t.Errorf("%s, %v; limits %v, before %v", text, err, tree.Enforces(), limits)
	}
}
