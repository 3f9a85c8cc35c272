package spend_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/spend"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

var now = time.Date(2026, 3, 31, 23, 59, 59, 0, time.UTC)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := storetest.Open(t, dir, "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func run(id string, budget abi.MicroUSD) host.Run {
	return host.Run{ID: host.RunID(id), Root: host.RunID(id), Budget: budget}
}

// Law 1: at every step settled + reserved is at most the cap and the budget,
// whoever reserves at the same time. Law 2 rides along.
func TestSettledAndReservedNeverPassTheCapOrTheBudget(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++ // a month and runs of its own
		now := time.Date(2026, time.Month(round), 1, 0, 0, 0, 0, time.UTC)
		name := func(w int) string { return fmt.Sprintf("run_%d_%d", round, w) }
		limit := abi.MicroUSD(rapid.IntRange(0, 400).Draw(t, "cap"))
		const runs, workers, calls = 2, 4, 5 // two workers share a run, as a tree of runs does
		type step struct {
			amount, cost abi.MicroUSD
			unknown      bool
		}
		var budgets [runs]abi.MicroUSD
		var plan [workers][calls]step
		for i := range budgets {
			budgets[i] = abi.MicroUSD(rapid.IntRange(0, 200).Draw(t, "budget"))
		}
		for w := range workers {
			for c := range calls {
				amount := rapid.IntRange(0, 120).Draw(t, "amount")
				plan[w][c] = step{abi.MicroUSD(amount), abi.MicroUSD(rapid.IntRange(-5, amount).Draw(t, "cost")), rapid.Bool().Draw(t, "unknown")}
			}
		}
		holds := func(tx *store.Tx) error {
			month, err := tx.SpendTotal(store.PeriodScope(spend.Period(now)))
			if err != nil {
				return err
			}
			if month.Settled+month.Reserved > limit || month.Settled < 0 || month.Reserved < 0 {
				return fmt.Errorf("%+v passes the cap %d", month, limit)
			}
			for w := range budgets {
				tree, err := tx.SpendTotal(store.RunScope(host.RunID(name(w))))
				if err != nil || tree.Settled+tree.Reserved > budgets[w] {
					return fmt.Errorf("%+v passes the budget %d, %w", tree, budgets[w], err)
				}
			}
			return nil
		}
		var wg sync.WaitGroup
		errs := make([]error, workers)
		for w := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				r := run(name(w%runs), budgets[w%runs])
				for c, st := range plan[w] {
					var short spend.Shortage
					errs[w] = s.Write(context.Background(), func(tx *store.Tx) (err error) {
						before, err := tx.SpendTotal(store.PeriodScope(spend.Period(now)))
						if err != nil {
							return err
						}
						tree, err := tx.SpendTotal(store.RunScope(r.Root))
						if err != nil {
							return err
						}
						want := spend.Enough // the naive answer
						switch {
						case tree.Settled+tree.Reserved+st.amount > r.Budget:
							want = spend.NoBudget
						case before.Settled+before.Reserved+st.amount > limit:
							want = spend.NoCap
						}
						if short, _, err = spend.Reserve(tx, r, uint32(w*calls+c+1), 1, st.amount, limit, now); err != nil {
							return err
						}
						if short != want {
							return fmt.Errorf("%q, want %q", short, want)
						}
						return holds(tx)
					})
					if errs[w] != nil || short != spend.Enough {
						if errs[w] != nil {
							return
						}
						continue
					}
					errs[w] = s.Write(context.Background(), func(tx *store.Tx) error {
						cost := &st.cost
						if st.unknown {
							cost = nil
						}
						booked, err := spend.Settle(tx, r, uint32(w*calls+c+1), 1, st.amount, cost)
						if err != nil {
							return err
						}
						if want := max(st.cost, 0); !st.unknown && booked != want || st.unknown && booked != st.amount {
							return fmt.Errorf("booked %d of %+v", booked, st)
						}
						if _, err := spend.Settle(tx, r, uint32(w*calls+c+1), 1, st.amount, cost); err == nil {
							return fmt.Errorf("settled twice")
						}
						return holds(tx)
					})
					if errs[w] != nil {
						return
					}
				}
			}()
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Law 3.
func TestEachWarningIsGivenOnceInAMonth(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	r, call := run("run", 1<<60), uint32(0)
	reserve := func(amount abi.MicroUSD, limit abi.MicroUSD, at time.Time) (warn int) {
		t.Helper()
		call++
		if err := s.Write(t.Context(), func(tx *store.Tx) (err error) {
			var short spend.Shortage
			if short, warn, err = spend.Reserve(tx, r, call, 1, amount, limit, at); short != spend.Enough {
				t.Errorf("short of %s", short)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return warn
	}
	for i, c := range []struct {
		amount abi.MicroUSD
		warn   int
	}{{499, 0}, {1, 50}, {1, 0}, {248, 0}, {1, 75}, {0, 0}, {149, 0}, {1, 90}, {100, 0}} {
		if got := reserve(c.amount, 1000, now); got != c.warn {
			t.Errorf("step %d: warned of %d %%, want %d", i, got, c.warn)
		}
	}
	if got := reserve(1, 2000, now); got != 0 {
		t.Errorf("a raised cap warned again: %d", got)
	}
	if got := reserve(950, 1000, now.Add(time.Second)); got != 90 {
		t.Errorf("the next month: %d, want one warning of 90", got)
	}
}

func TestAbsurdAmountsCannotOverflow(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	const most = abi.MicroUSD(1<<63 - 1)
	for i, c := range []struct {
		amount, budget, limit abi.MicroUSD
		want                  spend.Shortage
	}{
		{most, most - 1, most, spend.NoBudget},
		{most, most, most - 1, spend.NoCap},
		{100, most, 99, spend.NoCap},
		{1, 0, most, spend.NoBudget},
		{1, most, 0, spend.NoCap},
		{0, 0, 0, spend.Enough},
	} {
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			short, _, err := spend.Reserve(tx, run("run", c.budget), uint32(i), 1, c.amount, c.limit, now)
			if short != c.want {
				t.Errorf("%+v: %q", c, short)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error {
		_, _, err := spend.Reserve(tx, run("run", most), 99, 1, -1, most, now)
		return err
	}); err == nil {
		t.Error("a negative amount was reserved")
	}
}

func TestPeriodsAreCalendarMonthsInUTC(t *testing.T) {
	east := time.FixedZone("east", 14*3600)
	for _, c := range []struct {
		at     time.Time
		period string
		next   time.Time
	}{
		{now, "2026-03", time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2026, 4, 1, 13, 0, 0, 0, east), "2026-03", time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC), "2026-12", time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if got := spend.Period(c.at); got != c.period {
			t.Errorf("%s is in %s", c.at, got)
		}
		if got := spend.NextPeriod(c.at); !got.Equal(c.next) {
			t.Errorf("after %s comes %s", c.at, got)
		}
	}
}

func TestEstimateNeverPassesTheCeiling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var costs []abi.MicroUSD
		for _, c := range rapid.SliceOf(rapid.Int64Range(0, 1000)).Draw(t, "costs") {
			costs = append(costs, abi.MicroUSD(c))
		}
		ceiling := abi.MicroUSD(rapid.Int64Range(0, 1000).Draw(t, "ceiling"))
		e := spend.Estimate(costs, ceiling)
		if e.P50 > e.P95 || e.P95 > ceiling || e.Runs != len(costs) || e.Ceiling != ceiling {
			t.Fatalf("%+v", e)
		}
	})
}

// Half of the earlier runs cost no more than P50, and nineteen of twenty no more than
// P95: both are a run's own cost, and never between two.
func TestAnEstimateIsWhatEarlierRunsCost(t *testing.T) {
	upTo := func(n int) (list []abi.MicroUSD) { // n … 1
		for ; n > 0; n-- {
			list = append(list, abi.MicroUSD(n))
		}
		return list
	}
	for _, c := range []struct {
		costs             []abi.MicroUSD
		ceiling, p50, p95 abi.MicroUSD
	}{
		{nil, 1000, 0, 0},
		{[]abi.MicroUSD{7}, 1000, 7, 7},
		{[]abi.MicroUSD{9, 1}, 1000, 1, 9},
		{[]abi.MicroUSD{5, 900, 4, 6, 3}, 1000, 5, 900},
		{upTo(20), 1000, 10, 19},
		{upTo(50), 1000, 25, 48},
		{upTo(50), 40, 25, 40},
		{upTo(50), 10, 10, 10},
		{upTo(50), 0, 0, 0},
	} {
		before := slices.Clone(c.costs)
		want := host.Estimate{Runs: len(c.costs), P50: c.p50, P95: c.p95, Ceiling: c.ceiling}
		if got := spend.Estimate(c.costs, c.ceiling); got != want {
			t.Errorf("of %v under %d: %+v, want %+v", c.costs, c.ceiling, got, want)
		}
		if !slices.Equal(before, c.costs) {
			t.Errorf("%v became %v", before, c.costs)
		}
	}
}

// Law 6: over any history of a tree of runs, each run stays within its budget and the
// calls of all together within the root's; in the end the root has spent what all did.
func TestATreeOfRunsNeverPassesItsRootsBudget(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		type node struct {
			run             host.Run
			parent          int
			children, calls int // not ended, not settled
			own, reserved   abi.MicroUSD
			ended           bool
		}
		root := run(fmt.Sprintf("run_t%d", round), abi.MicroUSD(rapid.IntRange(0, 100).Draw(rt, "budget")))
		tree := []*node{{run: root, parent: -1}}
		type open struct {
			node         int
			call         uint32
			amount, cost abi.MicroUSD
		}
		var list []open
		var all abi.MicroUSD // what calls reserved or cost, counted naively
		write := func(fn func(tx *store.Tx) error) error {
			return s.Write(context.Background(), func(tx *store.Tx) error {
				if err := fn(tx); err != nil {
					return err
				}
				for _, n := range tree {
					got, err := tx.SpendTotal(store.RunScope(n.run.ID))
					if err != nil || got.Settled+got.Reserved > n.run.Budget {
						return fmt.Errorf("%s: %+v passes %d, %w", n.run.ID, got, n.run.Budget, err)
					}
				}
				return nil
			})
		}
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		settle := func() {
			o := list[0]
			list = list[1:]
			n := tree[o.node]
			must(write(func(tx *store.Tx) error { _, err := spend.Settle(tx, n.run, o.call, 1, o.amount, &o.cost); return err }))
			n.calls, n.reserved, n.own, all = n.calls-1, n.reserved-o.amount, n.own+o.cost, all-o.amount+o.cost
		}
		end := func(i int) {
			n := tree[i]
			var spent abi.MicroUSD
			err := write(func(tx *store.Tx) (err error) { spent, err = spend.GiveBack(tx, n.run.ID); return err })
			if n.calls > 0 || n.children > 0 || n.ended || n.parent < 0 {
				if !errors.Is(err, host.ErrConflict) {
					rt.Fatalf("%+v gave back: %v", n, err)
				}
				return
			}
			must(err)
			if spent != n.own {
				rt.Fatalf("%+v spent %d", n, spent)
			}
			p := tree[n.parent]
			n.ended = true
			p.children, p.own, p.reserved = p.children-1, p.own+spent, p.reserved-n.run.Budget
		}
		for step := range uint32(rapid.IntRange(1, 25).Draw(rt, "steps")) {
			i := rapid.IntRange(0, len(tree)-1).Draw(rt, "run")
			n := tree[i]
			amount := abi.MicroUSD(rapid.IntRange(0, 40).Draw(rt, "amount"))
			fits := amount <= n.run.Budget-n.own-n.reserved
			switch what := rapid.SampledFrom([]string{"carve", "reserve", "reserve", "settle", "end"}).Draw(rt, "what"); {
			case what == "settle" && len(list) > 0:
				settle()
			case what == "end":
				end(i)
			case n.ended: // the runner starts nothing in a run that has ended
			case what == "carve":
				child := host.Run{ID: host.RunID(fmt.Sprintf("%s_%d", root.ID, step)), Root: root.ID, Parent: n.run.ID, Budget: amount}
				var short spend.Shortage
				must(write(func(tx *store.Tx) (err error) { short, err = spend.Carve(tx, n.run, child.ID, amount); return err }))
				if (short == spend.Enough) != fits {
					rt.Fatalf("carve of %d out of %+v: %q", amount, n, short)
				}
				if fits {
					n.reserved, n.children = n.reserved+amount, n.children+1
					tree = append(tree, &node{run: child, parent: i})
				}
			case what == "reserve":
				var short spend.Shortage
				must(write(func(tx *store.Tx) (err error) {
					short, _, err = spend.Reserve(tx, n.run, step, 1, amount, 1<<40, now)
					return err
				}))
				if (short == spend.Enough) != fits {
					rt.Fatalf("reserve %d in %+v: %q", amount, n, short)
				}
				if fits {
					list = append(list, open{i, step, amount, abi.MicroUSD(rapid.IntRange(0, int(amount)).Draw(rt, "cost"))})
					n.calls, n.reserved, all = n.calls+1, n.reserved+amount, all+amount
				}
			}
			if all > root.Budget {
				rt.Fatalf("the calls of the tree reserve or cost %d of %d", all, root.Budget)
			}
		}
		for len(list) > 0 {
			settle()
		}
		for i := len(tree) - 1; i > 0; i-- { // children come after their parents
			if !tree[i].ended {
				end(i)
			}
		}
		must(s.Read(context.Background(), func(tx *store.Tx) error {
			got, err := tx.SpendTotal(store.RunScope(root.ID))
			if got.Settled != all || got.Reserved != 0 {
				return fmt.Errorf("the root has %+v, its calls cost %d, %w", got, all, err)
			}
			return err
		}))
	})
}
