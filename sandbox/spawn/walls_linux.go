package spawn

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// namespaces are those that a worker gets of its own.
const namespaces = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNS

// Walls says what the host's half of the confinement is, found by trying it.
func (s *Spawner) Walls() Walls {
	s.tried.Do(func() {
		if s.own != nil {
			s.own.uid, s.own.within = s.UID, s.readyWithin()
		}
		s.found = s.by.walls(s.omitted())
	})
	return s.found
}

func (s *Spawner) omitted() omitted {
	return omitted{namespaces: s.WithoutNamespaces, groups: s.WithoutGroups}
}

// walls finds out what this machine offers.
func (n *nursery) walls(o omitted) Walls {
	w := Walls{UID: n.uid}
	if !o.namespaces {
		n.tried.Do(func() { n.spaces = n.tryNamespaces() })
		w.Namespaces = n.spaces == nil
		if err := cmp.Or(n.spaces, n.whyMapped); err != nil {
			w.NamespacesWhy = err.Error()
		}
	}
	if o.groups {
		return o.from(w)
	}
	n.opened.Do(n.openGroups)
	tree := n.groups.tree
	if tree == nil {
		w.GroupsWhy = n.lacking
		return o.from(w)
	}
	w.Groups, w.GroupsWhy, w.Unified = tree.Enforces(), tree.Problems(), tree.Unified()
	return o.from(w)
}

func (n *nursery) openGroups() {
	tree, err := cgroup.Open()
	if err != nil {
		n.lacking = []string{err.Error()}
		return
	}
	n.groups.tree = tree
}

// A kind is how a process stands to the user namespace that it is born in.
type kind int

const (
	// plain is in this process's own.
	plain kind = iota
	// mapped has its user and group in a new one, and this process's user owns that.
	mapped
	// anonymous has no user in a new one, and never can: none is mapped. Its own user
	// owns it, so that its program is one that this user cannot read; see hidden.
	anonymous
)

// kind is that of a mode. Workers that start often are anonymous, where that can be had.
func (n *nursery) kind(m Mode, w Walls) kind {
	switch {
	case !w.Namespaces:
		return plain
	case n.whyMapped == nil && (m == ModeRun || m == ModeCanary):
		return anonymous
	}
	return mapped
}

// tryNamespaces finds out whether workers can have namespaces of their own, and of which
// kind.
func (n *nursery) tryNamespaces() error {
	if err := n.try(mapped); err != nil {
		return err
	}
	if n.whyMapped == nil {
		n.whyMapped = n.tryHidden()
	}
	if n.whyMapped != nil {
		n.whyMapped = fmt.Errorf("workers have their user in them: %w", n.whyMapped)
	}
	return nil
}

// tryHidden waits up to a second while the hidden copy is busy: a child that was forked while
// it was written, and has not executed yet, still has it open.
func (n *nursery) tryHidden() error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := n.try(anonymous)
		if !errors.Is(err, syscall.ETXTBSY) || wait > time.Second/2 {
			return err
		}
		<-time.After(wait)
	}
}

// try starts the worker program in namespaces of its own, with a question that it
// answers without a host.
func (n *nursery) try(k kind) error {
	cmd := &exec.Cmd{
		Path: n.path(k), Args: []string{"monroe-worker", "--engine"}, Env: []string{}, Dir: "/",
		SysProcAttr: n.attributes(k),
	}
	err := n.thread.do(func() error { return n.begin(cmd, k) })
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("user namespaces are switched off here: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the kernel refuses new namespaces: %w", err)
	}
	late := time.AfterFunc(n.within, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the worker does not run in new namespaces: %w", err)
	}
	return nil
}

// path is where the program that was hashed can be executed.
func (n *nursery) path(k kind) string {
	f := n.program
	if k == anonymous {
		f = n.hidden
	}
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

// attributes of a worker's process. It dies with the thread that forked it.
func (n *nursery) attributes(k kind) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if k == anonymous {
		// Nobody waits for a map, so that the child may borrow this process's memory until
		// it executes; a copy of it would take longer than all that follows.
		a.Cloneflags = namespaces | syscall.CLONE_VM | syscall.CLONE_VFORK
		return a
	}
	uid, gid := os.Getuid(), os.Getgid()
	if n.other() {
		uid, gid = int(n.uid), int(n.uid)
		a.Credential = &syscall.Credential{Uid: n.uid, Gid: n.uid}
	}
	if k == mapped {
		a.Cloneflags = namespaces
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		// Only root may let a new user namespace drop the supplementary groups; and only
		// root has any that matter here.
		a.GidMappingsEnableSetgroups = os.Geteuid() == 0
	}
	return a
}

// memory is what a worker may hold, in bytes.
func (s *Spawner) memory(m Mode) int64 {
	if s.Memory != 0 {
		return s.Memory
	}
	return memoryOf(m)
}

// memoryOf is the most that a worker of a mode may hold.
func memoryOf(m Mode) int64 {
	switch m {
	case ModeCompile:
		return CompileMemory
	case ModePlugin:
		return PluginMemory
	case ModeRun, ModeCanary:
	}
	return RunMemory
}

// house starts a process within its control group. It is called on the forking thread.
func (n *nursery) house(f *forked, b birth, k kind) error {
	if n.groups.tree == nil || b.omitted.groups {
		return n.begin(f.cmd, k)
	}
	limits := cgroup.Limits{Memory: b.memory, PIDs: MaxThreads, CPU: MaxCPU}
	g, err := n.groups.take(limits)
	if err != nil {
		return err
	}
	if d := g.Dir(); d != nil {
		f.cmd.SysProcAttr.UseCgroupFD, f.cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	leave, err := g.Enter()
	if err != nil {
		return errors.Join(err, g.Remove())
	}
	err = n.begin(f.cmd, k)
	if left := leave(); left != nil && err == nil { // the next worker would be born in this one's group
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
		err = left
	}
	if err != nil {
		return errors.Join(err, g.Remove())
	}
	f.group = g
	if b.mode == ModeRun || b.mode == ModeCanary { // the others are rare
		n.groups.ahead(limits)
	}
	return nil
}

// begin starts a process. An anonymous one cannot change its user, and so is born with it.
// It is called on the forking thread.
func (n *nursery) begin(cmd *exec.Cmd, k kind) error {
	if n.unfit != nil {
		return n.unfit
	}
	if k != anonymous || !n.other() {
		return cmd.Start()
	}
	err := as(n.uid, cmd.Start)
	if errors.Is(err, errChanged) {
		n.unfit = err
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	return err
}

// watchMemory ends a process that holds more than it may, where no control group
// does. It looks often enough for an honest worker, and is no wall.
func (f *forked) watchMemory(most int64) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	name := fmt.Sprintf("/proc/%d/statm", f.pid())
	for {
		select {
		case <-f.gone:
			return
		case <-tick.C:
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return
		}
		var size, resident int64
		if _, err := fmt.Sscan(string(text), &size, &resident); err == nil && resident*int64(os.Getpagesize()) > most {
			f.greedy.Store(true)
			f.kill()
			return
		}
	}
}
