package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// leases is L5. This process is the one that is walled in, so it tries by itself: what
// has no lease must be refused and counted, and its twin with a lease must pass.
func leases(ctx context.Context, b *ebpf.Backstop, l Layer) (Layer, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return l, err
	}
	defer listener.Close() //nolint:errcheck // the look is over
	to := netip.MustParseAddrPort(listener.Addr().String())
	other := netip.AddrPortFrom(to.Addr(), to.Port()^1)

	l.Why = "every connection needs a lease of its socket"
	conn, held, err := connect(ctx, b, "tcp4", to, to)
	if err != nil {
		l.Why = fmt.Sprintf("a connection with a lease failed: %v", err)
		return l, nil
	}
	defer held.End()
	defer conn.Close() //nolint:errcheck // the look is over
	far, err := listener.Accept()
	if err != nil {
		return l, err
	}
	defer far.Close() //nolint:errcheck // the look is over

	for _, x := range []struct {
		name, network string
		lease         netip.AddrPort
	}{
		{"a connection without a lease", "tcp4", netip.AddrPort{}},
		{"a datagram without a lease", "udp4", netip.AddrPort{}},
		{"a lease for another port", "tcp4", other},
	} {
		before, err := b.Daemon()
		if err != nil {
			return l, err
		}
		c, lease, err := connect(ctx, b, x.network, x.lease, to)
		if lease != nil {
			lease.End()
		}
		if err == nil {
			_ = c.Close() // it should not be there
		}
		after, counted := b.Daemon()
		if counted != nil {
			return l, counted
		}
		l.attempt(x.name, errors.Is(err, unix.EPERM), after.Denied > before.Denied)
	}

	before, err := b.Daemon()
	if err != nil {
		return l, err
	}
	if err := held.Cut(); err != nil {
		return l, err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return l, err
	}
	if err := far.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return l, err
	}
	n, _ := far.Read(make([]byte, 1)) // nothing, in time or late
	after, err := b.Daemon()
	if err != nil {
		return l, err
	}
	l.attempt("a packet of a connection that was cut", n == 0, after.Cut > before.Cut)

	l.Enforced = l.Denied == l.Attempts && l.Reported == l.Attempts
	if b.Mode == ebpf.Audit {
		l.Enforced, l.Why = false, "mode audit: what has no lease is reported and passes"
	}
	return l, nil
}

// connect dials with a lease, or without where the lease is for nothing.
func connect(ctx context.Context, b *ebpf.Backstop, network string, lease, to netip.AddrPort) (net.Conn, *ebpf.Lease, error) {
	var l *ebpf.Lease
	d := net.Dialer{Control: func(_, network string, c syscall.RawConn) (err error) {
		if lease.IsValid() {
			l, err = b.Take(c, "tcp", lease)
		}
		return err
	}}
	c, err := d.DialContext(ctx, network, net.JoinHostPort(to.Addr().String(), strconv.Itoa(int(to.Port()))))
	if l != nil {
		l.Connected()
	}
	return c, l, err
}
