package approval_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

var (
	now = time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	ann = host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleOwner}
)

type desk struct {
	t     *testing.T
	dir   string
	store *store.Store
	keys  *vault.Keyset
	asked host.ApprovalID // the last one
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(context.Background(), filepath.Join(dir, "db"), "acme", "test", now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	keys, err := vault.OpenKeyset(filepath.Join(dir, "keys"), "acme")
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, dir: dir, store: s, keys: keys}
	_, wrapped, err := keys.NewRunKey("run_1")
	if err != nil {
		t.Fatal(err)
	}
	d.write(func(tx *store.Tx) error {
		return errors.Join(tx.PutPrincipal(ann, now), tx.InsertRun(store.Run{
			Run: question().Run, Key: wrapped, Start: []byte{1}, StartLabel: []byte{1},
		}))
	})
	return d
}

func (d *desk) write(fn func(*store.Tx) error) {
	d.t.Helper()
	if err := d.store.Write(d.t.Context(), fn); err != nil {
		d.t.Fatal(err)
	}
}

// question asks about one send.
func question() approval.Question {
	return approval.Question{
		Run:  host.Run{ID: "run_1", Root: "run_1", Workspace: "acme", Skill: "triage", Module: abi.Digest{1}, OnBehalfOf: ann, State: host.StateRunning, CreatedAt: now},
		Call: 3, Operation: connectors.Operation{Name: "mail.send"}, Pinned: abi.Digest{5}, Digest: abi.Digest{9}, Effect: abi.EffectSend, Why: "it always asks",
		Plan: connectors.Plan{Resources: []string{"mail:bob@example.com"}, Destination: "bob", Account: "con_1", Audience: []string{"mail:bob@example.com"}, Ceiling: 7},
		Held: label.Set{Integrity: label.Internal, Readers: label.Only("workspace")}, Key: "key",
	}
}

func (d *desk) ask() (a host.Approval) {
	d.t.Helper()
	d.write(func(tx *store.Tx) (err error) { a, err = approval.Ask(tx, d.keys, question(), now); return err })
	d.asked = a.ID
	return a
}

func (d *desk) answer(a host.Approval, yes bool, at time.Time) (got host.Approval, err error) {
	d.t.Helper()
	err = d.store.Write(d.t.Context(), func(tx *store.Tx) (err error) {
		got, err = approval.Answer(tx, d.keys, a.ID, host.Caller{Principal: ann}, approval.Word{Approve: yes, Digest: a.Digest}, nil, at)
		return err
	})
	return got, err
}

func (d *desk) take(q approval.Question, again bool, at time.Time) (c approval.Consent, a host.Approval, err error) {
	err = d.store.Write(context.Background(), func(tx *store.Tx) (err error) {
		c, a, err = approval.Take(tx, d.keys, d.asked, q, again, at)
		return err
	})
	return c, a, err
}

// Law 2.
func TestAThousandTakesOfOneApprovalGiveOneConsent(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	const takers = 1000
	var start, wg sync.WaitGroup
	var yes, used atomic.Int64
	start.Add(1)
	for range takers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			start.Wait()
			c, got, err := d.take(question(), false, now)
			switch {
			case err != nil:
				t.Error(err)
			case c != nil:
				yes.Add(1)
				if !c.Approves(question().Digest) || c.Approves(abi.Digest{8}) {
					t.Error("the consent is to another digest")
				}
			case got.State == host.ApprovalUsed:
				used.Add(1)
			}
		}()
	}
	start.Done()
	wg.Wait()
	if yes.Load() != 1 || used.Load() != takers-1 {
		t.Errorf("%d consents, %d were told that it is used", yes.Load(), used.Load())
	}
}

func TestTwoHundredAnswersCountOnce(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	var wg sync.WaitGroup
	var counted atomic.Int64
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := d.answer(a, i%2 == 0, now); err == nil {
				counted.Add(1)
			} else if !errors.Is(err, host.ErrConflict) {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if counted.Load() != 1 {
		t.Errorf("%d answers counted", counted.Load())
	}
}

// What Take did is undone with the transaction that it was part of.
func TestAConsentOfATransactionThatFailedIsNotUsedUp(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := d.store.Write(t.Context(), func(tx *store.Tx) error {
		if c, _, err := approval.Take(tx, d.keys, d.asked, question(), false, now); c == nil || err != nil {
			t.Error(c, err)
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if c, _, err := d.take(question(), false, now); c == nil || err != nil {
		t.Error(c, err)
	}
}

// Law 1.
func TestTheCallMustBeTheOneThatWasShown(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*approval.Question){
		"digest": func(q *approval.Question) { q.Digest[31] ^= 1 }, "module": func(q *approval.Question) { q.Run.Module[0] ^= 1 },
		"account": func(q *approval.Question) { q.Plan.Account = "con_2" }, "destination": func(q *approval.Question) { q.Plan.Destination = "eve" },
		"descriptor": func(q *approval.Question) { q.Pinned[0] ^= 1 }, "integrity": func(q *approval.Question) { q.Held.Integrity = label.External },
		"readers": func(q *approval.Question) { q.Held.Readers = label.Only() }, "secret": func(q *approval.Question) { q.Held.Secret = true },
		"pii": func(q *approval.Question) { q.Held.PII = true },
		"run": func(q *approval.Question) { q.Run.ID = "run_2" }, "call": func(q *approval.Question) { q.Call++ },
	} {
		q := question()
		change(&q)
		for _, again := range []bool{false, true} {
			if c, _, err := d.take(q, again, now); c != nil || !errors.Is(err, approval.ErrBroken) {
				t.Errorf("%s: %v, %v", name, c, err)
			}
		}
	}
	if c, _, err := d.take(question(), false, now); c == nil || err != nil {
		t.Error("refused takes used the approval up:", err)
	}
}

// Law 3.
func TestAnApprovalIsWorthNothingAfterItsTimeOrItsRun(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		ok    bool
	}{{approval.Life - time.Millisecond, true}, {approval.Life, false}, {approval.Life * 100, false}} {
		d := newDesk(t)
		a := d.ask()
		if _, err := d.answer(a, true, now.Add(c.after)); (err == nil) != c.ok {
			t.Errorf("answered after %s: %v", c.after, err)
		}
		d = newDesk(t)
		a = d.ask()
		if _, err := d.answer(a, true, now); err != nil {
			t.Fatal(err)
		}
		if got, state, err := d.take(question(), false, now.Add(c.after)); (got != nil) != c.ok || err != nil || !c.ok && state.State != host.ApprovalExpired {
			t.Errorf("taken after %s: %v, %s, %v", c.after, got, state.State, err)
		}
	}
	d := newDesk(t)
	a := d.ask()
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	d.write(func(tx *store.Tx) error { return tx.VoidApprovals("run_1") })
	if c, got, err := d.take(question(), true, now); c != nil || got.State != host.ApprovalVoid || err != nil {
		t.Errorf("%v, %s, %v", c, got.State, err)
	}
}

// Law 4.
func TestTheAnswerMustNameWhatWasShown(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	for _, digest := range []string{"", abi.Digest{8}.String(), a.Digest[:63], a.Digest + "0"} {
		other := a
		other.Digest = digest
		if _, err := d.answer(other, true, now); !errors.Is(err, host.ErrConflict) {
			t.Errorf("%q: %v", digest, err)
		}
	}
	if c, got, err := d.take(question(), false, now); c != nil || got.State != host.ApprovalPending || err != nil {
		t.Errorf("%v, %s, %v", c, got.State, err)
	}
	if got, err := d.answer(a, true, now); err != nil || got.State != host.ApprovalApproved || got.DecidedBy != "Ann" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Only a crash between the attempt and its result lets a used approval stand.
func TestAUsedApprovalStandsOnlyForTheSameCallTriedAgain(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	if c, _, err := d.take(question(), true, now); c != nil || err != nil {
		t.Errorf("a pending approval gave %v, %v", c, err)
	}
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ again, ok bool }{{false, true}, {false, false}, {true, true}, {true, true}} {
		if got, _, err := d.take(question(), c.again, now); (got != nil) != c.ok || err != nil {
			t.Errorf("step %d: %v, %v", i, got, err)
		}
	}
	d = newDesk(t)
	a = d.ask()
	if _, err := d.answer(a, false, now); err != nil {
		t.Fatal(err)
	}
	if c, got, err := d.take(question(), true, now); c != nil || got.State != host.ApprovalRejected || err != nil {
		t.Errorf("a rejected approval gave %v, %s, %v", c, got.State, err)
	}
}

func TestOneCallIsAskedAboutOnce(t *testing.T) {
	d := newDesk(t)
	d.ask()
	if err := d.store.Write(t.Context(), func(tx *store.Tx) error {
		_, err := approval.Ask(tx, d.keys, question(), now)
		return err
	}); err == nil {
		t.Error("a second approval of one call was stored")
	}
}

// Law 2: the state alone is a word in a file. Whoever can write the file can write
// it, and has still not made anybody say yes.
func TestAStateWithoutAPersonsYesIsWorthNothing(t *testing.T) {
	for _, state := range []host.ApprovalState{host.ApprovalApproved, host.ApprovalUsed} {
		d := newDesk(t)
		a := d.ask()
		d.write(func(tx *store.Tx) error {
			return tx.MoveApproval(a.ID, host.ApprovalPending, state, "Ann", now, false)
		})
		if c, _, err := d.take(question(), true, now); c != nil || !errors.Is(err, approval.ErrBroken) {
			t.Errorf("%s: %v, %v", state, c, err)
		}
	}
}

// Law 4: who may say yes is the workspace's rule; a no is free to every member.
func TestWhoMayApprove(t *testing.T) {
	person := func(id host.PrincipalID, r host.Role) host.Caller {
		return host.Caller{Principal: host.Principal{ID: id, Name: string(id), Role: r}}
	}
	admins, another := approval.Approvers{Roles: []host.Role{host.RoleOwner, host.RoleAdmin}}, approval.Approvers{OtherPerson: true}
	for name, c := range map[string]struct {
		by    host.Caller
		rules []approval.Approvers
		raw   bool
		word  approval.Word
		ok    bool
	}{
		"a member":                        {person("prin_2", host.RoleMember), nil, false, approval.Word{Approve: true}, true},
		"a viewer":                        {person("prin_2", host.RoleViewer), nil, false, approval.Word{Approve: true}, false},
		"a viewer's no":                   {person("prin_2", host.RoleViewer), nil, false, approval.Word{}, false},
		"nobody":                          {host.Caller{}, nil, false, approval.Word{Approve: true}, false},
		"a member where admins are named": {person("prin_2", host.RoleMember), []approval.Approvers{admins}, false, approval.Word{Approve: true}, false},
		"his no":                          {person("prin_2", host.RoleMember), []approval.Approvers{admins}, false, approval.Word{}, true},
		"an admin":                        {person("prin_2", host.RoleAdmin), []approval.Approvers{admins}, false, approval.Word{Approve: true}, true},
		"the requester himself":           {person(ann.ID, host.RoleOwner), []approval.Approvers{another}, false, approval.Word{Approve: true}, false},
		"the requester's no":              {person(ann.ID, host.RoleOwner), []approval.Approvers{another}, false, approval.Word{}, true},
		"another person":                  {person("prin_2", host.RoleMember), []approval.Approvers{another}, false, approval.Word{Approve: true}, true},
		"one of two rules":                {person("prin_2", host.RoleMember), []approval.Approvers{another, admins}, false, approval.Word{Approve: true}, false},
		"unseen bytes":                    {person("prin_2", host.RoleMember), nil, true, approval.Word{Approve: true}, false},
		"seen bytes":                      {person("prin_2", host.RoleMember), nil, true, approval.Word{Approve: true, SeenBytes: true}, true},
		"no to unseen bytes":              {person("prin_2", host.RoleMember), nil, true, approval.Word{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			q := question()
			q.Preview.Raw = c.raw
			var a host.Approval
			d.write(func(tx *store.Tx) (err error) { a, err = approval.Ask(tx, d.keys, q, now); return err })
			d.asked = a.ID
			c.word.Digest = a.Digest
			err := d.store.Write(t.Context(), func(tx *store.Tx) error {
				_, err := approval.Answer(tx, d.keys, a.ID, c.by, c.word, c.rules, now)
				return err
			})
			if (err == nil) != c.ok || err != nil && !errors.Is(err, host.ErrForbidden) {
				t.Error(err)
			}
			got, _, err := d.take(q, false, now)
			if (got != nil) != (c.ok && c.word.Approve) || err != nil {
				t.Errorf("taken: %v, %v", got, err)
			}
		})
	}
}
