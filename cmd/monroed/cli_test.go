package main_test

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxCommandLine goes the whole way with commands alone, and looks at their exit
// statuses: 0 well, 1 refused or failed, 3 waits for a person.
func TestLinuxCommandLine(t *testing.T) {
	d := serve(t, "")
	do := func(want int, args ...string) string {
		t.Helper()
		out, status := cli(t, append([]string{"--home", d.home, "-w", "team"}, args...)...)
		if status != want {
			t.Fatalf("monroe %v: status %d, want %d\n%s", args, status, want, out)
		}
		return out
	}
	file := filepath.Join(shortDir(t), "workspace.yaml")
	write(t, file, d.config(digestGrants...))
	if out := do(1, "workspace", "apply", "-f", file); !strings.Contains(out, "GRANT_SKILL") || !strings.Contains(out, "→") {
		t.Errorf("a grant before its skill:\n%s", out)
	}
	do(0, "skill", "push", filepath.Join(program("guests"), "digest.wasm"))
	do(1, "skill", "push", file)
	do(1, "skill", "inspect", "nobody")
	if out := do(0, "skill", "list"); !strings.Contains(out, "no grants") {
		t.Errorf("skill list:\n%s", out)
	}
	do(0, "workspace", "apply", "-f", file)
	if out := do(0, "skill", "inspect", "digest"); !strings.Contains(out, "mail.send") || !strings.Contains(out, "a person each time") {
		t.Errorf("skill inspect:\n%s", out)
	}
	do(1, "run", "nobody")
	do(1, "run", "digest", "-i", "{")
	do(1, "run", "digest", "-i", "{}", "--max-usd", "much")
	out := do(3, "run", "digest", "-i", `{"folder":"docs"}`, "--watch")
	run := regexp.MustCompile(`run_[0-9a-z]{26}`).FindString(out)
	appr := regexp.MustCompile(`appr_[0-9a-z]{26}`).FindString(out)
	if run == "" || appr == "" {
		t.Fatalf("the waiting run:\n%s", out)
	}
	if out := do(0, "approvals", "list"); !strings.Contains(out, appr) {
		t.Errorf("approvals list:\n%s", out)
	}
	if out := do(0, "approvals", "show", appr); !strings.Contains(out, "ann@localhost") || !strings.Contains(out, "Shall we ship on Friday?") {
		t.Errorf("approvals show:\n%s", out)
	}
	do(1, "approvals", "approve", appr, "--digest", wrongDigest)
	no := do(3, "run", "digest", "-i", `{"folder":"docs"}`, "--watch")
	do(0, "approvals", "reject", regexp.MustCompile(`appr_[0-9a-z]{26}`).FindString(no))
	if v := d.finished(host.RunID(regexp.MustCompile(`run_[0-9a-z]{26}`).FindString(no))); !strings.Contains(v.Receipt, "1 refused") || len(d.mails()) != 0 {
		t.Errorf("after a no the run %s: %s; %d mails", v.State, v.Receipt, len(d.mails()))
	}
	do(0, "approvals", "approve", appr)
	do(1, "approvals", "approve", appr)
	if v := d.finished(host.RunID(run)); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	do(0, "runs", "watch", run)
	do(0, "runs", "list")
	do(0, "spend")
	do(0, "audit", "list")
	do(1, "runs", "cancel", run)
	do(1, "runs", "show", "run_00000000000000000000000000")
	var v struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	if out := do(0, "--json", "runs", "show", run); json.Unmarshal([]byte(out), &v) != nil || v.ID != run || v.State != "succeeded" {
		t.Errorf("as JSON:\n%s", out)
	}
	var said struct {
		Error struct{ Code, Detail, Remedy string }
	}
	if out := do(1, "--json", "audit", "prove", "rcpt_9999"); json.Unmarshal([]byte(out), &said) != nil || said.Error.Code != "LEAF" || said.Error.Remedy == "" {
		t.Errorf("a refusal as JSON:\n%s", out)
	}
	out = do(1, "--token", "wrong", "runs", "list")
	if !strings.Contains(out, "TOKEN") {
		t.Errorf("a wrong token:\n%s", out)
	}
	d.verified()
	d.stop()
	if out := do(1, "runs", "list"); !strings.Contains(out, "no daemon answers") || !strings.Contains(out, "monroe up") {
		t.Errorf("without a daemon:\n%s", out)
	}
}

// TestLinuxANoSticks: after three rejections nobody is asked again.
func TestLinuxANoSticks(t *testing.T) {
	d := digest(t)
	for i := range 5 {
		id := d.start("digest", `{"folder":"docs"}`)
		if i < 3 {
			a := d.asked(id)
			if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: "reject", Digest: a.Digest}); err != nil {
				t.Fatal(err)
			}
		}
		if v := d.finished(id); v.State != host.StateSucceeded || !strings.Contains(string(v.Result), "APPROVAL_REJECTED") {
			t.Errorf("run %d %s: %s %s", i, v.State, v.Failure, v.Result)
		}
	}
	list, err := d.Approvals(d.ctx(), "")
	if err != nil || len(list) != 3 || len(d.mails()) != 0 {
		t.Errorf("%d approvals, %d mails, %v", len(list), len(d.mails()), err)
	}
}
