package broker

import (
	"context"
	"sync"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/audit"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// pastEntry is a call that the journal knows.
type pastEntry = journal.Entry

// Session is one run while it has a worker. It belongs to the goroutine that serves
// the worker; a run that waits has none.
type Session struct {
	Run     host.Run
	Subject grant.Subject
	Log     *journal.Log
	Key     *vault.RunKey
	Limits  abi.Limits
	// Tree is how many host calls the runs of the run's tree may make, and Others how
	// many of them the others that are called in it have made.
	Tree, Others uint32
	// Growth bounds the journal; a zero field is the default.
	Growth journal.Growth
	// Held is the label of everything that has entered the guest.
	Held label.Set
	// Free gives the run's worker back while a call goes on; the answer of that call is
	// ErrFreed. Nil keeps the worker.
	Free func()
	// Emit tells people who watch. It must not block.
	Emit func(host.Event)

	leaves   []audit.Leaf  // witnessed, waiting for the next transaction
	durable  *journal.Size // of what was durable after the last transaction; nil: what the log was opened with
	heedless int           // refusals of a full journal by this worker
	progress sync.Mutex    // Emit is also called while a call is under way
}

// above names the skills of the runs above this one, nearest first.
func (s *Session) above() (list []string) {
	for _, link := range s.Subject.Chain {
		list = append(list, link.Skill)
	}
	return list
}

// Bounds of what may wait for the next transaction: one record is added to less than both.
const (
	maxPending      = 256
	maxPendingBytes = 1 << 20
)

// room reports whether another record may wait.
func (s *Session) room() bool {
	n, bytes := s.Log.Pending()
	return n < maxPending && bytes < maxPendingBytes
}

// witness adds a leaf to the next transaction.
func (s *Session) witness(l audit.Leaf) { s.leaves = append(s.leaves, l) }

// Flush makes everything durable that is still in memory. Nothing may leave the
// host, and no run may wait or end, before it.
func (s *Session) Flush(ctx context.Context, st *store.Store) error {
	if n, _ := s.Log.Pending(); n == 0 && len(s.leaves) == 0 {
		return nil
	}
	return s.write(ctx, st, func(*store.Tx) error { return nil })
}

// write runs fn in a transaction that also carries every record and leaf of this
// session, those that fn adds included. After an error other than errShort and errOver the run
// must stop: the store is behind what the session says.
func (s *Session) write(ctx context.Context, st *store.Store, fn func(*store.Tx) error) error {
	before, grown, warning := len(s.leaves), s.durable, ""
	err := st.Write(ctx, func(tx *store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		if err := s.Log.Stage(tx); err != nil {
			return err
		}
		if grown, warning = s.grow(); warning != "" {
			s.witness(audit.Leaf{TimeMS: s.Log.Last().UnixMilli(), Kind: audit.KindGrowth, Run: s.Run.ID, Skill: s.Run.Skill, Module: s.Run.Module.String(), Verdict: "warning", Detail: warning})
		}
		seq, chain := s.Log.Head()
		for i := range s.leaves {
			s.leaves[i].Seq, s.leaves[i].Chain = seq, chain.String()
		}
		_, err := audit.Append(tx, s.leaves...)
		return err
	})
	s.Log.Staged(err)
	if err != nil {
		s.leaves = s.leaves[:before] // what fn witnessed was undone with the rest
		return err
	}
	s.leaves, s.durable = s.leaves[:0], grown
	if warning != "" {
		s.emit(host.Event{Kind: host.EventWarning, Text: warning})
	}
	return err
}

// nextLeaf is the index that the next witnessed leaf will get.
func (s *Session) nextLeaf(tx *store.Tx) (int64, error) {
	n, err := tx.LeafCount()
	return n + int64(len(s.leaves)), err
}

// restore gives an answer again, with the label that it had.
func (s *Session) restore(a *journal.Answer) Reply {
	s.Held = label.Join(s.Held, *a.Label)
	return Reply{Bytes: a.Reply, At: a.At}
}

// Restore replays an answer that the worker was fed ahead of its call: it holds what
// the answer's label says.
func (s *Session) Restore(a *journal.Answer) { s.restore(a) }

func (s *Session) emit(e host.Event) {
	s.progress.Lock()
	defer s.progress.Unlock()
	if s.Emit != nil {
		s.Emit(e)
	}
}
