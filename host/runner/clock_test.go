package runner_test

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/workspace"
)

// A wall clock is set back and forth, with a restart after each step, which forgets what
// passed in between. What waits for a moment waits for that one, ends after it, and stays
// ended.

// through sets a clock to each of some distances from now, lets the sweep look, and starts
// the workspace again.
func (b *bench) through(t *testing.T, ahead *atomic.Int64, steps []time.Duration, check func(step time.Duration)) {
	t.Helper()
	for _, step := range steps {
		ahead.Store(int64(step))
		b.sweep(t)
		b.reopen(t)
		b.sweep(t)
		check(step)
	}
}

const day = 24 * time.Hour

func TestATimerIsOneMomentWhateverTheClockDoes(t *testing.T) {
	var ahead atomic.Int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, sleep); done(c) }}}
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	id := b.parked(t)
	due := b.view(t, id).WakeAt
	b.through(t, &ahead, []time.Duration{-2 * day, 30 * time.Minute, -time.Hour, 58 * time.Minute, -400 * day}, func(step time.Duration) {
		if v := b.view(t, id); v.Wait != host.WaitTimer || !v.WakeAt.Equal(due) || s.started != 1 {
			t.Errorf("at %s the run %s for %q until %s, with %d workers", step, v.State, v.Wait, v.WakeAt, s.started)
		}
	})
	ahead.Store(int64(61 * time.Minute))
	b.sweep(t)
	if v := b.finish(t, id); v.State != host.StateSucceeded {
		t.Errorf("%s: %s", v.State, v.Failure)
	}
	b.through(t, &ahead, []time.Duration{-2 * day, 2 * time.Hour}, func(step time.Duration) {
		if v := b.view(t, id); v.State != host.StateSucceeded || s.started != 2 {
			t.Errorf("at %s the run that has ended %s, with %d workers", step, v.State, s.started)
		}
	})
	b.verified(t)
}

func TestADoubtIsAskedAboutWhateverTheClockDoes(t *testing.T) {
	b, id, sent, ahead := inDoubt(t)
	last := b.view(t, id).WakeAt
	b.through(t, ahead, []time.Duration{-2 * day, broker.DefaultDoubtLife - time.Hour, -400 * day, 0}, func(step time.Duration) {
		if v := b.view(t, id); v.Wait != host.WaitUnknown || !v.WakeAt.Equal(last) || sent.Load() != 1 {
			t.Errorf("at %s the run %s for %q until %s, %d sent", step, v.State, v.Wait, v.WakeAt, sent.Load())
		}
	})
	ahead.Store(int64(-2 * day)) // a person can answer at any time
	if _, err := b.Resolve(t.Context(), b.caller, id, api.ResolveInput{Outcome: host.Happened}); err != nil {
		t.Fatal(err)
	}
	if v := b.finish(t, id); v.State != host.StateSucceeded || v.Log[0].Outcome != "ok" {
		t.Errorf("%s: %+v", v.State, v.Log)
	}

	b, id, sent, ahead = inDoubt(t) // nobody answers
	ahead.Store(int64(broker.DefaultDoubtLife + time.Minute))
	b.sweep(t)
	if v := b.finish(t, id); v.Log[0].Outcome != string(abi.OutcomeUnknown) {
		t.Errorf("%+v", v.Log)
	}
	b.through(t, ahead, []time.Duration{-2 * day, 0}, func(step time.Duration) {
		if v := b.view(t, id); !v.State.Ended() || sent.Load() != 1 {
			t.Errorf("at %s the run %s, %d sent", step, v.State, sent.Load())
		}
	})
	b.verified(t)
}

func TestRetentionKeepsItsDaysWhateverTheClockDoes(t *testing.T) {
	b, ahead := keeper(t, func(c *workspace.Config) { c.Operator.Retention.Days = 30 })
	old := b.kept(t)
	b.through(t, ahead, []time.Duration{29 * day, -60 * day, 29 * day, 0}, func(step time.Duration) {
		if v := b.view(t, old); !v.ErasedAt.IsZero() || string(v.Result) != `"well"` {
			t.Errorf("at %s it is erased", step)
		}
	})
	b.through(t, ahead, []time.Duration{31 * day, -60 * day, 0}, func(step time.Duration) {
		if v := b.view(t, old); v.ErasedAt.IsZero() || v.Result != nil {
			t.Errorf("at %s it is not erased", step)
		}
	})
	// Without a restart: what was last done in the future is done again now.
	ahead.Store(int64(10 * day))
	b.sweep(t)
	ahead.Store(int64(-29 * day))
	young := b.kept(t)
	ahead.Store(int64(2 * day))
	b.sweep(t)
	if b.view(t, young).ErasedAt.IsZero() {
		t.Error("after the clock was set back nothing is tidied up until it is where it was")
	}
	b.verified(t)
}

// A checkpoint that was signed while the clock was ahead does not put off the next one.
func TestTheLogIsSignedWhateverTheClockDoes(t *testing.T) {
	var ahead atomic.Int64
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); done(c) }}}
	b := benchAt(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	signed := func() (n int64) {
		t.Helper()
		db, done := b.beside(t)
		defer done()
		if err := db.QueryRowContext(t.Context(), `SELECT max(size) FROM audit_checkpoint`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	ahead.Store(int64(10 * day))
	b.result(t)
	b.sweep(t)
	before := signed()
	ahead.Store(0)
	b.result(t)
	b.sweep(t)
	if now := signed(); now <= before {
		t.Errorf("%d leaves are signed, and then %d", before, now)
	}
}
