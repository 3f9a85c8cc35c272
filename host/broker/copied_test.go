package broker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/approval"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/runner"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

// cell is one sealed value where it lies, and what production code says to another value
// in its place.
type cell struct {
	column string // table.column
	row    string
	value  []byte
	opens  func(keys *vault.Keyset, value []byte) error
}

// sealedColumns are those of the schema, as the database has it.
func sealedColumns(t *testing.T, dir string) (list []string) {
	t.Helper()
	query := `SELECT m.name || '.' || p.name FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table' AND p.name LIKE '%\_enc' ESCAPE '\'`
	if os.Getenv(storetest.Switch) != "" {
		query = `SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'monroe' AND column_name LIKE '%\_enc'`
	}
	rows, err := storetest.DB(t, dir).QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		list = append(list, name)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// twoRuns fills every sealed column in two rows at least.
func twoRuns(h *house) (cells []cell) {
	h.t.Helper()
	for i, skill := range []string{"triage", "other"} {
		if i > 0 {
			h.start(100)
		}
		h.s.Run.Skill = skill // whose memory it uses
		h.ok(1, request(abi.OpKVPut, `{"key":"a","value":1}`))
		h.ok(2, request(abi.OpKVPut, `{"key":"b","value":2}`))
		h.waits(3, use(abi.OpSend, "mail.send", fmt.Sprint("bob", i), 0), host.WaitApproval)
		cells = append(cells, h.runCells(h.run)...)
		a := h.approval(3)
		cells = append(cells, cell{"approval.detail_enc", string(a.ID), a.Detail, func(keys *vault.Keyset, b []byte) error {
			a := a
			a.Detail = b
			_, err := approval.Open(keys, &a)
			return err
		}})
	}
	// A third run reads the memories, whatever is put there.
	h.start(100)
	call := new(uint32)
	for _, ns := range []string{"triage", "other"} {
		cells = append(cells, h.memoryCells(ns, call)...)
	}
	return cells
}

// runCells are the sealed values of a run: what the workspace seals of it, by the slots
// that it uses, and the journal.
func (h *house) runCells(id host.RunID) (cells []cell) {
	h.t.Helper()
	var row store.Run
	var recs []store.Record
	h.read(func(tx *store.Tx) (err error) {
		if row, err = tx.Run(id); err != nil {
			return err
		}
		recs, err = tx.Records(id)
		return err
	})
	good, err := h.keys.OpenRunKey(id, row.Key)
	h.must(err)
	cells = append(cells, cell{"run.key_enc", string(id), row.Key, func(keys *vault.Keyset, b []byte) error {
		_, err := keys.OpenRunKey(id, b)
		return err
	}})
	for column, slot := range map[string]vault.Slot{
		"run.start_enc": runner.StartSlot(id), "run.label_enc": runner.LabelSlot(id),
		"run.result_enc": runner.ResultSlot(id), "run.result_label_enc": runner.ResultLabelSlot(id),
	} {
		sealed, err := good.Seal(slot, []byte("{}"))
		h.must(err)
		cells = append(cells, cell{column, string(id), sealed, func(keys *vault.Keyset, b []byte) error {
			key, err := keys.OpenRunKey(id, row.Key)
			if err != nil {
				return err
			}
			_, err = key.Open(slot, b)
			return err
		}})
		next := slot
		next.Version++
		if _, err := good.Open(next, sealed); !errors.Is(err, vault.ErrOpen) {
			h.t.Errorf("%s opens as another version: %v", column, err)
		}
	}
	// open loads the journal with one value in another's place, and a chain that fits it, as
	// somebody with the database could make it.
	open := func(keys *vault.Keyset, change func([]store.Record)) error {
		row, recs := row, slices.Clone(recs)
		change(recs)
		for i, head := range journal.Heads(&row, recs) {
			recs[i].Chain, row.Chain = head, head
		}
		key, err := keys.OpenRunKey(id, row.Key)
		if err == nil {
			_, err = journal.Open(&row, key, recs)
		}
		return err
	}
	newer := new(journal.NewerError) // nothing of it is opened: only a newer binary could
	if err := open(h.keys, func(recs []store.Record) { recs[0].Version++ }); !errors.As(err, &newer) {
		h.t.Errorf("a record opens as a later version: %v", err)
	}
	if err := open(h.keys, func(recs []store.Record) { recs[0].Version-- }); !errors.Is(err, journal.ErrCorrupt) {
		h.t.Errorf("a record opens as an earlier version: %v", err)
	}
	for i := range recs {
		at := fmt.Sprintf("%s/%d", id, recs[i].Seq)
		cells = append(cells,
			cell{"journal.body_enc", at, recs[i].Body, func(keys *vault.Keyset, b []byte) error {
				return open(keys, func(recs []store.Record) { recs[i].Body = b })
			}},
			cell{"journal.label_enc", at, recs[i].Label, func(keys *vault.Keyset, b []byte) error {
				return open(keys, func(recs []store.Record) { recs[i].Label = b })
			}})
	}
	return cells
}

// memoryCells are the sealed values of a skill's memory. They are read through the door.
func (h *house) memoryCells(ns string, call *uint32) (cells []cell) {
	h.t.Helper()
	ask := func(keys *vault.Keyset, raw []byte) error {
		c := h.door.Config
		c.Keys = keys
		*call++
		h.s.Run.Skill = ns
		r, err := broker.New(c).Do(h.t.Context(), h.s, *call, raw)
		if err != nil {
			return err
		}
		reply, err := abi.DecodeReply(r.Bytes)
		if err == nil && reply.Error != nil {
			err = reply.Error
		}
		return err
	}
	var list []store.KV
	var label []byte
	h.read(func(tx *store.Tx) (err error) {
		if list, err = tx.KVList(ns); err != nil {
			return err
		}
		label, _, err = tx.KVNamespace(ns)
		return err
	})
	for i, v := range list {
		// Which key it is, is known by its MAC alone.
		name := "a"
		if mac, err := h.keys.MAC("kv/"+ns, []byte("b")); err == nil && bytes.Equal(mac, v.KeyMAC) {
			name = "b"
		}
		for _, part := range []struct {
			column, args string
			op           abi.Op
			of           func(*store.KV) *[]byte
		}{
			{"kv.key_enc", `{}`, abi.OpKVList, func(v *store.KV) *[]byte { return &v.Key }},
			{"kv.value_enc", fmt.Sprintf(`{"key":%q}`, name), abi.OpKVGet, func(v *store.KV) *[]byte { return &v.Value }},
			{"kv.label_enc", fmt.Sprintf(`{"key":%q}`, name), abi.OpKVGet, func(v *store.KV) *[]byte { return &v.Label }},
		} {
			cells = append(cells, cell{part.column, fmt.Sprint(ns, "/", i), *part.of(&v), func(keys *vault.Keyset, b []byte) error {
				changed := v
				*part.of(&changed) = b
				h.write(func(tx *store.Tx) error { return tx.PutKV(ns, changed) })
				defer h.write(func(tx *store.Tx) error { return tx.PutKV(ns, v) })
				return ask(keys, request(part.op, part.args))
			}})
		}
	}
	return append(cells, cell{"kv_namespace.label_enc", ns, label, func(keys *vault.Keyset, b []byte) error {
		h.write(func(tx *store.Tx) error { return tx.PutKVNamespace(ns, b) })
		defer h.write(func(tx *store.Tx) error { return tx.PutKVNamespace(ns, label) })
		return ask(keys, request(abi.OpKVGet, `{"key":"absent"}`))
	}})
}

// Every sealed value of the schema is copied to the place of every other one: to another
// row, another column, another table. None opens there, and none opens in another workspace
// that has the very same keys. A sealed column that this test does not know fails it.
func TestACopiedValueOpensNowhereElse(t *testing.T) {
	h := newHouse(t)
	cells := twoRuns(h)
	rows := map[string]int{}
	for _, c := range cells {
		rows[c.column]++
	}
	columns := sealedColumns(t, h.path)
	for _, column := range columns {
		if rows[column] < 2 {
			t.Errorf("the sealed column %s has %d values here: say in this test who reads it", column, rows[column])
		}
		delete(rows, column)
	}
	if len(rows) != 0 || len(columns) < 12 {
		t.Fatalf("the schema has %v, and not %v", columns, rows)
	}

	text, err := os.ReadFile(filepath.Join(h.path, "keys"))
	h.must(err)
	moved := filepath.Join(t.TempDir(), "keys")
	h.must(os.WriteFile(moved, bytes.Replace(text, []byte(`"workspace":"acme"`), []byte(`"workspace":"evil"`), 1), 0o600))
	evil, err := vault.OpenKeyset(moved, "evil")
	h.must(err)

	copies := 0
	for i, to := range cells {
		if err := to.opens(h.keys, to.value); err != nil {
			t.Fatalf("%s of %s does not open where it was sealed for: %v", to.column, to.row, err)
		}
		if err := to.opens(evil, to.value); err == nil {
			t.Errorf("%s of %s opens in another workspace", to.column, to.row)
		}
		for k, from := range cells {
			if i == k {
				continue
			}
			copies++
			if err := to.opens(h.keys, from.value); err == nil {
				t.Errorf("%s of %s opens as %s of %s", from.column, from.row, to.column, to.row)
			}
		}
	}
	t.Logf("%d values, %d copies", len(cells), copies)
}

// A refusal of a changed memory says nothing of where it lies.
func TestAChangedMemoryIsRefusedWithoutTellingWhy(t *testing.T) {
	h := newHouse(t)
	h.ok(1, request(abi.OpKVPut, `{"key":"a","value":1}`))
	h.write(func(tx *store.Tx) error {
		list, err := tx.KVList("triage")
		if err != nil {
			return err
		}
		list[0].Value[len(list[0].Value)-1] ^= 1
		return tx.PutKV("triage", list[0])
	})
	d := h.refused(2, request(abi.OpKVGet, `{"key":"a"}`), abi.Internal)
	if b, _ := json.Marshal(d); strings.Contains(string(b), "vault") || strings.Contains(string(b), "kv.") {
		t.Errorf("%s", b)
	}
}
