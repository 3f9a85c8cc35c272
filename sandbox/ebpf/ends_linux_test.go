package ebpf_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// raw is a socket whose every step is a step of the test's.
type raw struct {
	file *os.File
	conn syscall.RawConn
}

// newRaw makes one for a network such as tcp6.
func newRaw(network string) (r raw, err error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if strings.HasSuffix(network, "6") {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	r.file = os.NewFile(uintptr(fd), network)
	r.conn, err = r.file.SyscallConn()
	return r, err
}

func (r raw) with(to netip.AddrPort, f func(int, unix.Sockaddr) error) string {
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port())}
	if to.Addr().Is6() {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	}
	var err error
	return errno(errors.Join(r.conn.Control(func(fd uintptr) { err = f(int(fd), sa) }), err))
}

func (r raw) connect(to netip.AddrPort) string { return r.with(to, unix.Connect) }

func (r raw) send(to netip.AddrPort) string {
	return r.with(to, func(fd int, sa unix.Sockaddr) error { return unix.Sendto(fd, []byte("x"), 0, sa) })
}

// beBrief follows the scripts of how leases end and what the tables hold.
func beBrief(b *ebpf.Backstop, script string, port uint16, says daemonSays) error {
	v4, v6 := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), netip.AddrPortFrom(netip.IPv6Loopback(), port)
	leased := func(network string, to netip.AddrPort) (r raw, l *ebpf.Lease, err error) {
		if r, err = newRaw(network); err == nil {
			l, err = b.Take(r.conn, network, to)
		}
		return r, l, err
	}
	switch script {
	case "ends":
		s, l, err := leased("udp4", v4)
		if err != nil {
			return err
		}
		says["once"], says["within the dial"] = s.connect(v4), s.connect(v4)
		l.Connected()
		says["after it"] = s.connect(v4)
		for name, age := range map[string]time.Duration{"young": 10 * time.Second, "old": 15 * time.Second} {
			s, l, err := leased("tcp4", v4)
			if err != nil {
				return err
			}
			if err := l.Age(age); err != nil {
				return err
			}
			says[name] = s.connect(v4)
		}
	case "families":
		for network, to := range map[string]netip.AddrPort{"tcp4": v4, "udp4": v4, "tcp6": v6, "udp6": v6} {
			s, err := newRaw(network)
			if err != nil {
				return err
			}
			says[network+" without"] = s.connect(to)
			elsewhere := netip.AddrPortFrom(to.Addr().Next(), to.Port())
			if s, _, err = leased(network, elsewhere); err != nil {
				return err
			}
			says[network+" of another address"] = s.connect(to)
			if s, _, err = leased(network, to); err != nil {
				return err
			}
			says[network+" with"] = s.connect(to)
			if strings.HasPrefix(network, "tcp") {
				continue
			}
			if s, err = newRaw(network); err != nil {
				return err
			}
			says[network+" sends without"] = s.send(to)
			if s, _, err = leased(network, to); err != nil {
				return err
			}
			says[network+" sends with"] = s.send(to)
		}
	case "fill": // every table, and leave it so
		var last *ebpf.Lease
		for i := range ebpf.MaxFlows {
			s, l, err := leased("udp4", v4)
			if err != nil {
				return err
			}
			if what := s.connect(v4); what != "ok" {
				return fmt.Errorf("flow %d came to %s", i, what)
			}
			if err := l.Cut(); err != nil {
				return fmt.Errorf("flow %d: %w", i, err)
			}
			s.file.Close()
			last = l
		}
		s, l, err := leased("udp4", v4)
		if err != nil {
			return err
		}
		says["one flow more"] = s.connect(v4)
		_, seen := last.End()
		says["one less"] = fmt.Sprint(seen, " ", s.connect(v4))
		says["one cut more"] = fmt.Sprint(l.Cut())
		for i := range ebpf.MaxLeases {
			if _, _, err := leased("tcp4", v4); err != nil {
				return fmt.Errorf("lease %d: %w", i, err)
			}
		}
		_, _, err = leased("tcp4", v4)
		says["one lease more"] = errno(err)
	case "again": // after one that left them full
		strays, err := b.Strays()
		says["strays"] = fmt.Sprint(len(strays), " ", err)
		s, l, err := leased("udp4", v4)
		if err != nil {
			return err
		}
		says["connect"], says["cut"] = s.connect(v4), fmt.Sprint(l.Cut())
	}
	return nil
}

// TestRootLeaseEnds: a lease is over when the dial is, for the same socket too, and after
// its term if nobody says so.
func TestRootLeaseEnds(t *testing.T) {
	is(t, run(t, newHouse(t), ebpf.Enforce, "ends", 0), map[string]string{
		"once": "ok", "within the dial": "ok", "after it": "EPERM", "young": "ok", "old": "EPERM",
	})
}

// TestRootLeaseFamilies: what holds of IPv4 holds of IPv6, for a connect and for a
// datagram without one.
func TestRootLeaseFamilies(t *testing.T) {
	want := map[string]string{}
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		want[network+" without"], want[network+" of another address"], want[network+" with"] = "EPERM", "EPERM", "ok"
	}
	for _, network := range []string{"udp4", "udp6"} {
		want[network+" sends without"], want[network+" sends with"] = "EPERM", "ok"
	}
	is(t, run(t, newHouse(t), ebpf.Enforce, "families", 0), want)
}

// TestRootDeadDaemonsTables: a flow that cannot be counted does not happen and one that
// cannot be cut is an error; a daemon that dies with every table full leaves the next
// one none of it.
func TestRootDeadDaemonsTables(t *testing.T) {
	daemon := guarded(t, newHouse(t), ebpf.Enforce)
	is(t, daemon("fill", 0), map[string]string{"one flow more": "EPERM", "one less": "true ok", "one cut more": "the flow cannot be cut", "one lease more": "full"})
	is(t, daemon("again", 0), map[string]string{"strays": "0 <nil>", "connect": "ok", "cut": "<nil>"})
}
