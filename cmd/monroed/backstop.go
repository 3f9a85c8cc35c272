package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/egress"
	"github.com/getmonroe/monroe/host/flow"
	"github.com/getmonroe/monroe/sandbox/ebpf"
)

// backstop joins the kernel's programs, as far as monroe up handed over their tables,
// and the ledger of flows. A nil one gives every leave and knows nothing.
type backstop struct {
	b      *ebpf.Backstop
	ledger *flow.Ledger
	log    *slog.Logger
	ended  chan error
}

// stand takes over what was handed. It refuses to go on if a connection without a lease
// passes where it must not: then this process is not where the programs are.
func stand(ctx context.Context, log *slog.Logger) (*backstop, error) {
	b, err := ebpf.Inherited()
	if b == nil || err != nil {
		return nil, err
	}
	s := &backstop{b: b, ledger: flow.New(time.Now), log: log, ended: make(chan error, 1)}
	if b.Mode == ebpf.Enforce {
		defer s.ledger.Looking()()
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp4", "127.0.0.1:9") // which sends nothing
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.EPERM) {
			return nil, errors.Join(fmt.Errorf("this process is not in the control group that the egress programs are attached to: a connection without a lease came to %w", err), b.Close())
		}
	}
	go func() { s.ended <- b.Watch(s.met("worker"), s.met("daemon")) }()
	return s, nil
}

// Close lets go of the tables.
func (s *backstop) Close() error {
	if s == nil {
		return nil
	}
	return errors.Join(s.b.Close(), <-s.ended)
}

// met takes in attempts without a lease.
func (s *backstop) met(by string) func(ebpf.Attempt) {
	return func(a ebpf.Attempt) {
		by := by
		if by == "daemon" && a.Proto == "udp" && strings.HasPrefix(a.Hook, "connect") && a.To.Port() == 9 && a.Denied {
			by = flow.Resolver // Go's, which asks the routing table for its own address by a connect that sends nothing
		}
		s.ledger.Violated(flow.Violation{By: by, Hook: a.Hook, To: a.To, Proto: a.Proto, Denied: a.Denied, PID: a.PID})
	}
}

// sweep looks for flows that nobody took a lease for.
func (s *backstop) sweep() error {
	if s == nil {
		return nil
	}
	strays, err := s.b.Strays()
	for _, f := range strays {
		s.ledger.Violated(flow.Violation{By: "daemon", Hook: "flow", To: f.To, Proto: f.Proto, Bytes: f.Out + f.In})
	}
	return err
}

// dialer is for what the operator's settings name: purpose says what.
func (s *backstop) dialer(purpose string) func(context.Context, string, string) (net.Conn, error) {
	if s == nil {
		return nil
	}
	return egress.Dialer(leaser{s, purpose})
}

// leaser gives leave for calls, or for one purpose of the daemon's own.
type leaser struct {
	s       *backstop
	purpose string
}

var errNoCall = errors.New("a connection that no admitted call asked for")

func (l leaser) Lease(ctx context.Context, c syscall.RawConn, network string, to netip.AddrPort) (egress.Lease, error) {
	taken, err := l.s.b.Take(c, network, to)
	if err != nil {
		return nil, err
	}
	if !l.s.ledger.Begin(ctx, l.purpose, taken.Cookie(), strings.TrimRight(network, "46"), to) {
		taken.End()
		return nil, errNoCall
	}
	return &lease{taken, l.s}, nil
}

type lease struct {
	*ebpf.Lease
	s *backstop
}

func (l *lease) Closed() {
	f, saw := l.End()
	l.s.ledger.End(l.Cookie(), saw, f.Out, f.In)
}

// view is what the API shows.
func (s *backstop) view() (v api.EgressView, err error) {
	v.Flows, v.Violations = []api.EgressFlow{}, []api.EgressViolation{}
	if s == nil {
		v.Mode = "off"
		return v, nil
	}
	v.Mode = string(s.b.Mode)
	daemon, err := s.b.Daemon()
	if err != nil {
		return v, err
	}
	workers, err := s.b.Workers()
	if err != nil {
		return v, err
	}
	v.Daemon, v.Workers = api.EgressCounters(daemon), api.EgressCounters(workers)
	all := s.ledger.View()
	v.Matched = all.Matched
	for _, f := range append(all.Ended, all.Open...) {
		x := api.EgressFlow{Cause: f.Cause, Purpose: f.Purpose, To: f.To.String(), Proto: f.Proto, BytesOut: f.BytesOut, BytesIn: f.BytesIn, Began: f.Began.UTC()}
		if !f.Ended.IsZero() {
			at := f.Ended.UTC()
			x.Ended = &at
		}
		v.Flows = append(v.Flows, x)
	}
	for _, w := range all.Violations {
		x := api.EgressViolation{By: w.By, Hook: w.Hook, Proto: w.Proto, Denied: w.Denied, Bytes: w.Bytes, Count: w.Count, First: w.First.UTC(), Last: w.Last.UTC(), PID: w.PID}
		if w.To.IsValid() {
			x.To = w.To.String()
		}
		v.Violations = append(v.Violations, x)
	}
	return v, nil
}
