package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/getmonroe/monroe/host"
)

// Tx is one transaction, for reading only inside Store.Read. Its methods are the
// only SQL of the daemon; each is one statement or a few that belong together.
type Tx struct {
	ctx   context.Context
	ws    host.Workspace
	epoch int64
	q     querier

	leaves int64 // of the audit log, if it was asked for; -1 before
}

// Epoch is that of the lease the transaction was fenced with.
func (tx *Tx) Epoch() int64 { return tx.epoch }

type querier interface {
	exec(ctx context.Context, query string, args ...any) (sql.Result, error)
	rows(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	row(ctx context.Context, query string, args ...any) *sql.Row
}

func (tx *Tx) exec(query string, args ...any) error {
	_, err := tx.q.exec(tx.ctx, query, args...)
	return err
}

// change runs a statement that must touch exactly one row.
func (tx *Tx) change(query string, args ...any) error {
	r, err := tx.q.exec(tx.ctx, query, args...)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return errors.Join(host.ErrConflict, err)
	}
	return nil
}

func (tx *Tx) row(query string, args ...any) *sql.Row {
	return tx.q.row(tx.ctx, query, args...)
}

// each calls scan for every row.
func (tx *Tx) each(scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := tx.q.rows(tx.ctx, query, args...)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for rows.Next() {
		if err := scan(rows); err != nil {
			return errors.Join(fmt.Errorf("store: %w", err), rows.Close())
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// absent turns "no rows" into host.ErrNotFound.
func absent(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return host.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// plainQuerier is a read transaction.
type plainQuerier struct {
	tx *sql.Tx
	d  *dialect
}

func (p plainQuerier) exec(ctx context.Context, q string, a ...any) (sql.Result, error) {
	return p.tx.ExecContext(ctx, p.d.rewrite(q), a...)
}

func (p plainQuerier) rows(ctx context.Context, q string, a ...any) (*sql.Rows, error) {
	return p.tx.QueryContext(ctx, p.d.rewrite(q), a...)
}

func (p plainQuerier) row(ctx context.Context, q string, a ...any) *sql.Row {
	return p.tx.QueryRowContext(ctx, p.d.rewrite(q), a...)
}

// connQuerier is the writer's connection; it prepares every statement once, as
// parsing one costs more than running it.
type connQuerier struct{ s *Store }

func (c connQuerier) stmt(ctx context.Context, q string) (*sql.Stmt, error) {
	if st, ok := c.s.stmts[q]; ok {
		return st, nil
	}
	st, err := c.s.conn.PrepareContext(ctx, c.s.d.rewrite(q))
	if err != nil {
		return nil, err
	}
	c.s.stmts[q] = st
	return st, nil
}

func (c connQuerier) exec(ctx context.Context, q string, a ...any) (sql.Result, error) {
	st, err := c.stmt(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.ExecContext(ctx, a...)
}

func (c connQuerier) rows(ctx context.Context, q string, a ...any) (*sql.Rows, error) {
	st, err := c.stmt(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, a...)
}

func (c connQuerier) row(ctx context.Context, q string, a ...any) *sql.Row {
	st, err := c.stmt(ctx, q)
	if err != nil { // let the connection say the same error
		return c.s.conn.QueryRowContext(ctx, c.s.d.rewrite(q), a...)
	}
	return st.QueryRowContext(ctx, a...)
}
