package spawn

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/abi/wire"
)

// A Conn is the socket to a worker: frames go over it with package wire. Reading is
// buffered. One goroutine may read while another writes.
type Conn struct {
	f *os.File
	r *bufio.Reader
}

func newConn(f *os.File) *Conn { return &Conn{f: f, r: bufio.NewReaderSize(f, 32<<10)} }

func (c *Conn) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *Conn) Write(b []byte) (int, error) { return c.f.Write(b) }

// Close makes the worker see the end of its input, which ends it.
func (c *Conn) Close() error {
	if err := c.f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// SetDeadline bounds reads and writes; the zero time means no bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// A Process is one worker. Its methods are safe for concurrent use.
type Process struct {
	Conn  *Conn
	Ready wire.Ready // checked: the protocol matches, the minimum is enforced
	// Stdout is what a plugin prints, nil for workers. Whoever started it reads and
	// closes it.
	Stdout *os.File

	child   child
	cpu     time.Duration
	used    time.Duration  // processor time; read after done
	wall    *time.Timer    // of a compilation
	workers sync.WaitGroup // goroutines that serve this process
	done    chan struct{}  // closed when the process and they have ended
	err     error          // why it ended; read after done

	mu       sync.Mutex
	reaped   bool
	reason   error // why it was killed, if it was
	listener *os.File
	seen     []Violation
	refused  int
	printed  []byte
	launches int // execve calls that may still go on: the launcher's one
	look     func(Violation)
	looked   int  // how often it was told
	starting bool // a plugin that has not come up: it may look for files, and Landlock judges
}

// PID is the process id; after Done it may belong to another process.
func (p *Process) PID() int { return p.child.pid() }

// Done is closed when the process has ended and everything about it is known.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process at once. It does not wait.
func (p *Process) Kill() { p.kill(ErrKilled) }

func (p *Process) kill(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || p.reason != nil {
		return
	}
	p.reason = reason
	p.child.kill()
}

// Wait waits for the end of the process. It returns nil after exit status 0, and
// otherwise wraps ErrKilled, ErrCPULimit, ErrMemoryLimit, ErrWallLimit or *ExitError.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Close kills the process if it still lives, waits for it and closes the socket.
func (p *Process) Close() error {
	p.Kill()
	<-p.done
	return p.Conn.Close()
}

// Violations lists the forbidden calls so far, at most MaxViolations.
func (p *Process) Violations() []Violation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Violation{}, p.seen...)
}

// Refused counts all forbidden calls so far.
func (p *Process) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Stderr is what the worker printed so far, escaped, at most MaxStderr bytes of it.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Escape(string(p.printed))
}

// CPUTime is the processor time that the process used; 0 while it lives.
func (p *Process) CPUTime() time.Duration {
	select {
	case <-p.done:
		return p.used
	default:
		return 0
	}
}

// reap collects the process and decides why it ended.
func (p *Process) reap(s *Spawner) {
	end := p.child.wait()
	if p.wall != nil {
		p.wall.Stop()
	}
	p.mu.Lock()
	p.reaped = true
	reason := p.reason
	if p.listener != nil {
		_ = p.listener.Close() // ends the watcher where the kernel does not
	}
	p.mu.Unlock()
	p.workers.Wait()
	p.used, p.err = end.cpu, explain(end, reason, p.cpu)
	s.mu.Lock()
	delete(s.live, p)
	s.mu.Unlock()
	close(p.done)
}

func explain(end ending, reason error, cpu time.Duration) error {
	if end.err != nil {
		return end.err
	}
	if end.status == 0 {
		return nil
	}
	err := &ExitError{Status: end.status, CPU: end.cpu}
	if !end.status.Signaled() {
		return err
	}
	if end.memory {
		reason = ErrMemoryLimit
	}
	// Whoever sees the socket close may kill before the process is collected: what
	// it had used tells. The kernel counts the limit in ticks and what is reported
	// exactly: on a busy machine they were seen to differ by 250 ms.
	slack := min(cpu/3, 500*time.Millisecond)
	if !errors.Is(reason, ErrWallLimit) && cpu > 0 && end.cpu >= cpu-slack {
		return fmt.Errorf("%w of %v: %w", ErrCPULimit, cpu, err)
	}
	if reason != nil {
		return fmt.Errorf("%w: %w", reason, err)
	}
	return err
}

// exhausted says that the kernel gave a process no more memory, and Go's runtime ended
// it: by status 2, as a panic does, so that only its words tell. One that lies is refused
// either way.
func exhausted(ended error, printed string) bool {
	exit := new(ExitError)
	return errors.As(ended, &exit) && exit.Status.Exited() && exit.Status.ExitStatus() == 2 &&
		(strings.Contains(printed, "out of memory") || strings.Contains(printed, "cannot allocate memory"))
}

// drain keeps the beginning of what the worker prints and reads the rest away, so
// that it never blocks on a full pipe.
func (p *Process) drain(stderr *os.File) {
	defer stderr.Close() //nolint:errcheck // a pipe that was read
	buf := make([]byte, 4<<10)
	for {
		n, err := stderr.Read(buf)
		p.mu.Lock()
		p.printed = append(p.printed, buf[:min(n, MaxStderr-len(p.printed))]...)
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// greet takes the hand-over and the first frame.
func (p *Process) greet(s *Spawner) error {
	within := s.readyWithin()
	if err := p.Conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if err := p.takeOver(s); err != nil {
		return err
	}
	kind, payload, err := wire.ReadFrame(p.Conn, wire.KindReady, wire.KindFault)
	if err != nil {
		return fmt.Errorf("no Ready frame within %v: %w", within, err)
	}
	if kind == wire.KindFault {
		return faultError(payload)
	}
	if err := json.Unmarshal(payload, &p.Ready); err != nil {
		return fmt.Errorf("its Ready frame cannot be read: %w", err)
	}
	if err := checkReady(p.Ready, s.insecure); err != nil {
		return err
	}
	return p.Conn.SetDeadline(time.Time{})
}

// takeOver does the only recvmsg with room for descriptors. All that follows is
// read(2), where the kernel drops what a worker might attach.
func (p *Process) takeOver(s *Spawner) error {
	raw, err := p.Conn.f.SyscallConn()
	if err != nil {
		return err
	}
	kind, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	var n, on, flags int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, on, flags, _, failed = unix.Recvmsg(int(fd), kind, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	fds := rights(oob[:on])
	one := err == nil && failed == nil && n == 1 && flags&unix.MSG_CTRUNC == 0
	switch {
	case one && kind[0] == wire.HandoverListener && len(fds) == 1:
		return p.watch(s, fds[0])
	case one && kind[0] == wire.HandoverNone && len(fds) == 0 && s.insecure:
		return nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if err == nil {
		err = failed
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		err = fmt.Errorf("it sent %#x with %d descriptors", kind[0], len(fds))
	}
	return fmt.Errorf("no hand-over of its filter: %w", err)
}

// rights returns every descriptor of a control message.
func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
