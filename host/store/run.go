package store

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Run is a run's row: the public part, and what is sealed.
type Run struct {
	host.Run
	Engine         string
	ABI            int
	ConfigSHA256   abi.Digest
	ManifestSHA256 abi.Digest
	Key            []byte // wrapped
	Start          []byte // sealed
	StartLabel     []byte // sealed
	NextSeq        int64
	JournalBytes   int64
	Chain          abi.Digest
	Result         []byte // sealed; nil before the end
	ResultLabel    []byte // sealed
	ReceiptLeaf    int64
	Cancel         string     // why it is to end; empty: it is not
	Genesis        abi.Digest // of an erased run: the head of its chain before the first record
}

const runColumns = `run_id, root_run, parent_run, on_behalf_of, skill, module_sha256, image_sha256, abi_version, engine, config_sha256, manifest_sha256,
	state, wait_kind, wake_at, attended, budget_micro, estimate, key_enc, start_enc, label_enc, next_seq, journal_bytes, chain_sha256, calls,
	created_at, started_at, ended_at, result_enc, result_label_enc, failure, receipt, receipt_leaf, erased_at, genesis_sha256, cancel`

func (tx *Tx) scanRun(scan func(...any) error) (Run, error) {
	var r Run
	var by host.PrincipalID
	var module, image, config, manifest, chain, genesis []byte
	var estimate string
	var wake, created, started, ended, erased int64
	err := scan(&r.ID, &r.Root, &r.Parent, &by, &r.Skill, &module, &image, &r.ABI, &r.Engine, &config, &manifest,
		&r.State, &r.Wait, &wake, &r.Attended, &r.Budget, &estimate, &r.Key, &r.Start, &r.StartLabel, &r.NextSeq, &r.JournalBytes, &chain, &r.Calls,
		&created, &started, &ended, &r.Result, &r.ResultLabel, &r.Failure, &r.Receipt, &r.ReceiptLeaf, &erased, &genesis, &r.Cancel)
	if err != nil {
		return r, err
	}
	copy(r.Module[:], module)
	copy(r.Image[:], image)
	copy(r.ConfigSHA256[:], config)
	copy(r.ManifestSHA256[:], manifest)
	copy(r.Chain[:], chain)
	copy(r.Genesis[:], genesis)
	r.Workspace = tx.ws
	r.OnBehalfOf.ID = by
	r.WakeAt, r.CreatedAt, r.StartedAt, r.EndedAt, r.ErasedAt = fromMilli(wake), fromMilli(created), fromMilli(started), fromMilli(ended), fromMilli(erased)
	if r.ReceiptLeaf >= 0 {
		r.ReceiptID = host.ReceiptID(fmt.Sprintf("rcpt_%d", r.ReceiptLeaf))
	}
	return r, json.Unmarshal([]byte(estimate), &r.Estimate)
}

func fromMilli(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// InsertRun stores a new run.
func (tx *Tx) InsertRun(r Run) error {
	estimate, err := json.Marshal(r.Estimate)
	if err != nil {
		return err
	}
	return tx.exec(`INSERT INTO run (ws, run_id, root_run, parent_run, on_behalf_of, skill, module_sha256, image_sha256, abi_version, engine,
			config_sha256, manifest_sha256, state, attended, budget_micro, estimate, key_enc, start_enc, label_enc, next_seq, journal_bytes, chain_sha256, created_at)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,1,0,?,?)`,
		tx.ws, r.ID, r.Root, r.Parent, r.OnBehalfOf.ID, r.Skill, r.Module[:], r.Image[:], abi.Version, r.Engine,
		r.ConfigSHA256[:], r.ManifestSHA256[:], r.State, r.Attended, r.Budget, string(estimate), r.Key, r.Start, r.StartLabel, r.Chain[:], milli(r.CreatedAt))
}

// Run returns a run with the principal it runs for and what it has spent.
func (tx *Tx) Run(id host.RunID) (Run, error) {
	r, err := tx.scanRun(tx.row(`SELECT `+runColumns+` FROM run WHERE ws = ? AND run_id = ?`, tx.ws, id).Scan)
	if err != nil {
		return r, absent(err)
	}
	return r, tx.complete(&r)
}

func (tx *Tx) complete(r *Run) error {
	p, err := tx.Principal(r.OnBehalfOf.ID)
	if err != nil {
		return err
	}
	r.OnBehalfOf = p
	t, err := tx.SpendTotal(RunScope(r.ID))
	r.Spent, r.Reserved = t.Settled, t.Reserved
	return err
}

// Runs lists the newest runs first.
func (tx *Tx) Runs(limit int) ([]Run, error) {
	return tx.runs(`SELECT `+runColumns+` FROM run WHERE ws = ? ORDER BY created_at DESC, run_id DESC LIMIT ?`, tx.ws, limit)
}

// Busy lists the runs that were cut off while they were running.
func (tx *Tx) Busy() ([]host.RunID, error) {
	return tx.runIDs(`SELECT run_id FROM run WHERE ws = ? AND state = 'running' ORDER BY created_at, run_id`, tx.ws)
}

// Cancel marks a run that has not ended: it is to end before anything else is done for it.
func (tx *Tx) Cancel(id host.RunID, why string) error {
	return tx.change(`UPDATE run SET cancel = ? WHERE ws = ? AND run_id = ? AND state IN ('queued','running','waiting')`, why, tx.ws, id)
}

// Cancelled lists the runs that are marked and have not ended.
func (tx *Tx) Cancelled() ([]Run, error) {
	return tx.runs(`SELECT `+runColumns+` FROM run WHERE ws = ? AND state IN ('queued','running','waiting') AND cancel <> '' ORDER BY created_at, run_id`, tx.ws)
}

// CancelMark is why a run is to end, empty if it is not, or if there is none.
func (tx *Tx) CancelMark(id host.RunID) (why string, err error) {
	err = tx.row(`SELECT COALESCE(MAX(cancel), '') FROM run WHERE ws = ? AND run_id = ?`, tx.ws, id).Scan(&why)
	return why, err
}

// MakeDue lets every run that waits for something be looked at again.
func (tx *Tx) MakeDue(kind host.WaitKind, now time.Time) error {
	return tx.exec(`UPDATE run SET wake_at = ? WHERE ws = ? AND state = 'waiting' AND wait_kind = ?`, now.UnixMilli(), tx.ws, kind)
}

// Pins lists what the runs that have not ended need of a host.
func (tx *Tx) Pins() (list []host.Pins, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		p, module := host.Pins{}, []byte(nil)
		if err := rows.Scan(&p.Run, &p.Skill, &p.State, &p.Wait, &p.Engine, &p.ABI, &p.Record, &module); err != nil {
			return err
		}
		p.Module = fmt.Sprintf("%x", module)
		list = append(list, p)
		return nil
	}, `SELECT r.run_id, r.skill, r.state, r.wait_kind, r.engine, r.abi_version,
			COALESCE((SELECT MAX(j.rec_ver) FROM journal j WHERE j.ws = r.ws AND j.run_id = r.run_id), 0), r.module_sha256
		FROM run r WHERE r.ws = ? AND r.state IN ('queued','running','waiting') ORDER BY r.created_at, r.run_id`, tx.ws)
	return list, err
}

// Open lists the runs that a run has called and that have not ended: one at most,
// since it waits for each.
func (tx *Tx) Open(parent host.RunID) ([]host.RunID, error) {
	return tx.runIDs(openBelow, tx.ws, parent)
}

// Tree lists the runs of a root, callers before those that they called.
func (tx *Tx) Tree(root host.RunID) ([]Run, error) {
	return tx.runs(treeOf, tx.ws, root)
}

// Kin is how large a tree of runs is.
type Kin struct {
	Runs     int // of the root, itself included
	Calls    int // host calls of all but the root
	Children int // runs that one of them has called
}

// Kin counts the runs of a root and the children of one of them.
func (tx *Tx) Kin(root, parent host.RunID) (k Kin, err error) {
	err = tx.row(`SELECT COUNT(*), CAST(COALESCE(SUM(CASE WHEN run_id <> root_run THEN calls ELSE 0 END), 0) AS BIGINT), COUNT(CASE WHEN parent_run = ? THEN 1 END) FROM run WHERE ws = ? AND root_run = ?`,
		parent, tx.ws, root).Scan(&k.Runs, &k.Calls, &k.Children)
	return k, absent(err)
}

// Acted reports whether a run, or one below it, used an approval: then something may
// have been done.
func (tx *Tx) Acted(id host.RunID) (bool, error) {
	var n int
	err := tx.row(`WITH RECURSIVE below (id) AS (
			SELECT run_id FROM run WHERE ws = ? AND run_id = ? UNION ALL SELECT r.run_id FROM run r JOIN below ON r.parent_run = below.id WHERE r.ws = ?)
		SELECT COUNT(*) FROM approval a JOIN below ON a.run_id = below.id WHERE a.ws = ? AND a.state = 'used'`, tx.ws, id, tx.ws, tx.ws).Scan(&n)
	return n > 0, absent(err)
}

// Waiting lists the runs that wait for something.
func (tx *Tx) Waiting(kind host.WaitKind) ([]host.RunID, error) {
	return tx.runIDs(`SELECT run_id FROM run WHERE ws = ? AND state = 'waiting' AND wait_kind = ? ORDER BY created_at, run_id`, tx.ws, kind)
}

// Due lists at most limit runs that can go on, the oldest first: they are queued,
// their time has come, what they asked a person is not pending any more, or the run
// that they called has ended.
func (tx *Tx) Due(now time.Time, limit int) ([]host.RunID, error) {
	return tx.runIDs(due, tx.ws, tx.ws, now.UnixMilli(), tx.ws, tx.ws, limit)
}

func (tx *Tx) runIDs(query string, args ...any) (list []host.RunID, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		var id host.RunID
		if err := rows.Scan(&id); err != nil {
			return err
		}
		list = append(list, id)
		return nil
	}, query, args...)
	return list, err
}

// Costs lists what the last ended runs of a module cost, newest first.
func (tx *Tx) Costs(module abi.Digest, limit int) (costs []abi.MicroUSD, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		var c abi.MicroUSD
		if err := rows.Scan(&c); err != nil {
			return err
		}
		costs = append(costs, c)
		return nil
	}, costsOf, tx.ws, module[:], limit)
	return costs, err
}

// What is asked again and again goes by an index that has the order as well: without
// statistics SQLite would else walk through all runs, in the order that is asked for.
const (
	openBelow = `SELECT run_id FROM run WHERE ws = ? AND parent_run = ? AND ended_at = 0 ORDER BY created_at, run_id`
	treeOf    = `SELECT ` + runColumns + ` FROM run WHERE ws = ? AND root_run = ? ORDER BY created_at, run_id`
	due       = `SELECT run_id FROM (
			SELECT run_id, created_at FROM run WHERE ws = ? AND state = 'queued'
		UNION ALL
			SELECT run_id, created_at FROM run WHERE ws = ? AND state = 'waiting' AND wait_kind <> 'approval' AND wake_at > 0 AND wake_at <= ?
		UNION ALL
			SELECT run_id, created_at FROM run WHERE ws = ? AND state = 'waiting' AND wait_kind = 'approval' AND NOT EXISTS (
				SELECT 1 FROM approval a WHERE a.ws = run.ws AND a.run_id = run.run_id AND a.state = 'pending')
		UNION ALL
			SELECT run_id, created_at FROM run WHERE ws = ? AND state = 'waiting' AND wait_kind = 'skill' AND NOT EXISTS (
				SELECT 1 FROM run c WHERE c.ws = run.ws AND c.parent_run = run.run_id AND c.ended_at = 0)
		) d GROUP BY run_id, created_at ORDER BY created_at, run_id LIMIT ?`
)

// costsOf is asked at every start, within its transaction: it looks at the runs that it
// lists, and at no other.
const costsOf = `SELECT COALESCE(t.settled_micro, 0) FROM run r LEFT JOIN spend_total t ON t.ws = r.ws AND t.scope = 'run:' || r.run_id
	WHERE r.ws = ? AND r.module_sha256 = ? AND r.state = 'succeeded' ORDER BY r.created_at DESC LIMIT ?`

func (tx *Tx) runs(query string, args ...any) (list []Run, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		r, err := tx.scanRun(rows.Scan)
		list = append(list, r)
		return err
	}, query, args...)
	for i := range list {
		if err == nil {
			err = tx.complete(&list[i])
		}
	}
	return list, err
}

// SetState moves a run that has not ended. The move is refused (host.ErrConflict)
// when the run is not in one of the states from.
func (tx *Tx) SetState(id host.RunID, to host.RunState, wait host.WaitKind, wake, now time.Time, from ...host.RunState) error {
	query, args := `UPDATE run SET state = ?, wait_kind = ?, wake_at = ?,
		started_at = CASE WHEN ? = 'running' AND started_at = 0 THEN ? ELSE started_at END
		WHERE ws = ? AND run_id = ? AND state IN (`, []any{to, wait, milli(wake), to, now.UnixMilli(), tx.ws, id}
	for i, f := range from {
		if i > 0 {
			query += ","
		}
		query += "?"
		args = append(args, f)
	}
	return tx.change(query+")", args...)
}

// End is how a run ends.
type End struct {
	State               host.RunState
	Failure, Receipt    string
	Leaf                int64
	Result, ResultLabel []byte // sealed, or nil
	At                  time.Time
}

// EndRun moves a run to its final state.
func (tx *Tx) EndRun(id host.RunID, e End) error {
	return tx.change(`UPDATE run SET state = ?, wait_kind = '', wake_at = 0, failure = ?, receipt = ?, receipt_leaf = ?, result_enc = ?, result_label_enc = ?, ended_at = ?
		WHERE ws = ? AND run_id = ? AND state IN ('queued','running','waiting')`,
		e.State, e.Failure, e.Receipt, e.Leaf, e.Result, e.ResultLabel, e.At.UnixMilli(), tx.ws, id)
}

// Record is a row of the journal.
type Record struct {
	Seq     int64
	Call    uint32
	Kind    string
	Version int
	Time    time.Time
	Body    []byte // sealed
	Label   []byte // sealed
	Chain   abi.Digest
	// Blob names the file of a body over MaxInline (see Ref); empty: it is in the row.
	Blob string
	// Lost says why the file could not be read; Body is nil then.
	Lost string
	// BodySum and LabelSum are the SHA-256 of what an erased record held; zero for one
	// that holds it.
	BodySum, LabelSum abi.Digest
}

// Erased reports whether the record's content is gone for good.
func (r *Record) Erased() bool { return r.BodySum != abi.Digest{} }

// Append adds records to a run's journal. first must be the run's next sequence
// number, so that two writers of one run cannot both succeed.
func (tx *Tx) Append(id host.RunID, first int64, calls uint32, recs []Record) error {
	if len(recs) == 0 {
		return nil
	}
	size := 0
	for i := range recs { // the files first: no row may refer to one that a crash can take
		if r := &recs[i]; r.Blob != "" {
			if err := tx.blobs.put(id, r.Blob, r.Body); err != nil {
				return err
			}
		}
	}
	err := tx.insert(`INSERT INTO journal (ws, run_id, seq, call_no, kind, rec_ver, epoch, ts, body_enc, label_enc, chain_sha256, blob_ref) VALUES `, len(recs), func(i int) []any {
		r := &recs[i]
		size += len(r.Body)
		body := r.Body
		if r.Blob != "" {
			body = []byte{}
		}
		return []any{tx.ws, id, r.Seq, r.Call, r.Kind, r.Version, tx.epoch, r.Time.UnixNano(), body, r.Label, r.Chain[:], r.Blob}
	})
	if err != nil {
		return fmt.Errorf("store: journal: %w", err)
	}
	last := recs[len(recs)-1]
	// A run that has ended writes nothing any more: it may have been ended with its
	// caller while it had a worker.
	return tx.change(`UPDATE run SET next_seq = ?, journal_bytes = journal_bytes + ?, chain_sha256 = ?, calls = CASE WHEN calls < ? THEN ? ELSE calls END WHERE ws = ? AND run_id = ? AND next_seq = ? AND ended_at = 0`,
		last.Seq+1, size, last.Chain[:], calls, calls, tx.ws, id, first)
}

// Records returns a run's journal in order, all of its segments.
func (tx *Tx) Records(id host.RunID) ([]Record, error) {
	return tx.records(id, `WHERE ws = ? AND run_id = ? ORDER BY seq`, tx.ws, id)
}

// Segment returns the records of a run's current segment: from the last one of the kind
// CONTINUE on, or all.
func (tx *Tx) Segment(id host.RunID) ([]Record, error) {
	return tx.records(id, ofSegment, tx.ws, id, tx.ws, id)
}

// EachOfSegment calls take with the same records in order. What a record holds is
// overwritten when take returns.
func (tx *Tx) EachOfSegment(id host.RunID, take func(*Record) error) error {
	return tx.eachRecord(id, take, ofSegment, tx.ws, id, tx.ws, id)
}

const ofRange = `WHERE ws = ? AND run_id = ? AND seq >= ? AND seq < ? ORDER BY seq`

const ofSegment = `WHERE ws = ? AND run_id = ? AND seq >=
	COALESCE((SELECT MAX(seq) FROM journal WHERE ws = ? AND run_id = ? AND kind = 'CONTINUE'), 0) ORDER BY seq`

// RecordsFrom returns the records of a run with sequence numbers from first on and
// below end.
func (tx *Tx) RecordsFrom(id host.RunID, first, end int64) ([]Record, error) {
	return tx.records(id, ofRange, tx.ws, id, first, end)
}

// EachFrom calls take with the same records in order. What a record holds is overwritten
// when take returns.
func (tx *Tx) EachFrom(id host.RunID, first, end int64, take func(*Record) error) error {
	return tx.eachRecord(id, take, ofRange, tx.ws, id, first, end)
}

// Mark is where a segment of a run begins.
type Mark struct {
	Seq  int64
	Call uint32 // the last one before it
	Time time.Time
}

// Marks lists where the segments after the first begin.
func (tx *Tx) Marks(id host.RunID) (list []Mark, err error) {
	err = tx.each(func(rows *sql.Rows) error {
		var m Mark
		var ts int64
		if err := rows.Scan(&m.Seq, &m.Call, &ts); err != nil {
			return err
		}
		m.Time = time.Unix(0, ts).UTC()
		list = append(list, m)
		return nil
	}, `SELECT seq, call_no, ts FROM journal WHERE ws = ? AND run_id = ? AND kind = 'CONTINUE' ORDER BY seq`, tx.ws, id)
	return list, err
}

func (tx *Tx) records(id host.RunID, where string, args ...any) (list []Record, err error) {
	err = tx.eachRecord(id, func(r *Record) error {
		kept := *r
		kept.Label = bytes.Clone(r.Label)
		if r.Blob == "" { // a file's is its own
			kept.Body = bytes.Clone(r.Body)
		}
		list = append(list, kept)
		return nil
	}, where, args...)
	return list, err
}

func (tx *Tx) eachRecord(id host.RunID, take func(*Record) error, where string, args ...any) error {
	var stopped error // by take, in its own words
	var r Record      // one for all: there are tens of thousands
	var ts int64
	var kind, sealed, lab, chain, bodySum, labelSum sql.RawBytes
	err := tx.each(func(rows *sql.Rows) error {
		r = Record{}
		if err := rows.Scan(&r.Seq, &r.Call, &kind, &r.Version, &ts, &sealed, &lab, &chain, &r.Blob, &bodySum, &labelSum); err != nil {
			return err
		}
		r.Kind, r.Time, r.Body, r.Label = string(kind), time.Unix(0, ts).UTC(), sealed, lab
		copy(r.Chain[:], chain)
		copy(r.BodySum[:], bodySum)
		copy(r.LabelSum[:], labelSum)
		if r.Blob != "" && !r.Erased() {
			var err error
			if r.Body, err = tx.blobs.get(id, r.Blob); err != nil {
				r.Body, r.Lost = nil, lost(err)
			}
		}
		stopped = take(&r)
		return stopped
	}, `SELECT seq, call_no, kind, rec_ver, ts, body_enc, label_enc, chain_sha256, blob_ref, body_sha256, label_sha256 FROM journal `+where, args...)
	if stopped != nil {
		return stopped
	}
	return err
}

// lost says why a file cannot be read, without its path.
func lost(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "its file is missing"
	}
	return "its file cannot be read"
}

// blobRefs are the files that the records of a run refer to.
func (tx *Tx) blobRefs(id host.RunID) (map[string]bool, error) {
	refs := map[string]bool{}
	err := tx.each(func(rows *sql.Rows) error {
		var ref string
		err := rows.Scan(&ref)
		refs[ref] = true
		return err
	}, `SELECT blob_ref FROM journal WHERE ws = ? AND run_id = ? AND blob_ref <> ''`, tx.ws, id)
	return refs, err
}
