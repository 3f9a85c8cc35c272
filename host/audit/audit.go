// Package audit is the workspace's transparency log: one leaf for every decision
// and every outcome, in a Merkle tree whose checkpoints are signed.
//
// Laws, each with a test:
//
//  1. A leaf is appended in the transaction of what it witnesses, or not at all.
//  2. Changing, removing or reordering a leaf below a checkpoint is found by anyone
//     who holds the leaves and the checkpoint (Log).
//  3. A later checkpoint extends every earlier one (consistency).
//  4. One leaf is proved to be in the log of a checkpoint, and one checkpoint to extend
//     another, to somebody who holds no other leaf (Proof, CheckExtends).
//
// What it does not show: somebody with the database and the signing key can rewrite
// everything after the last checkpoint that was kept elsewhere. Keep them elsewhere.
//
// It knows leaves, hashes and checkpoints. It must not know payloads: a leaf holds
// digests, names and numbers.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Kind says what a leaf witnesses.
type Kind string

const (
	KindDecision Kind = "decision" // of an effect: before anything leaves
	KindOutcome  Kind = "outcome"  // of an attempted effect
	KindCall     Kind = "call"     // decision and outcome of a read or a refusal, in one
	KindStart    Kind = "run_start"
	KindEnd      Kind = "run_end"
	KindApproval Kind = "approval" // a person's answer
	KindEdit     Kind = "edit"     // a person changed what is asked for; the approval named is closed
	KindAdmin    Kind = "admin"    // a change of configuration, skills or tokens
	KindSpend    Kind = "spend"    // a warning of the month's cap, a run that waits for a higher one, a cost without an outcome
	KindAlarm    Kind = "alarm"    // a worker or a plugin tried what it may not
	KindProbe    Kind = "probe"    // a look for the effect of an attempt that was cut off
	KindUnknown  Kind = "unknown"  // nobody can tell what an attempt did: a person is asked
	KindErase    Kind = "erase"    // a run's content is gone for good
	KindGrowth   Kind = "growth"   // a run's journal is large
	KindResolved Kind = "resolved" // a person's word on it, or that there was none in time
)

// Leaf is one entry. Fields only grow; the body is its JSON.
type Leaf struct {
	V         int              `json:"v"`
	TimeMS    int64            `json:"time_ms"`
	Kind      Kind             `json:"kind"`
	Run       host.RunID       `json:"run,omitempty"`
	Call      uint32           `json:"call,omitempty"`
	Who       host.PrincipalID `json:"who,omitempty"` // on whose behalf, or who answered
	Skill     string           `json:"skill,omitempty"`
	Module    string           `json:"module,omitempty"` // SHA-256
	Op        abi.Op           `json:"op,omitempty"`
	Operation string           `json:"operation,omitempty"`
	Effect    abi.Effect       `json:"effect,omitempty"`
	Verdict   string           `json:"verdict,omitempty"` // allow, ask, deny, or an outcome
	Code      abi.Code         `json:"code,omitempty"`
	Rule      string           `json:"rule,omitempty"`   // what decided
	Policy    int64            `json:"policy,omitempty"` // version in force
	Approval  host.ApprovalID  `json:"approval,omitempty"`
	// Action and Request are keyed commitments: they can be checked with the
	// workspace's keys and guessed by nobody.
	Action   string       `json:"action,omitempty"`
	Request  string       `json:"request,omitempty"`
	Reserved abi.MicroUSD `json:"reserved,omitempty"`
	Cost     abi.MicroUSD `json:"cost,omitempty"`
	Period   string       `json:"period,omitempty"` // month, in UTC, that the cost belongs to
	BytesOut int64        `json:"bytes_out,omitempty"`
	BytesIn  int64        `json:"bytes_in,omitempty"`
	Detail   string       `json:"detail,omitempty"` // never text of a guest
	// Seq and Chain are the run's newest journal record at this moment, so that the
	// journal is witnessed, too.
	Seq   int64  `json:"seq,omitempty"`
	Chain string `json:"chain,omitempty"`
}

// Tx is what appending needs of a transaction.
type Tx interface {
	LeafCount() (int64, error)
	AppendLeaves(first int64, bodies, hashes [][]byte) error
	LeafHashes(idx int64) ([]byte, error)
}

// Append adds leaves and returns the index of the first.
func Append(tx Tx, leaves ...Leaf) (int64, error) {
	first, err := tx.LeafCount()
	if err != nil {
		return 0, err
	}
	bodies, flats := make([][]byte, len(leaves)), make([][]byte, len(leaves))
	known := reader(func(idx int64) ([]byte, error) {
		if idx >= first {
			return flats[idx-first], nil
		}
		return tx.LeafHashes(idx)
	})
	for i, l := range leaves {
		l.V = 1
		if bodies[i], err = json.Marshal(l); err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		hashes, err := tlog.StoredHashes(first+int64(i), bodies[i], known)
		if err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		for _, h := range hashes {
			flats[i] = append(flats[i], h[:]...)
		}
	}
	if err := tx.AppendLeaves(first, bodies, flats); err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	return first, nil
}

// Receipt names a leaf to people and programs.
func Receipt(leaf int64) host.ReceiptID { return host.ReceiptID(fmt.Sprintf("rcpt_%d", leaf)) }

// reader finds stored hashes. Hash n of level l is complete with leaf (n+1)·2^l-1,
// and lies there as the l-th.
func reader(of func(leaf int64) ([]byte, error)) tlog.HashReader {
	return tlog.HashReaderFunc(func(idx []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(idx))
		for i, x := range idx {
			level, n := tlog.SplitStoredHashIndex(x)
			flat, err := of((n+1)<<level - 1)
			if err != nil {
				return nil, err
			}
			from := level * tlog.HashSize
			if len(flat) < from+tlog.HashSize {
				return nil, fmt.Errorf("audit: hash %d is not stored", x)
			}
			copy(out[i][:], flat[from:])
		}
		return out, nil
	})
}

// Checkpoint signs the tree that the first n leaves make. The note is kept outside
// the database by whoever wants to hold the log to it.
func Checkpoint(tx Tx, n int64, s note.Signer) ([]byte, error) {
	root, err := tlog.TreeHash(n, reader(tx.LeafHashes))
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", s.Name(), n, root)
	return note.Sign(&note.Note{Text: text}, s)
}

// Head is what a checkpoint says.
type Head struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// ErrTampered is wrapped by everything that Verify finds.
var ErrTampered = errors.New("audit: the log does not verify")

// Extends says why a log of n leaves is not one that a checkpoint was the beginning
// of: it is shorter, or begins otherwise.
func Extends(tx Tx, n int64, h Head) error {
	if n < h.Size {
		return fmt.Errorf("%w: the log has %d leaves, a checkpoint of %d is signed already", ErrTampered, n, h.Size)
	}
	root, err := tlog.TreeHash(h.Size, reader(tx.LeafHashes))
	if err != nil {
		return fmt.Errorf("%w: the signed beginning of the log cannot be rebuilt: %w", ErrTampered, err)
	}
	if root != h.Root {
		return fmt.Errorf("%w: the log begins otherwise than the checkpoint of %d leaves says", ErrTampered, h.Size)
	}
	return nil
}

// OpenCheckpoint checks a note's signature and returns what it says.
func OpenCheckpoint(signed []byte, vkey string) (Head, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Head{}, fmt.Errorf("%w: verifier key: %w", ErrTampered, err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Head{}, fmt.Errorf("%w: checkpoint: %w", ErrTampered, err)
	}
	var h Head
	var root string
	if _, err := fmt.Sscanf(n.Text, "%s\n%d\n%s\n", &h.Origin, &h.Size, &root); err != nil {
		return Head{}, fmt.Errorf("%w: checkpoint: %w", ErrTampered, err)
	}
	if h.Root, err = tlog.ParseHash(root); err != nil {
		return Head{}, fmt.Errorf("%w: checkpoint: %w", ErrTampered, err)
	}
	if h.Origin != v.Name() {
		return Head{}, fmt.Errorf("%w: the checkpoint is of %q", ErrTampered, h.Origin)
	}
	return h, nil
}

// Log rebuilds the tree from leaves alone, for a verifier that trusts nobody. The
// zero Log is empty.
type Log struct {
	hashes []tlog.Hash
	size   int64
}

// Add appends a leaf's body.
func (l *Log) Add(body []byte) error {
	hs, err := tlog.StoredHashes(l.size, body, l.read())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTampered, err)
	}
	l.hashes = append(l.hashes, hs...)
	l.size++
	return nil
}

// Size is how many leaves were added.
func (l *Log) Size() int64 { return l.size }

func (l *Log) read() tlog.HashReader {
	return tlog.HashReaderFunc(func(idx []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(idx))
		for i, x := range idx {
			if x < 0 || x >= int64(len(l.hashes)) {
				return nil, fmt.Errorf("hash %d is beyond the log", x)
			}
			out[i] = l.hashes[x]
		}
		return out, nil
	})
}

// cut is what is wrong with a log of n leaves where a checkpoint has more.
func cut(n int64, h Head) error {
	return fmt.Errorf("%w: the log has %d leaves, the checkpoint has %d: the log was cut or is an older copy", ErrTampered, n, h.Size)
}

// Check holds the log to a checkpoint: its size must have been added, and the root
// must be the same. An earlier checkpoint that passes proves consistency, a later
// one inclusion of every leaf.
func (l *Log) Check(h Head) error {
	if h.Size > l.size {
		return cut(l.size, h)
	}
	root, err := tlog.TreeHash(h.Size, l.read())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTampered, err)
	}
	if root != h.Root {
		return fmt.Errorf("%w: the first %d leaves give root %s, the checkpoint says %s", ErrTampered, h.Size, root, h.Root)
	}
	return nil
}

// ParseLeaf reads a leaf's body.
func ParseLeaf(body []byte) (Leaf, error) {
	var l Leaf
	if err := json.Unmarshal(body, &l); err != nil {
		return l, fmt.Errorf("%w: a leaf is not JSON: %w", ErrTampered, err)
	}
	return l, nil
}

// Time is when the leaf was written.
func (l Leaf) Time() time.Time { return time.UnixMilli(l.TimeMS).UTC() }
