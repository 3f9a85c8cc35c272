package store

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"time"
)

// tail is what the writer knows of the audit log's end without asking the database:
// nobody else appends while it holds the lease. It belongs to whoever has the turn.
type tail struct {
	count  int64            // -1 before it was asked for
	hashes map[int64][]byte // what a leaf completed, by its index
}

// maxTail bounds how many leaves are kept. A log of n leaves needs at most one for
// each bit of n.
const maxTail = 256

// forget drops what was appended since the log had n leaves: it was rolled back.
func (t *tail) forget(n int64) {
	t.count = n
	maps.DeleteFunc(t.hashes, func(idx int64, _ []byte) bool { return idx >= n })
}

// grow adds a leaf, and drops those that no later one is hashed with.
func (t *tail) grow(idx int64, hashes []byte) {
	t.hashes[idx], t.count = hashes, idx+1
	if len(t.hashes) < maxTail {
		return
	}
	maps.DeleteFunc(t.hashes, func(idx int64, _ []byte) bool {
		end := idx + 1 // the subtree of the leaf ends where n agrees with it down to its last bit
		return t.count>>bits.TrailingZeros64(uint64(end))<<bits.TrailingZeros64(uint64(end)) != end
	})
}

// LeafCount returns how many leaves the audit log has.
func (tx *Tx) LeafCount() (n int64, err error) {
	if tx.tail != nil && tx.tail.count >= 0 {
		return tx.tail.count, nil
	}
	err = tx.row(`SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_leaf WHERE ws = ?`, tx.ws).Scan(&n)
	if err == nil && tx.tail != nil {
		tx.tail.count = n
	}
	return n, absent(err)
}

// AppendLeaves stores leaves from an index on, each with the tree hashes that it
// completes, one after the other.
func (tx *Tx) AppendLeaves(first int64, bodies, hashes [][]byte) error {
	err := tx.insert(`INSERT INTO audit_leaf (ws, idx, body, hashes) VALUES `, len(bodies), func(i int) []any {
		return []any{tx.ws, first + int64(i), notNil(bodies[i]), notNil(hashes[i])}
	})
	if err != nil || tx.tail == nil {
		return err
	}
	for i, h := range hashes {
		tx.tail.grow(first+int64(i), h)
	}
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
	if tx.tail != nil && tx.tail.hashes[idx] != nil {
		return tx.tail.hashes[idx], nil
	}
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
