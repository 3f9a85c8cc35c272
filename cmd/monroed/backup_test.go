package main_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// aside runs monroed for something else than serving.
func (d *daemon) aside(args ...string) (string, int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("monroed"), append([]string{"--home", d.home, "--workspace", "team"}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home}, d.env...)
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestLinuxBackupAndRestore takes a backup of a workspace that is served, sends a mail,
// and puts the backup back: the mail that the old database still waits to send is not
// sent again.
func TestLinuxBackupAndRestore(t *testing.T) {
	box := filepath.Join(shortDir(t), "box")
	d := compiled(t, "mail: {maildir: "+box+"}\n")
	d.apply(d.config(digestGrants...))
	ended := d.once()
	id := d.start("digest", `{"folder":"docs"}`)
	write(t, filepath.Join(d.files, "more.md"), "# More\n\nAnother question?\n")
	a := d.asked(id)
	dir := filepath.Join(shortDir(t), "backup")
	if out, status := d.aside("--backup", dir, "--with-keys"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	if out, status := d.aside("--restore", dir); status == 0 || !strings.Contains(out, "there already") {
		t.Fatalf("a restore over a workspace: status %d\n%s", status, out)
	}
	if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
		t.Fatal(err)
	}
	d.finished(id)
	sent := len(delivered(t, box))
	d.kill()
	if err := os.Rename(d.dir, d.dir+".before"); err != nil {
		t.Fatal(err)
	}
	if out, status := d.aside("--restore", dir); status != 0 || !strings.Contains(out, "1 runs are held until 20") || !strings.Contains(out, "1 open approvals are void") {
		t.Fatalf("status %d\n%s", status, out)
	}
	d.up()
	if v := d.run(ended); v.State != host.StateSucceeded || len(v.Result) == 0 {
		t.Errorf("%+v", v)
	}
	d.restored(id, a)
	if n := len(delivered(t, box)); n != sent {
		t.Errorf("%d mails, %d before", n, sent)
	}
	if st, err := os.Stat(filepath.Join(d.dir, "monroe.db")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// restored checks a run that asked when the backup was taken: it is held, its question is
// void, and released it comes to an end. The log verifies, as no checkpoint of after the
// backup was kept.
func (d *daemon) restored(id host.RunID, a api.ApprovalView) {
	d.t.Helper()
	if v := d.run(id); v.State != host.StateWaiting || v.Wait != host.WaitRestored {
		d.t.Errorf("the run is %s %s", v.State, v.Wait)
	}
	_, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	refused(d.t, err, 409, "APPROVAL_STATE")
	if out, status := cli(d.t, "--home", d.home, "-w", "team", "runs", "release", string(id)); status != 0 {
		d.t.Fatalf("status %d\n%s", status, out)
	}
	d.finished(id)
	if out, status := d.verify(); status != 0 {
		d.t.Errorf("status %d\n%s", status, out)
	}
}
