package journal

import (
	"time"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Growth bounds the journal of one segment, Size is how large it is.
type (
	Growth = host.Growth
	Size   = host.JournalSize
)

// DefaultGrowth is where nobody says otherwise.
func DefaultGrowth() Growth { return host.DefaultGrowth() }

// Size is that of the current segment, what is not durable yet included.
func (l *Log) Size() Size { return Size{Records: l.next - l.first, Bytes: l.bytes} }

// Segment is a part of a run that begins with an explicit state, not with the run's
// input: what run.continue made. The guest of a segment replays nothing of earlier ones.
type Segment struct {
	Number int // 2 for the second
	State  []byte
	Seed   []byte
	At     time.Time
	Label  label.Set // of all that the run held: the state carries it
	Call   uint32    // that made it; the guest counts from the one after it
}

// Segment is the current one, nil for a run that never continued.
func (l *Log) Segment() *Segment { return l.segment }

// Base is the number of the last call before the current segment.
func (l *Log) Base() uint32 {
	if l.segment == nil {
		return 0
	}
	return l.segment.Call
}

// Opened is the size that the segment had when the log was opened: of what is durable.
func (l *Log) Opened() Size { return l.opened }

// Last is when the newest record was made, zero if there is none.
func (l *Log) Last() time.Time { return l.newest }

// begin takes up a record of the kind Continue: what was before it is not replayed.
func (l *Log) begin(seq int64, call uint32, at time.Time, b *Body, lab *label.Set) {
	l.segment = &Segment{Number: b.Segment, State: b.State, Seed: b.Seed, At: at, Label: *lab, Call: call}
	l.first, l.bytes, l.last = seq, 0, nil
	l.calls = call
	clear(l.same)
}

// RoomFor reports whether a segment that begins after a call can number as many.
func RoomFor(after, calls uint32) bool { return uint64(after)+uint64(calls) < parts }

// Segments opens every segment of a run in order, one at a time, and verifies that each
// begins where the one before it ends. A log that it hands over can only be read: it
// holds what is stored, not what was staged since, and of answers the refusals alone.
func Segments(tx *store.Tx, r *store.Run, key *vault.RunKey, each func(*Log)) error {
	marks, err := tx.Marks(r.ID)
	if err != nil {
		return err
	}
	first, head := int64(1), Genesis(r)
	for i := range len(marks) + 1 {
		part := *r
		if i < len(marks) {
			part.NextSeq = marks[i].Seq
		}
		o := newOpening(&part, key)
		o.chain.next, o.chain.head, o.outline = first, head, true
		if err := tx.EachFrom(r.ID, first, part.NextSeq, o.take); err != nil {
			return err
		}
		first, head = part.NextSeq, o.chain.head
		if i < len(marks) {
			part.Chain = head // the next one begins with it, or does not verify
		}
		log, err := o.end()
		if err != nil {
			return err
		}
		each(log)
	}
	return nil
}
