package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// EraseRun takes a run's content away for good: the wrapped key, without which nothing
// that was sealed under it opens again, here or in a copy, and the sealed values
// themselves. What is left is the run's row without content, the records' headers, and
// the digests of what they held, so that the chain still verifies; genesis is its head
// before the first record. A run that has not ended, or is erased, is host.ErrConflict.
// Files of large bodies are removed by DropBlobs, after this is durable.
func (tx *Tx) EraseRun(id host.RunID, genesis abi.Digest, now time.Time) error {
	none := []byte{}
	err := tx.change(`UPDATE run SET erased_at = ?, genesis_sha256 = ?, key_enc = NULL, start_enc = ?, label_enc = ?, result_enc = NULL, result_label_enc = NULL,
			failure = CASE WHEN failure = '' THEN '' ELSE 'erased' END
		WHERE ws = ? AND run_id = ? AND erased_at = 0 AND state NOT IN ('queued','running','waiting')`, now.UnixMilli(), genesis[:], none, none, tx.ws, id)
	if err != nil {
		return err
	}
	const part = 500 // records in memory at a time
	var end int64
	if err := tx.row(`SELECT next_seq FROM run WHERE ws = ? AND run_id = ?`, tx.ws, id).Scan(&end); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for first := int64(1); first < end; first += part {
		recs, err := tx.RecordsFrom(id, first, first+part)
		if err != nil {
			return err
		}
		for i := range recs {
			r := &recs[i]
			body, label := sha256.Sum256(r.Body), sha256.Sum256(r.Label)
			if err := tx.exec(`UPDATE journal SET body_enc = ?, label_enc = ?, blob_ref = '', body_sha256 = ?, label_sha256 = ? WHERE ws = ? AND run_id = ? AND seq = ?`,
				none, none, body[:], label[:], tx.ws, id, r.Seq); err != nil {
				return fmt.Errorf("store: journal: %w", err)
			}
		}
	}
	return tx.exec(`UPDATE approval SET detail_enc = ? WHERE ws = ? AND run_id = ?`, none, tx.ws, id)
}

// Erasable lists runs that ended before a moment and still have content, oldest first.
func (tx *Tx) Erasable(before time.Time, limit int) ([]host.RunID, error) {
	return tx.runIDs(`SELECT run_id FROM run WHERE ws = ? AND erased_at = 0 AND ended_at > 0 AND ended_at < ?
		AND NOT EXISTS (SELECT 1 FROM run up WHERE up.ws = run.ws AND up.run_id = run.parent_run AND up.ended_at = 0) ORDER BY ended_at LIMIT ?`, tx.ws, before.UnixMilli(), limit)
}

// RunKey returns a run's wrapped key, nil for an erased run.
func (tx *Tx) RunKey(id host.RunID) (key []byte, err error) {
	err = tx.row(`SELECT key_enc FROM run WHERE ws = ? AND run_id = ?`, tx.ws, id).Scan(&key)
	return key, absent(err)
}

// DropBlobs removes the files of a run's large bodies.
func (s *Store) DropBlobs(id host.RunID) error {
	if s.blobs == "" {
		return nil
	}
	return s.blobs.drop(id)
}

// Scrub removes from the database's files what its rows hold no more, as far as the
// database can: SQLite's log is written back and cut off. PostgreSQL overwrites dead rows
// when it vacuums them. What is gone for good is gone because its key is.
func (s *Store) Scrub(ctx context.Context) error {
	if s.d != sqlite {
		return nil
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	if err := s.Reason(); err != nil {
		return err
	}
	var busy, pages, moved int
	if err := s.conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("store: checkpoint: %w", err)
	}
	if busy != 0 {
		return errors.New("store: the log is being read; it is written back later")
	}
	return nil
}
