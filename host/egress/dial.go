package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Leaser gives leave to one connection. It is called on the socket that is about to
// connect; an error refuses the connection. ctx has the values of the call's context
// (host.CauseOf).
type Leaser interface {
	Lease(ctx context.Context, c syscall.RawConn, network string, to netip.AddrPort) (Lease, error)
}

// Lease is the leave of one socket, and then the watch over its connection.
type Lease interface {
	// Connected ends the leave: the dial is over, well or badly.
	Connected()
	// Cut stops every further packet of the connection.
	Cut() error
	// Closed ends the watch: no connection came about, or it is closed.
	Closed()
}

const (
	dialTimeout   = 10 * time.Second
	lookupTimeout = 5 * time.Second
	maxCandidates = 16
)

// ErrLease is wrapped when there is no leave to connect: too many connections are being
// made, or the kernel's tables cannot be written.
var ErrLease = errors.New("no egress lease")

// errResolve is wrapped when a name has no address.
var errResolve = errors.New("the name was not found")

// dialer is the only thing in the host that opens connections.
type dialer struct {
	resolver       Resolver
	leaser         Leaser
	own            func() []netip.Addr
	open           []Opening
	dials, lookups counter
}

func newDialer(c Config) *dialer {
	d := &dialer{resolver: c.Resolver, leaser: c.Leaser, own: c.OwnAddresses, open: slices.Clone(c.Open)}
	if d.own == nil {
		d.own = interfaceAddresses
	}
	if d.resolver == nil {
		// The system's name server is the operator's choice and may be private. Its
		// sockets need leave like any other.
		d.resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return d.connect(ctx, network, address, func(netip.AddrPort) error { return nil })
		}}
	}
	return d
}

// to opens a TCP connection for one operation. Trusted says that the operator
// wrote the address down for this very purpose.
func (d *dialer) to(ctx context.Context, operation, hostport string, trusted bool) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not host:port", ErrAddress, hostport)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%w: port %q", ErrAddress, portText)
	}
	check := func(netip.AddrPort) error { return nil }
	if !trusted && !slices.Contains(d.open, Opening{operation, hostport}) {
		own := d.own()
		check = func(to netip.AddrPort) error { return checkAddress(to.Addr(), own) }
	}
	candidates, err := d.candidates(ctx, host)
	if err != nil {
		return nil, err
	}
	// One bad candidate refuses the name: a name that is public and private at once
	// is an attack or a mistake.
	for _, a := range candidates {
		if err := check(netip.AddrPortFrom(a, uint16(port))); err != nil {
			return nil, err
		}
	}
	var last error
	for _, a := range candidates {
		d.dials.Add(1)
		conn, err := d.connect(ctx, "tcp", netip.AddrPortFrom(a, uint16(port)).String(), check)
		if err == nil {
			return conn, nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, ErrAddress) || errors.Is(err, ErrLease) {
			break
		}
	}
	return nil, last
}

func (d *dialer) candidates(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	d.lookups.Add(1)
	all, err := d.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("%w: %w", errResolve, errors.Join(err))
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all[:min(len(all), maxCandidates)], nil
}

// connect checks the address once more where it can no longer change, between
// socket and connect, and takes the lease there.
func (d *dialer) connect(ctx context.Context, network, address string, check func(netip.AddrPort) error) (net.Conn, error) {
	// A dial that falls back to another kind of socket asks twice; the last one connects.
	var leases []Lease
	nd := net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(ctx context.Context, network, address string, c syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("%w: %q", ErrAddress, address)
			}
			if err := check(to); err != nil || d.leaser == nil {
				return err
			}
			lease, err := d.leaser.Lease(ctx, c, network, to)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrLease, err)
			}
			leases = append(leases, lease)
			return nil
		},
	}
	conn, err := nd.DialContext(ctx, network, address)
	for i, lease := range leases {
		lease.Connected()
		if err != nil || i < len(leases)-1 {
			lease.Closed()
		}
	}
	if err != nil || len(leases) == 0 {
		return conn, err
	}
	l := &leased{Conn: conn, lease: leases[len(leases)-1]}
	if u, ok := conn.(*net.UDPConn); ok { // a resolver tells datagrams from a stream by the type
		return &datagrams{u, l}, nil
	}
	return l, nil
}

// leased is a connection that tells when it is closed.
type leased struct {
	net.Conn
	lease Lease
	once  sync.Once
}

func (c *leased) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.lease.Closed)
	return err
}

type datagrams struct {
	*net.UDPConn
	l *leased
}

func (c *datagrams) Close() error { return c.l.Close() }

// cut ends the connection at once: not even what was written before leaves.
func (c *leased) cut() error {
	err := c.lease.Cut()
	if t, ok := c.Conn.(*net.TCPConn); ok {
		err = errors.Join(err, t.SetLinger(0))
	}
	return errors.Join(err, c.Close())
}

// Dialer is the same dialer for what the operator's settings name and no call asks
// for: the store and the key service. Their names are resolved as any other.
func Dialer(l Leaser) func(ctx context.Context, network, hostport string) (net.Conn, error) {
	d := newDialer(Config{Leaser: l})
	return func(ctx context.Context, network, hostport string) (net.Conn, error) {
		if network == "unix" {
			return new(net.Dialer).DialContext(ctx, network, hostport)
		}
		return d.to(ctx, "", hostport, true)
	}
}

func interfaceAddresses() []netip.Addr {
	var out []netip.Addr
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // what is not public stays refused; only our own public addresses are not known
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// counted counts what crosses a connection, TLS and headers included.
type counted struct {
	net.Conn
	in, out *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	// Counted first: the answer can be here before Write returns.
	c.out.Add(int64(len(p)))
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n - len(p)))
	return n, err
}
