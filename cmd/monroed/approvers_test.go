package main_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/api/client"
)

// A change of the rules voids what waits for a person; a change of the cap alone does
// not. Who may say yes is the workspace's to decide.
func TestLinuxRulesThatChangeUnderAQuestion(t *testing.T) {
	d := digest(t)
	good := d.config(digestGrants...)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	d.apply(strings.Replace(good, `"5"`, `"6"`, 1))
	if v, err := d.Approval(d.ctx(), a.ID); err != nil || v.State != host.ApprovalPending {
		t.Fatalf("a raised cap left the approval %s, %v", v.State, err)
	}
	d.apply(good + "approvers: [{operation: mail.send, other_person: true}]\n")
	if v, err := d.Approval(d.ctx(), a.ID); err != nil || v.State != host.ApprovalVoid {
		t.Errorf("changed rules left the approval %s, %v", v.State, err)
	}
	if v := d.finished(id); !strings.Contains(string(v.Result)+v.Failure, "APPROVAL_EXPIRED") {
		t.Errorf("the run %s: %s %s", v.State, v.Failure, v.Result)
	}

	id = d.start("digest", `{"folder":"docs"}`)
	a = d.asked(id)
	_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != "APPROVER" {
		t.Errorf("the requester's own yes: %v", err)
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Reject, Digest: a.Digest}); err != nil {
		t.Errorf("the requester's no: %v", err)
	}
	d.finished(id)

	d.apply(good + "approvers: [{operation: \"*\", roles: [owner]}]\n")
	id = d.start("digest", `{"folder":"docs"}`)
	a = d.asked(id)
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Error(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
}
