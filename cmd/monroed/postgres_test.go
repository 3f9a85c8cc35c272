package main_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// TestLinuxDigestOverPostgresNeedsPostgreSQL goes the whole way with the programs:
// the operator provisions, the daemon serves and is told apart from a second one, and
// it ends when the server crashes, with everything that it had answered.
func TestLinuxDigestOverPostgresNeedsPostgreSQL(t *testing.T) {
	t.Parallel() // most of it is waiting
	server := storetest.Own(t)
	boss, role := server.URL("boss", "postgres").Reveal(), server.URL("monroe_team", "postgres").Reveal()
	provision := exec.Command(program("monroed"), "--workspace", "team", "--provision", "monroe_team")
	provision.Env = []string{"MONROE_STORE_ADMIN=" + boss}
	if out, err := provision.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := newDaemon(t, "")
	d.env = []string{"MONROE_STORE=" + boss}
	d.launch()
	if err := d.end(); err == nil || !strings.Contains(d.said.String(), "must not serve a workspace") {
		t.Fatalf("with a superuser's role it ended: %v\n%s", err, d.said)
	}
	d.env = []string{"MONROE_STORE=" + role}
	d.up()
	d.push(guestModule(t, "digest"))
	d.apply(d.config(digestGrants...))
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)

	second := newDaemon(t, "")
	second.env = d.env
	second.launch()
	if err := second.end(); err == nil || !strings.Contains(second.said.String(), "another daemon holds this workspace: monroed pid ") {
		t.Errorf("a second daemon ended: %v\n%s", err, second.said)
	}

	server.Crash(t)
	if err := d.end(); err == nil || !strings.Contains(d.said.String(), "then start the daemon again") {
		t.Errorf("after the crash it ended: %v\n%s", err, d.said)
	}
	server.Restart(t)
	for until := time.Now().Add(limit); ; { // as a supervisor does: the dead daemon's lease has to end
		d.launch()
		select {
		case <-d.said.serves:
		case err := <-d.ended:
			if time.Now().After(until) || !strings.Contains(d.said.String(), "another daemon holds") {
				t.Fatalf("%v\n%s", err, d.said)
			}
			continue
		}
		break
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
	if list, _ := filepath.Glob(filepath.Join(d.dir, "monroe.db*")); len(list) != 0 {
		t.Errorf("files of SQLite: %v", list)
	}
}
