package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/getmonroe/monroe/host"
)

// Provision prepares a PostgreSQL database: it migrates the schema, puts forced
// row-level security on every table, makes the role if there is none (without a
// password), and binds it to the workspace. admin is of a role that owns the schema,
// or may create it, and may create roles if one is to be made; no daemon uses it. It
// may be called again at any time; a role that is bound to another workspace is
// refused.
func Provision(ctx context.Context, admin PostgresConfig, ws host.Workspace, role string) error {
	if err := ws.Check(); err != nil {
		return err
	}
	if role == "" {
		return errors.New("store: provision: name a role")
	}
	conf, err := admin.parse()
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*conf)
	defer db.Close()      //nolint:errcheck // nothing was left undone
	db.SetMaxOpenConns(2) // goose holds one
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS `+schema); err != nil {
		return fmt.Errorf("store: provision: %w", err)
	}
	p, err := steps(goose.DialectPostgres, db, "migrations/postgres")
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("store: migrations: %w", err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("store: provision: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := bind(ctx, tx, ws, role); err != nil {
		return fmt.Errorf("store: provision: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("store: provision: %w", err)
	}
	return nil
}

func bind(ctx context.Context, tx *sql.Tx, ws host.Workspace, role string) error {
	quoted := pgx.Identifier{role}.Sanitize()
	run := func(query string, args ...any) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	}
	var exists bool
	if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)`, role).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if err := run(`CREATE ROLE ` + quoted + ` LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS`); err != nil {
			return err
		}
	}
	var bound host.Workspace
	err := tx.QueryRowContext(ctx, `INSERT INTO workspace_role (role, ws) VALUES ($1,$2)
		ON CONFLICT (role) DO UPDATE SET ws = workspace_role.ws RETURNING ws`, role, ws).Scan(&bound)
	if err != nil {
		return err
	}
	if bound != ws {
		return fmt.Errorf("role %s serves workspace %s already; a role serves one", role, bound)
	}
	tables, err := tablesOf(ctx, tx)
	if err != nil {
		return err
	}
	if err := run(`GRANT USAGE ON SCHEMA ` + schema + ` TO ` + quoted); err != nil {
		return err
	}
	for _, t := range tables {
		name := pgx.Identifier{schema, t}.Sanitize()
		// The role's workspace is asked for once for each statement, not for each row.
		rule, rights := `ws = (SELECT m.ws FROM `+schema+`.workspace_role m WHERE m.role = session_user)`, `SELECT, INSERT, UPDATE, DELETE`
		switch t {
		case "goose_db_version":
			if err := run(`GRANT SELECT ON ` + name + ` TO ` + quoted); err != nil {
				return err
			}
			continue
		case "workspace_role":
			// Its owner writes it: the force is for everybody else that was granted it.
			rule, rights = `role = session_user OR pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = '`+schema+`.workspace_role'::regclass), 'MEMBER')`, `SELECT`
		}
		for _, stmt := range []string{
			`ALTER TABLE ` + name + ` ENABLE ROW LEVEL SECURITY`,
			`ALTER TABLE ` + name + ` FORCE ROW LEVEL SECURITY`,
			`DROP POLICY IF EXISTS one_workspace ON ` + name,
			`CREATE POLICY one_workspace ON ` + name + ` USING (` + rule + `) WITH CHECK (` + rule + `)`,
			`GRANT ` + rights + ` ON ` + name + ` TO ` + quoted,
		} {
			if err := run(stmt); err != nil {
				return err
			}
		}
	}
	return nil
}

func tablesOf(ctx context.Context, tx *sql.Tx) (list []string, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p') ORDER BY relname`, schema)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var t string
		if err := rows.Scan(&t); err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, rows.Err()
}
