package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// Enter confines the process and hands the listener that reports violations to the
// host. Call it once, before anything is read, while no other goroutine works. After an
// error the process must exit: a part of the confinement may already stand.
//
// In plugin mode the process has read nothing foreign yet, and becomes the plugin by
// execve. That call is in no list: the host sees it and lets the first one go on,
// which can only be ours, as the plugin's code does not run before it. The goroutine that
// calls this has to be the one that executes.
func Enter(cfg Config) (*Confinement, error) {
	c := &Confinement{cfg: cfg}
	if cfg.Mode != ModeRun && cfg.Mode != ModeCompile && cfg.Mode != ModeCanary && cfg.Mode != ModePlugin {
		return nil, fmt.Errorf("the mode %q is unknown; use %s or %s", cfg.Mode, ModeRun, ModeCompile)
	}
	if len(cfg.Without) > 0 && cfg.Mode != ModeCanary {
		return nil, fmt.Errorf("only a %s can be without a wall", ModeCanary)
	}
	if !secondImage() { // the first one looked, and this one has /proc no more
		if err := auditDescriptors(cfg.Mode); err != nil {
			return nil, err
		}
	}
	if cfg.Parent != 0 && os.Getppid() != cfg.Parent {
		return nil, fmt.Errorf("the parent process %d has ended; nobody would stop this worker", cfg.Parent)
	}
	c.enforced = append(c.enforced, "descriptors")
	if err := c.limit(); err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("the process cannot be made undumpable: %w", err)
	}
	c.enforced = append(c.enforced, "undumpable")
	if err := c.landlock(); err != nil {
		return nil, err
	}
	if cfg.Mode == ModePlugin {
		if err := dieWithParent(); err != nil {
			return nil, err
		}
	}
	if err := c.open(); err != nil {
		return nil, err
	}
	if err := c.filter(); err != nil {
		return nil, err
	}
	return c, nil
}

// dieWithParent is for what goes on by execve, on the calling thread: the process goes on
// as that thread, and only the first one was to be told of the parent's death.
func dieWithParent() error {
	runtime.LockOSThread() // never unlocked
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("the end of the parent would be missed: %w", err)
	}
	return nil
}

// below handles a part of the minimum that the kernel does not offer.
func (c *Confinement) below(what string, cause error) error {
	text := fmt.Sprintf("%s: %v; use a newer kernel, or start with --insecure-dev to develop without this wall", what, cause)
	if !c.cfg.Insecure {
		return fmt.Errorf("%w: %s", ErrUnsupported, text)
	}
	c.missing = append(c.missing, text)
	return nil
}

// limit sets what the kernel counts, of processor time, files and descriptors. The soft limit of CPU equals the hard one: Go
// ignores SIGXCPU, and at the hard limit comes SIGKILL.
func (c *Confinement) limit() error {
	if contains(c.cfg.Without, "rlimits") {
		return nil
	}
	limits := map[int]uint64{
		unix.RLIMIT_NOFILE: 64,
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_FSIZE:  0, // standard error is a pipe, fd 3 a socket: neither counts
	}
	if c.cfg.Mode == ModeCompile {
		limits[unix.RLIMIT_FSIZE] = 512 << 20
		limits[unix.RLIMIT_AS] = CompileMemory
	}
	if c.cfg.Memory > 0 {
		limits[unix.RLIMIT_DATA] = uint64(c.cfg.Memory)
	}
	if c.cfg.CPU > 0 {
		limits[unix.RLIMIT_CPU] = uint64((c.cfg.CPU + time.Second - 1) / time.Second)
	}
	for r, v := range limits {
		if err := unix.Setrlimit(r, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("resource limit %d cannot be set to %d: %w", r, v, err)
		}
	}
	c.enforced = append(c.enforced, "rlimits")
	return nil
}

// landlock leaves one directory, no TCP, and no signal or abstract socket that
// reaches outside.
func (c *Confinement) landlock() error {
	if contains(c.cfg.Without, "landlock") {
		return nil
	}
	version, err := landlockVersion()
	if err != nil || version < 1 {
		return c.below("Landlock is not available (Linux 5.13 or later, with landlock in the lsm= list)", errors.Join(err))
	}
	if err := restrict(version, places(c.cfg)); err != nil {
		return fmt.Errorf("landlock cannot restrict the worker to %s: %w", c.cfg.Dir, err)
	}
	c.enforced = append(c.enforced, fmt.Sprintf("landlock:%d", version))
	return nil
}

func places(cfg Config) []place {
	switch cfg.Mode {
	case ModeCompile:
		return []place{{cfg.Dir, writeDir}}
	case ModePlugin: // reads and executes its own program and nothing else
		return []place{{cfg.Dir, writeDir}, {fmt.Sprintf("/proc/self/fd/%d", wire.ProgramFD), readFile}}
	default:
		return []place{{cfg.Dir, readDir}}
	}
}

// filter installs the first filter and hands its listener over. From the next
// filter on nothing can be handed to anyone.
func (c *Confinement) filter() error {
	if contains(c.cfg.Without, "seccomp") {
		return handOver(wire.HandoverNone, -1)
	}
	runtime.LockOSThread() // no_new_privs is per thread; TSYNC carries it to the others
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs cannot be set: %w", err)
	}
	c.enforced = append(c.enforced, "no_new_privs")
	listener, err := allowed(c.cfg.Mode).install()
	if err != nil {
		if err := c.below("seccomp with user notification is not available (Linux 5.7 or later)", err); err != nil {
			return err
		}
		return handOver(wire.HandoverNone, -1)
	}
	if err := handOver(wire.HandoverListener, listener); err != nil {
		return err
	}
	// The worker must not be able to answer its own notifications.
	if err := unix.Close(listener); err != nil {
		return fmt.Errorf("the listener cannot be closed: %w", err)
	}
	if _, err := without(unix.SYS_SENDMSG, unix.SYS_PRCTL, unix.SYS_SECCOMP).install(); err != nil {
		return fmt.Errorf("the second filter cannot be installed: %w", err)
	}
	c.enforced = append(c.enforced, "seccomp")
	return nil
}

func handOver(kind byte, listener int) error {
	var rights []byte
	if listener >= 0 {
		rights = unix.UnixRights(listener)
	}
	if err := unix.Sendmsg(wire.FD, []byte{kind}, rights, nil, 0); err != nil {
		return fmt.Errorf("the host did not take the listener: %w", err)
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
