package main_test

import (
	"context"
	"crypto/rand"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

const wrongDigest = "0000000000000000000000000000000000000000000000000000000000000000"

// verified lets the command line verify the audit log.
func (d *daemon) verified() {
	d.t.Helper()
	if out, status := cli(d.t, "--home", d.home, "-w", "team", "audit", "verify"); status != 0 || !strings.Contains(out, "audit: verified") {
		d.t.Errorf("audit verify: status %d\n%s", status, out)
	}
}

func TestLinuxKilledWhileARunWaits(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	before := d.asked(id)
	if len(d.mails()) != 0 {
		t.Fatal("a mail left before the approval")
	}
	d.kill()
	d.up()
	if v := d.run(id); v.State != host.StateWaiting || v.Wait != host.WaitApproval {
		t.Fatalf("after the restart the run is %s %s", v.State, v.Wait)
	}
	after, err := d.Approval(d.ctx(), before.ID)
	if err != nil || after.State != host.ApprovalPending || after.Digest != before.Digest || after.Preview.SHA256 != before.Preview.SHA256 {
		t.Fatalf("after the restart the approval is %+v, %v", after, err)
	}
	if _, err := d.Decide(d.ctx(), before.ID, api.Decision{Decision: api.Approve, Digest: before.Digest}); err != nil {
		t.Fatal(err)
	}
	v := d.finished(id)
	if v.State != host.StateSucceeded || !strings.Contains(string(v.Result), `"sent":true`) || !strings.Contains(v.Receipt, "mail.send ×1") {
		t.Errorf("the run %s: %s %s\n%s", v.State, v.Failure, v.Result, v.Receipt)
	}
	if n := len(d.mails()); n != 1 {
		t.Errorf("%d mails", n)
	}
	d.verified()
}

// TestLinuxKilledAfterTheYes kills the daemon at a random moment after an approval,
// several times over: whatever it was doing, one mail lies there in the end.
func TestLinuxKilledAfterTheYes(t *testing.T) {
	d := digest(t)
	for round := range 6 {
		write(t, d.files+"/plan.md", "# Plan\n\nRound "+string(rune('a'+round))+"?\n") // news for every digest
		id := d.start("digest", `{"folder":"docs"}`)
		a := d.asked(id)
		if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
			t.Fatal(err)
		}
		// Up to 60 ms: a run goes on and ends within about that.
		n, err := rand.Int(rand.Reader, big.NewInt(60))
		if err != nil {
			t.Fatal(err)
		}
		wait, cancel := context.WithTimeout(t.Context(), time.Duration(n.Int64())*time.Millisecond)
		<-wait.Done()
		cancel()
		d.kill()
		d.up()
		v := d.finished(id)
		if v.State != host.StateSucceeded {
			t.Errorf("killed after %d ms the run %s: %s", n, v.State, v.Failure)
		}
		if got := len(d.mails()); got != round+1 {
			t.Fatalf("killed after %d ms: %d mails after %d runs", n, got, round+1)
		}
	}
	d.verified()
}

func TestLinuxKilledWhileARunWorks(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	err := d.Watch(d.ctx(), id, 0, func(e host.Event) error {
		if e.Kind == host.EventCall { // between its first call and its question
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	d.kill()
	d.up()
	a := d.asked(id)
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
}

func TestLinuxStoppedInGoodOrder(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	d.stop()
	d.up()
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
}

func TestLinuxRejected(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Reject, Digest: wrongDigest})
	refused(t, err, 409, "APPROVAL_DIGEST")
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Reject, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	v := d.finished(id)
	if v.State != host.StateSucceeded || !strings.Contains(string(v.Result), `"code":"APPROVAL_REJECTED"`) || !strings.Contains(string(v.Result), `"sent":false`) {
		t.Errorf("the run %s: %s %s", v.State, v.Failure, v.Result)
	}
	if !strings.Contains(v.Receipt, "1 refused") || strings.Contains(v.Receipt, "mail.send") || !strings.Contains(v.Receipt, "0 approved") {
		t.Errorf("receipt: %s", v.Receipt)
	}
	if n := len(d.mails()); n != 0 {
		t.Errorf("%d mails", n)
	}
	_, err = d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	refused(t, err, 409, "APPROVAL_STATE")
	d.verified()
}

func TestLinuxAnAnswerCountsOnce(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	for _, digest := range []string{wrongDigest, "", "x", strings.ToUpper(a.Digest)} {
		_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: digest})
		refused(t, err, 409, "APPROVAL_DIGEST")
	}
	if v := d.run(id); v.State != host.StateWaiting {
		t.Fatalf("the run is %s", v.State)
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	refused(t, err, 409, "APPROVAL_STATE")
	_, err = d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Reject, Digest: a.Digest})
	refused(t, err, 409, "APPROVAL_STATE")
	_, err = d.Decide(d.ctx(), "appr_00000000000000000000000000", api.Decision{Decision: api.Approve, Digest: a.Digest})
	refused(t, err, 404, "APPROVAL")
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
}

func TestLinuxCancelledWhileItWaits(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	if err := d.CancelRun(d.ctx(), id); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateCancelled {
		t.Errorf("the run %s: %s", v.State, v.Failure)
	}
	_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	refused(t, err, 409, "APPROVAL_STATE")
	refused(t, d.CancelRun(d.ctx(), id), 409, "RUN_ENDED")
	if n := len(d.mails()); n != 0 {
		t.Errorf("%d mails", n)
	}
}

func TestLinuxSecondDaemon(t *testing.T) {
	d := serve(t, "")
	second := *d
	second.launch()
	if err := second.end(); err == nil {
		t.Error("a second daemon served the workspace")
	}
	want := "pid " + strconv.Itoa(d.cmd.Process.Pid)
	if said := second.said.String(); !strings.Contains(said, want) {
		t.Errorf("the refusal does not name the holder (%s):\n%s", want, said)
	}
	if _, err := d.Workspace(d.ctx()); err != nil {
		t.Errorf("the first one no longer answers: %v", err)
	}
	d.kill()
	second.up() // a dead holder holds nothing
}

// The new binary names what it could not go on with, before anybody stops the old one.
func TestLinuxUpgradeCheck(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	d.asked(id)
	if out, status := cli(t, "--home", d.home, "-w", "team", "upgrade", "--check"); status != 0 || !strings.Contains(out, "1 unfinished runs, 0 of which") {
		t.Errorf("status %d: %s", status, out)
	}
	other := filepath.Join(t.TempDir(), "worker")
	if err := os.WriteFile(other, []byte("#!/bin/sh\necho other/2\n"), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	out, status := cli(t, "--home", d.home, "-w", "team", "upgrade", "--check", "--worker", other)
	if status != 1 || !strings.Contains(out, string(id)) || !strings.Contains(out, "this binary has other/2") {
		t.Errorf("status %d: %s", status, out)
	}
}
