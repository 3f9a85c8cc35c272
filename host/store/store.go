// Package store keeps a workspace's state in one SQLite database.
//
// Laws, each with a test:
//
//  1. One writer: a second daemon on the same database is refused and told who
//     holds it; every writing transaction tests the lease's epoch.
//  2. What Write returned nil for survives a crash (WAL, synchronous=FULL).
//  3. A failed commit is final: the store answers nothing but errors from then on,
//     since SQLite may not know what reached the disk.
//
// It knows SQL and rows. It must not know policy, plain text of sealed columns,
// or what a row makes anybody do.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/getmonroe/monroe/host"
)

//go:embed migrations/*.sql
var migrations embed.FS

// minSQLite is the first version without the WAL-reset corruption (3.7.0 to
// 3.51.2 with two connections).
var minSQLite = [3]int{3, 51, 3}

// maxBatch bounds how many Write calls share one commit.
const maxBatch = 256

// ErrClosed is returned after Close or after a failed commit.
var ErrClosed = errors.New("store: closed")

// ErrFenced is returned when another daemon has taken the workspace over.
var ErrFenced = errors.New("store: another daemon holds this workspace")

// Store is one workspace's database. It is safe for concurrent use.
type Store struct {
	ws     host.Workspace
	epoch  int64
	lock   *os.File
	writer *sql.DB
	conn   *sql.Conn // the only one that writes; used by whoever has the turn
	stmts  map[string]*sql.Stmt
	tail   tail
	reader *sql.DB

	turn chan struct{} // holds one: whoever put it there writes, for all that are queued
	done chan struct{} // closed by end

	mu     sync.Mutex
	queue  []*job
	failed error // set before done is closed
	freed  sync.Once
}

type job struct {
	fn  func(*Tx) error
	res chan error
}

// Open opens or creates the database at path for one workspace and takes its
// lease. holder names this daemon to whoever tries next.
func Open(ctx context.Context, path string, ws host.Workspace, holder string, now time.Time) (_ *Store, err error) {
	if err := ws.Check(); err != nil {
		return nil, err
	}
	s := &Store{
		ws: ws, stmts: map[string]*sql.Stmt{}, tail: tail{-1, map[int64][]byte{}},
		turn: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if s.lock, err = takeLock(path+".lock", holder); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.release()
		}
	}()
	if err = private(path); err != nil {
		return nil, err
	}
	if s.writer, err = open(path, 1, ""); err != nil {
		return nil, err
	}
	if err := checkVersion(ctx, s.writer); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.writer); err != nil {
		return nil, err
	}
	if s.conn, err = s.writer.Conn(ctx); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if s.reader, err = open(path, 4, "&_pragma=query_only(1)"); err != nil {
		return nil, err
	}
	if err := s.takeLease(ctx, holder, now); err != nil {
		return nil, err
	}
	return s, nil
}

// private makes sure that only the owner can read the database. SQLite gives the
// files beside it the same mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

func open(path string, conns int, extra string) (*sql.DB, error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)&_pragma=secure_delete(1)&_pragma=trusted_schema(0)&_txlock=immediate" + extra
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	db.SetMaxOpenConns(conns)
	return db, nil
}

// takeLock takes an exclusive lock that the kernel drops with the process.
func takeLock(path, holder string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := lockFile(f); err != nil {
		other, _ := os.ReadFile(path)
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s (lock file %s)", ErrFenced, strings.TrimSpace(string(other)), filepath.Base(path))
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, holder)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("store: %w", err)
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s+"\n"), 0)
	return err
}

func checkVersion(ctx context.Context, db *sql.DB) error {
	var v string
	if err := db.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&v); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	var have [3]int
	for i, p := range strings.SplitN(v, ".", 3) {
		have[i], _ = strconv.Atoi(p)
	}
	for i := range have {
		if have[i] != minSQLite[i] {
			if have[i] > minSQLite[i] {
				return nil
			}
			return fmt.Errorf("store: SQLite %s can corrupt a WAL database, at least %d.%d.%d is needed", v, minSQLite[0], minSQLite[1], minSQLite[2])
		}
	}
	return nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		return fmt.Errorf("store: migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("store: migrations: %w", err)
	}
	return nil
}

func (s *Store) takeLease(ctx context.Context, holder string, now time.Time) error {
	err := s.conn.QueryRowContext(ctx, `INSERT INTO lease (ws, epoch, holder, taken_at) VALUES (?,1,?,?)
		ON CONFLICT (ws) DO UPDATE SET epoch = epoch + 1, holder = excluded.holder, taken_at = excluded.taken_at
		RETURNING epoch`, s.ws, holder, now.UnixMilli()).Scan(&s.epoch)
	if err != nil {
		return fmt.Errorf("store: lease: %w", err)
	}
	return nil
}

// Epoch is the lease's number; it grows with every start of a daemon.
func (s *Store) Epoch() int64 { return s.epoch }

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
	batch, results, err := s.take(), []error(nil), s.reason()
	if len(batch) == 0 {
		return
	}
	if err == nil {
		if results, err = s.commit(batch); err != nil {
			s.end(err)
			err = s.reason()
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

// Read runs fn in a read transaction: one state, nothing half-done.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
	tx, err := s.reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	return fn(&Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, q: plainQuerier{tx}})
}

// commit runs a batch in one transaction. A second error is final for the store.
func (s *Store) commit(batch []*job) (results []error, final error) {
	ctx := context.Background() // a cancelled caller must not tear a shared commit
	tx := &Tx{ctx: ctx, ws: s.ws, epoch: s.epoch, q: connQuerier{s}, tail: &s.tail}
	if err := tx.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, fmt.Errorf("store: begin: %w", err)
	}
	var epoch int64
	if err := tx.row(`SELECT epoch FROM lease WHERE ws = ?`, s.ws).Scan(&epoch); err != nil || epoch != s.epoch {
		return nil, errors.Join(ErrFenced, err, tx.exec("ROLLBACK"))
	}
	results = make([]error, len(batch))
	wrote := false
	for i, j := range batch {
		var err error
		if results[i], err = s.one(tx, j.fn, len(batch) == 1); err != nil {
			return nil, errors.Join(fmt.Errorf("store: savepoint: %w", err), tx.exec("ROLLBACK"))
		}
		wrote = wrote || results[i] == nil
	}
	end := "COMMIT"
	if !wrote {
		end = "ROLLBACK"
	}
	if err := tx.exec(end); err != nil {
		return nil, fmt.Errorf("store: commit: %w", err)
	}
	return results, nil
}

// one runs a function of a batch. In a savepoint of its own, unless it is alone:
// then the transaction is its savepoint.
func (s *Store) one(tx *Tx, fn func(*Tx) error, alone bool) (result, final error) {
	leaves := tx.tail.count
	if !alone {
		if err := tx.exec("SAVEPOINT one"); err != nil {
			return nil, err
		}
	}
	result = run(fn, tx)
	end := "RELEASE one"
	if result != nil {
		tx.tail.forget(leaves)
		end = "ROLLBACK TO one"
	}
	if alone {
		return result, nil
	}
	return result, tx.exec(end)
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
	}
}

// reason is why nothing can be written any more, or nil.
func (s *Store) reason() error {
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

// Failed is closed when the store has ended, by Close or by a failed commit.
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
	return errors.Join(append(errs, s.lock.Close())...)
}
