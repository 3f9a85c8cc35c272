package broker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/store"
)

// lost brings a run to the point where an approved attempt has left and its answer
// was lost in a crash.
func lost(t *testing.T, operation string, cost int) (*house, []byte) {
	t.Helper()
	h := newHouse(t)
	raw := use(abi.OpSend, operation, "bob", cost)
	h.lose(1, raw)
	return h, raw
}

func TestABlindEffectWaitsForAPersonAndKeepsItsReservation(t *testing.T) {
	for _, operation := range []string{"mail.send", "odd.write"} { // a class that is not known is blind
		h, raw := lost(t, operation, 40)
		h.unknown(1, raw)
		h.crash()
		h.waits(1, raw, host.WaitUnknown) // still the same question
		h.performed(1)
		if got := h.totals(); got.Reserved != 40 || got.Settled != 0 {
			t.Errorf("%+v", got)
		}
		views := broker.Views(h.s.Log.Entries(), false)
		if v := views[0]; v.Outcome != string(host.WaitUnknown) || !strings.Contains(v.Reason, "the host stopped") {
			t.Errorf("%+v", v)
		}
		asked := 0
		for _, l := range h.leaves() {
			if l.Kind == audit.KindUnknown {
				asked++
			}
		}
		if asked != 1 {
			t.Errorf("%d leaves say that the outcome is unknown", asked)
		}
	}
}

func TestWhatAPersonSaysHappenedIsToldAndNotSentAgain(t *testing.T) {
	h, raw := lost(t, "mail.send", 40)
	h.unknown(1, raw)
	h.resolve(host.Happened)
	h.rules.Policy = &grant.Policy{} // today's rules do not judge what has happened
	if r := h.ok(1, raw); string(r.OK) != `{"resolved":"happened"}` {
		t.Errorf("%s", r.OK)
	}
	h.performed(1)
	if got := h.totals(); got.Settled != 40 || got.Reserved != 0 {
		t.Errorf("what it cost is not known, so all of it is spent: %+v", got)
	}
	h.crash()
	h.ok(1, raw)
	if b := h.books(); b.InDoubt() != 0 || b.Effects != 1 {
		t.Errorf("%+v", b)
	}
}

func TestABlindEffectThatDidNotHappenNeedsANewApproval(t *testing.T) {
	h, raw := lost(t, "mail.send", 40)
	h.unknown(1, raw)
	first := h.approval(1).ID
	h.resolve(host.DidNotHappen)
	h.waits(1, raw, host.WaitApproval)
	second := h.approval(1).ID
	if first == second {
		t.Fatal("the used approval is asked for again")
	}
	h.crash()
	h.waits(1, raw, host.WaitApproval)
	h.performed(1)
	h.answer(1, true)
	h.resume()
	h.ok(1, raw)
	h.performed(2)
	if got := h.totals(); got.Settled != 20 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	if b := h.books(); b.InDoubt() != 0 || b.Approvals != 2 {
		t.Errorf("%+v", b)
	}
}

// The new approval is worth one attempt, too.
func TestASecondAttemptOfABlindEffectCanBeLostAsWell(t *testing.T) {
	h, raw := lost(t, "mail.send", 0)
	h.unknown(1, raw)
	h.resolve(host.DidNotHappen)
	h.lose(1, raw)
	h.unknown(1, raw)
	h.resolve(host.Abandoned)
	h.refused(1, raw, abi.OutcomeUnknown)
	h.performed(2)
	h.books()
}

func TestAnAbandonedOutcomeIsARefusal(t *testing.T) {
	for name, expire := range map[string]bool{"by a person": false, "for want of an answer": true} {
		t.Run(name, func(t *testing.T) {
			h, raw := lost(t, "mail.send", 40)
			h.unknown(1, raw)
			if expire {
				var due []host.RunID
				h.now = h.now.Add(broker.DefaultDoubtLife - time.Second)
				h.read(func(tx *store.Tx) (err error) { due, err = tx.Due(h.now, 10); return err })
				if len(due) != 0 {
					t.Error("due too early")
				}
				h.now = h.now.Add(time.Second)
				h.read(func(tx *store.Tx) (err error) { due, err = tx.Due(h.now, 10); return err })
				if len(due) != 1 {
					t.Error("not due")
				}
				h.crash()
			} else {
				h.resolve(host.Abandoned)
			}
			if d := h.refused(1, raw, abi.OutcomeUnknown); d.Effect != abi.OutcomeMay {
				t.Errorf("%+v", d)
			}
			h.performed(1)
			if got := h.totals(); got.Settled != 40 || got.Reserved != 0 {
				t.Errorf("%+v", got)
			}
			if b := h.books(); b.InDoubt() != 0 {
				t.Errorf("%+v", b)
			}
			h.waits(2, raw, host.WaitApproval) // trying again is a new call and asks again
		})
	}
}

func TestALiveUnknownOutcomeWaitsLikeALostOne(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 40)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.world.answer = func(sent) broker.Outcome {
		return broker.Outcome{Denial: &abi.Denial{Code: abi.OutcomeUnknown, Reason: "the connection broke", Effect: abi.OutcomeMay}}
	}
	h.waits(1, raw, host.WaitUnknown)
	h.world.answer = nil
	h.resolve(host.Happened)
	h.ok(1, raw)
	h.performed(1)
	h.books()
}

func TestALiveUnknownOutcomeOfAKeyedEffectIsSentAgainLater(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "docs.write", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.world.answer = func(sent) broker.Outcome {
		return broker.Outcome{Denial: &abi.Denial{Code: abi.OutcomeUnknown, Reason: "the connection broke", Effect: abi.OutcomeMay}}
	}
	for range 5 {
		h.waits(1, raw, host.WaitTimer)
		h.later()
		h.resume()
	}
	h.waits(1, raw, host.WaitUnknown) // five attempts are enough
	h.performed(5)
	h.books()
}

func TestAKeyIsNotUsedWhenTheOtherSideMayHaveForgottenIt(t *testing.T) {
	h, raw := lost(t, "docs.write", 0)
	h.now = h.now.Add(24 * time.Hour)
	h.waits(1, raw, host.WaitUnknown)
	h.performed(1)
	h.resolve(host.DidNotHappen)
	h.ok(1, raw) // with the same key and the approval that it had
	h.performed(2)
	h.books()
}

func TestAProbedEffectIsLookedForBeforeItIsSentAgain(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		found *bool
		sent  int
		reply string
	}{"found": {&yes, 1, `"found it"`}, "absent": {&no, 2, `{"n":2}`}} {
		t.Run(name, func(t *testing.T) {
			h, raw := lost(t, "box.send", 40)
			h.world.found = c.found
			h.waits(1, raw, host.WaitTimer)
			if h.world.probes != 0 {
				t.Error("it was looked for while the attempt could still be under way")
			}
			h.later()
			h.resume()
			if r := h.ok(1, raw); string(r.OK) != c.reply {
				t.Errorf("%s", r.OK)
			}
			h.performed(c.sent)
			if got := h.totals(); got.Reserved != 0 {
				t.Errorf("%+v", got)
			}
			probes := 0
			for _, l := range h.leaves() {
				if l.Kind == audit.KindProbe && l.Verdict == name {
					probes++
				}
			}
			if probes != 1 || h.world.probes != 1 {
				t.Errorf("%d probes, %d leaves", h.world.probes, probes)
			}
			if b := h.books(); b.InDoubt() != 0 {
				t.Errorf("%+v", b)
			}
		})
	}
	t.Run("failed", func(t *testing.T) {
		h, raw := lost(t, "box.send", 0)
		h.later()
		h.waits(1, raw, host.WaitUnknown)
		h.performed(1)
	})
	t.Run("no longer granted", func(t *testing.T) {
		h, raw := lost(t, "box.send", 0)
		h.world.found = &no
		h.later()
		h.rules.Policy = &grant.Policy{}
		h.waits(1, raw, host.WaitUnknown)
		if h.world.probes != 0 {
			t.Error("it was looked for without leave")
		}
	})
}

func TestAConditionalEffectIsSentAgain(t *testing.T) {
	h, raw := lost(t, "page.put", 0)
	h.waits(1, raw, host.WaitTimer)
	h.later()
	h.resume()
	h.ok(1, raw)
	h.performed(2)
	h.books()
}

// Audit law: whoever sends again what nobody could tell about leaves a trace.
func TestTheBooksRefuseASecondAttemptOfAnUnknownOutcome(t *testing.T) {
	leaf := func(k audit.Kind, verdict string) audit.Leaf {
		return audit.Leaf{Kind: k, Run: "run_1", Call: 1, Verdict: verdict, Effect: abi.EffectMetered}
	}
	for said, ok := range map[string]bool{"": false, "happened": false, "abandoned": false, "did_not_happen": true} {
		b := &audit.Books{}
		list := []audit.Leaf{leaf(audit.KindDecision, "allow"), leaf(audit.KindUnknown, "ask")}
		if said != "" {
			list = append(list, leaf(audit.KindResolved, said))
		}
		for i, l := range list {
			if err := b.Add(int64(i), l); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Add(9, leaf(audit.KindDecision, "allow")); (err == nil) != ok {
			t.Errorf("%q: %v", said, err)
		}
	}
}

// What a run had under way when it ended stays in doubt, and is open no more.
func TestTheBooksCloseWhatARunLeftOpen(t *testing.T) {
	b := &audit.Books{}
	for i, l := range []audit.Leaf{
		{Kind: audit.KindDecision, Run: "run_1", Call: 1, Verdict: "allow", Effect: abi.EffectMetered, Reserved: 5},
		{Kind: audit.KindDecision, Run: "run_2", Call: 1, Verdict: "allow", Effect: abi.EffectMetered, Reserved: 5},
		{Kind: audit.KindSpend, Run: "run_1", Call: 1, Verdict: "lost", Cost: 5},
		{Kind: audit.KindEnd, Run: "run_1", Verdict: "cancelled"},
	} {
		if err := b.Add(int64(i), l); err != nil {
			t.Fatal(err)
		}
	}
	if b.InDoubt() != 2 || b.Open() != 1 || b.Cost != 5 {
		t.Errorf("%d in doubt, %d open, %s", b.InDoubt(), b.Open(), b.Cost)
	}
	if err := b.Add(9, audit.Leaf{Kind: audit.KindOutcome, Run: "run_1", Call: 1, Cost: 5}); err == nil {
		t.Error("an outcome came after the end of its run")
	}
}
