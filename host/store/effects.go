package store

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Approval is an approval's row: the public part, and what is sealed.
type Approval struct {
	host.Approval
	BoundMAC   []byte
	VerdictMAC []byte // nil before a person's yes
	Detail     []byte // sealed with the run's key
	RunKey     []byte // wrapped; nil for an erased run
}

const approvalColumns = `approval_id, run_id, call_no, skill, operation, effect, requester, bound_mac, state, why, ceiling_micro, detail_enc, created_at, expires_at, decided_by, decided_at, verdict_mac,
	(SELECT r.key_enc FROM run r WHERE r.ws = approval.ws AND r.run_id = approval.run_id)`

func scanApproval(scan func(...any) error) (Approval, error) {
	var a Approval
	var created, expires, decided int64
	err := scan(&a.ID, &a.Run, &a.Call, &a.Skill, &a.Operation, &a.Effect, &a.Requester, &a.BoundMAC, &a.State, &a.Why, &a.Ceiling, &a.Detail, &created, &expires, &a.DecidedBy, &decided, &a.VerdictMAC, &a.RunKey)
	a.CreatedAt, a.ExpiresAt, a.DecidedAt = fromMilli(created), fromMilli(expires), fromMilli(decided)
	return a, err
}

// InsertApproval stores a pending approval.
func (tx *Tx) InsertApproval(a Approval) error {
	return tx.exec(`INSERT INTO approval (ws, approval_id, run_id, call_no, skill, operation, effect, requester, bound_mac, state, why, ceiling_micro, detail_enc, created_at, expires_at)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		tx.ws, a.ID, a.Run, a.Call, a.Skill, a.Operation, a.Effect, a.Requester, a.BoundMAC, a.State, a.Why, a.Ceiling, a.Detail, milli(a.CreatedAt), milli(a.ExpiresAt))
}

// Approval returns one approval.
func (tx *Tx) Approval(id host.ApprovalID) (Approval, error) {
	a, err := scanApproval(tx.row(`SELECT `+approvalColumns+` FROM approval WHERE ws = ? AND approval_id = ?`, tx.ws, id).Scan)
	return a, absent(err)
}

// Approvals lists approvals, oldest first; an empty state lists all.
func (tx *Tx) Approvals(state host.ApprovalState) (list []Approval, err error) {
	err = tx.each(func(r *sql.Rows) error {
		a, err := scanApproval(r.Scan)
		list = append(list, a)
		return err
	}, `SELECT `+approvalColumns+` FROM approval WHERE ws = ? AND (? = '' OR state = ?) ORDER BY created_at, approval_id LIMIT 1000`, tx.ws, state, state)
	return list, err
}

// Questions lists when the newest questions of a person's runs were asked, at most
// limit: those after since, and those that are still open.
func (tx *Tx) Questions(requester host.PrincipalID, since time.Time, limit int) (list []time.Time, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var at int64
		err := r.Scan(&at)
		list = append(list, fromMilli(at))
		return err
	}, `SELECT created_at FROM approval WHERE ws = ? AND requester = ? AND (created_at > ? OR state = 'pending') ORDER BY created_at DESC LIMIT ?`,
		tx.ws, requester, since.UnixMilli(), limit)
	return list, err
}

// MoveApproval changes the state of an approval that is still in from and, where
// expiry is set, has not expired by now. Otherwise it is host.ErrConflict: this one
// conditional update is what makes an approval single-use.
func (tx *Tx) MoveApproval(id host.ApprovalID, from, to host.ApprovalState, by string, now time.Time, beforeExpiry bool) error {
	return tx.change(`UPDATE approval SET state = ?,
			decided_by = CASE WHEN ? = '' THEN decided_by ELSE ? END, decided_at = CASE WHEN ? = '' THEN decided_at ELSE ? END
		WHERE ws = ? AND approval_id = ? AND state = ? AND (NOT ? OR expires_at > ?)`,
		to, by, by, by, now.UnixMilli(), tx.ws, id, from, beforeExpiry, now.UnixMilli())
}

// SetVerdictMAC stores the proof of a person's yes.
func (tx *Tx) SetVerdictMAC(id host.ApprovalID, mac []byte) error {
	return tx.change(`UPDATE approval SET verdict_mac = ? WHERE ws = ? AND approval_id = ?`, mac, tx.ws, id)
}

// Expired lists runs whose approval has run out, marks those expired and gives back
// what they held.
func (tx *Tx) Expired(now time.Time) (runs []host.RunID, err error) {
	return tx.endQuestions(`UPDATE approval SET state = 'expired' WHERE ws = ? AND state IN ('pending','approved') AND expires_at <= ? RETURNING run_id, call_no`, tx.ws, now.UnixMilli())
}

// VoidAll voids every open approval of the workspace, gives back what they held and
// returns the runs that asked.
func (tx *Tx) VoidAll() ([]host.RunID, error) {
	return tx.endQuestions(`UPDATE approval SET state = 'void' WHERE ws = ? AND state IN ('pending','approved') RETURNING run_id, call_no`, tx.ws)
}

// VoidApproval voids what a call asked for, if that is still open, and gives back
// what it held.
func (tx *Tx) VoidApproval(run host.RunID, call uint32) error {
	_, err := tx.endQuestions(`UPDATE approval SET state = 'void' WHERE ws = ? AND run_id = ? AND call_no = ? AND state IN ('pending','approved') RETURNING run_id, call_no`, tx.ws, run, call)
	return errors.Join(err, tx.ReleaseHold(run, call))
}

// endQuestions runs a statement that ends approvals and returns their runs and calls.
func (tx *Tx) endQuestions(query string, args ...any) (runs []host.RunID, err error) {
	var calls []uint32
	err = tx.each(func(r *sql.Rows) error {
		var id host.RunID
		var call uint32
		if err := r.Scan(&id, &call); err != nil {
			return err
		}
		runs, calls = append(runs, id), append(calls, call)
		return nil
	}, query, args...)
	for i, id := range runs {
		if err == nil {
			err = tx.ReleaseHold(id, calls[i])
		}
	}
	return runs, err
}

// VoidApprovals voids what a run that ended had asked for.
func (tx *Tx) VoidApprovals(run host.RunID) error {
	return tx.exec(`UPDATE approval SET state = 'void' WHERE ws = ? AND run_id = ? AND state IN ('pending','approved')`, tx.ws, run)
}

// Reject counts one more no for the same skill, operation and destination.
func (tx *Tx) Reject(skill, operation string, destination []byte) error {
	return tx.exec(`INSERT INTO rejection (ws, skill, operation, destination_mac, count) VALUES (?,?,?,?,1)
		ON CONFLICT (ws, skill, operation, destination_mac) DO UPDATE SET count = rejection.count + 1`, tx.ws, skill, operation, destination)
}

// Forgive forgets the noes, after a yes.
func (tx *Tx) Forgive(skill, operation string, destination []byte) error {
	return tx.exec(`DELETE FROM rejection WHERE ws = ? AND skill = ? AND operation = ? AND destination_mac = ?`, tx.ws, skill, operation, destination)
}

// Rejections returns how often in a row people said no.
func (tx *Tx) Rejections(skill, operation string, destination []byte) (n int, err error) {
	err = tx.row(`SELECT count FROM rejection WHERE ws = ? AND skill = ? AND operation = ? AND destination_mac = ?`, tx.ws, skill, operation, destination).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, absent(err)
}

// Total is a sum of the ledger.
type Total struct {
	Reserved, Settled abi.MicroUSD
	Warned            int // the highest percentage that was warned of
}

// RunScope names the total of a run: its own calls, what is carved out for children,
// and what ended children spent.
func RunScope(run host.RunID) string { return "run:" + string(run) }

// PeriodScope names the total of a month, YYYY-MM in UTC.
func PeriodScope(period string) string { return "period:" + period }

// SpendTotal returns one sum.
func (tx *Tx) SpendTotal(scope string) (Total, error) {
	t, err := tx.SpendTotals(scope)
	return t[0], err
}

// SpendTotals returns the sums of scopes, in their order; a scope without entries is
// zero.
func (tx *Tx) SpendTotals(scopes ...string) ([]Total, error) {
	totals := make([]Total, len(scopes))
	args := []any{tx.ws}
	for _, s := range scopes {
		args = append(args, s)
	}
	err := tx.each(func(r *sql.Rows) error {
		var scope string
		var t Total
		if err := r.Scan(&scope, &t.Reserved, &t.Settled, &t.Warned); err != nil {
			return err
		}
		totals[slices.Index(scopes, scope)] = t
		return nil
	}, `SELECT scope, reserved_micro, settled_micro, warned FROM spend_total WHERE ws = ? AND scope IN `+places(1, len(scopes)), args...)
	return totals, err
}

// Reserve adds an open reservation to the ledger and its totals.
func (tx *Tx) Reserve(run, root host.RunID, call uint32, attempt int, period string, amount abi.MicroUSD) error {
	if err := tx.exec(`INSERT INTO spend (ws, run_id, call_no, attempt, root_run, period, reserved_micro) VALUES (?,?,?,?,?,?,?)`,
		tx.ws, run, call, attempt, root, period, amount); err != nil {
		return fmt.Errorf("store: spend: %w", err)
	}
	if err := tx.exec(`INSERT INTO spend_total (ws, scope, reserved_micro, settled_micro) VALUES (?,?,?,0), (?,?,?,0)
		ON CONFLICT (ws, scope) DO UPDATE SET reserved_micro = spend_total.reserved_micro + excluded.reserved_micro`,
		tx.ws, PeriodScope(period), amount, tx.ws, RunScope(run), amount); err != nil {
		return fmt.Errorf("store: spend: %w", err)
	}
	return nil
}

// Carve puts amount of a parent's budget aside for a child, once for each child. The
// month is not touched: there only calls count.
func (tx *Tx) Carve(parent, child host.RunID, amount abi.MicroUSD) error {
	if err := tx.exec(`INSERT INTO carve (ws, child_run, parent_run, amount_micro) VALUES (?,?,?,?)`, tx.ws, child, parent, amount); err != nil {
		return fmt.Errorf("store: carve: %w", err)
	}
	if err := tx.exec(`INSERT INTO spend_total (ws, scope, reserved_micro, settled_micro) VALUES (?,?,?,0)
		ON CONFLICT (ws, scope) DO UPDATE SET reserved_micro = spend_total.reserved_micro + excluded.reserved_micro`, tx.ws, RunScope(parent), amount); err != nil {
		return fmt.Errorf("store: carve: %w", err)
	}
	return nil
}

// GiveBack ends a carve: what the child spent is spent by the parent, the rest is free
// again. A child that still has open reservations or children, or has given back already, is
// host.ErrConflict.
func (tx *Tx) GiveBack(child host.RunID) (spent abi.MicroUSD, err error) {
	t, err := tx.SpendTotal(RunScope(child))
	if err != nil {
		return 0, err
	}
	var open int // counted, since one may be of nothing
	if err := tx.row(`SELECT (SELECT COUNT(*) FROM spend WHERE ws = ? AND run_id = ? AND settled_micro IS NULL) +
		(SELECT COUNT(*) FROM carve WHERE ws = ? AND parent_run = ? AND spent_micro IS NULL)`, tx.ws, child, tx.ws, child).Scan(&open); err != nil {
		return 0, fmt.Errorf("store: carve: %w", err)
	}
	if open > 0 {
		return 0, host.ErrConflict
	}
	var parent host.RunID
	var amount abi.MicroUSD
	err = tx.row(`UPDATE carve SET spent_micro = ? WHERE ws = ? AND child_run = ? AND spent_micro IS NULL RETURNING parent_run, amount_micro`,
		t.Settled, tx.ws, child).Scan(&parent, &amount)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, host.ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("store: carve: %w", err)
	}
	return t.Settled, tx.change(`UPDATE spend_total SET reserved_micro = reserved_micro - ?, settled_micro = settled_micro + ? WHERE ws = ? AND scope = ?`,
		amount, t.Settled, tx.ws, RunScope(parent))
}

// Settle turns an open reservation into money spent. A reservation that is absent
// or settled already is host.ErrConflict.
func (tx *Tx) Settle(run host.RunID, call uint32, attempt int, cost abi.MicroUSD) error {
	var period string
	var reserved abi.MicroUSD
	err := tx.row(`UPDATE spend SET settled_micro = ? WHERE ws = ? AND run_id = ? AND call_no = ? AND attempt = ? AND settled_micro IS NULL
		RETURNING period, reserved_micro`, cost, tx.ws, run, call, attempt).Scan(&period, &reserved)
	if errors.Is(err, sql.ErrNoRows) {
		return host.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("store: spend: %w", err)
	}
	return tx.changeRows(2, `UPDATE spend_total SET reserved_micro = reserved_micro - ?, settled_micro = settled_micro + ? WHERE ws = ? AND scope IN (?,?)`,
		reserved, cost, tx.ws, PeriodScope(period), RunScope(run))
}

// hold is the attempt number of a reservation that a question to a person holds.
const hold = 0

// Hold reserves what an asked call can cost while a person thinks.
func (tx *Tx) Hold(run, root host.RunID, call uint32, period string, amount abi.MicroUSD) error {
	return tx.Reserve(run, root, call, hold, period, amount)
}

// UseHold turns what a question held into the reservation of an attempt. It stays in
// the month that it was reserved in, which is returned. Without one it is
// host.ErrNotFound.
func (tx *Tx) UseHold(run host.RunID, call uint32, attempt int) (amount abi.MicroUSD, period string, err error) {
	err = tx.row(`UPDATE spend SET attempt = ? WHERE ws = ? AND run_id = ? AND call_no = ? AND attempt = ? AND settled_micro IS NULL RETURNING reserved_micro, period`,
		attempt, tx.ws, run, call, hold).Scan(&amount, &period)
	return amount, period, absent(err)
}

// ReleaseHold gives back what a question held, and leaves no row: the call may ask
// again. One that holds nothing is no error.
func (tx *Tx) ReleaseHold(run host.RunID, call uint32) error {
	var period string
	var amount abi.MicroUSD
	err := tx.row(`DELETE FROM spend WHERE ws = ? AND run_id = ? AND call_no = ? AND attempt = ? AND settled_micro IS NULL RETURNING period, reserved_micro`,
		tx.ws, run, call, hold).Scan(&period, &amount)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("store: spend: %w", err)
	}
	return tx.changeRows(2, `UPDATE spend_total SET reserved_micro = reserved_micro - ? WHERE ws = ? AND scope IN (?,?)`,
		amount, tx.ws, PeriodScope(period), RunScope(run))
}

// Reservation is that of an attempt that is not settled.
type Reservation struct {
	Call    uint32
	Attempt int
	Period  string
	Amount  abi.MicroUSD
}

// OpenReservations lists the attempts of a call that are not settled. What a question
// holds is none of an attempt.
func (tx *Tx) OpenReservations(run host.RunID, call uint32) (list []Reservation, err error) {
	err = tx.each(func(r *sql.Rows) error {
		o := Reservation{Call: call}
		if err := r.Scan(&o.Attempt, &o.Period, &o.Amount); err != nil {
			return err
		}
		list = append(list, o)
		return nil
	}, `SELECT attempt, period, reserved_micro FROM spend WHERE ws = ? AND run_id = ? AND call_no = ? AND attempt <> ? AND settled_micro IS NULL ORDER BY attempt`, tx.ws, run, call, hold)
	return list, err
}

// OpenAttempts lists the attempts of a run's calls that are not settled.
func (tx *Tx) OpenAttempts(run host.RunID) (list []Reservation, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var o Reservation
		if err := r.Scan(&o.Call, &o.Attempt, &o.Period, &o.Amount); err != nil {
			return err
		}
		list = append(list, o)
		return nil
	}, `SELECT call_no, attempt, period, reserved_micro FROM spend WHERE ws = ? AND run_id = ? AND attempt <> ? AND settled_micro IS NULL ORDER BY call_no, attempt`, tx.ws, run, hold)
	return list, err
}

// SettleRun closes the reservations that a run leaves open when it ends. What a
// question held is given back; the rest is of attempts whose outcome was lost, so it
// stays spent in full.
func (tx *Tx) SettleRun(run host.RunID) error {
	type open struct {
		call    uint32
		attempt int
		amount  abi.MicroUSD
	}
	var list []open
	err := tx.each(func(r *sql.Rows) error {
		var o open
		if err := r.Scan(&o.call, &o.attempt, &o.amount); err != nil {
			return err
		}
		list = append(list, o)
		return nil
	}, `SELECT call_no, attempt, reserved_micro FROM spend WHERE ws = ? AND run_id = ? AND settled_micro IS NULL`, tx.ws, run)
	for _, o := range list {
		if o.attempt == hold {
			o.amount = 0
		}
		if err == nil {
			err = tx.Settle(run, o.call, o.attempt, o.amount)
		}
	}
	return err
}

// SetWarned remembers the highest percentage that was warned of.
func (tx *Tx) SetWarned(scope string, percent int) error {
	return tx.exec(`UPDATE spend_total SET warned = ? WHERE ws = ? AND scope = ? AND warned < ?`, percent, tx.ws, scope, percent)
}

// KV is one value of a skill's memory.
type KV struct {
	KeyMAC, Key, Value, Label []byte // sealed, but for the MAC
}

// KV returns a value.
func (tx *Tx) KV(ns string, keyMAC []byte) (KV, error) {
	v := KV{KeyMAC: keyMAC}
	err := tx.row(`SELECT key_enc, value_enc, label_enc FROM kv WHERE ws = ? AND namespace = ? AND key_mac = ?`, tx.ws, ns, keyMAC).Scan(&v.Key, &v.Value, &v.Label)
	return v, absent(err)
}

// KVList returns every value of a namespace.
func (tx *Tx) KVList(ns string) (list []KV, err error) {
	err = tx.each(func(r *sql.Rows) error {
		var v KV
		if err := r.Scan(&v.KeyMAC, &v.Key, &v.Value, &v.Label); err != nil {
			return err
		}
		list = append(list, v)
		return nil
	}, `SELECT key_mac, key_enc, value_enc, label_enc FROM kv WHERE ws = ? AND namespace = ?`, tx.ws, ns)
	return list, err
}

// PutKV stores a value; DeleteKV with the same key forgets it.
func (tx *Tx) PutKV(ns string, v KV) error {
	return tx.exec(`INSERT INTO kv (ws, namespace, key_mac, key_enc, value_enc, label_enc) VALUES (?,?,?,?,?,?)
		ON CONFLICT (ws, namespace, key_mac) DO UPDATE SET value_enc = excluded.value_enc, label_enc = excluded.label_enc, key_enc = excluded.key_enc`,
		tx.ws, ns, v.KeyMAC, v.Key, v.Value, v.Label)
}

// DeleteKV removes a value; one that is absent is no error.
func (tx *Tx) DeleteKV(ns string, keyMAC []byte) error {
	return tx.exec(`DELETE FROM kv WHERE ws = ? AND namespace = ? AND key_mac = ?`, tx.ws, ns, keyMAC)
}

// KVNamespace returns the sealed high-water label of a namespace and the bytes that
// it holds, nil and 0 if it was never used.
func (tx *Tx) KVNamespace(ns string) (label []byte, size int64, err error) {
	err = tx.row(`SELECT label_enc FROM kv_namespace WHERE ws = ? AND namespace = ?`, tx.ws, ns).Scan(&label)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, nil
	}
	if err == nil {
		err = tx.row(`SELECT COALESCE(SUM(LENGTH(value_enc) + LENGTH(key_enc)), 0) FROM kv WHERE ws = ? AND namespace = ?`, tx.ws, ns).Scan(&size)
	}
	return label, size, absent(err)
}

// PutKVNamespace stores the high-water label.
func (tx *Tx) PutKVNamespace(ns string, label []byte) error {
	return tx.exec(`INSERT INTO kv_namespace (ws, namespace, label_enc) VALUES (?,?,?)
		ON CONFLICT (ws, namespace) DO UPDATE SET label_enc = excluded.label_enc`, tx.ws, ns, label)
}
