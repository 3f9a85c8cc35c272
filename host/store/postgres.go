package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/vault"
)

// DefaultTerm is how long a lease in PostgreSQL lives without being renewed.
const DefaultTerm = 15 * time.Second

// schema holds everything of monroe's in a PostgreSQL database.
const schema = "monroe"

// clock is the database's clock in milliseconds. Not now(), which stands still in a
// transaction.
const clock = `(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint`

// ErrRole is returned for a role that could reach more than its workspace.
var ErrRole = errors.New("store: the role must not serve a workspace")

// Every writing transaction runs at READ COMMITTED and first locks the lease's row
// for share. A take-over updates that row, so it waits until the transaction has
// ended, or it came first: then the lock reads the new epoch (at REPEATABLE READ it
// would fail without saying why). While the lock is held nobody else writes rows of
// this workspace, since every writer holds the lease and a lease has one writer. So a
// statement can see no other writer's half, and needs no stronger isolation. Reads
// are many statements over one state: REPEATABLE READ.
var postgres = &dialect{
	begin:   "BEGIN ISOLATION LEVEL READ COMMITTED",
	fence:   `SELECT epoch FROM lease WHERE ws = ? FOR SHARE`,
	renew:   `UPDATE lease SET expires_at = ` + clock + ` + ?::bigint WHERE ws = ? AND epoch = ? RETURNING epoch`,
	read:    sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead},
	rewrite: numbered,
	control: func(s *Store, stmt string) error { return s.wire.control(s, stmt) },
	writing: func(s *Store) querier { return wireQuerier{connQuerier{s}} },
	settle: func(s *Store) error {
		if _, err := s.wire.send(s); err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if s.wire.status(s) != 'T' {
			return errors.New("store: a statement of the transaction failed")
		}
		return nil
	},
	giveUp: func(s *Store) error {
		_, err := s.conn.ExecContext(s.life, numbered(`UPDATE lease SET expires_at = 0 WHERE ws = ? AND epoch = ?`), s.ws, s.epoch)
		return err
	},
}

// PostgresConfig says where the database is, and as whom it is used.
type PostgresConfig struct {
	// URL is postgres://role@host/database. It may hold the password, so it is a secret.
	// Unless the host is this machine it must say sslmode=verify-full.
	URL vault.Secret
	// Password overrides that of the URL, if it is not empty.
	Password vault.Secret
	// Dial connects to host:port or a socket; nil means the machine's own dialer. It
	// also resolves the host's name.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Term of the lease, 0 means DefaultTerm.
	Term time.Duration
	// Blobs is the directory of bodies that are too large for a row. Whoever may take the
	// workspace over must reach the same one.
	Blobs string
}

// OpenPostgres opens the workspace in a database that Provision has prepared, and
// takes its lease. While another daemon's lease lives it returns ErrFenced and names
// the holder. A role that could reach more than the workspace is ErrRole.
func OpenPostgres(ctx context.Context, c PostgresConfig, ws host.Workspace, holder string) (_ *Store, err error) {
	if err := ws.Check(); err != nil {
		return nil, err
	}
	if c.Term == 0 {
		c.Term = DefaultTerm
	}
	conf, err := c.parse()
	if err != nil {
		return nil, err
	}
	s := newStore(ws, postgres, "PostgreSQL at "+conf.Host+", database "+conf.Database+", role "+conf.User)
	s.blobs = blobs(c.Blobs)
	defer func() {
		if err != nil {
			_ = s.release()
		}
	}()
	s.writer = stdlib.OpenDB(*conf)
	s.writer.SetMaxOpenConns(1)
	if s.conn, err = s.writer.Conn(ctx); err != nil {
		return nil, fmt.Errorf("store: PostgreSQL: %w", err)
	}
	if err = checkServer(ctx, s.conn, ws); err != nil {
		return nil, err
	}
	asked := time.Now()
	if s.epoch, err = takeLease(ctx, s.conn, ws, holder, c.Term); err != nil {
		return nil, err
	}
	readers := conf.Copy()
	readers.RuntimeParams["default_transaction_read_only"] = "on"
	s.reader = stdlib.OpenDB(*readers)
	s.reader.SetMaxOpenConns(4)
	s.reader.SetMaxIdleConns(4)
	s.lease = newLease(c.Term, asked, func() {
		s.end(fmt.Errorf("%w, or will: the lease could not be renewed for %v", ErrFenced, c.Term))
	})
	go s.keep()
	return s, nil
}

func (c PostgresConfig) parse() (*pgx.ConnConfig, error) {
	conf, err := pgx.ParseConfig(c.URL.Reveal())
	if err != nil { // the error may quote what it could not read
		return nil, errors.New("store: the PostgreSQL address cannot be read; it must be postgres://role@host:port/database?sslmode=verify-full")
	}
	if c.Dial != nil {
		conf.DialFunc = c.Dial
		conf.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	}
	if !c.Password.Empty() {
		conf.Password = c.Password.Reveal()
	}
	ways := []*pgconn.FallbackConfig{{Host: conf.Host, TLSConfig: conf.TLSConfig}}
	for _, w := range append(ways, conf.Fallbacks...) {
		verified := w.TLSConfig != nil && !w.TLSConfig.InsecureSkipVerify
		if !verified && !onThisMachine(w.Host) {
			return nil, fmt.Errorf("store: PostgreSQL at %s would be reached without a verified certificate; add sslmode=verify-full (and sslrootcert) to the address", w.Host)
		}
	}
	term := c.Term
	if term == 0 {
		term = DefaultTerm
	}
	ms := fmt.Sprintf("%dms", term.Milliseconds())
	for k, v := range map[string]string{
		"search_path":        schema,
		"application_name":   "monroed",
		"synchronous_commit": "on", // law 2, whatever the server's default
		// A daemon that was paused inside a transaction holds the lease's row: the server
		// ends that transaction by itself, so that another can take over.
		"idle_in_transaction_session_timeout": ms,
		"lock_timeout":                        ms,
		"standard_conforming_strings":         "on",
		"client_encoding":                     "UTF8",
	} {
		conf.RuntimeParams[k] = v
	}
	delete(conf.RuntimeParams, "options") // it could set the same parameters again
	return conf, nil
}

func onThisMachine(h string) bool {
	ip := net.ParseIP(h)
	return strings.HasPrefix(h, "/") || h == "localhost" || ip != nil && ip.IsLoopback()
}

// takeLease takes a lease whose term is over, by the database's clock.
func takeLease(ctx context.Context, c *sql.Conn, ws host.Workspace, holder string, term time.Duration) (epoch int64, err error) {
	err = c.QueryRowContext(ctx, numbered(`INSERT INTO lease (ws, epoch, holder, taken_at, expires_at) VALUES (?,1,?,`+clock+`,`+clock+` + ?::bigint)
		ON CONFLICT (ws) DO UPDATE SET epoch = lease.epoch + 1, holder = excluded.holder, taken_at = excluded.taken_at, expires_at = excluded.expires_at
			WHERE lease.expires_at <= `+clock+`
		RETURNING epoch`), ws, holder, term.Milliseconds()).Scan(&epoch)
	if !errors.Is(err, sql.ErrNoRows) {
		if err != nil {
			err = fmt.Errorf("store: lease: %w", err)
		}
		return epoch, err
	}
	var other string
	var left int64
	err = c.QueryRowContext(ctx, numbered(`SELECT holder, expires_at - `+clock+` FROM lease WHERE ws = ?`), ws).Scan(&other, &left)
	if err != nil {
		return 0, fmt.Errorf("store: lease: %w", err)
	}
	return 0, fmt.Errorf("%w: %s (its lease ends in %v unless it is renewed)", ErrFenced, other, time.Duration(max(left, 0))*time.Millisecond)
}

// checkServer refuses a server that loses commits, a role that reaches more than the
// rows of its workspace, and a schema of another version.
func checkServer(ctx context.Context, c *sql.Conn, ws host.Workspace) error {
	var fsync, sync string
	if err := c.QueryRowContext(ctx, `SELECT current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&fsync, &sync); err != nil {
		return fmt.Errorf("store: PostgreSQL: %w", err)
	}
	if fsync != "on" || sync == "off" {
		return errors.New("store: the PostgreSQL server would lose commits: fsync is off")
	}
	for _, q := range tooMuch {
		var yes bool
		if err := c.QueryRowContext(ctx, q.query).Scan(&yes); err != nil {
			return fmt.Errorf("store: PostgreSQL: %w", err)
		}
		if yes {
			return fmt.Errorf("%w: it %s", ErrRole, q.what)
		}
	}
	var bound string
	err := c.QueryRowContext(ctx, `SELECT COALESCE((SELECT ws FROM workspace_role WHERE role = session_user), '')`).Scan(&bound)
	if err != nil || bound != string(ws) {
		return errors.Join(fmt.Errorf("%w: it is bound to workspace %q, not to %q; run monroed --provision", ErrRole, bound, ws), err)
	}
	var version int64
	if err := c.QueryRowContext(ctx, `SELECT MAX(version_id) FROM goose_db_version`).Scan(&version); err != nil {
		return fmt.Errorf("store: migrations: %w", err)
	}
	newest, err := newestStep("migrations/postgres")
	if err != nil {
		return err
	}
	if version != newest {
		return fmt.Errorf("store: migrations: the database has version %d and this program %d; run the newer program's monroed --provision", version, newest)
	}
	return nil
}

// tooMuch is asked of the role before anything else, as it is at this moment.
var tooMuch = []struct{ what, query string }{
	{"is a superuser, bypasses row-level security, or may make or become such a role", `SELECT bool_or(rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication)
		FROM pg_roles WHERE rolname IN (session_user, current_user)`},
	{"was changed by SET ROLE", `SELECT session_user <> current_user`},
	{"is a member of another role", `SELECT EXISTS (SELECT 1 FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = session_user)`},
	{"owns the database, the schema, or something in the schema", `SELECT EXISTS (
		SELECT 1 FROM pg_roles r WHERE r.rolname = session_user AND (
			EXISTS (SELECT 1 FROM pg_database WHERE datname = current_database() AND datdba = r.oid) OR
			EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'monroe' AND nspowner = r.oid) OR
			EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'monroe' AND c.relowner = r.oid)))`},
	{"may create things in the schema", `SELECT COALESCE(has_schema_privilege('monroe', 'CREATE'), false)`},
	{"may empty a table, put triggers on it, or write which role serves which workspace", `SELECT COALESCE(bool_or(
			has_table_privilege(c.oid, 'TRUNCATE') OR has_table_privilege(c.oid, 'TRIGGER') OR has_table_privilege(c.oid, 'REFERENCES') OR
			c.relname IN ('workspace_role', 'goose_db_version') AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE')), false)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'monroe' AND c.relkind IN ('r', 'p')`},
	{"sees tables without forced row-level security; run monroed --provision", `SELECT COALESCE(bool_or(NOT (c.relrowsecurity AND c.relforcerowsecurity)), true)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'monroe' AND c.relkind IN ('r', 'p') AND c.relname <> 'goose_db_version'`},
}
