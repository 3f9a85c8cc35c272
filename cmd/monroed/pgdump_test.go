package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// TestLinuxDumpAndRestoreNeedsPostgreSQL backs a served workspace up with pg_dump, as
// the operator's manual says, and puts it into a new database with pg_restore: what was
// sealed opens, the run that was open goes on, and what it had sent meanwhile is not
// sent again.
func TestLinuxDumpAndRestoreNeedsPostgreSQL(t *testing.T) {
	t.Parallel() // most of it is waiting
	server := storetest.Own(t)
	boss := server.URL("boss", "postgres").Reveal()
	tool := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("MONROE_POSTGRES"), name), args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	box := filepath.Join(shortDir(t), "box")
	d := newDaemon(t, "mail: {maildir: "+box+"}\n")
	d.env = []string{"MONROE_STORE_ADMIN=" + boss}
	if out, status := d.aside("--provision", "monroe_team"); status != 0 {
		t.Fatalf("%d: %s", status, out)
	}
	d.env = []string{"MONROE_STORE=" + server.URL("monroe_team", "postgres").Reveal()}
	d.up()
	d.push(guestModule(t, "digest"))
	d.apply(d.config(digestGrants...))
	ended := d.once()
	before := d.run(ended)
	write(t, filepath.Join(d.files, "more.md"), "# More\n\nAnother question?\n")
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)

	dump, dir := filepath.Join(shortDir(t), "dump"), filepath.Join(shortDir(t), "backup")
	tool("pg_dump", "--format=custom", "--file="+dump, boss)
	if out, status := d.aside("--backup", dir, "--with-keys"); status != 0 || !strings.Contains(out, "pg_dump") {
		t.Fatalf("status %d\n%s", status, out)
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	d.finished(id)
	sent := len(delivered(t, box))
	d.kill()

	tool("createdb", "--maintenance-db="+boss, "again")
	tool("pg_restore", "--exit-on-error", "--dbname="+server.URL("boss", "again").Reveal(), dump)
	d.env = []string{"MONROE_STORE=" + server.URL("monroe_team", "again").Reveal()}
	if err := os.Rename(d.dir, d.dir+".before"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(limit); ; { // the lease that was dumped has to end
		out, status := d.aside("--restore", dir)
		if status == 0 && strings.Contains(out, "1 runs are held until 20") && strings.Contains(out, "1 open approvals are void") {
			break
		}
		if !strings.Contains(out, "another daemon holds") || time.Now().After(until) {
			t.Fatalf("status %d\n%s", status, out)
		}
	}
	d.up()
	if v := d.run(ended); v.State != host.StateSucceeded || len(v.Result) == 0 || string(v.Result) != string(before.Result) {
		t.Errorf("what was sealed: %+v", v)
	}
	d.restored(id, a)
	if n := len(delivered(t, box)); n != sent {
		t.Errorf("%d mails, %d before", n, sent)
	}
}
