// Package store keeps a workspace's state in one database: SQLite, or PostgreSQL.
//
// Laws, each with a test over both:
//
//  1. One writer: a second daemon on the same database is refused and told who
//     holds it; every writing transaction tests the lease's epoch.
//  2. What Write returned nil for survives a crash (WAL, synchronous=FULL;
//     synchronous_commit=on).
//  3. A failed commit is final, and so is a body's file that cannot be written: the store
//     writes nothing from then on, since nobody here may know what reached the disk.
//  4. In PostgreSQL the daemon's role reaches the rows of one workspace, whatever it
//     sends; a role that could reach more is refused.
//
// It knows SQL and rows. It must not know policy, plain text of sealed columns,
// or what a row makes anybody do.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/getmonroe/monroe/host"
)

// maxBatch bounds how many Write calls share one commit.
const maxBatch = 256

// ErrClosed is returned after Close or after a failed commit.
var ErrClosed = errors.New("store: closed")

// ErrFenced is returned when another daemon has taken the workspace over.
var ErrFenced = errors.New("store: another daemon holds this workspace")

// Store is one workspace's database. It is safe for concurrent use.
type Store struct {
	ws    host.Workspace
	epoch int64
	d     *dialect
	place string
	blobs blobs // of bodies that are too large for a row

	writer *sql.DB
	conn   *sql.Conn // the only one that writes; used by whoever has the turn
	stmts  map[string]*sql.Stmt
	tail   tail
	wire   wire    // of PostgreSQL
	reader *sql.DB // nil: the database allows one connection, so reads take the turn too
	lease  *lease  // nil where the kernel's lock is the lease

	turn chan struct{} // holds one: whoever put it there writes, for all that are queued
	done chan struct{} // closed by end

	life context.Context // of the statements of writes; cancelled when the store fails
	kill context.CancelFunc

	mu     sync.Mutex
	queue  []*job
	failed error // set before done is closed
	freed  sync.Once
	after  []func() error // what release gives back, last first
}

type job struct {
	fn  func(*Tx) error
	res chan error
}

func newStore(ws host.Workspace, d *dialect, place string) *Store {
	s := &Store{
		ws: ws, d: d, place: place, stmts: map[string]*sql.Stmt{}, tail: tail{-1, map[int64][]byte{}},
		turn: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.life, s.kill = context.WithCancel(context.Background())
	return s
}

// Epoch is the lease's number; it grows with every start of a daemon.
func (s *Store) Epoch() int64 { return s.epoch }

// Place says for people where the state is kept, and how.
func (s *Store) Place() string { return s.place }

// Write runs fn in a transaction that is durable when Write returns nil. fn may run
// in one commit together with others', each in a savepoint of its own; it must not
// call Write and must not keep tx. An error of fn undoes what fn did, and is
// returned as it is. A context that is done before the transaction begins withdraws fn.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) error {
	j := &job{fn: fn, res: make(chan error, 1)}
	s.mu.Lock()
	s.queue = append(s.queue, j)
	s.mu.Unlock()
	for {
		select {
		case err := <-j.res:
			return err
		case s.turn <- struct{}{}:
			// Writing here, and not in a goroutine that writes for all, spares a lone
			// writer two changes of threads.
			s.lead()
			<-s.turn
		case <-ctx.Done():
			if s.withdraw(j) {
				return ctx.Err()
			}
			return <-j.res // somebody is at it
		}
	}
}

// withdraw takes a job back that nobody has begun with.
func (s *Store) withdraw(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, j)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	return i >= 0
}

// lead writes what is queued: whoever comes while a commit is under way shares the
// next one. It is called by whoever has the turn, and only then is s.conn used.
func (s *Store) lead() {
	batch, results, err := s.take(), []error(nil), s.Reason()
	if len(batch) == 0 {
		return
	}
	if err == nil {
		if results, err = s.commit(batch); err != nil {
			s.end(err)
			err = s.Reason()
		}
	}
	for i, j := range batch {
		if err != nil {
			j.res <- err
		} else {
			j.res <- results[i]
		}
	}
}

// take empties the queue, but for what passes one batch.
func (s *Store) take() []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.queue), maxBatch)
	batch := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	return batch
}

// Read runs fn in a read transaction: one state, nothing half-done. Inside fn neither
// Read nor Write may be called.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
	if s.reader == nil {
		return s.readInTurn(ctx, fn)
	}
	tx, err := s.reader.BeginTx(ctx, &s.d.read)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	return fn(&Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, blobs: s.blobs, q: plainQuerier{tx, s.d}})
}

// readInTurn reads on the writer's connection, between two commits.
func (s *Store) readInTurn(ctx context.Context, fn func(*Tx) error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	if err := s.Reason(); err != nil {
		return err
	}
	tx := &Tx{ctx: s.life, ws: s.ws, epoch: s.epoch, blobs: s.blobs, q: connQuerier{s}}
	if err := errors.Join(tx.exec("PRAGMA query_only = 1"), tx.exec("BEGIN")); err != nil {
		s.end(fmt.Errorf("store: begin of a read: %w", err))
		return s.Reason()
	}
	err := run(fn, tx)
	if end := errors.Join(tx.exec("ROLLBACK"), tx.exec("PRAGMA query_only = 0")); end != nil {
		s.end(fmt.Errorf("store: end of a read: %w", end))
		return s.Reason()
	}
	return err
}

// keep renews the lease while nobody writes, until the store ends.
func (s *Store) keep() {
	for {
		select {
		case <-s.lease.tick.C:
		case <-s.done:
			return
		}
		select {
		case s.turn <- struct{}{}:
		case <-s.done:
			return
		}
		if s.lease.isDue() && s.Reason() == nil {
			if _, err := s.commit(nil); err != nil {
				s.end(err)
			}
		}
		<-s.turn
	}
}

// commit runs a batch in one transaction, fenced by the lease, which it renews when
// that is due. A second error is final for the store.
func (s *Store) commit(batch []*job) (results []error, final error) {
	ctx := s.life // a cancelled caller must not tear a shared commit
	tx := &Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, blobs: s.blobs, q: s.d.writing(s), tail: &s.tail}
	if err := s.d.control(s, s.d.begin); err != nil {
		return nil, fmt.Errorf("store: begin: %w", err)
	}
	renewed, err := s.fence(tx)
	if err != nil {
		return nil, errors.Join(err, s.d.control(s, "ROLLBACK"))
	}
	results = make([]error, len(batch))
	wrote := !renewed.IsZero()
	for i, j := range batch {
		var err error
		if results[i], err = s.one(tx, j.fn, !wrote && len(batch) == 1); err != nil {
			return nil, errors.Join(err, s.d.control(s, "ROLLBACK"))
		}
		wrote = wrote || results[i] == nil
	}
	end := "COMMIT"
	if !wrote {
		end = "ROLLBACK"
	}
	if err := s.d.control(s, end); err != nil {
		return nil, fmt.Errorf("store: commit: %w", err)
	}
	if !renewed.IsZero() {
		s.lease.extend(renewed)
	}
	return results, nil
}

// fence makes sure that the lease is this store's, for the whole transaction. If it
// renewed the lease it returns when it began to.
func (s *Store) fence(tx *Tx) (renewed time.Time, err error) {
	var epoch int64
	if s.lease.isDue() {
		renewed = time.Now()
		err = tx.row(s.d.renew, s.lease.ttl.Milliseconds(), s.ws, s.epoch).Scan(&epoch)
	} else {
		err = tx.row(s.d.fence, s.ws).Scan(&epoch)
	}
	if errors.Is(err, sql.ErrNoRows) || err == nil && epoch != s.epoch {
		return renewed, ErrFenced
	}
	if err != nil {
		return renewed, fmt.Errorf("store: lease: %w", err)
	}
	return renewed, nil
}

// one runs a function of a batch. In a savepoint of its own, unless nothing else is
// in the transaction: then that is its savepoint. A final error is of the whole batch.
func (s *Store) one(tx *Tx, fn func(*Tx) error, alone bool) (result, final error) {
	leaves := tx.tail.count
	if !alone {
		if err := s.d.control(s, "SAVEPOINT one"); err != nil {
			return nil, fmt.Errorf("store: savepoint: %w", err)
		}
	}
	result = s.run(fn, tx)
	if file := (unwritten{}); errors.As(result, &file) {
		return nil, result
	}
	end := "RELEASE SAVEPOINT one"
	if result != nil {
		tx.tail.forget(leaves)
		end = "ROLLBACK TO SAVEPOINT one"
	}
	if alone {
		return result, nil
	}
	if err := s.d.control(s, end); err != nil {
		return nil, fmt.Errorf("store: savepoint: %w", err)
	}
	return result, nil
}

// run is run, with what the function left under way: one that passes over a failed
// statement has failed, since PostgreSQL refused everything after it.
func (s *Store) run(fn func(*Tx) error, tx *Tx) error {
	err := run(fn, tx)
	if err == nil {
		err = s.d.settle(s)
	}
	return err
}

// run turns a panic of one caller's function into that caller's error, so that it
// cannot take the writer down with it.
func run(fn func(*Tx) error, tx *Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("store: panic in a transaction: %v", p)
		}
	}()
	return fn(tx)
}

// end makes every later Write fail: with the first failure, or because of Close.
func (s *Store) end(failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
	default:
		s.failed = failure
		close(s.done)
		if failure != nil {
			s.kill()
		}
	}
}

// Reason is why nothing can be written any more: ErrClosed, joined with the cause.
// Nil before Failed is closed.
func (s *Store) Reason() error {
	select {
	case <-s.done:
	default:
		return nil
	}
	if s.failed != nil {
		return fmt.Errorf("%w: %w", ErrClosed, s.failed)
	}
	return ErrClosed
}

// Failed is closed when the store has ended, by Close, by a failed commit or because
// its lease is lost. Reason says which.
func (s *Store) Failed() <-chan struct{} { return s.done }

// Close waits for the writes in progress and gives the workspace up. Those that wait
// behind them are refused.
func (s *Store) Close() error {
	s.end(nil)
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	var err error
	s.freed.Do(func() { err = s.release() })
	return err
}

func (s *Store) release() error {
	var errs []error
	s.mu.Lock()
	failed := s.failed != nil
	s.mu.Unlock()
	if s.epoch > 0 && !failed {
		errs = append(errs, s.d.giveUp(s))
	}
	s.lease.stop()
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	for _, db := range []*sql.DB{s.reader, s.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	for i := len(s.after) - 1; i >= 0; i-- {
		errs = append(errs, s.after[i]())
	}
	s.kill()
	if failed {
		return nil // the connections are in the state that the failure left them in
	}
	return errors.Join(errs...)
}
