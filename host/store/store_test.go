package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/store"
)

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path, "acme", "test pid 1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestDatabaseIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.AppendLeaves(0, [][]byte{[]byte("x")}, [][]byte{nil}) }); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(path + suffix)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("db%s: %v, %v", suffix, st.Mode(), err)
		}
	}
}

func TestDatabaseIsItsOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ws.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.Touch() }); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (%v)", filepath.Base(f), st.Mode(), err)
		}
	}
}

// TestTouchReachesTheDisk watches the log: a commit without pages would prove nothing.
func TestTouchReachesTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ws.db")
	s := open(t, path)
	size := func() int64 {
		st, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	for range 3 {
		before := size()
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.Touch() }); err != nil {
			t.Fatal(err)
		}
		if size() <= before {
			t.Fatal("nothing was written")
		}
	}
}

// The end of the log that is kept in memory is the one that is in the database,
// whatever was rolled back in between.
func TestTheLogsTailIsTheDatabases(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	rnd, boom := rand.New(rand.NewPCG(1, 2)), errors.New("boom")
	var want int64
	for range 400 {
		n, fails := rnd.IntN(5), rnd.IntN(3) == 0
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			leaves := make([]audit.Leaf, n)
			if first, err := audit.Append(tx, leaves...); err != nil || first != want {
				t.Errorf("the first of %d leaves got index %d instead of %d: %v", n, first, want, err)
			}
			if fails {
				return boom
			}
			return nil
		})
		if fails != errors.Is(err, boom) || (!fails && err != nil) {
			t.Fatal(err)
		}
		if !fails {
			want += int64(n)
		}
	}
	var log audit.Log
	if err := s.Read(t.Context(), func(tx *store.Tx) error {
		bodies, err := tx.Leaves(0, int(want)+1)
		for _, b := range bodies {
			err = errors.Join(err, log.Add(b))
		}
		root, e := tlog.TreeHash(log.Size(), tlog.HashReaderFunc(func(idx []int64) ([]tlog.Hash, error) { return stored(tx, idx) }))
		return errors.Join(err, e, log.Check(audit.Head{Size: want, Root: root}))
	}); err != nil {
		t.Fatal(err)
	}
}

// stored reads tree hashes from the rows.
func stored(tx *store.Tx, idx []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(idx))
	for i, x := range idx {
		level, n := tlog.SplitStoredHashIndex(x)
		flat, err := tx.LeafHashes((n+1)<<level - 1)
		if err != nil {
			return nil, err
		}
		copy(out[i][:], flat[level*tlog.HashSize:])
	}
	return out, nil
}

// A write that nobody has begun with goes with its context, and only that one.
func TestAWaitingWriteCanBeWithdrawn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	busy, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Write(t.Context(), func(*store.Tx) error { close(busy); <-goOn; return nil })
	}()
	<-busy
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Write(ctx, func(*store.Tx) error { t.Error("it was written"); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestNobodyLooksAtEveryRun: with six thousand of them a start took 30 ms more, in which
// nobody else could write, every look at a run 50, and the sweep of each second 24.
func TestNobodyLooksAtEveryRun(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "monroe.db"))
	for query, indexes := range store.Queries {
		plan, err := store.Plan(t.Context(), s, query)
		for _, by := range indexes {
			if err != nil || !strings.Contains(plan, by) {
				t.Errorf("%s\n%v: not by %s\n%s", query, err, by, plan)
			}
		}
		if strings.Contains(plan, "PRIMARY KEY (ws=?)") || strings.Contains(plan, "SCAN run") {
			t.Errorf("%s\n%s", query, plan)
		}
	}
}
