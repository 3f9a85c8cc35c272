package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/sandbox/cgroup"
	"github.com/getmonroe/monroe/sandbox/ebpf"
)

const (
	leaseRounds = 5
	leaseDials  = 200 // in a round
)

// leases is what a lease costs a connection over loopback: with the programs at this
// process's control group and a lease for each, and without either, by turns. Where the
// programs cannot be had it says so and measures nothing.
func (b *bench) leases(ctx context.Context) (err error) {
	tree, err := cgroup.Open()
	if err != nil {
		return unmeasured(err)
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	home := filepath.Dir(tree.Unified())
	daemon, workers, err := tree.House()
	if err != nil {
		return unmeasured(err)
	}
	// A socket counts for the group that it was made in, so this process goes there.
	if err := os.WriteFile(filepath.Join(daemon, "cgroup.procs"), []byte("0"), 0); err != nil {
		return unmeasured(err)
	}
	defer func() {
		err = errors.Join(err, os.WriteFile(filepath.Join(home, "cgroup.procs"), []byte("0"), 0))
	}()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	var with, without []time.Duration
	for range leaseRounds {
		took, err := dials(ctx, l.Addr().String(), nil)
		if err != nil {
			return err
		}
		without = append(without, took...)
		if took, err = leased(ctx, daemon, workers, l.Addr().String()); err != nil {
			return err
		}
		with = append(with, took...)
	}
	return b.report("connect_with_lease", time.Microsecond, with, peer{"the same without the programs, by turns", at(without, 50, time.Microsecond)}, 0, false)
}

func unmeasured(err error) error {
	fmt.Fprintln(os.Stderr, "ours: connections with a lease are not measured:", err)
	return nil
}

// leased attaches the programs for the time of a round.
func leased(ctx context.Context, daemon, workers, address string) (took []time.Duration, err error) {
	w, err := ebpf.DenyAll(workers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Detach(), w.Close()) }()
	d, err := ebpf.RequireLeases(daemon, ebpf.Enforce)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Detach(), d.Close()) }()
	stop, err := ebpf.Tables(w, d, ebpf.Enforce)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop.Close()) }()
	if c, err := new(net.Dialer).DialContext(ctx, "tcp4", address); err == nil {
		_ = c.Close()
		return nil, errors.New("a connection without a lease was made: nothing is enforced")
	}
	return dials(ctx, address, stop)
}

// dials connects again and again, each time with a lease if there is somebody to take
// it from.
func dials(ctx context.Context, address string, from *ebpf.Backstop) (took []time.Duration, err error) {
	for range leaseDials {
		var lease *ebpf.Lease
		d := net.Dialer{}
		if from != nil {
			d.ControlContext = func(_ context.Context, network, address string, c syscall.RawConn) error {
				to, err := netip.ParseAddrPort(address)
				if err == nil {
					lease, err = from.Take(c, network, to)
				}
				return err
			}
		}
		began := time.Now()
		c, err := d.DialContext(ctx, "tcp4", address)
		if err != nil {
			return nil, err
		}
		if lease != nil {
			lease.Connected()
		}
		took = append(took, time.Since(began))
		_ = c.Close()
		if lease != nil {
			lease.End()
		}
	}
	return took, nil
}
