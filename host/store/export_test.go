package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/getmonroe/monroe/host"
)

// Numbered is how PostgreSQL reads a statement.
var Numbered = numbered

// OpenWAL is Open with a write-ahead log, whatever OnNetwork says of the place: a
// test's file system is no network, though the kernel gives both the same name.
func OpenWAL(ctx context.Context, path string, ws host.Workspace) (*Store, error) {
	return OpenOn(ctx, path, ws, "test", time.Now(), "")
}

// Queries that must not look at every run, with the indexes that they go by.
var Queries = map[string][]string{
	costsOf:   {"INDEX run_costs (ws=? AND module_sha256=?)"},
	treeOf:    {"INDEX run_root (ws=? AND root_run=?)"},
	openBelow: {"INDEX run_parent (ws=? AND parent_run=? AND ended_at=?)"},
	due: {
		"INDEX run_state (ws=? AND state=?)", "INDEX run_wakes (ws=? AND wake_at>? AND wake_at<?)",
		"INDEX run_state (ws=? AND state=? AND wait_kind=?)", "INDEX approval_run (ws=? AND run_id=? AND state=?)",
		"INDEX run_parent (ws=? AND parent_run=? AND ended_at=?)",
	},
}

// Plan is how SQLite would answer a query.
func Plan(ctx context.Context, s *Store, query string) (plan string, err error) {
	rows, err := s.conn.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, slices.Repeat([]any{20}, strings.Count(query, "?"))...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			return "", err
		}
		plan += step + "\n"
	}
	return plan, rows.Err()
}

// Relax takes the sync of every commit away.
func Relax(ctx context.Context, s *Store) error {
	_, err := s.conn.ExecContext(ctx, "PRAGMA synchronous=NORMAL")
	return err
}
