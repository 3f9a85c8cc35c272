package broker_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

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
