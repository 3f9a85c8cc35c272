package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/getmonroe/monroe/host/store"
)

// TestNoTemporaryFiles: what a savepoint may have to undo stays in memory, and out of
// a directory that everybody shares.
func TestNoTemporaryFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path)
		fill := func(tx *store.Tx, with byte) (err error) { // what is the same already is not written
			for i := range byte(100) {
				err = errors.Join(err, tx.PutKV("n", store.KV{KeyMAC: []byte{i}, Key: []byte{}, Value: bytes.Repeat([]byte{with}, 3000), Label: []byte{}}))
			}
			return err
		}
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return fill(tx, 0) }); err != nil {
			t.Fatal(err)
		}
		goOn, ended := make(chan struct{}), make(chan error, 3)
		write := func(fn func(*store.Tx) error) { go func() { ended <- s.Write(t.Context(), fn) }() }
		write(func(tx *store.Tx) error { <-goOn; return tx.Touch() })
		synctest.Wait()
		for i := range byte(2) { // they share the next commit, each in a savepoint
			write(func(tx *store.Tx) error { return errors.Join(fill(tx, 1+i), noTemporary(t)) })
		}
		synctest.Wait()
		close(goOn)
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// noTemporary looks for a temporary file of SQLite among this process's open files.
func noTemporary(t *testing.T) error {
	fds, err := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasSuffix(name, " (deleted)") {
			t.Errorf("SQLite has opened %s", name)
		}
	}
	return err
}

// TestTheWriteAheadLogIsBounded: it is carried over into the database after so many
// pages, and begins anew.
func TestTheWriteAheadLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	body := make([]byte, 100_000)
	for i := range int64(600) { // 60 MB
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.AppendLeaves(i, [][]byte{body}, [][]byte{nil}) }); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path + "-wal"); err != nil || st.Size() > 18<<20 {
		t.Errorf("the write-ahead log has %d bytes (%v)", st.Size(), err)
	}
}
