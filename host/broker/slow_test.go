package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/store"
)

// slow makes the world answer no earlier than the worker was freed.
func (h *house) slow() (freed chan struct{}) {
	freed = make(chan struct{})
	h.door.KeepWorker = time.Millisecond
	h.s.Free = func() { close(freed) }
	h.world.before = func(connectors.Call) { <-freed }
	return freed
}

func TestASlowModelFreesTheWorker(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "model.ask", "a", 10)
	h.slow()
	h.world.hook = func(sent) {
		h.read(func(tx *store.Tx) error {
			row, err := tx.Run(h.run)
			if row.State != host.StateWaiting || row.Wait != host.WaitModel || row.WakeAt.Before(h.now.Add(connectors.DefaultTimeout)) {
				t.Errorf("%s for %q until %v", row.State, row.Wait, row.WakeAt)
			}
			return err
		})
	}
	if _, err := h.door.Do(t.Context(), h.s, 1, raw); !errors.Is(err, broker.ErrFreed) {
		t.Fatal(err)
	}
	h.world.before = nil
	h.crash() // another worker, or another daemon
	h.ok(1, raw)
	h.performed(1)
	if got := h.totals(); got.Settled != 5 || got.Reserved != 0 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// What answers in time keeps its worker, and so does what is no model: a person was
// asked for it, and its outcome must not depend on who waits.
func TestAQuickModelAndASlowSendKeepTheWorker(t *testing.T) {
	h := newHouse(t)
	h.s.Free = func() { t.Error("the worker was freed") }
	h.door.KeepWorker = time.Hour
	h.ok(1, use(abi.OpSend, "model.ask", "a", 10))
	h.door.KeepWorker = 0
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
}

// The host stops while the model is still at it: an attempt without an answer, as ever.
func TestAStopWhileASlowModelAnswers(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "model.ask", "a", 10)
	freed := h.slow()
	on := make(chan struct{})
	h.world.hook = func(sent) { <-on }
	ended := make(chan error)
	s, door := h.s, h.door
	go func() {
		_, err := door.Do(t.Context(), s, 1, raw)
		ended <- err
	}()
	<-freed
	h.must(h.store.Close())
	close(on)
	if err := <-ended; !errors.Is(err, store.ErrClosed) {
		t.Fatal(err)
	}
	h.world.before, h.world.hook = nil, nil
	h.open()
	h.read(func(tx *store.Tx) error {
		list, err := tx.Waiting(host.WaitModel) // what a daemon takes up when it starts
		if len(list) != 1 {
			t.Errorf("%v wait", list)
		}
		return err
	})
	h.resume()
	h.ok(1, raw)
	h.performed(2)
	if got := h.totals(); got.Settled != 15 || got.Reserved != 0 { // the lost one in full
		t.Errorf("%+v", got)
	}
	h.books()
}

// A run does not wait for money for ever.
func TestABudgetIsNotWaitedForForever(t *testing.T) {
	h := newHouse(t)
	h.door.BudgetLife = 10 * 24 * time.Hour
	h.rules.Cap = 5
	raw := use(abi.OpSend, "model.ask", "a", 10)
	h.waits(1, raw, host.WaitBudget)
	wake := func() (at time.Time) {
		h.read(func(tx *store.Tx) error { row, err := tx.Run(h.run); at = row.WakeAt; return err })
		return at
	}
	began := h.now
	if got := wake(); !got.Equal(began.Add(h.door.BudgetLife)) {
		t.Errorf("it is looked at %v", got)
	}
	h.now = h.now.Add(9 * 24 * time.Hour)
	h.resume()
	h.waits(1, raw, host.WaitBudget) // counted from the first time
	if got := wake(); !got.Equal(began.Add(h.door.BudgetLife)) {
		t.Errorf("it is looked at %v", got)
	}
	h.now = h.now.Add(24 * time.Hour)
	h.resume()
	if _, err := h.door.Do(t.Context(), h.s, 1, raw); !errors.Is(err, broker.ErrBroke) || !strings.Contains(err.Error(), "not raised in time") {
		t.Errorf("%v", err)
	}
	h.performed(0)
	h.start(500) // one that is in time for a higher cap
	h.waits(1, raw, host.WaitBudget)
	h.rules.Cap = 100
	h.resume()
	h.ok(1, raw)
}

// Within its life a wait for money is looked at when the month is over.
func TestABudgetIsLookedAtWhenTheMonthEnds(t *testing.T) {
	h := newHouse(t)
	h.rules.Cap = 5
	h.waits(1, use(abi.OpSend, "model.ask", "a", 10), host.WaitBudget)
	h.read(func(tx *store.Tx) error {
		row, err := tx.Run(h.run)
		if want := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC); !row.WakeAt.Equal(want) {
			t.Errorf("it is looked at %v", row.WakeAt)
		}
		return err
	})
}
