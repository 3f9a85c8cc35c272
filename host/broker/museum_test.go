package broker_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/grant"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
)

// The museum: testdata/journals holds what each release wrote. README.md there says
// how a release adds to it.
const museum = "../../testdata/journals"

// exhibit is one journal as it was stored, with the test keys that open it.
type exhibit struct {
	Keyset        json.RawMessage // a test's, made for this file
	Row           store.Run
	Module, Image abi.Digest // which the row's JSON leaves out
	Records       []store.Record
	Base          uint32   `json:",omitempty"` // calls before the current segment
	Requests      []string // of the guest, from the segment's first call on
	Replies       []string // exactly what it got
}

// recorders make the journals of the museum.
var recorders = map[string]func(h *house) [][]byte{
	"plain": func(h *house) [][]byte {
		list := [][]byte{request(abi.OpTimeNow, "{}"), use(abi.OpToolCall, "notes.read", "a", 0), request(abi.OpKVPut, `{"key":"k","value":1}`), use(abi.OpSend, "model.ask", "a", 10)}
		for i, raw := range list {
			h.ok(uint32(i+1), raw)
		}
		return list
	},
	"approval": func(h *house) [][]byte {
		raw := use(abi.OpSend, "mail.send", "bob", 0)
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, true)
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"batch": func(h *house) [][]byte {
		raw := steps["batch"]("bob")
		part := journal.Part(1, 1)
		if _, err := h.door.Do(h.t.Context(), h.s, 1, raw); err == nil {
			h.t.Error("the batch did not wait")
		}
		h.answer(part, true)
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"sleep": func(h *house) [][]byte {
		raw := request(abi.OpTimeSleep, `{"ms":5000}`)
		h.waits(1, raw, host.WaitTimer)
		h.now = h.now.Add(5 * time.Second)
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"file": func(h *house) [][]byte { // its record's body is more than a row holds
		raw := request(abi.OpKVPut, fmt.Sprintf(`{"key":"k","value":%q}`, dense))
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"denied": func(h *house) [][]byte {
		raw, no := use(abi.OpToolCall, "notes.read", "../a", 0), use(abi.OpSend, "mail.send", "bob", 0)
		h.refused(1, raw, abi.Scope)
		h.waits(2, no, host.WaitApproval)
		h.answer(2, false)
		h.resume()
		h.refused(2, no, abi.ApprovalRejected)
		return [][]byte{raw, no}
	},
	"skill": func(h *house) [][]byte {
		raw := request(abi.OpSkillCall, callDigest)
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"edited": func(h *house) [][]byte {
		raw := use(abi.OpSend, "mail.send", "bob", 0)
		h.waits(1, raw, host.WaitApproval)
		h.must(h.edit(1, `{"text":"better words"}`))
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, true)
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"budget": func(h *house) [][]byte {
		raw := use(abi.OpSend, "model.ask", "a", 10)
		h.rules.Cap = 5
		h.waits(1, raw, host.WaitBudget)
		h.rules.Cap = 1000
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"continued": func(h *house) [][]byte {
		h.ok(1, request(abi.OpTimeNow, "{}"))
		h.ok(2, use(abi.OpSend, "model.ask", "a", 10))
		h.continues(3, `{"left":["b","c"]}`)
		list := [][]byte{request(abi.OpTimeNow, "{}"), use(abi.OpSend, "model.ask", "b", 10)}
		for i, raw := range list {
			h.ok(uint32(i+4), raw)
		}
		return list
	},
	"conversation": func(h *house) [][]byte { // the second is stored against the first
		var list [][]byte
		for i, more := range []string{"", "and a turn more"} {
			raw := fmt.Appendf(nil, `{"op":"send","v":1,"args":{"operation":"model.ask","args":{"to":"a","text":%q,"cost":10}}}`, talk+more)
			h.ok(uint32(i+1), raw)
			list = append(list, raw)
		}
		return list
	},
	"keyed-again": func(h *house) [][]byte {
		raw := use(abi.OpSend, "docs.write", "bob", 10)
		h.lose(1, raw)
		h.later()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"probe": func(h *house) [][]byte {
		raw, found := use(abi.OpSend, "box.send", "bob", 10), true
		h.lose(1, raw)
		h.later()
		h.world.found = &found
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"connector": func(h *house) [][]byte {
		raw := use(abi.OpSend, "mail.send", "bob", 0)
		h.world.revoked = map[string]bool{"bob": true}
		h.waits(1, raw, host.WaitConnector)
		h.world.revoked = nil
		h.resume()
		h.waits(1, raw, host.WaitApproval)
		h.answer(1, true)
		h.resume()
		h.ok(1, raw)
		return [][]byte{raw}
	},
	"abandoned": func(h *house) [][]byte {
		raw := use(abi.OpSend, "mail.send", "bob", 10)
		h.lose(1, raw)
		h.unknown(1, raw)
		h.resolve(host.Abandoned)
		h.refused(1, raw, abi.OutcomeUnknown)
		return [][]byte{raw}
	},
	"unknown-resolved": func(h *house) [][]byte {
		raw := use(abi.OpSend, "mail.send", "bob", 10)
		h.lose(1, raw)
		h.unknown(1, raw)
		h.resolve(host.Happened)
		h.ok(1, raw)
		return [][]byte{raw}
	},
}

// talk is more than a record keeps in full.
var talk = func() string {
	b := strings.Builder{}
	for n := 0; b.Len() < 6<<10; n++ {
		fmt.Fprintf(&b, "Turn %d of what was said. ", n*n)
	}
	return b.String()
}()

// dense is text that does not compress to what a row holds.
var dense = func() string {
	b := make([]byte, store.MaxInline+2048)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return base64.StdEncoding.EncodeToString(b)
}()

func record(t *testing.T, name string) (x exhibit) {
	t.Helper()
	h := newHouse(t)
	for _, raw := range recorders[name](h) {
		x.Requests = append(x.Requests, string(raw))
	}
	h.must(h.s.Flush(t.Context(), h.store))
	x.Base = h.s.Log.Base()
	for i, raw := range x.Requests {
		r, err := h.door.Do(t.Context(), h.s, x.Base+uint32(i+1), []byte(raw))
		h.must(err)
		x.Replies = append(x.Replies, string(r.Bytes))
	}
	h.read(func(tx *store.Tx) (err error) {
		if x.Row, err = tx.Run(h.run); err != nil {
			return err
		}
		x.Module, x.Image = x.Row.Module, x.Row.Image
		x.Records, err = tx.Records(h.run)
		return err
	})
	var err error
	x.Keyset, err = os.ReadFile(filepath.Join(h.path, "keys"))
	h.must(err)
	return x
}

// open verifies an exhibit's chain and unseals it.
func (x *exhibit) open(t *testing.T) (*journal.Log, *vault.RunKey) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, x.Keyset, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := vault.OpenKeyset(path, "acme")
	if err != nil {
		t.Fatal(err)
	}
	x.Row.Module, x.Row.Image = x.Module, x.Image
	key, err := keys.OpenRunKey(x.Row.ID, x.Row.Key)
	if err != nil {
		t.Fatal(err)
	}
	log, err := journal.Open(&x.Row, key, x.Records)
	if err != nil {
		t.Fatal(err)
	}
	return log, key
}

// shape is what a reader of a journal relies on: every record with its kind, call,
// and version, every field of its body, and its label. What is drawn anew for each
// run (its id and key, its calls' keys, its approvals) has a name instead; everything
// else is compared byte for byte.
func (x *exhibit) shape(t *testing.T) (list []string) {
	t.Helper()
	log, key := x.open(t)
	drawn := []string{string(x.Row.ID), "RUN"}
	for _, e := range log.Entries() {
		if e.Key != "" {
			drawn = append(drawn, e.Key, fmt.Sprintf("KEY%d", e.Call))
		}
		if e.Child != "" {
			drawn = append(drawn, string(e.Child), fmt.Sprintf("CHILD%d", e.Call))
		}
		if e.Approval != "" {
			drawn = append(drawn, string(e.Approval), fmt.Sprintf("APPROVAL%d", e.Call))
		}
	}
	named := strings.NewReplacer(drawn...)
	for _, r := range x.Records {
		opened := map[string]string{}
		for column, sealed := range map[string][]byte{"body": r.Body, "label": r.Label} {
			plain, err := key.Open(vault.Slot{Table: "journal", Column: column, Row: string(x.Row.ID) + "/" + itoa(r.Seq), Version: r.Version}, sealed)
			if err != nil {
				t.Fatal(err)
			}
			opened[column] = string(plain)
		}
		fields := map[int]any{}
		if err := cbor.Unmarshal([]byte(opened["body"]), &fields); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%d %s call %d version %d label %s", r.Seq, r.Kind, r.Call, r.Version, opened["label"])
		if r.Blob != "" {
			line += " in a file"
		}
		for _, n := range slices.Sorted(maps.Keys(fields)) {
			v := fmt.Sprint(fields[n])
			if b, ok := fields[n].([]byte); ok {
				v = string(b)
			}
			switch n {
			case 9, 26, 28: // an approval's id, a seed, a head of the chain: drawn, or made of that
				v = "…"
			case 5: // a plan, whose frozen body lies in it as base64
				v = frozenBody.ReplaceAllStringFunc(v, func(m string) string {
					b, err := base64.StdEncoding.DecodeString(frozenBody.FindStringSubmatch(m)[1])
					if err != nil {
						t.Fatal(err)
					}
					return fmt.Sprintf("%q", b)
				})
			case 30: // a difference, with digests of what has drawn keys in it
				v = digest.ReplaceAllString(v, "…")
			case 19, 22: // moments
				if ns, ok := fields[n].(uint64); ok {
					v = fmt.Sprintf("+%v", time.Unix(0, int64(ns)).Sub(x.Row.CreatedAt))
				}
			}
			line += fmt.Sprintf("\n\t%d: %s", n, named.Replace(v))
		}
		list = append(list, line)
	}
	return list
}

// onDisk has the store of this binary read what a release left: rows, and bodies in files that
// lie below their run under the names that the rows have.
func (x *exhibit) onDisk(t *testing.T) (files int) {
	t.Helper()
	h := newHouse(t)
	dir := filepath.Join(h.path, "blobs")
	row := x.Row
	row.State, row.NextSeq = host.StateQueued, 1
	h.write(func(tx *store.Tx) error {
		return errors.Join(tx.InsertRun(row), tx.Append(row.ID, 1, 0, x.Records))
	})
	h.must(os.RemoveAll(dir)) // what this binary makes of it
	h.must(os.MkdirAll(filepath.Join(dir, string(row.ID)), 0o700))
	for _, r := range x.Records {
		if r.Blob != "" {
			files++
			h.must(os.WriteFile(filepath.Join(dir, string(row.ID), r.Blob), r.Body, 0o600))
		}
	}
	h.read(func(tx *store.Tx) error {
		recs, err := tx.Records(row.ID)
		for i, r := range recs {
			if r.Lost != "" || !bytes.Equal(r.Body, x.Records[i].Body) {
				t.Errorf("record %d is not what was stored: %s", r.Seq, r.Lost)
			}
		}
		return err
	})
	return files
}

var frozenBody = regexp.MustCompile(`"body":"([A-Za-z0-9+/=]*)"`)

var digest = regexp.MustCompile(`\[(\d+ ){31}\d+\]`)

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }

// Every journal that a release wrote is answered from by this binary, byte for byte.
// With MUSEUM=<release> the journals of this binary are added first.
func TestTheMuseumIsReplayed(t *testing.T) {
	if release := os.Getenv("MUSEUM"); release != "" {
		for name := range recorders {
			if _, err := os.Stat(filepath.Join(museum, release, name+".json")); err == nil {
				continue // what is there stays
			}
			b, err := json.MarshalIndent(record(t, name), "", " ")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(museum, release), 0o755); err != nil { //nolint:gosec // part of the source
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(museum, release, name+".json"), append(b, '\n'), 0o644); err != nil { //nolint:gosec // part of the source
				t.Fatal(err)
			}
		}
	}
	list, err := filepath.Glob(filepath.Join(museum, "*", "*.json"))
	if err != nil || len(list) < len(recorders) {
		t.Fatalf("%d journals, %v", len(list), err)
	}
	h := newHouse(t)
	h.rules.Policy = &grant.Policy{} // nothing is decided again
	files := 0
	for _, path := range list {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var x exhibit
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if slices.ContainsFunc(x.Records, func(r store.Record) bool { return r.Blob != "" }) {
			files += x.onDisk(t)
		}
		log, key := x.open(t)
		s := &broker.Session{Run: x.Row.Run, Log: log, Key: key, Held: label.Clean()}
		for i, raw := range x.Requests {
			r, err := h.door.Do(t.Context(), s, x.Base+uint32(i+1), []byte(raw))
			if err != nil || string(r.Bytes) != x.Replies[i] {
				t.Errorf("%s: call %d: %s, %v\nrecorded %s", path, i+1, r.Bytes, err, x.Replies[i])
			}
		}
		if n, _ := log.Pending(); n != 0 {
			t.Errorf("%s: the replay wrote", path)
		}
		if len(x.Requests) > 0 {
			if _, err := h.door.Do(t.Context(), &broker.Session{Run: x.Row.Run, Log: log, Key: key}, x.Base+1, []byte(strings.Replace(x.Requests[0], `"v":1`, `"v":2`, 1))); err == nil {
				t.Errorf("%s: another request was answered", path)
			}
		}
	}
	h.performed(0)
	if files == 0 {
		t.Error("no journal has a body that lies in a file")
	}
}

// What this binary writes is, byte for byte where nothing is drawn, what is in the museum
// under the newest release. If it is not, the records' version grows and a new release is added.
func TestTheRecorderStillMakesWhatIsInTheMuseum(t *testing.T) {
	releases, err := filepath.Glob(filepath.Join(museum, "v*"))
	if err != nil || len(releases) == 0 {
		t.Fatal("the museum is empty", err)
	}
	newest := slices.Max(releases)
	for name := range recorders {
		b, err := os.ReadFile(filepath.Join(newest, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var old exhibit
		if err := json.Unmarshal(b, &old); err != nil {
			t.Fatal(err)
		}
		was, is := old.shape(t), []string(nil)
		// A difference is shorter where two drawn keys happen to begin or end alike, in one
		// of eight. What this binary really writes otherwise, it always does.
		for range 8 {
			now := record(t, name)
			if is = now.shape(t); slices.Equal(was, is) {
				break
			}
		}
		if !slices.Equal(was, is) {
			t.Errorf("%s was\n%q\nand is\n%q", name, was, is)
		}
	}
}
