package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/host/durable"
	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/ebpf"
	"github.com/getmonroe/monroe/sandbox/spawn"
)

// A guard holds what the daemon has not: the control groups of it and its workers, the
// kernel programs that stand there, and the privilege to fork workers. The programs
// stand until the groups are removed, so that the death of this process or of the daemon
// opens nothing. A nil guard starts the daemon as it is.
type guard struct {
	mode            ebpf.Mode
	tree            *cgroup.Tree
	place           *os.File // the daemon's group, nil without programs
	workers, daemon *ebpf.Guard
	forks           chan func()
	as              *syscall.Credential // the daemon's user; nil means this process's own
	spawner         *spawn.Server       // nil where the daemon forks
}

// guard stands what can be stood here: programs as --egress says, and a privileged
// spawner where this process is root.
func (u upCmd) guard(e *env) (g *guard, err error) {
	if err := os.Setenv(ebpf.WhyNot, map[string]string{"off": "switched off by --egress off"}[u.Egress]); err != nil { // for the daemon
		return nil, err
	}
	lacks := lacking()
	if os.Geteuid() == 0 && lacks != "" {
		fmt.Fprintf(e.err, "monroe: the daemon forks its workers itself, as its own privilege lets it: %s\n", lacks)
	}
	if lacks != "" && u.Egress == "off" {
		return nil, nil //nolint:nilnil // no guard is an answer
	}
	g = &guard{forks: make(chan func())}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
			g = nil
		}
	}()
	if u.Egress != "off" {
		err := g.stand(u.Egress)
		if err != nil && u.Egress != "auto" {
			return g, err
		}
		if err != nil {
			fmt.Fprintf(e.err, "monroe: no kernel programs behind the sandbox (layers L4 and L5): %v\n", err)
			_ = g.Close() // what it came to
			if err := os.Setenv(ebpf.WhyNot, err.Error()); err != nil {
				return nil, err
			}
			g = &guard{forks: make(chan func())}
		}
	}
	if lacks == "" {
		if err := g.serve(u, e); err != nil {
			return g, err
		}
	} else if g.daemon == nil {
		return nil, nil //nolint:nilnil // no guard is an answer
	}
	ready := make(chan error)
	go g.forkThread(ready)
	return g, <-ready
}

// stand attaches the programs of a mode.
func (g *guard) stand(mode string) (err error) {
	g.mode = ebpf.Enforce
	if mode == "audit" {
		g.mode = ebpf.Audit
	}
	if g.tree, err = cgroup.Open(); err != nil {
		return err
	}
	daemon, workers, err := g.tree.House()
	if err != nil {
		return err
	}
	if g.place, err = os.Open(daemon); err != nil {
		return err
	}
	if g.workers, err = ebpf.DenyAll(workers); err != nil {
		return err
	}
	g.daemon, err = ebpf.RequireLeases(daemon, g.mode)
	return err
}

// needed are the capabilities of a privileged spawner, by name.
var needed = map[int]string{
	unix.CAP_CHOWN: "CHOWN", unix.CAP_DAC_OVERRIDE: "DAC_OVERRIDE", unix.CAP_FOWNER: "FOWNER", unix.CAP_KILL: "KILL",
	unix.CAP_SETUID: "SETUID", unix.CAP_SETGID: "SETGID", unix.CAP_SETPCAP: "SETPCAP",
}

// lacking says why this process cannot be a privileged spawner, or nothing.
func lacking() string {
	if os.Geteuid() != 0 {
		return "it is not root"
	}
	have, err := capabilities()
	if err != nil {
		return err.Error()
	}
	for c, name := range needed {
		if have[c/32].Effective&(1<<(c%32)) == 0 {
			return "it is root without CAP_" + name
		}
	}
	return ""
}

func capabilities() (have [2]unix.CapUserData, err error) {
	err = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0])
	return have, err
}

// serve makes this process fork the workers, and the daemon a user without capabilities.
func (g *guard) serve(u upCmd, e *env) (err error) {
	if g.as, err = u.user(e.home); err != nil {
		return err
	}
	if g.as.Uid == 0 {
		fmt.Fprintf(e.err, "monroe: the daemon runs as root without capabilities, and root's files are still its own: give %s to a user of its own\n", e.home)
	}
	// Not by operator.yaml: the daemon can write that, and must not choose users.
	c := spawn.ServerConfig{WorkerUID: u.WorkerUID, DaemonUID: g.as.Uid, DaemonGID: g.as.Gid, Insecure: u.InsecureDev}
	daemon, err := u.program()
	if err != nil {
		return err
	}
	c.Program = filepath.Join(filepath.Dir(daemon), "monroe-worker")
	if g.tree == nil {
		if g.tree, err = cgroup.Open(); err != nil {
			c.GroupsWhy = []string{err.Error()}
		}
	}
	c.Groups = g.tree
	g.spawner, err = spawn.NewServer(c)
	return err
}

// user is whom the daemon runs as: --user, or the owner of its home, which is made if it
// is not there.
func (u upCmd) user(home string) (*syscall.Credential, error) {
	as, err := u.named()
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(home)
	if errors.Is(err, fs.ErrNotExist) {
		if err = durable.MkdirAll(home); err == nil && as != nil {
			err = os.Chown(home, int(as.Uid), int(as.Gid))
		}
		if err == nil {
			st, err = os.Stat(home)
		}
	}
	if err != nil {
		return nil, err
	}
	if as != nil {
		return as, nil
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s has no owner", home)
	}
	if named, err := user.LookupId(strconv.Itoa(int(owner.Uid))); err == nil {
		return credential(named.Uid, named.Gid)
	}
	if owner.Uid != 0 && owner.Gid == 0 { // nobody said that it may be of root's group
		owner.Gid = owner.Uid
	}
	return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}, nil
}

// named is who --user names, nil for nobody.
func (u upCmd) named() (*syscall.Credential, error) {
	if u.User == "" {
		return nil, nil //nolint:nilnil // nobody is an answer
	}
	named, err := user.Lookup(u.User)
	if err != nil {
		named, err = user.LookupId(u.User)
	}
	if err != nil {
		return nil, fmt.Errorf("--user %s: %w", u.User, err)
	}
	return credential(named.Uid, named.Gid)
}

func credential(uid, gid string) (*syscall.Credential, error) {
	u, err1 := strconv.ParseUint(uid, 10, 32)
	g, err2 := strconv.ParseUint(gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}, nil
}

// forkThread starts every daemon from one thread that lives as long as this process,
// since a parent-death signal follows the thread; and that has given up what a daemon
// must not have. Workers are forked from another.
func (g *guard) forkThread(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: nothing else may run on it
	ready <- g.disarm()
	for f := range g.forks {
		f()
	}
}

// disarm bounds what the processes that this thread starts can ever have: nothing. A
// daemon that has to fork as root keeps what that takes.
func (g *guard) disarm() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	have, err := capabilities()
	if err != nil {
		return err
	}
	have[0].Inheritable, have[1].Inheritable = 0, 0
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		return fmt.Errorf("inheritable capabilities: %w", err)
	}
	if os.Geteuid() != 0 { // without ambient and inheritable ones, a program that it starts gets none
		return nil
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if g.spawner == nil && needed[int(c)] != "" {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel that does not have it yet
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return nil
}

// Start starts a daemon in its control group, as its user, with the tables and without a
// hold on any program. It dies with this process.
func (g *guard) Start(cmd *exec.Cmd) error {
	if g == nil {
		return cmd.Start()
	}
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: g.as}
	var err error
	if g.daemon != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(g.place.Fd())
		err = ebpf.Hand(cmd, g.workers, g.daemon, g.mode)
	}
	if err == nil && g.spawner != nil {
		err = g.spawner.Hand(cmd)
	}
	if err == nil {
		started := make(chan error)
		g.forks <- func() { started <- cmd.Start() }
		err = <-started
	}
	for _, f := range cmd.ExtraFiles {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Ended ends what a daemon that has ended left behind.
func (g *guard) Ended() {
	if g != nil && g.spawner != nil {
		g.spawner.End()
	}
}

// Close removes the control groups, and the programs with them. The daemon must have
// ended.
func (g *guard) Close() error {
	if g == nil {
		return nil
	}
	var errs []error
	if g.spawner != nil {
		errs = append(errs, g.spawner.Close())
	}
	for _, p := range []*ebpf.Guard{g.workers, g.daemon} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	if g.place != nil {
		errs = append(errs, g.place.Close())
	}
	if g.tree != nil {
		errs = append(errs, g.tree.Close())
	}
	return errors.Join(errs...)
}
