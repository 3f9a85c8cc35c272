// Package spend is the ledger: every cost is reserved before it can arise, and
// settled when it is known.
//
// Laws, each with a test:
//
//  1. At every moment settled + reserved is at most the cap, for the month and for
//     the run's own budget.
//  2. A reservation is settled once. What is unknown stays spent in full.
//  3. Each warning is given once in a month.
//  4. A reservation belongs to the month in which it was made, also when it is used
//     or settled in another.
//  5. What is held while a person is asked counts as reserved. It becomes the
//     attempt's reservation on a yes, and is given back on anything else.
//  6. A child's budget is carved out of what is left of its parent's, and what it did
//     not spend is back when it ends, once. So no tree of runs passes its root's budget.
//
// It knows amounts, months and budgets. It must not know what is bought.
package spend

import (
	"fmt"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
)

// Tx is what the ledger needs of a transaction.
type Tx interface {
	SpendTotals(scopes ...string) ([]store.Total, error)
	Reserve(run, root host.RunID, call uint32, attempt int, period string, amount abi.MicroUSD) error
	Settle(run host.RunID, call uint32, attempt int, cost abi.MicroUSD) error
	Carve(parent, child host.RunID, amount abi.MicroUSD) error
	GiveBack(child host.RunID) (spent abi.MicroUSD, err error)
	SetWarned(scope string, percent int) error
	Hold(run, root host.RunID, call uint32, period string, amount abi.MicroUSD) error
	UseHold(run host.RunID, call uint32, attempt int) (amount abi.MicroUSD, period string, err error)
}

// Period is the calendar month in UTC that a moment belongs to.
func Period(t time.Time) string { return t.UTC().Format("2006-01") }

// NextPeriod is when the month after t begins.
func NextPeriod(t time.Time) time.Time {
	y, m, _ := t.UTC().Date()
	return time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
}

// OutOfBudget is what people are told of a run that waits for a higher cap.
const OutOfBudget = "Out of budget, raise cap to continue"

// Shortage says which limit a reservation would break.
type Shortage string

const (
	Enough   Shortage = ""
	NoCap    Shortage = "cap"    // the workspace's month: the run waits for a higher cap
	NoBudget Shortage = "budget" // the run's own ceiling: the call is refused
)

// warnAt are the percentages of the cap that are warned of.
var warnAt = [...]int{90, 75, 50}

// Reserve puts amount aside for one attempt of a call, or says what is short. A
// crossed warning is returned as its percentage, 0 for none.
func Reserve(tx Tx, run host.Run, call uint32, attempt int, amount, limit abi.MicroUSD, now time.Time) (short Shortage, warn int, err error) {
	return reserve(tx, run, amount, limit, now, func(period string) error {
		return tx.Reserve(run.ID, run.Root, call, attempt, period, amount)
	})
}

// Hold is Reserve for a call that a person is asked about first.
func Hold(tx Tx, run host.Run, call uint32, amount, limit abi.MicroUSD, now time.Time) (short Shortage, warn int, err error) {
	return reserve(tx, run, amount, limit, now, func(period string) error {
		return tx.Hold(run.ID, run.Root, call, period, amount)
	})
}

func reserve(tx Tx, run host.Run, amount, limit abi.MicroUSD, now time.Time, write func(period string) error) (short Shortage, warn int, err error) {
	if amount < 0 {
		return NoBudget, 0, fmt.Errorf("spend: a negative amount %d", amount)
	}
	period := store.PeriodScope(Period(now))
	totals, err := tx.SpendTotals(period, store.RunScope(run.ID))
	if err != nil {
		return NoCap, 0, err
	}
	month, own := totals[0], totals[1]
	// Subtract instead of adding, so that nothing can overflow.
	if amount > run.Budget-own.Settled-own.Reserved {
		return NoBudget, 0, nil
	}
	if amount > limit-month.Settled-month.Reserved {
		return NoCap, 0, nil
	}
	if err := write(Period(now)); err != nil {
		return NoCap, 0, err
	}
	used := month.Settled + month.Reserved + amount
	for _, p := range warnAt {
		if limit > 0 && used >= limit/100*abi.MicroUSD(p) && amount > 0 {
			if month.Warned < p {
				warn = p
				err = tx.SetWarned(period, p)
			}
			break
		}
	}
	return Enough, warn, err
}

// Carve gives a child a budget of amount out of what is left of its parent's. The
// child's run has to be stored with exactly this budget, in the same transaction.
func Carve(tx Tx, parent host.Run, child host.RunID, amount abi.MicroUSD) (Shortage, error) {
	if amount < 0 || child == parent.ID {
		return NoBudget, fmt.Errorf("spend: a carve of %d for %s", amount, child)
	}
	own, err := tx.SpendTotals(store.RunScope(parent.ID))
	if err != nil {
		return NoBudget, err
	}
	if amount > parent.Budget-own[0].Settled-own[0].Reserved {
		return NoBudget, nil
	}
	return Enough, tx.Carve(parent.ID, child, amount)
}

// GiveBack returns what an ended child left of its budget, and says what it spent, its
// own children included. Its reservations must have been settled and its children
// must have given back.
func GiveBack(tx Tx, child host.RunID) (abi.MicroUSD, error) { return tx.GiveBack(child) }

// Settle ends a reservation with what the call really cost. A nil cost is unknown:
// the whole reservation stays spent. It returns what was booked.
func Settle(tx Tx, run host.Run, call uint32, attempt int, reserved abi.MicroUSD, cost *abi.MicroUSD) (abi.MicroUSD, error) {
	booked := reserved
	if cost != nil {
		booked = max(*cost, 0)
	}
	return booked, tx.Settle(run.ID, call, attempt, booked)
}

// Estimate is what a run is expected to cost: the history of the same module, and
// the ceiling that it cannot pass. A model is never asked.
func Estimate(costs []abi.MicroUSD, ceiling abi.MicroUSD) host.Estimate {
	e := host.Estimate{Runs: len(costs), Ceiling: ceiling}
	if len(costs) > 0 {
		s := slices.Sorted(slices.Values(costs))
		e.P50, e.P95 = min(s[(len(s)-1)/2], ceiling), min(s[(len(s)*95-1)/100], ceiling)
	}
	return e
}
