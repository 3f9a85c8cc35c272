package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/faultfs"
	"github.com/getmonroe/monroe/host/store/storetest"
)

// large is a body that lies in a file.
func large(seq int64) []byte {
	return bytes.Repeat([]byte{byte(seq)}, store.MaxInline+int(seq))
}

// keepLarge appends one record with a large body to the run and returns its number.
func keepLarge(ctx context.Context, s *store.Store) (seq int64, err error) {
	err = s.Write(ctx, func(tx *store.Tx) error {
		r, err := tx.Run("run_1")
		if err != nil {
			return err
		}
		seq = r.NextSeq
		body := large(seq)
		return tx.Append("run_1", seq, 0, []store.Record{{Seq: seq, Kind: "X", Time: at, Body: body, Label: []byte{1}, Blob: store.Ref([]byte{1}, body)}})
	})
	return seq, err
}

// readLarge returns how many records there are, and says which cannot be read.
func readLarge(ctx context.Context, s *store.Store) (n int64, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		list, err := tx.Records("run_1")
		for _, r := range list {
			n = r.Seq
			if r.Lost != "" || !bytes.Equal(r.Body, large(r.Seq)) {
				err = errors.Join(err, fmt.Errorf("record %d has another body than was written: %s", r.Seq, r.Lost))
			}
		}
		return err
	})
	return n, err
}

// withRun is the directory of a database with one run, which has no large body yet.
func withRun(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s, err := store.OpenOn(t.Context(), filepath.Join(dir, "db"), "acme", "test", at, "")
	if err != nil {
		t.Fatal(err)
	}
	err = s.Write(t.Context(), func(tx *store.Tx) error {
		return errors.Join(putPrincipal("prin_1")(tx), tx.InsertRun(newRun("run_1")))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A large body is written, and what holds it fails at each operation in each way. A record
// that was answered has its body, no record refers to a body that is not there, and the next
// start goes on.
func TestRootALargeBodyIsThereOrItsRecordIsNot(t *testing.T) {
	home := withRun(t)
	for what, rule := range map[string]faultfs.Rule{
		"cut":             {Cut: true},
		"cut, names last": {Cut: true, Names: true},
		"died":            {Errno: syscall.EIO}, // and nothing is lost of what was not synced, yet
		"write EIO":       {Op: faultfs.Write, Errno: syscall.EIO},
		"full":            {Op: faultfs.Write, Errno: syscall.ENOSPC},
		"short":           {Op: faultfs.Write, Short: true},
		"fsync EIO":       {Op: faultfs.Sync, Errno: syscall.EIO},
		"names EIO":       {Op: faultfs.SyncDir, Name: "run_1", Errno: syscall.EIO},
		"no directory":    {Op: faultfs.Mkdir, Errno: syscall.ENOSPC},
		"no file":         {Op: faultfs.Create, Errno: syscall.ENOSPC},
		"no rename":       {Op: faultfs.Rename, Errno: syscall.EIO},
	} {
		t.Run(what, func(t *testing.T) {
			disk := faultfs.Start(t)
			for rule.At = 1; ; rule.At += storetest.Stride {
				disk.Format(home)
				s, err := store.OpenWAL(t.Context(), filepath.Join(disk.Mount(), "db"), "acme")
				if err != nil {
					t.Fatal(err)
				}
				disk.Inject(rule)
				_, err = keepLarge(t.Context(), s)
				if err == nil {
					_ = s.Close()
					disk.Unmount()
					break
				}
				when := fmt.Sprintf("fault at %d: %s", rule.At, disk.Hit())
				select {
				case <-s.Failed():
				default:
					t.Fatalf("%s: the store goes on: %v", when, err)
				}
				seen := disk.Seen()
				if _, err := keepLarge(t.Context(), s); !errors.Is(err, store.ErrClosed) {
					t.Errorf("%s: a write after the fault: %v", when, err)
				}
				if n := disk.Seen(); n != seen {
					t.Errorf("%s: %d operations came after the fault", when, n-seen)
				}
				_ = s.Close()
				goesOn(t, disk, rule.Cut, when)
			}
			if rule.At < 2 {
				t.Error("nothing failed")
			}
		})
	}
}

// goesOn sees that the next store has every body of its records, and can write. If the
// power is there still it is cut then: what the store found half-made and finished lasts.
func goesOn(t *testing.T, disk *faultfs.Disk, off bool, when string) {
	t.Helper()
	for ; ; off = true {
		if disk.Inject(faultfs.Rule{}); off {
			disk.Unmount()
			disk.Mount()
		}
		dir := disk.Dir()
		s, err := store.OpenWAL(t.Context(), filepath.Join(dir, "db"), "acme")
		if err != nil {
			t.Fatalf("%s: afterwards: %v", when, err)
		}
		before, err := readLarge(t.Context(), s)
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		last, err := keepLarge(t.Context(), s)
		if err != nil || last != before+1 {
			t.Fatalf("%s: afterwards: record %d after %d: %v", when, last, before, err)
		}
		if _, err := s.SweepBlobs(t.Context(), time.Now()); err != nil {
			t.Errorf("%s: the sweep: %v", when, err)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "blobs", "run_1", "*")); int64(len(files)) != last {
			t.Errorf("%s: %d files for %d records", when, len(files), last)
		}
		disk.Cut()
		_ = s.Close()
		if off {
			disk.Unmount()
			return
		}
	}
}

// The controls: a body or a name of it that is not synced must be seen to be lost.
func TestRootALargeBodyThatIsNotSyncedIsLost(t *testing.T) {
	home := withRun(t)
	for _, rule := range []faultfs.Rule{
		{Op: faultfs.Sync, Name: "new-*", At: 1, Lie: true},
		{Op: faultfs.SyncDir, Name: "run_1", At: 1, Lie: true},
		{Op: faultfs.SyncDir, Name: "blobs", At: 1, Lie: true},
	} {
		disk := faultfs.Start(t)
		disk.Format(home)
		s, err := store.OpenWAL(t.Context(), filepath.Join(disk.Mount(), "db"), "acme")
		if err != nil {
			t.Fatal(err)
		}
		disk.Inject(rule)
		if _, err := keepLarge(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		disk.Cut()
		_ = s.Close()
		disk.Unmount()
		if s, err = store.OpenWAL(t.Context(), filepath.Join(disk.Mount(), "db"), "acme"); err != nil {
			t.Fatal(err)
		}
		if n, err := readLarge(t.Context(), s); n != 1 || err == nil {
			t.Errorf("without the %s of %s nothing of %d is lost, so the other test proves nothing", rule.Op, rule.Name, n)
		}
		_ = s.Close()
	}
}
