package approval_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/store"
)

// errUndo ends a transaction that is only a try.
var errUndo = errors.New("undo")

// try takes the approval and undoes it.
func (d *desk) try(q approval.Question, again bool) (c approval.Consent, err error) {
	d.t.Helper()
	if e := d.store.Write(d.t.Context(), func(tx *store.Tx) error {
		c, _, err = approval.Take(tx, d.keys, d.asked, q, again, now)
		return errUndo
	}); !errors.Is(e, errUndo) {
		d.t.Fatal(e)
	}
	return c, err
}

// Law 1, over the whole row: whoever flips one bit of any column gets nothing, and the
// untouched row passes. Columns that are added later are tried, too.
func TestAFlippedBitInAnyStoredColumnIsRefused(t *testing.T) {
	d := newDesk(t)
	a := d.ask()
	if _, err := d.answer(a, true, now); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(d.dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	exec := func(q string, args ...any) {
		t.Helper()
		if _, err := db.Exec(q, args...); err != nil {
			t.Fatal(q, err)
		}
	}
	exec(`PRAGMA busy_timeout = 5000`)
	type column struct{ name, kind string }
	var cols []column
	rows, err := db.Query(`SELECT name, type FROM pragma_table_info('approval')`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var c column
		if err := rows.Scan(&c.name, &c.kind); err != nil {
			t.Fatal(err)
		}
		cols = append(cols, c)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	exec(`CREATE TABLE kept AS SELECT * FROM approval`)
	flips := 0
	refused := func(what string, set string, arg any) {
		t.Helper()
		flips++
		exec(`UPDATE approval SET `+set, arg)
		for _, again := range []bool{false, true} {
			if c, err := d.try(question(), again); c != nil {
				t.Errorf("%s: %v, %v", what, c, err)
			}
		}
		exec(`DELETE FROM approval`)
		exec(`INSERT INTO approval SELECT * FROM kept`)
	}
	for _, c := range cols {
		if c.kind == "INTEGER" {
			for bit := range 63 {
				refused(fmt.Sprintf("%s, bit %d", c.name, bit), fmt.Sprintf(`%s = (%s | ?1) - (%s & ?1)`, c.name, c.name, c.name), int64(1)<<bit)
			}
			continue
		}
		var v []byte
		if err := db.QueryRow(`SELECT CAST(` + c.name + ` AS BLOB) FROM approval`).Scan(&v); err != nil {
			t.Fatal(err)
		}
		if len(v) == 0 {
			t.Errorf("%s is empty: nothing was tried", c.name)
		}
		for i := range v {
			flipped := append([]byte(nil), v...)
			flipped[i] ^= 1 << (i * 5 % 8)
			refused(fmt.Sprintf("%s, byte %d", c.name, i), fmt.Sprintf(`%s = CAST(? AS %s)`, c.name, c.kind), flipped)
		}
	}
	if c, err := d.try(question(), false); c == nil || err != nil {
		t.Errorf("the untouched twin was refused: %v", err)
	}
	t.Logf("%d columns, %d flips", len(cols), flips)
}

// Law 1, over what is to be done: every byte of the frozen action, every field of the
// envelope, the account, the destination, the readers, the ceiling.
func TestAFlippedBitInTheActionIsRefused(t *testing.T) {
	for name, frozen := range map[string]connectors.Frozen{
		"http": {HTTP: &connectors.HTTPRequest{
			Method: "POST", URL: "https://example.com/a", Header: []connectors.Header{{Name: "X-A", Value: "b"}}, Body: []byte("to whom\x00"),
			Credential: &connectors.Slot{Connection: "con_1", Header: "Authorization", Prefix: "Bearer "},
		}},
		"smtp":    {SMTP: &connectors.SMTPMessage{Server: "out", From: "a@example.com", To: []string{"b@example.com", "c@example.com"}, Data: []byte("Subject: x\r\n\r\nhello\r\n")}},
		"maildir": {Maildir: &connectors.Maildir{Folder: "in", Unique: "1.2.3", From: "a@example.com", To: []string{"b@example.com"}, Data: []byte("Subject: x\r\n\r\nhello\r\n")}},
		"read":    {FileRead: &connectors.FileRead{Folder: "docs", Path: "a/b.md", Max: 4096}},
		"list":    {FileList: &connectors.FileList{Folder: "docs", Path: "a", Max: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			ask := func() approval.Question {
				q := question()
				q.Plan.Frozen = frozen
				return q
			}
			freeze := func(q *approval.Question) error {
				var err error
				q.Digest, err = q.Plan.Digest()
				return err
			}
			q := ask()
			if err := freeze(&q); err != nil {
				t.Fatal(err)
			}
			var a host.Approval
			d.write(func(tx *store.Tx) (err error) { a, err = approval.Ask(tx, d.keys, q, now); return err })
			d.asked = a.ID
			if _, err := d.answer(a, true, now); err != nil {
				t.Fatal(err)
			}
			flips := 0
			refused := func(what string) {
				t.Helper()
				flips++
				if err := freeze(&q); err != nil {
					return // not even well formed
				}
				if c, err := d.try(q, false); c != nil || !errors.Is(err, approval.ErrBroken) {
					t.Errorf("%s: %v, %v", what, c, err)
				}
			}
			each(reflect.ValueOf(&q.Plan).Elem(), "plan", refused)
			if err := freeze(&q); err != nil {
				t.Fatal(err)
			}
			if c, err := d.try(q, false); c == nil || err != nil {
				t.Errorf("the untouched twin was refused: %v", err)
			}
			t.Logf("%d flips", flips)
		})
	}
}

// each flips one bit of every byte and number below v, calls fn, and flips it back.
// What bounds the attempt and not the effect is left out.
func each(v reflect.Value, path string, fn func(string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			each(v.Elem(), path, fn)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if n := v.Type().Field(i).Name; n != "Timeout" && n != "MaxAnswer" {
				each(v.Field(i), path+"."+n, fn)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			each(v.Index(i), fmt.Sprintf("%s[%d]", path, i), fn)
		}
	case reflect.String:
		s := v.String()
		for i := range s {
			b := []byte(s)
			b[i] ^= 1 << (i * 5 % 7)
			v.SetString(string(b))
			fn(fmt.Sprintf("%s, byte %d", path, i))
		}
		v.SetString(s)
	case reflect.Uint8:
		v.SetUint(v.Uint() ^ 1)
		fn(path)
		v.SetUint(v.Uint() ^ 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() ^ 1)
		fn(path)
		v.SetInt(v.Int() ^ 1)
	default:
		panic("what is a " + path + "?")
	}
}

// oneShot is the naive approval: one state, one thing at a time.
var oneShot = porcupine.Model{
	Init: func() any { return host.ApprovalPending },
	Step: func(state, input, output any) (bool, any) {
		s := state.(host.ApprovalState)
		switch input {
		case "yes", "no":
			if s != host.ApprovalPending {
				return output == false, s
			}
			if input == "yes" {
				return output == true, host.ApprovalApproved
			}
			return output == true, host.ApprovalRejected
		case "void":
			if s == host.ApprovalPending || s == host.ApprovalApproved {
				s = host.ApprovalVoid
			}
			return true, s
		}
		if s == host.ApprovalApproved { // take
			return output == true, host.ApprovalUsed
		}
		return output == false, s
	},
}

// Law 2: whatever people, runs and changes of the rules do at once could have happened
// one after the other, with one effect at most.
func TestAnApprovalIsLinearizable(t *testing.T) {
	d := newDesk(t)
	call := uint32(100)
	rapid.Check(t, func(rt *rapid.T) {
		call++
		q := question()
		q.Call = call
		var a host.Approval
		d.write(func(tx *store.Tx) (err error) { a, err = approval.Ask(tx, d.keys, q, now); return err })
		d.asked = a.ID
		plan := rapid.SliceOfN(rapid.SampledFrom([]string{"yes", "yes", "no", "take", "take", "take", "void"}), 2, 12).Draw(rt, "what happens")
		history := make([]porcupine.Operation, len(plan))
		var clock, effects atomic.Int64
		var start, wg sync.WaitGroup
		start.Add(1)
		for i, what := range plan {
			wg.Add(1)
			go func() {
				defer wg.Done()
				start.Wait()
				op := porcupine.Operation{ClientId: i, Input: what, Call: clock.Add(1), Output: true}
				switch what {
				case "take":
					c, _, err := d.take(q, false, now)
					if err != nil {
						t.Error(err)
					}
					if c != nil {
						effects.Add(1)
					}
					op.Output = c != nil
				case "void":
					if err := d.store.Write(context.Background(), func(tx *store.Tx) error { return tx.VoidApproval(q.Run.ID, call) }); err != nil {
						t.Error(err)
					}
				default:
					_, err := d.answer(a, what == "yes", now)
					if err != nil && !errors.Is(err, host.ErrConflict) {
						t.Error(err)
					}
					op.Output = err == nil
				}
				op.Return = clock.Add(1)
				history[i] = op
			}()
		}
		start.Done()
		wg.Wait()
		if effects.Load() > 1 || !porcupine.CheckOperations(oneShot, history) {
			rt.Fatalf("%d effects, no order explains %+v", effects.Load(), history)
		}
	})
}

// The model above can fail.
func TestTheApprovalsModelFindsASecondUse(t *testing.T) {
	h := []porcupine.Operation{
		{ClientId: 0, Input: "yes", Call: 1, Output: true, Return: 2},
		{ClientId: 1, Input: "take", Call: 3, Output: true, Return: 6},
		{ClientId: 2, Input: "take", Call: 4, Output: true, Return: 5},
	}
	if porcupine.CheckOperations(oneShot, h) {
		t.Error("two uses of one yes were found in order")
	}
	h[2].Output = false
	if !porcupine.CheckOperations(oneShot, h) {
		t.Error("one use was not")
	}
}
