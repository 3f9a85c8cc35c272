package runner_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/abi/wire"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/config"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/workspace"
)

// modelWorld has a model that answers when it is told to.
type modelWorld struct {
	fakeWorld
	asked  chan struct{}
	answer chan struct{}
}

func (modelWorld) Operations() []connectors.Operation {
	return []connectors.Operation{{Name: "model.ask", Version: 1, Effect: abi.EffectMetered, Replay: abi.ReplayPure, Summary: "x", Args: json.RawMessage(`{}`)}}
}

func (modelWorld) Plan(context.Context, connectors.Call) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{
		Resources: []string{"model:m"}, Destination: "m", Audience: []string{"model"}, Ceiling: 10,
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://example.com/"}},
	}, nil
}

func (w modelWorld) Perform(context.Context, grant.Permit, connectors.Call, connectors.Plan, func(string)) broker.Outcome {
	w.asked <- struct{}{}
	<-w.answer
	return broker.Outcome{Result: connectors.Result{Reply: "yes", Provenance: connectors.Provenance{Readers: []string{"workspace", "model"}}}}
}

const (
	thinking = `{"abi":1,"name":"thinking","version":"1","description":"","ops":["send"],"limits":{"wall_ns":3000000000},"operations":[{"operation":"model.ask","effect":"metered","resource":"model:**"}]}`
	thinks   = "version: 1\nworkspace: team\ncap_usd: \"1\"\ngrants:\n  - {skill: thinking, operation: model.ask, resource: \"model:**\"}\n"
	thought  = `{"op":"send","v":1,"args":{"operation":"model.ask","args":{}}}`
)

// recorded takes what the host says first, and returns how many answers will follow.
func recorded(c net.Conn) uint32 {
	_, b, err := wire.ReadFrame(c, wire.KindStart)
	var start wire.Start
	if err != nil || json.Unmarshal(b, &start) != nil {
		return 0
	}
	_, _, _ = wire.ReadFrame(c, wire.KindInput)
	return start.Past
}

// thinker is a workspace with one worker and a skill that asks a model.
func thinker(t *testing.T, cfg string, clock func() time.Time) (*bench, modelWorld) {
	t.Helper()
	w := modelWorld{asked: make(chan struct{}, 4), answer: make(chan struct{}, 4)}
	s := &cast{started: map[string]int{}, play: map[string]script{
		"fixture": func(c net.Conn) { open(c); done(c) },
		"thinking": func(c net.Conn) {
			if recorded(c) > 0 {
				past(c, 1)
				seen(c, 1, thought)
			} else {
				call(c, 1, thought)
			}
			done(c)
		},
	}}
	b := benchWith(t, &fakeSpawner{}, func(c *workspace.Config) {
		keep := time.Millisecond
		c.Spawner = s
		c.Now, c.Operator.Workers, c.Operator.Waits.KeepWorker = clock, 1, &keep
		c.World = func(*config.Workspace) (broker.World, error) { return w, nil }
	})
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(thinking)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Apply(t.Context(), b.caller, api.ApplyInput{Config: cfg}); err != nil {
		t.Fatal(err)
	}
	return b, w
}

// While a model thinks, the only worker serves another run, and the time that the run
// may take stands still. Then the run goes on by replay.
func TestASlowModelLeavesTheWorkerToOthers(t *testing.T) {
	b, w := thinker(t, thinks, time.Now)
	id := b.begin(t, "thinking")
	<-w.asked
	for b.view(t, id).Wait != host.WaitModel { // it is parked while its call goes on
		continue
	}
	v := b.view(t, id)
	if v.Waiting == nil || v.Waiting.Owner == "" || v.Waiting.Expires.Before(time.Now().Add(20*time.Second)) {
		t.Errorf("%+v", v.Waiting)
	}
	if o := b.finish(t, b.begin(t, "fixture")); o.State != host.StateSucceeded {
		t.Errorf("the other run %s: %s", o.State, o.Failure)
	}
	<-time.After(3200 * time.Millisecond) // longer than it may take without waiting
	w.answer <- struct{}{}
	if v := b.finish(t, id); v.State != host.StateSucceeded || len(v.Log) != 1 || v.Log[0].Outcome != "ok" || v.Log[0].Cost != 10 {
		t.Errorf("%s: %s %+v", v.State, v.Failure, v.Log)
	}
}

// A person ends a run whose model is still at it.
func TestARunIsCancelledWhileItsModelThinks(t *testing.T) {
	b, w := thinker(t, thinks, time.Now)
	id := b.begin(t, "thinking")
	<-w.asked
	for b.view(t, id).Wait != host.WaitModel {
		continue
	}
	if err := b.CancelRun(t.Context(), b.caller, id); err != nil {
		t.Fatal(err)
	}
	w.answer <- struct{}{}
	if v := b.finish(t, id); v.State != host.StateCancelled || v.Reserved != 0 {
		t.Errorf("%s: %+v", v.State, v.Run)
	}
}

// Nobody raises the cap: the run ends, and says so.
func TestNobodyRaisesTheCap(t *testing.T) {
	var ahead atomic.Int64
	b, _ := thinker(t, strings.Replace(thinks, `"1"`, `"0.000009"`, 1), func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	id := b.begin(t, "thinking")
	b.await(t, id, func(s host.RunState) bool { return s == host.StateWaiting })
	v := b.view(t, id)
	if v.Waiting == nil || v.Waiting.Kind != host.WaitBudget || time.Until(v.Waiting.Expires) < 34*24*time.Hour || v.Waiting.Next.After(v.Waiting.Expires) {
		t.Errorf("%+v", v.Waiting)
	}
	ahead.Store(int64(broker.DefaultBudgetLife + time.Minute))
	b.sweep(t)
	if v := b.finish(t, id); v.State != host.StateFailed || v.Failure != "BUDGET: the month's cap was reached and not raised in time" {
		t.Errorf("%s: %q", v.State, v.Failure)
	}
}

// Each kind of wait has somebody whose turn it is, another one for each. That a run which has
// come to wait shows him and an end is in view, by which every test here looks at runs; of a
// connection that was withdrawn and of a person's turn host/broker's tests look at the end.
func TestEveryWaitHasAnOwner(t *testing.T) {
	owners := map[string]host.WaitKind{}
	for _, kind := range host.WaitKinds() {
		before, taken := owners[kind.Owner()]
		if owners[kind.Owner()] = kind; taken || kind.Owner() == "" {
			t.Errorf("%s has the owner %q, as has %q", kind, kind.Owner(), before)
		}
	}
	if host.WaitKind("someday").Owner() != "" {
		t.Error("a kind that is not known has an owner")
	}
}

// beside opens the database beside the daemon.
func (b *bench) beside(t *testing.T) (db *sql.DB, done func()) {
	t.Helper()
	if b.config.Postgres != nil {
		return storetest.DB(t, b.config.Dir), func() {}
	}
	db, err := sql.Open("sqlite", filepath.Join(b.config.Dir, "monroe.db"))
	if err != nil {
		t.Fatal(err)
	}
	return db, func() { _ = db.Close() }
}

// TestACancelIsDurableWhenItIsAnswered looks at what the disk holds at the moment that a
// person is told of it, while the worker is still there: a daemon that dies then leaves a
// run that its successor ends, before it lets it ask for anything.
func TestACancelIsDurableWhenItIsAnswered(t *testing.T) {
	hold, asked := make(chan struct{}), make(chan struct{}, 1)
	s := &fakeSpawner{scripts: []script{func(c net.Conn) { open(c); call(c, 1, now); asked <- struct{}{}; <-hold }}}
	b := benchWith(t, s, func(c *workspace.Config) { c.Postgres = nil }) // a file can be copied
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "fixture"})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := b.CancelRun(t.Context(), b.caller, r.ID); err != nil {
		t.Fatal(err)
	}
	if v := b.view(t, r.ID); v.State != host.StateRunning {
		t.Fatalf("the run is %s already", v.State)
	}
	left := filepath.Join(t.TempDir(), "team")
	if err := os.CopyFS(left, os.DirFS(b.config.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(left, "keyset.json"), 0o600), os.Chmod(filepath.Join(left, "owner.token"), 0o600)); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if v := b.finish(t, r.ID); v.State != host.StateCancelled {
		t.Errorf("the run %s: %s", v.State, v.Failure)
	}
	next := &fakeSpawner{ready: engine, scripts: []script{func(c net.Conn) { open(c); past(c, 1); seen(c, 1, now); done(c) }}}
	c := b.config
	c.Dir, c.Spawner = left, next
	w, err := workspace.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	after := &bench{Workspace: w, caller: b.caller, config: c}
	v := after.finish(t, r.ID)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if v.State != host.StateCancelled || v.Failure != runner.ErrCancelled.Error() || next.started != 0 {
		t.Errorf("after the crash the run %s: %q, with %d workers", v.State, v.Failure, next.started)
	}
}
