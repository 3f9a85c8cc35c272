package runner_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/workspace"
)

// waits is a worker that stays until the host lets it go.
func waits(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }

func code(module string, cpu time.Duration) runner.Code {
	return runner.Code{
		Kit: runner.Kit{Module: sha256.Sum256([]byte(module)), CPU: cpu},
		Dir: func(context.Context) (string, error) { return "", nil },
	}
}

func spawned(t *testing.T, w *runner.Warm, dir string) runner.Worker {
	t.Helper()
	p, err := w.Spawn(t.Context(), code(dir, time.Second))
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
			c, err := w.Spawn(t.Context(), code("a", time.Hour))
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
			if _, err := w.Spawn(context.Background(), code("a", time.Second)); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})
	})
}

// loader is a Spawner that reads what its processes would load.
type loader struct {
	fakeSpawner
	nth    int
	before func(nth int) // a process is started, and nothing was verified for it yet
	loaded chan string   // what each of them loaded, or why it was not started
}

func (s *loader) Spawn(ctx context.Context, c runner.Code) (runner.Worker, error) {
	s.nth++ // they start one after another here
	if s.before != nil {
		s.before(s.nth)
	}
	dir, err := c.Dir(ctx)
	if err != nil {
		s.loaded <- err.Error()
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "module.wasm"))
	if err != nil {
		return nil, err
	}
	s.loaded <- string(b)
	return s.next()
}

// warmed is a workspace with room for spares, and where it keeps its module.
func warmed(t *testing.T) (b *bench, s *loader, w *runner.Warm, artefact, upload string) {
	t.Helper()
	s = &loader{loaded: make(chan string, 8)}
	s.scripts, s.ready = []script{func(c net.Conn) { open(c); call(c, 1, now); done(c) }}, engine
	w = runner.NewWarm(s, 2, time.Hour, slog.New(slog.DiscardHandler))
	t.Cleanup(w.Close)
	b = benchWith(t, &fakeSpawner{}, func(c *workspace.Config) { c.Spawner = w })
	modules, digest := filepath.Join(b.config.Dir, "modules"), fmt.Sprintf("%x", sha256.Sum256([]byte(manifest)))
	return b, s, w, filepath.Join(modules, "artefacts", digest), filepath.Join(modules, "uploads", digest+".wasm")
}

// A process is started for a spare long after its module was verified for a run. What
// is changed meanwhile never runs.
func TestASpareLoadsWhatIsVerifiedThen(t *testing.T) {
	const gone = "neither a good artefact nor its upload is there"
	for name, c := range map[string]struct {
		lose bool // the upload as well
		want string
	}{
		"the artefact is changed":        {false, manifest}, // it is made again
		"and it cannot be made any more": {true, gone},
	} {
		t.Run(name, func(t *testing.T) {
			b, s, _, artefact, upload := warmed(t)
			s.before = func(nth int) {
				if nth != 2 {
					return
				}
				remove(t, filepath.Join(artefact, "module.wasm"))
				if err := os.WriteFile(filepath.Join(artefact, "module.wasm"), []byte("flipped"), 0o600); err != nil {
					t.Error(err)
				}
				if c.lose {
					remove(t, upload)
				}
			}
			if v := b.result(t); v.State != host.StateSucceeded {
				t.Fatalf("%s: %s", v.State, v.Failure)
			}
			if run, spare := <-s.loaded, <-s.loaded; run != manifest || !strings.Contains(spare, c.want) {
				t.Errorf("the run loaded %q, the spare after it %q", run, spare)
			}
			v := b.result(t)
			if ran := v.State == host.StateSucceeded; ran == c.lose || c.lose && !strings.Contains(v.Failure, gone) {
				t.Errorf("the next run %s: %s", v.State, v.Failure)
			}
		})
	}
}

// A spare has its module: the run that takes it reads nothing of it again.
func TestARunThatTakesASpareReadsNoArtefact(t *testing.T) {
	b, s, w, artefact, upload := warmed(t)
	if v := b.result(t); v.State != host.StateSucceeded {
		t.Fatalf("%s: %s", v.State, v.Failure)
	}
	if run, spare := <-s.loaded, <-s.loaded; run != manifest || spare != manifest {
		t.Fatalf("loaded were %q and %q", run, spare)
	}
	w.Settled()
	remove(t, artefact)
	remove(t, upload)
	if v := b.result(t); v.State != host.StateSucceeded {
		t.Errorf("with a spare: %s: %s", v.State, v.Failure)
	}
	if next := <-s.loaded; next == manifest {
		t.Error("the spare after it was started from nothing")
	}
	w.Settled()
	if v := b.result(t); v.State != host.StateFailed {
		t.Errorf("without one: %s", v.State)
	}
}

// A module that leaves its engine while it is loaded is named once and not tried again,
// whether a run needs the process or nobody does yet.
func TestAnEscapeWhileLoading(t *testing.T) {
	escape := &runner.EscapeError{Tried: []string{"execve(0x1)"}}
	alarms := func(t *testing.T, b *bench) (list []audit.Leaf) {
		t.Helper()
		v, err := b.Audit(t.Context(), b.caller, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range v.Leaves {
			var leaf audit.Leaf
			if err := json.Unmarshal(l.Body, &leaf); err != nil {
				t.Fatal(err)
			}
			if leaf.Kind == audit.KindAlarm {
				list = append(list, leaf)
			}
		}
		return list
	}
	t.Run("for a run", func(t *testing.T) {
		b, s, _, _, _ := warmed(t)
		s.before = func(int) { s.err = escape }
		v := b.result(t)
		if v.State != host.StateFailed || !strings.Contains(v.Failure, "tried what it may not: execve(0x1)") || s.nth != 1 {
			t.Errorf("%s: %s, %d processes", v.State, v.Failure, s.nth)
		}
		if l := alarms(t, b); len(l) != 1 || l[0].Run != v.ID || l[0].Detail != "execve(0x1)" {
			t.Errorf("alarms %+v", l)
		}
	})
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(manifest)))
	for name, second := range map[string]func(*loader){
		"for a spare":          func(s *loader) { s.err = escape },
		"a spare that waits":   func(s *loader) { s.tried = escape.Tried; s.scripts = append(s.scripts, func(net.Conn) {}) },
		"a spare that is left": func(s *loader) { s.tried = escape.Tried; s.scripts = append(s.scripts, waits) },
	} {
		t.Run(name, func(t *testing.T) {
			b, s, w, _, _ := warmed(t)
			s.before = func(nth int) {
				if nth == 2 {
					second(s)
				}
			}
			if v := b.result(t); v.State != host.StateSucceeded {
				t.Fatalf("%s: %s", v.State, v.Failure)
			}
			<-s.loaded
			<-s.loaded
			w.Settled()
			w.Close()
			if l := alarms(t, b); len(l) != 1 || l[0].Run != "" || l[0].Module != digest || l[0].Skill != "fixture" || l[0].Detail != "a spare worker: execve(0x1)" {
				t.Errorf("alarms %+v", l)
			}
		})
	}
}

// Where no process can start the run ends with the reason, and without another try. What
// may pass is tried again.
func TestAHostWhereNoProcessStarts(t *testing.T) {
	for _, c := range []struct {
		err   error
		tries int
		says  string
	}{
		{&host.Problem{Kind: host.ErrOverload, Code: "UNCONFINED", Detail: "a wall is missing", Remedy: "build it"}, 1, "UNCONFINED: a wall is missing (build it)"},
		{errors.New("no memory just now"), 3, "the host could not go on: the worker did not start: no memory just now"},
	} {
		b, s, _, _, _ := warmed(t)
		s.before = func(int) { s.err = c.err }
		if v := b.result(t); v.State != host.StateFailed || v.Failure != c.says || s.nth != c.tries {
			t.Errorf("%s: %s, %d processes", v.State, v.Failure, s.nth)
		}
	}
}

// A spare that ends is noticed when it does, and not when a run asks for one.
func TestALostSpareIsNamedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeSpawner{scripts: []script{waits, func(net.Conn) {}}}
		w := runner.NewWarm(s, 1, time.Minute, slog.New(slog.DiscardHandler))
		defer w.Close()
		var told []string
		c := code("a", time.Second)
		c.Escaped = func(tried []string) { told = append(told, tried...) }
		p, err := w.Spawn(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.tried = []string{"socket(2)"}
		s.mu.Unlock()
		end(t, p)
		if len(told) != 1 || told[0] != "socket(2)" {
			t.Errorf("told %v", told)
		}
	})
}
