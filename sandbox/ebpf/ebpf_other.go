//go:build !linux

package ebpf

import (
	"net/netip"
	"os/exec"
	"syscall"
)

// A Guard does not exist here.
type Guard struct{}

// A Backstop does not exist here.
type Backstop struct{ Mode Mode }

// A Lease does not exist here.
type Lease struct{}

// DenyAll fails here.
func DenyAll(string) (*Guard, error) { return nil, ErrUnsupported }

// RequireLeases fails here.
func RequireLeases(string, Mode) (*Guard, error) { return nil, ErrUnsupported }

// Hand fails here.
func Hand(*exec.Cmd, *Guard, *Guard, Mode) error { return ErrUnsupported }

// Inherited finds nothing here.
func Inherited() (*Backstop, error) { return nil, nil }

// Tables fails here.
func Tables(*Guard, *Guard, Mode) (*Backstop, error) { return nil, ErrUnsupported }

// Detach does nothing here.
func (*Guard) Detach() error { return nil }

// Close does nothing here.
func (*Guard) Close() error { return nil }

// Close does nothing here.
func (*Backstop) Close() error { return nil }

// Watch fails here.
func (*Backstop) Watch(_, _ func(Attempt)) error { return ErrUnsupported }

// Workers fails here.
func (*Backstop) Workers() (Counters, error) { return Counters{}, ErrUnsupported }

// Daemon fails here.
func (*Backstop) Daemon() (Counters, error) { return Counters{}, ErrUnsupported }

// Take fails here.
func (*Backstop) Take(syscall.RawConn, string, netip.AddrPort) (*Lease, error) {
	return nil, ErrUnsupported
}

// Strays finds nothing here.
func (*Backstop) Strays() ([]Flow, error) { return nil, ErrUnsupported }

// Connected does nothing here.
func (*Lease) Connected() {}

// Cut fails here.
func (*Lease) Cut() error { return ErrUnsupported }

// End saw nothing here.
func (*Lease) End() (Flow, bool) { return Flow{}, false }

// Cookie is none here.
func (*Lease) Cookie() uint64 { return 0 }
