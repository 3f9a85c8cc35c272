package spend_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	_ "time/tzdata" // for a zone with daylight saving, wherever the test runs

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// Law 1, looked at from outside: while a thousand calls reserve, hold, use, settle and
// give back at once, the rows of the ledger never sum up to more than the cap.
func TestAThousandConcurrentReservationsNeverPassTheCap(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer func() { _ = s.Close() }()
	const calls, limit = 1000, abi.MicroUSD(700)
	other := storetest.DB(t, dir)
	sum := func() (n abi.MicroUSD) {
		if err := other.QueryRow(`SELECT COALESCE(SUM(COALESCE(settled_micro, reserved_micro)), 0) FROM spend`).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	var start, wg sync.WaitGroup
	var made, short atomic.Int64
	start.Add(1)
	r := run("run", 1<<40)
	for c := range uint32(calls) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			start.Wait()
			amount := abi.MicroUSD(rand.IntN(5) + 1)
			ask := c%2 == 0
			var got spend.Shortage
			if err := s.Write(context.Background(), func(tx *store.Tx) (err error) {
				if ask {
					got, _, err = spend.Hold(tx, r, c, amount, limit, now)
				} else {
					got, _, err = spend.Reserve(tx, r, c, 1, amount, limit, now)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			if got != spend.Enough {
				short.Add(1)
				return
			}
			made.Add(1)
			if err := s.Write(context.Background(), func(tx *store.Tx) error {
				if ask && c%4 == 0 {
					return tx.ReleaseHold(r.ID, c)
				}
				if ask {
					if a, period, err := tx.UseHold(r.ID, c, 1); err != nil || a != amount || period != "2026-03" {
						return fmt.Errorf("used %d of %s, %w", a, period, err)
					}
				}
				cost := amount / 2
				_, err := spend.Settle(tx, r, c, 1, amount, &cost)
				return err
			}); err != nil {
				t.Error(err)
			}
		}()
	}
	done := make(chan struct{})
	looks := 0
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			looks++
			if n := sum(); n > limit {
				t.Errorf("%d of %d are settled or reserved", n, limit)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	start.Done()
	wg.Wait()
	close(done)
	<-watched
	if err := s.Read(t.Context(), func(tx *store.Tx) error {
		month, err := tx.SpendTotal(store.PeriodScope("2026-03"))
		if month.Settled != sum() || month.Reserved != 0 {
			t.Errorf("the totals are %+v, the rows say %d", month, sum())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if made.Load() == 0 || short.Load() == 0 {
		t.Errorf("%d were made and %d were short: the cap was not tried", made.Load(), short.Load())
	}
	t.Logf("%d made, %d short, looked %d times", made.Load(), short.Load(), looks)
}

// entry is what the ledger is asked in a history.
type entry struct {
	what         string // reserve, settle, read
	amount, cost abi.MicroUSD
}

type sums struct{ reserved, settled abi.MicroUSD }

// ledger is the naive one: one sum, one thing at a time.
func ledger(limit abi.MicroUSD) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return sums{} },
		Step: func(state, input, output any) (bool, any) {
			s, e := state.(sums), input.(entry)
			switch e.what {
			case "reserve":
				fits := s.reserved+s.settled+e.amount <= limit
				if fits {
					s.reserved += e.amount
				}
				return output == fits, s
			case "settle":
				return true, sums{s.reserved - e.amount, s.settled + e.cost}
			}
			return output == s, s
		},
	}
}

// Whatever happens at once could have happened one after the other.
func TestTheLedgerIsLinearizable(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		at := time.Date(2026, time.Month(round), 1, 0, 0, 0, 0, time.UTC)
		r := run(fmt.Sprintf("run_h%d", round), 1<<40)
		limit := abi.MicroUSD(rapid.IntRange(0, 60).Draw(rt, "cap"))
		const workers, steps = 5, 4
		var plan [workers][steps]entry
		var asks [workers][steps]bool
		for w := range workers {
			for i := range steps {
				a := rapid.IntRange(0, 20).Draw(rt, "amount")
				plan[w][i] = entry{"reserve", abi.MicroUSD(a), abi.MicroUSD(rapid.IntRange(0, a).Draw(rt, "cost"))}
				asks[w][i] = rapid.Bool().Draw(rt, "asks")
			}
		}
		var clock atomic.Int64
		var mu sync.Mutex
		var history []porcupine.Operation
		do := func(w int, e entry, fn func() (any, error)) any {
			op := porcupine.Operation{ClientId: w, Input: e, Call: clock.Add(1)}
			var err error
			if op.Output, err = fn(); err != nil {
				t.Error(err)
			}
			op.Return = clock.Add(1)
			mu.Lock()
			defer mu.Unlock()
			history = append(history, op)
			return op.Output
		}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i, e := range plan[w] {
					call := uint32(w*steps + i + 1)
					made := do(w, e, func() (made any, err error) {
						err = s.Write(context.Background(), func(tx *store.Tx) (err error) {
							var short spend.Shortage
							if asks[w][i] {
								short, _, err = spend.Hold(tx, r, call, e.amount, limit, at)
							} else {
								short, _, err = spend.Reserve(tx, r, call, 1, e.amount, limit, at)
							}
							made = short == spend.Enough
							return err
						})
						return made, err
					})
					do(w, entry{what: "read"}, func() (out any, err error) {
						err = s.Read(context.Background(), func(tx *store.Tx) error {
							m, err := tx.SpendTotal(store.PeriodScope(spend.Period(at)))
							out = sums{m.Reserved, m.Settled}
							return err
						})
						return out, err
					})
					if made == true {
						e.what = "settle"
						if asks[w][i] && e.cost == 0 {
							do(w, e, func() (any, error) {
								return nil, s.Write(context.Background(), func(tx *store.Tx) error { return tx.ReleaseHold(r.ID, call) })
							})
							continue
						}
						do(w, e, func() (any, error) {
							return nil, s.Write(context.Background(), func(tx *store.Tx) error {
								if asks[w][i] {
									if _, _, err := tx.UseHold(r.ID, call, 1); err != nil {
										return err
									}
								}
								_, err := spend.Settle(tx, r, call, 1, e.amount, &e.cost)
								return err
							})
						})
					}
				}
			}()
		}
		wg.Wait()
		if !porcupine.CheckOperations(ledger(limit), history) {
			rt.Fatalf("no order explains %+v", history)
		}
	})
}

// The model above can fail: two reservations that both saw the last free amount.
func TestTheLedgersModelFindsALostUpdate(t *testing.T) {
	h := []porcupine.Operation{
		{ClientId: 0, Input: entry{"reserve", 6, 0}, Call: 1, Output: true, Return: 4},
		{ClientId: 1, Input: entry{"reserve", 6, 0}, Call: 2, Output: true, Return: 3},
	}
	if porcupine.CheckOperations(ledger(10), h) {
		t.Error("12 of 10 were found in order")
	}
	if !porcupine.CheckOperations(ledger(12), h) {
		t.Error("12 of 12 were not")
	}
}

// months begin at these seconds, counted by hand and not by package time.
var months = []struct {
	name string
	from int64
}{
	{"2016-12", 1480550400}, {"2017-01", 1483228800}, {"2017-02", 1485907200}, // a leap second stands between the first two
	{"2026-03", 1772323200}, {"2026-04", 1775001600}, {"2026-05", 1777593600}, // Europe's clocks go forward on 29 March
	{"2026-10", 1790812800}, {"2026-11", 1793491200}, {"2026-12", 1796083200}, // and back on 25 October, New York's on 1 November
	{"2027-01", 1798761600}, {"2027-02", 1801440000},
}

// Law 4: however the clock is set back and forth and whatever zone the machine is in,
// a reservation counts in the UTC month of its own moment, and in no other.
func TestMonthsHoldWhateverTheClockDoes(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	local := time.Local
	defer func() { time.Local = local }()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		zone, err := time.LoadLocation(rapid.SampledFrom([]string{"America/New_York", "Pacific/Kiritimati", "Europe/Berlin", "Pacific/Pago_Pago", "UTC"}).Draw(rt, "zone"))
		if err != nil {
			rt.Fatal(err)
		}
		time.Local = zone
		const limit = 1 << 40
		r := run(fmt.Sprintf("run_c%d", round), limit)
		want, before := map[string]store.Total{}, map[string]store.Total{}
		read := func(m string) (got store.Total) {
			if err := s.Read(context.Background(), func(tx *store.Tx) (err error) {
				got, err = tx.SpendTotal(store.PeriodScope(m))
				return err
			}); err != nil {
				rt.Fatal(err)
			}
			return got
		}
		for _, m := range months {
			before[m.name] = read(m.name)
		}
		type open struct {
			call   uint32
			amount abi.MicroUSD
			month  string
		}
		var list []open
		for c := range uint32(rapid.IntRange(1, 12).Draw(rt, "steps")) {
			i := rapid.IntRange(0, len(months)-2).Draw(rt, "month")
			if i == 2 || i == 5 { // the table has a gap after these
				i++
			}
			from, to := months[i].from, months[i+1].from
			sec := rapid.SampledFrom([]int64{from, from + 1, to - 1}).Draw(rt, "second")
			at := time.Unix(sec, rapid.Int64Range(0, 999_999_999).Draw(rt, "ns")).In(zone)
			if got := spend.Period(at); got != months[i].name {
				rt.Fatalf("%s is in %s", at, got)
			}
			if next := spend.NextPeriod(at); next.Unix() != to {
				rt.Fatalf("after %s comes %s", at, next)
			}
			amount := abi.MicroUSD(rapid.IntRange(1, 9).Draw(rt, "amount"))
			if err := s.Write(context.Background(), func(tx *store.Tx) error {
				short, _, err := spend.Hold(tx, r, c, amount, limit, at)
				if short != spend.Enough {
					return fmt.Errorf("short of %s", short)
				}
				return err
			}); err != nil {
				rt.Fatal(err)
			}
			m := want[months[i].name]
			m.Reserved += amount
			want[months[i].name] = m
			list = append(list, open{c, amount, months[i].name})
			if len(list) > 0 && rapid.Bool().Draw(rt, "settle one") { // whatever the time is now
				o := list[0]
				list = list[1:]
				cost := o.amount / 2
				if err := s.Write(context.Background(), func(tx *store.Tx) error {
					if _, _, err := tx.UseHold(r.ID, o.call, 1); err != nil {
						return err
					}
					_, err := spend.Settle(tx, r, o.call, 1, o.amount, &cost)
					return err
				}); err != nil {
					rt.Fatal(err)
				}
				m := want[o.month]
				m.Reserved, m.Settled = m.Reserved-o.amount, m.Settled+cost
				want[o.month] = m
			}
		}
		for _, m := range months {
			got := read(m.name)
			if got.Reserved-before[m.name].Reserved != want[m.name].Reserved || got.Settled-before[m.name].Settled != want[m.name].Settled {
				rt.Fatalf("%s: %+v after %+v, want %+v more", m.name, got, before[m.name], want[m.name])
			}
		}
	})
}

// The cap is the month's: what is used up in one is free again in the next, and a
// clock set back meets the old month's cap again.
func TestAFullMonthIsFullAgainWhenTheClockIsSetBack(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	r, call := run("run", 1<<40), uint32(0)
	for i, c := range []struct {
		at   time.Time
		want spend.Shortage
	}{
		{now, spend.Enough},
		{now, spend.NoCap},
		{now.Add(time.Second), spend.Enough},
		{now.Add(2 * time.Second), spend.NoCap},
		{now, spend.NoCap},
		{now.Add(-time.Hour), spend.NoCap},
		{now.AddDate(1, 0, 0), spend.Enough},
	} {
		call++
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			short, _, err := spend.Reserve(tx, r, call, 1, 100, 100, c.at)
			if short != c.want {
				t.Errorf("step %d: %q, want %q", i, short, c.want)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}
