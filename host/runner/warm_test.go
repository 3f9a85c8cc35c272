package runner_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/getmonroe/monroe/host/runner"
)

// waits is a worker that stays until the host lets it go.
func waits(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }

func spawned(t *testing.T, w *runner.Warm, dir string) runner.Worker {
	t.Helper()
	p, err := w.Spawn(t.Context(), dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func end(t *testing.T, p runner.Worker) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	synctest.Wait() // the spare that takes its place is there
}

// TestWarmSpares follows how many processes were started.
func TestWarmSpares(t *testing.T) {
	warm := func(t *testing.T, most int, do func(*fakeSpawner, *runner.Warm)) {
		synctest.Test(t, func(t *testing.T) {
			s := &fakeSpawner{scripts: []script{waits}}
			w := runner.NewWarm(s, most, time.Minute, slog.New(slog.DiscardHandler))
			defer w.Close()
			do(s, w)
		})
	}
	started := func(t *testing.T, s *fakeSpawner, want int, when string) {
		t.Helper()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.started != want {
			t.Errorf("%s: %d processes were started, not %d", when, s.started, want)
		}
	}
	t.Run("the second run of a module starts none", func(t *testing.T) {
		warm(t, 2, func(s *fakeSpawner, w *runner.Warm) {
			first := spawned(t, w, "a")
			started(t, s, 1, "no spare before a worker ended")
			end(t, first)
			started(t, s, 2, "a spare takes its place")
			second := spawned(t, w, "a")
			started(t, s, 2, "the spare was taken")
			if second == first {
				t.Error("a worker served twice")
			}
			end(t, second)
			started(t, s, 3, "and replaced once")
			if err := second.Close(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			started(t, s, 3, "closing twice starts no more")
		})
	})
	t.Run("a spare is for one module and one limit", func(t *testing.T) {
		warm(t, 2, func(s *fakeSpawner, w *runner.Warm) {
			end(t, spawned(t, w, "a"))
			b := spawned(t, w, "b")
			started(t, s, 3, "another module")
			c, err := w.Spawn(t.Context(), "a", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			started(t, s, 4, "another limit")
			_, _ = b.Close(), c.Close()
		})
	})
	t.Run("the oldest makes room", func(t *testing.T) {
		warm(t, 1, func(s *fakeSpawner, w *runner.Warm) {
			a, b := spawned(t, w, "a"), spawned(t, w, "b")
			end(t, a)
			end(t, b)
			started(t, s, 4, "two ended")
			end(t, spawned(t, w, "b"))
			started(t, s, 5, "b had the spare")
			end(t, spawned(t, w, "a"))
			started(t, s, 7, "a had none")
		})
	})
	t.Run("one that nobody takes ends", func(t *testing.T) {
		warm(t, 2, func(s *fakeSpawner, w *runner.Warm) {
			end(t, spawned(t, w, "a"))
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			end(t, spawned(t, w, "a"))
			started(t, s, 4, "after its life")
		})
	})
	t.Run("one that died is not given to a run", func(t *testing.T) {
		warm(t, 2, func(s *fakeSpawner, w *runner.Warm) {
			first := spawned(t, w, "a")
			s.mu.Lock()
			s.scripts = []script{func(net.Conn) {}, func(net.Conn) {}, waits}
			s.mu.Unlock()
			end(t, first)
			p := spawned(t, w, "a")
			select {
			case <-p.Done():
				t.Error("the run got a dead worker")
			default:
			}
			end(t, p)
		})
	})
	t.Run("none are kept", func(t *testing.T) {
		warm(t, 0, func(s *fakeSpawner, w *runner.Warm) {
			end(t, spawned(t, w, "a"))
			started(t, s, 1, "with room for none")
		})
	})
	t.Run("a failure is the run's that needs a worker", func(t *testing.T) {
		warm(t, 2, func(s *fakeSpawner, w *runner.Warm) {
			first := spawned(t, w, "a")
			broken := errors.New("no more processes")
			s.mu.Lock()
			s.err = broken
			s.mu.Unlock()
			end(t, first)
			if _, err := w.Spawn(context.Background(), "a", time.Second); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})
	})
}
