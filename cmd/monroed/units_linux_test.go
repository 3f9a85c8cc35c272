package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host/api"
)

// unit reads a setting of one of the units that are shipped.
func unit(t *testing.T, name, setting string) string {
	t.Helper()
	text := read(t, filepath.Join("..", "..", "docs", name))
	m := regexp.MustCompile(`(?m)^` + setting + `=(.+)$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s", name, setting)
	}
	return string(m[1])
}

// capabilities are such a list in the words of setpriv.
func capabilities(list string) string {
	return strings.ReplaceAll(strings.ToLower(" "+list), " cap_", ",+")
}

// asUnit starts what a unit starts, in a control group that was given to its user, with
// the capabilities that it names and no way to more.
func asUnit(t *testing.T, name string, uid, owner int) *daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can give a control group away and be another user")
	}
	group := filepath.Join(unified(t), fmt.Sprintf("monroe-unit-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(group) })
	d := newDaemon(t, "")
	for _, dir := range []string{group, d.home, filepath.Dir(d.files)} {
		to := owner
		if dir == group {
			to = uid
		}
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chown(path, to, to)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	ambient := ""
	if uid != 0 {
		ambient = capabilities(unit(t, name, "AmbientCapabilities"))
	}
	d.by = []string{
		"sh", "-c", `echo $$ >"$1/cgroup.procs" && umask "$2" && shift 2 && exec setpriv "$@"`, "sh", group, unit(t, name, "UMask"),
		fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups", "--no-new-privs",
		"--bounding-set=-all" + capabilities(unit(t, name, "CapabilityBoundingSet")),
		"--inh-caps=-all" + ambient, "--ambient-caps=-all" + ambient,
	}
	for _, word := range strings.Fields(unit(t, name, "ExecStart")) {
		switch word {
		case "/usr/local/bin/monroe":
			word = program("monroe")
		case "/var/lib/monroe":
			word = d.home
		case "default":
			word = "team"
		case "monroe": // a user that need not exist here
			word = fmt.Sprint(owner)
		}
		d.by = append(d.by, word)
	}
	d.up()
	return d
}

// stands says that every layer does, and takes the daemon down again.
func (d *daemon) stands(want api.Machine) {
	d.t.Helper()
	out, status := cli(d.t, "--home", d.home, "-w", "team", "--json", "doctor")
	var v api.DoctorView
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 {
		d.t.Fatalf("status %d, %v: %s", status, err, out)
	}
	if v.Level != "L0+L1+L2+L3+L4+L5" || len(v.Findings) > 0 || v.Host.UID != want.UID || v.Host.WorkerUID != want.WorkerUID || !strings.HasPrefix(v.Host.Spawner, want.Spawner) {
		d.t.Errorf("%s", out)
	}
	d.stop()
}

// TestRootUpTwoCapabilities is docs/monroe.service, as far as it can be had without
// systemd: a user with two capabilities in a control group of its own makes every layer
// stand, and a daemon that has neither.
func TestRootUpTwoCapabilities(t *testing.T) {
	const user = 54321
	d := asUnit(t, "monroe.service", user, user)
	d.has(d.cmd.Process.Pid, "CapEff:\t0000008000001000\n", "CapBnd:\t0000008000001000\n", "NoNewPrivs:\t1\n", fmt.Sprintf("Uid:\t%d\t", user))
	d.has(d.inner(), append([]string{fmt.Sprintf("Uid:\t%d\t", user)}, stripped...)...)
	d.stands(api.Machine{UID: user, WorkerUID: user, Spawner: "direct"})
}

// TestRootUpAsRootsUnit is docs/monroe-root.service in the same way: root with as little
// as it takes, a daemon and workers of two users without anything.
func TestRootUpAsRootsUnit(t *testing.T) {
	const user = 65534 // nobody, since monroe asks for a name
	d := asUnit(t, "monroe-root.service", 0, user)
	d.withoutPrivilege(d.inner(), user)
	d.stands(api.Machine{UID: user, WorkerUID: 64001, Spawner: "monroe up (privileged)"})
}
