//go:build !linux

package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
)

// A Spawner starts workers; here it cannot.
type Spawner struct {
	OnViolation func(p *Process, v Violation)
	UID         uint32
	Memory      int64

	WithoutNamespaces, WithoutGroups bool

	ReadyWithin, CompileWall time.Duration
}

// New fails.
func New(string, bool) (*Spawner, error) {
	return nil, fmt.Errorf("%w: workers need Linux; use Linux, a container or a virtual machine", ErrUnsupported)
}

// Digest is zero here.
func (s *Spawner) Digest() abi.Digest { return abi.Digest{} }

// Walls is empty here.
func (s *Spawner) Walls() Walls { return Walls{} }

// Close does nothing here.
func (s *Spawner) Close() error { return nil }

// Spawn fails.
func (s *Spawner) Spawn(context.Context, Mode, string, time.Duration) (*Process, error) {
	return nil, ErrUnsupported
}

// A Program is the executable of a plugin; here there is none.
type Program struct{}

// OpenProgram fails.
func OpenProgram(string, abi.Digest) (*Program, error) { return nil, ErrUnsupported }

// Close does nothing here.
func (*Program) Close() error { return nil }

// SpawnPlugin fails.
func (s *Spawner) SpawnPlugin(context.Context, *Program, string, []string, func(Violation)) (*Process, error) {
	return nil, ErrUnsupported
}

// A Conn is the socket to a worker; here there is none.
type Conn struct{}

func (*Conn) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (*Conn) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Close does nothing here.
func (*Conn) Close() error { return nil }

// SetDeadline fails.
func (*Conn) SetDeadline(time.Time) error { return errors.ErrUnsupported }

// SetReadDeadline fails.
func (*Conn) SetReadDeadline(time.Time) error { return errors.ErrUnsupported }

// SetWriteDeadline fails.
func (*Conn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// A Process is one worker; here there is none.
type Process struct {
	Conn   *Conn
	Ready  wire.Ready
	Stdout *os.File
}

// PID is 0 here.
func (p *Process) PID() int { return 0 }

// Done is nil here.
func (p *Process) Done() <-chan struct{} { return nil }

// Kill does nothing here.
func (p *Process) Kill() {}

// Wait fails.
func (p *Process) Wait() error { return ErrUnsupported }

// Close does nothing here.
func (p *Process) Close() error { return nil }

// Violations is empty here.
func (p *Process) Violations() []Violation { return nil }

// Refused is 0 here.
func (p *Process) Refused() int { return 0 }

// Stderr is empty here.
func (p *Process) Stderr() string { return "" }

// NoFiles does nothing here.
func (p *Process) NoFiles() {}

// CPUTime is 0 here.
func (p *Process) CPUTime() time.Duration { return 0 }

// A Remote is a privileged monroe up; here there is none.
type Remote struct{}

// Inherited finds nothing here.
func Inherited() (*Remote, error) { return nil, nil }

// UID is 0 here.
func (*Remote) UID() uint32 { return 0 }

// Close does nothing here.
func (*Remote) Close() error { return nil }

// New fails.
func (*Remote) New(bool) (*Spawner, error) { return nil, ErrUnsupported }

func (s *Spawner) memory(Mode) int64 { return s.Memory }

func exhausted(error, string) bool { return false }
