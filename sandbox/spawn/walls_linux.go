package spawn

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// namespaces are those that a worker gets of its own.
const namespaces = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNS

// Walls says what the host's half of the confinement is, found by trying it.
func (s *Spawner) Walls() Walls {
	s.tried.Do(s.try)
	return s.walls
}

// try finds out what this machine offers.
func (s *Spawner) try() {
	s.walls.UID = s.UID
	if s.WithoutNamespaces {
		s.walls.NamespacesWhy = "switched off"
	} else if err := s.tryNamespaces(); err != nil {
		s.walls.NamespacesWhy = err.Error()
	} else {
		s.walls.Namespaces = true
	}
	if s.WithoutGroups {
		s.walls.GroupsWhy = []string{"switched off"}
		return
	}
	tree, err := cgroup.Open()
	if err != nil {
		s.walls.GroupsWhy = []string{err.Error()}
		return
	}
	s.groups = tree
	s.walls.Groups, s.walls.GroupsWhy, s.walls.Unified = tree.Enforces(), tree.Problems(), tree.Unified()
}

// tryNamespaces starts the worker program in namespaces of its own, with a question
// that it answers without a host.
func (s *Spawner) tryNamespaces() error {
	cmd := &exec.Cmd{
		Path: s.path(), Args: []string{"monroe-worker", "--engine"}, Env: []string{}, Dir: "/",
		SysProcAttr: s.attributes(true),
	}
	err := s.fork(cmd.Start)
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("user namespaces are switched off here: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the kernel refuses new namespaces: %w", err)
	}
	late := time.AfterFunc(s.readyWithin(), func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the worker does not run in new namespaces: %w", err)
	}
	return nil
}

// path is where the program that was hashed can be executed.
func (s *Spawner) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.program.Fd()) }

// attributes of a worker's process. It dies with the thread that forked it.
func (s *Spawner) attributes(isolated bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	uid, gid := os.Getuid(), os.Getgid()
	if s.UID != 0 {
		uid, gid = int(s.UID), int(s.UID)
		a.Credential = &syscall.Credential{Uid: s.UID, Gid: s.UID}
	}
	if isolated {
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
func (s *Spawner) house(p *Process, mode Mode) error {
	if s.groups == nil {
		return p.cmd.Start()
	}
	s.number++
	g, err := s.groups.New("w-"+strconv.FormatInt(s.number, 10), cgroup.Limits{Memory: s.memory(mode), PIDs: MaxThreads, CPU: MaxCPU})
	if err != nil {
		return err
	}
	if d := g.Dir(); d != nil {
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	leave, err := g.Enter()
	if err != nil {
		return errors.Join(err, g.Remove())
	}
	err = p.cmd.Start()
	if left := leave(); left != nil && err == nil { // the next worker would be born in this one's group
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		err = left
	}
	if err != nil {
		return errors.Join(err, g.Remove())
	}
	p.group = g
	return nil
}

// watchMemory ends a process that holds more than it may, where no control group
// does. It looks often enough for an honest worker, and is no wall.
func (p *Process) watchMemory(most int64) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	name := fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid)
	for {
		select {
		case <-p.gone:
			return
		case <-tick.C:
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return
		}
		var size, resident int64
		if _, err := fmt.Sscan(string(text), &size, &resident); err == nil && resident*int64(os.Getpagesize()) > most {
			p.kill(ErrMemoryLimit)
			return
		}
	}
}
