package store

import (
	"context"
	"time"

	"github.com/getmonroe/monroe/host"
)

// Numbered is how PostgreSQL reads a statement.
var Numbered = numbered

// OpenWAL is Open with a write-ahead log, whatever OnNetwork says of the place: a
// test's file system is no network, though the kernel gives both the same name.
func OpenWAL(ctx context.Context, path string, ws host.Workspace) (*Store, error) {
	return OpenOn(ctx, path, ws, "test", time.Now(), "")
}

// Relax takes the sync of every commit away.
func Relax(ctx context.Context, s *Store) error {
	_, err := s.conn.ExecContext(ctx, "PRAGMA synchronous=NORMAL")
	return err
}
