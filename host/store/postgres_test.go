package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

// database is a PostgreSQL database with the workspaces acme and globex.
func database(t *testing.T) *storetest.Database {
	t.Helper()
	return storetest.Postgres(t).Database(t, nameOf(t), "acme", "globex")
}

func opened(t *testing.T, d *storetest.Database, ws host.Workspace) *store.Store {
	t.Helper()
	s, err := d.Open(ws, "test of "+string(ws))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func adminSQL(t *testing.T, d *storetest.Database, query string, args ...any) {
	t.Helper()
	if _, err := d.Admin.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// Law 4: the role of acme, on a connection of its own and with any SQL it likes,
// reaches no row of globex.
func TestRoleReachesItsWorkspaceAloneNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	for _, ws := range []host.Workspace{"acme", "globex"} {
		s := opened(t, d, ws)
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			_, err := tx.PutWorkspace(store.Workspace{Config: string(ws)}, false, at)
			return errors.Join(err, putPrincipal("prin_1")(tx), tx.InsertRun(newRun("run_1")),
				tx.Append("run_1", 1, 1, []store.Record{{Seq: 1, Kind: "k", Time: at, Body: []byte("b"), Label: []byte("l")}}),
				tx.PutToken(store.Token{ID: "tok", Principal: "prin_1", Hash: []byte("h")}, at),
				tx.PutModule("s", store.Module{MAC: []byte("m"), PushedAt: at}), tx.ReplaceGrants([]store.Grant{{ID: "g"}}, "", at),
				tx.InsertApproval(store.Approval{Approval: host.Approval{ID: "a", Run: "run_1"}, BoundMAC: []byte("m"), Detail: []byte("d")}),
				tx.Reject("s", "o", []byte("d")), tx.Reserve("run_1", "run_1", 1, 1, "2026-11", 1), tx.Carve("run_1", "run_2", 1),
				tx.PutKVNamespace("n", []byte("l")), tx.PutKV("n", store.KV{KeyMAC: []byte("k"), Key: []byte("k"), Value: []byte("v"), Label: []byte("l")}),
				leaf(tx, 0), tx.PutCheckpoint(1, []byte("n"), at))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	role, err := sql.Open("pgx", d.URL(storetest.Role("acme"), d.Name).Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer role.Close()
	role.SetMaxOpenConns(1) // one session, so that SET stays
	tries := []string{
		`SELECT 1`,
		`SET search_path = monroe`,
		`SET row_security = off`,
		`SET monroe.ws = 'globex'`,
		`SET ROLE monroe_globex`,
		`SET SESSION AUTHORIZATION monroe_globex`,
		`ALTER TABLE monroe.run DISABLE ROW LEVEL SECURITY`,
		`ALTER TABLE monroe.run NO FORCE ROW LEVEL SECURITY`,
		`DROP POLICY one_workspace ON monroe.run`,
		`UPDATE monroe.workspace_role SET ws = 'globex'`,
		`INSERT INTO monroe.workspace_role VALUES ('monroe_acme2', 'globex')`,
		`CREATE TEMPORARY TABLE workspace_role AS SELECT 'monroe_acme' AS role, 'globex' AS ws`,
		`TRUNCATE monroe.run CASCADE`,
		`GRANT monroe_globex TO monroe_acme`,
	}
	var tables []string
	rows, err := d.Admin.Query(`SELECT table_name FROM information_schema.columns WHERE table_schema = 'monroe' AND column_name = 'ws' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, name)
	}
	if err := rows.Close(); err != nil || len(tables) < 16 {
		t.Fatal(tables, err)
	}
	count := func(db *sql.DB, table string) (n int) {
		if err := db.QueryRow(`SELECT COUNT(*) FROM monroe.` + table + ` WHERE ws = 'globex'`).Scan(&n); err != nil {
			n = -1 // row_security = off makes it an error
		}
		return n
	}
	for i, try := range tries {
		_, err := role.Exec(try)
		if i >= 4 && i != 11 && err == nil {
			t.Errorf("%s was carried out", try)
		}
		for _, table := range tables {
			if n := count(role, table); n > 0 {
				t.Errorf("after %s: %s shows %d rows of globex", try, table, n)
			}
			before := count(d.Admin, table)
			if before < 1 {
				t.Fatalf("%s holds nothing of globex, so this proves nothing", table)
			}
			for _, change := range []string{
				`UPDATE monroe.%s SET ws = 'acme' WHERE ws = 'globex'`, `UPDATE monroe.%s SET ws = ws WHERE ws = 'globex'`,
				`DELETE FROM monroe.%s WHERE ws = 'globex'`,
			} {
				r, err := role.Exec(fmt.Sprintf(change, table))
				if err != nil {
					continue
				}
				if n, _ := r.RowsAffected(); n != 0 {
					t.Errorf("after %s: %s: %d rows", try, change, n)
				}
			}
			if after := count(d.Admin, table); after != before {
				t.Errorf("after %s: %s has %d rows of globex, not %d", try, table, after, before)
			}
		}
		for _, insert := range []string{
			`INSERT INTO monroe.audit_leaf (ws, idx, body, hashes) VALUES ('globex', 99, '', '')`,
			`UPDATE monroe.audit_leaf SET ws = 'globex', idx = 98 WHERE ws = 'acme'`,
		} {
			if _, err := role.Exec(insert); err == nil {
				t.Errorf("after %s: %s was carried out", try, insert)
			}
		}
		if i == 2 {
			adminless(t, role, `RESET row_security`)
		}
	}
	if n := count(d.Admin, "audit_leaf"); n != 1 {
		t.Errorf("%d leaves of globex", n)
	}
}

func adminless(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

// Law 4: a role that could reach more is refused, whatever makes it so.
func TestRoleThatReachesMoreIsRefusedNeedsPostgreSQL(t *testing.T) {
	s := storetest.Own(t) // roles belong to the whole server
	for i, c := range []struct{ what, do, undo string }{
		{"superuser", `ALTER ROLE monroe_acme SUPERUSER`, `ALTER ROLE monroe_acme NOSUPERUSER`},
		{"bypasses", `ALTER ROLE monroe_acme BYPASSRLS`, `ALTER ROLE monroe_acme NOBYPASSRLS`},
		{"make", `ALTER ROLE monroe_acme CREATEROLE`, `ALTER ROLE monroe_acme NOCREATEROLE`},
		{"become", `ALTER ROLE monroe_acme REPLICATION`, `ALTER ROLE monroe_acme NOREPLICATION`},
		{"member", `GRANT monroe_globex TO monroe_acme`, `REVOKE monroe_globex FROM monroe_acme`},
		{"SET ROLE", `GRANT monroe_globex TO monroe_acme; ALTER ROLE monroe_acme SET role = 'monroe_globex'`, `ALTER ROLE monroe_acme RESET role; REVOKE monroe_globex FROM monroe_acme`},
		{"owns", `ALTER TABLE monroe.kv OWNER TO monroe_acme`, `ALTER TABLE monroe.kv OWNER TO boss`},
		{"owns", `ALTER SCHEMA monroe OWNER TO monroe_acme`, `ALTER SCHEMA monroe OWNER TO boss; GRANT USAGE ON SCHEMA monroe TO monroe_acme`},
		{"create things", `GRANT CREATE ON SCHEMA monroe TO monroe_acme`, `REVOKE CREATE ON SCHEMA monroe FROM monroe_acme`},
		{"empty a table", `GRANT TRUNCATE ON monroe.kv TO monroe_acme`, `REVOKE TRUNCATE ON monroe.kv FROM monroe_acme`},
		{"which role serves", `GRANT UPDATE ON monroe.workspace_role TO monroe_acme`, `REVOKE UPDATE ON monroe.workspace_role FROM monroe_acme`},
		{"without forced", `ALTER TABLE monroe.kv NO FORCE ROW LEVEL SECURITY`, `ALTER TABLE monroe.kv FORCE ROW LEVEL SECURITY`},
		{"without forced", `CREATE TABLE monroe.extra (ws text)`, `DROP TABLE monroe.extra`},
		{"bound to workspace", `UPDATE monroe.workspace_role SET ws = 'globex' WHERE role = 'monroe_acme'`, `UPDATE monroe.workspace_role SET ws = 'acme' WHERE role = 'monroe_acme'`},
	} {
		d := s.Database(t, "roles", "acme", "globex")
		adminSQL(t, d, c.do)
		if _, err := d.Open("acme", "test"); !errors.Is(err, store.ErrRole) || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%d %s: %v", i, c.do, err)
		}
		adminSQL(t, d, c.undo)
		opened, err := d.Open("acme", "test")
		if err != nil {
			t.Fatalf("%d after %s: %v", i, c.undo, err)
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}
	err := store.Provision(t.Context(), store.PostgresConfig{URL: s.URL("boss", "roles")}, "acme", storetest.Role("globex"))
	if err == nil || !strings.Contains(err.Error(), "serves workspace globex already") {
		t.Errorf("a role for two workspaces: %v", err)
	}
}

func TestServerElsewhereNeedsAVerifiedCertificate(t *testing.T) {
	for _, u := range []string{
		"postgres://r:hunter2@db.example.com/monroe", "postgres://r:hunter2@db.example.com/monroe?sslmode=disable",
		"postgres://r:hunter2@db.example.com/monroe?sslmode=require", "postgres://r:hunter2@127.0.0.1,db.example.com/monroe",
		"postgres://r:hunter2@%zz/x",
	} {
		_, err := store.OpenPostgres(t.Context(), store.PostgresConfig{URL: vault.NewSecret(u)}, "acme", "test")
		if err == nil || !strings.Contains(err.Error(), "verify-full") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// A COMMIT of a transaction that failed is answered by ROLLBACK without an error, so
// a function that passes over a failed statement must not be told that all is well.
func TestPassedOverStatementIsAnErrorNeedsPostgreSQL(t *testing.T) {
	s := opened(t, database(t), "acme")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			err := s.Write(context.Background(), func(tx *store.Tx) error {
				if err := putPrincipal(fmt.Sprint(i))(tx); err != nil {
					return err
				}
				if i%2 == 1 {
					_ = tx.PutToken(store.Token{ID: "tok", Principal: "nobody", Hash: []byte("h")}, at)
				}
				return nil
			})
			if (err == nil) != (i%2 == 0) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	err := s.Write(t.Context(), func(tx *store.Tx) error { // alone in its transaction
		_ = tx.PutToken(store.Token{ID: "tok", Principal: "nobody", Hash: []byte("h")}, at)
		return nil
	})
	if err == nil || len(principals(t, s)) != 20 {
		t.Errorf("%v, %d rows", err, len(principals(t, s)))
	}
}

// Law 3, and what a server that goes away does: nothing more is written, and the
// reason is told.
func TestLostConnectionIsFinalNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	s := opened(t, d, "acme")
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		adminSQL(t, d, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
		return nil
	})
	if !errors.Is(err, store.ErrClosed) {
		t.Errorf("the write: %v", err)
	}
	<-s.Failed()
	if err := s.Write(t.Context(), putPrincipal("later")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a later write: %v", err)
	}
}

// Law 2: the server crashes again and again while 16 write. What was acknowledged is
// there, what was not is there whole or not at all.
func TestAcknowledgedSurvivesCrashOfTheServerNeedsPostgreSQL(t *testing.T) {
	server := storetest.Own(t)
	acked := map[string]bool{}
	for round := range 3 {
		d := server.Database(t, "crash", "acme")
		adminSQL(t, d, `UPDATE monroe.lease SET expires_at = 0`) // the time that a successor would wait
		s := opened(t, d, "acme")
		var mu sync.Mutex
		var wg sync.WaitGroup
		enough := make(chan struct{})
		var once sync.Once
		for w := range 16 {
			wg.Go(func() {
				for n := 0; ; n++ {
					id := fmt.Sprintf("%d/%d/%d", round, w, n)
					v := store.KV{KeyMAC: []byte(id), Key: []byte("k"), Value: []byte("v"), Label: []byte("l")}
					err := s.Write(context.Background(), func(tx *store.Tx) error { return errors.Join(tx.PutKV("a", v), tx.PutKV("b", v)) })
					if err != nil {
						return
					}
					mu.Lock()
					acked[id] = true
					if len(acked) > 300*(round+1) {
						once.Do(func() { close(enough) })
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		server.Crash(t)
		wg.Wait()
		<-s.Failed()
		_ = s.Close()
		server.Restart(t)
	}
	d := server.Database(t, "crash", "acme")
	keys := func(ns string) map[string]bool {
		got := map[string]bool{}
		rows, err := d.Admin.Query(`SELECT key_mac FROM monroe.kv WHERE namespace = $1`, ns)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var k []byte
			if err := rows.Scan(&k); err != nil {
				t.Fatal(err)
			}
			got[string(k)] = true
		}
		return got
	}
	a, b := keys("a"), keys("b")
	for id := range acked {
		if !a[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d and %d: a half was written", len(a), len(b))
	}
	t.Logf("%d acknowledged, %d in doubt were whole", len(acked), len(a)-len(acked))
}

// A take-over waits for a transaction that has passed the fence, so that the new
// daemon sees everything that the old one wrote.
func TestTakeOverWaitsForTheTransactionUnderWayNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	old := opened(t, d, "acme")
	inside, goOn, wrote := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		wrote <- old.Write(context.Background(), func(tx *store.Tx) error {
			close(inside)
			<-goOn
			return putPrincipal("just in time")(tx)
		})
	}()
	<-inside
	// The lease is over by the clock, but its row is locked: let the admin's statement
	// queue behind the lock like the take-over.
	expired, next := make(chan error, 1), make(chan *store.Store, 1)
	go func() {
		_, err := d.Admin.Exec(`UPDATE monroe.lease SET expires_at = 0`)
		expired <- err
		s, err := d.Open("acme", "the next one")
		if err != nil {
			t.Error(err)
		}
		next <- s
	}()
	for blocked := 0; blocked == 0; {
		if err := d.Admin.QueryRow(`SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&blocked); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-next:
		t.Fatal("taken over in the middle of a transaction")
	default:
	}
	close(goOn)
	if err := errors.Join(<-wrote, <-expired); err != nil {
		t.Fatal(err)
	}
	s := <-next
	t.Cleanup(func() { _ = s.Close() })
	if ids := principals(t, s); !slices.Equal(ids, []string{"just in time"}) {
		t.Errorf("the next one sees %v", ids)
	}
	if err := old.Write(t.Context(), putPrincipal("too late")); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the old one: %v", err)
	}
}

// A daemon that is paused inside a transaction does not hold the workspace for ever.
func TestPausedTransactionIsEndedByTheServerNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	d.Term = time.Second
	old := opened(t, d, "acme")
	wrote := make(chan error, 1)
	resume := make(chan struct{})
	go func() {
		wrote <- old.Write(context.Background(), func(tx *store.Tx) error {
			err := putPrincipal("half")(tx)
			<-resume
			return err
		})
	}()
	<-old.Failed() // by its own clock, since the lease was not renewed
	if err := old.Reason(); !errors.Is(err, store.ErrFenced) {
		t.Errorf("reason: %v", err)
	}
	var s *store.Store
	for s == nil { // until the server has noticed too
		var err error
		if s, err = d.Open("acme", "the next one"); err != nil && !errors.Is(err, store.ErrFenced) && !strings.Contains(err.Error(), "55P03") {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = s.Close() })
	close(resume)
	if err := <-wrote; !errors.Is(err, store.ErrClosed) {
		t.Errorf("the paused write: %v", err)
	}
	if ids := principals(t, s); len(ids) != 0 {
		t.Errorf("rows: %v", ids)
	}
}

// expiry is when the lease ends, in milliseconds.
func expiry(t *testing.T, d *storetest.Database) (n int64) {
	t.Helper()
	if err := d.Admin.QueryRow(`SELECT expires_at FROM monroe.lease`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLeaseIsRenewedWhileNothingIsWrittenNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	d.Term = 5 * time.Second
	s := opened(t, d, "acme")
	for first := expiry(t, d); expiry(t, d) < first+int64(2000); {
		if s.Reason() != nil {
			t.Fatal(s.Reason())
		}
	}
	if err := s.Write(t.Context(), func(*store.Tx) error { return errors.New("undone together with nothing else") }); err == nil {
		t.Error("no error")
	}
}

// A renewal and a function that fails can meet in one transaction: the first stays.
func TestFailedFunctionBesideARenewalWritesNothingNeedsPostgreSQL(t *testing.T) {
	d := database(t)
	d.Term = 3 * time.Second
	s := opened(t, d, "acme")
	boom := errors.New("boom")
	for first := expiry(t, d); expiry(t, d) < first+int64(1500); { // it was renewed
		err := s.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(putPrincipal("x")(tx), boom) })
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if ids := principals(t, s); len(ids) != 0 {
			t.Fatal("it was written all the same")
		}
	}
}

// TestSchemasAreTheSame holds the two sets of migrations together.
func TestSchemasAreTheSameNeedsPostgreSQL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	lite, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lite.Close()
	list := func(db *sql.DB, query string) (all []string) {
		rows, err := db.Query(query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		slices.Sort(all)
		return all
	}
	const ours = ` NOT IN ('goose_db_version', 'sqlite_sequence', 'workspace_role')`
	for what, q := range map[string][2]string{
		"columns": {
			`SELECT m.name || '.' || c.name || CASE c.type WHEN 'INTEGER' THEN ' number' WHEN 'BLOB' THEN ' bytes' ELSE ' text' END || CASE WHEN c."notnull" OR c.pk THEN ' required' ELSE '' END
				FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name` + ours,
			`SELECT table_name || '.' || column_name || CASE data_type WHEN 'bigint' THEN ' number' WHEN 'boolean' THEN ' number' WHEN 'bytea' THEN ' bytes' ELSE ' text' END ||
				CASE is_nullable WHEN 'NO' THEN ' required' ELSE '' END FROM information_schema.columns WHERE table_schema = 'monroe' AND table_name` + ours,
		},
		"keys": { // primary keys, unique constraints and indexes, with their columns in order
			`SELECT m.name || CASE WHEN i."unique" THEN ' unique ' ELSE ' ' END || (SELECT group_concat(name) FROM pragma_index_info(i.name))
				FROM sqlite_schema m, pragma_index_list(m.name) i WHERE m.type = 'table' AND m.name` + ours,
			`SELECT c.relname || CASE WHEN i.indisunique THEN ' unique ' ELSE ' ' END || (SELECT string_agg(a.attname, ',' ORDER BY k.n)
				FROM unnest(i.indkey) WITH ORDINALITY k(num, n) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num)
				FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'monroe'::regnamespace AND c.relname` + ours,
		},
		"references": {
			`SELECT DISTINCT m.name || ' -> ' || f."table" FROM sqlite_schema m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'`,
			`SELECT conrelid::regclass::text || ' -> ' || confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND connamespace = 'monroe'::regnamespace`,
		},
	} {
		d := database(t)
		a, b := list(lite, q[0]), list(d.Admin, q[1])
		for i := range b {
			b[i] = strings.ReplaceAll(b[i], "monroe.", "")
		}
		if len(a) < 10 && what != "references" || !slices.Equal(a, b) {
			t.Errorf("%s:\nSQLite     %v\nPostgreSQL %v", what, a, b)
		}
	}
}

func TestNumbered(t *testing.T) {
	for in, want := range map[string]string{
		`SELECT ?`: `SELECT $1`, `a = ? AND b = '?' AND c IN (?,?)`: `a = $1 AND b = '?' AND c IN ($2,$3)`, `'it''s ?' = ?`: `'it''s ?' = $1`,
	} {
		if got := store.Numbered(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// BenchmarkRecords writes journal records by 64 at the same time: one record in
// each Write, durable when it returns.
func BenchmarkRecords(b *testing.B) {
	places := map[string]func() (*store.Store, error){
		"SQLite": func() (*store.Store, error) {
			return store.Open(context.Background(), filepath.Join(b.TempDir(), "db"), "acme", "bench", time.Now())
		},
		"NeedsPostgreSQL": func() (*store.Store, error) {
			return storetest.Own(b).Database(b, fmt.Sprintf("bench_%d", named.Add(1)), "acme").Open("acme", "bench")
		},
	}
	for name, open := range places {
		for _, writers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, writers), func(b *testing.B) {
				s, err := open()
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				if err := s.Write(context.Background(), func(tx *store.Tx) error {
					err := putPrincipal("prin_1")(tx)
					for w := range writers {
						err = errors.Join(err, tx.InsertRun(newRun(host.RunID(fmt.Sprint("run_", w)))))
					}
					return err
				}); err != nil {
					b.Fatal(err)
				}
				body := make([]byte, 500)
				var wg sync.WaitGroup
				b.ResetTimer()
				for w := range writers {
					wg.Go(func() {
						for seq := int64(1); seq <= int64(b.N/writers); seq++ {
							rec := []store.Record{{Seq: seq, Call: 1, Kind: "RESULT", Version: 1, Time: at, Body: body, Label: []byte("l"), Chain: abi.Digest{1}}}
							if err := s.Write(context.Background(), func(tx *store.Tx) error { return tx.Append(host.RunID(fmt.Sprint("run_", w)), seq, 1, rec) }); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N/writers*writers)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}
