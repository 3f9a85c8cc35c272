// Package ebpf stands programs in the kernel behind the other walls: in the control
// group above all workers there is no network (layer L4), and in the daemon's own only
// the socket that holds a lease connects, and only where the lease says (layer L5).
//
// Laws, each with its test:
//
//   - A worker's group has no IP: no way of connecting, sending or binding is left. What
//     these programs do not see (packet, netlink, vsock, sockets made elsewhere) is
//     known by name (TestRootWorkerTable).
//   - A lease is one socket's, for one address, port and protocol, and for a moment: any
//     other attempt of the same process is denied and reported (TestRootLeases,
//     TestRootLeaseFamilies), and so is the same socket's when it is over (TestRootLeaseEnds).
//   - A flow that is cut sends no further packet (TestRootCut).
//   - Tables do not forget: a full one is an error for whoever asks (TestRootFullTable),
//     until the daemon that filled it is dead (TestRootDeadDaemonsTables).
//   - What a ring cannot hold is counted (TestRootFlood).
//   - The programs live as long as the control group, whoever dies (TestRootHolderDies).
//   - A process without capabilities can take leases and cannot detach anything
//     (TestRootWithoutCapabilities).
//
// Whoever can write the lease table can lease itself anything: L5 stops mistakes and
// stray libraries, not a daemon that an attacker holds. The outer wall is the network's.
//
// It knows control groups, sockets and addresses. It must not know runs, policy or why a
// connection is wanted.
package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

//go:generate ./generate.sh

// Mode is what becomes of a connection without a lease.
type Mode string

const (
	// Enforce denies and reports it.
	Enforce Mode = "enforce"
	// Audit reports it and lets it pass.
	Audit Mode = "audit"
)

// Limits of the tables in the kernel.
const (
	// MaxLeases is how many connections may be in the making at a time.
	MaxLeases = 1024
	// MaxFlows is how many connections may be open at a time.
	MaxFlows = 4096
	// Term is how long a lease holds at the most; a dial ends it sooner.
	Term = 15 * time.Second
)

// WhyNot is the environment variable by which monroe up tells a daemon that gets no tables
// why there are none.
const WhyNot = "MONROE_BACKSTOP_WHY"

var (
	// ErrUnsupported is wrapped where programs cannot be loaded or attached.
	ErrUnsupported = errors.New("kernel programs for control groups cannot be used here")
	// ErrTableFull is wrapped when MaxLeases connections are in the making.
	ErrTableFull = fmt.Errorf("the lease table is full: %d connections are being made", MaxLeases)
)

// An Attempt is one that no lease covered, or any of a worker.
type Attempt struct {
	Hook   string         // where it was met: connect4, sendmsg6, socket, packet, …
	To     netip.AddrPort // not valid where the hook has no address
	Proto  string         // tcp, udp or the number
	PID    int            // 0 where no process can be named
	Denied bool           // it is not in mode Audit
	Cookie uint64         // of the socket
}

// A Flow is what the kernel counted of one connection.
type Flow struct {
	Cookie  uint64
	To      netip.AddrPort
	Proto   string
	Out, In int64 // bytes of packets, headers included
	Leased  bool
}

// Counters grow only, and lose nothing in a flood.
type Counters struct {
	Allowed uint64 `json:"allowed"` // connections with a lease
	Denied  uint64 `json:"denied"`  // attempts without, also those that Audit let pass
	Lost    uint64 `json:"lost"`    // of these, reports that the ring had no room for
	Cut     uint64 `json:"cut"`     // packets of flows that were cut
}
