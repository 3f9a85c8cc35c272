package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// wire is the writer's connection to PostgreSQL. A round trip costs more than most
// statements, so what needs no answer of its own (an insert, the savepoints between
// two functions) is held back and sent together with what does.
type wire struct {
	held []statement
}

type statement struct {
	query string
	args  []any
}

// maxHeld bounds the statements that wait for a round trip.
const maxHeld = 128

// on hands the connection to fn.
func (w *wire) on(s *Store, fn func(*pgx.Conn) error) error {
	return s.conn.Raw(func(c any) error { return fn(c.(*stdlib.Conn).Conn()) })
}

// status is T in a transaction and E in one that failed.
func (w *wire) status(s *Store) (b byte) {
	if w.on(s, func(c *pgx.Conn) error { b = c.PgConn().TxStatus(); return nil }) != nil {
		return 'E'
	}
	return b
}

// hold keeps a statement back. The caller may change its bytes afterwards.
func (w *wire) hold(query string, args []any) {
	kept := make([]any, len(args))
	for i, a := range args {
		if b, ok := a.([]byte); ok && b != nil {
			a = bytes.Clone(b)
		}
		kept[i] = a
	}
	w.held = append(w.held, statement{query, kept})
}

// send sends what was held back and returns how many rows the last one changed. The
// first error ends it: nothing behind it was carried out.
func (w *wire) send(s *Store) (rows int64, err error) {
	if len(w.held) == 0 {
		return 0, nil
	}
	var b pgx.Batch
	for _, h := range w.held {
		b.Queue(h.query, h.args...)
	}
	n := len(w.held)
	w.held = w.held[:0]
	err = w.on(s, func(c *pgx.Conn) error {
		answers := c.SendBatch(s.life, &b)
		for range n {
			tag, err := answers.Exec()
			if err != nil {
				_ = answers.Close() // says the same
				return err
			}
			rows = tag.RowsAffected()
		}
		return answers.Close()
	})
	return rows, err
}

// control begins or ends a transaction or a savepoint.
func (w *wire) control(s *Store, stmt string) error {
	switch word, rest, _ := strings.Cut(stmt, " "); {
	case word == "SAVEPOINT", word == "RELEASE": // behind a function that is settled
		w.hold(stmt, nil)
		return nil
	case word == "ROLLBACK" && rest == "":
		w.held = w.held[:0]
	case word == "ROLLBACK":
		// The savepoint may be among what was held back. A statement behind it may fail:
		// all of that is undone anyway, and if the connection is gone the next line tells.
		_, _ = w.send(s)
	default:
		if _, err := w.send(s); err != nil {
			return err
		}
	}
	return w.on(s, func(c *pgx.Conn) error { return plain(s.life, c.PgConn(), stmt) })
}

// plain runs one statement without parameters. The answer must be for that
// statement: a COMMIT of a transaction that failed is answered by ROLLBACK, without
// an error.
func plain(ctx context.Context, c *pgconn.PgConn, stmt string) error {
	all, err := c.Exec(ctx, stmt).ReadAll()
	if err != nil {
		return err
	}
	want, _, _ := strings.Cut(stmt, " ")
	if len(all) != 1 || all[0].CommandTag.String() != want {
		return fmt.Errorf("%s was not carried out", want)
	}
	return nil
}

// wireQuerier is a writing transaction of PostgreSQL.
type wireQuerier struct{ connQuerier }

func (q wireQuerier) exec(_ context.Context, query string, args ...any) error {
	q.s.wire.hold(numbered(query), args)
	if len(q.s.wire.held) < maxHeld {
		return nil
	}
	_, err := q.s.wire.send(q.s)
	return err
}

func (q wireQuerier) changed(_ context.Context, query string, args ...any) (int64, error) {
	q.s.wire.hold(numbered(query), args)
	return q.s.wire.send(q.s)
}

func (q wireQuerier) rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if _, err := q.s.wire.send(q.s); err != nil {
		return nil, err
	}
	return q.connQuerier.rows(ctx, query, args...)
}

func (q wireQuerier) row(ctx context.Context, query string, args ...any) scanner {
	if _, err := q.s.wire.send(q.s); err != nil {
		return noRow{err}
	}
	return q.connQuerier.row(ctx, query, args...)
}
