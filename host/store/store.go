// Package store keeps a workspace's state in one database: SQLite, or PostgreSQL.
//
// Laws, each with a test over both:
//
//  1. One writer: a second daemon on the same database is refused and told who
//     holds it; every writing transaction tests the lease's epoch.
//  2. What Write returned nil for survives a crash (WAL, synchronous=FULL;
//     synchronous_commit=on).
//  3. A failed commit is final: the store writes nothing from then on, since nobody
//     here may know what reached the disk.
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

	writer *sql.DB
	conn   *sql.Conn // the only one that writes; used by the writer goroutine alone
	stmts  map[string]*sql.Stmt
	wire   wire    // of PostgreSQL
	reader *sql.DB // nil: the database allows one connection, so reads take turns with writes
	lease  *lease  // nil where the kernel's lock is the lease

	jobs  chan job
	reads chan job
	quit  func()          // tells the writer goroutine to end, once
	stop  <-chan struct{} // closed by quit
	done  chan struct{}   // closed when the writer goroutine has ended
	ended chan struct{}   // closed when no write can succeed any more

	life context.Context // of the statements of writes; cancelled when the store fails
	kill context.CancelFunc

	mu     sync.Mutex
	failed error
	freed  sync.Once
	after  []func() error // what release gives back, last first
}

type job struct {
	fn  func(*Tx) error
	res chan error
}

func newStore(ws host.Workspace, d *dialect) *Store {
	stop := make(chan struct{})
	s := &Store{
		ws: ws, d: d, stmts: map[string]*sql.Stmt{}, jobs: make(chan job), reads: make(chan job),
		quit: sync.OnceFunc(func() { close(stop) }), stop: stop, done: make(chan struct{}), ended: make(chan struct{}),
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
// returned as it is.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) error {
	return s.submit(ctx, s.jobs, fn)
}

func (s *Store) submit(ctx context.Context, to chan<- job, fn func(*Tx) error) error {
	j := job{fn, make(chan error, 1)}
	select {
	case <-s.ended:
		return s.reason()
	default:
	}
	select {
	case to <- j:
		return <-j.res
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return s.reason()
	}
}

// Read runs fn in a read transaction: one state, nothing half-done. Inside fn neither
// Read nor Write may be called.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
	if s.reader == nil {
		return s.submit(ctx, s.reads, fn)
	}
	tx, err := s.reader.BeginTx(ctx, &s.d.read)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	return fn(&Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, q: plainQuerier{tx, s.d}, leaves: -1})
}

// write is the writer goroutine.
func (s *Store) write() {
	defer close(s.done)
	for {
		var batch []job
		select {
		case j := <-s.jobs:
			batch = s.drain(j)
		case j := <-s.reads:
			j.res <- s.readHere(j.fn)
			continue
		case <-s.lease.due():
		case <-s.stop:
			s.fail(nil)
			return
		}
		results, err := s.commit(batch)
		if err != nil {
			s.fail(err)
			err = errors.Join(err, s.reason()) // the first reason is the one that explains it
		}
		for i, j := range batch {
			if err != nil {
				j.res <- err
			} else {
				j.res <- results[i]
			}
		}
		if err != nil {
			return
		}
	}
}

// readHere runs a read on the writer's connection, between two commits.
func (s *Store) readHere(fn func(*Tx) error) error {
	tx := &Tx{ctx: s.life, ws: s.ws, epoch: s.epoch, q: connQuerier{s}, leaves: -1}
	if err := tx.exec("PRAGMA query_only = 1"); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := tx.exec("BEGIN"); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	err := run(fn, tx)
	if end := errors.Join(tx.exec("ROLLBACK"), tx.exec("PRAGMA query_only = 0")); end != nil {
		s.fail(fmt.Errorf("store: end of a read: %w", end))
		return s.reason()
	}
	return err
}

// fail makes the first reason final; nil is Close.
func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
	default:
		s.failed = err
		close(s.ended)
		if err != nil {
			s.kill()
		}
	}
}

// drain adds the writes that are waiting already: whoever comes while a commit
// is under way shares the next one.
func (s *Store) drain(first job) []job {
	batch := []job{first}
	for len(batch) < maxBatch {
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// commit runs a batch in one transaction, fenced by the lease, which it renews when
// that is due. A second error is final for the store.
func (s *Store) commit(batch []job) (results []error, final error) {
	ctx := s.life // a cancelled caller must not tear a shared commit
	tx := &Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, q: s.d.writing(s), leaves: -1}
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
			return nil, errors.Join(fmt.Errorf("store: savepoint: %w", err), s.d.control(s, "ROLLBACK"))
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
// in the transaction: then that is its savepoint.
func (s *Store) one(tx *Tx, fn func(*Tx) error, alone bool) (result, final error) {
	if alone {
		return s.run(fn, tx), nil
	}
	if err := s.d.control(s, "SAVEPOINT one"); err != nil {
		return nil, err
	}
	result = s.run(fn, tx)
	end := "RELEASE SAVEPOINT one"
	if result != nil {
		end = "ROLLBACK TO SAVEPOINT one"
		tx.leaves = -1 // its leaves are gone
	}
	return result, s.d.control(s, end)
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

func (s *Store) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return fmt.Errorf("%w: %w", ErrClosed, s.failed)
	}
	return ErrClosed
}

// Failed is closed when the store has ended, by Close, by a failed commit or because
// its lease is lost. Reason says which.
func (s *Store) Failed() <-chan struct{} { return s.ended }

// Reason is why nothing can be written any more: ErrClosed, joined with the cause.
// Nil before Failed is closed.
func (s *Store) Reason() error {
	select {
	case <-s.ended:
		return s.reason()
	default:
		return nil
	}
}

// Close waits for writes in progress and gives the workspace up.
func (s *Store) Close() error {
	s.quit()
	<-s.done
	var err error
	s.freed.Do(func() { err = s.release() })
	return err
}

func (s *Store) release() error {
	var errs []error
	if s.epoch > 0 && s.reason() == ErrClosed { //nolint:errorlint // without a cause
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
	if s.failed != nil {
		return nil // the connections are in the state that the failure left them in
	}
	return errors.Join(errs...)
}
