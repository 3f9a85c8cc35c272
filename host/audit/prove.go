package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/host"
)

// Proof shows somebody who holds a checkpoint that one leaf is in the log, without the
// other leaves: the hashes beside its way up to the root, as RFC 6962 orders them. With
// the leaf's body its size is some 20 hashes for a million leaves.
type Proof struct {
	Index     int64
	Body      []byte
	Inclusion tlog.RecordProof
}

// Prove proves a leaf in the tree that the first n make. A leaf beyond them is
// host.ErrNotFound.
func Prove(tx ProofTx, leaf, n int64) (Proof, error) {
	if leaf < 0 || leaf >= n {
		return Proof{}, host.ErrNotFound
	}
	bodies, err := tx.Leaves(leaf, 1)
	if err != nil {
		return Proof{}, err
	}
	if len(bodies) == 0 {
		return Proof{}, fmt.Errorf("%w: leaf %d is not there", ErrTampered, leaf)
	}
	p, err := tlog.ProveRecord(n, leaf, reader(tx.LeafHashes))
	if err != nil {
		return Proof{}, fmt.Errorf("%w: leaf %d: %w", ErrTampered, leaf, err)
	}
	return Proof{leaf, bodies[0], p}, nil
}

// ProofTx is what proving needs of a transaction.
type ProofTx interface {
	Leaves(from int64, limit int) ([][]byte, error)
	LeafHashes(idx int64) ([]byte, error)
}

// Check holds the proof to a checkpoint.
func (p Proof) Check(h Head) error {
	if err := tlog.CheckRecord(p.Inclusion, h.Size, h.Root, p.Index, tlog.RecordHash(p.Body)); err != nil {
		return fmt.Errorf("%w: leaf %d is not in the log of %d leaves that is signed: %w", ErrTampered, p.Index, h.Size, err)
	}
	return nil
}

// ProveExtends proves that the tree of the first n leaves begins with that of the first
// older, to somebody who holds both checkpoints and no leaf. Of an empty one there is
// nothing to prove.
func ProveExtends(tx ProofTx, older, n int64) (tlog.TreeProof, error) {
	if older < 1 || older > n {
		return nil, host.ErrNotFound
	}
	p, err := tlog.ProveTree(n, older, reader(tx.LeafHashes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTampered, err)
	}
	return p, nil
}

// CheckExtends holds such a proof to both checkpoints.
func CheckExtends(p tlog.TreeProof, older, newer Head) error {
	if older.Origin != newer.Origin {
		return fmt.Errorf("%w: the checkpoints are of %s and %s", ErrTampered, older.Origin, newer.Origin)
	}
	if older.Size > newer.Size {
		return cut(newer.Size, older)
	}
	if err := tlog.CheckTree(p, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fmt.Errorf("%w: the log of %d leaves does not begin with the %d that an earlier checkpoint signs: %w", ErrTampered, newer.Size, older.Size, err)
	}
	return nil
}
