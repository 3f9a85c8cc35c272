package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// A guard holds the control groups of the daemon and its workers, with the programs
// that stand there. They stand until the groups are removed, so that the death of this
// process or of the daemon opens nothing. A nil guard starts the daemon as it is.
type guard struct {
	mode            ebpf.Mode
	tree            *cgroup.Tree
	place           *os.File // the daemon's group
	workers, daemon *ebpf.Guard
	forks           chan func()
}

// guardFor stands the programs of a mode; off is none.
func guardFor(mode string) (g *guard, err error) {
	if mode == "off" {
		return nil, nil //nolint:nilnil // no guard is an answer
	}
	g = &guard{mode: ebpf.Enforce, forks: make(chan func())}
	if mode == "audit" {
		g.mode = ebpf.Audit
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
			g = nil
		}
	}()
	if g.tree, err = cgroup.Open(); err != nil {
		return g, err
	}
	daemon, workers, err := g.tree.House()
	if err != nil {
		return g, err
	}
	if g.place, err = os.Open(daemon); err != nil {
		return g, err
	}
	if g.workers, err = ebpf.DenyAll(workers); err != nil {
		return g, err
	}
	if g.daemon, err = ebpf.RequireLeases(daemon, g.mode); err != nil {
		return g, err
	}
	ready := make(chan error)
	go g.forkThread(ready)
	return g, <-ready
}

// left are the capabilities of a daemon of root: what it takes to start workers of
// another user, to own their files, and (SETFCAP) to give them a user namespace that has
// root in it. None of them reaches a program, a network
// setting or another process's memory. A daemon of any other user has none at all.
var left = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_SETFCAP}

// forkThread starts every daemon from one thread that lives as long as this process,
// since a parent-death signal follows the thread; and that has given up what a daemon
// must not have.
func (g *guard) forkThread(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: nothing else may run on it
	ready <- disarm()
	for f := range g.forks {
		f()
	}
}

// disarm bounds what the processes that this thread starts can ever have.
func disarm() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if os.Geteuid() != 0 { // without ambient ones, a program that it starts gets none
		return nil
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(left, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel that does not have it yet
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return nil
}

// Start starts a daemon in its control group, with the tables and without a hold on
// any program. It dies with this process.
func (g *guard) Start(cmd *exec.Cmd) error {
	if g == nil {
		return cmd.Start()
	}
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.place.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := ebpf.Hand(cmd, g.workers, g.daemon, g.mode); err != nil {
		return err
	}
	started := make(chan error)
	g.forks <- func() { started <- cmd.Start() }
	err := <-started
	for _, f := range cmd.ExtraFiles {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Close removes the control groups, and the programs with them. The daemon must have
// ended.
func (g *guard) Close() error {
	if g == nil {
		return nil
	}
	var errs []error
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
