package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/store"
)

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
	h.rules.Cap = 10 // a lowered cap stops also what was put aside and has not left
	h.crash()
	h.waits(1, raw, host.WaitBudget)
	h.performed(0)
	h.rules.Cap = 50
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
	h.rules.Cap = 50 // April has no money left, and needs none
	h.write(func(tx *store.Tx) error { return tx.Reserve("run_other", "run_other", 1, 1, "2026-04", 50) })
	h.crash()
	h.ok(1, raw)
	h.read(func(tx *store.Tx) error {
		march, err := tx.SpendTotal(store.PeriodScope("2026-03"))
		april, err2 := tx.SpendTotal(store.PeriodScope("2026-04"))
		if march.Settled != 25 || march.Reserved != 0 || april != (store.Total{Reserved: 50}) {
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
