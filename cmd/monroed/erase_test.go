package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
)

// holds lists the files below a directory that hold some bytes.
func holds(t *testing.T, dir string, what []byte) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, what) {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// wrapped is the run's key as the database has it.
func (d *daemon) wrapped(id host.RunID) (key []byte) {
	d.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.dir, "monroe.db")+"?mode=ro")
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	if err := db.QueryRowContext(ctx, "SELECT key_enc FROM run WHERE run_id = ?", string(id)).Scan(&key); err != nil {
		d.t.Fatal(err)
	}
	return key
}

// TestLinuxErase looks into every file for what was erased: the text of a document that
// the run read and mailed, and the key that opened it.
func TestLinuxErase(t *testing.T) {
	d := digest(t)
	write(t, filepath.Join(d.files, "secret.md"), "# Secret\n\nIs the CANARY-93418 alive?\n")
	id := d.once()
	key := d.wrapped(id)
	if len(key) < 32 || len(holds(t, d.dir, key)) == 0 {
		t.Fatal("the test does not find the key where it is")
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "runs", "erase", string(id)); status != 0 || !strings.Contains(out, "erased") {
		t.Fatalf("status %d\n%s", status, out)
	}
	look := func(when string) {
		t.Helper()
		if list := holds(t, d.dir, key); len(list) > 0 {
			t.Errorf("%s: the wrapped key is in %v", when, list)
		}
		for _, path := range holds(t, d.dir, []byte("CANARY-93418")) {
			if !strings.Contains(path, "Maildir") { // the mail itself was delivered
				t.Errorf("%s: the text is in %s", when, path)
			}
		}
	}
	look("while it serves")
	if out, status := d.verify(); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "runs", "show", string(id)); status != 0 || !strings.Contains(out, "content was erased") {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, _ := cli(t, "--home", d.home, "-w", "team", "runs", "list"); !strings.Contains(out, "succeeded, erased") {
		t.Errorf("%s", out)
	}
	if out, status := cli(t, "--home", d.home, "-w", "team", "runs", "erase", string(id)); status == 0 || !strings.Contains(out, "RUN_ERASED") {
		t.Errorf("status %d\n%s", status, out)
	}
	if list, err := d.Approvals(d.ctx(), ""); err != nil || len(list) != 1 || list[0].Destination != "" {
		t.Errorf("%+v, %v", list, err)
	}
	d.stop()
	look("after it has stopped")
	d.up()
	d.once() // and the workspace goes on
	if out, status := d.verify(); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
}
