package broker_test

import (
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/store"
)

// What the leaves say that a month cost is what the ledger says, also where attempts
// were lost, asked for again, or settled after the month's end. monroe audit verify
// lives by it.
func TestTheLeavesOfAMonthAddUpToItsLedger(t *testing.T) {
	midnight := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		play    func(*house)
		settled abi.MicroUSD // in March
	}{
		"a plain call": {func(h *house) { h.ok(1, use(abi.OpSend, "model.ask", "a", 40)) }, 20},
		"a call over midnight": {func(h *house) {
			h.now = midnight.Add(-time.Second)
			h.world.hook = func(sent) { h.now = midnight.Add(time.Second) }
			h.ok(1, use(abi.OpSend, "model.ask", "a", 40))
		}, 20},
		"a lost attempt of a model": {func(h *house) {
			raw := use(abi.OpSend, "model.ask", "a", 40)
			h.dies(1, raw)
			h.ok(1, raw)
		}, 60},
		"a lost attempt that finds no money to be made again with": {func(h *house) {
			h.rules.Cap = 60
			raw := use(abi.OpSend, "model.ask", "a", 40)
			h.dies(1, raw)
			for range 3 {
				h.waits(1, raw, host.WaitBudget)
				h.resume()
			}
			h.rules.Cap = 1000
			h.ok(1, raw)
		}, 60},
		"a lost attempt that the run's ceiling leaves no room after": {func(h *house) {
			h.start(60)
			raw := use(abi.OpSend, "model.ask", "a", 40)
			h.dies(1, raw)
			h.refused(1, raw, abi.Budget)
		}, 40},
		"a lost attempt, made again in the next month": {func(h *house) {
			h.now = midnight.Add(-time.Second)
			raw := use(abi.OpSend, "model.ask", "a", 40)
			h.dies(1, raw)
			h.now = midnight
			h.ok(1, raw)
		}, 40},
		"an effect that did not happen": {func(h *house) {
			raw := use(abi.OpSend, "mail.send", "bob", 40)
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.resume()
			h.dies(1, raw)
			h.unknown(1, raw)
			h.resolve(host.DidNotHappen)
			h.waits(1, raw, host.WaitApproval)
			if got := h.totals(); got.Reserved != 40 || got.Settled != 0 {
				h.t.Errorf("the second question holds %+v", got)
			}
			h.answer(1, true)
			h.resume()
			h.ok(1, raw)
		}, 20},
		"an effect that happened": {func(h *house) {
			h.now = midnight.Add(-time.Second)
			raw := use(abi.OpSend, "mail.send", "bob", 40)
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.resume()
			h.dies(1, raw)
			h.now = midnight.Add(time.Hour)
			h.waits(1, raw, host.WaitUnknown)
			h.resolve(host.Happened)
			h.ok(1, raw)
		}, 40},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			c.play(h)
			h.books()
			said := map[string]abi.MicroUSD{}
			for _, l := range h.leaves() {
				if l.Kind != audit.KindEnd && l.Cost != 0 {
					said[l.Period] += l.Cost
				}
			}
			h.read(func(tx *store.Tx) error {
				for _, period := range []string{"2026-03", "2026-04", ""} {
					total, err := tx.SpendTotal(store.PeriodScope(period))
					if err != nil {
						return err
					}
					if said[period] != total.Settled || total.Reserved != 0 || period == "2026-03" && total.Settled != c.settled {
						t.Errorf("%q: the leaves say %s, the ledger %+v, want %s", period, said[period], total, c.settled)
					}
				}
				return nil
			})
		})
	}
}
