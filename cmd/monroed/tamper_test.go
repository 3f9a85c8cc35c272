package main_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// once runs the digest to its end, with the approval.
func (d *daemon) once() host.RunID {
	d.t.Helper()
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		d.t.Fatal(err)
	}
	if v := d.finished(id); v.State != host.StateSucceeded {
		d.t.Fatalf("the run %s: %s", v.State, v.Failure)
	}
	return id
}

// exec changes the database of a stopped daemon, as somebody with the disk could.
func (d *daemon) exec(query string, args ...any) {
	d.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(d.dir, "monroe.db"))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	r, err := db.ExecContext(ctx, query, args...)
	if err == nil {
		var n int64
		if n, err = r.RowsAffected(); n == 0 {
			err = errors.Join(err, errors.New("no row was changed"))
		}
	}
	if err := errors.Join(err, db.Close()); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
}

func (d *daemon) verify() (string, int) {
	d.t.Helper()
	return cli(d.t, "--home", d.home, "-w", "team", "audit", "verify")
}

// TestLinuxVerifyFindsEveryEdit changes one row at a time of the same workspace.
func TestLinuxVerifyFindsEveryEdit(t *testing.T) {
	d := digest(t)
	run := d.once()
	d.stop()
	for name, query := range map[string]string{
		"leaf removed":   "DELETE FROM audit_leaf WHERE idx = 5",
		"last leaf gone": "DELETE FROM audit_leaf WHERE idx = (SELECT max(idx) FROM audit_leaf)",
		"leaf swapped":   "UPDATE audit_leaf SET body = (SELECT body FROM audit_leaf WHERE idx = 5) WHERE idx = 4",
		"record removed": "DELETE FROM journal WHERE seq = 3",
		"record's time":  "UPDATE journal SET ts = ts + 1 WHERE seq = 3",
		"record's label": "UPDATE journal SET label_enc = (SELECT label_enc FROM journal WHERE seq = 2) WHERE seq = 3",
		"journal gone":   "DELETE FROM journal",
		"run's module":   "UPDATE run SET engine = 'other'",
		"run's person":   "UPDATE run SET skill = 'assistant'",
		"ledger":         "INSERT INTO spend_total (ws, scope, reserved_micro, settled_micro) VALUES ('team', 'period:' || strftime('%Y-%m', 'now'), 0, 77) ON CONFLICT DO UPDATE SET settled_micro = settled_micro + 77",
		"a checkpoint":   "UPDATE audit_checkpoint SET note = CAST(replace(CAST(note AS TEXT), 'team', 'tean') AS BLOB)",
	} {
		t.Run(name, func(t *testing.T) {
			twin := *d
			twin.t, twin.home = t, copyHome(t, d.home)
			twin.dir = filepath.Join(twin.home, "team")
			twin.exec(query)
			twin.launch()
			select {
			case <-twin.said.serves:
			case <-twin.ended: // it refuses to start: found too
				return
			}
			out, status := twin.verify()
			if status == 0 || strings.Contains(out, "audit: verified") {
				t.Errorf("status %d\n%s", status, out)
			}
		})
	}
	twin := *d
	twin.home = copyHome(t, d.home)
	twin.dir = filepath.Join(twin.home, "team")
	twin.up()
	if out, status := twin.verify(); status != 0 {
		t.Errorf("the untouched twin: status %d\n%s", status, out)
	}
	if v := twin.run(run); v.State != host.StateSucceeded {
		t.Errorf("the run of the twin %s", v.State)
	}
}

// TestLinuxRolledBackDatabase puts an older database back, whole and well signed. The
// checkpoint that the owner keeps outside finds it.
func TestLinuxRolledBackDatabase(t *testing.T) {
	d := digest(t)
	d.once()
	d.stop()
	old := read(t, filepath.Join(d.dir, "monroe.db"))
	d.up()
	write(t, filepath.Join(d.files, "plan.md"), "# Plan\n\nShall we ship on Monday?\n")
	d.once()
	d.verified() // keeps the checkpoint
	d.stop()
	for _, ext := range []string{"-wal", "-shm"} {
		if err := os.Remove(filepath.Join(d.dir, "monroe.db"+ext)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(d.dir, "monroe.db"), string(old))
	d.up()
	if out, status := d.verify(); status == 0 || !strings.Contains(out, "the checkpoint kept in") || !strings.Contains(out, "the log was cut or is an older copy") {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "audit", "prove", "rcpt_1"); status == 0 || !strings.Contains(out, "the log was cut or is an older copy") {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "audit", "verify", "--checkpoint", "missing.note"); status == 0 || !strings.Contains(out, "missing.note: no such file") {
		t.Errorf("status %d\n%s", status, out)
	}
}

// TestLinuxChangedArtefact: what was compiled is made again from the upload; a
// changed upload is not run.
func TestLinuxChangedArtefact(t *testing.T) {
	d := digest(t)
	change := func(pattern string) {
		t.Helper()
		var list []string
		err := filepath.WalkDir(filepath.Join(d.dir, "modules", pattern), func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				list = append(list, path)
			}
			return err
		})
		if err != nil || len(list) == 0 {
			t.Fatalf("%s: %v, %v", pattern, list, err)
		}
		for _, path := range list {
			b := read(t, path)
			flip(t, path, b)
		}
	}
	change("artefacts")
	d.once()
	if n := len(d.mails()); n != 1 {
		t.Errorf("%d mails", n)
	}
	d.stop() // and with it spare workers, which have loaded what was verified
	change("artefacts")
	change("uploads")
	d.up()
	v := d.finished(d.start("digest", `{"folder":"docs"}`))
	if v.State != host.StateFailed || !strings.Contains(v.Failure, "upload was changed") {
		t.Errorf("the run %s: %s", v.State, v.Failure)
	}
	if v.Calls != 0 {
		t.Errorf("it made %d calls", v.Calls)
	}
}

// TestLinuxApprovalIsBoundToItsBytes edits what a person will be asked to approve, and
// what waits to be sent.
func TestLinuxApprovalIsBoundToItsBytes(t *testing.T) {
	d := digest(t)
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)
	d.stop()
	for name, query := range map[string]string{
		"preview":   "UPDATE approval SET detail_enc = CAST(substr(detail_enc, 1, length(detail_enc)-1) || x'00' AS BLOB)",
		"MAC":       "UPDATE approval SET bound_mac = zeroblob(length(bound_mac))",
		"operation": "UPDATE approval SET operation = 'files.read'",
		"state":     "UPDATE approval SET state = 'approved', decided_by = 'Ann'",
		"record":    "UPDATE journal SET body_enc = CAST(substr(body_enc, 1, length(body_enc)-1) || x'00' AS BLOB) WHERE seq = (SELECT max(seq) FROM journal)",
	} {
		t.Run(name, func(t *testing.T) {
			twin := *d
			twin.t, twin.home = t, copyHome(t, d.home)
			twin.dir = filepath.Join(twin.home, "team")
			twin.exec(query)
			twin.up()
			if _, err := twin.Decide(twin.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err == nil || name == "state" { // then the run goes on
				if err := twin.Watch(twin.ctx(), id, 0, func(host.Event) error { return nil }); err != nil {
					t.Error(err)
				}
			}
			twin.kill()
			if n := len(twin.mails()); n != 0 {
				t.Errorf("%d mails left although the database was changed", n)
			}
		})
	}
}
