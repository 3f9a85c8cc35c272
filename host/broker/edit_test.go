package broker_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/store"
)

// edit is a person's change of what call n asks for, as the workspace writes it.
func (h *house) edit(n uint32, fields string) error { h.t.Helper(); return h.editBy(person, n, fields) }

func (h *house) editBy(by host.Principal, n uint32, fields string) error {
	h.t.Helper()
	err := h.amend(by, n, fields)
	if err == nil {
		h.crash()
	}
	return err
}

func (h *house) amend(by host.Principal, n uint32, fields string) error {
	h.t.Helper()
	h.resume()
	a := h.approval(n)
	d, err := approval.Open(h.keys, &a)
	h.must(err)
	e := h.s.Log.Entry(n)
	var change map[string]json.RawMessage
	h.must(json.Unmarshal([]byte(fields), &change))
	body, err := h.door.Edit(h.t.Context(), e, by.ID, change)
	if err != nil {
		return err
	}
	h.must(h.s.Log.Add(journal.Edit, n, h.now, body, *e.Label))
	h.write(func(tx *store.Tx) error {
		if _, err := approval.Supersede(tx, h.keys, a.ID, host.Caller{Principal: by}, d.Digest.String(), h.now); err != nil {
			return err
		}
		_, err := audit.Append(tx, audit.Leaf{Kind: audit.KindEdit, Run: h.run, Call: n, Who: by.ID, Verdict: "superseded", Approval: a.ID})
		return errors.Join(err, h.s.Log.Stage(tx))
	})
	h.s.Log.Staged(nil)
	return nil
}

func TestAnEditAsksAnew(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 10)
	h.waits(1, raw, host.WaitApproval)
	first := h.approval(1)
	h.must(h.edit(1, `{"to":"carol","text":"better words"}`))
	if got := h.totals(); got.Reserved != 0 {
		t.Errorf("the closed question holds %+v", got)
	}
	h.waits(1, raw, host.WaitApproval)
	second := h.approval(1)
	if _, err := approval.Open(h.keys, &second); err != nil || second.ID == first.ID || second.Destination != "carol" {
		t.Fatalf("%+v, %v", second.Approval, err)
	}
	if got := h.totals(); got.Reserved != 10 {
		t.Errorf("%+v", got)
	}
	h.must(h.edit(1, `{"text":"still better"}`)) // again
	h.waits(1, raw, host.WaitApproval)
	// What was closed cannot be used: not by an answer, nor by whoever has the file.
	for _, old := range []host.ApprovalID{first.ID, second.ID} {
		err := h.store.Write(t.Context(), func(tx *store.Tx) error {
			a, err := tx.Approval(old)
			if err != nil || a.State != host.ApprovalSuperseded {
				t.Errorf("%s, %v", a.State, err)
			}
			d, err := approval.Open(h.keys, &a)
			if err != nil {
				return err
			}
			_, err = approval.Answer(tx, h.keys, old, host.Caller{Principal: person}, approval.Word{Approve: true, Digest: d.Digest.String()}, nil, h.now)
			return err
		})
		if !errors.Is(err, host.ErrConflict) {
			t.Error(err)
		}
		h.tamper(`UPDATE approval SET state = 'used', decided_by = 'Ann', decided_at = 1 WHERE approval_id = '` + string(old) + `'`)
	}
	h.resume()
	h.waits(1, raw, host.WaitApproval)
	h.performed(0)
	h.answer(1, true)
	h.resume()
	reply := h.ok(1, raw)
	if e := reply.Edited; e == nil || strings.Join(e.Fields, " ") != "text to" || string(e.Args) != `{"cost":10,"text":"still better","to":"carol"}` {
		t.Errorf("%+v", e)
	}
	if got := h.s.Held.Readers.Names(); strings.Join(got, " ") != "workspace" { // not the one whom it was sent to
		t.Errorf("what the editor typed may be read by %v", got)
	}
	h.performed(1)
	if to := h.world.performed[0].to; to != "carol" {
		t.Errorf("it went to %s", to)
	}
	h.crash()
	if again := h.ok(1, raw); string(again.OK) != string(reply.OK) || again.Edited == nil {
		t.Errorf("%+v", again)
	}
	h.performed(1)
	if v := broker.Views(h.s.Log.Entries(), false); v[0].Resource != "x:carol" {
		t.Errorf("shown on %s", v[0].Resource)
	}
	if got := h.totals(); got.Reserved != 0 || got.Settled != 5 {
		t.Errorf("%+v", got)
	}
	h.books()
}

// What is edited is decided like anything else.
func TestAnEditIsDecidedAnew(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	h.must(h.edit(1, `{"to":"../etc"}`))
	h.refused(1, raw, abi.Scope)
	h.performed(0)
	h.books()
}

func TestABadEditLeavesTheQuestion(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	for _, fields := range []string{`{}`, `{"to":"bob"}`, `{"to":7}`, `{"bcc":"eve"}`, `{"cost":1.5}`} {
		if err := h.edit(1, fields); !errors.Is(err, host.ErrInvalid) {
			t.Errorf("%s: %v", fields, err)
		}
	}
	h.waits(1, raw, host.WaitApproval)
	h.answer(1, true)
	h.resume()
	if h.ok(1, raw).Edited != nil {
		t.Error("nothing was edited")
	}
}

// Whoever wrote it is not another person.
func TestAnEditorIsNoOtherPerson(t *testing.T) {
	h := newHouse(t)
	raw := use(abi.OpSend, "mail.send", "bob", 0)
	h.waits(1, raw, host.WaitApproval)
	editor := host.Principal{ID: "prin_2", Name: "Bea", Role: host.RoleMember}
	h.must(h.editBy(editor, 1, `{"text":"mine"}`))
	h.waits(1, raw, host.WaitApproval)
	a := h.approval(1)
	d, err := approval.Open(h.keys, &a)
	h.must(err)
	for _, c := range []struct {
		by host.PrincipalID
		ok bool
	}{{person.ID, false}, {editor.ID, false}, {"prin_3", true}} {
		err := h.store.Write(t.Context(), func(tx *store.Tx) error {
			_, err := approval.Answer(tx, h.keys, a.ID, host.Caller{Principal: host.Principal{ID: c.by, Name: "X", Role: host.RoleOwner}},
				approval.Word{Approve: true, Digest: d.Digest.String()}, []approval.Approvers{{OtherPerson: true}}, h.now)
			return err
		})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.by, err)
		}
	}
	viewer := host.Caller{Principal: host.Principal{ID: "prin_4", Role: host.RoleViewer}}
	if err := h.store.Write(t.Context(), func(tx *store.Tx) error {
		_, err := approval.Supersede(tx, h.keys, a.ID, viewer, d.Digest.String(), h.now)
		return err
	}); !errors.Is(err, host.ErrForbidden) {
		t.Errorf("a viewer edited: %v", err)
	}
}
