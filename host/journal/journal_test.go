package journal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/store/storetest"
	"github.com/getmonroe/monroe/host/vault"
)

var now = time.Date(2026, 3, 5, 12, 0, 0, 123456789, time.UTC)

// fixture is one run with a journal of every kind, as the store gives it back.
type fixture struct {
	dir   string
	store *store.Store
	keys  *vault.Keyset
	key   *vault.RunKey
	row   store.Run
	recs  []store.Record
}

func newRun(t testing.TB, f *fixture, id host.RunID) (store.Run, *vault.RunKey) {
	t.Helper()
	key, wrapped, err := f.keys.NewRunKey(id)
	if err != nil {
		t.Fatal(err)
	}
	who := host.Principal{ID: "prin_1", Name: "Ann", Role: host.RoleOwner}
	r := store.Run{
		Run: host.Run{ID: id, Workspace: "acme", Skill: "triage", Root: id, OnBehalfOf: who, Module: abi.Digest{1}, Image: abi.Digest{2}, State: host.StateRunning, Budget: 10, CreatedAt: now},
		Key: wrapped, Engine: "engine", Start: []byte("start"), StartLabel: []byte("label"),
	}
	r.Chain = journal.Genesis(&r)
	if err := f.store.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(tx.PutPrincipal(who, now), tx.InsertRun(r)) }); err != nil {
		t.Fatal(err)
	}
	r.NextSeq = 1
	return r, key
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{}
	dir := t.TempDir()
	f.dir = dir
	var err error
	if f.store, err = storetest.Open(t, dir, "acme", now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.store.Close() })
	if f.keys, err = vault.OpenKeyset(filepath.Join(dir, "keys"), "acme"); err != nil {
		t.Fatal(err)
	}
	f.row, f.key = newRun(t, f, "run_1")
	log, err := journal.Open(&f.row, f.key, nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := json.Marshal(connectors.Plan{Resources: []string{"x:a"}, Destination: "a", Audience: []string{"host:a"}, Ceiling: 3})
	if err != nil {
		t.Fatal(err)
	}
	held := label.Set{Integrity: label.Internal, Readers: label.Only("workspace"), Secret: true}
	for _, r := range []struct {
		kind journal.Kind
		call uint32
		body journal.Body
	}{
		{journal.Value, 1, journal.Body{Op: abi.OpTimeNow, Fingerprint: abi.Digest{1}, Reply: []byte(`{"ok":{}}`)}},
		{journal.Call, 2, journal.Body{Op: abi.OpSend, Fingerprint: abi.Digest{2}, Operation: "mail.send", Plan: plan, Key: "key"}},
		{journal.Gate, 2, journal.Body{Approval: "appr_1"}},
		{journal.GateResult, 2, journal.Body{Verdict: "approved"}},
		{journal.Attempt, 2, journal.Body{Attempt: 1, Key: "key"}},
		{journal.Result, 2, journal.Body{Reply: []byte(`{"ok":{"sent":true}}`), Cost: 2}},
		{journal.Call, 3, journal.Body{Op: abi.OpSend, Fingerprint: abi.Digest{3}, Operation: "mail.send", Plan: plan}},
	} {
		if err := log.Add(r.kind, r.call, now.Add(time.Duration(r.call)), r.body, held); err != nil {
			t.Fatal(err)
		}
	}
	err = f.store.Write(t.Context(), log.Stage)
	log.Staged(err)
	if n, bytes := log.Pending(); err != nil || n != 0 || bytes != 0 {
		t.Fatal(err, n, bytes)
	}
	f.load(t)
	return f
}

func (f *fixture) load(t testing.TB) {
	t.Helper()
	if err := f.store.Read(t.Context(), func(tx *store.Tx) (err error) {
		if f.row, err = tx.Run("run_1"); err != nil {
			return err
		}
		f.recs, err = tx.Records("run_1")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// copied gives records that can be changed without harm.
func (f *fixture) copied() (store.Run, []store.Record) {
	recs := slices.Clone(f.recs)
	for i := range recs {
		recs[i].Body, recs[i].Label = slices.Clone(recs[i].Body), slices.Clone(recs[i].Label)
	}
	return f.row, recs
}

func (f *fixture) corrupt(t *testing.T, what string, row store.Run, recs []store.Record) {
	t.Helper()
	if _, err := journal.Open(&row, f.key, recs); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
	}
}

// unchained wants the chain alone to find it, without any key.
func (f *fixture) unchained(t *testing.T, what string, row store.Run, recs []store.Record) {
	t.Helper()
	if err := journal.VerifyChain(&row, recs); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
	}
	f.corrupt(t, what, row, recs)
}

// Law 1.
func TestWhatWasAnsweredOnceIsAnsweredAgain(t *testing.T) {
	f := newFixture(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	e, err := log.Recall(2, abi.Digest{2})
	if err != nil || e == nil || e.Answer == nil {
		t.Fatal(e, err)
	}
	if string(e.Answer.Reply) != `{"ok":{"sent":true}}` || !e.Answer.At.Equal(now.Add(2)) || !e.Answer.Label.Secret || e.Answer.Cost != 2 {
		t.Errorf("%+v", e.Answer)
	}
	if !e.Planned || e.Plan.Ceiling != 3 || e.Plan.Resources[0] != "x:a" || e.Approval != "appr_1" || e.Gated || e.Attempts != 1 || e.Key != "key" {
		t.Errorf("%+v", e)
	}
	if got := log.Answered(); len(got) != 2 || len(log.Entries()) != 3 {
		t.Errorf("%d answered", len(got))
	}
	if e, err := log.Recall(3, abi.Digest{3}); err != nil || e.Answer != nil || !e.Planned {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := log.Recall(4, abi.Digest{4}); err != nil || e != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// Law 2.
func TestARunThatAsksSomethingElseHasDiverged(t *testing.T) {
	f := newFixture(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	for call, fp := range map[uint32]abi.Digest{0: {1}, 1: {2}, 2: {}, 3: {2}, 5: {5}, 1 << 31: {}} {
		if e, err := log.Recall(call, fp); !errors.Is(err, journal.ErrDiverged) || e != nil {
			t.Errorf("call %d: %+v, %v", call, e, err)
		}
	}
}

// Law 3: every byte of every stored field, and the order.
func TestAFlippedByteIsFound(t *testing.T) {
	f := newFixture(t)
	if _, err := journal.Open(&f.row, f.key, f.recs); err != nil {
		t.Fatal(err)
	}
	flips := 0
	for i := range f.recs {
		for name, field := range map[string]func(*store.Record) []byte{
			"body": func(r *store.Record) []byte { return r.Body }, "label": func(r *store.Record) []byte { return r.Label },
			"chain": func(r *store.Record) []byte { return r.Chain[:] },
		} {
			for j := range field(&f.recs[i]) {
				row, recs := f.copied()
				field(&recs[i])[j] ^= 1 << (j % 8)
				f.unchained(t, name, row, recs)
				flips++
			}
		}
		for name, change := range map[string]func(*store.Record){
			"kind": func(r *store.Record) { r.Kind = "END" }, "call": func(r *store.Record) { r.Call++ }, "version": func(r *store.Record) { r.Version++ },
			"time": func(r *store.Record) { r.Time = r.Time.Add(1) }, "seq": func(r *store.Record) { r.Seq++ },
			"longer body": func(r *store.Record) { r.Body = append(r.Body, 0) }, "empty label": func(r *store.Record) { r.Label = nil },
		} {
			row, recs := f.copied()
			change(&recs[i])
			f.unchained(t, name, row, recs)
		}
	}
	for name, change := range map[string]func(*store.Run){
		"chain": func(r *store.Run) { r.Chain[0] ^= 1 }, "next": func(r *store.Run) { r.NextSeq++ }, "module": func(r *store.Run) { r.Module[0] ^= 1 },
		"image": func(r *store.Run) { r.Image[0] ^= 1 }, "skill": func(r *store.Run) { r.Skill += "x" }, "behalf": func(r *store.Run) { r.OnBehalfOf.ID += "x" },
		"engine": func(r *store.Run) { r.Engine += "x" }, "start": func(r *store.Run) { r.Start = []byte("other") }, "label": func(r *store.Run) { r.StartLabel = nil },
		"root": func(r *store.Run) { r.Root = "run_2" }, "config": func(r *store.Run) { r.ConfigSHA256[0] ^= 1 }, "manifest": func(r *store.Run) { r.ManifestSHA256[0] ^= 1 },
		"workspace": func(r *store.Run) { r.Workspace = "other" }, "id": func(r *store.Run) { r.ID = "run_2" },
	} {
		row, recs := f.copied()
		change(&row)
		f.unchained(t, "run's "+name, row, recs)
	}
	t.Logf("%d flips of a byte", flips)
}

func TestAMissingOrReorderedRecordIsFound(t *testing.T) {
	f := newFixture(t)
	for i := range f.recs {
		row, recs := f.copied()
		f.unchained(t, "missing", row, slices.Delete(recs, i, i+1))
		row, recs = f.copied()
		f.unchained(t, "twice", row, slices.Insert(recs, i, recs[i]))
		// Numbered anew, as somebody with the database would do it.
		row, recs = f.copied()
		recs = slices.Delete(recs, i, i+1)
		for k := range recs {
			recs[k].Seq = int64(k) + 1
		}
		row.NextSeq = int64(len(recs)) + 1
		f.unchained(t, "missing and renumbered", row, recs)
		for j := range i {
			row, recs = f.copied()
			recs[i], recs[j] = recs[j], recs[i]
			f.unchained(t, "reordered", row, recs)
			recs[i].Seq, recs[j].Seq = recs[j].Seq, recs[i].Seq
			f.unchained(t, "reordered and renumbered", row, recs)
		}
	}
}

// rechain makes the chain fit again, as somebody with the database could: the
// sealing must hold by itself then.
func rechain(row *store.Run, recs []store.Record) {
	for i, h := range journal.Heads(row, recs) {
		recs[i].Chain, row.Chain = h, h
	}
}

// Law 4.
func TestSealedBodiesOpenOnlyInTheirOwnRowOfTheirOwnRun(t *testing.T) {
	f := newFixture(t)
	row, recs := f.copied()
	rechain(&row, recs)
	if _, err := journal.Open(&row, f.key, recs); err != nil {
		t.Fatal("the test's own chain does not fit:", err)
	}
	row, recs = f.copied()
	recs[4].Body, recs[5].Body = recs[5].Body, recs[4].Body
	rechain(&row, recs)
	f.corrupt(t, "two bodies swapped", row, recs)
	row, recs = f.copied()
	recs[0].Label, recs[5].Label = recs[5].Label, recs[0].Label
	rechain(&row, recs)
	f.corrupt(t, "two labels swapped", row, recs)
	row, recs = f.copied()
	recs[0].Body, recs[0].Label = recs[0].Label, recs[0].Body
	rechain(&row, recs)
	f.corrupt(t, "body and label swapped", row, recs)
	row, recs = f.copied()
	recs[0].Kind = "NEWS"
	rechain(&row, recs)
	f.corrupt(t, "unknown kind", row, recs)

	other, otherKey := newRun(t, f, "run_2")
	_, recs = f.copied()
	rechain(&other, recs)
	other.NextSeq = int64(len(recs)) + 1
	for name, key := range map[string]*vault.RunKey{"its own key": otherKey, "the first run's key": f.key} {
		if _, err := journal.Open(&other, key, recs); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("another run's records opened with %s: %v", name, err)
		}
	}
	// And that one run is stopped, no other.
	if _, err := journal.Open(&f.row, f.key, f.recs); err != nil {
		t.Error(err)
	}
}

func TestNothingIsStoredInPlainText(t *testing.T) {
	f := newFixture(t)
	for _, r := range f.recs {
		for _, word := range []string{"sent", "mail.send", "x:a", "workspace", "secret"} {
			if bytes.Contains(r.Body, []byte(word)) || bytes.Contains(r.Label, []byte(word)) {
				t.Errorf("record %d shows %q", r.Seq, word)
			}
		}
	}
}

// A log whose transaction failed must not go on, and a second log of the same run
// cannot write.
func TestOnlyOneLogOfARunCanWrite(t *testing.T) {
	f := newFixture(t)
	var logs [2]*journal.Log
	for i := range logs {
		var err error
		if logs[i], err = journal.Open(&f.row, f.key, f.recs); err != nil {
			t.Fatal(err)
		}
		if err := logs[i].Add(journal.Result, 3, now, journal.Body{Reply: []byte(strings.Repeat("x", i+1))}, label.Clean()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.store.Write(t.Context(), logs[0].Stage); err != nil {
		t.Fatal(err)
	}
	if err := f.store.Write(t.Context(), logs[1].Stage); err == nil {
		t.Error("both logs wrote")
	}
	f.load(t)
	log, err := journal.Open(&f.row, f.key, f.recs)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := log.Recall(3, abi.Digest{3}); err != nil || string(e.Answer.Reply) != "x" {
		t.Errorf("%+v, %v", e, err)
	}
	if err := logs[1].Add(journal.Attempt, 4, now, journal.Body{}, label.Clean()); err == nil {
		t.Error("a record was added while a transaction was open")
	}
}
