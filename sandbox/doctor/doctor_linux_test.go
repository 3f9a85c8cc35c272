package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/canary"
	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/ebpf"
	"github.com/getmonroe/monroe/sandbox/spawn"
	"github.com/getmonroe/monroe/sandbox/spawn/spawntest"
)

const nobody = 65534

var program string

func TestMain(m *testing.M) {
	if how := os.Getenv("MONROE_TEST_DOCTOR"); how != "" {
		if err := elsewhere(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(spawntest.Main(m, map[*string]string{&program: spawntest.Worker}))
}

func root(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can stand up every wall and look at each alone")
	}
}

// TestRootBaseline: without walls every attempt succeeds, so none that is denied
// later was futile anyway.
func TestRootBaseline(t *testing.T) {
	root(t)
	a, err := aim(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	e, err := look(t.Context(), bare, Subject{Program: program}, a)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range e.results {
		// Descriptors are clean however a worker is started; confine's tests inherit one.
		if r.denied != (r.Attempt == canary.Descriptors) || len(e.results) != len(table) {
			t.Errorf("%s came to %s", r.Attempt, r.answer)
		}
	}
}

// TestRootFullStack is what a worker of a privileged daemon stands in.
func TestRootFullStack(t *testing.T) {
	root(t)
	r, err := Examine(t.Context(), Subject{Program: program, UID: nobody})
	if err != nil {
		t.Fatal(err)
	}
	if r.Level != "L0+L1+L2+L3" || !r.Full.Enforced || r.Full.Denied != len(table) || len(r.Findings) > 0 {
		t.Errorf("%+v", r)
	}
	if len(r.Layers) != 6 || r.Layers[4].Enforced || r.Layers[5].Enforced || r.Layers[0].Denied != len(hostile) {
		t.Errorf("%+v", r.Layers)
	}
	if r.Full.Reported < 20 {
		t.Errorf("%d of %d were reported", r.Full.Reported, r.Full.Denied)
	}
}

// TestRootMatrix pins the errors of this kernel: which wall refuses is part of it.
func TestRootMatrix(t *testing.T) {
	root(t)
	landlocked := func(from int, refusal string) string { // since that version of Landlock's interface
		if host(Subject{}, spawn.Walls{}).Landlock < from {
			return canary.Allowed
		}
		return refusal
	}
	a, err := aim(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for s, want := range map[stage]map[canary.Attempt]string{
		process:  {canary.TCP: "ALLOWED", canary.RawIP: "EPERM", canary.Packet: "EPERM", canary.ReadSystem: "ALLOWED", canary.ReadHost: "EACCES", canary.Signal: "EPERM", canary.Abstract: "ALLOWED"},
		kernel:   {canary.TCP: "EPERM", canary.MPTCP: "EPERM", canary.Packet: "EPERM", canary.IOUring: "EPERM", canary.ReadSystem: "EPERM"},
		files:    {canary.TCP: landlocked(4, "EACCES"), canary.UDP: "ALLOWED", canary.MPTCP: "ALLOWED", canary.Packet: "ALLOWED", canary.Abstract: landlocked(6, "EPERM"), canary.ReadSystem: "EACCES", canary.ReadModule: "ALLOWED", canary.WriteTemp: "EACCES", canary.Signal: landlocked(6, "EPERM")},
		isolated: {canary.TCP: "ENETUNREACH", canary.UDP: "ENETUNREACH", canary.MPTCP: "ENETUNREACH", canary.Abstract: "ECONNREFUSED", canary.Packet: "EPERM", canary.UnixPath: "ALLOWED", canary.Signal: "ESRCH", canary.ReadSystem: "ALLOWED"},
	} {
		e, err := look(t.Context(), s, Subject{Program: program, UID: nobody}, a)
		if err != nil {
			t.Error(s, err)
			continue
		}
		if f := judge(s, true, e.walls.Groups, nil, e.results); s != process && len(f) > 0 {
			t.Errorf("findings: %v", f)
		}
		for _, r := range e.results {
			if w := want[r.Attempt]; w != "" && w != r.answer {
				t.Errorf("%s: %s came to %s, not %s", s, r.Attempt, r.answer, w)
			}
		}
	}
}

// TestFindings: a wall with a hole is not reported as standing.
func TestFindings(t *testing.T) {
	var results []result
	for _, r := range table {
		results = append(results, result{row: r, answer: "EPERM", denied: true, reported: true})
	}
	groups := []string{"memory", "pids", "cpu"}
	if f := judge(everything, true, groups, nil, results); len(f) > 0 {
		t.Fatal(f)
	}
	for i := range results {
		holed := slices.Clone(results)
		holed[i].answer, holed[i].denied = canary.Allowed, false
		if f := judge(everything, true, groups, nil, holed); len(f) != 1 || !strings.Contains(f[0], string(holed[i].Attempt)+" came to ALLOWED") {
			t.Errorf("%s is open: %v", holed[i].Attempt, f)
		}
		silent := slices.Clone(results)
		silent[i].reported = false
		if f := judge(everything, true, groups, nil, silent); (len(f) == 1) != (silent[i].report != "") {
			t.Errorf("%s is silent: %v", silent[i].Attempt, f)
		}
	}
	// What should be open and is not is a finding too: the table would be wrong.
	if f := judge(isolated, true, groups, nil, results); len(f) == 0 {
		t.Error("namespaces alone deny everything, and nobody wonders")
	}
}

// elsewhere examines within a poorer machine, and prints what it found.
func elsewhere(how string) error {
	uid := uint32(nobody)
	switch how {
	case "like Fargate":
		// No further user namespaces, and control groups that cannot be written.
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			return err
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); strings.Contains(line, " - cgroup") {
				if err := unix.Mount("", f[4], "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, ""); err != nil {
					if err := unix.Mount("", f[4], "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
						return fmt.Errorf("%s: %w", f[4], err)
					}
				}
			}
		}
	case "nobody":
		uid = 0
	}
	b, err := ebpf.Inherited()
	if err != nil {
		return err
	}
	r, err := Examine(context.Background(), Subject{Program: os.Getenv("MONROE_TEST_WORKER"), UID: uid, Backstop: b, NoBackstop: "no such capability"})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func examineElsewhere(t *testing.T, how string, attr *syscall.SysProcAttr, hand ...func(*exec.Cmd) error) *Report {
	t.Helper()
	self, err := os.ReadFile(os.Args[0]) // which lies where only root comes
	test := program + ".test"
	if err = errors.Join(err, os.WriteFile(test, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), test)
	cmd.Env = []string{"MONROE_TEST_DOCTOR=" + how, "MONROE_TEST_WORKER=" + program}
	cmd.SysProcAttr, cmd.Dir = attr, "/"
	for _, f := range hand {
		if err := f(cmd); err != nil {
			t.Fatal(err)
		}
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// TestRootLikeFargate: no user namespaces, control groups read-only, and none of the
// capabilities that reach the machine.
func TestRootLikeFargate(t *testing.T) {
	root(t)
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	r := examineElsewhere(t, "like Fargate", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true,
	})
	if r.Level != "L0+L1+L2" || len(r.Findings) > 0 {
		t.Errorf("level %s, findings %v", r.Level, r.Findings)
	}
	if l := r.Layers[3]; l.Enforced || !strings.Contains(l.Why, "switched off") {
		t.Errorf("%+v", l)
	}
	for i, remains := range map[int]string{4: "what remains: L0+L1+L2", 5: "what remains: every connection of the daemon is made by one dialer"} {
		if l := r.Layers[i]; l.Enforced || !strings.HasPrefix(l.Why, "no such capability; ") || !strings.Contains(l.Why, remains) {
			t.Errorf("%+v", l)
		}
	}
	if len(r.Host.Groups) > 0 || !strings.Contains(strings.Join(r.Host.GroupsWhy, " "), "read-only") || !strings.Contains(r.Layers[1].Why, "watched") {
		t.Errorf("%+v", r)
	}
	want := []string{"threads"} // only a control group counts them
	if spawntest.Wasmtime {
		want = nil // a C library's stacks are 8 MiB each, and count as memory
	}
	if !slices.Equal(r.Full.Open, want) {
		t.Errorf("open with all that is left: %v", r.Full.Open)
	}
}

// TestRootUnprivileged is a daemon that is nobody.
func TestRootUnprivileged(t *testing.T) {
	root(t)
	r := examineElsewhere(t, "nobody", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}})
	if r.Level != "L0+L1+L2+L3" || len(r.Findings) > 0 || r.Host.WorkerUID != nobody || r.Host.UID != nobody || r.Host.Capabilities != "0000000000000000" {
		t.Errorf("%+v", r)
	}
}

// backstop examines within the two control groups of monroe up; either may be left
// without its programs.
func backstop(t *testing.T, fence bool, mode ebpf.Mode) *Report {
	t.Helper()
	root(t)
	tree, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	daemon, workers, err := tree.House()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(daemon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	w, err := ebpf.DenyAll(workers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if !fence {
		if err := w.Detach(); err != nil {
			t.Fatal(err)
		}
	}
	d, err := ebpf.RequireLeases(daemon, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return examineElsewhere(t, "backstop", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}, func(cmd *exec.Cmd) error {
		return ebpf.Hand(cmd, w, d, mode)
	})
}

// TestRootBackstop is the whole stack, as monroe up makes it.
func TestRootBackstop(t *testing.T) {
	r := backstop(t, true, ebpf.Enforce)
	if r.Level != "L0+L1+L2+L3+L4+L5" || len(r.Findings) > 0 || !r.Full.Enforced || r.Full.Denied != len(table) {
		t.Errorf("%+v", r)
	}
	l4, l5 := r.Layers[4], r.Layers[5]
	if l4.Denied != 5 || l4.Reported != 4 || l5.Denied != 4 || l5.Reported != 4 {
		t.Errorf("%+v\n%+v", l4, l5)
	}
	for _, open := range []canary.Attempt{canary.Packet, canary.Netlink, canary.VSock, canary.Abstract} {
		if !slices.Contains(l4.Open, string(open)) {
			t.Errorf("the table says that L4 alone does not stop %s, and it did", open)
		}
	}
}

// TestRootBackstopWithHoles: programs that are gone, or only watch, are no walls.
func TestRootBackstopWithHoles(t *testing.T) {
	r := backstop(t, false, ebpf.Audit)
	l4, l5 := r.Layers[4], r.Layers[5]
	if r.Level != "L0+L1+L2+L3" || l4.Enforced || !strings.Contains(l4.Why, "tcp came to ALLOWED") || l5.Enforced || !strings.Contains(l5.Why, "audit") || len(l5.Open) != 3 {
		t.Errorf("%s\n%+v\n%+v", r.Level, l4, l5)
	}
}
