package spawn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/sandbox/cgroup"
)

// A Spawner starts workers from one program. Create it with New. Its fields may be
// changed before the first Spawn only. Its methods are safe for concurrent use.
type Spawner struct {
	// OnViolation is told of each forbidden call, up to MaxViolations for one
	// worker, while that call still waits for its answer. It may Kill the process. It
	// must not block, and runs on a goroutine of that worker.
	OnViolation func(p *Process, v Violation)
	// UID is the user and group that workers run as; 0 means this process's own.
	// Another one needs root, and directories that this user may read. A directory for
	// ModeCompile is given to that user.
	UID uint32
	// WithoutNamespaces and WithoutGroups leave walls out, to look at the others alone.
	WithoutNamespaces, WithoutGroups bool
	// Without names walls that a canary leaves out within itself; no other worker can.
	Without []string
	// Memory is what a worker may hold, in bytes; 0 means RunMemory or CompileMemory.
	Memory int64
	// ReadyWithin is how long a worker may take to start; 0 means the constant.
	ReadyWithin time.Duration

	program  *os.File
	digest   abi.Digest
	insecure bool
	forks    chan func()
	closing  chan struct{}
	done     chan struct{} // the forking thread has ended
	once     sync.Once     // of Close

	tried  sync.Once // of walls and groups
	walls  Walls
	groups *cgroup.Tree
	number int64 // of the last worker; of the forking thread

	mu   sync.Mutex
	live map[*Process]struct{}
}

// New opens and hashes the worker program. insecure is --insecure-dev: workers
// start even where the kernel cannot confine them.
//
// It also marks every descriptor of this process above 2 as close-on-exec: what a
// shell or a service manager left open in it must not reach a worker.
func New(workerPath string, insecure bool) (*Spawner, error) {
	if err := keepDescriptors(); err != nil {
		return nil, err
	}
	program, digest, err := openProgram(workerPath)
	if err != nil {
		return nil, fmt.Errorf("the worker program cannot be used, install monroe-worker beside monroed: %w", err)
	}
	s := &Spawner{
		program: program, digest: digest, insecure: insecure,
		forks: make(chan func()), closing: make(chan struct{}), done: make(chan struct{}),
		live: map[*Process]struct{}{},
	}
	go s.forkThread()
	return s, nil
}

func keepDescriptors() error {
	const name = "/proc/self/fd"
	list, err := os.ReadDir(name)
	if err != nil {
		return fmt.Errorf("the open descriptors cannot be listed, mount /proc: %w", err)
	}
	for _, e := range list {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd) // one that was closed since, such as the list's own, does not matter
		}
	}
	return nil
}

// openProgram opens and hashes a program. The descriptor is high, because a fork
// moves the worker's own descriptors to 3 and up, and close-on-exec, because the
// path through /proc is resolved before it closes.
func openProgram(path string) (*os.File, abi.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, abi.Digest{}, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, abi.Digest{}, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		return nil, abi.Digest{}, err
	}
	return os.NewFile(uintptr(fd), path), abi.Digest(h.Sum(nil)), nil
}

// forkThread forks every worker from one thread that lives as long as the Spawner:
// a parent-death signal follows the thread that forked, not the process.
func (s *Spawner) forkThread() {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	defer close(s.done)
	for {
		select {
		case f := <-s.forks:
			f()
		case <-s.closing:
			return
		}
	}
}

func (s *Spawner) readyWithin() time.Duration {
	if s.ReadyWithin == 0 {
		return ReadyWithin
	}
	return s.ReadyWithin
}

// Digest is the SHA-256 of the worker program.
func (s *Spawner) Digest() abi.Digest { return s.digest }

// Close kills all workers, waits for them and frees the program.
func (s *Spawner) Close() error {
	err := error(nil)
	s.once.Do(func() {
		for _, p := range s.processes() {
			p.Kill() // before the kernel does, which gives no reason
		}
		close(s.closing)
		<-s.done
		for _, p := range s.processes() { // also those started meanwhile
			err = errors.Join(err, p.Close())
		}
		s.tried.Do(func() {}) // whoever comes later finds nothing
		if s.groups != nil {
			err = errors.Join(err, s.groups.Close())
		}
		err = errors.Join(err, s.program.Close())
	})
	return err
}

func (s *Spawner) processes() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.live))
}

// fork runs f on the forking thread.
func (s *Spawner) fork(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.forks <- func() { result <- f() }:
		return <-result
	case <-s.closing:
		return ErrClosed
	}
}

// Spawn starts a worker on a directory (absolute) and returns once its confinement
// stands and, in ModeRun, the module is loaded. cpu is its processor time, rounded up
// to seconds; 0 means no limit in ModeRun and CompileCPU in ModeCompile. ctx covers
// the start only; the process lives on until it ends, Kill or Close. The caller
// closes the Process. A refusal of the worker itself is a *FaultError.
func (s *Spawner) Spawn(ctx context.Context, mode Mode, dir string, cpu time.Duration) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if mode != ModeRun && mode != ModeCompile && mode != ModeCanary {
		return nil, fmt.Errorf("%w: the mode %q is unknown", ErrNotReady, mode)
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: the directory %q is not absolute", ErrNotReady, dir)
	}
	if mode == ModeCompile && s.UID != 0 {
		if err := os.Chown(dir, int(s.UID), int(s.UID)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
	if mode == ModeCompile && cpu == 0 {
		cpu = CompileCPU
	}
	p, err := s.start(mode, dir, cpu, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if err := s.await(ctx, p, func() error { return p.greet(s, mode) }); err != nil {
		return nil, err
	}
	return p, nil
}

// await lets a process come up, and ends it if it does not.
func (s *Spawner) await(ctx context.Context, p *Process, up func() error) error {
	stop := context.AfterFunc(ctx, p.Kill)
	err := up()
	stopped := stop()
	if err == nil && !stopped {
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	_ = p.Close()
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if text := p.Stderr(); text != "" {
		err = fmt.Errorf("%w; it printed: %s", err, text)
	}
	return fmt.Errorf("%w: %w", ErrNotReady, err)
}

// start forks the process, without waiting for anything it does.
func (s *Spawner) start(mode Mode, dir string, cpu time.Duration, plugin *pluginStart) (*Process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("no socket: %w", err)
	}
	child := os.NewFile(uintptr(pair[1]), "worker")
	defer child.Close() //nolint:errcheck // the child has its own
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	conn := newConn(os.NewFile(uintptr(pair[0]), "worker"))
	stderr, printed, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer printed.Close() //nolint:errcheck // the child has its own

	// The worker opens its directory by its working directory: the path may lead through
	// directories that its user may not enter.
	within, err := os.Open(dir)
	if err != nil {
		return nil, errors.Join(err, conn.Close(), stderr.Close())
	}
	defer within.Close() //nolint:errcheck // opened for reading
	isolated := s.Walls().Namespaces
	args := []string{"monroe-worker", "--cpu", cpu.String(), "--memory", strconv.FormatInt(s.memory(mode), 10)}
	if !isolated { // whose parent is outside of its process namespace, so that it sees none
		args = append(args, "--parent", strconv.Itoa(os.Getpid()))
	}
	if len(s.Without) > 0 {
		args = append(args, "--without", strings.Join(s.Without, ","))
	}
	if s.insecure {
		args = append(args, "--insecure-dev")
	}
	cmd := &exec.Cmd{
		Path: s.path(),
		Args: append(args, string(mode), "/proc/self/cwd"),
		// Never this process's environment. The memory limit makes the collector work
		// before the kernel does; threads beyond two help no guest.
		Env:         []string{"GOMEMLIMIT=1GiB", "GOMAXPROCS=2"},
		Dir:         fmt.Sprintf("/proc/self/fd/%d", within.Fd()),
		Stderr:      printed,
		ExtraFiles:  []*os.File{child},
		SysProcAttr: s.attributes(isolated),
	}
	if plugin != nil {
		cmd.Env, cmd.Stdout, cmd.ExtraFiles = plugin.env, plugin.stdout, append(cmd.ExtraFiles, plugin.program)
	}
	p := &Process{Conn: conn, cmd: cmd, cpu: (cpu + time.Second - 1) / time.Second * time.Second, done: make(chan struct{}), gone: make(chan struct{})}
	if plugin != nil {
		p.launches = 1
	}
	err = s.fork(func() error {
		if err := s.house(p, mode); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.live[p] = struct{}{}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close(), stderr.Close())
	}
	if mode == ModeCompile {
		p.wall = time.AfterFunc(CompileWall, func() { p.kill(ErrWallLimit) })
	}
	p.workers.Go(func() { p.drain(stderr) })
	if !slices.Contains(s.walls.Groups, "memory") {
		p.workers.Go(func() { p.watchMemory(s.memory(mode)) })
	}
	go p.reap(s)
	return p, nil
}
