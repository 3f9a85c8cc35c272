package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/getmonroe/monroe/host"
)

// Tx is one transaction, for reading only inside Store.Read. Its methods are the
// only SQL of the daemon; each is one statement or a few that belong together.
type Tx struct {
	ctx   context.Context
	ws    host.Workspace
	epoch int64
	blobs blobs
	q     querier

	tail *tail // of the audit log; nil when reading only
}

// Epoch is that of the lease the transaction was fenced with.
func (tx *Tx) Epoch() int64 { return tx.epoch }

// scanner is a sql.Row, or why there is none.
type scanner interface{ Scan(to ...any) error }

type noRow struct{ err error }

func (r noRow) Scan(...any) error { return r.err }

type querier interface {
	// exec may put the statement off until another one's answer is needed. Then its
	// error comes with that one, or with the end of the function.
	exec(ctx context.Context, query string, args ...any) error
	changed(ctx context.Context, query string, args ...any) (rows int64, err error)
	rows(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	row(ctx context.Context, query string, args ...any) scanner
}

func (tx *Tx) exec(query string, args ...any) error {
	return tx.q.exec(tx.ctx, query, args...)
}

// maxRows bounds how many rows one statement inserts.
const maxRows = 64

// insert adds n rows with statements that begin with head. As many rows as possible
// share one, in sizes that are powers of two, so that few are prepared.
func (tx *Tx) insert(head string, n int, row func(i int) []any) error {
	for i := 0; i < n; {
		size := maxRows
		for size > n-i {
			size /= 2
		}
		var args []any
		for range size {
			args = append(args, row(i)...)
			i++
		}
		if err := tx.exec(head+places(size, len(args)/size), args...); err != nil {
			return err
		}
	}
	return nil
}

// places is the text of rows of parameters.
func places(rows, columns int) string {
	row := "(" + strings.Repeat("?,", columns-1) + "?)"
	return strings.Repeat(row+",", rows-1) + row
}

// change runs a statement that must touch exactly one row.
func (tx *Tx) change(query string, args ...any) error { return tx.changeRows(1, query, args...) }

// changeRows runs a statement that must touch exactly n rows.
func (tx *Tx) changeRows(n int64, query string, args ...any) error {
	got, err := tx.q.changed(tx.ctx, query, args...)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if got != n {
		return host.ErrConflict
	}
	return nil
}

func (tx *Tx) row(query string, args ...any) scanner {
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

func (p plainQuerier) exec(ctx context.Context, q string, a ...any) error {
	_, err := p.changed(ctx, q, a...)
	return err
}

func (p plainQuerier) changed(ctx context.Context, q string, a ...any) (int64, error) {
	return count(p.tx.ExecContext(ctx, p.d.rewrite(q), a...))
}

func count(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (p plainQuerier) rows(ctx context.Context, q string, a ...any) (*sql.Rows, error) {
	return p.tx.QueryContext(ctx, p.d.rewrite(q), a...)
}

func (p plainQuerier) row(ctx context.Context, q string, a ...any) scanner {
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

func (c connQuerier) exec(ctx context.Context, q string, a ...any) error {
	_, err := c.changed(ctx, q, a...)
	return err
}

func (c connQuerier) changed(ctx context.Context, q string, a ...any) (int64, error) {
	st, err := c.stmt(ctx, q)
	if err != nil {
		return 0, err
	}
	return count(st.ExecContext(ctx, a...))
}

func (c connQuerier) rows(ctx context.Context, q string, a ...any) (*sql.Rows, error) {
	st, err := c.stmt(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, a...)
}

func (c connQuerier) row(ctx context.Context, q string, a ...any) scanner {
	st, err := c.stmt(ctx, q)
	if err != nil {
		return noRow{err}
	}
	return st.QueryRowContext(ctx, a...)
}
