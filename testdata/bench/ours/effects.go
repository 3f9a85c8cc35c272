package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver, for the bare commit

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
)

// effects is one effect, from its frame to the frame of its answer, by turns with
// bare commits, since a disk's speed drifts.
func (b *bench) effects(ctx context.Context, r *rig) (err error) {
	guest := asks("effects", fmt.Sprintf(`,"ops":["send"],"operations":[{"operation":%q,"effect":"metered","resource":"bench:**"}]`, meter), request{effect, effectsARound})
	skill, err := r.push(ctx, guest, true)
	if err != nil {
		return err
	}
	bare, err := openBare(ctx, filepath.Join(b.dir, "bare.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.Close()) }()
	rows, err := openRows(ctx, filepath.Join(b.dir, "rows.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	// Until its write-ahead log was checkpointed once, each commit also makes the file
	// longer, which costs more than the commit.
	if _, err := bare.pairs(ctx, untilCheckpoint); err != nil {
		return err
	}
	if _, err := rows.pairs(ctx, effectsUntilCheckpoint); err != nil {
		return err
	}
	for range effectsUntilCheckpoint / effectsARound {
		if _, _, err := r.play(ctx, skill, "{}", host.StateSucceeded); err != nil {
			return err
		}
	}
	var took, pairs, written []time.Duration
	for range effectRounds {
		_, l, err := r.play(ctx, skill, "{}", host.StateSucceeded)
		if err != nil {
			return err
		}
		for i := range l.calls {
			took = append(took, l.answers[i].Sub(l.calls[i]))
		}
		more, err := bare.pairs(ctx, effectsARound)
		if err != nil {
			return err
		}
		pairs = append(pairs, more...)
		if more, err = rows.pairs(ctx, effectsARound); err != nil {
			return err
		}
		written = append(written, more...)
	}
	p := peer{"two bare SQLite commits of 500 bytes, by turns", at(pairs, 50, time.Microsecond)}
	disk, err := b.of("bare_fdatasync", "two bare fdatasyncs of 500 bytes")
	disk.p50 *= 2
	return errors.Join(
		err,
		b.report("effect_journaled_disk", time.Microsecond, took, disk, 0, true),
		b.report("effect_journaled", time.Microsecond, took, p, 1.2, true),
		b.report("effect_journaled_rows", time.Microsecond, written, p, 0, true),
	)
}

// bareDB is what one durable decision costs at the least.
type bareDB struct {
	*sql.DB
	insert *sql.Stmt
}

func openBare(ctx context.Context, path string) (*bareDB, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "CREATE TABLE row (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)"); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	insert, err := db.PrepareContext(ctx, "INSERT INTO row (body) VALUES (?)")
	return &bareDB{db, insert}, err
}

func (d *bareDB) pairs(ctx context.Context, n int) (took []time.Duration, err error) {
	body := make([]byte, 500)
	for range n {
		begin := time.Now()
		for range 2 {
			if _, err := d.insert.ExecContext(ctx, body); err != nil {
				return nil, err
			}
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// rowsOf writes what the two transactions of an effect write, and nothing else: nothing
// is decided, sealed or hashed for it.
type rowsOf struct {
	*store.Store
	run    host.Run
	seq    int64
	leaves int64
	month  string
}

// Sizes of what an effect of the bench leaves behind, in bytes.
const (
	callBytes, attemptBytes, resultBytes = 597, 137, 85
	labelBytes, leafBytes, hashBytes     = 76, 634, 64
)

func openRows(ctx context.Context, path string) (*rowsOf, error) {
	now := time.Now()
	s, err := store.Open(ctx, path, "bench", "bench", now)
	if err != nil {
		return nil, err
	}
	who := host.Principal{ID: "prin_bench", Name: "bench", Email: "bench@example.com", Role: host.RoleOwner}
	run := host.Run{ID: "run_bench", Root: "run_bench", Workspace: "bench", Skill: "bench", State: host.StateRunning, OnBehalfOf: who, Budget: 1 << 40, CreatedAt: now}
	err = s.Write(ctx, func(tx *store.Tx) error {
		return errors.Join(
			tx.PutPrincipal(who, now),
			tx.InsertRun(store.Run{Run: run, Engine: "bench", ABI: abi.Version, Key: make([]byte, 250), Start: make([]byte, 400), StartLabel: make([]byte, labelBytes), NextSeq: 1, ReceiptLeaf: -1}),
		)
	})
	return &rowsOf{Store: s, run: run, seq: 1, month: now.UTC().Format("2006-01")}, err
}

func (r *rowsOf) pairs(ctx context.Context, n int) (took []time.Duration, err error) {
	for range n {
		begin, call := time.Now(), uint32(r.seq)
		err := r.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.SpendTotals(store.PeriodScope(r.month), store.RunScope(r.run.ID))
			return errors.Join(err, tx.Reserve(r.run.ID, r.run.Root, call, 1, r.month, 10), r.add(tx, call, callBytes, attemptBytes))
		})
		err = errors.Join(err, r.Write(ctx, func(tx *store.Tx) error {
			return errors.Join(tx.Settle(r.run.ID, call, 1, 7), r.add(tx, call, resultBytes))
		}))
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// add writes records of the call with one leaf.
func (r *rowsOf) add(tx *store.Tx, call uint32, sizes ...int) error {
	var recs []store.Record
	for i, size := range sizes {
		recs = append(recs, store.Record{Seq: r.seq + int64(i), Call: call, Kind: "CALL", Version: 1, Time: time.Now(), Body: make([]byte, size), Label: make([]byte, labelBytes)})
	}
	err := errors.Join(tx.Append(r.run.ID, r.seq, call, recs), tx.AppendLeaves(r.leaves, [][]byte{make([]byte, leafBytes)}, [][]byte{make([]byte, hashBytes)}))
	r.seq += int64(len(sizes))
	r.leaves++
	return err
}
