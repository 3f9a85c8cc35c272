package flow_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/flow"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

var to = netip.MustParseAddrPort("192.0.2.1:443")

func TestReconciled(t *testing.T) {
	c := &clock{time.Unix(1_000_000, 0)}
	l := flow.New(c.now)
	var alarms []flow.Alarm
	call := host.Cause{Run: "run_1", Call: 3, Operation: "http.fetch"}
	ctx := host.WithCause(context.Background(), call)
	if !l.Begin(ctx, "", 1, "tcp", to) || !l.Begin(ctx, "", 2, "tcp", to) || !l.Begin(context.Background(), "store", 3, "tcp", to) {
		t.Error("a call or a purpose is no reason")
	}
	if l.Begin(context.Background(), "", 4, "tcp", to) {
		t.Error("nothing asked for it")
	}
	l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: to, Proto: "tcp", Denied: true}) // nobody listens yet
	l.OnAlarm(func(a flow.Alarm) { alarms = append(alarms, a) })
	if len(alarms) != 1 || len(alarms[0].Suspects) != 1 || alarms[0].Suspects[0] != call {
		t.Errorf("%+v", alarms)
	}
	l.End(1, true, 100, 200)
	l.End(1, true, 100, 200)
	l.End(2, false, 0, 0) // it never connected
	l.End(9, true, 1, 1)  // nobody's: the kernel's list of strays has it
	v := l.View()
	if v.Matched != 1 || len(v.Ended) != 1 || len(v.Open) != 1 || v.Open[0].Purpose != "store" || v.Ended[0].Cause != call || v.Ended[0].BytesOut != 100 || v.Ended[0].BytesIn != 200 {
		t.Errorf("%+v", v)
	}
}

func TestFloodIsOneLine(t *testing.T) {
	c := &clock{time.Unix(1_000_000, 0)}
	l := flow.New(c.now)
	var alarms []flow.Alarm
	l.OnAlarm(func(a flow.Alarm) { alarms = append(alarms, a) })
	for range 10_000 {
		l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: to, Proto: "tcp", Denied: true})
	}
	if v := l.View().Violations; len(v) != 1 || v[0].Count != 10_000 || len(alarms) != 1 || alarms[0].Count != 1 {
		t.Errorf("%+v, %d alarms", v, len(alarms))
	}
	c.t = c.t.Add(time.Minute)
	l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: to, Proto: "tcp", Denied: true})
	if len(alarms) != 2 || alarms[1].Count != 10_001 {
		t.Errorf("%+v", alarms)
	}
}

func TestBounded(t *testing.T) {
	c := &clock{time.Unix(1_000_000, 0)}
	l := flow.New(c.now)
	alarms := 0
	l.OnAlarm(func(flow.Alarm) { alarms++ })
	ctx := host.WithCause(context.Background(), host.Cause{Run: "run_1"})
	for i := range uint64(2 * flow.MaxFlows) {
		l.Begin(ctx, "", i, "tcp", to)
		l.End(i, true, int64(i), 0)
		l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: netip.AddrPortFrom(to.Addr(), uint16(i)), Proto: "tcp", Denied: true})
	}
	v := l.View()
	if len(v.Ended) != flow.MaxFlows || v.Ended[0].BytesOut != flow.MaxFlows || v.Matched != 2*flow.MaxFlows {
		t.Errorf("%d flows of %d", len(v.Ended), v.Matched)
	}
	if len(v.Violations) != flow.MaxViolations+1 || alarms != flow.MaxViolations+1 {
		t.Errorf("%d lines, %d alarms", len(v.Violations), alarms)
	}
}

// TestLooking: the daemon's own tries are no alarm; what goes beyond this machine
// meanwhile is.
func TestLooking(t *testing.T) {
	c := &clock{time.Unix(1_000_000, 0)}
	l := flow.New(c.now)
	alarms := 0
	l.OnAlarm(func(flow.Alarm) { alarms++ })
	here := netip.MustParseAddrPort("127.0.0.1:1")
	done := l.Looking()
	l.Violated(flow.Violation{By: "worker", Hook: "socket", Denied: true})
	l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: here, Denied: true})
	if alarms != 0 {
		t.Errorf("%d alarms", alarms)
	}
	l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: to, Denied: true})
	if alarms != 1 {
		t.Errorf("%d alarms", alarms)
	}
	done()
	c.t = c.t.Add(2 * time.Second)
	l.Violated(flow.Violation{By: "daemon", Hook: "connect4", To: here, Denied: true})
	if alarms != 2 {
		t.Errorf("%d alarms", alarms)
	}
}

// TestResolver: what a resolver does by the way is one line for all addresses, and no alarm.
func TestResolver(t *testing.T) {
	l := flow.New(func() time.Time { return time.Unix(1_000_000, 0) })
	l.OnAlarm(func(a flow.Alarm) { t.Errorf("%+v", a) })
	for i := range uint16(2) {
		l.Violated(flow.Violation{By: flow.Resolver, Hook: "connect4", To: netip.AddrPortFrom(to.Addr(), i), Proto: "udp", Denied: true})
	}
	if v := l.View().Violations; len(v) != 1 || v[0].Count != 2 || v[0].To.IsValid() {
		t.Errorf("%+v", v)
	}
}
