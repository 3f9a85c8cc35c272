// Package spawn starts worker processes and watches over them: the host's half of
// the confinement.
//
// Laws, each with its test:
//
//   - The bytes that were hashed are the bytes that are executed: the program is
//     opened once and started through its descriptor (TestWorkerDigest).
//   - Nobody else who runs as the workers' user can look into a worker or join its
//     namespaces (TestRootOutsider).
//   - A worker inherits one socket, a pipe for its errors and no environment
//     (TestLinuxHealthyWorker).
//   - It dies with the thread that started it, and that thread lives as long as the
//     Spawner (TestCloseEndsWorkers).
//   - A worker that is stuck, silent or talks nonsense is an error within a
//     deadline, and no process and no goroutine is left (TestBadWorkers, TestCompileWall).
//   - A forbidden system call is reported before it is refused, and never allowed
//     (TestLinuxAttempts).
//   - A plugin has the digest that was pinned, each time it is started, and gets its
//     confinement from a launcher before its first instruction (TestLinuxPluginAttempts in cmd/monroed).
//     What it looks for among files while it comes up is told and no violation, as its
//     runtime and libraries do that; after, it is one (TestLinuxALyingPluginIsNamed there).
//   - What a worker prints is hostile text: bounded and escaped.
//   - A daemon that is taken over gets from a Server no user, program, wall or limit of
//     its choice (TestRootHostileDaemon), no more workers than MaxLive
//     (TestRootHostileFlood, …ByDefault), and no file of others (TestRootLentDirectory).
//
// It knows processes, descriptors, deadlines and the first frame.
//
// It must not know what a run is, the engine, policy or the store.
package spawn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi/wire"
)

// Mode is what a worker is started for.
type Mode string

const (
	// ModeRun executes the module of a directory, which it only reads.
	ModeRun Mode = "run"
	// ModeCompile fills a private, empty directory from a module.
	ModeCompile Mode = "compile"
	// ModeCanary tries what a run worker may not.
	ModeCanary Mode = "canary"
	// ModePlugin becomes a plugin of the operator's; see SpawnPlugin.
	ModePlugin Mode = "plugin"
)

// Limits of every worker.
const (
	// ReadyWithin is how long a worker may take to confine itself and to load.
	ReadyWithin = 10 * time.Second
	// CompileWall is how long a compile worker may live: with the way there and back, a
	// hostile upload is refused within 20 s.
	CompileWall = 18 * time.Second
	// CompileCPU is its processor time.
	CompileCPU = 18 * time.Second
	// RunMemory is what a run worker may hold, in bytes: the guest's memory, what the
	// engine needs beside it, and the collector's slack.
	RunMemory = 1536 << 20
	// CompileMemory is what a compile worker may hold; its address space has a limit too.
	CompileMemory = 3 << 30
	// PluginMemory is what a plugin may hold.
	PluginMemory = 512 << 20
	// MaxThreads is how many threads a worker may have.
	MaxThreads = 128
	// MaxCPU is how many processors a worker may use at a time.
	MaxCPU = 2
	// MaxViolations is how many violations of one worker are kept and reported; the
	// rest is refused and counted.
	MaxViolations = 64
	// MaxStderr is how many bytes of a worker's standard error are kept.
	MaxStderr = 8 << 10
)

var (
	// ErrNotReady is wrapped when a worker did not come up.
	ErrNotReady = errors.New("the worker did not start")
	// ErrKilled is wrapped by Wait when Kill, Close or a context ended the worker.
	ErrKilled = errors.New("the worker was killed")
	// ErrCPULimit is wrapped by Wait when the kernel ended it at its CPU limit.
	ErrCPULimit = errors.New("the worker was killed by its CPU limit")
	// ErrMemoryLimit is wrapped by Wait when the kernel ended it at its memory limit.
	ErrMemoryLimit = errors.New("the worker was killed by its memory limit")
	// ErrWallLimit is wrapped by Wait when a compilation took longer than CompileWall.
	ErrWallLimit = errors.New("the worker was killed by its wall clock limit")
	// ErrDigest is wrapped when a plugin's program is not the pinned one, or may be
	// changed by others.
	ErrDigest = errors.New("the program is not the one that was pinned")
	// ErrClosed is returned by a closed Spawner.
	ErrClosed = errors.New("the spawner is closed")
	// ErrUnsupported is wrapped by New where workers cannot be started, and by Spawn where
	// one refused to start because a wall of the minimum is missing.
	ErrUnsupported = errors.New("this platform cannot start workers")
)

// Walls is the host's half of the confinement on this machine, besides what a worker
// does to itself.
type Walls struct {
	UID           uint32   // that workers run as; 0 is this process's own
	Namespaces    bool     // user, network, process, IPC, host name and mount namespaces
	NamespacesWhy string   // why not, or why workers have their user in them, which they need not
	Groups        []string // limits by control group: memory, pids, cpu
	GroupsWhy     []string // what is missing
	Unified       string   // version 2 directory above the workers' groups, or empty
}

// A FaultError is a Fault frame as an error.
type FaultError struct{ wire.Fault }

// An UnconfinedError is a worker that refused to start, as the kernel lacks a part of the
// minimum. It is an ErrUnsupported.
type UnconfinedError struct{ Why string }

func (e *UnconfinedError) Error() string { return ErrUnsupported.Error() + ": " + e.Why }
func (e *UnconfinedError) Unwrap() error { return ErrUnsupported }

// An EscapeError is a worker that tried what it may not, while it started or compiled:
// the module that it read has taken it over. Nothing that it left may be used.
type EscapeError struct{ Tried []Violation }

func (e *EscapeError) Error() string {
	tried := make([]string, len(e.Tried))
	for i, v := range e.Tried {
		tried[i] = v.String()
	}
	return "the worker tried what it may not: " + strings.Join(tried, "; ")
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("%s: %s", e.Code, Escape(e.Message))
}

// A Violation is one system call that a worker may not make.
type Violation struct {
	Name string    // of the call, or "syscall 123"
	Args [6]uint64 // as the caller gave them
	// Path is what such an argument pointed to a moment before the call was refused, where
	// this process may look into the worker's memory. Nothing is decided by it.
	Path string
	PID  int // the thread that called
}

func (v Violation) String() string {
	if v.Path != "" {
		return v.Name + "(" + strconv.Quote(v.Path) + ")"
	}
	args := make([]string, len(v.Args))
	for i, a := range v.Args {
		args[i] = fmt.Sprintf("%#x", a)
	}
	return v.Name + "(" + strings.Join(args, ", ") + ")"
}

// required is what a Ready frame must claim unless the Spawner is insecure. An
// entry matches itself or itself with a version ("landlock:7").
var required = [...]string{"descriptors", "rlimits", "undumpable", "landlock", "no_new_privs", "seccomp"}

// checkReady says why a worker may not be used.
func checkReady(r wire.Ready, insecure bool) error {
	if r.Protocol != wire.Version {
		return fmt.Errorf("it speaks protocol %d, this host speaks %d; install monroed and monroe-worker of the same release", r.Protocol, wire.Version)
	}
	if r.Engine == "" {
		return errors.New("it does not name its engine")
	}
	if insecure {
		return nil
	}
	for _, want := range required {
		found := false
		for _, have := range r.Enforced {
			name, _, _ := strings.Cut(have, ":")
			found = found || name == want
		}
		if !found {
			return fmt.Errorf("it does not enforce %s", want)
		}
	}
	return nil
}

// Escape makes hostile text safe for a log or a terminal: one line, printable
// characters, bounded.
func Escape(s string) string {
	if len(s) > MaxStderr {
		s = s[:MaxStderr]
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
