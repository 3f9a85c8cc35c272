package main_test

import (
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// A person changes the mail's subject, then its recipient, on the command line. What
// leaves is what was shown last.
func TestLinuxAPersonEditsAMail(t *testing.T) {
	d := digest(t)
	run := func(args ...string) (string, int) {
		return cli(t, append([]string{"--home", d.home, "-w", "team"}, args...)...)
	}
	id := d.start("digest", `{"folder":"docs"}`)
	first := d.asked(id)
	if out, status := run("approvals", "edit", string(first.ID)); status != 0 || !strings.Contains(out, `"subject"`) {
		t.Errorf("%d: %s", status, out)
	}
	if out, status := run("approvals", "edit", string(first.ID), "--set", "subject=", "--set", "priority=high"); status == 0 {
		t.Errorf("an unknown field was taken: %s", out)
	}
	if out, status := run("approvals", "edit", string(first.ID), "--set", "subject=Better; said = so"); status != 0 || !strings.Contains(out, "superseded") {
		t.Fatalf("%d: %s", status, out)
	}
	next := func(old host.ApprovalID) (v api.ApprovalView) {
		for v.ID == "" || v.ID == old {
			list, err := d.Approvals(d.ctx(), host.ApprovalPending)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) > 0 {
				if v, err = d.Approval(d.ctx(), list[0].ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		return v
	}
	second := next(first.ID)
	if second.Digest == first.Digest || !strings.Contains(string(second.Args), `"subject":"Better; said = so"`) {
		t.Errorf("%s: %s", second.Digest, second.Args)
	}
	if _, err := d.Decide(d.ctx(), first.ID, api.Decision{Decision: api.Approve, Digest: first.Digest}); err == nil {
		t.Error("the closed approval was answered")
	}
	if out, status := run("approvals", "approve", string(second.ID), "--digest", first.Digest); status == 0 {
		t.Errorf("the old digest approved the new bytes: %s", out)
	}
	if out, status := run("approvals", "approve", string(second.ID), "--digest", second.Digest); status != 0 {
		t.Fatal(out)
	}
	v := d.finished(id)
	mails := d.mails()
	if v.State != host.StateSucceeded || len(mails) != 1 || !strings.Contains(string(read(t, mails[0])), "Subject: Better; said = so\r\n") {
		t.Errorf("%s: %s; %d mails", v.State, v.Failure, len(mails))
	}

	// A recipient without a grant: the guest is refused, nothing leaves.
	write(t, d.files+"/new.md", "# News\n\nMore of it.\n")
	id = d.start("digest", `{"folder":"docs"}`)
	third := d.asked(id)
	if out, status := run("approvals", "edit", string(third.ID), "--set", `to=["eve@example.com"]`); status != 0 {
		t.Fatal(out)
	}
	if v := d.finished(id); !strings.Contains(string(v.Result)+v.Failure, "SCOPE") || len(d.mails()) != 1 {
		t.Errorf("%s: %s; %d mails", v.State, v.Result, len(d.mails()))
	}
	d.verified()
}
