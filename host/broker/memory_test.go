package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
)

func TestMemoryKeepsLabels(t *testing.T) {
	h := newHouse(t)
	h.ok(1, request(abi.OpKVPut, `{"key":"public","value":1}`))
	h.ok(2, use(abi.OpToolCall, "notes.read", "a", 0))
	h.ok(3, request(abi.OpKVPut, `{"key":"private","value":{"b":2}}`))
	held := h.s.Held
	for _, c := range []struct {
		name, args string
		op         abi.Op
		labelled   bool
	}{
		{"the value that was clean", `{"key":"public"}`, abi.OpKVGet, false},
		{"the value", `{"key":"private"}`, abi.OpKVGet, true},
		{"a miss", `{"key":"absent"}`, abi.OpKVGet, true},
		{"the list", `{}`, abi.OpKVList, true},
	} {
		h.start(500)
		r := h.ok(1, request(c.op, c.args))
		got := h.s.Held
		if c.labelled && (!got.Readers.Within(held.Readers) || got.Integrity > held.Integrity) {
			t.Errorf("%s came with %v, stored with %v", c.name, got, held)
		}
		if !c.labelled && !got.Readers.IsEveryone() {
			t.Errorf("%s came with %v", c.name, got)
		}
		if c.name == "the value" && !strings.Contains(string(r.OK), `{"b":2}`) {
			t.Errorf("%s", r.OK)
		}
		h.crash() // and the label survives in the journal, or is found again
		h.ok(1, request(c.op, c.args))
		if again := h.s.Held; again.String() != got.String() {
			t.Errorf("%s: %v after a restart, %v before", c.name, again, got)
		}
	}
	// That it was deleted is known only to who may know that it was there.
	h.start(500)
	for n, want := range []string{`"found":true`, `{}`} {
		if r := h.ok(uint32(n+1), request(abi.OpKVDelete, `{"key":"private"}`)); !strings.Contains(string(r.OK), want) {
			t.Errorf("delete %d: %s, want %s", n+1, r.OK, want)
		}
		if !h.s.Held.Readers.Within(held.Readers) {
			t.Errorf("the answer to the delete came with %v", h.s.Held)
		}
	}
	h.start(500)
	h.ok(1, request(abi.OpKVGet, `{"key":"private"}`))
	if !h.s.Held.Readers.Within(held.Readers) {
		t.Errorf("the miss after a delete came with %v", h.s.Held)
	}
	h.books()
}

func TestMemoryRowsCannotBeSwapped(t *testing.T) {
	h := newHouse(t)
	h.ok(1, request(abi.OpKVPut, `{"key":"a","value":"one"}`))
	h.ok(2, request(abi.OpKVPut, `{"key":"b","value":"two"}`))
	h.tamper(`UPDATE kv SET value_enc = (SELECT value_enc FROM kv ORDER BY key_mac LIMIT 1)`) // one of the two is wrong now
	h.resume()
	broken := 0
	for i, key := range []string{"a", "b"} {
		r, err := h.door.Do(t.Context(), h.s, uint32(i+3), request(abi.OpKVGet, fmt.Sprintf(`{"key":%q}`, key)))
		h.must(err)
		if strings.Contains(string(r.Bytes), string(abi.Internal)) {
			broken++
		} else if want := map[string]string{"a": "one", "b": "two"}[key]; !strings.Contains(string(r.Bytes), want) {
			t.Errorf("%s: %s", key, r.Bytes)
		}
	}
	if broken != 1 {
		t.Errorf("%d values did not open, want the one that was moved", broken)
	}
}

// SPEC 4 and 7: the limits of a skill's memory.
func TestMemoryHasItsLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a memory to its limit, which takes seconds with -race")
	}
	h := newHouse(t)
	put := func(key, value string) []byte {
		return request(abi.OpKVPut, fmt.Sprintf(`{"key":%q,"value":%q}`, key, value))
	}
	h.ok(1, put(strings.Repeat("k", abi.MaxKVKey), strings.Repeat("v", abi.MaxKVValue-2)))
	h.refused(2, put("k", strings.Repeat("v", abi.MaxKVValue-1)), abi.TooLarge)
	h.refused(3, put(strings.Repeat("k", abi.MaxKVKey+1), "v"), abi.Invalid)
	n := uint32(4)
	for i := range 63 { // 16 MiB in all
		h.ok(n, put(fmt.Sprint("big", i), strings.Repeat("v", abi.MaxKVValue-1024)))
		n++
	}
	h.refused(n, put("last", strings.Repeat("v", abi.MaxKVValue-2)), abi.TooLarge)
	h.refused(n+1, request(abi.OpKVGet, `{"key":"last","prefix":"x"}`), abi.Invalid)
	if r := h.ok(n+2, request(abi.OpKVGet, `{"key":"last"}`)); strings.Contains(string(r.OK), "found") {
		t.Errorf("what was refused is there: %s", r.OK)
	}
}

func TestAListOfKeysIsSortedAndCut(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a memory to its limit, which takes seconds with -race")
	}
	h := newHouse(t)
	for i := range abi.MaxKVKeys + 2 {
		h.ok(uint32(i+1), request(abi.OpKVPut, fmt.Sprintf(`{"key":"k%04d","value":1}`, abi.MaxKVKeys+1-i)))
	}
	var got abi.KVResult
	h.must(json.Unmarshal(h.ok(abi.MaxKVKeys+3, request(abi.OpKVList, `{"prefix":"k"}`)).OK, &got))
	if len(got.Keys) != abi.MaxKVKeys || got.Keys[0] != "k0000" || !slices.IsSorted(got.Keys) {
		t.Errorf("%d keys from %s", len(got.Keys), got.Keys[0])
	}
	h.must(json.Unmarshal(h.ok(abi.MaxKVKeys+4, request(abi.OpKVList, `{"prefix":"k100"}`)).OK, &got))
	if !slices.Equal(got.Keys, []string{"k1000", "k1001"}) {
		t.Error(got.Keys)
	}
}
