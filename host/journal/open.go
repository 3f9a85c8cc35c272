package journal

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/fxamacker/cbor/v2"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// chain holds records to each other, one after the other.
type chain struct {
	run  host.RunID
	next int64 // sequence number
	head abi.Digest
}

func (c *chain) add(r *store.Record) error {
	if r.Seq != c.next {
		return fmt.Errorf("%w: record %d of %s is missing", ErrCorrupt, c.next, c.run)
	}
	if r.Lost != "" {
		return fmt.Errorf("%w: the body of record %d of %s is lost: %s", ErrCorrupt, r.Seq, c.run, r.Lost)
	}
	if c.head = Link(c.head, r); c.head != r.Chain {
		return fmt.Errorf("%w: record %d of %s was changed", ErrCorrupt, r.Seq, c.run)
	}
	c.next++
	return nil
}

// end holds what was added to the run's row.
func (c *chain) end(r *store.Run) error {
	if c.head != r.Chain || c.next != r.NextSeq {
		return fmt.Errorf("%w: the end of the journal of %s was changed", ErrCorrupt, r.ID)
	}
	return nil
}

// VerifyChain holds a run's records, from the first on, to each other and to the run's
// row.
func VerifyChain(r *store.Run, recs []store.Record) error {
	c := chain{run: r.ID, next: 1, head: Genesis(r)}
	for i := range recs {
		if err := c.add(&recs[i]); err != nil {
			return err
		}
	}
	return c.end(r)
}

// Open loads a run's journal and verifies it: all of its records, or those of its
// current segment.
func Open(r *store.Run, key *vault.RunKey, recs []store.Record) (*Log, error) {
	o := newOpening(r, key)
	for i := range recs {
		if err := o.take(&recs[i]); err != nil {
			return nil, err
		}
	}
	return o.end()
}

// Load is Open of the current segment as the store has it now, one record at a time: its
// sealed form is never in memory as a whole.
func Load(tx *store.Tx, r *store.Run, key *vault.RunKey) (*Log, error) {
	o := newOpening(r, key)
	if err := tx.EachOfSegment(r.ID, o.take); err != nil {
		return nil, err
	}
	return o.end()
}

// opening is a log that is being loaded.
type opening struct {
	log     *Log
	row     *store.Run
	chain   chain
	mem     vault.Scratch
	body    Body // of the record at hand
	outline bool // nobody asks for what the guest got, but for refusals
}

func newOpening(r *store.Run, key *vault.RunKey) *opening {
	return &opening{
		row: r, chain: chain{run: r.ID, next: 1, head: Genesis(r)},
		log: &Log{run: r.ID, key: key, next: r.NextSeq, chain: r.Chain, entries: map[uint32]*Entry{}, idle: &Course{}, same: map[abi.Digest]int{}, first: 1},
	}
}

// take adds the next record. Nothing of it is kept that it owns.
func (o *opening) take(r *store.Record) error {
	if o.chain.next == 1 && r.Seq > 1 {
		if err := o.begin(r); err != nil {
			return err
		}
	}
	if err := o.chain.add(r); err != nil {
		return err
	}
	lab, err := o.unseal(r)
	if err != nil {
		return err
	}
	if o.outline && o.body.Code == "" {
		o.body.Reply = nil
	}
	return o.log.fold(r, &o.body, lab)
}

// begin finds the head before a segment's first record, which is sealed in it.
func (o *opening) begin(r *store.Record) error {
	if r.Lost != "" || Kind(r.Kind) != Continue {
		return fmt.Errorf("%w: record %d of %s begins no segment %s", ErrCorrupt, r.Seq, o.row.ID, r.Lost)
	}
	if _, err := o.unseal(r); err != nil {
		return err
	}
	if len(o.body.Before) != len(abi.Digest{}) {
		return fmt.Errorf("%w: record %d of %s begins no segment", ErrCorrupt, r.Seq, o.row.ID)
	}
	o.chain.next, o.chain.head = r.Seq, abi.Digest(o.body.Before)
	return nil
}

func (o *opening) end() (*Log, error) {
	if err := o.chain.end(o.row); err != nil {
		return nil, err
	}
	o.log.opened = o.log.Size()
	return o.log, nil
}

// unseal opens a record into o.body.
func (o *opening) unseal(r *store.Record) (*label.Set, error) {
	if r.Version < 1 {
		return nil, fmt.Errorf("%w: record %d has version %d", ErrCorrupt, r.Seq, r.Version)
	}
	if r.Version > recordVersion {
		return nil, &NewerError{r.Version}
	}
	l, row := o.log, o.log.row(r.Seq)
	plain, err := l.key.OpenIn(&o.mem, slot("body", row, r.Version), r.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	o.body = Body{}
	if err := cbor.Unmarshal(plain, &o.body); err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", ErrCorrupt, r.Seq, err)
	}
	if err := l.expand(r.Seq, &o.body); err != nil {
		return nil, err
	}
	if plain, err = l.key.OpenIn(&o.mem, slot("label", row, r.Version), r.Label); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if lab := l.labels.get(string(plain)); lab != nil { // most are like one before
		return lab, nil
	}
	var lab label.Set
	if err := json.Unmarshal(plain, &lab); err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", ErrCorrupt, r.Seq, err)
	}
	return l.labels.put(string(plain), lab), nil
}

func (l *Log) row(seq int64) string { return string(l.run) + "/" + strconv.FormatInt(seq, 10) }

func slot(column, row string, version int) vault.Slot {
	return vault.Slot{Table: "journal", Column: column, Row: row, Version: version}
}
