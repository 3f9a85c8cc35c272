package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// A person has said yes, and the run is on its way to the send. What changes then, at
// the last moment, keeps everything from leaving, and the words say what it was.
func TestTheLastMomentBeforeASend(t *testing.T) {
	raw := use(abi.OpSend, "page.put", "bob", 10)
	for name, c := range map[string]struct {
		change func(h *house)
		code   abi.Code      // of the refusal, or
		wait   host.WaitKind // what the run waits for, or
		fails  string        // how the run stops
		says   string
	}{
		"the twin": {change: func(*house) {}},
		"credential revoked": {
			change: func(h *house) { h.world.revoked = map[string]bool{"bob": true} },
			wait:   host.WaitConnector, says: "page.put waits: the connection was withdrawn",
		},
		"cap lowered": {
			change: func(h *house) { h.rules.Cap = 9 }, wait: host.WaitBudget, says: "Out of budget",
		},
		"grant withdrawn": {
			change: func(h *house) { h.permit(4, "page.put") }, code: abi.Scope, says: "no grant lets triage use page.put",
		},
		"policy changed": {
			change: func(h *house) { h.permit(4) }, code: abi.ApprovalExpired, says: "the rules changed after the approval",
		},
		"policy forbids": {
			change: func(h *house) {
				p, err := grant.Compile(4, []grant.Grant{{Skill: "triage", Module: module, Operation: "page.put", Resource: "x:**"}}, nil, map[string]string{"stop.cedar": `forbid (principal, action, resource);`})
				h.must(err)
				h.rules.Policy = p
			},
			code: abi.Denied, says: "stop.cedar:1 forbids page.put",
		},
		"descriptor changed": {
			change: func(h *house) { h.world.pinned[0] ^= 1 }, code: abi.Denied, says: "the approval does not fit this call",
		},
		"lease lost": {
			change: func(h *house) {
				if _, err := storetest.DB(h.t, h.path).Exec(`UPDATE lease SET epoch = epoch + 1`); err != nil {
					h.t.Fatal(err)
				}
			},
			fails: "another daemon holds this workspace",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.resume()
			var told string
			h.s.Emit = func(e host.Event) { told = e.Text }
			h.plays = 0
			h.onRules = func(n int) {
				if n == 1 { // the call is on its way
					c.change(h)
				}
			}
			switch {
			case c.code != "":
				d := h.refused(1, raw, c.code)
				if d.Effect != abi.OutcomeNone || !strings.Contains(d.Reason, c.says) {
					t.Errorf("%+v does not say %q", d, c.says)
				}
			case c.wait != "":
				h.waits(1, raw, c.wait)
				if !strings.Contains(told, c.says) {
					t.Errorf("%q does not say %q", told, c.says)
				}
			case c.fails != "":
				if _, err := h.door.Do(t.Context(), h.s, 1, raw); err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v does not say %q", err, c.fails)
				}
			default:
				h.ok(1, raw)
				h.performed(1)
				return
			}
			h.performed(0)
		})
	}
}

// What a lowered cap stopped goes on when it is raised, by the same yes.
func TestAYesOutlivesALoweredCap(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 10)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	h.rules.Cap = 9
	h.waits(1, raw, host.WaitBudget)
	if got := h.totals(); got.Reserved != 10 {
		t.Errorf("%+v", got)
	}
	h.crash()
	h.rules.Cap = 10
	h.ok(1, raw)
	h.performed(1)
	if got := h.totals(); got.Reserved != 0 || got.Settled != 5 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// The target was changed by somebody since it was looked at: the other side compares
// the revision of the frozen request and changes nothing.
func TestATargetThatChangedIsLeftAlone(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "page.put", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	revision := "2" // of the page, which the frozen request says is 1
	h.world.answer = func(sent) broker.Outcome {
		if revision != "1" {
			return broker.Outcome{Denial: abi.Deny(abi.Upstream, "the page was changed since it was read (412)", "read it again")}
		}
		return broker.Outcome{}
	}
	if d := h.refused(1, raw, abi.Upstream); d.Effect != abi.OutcomeNone || !strings.Contains(d.Reason, "was changed since") {
		t.Errorf("%+v", d)
	}
	if a := h.approval(1); a.State != host.ApprovalUsed { // it covers no second attempt
		t.Error(a.State)
	}
	h.books()
}

// A no belongs to the lineage of a skill: a new module under the name inherits it.
func TestANoSticksToALineage(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	for range approval.StickyRejections {
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, false)
		h.start(500)
	}
	next := abi.Digest{77}
	h.s.Run.Module, h.s.Subject.Module = next, next
	policy, err := grant.Compile(3, []grant.Grant{{Skill: "triage", Module: next, Operation: "mail.send", Resource: "x:**"}}, nil, nil)
	h.must(err)
	h.rules.Policy = policy
	h.refused(1, raw, abi.ApprovalRejected)
	h.s.Run.Skill = "another"
	h.waits(2, raw, host.WaitApproval)
}

// Who may approve is what a policy says. Neither the run nor its guest has a word in it.
func TestWhoMayApproveIsPolicy(t *testing.T) {
	h := newHouse(t)
	var grants []grant.Grant
	for _, op := range h.world.Operations() {
		grants = append(grants, grant.Grant{Skill: "triage", Module: module, Operation: op.Name, Resource: "x:**"})
	}
	var err error
	h.rules.Policy, err = grant.Compile(4, grants, nil, map[string]string{
		"pay.cedar": "@id(\"costly\") @approvers(\"finance\")\nforbid (principal, action, resource) when { context.ceiling >= 5 };\n@approvers(\"legal\")\nforbid (principal, action == Action::\"mail.send\", resource);",
	})
	h.must(err)
	if g := h.rules.Policy.Groups(); len(g) != 2 {
		t.Errorf("%v", g)
	}
	h.ok(1, use(abi.OpSend, "model.ask", "a", 4))
	raw := use(abi.OpSend, "model.ask", "a", 5) // would go without a question
	h.waits(2, raw, host.WaitApproval)
	a := h.approval(2)
	d, err := approval.Open(h.keys, &a)
	h.must(err)
	if strings.Join(a.Groups, " ") != "finance" || !strings.Contains(a.Why, "pay.cedar:1 (costly)") {
		t.Errorf("%v: %s", a.Groups, a.Why)
	}
	finance := approval.Approvers{Group: "finance", Roles: []host.Role{host.RoleAdmin}, People: []string{"fin@example.com"}}
	for _, c := range []struct {
		by    host.Principal
		rules []approval.Approvers
		ok    bool
	}{
		{person, []approval.Approvers{finance}, false}, // the run's own person, an owner
		{person, nil, false},
		{host.Principal{ID: "p", Role: host.RoleMember, Email: "eve@example.com"}, []approval.Approvers{finance}, false},
		{host.Principal{ID: "p", Role: host.RoleMember}, []approval.Approvers{{Group: "finance", People: []string{""}}}, false},
		{host.Principal{ID: "p", Role: host.RoleAdmin}, []approval.Approvers{{Group: "legal", Roles: []host.Role{host.RoleAdmin}}}, false},
		{host.Principal{ID: "p", Role: host.RoleAdmin}, []approval.Approvers{finance, {OtherPerson: true, Roles: []host.Role{host.RoleOwner}}}, false}, // a line of approvers still holds
		{host.Principal{ID: "p", Name: "Fin", Role: host.RoleMember, Email: "fin@example.com"}, []approval.Approvers{finance}, true},
	} {
		err := h.store.Write(t.Context(), func(tx *store.Tx) error {
			_, err := approval.Answer(tx, h.keys, a.ID, host.Caller{Principal: c.by}, approval.Word{Approve: true, Digest: d.Digest.String()}, c.rules, h.now)
			return err
		})
		if (err == nil) != c.ok {
			t.Errorf("%+v by %v: %v", c.by, c.rules, err)
		}
	}
	h.resume()
	h.ok(2, raw)
	both := use(abi.OpSend, "mail.send", "b", 9)
	h.waits(3, both, host.WaitApproval)
	a = h.approval(3)
	if _, err := approval.Open(h.keys, &a); err != nil || strings.Join(a.Groups, " ") != "finance legal" {
		t.Errorf("%v, %v", a.Groups, err)
	}
	// The guest has no field for it.
	h.refused(4, request(abi.OpSend, `{"operation":"mail.send","args":{"to":"b"},"approvers":["owner"]}`), abi.Invalid)
	if _, err := abi.ParseManifest([]byte(`{"abi":1,"name":"x","version":"1","ops":[],"approvers":["owner"]}`)); err == nil {
		t.Error("a manifest named approvers")
	}
}

// A policy with @approvers that cannot be evaluated denies, like any other.
func TestAFailingApproversPolicyDenies(t *testing.T) {
	h := newHouse(t)
	var err error
	h.rules.Policy, err = grant.Compile(4, []grant.Grant{{Skill: "triage", Module: module, Operation: "mail.send", Resource: "x:**"}}, nil, map[string]string{
		"bad.cedar": `@approvers("finance") forbid (principal, action, resource) when { context.nothing };`,
	})
	h.must(err)
	h.refused(1, use(abi.OpSend, "mail.send", "bob", 0), abi.Denied)
	for _, text := range []string{`@approvers("finance") permit (principal, action, resource);`, `@approvers("") forbid (principal, action, resource);`} {
		if _, err := grant.Compile(4, nil, nil, map[string]string{"bad.cedar": text}); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

// A person is asked so often in an hour and not more; the rest keeps its frozen bytes
// and waits.
func TestAPersonIsNotAskedTooOften(t *testing.T) {
	h := newHouse(t)
	h.rules.Questions = 2
	raw := func(to string) []byte { return use(abi.OpSend, "mail.send", to, 0) }
	for _, to := range []string{"a", "b"} {
		h.waits(1, raw(to), host.WaitApproval)
		h.answer(1, to == "a")
		h.start(500)
	}
	var told string
	h.s.Emit = func(e host.Event) { told = e.Text }
	h.waits(1, raw("c"), host.WaitTurn)
	if !strings.Contains(told, "Ann has been asked often enough") {
		t.Error(told)
	}
	plans := h.world.plans
	var row store.Run
	h.read(func(tx *store.Tx) (err error) { row, err = tx.Run(h.run); return err })
	if d := row.WakeAt.Sub(h.now); d < 59*time.Minute || d > time.Hour {
		t.Errorf("it waits %v", d)
	}
	h.now = row.WakeAt.Add(time.Millisecond)
	h.crash()
	h.waits(1, raw("c"), host.WaitApproval) // the first of the hour has made room
	if h.world.plans != plans {
		t.Error("it was planned again")
	}
	// Open ones count, however old.
	third := h.run
	h.start(500)
	h.now = h.now.Add(2 * time.Hour)
	h.waits(1, raw("d"), host.WaitApproval)
	h.start(500)
	h.waits(1, raw("e"), host.WaitTurn)
	last := h.run
	h.run = third
	h.resume()
	h.answer(1, true)
	h.run = last
	h.now = h.now.Add(time.Minute)
	h.resume()
	h.waits(1, raw("e"), host.WaitApproval)
	// Nobody waits for ever: these two are never answered.
	h.start(500)
	h.waits(1, raw("f"), host.WaitTurn)
	h.now = h.now.Add(broker.DefaultBudgetLife - time.Second)
	h.resume()
	h.waits(1, raw("f"), host.WaitTurn)
	h.now = h.now.Add(time.Second)
	h.resume()
	if d := h.refused(1, raw("f"), abi.ApprovalExpired); !strings.Contains(d.Reason, "could not be asked within 840h") || d.Effect != abi.OutcomeNone {
		t.Errorf("%+v", d)
	}
	h.performed(0)
}

// A cancel that was answered stops what is about to leave, of the run itself and of those
// that it called, also where the word has not reached their workers.
func TestNothingLeavesAfterACancel(t *testing.T) {
	raw := use(abi.OpSend, "mail.send", "bob", 10)
	for name, above := range map[string]bool{"of the run": false, "of one above it": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			up := h.s.Subject
			if h.start(500); above {
				h.s.Subject.Chain = []grant.Subject{up}
			}
			h.waits(1, raw, host.WaitApproval)
			h.answer(1, true)
			h.resume()
			marked := h.run
			if above {
				h.s.Subject.Chain = []grant.Subject{up}
				marked = up.Run
			}
			h.write(func(tx *store.Tx) error { return tx.Cancel(marked, "Ann wants it to end") })
			_, err := h.door.Do(t.Context(), h.s, 1, raw)
			if c := new(broker.CancelledError); !errors.As(err, &c) || c.Why != "Ann wants it to end" {
				t.Errorf("%v", err)
			}
			h.performed(0)
			if a := h.approval(1); a.State != host.ApprovalApproved {
				t.Errorf("the approval is %s", a.State)
			}
			if h.totals().Settled != 0 {
				t.Errorf("%+v", h.totals())
			}
		})
	}
}
