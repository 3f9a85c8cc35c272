package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
)

func TestAReadIsDecidedPerformedAndWitnessed(t *testing.T) {
	h := newHouse(t)
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	h.performed(1)
	leaves := h.leaves()
	if len(leaves) != 1 || leaves[0].Kind != audit.KindCall || leaves[0].Rule != "grant:grant_notes.read" || leaves[0].Policy != 3 || leaves[0].BytesIn != 20 {
		t.Fatalf("%+v", leaves)
	}
	if h.s.Held.Readers.IsEveryone() || h.s.Held.Integrity != label.Internal || !slices.Contains(h.s.Held.Origins, "x:a") {
		t.Errorf("the run holds %v", h.s.Held)
	}
}

// What was frozen when a person was asked is what is sent, whatever a connector
// would plan today.
func TestFrozenBytesAreNeverRebuilt(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.crash()
	h.now = h.now.Add(time.Hour)
	plans := h.world.plans
	h.ok(1, raw)
	if h.world.plans != plans {
		t.Error("the call was planned again")
	}
}

func TestReplayConsultsNoPolicy(t *testing.T) {
	h := newHouse(t)
	raws := [][]byte{use(abi.OpToolCall, "notes.read", "a", 0), use(abi.OpToolCall, "notes.read", "../a", 0), request(abi.OpTimeNow, "{}"), []byte("{"), request(abi.OpKVPut, `{"key":"k","value":1}`)}
	var want [][]byte
	for i, raw := range raws {
		r, err := h.door.Do(t.Context(), h.s, uint32(i+1), raw)
		h.must(err)
		want = append(want, r.Bytes)
	}
	h.must(h.s.Flush(t.Context(), h.store))
	h.crash()
	h.rules.Policy, h.plays = &grant.Policy{}, 0 // the workspace took everything back
	plans := h.world.plans
	for i, raw := range raws {
		r, err := h.door.Do(t.Context(), h.s, uint32(i+1), raw)
		h.must(err)
		if !bytes.Equal(r.Bytes, want[i]) {
			t.Errorf("call %d: %s became %s", i+1, want[i], r.Bytes)
		}
	}
	if h.plays != 0 || h.world.plans != plans {
		t.Errorf("replay asked for the rules %d times and planned %d", h.plays, h.world.plans-plans)
	}
	h.performed(1)
	if h.s.Held.Readers.IsEveryone() {
		t.Error("replay lost a label")
	}
	h.refused(6, raws[0], abi.Scope) // live again: today's rules
}

func TestAnotherRequestThanBeforeDiverges(t *testing.T) {
	h := newHouse(t)
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	h.waits(2, use(abi.OpSend, "mail.send", "bob", 0), host.WaitApproval)
	h.answer(2, true)
	h.crash()
	for name, try := range map[string]struct {
		n   uint32
		raw []byte
	}{
		"answered": {1, use(abi.OpToolCall, "notes.read", "b", 0)}, "waiting": {2, use(abi.OpSend, "mail.send", "eve", 0)},
		"gap": {4, use(abi.OpToolCall, "notes.read", "a", 0)}, "zero": {0, use(abi.OpToolCall, "notes.read", "a", 0)},
	} {
		if r, err := h.door.Do(t.Context(), h.s, try.n, try.raw); !errors.Is(err, journal.ErrDiverged) {
			t.Errorf("%s: %s, %v", name, r.Bytes, err)
		}
	}
	h.performed(1)
}

func TestRefusalsHaveTheirCodesAndLeaveALeafEach(t *testing.T) {
	h := newHouse(t)
	n := uint32(0)
	for _, c := range []struct {
		raw  string
		code abi.Code
	}{
		{``, abi.Invalid},
		{`{`, abi.Invalid},
		{`[]`, abi.Invalid},
		{`{"op":"time.now"}`, abi.Invalid},
		{`{"op":"time.now","v":1.5}`, abi.Invalid},
		{`{"Op":"time.now","v":1}`, abi.Invalid},
		{`{"op":"time.now","v":1,"args":[]}`, abi.Invalid},
		{`{"op":"time.now","v":1,"args":{"x":1}}`, abi.Invalid},
		{`{"op":"time.now","v":2}`, abi.Unsupported},
		{`{"op":"no.such","v":1}`, abi.Unsupported},
		{`{"op":"run.continue","v":1}`, abi.Invalid},
		{`{"op":"batch","v":1}`, abi.Invalid},
		{`{"op":"batch","v":1,"args":{"requests":[{"op":"batch","v":1}]}}`, abi.Invalid},
		{`{"op":"run.continue","v":1}`, abi.Invalid},
		{`{"op":"llm.chat","v":1}`, abi.Unsupported},
		{string(use(abi.OpToolCall, "no.such", "a", 0)), abi.NotFound},
		{string(use(abi.OpToolCall, "mail.send", "a", 0)), abi.Invalid},
		{string(use(abi.OpSend, "notes.read", "a", 0)), abi.Invalid},
		{string(request(abi.OpToolCall, `{"operation":"notes.read","args":{"To":"a"}}`)), abi.Invalid},
		{string(use(abi.OpToolCall, "notes.read", "../a", 0)), abi.Scope},
		{string(request(abi.OpRandom, `{"n":0}`)), abi.Invalid},
		{string(request(abi.OpRandom, `{"n":1025}`)), abi.Invalid},
		{string(request(abi.OpKVGet, `{"key":""}`)), abi.Invalid},
		{string(request(abi.OpKVPut, `{"key":"a"}`)), abi.Invalid},
		{string(request(abi.OpProgress, `{"text":"x","percent":101}`)), abi.Invalid},
		{string(request(abi.OpLog, `{"text":"x","level":"fatal"}`)), abi.Invalid},
		{string(request(abi.OpTimeSleep, `{"ms":-1}`)), abi.Invalid},
		{string(request(abi.OpTimeSleep, `{"ms":9223372036854775}`)), abi.Invalid},
	} {
		n++
		t.Run(c.raw, func(t *testing.T) {
			h.t = t
			if d := h.refused(n, []byte(c.raw), c.code); d.Effect != abi.OutcomeNone {
				t.Errorf("%+v", d)
			}
		})
	}
	h.t = t
	h.performed(0)
	if leaves := h.leaves(); len(leaves) != int(n) {
		t.Errorf("%d leaves of %d calls", len(leaves), n)
	}
	if b := h.books(); b.Denials != int(n) {
		t.Errorf("%+v", b)
	}
	for _, l := range h.leaves() {
		if text, _ := json.Marshal(l); strings.Contains(string(text), "no.such") {
			t.Errorf("text of a guest is in the log: %s", text)
		}
	}
}

// Law 1: every call leaves a leaf, those of the host's own ops included.
func TestEveryCallLeavesALeaf(t *testing.T) {
	h := newHouse(t)
	calls := [][]byte{
		request(abi.OpDescribe, "{}"), request(abi.OpTimeNow, "{}"), request(abi.OpRandom, `{"n":8}`), request(abi.OpProgress, `{"text":"x"}`),
		request(abi.OpLog, `{"text":"x","level":"info"}`), request(abi.OpToolList, "{}"), request(abi.OpKVPut, `{"key":"k","value":{"a":1}}`),
		request(abi.OpKVGet, `{"key":"k"}`), request(abi.OpKVList, `{}`), request(abi.OpKVDelete, `{"key":"k"}`), request(abi.OpTimeSleep, `{"ms":0}`),
		use(abi.OpToolCall, "notes.read", "a", 0), use(abi.OpSend, "model.ask", "a", 10),
	}
	for i, raw := range calls {
		h.ok(uint32(i+1), raw)
	}
	seen := map[uint32]int{}
	for _, l := range h.leaves() {
		if l.Kind != audit.KindDecision {
			seen[l.Call]++
		}
		if l.Chain == "" || l.Seq == 0 {
			t.Errorf("leaf of call %d does not witness the journal", l.Call)
		}
	}
	for i := range calls {
		if seen[uint32(i+1)] != 1 {
			t.Errorf("call %d has %d leaves", i+1, seen[uint32(i+1)])
		}
	}
	if b := h.books(); b.Calls != len(calls) || b.Effects != 1 || b.Cost != 5 {
		t.Errorf("%+v", b)
	}
}

// Many calls without an effect share commits, and none is forgotten. What waits is
// bounded in number and, for large ones, in bytes.
func TestValuesInMemoryAreBoundedAndFlushed(t *testing.T) {
	large := request(abi.OpTimeNow, fmt.Sprintf(`{},"unknown":%q`, strings.Repeat("x", abi.MaxRequest/2)))
	for _, c := range []struct {
		name         string
		raw          []byte
		calls, waits int // at most
	}{
		{"small", request(abi.OpTimeNow, "{}"), 600, 256},
		{"large", large, 10, 3},
	} {
		h, most := newHouse(t), 0
		for n := range c.calls {
			h.ok(uint32(n+1), c.raw)
			records, bytes := h.s.Log.Pending()
			if most = max(most, records); records > c.waits || bytes > 1<<20+len(c.raw)+1024 {
				t.Fatalf("%s: %d records of %d bytes wait", c.name, records, bytes)
			}
		}
		if most < 2 {
			t.Errorf("%s: none shares a commit", c.name)
		}
		if b := h.books(); b.Calls != c.calls {
			t.Errorf("%s: %+v", c.name, b)
		}
	}
}

func TestAKeyedEffectIsPerformedAgainWithTheSameKeyAndWithoutAskingAgain(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "docs.write", "bob", 40)
	h.lose(1, raw)
	h.waits(1, raw, host.WaitTimer) // a host that was only paused may still be sending
	h.later()
	h.resume()
	h.dies(1, raw)
	h.later()
	h.ok(1, raw)
	h.performed(3)
	for _, s := range h.world.performed {
		if s.key == "" || s != h.world.performed[0] {
			t.Errorf("%v, first %v", s, h.world.performed[0])
		}
	}
	if got := h.totals(); got.Settled != 40+40+20 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.read(func(tx *store.Tx) error {
		list, err := tx.Approvals("")
		if len(list) != 1 {
			t.Errorf("%d approvals", len(list))
		}
		return err
	})
	if b := h.books(); b.Effects != 1 || b.InDoubt() != 0 {
		t.Errorf("%+v", b)
	}
}

func TestAReadIsPerformedAgain(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpToolCall, "notes.read", "a", 0)
	h.dies(1, raw)
	h.ok(1, raw)
	h.performed(2)
	raw = use(abi.OpSend, "model.ask", "a", 40)
	h.dies(2, raw)
	h.ok(2, raw)
	h.performed(4)
	h.books()
}

func TestSleepParksTheRunAndEnds(t *testing.T) {
	h := newHouse(t)
	raw := request(abi.OpTimeSleep, `{"ms":60000}`)
	asked := h.now
	h.waits(1, raw, host.WaitTimer)
	h.now = h.now.Add(59 * time.Second)
	h.crash()
	h.waits(1, raw, host.WaitTimer) // counted from the first asking
	h.read(func(tx *store.Tx) error {
		r, err := tx.Run(h.run)
		if !r.WakeAt.Equal(asked.Add(time.Minute)) {
			t.Errorf("wakes at %s, asked at %s", r.WakeAt, asked)
		}
		return err
	})
	h.now = h.now.Add(time.Second)
	h.crash()
	h.ok(1, raw)
	h.crash()
	h.ok(1, raw)
	h.ok(2, request(abi.OpTimeNow, "{}"))
	if b := h.books(); b.Calls != 2 {
		t.Errorf("%+v", b)
	}
}

// Law 2: nothing is performed, and for an effect nothing is even recorded as
// attempted, when the store cannot write.
func TestNoRecordNoEffect(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.must(h.store.Close())
	if r, err := h.door.Do(t.Context(), h.s, 1, raw); err == nil {
		t.Errorf("%s", r.Bytes)
	}
	h.performed(0)
	h.open()
	h.resume()
	h.ok(1, raw)
	h.performed(1)
	h.books()
}

// Two daemons' sessions of one run cannot both write.
func TestASecondSessionOfARunIsFenced(t *testing.T) {
	h := newHouse(t)
	first := h.s
	h.resume()
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	if _, err := h.door.Do(t.Context(), first, 1, use(abi.OpSend, "model.ask", "b", 10)); err == nil {
		t.Error("a session that fell behind wrote")
	}
	h.performed(1)
}

func TestAnswersThatAreTooLargeAreRefused(t *testing.T) {
	h := newHouse(t)
	h.world.answer = func(sent) broker.Outcome {
		return broker.Outcome{Result: connectors.Result{Reply: strings.Repeat("x", abi.MaxReply)}}
	}
	h.refused(1, use(abi.OpToolCall, "notes.read", "a", 0), abi.TooLarge)
	h.performed(1)
}

// scanner is ours: it holds back what one call says and labels every answer.
type scanner struct{ deny bool }

func (x *scanner) Out(context.Context, connectors.Plan) (label.Set, *abi.Denial) {
	if x.deny {
		return label.Clean(), abi.Deny(abi.Scan, "a key was found", "")
	}
	return label.Set{Integrity: label.User, Readers: label.Everyone(), PII: true}, nil
}

func (x *scanner) In(context.Context, []byte) label.Set {
	return label.Set{Integrity: label.External, Readers: label.Everyone()}
}

func TestScannersHoldBackAndLabel(t *testing.T) {
	h := newHouse(t)
	x := &scanner{deny: true}
	h.door.Scanner = x
	h.refused(1, use(abi.OpToolCall, "notes.read", "a", 0), abi.Scan)
	h.performed(0)
	x.deny = false
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
	if !h.s.Held.PII || h.s.Held.Integrity != label.External {
		t.Errorf("the run holds %v", h.s.Held)
	}
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(3, raw, host.WaitApproval)
	h.answer(3, true)
	h.crash()
	h.door.Scanner = x
	x.deny = true // a scanner that learned something holds back what was approved
	h.refused(3, raw, abi.Scan)
	h.performed(1)
	h.books()
}

func TestASecretNeverLeaves(t *testing.T) {
	h := newHouse(t)
	h.s.Held.Secret = true
	h.refused(1, use(abi.OpSend, "mail.send", "bob", 0), abi.Label)
	h.refused(2, use(abi.OpToolCall, "notes.read", "a", 0), abi.Label)
	h.ok(3, use(abi.OpToolCall, "notes.read", "home", 0))
	h.performed(1)
	h.books()
}

// A refusal of a second attempt must not say that nothing happened: the first may
// have.
func TestARefusalAfterALostAttemptSaysThatItMayHaveHappened(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "docs.write", "bob", 40)
	h.lose(1, raw)
	h.later()
	policy := h.rules.Policy
	var err error
	h.rules.Policy, err = grant.Compile(4, nil, nil, nil)
	h.must(err)
	if d := h.refused(1, raw, abi.Scope); d.Effect != abi.OutcomeMay {
		t.Errorf("%+v", d)
	}
	h.performed(1)

	h.rules.Policy = policy
	h.start(500)
	h.lose(1, raw)
	h.later()
	h.world.answer = func(sent) broker.Outcome { return broker.Outcome{Denial: abi.Deny(abi.Upstream, "down", "")} }
	if d := h.refused(1, raw, abi.Upstream); d.Effect != abi.OutcomeMay {
		t.Errorf("%+v", d)
	}
	if got := h.totals(); got.Settled != 40 || got.Reserved != 0 { // the second attempt sent nothing
		t.Errorf("%+v", got)
	}
	h.books()

	// A read has no effect to be in doubt.
	h = newHouse(t)
	raw = use(abi.OpSend, "model.ask", "a", 40)
	h.dies(1, raw)
	h.world.answer = func(sent) broker.Outcome { return broker.Outcome{Denial: abi.Deny(abi.Upstream, "down", "")} }
	if d := h.refused(1, raw, abi.Upstream); d.Effect != abi.OutcomeNone {
		t.Errorf("%+v", d)
	}
}
