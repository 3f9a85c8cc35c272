package broker_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/broker"
	"github.com/getmonroe/monroe/host/store"
	"github.com/getmonroe/monroe/host/vault"
	"github.com/getmonroe/monroe/host/vault/vaulttest"
)

// oldRows counts what an earlier key sealed.
func (h *house) oldRows() (n int) {
	h.t.Helper()
	h.read(func(tx *store.Tx) error {
		runs, e1 := tx.OldRunKeys(h.keys.Prefix(), 1000)
		_, values, e2 := tx.OldKV(h.keys.Prefix(), 1000)
		labels, e3 := tx.OldKVNamespaces(h.keys.Prefix(), 1000)
		n = len(runs) + len(values) + len(labels)
		h.must(e1)
		h.must(e2)
		return e3
	})
	return n
}

// After a rotation everything opens as before; a bounded sweep seals it anew, and then
// it opens as well.
func TestRowsAreSealedAnewAfterARotation(t *testing.T) {
	h := newHouse(t)
	put := func(n uint32, key string) { h.ok(n, request(abi.OpKVPut, `{"key":"`+key+`","value":1}`)) }
	get := func(n uint32, key string) {
		t.Helper()
		if r := h.ok(n, request(abi.OpKVGet, `{"key":"`+key+`"}`)); string(r.OK) != `{"found":true,"value":1}` {
			t.Errorf("%s is %s", key, r.OK)
		}
		h.must(h.s.Flush(t.Context(), h.store))
	}
	put(1, "a")
	put(2, "b")
	h.start(10) // and a second run
	if err := h.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(1, "c")
	if n := h.oldRows(); n != 2+2 { // two run keys, two values; the namespace's label was sealed just now
		t.Errorf("%d old rows", n)
	}
	get(2, "a")
	h.crash()
	get(3, "b")
	sweeps := 0
	for found := 1; found > 0; sweeps++ {
		h.write(func(tx *store.Tx) (err error) { found, err = broker.Rewrap(tx, h.keys, 1); return err })
	}
	if n := h.oldRows(); n != 0 || sweeps < 2 {
		t.Errorf("%d old rows after %d sweeps", n, sweeps)
	}
	h.crash()
	get(4, "a")
	get(5, "c")
	if r := h.ok(6, request(abi.OpKVList, `{}`)); string(r.OK) != `{"keys":["a","b","c"]}` {
		t.Errorf("%s", r.OK)
	}
}

// A run whose workspace's key service is gone for too long does nothing new and waits;
// what was done is recorded, and it goes on when the service is back.
func TestNothingNewIsDoneWithStaleKeys(t *testing.T) {
	h := newHouse(t)
	path, kek := filepath.Join(h.path, "keys"), &vaulttest.KEK{ID: "one"}
	h.must(vault.RewrapFile(t.Context(), path, "acme", nil, kek))
	var err error
	h.keys, err = vault.OpenKeysetWith(t.Context(), path, "acme", kek, time.Hour)
	h.must(err)
	h.keys.Confirm(t.Context(), h.now)
	h.crash()
	h.ok(1, use(abi.OpToolCall, "notes.read", "a", 0))
	kek.Away.Store(true)
	h.now = h.now.Add(50 * time.Minute)
	h.keys.Confirm(t.Context(), h.now)
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0)) // within the cache's time
	h.now = h.now.Add(11 * time.Minute)
	h.ok(3, timeNow)
	for _, raw := range [][]byte{use(abi.OpToolCall, "notes.read", "c", 0), use(abi.OpSend, "model.ask", "a", 1), use(abi.OpSend, "mail.send", "bob", 0)} {
		h.waits(4, raw, host.WaitConnector)
		h.start(100)
		h.ok(1, timeNow)
		h.ok(2, timeNow)
		h.ok(3, timeNow)
	}
	h.performed(2)
	kek.Away.Store(false)
	h.now = h.now.Add(time.Minute)
	h.keys.Confirm(t.Context(), h.now)
	h.ok(4, use(abi.OpToolCall, "notes.read", "c", 0))
	h.performed(3)
}
