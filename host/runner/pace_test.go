package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// A connector comes back that 5,000 runs wait for. They are woken at the pace that the
// operator set, second by second, each once, however often somebody asks.
func TestFiveThousandWaitersAreWokenAtAPace(t *testing.T) {
	const waiters, wakes = 5000, 100
	now := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	st, err := storetest.Open(t, t.TempDir(), "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	ann := host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleOwner}
	var all []host.RunID
	for i := range waiters {
		all = append(all, host.RunID(fmt.Sprintf("run_%05d", i)))
	}
	if err := st.Write(t.Context(), func(tx *store.Tx) error { return tx.PutPrincipal(ann, now) }); err != nil {
		t.Fatal(err)
	}
	for some := range slices.Chunk(all, 250) { // no transaction may be as long as a lease
		err := st.Write(t.Context(), func(tx *store.Tx) (err error) {
			for _, id := range some {
				r := store.Run{Run: host.Run{ID: id, Root: id, OnBehalfOf: ann, State: host.StateQueued, CreatedAt: now}, Start: []byte{1}, StartLabel: []byte{1}}
				err = errors.Join(err, tx.InsertRun(r), tx.SetState(id, host.StateWaiting, host.WaitConnector, now.Add(24*time.Hour), now, host.StateQueued))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r := runner.New(runner.Config{Store: st, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler), Workers: 4, Wakes: wakes})
	t.Cleanup(r.Close)
	var mu sync.Mutex
	var woken []host.RunID
	r.Instead(func(_ context.Context, id host.RunID) {
		mu.Lock()
		defer mu.Unlock()
		woken = append(woken, id)
	})
	goOn := func(list []host.RunID) { // their connector is there
		t.Helper()
		if err := st.Write(t.Context(), func(tx *store.Tx) (err error) {
			for _, id := range list {
				err = errors.Join(err, tx.SetState(id, host.StateRunning, "", time.Time{}, now, host.StateWaiting)) // once each
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(r.Sweep())
	r.Idle()
	if len(woken) != 0 {
		t.Fatalf("%d were woken before anything came back", len(woken))
	}
	must(r.Recheck()) // it comes back
	for second := 1; second <= waiters/wakes; second++ {
		must(r.Sweep())
		if second < 4 {
			must(r.Recheck()) // somebody applies a configuration again and again
			must(r.Sweep())
		}
		r.Idle()
		if want := second * wakes; len(woken) != want {
			t.Fatalf("after second %d, %d were woken, want %d", second, len(woken), want)
		}
		goOn(woken[len(woken)-wakes:])
		now = now.Add(time.Second)
	}
	slices.Sort(woken)
	if !slices.Equal(woken, all) {
		t.Error("not each was woken once")
	}
	// What was saved up is a second's worth, and a clock that is set back takes none.
	now = now.Add(time.Hour)
	must(r.Sweep())
	now = now.Add(-2 * time.Hour)
	must(r.Sweep())
}

// Every second the oldest go first.
func TestTheOldestAreWokenFirst(t *testing.T) {
	now := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	st, err := storetest.Open(t, t.TempDir(), "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	ann := host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleOwner}
	if err := st.Write(t.Context(), func(tx *store.Tx) (err error) {
		if err := tx.PutPrincipal(ann, now); err != nil {
			return err
		}
		for i := range 6 {
			id := host.RunID(fmt.Sprintf("run_%d", i))
			r := store.Run{Run: host.Run{ID: id, Root: id, OnBehalfOf: ann, State: host.StateQueued, CreatedAt: now.Add(-time.Duration(i) * time.Second)}, Start: []byte{1}, StartLabel: []byte{1}}
			if err := tx.InsertRun(r); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r := runner.New(runner.Config{Store: st, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler), Workers: 1, Wakes: 2})
	t.Cleanup(r.Close)
	var mu sync.Mutex
	var woken []host.RunID
	r.Instead(func(ctx context.Context, id host.RunID) {
		mu.Lock()
		defer mu.Unlock()
		woken = append(woken, id)
		_ = st.Write(ctx, func(tx *store.Tx) error {
			return tx.SetState(id, host.StateRunning, "", time.Time{}, now, host.StateQueued)
		})
	})
	if err := r.Sweep(); err != nil {
		t.Fatal(err)
	}
	r.Idle()
	slices.Sort(woken)
	if !slices.Equal(woken, []host.RunID{"run_4", "run_5"}) {
		t.Errorf("woken were %v", woken)
	}
}
