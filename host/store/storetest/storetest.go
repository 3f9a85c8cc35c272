// Package storetest lets tests use the store over either database. Nothing but tests
// may import it.
//
// It starts a PostgreSQL server of its own: in a temporary directory, on a socket in
// it and no network, as another user where the test runs as root. The server ends
// with the test process. The one that tests share lies in memory where there is room: a
// test that asks what a crash leaves has its own, on the disk.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", for Admin

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// Switch is the environment variable that makes Open use PostgreSQL.
const Switch = "MONROE_TEST_POSTGRES"

// Open opens the workspace's store in a directory of the test: SQLite, or with
// MONROE_TEST_POSTGRES=1 a database that belongs to that directory.
func Open(t testing.TB, dir string, ws host.Workspace, now time.Time) (*store.Store, error) {
	if c := Config(t, dir, ws); c != nil {
		return store.OpenPostgres(context.Background(), *c, ws, "test")
	}
	path := filepath.Join(dir, "db")
	if err := furnish(path); err != nil {
		return nil, err
	}
	return store.Open(context.Background(), path, ws, "test", now)
}

// furnish puts a database at path that has had its migrations, if none is there: tests
// open hundreds, and the migrations are most of what a new one costs.
func furnish(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := migrated()
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// migrated is a database without rows, nobody having held its lease.
var migrated = sync.OnceValues(func() (_ []byte, err error) {
	dir, err := os.MkdirTemp("", "db")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "db")
	s, err := store.Open(context.Background(), path, "template", "test", time.Now())
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return nil, err
	}
	_, err = db.ExecContext(context.Background(), `DELETE FROM lease; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE`)
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// Config is where that database is, nil for SQLite. A lease that was not given back
// is over: whoever opens again stands for a daemon that starts later.
func Config(t testing.TB, dir string, ws host.Workspace) *store.PostgresConfig {
	if os.Getenv(Switch) == "" {
		return nil
	}
	s, name := Postgres(t), nameOf(dir)
	if err := s.free(t, name, ws); err != nil {
		t.Fatal(err)
	}
	return &store.PostgresConfig{URL: s.URL(Role(ws), name), Blobs: filepath.Join(dir, "blobs")}
}

func nameOf(dir string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(dir))
	return fmt.Sprintf("t%x", h.Sum64())
}

// DB is a connection of the test's own, behind the daemon's back, to what Open opens.
func DB(t testing.TB, dir string) *sql.DB {
	t.Helper()
	var db *sql.DB
	var err error
	if os.Getenv(Switch) == "" {
		db, err = sql.Open("sqlite", filepath.Join(dir, "db"))
	} else {
		db, err = sql.Open("pgx", Postgres(t).url("boss", nameOf(dir))+"&search_path=monroe")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Tamper runs SQL on it.
func Tamper(t testing.TB, dir, query string) {
	t.Helper()
	db := DB(t, dir)
	if _, err := db.ExecContext(context.Background(), query); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// Server is a running PostgreSQL.
type Server struct {
	dir    string // of the socket and the data
	bin    string
	attr   *syscall.SysProcAttr
	mu     sync.Mutex
	proc   *exec.Cmd
	ended  chan struct{}
	boss   map[string]*sql.DB // databases, each with a superuser's connection once it is used
	copied map[string]string  // the database that others are copied from, by their workspaces
	drops  bool               // it outlives a test, whose databases are then dropped
	over   []string           // those to drop
}

var shared = sync.OnceValues(func() (*Server, error) {
	running.Store(true)
	s, err := start(context.Background(), memory())
	if err == nil {
		s.drops = true
	}
	return s, err
})

// Main runs a package's tests and removes the server that they shared.
func Main(m *testing.M) {
	code := m.Run()
	if running.Load() {
		if s, err := shared(); err == nil {
			_ = s.stop()
			_ = os.RemoveAll(s.dir)
		}
	}
	os.Exit(code)
}

var running atomic.Bool // shared was asked for

var errNone = errors.New("no PostgreSQL here: neither MONROE_POSTGRES, initdb in PATH, nor /usr/lib/postgresql/*/bin")

// Postgres returns the server that all tests of this process share. The test is
// skipped where none is installed.
func Postgres(t testing.TB) *Server {
	t.Helper()
	s, err := shared()
	if errors.Is(err, errNone) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Own returns a server that this test may crash.
func Own(t testing.TB) *Server { t.Helper(); return own(t, "") }

// Brisk is Own in memory, where there is room: for a test that stops it often, and asks
// what the host makes of that. To recover from a stop costs seconds on a disk.
func Brisk(t testing.TB) *Server { t.Helper(); return own(t, memory()) }

func own(t testing.TB, below string) *Server {
	t.Helper()
	s, err := start(context.Background(), below)
	if errors.Is(err, errNone) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Crash(t); _ = os.RemoveAll(s.dir) })
	return s
}

// Start starts a server for a program that is no Go test. Stop it with Stop.
func Start(ctx context.Context) (*Server, error) { return start(ctx, "") }

// Stop ends the server and removes it.
func (s *Server) Stop() error { return errors.Join(s.stop(), os.RemoveAll(s.dir)) }

// start starts one in a new directory below a given one, or the usual one for "".
func start(ctx context.Context, below string) (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(below, "pg") // short: the path of a socket has 107 bytes
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin, attr: &syscall.SysProcAttr{}, boss: map[string]*sql.DB{}, copied: map[string]string{}}
	if os.Getuid() == 0 { // PostgreSQL refuses root
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			return nil, err
		}
		s.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // from the system's table
	}
	// Everybody who reaches the socket is trusted, and the directory lets the same user
	// and root in.
	init := s.command(ctx, "initdb", "-D", filepath.Join(dir, "data"), "-A", "trust", "-U", "boss", "-E", "UTF8", "--locale", "C.UTF-8", "-N")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.up(ctx)
}

func programs() (string, error) {
	if dir := os.Getenv("MONROE_POSTGRES"); dir != "" {
		return dir, nil
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			return filepath.Dir(p), nil
		}
	}
	list, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(list) == 0 {
		return "", errNone
	}
	return filepath.Dir(list[len(list)-1]), nil
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	c.Dir, c.SysProcAttr, c.Env = s.dir, s.attr, []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	return c
}

// up starts the server and waits until it answers.
func (s *Server) up(ctx context.Context) error {
	c := s.command(ctx, "postgres", "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-c", "listen_addresses=", "-c", "max_connections=100", "-c", "max_wal_size=128MB")
	attr := *s.attr
	dieWithParent(&attr)
	c.SysProcAttr = &attr
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the server dies with this thread, which stays as long as it runs
		defer close(ended)
		err := c.Start()
		started <- err
		if err == nil {
			_ = c.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.mu.Lock()
	s.proc, s.ended = c, ended
	s.mu.Unlock()
	db, err := sql.Open("pgx", s.url("boss", "postgres"))
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only asked whether it answers
	until := time.After(2 * time.Minute)
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("the server ended: %w", err)
		case <-until:
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Crash stops the server as pg_ctl stop -m immediate does: nothing is written back.
func (s *Server) Crash(t testing.TB) {
	t.Helper()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	if err := s.proc.Process.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	<-s.ended
	s.proc = nil
	return nil
}

// Restart starts it again, after a Crash.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.up(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) url(role, database string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&user=%s", database, s.dir, role)
}

// URL is the address of a database for a role.
func (s *Server) URL(role, database string) vault.Secret {
	return vault.NewSecret(s.url(role, database))
}

// Database is one database of a server.
type Database struct {
	*Server
	Name string
	// Admin is a superuser's connection, past the store and its rules.
	Admin *sql.DB
	// Term of leases; 0 means the usual one.
	Term time.Duration
	// Blobs is the directory of large bodies.
	Blobs string
}

// Role is the role that Database binds to a workspace.
func Role(ws host.Workspace) string { return "monroe_" + string(ws) }

// Database returns a database with that name, made and provisioned for the
// workspaces when it is asked for first.
func (s *Server) Database(t testing.TB, name string, all ...host.Workspace) *Database {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.need(t, name, all)
	if err != nil {
		t.Fatal(err)
	}
	d := &Database{Server: s, Name: name}
	if d.Admin, err = s.connect(name); err != nil {
		t.Fatal(err)
	}
	d.Admin.SetMaxOpenConns(2)
	t.Cleanup(func() { _ = d.Admin.Close() })
	return d
}

func (s *Server) connect(name string) (*sql.DB, error) { return sql.Open("pgx", s.url("boss", name)) }

// need makes a database that is not there, as a copy of the one that was provisioned for
// the same workspaces: that costs a tenth of the migrations. After the test it is dropped.
func (s *Server) need(t testing.TB, name string, all []host.Workspace) error {
	if _, there := s.boss[name]; there {
		return nil
	}
	key := fmt.Sprint(all)
	if s.copied[key] == "" {
		from := fmt.Sprintf("copied_%d", len(s.copied))
		if err := s.run("postgres", `CREATE DATABASE `+from); err != nil {
			return err
		}
		for _, ws := range all {
			if err := store.Provision(context.Background(), store.PostgresConfig{URL: s.URL("boss", from)}, ws, Role(ws)); err != nil {
				return err
			}
		}
		s.copied[key] = from
	}
	if err := s.run("postgres", `CREATE DATABASE `+name+` TEMPLATE `+s.copied[key]); err != nil {
		return err
	}
	s.boss[name] = nil
	t.Cleanup(func() { s.drop(t, name) })
	return nil
}

// free makes a database that is not there; if it is, whoever holds its lease holds it no
// longer.
func (s *Server) free(t testing.TB, name string, ws host.Workspace) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.boss[name]; !there {
		return s.need(t, name, []host.Workspace{ws})
	}
	return s.run(name, `UPDATE monroe.lease SET expires_at = 0`)
}

// run runs a statement of the superuser's, over a connection that stays: a new one is a
// process more, which costs more than most statements.
func (s *Server) run(name, query string) (err error) {
	db := s.boss[name]
	if db == nil {
		if db, err = s.connect(name); err != nil {
			return err
		}
		db.SetMaxOpenConns(1)
		s.boss[name] = db
	}
	_, err = db.ExecContext(context.Background(), query)
	return err
}

// Drop drops what Open made in a directory before its test is over, for one that makes
// many. Its store is closed.
func Drop(t testing.TB, dir string) {
	t.Helper()
	if os.Getenv(Switch) != "" {
		Postgres(t).drop(t, nameOf(dir))
	}
}

// drop gives a database's connection back, and its room later: the server waits a tenth of
// a second where the processes of the last connections are about to end.
func (s *Server) drop(t testing.TB, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	db, there := s.boss[name]
	if !there {
		return
	}
	delete(s.boss, name)
	if db != nil {
		_ = db.Close()
	}
	if s.over = append(s.over, name); len(s.over) <= 8 || !s.drops {
		return
	}
	if err := s.run("postgres", `DROP DATABASE `+s.over[0]+` WITH (FORCE)`); err != nil {
		t.Error(err)
	}
	s.over = s.over[1:]
}

// Open opens a workspace as its role.
func (d *Database) Open(ws host.Workspace, holder string) (*store.Store, error) {
	return store.OpenPostgres(context.Background(), store.PostgresConfig{URL: d.URL(Role(ws), d.Name), Term: d.Term, Blobs: d.Blobs}, ws, holder)
}
