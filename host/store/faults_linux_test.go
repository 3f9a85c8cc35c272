package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/faultfs"
)

func serveDisk() { faultfs.Main() }

// opens are the two ways that SQLite is used.
var opens = map[string]func(ctx context.Context, path string) (*store.Store, error){
	"WAL": func(ctx context.Context, path string) (*store.Store, error) { return store.OpenWAL(ctx, path, "acme") },
	"OnNetwork": func(ctx context.Context, path string) (*store.Store, error) { // what Open finds a FUSE mount to be
		return store.Open(ctx, path, "acme", "test", time.Now())
	},
}

// fill writes until a write fails or n are done, and adds to said what was answered.
func fill(ctx context.Context, s *store.Store, said map[host.PrincipalID]bool, n int) error {
	for range n {
		id := host.PrincipalID(fmt.Sprintf("prin_%d", len(said)))
		err := s.Write(ctx, func(tx *store.Tx) error {
			if _, err := tx.Principal(id); err == nil {
				return nil // in doubt the last time, and there
			}
			return tx.PutPrincipal(host.Principal{ID: id, Name: string(make([]byte, 700)), Role: host.RoleViewer}, time.Now())
		})
		if err != nil {
			return err
		}
		said[id] = true
	}
	return nil
}

// missing counts what was answered and is not there, and checks the database.
func missing(t *testing.T, s *store.Store, said map[host.PrincipalID]bool) (n int) {
	t.Helper()
	err := s.Read(t.Context(), func(tx *store.Tx) error {
		for id := range said {
			if _, err := tx.Principal(id); errors.Is(err, host.ErrNotFound) {
				n++
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func whole(t *testing.T, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var said string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&said); err != nil || said != "ok" {
		t.Fatalf("integrity: %s, %v", said, err)
	}
}

// Law 2: the power fails at any moment, and what was answered is there.
func TestAPowerCutLosesNothingThatWasAnsweredNeedsRoot(t *testing.T) {
	for name, open := range opens {
		t.Run(name, func(t *testing.T) {
			disk, rng := faultfs.Start(t), rand.New(rand.NewPCG(1, 2))
			said := map[host.PrincipalID]bool{}
			for round := range 12 {
				path := filepath.Join(disk.Mount(), "db")
				s, err := open(t.Context(), path)
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if n := missing(t, s, said); n > 0 {
					t.Fatalf("round %d: %d of %d answered writes are lost", round, n, len(said))
				}
				disk.Inject(faultfs.Rule{At: 1 + rng.IntN(120), Cut: true})
				err = fill(t.Context(), s, said, 1000)
				if err == nil {
					t.Fatal("the power was not cut")
				}
				_ = s.Close()
				disk.Unmount()
			}
			path := filepath.Join(disk.Mount(), "db")
			s, err := open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if n := missing(t, s, said); n > 0 {
				t.Errorf("%d of %d answered writes are lost", n, len(said))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			whole(t, path)
		})
	}
}

// The control: without the sync of every commit, the same cut must be seen to lose.
func TestAPowerCutLosesWhatWasNotSyncedNeedsRoot(t *testing.T) {
	disk := faultfs.Start(t)
	s, err := store.OpenWAL(t.Context(), filepath.Join(disk.Mount(), "db"), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Relax(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	said := map[host.PrincipalID]bool{}
	if err := fill(t.Context(), s, said, 20); err != nil {
		t.Fatal(err)
	}
	disk.Cut()
	_ = s.Close()
	disk.Unmount()
	if s, err = store.OpenWAL(t.Context(), filepath.Join(disk.Mount(), "db"), "acme"); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := missing(t, s, said); n == 0 {
		t.Error("nothing was lost, so the cut of the other test proves nothing")
	}
}

// Law 3, at every write and sync of a commit, and again at every one of the recovery:
// the store ends, says why, tries nothing again, and works when the fault is over.
func TestAFaultOfTheDiskIsFinalAndLosesNothingNeedsRoot(t *testing.T) {
	for name, open := range opens {
		for what, rule := range map[string]faultfs.Rule{
			"write EIO": {Op: faultfs.Write, Errno: syscall.EIO},
			"full":      {Op: faultfs.Write, Errno: syscall.ENOSPC},
			"short":     {Op: faultfs.Write, Short: true},
			"fsync EIO": {Op: faultfs.Sync, Errno: syscall.EIO},
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				disk := faultfs.Start(t)
				said := map[host.PrincipalID]bool{}
				path := filepath.Join(disk.Mount(), "db")
				for rule.At = 1; rule.At <= 6; rule.At++ {
					disk.Inject(faultfs.Rule{})
					s, err := open(t.Context(), path)
					if err != nil {
						t.Fatalf("the fault is over: %v", err)
					}
					if n := missing(t, s, said); n > 0 {
						t.Fatalf("%d of %d answered writes are lost", n, len(said))
					}
					if err := fill(t.Context(), s, said, 1); err != nil {
						t.Fatal(err)
					}
					disk.Inject(rule)
					if err := fill(t.Context(), s, said, 60); err == nil {
						t.Fatalf("operation %d failed and nobody noticed", rule.At)
					}
					select {
					case <-s.Failed():
					default:
						t.Fatal("the store goes on")
					}
					if s.Reason() == nil || errors.Is(s.Reason(), store.ErrFenced) {
						t.Errorf("the reason is %v", s.Reason())
					}
					seen := disk.Seen()
					if err := fill(t.Context(), s, said, 1); !errors.Is(err, store.ErrClosed) {
						t.Errorf("a write after the fault: %v", err)
					}
					if n := disk.Seen(); n != seen {
						t.Errorf("%d operations came after the fault", n-seen)
					}
					_ = s.Close()
					disk.Inject(rule) // once more, while it is recovered
					if s, err := open(t.Context(), path); err == nil {
						_ = s.Close()
					}
				}
				disk.Inject(faultfs.Rule{})
				whole(t, path)
			})
		}
	}
}

// A lock that somebody else holds for a moment is waited for; one that stays ends the
// store, and nothing is lost.
func TestADatabaseThatSomebodyElseLocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	said := map[host.PrincipalID]bool{}
	if err := fill(t.Context(), s, said, 3); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lock := func() *sql.Tx {
		tx, err := other.Begin()
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	held := lock()
	released := make(chan error, 1)
	time.AfterFunc(200*time.Millisecond, func() { released <- held.Rollback() })
	if err := fill(t.Context(), s, said, 1); err != nil {
		t.Errorf("a lock of a moment: %v", err)
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	held = lock()
	if err := fill(t.Context(), s, said, 1); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a lock that stays: %v", err)
	}
	if err := errors.Join(held.Rollback(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if n := missing(t, s, said); n > 0 {
		t.Errorf("%d are lost", n)
	}
	if err := fill(t.Context(), s, said, 1); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A disk that cannot sync a name says so once. Either the store does not open, or what it
// answers lasts: a name of its log that is not durable would take every commit in it along.
func TestRootANameThatCannotBeSyncedTakesNoCommit(t *testing.T) {
	for name, open := range opens {
		t.Run(name, func(t *testing.T) {
			for at, hit := 1, true; hit; at++ {
				disk, said := faultfs.Start(t), map[host.PrincipalID]bool{}
				path := filepath.Join(disk.Mount(), "db")
				disk.Inject(faultfs.Rule{Op: faultfs.SyncDir, At: at, Errno: syscall.EIO})
				s, err := open(t.Context(), path)
				if err == nil {
					err = fill(t.Context(), s, said, 1)
				}
				hit = disk.Hit() != ""
				if !hit && err != nil {
					t.Fatal(err)
				}
				disk.Cut()
				if s != nil {
					_ = s.Close()
				}
				disk.Unmount()
				if s, err = open(t.Context(), filepath.Join(disk.Mount(), "db")); err != nil {
					t.Fatal(err)
				}
				if n := missing(t, s, said); n > 0 {
					t.Errorf("name %d was not synced, and %d commits are gone", at, n)
				}
				_ = s.Close()
				disk.Unmount()
			}
		})
	}
}
