package store_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/host/store"
)

// On a network file system nothing may depend on memory that two machines share, and
// the database itself is locked as long as the store is open.
func TestNetworkFileSystemHasNoSharedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := store.OpenOn(t.Context(), path, "acme", "test", time.Now(), "NFS")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(t.Context(), putPrincipal("x")); err != nil {
		t.Fatal(err)
	}
	if list, _ := filepath.Glob(path + "-*"); len(list) != 1 || !strings.HasSuffix(list[0], "-journal") {
		t.Errorf("files: %v", list)
	}
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Exec(`SELECT * FROM lease`); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("somebody else could read: %v", err)
	}
	if p := s.Place(); !strings.Contains(p, "SQLite on NFS") {
		t.Error(p)
	}
	if local, err := store.OnNetwork(t.TempDir()); err != nil || local != "" {
		t.Errorf("a local directory is on %q, %v", local, err)
	}
}
