package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// guarded lets monroe up start the daemon. More is for operator.yaml.
func guarded(t *testing.T, more string, args ...string) *daemon {
	t.Helper()
	return guardedAs(t, 0, more, args...)
}

// guardedAs is guarded with a home that belongs to a user.
func guardedAs(t *testing.T, uid int, more string, args ...string) *daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can attach programs to control groups and fork as another user here")
	}
	d := newDaemon(t, more)
	for _, dir := range []string{d.home, filepath.Dir(d.files)} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chown(path, uid, uid)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	d.by = append([]string{program("monroe"), "--home", d.home, "-w", "team", "up"}, args...)
	d.up()
	return d
}

// inner is the process id of the daemon that monroe up started.
func (d *daemon) inner() int {
	d.t.Helper()
	var text []byte
	var err error
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	for _, name := range list {
		var more []byte
		if more, err = os.ReadFile(name); err == nil {
			text = append(text, more...)
		}
	}
	for _, field := range strings.Fields(string(text)) {
		if name, err := os.ReadFile("/proc/" + field + "/comm"); err == nil && string(name) == "monroed\n" {
			pid, err := strconv.Atoi(field)
			if err != nil {
				d.t.Fatal(err)
			}
			return pid
		}
	}
	d.t.Fatalf("no daemon among the children %q: %v", text, err)
	return 0
}

// workers are the process ids of those that monroe up forked.
func (d *daemon) workers() (pids []int) {
	d.t.Helper()
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	for _, name := range list {
		text, _ := os.ReadFile(name) // a thread that is gone has none
		for _, field := range strings.Fields(string(text)) {
			if name, err := os.ReadFile("/proc/" + field + "/comm"); err == nil && string(name) != "monroed\n" && string(name) != "monroe\n" { // which it is until exec
				pid, err := strconv.Atoi(field)
				if err != nil {
					d.t.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// separate says that a worker is still there, after looking at what it has of its own.
func (d *daemon) separate(pid int) bool {
	d.t.Helper()
	var differ []string
	for _, ns := range []string{"user", "net", "pid", "ipc", "uts", "mnt"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			d.t.Fatal(err)
		}
		if theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); theirs == mine {
			differ = append(differ, ns)
		}
	}
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if ended(pid) || !strings.Contains(string(status), "Seccomp:\t2\n") { // the end, or the start
		return false
	}
	if len(differ) > 0 {
		d.t.Errorf("it has the namespaces %v of this process", differ)
	}
	if want := fmt.Sprintf("/monroe-%d-1/workers/w-", d.cmd.Process.Pid); !strings.Contains(string(groups), want) {
		d.t.Errorf("no %s in %s", want, groups)
	}
	for _, want := range append([]string{"Uid:\t54322\t54322\t54322\t54322\n", "Gid:\t54322\t54322\t54322\t54322\n"}, stripped...) {
		if !strings.Contains(string(status), want) {
			d.t.Errorf("no %q in %s", want, status)
		}
	}
	return true
}

// awaitWorkers are those that wait for the next run.
func (d *daemon) awaitWorkers() (pids []int) {
	d.t.Helper()
	d.eventually(func() bool { pids = d.workers(); return len(pids) > 0 })
	return pids
}

// stripped is a process without capabilities; in a user namespace of its own the bounding
// set is another matter.
var stripped = []string{"Groups:\t \n", "NoNewPrivs:\t1\n", "CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n"}

// withoutPrivilege looks at the daemon from outside.
func (d *daemon) withoutPrivilege(pid, uid int) {
	d.t.Helper()
	d.has(pid, append([]string{fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), "CapBnd:\t0000000000000000\n"}, stripped...)...)
}

// has holds a process's status against lines.
func (d *daemon) has(pid int, lines ...string) {
	d.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, want := range lines {
		if !strings.Contains(string(status), want) {
			d.t.Errorf("no %q in %s", want, status)
		}
	}
}

// ended says that a process is gone, or a zombie whose parent has not noticed.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}

// TestRootUp: monroe up makes every layer stand, and a daemon without the capabilities
// to take one away.
func TestRootUp(t *testing.T) {
	d := guarded(t, "")
	out, status := cli(t, "--home", d.home, "-w", "team", "--json", "doctor")
	var v api.DoctorView
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, out)
	}
	if v.Level != "L0+L1+L2+L3+L4+L5" || !v.Full.Enforced || v.Full.Denied != v.Full.Attempts || len(v.Findings) > 0 {
		t.Errorf("%s", out)
	}
	promised(t, out)
	if want := "monroe up (privileged), workers as uid 65534, daemon as uid 0 without capabilities"; v.Host.Spawner != want {
		t.Errorf("spawner: %s", v.Host.Spawner)
	}
	d.withoutPrivilege(d.inner(), 0)
	e, err := d.Egress(d.ctx())
	if err != nil || e.Mode != "enforce" || e.Workers.Denied == 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if list := alarming(e); len(list) > 0 {
		t.Errorf("the examination is taken for a violation: %+v", list)
	}
	// A daemon that ends is started again behind the same walls.
	pid := d.inner()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.eventually(func() bool { c, err := d.Egress(d.ctx()); return err == nil && c.Mode == "enforce" && d.inner() != pid })
	d.stop()
	if left, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/monroe-%d-*", d.cmd.Process.Pid)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// promised holds doctor's JSON against the names that scripts rely on, and not against the
// type that it is written from.
func promised(t *testing.T, out string) {
	t.Helper()
	var v struct {
		Level  *string                      `json:"level"`
		Layers []map[string]json.RawMessage `json:"layers"`
		Host   map[string]any               `json:"host"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Level == nil || len(v.Layers) != 6 {
		t.Fatalf("%v: %s", err, out)
	}
	for i, l := range v.Layers {
		if id := string(l["id"]); id != fmt.Sprintf(`"L%d"`, i) {
			t.Errorf("layer %d is %s", i, id)
		}
		for _, name := range []string{"name", "enforced", "attempts", "denied", "reported", "why"} {
			if l[name] == nil {
				t.Errorf("layer %d has no %s: %s", i, name, out)
			}
		}
	}
	store, _ := v.Host["store"].(string)
	took, _ := v.Host["commit_us"].(float64)
	if kernel, _ := v.Host["kernel"].(string); kernel == "" || !strings.HasPrefix(store, "SQLite") || took <= 0 {
		t.Errorf("host: %v", v.Host)
	}
}

// TestRootUpDies: a daemon does not outlive the one that guards it.
func TestRootUpDies(t *testing.T) {
	d := guarded(t, "")
	pid := d.inner()
	d.kill()
	d.eventually(func() bool { return ended(pid) })
}

// TestRootUpPrivileged: a daemon of a user without any privilege, workers of another,
// and everything works: an upload is compiled, runs load it, a plugin that must not be
// down scans, an approval sends.
func TestRootUpPrivileged(t *testing.T) {
	const user = 54321
	d := guardedAs(t, user, "plugins:\n"+cardsYAML(t), "--worker-uid", "54322")
	d.withoutPrivilege(d.inner(), user)
	d.push(guestModule(t, "digest"))
	d.apply(d.config(digestGrants...))
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	// One that waits for the next run; others come and go.
	d.eventually(func() bool { return slices.ContainsFunc(d.workers(), d.separate) })
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s, %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	// What workers made is the daemon's now.
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if i, err := e.Info(); err == nil && i.Sys().(*syscall.Stat_t).Uid != user {
			t.Errorf("%s is not the daemon's", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(d.dir, "modules", "tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	out, status := cli(t, "--home", d.home, "-w", "team", "doctor")
	if want := "spawner: monroe up (privileged), workers as uid 54322, daemon as uid 54321 without capabilities\n"; status != 0 || !strings.Contains(out, want) {
		t.Errorf("status %d: %s", status, out)
	}
	out, _ = cli(t, "--home", d.home, "-w", "team", "--json", "doctor")
	var v api.DoctorView
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Level != "L0+L1+L2+L3+L4+L5" || !v.Full.Enforced || v.Full.Denied != v.Full.Attempts || len(v.Findings) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	if t.Failed() {
		d.report()
	}
}

// TestRootUpLeftovers: what a killed spawner did not give back keeps no daemon from
// starting.
func TestRootUpLeftovers(t *testing.T) {
	d := guardedAs(t, 54321, "")
	d.push(guestModule(t, "digest"))
	d.kill()
	d.eventually(func() bool { return ended(d.cmd.Process.Pid) })
	left := filepath.Join(d.dir, "modules", "tmp", "compile-1")
	if err := errors.Join(os.MkdirAll(filepath.Join(left, "cache", "x"), 0o700), os.Chown(filepath.Join(left, "cache"), 65534, 65534), os.Chown(left, 65534, 54321), os.Chmod(left, 0o770|fs.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	d.up()
	d.push(guestModule(t, "digest"))
}

// TestRootUpWithoutPrograms: the daemon gives up its capabilities also where no kernel
// program stands, and --user and --worker-uid say whose they are.
func TestRootUpWithoutPrograms(t *testing.T) {
	d := guardedAs(t, 65534, "worker_uid: 1\n", "--egress", "off", "--user", "nobody", "--worker-uid", "54322")
	d.withoutPrivilege(d.inner(), 65534)
	out, status := cli(t, "--home", d.home, "-w", "team", "--json", "doctor")
	var v api.DoctorView
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, out)
	}
	if v.Level != "L0+L1+L2+L3" || !v.Full.Enforced || len(v.Findings) > 0 || v.Host.WorkerUID != 54322 || len(v.Host.Groups) != 3 || !strings.HasPrefix(v.Host.Spawner, "monroe up (privileged)") {
		t.Errorf("%s", out)
	}
}

// TestRootUpMinimumWalls: a layer that operator.yaml asks for and that does not stand is
// doctor's exit status, also where the programs stand and refuse nothing.
func TestRootUpMinimumWalls(t *testing.T) {
	const wanted = "minimum_walls: [L5]\n"
	for _, c := range []struct {
		name, mode, more string
		status           int
	}{
		{"not there", "off", wanted, 1},
		{"not there and not asked for", "off", "", 0},
		{"refuses nothing", "audit", wanted, 1},
		{"stands", "enforce", wanted, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := guarded(t, c.more, "--egress", c.mode)
			out, status := cli(t, "--home", d.home, "-w", "team", "doctor")
			if status != c.status || strings.Contains(out, "L5 does not stand, and operator.yaml asks for it") != (c.status != 0) {
				t.Errorf("status %d: %s", status, out)
			}
		})
	}
}

// TestRootUpChoosesUsers: a daemon that writes operator.yaml does not choose as whom
// workers run, and says that it was not asked.
func TestRootUpChoosesUsers(t *testing.T) {
	d := guardedAs(t, 54321, "worker_uid: 54399\n")
	out, _ := cli(t, "--home", d.home, "-w", "team", "--json", "doctor")
	var v api.DoctorView
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Host.WorkerUID != 65534 {
		t.Errorf("%v: %s", err, out)
	}
	if log := d.said.String(); !strings.Contains(log, "worker_uid of operator.yaml has no effect") || !strings.Contains(log, "used=65534") {
		t.Errorf("log: %s", log)
	}
}

// TestRootUpRefuses: workers are never root or the daemon.
func TestRootUpRefuses(t *testing.T) {
	for _, uid := range []int{54321, 65534} {
		d := newDaemon(t, "")
		if os.Getuid() != 0 {
			t.Skip("only root can fork as another user here")
		}
		if err := os.Chown(d.home, uid, uid); err != nil {
			t.Fatal(err)
		}
		args := []string{"--home", d.home, "-w", "team", "up"} // workers are 65534
		if uid == 54321 {
			args = append(args, "--worker-uid", "54321")
		}
		if out, status := cli(t, args...); status == 0 || !strings.Contains(out, "workers need a user of their own") {
			t.Errorf("status %d: %s", status, out)
		}
	}
}

// TestRootUpWorkersDie: no worker outlives the daemon, nor the one that forked it.
func TestRootUpWorkersDie(t *testing.T) {
	const user = 54321
	for _, who := range []string{"daemon", "monroe up"} {
		t.Run(who, func(t *testing.T) {
			d := guardedAs(t, user, "")
			d.push(guestModule(t, "digest"))
			d.apply(d.config(digestGrants...))
			d.asked(d.start("digest", `{"folder":"docs"}`))
			inner, workers := d.inner(), d.awaitWorkers()
			if who == "daemon" {
				if err := syscall.Kill(inner, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				d.kill()
			}
			for _, pid := range append(workers, inner) {
				d.eventually(func() bool { return ended(pid) })
			}
		})
	}
}

func (d *daemon) eventually(f func() bool) {
	d.t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatal("it does not happen")
		}
	}
}
