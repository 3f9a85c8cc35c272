package broker_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"modernc.org/sqlite"

	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// away is how a database goes away under a host that is at work, and comes back. What is
// outside, the world and the person, goes on.
type away struct {
	leave func() bool // false where it cannot at this moment
	back  func()
	gone  bool
	times int
}

func (a *away) is() bool { return a != nil && a.gone }

func (a *away) leaves() bool {
	if a.gone = a.leave(); a.gone {
		a.times++
	}
	return a.gone
}

// returns ends a daemon whose database is away. The next one does not start until it is back.
func (h *house) returns() {
	h.t.Helper()
	_ = h.store.Close()
	if h.away.gone {
		if s, err := h.opens(); err == nil {
			_ = s.Close()
			h.t.Error("a workspace was opened without its database")
		}
	}
	h.away.back()
	h.away.gone = false
	h.open()
	h.resume()
}

// deserted plays a program, and has the database leave at points counted from its last return.
func (h *house) deserted(program []string, points ...int) (keys map[string]string, passed int) {
	h.off = h.away.is
	h.must(h.store.Close())
	h.open()
	keys, passed = h.play(program, points)
	if h.away.times == 0 {
		h.t.Errorf("%v: the database was there all the time", program)
	}
	return keys, passed
}

var impatient atomic.Bool

// hookBusy makes connections wait no longer than a test does.
var hookBusy = sync.OnceFunc(func() {
	sqlite.RegisterConnectionHook(func(c sqlite.ExecQuerierContext, _ string) error {
		if !impatient.Load() {
			return nil
		}
		_, err := c.ExecContext(context.Background(), "PRAGMA busy_timeout=20", nil)
		return err
	})
})

// locked is a house whose database somebody else locks, as a copy or a person with a shell
// does, for longer than the host waits.
func locked(t *testing.T) *house {
	h := newHouse(t)
	h.opens = func() (*store.Store, error) {
		return store.OpenOn(context.Background(), filepath.Join(h.path, "db"), "acme", "test", h.now, "")
	}
	db, err := sql.Open("sqlite", filepath.Join(h.path, "db"))
	h.must(err)
	t.Cleanup(func() { _ = db.Close() })
	other, err := db.Conn(context.Background())
	h.must(err)
	exec := func(query string) error { _, err := other.ExecContext(context.Background(), query); return err }
	h.away = &away{
		leave: func() bool { return exec("BEGIN IMMEDIATE") == nil }, // not while the host writes
		back:  func() { h.must(exec("ROLLBACK")) },
	}
	return h
}

// SQLite is busy from any point of a call on, between its attempt and its result, too, and
// again from any point of what makes that good. The daemon ends, as nobody knows what it has.
// The next one comes to the same end, and nothing was sent twice that must not be.
func TestADatabaseThatIsBusyAtAnyPointEndsTheSame(t *testing.T) {
	if os.Getenv(storetest.Switch) != "" {
		return // it is SQLite's
	}
	hookBusy()
	impatient.Store(true)
	t.Cleanup(func() { impatient.Store(false) })
	for _, step := range []string{"read", "model", "blind", "keyed", "probe", "put", "edit"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			program := []string{step}
			h, want, points := play(t, program, nil)
			h.close()
			for first := 1; first <= points; first += storetest.Stride {
				for second := 1 + first%storetest.Stride; ; second += max(3, storetest.Stride) {
					h := locked(t)
					keys, passed := h.deserted(program, first, second)
					settled(t, h, keys, want)
					h.close()
					if t.Failed() {
						t.Fatalf("busy at point %d of %d, and at point %d after that", first, points, second)
					}
					if passed < first+second { // the second lies behind the end
						break
					}
				}
			}
		})
	}
}

// The server is stopped at once (pg_ctl stop -m immediate) after an attempt is durable and
// before its bytes leave, or after that and before its result, and once more during what makes
// that good.
func TestAServerThatStopsAmidstAnAttemptEndsTheSameNeedsPostgreSQL(t *testing.T) {
	server, plays := storetest.Brisk(t), 0
	crashing := func() *house {
		h := newHouse(t)
		plays++
		name := fmt.Sprintf("away_%d", plays)
		h.opens = func() (*store.Store, error) {
			return store.OpenPostgres(context.Background(), store.PostgresConfig{URL: server.URL(storetest.Role("acme"), name), Blobs: filepath.Join(h.path, "blobs")}, "acme", "test")
		}
		h.away = &away{leave: func() bool { server.Crash(t); return true }, back: func() {
			server.Restart(t)
			_, err := server.Database(t, name, "acme").Admin.ExecContext(context.Background(), `UPDATE monroe.lease SET expires_at = 0`) // the time that a successor would wait
			h.must(err)
		}}
		server.Database(t, name, "acme")
		return h
	}
	for _, step := range []string{"blind", "keyed", "probe", "model"} {
		program := []string{step}
		h, want, _ := play(t, program, nil)
		h.close()
		for at := h.left - 1; at <= h.left; at++ {
			h := crashing()
			keys, _ := h.deserted(program, at, 3)
			settled(t, h, keys, want)
			h.close()
			if t.Failed() {
				t.Fatalf("%s: stopped at point %d", step, at)
			}
		}
	}
}
