package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/getmonroe/monroe/host"
)

// Snapshot copies the SQLite database at path, as it is at one moment, into a new file.
// The daemon may be running; on a network file system it holds the database alone, and
// this is refused.
func Snapshot(ctx context.Context, path, to string) error {
	if _, err := os.Stat(to); err == nil {
		return fmt.Errorf("store: %s is there already", to)
	}
	if err := private(to); err != nil { // VACUUM INTO fills an empty file, with this mode
		return err
	}
	db, err := open(path, 1, "&mode=ro")
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // it was only read
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		return fmt.Errorf("store: snapshot: %w", err)
	}
	copied, err := open(to, 1, "&mode=ro")
	if err != nil {
		return err
	}
	defer copied.Close() //nolint:errcheck // it was only read
	var word string
	if err := copied.QueryRowContext(ctx, `PRAGMA integrity_check`).Scan(&word); err != nil || word != "ok" {
		return errors.Join(fmt.Errorf("store: the snapshot does not verify: %s", word), err)
	}
	f, err := os.Open((&url.URL{Path: to}).Path)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// epochsAfterRestore is how far a restore moves the lease's epoch on: past every one
// that a daemon can have had since the backup.
const epochsAfterRestore = 1 << 20

// Restored makes a database safe that was put back from a backup. What happened since
// then is not in it, so nothing goes on by itself: every run that has not ended is held,
// until a moment at the latest, and every open question to a person is void. The epoch
// moves on, so no daemon of before writes. This store writes nothing after it.
func (tx *Tx) Restored(now, until time.Time) (held int64, voided int, err error) {
	runs, err := tx.VoidAll()
	if err != nil {
		return 0, 0, err
	}
	held, err = tx.q.changed(tx.ctx, `UPDATE run SET state = 'waiting', wait_kind = ?, wake_at = ? WHERE ws = ? AND state IN ('queued','running','waiting')`, host.WaitRestored, until.UnixMilli(), tx.ws)
	if err != nil {
		return 0, 0, fmt.Errorf("store: %w", err)
	}
	return held, len(runs), tx.change(`UPDATE lease SET epoch = epoch + ?, expires_at = 0, taken_at = ? WHERE ws = ?`, epochsAfterRestore, now.UnixMilli(), tx.ws)
}
