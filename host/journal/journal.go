// Package journal writes a run down, call by call, and answers from what is written.
//
// Laws, each with a test:
//
//  1. What was answered once is answered again, byte for byte, whatever today's
//     rules say.
//  2. A run that asks something else than it asked before has diverged; nothing
//     live happens after that.
//  3. Records are chained over their headers and ciphertexts: a flipped byte, a
//     missing or reordered record is found when the run is loaded, and stops that
//     run alone.
//  4. Sealed bodies open only in their own row of their own run.
//
// It knows records, their order and their keys. It must not know policy, what an
// effect means, or the world.
package journal

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Kind says what a record is. Kinds are append-only.
type Kind string

const (
	Value      Kind = "VALUE"       // a call that needed no decision of its own in the store, with its answer
	Call       Kind = "CALL"        // a call with an effect: request, frozen plan, decision
	Gate       Kind = "GATE"        // the call waits for a person; names the approval
	GateResult Kind = "GATE_RESULT" // what the person said
	Attempt    Kind = "ATTEMPT"     // the first byte may leave after this is durable
	Result     Kind = "RESULT"      // the answer
	Probe      Kind = "PROBE"       // what a look for an attempt's effect found
	Unknown    Kind = "UNKNOWN"     // nobody can tell whether an attempt had its effect: a person is asked
	Wait       Kind = "WAIT"        // the call waits for what the operator has to bring back, or for budget
	Resolved   Kind = "RESOLVED"    // what became of it, in a person's word or for want of one
	Edit       Kind = "EDIT"        // a person changed what the call asks for; its plan is the one from now on
	End        Kind = "END"         // the run's end
	Continue   Kind = "CONTINUE"    // the segment's end, and the state that the next one begins with
)

const recordVersion = host.RecordVersion

// Body is a record's content. A record uses the fields that its kind needs; fields
// only grow.
type Body struct {
	Op          abi.Op          `cbor:"1,keyasint,omitempty"`
	Fingerprint abi.Digest      `cbor:"2,keyasint,omitempty"`
	Operation   string          `cbor:"3,keyasint,omitempty"`
	Request     []byte          `cbor:"4,keyasint,omitempty"` // canonical
	Plan        []byte          `cbor:"5,keyasint,omitempty"` // JSON of connectors.Plan
	Key         string          `cbor:"6,keyasint,omitempty"` // idempotency key
	Effect      abi.Effect      `cbor:"7,keyasint,omitempty"` // effective
	Rule        string          `cbor:"8,keyasint,omitempty"`
	Approval    host.ApprovalID `cbor:"9,keyasint,omitempty"`
	Attempt     int             `cbor:"10,keyasint,omitempty"`
	Reply       []byte          `cbor:"11,keyasint,omitempty"` // exactly what the guest got
	Code        abi.Code        `cbor:"12,keyasint,omitempty"`
	Cost        abi.MicroUSD    `cbor:"13,keyasint,omitempty"`
	Provider    string          `cbor:"14,keyasint,omitempty"`
	Verdict     string          `cbor:"15,keyasint,omitempty"`
	Receipt     host.ReceiptID  `cbor:"16,keyasint,omitempty"`
	Resource    string          `cbor:"17,keyasint,omitempty"`
	Replay      abi.ReplayClass `cbor:"18,keyasint,omitempty"`
	Wake        int64           `cbor:"19,keyasint,omitempty"` // of a timer, ns since 1970
	Why         string          `cbor:"20,keyasint,omitempty"` // host's words: why an outcome is unknown
	By          string          `cbor:"21,keyasint,omitempty"` // principal id of who resolved it, empty for the host
	NotAfter    int64           `cbor:"22,keyasint,omitempty"` // no byte of the attempt leaves after it, ns since 1970
	Epoch       int64           `cbor:"23,keyasint,omitempty"` // of the lease under which the attempt was made
	Endpoint    string          `cbor:"24,keyasint,omitempty"` // where the attempt went
	State       []byte          `cbor:"25,keyasint,omitempty"` // canonical JSON, of the next segment
	Seed        []byte          `cbor:"26,keyasint,omitempty"` // of the next segment's randomness
	Segment     int             `cbor:"27,keyasint,omitempty"` // number of the next one
	Before      []byte          `cbor:"28,keyasint,omitempty"` // head of the chain before the segment, so that it verifies alone
	Wire        []byte          `cbor:"29,keyasint,omitempty"` // the body of a frozen HTTP request, which Plan leaves out then
	Delta       *Delta          `cbor:"30,keyasint,omitempty"` // Request and Wire are what differs from an earlier call
	Fields      []string        `cbor:"41,keyasint,omitempty"` // arguments that a person changed
	Child       host.RunID      `cbor:"40,keyasint,omitempty"` // the run that skill.call started
}

// ErrDiverged is wrapped when a run asks something else than it did before.
var ErrDiverged = errors.New("the run diverged")

// NewerError says that a newer binary wrote to the journal, and this one cannot tell
// what. Its chain verifies so far. Earlier versions are all read.
type NewerError struct{ Version int } // of a record

func (e *NewerError) Error() string {
	return fmt.Sprintf("journal: it has records of version %d, this binary reads up to %d", e.Version, recordVersion)
}

// ErrCorrupt is wrapped when the stored records are not what was written.
var ErrCorrupt = errors.New("journal: the records do not verify")

// Log is one run's journal. It belongs to the goroutine that drives the run.
type Log struct {
	run     host.RunID
	key     *vault.RunKey
	next    int64
	chain   abi.Digest
	calls   uint32 // the highest call number seen
	entries map[uint32]*Entry
	gone    uint32 // calls that were let go, from the first on

	segment *Segment // nil for the first
	first   int64    // sequence number that the segment begins with
	bytes   int64    // of the segment's bodies
	opened  Size     // with what the log was loaded
	newest  time.Time
	last    *full // the last large call, which the next one is stored against

	labels shared[string, label.Set]
	asks   shared[Ask, Ask]
	idle   *Course // of every call that has taken no course; nobody writes to it

	pending []store.Record
	weight  int                // of the pending bodies
	staged  bool               // pending was handed to a transaction that has not been confirmed
	same    map[abi.Digest]int // calls by fingerprint
}

// Genesis is the head of a chain without records. It binds the run's row: its
// identity, its pins and its sealed start.
func Genesis(r *store.Run) abi.Digest {
	if r.Genesis != (abi.Digest{}) { // erased: what it was made of is gone
		return r.Genesis
	}
	h := sha256.New()
	for _, p := range [][]byte{
		[]byte("monroe/journal/1"), []byte(r.Workspace), []byte(r.ID), []byte(r.Root), []byte(r.OnBehalfOf.ID), []byte(r.Skill),
		r.Module[:], r.Image[:], []byte(r.Engine), r.ConfigSHA256[:], r.ManifestSHA256[:], r.Start, r.StartLabel,
	} {
		hashPart(h.Write, p)
	}
	if r.Parent != "" { // a run that nobody called hashes as it did before there were others
		hashPart(h.Write, []byte(r.Parent))
	}
	return abi.Digest(h.Sum(nil))
}

func hashPart(write func([]byte) (int, error), p []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(p)))
	_, _ = write(n[:]) // a hash never fails
	_, _ = write(p)
}

// Link is the head of the chain after a record: the hash of the head before it, the
// record's header, and the hashes of what it holds, each with its length in front.
func Link(prev abi.Digest, r *store.Record) abi.Digest {
	body, lab := r.BodySum, r.LabelSum
	if !r.Erased() {
		body, lab = sha256.Sum256(r.Body), sha256.Sum256(r.Label)
	}
	header := strconv.AppendInt(make([]byte, 0, 128), r.Seq, 10)
	header = strconv.AppendUint(append(header, '|'), uint64(r.Call), 10)
	header = append(append(header, '|'), r.Kind...)
	header = strconv.AppendInt(append(header, '|'), int64(r.Version), 10)
	header = strconv.AppendInt(append(header, '|'), r.Time.UnixNano(), 10)
	all := make([]byte, 0, 256)
	for _, p := range [][]byte{prev[:], header, body[:], lab[:]} {
		all = append(binary.BigEndian.AppendUint64(all, uint64(len(p))), p...)
	}
	return sha256.Sum256(all)
}

// Heads recomputes a run's chain from what is stored now: the head after each
// record, whatever the records say of themselves.
func Heads(r *store.Run, recs []store.Record) []abi.Digest {
	head := Genesis(r)
	heads := make([]abi.Digest, len(recs))
	for i := range recs {
		head = Link(head, &recs[i])
		heads[i] = head
	}
	return heads
}

// parts is where the numbers of a batch's parts begin: far above any guest's calls,
// so that a batch leaves the numbers of the calls after it alone.
const parts = 1 << 24

// Part is the number of request i, from 0, of the batch that is host call n.
func Part(n uint32, i int) uint32 { return parts + n*abi.MaxBatch + uint32(i) }

// Guest is the number of the guest's host call that a call belongs to.
func Guest(n uint32) uint32 {
	if n < parts {
		return n
	}
	return (n - parts) / abi.MaxBatch
}

// Recall finds what is known of a call. A nil entry means that it is new. A request
// other than the recorded one is ErrDiverged, with what was recorded and what came, of
// which the digest alone is known.
func (l *Log) Recall(call uint32, fp abi.Digest) (*Entry, error) {
	return l.RecallAsked(call, fp, nil)
}

// RecallAsked is Recall for whoever has the request, and can say what it asks for.
func (l *Log) RecallAsked(call uint32, fp abi.Digest, asked func() Ask) (*Entry, error) {
	e := l.entries[call]
	if Guest(call) <= l.Base() {
		return nil, fmt.Errorf("%w: call %d came, the segment begins after call %d", ErrDiverged, call, l.Base())
	}
	if Guest(call) <= l.gone {
		return nil, fmt.Errorf("journal: call %d came again, and its answer was let go", call)
	}
	if e == nil {
		if Guest(call) != l.calls+1 {
			return nil, fmt.Errorf("%w: call %d came, the journal ends at call %d", ErrDiverged, call, l.calls)
		}
		return nil, nil
	}
	if e.Fingerprint != fp {
		got := fmt.Sprintf("a request with the digest %s", fp)
		if asked != nil {
			a := asked()
			got = fmt.Sprintf("%s (%s)", a.what(), fp)
		}
		return nil, fmt.Errorf("%w: recorded %s (%s) at call %d, got %s", ErrDiverged, e.what(), e.Fingerprint, call, got)
	}
	return e, nil
}

// LetGo drops the calls up to and including call n of the guest, which has their answers
// for good: a run makes tens of thousands. Who asks for one of them opens the journal
// anew; here it is an error, so that nothing else is answered.
func (l *Log) LetGo(n uint32) {
	kept := map[uint32]*Entry{}
	for call, e := range l.entries {
		if Guest(call) > n {
			kept[call] = e
		}
	}
	l.entries, l.gone = kept, max(l.gone, n)
}

// Answered returns the answers of the calls that a replay can be fed with: all from
// the segment's first on without a gap.
func (l *Log) Answered() (list []*Answer) {
	for n := l.Base() + 1; l.entries[n] != nil && l.entries[n].Answer != nil; n++ {
		list = append(list, l.entries[n].Answer)
	}
	return list
}

// Same is how many calls of the run, parts of batches included, had this fingerprint.
func (l *Log) Same(fp abi.Digest) int { return l.same[fp] }

// Entries returns every call in order, the parts of a batch before the batch. What was
// let go is not among them.
func (l *Log) Entries() []*Entry {
	list := slices.Collect(maps.Values(l.entries))
	slices.SortFunc(list, func(a, b *Entry) int {
		return cmp.Or(cmp.Compare(Guest(a.Call), Guest(b.Call)), -cmp.Compare(a.Call/parts, b.Call/parts), cmp.Compare(a.Call, b.Call))
	})
	return slices.DeleteFunc(list, func(e *Entry) bool { return e.Call == 0 }) // the run's end
}

// Entry is one call, nil if there is none of this number.
func (l *Log) Entry(call uint32) *Entry { return l.entries[call] }

// InDoubt is the call whose outcome a person is asked for, nil if there is none. A
// run has at most one: it waits before it goes on.
func (l *Log) InDoubt() *Entry {
	for _, e := range l.entries {
		if e.Answer == nil && e.Unknown != nil && e.Unknown.Resolution == "" {
			return e
		}
	}
	return nil
}

// Add writes a record into memory. It is durable when a transaction that Stage was
// called in has committed; until then nothing that depends on it may leave.
func (l *Log) Add(k Kind, call uint32, at time.Time, b Body, lab label.Set) error {
	if l.staged {
		return errors.New("journal: a record was added while a transaction was open")
	}
	if k == Continue {
		b.Before = l.chain[:]
	}
	packed, keep := b, (*full)(nil)
	if k == Call {
		var err error
		if packed, keep, err = l.pack(b); err != nil {
			return err
		}
	}
	plain, err := cbor.Marshal(&packed)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	labelText, err := json.Marshal(lab)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	r := store.Record{Seq: l.next, Call: call, Kind: string(k), Version: recordVersion, Time: at}
	row := l.row(r.Seq)
	if r.Body, err = l.key.Seal(slot("body", row, r.Version), plain); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if r.Label, err = l.key.Seal(slot("label", row, r.Version), labelText); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if len(r.Body) > store.MaxInline {
		id, err := l.key.BlobID(plain)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		r.Blob = store.Ref(id, r.Body)
	}
	r.Chain = Link(l.chain, &r)
	l.chain, l.next = r.Chain, l.next+1
	l.pending, l.weight = append(l.pending, r), l.weight+len(r.Body)
	if keep != nil {
		keep.seq = r.Seq
		l.last = keep
	}
	return l.fold(&r, &b, l.labels.put(string(labelText), lab))
}

// Stage hands the records in memory to a transaction.
func (l *Log) Stage(tx *store.Tx) error {
	l.staged = true
	if len(l.pending) == 0 {
		return nil
	}
	return tx.Append(l.run, l.pending[0].Seq, l.calls, l.pending)
}

// Staged tells how the transaction ended. After an error the run must stop: what
// the store holds is behind what the log says.
func (l *Log) Staged(err error) {
	l.staged = false
	if err == nil {
		clear(l.pending) // their bodies go
		l.pending, l.weight = l.pending[:0], 0
	}
}

// Pending is how many records wait for a transaction, and with how many bytes.
func (l *Log) Pending() (records, bytes int) { return len(l.pending), l.weight }

// Head is the newest record and the chain after it, for the audit leaf that
// witnesses it.
func (l *Log) Head() (seq int64, chain abi.Digest) { return l.next - 1, l.chain }
