package store_test

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
)

// Laws 1 and 3: a daemon that lost its lease writes nothing, and from then on the
// store answers errors only, also when the lease looks right again.
func TestAWriterThatLostItsLeaseIsFencedForGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	put := func(id host.PrincipalID) error {
		return s.Write(t.Context(), func(tx *store.Tx) error {
			return tx.PutPrincipal(host.Principal{ID: id, Role: host.RoleViewer}, time.Now())
		})
	}
	if err := put("before"); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	bump := func(by int) {
		t.Helper()
		if _, err := other.Exec(`UPDATE lease SET epoch = epoch + ?`, by); err != nil {
			t.Fatal(err)
		}
	}
	bump(1)
	if err := put("after"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("a fenced write: %v", err)
	}
	<-s.Failed()
	bump(-1)
	if err := put("later"); !errors.Is(err, store.ErrClosed) || !errors.Is(err, store.ErrFenced) {
		t.Errorf("a write after the failure: %v", err)
	}
	var n int
	if err := other.QueryRow(`SELECT COUNT(*) FROM principal`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// Law 2, without a real power cut: what was answered is there for the next daemon,
// though nothing was closed in order.
func TestWhatWriteReturnedNilForIsThereForTheNextReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	if err := s.Write(t.Context(), func(tx *store.Tx) error {
		return tx.PutPrincipal(host.Principal{ID: "prin_1", Role: host.RoleViewer}, time.Now())
	}); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	var n int
	if err := other.QueryRow(`SELECT COUNT(*) FROM principal`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}
}
