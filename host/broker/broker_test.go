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
	"github.com/getmonroe/monroe/host/approval"
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

func TestAnEffectWaitsForAPersonAndIsPerformedOnce(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.performed(0)
	h.crash()
	h.waits(1, raw, host.WaitApproval) // still the same question
	h.answer(1, true)
	h.crash()
	// Law 3: the attempt and the decision are durable before the first byte.
	h.world.before = func(connectors.Call) {
		h.read(func(tx *store.Tx) error {
			recs, err := tx.Records(h.run)
			if len(recs) == 0 || recs[len(recs)-1].Kind != string(journal.Attempt) {
				t.Error("no durable attempt")
			}
			n, e := tx.LeafCount()
			if n != 3 { // asked, answered, allowed
				t.Errorf("%d leaves before the effect", n)
			}
			return errors.Join(err, e)
		})
	}
	first, err := h.door.Do(t.Context(), h.s, 1, raw)
	h.must(err)
	h.performed(1)
	plans := h.world.plans
	for range 3 {
		h.crash()
		again, err := h.door.Do(t.Context(), h.s, 1, raw)
		h.must(err)
		if !bytes.Equal(first.Bytes, again.Bytes) || !first.At.Equal(again.At) {
			t.Fatalf("%s became %s", first.Bytes, again.Bytes)
		}
	}
	h.performed(1)
	if h.world.plans != plans {
		t.Error("what was frozen was planned again")
	}
	if a := h.approval(1); a.State != host.ApprovalUsed {
		t.Error(a.State)
	}
	if b := h.books(); b.Effects != 1 || b.Approvals != 1 || b.InDoubt() != 0 {
		t.Errorf("%+v", b)
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

func TestRejectionIsAnAnswerAndSticks(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	for range approval.StickyRejections {
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, false)
		h.resume()
		h.refused(1, raw, abi.ApprovalRejected)
		h.start(500) // also across runs
	}
	h.refused(1, raw, abi.ApprovalRejected)
	h.waits(2, use(abi.OpSend, "mail.send", "carol", 0), host.WaitApproval) // another destination may be asked for
	h.answer(2, true)
	h.resume()
	h.ok(2, use(abi.OpSend, "mail.send", "carol", 0))
	h.performed(1)
	h.books()
}

func TestAYesForgivesEarlierNoes(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	for i := range approval.StickyRejections + 2 {
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, i == 1)
		h.start(500)
	}
	h.refused(1, raw, abi.ApprovalRejected)
}

func TestAnApprovalExpires(t *testing.T) {
	for name, early := range map[string]bool{"nobody answered": false, "answered and used too late": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			raw := use(abi.OpSend, "mail.send", "bob", 0)
			h.waits(1, raw, host.WaitApproval)
			if early {
				h.answer(1, true)
			}
			h.now = h.now.Add(approval.Life)
			if !early {
				a := h.approval(1)
				err := h.store.Write(t.Context(), func(tx *store.Tx) error {
					_, err := approval.Answer(tx, h.keys, a.ID, host.Caller{Principal: person}, approval.Word{Approve: true, Digest: a.Digest}, nil, h.now)
					return err
				})
				if !errors.Is(err, host.ErrConflict) {
					t.Error(err)
				}
				h.write(func(tx *store.Tx) error { _, err := tx.Expired(h.now); return err })
			}
			h.resume()
			h.refused(1, raw, abi.ApprovalExpired)
			h.performed(0)
			h.books()
		})
	}
}

func TestAFlipOfWhatAnApprovalIsBoundToIsRefused(t *testing.T) {
	raw := use(abi.OpSend, "mail.send", "bob", 7)
	for name, change := range map[string]string{
		"operation": `operation = 'docs.write'`, "effect": `effect = 'read'`, "requester": `requester = 'prin_2'`, "skill": `skill = 'other'`,
		"ceiling": `ceiling_micro = ceiling_micro + 1`, "expiry": `expires_at = expires_at + 1`, "why": `why = 'nothing to worry about'`,
		"id": `approval_id = approval_id || 'x'`, "mac": `bound_mac = detail_enc`, "detail": `detail_enc = bound_mac`,
		"detail cut off": `detail_enc = substr(detail_enc, 1, length(detail_enc) - 1)`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.tamper(`UPDATE approval SET ` + change)
			h.resume()
			h.refused(1, raw, abi.Denied)
			h.performed(0)
		})
	}
	t.Run("pinned descriptor", func(t *testing.T) {
		h := newHouse(t)
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, true)
		h.world.pinned[3] ^= 1
		h.resume()
		h.refused(1, raw, abi.Denied)
		h.performed(0)
	})
	for name, change := range map[string]string{"run": `run_id = (SELECT MAX(run_id) FROM run)`, "call": `call_no = 2`} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			run := h.run
			h.start(500)
			h.tamper(`UPDATE approval SET ` + change)
			h.run = run
			h.resume()
			if r, err := h.door.Do(t.Context(), h.s, 1, raw); err == nil && !strings.Contains(string(r.Bytes), string(abi.Denied)) {
				t.Errorf("%s", r.Bytes)
			}
			h.performed(0)
		})
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
		{`{"op":"skill.call","v":1}`, abi.Unsupported},
		{`{"op":"batch","v":1}`, abi.Invalid},
		{`{"op":"batch","v":1,"args":{"requests":[{"op":"batch","v":1}]}}`, abi.Invalid},
		{`{"op":"skill.call","v":1}`, abi.Unsupported},
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

// Many calls without an effect share commits, and none is forgotten.
func TestValuesInMemoryAreBoundedAndFlushed(t *testing.T) {
	h := newHouse(t)
	for n := range uint32(600) {
		h.ok(n+1, request(abi.OpTimeNow, "{}"))
		if h.s.Log.Pending() > 256 {
			t.Fatalf("%d records wait", h.s.Log.Pending())
		}
	}
	if b := h.books(); b.Calls != 600 {
		t.Errorf("%+v", b)
	}
}

func TestCapMakesTheRunWaitForBudget(t *testing.T) {
	h := newHouse(t)
	h.rules.Cap = 100
	h.world.answer = func(sent) broker.Outcome { // the cost stays unknown
		return broker.Outcome{Result: connectors.Result{Provenance: connectors.Provenance{Readers: []string{connectors.Everyone}}}}
	}
	h.ok(1, use(abi.OpSend, "model.ask", "a", 60))
	if got := h.totals(); got.Settled != 60 || got.Reserved != 0 {
		t.Fatalf("an unknown cost was not spent in full: %+v", got)
	}
	raw := use(abi.OpSend, "model.ask", "a", 41)
	h.waits(2, raw, host.WaitBudget)
	h.performed(1)
	h.crash()
	h.waits(2, raw, host.WaitBudget)
	h.read(func(tx *store.Tx) error {
		r, err := tx.Run(h.run)
		if want := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC); !r.WakeAt.Equal(want) {
			t.Errorf("wakes at %s", r.WakeAt)
		}
		return err
	})
	h.rules.Cap = 101
	h.resume()
	h.ok(2, raw)
	h.performed(2)
	if got := h.totals(); got.Settled != 101 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// Nobody is asked about what there is no money for, and a yes finds its money there.
func TestMoneyIsHeldBeforeAPersonIsAsked(t *testing.T) {
	h := newHouse(t)
	h.rules.Cap = 10
	raw := use(abi.OpSend, "mail.send", "bob", 50)
	var told []host.Event
	h.s.Emit = func(e host.Event) { told = append(told, e) }
	h.waits(1, raw, host.WaitBudget)
	if len(told) != 1 || told[0].Text != "Out of budget, raise cap to continue" || told[0].Approval != "" {
		t.Errorf("%+v", told)
	}
	h.rules.Cap = 50
	h.crash()
	h.waits(1, raw, host.WaitApproval)
	if got := h.totals(); got.Reserved != 50 || got.Settled != 0 {
		t.Errorf("a pending approval holds %+v", got)
	}
	h.answer(1, true)
	h.rules.Cap = 10 // a lowered cap stops new reservations, not this one
	h.crash()
	h.ok(1, raw)
	h.performed(1)
	if got := h.totals(); got.Reserved != 0 || got.Settled != 25 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// Whatever ends a question without a yes gives back what it held.
func TestAQuestionThatEndsGivesBackWhatItHeld(t *testing.T) {
	raw := use(abi.OpSend, "mail.send", "bob", 50)
	for name, c := range map[string]struct {
		end  func(*house)
		code abi.Code // of the call, asked again
		late bool     // given back only when the call is answered
	}{
		"yes":             {end: func(h *house) { h.answer(1, true) }},
		"no":              {func(h *house) { h.answer(1, false) }, abi.ApprovalRejected, false},
		"nobody answered": {func(h *house) { h.now = h.now.Add(approval.Life); h.expire() }, abi.ApprovalExpired, false},
		"used too late":   {func(h *house) { h.answer(1, true); h.now = h.now.Add(approval.Life) }, abi.ApprovalExpired, true},
		"all voided":      {func(h *house) { h.write(func(tx *store.Tx) error { _, err := tx.VoidAll(); return err }) }, abi.ApprovalExpired, false},
		"other rules":     {func(h *house) { h.answer(1, true); h.permit(4) }, abi.ApprovalExpired, true},
		"no grant left":   {func(h *house) { h.permit(4, "mail.send") }, abi.Scope, true},
		"tampered with":   {func(h *house) { h.answer(1, true); h.tamper(`UPDATE approval SET why = 'x'`) }, abi.Denied, true},
		"the run ends": {func(h *house) {
			h.write(func(tx *store.Tx) error { return errors.Join(tx.VoidApprovals(h.run), tx.SettleRun(h.run)) })
		}, abi.ApprovalExpired, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.waits(1, raw, host.WaitApproval)
			if got := h.totals(); got.Reserved != 50 {
				t.Fatalf("asking holds %+v", got)
			}
			c.end(h)
			if got := h.totals(); c.code != "" && !c.late && got != (store.Total{}) {
				t.Errorf("%+v is held after the question ended", got)
			}
			h.crash()
			if c.code == "" { // the twin
				h.ok(1, raw)
				h.performed(1)
				return
			}
			h.refused(1, raw, c.code)
			h.performed(0)
			if got := h.totals(); got != (store.Total{}) {
				t.Errorf("%+v is held after the answer", got)
			}
			if a := h.approval(1); a.State == host.ApprovalPending || a.State == host.ApprovalApproved {
				t.Errorf("the question is still %s", a.State)
			}
			h.books()
		})
	}
}

// The month of a reservation is the one in which it was made, whenever it is used
// and settled.
func TestAHoldStaysInItsMonth(t *testing.T) {
	h := newHouse(t)
	h.now = time.Date(2026, 3, 31, 23, 59, 0, 0, time.UTC)
	raw := use(abi.OpSend, "mail.send", "bob", 50)
	h.waits(1, raw, host.WaitApproval)
	h.now = h.now.Add(2 * time.Minute)
	h.answer(1, true)
	h.rules.Cap = 0 // April has no money, and needs none
	h.crash()
	h.ok(1, raw)
	h.read(func(tx *store.Tx) error {
		march, err := tx.SpendTotal(store.PeriodScope("2026-03"))
		april, err2 := tx.SpendTotal(store.PeriodScope("2026-04"))
		if march.Settled != 25 || march.Reserved != 0 || april != (store.Total{}) {
			t.Errorf("March %+v, April %+v", march, april)
		}
		return errors.Join(err, err2)
	})
	for _, l := range h.leaves() {
		if l.Kind == audit.KindOutcome && l.Period != "2026-03" {
			t.Errorf("the leaf books it in %s", l.Period)
		}
	}
}

// The rules are looked at once more in the transaction that writes the attempt.
func TestRulesThatChangeWhileACallIsDecidedHold(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*house)
		code   abi.Code
	}{
		"the twin":        {func(h *house) {}, ""},
		"grant withdrawn": {func(h *house) { h.permit(4, "model.ask") }, abi.Scope},
		"cap lowered":     {func(h *house) { h.rules.Cap = 5 }, "wait"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.onRules = func(n int) {
				if n == 2 { // after the first look, before the transaction's
					c.change(h)
				}
			}
			raw := use(abi.OpSend, "model.ask", "a", 10)
			switch c.code {
			case "":
				h.ok(1, raw)
				h.performed(1)
			case "wait":
				h.waits(1, raw, host.WaitBudget)
				h.performed(0)
			default:
				h.refused(1, raw, c.code)
				h.performed(0)
			}
		})
	}
}

func TestRunBudgetRefuses(t *testing.T) {
	h := newHouse(t)
	h.refused(1, use(abi.OpSend, "model.ask", "a", 501), abi.Budget)
	h.ok(2, use(abi.OpSend, "model.ask", "a", 500))
	h.performed(1)
	if got := h.totals(); got.Settled != 250 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// A crash between the attempt and the result.

func TestAKeyedEffectIsPerformedAgainWithTheSameKeyAndWithoutAskingAgain(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "docs.write", "bob", 40)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.dies(1, raw)
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

// A run that ends while an attempt is in doubt does not get its money back.
func TestTheEndOfARunKeepsWhatAnAttemptMayHaveSpent(t *testing.T) {
	h := newHouse(t)
	h.dies(1, use(abi.OpSend, "model.ask", "a", 40))
	h.write(func(tx *store.Tx) error { return tx.SettleRun(h.run) })
	if got := h.totals(); got.Settled != 40 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
}

func TestAFailureThatSentNothingCostsNothing(t *testing.T) {
	h := newHouse(t)
	h.world.answer = func(sent) broker.Outcome { return broker.Outcome{Denial: abi.Deny(abi.Upstream, "down", "")} }
	h.refused(1, use(abi.OpSend, "model.ask", "a", 40), abi.Upstream)
	if got := h.totals(); got.Settled != 0 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.world.answer = func(sent) broker.Outcome {
		return broker.Outcome{Denial: &abi.Denial{Code: abi.Timeout, Reason: "late", Effect: abi.OutcomeMay}}
	}
	h.refused(2, use(abi.OpSend, "model.ask", "a", 40), abi.Timeout)
	if got := h.totals(); got.Settled != 40 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// A read becomes a send once the run holds what the other side may not see.
func TestAReadThatWouldTellAsks(t *testing.T) {
	h := newHouse(t)
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
	h.waits(3, use(abi.OpToolCall, "notes.read", "b", 0), host.WaitApproval)
	h.performed(2)
	if a := h.approval(3); a.Effect != abi.EffectSend || !strings.Contains(a.Why, "host:b") {
		t.Errorf("%s: %s", a.Effect, a.Why)
	}
	h.answer(3, true)
	h.crash()
	h.ok(3, use(abi.OpToolCall, "notes.read", "b", 0))
	h.books()
}

func TestMemoryKeepsLabels(t *testing.T) {
	h := newHouse(t)
	h.ok(1, request(abi.OpKVPut, `{"key":"public","value":1}`))
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
	h.ok(3, request(abi.OpKVPut, `{"key":"private","value":{"b":2}}`))
	held := h.s.Held
	for _, c := range []struct {
		name, args string
		op         abi.Op
		labelled   bool
	}{
		{"the value that was clean", `{"key":"public"}`, abi.OpKVGet, false},
		{"the value", `{"key":"private"}`, abi.OpKVGet, true},
		{"a miss", `{"key":"absent"}`, abi.OpKVGet, true},
		{"the list", `{}`, abi.OpKVList, true},
	} {
		h.start(500)
		r := h.ok(1, request(c.op, c.args))
		got := h.s.Held
		if c.labelled && (!got.Readers.Within(held.Readers) || got.Integrity > held.Integrity) {
			t.Errorf("%s came with %v, stored with %v", c.name, got, held)
		}
		if !c.labelled && !got.Readers.IsEveryone() {
			t.Errorf("%s came with %v", c.name, got)
		}
		if c.name == "the value" && !strings.Contains(string(r.OK), `{"b":2}`) {
			t.Errorf("%s", r.OK)
		}
		h.crash() // and the label survives in the journal, or is found again
		h.ok(1, request(c.op, c.args))
		if again := h.s.Held; again.String() != got.String() {
			t.Errorf("%s: %v after a restart, %v before", c.name, again, got)
		}
	}
	// That it was deleted is known only to who may know that it was there.
	h.start(500)
	for n, want := range []string{`"found":true`, `{}`} {
		if r := h.ok(uint32(n+1), request(abi.OpKVDelete, `{"key":"private"}`)); !strings.Contains(string(r.OK), want) {
			t.Errorf("delete %d: %s, want %s", n+1, r.OK, want)
		}
		if !h.s.Held.Readers.Within(held.Readers) {
			t.Errorf("the answer to the delete came with %v", h.s.Held)
		}
	}
	h.start(500)
	h.ok(1, request(abi.OpKVGet, `{"key":"private"}`))
	if !h.s.Held.Readers.Within(held.Readers) {
		t.Errorf("the miss after a delete came with %v", h.s.Held)
	}
	h.books()
}

func TestMemoryRowsCannotBeSwapped(t *testing.T) {
	h := newHouse(t)
	h.ok(1, request(abi.OpKVPut, `{"key":"a","value":"one"}`))
	h.ok(2, request(abi.OpKVPut, `{"key":"b","value":"two"}`))
	h.tamper(`UPDATE kv SET value_enc = (SELECT value_enc FROM kv ORDER BY key_mac LIMIT 1)`) // one of the two is wrong now
	h.resume()
	broken := 0
	for i, key := range []string{"a", "b"} {
		r, err := h.door.Do(t.Context(), h.s, uint32(i+3), request(abi.OpKVGet, fmt.Sprintf(`{"key":%q}`, key)))
		h.must(err)
		if strings.Contains(string(r.Bytes), string(abi.Internal)) {
			broken++
		} else if want := map[string]string{"a": "one", "b": "two"}[key]; !strings.Contains(string(r.Bytes), want) {
			t.Errorf("%s: %s", key, r.Bytes)
		}
	}
	if broken != 1 {
		t.Errorf("%d values did not open, want the one that was moved", broken)
	}
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

// A yes is not worth more than today's rules.
func TestWhatWasTakenBackWhileTheRunWaitedIsRefused(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	policy, err := grant.Compile(4, nil, nil, nil)
	h.must(err)
	h.rules.Policy = policy
	if d := h.refused(1, raw, abi.Scope); d.Effect != abi.OutcomeNone {
		t.Errorf("%+v", d)
	}
	h.performed(0)
	h.books()
}

// A refusal of a second attempt must not say that nothing happened: the first may
// have.
func TestARefusalAfterALostAttemptSaysThatItMayHaveHappened(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "docs.write", "bob", 40)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.dies(1, raw)
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
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.dies(1, raw)
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

// SPEC 4 and 7: the limits of a skill's memory.
func TestMemoryHasItsLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a memory to its limit, which takes seconds with -race")
	}
	h := newHouse(t)
	put := func(key, value string) []byte {
		return request(abi.OpKVPut, fmt.Sprintf(`{"key":%q,"value":%q}`, key, value))
	}
	h.ok(1, put(strings.Repeat("k", abi.MaxKVKey), strings.Repeat("v", abi.MaxKVValue-2)))
	h.refused(2, put("k", strings.Repeat("v", abi.MaxKVValue-1)), abi.TooLarge)
	h.refused(3, put(strings.Repeat("k", abi.MaxKVKey+1), "v"), abi.Invalid)
	n := uint32(4)
	for i := range 63 { // 16 MiB in all
		h.ok(n, put(fmt.Sprint("big", i), strings.Repeat("v", abi.MaxKVValue-1024)))
		n++
	}
	h.refused(n, put("last", strings.Repeat("v", abi.MaxKVValue-2)), abi.TooLarge)
	h.refused(n+1, request(abi.OpKVGet, `{"key":"last","prefix":"x"}`), abi.Invalid)
	if r := h.ok(n+2, request(abi.OpKVGet, `{"key":"last"}`)); strings.Contains(string(r.OK), "found") {
		t.Errorf("what was refused is there: %s", r.OK)
	}
}

func TestAListOfKeysIsSortedAndCut(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a memory to its limit, which takes seconds with -race")
	}
	h := newHouse(t)
	for i := range abi.MaxKVKeys + 2 {
		h.ok(uint32(i+1), request(abi.OpKVPut, fmt.Sprintf(`{"key":"k%04d","value":1}`, abi.MaxKVKeys+1-i)))
	}
	var got abi.KVResult
	h.must(json.Unmarshal(h.ok(abi.MaxKVKeys+3, request(abi.OpKVList, `{"prefix":"k"}`)).OK, &got))
	if len(got.Keys) != abi.MaxKVKeys || got.Keys[0] != "k0000" || !slices.IsSorted(got.Keys) {
		t.Errorf("%d keys from %s", len(got.Keys), got.Keys[0])
	}
	h.must(json.Unmarshal(h.ok(abi.MaxKVKeys+4, request(abi.OpKVList, `{"prefix":"k100"}`)).OK, &got))
	if !slices.Equal(got.Keys, []string{"k1000", "k1001"}) {
		t.Error(got.Keys)
	}
}

// A run that goes in circles is refused, and stopped if it does not heed it. A read
// without a price and another request are no circle.
func TestTheSameCallAgainAndAgainIsRefusedAndThenStopsTheRun(t *testing.T) {
	for name, c := range map[string]struct{ limit, want int }{"default": {0, broker.DefaultIdentical}, "configured": {3, 3}} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.rules.Identical = c.limit
			n := uint32(0)
			next := func() uint32 { n++; return n }
			for range 3 * c.want {
				h.ok(next(), use(abi.OpToolCall, "notes.read", "a", 0))
			}
			raw := use(abi.OpSend, "model.ask", "a", 1)
			for range c.want {
				h.ok(next(), raw)
			}
			h.crash() // the count is the journal's
			for i := range c.want {
				if d := h.refused(next(), raw, abi.Rate); d.Effect != abi.OutcomeNone {
					t.Errorf("%+v", d)
				}
				h.ok(next(), use(abi.OpSend, "model.ask", "a", 2+i))
			}
			h.performed(3*c.want + 2*c.want)
			if r, err := h.door.Do(t.Context(), h.s, next(), raw); !errors.Is(err, broker.ErrLoop) {
				t.Errorf("%s, %v", r.Bytes, err)
			}
			h.performed(3*c.want + 2*c.want)
			h.books()
		})
	}
}

// The three warnings of a month are events and leaves, once each.
func TestWarningsAreToldAndWitnessedOnce(t *testing.T) {
	h := newHouse(t)
	h.rules.Cap = 100
	h.start(1000)
	var told []string
	watch := func() {
		h.s.Emit = func(e host.Event) {
			if e.Kind == host.EventWarning {
				told = append(told, e.Text)
			}
		}
	}
	watch()
	h.world.answer = func(sent) broker.Outcome { return broker.Outcome{} } // cost unknown: spent in full
	for n, cost := range []int{49, 1, 25, 14, 1} {
		h.ok(uint32(n+1), use(abi.OpSend, "model.ask", "a", cost))
		h.crash()
		watch()
	}
	h.waits(6, use(abi.OpSend, "model.ask", "a", 11), host.WaitBudget)
	var leaves []string
	for _, l := range h.leaves() {
		if l.Kind == audit.KindSpend {
			if l.Period != "2026-03" || l.Run != h.run {
				t.Errorf("%+v", l)
			}
			leaves = append(leaves, l.Detail)
		}
	}
	var want []string
	for _, p := range []int{50, 75, 90} {
		want = append(want, fmt.Sprintf("%d %% of this month's cap of $0.0001 is used or reserved", p))
	}
	if !slices.Equal(told, want) || !slices.Equal(leaves, append(want, "Out of budget, raise cap to continue")) {
		t.Errorf("told %q, witnessed %q", told, leaves)
	}
	h.books()
}

// A wall clock that was set back keeps no yes alive: the door asks the clock that
// approvals expire by.
func TestAYesExpiresByItsOwnClock(t *testing.T) {
	for _, passed := range []time.Duration{approval.Life - time.Second, approval.Life} {
		h := newHouse(t)
		raw := use(abi.OpSend, "mail.send", "bob", 0)
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, true)
		h.resume()
		start := h.now
		h.now = h.now.Add(-time.Hour)
		h.door.Expiry = func() time.Time { return start.Add(passed) }
		if passed < approval.Life {
			h.ok(1, raw)
			h.performed(1)
			continue
		}
		h.refused(1, raw, abi.ApprovalExpired)
		h.performed(0)
	}
}
