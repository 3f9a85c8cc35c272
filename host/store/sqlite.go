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
	"strconv"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/durable"
)

//go:embed migrations/*.sql migrations/postgres/*.sql
var migrations embed.FS

// minSQLite is the first version without the WAL-reset corruption (3.7.0 to
// 3.51.2 with two connections).
var minSQLite = [3]int{3, 51, 3}

var sqlite = &dialect{
	begin:   "BEGIN IMMEDIATE",
	fence:   `SELECT epoch FROM lease WHERE ws = ?`, // BEGIN IMMEDIATE keeps every other writer out
	read:    sql.TxOptions{ReadOnly: true},
	rewrite: func(q string) string { return q },
	control: func(s *Store, stmt string) error {
		return connQuerier{s}.exec(s.life, stmt)
	},
	writing: func(s *Store) querier { return connQuerier{s} },
	settle:  func(*Store) error { return nil },
	giveUp:  func(*Store) error { return nil }, // the kernel does
}

// Open opens or creates the SQLite database at path for one workspace and takes its
// lease. holder names this daemon to whoever tries next. On a network file system
// (OnNetwork) it uses one connection and a rollback journal.
func Open(ctx context.Context, path string, ws host.Workspace, holder string, now time.Time) (*Store, error) {
	network, err := OnNetwork(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return OpenOn(ctx, path, ws, holder, now, network)
}

// OpenOn is Open for who knows already what OnNetwork says of the place.
func OpenOn(ctx context.Context, path string, ws host.Workspace, holder string, now time.Time, network string) (_ *Store, err error) {
	if err := ws.Check(); err != nil {
		return nil, err
	}
	s := newStore(ws, sqlite, "SQLite")
	s.blobs = blobs(filepath.Join(filepath.Dir(path), "blobs"))
	// Nothing here waits for another machine. And for each statement of a context that
	// can end, the driver starts a goroutine: a sixth of the time of an effect.
	s.life = context.Background()
	lock, err := takeLock(path+".lock", holder)
	if err != nil {
		return nil, err
	}
	s.after = append(s.after, lock.Close)
	defer func() {
		if err != nil {
			_ = s.release()
		}
	}()
	if err = private(path); err != nil {
		return nil, err
	}
	mode := fmt.Sprintf("&_pragma=journal_mode(WAL)&_pragma=wal_autocheckpoint(%d)", checkpointPages)
	if network != "" {
		s.place = "SQLite on " + network + ": one connection and a rollback journal, so slow; the lock is as good as that file system's"
		// WAL shares memory between processes, which a network file system has not. The
		// exclusive mode comes first, so that no shared lock is ever given back.
		mode = "&_pragma=locking_mode(EXCLUSIVE)&_pragma=journal_mode(TRUNCATE)"
	}
	if s.writer, err = open(path, 1, mode); err != nil {
		return nil, err
	}
	if err = checkVersion(ctx, s.writer); err != nil {
		return nil, err
	}
	if err = migrate(ctx, s.writer); err != nil {
		return nil, err
	}
	if s.conn, err = s.writer.Conn(ctx); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if network == "" {
		if s.reader, err = open(path, 4, mode+"&_pragma=query_only(1)"); err != nil {
			return nil, err
		}
	}
	err = s.conn.QueryRowContext(ctx, `INSERT INTO lease (ws, epoch, holder, taken_at) VALUES (?,1,?,?)
		ON CONFLICT (ws) DO UPDATE SET epoch = epoch + 1, holder = excluded.holder, taken_at = excluded.taken_at
		RETURNING epoch`, ws, holder, now.UnixMilli()).Scan(&s.epoch)
	if err != nil {
		return nil, fmt.Errorf("store: lease: %w", err)
	}
	// The log that it is in has a name now. SQLite syncs that, and passes over it if it fails.
	if err = durable.SyncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("store: %w", err)
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

// checkpointPages is how long the write-ahead log grows, in pages of 4 KiB, before it
// is carried over. An effect writes some 17, many of them again and again: over SQLite's
// 1000 each is carried over, and waited for, four times as often.
const checkpointPages = 4000

func open(path string, conns int, extra string) (*sql.DB, error) {
	// temp_store: what a savepoint would undo is copied page by page, and a file for that
	// costs an eighth of a busy writer's time and lies outside of the home.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=busy_timeout(5000)&_txlock=immediate" + extra +
		"&_pragma=synchronous(FULL)&_pragma=temp_store(MEMORY)&_pragma=foreign_keys(1)&_pragma=secure_delete(1)&_pragma=trusted_schema(0)"
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
	p, err := steps(goose.DialectSQLite3, db, "migrations")
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("store: migrations: %w", err)
	}
	return nil
}

func steps(d goose.Dialect, db *sql.DB, dir string) (*goose.Provider, error) {
	sub, err := fs.Sub(migrations, dir)
	if err != nil {
		return nil, err
	}
	p, err := goose.NewProvider(d, db, sub)
	if err != nil {
		return nil, fmt.Errorf("store: migrations: %w", err)
	}
	return p, nil
}

// newestStep is the version that a migrated database has.
func newestStep(dir string) (newest int64, err error) {
	list, err := migrations.ReadDir(dir)
	for _, f := range list {
		if v, err := goose.NumericComponent(f.Name()); err == nil {
			newest = max(newest, v)
		}
	}
	return newest, err
}
