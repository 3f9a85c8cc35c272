package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// A Backstop is the unprivileged half: the tables, without a hold on any program. It
// is safe for concurrent use.
type Backstop struct {
	Mode Mode

	leases, revoked, flows, counters *ebpf.Map
	refused                          *ebpf.Map // counters of the workers' group
	rings                            []*ringbuf.Reader
	maps                             []*ebpf.Map

	mu   sync.Mutex
	mine map[uint64]struct{}  // cookies of leases that have not ended
	cut  map[uint64]time.Time // when
}

func open(maps []*ebpf.Map, mode Mode) (*Backstop, error) {
	b := &Backstop{
		Mode: mode, maps: maps, refused: maps[1], leases: maps[2], revoked: maps[3], flows: maps[4], counters: maps[6],
		mine: map[uint64]struct{}{}, cut: map[uint64]time.Time{},
	}
	for _, m := range []*ebpf.Map{maps[0], maps[5]} {
		r, err := ringbuf.NewReader(m)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.rings = append(b.rings, r)
	}
	for _, m := range []*ebpf.Map{b.leases, b.revoked, b.flows} {
		for {
			var cookie uint64
			if err := m.NextKey(nil, &cookie); errors.Is(err, ebpf.ErrKeyNotExist) {
				break
			} else if err != nil {
				return nil, errors.Join(err, b.Close())
			}
			if err := m.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil, errors.Join(err, b.Close())
			}
		}
	}
	return b, nil
}

// Close lets go of the tables and ends Watch. The programs stay.
func (b *Backstop) Close() error {
	var errs []error
	for _, r := range b.rings {
		errs = append(errs, r.Close())
	}
	for _, m := range b.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Watch tells of every attempt until Close: of the daemon's that no lease covers, and
// of all that workers make. The functions must not block for long: what the rings
// cannot hold meanwhile is counted and lost. A second call is a mistake.
func (b *Backstop) Watch(worker, daemon func(Attempt)) error {
	errs := make(chan error, 2)
	for i, tell := range []func(Attempt){worker, daemon} {
		go func() {
			for {
				r, err := b.rings[i].Read()
				if errors.Is(err, os.ErrClosed) {
					errs <- nil
					return
				}
				if err != nil {
					errs <- err
					return
				}
				if len(r.RawSample) >= int(unsafe.Sizeof(leasesEvent{})) {
					tell(attemptOf(*(*leasesEvent)(unsafe.Pointer(&r.RawSample[0]))))
				}
			}
		}()
	}
	return errors.Join(<-errs, <-errs)
}

func attemptOf(e leasesEvent) Attempt {
	a := Attempt{Proto: protocol(e.Proto), PID: int(e.Pid), Denied: e.Denied != 0, Cookie: e.Cookie, Hook: "hook " + strconv.Itoa(int(e.Hook))}
	if names := [...]string{"", "connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6", "socket", "packet"}; int(e.Hook) < len(names) {
		a.Hook = names[e.Hook]
	}
	if a.Hook != "socket" {
		a.To = addrPort(e.Ip, e.Port)
	}
	return a
}

// Workers counts what workers tried.
func (b *Backstop) Workers() (Counters, error) { return total(b.refused) }

// Daemon counts what this process's group did.
func (b *Backstop) Daemon() (Counters, error) { return total(b.counters) }

func total(m *ebpf.Map) (c Counters, err error) {
	for i, to := range []*uint64{&c.Allowed, &c.Denied, &c.Lost, &c.Cut} {
		var each []uint64
		if err := m.Lookup(uint32(i), &each); err != nil {
			return c, err
		}
		for _, v := range each {
			*to += v
		}
	}
	return c, nil
}

// A Lease is the leave of one socket to connect once, and then the record of its flow.
type Lease struct {
	b      *Backstop
	cookie uint64
}

// Take gives leave to a socket that is about to connect, for one address, port and
// protocol. The caller calls Connected when the dial is over, well or badly, and End
// when the socket is closed. A full table wraps ErrTableFull.
func (b *Backstop) Take(c syscall.RawConn, network string, to netip.AddrPort) (*Lease, error) {
	var cookie uint64
	var err error
	if ctl := c.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) }); ctl != nil || err != nil {
		return nil, fmt.Errorf("the socket has no cookie: %w", errors.Join(ctl, err))
	}
	l := leasesLease{Ip: words(to.Addr()), Port: to.Port()<<8 | to.Port()>>8}
	switch strings.TrimRight(network, "46") {
	case "tcp":
		l.Proto = unix.IPPROTO_TCP
	case "udp":
		l.Proto = unix.IPPROTO_UDP
	default:
		return nil, fmt.Errorf("there are no leases for %q", network)
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	l.ExpiresNs = now + uint64(Term)
	b.mu.Lock()
	b.mine[cookie] = struct{}{}
	b.mu.Unlock()
	if err := b.leases.Put(cookie, l); err != nil {
		b.forget(cookie)
		if errors.Is(err, unix.E2BIG) { // whose text speaks of a key
			return nil, ErrTableFull
		}
		return nil, err
	}
	return &Lease{b, cookie}, nil
}

func (b *Backstop) forget(cookie uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.mine, cookie)
}

// Cookie is the kernel's name of the socket, which it never uses twice.
func (l *Lease) Cookie() uint64 { return l.cookie }

// Connected ends the leave. An established flow goes on.
func (l *Lease) Connected() { _ = l.b.leases.Delete(l.cookie) } // it may have expired and been swept

// Cut lets no further packet of the flow leave, not even what was written before. The
// other side sees silence; writes on this side still succeed: close the connection.
func (l *Lease) Cut() error {
	l.Connected()
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for cookie, at := range b.cut { // the kernel gives up on a closed connection within minutes
		if time.Since(at) > 20*time.Minute {
			_ = b.revoked.Delete(cookie)
			delete(b.cut, cookie)
		}
	}
	if err := b.revoked.Put(l.cookie, uint8(1)); err != nil {
		return fmt.Errorf("the flow cannot be cut: %w", err)
	}
	b.cut[l.cookie] = time.Now()
	return nil
}

// End says what the kernel counted of the flow; ok is false if it saw none, because no
// connection came about.
func (l *Lease) End() (f Flow, ok bool) {
	l.Connected()
	f, ok = l.b.end(l.cookie)
	l.b.forget(l.cookie)
	return f, ok
}

func (b *Backstop) end(cookie uint64) (f Flow, ok bool) {
	var v leasesFlow
	if err := b.flows.Lookup(cookie, &v); err != nil || b.flows.Delete(cookie) != nil {
		return f, false
	}
	return flowOf(cookie, v), true
}

// Strays removes and returns the flows that no lease of this process stands for.
func (b *Backstop) Strays() (list []Flow, err error) {
	var cookie uint64
	var v leasesFlow
	var strays []uint64
	each := b.flows.Iterate()
	for each.Next(&cookie, &v) {
		b.mu.Lock()
		_, mine := b.mine[cookie] // put there before the kernel could see the flow
		b.mu.Unlock()
		if !mine {
			strays = append(strays, cookie)
		}
	}
	if err := each.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, err
	}
	for _, cookie := range strays {
		if f, ok := b.end(cookie); ok { // else its lease has ended meanwhile
			list = append(list, f)
		}
	}
	return list, nil
}

func flowOf(cookie uint64, f leasesFlow) Flow {
	return Flow{Cookie: cookie, To: addrPort(f.Ip, f.Port), Proto: protocol(f.Proto), Out: int64(f.Out), In: int64(f.In), Leased: f.Leased != 0}
}

func protocol(n uint16) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return strconv.Itoa(int(n))
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() (uint64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano()), err
}

// words is an address as the programs compare it: IPv4 as v4-mapped.
func words(a netip.Addr) [4]uint32 {
	b := a.As16()
	return *(*[4]uint32)(unsafe.Pointer(&b))
}

func addrPort(w [4]uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&w))).Unmap(), port)
}
