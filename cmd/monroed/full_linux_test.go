package main_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/api"
)

// TestLinuxAFullDiskNeedsRoot fills the disk under a daemon whose run waits for a yes:
// nothing leaves without a record, the daemon ends and says why, and when there is
// room again the run goes on where it was.
func TestLinuxAFullDiskNeedsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it mounts a small tmpfs: root is needed")
	}
	d := newDaemon(t, "")
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("small", d.dir, "tmpfs", 0, "size=64m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	d.up()
	d.push(guestModule(t, "digest"))
	d.apply(d.config(digestGrants...))
	id := d.start("digest", `{"folder":"docs"}`)
	a := d.asked(id)

	ballast := filepath.Join(d.dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(piece)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	// What still fits into the write-ahead log is answered and kept; at last there is no
	// room for a commit.
	_, err = d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest})
	said := err == nil
	for range 2000 {
		if _, err := d.StartRun(d.ctx(), api.StartInput{Skill: "digest", Input: []byte(`{"folder":"docs"}`)}); err != nil {
			break
		}
	}
	if err := d.end(); err == nil || !strings.Contains(d.said.String(), "the store can no longer be written: the disk may be full") {
		t.Fatalf("it ended: %v\n%s", err, d.said)
	}
	before := len(d.mails())
	if before > 1 || before == 1 && !said {
		t.Fatalf("%d mails left, approved: %v", before, said)
	}

	if err := errors.Join(f.Close(), os.Remove(ballast)); err != nil {
		t.Fatal(err)
	}
	d.up()
	if v, err := d.Approval(d.ctx(), a.ID); err != nil {
		t.Fatal(err)
	} else if said && v.State == host.ApprovalPending {
		t.Error("an answered yes is lost")
	} else if v.State == host.ApprovalPending {
		if _, err := d.Decide(d.ctx(), a.ID, api.Decision{Decision: api.Approve, Digest: a.Digest}); err != nil {
			t.Fatal(err)
		}
	}
	if v := d.finished(id); v.State != host.StateSucceeded || len(d.mails()) != 1 {
		t.Errorf("the run %s: %s; %d mails", v.State, v.Failure, len(d.mails()))
	}
	d.verified()
}
