// Package flow matches what the kernel saw leave with what the door let out.
//
// Laws, each with its test:
//
//   - A flow belongs to the one call that its lease was taken for; what belongs to none
//     is a violation, and a violation is an alarm (TestReconciled).
//   - A flood is one line with a count, and no more alarms than one a minute for each
//     line (TestFloodIsOneLine).
//   - Nothing grows without a bound (TestBounded).
//
// It knows causes, addresses and counts. It must not know kernels, tables or policy.
package flow

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/getmonroe/monroe/host"
)

// Limits of what is remembered.
const (
	MaxFlows      = 1024 // that have ended
	MaxViolations = 256  // different ones; the rest is counted in one line
	again         = time.Minute
)

// A Flow is one connection.
type Flow struct {
	Cookie uint64
	host.Cause
	Purpose      string // instead of a cause: store or keys, which the operator named
	To           netip.AddrPort
	Proto        string
	BytesOut     int64 // in packets, headers included
	BytesIn      int64
	Began, Ended time.Time // Ended is zero while it is open
}

// Resolver is by whom a violation is that looks like Go's resolver: denied, as any other,
// and no alarm. Addresses are left out, or names of many addresses would fill the list.
const Resolver = "resolver"

// A Violation is an attempt or a flow without a call.
type Violation struct {
	By      string // daemon or worker; doctor or Resolver for what is no alarm
	Hook    string // where the kernel met it; "flow" for one that nobody took a lease for
	To      netip.AddrPort
	Proto   string
	Denied  bool // false: it passed
	PID     int  // of the last one, 0 where the kernel cannot tell
	Bytes   int64
	Count   int64
	First   time.Time
	Last    time.Time
	alarmed time.Time
}

type key struct {
	by, hook, proto string
	to              netip.AddrPort
	denied          bool
}

// An Alarm is what is written down: a violation, and the calls under way, one of which
// may have caused it.
type Alarm struct {
	Violation
	Suspects []host.Cause
}

// Ledger is safe for concurrent use.
type Ledger struct {
	now func() time.Time

	mu         sync.Mutex
	alarm      func(Alarm)
	waiting    []Alarm // until there is somebody to tell
	open       map[uint64]*Flow
	ended      []Flow
	matched    int64
	violations map[key]*Violation
	looks      int       // examinations under way
	looked     time.Time // when the last one ended
}

// New returns an empty ledger.
func New(now func() time.Time) *Ledger {
	return &Ledger{now: now, open: map[uint64]*Flow{}, violations: map[key]*Violation{}}
}

// OnAlarm sets who is told, and tells of what has happened so far. It is called on the
// goroutine that reported and must not block for long.
func (l *Ledger) OnAlarm(f func(Alarm)) {
	l.mu.Lock()
	l.alarm = f
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, a := range waiting {
		f(a)
	}
}

// Begin notes a socket that was given a lease. purpose is empty for a call, which the
// context then names: false means that it names none, and there must be no lease.
func (l *Ledger) Begin(ctx context.Context, purpose string, cookie uint64, proto string, to netip.AddrPort) bool {
	cause, ok := host.CauseOf(ctx)
	if purpose == "" && (!ok || cause.Run == "") {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[cookie] = &Flow{Cookie: cookie, Cause: cause, Purpose: purpose, Proto: proto, To: to, Began: l.now()}
	return true
}

// End notes that a socket is closed. saw is false if the kernel let nothing pass.
func (l *Ledger) End(cookie uint64, saw bool, out, in int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.open[cookie]
	if f == nil {
		return
	}
	delete(l.open, cookie)
	if !saw {
		return
	}
	f.BytesOut, f.BytesIn, f.Ended = out, in, l.now()
	l.matched++
	if len(l.ended) == MaxFlows {
		l.ended = slices.Delete(l.ended, 0, 1)
	}
	l.ended = append(l.ended, *f)
}

// Looking says that the daemon tries its own walls until done is called: what is met
// meanwhile on this machine alone is noted as by doctor, and no alarm.
func (l *Ledger) Looking() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looks++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.looks--
		l.looked = l.now()
	}
}

// trailing is how long reports of an examination may be under way after it.
const trailing = time.Second

// Violated notes an attempt or a flow without a call.
func (l *Ledger) Violated(v Violation) {
	now := l.now()
	l.mu.Lock()
	own := (l.looks > 0 || now.Sub(l.looked) < trailing) && (!v.To.IsValid() || v.To.Addr().IsLoopback())
	if own {
		v.By, v.To, v.PID = "doctor", netip.AddrPort{}, 0
	}
	if v.By == Resolver {
		v.To = netip.AddrPort{}
	}
	k := key{v.By, v.Hook, v.Proto, v.To, v.Denied}
	have := l.violations[k]
	if have == nil && len(l.violations) >= MaxViolations {
		k = key{by: v.By, hook: "more", denied: v.Denied}
		have = l.violations[k]
		v.Hook, v.To, v.Proto = "more", netip.AddrPort{}, ""
	}
	if have == nil {
		v.Count, v.First = 0, now
		have = &v
		l.violations[k] = have
	} else {
		have.Bytes += v.Bytes
	}
	have.Count++
	have.Last, have.PID = now, v.PID
	if own || v.By == Resolver || now.Sub(have.alarmed) < again && !have.alarmed.IsZero() {
		l.mu.Unlock()
		return
	}
	have.alarmed = now
	a := Alarm{Violation: *have}
	for _, f := range l.open {
		if f.Run != "" && !slices.Contains(a.Suspects, f.Cause) {
			a.Suspects = append(a.Suspects, f.Cause)
		}
	}
	tell := l.alarm
	if tell == nil {
		l.waiting = append(l.waiting, a)
	}
	l.mu.Unlock()
	if tell != nil {
		tell(a)
	}
}

// View is what is known, the newest last.
type View struct {
	Open, Ended []Flow
	Matched     int64 // flows that belonged to a call or a purpose, since the start
	Violations  []Violation
}

// View returns a copy.
func (l *Ledger) View() (v View) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.open {
		v.Open = append(v.Open, *f)
	}
	slices.SortFunc(v.Open, func(a, b Flow) int { return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Cookie, b.Cookie)) })
	v.Ended, v.Matched = slices.Clone(l.ended), l.matched
	for _, x := range slices.Collect(maps.Values(l.violations)) {
		v.Violations = append(v.Violations, *x)
	}
	slices.SortFunc(v.Violations, func(a, b Violation) int { return cmp.Or(a.Last.Compare(b.Last), cmp.Compare(a.Hook, b.Hook)) })
	return v
}
