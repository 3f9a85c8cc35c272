package spawn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
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
	// CompileWall is how long a compile worker may live; 0 means the constant.
	CompileWall time.Duration

	by       forker
	own      *nursery // by, where it is this process's own
	digest   abi.Digest
	insecure bool
	once     sync.Once // of Close

	tried sync.Once
	found Walls

	starting sync.WaitGroup // forks whose process is not in live yet

	mu     sync.Mutex
	closed bool
	live   map[*Process]struct{}
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
	n, err := newNursery(workerPath)
	if err != nil {
		return nil, err
	}
	s := newSpawner(n, n.digest, insecure)
	s.own = n
	return s, nil
}

func newSpawner(by forker, digest abi.Digest, insecure bool) *Spawner {
	return &Spawner{by: by, digest: digest, insecure: insecure, live: map[*Process]struct{}{}}
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
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.by.stop()
		s.starting.Wait()
		for _, p := range s.processes() { // also those started meanwhile
			err = errors.Join(err, p.Close())
		}
		err = errors.Join(err, s.by.close())
	})
	return err
}

func (s *Spawner) processes() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.live))
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
	if mode == ModeCompile && cpu == 0 {
		cpu = CompileCPU
	}
	p, err := s.start(mode, dir, cpu, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if err := s.await(ctx, p, func() error { return p.greet(s) }); err != nil {
		return nil, err
	}
	return p, nil
}

// await lets a process come up, and ends it if it does not. One that tried what it may
// not is an *EscapeError, whatever else went wrong with it.
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
	if exit := new(ExitError); errors.As(p.Wait(), &exit) && exit.Status.Exited() && exit.Status.ExitStatus() == wire.ExitUnconfined {
		err = &UnconfinedError{strings.TrimSuffix(p.Stderr(), `\n`)}
	} else if text := p.Stderr(); text != "" {
		err = fmt.Errorf("%w; it printed: %s", err, text)
	}
	if tried := p.Violations(); len(tried) > 0 {
		err = fmt.Errorf("%w: %w", &EscapeError{tried}, err)
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

	within, err := os.Open(dir)
	if err != nil {
		return nil, errors.Join(err, conn.Close(), stderr.Close())
	}
	defer within.Close() //nolint:errcheck // opened for reading
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.starting.Add(1)
	}
	s.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrClosed, conn.Close(), stderr.Close())
	}
	defer s.starting.Done()
	s.Walls() // tried before the first
	c, err := s.by.fork(birth{
		mode: mode, cpu: cpu, memory: s.memory(mode), without: s.Without, omitted: s.omitted(), insecure: s.insecure,
		socket: child, stderr: printed, dir: within, plugin: plugin,
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close(), stderr.Close())
	}
	p := &Process{Conn: conn, child: c, cpu: (cpu + time.Second - 1) / time.Second * time.Second, done: make(chan struct{})}
	if plugin != nil {
		p.launches, p.starting, p.look = 1, true, plugin.look
	}
	s.mu.Lock()
	s.live[p] = struct{}{}
	s.mu.Unlock()
	if mode == ModeCompile {
		p.wall = time.AfterFunc(s.compileWall(), func() { p.kill(ErrWallLimit) })
	}
	p.workers.Go(func() { p.drain(stderr) })
	go p.reap(s)
	return p, nil
}
