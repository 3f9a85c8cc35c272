package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// LeafCount returns how many leaves the audit log has.
func (tx *Tx) LeafCount() (n int64, err error) {
	if tx.leaves >= 0 {
		return tx.leaves, nil
	}
	err = tx.row(`SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_leaf WHERE ws = ?`, tx.ws).Scan(&n)
	if err == nil {
		tx.leaves = n
	}
	return n, absent(err)
}

// AppendLeaf stores a leaf at its index, with the tree hashes that it completes,
// one after the other.
func (tx *Tx) AppendLeaf(idx int64, body, hashes []byte) error {
	if err := tx.exec(`INSERT INTO audit_leaf (ws, idx, body, hashes) VALUES (?,?,?,?)`, tx.ws, idx, notNil(body), notNil(hashes)); err != nil {
		return err
	}
	tx.leaves = idx + 1
	return nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// LeafHashes returns the tree hashes that a leaf completed.
func (tx *Tx) LeafHashes(idx int64) (h []byte, err error) {
	err = tx.row(`SELECT hashes FROM audit_leaf WHERE ws = ? AND idx = ?`, tx.ws, idx).Scan(&h)
	return h, absent(err)
}

// Leaves returns up to limit bodies from an index on.
func (tx *Tx) Leaves(from int64, limit int) (bodies [][]byte, err error) {
	next := from
	err = tx.each(func(r *sql.Rows) error {
		var idx int64
		var b []byte
		if err := r.Scan(&idx, &b); err != nil {
			return err
		}
		if idx != next {
			return fmt.Errorf("audit leaf %d is missing", next)
		}
		next++
		bodies = append(bodies, b)
		return nil
	}, `SELECT idx, body FROM audit_leaf WHERE ws = ? AND idx >= ? ORDER BY idx LIMIT ?`, tx.ws, from, limit)
	return bodies, err
}

// PutCheckpoint stores a signed checkpoint.
func (tx *Tx) PutCheckpoint(size int64, note []byte, now time.Time) error {
	return tx.exec(`INSERT INTO audit_checkpoint (ws, size, note, created_at) VALUES (?,?,?,?) ON CONFLICT DO NOTHING`, tx.ws, size, note, now.UnixMilli())
}

// LastCheckpoint returns the newest checkpoint, size 0 and nil if there is none.
func (tx *Tx) LastCheckpoint() (size int64, at time.Time, note []byte, err error) {
	var ms int64
	err = tx.row(`SELECT size, created_at, note FROM audit_checkpoint WHERE ws = ? ORDER BY size DESC LIMIT 1`, tx.ws).Scan(&size, &ms, &note)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, at, nil, nil
	}
	return size, fromMilli(ms), note, absent(err)
}
