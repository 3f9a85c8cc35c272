package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
)

// brokenWorld takes a mail and breaks the connection before it answers.
type brokenWorld struct {
	fakeWorld
	sent *atomic.Int64
}

func (brokenWorld) Operations() []connectors.Operation {
	return []connectors.Operation{{Name: "mail.send", Version: 1, Effect: abi.EffectSend, Replay: abi.ReplayBlind, Summary: "x", Args: json.RawMessage(`{}`)}}
}

func (brokenWorld) Plan(context.Context, connectors.Call) (connectors.Plan, *abi.Denial) {
	return connectors.Plan{
		Resources: []string{"mail:bob@example.com"}, Destination: "bob", Audience: []string{"mail:bob@example.com"},
		Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://example.com/"}},
	}, nil
}

func (w brokenWorld) Perform(context.Context, grant.Permit, connectors.Call, connectors.Plan, func(string)) broker.Outcome {
	w.sent.Add(1)
	return unheard()
}

// unheard is an attempt whose answer was lost.
func unheard() broker.Outcome {
	return broker.Outcome{Denial: &abi.Denial{Code: abi.OutcomeUnknown, Reason: "the connection broke", Effect: abi.OutcomeMay}}
}

const (
	mailing = `{"abi":1,"name":"mailing","version":"1","description":"","ops":["send"],"operations":[{"operation":"mail.send","effect":"send","resource":"mail:**"}]}`
	grants  = "version: 1\nworkspace: team\ncap_usd: \"1\"\ngrants:\n  - {skill: mailing, operation: mail.send, resource: \"mail:**\"}\n"
	letter  = `{"op":"send","v":1,"args":{"operation":"mail.send","args":{}}}`
)

// inDoubt brings a run to where a person has to say whether its mail arrived.
func inDoubt(t *testing.T) (b *bench, id host.RunID, sent *atomic.Int64, ahead *atomic.Int64) {
	t.Helper()
	sent, ahead = new(atomic.Int64), new(atomic.Int64)
	s := &fakeSpawner{scripts: []script{func(c net.Conn) {
		open(c)
		call(c, 1, letter)
		done(c)
	}}}
	b = benchIn(t, s, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, brokenWorld{sent: sent})
	if _, err := b.PushSkill(t.Context(), b.caller, []byte(mailing)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Apply(t.Context(), b.caller, api.ApplyInput{Config: grants}); err != nil {
		t.Fatal(err)
	}
	r, err := b.StartRun(t.Context(), b.caller, api.StartInput{Skill: "mailing"})
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, r.ID, func(st host.RunState) bool { return st == host.StateWaiting })
	if _, err := b.Resolve(t.Context(), b.caller, r.ID, api.ResolveInput{Outcome: host.Happened}); !errors.Is(err, host.ErrConflict) {
		t.Errorf("a run that waits for an approval was resolved: %v", err)
	}
	b.approve(t)
	b.await(t, r.ID, func(host.RunState) bool { return b.view(t, r.ID).Wait == host.WaitUnknown })
	return b, r.ID, sent, ahead
}

func (b *bench) approve(t *testing.T) {
	t.Helper()
	list, err := b.Approvals(t.Context(), b.caller, host.ApprovalPending)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d approvals, %v", len(list), err)
	}
	if _, err := b.Decide(t.Context(), b.caller, list[0].ID, api.Decision{Decision: api.Approve, Digest: list[0].Digest}); err != nil {
		t.Fatal(err)
	}
}

func TestAPersonSaysWhatBecameOfAnAttempt(t *testing.T) {
	for outcome, want := range map[host.Resolution]struct {
		outcome string
		sent    int64
	}{host.Happened: {"ok", 1}, host.Abandoned: {string(abi.OutcomeUnknown), 1}} {
		b, id, sent, _ := inDoubt(t)
		if v := b.view(t, id); v.Log[0].Outcome != string(host.WaitUnknown) || !strings.Contains(v.Log[0].Reason, "the connection broke") {
			t.Errorf("%+v", v.Log)
		}
		for _, bad := range []api.ResolveInput{{Outcome: outcome, Call: 2}, {Outcome: "perhaps"}, {}} {
			if _, err := b.Resolve(t.Context(), b.caller, id, bad); err == nil {
				t.Errorf("%+v was taken", bad)
			}
		}
		viewer := b.caller
		viewer.Role = host.RoleViewer
		if _, err := b.Resolve(t.Context(), viewer, id, api.ResolveInput{Outcome: outcome}); !errors.Is(err, host.ErrForbidden) {
			t.Errorf("a viewer: %v", err)
		}
		if _, err := b.Resolve(t.Context(), b.caller, id, api.ResolveInput{Outcome: outcome, Call: 1}); err != nil {
			t.Fatal(err)
		}
		b.await(t, id, func(host.RunState) bool { return false })
		if _, err := b.Resolve(t.Context(), b.caller, id, api.ResolveInput{Outcome: outcome}); !errors.Is(err, host.ErrConflict) {
			t.Errorf("a second word: %v", err)
		}
		if v := b.view(t, id); v.State != host.StateSucceeded || v.Log[0].Outcome != want.outcome || sent.Load() != want.sent {
			t.Errorf("%s: %s, %+v, %d sent", outcome, v.State, v.Log, sent.Load())
		}
	}
}

func TestWhatDidNotHappenIsAskedForAgain(t *testing.T) {
	b, id, sent, _ := inDoubt(t)
	if _, err := b.Resolve(t.Context(), b.caller, id, api.ResolveInput{Outcome: host.DidNotHappen}); err != nil {
		t.Fatal(err)
	}
	b.await(t, id, func(host.RunState) bool { return b.view(t, id).Wait == host.WaitApproval })
	if sent.Load() != 1 {
		t.Errorf("%d sent without a new approval", sent.Load())
	}
	b.approve(t)
	b.await(t, id, func(host.RunState) bool { return sent.Load() == 2 && b.view(t, id).Wait == host.WaitUnknown })
}

// Nobody answers: the sweep ends the wait.
func TestAnUnknownOutcomeIsAbandonedInTheEnd(t *testing.T) {
	b, id, sent, ahead := inDoubt(t)
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := b.view(t, id); v.State != host.StateWaiting {
		t.Fatalf("the sweep woke it: %s", v.State)
	}
	ahead.Store(int64(broker.DefaultDoubtLife + time.Minute))
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.await(t, id, func(host.RunState) bool { return false })
	if v := b.view(t, id); v.State != host.StateSucceeded || v.Log[0].Outcome != string(abi.OutcomeUnknown) || sent.Load() != 1 {
		t.Errorf("%s, %+v, %d sent", v.State, v.Log, sent.Load())
	}
}
