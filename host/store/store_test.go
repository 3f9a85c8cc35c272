package store_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

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
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.AppendLeaf(0, []byte("x"), nil) }); err != nil {
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
