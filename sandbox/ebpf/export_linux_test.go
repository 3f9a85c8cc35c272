package ebpf

import (
	"errors"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// The columns of the table: what each set of hooks sees by itself.
var (
	ConnectAndSend = []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg}
	AndPackets     = append(slices.Clone(ConnectAndSend), ebpf.AttachCGroupInetEgress)
	SocketCreate   = []ebpf.AttachType{ebpf.AttachCGroupInetSockCreate}
)

// Keep takes all but some hooks away, to look at these alone.
func (g *Guard) Keep(kept []ebpf.AttachType) error {
	var errs []error
	g.hooks = slices.DeleteFunc(g.hooks, func(h hook) bool {
		if slices.Contains(kept, h.at) {
			return false
		}
		errs = append(errs, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(g.dir.Fd()), Program: h.prog, Attach: h.at}))
		return true
	})
	if len(g.hooks) != len(kept) {
		errs = append(errs, errors.New("not every hook was there"))
	}
	return errors.Join(errs...)
}

// Age makes a lease as old as if time had passed.
func (l *Lease) Age(d time.Duration) error {
	var v leasesLease
	if err := l.b.leases.Lookup(l.cookie, &v); err != nil {
		return err
	}
	v.ExpiresNs -= uint64(d)
	return l.b.leases.Put(l.cookie, v)
}
